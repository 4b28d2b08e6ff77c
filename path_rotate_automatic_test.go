package atisecrets_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/logical"
)

// rotating returns a mount that rotates its key every 48 hours, with an overlap of 10
// minutes, and a role "r" with a TTL of an hour.
func rotating(t testing.TB, config data) *mount {
	t.Helper()
	m := newMount(t)
	m.ok(logical.CreateOperation, "config", merge(data{"proxy_url": testProxy, "guarded": true, "rotation_period": "48h", "rotation_overlap": "10m"}, config))
	m.ok(logical.CreateOperation, "roles/r", data{"tools": "web_search"})
	return m
}

// rotation is what config/rotate shows of the automatic rotation.
type rotation struct {
	Current, Pending, Previous any
	Next, Status               any
}

func (m *mount) rotation() rotation {
	m.t.Helper()
	s := m.ok(logical.ReadOperation, "config/rotate", nil).Data
	return rotation{s["current_version"], s["pending_version"], s["previous_version"], s["next_rotation_at"], s["rotation_status"]}
}

// at sets the clock.
func (m *mount) at(text string) {
	m.t.Helper()
	now, err := time.Parse(time.RFC3339, text)
	if err != nil {
		m.t.Fatal(err)
	}
	m.now = now
}

// tickAt runs the periodic function at a time, and returns what it has led to.
func (m *mount) tickAt(at string) rotation {
	m.t.Helper()
	m.at(at)
	m.periodic()
	return m.rotation()
}

// TestAutomaticRotation follows a key through two rotations. Each step is one write.
func TestAutomaticRotation(t *testing.T) {
	t.Parallel()
	for _, algorithm := range []string{"HS256", "ES256"} {
		t.Run(algorithm, func(t *testing.T) {
			t.Parallel()
			m := rotating(t, data{"algorithm": algorithm})
			m.equal("at first", rotation{1, nil, nil, "2027-01-17T08:00:00Z", "scheduled"}, m.rotation())
			puts := len(m.storage.order)
			for _, c := range []struct {
				at   string
				want rotation
			}{
				{"2027-01-17T07:49:59Z", rotation{1, nil, nil, "2027-01-17T08:00:00Z", "scheduled"}},
				{"2027-01-17T07:50:30Z", rotation{1, 2, nil, "2027-01-17T08:00:30Z", "in progress: version 2 is pending"}},
				{"2027-01-17T08:00:29Z", rotation{1, 2, nil, "2027-01-17T08:00:30Z", "in progress: version 2 is pending"}},
				{"2027-01-17T08:01:30Z", rotation{2, nil, 1, "2027-01-19T08:01:30Z", "scheduled"}},
				{"2027-01-17T09:02:30Z", rotation{2, nil, 1, "2027-01-19T08:01:30Z", "scheduled"}},
				{"2027-01-17T09:02:31Z", rotation{2, nil, nil, "2027-01-19T08:01:30Z", "scheduled"}},
				{"2027-01-19T07:52:00Z", rotation{2, 3, nil, "2027-01-19T08:02:00Z", "in progress: version 3 is pending"}},
				{"2027-01-19T08:02:00Z", rotation{3, nil, 2, "2027-01-21T08:02:00Z", "scheduled"}},
			} {
				m.at(c.at)
				token, version := m.tokenFor("")
				m.periodic()
				m.equal(c.at, c.want, m.rotation())
				m.equal("the version of a token from before "+c.at, version, m.verdict(token))
			}
			m.equal("writes", strings.Repeat("config ", 5), strings.Join(m.storage.order[puts:], " ")+" ")
			status := m.ok(logical.ReadOperation, "config/rotate", nil).Data
			m.equal("version 3", []any{algorithm, true, testProxy}, []any{status["current_algorithm"], status["current_generated"], status["current_proxy_url"]})
			m.equal("version 2", []any{"2027-01-19T08:02:00Z", "2027-01-19T09:03:01Z"}, []any{status["previous_retired_at"], status["previous_tokens_expire_by"]})
		})
	}
}

