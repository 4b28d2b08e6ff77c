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

// Defaults, which are those of ati-client.
const (
	DefaultAudience = "ati-proxy"
	DefaultIssuer   = "ati-orchestrator"
	DefaultTTL      = time.Hour
	// MaxLeeway is the clock skew that the proxy tolerates. It is the default
	// leeway of ValidateToken and its maximum.
	MaxLeeway = 60 * time.Second
)

// IssueRequest contains the values of a token's claims. The zero value of each
// field except Subject and Scope selects the default of ati-client.
type IssueRequest struct {
	Subject    string            // claim sub
	Scope      string            // claim scope; see BuildScope
	TTL        time.Duration     // exp minus iat, in whole seconds, may be negative; 0 means DefaultTTL
	Audience   string            // claim aud; defaults to DefaultAudience
	Issuer     string            // claim iss; defaults to DefaultIssuer
	OmitIssuer bool              // omits iss, like iss=None in ati-client
	ID         string            // claim jti; defaults to a new UUID (version 4)
	Rate       map[string]string // claim ati.rate; see ParseRate
	JobID      string            // claim job_id; omitted if empty
	SandboxID  string            // claim sandbox_id; omitted if empty
	IssuedAt   time.Time         // claim iat, truncated to seconds; defaults to the current time
}

// IssueToken returns a signed session token. It returns a *[TokenError] if the
// key cannot sign or TTL is not a whole number of seconds. Like ati-client, it
// does not check any other value.
func IssueToken(key Key, req IssueRequest) (string, error) {
	c, err := req.claims()
	if err != nil {
		return "", err
	}
	return key.Sign(c)
}

