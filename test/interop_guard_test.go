//go:build interop

package test

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
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
	s := startGuarded(t, false, time.Hour)
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
// role with this TTL.
func startGuarded(t testing.TB, raft bool, ttl time.Duration) *server {
	t.Helper()
	storage := `storage "inmem" {}`
	if raft {
		storage = raftStorage(t, 1, "")
	}
	s := newServer(t, "info", storage)
	s.mountEngine()
	s.enableGuards()
	s.write(s.root, "ati/config", data{"guarded": true})
	s.write(s.root, "ati/roles/r", data{"tools": "*", "ttl": ttl.String(), "allowed_agent_ids": "*"})
	return s
}

// Guarantee: whatever happens to the proxy, the guard, and their files, no call without a
// valid token passes, and calls with one are served again.
func TestInteropGuard_Faults(t *testing.T) {
	t.Parallel()
	s := startGuarded(t, false, time.Hour)
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
	keyed.addTool("keyed", http.MethodGet, upstream.URL, "auth_type = \"bearer\"\nauth_key_name = \"search\"")
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
	t.Run("socket activation", func(t *testing.T) {
		g := s.newGuard(t, nil)
		listener, err := net.Listen("tcp", g.config["listen"].(string))
		if err != nil {
			t.Fatal(err)
		}
		defer listener.Close()
		if g.socket, err = listener.(*net.TCPListener).File(); err != nil {
			t.Fatal(err)
		}
		defer g.socket.Close()
		g.client.Transport = &http.Transport{DisableKeepAlives: true} // as ati run, which does not send on a connection that is about to be closed
		g.start()
		g.waitUntilReady()
		load := g.startLoad(8, valid)
		for range 5 {
			time.Sleep(500 * time.Millisecond)
			if got := g.stop(syscall.SIGTERM); got != 0 {
				t.Errorf("the guard exits with %d", got)
			}
			g.start()
			g.waitUntilReady()
		}
		time.Sleep(500 * time.Millisecond)
		load.expectNoFailure("5 restarts with a socket that stays")
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
	s := startGuarded(t, true, time.Hour)
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
		{200, ""}, {200, "<html>"}, {404, "<html>"}, {404, ""}, {200, "{}"}, {200, `{"data":null}`}, {200, `{"data":{}}`}, {200, `{"data":{"epoch":1,"generation":1}}`},
		{200, `{"data":{"epoch":"x","generation":"y"}}`}, {200, `{"data":{"epoch":"x","generation":1,"keys":{}}}`}, {200, `{"data":{"epoch":"x","generation":1,"audiences":[],"keys":[]}}`},
		{200, `{"data":{"epoch":"x","generation":9e15,"audiences":["a"],"keys":[{"version":7,"state":"current","algorithm":"HS256"}]}}`},
		{200, `{"data":{"epoch":"x","generation":9000000000000000,"audiences":["a"],"keys":[{"version":7,"state":"current","algorithm":"HS256"}],"revoked":[{"revoked_at":1}]}}`},
		{204, ""}, {302, ""}, {400, `{"errors":["x"]}`}, {500, `{"errors":[]}`}, {503, ""},
	} {
		respond(c.status, c.body)
		what := fmt.Sprintf("Vault responds %d %s", c.status, c.body)
		g.expect(what+", a token of an unknown key", unknown, http.StatusServiceUnavailable) // after a read
		g.expect(what, token, http.StatusOK)
		vault.fault.Store(nil)
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

	// A snapshot without the last revocations and the last key is restored.
	agent := data{"agent_id": "sandbox:8"}
	s.write(s.root, "ati/revoke", agent)
	if err := s.client(s.root).Sys().RaftSnapshot(&snapshot); err != nil {
		t.Fatal(err)
	}
	third, fourth := s.mint("r", nil), s.mint("r", agent)
	s.write(s.root, "ati/revoke", data{"token": third})
	s.write(s.root, "ati/revoke", agent)
	g.until("before the restore", third, http.StatusUnauthorized)
	g.until("before the restore, by agent", fourth, http.StatusUnauthorized)
	s.rotate("", nil)
	g.until("the key was replaced", token, http.StatusUnauthorized)
	stop()
	stop = g.watchRejected(revoked, second, third, fourth)
	if err := s.client(s.root).Sys().RaftSnapshotRestore(&snapshot, true); err != nil {
		t.Fatal(err)
	}
	poll(t, "the snapshot was restored", func() error {
		list, err := s.client(s.root).Logical().List("ati/revoked")
		if err != nil {
			return err
		}
		if got := len(list.Data["keys"].([]any)); got != 3 {
			return fmt.Errorf("%d revocations", got)
		}
		return nil
	})
	g.until("snapshot restored", token, http.StatusServiceUnavailable)
	if !strings.Contains(g.log(), "a snapshot was restored, or a standby lags") {
		t.Error("the guard's log does not have the restored snapshot")
	}
	s.write(s.root, "ati/revoke", data{"agent_id": "sandbox:9"}) // any change
	fresh("snapshot restored, and a change")
	for i, lost := range []string{third, fourth} {
		if status, body := g.call(lost, "web_search"); status != http.StatusUnauthorized || body != "the token was revoked" {
			t.Errorf("token %d, whose revocation is lost in Vault: %d %s", i, status, body)
		}
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
	newer := s.mint("r", nil)
	g.until("a new config", newer, http.StatusOK)
	g.expect("a token of the deleted config", token, http.StatusUnauthorized)
	// The next config is there before the guard's next read.
	slow = g.callSlow(newer)
	s.vault(s.root, "delete", "ati/config")
	s.write(s.root, "ati/config", data{"proxy_url": "https://ati.example.com"})
	inFlightEnds := func(what string) {
		t.Helper()
		began := time.Now()
		select {
		case r := <-slow:
			t.Logf("%s: a call in flight returns %d after %v", what, r.status, r.at.Sub(began).Round(10*time.Millisecond))
		case <-time.After(2 * guardPoll):
			t.Errorf("%s: a call in flight is not ended", what)
		}
	}
	inFlightEnds("config replaced")
	g.until("config replaced", newer, http.StatusUnauthorized)
	stop()

	// After a restore, another key gets the version of one that the guard has.
	snapshot.Reset()
	if err := s.client(s.root).Sys().RaftSnapshot(&snapshot); err != nil {
		t.Fatal(err)
	}
	version := func() any { return s.read(s.root, "ati/config/rotate").Data["current_version"] }
	before := version()
	s.rotate("", nil)
	replaced, taken := s.mint("r", nil), version()
	g.until("a key that the snapshot does not have", replaced, http.StatusOK)
	slow = g.callSlow(replaced)
	if err := s.client(s.root).Sys().RaftSnapshotRestore(&snapshot, true); err != nil {
		t.Fatal(err)
	}
	poll(t, "the snapshot was restored", func() error {
		status, err := s.client(s.root).Logical().Read("ati/config/rotate")
		if err == nil && status.Data["current_version"] != before {
			err = fmt.Errorf("version %v", status.Data["current_version"])
		}
		return err
	})
	s.rotate("", nil)
	if got := version(); got != taken {
		t.Errorf("the next key has version %v, want %v", got, taken)
	}
	inFlightEnds("another key with the same version")
	g.expect("a token of the key that was lost", replaced, http.StatusUnauthorized)
	g.until("a token of the key with its version", s.mint("r", nil), http.StatusOK)
}

// Guarantee: no request without a valid token reaches the proxy, however it is spelled, and
// what a token gets from the proxy's port or the admin port is no secret.
func TestInteropGuard_Attacks(t *testing.T) {
	t.Parallel()
	s := startGuarded(t, false, time.Hour)
	secret := s.proxyEnv()["ATI_JWT_SECRET"]
	token := s.mint("r", nil)
	g := s.newGuard(t, nil)
	g.env = []string{"VAULT_TOKEN=" + s.root, "VAULT_ADDR=" + s.addr, "BAO_ADDR=" + s.addr, "ATI_JWT_SECRET=" + secret, "ATI_JWT_PUBLIC_KEY=/dev/null", "NOTIFY_SOCKET=/none", "CREDENTIALS_DIRECTORY=/none", "KEPT=1"}
	var received atomic.Int64
	upload := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n, _ := io.Copy(io.Discard, r.Body)
		received.Add(n)
		_, _ = io.WriteString(w, `{"ok":true}`)
	}))
	t.Cleanup(upload.Close)
	g.addTool("upload", http.MethodPost, upload.URL, `auth_type = "none"`)
	g.start()
	g.waitUntilReady()
	child := g.child()
	before := g.proxy.calls.Load()

	// The proxy's environment and port.
	args := strings.Split(string(readFile(t, fmt.Sprintf("/proc/%d/cmdline", child))), "\x00")
	port := args[slices.Index(args, "--port")+1]
	direct := *g.proxy
	direct.addr = "http://127.0.0.1:" + port
	for _, tok := range []string{"", token} {
		if got := direct.call(tok, "web_search"); got != http.StatusUnauthorized {
			t.Errorf("the proxy's port returns %d", got)
		}
	}
	auth := g.config["vault"].(data)["auth"].(data)["approle"].(data)
	secretID := strings.TrimSpace(string(readFile(t, auth["secret_id_file"].(string))))
	env := string(readFile(t, fmt.Sprintf("/proc/%d/environ", child)))
	for _, not := range []string{secret, s.root, secretID, "VAULT_", "BAO_", "ATI_JWT_PUBLIC_KEY", "NOTIFY_SOCKET", "CREDENTIALS_DIRECTORY"} {
		if strings.Contains(env, not) {
			t.Errorf("the proxy's environment has %s", not)
		}
	}
	local := regexp.MustCompile(`ATI_JWT_SECRET=([0-9a-f]{64})\x00`).FindStringSubmatch(env)
	if len(local) == 0 || !strings.Contains(env, "KEPT=1\x00") {
		t.Fatal("the proxy's environment has no secret, or not what the guard's has")
	}
	// The guard accepts no token of the key that the proxy holds.
	forged := signRaw(t, local[1], `{"alg":"HS256","typ":"JWT"}`, `{"sub":"x","aud":"ati-proxy","iat":1,"exp":4000000000,"scope":"*"}`)
	g.expect("a token of the local key", forged, http.StatusUnauthorized)
	if got := direct.call(forged, "web_search"); got != http.StatusOK {
		t.Errorf("at the proxy's port, a token of the local key returns %d", got)
	}
	before++

	// Requests without a valid token, on a raw connection.
	const body = `{"tool_name":"web_search","args":{}}`
	bearer := "Authorization: Bearer " + token + "\r\n"
	rest := fmt.Sprintf("Host: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", len(body), body)
	get := func(target string) string {
		return "GET " + target + " HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
	}
	for _, c := range []struct {
		name, request string
		want          []int
	}{
		{"no token", "POST /call HTTP/1.1\r\n" + rest, []int{401}},
		{"two tokens", "POST /call HTTP/1.1\r\n" + bearer + bearer + rest, []int{401}},
		{"junk and a token", "POST /call HTTP/1.1\r\nAuthorization: Bearer x\r\n" + bearer + rest, []int{401}},
		{"a token and an empty header", "POST /call HTTP/1.1\r\n" + bearer + "authorization:\r\n" + rest, []int{401}},
		{"bearer", "POST /call HTTP/1.1\r\nAuthorization: bearer " + token + "\r\n" + rest, []int{401}},
		{"Basic", "POST /call HTTP/1.1\r\nAuthorization: Basic " + token + "\r\n" + rest, []int{401}},
		{"two spaces", "POST /call HTTP/1.1\r\nAuthorization: Bearer  " + token + "\r\n" + rest, []int{401}},
		{"a list", "POST /call HTTP/1.1\r\nAuthorization: Bearer " + token + ", Bearer " + token + "\r\n" + rest, []int{401}},
		{"space before the colon", "POST /call HTTP/1.1\r\nAuthorization : Bearer " + token + "\r\n" + rest, []int{400}},
		{"underscore", "POST /call HTTP/1.1\r\nX_Authorization: Bearer " + token + "\r\nProxy-Authorization: Bearer " + token + "\r\n" + rest, []int{401}},
		{"a null byte", "POST /call HTTP/1.1\r\nAuthorization: Bearer " + token + "\x00\r\n" + rest, []int{400}},
		{"token in the query", "POST /call?access_token=" + token + "&Authorization=Bearer%20" + token + " HTTP/1.1\r\n" + rest, []int{401}},
		{"Connection: Authorization, no token", "POST /call HTTP/1.1\r\nConnection: Authorization\r\n" + rest, []int{401}},
		{"other path in a header", "POST /call HTTP/1.1\r\nX-Original-URL: /health\r\nX-Rewrite-URL: /health\r\nX-HTTP-Method-Override: GET\r\n" + rest, []int{401}},
		{"HTTP/1.0", "POST /call HTTP/1.0\r\n" + rest, []int{401}},
		{"HTTP/2 preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", []int{401}},
		{"upgrade to HTTP/2", "POST /call HTTP/1.1\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n" + rest, []int{401}},
		{"no version", "GET /health\r\n\r\n", []int{400}},
		{"a header of 64 KB", "POST /call HTTP/1.1\r\nX-Big: " + strings.Repeat("x", 64<<10) + "\r\n" + rest, []int{401}},
		{"a token of 64 KB", "POST /call HTTP/1.1\r\nAuthorization: Bearer " + strings.Repeat("x", 64<<10) + "\r\n" + rest, []int{401}},
		{"headers of 1 MB", "POST /call HTTP/1.1\r\nX-Big: " + strings.Repeat("x", 1<<20) + "\r\n" + rest, []int{431}},

		{"health", get("/health"), []int{200}},
		{"health, query", get("/health?x=1"), []int{200}},
		{"JWKS", get("/.well-known/jwks.json"), []int{200}},
		{"HEAD", strings.Replace(get("/health"), "GET", "HEAD", 1), []int{200}},
		{"lower case", strings.Replace(get("/health"), "GET", "get", 1), []int{401}},
		{"POST", strings.Replace(get("/health"), "GET", "POST", 1), []int{401}},
		{"OPTIONS", strings.Replace(get("/health"), "GET", "OPTIONS", 1), []int{401}},
		{"OPTIONS *", strings.Replace(get("*"), "GET", "OPTIONS", 1), []int{401}},
		{"TRACE", strings.Replace(get("/health"), "GET", "TRACE", 1), []int{401}},
		{"CONNECT", strings.Replace(get("127.0.0.1:"+port), "GET", "CONNECT", 1), []int{401}},
		{"CONNECT with a path", strings.Replace(get("/health"), "GET", "CONNECT", 1), []int{401}},
		{"slash at the end", get("/health/"), []int{401}},
		{"two slashes", get("//health"), []int{401}},
		{"capitals", get("/HEALTH"), []int{401}},
		{"percent", get("/%68ealth"), []int{401}},
		{"percent at the end", get("/health%20"), []int{401}},
		{"null byte", get("/health%00"), []int{401}},
		{"question mark", get("/health%3f/call"), []int{401}},
		{"semicolon", get("/health;x"), []int{401}},
		{"fragment", get("/health#x"), []int{401}},
		{"dot", get("/./health"), []int{401}},
		{"dots", get("/x/../health"), []int{401}},
		{"dots after it", get("/health/../tools"), []int{401}},
		{"percent dots", get("/health/%2e%2e/tools"), []int{401}},
		{"backslash", get("\\health"), []int{400}},
		{"absolute form", get("http://x/health"), []int{401}},
		{"absolute form of the proxy", get("http://127.0.0.1:" + port + "/tools"), []int{401}},
		{"JWKS, dots", get("/.well-known/jwks.json/../../tools"), []int{401}},
	} {
		if got := g.raw(c.request); !slices.Equal(got, c.want) {
			t.Errorf("%s: the statuses are %v, want %v", c.name, got, c.want)
		}
	}
	// A second request hidden in the first one's body. The first has a token, and calls no tool.
	hidden := "POST /call HTTP/1.1\r\n" + rest
	for name, c := range map[string]struct{ headers, body string }{
		"both":              {fmt.Sprintf("Content-Length: %d\r\nTransfer-Encoding: chunked\r\n", 5+len(hidden)), "0\r\n\r\n" + hidden},
		"both, other order": {fmt.Sprintf("Transfer-Encoding: chunked\r\nContent-Length: %d\r\n", 5+len(hidden)), "0\r\n\r\n" + hidden},
		"length 0":          {"Content-Length: 0\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n" + hidden},
		"two lengths":       {fmt.Sprintf("Content-Length: 0\r\nContent-Length: %d\r\n", len(hidden)), hidden},
		"a list of lengths": {fmt.Sprintf("Content-Length: 0, %d\r\n", len(hidden)), hidden},
		"+":                 {fmt.Sprintf("Content-Length: +%d\r\n", len(hidden)), hidden},
		"two encodings":     {"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n", "0\r\n\r\n" + hidden},
		"a list":            {"Transfer-Encoding: identity, chunked\r\n", "0\r\n\r\n" + hidden},
		"xchunked":          {fmt.Sprintf("Content-Length: %d\r\nTransfer-Encoding: xchunked\r\n", 5+len(hidden)), "0\r\n\r\n" + hidden},
		"tab":               {fmt.Sprintf("Content-Length: %d\r\nTransfer-Encoding:\tchunked\r\n", 5+len(hidden)), "0\r\n\r\n" + hidden},
		"space":             {fmt.Sprintf("Content-Length: %d\r\nTransfer-Encoding : chunked\r\n", 5+len(hidden)), "0\r\n\r\n" + hidden},
		"LF in a chunk":     {"Transfer-Encoding: chunked\r\n", "0\n\n" + hidden},
		"chunk extension":   {"Transfer-Encoding: chunked\r\n", "0;\n\r\n\r\n" + hidden},
		"GET with a body":   {fmt.Sprintf("Content-Length: %d\r\n", len(hidden)), hidden},
		"trailer":           {"Trailer: Authorization\r\nTransfer-Encoding: chunked\r\n", "0\r\n" + bearer + "\r\n" + hidden},
	} {
		got := g.raw("POST /help HTTP/1.1\r\nHost: x\r\n" + bearer + c.headers + "\r\n" + c.body)
		if len(got) == 0 || slices.Contains(got[1:], 200) {
			t.Errorf("%s: the statuses are %v", name, got)
		}
	}
	if got := g.proxy.calls.Load(); got != before {
		t.Errorf("%d requests without a valid token reached the upstream", got-before)
	}
	// With a token, the header that Connection names is not lost on the way to the proxy.
	if got := g.raw("POST /call HTTP/1.1\r\nConnection: Authorization\r\n" + bearer + rest); !slices.Equal(got, []int{200}) {
		t.Errorf("Connection: Authorization with a token: %v", got)
	}
	if got := g.raw("POST /call HTTP/1.1\r\nX-Big: " + strings.Repeat("x", 64<<10) + "\r\n" + bearer + rest); !slices.Equal(got, []int{200}) {
		t.Errorf("a header of 64 KB with a token: %v", got)
	}

	// Load that tries to keep other calls from being served.
	load := g.startLoad(2, func() string { return token })
	var idle []net.Conn
	open := func(n int, request string) {
		t.Helper()
		for range n {
			conn, err := net.Dial("tcp", g.config["listen"].(string))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { conn.Close() })
			if _, err := io.WriteString(conn, request); err != nil {
				t.Fatal(err)
			}
			idle = append(idle, conn)
		}
	}
	open(1000, "")
	open(100, "POST /call HTTP/1.1\r\nHost: x\r\nAuthori")
	open(100, "POST /call HTTP/1.1\r\n"+bearer+"Host: x\r\nContent-Length: 1000\r\n\r\n{")
	opened := time.Now()
	large := `{"tool_name":"upload","args":{"x":"` + strings.Repeat("x", 80<<20) + `"}}`
	began := time.Now()
	status, _ := g.do("", http.MethodPost, "/call", large)
	t.Logf("a body of 80 MB without a token: %d after %v", status, time.Since(began).Round(time.Millisecond))
	if status != http.StatusUnauthorized && status != 0 { // the connection may be closed while the body is sent
		t.Errorf("a body of 80 MB without a token returns %d", status)
	}
	began = time.Now()
	status, response := g.do(token, http.MethodPost, "/call", large)
	t.Logf("a body of 80 MB with a token: %d after %v", status, time.Since(began).Round(time.Millisecond))
	if status != http.StatusOK || received.Load() < 80<<20 {
		t.Errorf("a body of 80 MB returns %d %.100q, and the upstream has %d bytes", status, response, received.Load())
	}
	time.Sleep(time.Until(opened.Add(12 * time.Second)))
	closed := 0
	for _, conn := range idle[1000:1100] {
		_ = conn.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		if _, err := io.ReadAll(conn); err == nil {
			closed++
		}
	}
	if closed != 100 {
		t.Errorf("of 100 connections whose headers are incomplete after 12 seconds, %d are closed", closed)
	}
	load.expectNoFailure("1,000 idle connections, 200 slow clients, and a body of 80 MB")
	if got := g.child(); got != child {
		t.Error("the proxy was restarted")
	}

	// The admin port, and the guard itself, as a tool sees them.
	for _, path := range []string{"/ready", "/metrics", "/", "/health", "/config", "/debug/pprof/", "/debug/vars", "/v1/ati/guard", "/tools"} {
		for _, address := range []string{g.admin, g.config["listen"].(string)} {
			call, err := json.Marshal(data{"tool_name": "file_manager:download", "args": data{"url": "http://" + address + path}})
			if err != nil {
				t.Fatal(err)
			}
			status, text := g.do(token, http.MethodPost, "/call", string(call))
			var response struct {
				Result struct {
					Content []byte `json:"content_base64"`
				}
			}
			if err := json.Unmarshal([]byte(text), &response); err != nil {
				t.Errorf("%s%s: %d %s", address, path, status, text)
			}
			content := string(response.Result.Content)
			served := address == g.admin && (path == "/ready" || path == "/metrics") || address != g.admin && path == "/health"
			if served != (status == http.StatusOK) {
				t.Errorf("a download of %s%s returns %d %s", address, path, status, text)
			}
			for _, not := range []string{secret, local[1], s.root, secretID, token, "sandbox:"} {
				if strings.Contains(content, not) {
					t.Errorf("a download of %s%s has %s", address, path, not)
				}
			}
			if path == "/metrics" && served && !strings.Contains(content, "ati_guard_requests_total") {
				t.Errorf("the metrics are %s", content)
			}
		}
	}
	for _, method := range []string{http.MethodPost, http.MethodDelete} {
		req, err := http.NewRequest(method, "http://"+g.admin+"/ready", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusMethodNotAllowed {
			t.Errorf("%s /ready at the admin port returns %s", method, resp.Status)
		}
	}
}

