//go:build interop

package test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/vault/api"

	"vault-plugin-secrets-ati/ati"
)

// The sub of each sandbox comes from its entity in Vault, regardless of the request.
func TestInteropAppRole(t *testing.T) {
	t.Parallel()
	s, secret := startEngine(t)
	s.runExample(s.root, "approle/setup.sh")
	tokens, roleIDs := map[string]string{}, map[string]any{}
	for _, name := range []string{"box1", "box2"} {
		dir := t.TempDir()
		s.runExample(s.root, "approle/add-sandbox.sh", name, dir)
		login := data{}
		for _, file := range []string{"role_id", "secret_id"} {
			b := readFile(t, filepath.Join(dir, file))
			info, err := os.Stat(filepath.Join(dir, file))
			if err != nil || info.Mode().Perm() != 0o600 {
				t.Errorf("%s has mode %v (%v)", file, info.Mode(), err)
			}
			login[file] = string(b)
		}
		tokens[name], roleIDs[name] = s.write("", "auth/approle/login", login).Auth.ClientToken, login["role_id"]
		// The secret ID works once.
		if _, err := s.client("").Logical().Write("auth/approle/login", login); err == nil {
			t.Errorf("%s logs in twice", name)
		}
	}
	// A name that exists, or differs from one only in case, is rejected and changes nothing.
	s.write(s.root, "identity/entity", data{"name": "bob", "policies": "default"})
	for _, args := range [][]string{{}, {"box3"}, {"box3", "/nonexistent"}} {
		if out, err := s.tryExample(s.root, "approle/add-sandbox.sh", args...); err == nil || s.request(s.root, "GET", "identity/entity/name/box3", nil) != 404 {
			t.Errorf("with %q it adds a sandbox:\n%s", args, out)
		}
	}
	for _, name := range []string{"box1", "BOX1", "bob", "-x", "a/b", ""} {
		dir := t.TempDir()
		if out, err := s.tryExample(s.root, "approle/add-sandbox.sh", name, dir); err == nil {
			t.Errorf("a sandbox %q was added:\n%s", name, out)
		}
		if files, err := os.ReadDir(dir); err != nil || len(files) > 0 {
			t.Errorf("a rejected sandbox %q has files %v (%v)", name, files, err)
		}
	}
	s.runExample(s.root, "approle/setup.sh") // running it again changes nothing
	for name, token := range tokens {
		creds := s.write(token, "ati/creds/sandbox", nil)
		if c := claims(t, secret, creds); c.Subject != "sandbox:"+name || c.JobID != creds.RequestID {
			t.Errorf("%s is %q, job %q", name, c.Subject, c.JobID)
		}
		for try, want := range map[string]int{
			"PUT ati/creds/sandbox agent_id=sandbox:box2": 400,
			"PUT ati/creds/sandbox job_id=x":              400,
			"PUT ati/creds/sandbox sub=x":                 400,
			"GET ati/creds/sandbox":                       403,
			"PUT ati/creds/other":                         403,
			"PUT identity/entity name=box2":               403,
			"PUT auth/approle/role/sandbox-box2 x=y":      403,
			"GET ati/roles/sandbox":                       403,
		} {
			fields := strings.Fields(try)
			d := data{}
			for _, kv := range fields[2:] {
				k, v, _ := strings.Cut(kv, "=")
				d[k] = v
			}
			if got := s.request(token, fields[0], fields[1], d); got != want {
				t.Errorf("%s: %s returns %d, want %d", name, try, got, want)
			}
		}
	}
	// Deleting the AppRole blocks new logins, but not the sandbox's Vault token. Deleting the
	// entity blocks that too. The other sandbox is not affected.
	again := data{"role_id": roleIDs["box1"], "secret_id": s.write(s.root, "auth/approle/role/sandbox-box1/secret-id", nil).Data["secret_id"]}
	s.vault(s.root, "write", "auth/approle/role/sandbox-box4", "token_policies=default")
	blind := s.policy("blind", `path "identity/*" { capabilities = ["create", "read", "update"] }
path "auth/approle/role/+" { capabilities = ["create", "update"] }`)
	if out, err := s.tryExample(blind, "approle/add-sandbox.sh", "box4", t.TempDir()); err == nil || !strings.Contains(out, "permission denied") || s.request(s.root, "GET", "identity/entity/name/box4", nil) != 404 {
		t.Errorf("a caller that may not read the AppRole adds a sandbox:\n%s", out)
	}
	if out, err := s.tryExample(s.root, "approle/add-sandbox.sh", "box4", t.TempDir()); err == nil || s.request(s.root, "GET", "identity/entity/name/box4", nil) != 404 {
		t.Errorf("it adds a sandbox whose AppRole already exists:\n%s", out)
	}
	for _, step := range []struct {
		path string
		want int
	}{{"auth/approle/role/sandbox-box1", 200}, {"identity/entity/name/box1", 403}} {
		s.vault(s.root, "delete", step.path)
		if _, err := s.client("").Logical().Write("auth/approle/login", again); err == nil {
			t.Errorf("after the deletion of %s a login succeeds", step.path)
		}
		if got := s.request(tokens["box1"], "PUT", "ati/creds/sandbox", nil); got != step.want {
			t.Errorf("after the deletion of %s a mint returns %d, want %d", step.path, got, step.want)
		}
		if got := s.request(tokens["box2"], "PUT", "ati/creds/sandbox", nil); got != 200 {
			t.Errorf("after the deletion of %s the other sandbox's mint returns %d", step.path, got)
		}
	}
}

