//go:build interop

package test

import (
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"vault-plugin-secrets-ati/ati"
)

// Guarantee: a revoked token is rejected at a guard within two polls, calls in flight are
// ended, and other tokens keep working.
func TestInteropGuard_Revocation(t *testing.T) {
	t.Parallel()
	s, _ := startEngine(t)
	s.enableGuards()
	s.write(s.root, "ati/config", data{"guarded": true})
	s.write(s.root, "ati/roles/r", data{"tools": "web_search,slow", "ttl": "1h", "allowed_agent_ids": "*"})
	s.write(s.root, "ati/roles/leased", data{"tools": "web_search,slow", "ttl": "1h", "allowed_agent_ids": "*", "generate_lease": true})
	s.write(s.root, "ati/roles/prefix", data{"tools": "web_search,slow", "ttl": "1h", "allowed_agent_ids": "*", "generate_lease": true})
	orchestrator := s.policy("orchestrator", `path "ati/creds/*" { capabilities = ["update"] } path "ati/revoke/r" { capabilities = ["update"] }`)
	g := s.startGuard(t, nil)
	mint := func(role, agent string) string { return s.mint(role, data{"agent_id": agent}) }
	other := mint("r", "sandbox:other")
	others := g.startLoad(2, func() string { return other })
	otherSlow := g.callSlow(other)

	var revoked []string
	for _, c := range []struct {
		by     string
		tokens func() (tokens []string, revoke func())
	}{
		{"token", func() ([]string, func()) {
			token := mint("r", "sandbox:1")
			return []string{token}, func() { s.write(s.root, "ati/revoke", data{"token": token}) }
		}},
		{"jti", func() ([]string, func()) {
			creds := s.write(s.root, "ati/creds/r", data{"agent_id": "sandbox:1"})
			return []string{creds.Data["token"].(string)}, func() { s.write(s.root, "ati/revoke", data{"jti": creds.Data["jti"]}) }
		}},
		{"agent", func() ([]string, func()) {
			return []string{mint("r", "sandbox:2"), mint("leased", "sandbox:2"), mint("r", "sandbox:2")}, func() { s.write(s.root, "ati/revoke", data{"agent_id": "sandbox:2"}) }
		}},
		{"agent of a role", func() ([]string, func()) {
			return []string{mint("r", "sandbox:3"), mint("leased", "sandbox:3")}, func() { s.write(orchestrator, "ati/revoke/r", data{"agent_id": "sandbox:3"}) }
		}},
		{"batch", func() ([]string, func()) {
			batch := s.write(s.root, "ati/batch/r", data{"agent_ids": "a,b,c"})
			var tokens []string
			for _, token := range batch.Data["tokens"].(data) {
				tokens = append(tokens, token.(string))
			}
			return tokens, func() { s.write(s.root, "ati/revoke", data{"jti": batch.RequestID}) }
		}},
		{"lease", func() ([]string, func()) {
			creds := s.write(s.root, "ati/creds/leased", data{"agent_id": "sandbox:4"})
			return []string{creds.Data["token"].(string)}, func() { s.vault(s.root, "lease", "revoke", creds.LeaseID) }
		}},
		{"lease prefix", func() ([]string, func()) {
			return []string{mint("prefix", "sandbox:5"), mint("prefix", "sandbox:6")}, func() { s.vault(s.root, "lease", "revoke", "-prefix", "ati/creds/prefix") }
		}},
		{"end of the login", func() ([]string, func()) {
			creds, err := s.client(orchestrator).Logical().Write("ati/creds/leased", data{"agent_id": "sandbox:7"})
			if err != nil {
				t.Fatal(err)
			}
			return []string{creds.Data["token"].(string)}, func() { s.vault(s.root, "token", "revoke", orchestrator) }
		}},
	} {
		tokens, revoke := c.tokens()
		var inFlight []<-chan result
		for _, token := range tokens {
			g.expect(c.by+", before", token, http.StatusOK)
			inFlight = append(inFlight, g.callSlow(token))
		}
		ended := g.slow.ended.Load()
		revoke()
		began := time.Now()
		var longest, longestInFlight time.Duration
		for i, token := range tokens {
			longest = max(longest, g.until(c.by, token, http.StatusUnauthorized), time.Since(began).Round(10*time.Millisecond))
			if status, body := g.call(token, "web_search"); status != http.StatusUnauthorized || body != "the token was revoked" {
				t.Errorf("%s: a call returns %d %q", c.by, status, body)
			}
			if status, body := g.do(token, http.MethodPost, "/mcp", `{"jsonrpc":"2.0","id":1,"method":"tools/list"}`); status != http.StatusUnauthorized {
				t.Errorf("%s: /mcp returns %d %s", c.by, status, body)
			}
			select {
			case r := <-inFlight[i]:
				longestInFlight = max(longestInFlight, r.at.Sub(began).Round(10*time.Millisecond))
				if r.status != http.StatusUnauthorized || r.body != "the token was revoked" {
					t.Errorf("%s: a call in flight returns %d %q", c.by, r.status, r.body)
				}
			case <-time.After(2 * guardPoll):
				t.Fatalf("%s: a call in flight was not ended", c.by)
			}
		}
		poll(t, "the upstream calls have ended", func() error {
			if got := g.slow.ended.Load() - ended; got != int64(len(tokens)) {
				return fmt.Errorf("%d of %d", got, len(tokens))
			}
			return nil
		})
		t.Logf("%s: %d tokens rejected after %v, calls in flight ended after %v", c.by, len(tokens), longest, longestInFlight)
		if longest > 2*guardPoll || longestInFlight > 2*guardPoll {
			t.Errorf("%s: more than two polls of %v", c.by, guardPoll)
		}
		revoked = append(revoked, tokens...)
	}
	for _, token := range revoked {
		g.expect("a revoked token, later", token, http.StatusUnauthorized)
	}
	later := mint("r", "sandbox:2")
	g.expect("a new token of a revoked agent", later, http.StatusOK)
	others.expectNoFailure("other tokens")
	close(g.slow.release)
	if r := <-otherSlow; r.status != http.StatusOK {
		t.Errorf("another token's call in flight returns %d %s", r.status, r.body)
	}
	if got := g.stop(syscall.SIGTERM); got != 0 {
		t.Errorf("the guard exits with %d", got)
	}

	// The access log has a line for each rejected call, also of /mcp, and leads to Vault's.
	paths := map[string]map[string]int{} // by jti
	for _, line := range g.accessLines() {
		if line["status"] != 401.0 {
			continue
		}
		if line["reason"] != "the token was revoked" || line["sub"] == nil || line["key_version"] != 1.0 {
			t.Errorf("line of the access log: %v", line)
		}
		jti, _ := line["jti"].(string)
		if paths[jti] == nil {
			paths[jti] = map[string]int{}
		}
		paths[jti][line["path"].(string)]++
	}
	for _, token := range revoked {
		decoded, err := ati.DecodeToken(token)
		if err != nil {
			t.Fatal(err)
		}
		jti := decoded["jti"].(string)
		if got := paths[jti]; got["/call"] < 3 || got["/mcp"] != 1 {
			t.Errorf("%s: lines of the access log by path: %v", jti, got)
		}
		request, _, _ := strings.Cut(jti, ".")
		if got := s.auditLine(request).Request.Path; !strings.HasPrefix(got, "ati/creds/") && got != "ati/batch/r" {
			t.Errorf("%s: Vault's audit line has path %s", jti, got)
		}
	}
	if len(paths) != len(revoked) {
		t.Errorf("the access log has %d tokens, want %d: %v", len(paths), len(revoked), slices.Sorted(maps.Keys(paths)))
	}
	t.Logf("%d tokens were revoked; of other tokens' calls none failed", len(revoked))
}
