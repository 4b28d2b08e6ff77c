//go:build interop

package test

import (
	"crypto/elliptic"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// TestGuardRotation_Original rotates ES256 keys behind a guard that forwards the sandboxes' own
// tokens, to a proxy per key, while eight clients call a tool. No call is rejected, and an
// MCP server gets the caller's token and verifies it with the keys that the guard publishes.
// Run by make rotation.
func TestGuardRotation_Original(t *testing.T) {
	t.Parallel()
	s := startGuarded(t, false, 5*time.Second)
	g := s.newGuard(t, data{"forward": "original"})
	s.write(s.root, "ati/config", data{"proxy_url": g.addr})
	g.addMCPServer("mcp")
	hs256 := s.mint("r", nil)
	const refused = "its algorithm is HS256, and forward = original requires ES256"
	if out, err := exec.Command(buildGuard(t), "check", "-config", g.file).CombinedOutput(); err == nil || !strings.Contains(string(out), refused) {
		t.Errorf("check of an HS256 mount: %v\n%s", err, out)
	}
	g.start()
	g.waitForReads(1)
	g.expect("an HS256 mount", hs256, http.StatusServiceUnavailable)
	if log := g.log(); !strings.Contains(log, refused) {
		t.Errorf("the log of a guard of an HS256 mount is %s", log)
	}
	_, first, _ := ecKey(t, elliptic.P256())
	_, second, _ := ecKey(t, elliptic.P256())
	s.rotate("", data{"algorithm": "ES256", "private_key": first})
	g.waitUntilReady()
	watch := g.watchRejected(hs256)
	load := s.startRotationLoad(t, g, 2*time.Second)
	byFirst, bySecond := es256Signer(t, first), es256Signer(t, second)

	s.rotate("/stage", data{"proxy_url": g.addr + "/3", "algorithm": "ES256", "private_key": second})
	g.waitForReads(2)
	load.phase("version 3 is staged", 2)
	tokens := []string{byFirst(newJTI()), bySecond(newJTI())}
	g.expectOriginal(tokens...)
	for i, token := range tokens {
		g.expect(fmt.Sprintf("token %d, before it is revoked", i), token, http.StatusOK)
		s.write(s.root, "ati/revoke", data{"token": token})
	}
	g.untilRejected("revoked tokens", http.StatusUnauthorized, tokens...)
	watch.add(tokens...)
	s.rotate("/activate", nil)
	load.phase("activated", 3)
	g.expectOriginal(s.mint("r", nil))
	s.rotate("/rollback", nil)
	load.phase("rolled back", 2)
	s.rotate("/activate", nil)
	load.phase("activated again", 3)
	s.rotate("/retire", nil)
	load.phase("version 2 is retired", 3)
	s.rotate("/stage", data{"proxy_url": g.addr + "/4", "algorithm": "ES256"})
	s.rotate("/activate", nil) // guards may first see the key in a token, and then start its proxy
	load.phase("version 4 is staged and activated", 4)
	gone := byFirst(newJTI())
	g.expect("a token of version 2", gone, http.StatusUnauthorized)
	watch.add(gone)
	g.expectProxies(2)
	status := s.rotate("/retire", nil)
	g.waitForReads(2)
	expireBy, err := time.Parse(time.RFC3339, status["previous_tokens_expire_by"].(string))
	if err != nil {
		t.Fatal(err)
	}
	last := bySecond(newJTI())
	if err := g.expireAt(last, expireBy, http.StatusUnauthorized); err != nil {
		t.Error(err)
	}
	watch.add(last)
	g.expectProxies(1)
	load.phase("version 3 has expired", 4)
	load.expectNoFailure("ES256 to ES256 to ES256, with the original tokens", rotationCalls(t))

	// A key that is not ES256 is not used, and the others are.
	s.rotate("/stage", data{"proxy_url": g.addr + "/5", "algorithm": "HS256"})
	staged := hs256Signer(t, s.read(s.root, "ati/proxy-env/5").Data["ATI_JWT_SECRET"].(string))(newJTI())
	g.waitForReads(2)
	g.expect("a pending HS256 key", staged, http.StatusUnauthorized)
	g.expectOriginal(s.mint("r", nil))
	g.expectProxies(1)
	old, slow := s.mint("r", nil), g.callSlow(s.mint("r", nil))
	s.rotate("", data{"algorithm": "ES256"})
	t.Logf("an immediate rotation: the replaced key is rejected after %v", g.untilRejected("the replaced key", http.StatusUnauthorized, old))
	watch.add(old, staged)
	if r := receive(t, "the call in flight has ended", slow); r.status != http.StatusUnauthorized {
		t.Errorf("the call in flight returns %d %s", r.status, r.body)
	}
	g.until("the new key", s.mint("r", nil), http.StatusOK)
	g.expectOriginal(s.mint("r", nil))
	g.expectProxies(1)
}

// expectOriginal calls the MCP server with each token, which must get it as it is. At the
// proxies' ports, each passes at one, and other requests at none.
func (g *guard) expectOriginal(tokens ...string) {
	g.t.Helper()
	ports := map[string]bool{}
	for _, pid := range g.children() {
		args := strings.Split(string(readFile(g.t, fmt.Sprintf("/proc/%d/cmdline", pid))), "\x00")
		if i := slices.Index(args, "--port"); i >= 0 {
			ports[args[i+1]] = true
		}
	}
	for i, token := range tokens {
		status, body := g.call(token, "mcp:whoami")
		if status != http.StatusOK || !strings.Contains(body, token) {
			g.t.Errorf("token %d: the MCP server's tool returns %d %s", i, status, body)
		}
		passed := 0
		for port := range ports {
			direct := *g.proxy
			direct.addr = "http://127.0.0.1:" + port
			if got := direct.call(token, "web_search"); got == http.StatusOK {
				passed++
			} else if got != http.StatusUnauthorized {
				g.t.Errorf("token %d: a proxy's port returns %d", i, got)
			}
			for _, rejected := range []string{"", forgedToken(g.t)} {
				if got := direct.call(rejected, "web_search"); got != http.StatusUnauthorized {
					g.t.Errorf("a proxy's port returns %d for a request without a valid token", got)
				}
			}
		}
		if passed != 1 {
			g.t.Errorf("token %d passes at %d of the %d proxies' ports", i, passed, len(ports))
		}
	}
}

// expectProxies waits until the guard has this many proxies.
func (g *guard) expectProxies(want int) {
	g.t.Helper()
	poll(g.t, "the guard's proxies", func() error {
		if got := len(g.children()); got != want {
			return fmt.Errorf("%d, want %d", got, want)
		}
		return nil
	})
}

// addMCPServer starts an MCP server with the tool whoami, which returns the caller's token if
// the guard's keys verify it, and adds it to the proxy.
func (g *guard) addMCPServer(provider string) {
	g.t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var request struct {
			ID     *int
			Method string
		}
		if err := json.NewDecoder(r.Body).Decode(&request); err != nil || request.ID == nil {
			w.WriteHeader(http.StatusAccepted) // a notification, or the end of a session
			return
		}
		var result any
		switch request.Method {
		case "initialize":
			result = data{"protocolVersion": "2025-03-26", "capabilities": data{"tools": data{}}, "serverInfo": data{"name": "test", "version": "1"}}
		case "tools/list":
			result = data{"tools": []any{data{"name": "whoami", "description": "x", "inputSchema": data{"type": "object"}}}}
		default:
			token := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
			if err := g.verify(token); err != nil {
				http.Error(w, err.Error(), http.StatusUnauthorized)
				return
			}
			result = data{"content": []any{data{"type": "text", "text": token}}}
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(data{"jsonrpc": "2.0", "id": request.ID, "result": result})
	}))
	g.t.Cleanup(func() { server.CloseClientConnections(); server.Close() })
	g.manifest(provider, fmt.Sprintf(`[provider]
name = %q
description = "x"
handler = "mcp"
mcp_transport = "http"
mcp_url = %q
auth_type = "bearer"

[provider.auth_generator]
type = "command"
command = "echo"
args = ["${JWT_TOKEN}"]
`, provider, server.URL))
}

// verify verifies a token's signature with the public keys at the guard's address.
func (g *guard) verify(token string) error {
	resp, err := http.Get(g.addr + "/.well-known/jwks.json")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	var set jose.JSONWebKeySet
	if err := json.Unmarshal(b, &set); err != nil {
		return fmt.Errorf("%w: %s", err, b)
	}
	signed, err := jose.ParseSignedCompact(token, []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		return err
	}
	for _, key := range set.Keys {
		if _, err := signed.Verify(key); err == nil {
			return nil
		}
	}
	return fmt.Errorf("none of %d keys verifies the token", len(set.Keys))
}
