package atisecrets_test

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/vault/sdk/logical"

	"vault-plugin-secrets-ati/ati"
	"vault-plugin-secrets-ati/internal/revocation"
)

// poller follows a mount by the rules of the help of guard. Its zero value has nothing.
type poller struct {
	Epoch      string
	Generation int64
	Audiences  []string
	Issuer     string
	Keys       map[int]heldKey
	Revoked    map[string]revocation.Entry
}

type heldKey struct {
	State, Algorithm, Material, TokensExpireBy string
	Generated                                  bool
}

// poll reads what has changed, and then what has become invalid by time.
func (p *poller) poll(m *mount, now time.Time) error {
	d := data{}
	if p.Epoch != "" {
		d["since"] = p.Generation
	}
	resp, err := m.request(logical.ReadOperation, "guard", d)
	if err != nil {
		return err
	}
	if resp.IsError() {
		return resp.Error()
	}
	if resp == nil { // no config
		*p = poller{}
		return nil
	}
	if epoch := resp.Data["epoch"].(string); p.Epoch != "" && p.Epoch != epoch {
		*p = poller{Revoked: p.Revoked}
		return p.poll(m, now)
	}
	if generation := resp.Data["generation"].(int64); generation < p.Generation {
		return fmt.Errorf("the generation falls from %d to %d", p.Generation, generation)
	}
	if known := p.apply(resp.Data); !known {
		if p.Epoch == "" {
			return errors.New("a response to a request without since lacks a key")
		}
		*p = poller{Revoked: p.Revoked}
		return p.poll(m, now)
	}
	p.forget(now)
	return nil
}

func (p *poller) mustPoll(m *mount) {
	m.t.Helper()
	if err := p.poll(m, m.now); err != nil {
		m.t.Fatal(err)
	}
}

// apply applies a response, and reports whether it holds all keys that are listed.
func (p *poller) apply(response data) bool {
	listed, changed := response["keys"].([]any)
	if !changed {
		return p.Generation == response["generation"].(int64)
	}
	keys := map[int]heldKey{}
	for _, item := range listed {
		k := item.(map[string]any)
		version := k["version"].(int)
		key := p.Keys[version]
		key.State, key.Algorithm, key.Generated = k["state"].(string), k["algorithm"].(string), k["generated"].(bool)
		key.TokensExpireBy, _ = k["tokens_expire_by"].(string)
		for _, field := range []string{"secret", "public_key"} {
			if material, ok := k[field].(string); ok {
				key.Material = material
			}
		}
		if key.Material == "" {
			return false
		}
		keys[version] = key
	}
	p.Epoch, p.Generation, p.Keys = response["epoch"].(string), response["generation"].(int64), keys
	p.Audiences, p.Issuer = response["audiences"].([]string), response["issuer"].(string)
	if p.Revoked == nil {
		p.Revoked = map[string]revocation.Entry{}
	}
	for _, item := range response["revoked"].([]any) {
		r := item.(map[string]any)
		e := revocation.Entry{RevokedAt: r["revoked_at"].(int64), ExpiresAt: r["expires_at"].(int64), Imported: r["imported"].(bool)}
		e.JTI, _ = r["jti"].(string)
		e.Subject, _ = r["sub"].(string)
		p.Revoked[e.Name()] = e
	}
	return true
}

// forget drops keys and revocations that have expired.
func (p *poller) forget(now time.Time) {
	maps.DeleteFunc(p.Keys, func(_ int, k heldKey) bool {
		expiry, err := time.Parse(time.RFC3339, k.TokensExpireBy)
		return err == nil && !now.Before(expiry)
	})
	live := p.live()
	maps.DeleteFunc(p.Revoked, func(_ string, e revocation.Entry) bool { return !e.Keep(live, now.Unix()) })
}

func (p *poller) live() (live revocation.Live) {
	for _, k := range p.Keys {
		live.Imported = live.Imported || !k.Generated
	}
	return live
}