// TestAutomaticRotation_RejectsSettings checks that a schedule is refused by which calls
// would be rejected, or which Terraform could not write repeatedly.
func TestAutomaticRotation_RejectsSettings(t *testing.T) {
	t.Parallel()
	const (
		unguarded = "rotation_period requires guarded=true, because a proxy without a guard rejects tokens of a new key until it restarts; run every proxy behind ati-guard and set guarded=true, or set rotation_period=0"
		together  = "%[1]s and rotation_period cannot be set in one request, which would fail when it is repeated after a rotation; remove %[1]s to have Vault generate the key, or import the key first"
	)
	pair := newPair(t)
	m := configured(t, nil, data{"ttl": "1h", "max_ttl": "20h"})
	es256 := newMount(t)
	es256.ok(logical.CreateOperation, "config", data{"proxy_url": testProxy, "algorithm": "ES256", "private_key": pair.sec1})
	automatic := rotating(t, nil)
	for _, c := range []struct {
		m    *mount
		d    data
		want string
	}{
		{m, data{"rotation_period": "48h"}, unguarded},
		{m, data{"rotation_period": "59m59s", "guarded": true}, "rotation_period 59m59s: must be 0 or at least 1h0m0s"},
		{m, data{"rotation_overlap": "59s"}, "rotation_overlap 59s: must be at least 1m0s"},
		{m, data{"rotation_overlap": 0}, "rotation_overlap 0s: must be at least 1m0s"},
		{m, data{"rotation_period": "20h6m59s", "guarded": true}, "rotation_period 20h6m59s is too short: roles allow a TTL of up to 20h0m0s, so it must be at least 20h7m0s (with rotation_overlap 5m0s and a margin of 2m0s)"},
		{m, data{"rotation_period": "20h7m", "rotation_overlap": "6m", "guarded": true}, "rotation_period 20h7m0s is too short: roles allow a TTL of up to 20h0m0s, so it must be at least 20h8m0s (with rotation_overlap 6m0s and a margin of 2m0s)"},
		{m, data{"rotation_period": "48h", "guarded": true, "secret": testSecret}, fmt.Sprintf(together, "secret")},
		{es256, data{"rotation_period": "48h", "guarded": true, "private_key": pair.sec1}, fmt.Sprintf(together, "private_key")},
		{automatic, data{"guarded": false}, unguarded},
		{automatic, data{"rotation_overlap": "46h58m1s"}, "rotation_period 48h0m0s is too short: roles allow a TTL of up to 1h0m0s, so it must be at least 48h0m1s (with rotation_overlap 46h58m1s and a margin of 2m0s)"},
	} {
		c.m.refused(logical.UpdateOperation, "config", c.d, c.want)
	}
	empty := newMount(t)
	empty.refused(logical.CreateOperation, "config", data{"proxy_url": testProxy, "rotation_period": "48h"}, unguarded)
	empty.refused(logical.CreateOperation, "config", data{"proxy_url": testProxy, "rotation_period": "48h", "guarded": true, "secret": testSecret}, fmt.Sprintf(together, "secret"))

	m.ok(logical.UpdateOperation, "config", data{"rotation_period": "20h7m", "guarded": true})
	m.ok(logical.UpdateOperation, "config", data{"secret": testSecret}) // until the key rotates
	m.refused(logical.UpdateOperation, "config", data{"secret": greenSecret}, "secret does not match the current key, which rotates automatically; remove secret from the request")
	m.ok(logical.PatchOperation, "config", data{"rotation_period": nil, "rotation_overlap": nil})
	read := m.ok(logical.ReadOperation, "config", nil).Data
	m.equal("after a reset", []any{int64(0), int64(300)}, []any{read["rotation_period"], read["rotation_overlap"]})
}

// TestAutomaticRotation_SameConfigAgain checks that a config that is written again changes
// nothing: Terraform may do so at any time.
func TestAutomaticRotation_SameConfigAgain(t *testing.T) {
	t.Parallel()
	m := rotating(t, nil)
	m.ok(logical.CreateOperation, "roles/long", data{"tools": "x", "ttl": "100h"}) // after the period was set
	for _, at := range []string{"2027-01-17T07:49:00Z", "2027-01-17T07:51:00Z", "2027-01-17T08:02:00Z", "2027-01-21T12:03:01Z"} {
		m.tickAt(at)
		before := m.storage.dump(t)
		m.ok(logical.UpdateOperation, "config", data{"proxy_url": testProxy, "guarded": true, "rotation_period": "48h", "rotation_overlap": "10m"})
		m.ok(logical.UpdateOperation, "config", nil)
		read := m.ok(logical.ReadOperation, "config", nil).Data
		m.ok(logical.UpdateOperation, "config", read)
		m.equal("storage at "+at, before, m.storage.dump(t))
	}
}

