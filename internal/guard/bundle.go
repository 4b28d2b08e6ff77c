package guard

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"vault-plugin-secrets-ati/ati"
	"vault-plugin-secrets-ati/internal/revocation"
)

// response is a response of the engine's path guard.
type response struct {
	Epoch      string             `json:"epoch"`
	Generation int64              `json:"generation"`
	Audiences  []string           `json:"audiences"`
	Issuer     string             `json:"issuer"`
	Keys       []responseKey      `json:"keys"`
	Revoked    []revocation.Entry `json:"revoked"`
}

type responseKey struct {
	Version        int       `json:"version"`
	State          string    `json:"state"`
	Algorithm      string    `json:"algorithm"`
	Generated      bool      `json:"generated"`
	TokensExpireBy time.Time `json:"tokens_expire_by"`
	Secret         string    `json:"secret"`
	PublicKey      string    `json:"public_key"`
}

// parseResponse parses the data of a response. An error does not quote it.
func parseResponse(data map[string]any) (*response, error) {
	b, err := json.Marshal(data)
	if err != nil {
		return nil, errors.New("the response is not JSON")
	}
	r := new(response)
	if err := json.Unmarshal(b, r); err != nil {
		return nil, errors.New("the response has a field of another type")
	}
	switch {
	case r.Epoch == "" || r.Generation < 0:
		return nil, errors.New("the response has no epoch or no generation")
	case r.Keys == nil:
		return r, nil // nothing has changed
	case len(r.Audiences) == 0 || slices.Contains(r.Audiences, ""):
		return nil, errors.New("the response has no audience, or an empty one")
	}
	for _, e := range r.Revoked {
		if (e.JTI == "") == (e.Subject == "") {
			return nil, errors.New("the response has a revocation without jti and sub, or with both")
		}
	}
	return r, nil
}

// bundle is what a guard knows about the mount. It is never changed, except for the
// revocations, which the door's lock protects.
type bundle struct {
	epoch      string
	generation int64
	audiences  []string
	issuer     string
	keys       []*key // the current version first
	options    []ati.ValidateOption
	cache      *tokenCache
}

// key is a version of the mount's key.
type key struct {
	version   int
	state     string
	generated bool
	expireBy  time.Time // zero until it is retired
	key       ati.Key
	id        string // the key's fingerprint: after a snapshot was restored, another key may get its version
}

func (k *key) expired(now time.Time) bool { return !k.expireBy.IsZero() && !now.Before(k.expireBy) }

// errUnknownKey means that the response lists a version without its key, which the guard
// does not hold: it must read everything.
var errUnknownKey = errors.New("the response lists a key that this guard does not hold")

// next returns the bundle after a response with changes, and the faults of single keys,
// which are then not in it. before is nil at first.
func next(before *bundle, r *response, forward string) (after *bundle, faults []error, err error) {
	after = &bundle{epoch: r.Epoch, generation: r.Generation, audiences: r.Audiences, issuer: r.Issuer, cache: newTokenCache()}
	after.options = []ati.ValidateOption{ati.WithAudience(r.Audiences...)}
	if r.Issuer != "" {
		after.options = append(after.options, ati.WithIssuer(r.Issuer))
	}
	for _, from := range r.Keys {
		k := &key{version: from.Version, state: from.State, generated: from.Generated, expireBy: from.TokensExpireBy}
		if from.Secret == "" && from.PublicKey == "" {
			held := before.version(from.Version)
			if held == nil {
				return nil, nil, errUnknownKey
			}
			k.key, k.id = held.key, held.id
		} else if k.key, err = parseKey(from, forward); err != nil {
			faults = append(faults, fmt.Errorf("version %d: %w", from.Version, err))
			continue
		} else {
			k.id = k.key.Fingerprint()
		}
		after.keys = append(after.keys, k)
	}
	slices.SortStableFunc(after.keys, func(a, b *key) int { return rank(a) - rank(b) })
	return after, faults, nil
}

func rank(k *key) int { return slices.Index([]string{"pending", "previous", "current"}, k.state) * -1 }

func parseKey(from responseKey, forward string) (ati.Key, error) {
	switch {
	case from.Algorithm == ati.HS256 && forward == forwardOriginal:
		return ati.Key{}, errors.New("its algorithm is HS256, and forward = original requires ES256")
	case from.Algorithm == ati.ES256 && from.Secret == "":
		k, err := ati.ParsePublicKey(from.PublicKey)
		if err != nil {
			err = errors.New("the public key is malformed")
		}
		return k, err
	case from.Algorithm == ati.HS256 && from.PublicKey == "":
		if raw, err := hex.DecodeString(from.Secret); err == nil && len(raw) == 32 {
			return ati.ParseSecret(from.Secret)
		}
		return ati.Key{}, errors.New("the secret is not 64 hexadecimal digits")
	}
	return ati.Key{}, errors.New("the algorithm and the key do not belong together")
}

// holds reports whether a key is still one of the mount.
func (b *bundle) holds(k *key) bool {
	held := b.version(k.version)
	return held != nil && held.id == k.id
}

func (b *bundle) version(version int) *key {
	if b == nil {
		return nil
	}
	for _, k := range b.keys {
		if k.version == version {
			return k
		}
	}
	return nil
}

// liveKeys returns the versions that have not expired.
func (b *bundle) liveKeys(now time.Time) (keys []*key) {
	for _, k := range b.keys {
		if !k.expired(now) {
			keys = append(keys, k)
		}
	}
	return keys
}

// live returns what revocations need to know about these versions.
func (b *bundle) live(now time.Time) (live revocation.Live) {
	for _, k := range b.liveKeys(now) {
		live.Imported = live.Imported || !k.generated
	}
	return live
}
