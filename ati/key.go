package ati

import (
	"encoding/hex"
	"errors"
	"strings"

	"github.com/golang-jwt/jwt/v5"
)

// HS256 is the only signing algorithm of this package so far (RFC 7518,
// section 3.2).
const HS256 = "HS256"

// maxSignature is the length of the longest encoded signature.
const maxSignature = 86

// Key signs and verifies tokens. Its zero value does neither. Printing a Key
// never shows what is in it.
type Key struct {
	// A pointer, so that fmt shows an address even where a Key is an
	// unexported field, whose String method it can't call.
	material *keyMaterial
}

type keyMaterial struct {
	method jwt.SigningMethod
	header string // the encoded JOSE header and the dot behind it
	sign   any    // what method.Sign takes
	verify any    // what method.Verify takes
}

// ParseSecret makes an HS256 key of a hex-encoded secret, as ati-client does:
// any number of bytes but none, in either case, with ASCII white space allowed
// between bytes. The proxy itself takes no white space in ATI_JWT_SECRET.
func ParseSecret(secret string) (Key, error) {
	var raw []byte
	for _, group := range strings.FieldsFunc(secret, isASCIISpace) {
		b, err := hex.DecodeString(group)
		if err != nil {
			// hex's own error would quote a byte of the secret.
			return Key{}, &TokenError{Op: "parse key", Err: errors.New("an HS256 secret must be hex digits, two for each byte")}
		}
		raw = append(raw, b...)
	}
	if len(raw) == 0 {
		return Key{}, &TokenError{Op: "parse key", Err: errors.New("an HS256 secret must not be empty")}
	}
	return Key{&keyMaterial{
		method: jwt.SigningMethodHS256,
		header: encodeSegment([]byte(`{"alg":"HS256","typ":"JWT"}`)) + ".",
		sign:   raw,
		verify: raw,
	}}, nil
}

func isASCIISpace(r rune) bool {
	return r == ' ' || r >= '\t' && r <= '\r'
}

// Algorithm returns the key's JOSE algorithm, [HS256], or "" for the zero Key.
func (k Key) Algorithm() string {
	if k.material == nil {
		return ""
	}
	return k.material.method.Alg()
}

// String hides the key.
func (k Key) String() string { return "ati.Key(" + k.Algorithm() + ")" }

// GoString hides the key.
func (k Key) GoString() string { return k.String() }

// Sign writes the claims as they are, with no defaults, as a signed token. The
// zero Key gives a *[TokenError].
func (k Key) Sign(c *Claims) (string, error) {
	if k.material == nil {
		return "", &TokenError{Op: "issue token", Err: errors.New("the key is empty")}
	}
	payload := c.appendJSON(make([]byte, 0, 512+len(c.Scope)))
	token := make([]byte, 0, len(k.material.header)+segmentEncoding.EncodedLen(len(payload))+1+maxSignature)
	token = append(token, k.material.header...)
	token = segmentEncoding.AppendEncode(token, payload)
	// Not jwt.Token.SignedString: it marshals the header anew for every
	// token, which costs more than the signature.
	sig, err := k.material.method.Sign(string(token), k.material.sign)
	if err != nil {
		return "", &TokenError{Op: "issue token", Err: err}
	}
	return string(segmentEncoding.AppendEncode(append(token, '.'), sig)), nil
}
