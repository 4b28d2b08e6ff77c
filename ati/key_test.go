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

// der is what is in a block.
func der(text string) []byte {
	b, _ := pem.Decode([]byte(text))
	return b.Bytes
}

// parameters are what openssl ecparam -genkey writes before a P-256 key.
var parameters = block("EC PARAMETERS", []byte{6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7})

// pems are the forms of one key of a curve.
func pems(t testing.TB, curve elliptic.Curve) (sec1, pkcs8, public string) {
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

// keyPair is a new key, as its owner and as others have it, and the latter's PEM.
func keyPair(t testing.TB) (private, verifier ati.Key, public string) {
	t.Helper()
	sec1, _, public := pems(t, elliptic.P256())
	private, err := ati.ParsePrivateKey(sec1)
	if err != nil {
		t.Fatal(err)
	}
	if verifier, err = ati.ParsePublicKey(public); err != nil {
		t.Fatal(err)
	}
	return private, verifier, public
}

func TestES256KeysSignAndVerify(t *testing.T) {
	t.Parallel()
	sec1, pkcs8, public := pems(t, elliptic.P256())
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
	if _, err := verifier.Sign(&ati.Claims{}); err == nil || err.Error() != "issue token: a public key can't sign" {
		t.Errorf("a public key signs: %v", err)
	}
	if k := mustKey(t, secret); k.Public() != nil {
		t.Error("an HS256 key has a public half")
	}
	if k := (ati.Key{}); k.Public() != nil || k.WithID("x").Algorithm() != "" {
		t.Error("the zero key is a key")
	}
}

// The header with and without kid, for both algorithms.
func TestWithIDPutsAKidIntoTheHeader(t *testing.T) {
	t.Parallel()
	sec1, _, _ := pems(t, elliptic.P256())
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

func TestKeysOfAnotherKindAreRefused(t *testing.T) {
	t.Parallel()
	sec1, pkcs8, public := pems(t, elliptic.P256())
	otherSEC1, otherPKCS8, otherPublic := pems(t, elliptic.P384())
	edwardsPublic, edwards, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	edwardsDER, err := x509.MarshalPKCS8PrivateKey(edwards)
	if err != nil {
		t.Fatal(err)
	}
	edwardsPublicDER, err := x509.MarshalPKIXPublicKey(edwardsPublic)
	if err != nil {
		t.Fatal(err)
	}
	const private = "parse key: must be one P-256 private key in PEM, SEC1 or PKCS#8, not encrypted; "
	for text, want := range map[string]string{
		"":                                   "it doesn't begin with -----BEGIN",
		secret:                               "it doesn't begin with -----BEGIN",
		"x" + sec1:                           "it doesn't begin with -----BEGIN",
		sec1[:80]:                            "it can't be read",
		public:                               `it is a "PUBLIC KEY"`,
		block("RSA PRIVATE KEY", nil):        `it is a "RSA PRIVATE KEY"`,
		block("ENCRYPTED PRIVATE KEY", nil):  "it is encrypted. To decrypt it: openssl pkey -in <file>",
		otherSEC1:                            "it is a key of P-384",
		otherPKCS8:                           "it is a key of P-384",
		block("PRIVATE KEY", edwardsDER):     "it is a key of another algorithm",
		block("EC PRIVATE KEY", []byte("x")): "it can't be read, or names a curve in a way that is not known here",
		block("PRIVATE KEY", []byte("x")):    "it can't be read, or names a curve in a way that is not known here",
		sec1 + pkcs8:                         "there is something behind it",
		parameters:                           "its EC PARAMETERS are not followed by a key",
		parameters + "x" + sec1:              "its EC PARAMETERS are not followed by a key",
		block("EC PARAMETERS", nil) + sec1:   "its EC PARAMETERS don't name P-256",
		block("EC PARAMETERS", []byte{6, 5, 0x2b, 0x81, 4, 0, 0x22}) + sec1: "its EC PARAMETERS don't name P-256",
		// What is encrypted may begin as ASN.1 does.
		strings.Replace(block("EC PRIVATE KEY", []byte{0x30, 0, 1, 2}), "\n", "\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,00\n\n", 1): "it is encrypted. To decrypt it: openssl pkey -in <file>",
		block("OPENSSH PRIVATE KEY", []byte("openssh-key-v1")):                                                                             `it is a "OPENSSH PRIVATE KEY"`,
		block("EC PRIVATE KEY", append(der(sec1), der(sec1)...)):                                                                           "there is something behind it",
		block("PRIVATE KEY", append(der(pkcs8), "junk"...)):                                                                                "there is something behind it",
		strings.Repeat(" ", 4096) + sec1:                                                                                                   fmt.Sprintf("it has %d bytes, and a key has no more than 4096", 4096+len(sec1)),
		strings.Replace(sec1, "-----\n", "-----\nX: y\n\n", 1):                                                                             "it has headers",
		sec1 + block("EC PARAMETERS", nil):                                                                                                 "there is something behind it",
		"-----BEGIN PRIVATE KEY-----\nsecret":                                                                                              "it can't be read",
		// pem.Decode passes over a block that it can't read.
		"-----BEGIN PRIVATE KEY-----\n" + sec1:                                        "it can't be read",
		strings.Replace(pkcs8, "M", "\xff", 1) + pkcs8:                                "it can't be read",
		parameters + strings.Replace(sec1, "M", "", 1) + sec1:                         "it can't be read",
		strings.Replace(parameters, "-----\n", "-----\nX: \xff\n\n", 1) + sec1:        "its EC PARAMETERS don't name P-256",
		strings.Replace(parameters, "-----\n", "-----\nDEK-Info: \xff\n\n", 1) + sec1: "its EC PARAMETERS don't name P-256",
	} {
		key, err := ati.ParsePrivateKey(text)
		if err == nil || err.Error() != private+want || !errors.Is(err, ati.ErrATI) || key.Algorithm() != "" {
			t.Errorf("%.40q: %v, want %s", text, err, want)
		}
	}
	const publicWant = "parse key: must be one P-256 public key in PEM; "
	for text, want := range map[string]string{
		"":                                      "it doesn't begin with -----BEGIN",
		sec1:                                    `it is a "EC PRIVATE KEY"`,
		pkcs8:                                   `it is a "PRIVATE KEY"`,
		otherPublic:                             "it is a key of P-384",
		block("PUBLIC KEY", []byte("x")):        "it can't be read",
		block("CERTIFICATE", []byte("x")):       `it is a "CERTIFICATE"`,
		public + public:                         "there is something behind it",
		"-----BEGIN PUBLIC KEY-----\n" + public: "it can't be read",
		// The proxy opens itself with such a file.
		parameters + public: "there is something behind it",
		strings.Replace(public, "\n", "\nDEK-Info: x\n\n", 1): "it is not written as openssl writes it. To write it anew: openssl pkey -pubin -in <file>",
		strings.Replace(public, "\n", "\n\n", 1):              "it is not written as openssl writes it. To write it anew: openssl pkey -pubin -in <file>",
		// A byte behind the last element of the sequence, which x509 passes over.
		block("PUBLIC KEY", append([]byte{0x30, der(public)[1] + 1}, append(der(public)[2:], 0xff)...)): "it is not written as openssl writes it. To write it anew: openssl pkey -pubin -in <file>",
		block("PUBLIC KEY", edwardsPublicDER): "it is a key of another algorithm",
	} {
		key, err := ati.ParsePublicKey(text)
		if err == nil || err.Error() != publicWant+want || key.Algorithm() != "" {
			t.Errorf("%.40q: %v, want %s", text, err, want)
		}
	}
}

// The algorithm is the key's, never the token's: a token under the other one is
// refused, also one whose HMAC is made with the public key.
func TestTheAlgorithmIsPinned(t *testing.T) {
	t.Parallel()
	private, verifier, public := keyPair(t)
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
		"HS256 for the private key":       {hs, private},
		"HS256 for the public key":        {hs, verifier},
		"ES256 for the secret":            {es, mustKey(t, secret)},
		"an HMAC with the PEM":            {withHMAC([]byte(public)), verifier},
		"an HMAC with the DER":            {withHMAC(block.Bytes), verifier},
		"ES256 in the header of an HMAC":  {encode([]byte(`{"alg":"ES256","typ":"JWT"}`)) + "." + strings.SplitN(hs, ".", 2)[1], verifier},
		"a signature in DER":              {signed + encode(der), verifier},
		"a signature of 63 bytes":         {signed + encode(sig[:63]), verifier},
		"a signature of 65 bytes":         {signed + encode(append([]byte{0}, sig...)), verifier},
		"a signature of zeros":            {signed + encode(make([]byte, 64)), verifier},
		"no signature":                    {signed, verifier},
		"the halves the other way around": {signed + encode(append(append([]byte{}, sig[32:]...), sig[:32]...)), verifier},
		"another claim":                   {segments[0] + "." + strings.Split(hs, ".")[1] + "." + segments[2], verifier},
	} {
		if _, err := ati.ValidateToken(c.token, c.key, ati.WithTime(clock)); !errors.Is(err, ati.ErrSignature) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := ati.ValidateToken(es, verifier, ati.WithTime(clock)); err != nil {
		t.Errorf("the token itself: %v", err)
	}
}

func TestAnOrchestratorWithAPublicKeyValidatesAndProvisionsNothing(t *testing.T) {
	t.Parallel()
	private, verifier, _ := keyPair(t)
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

func TestES256KeysDontPrintThemselves(t *testing.T) {
	t.Parallel()
	sec1, _, _ := pems(t, elliptic.P256())
	key, err := ati.ParsePrivateKey(sec1)
	if err != nil {
		t.Fatal(err)
	}
	want := "ati.Key(ES256) ati.Key(ES256) ati.Key(ES256)"
	if got := fmt.Sprintf("%v %+v %#v", key, key, key); got != want {
		t.Errorf("prints %s", got)
	}
	type holder struct{ key ati.Key }
	private, err := x509.ParseECPrivateKey(func() []byte { b, _ := pem.Decode([]byte(sec1)); return b.Bytes }())
	if err != nil {
		t.Fatal(err)
	}
	d, err := private.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	shown := fmt.Sprintf("%v %+v %#v", holder{key}, holder{key}, &holder{key})
	if strings.Contains(shown, new(big.Int).SetBytes(d).String()) || strings.Contains(shown, fmt.Sprintf("%x", d)) {
		t.Errorf("prints %s", shown)
	}
}

// No text makes a parser panic, and what it takes signs and verifies.
func FuzzParseKeys(f *testing.F) {
	sec1, pkcs8, public := pems(f, elliptic.P256())
	other, _, _ := pems(f, elliptic.P384())
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
