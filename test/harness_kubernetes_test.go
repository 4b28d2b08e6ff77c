//go:build interop && kubernetes

package test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// kube is a Kubernetes API server with etcd, and no nodes: it runs no pods and no
// controllers.
type kube struct {
	t          testing.TB
	dir        string
	url        string
	kubeconfig string // of an administrator
	signingKey *ecdsa.PrivateKey
}

const (
	clusterIssuer = "https://kubernetes.default.svc"
	adminToken    = "admin-token-of-the-test"
)

func startKube(t testing.TB) *kube {
	t.Helper()
	c := &kube{t: t, dir: t.TempDir()}
	if out, err := exec.Command("unshare", "--user", "--map-root-user", "--mount", "true").CombinedOutput(); err != nil {
		t.Fatalf("make kubernetes requires user and mount namespaces, which this machine or container does not allow: %v\n%s", err, out)
	}
	began := time.Now()
	for attempt := 0; !c.start(); attempt++ {
		if attempt == 2 {
			t.Fatalf("the API server did not start:\n%s", lastLines(t, filepath.Join(c.dir, "kube-apiserver.log")))
		}
	}
	c.apply(`
{kind: Namespace, apiVersion: v1, metadata: {name: vault}}
---
{kind: ServiceAccount, apiVersion: v1, metadata: {name: vault, namespace: vault}}
---
kind: ClusterRoleBinding
apiVersion: rbac.authorization.k8s.io/v1
metadata: {name: vault-reviews-tokens}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: system:auth-delegator}
subjects: [{kind: ServiceAccount, name: vault, namespace: vault}]
`)
	t.Logf("etcd and the API server started in %v", time.Since(began).Round(100*time.Millisecond))
	return c
}

// createNamespaces creates the namespaces of the examples, and their service accounts.
func (c *kube) createNamespaces() {
	c.t.Helper()
	c.apply(`
{kind: Namespace, apiVersion: v1, metadata: {name: agents, labels: {pod-security.kubernetes.io/enforce: baseline, pod-security.kubernetes.io/warn: baseline}}}
---
{kind: Namespace, apiVersion: v1, metadata: {name: ati, labels: {pod-security.kubernetes.io/enforce: baseline, pod-security.kubernetes.io/warn: baseline}}}
---
{kind: Namespace, apiVersion: v1, metadata: {name: others}}
---
{kind: ServiceAccount, apiVersion: v1, metadata: {name: agent, namespace: agents}}
---
{kind: ServiceAccount, apiVersion: v1, metadata: {name: second, namespace: agents}}
---
{kind: ServiceAccount, apiVersion: v1, metadata: {name: agent, namespace: others}}
`)
}

// start starts etcd and the API server, and returns false if the API server did not become
// ready, such as when a port was taken in the meantime.
func (c *kube) start() bool {
	c.t.Helper()
	etcd, port := freePort(c.t), freePort(c.t)
	peer := freePort(c.t)
	client, peers := "http://127.0.0.1:"+etcd, "http://127.0.0.1:"+peer
	c.run(requireEnv(c.t, "ETCD_BIN"), nil, "--data-dir", c.t.TempDir(), "--listen-client-urls", client, "--advertise-client-urls", client,
		"--listen-peer-urls", peers, "--initial-advertise-peer-urls", peers, "--initial-cluster", "default="+peers)
	c.url = "https://127.0.0.1:" + port
	certs := c.t.TempDir()
	server := c.run(requireEnv(c.t, "KUBE_APISERVER"), nil, "--etcd-servers", client, "--bind-address", "127.0.0.1", "--secure-port", port,
		"--advertise-address", "192.0.2.1", "--endpoint-reconciler-type", "none", "--service-cluster-ip-range", "10.0.0.0/24", "--cert-dir", certs,
		"--service-account-issuer", clusterIssuer, "--service-account-key-file", c.writeSigningKey(), "--service-account-signing-key-file", c.writeSigningKey(),
		"--token-auth-file", writeFile(c.t, adminToken+",admin,admin,system:masters\n"), "--authorization-mode", "RBAC")
	for range 600 {
		select {
		case <-server.exited:
			return false
		case <-time.After(100 * time.Millisecond):
		}
		ca, err := os.ReadFile(filepath.Join(certs, "apiserver.crt"))
		if err != nil {
			continue
		}
		c.writeKubeconfig(ca)
		if _, err := c.tryKubectl("", "get", "--raw", "/readyz"); err == nil {
			return true
		}
	}
	return false
}

