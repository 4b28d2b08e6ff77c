//go:build unix

package guard

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
)

const (
	minReread   = time.Second      // between two reads that requests cause
	apiKeysTime = 30 * time.Second // between two reads of the API keys
)

// Guard is a gate in front of one ATI proxy.
type Guard struct {
	cfg     *Config
	log     hclog.Logger
	vault   *vaultClient
	door    *door
	local   localKey
	access  *accessLog
	metrics *metrics

	stopping atomic.Bool
	tried    chan struct{} // closed after the first read of Vault

	kick    chan struct{}
	work    sync.WaitGroup
	mu      sync.Mutex
	waiting []chan error       // requests that wait for the next read
	runners map[string]*runner // by runnerID

	apiKeys     map[string]string
	apiKeysRead time.Time
}

// New returns a guard that has not read anything yet.
func New(cfg *Config, log hclog.Logger, access io.Writer) (*Guard, error) {
	v, err := newVaultClient(&cfg.Vault)
	if err != nil {
		return nil, err
	}
	g := &Guard{cfg: cfg, log: log, vault: v, local: newLocalKey(), access: newAccessLog(access), runners: map[string]*runner{}, tried: make(chan struct{}), kick: make(chan struct{}, 1)}
	g.door = newDoor(time.Now, time.Duration(cfg.MaxStale), g.reread)
	g.metrics = newMetrics(g)
	return g, nil
}

// Run reads Vault and runs proxies until the context ends. It then lets requests in
// flight finish.
func (g *Guard) Run(ctx context.Context) {
	g.work.Go(func() { g.poll(ctx) })
	g.work.Go(func() { g.access.flushUntil(ctx) })
	g.work.Wait()
}

// Ready reports why the guard does not serve, or nil.
func (g *Guard) Ready() error {
	if g.stopping.Load() {
		return errors.New("the guard is stopping")
	}
	b, rejected := g.door.open()
	if rejected != nil {
		return rejected
	}
	if g.child(b.keys[0]) == nil {
		return errNoProxy
	}
	return nil
}

var errNoProxy = errors.New("the ATI proxy is not running")

// poll reads Vault at each tick, and when a request asks for it.
func (g *Guard) poll(ctx context.Context) {
	tick := time.NewTicker(time.Duration(g.cfg.Poll))
	defer tick.Stop()
	var began time.Time
	for {
		began = time.Now()
		g.mu.Lock()
		waiting := g.waiting
		g.waiting = nil
		g.mu.Unlock()
		err := g.readOnce(ctx)
		for _, done := range waiting {
			done <- err
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-g.kick:
			select {
			case <-ctx.Done():
				return
			case <-time.After(minReread - time.Since(began)):
			}
		}
	}
}

// readOnce reads Vault, and runs the proxies that this requires.
func (g *Guard) readOnce(ctx context.Context) error {
	if err := g.readAPIKeys(ctx); err != nil && ctx.Err() == nil {
		g.log.Error("failed to read the API keys; keeping what is known", "error", err)
	}
	err := g.readVault(ctx)
	g.metrics.read(err)
	g.runProxies(ctx)
	select {
	case <-g.tried:
	default:
		close(g.tried)
	}
	if err != nil && ctx.Err() == nil {
		cancelled := g.door.endStale()
		g.log.Error("failed to read Vault; keeping what is known", "error", err, "cancelled", cancelled)
	}
	return err
}

