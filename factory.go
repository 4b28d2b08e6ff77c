package atisecrets

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
	"vault-plugin-secrets-ati/internal/role"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"
)

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
	roles, err := lru.New[string, *role.Role](roleCacheSize)
	if err != nil {
		return nil, fmt.Errorf("make the role cache: %w", err)
	}
	b := &backend{now: now, store: store{roles: roles}}
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
