package atisecrets_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/helper/consts"
	"github.com/hashicorp/vault/sdk/helper/testhelpers/schema"
	"github.com/hashicorp/vault/sdk/logical"

	atisecrets "vault-plugin-secrets-ati"
	"vault-plugin-secrets-ati/ati"
)

const (
	testSecret = "efca767f4799094360a8673bdab2a37e6c6f89662ae447b51e47d2593facc112"
	testProxy  = "https://ati.example.com"
	testID     = "5b1a9a1e-6f3f-7e4e-2a55-0c8f7f3f9d10" // the ID of a request, and so the jti
)

const (
	greenSecret = "0f1e2d3c4b5a69788796a5b4c3d2e1f0a1b2c3d4e5f60718293a4b5c6d7e8f90"
	greenProxy  = "https://green.example.com"

	greenFingerprint = "55f60e7f9fffc5cc"
)

const testEntity = "a3f5d7c1-0b6d-4d52-9a5b-2f5c1f0e9d11"

// testFingerprint is the first 16 hexadecimal digits of: printf 'ati key fingerprint'
// | openssl dgst -sha256 -mac HMAC -macopt hexkey:<testSecret>
const testFingerprint = "605611d75fa41291"

const (
	patternForm      = `scope pattern must begin with a letter, digit, or _ and contain only letters, digits, and _.:/@+~%()#- (1 to 255 characters, plus an optional "*" at the end)`
	skillForm        = `skill name must begin with a letter, digit, or _ and contain only letters, digits, and _.:/@+- (1 to 128 characters, plus an optional "*" at the end)`
	rateFormText     = `must be a count from 0 to 999999999, "/", and a unit (s, sec, second, m, min, minute, h, hr, hour, d, or day), as in "10/hour"`
	durationFormText = `must be a non-negative duration in whole seconds, such as "90s", "1h", or 3600, and less than 292 years`
	idFormText       = `must be 1 to 128 characters, start with a letter or digit, contain only letters, digits, and ._:@/+=-, and not contain ".."`
	globFormText     = "must be 1 to 128 characters and contain only letters, digits, and ._:@/+=-*"
	audienceFormText = "must be 1 to 128 characters, start with a letter or digit, and contain only letters, digits, and ._:/@-"
	urlFormText      = "must have at most 2048 characters, all of them letters, digits, or ._~:/%+=,;!()[]-"
	oneItemText      = "contains a comma, but each value of a JSON array, or of a parameter that is given more than once, is one item"
	repeatedText     = "; if the parameter was given more than once, give it once"
	hostFormText     = "invalid host or port; the host must be a DNS name or an IP address, the port 1 to 65535"
	starMiddle       = `"*" is allowed only at the end of a pattern`
	starColon        = `a pattern that ends in "*" must contain a colon, as in "tool:github:*", or be exactly "*"`
	noValue          = `not a supported identity value; see "Templated policies" in the Vault documentation`
	literalText      = "text outside {{…}} may contain only letters, digits, and ._:@/+=-"
)

const (
	emptyTokenText   = "token is empty; check that the variable or file is set"
	emptySecretText  = "secret is empty; check that the variable or file is set, or omit secret to have Vault generate one"
	secretLengthText = `secret must be 64 hexadecimal characters (32 bytes), got %d; for example, use "openssl rand -hex 32"`
	rotateHint       = "cannot be changed here; use config/rotate to replace the key immediately, or config/rotate/stage to rotate without downtime"
	rotatedSinceText = "not signed by any key of this mount (key last rotated at %s; a proxy that has not restarted since may still accept it)"
)

const (
	generatedWarning = "Vault generated a new signing key. Configure the proxy with the values from ati/proxy-env and restart it; until then it rejects tokens from this mount."
	importedWarning  = "Key version 1 was imported, so copies may exist outside Vault. Anyone with a copy can mint tokens for its proxy until you stop that proxy."
	pinnedWarning    = "Proxies pinned to ati/proxy-env/<version> do not pick up the new key. Restart them with ati/proxy-env."
	stageWarning     = "Proxies that start with ati/proxy-env use version 2 after it is activated. To keep a proxy on version 1, pin it to ati/proxy-env/1 before you activate."
	rotatedWarning   = "Restart every proxy now. Until a proxy restarts with the key from ati/proxy-env, it rejects tokens signed with version %d and accepts tokens signed with its old key. Tokens issued by this mount before the rotation expire by %s."
)