// accepts reports whether a guard that holds this accepts a token.
func (p *poller) accepts(m *mount, token string) bool {
	m.t.Helper()
	for _, k := range p.Keys {
		var key ati.Key
		var err error
		if k.Algorithm == ati.ES256 {
			key, err = ati.ParsePublicKey(k.Material)
		} else {
			key, err = ati.ParseSecret(k.Material)
		}
		if err != nil {
			m.t.Fatal(err)
		}
		claims, err := ati.ValidateToken(token, key, ati.WithTime(func() time.Time { return m.now }), ati.WithAudience(p.Audiences...))
		if err == nil {
			return !p.revokes(claims)
		}
	}
	return false
}

func (p *poller) revokes(c *ati.Claims) bool {
	id, _, _ := strings.Cut(c.ID, ".")
	for name, e := range p.Revoked {
		if name == "jti:"+c.ID || name == "jti:"+id || name == "agent_id:"+c.Subject && c.IssuedAt <= e.RevokedAt {
			return true
		}
	}
	return false
}

// guard reads guard, with since if it is not nil.
func (m *mount) guard(since any) data {
	m.t.Helper()
	d := data{}
	if since != nil {
		d["since"] = since
	}
	return m.ok(logical.ReadOperation, "guard", d).Data
}

func TestGuard_Response(t *testing.T) {
	t.Parallel()
	pair := newPair(t)
	m := newMount(t)
	if resp, err := m.request(logical.ReadOperation, "guard", nil); resp != nil || err != nil {
		t.Errorf("without a config: %v, %v", resp, err)
	}
	m.ok(logical.CreateOperation, "config", data{"proxy_url": testProxy, "secret": testSecret, "accepted_audiences": "b,c", "issuer": "i"})
	m.ok(logical.CreateOperation, "roles/r", data{"tools": "web_search", "allowed_agent_ids": "*"})
	first := m.guard(nil)
	epoch := first["epoch"]
	if len(epoch.(string)) != 36 {
		t.Errorf("epoch %v", epoch)
	}
	now := m.now.UnixMicro()
	current := data{"version": 1, "state": "current", "algorithm": "HS256", "generated": false, "secret": testSecret}
	// The role was written too: it has the longest TTL.
	want := data{"epoch": epoch, "generation": now + 1, "audiences": []string{"ati-proxy", "b", "c"}, "issuer": "i", "keys": []any{current}, "revoked": []any{}}
	m.equal("a new config", want, first)

	unchanged := data{"epoch": epoch, "generation": now + 1}
	for _, since := range []any{now + 1, float64(now + 1), fmt.Sprint(now+1, "\n")} {
		m.equal("nothing has changed", unchanged, m.guard(since))
	}
	for _, since := range []any{now + 2, int64(1) << 52, int64(-1), 0, now - 1, ""} {
		m.equal(fmt.Sprintf("since %v", since), want, m.guard(since))
	}

	m.write("config/rotate/stage", data{"proxy_url": greenProxy, "algorithm": "ES256", "private_key": pair.pkcs8})
	known := func(key data) data {
		key = maps.Clone(key)
		delete(key, "secret")
		delete(key, "public_key")
		return key
	}
	pending := data{"version": 2, "state": "pending", "algorithm": "ES256", "generated": false, "public_key": pair.public}
	want["generation"], want["keys"] = now+2, []any{current, pending}
	m.equal("a pending version", want, m.guard(nil))
	want["keys"] = []any{known(current), pending}
	m.equal("a pending version since the last response", want, m.guard(now+1))

	m.write("config/rotate/activate", nil)
	m.write("config/rotate/retire", nil)
	pending["state"], current["state"], current["tokens_expire_by"] = "current", "previous", "2027-01-15T09:01:01Z"
	want["generation"], want["keys"] = now+4, []any{pending, current}
	m.equal("a previous version", want, m.guard(nil))
	want["keys"] = []any{known(pending), known(current)}
	m.equal("a previous version since the last response", want, m.guard(now+2))
	want["keys"] = []any{pending, known(current)}
	m.equal("to a guard that missed two changes", want, m.guard(now+1))

	m.write("revoke", data{"jti": testID})
	m.write("revoke", data{"agent_id": "a"})
	jti := data{"jti": testID, "revoked_at": int64(1_800_000_000), "expires_at": int64(1_800_003_661), "imported": true}
	agent := data{"sub": "a", "revoked_at": int64(1_800_000_000), "expires_at": int64(1_800_003_661), "imported": true}
	want["generation"], want["keys"], want["revoked"] = now+6, []any{known(pending), known(current)}, []any{jti, agent}
	m.equal("two revocations", want, m.guard(now+4))
	want["revoked"] = []any{agent}
	m.equal("the second revocation", want, m.guard(now+5))

	m.now = m.now.Add(time.Hour + 61*time.Second - 2*time.Second) // a second has passed for the agent
	want["keys"], want["revoked"] = []any{pending, current}, []any{jti, agent}
	m.equal("at the end of the previous version", want, m.guard(nil))
	m.now = m.now.Add(time.Second)
	want["keys"] = []any{pending}
	m.equal("after the previous version", want, m.guard(nil))
	m.b = m.newBackend()
	m.equal("after a restart", want, m.guard(nil))

	m.write("config/rotate", data{"algorithm": "HS256"})
	m.periodic()
	last := m.guard(nil)
	m.equal("revocations after a rotation", []any{}, last["revoked"])
	generatedKey := last["keys"].([]any)[0].(data)
	if secret, _ := generatedKey["secret"].(string); len(secret) != 64 || generatedKey["generated"] != true || generatedKey["version"] != 3 {
		t.Errorf("a generated key: %v", generatedKey)
	}

	m.ok(logical.DeleteOperation, "config", nil)
	if resp, err := m.request(logical.ReadOperation, "guard", data{"since": last["generation"]}); resp != nil || err != nil {
		t.Errorf("without a config: %v, %v", resp, err)
	}
	m.ok(logical.CreateOperation, "config", data{"proxy_url": testProxy, "secret": testSecret})
	next := m.guard(nil)
	if next["epoch"] == epoch || next["keys"].([]any)[0].(data)["version"] != 4 {
		t.Errorf("a config that was created again: %v", next)
	}
	m.now = m.now.Add(time.Hour)
	m.write("config", data{"proxy_url": greenProxy})
	m.write("config/rotate", nil)
	if got := m.guard(nil)["epoch"]; got != next["epoch"] {
		t.Errorf("a write and a rotation change the epoch from %v to %v", next["epoch"], got)
	}
}

