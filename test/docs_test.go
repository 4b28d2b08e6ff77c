//go:build docs

package test

import (
	"fmt"
	"net/http"
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
)

// commands makes one script of the sh blocks of a document. A line that ends in
// "# refused: text" must fail, and say the text. Blocks in other languages are
// not meant to be run.
func commands(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var script strings.Builder
	for _, m := range block.FindAllStringSubmatch(string(b), -1) {
		switch m[1] {
		case "sh":
		case "text", "console", "python":
			continue
		default:
			t.Fatalf("%s: a block in %q; use sh, or text, console and python for what is not run", path, m[1])
		}
		for _, line := range strings.Split(m[2], "\n") {
			if r := refused.FindStringSubmatch(line); r != nil {
				line = fmt.Sprintf("must_refuse %s %s", shellQuote(r[2]), r[1])
			}
			fmt.Fprintln(&script, line)
		}
	}
	return script.String()
}

func shellQuote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

const prelude = `
set -euo pipefail
must_refuse() {
  local want=$1 out
  shift
  if out=$("$@" 2>&1); then
    echo "this should have been refused: $*" >&2
    exit 1
  fi
  if [[ $out != *"$want"* ]]; then
    printf 'refused, but not with "%s": %s\n%s\n' "$want" "$*" "$out" >&2
    exit 1
  fi
}
set -x
`

// The README's commands, as they stand, and its table of what each policy
// allows.
func TestREADME(t *testing.T) {
	s := startVault(t)
	work := t.TempDir() // a stand-in for the clone
	bin := filepath.Join(work, "bin")
	if err := os.Mkdir(bin, 0o755); err != nil {
		t.Fatal(err)
	}
	root, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(buildPlugin(t, "v0.2.0"), filepath.Join(bin, "vault-plugin-secrets-ati-v0.2.0")); err != nil {
		t.Fatal(err)
	}
	script := strings.ReplaceAll(commands(t, "../README.md"), "/etc/vault/plugins", s.pluginDir())
	// make build writes into the clone's bin/: here into the stand-in's.
	script = strings.ReplaceAll(script, "make build\n", root+"/scripts/build.sh "+bin+"/vault-plugin-secrets-ati\n")
	out := s.runCommands(work, script)
	// vault read and openssl print the same fingerprint, one after the other.
	fingerprint := s.read(s.root, "ati/config").Data["key_fingerprint"].(string)
	if got := strings.Count(out, fingerprint); got != 2 {
		t.Errorf("the fingerprint %s was printed %d times, want 2", fingerprint, got)
	}
	if got := s.read(s.root, "sys/mounts/ati").Data["running_plugin_version"]; got != "v0.2.0" {
		t.Errorf("after the upgrade the mount runs %v", got)
	}

	s.vault(s.root, "auth", "enable", "userpass")
	login := func(name, policy string) string {
		s.write(s.root, "auth/userpass/users/"+name, data{"password": "x", "token_policies": policy, "token_no_default_policy": true})
		return s.write("", "auth/userpass/login/"+name, data{"password": "x"}).Auth.ClientToken
	}
	team, orchestrator, sandbox, host := login("team", "ati-security-team"), login("orchestrator", "ati-orchestrator"), login("box1", "ati-sandbox"), login("host", "ati-proxy-host")
	s.nameEntities()
	// The table's rows, and the requests that each of them stands for.
	requests := map[string][]request{
		"read or write `ati/config`":                  {{"GET", "ati/config", nil}, {"PUT", "ati/config", data{"issuer": "ati-orchestrator"}}},
		"list, read or write `ati/roles`":             {{"LIST", "ati/roles", nil}, {"GET", "ati/roles/researcher", nil}, {"PUT", "ati/roles/researcher", data{"ttl": "2h"}}, {"DELETE", "ati/roles/nobody", nil}},
		"mint for `researcher`":                       {{"GET", "ati/creds/researcher", nil}, {"PUT", "ati/creds/researcher", data{"agent_id": "sandbox:1", "tools": "web_search"}}, {"PUT", "ati/batch/researcher", data{"agent_ids": "sandbox:1,sandbox:2"}}},
		"mint for `researcher` more than it grants":   {{"PUT", "ati/creds/researcher", data{"tools": "*"}}, {"GET", "ati/creds/researcher?agent_id=other", nil}},
		"read or write `ati/config/rotate` and below": {{"GET", "ati/config/rotate", nil}, {"PUT", "ati/config/rotate/stage", data{"proxy_url": "https://green.example.com"}}, {"DELETE", "ati/config/rotate/stage", nil}},
		"read `ati/proxy-env`, or a version of it":    {{"GET", "ati/proxy-env", nil}, {"GET", "ati/proxy-env/1", nil}},
		"mint for `sandbox`":                          {{"GET", "ati/creds/sandbox", nil}},
		"mint for `sandbox` as another agent":         {{"GET", "ati/creds/sandbox?agent_id=sandbox:2", nil}},
		"`ati/check`, `ati/validate`, `ati/inspect`":  {{"GET", "ati/check/researcher?tool=x", nil}, {"PUT", "ati/validate", data{"token": "x"}}, {"PUT", "ati/inspect", data{"token": "x"}}},
	}
	rows := tableRows(t, "../README.md", "| | security team | orchestrator | sandbox | proxy's host |")
	if len(rows) != len(requests) {
		t.Errorf("the table has %d rows, and this test knows %d", len(rows), len(requests))
	}
	for _, row := range rows {
		known, ok := requests[row[0]]
		if !ok {
			t.Errorf("this test doesn't know the row %q", row[0])
		}
		for i, token := range []string{team, orchestrator, sandbox, host} {
			for _, r := range known {
				got := s.request(token, r.method, r.path, r.data)
				if want := row[i+1]; want != strconv.Itoa(got) && (want != "yes" || got != 200 && got != 204) {
					t.Errorf("%s, column %d: %s %s is a %d, and the table says %s", row[0], i+1, r.method, r.path, got, want)
				}
			}
		}
	}
	if got := claims(t, oldSecret, s.read(sandbox, "ati/creds/sandbox")).Subject; got != "sandbox:box1" {
		t.Errorf("the sandbox is %q", got)
	}
	hasty := s.policy("hasty", `path "ati/*" { capabilities = ["create", "read", "update", "delete", "list"] }`)
	if got := s.request(hasty, http.MethodPut, "ati/config", data{"proxy_url": "https://evil.example.com"}); got != http.StatusForbidden {
		t.Errorf("an ati/* rule without sudo writes config: %d", got)
	}
}

