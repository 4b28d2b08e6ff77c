package test

import (
	"errors"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"
)

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