// Guarantee: another user on the host, such as the one that the proxy and its tools run as,
// reads neither the guard's login nor its memory, also if the guard runs as that user.
func TestInteropGuard_User(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Log("not run: only root can start a proxy as another user")
		return
	}
	nobody, err := user.Lookup("nobody")
	if err != nil {
		t.Logf("not run: %v", err)
		return
	}
	uid, err := strconv.Atoi(nobody.Uid)
	if err != nil {
		t.Fatal(err)
	}
	credential := &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}
	s := startGuarded(t, false, time.Hour)
	token := s.mint("r", nil)
	public, err := os.MkdirTemp("", "ati-guard-user") // which other users can read, unlike t.TempDir
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(public) })
	if err := os.Chmod(public, 0o755); err != nil {
		t.Fatal(err)
	}
	copyFile := func(from, name string, mode os.FileMode) string {
		to := filepath.Join(public, name)
		if err := os.WriteFile(to, readFile(t, from), mode); err != nil {
			t.Fatal(err)
		}
		return to
	}
	g := s.newGuard(t, data{"ati": copyFile(requireEnv(t, "ATI_BIN"), "ati", 0o755), "user": "nobody"})
	auth := g.config["vault"].(data)["auth"].(data)["approle"].(data)
	for name := range auth {
		auth[name] = copyFile(auth[name].(string), name, 0o600)
	}
	ati := filepath.Join(public, "dir")
	if err := os.CopyFS(ati, os.DirFS(g.proxy.dir)); err != nil {
		t.Fatal(err)
	}
	g.proxy.dir, g.config["ati_dir"] = ati, ati
	g.writeConfig()
	config := copyFile(g.file, "config.json", 0o600)
	g.file = config
	readable := func(path string) bool {
		cmd := exec.Command("head", "-c", "1", path)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: credential}
		out, err := cmd.Output()
		return err == nil && len(out) > 0
	}
	expectHidden := func(who string, paths ...string) {
		t.Helper()
		for _, path := range append(paths, fmt.Sprintf("/proc/%d/environ", g.cmd.Process.Pid), fmt.Sprintf("/proc/%d/mem", g.cmd.Process.Pid), fmt.Sprintf("/proc/%d/maps", g.cmd.Process.Pid)) {
			if readable(path) {
				t.Errorf("%s: the proxy's user can read %s", who, path)
			}
		}
	}
	chown := func() {
		t.Helper()
		if err := filepath.WalkDir(public, func(path string, _ fs.DirEntry, err error) error { return errors.Join(err, os.Chown(path, uid, uid)) }); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chown(ati, uid, uid); err != nil {
		t.Fatal(err)
	}
	g.start()
	g.waitUntilReady()
	g.expect("a proxy that runs as nobody", token, http.StatusOK)
	child := g.child()
	info, err := os.Stat(fmt.Sprintf("/proc/%d", child))
	if err != nil {
		t.Fatal(err)
	}
	if got := info.Sys().(*syscall.Stat_t).Uid; int(got) != uid {
		t.Errorf("the proxy runs as user %d, want %d", got, uid)
	}
	if !readable(filepath.Join(public, "ati")) || !readable(fmt.Sprintf("/proc/%d/environ", child)) {
		t.Error("the proxy's user cannot read its own files: the test proves nothing")
	}
	expectHidden("guard of root", config, auth["role_id_file"].(string), auth["secret_id_file"].(string))
	g.stop(syscall.SIGTERM)

	// The guard itself runs as nobody, and the proxy as the same user.
	delete(g.config, "user")
	delete(g.config, "access_log") // in a directory that nobody cannot enter
	g.writeConfig()
	g.file = copyFile(g.file, "config.json", 0o600)
	g.binary, g.credential = copyFile(buildGuard(t), "ati-guard", 0o755), credential
	chown()
	g.start()
	g.waitUntilReady()
	g.expect("a guard that runs as nobody", token, http.StatusOK)
	expectHidden("guard of nobody")
}

