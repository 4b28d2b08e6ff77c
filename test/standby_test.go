package test

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"vault-plugin-secrets-ati/ati"
)

// Guarantee: by default, the very next response of each node follows a change, whichever
// node the change was sent to.
func TestStandby_Default(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3, nil, standbyReads)
	h := startHistory(c)
	leader, standbys := c.leader(), c.standbys()
	for i := range rounds(t, "SOAK_STANDBY_WRITES", 4, 100) {
		via := c.nodes[i%len(c.nodes)]
		h.setNextTools(via)
		h.mintEverywhere(c.nodes...)
		h.disable(via)
		h.mintEverywhere(c.nodes...)
		h.setNextTools(via)
		h.mintEverywhere(c.nodes...)
		old, err := h.mint(via, clusterTimeout)
		if err != nil {
			t.Fatal(err)
		}
		h.rotate(via, "")
		h.mintEverywhere(c.nodes...)
		for _, s := range c.nodes {
			if got := s.write(s.root, "ati/validate", data{"token": old.token}).Data; got["valid"] != false {
				t.Errorf("%s: validate of a token of the replaced key returns %v", s.addr, got)
			}
		}
		c.recordState()
	}

	// A rotation without downtime, each step sent to a standby.
	previous := h.newest().version
	standbys[0].write(standbys[0].root, "ati/config/rotate/stage", data{"proxy_url": "https://green.example.com"})
	for _, s := range c.nodes {
		if got := versionsOf(t, s.read(s.root, "ati/config/rotate").Data); got.Pending != previous+1 {
			t.Errorf("%s: after stage, the versions are %+v", s.addr, got)
		}
	}
	h.rotate(standbys[1], "/activate")
	h.mintEverywhere(c.nodes...)
	const previousURL = "https://ati.example.com"
	for _, s := range c.nodes {
		if got := s.read(s.root, "ati/creds/r", "proxy_url="+previousURL).Data["key_version"]; fmt.Sprint(got) != strconv.Itoa(previous) {
			t.Errorf("%s: %s has version %v", s.addr, previousURL, got)
		}
	}
	standbys[0].write(standbys[0].root, "ati/config/rotate/retire", nil)
	for _, s := range c.nodes {
		if creds, err := s.client(s.root).Logical().ReadWithData("ati/creds/r", map[string][]string{"proxy_url": {previousURL}}); httpStatus(t, err) != http.StatusBadRequest {
			t.Errorf("%s: after retire, %s returns %v, %v", s.addr, previousURL, creds, err)
		}
		got, err := h.mint(s, clusterTimeout)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ati.ValidateToken(got.token, parseSecret(t, s.read(s.root, "ati/proxy-env").Data["ATI_JWT_SECRET"].(string))); err != nil {
			t.Errorf("%s: a token with the key of proxy-env: %v", s.addr, err)
		}
	}
	c.recordState()

	// Config, roles, batches, checks and leases, at and through each node.
	for i, s := range c.nodes {
		issuer := "issuer" + strconv.Itoa(i)
		s.write(s.root, "ati/config", data{"issuer": issuer})
		name := "leased" + strconv.Itoa(i)
		s.write(s.root, "ati/roles/"+name, data{"tools": name, "generate_lease": true, "allowed_agent_ids": "*"})
		for _, other := range c.nodes {
			if got := other.read(other.root, "ati/config").Data["issuer"]; got != issuer {
				t.Errorf("config at %s, written at %s: issuer %v", other.addr, s.addr, got)
			}
			if got := other.write(other.root, "ati/check/"+name, data{"tool": name}).Data["allowed"]; got != true {
				t.Errorf("check at %s, written at %s: %v", other.addr, s.addr, got)
			}
			lease := other.read(other.root, "ati/creds/"+name)
			if lease.LeaseID == "" || lease.LeaseDuration == 0 || lease.Data["scope"] != "tool:"+name {
				t.Errorf("lease at %s: %q, %d s, scope %v", other.addr, lease.LeaseID, lease.LeaseDuration, lease.Data["scope"])
			}
			if c, err := ati.ValidateToken(lease.Data["token"].(string), c.keys[c.last]); err != nil || c.Issuer != issuer {
				t.Errorf("token at %s: %+v, %v", other.addr, c, err)
			}
			other.write(other.root, "sys/leases/revoke", data{"lease_id": lease.LeaseID})
		}
		s.write(s.root, "ati/roles/"+name, data{"generate_lease": false})
		for _, other := range c.nodes {
			if got := other.write(other.root, "ati/batch/"+name, data{"agent_ids": "a,b"}).Data["tokens"].(data); len(got) != 2 {
				t.Errorf("batch at %s: %d tokens", other.addr, len(got))
			}
		}
	}
	if c.leader() != leader {
		t.Error("the leader changed during the test")
	}
	c.recordState()
	h.check()
}

