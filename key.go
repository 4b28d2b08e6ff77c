package atisecrets

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/vault/sdk/framework"

	"vault-plugin-secrets-ati/ati"
)

const (
	secretBytes          = 32 // ati-client and the proxy call for 64 hex characters
	minDifferentBytes    = 8
	fingerprintMessage   = "ati key fingerprint"
	fingerprintHexDigits = 16

	fingerprintDescription = "Names the key without telling it: first 16 hex digits, for HS256 of HMAC-SHA256(secret, \"ati key fingerprint\"), for ES256 of the SHA-256 of the public key in DER."
)

// keyEntry is one version of the signing key, with the proxy that holds it.
type keyEntry struct {
	Version    int        `json:"version"`
	Algorithm  string     `json:"algorithm"`
	Secret     hiddenText `json:"secret,omitzero"`      // HS256: 64 hex characters in lower case
	PrivateKey hiddenText `json:"private_key,omitzero"` // ES256: PEM
	ProxyURL   string     `json:"proxy_url"`
	CreatedAt  time.Time  `json:"created_at"`
	Generated  bool       `json:"generated"` // by Vault; else there may be copies

	ActivatedAt time.Time `json:"activated_at,omitzero"` // when it last became the current version

	// Of a previous version that is retired: the end of minting under it, and
	// when the last of its tokens has expired everywhere.
	RetiredAt      time.Time `json:"retired_at,omitzero"`
	TokensExpireBy time.Time `json:"tokens_expire_by,omitzero"`
}

// hiddenText is a key that doesn't print itself. It holds a pointer: where fmt
// can't call Format, in unexported fields and after a verb that doesn't fit, it
// then shows an address.
type hiddenText struct{ text *string }

func hide(text string) hiddenText {
	if text == "" {
		return hiddenText{}
	}
	return hiddenText{&text}
}

// reveal is the key, for parsing, and for proxy-env.
func (h hiddenText) reveal() string {
	if h.text == nil {
		return ""
	}
	return *h.text
}

// IsZero reports whether there is no key.
func (h hiddenText) IsZero() bool { return h.text == nil }

// Format hides the key, whatever the verb.
func (hiddenText) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "(hidden)") }

// MarshalJSON and UnmarshalJSON are for storage, where the key is a string.
func (h hiddenText) MarshalJSON() ([]byte, error) { return json.Marshal(h.reveal()) }

func (h *hiddenText) UnmarshalJSON(b []byte) error {
	var text string
	if err := json.Unmarshal(b, &text); err != nil {
		return errors.New("a stored key is not a string") // json's own error may quote it
	}
	*h = hide(text)
	return nil
}

// signingKey is a keyEntry with its parsed key. It is never changed.
type signingKey struct {
	keyEntry
	key         ati.Key
	fingerprint string
	publicKey   []byte // ES256: SubjectPublicKeyInfo, DER
}

// keyFields are the parameters that make a version of the key.
func keyFields() map[string]*framework.FieldSchema {
	return map[string]*framework.FieldSchema{
		"proxy_url": {
			Type:         framework.TypeString,
			Description:  "Address of the ATI proxy that holds this key, http or https. Tokens are handed out together with it.",
			DisplayAttrs: display("Proxy URL", "Key"),
		},
		"algorithm": {
			Type:          framework.TypeString,
			Description:   "Signing algorithm. HS256: the proxy holds the same secret. ES256: it holds a public key only, so that nobody but Vault can mint.",
			AllowedValues: []any{ati.HS256, ati.ES256},
			DisplayAttrs:  display("Algorithm", "Key"),
		},
		"secret": {
			Type:         framework.TypeString,
			Description:  "HS256 secret, 64 hex characters. For a new key, Vault generates one where it is left out. Never returned, but by proxy-env.",
			DisplayAttrs: &framework.DisplayAttributes{Name: "Secret", Group: "Key", Sensitive: true},
		},
		"private_key": {
			Type:         framework.TypeString,
			Description:  "ES256 key: a P-256 private key in PEM, SEC1 or PKCS#8, not encrypted. For a new key, Vault generates one where it is left out. Never returned.",
			DisplayAttrs: &framework.DisplayAttributes{Name: "Private key", Group: "Key", Sensitive: true, EditType: "textarea"},
		},
	}
}

// keyParams are those parameters, checked for their form. What was not given is
// empty.
type keyParams struct {
	algorithm  string
	secret     hiddenText
	privateKey hiddenText
	proxyURL   string
}

func parseKeyParams(d *framework.FieldData) (p keyParams, err error) {
	if given(d, "proxy_url") {
		if p.proxyURL, err = parseProxyURL(d.Get("proxy_url").(string)); err != nil {
			return p, err
		}
	}
	if given(d, "algorithm") {
		p.algorithm = d.Get("algorithm").(string)
		if p.algorithm != ati.HS256 && p.algorithm != ati.ES256 {
			return p, fmt.Errorf("algorithm %q: must be %q or %q", p.algorithm, ati.HS256, ati.ES256)
		}
	}
	if given(d, "secret") {
		if p.secret, err = parseSecret(d.Get("secret").(string)); err != nil {
			return p, err
		}
	}
	if given(d, "private_key") {
		p.privateKey, err = parsePrivateKey(d.Get("private_key").(string))
	}
	return p, err
}

