//go:build interop && kubernetes

package test

import (
	"fmt"
	"net/http"
	"testing"
	"time"
)

// A guard that logs in with its pod's service account has no secret of its own, with HS256.
func testKubernetesGuard(t *testing.T, c *kube) {
	s := startGuarded(t, false, time.Hour)
	c.connect(s)
	c.allowGuards(s)
	g := c.startGuard(s)
	token := s.mint("r", nil)
	g.expect("a call", token, http.StatusOK)
	g.expect("no token", "", http.StatusUnauthorized)
	s.write(s.root, "ati/revoke", data{"token": token})
	t.Logf("a revocation takes %v", g.untilRejected("a revocation", http.StatusUnauthorized, token))
	if out, err := g.atiRun(s.mint("r", nil), "web_search").CombinedOutput(); err != nil {
		t.Errorf("ati run: %v\n%s", err, out)
	}

	// When its login has ended, it logs in again with the token that the kubelet has written
	// since: here, only that one has the audience that is required by now.
	load := g.startLoad(2, func() string { return s.mint("r", nil) })
	s.write(s.root, "auth/kubernetes/role/ati-guard", data{"audience": "later"})
	g.renewServiceAccount(c.token("ati", "ati-guard", "--audience=later"))
	s.vault(s.root, "token", "revoke", "-mode=path", "auth/kubernetes")
	g.waitForReads(3)
	load.expectNoFailure("the guard's login was revoked")

	// The service account of another pod does not get the keys.
	if status, body := s.send("", http.MethodPut, "auth/kubernetes/login", nil, data{"role": "ati-guard", "jwt": c.token("agents", "agent", "--audience=later")}); status != http.StatusForbidden {
		t.Errorf("the service account of the agents logs in as a guard: %d %s", status, body)
	}
}

// A rollout of the guard's Deployment rejects no call.
func testKubernetesRollout(t *testing.T, c *kube) {
	s := startGuarded(t, false, time.Hour)
	c.connect(s)
	c.allowGuards(s)
	token := s.mint("r", nil)
	service := startService(t)
	running := c.startGuard(s)
	service.route(running)
	client := running.at(service)
	for i := range 2 {
		load := client.startLoad(8, func() string { return token })
		load.waitForCalls(50)
		next := c.startGuard(s) // ready
		service.route(running, next)
		load.waitForCalls(50)
		service.route(next) // for the time of the hook preStop
		load.waitForCalls(50)
		began := time.Now()
		if status := running.stop(sigterm); status != 0 {
			t.Errorf("the guard exits with %d", status)
		}
		t.Logf("the guard ended %v after SIGTERM", time.Since(began).Round(100*time.Millisecond))
		load.waitForCalls(50)
		load.expectNoFailure(fmt.Sprintf("rollout %d", i+1))
		running = next
	}
	// The load notices a rejected call: without the hook preStop, the Service has the address
	// of a guard that has ended.
	load := client.startLoad(8, func() string { return token })
	next := c.startGuard(s)
	service.route(running, next)
	load.waitForCalls(50)
	running.stop(sigterm)
	pollFor(t, time.Minute, "calls fail", func() error {
		if load.failed() == 0 {
			return fmt.Errorf("none did")
		}
		return nil
	})
	load.end()
	t.Logf("without preStop: %d of %d calls failed", load.failed(), load.failed()+load.succeeded())
}
