package test

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"vault-plugin-secrets-ati/ati"
)

// history records the states of the role r and of the key, and the tokens that the nodes
// of a cluster return: each must follow the newest state that was acknowledged before its
// request was sent.
type history struct {
	t    testing.TB
	c    *cluster
	stop func() // ends the clients

	mu      sync.Mutex
	states  []mintState
	tokens  []nodeToken
	failed  int
	resumed []resumption // of a leader
}

// mintState is what a token must follow between two changes.
type mintState struct {
	scope        string // "" if the role is disabled
	version      int    // the lowest key version
	began, acked time.Time
}

// nodeToken is a token that a node returned.
type nodeToken struct {
	node         *server
	token, scope string
	version      int
	began, ended time.Time
}

// startHistory starts a client for each node.
func startHistory(c *cluster) *history {
	c.t.Helper()
	h := &history{t: c.t, c: c}
	h.setTools(c.leader(), "tool0")
	done := make(chan struct{})
	var clients sync.WaitGroup
	for _, s := range c.nodes {
		clients.Go(func() {
			for {
				select {
				case <-done:
					return
				case <-time.After(20 * time.Millisecond):
					_, _ = h.mint(s, clusterTimeout)
				}
			}
		})
	}
	h.stop = sync.OnceFunc(func() { close(done); clients.Wait() })
	c.t.Cleanup(h.stop)
	return h
}

// mint requests a token from a node.
func (h *history) mint(s *server, timeout time.Duration) (nodeToken, error) {
	client := s.client(s.root)
	client.SetClientTimeout(timeout)
	got := nodeToken{node: s, began: time.Now()}
	creds, err := client.Logical().Read("ati/creds/r")
	got.ended = time.Now()
	if err == nil && creds == nil {
		err = errors.New("empty response")
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if err != nil {
		h.failed++
		return got, err
	}
	version, err := creds.Data["key_version"].(json.Number).Int64()
	if err != nil {
		h.t.Error(err)
	}
	got.token, got.scope, got.version = creds.Data["token"].(string), creds.Data["scope"].(string), int(version)
	h.tokens = append(h.tokens, got)
	return got, nil
}

// newest returns the newest state.
func (h *history) newest() mintState {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.states) == 0 {
		return mintState{version: 1}
	}
	return h.states[len(h.states)-1]
}

// change makes a state that write, if it returns nil, has put into effect. It retries
// until then if the write can be repeated.
func (h *history) change(what string, repeat bool, write func(next *mintState) error) {
	h.t.Helper()
	next := h.newest()
	next.began = time.Now()
	h.mu.Lock()
	h.states = append(h.states, next)
	at := len(h.states) - 1
	h.states[at].acked = next.began.Add(time.Hour) // not yet
	h.mu.Unlock()
	if repeat {
		poll(h.t, what, func() error { return write(&next) })
	} else if err := write(&next); err != nil {
		h.t.Fatalf("%s: %v", what, err)
	}
	next.acked = time.Now()
	h.mu.Lock()
	h.states[at] = next
	h.mu.Unlock()
}

// writeRole writes the role r with a request to a node.
func (h *history) writeRole(s *server, scope string, d data) {
	h.t.Helper()
	h.change("the role is written", true, func(next *mintState) error {
		next.scope = scope
		client := s.client(s.root)
		client.SetClientTimeout(clusterTimeout)
		_, err := client.Logical().Write("ati/roles/r", d)
		return err
	})
}

func (h *history) setTools(s *server, tool string) {
	h.t.Helper()
	h.writeRole(s, "tool:"+tool+" skill:summarize", data{"tools": tool, "disabled": false})
}

// setNextTools writes a role that differs from each one before.
func (h *history) setNextTools(s *server) {
	h.t.Helper()
	h.mu.Lock()
	n := len(h.states)
	h.mu.Unlock()
	h.setTools(s, "tool"+strconv.Itoa(n))
}

func (h *history) disable(s *server) {
	h.t.Helper()
	h.writeRole(s, "", data{"disabled": true})
}

// rotate replaces the key immediately, or performs another step that makes a version
// current, with a request to a node.
func (h *history) rotate(s *server, step string) {
	h.t.Helper()
	h.change("config/rotate"+step, false, func(next *mintState) error {
		status, err := s.client(s.root).Logical().Write("ati/config/rotate"+step, nil)
		if err != nil {
			return err
		}
		next.version = versionsOf(h.t, status.Data).Current
		return nil
	})
}

