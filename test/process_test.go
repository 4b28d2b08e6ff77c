package test

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/helper/pluginutil"
	"github.com/hashicorp/vault/sdk/plugin"
)

// Guarantee: when the plugin's process is killed, paused, or upgraded, at most the
// requests in flight fail, and no acknowledged write is lost.
func TestPluginProcess_FaultsUnderLoad(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 1, nil)
	s := c.first
	clients := loadClients + 1 // including the one that writes
	// Vault takes up to 60 ms on a busy machine to notice that the process has exited.
	// A client that retries earlier fails again.
	const wait = 500 * time.Millisecond

	l := startLoad(t, time.Minute, wait, s)
	l.waitForMints()
	exited := map[int]bool{}
	kills := rounds(t, "SOAK_PLUGIN_KILLS", 4, 40)
	for kill := range kills {
		before := l.failedRequests()
		pid := s.pluginProcess(exited)
		exited[pid] = true
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		l.waitForMints()
		c.checkState(l.writtenRoles())
		if failed := l.failedRequests() - before; failed > clients {
			t.Errorf("kill %d: %d requests failed, with %d clients", kill+1, failed, clients)
		}
	}
	t.Logf("the plugin was killed %d times", kills)
	l.check(c.keys, s.audit)

	l = startLoad(t, time.Minute, wait, s)
	l.waitForMints()
	pauses := rounds(t, "SOAK_PLUGIN_PAUSES", 1, 10)
	for range pauses {
		pid := s.pluginProcess(exited)
		if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		time.Sleep(1500 * time.Millisecond)
		if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		l.waitForMints()
		c.checkState(l.writtenRoles())
	}
	t.Logf("the plugin was paused %d times for 1.5 s", pauses)
	l.check(c.keys, s.audit)
	if failed := l.failedRequests(); failed != 0 || l.slowest < 1400*time.Millisecond {
		t.Errorf("%d requests failed because of a pause, and the longest took %v", failed, l.slowest)
	}

	l = startLoad(t, time.Minute, wait, s)
	l.waitForMints()
	upgrades := rounds(t, "SOAK_UPGRADES", 1, 5)
	for upgrade := range upgrades {
		version := fmt.Sprintf("v0.%d.0", upgrade+2)
		before, old := l.failedRequests(), s.pluginProcess(exited)
		s.register(version)
		s.vault(s.root, "secrets", "tune", "-plugin-version="+version, "ati")
		l.waitForMints()
		s.vault(s.root, "plugin", "reload", "-plugin="+pluginName)
		l.waitForMints()
		if got := s.read(s.root, "sys/mounts/ati").Data["running_plugin_version"]; got != version {
			t.Errorf("running version %v, want %s", got, version)
		}
		if failed := l.failedRequests() - before; failed > clients {
			t.Errorf("the upgrade to %s: %d requests failed, with %d clients", version, failed, clients)
		}
		poll(t, "the previous process has exited", func() error {
			if syscall.Kill(old, 0) == nil {
				return errors.New("it is running")
			}
			return nil
		})
		exited[old] = true
		c.checkState(l.writtenRoles())
	}
	t.Logf("the plugin was upgraded %d times", upgrades)
	l.check(c.keys, s.audit)
}

// When Vault is killed, the plugin exits as well, since its memory contains the key.
func TestPluginProcess_ExitsWithVault(t *testing.T) {
	t.Parallel()
	s, _ := startEngine(t)
	s.pluginProcess(nil)
	s.kill()
	poll(t, "the plugin has exited", func() error {
		if pids := s.pluginProcesses(); len(pids) != 0 {
			return fmt.Errorf("running processes: %v", pids)
		}
		return nil
	})
}

// A crash of the plugin writes no core file, which would contain the key.
func TestPluginProcess_NoCoreDump(t *testing.T) {
	t.Parallel()
	s, _ := startEngine(t)
	limits := func(pid int) string {
		b := readFile(t, fmt.Sprintf("/proc/%d/limits", pid))
		return string(b)
	}
	none := regexp.MustCompile(`(?m)^Max core file size\s+0\s+0\s`)
	for _, pid := range s.pluginProcesses() {
		if text := limits(pid); !none.MatchString(text) {
			t.Errorf("the plugin has the limits\n%s", text)
		}
	}
	if none.MatchString(limits(s.process.Pid)) {
		t.Log("no result: the limit for Vault itself is 0 here, and the plugin inherits it")
	}
}

// The core size limit does not apply when the kernel pipes core dumps to a program, such
// as systemd-coredump. A process that is not dumpable is recognized by its files in /proc,
// which then belong to root and not to the process's user.
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
			t.Fatalf("%s did not start: %v", cmd, err)
		}
		var stat syscall.Stat_t
		if err := syscall.Stat(fmt.Sprintf("/proc/%d/status", cmd.Process.Pid), &stat); err != nil {
			t.Fatal(err)
		}
		return stat.Uid
	}
	// A copy in a world-readable directory, started with the environment that Vault sets.
	binary := readFile(t, buildPlugin(t, "v0.1.0"))
	dir, err := os.MkdirTemp("/tmp", "ati-plugin")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, pluginName)
	if err := os.WriteFile(path, binary, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{dir, path} { // regardless of the umask
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
		t.Errorf("the plugin's files in /proc belong to user %d, want root", got)
	}
	if got := owner(exec.Command("sh", "-c", "echo up; exec sleep 60")); got != user {
		t.Errorf("no result: the files of a dumpable process belong to user %d, want %d", got, user)
	}
}

// Vault restarts a plugin that was reloaded or killed, without loss of data.
func TestPluginProcess_Restart(t *testing.T) {
	t.Parallel()
	s, secret := startEngine(t)
	s.write(s.root, "ati/roles/r", data{"tools": "x"})
	s.vault(s.root, "plugin", "reload", "-plugin="+pluginName)
	claims(t, secret, s.read(s.root, "ati/creds/r"))
	for range 2 {
		pids := s.pluginProcesses()
		if len(pids) != 1 {
			t.Fatalf("the plugin has processes %v", pids)
		}
		if err := syscall.Kill(pids[0], syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		poll(s.t, "a mint succeeds again", func() error {
			_, err := s.client(s.root).Logical().Read("ati/creds/r")
			return err
		})
		claims(t, secret, s.read(s.root, "ati/creds/r"))
		if again := s.pluginProcesses(); len(again) != 1 || again[0] == pids[0] {
			t.Errorf("after %v was killed the plugin has processes %v", pids, again)
		}
	}
}
