// Package keyring holds the versions of a mount's signing key and the steps of their
// life, as values: no storage, no clock.
package keyring

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"vault-plugin-secrets-ati/ati"
)

// Ring is the versions of the key as they are stored.
type Ring struct {
	// Current is the key that signs. It is nil after the config was deleted, when only
	// LastKeyVersion and LongestTTL remain.
	Current *Entry `json:"current,omitempty"`

	// Pending is to become the current version. Previous was the current version:
	// tokens for its proxy are minted until it is retired, and are valid there until
	// they have expired.
	Pending  *Entry `json:"pending,omitempty"`
	Previous *Entry `json:"previous,omitempty"`

	// RolledBack is set while the previous version is one that was rolled back, and
	// that activate makes current again.
	RolledBack bool `json:"rolled_back,omitempty"`

	// LastRotatedAt is the time of the last immediate rotation.
	LastRotatedAt time.Time `json:"last_rotated_at,omitzero"`

	// LastKeyVersion is the highest version number so far. It is kept when the config is
	// deleted, so that a number never names two keys.
	LastKeyVersion int `json:"last_key_version"`

	// LongestTTL is the longest TTL that any enabled role allowed since the current version
	// was activated, or longer. It is raised before the role is stored, so no token that is
	// minted from now on lives longer.
	LongestTTL time.Duration `json:"longest_ttl"`

	Schedule
}

// Keys is a Ring with its parsed keys. It is never changed. Without a config, Current
// is nil.
type Keys struct {
	Stored                     Ring
	Current, Pending, Previous *Key
}

// New returns the ring of a new config, with the first version of its key. remains is
// what a deleted config left.
func New(r Request, remains Ring, now time.Time) (Ring, error) {
	version := remains.LastKeyVersion + 1
	key, err := r.newEntry(Entry{Algorithm: ati.HS256}, version, now)
	if err != nil {
		return Ring{}, err
	}
	key.ActivatedAt = key.CreatedAt
	return Ring{Current: key, LastKeyVersion: version, LongestTTL: remains.LongestTTL, Schedule: NewSchedule()}, nil
}

// Remains returns what is kept of a ring when its config is deleted.
func (r *Ring) Remains() Ring {
	return Ring{LastKeyVersion: r.LastKeyVersion, LongestTTL: r.LongestTTL}
}

// Parse returns the ring with its parsed keys.
func (r Ring) Parse() (*Keys, error) {
	ks := &Keys{Stored: r}
	for _, v := range []struct {
		entry *Entry
		key   **Key
	}{{r.Current, &ks.Current}, {r.Pending, &ks.Pending}, {r.Previous, &ks.Previous}} {
		var err error
		if *v.key, err = v.entry.Parse(); err != nil {
			return nil, err
		}
	}
	return ks, nil
}

// Live returns the current version, the pending one, and the previous one until its
// last token has expired.
func (ks *Keys) Live(now time.Time) []*Key {
	keys := []*Key{ks.Current}
	if ks.Pending != nil {
		keys = append(keys, ks.Pending)
	}
	if ks.Previous != nil && !ks.Previous.Expired(now) {
		keys = append(keys, ks.Previous)
	}
	return keys
}

// State returns the state of a version: current, pending, or previous.
func (ks *Keys) State(k *Key) string {
	switch k {
	case ks.Current:
		return "current"
	case ks.Pending:
		return "pending"
	}
	return "previous"
}

// WithoutExpired returns the keys without an expired previous version.
func (ks *Keys) WithoutExpired(now time.Time) *Keys {
	if ks.Previous == nil || !ks.Previous.Expired(now) {
		return ks
	}
	without := *ks
	without.Previous = nil
	without.Stored.DropExpired(now)
	return &without
}

// ForProxy returns the version that mints tokens for the proxy at this URL, or the
// current version if the URL is empty.
func (ks *Keys) ForProxy(proxyURL string) (*Key, error) {
	reason := ""
	switch {
	case proxyURL == "" || proxyURL == ks.Current.ProxyURL:
		return ks.Current, nil
	case ks.Previous != nil && ks.Previous.ProxyURL == proxyURL:
		if ks.Previous.RetiredAt.IsZero() {
			return ks.Previous, nil
		}
		reason = fmt.Sprintf(": key version %d is retired", ks.Previous.Version)
	case ks.Pending != nil && ks.Pending.ProxyURL == proxyURL:
		reason = fmt.Sprintf(": key version %d is not active yet", ks.Pending.Version)
	}
	return nil, fmt.Errorf("no active key for proxy_url %q%s; the current proxy_url is %q", proxyURL, reason, ks.Current.ProxyURL)
}

// Version returns a live version by its number.
func (ks *Keys) Version(version int, now time.Time) (*Key, error) {
	live := ks.Live(now)
	slices.SortFunc(live, func(a, b *Key) int { return a.Version - b.Version })
	var available []string
	for _, k := range live {
		if k.Version == version {
			return k, nil
		}
		available = append(available, strconv.Itoa(k.Version))
	}
	return nil, fmt.Errorf("key version %d does not exist; available versions: %s", version, strings.Join(available, ", "))
}

