package ati

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"hash"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/golang-jwt/jwt/v5"
)

// Signing algorithms (RFC 7518, section 3). A proxy accepts the algorithm of the
// key that it is started with.
const (
	HS256 = "HS256" // HMAC with SHA-256: the proxy and the issuer share a secret
	ES256 = "ES256" // ECDSA with P-256 and SHA-256: the proxy has only the public key
)

// maxPEM is the maximum length of a PEM text in bytes. A P-256 key needs less
// than 400.
const maxPEM = 4096

// maxSignature is the length in bytes of the longest base64url signature, that
// of ES256.
const maxSignature = 86

// Key signs and verifies tokens. A Key from [ParsePublicKey] only verifies; the
// zero Key does neither. Printing a Key never reveals the key.
type Key struct {
	// A pointer to a pointer, so that fmt prints an address even if the Key is
	// an unexported field, whose String method fmt cannot call. For a pointer to
	// a struct and an unsuitable verb such as %s, fmt prints the struct.
	material **keyMaterial
}

type keyMaterial struct {
	method jwt.SigningMethod
	header string // encoded JOSE header, with the dot that follows it
	sign   signer // nil for a public key
	verify any    // key for method.Verify
}

// signer returns the signature of a text.
type signer func(text []byte) ([]byte, error)

// hmacSigner returns the signer of an HS256 secret. To prepare an HMAC costs more than to
// compute one, so it keeps some.
func hmacSigner(secret []byte) signer {
	prepared := sync.Pool{New: func() any { return hmac.New(sha256.New, secret) }}
	return func(text []byte) ([]byte, error) {
		mac := prepared.Get().(hash.Hash)
		defer prepared.Put(mac)
		mac.Reset()
		mac.Write(text)
		return mac.Sum(nil), nil
	}
}

// ParseSecret returns the HS256 key of a secret in hexadecimal. Like ati-client,
// it accepts any number of bytes except zero, upper and lower case, and ASCII
// white space between bytes. The proxy accepts no white space in
// ATI_JWT_SECRET. The error is a *[TokenError].
func ParseSecret(secret string) (Key, error) {
	var raw []byte
	for _, group := range strings.FieldsFunc(secret, isASCIISpace) {
		b, err := hex.DecodeString(group)
		if err != nil {
			// The error of package hex would quote a byte of the secret.
			return Key{}, parseKeyError("HS256 secret must be pairs of hexadecimal digits")
		}
		raw = append(raw, b...)
	}
	if len(raw) == 0 {
		return Key{}, parseKeyError("HS256 secret must not be empty")
	}
	return newKey(jwt.SigningMethodHS256, "", hmacSigner(raw), raw), nil
}

func isASCIISpace(r rune) bool {
	return r == ' ' || r >= '\t' && r <= '\r'
}

// ParsePrivateKey returns the ES256 key of an unencrypted P-256 private key in
// PEM: SEC1 ("EC PRIVATE KEY", RFC 5915) or PKCS#8 ("PRIVATE KEY", RFC 5958).
// The text may have up to 4,096 bytes. It may begin with an "EC PARAMETERS"
// block for P-256, as "openssl ecparam -genkey" writes it, and must not contain
// anything else. The error is a *[TokenError].
func ParsePrivateKey(text string) (Key, error) {
	const want = "must be one unencrypted P-256 private key in PEM (SEC1 or PKCS#8)"
	block, err := decodeBlock(text, p256Parameters)
	if err != nil {
		return Key{}, parseKeyError("%s; %w", want, err)
	}
	var parsed any
	switch {
	case block.Type == "ENCRYPTED PRIVATE KEY" || block.Headers["DEK-Info"] != "":
		return Key{}, parseKeyError(`%s; the key is encrypted (use "openssl pkey" to decrypt it)`, want)
	case block.Type == "EC PRIVATE KEY":
		parsed, err = x509.ParseECPrivateKey(block.Bytes)
	case block.Type == "PRIVATE KEY":
		parsed, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	default:
		return Key{}, parseKeyError("%s; the PEM block type is %s", want, blockType(block))
	}
	if err != nil {
		// The error of package x509 may quote the key.
		return Key{}, parseKeyError("%s; cannot parse key, or unsupported curve encoding", want)
	}
	// x509 ignores trailing data after the key.
	if rest, err := asn1.Unmarshal(block.Bytes, new(asn1.RawValue)); err != nil || len(rest) > 0 {
		return Key{}, parseKeyError("%s; unexpected data after the key", want)
	}
	private, ok := parsed.(*ecdsa.PrivateKey)
	if !ok || private.Curve != elliptic.P256() {
		return Key{}, parseKeyError("%s; the key is for %s", want, keyType(parsed))
	}
	if d, err := private.Bytes(); err != nil || len(slices.Compact(slices.Sorted(slices.Values(d)))) < minDistinctBytes {
		return Key{}, parseKeyError("%s; key is not random (too few distinct bytes)", want)
	}
	sign := func(text []byte) ([]byte, error) { return jwt.SigningMethodES256.Sign(string(text), private) }
	return newKey(jwt.SigningMethodES256, "", sign, &private.PublicKey), nil
}