// roleNotFound returns the error of a request for a role that does not exist.
func roleNotFound(name string) string {
	return fmt.Sprintf("role %q does not exist; to list the roles, run: vault list ati/roles", name)
}

type data = map[string]any

// mount is a backend with its storage, a clock, and a fake of the Vault around it.
type mount struct {
	t       testing.TB
	b       *atisecrets.Backend
	storage *testStorage
	system  *testSystem
	log     *strings.Builder
	now     time.Time

	// The caller of the requests.
	entityID, displayName string
}

func newMount(t testing.TB) *mount {
	t.Helper()
	m := &mount{
		t:           t,
		storage:     &testStorage{Storage: new(logical.InmemStorage)},
		system:      &testSystem{StaticSystemView: logical.StaticSystemView{ReplicationStateVal: consts.ReplicationPerformanceDisabled, DefaultLeaseTTLVal: 24 * time.Hour, MaxLeaseTTLVal: 768 * time.Hour, PluginEnvironment: &logical.PluginEnvironment{VaultVersion: "1.21.0"}}},
		log:         new(strings.Builder),
		now:         time.Unix(1_800_000_000, 0),
		displayName: "token",
	}
	m.b = m.newBackend()
	return m
}

const standbyMintingWarning = "With allow_standby_minting, a standby that has missed a change still mints tokens by the old key, role, or limits, so previous_tokens_expire_by no longer applies to all tokens."

// setState sets the state of the node, and makes the backend look it up.
func (m *mount) setState(state consts.ReplicationState, localMount bool) {
	m.system.ReplicationStateVal, m.system.LocalMountVal = state, localMount
	m.now = m.now.Add(5 * time.Second)
}

// newBackend returns another backend for the same mount, as after a restart of the
// plugin: its caches are empty.
func (m *mount) newBackend() *atisecrets.Backend {
	m.t.Helper()
	b, err := atisecrets.NewWithClock(m.t.Context(), &logical.BackendConfig{
		Logger:      hclog.New(&hclog.LoggerOptions{Output: m.log, Level: hclog.Trace}),
		System:      m.system,
		StorageView: m.storage,
	}, func() time.Time { return m.now })
	if err != nil {
		m.t.Fatal(err)
	}
	b.SetSleep(func(d time.Duration) { m.now = m.now.Add(d) })
	return b
}

// otherNode returns the same mount on another node of the cluster, which shares the
// storage but not the caches.
func (m *mount) otherNode() *mount {
	m.t.Helper()
	other := *m
	other.system = &testSystem{StaticSystemView: m.system.StaticSystemView}
	other.b = other.newBackend()
	return &other
}

// configured returns a mount with a config and a role "r", which have these fields in
// addition to their defaults.
func configured(t testing.TB, config, role data) *mount {
	t.Helper()
	m := newMount(t)
	m.ok(logical.CreateOperation, "config", merge(data{"proxy_url": testProxy, "secret": testSecret}, config))
	m.ok(logical.CreateOperation, "roles/r", merge(data{"tools": "web_search"}, role))
	return m
}

func (m *mount) request(op logical.Operation, path string, d data) (*logical.Response, error) {
	return m.b.HandleRequest(m.t.Context(), &logical.Request{
		ID: testID, Operation: op, Path: path, Data: d, Storage: m.storage, MountPoint: "ati/",
		EntityID: m.entityID, DisplayName: m.displayName,
	})
}

// ok makes a request that must succeed, and checks the response against the path's
// declaration.
func (m *mount) ok(op logical.Operation, path string, d data) *logical.Response {
	m.t.Helper()
	resp, err := m.request(op, path, d)
	if err != nil || resp.IsError() {
		m.t.Fatalf("%s %s %v: %v %v", op, path, d, err, resp.Error())
	}
	if t, ok := m.t.(*testing.T); ok && resp != nil { // nil becomes Vault's 204 or 404
		schema.ValidateResponse(t, schema.GetResponseSchema(t, m.b.Route(path), op), decodeRawBody(t, resp), true)
	}
	return resp
}

