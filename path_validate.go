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
	"vault-plugin-secrets-ati/internal/param"
	"vault-plugin-secrets-ati/internal/refuse"
	"vault-plugin-secrets-ati/internal/revocation"
)

func pathValidate(b *backend) []*framework.Path {
	return []*framework.Path{
		{
			Pattern:      "validate",
			Fields:       validateParams.Fields(),
			DisplayAttrs: &framework.DisplayAttributes{OperationPrefix: operationPrefix},
			Operations: map[logical.Operation]framework.OperationHandler{
				logical.UpdateOperation: b.operation(activeNode, b.pathValidateWrite, "Validate a token against this mount's keys and settings.", "validate", "token",
					framework.Response{Description: "Result, and the claims of a valid token", Fields: validateResponse()}),
			},
			HelpSynopsis:    pathValidateHelpSyn,
			HelpDescription: pathValidateHelpDesc,
		},
		{
			Pattern:      "inspect",
			Fields:       tokenParam.Fields(),
			DisplayAttrs: &framework.DisplayAttributes{OperationPrefix: operationPrefix},
			Operations: map[logical.Operation]framework.OperationHandler{
				logical.UpdateOperation: b.operation(anyNode, b.pathInspectWrite, "Decode a token without verifying it.", "inspect", "token",
					framework.Response{Description: "Claims of the token", Fields: inspectResponse()}),
			},
			HelpSynopsis:    pathInspectHelpSyn,
			HelpDescription: pathInspectHelpDesc,
		},
	}
}

// claimFields returns the fields for the claims of a valid token.
func claimFields() map[string]*framework.FieldSchema {
	return map[string]*framework.FieldSchema{
		"sub":         {Type: framework.TypeString, Description: "Subject."},
		"aud":         {Type: framework.TypeString, Description: "Audience."},
		"iat":         {Type: framework.TypeInt64, Description: "Time of issue, in seconds since the Unix epoch."},
		"exp":         {Type: framework.TypeInt64, Description: "Expiry, in seconds since the Unix epoch."},
		"scope":       {Type: framework.TypeString, Description: "Scope."},
		"iss":         {Type: framework.TypeString, Description: "Issuer."},
		"jti":         {Type: framework.TypeString, Description: "ID of the token."},
		"job_id":      {Type: framework.TypeString, Description: "Job ID."},
		"sandbox_id":  {Type: framework.TypeString, Description: "Sandbox ID."},
		"ati_version": {Type: framework.TypeInt, Description: "Claim `ati.v`."},
		"rate":        {Type: framework.TypeKVPairs, Description: "Claim `ati.rate`."},
	}
}

func validateResponse() map[string]*framework.FieldSchema {
	fields := claimFields()
	fields["valid"] = &framework.FieldSchema{Type: framework.TypeBool, Required: true, Description: "Whether the token is valid for this mount's keys and settings. A proxy that has not restarted since a rotation may decide differently."}
	fields["error"] = &framework.FieldSchema{Type: framework.TypeString, Description: "Reason why the token is not valid."}
	fields["key_version"] = &framework.FieldSchema{Type: framework.TypeInt, Description: "Version of the key that signed the token. Omitted if no key of this mount signed it."}
	fields["allowed"] = &framework.FieldSchema{Type: framework.TypeBool, Description: "Whether the token is valid and allows the scope now. Only with scope."}
	return fields
}

const otherClaims = "other_claims" // in a response of inspect

// inspectResponse returns the claims of ATI tokens, with the types that they have in a
// well-formed one. A token may have others.
func inspectResponse() map[string]*framework.FieldSchema {
	fields := map[string]*framework.FieldSchema{
		"decoded": {Type: framework.TypeBool, Required: true, Description: "Whether the token could be decoded."},
		"error":   {Type: framework.TypeString, Description: "Reason why the token could not be decoded."},
		"ati":     {Type: framework.TypeMap, Description: "Claim `ati`."},

		otherClaims: {Type: framework.TypeMap, Description: "All other claims."},
	}
	claims := claimFields()
	for _, name := range []string{"sub", "aud", "iat", "exp", "scope", "iss", "jti", "job_id", "sandbox_id"} {
		fields[name] = claims[name]
	}
	return fields
}

// validateRequest is a token and what it is checked against. A field that the request
// does not have is empty.
type validateRequest struct {
	token, audience, issuer, scope string
	leeway                         time.Duration
}

var tokenParam = param.Set[validateRequest]{
	param.Parsed("token", param.SecretDisplay("Token", "Check", "textarea"), "Session token.",
		func(r *validateRequest) *string { return &r.token }, trimToken).Required(" in the request body"),
}