// networkIfPossible starts a network of three nodes. Where that is not possible, it returns
// nil, and no node can be cut off.
func networkIfPossible(t *testing.T) (*network, []*namespace) {
	t.Helper()
	network, err := startNetwork(t, 3)
	if err != nil {
		t.Logf("no node is cut off: cannot create network namespaces: %v", err)
		return nil, nil
	}
	return network, network.nodes
}

// Guarantee: by default, no node returns a token under an old state, whatever it missed.
func TestStandby_Faults(t *testing.T) {
	t.Parallel()
	network, namespaces := networkIfPossible(t)
	c := startCluster(t, 3, namespaces, standbyReads, earlySnapshots)
	h := startHistory(c)
	for range rounds(t, "SOAK_STANDBY_FAULTS", 1, 5) {
		s := c.standbys()[0]
		h.missChanges(s, func() {
			s.signal(syscall.SIGSTOP)
			h.changeAt(c.leader(s), s)
			c.writeEntries(c.leader(s), 300)
		}, func() { s.signal(syscall.SIGCONT) })
		s.installedSnapshot()
		s = c.standbys()[1]
		h.missChanges(s, func() { signalPlugin(syscall.SIGSTOP, s) }, func() { signalPlugin(syscall.SIGCONT, s) })
		if network != nil {
			s = c.standbys()[0]
			h.missChanges(s, func() { network.link(s.netns, "down") }, func() { network.link(s.netns, "up") })
		}

		// Both standbys lose an invalidation; then one of them becomes the leader.
		old := c.leader()
		h.loseInvalidations(old, c.standbys())
		old.kill()
		h.changeAt(c.leader(old), old)
		old.restart()
		old.unsealInCluster()
		h.waitFor(c.nodes...)
		h.mintEverywhere(c.nodes...)

		// The leader steps down, and then returns tokens as a standby.
		old = c.leader()
		h.loseInvalidations(old, c.standbys())
		if err := old.client(old.root).Sys().StepDown(); err != nil {
			t.Fatal(err)
		}
		h.changeAt(c.leader(old), nil)
		h.waitFor(c.nodes...)
		h.mintEverywhere(c.nodes...)

		// The leader is paused until it is a standby.
		old = c.leader()
		old.signal(syscall.SIGSTOP)
		h.changeAt(c.leader(old), old)
		h.resumeWithRequests(old, func() {
			h.mu.Lock()
			h.resumed = append(h.resumed, resumption{old.addr, time.Now()})
			h.mu.Unlock()
			old.signal(syscall.SIGCONT)
		})
		h.waitFor(c.nodes...)
		h.mintEverywhere(c.nodes...)

		// A node starts alone, from a disk without the changes.
		alone := c.standbys()[0]
		alone.kill()
		h.changeAt(c.leader(alone), alone)
		others := slices.DeleteFunc(slices.Clone(c.nodes), func(s *server) bool { return s == alone })
		for _, s := range others {
			s.kill()
		}
		alone.restart()
		alone.unsealInCluster()
		for end := time.Now().Add(3 * time.Second); time.Now().Before(end); {
			if got, err := h.mint(alone, clusterTimeout); err == nil {
				t.Fatalf("the only node returned a token with scope %q", got.scope)
			}
		}
		for _, s := range others {
			s.restart()
			s.unsealInCluster()
		}
		h.waitFor(c.nodes...)
		h.mintEverywhere(c.nodes...)
	}
	h.check()
}

