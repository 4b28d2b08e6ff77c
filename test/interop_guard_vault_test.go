//go:build interop

package test

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"
)

// Guarantee: while Vault does not respond, or denies access, the guard serves with what it
// knows until max_stale, and no token passes that was revoked and once rejected.
func TestInteropGuard_VaultFaults(t *testing.T) {
	t.Parallel()
	const maxStale = 5 * time.Second
	s := startGuarded(t, true, time.Hour)
	vault := startRelay(t, "/v1/ati/guard", func() *server { return s })
	token, revoked, unknown := s.mint("r", nil), s.mint("r", nil), forgedToken(t)
	s.write(s.root, "ati/revoke", data{"token": revoked})
	g := s.newGuard(t, data{"max_stale": maxStale.String()})
	g.behind(vault)
	g.start()
	g.waitUntilReady()
	g.expect("a revoked token", revoked, http.StatusUnauthorized)
	g.expect("a token of an unknown key", unknown, http.StatusUnauthorized)
	watch := g.watchRejected(revoked)

	// stale expects that calls succeed until max_stale after the last read, and not later.
	stale := func(what string, lose func()) {
		t.Helper()
		readAt := time.Now().Add(-time.Duration(g.metric("ati_guard_age_seconds") * float64(time.Second))) // or later
		lose()
		lost := time.Now()
		for passed := 0; ; passed++ {
			if passed == 1 {
				g.expect(what+", a token of an unknown key", unknown, http.StatusServiceUnavailable)
			}
			began := time.Now()
			status, body := g.call(token, "web_search")
			ended := time.Now()
			switch {
			case status == http.StatusOK && !began.After(lost.Add(maxStale)):
				time.Sleep(10 * time.Millisecond)
				continue
			case status == http.StatusServiceUnavailable && ended.After(readAt.Add(maxStale)) && passed > 0:
				t.Logf("%s: %d calls succeeded, for %v", what, passed, began.Sub(lost).Round(10*time.Millisecond))
				return
			}
			t.Fatalf("%s: after %v, and %d calls that succeeded, a call returns %d %s", what, began.Sub(lost), passed, status, body)
		}
	}
	fresh := func(what string) {
		t.Helper()
		t.Logf("%s: calls succeed again after %v", what, g.until(what+", over", token, http.StatusOK))
		g.expect("a revoked token", revoked, http.StatusUnauthorized)
	}

	stale("nonsense", func() { vault.respond(200, `{"data":{"epoch":"x"}}`) })
	vault.fault.Store(nil)
	fresh("nonsense")
	stale("Vault hangs", func() {
		vault.faultWith(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	})
	vault.fault.Store(nil)
	fresh("Vault hangs")

	stale("Vault stopped", s.kill)
	// A guard that starts now rejects everything.
	g.stop(syscall.SIGKILL)
	g.start()
	g.waitForFailedReads(1)
	g.expect("a guard that starts without Vault", token, http.StatusServiceUnavailable)
	s.restart()
	s.unseal()
	fresh("Vault stopped")

	load := g.startLoad(2, func() string { return token })
	s.vault(s.root, "token", "revoke", "-mode=path", "auth/approle")
	g.waitForReads(2)
	second := s.mint("r", nil)
	g.expect("before the revocation", second, http.StatusOK)
	s.write(s.root, "ati/revoke", data{"token": second})
	t.Logf("after the guard's login was revoked, a revocation takes %v", g.untilRejected("a revocation with a new login", http.StatusUnauthorized, second))
	watch.add(second)
	load.expectNoFailure("the guard's login was revoked")
	stale("access denied", func() {
		if err := s.client(s.root).Sys().PutPolicy("proxy-guard", `path "none" { capabilities = ["read"] }`); err != nil {
			t.Fatal(err)
		}
	})
	s.allowGuards()
	fresh("access denied")
}

// A guard whose entity was deleted logs in again, and enforces the next revocation.
func TestInteropGuard_EntityDeleted(t *testing.T) {
	t.Parallel()
	s := startGuarded(t, false, time.Hour)
	g := s.startGuard(t, nil)
	token := s.mint("r", nil)
	g.expect("before the revocation", token, http.StatusOK)
	for _, id := range s.list("identity/entity/id") {
		s.vault(s.root, "delete", fmt.Sprint("identity/entity/id/", id))
	}
	s.write(s.root, "ati/revoke", data{"token": token})
	t.Logf("after its entity was deleted, a revocation takes %v", g.untilRejected("a revocation with a new login", http.StatusUnauthorized, token))
}

// Guarantee: with a response that is not one of the path guard, the guard keeps what it knows.
func TestInteropGuard_VaultResponses(t *testing.T) {
	t.Parallel()
	s := startGuarded(t, false, time.Hour)
	vault := startRelay(t, "/v1/ati/guard", func() *server { return s })
	token, revoked, unknown := s.mint("r", nil), s.mint("r", nil), forgedToken(t)
	s.write(s.root, "ati/revoke", data{"token": revoked})
	g := s.newGuard(t, nil)
	g.behind(vault)
	g.start()
	g.waitUntilReady()
	g.expect("a revoked token", revoked, http.StatusUnauthorized)
	g.watchRejected(revoked)
	child := g.child()
	responses := []struct {
		status int
		body   string
	}{
		{200, ""}, {200, "<html>"}, {404, "<html>"}, {404, ""}, {200, "{}"}, {200, `{"data":null}`}, {200, `{"data":{}}`}, {200, `{"data":{"epoch":1,"generation":1}}`},
		{200, `{"data":{"epoch":"x","generation":"y"}}`}, {200, `{"data":{"epoch":"x","generation":1,"keys":{}}}`}, {200, `{"data":{"epoch":"x","generation":1,"audiences":[],"keys":[]}}`},
		{200, `{"data":{"epoch":"x","generation":9e15,"audiences":["a"],"keys":[{"version":7,"state":"current","algorithm":"HS256"}]}}`},
		{200, `{"data":{"epoch":"x","generation":9000000000000000,"audiences":["a"],"keys":[{"version":7,"state":"current","algorithm":"HS256"}],"revoked":[{"revoked_at":1}]}}`},
		{204, ""}, {302, ""}, {400, `{"errors":["x"]}`}, {500, `{"errors":[]}`}, {503, ""},
	}
	for _, c := range responses {
		vault.respond(c.status, c.body)
		what := fmt.Sprintf("Vault responds %d %s", c.status, c.body)
		g.expect(what+", a token of an unknown key", unknown, http.StatusServiceUnavailable) // after a read
		g.expect(what, token, http.StatusOK)
	}
	vault.faultWith(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
	g.expect("Vault breaks off, a token of an unknown key", unknown, http.StatusServiceUnavailable)
	g.expect("Vault breaks off", token, http.StatusOK)
	vault.fault.Store(nil)
	g.expect("a token of an unknown key", unknown, http.StatusUnauthorized)
	if got := g.child(); got != child {
		t.Error("the proxy was restarted")
	}
	t.Logf("%d responses that are not of the path guard changed nothing", len(responses)+1)
}

// Guarantee: after a snapshot was restored, or the config deleted and made again, no token
// passes that was revoked or whose key was replaced, and that was once rejected.
func TestInteropGuard_Restored(t *testing.T) {
	t.Parallel()
	s := startGuarded(t, true, time.Hour)
	g := s.startGuard(t, data{"max_stale": "5s"})
	token := s.mint("r", nil)

	// A snapshot without the last revocations and the last key is restored.
	agent := data{"agent_id": "sandbox:8"}
	s.write(s.root, "ati/revoke", agent)
	snapshot := s.snapshot()
	byToken, byAgent := s.mint("r", nil), s.mint("r", agent)
	s.write(s.root, "ati/revoke", data{"token": byToken})
	s.write(s.root, "ati/revoke", agent)
	g.untilRejected("before the restore", http.StatusUnauthorized, byToken, byAgent)
	s.rotate("", nil)
	g.untilRejected("the key was replaced", http.StatusUnauthorized, token)
	watch := g.watchRejected(byToken, byAgent)
	s.restore(snapshot, func(client *api.Client) error {
		list, err := client.Logical().List("ati/revoked")
		if err != nil {
			return err
		}
		if got := len(list.Data["keys"].([]any)); got != 1 {
			return fmt.Errorf("%d revocations", got)
		}
		return nil
	})
	g.until("snapshot restored", token, http.StatusServiceUnavailable)
	poll(t, "the guard has logged the restored snapshot", func() error {
		if !strings.Contains(g.log(), "a snapshot was restored, or a standby lags") {
			return errors.New("it has not")
		}
		return nil
	})
	s.write(s.root, "ati/revoke", data{"agent_id": "sandbox:9"}) // any change
	t.Logf("snapshot restored, and a change: calls succeed again after %v", g.until("a change", token, http.StatusOK))
	for i, lost := range []string{byToken, byAgent} {
		if status, body := g.call(lost, "web_search"); status != http.StatusUnauthorized || body != "the token was revoked" {
			t.Errorf("token %d, whose revocation is lost in Vault: %d %s", i, status, body)
		}
	}

	// The config is deleted, and another one made.
	slow := g.callSlow(token)
	s.vault(s.root, "delete", "ati/config")
	t.Logf("config deleted: every call is rejected after %v", g.until("config deleted", token, http.StatusServiceUnavailable))
	if r := receive(t, "config deleted: the call in flight has ended", slow); r.status != http.StatusUnauthorized {
		t.Errorf("config deleted: the call in flight returns %d %s", r.status, r.body)
	}
	for _, tok := range []string{token, byToken, forgedToken(t)} {
		g.expect("config deleted", tok, http.StatusServiceUnavailable)
	}
	g.expect("config deleted, no token", "", http.StatusUnauthorized)
	s.write(s.root, "ati/config", data{"proxy_url": "https://ati.example.com"})
	newer := s.mint("r", nil)
	g.until("a new config", newer, http.StatusOK)
	g.expect("a token of the deleted config", token, http.StatusUnauthorized)
	watch.add(token)

	// The next config is there before the guard's next read.
	slow = g.callSlow(newer)
	began := time.Now()
	s.vault(s.root, "delete", "ati/config")
	s.write(s.root, "ati/config", data{"proxy_url": "https://ati.example.com"})
	inFlightEnds := func(what string) {
		t.Helper()
		r := receive(t, what+": the call in flight has ended", slow)
		t.Logf("%s: a call in flight returns %d after %v", what, r.status, r.at.Sub(began).Round(10*time.Millisecond))
	}
	inFlightEnds("config replaced")
	g.untilRejected("config replaced", http.StatusUnauthorized, newer)
	watch.add(newer)

	// After a restore, another key gets the version of one that the guard has.
	snapshot = s.snapshot()
	version := func() any { return s.read(s.root, "ati/config/rotate").Data["current_version"] }
	before := version()
	s.rotate("", nil)
	replaced, taken := s.mint("r", nil), version()
	g.until("a key that the snapshot does not have", replaced, http.StatusOK)
	slow = g.callSlow(replaced)
	s.restore(snapshot, func(client *api.Client) error {
		status, err := client.Logical().Read("ati/config/rotate")
		if err == nil && status.Data["current_version"] != before {
			err = fmt.Errorf("version %v", status.Data["current_version"])
		}
		return err
	})
	began = time.Now()
	s.rotate("", nil)
	if got := version(); got != taken {
		t.Errorf("the next key has version %v, want %v", got, taken)
	}
	inFlightEnds("another key with the same version")
	g.until("a token of the key that was lost", replaced, http.StatusUnauthorized) // 503 before, if max_stale has ended the call
	watch.add(replaced)
	g.until("a token of the key with its version", s.mint("r", nil), http.StatusOK)
}
