//go:build interop

package test

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// Guarantee: whichever node a guard reads from, and whatever that node has missed, no token
// passes that was revoked and that this guard once rejected.
//
// An OpenBao standby runs the plugin, which forwards reads of the path guard. A standby of
// Vault's community edition forwards every request. So a standby that lags responds with the
// newest state or not at all. Only a former leader that has not noticed it yet can respond
// with an older one; the test also replays old responses.
func TestInteropGuard_Standby(t *testing.T) {
	t.Parallel()
	network, namespaces := networkIfPossible(t)
	c := startCluster(t, 3, namespaces, standbyReads)
	f := startGuardsOf(c)

	s := c.standbys()[0]
	f.revokeDuring("a standby is paused", s, func() { s.signal(syscall.SIGSTOP) }, func() { s.signal(syscall.SIGCONT) })
	if tested.hasStandbyReads() {
		s = c.standbys()[1]
		f.revokeDuring("the plugin of a standby is paused", s, func() { signalPlugin(syscall.SIGSTOP, s) }, func() { signalPlugin(syscall.SIGCONT, s) })
	} else {
		t.Log("the standbys of this server do not run the plugin")
	}
	if network != nil {
		s = c.standbys()[0]
		f.revokeDuring("a standby is cut off", s, func() { network.link(s.netns, "down") }, func() { network.link(s.netns, "up") })
	}
	s = c.leader()
	f.revokeDuring("the leader is paused until it is a standby", s, func() { s.signal(syscall.SIGSTOP) }, func() {
		f.only.Store(s) // the load balancer's guard now has a read that waits for the old leader
		time.Sleep(2 * guardPoll)
		s.signal(syscall.SIGCONT)
	})
	s = c.leader()
	f.revokeDuring("the leader is killed", s, s.kill, func() { s.restart(); s.unsealInCluster() })
	f.replay(c.leader())

	for name, m := range f.members {
		m.guard.expect("at the end, "+name, f.valid, http.StatusOK)
		m.load.expectNoFailure("the guard of " + name)
		m.watch.stop()
		t.Logf("the guard of %s rejected %d older responses", name, strings.Count(m.guard.log(), "or a standby lags"))
	}
}

// guardsOf are guards that read from each node of a cluster, and one behind a load balancer.
type guardsOf struct {
	c       *cluster
	members map[string]*guardOf
	valid   string // a token that is not revoked
	relay   *relay
	only    atomic.Pointer[server] // where the load balancer sends all requests, if not nil
}

type guardOf struct {
	node  *server // nil: all, in turn
	guard *guard
	load  *guardLoad
	watch *rejections
}

func startGuardsOf(c *cluster) *guardsOf {
	c.t.Helper()
	c.first.enableGuards()
	c.first.write(c.first.root, "ati/roles/guarded", data{"tools": "*", "ttl": "1h"})
	f := &guardsOf{c: c, members: map[string]*guardOf{}, valid: c.first.mint("guarded", nil)}
	var turn atomic.Int64
	f.relay = startRelay(c.t, "/v1/ati/guard", func() *server {
		if s := f.only.Load(); s != nil {
			return s
		}
		return c.nodes[int(turn.Add(1))%len(c.nodes)]
	})
	balanced := c.first.newGuard(c.t, nil)
	balanced.behind(f.relay)
	f.members["all nodes"] = &guardOf{guard: balanced}
	for i, node := range c.nodes {
		g := c.first.newGuard(c.t, nil)
		g.config["vault"].(data)["address"] = node.addr
		g.writeConfig()
		f.members[fmt.Sprintf("node %d", i+1)] = &guardOf{node: node, guard: g}
	}
	for _, m := range f.members {
		m.guard.start()
	}
	for _, m := range f.members {
		m.guard.waitUntilReady()
		m.load, m.watch = m.guard.startLoad(1, func() string { return f.valid }), m.guard.watchRejected()
	}
	return f
}

