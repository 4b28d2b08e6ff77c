package guard

import (
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"syscall"
)

// childAttributes makes a child end with the guard, and the leader of a process group,
// so that the programs it starts end with it.
func childAttributes(credential *syscall.Credential) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true, Credential: credential}
}

// listens reports whether the child's user listens at its port, which then no other user
// can take. An error means that another user does.
func (c *child) listens() (found bool, err error) {
	uid := strconv.Itoa(os.Geteuid())
	if credential := c.cmd.SysProcAttr.Credential; credential != nil {
		uid = strconv.FormatUint(uint64(credential.Uid), 10)
	}
	sockets, err := os.ReadFile("/proc/self/net/tcp")
	if err != nil {
		return false, err
	}
	port := netip.MustParseAddrPort(c.address).Port()
	for line := range strings.Lines(string(sockets)) {
		fields := strings.Fields(line) // sl local_address rem_address st … … … uid
		if len(fields) < 8 || fields[3] != "0A" || !strings.HasSuffix(fields[1], fmt.Sprintf(":%04X", port)) {
			continue
		}
		if fields[7] != uid {
			return false, fmt.Errorf("the user with ID %s has taken the port of the ATI proxy", fields[7])
		}
		found = true
	}
	return found, nil
}
