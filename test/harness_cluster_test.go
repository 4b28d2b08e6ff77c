package test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"vault-plugin-secrets-ati/ati"
)

// versions are the key versions of a mount. Except for rolledBack, config/rotate
// returns all fields.
type versions struct {
	Current, Pending, Previous int
	Retired                    bool
	rolledBack                 bool // decides what activate does
}

// versionsOf returns the versions in a response of config/rotate.
func versionsOf(t testing.TB, status data) versions {
	t.Helper()
	number := func(name string) int {
		n, ok := status[name].(json.Number)
		if !ok {
			return 0
		}
		i, err := n.Int64()
		if err != nil {
			t.Fatal(err)
		}
		return int(i)
	}
	return versions{number("current_version"), number("pending_version"), number("previous_version"), status["previous_retired_at"] != nil, false}
}

// after returns the versions after a step, given the highest version number used so
// far. It returns false if the engine must reject the step.
func (v versions) after(step string, last int) (versions, bool) {
	switch step {
	case "":
		return versions{Current: last + 1, Pending: v.Pending}, true
	case "/stage":
		return versions{v.Current, last + 1, v.Previous, v.Retired, v.rolledBack}, v.Pending == 0
	case "/activate":
		if v.rolledBack && v.Pending == 0 {
			return versions{Current: v.Previous, Previous: v.Current}, true
		}
		return versions{Current: v.Pending, Previous: v.Current}, v.Pending != 0 && (v.Previous == 0 || v.Retired)
	case "/rollback":
		return versions{Current: v.Previous, Pending: v.Pending, Previous: v.Current, rolledBack: true}, v.Previous != 0 && !v.rolledBack
	default: // "/retire"
		return versions{v.Current, v.Pending, v.Previous, true, v.rolledBack}, v.Previous != 0 && !v.Retired
	}
}

// visible returns the fields that config/rotate returns.
func (v versions) visible() versions {
	v.rolledBack = false
	return v
}

const (
	loadClients = 8

	// clusterTimeout is the request timeout for nodes that may be down.
	clusterTimeout = 2 * time.Second
)

// soaking is set by make soak, for longer runs.
var soaking = os.Getenv("SOAK") != ""

// rounds returns the number of rounds from the environment variable name, or a default.
func rounds(t testing.TB, name string, short, soak int) int {
	t.Helper()
	if text := os.Getenv(name); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 {
			t.Fatalf("%s %q: must be a positive number", name, text)
		}
		return n
	}
	if soaking {
		return soak
	}
	return short
}

// cluster is a raft cluster of Vault servers with the engine mounted at ati/.
type cluster struct {
	t       testing.TB
	options []option // of each node
	nodes   []*server
	first   *server
	keys    map[int]ati.Key // by version, including deleted ones
	last    int             // highest key version

	// The data that every node must return.
	config, role, rotation data
}

func raftStorage(t testing.TB, node int, join string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "raft")
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	if join != "" {
		join = fmt.Sprintf("retry_join {\n    leader_api_addr = %q\n  }", join)
	}
	// performance_multiplier = 1 is Vault's advice for production: followers notice the
	// loss of the leader within a second or two.
	return fmt.Sprintf("storage \"raft\" {\n  path = %q\n  node_id = \"node%d\"\n  performance_multiplier = 1\n  autopilot_reconcile_interval = \"1s\"\n  autopilot_update_interval = \"500ms\"\n  %s\n}", path, node, join)
}

func startCluster(t testing.TB, nodes int, namespaces []*namespace, options ...option) *cluster {
	t.Helper()
	c := startFirstNode(t, namespaceAt(namespaces, 0), options...)
	c.first.mountEngine()
	c.first.write(c.first.root, "ati/roles/r", data{"tools": "web_search", "skills": "summarize", "rate": data{"*": "100/hour"}, "ttl": "1h"})
	for len(c.nodes) < nodes {
		c.join(namespaceAt(namespaces, len(c.nodes)))
	}
	c.recordState()
	return c
}

// startFirstNode starts a cluster of one node, without the engine.
func startFirstNode(t testing.TB, netns *namespace, options ...option) *cluster {
	t.Helper()
	c := &cluster{t: t, options: options, keys: map[int]ati.Key{}}
	c.first = launch(t, "info", raftStorage(t, 1, ""), netns, options...)
	c.first.initialize()
	c.nodes = []*server{c.first}
	c.first.write(c.first.root, "sys/storage/raft/autopilot/configuration", data{"server_stabilization_time": "1s"})
	return c
}

func namespaceAt(namespaces []*namespace, i int) *namespace {
	if namespaces == nil {
		return nil
	}
	return namespaces[i]
}

// join adds a node and waits until it is a voter.
func (c *cluster) join(netns *namespace) {
	c.t.Helper()
	id := len(c.nodes) + 1
	s := launch(c.t, "info", raftStorage(c.t, id, c.leader().apiAddr), netns, c.options...)
	s.root, s.unsealKey, s.audit = c.first.root, c.first.unsealKey, c.first.audit
	s.install("v0.1.0")
	c.nodes = append(c.nodes, s)
	s.unsealInCluster()
	poll(c.t, "the new node is a voter", func() error {
		config, err := s.client(s.root).Logical().Read("sys/storage/raft/configuration")
		if err != nil {
			return err
		}
		for _, peer := range config.Data["config"].(data)["servers"].([]any) {
			if p := peer.(data); p["node_id"] == fmt.Sprintf("node%d", id) && p["voter"] == true {
				return nil
			}
		}
		return fmt.Errorf("raft configuration: %v", config.Data["config"])
	})
}