func TestGuard_Refused(t *testing.T) {
	t.Parallel()
	m := configured(t, nil, nil)
	for _, since := range []any{"x", "1.5", 1.5, "0x10", "99999999999999999999", true, []any{1}} {
		want := "since must be an integer"
		if _, list := since.([]any); list {
			want += ", not a list; if the parameter was given more than once, give it once"
		}
		m.refused(logical.ReadOperation, "guard", data{"since": since}, want)
	}
	m.refused(logical.ReadOperation, "guard", data{"since": nil}, `parameter "since" is null; omit it or set a value`)
	m.refused(logical.ReadOperation, "guard", data{"since": testSecret}, "since appears to contain a key or token, which is not allowed in this parameter")
}

// TestGuard_ReadsNothingAndLogsNothing checks that a poll costs no storage call and leaves
// no line in Vault's log.
func TestGuard_ReadsNothingAndLogsNothing(t *testing.T) {
	t.Parallel()
	m := configured(t, nil, nil)
	m.write("revoke", data{"jti": testID})
	generation := m.guard(nil)["generation"]
	m.log.Reset()
	m.storage.calls.Store(0)
	for _, since := range []any{nil, generation, 1} {
		m.guard(since)
	}
	m.equal("storage calls", int64(0), m.storage.calls.Load())
	m.equal("log", "", m.log.String())
}

// TestGuard_UpgradedConfig checks that a config that was stored before there was a guard
// has an epoch, and that a guard follows it.
func TestGuard_UpgradedConfig(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.loadStorage("v1")
	p := new(poller)
	for range 2 {
		p.mustPoll(m)
		if p.Epoch != "0" || p.Generation != 0 || len(p.Keys) == 0 {
			t.Errorf("a guard holds %+v", p)
		}
	}
	for _, change := range []func(){
		func() { m.write("config", data{"issuer": "x"}) },
		func() { m.write("revoke", data{"jti": testID}) },
		func() { m.write("config/rotate", nil) },
		func() { m.b = m.newBackend() },
	} {
		before := p.Generation
		change()
		p.mustPoll(m)
		fresh := new(poller)
		fresh.mustPoll(m)
		m.equal("a guard", fresh, p)
		if p.Epoch != "0" || p.Generation < before {
			t.Errorf("epoch %s, generation %d after %d", p.Epoch, p.Generation, before)
		}
	}
}

