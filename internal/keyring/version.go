package keyring

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/sha256"
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
	minDifferentBytes    = 8
	fingerprintMessage   = "ati key fingerprint"
	fingerprintHexDigits = 16

	FingerprintDescription = "Names the key without telling it: first 16 hex digits, for HS256 of HMAC-SHA256(secret, \"ati key fingerprint\"), for ES256 of the SHA-256 of the public key in DER."
)

// keyEntry is one version of the signing key, with the proxy that holds it.
type Entry struct {
	Version    int        `json:"version"`
	Algorithm  string     `json:"algorithm"`
	Secret     HiddenText `json:"secret,omitzero"`      // HS256: 64 hex characters in lower case
	PrivateKey HiddenText `json:"private_key,omitzero"` // ES256: PEM
	ProxyURL   string     `json:"proxy_url"`
	CreatedAt  time.Time  `json:"created_at"`
	Generated  bool       `json:"generated"` // by Vault; else there may be copies

	ActivatedAt time.Time `json:"activated_at,omitzero"` // when it last became the current version

	// Of a previous version that is retired: the end of minting under it, and
	// when the last of its tokens has expired everywhere.
	RetiredAt      time.Time `json:"retired_at,omitzero"`
	TokensExpireBy time.Time `json:"tokens_expire_by,omitzero"`
}

// signingKey is a keyEntry with its parsed key. It is never changed.
type Key struct {
	Entry
	Key         ati.Key
	Fingerprint string
	publicKey   []byte // ES256: SubjectPublicKeyInfo, DER
}

// keyParams say how a version of the key is to be made. What was not given is
// empty.
type Request struct {
	Algorithm  string
	Secret     HiddenText
	PrivateKey HiddenText
	proxyURL   string
}

var RequestParams = param.Set[Request]{
	param.Parsed("proxy_url", param.Display("Proxy URL", "Key"),
		"Address of the ATI proxy that holds this key, http or https. Tokens are handed out together with it.",
		func(p *Request) *string { return &p.proxyURL }, param.ParseProxyURL),
	param.Parsed("algorithm", param.Display("Algorithm", "Key"),
		"Signing algorithm. HS256: the proxy holds the same secret. ES256: it holds a public key only, so that nobody but Vault can mint.",
		func(p *Request) *string { return &p.Algorithm }, parseAlgorithm).OneOf(ati.HS256, ati.ES256),
	param.Parsed("secret", param.SecretDisplay("Secret", "Key", ""),
		"HS256 secret, 64 hex characters. For a new key, Vault generates one where it is left out. Never returned, but by proxy-env.",
		func(p *Request) *HiddenText { return &p.Secret }, parseSecret),
	param.Parsed("private_key", param.SecretDisplay("Private key", "Key", "textarea"),
		"ES256 key: a P-256 private key in PEM, SEC1 or PKCS#8, not encrypted. For a new key, Vault generates one where it is left out. Never returned.",
		func(p *Request) *HiddenText { return &p.PrivateKey }, parsePrivateKey),
}

func parseAlgorithm(name string) (string, error) {
	if name != ati.HS256 && name != ati.ES256 {
		return "", fmt.Errorf("algorithm %q: must be %q or %q", name, ati.HS256, ati.ES256)
	}
	return name, nil
}

// checkAlgorithm refuses a key of the other algorithm.
func (p Request) checkAlgorithm(algorithm string) error {
	switch {
	case algorithm == ati.ES256 && !p.Secret.IsZero():
		return errors.New("secret is a key for HS256, and the algorithm is ES256; give private_key, or algorithm=HS256")
	case algorithm == ati.HS256 && !p.PrivateKey.IsZero():
		return errors.New("private_key is a key for ES256, and the algorithm is HS256; give secret, or algorithm=ES256")
	}
	return nil
}

// keyName is the parameter that brings a key, if one was given.
func (p Request) keyName() string {
	switch {
	case !p.Secret.IsZero():
		return "secret"
	case !p.PrivateKey.IsZero():
		return "private_key"
	}
	return ""
}

// newKeyEntry is a new version of the key. What isn't given follows the model,
// and a key is generated.
func NewEntry(p Request, model Entry, version int, now time.Time) (*Entry, error) {
	k := &Entry{Version: version, Algorithm: model.Algorithm, ProxyURL: model.ProxyURL, CreatedAt: toSecond(now)}
	if p.Algorithm != "" {
		k.Algorithm = p.Algorithm
	}
	if p.proxyURL != "" {
		k.ProxyURL = p.proxyURL
	}
	if k.ProxyURL == "" {
		return nil, errors.New("proxy_url is required: the address of the ATI proxy, such as https://ati.example.com")
	}
	if err := p.checkAlgorithm(k.Algorithm); err != nil {
		return nil, err
	}
	k.Secret, k.PrivateKey = p.Secret, p.PrivateKey
	return k, nil
}