// Validate returns the claims of a token, and the live version that signed it. An error
// has no version if none did.
func (ks *Keys) Validate(token string, now time.Time, options ...ati.ValidateOption) (claims *ati.Claims, key *Key, err error) {
	for _, k := range ks.Live(now) {
		if claims, err = ati.ValidateToken(token, k.Key, options...); err == nil {
			return claims, k, nil
		}
		for _, afterSignature := range []error{ati.ErrExpired, ati.ErrNotYetValid, ati.ErrAudience, ati.ErrIssuer} {
			if errors.Is(err, afterSignature) {
				return nil, k, err
			}
		}
	}
	return nil, nil, err
}

// LogFields returns the numbers of the versions as fields of a log line.
func (ks *Keys) LogFields() []any {
	fields := []any{"current_version", ks.Current.Version}
	if ks.Pending != nil {
		fields = append(fields, "pending_version", ks.Pending.Version)
	}
	if ks.Previous != nil {
		fields = append(fields, "previous_version", ks.Previous.Version)
	}
	return fields
}

// Update applies a write of config to the ring: it may change the proxy's URL. It does
// not change the key, which is what rotation is for, but accepts the current one,
// since Terraform writes the same values repeatedly.
func (ks *Keys) Update(r Request) (ring Ring, warnings []string, err error) {
	const rotate = "cannot be changed here; use config/rotate to replace the key immediately, or config/rotate/stage to rotate without downtime"
	ring, current := ks.Stored, ks.Current
	if r.Algorithm != "" && r.Algorithm != current.Algorithm {
		return ring, nil, fmt.Errorf("algorithm %q does not match the current key (%s) and %s", r.Algorithm, current.Algorithm, rotate)
	}
	if err := r.checkAlgorithm(current.Algorithm); err != nil {
		return ring, nil, err
	}
	if name := r.Imported(); name != "" {
		imported, err := (&Entry{Algorithm: current.Algorithm, Secret: r.Secret, PrivateKey: r.PrivateKey}).Parse()
		if err != nil {
			return ring, nil, err
		}
		if imported.Key.Fingerprint() != current.Key.Fingerprint() {
			if ring.Period > 0 {
				return ring, nil, fmt.Errorf("%s does not match the current key, which rotates automatically; remove %s from the request", name, name)
			}
			return ring, nil, fmt.Errorf("%s does not match the current key and %s", name, rotate)
		}
	}
	if r.proxyURL == "" || r.proxyURL == current.ProxyURL {
		return ring, nil, nil
	}
	for _, other := range []*Entry{ring.Pending, ring.Previous} {
		if other != nil && other.ProxyURL == r.proxyURL {
			return ring, nil, fmt.Errorf("proxy_url %q belongs to key version %d, and its proxy holds that key; choose a different URL (current version: %d)", r.proxyURL, other.Version, current.Version)
		}
	}
	warnings = []string{fmt.Sprintf("New tokens are for the proxy at %s, which must use key version %d. Requests with proxy_url=%s are now rejected.", r.proxyURL, current.Version, current.ProxyURL)}
	return ring.moveProxy(current.ProxyURL, r.proxyURL), warnings, nil
}

// moveProxy returns the ring with a new URL for all versions that have the old one:
// they share a proxy, which has moved.
func (r Ring) moveProxy(from, to string) Ring {
	for _, entry := range []**Entry{&r.Current, &r.Pending, &r.Previous} {
		if *entry != nil && (*entry).ProxyURL == from {
			moved := **entry
			moved.ProxyURL = to
			*entry = &moved
		}
	}
	return r
}

// newVersion returns the next version of the key, and reserves its number. A caller
// that imports the key of a live version gets an error.
func (r *Ring) newVersion(request Request, now time.Time) (*Entry, error) {
	entry, err := request.newEntry(*r.Current, r.LastKeyVersion+1, now)
	if err != nil {
		return nil, err
	}
	key, err := entry.Parse()
	if err != nil {
		return nil, err
	}
	keys, err := r.Parse()
	if err != nil {
		return nil, err
	}
	for _, k := range keys.Live(now) {
		if k.Key.Fingerprint() == key.Key.Fingerprint() {
			return nil, fmt.Errorf("%s is already the key of version %d; use a different key, or omit it to have Vault generate one", request.Imported(), k.Version)
		}
	}
	r.LastKeyVersion = entry.Version
	return entry, nil
}

// WithGeneration returns the ring with this generation for the versions that are new.
func (r Ring) WithGeneration(generation int64) Ring {
	for _, entry := range []**Entry{&r.Current, &r.Pending, &r.Previous} {
		if *entry != nil && (*entry).Generation == 0 {
			made := **entry
			made.Generation = generation
			*entry = &made
		}
	}
	return r
}

// DropExpired drops an expired previous version, and reports whether it did.
func (r *Ring) DropExpired(now time.Time) bool {
	if r.Previous == nil || !r.Previous.Expired(now) {
		return false
	}
	r.Previous, r.RolledBack = nil, false
	return true
}