// TestGuard_Generations checks that each change has a higher generation than the last,
// also after a restart and when the clock is set back.
func TestGuard_Generations(t *testing.T) {
	t.Parallel()
	for _, clock := range []time.Duration{0, time.Microsecond, time.Minute, -time.Hour} {
		m := configured(t, data{"guarded": true}, data{"allowed_agent_ids": "*", "generate_lease": true})
		lease := m.withID(requestID(7), "creds/r", nil).Secret
		last := int64(0)
		for i, change := range []func(){
			func() { m.write("config", data{"issuer": "x"}) },
			func() { m.write("roles/r", data{"max_ttl": "9h"}) },
			func() { m.write("revoke", data{"jti": requestID(1)}) },
			func() { m.write("revoke", data{"jti": requestID(1)}) },
			func() { m.write("revoke/r", data{"agent_id": "a"}) },
			func() { lease.IssueTime = m.now; m.must(m.revokeLease(lease)) },
			func() { m.write("config/rotate/stage", data{"proxy_url": greenProxy}) },
			func() { m.ok(logical.DeleteOperation, "config/rotate/stage", nil) },
			func() { m.write("config/rotate/stage", data{"proxy_url": greenProxy}) },
			func() { m.write("revoke", data{"jti": requestID(2)}) },
			func() { m.write("config/rotate/activate", nil) },
			func() { m.write("config/rotate/rollback", nil) },
			func() { m.write("config/rotate/activate", nil) },
			func() { m.write("config/rotate/retire", nil) },
			func() { m.write("revoke", data{"agent_id": "a"}) },
			func() { m.write("config/rotate", nil) },
			func() {
				m.ok(logical.DeleteOperation, "config", nil)
				m.b = m.newBackend()
				m.ok(logical.CreateOperation, "config", data{"proxy_url": testProxy})
			},
		} {
			m.now = m.now.Add(clock)
			change()
			generation := m.guard(nil)["generation"].(int64)
			if generation <= last {
				t.Errorf("clock %v: change %d has generation %d, after %d", clock, i, generation, last)
			}
			if now := m.now.UnixMicro(); clock >= 0 && (generation < now-1e6 || generation > now+100) {
				t.Errorf("clock %v: change %d has generation %d at %d", clock, i, generation, now)
			}
			last = generation
			m.b = m.newBackend()
			m.equal("generation after a restart", last, m.guard(nil)["generation"])
		}
	}
}

func (m *mount) must(err error) {
	m.t.Helper()
	if err != nil {
		m.t.Fatal(err)
	}
}

// TestGuard_GenerationAfterPurge checks that the generation does not fall when the newest
// revocation was dropped and the plugin restarts: a guard would take it for a restored
// snapshot.
func TestGuard_GenerationAfterPurge(t *testing.T) {
	t.Parallel()
	m := generated(t, nil, nil)
	m.now = m.now.Add(time.Minute)
	m.write("revoke", data{"jti": testID})
	p := new(poller)
	p.mustPoll(m)
	m.now = m.now.Add(2 * time.Hour)
	m.periodic()
	m.equal("storage entries", 0, m.storedBuckets())
	p.mustPoll(m)
	m.b = m.newBackend()
	p.mustPoll(m)
}

