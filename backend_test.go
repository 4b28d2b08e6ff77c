package atisecrets_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	atisecrets "vault-plugin-secrets-ati"
)

func TestEachPathDescribesItselfWhole(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	if got, want := len(m.b.Paths), len(paths); got != want {
		t.Errorf("the backend has %d paths, and this test knows %d", got, want)
	}
	for name, want := range paths {
		p := m.b.Route(name)
		if p == nil {
			t.Fatalf("no path %s", name)
		}
		if p.HelpSynopsis == "" || p.HelpDescription == "" {
			t.Errorf("%s has no help", name)
		}
		operations := slices.Sorted(maps.Keys(p.Operations))
		if diff := cmp.Diff(slices.Sorted(slices.Values(want)), operations); diff != "" {
			t.Errorf("%s: operations (-want +got):\n%s", name, diff)
		}
		for field, s := range p.Fields {
			if s.Description == "" {
				t.Errorf("%s: field %s has no description", name, field)
			}
			if attrs := s.DisplayAttrs; attrs == nil || attrs.Name == "" || attrs.Group == "" && !attrs.Identifier {
				t.Errorf("%s: field %s has the display attributes %+v", name, field, attrs)
			}
		}
		for op, handler := range p.Operations {
			properties := handler.Properties()
			if properties.Summary == "" || len(properties.Responses) != 1 {
				t.Errorf("%s %s: summary %q and %d responses", op, name, properties.Summary, len(properties.Responses))
			}
			for _, responses := range properties.Responses {
				for field, s := range responses[0].Fields {
					if s.Description == "" {
						t.Errorf("%s %s: response field %s has no description", op, name, field)
					}
				}
			}
			if writes := (p.ExistenceCheck != nil || strings.HasPrefix(name, "config/")) && op != logical.ReadOperation; properties.ForwardPerformanceStandby != writes || properties.ForwardPerformanceSecondary != writes {
				t.Errorf("%s %s: forwarding is %v, want %v", op, name, properties.ForwardPerformanceStandby, writes)
			}
		}
	}
}

func TestOpenAPIHasAnOperationIDOfItsOwnForEachOperation(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	resp, err := m.request(logical.HelpOperation, "", nil)
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(resp.Data["openapi"])
	if err != nil {
		t.Fatal(err)
	}
	var doc struct {
		Paths map[string]map[string]json.RawMessage
	}
	if err := json.Unmarshal(b, &doc); err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for path, methods := range doc.Paths {
		for method, raw := range methods {
			var op struct{ OperationID string }
			if json.Unmarshal(raw, &op) == nil && op.OperationID != "" {
				got[method+" "+path] = op.OperationID
			}
		}
	}
	want := map[string]string{
		"get /proxy-env":               "ati-read-proxy-environment",
		"get /proxy-env/{version}":     "ati-read-proxy-environment-version",
		"get /config":                  "ati-read-configuration",
		"post /config":                 "ati-configure",
		"delete /config":               "ati-delete-configuration",
		"get /config/rotate":           "ati-read-key-versions",
		"post /config/rotate":          "ati-rotate-key",
		"post /config/rotate/stage":    "ati-stage-key",
		"delete /config/rotate/stage":  "ati-drop-staged-key",
		"post /config/rotate/activate": "ati-activate-staged-key",
		"post /config/rotate/rollback": "ati-roll-back-key",
		"post /config/rotate/retire":   "ati-retire-previous-key",
		"get /jwks":                    "ati-read-jwks",
		"get /roles/":                  "ati-list-roles",
		"get /roles/{name}":            "ati-read-role",
		"post /roles/{name}":           "ati-write-role",
		"delete /roles/{name}":         "ati-delete-role",
		"get /creds/{name}":            "ati-generate-credentials",
		"post /batch/{name}":           "ati-generate-credentials-batch",
		"post /creds/{name}":           "ati-generate-credentials-with-parameters",
		"get /check/{name}":            "ati-check-role",
		"post /check/{name}":           "ati-check-role-with-parameters",
		"post /validate":               "ati-validate-token",
		"post /inspect":                "ati-inspect-token",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("operation ids (-want +got):\n%s", diff)
	}
}

