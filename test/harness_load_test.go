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

// load is a set of clients that continuously request tokens, and one client that writes
// roles. After an error, a client switches to the next node.
type load struct {
	t         testing.TB
	wait      time.Duration // before a client retries after an error
	current   atomic.Int64  // lowest key version that new requests may get
	stop      chan struct{}
	running   sync.WaitGroup
	lastStart [loadClients]atomic.Int64 // start of each client's last successful request

	mu       sync.Mutex
	results  []mintResult
	roles    []string       // acknowledged writes
	failures map[string]int // failed mints by error
	failed   int            // failed mints
	unsaved  int            // failed writes
	slowest  time.Duration
	resumed  []resumption
}

// mintResult is a token that a node returned.
type mintResult struct {
	token, jti string
	version    int
	stale      bool // below load.current at the time of the request
	node       string
	at         time.Time
}

// resumption records when a paused leader was resumed.
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
				l.lastStart[i].Store(began.UnixNano())
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

// writeRole writes a role. Only a 204 confirms that the role is stored.
func writeRole(client *api.Client, name string) error {
	ctx, cancel := context.WithTimeout(context.Background(), client.ClientTimeout())
	defer cancel()
	resp, err := client.Logical().WriteRawWithContext(ctx, "ati/roles/"+name, []byte(`{"tools":"x"}`))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusNoContent {
		return fmt.Errorf("writing a role returned %d", resp.StatusCode)
	}
	return nil
}

func (l *load) mint(client *api.Client) error {
	newest, began := int(l.current.Load()), time.Now()
	creds, err := client.Logical().Read("ati/creds/r")
	if err == nil && creds == nil {
		// A standby may return this while the leader shuts down.
		err = errors.New("empty response")
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.slowest = max(l.slowest, time.Since(began))
	if err != nil {
		l.failed++
		lines := strings.Split(strings.TrimSpace(err.Error()), "\n")
		words := strings.Split(lines[len(lines)-1], ": ") // the first ones contain addresses
		l.failures[strings.Trim(strings.Join(words[max(0, len(words)-2):], ": "), `* "`)]++
		return err
	}
	version, err := creds.Data["key_version"].(json.Number).Int64()
	if err != nil {
		l.t.Error(err)
	}
	l.results = append(l.results, mintResult{creds.Data["token"].(string), creds.Data["jti"].(string), int(version), int(version) < newest, client.Address(), time.Now()})
	return nil
}

func (l *load) writtenRoles() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.roles[:len(l.roles):len(l.roles)]
}

// waitForMints waits until each client has a token that it requested after the call of
// waitForMints, and returns how long that took.
func (l *load) waitForMints() time.Duration {
	l.t.Helper()
	now := time.Now()
	poll(l.t, "minting goes on", func() error {
		for i := range l.lastStart {
			if l.lastStart[i].Load() < now.UnixNano() {
				l.mu.Lock()
				defer l.mu.Unlock()
				return fmt.Errorf("client %d has no token; failures so far: %v", i+1, l.failures)
			}
		}
		return nil
	})
	return time.Since(now).Round(100 * time.Millisecond)
}

// failedRequests returns the number of failed mints and writes so far.
func (l *load) failedRequests() int {
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

// check ends the load and checks each returned token against the key of its version and
// the audit log.
func (l *load) check(keys map[int]ati.Key, audit string) {
	l.t.Helper()
	l.end()
	audited := auditedIDs(l.t, audit)
	jtis := map[string]bool{}
	versions := map[int]int{}
	stale, longest := 0, time.Duration(0)
	for _, a := range l.results {
		c, err := ati.ValidateToken(a.token, keys[a.version])
		if err != nil {
			l.t.Fatalf("a returned token of version %d: %v", a.version, err)
		}
		if c.ID != a.jti || jtis[a.jti] || !audited[a.jti] || c.Scope != "tool:web_search skill:summarize" || c.ExpiresAt-c.IssuedAt != 3600 || c.ATI.Rate["*"] != "100/hour" {
			l.t.Fatalf("token %s (duplicate: %v, audited: %v) has %+v %+v", a.jti, jtis[a.jti], audited[a.jti], c, c.ATI)
		}
		jtis[a.jti] = true
		versions[a.version]++
		if a.stale {
			// Minting does not read storage: a resumed leader mints with its cached keys
			// until it notices that it is no longer the leader.
			i := slices.IndexFunc(l.resumed, func(r resumption) bool {
				return r.node == a.node && a.at.After(r.at) && a.at.Before(r.at.Add(clusterTimeout))
			})
			if i < 0 {
				l.t.Fatalf("a token from %s has key version %d, which was replaced before the request", a.node, a.version)
			}
			stale++
			longest = max(longest, a.at.Sub(l.resumed[i].at))
		}
	}
	if len(l.resumed) > 0 {
		l.t.Logf("%d tokens with a replaced key version, from a resumed leader, for at most %v", stale, longest.Round(time.Millisecond))
	}
	l.t.Logf("%d tokens returned, all valid and audited, by key version %v; %d roles written; %d mints and %d writes failed; longest request %v",
		len(l.results), versions, len(l.roles), l.failed, l.unsaved, l.slowest.Round(time.Millisecond))
	for failure, n := range l.failures {
		l.t.Logf("%6d × %s", n, failure)
	}
}

// auditedIDs returns the IDs of all requests whose responses are in an audit file.
func auditedIDs(t testing.TB, audit string) map[string]bool {
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
		// A killed server may leave a partial line.
		if json.Unmarshal(lines.Bytes(), &line) == nil && line.Type == "response" {
			ids[line.Request.ID] = true
		}
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
	return ids
}
