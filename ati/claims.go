package ati

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/golang-jwt/jwt/v5"
)

// Claims are the claims of a session token, in the order of the token's JSON.
type Claims struct {
	Subject   string     // sub: the agent or sandbox
	Audience  string     // aud: one string; the proxy rejects an array
	IssuedAt  int64      // iat: seconds since 1970-01-01 UTC
	ExpiresAt int64      // exp: seconds since 1970-01-01 UTC
	Scope     string     // scope: patterns joined by single spaces; see BuildScope
	Issuer    string     // iss: omitted if empty
	ID        string     // jti: omitted if empty
	ATI       *Namespace // ati: omitted if nil
	JobID     string     // job_id: omitted if empty; the proxy writes it to its audit file
	SandboxID string     // sandbox_id: omitted if empty; the proxy writes it to its audit file
}

// Namespace is the claim "ati".
type Namespace struct {
	// Version is "v", the version of the namespace's schema, which is 1. The
	// proxy requires it and accepts 0 to 255.
	Version uint8 `json:"v"`
	// Rate is "rate", which maps a pattern to a rate, such as "tool:github:*"
	// to "10/hour". It is omitted if empty. If the proxy cannot parse one rate,
	// it drops all of them; see ParseRate.
	Rate map[string]string `json:"rate,omitempty"`
}

// Scopes returns the patterns of the scope claim.
func (c *Claims) Scopes() []string { return ParseScopes(c.Scope) }

// MarshalJSON returns the claims as ati-client encodes them. It never fails.
func (c Claims) MarshalJSON() ([]byte, error) { return c.appendJSON(nil), nil }

// UnmarshalJSON parses the claims of a token as strictly as [ValidateToken]
// does. It returns an error if a required claim is missing, or if a known claim
// appears twice or has the wrong type. It does not check the values.
func (c *Claims) UnmarshalJSON(b []byte) error {
	if err := checkJSON(b); err != nil {
		return err
	}
	var w wireClaims
	if err := w.UnmarshalJSON(b); err != nil {
		return err
	}
	*c = w.Claims
	return nil
}

// appendJSON appends the claims as Python's json.dumps encodes them with
// ensure_ascii. encoding/json escapes different characters, and the bytes must
// equal those of ati-client.
func (c *Claims) appendJSON(b []byte) []byte {
	b = appendString(append(b, `{"sub":`...), c.Subject)
	b = appendString(append(b, `,"aud":`...), c.Audience)
	b = strconv.AppendInt(append(b, `,"iat":`...), c.IssuedAt, 10)
	b = strconv.AppendInt(append(b, `,"exp":`...), c.ExpiresAt, 10)
	b = appendString(append(b, `,"scope":`...), c.Scope)
	if c.Issuer != "" {
		b = appendString(append(b, `,"iss":`...), c.Issuer)
	}
	if c.ID != "" {
		b = appendString(append(b, `,"jti":`...), c.ID)
	}
	if c.ATI != nil {
		b = strconv.AppendUint(append(b, `,"ati":{"v":`...), uint64(c.ATI.Version), 10)
		b = appendRates(b, c.ATI.Rate)
		b = append(b, '}')
	}
	if c.JobID != "" {
		b = appendString(append(b, `,"job_id":`...), c.JobID)
	}
	if c.SandboxID != "" {
		b = appendString(append(b, `,"sandbox_id":`...), c.SandboxID)
	}
	return append(b, '}')
}

// appendRates appends the member "rate", sorted by pattern, unless it is empty.
func appendRates(b []byte, rates map[string]string) []byte {
	if len(rates) == 0 {
		return b
	}
	patterns := make([]string, 0, len(rates))
	for pattern := range rates {
		patterns = append(patterns, pattern)
	}
	slices.Sort(patterns)
	b = append(b, `,"rate":{`...)
	for i, pattern := range patterns {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendString(b, pattern)
		b = appendString(append(b, ':'), rates[pattern])
	}
	return append(b, '}')
}

