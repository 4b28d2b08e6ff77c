package atisecrets_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/helper/consts"
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

// cost is what a request costs whatever the speed of the machine.
type cost struct {
	Allocations float64 `json:"allocations"`
	Calls       int64   `json:"calls"`       // of storage and of the system view, each of which is a round trip to Vault
	FirstCalls  int64   `json:"first_calls"` // by the first request after a start
}

// costs are the costs by request, with a version of Go, on which the allocations depend.
type costs struct {
	Go       string          `json:"go"`
	Requests map[string]cost `json:"requests"`
}

// TestRequests_Cost checks that requests cost what testdata/requests.json says: no
// allocation and no round trip more. UPDATE=1 writes the file.
func TestRequests_Cost(t *testing.T) {
	role := data{
		"tools": "web_search,github:*", "skills": "summarize", "scopes": "help", "rate": data{"tool:github:*": "10/hour"},
		"allowed_agent_ids": "sandbox:*", "subject": "sandbox:abc",
	}
	m := configured(t, nil, role)
	m.ok(logical.UpdateOperation, "roles/identity", data{"tools": "x", "subject": "team/{{identity.groups.names.x.id}}"})
	m.useEntity(nil, &logical.Group{ID: "g", Name: "x"})
	token := m.ok(logical.ReadOperation, "creds/r", nil).Data["token"]
	generation := m.ok(logical.ReadOperation, "guard", nil).Data["generation"]
	defer debug.SetGCPercent(debug.SetGCPercent(-1)) // it empties pools
	got := costs{Go: strings.Join(strings.SplitN(runtime.Version(), ".", 3)[:2], "."), Requests: map[string]cost{}}
	for name, c := range map[string]struct {
		op   logical.Operation
		path string
		data data
	}{
		"mint":                   {logical.ReadOperation, "creds/r", nil},
		"mint, narrowed":         {logical.ReadOperation, "creds/r", data{"tools": "github:search", "ttl": "10m", "rate": "tool:github:*=5/hour"}},
		"mint, identity groups":  {logical.ReadOperation, "creds/identity", nil},
		"mint, batch of 1,000":   {logical.UpdateOperation, "batch/r", data{"agent_ids": agentIDs(1000)}},
		"check":                  {logical.ReadOperation, "check/r", data{"tool": "github:search"}},
		"validate":               {logical.UpdateOperation, "validate", data{"token": token}},
		"guard, nothing changed": {logical.ReadOperation, "guard", data{"since": generation}},
		"role write":             {logical.UpdateOperation, "roles/r", role},
	} {
		m.b = m.newBackend()
		system := &countedSystem{of: m.system}
		if err := m.b.Setup(t.Context(), &logical.BackendConfig{System: system, Logger: hclog.NewNullLogger()}); err != nil {
			t.Fatal(err)
		}
		calls := func() int64 { return m.storage.calls.Load() + system.calls.Load() }
		request := func() { m.do(t, c.op, c.path, c.data) }
		before := calls()
		request()
		first := calls()
		request()
		second := calls()
		got.Requests[name] = cost{testing.AllocsPerRun(100, request), second - first, first - before}
	}
	const file = "testdata/requests.json"
	if os.Getenv("UPDATE") != "" {
		if hasOtherAllocations() {
			t.Fatal("UPDATE=1 needs a build without the race detector and -gcflags")
		}
		b, _ := json.MarshalIndent(got, "", "  ")
		if err := os.WriteFile(file, append(b, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	var want costs
	b, err := os.ReadFile(file)
	if err == nil {
		err = json.Unmarshal(b, &want)
	}
	if err != nil {
		t.Fatal(err)
	}
	compared := cmp.Options{}
	if got.Go != want.Go || hasOtherAllocations() {
		t.Logf("the allocations are not compared: they are those of %s without the race detector and -gcflags", want.Go)
		compared = append(compared, cmpopts.IgnoreFields(cost{}, "Allocations"), cmpopts.IgnoreFields(costs{}, "Go"))
	}
	if diff := cmp.Diff(want, got, compared); diff != "" {
		t.Errorf("requests cost something else than %s says (if that is meant, run UPDATE=1 go test -run TestRequests_Cost .) (-want +got):\n%s", file, diff)
	}
}

// hasOtherAllocations reports whether this is a build for the race detector or a debugger.
func hasOtherAllocations() bool {
	info, _ := debug.ReadBuildInfo()
	return slices.ContainsFunc(info.Settings, func(s debug.BuildSetting) bool { return s.Key == "-race" || s.Key == "-gcflags" })
}

// countedSystem counts the calls that the engine makes to Vault's system view. Any other
// call panics.
type countedSystem struct {
	logical.SystemView
	of    logical.SystemView
	calls atomic.Int64
}

func (s *countedSystem) counted() logical.SystemView {
	s.calls.Add(1)
	return s.of
}

func (s *countedSystem) ReplicationState() consts.ReplicationState {
	return s.counted().ReplicationState()
}
func (s *countedSystem) LocalMount() bool           { return s.counted().LocalMount() }
func (s *countedSystem) MaxLeaseTTL() time.Duration { return s.counted().MaxLeaseTTL() }
func (s *countedSystem) EntityInfo(id string) (*logical.Entity, error) {
	return s.counted().EntityInfo(id)
}
func (s *countedSystem) GroupsForEntity(id string) ([]*logical.Group, error) {
	return s.counted().GroupsForEntity(id)
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
