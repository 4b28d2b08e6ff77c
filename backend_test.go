package atisecrets_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	atisecrets "vault-plugin-secrets-ati"
)

func TestPaths_Declarations(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	requested := map[*framework.Path]bool{}
	for name := range paths {
		requested[m.b.Route(name)] = true
	}
	for _, p := range m.b.Paths {
		if !requested[p] {
			t.Errorf("no test requests the path %q: add it to paths in harness_test.go, with its operations", p.Pattern)
		}
	}
	for name, want := range paths {
		p := m.b.Route(name)
		if p == nil {
			t.Fatalf("the backend has no path for %s in paths in harness_test.go: add its function to newBackend, or remove it from paths", name)
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
		}
	}
}

func TestOpenAPI_OperationIDs(t *testing.T) {
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
		"patch /config":                "ati-patch-configuration",
		"get /guard":                   "ati-read-guard",
		"get /revoked":                 "ati-read-revocations",
		"get /revoked/":                "ati-list-revocations",
		"post /revoke":                 "ati-revoke-token",
		"post /revoke/{name}":          "ati-revoke-agent",
		"patch /roles/{name}":          "ati-patch-role",
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
	m.equal("operation IDs, which generated clients depend on (add those of a new path to this test)", want, got)
}

func TestPaths_ProtectSecrets(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	want := &logical.Paths{Root: []string{"config", "config/*", "proxy-env", "proxy-env/*", "guard", "revoke"}, Unauthenticated: []string{"jwks"}, SealWrapStorage: []string{"config", "role/", "revoked/"}}
	m.equal("special paths", want, m.b.SpecialPaths())
	creds := m.responseFields(logical.ReadOperation, "creds/r")
	for _, f := range []*framework.FieldSchema{
		m.b.Route("config").Fields["secret"], m.b.Route("config").Fields["private_key"], m.b.Route("config/rotate").Fields["secret"], m.b.Route("config/rotate/stage").Fields["private_key"], m.b.Route("validate").Fields["token"], m.b.Route("inspect").Fields["token"], m.b.Route("revoke").Fields["token"],
		creds["token"], creds["ATI_SESSION_TOKEN"], m.responseFields(logical.UpdateOperation, "batch/r")["tokens"], m.responseFields(logical.ReadOperation, "proxy-env")["ATI_JWT_SECRET"], m.responseFields(logical.ReadOperation, "guard")["keys"],
	} {
		if f.DisplayAttrs == nil || !f.DisplayAttrs.Sensitive {
			t.Errorf("%q is not sensitive", f.Description)
		}
	}
}