func appendString(b []byte, s string) []byte {
	b = append(b, '"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b = append(b, '\\', byte(r))
		case r >= ' ' && r <= '~':
			b = append(b, byte(r))
		case r == '\b':
			b = append(b, `\b`...)
		case r == '\f':
			b = append(b, `\f`...)
		case r == '\n':
			b = append(b, `\n`...)
		case r == '\r':
			b = append(b, `\r`...)
		case r == '\t':
			b = append(b, `\t`...)
		case r > 0xffff:
			r -= 0x10000
			b = appendEscape(appendEscape(b, 0xd800+(r>>10)), 0xdc00+(r&0x3ff))
		default:
			b = appendEscape(b, r)
		}
	}
	return append(b, '"')
}

func appendEscape(b []byte, r rune) []byte {
	const hexDigits = "0123456789abcdef"
	return append(b, '\\', 'u', hexDigits[r>>12&0xf], hexDigits[r>>8&0xf], hexDigits[r>>4&0xf], hexDigits[r&0xf])
}

// segmentEncoding encodes the segments of a token (RFC 7515, section 2). It is
// strict because the proxy and ati-client reject nonzero trailing bits.
var segmentEncoding = base64.RawURLEncoding.Strict()

func encodeSegment(b []byte) string { return segmentEncoding.EncodeToString(b) }

// maxDepth is the maximum nesting depth of the JSON in a token. Python's parser
// fails near 1,000.
const maxDepth = 127

// wireClaims parses claims as strictly as the proxy (serde) and ati-client
// (PyJWT) combined, and implements jwt.Claims. encoding/json is more permissive
// than both: it accepts duplicate and case-folded names ("SUB"), null for any
// type, and invalid UTF-16.
type wireClaims struct {
	Claims
	notBefore *jwt.NumericDate
}

func (w *wireClaims) UnmarshalJSON(b []byte) error {
	seen, err := readObject(b, func(name string, value json.RawMessage) (err error) {
		switch name {
		case "sub":
			w.Subject, err = readString(value)
		case "aud":
			w.Audience, err = readString(value)
		case "iat":
			w.IssuedAt, err = readSeconds(value)
		case "exp":
			w.ExpiresAt, err = readSeconds(value)
		case "nbf":
			w.notBefore, err = readNotBefore(value)
		case "scope":
			w.Scope, err = readString(value)
		case "iss":
			w.Issuer, err = readOptionalString(value)
		case "jti":
			// Unlike iss, jti must not be null: PyJWT rejects it.
			w.ID, err = readString(value)
		case "ati":
			w.ATI, err = readNamespace(value)
		case "job_id":
			w.JobID, err = readOptionalString(value)
		case "sandbox_id":
			w.SandboxID, err = readOptionalString(value)
		default:
			return errUnknownMember
		}
		return err
	})
	if err != nil {
		return err
	}
	return checkRequired(seen)
}

// requiredClaims are the claims without which the proxy rejects a token.
var requiredClaims = [...]string{"sub", "aud", "iat", "exp", "scope"}

func checkRequired(seen map[string]bool) error {
	for _, name := range requiredClaims {
		if !seen[name] {
			return fmt.Errorf("claim %q is missing", name)
		}
	}
	return nil
}

func readNamespace(b json.RawMessage) (*Namespace, error) {
	if string(b) == "null" {
		return nil, nil
	}
	ns := new(Namespace)
	seen, err := readObject(b, func(name string, value json.RawMessage) error {
		switch name {
		case "v":
			v, err := strconv.ParseUint(string(value), 10, 8)
			if err != nil {
				return errors.New("must be an integer from 0 to 255")
			}
			ns.Version = uint8(v)
		case "rate":
			_, err := readObject(value, func(pattern string, value json.RawMessage) (err error) {
				if ns.Rate == nil {
					ns.Rate = map[string]string{}
				}
				if ns.Rate[pattern], err = readString(value); err != nil {
					return err
				}
				return errUnknownMember // as in the proxy, the last duplicate wins
			})
			return err
		default:
			return errUnknownMember
		}
		return nil
	})
	if err == nil && !seen["v"] {
		err = errors.New(`"v" is missing`)
	}
	return ns, err
}

// errUnknownMember makes readObject accept duplicates of a member.
var errUnknownMember = errors.New("unknown member")

