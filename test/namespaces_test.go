package test

import (
	"bytes"
	"encoding/json"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"vault-plugin-secrets-ati/ati"
)

// Engines in two namespaces. Vault's community edition has no namespaces, and rejects their
// creation.
func TestNamespaces(t *testing.T) {
	t.Parallel()
	s := startVault(t)
	if tested.name == vault.name {
		if status, body := s.send(s.root, "PUT", "sys/namespaces/ns1", nil, data{}); status != http.StatusNotFound || !strings.Contains(body, "enterprise-only feature") {
			t.Errorf("creating a namespace returns %d, %s", status, body)
		}
		return
	}
	s.register("v0.1.0")
	n := namespaces{s, map[string]string{}}
	s.write(s.root, "sys/mounts/ati", data{"type": pluginName})
	s.write(s.root, "sys/auth/people", data{"type": "userpass"})
	for _, ns := range []string{"ns1", "ns2"} {
		s.write(s.root, "sys/namespaces/"+ns, nil)
		s.write(s.root, ns+"/sys/mounts/ati", data{"type": pluginName})
		s.write(s.root, ns+"/ati/config", data{"proxy_url": "https://" + ns + ".example.com"})
		n.secrets[ns] = s.read(s.root, ns+"/ati/proxy-env").Data["ATI_JWT_SECRET"].(string)
		s.write(s.root, ns+"/ati/roles/researcher", data{"tools": "web_search", "allowed_agent_ids": "sandbox:*"})
		s.write(s.root, ns+"/sys/auth/people", data{"type": "userpass"})
		for _, name := range []string{"admin", "security-auditor", "orchestrator", "sandbox", "proxy-host", "proxy-guard"} {
			s.write(s.root, ns+"/sys/policies/acl/ati-"+name, data{"policy": string(readFile(t, "../examples/policies/"+name+".hcl"))})
		}
	}
	t.Run("policies grant access to the engine of their namespace only", n.policies)
	t.Run("logins, scripts, and examples work inside a namespace", n.examples)
	t.Run("an entity of the parent namespace cannot be looked up", n.entityOfParent)
	t.Run("reload covers only the namespace that it runs in", n.upgrade)
	t.Run("jwks is available by path and by header", n.jwks)
}

type namespaces struct {
	*server
	secrets map[string]string // namespace → secret of its engine
}

// loginWith logs in to a userpass mount that has a user for the policy.
func (s *server) loginWith(mount, policy string) string {
	s.t.Helper()
	s.write(s.root, mount+"/users/"+policy, data{"password": "x", "token_policies": policy, "token_no_default_policy": true})
	return s.write("", mount+"/login/"+policy, data{"password": "x"}).Auth.ClientToken
}

// runIn runs a command with vault in PATH and a namespace in an environment variable.
func (s *server) runIn(variable, namespace, token string, command ...string) string {
	s.t.Helper()
	cmd := exec.CommandContext(s.t.Context(), command[0], command[1:]...)
	cmd.Env = append(os.Environ(), "PATH="+pathWithVault(s.t), "VAULT_ADDR="+s.addr, "VAULT_TOKEN="+token, variable+"="+namespace)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		s.t.Fatalf("%s=%s %s: %v\n%s", variable, namespace, strings.Join(command, " "), err, stderr.String())
	}
	return string(out)
}

func (s namespaces) policies(t *testing.T) {
	allowed := map[string][]string{
		"ati-admin":            {"GET ati/config", "GET ati/config/rotate", "LIST ati/roles", "GET ati/roles/researcher"},
		"ati-security-auditor": {"GET ati/config", "GET ati/config/rotate", "LIST ati/roles", "GET ati/roles/researcher"},
		"ati-orchestrator":     {"PUT ati/creds/researcher"},
		"ati-sandbox":          {},
		"ati-proxy-host":       {"GET ati/proxy-env", "GET ati/proxy-env/1"},
		"ati-proxy-guard":      {"GET ati/guard"},
	}
	for policy := range allowed {
		token := s.loginWith("ns1/auth/people", policy)
		for _, request := range slices.Concat(slices.Collect(maps.Values(allowed))...) {
			method, path, _ := strings.Cut(request, " ")
			want := http.StatusForbidden
			if slices.Contains(allowed[policy], request) {
				want = http.StatusOK
			}
			for prefix, want := range map[string]int{"ns1/": want, "ns2/": http.StatusForbidden, "": http.StatusForbidden} {
				if got := s.request(token, method, prefix+path, nil); got != want {
					t.Errorf("%s of ns1: %s %s%s returns %d, want %d", policy, method, prefix, path, got, want)
				}
			}
			for namespace, want := range map[string]int{"ns1": want, "ns2": http.StatusForbidden} {
				if got, _ := s.send(token, method, path, http.Header{"X-Vault-Namespace": {namespace}}, nil); got != want {
					t.Errorf("%s of ns1: %s %s with the header for %s returns %d, want %d", policy, method, path, namespace, got, want)
				}
			}
		}
	}
}