// TestGuard_RestoredSnapshot checks that after a snapshot was restored, a guard gets the
// whole state, and that the next change is newer than all that it has seen.
func TestGuard_RestoredSnapshot(t *testing.T) {
	t.Parallel()
	for _, change := range []string{"", "/stage", "revoke", "config"} {
		m := configured(t, nil, nil)
		token := m.creds("r", requestID(1), nil)
		m.write("revoke", data{"jti": requestID(1)})
		snapshot := m.storage.dump(t)
		p := new(poller)
		p.mustPoll(m)
		for i := range 5 {
			m.now = m.now.Add(time.Minute)
			m.write("config/rotate", nil)
			m.write("revoke", data{"jti": requestID(2 + i)})
			p.mustPoll(m)
		}
		seen := p.Generation
		for key := range m.storage.dump(t) {
			m.must(m.storage.Storage.Delete(t.Context(), key))
		}
		for key, value := range snapshot {
			m.must(m.storage.Storage.Put(t.Context(), &logical.StorageEntry{Key: key, Value: []byte(value)}))
		}
		m.b = m.newBackend()
		m.equal("since a lost generation", m.guard(nil), m.guard(seen))
		m.now = m.now.Add(time.Minute)
		switch change {
		case "revoke":
			m.write("revoke", data{"jti": requestID(100)})
		case "config":
			m.write("config", data{"accepted_audiences": "x"})
		default:
			d := data{}
			if change == "/stage" {
				d["proxy_url"] = greenProxy
			}
			m.write("config/rotate"+change, d)
		}
		p.mustPoll(m)
		if p.Generation <= seen {
			t.Errorf("%q: generation %d after the restore, %d before", change, p.Generation, seen)
		}
		fresh := new(poller)
		fresh.mustPoll(m)
		for name := range fresh.Revoked {
			if _, ok := p.Revoked[name]; !ok {
				t.Errorf("%q: a guard lacks %s", change, name)
			}
		}
		fresh.Revoked, p.Revoked = nil, nil // it holds more: those that the snapshot lacks
		m.equal("a guard after "+change, fresh, p)
		if change != "" {
			m.checkRevoked("a token of the snapshot", token, "2027-01-15T08:00:00Z")
		}
	}
}

// TestGuard_OldKeyImportedAgain checks that a token stays revoked when its key is replaced
// and imported again.
func TestGuard_OldKeyImportedAgain(t *testing.T) {
	t.Parallel()
	for _, step := range []string{"", "/stage"} {
		m := configured(t, nil, nil)
		token := m.creds("r", requestID(1), nil)
		m.write("revoke", data{"jti": requestID(1)})
		m.write("config/rotate", nil)
		p := new(poller)
		p.mustPoll(m)
		m.equal("revocations after the rotation", 1, len(p.Revoked))
		m.write("config/rotate"+step, data{"secret": testSecret, "proxy_url": greenProxy})
		p.mustPoll(m)
		m.checkRevoked("the token", token, "2027-01-15T08:00:00Z")
		if p.accepts(m, token) {
			t.Errorf("config/rotate%s: a guard accepts a revoked token", step)
		}
	}
}

// convergence is a mount with pollers, and what is known to be revoked on it.
type convergence struct {
	*mount
	random  *rand.Rand
	pollers []*poller
	revoked map[string]revocation.Entry // by requests that succeeded, and what else was seen, until it is not kept
	dropped map[string]bool             // what once was not kept: the engine may have purged it
	leases  []*logical.Secret
	tokens  []string
	ids     int
	secrets []string
	history []string
}

// try makes a request that may be refused or fail, and reports whether it succeeded.
func (c *convergence) try(op logical.Operation, path string, d data) bool {
	c.ids++
	resp, err := c.b.HandleRequest(c.t.Context(), &logical.Request{ID: requestID(c.ids), Operation: op, Path: path, Data: d, Storage: c.storage, MountPoint: "ati/", DisplayName: "token"})
	if err != nil && !errors.Is(err, errStorage) {
		c.t.Fatalf("%s %s %v: %v", op, path, d, err)
	}
	c.history = append(c.history, fmt.Sprintf("%v %s %s %v: %v", c.now.Unix(), op, path, d, err == nil && !resp.IsError()))
	if err != nil || resp.IsError() {
		return false
	}
	if resp != nil && resp.Secret != nil {
		resp.Secret.IssueTime = c.now
		c.leases = append(c.leases, resp.Secret)
	}
	if path == "creds/r" {
		c.tokens = append(c.tokens, resp.Data["token"].(string))
	}
	return true
}

