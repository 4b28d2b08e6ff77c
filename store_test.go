package atisecrets_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/vault/sdk/logical"

	"vault-plugin-secrets-ati/ati"
)

// TestStore_ErrorNamesOperation checks that a storage failure is an internal error
// that names the operation, and that the next request succeeds.
func TestStore_ErrorNamesOperation(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		fail string
		op   logical.Operation
		path string
		data data
		want string
	}{
		"reading config":                  {"get config", logical.ReadOperation, "config", nil, "read config: disk on fire"},
		"writing config, read":            {"get config", logical.UpdateOperation, "config", data{"issuer": "x"}, "read config: disk on fire"},
		"writing config, put":             {"put config", logical.UpdateOperation, "config", data{"issuer": "x"}, "write config: disk on fire"},
		"deleting config, read":           {"get config", logical.DeleteOperation, "config", nil, "read config: disk on fire"},
		"deleting config, put":            {"put config", logical.DeleteOperation, "config", nil, "write config: disk on fire"},
		"listing roles":                   {"list role/", logical.ListOperation, "roles/", nil, "list roles: disk on fire"},
		"reading a role":                  {"get role/r", logical.ReadOperation, "roles/r", nil, `read role "r": disk on fire`},
		"writing a role, config":          {"get config", logical.UpdateOperation, "roles/r", data{"ttl": "5h"}, "read config: disk on fire"},
		"writing a role, read":            {"get role/r", logical.UpdateOperation, "roles/r", data{"ttl": "5h"}, `read role "r": disk on fire`},
		"writing a role, raising config":  {"put config", logical.UpdateOperation, "roles/r", data{"ttl": "5h"}, "write config: disk on fire"},
		"writing a role, put":             {"put role/r", logical.UpdateOperation, "roles/r", data{"ttl": "5h"}, `write role "r": disk on fire`},
		"deleting a role":                 {"delete role/r", logical.DeleteOperation, "roles/r", nil, `delete role "r": disk on fire`},
		"minting, config":                 {"get config", logical.ReadOperation, "creds/r", nil, "read config: disk on fire"},
		"minting, role":                   {"get role/r", logical.ReadOperation, "creds/r", nil, `read role "r": disk on fire`},
		"minting many, config":            {"get config", logical.UpdateOperation, "batch/r", data{"agent_ids": "a"}, "read config: disk on fire"},
		"minting many, role":              {"get role/r", logical.UpdateOperation, "batch/r", data{"agent_ids": "a"}, `read role "r": disk on fire`},
		"checking, config":                {"get config", logical.ReadOperation, "check/r", data{"tool": "x"}, "read config: disk on fire"},
		"checking, role":                  {"get role/r", logical.ReadOperation, "check/r", data{"tool": "x"}, `read role "r": disk on fire`},
		"reading the proxy's environment": {"get config", logical.ReadOperation, "proxy-env", nil, "read config: disk on fire"},
		"reading the key's versions":      {"get config", logical.ReadOperation, "config/rotate", nil, "read config: disk on fire"},
		"rotating, read":                  {"get config", logical.UpdateOperation, "config/rotate", nil, "read config: disk on fire"},
		"rotating, put":                   {"put config", logical.UpdateOperation, "config/rotate", nil, "write config: disk on fire"},
		"reading the JWK Set":             {"get config", logical.ReadOperation, "jwks", nil, "read config: disk on fire"},
		"validating":                      {"get config", logical.UpdateOperation, "validate", data{"token": "x"}, "read config: disk on fire"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := configured(t, nil, data{"allowed_agent_ids": "*"})
			m.b = m.newBackend()
			m.storage.fail = c.fail
			m.failed(c.op, c.path, c.data, c.want)
			m.storage.fail = ""
			if got := m.ok(logical.ReadOperation, "creds/r", nil).Data["token_ttl"]; got != int64(3600) {
				t.Errorf("after the failure, a token has a TTL of %v seconds, want 3600", got)
			}
			m.ok(c.op, c.path, c.data)
		})
	}
	t.Run("existence checks", func(t *testing.T) {
		t.Parallel()
		m := configured(t, nil, nil)
		m.b = m.newBackend()
		for path, fail := range map[string]string{"config": "get config", "roles/r": "get role/r"} {
			m.storage.fail = fail
			if _, _, err := m.b.HandleExistenceCheck(t.Context(), &logical.Request{Operation: logical.CreateOperation, Path: path, Storage: m.storage}); !errors.Is(err, errStorage) {
				t.Errorf("%s: %v", path, err)
			}
			m.storage.fail = ""
			if _, exists, err := m.b.HandleExistenceCheck(t.Context(), &logical.Request{Operation: logical.CreateOperation, Path: path, Storage: m.storage}); err != nil || !exists {
				t.Errorf("%s: exists %v, %v", path, exists, err)
			}
		}
	})
}

