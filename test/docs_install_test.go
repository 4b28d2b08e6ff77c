//go:build docs

package test

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
)

// The commands of docs/install-production.md, install.md and backup.md: from an archive to a
// Vault with TLS, raft, an audit log and policies, to the next version and back, a snapshot,
// and the removal.
func TestDocsInstall(t *testing.T) {
	t.Parallel()
	const uninstall = "vault secrets disable ati\n"
	work := t.TempDir()
	for _, version := range []string{"v0.2.0", "v0.1.0"} {
		for name, text := range filesIn(t, released(t, version)) {
			if err := os.WriteFile(filepath.Join(work, name), text, 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	port := freePort(t)
	next, err := strconv.Atoi(port)
	if err != nil {
		t.Fatal(err)
	}
	// The snapshot is taken before the engine is gone.
	install, removal, found := strings.Cut(commands(t, "../docs/install.md"), uninstall)
	if !found {
		t.Fatalf("docs/install.md has no %q", uninstall)
	}
	setup := commands(t, "../docs/install-production.md")
	if tested.declaresAudit {
		setup = declareAudit(t, setup)
	}
	script := strings.NewReplacer(
		"/etc/vault", filepath.Join(work, "etc"), "/opt/vault", filepath.Join(work, "opt"), "/var/log/vault", filepath.Join(work, "log"),
		"127.0.0.1:8200", "127.0.0.1:"+port, "127.0.0.1:8201", fmt.Sprintf("127.0.0.1:%d", next+1),
		"linux_amd64", runtime.GOOS+"_"+runtime.GOARCH,
	).Replace(setup + install + commands(t, "../docs/backup.md") + uninstall + removal)
	// The page has its own server, and its own token for it.
	s := &server{t: t, dir: work}
	out := s.runCommands(work, "trap 'kill $(jobs -p); wait' EXIT\n"+script)
	for _, want := range []string{
		"vault-plugin-secrets-ati_v0.1.0_" + runtime.GOOS + "_" + runtime.GOARCH + ".tar.gz: OK",
		"vault plugin register -sha256=", // printed by register.sh
		"scope          tool:web_search tool:arxiv:search skill:summarize",
		"\nv0.1.0+ ", "\nv0.2.0+ ", // running_plugin_version, without a newline
		"Success! Disabled the secrets engine (if it existed) at: ati/",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("the page's commands do not print %q", want)
		}
	}
	log, err := os.ReadFile(filepath.Join(work, "log", "audit.log"))
	if err != nil || !strings.Contains(string(log), `"path":"ati/creds/researcher"`) {
		t.Errorf("the audit log has no request for creds (%v)", err)
	}
	if t.Failed() {
		t.Log(out)
	}
}

// declareAudit changes the commands of docs/install-production.md as the page says for
// OpenBao.
func declareAudit(t *testing.T, script string) string {
	t.Helper()
	_, stanza, _ := strings.Cut(string(readFile(t, "../docs/install-production.md")), "```text\naudit ")
	stanza, _, found := strings.Cut(stanza, "```")
	if !found {
		t.Fatal("docs/install-production.md does not declare an audit device")
	}
	for old, replacement := range map[string]string{
		"disable_mlock    = true\n":                                    "audit " + stanza,
		"vault audit enable file file_path=/var/log/vault/audit.log\n": "",
	} {
		if strings.Count(script, old) != 1 {
			t.Fatalf("docs/install-production.md does not contain %q once", old)
		}
		script = strings.Replace(script, old, replacement, 1)
	}
	return script
}