// key returns parameters for a new key: generated, or imported, also repeatedly.
func (c *convergence) key() data {
	d := data{"proxy_url": fmt.Sprintf("https://p%d.example.com", c.random.IntN(4))}
	if c.random.IntN(2) == 0 {
		d["algorithm"], d["secret"] = "HS256", c.secrets[c.random.IntN(len(c.secrets))]
	} else if c.random.IntN(3) == 0 {
		d["algorithm"] = "ES256"
	}
	return d
}

// step changes the mount.
func (c *convergence) step() {
	if c.random.IntN(6) == 0 {
		c.storage.failNth(1+c.random.Int64N(4), c.random.IntN(2) == 0)
		defer c.storage.failNth(0, false)
	}
	name, id := fmt.Sprintf("a%d", c.random.IntN(5)), requestID(c.random.IntN(20))
	revoke := func(name, path string, d data) {
		if c.try(logical.UpdateOperation, path, d) {
			c.revoked[name] = revocation.Entry{}
			delete(c.dropped, name)
		}
	}
	switch n := c.random.IntN(40); {
	case n < 5:
		revoke("jti:"+id, "revoke", data{"jti": id})
	case n < 8:
		revoke("agent_id:"+name, "revoke", data{"agent_id": name})
	case n < 10:
		revoke("agent_id:"+name, "revoke/r", data{"agent_id": name})
	case n < 14:
		c.try(logical.ReadOperation, "creds/r", data{"agent_id": name})
	case n < 16 && len(c.tokens) > 0:
		c.try(logical.UpdateOperation, "revoke", data{"token": c.tokens[c.random.IntN(len(c.tokens))]})
	case n < 18 && len(c.leases) > 0:
		err := c.revokeLease(c.leases[c.random.IntN(len(c.leases))])
		c.history = append(c.history, fmt.Sprint("lease: ", err))
	case n < 20:
		c.try(logical.UpdateOperation, "config/rotate", c.key())
	case n < 22:
		c.try(logical.UpdateOperation, "config/rotate/stage", c.key())
	case n < 26:
		step := []string{"activate", "rollback", "retire", "activate", "retire"}[c.random.IntN(5)]
		c.try(logical.UpdateOperation, "config/rotate/"+step, nil)
	case n < 27:
		c.try(logical.DeleteOperation, "config/rotate/stage", nil)
	case n < 28:
		c.try(logical.UpdateOperation, "config", data{"issuer": name, "accepted_audiences": name, "guarded": c.random.IntN(4) > 0})
	case n < 29:
		c.try(logical.UpdateOperation, "roles/r", data{"max_ttl": 600 * (1 + c.random.IntN(9))})
	case n < 30:
		c.try(logical.DeleteOperation, "config", nil)
	case n < 32:
		if resp, err := c.mount.request(logical.ReadOperation, "config", nil); err == nil && resp == nil {
			d := c.key()
			c.try(logical.CreateOperation, "config", merge(data{"guarded": true}, d))
		}
	case n < 35:
		c.periodicMayFail()
	case n < 36:
		c.history = append(c.history, "restart")
		c.b = c.newBackend()
		c.step() // with empty caches
	case n < 39:
		c.now = c.now.Add(time.Duration(1+c.random.IntN(900)) * time.Second)
	default:
		c.now = c.now.Add(2 * time.Hour)
	}
}

func (c *convergence) periodicMayFail() {
	_, err := c.request(logical.RollbackOperation, "", nil)
	if err != nil && !errors.Is(err, errStorage) {
		c.t.Fatal(err)
	}
	c.history = append(c.history, fmt.Sprint("purge: ", err))
}

// check compares what is revoked with what a guard gets that has nothing.
func (c *convergence) check() {
	c.t.Helper()
	fresh := new(poller)
	fresh.mustPoll(c.mount)
	for name, e := range c.revoked {
		got, ok := fresh.Revoked[name]
		switch {
		case e == (revocation.Entry{}): // new
			if !ok && len(fresh.Keys) > 0 {
				c.fail("%s was revoked, and a guard does not get it", name)
			}
			c.revoked[name] = got
		case len(fresh.Keys) == 0: // no config
		case !e.Keep(fresh.live(), c.now.Unix()):
			delete(c.revoked, name)
			c.dropped[name] = true
		case !ok || got.RevokedAt < e.RevokedAt || got.ExpiresAt < e.ExpiresAt:
			c.fail("%s was revoked as %+v, and a guard gets %+v", name, e, got)
		}
	}
	maps.Copy(c.revoked, fresh.Revoked)
}

