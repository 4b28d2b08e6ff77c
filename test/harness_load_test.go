package test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"

	"vault-plugin-secrets-ati/ati"
)

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
