package atisecrets

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"vault-plugin-secrets-ati/ati"
	"vault-plugin-secrets-ati/internal/keyring"
	"vault-plugin-secrets-ati/internal/param"
	"vault-plugin-secrets-ati/internal/refuse"
)

func pathValidate(b *backend) []*framework.Path {
	return []*framework.Path{
		{
			Pattern:      "validate",
			Fields:       validateParams.Fields(),
			DisplayAttrs: &framework.DisplayAttributes{OperationPrefix: operationPrefix},
			Operations: map[logical.Operation]framework.OperationHandler{
				logical.UpdateOperation: operation(b.pathValidateWrite, "Tell whether the proxy and its clients accept a token.", "validate", "token",
					framework.Response{Description: "The verdict, and the claims of a valid token", Fields: validateResponse()}),
			},
			HelpSynopsis:    pathValidateHelpSyn,
			HelpDescription: pathValidateHelpDesc,
		},
		{
			Pattern:      "inspect",
			Fields:       tokenParam.Fields(),
			DisplayAttrs: &framework.DisplayAttributes{OperationPrefix: operationPrefix},
			Operations: map[logical.Operation]framework.OperationHandler{
				logical.UpdateOperation: operation(b.pathInspectWrite, "Decode a token without verifying it.", "inspect", "token",
					framework.Response{Description: "The claims as they stand", Fields: inspectResponse()}),
			},
			HelpSynopsis:    pathInspectHelpSyn,
			HelpDescription: pathInspectHelpDesc,
		},
	}
}

// claimFields are the claims of a valid token, beside each other so that the
// CLI's table reads well.
func claimFields() map[string]*framework.FieldSchema {
	return map[string]*framework.FieldSchema{
		"sub":         {Type: framework.TypeString, Description: "Subject."},
		"aud":         {Type: framework.TypeString, Description: "Audience."},
		"iat":         {Type: framework.TypeInt64, Description: "Issued at, in seconds since 1970."},
		"exp":         {Type: framework.TypeInt64, Description: "Expires at, in seconds since 1970."},
		"scope":       {Type: framework.TypeString, Description: "What the token opens."},
		"iss":         {Type: framework.TypeString, Description: "Issuer."},
		"jti":         {Type: framework.TypeString, Description: "Id of the token."},
		"job_id":      {Type: framework.TypeString, Description: "Job."},
		"sandbox_id":  {Type: framework.TypeString, Description: "Sandbox."},
		"ati_version": {Type: framework.TypeInt, Description: "Claim ati.v."},
		"rate":        {Type: framework.TypeKVPairs, Description: "Claim ati.rate."},
	}
}

func validateResponse() map[string]*framework.FieldSchema {
	fields := claimFields()
	fields["valid"] = &framework.FieldSchema{Type: framework.TypeBool, Required: true, Description: "Whether both the proxy and its clients accept the token."}
	fields["error"] = &framework.FieldSchema{Type: framework.TypeString, Description: "Why the token is not valid."}
	fields["key_version"] = &framework.FieldSchema{Type: framework.TypeInt, Description: "Version of the key that signed; left out where none of this mount's did."}
	fields["allowed"] = &framework.FieldSchema{Type: framework.TypeBool, Description: "Whether the token opens the scope now."}
	return fields
}

// inspectResponse has the claims that ati-client reads, with the types that
// they have in a well-formed token: in others they may have any.
func inspectResponse() map[string]*framework.FieldSchema {
	fields := map[string]*framework.FieldSchema{
		"decoded": {Type: framework.TypeBool, Required: true, Description: "Whether the token could be decoded."},
		"error":   {Type: framework.TypeString, Description: "Why the token could not be decoded."},
		"ati":     {Type: framework.TypeMap, Description: "Claim ati."},
	}
	known := claimFields()
	for _, name := range []string{"sub", "aud", "iat", "exp", "scope", "iss", "jti"} {
		fields[name] = known[name]
	}
	return fields
}

func (b *backend) pathValidateWrite(ctx context.Context, req *logical.Request, d *framework.FieldData) (*logical.Response, error) {
	cfg, err := b.getConfig(ctx, req.Storage)
	if err != nil {
		return nil, err
	}
	if cfg == nil {
		return nil, noConfig(req)
	}
	ask := asked{leeway: ati.MaxLeeway}
	if err := validateParams.Apply(d.Raw, &ask); err != nil {
		return nil, refuse.Error(err)
	}
	claims, key, err := validateWith(cfg.Known(b.now()), ask.token, ask.options(cfg, b.now))
	data := map[string]any{"valid": err == nil}
	if key != nil {
		data["key_version"] = key.Version
	}
	switch {
	case err == nil:
		addClaims(data, claims)
	case key == nil && errors.Is(err, ati.ErrSignature) && !cfg.Stored.LastRotatedAt.IsZero():
		data["error"] = signedByNone + "; last rotated at " + cfg.Stored.LastRotatedAt.Format(time.RFC3339)
	default:
		data["error"] = reasonOf(err)
	}
	if ask.scope != "" {
		// The proxy's check of scopes has no leeway.
		data["allowed"] = err == nil && b.now().Unix() <= claims.ExpiresAt && ati.Allows(claims.Scopes(), ask.scope)
	}
	return &logical.Response{Data: data}, nil
}

// asked is what a token is to be held against. What was not given is empty.
type asked struct {
	token, audience, issuer, scope string
	leeway                         time.Duration
}

var tokenParam = param.Set[asked]{
	param.Parsed("token", param.SecretDisplay("Token", "Check", "textarea"), "The session token. White space around it is cut.",
		func(a *asked) *string { return &a.token }, trimToken).Required(", in the request's body"),
}