// renewing returns the token of a client that requests a new one from time to time, and the
// version of its key.
func (s *server) renewing(every time.Duration) func() (token string, version int) {
	var mu sync.Mutex
	var token string
	var version int
	var renewed time.Time
	return func() (string, int) {
		mu.Lock()
		defer mu.Unlock()
		if time.Since(renewed) > every {
			renewed = time.Now()
			creds, err := s.client(s.root).Logical().Read("ati/creds/r")
			if err != nil {
				s.t.Errorf("mint: %v", err)
				return token, version
			}
			n, _ := creds.Data["key_version"].(json.Number).Int64()
			token, version = creds.Data["token"].(string), int(n)
		}
		return token, version
	}
}

// TestGuardRotation rotates the key at one address, while eight clients, which know nothing
// of it, call a tool continuously and renew their tokens. No call is rejected. Run by make
// rotation INTEROP=guard.
func TestGuardRotation(t *testing.T) {
	want, err := strconv.Atoi(requireEnv(t, "ATI_ROTATION_CALLS"))
	if err != nil {
		t.Fatal(err)
	}
	const ttl, renew = 5 * time.Second, 2 * time.Second
	s := startGuarded(t, false, ttl)
	g := s.startGuard(t, nil)
	s.write(s.root, "ati/config", data{"proxy_url": g.addr})
	// A guard that loses Vault before the last key expires.
	vault := startRelay(t, s, "/v1/ati/guard")
	lonely := s.newGuard(t, nil)
	lonely.config["vault"].(data)["address"] = vault.addr
	lonely.writeConfig()
	lonely.start()
	lonely.waitUntilReady()

	forged := signRaw(t, strings.Repeat("ab", 32), `{"alg":"HS256","typ":"JWT"}`, `{"sub":"x","aud":"ati-proxy","iat":1,"exp":4000000000,"scope":"*"}`)
	var loads []*guardLoad
	for range 8 {
		client := s.renewing(renew)
		loads = append(loads, g.startLoad(1, func() string { token, _ := client(); return token }))
	}
	defer g.watchRejected(forged)()
	total := func() (calls, failed int) {
		for _, l := range loads {
			calls, failed = calls+l.succeeded()+l.failed(), failed+l.failed()
		}
		return calls, failed
	}
	phase := func(what string, wait time.Duration) {
		t.Helper()
		time.Sleep(wait)
		calls, failed := total()
		t.Logf("%s: %d calls so far, %d failed", what, calls, failed)
		if failed > 0 {
			for _, l := range loads {
				l.end()
				t.Logf("%v %q", l.statuses, l.failures)
			}
			t.Fatal("calls were rejected")
		}
	}
	secrets := map[int]string{}
	version := 1
	var expireBy time.Time
	for i, algorithm := range []string{"ES256", "HS256", "HS256"} {
		pause := 2 * guardPoll
		if i == 1 {
			pause = 0 // guards first see the key in a token
		}
		s.rotate("/stage", data{"proxy_url": fmt.Sprintf("%s/%d", g.addr, i), "algorithm": algorithm})
		phase(fmt.Sprintf("version %d, %s, is staged", version+1, algorithm), pause)
		s.rotate("/activate", nil)
		version++
		phase("activated", ttl+guardPoll)
		if i == 0 {
			s.rotate("/rollback", nil)
			phase("rolled back", ttl+guardPoll)
			s.rotate("/activate", nil)
			phase("activated again", ttl+guardPoll)
		}
		if algorithm == "HS256" {
			secrets[version] = s.proxyEnv()["ATI_JWT_SECRET"]
		}
		status := s.rotate("/retire", nil)
		if expireBy, err = time.Parse(time.RFC3339, status["previous_tokens_expire_by"].(string)); err != nil {
			t.Fatal(err)
		}
		if left := time.Until(expireBy); left > 2*time.Minute {
			t.Fatalf("the previous version expires only in %v", left)
		}
		phase("retired", 2*guardPoll)
	}
	// Who has the previous version's secret can use it until it expires, also at a guard that
	// has lost Vault.
	signWith := func(version int) string {
		return signRaw(t, secrets[version], `{"alg":"HS256","typ":"JWT"}`, fmt.Sprintf(`{"sub":"x","aud":"ati-proxy","iat":%d,"exp":%d,"scope":"*","iss":"ati-orchestrator"}`, time.Now().Unix(), time.Now().Unix()+3600))
	}
	previous, current := signWith(version-1), signWith(version)
	g.expect("the previous key", previous, http.StatusOK)
	lonely.expect("the previous key, before Vault is lost", previous, http.StatusOK)
	lost := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) })
	vault.fault.Store(&lost)
	phase("before the previous version expires", time.Until(expireBy.Add(-2*time.Second)))
	g.expect("the previous key, 2 seconds before it expires", previous, http.StatusOK)
	lonely.expect("the previous key, 2 seconds before it expires, without Vault", previous, http.StatusOK)
	time.Sleep(time.Until(expireBy))
	g.expect("the previous key when it has expired", previous, http.StatusUnauthorized)
	lonely.expect("the previous key when it has expired, without Vault", previous, http.StatusServiceUnavailable)
	lonely.expect("the current key, without Vault", current, http.StatusOK)
	phase("the previous version has expired", 2*guardPoll)
	for _, l := range loads {
		l.end()
	}
	calls, failed := total()
	t.Logf("HS256 to ES256 to HS256 to HS256: %d calls of %d clients, %d failed", calls, len(loads), failed)
	if failed > 0 || calls < want {
		t.Errorf("%d calls, of which %d failed; want at least %d and 0", calls, failed, want)
	}
}