func TestKeysAreRootProtectedAndSealWrappedAndFieldsWithSecretsAreSensitive(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	want := &logical.Paths{Root: []string{"config", "config/*", "proxy-env", "proxy-env/*"}, Unauthenticated: []string{"jwks"}, SealWrapStorage: []string{"config", "role/"}}
	if diff := cmp.Diff(want, m.b.SpecialPaths()); diff != "" {
		t.Errorf("special paths (-want +got):\n%s", diff)
	}
	creds := m.returned(logical.ReadOperation, "creds/r")
	for _, f := range []*framework.FieldSchema{
		m.b.Route("config").Fields["secret"], m.b.Route("config").Fields["private_key"], m.b.Route("config/rotate").Fields["secret"], m.b.Route("config/rotate/stage").Fields["private_key"], m.b.Route("validate").Fields["token"], m.b.Route("inspect").Fields["token"],
		creds["token"], creds["ATI_SESSION_TOKEN"], m.returned(logical.UpdateOperation, "batch/r")["tokens"], m.returned(logical.ReadOperation, "proxy-env")["ATI_JWT_SECRET"],
	} {
		if f.DisplayAttrs == nil || !f.DisplayAttrs.Sensitive {
			t.Errorf("%q is not sensitive", f.Description)
		}
	}
}

func TestFactoryReportsItsVersionAndNeedsAConfiguration(t *testing.T) {
	t.Parallel()
	b, err := atisecrets.Factory("v1.2.3")(t.Context(), &logical.BackendConfig{System: &logical.StaticSystemView{}})
	if err != nil {
		t.Fatal(err)
	}
	if got := b.(logical.PluginVersioner).PluginVersion().Version; got != "v1.2.3" {
		t.Errorf("version %q", got)
	}
	if b.Type() != logical.TypeLogical {
		t.Errorf("type %v", b.Type())
	}
	if _, err := atisecrets.Factory("v1.2.3")(t.Context(), nil); err == nil {
		t.Error("no error without a configuration")
	}
}

// The promise: an unknown parameter is a 400 on every path, and so is null.
func TestUnknownParametersAreRefusedOnEveryPath(t *testing.T) {
	t.Parallel()
	known := map[string]string{
		"config":        "accepted_audiences, algorithm, allowed_scopes, audience, issuer, max_ttl, private_key, proxy_url, secret",
		"config/rotate": "algorithm, private_key, proxy_url, secret", "config/rotate/stage": "algorithm, private_key, proxy_url, secret",
		"config/rotate/activate": "none", "config/rotate/rollback": "none", "config/rotate/retire": "none", "jwks": "none",
		"roles/":    "none",
		"roles/r":   "allowed_agent_ids, allowed_job_ids, allowed_sandbox_ids, audience, description, disabled, generate_lease, job_id, max_ttl, rate, sandbox_id, scopes, skills, subject, tools, ttl",
		"proxy-env": "none", "proxy-env/1": "none",
		"creds/r":  "agent_id, format, job_id, proxy_url, rate, sandbox_id, scopes, skills, tools, ttl",
		"batch/r":  "agent_ids, proxy_url, rate, scopes, skills, tools, ttl",
		"check/r":  "scope, skill, tool",
		"validate": "audience, issuer, leeway, scope, token",
		"inspect":  "token",
	}
	m := configured(t, nil, nil)
	for path, operations := range paths {
		for _, op := range operations {
			m.refused(op, path, data{"toolz": "x", "zz": "y"}, fmt.Sprintf("unknown parameter \"toolz\"; this path takes %s", known[path]))
			for field := range m.b.Route(path).Fields {
				if field == "name" || field == "version" {
					m.refused(op, path, data{field: "7"}, fmt.Sprintf("parameter %q stands in the path and can't be given again", field))
				} else {
					m.refused(op, path, data{field: nil}, fmt.Sprintf("parameter %q is null; leave it out, or give it a value", field))
				}
			}
		}
	}
}