// A real Agent renews the token several times while a real ati client makes calls
// continuously. No call fails.
func TestInteropSandboxAgent(t *testing.T) {
	t.Parallel()
	s, _ := startEngine(t)
	p := startProxy(t, s.proxyEnv())
	s.write(s.root, "ati/config", data{"proxy_url": p.addr})
	s.runExample(s.root, "approle/setup.sh")
	// Tokens are valid for 8 seconds and renewed every 2.4 to 2.8 seconds. Agent's Vault token
	// is valid for 6 seconds and its secret ID works once, so it must renew the Vault token.
	s.write(s.root, "ati/roles/sandbox", data{"ttl": "8s"})
	dir := t.TempDir()
	s.runExample(s.root, "approle/add-sandbox.sh", "box1", dir)
	s.write(s.root, "auth/approle/role/sandbox-box1", data{"token_ttl": "6s"})
	run := t.TempDir()
	config := modifiedExample(t, "sandbox-agent/agent.hcl", map[string]string{
		"/etc/vault-agent": dir, "/run/ati": run, `"40m"`: `"3s"`,
	})
	a := s.startAgent(config, "ATI_PROXY_URL="+p.addr)
	file := filepath.Join(run, "session_token")
	poll(t, "Agent has rendered the token", func() error { _, err := os.Stat(file); return err })
	info, err := os.Stat(file)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the token has mode %v (%v)", info.Mode(), err)
	}
	seen := map[string]bool{}
	calls := 0
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); calls++ {
		b := readFile(t, file)
		token := string(b)
		if strings.TrimSpace(token) != token {
			t.Fatalf("the file has whitespace around the token")
		}
		seen[token] = true
		cmd := exec.Command(requireEnv(t, "ATI_BIN"), "run", "web_search")
		cmd.Env = []string{"HOME=" + run, "PATH=" + os.Getenv("PATH"), "ATI_PROXY_URL=" + p.addr, "ATI_SESSION_TOKEN_FILE=" + file}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("call %d, after %d tokens: %v\n%s\n%s", calls, len(seen), err, out, a.out)
		}
	}
	t.Logf("%d calls with %d tokens, none failed", calls, len(seen))
	for token := range seen {
		if strings.Contains(a.out.String(), token) {
			t.Error("Agent's log contains a token")
		}
	}
	if len(seen) < 4 || calls < 20 || p.calls.Load() < int64(calls) {
		t.Errorf("only %d calls with %d tokens", calls, len(seen))
	}
	// When the mount's proxy changes, Agent gets an error instead of a token.
	s.write(s.root, "ati/config", data{"proxy_url": "https://elsewhere.example.com"})
	poll(t, "Agent logs that the mount has no key for its proxy", func() error {
		if !strings.Contains(a.out.String(), "no active key for proxy_url") {
			return fmt.Errorf("not in its log")
		}
		return nil
	})
}

