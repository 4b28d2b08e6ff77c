package keyring

import (
	"fmt"
	"slices"
	"strconv"
	"time"
	"vault-plugin-secrets-ati/internal/refuse"
)

// ring is the versions of the key, as they are stored.
type Ring struct {
	// Current is the key that signs, with the proxy that holds it. Nil after
	// the config was deleted: what stays then is below.
	Current *Entry `json:"current,omitempty"`

	// Pending is staged to become the current version. Previous was it: tokens
	// for its proxy are minted until it is retired, and pass there until they
	// have expired.
	Pending  *Entry `json:"pending,omitempty"`
	Previous *Entry `json:"previous,omitempty"`

	// RolledBack tells that the previous version was the current one, and is to
	// become it again by activate.
	RolledBack bool `json:"rolled_back,omitempty"`

	// LastRotatedAt is when a key was last replaced at once, and forgotten.
	LastRotatedAt time.Time `json:"last_rotated_at,omitzero"`

	// LastKeyVersion is never used again, even after the config was deleted: a
	// version names one key.
	LastKeyVersion int `json:"last_key_version"`

	// LongestTTL is the longest TTL that any enabled role of this mount ever allowed. It
	// is raised before the role is stored, so that "no token lives longer than
	// this from now" is true at any time.
	LongestTTL time.Duration `json:"longest_ttl"`
}

// keys is a ring with its parsed keys. It is never changed. Where there is no
// config, current is nil.
type Keys struct {
	Stored                     Ring
	Current, Pending, Previous *Key
}

func (e Ring) Parse() (*Keys, error) {
	ks := &Keys{Stored: e}
	for _, v := range []struct {
		entry *Entry
		key   **Key
	}{{e.Current, &ks.Current}, {e.Pending, &ks.Pending}, {e.Previous, &ks.Previous}} {
		var err error
		if *v.key, err = v.entry.Parse(); err != nil {
			return nil, err
		}
	}
	return ks, nil
}

// known are the versions of the key that count: the current one, the pending
// one, and the previous one until the last of its tokens has expired.
func (c *Keys) Known(now time.Time) []*Key {
	keys := []*Key{c.Current}
	if c.Pending != nil {
		keys = append(keys, c.Pending)
	}
	if c.Previous != nil && !c.Previous.Gone(now) {
		keys = append(keys, c.Previous)
	}
	return keys
}

// keyFor is the version that mints for the proxy at this address, or for the
// current one where none is given.
func (c *Keys) KeyFor(proxyURL string) (*Key, error) {
	hint := ""
	switch {
	case proxyURL == "" || proxyURL == c.Current.ProxyURL:
		return c.Current, nil
	case c.Previous != nil && c.Previous.ProxyURL == proxyURL:
		if c.Previous.RetiredAt.IsZero() {
			return c.Previous, nil
		}
		hint = fmt.Sprintf(" (version %d, whose it was, is retired)", c.Previous.Version)
	case c.Pending != nil && c.Pending.ProxyURL == proxyURL:
		hint = fmt.Sprintf(" (version %d, whose it is, is not active yet)", c.Pending.Version)
	}
	return nil, fmt.Errorf("proxy_url %q: this mount has no key for it%s; the current proxy is at %q", proxyURL, hint, c.Current.ProxyURL)
}

// counting is the config without a previous version that counts no longer.
func (c *Keys) Counting(now time.Time) *Keys {
	if c.Previous == nil || !c.Previous.Gone(now) {
		return c
	}
	without := *c
	without.Previous = nil
	return &without
}

// versions names them for the log.
func (c *Keys) Versions() string {
	text := fmt.Sprintf("current %d", c.Current.Version)
	if c.Pending != nil {
		text += fmt.Sprintf(", pending %d", c.Pending.Version)
	}
	if c.Previous != nil {
		text += fmt.Sprintf(", previous %d", c.Previous.Version)
	}
	return text
}

// version is a version of the key that counts.
func (c *Keys) Version(version int, now time.Time) (*Key, error) {
	var there []int
	for _, k := range c.Known(now) {
		if k.Version == version {
			return k, nil
		}
		there = append(there, k.Version)
	}
	slices.Sort(there)
	names := strconv.Itoa(there[0])
	for _, v := range there[1:] {
		names += " and " + strconv.Itoa(v)
	}
	return nil, fmt.Errorf("this mount has no key of version %d, but of %s", version, names)
}

// checkNew refuses a key that another version has.
func (e Ring) CheckNew(key *Entry, now time.Time) error {
	parsed, err := key.Parse()
	if err != nil {
		return err
	}
	ks, err := e.Parse()
	if err != nil {
		return err
	}
	for _, k := range ks.Known(now) {
		if k.Fingerprint == parsed.Fingerprint {
			return refuse.Errorf("this is the key of version %d; a new version needs another one: leave it out, and Vault generates one", k.Version)
		}
	}
	return nil
}

// applyKey changes the proxy's address, and refuses to change the key, which is
// config/rotate's. Terraform writes the same key again and again.
func (e *Ring) ApplyKey(p Request) (warnings []string, err error) {
	const rotate = "an update doesn't change the key; config/rotate replaces it at once, config/rotate/stage without downtime"
	key := e.Current
	if p.Algorithm != "" && p.Algorithm != key.Algorithm {
		return nil, refuse.Errorf("algorithm %q is not the present one, %s, and %s", p.Algorithm, key.Algorithm, rotate)
	}
	if err := p.checkAlgorithm(key.Algorithm); err != nil {
		return nil, refuse.Error(err)
	}
	present, err := key.Parse()
	if err != nil {
		return nil, err
	}
	if name := p.keyName(); name != "" {
		brought := Entry{Algorithm: key.Algorithm, Secret: p.Secret, PrivateKey: p.PrivateKey}
		other, err := brought.Parse()
		if err != nil {
			return nil, err
		}
		if other.Fingerprint != present.Fingerprint {
			return nil, refuse.Errorf("%s is not the present one, and %s", name, rotate)
		}
	}
	if p.proxyURL == "" || p.proxyURL == key.ProxyURL {
		return nil, nil
	}
	for _, other := range []*Entry{e.Pending, e.Previous} {
		if other != nil && other.ProxyURL == p.proxyURL {
			return nil, refuse.Errorf("proxy_url %q is that of version %d, whose key its proxy holds; the current version is %d", p.proxyURL, other.Version, key.Version)
		}
	}
	warnings = []string{fmt.Sprintf("tokens go to %s from here on, whose proxy must hold version %d of the key; whoever asks with proxy_url=%s is refused", p.proxyURL, key.Version, key.ProxyURL)}
	was := key.ProxyURL
	for _, k := range []*Entry{e.Current, e.Pending, e.Previous} {
		if k != nil && k.ProxyURL == was { // the same proxy, which has moved
			k.ProxyURL = p.proxyURL
		}
	}
	return warnings, nil
}
