//go:build interop

package test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// With ATI in PATH, make demo uses its proxy. While another demo has the directory, it uses
// one of its own.
func TestInteropDemo(t *testing.T) {
	t.Parallel()
	parent := t.TempDir()
	dir := filepath.Join(parent, "demo")
	if err := os.MkdirAll(filepath.Join(dir, "lock"), 0o755); err != nil {
		t.Fatal(err)
	}
	out := runScript(t, []string{"DEMO_DIR=" + dir, "PATH=" + filepath.Dir(requireEnv(t, "ATI_BIN")) + ":" + os.Getenv("PATH")}, "demo.sh")
	for _, want := range []string{
		"\n$ . " + dir + "-",
		"\n# On the proxy's host, ati-guard runs the proxy: ati 0.7.15, which is in PATH.\n",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("make demo does not print %q", want)
		}
	}
	checkRevoked(t, out)
	checkNothingLeft(t, parent)
	if entries, err := os.ReadDir(parent); err != nil || len(entries) != 1 {
		t.Errorf("after the demo, its parent directory has %v (%v)", entries, err)
	}
	if _, err := os.Stat(filepath.Join(dir, "lock")); err != nil {
		t.Errorf("the demo has removed the lock of another one: %v", err)
	}
	if t.Failed() {
		t.Log(out)
	}
}