// generate makes the key, where none was given.
func (k *Entry) Generate(random io.Reader) (generated bool, err error) {
	switch {
	case k.Algorithm == ati.HS256 && k.Secret.IsZero():
		k.Secret, err = generateSecret(random)
	case k.Algorithm == ati.ES256 && k.PrivateKey.IsZero():
		k.PrivateKey, err = generatePrivateKey(random)
	default:
		return false, nil
	}
	k.Generated = true
	return true, err
}

// parseSecret checks an HS256 secret. White space around it, such as the line
// break of secret=@file, is cut: the proxy would open itself to everybody if
// that were handed on.
func parseSecret(raw string) (HiddenText, error) {
	secret := strings.ToLower(strings.Trim(raw, param.AsciiBlanks))
	b, err := hex.DecodeString(secret)
	switch {
	case len(secret) != 2*param.SecretBytes:
		return HiddenText{}, fmt.Errorf("secret must be %d hex characters; it has %d characters. One is made by: openssl rand -hex %d", 2*param.SecretBytes, len(secret), param.SecretBytes)
	case err != nil:
		return HiddenText{}, fmt.Errorf("secret must be %d hex characters; it has others than 0-9 and a-f. One is made by: openssl rand -hex %d", 2*param.SecretBytes, param.SecretBytes)
	}
	if different := len(slices.Compact(slices.Sorted(slices.Values(b)))); different < minDifferentBytes {
		return HiddenText{}, fmt.Errorf("secret has %d different bytes; a random one has at least %d. One is made by: openssl rand -hex %d", different, minDifferentBytes, param.SecretBytes)
	}
	return Hide(secret), nil
}

func generateSecret(random io.Reader) (HiddenText, error) {
	b := make([]byte, param.SecretBytes)
	if _, err := io.ReadFull(random, b); err != nil {
		return HiddenText{}, fmt.Errorf("generate a signing secret: %w", err)
	}
	return parseSecret(hex.EncodeToString(b))
}

// parsePrivateKey checks an ES256 key.
func parsePrivateKey(raw string) (HiddenText, error) {
	_, err := ati.ParsePrivateKey(raw)
	var keyErr *ati.TokenError
	if errors.As(err, &keyErr) {
		return HiddenText{}, fmt.Errorf("private_key %w. One is made by: openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256", keyErr.Err)
	}
	return Hide(raw), err
}

func generatePrivateKey(random io.Reader) (HiddenText, error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), random)
	if err != nil {
		return HiddenText{}, fmt.Errorf("generate a signing key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return HiddenText{}, fmt.Errorf("generate a signing key: %w", err)
	}
	return Hide(string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))), nil
}

// parse makes the key usable.
func (k *Entry) Parse() (*Key, error) {
	if k == nil {
		return nil, nil
	}
	var key ati.Key
	var err error
	if k.Algorithm == ati.ES256 {
		key, err = ati.ParsePrivateKey(k.PrivateKey.Reveal())
	} else {
		key, err = ati.ParseSecret(k.Secret.Reveal())
	}
	if err != nil {
		return nil, fmt.Errorf("read version %d of the stored key: %w", k.Version, err)
	}
	s := &Key{Entry: *k, Key: key}
	if k.Algorithm == ati.HS256 {
		s.Fingerprint = secretFingerprint(k.Secret)
		return s, nil
	}
	if s.publicKey, err = x509.MarshalPKIXPublicKey(key.Public()); err != nil {
		return nil, fmt.Errorf("read version %d of the stored key: %w", k.Version, err)
	}
	sum := sha256.Sum256(s.publicKey)
	s.Fingerprint = hex.EncodeToString(sum[:])[:fingerprintHexDigits]
	// HS256 tokens have no kid: they are those of ati-client, byte for byte.
	s.Key = key.WithID(s.Fingerprint)
	return s, nil
}

// secretFingerprint names a secret without telling it.
func secretFingerprint(secret HiddenText) string {
	key, _ := hex.DecodeString(secret.Reveal()) // ati.ParseSecret has read it
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(fingerprintMessage))
	return hex.EncodeToString(mac.Sum(nil))[:fingerprintHexDigits]
}

// publicPEM is an ES256 key's public half.
func (k *Key) PublicPEM() string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: k.publicKey}))
}

// gone reports whether no token under this key passes any more. The key then
// counts no longer.
func (k *Entry) Gone(now time.Time) bool {
	return !k.TokensExpireBy.IsZero() && !now.Before(k.TokensExpireBy)
}

func toSecond(t time.Time) time.Time { return t.UTC().Truncate(time.Second) }
