//go:build interop

package test

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Guarantee: the real client works through a guard, and prints why its token is rejected,
// also during a call.
func TestInteropGuard_Client(t *testing.T) {
	t.Parallel()
	s := startGuarded(t, false, time.Hour)
	g := s.startGuard(t, nil)
	watch := g.watchRejected()
	token, other := s.mint("r", nil), s.mint("r", nil)
	if out, err := g.atiRun(token, "web_search").CombinedOutput(); err != nil || !strings.Contains(string(out), `"ok": true`) {
		t.Errorf("ati run: %v\n%s", err, out)
	}
	expectFailure := func(what, out string, want string) {
		t.Helper()
		if !strings.Contains(out, want) {
			t.Errorf("%s: ati run prints %q, want %q", what, out, want)
		}
	}
	type run struct {
		out string
		err error
	}
	start := func(cmd *exec.Cmd) <-chan run {
		done := make(chan run, 1)
		go func() { out, err := cmd.CombinedOutput(); done <- run{string(out), err} }()
		return done
	}
	revokedInFlight, otherInFlight := start(g.atiRun(token, "slow")), start(g.atiRun(other, "slow"))
	poll(t, "both calls have reached the upstream", func() error {
		if got := g.slow.calls.Load(); got != 2 {
			return fmt.Errorf("%d have", got)
		}
		return nil
	})
	s.write(s.root, "ati/revoke", data{"token": token})
	began := time.Now()
	if r := receive(t, "the client has ended", revokedInFlight); r.err == nil {
		t.Errorf("a call whose token is revoked succeeds: %s", r.out)
	} else {
		t.Logf("a client whose token is revoked during a call ends after %v", time.Since(began).Round(10*time.Millisecond))
		expectFailure("during a call", r.out, "Proxy error (401): the token was revoked")
	}
	watch.add(token)
	out, err := g.atiRun(token, "web_search").CombinedOutput()
	if err == nil {
		t.Error("a call with a revoked token succeeds")
	}
	expectFailure("a revoked token", string(out), "Proxy error (401): the token was revoked")
	t.Logf("ati run prints %q", out)
	out, _ = g.atiRun(forgedToken(t), "web_search").CombinedOutput()
	expectFailure("a forged token", string(out), "Proxy error (401): ")
	if strings.Contains(string(out), "token was") {
		t.Errorf("with a forged token, ati run prints a reason: %q", out)
	}
	close(g.slow.release)
	if r := receive(t, "the other client has ended", otherInFlight); r.err != nil || !strings.Contains(r.out, `"ok": true`) {
		t.Errorf("the call with another token: %v\n%s", r.err, r.out)
	}
}

// Guarantee: calls that wait for a proxy to start are rejected when their tokens are revoked,
// and the others succeed.
func TestInteropGuard_Hold(t *testing.T) {
	t.Parallel()
	s := startGuarded(t, false, time.Hour)
	ati, gate := gatedATI(t)
	g := s.startGuard(t, data{"ati": ati, "hold": "10m"})
	watch := g.watchRejected()
	other, revoked := s.mint("r", nil), []string{s.mint("r", nil), s.mint("r", nil)}
	g.expect("before", other, http.StatusOK)
	if err := os.Remove(gate); err != nil {
		t.Fatal(err)
	}
	pid := g.child()
	g.kill(pid, syscall.SIGKILL)
	g.waitForRestart(0)
	calls := map[string]chan result{}
	for _, token := range append(revoked, other) {
		done := make(chan result, 1)
		calls[token] = done
		go func() {
			status, body := g.call(token, "web_search")
			done <- result{status, body, time.Now()}
		}()
	}
	poll(t, "the calls wait", func() error {
		if got := g.metric("ati_guard_requests_in_flight"); got != 3 {
			return fmt.Errorf("%v are in flight", got)
		}
		return nil
	})
	reached := g.proxy.calls.Load()
	for _, token := range revoked {
		s.write(s.root, "ati/revoke", data{"token": token})
	}
	began := time.Now()
	for _, token := range revoked {
		r := receive(t, "a call whose token is revoked has ended", calls[token])
		t.Logf("a waiting call whose token is revoked returns %d after %v", r.status, r.at.Sub(began).Round(10*time.Millisecond))
		if r.status != http.StatusUnauthorized || r.body != "the token was revoked" {
			t.Errorf("a waiting call whose token is revoked returns %d %s", r.status, r.body)
		}
	}
	watch.add(revoked...)
	if err := os.WriteFile(gate, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if r := receive(t, "the call with another token has ended", calls[other]); r.status != http.StatusOK {
		t.Errorf("the call with another token returns %d %s", r.status, r.body)
	}
	if got := g.proxy.calls.Load() - reached; got != 1 {
		t.Errorf("%d calls reached the upstream, want 1", got)
	}
}