func (c *convergence) fail(format string, args ...any) {
	c.t.Helper()
	c.t.Fatalf(format+"\nafter\n%s", append(args, strings.Join(c.history[max(0, len(c.history)-60):], "\n"))...)
}

// poll lets a poller poll, and compares it with one that had nothing.
func (c *convergence) poll(p *poller) {
	c.t.Helper()
	held := maps.Clone(p.Revoked)
	if err := p.poll(c.mount, c.now); err != nil {
		c.fail("%v", err)
	}
	fresh := new(poller)
	fresh.mustPoll(c.mount)
	// It may hold more: what the engine had purged before a key was imported again.
	for name, e := range held {
		if _, ok := fresh.Revoked[name]; !ok && p.Revoked[name] == e {
			delete(p.Revoked, name)
			if !c.dropped[name] {
				c.fail("a guard holds %s, and the mount does not", name)
			}
		}
	}
	if diff := cmp.Diff(fresh, p); diff != "" {
		c.fail("a guard does not hold what the mount has (-mount +guard):\n%s", diff)
	}
}

// TestGuard_PollersConverge makes random changes, with restarts and failing storage,
// followed by pollers that join late, miss polls, and restart. After each poll a poller
// must hold what one holds that has just joined: all live revocations and keys.
func TestGuard_PollersConverge(t *testing.T) {
	t.Parallel()
	for seed := range uint64(rounds(100, 5_000)) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			c := &convergence{
				mount: newMount(t), random: rand.New(rand.NewPCG(seed, 0)), revoked: map[string]revocation.Entry{}, dropped: map[string]bool{},
				secrets: []string{testSecret, greenSecret, strings.Repeat("0123456789abcdef", 4)}, ids: 1000,
			}
			c.ok(logical.CreateOperation, "config", merge(data{"guarded": true}, c.key()))
			c.ok(logical.CreateOperation, "roles/r", data{"tools": "web_search", "allowed_agent_ids": "*", "generate_lease": true, "ttl": "5m", "max_ttl": "10m"})
			for range 120 {
				c.step()
				c.check()
				if c.random.IntN(30) == 0 {
					c.pollers = append(c.pollers, new(poller)) // joins late
				}
				for _, p := range c.pollers {
					switch c.random.IntN(12) {
					case 0:
						*p = poller{} // restarts
					case 1, 2, 3:
						c.poll(p)
					}
				}
			}
			for _, p := range append(c.pollers, new(poller)) {
				c.poll(p)
			}
		})
	}
}

