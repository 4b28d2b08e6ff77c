//go:build unix

package main

import (
	"os"
	"time"
)

// exitWithParent exits when the parent process changes, which means that Vault is
// gone. Vault cannot stop the plugin if it is killed (kill -9, out of memory), and
// the plugin would keep the signing key in memory indefinitely. PR_SET_PDEATHSIG
// is no alternative: Linux sends that signal when the thread that forked exits,
// and in a Go program such as Vault any thread may exit.
func exitWithParent() {
	parent := os.Getppid()
	for os.Getppid() == parent {
		time.Sleep(time.Second)
	}
	os.Exit(1)
}
