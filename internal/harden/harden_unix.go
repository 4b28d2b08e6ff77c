//go:build unix

// Package harden protects the memory of a process that holds keys.
package harden

import "syscall"

// DisableCoreDumps prevents core dumps, which would contain the signing key. A
// process inherits the limit of its parent, which may allow core dumps.
func DisableCoreDumps() error {
	if err := syscall.Setrlimit(syscall.RLIMIT_CORE, &syscall.Rlimit{}); err != nil {
		return err
	}
	return protectMemory()
}
