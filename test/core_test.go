package test

import (
	"fmt"
	"os"
	"regexp"
	"testing"
)

// The plugin's memory has the key in it: a crash leaves no core file.
func TestThePluginDumpsNoCore(t *testing.T) {
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
