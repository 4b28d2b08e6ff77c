package test

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// network is a switch in a network namespace of its own, with one namespace per node.
// Changes to it do not affect other processes.
type network struct {
	t     testing.TB
	hub   *namespace
	nodes []*namespace
}

// namespace is a network namespace, kept alive by a process that sleeps in it.
type namespace struct {
	pid     int
	address string // inside the namespace
	socket  string // Unix socket, for clients outside the namespace
	port    string // of the switch
}

// enter returns the command prefix that runs a command in the namespace.
func (n *namespace) enter() []string {
	return []string{"nsenter", "--target=" + strconv.Itoa(n.pid), "--user", "--net", "--preserve-credentials"}
}

// newNamespace creates a namespace with the given command, and keeps it until the test
// ends.
func newNamespace(t testing.TB, command ...string) (*namespace, error) {
	cmd := exec.Command(command[0], append(command[1:], "sh", "-c", "echo ready; exec sleep 100000")...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	var stderr strings.Builder
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "ready\n" {
		_ = cmd.Wait()
		return nil, fmt.Errorf("%s: %s", strings.Join(command, " "), strings.TrimSpace(stderr.String()))
	}
	return &namespace{pid: cmd.Process.Pid}, nil
}

func (n *namespace) run(command string) error {
	args := append(n.enter(), strings.Fields(command)...)
	if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", command, err, strings.TrimSpace(string(out)))
	}
	return nil
}

func startNetwork(t testing.TB, nodes int) (*network, error) {
	t.Helper()
	hub, err := newNamespace(t, "unshare", "--user", "--map-root-user", "--net")
	if err != nil {
		return nil, err
	}
	n := &network{t: t, hub: hub}
	if err := errors.Join(hub.run("ip link add hub type bridge"), hub.run("ip link set hub up")); err != nil {
		return nil, err
	}
	// Not t.TempDir, because the path of a Unix socket is limited to 107 bytes.
	dir, err := os.MkdirTemp("", "ati")
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	for i := range nodes {
		p, err := newNamespace(t, append(hub.enter(), "unshare", "--net")...)
		if err != nil {
			return nil, err
		}
		p.address, p.socket, p.port = fmt.Sprintf("10.0.0.%d", i+1), filepath.Join(dir, strconv.Itoa(i+1)), fmt.Sprintf("port%d", i+1)
		for _, step := range []struct {
			netns   *namespace
			command string
		}{
			{hub, fmt.Sprintf("ip link add %s type veth peer name node netns %d", p.port, p.pid)},
			{hub, fmt.Sprintf("ip link set %s master hub up", p.port)},
			{p, "ip link set lo up"},
			{p, "ip address add " + p.address + "/24 dev node"},
			{p, "ip link set node up"},
		} {
			if err := step.netns.run(step.command); err != nil {
				return nil, err
			}
		}
		n.nodes = append(n.nodes, p)
	}
	return n, nil
}

// link sets the node's port of the switch up or down.
func (n *network) link(p *namespace, state string) {
	n.t.Helper()
	if err := n.hub.run("ip link set " + p.port + " " + state); err != nil {
		n.t.Fatal(err)
	}
}
