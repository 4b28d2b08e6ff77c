package ati_test

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"vault-plugin-secrets-ati/ati"
)

const (
	secret = "efca767f4799094360a8673bdab2a37e6c6f89662ae447b51e47d2593facc112"
	now    = 1_800_000_000
)

func clock() time.Time { return time.Unix(now, 0) }

// sign returns a token with this header and payload, which may be invalid.
func sign(t testing.TB, header, payload string) string {
	t.Helper()
	key, err := hexBytes(secret)
	if err != nil {
		t.Fatal(err)
	}
	text := base64.RawURLEncoding.EncodeToString([]byte(header)) + "." + base64.RawURLEncoding.EncodeToString([]byte(payload))
	sig, err := jwt.SigningMethodHS256.Sign(text, key)
	if err != nil {
		t.Fatal(err)
	}
	return text + "." + base64.RawURLEncoding.EncodeToString(sig)
}

func hexBytes(s string) ([]byte, error) {
	b := make([]byte, len(s)/2)
	_, err := fmt.Sscanf(s, "%x", &b)
	return b, err
}

const (
	goodHeader = `{"alg":"HS256","typ":"JWT"}`
	goodClaims = `"sub":"a","aud":"ati-proxy","iat":1800000000,"exp":1800003600,"scope":"help"`
)

// acceptedTokens are valid for ati-client 0.1.0 and for the proxy 0.7.15, as
// tried on both.
var acceptedTokens = map[string]struct{ header, payload string }{
	"a plain token":                     {goodHeader, `{` + goodClaims + `}`},
	"white space in the JSON":           {" {\n\"alg\" : \"HS256\" }", ` { ` + goodClaims + "\n}\t"},
	"an escaped name":                   {goodHeader, `{` + strings.Replace(goodClaims, `"sub"`, `"\u0073ub"`, 1) + `}`},
	"an unknown claim twice":            {goodHeader, `{` + goodClaims + `,"x":1,"x":[2]}`},
	"an unknown claim in upper case":    {goodHeader, `{` + goodClaims + `,"SUB":"root"}`},
	"null for optional claims":          {goodHeader, `{` + goodClaims + `,"iss":null,"ati":null,"job_id":null,"sandbox_id":null}`},
	"an ati without rate":               {goodHeader, `{` + goodClaims + `,"ati":{"v":255,"x":1}}`},
	"a rate key twice":                  {goodHeader, `{` + goodClaims + `,"ati":{"v":1,"rate":{"a":"1/s","a":"2/s"}}}`},
	"an nbf in the past":                {goodHeader, `{` + goodClaims + `,"nbf":1.5}`},
	"an nbf within the leeway":          {goodHeader, `{` + goodClaims + `,"nbf":1800000060.9}`},
	"a number that overflows a float":   {goodHeader, `{` + goodClaims + `,"x":1e999}`},
	"b64 true":                          {`{"alg":"HS256","b64":true}`, `{` + goodClaims + `}`},
	"null for optional header members":  {`{"alg":"HS256","typ":null,"cty":null,"x5c":null,"jwk":null,"x":{}}`, `{` + goodClaims + `}`},
	"an expiry 59 seconds ago":          {goodHeader, `{"sub":"a","aud":"ati-proxy","iat":1,"exp":1799999941,"scope":""}`},
	"an expiry in the year 292,277,026": {goodHeader, `{"sub":"a","aud":"ati-proxy","iat":1,"exp":9223372036854775807,"scope":""}`},
	"an iat 60 seconds ahead":           {goodHeader, `{"sub":"a","aud":"ati-proxy","iat":1800000060,"exp":1800000000,"scope":""}`},
	"deep nesting in an unknown claim":  {goodHeader, `{` + goodClaims + `,"x":` + strings.Repeat("[", 126) + strings.Repeat("]", 126) + `}`},
}

func TestValidateToken_Accepts(t *testing.T) {
	t.Parallel()
	key := mustKey(t, secret)
	for name, c := range acceptedTokens {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			claims, err := ati.ValidateToken(sign(t, c.header, c.payload), key, ati.WithTime(clock))
			if err != nil {
				t.Fatal(err)
			}
			if claims.Subject != "a" {
				t.Errorf("sub is %q", claims.Subject)
			}
		})
	}
}

