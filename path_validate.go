package atisecrets

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"vault-plugin-secrets-ati/ati"
)

func pathValidate(b *backend) []*framework.Path {
	token := &framework.FieldSchema{
		Type:         framework.TypeString,
		Required:     true,
		Description:  "The session token. White space around it is cut.",
		DisplayAttrs: &framework.DisplayAttributes{Name: "Token", Group: "Check", Sensitive: true, EditType: "textarea"},
	}
	return []*framework.Path{
		{
			Pattern: "validate",
			Fields: map[string]*framework.FieldSchema{
				"token": token,
				"audience": {
					Type:         framework.TypeString,
					Description:  "Required audience. Default: one of config's audience and accepted_audiences.",
					DisplayAttrs: display("Audience", "Check"),
				},
				"issuer": {
					Type:         framework.TypeString,
					Description:  "Required issuer. Default: config's issuer.",
					DisplayAttrs: display("Issuer", "Check"),
				},
				"leeway": {
					Type:         framework.TypeDurationSecond,
					Description:  "Tolerated clock skew, up to 60s, which is the proxy's. Default: 60s.",
					DisplayAttrs: display("Leeway", "Check"),
				},
				"scope": {
					Type:         framework.TypeString,
					Description:  "A scope, such as tool:web_search, of which the answer says whether the token opens it now.",
					DisplayAttrs: display("Scope", "Check"),
				},
			},
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
			Fields:       map[string]*framework.FieldSchema{"token": token},
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
		return noConfig(req), nil
	}
	token, err := tokenField(d)
	if err != nil {
		return logical.ErrorResponse(err.Error()), nil
	}
	options := []ati.ValidateOption{ati.WithTime(b.now), ati.WithAudience(cfg.audiences()...)}
	if cfg.Issuer != "" {
		options = append(options, ati.WithIssuer(cfg.Issuer))
	}
	for _, name := range []string{"audience", "issuer", "scope"} {
		if given(d, name) && d.Get(name).(string) == "" {
			return logical.ErrorResponse(emptyParameter(name).Error()), nil
		}
	}
	if given(d, "audience") {
		options = append(options, ati.WithAudience(d.Get("audience").(string)))
	}
	if given(d, "issuer") {
		options = append(options, ati.WithIssuer(d.Get("issuer").(string)))
	}
	leeway, ok, err := durationField(d, "leeway")
	if err != nil {
		return logical.ErrorResponse(err.Error()), nil
	}
	if ok {
		if leeway > ati.MaxLeeway {
			return logical.ErrorResponse("leeway %v: must be at most %v, which is the proxy's", leeway, ati.MaxLeeway), nil
		}
		options = append(options, ati.WithLeeway(leeway))
	}

	claims, key, err := validateWith(cfg.known(b.now()), token, options)
	data := map[string]any{"valid": err == nil}
	if key != nil {
		data["key_version"] = key.Version
	}
	switch {
	case err == nil:
		addClaims(data, claims)
	case key == nil && errors.Is(err, ati.ErrSignature) && !cfg.LastRotatedAt.IsZero():
		data["error"] = signedByNone + "; last rotated at " + cfg.LastRotatedAt.Format(time.RFC3339)
	default:
		data["error"] = reasonOf(err)
	}
	if given(d, "scope") {
		// The proxy's check of scopes has no leeway.
		data["allowed"] = err == nil && b.now().Unix() <= claims.ExpiresAt && ati.Allows(claims.Scopes(), d.Get("scope").(string))
	}
	return &logical.Response{Data: data}, nil
}

// validateWith tries the keys, and returns the verdict of the one that signed
// the token, or the last one's and no key.
func validateWith(keys []*signingKey, token string, options []ati.ValidateOption) (claims *ati.Claims, key *signingKey, err error) {
	for _, k := range keys {
		if claims, err = ati.ValidateToken(token, k.key, options...); err == nil {
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
	token, err := tokenField(d)
	if err != nil {
		return logical.ErrorResponse(err.Error()), nil
	}
	claims, err := ati.InspectToken(token)
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

func tokenField(d *framework.FieldData) (string, error) {
	token := strings.TrimSpace(d.Get("token").(string))
	if token == "" {
		return "", fmt.Errorf("token is required, in the request's body")
	}
	return token, nil
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