var validateParams = slices.Concat(tokenParam, param.Set[validateRequest]{
	param.Text("audience", param.Display("Audience", "Check"), "Required audience. Defaults to any of audience and accepted_audiences of the config.",
		func(r *validateRequest) *string { return &r.audience }),
	param.Text("issuer", param.Display("Issuer", "Check"), "Required issuer. Defaults to the issuer of the config.",
		func(r *validateRequest) *string { return &r.issuer }),
	param.Duration("leeway", param.Display("Leeway", "Check"), "Tolerated clock skew, at most 60s. Defaults to 60s, the leeway of the proxy.",
		func(r *validateRequest) *time.Duration { return &r.leeway }).
		Checked(func(r *validateRequest) error {
			if r.leeway > ati.MaxLeeway {
				return fmt.Errorf("leeway %v: must be at most %v, the leeway of the proxy", r.leeway, ati.MaxLeeway)
			}
			return nil
		}),
	param.Text("scope", param.Display("Scope", "Check"), "Scope, such as tool:web_search. The response says whether the token allows it now.",
		func(r *validateRequest) *string { return &r.scope }),
}.Filled())

func trimToken(text string) (string, error) {
	if text = strings.TrimSpace(text); text == "" {
		return "", errors.New("token is empty; check that the variable or file is set")
	}
	return text, nil
}

func (b *backend) pathValidateWrite(ctx context.Context, req *logical.Request, d *framework.FieldData) (*logical.Response, error) {
	cfg, err := b.requireConfig(ctx, req)
	if err != nil {
		return nil, err
	}
	request := validateRequest{leeway: ati.MaxLeeway}
	if err := validateParams.Apply(d.Raw, &request); err != nil {
		return nil, refuse.Error(err)
	}
	claims, key, err := cfg.Validate(request.token, b.now(), request.options(cfg, b.now)...)
	if err == nil {
		revoked, storageErr := b.findRevocation(ctx, req, claims)
		if storageErr != nil {
			return nil, storageErr
		}
		err = revokedError(revoked, cfg.Guarded)
	}
	data := map[string]any{"valid": err == nil}
	if key != nil {
		data["key_version"] = key.Version
	}
	if err == nil {
		addClaims(data, claims)
	} else {
		data["error"] = reason(err, cfg.Stored.LastRotatedAt)
	}
	if request.scope != "" {
		// The proxy checks scopes without leeway.
		data["allowed"] = err == nil && b.now().Unix() <= claims.ExpiresAt && ati.Allows(claims.Scopes(), request.scope)
	}
	return &logical.Response{Data: data}, nil
}

// revokedError returns the reason why a revoked token is not valid, or nil.
func revokedError(e *revocation.Entry, guarded bool) error {
	if e == nil {
		return nil
	}
	at := time.Unix(e.RevokedAt, 0).UTC().Format(time.RFC3339)
	if !guarded {
		return fmt.Errorf("revoked at %s; proxies without a guard still accept it", at)
	}
	return fmt.Errorf("revoked at %s", at)
}

func (r *validateRequest) options(cfg *config, now func() time.Time) []ati.ValidateOption {
	options := []ati.ValidateOption{ati.WithTime(now), ati.WithLeeway(r.leeway), ati.WithAudience(cfg.Audiences()...)}
	if r.audience != "" {
		options = append(options, ati.WithAudience(r.audience))
	}
	if issuer := cmp.Or(r.issuer, cfg.Issuer); issuer != "" {
		options = append(options, ati.WithIssuer(issuer))
	}
	return options
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
	var request validateRequest
	if err := tokenParam.Apply(d.Raw, &request); err != nil {
		return nil, refuse.Error(err)
	}
	claims, err := ati.DecodeToken(request.token)
	if err != nil {
		return &logical.Response{Data: map[string]any{"decoded": false, "error": reason(err, time.Time{})}}, nil
	}
	resp := &logical.Response{Data: map[string]any{"decoded": true}}
	declared, other := inspectResponse(), map[string]any{}
	for name, value := range exactNumbers(claims).(map[string]any) {
		if declared[name] == nil || name == "decoded" || name == "error" || name == otherClaims {
			other[name] = value // elsewhere, Vault would take some for its own, such as http_raw_body
		} else {
			resp.Data[name] = value
		}
	}
	if len(other) > 0 {
		resp.Data[otherClaims] = other
	}
	resp.AddWarning("The token was decoded but not verified. Use validate to verify it.")
	return resp, nil
}

// exactNumbers replaces each number that Vault, which converts numbers to float64,
// would change or reject, such as 1e400, with its text.
func exactNumbers(value any) any {
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
			v[i] = exactNumbers(v[i])
		}
	case map[string]any:
		for name := range v {
			v[name] = exactNumbers(v[name])
		}
	}
	return value
}

const pathValidateHelpSyn = `Validate a token against this mount's keys and settings.`

const pathValidateHelpDesc = `
A token that is not valid is a response with valid=false and the reason, not an error.
The current, the pending, and the previous version of the key are tried; key_version is
the one that signed the token. With scope, allowed says whether the token allows the
scope now.

The result is for this mount: its keys, settings, and revocations. A proxy that has not
restarted since a rotation holds an older key, and may decide differently.

    $ vault write ati/validate token=@token.txt scope=tool:web_search
`

const pathInspectHelpSyn = `Decode a token without verifying it.`

const pathInspectHelpDesc = `
Shows all claims of a token, whether or not it is signed by a known key. A number that
Vault would change, such as one that is too large for a float64, is shown as text. To
find out whether a token is valid, use validate.

    $ vault write ati/inspect token=@token.txt
`
