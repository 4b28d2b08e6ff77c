//go:build interop

package test

import (
	"os"
	"path/filepath"
	"testing"
)

// All commands of the tutorial, on free ports and in a temporary directory. Only ATI is
// already installed.
func TestInteropGettingStarted(t *testing.T) {
	t.Parallel()
	parent := t.TempDir()
	dev, tutorial := filepath.Join(parent, "dev"), filepath.Join(parent, "tutorial")
	t.Cleanup(func() { stopDev(dev) })
	all := examples(t, "../docs/getting-started.md")
	run := commandsFor(all, "TestInteropGettingStarted")
	if len(run) == 0 || len(run) != len(all) {
		t.Errorf("this test runs %d of the %d blocks", len(run), len(all))
	}
	guard, upstream := freePort(t), freePort(t)
	path := filepath.Dir(requireEnv(t, "ATI_BIN")) + ":" + os.Getenv("PATH")
	env := append([]string{"VAULT_BIN=" + vaultBin, "DEV_DIR=" + dev, "ATI_JWT_SECRET=", "HOME=" + t.TempDir(), "PATH=" + path}, goEnv(t)...)
	runCommands(t.Context(), t, "..", env, run,
		"cargo install agent-tools-interface --version 0.7.15 --locked", "",
		"make build dev", "scripts/dev.sh", "make dev-stop", "scripts/dev.sh stop",
		"bin/dev", dev, "$PWD/bin/tutorial", tutorial, "bin/tutorial", tutorial,
		"bin/ati-guard", buildGuard(t)+" -admin=",
		"127.0.0.1:8090", "127.0.0.1:"+guard, "127.0.0.1:8080", "127.0.0.1:"+upstream, "http.server 8080", "http.server "+upstream)
	checkNothingLeft(t, parent)
}
