package ati

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/google/uuid"
)

// The defaults of ati-client.
const (
	DefaultAudience = "ati-proxy"
	DefaultIssuer   = "ati-orchestrator"
	DefaultTTL      = time.Hour
	// MaxLeeway is the proxy's clock skew tolerance, and so the default and the
	// largest leeway here.
	MaxLeeway = 60 * time.Second
)

// IssueRequest says what goes into a token. The zero value of each field but
// Subject and Scope is ati-client's default.
type IssueRequest struct {
	Subject    string            // claim sub
	Scope      string            // claim scope; see BuildScope
	TTL        time.Duration     // whole seconds from iat to exp, even negative ones; 0 is DefaultTTL
	Audience   string            // claim aud; "" is DefaultAudience
	Issuer     string            // claim iss; "" is DefaultIssuer
	OmitIssuer bool              // leaves iss out, like iss=None in ati-client
	ID         string            // claim jti; "" is a new UUID (version 4)
	Rate       map[string]string // claim ati.rate; see ParseRate
	JobID      string            // claim job_id; "" leaves it out
	SandboxID  string            // claim sandbox_id; "" leaves it out
	IssuedAt   time.Time         // claim iat, cut to the second; zero is now
}

// IssueToken signs a session token. Beside a key or a TTL that can't be used
// it refuses nothing, just as ati-client: the proxy judges the token.
func IssueToken(key Key, req IssueRequest) (string, error) {
	c, err := req.claims()
	if err != nil {
		return "", err
	}
	return key.Sign(c)
}

func (req IssueRequest) claims() (*Claims, error) {
	if req.TTL%time.Second != 0 {
		return nil, &TokenError{Op: "issue token", Err: fmt.Errorf("the TTL %v is not a whole number of seconds", req.TTL)}
	}
	c := &Claims{
		Subject:   req.Subject,
		Audience:  req.Audience,
		Scope:     req.Scope,
		Issuer:    req.Issuer,
		ID:        req.ID,
		ATI:       &Namespace{Version: 1, Rate: req.Rate},
		JobID:     req.JobID,
		SandboxID: req.SandboxID,
	}
	if c.Audience == "" {
		c.Audience = DefaultAudience
	}
	if req.OmitIssuer {
		c.Issuer = ""
	} else if c.Issuer == "" {
		c.Issuer = DefaultIssuer
	}
	if c.ID == "" {
		c.ID = uuid.NewString()
	}
	if req.IssuedAt.IsZero() {
		req.IssuedAt = time.Now()
	}
	if req.TTL == 0 {
		req.TTL = DefaultTTL
	}
	c.IssuedAt = req.IssuedAt.Unix()
	c.ExpiresAt = c.IssuedAt + int64(req.TTL/time.Second)
	return c, nil
}

// ValidateOption changes what [ValidateToken] asks of a token.
type ValidateOption func(*validation) error

type validation struct {
	audiences []string
	issuer    string
	leeway    time.Duration
	now       func() time.Time
}

// WithAudience sets the accepted audiences; the token's aud must be one of
// them. Without it, [DefaultAudience] is the only one.
func WithAudience(audience ...string) ValidateOption {
	return func(v *validation) error {
		if len(audience) == 0 {
			return errors.New("WithAudience needs an audience")
		}
		for _, a := range audience {
			if a == "" {
				return errors.New("an accepted audience must not be empty")
			}
		}
		v.audiences = audience
		return nil
	}
}

// WithIssuer requires the claim iss with exactly this value. (The proxy alone
// would take a token without an issuer, ati-client would not.) Without it, the
// issuer isn't checked.
func WithIssuer(issuer string) ValidateOption {
	return func(v *validation) error {
		if issuer == "" {
			return errors.New("the required issuer must not be empty; leave WithIssuer out to check none")
		}
		v.issuer = issuer
		return nil
	}
}

// WithLeeway sets the clock skew that is tolerated in exp, iat and nbf, from 0
// to [MaxLeeway], which is the default.
func WithLeeway(leeway time.Duration) ValidateOption {
	return func(v *validation) error {
		if leeway < 0 || leeway > MaxLeeway {
			return fmt.Errorf("the leeway %v must be from 0s to %v: the proxy refuses what is older", leeway, MaxLeeway)
		}
		v.leeway = leeway
		return nil
	}
}

// WithTime sets the clock; the default is [time.Now].
func WithTime(now func() time.Time) ValidateOption {
	return func(v *validation) error {
		v.now = now
		return nil
	}
}