// TestStore_RejectsNewerVersion checks that an entry that a newer plugin wrote is an
// error, and is not misread.
func TestStore_RejectsNewerVersion(t *testing.T) {
	t.Parallel()
	for key, path := range map[string]string{"config": "config", "role/r": "roles/r"} {
		m := configured(t, nil, nil)
		m.replaceStored(key, `"storage_version":1`, `"storage_version":2`)
		m.b = m.newBackend()
		before := m.storage.dump(t)
		for _, op := range []logical.Operation{logical.ReadOperation, logical.UpdateOperation} {
			_, err := m.request(op, path, nil)
			if want := "storage entry has version 2, but this plugin supports versions up to 1; use the plugin version that wrote it, or a newer one"; err == nil || !strings.HasSuffix(err.Error(), want) {
				t.Errorf("%s %s: %v", op, path, err)
			}
		}
		if diff := cmp.Diff(before, m.storage.dump(t)); diff != "" {
			t.Errorf("%s was changed:\n%s", path, diff)
		}
	}
}

// TestStore_IgnoresRoleWithoutVersion checks that an entry without a storage version,
// which this engine never writes, is no role.
func TestStore_IgnoresRoleWithoutVersion(t *testing.T) {
	t.Parallel()
	for _, stored := range []data{{}, {"tools": []string{"tool:x"}, "ttl": time.Hour}} {
		m := configured(t, nil, nil)
		m.put("role/z", stored)
		m.refused(logical.ReadOperation, "creds/z", nil, roleNotFound("z"))
		m.equal("role", (*logical.Response)(nil), m.ok(logical.ReadOperation, "roles/z", nil))
		m.refused(logical.UpdateOperation, "roles/z", data{"description": "d"}, "at least one of tools, skills, or scopes is required")
		m.ok(logical.UpdateOperation, "roles/z", data{"tools": "y"})
		m.equal("scope", any("tool:y"), m.ok(logical.ReadOperation, "creds/z", nil).Data["scope"])
	}
}