// writeSigningKey returns a file with the key that signs the tokens of service accounts.
func (c *kube) writeSigningKey() string {
	c.t.Helper()
	if c.signingKey == nil {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			c.t.Fatal(err)
		}
		c.signingKey = key
	}
	der, err := x509.MarshalECPrivateKey(c.signingKey)
	if err != nil {
		c.t.Fatal(err)
	}
	return writeFile(c.t, string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der})))
}

func (c *kube) writeKubeconfig(ca []byte) {
	c.t.Helper()
	text, err := json.Marshal(data{
		"apiVersion": "v1", "kind": "Config", "current-context": "test",
		"clusters": []data{{"name": "test", "cluster": data{"server": c.url, "certificate-authority-data": ca}}},
		"users":    []data{{"name": "admin", "user": data{"token": adminToken}}},
		"contexts": []data{{"name": "test", "context": data{"cluster": "test", "user": "admin"}}},
	})
	if err != nil {
		c.t.Fatal(err)
	}
	c.kubeconfig = filepath.Join(c.dir, "kubeconfig")
	if err := os.WriteFile(c.kubeconfig, text, 0o600); err != nil {
		c.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(c.dir, "ca.crt"), ca, 0o600); err != nil {
		c.t.Fatal(err)
	}
}

// part is a running program of the cluster.
type part struct {
	log    string
	exited chan struct{}
}

// run starts a program, whose output goes to a file, and ends it when the test ends.
func (c *kube) run(program string, env []string, args ...string) *part {
	c.t.Helper()
	p := &part{log: filepath.Join(c.dir, filepath.Base(program)+".log"), exited: make(chan struct{})}
	log, err := os.Create(p.log)
	if err != nil {
		c.t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(program, args...)
	cmd.Env = append([]string{"HOME=" + c.dir, "PATH=" + os.Getenv("PATH")}, env...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} // if the test is killed
	if err := cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	go func() { _ = cmd.Wait(); close(p.exited) }()
	c.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-p.exited
	})
	return p
}

func lastLines(t testing.TB, path string) []byte {
	t.Helper()
	b := readFile(t, path)
	return b[max(0, len(b)-4000):]
}

