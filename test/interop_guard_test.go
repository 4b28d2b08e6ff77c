//go:build interop

package test

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"vault-plugin-secrets-ati/ati"
)

// Guarantee: a revoked token is rejected at a guard within two polls, calls in flight are
// ended, and other tokens keep working.
func TestInteropGuard_Revocation(t *testing.T) {
	t.Parallel()
	s := startGuarded(t, false)
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

// startGuarded starts a server with the engine, the policy and the login of guards, and a
// role.
func startGuarded(t testing.TB, raft bool) *server {
	t.Helper()
	storage := `storage "inmem" {}`
	if raft {
		storage = raftStorage(t, 1, "")
	}
	s := newServer(t, "info", storage)
	s.mountEngine()
	s.enableGuards()
	s.write(s.root, "ati/config", data{"guarded": true})
	s.write(s.root, "ati/roles/r", data{"tools": "*", "ttl": "1h", "allowed_agent_ids": "*"})
	return s
}

// Guarantee: whatever happens to the proxy, the guard, and their files, no call without a
// valid token passes, and calls with one are served again.
func TestInteropGuard_Faults(t *testing.T) {
	t.Parallel()
	s := startGuarded(t, false)
	token, revoked := s.mint("r", nil), s.mint("r", nil)
	s.write(s.root, "ati/revoke", data{"token": revoked})
	valid := func() string { return token }

	// The proxy hangs. The guard kills it after 30 seconds.
	hung := s.startGuard(t, nil)
	stopHungWatch := hung.watchRejected(revoked)
	hungChild := hung.child()
	hung.kill(hungChild, syscall.SIGSTOP)
	hungAt := time.Now()
	hungCall := make(chan result, 1)
	go func() {
		status, body := hung.call(token, "web_search")
		hungCall <- result{status, body, time.Now()}
	}()

	// No API keys: closed. New ones: a new proxy, without a rejected call.
	s.vault(s.root, "secrets", "enable", "-path=secret", "-version=2", "kv")
	keyed := s.newGuard(t, data{"api_keys": "secret/data/ati-keys"})
	var seen atomic.Pointer[string]
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		authorization := r.Header.Get("Authorization")
		seen.Store(&authorization)
		_, _ = io.WriteString(w, `{"ok":true}`)
	}))
	t.Cleanup(upstream.Close)
	keyed.manifest("keyed", fmt.Sprintf("[provider]\nname = \"keyed\"\ndescription = \"x\"\nbase_url = %q\nauth_type = \"bearer\"\nauth_key_name = \"search\"\n\n[[tools]]\nname = \"keyed\"\ndescription = \"x\"\nendpoint = \"/x\"\nmethod = \"GET\"\nscope = \"tool:keyed\"\n", upstream.URL))
	keySeen := func(want string) func() error {
		return func() error {
			status, body := keyed.call(token, "keyed")
			if got := *seen.Load(); status != http.StatusOK || got != "Bearer "+want {
				return fmt.Errorf("the call returns %d %s, and the upstream has %q", status, body, got)
			}
			return nil
		}
	}
	keyed.start()
	stopKeyedWatch := keyed.watchRejected(revoked)
	poll(t, "the guard has tried to read the API keys", func() error {
		if !strings.Contains(keyed.log(), "secret/data/ati-keys has no API keys") {
			return errors.New("it has not")
		}
		return nil
	})
	keyed.expect("without API keys", token, http.StatusServiceUnavailable)
	if pids := keyed.children(); len(pids) != 0 {
		t.Errorf("without API keys, the processes %v run", pids)
	}
	s.write(s.root, "secret/data/ati-keys", data{"data": data{"search": "first"}})
	keyed.waitUntilReady()
	if err := keySeen("first")(); err != nil {
		t.Error(err)
	}
	keyedLoad := keyed.startLoad(4, valid)
	keyedChild, keyedSlow := keyed.child(), keyed.callSlow(token)
	s.write(s.root, "secret/data/ati-keys", data{"data": data{"search": "second"}})
	keyChangedAt := time.Now()

	t.Run("proxy killed", func(t *testing.T) {
		// It starts after a second, during which calls wait.
		ati := filepath.Join(t.TempDir(), "ati")
		if err := os.WriteFile(ati, []byte("#!/bin/sh\nsleep 1\nexec "+shellQuote(requireEnv(t, "ATI_BIN"))+` "$@"`), 0o755); err != nil {
			t.Fatal(err)
		}
		g := s.startGuard(t, data{"ati": ati})
		defer g.watchRejected(revoked)()
		slow := g.callSlow(token)
		load := g.startLoad(4, valid)
		for range 3 {
			before, pid := load.failed(), g.child()
			g.kill(pid, syscall.SIGKILL)
			poll(t, "the proxy has ended", func() error { return expectEnded(pid) })
			time.Sleep(100 * time.Millisecond)
			began := time.Now()
			g.expect("while the proxy restarts", token, http.StatusOK)
			if waited := time.Since(began); waited < 500*time.Millisecond {
				t.Errorf("the call waited only %v", waited)
			}
			if failed := load.failed() - before; failed > 4 {
				t.Errorf("%d calls failed, with 4 clients", failed)
			}
		}
		if r := <-slow; r.status != http.StatusBadGateway || !strings.Contains(r.body, `"error":"ati-guard: `) {
			t.Errorf("a call in flight returns %d %s", r.status, r.body)
		}
		load.end()
		t.Logf("the proxy was killed 3 times: calls of 4 clients by status %v, the slowest took %v", load.statuses, load.slowest.Round(time.Millisecond))
		for status := range load.statuses {
			if status != http.StatusOK && status != http.StatusBadGateway {
				t.Errorf("calls by status: %v, such as %q", load.statuses, load.failures)
			}
		}
	})
	t.Run("broken manifest", func(t *testing.T) {
		g := s.startGuard(t, data{"hold": "1s"})
		defer g.watchRejected(revoked)()
		g.manifest("broken", "[provider\n")
		g.expect("before the restart", token, http.StatusOK)
		g.kill(g.child(), syscall.SIGKILL)
		g.until("the proxy cannot start", token, http.StatusServiceUnavailable)
		g.expect("without a token", "", http.StatusUnauthorized)
		if err := g.ready(); err == nil {
			t.Error("the guard is ready")
		}
		if err := os.Remove(filepath.Join(g.proxy.dir, "manifests", "broken.toml")); err != nil {
			t.Fatal(err)
		}
		t.Logf("served again %v after the manifest was repaired", g.until("repaired", token, http.StatusOK))
	})
	t.Run("guard killed", func(t *testing.T) {
		g := s.startGuard(t, nil)
		defer g.watchRejected(revoked)()
		for range 3 {
			pid := g.child()
			g.stop(syscall.SIGKILL)
			poll(t, "the proxy has ended", func() error { return expectEnded(pid) })
			g.start()
			took := g.until("after a restart", token, http.StatusOK)
			g.expect("a revoked token after a restart", revoked, http.StatusUnauthorized)
			t.Logf("the guard was killed; a call succeeds %v after its start", took)
		}
		// A second guard finds the ports taken.
		for _, changes := range []data{{"listen": g.config["listen"]}, {"admin": g.admin}} {
			second := s.newGuard(t, changes)
			second.start()
			select {
			case <-second.exited:
			case <-time.After(20 * time.Second):
				t.Fatal("a guard whose port is taken runs")
			}
			if log := second.log(); second.cmd.ProcessState.ExitCode() != 1 || !strings.Contains(log, "address already in use") || strings.Contains(log, "serves") {
				t.Errorf("%v: exit %d\n%s", changes, second.cmd.ProcessState.ExitCode(), log)
			}
		}
		g.expect("after the second guard", token, http.StatusOK)
	})
	t.Run("SIGHUP", func(t *testing.T) {
		dir := t.TempDir()
		cert, key := writeCertificate(t, dir, 1)
		g := s.newGuard(t, data{"tls_cert": cert, "tls_key": key})
		g.addr = "https" + strings.TrimPrefix(g.addr, "http")
		g.client.Transport = &http.Transport{MaxIdleConnsPerHost: 64, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
		g.start()
		g.waitUntilReady()
		serial := func() int64 {
			conn, err := tls.Dial("tcp", g.config["listen"].(string), &tls.Config{InsecureSkipVerify: true})
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			return conn.ConnectionState().PeerCertificates[0].SerialNumber.Int64()
		}
		expectSerial := func(want int64) {
			t.Helper()
			poll(t, "the certificate", func() error {
				if got := serial(); got != want {
					return fmt.Errorf("serial number %d, want %d", got, want)
				}
				return nil
			})
		}
		expectSerial(1)
		load := g.startLoad(4, valid)
		access, moved := filepath.Join(g.dir, "access.jsonl"), filepath.Join(g.dir, "access.jsonl.1")
		time.Sleep(1500 * time.Millisecond)
		if err := os.Rename(access, moved); err != nil {
			t.Fatal(err)
		}
		writeCertificate(t, dir, 2)
		g.kill(g.cmd.Process.Pid, syscall.SIGHUP)
		expectSerial(2)
		poll(t, "the access log was reopened", func() error { _, err := os.Stat(access); return err })
		if err := os.WriteFile(cert, []byte("junk"), 0o600); err != nil {
			t.Fatal(err)
		}
		g.kill(g.cmd.Process.Pid, syscall.SIGHUP)
		poll(t, "the guard has reloaded", func() error {
			if !strings.Contains(g.log(), "tls_cert: ") {
				return errors.New("it has not")
			}
			return nil
		})
		expectSerial(2)
		load.expectNoFailure("SIGHUP")
		if got := g.stop(syscall.SIGTERM); got != 0 {
			t.Errorf("the guard exits with %d", got)
		}
		lines := g.accessLines()
		if err := os.Rename(moved, access); err != nil {
			t.Fatal(err)
		}
		before := g.accessLines()
		t.Logf("%d lines in the moved access log, %d in the new one", len(before), len(lines))
		if len(before) == 0 || len(before)+len(lines) != load.succeeded() {
			t.Errorf("the access logs have %d lines for %d calls", len(before)+len(lines), load.succeeded())
		}
	})
	t.Run("SIGTERM", func(t *testing.T) {
		g := s.startGuard(t, nil)
		pid, slow := g.child(), g.callSlow(token)
		g.kill(g.cmd.Process.Pid, syscall.SIGTERM)
		poll(t, "the guard accepts no connection", func() error {
			conn, err := net.Dial("tcp", g.config["listen"].(string))
			if err == nil {
				conn.Close()
				return errors.New("it does")
			}
			return nil
		})
		if err := g.ready(); err == nil || !strings.Contains(err.Error(), "stopping") {
			t.Errorf("/ready: %v", err)
		}
		time.Sleep(2 * guardPoll)
		close(g.slow.release)
		if r := <-slow; r.status != http.StatusOK {
			t.Errorf("a call in flight returns %d %s", r.status, r.body)
		}
		if got := g.stop(syscall.SIGTERM); got != 0 || expectEnded(pid) != nil {
			t.Errorf("the guard exits with %d, and its proxy: %v", got, expectEnded(pid))
		}
		g = s.startGuard(t, data{"drain": "2s"})
		pid, slow = g.child(), g.callSlow(token)
		began := time.Now()
		if got := g.stop(syscall.SIGTERM); got != 0 || expectEnded(pid) != nil {
			t.Errorf("the guard exits with %d, and its proxy: %v", got, expectEnded(pid))
		}
		took := time.Since(began)
		r := <-slow
		t.Logf("after SIGTERM with drain=2s, the guard ended after %v, and a call in flight returned %d", took.Round(10*time.Millisecond), r.status)
		if took < 1900*time.Millisecond || took > 5*time.Second || r.status == http.StatusOK {
			t.Errorf("the guard ended after %v, and a call in flight returned %d", took, r.status)
		}
	})

	pollFor(t, time.Until(keyChangedAt.Add(40*time.Second)), "the upstream has the second API key", keySeen("second"))
	t.Logf("the second API key is used after %v", time.Since(keyChangedAt).Round(time.Second))
	close(keyed.slow.release)
	if r := <-keyedSlow; r.status != http.StatusOK {
		t.Errorf("a call of the old proxy returns %d %s", r.status, r.body)
	}
	if pid := keyed.child(); pid == keyedChild {
		t.Error("the old proxy runs")
	}
	// With a manifest that is broken meanwhile, the old proxy stays.
	keyed.manifest("broken", "[provider\n")
	s.write(s.root, "secret/data/ati-keys", data{"data": data{"search": "third"}})

	if took := time.Since(hungAt); took > 40*time.Second {
		t.Logf("the hung proxy is checked only after %v", took)
	}
	pollFor(t, time.Until(hungAt.Add(50*time.Second)), "the hung proxy was killed", func() error { return expectEnded(hungChild) })
	if r := <-hungCall; r.status != http.StatusBadGateway {
		t.Errorf("a call of the hung proxy returns %d %s", r.status, r.body)
	} else {
		t.Logf("the hung proxy was killed after %v", r.at.Sub(hungAt).Round(time.Second))
	}
	hung.until("after the hung proxy was killed", token, http.StatusOK)
	stopHungWatch()

	pollFor(t, 40*time.Second, "the guard has tried to start a proxy with the third API key", func() error {
		if !strings.Contains(keyed.log(), "old_one_serves=true") {
			return errors.New("it has not")
		}
		return nil
	})
	if err := keySeen("second")(); err != nil {
		t.Error(err)
	}
	if err := os.Remove(filepath.Join(keyed.proxy.dir, "manifests", "broken.toml")); err != nil {
		t.Fatal(err)
	}
	pollFor(t, 40*time.Second, "the upstream has the third API key", keySeen("third"))
	keyedLoad.expectNoFailure("API keys changed twice")
	stopKeyedWatch()
	if strings.Contains(keyed.log(), "second") {
		t.Error("the guard's log has an API key")
	}
}