// refused makes a request that must be refused as the caller's mistake, with exactly
// this text, and must not change storage.
func (m *mount) refused(op logical.Operation, path string, d data, want string) {
	m.t.Helper()
	before := m.storage.dump(m.t)
	resp, err := m.request(op, path, d)
	if err != nil {
		m.t.Fatalf("%s %s %v failed and was not refused: %v", op, path, d, err)
	}
	if !resp.IsError() {
		m.t.Fatalf("%s %s %v was not refused: %v", op, path, d, resp)
	}
	if got := resp.Error().Error(); got != want {
		m.t.Errorf("%s %s %v:\n got %s\nwant %s", op, path, d, got, want)
	}
	if diff := cmp.Diff(before, m.storage.dump(m.t)); diff != "" {
		m.t.Errorf("%s %s was refused, but changed storage:\n%s", op, path, diff)
	}
}

func (m *mount) failed(op logical.Operation, path string, d data, want string) {
	m.t.Helper()
	resp, err := m.request(op, path, d)
	if err == nil {
		m.t.Fatalf("%s %s did not fail: %v", op, path, resp)
	}
	if err.Error() != want {
		m.t.Errorf("%s %s:\n got %v\nwant %s", op, path, err, want)
	}
}

// try makes a request that may be refused, but must not fail. It returns nil if the
// request is refused, and checks that storage has not changed.
func (m *mount) try(op logical.Operation, path string, d data) *logical.Response {
	m.t.Helper()
	before := m.storage.dump(m.t)
	resp, err := m.request(op, path, d)
	if err != nil {
		m.t.Fatalf("%s %s %v: %v", op, path, d, err)
	}
	if resp.IsError() {
		if diff := cmp.Diff(before, m.storage.dump(m.t)); diff != "" {
			m.t.Errorf("%s %s was refused, but changed storage:\n%s", op, path, diff)
		}
		return nil
	}
	if resp == nil { // stored
		return new(logical.Response)
	}
	return resp
}

// put stores an entry, such as one of an older version.
func (m *mount) put(path string, value any) {
	m.t.Helper()
	entry, err := logical.StorageEntryJSON(path, value)
	if err != nil {
		m.t.Fatal(err)
	}
	if err := m.storage.Put(m.t.Context(), entry); err != nil {
		m.t.Fatal(err)
	}
}

// do makes a request without the checks of ok, for measurements.
func (m *mount) do(b testing.TB, op logical.Operation, path string, d data) {
	resp, err := m.request(op, path, d)
	if err != nil || resp.IsError() {
		b.Fatal(err, resp.Error())
	}
}

func (m *mount) mint(b *testing.B, path string, d data) {
	m.do(b, logical.ReadOperation, path, d)
}

// write makes an update that must succeed.
func (m *mount) write(path string, d data) *logical.Response {
	m.t.Helper()
	return m.ok(logical.UpdateOperation, path, d)
}

// periodic runs the function that Vault calls about every minute.
func (m *mount) periodic() {
	m.t.Helper()
	m.ok(logical.RollbackOperation, "", nil)
}

// responseFields returns the fields that an operation declares to return.
func (m *mount) responseFields(op logical.Operation, path string) map[string]*framework.FieldSchema {
	return m.b.Route(path).Operations[op].Properties().Responses[200][0].Fields
}

func (m *mount) warnings(resp *logical.Response, want ...string) {
	m.t.Helper()
	var got []string
	if resp != nil {
		got = resp.Warnings
	}
	if diff := cmp.Diff(want, got, cmp.Transformer("empty", func(s []string) []string { return append([]string{}, s...) })); diff != "" {
		m.t.Errorf("warnings (-want +got):\n%s", diff)
	}
}