const suspendedWarning = "The automatic rotation is suspended: "

// TestAutomaticRotation_ManualSteps checks how requests suspend, resume, and restart the
// automatic rotation.
func TestAutomaticRotation_ManualSteps(t *testing.T) {
	t.Parallel()
	const end = "2027-01-17T08:00:00Z" // of the period
	pending := func() *mount {
		m := rotating(t, nil)
		m.equal("pending", rotation{1, 2, nil, end, "in progress: version 2 is pending"}, m.tickAt("2027-01-17T07:50:00Z"))
		return m
	}

	m := rotating(t, nil)
	m.at("2027-01-16T08:00:00Z")
	m.step("/stage", nil, suspendedWarning+"version 2 was staged by a request; activate or delete it.")
	suspended := rotation{1, 2, nil, nil, "suspended: version 2 was staged by a request; activate or delete it"}
	m.equal("staged", suspended, m.tickAt("2027-01-18T08:00:00Z"))
	m.ok(logical.DeleteOperation, "config/rotate/stage", nil)
	m.equal("deleted", rotation{1, nil, nil, end, "scheduled"}, m.rotation())
	m.equal("made up for", rotation{1, 3, nil, "2027-01-18T08:11:00Z", "in progress: version 3 is pending"}, m.tickAt("2027-01-18T08:01:00Z"))

	m = rotating(t, nil)
	m.at("2027-01-16T08:00:00Z")
	m.step("/stage", nil, suspendedWarning+"version 2 was staged by a request; activate or delete it.")
	m.step("/activate", nil)
	m.equal("activated", rotation{2, nil, 1, "2027-01-18T08:00:00Z", "scheduled"}, m.rotation())
	m.step("/rollback", nil, suspendedWarning+"version 2 was rolled back; activate it again, or retire it.")
	m.equal("rolled back", rotation{1, nil, 2, nil, "suspended: version 2 was rolled back; activate it again, or retire it"}, m.rotation())
	m.at("2027-01-16T09:00:00Z")
	m.step("/activate", nil)
	m.equal("activated again", rotation{2, nil, 1, "2027-01-18T09:00:00Z", "scheduled"}, m.rotation())
	m.step("/rollback", nil, suspendedWarning+"version 2 was rolled back; activate it again, or retire it.")
	m.step("/retire", nil, suspendedWarning+"version 2 was rolled back; its tokens expire by 2027-01-16T10:01:01Z.")
	m.equal("retired", rotation{1, nil, 2, nil, "suspended: version 2 was rolled back; its tokens expire by 2027-01-16T10:01:01Z"}, m.rotation())
	m.at("2027-01-16T10:01:01Z")
	expired := rotation{1, nil, nil, "2027-01-18T09:00:00Z", "scheduled"}
	m.equal("expired", expired, m.rotation())
	m.equal("forgotten", expired, m.tickAt("2027-01-16T10:01:01Z"))

	m = rotating(t, nil)
	m.step("/stage", data{"proxy_url": greenProxy}, suspendedWarning+"version 2 was staged by a request; activate or delete it.")
	m.step("/activate", nil, suspendedWarning+"previous version 1 is not retired.")
	m.equal("another address", rotation{2, nil, 1, nil, "suspended: previous version 1 is not retired"}, m.tickAt("2027-01-18T08:00:00Z"))
	m.step("/retire", nil)
	m.equal("retired", rotation{2, nil, 1, "2027-01-18T09:01:01Z", "delayed: tokens of version 1 expire by 2027-01-18T09:01:01Z"}, m.rotation())

	m = pending()
	m.step("/activate", nil)
	m.equal("activated early", rotation{2, nil, 1, "2027-01-19T07:50:00Z", "scheduled"}, m.rotation())
	m.step("/rollback", nil, suspendedWarning+"version 2 was rolled back; activate it again, or retire it.")
	m.equal("rolled back", rotation{1, nil, 2, nil, "suspended: version 2 was rolled back; activate it again, or retire it"}, m.tickAt("2027-01-20T08:00:00Z"))

	m = pending()
	m.ok(logical.DeleteOperation, "config/rotate/stage", nil)
	m.equal("another one", rotation{1, 3, nil, "2027-01-17T08:01:00Z", "in progress: version 3 is pending"}, m.tickAt("2027-01-17T07:51:00Z"))

	m = pending()
	m.refused(logical.UpdateOperation, "config/rotate/stage", nil, "version 2 is already pending, and becomes current automatically at 2027-01-17T08:00:00Z; to make it current now, run: vault write -f ati/config/rotate/activate; to drop it, set rotation_period=0 in the config")

	m = pending()
	m.step("", nil, "From their next poll on, guards reject tokens signed before version 3. Tokens issued by this mount before the rotation expire by 2027-01-17T08:51:01Z.", "Pending version 2 was deleted.")
	m.equal("replaced", rotation{3, nil, nil, "2027-01-19T07:50:00Z", "scheduled"}, m.tickAt("2027-01-17T08:10:00Z"))

	// A rollback drops the version that would otherwise become current.
	m = pending()
	m.ok(logical.UpdateOperation, "roles/r", data{"ttl": "100h"})
	m.tickAt("2027-01-17T08:00:00Z")
	m.equal("all three", rotation{2, 3, 1, "2027-01-21T12:02:00Z", "in progress: version 3 is pending"}, m.tickAt("2027-01-21T11:52:00Z"))
	m.step("/rollback", nil, suspendedWarning+"version 2 was rolled back; activate it again, or retire it.")
	m.equal("rolled back", rotation{1, nil, 2, nil, "suspended: version 2 was rolled back; activate it again, or retire it"}, m.tickAt("2027-02-21T11:52:00Z"))
}