var validateParams = slices.Concat(tokenParam, param.Set[asked]{
	param.Text("audience", param.Display("Audience", "Check"), "Required audience. Default: one of config's audience and accepted_audiences.",
		func(a *asked) *string { return &a.audience }),
	param.Text("issuer", param.Display("Issuer", "Check"), "Required issuer. Default: config's issuer.",
		func(a *asked) *string { return &a.issuer }),
	param.Duration("leeway", param.Display("Leeway", "Check"), "Tolerated clock skew, up to 60s, which is the proxy's. Default: 60s.",
		func(a *asked) *time.Duration { return &a.leeway }).
		Checked(func(a *asked) error {
			if a.leeway > ati.MaxLeeway {
				return fmt.Errorf("leeway %v: must be at most %v, which is the proxy's", a.leeway, ati.MaxLeeway)
			}
			return nil
		}),
	param.Text("scope", param.Display("Scope", "Check"), "A scope, such as tool:web_search, of which the answer says whether the token opens it now.",
		func(a *asked) *string { return &a.scope }),
}.Filled())

func trimToken(text string) (string, error) {
	if text = strings.TrimSpace(text); text == "" {
		return "", errors.New("token is required, in the request's body")
	}
	return text, nil
}

func (a *asked) options(cfg *config, now func() time.Time) []ati.ValidateOption {
	options := []ati.ValidateOption{ati.WithTime(now), ati.WithLeeway(a.leeway), ati.WithAudience(cfg.Audiences()...)}
	if a.audience != "" {
		options = append(options, ati.WithAudience(a.audience))
	}
	if issuer := cmp.Or(a.issuer, cfg.Issuer); issuer != "" {
		options = append(options, ati.WithIssuer(issuer))
	}
	return options
}

// validateWith tries the keys, and returns the verdict of the one that signed
// the token, or the last one's and no key.
func validateWith(keys []*keyring.Key, token string, options []ati.ValidateOption) (claims *ati.Claims, key *keyring.Key, err error) {
	for _, k := range keys {
		if claims, err = ati.ValidateToken(token, k.Key, options...); err == nil {
			return claims, k, nil
		}
		for _, reason := range []error{ati.ErrExpired, ati.ErrNotYetValid, ati.ErrAudience, ati.ErrIssuer} {
			if errors.Is(err, reason) { // these are found behind the signature
				return nil, k, err
			}
		}
	}
	return nil, nil, err
}

const signedByNone = "signed by no key of this mount"

// reasonOf says why a token is refused, as somebody would ask who has this
// mount before them.
func reasonOf(err error) string {
	if errors.Is(err, ati.ErrSignature) {
		return signedByNone
	}
	var tokenErr *ati.TokenError
	if errors.As(err, &tokenErr) {
		return strings.TrimPrefix(tokenErr.Error(), tokenErr.Op+": ")
	}
	return err.Error()
}

func addClaims(data map[string]any, c *ati.Claims) {
	data["sub"], data["aud"], data["iat"], data["exp"], data["scope"] = c.Subject, c.Audience, c.IssuedAt, c.ExpiresAt, c.Scope
	for name, value := range map[string]string{"iss": c.Issuer, "jti": c.ID, "job_id": c.JobID, "sandbox_id": c.SandboxID} {
		if value != "" {
			data[name] = value
		}
	}
	if c.ATI != nil {
		data["ati_version"] = int(c.ATI.Version)
		if len(c.ATI.Rate) > 0 {
			data["rate"] = c.ATI.Rate
		}
	}
}

func (b *backend) pathInspectWrite(_ context.Context, _ *logical.Request, d *framework.FieldData) (*logical.Response, error) {
	var ask asked
	if err := tokenParam.Apply(d.Raw, &ask); err != nil {
		return nil, refuse.Error(err)
	}
	claims, err := ati.InspectToken(ask.token)
	resp := &logical.Response{Data: map[string]any{"decoded": err == nil}}
	if err != nil {
		resp.Data["error"] = reasonOf(err)
		return resp, nil
	}
	for name, value := range claims {
		if name != "ati" {
			value = flat(value)
		}
		resp.Data[name] = exact(value)
	}
	resp.AddWarning("nothing was verified: anybody may have written this token; use validate to know")
	return resp, nil
}

// flat is an unverified claim as it can stand beside the others: what should be no
// list or object as its JSON text.
func flat(value any) any {
	switch value.(type) {
	case []any, map[string]any:
		if b, err := json.Marshal(value); err == nil {
			return string(b)
		}
	}
	return value
}

// exact has the text of a number in its place where Vault, which makes a float64 of
// each, would hand on another one, or fail at 1e400.
func exact(value any) any {
	switch v := value.(type) {
	case json.Number:
		f, err := v.Float64()
		if b, _ := json.Marshal(f); err != nil || string(b) != v.String() {
			return v.String()
		}
		if i, err := v.Int64(); err == nil && v != "-0" {
			return i
		}
		return f
	case []any:
		for i := range v {
			v[i] = exact(v[i])
		}
	case map[string]any:
		for name := range v {
			v[name] = exact(v[name])
		}
	}
	return value
}

const pathValidateHelpSyn = `Tell whether the proxy and its clients accept a token.`

const pathValidateHelpDesc = `
A token that is not valid is an answer, valid=false with the reason, and no
failed request. The current, the pending and the previous version of the key are
tried, and key_version is the one that signed. With scope=, allowed says whether
the token opens it now.

    $ vault write ati/validate token=@token.txt scope=tool:web_search
`

const pathInspectHelpSyn = `Decode a token without verifying it.`

const pathInspectHelpDesc = `
Shows the claims as they stand in the token, whoever wrote it; a number that
would come out of JSON as another one is told as its text. To know whether a token
is good, use validate.

    $ vault write ati/inspect token=@token.txt
`