func TestFactory(t *testing.T) {
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

// TestParameters_RejectsUnknownAndNull checks that each operation that mints, decides,
// or writes rejects an unknown parameter, null, and a parameter that is part of the
// path, and that the others ignore what they do not take.
func TestParameters_RejectsUnknownAndNull(t *testing.T) {
	t.Parallel()
	known := map[string]string{
		"config":        "accepted_audiences, algorithm, allow_standby_minting, allowed_scopes, audience, guarded, issuer, key_created_at, key_fingerprint, key_version, max_ttl, private_key, proxy_url, rotation_overlap, rotation_period, secret",
		"config/rotate": "algorithm, private_key, proxy_url, secret", "config/rotate/stage": "algorithm, private_key, proxy_url, secret",
		"config/rotate/activate": "none", "config/rotate/rollback": "none", "config/rotate/retire": "none", "jwks": "none",
		"roles/": "after, limit",
		"revoke": "agent_id, jti, token", "revoke/r": "agent_id", "revoked/": "after, limit", "guard": "since",
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
		if known[path] == "" {
			t.Errorf("%s: add its parameters to known in this test, or \"none\"", path)
			continue
		}
		for _, op := range operations {
			if op != logical.PatchOperation && op != logical.CreateOperation && op != logical.UpdateOperation && known[path] != known["creds/r"] && known[path] != known["check/r"] {
				m := configured(t, nil, nil)
				want := m.ok(op, path, nil)
				m = configured(t, nil, nil)
				got := m.ok(op, path, data{"other": "x", "zz": nil, "t": 1, "secret": []any{}, "name": "y"})
				if path == "guard" {
					want.Data["epoch"] = got.Data["epoch"] // random
				}
				m.equal(fmt.Sprintf("%s %s", op, path), want, got)
				for _, misplaced := range []data{{"other": testSecret}, {testSecret: "x"}, {"secret": testSecret}} {
					m.refused(op, path, misplaced, "a parameter that is not supported here appears to contain a key or token")
				}
				continue
			}
			m.refused(op, path, data{"other": "x", "zz": "y"}, fmt.Sprintf("unknown parameter \"other\"; supported parameters: %s", known[path]))
			for field := range m.b.Route(path).Fields {
				if field == "name" || field == "version" {
					if path != "roles/r" {
						m.refused(op, path, data{field: "r"}, fmt.Sprintf("parameter %q is part of the path and cannot also be set in the request", field))
					}
					m.refused(op, path, data{field: "7"}, fmt.Sprintf("parameter %q is part of the path and cannot also be set in the request", field))
				} else if op != logical.PatchOperation {
					m.refused(op, path, data{field: nil}, fmt.Sprintf("parameter %q is null; omit it or set a value", field))
				}
			}
		}
	}
	t.Run("suggests a parameter", func(t *testing.T) {
		for _, c := range []struct{ path, unknown, hint string }{
			{"creds/r", "tool", ` (did you mean "tools"?)`},
			{"creds/r", "Agent-ID", ` (did you mean "agent_id"?)`},
			{"creds/r", "ttl_seconds", ` (did you mean "ttl"?)`},
			{"creds/r", "to", ""},
			{"creds/r", "toolz", ""},
			{"check/r", "toolz", ` (did you mean "tool"?)`},
			{"config/rotate/activate", "tool", ""},
		} {
			m.refused(logical.UpdateOperation, c.path, data{c.unknown: "x"}, fmt.Sprintf("unknown parameter %q%s; supported parameters: %s", c.unknown, c.hint, known[c.path]))
		}
	})
}

// TestSecretDetection_DoesNotQuoteKeys puts keys and tokens into each field that is
// not for them. They must be rejected before an error or a warning quotes them, since
// Vault's audit log has some of these in plaintext.
func TestSecretDetection_DoesNotQuoteKeys(t *testing.T) {
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
				wrapped := key[:30] + "\n" + key[30:]
				escaped := strings.Replace(strings.ReplaceAll(key, "\n", `\n`), "7", `\u0037`, 1)
				for _, value := range []any{wrapped, key[:30] + " \r\n " + key[30:], `["` + escaped + `"]`, `{"tool:x":"` + escaped + `"}`, `{"` + escaped + `":"1/s"}`, "https://h/" + strings.Replace(key, "7", "%37", 1), key, " " + key + "\n", "http://" + key, "tool:" + key + "__x", key + "=1/hour", []any{key}, []any{5, key}, []string{key}, data{"x": key}, data{key: "1/hour"}, data{"x": []any{data{"y": key}}}} {
					tried++
					req := &logical.Request{ID: testID, Operation: logical.UpdateOperation, Path: path, Data: data{field: value}, Storage: m.storage, MountPoint: "ati/", DisplayName: "token"}
					if _, _, err := m.b.HandleExistenceCheck(t.Context(), req); err != nil {
						t.Errorf("%s %s: existence check: %v", path, field, err)
					}
					resp, err := m.b.HandleRequest(t.Context(), req)
					if err != nil {
						t.Errorf("%s %s: %v", path, field, err)
					}
					output := m.log.String()
					m.log.Reset()
					if resp != nil {
						output += fmt.Sprint(resp.Warnings, resp.Error())
					}
					mayHoldHex := strings.Contains(field, "_id") || field == "subject" || field == "description" // a container's ID has 64 hexadecimal digits
					for _, part := range []string{testSecret[:20], strings.ToUpper(testSecret[:20]), token[len(token)-20:]} {
						if strings.Contains(output, part) && !(mayHoldHex && !strings.Contains(key, "-----") && key != token) {
							t.Errorf("%s %s=%.40v exposes a key (if %s is declared with MayHoldHex, add it to mayHoldHex in this test): %.200s", path, field, value, field, output)
						}
					}
				}
			}
		}
	}
	if tried < 2000 {
		t.Errorf("only %d values were tried", tried)
	}
	for _, target := range []string{
		"config secret", "config private_key", "config/rotate secret", "config/rotate private_key",
		"config/rotate/stage secret", "config/rotate/stage private_key", "validate token", "inspect token",
	} {
		path, field, _ := strings.Cut(target, " ")
		for _, value := range []any{data{"x": testSecret}, 5} {
			m.refused(logical.UpdateOperation, path, data{field: value}, field+" must be a string")
		}
		for _, value := range []any{[]any{testSecret}, []string{testSecret}} {
			m.refused(logical.UpdateOperation, path, data{field: value}, field+" must be a string, not a list"+repeatedText)
		}
	}
	m.refused(logical.UpdateOperation, "creds/r", data{testSecret: "x"}, "the name of a parameter appears to contain a key or token; supported parameters: agent_id, format, job_id, proxy_url, rate, sandbox_id, scopes, skills, tools, ttl")
}