func (m *mount) equal(what string, want, got any) {
	m.t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		m.t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

// checkDeclared checks a response against the path's declaration.
func (m *mount) checkDeclared(t *testing.T, req *logical.Request, resp *logical.Response) {
	t.Helper()
	want := schema.GetResponseSchema(t, m.b.Route(req.Path), req.Operation)
	if req.Path == "inspect" { // an unverified claim may have any type
		fields := map[string]*framework.FieldSchema{}
		for name, field := range want.Fields {
			any := *field
			any.Type = framework.TypeString
			fields[name] = &any
		}
		texts := data{}
		for name := range resp.Data {
			texts[name] = "x"
		}
		want, resp = &framework.Response{Fields: fields}, &logical.Response{Data: texts}
	}
	schema.ValidateResponse(t, want, decodeRawBody(t, resp), true)
}

// decodeRawBody returns a response as the client sees it if it has a raw body.
func decodeRawBody(t testing.TB, resp *logical.Response) *logical.Response {
	t.Helper()
	body, raw := resp.Data[logical.HTTPRawBody].([]byte)
	if !raw {
		return resp
	}
	seen := data{}
	if err := json.Unmarshal(body, &seen); err != nil {
		t.Fatal(err)
	}
	return &logical.Response{Data: seen}
}

// useEntity makes the requests come from an entity.
func (m *mount) useEntity(e *logical.Entity, groups ...*logical.Group) {
	m.entityID = testEntity
	if e == nil {
		e = new(logical.Entity)
	}
	e.ID = testEntity
	m.system.EntityVal, m.system.GroupsVal = e, groups
}

// useClock gives the mount a backend with another clock.
func (m *mount) useClock(clock func() time.Time) {
	m.t.Helper()
	b, err := atisecrets.NewWithClock(m.t.Context(), &logical.BackendConfig{Logger: hclog.NewNullLogger(), System: m.system, StorageView: m.storage}, clock)
	if err != nil {
		m.t.Fatal(err)
	}
	m.b = b
}

// breakRandom gives the mount a backend without a source of randomness.
func (m *mount) breakRandom() {
	m.t.Helper()
	m.b = m.newBackend()
	if err := m.b.Setup(m.t.Context(), &logical.BackendConfig{System: brokenRandom{m.system}}); err != nil {
		m.t.Fatal(err)
	}
}

// loadStorage fills storage with the entries that testdata has of a storage version.
func (m *mount) loadStorage(version string) {
	m.t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", "storage", version+".json"))
	if err != nil {
		m.t.Fatal(err)
	}
	var entries map[string]json.RawMessage
	if err := json.Unmarshal(b, &entries); err != nil {
		m.t.Fatal(err)
	}
	for key, value := range entries {
		// The engine stores entries without white space.
		var compact strings.Builder
		enc := json.NewEncoder(&compact)
		enc.SetEscapeHTML(false)
		if err := enc.Encode(value); err != nil {
			m.t.Fatal(err)
		}
		if err := m.storage.Storage.Put(m.t.Context(), &logical.StorageEntry{Key: key, Value: []byte(strings.TrimSpace(compact.String()))}); err != nil {
			m.t.Fatal(err)
		}
	}
	m.now = m.now.Add(time.Hour)
}

// damage changes the stored config, and restarts the backend.
func (m *mount) damage(before, after string) {
	m.t.Helper()
	m.replaceStored("config", before, after)
	m.b = m.newBackend()
}

// replaceStored changes a storage entry without the backend's knowledge.
func (m *mount) replaceStored(key, before, after string) {
	m.t.Helper()
	entry, err := m.storage.Storage.Get(m.t.Context(), key)
	if err != nil {
		m.t.Fatal(err)
	}
	if !strings.Contains(string(entry.Value), before) {
		m.t.Fatalf("%s has no %s", key, before)
	}
	entry.Value = []byte(strings.Replace(string(entry.Value), before, after, 1))
	if err := m.storage.Storage.Put(m.t.Context(), entry); err != nil {
		m.t.Fatal(err)
	}
}

// duringRead runs the second request while the first one has read a key from storage
// and has not used it yet. If a lock separates the two, the second one waits for the
// first.
func (m *mount) duringRead(key string, first, second func()) {
	m.t.Helper()
	read, done := make(chan struct{}), make(chan struct{})
	var fired atomic.Bool // a sync.Once would make the second request's read wait
	hook := func(k string) {
		if k != key || !fired.CompareAndSwap(false, true) {
			return
		}
		close(read)
		select {
		case <-done: // without a lock, the second request has overtaken the first
		case <-time.After(100 * time.Millisecond):
		}
	}
	m.storage.afterGet.Store(&hook)
	var wg sync.WaitGroup
	wg.Go(first)
	<-read
	second()
	close(done)
	wg.Wait()
	m.storage.afterGet.Store(nil)
}

// step makes a write below config/rotate, and checks that its response is what a read
// returns then.
func (m *mount) step(step string, d data, warnings ...string) data {
	m.t.Helper()
	resp := m.write("config/rotate"+step, d)
	m.warnings(resp, warnings...)
	if diff := cmp.Diff(m.ok(logical.ReadOperation, "config/rotate", nil).Data, resp.Data); diff != "" {
		m.t.Errorf("config/rotate%s returned something other than a read (-read +write):\n%s", step, diff)
	}
	return resp.Data
}

// activateGreen stages version 2 of the key for the green proxy, and activates it.
func (m *mount) activateGreen() {
	m.t.Helper()
	m.step("/stage", data{"proxy_url": greenProxy}, stageWarning)
	m.step("/activate", nil)
}

// tokenFor mints a token for a proxy, and returns it with the version of its key.
func (m *mount) tokenFor(proxy string) (token string, version int) {
	m.t.Helper()
	var d data
	if proxy != "" {
		d = data{"proxy_url": proxy}
	}
	resp := m.ok(logical.UpdateOperation, "creds/r", d)
	if proxy != "" && resp.Data["proxy_url"] != proxy {
		m.t.Errorf("a token for %s has proxy_url %v", proxy, resp.Data["proxy_url"])
	}
	return resp.Data["token"].(string), resp.Data["key_version"].(int)
}

// verdict validates a token, and returns the version of its key, or why it is not
// valid.
func (m *mount) verdict(token string) any {
	m.t.Helper()
	got := m.write("validate", data{"token": token}).Data
	if got["valid"] == true {
		return got["key_version"]
	}
	return got["error"]
}

// checkTokensExpireBy activates version 2, and checks when the tokens of version 1
// expire after it is retired.
func (m *mount) checkTokensExpireBy(want string) {
	m.t.Helper()
	m.activateGreen()
	token := m.ok(logical.ReadOperation, "creds/r", data{"proxy_url": testProxy}).Data["token"]
	if got := m.write("config/rotate/retire", nil).Data["previous_tokens_expire_by"]; got != want {
		m.t.Errorf("tokens expire by %v, want %s", got, want)
	}
	if got := m.ok(logical.UpdateOperation, "validate", data{"token": token}).Data; got["valid"] != true || got["key_version"] != 1 {
		m.t.Errorf("after the retirement, validate returns %v", got)
	}
	m.write("config/rotate/rollback", nil)
}

// claims validates the token of a response as the proxy and its clients do, and
// returns its claims.
func (m *mount) claims(resp *logical.Response) *ati.Claims {
	m.t.Helper()
	return m.claimsOf(resp.Data["token"].(string), resp.Data["aud"].(string))
}

func (m *mount) claimsOf(token, audience string) *ati.Claims {
	m.t.Helper()
	key, err := ati.ParseSecret(testSecret)
	if err != nil {
		m.t.Fatal(err)
	}
	c, err := ati.ValidateToken(token, key, ati.WithAudience(audience), ati.WithTime(func() time.Time { return m.now }))
	if err != nil {
		m.t.Fatal(err)
	}
	return c
}

// roleSizeWarning returns the warning about the token size of a role that is just
// large enough to cause one.
func (m *mount) roleSizeWarning(d data) string {
	m.t.Helper()
	items := []any{"web_search"}
	for i := range 14 {
		items = append(items, fmt.Sprintf("p:%0198d", i))
	}
	resp := m.ok(logical.CreateOperation, "roles/size", merge(data{"tools": items}, d))
	m.ok(logical.DeleteOperation, "roles/size", nil)
	return resp.Warnings[len(resp.Warnings)-1]
}

// readAll returns everything that a mount returns about its config, keys, and roles.
func (m *mount) readAll() data {
	m.t.Helper()
	all := data{}
	for _, path := range []string{"config", "config/rotate", "roles/r", "roles/new", "revoked/"} {
		if resp := m.ok(logical.ReadOperation, path, nil); resp != nil {
			all[path] = resp.Data
		}
	}
	return all
}

// isStateAfter reports whether a state is what a request results in, which it tries on
// another mount with the same history. The two differ in the keys that are generated.
func (m *mount) isStateAfter(op logical.Operation, path string, d data, prepare func(*mount), state data) bool {
	m.t.Helper()
	other := configured(m.t, nil, data{"allowed_agent_ids": "*"})
	if prepare != nil {
		prepare(other)
	}
	if _, err := other.request(op, path, d); err != nil {
		m.t.Fatal(err)
	}
	generated := cmp.FilterPath(func(p cmp.Path) bool {
		return strings.Contains(p.Last().String(), "fingerprint")
	}, cmp.Ignore())
	return cmp.Equal(other.readAll(), state, generated)
}

// testStorage counts the calls to it, and fails or waits where a test sets that up.
type testStorage struct {
	logical.Storage
	calls    atomic.Int64
	mu       sync.Mutex
	fail     string // the verb and key of the calls that fail, such as "put config"
	failCall int64  // the number of the call that fails, from 1
	failed   string // the verb and key of the last call that failed
	late     bool   // whether a write that fails is carried out all the same
	order    []string
	oneRole  bool // whether each role reads as role r

	afterGet atomic.Pointer[func(key string)]
	held     *heldWrite // nil: writes are carried out immediately
}

var errStorage = errors.New("disk on fire")

func (s *testStorage) do(ctx context.Context, verb, key string, carryOut func(context.Context) error) error {
	call := s.calls.Add(1)
	writes := verb == "put" || verb == "delete"
	s.mu.Lock()
	if verb == "put" {
		s.order = append(s.order, key)
	}
	fails := s.fail == verb+" "+key || call == s.failCall
	if fails {
		s.failed = verb + " " + key
	}
	s.mu.Unlock()
	switch {
	case fails && writes && s.late:
		return errors.Join(carryOut(ctx), errStorage)
	case fails:
		return errStorage
	case writes && s.held != nil:
		return s.held.do(ctx, carryOut)
	}
	return carryOut(ctx)
}

// failNth makes the n-th call from now on fail.
func (s *testStorage) failNth(n int64, late bool) {
	s.calls.Store(0)
	s.failCall, s.late = n, late
}

func (s *testStorage) Get(ctx context.Context, key string) (entry *logical.StorageEntry, err error) {
	if s.oneRole && strings.HasPrefix(key, "role/") {
		key = "role/r"
	}
	err = s.do(ctx, "get", key, func(ctx context.Context) (err error) {
		entry, err = s.Storage.Get(ctx, key)
		if f := s.afterGet.Load(); f != nil {
			(*f)(key)
		}
		return err
	})
	return entry, err
}

func (s *testStorage) Put(ctx context.Context, e *logical.StorageEntry) error {
	return s.do(ctx, "put", e.Key, func(ctx context.Context) error { return s.Storage.Put(ctx, e) })
}

func (s *testStorage) Delete(ctx context.Context, key string) error {
	return s.do(ctx, "delete", key, func(ctx context.Context) error { return s.Storage.Delete(ctx, key) })
}

func (s *testStorage) List(ctx context.Context, prefix string) (keys []string, err error) {
	err = s.do(ctx, "list", prefix, func(ctx context.Context) (err error) {
		keys, err = s.Storage.List(ctx, prefix)
		return err
	})
	return keys, err
}

// A heldWrite is a write that waits until it is released. As in Vault's storage, a
// write that has begun is carried out even if its request is canceled.
type heldWrite struct {
	begun, released, done chan struct{}
}

func newHeldWrite() *heldWrite {
	return &heldWrite{make(chan struct{}), make(chan struct{}), make(chan struct{})}
}

func (h *heldWrite) do(ctx context.Context, carryOut func(context.Context) error) error {
	close(h.begun)
	result := make(chan error, 1)
	go func() {
		defer close(h.done)
		<-h.released
		result <- carryOut(context.WithoutCancel(ctx))
	}()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case err := <-result:
		return err
	}
}