// TestGuard_ConcurrentWriters checks that pollers hold the whole state in the end, and no
// response mixes two moments, while there are several writers.
func TestGuard_ConcurrentWriters(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	var clock atomic.Int64
	clock.Store(m.now.UnixNano())
	now := func() time.Time { return time.Unix(0, clock.Load()) }
	m.useClock(now)
	m.b.SetSleep(func(d time.Duration) { clock.Add(int64(d)) })
	m.ok(logical.CreateOperation, "config", data{"proxy_url": testProxy, "guarded": true})
	m.ok(logical.CreateOperation, "roles/r", data{"tools": "web_search", "allowed_agent_ids": "*", "max_ttl": "2h"})
	m.system.ReplicationStateVal = primary
	times := rounds(100, 2000)
	var writers, pollers sync.WaitGroup
	var done atomic.Bool
	request := func(op logical.Operation, path string, d data) {
		if _, err := m.request(op, path, d); err != nil {
			t.Errorf("%s %s: %v", op, path, err)
		}
	}
	write := func(f func(i int)) {
		writers.Go(func() {
			for i := range times {
				f(i)
			}
		})
	}
	write(func(i int) { // a revocation, and then its number
		request(logical.UpdateOperation, "revoke", data{"jti": requestID(i)})
		request(logical.UpdateOperation, "config", data{"issuer": fmt.Sprint(i)})
	})
	write(func(i int) { request(logical.UpdateOperation, "revoke", data{"jti": requestID(1_000_000 + i%7)}) })
	write(func(i int) { request(logical.UpdateOperation, "revoke/r", data{"agent_id": fmt.Sprintf("a%d", i%9)}) })
	write(func(i int) {
		step := []string{"stage", "activate", "rollback", "retire"}[i%4] // version 1 stays live
		d := data{}
		if step == "stage" {
			d["proxy_url"] = fmt.Sprintf("https://p%d.example.com", i)
		}
		request(logical.UpdateOperation, "config/rotate/"+step, d)
	})
	write(func(i int) {
		request(logical.RollbackOperation, "", nil)
		m.b.InvalidateKey(t.Context(), []string{"config", "revoked/000"}[i%2])
	})
	polled := make([]*poller, 4)
	for i := range polled {
		p := new(poller)
		polled[i] = p
		pollers.Go(func() {
			for round := 0; !done.Load(); round++ {
				if i == 1 && round%5 == 0 {
					*p = poller{} // restarts
				}
				if err := p.poll(m, now()); err != nil {
					t.Error(err)
					return
				}
				if number, ok := numbered(p); ok {
					for n := range number + 1 {
						if _, ok := p.Revoked["jti:"+requestID(n)]; !ok {
							t.Errorf("a guard holds config %d without revocation %d", number, n)
							return
						}
					}
					if _, ok := p.Revoked["jti:"+requestID(number+2)]; ok {
						t.Errorf("a guard holds config %d with revocation %d", number, number+2)
						return
					}
				}
			}
		})
	}
	writers.Wait()
	done.Store(true)
	pollers.Wait()
	fresh := new(poller)
	for i, p := range append([]*poller{fresh}, polled...) {
		if err := p.poll(m, now()); err != nil {
			t.Fatal(err)
		}
		m.equal(fmt.Sprintf("poller %d", i), fresh, p)
	}
	want := times + min(times, 7) + min(times, 9)
	m.equal("revocations", want, len(fresh.Revoked))
	m.equal("revocations that are listed", want, len(slices.Compact(m.revokedNames())))
}

// numbered returns the number of the config that a poller holds.
func numbered(p *poller) (n int, ok bool) {
	_, err := fmt.Sscan(p.Issuer, &n)
	return n, err == nil
}

// TestGuarded_Warnings checks what guarded=true changes in the warnings of other paths.
func TestGuarded_Warnings(t *testing.T) {
	t.Parallel()
	const old = "a proxy that is started with this environment accepts revoked tokens."
	m := newMount(t)
	m.warnings(m.ok(logical.CreateOperation, "config", data{"proxy_url": testProxy, "guarded": true}))
	m.warnings(m.ok(logical.CreateOperation, "roles/r", data{"tools": "web_search", "generate_lease": true}))
	m.warnings(m.ok(logical.ReadOperation, "proxy-env", nil), "This mount has guarded=true, but "+old)
	m.warnings(m.ok(logical.ReadOperation, "proxy-env/1", nil), "This mount has guarded=true, but "+old)
	m.step("/stage", nil)
	m.step("/activate", nil)
	m.step("/stage", data{"secret": greenSecret})
	m.step("/activate", nil, "Key version 1 was deleted. Guards reject its tokens, some of which would have expired by 2027-01-15T09:01:01Z.")
	m.step("/rollback", nil)
	m.step("/retire", nil)
	m.step("", nil, "From their next poll on, guards reject tokens signed before version 4. Tokens issued by this mount before the rotation expire by 2027-01-15T09:01:01Z.")
	m.warnings(m.ok(logical.DeleteOperation, "config", nil), "The key was deleted. Guards reject every request until the mount has a config again.")

	m = generated(t, nil, nil)
	m.warnings(m.ok(logical.ReadOperation, "proxy-env", nil))
	m.warnings(m.write("roles/r", data{"generate_lease": true}), "Revoking a lease does not invalidate the token, which remains valid until it expires.")
	m.warnings(m.ok(logical.PatchOperation, "config", data{"guarded": true}))
	m.warnings(m.write("roles/r", data{"description": "x"}))
}