// oldSecret is what the documents call $ATI_JWT_SECRET.
const oldSecret = "0f1e2d3c4b5a69788796a5b4c3d2e1f00f1e2d3c4b5a69788796a5b4c3d2e1f0"

// runCommands runs a script with a vault on the PATH, and returns what it
// printed.
func (s *server) runCommands(dir, script string) string {
	s.t.Helper()
	path := s.t.TempDir()
	if err := os.Symlink(vaultBin, filepath.Join(path, "vault")); err != nil {
		s.t.Fatal(err)
	}
	cmd := exec.CommandContext(s.t.Context(), "bash", "-c", prelude+script)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "PATH="+path+":"+os.Getenv("PATH"), "VAULT_ADDR="+s.addr, "VAULT_TOKEN="+s.root, "ATI_JWT_SECRET="+oldSecret)
	out, err := cmd.CombinedOutput()
	if err != nil {
		s.t.Fatalf("%v\n%s", err, out)
	}
	return string(out)
}

// Each page of docs/: its commands, as they stand, on the mount that the README
// leaves, and what has come of them.
func TestDocs(t *testing.T) {
	checks := map[string]func(t *testing.T, out string, status data){
		"rotate.md": func(t *testing.T, out string, status data) {
			// The one request for a token of version 1 is counted.
			if !strings.Contains(out, "\n1\n") {
				t.Errorf("the audit log's requests for blue were not counted:\n%s", out)
			}
			if got := versionsOf(t, status); got != (versions{Current: 2, Previous: 1, Retired: true}) {
				t.Errorf("there are %+v", got)
			}
		},
		"revoke.md": func(t *testing.T, _ string, status data) {
			if got := versionsOf(t, status); got != (versions{Current: 2}) {
				t.Errorf("there are %+v", got)
			}
		},
		"move-secret.md": func(t *testing.T, out string, status data) {
			// vault read and openssl print the same one.
			if got := strings.Count(out, "be930db828cd35cc"); got != 2 || status["current_fingerprint"] == "be930db828cd35cc" {
				t.Errorf("the old fingerprint was printed %d times, want 2, and the new one is %v", got, status["current_fingerprint"])
			}
		},
		"performance.md": func(t *testing.T, out string, _ data) {
			size := regexp.MustCompile(`(?m)^(3[34]\d\d)$`).FindString(out)
			if got := strings.Count(out, `"sandbox:`); got != 3 || size == "" {
				t.Errorf("a batch of %d, and a token whose size isn't about 3,400:\n%s", got, out)
			}
		},
		"es256.md": func(t *testing.T, out string, status data) {
			// Once each by rotate, vault read and openssl, and as the kid.
			if got := strings.Count(out, status["current_fingerprint"].(string)); got != 4 || status["current_algorithm"] != "ES256" {
				t.Errorf("the fingerprint was printed %d times, want 4: %v", got, status)
			}
		},
	}
	pages, err := filepath.Glob("../docs/*.md")
	pages = slices.DeleteFunc(pages, func(page string) bool { return commands(t, page) == "" })
	if err != nil || len(pages) != len(checks) {
		t.Fatalf("there are the pages %v (%v), and this test knows %d", pages, err, len(checks))
	}
	for _, page := range pages {
		t.Run(filepath.Base(page), func(t *testing.T) {
			t.Parallel()
			check := checks[filepath.Base(page)]
			if check == nil {
				t.Fatal("this test doesn't know the page")
			}
			s := startVault(t)
			s.mountEngine()
			s.vault(s.root, "secrets", "disable", "ati")
			s.vault(s.root, "secrets", "enable", "-path=ati", pluginName)
			s.vault(s.root, "write", "ati/config", "proxy_url=https://ati.example.com", "secret="+oldSecret)
			s.vault(s.root, "write", "ati/roles/researcher", "tools=web_search,arxiv:search", "allowed_agent_ids=sandbox:*")
			out := s.runCommands(t.TempDir(), strings.ReplaceAll(commands(t, page), "/var/log/vault-audit.log", s.audit))
			check(t, out, s.read(s.root, "ati/config/rotate").Data)
		})
	}
}

