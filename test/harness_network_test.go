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

// network is namespaces with nothing in them but a node each, on one switch in
// another namespace: what is done there touches no other process.
type network struct {
	t      testing.TB
	hub    *namespace
	places []*namespace
}

// namespace is a network namespace, kept by a process that sleeps in it.
type namespace struct {
	pid     int
	address string // in it
	socket  string // to be reached from elsewhere
	port    string // of the switch
}

// enter is the command that runs another one in the namespace.
func (n *namespace) enter() []string {
	return []string{"nsenter", "--target=" + strconv.Itoa(n.pid), "--user", "--net", "--preserve-credentials"}
}

// holdNamespace starts the process that keeps a new namespace.
func holdNamespace(t testing.TB, command ...string) (*namespace, error) {
	cmd := exec.Command(command[0], append(command[1:], "sh", "-c", "echo there; exec sleep 100000")...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	var problem strings.Builder
	cmd.Stderr = &problem
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "there\n" {
		_ = cmd.Wait()
		return nil, fmt.Errorf("%s: %s", strings.Join(command, " "), strings.TrimSpace(problem.String()))
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
	hub, err := holdNamespace(t, "unshare", "--user", "--map-root-user", "--net")
	if err != nil {
		return nil, err
	}
	n := &network{t: t, hub: hub}
	if err := errors.Join(hub.run("ip link add hub type bridge"), hub.run("ip link set hub up")); err != nil {
		return nil, err
	}
	// Not t.TempDir: a socket's path has 107 bytes at most.
	dir, err := os.MkdirTemp("", "ati")
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	for i := range nodes {
		p, err := holdNamespace(t, append(hub.enter(), "unshare", "--net")...)
		if err != nil {
			return nil, err
		}
		p.address, p.socket, p.port = fmt.Sprintf("10.0.0.%d", i+1), filepath.Join(dir, strconv.Itoa(i+1)), fmt.Sprintf("port%d", i+1)
		for _, step := range []struct {
			where   *namespace
			command string
		}{
			{hub, fmt.Sprintf("ip link add %s type veth peer name node netns %d", p.port, p.pid)},
			{hub, fmt.Sprintf("ip link set %s master hub up", p.port)},
			{p, "ip link set lo up"},
			{p, "ip address add " + p.address + "/24 dev node"},
			{p, "ip link set node up"},
		} {
			if err := step.where.run(step.command); err != nil {
				return nil, err
			}
		}
		n.places = append(n.places, p)
	}
	return n, nil
}

// link cuts the node's line at the switch, or mends it.
func (n *network) link(p *namespace, state string) {
	n.t.Helper()
	if err := n.hub.run("ip link set " + p.port + " " + state); err != nil {
		n.t.Fatal(err)
	}
}