func (req IssueRequest) claims() (*Claims, error) {
	if req.TTL%time.Second != 0 {
		return nil, &TokenError{Op: "issue token", Err: fmt.Errorf("TTL %v: must be a whole number of seconds", req.TTL)}
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

// ValidateOption changes what [ValidateToken] requires of a token.
type ValidateOption func(*validation) error

type validation struct {
	audiences []string
	issuer    string
	leeway    time.Duration
	now       func() time.Time
}

// WithAudience sets the accepted audiences: at least one, none of them empty.
// The claim aud must equal one of them. The default is [DefaultAudience].
func WithAudience(audience ...string) ValidateOption {
	return func(v *validation) error {
		if len(audience) == 0 {
			return errors.New("WithAudience requires at least one audience")
		}
		for _, a := range audience {
			if a == "" {
				return errors.New("accepted audience must not be empty")
			}
		}
		v.audiences = audience
		return nil
	}
}

// WithIssuer sets the required value of the claim iss, which must not be empty.
// A token without iss is rejected, as by ati-client; the proxy accepts it. By
// default the issuer is not checked.
func WithIssuer(issuer string) ValidateOption {
	return func(v *validation) error {
		if issuer == "" {
			return errors.New("required issuer must not be empty; omit WithIssuer to skip the check")
		}
		v.issuer = issuer
		return nil
	}
}

// WithLeeway sets the tolerated clock skew for exp, iat, and nbf, from 0 to
// [MaxLeeway], which is the default.
func WithLeeway(leeway time.Duration) ValidateOption {
	return func(v *validation) error {
		if leeway < 0 || leeway > MaxLeeway {
			return fmt.Errorf("leeway %v: must be between 0s and %v, the leeway of the proxy", leeway, MaxLeeway)
		}
		v.leeway = leeway
		return nil
	}
}

// WithTime sets the clock. The default is [time.Now].
func WithTime(now func() time.Time) ValidateOption {
	return func(v *validation) error {
		v.now = now
		return nil
	}
}

// ValidateToken returns the claims of a token that both the ATI proxy and
// ati-client accept with this key. For any other token, for the zero Key, and
// for an invalid option it returns a *[TokenError].
//
// In a few cases that no issuer produces, it rejects tokens that both accept: a
// header with "jwk", "crit", or a "b64" other than true; an nbf that is not a
// number; an exp of 2^63 or more; JSON nested more than 127 levels deep; and
// U+FFFD or a lone surrogate in a claim.
func ValidateToken(token string, key Key, opts ...ValidateOption) (*Claims, error) {
	v := validation{audiences: []string{DefaultAudience}, leeway: MaxLeeway, now: time.Now}
	for _, opt := range opts {
		if err := opt(&v); err != nil {
			return nil, &TokenError{Op: "validate token", Err: err}
		}
	}
	if key.material == nil {
		return nil, &TokenError{Op: "validate token", Err: errors.New("key is empty")}
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
		return nil, v.tokenError(err, &claims.Claims)
	}
	return &claims.Claims, nil
}

// tokenError converts an error of golang-jwt to a *TokenError that names the
// value of the rejected claim.
func (v *validation) tokenError(err error, c *Claims) error {
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
	if reason == ErrMalformed || reason == ErrSignature {
		c = nil
	}
	return &TokenError{Op: "validate token", Reason: reason, Err: detail, Claims: c}
}

func unixTime(seconds int64) time.Time { return time.Unix(seconds, 0).UTC() }

func formatTime(seconds int64) string {
	return unixTime(min(seconds, maxSeconds)).Format(time.RFC3339)
}

// checkEnvelope rejects what golang-jwt accepts and the proxy or ati-client does
// not: line breaks in the token, JSON that is not UTF-8 or is nested too deep,
// and header members of the wrong type or given twice.
func checkEnvelope(token string) error {
	header, payload, err := splitToken(token)
	if err != nil {
		return err
	}
	if err := checkJSON(header); err != nil {
		return fmt.Errorf("header: %w", err)
	}
	if err := checkJSON(payload); err != nil {
		return fmt.Errorf("payload: %w", err)
	}
	if _, err := readObject(header, checkHeaderMember); err != nil {
		return fmt.Errorf("header: %w", err)
	}
	return nil
}

// checkHeaderMember checks the parameters that RFC 7515, section 4.1, and RFC
// 7797 (b64) define.
func checkHeaderMember(name string, value json.RawMessage) (err error) {
	switch name {
	case "alg", "kid":
		_, err = readString(value)
	case "typ", "cty", "jku", "x5u", "x5t", "x5t#S256":
		_, err = readOptionalString(value)
	case "x5c":
		err = checkCertificates(value)
	case "jwk":
		if string(value) != "null" {
			err = errors.New("embedded keys are not allowed")
		}
	case "b64":
		if string(value) != "true" {
			err = errors.New("must be true")
		}
	case "crit":
		err = errCritical
	default:
		return errUnknownMember
	}
	return err
}

func checkCertificates(value json.RawMessage) error {
	var chain []json.RawMessage
	if err := json.Unmarshal(value, &chain); err != nil {
		return err
	}
	for _, certificate := range chain {
		if _, err := readString(certificate); err != nil {
			return err
		}
	}
	return nil
}

var errCritical = errors.New("critical extensions are not supported")

const bearer = "Bearer " // of the header Authorization

// splitToken decodes the segments of a compact token and returns the header and
// the payload.
func splitToken(token string) (header, payload []byte, err error) {
	switch {
	case strings.HasPrefix(token, "\ufeff"):
		return nil, nil, errors.New("begins with a byte order mark (BOM); remove it")
	case strings.HasPrefix(token, `"`) || strings.HasPrefix(token, "'"):
		return nil, nil, errors.New("is enclosed in quotes; remove them (Vault's CLI adds them with VAULT_FORMAT=json)")
	case len(token) > len(bearer) && strings.EqualFold(token[:len(bearer)], bearer):
		return nil, nil, errors.New(`begins with "Bearer "; remove it`)
	}
	segments := strings.Split(token, ".")
	if len(segments) != 3 {
		return nil, nil, fmt.Errorf("must have 3 segments separated by dots; found %d", len(segments))
	}
	var decoded [3][]byte
	for i, segment := range segments {
		// encoding/base64 ignores line breaks.
		if strings.ContainsAny(segment, "\r\n") {
			return nil, nil, fmt.Errorf("segment %d contains a line break", i+1)
		}
		if decoded[i], err = segmentEncoding.DecodeString(segment); err != nil {
			return nil, nil, fmt.Errorf("segment %d must be base64url without padding", i+1)
		}
	}
	return decoded[0], decoded[1], nil
}

// InspectToken decodes a token without verifying it. Use it only for debugging.
//
// It returns the claims that inspect_token of ati-client reads, as a map because
// an unverified claim may have any JSON type. Numbers are of type [json.Number].
// "aud", "iat", "exp", and "scope" default to "ati-proxy", 0, 0, and "". Unknown
// claims are omitted. It returns a *[TokenError] if the token cannot be decoded
// or has no "sub".
func InspectToken(token string) (map[string]any, error) {
	claims, err := inspect(token)
	if err != nil {
		return nil, &TokenError{Op: "inspect token", Reason: ErrMalformed, Err: err}
	}
	return claims, nil
}

// DecodeToken returns all claims of a token without verifying it. Use it only for
// debugging. Numbers are of type [json.Number]. It returns a *[TokenError] if the token
// cannot be decoded.
func DecodeToken(token string) (map[string]any, error) {
	claims, err := decodeToken(token)
	if err != nil {
		return nil, &TokenError{Op: "decode token", Reason: ErrMalformed, Err: err}
	}
	return claims, nil
}

func decodeToken(token string) (map[string]any, error) {
	header, payload, err := splitToken(trimPadding(token))
	if err != nil {
		return nil, err
	}
	if err := inspectHeader(header); err != nil {
		return nil, fmt.Errorf("header: %w", err)
	}
	claims, err := decodeObject(payload)
	if err != nil {
		return nil, fmt.Errorf("payload: %w", err)
	}
	return claims, nil
}

func inspect(token string) (map[string]any, error) {
	raw, err := decodeToken(token)
	if err != nil {
		return nil, err
	}
	if _, ok := raw["sub"]; !ok {
		return nil, errors.New(`claim "sub" is missing`)
	}
	claims := map[string]any{
		"aud": DefaultAudience, "iat": json.Number("0"), "exp": json.Number("0"), "scope": "",
	}
	for _, name := range requiredClaims {
		if value, ok := raw[name]; ok {
			claims[name] = value
		}
	}
	for _, name := range []string{"iss", "jti"} {
		if value := raw[name]; value != nil {
			claims[name] = value
		}
	}
	if isFalsy(raw["ati"]) {
		return claims, nil
	}
	claims["ati"], err = inspectNamespace(raw["ati"])
	return claims, err
}

// trimPadding removes correct base64 padding from each segment: PyJWT accepts
// it, and the proxy does not.
func trimPadding(token string) string {
	segments := strings.Split(token, ".")
	for i, s := range segments {
		if trimmed := strings.TrimRight(s, "="); len(s) != len(trimmed) && len(s)%4 == 0 {
			segments[i] = trimmed
		}
	}
	return strings.Join(segments, ".")
}

func inspectHeader(b []byte) error {
	header, err := decodeObject(b)
	if err != nil {
		return err
	}
	if kid, ok := header["kid"]; ok {
		if _, ok := kid.(string); !ok {
			return errors.New(`"kid" must be a string`)
		}
	}
	if _, ok := header["crit"]; ok || header["b64"] == false {
		return errCritical
	}
	return nil
}

func inspectNamespace(value any) (map[string]any, error) {
	raw, ok := value.(map[string]any)
	if !ok {
		return nil, errors.New(`claim "ati" must be a JSON object`)
	}
	namespace := map[string]any{"v": json.Number("1")}
	if v, ok := raw["v"]; ok {
		namespace["v"] = v
	}
	if !isFalsy(raw["rate"]) {
		namespace["rate"] = raw["rate"]
	}
	return namespace, nil
}

// isFalsy reports whether Python evaluates a JSON value to false.
func isFalsy(value any) bool {
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

func decodeObject(b []byte) (object map[string]any, err error) {
	if err := checkJSON(b); err != nil {
		return nil, err
	}
	if _, err := readObject(b, func(string, json.RawMessage) error { return errUnknownMember }); err != nil {
		return nil, err
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.UseNumber()
	err = dec.Decode(&object)
	return object, err
}