// The promise: no error contains a secret or a token. The framework's own
// errors quote a value of the wrong type.
// A key or a token in the wrong place is refused before anything quotes it: some
// of what an engine says stands in Vault's audit log in clear.
func TestAKeyInTheWrongPlaceIsNotQuoted(t *testing.T) {
	t.Parallel()
	m := configured(t, nil, nil)
	token := m.ok(logical.ReadOperation, "creds/r", nil).Data["token"].(string)
	pem := "-----BEGIN PRIVATE KEY-----\n" + testSecret + "\n-----END PRIVATE KEY-----\n"
	tried := 0
	for path, operations := range paths {
		if !slices.Contains(operations, logical.UpdateOperation) {
			continue
		}
		for field := range m.b.Route(path).Fields {
			if field == "name" {
				continue
			}
			for _, key := range []string{testSecret, strings.ToUpper(testSecret), pem, token} {
				for _, value := range []any{key, " " + key + "\n", "http://" + key, "tool:" + key + "__x", key + "=1/hour", []any{key}, []any{5, key}, []string{key}, data{"x": key}, data{key: "1/hour"}, data{"x": []any{data{"y": key}}}} {
					tried++
					req := &logical.Request{ID: testID, Operation: logical.UpdateOperation, Path: path, Data: data{field: value}, Storage: m.storage, MountPoint: "ati/", DisplayName: "token"}
					if _, _, err := m.b.HandleExistenceCheck(t.Context(), req); err != nil {
						t.Errorf("%s %s: the check of existence says %v", path, field, err)
					}
					resp, err := m.b.HandleRequest(t.Context(), req)
					if err != nil {
						t.Errorf("%s %s: %v", path, field, err)
					}
					said := m.log.String()
					m.log.Reset()
					if resp != nil {
						said += fmt.Sprint(resp.Warnings, resp.Error())
					}
					ids := strings.Contains(field, "_id") || field == "subject" || field == "description" // a container's id has 64 hex digits
					for _, part := range []string{testSecret[:20], strings.ToUpper(testSecret[:20]), token[len(token)-20:]} {
						if strings.Contains(said, part) && !(ids && !strings.Contains(key, "-----") && key != token) {
							t.Errorf("%s %s, given %.40v, says: %.200s", path, field, value, said)
						}
					}
				}
			}
		}
	}
	if tried < 2000 {
		t.Errorf("%d are too few to tell", tried)
	}
	for _, target := range []string{
		"config secret", "config private_key", "config/rotate secret", "config/rotate private_key",
		"config/rotate/stage secret", "config/rotate/stage private_key", "validate token", "inspect token",
	} {
		path, field, _ := strings.Cut(target, " ")
		for _, value := range []any{[]any{testSecret}, data{"x": testSecret}, []string{testSecret}, 5} {
			m.refused(logical.UpdateOperation, path, data{field: value}, field+" must be a string")
		}
	}
	m.refused(logical.UpdateOperation, "creds/r", data{testSecret: "x"}, "a parameter's name looks like a key or a token; this path takes agent_id, format, job_id, proxy_url, rate, sandbox_id, scopes, skills, tools, ttl")
}

func TestARolesNameIsNoKeyAndNotTooLong(t *testing.T) {
	t.Parallel()
	m := configured(t, nil, nil)
	token := m.ok(logical.ReadOperation, "creds/r", nil).Data["token"].(string)
	for _, name := range []string{testSecret, token, "x." + testSecret} {
		m.refused(logical.CreateOperation, "roles/"+name, data{"tools": "x"}, "the role's name looks like a key or a token, and is for neither")
		m.ok(logical.DeleteOperation, "roles/"+name, nil)
		if strings.Contains(m.log.String(), name) {
			t.Errorf("the log has it: %s", m.log)
		}
	}
	m.refused(logical.CreateOperation, "roles/"+strings.Repeat("x", 129), data{"tools": "x"}, "the role's name has 129 bytes; at most 128 are allowed")
	m.ok(logical.CreateOperation, "roles/"+strings.Repeat("x", 128), data{"tools": "x"})

	// One that is there, by whatever version, can be used and got rid of.
	name := "sandbox-" + testSecret
	entry, err := m.storage.Storage.Get(t.Context(), "role/r")
	if err != nil {
		t.Fatal(err)
	}
	entry.Key = "role/" + name
	if err := m.storage.Storage.Put(t.Context(), entry); err != nil {
		t.Fatal(err)
	}
	m.ok(logical.ReadOperation, "roles/"+name, nil)
	m.ok(logical.ReadOperation, "creds/"+name, nil)
	m.ok(logical.UpdateOperation, "roles/"+name, data{"description": "x"})
	lease := &logical.Request{Operation: logical.RevokeOperation, Path: "creds/" + name, Data: data{"proxy_url": "https://" + testSecret}, Secret: &logical.Secret{InternalData: data{"secret_type": "ati_token"}}, Storage: m.storage}
	if resp, err := m.b.HandleRequest(t.Context(), lease); err != nil || resp.IsError() {
		t.Errorf("revocation: %v %v", resp, err)
	}
	m.ok(logical.DeleteOperation, "roles/"+name, nil)
	if strings.Contains(m.log.String(), testSecret) {
		t.Errorf("the log has it: %s", m.log)
	}
}