// With agent-env.hcl, Agent restarts the process for every new token.
func TestInteropSandboxAgentEnv(t *testing.T) {
	t.Parallel()
	s, secret := startEngine(t)
	s.runExample(s.root, "approle/setup.sh")
	s.write(s.root, "ati/roles/sandbox", data{"ttl": "10s"})
	dir := t.TempDir()
	s.runExample(s.root, "approle/add-sandbox.sh", "box1", dir)
	s.write(s.root, "auth/approle/role/sandbox-box1", data{"token_ttl": "4s"})
	log := filepath.Join(dir, "starts")
	process := filepath.Join(dir, "process")
	if err := os.WriteFile(process, []byte("#!/usr/bin/env bash\nprintf '%s\\n' \"$ATI_SESSION_TOKEN\" >>"+log+"\nexec sleep 60\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	config := modifiedExample(t, "sandbox-agent/agent-env.hcl", map[string]string{"/etc/vault-agent": dir, "/usr/local/bin/agent-process": process, `"40m"`: `"3s"`})
	a := s.startAgent(config, "ATI_PROXY_URL=https://ati.example.com")
	var starts []string
	poll(t, "Agent has started the process three times", func() error {
		b, err := os.ReadFile(log)
		if err != nil {
			return fmt.Errorf("%v\n%s", err, a.out)
		}
		if starts = strings.Fields(string(b)); len(starts) < 3 {
			return fmt.Errorf("%d starts\n%s", len(starts), a.out)
		}
		return nil
	})
	key := parseSecret(t, secret)
	distinct := map[string]bool{}
	for _, token := range starts {
		distinct[token] = true
		if c, err := ati.ValidateToken(token, key); err != nil || c.Subject != "sandbox:box1" {
			t.Errorf("%v %+v", err, c)
		}
	}
	for token := range distinct {
		if strings.Contains(a.out.String(), token) {
			t.Error("Agent's log contains a token")
		}
	}
	if len(distinct) != len(starts) {
		t.Errorf("%d starts with %d tokens", len(starts), len(distinct))
	}
}

// A real Agent starts the proxy with its environment, and starts none that would accept
// requests without a token.
func TestInteropProxyAgent(t *testing.T) {
	t.Parallel()
	s, _ := startEngine(t)
	s.enableProxyHosts()
	if err := s.client(s.root).Sys().PutPolicy("nothing", `path "ati/creds/x" { capabilities = ["read"] }`); err != nil {
		t.Fatal(err)
	}
	s.write(s.root, "ati/roles/r", data{"tools": "web_search"})
	elapsed := func(d time.Duration) func() bool {
		end := time.Now().Add(d)
		return func() bool { return time.Now().After(end) }
	}

	t.Run("starts and is restarted with a new key", func(t *testing.T) {
		config, p, env := s.newProxyHost(t, "proxy-host", nil)
		a := s.startAgent(config, append(env, "ATI_JWT_PUBLIC_KEY=/nonexistent")...) // the proxy would accept every request
		waitProtected(t, p, a, p.isReady)
		if got := p.call(s.mint("r", nil), "web_search"); got != 200 {
			t.Errorf("a call with a token returns %d\n%s", got, a.out)
		}
		// ATI before 0.7.12 needs ATI_JWT_AUDIENCE.
		if diff := cmp.Diff(s.proxyEnv(), p.jwtEnv(t)); diff != "" {
			t.Errorf("the proxy's environment (-want +got):\n%s", diff)
		}
		// The audit file is in the proxy's directory, not in ~/.ati.
		if audit, err := os.ReadFile(filepath.Join(p.dir, "audit.jsonl")); err != nil || bytes.Count(audit, []byte("\n")) != 1 {
			t.Errorf("the proxy's audit file has %q (%v)", audit, err)
		}
		old := s.mint("r", nil)
		secrets := []string{s.proxyEnv()["ATI_JWT_SECRET"]}
		s.write(s.root, "ati/config/rotate", nil)
		fresh := s.mint("r", nil)
		switched := func() bool { return p.call(fresh, "web_search") != 401 && p.call(fresh, "web_search") != 0 }
		waitProtected(t, p, a, func() bool { return switched() || a.hasExited() })
		if got := p.call(old, "web_search"); got != 401 {
			t.Errorf("a token of the previous key returns %d", got)
		}
		for _, secret := range append(secrets, s.proxyEnv()["ATI_JWT_SECRET"]) {
			if strings.Contains(a.out.String(), secret) {
				t.Error("Agent's log contains the secret")
			}
		}
		// With an empty issuer, the proxy is also restarted with a new key.
		s.write(s.root, "ati/config", data{"issuer": ""})
		s.write(s.root, "ati/config/rotate", nil)
		fresh, old = s.mint("r", nil), fresh
		waitProtected(t, p, a, func() bool { return switched() || a.hasExited() })
		if got, after := p.call(old, "web_search"), p.call(fresh, "web_search"); got != 401 || after != 200 {
			t.Errorf("without an issuer, a token of the previous key returns %d, and one of the new key %d\n%s", got, after, a.out)
		}
		s.write(s.root, "ati/config", data{"issuer": "ati-orchestrator"})
		// When Agent is killed, an orphaned proxy still rejects calls without a token.
		a.stop(syscall.SIGKILL)
		waitProtected(t, p, a, elapsed(2*time.Second))
	})
	// notStarted starts an Agent that must log want and start no proxy.
	notStarted := func(name, policy, want string, changes map[string]string, env ...string) {
		t.Run(name, func(t *testing.T) {
			config, p, hostEnv := s.newProxyHost(t, policy, changes)
			a := s.startAgent(config, append(hostEnv, env...)...)
			waitProtected(t, p, a, func() bool { return strings.Contains(a.out.String(), want) })
			waitProtected(t, p, a, elapsed(3*time.Second))
			if got := p.call("", "web_search"); got != 0 {
				t.Errorf("a proxy runs, and returns %d\n%s", got, a.out)
			}
		})
	}
	notStarted("the path denied", "nothing", "permission denied", nil)
	notStarted("a key missing from the response", "proxy-host", "map has no entry for key", map[string]string{".Data.ATI_JWT_ACCEPTED_AUDIENCES": ".Data.NOT_THERE"})
	notStarted("Vault unreachable at start", "proxy-host", "connection refused", nil, "VAULT_ADDR=http://127.0.0.1:1")
	t.Run("Agent ends on a template error", func(t *testing.T) {
		config, p, env := s.newProxyHost(t, "proxy-host", map[string]string{
			"template_config {": "template_config {\n  exit_on_retry_failure = true", `{{ with index .Data \"ATI_JWT_ISSUER\" }}{{ . }}{{ end }}`: "{{ .Data.ATI_JWT_ISSUER }}",
		})
		a := s.startAgent(config, env...)
		waitProtected(t, p, a, p.isReady)
		s.write(s.root, "ati/config", data{"issuer": ""}) // the response no longer contains it
		waitProtected(t, p, a, a.hasExited)
		waitProtected(t, p, a, elapsed(3*time.Second))
		if got := p.call("", "web_search"); got != 401 {
			t.Errorf("the orphaned proxy returns %d to a call without a token", got)
		}
		s.write(s.root, "ati/config", data{"issuer": "ati-orchestrator"})
	})

	// With ES256, the response has no ATI_JWT_SECRET. The proxy gets the public key in a file.
	s.rotate("", data{"algorithm": "ES256"})
	notStarted("ES256", "proxy-host", "<.Data.ATI_JWT_SECRET>: map has no entry for key", nil)
	t.Run("ES256 with a public key file", func(t *testing.T) {
		env := s.proxyEnv()
		env["public_key"] = s.vault(s.root, "read", "-field=public_key", "ati/proxy-env")
		if got := startProxy(t, env).call(s.mint("r", nil), "web_search"); got != 200 {
			t.Errorf("a call with a token returns %d", got)
		}
	})
}

// jwtEnv returns the variables of the running proxy whose names begin with ATI_JWT_.
func (p *proxy) jwtEnv(t *testing.T) map[string]string {
	t.Helper()
	port := strings.Split(p.addr, ":")[2]
	pids := processes(t, func(args string) bool {
		return strings.HasPrefix(args, requireEnv(t, "ATI_BIN")+"\x00proxy\x00") && strings.Contains(args, "\x00"+port+"\x00")
	})
	if len(pids) != 1 {
		t.Fatalf("the proxy's processes are %v", pids)
	}
	env := map[string]string{}
	for _, variable := range strings.Split(string(readFile(t, fmt.Sprintf("/proc/%d/environ", pids[0]))), "\x00") {
		if name, value, _ := strings.Cut(variable, "="); strings.HasPrefix(name, "ATI_JWT_") {
			env[name] = value
		}
	}
	return env
}

// The orchestrator in examples/go and the Python package replace ati-client.
func TestInteropOrchestrators(t *testing.T) {
	t.Parallel()
	t.Run("Go", testGoOrchestrator)
	t.Run("Python", testPython)
}

func testGoOrchestrator(t *testing.T) {
	t.Parallel()
	s, secret := startEngine(t)
	s.write(s.root, "ati/roles/researcher", data{"tools": "web_search,github:*", "allowed_agent_ids": "sandbox:*"})
	token := s.policy("orchestrator", string(readFile(t, "../examples/policies/orchestrator.hcl")))
	run := func(tools string) (out []byte, stderr string, err error) {
		cmd := exec.CommandContext(t.Context(), "go", append([]string{"run", "../examples/go", "researcher", "sandbox:abc"}, strings.Fields(tools)...)...)
		cmd.Env = append(os.Environ(), "VAULT_ADDR="+s.addr, "VAULT_TOKEN="+token)
		var b bytes.Buffer
		cmd.Stderr = &b
		out, err = cmd.Output()
		return out, b.String(), err
	}
	for tools, scope := range map[string]string{"": "tool:web_search tool:github:*", "web_search github:x": "tool:web_search tool:github:x"} {
		out, stderr, err := run(tools)
		if err != nil {
			t.Errorf("%v\n%s", err, stderr)
			continue
		}
		var env map[string]string
		if err := json.Unmarshal(out, &env); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(map[string]string{"ATI_PROXY_URL": "https://ati.example.com", "ATI_SESSION_TOKEN": env["ATI_SESSION_TOKEN"]}, env); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
		if c, err := ati.ValidateToken(env["ATI_SESSION_TOKEN"], parseSecret(t, secret)); err != nil || c.Subject != "sandbox:abc" || c.Scope != scope {
			t.Errorf("%v, %+v", err, c)
		}
	}
	// A request for more than the role grants fails and prints nothing to standard output.
	if out, stderr, err := run("shell"); err == nil || len(out) > 0 || !strings.Contains(stderr, `scope "tool:shell" is not granted`) {
		t.Errorf("more than the role grants: %v\n%s\n%s", err, out, stderr)
	}
}

const schemaProgram = `
import json, sys, yaml, jsonschema

def strict(schema):
    # A cluster drops fields that the schema does not define; here they are errors.
    if isinstance(schema, dict):
        if "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
            schema.setdefault("additionalProperties", False)
        for value in schema.values():
            strict(value)
    elif isinstance(schema, list):
        for value in schema:
            strict(value)

schemas = {}
for path in sys.argv[2:]:
    crd = yaml.safe_load(open(path))["spec"]
    for version in crd["versions"]:
        schema = version["schema"]["openAPIV3Schema"]
        schema["properties"]["metadata"] = {"type": "object"}
        strict(schema["properties"])
        schemas[crd["group"] + "/" + version["name"], crd["names"]["kind"]] = schema
checked = []
for document in yaml.safe_load_all(open(sys.argv[1])):
    kind = document["apiVersion"], document["kind"]
    if kind in schemas:
        jsonschema.validate(document, schemas[kind])
        checked.append(document["kind"])
print(json.dumps(checked))
`

// The manifests for the operators match their schemas, and the request that the operators
// make returns the environment.
func TestInteropKubernetes(t *testing.T) {
	t.Parallel()
	out, err := exec.Command("go", "mod", "download", "-json", "github.com/external-secrets/external-secrets@v1.3.2").Output()
	if err != nil {
		t.Fatal(err)
	}
	var module struct{ Dir string }
	if err := json.Unmarshal(out, &module); err != nil {
		t.Fatal(err)
	}
	crds := filepath.Join(module.Dir, "config", "crds", "bases")
	if out, err = exec.Command("go", "mod", "download", "-json", "github.com/hashicorp/vault-secrets-operator@v0.10.0").Output(); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(out, &module); err != nil {
		t.Fatal(err)
	}
	check := func(manifest string) (string, error) {
		cmd := exec.Command("python3", "-c", schemaProgram, manifest,
			filepath.Join(crds, "generators.external-secrets.io_vaultdynamicsecrets.yaml"), filepath.Join(crds, "external-secrets.io_externalsecrets.yaml"),
			filepath.Join(module.Dir, "chart", "crds", "secrets.hashicorp.com_vaultdynamicsecrets.yaml"))
		cmd.Env = append(os.Environ(), "PYTHONPATH="+requireEnv(t, "JSONSCHEMA")+":"+requireEnv(t, "PYYAML"))
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	if out, err := check(filepath.Join("..", "examples", "kubernetes", "external-secrets.yaml")); err != nil || out != `["VaultDynamicSecret", "ExternalSecret"]`+"\n" {
		t.Errorf("%v\n%s", err, out)
	}
	if out, err := check(filepath.Join("..", "examples", "kubernetes", "vault-secrets-operator.yaml")); err != nil || out != `["VaultDynamicSecret"]`+"\n" {
		t.Errorf("%v\n%s", err, out)
	}
	// The operator's request, with its policy.
	s, secret := startEngine(t)
	s.runExample(s.root, "approle/setup.sh")
	s.write(s.root, "ati/roles/sandbox", data{"subject": ""})
	operator, err := s.client(s.root).Auth().Token().Create(&api.TokenCreateRequest{Policies: []string{"ati-sandbox"}, NoDefaultPolicy: true})
	if err != nil {
		t.Fatal(err)
	}
	env := s.write(operator.Auth.ClientToken, "ati/creds/sandbox", data{"format": "env"}).Data
	key := parseSecret(t, secret)
	if _, err := ati.ValidateToken(env["ATI_SESSION_TOKEN"].(string), key); err != nil || len(env) != 2 || env["ATI_PROXY_URL"] != "https://ati.example.com" {
		t.Errorf("the Secret would contain %v (%v)", env, err)
	}
	// Without "method: POST", the External Secrets Operator sends a GET without the parameters.
	if got := s.request(operator.Auth.ClientToken, "GET", "ati/creds/sandbox", nil); got != 403 {
		t.Errorf("a read returns %d", got)
	}
	// The check detects errors.
	for old, replacement := range map[string]string{"method: POST": "methode: POST", "refreshInterval: 40m": "refreshInterval: [40m]"} {
		if out, err := check(modifiedExample(t, "kubernetes/external-secrets.yaml", map[string]string{old: replacement})); err == nil {
			t.Errorf("with %s it passes:\n%s", replacement, out)
		}
	}
	if out, err := check(modifiedExample(t, "kubernetes/vault-secrets-operator.yaml", map[string]string{"excludeRaw: true": "excluderaw: true"})); err == nil {
		t.Errorf("with excluderaw it passes:\n%s", out)
	}
}
