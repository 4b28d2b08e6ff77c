//go:build docs

package test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

var (
	block   = regexp.MustCompile("(?ms)^ *```(\\S*)\n(.*?)^ *```$")
	refused = regexp.MustCompile(`^(.*\S)\s+# refused: (.*)$`)

	// The comment above a code block that is not run, or not run as it is.
	notRun = regexp.MustCompile("(?m)^( *)<!-- (?:not run here: \\S.*|run by (Test\\w+)) -->\n *```(?:console|python|yaml)$")
)

// commands returns a script with all sh blocks of a document. A line that ends in
// "# refused: text" must fail and print the text. Blocks of console, python, and yaml are not
// run, and need a comment with the reason. Blocks of text are ignored.
func commands(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var script strings.Builder
	left := 0
	for _, m := range block.FindAllStringSubmatch(string(b), -1) {
		switch m[1] {
		case "sh":
		case "console", "python", "yaml":
			left++
			continue
		case "text":
			continue
		default:
			t.Fatalf("%s: code block with language %q; use sh, text, or, for blocks that are not run, console, python, or yaml", path, m[1])
		}
		for _, line := range strings.Split(m[2], "\n") {
			if r := refused.FindStringSubmatch(line); r != nil {
				line = fmt.Sprintf("must_fail %s %s", shellQuote(r[2]), shellQuote(r[1]))
			}
			fmt.Fprintln(&script, line)
		}
	}
	marks := notRun.FindAllStringSubmatch(string(b), -1)
	if len(marks) != left {
		t.Errorf("%s has %d blocks that are not run, but %d comments with a reason", path, left, len(marks))
	}
	sources := ""
	if left > 0 {
		sources = testSources(t)
	}
	for _, mark := range marks {
		if mark[2] != "" && !strings.Contains(sources, "\nfunc "+mark[2]+"(") {
			t.Errorf("%s names %s, which does not exist", path, mark[2])
		}
	}
	return script.String()
}

const prelude = `
set -euo pipefail
must_fail() {
  local want=$1 out
  shift
  if out=$(eval "$1" 2>&1); then
    echo "expected this command to fail, but it succeeded: $*" >&2
    exit 1
  fi
  if [[ $out != *"$want"* ]]; then
    printf 'failed without printing "%s": %s\n%s\n' "$want" "$*" "$out" >&2
    exit 1
  fi
}
set -x
`

// TestREADME runs the commands in the README.
func TestREADME(t *testing.T) {
	s := startVault(t)
	work := t.TempDir() // instead of the clone
	bin := filepath.Join(work, "bin")
	if err := os.Mkdir(bin, 0o755); err != nil {
		t.Fatal(err)
	}
	root, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	script := strings.ReplaceAll(commands(t, "../README.md"), "/etc/vault/plugins", s.pluginDir())
	// make build writes to bin/ of the clone. Write to bin/ of the temporary directory instead.
	script = strings.ReplaceAll(script, "make build\n", root+"/scripts/build.sh "+bin+"/vault-plugin-secrets-ati\n")
	out := s.runCommands(work, script)
	if !strings.Contains(out, "ATI_SESSION_TOKEN") || !strings.Contains(out, `"sandbox:2": "eyJ`) {
		t.Errorf("the commands print no token:\n%s", out)
	}
	login := s.logins("ati-orchestrator")
	for _, r := range []struct {
		request
		want int
	}{
		{request{"PUT", "ati/creds/researcher", data{"agent_id": "sandbox:1"}}, 200},
		{request{"PUT", "ati/creds/researcher", data{"tools": "x"}}, 400},
		{request{"GET", "ati/creds/researcher", nil}, 403},
		{request{"GET", "ati/config", nil}, 403},
		{request{"GET", "ati/proxy-env", nil}, 403},
	} {
		if got := s.request(login["ati-orchestrator"], r.method, r.path, r.data); got != r.want {
			t.Errorf("as the orchestrator, %s %s returns %d, want %d", r.method, r.path, got, r.want)
		}
	}
}

