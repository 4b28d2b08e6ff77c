//go:build interop && kubernetes

package test

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"vault-plugin-secrets-ati/ati"
)

// The External Secrets Operator makes a Secret from the example, renews it, and reports what
// Vault denies.
func testKubernetesExternalSecrets(t *testing.T, c *kube) {
	s, signingKey := startEngine(t)
	c.connect(s)
	c.allowAgents(s)
	const example = "kubernetes/external-secrets.yaml"
	apply := func(changes map[string]string) {
		t.Helper()
		changes = maps.Clone(changes)
		changes["https://vault.example.com"] = s.addr
		c.kubectl("apply", "--server-side", "--force-conflicts", "--validate=strict", "-f", modifiedExample(t, example, changes))
	}
	token := func() (string, error) {
		secret, err := c.secret("agents", "ati-session")
		return secret["ATI_SESSION_TOKEN"], err
	}
	// waitFor waits for a condition of the ExternalSecret.
	waitFor := func(what, status, event string) {
		t.Helper()
		began := time.Now()
		pollFor(t, 90*time.Second, what, func() error {
			got, err := c.ready("agents", "externalsecret", "ati-session")
			if events := c.events("agents"); err != nil || got.Status != status || !strings.Contains(events, event) {
				return fmt.Errorf("condition %+v (%v), events:\n%s", got, err, events)
			}
			return nil
		})
		got, _ := c.ready("agents", "externalsecret", "ati-session")
		t.Logf("%s: after %v, the condition is %+v", what, time.Since(began).Round(100*time.Millisecond), got)
	}

	// The example, which differs only in the address.
	began := time.Now()
	apply(map[string]string{})
	c.run(requireEnv(t, "EXTERNAL_SECRETS"), []string{"KUBECONFIG=" + c.kubeconfig}, "--metrics-addr=0", "--loglevel=debug",
		"--enable-cluster-store-reconciler=false", "--enable-cluster-external-secret-reconciler=false", "--enable-push-secret-reconciler=false", "--enable-cluster-push-secret-reconciler=false")
	waitFor("the example", "True", "")
	t.Logf("the Secret was created %v after the operator started", time.Since(began).Round(100*time.Millisecond))
	secret, err := c.secret("agents", "ati-session")
	if err != nil {
		t.Fatal(err)
	}
	if keys := slices.Sorted(maps.Keys(secret)); !slices.Equal(keys, []string{"ATI_PROXY_URL", "ATI_SESSION_TOKEN"}) || secret["ATI_PROXY_URL"] != "https://ati.example.com" {
		t.Errorf("the Secret has %v, and the proxy %q", keys, secret["ATI_PROXY_URL"])
	}
	first, err := ati.ValidateToken(secret["ATI_SESSION_TOKEN"], parseSecret(t, signingKey))
	if err != nil {
		t.Fatal(err)
	}
	login := s.write("", "auth/kubernetes/login", data{"role": "ati-sandbox", "jwt": c.token("agents", "agent", "--audience=vault")}).Auth
	if diff := cmp.Diff([]string{login.EntityID, "tool:web_search"}, []string{first.Subject, first.Scope}); diff != "" {
		t.Errorf("the token (-want +got):\n%s", diff)
	}

	// It renews the token.
	quick := map[string]string{"refreshInterval: 40m": "refreshInterval: 2s"}
	apply(quick)
	renewals := func() map[string]bool {
		t.Helper()
		seen := map[string]bool{}
		pollFor(t, time.Minute, "four tokens", func() error {
			got, err := token()
			if err != nil {
				return err
			}
			if seen[got] = true; len(seen) < 4 {
				return fmt.Errorf("%d tokens", len(seen))
			}
			return nil
		})
		return seen
	}
	for token := range renewals() {
		if _, err := ati.ValidateToken(token, parseSecret(t, signingKey)); err != nil {
			t.Error(err)
		}
	}

	// It logs in for each token, and does not revoke its logins. Batch tokens leave nothing.
	logins := func() int {
		t.Helper()
		list, err := s.client(s.root).Logical().List("auth/token/accessors")
		if err != nil {
			t.Fatal(err)
		}
		return len(list.Data["keys"].([]any))
	}
	if got := logins(); got < 2+4 { // of root and of this test
		t.Errorf("after four tokens, there are only %d logins", got)
	}
	s.write(s.root, "auth/kubernetes/role/ati-sandbox", data{"token_type": "batch", "token_ttl": "1m"})
	poll(t, "the last login that is not a batch token", func() error {
		before := logins()
		renewals()
		if after := logins(); after != before {
			return fmt.Errorf("%d logins, and then %d", before, after)
		}
		return nil
	})

	// It reports what Vault denies, keeps the Secret, and recovers.
	s.write(s.root, "ati/roles/sandbox", data{"disabled": true})
	waitFor("a disabled role", "False", "disabled")
	t.Logf("events:\n%s", c.events("agents"))
	kept, err := token()
	if err != nil || kept == "" {
		t.Errorf("the Secret of a disabled role has the token %q (%v)", kept, err)
	}
	s.write(s.root, "ati/roles/sandbox", data{"disabled": false})
	waitFor("the role is enabled again", "True", "")
	poll(t, "another token", func() error {
		if got, err := token(); err != nil || got == kept {
			return errors.Join(err, errors.New("the same token"))
		}
		return nil
	})

	// Without the method it sends a GET without the parameters, which the policy denies.
	apply(map[string]string{"refreshInterval: 40m": "refreshInterval: 2s", "  method: POST # sends the parameters in the body\n": ""})
	waitFor("a GET", "False", "403")
	t.Logf("events:\n%s", c.events("agents"))
	// With a policy that also grants read, the Secret has the fields of a read instead.
	if err := s.client(s.root).Sys().PutPolicy("ati-sandbox", `path "ati/creds/sandbox" { capabilities = ["read"] }`); err != nil {
		t.Fatal(err)
	}
	waitFor("a GET that the policy allows", "True", "")
	secret, err = c.secret("agents", "ati-session")
	t.Logf("with a GET the Secret has %v (%v)", slices.Sorted(maps.Keys(secret)), err)
	if secret["ATI_SESSION_TOKEN"] != "" || secret["token"] == "" {
		t.Errorf("with a GET, the Secret has %v", slices.Sorted(maps.Keys(secret)))
	}
}