// TestStore_ReadsEachStorageVersion checks that entries of each released storage
// version can be read. testdata/storage has them as keys and values, and is never
// changed after the release. In v1, the current version is for ES256; the previous
// one, which is retired, and the pending one are for HS256.
func TestStore_ReadsEachStorageVersion(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.loadStorage("v1")
	m.equal("config (a field that was added since v1 has its zero value: add it here, and leave testdata/storage/v1.json unchanged)", data{
		"proxy_url": greenProxy, "algorithm": "ES256", "audience": "a", "accepted_audiences": []string{"b"}, "issuer": "i", "allowed_scopes": []string{"tool:*", "skill:summarize"},
		"max_ttl": int64(7200), "allow_standby_minting": false, "guarded": false, "rotation_period": int64(0), "rotation_overlap": int64(300), "key_version": 2, "key_created_at": "2027-01-15T08:00:00Z", "key_fingerprint": "00ba44da43c736c6",
	}, m.ok(logical.ReadOperation, "config", nil).Data)
	m.equal("versions", data{
		"current_version": 2, "current_proxy_url": greenProxy, "current_algorithm": "ES256", "current_fingerprint": "00ba44da43c736c6", "current_generated": true,
		"current_created_at": "2027-01-15T08:00:00Z", "current_activated_at": "2027-01-15T08:01:00Z",
		"pending_version": 3, "pending_proxy_url": "https://third.example.com", "pending_algorithm": "HS256", "pending_fingerprint": greenFingerprint, "pending_generated": false,
		"pending_created_at": "2027-01-15T08:03:00Z",
		"previous_version":   1, "previous_proxy_url": testProxy, "previous_algorithm": "HS256", "previous_fingerprint": testFingerprint, "previous_generated": false,
		"previous_created_at": "2027-01-15T08:00:00Z", "previous_activated_at": "2027-01-15T08:00:00Z", "previous_retired_at": "2027-01-15T08:02:00Z", "previous_tokens_expire_by": "2027-01-15T10:03:01Z",
	}, m.ok(logical.ReadOperation, "config/rotate", nil).Data)
	m.equal("role (a field that was added since v1 has its zero value: add it here, and leave testdata/storage/v1.json unchanged)", data{
		"tools": []string{"web_search", "github:*"}, "skills": []string{"summarize"}, "scopes": []string{}, "rate": map[string]string{"tool:github:*": "10/hour"},
		"ttl": int64(1800), "max_ttl": int64(7200), "audience": "b", "subject": "x/{{identity.entity.name}}", "job_id": "{{jti}}", "sandbox_id": "box",
		"allowed_agent_ids": []string{"sandbox:*"}, "allowed_job_ids": []string{"*"}, "allowed_sandbox_ids": []string{"s-*"},
		"generate_lease": true, "disabled": false, "description": "d",
	}, m.ok(logical.ReadOperation, "roles/r", nil).Data)
	m.equal("the pending secret", greenSecret, m.ok(logical.ReadOperation, "proxy-env/3", nil).Data["ATI_JWT_SECRET"])
	m.equal("the previous secret", testSecret, m.ok(logical.ReadOperation, "proxy-env/1", nil).Data["ATI_JWT_SECRET"])
	public, err := ati.ParsePublicKey(m.ok(logical.ReadOperation, "proxy-env", nil).Data["public_key"].(string))
	if err != nil {
		t.Fatal(err)
	}
	creds := m.ok(logical.UpdateOperation, "creds/r", data{"agent_id": "sandbox:1"})
	if _, err := ati.ValidateToken(creds.Data["token"].(string), public, ati.WithAudience("b"), ati.WithTime(func() time.Time { return m.now })); err != nil {
		t.Error(err)
	}
}

func TestStore_NewEntriesHaveNoNull(t *testing.T) {
	t.Parallel()
	for key, entry := range configured(t, nil, nil).storage.dump(t) {
		if strings.Contains(entry, "null") {
			t.Errorf("%s is stored with a null; set an empty list or map in NewEntry or NewLimits of internal/role: %s", key, entry)
		}
	}
}

func TestStore_WritesBackUnchanged(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.loadStorage("v1")
	stored := func(key string) string {
		entry, err := m.storage.Storage.Get(t.Context(), key)
		if err != nil {
			t.Fatal(err)
		}
		// An entry that the engine wrote ends in a line break, and a config has the number
		// of its change.
		return regexp.MustCompile(`,"generation":[0-9]+`).ReplaceAllString(strings.TrimSpace(string(entry.Value)), "")
	}
	for path, key := range map[string]string{"config": "config", "roles/r": "role/r"} {
		before := stored(key)
		d := m.ok(logical.ReadOperation, path, nil).Data
		maps.DeleteFunc(d, func(field string, _ any) bool { return strings.HasPrefix(field, "key_") }) // not parameters of config
		m.ok(logical.UpdateOperation, path, d)
		m.equal(key, before, stored(key))
	}
}

// TestStore_DamagedKey checks that a damaged key is an internal error that names its
// version.
func TestStore_DamagedKey(t *testing.T) {
	t.Parallel()
	m := configured(t, nil, nil)
	m.damage(`"secret":"`+testSecret+`"`, `"secret":""`)
	const want = "read version 1 of the stored key: parse key: HS256 secret must not be empty"
	m.failed(logical.ReadOperation, "creds/r", nil, want)
	m.failed(logical.ReadOperation, "proxy-env", nil, want)
	m.failed(logical.UpdateOperation, "config", data{"issuer": "x"}, want)
	m.damage(`"secret":""`, `"secret":["`+testSecret+`"]`)
	m.failed(logical.ReadOperation, "creds/r", nil, "read config: decode storage entry: a stored key is not a string")
}