// ParsePublicKey returns an ES256 key that can only verify, from a P-256 public
// key in PEM ("PUBLIC KEY", the SubjectPublicKeyInfo of RFC 5280). The text is
// the content of the file that the proxy reads as ATI_JWT_PUBLIC_KEY. Except
// for white space around it and CRLF line ends, it must be exactly what openssl
// writes. The error is a *[TokenError].
func ParsePublicKey(text string) (Key, error) {
	const want = "must be one P-256 public key in PEM"
	block, err := decodeBlock(text, nil) // the proxy accepts no EC PARAMETERS
	if err != nil {
		return Key{}, parseKeyError("%s; %w", want, err)
	}
	if block.Type != "PUBLIC KEY" {
		return Key{}, parseKeyError("%s; the PEM block type is %s", want, blockType(block))
	}
	parsed, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return Key{}, parseKeyError("%s; cannot parse key", want)
	}
	public, ok := parsed.(*ecdsa.PublicKey)
	if !ok || public.Curve != elliptic.P256() {
		return Key{}, parseKeyError("%s; the key is for %s", want, keyType(parsed))
	}
	// If the proxy cannot parse the file, it accepts unauthenticated requests. A
	// blank line or trailing data in the DER, which pem and x509 ignore, is
	// enough.
	key := newKey(jwt.SigningMethodES256, "", nil, public)
	if lines := strings.ReplaceAll(strings.TrimFunc(text, isASCIISpace), "\r\n", "\n") + "\n"; lines != key.PublicPEM() {
		return Key{}, parseKeyError(`%s; the encoding is not canonical (use "openssl pkey -pubin" to rewrite it)`, want)
	}
	return key, nil
}

// p256Parameters is the DER of the OID prime256v1, which names the curve P-256.
var p256Parameters = []byte{6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7}

// decodeBlock returns the only PEM block of a text. If parameters is not nil, a
// block of EC PARAMETERS with this content may precede it.
func decodeBlock(text string, parameters []byte) (*pem.Block, error) {
	if len(text) > maxPEM {
		return nil, fmt.Errorf("the text has %d bytes (maximum %d)", len(text), maxPEM)
	}
	text = strings.TrimFunc(text, isASCIISpace)
	if !strings.HasPrefix(text, beginPEM) {
		return nil, errors.New("the text does not begin with -----BEGIN")
	}
	block, rest, err := decodeFirstBlock(text)
	if err == nil && parameters != nil && block.Type == "EC PARAMETERS" {
		switch {
		case len(block.Headers) > 0 || !bytes.Equal(block.Bytes, parameters):
			return nil, errors.New("the EC PARAMETERS do not name P-256")
		case !strings.HasPrefix(rest, beginPEM):
			return nil, errors.New("the EC PARAMETERS are not followed by a key")
		}
		block, rest, err = decodeFirstBlock(rest)
	}
	switch {
	case err != nil:
		return nil, err
	case len(block.Headers) > 0 && block.Headers["DEK-Info"] == "":
		return nil, errors.New("the PEM block has headers")
	case strings.TrimFunc(rest, isASCIISpace) != "":
		return nil, errors.New("unexpected data after the key")
	}
	return block, nil
}

const beginPEM = "-----BEGIN "

// decodeFirstBlock decodes the PEM block at the beginning of a text. Unlike
// pem.Decode, it fails if that block is invalid, and does not skip to the next.
func decodeFirstBlock(text string) (block *pem.Block, rest string, err error) {
	block, after := pem.Decode([]byte(text))
	rest = string(after)
	if block == nil || strings.Count(strings.TrimSuffix(text, rest), beginPEM) != 1 {
		return nil, "", errors.New("cannot decode PEM")
	}
	return block, rest, nil
}

// blockType returns the quoted type of a block, or "unknown" for a type that is
// not well known: in a damaged file, the key may be part of the type.
func blockType(block *pem.Block) string {
	switch block.Type {
	case "PRIVATE KEY", "EC PRIVATE KEY", "RSA PRIVATE KEY", "DSA PRIVATE KEY", "OPENSSH PRIVATE KEY", "ENCRYPTED PRIVATE KEY",
		"PUBLIC KEY", "RSA PUBLIC KEY", "CERTIFICATE", "CERTIFICATE REQUEST", "EC PARAMETERS":
		return strconv.Quote(block.Type)
	}
	return "unknown"
}