// checkAlgorithm refuses a key of the other algorithm.
func (p keyParams) checkAlgorithm(algorithm string) error {
	switch {
	case algorithm == ati.ES256 && !p.secret.IsZero():
		return errors.New("secret is a key for HS256, and the algorithm is ES256; give private_key, or algorithm=HS256")
	case algorithm == ati.HS256 && !p.privateKey.IsZero():
		return errors.New("private_key is a key for ES256, and the algorithm is HS256; give secret, or algorithm=ES256")
	}
	return nil
}

// keyName is the parameter that brings a key, if one was given.
func (p keyParams) keyName() string {
	switch {
	case !p.secret.IsZero():
		return "secret"
	case !p.privateKey.IsZero():
		return "private_key"
	}
	return ""
}

// newKeyEntry is a new version of the key. What isn't given follows the model,
// and a key is generated.
func newKeyEntry(p keyParams, model keyEntry, version int, now time.Time) (*keyEntry, error) {
	k := &keyEntry{Version: version, Algorithm: model.Algorithm, ProxyURL: model.ProxyURL, CreatedAt: toSecond(now)}
	if p.algorithm != "" {
		k.Algorithm = p.algorithm
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
	k.Secret, k.PrivateKey = p.secret, p.privateKey
	return k, nil
}

// generate makes the key, where none was given.
func (k *keyEntry) generate(random io.Reader) (generated bool, err error) {
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
func parseSecret(raw string) (hiddenText, error) {
	secret := strings.ToLower(strings.Trim(raw, asciiBlanks))
	b, err := hex.DecodeString(secret)
	switch {
	case len(secret) != 2*secretBytes:
		return hiddenText{}, fmt.Errorf("secret must be %d hex characters; it has %d characters. One is made by: openssl rand -hex %d", 2*secretBytes, len(secret), secretBytes)
	case err != nil:
		return hiddenText{}, fmt.Errorf("secret must be %d hex characters; it has others than 0-9 and a-f. One is made by: openssl rand -hex %d", 2*secretBytes, secretBytes)
	}
	if different := len(slices.Compact(slices.Sorted(slices.Values(b)))); different < minDifferentBytes {
		return hiddenText{}, fmt.Errorf("secret has %d different bytes; a random one has at least %d. One is made by: openssl rand -hex %d", different, minDifferentBytes, secretBytes)
	}
	return hide(secret), nil
}

func generateSecret(random io.Reader) (hiddenText, error) {
	b := make([]byte, secretBytes)
	if _, err := io.ReadFull(random, b); err != nil {
		return hiddenText{}, fmt.Errorf("generate a signing secret: %w", err)
	}
	return parseSecret(hex.EncodeToString(b))
}

// parsePrivateKey checks an ES256 key.
func parsePrivateKey(raw string) (hiddenText, error) {
	_, err := ati.ParsePrivateKey(raw)
	var keyErr *ati.TokenError
	if errors.As(err, &keyErr) {
		return hiddenText{}, fmt.Errorf("private_key %w. One is made by: openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256", keyErr.Err)
	}
	return hide(raw), err
}

func generatePrivateKey(random io.Reader) (hiddenText, error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), random)
	if err != nil {
		return hiddenText{}, fmt.Errorf("generate a signing key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return hiddenText{}, fmt.Errorf("generate a signing key: %w", err)
	}
	return hide(string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))), nil
}

// parse makes the key usable.
func (k *keyEntry) parse() (*signingKey, error) {
	if k == nil {
		return nil, nil
	}
	var key ati.Key
	var err error
	if k.Algorithm == ati.ES256 {
		key, err = ati.ParsePrivateKey(k.PrivateKey.reveal())
	} else {
		key, err = ati.ParseSecret(k.Secret.reveal())
	}
	if err != nil {
		return nil, fmt.Errorf("read version %d of the stored key: %w", k.Version, err)
	}
	s := &signingKey{keyEntry: *k, key: key}
	if k.Algorithm == ati.HS256 {
		s.fingerprint = secretFingerprint(k.Secret)
		return s, nil
	}
	if s.publicKey, err = x509.MarshalPKIXPublicKey(key.Public()); err != nil {
		return nil, fmt.Errorf("read version %d of the stored key: %w", k.Version, err)
	}
	sum := sha256.Sum256(s.publicKey)
	s.fingerprint = hex.EncodeToString(sum[:])[:fingerprintHexDigits]
	// HS256 tokens have no kid: they are those of ati-client, byte for byte.
	s.key = key.WithID(s.fingerprint)
	return s, nil
}

// secretFingerprint names a secret without telling it.
func secretFingerprint(secret hiddenText) string {
	key, _ := hex.DecodeString(secret.reveal()) // ati.ParseSecret has read it
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(fingerprintMessage))
	return hex.EncodeToString(mac.Sum(nil))[:fingerprintHexDigits]
}

// publicPEM is an ES256 key's public half.
func (k *signingKey) publicPEM() string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: k.publicKey}))
}

// gone reports whether no token under this key passes any more. The key then
// counts no longer.
func (k *keyEntry) gone(now time.Time) bool {
	return !k.TokensExpireBy.IsZero() && !now.Before(k.TokensExpireBy)
}

func toSecond(t time.Time) time.Time { return t.UTC().Truncate(time.Second) }