// unsealInCluster unseals a node, which then may be active or a standby. It sends the
// unseal key once: if Vault 1.21 receives it again while the node joins, it runs its
// leadership loop twice. One loop then consumes the other's notice that leadership was
// lost, and the node stays active next to the new leader.
func (s *server) unsealInCluster() {
	s.t.Helper()
	client := s.client("")
	client.SetClientTimeout(20 * time.Second)
	poll(s.t, "the node accepts the unseal key", func() error {
		_, err := client.Sys().Unseal(s.unsealKey)
		return err
	})
	poll(s.t, "the node is unsealed", func() error {
		health, err := client.Sys().Health()
		if err == nil && health.Sealed {
			err = errors.New("sealed")
		}
		return err
	})
}

// leader waits for a leader other than the given node.
func (c *cluster) leader(except ...*server) (leader *server) {
	c.t.Helper()
	poll(c.t, "the cluster has a leader", func() error {
		for _, s := range c.nodes {
			if len(except) > 0 && s == except[0] {
				continue
			}
			client := s.client("")
			client.SetClientTimeout(time.Second)
			if status, err := client.Sys().Leader(); err == nil && status.IsSelf {
				leader = s
				return nil
			}
		}
		return errors.New("no node is the leader")
	})
	return leader
}

// recordState records the data that every node must return from now on.
func (c *cluster) recordState(except ...*server) {
	c.t.Helper()
	s := c.leader(except...)
	poll(c.t, "the leader returns config, role, and versions", func() error {
		got, err := s.mountState()
		if err == nil {
			c.config, c.role, c.rotation = got[0], got[1], got[2]
		}
		return err
	})
	for name, version := range map[string]int{"current": versionsOf(c.t, c.rotation).Current, "pending": versionsOf(c.t, c.rotation).Pending} {
		if version == 0 {
			continue
		}
		key, err := ati.ParseSecret(s.read(s.root, fmt.Sprintf("ati/proxy-env/%d", version)).Data["ATI_JWT_SECRET"].(string))
		if err != nil {
			c.t.Fatalf("the %s key: %v", name, err)
		}
		c.keys[version] = key
		c.last = max(c.last, version)
	}
}

// mountState returns config, role, and versions as a node returns them.
func (s *server) mountState() (state []data, err error) {
	client := s.client(s.root)
	client.SetClientTimeout(clusterTimeout)
	for _, path := range []string{"ati/config", "ati/roles/r", "ati/config/rotate"} {
		secret, err := client.Logical().Read(path)
		if err != nil {
			return nil, err
		}
		if secret == nil {
			return nil, fmt.Errorf("%s does not exist", path)
		}
		state = append(state, secret.Data)
	}
	return state, nil
}

// rotate performs a step of a rotation on the leader, other than the given node. If a
// request fails, it compares the versions to find out whether the step was done.
func (c *cluster) rotate(step string, except ...*server) {
	c.t.Helper()
	want, ok := versionsOf(c.t, c.rotation).after(step, c.last)
	if !ok {
		c.t.Fatalf("step %s is not allowed for %+v", step, c.rotation)
	}
	poll(c.t, "step "+step, func() error {
		s := c.leader(except...)
		client := s.client(s.root)
		client.SetClientTimeout(clusterTimeout)
		state, err := s.mountState()
		if err != nil || versionsOf(c.t, state[2]) == want.visible() {
			return err
		}
		if _, err := client.Logical().Write("ati/config/rotate"+step, nil); err != nil {
			return err
		}
		return errors.New("step not visible yet")
	})
	c.recordState(except...)
}

// checkState waits until every node responds, and checks that it returns the recorded
// config, role, and versions, and has the written roles.
func (c *cluster) checkState(written []string) {
	c.t.Helper()
	for i, s := range c.nodes {
		poll(c.t, fmt.Sprintf("node %d returns config, role, and versions", i+1), func() error {
			got, err := s.mountState()
			if err != nil {
				return err
			}
			if diff := cmp.Diff([]data{c.config, c.role, c.rotation}, got); diff != "" {
				c.t.Fatalf("node %d (-want +got):\n%s", i+1, diff)
			}
			list, err := s.client(s.root).Logical().List("ati/roles")
			if err != nil {
				return err
			}
			if list == nil {
				return errors.New("no roles")
			}
			stored := map[any]bool{}
			for _, name := range list.Data["keys"].([]any) {
				stored[name] = true
			}
			for _, name := range written {
				if !stored[name] {
					c.t.Fatalf("node %d has lost the role %s", i+1, name)
				}
			}
			return nil
		})
	}
}

func (s *server) signal(signal os.Signal) {
	s.t.Helper()
	if err := s.process.Signal(signal); err != nil {
		s.t.Fatal(err)
	}
}

// activateNext stages and activates a new key version. The load, if any, expects at
// least this version from then on.
func (c *cluster) activateNext(l *load, except ...*server) {
	c.t.Helper()
	if now := versionsOf(c.t, c.rotation); now.Previous != 0 && !now.Retired {
		c.rotate("/retire", except...)
	}
	c.rotate("/stage", except...)
	c.rotate("/activate", except...)
	if l != nil {
		l.current.Store(int64(c.last))
	}
}
