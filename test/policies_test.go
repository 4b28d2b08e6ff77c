package test

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"vault-plugin-secrets-ati/ati"
)

// broadPolicy is a rule that a user might write without considering each path.
const broadPolicy = `path "ati/*" { capabilities = ["create", "read", "update", "patch", "delete", "list"] }`

// policyColumns are broadPolicy and the policies in examples/policies. policyRows has the
// expected status for each operation and each column. The rows run from top to bottom, and
// the columns from left to right, so that the admin, who may change things, comes last.
var policyColumns = []string{"broad", "orchestrator", "sandbox", "proxy-host", "proxy-guard", "security-auditor", "admin"}

var policyRows = []struct {
	request string
	data    data
	want    [7]int
}{
	//                                                                        broad orch. sandbox host guard auditor admin
	{"GET ati/config", nil, [7]int{403, 403, 403, 403, 403, 200, 200}},
	{"PUT ati/config", data{"issuer": "ati-orchestrator"}, [7]int{403, 403, 403, 403, 403, 403, 204}},
	{"PATCH ati/config", data{"max_ttl": nil}, [7]int{403, 403, 403, 403, 403, 403, 204}},
	{"GET ati/config/rotate", nil, [7]int{403, 403, 403, 403, 403, 200, 200}},
	{"PUT ati/config/rotate/stage", data{"proxy_url": "https://green.example.com"}, [7]int{403, 403, 403, 403, 403, 403, 200}},
	{"PUT ati/config/rotate/activate", nil, [7]int{403, 403, 403, 403, 403, 403, 200}},
	{"PUT ati/config/rotate/rollback", nil, [7]int{403, 403, 403, 403, 403, 403, 200}},
	{"PUT ati/config/rotate/retire", nil, [7]int{403, 403, 403, 403, 403, 403, 200}},
	{"DELETE ati/config/rotate/stage", nil, [7]int{403, 403, 403, 403, 403, 403, 204}},
	{"PUT ati/config/rotate", nil, [7]int{403, 403, 403, 403, 403, 403, 200}},
	{"GET ati/proxy-env", nil, [7]int{403, 403, 403, 200, 403, 403, 403}},
	{"GET ati/proxy-env/{version}", nil, [7]int{403, 403, 403, 200, 403, 403, 403}},
	{"GET ati/jwks", nil, [7]int{200, 200, 200, 200, 200, 200, 200}}, // public keys, unauthenticated
	{"LIST ati/roles", nil, [7]int{200, 403, 403, 403, 403, 200, 200}},
	{"GET ati/roles/{name}", nil, [7]int{200, 403, 403, 403, 403, 200, 200}},
	{"PUT ati/roles/{name}", data{"description": "changed"}, [7]int{204, 403, 403, 403, 403, 403, 204}},
	{"PATCH ati/roles/{name}", data{"description": nil}, [7]int{204, 403, 403, 403, 403, 403, 204}},
	{"DELETE ati/roles/nobody", nil, [7]int{204, 403, 403, 403, 403, 403, 204}},
	{"GET ati/creds/{name}", nil, [7]int{200, 403, 403, 403, 403, 403, 403}}, // as sent by a client that loses its parameters
	{"PUT ati/creds/{name}", data{"ttl": "1m"}, [7]int{200, 200, 403, 403, 403, 403, 403}},
	{"GET ati/creds/sandbox", nil, [7]int{200, 403, 403, 403, 403, 403, 403}},
	{"PUT ati/creds/sandbox", data{"ttl": "1m"}, [7]int{200, 403, 200, 403, 403, 403, 403}},
	{"PUT ati/creds/sandbox", data{"agent_id": "sandbox:2"}, [7]int{400, 403, 400, 403, 403, 403, 403}},
	{"PUT ati/batch/{name}", data{"agent_ids": "sandbox:1"}, [7]int{200, 200, 403, 403, 403, 403, 403}},
	{"PUT ati/batch/sandbox", data{"agent_ids": "sandbox:1"}, [7]int{400, 403, 403, 403, 403, 403, 403}},
	{"GET ati/check/{name}", nil, [7]int{200, 403, 403, 403, 403, 200, 200}},
	{"PUT ati/check/{name}", data{"tool": "web_search"}, [7]int{200, 403, 403, 403, 403, 200, 200}},
	{"PUT ati/validate", data{"token": "x"}, [7]int{200, 403, 403, 403, 403, 200, 200}},
	{"PUT ati/inspect", data{"token": "x"}, [7]int{200, 403, 403, 403, 403, 200, 200}},
	{"PUT ati/revoke", data{"agent_id": "sandbox:1"}, [7]int{403, 403, 403, 403, 403, 403, 200}},
	{"PUT ati/revoke/{name}", data{"agent_id": "sandbox:1"}, [7]int{200, 200, 403, 403, 403, 403, 403}},
	{"PUT ati/revoke/sandbox", data{"agent_id": "sandbox:1"}, [7]int{400, 403, 403, 403, 403, 403, 403}},
	{"LIST ati/revoked", nil, [7]int{200, 403, 403, 403, 403, 200, 200}},
	{"GET ati/revoked", nil, [7]int{200, 403, 403, 403, 403, 200, 200}},
	{"GET ati/guard", nil, [7]int{403, 403, 403, 403, 200, 403, 403}},
	// Vault's own paths that docs/audit.md and docs/rotate-without-guard.md use.
	{"PUT sys/audit-hash/file", data{"input": "sandbox:1"}, [7]int{403, 403, 403, 403, 403, 200, 200}},
	{"GET identity/entity/id/nobody", nil, [7]int{403, 403, 403, 403, 403, 404, 403}},
	{"DELETE ati/config", nil, [7]int{403, 403, 403, 403, 403, 403, 200}}, // returns a warning
}