// revokeDuring revokes a token while a node is at fault. The guards that do not depend on it
// reject the token meanwhile, and all do when the fault is over.
func (f *guardsOf) revokeDuring(what string, s *server, fault, over func()) {
	t := f.c.t
	t.Helper()
	token := f.c.leader().mint("guarded", nil)
	for name, m := range f.members {
		m.guard.expect(what+", before, "+name, token, http.StatusOK)
	}
	fault()
	f.revoke(token, f.c.leader(s))
	began := time.Now()
	for name, m := range f.members {
		if m.node != s {
			t.Logf("%s: the guard of %s rejects the token after %v", what, name, m.untilRevoked(what, token, began))
		}
	}
	time.Sleep(2500 * time.Millisecond) // OpenBao gives up an invalidation after two seconds
	for name, m := range f.members {
		if m.node == s {
			status, _ := m.guard.call(token, "web_search")
			t.Logf("%s: at the guard of %s, a call returns %d", what, name, status)
		}
	}
	over()
	began = time.Now()
	for name, m := range f.members {
		if m.node == s {
			t.Logf("%s, and over: the guard of %s rejects the token after %v", what, name, m.untilRevoked(what, token, began))
		}
	}
	f.only.Store(nil)
	// A former leader may not have noticed yet.
	for end := time.Now().Add(2 * time.Second); time.Now().Before(end); {
		for _, m := range f.members {
			m.guard.expect(what+", and over", token, http.StatusUnauthorized)
		}
	}
	f.c.waitForMembers()
}

// revoke revokes a token with a request to a node, which may just have become the leader.
func (f *guardsOf) revoke(token string, s *server) {
	f.c.t.Helper()
	poll(f.c.t, "the token is revoked", func() error {
		client := s.client(s.root)
		client.SetClientTimeout(clusterTimeout)
		_, err := client.Logical().Write("ati/revoke", data{"token": token})
		return err
	})
}

// untilRevoked waits until a token is rejected, and from then on checks that it stays so.
func (m *guardOf) untilRevoked(what, token string, began time.Time) time.Duration {
	m.guard.t.Helper()
	m.guard.until(what, token, http.StatusUnauthorized)
	m.watch.add(token)
	return time.Since(began).Round(10 * time.Millisecond)
}

// waitForMembers waits until all nodes respond.
func (c *cluster) waitForMembers() {
	c.t.Helper()
	for i, s := range c.nodes {
		poll(c.t, fmt.Sprintf("node %d responds", i+1), func() error {
			client := s.client(s.root)
			client.SetClientTimeout(clusterTimeout)
			_, err := client.Logical().Read("ati/guard")
			return err
		})
	}
}

// replay lets the load balancer respond with what the leader returned before a revocation, as
// a node that lags would.
func (f *guardsOf) replay(leader *server) {
	t := f.c.t
	t.Helper()
	g, watch := f.members["all nodes"].guard, f.members["all nodes"].watch
	token := leader.mint("guarded", nil)
	g.expect("replay, before", token, http.StatusOK)
	generation := leader.read(leader.root, "ati/guard").Data["generation"]
	everything, unchanged := leader.readRaw("ati/guard", nil), leader.readRaw("ati/guard", map[string][]string{"since": {fmt.Sprint(generation)}})
	f.revoke(token, leader)
	t.Logf("replay: the guard rejects the token after %v", g.untilRejected("replay", http.StatusUnauthorized, token))
	watch.add(token)
	for _, response := range []string{everything, unchanged} {
		f.relay.respond(http.StatusOK, response)
		g.waitForFailedReads(2)
		if status, body := g.call(token, "web_search"); status != http.StatusUnauthorized || body != "the token was revoked" {
			t.Errorf("after an older response, a call with a revoked token returns %d %s", status, body)
		}
		g.expect("after an older response", f.valid, http.StatusOK)
	}
	f.relay.fault.Store(nil)
	g.waitForReads(1)
	if !strings.Contains(g.log(), "or a standby lags") {
		t.Error("the guard's log does not have the older responses")
	}
}

// readRaw returns a response as it is.
func (s *server) readRaw(path string, query map[string][]string) string {
	s.t.Helper()
	resp, err := s.client(s.root).Logical().ReadRawWithData(path, query)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return string(b)
}