// What only looks a little like a key passes.
func TestWhatIsNoKeyIsTaken(t *testing.T) {
	t.Parallel()
	m := configured(t, nil, data{"allowed_agent_ids": testSecret + ",box-*", "allowed_job_ids": testSecret, "allowed_sandbox_ids": "*", "subject": testSecret})
	m.ok(logical.UpdateOperation, "creds/r", data{"agent_id": testSecret, "job_id": testSecret, "sandbox_id": testSecret})
	m.ok(logical.UpdateOperation, "batch/r", data{"agent_ids": []any{testSecret, "box-" + testSecret}})
	for name, d := range map[string]data{
		"a sum":         {"tools": "img:x@sha256:" + testSecret},
		"a description": {"description": testSecret + " -----BEGIN CERTIFICATE-----"},
		"fewer digits":  {"tools": testSecret[:59]},
		"more digits":   {"tools": testSecret + testSecret[:5]},
		"a word":        {"tools": "x" + testSecret[1:]},
		"half a token":  {"tools": "eyJhbGciOiJIUzI1NiJ9.eyJ"},
	} {
		if resp, err := m.request(logical.UpdateOperation, "roles/r", d); err != nil || resp.IsError() {
			t.Errorf("%s: %v %v", name, resp, err)
		}
	}
	for name, d := range map[string]data{
		"a digit less":      {"tools": testSecret[1:]},
		"a digit more":      {"tools": testSecret + "0"},
		"a key as of SEC 1": {"description": "-----BEGIN EC PRIVATE KEY-----"},
	} {
		if resp, err := m.request(logical.UpdateOperation, "roles/r", d); err != nil || !strings.Contains(resp.Error().Error(), "looks like a key") {
			t.Errorf("%s: %v %v", name, resp, err)
		}
	}
}

// Whether a role or config exists goes by the path alone, so that a wrong parameter
// is refused by the request itself, with what it needs in the policy.
func TestTheCheckOfExistenceKnowsNoParameters(t *testing.T) {
	t.Parallel()
	m := configured(t, nil, nil)
	for path, want := range map[string][2]bool{"config": {true, true}, "roles/r": {true, true}, "roles/new": {true, false}, "roles/" + testSecret: {true, false}, "config/rotate": {false, false}, "validate": {false, false}} {
		found, exists, err := m.b.HandleExistenceCheck(t.Context(), &logical.Request{Operation: logical.CreateOperation, Path: path, Data: data{"ttl": []any{"x"}, "tools": 5, "name": "r"}, Storage: m.storage})
		if got := [2]bool{found, exists}; err != nil || got != want {
			t.Errorf("%s: %v (%v), want %v", path, got, err, want)
		}
	}
}

func TestNothingWorksWithoutAConfigAndSaysSo(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	const want = "this mount has no config yet; write one with: vault write ati/config proxy_url=https://…"
	m.refused(logical.CreateOperation, "roles/r", data{"tools": "x"}, want)
	m.refused(logical.ReadOperation, "creds/r", nil, want)
	m.refused(logical.UpdateOperation, "batch/r", data{"agent_ids": "a"}, want)
	for _, path := range []string{"config/rotate", "config/rotate/stage", "config/rotate/activate", "config/rotate/rollback", "config/rotate/retire"} {
		m.refused(logical.UpdateOperation, path, nil, want)
	}
	m.refused(logical.ReadOperation, "proxy-env", nil, want)
	m.refused(logical.ReadOperation, "proxy-env/1", nil, want)
	m.refused(logical.ReadOperation, "check/r", data{"tool": "x"}, want)
	m.refused(logical.UpdateOperation, "validate", data{"token": "x"}, want)
	for _, path := range []string{"config", "config/rotate", "roles/r"} {
		if resp := m.ok(logical.ReadOperation, path, nil); resp != nil {
			t.Errorf("read %s: %v, want none (404)", path, resp)
		}
	}
}

