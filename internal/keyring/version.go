package keyring

import (
	"cmp"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"vault-plugin-secrets-ati/ati"
	"vault-plugin-secrets-ati/internal/param"
)

const (
	minDistinctBytes = 8

	// FingerprintDescription describes ati.Key.Fingerprint in the API.
	FingerprintDescription = `Fingerprint that identifies the key without revealing it: 16 hexadecimal digits. HS256: HMAC-SHA256(secret, "ati key fingerprint"), truncated. ES256: SHA-256 of the DER-encoded public key, truncated.`
)

// Entry is one version of the signing key as it is stored, with the proxy that
// holds it.
type Entry struct {
	Version    int       `json:"version"`
	Algorithm  string    `json:"algorithm"`
	Secret     Secret    `json:"secret,omitzero"`      // HS256: 64 hexadecimal characters in lower case
	PrivateKey Secret    `json:"private_key,omitzero"` // ES256: PEM
	ProxyURL   string    `json:"proxy_url"`
	CreatedAt  time.Time `json:"created_at"`
	Generated  bool      `json:"generated"` // by Vault; copies of an imported key may exist elsewhere

	Automatic bool `json:"automatic,omitempty"` // made by the automatic rotation

	Generation int64 `json:"generation,omitempty"` // number of the change that made the version

	ActivatedAt time.Time `json:"activated_at,omitzero"` // when it last became the current version

	// Set while a previous version is retired: when minting with it stopped, and when
	// the last of its tokens has expired at every proxy.
	RetiredAt      time.Time `json:"retired_at,omitzero"`
	TokensExpireBy time.Time `json:"tokens_expire_by,omitzero"`
}

// Key is an Entry with its parsed key. It is never changed.
type Key struct {
	Entry
	Key ati.Key
}

// Request is what a caller specifies for a version of the key. A field that the
// request does not have is empty.
type Request struct {
	Algorithm  string
	Secret     Secret
	PrivateKey Secret
	proxyURL   string
	generated  bool
}

// RequestParams are the parameters of a Request.
var RequestParams = param.Set[Request]{
	param.Parsed("proxy_url", param.Display("Proxy URL", "Key"),
		"URL of the ATI proxy that holds this key, http or https. Responses with a token include it.",
		func(r *Request) *string { return &r.proxyURL }, param.ParseProxyURL),
	param.Parsed("algorithm", param.Display("Algorithm", "Key"),
		"Signing algorithm. With HS256 the proxy holds the same secret as Vault. With ES256 it holds only a public key, so only Vault can mint tokens.",
		func(r *Request) *string { return &r.Algorithm }, parseAlgorithm).AllowedValues(ati.HS256, ati.ES256),
	param.Parsed("secret", param.SecretDisplay("Secret", "Key", ""),
		"HS256 secret, 64 hexadecimal characters. If omitted for a new key, Vault generates one. Returned only by proxy-env and guard.",
		func(r *Request) *Secret { return &r.Secret }, parseSecret),
	param.Parsed("private_key", param.SecretDisplay("Private key", "Key", "textarea"),
		"ES256 private key: P-256 in PEM, SEC 1 or PKCS #8, unencrypted. If omitted for a new key, Vault generates one. Never returned.",
		func(r *Request) *Secret { return &r.PrivateKey }, parsePrivateKey),
}

func parseAlgorithm(name string) (string, error) {
	if name != ati.HS256 && name != ati.ES256 {
		return "", fmt.Errorf("algorithm %q: must be %q or %q", name, ati.HS256, ati.ES256)
	}
	return name, nil
}

// ParseRequest reads the parameters of a request.
func ParseRequest(raw map[string]any) (r Request, err error) {
	err = RequestParams.Apply(raw, &r)
	return r, err
}

// WithKey returns the request with a generated key, unless the caller imports one.
// An error is one of the random source.
func (r Request) WithKey(defaultAlgorithm string, random io.Reader) (Request, error) {
	var err error
	switch algorithm := cmp.Or(r.Algorithm, defaultAlgorithm); {
	case algorithm == ati.HS256 && r.Secret.IsZero():
		r.Secret, err = generateSecret(random)
		r.generated = true
	case algorithm == ati.ES256 && r.PrivateKey.IsZero():
		r.PrivateKey, err = generatePrivateKey(random)
		r.generated = true
	}
	return r, err
}

// checkAlgorithm reports a key that is for another algorithm.
func (r Request) checkAlgorithm(algorithm string) error {
	switch {
	case algorithm == ati.ES256 && !r.Secret.IsZero():
		return errors.New("secret is for HS256, but the algorithm is ES256; set private_key instead, or algorithm=HS256")
	case algorithm == ati.HS256 && !r.PrivateKey.IsZero():
		return errors.New("private_key is for ES256, but the algorithm is HS256; set secret instead, or algorithm=ES256")
	}
	return nil
}