func (s namespaces) examples(t *testing.T) {
	s.write(s.root, "ns1/sys/auth/approle", data{"type": "approle"})
	s.write(s.root, "ns1/auth/approle/role/orchestrator", data{"role_id": "orchestrator", "token_policies": "ati-orchestrator", "token_no_default_policy": true})
	secretID := s.write(s.root, "ns1/auth/approle/role/orchestrator/secret-id", nil).Data["secret_id"]
	orchestrator := s.write("", "ns1/auth/approle/login", data{"role_id": "orchestrator", "secret_id": secretID}).Auth.ClientToken
	c := claims(t, s.secrets["ns1"], s.write(orchestrator, "ns1/ati/creds/researcher", data{"agent_id": "sandbox:1"}))
	if c.Subject != "sandbox:1" {
		t.Errorf("the token is for %q", c.Subject)
	}
	if _, err := s.client("").Logical().Write("ns2/auth/approle/login", data{"role_id": "orchestrator", "secret_id": secretID}); err == nil {
		t.Error("the orchestrator of ns1 can log in to ns2")
	}

	// A subject from the identity system. The scripts create AppRoles and entities.
	for variable, name := range map[string]string{"BAO_NAMESPACE": "box1", "VAULT_NAMESPACE": "box2"} {
		s.runIn(variable, "ns1", s.root, "../examples/approle/setup.sh")
		dir := t.TempDir()
		s.runIn(variable, "ns1", s.root, "../examples/approle/add-sandbox.sh", name, dir)
		login := data{}
		for _, file := range []string{"role_id", "secret_id"} {
			login[file] = string(readFile(t, filepath.Join(dir, file)))
		}
		token := s.write("", "ns1/auth/approle/login", login).Auth.ClientToken
		if got := claims(t, s.secrets["ns1"], s.write(token, "ns1/ati/creds/sandbox", nil)).Subject; got != "sandbox:"+name {
			t.Errorf("the sandbox %s gets a token for %q", name, got)
		}
		if got := s.runIn(variable, "ns1", token, vaultBin, "write", "-f", "-field=sub", "ati/creds/sandbox"); got != "sandbox:"+name {
			t.Errorf("with %s, the CLI prints a token for %q", variable, got)
		}
	}
	if got := s.request(s.root, "GET", "identity/entity/name/box1", nil); got != http.StatusNotFound {
		t.Errorf("the root namespace has the sandbox's entity: %d", got)
	}

	out := s.runIn("VAULT_NAMESPACE", "ns1", orchestrator, "go", "run", "../examples/go", "researcher", "sandbox:2")
	var env map[string]string
	if err := json.Unmarshal([]byte(out), &env); err != nil {
		t.Fatal(err)
	}
	if c, err := ati.ValidateToken(env["ATI_SESSION_TOKEN"], parseSecret(t, s.secrets["ns1"])); err != nil || c.Subject != "sandbox:2" || env["ATI_PROXY_URL"] != "https://ns1.example.com" {
		t.Errorf("the Go example gets %+v for %s (%v)", c, env["ATI_PROXY_URL"], err)
	}
}

// jwks needs no token.
func (s namespaces) jwks(t *testing.T) {
	s.write(s.root, "ns1/ati/config/rotate", data{"algorithm": "ES256"})
	keys := func(path string, header http.Header) (kids []string) {
		status, body := s.send("", "GET", path, header, nil)
		var set struct{ Keys []struct{ Kid string } }
		if err := json.Unmarshal([]byte(body), &set); err != nil || status != http.StatusOK {
			t.Errorf("GET %s with %v returns %d, %s", path, header, status, body)
		}
		for _, key := range set.Keys {
			kids = append(kids, key.Kid)
		}
		return kids
	}
	fingerprint := s.read(s.root, "ns1/ati/config/rotate").Data["current_fingerprint"].(string)
	for namespace, want := range map[string][]string{"ns1": {fingerprint}, "ns2": nil} {
		if diff := cmp.Diff(want, keys(namespace+"/ati/jwks", nil)); diff != "" {
			t.Errorf("the path of %s (-want +got):\n%s", namespace, diff)
		}
		if diff := cmp.Diff(want, keys("ati/jwks", http.Header{"X-Vault-Namespace": {namespace}})); diff != "" {
			t.Errorf("the header for %s (-want +got):\n%s", namespace, diff)
		}
	}
	if got := keys("ati/jwks", nil); got != nil {
		t.Errorf("the root namespace's engine has the keys %v", got)
	}
}

