//go:build unix && !linux

package guard

import "syscall"

// childAttributes makes a child the leader of a process group, so that the programs it
// starts end with it. Outside Linux, a child outlives a guard that is killed.
func childAttributes(credential *syscall.Credential) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Credential: credential}
}

// checkPort does nothing: only Linux shows who listens at a port.
func (c *child) checkPort() error { return nil }
