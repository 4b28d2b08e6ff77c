package atisecrets

import (
	"errors"
	"sync/atomic"
	"time"

	"github.com/hashicorp/vault/sdk/helper/consts"
	"github.com/hashicorp/vault/sdk/logical"
)

// maxAge limits the age of what was looked up, and of what a standby has cached. A
// lookup is a round trip to Vault.
const maxAge = 5 * time.Second

// node looks up facts about this node and the mount.
type node struct {
	system   logical.SystemView
	now      func() time.Time
	sleep    func(time.Duration)
	state    atomic.Pointer[nodeState]
	mountTTL atomic.Pointer[mountTTL]

	dropCaches func() // of storage
}

type nodeState struct {
	standby   bool
	readAt    time.Time
	droppedAt time.Time // when the caches were last dropped
}

type mountTTL struct {
	max    time.Duration
	readAt time.Time
}

// waitUntil waits until a time within the next seconds.
func (n *node) waitUntil(t time.Time) {
	for range 3 { // not for ever, if the clock is set back
		if d := t.Sub(n.now()); d > 0 {
			n.sleep(d)
		}
	}
}

// isStandby looks up whether the node cannot write: a standby, or a node of a
// performance secondary whose mount is replicated. A standby can miss a change of
// storage, so it drops its caches every maxAge, and when it becomes active.
func (n *node) isStandby() (bool, error) {
	replication := n.system.ReplicationState()
	if replication == consts.ReplicationUnknown { // to the SDK, a lookup that failed
		return false, errors.New("failed to look up the replication state: no response from Vault")
	}
	state := nodeState{readAt: n.now(), standby: replication.HasState(consts.ReplicationPerformanceStandby) ||
		replication.HasState(consts.ReplicationPerformanceSecondary) && !n.system.LocalMount()}
	before := n.state.Load()
	if before != nil {
		state.droppedAt = before.droppedAt
	}
	if before != nil && before.standby != state.standby || state.standby && !n.isRecent(state.droppedAt) {
		n.dropCaches()
		state.droppedAt = state.readAt
	}
	n.state.Store(&state)
	return state.standby, nil
}

// wasStandby returns the result of isStandby, at most maxAge old.
func (n *node) wasStandby() (bool, error) {
	if state := n.state.Load(); state != nil && n.isRecent(state.readAt) {
		return state.standby, nil
	}
	return n.isStandby()
}

// maxMountTTL looks up the mount's maximum TTL in whole seconds.
func (n *node) maxMountTTL() (time.Duration, error) {
	ttl := n.system.MaxLeaseTTL()
	if ttl <= 0 { // to the SDK, a lookup that failed
		return 0, errors.New("failed to look up the mount's maximum TTL: no response from Vault")
	}
	return ttl.Truncate(time.Second), nil
}

// recentMaxMountTTL returns the result of maxMountTTL, at most maxAge old.
func (n *node) recentMaxMountTTL() (time.Duration, error) {
	if cached := n.mountTTL.Load(); cached != nil && n.isRecent(cached.readAt) {
		return cached.max, nil
	}
	now := n.now()
	ttl, err := n.maxMountTTL()
	if err == nil {
		n.mountTTL.Store(&mountTTL{ttl, now})
	}
	return ttl, err
}

func (n *node) isRecent(at time.Time) bool {
	age := n.now().Sub(at)
	return age >= 0 && age < maxAge
}