// TestAutomaticRotation_ChangedSchedule checks that a change of the schedule completes or
// drops a rotation in progress.
func TestAutomaticRotation_ChangedSchedule(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		change data
		want   rotation // after the change
		then   rotation // at 08:05
	}{
		{data{"rotation_period": 0}, rotation{1, nil, nil, nil, nil}, rotation{1, nil, nil, nil, nil}},
		{data{"rotation_period": 0, "guarded": false}, rotation{1, nil, nil, nil, nil}, rotation{1, nil, nil, nil, nil}},
		{data{"rotation_period": "49h"}, rotation{1, nil, nil, "2027-01-17T09:00:00Z", "scheduled"}, rotation{1, nil, nil, "2027-01-17T09:00:00Z", "scheduled"}},
		{data{"rotation_period": "47h"}, rotation{1, 2, nil, "2027-01-17T08:00:00Z", "in progress: version 2 is pending"}, rotation{2, nil, 1, "2027-01-19T07:05:00Z", "scheduled"}},
		{data{"rotation_overlap": "1m"}, rotation{1, nil, nil, "2027-01-17T08:00:00Z", "scheduled"}, rotation{1, 3, nil, "2027-01-17T08:06:00Z", "in progress: version 3 is pending"}},
		{data{"rotation_overlap": "20m"}, rotation{1, 2, nil, "2027-01-17T08:10:00Z", "in progress: version 2 is pending"}, rotation{1, 2, nil, "2027-01-17T08:10:00Z", "in progress: version 2 is pending"}},
	} {
		m := rotating(t, nil)
		m.tickAt("2027-01-17T07:50:00Z")
		m.write("config", c.change)
		m.equal(fmt.Sprintf("after %v", c.change), c.want, m.rotation())
		m.equal(fmt.Sprintf("later, after %v", c.change), c.then, m.tickAt("2027-01-17T08:05:00Z"))
	}
}

