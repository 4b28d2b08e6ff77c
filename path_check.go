package atisecrets

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"vault-plugin-secrets-ati/ati"
)

func pathCheck(b *backend) []*framework.Path {
	response := framework.Response{Description: "What the role opens", Fields: map[string]*framework.FieldSchema{
		"allowed":        {Type: framework.TypeBool, Required: true, Description: "Whether a token with all that the role grants opens it."},
		"matched_scopes": {Type: framework.TypeStringSlice, Required: true, Description: "The role's scope patterns that open it."},
		"matched_rates":  {Type: framework.TypeKVPairs, Required: true, Description: "The role's rates that limit a call of this spelling at /call."},
	}}
	return []*framework.Path{{
		Pattern: "check/" + namePattern,
		Fields: map[string]*framework.FieldSchema{
			nameField: roleName(),
			"scope": {
				Type:         framework.TypeString,
				Description:  "The scope in a tool's manifest, by which the proxy decides. One of scope, tool and skill is required.",
				DisplayAttrs: display("Scope", "Question"),
			},
			"tool": {
				Type:         framework.TypeString,
				Description:  "Name of a tool whose manifest has the scope tool:<name>.",
				DisplayAttrs: display("Tool", "Question"),
			},
			"skill": {
				Type:         framework.TypeString,
				Description:  "Name of a skill.",
				DisplayAttrs: display("Skill", "Question"),
			},
		},
		DisplayAttrs: &framework.DisplayAttributes{OperationPrefix: operationPrefix},
		Operations: map[logical.Operation]framework.OperationHandler{
			logical.ReadOperation:   operation(b.pathCheckRead, "Tell whether a role opens a tool, a skill or a scope.", "check", "role", response),
			logical.UpdateOperation: operation(b.pathCheckRead, "Tell whether a role opens a tool, a skill or a scope.", "check", "role-with-parameters", response),
		},
		HelpSynopsis:    pathCheckHelpSyn,
		HelpDescription: pathCheckHelpDesc,
	}}
}

func (b *backend) pathCheckRead(ctx context.Context, req *logical.Request, d *framework.FieldData) (*logical.Response, error) {
	cfg, r, refusal, err := b.configAndRole(ctx, req, d)
	if refusal != nil || err != nil {
		return refusal, err
	}
	required, err := requiredScope(d)
	if err != nil {
		return logical.ErrorResponse(err.Error()), nil
	}
	matched := ati.Matches(r.granted, required)
	rates := map[string]string{}
	for key, rate := range r.Rate {
		if !strings.HasPrefix(required, "skill:") && ati.MatchesWildcard(required, key) {
			rates[key] = rate
		}
	}
	resp := &logical.Response{Data: map[string]any{
		"allowed":        len(matched) > 0,
		"matched_scopes": append([]string{}, matched...),
		"matched_rates":  rates,
	}}
	if given(d, "tool") {
		resp.AddWarning(fmt.Sprintf("this assumes that the tool's manifest has the scope %q; where it has another one, ask with scope=", required))
	}
	if strings.HasPrefix(required, "skill:") && len(matched) == 0 {
		resp.AddWarning("not allowed by its name; but a tool that the role opens may bring the skill along")
	}
	for _, err := range []error{r.checkEnabled(), cfg.checkCeiling(r.granted), r.checkAudience(cfg)} {
		if err != nil {
			resp.AddWarning(fmt.Sprintf("no token can be minted for the whole role now: %v", err))
		}
	}
	return resp, nil
}

// requiredScope is what scope, tool or skill asks for.
func requiredScope(d *framework.FieldData) (string, error) {
	required := ""
	for _, f := range []struct{ name, prefix, other string }{{"scope", "", "\x00"}, {"tool", "tool:", "skill:"}, {"skill", "skill:", "tool:"}} {
		if !given(d, f.name) {
			continue
		}
		if required != "" {
			return "", errors.New("give one of scope, tool and skill, not more")
		}
		value := d.Get(f.name).(string)
		if value == "" {
			return "", emptyParameter(f.name)
		}
		if strings.HasPrefix(value, f.other) {
			return "", fmt.Errorf("%s %q: ask for it with %s=", f.name, value, strings.TrimSuffix(f.other, ":"))
		}
		required = f.prefix + strings.TrimPrefix(value, f.prefix)
		if strings.HasSuffix(value, "*") {
			return "", fmt.Errorf("%s %q: names one thing, without *", f.name, value)
		}
		if err := ati.CheckPattern(required); err != nil {
			return "", fmt.Errorf("%s %w", f.name, err)
		}
	}
	if required == "" {
		return "", errors.New("one of scope, tool and skill is required")
	}
	return required, nil
}

const pathCheckHelpSyn = `Tell whether a role opens a tool, a skill or a scope.`

const pathCheckHelpDesc = `
The proxy decides by the scope in a tool's manifest. That is tool:<name> unless
the manifest says otherwise: tool=<name> assumes so, scope=<scope> does not.

For a skill, allowed=true is certain; allowed=false means that the role doesn't
open it by its name, but a tool may bring it along.

Rates are matched against the tool as it is spelt here, and hold for /call only.

    $ vault read ati/check/researcher tool=web_search
`
