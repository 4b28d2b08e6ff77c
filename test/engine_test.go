package test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/vault/api"

	"vault-plugin-secrets-ati/ati"
)

func TestMount_Lifecycle(t *testing.T) {
	t.Parallel()
	s, secret := startEngine(t)

	s.vault(s.root, "write", "ati/roles/researcher", "tools=web_search,arxiv:*", "skills=summarize", "rate=tool:web_search=30/hour", "rate=*=100/hour", "ttl=1h", "max_ttl=2h", "job_id={{jti}}")
	creds := s.read(s.root, "ati/creds/researcher")
	c := claims(t, secret, creds)
	want := &ati.Claims{
		Subject: "root", Audience: "ati-proxy", IssuedAt: c.IssuedAt, ExpiresAt: c.IssuedAt + 3600, Scope: "tool:web_search tool:arxiv:* skill:summarize", Issuer: "ati-orchestrator",
		ID: creds.RequestID, ATI: &ati.Namespace{Version: 1, Rate: map[string]string{"tool:web_search": "30/hour", "*": "100/hour"}}, JobID: creds.RequestID,
	}
	if diff := cmp.Diff(want, c); diff != "" {
		t.Errorf("claims (-want +got):\n%s", diff)
	}
	if late := time.Now().Unix() - c.IssuedAt; late < 0 || late > 60 {
		t.Errorf("iat is %d s ago", late)
	}
	if creds.LeaseID != "" || creds.LeaseDuration != 0 || creds.Renewable {
		t.Errorf("the response has a lease: %+v", creds)
	}

	// Narrow the role with query and body parameters.
	c = claims(t, secret, s.read(s.root, "ati/creds/researcher", "tools=arxiv:search", "tools=web_search", "ttl=10m", "rate=*=5/hour"))
	if c.Scope != "tool:arxiv:search tool:web_search" || c.ExpiresAt-c.IssuedAt != 600 || c.ATI.Rate["*"] != "5/hour" {
		t.Errorf("narrowed by query: %+v %+v", c, c.ATI)
	}
	c = claims(t, secret, s.write(s.root, "ati/creds/researcher", data{"skills": []string{"summarize"}, "ttl": 60, "rate": data{"tool:web_search": "0/h"}}))
	if c.Scope != "skill:summarize" || c.ExpiresAt-c.IssuedAt != 60 || c.ATI.Rate["tool:web_search"] != "0/hour" {
		t.Errorf("narrowed by body: %+v %+v", c, c.ATI)
	}
	capped := s.write(s.root, "ati/creds/researcher", data{"ttl": "3h"})
	if diff := cmp.Diff([]string{`TTL of "3h" exceeded the effective max_ttl of "2h"; TTL value is capped accordingly`}, capped.Warnings); diff != "" {
		t.Errorf("warnings (-want +got):\n%s", diff)
	}

	env := s.read(s.root, "ati/creds/researcher", "format=env")
	if len(env.Data) != 2 || env.Data["ATI_PROXY_URL"] != "https://ati.example.com" || !strings.HasPrefix(env.Data["ATI_SESSION_TOKEN"].(string), "eyJ") {
		t.Errorf("format=env returns %v", env.Data)
	}

	verdict := s.write(s.root, "ati/validate", data{"token": creds.Data["token"], "scope": "tool:arxiv:x"})
	if verdict.Data["valid"] != true || verdict.Data["allowed"] != true || verdict.Data["jti"] != creds.RequestID {
		t.Errorf("validate returns %v", verdict.Data)
	}
	inspected := s.write(s.root, "ati/inspect", data{"token": creds.Data["token"]})
	if inspected.Data["decoded"] != true || inspected.Data["sub"] != "root" {
		t.Errorf("inspect returns %v", inspected.Data)
	}
	check := s.read(s.root, "ati/check/researcher", "skill=summarize")
	if diff := cmp.Diff(data{"allowed": true, "matched_scopes": []any{"skill:summarize"}, "matched_rates": data{}}, check.Data); diff != "" {
		t.Errorf("check (-want +got):\n%s", diff)
	}

	// A lower maximum TTL of the mount takes effect within 5 seconds.
	s.vault(s.root, "secrets", "tune", "-max-lease-ttl=30m", "ati")
	poll(s.t, "the lower maximum applies", func() error {
		if got := s.read(s.root, "ati/creds/researcher").Data["token_ttl"]; got != json.Number("1800") {
			return fmt.Errorf("token_ttl is %v", got)
		}
		return nil
	})
	s.vault(s.root, "secrets", "tune", "-max-lease-ttl=0", "ati")

	// Sealing and unsealing changes nothing.
	config := s.read(s.root, "ati/config").Data
	role := s.read(s.root, "ati/roles/researcher").Data
	if err := s.client(s.root).Sys().Seal(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.client(s.root).Logical().Read("ati/creds/researcher"); httpStatus(t, err) != http.StatusServiceUnavailable {
		t.Errorf("sealed: %v", err)
	}
	s.unseal()
	if diff := cmp.Diff([]data{config, role}, []data{s.read(s.root, "ati/config").Data, s.read(s.root, "ati/roles/researcher").Data}); diff != "" {
		t.Errorf("after the seal (-before +after):\n%s", diff)
	}
	claims(t, secret, s.read(s.root, "ati/creds/researcher"))

	s.vault(s.root, "delete", "ati/roles/researcher")
	if out, err := s.tryVault(s.root, "read", "ati/creds/researcher"); err == nil || !strings.Contains(out, `role "researcher" does not exist; to list the roles, run: vault list ati/roles`) {
		t.Errorf("a deleted role: %v\n%s", err, out)
	}
	s.vault(s.root, "secrets", "disable", "ati")
}

// Templates in claims resolve to the caller's entity, aliases, and groups in Vault.
func TestCreds_CallerIdentity(t *testing.T) {
	t.Parallel()
	s, secret := startEngine(t)
	s.vault(s.root, "auth", "enable", "userpass")
	s.vault(s.root, "policy", "write", "mint", writeFile(t, `path "ati/creds/*" { capabilities = ["read", "update"] }`))
	s.vault(s.root, "write", "auth/userpass/users/alice", "password=x", "token_policies=mint")
	login := s.write("", "auth/userpass/login/alice", data{"password": "x"})
	alice, entity := login.Auth.ClientToken, login.Auth.EntityID
	if entity == "" {
		t.Fatal("alice has no entity")
	}
	s.write(s.root, "identity/entity/id/"+entity, data{"name": "alice", "metadata": data{"team": "blue", "path": "a:b"}})
	s.write(s.root, "identity/group", data{"name": "ops", "member_entity_ids": entity, "metadata": data{"cost": "42"}})
	var accessor string
	mounts, err := s.client(s.root).Sys().ListAuth()
	if err != nil {
		t.Fatal(err)
	}
	accessor = mounts["userpass/"].Accessor

	for subject, want := range map[string]string{
		"":                         entity,
		"{{identity.entity.name}}": "alice",
		"{{identity.entity.metadata.team}}/{{identity.entity.aliases." + accessor + ".name}}": "blue/alice",
		"{{identity.groups.names.ops.metadata.cost}}:{{identity.entity.id}}":                  "42:" + entity,
	} {
		s.write(s.root, "ati/roles/r", data{"tools": "x", "subject": subject})
		if got := claims(t, secret, s.read(alice, "ati/creds/r")).Subject; got != want {
			t.Errorf("subject %q: sub is %q, want %q", subject, got, want)
		}
	}
	// A caller cannot choose its subject with a parameter or use another entity's values.
	for _, d := range []data{{"agent_id": "bob"}, {"agent_id": 7}, {"subject": "bob"}, {"sub": "bob"}} {
		if _, err := s.client(alice).Logical().Write("ati/creds/r", d); httpStatus(t, err) != http.StatusBadRequest {
			t.Errorf("%v: %v", d, err)
		}
	}
	s.write(s.root, "ati/roles/r", data{"subject": "x:{{identity.entity.metadata.path}}"})
	if _, err := s.client(alice).Logical().Read("ati/creds/r"); httpStatus(t, err) != http.StatusBadRequest {
		t.Errorf("a value with a colon: %v", err)
	}
	s.write(s.root, "ati/roles/r", data{"subject": "{{identity.groups.names.dev.id}}"})
	if _, err := s.client(alice).Logical().Read("ati/creds/r"); httpStatus(t, err) != http.StatusBadRequest {
		t.Errorf("another group: %v", err)
	}
	// The root token has no entity.
	s.write(s.root, "ati/roles/r", data{"subject": "{{identity.entity.name}}"})
	if _, err := s.client(s.root).Logical().Read("ati/creds/r"); httpStatus(t, err) != http.StatusBadRequest {
		t.Errorf("no entity: %v", err)
	}
}

// Guarantees: each token identifies the audit log line of its request, and neither the
// audit log nor the server log contains a secret or token.
func TestAuditLog_IdentifiesTokensWithoutSecrets(t *testing.T) {
	t.Parallel()
	s, secret := startEngine(t)
	s.write(s.root, "ati/roles/r", data{"tools": "web_search", "generate_lease": true, "ttl": "1h"})
	orchestrator := s.policy("minter", `path "ati/creds/r" { capabilities = ["read", "update"] }`)
	var tokens []string
	for _, creds := range []*api.Secret{s.read(orchestrator, "ati/creds/r"), s.write(orchestrator, "ati/creds/r", data{"tools": "web_search"})} {
		c := claims(t, secret, creds)
		tokens = append(tokens, creds.Data["token"].(string))
		if c.ID != creds.RequestID || c.ID != creds.Data["jti"] {
			t.Errorf("jti %q, request ID %q, jti in the response %q", c.ID, creds.RequestID, creds.Data["jti"])
		}
		line := s.auditLine(c.ID)
		if line.Request.Path != "ati/creds/r" || line.Auth.DisplayName != "token-minter" || c.Subject != "token-minter" {
			t.Errorf("the audit line of %s has %+v, and sub is %q", c.ID, line, c.Subject)
		}
	}
	// proxy-env returns the secret, which the audit log contains only as an HMAC.
	if got := s.read(s.root, "ati/proxy-env").Data["ATI_JWT_SECRET"]; got != secret {
		t.Error("proxy-env returns a different secret")
	}
	// Rejected requests that contain the secret or a token.
	for _, d := range []data{{"secret": []string{secret}}, {"proxy_url": data{"secret": secret}}, {"max_ttl": []string{secret}}, {"secret": secret + "0"}, {"secret": strings.Repeat("ab", 32), "issuer": "x y"}} {
		if got := s.request(s.root, "PUT", "ati/config", d); got != 400 {
			t.Errorf("config %v returns %d", d, got)
		}
	}
	s.write(s.root, "ati/validate", data{"token": tokens[0]})
	s.write(s.root, "ati/inspect", data{"token": tokens[0]})
	s.write(s.root, "ati/validate", data{"token": tokens[0] + "x"})
	if got := s.request(s.root, "PUT", "ati/validate", data{"token": []string{tokens[0]}}); got != 400 {
		t.Errorf("a list for a token returns %d", got)
	}
	b := readFile(t, s.audit)
	for name, text := range map[string]string{"audit log": string(b), "server log": s.log()} {
		if want := map[string]string{"audit log": `"path":"ati/validate"`, "server log": "role written: "}[name]; !strings.Contains(text, want) {
			t.Errorf("the %s has no %s", name, want)
		}
		for _, leak := range append(tokens, secret, strings.Split(tokens[0], ".")[2]) {
			if strings.Contains(text, leak) {
				t.Errorf("the %s contains a secret or token", name)
			}
		}
	}
}

// A lease expires with its token and cannot be renewed. Revoking it leaves the token valid.
func TestLeases(t *testing.T) {
	t.Parallel()
	s, secret := startEngine(t)
	s.write(s.root, "ati/roles/r", data{"tools": "x", "generate_lease": true, "ttl": "10m"})
	creds := s.read(s.root, "ati/creds/r")
	if creds.LeaseDuration != 598 || creds.Renewable || !strings.HasPrefix(creds.LeaseID, "ati/creds/r/") {
		t.Errorf("lease %q of %d s, renewable %v", creds.LeaseID, creds.LeaseDuration, creds.Renewable)
	}
	if _, err := s.client(s.root).Sys().Renew(creds.LeaseID, 3600); httpStatus(t, err) != http.StatusBadRequest {
		t.Errorf("renewal: %v", err)
	}
	s.vault(s.root, "lease", "revoke", "-sync", creds.LeaseID)
	claims(t, secret, creds)
	// Vault sorts the fields of the plugin's log lines by name.
	// It copies them to its own log after the response.
	poll(t, "the server log says that the token remains valid", func() error {
		if log := s.log(); !strings.Contains(log, "lease revoked, but its token remains valid until it expires: ") || !strings.Contains(log, "jti="+creds.RequestID) {
			return errors.New(log)
		}
		return nil
	})
	// Unmounting revokes the remaining leases.
	s.read(s.root, "ati/creds/r")
	s.vault(s.root, "secrets", "disable", "ati")
}

// An upgrade of the plugin, with the documented commands, keeps roles and config.
func TestPlugin_Upgrade(t *testing.T) {
	t.Parallel()
	s, secret := startEngine(t)
	s.write(s.root, "ati/roles/r", data{"tools": "web_search"})
	before := []data{s.read(s.root, "ati/config").Data, s.read(s.root, "ati/roles/r").Data}
	running := func() string { return s.read(s.root, "sys/mounts/ati").Data["running_plugin_version"].(string) }
	if got := running(); got != "v0.1.0" {
		t.Errorf("running version %s", got)
	}

	s.register("v0.2.0")
	s.vault(s.root, "secrets", "tune", "-plugin-version=v0.2.0", "ati")
	s.vault(s.root, "plugin", "reload", "-plugin="+pluginName)

	if got := running(); got != "v0.2.0" {
		t.Errorf("running version %s, want v0.2.0", got)
	}
	if diff := cmp.Diff(before, []data{s.read(s.root, "ati/config").Data, s.read(s.root, "ati/roles/r").Data}); diff != "" {
		t.Errorf("after the upgrade (-before +after):\n%s", diff)
	}
	claims(t, secret, s.read(s.root, "ati/creds/r"))
	if list := s.vault(s.root, "plugin", "list", "secret"); strings.Count(list, pluginName) != 2 || !strings.Contains(list, "v0.2.0") {
		t.Errorf("plugin list:\n%s", list)
	}
}

// Vault compares the plugin's SHA-256 when it starts the plugin.
func TestPlugin_RejectsWrongSHA256(t *testing.T) {
	t.Parallel()
	s := startVault(t)
	s.register("v0.1.0")
	s.vault(s.root, "plugin", "register", "-sha256="+strings.Repeat("ab", 32), "-command="+pluginName+"-v0.1.0", "-version=v0.1.0", "secret", pluginName)
	if out, err := s.tryVault(s.root, "secrets", "enable", "-path=ati", pluginName); err == nil || !strings.Contains(out, "checksums did not match") {
		t.Errorf("secrets enable: %v\n%s", err, out)
	}
}

// Two mounts share a plugin process (multiplexing) and nothing else.
func TestMount_Isolation(t *testing.T) {
	t.Parallel()
	s, secret := startEngine(t)
	s.vault(s.root, "secrets", "enable", "-path=team/ati2", pluginName)
	s.write(s.root, "ati/roles/r", data{"tools": "x"})
	if _, err := s.client(s.root).Logical().Read("team/ati2/creds/r"); err == nil || !strings.Contains(err.Error(), "vault write -namespace=/ team/ati2/config proxy_url=") {
		t.Errorf("the second mount returns %v", err)
	}
	s.write(s.root, "team/ati2/config", data{"proxy_url": "https://other.example.com"})
	s.write(s.root, "team/ati2/roles/r", data{"tools": "x"})
	verdict := s.write(s.root, "team/ati2/validate", data{"token": s.read(s.root, "ati/creds/r").Data["token"]})
	if verdict.Data["valid"] != false || verdict.Data["error"] != "not signed by any key of this mount" {
		t.Errorf("the second mount returns %v", verdict.Data)
	}
	claims(t, secret, s.read(s.root, "ati/creds/r"))
	if pids := s.pluginProcesses(); len(pids) != 1 {
		t.Errorf("two mounts have the processes %v, want one process", pids)
	}

	// Mounts with the same secret accept each other's tokens.
	s.vault(s.root, "secrets", "enable", "-path=ati3", pluginName)
	s.write(s.root, "ati3/config", data{"proxy_url": "https://third.example.com", "secret": secret})
	verdict = s.write(s.root, "ati3/validate", data{"token": s.read(s.root, "ati/creds/r").Data["token"]})
	if verdict.Data["valid"] != true {
		t.Errorf("a mount with the same secret returns %v", verdict.Data)
	}
}

// Errors as a user of the CLI sees them.
func TestCLI_Errors(t *testing.T) {
	t.Parallel()
	s, _ := startEngine(t)
	s.write(s.root, "ati/roles/r", data{"tools": "x"})
	for _, c := range []struct{ args, want string }{
		{"read ati/creds/r tools=", `parameter "tools" is empty; omit it or set a value`},
		{"read ati/creds/r tool=x", `unknown parameter "tool" (did you mean "tools"?); supported parameters: agent_id, format, job_id, proxy_url, rate, sandbox_id, scopes, skills, tools, ttl`},
		{"read ati/creds/nobody", `role "nobody" does not exist; to list the roles, run: vault list ati/roles`},
		{"write -f ati/creds/nobody", `role "nobody" does not exist; to list the roles, run: vault list ati/roles`},
		{"write ati/config secret=abc", `secret must be 64 hexadecimal characters (32 bytes), got 3; for example, use "openssl rand -hex 32"`},
		{"read ati/nothing", "No value found at ati/nothing"},
		{"read ati/roles/nobody", "No value found at ati/roles/nobody"},
	} {
		out, err := s.tryVault(s.root, strings.Fields(c.args)...)
		if err == nil || !strings.Contains(out, c.want) {
			t.Errorf("vault %s: %v\n%s", c.args, err, out)
		}
	}
	for _, c := range []struct {
		method, path string
		want         int
	}{
		{"LIST", "ati/roles?x=1", 200}, {"GET", "ati/config?x=1", 200}, {"GET", "ati/creds/r?x=1", 400}, {"GET", "ati/nothing", 404},
		{"PUT", "ati/creds/a/b", 404}, {"DELETE", "ati/roles/r?x=1", 204},
	} {
		if got := s.request(s.root, c.method, c.path, nil); got != c.want {
			t.Errorf("%s %s returns %d, want %d", c.method, c.path, got, c.want)
		}
	}
	for _, path := range []string{"ati", "ati/config", "ati/roles/r", "ati/roles", "ati/creds/r", "ati/check/r", "ati/proxy-env", "ati/proxy-env/1", "ati/validate", "ati/inspect"} {
		if out := s.vault(s.root, "path-help", path); !strings.Contains(out, "## DESCRIPTION") {
			t.Errorf("path-help %s:\n%s", path, out)
		}
	}
}
