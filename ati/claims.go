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

// Claims are the claims of a session token, in the order in which they are
// written.
type Claims struct {
	Subject   string     // sub: the agent or sandbox
	Audience  string     // aud: one string; the proxy refuses an array
	IssuedAt  int64      // iat: seconds since 1970-01-01 UTC
	ExpiresAt int64      // exp: seconds since 1970-01-01 UTC
	Scope     string     // scope: patterns joined by single spaces; see BuildScope
	Issuer    string     // iss: left out when empty
	ID        string     // jti: left out when empty
	ATI       *Namespace // ati: left out when nil
	JobID     string     // job_id: left out when empty; the proxy's audit file has it
	SandboxID string     // sandbox_id: left out when empty; the proxy's audit file has it
}

// Namespace is the claim "ati".
type Namespace struct {
	// Version is "v", the schema's version, 1. The proxy refuses a namespace
	// without it, and takes 0 to 255.
	Version uint8 `json:"v"`
	// Rate is "rate", a count per window for each pattern, such as
	// "tool:github:*": "10/hour". Left out when empty. One value that the
	// proxy can't parse drops all of them; see ParseRate.
	Rate map[string]string `json:"rate,omitempty"`
}

// Scopes returns the patterns of the scope claim.
func (c *Claims) Scopes() []string { return ParseScopes(c.Scope) }

// MarshalJSON writes the claims as ati-client does.
func (c Claims) MarshalJSON() ([]byte, error) { return c.appendJSON(nil), nil }

// UnmarshalJSON reads the claims of a token as strictly as [ValidateToken]
// does, but for their values: the required ones must be there, none may be
// there twice or have another type.
func (c *Claims) UnmarshalJSON(b []byte) error {
	if !readable(b) {
		return errors.New("the claims are not JSON that can be read")
	}
	var w wireClaims
	if err := w.UnmarshalJSON(b); err != nil {
		return err
	}
	*c = w.Claims
	return nil
}

// appendJSON writes the claims as Python's json.dumps does with
// ensure_ascii: encoding/json escapes other characters, and the bytes have to
// be ati-client's.
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
		patterns := make([]string, 0, len(c.ATI.Rate))
		for pattern := range c.ATI.Rate {
			patterns = append(patterns, pattern)
		}
		slices.Sort(patterns)
		for i, pattern := range patterns {
			if i == 0 {
				b = append(b, `,"rate":{`...)
			} else {
				b = append(b, ',')
			}
			b = appendString(b, pattern)
			b = appendString(append(b, ':'), c.ATI.Rate[pattern])
		}
		if len(c.ATI.Rate) > 0 {
			b = append(b, '}')
		}
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

// segmentEncoding is the encoding of a token's segments (RFC 7515, section 2).
// Strict: the proxy and ati-client refuse stray trailing bits.
var segmentEncoding = base64.RawURLEncoding.Strict()

func encodeSegment(b []byte) string { return segmentEncoding.EncodeToString(b) }

// maxDepth is how deep a token's JSON may nest: far from where Python's parser
// gives up, near 1,000.
const maxDepth = 127

// wireClaims reads claims as strictly as the proxy (serde) and ati-client
// (PyJWT) together, and shows them to golang-jwt. encoding/json alone is too
// kind: it takes duplicate and misspelt names ("SUB"), null for anything, and
// broken UTF-16.
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
		case "scope":
			w.Scope, err = readString(value)
		case "iss":
			w.Issuer, err = readOptionalString(value)
		case "jti":
			// Not optional where it is there: PyJWT refuses null.
			w.ID, err = readString(value)
		case "ati":
			w.ATI, err = readNamespace(value)
		case "job_id":
			w.JobID, err = readOptionalString(value)
		case "sandbox_id":
			w.SandboxID, err = readOptionalString(value)
		case "nbf":
			w.notBefore, err = readNotBefore(value)
		default:
			return errUnknownMember
		}
		return err
	})
	if err != nil {
		return err
	}
	for _, name := range []string{"sub", "aud", "iat", "exp", "scope"} {
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
				return errUnknownMember // a key given twice: the last one counts, as in the proxy
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

// errUnknownMember tells readObject that a member may be there more than once.
var errUnknownMember = errors.New("unknown member")

// readObject calls read for each member of a JSON object, in order. It returns
// the names that read knew, and refuses one of these given twice.
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
			return nil, errors.New("a member's name must be valid Unicode")
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
			return nil, fmt.Errorf("%q is given twice", name)
		default:
			seen[name] = true
		}
	}
	if _, err := dec.Token(); err != nil {
		return nil, err
	}
	if _, err := dec.Token(); err != io.EOF {
		return nil, errors.New("has more than one JSON value")
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
	// What encoding/json writes for half a surrogate pair, which the proxy refuses.
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
		return 0, errors.New("must be a whole number of seconds since 1970, as a JSON integer")
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

// maxSeconds is far beyond any clock, and near enough for time.Time to add to.
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

// readable reports whether the proxy could read this as JSON, so far as encoding/json
// is kinder.
func readable(b []byte) bool { return utf8.Valid(b) && !tooDeep(b) }

// tooDeep reports whether JSON nests deeper than maxDepth.
func tooDeep(b []byte) bool {
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