// logins returns Vault tokens for the policies, each with an entity named like its policy.
func (s *server) logins(policies ...string) map[string]string {
	s.t.Helper()
	s.vault(s.root, "auth", "enable", "-path=people", "userpass")
	tokens := map[string]string{}
	for _, name := range policies {
		s.write(s.root, "auth/people/users/"+name, data{"password": "x", "token_policies": name, "token_no_default_policy": true})
		tokens[name] = s.write("", "auth/people/login/"+name, data{"password": "x"}).Auth.ClientToken
	}
	s.nameEntities()
	return tokens
}

// checkPolicies checks the table in docs/policies.md for the policies in examples/policies.
func (s *server) checkPolicies(t *testing.T) {
	requests := map[string][]request{
		"read `ati/config`, `ati/config/rotate`":                  {{"GET", "ati/config", nil}, {"GET", "ati/config/rotate", nil}},
		"write `ati/config`, or a step below `ati/config/rotate`": {{"PUT", "ati/config", data{"issuer": "ati-orchestrator"}}, {"PUT", "ati/config/rotate/stage", data{"proxy_url": "https://green.example.com"}}, {"DELETE", "ati/config/rotate/stage", nil}},
		"list or read `ati/roles`":                                {{"LIST", "ati/roles", nil}, {"GET", "ati/roles/researcher", nil}},
		"write or delete `ati/roles`":                             {{"PUT", "ati/roles/researcher", data{"ttl": "2h"}}, {"DELETE", "ati/roles/nobody", nil}},
		"read `ati/creds`":                                        {{"GET", "ati/creds/researcher", nil}, {"GET", "ati/creds/sandbox", nil}},
		"mint for `researcher`, one or many":                      {{"PUT", "ati/creds/researcher", data{"agent_id": "sandbox:1", "tools": "web_search"}}, {"PUT", "ati/batch/researcher", data{"agent_ids": "sandbox:1,sandbox:2"}}},
		"mint for `researcher` more than it grants":               {{"PUT", "ati/creds/researcher", data{"tools": "*"}}, {"PUT", "ati/creds/researcher", data{"agent_id": "other"}}},
		"mint for `sandbox`":                                      {{"PUT", "ati/creds/sandbox", nil}},
		"mint for `sandbox` as another agent":                     {{"PUT", "ati/creds/sandbox", data{"agent_id": "sandbox:2"}}},
		"`ati/check`, `ati/validate`, `ati/inspect`":              {{"GET", "ati/check/researcher?tool=x", nil}, {"PUT", "ati/validate", data{"token": "x"}}, {"PUT", "ati/inspect", data{"token": "x"}}},
		"revoke a token with `ati/revoke`":                        {{"PUT", "ati/revoke", data{"agent_id": "other"}}},
		"revoke an agent of `researcher`":                         {{"PUT", "ati/revoke/researcher", data{"agent_id": "sandbox:9"}}},
		"list or read `ati/revoked`":                              {{"LIST", "ati/revoked", nil}, {"GET", "ati/revoked", nil}},
		"read `ati/guard`":                                        {{"GET", "ati/guard", nil}},
		"read `ati/proxy-env`, or a version of it":                {{"GET", "ati/proxy-env", nil}, {"GET", "ati/proxy-env/1", nil}},
	}
	names := []string{"admin", "security-auditor", "orchestrator", "sandbox", "proxy-host", "proxy-guard"}
	var policies []string
	for _, name := range names {
		policies = append(policies, "ati-"+name)
	}
	tokens := s.logins(policies...)
	rows := tableRows(t, "../docs/policies.md", "| | "+strings.Join(names, " | ")+" |")
	if len(rows) != len(requests) {
		t.Errorf("the table has %d rows, but this test covers %d", len(rows), len(requests))
	}
	for _, row := range rows {
		known, ok := requests[row[0]]
		if !ok {
			t.Errorf("this test does not cover row %q", row[0])
		}
		for i, policy := range policies {
			for _, r := range known {
				got := s.request(tokens[policy], r.method, r.path, r.data)
				if want := row[i+1]; want != strconv.Itoa(got) && (want != "yes" || got != 200 && got != 204) {
					t.Errorf("%s, %s: %s %s returns %d, but the table has %s", row[0], policy, r.method, r.path, got, want)
				}
			}
		}
	}
	if got := claims(t, oldSecret, s.write(tokens["ati-sandbox"], "ati/creds/sandbox", nil)).Subject; got != "sandbox:ati-sandbox" {
		t.Errorf("the sandbox is %q", got)
	}
}

