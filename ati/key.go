package ati

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/golang-jwt/jwt/v5"
)

// The signing algorithms (RFC 7518, section 3). The proxy takes one of them,
// by the key that it is started with.
const (
	HS256 = "HS256" // HMAC with SHA-256: proxy and issuer hold the same secret
	ES256 = "ES256" // ECDSA with P-256 and SHA-256: the proxy holds a public key only
)

// maxPEM is far more than a P-256 key needs.
const maxPEM = 4096

// maxSignature is the length of the longest encoded signature.
const maxSignature = 86

// Key signs and verifies tokens, or with a public key only verifies them. Its
// zero value does neither. Printing a Key never shows what is in it.
type Key struct {
	// A pointer to a pointer, so that fmt shows an address even where a Key is
	// an unexported field, whose String method it can't call. (With a verb that
	// doesn't fit, such as %s, it would follow a pointer to a struct.)
	material **keyMaterial
}

type keyMaterial struct {
	method jwt.SigningMethod
	header string // the encoded JOSE header and the dot behind it
	sign   any    // what method.Sign takes; nil where only a public key is known
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
			return Key{}, keyError("an HS256 secret must be hex digits, two for each byte")
		}
		raw = append(raw, b...)
	}
	if len(raw) == 0 {
		return Key{}, keyError("an HS256 secret must not be empty")
	}
	return newKey(jwt.SigningMethodHS256, "", raw, raw), nil
}

func isASCIISpace(r rune) bool {
	return r == ' ' || r >= '\t' && r <= '\r'
}

// ParsePrivateKey makes an ES256 key of a P-256 private key in PEM, SEC1 ("EC
// PRIVATE KEY") or PKCS#8 ("PRIVATE KEY"), not encrypted. The block of EC
// PARAMETERS that openssl ecparam writes before it may stand there; nothing
// else may.
func ParsePrivateKey(text string) (Key, error) {
	const want = "must be one P-256 private key in PEM, SEC1 or PKCS#8, not encrypted"
	block, err := onlyBlock(text, p256Parameters)
	if err != nil {
		return Key{}, keyError("%s; %w", want, err)
	}
	var parsed any
	switch {
	case block.Type == "ENCRYPTED PRIVATE KEY" || block.Headers["DEK-Info"] != "":
		return Key{}, keyError("%s; it is encrypted. To decrypt it: openssl pkey -in <file>", want)
	case block.Type == "EC PRIVATE KEY":
		parsed, err = x509.ParseECPrivateKey(block.Bytes)
	case block.Type == "PRIVATE KEY":
		parsed, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	default:
		return Key{}, keyError("%s; it is %s", want, labelOf(block))
	}
	if err != nil {
		// The error of x509 may quote it.
		return Key{}, keyError("%s; it can't be read, or names a curve in a way that is not known here", want)
	}
	// x509 passes over what stands behind a private key, as in a block of two.
	if rest, err := asn1.Unmarshal(block.Bytes, new(asn1.RawValue)); err != nil || len(rest) > 0 {
		return Key{}, keyError("%s; there is something behind it", want)
	}
	private, ok := parsed.(*ecdsa.PrivateKey)
	if !ok || private.Curve != elliptic.P256() {
		return Key{}, keyError("%s; it is a key of %s", want, kindOf(parsed))
	}
	if d, err := private.Bytes(); err != nil || len(slices.Compact(slices.Sorted(slices.Values(d)))) < minDifferentBytes {
		return Key{}, keyError("%s; it is not random", want)
	}
	return newKey(jwt.SigningMethodES256, "", private, &private.PublicKey), nil
}

// ParsePublicKey makes an ES256 key that only verifies, of a P-256 public key
// in PEM ("PUBLIC KEY", SubjectPublicKeyInfo), in lines of 64 characters as openssl
// writes them: what the proxy reads from the file that ATI_JWT_PUBLIC_KEY names.
func ParsePublicKey(text string) (Key, error) {
	const want = "must be one P-256 public key in PEM"
	block, err := onlyBlock(text, nil) // the proxy takes no other
	if err != nil {
		return Key{}, keyError("%s; %w", want, err)
	}
	if block.Type != "PUBLIC KEY" {
		return Key{}, keyError("%s; it is %s", want, labelOf(block))
	}
	parsed, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return Key{}, keyError("%s; it can't be read", want)
	}
	public, ok := parsed.(*ecdsa.PublicKey)
	if !ok || public.Curve != elliptic.P256() {
		return Key{}, keyError("%s; it is a key of %s", want, kindOf(parsed))
	}
	// The proxy opens itself to everybody where, say, a line is blank, or a byte
	// stands behind the last element of a sequence.
	der, err := x509.MarshalPKIXPublicKey(public)
	lines := strings.ReplaceAll(strings.TrimFunc(text, isASCIISpace), "\r\n", "\n") + "\n"
	if err != nil || lines != string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})) {
		return Key{}, keyError("%s; it is not written as openssl writes it. To write it anew: openssl pkey -pubin -in <file>", want)
	}
	return newKey(jwt.SigningMethodES256, "", nil, public), nil
}

// p256Parameters name the curve: the OID prime256v1.
var p256Parameters = []byte{6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7}