// TestGuardRotation_Immediate replaces the key while eight clients call a tool. Only tokens of
// the replaced key are rejected, and calls in flight with one are ended.
func TestGuardRotation_Immediate(t *testing.T) {
	s := startGuarded(t, false, time.Hour)
	g := s.startGuard(t, nil)
	version := 1
	for _, algorithm := range []string{"HS256", "ES256", "HS256"} {
		slow := g.callSlow(s.mint("r", nil))
		stop := make(chan struct{})
		var running sync.WaitGroup
		var mu sync.Mutex
		calls, rejected := map[int]int{}, map[int]int{} // by key version
		for range 8 {
			client := s.renewing(time.Hour)
			running.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
					}
					token, version := client()
					status, body := g.call(token, "web_search")
					mu.Lock()
					calls[version]++
					switch status {
					case http.StatusOK:
					case http.StatusUnauthorized:
						rejected[version]++
						client = s.renewing(time.Hour)
					default:
						t.Errorf("a call returns %d %s", status, body)
					}
					mu.Unlock()
				}
			})
		}
		time.Sleep(3 * time.Second)
		old := s.mint("r", nil)
		s.rotate("", data{"algorithm": algorithm})
		began := time.Now()
		version++
		took := g.until("the replaced key", old, http.StatusUnauthorized)
		r := <-slow
		inFlight := r.at.Sub(began)
		time.Sleep(3 * time.Second)
		close(stop)
		running.Wait()
		t.Logf("to %s: calls by key version %v, rejected %v; the replaced key is rejected after %v, and a call in flight ended after %v", algorithm, calls, rejected, took, inFlight.Round(10*time.Millisecond))
		if rejected[version] > 0 || rejected[version-1] > 8 || calls[version] == 0 {
			t.Errorf("to %s: calls %v, rejected %v", algorithm, calls, rejected)
		}
		if took > 2*guardPoll || inFlight > 2*guardPoll || r.status != http.StatusUnauthorized {
			t.Errorf("to %s: the replaced key is rejected after %v, and a call in flight returns %d %s after %v", algorithm, took, r.status, r.body, inFlight)
		}
	}
}
