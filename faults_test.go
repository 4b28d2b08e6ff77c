package atisecrets_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/vault/sdk/logical"
)

// The promise: whichever call to storage fails, in whichever request, there is a
// 500 that says what failed; what the mount tells of itself is as before the
// request or as after it; and the next request works.
func TestAnyStorageFaultIsAnErrorAndLeavesNoHalfState(t *testing.T) {
	t.Parallel()
	staged := func(m *mount) { m.write("config/rotate/stage", data{"proxy_url": greenProxy}) }
	activated := func(m *mount) { staged(m); m.write("config/rotate/activate", nil) }
	gone := func(m *mount) {
		activated(m)
		m.write("config/rotate/retire", nil)
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
		{logical.DeleteOperation, "roles/r", nil, nil},
		{logical.ReadOperation, "creds/r", nil, nil},
		{logical.UpdateOperation, "creds/r", data{"tools": "web_search"}, nil},
		{logical.UpdateOperation, "batch/r", data{"agent_ids": "a,b"}, nil},
		{logical.ReadOperation, "check/r", data{"tool": "x"}, nil},
		{logical.UpdateOperation, "check/r", data{"tool": "x"}, nil},
		{logical.UpdateOperation, "validate", data{"token": "x"}, nil},
		{logical.UpdateOperation, "inspect", data{"token": "x"}, nil},
	}
	tried := map[string]bool{}
	for _, r := range requests {
		tried[fmt.Sprintf("%s %s", r.op, strings.Replace(r.path, "roles/new", "roles/r", 1))] = true
	}
	for path, operations := range paths {
		for _, op := range operations {
			if !tried[fmt.Sprintf("%s %s", op, path)] {
				t.Errorf("%s %s isn't tried", op, path)
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
				before := m.state()
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
				var kept data // by the caches
				for _, restarted := range []bool{false, true} {
					if restarted {
						m.b = m.newBackend()
					}
					after := m.state()
					if kept == nil {
						kept = after
					} else if diff := cmp.Diff(after, kept); diff != "" {
						t.Errorf("%s, %s fails, carried out %v: the caches differ from storage (-storage +cache):\n%s", name, m.storage.failed, late, diff)
					}
					if !cmp.Equal(before, after) && !m.isDone(r.op, r.path, r.data, r.prepare, after) {
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
		t.Errorf("%d faults are too few to tell", faults)
	}
}

// A client that hangs up, or a time-out, ends a write's request, and not the write:
// no cache keeps what was there before.
func TestAWriteWhoseRequestIsGivenUpLeavesNoStaleCache(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		op   logical.Operation
		path string
		data data
		want func(m *mount)
	}{
		"a rotation": {logical.UpdateOperation, "config/rotate", nil, func(m *mount) {
			m.same("version", any(2), m.ok(logical.ReadOperation, "creds/r", nil).Data["key_version"])
		}},
		"a role": {logical.UpdateOperation, "roles/r", data{"disabled": true}, func(m *mount) {
			m.refused(logical.ReadOperation, "creds/r", nil, `role "r" is disabled; disabled=false enables it`)
		}},
		"a deletion": {logical.DeleteOperation, "roles/r", nil, func(m *mount) {
			m.refused(logical.ReadOperation, "creds/r", nil, `role "r" does not exist; vault list ati/roles shows those that do`)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := configured(t, nil, nil)
			ctx, giveUp := context.WithCancel(t.Context())
			write := newHeldWrite()
			m.storage.held = write
			var running sync.WaitGroup
			running.Go(func() {
				_, _ = m.b.HandleRequest(ctx, &logical.Request{Operation: c.op, Path: c.path, Data: c.data, Storage: m.storage, MountPoint: "ati/"})
			})
			<-write.begun
			giveUp()
			minted := make(chan struct{})
			running.Go(func() { defer close(minted); _, _ = m.request(logical.ReadOperation, "creds/r", nil) })
			select {
			case <-minted: // it has filled the caches with what is there still
			case <-time.After(100 * time.Millisecond):
			}
			close(write.released)
			running.Wait()
			<-write.done
			c.want(m)
		})
	}
}