// TestAutomaticRotation_LongTTL checks that no rotation drops a version whose tokens have
// not expired, and that a TTL that no role has any more matters only once.
func TestAutomaticRotation_LongTTL(t *testing.T) {
	t.Parallel()
	m := rotating(t, nil)
	const warning = "Tokens of this role live up to 100h0m0s. With a TTL over 47h48m0s, the automatic rotation waits until the tokens of the previous key have expired."
	m.warnings(m.ok(logical.CreateOperation, "roles/long", data{"tools": "x", "ttl": "100h"}), warning)
	m.tickAt("2027-01-17T07:50:00Z")
	long := m.ok(logical.ReadOperation, "creds/long", nil).Data["token"].(string)
	m.equal("activated", rotation{2, nil, 1, "2027-01-21T12:01:01Z", "delayed: tokens of version 1 expire by 2027-01-21T12:01:01Z"}, m.tickAt("2027-01-17T08:00:00Z"))
	m.equal("long token", 1, m.verdict(long))

	// Now no enabled role has that TTL, so version 2 need not wait for it.
	m.warnings(m.write("roles/long", data{"disabled": true}))
	m.tickAt("2027-01-21T11:51:01Z")
	m.equal("the next one", rotation{3, nil, 2, "2027-01-25T16:02:02Z", "delayed: tokens of version 2 expire by 2027-01-25T16:02:02Z"}, m.tickAt("2027-01-21T12:01:01Z"))
	m.tickAt("2027-01-25T15:52:02Z")
	m.equal("the one after that", rotation{4, nil, 3, "2027-01-27T16:02:02Z", "scheduled"}, m.tickAt("2027-01-25T16:02:02Z"))
	m.equal("expiry", "2027-01-25T17:03:03Z", m.ok(logical.ReadOperation, "config/rotate", nil).Data["previous_tokens_expire_by"])

	// A TTL of a role that is gone does not prevent a period.
	m = generated(t, nil, nil)
	m.ok(logical.CreateOperation, "roles/long", data{"tools": "x", "ttl": "700h"})
	m.refused(logical.UpdateOperation, "config", data{"guarded": true, "rotation_period": "24h"}, "rotation_period 24h0m0s is too short: roles allow a TTL of up to 700h0m0s, so it must be at least 700h7m0s (with rotation_overlap 5m0s and a margin of 2m0s)")
	token := m.ok(logical.ReadOperation, "creds/long", nil).Data["token"].(string)
	m.ok(logical.DeleteOperation, "roles/long", nil)
	m.ok(logical.UpdateOperation, "config", data{"guarded": true, "rotation_period": "24h"})
	m.tickAt("2027-01-16T07:55:00Z")
	m.equal("waits for its tokens", rotation{2, nil, 1, "2027-02-14T12:01:01Z", "delayed: tokens of version 1 expire by 2027-02-14T12:01:01Z"}, m.tickAt("2027-01-16T08:00:00Z"))
	m.equal("its token", 1, m.verdict(token))

	// A revocation is kept as long as a token of the previous version may live.
	m.at("2027-01-20T08:00:00Z")
	m.equal("kept until", "2027-02-14T12:01:01Z", m.write("revoke", data{"agent_id": "a"}).Data["kept_until"])
	// After a rollback, its tokens live longer than those of the roles.
	m.step("/rollback", nil, suspendedWarning+"version 2 was rolled back; activate it again, or retire it.")
	m.equal("expiry", "2027-02-14T12:01:01Z", m.ok(logical.UpdateOperation, "config/rotate/activate", nil).Data["previous_tokens_expire_by"])
}