// dump returns all entries. It is not counted, and does not fail.
func (s *testStorage) dump(t testing.TB) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := logical.ScanView(t.Context(), s.Storage.(logical.ClearableView), func(key string) {
		e, err := s.Storage.Get(t.Context(), key)
		if err != nil {
			t.Fatal(err)
		}
		all[key] = string(e.Value)
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// testSystem counts the calls that are round trips to Vault for a plugin.
type testSystem struct {
	logical.StaticSystemView
	stateCalls, maxTTLCalls, entityCalls, groupCalls atomic.Int64
	entityErr, groupErr                              error
	onEntity                                         func()
}

func (s *testSystem) ReplicationState() consts.ReplicationState {
	s.stateCalls.Add(1)
	return s.StaticSystemView.ReplicationState()
}

func (s *testSystem) MaxLeaseTTL() time.Duration {
	s.maxTTLCalls.Add(1)
	return s.StaticSystemView.MaxLeaseTTL()
}

func (s *testSystem) EntityInfo(id string) (*logical.Entity, error) {
	s.entityCalls.Add(1)
	if s.onEntity != nil {
		s.onEntity()
	}
	if s.entityErr != nil {
		return nil, s.entityErr
	}
	return s.StaticSystemView.EntityInfo(id)
}

func (s *testSystem) GroupsForEntity(id string) ([]*logical.Group, error) {
	s.groupCalls.Add(1)
	if s.groupErr != nil {
		return nil, s.groupErr
	}
	return s.StaticSystemView.GroupsForEntity(id)
}

type brokenRandom struct{ *testSystem }

func (brokenRandom) GetRandom(int) ([]byte, error) { return nil, io.ErrUnexpectedEOF }

// paths lists the backend's paths as requests name them, with their operations.
var paths = map[string][]logical.Operation{
	"config":                 {logical.CreateOperation, logical.ReadOperation, logical.UpdateOperation, logical.PatchOperation, logical.DeleteOperation},
	"config/rotate":          {logical.ReadOperation, logical.UpdateOperation},
	"config/rotate/stage":    {logical.UpdateOperation, logical.DeleteOperation},
	"config/rotate/activate": {logical.UpdateOperation},
	"config/rotate/rollback": {logical.UpdateOperation},
	"config/rotate/retire":   {logical.UpdateOperation},
	"jwks":                   {logical.ReadOperation},
	"roles/":                 {logical.ListOperation},
	"roles/r":                {logical.CreateOperation, logical.ReadOperation, logical.UpdateOperation, logical.PatchOperation, logical.DeleteOperation},
	"creds/r":                {logical.ReadOperation, logical.UpdateOperation},
	"batch/r":                {logical.UpdateOperation},
	"proxy-env":              {logical.ReadOperation},
	"proxy-env/1":            {logical.ReadOperation},
	"check/r":                {logical.ReadOperation, logical.UpdateOperation},
	"validate":               {logical.UpdateOperation},
	"inspect":                {logical.UpdateOperation},
	"revoke":                 {logical.UpdateOperation},
	"revoke/r":               {logical.UpdateOperation},
	"revoked/":               {logical.ListOperation, logical.ReadOperation},
	"guard":                  {logical.ReadOperation},
}

// keyPair is a P-256 key in the forms of its owner and of the public.
type keyPair struct {
	key                              *ecdsa.PrivateKey
	sec1, pkcs8, public, fingerprint string
}

func newPair(t testing.TB) keyPair {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	sec1, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	public, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(public)
	encode := func(kind string, der []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
	}
	return keyPair{key, encode("EC PRIVATE KEY", sec1), encode("PRIVATE KEY", pkcs8), encode("PUBLIC KEY", public), hex.EncodeToString(sum[:8])}
}

// jwk returns the key as a JWK Set has it.
func (p keyPair) jwk(t *testing.T) string {
	t.Helper()
	block, _ := pem.Decode([]byte(p.public))
	parsed, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	encode := func(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }
	point, err := parsed.(*ecdsa.PublicKey).Bytes()
	if err != nil {
		t.Fatal(err)
	}
	return `{"use":"sig","kty":"EC","kid":"` + p.fingerprint + `","crv":"P-256","alg":"ES256","x":"` + encode(point[1:33]) + `","y":"` + encode(point[33:]) + `"}`
}

// decodedSegment returns a segment of a token, of which 0 is the header.
func decodedSegment(t *testing.T, token string, segment int) string {
	t.Helper()
	b, err := base64.RawURLEncoding.DecodeString(strings.Split(token, ".")[segment])
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func agentIDs(n int) []any {
	ids := make([]any, n)
	for i := range ids {
		ids[i] = fmt.Sprintf("sandbox:%d", i)
	}
	return ids
}

func whiteSpaceError(field, item string) string {
	return fmt.Sprintf("%s %q: must not contain white space; separate items with commas, as in %s=a,b", field, item, field)
}

// merge returns a map with the entries of all sources, the later ones overriding the earlier ones.
func merge[V any](sources ...map[string]V) map[string]V {
	merged := map[string]V{}
	for _, m := range sources {
		maps.Copy(merged, m)
	}
	return merged
}

// rounds returns the number of rounds of a test that make soak runs for longer.
func rounds(short, soak int) int {
	if os.Getenv("SOAK") != "" {
		return soak
	}
	return short
}
