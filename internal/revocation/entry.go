// Package revocation holds the revoked tokens and subjects of a mount, as values: no
// storage, no clock.
package revocation

import (
	"fmt"
	"regexp"
	"strings"
)

// Entry is one revocation. Times are in seconds since the Unix epoch.
type Entry struct {
	JTI     string `json:"jti,omitempty"` // a token, or all tokens of a batch by the ID of its request
	Subject string `json:"sub,omitempty"` // or every token of this subject with an iat up to RevokedAt

	RevokedAt int64 `json:"revoked_at"`
	ExpiresAt int64 `json:"expires_at"` // when all tokens that this mount minted until RevokedAt have expired at every proxy

	// KeyVersion is the highest version of the key at RevokedAt.
	KeyVersion int `json:"key_version"`
	// Imported is set if a version up to KeyVersion was imported: others can sign
	// tokens with it that have any exp.
	Imported bool `json:"imported,omitempty"`

	Lease      bool  `json:"lease,omitempty"` // revoked with its lease
	Generation int64 `json:"generation"`
}

const maxSeconds = 253_402_300_799 // the end of the year 9999

// ForToken returns the revocation of a token that expires at exp. Proxies accept it
// through the 60th second after that.
func ForToken(jti string, exp int64, lease bool) *Entry {
	return &Entry{JTI: jti, ExpiresAt: min(exp, maxSeconds) + 61, Lease: lease}
}

// Live is what a revocation needs to know about the live versions of the key.
type Live struct {
	Oldest   int  // version
	Imported bool // whether one of them was imported
}

// Keep reports whether the entry must be kept: a token that it revokes may not have
// expired. Which versions are live does not matter to tokens of this mount, since a key
// that was replaced can be imported again.
func (e *Entry) Keep(live Live, now int64) bool {
	return now < e.ExpiresAt || e.Imported && live.Imported
}

// counts reports whether the entry counts toward the limit: a live key may have signed a
// token that it revokes.
func (e *Entry) counts(live Live, now int64) bool {
	return !e.Lease && e.Keep(live, now) && (live.Oldest <= e.KeyVersion || live.Imported)
}

// Include makes the entry revoke also what an earlier one of the same name revokes. What
// was first revoked with its lease still counts as such.
func (e *Entry) Include(old *Entry) {
	e.RevokedAt, e.ExpiresAt = max(e.RevokedAt, old.RevokedAt), max(e.ExpiresAt, old.ExpiresAt)
	e.KeyVersion = max(e.KeyVersion, old.KeyVersion)
	e.Imported = e.Imported || old.Imported
	e.Lease = old.Lease
}

// Name identifies what is revoked, such as "jti:…" or "agent_id:…".
func (e *Entry) Name() string {
	if e.JTI != "" {
		return jtiName(e.JTI)
	}
	return subjectName(e.Subject)
}

func jtiName(jti string) string     { return "jti:" + jti }
func subjectName(sub string) string { return "agent_id:" + sub }

// Buckets is the number of storage entries over which revocations are spread: few enough
// to read all after a failover, and enough that writing one costs the same however many
// revocations there are.
const Buckets = 4096

var jtiForm = regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}(\.[1-9][0-9]{0,3})?\z`)

// CheckJTI checks the form of a token's ID: the ID of a Vault request, for a token of a
// batch followed by a dot and a number.
func CheckJTI(field, jti string) error {
	if !jtiForm.MatchString(jti) {
		return fmt.Errorf("%s %q: must be the jti of a token, such as 5b1a9a1e-6f3f-7e4e-2a55-0c8f7f3f9d10, in a batch followed by a dot and a number", field, jti)
	}
	return nil
}

// batchID returns the ID of the request that a token of a batch has in its jti.
func batchID(jti string) (string, bool) {
	id, _, ok := strings.Cut(jti, ".")
	return id, ok
}