// TestStore_AnyFaultIsAtomic lets each storage call of each request fail in turn. The
// request must fail with an error that names the operation, the mount must be as
// before the request or as after it, and the next request must succeed.
func TestStore_AnyFaultIsAtomic(t *testing.T) {
	t.Parallel()
	staged := func(m *mount) { m.write("config/rotate/stage", data{"proxy_url": greenProxy}) }
	activated := func(m *mount) { staged(m); m.write("config/rotate/activate", nil) }
	gone := func(m *mount) {
		activated(m)
		m.write("config/rotate/retire", nil)
		m.now = m.now.Add(2 * time.Hour)
	}
	forgotten := func(m *mount) {
		m.write("revoke", data{"jti": testID})
		m.now = m.now.Add(2 * time.Hour)
	}
	requests := []struct {
		op      logical.Operation
		path    string
		data    data
		prepare func(m *mount)
	}{
		{logical.ReadOperation, "config", nil, nil},
		{logical.UpdateOperation, "config", data{"issuer": "x", "max_ttl": "5h"}, nil},
		{logical.PatchOperation, "config", data{"issuer": "x", "max_ttl": nil}, nil},
		{logical.CreateOperation, "config", data{"proxy_url": testProxy}, func(m *mount) { m.ok(logical.DeleteOperation, "config", nil) }},
		{logical.DeleteOperation, "config", nil, nil},
		{logical.ReadOperation, "config/rotate", nil, activated},
		{logical.UpdateOperation, "config/rotate", nil, activated},
		{logical.UpdateOperation, "config/rotate/stage", data{"algorithm": "ES256"}, nil},
		{logical.DeleteOperation, "config/rotate/stage", nil, staged},
		{logical.UpdateOperation, "config/rotate/activate", nil, staged},
		{logical.UpdateOperation, "config/rotate/rollback", nil, activated},
		{logical.UpdateOperation, "config/rotate/retire", nil, activated},
		{logical.RollbackOperation, "", nil, gone},
		{logical.ReadOperation, "proxy-env", nil, nil},
		{logical.ReadOperation, "proxy-env/1", nil, nil},
		{logical.ReadOperation, "jwks", nil, nil},
		{logical.ListOperation, "roles/", nil, nil},
		{logical.ReadOperation, "roles/r", nil, nil},
		{logical.CreateOperation, "roles/new", data{"tools": "x", "ttl": "9h"}, nil},
		{logical.UpdateOperation, "roles/r", data{"tools": "x", "ttl": "9h"}, nil},
		{logical.PatchOperation, "roles/r", data{"tools": "x", "ttl": "9h"}, nil},
		{logical.DeleteOperation, "roles/r", nil, nil},
		{logical.ReadOperation, "creds/r", nil, nil},
		{logical.UpdateOperation, "creds/r", data{"tools": "web_search"}, nil},
		{logical.UpdateOperation, "batch/r", data{"agent_ids": "a,b"}, nil},
		{logical.ReadOperation, "check/r", data{"tool": "x"}, nil},
		{logical.UpdateOperation, "check/r", data{"tool": "x"}, nil},
		{logical.UpdateOperation, "validate", data{"token": "x"}, nil},
		{logical.UpdateOperation, "inspect", data{"token": "x"}, nil},
		{logical.UpdateOperation, "revoke", data{"jti": testID}, nil},
		{logical.UpdateOperation, "revoke/r", data{"agent_id": "a"}, nil},
		{logical.ListOperation, "revoked/", nil, nil},
		{logical.ReadOperation, "revoked/", nil, nil},
		{logical.ReadOperation, "guard", nil, nil},
		{logical.RollbackOperation, "", nil, forgotten},
	}
	tried := map[string]bool{}
	for _, r := range requests {
		tried[fmt.Sprintf("%s %s", r.op, strings.Replace(r.path, "roles/new", "roles/r", 1))] = true
	}
	for path, operations := range paths {
		for _, op := range operations {
			if !tried[fmt.Sprintf("%s %s", op, path)] {
				t.Errorf("%s %s is not tried: add it to requests in this test", op, path)
			}
		}
	}
	faults := 0
	for _, r := range requests {
		name := fmt.Sprintf("%s %s", r.op, r.path)
		for _, c := range []struct{ late, warm bool }{{false, false}, {true, false}, {false, true}, {true, true}} {
			late := c.late
			for n := int64(1); ; n++ {
				m := configured(t, nil, data{"allowed_agent_ids": "*"})
				if r.prepare != nil {
					r.prepare(m)
				}
				m.b = m.newBackend() // cold
				before := m.readAll()
				m.b = m.newBackend()
				if c.warm {
					_, _ = m.request(logical.ReadOperation, "creds/r", nil)
				}
				m.storage.failNth(n, late)
				resp, err := m.request(r.op, r.path, r.data)
				if m.storage.failed == "" {
					if err != nil || resp.IsError() {
						t.Errorf("%s without a fault: %v %v", name, err, resp.Error())
					}
					break
				}
				faults++
				if !errors.Is(err, errStorage) || resp != nil || !strings.Contains(err.Error(), "disk on fire") || err.Error() == errStorage.Error() {
					t.Errorf("%s, %s fails: %v %v", name, m.storage.failed, resp, err)
				}
				var kept data // from the caches
				for _, restarted := range []bool{false, true} {
					if restarted {
						m.b = m.newBackend()
					}
					after := m.readAll()
					if kept == nil {
						kept = after
					} else if diff := cmp.Diff(after, kept); diff != "" {
						t.Errorf("%s, %s fails, carried out %v: the caches differ from storage (-storage +cache):\n%s", name, m.storage.failed, late, diff)
					}
					if !cmp.Equal(before, after) && !m.isStateAfter(r.op, r.path, r.data, r.prepare, after) {
						t.Errorf("%s, %s fails, carried out %v, restarted %v: neither before nor after\n%s", name, m.storage.failed, late, restarted, cmp.Diff(before, after))
					}
				}
				if _, err := m.request(r.op, r.path, r.data); err != nil {
					t.Errorf("%s after %s failed: %v", name, m.storage.failed, err)
				}
			}
		}
	}
	t.Logf("%d faults in %d requests", faults, len(requests))
	if faults < 60 {
		t.Errorf("only %d faults were tried", faults)
	}
}

