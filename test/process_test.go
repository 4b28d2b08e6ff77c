package test

import (
	"errors"
	"fmt"
	"syscall"
	"testing"
	"time"
)

// plugin is the plugin's only process beside those that are gone, or about to be.
func (s *server) plugin(gone map[int]bool) (pid int) {
	s.t.Helper()
	poll(s.t, "the plugin has one process", func() error {
		var there []int
		for _, pid := range s.pluginProcesses() {
			if !gone[pid] {
				there = append(there, pid)
			}
		}
		if len(there) != 1 {
			return fmt.Errorf("it has %v", there)
		}
		pid = there[0]
		return nil
	})
	return pid
}

// The promise: whatever becomes of the plugin's process, at most the requests in
// flight fail, and nothing is lost.
func TestPluginProcess_FaultsUnderLoad(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 1, nil)
	s := c.first
	clients := loadClients + 1 // with the one that writes
	// Vault takes a moment to notice that the process has ended. Who asks again
	// in that moment fails again: up to 60 ms were seen, on busy processors.
	const wait = 500 * time.Millisecond

	l := startLoad(t, time.Minute, wait, s)
	l.goesOn()
	gone := map[int]bool{}
	kills := rounds(t, "SOAK_PLUGIN_KILLS", 4, 40)
	for kill := range kills {
		before := l.failedSoFar()
		pid := s.plugin(gone)
		gone[pid] = true
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		l.goesOn()
		c.whole(l.acknowledged())
		if failed := l.failedSoFar() - before; failed > clients {
			t.Errorf("kill %d: %d requests failed, with %d clients", kill+1, failed, clients)
		}
	}
	t.Logf("the plugin was killed %d times", kills)
	l.check(c.keys, s.audit)

	l = startLoad(t, time.Minute, wait, s)
	l.goesOn()
	pauses := rounds(t, "SOAK_PLUGIN_PAUSES", 1, 10)
	for range pauses {
		pid := s.plugin(gone)
		if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		time.Sleep(1500 * time.Millisecond)
		if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		l.goesOn()
		c.whole(l.acknowledged())
	}
	t.Logf("the plugin was paused %d times for 1.5 s", pauses)
	l.check(c.keys, s.audit)
	if failed := l.failedSoFar(); failed != 0 || l.slowest < 1400*time.Millisecond {
		t.Errorf("%d requests failed because of a pause, and the longest took %v", failed, l.slowest)
	}

	l = startLoad(t, time.Minute, wait, s)
	l.goesOn()
	upgrades := rounds(t, "SOAK_UPGRADES", 1, 5)
	for upgrade := range upgrades {
		version := fmt.Sprintf("v0.%d.0", upgrade+2)
		before, old := l.failedSoFar(), s.plugin(gone)
		s.register(version)
		s.vault(s.root, "secrets", "tune", "-plugin-version="+version, "ati")
		l.goesOn()
		s.vault(s.root, "plugin", "reload", "-plugin="+pluginName)
		l.goesOn()
		if got := s.read(s.root, "sys/mounts/ati").Data["running_plugin_version"]; got != version {
			t.Errorf("running version %v, want %s", got, version)
		}
		if failed := l.failedSoFar() - before; failed > clients {
			t.Errorf("the upgrade to %s: %d requests failed, with %d clients", version, failed, clients)
		}
		poll(t, "the former process has ended", func() error {
			if syscall.Kill(old, 0) == nil {
				return errors.New("it is there")
			}
			return nil
		})
		gone[old] = true
		c.whole(l.acknowledged())
	}
	t.Logf("the plugin was upgraded %d times", upgrades)
	l.check(c.keys, s.audit)
}

// A plugin that Vault left behind when it was killed ends too: nobody speaks to
// it any more, and it has the key in its memory.
func TestPluginProcess_ExitsWithVault(t *testing.T) {
	t.Parallel()
	s, _ := startEngine(t)
	s.plugin(nil)
	s.kill()
	poll(t, "the plugin has ended", func() error {
		if left := s.pluginProcesses(); len(left) != 0 {
			return fmt.Errorf("there are %v", left)
		}
		return nil
	})
}