// changeAt changes role and key with requests to a node. The other one, if any, does not
// respond.
func (h *history) changeAt(s, away *server) {
	h.t.Helper()
	h.waitFor(s)
	h.setNextTools(s)
	h.rotate(s, "")
	if away == nil {
		h.c.recordState()
	} else {
		h.c.recordState(away)
	}
}

// loseInvalidations makes changes while the plugin processes of standbys are stopped, after
// they have cached the role.
func (h *history) loseInvalidations(leader *server, standbys []*server) {
	h.t.Helper()
	for _, s := range standbys {
		s.read(s.root, "ati/roles/r")
	}
	signalPlugin(syscall.SIGSTOP, standbys...)
	h.changeAt(leader, nil)
	time.Sleep(2500 * time.Millisecond)
	signalPlugin(syscall.SIGCONT, standbys...)
}

// signalPlugin signals the plugin processes of standbys, which have none if they forward
// all requests.
func signalPlugin(signal syscall.Signal, standbys ...*server) {
	for _, s := range standbys {
		s.t.Helper()
		if !tested.hasStandbyReads() {
			continue
		}
		if err := syscall.Kill(s.pluginProcess(nil), signal); err != nil {
			s.t.Fatal(err)
		}
	}
}

// Guarantee: by default, a node that catches up by a snapshot of raft's default size returns
// no token under an old state, also when it becomes the leader. Only in make soak.
func TestStandby_SnapshotCatchUp(t *testing.T) {
	t.Parallel()
	if !soaking {
		t.Log("not run: only make soak runs this test")
		return
	}
	h, s, _ := catchUp(t, rounds(t, "SOAK_STANDBY_ENTRIES", 0, 28_000), false, standbyReads)
	h.mintEverywhere(h.c.nodes...)
	role := s.read(s.root, "ati/roles/r").Data["tools"]
	t.Logf("the node reads the role with tools %v; the newest scope is %q", role, h.newest().scope)
	for h.c.leader() != s {
		old := h.c.leader()
		if err := old.client(old.root).Sys().StepDown(); err != nil {
			t.Fatal(err)
		}
		h.c.leader(old)
	}
	h.waitFor(h.c.nodes...)
	h.mintEverywhere(h.c.nodes...)
	h.check()
}

// With allow_standby_minting, prints how long a node that catches up by a snapshot mints by
// what it knew, and checks that this is a short time with disable_cache. Only in make soak.
func TestStandby_SnapshotCatchUpMinting(t *testing.T) {
	t.Parallel()
	if !soaking {
		t.Log("not run: only make soak runs this test")
		return
	}
	h, s, took := catchUp(t, 300, true, standbyReads, earlySnapshots)
	t.Logf("with the server's storage cache, the node minted by an old state for %v, after which the test no longer waits", took)
	h.setNextTools(h.c.leader())
	h.rotate(h.c.leader(), "")
	poll(t, "the node mints by an entry that changed again", func() error {
		got, err := h.mint(s, clusterTimeout)
		if want := h.newest(); err == nil && (got.scope != want.scope || got.version != want.version) {
			err = fmt.Errorf("scope %q, version %d", got.scope, got.version)
		}
		return err
	})
	h.stop()
	h, _, took = catchUp(t, 300, true, standbyReads, earlySnapshots, func(s *server) { s.settings += "\ndisable_cache = true" })
	if took > 7*time.Second {
		t.Error("with disable_cache, the node still minted by an old state after 7s")
	}
	h.stop()
	t.Logf("with disable_cache, the node minted by an old state for %v", took)
}

