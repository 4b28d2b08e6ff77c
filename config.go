package atisecrets

import (
	"time"
	"vault-plugin-secrets-ati/ati"
	"vault-plugin-secrets-ati/internal/keyring"
	"vault-plugin-secrets-ati/internal/role"
)

// configEntry is all that a mount stores beside its roles, in one entry, so
// that a change of key and proxy is one atomic write.
type configEntry struct {
	StorageVersion int `json:"storage_version"`
	role.Limits
	keyring.Ring
}

// newConfigEntry has the given key, and defaults for the rest. What it keeps is
// what a deleted config left behind.
func newConfigEntry(remains configEntry, p keyring.Request, now time.Time) (configEntry, error) {
	version := remains.LastKeyVersion + 1
	key, err := keyring.NewEntry(p, keyring.Entry{Algorithm: ati.HS256}, version, now)
	if err != nil {
		return configEntry{}, err
	}
	key.ActivatedAt = key.CreatedAt
	return configEntry{
		Limits: role.Limits{Audience: ati.DefaultAudience, Issuer: ati.DefaultIssuer},
		Ring:   keyring.Ring{Current: key, LastKeyVersion: version, LongestTTL: remains.LongestTTL},
	}, nil
}

// config is a configEntry with its parsed keys. It is never changed. Where there
// is no config, current is nil.
type config struct {
	role.Limits
	keyring.Keys
}

func (c *config) entry() configEntry { return configEntry{Limits: c.Limits, Ring: c.Stored} }

func (e configEntry) parse() (*config, error) {
	parsed, err := e.Ring.Parse()
	if err != nil {
		return nil, err
	}
	return &config{Limits: e.Limits, Keys: *parsed}, nil
}
