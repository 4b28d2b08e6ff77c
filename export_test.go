package atisecrets

import (
	"context"
	"time"

	"github.com/hashicorp/vault/sdk/logical"

	"vault-plugin-secrets-ati/ati"
)

type Backend = backend

// NewWithClock is Factory with a clock that the test sets.
func NewWithClock(ctx context.Context, conf *logical.BackendConfig, now func() time.Time) (*Backend, error) {
	b, err := newBackend("v0.0.0-test", now)
	if err != nil {
		return nil, err
	}
	return b, b.Setup(ctx, conf)
}

// WithKeys is one of each struct that holds key material, with this secret or
// private key in it.
func WithKeys(secret, private string) (map[string]any, error) {
	holders := map[string]any{}
	for algorithm, entry := range map[string]*keyEntry{
		ati.HS256: {Version: 1, Algorithm: ati.HS256, Secret: hide(secret)},
		ati.ES256: {Version: 1, Algorithm: ati.ES256, PrivateKey: hide(private)},
	} {
		key, err := entry.parse()
		if err != nil {
			return nil, err
		}
		stored := configEntry{Current: entry, Pending: entry, Previous: entry}
		cfg := &config{configEntry: stored, current: key, pending: key, previous: key}
		for name, holder := range map[string]any{
			"hiddenText":   []hiddenText{entry.Secret, entry.PrivateKey},
			"keyEntry":     *entry,
			"signingKey":   *key,
			"configEntry":  stored,
			"config":       *cfg,
			"keyParams":    keyParams{algorithm: algorithm, secret: entry.Secret, privateKey: entry.PrivateKey},
			"minting":      minting{cfg: cfg, key: key},
			"Key":          key.key,
			"Orchestrator": ati.Orchestrator{Key: key.key},
			"backend":      backendWith(cfg),
		} {
			holders[algorithm+" in "+name] = holder
		}
	}
	return holders, nil
}

func backendWith(cfg *config) *backend {
	b := new(backend)
	b.config.Store(cfg)
	return b
}