func (s namespaces) upgrade(t *testing.T) {
	s.register("v0.2.0")
	running := func(ns string) string {
		return s.vault(s.root, "read", "-namespace="+ns, "-field=running_plugin_version", "sys/mounts/ati")
	}
	reload := func(ns string) {
		s.vault(s.root, "plugin", "reload", "-namespace="+ns, "-scope=global", "-plugin="+pluginName)
	}
	for _, ns := range []string{"ns1", "ns2"} {
		s.vault(s.root, "secrets", "tune", "-namespace="+ns, "-plugin-version=v0.2.0", "ati")
	}
	reload("")
	if got := running("ns1"); !strings.HasPrefix(got, "v0.1.0") {
		t.Errorf("after a reload in the root namespace, ns1 runs %s", got)
	}
	reload("ns1")
	if got := running("ns1"); !strings.HasPrefix(got, "v0.2.0") {
		t.Errorf("after a reload in ns1, it runs %s", got)
	}
	if got := running("ns2"); !strings.HasPrefix(got, "v0.1.0") {
		t.Errorf("after a reload in ns1, ns2 runs %s", got)
	}
	for ns, secret := range s.secrets {
		claims(t, secret, s.read(s.root, ns+"/ati/creds/researcher", "agent_id=sandbox:1"))
	}
}

func (s namespaces) entityOfParent(t *testing.T) {
	s.write(s.root, "sys/policies/acl/mint", data{"policy": `path "ns1/ati/creds/*" { capabilities = ["read"] }`})
	token := s.loginWith("auth/people", "mint")
	s.checkUnknownEntity(t, token, "ns1/ati", s.secrets["ns1"])
}

// A token from before a merge has the ID of an entity that no longer exists.
func TestCreds_MergedEntity(t *testing.T) {
	t.Parallel()
	s, secret := startEngine(t)
	s.write(s.root, "sys/policies/acl/mint", data{"policy": `path "ati/creds/*" { capabilities = ["read"] }`})
	var tokens, entities []string
	for _, mount := range []string{"one", "two"} {
		s.write(s.root, "sys/auth/"+mount, data{"type": "userpass"})
		token := s.loginWith("auth/"+mount, "mint")
		tokens = append(tokens, token)
		entities = append(entities, s.entityOf(token))
	}
	s.write(s.root, "identity/entity/merge", data{"from_entity_ids": entities[1:], "to_entity_id": entities[0]})
	s.checkUnknownEntity(t, tokens[1], "ati", secret)
	// A new login belongs to the entity that was merged into.
	token := s.loginWith("auth/two", "mint")
	if got := claims(t, secret, s.read(token, "ati/creds/identity")).Subject; got != entities[0] {
		t.Errorf("after a new login, the subject is %q, want %q", got, entities[0])
	}
}

func (s *server) entityOf(token string) string {
	s.t.Helper()
	return s.read(s.root, "auth/token/lookup", "token="+token).Data["entity_id"].(string)
}

// checkUnknownEntity checks what an engine returns to a caller whose entity it cannot look
// up.
func (s *server) checkUnknownEntity(t *testing.T, token, mount, secret string) {
	t.Helper()
	s.write(s.root, mount+"/roles/none", data{"tools": "web_search"})
	s.write(s.root, mount+"/roles/identity", data{"tools": "web_search", "subject": "{{identity.entity.id}}"})
	s.write(s.root, mount+"/roles/group", data{"tools": "web_search", "subject": "box", "job_id": "{{identity.groups.names.g.id}}"})
	entity := s.entityOf(token)
	if got := claims(t, secret, s.read(token, mount+"/creds/none")).Subject; got != entity {
		t.Errorf("without a template, the subject is %q, want %q", got, entity)
	}
	cause := "entity " + entity + " of the caller's token does not exist in this mount's namespace"
	for role, want := range map[string]string{
		"identity": "subject: cannot render {{identity.entity.id}}: " + cause,
		"group":    "job_id: cannot render {{identity.groups.names.g.id}}: " + cause,
	} {
		if status, body := s.send(token, "GET", mount+"/creds/"+role, nil, nil); status != http.StatusBadRequest || !strings.Contains(body, want) {
			t.Errorf("role %s returns %d, %s", role, status, body)
		}
	}
}