// kubectl runs kubectl as an administrator, and returns its output.
func (c *kube) kubectl(args ...string) string {
	c.t.Helper()
	out, err := c.tryKubectl("", args...)
	if err != nil {
		c.t.Fatalf("kubectl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

func (c *kube) tryKubectl(stdin string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(c.t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, requireEnv(c.t, "KUBECTL"), append([]string{"--kubeconfig", c.kubeconfig}, args...)...)
	cmd.Env = []string{"HOME=" + c.dir, "PATH=" + os.Getenv("PATH")}
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// apply applies manifests.
func (c *kube) apply(manifests string) {
	c.t.Helper()
	if out, err := c.tryKubectl(manifests, "apply", "--server-side", "--validate=strict", "-f", "-"); err != nil {
		c.t.Fatalf("kubectl apply: %v\n%s", err, out)
	}
}

// installCRDs installs an operator's CustomResourceDefinitions from a directory.
func (c *kube) installCRDs(dir string) {
	c.t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*_*.yaml"))
	if err != nil || len(files) == 0 {
		c.t.Fatalf("no files in %s (%v)", dir, err)
	}
	c.kubectl("apply", "--server-side", "-f", strings.Join(files, ","))
	c.kubectl("wait", "--for=condition=Established", "--timeout=60s", "-f", strings.Join(files, ","))
}

// token returns a token of a service account, which is bound to further objects by the
// arguments, as kubectl create token takes them.
func (c *kube) token(namespace, name string, args ...string) string {
	c.t.Helper()
	return strings.TrimSpace(c.kubectl(append([]string{"create", "token", "--namespace", namespace, name}, args...)...))
}

// changedToken returns a token with other claims, signed with the cluster's key.
func (c *kube) changedToken(token string, changes jwt.MapClaims) string {
	c.t.Helper()
	claims := jwt.MapClaims{}
	parsed, _, err := jwt.NewParser(jwt.WithJSONNumber()).ParseUnverified(token, claims)
	if err != nil {
		c.t.Fatal(err)
	}
	maps.Copy(claims, changes)
	changed := jwt.NewWithClaims(jwt.SigningMethodES256, claims)
	changed.Header = parsed.Header
	signed, err := changed.SignedString(c.signingKey)
	if err != nil {
		c.t.Fatal(err)
	}
	return signed
}

// connect lets a server verify tokens of the cluster by TokenReview, and returns the
// accessor of its login.
func (c *kube) connect(s *server) (accessor string) {
	s.t.Helper()
	if out, err := s.tryVault(s.root, "auth", "enable", "kubernetes"); err != nil {
		s.t.Fatalf("this %s has no kubernetes login, which make kubernetes requires: set VAULT_BIN to OpenBao (scripts/vault-bin.sh openbao) or to a release of Vault\n%s", tested.name, out)
	}
	s.write(s.root, "auth/kubernetes/config", data{
		"kubernetes_host": c.url, "kubernetes_ca_cert": string(readFile(s.t, filepath.Join(c.dir, "ca.crt"))),
		"token_reviewer_jwt": c.token("vault", "vault"), "disable_local_ca_jwt": true,
	})
	return s.read(s.root, "sys/auth/kubernetes").Data["accessor"].(string)
}

// allowAgents lets the service account agent in the namespace agents mint for the role
// sandbox, with the command in docs/kubernetes.md.
func (c *kube) allowAgents(s *server) {
	s.t.Helper()
	s.putPolicy("ati-sandbox", "sandbox.hcl")
	s.runOnPage("vault write auth/kubernetes/role/ati-sandbox ")
	s.write(s.root, "ati/roles/sandbox", data{"tools": "web_search", "job_id": "{{jti}}", "ttl": "1h", "subject": "{{identity.entity.id}}"})
}

// runOnPage runs the command in docs/kubernetes.md that begins so.
func (s *server) runOnPage(start string) {
	s.t.Helper()
	page := strings.ReplaceAll(string(readFile(s.t, "../docs/kubernetes.md")), "\\\n", " ")
	_, rest, found := strings.Cut(page, "\n"+start)
	if !found {
		s.t.Fatalf("the page does not have the command %s", start)
	}
	line, _, _ := strings.Cut(start+rest, "\n")
	s.vault(s.root, strings.Fields(line)[1:]...)
}

// putPolicy writes a policy from examples/policies.
func (s *server) putPolicy(name, file string) {
	s.t.Helper()
	if err := s.client(s.root).Sys().PutPolicy(name, string(readFile(s.t, filepath.Join("..", "examples", "policies", file)))); err != nil {
		s.t.Fatal(err)
	}
}

// inPod returns a script that runs a program with the service account's directory of a pod,
// where the test renews the files as a kubelet does.
func inPod(t testing.TB, serviceAccount, program string) (script string) {
	t.Helper()
	script = filepath.Join(t.TempDir(), "pod")
	const mounts = `mount -t tmpfs none /run && mkdir -p /run/secrets/kubernetes.io/serviceaccount && mount --bind "$0" /run/secrets/kubernetes.io/serviceaccount && exec "$@"`
	text := fmt.Sprintf("#!/bin/sh\nexec unshare --user --map-root-user --mount sh -c %s %s %s \"$@\"\n", shellQuote(mounts), shellQuote(serviceAccount), shellQuote(program))
	if err := os.WriteFile(script, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	return script
}

// serviceAccountDir returns a directory with a token, as in a pod.
func serviceAccountDir(t testing.TB, token string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "token"), []byte(token), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

// object returns an object of the cluster.
func (c *kube) object(into any, args ...string) error {
	out, err := c.tryKubectl("", append([]string{"get", "--output=json"}, args...)...)
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return json.Unmarshal([]byte(out), into)
}

// secret returns the data of a Secret, or an error if it does not exist.
func (c *kube) secret(namespace, name string) (map[string]string, error) {
	var object struct{ Data map[string][]byte }
	if err := c.object(&object, "--namespace", namespace, "secret", name); err != nil {
		return nil, err
	}
	values := map[string]string{}
	for k, v := range object.Data {
		values[k] = string(v)
	}
	return values, nil
}

// condition is the condition Ready of an object.
type condition struct{ Status, Reason, Message string }

func (c *kube) ready(namespace, kind, name string) (ready condition, err error) {
	var object struct {
		Status struct {
			Conditions []struct {
				Type string
				condition
			}
		}
	}
	if err := c.object(&object, "--namespace", namespace, kind, name); err != nil {
		return ready, err
	}
	for _, found := range object.Status.Conditions {
		if found.Type == "Ready" {
			return found.condition, nil
		}
	}
	return ready, errors.New("no condition Ready")
}

// events returns the messages of the events in a namespace.
func (c *kube) events(namespace string) string {
	out, err := c.tryKubectl("", "get", "events", "--namespace", namespace, "--output=jsonpath={range .items[*]}{.reason}: {.message}{\"\\n\"}{end}")
	return string(bytes.TrimSpace([]byte(out))) + errorText(err)
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
