package main

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// disableCoreDumps keeps the signing key, which this process has in its memory,
// out of a file that a crash would leave. (Vault's service unit may allow dumps,
// and a plugin inherits that.) Linux doesn't hold a program that takes dumps from
// a pipe to the limit (core(5)); a process that isn't dumpable gives it none. Nor
// may others of the same user read the memory of such a process (ptrace(2)).
func disableCoreDumps() error {
	if err := syscall.Setrlimit(syscall.RLIMIT_CORE, &syscall.Rlimit{}); err != nil {
		return err
	}
	return unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
}
