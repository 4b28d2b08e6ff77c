package guard

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-jose/go-jose/v4"
	lru "github.com/hashicorp/golang-lru/v2"

	"vault-plugin-secrets-ati/ati"
	"vault-plugin-secrets-ati/internal/revocation"
)

// rereadTimeout limits how long a request waits for a read of Vault.
const rereadTimeout = 3 * time.Second

// restOfBody limits how long the server reads the body of a request after the response, and
// writes the response to a request that was cancelled.
const restOfBody = 10 * time.Second

// cachedTokens limits the verified tokens in memory.
const cachedTokens = 10_000

// door decides which requests pass.
type door struct {
	now      func() time.Time
	maxStale time.Duration
	reread   func(context.Context) error // reads Vault, later than the call

	mu      sync.RWMutex
	bundle  *bundle // nil: closed
	revoked *revocation.List
	freshAt time.Time // when the last successful read began

	flights flights
}

func newDoor(now func() time.Time, maxStale time.Duration, reread func(context.Context) error) *door {
	return &door{now: now, maxStale: maxStale, reread: reread, revoked: revocation.NewList(nil)}
}

// rejection is the response to a request that does not pass.
type rejection struct {
	status int
	reason string // for the access log
	body   string // for the client
}

func (r *rejection) write(w http.ResponseWriter, req *http.Request) {
	closeAfter(w, req)
	body := []byte(r.body)
	if r.status != http.StatusUnauthorized {
		w.Header().Set("Content-Type", "application/json")
		body, _ = json.Marshal(map[string]any{"result": nil, "error": "ati-guard: " + r.body})
		body = append(body, '\n')
	}
	w.Header().Set("Content-Length", strconv.Itoa(len(body))) // the client need not wait until the connection is closed
	w.WriteHeader(r.status)
	_, _ = w.Write(body)
}

func (r *rejection) Error() string { return r.reason }

var (
	errRevoked = unauthorized("the token was revoked", true)
	errStale   = unavailable("Vault was not read successfully for too long")
)

// closeAfter makes the server close the connection after the response to a request with a
// body. Otherwise it waits for the whole body before it sends the response.
func closeAfter(w http.ResponseWriter, req *http.Request) {
	if req.ContentLength != 0 {
		w.Header().Set("Connection", "close")
		_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(restOfBody))
	}
}

// unauthorized rejects a request. Only who had a valid token at some time gets a reason.
func unauthorized(reason string, signed bool) *rejection {
	r := &rejection{status: http.StatusUnauthorized, reason: reason}
	if signed {
		r.body = reason
	}
	return r
}

func unavailable(reason string) *rejection {
	return &rejection{http.StatusServiceUnavailable, reason, reason}
}

// open returns the bundle, or why the door is closed.
func (d *door) open() (*bundle, *rejection) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	switch {
	case d.bundle == nil:
		return nil, unavailable("no key from Vault yet")
	case d.now().Sub(d.freshAt) > d.maxStale:
		return nil, errStale
	case len(d.bundle.liveKeys(d.now())) == 0:
		return nil, unavailable("no live key")
	}
	return d.bundle, nil
}

// admit returns the flight of a request that passes, which must be ended. The claims are
// set whenever the token's signature is good.
func (d *door) admit(ctx context.Context, token string) (f *flight, claims *ati.Claims, k *key, rejected *rejection) {
	b, rejected := d.open()
	if rejected != nil {
		return nil, nil, nil, rejected
	}
	claims, k, err := b.verify(token, d.now())
	if isUnknown(err) {
		// The key may be new, or the audience.
		ctx, cancel := context.WithTimeout(ctx, rereadTimeout)
		failed := d.reread(ctx)
		cancel()
		if failed != nil {
			return nil, claims, k, unavailable("the token's key is unknown, and Vault cannot be read")
		}
		if b, rejected = d.open(); rejected != nil {
			return nil, nil, nil, rejected
		}
		claims, k, err = b.verify(token, d.now())
	}
	if err != nil {
		return nil, claims, k, unauthorized(reasonOf(err), k != nil)
	}
	// First the flight, then the look at the revocations: a bundle that arrives in between
	// cancels the flight.
	f = d.flights.begin(ctx, claims, k)
	if d.isRevoked(claims) || !d.holds(k) {
		f.end()
		return nil, claims, k, errRevoked
	}
	return f, claims, k, nil
}

