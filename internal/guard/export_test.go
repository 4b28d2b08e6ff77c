//go:build unix

package guard

import (
	"context"
	"io"
	"net/http"
	"time"

	"github.com/hashicorp/go-hclog"
)

// NewForTest returns a guard that has applied a response of Vault and whose proxy is at
// an address.
func NewForTest(data map[string]any, proxy string, clock func() time.Time, access io.Writer) (*Guard, error) {
	cfg := defaults()
	cfg.Vault.Auth.TokenFile, cfg.Vault.Address = "/dev/null", "http://127.0.0.1:1"
	cfg.Hold = 0
	g, err := New(cfg, hclog.NewNullLogger(), access)
	if err != nil {
		return nil, err
	}
	g.door.now = clock
	g.door.reread = func(context.Context) error { return nil }
	r := &runner{specs: make(chan *spec, 1)}
	r.current.Store(&child{forward: newForward(proxy)})
	g.runners[""] = r
	return g, g.Apply(data)
}

// Apply applies a response of Vault, as a poll does.
func (g *Guard) Apply(data map[string]any) error {
	r, err := parseResponse(data)
	if err != nil || r.Keys == nil {
		return err
	}
	after, _, err := next(g.door.held(), r, forwardLocal)
	if err != nil {
		return err
	}
	g.door.apply(after, r.Revoked, g.door.now())
	return nil
}

// PollOnce reads Vault, which fails, as a poll does.
func (g *Guard) PollOnce() { g.readOnce(context.Background()) }

// InFlight returns the number of requests that have passed and are not finished.
func (g *Guard) InFlight() int { return g.door.flights.count() }

// FlushAccessLog writes what is buffered.
func (g *Guard) FlushAccessLog() { g.access.flush() }

// Server returns the guard's HTTP server.
func (g *Guard) Server() *http.Server { return newServer(g, hclog.NewNullLogger()) }
