package atisecrets

import (
	"context"
	"time"

	"github.com/hashicorp/vault/sdk/logical"

	"vault-plugin-secrets-ati/ati"
	"vault-plugin-secrets-ati/internal/keyring"
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
	for algorithm, entry := range map[string]*keyring.Entry{
		ati.HS256: {Version: 1, Algorithm: ati.HS256, Secret: keyring.Hide(secret)},
		ati.ES256: {Version: 1, Algorithm: ati.ES256, PrivateKey: keyring.Hide(private)},
	} {
		key, err := entry.Parse()
		if err != nil {
			return nil, err
		}
		stored := configEntry{Ring: keyring.Ring{Current: entry, Pending: entry, Previous: entry}}
		cfg := &config{Keys: keyring.Keys{Stored: stored.Ring, Current: key, Pending: key, Previous: key}}
		for name, holder := range map[string]any{
			"hiddenText":   []keyring.HiddenText{entry.Secret, entry.PrivateKey},
			"keyEntry":     *entry,
			"signingKey":   *key,
			"configEntry":  stored,
			"config":       *cfg,
			"keyParams":    keyring.Request{Algorithm: algorithm, Secret: entry.Secret, PrivateKey: entry.PrivateKey},
			"minting":      minting{cfg: cfg, key: key},
			"Key":          key.Key,
			"Orchestrator": ati.Orchestrator{Key: key.Key},
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