// reread waits for a read of Vault that begins after the call.
func (g *Guard) reread(ctx context.Context) error {
	done := make(chan error, 1)
	g.mu.Lock()
	g.waiting = append(g.waiting, done)
	g.mu.Unlock()
	select {
	case g.kick <- struct{}{}:
	default:
	}
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// readVault reads the keys and revocations.
func (g *Guard) readVault(ctx context.Context) error {
	began := time.Now()
	held := g.door.held()
	r, err := g.readChanges(ctx, held)
	switch {
	case err != nil:
		return err
	case r == nil:
		g.log.Error("the mount has no config: rejecting every request", "cancelled", g.door.close())
		return nil
	case r.Keys == nil:
		g.door.fresh(began)
		return nil
	}
	return g.apply(ctx, held, r, began)
}

// readChanges returns what has changed since the bundle that is held, or everything, or
// nil if the mount has no config.
func (g *Guard) readChanges(ctx context.Context, held *bundle) (*response, error) {
	if held == nil {
		return g.readAll(ctx, held)
	}
	r, err := g.readSince(ctx, held, held.generation)
	switch {
	case err != nil || r == nil:
		return r, err
	case r.Epoch != held.epoch:
		return g.readAll(ctx, held)
	case r.Keys == nil && r.Generation != held.generation:
		return nil, errNoKeys
	}
	return r, nil
}

// readSince returns a response that is not older than the bundle that is held.
func (g *Guard) readSince(ctx context.Context, held *bundle, since int64) (*response, error) {
	r, err := g.vault.readGuard(ctx, since)
	if r != nil && held != nil && r.Epoch == held.epoch && r.Generation < held.generation {
		return nil, fmt.Errorf("response of Vault has generation %d, older than %d: a snapshot was restored, or a standby lags", r.Generation, held.generation)
	}
	return r, err
}

var errNoKeys = errors.New("the response has no keys")

func (g *Guard) readAll(ctx context.Context, held *bundle) (*response, error) {
	r, err := g.readSince(ctx, held, -1)
	if err == nil && r != nil && r.Keys == nil {
		return nil, errNoKeys
	}
	return r, err
}

func (g *Guard) apply(ctx context.Context, held *bundle, r *response, began time.Time) error {
	after, faults, err := next(held, r, g.cfg.Forward)
	if errors.Is(err, errUnknownKey) {
		if r, err = g.readAll(ctx, held); err != nil {
			return err
		}
		if r == nil { // deleted just now: the next read closes
			return errNoKeys
		}
		after, faults, err = next(nil, r, g.cfg.Forward)
	}
	if err != nil {
		return err
	}
	for _, fault := range faults {
		g.log.Error("a key is not used", "error", fault)
	}
	cancelled := g.door.apply(after, r.Revoked, began)
	var versions []string
	for _, k := range after.keys {
		versions = append(versions, fmt.Sprintf("%d (%s)", k.version, k.state))
	}
	g.log.Info("applied", "generation", after.generation, "keys", strings.Join(versions, ", "), "revocations", len(r.Revoked), "cancelled", cancelled)
	return nil
}

// readAPIKeys reads the API keys if it is time: at each poll until they were read, and
// then less often. It takes no longer than a poll, which would delay revocations.
func (g *Guard) readAPIKeys(ctx context.Context) error {
	if g.cfg.APIKeys == "" || g.apiKeys != nil && time.Since(g.apiKeysRead) < apiKeysTime {
		return nil
	}
	g.apiKeysRead = time.Now()
	ctx, cancel := context.WithTimeout(ctx, time.Duration(g.cfg.Poll))
	defer cancel()
	keys, err := g.vault.readAPIKeys(ctx, g.cfg.APIKeys)
	if err == nil {
		g.apiKeys = keys
	}
	return err
}

// runProxies runs the proxies that the bundle needs, and ends the others.
func (g *Guard) runProxies(ctx context.Context) {
	if g.cfg.APIKeys != "" && g.apiKeys == nil {
		return
	}
	specs := g.specs(g.door.held())
	g.mu.Lock()
	defer g.mu.Unlock()
	for id, r := range g.runners {
		if specs[id] == nil {
			r.stop()
			delete(g.runners, id)
		}
	}
	for id, s := range specs {
		if g.runners[id] == nil {
			running, stop := context.WithCancel(ctx)
			r := &runner{cfg: g.cfg, log: g.log, local: g.local, restarts: g.metrics.restarts, stop: stop, specs: make(chan *spec, 1)}
			g.runners[id] = r
			g.work.Go(func() { r.run(running) })
		}
		g.runners[id].want(s)
	}
}

// specs returns what proxies are started with, by runnerID.
func (g *Guard) specs(b *bundle) map[string]*spec {
	specs := map[string]*spec{}
	if b == nil {
		return specs
	}
	for _, k := range b.liveKeys(time.Now()) {
		s := &spec{audiences: b.audiences, issuer: b.issuer, apiKeys: g.apiKeys}
		if g.cfg.Forward == forwardOriginal {
			s.publicKey = k.key.PublicPEM()
		}
		specs[g.runnerID(k)] = s
	}
	return specs
}

// runnerID names the proxy that serves the tokens of a key: one with the local key
// serves all, and with forward = original each key has its own.
func (g *Guard) runnerID(k *key) string {
	if g.cfg.Forward == forwardOriginal {
		return k.id
	}
	return ""
}

// child returns the child that serves the tokens of a key, or nil.
func (g *Guard) child(k *key) *child {
	g.mu.Lock()
	defer g.mu.Unlock()
	if r := g.runners[g.runnerID(k)]; r != nil {
		if c := r.current.Load(); c != nil && !c.hasEnded() {
			return c
		}
	}
	return nil
}

// waitForChild waits for a child that starts.
func (g *Guard) waitForChild(ctx context.Context, k *key) *child {
	deadline := time.Now().Add(time.Duration(g.cfg.Hold))
	for {
		if c := g.child(k); c != nil {
			return c
		}
		if ctx.Err() != nil || time.Now().After(deadline) {
			return nil
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// ServeHTTP forwards a request that passes the door.
func (g *Guard) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	// See shutDown. With HTTP/1.0, the server ignores Transfer-Encoding, and would take a body
	// for the next request.
	if g.stopping.Load() || !r.ProtoAtLeast(1, 1) {
		w.Header().Set("Connection", "close")
	}
	rec := &record{started: time.Now(), Method: loggable(r.Method), Path: loggable(r.URL.Path)}
	out := &recorder{ResponseWriter: w}
	defer func() {
		rec.Status = out.status
		g.access.write(rec)
		g.metrics.served(rec)
	}()
	path, _, _ := strings.Cut(r.RequestURI, "?")
	if open := r.Method == http.MethodGet || r.Method == http.MethodHead; open && path == "/health" {
		g.serveHealth(out, r)
	} else if open && path == "/.well-known/jwks.json" {
		g.serveJWKS(out, r)
	} else {
		g.serveCall(out, r, rec)
	}
}

func (g *Guard) serveHealth(w http.ResponseWriter, r *http.Request) {
	closeAfter(w, r)
	w.Header().Set("Content-Type", "application/json")
	if err := g.Ready(); err != nil {
		w.WriteHeader(http.StatusServiceUnavailable)
		_, _ = io.WriteString(w, `{"status":"unavailable","auth":"jwt"}`)
		return
	}
	_, _ = io.WriteString(w, `{"status":"ok","auth":"jwt"}`)
}

func (g *Guard) serveJWKS(w http.ResponseWriter, r *http.Request) {
	closeAfter(w, r)
	b, rejected := g.door.open()
	if rejected != nil {
		rejected.write(w, r)
		return
	}
	body, err := b.jwks(time.Now())
	if err != nil {
		w.WriteHeader(http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(body)
}

func (g *Guard) serveCall(w http.ResponseWriter, r *http.Request, rec *record) {
	token, ok := bearer(r)
	if !ok {
		g.reject(w, r, rec, unauthorized("no token", false))
		return
	}
	g.waitForFirstRead(r.Context())
	f, claims, k, rejected := g.door.admit(r.Context(), token)
	rec.identify(claims, k)
	if rejected != nil {
		g.reject(w, r, rec, rejected)
		return
	}
	defer f.end()
	defer func() {
		if rejected := cancelled(f.ctx); rejected != nil {
			rec.Reason = rejected.reason
		}
	}()
	c := g.waitForChild(f.ctx, k)
	if c == nil {
		g.reject(w, r, rec, cmp.Or(cancelled(f.ctx), unavailable(errNoProxy.Error())))
		return
	}
	c.inFlight.Add(1)
	defer c.inFlight.Add(-1)
	if g.cfg.Forward == forwardLocal {
		token = g.local.resign(token)
	}
	r = r.WithContext(context.WithValue(f.ctx, forwardedToken{}, token)) // a copy: the server needs the body of the original
	defer f.limitClient(w, r)()
	c.forward.ServeHTTP(w, r)
}

// waitForFirstRead waits until Vault was read, successfully or not. With a socket of
// systemd, requests wait for a guard that restarts.
func (g *Guard) waitForFirstRead(ctx context.Context) {
	select {
	case <-g.tried:
		return
	default:
	}
	ctx, cancel := context.WithTimeout(ctx, time.Duration(g.cfg.Hold))
	defer cancel()
	select {
	case <-g.tried:
	case <-ctx.Done():
	}
}

func (g *Guard) reject(w http.ResponseWriter, r *http.Request, rec *record, rejected *rejection) {
	rec.Reason = rejected.reason
	rejected.write(w, r)
}