// rejectedTokens are rejected by ati-client 0.1.0 or by the proxy 0.7.15, as tried
// on both, except those whose names end in "(stricter)".
var rejectedTokens = map[string]struct {
	header, payload string
	want            string // error, without "validate token: "
}{
	"a claim twice":                  {goodHeader, `{` + goodClaims + `,"scope":"*"}`, `malformed token: could not JSON decode claim: "scope" appears twice`},
	"a claim twice, escaped":         {goodHeader, `{` + goodClaims + `,"\u0073ub":"b"}`, `malformed token: could not JSON decode claim: "sub" appears twice`},
	"a claim in upper case":          {goodHeader, `{` + strings.Replace(goodClaims, `"sub"`, `"SUB"`, 1) + `}`, `malformed token: could not JSON decode claim: claim "sub" is missing`},
	"a null subject":                 {goodHeader, `{` + strings.Replace(goodClaims, `"a"`, `null`, 1) + `}`, `malformed token: could not JSON decode claim: "sub": must be a string`},
	"a number for a subject":         {goodHeader, `{` + strings.Replace(goodClaims, `"a"`, `1`, 1) + `}`, `malformed token: could not JSON decode claim: "sub": must be a string`},
	"a lone surrogate":               {goodHeader, `{` + strings.Replace(goodClaims, `"a"`, `"\ud83d"`, 1) + `}`, `malformed token: could not JSON decode claim: "sub": must be valid Unicode`},
	"invalid UTF-8":                  {goodHeader, `{` + strings.Replace(goodClaims, `"a"`, "\"\xff\"", 1) + `}`, "malformed token: payload: must be valid UTF-8"},
	"a byte order mark":              {goodHeader, "\ufeff{" + goodClaims + `}`, "malformed token: could not JSON decode claim: invalid character 'ï' looking for beginning of value"},
	"a null jti":                     {goodHeader, `{` + goodClaims + `,"jti":null}`, `malformed token: could not JSON decode claim: "jti": must be a string`},
	"an exp with an exponent":        {goodHeader, `{` + strings.Replace(goodClaims, `1800003600`, `1.8e9`, 1) + `}`, `malformed token: could not JSON decode claim: "exp": must be a Unix time in seconds, as a non-negative JSON integer`},
	"a negative iat":                 {goodHeader, `{` + strings.Replace(goodClaims, `1800000000`, `-1`, 1) + `}`, `malformed token: could not JSON decode claim: "iat": must be a Unix time in seconds, as a non-negative JSON integer`},
	"an exp beyond 2^63 (stricter)":  {goodHeader, `{` + strings.Replace(goodClaims, `1800003600`, `9223372036854775808`, 1) + `}`, `malformed token: could not JSON decode claim: "exp": must be a Unix time in seconds, as a non-negative JSON integer`},
	"an ati with a null rate":        {goodHeader, `{` + goodClaims + `,"ati":{"v":1,"rate":null}}`, `malformed token: could not JSON decode claim: "ati": "rate": must be a JSON object`},
	"a lone surrogate in a rate":     {goodHeader, `{` + goodClaims + `,"ati":{"v":1,"rate":{"\ud83d":"1/s"}}}`, `malformed token: could not JSON decode claim: "ati": "rate": member name must be valid Unicode`},
	"U+FFFD (stricter)":              {goodHeader, `{` + goodClaims + `,"job_id":"\ufffd"}`, `malformed token: could not JSON decode claim: "job_id": must be valid Unicode`},
	"an ati that is a list":          {goodHeader, `{` + goodClaims + `,"ati":[1]}`, `malformed token: could not JSON decode claim: "ati": must be a JSON object`},
	"a version of 256":               {goodHeader, `{` + goodClaims + `,"ati":{"v":256}}`, `malformed token: could not JSON decode claim: "ati": "v": must be an integer from 0 to 255`},
	"a version of 1.0":               {goodHeader, `{` + goodClaims + `,"ati":{"v":1.0}}`, `malformed token: could not JSON decode claim: "ati": "v": must be an integer from 0 to 255`},
	"a version twice":                {goodHeader, `{` + goodClaims + `,"ati":{"v":1,"v":1}}`, `malformed token: could not JSON decode claim: "ati": "v" appears twice`},
	"a rate that is a number":        {goodHeader, `{` + goodClaims + `,"ati":{"v":1,"rate":{"a":1}}}`, `malformed token: could not JSON decode claim: "ati": "rate": "a": must be a string`},
	"an nbf as a string (stricter)":  {goodHeader, `{` + goodClaims + `,"nbf":"1"}`, `malformed token: could not JSON decode claim: "nbf": must be a number`},
	"an nbf that is null":            {goodHeader, `{` + goodClaims + `,"nbf":null}`, `malformed token: could not JSON decode claim: "nbf": must be a number`},
	"an nbf beyond the leeway":       {goodHeader, `{` + goodClaims + `,"nbf":1800000061}`, "token is not valid yet: nbf is in the future"},
	"an nbf of 1e300":                {goodHeader, `{` + goodClaims + `,"nbf":1e300}`, "token is not valid yet: nbf is in the future"},
	"an iat 61 seconds ahead":        {goodHeader, `{"sub":"a","aud":"ati-proxy","iat":1800000061,"exp":1800003600,"scope":""}`, "token is not valid yet: iat is 2027-01-15T08:01:01Z"},
	"an expiry 60 seconds ago":       {goodHeader, `{"sub":"a","aud":"ati-proxy","iat":1,"exp":1799999940,"scope":""}`, "token has expired: exp is 2027-01-15T07:59:00Z"},
	"an empty audience":              {goodHeader, `{"sub":"a","aud":"","iat":1,"exp":1800003600,"scope":""}`, `audience is not accepted: aud is "", not one of ["ati-proxy"]`},
	"deep nesting":                   {goodHeader, `{` + goodClaims + `,"x":` + strings.Repeat("[", 127) + strings.Repeat("]", 127) + `}`, "malformed token: payload: must not be nested more than 127 levels deep"},
	"two JSON values":                {goodHeader, `{` + goodClaims + `}{}`, "malformed token: could not JSON decode claim: invalid character '{' after top-level value"},
	"a header that is a list":        {`["HS256"]`, `{` + goodClaims + `}`, "malformed token: header: must be a JSON object"},
	"alg twice":                      {`{"alg":"HS256","alg":"HS256"}`, `{` + goodClaims + `}`, `malformed token: header: "alg" appears twice`},
	"a kid that is null":             {`{"alg":"HS256","kid":null}`, `{` + goodClaims + `}`, `malformed token: header: "kid": must be a string`},
	"a typ that is a number":         {`{"alg":"HS256","typ":1}`, `{` + goodClaims + `}`, `malformed token: header: "typ": must be a string`},
	"a cty that is a number":         {`{"alg":"HS256","cty":1}`, `{` + goodClaims + `}`, `malformed token: header: "cty": must be a string`},
	"a jku that is a number":         {`{"alg":"HS256","jku":1}`, `{` + goodClaims + `}`, `malformed token: header: "jku": must be a string`},
	"an x5u that is a number":        {`{"alg":"HS256","x5u":1}`, `{` + goodClaims + `}`, `malformed token: header: "x5u": must be a string`},
	"an x5t that is a number":        {`{"alg":"HS256","x5t":1}`, `{` + goodClaims + `}`, `malformed token: header: "x5t": must be a string`},
	"an x5t#S256 that is a number":   {`{"alg":"HS256","x5t#S256":1}`, `{` + goodClaims + `}`, `malformed token: header: "x5t#S256": must be a string`},
	"x5c with a null":                {`{"alg":"HS256","x5c":[null]}`, `{` + goodClaims + `}`, `malformed token: header: "x5c": must be a string`},
	"x5c with a lone surrogate":      {`{"alg":"HS256","x5c":["\ud800"]}`, `{` + goodClaims + `}`, `malformed token: header: "x5c": must be valid Unicode`},
	"b64 false":                      {`{"alg":"HS256","b64":false}`, `{` + goodClaims + `}`, `malformed token: header: "b64": must be true`},
	"crit":                           {`{"alg":"HS256","crit":["b64"],"b64":true}`, `{` + goodClaims + `}`, `malformed token: header: "crit": critical extensions are not supported`},
	"a key in the header (stricter)": {`{"alg":"HS256","jwk":{}}`, `{` + goodClaims + `}`, `malformed token: header: "jwk": embedded keys are not allowed`},
	"x5c of numbers":                 {`{"alg":"HS256","x5c":[1]}`, `{` + goodClaims + `}`, `malformed token: header: "x5c": must be a string`},
	"no alg":                         {`{}`, `{` + goodClaims + `}`, "signature does not match"},
	"alg none":                       {`{"alg":"none"}`, `{` + goodClaims + `}`, "signature does not match"},
	"alg HS512":                      {`{"alg":"HS512"}`, `{` + goodClaims + `}`, "signature does not match"},
	"alg ES256":                      {`{"alg":"ES256"}`, `{` + goodClaims + `}`, "signature does not match"},
}