// TestAutomaticRotation_LookupOfRoles checks that the lookup of the longest TTL counts the
// roles that are written during it, that requests need not wait for it, and that without a
// role no TTL counts.
func TestAutomaticRotation_LookupOfRoles(t *testing.T) {
	t.Parallel()
	m := rotating(t, nil)
	m.ok(logical.CreateOperation, "roles/a", data{"tools": "x"})
	m.ok(logical.CreateOperation, "roles/long", data{"tools": "x", "ttl": "100h"})
	m.write("roles/long", data{"disabled": true})
	m.b = m.newBackend() // no role is cached
	m.tickAt("2027-01-17T07:50:00Z")
	var once sync.Once
	during := func(key string) {
		if key == "role/r" { // after role a
			once.Do(func() {
				m.write("roles/a", data{"ttl": "80h"})
				m.equal("key of a mint", 1, m.ok(logical.ReadOperation, "creds/a", nil).Data["key_version"])
				m.ok(logical.ReadOperation, "guard", nil)
			})
		}
	}
	m.storage.afterGet.Store(&during)
	m.tickAt("2027-01-17T08:00:00Z")
	minted := m.ok(logical.ReadOperation, "creds/a", nil).Data
	m.equal("version and TTL", []any{2, int64(80 * 3600)}, []any{minted["key_version"], minted["token_ttl"]})

	m = generated(t, nil, nil)
	m.ok(logical.CreateOperation, "roles/long", data{"tools": "x", "ttl": "700h"})
	m.write("roles/long", data{"disabled": true})
	m.write("roles/r", data{"disabled": true})
	m.ok(logical.UpdateOperation, "config", data{"guarded": true, "rotation_period": "24h"})
	m.tickAt("2027-01-16T07:55:00Z")
	m.tickAt("2027-01-16T08:00:00Z")
	m.tickAt("2027-02-14T11:56:01Z")
	m.equal("without a role", rotation{3, nil, 2, "2027-02-15T12:01:01Z", "scheduled"}, m.tickAt("2027-02-14T12:01:01Z"))
	m.tickAt("2027-02-15T11:56:01Z")
	m.equal("the next one", rotation{4, nil, 3, "2027-02-16T12:01:01Z", "scheduled"}, m.tickAt("2027-02-15T12:01:01Z"))
}

// TestAutomaticRotation_Clock checks that a clock that jumps does not rotate twice.
func TestAutomaticRotation_Clock(t *testing.T) {
	t.Parallel()
	m := rotating(t, nil)
	m.equal("ahead", rotation{1, 2, nil, "2028-01-01T00:10:00Z", "in progress: version 2 is pending"}, m.tickAt("2028-01-01T00:00:00Z"))
	m.equal("back, before the period ends", rotation{1, nil, nil, "2027-01-17T08:00:00Z", "scheduled"}, m.tickAt("2027-01-15T09:00:00Z"))
	m.tickAt("2028-01-01T00:00:00Z")
	m.equal("back, after the period has ended", rotation{1, nil, nil, "2027-01-17T08:00:00Z", "scheduled"}, m.tickAt("2027-01-17T09:00:00Z"))
	m.equal("another one", rotation{1, 4, nil, "2027-01-17T09:11:00Z", "in progress: version 4 is pending"}, m.tickAt("2027-01-17T09:01:00Z"))
	for range 10 {
		m.equal("once, ahead", rotation{4, nil, 1, "2028-01-03T00:00:00Z", "scheduled"}, m.tickAt("2028-01-01T00:00:00Z"))
	}
	for range 10 {
		m.equal("once, back", rotation{4, nil, 1, "2028-01-03T00:00:00Z", "scheduled"}, m.tickAt("2027-01-17T09:20:00Z"))
	}
}

// TestAutomaticRotation_RestoredSnapshot checks that a restored snapshot is followed by the
// step that it was waiting for, with the same key, and by no other.
func TestAutomaticRotation_RestoredSnapshot(t *testing.T) {
	t.Parallel()
	m := rotating(t, nil)
	m.tickAt("2027-01-17T07:50:00Z")
	fingerprint := m.ok(logical.ReadOperation, "config/rotate", nil).Data["pending_fingerprint"]
	snapshot := m.storage.dump(t)
	m.tickAt("2027-01-17T08:00:00Z")
	m.tickAt("2027-01-17T10:00:00Z")
	for key, value := range snapshot {
		if err := m.storage.Storage.Put(t.Context(), &logical.StorageEntry{Key: key, Value: []byte(value)}); err != nil {
			t.Fatal(err)
		}
	}
	m.b = m.newBackend()
	for range 3 {
		m.equal("restored", rotation{2, nil, 1, "2027-01-19T10:00:00Z", "scheduled"}, m.tickAt("2027-01-17T10:00:00Z"))
	}
	m.equal("key", fingerprint, m.ok(logical.ReadOperation, "config/rotate", nil).Data["current_fingerprint"])
}

// automaticModel is what the automatic rotation must do, in terms of what config and
// config/rotate show.
type automaticModel struct {
	current, pending, previous int
	activatedAt, createdAt     time.Time // of the current and the pending version
	expireBy                   time.Time // of the previous version, once it is retired
	automatic, rolledBack      bool      // the pending version; the previous version
	period, overlap            time.Duration
}