func TestPolicies_EveryPath(t *testing.T) {
	t.Parallel()
	s, secret := startEngine(t)
	known, paths := s.operations()
	if len(known) < 24 || len(paths) < 16 {
		t.Errorf("the OpenAPI document has only %d operations on %d paths", len(known), len(paths))
	}

	tokens := map[string]string{"broad": s.policy("broad", broadPolicy)}
	files, err := filepath.Glob("../examples/policies/*.hcl")
	if err != nil {
		t.Fatal(err)
	}
	s.vault(s.root, "auth", "enable", "userpass")
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".hcl")
		if !slices.Contains(policyColumns, name) {
			t.Errorf("%s has no column", file)
		}
		s.vault(s.root, "policy", "write", name, file)
		s.write(s.root, "auth/userpass/users/"+name, data{"password": "x", "token_policies": name, "token_no_default_policy": true})
		tokens[name] = s.write("", "auth/userpass/login/"+name, data{"password": "x"}).Auth.ClientToken
	}
	if len(tokens) != len(policyColumns) {
		t.Fatalf("the policies are %v", slices.Sorted(maps.Keys(tokens)))
	}
	s.write(s.root, "ati/roles/researcher", data{"tools": "web_search", "allowed_agent_ids": "sandbox:*"})
	s.write(s.root, "ati/roles/sandbox", data{"tools": "web_search", "subject": "sandbox:1"})
	at := strings.NewReplacer("{name}", "researcher", "{version}", "1")

	// Operations that the engine does not support fail under every policy.
	for _, path := range paths {
		for _, method := range []string{"GET", "LIST", "PUT", "DELETE", "PATCH"} {
			if slices.Contains(known, method+" "+path) {
				continue
			}
			for name, token := range tokens {
				if got, body := s.send(token, method, at.Replace(path), nil, nil); got < 400 || got >= 500 {
					t.Errorf("%s: %s %s returns %d: %s", name, method, path, got, body)
				}
			}
		}
	}

	keys := []string{secret}
	before := s.read(s.root, "ati/config/rotate").Data
	for _, row := range policyRows {
		known = slices.DeleteFunc(known, func(request string) bool {
			return request == row.request || request == strings.NewReplacer("/nobody", "/{name}").Replace(row.request)
		})
		method, path, _ := strings.Cut(at.Replace(row.request), " ")
		if method == "GET" && strings.HasPrefix(path, "ati/check/") {
			path += "?tool=web_search"
		}
		if path == "ati/proxy-env/1" { // the existing version
			path = fmt.Sprintf("ati/proxy-env/%v", before["current_version"])
		}
		for i, name := range policyColumns {
			got, body := s.send(tokens[name], method, path, nil, row.data)
			if got != row.want[i] {
				t.Errorf("%s: %s returns %d, want %d: %s", name, row.request, got, row.want[i], body)
			}
			if name == "proxy-host" || name == "proxy-guard" {
				continue
			}
			for _, key := range keys {
				if strings.Contains(body, key) {
					t.Errorf("%s: %s returns the key", name, row.request)
				}
			}
			// All columns before admin leave the key and the proxy URL unchanged.
			if name == "security-auditor" {
				if diff := cmp.Diff(before, s.read(s.root, "ati/config/rotate").Data); diff != "" {
					t.Fatalf("%s changed the key versions (-before +after):\n%s", row.request, diff)
				}
			}
		}
		if strings.HasPrefix(path, "ati/config") && row.request != "DELETE ati/config" {
			before = s.read(s.root, "ati/config/rotate").Data
			keys = append(keys, s.read(s.root, "ati/proxy-env").Data["ATI_JWT_SECRET"].(string))
		}
	}
	if len(known) > 0 {
		t.Errorf("policyRows has no row for %q: add one, with the status under each policy", known)
	}
	if keys = slices.Compact(keys); len(keys) < 3 {
		t.Errorf("the test used only %d keys", len(keys))
	}
}

