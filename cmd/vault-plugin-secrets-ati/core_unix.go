//go:build unix && !linux

package main

import "syscall"

// disableCoreDumps keeps the signing key, which this process has in its memory,
// out of a file that a crash would leave. (Vault's service unit may allow dumps,
// and a plugin inherits that.)
func disableCoreDumps() error {
	return syscall.Setrlimit(syscall.RLIMIT_CORE, &syscall.Rlimit{})
}
