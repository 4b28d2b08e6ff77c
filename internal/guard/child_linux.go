package guard

import "syscall"

// childAttributes makes a child end with the guard, and the leader of a process group,
// so that the programs it starts end with it.
func childAttributes(credential *syscall.Credential) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true, Credential: credential}
}
