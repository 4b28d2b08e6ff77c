//go:build unix

package main

import (
	"os"
	"syscall"
	"time"
)

// disableCoreDumps keeps the signing key, which this process has in its memory,
// out of a file that a crash would leave. (Vault's service unit may allow dumps,
// and a plugin inherits that.)
func disableCoreDumps() error {
	if err := syscall.Setrlimit(syscall.RLIMIT_CORE, &syscall.Rlimit{}); err != nil {
		return err
	}
	return hideMemory()
}

// endWithParent ends the plugin after Vault has ended without ending it, as by
// kill -9 or for want of memory: nobody would speak to it any more, and it would
// keep the signing key in its memory for good. Another process is its parent then.
// (The parent-death signal of Linux goes by the thread that forked, which in a Go
// program such as Vault may end at any time.)
func endWithParent() {
	parent := os.Getppid()
	for os.Getppid() == parent {
		time.Sleep(time.Second)
	}
	os.Exit(1)
}