// A wrapped response contains no token. It can be unwrapped once.
func TestResponseWrapping(t *testing.T) {
	t.Parallel()
	s, secret := startEngine(t)
	s.write(s.root, "ati/roles/researcher", data{"tools": "web_search", "allowed_agent_ids": "*"})
	orchestrator := s.policy("orchestrator", string(readFile(t, "../examples/policies/orchestrator.hcl")))
	host := s.policy("proxy-host", string(readFile(t, "../examples/policies/proxy-host.hcl")))
	guard := s.policy("proxy-guard", string(readFile(t, "../examples/policies/proxy-guard.hcl")))
	reader := s.policy("orchestrator-read", `path "ati/creds/researcher" { capabilities = ["read"] }`)
	for request, caller := range map[string]string{
		"GET ati/creds/researcher": reader, "PUT ati/creds/researcher": orchestrator, "PUT ati/batch/researcher": orchestrator,
		"GET ati/proxy-env": host, "GET ati/proxy-env/1": host, "GET ati/guard": guard,
	} {
		method, path, _ := strings.Cut(request, " ")
		d := data{}
		if strings.Contains(path, "batch") {
			d = data{"agent_ids": "token-orchestrator"}
		} else if method == "GET" {
			d = nil
		}
		got, body := s.send(caller, method, path, http.Header{"X-Vault-Wrap-Ttl": {"60s"}}, d)
		var wrapped struct {
			Data     data
			WrapInfo struct{ Token string } `json:"wrap_info"`
		}
		if err := json.Unmarshal([]byte(body), &wrapped); err != nil || got != 200 || wrapped.Data != nil || wrapped.WrapInfo.Token == "" {
			t.Fatalf("%s returns %d: %v", request, got, err)
		}
		if jwts.MatchString(body) || strings.Contains(body, secret) {
			t.Errorf("%s: the wrapped response contains a token or the secret", request)
		}
		unwrapped, err := s.client(wrapped.WrapInfo.Token).Logical().Unwrap("")
		if err != nil {
			t.Fatalf("%s: %v", request, err)
		}
		if tokens, ok := unwrapped.Data["tokens"].(data); ok {
			unwrapped.Data["token"] = tokens["token-orchestrator"]
		}
		if caller == host || caller == guard {
			if b, err := json.Marshal(unwrapped.Data); err != nil || !strings.Contains(string(b), secret) {
				t.Errorf("%s: the unwrapped response does not contain the secret", request)
			}
		} else if subject := claims(t, secret, unwrapped).Subject; !strings.HasPrefix(subject, "token-orchestrator") {
			t.Errorf("%s: the token is for %q", request, subject)
		}
		if _, err := s.client(wrapped.WrapInfo.Token).Logical().Unwrap(""); httpStatus(t, err) != 400 && httpStatus(t, err) != 403 {
			t.Errorf("%s: unwrapping again: %v", request, err)
		}
	}
}