// The promise: a mint reads no storage once warm, nor asks Vault anything but
// the mount's maximum TTL every 5 seconds.
func TestAWarmMintTouchesNoStorage(t *testing.T) {
	t.Parallel()
	m := configured(t, nil, nil)
	m.b = m.newBackend() // cold
	m.storage.calls.Store(0)
	m.ok(logical.ReadOperation, "creds/r", nil)
	if got := m.storage.calls.Load(); got != 2 {
		t.Errorf("a cold mint did %d storage calls, want 2", got)
	}
	m.storage.calls.Store(0)
	m.system.maxTTLCalls.Store(0)
	for range 100 {
		m.ok(logical.ReadOperation, "creds/r", nil)
		m.ok(logical.UpdateOperation, "creds/r", data{"tools": "web_search", "ttl": "5m"})
	}
	if got := m.storage.calls.Load(); got != 0 {
		t.Errorf("200 warm mints did %d storage calls", got)
	}
	if got := m.system.maxTTLCalls.Load(); got != 0 {
		t.Errorf("200 warm mints asked for the mount's maximum %d times", got)
	}
	m.now = m.now.Add(5 * time.Second)
	m.ok(logical.ReadOperation, "creds/r", nil)
	if got := m.system.maxTTLCalls.Load(); got != 1 {
		t.Errorf("5 seconds later it asked for the mount's maximum %d times, want 1", got)
	}
}

// The promise: what another node of the cluster changes is seen after
// Invalidate.
func TestInvalidateDropsWhatAnotherNodeChanged(t *testing.T) {
	t.Parallel()
	m := configured(t, nil, nil)
	m.ok(logical.ReadOperation, "creds/r", nil)

	other := m.otherNode()
	other.ok(logical.UpdateOperation, "config", data{"proxy_url": "https://green.example.com"})
	other.ok(logical.UpdateOperation, "roles/r", data{"tools": "arxiv"})

	m.b.InvalidateKey(t.Context(), "config")
	m.b.InvalidateKey(t.Context(), "role/r")
	resp := m.ok(logical.ReadOperation, "creds/r", nil)
	if got, want := []any{resp.Data["proxy_url"], resp.Data["scope"]}, []any{"https://green.example.com", "tool:arxiv"}; !cmp.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}

	other.ok(logical.DeleteOperation, "roles/r", nil)
	m.b.InvalidateKey(t.Context(), "role/r")
	m.refused(logical.ReadOperation, "creds/r", nil, `role "r" does not exist; vault list ati/roles shows those that do`)
}

// A write and the mints around it: each token is the old role's or the new
// one's, and after the write none is the old one's.
func TestCachesHoldAgainstConcurrentWritesAndMints(t *testing.T) {
	t.Parallel()
	m := configured(t, nil, data{"allowed_agent_ids": "*"})
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				resp, err := m.request(logical.ReadOperation, "creds/r", nil)
				if err != nil || resp.IsError() {
					t.Errorf("mint: %v %v", err, resp.Error())
					return
				}
				batch, err := m.request(logical.UpdateOperation, "batch/r", data{"agent_ids": "a,b,c"})
				if err != nil || batch.IsError() {
					t.Errorf("batch: %v %v", err, batch.Error())
					return
				}
				for _, token := range batch.Data["tokens"].(map[string]string) {
					if c := m.claimsOf(token, "ati-proxy"); c.Scope != batch.Data["scope"] {
						t.Errorf("a batch of %v has a token with %s", batch.Data["scope"], c.Scope)
					}
				}
				m.b.InvalidateKey(context.Background(), "role/r")
				m.b.InvalidateKey(context.Background(), "config")
			}
		})
	}
	for i := range 300 {
		tool := fmt.Sprintf("tool%d", i)
		m.ok(logical.UpdateOperation, "roles/r", data{"tools": tool})
		if got, want := m.ok(logical.ReadOperation, "creds/r", nil).Data["scope"], "tool:"+tool; got != want {
			t.Errorf("after the write of %s a token has %s", want, got)
		}
	}
	close(stop)
	wg.Wait()
}

func TestARoleThatIsDeletedWhileAMintReadsItIsGone(t *testing.T) {
	t.Parallel()
	m := configured(t, nil, nil)
	m.b = m.newBackend() // cold
	m.during("role/r", func() { _, _ = m.request(logical.ReadOperation, "creds/r", nil) }, func() { m.ok(logical.DeleteOperation, "roles/r", nil) })
	m.refused(logical.ReadOperation, "creds/r", nil, `role "r" does not exist; vault list ati/roles shows those that do`)
}