// onlyBlock decodes the one PEM block of a text. Before it may stand a block of EC
// PARAMETERS with these, unless they are nil.
func onlyBlock(text string, parameters []byte) (*pem.Block, error) {
	if len(text) > maxPEM {
		return nil, fmt.Errorf("it has %d bytes, and a key has no more than %d", len(text), maxPEM)
	}
	text = strings.TrimFunc(text, isASCIISpace)
	if !strings.HasPrefix(text, beginPEM) {
		return nil, errors.New("it doesn't begin with -----BEGIN")
	}
	block, rest, err := firstBlock(text)
	if err == nil && parameters != nil && block.Type == "EC PARAMETERS" {
		switch {
		case len(block.Headers) > 0 || !bytes.Equal(block.Bytes, parameters):
			return nil, errors.New("its EC PARAMETERS don't name P-256")
		case !strings.HasPrefix(rest, beginPEM):
			return nil, errors.New("its EC PARAMETERS are not followed by a key")
		}
		block, rest, err = firstBlock(rest)
	}
	switch {
	case err != nil:
		return nil, err
	case len(block.Headers) > 0 && block.Headers["DEK-Info"] == "":
		return nil, errors.New("it has headers")
	case strings.TrimFunc(rest, isASCIISpace) != "":
		return nil, errors.New("there is something behind it")
	}
	return block, nil
}

const beginPEM = "-----BEGIN "

// firstBlock decodes the PEM block that a text begins with. pem.Decode alone would
// pass over one that it can't read, whatever it holds, and take the next.
func firstBlock(text string) (block *pem.Block, rest string, err error) {
	block, after := pem.Decode([]byte(text))
	rest = string(after)
	if block == nil || strings.Count(strings.TrimSuffix(text, rest), beginPEM) != 1 {
		return nil, "", errors.New("it can't be read")
	}
	return block, rest, nil
}

// labelOf names a block of the wrong kind. A label that isn't a known one is
// not quoted: in a mangled file the key may stand there.
func labelOf(block *pem.Block) string {
	switch block.Type {
	case "PRIVATE KEY", "EC PRIVATE KEY", "RSA PRIVATE KEY", "DSA PRIVATE KEY", "OPENSSH PRIVATE KEY", "ENCRYPTED PRIVATE KEY",
		"PUBLIC KEY", "RSA PUBLIC KEY", "CERTIFICATE", "CERTIFICATE REQUEST", "EC PARAMETERS":
		return fmt.Sprintf("a %q", block.Type)
	}
	return "something else"
}

// minDifferentBytes is what 32 random bytes have practically always.
const minDifferentBytes = 8

// kindOf names a key of the wrong kind.
func kindOf(key any) string {
	switch k := key.(type) {
	case *ecdsa.PrivateKey:
		return k.Curve.Params().Name
	case *ecdsa.PublicKey:
		return k.Curve.Params().Name
	}
	return "another algorithm"
}

func keyError(format string, args ...any) error {
	return &TokenError{Op: "parse key", Err: fmt.Errorf(format, args...)}
}

func newKey(method jwt.SigningMethod, id string, sign, verify any) Key {
	header := fmt.Appendf(nil, `{"alg":%q,"typ":"JWT"`, method.Alg())
	if id != "" {
		header = appendString(append(header, `,"kid":`...), id)
	}
	material := &keyMaterial{method: method, header: encodeSegment(append(header, '}')) + ".", sign: sign, verify: verify}
	return Key{&material}
}

// WithID returns the same key, whose tokens name it by the header parameter kid
// (RFC 7515, section 4.1.4). The proxy passes over it; who verifies with a JWK
// Set finds the key by it. ati-client sets none.
func (k Key) WithID(id string) Key {
	if k.material == nil {
		return k
	}
	return newKey((*k.material).method, id, (*k.material).sign, (*k.material).verify)
}

// Algorithm returns the key's JOSE algorithm, [HS256] or [ES256], or "" for the
// zero Key.
func (k Key) Algorithm() string {
	if k.material == nil {
		return ""
	}
	return (*k.material).method.Alg()
}

// Public returns an ES256 key's public half, and nil for any other key.
func (k Key) Public() *ecdsa.PublicKey {
	if k.material == nil {
		return nil
	}
	public, _ := (*k.material).verify.(*ecdsa.PublicKey)
	return public
}

// String hides the key.
func (k Key) String() string { return "ati.Key(" + k.Algorithm() + ")" }

// GoString hides the key.
func (k Key) GoString() string { return k.String() }

// Sign writes the claims as they are, with no defaults, as a signed token. The
// zero Key and a public key give a *[TokenError].
func (k Key) Sign(c *Claims) (string, error) {
	switch {
	case k.material == nil:
		return "", &TokenError{Op: "issue token", Err: errors.New("the key is empty")}
	case (*k.material).sign == nil:
		return "", &TokenError{Op: "issue token", Err: errors.New("a public key can't sign")}
	}
	payload := c.appendJSON(make([]byte, 0, 512+len(c.Scope)))
	token := make([]byte, 0, len((*k.material).header)+segmentEncoding.EncodedLen(len(payload))+1+maxSignature)
	token = append(token, (*k.material).header...)
	token = segmentEncoding.AppendEncode(token, payload)
	// Not jwt.Token.SignedString: it marshals the header anew for every
	// token, which costs more than the signature.
	sig, err := (*k.material).method.Sign(string(token), (*k.material).sign)
	if err != nil {
		return "", &TokenError{Op: "issue token", Err: err}
	}
	return string(segmentEncoding.AppendEncode(append(token, '.'), sig)), nil
}