func (d *door) isRevoked(c *ati.Claims) bool {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.revoked.Find(c.ID, c.Subject, c.IssuedAt) != nil
}

func (d *door) holds(k *key) bool {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.bundle.holds(k)
}

// apply replaces the bundle, adds its revocations, and cancels requests that no longer
// pass. A revocation stays until it concerns no token, whatever a later bundle says.
func (d *door) apply(b *bundle, revoked []revocation.Entry, freshAt time.Time) (cancelled int) {
	now := d.now()
	d.mu.Lock()
	for i := range revoked {
		e := &revoked[i]
		if held := d.revoked.Get(e.Name()); held != nil { // a restored snapshot may have an earlier one
			e.Include(held)
		}
		d.revoked.Add(e, d.revoked.Place(e))
	}
	live := b.live(now)
	for _, bucket := range d.revoked.Stale(live, now.Unix(), revocation.Buckets) {
		d.revoked.Drop(bucket, live, now.Unix())
	}
	d.bundle, d.freshAt = b, freshAt
	d.mu.Unlock()
	return d.flights.cancel(errRevoked, func(f *flight) bool { return !b.holds(f.key) || d.isRevoked(f.claims) })
}

// fresh records a successful read without changes.
func (d *door) fresh(at time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.freshAt = at
}

// close closes the door: the mount has no config.
func (d *door) close() (cancelled int) {
	d.mu.Lock()
	d.bundle = nil
	d.mu.Unlock()
	return d.flights.cancel(errRevoked, func(*flight) bool { return true })
}

// endStale cancels every request if the door is closed because of its age: the tokens may
// have been revoked.
func (d *door) endStale() (cancelled int) {
	if _, rejected := d.open(); rejected != errStale {
		return 0
	}
	return d.flights.cancel(errStale, func(*flight) bool { return true })
}

func (d *door) held() *bundle {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.bundle
}

// verified is a token whose signature and claims were verified with a version.
type verified struct {
	claims *ati.Claims
	key    *key
}

// tokenCache holds verified tokens by their hash.
type tokenCache = lru.Cache[[sha256.Size]byte, verified]

func newTokenCache() *tokenCache {
	cache, _ := lru.New[[sha256.Size]byte, verified](cachedTokens) // fails for a size of 0
	return cache
}

var errNotSigned = errors.New("the token was signed with an unknown key")

// isUnknown reports whether a later read of Vault could make the token valid.
func isUnknown(err error) bool {
	return errors.Is(err, errNotSigned) || errors.Is(err, ati.ErrAudience) || errors.Is(err, ati.ErrIssuer)
}

// verify returns the claims of a valid token, and the version that signed it. With an
// error, it returns both if the signature is good.
func (b *bundle) verify(token string, now time.Time) (*ati.Claims, *key, error) {
	hash := sha256.Sum256([]byte(token))
	if v, ok := b.cache.Get(hash); ok && !v.key.expired(now) {
		if now.Unix() > v.claims.ExpiresAt+int64(ati.MaxLeeway/time.Second) {
			return v.claims, v.key, ati.ErrExpired
		}
		return v.claims, v.key, nil
	}
	options := append([]ati.ValidateOption{ati.WithTime(func() time.Time { return now })}, b.options...)
	for _, k := range b.liveKeys(now) {
		claims, err := ati.ValidateToken(token, k.key, options...)
		switch {
		case err == nil:
			b.cache.Add(hash, verified{claims, k})
			return claims, k, nil
		case errors.Is(err, ati.ErrSignature):
			continue
		case errors.Is(err, ati.ErrMalformed):
			return nil, nil, err
		}
		var rejected *ati.TokenError
		_ = errors.As(err, &rejected)
		return rejected.Claims, k, err
	}
	return nil, nil, errNotSigned
}

func reasonOf(err error) string {
	for _, c := range []struct {
		err    error
		reason string
	}{
		{ati.ErrExpired, "the token has expired"}, {ati.ErrNotYetValid, "the token is not valid yet"},
		{ati.ErrAudience, "the token is for another audience"}, {ati.ErrIssuer, "the token is of another issuer"},
		{ati.ErrMalformed, "the token is malformed"},
	} {
		if errors.Is(err, c.err) {
			return c.reason
		}
	}
	return errNotSigned.Error()
}

// bearer returns the token of exactly one header Authorization.
func bearer(r *http.Request) (string, bool) {
	headers := r.Header["Authorization"]
	if len(headers) != 1 {
		return "", false
	}
	token, ok := strings.CutPrefix(headers[0], "Bearer ")
	return token, ok && token != ""
}

