// Package atisecrets is a Vault secrets engine that mints ATI session tokens.
package atisecrets

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"
)

const (
	// storageVersion is written into each storage entry. An entry with a higher
	// one is refused, not misread.
	storageVersion = 1

	// roleCacheSize bounds the parsed roles kept in memory. A usual role takes
	// some 2 KB there.
	roleCacheSize = 10_000

	// mountTuneTTL is how long a mint may go by the mount's former maximum TTL
	// after it was tuned: asking for it is a round trip to Vault.
	mountTuneTTL = 5 * time.Second

	operationPrefix = "ati"

	// nameField is the role's name, a part of the path.
	nameField = "name"
)

type backend struct {
	*framework.Backend

	now func() time.Time

	// lock makes a storage write and the caches' change one step. Filling a
	// cache from storage takes it for reading, so that what a writer has
	// replaced can't come back.
	lock   sync.RWMutex
	config atomic.Pointer[config]
	roles  *lru.Cache[string, *role]

	mountMax atomic.Pointer[mountMax]
}

type mountMax struct {
	ttl    time.Duration
	readAt time.Time
}

// Factory returns the factory of a backend that reports this version, a
// semantic version with a leading v, to Vault.
func Factory(version string) logical.Factory {
	return func(ctx context.Context, conf *logical.BackendConfig) (logical.Backend, error) {
		if conf == nil {
			return nil, errors.New("configuration passed into backend is nil")
		}
		b, err := newBackend(version, time.Now)
		if err != nil {
			return nil, err
		}
		if err := b.Setup(ctx, conf); err != nil {
			return nil, err
		}
		return b, nil
	}
}

func newBackend(version string, now func() time.Time) (*backend, error) {
	roles, err := lru.New[string, *role](roleCacheSize)
	if err != nil {
		return nil, fmt.Errorf("make the role cache: %w", err)
	}
	b := &backend{now: now, roles: roles}
	b.Backend = &framework.Backend{
		Help:           strings.TrimSpace(backendHelp),
		BackendType:    logical.TypeLogical,
		RunningVersion: version,
		PathsSpecial: &logical.Paths{
			// A policy needs sudo for these: an "ati/*" rule written in haste
			// must neither plant a key nor hand one out.
			Root:            []string{"config", "config/*", "proxy-env", "proxy-env/*"},
			Unauthenticated: []string{"jwks"},
			SealWrapStorage: []string{configStoragePath, rolePrefix},
		},
		Paths: framework.PathAppend(
			pathConfig(b),
			pathRotate(b),
			pathProxyEnv(b),
			pathJWKS(b),
			pathRoles(b),
			pathCreds(b),
			pathBatch(b),
			pathCheck(b),
			pathValidate(b),
		),
		Secrets:    []*framework.Secret{secretToken(b)},
		Invalidate: b.invalidate,
		// Vault calls it about every minute, on the active node.
		PeriodicFunc: b.forgetGoneKeys,
	}
	return b, nil
}

// HandleRequest checks all parameters before the framework does. That takes a
// number for an id, after it went through a float on its way from Vault, so that
// two ids become one; and its errors quote values, which puts a secret that is
// given as a list, or inside another field, into the audit log.
func (b *backend) HandleRequest(ctx context.Context, req *logical.Request) (*logical.Response, error) {
	if err := b.checkParameters(req); err != nil {
		return logical.ErrorResponse(cut(err.Error(), maxErrorBytes)), nil
	}
	resp, err := b.Backend.HandleRequest(ctx, req)
	if resp.IsError() {
		resp.Data["error"] = cut(resp.Error().Error(), maxErrorBytes)
	}
	return resp, err
}

// HandleExistenceCheck goes by the path alone. Vault writes an error of it into
// the audit log as it stands, and asks before it knows whether the caller may do
// anything here: so what is wrong with a request is HandleRequest's to say.
func (b *backend) HandleExistenceCheck(ctx context.Context, req *logical.Request) (checkFound, exists bool, err error) {
	bare := *req
	bare.Data = nil
	return b.Backend.HandleExistenceCheck(ctx, &bare)
}

