package test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/vault/api"

	"vault-plugin-secrets-ati/ati"
)

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

// load is clients that mint without pause, and one that writes roles. Each knows
// all addresses, and turns to the next at an error.
type load struct {
	t       testing.TB
	wait    time.Duration // of a client, after an error
	current atomic.Int64  // the version that a request gets at least
	stop    chan struct{}
	running sync.WaitGroup
	began   [loadClients]atomic.Int64 // when the newest answered request did

	mu       sync.Mutex
	answers  []answer
	roles    []string       // acknowledged
	failures map[string]int // of mints
	failed   int
	unsaved  int // failed writes
	slowest  time.Duration
	resumed  []resumption
}

// answer is what a mint was answered.
type answer struct {
	token, jti string
	version    int
	stale      bool // not the newest version at the time of the request
	node       string
	at         time.Time
}

// resumption is when a leader that had been paused went on.
type resumption struct {
	node string
	at   time.Time
}

func startLoad(t testing.TB, timeout, wait time.Duration, nodes ...*server) *load {
	l := &load{t: t, wait: wait, stop: make(chan struct{}), failures: map[string]int{}}
	l.current.Store(1)
	clients := func() (clients []*api.Client) {
		for _, s := range nodes {
			client := s.client(s.root)
			client.SetClientTimeout(timeout)
			clients = append(clients, client)
		}
		return clients
	}
	run := func(at int, request func(*api.Client) error) {
		all := clients()
		l.running.Go(func() {
			for at %= len(all); ; {
				select {
				case <-l.stop:
					return
				default:
				}
				if err := request(all[at]); err != nil {
					at = (at + 1) % len(all)
					time.Sleep(l.wait)
				}
			}
		})
	}
	for i := range loadClients {
		run(i, func(client *api.Client) error {
			began := time.Now()
			err := l.mint(client)
			if err == nil {
				l.began[i].Store(began.UnixNano())
			}
			if !soaking {
				time.Sleep(5 * time.Millisecond) // the other tests need the processors too
			}
			return err
		})
	}
	n := 0
	run(0, func(client *api.Client) error {
		n++
		name := fmt.Sprintf("n%d", n)
		err := writeRole(client, name)
		l.mu.Lock()
		defer l.mu.Unlock()
		if err != nil {
			l.unsaved++
			return err
		}
		l.roles = append(l.roles, name)
		return nil
	})
	t.Cleanup(l.end)
	return l
}

// writeRole takes nothing for an answer but a 204, which says that it is stored.
func writeRole(client *api.Client, name string) error {
	ctx, cancel := context.WithTimeout(context.Background(), client.ClientTimeout())
	defer cancel()
	resp, err := client.Logical().WriteRawWithContext(ctx, "ati/roles/"+name, []byte(`{"tools":"x"}`))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusNoContent {
		return fmt.Errorf("the write of a role was answered with a %d", resp.StatusCode)
	}
	return nil
}

func (l *load) mint(client *api.Client) error {
	newest, began := int(l.current.Load()), time.Now()
	creds, err := client.Logical().Read("ati/creds/r")
	if err == nil && creds == nil {
		// A node that forwards to a leader which is going can answer with nothing.
		err = errors.New("an empty answer")
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.slowest = max(l.slowest, time.Since(began))
	if err != nil {
		l.failed++
		lines := strings.Split(strings.TrimSpace(err.Error()), "\n")
		words := strings.Split(lines[len(lines)-1], ": ") // before the last two stand addresses
		l.failures[strings.Trim(strings.Join(words[max(0, len(words)-2):], ": "), `* "`)]++
		return err
	}
	version, err := creds.Data["key_version"].(json.Number).Int64()
	if err != nil {
		l.t.Error(err)
	}
	l.answers = append(l.answers, answer{creds.Data["token"].(string), creds.Data["jti"].(string), int(version), int(version) < newest, client.Address(), time.Now()})
	return nil
}

func (l *load) acknowledged() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.roles[:len(l.roles):len(l.roles)]
}