// ValidateToken returns the claims of a token that both the ATI proxy and
// ati-client accept under this key. Any other token gives a *[TokenError].
//
// It is stricter than the two together in corners that no issuer uses: a header
// with "jwk", "crit" or a "b64" that is not true, an nbf that is not a number, an exp beyond 2^63, JSON that
// nests deeper than 127, and U+FFFD or a lone surrogate in a claim.
func ValidateToken(token string, key Key, opts ...ValidateOption) (*Claims, error) {
	v := validation{audiences: []string{DefaultAudience}, leeway: MaxLeeway, now: time.Now}
	for _, opt := range opts {
		if err := opt(&v); err != nil {
			return nil, &TokenError{Op: "validate token", Err: err}
		}
	}
	if key.material == nil {
		return nil, &TokenError{Op: "validate token", Err: errors.New("the key is empty")}
	}
	if err := checkEnvelope(token); err != nil {
		return nil, &TokenError{Op: "validate token", Reason: ErrMalformed, Err: err}
	}
	parser := jwt.NewParser(
		jwt.WithValidMethods([]string{key.Algorithm()}),
		jwt.WithAudience(v.audiences...),
		jwt.WithIssuer(v.issuer),
		jwt.WithLeeway(v.leeway),
		jwt.WithIssuedAt(),
		jwt.WithTimeFunc(v.now),
	)
	claims := new(wireClaims)
	if _, err := parser.ParseWithClaims(token, claims, func(*jwt.Token) (any, error) {
		return (*key.material).verify, nil
	}); err != nil {
		return nil, v.refusal(err, &claims.Claims)
	}
	return &claims.Claims, nil
}

// refusal turns golang-jwt's error into this package's, with the claim that
// was at fault.
func (v *validation) refusal(err error, c *Claims) error {
	reason, detail := ErrMalformed, err
	switch {
	case errors.Is(err, jwt.ErrTokenMalformed):
		detail = errors.New(strings.TrimPrefix(err.Error(), jwt.ErrTokenMalformed.Error()+": "))
	case errors.Is(err, jwt.ErrTokenSignatureInvalid), errors.Is(err, jwt.ErrTokenUnverifiable):
		reason, detail = ErrSignature, nil
	case errors.Is(err, jwt.ErrTokenExpired):
		reason, detail = ErrExpired, fmt.Errorf("exp is %s", formatTime(c.ExpiresAt))
	case errors.Is(err, jwt.ErrTokenUsedBeforeIssued):
		reason, detail = ErrNotYetValid, fmt.Errorf("iat is %s", formatTime(c.IssuedAt))
	case errors.Is(err, jwt.ErrTokenNotValidYet):
		reason, detail = ErrNotYetValid, errors.New("nbf is in the future")
	case errors.Is(err, jwt.ErrTokenInvalidIssuer), c.Issuer == "" && v.issuer != "":
		reason, detail = ErrIssuer, fmt.Errorf("iss is %q, not %q", c.Issuer, v.issuer)
	case errors.Is(err, jwt.ErrTokenInvalidAudience), errors.Is(err, jwt.ErrTokenRequiredClaimMissing):
		reason, detail = ErrAudience, fmt.Errorf("aud is %q, not one of %q", c.Audience, v.audiences)
	}
	return &TokenError{Op: "validate token", Reason: reason, Err: detail}
}

func unixTime(seconds int64) time.Time { return time.Unix(seconds, 0).UTC() }

func formatTime(seconds int64) string {
	return unixTime(min(seconds, maxSeconds)).Format(time.RFC3339)
}