// minDistinctBytes is the minimum number of distinct bytes in a private key. A
// random key of 32 bytes has fewer with a probability below 1e-30.
const minDistinctBytes = 8

// keyType names the curve of an ECDSA key.
func keyType(key any) string {
	switch k := key.(type) {
	case *ecdsa.PrivateKey:
		return k.Curve.Params().Name
	case *ecdsa.PublicKey:
		return k.Curve.Params().Name
	}
	return "another algorithm"
}

func parseKeyError(format string, args ...any) error {
	return &TokenError{Op: "parse key", Err: fmt.Errorf(format, args...)}
}

func newKey(method jwt.SigningMethod, id string, sign signer, verify any) Key {
	header := fmt.Appendf(nil, `{"alg":%q,"typ":"JWT"`, method.Alg())
	if id != "" {
		header = appendString(append(header, `,"kid":`...), id)
	}
	material := &keyMaterial{method: method, header: encodeSegment(append(header, '}')) + ".", sign: sign, verify: verify}
	return Key{&material}
}

// WithID returns a copy of the key that sets the header parameter kid (RFC 7515,
// section 4.1.4) in the tokens that it signs, so that verifiers with a JWK Set
// can find the key. The proxy ignores kid, and ati-client does not set it. An
// empty ID removes kid.
func (k Key) WithID(id string) Key {
	if k.material == nil {
		return k
	}
	return newKey((*k.material).method, id, (*k.material).sign, (*k.material).verify)
}

// Algorithm returns the JOSE algorithm of the key, [HS256] or [ES256], or "" for
// the zero Key.
func (k Key) Algorithm() string {
	if k.material == nil {
		return ""
	}
	return (*k.material).method.Alg()
}

// Public returns the public key of an ES256 key, or nil for any other key.
func (k Key) Public() *ecdsa.PublicKey {
	if k.material == nil {
		return nil
	}
	public, _ := (*k.material).verify.(*ecdsa.PublicKey)
	return public
}

// PublicPEM returns the public key of an ES256 key in PEM, as [ParsePublicKey]
// accepts it, or "" for any other key.
func (k Key) PublicPEM() string {
	if k.Public() == nil {
		return ""
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: k.publicDER()}))
}

// publicDER returns the SubjectPublicKeyInfo (RFC 5280) of an ES256 key.
func (k Key) publicDER() []byte {
	der, _ := x509.MarshalPKIXPublicKey(k.Public()) // never fails on P-256
	return der
}

// Fingerprint returns 16 hexadecimal digits that identify a key without revealing
// it, or "" for the zero Key: the beginning of HMAC-SHA256(secret, "ati key
// fingerprint") for HS256, and of the SHA-256 of the public key's
// SubjectPublicKeyInfo in DER for ES256.
func (k Key) Fingerprint() string {
	var sum []byte
	switch k.Algorithm() {
	case HS256:
		mac := hmac.New(sha256.New, (*k.material).verify.([]byte))
		mac.Write([]byte("ati key fingerprint"))
		sum = mac.Sum(nil)
	case ES256:
		of := sha256.Sum256(k.publicDER())
		sum = of[:]
	default:
		return ""
	}
	return hex.EncodeToString(sum[:8])
}

// String returns the type and the algorithm, such as "ati.Key(HS256)".
func (k Key) String() string { return "ati.Key(" + k.Algorithm() + ")" }

// GoString returns the same as [Key.String], for the verb %#v.
func (k Key) GoString() string { return k.String() }

// Sign returns a token with exactly these claims, without defaults. It returns a
// *[TokenError] for the zero Key and for a public key.
func (k Key) Sign(c *Claims) (string, error) {
	switch {
	case k.material == nil:
		return "", &TokenError{Op: "issue token", Err: errors.New("key is empty")}
	case (*k.material).sign == nil:
		return "", &TokenError{Op: "issue token", Err: errors.New("cannot sign with a public key")}
	}
	payload := c.appendJSON(make([]byte, 0, 512+len(c.Scope)))
	token := make([]byte, 0, len((*k.material).header)+segmentEncoding.EncodedLen(len(payload))+1+maxSignature)
	token = append(token, (*k.material).header...)
	token = segmentEncoding.AppendEncode(token, payload)
	// jwt.Token.SignedString would marshal the header for every token, which
	// costs more than the HMAC.
	sig, err := (*k.material).sign(token)
	if err != nil {
		return "", &TokenError{Op: "issue token", Err: err}
	}
	return string(segmentEncoding.AppendEncode(append(token, '.'), sig)), nil
}
