package atisecrets_test

import (
	"context"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"vault-plugin-secrets-ati/internal/revocation"
)

// BenchmarkMint measures a mint. The empty handler shows the framework's share.
func BenchmarkMint(b *testing.B) {
	role := data{"tools": "web_search,github:*", "skills": "summarize", "scopes": "help", "rate": data{"tool:github:*": "10/hour"}}
	b.Run("empty handler", func(b *testing.B) {
		m := configured(b, nil, role)
		resp := m.ok(logical.ReadOperation, "creds/r", nil)
		empty := &framework.Backend{Paths: m.b.Paths}
		for i, p := range empty.Paths {
			if strings.Contains(p.Pattern, "creds/") {
				copied := *p
				copied.Operations = map[logical.Operation]framework.OperationHandler{
					logical.ReadOperation: &framework.PathOperation{Callback: func(context.Context, *logical.Request, *framework.FieldData) (*logical.Response, error) {
						return &logical.Response{Data: resp.Data}, nil
					}},
				}
				empty.Paths[i] = &copied
			}
		}
		if err := empty.Setup(b.Context(), &logical.BackendConfig{System: m.system}); err != nil {
			b.Fatal(err)
		}
		req := &logical.Request{ID: testID, Operation: logical.ReadOperation, Path: "creds/r", Storage: m.storage, MountPoint: "ati/", DisplayName: "token"}
		b.ReportAllocs()
		for b.Loop() {
			if _, err := empty.HandleRequest(b.Context(), req); err != nil {
				b.Fatal(err)
			}
		}
	})
	for name, params := range map[string]data{
		"whole role": nil,
		"narrowed":   {"tools": "github:search", "ttl": "10m", "rate": "tool:github:*=5/hour"},
	} {
		b.Run(name, func(b *testing.B) {
			m := configured(b, nil, role)
			b.ReportAllocs()
			for b.Loop() {
				m.mint(b, "creds/r", params)
			}
		})
	}
	b.Run("identity template", func(b *testing.B) {
		m := configured(b, nil, data{"subject": "team/{{identity.entity.name}}"})
		m.useEntity(&logical.Entity{Name: "alice"})
		b.ReportAllocs()
		for b.Loop() {
			m.mint(b, "creds/r", nil)
		}
	})
	for name, params := range map[string]data{"batch of 1000": {"agent_ids": agentIDs(1000)}, "batch of 1000, narrowed": {"agent_ids": agentIDs(1000), "tools": "github:search"}} {
		b.Run(name, func(b *testing.B) {
			m := configured(b, nil, data{"tools": "web_search,github:*", "skills": "summarize", "scopes": "help", "rate": data{"tool:github:*": "10/hour"}, "allowed_agent_ids": "sandbox:*"})
			b.ReportAllocs()
			for b.Loop() {
				m.do(b, logical.UpdateOperation, "batch/r", params)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/1000, "ns/token")
		})
	}
	b.Run("ES256", func(b *testing.B) {
		m := configured(b, nil, role)
		m.ok(logical.UpdateOperation, "config/rotate", data{"algorithm": "ES256"})
		b.ReportAllocs()
		for b.Loop() {
			m.mint(b, "creds/r", nil)
		}
	})
	for name, algorithm := range map[string]string{"validate": "HS256", "validate ES256": "ES256"} {
		b.Run(name, func(b *testing.B) {
			m := configured(b, nil, role)
			m.ok(logical.UpdateOperation, "config/rotate", data{"algorithm": algorithm})
			params := data{"token": m.ok(logical.ReadOperation, "creds/r", nil).Data["token"], "scope": "tool:web_search"}
			b.ReportAllocs()
			for b.Loop() {
				m.do(b, logical.UpdateOperation, "validate", params)
			}
		})
	}
	b.Run("role write", func(b *testing.B) {
		m := configured(b, nil, role)
		b.ReportAllocs()
		for b.Loop() {
			m.do(b, logical.UpdateOperation, "roles/r", role)
		}
	})
	b.Run("check", func(b *testing.B) {
		m := configured(b, nil, role)
		b.ReportAllocs()
		for b.Loop() {
			m.mint(b, "check/r", data{"tool": "github:search"})
		}
	})
}

