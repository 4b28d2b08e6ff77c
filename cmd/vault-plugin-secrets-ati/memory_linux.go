package main

import "golang.org/x/sys/unix"

// hideMemory makes the process not dumpable. Linux doesn't hold a program that
// takes dumps from a pipe to the limit on core files (core(5)); of such a process
// it gives it none. Nor may others of the same user read its memory (ptrace(2)).
func hideMemory() error { return unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0) }