// The promises: what a writer has replaced doesn't come back into a cache, and
// of two writes neither loses what the other stored.
func TestAReaderOrWriterBetweenReadAndWriteLosesNothing(t *testing.T) {
	t.Parallel()
	mint := func(m *mount) func() {
		return func() {
			if resp, err := m.request(logical.ReadOperation, "creds/r", nil); err != nil || resp.IsError() {
				m.t.Errorf("mint: %v %v", err, resp.Error())
			}
		}
	}
	write := func(m *mount, path string, d data) func() {
		return func() {
			if resp, err := m.request(logical.UpdateOperation, path, d); err != nil || resp.IsError() {
				m.t.Errorf("write %s: %v %v", path, err, resp.Error())
			}
		}
	}
	for name, c := range map[string]struct {
		key           string
		first, second func(m *mount) func()
		want          data
	}{
		"a mint that reads the role, and a write of it": {"role/r", mint,
			func(m *mount) func() { return write(m, "roles/r", data{"tools": "new"}) }, data{"scope": "tool:new"}},
		"a mint that reads config, and a write of it": {"config", mint,
			func(m *mount) func() { return write(m, "config", data{"audience": "new"}) }, data{"aud": "new"}},
		"a mint that reads the role, and another node's write of it": {"role/r", mint,
			func(m *mount) func() {
				return func() { m.replaceStored("role/r", `"web_search"`, `"new"`); m.b.InvalidateKey(m.t.Context(), "role/r") }
			}, data{"scope": "tool:new"}},
		"a mint that reads config, and another node's write of it": {"config", mint,
			func(m *mount) func() {
				return func() { m.replaceStored("config", `"ati-proxy"`, `"new"`); m.b.InvalidateKey(m.t.Context(), "config") }
			}, data{"aud": "new"}},
		"two updates of one role": {"role/r",
			func(m *mount) func() { return write(m, "roles/r", data{"tools": "new"}) },
			func(m *mount) func() { return write(m, "roles/r", data{"ttl": "30m"}) }, data{"scope": "tool:new", "token_ttl": int64(1800)}},
		"two updates of config": {"config",
			func(m *mount) func() { return write(m, "config", data{"audience": "new"}) },
			func(m *mount) func() { return write(m, "config", data{"max_ttl": "30m"}) }, data{"aud": "new", "token_ttl": int64(1800)}},
		"a config write and a role that raises the bound": {"config",
			func(m *mount) func() { return write(m, "config", data{"audience": "new"}) },
			func(m *mount) func() { return write(m, "roles/r", data{"ttl": "5h"}) }, data{"aud": "new", "token_ttl": int64(18000)}},
		"a role that raises the bound and a config write": {"role/r",
			func(m *mount) func() { return write(m, "roles/r", data{"ttl": "5h"}) },
			func(m *mount) func() { return write(m, "config", data{"audience": "new"}) }, data{"aud": "new", "token_ttl": int64(18000)}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := configured(t, nil, nil)
			m.b = m.newBackend() // cold
			m.during(c.key, c.first(m), c.second(m))
			for range 2 { // from the caches, and from storage
				got := data{}
				resp := m.ok(logical.ReadOperation, "creds/r", nil)
				for k := range c.want {
					got[k] = resp.Data[k]
				}
				if diff := cmp.Diff(c.want, got); diff != "" {
					t.Errorf("a mint afterwards (-want +got):\n%s", diff)
				}
				m.b = m.newBackend()
			}
			if ttl, ok := c.want["token_ttl"].(int64); ok && ttl > 3600 {
				if want := fmt.Sprintf(`"longest_ttl":%d`, ttl*int64(time.Second)); !strings.Contains(m.storage.dump(t)["config"], want) {
					t.Errorf("config has no %s: %s", want, m.storage.dump(t)["config"])
				}
			}
		})
	}
}

// A write that failed may have been carried out: the next request reads anew.
func TestAfterAFailedWriteStorageDecides(t *testing.T) {
	t.Parallel()
	for _, late := range []bool{false, true} {
		m := configured(t, nil, nil)
		m.ok(logical.ReadOperation, "creds/r", nil) // warm
		m.storage.late = late
		m.storage.fail = "put role/r"
		m.failed(logical.UpdateOperation, "roles/r", data{"tools": "new"}, `write role "r": disk on fire`)
		m.storage.fail = "put config"
		m.failed(logical.UpdateOperation, "config", data{"audience": "new"}, "write config: disk on fire")
		m.storage.fail = ""
		want := data{"scope": "tool:web_search", "aud": "ati-proxy"}
		if late {
			want = data{"scope": "tool:new", "aud": "new"}
		}
		resp := m.ok(logical.ReadOperation, "creds/r", nil)
		if diff := cmp.Diff(want, data{"scope": resp.Data["scope"], "aud": resp.Data["aud"]}); diff != "" {
			t.Errorf("carried out %v: a mint afterwards (-want +got):\n%s", late, diff)
		}
	}
}

