//go:build interop && kubernetes

package test

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// These tests run on a real API server, etcd, External Secrets Operator, and kubernetes
// login. There are no nodes, so the programs of a pod run on the host.
func TestKubernetes(t *testing.T) {
	c := startKube(t)
	c.installCRDs(requireEnv(t, "EXTERNAL_SECRETS_CRDS"))
	c.installCRDs(requireEnv(t, "VSO_CRDS"))
	t.Run("page", func(t *testing.T) { testKubernetesPage(t, c.in(t)) })
	c.createNamespaces()
	for name, test := range map[string]func(*testing.T, *kube){
		"Agent":                     testKubernetesAgent,
		"guard objects":             testKubernetesGuardObjects,
		"guard":                     testKubernetesGuard,
		"rollout":                   testKubernetesRollout,
		"logins":                    testKubernetesLogins,
		"manifests":                 testKubernetesManifests,
		"External Secrets Operator": testKubernetesExternalSecrets,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, c.in(t))
		})
	}
}

// The commands in docs/kubernetes.md print what the page shows, on a cluster without the
// namespaces of the examples.
func testKubernetesPage(t *testing.T, c *kube) {
	s, _ := startEngine(t)
	t.Setenv("KUBECONFIG", c.kubeconfig)
	t.Setenv("PATH", filepath.Dir(requireEnv(t, "KUBECTL"))+":"+os.Getenv("PATH"))
	all, err := filepath.Abs("../examples")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.Symlink(all, filepath.Join(dir, "examples")); err != nil {
		t.Fatal(err)
	}
	run := commandsFor(examples(t, "../docs/kubernetes.md"), "", "TestKubernetes")
	outside := fmt.Sprintf("kubernetes_host=%s kubernetes_ca_cert=@%s token_reviewer_jwt=%s disable_local_ca_jwt=true", c.url, filepath.Join(c.dir, "ca.crt"), c.token("vault", "vault"))
	s.runExamples(dir, run, "kubernetes_host=https://kubernetes.default.svc", outside)
}

// in returns the cluster for a subtest.
func (c *kube) in(t testing.TB) *kube {
	in := *c
	in.t = t
	return &in
}

// The API server accepts every manifest in examples/, and has no warning about it.
func testKubernetesManifests(t *testing.T, c *kube) {
	var files []string
	err := filepath.WalkDir("../examples/kubernetes", func(path string, _ fs.DirEntry, err error) error {
		if strings.HasSuffix(path, ".yaml") && filepath.Base(filepath.Dir(path)) != "guard" {
			files = append(files, path)
		}
		return err
	})
	if err != nil || len(files) < 3 {
		t.Fatalf("%v (%v)", files, err)
	}
	try := func(file string) (string, error) {
		return c.tryKubectl("", "apply", "--server-side", "--dry-run=server", "--validate=strict", "-f", file)
	}
	for _, file := range files {
		out, err := try(file)
		t.Logf("%s\n%s", file, out)
		if err != nil || strings.Contains(out, "Warning") {
			t.Errorf("%s: %v\n%s", file, err, out)
		}
	}
	// The base of the guard, with the overlay of docs/kubernetes.md and the address of another Vault.
	base, err := filepath.Abs("../examples/kubernetes/guard") // with guard.json
	if err != nil {
		t.Fatal(err)
	}
	overlay := filepath.Dir(modifiedExample(t, "kubernetes/guard/guard.json", map[string]string{"vault.example.com": "vault.example.org"}))
	if base, err = filepath.Rel(overlay, base); err != nil {
		t.Fatal(err)
	}
	_, text, found := strings.Cut(string(readFile(t, "../docs/kubernetes.md")), "<<'YAML'\n")
	text, _, _ = strings.Cut(text, "YAML\n")
	if !found || !strings.Contains(text, "../examples/kubernetes/guard") {
		t.Fatalf("the page has another overlay: %s", text)
	}
	text = strings.Replace(text, "../examples/kubernetes/guard", base, 1)
	if err := os.WriteFile(filepath.Join(overlay, "kustomization.yaml"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	rendered := c.kubectl("kustomize", overlay)
	if !strings.Contains(rendered, "vault.example.org") || strings.Contains(rendered, "example.com") {
		t.Errorf("the overlay has not replaced the address of Vault and the image:\n%s", rendered)
	}
	if out, err := c.tryKubectl(rendered, "apply", "--server-side", "--dry-run=server", "--validate=strict", "-f", "-"); err != nil || strings.Contains(out, "Warning") {
		t.Errorf("the guard: %v\n%s", err, out)
	}
	// The API server detects errors.
	for file, change := range map[string][2]string{
		"kubernetes/external-secrets.yaml":       {"method: POST", "methode: POST"},
		"kubernetes/vault-agent.yaml":            {"restartPolicy: Always", "restartPolicy: Sometimes"},
		"kubernetes/vault-secrets-operator.yaml": {"excludeRaw: true", "excluderaw: true"},
	} {
		if out, err := try(modifiedExample(t, file, map[string]string{change[0]: change[1]})); err == nil {
			t.Errorf("with %s it passes:\n%s", change[1], out)
		}
	}
}
