package ati_test

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"strings"
	"testing"

	"github.com/golang-jwt/jwt/v5"
	"github.com/google/go-cmp/cmp"

	"vault-plugin-secrets-ati/ati"
)

func block(kind string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}

// der returns the content of a PEM block.
func der(text string) []byte {
	b, _ := pem.Decode([]byte(text))
	return b.Bytes
}

// parameters is the block that "openssl ecparam -genkey" writes before a P-256
// key.
var parameters = block("EC PARAMETERS", []byte{6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7})

// newPEMs returns a new key of a curve in each encoding.
func newPEMs(t testing.TB, curve elliptic.Curve) (sec1, pkcs8, public string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der := func(b []byte, err error) []byte {
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	return block("EC PRIVATE KEY", der(x509.MarshalECPrivateKey(key))), block("PRIVATE KEY", der(x509.MarshalPKCS8PrivateKey(key))), block("PUBLIC KEY", der(x509.MarshalPKIXPublicKey(&key.PublicKey)))
}

// newKeyPair returns a new P-256 key, its public key, and the PEM of the public
// key.
func newKeyPair(t testing.TB) (private, verifier ati.Key, public string) {
	t.Helper()
	sec1, _, public := newPEMs(t, elliptic.P256())
	private, err := ati.ParsePrivateKey(sec1)
	if err != nil {
		t.Fatal(err)
	}
	if verifier, err = ati.ParsePublicKey(public); err != nil {
		t.Fatal(err)
	}
	return private, verifier, public
}

func TestES256_SignAndVerify(t *testing.T) {
	t.Parallel()
	sec1, pkcs8, public := newPEMs(t, elliptic.P256())
	verifier, err := ati.ParsePublicKey("\n" + public)
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"SEC1": sec1, "PKCS#8": pkcs8, "with parameters": parameters + sec1, "white space around it": " \r\n" + sec1 + "\t\n"} {
		key, err := ati.ParsePrivateKey(text)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if key.Algorithm() != "ES256" || !key.Public().Equal(verifier.Public()) {
			t.Errorf("%s: algorithm %q", name, key.Algorithm())
		}
		token, err := ati.IssueToken(key, ati.IssueRequest{Subject: "a", Scope: "help", IssuedAt: clock()})
		if err != nil {
			t.Fatal(err)
		}
		for _, k := range []ati.Key{key, verifier, key.WithID("x")} {
			if c, err := ati.ValidateToken(token, k, ati.WithTime(clock)); err != nil || c.Subject != "a" {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
}

func TestKey_WithoutPrivateKey(t *testing.T) {
	t.Parallel()
	_, verifier, _ := newKeyPair(t)
	if _, err := verifier.Sign(&ati.Claims{}); err == nil || err.Error() != "issue token: cannot sign with a public key" {
		t.Errorf("a public key signs: %v", err)
	}
	if k := mustKey(t, secret); k.Public() != nil {
		t.Error("an HS256 key has a public key")
	}
	if k := (ati.Key{}); k.Public() != nil || k.WithID("x").Algorithm() != "" {
		t.Error("the zero key has a public key or an algorithm")
	}
}

func TestKey_WithID(t *testing.T) {
	t.Parallel()
	sec1, _, _ := newPEMs(t, elliptic.P256())
	es, err := ati.ParsePrivateKey(sec1)
	if err != nil {
		t.Fatal(err)
	}
	hs := mustKey(t, secret)
	for want, key := range map[string]ati.Key{
		`{"alg":"ES256","typ":"JWT"}`:                 es,
		`{"alg":"ES256","typ":"JWT","kid":"a\"b"}`:    es.WithID(`a"b`),
		`{"alg":"HS256","typ":"JWT"}`:                 hs,
		`{"alg":"HS256","typ":"JWT","kid":"0123abc"}`: hs.WithID("0123abc"),
	} {
		token, err := ati.IssueToken(key, ati.IssueRequest{Subject: "a", IssuedAt: clock()})
		if err != nil {
			t.Fatal(err)
		}
		header, err := base64.RawURLEncoding.DecodeString(strings.Split(token, ".")[0])
		if err != nil || string(header) != want {
			t.Errorf("header %s, want %s (%v)", header, want, err)
		}
		if _, err := ati.ValidateToken(token, key, ati.WithTime(clock)); err != nil {
			t.Errorf("%s: %v", want, err)
		}
	}
}

func TestParsePrivateKey_Rejects(t *testing.T) {
	t.Parallel()
	sec1, pkcs8, public := newPEMs(t, elliptic.P256())
	otherSEC1, otherPKCS8, _ := newPEMs(t, elliptic.P384())
	_, edwards, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	edwardsDER, err := x509.MarshalPKCS8PrivateKey(edwards)
	if err != nil {
		t.Fatal(err)
	}
	const prefix = "parse key: must be one unencrypted P-256 private key in PEM (SEC1 or PKCS#8); "
	for text, want := range map[string]string{
		"":                                   "the text does not begin with -----BEGIN",
		secret:                               "the text does not begin with -----BEGIN",
		"x" + sec1:                           "the text does not begin with -----BEGIN",
		sec1[:80]:                            "cannot decode PEM",
		public:                               `the PEM block type is "PUBLIC KEY"`,
		block("RSA PRIVATE KEY", nil):        `the PEM block type is "RSA PRIVATE KEY"`,
		block("ENCRYPTED PRIVATE KEY", nil):  `the key is encrypted (use "openssl pkey" to decrypt it)`,
		otherSEC1:                            "the key is for P-384",
		otherPKCS8:                           "the key is for P-384",
		block("PRIVATE KEY", edwardsDER):     "the key is for another algorithm",
		block("EC PRIVATE KEY", []byte("x")): "cannot parse key, or unsupported curve encoding",
		block("PRIVATE KEY", []byte("x")):    "cannot parse key, or unsupported curve encoding",
		sec1 + pkcs8:                         "unexpected data after the key",
		parameters:                           "the EC PARAMETERS are not followed by a key",
		parameters + "x" + sec1:              "the EC PARAMETERS are not followed by a key",
		block("EC PARAMETERS", nil) + sec1:   "the EC PARAMETERS do not name P-256",
		block("EC PARAMETERS", []byte{6, 5, 0x2b, 0x81, 4, 0, 0x22}) + sec1: "the EC PARAMETERS do not name P-256",
		// Ciphertext may begin like ASN.1.
		strings.Replace(block("EC PRIVATE KEY", []byte{0x30, 0, 1, 2}), "\n", "\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,00\n\n", 1): `the key is encrypted (use "openssl pkey" to decrypt it)`,
		block("OPENSSH PRIVATE KEY", []byte("openssh-key-v1")):                                                                             `the PEM block type is "OPENSSH PRIVATE KEY"`,
		block("EC PRIVATE KEY", append(der(sec1), der(sec1)...)):                                                                           "unexpected data after the key",
		block("PRIVATE KEY", append(der(pkcs8), "junk"...)):                                                                                "unexpected data after the key",
		strings.Repeat(" ", 4096) + sec1:                                                                                                   fmt.Sprintf("the text has %d bytes (maximum 4096)", 4096+len(sec1)),
		strings.Replace(sec1, "-----\n", "-----\nX: y\n\n", 1):                                                                             "the PEM block has headers",
		sec1 + block("EC PARAMETERS", nil):                                                                                                 "unexpected data after the key",
		"-----BEGIN PRIVATE KEY-----\nsecret":                                                                                              "cannot decode PEM",
		// pem.Decode skips invalid blocks.
		"-----BEGIN PRIVATE KEY-----\n" + sec1:                                        "cannot decode PEM",
		strings.Replace(pkcs8, "M", "\xff", 1) + pkcs8:                                "cannot decode PEM",
		parameters + strings.Replace(sec1, "M", "", 1) + sec1:                         "cannot decode PEM",
		strings.Replace(parameters, "-----\n", "-----\nX: \xff\n\n", 1) + sec1:        "the EC PARAMETERS do not name P-256",
		strings.Replace(parameters, "-----\n", "-----\nDEK-Info: \xff\n\n", 1) + sec1: "the EC PARAMETERS do not name P-256",
	} {
		key, err := ati.ParsePrivateKey(text)
		if err == nil || err.Error() != prefix+want || !errors.Is(err, ati.ErrATI) || key.Algorithm() != "" {
			t.Errorf("%.40q: %v, want %s", text, err, want)
		}
	}
}

func TestParsePublicKey_Rejects(t *testing.T) {
	t.Parallel()
	sec1, pkcs8, public := newPEMs(t, elliptic.P256())
	_, _, otherPublic := newPEMs(t, elliptic.P384())
	edwards, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	edwardsDER, err := x509.MarshalPKIXPublicKey(edwards)
	if err != nil {
		t.Fatal(err)
	}
	const prefix = "parse key: must be one P-256 public key in PEM; "
	for text, want := range map[string]string{
		"":                                      "the text does not begin with -----BEGIN",
		sec1:                                    `the PEM block type is "EC PRIVATE KEY"`,
		pkcs8:                                   `the PEM block type is "PRIVATE KEY"`,
		otherPublic:                             "the key is for P-384",
		block("PUBLIC KEY", []byte("x")):        "cannot parse key",
		block("CERTIFICATE", []byte("x")):       `the PEM block type is "CERTIFICATE"`,
		public + public:                         "unexpected data after the key",
		"-----BEGIN PUBLIC KEY-----\n" + public: "cannot decode PEM",
		// With such a file, the proxy accepts unauthenticated requests.
		parameters + public: "unexpected data after the key",
		strings.Replace(public, "\n", "\nDEK-Info: x\n\n", 1): `the encoding is not canonical (use "openssl pkey -pubin" to rewrite it)`,
		strings.Replace(public, "\n", "\n\n", 1):              `the encoding is not canonical (use "openssl pkey -pubin" to rewrite it)`,
		// x509 ignores trailing data in the sequence.
		block("PUBLIC KEY", append([]byte{0x30, der(public)[1] + 1}, append(der(public)[2:], 0xff)...)): `the encoding is not canonical (use "openssl pkey -pubin" to rewrite it)`,
		block("PUBLIC KEY", edwardsDER): "the key is for another algorithm",
	} {
		key, err := ati.ParsePublicKey(text)
		if err == nil || err.Error() != prefix+want || key.Algorithm() != "" {
			t.Errorf("%.40q: %v, want %s", text, err, want)
		}
	}
}

// The key determines the algorithm, so a token with another alg is rejected,
// including one whose HMAC uses the public key.
func TestValidateToken_PinsAlgorithm(t *testing.T) {
	t.Parallel()
	private, verifier, public := newKeyPair(t)
	es, err := ati.IssueToken(private, ati.IssueRequest{Subject: "a", IssuedAt: clock()})
	if err != nil {
		t.Fatal(err)
	}
	hs, err := ati.IssueToken(mustKey(t, secret), ati.IssueRequest{Subject: "a", IssuedAt: clock()})
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode([]byte(public))
	segments := strings.Split(es, ".")
	withHMAC := func(key []byte) string {
		text := base64.RawURLEncoding.EncodeToString([]byte(goodHeader)) + "." + segments[1]
		sig, err := jwt.SigningMethodHS256.Sign(text, key)
		if err != nil {
			t.Fatal(err)
		}
		return text + "." + base64.RawURLEncoding.EncodeToString(sig)
	}
	sig, err := base64.RawURLEncoding.DecodeString(segments[2])
	if err != nil {
		t.Fatal(err)
	}
	der, err := asn1.Marshal(struct{ R, S *big.Int }{new(big.Int).SetBytes(sig[:32]), new(big.Int).SetBytes(sig[32:])})
	if err != nil {
		t.Fatal(err)
	}
	signed := segments[0] + "." + segments[1] + "."
	encode := base64.RawURLEncoding.EncodeToString
	for name, c := range map[string]struct {
		token string
		key   ati.Key
	}{
		"HS256 for the private key":        {hs, private},
		"HS256 for the public key":         {hs, verifier},
		"ES256 for the secret":             {es, mustKey(t, secret)},
		"an HMAC with the PEM":             {withHMAC([]byte(public)), verifier},
		"an HMAC with the DER":             {withHMAC(block.Bytes), verifier},
		"an HMAC with the header of ES256": {encode([]byte(`{"alg":"ES256","typ":"JWT"}`)) + "." + strings.SplitN(hs, ".", 2)[1], verifier},
		"a signature in DER":               {signed + encode(der), verifier},
		"a signature of 63 bytes":          {signed + encode(sig[:63]), verifier},
		"a signature of 65 bytes":          {signed + encode(append([]byte{0}, sig...)), verifier},
		"a signature of zeros":             {signed + encode(make([]byte, 64)), verifier},
		"no signature":                     {signed, verifier},
		"r and s exchanged":                {signed + encode(append(append([]byte{}, sig[32:]...), sig[:32]...)), verifier},
		"another claim":                    {segments[0] + "." + strings.Split(hs, ".")[1] + "." + segments[2], verifier},
	} {
		if _, err := ati.ValidateToken(c.token, c.key, ati.WithTime(clock)); !errors.Is(err, ati.ErrSignature) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := ati.ValidateToken(es, verifier, ati.WithTime(clock)); err != nil {
		t.Errorf("the valid token: %v", err)
	}
}

func TestOrchestrator_PublicKey(t *testing.T) {
	t.Parallel()
	private, verifier, _ := newKeyPair(t)
	env, err := ati.Orchestrator{ProxyURL: "https://h/", Key: private}.ProvisionSandbox(ati.ProvisionRequest{AgentID: "a", Tools: []string{"x"}})
	if err != nil {
		t.Fatal(err)
	}
	reader := ati.Orchestrator{ProxyURL: "https://h", Key: verifier}
	claims, err := reader.ValidateToken(env[ati.EnvSessionToken])
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"a", "tool:x"}, []string{claims.Subject, claims.Scope}); diff != "" {
		t.Error(diff)
	}
	var provision *ati.ProvisionError
	if env, err := reader.ProvisionSandbox(ati.ProvisionRequest{AgentID: "a"}); !errors.As(err, &provision) || env != nil {
		t.Errorf("provisioned %v, %v", env, err)
	}
}

func TestKey_DoesNotPrintPrivateKey(t *testing.T) {
	t.Parallel()
	sec1, _, _ := newPEMs(t, elliptic.P256())
	key, err := ati.ParsePrivateKey(sec1)
	if err != nil {
		t.Fatal(err)
	}
	want := "ati.Key(ES256) ati.Key(ES256) ati.Key(ES256)"
	if got := fmt.Sprintf("%v %+v %#v", key, key, key); got != want {
		t.Errorf("prints %s", got)
	}
	type holder struct{ key ati.Key }
	private, err := x509.ParseECPrivateKey(der(sec1))
	if err != nil {
		t.Fatal(err)
	}
	d, err := private.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	printed := fmt.Sprintf("%v %+v %#v", holder{key}, holder{key}, &holder{key})
	if strings.Contains(printed, new(big.Int).SetBytes(d).String()) || strings.Contains(printed, fmt.Sprintf("%x", d)) {
		t.Errorf("prints %s", printed)
	}
}

// FuzzParseKeys checks that the parsers do not panic, and that a parsed private
// key signs and verifies.
func FuzzParseKeys(f *testing.F) {
	sec1, pkcs8, public := newPEMs(f, elliptic.P256())
	other, _, _ := newPEMs(f, elliptic.P384())
	for _, text := range []string{sec1, pkcs8, public, other, "", "-----BEGIN PRIVATE KEY-----\n-----END PRIVATE KEY-----", block("ENCRYPTED PRIVATE KEY", []byte("x"))} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if key, err := ati.ParsePublicKey(text); err == nil && (key.Algorithm() != "ES256" || key.Public() == nil) {
			t.Errorf("a public key of %q", key.Algorithm())
		}
		key, err := ati.ParsePrivateKey(text)
		if err != nil {
			if !errors.Is(err, ati.ErrATI) {
				t.Errorf("%v", err)
			}
			return
		}
		token, err := ati.IssueToken(key, ati.IssueRequest{Subject: "a", IssuedAt: clock()})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ati.ValidateToken(token, key, ati.WithTime(clock)); err != nil {
			t.Error(err)
		}
	})
}