// checkEnvelope refuses what golang-jwt lets pass and the proxy or ati-client
// doesn't: line breaks inside the token, JSON that isn't UTF-8 or nests too
// deep, and header members of the wrong type or given twice.
func checkEnvelope(token string) error {
	header, payload, err := splitToken(token)
	if err != nil {
		return err
	}
	for name, b := range map[string][]byte{"header": header, "payload": payload} {
		if !readable(b) {
			return fmt.Errorf("the %s is not JSON that can be read", name)
		}
	}
	_, err = readObject(header, func(name string, value json.RawMessage) (err error) {
		switch name {
		case "alg", "kid":
			_, err = readString(value)
		case "typ", "cty", "jku", "x5u", "x5t", "x5t#S256":
			_, err = readOptionalString(value)
		case "x5c":
			var chain []json.RawMessage
			err = json.Unmarshal(value, &chain)
			for _, certificate := range chain {
				if err == nil {
					_, err = readString(certificate)
				}
			}
		case "jwk":
			if string(value) != "null" {
				err = errors.New("a key in the token is not accepted")
			}
		case "b64":
			if string(value) != "true" {
				err = errors.New("must be true")
			}
		case "crit":
			err = errors.New("critical extensions are not understood")
		default:
			return errUnknownMember
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("header: %w", err)
	}
	return nil
}

// splitToken decodes the three segments of a compact token, and returns the
// two that are JSON.
func splitToken(token string) (header, payload []byte, err error) {
	segments := strings.Split(token, ".")
	if len(segments) != 3 {
		return nil, nil, fmt.Errorf("it has %d dots, not 2", len(segments)-1)
	}
	var decoded [3][]byte
	for i, segment := range segments {
		// encoding/base64 skips line breaks.
		if strings.ContainsAny(segment, "\r\n") {
			return nil, nil, fmt.Errorf("segment %d has a line break in it", i+1)
		}
		if decoded[i], err = segmentEncoding.DecodeString(segment); err != nil {
			return nil, nil, fmt.Errorf("segment %d is not base64url without padding", i+1)
		}
	}
	return decoded[0], decoded[1], nil
}

// InspectToken decodes a token and verifies nothing: for debugging only.
//
// It returns what ati-client's inspect_token reads, as a map, since an
// unverified claim may have any JSON type: numbers are [json.Number]. "aud",
// "iat", "exp" and "scope" are "ati-proxy", 0, 0 and "" where the token has
// none; unknown claims are left out. A token without "sub" is an error.
func InspectToken(token string) (map[string]any, error) {
	fail := func(err error) (map[string]any, error) {
		return nil, &TokenError{Op: "inspect token", Reason: ErrMalformed, Err: err}
	}
	// Unlike the proxy, PyJWT takes padding.
	segments := strings.Split(token, ".")
	for i, s := range segments {
		if trimmed := strings.TrimRight(s, "="); len(s) != len(trimmed) && len(s)%4 == 0 {
			segments[i] = trimmed
		}
	}
	header, payload, err := splitToken(strings.Join(segments, "."))
	if err != nil {
		return fail(err)
	}
	var head, raw map[string]any
	if err := decodeObject(header, &head); err != nil {
		return fail(fmt.Errorf("header: %w", err))
	}
	if kid, ok := head["kid"]; ok {
		if _, ok := kid.(string); !ok {
			return fail(errors.New(`header: "kid" must be a string`))
		}
	}
	if _, ok := head["crit"]; ok || head["b64"] == false {
		return fail(errors.New("header: critical extensions are not understood"))
	}
	if err := decodeObject(payload, &raw); err != nil {
		return fail(fmt.Errorf("payload: %w", err))
	}
	if _, ok := raw["sub"]; !ok {
		return fail(errors.New(`claim "sub" is missing`))
	}
	claims := map[string]any{
		"aud": DefaultAudience, "iat": json.Number("0"), "exp": json.Number("0"), "scope": "",
	}
	for _, name := range []string{"sub", "aud", "iat", "exp", "scope"} {
		if value, ok := raw[name]; ok {
			claims[name] = value
		}
	}
	for _, name := range []string{"iss", "jti"} {
		if value := raw[name]; value != nil {
			claims[name] = value
		}
	}
	if isEmpty(raw["ati"]) {
		return claims, nil
	}
	ns, ok := raw["ati"].(map[string]any)
	if !ok {
		return fail(errors.New(`claim "ati" must be a JSON object`))
	}
	out := map[string]any{"v": json.Number("1")}
	if v, ok := ns["v"]; ok {
		out["v"] = v
	}
	if !isEmpty(ns["rate"]) {
		out["rate"] = ns["rate"]
	}
	claims["ati"] = out
	return claims, nil
}

// isEmpty reports what Python takes for false.
func isEmpty(value any) bool {
	switch v := value.(type) {
	case nil:
		return true
	case bool:
		return !v
	case string:
		return v == ""
	case json.Number:
		f, err := v.Float64()
		return err == nil && f == 0
	case []any:
		return len(v) == 0
	case map[string]any:
		return len(v) == 0
	}
	return false
}

func decodeObject(b []byte, out *map[string]any) error {
	if !readable(b) {
		return errors.New("is not JSON that can be read")
	}
	if _, err := readObject(b, func(string, json.RawMessage) error { return errUnknownMember }); err != nil {
		return err
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.UseNumber()
	return dec.Decode(out)
}