// Requests that bypass allowed_parameters or denied_parameters of a policy still get only
// what the role grants. Each restricted parameter is sent in every form that Vault might
// not recognize.
func TestPolicies_SmuggledParameters(t *testing.T) {
	t.Parallel()
	s, secret := startEngine(t)
	key := parseSecret(t, secret)
	s.write(s.root, "ati/roles/r", data{"tools": "web_search,arxiv:*", "skills": "summarize", "rate": "tool:web_search=30/hour", "ttl": "1h", "allowed_agent_ids": "sandbox:*", "allowed_job_ids": "job-*"})
	s.write(s.root, "ati/roles/admin", data{"scopes": "*", "allowed_agent_ids": "*", "ttl": "24h"})
	rules := func(list string) string {
		return fmt.Sprintf(`path "ati/creds/r" {
  capabilities = ["read", "update"]
  %s
}
path "ati/batch/r" {
  capabilities = ["update"]
  %s
}`, list, list)
	}
	policies := map[string]string{
		"allowed": s.policy("allowed", rules(`allowed_parameters = { "tools" = ["web_*"], "agent_id" = ["sandbox:a"], "agent_ids" = ["sandbox:a"], "ttl" = ["10m"], "rate" = ["tool:web_search=1/hour"] }`)),
		"denied":  s.policy("denied", rules(`denied_parameters = { "tools" = ["shell"], "scopes" = [], "agent_id" = ["sandbox:b", "root"], "agent_ids" = ["sandbox:b", "root"], "job_id" = [], "ttl" = ["2h"], "rate" = [] }`)),
	}
	// For each parameter: a value that role and policies allow, one that the role does not
	// grant, and one that the role grants and the policies deny.
	values := []struct{ name, good, bad, denied string }{
		{"tools", "web_search", "shell", "arxiv:x"},
		{"tools", "web_search", "*", "arxiv:*"},
		{"scopes", "tool:web_search", "*", "skill:summarize"},
		{"scopes", "tool:web_search", "tool:web_search tool:shell", "tool:arxiv:x"},
		{"agent_id", "sandbox:a", "root", "sandbox:b"},
		{"job_id", "job-1", "root", "job-2"},
		{"ttl", "10m", "2h", "30m"},
		{"rate", "tool:web_search=1/hour", "tool:web_search=31/hour", "tool:web_search=2/hour"},
		{"rate", "tool:web_search=1/hour", "*=100/s", "tool:web_search=1/h"},
		{"name", "r", "admin", "nobody"},
	}
	requests, minted := 0, map[string]int{}
	try := func(policy, method, path, query, body string) {
		t.Helper()
		requests++
		req, err := http.NewRequestWithContext(t.Context(), method, s.addr+"/v1/"+path+"?"+query, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("X-Vault-Token", policies[policy])
		resp, err := recordingTransport{http.DefaultTransport, &s.leaks}.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		what := fmt.Sprintf("%s: %s %s?%s %s", policy, method, path, query, body)
		found := jwts.FindAllString(string(text), -1)
		switch {
		case resp.StatusCode == 200 && len(found) > 0:
		case resp.StatusCode == 500 && strings.Contains(string(text), "duplicate key '"): // from Vault
			return
		case (resp.StatusCode == 400 || resp.StatusCode == 403) && len(found) == 0:
			return
		default:
			t.Errorf("%s returns %d with %d tokens", what, resp.StatusCode, len(found))
		}
		minted[policy]++
		for _, token := range found {
			c, err := ati.ValidateToken(token, key)
			if err != nil {
				t.Errorf("%s: %v", what, err)
				continue
			}
			for _, claim := range exceedsRole(c) {
				t.Errorf("%s: %s", what, claim)
			}
		}
	}
	forms := func(quote func(string) string, values ...string) []string {
		quoted := make([]string, len(values))
		for i, v := range values {
			quoted[i] = quote(v)
		}
		return quoted
	}
	literal := func(v string) string { b, _ := json.Marshal(v); return string(b) }
	for policy := range policies {
		for _, v := range values {
			for _, pair := range [][]string{{v.good, v.bad}, {v.bad, v.good}, {v.good, v.denied}, {v.denied, v.good}, {v.bad}, {v.denied}} {
				queries := make([]string, len(pair))
				for i, value := range pair {
					queries[i] = v.name + "=" + url.QueryEscape(value)
				}
				list := strings.Join(forms(literal, pair...), ",")
				bodies := []string{
					fmt.Sprintf(`{%q:[%s]}`, v.name, list),
					fmt.Sprintf(`{%q:[[%s]]}`, v.name, list),
					fmt.Sprintf(`{%q:%s}`, v.name, literal(strings.Join(pair, ","))),
					fmt.Sprintf(`{%q:{"a":%s}}`, v.name, literal(pair[0])),
					fmt.Sprintf(`{%q:%s,%q:%s}`, v.name, literal(pair[0]), v.name, literal(pair[len(pair)-1])),                  // given twice
					fmt.Sprintf(`{%q:%s,%q:%s}`, v.name, literal(pair[0]), strings.ToUpper(v.name), literal(pair[len(pair)-1])), // in another case
					fmt.Sprintf(`{"data":{%q:%s}}`, v.name, literal(pair[0])),
				}
				if v.name == "rate" {
					name, rate, _ := strings.Cut(pair[0], "=")
					bodies = append(bodies, fmt.Sprintf(`{"rate":{%q:%q}}`, name, rate))
				}
				joined := v.name + "=" + url.QueryEscape(strings.Join(pair, ","))
				for _, query := range []string{strings.Join(queries, "&"), joined, strings.ToUpper(joined[:1]) + joined[1:], v.name + "%00" + joined[len(v.name):]} {
					try(policy, "GET", "ati/creds/r", query, "")
				}
				for i, body := range bodies {
					try(policy, "PUT", "ati/creds/r", "", body)
					if i%2 == 1 {
						continue
					}
					if v.name != "agent_id" {
						try(policy, "PUT", "ati/batch/r", "", strings.Replace(body, "{", `{"agent_ids":["sandbox:a"],`, 1))
					} else {
						try(policy, "PUT", "ati/batch/r", "", strings.ReplaceAll(body, "agent_id", "agent_ids"))
					}
				}
				// In both the query and the body, of which Vault uses one.
				try(policy, "PUT", "ati/creds/r", queries[0], bodies[0])
				try(policy, "POST", "ati/creds/r", queries[0], fmt.Sprintf(`{%q:%s}`, v.name, literal(pair[len(pair)-1])))
				try(policy, "GET", "ati/creds/r", queries[0], bodies[0])
			}
		}
	}
	t.Logf("%d requests; tokens: %v", requests, minted)
	for policy := range policies {
		if minted[policy] < 25 {
			t.Errorf("%s: only %d requests returned tokens", policy, minted[policy])
		}
	}
}

// exceedsRole returns the claims of a token that exceed the role r of
// TestPolicies_SmuggledParameters.
func exceedsRole(c *ati.Claims) (excess []string) {
	for _, scope := range strings.Fields(c.Scope) {
		if scope != "tool:web_search" && scope != "skill:summarize" && !strings.HasPrefix(scope, "tool:arxiv:") {
			excess = append(excess, "scope "+scope)
		}
	}
	if c.Scope == "" {
		excess = append(excess, "no scope")
	}
	if !strings.HasPrefix(c.Subject, "sandbox:") && !regexp.MustCompile(`^token-(allowed|denied)\z`).MatchString(c.Subject) {
		excess = append(excess, "sub "+c.Subject)
	}
	if c.JobID != "" && !strings.HasPrefix(c.JobID, "job-") {
		excess = append(excess, "job_id "+c.JobID)
	}
	if life := time.Duration(c.ExpiresAt-c.IssuedAt) * time.Second; life > time.Hour || life <= 0 {
		excess = append(excess, "a life of "+life.String())
	}
	if c.ATI == nil || len(c.ATI.Rate) != 1 || !slices.Contains([]string{"30/hour", "2/hour", "1/hour"}, c.ATI.Rate["tool:web_search"]) {
		excess = append(excess, fmt.Sprintf("the rates %+v", c.ATI))
	}
	return excess
}

// An orchestrator's policy allows requests for tokens of one role and denies all others.
func TestPolicies_Orchestrator(t *testing.T) {
	t.Parallel()
	s, _ := startEngine(t)
	s.write(s.root, "ati/roles/researcher", data{"tools": "web_search", "allowed_agent_ids": "*"})
	s.write(s.root, "ati/roles/admin", data{"scopes": "*"})
	orchestrator := s.policy("orchestrator", `
path "ati/creds/researcher" {
  capabilities       = ["read", "update"]
  allowed_parameters = { "agent_id" = ["sandbox:*"], "ttl" = [] }
}`)
	for name, c := range map[string]struct {
		method, path string
		data         data
		want         int
	}{
		"its token":                     {"GET", "ati/creds/researcher", nil, 200},
		"its token, narrowed":           {"PUT", "ati/creds/researcher", data{"agent_id": "sandbox:1", "ttl": "5m"}, 200},
		"its token, narrowed by query":  {"GET", "ati/creds/researcher?ttl=5m", nil, 200},
		"an agent_id of others":         {"PUT", "ati/creds/researcher", data{"agent_id": "other"}, 403},
		"a parameter beyond the policy": {"PUT", "ati/creds/researcher", data{"tools": "web_search"}, 403},
		"a query beyond the policy":     {"GET", "ati/creds/researcher?tools=web_search", nil, 403},
		"another role":                  {"GET", "ati/creds/admin", nil, 403},
		"a missing role":                {"GET", "ati/creds/nobody", nil, 403},
		"the list of roles":             {"LIST", "ati/roles", nil, 403},
		"its role":                      {"GET", "ati/roles/researcher", nil, 403},
		"a change of its role":          {"PUT", "ati/roles/researcher", data{"scopes": "*"}, 403},
		"the deletion of its role":      {"DELETE", "ati/roles/researcher", nil, 403},
		"config":                        {"GET", "ati/config", nil, 403},
		"a change of config":            {"PUT", "ati/config", data{"proxy_url": "https://evil.example.com"}, 403},
		"the deletion of config":        {"DELETE", "ati/config", nil, 403},
		"check":                         {"GET", "ati/check/researcher?tool=x", nil, 403},
		"validate":                      {"PUT", "ati/validate", data{"token": "x"}, 403},
		"inspect":                       {"PUT", "ati/inspect", data{"token": "x"}, 403},
		"the proxy's environment":       {"GET", "ati/proxy-env", nil, 403},
		"a version of it":               {"GET", "ati/proxy-env/1", nil, 403},
	} {
		if got := s.request(orchestrator, c.method, c.path, c.data); got != c.want {
			t.Errorf("%s: %s %s returns %d, want %d", name, c.method, c.path, got, c.want)
		}
	}

	// Globs in a policy match whole values: a comma-separated list passes, and only the
	// role rejects it.
	glob := s.policy("glob", `path "ati/creds/researcher" { capabilities = ["read"], allowed_parameters = { "tools" = ["web_*"] } }`)
	for query, want := range map[string]int{"tools=web_search": 200, "tools=shell": 403, "tools=web_search,shell": 400} {
		if got := s.request(glob, "GET", "ati/creds/researcher?"+query, nil); got != want {
			t.Errorf("%s returns %d, want %d", query, got, want)
		}
	}

	// A broad rule without sudo can neither read nor replace a key.
	broad := s.policy("broad", `path "ati/*" { capabilities = ["create", "read", "update", "delete", "list"] }`)
	for path, want := range map[string]int{"GET ati/proxy-env": 403, "GET ati/proxy-env/1": 403, "GET ati/config": 403, "PUT ati/config": 403, "DELETE ati/config": 403, "GET ati/roles/admin": 200, "LIST ati/roles": 200} {
		method, path, _ := strings.Cut(path, " ")
		if got := s.request(broad, method, path, data{"proxy_url": "https://evil.example.com"}); got != want {
			t.Errorf("broad: %s %s returns %d, want %d", method, path, got, want)
		}
	}
	admin := s.policy("admin", `path "ati/*" { capabilities = ["create", "read", "update", "delete", "list", "sudo"] }`)
	for _, path := range []string{"ati/config", "ati/proxy-env", "ati/proxy-env/1"} {
		if got := s.request(admin, "GET", path, nil); got != 200 {
			t.Errorf("admin: reading %s returns %d", path, got)
		}
	}
	host := s.policy("host", `path "ati/proxy-env" { capabilities = ["read", "sudo"] }`)
	for path, want := range map[string]int{"ati/proxy-env": 200, "ati/proxy-env/1": 403, "ati/config": 403, "ati/creds/admin": 403} {
		if got := s.request(host, "GET", path, nil); got != want {
			t.Errorf("the proxy host: reading %s returns %d, want %d", path, got, want)
		}
	}
}