// TestWrite_CanceledRequestRefreshesCache checks that no cache keeps the old value
// when a client disconnects, or times out, during a write: storage carries it out all
// the same.
func TestWrite_CanceledRequestRefreshesCache(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		op   logical.Operation
		path string
		data data
		want func(m *mount)
	}{
		"a rotation": {logical.UpdateOperation, "config/rotate", nil, func(m *mount) {
			m.equal("version", 2, m.ok(logical.ReadOperation, "creds/r", nil).Data["key_version"])
		}},
		"a role": {logical.UpdateOperation, "roles/r", data{"disabled": true}, func(m *mount) {
			m.refused(logical.ReadOperation, "creds/r", nil, `role "r" is disabled`)
		}},
		"a deletion": {logical.DeleteOperation, "roles/r", nil, func(m *mount) {
			m.refused(logical.ReadOperation, "creds/r", nil, roleNotFound("r"))
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := configured(t, nil, nil)
			ctx, cancel := context.WithCancel(t.Context())
			write := newHeldWrite()
			m.storage.held = write
			var running sync.WaitGroup
			running.Go(func() {
				_, _ = m.b.HandleRequest(ctx, &logical.Request{Operation: c.op, Path: c.path, Data: c.data, Storage: m.storage, MountPoint: "ati/"})
			})
			<-write.begun
			cancel()
			minted := make(chan struct{})
			running.Go(func() { defer close(minted); _, _ = m.request(logical.ReadOperation, "creds/r", nil) })
			select {
			case <-minted: // it has filled the caches from storage
			case <-time.After(100 * time.Millisecond):
			}
			close(write.released)
			running.Wait()
			<-write.done
			c.want(m)
		})
	}
}

