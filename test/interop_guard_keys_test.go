//go:build interop

package test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Guarantee: while Vault denies the API keys or does not have them, a guard that starts is
// closed, and one that knows them keeps them. In both cases it keeps its login, which it
// could not get again, and goes on rejecting revoked tokens.
func TestInteropGuard_APIKeys(t *testing.T) {
	t.Parallel()
	s := startGuarded(t, false, time.Hour)
	s.vault(s.root, "secrets", "enable", "-path=secret", "-version=2", "kv")
	token, revoked := s.mint("r", nil), s.mint("r", nil)
	s.write(s.root, "ati/revoke", data{"token": revoked})

	denied, missing := s.newKeyedGuard(t, "denied"), s.newKeyedGuard(t, "missing")
	denied.put("first")
	missing.allow(true)
	guards := []*keyedGuard{denied, missing}
	for _, g := range guards {
		g.start()
		g.waitForDenied(3)
		g.expect(g.name+", at the start", token, http.StatusServiceUnavailable)
		if pids := g.children(); len(pids) != 0 {
			t.Errorf("%s, at the start: the processes %v run", g.name, pids)
		}
		g.watchRejected(revoked)
	}
	denied.allow(true)
	missing.put("first")
	for _, g := range guards {
		t.Logf("%s, over: a call succeeds after %v", g.name, g.until(g.name+", over", token, http.StatusOK))
		g.expectKey(token, "first")
	}

	denied.allow(false)
	missing.remove()
	began := time.Now()
	before := []int{denied.denied(), missing.denied()}
	for i, g := range guards {
		load := g.startLoad(2, func() string { return token })
		g.waitForDenied(before[i] + 1)
		t.Logf("%s, later: the API keys were read after %v", g.name, time.Since(began).Round(time.Second))
		g.expectKey(token, "first")
		second := s.mint("r", nil)
		g.expect(g.name+", later, before a revocation", second, http.StatusOK)
		s.write(s.root, "ati/revoke", data{"token": second})
		t.Logf("%s, later: a revocation takes %v", g.name, g.untilRejected(g.name+", later", http.StatusUnauthorized, second))
		load.expectNoFailure(g.name + ", later")
	}
}

// keyedGuard is a guard that reads API keys, and can log in once.
type keyedGuard struct {
	*guard
	name string // of its AppRole, its policy, and its path in the KV secrets engine
	seen chan string
}

func (s *server) newKeyedGuard(t testing.TB, name string) *keyedGuard {
	t.Helper()
	g := &keyedGuard{s.newGuard(t, data{"api_keys": "secret/data/" + name}), name, make(chan string, 1)}
	g.allow(false)
	s.write(s.root, "auth/approle/role/"+name, data{"token_policies": name, "token_no_default_policy": true, "secret_id_num_uses": 1})
	dir := t.TempDir()
	auth := data{}
	for field, secret := range map[string]any{
		"role_id":   s.read(s.root, "auth/approle/role/"+name+"/role-id").Data["role_id"],
		"secret_id": s.write(s.root, "auth/approle/role/"+name+"/secret-id", nil).Data["secret_id"],
	} {
		path := filepath.Join(dir, field)
		if err := os.WriteFile(path, []byte(secret.(string)), 0o600); err != nil {
			t.Fatal(err)
		}
		auth[field+"_file"] = path
	}
	g.config["vault"].(data)["auth"] = data{"approle": auth}
	g.writeConfig()
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		g.seen <- r.Header.Get("Authorization")
		_, _ = io.WriteString(w, `{"ok":true}`)
	}))
	t.Cleanup(upstream.Close)
	g.addTool("keyed", http.MethodGet, upstream.URL, "auth_type = \"bearer\"\nauth_key_name = \"search\"")
	return g
}

// allow writes the guard's policy, with or without its API keys.
func (g *keyedGuard) allow(keys bool) {
	g.t.Helper()
	policy := string(readFile(g.t, filepath.Join("..", "examples", "policies", "proxy-guard.hcl")))
	path := "secret/data/none"
	if keys {
		path = "secret/data/" + g.name
	}
	if err := g.server.client(g.server.root).Sys().PutPolicy(g.name, strings.ReplaceAll(policy, "secret/data/ati-keys", path)); err != nil {
		g.t.Fatal(err)
	}
}

func (g *keyedGuard) put(key string) {
	g.t.Helper()
	g.server.write(g.server.root, "secret/data/"+g.name, data{"data": data{"search": key}})
}

func (g *keyedGuard) remove() {
	g.t.Helper()
	if _, err := g.server.client(g.server.root).Logical().Delete("secret/metadata/" + g.name); err != nil {
		g.t.Fatal(err)
	}
}

// expectKey calls the tool that has an API key.
func (g *keyedGuard) expectKey(token, want string) {
	g.t.Helper()
	if status, body := g.call(token, "keyed"); status != http.StatusOK {
		g.t.Errorf("%s: %d %s", g.name, status, body)
	} else if got := <-g.seen; got != "Bearer "+want {
		g.t.Errorf("%s: the upstream has %q, want %q", g.name, got, want)
	}
}

// denied returns how often the guard failed to read the API keys.
func (g *keyedGuard) denied() int { return strings.Count(g.log(), "failed to read the API keys") }

// waitForDenied waits until the guard has failed so often to read the API keys.
func (g *keyedGuard) waitForDenied(n int) {
	g.t.Helper()
	pollFor(g.t, 2*time.Minute, g.name+": the guard fails to read the API keys", func() error {
		if got := g.denied(); got < n {
			return fmt.Errorf("it failed %d times, want %d", got, n)
		}
		return nil
	})
}