// read sets what the mount shows. The rest follows from the requests.
func (a *automaticModel) read(m *mount) {
	m.t.Helper()
	at := func(value any) (t time.Time) {
		if value != nil {
			var err error
			if t, err = time.Parse(time.RFC3339, value.(string)); err != nil {
				m.t.Fatal(err)
			}
		}
		return t
	}
	s := m.ok(logical.ReadOperation, "config/rotate", nil).Data
	config := m.ok(logical.ReadOperation, "config", nil).Data
	number := func(name string) int { n, _ := s[name].(int); return n }
	a.current, a.pending, a.previous = number("current_version"), number("pending_version"), number("previous_version")
	a.activatedAt, a.createdAt, a.expireBy = at(s["current_activated_at"]), at(s["pending_created_at"]), at(s["previous_tokens_expire_by"])
	a.period, a.overlap = time.Duration(config["rotation_period"].(int64))*time.Second, time.Duration(config["rotation_overlap"].(int64))*time.Second
	a.automatic, a.rolledBack = a.automatic && a.pending != 0, a.rolledBack && a.previous != 0
}

// tick returns the versions after a call of the periodic function: current, pending, and
// previous.
func (a *automaticModel) tick(now time.Time, last int) [3]int {
	latest := func(a, b time.Time) time.Time { return time.Unix(max(a.Unix(), b.Unix()), 0) }
	due := latest(a.activatedAt.Add(a.period), a.expireBy)
	waits := a.period == 0 || a.rolledBack || a.pending != 0 && !a.automatic || a.previous != 0 && a.expireBy.IsZero()
	switch begin := due.Add(-a.overlap); {
	case waits:
	case a.pending == 0 && !now.Before(begin):
		return [3]int{a.current, last + 1, a.previous}
	case a.pending != 0 && now.Add(a.overlap).Before(latest(begin, a.createdAt)):
		return [3]int{a.current, 0, a.previous}
	case a.pending != 0 && !now.Before(latest(due, a.createdAt.Add(a.overlap))):
		return [3]int{a.pending, 0, a.current}
	}
	return [3]int{a.current, a.pending, a.previous}
}

// TestAutomaticRotation_RandomSequences runs random sequences of periodic calls, requests,
// role and config writes, failed storage calls, restarts, failovers, and steps of the
// clock. The periodic function must do what the model does, and no automatic step may end
// a token. With make soak, there are more sequences.
func TestAutomaticRotation_RandomSequences(t *testing.T) {
	t.Parallel()
	var rotations, steps atomic.Int64
	seeds := rounds(60, 3000)
	t.Cleanup(func() {
		t.Logf("%d sequences, %d steps of the periodic function, %d rotations", seeds, steps.Load(), rotations.Load())
		if rotations.Load() < int64(seeds) {
			t.Error("too few rotations to be meaningful")
		}
	})
	for seed := range uint64(seeds) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			s := &automaticSequence{mount: rotating(t, data{"rotation_period": "3h"}), random: rand.New(rand.NewPCG(seed, 2))}
			s.model.read(s.mount)
			s.last = 1
			for range 300 {
				s.step()
			}
			rotations.Add(int64(s.rotations))
			steps.Add(int64(s.steps))
		})
	}
}

type automaticSequence struct {
	*mount
	random           *rand.Rand
	model            automaticModel
	last             int // highest version
	tokens           []sequenceToken
	rotations, steps int
}

type sequenceToken struct {
	token   string
	version int
	exp     int64
}

// try makes a request that may be refused or, if storage fails, fail, and reports whether
// it was carried out.
func (s *automaticSequence) try(op logical.Operation, path string, d data) bool {
	s.t.Helper()
	resp, err := s.request(op, path, d)
	if err != nil && !errors.Is(err, errStorage) {
		s.t.Fatalf("%s %s %v: %v", op, path, d, err)
	}
	return err == nil && !resp.IsError()
}

