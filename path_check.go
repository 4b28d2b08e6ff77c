package atisecrets

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"vault-plugin-secrets-ati/ati"
	"vault-plugin-secrets-ati/internal/param"
	"vault-plugin-secrets-ati/internal/refuse"
	"vault-plugin-secrets-ati/internal/role"
)

func pathCheck(b *backend) []*framework.Path {
	response := framework.Response{Description: "What the role opens", Fields: map[string]*framework.FieldSchema{
		"allowed":        {Type: framework.TypeBool, Required: true, Description: "Whether a token with all that the role grants opens it."},
		"matched_scopes": {Type: framework.TypeStringSlice, Required: true, Description: "The role's scope patterns that open it."},
		"matched_rates":  {Type: framework.TypeKVPairs, Required: true, Description: "The role's rates that limit a call of this spelling at /call."},
	}}
	return []*framework.Path{{
		Pattern:      "check/" + namePattern,
		Fields:       merged(map[string]*framework.FieldSchema{nameField: roleName("Name of the role.")}, questionParams.Fields()),
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
	cfg, r, err := b.configAndRole(ctx, req, d)
	if err != nil {
		return nil, err
	}
	var q question
	if err := questionParams.Apply(d.Raw, &q); err != nil {
		return nil, refuse.Error(err)
	}
	required, err := q.requiredScope()
	if err != nil {
		return nil, refuse.Error(err)
	}
	matched := ati.Matches(r.Granted, required)
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
	if q.tool != "" {
		resp.AddWarning(fmt.Sprintf("this assumes that the tool's manifest has the scope %q; where it has another one, ask with scope=", required))
	}
	if strings.HasPrefix(required, "skill:") && len(matched) == 0 {
		resp.AddWarning("not allowed by its name; but a tool that the role opens may bring the skill along")
	}
	for _, err := range []error{r.CheckEnabled(), cfg.CheckCeiling(r.Granted), r.CheckAudience(&cfg.Limits)} {
		if err != nil {
			resp.AddWarning(fmt.Sprintf("no token can be minted for the whole role now: %v", err))
		}
	}
	return resp, nil
}

// question is what a role may open: one of these is given.
type question struct{ scope, tool, skill string }

var questionParams = param.Set[question]{
	param.Text("scope", param.Display("Scope", "Question"), "The scope in a tool's manifest, by which the proxy decides. One of scope, tool and skill is required.",
		func(q *question) *string { return &q.scope }),
	param.Text("tool", param.Display("Tool", "Question"), "Name of a tool whose manifest has the scope tool:<name>.",
		func(q *question) *string { return &q.tool }),
	param.Text("skill", param.Display("Skill", "Question"), "Name of a skill.",
		func(q *question) *string { return &q.skill }),
}.Filled()

// requiredScope is what it asks for, as a scope.
func (q *question) requiredScope() (string, error) {
	required := ""
	for _, f := range []struct{ name, value, prefix, other string }{{"scope", q.scope, "", ""}, {"tool", q.tool, "tool:", "skill:"}, {"skill", q.skill, "skill:", "tool:"}} {
		switch {
		case f.value == "":
			continue
		case required != "":
			return "", errors.New("give one of scope, tool and skill, not more")
		case f.other != "" && strings.HasPrefix(f.value, f.other):
			return "", fmt.Errorf("%s %q: ask for it with %s=", f.name, f.value, strings.TrimSuffix(f.other, ":"))
		case strings.HasSuffix(f.value, "*"):
			return "", fmt.Errorf("%s %q: names one thing, without *", f.name, f.value)
		}
		required = f.prefix + strings.TrimPrefix(f.value, f.prefix)
		if err := role.CheckPattern(f.name, required); err != nil {
			return "", err
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