// The commands in the help of each path, as they stand.
func TestDocsPathHelp(t *testing.T) {
	s, _ := startEngine(t)
	var script strings.Builder
	for _, path := range []string{"config", "roles/researcher", "roles", "creds/researcher", "batch/researcher", "check/researcher", "validate", "inspect", "proxy-env", "proxy-env/1", "jwks",
		"config/rotate/stage", "config/rotate/activate", "config/rotate/rollback", "config/rotate/activate", "config/rotate/retire", "config/rotate"} {
		if path == "validate" {
			fmt.Fprintln(&script, "vault read -field=token ati/creds/researcher > token.txt")
		}
		_, example, ok := strings.Cut(s.vault(s.root, "path-help", "ati/"+path), "\n    $ ")
		if !ok {
			t.Fatalf("the help of %s shows no command", path)
		}
		fmt.Fprintln(&script, strings.ReplaceAll(example, "\n    $ ", "\n"))
	}
	s.runCommands(t.TempDir(), script.String())
	if got := versionsOf(t, s.read(s.root, "ati/config/rotate").Data); got != (versions{Current: 3}) {
		t.Errorf("after all of them there are %+v", got)
	}
}

type request struct {
	method, path string
	data         data
}

// tableRows are the cells of a document's table with this header.
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
			continue // the line of dashes
		}
		var cells []string
		for _, cell := range strings.Split(strings.Trim(line, "| "), "|") {
			cells = append(cells, strings.TrimSpace(cell))
		}
		rows = append(rows, cells)
	}
	return rows
}

// nameEntities gives each entity the name of its alias.
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
