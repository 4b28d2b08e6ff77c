package test

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"syscall"
	"testing"

	"github.com/hashicorp/vault/sdk/helper/pluginutil"
	"github.com/hashicorp/vault/sdk/plugin"
)

// The plugin's memory has the key in it: a crash leaves no core file.
func TestPluginProcess_NoCoreDump(t *testing.T) {
	t.Parallel()
	s, _ := startEngine(t)
	limits := func(pid int) string {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", pid))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	none := regexp.MustCompile(`(?m)^Max core file size\s+0\s+0\s`)
	for _, pid := range s.pluginProcesses() {
		if text := limits(pid); !none.MatchString(text) {
			t.Errorf("the plugin has the limits\n%s", text)
		}
	}
	if none.MatchString(limits(s.process.Pid)) {
		t.Log("left out: Vault itself may dump no core here, and the plugin inherits that, so this test tells nothing")
	}
}

// A dump that goes to a program, as to systemd's, isn't held to that limit. The
// files that tell of a process in /proc are root's when it is not dumpable, and
// its user's otherwise.
func TestPluginProcess_NotDumpable(t *testing.T) {
	t.Parallel()
	user := uint32(os.Getuid())
	if user == 0 {
		user = 65534 // nobody
	}
	owner := func(cmd *exec.Cmd) uint32 {
		t.Helper()
		cmd.Dir = "/"
		if os.Getuid() == 0 {
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: user, Gid: user}}
		}
		stdout, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
		if _, err := bufio.NewReader(stdout).ReadString('\n'); err != nil {
			t.Fatalf("%s is not up: %v", cmd, err)
		}
		var stat syscall.Stat_t
		if err := syscall.Stat(fmt.Sprintf("/proc/%d/status", cmd.Process.Pid), &stat); err != nil {
			t.Fatal(err)
		}
		return stat.Uid
	}
	// A copy, in a directory that anybody may read, with what Vault gives it.
	binary, err := os.ReadFile(buildPlugin(t, "v0.1.0"))
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("/tmp", "ati-plugin")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, pluginName)
	if err := os.WriteFile(path, binary, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{dir, path} { // whatever the umask
		if err := os.Chmod(name, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command(path)
	cmd.Env = []string{
		plugin.HandshakeConfig.MagicCookieKey + "=" + plugin.HandshakeConfig.MagicCookieValue,
		pluginutil.PluginMetadataModeEnv + "=true",
		"TMPDIR=/tmp",
	}
	if got := owner(cmd); got != 0 {
		t.Errorf("the plugin's files in /proc are those of user %d", got)
	}
	if got := owner(exec.Command("sh", "-c", "echo up; exec sleep 60")); got != user {
		t.Errorf("those of a process that is dumpable are of user %d, so this test tells nothing", got)
	}
}
