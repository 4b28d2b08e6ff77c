package guard

import (
	"bufio"
	"errors"
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

// checkPort returns an error unless the child's user, and no other, listens at its port,
// which no other user can then take.
func (c *child) checkPort() error {
	uid := strconv.Itoa(os.Geteuid())
	if credential := c.cmd.SysProcAttr.Credential; credential != nil {
		uid = strconv.FormatUint(uint64(credential.Uid), 10)
	}
	sockets, err := os.Open("/proc/self/net/tcp")
	if err != nil {
		return err
	}
	defer sockets.Close()
	found := false
	port := netip.MustParseAddrPort(c.address).Port()
	lines := bufio.NewScanner(sockets)
	lines.Scan() // the header
	for lines.Scan() {
		fields := strings.Fields(lines.Text()) // sl local_address rem_address st … … … uid
		if len(fields) < 8 || fields[3] != "0A" {
			break // Linux lists what listens first, and needs seconds for the rest if there are many connections
		}
		if !strings.HasSuffix(fields[1], fmt.Sprintf(":%04X", port)) {
			continue
		}
		if fields[7] != uid {
			return fmt.Errorf("the user with ID %s has taken the port of the ATI proxy", fields[7])
		}
		found = true
	}
	if !found {
		return errors.New("the ATI proxy does not listen at its port")
	}
	return nil
}
