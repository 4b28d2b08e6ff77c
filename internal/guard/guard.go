//go:build unix

package guard

import (
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
	maxBackoff  = 10 * time.Second
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

	current atomic.Pointer[child] // nil while none serves
	specs   chan *spec

	stopping atomic.Bool
	tried    chan struct{} // closed after the first read of Vault

	kick    chan struct{}
	mu      sync.Mutex
	waiting []chan error // requests that wait for the next read

	apiKeys     map[string]string
	apiKeysRead time.Time
}

// New returns a guard that has not read anything yet.
func New(cfg *Config, log hclog.Logger, access io.Writer) (*Guard, error) {
	v, err := newVaultClient(&cfg.Vault)
	if err != nil {
		return nil, err
	}
	g := &Guard{cfg: cfg, log: log, vault: v, local: newLocalKey(), access: newAccessLog(access), specs: make(chan *spec, 1), tried: make(chan struct{}), kick: make(chan struct{}, 1)}
	g.door = newDoor(time.Now, time.Duration(cfg.MaxStale), g.reread)
	g.metrics = newMetrics(g)
	return g, nil
}

// Run reads Vault and runs the proxy until the context ends. It then lets requests in
// flight finish.
func (g *Guard) Run(ctx context.Context) {
	var work sync.WaitGroup
	work.Go(func() { g.poll(ctx) })
	work.Go(func() { g.supervise(ctx) })
	work.Go(func() { g.access.flushUntil(ctx) })
	work.Wait()
}

// Ready reports why the guard does not serve, or nil.
func (g *Guard) Ready() error {
	if g.stopping.Load() {
		return errors.New("the guard is stopping")
	}
	if _, rejected := g.door.open(); rejected != nil {
		return errors.New(rejected.reason)
	}
	if g.current.Load() == nil {
		return errors.New("the ATI proxy is starting")
	}
	return nil
}

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
		err := g.readVault(ctx)
		g.metrics.read(err)
		select {
		case <-g.tried:
		default:
			close(g.tried)
		}
		if err != nil && ctx.Err() == nil {
			g.log.Error("failed to read Vault; keeping what is known", "error", err)
		}
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

// readVault reads the keys and revocations, and from time to time the API keys.
func (g *Guard) readVault(ctx context.Context) error {
	if err := g.readAPIKeys(ctx); err != nil {
		return err
	}
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
		return g.readAll(ctx)
	}
	r, err := g.vault.readGuard(ctx, held.generation)
	switch {
	case err != nil || r == nil:
		return r, err
	case r.Epoch != held.epoch:
		return g.readAll(ctx)
	case r.Generation < held.generation:
		return nil, fmt.Errorf("response of Vault has generation %d, older than %d: a snapshot was restored, or a standby lags", r.Generation, held.generation)
	case r.Keys == nil && r.Generation != held.generation:
		return nil, errNoKeys
	}
	return r, nil
}

var errNoKeys = errors.New("the response has no keys")

func (g *Guard) readAll(ctx context.Context) (*response, error) {
	r, err := g.vault.readGuard(ctx, -1)
	if err == nil && r != nil && r.Keys == nil {
		return nil, errNoKeys
	}
	return r, err
}

