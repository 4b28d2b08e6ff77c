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

// SetSleep replaces the wait for the clock.
func (b *backend) SetSleep(sleep func(time.Duration)) { b.sleep = sleep }

// WithKeys returns one of each struct that holds key material, with this secret or
// private key in it.
func WithKeys(secret, private string) (map[string]any, error) {
	holders := map[string]any{}
	for algorithm, entry := range map[string]*keyring.Entry{
		ati.HS256: {Version: 1, Algorithm: ati.HS256, Secret: keyring.NewSecret(secret)},
		ati.ES256: {Version: 1, Algorithm: ati.ES256, PrivateKey: keyring.NewSecret(private)},
	} {
		ring := keyring.Ring{Current: entry, Pending: entry, Previous: entry}
		keys, err := ring.Parse()
		if err != nil {
			return nil, err
		}
		cfg := &config{Keys: *keys}
		request := keyring.Request{Algorithm: algorithm, Secret: entry.Secret, PrivateKey: entry.PrivateKey}
		st := new(store)
		st.config.Store(&cachedConfig{cfg})
		for name, holder := range map[string]any{
			"keyring.Secret":  []keyring.Secret{entry.Secret, entry.PrivateKey},
			"keyring.Entry":   *entry,
			"keyring.Key":     *keys.Current,
			"keyring.Ring":    ring,
			"keyring.Keys":    *keys,
			"keyring.Request": request,
			"keyring.Step":    keyring.Step{Request: request},
			"configEntry":     configEntry{Ring: ring},
			"config":          *cfg,
			"cachedConfig":    cachedConfig{cfg},
			"mint":            mint{cfg: cfg, key: keys.Current},
			"minted":          minted{key: keys.Current},
			"ati.Key":         keys.Current.Key,
			"Orchestrator":    ati.Orchestrator{Key: keys.Current.Key},
			"backend":         &backend{store: st},
		} {
			holders[algorithm+" in "+name] = holder
		}
	}
	return holders, nil
}