// goesOn waits until each client has a token that it asked for after now.
func (l *load) goesOn() time.Duration {
	l.t.Helper()
	now := time.Now()
	poll(l.t, "minting goes on", func() error {
		for i := range l.began {
			if l.began[i].Load() < now.UnixNano() {
				l.mu.Lock()
				defer l.mu.Unlock()
				return fmt.Errorf("client %d has no token; failures so far: %v", i+1, l.failures)
			}
		}
		return nil
	})
	return time.Since(now).Round(100 * time.Millisecond)
}

// failedSoFar is how many mints and writes have failed.
func (l *load) failedSoFar() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.failed + l.unsaved
}

func (l *load) end() {
	select {
	case <-l.stop:
	default:
		close(l.stop)
	}
	l.running.Wait()
}

// check ends the load, and holds each token that was answered against the key
// of its version and the audit log.
func (l *load) check(keys map[int]ati.Key, audit string) {
	l.t.Helper()
	l.end()
	audited := answered(l.t, audit)
	jtis := map[string]bool{}
	versions := map[int]int{}
	stale, longest := 0, time.Duration(0)
	for _, a := range l.answers {
		c, err := ati.ValidateToken(a.token, keys[a.version])
		if err != nil {
			l.t.Fatalf("a token that was answered, of version %d: %v", a.version, err)
		}
		if c.ID != a.jti || jtis[a.jti] || !audited[a.jti] || c.Scope != "tool:web_search skill:summarize" || c.ExpiresAt-c.IssuedAt != 3600 || c.ATI.Rate["*"] != "100/hour" {
			l.t.Fatalf("a token that was answered as %s, before: %v, audited: %v, has %+v %+v", a.jti, jtis[a.jti], audited[a.jti], c, c.ATI)
		}
		jtis[a.jti] = true
		versions[a.version]++
		if a.stale {
			// A mint touches no storage: a leader that was stopped mints by what it
			// knew, until it has noticed that another one is there.
			i := slices.IndexFunc(l.resumed, func(r resumption) bool {
				return r.node == a.node && a.at.After(r.at) && a.at.Before(r.at.Add(clusterTimeout))
			})
			if i < 0 {
				l.t.Fatalf("a token of %s has the version %d of the key, which had been replaced when it was asked for", a.node, a.version)
			}
			stale++
			longest = max(longest, a.at.Sub(l.resumed[i].at))
		}
	}
	if len(l.resumed) > 0 {
		l.t.Logf("%d tokens of a version that had been replaced, from a leader that went on after a pause, for %v at most", stale, longest.Round(time.Millisecond))
	}
	l.t.Logf("%d tokens answered, all valid and audited, by key version %v; %d roles written; %d mints and %d writes failed; the longest request took %v",
		len(l.answers), versions, len(l.roles), l.failed, l.unsaved, l.slowest.Round(time.Millisecond))
	for failure, n := range l.failures {
		l.t.Logf("%6d × %s", n, failure)
	}
}

// answered are the ids of the requests whose answers an audit file has.
func answered(t testing.TB, audit string) map[string]bool {
	t.Helper()
	f, err := os.Open(audit)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	ids := map[string]bool{}
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var line auditLine
		// A server that was killed may have left half a line.
		if json.Unmarshal(lines.Bytes(), &line) == nil && line.Type == "response" {
			ids[line.Request.ID] = true
		}
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
	return ids
}