// oldSecret is the value of $ATI_JWT_SECRET in the documents.
const oldSecret = "0f1e2d3c4b5a69788796a5b4c3d2e1f00f1e2d3c4b5a69788796a5b4c3d2e1f0"

// runCommands runs a script with vault in PATH and returns its output.
func (s *server) runCommands(dir, script string) string {
	s.t.Helper()
	cmd := exec.CommandContext(s.t.Context(), "bash", "-c", prelude+script)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "PATH="+pathWithVault(s.t), "VAULT_ADDR="+s.addr, "VAULT_TOKEN="+s.root, "ATI_JWT_SECRET="+oldSecret)
	out, err := cmd.CombinedOutput()
	if err != nil {
		s.t.Fatalf("%v\n%s", err, out)
	}
	return string(out)
}

// TestDocs runs the commands in each page of docs/ on a mount as the README sets it up, and
// checks the result.
func TestDocs(t *testing.T) {
	var guardLogin string
	checks := map[string]func(t *testing.T, s *server, out string, status data){
		"configure.md": func(t *testing.T, _ *server, out string, status data) {
			if status != nil {
				t.Errorf("after the deletion the versions are %v", status)
			}
			// The imported ES256 key's fingerprint: once each by rotate, vault read and
			// openssl, and as the kid.
			fingerprint := regexp.MustCompile(`(?m)^current_fingerprint +([0-9a-f]{16})$`).FindAllStringSubmatch(out, -1)
			if len(fingerprint) == 0 {
				t.Fatalf("rotate prints no fingerprint:\n%s", out)
			}
			imported := fingerprint[len(fingerprint)-1][1]
			if got := strings.Count(out, imported); got != 4 || !regexp.MustCompile(`(?m)^current_algorithm +ES256$`).MatchString(out) {
				t.Errorf("the fingerprint %s was printed %d times, want 4:\n%s", imported, got, out)
			}
		},
		"roles.md": func(t *testing.T, s *server, out string, _ data) {
			// The ten, researcher of the fixture, and nothing else.
			if got := len(s.list("ati/roles")); got != 11 {
				t.Errorf("the mount has %d roles", got)
			}
			if got := s.read(s.root, "ati/roles/reader").Data; len(got["skills"].([]any)) != 0 || got["ttl"] != json.Number("1800") {
				t.Errorf("the reader is %v", got)
			}
			if !strings.Contains(out, "map[*:500/day tool:web_search:30/hour]") {
				t.Errorf("the output does not contain the rates:\n%s", out)
			}
		},
		"policies.md": func(t *testing.T, s *server, _ string, _ data) { s.checkPolicies(t) },
		"vault-agent.md": func(t *testing.T, s *server, out string, _ data) {
			if !regexp.MustCompile(`sub +sandbox:abc123\n`).MatchString(out) {
				t.Errorf("Agent's token is not the sandbox's:\n%s", out)
			}
		},
		"proxy-without-guard.md": func(t *testing.T, _ *server, out string, status data) {
			// vault read and openssl print the same one.
			if got := strings.Count(out, status["current_fingerprint"].(string)); got != 2 {
				t.Errorf("the fingerprint was printed %d times, want 2", got)
			}
		},
		"kubernetes.md": func(t *testing.T, s *server, _ string, _ data) {
			if got := s.read(s.root, "ati/roles/sandbox").Data["subject"]; got != "{{identity.entity.id}}" {
				t.Errorf("the subject is %v", got)
			}
		},
		"terraform.md": func(t *testing.T, s *server, _ string, status data) {
			if got := versionsOf(t, status); got != (versions{Current: 1}) {
				t.Errorf("after config is written again, the versions are %+v", got)
			}
		},
		"audit.md": func(t *testing.T, s *server, out string, _ data) {
			for _, want := range []string{`"display_name":"people-alice"`, `"path":"ati/creds/researcher"`, `"remote_address":"127.0.0.1"`, "name                   alice"} {
				if !strings.Contains(out, want) {
					t.Errorf("the trail has no %s:\n%s", want, out)
				}
			}
			creds := s.read(s.root, "ati/creds/researcher").Data
			b, err := os.ReadFile(s.audit)
			if err != nil || !strings.Contains(string(b), `"scope":"`+creds["scope"].(string)+`"`) || strings.Contains(string(b), creds["token"].(string)) {
				t.Errorf("the audit log doesn't have the scope as plaintext, or has the token (%v)", err)
			}
		},
		"proxy.md": func(t *testing.T, s *server, out string, _ data) {
			login := s.write("", "auth/approle/login", data{"role_id": s.read(s.root, "auth/approle/role/proxy-guard/role-id").Data["role_id"], "secret_id": s.write(s.root, "auth/approle/role/proxy-guard/secret-id", nil).Data["secret_id"]})
			if keys := s.read(login.Auth.ClientToken, "secret/data/ati-keys").Data["data"]; fmt.Sprint(keys) != "map[search:example]" {
				t.Errorf("with its login, the guard gets the API keys %v\n%s", keys, out)
			}
			s.read(login.Auth.ClientToken, "ati/guard")
		},
		"api-keys.md": func(t *testing.T, s *server, out string, _ data) {
			for path, want := range map[string]string{"ati-keys": "map[maps:key-2 search:key-3]", "ati-callers/sandbox:1": "map[search:key-of-1-later]", "ati-callers/sandbox:2": "map[search:key-of-2]"} {
				if keys := s.read(s.root, "secret/data/"+path).Data["data"]; fmt.Sprint(keys) != want {
					t.Errorf("%s has %v, want %s", path, keys, want)
				}
			}
			if !strings.Contains(out, "\nkey-3") || !strings.Contains(out, "\nkey-of-1") {
				t.Errorf("the output does not have the keys:\n%s", out)
			}
		},
		"revoke.md": func(t *testing.T, s *server, out string, _ data) {
			names := fmt.Sprint(s.list("ati/revoked")) // of an agent, of two tokens, and of a lease
			if strings.Count(names, "jti:") != 3 || strings.Count(names, "agent_id:sandbox:1") != 1 || !strings.Contains(names, "jti:5b1a9a1e-6f3f-7e4e-2a55-0c8f7f3f9d10") {
				t.Errorf("the revocations are %s", names)
			}
			if !regexp.MustCompile(`(?m)^error +revoked at 20`).MatchString(out) {
				t.Errorf("validate does not say that the token was revoked:\n%s", out)
			}
		},
		"rotate.md": func(t *testing.T, _ *server, _ string, status data) {
			if got := versionsOf(t, status); got != (versions{Current: 2, Previous: 1, Retired: true}) {
				t.Errorf("the versions are %+v", got)
			}
		},
		"rotate-without-guard.md": func(t *testing.T, _ *server, out string, status data) {
			if !regexp.MustCompile(`(?m)^"time":"20`).MatchString(out) {
				t.Errorf("the last request for blue was not found in the audit log:\n%s", out)
			}
			if got := versionsOf(t, status); got != (versions{Current: 2, Previous: 1, Retired: true}) {
				t.Errorf("the versions are %+v", got)
			}
		},
		"runbook-key-compromise.md": func(t *testing.T, _ *server, _ string, status data) {
			if got := versionsOf(t, status); got != (versions{Current: 2}) {
				t.Errorf("the versions are %+v", got)
			}
		},
		"runbook-proxy-host-compromise.md": func(t *testing.T, s *server, out string, status data) {
			if got := s.request(guardLogin, "GET", "ati/guard", nil); got != 403 {
				t.Errorf("with the host's login, a read of ati/guard returns %d", got)
			}
			if got := versionsOf(t, status); got != (versions{Current: 2}) {
				t.Errorf("the versions are %+v", got)
			}
			if names := fmt.Sprint(s.list("ati/revoked")); names != "[agent_id:people-alice agent_id:sandbox:1]" {
				t.Errorf("the revocations are %s", names)
			}
			if !regexp.MustCompile(`(?m)^ +1 "path":"ati/guard"\s"remote_address":"127\.0\.0\.1"$`).MatchString(out) {
				t.Errorf("the output does not have what the login has read:\n%s", out)
			}
			if strings.Count(out, "\nnot minted by Vault: ") != 1 || !strings.Contains(out, "\nnot minted by Vault: forged\n") || !strings.Contains(out, "\nevery token has a jti\n") {
				t.Errorf("the output does not have the forged token, and no other:\n%s", out)
			}
		},
		"migrate-from-ati-client.md": func(t *testing.T, _ *server, out string, status data) {
			// vault read and openssl print the same one.
			if got := strings.Count(out, "be930db828cd35cc"); got != 2 || status["current_fingerprint"] == "be930db828cd35cc" {
				t.Errorf("the old fingerprint was printed %d times, want 2, and the new one is %v", got, status["current_fingerprint"])
			}
		},
		"performance.md": func(t *testing.T, _ *server, out string, _ data) {
			size := regexp.MustCompile(`(?m)^(3[34]\d\d)$`).FindString(out)
			if got := strings.Count(out, `"sandbox:`); got != 3 || size == "" {
				t.Errorf("a batch of %d, and a token whose size isn't about 3,400:\n%s", got, out)
			}
		},
		"troubleshooting.md": func(t *testing.T, _ *server, out string, _ data) {
			// config twice, config/rotate and openssl print the same fingerprint.
			if got := strings.Count(out, "be930db828cd35cc"); got != 4 {
				t.Errorf("the fingerprint was printed %d times, want 4", got)
			}
			// The results of validate for the token and of check for the roles.
			verdicts := ""
			for _, v := range regexp.MustCompile(`(?m)^allowed +(true|false)$`).FindAllStringSubmatch(out, -1) {
				verdicts += " " + v[1]
			}
			if want := " true true false false true false true"; verdicts != want {
				t.Errorf("the verdicts are%s, want%s", verdicts, want)
			}
			if !strings.Contains(out, `"display_name":"root"`+"\n") || !strings.Contains(out, `"path":"ati/creds/researcher"`+"\n") {
				t.Error("the audit log does not name the caller")
			}
		},
	}
	pages, err := filepath.Glob("../docs/*.md")
	ofInstall := []string{"install.md", "install-production.md", "backup.md"} // TestDocsInstall
	pages = slices.DeleteFunc(pages, func(page string) bool {
		return commands(t, page) == "" || slices.Contains(ofInstall, filepath.Base(page))
	})
	if err != nil || len(pages) != len(checks) {
		t.Fatalf("the pages are %v (%v), but this test covers %d", pages, err, len(checks))
	}
	for _, page := range pages {
		t.Run(filepath.Base(page), func(t *testing.T) {
			t.Parallel()
			check := checks[filepath.Base(page)]
			if check == nil {
				t.Fatal("this test does not cover the page")
			}
			s := startVault(t)
			s.mountEngine()
			s.vault(s.root, "secrets", "disable", "ati")
			s.vault(s.root, "secrets", "enable", "-path=ati", pluginName)
			s.vault(s.root, "write", "ati/config", "proxy_url=https://ati.example.com", "secret="+oldSecret)
			s.vault(s.root, "write", "ati/roles/researcher", "tools=web_search,arxiv:search", "allowed_agent_ids=sandbox:*")
			work, replace := t.TempDir(), []string{"/var/log/vault/audit.log", s.audit}
			for _, dir := range []string{"/etc/vault-agent", "/etc/ati-guard", "/run/ati", "/var/log/ati-guard"} {
				replace = append(replace, dir, filepath.Join(work, dir))
				if err := os.MkdirAll(filepath.Join(work, dir), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			accessLog, accessLines := "access.jsonl", ""
			switch filepath.Base(page) {
			case "audit.md": // the access log is what the page shows
				replace = append(replace, auditID, s.mintAsAlice())
				accessLog = "var/log/ati-guard/access.jsonl"
				accessLines = strings.Join(regexp.MustCompile(`(?m)^\{"time":.*\n`).FindAllString(string(readFile(t, page)), -1), "")
			case "runbook-proxy-host-compromise.md":
				guardLogin = s.loginAsGuard()
				accessLines = fmt.Sprintf(`{"path":"/call","status":200,"jti":%q,"sub":"people-alice","key_version":1}
{"path":"/call","status":401,"reason":"no token"}
{"path":"/mcp","status":200,"jti":"forged.1","sub":"sandbox:1","key_version":1}
`, s.mintAsAlice())
			}
			replacer := strings.NewReplacer(replace...)
			if err := os.WriteFile(filepath.Join(work, accessLog), []byte(replacer.Replace(accessLines)), 0o600); err != nil {
				t.Fatal(err)
			}
			copyExamples(t, filepath.Join(work, "examples"), replacer)
			out := s.runCommands(work, replacer.Replace(commands(t, page)))
			var status data
			if secret, err := s.client(s.root).Logical().Read("ati/config/rotate"); err != nil {
				t.Error(err)
			} else if secret != nil {
				status = secret.Data
			}
			check(t, s, out, status)
		})
	}
}

// copyExamples copies the examples and replaces paths in them.
func copyExamples(t *testing.T, to string, replacer *strings.Replacer) {
	t.Helper()
	err := filepath.WalkDir("../examples", func(path string, entry os.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		target := filepath.Join(to, strings.TrimPrefix(path, "../examples"))
		if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
			return err
		}
		return os.WriteFile(target, []byte(replacer.Replace(string(b))), 0o755)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// auditID is the ID of a request on docs/audit.md.
const auditID = "9c8db6f7-8149-308d-a4f2-df7361e9e336"

// loginAsGuard sets up the login of a guard as docs/proxy.md does, reads the keys with it,
// and returns its Vault token.
func (s *server) loginAsGuard() string {
	s.t.Helper()
	s.write(s.root, "sys/auth/approle", data{"type": "approle"})
	s.write(s.root, "sys/policies/acl/ati-proxy-guard", data{"policy": string(readFile(s.t, "../examples/policies/proxy-guard.hcl"))})
	s.write(s.root, "sys/mounts/secret", data{"type": "kv", "options": data{"version": "2"}})
	const role = "auth/approle/role/proxy-guard"
	s.write(s.root, role, data{"token_policies": "ati-proxy-guard", "token_no_default_policy": true})
	login := s.write("", "auth/approle/login", data{"role_id": s.read(s.root, role+"/role-id").Data["role_id"], "secret_id": s.write(s.root, role+"/secret-id", nil).Data["secret_id"]})
	s.read(login.Auth.ClientToken, "ati/guard")
	return login.Auth.ClientToken
}

// mintAsAlice returns the ID of a request for a token by a caller with an entity.
func (s *server) mintAsAlice() string {
	s.t.Helper()
	s.write(s.root, "ati/roles/researcher", data{"job_id": "{{jti}}"})
	if err := s.client(s.root).Sys().PutPolicy("alice", `path "ati/creds/researcher" { capabilities = ["read"] }`); err != nil {
		s.t.Fatal(err)
	}
	return s.read(s.logins("alice")["alice"], "ati/creds/researcher").Data["jti"].(string)
}

// list returns the keys of a LIST.
func (s *server) list(path string) []any {
	s.t.Helper()
	secret, err := s.client(s.root).Logical().List(path)
	if err != nil {
		s.t.Fatal(err)
	}
	return secret.Data["keys"].([]any)
}

// TestDocsPathHelp runs the commands in the help of each path.
func TestDocsPathHelp(t *testing.T) {
	s, _ := startEngine(t)
	var script strings.Builder
	order := []string{"config", "roles/researcher", "roles", "creds/researcher", "batch/researcher", "check/researcher", "validate", "inspect", "revoke", "revoke/researcher", "revoked", "guard", "proxy-env", "proxy-env/1", "jwks",
		"config/rotate/stage", "config/rotate/activate", "config/rotate/rollback", "config/rotate/activate", "config/rotate/retire", "config/rotate"}
	_, paths := s.operations()
	for _, path := range paths {
		if !slices.Contains(order, examplePath(path)) {
			t.Errorf("the command in the help of %s is not run: add %q to order in this test", path, examplePath(path))
		}
	}
	for _, path := range order {
		if path == "validate" {
			fmt.Fprintln(&script, "vault read -field=token ati/creds/researcher > token.txt")
		}
		_, example, ok := strings.Cut(s.vault(s.root, "path-help", "ati/"+path), "\n    $ ")
		if !ok {
			t.Fatalf("the help of %s has no command", path)
		}
		fmt.Fprintln(&script, strings.ReplaceAll(example, "\n    $ ", "\n"))
	}
	s.runCommands(t.TempDir(), script.String())
	if got := versionsOf(t, s.read(s.root, "ati/config/rotate").Data); got != (versions{Current: 3}) {
		t.Errorf("after all commands the versions are %+v", got)
	}
}

// TestDocsLinks checks that links between pages have a target, and that pages that no test
// runs also give a reason for each block that is not run.
func TestDocsLinks(t *testing.T) {
	t.Parallel()
	pages, err := filepath.Glob("../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	top, err := filepath.Glob("../*.md")
	if err != nil {
		t.Fatal(err)
	}
	read := func(path string) string {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	heading, dropped := regexp.MustCompile("(?m)^#+ (.*)$"), regexp.MustCompile("[^a-z0-9 _-]")
	link := regexp.MustCompile(`\]\(([^)\s]+)\)`)
	known := map[string]map[string]bool{} // of each page
	// Anchors as GitHub generates them.
	anchors := func(page string) map[string]bool {
		if known[page] == nil {
			known[page] = map[string]bool{}
			for _, m := range heading.FindAllStringSubmatch(block.ReplaceAllString(read(page), ""), -1) {
				known[page][dropped.ReplaceAllString(strings.ToLower(m[1]), "")] = true
			}
		}
		return known[page]
	}
	links := 0
	for _, page := range append(top, pages...) {
		commands(t, page)
		for _, m := range link.FindAllStringSubmatch(block.ReplaceAllString(read(page), ""), -1) {
			links++
			path, anchor, _ := strings.Cut(m[1], "#")
			if strings.HasPrefix(path, "https://") {
				continue
			}
			target := page
			if path != "" {
				target = filepath.Join(filepath.Dir(page), path)
			}
			if _, err := os.Stat(target); err != nil {
				t.Errorf("%s links to %s, which does not exist", page, m[1])
			} else if anchor != "" && !anchors(target)[strings.ReplaceAll(anchor, "-", " ")] && !anchors(target)[anchor] {
				t.Errorf("%s links to %s, which has no such heading", page, m[1])
			}
		}
	}
	if links < 100 {
		t.Errorf("found only %d links", links)
	}
}

type request struct {
	method, path string
	data         data
}

// tableRows returns the cells of a table in a document, given its header.
func tableRows(t *testing.T, path, header string) (rows [][]string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	_, table, ok := strings.Cut(string(b), header+"\n")
	if !ok {
		t.Fatalf("%s has no table %s", path, header)
	}
	for i, line := range strings.Split(table, "\n") {
		if !strings.HasPrefix(line, "|") {
			break
		}
		if i == 0 {
			continue // the separator
		}
		var cells []string
		for _, cell := range strings.Split(strings.Trim(line, "| "), "|") {
			cells = append(cells, strings.TrimSpace(cell))
		}
		rows = append(rows, cells)
	}
	return rows
}

// nameEntities names each entity like its alias.
func (s *server) nameEntities() {
	s.t.Helper()
	list, err := s.client(s.root).Logical().List("identity/entity/id")
	if err != nil {
		s.t.Fatal(err)
	}
	for id, info := range list.Data["key_info"].(map[string]any) {
		alias := info.(map[string]any)["aliases"].([]any)[0].(map[string]any)["name"]
		s.write(s.root, "identity/entity/id/"+id, data{"name": alias})
	}
}