func (g *Guard) apply(ctx context.Context, held *bundle, r *response, began time.Time) error {
	after, faults, err := next(held, r)
	if errors.Is(err, errUnknownKey) {
		if r, err = g.readAll(ctx); err != nil {
			return err
		}
		if r == nil { // deleted just now: the next read closes
			return errNoKeys
		}
		after, faults, err = next(nil, r)
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
	g.want(&spec{after.audiences, after.issuer, g.apiKeys})
	return nil
}

// readAPIKeys reads the API keys if it is time. After the first time, those that are
// known are kept if they cannot be read.
func (g *Guard) readAPIKeys(ctx context.Context) error {
	if g.cfg.APIKeys == "" || time.Since(g.apiKeysRead) < apiKeysTime {
		return nil
	}
	keys, err := g.vault.readAPIKeys(ctx, g.cfg.APIKeys)
	switch {
	case err != nil && g.apiKeys == nil:
		return err
	case err != nil:
		g.log.Error("failed to read the API keys; keeping those that are known", "error", err)
	default:
		g.apiKeys = keys
		if b := g.door.held(); b != nil {
			g.want(&spec{b.audiences, b.issuer, keys})
		}
	}
	g.apiKeysRead = time.Now()
	return nil
}

// want sets what the supervisor must start the proxy with.
func (g *Guard) want(s *spec) {
	select {
	case <-g.specs:
	default:
	}
	g.specs <- s
}

// supervise runs the proxy: one child, and during a change a second one.
func (g *Guard) supervise(ctx context.Context) {
	var serving *child
	var wanted *spec
	var failures int
	ended := make(chan string, 1)
	retry := time.NewTimer(0)
	<-retry.C
	defer func() {
		if serving != nil {
			g.current.Store(nil)
			serving.end(time.Duration(g.cfg.Drain))
		}
	}()
	for {
		select {
		case <-ctx.Done():
			return
		case wanted = <-g.specs:
			failures = 0
		case reason := <-ended:
			g.current.Store(nil)
			serving.kill()
			serving = nil
			if ctx.Err() != nil {
				return
			}
			g.metrics.restarts.Inc()
			g.log.Error("the ATI proxy is restarted", "reason", reason)
		case <-retry.C:
		}
		if wanted == nil || serving != nil && serving.spec.equal(wanted) {
			continue
		}
		begun := time.Now()
		next, err := startChild(ctx, g.cfg, g.local, wanted)
		if err != nil {
			failures++
			backoff := min(maxBackoff, 100*time.Millisecond<<min(failures, 10))
			g.log.Error("failed to start the ATI proxy", "error", err, "retry", backoff, "old_one_serves", serving != nil)
			retry.Reset(backoff)
			continue
		}
		failures = 0
		g.log.Info("the ATI proxy serves", "pid", next.cmd.Process.Pid, "after", time.Since(begun).Round(time.Millisecond))
		g.replace(ctx, serving, next, &ended)
		serving = next
	}
}

// replace makes a child the one that serves, and lets the old one finish.
func (g *Guard) replace(ctx context.Context, old, serving *child, ended *chan string) {
	reasons := make(chan string, 1)
	*ended = reasons
	go func() { reasons <- serving.watch(ctx) }()
	g.current.Store(serving)
	if old != nil {
		go old.end(time.Duration(g.cfg.Drain))
	}
}

// child returns the child that serves, waiting for one that restarts.
func (g *Guard) child(ctx context.Context) *child {
	deadline := time.Now().Add(time.Duration(g.cfg.Hold))
	for {
		if c := g.current.Load(); c != nil {
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
	rec := &record{started: time.Now(), Method: r.Method, Path: r.URL.Path}
	out := &recorder{ResponseWriter: w}
	defer func() {
		rec.Status = out.status
		g.access.write(rec)
		g.metrics.served(rec)
	}()
	path, _, _ := strings.Cut(r.RequestURI, "?")
	if open := r.Method == http.MethodGet || r.Method == http.MethodHead; open && path == "/health" {
		g.serveHealth(out)
	} else if open && path == "/.well-known/jwks.json" {
		g.serveJWKS(out)
	} else {
		g.serveCall(out, r, rec)
	}
}

func (g *Guard) serveHealth(w http.ResponseWriter) {
	w.Header().Set("Content-Type", "application/json")
	if err := g.Ready(); err != nil {
		w.WriteHeader(http.StatusServiceUnavailable)
		_, _ = io.WriteString(w, `{"status":"unavailable","auth":"jwt"}`)
		return
	}
	_, _ = io.WriteString(w, `{"status":"ok","auth":"jwt"}`)
}

func (g *Guard) serveJWKS(w http.ResponseWriter) {
	b, rejected := g.door.open()
	if rejected != nil {
		rejected.write(w)
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
		g.reject(w, rec, unauthorized("no token", false))
		return
	}
	g.waitForFirstRead(r.Context())
	f, claims, k, rejected := g.door.admit(r.Context(), token)
	rec.identify(claims, k)
	if rejected != nil {
		g.reject(w, rec, rejected)
		return
	}
	defer f.end()
	c := g.child(f.ctx)
	if c == nil {
		g.reject(w, rec, unavailable("the ATI proxy is starting"))
		return
	}
	c.inFlight.Add(1)
	defer c.inFlight.Add(-1)
	ctx := context.WithValue(f.ctx, forwardedToken{}, g.local.resign(token))
	c.forward.ServeHTTP(w, r.WithContext(ctx))
	if errors.Is(context.Cause(f.ctx), errRevoked) {
		rec.Reason = errRevoked.Error()
	}
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

func (g *Guard) reject(w http.ResponseWriter, rec *record, rejected *rejection) {
	rec.Reason = rejected.reason
	rejected.write(w)
}