// The promise: the leader is killed again and again, under load, and each time
// minting goes on, nothing that was written is lost, and no token is answered
// that isn't valid.
func TestCluster_LeaderKilled(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 2, nil)
	l := startLoad(t, clusterTimeout, 20*time.Millisecond, c.nodes...)
	l.goesOn()
	c.join(nil)
	c.whole(l.acknowledged())
	t.Logf("a third node joined under load; each client had its next token within %v", l.goesOn())
	l.check(c.keys, c.first.audit)

	l = startLoad(t, clusterTimeout, 20*time.Millisecond, c.nodes...)
	l.goesOn()
	for kill := range rounds(t, "SOAK_KILLS", 2, 10) {
		leader := c.leader()
		leader.kill()
		took := l.goesOn()
		written := len(l.acknowledged())
		poll(t, "writing goes on", func() error {
			if len(l.acknowledged()) == written {
				return errors.New("no write since")
			}
			return nil
		})
		leader.startAgain()
		leader.unsealIn()
		c.whole(l.acknowledged())
		c.activateNext(l)
		c.whole(l.acknowledged())
		t.Logf("kill %d: each client had its next token within %v", kill+1, took)
	}
	for range rounds(t, "SOAK_PAUSES", 1, 5) {
		c.loseFor(l, "paused", func(s *server) { s.signal(syscall.SIGSTOP) }, func(s *server) {
			l.mu.Lock()
			l.resumed = append(l.resumed, resumption{s.addr, time.Now()})
			l.mu.Unlock()
			s.signal(syscall.SIGCONT)
			time.Sleep(clusterTimeout) // by then it has noticed, and tells the truth
		})
	}
	l.check(c.keys, c.first.audit)
}

func (s *server) signal(signal os.Signal) {
	s.t.Helper()
	if err := s.process.Signal(signal); err != nil {
		s.t.Fatal(err)
	}
}

// The promise: a node that is cut off, the leader or another, neither stops the
// minting nor answers what the others don't stand behind.
func TestCluster_Partition(t *testing.T) {
	t.Parallel()
	network, err := startNetwork(t, 3)
	if err != nil {
		t.Logf("left out, since network namespaces can't be had here: %v", err)
		return
	}
	c := startCluster(t, 3, network.places)
	l := startLoad(t, clusterTimeout, 20*time.Millisecond, c.nodes...)
	l.goesOn()
	for range rounds(t, "SOAK_PARTITIONS", 1, 5) {
		old := c.leader()
		c.loseFor(l, "cut off", func(s *server) { network.link(s.place, "down") }, func(s *server) { network.link(s.place, "up") })
		leader := c.leader()
		follower := c.nodes[slices.IndexFunc(c.nodes, func(s *server) bool { return s != old && s != leader })]
		network.link(follower.place, "down")
		time.Sleep(clusterTimeout) // those who ask it get nothing in this time
		l.goesOn()
		c.activateNext(l, follower)
		network.link(follower.place, "up")
		c.whole(l.acknowledged())
		t.Log("a follower was cut off; minting went on")
	}
	l.check(c.keys, c.first.audit)
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

// loseFor takes the leader away until there is another one with another key, and
// asks the former one too: what comes of that is an error, or a token that the
// check takes; and a write that was taken is there.
func (c *cluster) loseFor(l *load, what string, leave, comeBack func(*server)) {
	c.t.Helper()
	old := c.leader()
	left := time.Now()
	leave(old)
	c.leader(old)
	l.goesOn()
	took := time.Since(left).Round(100 * time.Millisecond)
	c.activateNext(l, old)
	tokens, refused := 0, 0
	results := make(chan error)
	for range loadClients {
		go func() { results <- l.mint(old.client(old.root)) }()
	}
	late := "late" + strconv.Itoa(c.last)
	saved := make(chan error)
	go func() {
		saved <- writeRole(old.client(old.root), late)
	}()
	time.Sleep(200 * time.Millisecond) // so that they have asked
	comeBack(old)
	for range loadClients {
		if <-results == nil {
			tokens++
		} else {
			refused++
		}
	}
	err := <-saved
	if err == nil {
		l.mu.Lock()
		l.roles = append(l.roles, late)
		l.mu.Unlock()
	}
	c.whole(l.acknowledged())
	c.t.Logf("the leader was %s: each client had its next token within %v; asked meanwhile, it answered %d with a token and %d with an error; the write there: %v", what, took, tokens, refused, err == nil)
}

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
