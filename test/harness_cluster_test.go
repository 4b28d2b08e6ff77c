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
	"vault-plugin-secrets-ati/ati"

	"github.com/google/go-cmp/cmp"
)

// versions are those that config/rotate tells.
type versions struct {
	Current, Pending, Previous int
	Retired                    bool
	rolledBack                 bool // not told, but it decides what activate does
}

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

// after is what a step makes of them, where last is the last version number in
// use; or no step, where it is out of turn.
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

// told is what config/rotate tells of them.
func (v versions) told() versions {
	v.rolledBack = false
	return v
}

const (
	loadClients = 8

	// clusterTimeout is what a client waits for a node that may be gone.
	clusterTimeout = 2 * time.Second
)

// soaking tells make soak, which is longer than make test.
var soaking = os.Getenv("SOAK") != ""

// rounds is the number of rounds, which the environment can set.
func rounds(t testing.TB, name string, short, soak int) int {
	t.Helper()
	if text := os.Getenv(name); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 {
			t.Fatalf("%s is %q, not a number of rounds", name, text)
		}
		return n
	}
	if soaking {
		return soak
	}
	return short
}

// cluster is Vault servers with one raft storage and the engine at ati/.
type cluster struct {
	t     testing.TB
	nodes []*server
	first *server
	keys  map[int]ati.Key // of each version that there ever was
	last  int             // version

	// What each node is to tell.
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
	// As Vault advises for production: a leader is missed after a second or two.
	return fmt.Sprintf("storage \"raft\" {\n  path = %q\n  node_id = \"node%d\"\n  performance_multiplier = 1\n  autopilot_reconcile_interval = \"1s\"\n  autopilot_update_interval = \"500ms\"\n  %s\n}", path, node, join)
}

func startCluster(t testing.TB, nodes int, places []*namespace) *cluster {
	t.Helper()
	c := &cluster{t: t, keys: map[int]ati.Key{}}
	c.first = launch(t, "info", raftStorage(t, 1, ""), place(places, 0))
	c.first.initialize()
	c.nodes = []*server{c.first}
	c.first.write(c.first.root, "sys/storage/raft/autopilot/configuration", data{"server_stabilization_time": "1s"})
	c.first.mountEngine()
	c.first.write(c.first.root, "ati/roles/r", data{"tools": "web_search", "skills": "summarize", "rate": data{"*": "100/hour"}, "ttl": "1h"})
	for len(c.nodes) < nodes {
		c.join(place(places, len(c.nodes)))
	}
	c.learn()
	return c
}

func place(places []*namespace, i int) *namespace {
	if places == nil {
		return nil
	}
	return places[i]
}

// join starts a further node, and waits until it has a vote.
func (c *cluster) join(where *namespace) {
	c.t.Helper()
	id := len(c.nodes) + 1
	s := launch(c.t, "info", raftStorage(c.t, id, c.leader().apiAddr), where)
	s.root, s.unsealKey, s.audit = c.first.root, c.first.unsealKey, c.first.audit
	s.install("v0.1.0")
	c.nodes = append(c.nodes, s)
	s.unsealIn()
	poll(c.t, "the node that joined has a vote", func() error {
		config, err := s.client(s.root).Logical().Read("sys/storage/raft/configuration")
		if err != nil {
			return err
		}
		for _, peer := range config.Data["config"].(data)["servers"].([]any) {
			if p := peer.(data); p["node_id"] == fmt.Sprintf("node%d", id) && p["voter"] == true {
				return nil
			}
		}
		return fmt.Errorf("the voters are in %v", config.Data["config"])
	})
}

// unsealIn unseals a server of a cluster, whatever becomes of it there. The key is
// given once: a Vault 1.21 that is given it again while it joins runs its loop for
// the leadership twice, one of which takes the other's notice that this is lost,
// and stays active for good beside the next leader.
func (s *server) unsealIn() {
	s.t.Helper()
	client := s.client("")
	client.SetClientTimeout(20 * time.Second)
	poll(s.t, "the node takes the key", func() error {
		_, err := client.Sys().Unseal(s.unsealKey)
		return err
	})
	poll(s.t, "the node is unsealed", func() error {
		health, err := client.Sys().Health()
		if err == nil && health.Sealed {
			err = errors.New("it is sealed")
		}
		return err
	})
}

// leader waits for a leader other than one.
func (c *cluster) leader(but ...*server) (leader *server) {
	c.t.Helper()
	poll(c.t, "the cluster has a leader", func() error {
		for _, s := range c.nodes {
			if len(but) > 0 && s == but[0] {
				continue
			}
			client := s.client("")
			client.SetClientTimeout(time.Second)
			if status, err := client.Sys().Leader(); err == nil && status.IsSelf {
				leader = s
				return nil
			}
		}
		return errors.New("no node says that it is")
	})
	return leader
}

// learn takes down what each node is to tell from now on.
func (c *cluster) learn(but ...*server) {
	c.t.Helper()
	s := c.leader(but...)
	poll(c.t, "the leader tells all", func() error {
		got, err := s.told()
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

// told is what a node tells of config, role and versions.
func (s *server) told() (told []data, err error) {
	client := s.client(s.root)
	client.SetClientTimeout(clusterTimeout)
	for _, path := range []string{"ati/config", "ati/roles/r", "ati/config/rotate"} {
		secret, err := client.Logical().Read(path)
		if err != nil {
			return nil, err
		}
		if secret == nil {
			return nil, fmt.Errorf("%s is not there", path)
		}
		told = append(told, secret.Data)
	}
	return told, nil
}

// rotate makes a step at any node but one; where it can't be told whether it was
// made, by the versions.
func (c *cluster) rotate(step string, but ...*server) {
	c.t.Helper()
	want, ok := versionsOf(c.t, c.rotation).after(step, c.last)
	if !ok {
		c.t.Fatalf("%s is out of turn", step)
	}
	poll(c.t, "a step of the rotation", func() error {
		s := c.leader(but...)
		client := s.client(s.root)
		client.SetClientTimeout(clusterTimeout)
		told, err := s.told()
		if err != nil || versionsOf(c.t, told[2]) == want.told() {
			return err
		}
		if _, err := client.Logical().Write("ati/config/rotate"+step, nil); err != nil {
			return err
		}
		return errors.New("not seen yet")
	})
	c.learn(but...)
}

// whole waits until each node answers, and sees whether it tells all: config,
// versions and role, and that the roles that were written are there.
func (c *cluster) whole(written []string) {
	c.t.Helper()
	for i, s := range c.nodes {
		poll(c.t, fmt.Sprintf("node %d tells all", i+1), func() error {
			got, err := s.told()
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
				return errors.New("there is no list of roles")
			}
			there := map[any]bool{}
			for _, name := range list.Data["keys"].([]any) {
				there[name] = true
			}
			for _, name := range written {
				if !there[name] {
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

// activateNext makes a new version of the key the current one, and the load, if
// there is one, is to get no older one from then on.
func (c *cluster) activateNext(l *load, but ...*server) {
	c.t.Helper()
	if now := versionsOf(c.t, c.rotation); now.Previous != 0 && !now.Retired {
		c.rotate("/retire", but...)
	}
	c.rotate("/stage", but...)
	c.rotate("/activate", but...)
	if l != nil {
		l.current.Store(int64(c.last))
	}
}
