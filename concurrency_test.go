package atisecrets_test

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/logical"
)

// TestConcurrency_AllRequests makes all kinds of requests concurrently, for the race
// detector. Each token must come with the proxy that holds its key, two partial
// updates of a role must both survive, and only steps that are out of order may be
// refused.
func TestConcurrency_AllRequests(t *testing.T) {
	t.Parallel()
	m := configured(t, nil, data{"allowed_agent_ids": "*", "tools": "a,b,c"})
	address := func(i int) string { return fmt.Sprintf("https://p%d.example.com", i) }
	m.ok(logical.UpdateOperation, "config", data{"proxy_url": address(0)})
	request := func(op logical.Operation, path string, d data) *logical.Response {
		resp, err := m.request(op, path, d)
		if err != nil {
			t.Errorf("%s %s: %v", op, path, err)
			return nil
		}
		return resp
	}
	times := rounds(60, 3000)
	var proxies sync.Map // by version
	record := func(version, proxy any) {
		if known, ok := proxies.LoadOrStore(version, proxy); ok && known != proxy {
			t.Errorf("version %v has the proxies %v and %v", version, known, proxy)
		}
	}
	var minted, steps atomic.Int64
	var writers, readers sync.WaitGroup
	done := make(chan struct{})
	write := func(f func(i int)) {
		writers.Go(func() {
			for i := range times {
				f(i)
			}
		})
	}
	read := func(f func()) {
		readers.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
					f()
				}
			}
		})
	}
	write(func(i int) {
		for _, step := range []string{"/stage", "/activate", "/rollback", "/activate", "/retire"} {
			var d data
			if step == "/stage" {
				d = data{"proxy_url": address(1 + i), "algorithm": []string{"HS256", "ES256"}[i%2]}
			}
			if resp := request(logical.UpdateOperation, "config/rotate"+step, d); !resp.IsError() {
				steps.Add(1)
			}
		}
		if i%20 == 19 {
			request(logical.UpdateOperation, "config/rotate", data{"proxy_url": address(times + 1 + i)})
		}
	})
	write(func(i int) {
		request(logical.UpdateOperation, "config", data{"accepted_audiences": fmt.Sprintf("a%d", i)})
	})
	// Two partial updates of the same role.
	write(func(i int) {
		request(logical.UpdateOperation, "roles/r", data{"ttl": 60 + i, "max_ttl": 0})
	})
	write(func(i int) {
		request(logical.UpdateOperation, "roles/r", data{"description": fmt.Sprint("round ", i)})
	})
	write(func(i int) {
		request(logical.UpdateOperation, fmt.Sprintf("roles/r%d", i%3), data{"tools": "x"})
		request(logical.DeleteOperation, fmt.Sprintf("roles/r%d", (i+1)%3), nil)
	})
	for range 2 {
		read(func() {
			resp := request(logical.UpdateOperation, "creds/r", data{"agent_id": "x", "tools": "a"})
			if resp.IsError() {
				t.Errorf("a mint was refused: %v", resp.Error())
				return
			}
			record(resp.Data["key_version"], resp.Data["proxy_url"])
			request(logical.UpdateOperation, "validate", data{"token": resp.Data["token"]})
			minted.Add(1)
		})
		read(func() {
			resp := request(logical.UpdateOperation, "batch/r", data{"agent_ids": "x,y"})
			if resp.IsError() {
				t.Errorf("a batch was refused: %v", resp.Error())
				return
			}
			record(resp.Data["key_version"], resp.Data["proxy_url"])
		})
		read(func() {
			status := request(logical.ReadOperation, "config/rotate", nil).Data
			for _, name := range []string{"current", "pending", "previous"} {
				if version, ok := status[name+"_version"]; ok {
					record(version, status[name+"_proxy_url"])
				}
			}
			for _, path := range []string{"config", "proxy-env", "jwks", "roles/r", "check/r"} {
				var d data
				if path == "check/r" {
					d = data{"tool": "a"}
				}
				request(logical.ReadOperation, path, d)
			}
			m.b.InvalidateKey(t.Context(), "config")
			m.b.InvalidateKey(t.Context(), "role/r")
			request(logical.RollbackOperation, "", nil)
		})
	}
	writers.Wait()
	close(done)
	readers.Wait()
	role := m.ok(logical.ReadOperation, "roles/r", nil).Data
	m.equal("the role after both", []any{int64(60 + times - 1), fmt.Sprint("round ", times-1)}, []any{role["ttl"], role["description"]})
	t.Logf("%d steps and %d mints", steps.Load(), minted.Load())
	if minted.Load() < 20 || steps.Load() < int64(times) {
		t.Error("too few to be meaningful")
	}
}

// TestCreds_ClockSteps checks that a token's lifetime is its TTL, counted from the
// node's current time, when the clock steps back and forth.
func TestCreds_ClockSteps(t *testing.T) {
	t.Parallel()
	m := configured(t, nil, data{"ttl": "10m", "max_ttl": "1h", "generate_lease": true})
	for _, step := range []time.Duration{0, -48 * time.Hour, 72 * time.Hour, -time.Second, 999 * time.Millisecond, -10 * time.Minute, 1500 * time.Millisecond} {
		m.now = m.now.Add(step)
		for ttl, want := range map[string]int64{"": 600, "30m": 1800, "5h": 3600} {
			var d data
			if ttl != "" {
				d = data{"ttl": ttl}
			}
			resp := m.ok(logical.UpdateOperation, "creds/r", d)
			c := m.claims(resp)
			if c.IssuedAt != m.now.Unix() || c.ExpiresAt != m.now.Unix()+want || resp.Data["expires_at"] != c.ExpiresAt || resp.Data["token_ttl"] != want {
				t.Errorf("at %v, ttl %q: iat %d, exp %d, response %v", m.now, ttl, c.IssuedAt, c.ExpiresAt, resp.Data)
			}
			// Vault starts the lease when it receives the response, so the lease is a
			// second shorter.
			if lease := resp.Secret.TTL; lease != time.Unix(c.ExpiresAt-1, 0).Sub(m.now).Truncate(time.Second) || resp.Secret.MaxTTL != lease || resp.Secret.Renewable {
				t.Errorf("at %v, ttl %q: a lease of %v for a token until %d", m.now, ttl, lease, c.ExpiresAt)
			}
			if got := m.verdict(resp.Data["token"].(string)); got != any(1) {
				t.Errorf("at %v: %v", m.now, got)
			}
		}
	}
	// A cached maximum TTL from the future is not used.
	m.system.MaxLeaseTTLVal = 5 * time.Minute
	m.now = m.now.Add(-time.Hour)
	if got := m.ok(logical.ReadOperation, "creds/r", nil).Data["token_ttl"]; got != int64(300) {
		t.Errorf("after a step back, a token of a tuned mount has a TTL of %v seconds", got)
	}
}