// jwks returns the public keys as a JWK Set.
func (b *bundle) jwks(now time.Time) ([]byte, error) {
	set := jose.JSONWebKeySet{Keys: []jose.JSONWebKey{}}
	for _, k := range b.liveKeys(now) {
		if k.key.Algorithm() == ati.ES256 {
			set.Keys = append(set.Keys, jose.JSONWebKey{Key: k.key.Public(), Use: "sig", Algorithm: ati.ES256, KeyID: k.id})
		}
	}
	return json.Marshal(set)
}

// localKey is the key between the guard and its proxy. It never leaves the host.
type localKey struct{ secret []byte }

var localHeader = base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"HS256","typ":"JWT"}`))

// resign returns a token with the same payload that is signed with the local key.
func (l localKey) resign(token string) string {
	_, rest, _ := strings.Cut(token, ".")
	payload, _, _ := strings.Cut(rest, ".")
	var signed bytes.Buffer
	fmt.Fprintf(&signed, "%s.%s", localHeader, payload)
	mac := hmac.New(sha256.New, l.secret)
	mac.Write(signed.Bytes())
	return signed.String() + "." + base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}

// flight is a request that has passed the door.
type flight struct {
	ctx    context.Context
	claims *ati.Claims
	key    *key
	cancel context.CancelCauseFunc
	shard  *shard
}

// flights is the requests that have passed the door, in shards with a lock each.
type flights [64]shard

type shard struct {
	mu sync.Mutex
	in map[*flight]struct{}
}

func (fs *flights) begin(ctx context.Context, claims *ati.Claims, k *key) *flight {
	f := &flight{claims: claims, key: k, shard: &fs[time.Now().UnixNano()/64%int64(len(fs))]}
	f.ctx, f.cancel = context.WithCancelCause(ctx)
	f.shard.mu.Lock()
	defer f.shard.mu.Unlock()
	if f.shard.in == nil {
		f.shard.in = map[*flight]struct{}{}
	}
	f.shard.in[f] = struct{}{}
	return f
}

func (f *flight) end() {
	f.cancel(nil)
	f.shard.mu.Lock()
	defer f.shard.mu.Unlock()
	delete(f.shard.in, f)
}

// cancelled returns why the door has cancelled the flight with this context, or nil.
func cancelled(ctx context.Context) *rejection {
	rejected, _ := context.Cause(ctx).(*rejection)
	return rejected
}

// limitClient makes a cancelled flight end although the client does not send the body, or
// does not read the response. The returned function must be called before the handler
// returns.
func (f *flight) limitClient(w http.ResponseWriter, r *http.Request) (done func()) {
	b := &body{ReadCloser: r.Body}
	r.Body = b
	client, limited := http.NewResponseController(w), make(chan struct{})
	stop := context.AfterFunc(f.ctx, func() {
		defer close(limited)
		if cancelled(f.ctx) == nil {
			return
		}
		_ = client.SetWriteDeadline(time.Now().Add(restOfBody))
		// The server goes on to read from the connection after a whole body.
		if r.ContentLength != 0 && !b.complete.Load() {
			_ = client.SetReadDeadline(time.Now())
		}
	})
	return func() {
		if !stop() {
			<-limited
			_ = client.SetWriteDeadline(time.Time{})
		} else if r.ContentLength != 0 && !b.complete.Load() { // the server waits for the body before it sends the response
			_ = client.SetReadDeadline(time.Now().Add(restOfBody))
		}
	}
}

// body records whether it was read to its end.
type body struct {
	io.ReadCloser
	complete atomic.Bool
}

func (b *body) Read(p []byte) (n int, err error) {
	n, err = b.ReadCloser.Read(p)
	if err == io.EOF {
		b.complete.Store(true)
	}
	return n, err
}

// cancel cancels the requests that match, and returns their number.
func (fs *flights) cancel(cause *rejection, match func(*flight) bool) (n int) {
	for i := range fs {
		fs[i].mu.Lock()
		for f := range fs[i].in {
			if match(f) {
				f.cancel(cause)
				n++
			}
		}
		fs[i].mu.Unlock()
	}
	return n
}

// count returns the number of requests in flight.
func (fs *flights) count() (n int) {
	for i := range fs {
		fs[i].mu.Lock()
		n += len(fs[i].in)
		fs[i].mu.Unlock()
	}
	return n
}