// The role cache is bounded: 10,000 roles stay in it, and with one more the
// one that was used the longest time ago is read again.
func TestTheRoleCacheIsBounded(t *testing.T) {
	t.Parallel()
	m := configured(t, nil, nil)
	m.storage.oneRole = true
	reads := func(role int) int64 {
		before := m.storage.calls.Load()
		m.do(t, logical.ReadOperation, fmt.Sprintf("creds/r%d", role), nil)
		return m.storage.calls.Load() - before
	}
	for i := range 10_000 {
		if got := reads(i); got != 1 {
			t.Fatalf("the first mint of role %d did %d reads", i, got)
		}
	}
	for i := range 10_000 {
		if got := reads(i); got != 0 {
			t.Fatalf("the second mint of role %d did %d reads", i, got)
		}
	}
	if got := []int64{reads(10_000), reads(1), reads(0)}; !cmp.Equal(got, []int64{1, 0, 1}) {
		t.Errorf("reads for one role more, for one in the cache, for the oldest: %v", got)
	}
}

// The promise: a failed call for the mount's maximum is no mistake of the
// user's, and isn't remembered. (The SDK answers 0 for one.)
func TestAnUnknownMountMaximumIsAnError(t *testing.T) {
	t.Parallel()
	m := configured(t, nil, nil)
	m.b = m.newBackend()
	m.system.MaxLeaseTTLVal = 0
	const want = "the mount's maximum TTL is not known: Vault did not answer"
	m.failed(logical.ReadOperation, "creds/r", nil, want)
	m.failed(logical.UpdateOperation, "roles/r", data{"ttl": "5m"}, want)
	m.failed(logical.CreateOperation, "roles/new", data{"tools": "x"}, want)
	m.system.MaxLeaseTTLVal = time.Hour
	m.ok(logical.ReadOperation, "creds/r", nil)
}

// The promise: trouble with storage is a 500 that says what failed, and leaves
// the next request unharmed.
func TestStorageTroubleIsAnErrorThatSaysWhatFailed(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		fail string
		op   logical.Operation
		path string
		data data
		want string
	}{
		"reading config":                  {"get config", logical.ReadOperation, "config", nil, "read config: disk on fire"},
		"writing config, read":            {"get config", logical.UpdateOperation, "config", data{"issuer": "x"}, "read config: disk on fire"},
		"writing config, put":             {"put config", logical.UpdateOperation, "config", data{"issuer": "x"}, "write config: disk on fire"},
		"deleting config, read":           {"get config", logical.DeleteOperation, "config", nil, "read config: disk on fire"},
		"deleting config, put":            {"put config", logical.DeleteOperation, "config", nil, "write config: disk on fire"},
		"listing roles":                   {"list role/", logical.ListOperation, "roles/", nil, "list the roles: disk on fire"},
		"reading a role":                  {"get role/r", logical.ReadOperation, "roles/r", nil, `read role "r": disk on fire`},
		"writing a role, config":          {"get config", logical.UpdateOperation, "roles/r", data{"ttl": "5h"}, "read config: disk on fire"},
		"writing a role, read":            {"get role/r", logical.UpdateOperation, "roles/r", data{"ttl": "5h"}, `read role "r": disk on fire`},
		"writing a role, raising config":  {"put config", logical.UpdateOperation, "roles/r", data{"ttl": "5h"}, "write config: disk on fire"},
		"writing a role, put":             {"put role/r", logical.UpdateOperation, "roles/r", data{"ttl": "5h"}, `write role "r": disk on fire`},
		"deleting a role":                 {"delete role/r", logical.DeleteOperation, "roles/r", nil, `delete role "r": disk on fire`},
		"minting, config":                 {"get config", logical.ReadOperation, "creds/r", nil, "read config: disk on fire"},
		"minting, role":                   {"get role/r", logical.ReadOperation, "creds/r", nil, `read role "r": disk on fire`},
		"minting many, config":            {"get config", logical.UpdateOperation, "batch/r", data{"agent_ids": "a"}, "read config: disk on fire"},
		"minting many, role":              {"get role/r", logical.UpdateOperation, "batch/r", data{"agent_ids": "a"}, `read role "r": disk on fire`},
		"checking, config":                {"get config", logical.ReadOperation, "check/r", data{"tool": "x"}, "read config: disk on fire"},
		"checking, role":                  {"get role/r", logical.ReadOperation, "check/r", data{"tool": "x"}, `read role "r": disk on fire`},
		"reading the proxy's environment": {"get config", logical.ReadOperation, "proxy-env", nil, "read config: disk on fire"},
		"reading the key's versions":      {"get config", logical.ReadOperation, "config/rotate", nil, "read config: disk on fire"},
		"rotating, read":                  {"get config", logical.UpdateOperation, "config/rotate", nil, "read config: disk on fire"},
		"rotating, put":                   {"put config", logical.UpdateOperation, "config/rotate", nil, "write config: disk on fire"},
		"reading the JWK Set":             {"get config", logical.ReadOperation, "jwks", nil, "read config: disk on fire"},
		"validating":                      {"get config", logical.UpdateOperation, "validate", data{"token": "x"}, "read config: disk on fire"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := configured(t, nil, data{"allowed_agent_ids": "*"})
			m.b = m.newBackend()
			m.storage.fail = c.fail
			m.failed(c.op, c.path, c.data, c.want)
			m.storage.fail = ""
			if got := m.ok(logical.ReadOperation, "creds/r", nil).Data["token_ttl"]; got != int64(3600) {
				t.Errorf("after the failure a token lives %v seconds, want 3600", got)
			}
			m.ok(c.op, c.path, c.data)
		})
	}
	t.Run("the checks of existence", func(t *testing.T) {
		t.Parallel()
		m := configured(t, nil, nil)
		m.b = m.newBackend()
		for path, fail := range map[string]string{"config": "get config", "roles/r": "get role/r"} {
			m.storage.fail = fail
			if _, _, err := m.b.HandleExistenceCheck(t.Context(), &logical.Request{Operation: logical.CreateOperation, Path: path, Storage: m.storage}); !errors.Is(err, errStorage) {
				t.Errorf("%s: %v", path, err)
			}
			m.storage.fail = ""
			if _, exists, err := m.b.HandleExistenceCheck(t.Context(), &logical.Request{Operation: logical.CreateOperation, Path: path, Storage: m.storage}); err != nil || !exists {
				t.Errorf("%s: exists %v, %v", path, exists, err)
			}
		}
	})
}