// mintEverywhere checks that the very next response of each node follows the newest state.
func (h *history) mintEverywhere(nodes ...*server) {
	h.t.Helper()
	want := h.newest()
	var requests sync.WaitGroup
	for _, s := range nodes {
		requests.Go(func() {
			got, err := h.mint(s, 10*time.Second)
			switch {
			case want.scope == "":
				if err == nil || !strings.Contains(err.Error(), "disabled") {
					h.t.Errorf("%s, after the role was disabled: scope %q, %v", s.addr, got.scope, err)
				}
			case err != nil || got.scope != want.scope || got.version != want.version:
				h.t.Errorf("%s: scope %q, version %d, %v; want scope %q, version %d", s.addr, got.scope, got.version, err, want.scope, want.version)
			}
		})
	}
	requests.Wait()
}

// missChanges makes changes while a node is stopped, and sends requests to it that it
// receives before or after it is resumed.
func (h *history) missChanges(s *server, stop, resume func()) {
	h.t.Helper()
	leader := h.c.leader(s)
	h.mintEverywhere(s)
	stop()
	h.setNextTools(leader)
	h.rotate(leader, "")
	h.setNextTools(leader)
	// OpenBao gives up an invalidation after two seconds.
	time.Sleep(2500 * time.Millisecond)
	h.c.recordState(s)
	h.resumeWithRequests(s, resume)
	h.mintEverywhere(s)
}

// resumeWithRequests resumes a node that has requests to answer, and waits until it
// returns tokens.
func (h *history) resumeWithRequests(s *server, resume func()) {
	h.t.Helper()
	var requests sync.WaitGroup
	for range loadClients {
		requests.Go(func() { _, _ = h.mint(s, 10*time.Second) })
	}
	time.Sleep(200 * time.Millisecond) // until the requests are sent
	resume()
	for end := time.Now().Add(time.Second); time.Now().Before(end); {
		_, _ = h.mint(s, 10*time.Second)
	}
	requests.Wait()
	h.waitFor(s)
}

// waitFor waits until nodes return tokens.
func (h *history) waitFor(nodes ...*server) {
	h.t.Helper()
	for _, s := range nodes {
		poll(h.t, "the node returns tokens", func() error {
			_, err := h.mint(s, clusterTimeout)
			return err
		})
	}
}

// check ends the clients and checks each returned token.
func (h *history) check() {
	h.t.Helper()
	h.stop()
	stale, longest := 0, time.Duration(0)
	byNode := map[string]int{}
	for _, got := range h.tokens {
		c, err := ati.ValidateToken(got.token, h.c.keys[got.version])
		if err != nil || c.Scope != got.scope {
			h.t.Fatalf("a token of version %d with scope %q: %+v, %v", got.version, got.scope, c, err)
		}
		byNode[got.node.addr]++
		if h.follows(got) {
			continue
		}
		i := slices.IndexFunc(h.resumed, func(r resumption) bool {
			return r.node == got.node.addr && got.ended.After(r.at) && got.ended.Before(r.at.Add(clusterTimeout))
		})
		if i < 0 {
			h.t.Fatalf("%s returned a token with scope %q and key version %d for a request sent %v and answered %v after the change that it does not follow",
				got.node.addr, got.scope, got.version, got.began.Sub(h.lastAcked(got.began)), got.ended.Sub(h.lastAcked(got.began)))
		}
		stale++
		longest = max(longest, got.ended.Sub(h.resumed[i].at))
	}
	h.t.Logf("%d changes; %d tokens, of which each follows the newest change before its request, by node: %v; %d requests failed", len(h.states), len(h.tokens)-stale, byNode, h.failed)
	if len(h.resumed) > 0 {
		h.t.Logf("%d tokens that do not, from a resumed leader, for at most %v", stale, longest.Round(time.Millisecond))
	}
}

// follows reports whether a token follows a state that was in effect at some time between
// its request and the response.
func (h *history) follows(got nodeToken) bool {
	for i, state := range h.states {
		replaced := i+1 < len(h.states) && h.states[i+1].acked.Before(got.began)
		if !replaced && state.began.Before(got.ended) && state.scope == got.scope && got.version >= state.version {
			return true
		}
	}
	return false
}

// lastAcked returns when the last change before a time was acknowledged.
func (h *history) lastAcked(before time.Time) (acked time.Time) {
	for _, state := range h.states {
		if state.acked.Before(before) {
			acked = state.acked
		}
	}
	return acked
}

// standbys returns the nodes other than the leader.
func (c *cluster) standbys() []*server {
	c.t.Helper()
	leader := c.leader()
	return slices.DeleteFunc(slices.Clone(c.nodes), func(s *server) bool { return s == leader })
}

// auditToLog makes each node audit requests in its own log, in addition to the file that
// all nodes share.
func (c *cluster) auditToLog() {
	c.t.Helper()
	c.first.write(c.first.root, "sys/audit/log", data{"type": "file", "options": data{"file_path": "stdout"}})
}

// audited reports whether a node itself audited a request.
func (s *server) audited(id string) bool {
	s.t.Helper()
	return strings.Contains(s.log(), fmt.Sprintf(`"id":%q`, id))
}