func TestRoles_RejectsKeyOrLongName(t *testing.T) {
	t.Parallel()
	m := configured(t, nil, nil)
	token := m.ok(logical.ReadOperation, "creds/r", nil).Data["token"].(string)
	for _, name := range []string{testSecret, token, "x." + testSecret} {
		m.refused(logical.CreateOperation, "roles/"+name, data{"tools": "x"}, "name of the role appears to contain a key or token; choose a different name")
		m.ok(logical.DeleteOperation, "roles/"+name, nil)
		if strings.Contains(m.log.String(), name) {
			t.Errorf("the log has a key in it: %s", m.log)
		}
	}
	m.refused(logical.CreateOperation, "roles/"+strings.Repeat("x", 129), data{"tools": "x"}, "name of the role has 129 bytes; at most 128 are allowed")
	m.ok(logical.CreateOperation, "roles/"+strings.Repeat("x", 128), data{"tools": "x"})

	// A role with such a name that is already stored can be used and deleted.
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
		t.Errorf("the log has a key in it: %s", m.log)
	}
}

// TestSecretDetection_FalsePositives checks that values that only resemble a key are
// accepted.
func TestSecretDetection_FalsePositives(t *testing.T) {
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
		if resp, err := m.request(logical.UpdateOperation, "roles/r", d); err != nil || !strings.Contains(resp.Error().Error(), "appears to contain a key") {
			t.Errorf("%s: %v %v", name, resp, err)
		}
	}
}

// TestExistenceCheck_IgnoresParameters checks that only the path decides whether a
// role or the config exists. A wrong parameter is rejected by the request itself,
// after Vault has checked the policy.
func TestExistenceCheck_IgnoresParameters(t *testing.T) {
	t.Parallel()
	m := configured(t, nil, nil)
	for path, want := range map[string][2]bool{"config": {true, true}, "roles/r": {true, true}, "roles/new": {true, false}, "roles/" + testSecret: {true, false}, "config/rotate": {false, false}, "validate": {false, false}} {
		found, exists, err := m.b.HandleExistenceCheck(t.Context(), &logical.Request{Operation: logical.CreateOperation, Path: path, Data: data{"ttl": []any{"x"}, "tools": 5, "name": "r"}, Storage: m.storage})
		if got := [2]bool{found, exists}; err != nil || got != want {
			t.Errorf("%s: %v (%v), want %v", path, got, err, want)
		}
	}
}

func TestPaths_RequireConfig(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	const want = "this mount has no config; create it with: vault write ati/config proxy_url=https://ati.example.com"
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

// TestMountMaxTTL_Unknown checks that a failed call for the mount's maximum TTL, which
// the SDK reports as 0, is an internal error and is not cached.
func TestMountMaxTTL_Unknown(t *testing.T) {
	t.Parallel()
	m := configured(t, nil, nil)
	m.b = m.newBackend()
	m.system.MaxLeaseTTLVal = 0
	const want = "failed to look up the mount's maximum TTL: no response from Vault"
	m.failed(logical.ReadOperation, "creds/r", nil, want)
	m.failed(logical.UpdateOperation, "roles/r", data{"ttl": "5m"}, want)
	m.failed(logical.CreateOperation, "roles/new", data{"tools": "x"}, want)
	m.system.MaxLeaseTTLVal = time.Hour
	m.ok(logical.ReadOperation, "creds/r", nil)
}

// TestLog_RecordsChangesWithoutSecrets checks that the log names each change, and no
// secret or token.
func TestLog_RecordsChangesWithoutSecrets(t *testing.T) {
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
		`[WARN]  deleted config and keys: key_version=1`,
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

// TestMessages_InNamespace checks that commands in messages work inside a namespace, which
// Vault puts before the path of the mount.
func TestMessages_InNamespace(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	for mountPoint, want := range map[string]string{
		"ati/":         "ati/",
		"ns1/ati/":     "-namespace=/ ns1/ati/",
		"ns1/sub/ati/": "-namespace=/ ns1/sub/ati/",
	} {
		resp, err := m.b.HandleRequest(t.Context(), &logical.Request{ID: testID, Operation: logical.ReadOperation, Path: "creds/r", Storage: m.storage, MountPoint: mountPoint})
		if want := "this mount has no config; create it with: vault write " + want + "config proxy_url=https://ati.example.com"; err != nil || resp.Error().Error() != want {
			t.Errorf("%s: got %v %v", mountPoint, resp, err)
		}
	}
}