// The promise: an entry that a newer version wrote is refused, not misread.
func TestStorageOfANewerVersionIsRefused(t *testing.T) {
	t.Parallel()
	for key, path := range map[string]string{"config": "config", "role/r": "roles/r"} {
		m := configured(t, nil, nil)
		entry, err := m.storage.Storage.Get(t.Context(), key)
		if err != nil {
			t.Fatal(err)
		}
		entry.Value = []byte(strings.Replace(string(entry.Value), `"storage_version":1`, `"storage_version":2`, 1))
		if err := m.storage.Storage.Put(t.Context(), entry); err != nil {
			t.Fatal(err)
		}
		m.b = m.newBackend()
		before := m.storage.dump(t)
		for _, op := range []logical.Operation{logical.ReadOperation, logical.UpdateOperation} {
			_, err = m.request(op, path, nil)
			if want := "the storage entry has version 2, and this plugin knows up to 1: a newer version of the plugin wrote it"; err == nil || !strings.HasSuffix(err.Error(), want) {
				t.Errorf("%s %s: %v", op, path, err)
			}
		}
		if diff := cmp.Diff(before, m.storage.dump(t)); diff != "" {
			t.Errorf("%s was changed:\n%s", path, diff)
		}
	}
}

// The promise: no log line contains a secret or a token.
func TestTheLogSaysWhatChangedAndNoSecret(t *testing.T) {
	t.Parallel()
	m := configured(t, nil, data{"generate_lease": true})
	token := m.ok(logical.ReadOperation, "creds/r", nil).Data["token"].(string)
	m.ok(logical.UpdateOperation, "config", data{"secret": testSecret, "issuer": "other"})
	m.ok(logical.UpdateOperation, "validate", data{"token": token})
	m.ok(logical.DeleteOperation, "roles/r", nil)
	m.ok(logical.DeleteOperation, "config", nil)
	log := m.log.String()
	for _, want := range []string{
		`[INFO]  config written: created=true parameters="proxy_url,secret" key_version=1`,
		`[INFO]  role written: role=r created=true parameters="generate_lease,tools"`,
		`[INFO]  config written: created=false parameters="issuer,secret" key_version=1`,
		`[INFO]  role deleted: role=r`,
		`[WARN]  config deleted and keys forgotten: key_version=1`,
	} {
		if !strings.Contains(log, want) {
			t.Errorf("the log has no line %s", want)
		}
	}
	for _, secret := range []string{testSecret, token} {
		if strings.Contains(log, secret) {
			t.Errorf("the log has a secret in it:\n%s", log)
		}
	}
}
