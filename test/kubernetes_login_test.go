//go:build interop && kubernetes

package test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// A pod's service account decides what the pod mints, and under which subject. The pod cannot
// choose another one.
func testKubernetesLogins(t *testing.T, c *kube) {
	s, secret := startEngine(t)
	accessor := c.connect(s)
	c.allowAgents(s)
	s.write(s.root, "ati/roles/other", data{"tools": "*"})
	login := func(token string) (status int, body string) {
		return s.send("", http.MethodPut, "auth/kubernetes/login", nil, data{"role": "ati-sandbox", "jwt": token})
	}
	agent := c.token("agents", "agent", "--audience=vault")
	auth := s.write("", "auth/kubernetes/login", data{"role": "ati-sandbox", "jwt": agent}).Auth

	// What the policy says, and nothing else.
	for try, want := range map[string]int{"PUT ati/creds/sandbox": 200, "GET ati/creds/sandbox": 403, "PUT ati/creds/other": 403, "GET ati/roles/sandbox": 403, "GET ati/guard": 403} {
		method, path, _ := strings.Cut(try, " ")
		if got := s.request(auth.ClientToken, method, path, nil); got != want {
			t.Errorf("%s returns %d, want %d", try, got, want)
		}
	}

	// The subject is that of the service account, by ID, name, or metadata.
	entity := s.read(s.root, "identity/entity/id/"+auth.EntityID)
	uid := entity.Data["aliases"].([]any)[0].(data)["name"].(string)
	if want := strings.TrimSpace(c.kubectl("get", "serviceaccount", "agent", "--namespace", "agents", "--output=jsonpath={.metadata.uid}")); uid != want {
		t.Errorf("the alias is %q, want the service account's UID %q", uid, want)
	}
	metadata := "{{identity.entity.aliases." + accessor + ".metadata."
	for template, want := range map[string]string{
		"{{identity.entity.id}}":            auth.EntityID,
		"{{identity.entity.name}}":          entity.Data["name"].(string),
		metadata + "service_account_name}}": "agent",
		"pod:" + metadata + "service_account_namespace}}:" + metadata + "service_account_name}}": "pod:agents:agent",
		"{{identity.entity.aliases." + accessor + ".name}}":                                      uid,
	} {
		s.write(s.root, "ati/roles/sandbox", data{"subject": template})
		if got := claims(t, secret, s.write(auth.ClientToken, "ati/creds/sandbox", nil)).Subject; got != want {
			t.Errorf("with the subject %s it is %q, want %q", template, got, want)
		}
		for _, parameter := range []string{"agent_id", "sub", "subject", "service_account_name", "metadata"} {
			if got := s.request(auth.ClientToken, "PUT", "ati/creds/sandbox", data{parameter: "second"}); got != 400 {
				t.Errorf("with the subject %s, %s=second returns %d", template, parameter, got)
			}
		}
	}
	// Nor can it at the login: the metadata are those of the TokenReview.
	forged := s.write("", "auth/kubernetes/login", data{"role": "ati-sandbox", "jwt": agent, "service_account_name": "second", "metadata": data{"service_account_name": "second"}}).Auth
	if got := forged.Metadata["service_account_name"]; got != "agent" || forged.EntityID != auth.EntityID {
		t.Errorf("with parameters of its own, the login is of %q", got)
	}

	// Other tokens do not log in.
	past := jwt.MapClaims{"exp": time.Now().Add(-time.Minute).Unix(), "iat": time.Now().Add(-time.Hour).Unix(), "nbf": time.Now().Add(-time.Hour).Unix()}
	future := jwt.MapClaims{"exp": time.Now().Add(30 * time.Minute).Unix()}
	if status, body := login(c.changedToken(agent, future)); status != 200 {
		t.Errorf("a token that the test signed: %d %s", status, body)
	}
	other := &kube{t: t}
	other.writeSigningKey()
	// A role without an audience accepts tokens for any.
	elsewhere := c.token("agents", "agent") // for the API server
	s.write(s.root, "auth/kubernetes/role/any-audience", data{"bound_service_account_names": "agent", "bound_service_account_namespaces": "agents", "token_policies": "ati-sandbox"})
	s.write("", "auth/kubernetes/login", data{"role": "any-audience", "jwt": elsewhere})
	for _, try := range []struct{ what, role, token string }{
		{"another service account", "ati-sandbox", c.token("agents", "second", "--audience=vault")},
		{"another namespace", "ati-sandbox", c.token("others", "agent", "--audience=vault")},
		{"an expired token", "ati-sandbox", c.changedToken(agent, past)},
		{"a token that another key signed", "ati-sandbox", other.changedToken(agent, nil)},
		{"the default token of a pod, for the API server", "ati-sandbox", elsewhere},
		{"no token", "ati-sandbox", ""},
		{"no role", "", agent},
	} {
		status, body := s.send("", http.MethodPut, "auth/kubernetes/login", nil, data{"role": try.role, "jwt": try.token})
		if status != http.StatusForbidden && status != http.StatusBadRequest {
			t.Errorf("%s: %d %s", try.what, status, body)
		}
		t.Logf("%s: %d %s", try.what, status, strings.TrimSpace(body))
	}

	// The token of a pod ends with the pod, after the time for which the API server keeps a
	// result.
	pod := "{kind: Pod, apiVersion: v1, metadata: {name: short, namespace: agents}, spec: {serviceAccountName: agent, containers: [{name: a, image: a}]}}"
	c.apply(pod)
	ofPod := c.token("agents", "agent", "--audience=vault", "--bound-object-kind=Pod", "--bound-object-name=short")
	if status, body := login(ofPod); status != http.StatusOK {
		t.Fatalf("the token of a pod: %d %s", status, body)
	}
	c.kubectl("delete", "pod", "short", "--namespace", "agents", "--force", "--grace-period=0")
	deleted := time.Now()
	poll(t, "the token of a deleted pod is rejected", func() error {
		if status, body := login(ofPod); status != http.StatusForbidden {
			return fmt.Errorf("%d %s", status, body)
		}
		return nil
	})
	t.Logf("the token of a deleted pod is rejected after %v", time.Since(deleted).Round(100*time.Millisecond))
}