// TestCache_WarmMintReadsNoStorage checks that a mint with warm caches does not read
// storage, and calls Vault only for the mount's maximum TTL, every 5 seconds.
func TestCache_WarmMintReadsNoStorage(t *testing.T) {
	t.Parallel()
	m := configured(t, nil, nil)
	m.b = m.newBackend() // cold
	m.storage.calls.Store(0)
	m.ok(logical.ReadOperation, "creds/r", nil)
	if got := m.storage.calls.Load(); got != 2 {
		t.Errorf("a cold mint did %d storage calls, want 2", got)
	}
	m.storage.calls.Store(0)
	m.system.maxTTLCalls.Store(0)
	for range 100 {
		m.ok(logical.ReadOperation, "creds/r", nil)
		m.ok(logical.UpdateOperation, "creds/r", data{"tools": "web_search", "ttl": "5m"})
		runtime.GC() // drops the parsed role
	}
	if got := m.storage.calls.Load(); got != 0 {
		t.Errorf("200 warm mints did %d storage calls", got)
	}
	if got := m.system.maxTTLCalls.Load(); got != 0 {
		t.Errorf("200 warm mints read the mount's maximum %d times", got)
	}
	m.now = m.now.Add(5 * time.Second)
	m.ok(logical.ReadOperation, "creds/r", nil)
	if got := m.system.maxTTLCalls.Load(); got != 1 {
		t.Errorf("5 seconds later it read the mount's maximum %d times, want 1", got)
	}
}

// TestCache_Invalidate checks that changes of another node are seen after Invalidate.
func TestCache_Invalidate(t *testing.T) {
	t.Parallel()
	m := configured(t, nil, nil)
	m.ok(logical.ReadOperation, "creds/r", nil)

	other := m.otherNode()
	other.ok(logical.UpdateOperation, "config", data{"proxy_url": "https://green.example.com"})
	other.ok(logical.UpdateOperation, "roles/r", data{"tools": "arxiv"})

	m.b.InvalidateKey(t.Context(), "config")
	m.b.InvalidateKey(t.Context(), "role/r")
	resp := m.ok(logical.ReadOperation, "creds/r", nil)
	if got, want := []any{resp.Data["proxy_url"], resp.Data["scope"]}, []any{"https://green.example.com", "tool:arxiv"}; !cmp.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}

	other.ok(logical.DeleteOperation, "roles/r", nil)
	m.b.InvalidateKey(t.Context(), "role/r")
	m.refused(logical.ReadOperation, "creds/r", nil, roleNotFound("r"))
}

// TestCache_ConcurrentWritesAndMints checks that a token has the scopes of the old
// role or of the new one, and after the write of the new one only.
func TestCache_ConcurrentWritesAndMints(t *testing.T) {
	t.Parallel()
	m := configured(t, nil, data{"allowed_agent_ids": "*"})
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				resp, err := m.request(logical.ReadOperation, "creds/r", nil)
				if err != nil || resp.IsError() {
					t.Errorf("mint: %v %v", err, resp.Error())
					return
				}
				batch, err := m.request(logical.UpdateOperation, "batch/r", data{"agent_ids": "a,b,c"})
				if err != nil || batch.IsError() {
					t.Errorf("batch: %v %v", err, batch.Error())
					return
				}
				for _, token := range batch.Data["tokens"].(map[string]string) {
					if c := m.claimsOf(token, "ati-proxy"); c.Scope != batch.Data["scope"] {
						t.Errorf("a batch of %v has a token with %s", batch.Data["scope"], c.Scope)
					}
				}
				m.b.InvalidateKey(context.Background(), "role/r")
				m.b.InvalidateKey(context.Background(), "config")
			}
		})
	}
	for i := range 300 {
		tool := fmt.Sprintf("tool%d", i)
		m.ok(logical.UpdateOperation, "roles/r", data{"tools": tool})
		if got, want := m.ok(logical.ReadOperation, "creds/r", nil).Data["scope"], "tool:"+tool; got != want {
			t.Errorf("after the write of %s a token has %s", want, got)
		}
	}
	close(stop)
	wg.Wait()
}

func TestCache_RoleDeletedDuringMint(t *testing.T) {
	t.Parallel()
	m := configured(t, nil, nil)
	m.b = m.newBackend() // cold
	m.duringRead("role/r", func() { _, _ = m.request(logical.ReadOperation, "creds/r", nil) }, func() { m.ok(logical.DeleteOperation, "roles/r", nil) })
	m.refused(logical.ReadOperation, "creds/r", nil, roleNotFound("r"))
}

