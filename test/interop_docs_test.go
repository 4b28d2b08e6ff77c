//go:build interop

package test

import (
	"testing"
	"time"
)

// The commands in docs/proxy.md that verify a guard print what the page shows.
func TestInteropGuard_ProxyPage(t *testing.T) {
	t.Parallel()
	s := startGuarded(t, false, time.Hour)
	s.write(s.root, "ati/roles/researcher", data{"tools": "web_search", "allowed_agent_ids": "sandbox:*"})
	g := s.startGuard(t, nil)
	s.runExamples(t.TempDir(), commandsFor(examples(t, "../docs/proxy.md"), "TestInteropGuard_ProxyPage"), "https://ati.example.com", g.addr)
}
