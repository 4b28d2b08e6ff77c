package atisecrets

import (
	"time"

	"vault-plugin-secrets-ati/internal/keyring"
	"vault-plugin-secrets-ati/internal/revocation"
	"vault-plugin-secrets-ati/internal/role"
)

// configEntry is all that a mount stores apart from its roles. It is one storage
// entry, so that a change of key and proxy is one atomic write. Current is nil after
// the config was deleted.
type configEntry struct {
	StorageVersion int `json:"storage_version"`
	role.Limits
	keyring.Ring

	// Epoch identifies this config among those that the mount has had. Generation is the
	// number of its last change.
	Epoch      string `json:"epoch,omitempty"`
	Generation int64  `json:"generation,omitempty"`
}

// config is a configEntry with its parsed keys. It is never changed.
type config struct {
	role.Limits
	keyring.Keys
	epoch      string
	generation int64
}

// parse returns the config, or nil if there is none.
func (e configEntry) parse() (*config, error) {
	if e.Current == nil {
		return nil, nil
	}
	keys, err := e.Ring.Parse()
	if err != nil {
		return nil, err
	}
	return &config{Limits: e.Limits, Keys: *keys, epoch: e.Epoch, generation: e.Generation}, nil
}

func (c *config) entry() configEntry {
	return configEntry{Limits: c.Limits, Ring: c.Stored, Epoch: c.epoch, Generation: c.generation}
}

// live returns what revocations need to know about the live versions.
func (c *config) live(now time.Time) revocation.Live {
	live := revocation.Live{Oldest: c.Current.Version}
	for _, k := range c.Live(now) {
		live.Oldest, live.Imported = min(live.Oldest, k.Version), live.Imported || !k.Generated
	}
	return live
}

// bounds returns what limits a token in addition to its role.
func (c *config) bounds(mountTTL time.Duration) role.Bounds {
	return role.Bounds{Limits: &c.Limits, MountTTL: mountTTL, LongestTTL: c.Stored.LongestTTL}
}