func (s *automaticSequence) step() {
	s.t.Helper()
	hours := func(n int) string { return fmt.Sprintf("%dh", 1+s.random.IntN(n)) }
	switch n := s.random.IntN(60); {
	case n < 1:
		if s.try(logical.UpdateOperation, "config/rotate/stage", nil) {
			s.model.automatic = false
		}
	case n < 4:
		if s.try(logical.UpdateOperation, "config/rotate/activate", nil) {
			s.model.rolledBack = false
		}
	case n < 5:
		if s.try(logical.UpdateOperation, "config/rotate/rollback", nil) {
			s.model.rolledBack = true
		}
	case n < 7:
		s.try(logical.UpdateOperation, "config/rotate/retire", nil)
	case n < 8:
		if s.try(logical.UpdateOperation, "config/rotate", nil) {
			s.model.rolledBack = false
		}
	case n < 9:
		s.try(logical.DeleteOperation, "config/rotate/stage", nil)
	case n < 11:
		s.try(logical.UpdateOperation, "config", data{"guarded": true, "rotation_period": hours(12), "rotation_overlap": fmt.Sprintf("%dm", 1+s.random.IntN(40))})
	case n < 12:
		s.try(logical.UpdateOperation, "config", data{"rotation_period": 0})
	case n < 14:
		s.try(logical.UpdateOperation, "roles/r", data{"ttl": hours(3), "max_ttl": 0})
	case n < 15:
		s.try(logical.UpdateOperation, "roles/long", data{"tools": "x", "ttl": hours(200), "disabled": s.random.IntN(3) > 0})
	case n < 16:
		s.b = s.newBackend() // after a restart, an upgrade, or a failover
	case n < 17:
		s.now = s.now.Add(-time.Duration(s.random.IntN(2*3600)) * time.Second)
	case n < 30:
		s.mintToken()
	case n < 40:
		s.now = s.now.Add(time.Duration(s.random.IntN(3600_000)) * time.Millisecond)
		s.tick(false)
	case n < 41:
		s.now = s.now.Add(100 * time.Hour)
		s.tick(false)
	default:
		s.now = s.now.Add(time.Minute)
		s.tick(n < 44)
	}
	s.model.read(s.mount)
	s.last = max(s.last, s.model.current, s.model.pending)
}

func (s *automaticSequence) mintToken() {
	role := []string{"r", "long"}[s.random.IntN(2)]
	resp, err := s.request(logical.ReadOperation, "creds/"+role, nil)
	if err == nil && !resp.IsError() {
		s.tokens = append(s.tokens, sequenceToken{resp.Data["token"].(string), resp.Data["key_version"].(int), resp.Data["expires_at"].(int64)})
	}
}

// tick runs the periodic function, and compares its effect with the model. If one of its
// storage calls fails, it has carried out the step or not.
func (s *automaticSequence) tick(fails bool) {
	s.t.Helper()
	s.model.read(s.mount) // at this time
	before := s.model
	versions := func() [3]int { return [3]int{s.model.current, s.model.pending, s.model.previous} }
	held, want := versions(), s.model.tick(s.now, s.last)
	alive := s.tokens[:0]
	for _, token := range s.tokens {
		if token.exp > s.now.Unix() && s.verdict(token.token) == token.version {
			alive = append(alive, token)
		}
	}
	s.tokens = alive
	puts := len(s.storage.order)
	if fails {
		s.storage.failNth(1+s.random.Int64N(3), s.random.IntN(2) == 0)
	}
	_, err := s.request(logical.RollbackOperation, "", nil)
	if fails {
		s.storage.failNth(0, false)
		if err != nil && !errors.Is(err, errStorage) {
			s.t.Fatal(err)
		}
	} else if err != nil {
		s.t.Fatal(err)
	}
	if n := len(s.storage.order) - puts; n > 1 {
		s.t.Fatalf("one call wrote %d times", n)
	}
	s.model.read(s.mount)
	got := versions()
	if got != want && (err == nil || got != held) {
		s.t.Fatalf("at %v, with %+v: the versions are %v, want %v (%v)", s.now.UTC(), before, got, want, err)
	}
	if got != held {
		s.steps++
	}
	switch {
	case got[0] != held[0]:
		s.rotations++
		s.model.automatic = false
	case got[1] != 0 && held[1] == 0:
		s.model.automatic = true
	}
	for _, token := range s.tokens {
		if verdict := s.verdict(token.token); verdict != token.version {
			s.t.Fatalf("at %v, with %+v: a token of version %d that expires at %d: %v", s.now.UTC(), before, token.version, token.exp, verdict)
		}
	}
}
