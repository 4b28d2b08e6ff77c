//go:build interop && kubernetes

package test

import (
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// podGuard is a guard in a pod, with the directory of its service account.
type podGuard struct {
	*guard
	serviceAccount string
}

const sigterm = syscall.SIGTERM

// allowGuards applies the example of the guard, and lets its service account log in.
func (c *kube) allowGuards(s *server) {
	c.t.Helper()
	c.apply(c.kubectl("kustomize", "../examples/kubernetes/guard"))
	if diff := cmp.Diff(string(readFile(c.t, "../examples/kubernetes/guard/guard.json")), c.guardConfig()); diff != "" {
		c.t.Errorf("the ConfigMap that the Deployment mounts (-want +got):\n%s", diff)
	}
	s.putPolicy("ati-proxy-guard", "proxy-guard.hcl")
	s.runOnPage("vault write auth/kubernetes/role/ati-guard ")
}

// startGuard starts a guard with the configuration in the example's ConfigMap, and waits
// until it is ready.
func (c *kube) startGuard(s *server) *podGuard {
	c.t.Helper()
	g := &podGuard{s.newGuard(c.t, nil), serviceAccountDir(c.t, c.guardToken())}
	var config data
	if err := json.Unmarshal([]byte(c.guardConfig()), &config); err != nil {
		c.t.Fatal(err)
	}
	// Other addresses, directories, and files, and the user who runs the test.
	config["vault"].(data)["address"] = s.addr
	delete(config, "user")
	for _, key := range []string{"listen", "admin", "ati", "ati_dir", "poll", "access_log"} {
		config[key] = g.config[key]
	}
	g.config = config
	g.writeConfig()
	g.binary = inPod(c.t, g.serviceAccount, buildGuard(c.t))
	g.start()
	g.waitUntilReady()
	return g
}

// guardToken returns a token as the example's pods have.
func (c *kube) guardToken() string {
	c.t.Helper()
	return c.token("ati", c.guardField("deployment", "{.spec.template.spec.serviceAccountName}"),
		"--audience="+c.guardField("deployment", "{.spec.template.spec.volumes[*].projected.sources[*].serviceAccountToken.audience}"))
}

// guardField returns a field of an object of the example.
func (c *kube) guardField(kind, path string) string {
	c.t.Helper()
	return c.kubectl("get", kind, "ati-guard", "--namespace=ati", "--output=jsonpath="+path)
}

// guardConfig returns guard.json in the example's ConfigMap, which the Deployment mounts.
func (c *kube) guardConfig() string {
	c.t.Helper()
	name := c.guardField("deployment", `{.spec.template.spec.volumes[?(@.name=="config")].configMap.name}`)
	return c.kubectl("get", "configmap", name, "--namespace=ati", `--output=jsonpath={.data.guard\.json}`)
}

// service is an address of several guards, as a Service of Kubernetes: it forwards
// connections, and knows nothing of HTTP.
type service struct {
	addr   string
	mu     sync.Mutex
	routes []string
	next   int
}

func startService(t testing.TB) *service {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	s := &service{addr: "http://" + listener.Addr().String()}
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go s.forward(conn.(*net.TCPConn))
		}
	}()
	return s
}

// route sets the guards to which new connections go, in turn.
func (s *service) route(guards ...*podGuard) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.routes = nil
	for _, g := range guards {
		s.routes = append(s.routes, strings.TrimPrefix(g.addr, "http://"))
	}
}

func (s *service) pick() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.next++
	return s.routes[s.next%len(s.routes)]
}

func (s *service) forward(from *net.TCPConn) {
	defer from.Close()
	conn, err := net.Dial("tcp", s.pick())
	if err != nil {
		return
	}
	to := conn.(*net.TCPConn)
	defer to.Close()
	done := make(chan struct{})
	go func() {
		_, _ = io.Copy(to, from)
		_ = to.CloseWrite()
		close(done)
	}()
	_, _ = io.Copy(from, to)
	_ = from.CloseWrite()
	<-done
}

// at returns a client of the guards at a service's address. It makes some connections again
// and again, as sandboxes do.
func (g *guard) at(s *service) *guard {
	return &guard{proxy: &proxy{t: g.t, addr: s.addr}, client: &http.Client{Timeout: time.Minute, Transport: &http.Transport{MaxIdleConnsPerHost: 4}}}
}

// renewServiceAccount replaces the token of the guard's pod, as a kubelet does.
func (g *podGuard) renewServiceAccount(token string) {
	g.t.Helper()
	path := filepath.Join(g.serviceAccount, "token")
	if err := os.WriteFile(path+".new", []byte(token), 0o600); err != nil {
		g.t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		g.t.Fatal(err)
	}
}
