//go:build docs

package test

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

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

// TestDocs runs the commands in each page of docs/ on a mount as the README sets it up,
// compares what they print, and checks the state that they leave.
func TestDocs(t *testing.T) {
	var guardLogin, sandboxLogin string
	wantVersions := func(want versions) func(*testing.T, *server) {
		return func(t *testing.T, s *server) {
			if got := versionsOf(t, s.read(s.root, "ati/config/rotate").Data); got != want {
				t.Errorf("the versions are %+v", got)
			}
		}
	}
	checks := map[string]func(t *testing.T, s *server){
		"policies.md": func(t *testing.T, s *server) { s.checkPolicies(t) },
		"kubernetes.md": func(t *testing.T, s *server) {
			if got := s.read(s.root, "ati/roles/sandbox").Data["subject"]; got != "{{identity.entity.id}}" {
				t.Errorf("the subject is %v", got)
			}
		},
		"terraform.md": wantVersions(versions{Current: 1}), // after config is written again
		"audit.md": func(t *testing.T, s *server) {
			creds := s.read(s.root, "ati/creds/researcher").Data
			log := string(readFile(t, s.audit))
			if !strings.Contains(log, `"scope":"`+creds["scope"].(string)+`"`) || strings.Contains(log, creds["token"].(string)) {
				t.Error("the audit log doesn't have the scope as plaintext, or has the token")
			}
		},
		"proxy.md": func(t *testing.T, s *server) {
			if got := s.request(s.root, "GET", "auth/approle/role/proxy-guard", nil); got != 404 {
				t.Errorf("at the end of the page, a read of the guard's AppRole returns %d", got)
			}
		},
		"api-keys.md": func(t *testing.T, s *server) {
			for _, path := range []string{"secret/data/ati-keys", "secret/data/ati-callers/sandbox:1", "auth/approle/role/ati-caller-keys"} {
				if got := s.request(s.root, "GET", path, nil); got != 404 {
					t.Errorf("at the end of the page, a read of %s returns %d", path, got)
				}
			}
		},
		"revoke.md": func(t *testing.T, s *server) {
			names := fmt.Sprint(s.list("ati/revoked")) // of an agent, of two tokens, and of a lease
			if strings.Count(names, "jti:") != 3 || strings.Count(names, "agent_id:sandbox:1") != 1 || !strings.Contains(names, "jti:5b1a9a1e-6f3f-7e4e-2a55-0c8f7f3f9d10") {
				t.Errorf("the revocations are %s", names)
			}
		},
		"rotate.md":               wantVersions(versions{Current: 2, Previous: 1, Retired: true}),
		"rotate-without-guard.md": wantVersions(versions{Current: 2, Previous: 1, Retired: true}),
		"runbook-leaked-key.md":   wantVersions(versions{Current: 2}),
		"runbook-leaked-token.md": func(t *testing.T, s *server) {
			if names := fmt.Sprint(s.list("ati/revoked")); strings.Count(names, "jti:") != 1 {
				t.Errorf("the revocations are %s", names)
			}
		},
		"runbook-stolen-sandbox.md": func(t *testing.T, s *server) {
			if got := s.request(sandboxLogin, "PUT", "ati/creds/sandbox", nil); got != 403 {
				t.Errorf("with the sandbox's login, a mint returns %d", got)
			}
			if names := fmt.Sprint(s.list("ati/revoked")); names != "[agent_id:sandbox:abc123]" {
				t.Errorf("the revocations are %s", names)
			}
		},
		"runbook-stolen-proxy-host.md": func(t *testing.T, s *server) {
			if got := s.request(guardLogin, "GET", "ati/guard", nil); got != 403 {
				t.Errorf("with the host's login, a read of ati/guard returns %d", got)
			}
			wantVersions(versions{Current: 2})(t, s)
			if names := fmt.Sprint(s.list("ati/revoked")); names != "[agent_id:people-alice agent_id:sandbox:1]" {
				t.Errorf("the revocations are %s", names)
			}
		},
	}
	pages, err := filepath.Glob("../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	ofInstall := []string{"install.md", "install-production.md", "backup.md"} // TestDocsInstall
	var run []string
	for _, page := range pages {
		name := filepath.Base(page)
		commands := commandsFor(examples(t, page), "")
		if len(commands) == 0 || slices.Contains(ofInstall, name) {
			continue
		}
		run = append(run, name)
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := launch(t, "trace", `storage "inmem" {}`, nil, telemetry)
			s.initialize()
			s.mountEngine()
			s.vault(s.root, "secrets", "disable", "ati")
			s.vault(s.root, "secrets", "enable", "-path=ati", pluginName)
			s.vault(s.root, "write", "ati/config", "proxy_url=https://ati.example.com", "secret="+oldSecret)
			s.vault(s.root, "write", "ati/roles/researcher", "tools=web_search,arxiv:search", "allowed_agent_ids=sandbox:*")
			work, replace := t.TempDir(), []string{"/var/log/vault/audit.log", s.audit}
			for _, dir := range []string{"/etc/ati-orchestrator", "/etc/vault-agent", "/etc/ati-guard", "/run/ati", "/var/log/ati-guard"} {
				replace = append(replace, dir, filepath.Join(work, dir))
				if err := os.MkdirAll(filepath.Join(work, dir), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			accessLog, accessLines := "access.jsonl", ""
			switch name {
			case "audit.md": // the access log is what the page shows
				replace = append(replace, auditID, s.mintAsAlice())
				accessLog = guardLog
				accessLines = strings.Join(regexp.MustCompile(`(?m)^\{"time":.*\n`).FindAllString(string(readFile(t, page)), -1), "")
			case "monitor.md":
				s.loginAsGuard()
				s.write(s.root, "ati/config", data{"guarded": true, "rotation_period": "30d"})
				if got := s.request(s.root, "PUT", "ati/creds/researcher", data{"tools": "other"}); got != 400 {
					t.Errorf("a request for a tool that is not granted returns %d", got)
				}
				secretID := s.write(s.root, "auth/approle/role/proxy-guard/secret-id", nil).Data["secret_id"].(string)
				if err := os.WriteFile(filepath.Join(work, "etc/ati-guard/secret_id"), []byte(secretID), 0o600); err != nil {
					t.Fatal(err)
				}
			case "runbook-leaked-token.md":
				leaked := s.write(s.root, "ati/creds/researcher", data{"agent_id": "sandbox:abc123"}).Data
				if err := os.WriteFile(filepath.Join(work, "token.txt"), []byte(leaked["token"].(string)), 0o600); err != nil {
					t.Fatal(err)
				}
				accessLog = guardLog
				accessLines = accessLine(200, fmt.Sprintf(`"jti":%q,"sub":"sandbox:abc123","key_version":1`, leaked["jti"]))
			case "runbook-stolen-sandbox.md":
				var jti string
				sandboxLogin, jti = s.loginAsSandbox()
				accessLog = guardLog
				token := fmt.Sprintf(`"jti":%q,"sub":"sandbox:abc123","key_version":1`, jti)
				accessLines = accessLine(200, token) + accessLine(401, token+`,"reason":"the token was revoked"`)
			case "runbook-proxy-rejects-everyone.md":
				accessLog = guardLog
				accessLines = accessLine(401, `"reason":"the token was signed with an unknown key"`) + accessLine(401, `"reason":"no token"`) + accessLine(401, `"reason":"no token"`)
			case "runbook-stolen-proxy-host.md":
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
			s.runExamples(work, commands, replace...)
			if check := checks[name]; check != nil {
				check(t, s)
			}
		})
	}
	for name := range checks {
		if !slices.Contains(run, name) {
			t.Errorf("%s has no commands to run", name)
		}
	}
}

// copyExamples copies the examples and replaces paths in them.
func copyExamples(t testing.TB, to string, replacer *strings.Replacer) {
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

// guardLog is the file of a guard's access log.
const guardLog = "var/log/ati-guard/access.jsonl"

// accessLine returns a line of a guard's access log, with the fields after duration_ms.
func accessLine(status int, fields string) string {
	return fmt.Sprintf(`{"time":"2026-11-28T02:42:53.396Z","method":"POST","path":"/call","status":%d,"duration_ms":3.129,%s}`+"\n", status, fields)
}

// loginAsSandbox adds the sandbox abc123 as examples/approle does, and returns its Vault
// token and the ID of an ATI token.
func (s *server) loginAsSandbox() (token, jti string) {
	s.t.Helper()
	dir, replacer := s.t.TempDir(), strings.NewReplacer()
	copyExamples(s.t, dir, replacer)
	s.runExamples(dir, []example{{text: "approle/setup.sh\napprole/add-sandbox.sh abc123 .\n", output: "…\n"}})
	login := data{"role_id": string(readFile(s.t, filepath.Join(dir, "role_id"))), "secret_id": string(readFile(s.t, filepath.Join(dir, "secret_id")))}
	token = s.write("", "auth/approle/login", login).Auth.ClientToken
	return token, s.write(token, "ati/creds/sandbox", nil).Data["jti"].(string)
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
	s.runExamples(t.TempDir(), []example{{text: script.String(), output: "…\n"}})
	if got := versionsOf(t, s.read(s.root, "ati/config/rotate").Data); got != (versions{Current: 3}) {
		t.Errorf("after all commands the versions are %+v", got)
	}
}

// TestDocsLinks checks that links between pages have a target, that the README lists pages by
// their titles, and the blocks of pages that no test runs.
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
	link := regexp.MustCompile(`\]\(([^)\s]+)\)`)
	known := map[string]map[string]bool{} // anchors of each page
	links := 0
	for _, page := range append(top, pages...) {
		examples(t, page)
		for _, m := range link.FindAllStringSubmatch(fence.ReplaceAllString(read(page), ""), -1) {
			links++
			path, fragment, _ := strings.Cut(m[1], "#")
			if strings.HasPrefix(path, "https://") {
				continue
			}
			target := page
			if path != "" {
				target = filepath.Join(filepath.Dir(page), path)
			}
			if _, err := os.Stat(target); err != nil {
				t.Errorf("%s links to %s, which does not exist", page, m[1])
				continue
			}
			if fragment != "" && known[target] == nil {
				known[target] = anchors(read(target))
			}
			if fragment != "" && !known[target][fragment] {
				t.Errorf("%s links to %s, which has no such heading", page, m[1])
			}
		}
	}
	for _, m := range regexp.MustCompile(`(?m)\[([^\]]+)\]\(([\w/.-]+\.md)\)(?: ·|$)`).FindAllStringSubmatch(read("../README.md"), -1) {
		if !strings.HasPrefix(read("../"+m[2]), "# "+m[1]+"\n") {
			t.Errorf("the README calls %s %q, which is not its title", m[2], m[1])
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