func (b *backend) checkParameters(req *logical.Request) error {
	switch req.Operation {
	case logical.CreateOperation, logical.ReadOperation, logical.UpdateOperation, logical.DeleteOperation, logical.ListOperation:
	default:
		return nil // the data of a revocation is the answer that began the lease
	}
	if len(req.Data) == 0 {
		return nil
	}
	if n := sizeOf(req.Data); n > maxRequestBytes {
		return fmt.Errorf("the parameters have %d bytes together; at most %d are allowed", n, maxRequestBytes)
	}
	path := b.Route(req.Path)
	if path == nil {
		return nil
	}
	d := &framework.FieldData{Raw: req.Data, Schema: path.Fields}
	for _, name := range slices.Sorted(maps.Keys(req.Data)) {
		field := path.Fields[name]
		if field == nil || req.Data[name] == nil {
			continue // onlyKnownParameters refuses it
		}
		if sensitive := field.DisplayAttrs != nil && field.DisplayAttrs.Sensitive; !sensitive && holdsKey(req.Data[name], !hexFields[name]) {
			return fmt.Errorf("%s holds what looks like a key or a token, and is for neither", name)
		}
		var err error
		switch field.Type {
		case framework.TypeCommaStringSlice:
			_, _, err = listField(d, name)
		case framework.TypeKVPairs:
			var rates map[string]string
			if rates, _, err = rateField(d, name); err == nil && len(rates) == 0 {
				req.Data[name] = map[string]any{} // the framework takes no empty string for a map
			}
		case framework.TypeDurationSecond:
			_, _, err = durationField(d, name)
		case framework.TypeBool:
			_, _, err = boolField(d, name)
		default:
			if _, ok := req.Data[name].(string); !ok {
				err = fmt.Errorf("%s must be a string", name)
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// invalidate drops what another node of the cluster has changed in storage.
func (b *backend) invalidate(_ context.Context, key string) {
	b.lock.Lock()
	defer b.lock.Unlock()
	if key == configStoragePath {
		b.config.Store(nil)
	} else if name, ok := strings.CutPrefix(key, rolePrefix); ok {
		b.roles.Remove(name)
	}
}

// recentMountMaxTTL is the mount's maximum TTL, up to mountTuneTTL old.
func (b *backend) recentMountMaxTTL() (time.Duration, error) {
	now := b.now()
	if m := b.mountMax.Load(); m != nil && now.Sub(m.readAt) < mountTuneTTL && !now.Before(m.readAt) {
		return m.ttl, nil
	}
	ttl, err := b.mountMaxTTL()
	if err == nil {
		b.mountMax.Store(&mountMax{ttl: ttl, readAt: now})
	}
	return ttl, err
}

// mountMaxTTL asks Vault for the mount's maximum TTL. For a plugin that is a
// round trip, and 0 is all that the SDK says of one that failed.
func (b *backend) mountMaxTTL() (time.Duration, error) {
	ttl := b.System().MaxLeaseTTL()
	if ttl <= 0 {
		return 0, errors.New("the mount's maximum TTL is not known: Vault did not answer")
	}
	return ttl.Truncate(time.Second), nil // a token's TTL is in whole seconds
}

// operation declares an operation whose parameters are checked before the
// handler sees them.
func operation(callback framework.OperationFunc, summary, verb, suffix string, response framework.Response) *framework.PathOperation {
	status := 200
	if response.Fields == nil {
		status = 204
	}
	return &framework.PathOperation{
		Callback:     onlyKnownParameters(callback),
		Summary:      summary,
		DisplayAttrs: &framework.DisplayAttributes{OperationPrefix: operationPrefix, OperationVerb: verb, OperationSuffix: suffix},
		Responses:    map[int][]framework.Response{status: {response}},
	}
}

// display is a parameter's label in forms made from the OpenAPI document, and the
// heading under which it stands there.
func display(name, group string) *framework.DisplayAttributes {
	return &framework.DisplayAttributes{Name: name, Group: group}
}

// storing makes an operation run on the active node only.
func storing(op *framework.PathOperation) *framework.PathOperation {
	op.ForwardPerformanceStandby = true
	op.ForwardPerformanceSecondary = true
	return op
}

// onlyKnownParameters refuses what the framework only warns of or silently
// takes: a misspelt parameter (a mint with "tool" for "tools" would grant the
// whole role), and null.
func onlyKnownParameters(callback framework.OperationFunc) framework.OperationFunc {
	return func(ctx context.Context, req *logical.Request, d *framework.FieldData) (*logical.Response, error) {
		names := make([]string, 0, len(req.Data))
		for name := range req.Data {
			names = append(names, name)
		}
		slices.Sort(names) // so that of several mistakes the same one is told
		for _, name := range names {
			switch {
			case d.Schema[name] == nil && holdsKey(name, true):
				return logical.ErrorResponse("a parameter's name looks like a key or a token; this path takes %s", parameterNames(d)), nil
			case d.Schema[name] == nil:
				return logical.ErrorResponse("unknown parameter %q; this path takes %s", name, parameterNames(d)), nil
			case name == nameField || name == versionField:
				return logical.ErrorResponse("parameter %q stands in the path and can't be given again", name), nil
			case req.Data[name] == nil:
				return logical.ErrorResponse("parameter %q is null; leave it out, or give it a value", name), nil
			}
		}
		return callback(ctx, req, d)
	}
}

func parameterNames(d *framework.FieldData) string {
	names := slices.DeleteFunc(slices.Sorted(maps.Keys(d.Schema)), func(name string) bool { return name == nameField || name == versionField })
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, ", ")
}

// orNoContent drops a response without anything in it: Vault then answers 204.
func orNoContent(resp *logical.Response) *logical.Response {
	if len(resp.Warnings) == 0 {
		return nil
	}
	return resp
}

// parameterList names what a write was given, for the log.
func parameterList(req *logical.Request) string {
	return strings.Join(slices.Sorted(maps.Keys(req.Data)), ",")
}

const backendHelp = `
The ATI secrets engine mints session tokens for AI agents that call tools
through an ATI proxy.

A security team writes the signing key and the proxy's address to config, and
what a token may grant to roles/<name>. An orchestrator reads creds/<name> and
gets a token, or writes batch/<name> and gets many. The proxy's host reads the key
from proxy-env. config/rotate changes the key, at once or without downtime; jwks
has the public keys. check/<name> says what a role opens; validate and inspect read
a token.
`
