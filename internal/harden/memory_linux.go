package harden

import "golang.org/x/sys/unix"

// protectMemory makes the process nondumpable. Linux ignores the limit on core files
// if core_pattern pipes core dumps to a program (core(5)), but never dumps such a
// process. Other processes of the same user also cannot read its memory
// (ptrace(2)).
func protectMemory() error { return unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0) }
