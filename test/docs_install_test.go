//go:build docs

package test

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// The commands of docs/install-production.md, install.md and backup.md: from an archive to a
// Vault with TLS, raft, an audit log and policies, to the next version and back, a snapshot,
// and the removal.
func TestDocsInstall(t *testing.T) {
	t.Parallel()
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
	place := []string{
		"/etc/vault", filepath.Join(work, "etc"), "/opt/vault", filepath.Join(work, "opt"), "/var/log/vault", filepath.Join(work, "log"),
		"127.0.0.1:8200", "127.0.0.1:" + port, "127.0.0.1:8201", fmt.Sprintf("127.0.0.1:%d", next+1),
		"linux_amd64", runtime.GOOS + "_" + runtime.GOARCH,
	}
	if tested.declaresAudit { // as the page says for OpenBao
		all := examples(t, "../docs/install-production.md", place...)
		stanza := all[slices.IndexFunc(all, func(e example) bool { return strings.HasPrefix(e.text, "audit ") })]
		place = append(place, "disable_mlock    = true\n", stanza.text, "vault audit enable file file_path=/var/log/vault/audit.log\n", "")
	}
	run := commandsFor(examples(t, "../docs/install-production.md"), "")
	run = append(run, commandsFor(examples(t, "../docs/install.md"), "")...)
	removal := slices.IndexFunc(run, func(e example) bool { return strings.HasPrefix(e.text, "vault secrets disable ati\n") })
	if removal < 0 {
		t.Fatal("docs/install.md does not disable the engine")
	}
	// The snapshot is taken before that.
	run = slices.Insert(run, removal, commandsFor(examples(t, "../docs/backup.md"), "")...)
	// The page has its own server, and its own token for it.
	s := &server{t: t, dir: work}
	s.runExamples(work, run, place...)
	log, err := os.ReadFile(filepath.Join(work, "log", "audit.log"))
	if err != nil || !strings.Contains(string(log), `"path":"ati/creds/researcher"`) {
		t.Errorf("the audit log has no request for creds (%v)", err)
	}
}
