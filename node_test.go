package atisecrets_test

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/helper/consts"
	"github.com/hashicorp/vault/sdk/logical"
)

const (
	primary   = consts.ReplicationPerformancePrimary
	secondary = consts.ReplicationPerformanceSecondary
	standby   = consts.ReplicationPerformanceStandby
)

// TestNode_ForwardsRequests checks for each operation, and every state of a node,
// whether the node answers or forwards the request to the active node.
func TestNode_ForwardsRequests(t *testing.T) {
	t.Parallel()
	local := []string{"read jwks", "list roles/", "read roles/r", "update inspect"}
	minting := []string{"read creds/r", "update creds/r", "update batch/r", "read check/r", "update check/r"}
	for _, c := range []struct {
		state      consts.ReplicationState
		localMount bool
		active     bool
	}{
		{consts.ReplicationPerformanceDisabled, false, true},
		{primary, false, true},
		{secondary, false, false},
		{secondary, true, true},
		{primary | standby, false, false},
		{standby, false, false},
		{standby, true, false},
		{secondary | standby, false, false},
		{secondary | standby, true, false},
	} {
		for _, allowed := range []bool{false, true} {
			for path, ops := range paths {
				for _, op := range ops {
					m := configured(t, data{"allow_standby_minting": allowed}, data{"allowed_agent_ids": "*"})
					m.setState(c.state, c.localMount)
					_, err := m.request(op, path, nil)
					request := string(op) + " " + path
					answers := c.active || slices.Contains(local, request) || allowed && slices.Contains(minting, request)
					if got := !errors.Is(err, logical.ErrReadOnly); got != answers {
						t.Errorf("%s in state %b, local mount %v, allow_standby_minting %v: answered %v (%v)", request, c.state, c.localMount, allowed, got, err)
					}
				}
			}
		}
	}
}

// TestNode_StandbyCreatesNoLease checks that a standby forwards a request for a token
// with a lease, which it could not store.
func TestNode_StandbyCreatesNoLease(t *testing.T) {
	t.Parallel()
	m := configured(t, data{"allow_standby_minting": true}, data{"generate_lease": true})
	m.setState(standby, false)
	if _, err := m.request(logical.ReadOperation, "creds/r", nil); !errors.Is(err, logical.ErrReadOnly) {
		t.Errorf("got error %v", err)
	}
}

// TestNode_UnknownState checks that a node whose state cannot be looked up mints and
// writes nothing.
func TestNode_UnknownState(t *testing.T) {
	t.Parallel()
	m := configured(t, data{"allow_standby_minting": true}, nil)
	m.setState(consts.ReplicationUnknown, false)
	before := m.storage.dump(t)
	for path, ops := range map[string][]logical.Operation{
		"creds/r": {logical.ReadOperation}, "config": {logical.ReadOperation, logical.UpdateOperation, logical.DeleteOperation}, "config/rotate": {logical.UpdateOperation},
	} {
		for _, op := range ops {
			if resp, err := m.request(op, path, nil); err == nil || err.Error() != "failed to look up the replication state: no response from Vault" {
				t.Errorf("%s %s: %v, %v", op, path, resp, err)
			}
		}
	}
	m.equal("storage", before, m.storage.dump(t))
}

// TestNode_BecomesActive checks that a node that becomes active answers immediately,
// and not by what it cached before.
func TestNode_BecomesActive(t *testing.T) {
	t.Parallel()
	m := configured(t, data{"allow_standby_minting": true}, nil)
	active := m.otherNode()
	m.setState(standby, false)
	m.ok(logical.ReadOperation, "creds/r", nil)
	active.write("config", data{"allow_standby_minting": false})
	active.write("roles/r", data{"disabled": true}) // and the invalidation is lost
	m.ok(logical.ReadOperation, "creds/r", nil)     // as allow_standby_minting permits
	m.system.ReplicationStateVal = primary
	m.write("config", nil) // looks up the state
	m.refused(logical.ReadOperation, "creds/r", nil, `role "r" is disabled`)
}

// TestNode_StandbyCacheAge checks that a standby that has missed an invalidation uses
// what it has cached for less than 5 seconds.
func TestNode_StandbyCacheAge(t *testing.T) {
	t.Parallel()
	m := configured(t, data{"allow_standby_minting": true}, nil)
	active := m.otherNode()
	m.setState(standby, false)
	m.ok(logical.ReadOperation, "creds/r", nil)
	active.write("roles/r", data{"disabled": true, "description": "new"})
	m.now = m.now.Add(5*time.Second - 1)
	m.ok(logical.ReadOperation, "creds/r", nil)
	m.equal("description", "", m.ok(logical.ReadOperation, "roles/r", nil).Data["description"])
	m.now = m.now.Add(1)
	m.equal("description", "new", m.ok(logical.ReadOperation, "roles/r", nil).Data["description"])
	m.refused(logical.ReadOperation, "creds/r", nil, `role "r" is disabled`)
}

// TestNode_Lookups checks that a mint on the active node makes no call to Vault, and
// that a write looks up the node's state.
func TestNode_Lookups(t *testing.T) {
	t.Parallel()
	m := configured(t, nil, nil)
	m.ok(logical.ReadOperation, "creds/r", nil)
	calls := func() [2]int64 { return [2]int64{m.system.stateCalls.Load(), m.system.maxTTLCalls.Load()} }
	before := calls()
	for range 10 {
		m.now = m.now.Add(499 * time.Millisecond)
		m.ok(logical.ReadOperation, "creds/r", nil)
	}
	m.equal("lookups within 5 seconds", before, calls())
	m.now = m.now.Add(time.Second)
	m.ok(logical.ReadOperation, "creds/r", nil)
	m.equal("lookups after 5 seconds", [2]int64{before[0] + 1, before[1] + 1}, calls())
	m.write("config", nil)
	m.equal("lookups of a write", before[0]+2, m.system.stateCalls.Load())
}

// TestNode_FrameworkHasNoSystemView checks that this version of the SDK works without a
// system view, which would cost a lookup for every request.
func TestNode_FrameworkHasNoSystemView(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	if m.b.Backend.System() != nil || m.b.System() != m.system {
		t.Error("the framework has a system view, or the backend has none")
	}
	for path, ops := range paths {
		for _, op := range append(slices.Clone(ops), logical.HelpOperation) {
			_, _ = m.request(op, path, nil) // does not panic
		}
	}
	for _, op := range []logical.Operation{logical.RenewOperation, logical.RevokeOperation, logical.RollbackOperation, logical.HelpOperation} {
		_, _ = m.request(op, "", nil)
	}
	m.b.Cleanup(t.Context())
	if err := m.b.Initialize(t.Context(), &logical.InitializationRequest{Storage: m.storage}); err != nil {
		t.Error(err)
	}
}
