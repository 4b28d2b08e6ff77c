//go:build interop && kubernetes

package test

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// The objects of the example fit each other, and the guard's configuration.
func testKubernetesGuardObjects(t *testing.T, c *kube) {
	c.apply(c.kubectl("kustomize", "../examples/kubernetes/guard"))
	var config struct{ Listen, Drain string }
	if err := json.Unmarshal([]byte(c.guardConfig()), &config); err != nil {
		t.Fatal(err)
	}
	_, port, err := net.SplitHostPort(config.Listen)
	if err != nil {
		t.Fatal(err)
	}
	const pod, container, labels = "{.spec.template.spec", "{.spec.template.spec.containers[*]", `{"app":"ati-guard"}`
	want := map[[2]string]string{
		{"deployment", "{.spec.template.metadata.labels}"}:                               labels,
		{"deployment", container + ".ports}"}:                                            `[{"containerPort":` + port + `,"name":"http","protocol":"TCP"}]`,
		{"deployment", container + ".readinessProbe.httpGet}"}:                           `{"path":"/health","port":"http","scheme":"HTTP"}`,
		{"deployment", container + ".livenessProbe.tcpSocket}"}:                          `{"port":"http"}`,
		{"deployment", "{.spec.strategy.rollingUpdate}"}:                                 `{"maxSurge":1,"maxUnavailable":0}`,
		{"deployment", pod + ".volumes[*].secret}"}:                                      "",
		{"deployment", pod + ".securityContext.runAsUser}"}:                              "0",
		{"deployment", container + `.volumeMounts[?(@.name=="vault-login")].mountPath}`}: "/var/run/secrets/kubernetes.io/serviceaccount",
		{"service", "{.spec.selector}"}:                                                  labels,
		{"service", "{.spec.ports}"}:                                                     `[{"name":"http","port":` + port + `,"protocol":"TCP","targetPort":"http"}]`,
		{"poddisruptionbudget", "{.spec}"}:                                               `{"minAvailable":1,"selector":{"matchLabels":` + labels + `}}`,
		{"networkpolicy", "{.spec.podSelector.matchLabels}"}:                             labels,
		{"networkpolicy", "{.spec.policyTypes}"}:                                         `["Ingress"]`,
		{"networkpolicy", "{.spec.ingress[*].ports}"}:                                    `[{"port":"http","protocol":"TCP"}]`,
		{"networkpolicy", "{.spec.ingress[*].from}"}:                                     `[{"namespaceSelector":{"matchLabels":{"kubernetes.io/metadata.name":"agents"}}}]`,
	}
	got := map[[2]string]string{}
	for field := range want {
		got[field] = c.guardField(field[0], field[1])
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the objects (-want +got):\n%s", diff)
	}
	// The pod is not killed before the requests in flight have ended.
	var grace, preStop int
	if _, err := fmt.Sscan(c.guardField("deployment", pod+".terminationGracePeriodSeconds} "+container+".lifecycle.preStop.sleep.seconds}"), &grace, &preStop); err != nil {
		t.Fatal(err)
	}
	if drain := 120; config.Drain != "" || grace <= preStop+drain {
		t.Errorf("the pod has %d seconds to end, for preStop %d and drain %q (default: %d seconds)", grace, preStop, config.Drain, drain)
	}
}

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