// TestRequests_Allocations checks that a request allocates about as much as when these
// limits were set. The time is benchmarked only, since it depends on the machine.
func TestRequests_Allocations(t *testing.T) {
	role := data{
		"tools": "web_search,github:*", "skills": "summarize", "scopes": "help", "rate": data{"tool:github:*": "10/hour"},
		"allowed_agent_ids": "sandbox:*", "subject": "sandbox:abc",
	}
	m := configured(t, nil, role)
	token := m.ok(logical.ReadOperation, "creds/r", nil).Data["token"]
	generation := m.ok(logical.ReadOperation, "guard", nil).Data["generation"]
	for name, c := range map[string]struct {
		op   logical.Operation
		path string
		data data
		most float64
	}{
		"mint":           {logical.ReadOperation, "creds/r", nil, 68},
		"narrowed mint":  {logical.ReadOperation, "creds/r", data{"tools": "github:search", "ttl": "10m", "rate": "tool:github:*=5/hour"}, 155},
		"batch of 1,000": {logical.UpdateOperation, "batch/r", data{"agent_ids": agentIDs(1000)}, 24_000},
		"check":          {logical.ReadOperation, "check/r", data{"tool": "github:search"}, 70},
		"validate":       {logical.UpdateOperation, "validate", data{"token": token}, 345},
		"guard":          {logical.ReadOperation, "guard", data{"since": generation}, 35},
		"role write":     {logical.UpdateOperation, "roles/r", role, 350},
	} {
		if got := testing.AllocsPerRun(100, func() { m.do(t, c.op, c.path, c.data) }); got > c.most {
			t.Errorf("%s: %.0f allocations, want at most %.0f", name, got, c.most)
		} else {
			t.Logf("%s: %.0f allocations", name, got)
		}
	}
}

// BenchmarkRoles measures a mint with 1 and with 100,000 roles, the first mint of each
// role, and the memory that the cache uses in the end.
func BenchmarkRoles(b *testing.B) {
	const many = 100_000
	m := configured(b, nil, data{"tools": "web_search,github:*", "skills": "summarize", "rate": data{"tool:github:*": "10/hour"}})
	m.storage.oneRole = true // so that the memory that is measured is the engine's
	hot := func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			m.mint(b, "creds/r", nil)
		}
	}
	b.Run("hot, 1 role", hot)
	b.Run("each of 100000 once", func(b *testing.B) {
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		i := 0
		for b.Loop() {
			for range many {
				m.mint(b, fmt.Sprintf("creds/r%d", i%many), nil)
				i++
			}
		}
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(i), "ns/mint")
		runtime.GC()
		runtime.ReadMemStats(&after)
		b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/1e6, "MB-cached")
	})
	b.Run("hot, 100000 roles", hot)
}

// BenchmarkRevoke measures a revocation, which must cost about the same with 10 and with
// 100,000 of them.
func BenchmarkRevoke(b *testing.B) {
	for _, n := range []int{10, 100_000} {
		b.Run(fmt.Sprint(n, " revocations"), func(b *testing.B) {
			m := withRevocations(b, n)
			i := 0
			b.ReportAllocs()
			for b.Loop() {
				m.do(b, logical.UpdateOperation, "revoke", data{"jti": requestID(i % n)}) // one of them again, so that there are as many
				i++
			}
		})
	}
}

// BenchmarkGuard measures a poll of a guard, and the whole state for one that starts.
func BenchmarkGuard(b *testing.B) {
	for _, n := range []int{10, 100_000} {
		m := withRevocations(b, n)
		generation := m.ok(logical.ReadOperation, "guard", nil).Data["generation"]
		for name, since := range map[string]data{"unchanged": {"since": generation}, "everything": nil} {
			b.Run(fmt.Sprintf("%s, %d revocations", name, n), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					m.do(b, logical.ReadOperation, "guard", since)
				}
			})
		}
	}
	b.Run("load 100000 revocations", func(b *testing.B) {
		m := withRevocations(b, 100_000)
		for b.Loop() {
			m.b = m.newBackend()
			m.do(b, logical.ReadOperation, "revoked/", data{"limit": 1})
		}
	})
}

// withRevocations returns a mount with n revocations, which are in memory.
func withRevocations(b *testing.B, n int) *mount {
	b.Helper()
	m := generated(b, data{"guarded": true}, nil)
	m.fillRevoked(n, revocation.Entry{ExpiresAt: m.now.Add(time.Hour).Unix()})
	m.do(b, logical.ReadOperation, "revoked/", data{"limit": 1})
	return m
}