// earlySnapshots makes raft keep fewer entries than by default.
func earlySnapshots(s *server) {
	s.storage = strings.TrimSuffix(s.storage, "}") + "  snapshot_threshold = 50\n  trailing_logs = 50\n  snapshot_interval = \"1s\"\n}"
}

// catchUp writes entries while a standby is paused, so that it installs a snapshot when it
// is resumed, and returns how long it then mints by an old state. It waits for up to 20
// seconds.
func catchUp(t *testing.T, entries int, minting bool, options ...option) (h *history, s *server, took time.Duration) {
	t.Helper()
	c := startCluster(t, 3, nil, options...)
	c.first.write(c.first.root, "ati/config", data{"allow_standby_minting": minting})
	h = startHistory(c)
	leader := c.leader()
	s = c.standbys()[0]
	s.read(s.root, "ati/roles/r") // fills the server's storage cache
	poll(t, "the standby follows", func() error {
		got, err := h.mint(s, clusterTimeout)
		if err == nil && got.scope != h.newest().scope {
			err = fmt.Errorf("scope %q", got.scope)
		}
		return err
	})
	s.signal(syscall.SIGSTOP)
	h.setNextTools(leader)
	h.rotate(leader, "")
	c.recordState(s)
	c.writeEntries(leader, entries)
	var resumed time.Time
	h.resumeWithRequests(s, func() { resumed = time.Now(); s.signal(syscall.SIGCONT) })
	s.installedSnapshot()
	for time.Since(resumed) < 20*time.Second {
		if got, err := h.mint(s, clusterTimeout); err == nil && got.scope == h.newest().scope && got.version == h.newest().version {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	if got, err := h.mint(s, clusterTimeout); err == nil {
		t.Logf("the node mints with scope %q and key version %d; the newest are %q and %d", got.scope, got.version, h.newest().scope, h.newest().version)
	}
	return h, s, time.Since(resumed).Round(time.Millisecond)
}

// writeEntries writes roles to the leader, and waits until it has made a snapshot.
func (c *cluster) writeEntries(leader *server, entries int) {
	c.t.Helper()
	began := time.Now()
	var writers sync.WaitGroup
	for i := range loadClients {
		writers.Go(func() {
			client := leader.client(leader.root)
			for n := i; n < entries; n += loadClients {
				// A leader without one of its followers can lose an election when the machine is busy.
				err := writeRole(client, "n"+strconv.Itoa(n))
				for attempt := 0; err != nil && attempt < 100; attempt++ {
					time.Sleep(200 * time.Millisecond)
					err = writeRole(client, "n"+strconv.Itoa(n))
				}
				if err != nil {
					c.t.Errorf("write %d: %v", n, err)
					return
				}
			}
		})
	}
	writers.Wait()
	c.t.Logf("%d entries written in %v", entries, time.Since(began).Round(time.Second))
	time.Sleep(3 * time.Second)
}

// installedSnapshot waits until a node has installed a snapshot.
func (s *server) installedSnapshot() {
	s.t.Helper()
	poll(s.t, "the node has installed a snapshot", func() error {
		if !strings.Contains(s.log(), "nstalled remote snapshot") {
			return errors.New("no snapshot in its log")
		}
		return nil
	})
}

// With allow_standby_minting, standbys mint without the active node, and a change reaches
// them after a short time. Prints that time, and what standbys mint by after faults.
func TestStandby_AllowMinting(t *testing.T) {
	t.Parallel()
	network, namespaces := networkIfPossible(t)
	c := startCluster(t, 3, namespaces, standbyReads)
	c.auditToLog()
	leader, standbys := c.leader(), c.standbys()
	h := &history{t: t, c: c}
	h.setTools(leader, "tool0")
	mint := func(s *server) (scope, jti string) {
		creds := s.read(s.root, "ati/creds/r")
		return creds.Data["scope"].(string), creds.Data["jti"].(string)
	}
	// waitForMinting waits until a node mints, or does not mint, without the leader.
	waitForMinting := func(s *server, want bool) {
		t.Helper()
		poll(t, "the standby mints", func() error {
			_, jti := mint(s)
			if s.audited(jti) != want || leader.audited(jti) == want {
				return fmt.Errorf("request %s: audited by the standby: %v, by the leader: %v", jti, s.audited(jti), leader.audited(jti))
			}
			return nil
		})
	}
	for _, s := range standbys {
		waitForMinting(s, false)
	}
	leader.write(leader.root, "ati/config", data{"allow_standby_minting": true})
	for _, s := range standbys {
		waitForMinting(s, tested.hasStandbyReads())
	}

	// lag returns how long after a time a standby mints by the newest state.
	lag := func(s *server, since time.Time) time.Duration {
		for {
			if scope, _ := mint(s); scope == h.newest().scope || time.Since(since) > time.Minute {
				return time.Since(since)
			}
		}
	}
	var lags []time.Duration
	var mu sync.Mutex
	for range rounds(t, "SOAK_STANDBY_WRITES", 20, 100) {
		h.setNextTools(leader)
		var waiting sync.WaitGroup
		for _, s := range standbys {
			waiting.Go(func() {
				took := lag(s, h.newest().acked)
				mu.Lock()
				lags = append(lags, took)
				mu.Unlock()
			})
		}
		waiting.Wait()
	}
	slices.Sort(lags)
	t.Logf("a change reached a standby after %v (minimum), %v (median), %v (maximum), in %d measurements", lags[0], lags[len(lags)/2], lags[len(lags)-1], len(lags))

	// Leases are the leader's.
	leader.write(leader.root, "ati/roles/leased", data{"tools": "x", "generate_lease": true})
	for _, s := range standbys {
		poll(t, "the standby knows the role", func() error {
			lease, err := s.client(s.root).Logical().Read("ati/creds/leased")
			if err == nil && lease.LeaseID == "" {
				err = errors.New("no lease")
			}
			return err
		})
	}

	// The plugin process of a standby may miss an invalidation. Its caches are at most 5
	// seconds old nonetheless.
	s := standbys[0]
	for range 3 {
		mint(s)
		signalPlugin(syscall.SIGSTOP, s)
		h.setNextTools(leader)
		time.Sleep(2500 * time.Millisecond)
		signalPlugin(syscall.SIGCONT, s)
		took := lag(s, time.Now())
		if took > 7*time.Second {
			t.Errorf("a standby minted by what its plugin process had cached %v before", took)
		}
		t.Logf("after its plugin process was stopped during a change, the standby minted by the old state for %v", took.Round(time.Millisecond))
	}

	if network != nil {
		network.link(s.netns, "down")
		h.setNextTools(leader)
		minted, failed := 0, 0
		for end := time.Now().Add(6 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
			client := s.client(s.root)
			client.SetClientTimeout(clusterTimeout)
			if _, err := client.Logical().Read("ati/creds/r"); err != nil {
				failed++
			} else {
				minted++
			}
		}
		t.Logf("while it was cut off for 6 s, the standby minted %d times by the old state, and failed %d times", minted, failed)
		network.link(s.netns, "up")
		h.waitFor(s)
		t.Logf("the standby minted by the new state %v later", lag(s, time.Now()).Round(time.Millisecond))
	}

	leader.write(leader.root, "ati/config", data{"allow_standby_minting": false})
	began := time.Now()
	for _, s := range standbys {
		waitForMinting(s, false)
	}
	t.Logf("standbys forwarded again %v after allow_standby_minting=false", time.Since(began).Round(time.Millisecond))
}
