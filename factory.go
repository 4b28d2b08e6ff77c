package atisecrets

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"vault-plugin-secrets-ati/internal/role"
)

// Factory returns the factory of a backend that reports this version to Vault: a
// semantic version with a leading v.
func Factory(version string) logical.Factory {
	return func(ctx context.Context, conf *logical.BackendConfig) (logical.Backend, error) {
		if conf == nil {
			return nil, errors.New("backend configuration is nil")
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
	st := newStore(now)
	b := &backend{
		store: st, node: node{now: now, sleep: time.Sleep, dropCaches: st.dropCaches},
		hexFields: merged(role.Params.HexFields(), role.CredsParams.HexFields(), role.BatchParams.HexFields(), map[string]bool{"after": true}),
	}
	b.Backend = &framework.Backend{
		Help:           strings.TrimSpace(backendHelp),
		BackendType:    logical.TypeLogical,
		RunningVersion: version,
		PathsSpecial: &logical.Paths{
			// A policy needs sudo for these, so that a broad rule for "ati/*" neither
			// imports a key nor reads one.
			Root:            []string{"config", "config/*", "proxy-env", "proxy-env/*", "guard", "revoke"},
			Unauthenticated: []string{"jwks"},
			SealWrapStorage: []string{configStoragePath, rolePrefix, revokedPrefix},
		},
		Paths: framework.PathAppend(
			pathCreds(b), // first, since the framework tries the patterns in this order
			pathBatch(b),
			pathConfig(b),
			pathRotate(b),
			pathProxyEnv(b),
			pathJWKS(b),
			pathRoles(b),
			pathCheck(b),
			pathValidate(b),
			pathRevoke(b),
			pathGuard(b),
		),
		Secrets:      []*framework.Secret{secretToken(b)},
		Invalidate:   b.invalidate,
		PeriodicFunc: b.periodic,
	}
	return b, nil
}

// periodic rotates the key if it is time, and deletes what has expired. Vault calls it about
// once a minute, on standbys too.
func (b *backend) periodic(ctx context.Context, req *logical.Request) error {
	if standby, err := b.isStandby(); standby || err != nil {
		return err
	}
	return errors.Join(b.rotateIfDue(ctx, req), b.purgeRevoked(ctx, req))
}

const backendHelp = `
The ATI secrets engine mints session tokens for AI agents that call tools through
an ATI proxy.

A security team writes the signing key and the proxy's URL to config, and what a
token may grant to roles/<name>. An orchestrator requests a token from creds/<name>,
or many from batch/<name>. The proxy's host reads the key from proxy-env.
config/rotate replaces the key immediately, config/rotate/stage without downtime,
and with rotation_period in config the key rotates automatically;
jwks has the public keys. revoke ends the tokens of an agent, or one token, at
proxies behind a guard, which reads guard. check/<name> shows whether a role allows a
tool, and validate and inspect show what is in a token.
`