func TestValidateToken_Rejects(t *testing.T) {
	t.Parallel()
	key := mustKey(t, secret)
	for name, c := range rejectedTokens {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			claims, err := ati.ValidateToken(sign(t, c.header, c.payload), key, ati.WithTime(clock))
			if err == nil {
				t.Fatalf("accepted: %+v", claims)
			}
			if got, want := err.Error(), "validate token: "+c.want; got != want {
				t.Errorf("\n got %s\nwant %s", got, want)
			}
		})
	}
}

func TestValidateToken_RejectsDamagedEncoding(t *testing.T) {
	t.Parallel()
	key := mustKey(t, secret)
	good := sign(t, goodHeader, `{`+goodClaims+`}`)
	for name, token := range map[string]string{
		"a leading line break":          "\n" + good,
		"a line break in the middle":    good[:10] + "\r\n" + good[10:],
		"a line break in the signature": good[:len(good)-5] + "\n" + good[len(good)-5:],
		"a trailing space":              good + " ",
		"padding":                       good + "=",
		"four segments":                 good + ".",
		"no signature":                  good[:strings.LastIndexByte(good, '.')+1],
		"another signature":             good[:len(good)-10] + "AAAAAAAAAA",
		"stray trailing bits":           good[:len(good)-1] + string(good[len(good)-1]+1),
		"the standard base64 alphabet":  strings.Replace(good, "e", "+", 1),
	} {
		if _, err := ati.ValidateToken(token, key, ati.WithTime(clock)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestValidateToken_Options(t *testing.T) {
	t.Parallel()
	key := mustKey(t, secret)
	token := sign(t, goodHeader, `{`+goodClaims+`,"iss":"me"}`)
	noIssuer := sign(t, goodHeader, `{`+goodClaims+`}`)
	for name, c := range map[string]struct {
		token string
		opts  []ati.ValidateOption
		want  string
	}{
		"no required issuer":    {token, nil, ""},
		"the issuer":            {token, []ati.ValidateOption{ati.WithIssuer("me")}, ""},
		"another issuer":        {token, []ati.ValidateOption{ati.WithIssuer("you")}, `issuer is not accepted: iss is "me", not "you"`},
		"a missing issuer":      {noIssuer, []ati.ValidateOption{ati.WithIssuer("you")}, `issuer is not accepted: iss is "", not "you"`},
		"an empty issuer":       {token, []ati.ValidateOption{ati.WithIssuer("")}, "required issuer must not be empty; omit WithIssuer to skip the check"},
		"one of two audiences":  {token, []ati.ValidateOption{ati.WithAudience("x", "ati-proxy")}, ""},
		"another audience":      {token, []ati.ValidateOption{ati.WithAudience("x")}, `audience is not accepted: aud is "ati-proxy", not one of ["x"]`},
		"no audience":           {token, []ati.ValidateOption{ati.WithAudience()}, "WithAudience requires at least one audience"},
		"an empty audience":     {token, []ati.ValidateOption{ati.WithAudience("x", "")}, "accepted audience must not be empty"},
		"too much leeway":       {token, []ati.ValidateOption{ati.WithLeeway(61 * time.Second)}, "leeway 1m1s: must be between 0s and 1m0s, the leeway of the proxy"},
		"negative leeway":       {token, []ati.ValidateOption{ati.WithLeeway(-1)}, "leeway -1ns: must be between 0s and 1m0s, the leeway of the proxy"},
		"no leeway, at exp":     {token, []ati.ValidateOption{ati.WithLeeway(0), ati.WithTime(func() time.Time { return time.Unix(now+3600, 0) })}, "token has expired: exp is 2027-01-15T09:00:00Z"},
		"no leeway, before exp": {token, []ati.ValidateOption{ati.WithLeeway(0), ati.WithTime(func() time.Time { return time.Unix(now+3600, -1) })}, ""},
	} {
		_, err := ati.ValidateToken(c.token, key, append([]ati.ValidateOption{ati.WithTime(clock)}, c.opts...)...)
		switch {
		case c.want == "" && err != nil:
			t.Errorf("%s: %v", name, err)
		case c.want != "" && (err == nil || err.Error() != "validate token: "+c.want):
			t.Errorf("%s:\n got %v\nwant validate token: %s", name, err, c.want)
		}
	}
	if _, err := ati.ValidateToken(token, ati.Key{}); err == nil || err.Error() != "validate token: key is empty" {
		t.Errorf("the zero key: %v", err)
	}
}

func TestTokenError_Reason(t *testing.T) {
	t.Parallel()
	key := mustKey(t, secret)
	validate := func(token string, opts ...ati.ValidateOption) error {
		_, err := ati.ValidateToken(token, key, append([]ati.ValidateOption{ati.WithTime(clock)}, opts...)...)
		return err
	}
	good := sign(t, goodHeader, `{`+goodClaims+`}`)
	late := func() time.Time { return time.Unix(now+9999, 0) }
	early := func() time.Time { return time.Unix(1, 0) }
	for reason, err := range map[error]error{
		ati.ErrMalformed:   validate("x"),
		ati.ErrSignature:   validate(good[:len(good)-10] + "AAAAAAAAAA"),
		ati.ErrExpired:     validate(good, ati.WithTime(late)),
		ati.ErrNotYetValid: validate(good, ati.WithTime(early)),
		ati.ErrAudience:    validate(good, ati.WithAudience("x")),
		ati.ErrIssuer:      validate(good, ati.WithIssuer("x")),
	} {
		for _, other := range []error{ati.ErrMalformed, ati.ErrSignature, ati.ErrExpired, ati.ErrNotYetValid, ati.ErrAudience, ati.ErrIssuer} {
			if got := errors.Is(err, other); got != (other == reason) {
				t.Errorf("errors.Is(%q, %q) is %v", err, other, got)
			}
		}
		var tokenErr *ati.TokenError
		if !errors.As(err, &tokenErr) || tokenErr.Op != "validate token" || !errors.Is(err, ati.ErrATI) {
			t.Errorf("%v is %T", err, err)
		}
	}
}

func TestScopeError_As(t *testing.T) {
	t.Parallel()
	_, err := ati.ParseRate("x")
	var scopeErr *ati.ScopeError
	if !errors.As(err, &scopeErr) || scopeErr.Value != "x" || !errors.Is(err, ati.ErrATI) {
		t.Errorf("ParseRate: %v", err)
	}
}

func TestProvisionError_As(t *testing.T) {
	t.Parallel()
	_, err := ati.Orchestrator{}.ProvisionSandbox(ati.ProvisionRequest{AgentID: "a"})
	var provisionErr *ati.ProvisionError
	if !errors.As(err, &provisionErr) || !errors.Is(err, ati.ErrATI) || err.Error() != "provision sandbox: ProxyURL is required" {
		t.Errorf("without a ProxyURL: %v", err)
	}
	_, err = ati.Orchestrator{ProxyURL: "https://x"}.ProvisionSandbox(ati.ProvisionRequest{AgentID: "a"})
	var tokenErr *ati.TokenError
	if !errors.As(err, &provisionErr) || !errors.As(err, &tokenErr) || err.Error() != "provision sandbox: issue token: key is empty" {
		t.Errorf("without a key: %v", err)
	}
}

func TestParseSecret(t *testing.T) {
	t.Parallel()
	a, err := ati.IssueToken(mustKey(t, "abCD ef\n"), ati.IssueRequest{Subject: "a", ID: "x", IssuedAt: clock()})
	if err != nil {
		t.Fatal(err)
	}
	b, err := ati.IssueToken(mustKey(t, "abcdef"), ati.IssueRequest{Subject: "a", ID: "x", IssuedAt: clock()})
	if err != nil || a != b {
		t.Errorf("%v\n%s\n%s", err, a, b)
	}
	for bad, want := range map[string]string{
		"":                 "parse key: HS256 secret must not be empty",
		" \n":              "parse key: HS256 secret must not be empty",
		"a b":              "parse key: HS256 secret must be pairs of hexadecimal digits",
		"abc":              "parse key: HS256 secret must be pairs of hexadecimal digits",
		"xyxyxy":           "parse key: HS256 secret must be pairs of hexadecimal digits",
		"ab\u00a0cd":       "parse key: HS256 secret must be pairs of hexadecimal digits",
		"<no value>":       "parse key: HS256 secret must be pairs of hexadecimal digits",
		`"` + secret + `"`: "parse key: HS256 secret must be pairs of hexadecimal digits",
	} {
		if _, err := ati.ParseSecret(bad); err == nil || err.Error() != want {
			t.Errorf("ParseSecret(%q): %v", bad, err)
		}
	}
}

func TestKey_DoesNotPrintSecret(t *testing.T) {
	t.Parallel()
	key := mustKey(t, secret)
	raw, err := hexBytes(secret)
	if err != nil {
		t.Fatal(err)
	}
	type holder struct {
		key  ati.Key
		Key  ati.Key
		Keys []ati.Key
	}
	h := holder{key, key, []ati.Key{key}}
	printed := fmt.Sprintf("%v %+v %#v %s %x | %v %+v %#v | %v %+v %#v", key, key, key, key, key, h, h, h, &h, &h, &h)
	for _, leak := range []string{secret, string(raw), fmt.Sprint(raw), fmt.Sprintf("%#v", raw), fmt.Sprint(raw[0], raw[1], raw[2])} {
		if strings.Contains(printed, leak) {
			t.Errorf("the key is printed: %s", printed)
		}
	}
	if got := key.String(); got != "ati.Key(HS256)" {
		t.Errorf("String() is %q", got)
	}
	if key.Algorithm() != ati.HS256 || (ati.Key{}).Algorithm() != "" {
		t.Errorf("algorithms are %q and %q", key.Algorithm(), ati.Key{}.Algorithm())
	}
}

// As tried with json.dumps of Python: it escapes non-ASCII characters and DEL, but
// not "<" and "&".
func TestClaims_JSON(t *testing.T) {
	t.Parallel()
	c := ati.Claims{
		Subject: "é<&>\x7f\n\u2028😀/\"\\\b\f\r\t\x01", Audience: "a", IssuedAt: 1, ExpiresAt: -5, Scope: "",
		ATI:   &ati.Namespace{Version: 1, Rate: map[string]string{"tool:b": "1/s", "tool:a": "2/s"}},
		JobID: "j", SandboxID: "s",
	}
	token, err := mustKey(t, secret).Sign(&c)
	if err != nil {
		t.Fatal(err)
	}
	payload, err := base64.RawURLEncoding.DecodeString(strings.Split(token, ".")[1])
	if err != nil {
		t.Fatal(err)
	}
	want := `{"sub":"\u00e9<&>\u007f\n\u2028\ud83d\ude00/\"\\\b\f\r\t\u0001","aud":"a","iat":1,"exp":-5,"scope":"",` +
		`"ati":{"v":1,"rate":{"tool:a":"2/s","tool:b":"1/s"}},"job_id":"j","sandbox_id":"s"}`
	if string(payload) != want {
		t.Errorf("\n got %s\nwant %s", payload, want)
	}
	var again ati.Claims
	if err := json.Unmarshal([]byte(strings.Replace(want, "-5", "5", 1)), &again); err != nil {
		t.Fatal(err)
	}
	c.ExpiresAt = 5
	if diff := cmp.Diff(c, again); diff != "" {
		t.Errorf("read again (-want +got):\n%s", diff)
	}
	if b, err := json.Marshal(c.ATI); err != nil || string(b) != `{"v":1,"rate":{"tool:a":"2/s","tool:b":"1/s"}}` {
		t.Errorf("namespace: %s, %v", b, err)
	}
	var back map[string]any
	if err := json.Unmarshal(payload, &back); err != nil || back["sub"] != c.Subject {
		t.Errorf("%v: %q", err, back["sub"])
	}
}

// encoding/json accepts the first two, and the proxy does not.
func TestClaims_UnmarshalJSON_Rejects(t *testing.T) {
	t.Parallel()
	const members = `"sub":"a","aud":"b","iat":1,"exp":2,"scope":"","x":`
	for text, want := range map[string]string{
		`{` + members + "\"\xff\"}": "must be valid UTF-8",
		`{` + members + strings.Repeat("[", 127) + strings.Repeat("]", 127) + `}`: "must not be nested more than 127 levels deep",
		`{"sub":"a"}`: `claim "aud" is missing`,
	} {
		claims := ati.Claims{Subject: "before"}
		if err := json.Unmarshal([]byte(text), &claims); err == nil || err.Error() != want || claims.Subject != "before" {
			t.Errorf("%.70s: %v, %+v", text, err, claims)
		}
	}
}

func TestIssueToken_Defaults(t *testing.T) {
	t.Parallel()
	key := mustKey(t, secret)
	before := time.Now().Unix()
	token, err := ati.IssueToken(key, ati.IssueRequest{Subject: "a", Scope: "help"})
	if err != nil {
		t.Fatal(err)
	}
	c, err := ati.ValidateToken(token, key)
	if err != nil {
		t.Fatal(err)
	}
	if id, err := uuid.Parse(c.ID); err != nil || id.Version() != 4 {
		t.Errorf("jti %q: %v", c.ID, err)
	}
	if c.IssuedAt < before || c.IssuedAt > time.Now().Unix() {
		t.Errorf("iat %d", c.IssuedAt)
	}
	want := &ati.Claims{Subject: "a", Audience: "ati-proxy", IssuedAt: c.IssuedAt, ExpiresAt: c.IssuedAt + 3600, Scope: "help", Issuer: "ati-orchestrator", ID: c.ID, ATI: &ati.Namespace{Version: 1}}
	if diff := cmp.Diff(want, c); diff != "" {
		t.Errorf("claims (-want +got):\n%s", diff)
	}
	if got := c.Scopes(); !cmp.Equal(got, []string{"help"}) {
		t.Errorf("scopes %q", got)
	}
}

func TestIssueToken_ExplicitValues(t *testing.T) {
	t.Parallel()
	key := mustKey(t, secret)
	token, err := ati.IssueToken(key, ati.IssueRequest{Subject: "a", ID: "x", JobID: "j", SandboxID: "s", TTL: -5 * time.Second, IssuedAt: clock()})
	if err != nil {
		t.Fatal(err)
	}
	c, err := ati.ValidateToken(token, key, ati.WithTime(clock))
	if err != nil {
		t.Fatal(err)
	}
	want := &ati.Claims{Subject: "a", Audience: "ati-proxy", IssuedAt: now, ExpiresAt: now - 5, Issuer: "ati-orchestrator", ID: "x", ATI: &ati.Namespace{Version: 1}, JobID: "j", SandboxID: "s"}
	if diff := cmp.Diff(want, c); diff != "" {
		t.Errorf("claims (-want +got):\n%s", diff)
	}
}

func TestIssueToken_Rejects(t *testing.T) {
	t.Parallel()
	key := mustKey(t, secret)
	if _, err := ati.IssueToken(key, ati.IssueRequest{TTL: 1500 * time.Millisecond}); err == nil || err.Error() != "issue token: TTL 1.5s: must be a whole number of seconds" {
		t.Errorf("half a second: %v", err)
	}
	if _, err := ati.IssueToken(ati.Key{}, ati.IssueRequest{}); err == nil || err.Error() != "issue token: key is empty" {
		t.Errorf("the zero key: %v", err)
	}
}

func TestProvisionSandbox(t *testing.T) {
	t.Parallel()
	o := ati.Orchestrator{ProxyURL: "https://ati.example.com//", Key: mustKey(t, secret)}
	env, err := o.ProvisionSandbox(ati.ProvisionRequest{
		AgentID: "sandbox:abc", Tools: []string{"web_search", "tool:github:*"}, Skills: []string{"x"}, ExtraScopes: []string{"help"},
		TTL: 2 * time.Hour, Rate: map[string]string{"*": "1/s"},
	})
	if err != nil {
		t.Fatal(err)
	}
	token := env["ATI_SESSION_TOKEN"]
	if diff := cmp.Diff(map[string]string{"ATI_PROXY_URL": "https://ati.example.com", "ATI_SESSION_TOKEN": token}, env); diff != "" {
		t.Errorf("environment (-want +got):\n%s", diff)
	}
	c, err := o.ValidateToken(token, ati.WithIssuer("ati-orchestrator"))
	if err != nil {
		t.Fatal(err)
	}
	want := &ati.Claims{
		Subject: "sandbox:abc", Audience: "ati-proxy", IssuedAt: c.IssuedAt, ExpiresAt: c.IssuedAt + 7200, Scope: "tool:web_search tool:github:* skill:x help",
		Issuer: "ati-orchestrator", ID: c.ID, ATI: &ati.Namespace{Version: 1, Rate: map[string]string{"*": "1/s"}},
	}
	if diff := cmp.Diff(want, c); diff != "" {
		t.Errorf("claims (-want +got):\n%s", diff)
	}
	o.Audience, o.Issuer = "mcp", "me"
	if env, err = o.ProvisionSandbox(ati.ProvisionRequest{AgentID: "a"}); err != nil {
		t.Fatal(err)
	}
	if c, err = o.ValidateToken(env["ATI_SESSION_TOKEN"]); err != nil || c.Audience != "mcp" || c.Issuer != "me" {
		t.Errorf("%v: %+v", err, c)
	}
}

// Cases that the vectors lack, as tried on ati-client 0.1.0.
func TestInspectToken(t *testing.T) {
	t.Parallel()
	token := func(header, payload string) string {
		return base64.RawURLEncoding.EncodeToString([]byte(header)) + "." + base64.RawURLEncoding.EncodeToString([]byte(payload)) + "."
	}
	type m = map[string]any
	defaults := func(extra m) m {
		out := m{"sub": "a", "aud": "ati-proxy", "iat": json.Number("0"), "exp": json.Number("0"), "scope": ""}
		for k, v := range extra {
			out[k] = v
		}
		return out
	}
	for name, c := range map[string]struct {
		token string
		want  m
		err   string
	}{
		"ES256":                          {token(`{"alg":"ES256","kid":"1"}`, `{"sub":"a"}`), defaults(nil), ""},
		"no alg":                         {token(`{}`, `{"sub":"a"}`), defaults(nil), ""},
		"claims of any type":             {token(`{}`, `{"sub":null,"exp":null,"iat":1.5,"aud":[1],"jti":7,"x":1}`), m{"sub": nil, "exp": nil, "iat": json.Number("1.5"), "aud": []any{json.Number("1")}, "jti": json.Number("7"), "scope": ""}, ""},
		"null for optional claims":       {token(`{}`, `{"sub":"a","iss":null,"jti":null,"ati":null}`), defaults(nil), ""},
		"an empty ati":                   {token(`{}`, `{"sub":"a","ati":{}}`), defaults(nil), ""},
		"an ati without v":               {token(`{}`, `{"sub":"a","ati":{"rate":{"*":"1/s"}}}`), defaults(m{"ati": m{"v": json.Number("1"), "rate": m{"*": "1/s"}}}), ""},
		"an ati without rate":            {token(`{}`, `{"sub":"a","ati":{"v":2,"rate":{}}}`), defaults(m{"ati": m{"v": json.Number("2")}}), ""},
		"an ati that is an empty list":   {token(`{}`, `{"sub":"a","ati":[]}`), defaults(nil), ""},
		"an ati that is zero":            {token(`{}`, `{"sub":"a","ati":0}`), defaults(nil), ""},
		"a rate that is an empty string": {token(`{}`, `{"sub":"a","ati":{"v":1,"rate":""}}`), defaults(m{"ati": m{"v": json.Number("1")}}), ""},
		"b64 false":                      {token(`{"b64":false}`, `{"sub":"a"}`), nil, "header: critical extensions are not supported"},
		"an ati that is a list":          {token(`{}`, `{"sub":"a","ati":[1]}`), nil, `claim "ati" must be a JSON object`},
		"no sub":                         {token(`{}`, `{}`), nil, `claim "sub" is missing`},
		"a kid that is null":             {token(`{"kid":null}`, `{"sub":"a"}`), nil, `header: "kid" must be a string`},
		"crit":                           {token(`{"crit":[]}`, `{"sub":"a"}`), nil, "header: critical extensions are not supported"},
		"a header that is a list":        {token(`[]`, `{"sub":"a"}`), nil, "header: must be a JSON object"},
		"a payload that is a list":       {token(`{}`, `[]`), nil, "payload: must be a JSON object"},
		"invalid UTF-8":                  {token(`{}`, "{\"sub\":\"\xff\"}"), nil, "payload: must be valid UTF-8"},
		"deep nesting":                   {token(`{}`, `{"sub":"a","x":`+strings.Repeat("[", 200)+strings.Repeat("]", 200)+`}`), nil, "payload: must not be nested more than 127 levels deep"},
		"correct padding":                {base64.URLEncoding.EncodeToString([]byte(`{"a":1}`)) + "." + base64.URLEncoding.EncodeToString([]byte(`{"sub":"a"}`)) + ".", defaults(nil), ""},
		"incorrect padding":              {base64.RawURLEncoding.EncodeToString([]byte(`{"a":1}`)) + "=." + base64.URLEncoding.EncodeToString([]byte(`{"sub":"a"}`)) + ".", nil, "segment 1 must be base64url without padding"},
		"an empty token":                 {"", nil, "must have 3 segments separated by dots; found 1"},
	} {
		got, err := ati.InspectToken(c.token)
		if c.err != "" {
			if want := "inspect token: malformed token: " + c.err; err == nil || err.Error() != want {
				t.Errorf("%s:\n got %v\nwant %s", name, err, want)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}