// readObject calls read for each member of a JSON object, in order. It returns
// the names for which read returned nil, and fails if one of them appears
// twice. Members for which read returns errUnknownMember are ignored.
func readObject(b []byte, read func(name string, value json.RawMessage) error) (map[string]bool, error) {
	dec := json.NewDecoder(bytes.NewReader(b))
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return nil, errors.New("must be a JSON object")
	}
	seen := map[string]bool{}
	for dec.More() {
		t, err := dec.Token()
		if err != nil {
			return nil, err
		}
		name, _ := t.(string)
		if strings.ContainsRune(name, utf8.RuneError) {
			return nil, errors.New("member name must be valid Unicode")
		}
		var value json.RawMessage
		if err := dec.Decode(&value); err != nil {
			return nil, err
		}
		switch err := read(name, value); {
		case err == errUnknownMember:
		case err != nil:
			return nil, fmt.Errorf("%q: %w", name, err)
		case seen[name]:
			return nil, fmt.Errorf("%q appears twice", name)
		default:
			seen[name] = true
		}
	}
	if _, err := dec.Token(); err != nil {
		return nil, err
	}
	if _, err := dec.Token(); err != io.EOF {
		return nil, errors.New("must be a single JSON value")
	}
	return seen, nil
}

func readString(b json.RawMessage) (string, error) {
	if b[0] != '"' {
		return "", errors.New("must be a string")
	}
	var s string
	if err := json.Unmarshal(b, &s); err != nil {
		return "", err
	}
	// encoding/json decodes a lone surrogate, which the proxy rejects, to RuneError.
	if strings.ContainsRune(s, utf8.RuneError) {
		return "", errors.New("must be valid Unicode")
	}
	return s, nil
}

func readOptionalString(b json.RawMessage) (string, error) {
	if string(b) == "null" {
		return "", nil
	}
	return readString(b)
}

func readSeconds(b json.RawMessage) (int64, error) {
	n, err := strconv.ParseUint(string(b), 10, 63)
	if err != nil {
		return 0, errors.New("must be a Unix time in seconds, as a non-negative JSON integer")
	}
	return int64(n), nil
}

// readNotBefore reads nbf, which the proxy ignores and PyJWT rounds down.
func readNotBefore(b json.RawMessage) (*jwt.NumericDate, error) {
	f, err := strconv.ParseFloat(string(b), 64)
	if err != nil {
		return nil, errors.New("must be a number")
	}
	return numericDate(int64(min(math.Floor(f), maxSeconds))), nil
}

// maxSeconds limits times so that adding a leeway cannot overflow time.Time.
const maxSeconds = 1 << 55

func numericDate(seconds int64) *jwt.NumericDate {
	return jwt.NewNumericDate(unixTime(min(seconds, maxSeconds)))
}

func (w *wireClaims) GetSubject() (string, error) { return w.Subject, nil }
func (w *wireClaims) GetIssuer() (string, error)  { return w.Issuer, nil }
func (w *wireClaims) GetAudience() (jwt.ClaimStrings, error) {
	return jwt.ClaimStrings{w.Audience}, nil
}
func (w *wireClaims) GetNotBefore() (*jwt.NumericDate, error) { return w.notBefore, nil }
func (w *wireClaims) GetIssuedAt() (*jwt.NumericDate, error)  { return numericDate(w.IssuedAt), nil }
func (w *wireClaims) GetExpirationTime() (*jwt.NumericDate, error) {
	return numericDate(w.ExpiresAt), nil
}

// checkJSON rejects JSON that encoding/json accepts and the proxy does not.
func checkJSON(b []byte) error {
	switch {
	case !utf8.Valid(b):
		return errors.New("must be valid UTF-8")
	case exceedsMaxDepth(b):
		return fmt.Errorf("must not be nested more than %d levels deep", maxDepth)
	}
	return nil
}

func exceedsMaxDepth(b []byte) bool {
	depth, inString := 0, false
	for i := 0; i < len(b); i++ {
		switch c := b[i]; {
		case inString && c == '\\':
			i++
		case c == '"':
			inString = !inString
		case inString:
		case c == '{' || c == '[':
			if depth++; depth > maxDepth {
				return true
			}
		case c == '}' || c == ']':
			depth--
		}
	}
	return false
}