// Imported returns the name of the parameter that imports a key, or "".
func (r Request) Imported() string {
	switch {
	case r.generated:
		return ""
	case !r.Secret.IsZero():
		return "secret"
	case !r.PrivateKey.IsZero():
		return "private_key"
	}
	return ""
}

// newEntry returns a version with the request's key. What the request does not have
// is taken from the model.
func (r Request) newEntry(model Entry, version int, now time.Time) (*Entry, error) {
	e := &Entry{
		Version: version, Algorithm: cmp.Or(r.Algorithm, model.Algorithm), ProxyURL: cmp.Or(r.proxyURL, model.ProxyURL),
		Secret: r.Secret, PrivateKey: r.PrivateKey, Generated: r.generated, CreatedAt: toSecond(now),
	}
	if e.ProxyURL == "" {
		return nil, errors.New("proxy_url is required: the URL of the ATI proxy, such as https://ati.example.com")
	}
	return e, r.checkAlgorithm(e.Algorithm)
}

// parseSecret checks an HS256 secret. White space at its ends, such as the line break
// of secret=@file, is trimmed: a proxy that is given it accepts unauthenticated
// requests.
func parseSecret(raw string) (Secret, error) {
	secret := strings.ToLower(strings.Trim(raw, param.ASCIISpace))
	b, err := hex.DecodeString(secret)
	switch {
	case secret == "":
		return Secret{}, errors.New("secret is empty; check that the variable or file is set, or omit secret to have Vault generate one")
	case len(secret) != 2*param.SecretBytes:
		return Secret{}, fmt.Errorf(`secret must be %d hexadecimal characters (%d bytes), got %d; for example, use "openssl rand -hex %d"`, 2*param.SecretBytes, param.SecretBytes, len(secret), param.SecretBytes)
	case err != nil:
		return Secret{}, fmt.Errorf(`secret must be %d hexadecimal characters (%d bytes), for example the output of "openssl rand -hex %d"; found a character outside 0-9 and a-f`, 2*param.SecretBytes, param.SecretBytes, param.SecretBytes)
	}
	if distinct := len(slices.Compact(slices.Sorted(slices.Values(b)))); distinct < minDistinctBytes {
		return Secret{}, fmt.Errorf(`secret is too repetitive (%d distinct bytes, at least %d required); use a random value, such as the output of "openssl rand -hex %d"`, distinct, minDistinctBytes, param.SecretBytes)
	}
	return NewSecret(secret), nil
}

func generateSecret(random io.Reader) (Secret, error) {
	b := make([]byte, param.SecretBytes)
	if _, err := io.ReadFull(random, b); err != nil {
		return Secret{}, fmt.Errorf("generate secret: %w", err)
	}
	return parseSecret(hex.EncodeToString(b))
}

// parsePrivateKey checks an ES256 key.
func parsePrivateKey(raw string) (Secret, error) {
	if raw == "" {
		return Secret{}, errors.New("private_key is empty; check that the variable or file is set, or omit private_key to have Vault generate one")
	}
	_, err := ati.ParsePrivateKey(raw)
	var keyErr *ati.TokenError
	if errors.As(err, &keyErr) {
		return Secret{}, fmt.Errorf(`private_key %w; for example, use "openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256"`, keyErr.Err)
	}
	return NewSecret(raw), err
}

func generatePrivateKey(random io.Reader) (Secret, error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), random)
	if err != nil {
		return Secret{}, fmt.Errorf("generate private key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return Secret{}, fmt.Errorf("generate private key: %w", err)
	}
	return NewSecret(string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))), nil
}

// Parse returns the entry with its parsed key, or nil for a nil entry.
func (e *Entry) Parse() (*Key, error) {
	if e == nil {
		return nil, nil
	}
	var key ati.Key
	var err error
	if e.Algorithm == ati.ES256 {
		key, err = ati.ParsePrivateKey(e.PrivateKey.Plaintext())
	} else {
		key, err = ati.ParseSecret(e.Secret.Plaintext())
	}
	if err != nil {
		return nil, fmt.Errorf("read version %d of the stored key: %w", e.Version, err)
	}
	if e.Algorithm == ati.ES256 {
		// HS256 tokens have no kid: they are byte for byte the tokens of ati-client.
		key = key.WithID(key.Fingerprint())
	}
	return &Key{Entry: *e, Key: key}, nil
}

// Expired reports whether all tokens of this version have expired.
func (e *Entry) Expired(now time.Time) bool {
	return !e.TokensExpireBy.IsZero() && !now.Before(e.TokensExpireBy)
}

func toSecond(t time.Time) time.Time { return t.UTC().Truncate(time.Second) }