// TestCache_ConcurrentReadWrite checks that a replaced value does not come back into a
// cache, and that of two writes neither loses what the other one stored.
func TestCache_ConcurrentReadWrite(t *testing.T) {
	t.Parallel()
	mint := func(m *mount) func() {
		return func() {
			if resp, err := m.request(logical.ReadOperation, "creds/r", nil); err != nil || resp.IsError() {
				m.t.Errorf("mint: %v %v", err, resp.Error())
			}
		}
	}
	write := func(m *mount, path string, d data) func() {
		return func() {
			if resp, err := m.request(logical.UpdateOperation, path, d); err != nil || resp.IsError() {
				m.t.Errorf("write %s: %v %v", path, err, resp.Error())
			}
		}
	}
	for name, c := range map[string]struct {
		key           string
		first, second func(m *mount) func()
		want          data
	}{
		"a mint that reads the role, and a write of it": {"role/r", mint,
			func(m *mount) func() { return write(m, "roles/r", data{"tools": "new"}) }, data{"scope": "tool:new"}},
		"a mint that reads config, and a write of it": {"config", mint,
			func(m *mount) func() { return write(m, "config", data{"audience": "new"}) }, data{"aud": "new"}},
		"a mint that reads the role, and another node's write of it": {"role/r", mint,
			func(m *mount) func() {
				return func() { m.replaceStored("role/r", `"web_search"`, `"new"`); m.b.InvalidateKey(m.t.Context(), "role/r") }
			}, data{"scope": "tool:new"}},
		"a mint that reads config, and another node's write of it": {"config", mint,
			func(m *mount) func() {
				return func() { m.replaceStored("config", `"ati-proxy"`, `"new"`); m.b.InvalidateKey(m.t.Context(), "config") }
			}, data{"aud": "new"}},
		"two updates of one role": {"role/r",
			func(m *mount) func() { return write(m, "roles/r", data{"tools": "new"}) },
			func(m *mount) func() { return write(m, "roles/r", data{"ttl": "30m"}) }, data{"scope": "tool:new", "token_ttl": int64(1800)}},
		"two updates of config": {"config",
			func(m *mount) func() { return write(m, "config", data{"audience": "new"}) },
			func(m *mount) func() { return write(m, "config", data{"max_ttl": "30m"}) }, data{"aud": "new", "token_ttl": int64(1800)}},
		"a config write and a role that raises the bound": {"config",
			func(m *mount) func() { return write(m, "config", data{"audience": "new"}) },
			func(m *mount) func() { return write(m, "roles/r", data{"ttl": "5h"}) }, data{"aud": "new", "token_ttl": int64(18000)}},
		"a role that raises the bound and a config write": {"role/r",
			func(m *mount) func() { return write(m, "roles/r", data{"ttl": "5h"}) },
			func(m *mount) func() { return write(m, "config", data{"audience": "new"}) }, data{"aud": "new", "token_ttl": int64(18000)}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := configured(t, nil, nil)
			m.b = m.newBackend() // cold
			m.duringRead(c.key, c.first(m), c.second(m))
			for range 2 { // from the caches, and from storage
				got := data{}
				resp := m.ok(logical.ReadOperation, "creds/r", nil)
				for k := range c.want {
					got[k] = resp.Data[k]
				}
				if diff := cmp.Diff(c.want, got); diff != "" {
					t.Errorf("a later mint (-want +got):\n%s", diff)
				}
				m.b = m.newBackend()
			}
			if ttl, ok := c.want["token_ttl"].(int64); ok && ttl > 3600 {
				if want := fmt.Sprintf(`"longest_ttl":%d`, ttl*int64(time.Second)); !strings.Contains(m.storage.dump(t)["config"], want) {
					t.Errorf("config has no %s: %s", want, m.storage.dump(t)["config"])
				}
			}
		})
	}
}