// Guarantee: whatever Vault responds, or if it does not, the guard serves with what it knows
// until max_stale, and no token passes that was revoked and once rejected.
func TestInteropGuard_VaultFaults(t *testing.T) {
	t.Parallel()
	const maxStale = 5 * time.Second
	s := startGuarded(t, true)
	vault := startRelay(t, s, "/v1/ati/guard")
	token, revoked := s.mint("r", nil), s.mint("r", nil)
	s.write(s.root, "ati/revoke", data{"token": revoked})
	g := s.newGuard(t, nil)
	g.config["max_stale"] = maxStale.String()
	g.config["vault"].(data)["address"] = vault.addr
	g.writeConfig()
	g.start()
	g.waitUntilReady()
	g.expect("a revoked token", revoked, http.StatusUnauthorized)
	unknown := signRaw(t, strings.Repeat("cd", 32), `{"alg":"HS256","typ":"JWT"}`, `{"sub":"x","aud":"ati-proxy","iat":1,"exp":4000000000,"scope":"*"}`)
	g.expect("a token of an unknown key", unknown, http.StatusUnauthorized)
	var snapshot bytes.Buffer
	rejected := []string{revoked}
	stop := g.watchRejected(rejected...)

	// stale expects that calls succeed until max_stale, and are then rejected.
	stale := func(what string) {
		t.Helper()
		began := time.Now()
		g.expect(what+", first", token, http.StatusOK)
		g.expect(what+", a token of an unknown key", unknown, http.StatusServiceUnavailable)
		after := g.until(what+", max_stale", token, http.StatusServiceUnavailable)
		took := time.Since(began)
		t.Logf("%s: calls succeed for %v", what, took.Round(10*time.Millisecond))
		if after == 0 || took < maxStale-2*guardPoll || took > maxStale+2*guardPoll {
			t.Errorf("%s: rejected after %v", what, took)
		}
	}
	fresh := func(what string) {
		t.Helper()
		t.Logf("%s: calls succeed again after %v", what, g.until(what+", over", token, http.StatusOK))
	}

	respond := func(status int, body string) {
		fault := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(status)
			_, _ = io.WriteString(w, body)
		})
		vault.fault.Store(&fault)
	}
	for _, c := range []struct {
		status int
		body   string
	}{
		{200, ""}, {200, "<html>"}, {404, "<html>"}, {200, "{}"}, {200, `{"data":null}`}, {200, `{"data":{}}`}, {200, `{"data":{"epoch":1,"generation":1}}`},
		{200, `{"data":{"epoch":"x","generation":"y"}}`}, {200, `{"data":{"epoch":"x","generation":1,"keys":{}}}`}, {200, `{"data":{"epoch":"x","generation":1,"audiences":[],"keys":[]}}`},
		{200, `{"data":{"epoch":"x","generation":9e15,"audiences":["a"],"keys":[{"version":7,"state":"current","algorithm":"HS256"}]}}`},
		{200, `{"data":{"epoch":"x","generation":9000000000000000,"audiences":["a"],"keys":[{"version":7,"state":"current","algorithm":"HS256"}],"revoked":[{"revoked_at":1}]}}`},
		{204, ""}, {302, ""}, {400, `{"errors":["x"]}`}, {500, `{"errors":[]}`}, {503, ""},
	} {
		respond(c.status, c.body)
		time.Sleep(1200 * time.Millisecond)
		g.expect(fmt.Sprintf("Vault responds %d %s", c.status, c.body), token, http.StatusOK)
		vault.fault.Store(nil)
		time.Sleep(1200 * time.Millisecond)
		g.expect("a token of an unknown key", unknown, http.StatusUnauthorized)
	}
	respond(200, `{"data":{"epoch":"x"}}`)
	stale("nonsense")
	vault.fault.Store(nil)
	fresh("nonsense")
	hang := http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	vault.fault.Store(&hang)
	stale("Vault hangs")
	vault.fault.Store(nil)
	fresh("Vault hangs")

	s.kill()
	stale("Vault stopped")
	// A guard that starts now rejects everything.
	g.stop(syscall.SIGKILL)
	g.start()
	time.Sleep(2 * guardPoll)
	g.expect("a guard that starts without Vault", token, http.StatusServiceUnavailable)
	s.restart()
	s.unseal()
	fresh("Vault stopped")
	g.expect("a revoked token", revoked, http.StatusUnauthorized)

	load := g.startLoad(2, func() string { return token })
	s.vault(s.root, "token", "revoke", "-mode=path", "auth/approle")
	time.Sleep(3 * guardPoll)
	second := s.mint("r", nil)
	g.expect("before the revocation", second, http.StatusOK)
	s.write(s.root, "ati/revoke", data{"token": second})
	t.Logf("after the guard's login was revoked, a revocation takes %v", g.until("a revocation with a new login", second, http.StatusUnauthorized))
	load.expectNoFailure("the guard's login was revoked")
	if err := s.client(s.root).Sys().PutPolicy("proxy-guard", `path "none" { capabilities = ["read"] }`); err != nil {
		t.Fatal(err)
	}
	stale("access denied")
	s.allowGuards()
	fresh("access denied")

	// A snapshot without the revocation is restored.
	if err := s.client(s.root).Sys().RaftSnapshot(&snapshot); err != nil {
		t.Fatal(err)
	}
	third := s.mint("r", nil)
	s.write(s.root, "ati/revoke", data{"token": third})
	g.until("before the restore", third, http.StatusUnauthorized)
	stop()
	stop = g.watchRejected(revoked, second, third)
	if err := s.client(s.root).Sys().RaftSnapshotRestore(&snapshot, true); err != nil {
		t.Fatal(err)
	}
	poll(t, "the snapshot was restored", func() error {
		list, err := s.client(s.root).Logical().List("ati/revoked")
		if err != nil {
			return err
		}
		if got := len(list.Data["keys"].([]any)); got != 2 {
			return fmt.Errorf("%d revocations", got)
		}
		return nil
	})
	stale("snapshot restored")
	if !strings.Contains(g.log(), "a snapshot was restored, or a standby lags") {
		t.Error("the guard's log does not have the restored snapshot")
	}
	s.write(s.root, "ati/revoke", data{"agent_id": "sandbox:9"}) // any change
	fresh("snapshot restored, and a change")
	if status, body := g.call(third, "web_search"); status != http.StatusUnauthorized || body != "the token was revoked" {
		t.Errorf("a token whose revocation is lost in Vault: %d %s", status, body)
	}

	// The config is deleted, and another one made.
	slow := g.callSlow(token)
	s.vault(s.root, "delete", "ati/config")
	took := g.until("config deleted", token, http.StatusServiceUnavailable)
	t.Logf("config deleted: every call is rejected after %v", took)
	if r := <-slow; took > 2*guardPoll || r.status != http.StatusUnauthorized {
		t.Errorf("config deleted: rejected after %v, and the call in flight returns %d %s", took, r.status, r.body)
	}
	for _, tok := range []string{token, revoked, second, third, unknown, ""} {
		if got, _ := g.call(tok, "web_search"); got != http.StatusServiceUnavailable && (tok != "" || got != http.StatusUnauthorized) {
			t.Errorf("config deleted: a call returns %d", got)
		}
	}
	s.write(s.root, "ati/config", data{"proxy_url": "https://ati.example.com"})
	g.until("a new config", s.mint("r", nil), http.StatusOK)
	g.expect("a token of the deleted config", token, http.StatusUnauthorized)
	stop()
}
