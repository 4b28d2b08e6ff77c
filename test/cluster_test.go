package test

import (
	"errors"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"
)

// Guarantee: whenever the leader is killed under load, requests succeed again, no
// acknowledged write is lost, and every returned token is valid.
func TestCluster_LeaderKilled(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 2, nil)
	l := startLoad(t, clusterTimeout, 20*time.Millisecond, c.nodes...)
	l.waitForMints()
	c.join(nil)
	c.checkState(l.writtenRoles())
	t.Logf("a third node joined under load; each client had its next token within %v", l.waitForMints())
	l.check(c.keys, c.first.audit)

	l = startLoad(t, clusterTimeout, 20*time.Millisecond, c.nodes...)
	l.waitForMints()
	for kill := range rounds(t, "SOAK_KILLS", 2, 10) {
		leader := c.leader()
		leader.kill()
		took := l.waitForMints()
		written := len(l.writtenRoles())
		poll(t, "writes succeed again", func() error {
			if len(l.writtenRoles()) == written {
				return errors.New("no new write")
			}
			return nil
		})
		leader.restart()
		leader.unsealInCluster()
		c.checkState(l.writtenRoles())
		c.activateNext(l)
		c.checkState(l.writtenRoles())
		t.Logf("kill %d: each client had its next token within %v", kill+1, took)
	}
	for range rounds(t, "SOAK_PAUSES", 1, 5) {
		c.loseLeader(l, "paused", func(s *server) { s.signal(syscall.SIGSTOP) }, func(s *server) {
			l.mu.Lock()
			l.resumed = append(l.resumed, resumption{s.addr, time.Now()})
			l.mu.Unlock()
			s.signal(syscall.SIGCONT)
			time.Sleep(clusterTimeout) // until it has noticed that it is no longer the leader
		})
	}
	l.check(c.keys, c.first.audit)
}

// Guarantee: when the leader or a follower is partitioned, requests to the other nodes
// succeed, and the partitioned node returns no token that they would not accept.
func TestCluster_Partition(t *testing.T) {
	t.Parallel()
	network, err := startNetwork(t, 3)
	if err != nil {
		t.Logf("not run: cannot create network namespaces: %v", err)
		return
	}
	c := startCluster(t, 3, network.nodes)
	l := startLoad(t, clusterTimeout, 20*time.Millisecond, c.nodes...)
	l.waitForMints()
	for range rounds(t, "SOAK_PARTITIONS", 1, 5) {
		old := c.leader()
		c.loseLeader(l, "partitioned", func(s *server) { network.link(s.netns, "down") }, func(s *server) { network.link(s.netns, "up") })
		leader := c.leader()
		follower := c.nodes[slices.IndexFunc(c.nodes, func(s *server) bool { return s != old && s != leader })]
		network.link(follower.netns, "down")
		time.Sleep(clusterTimeout) // requests to the follower time out
		l.waitForMints()
		c.activateNext(l, follower)
		network.link(follower.netns, "up")
		c.checkState(l.writtenRoles())
		t.Log("a follower was partitioned; requests to the other nodes succeeded")
	}
	l.check(c.keys, c.first.audit)
}

// loseLeader stops the leader until the cluster has another leader and a new key
// version. Meanwhile it sends requests to the old leader as well: each must return an
// error or a token that load.check accepts, and an acknowledged write must be kept.
func (c *cluster) loseLeader(l *load, what string, stop, resume func(*server)) {
	c.t.Helper()
	old := c.leader()
	start := time.Now()
	stop(old)
	c.leader(old)
	l.waitForMints()
	took := time.Since(start).Round(100 * time.Millisecond)
	c.activateNext(l, old)
	tokens, failed := 0, 0
	results := make(chan error)
	for range loadClients {
		go func() { results <- l.mint(old.client(old.root)) }()
	}
	late := "late" + strconv.Itoa(c.last)
	saved := make(chan error)
	go func() {
		saved <- writeRole(old.client(old.root), late)
	}()
	time.Sleep(200 * time.Millisecond) // until the requests are sent
	resume(old)
	for range loadClients {
		if <-results == nil {
			tokens++
		} else {
			failed++
		}
	}
	err := <-saved
	if err == nil {
		l.mu.Lock()
		l.roles = append(l.roles, late)
		l.mu.Unlock()
	}
	c.checkState(l.writtenRoles())
	c.t.Logf("the leader was %s: each client had its next token within %v; of the requests sent to it meanwhile, %d returned a token and %d failed; write succeeded: %v", what, took, tokens, failed, err == nil)
}