// TestCache_FailedWriteIsReadAgain checks that after a failed write, which may have
// been carried out, the next request reads storage.
func TestCache_FailedWriteIsReadAgain(t *testing.T) {
	t.Parallel()
	for _, late := range []bool{false, true} {
		m := configured(t, nil, nil)
		m.ok(logical.ReadOperation, "creds/r", nil) // warm
		m.storage.late = late
		m.storage.fail = "put role/r"
		m.failed(logical.UpdateOperation, "roles/r", data{"tools": "new"}, `write role "r": disk on fire`)
		m.storage.fail = "put config"
		m.failed(logical.UpdateOperation, "config", data{"audience": "new"}, "write config: disk on fire")
		m.storage.fail = ""
		want := data{"scope": "tool:web_search", "aud": "ati-proxy"}
		if late {
			want = data{"scope": "tool:new", "aud": "new"}
		}
		resp := m.ok(logical.ReadOperation, "creds/r", nil)
		if diff := cmp.Diff(want, data{"scope": resp.Data["scope"], "aud": resp.Data["aud"]}); diff != "" {
			t.Errorf("carried out %v: a later mint (-want +got):\n%s", late, diff)
		}
	}
}

// TestCache_IsBounded checks that 48 MiB of roles stay in the cache, and that more of them
// evict those that were used least recently.
func TestCache_IsBounded(t *testing.T) {
	t.Parallel()
	m := configured(t, nil, data{"tools": "x"})
	var globs []string
	for i := range 500 {
		globs = append(globs, fmt.Sprintf("%0127d*", i))
	}
	m.ok(logical.UpdateOperation, "roles/r", data{"allowed_agent_ids": globs})
	m.storage.oneRole = true
	reads := func(role int) int64 {
		before := m.storage.calls.Load()
		m.do(t, logical.ReadOperation, fmt.Sprintf("creds/r%d", role), nil)
		return m.storage.calls.Load() - before
	}
	fit := 48 << 20 / (len(m.storage.dump(t)["role/r"]) + 250)
	for i := range fit {
		if got := reads(i); got != 1 {
			t.Fatalf("the first mint of role %d did %d reads", i, got)
		}
	}
	for i := range fit {
		if got := reads(i); got != 0 {
			t.Fatalf("the second mint of role %d did %d reads", i, got)
		}
	}
	reads(0) // now role 1 was used least recently
	for i := range 5 {
		reads(fit + i)
	}
	if got := []int64{reads(0), reads(fit - 1), reads(1)}; !cmp.Equal(got, []int64{0, 0, 1}) {
		t.Errorf("with five more roles, reads of two that were used recently, and of one that was not: %v", got)
	}
}

// TestCache_ParsesTheSameRoleAgain checks that a role reads the same after the garbage
// collector has dropped the parsed one, whatever its texts look like in storage.
func TestCache_ParsesTheSameRoleAgain(t *testing.T) {
	t.Parallel()
	for name, role := range map[string]data{
		"empty": nil,
		"texts that look like members": {
			"description": `x,"disabled":false,"ttl":0,"tools":[],\",`, "rate": data{"tool:web_search": "0/s"}, "ttl": "10s",
			"generate_lease": true, "disabled": true, "allowed_agent_ids": "a,disabled,false", "job_id": "0", "sandbox_id": "false",
		},
	} {
		m := configured(t, nil, role)
		before := m.ok(logical.ReadOperation, "roles/r", nil).Data
		m.storage.calls.Store(0)
		runtime.GC()
		m.equal(name, before, m.ok(logical.ReadOperation, "roles/r", nil).Data)
		m.equal(name+": storage calls", int64(0), m.storage.calls.Load())
	}
}

// TestCache_DroppedRolesDoNotCount checks that roles that a standby has dropped do not
// count toward the limit of the cache.
func TestCache_DroppedRolesDoNotCount(t *testing.T) {
	t.Parallel()
	var globs []string
	for i := range 500 {
		globs = append(globs, fmt.Sprintf("%0127d*", i))
	}
	m := configured(t, data{"allow_standby_minting": true}, data{"allowed_agent_ids": globs})
	m.storage.oneRole = true
	reads := func() int64 {
		before := m.storage.calls.Load()
		for i := range 500 { // more than half of what fits
			m.do(t, logical.ReadOperation, fmt.Sprintf("creds/r%d", i), nil)
		}
		return m.storage.calls.Load() - before
	}
	m.setState(standby, false)
	first := reads()
	m.now = m.now.Add(5 * time.Second)
	m.equal("reads of 500 roles and the config: the first, after the drop, and again", []int64{501, 501, 0}, []int64{first, reads(), reads()})
}
