package atisecrets

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"vault-plugin-secrets-ati/internal/param"
	"vault-plugin-secrets-ati/internal/refuse"
	"vault-plugin-secrets-ati/internal/role"
)

func pathCheck(b *backend) []*framework.Path {
	response := framework.Response{Description: "What the role allows", Fields: map[string]*framework.FieldSchema{
		"allowed":        {Type: framework.TypeBool, Required: true, Description: "Whether a token with all that the role grants allows the tool, skill, or scope."},
		"matched_scopes": {Type: framework.TypeStringSlice, Required: true, Description: "Scope patterns of the role that match."},
		"matched_rates":  {Type: framework.TypeKVPairs, Required: true, Description: "Rates of the role that limit calls to /call with this spelling of the tool."},
	}}
	return []*framework.Path{{
		Pattern:      "check/" + namePattern,
		Fields:       merged(roleName("Name of the role."), checkParams.Fields()),
		DisplayAttrs: &framework.DisplayAttributes{OperationPrefix: operationPrefix},
		Operations: map[logical.Operation]framework.OperationHandler{
			logical.ReadOperation:   b.operation(mintingNode, b.pathCheckRead, "Check whether a role allows a tool, a skill, or a scope.", "check", "role", response),
			logical.UpdateOperation: b.operation(mintingNode, b.pathCheckRead, "Check whether a role allows a tool, a skill, or a scope.", "check", "role-with-parameters", response),
		},
		HelpSynopsis:    pathCheckHelpSyn,
		HelpDescription: pathCheckHelpDesc,
	}}
}

// checkRequest is what a role is checked for. One of the fields is set.
type checkRequest struct{ scope, tool, skill string }

var checkParams = param.Set[checkRequest]{
	param.Text("scope", param.Display("Scope", "Question"), "Scope in a tool's manifest, which the proxy requires for the tool. One of `scope`, `tool`, and `skill` is required.",
		func(r *checkRequest) *string { return &r.scope }),
	param.Text("tool", param.Display("Tool", "Question"), "Name of a tool whose manifest has the scope tool:<name>.",
		func(r *checkRequest) *string { return &r.tool }),
	param.Text("skill", param.Display("Skill", "Question"), "Name of a skill.",
		func(r *checkRequest) *string { return &r.skill }),
}.Filled()

func (b *backend) pathCheckRead(ctx context.Context, req *logical.Request, d *framework.FieldData) (*logical.Response, error) {
	cfg, r, err := b.requireRole(ctx, req, d)
	if err != nil {
		return nil, err
	}
	var request checkRequest
	if err := checkParams.Apply(d.Raw, &request); err != nil {
		return nil, refuse.Error(err)
	}
	required, err := request.requiredScope()
	if err != nil {
		return nil, refuse.Error(err)
	}
	maxTTL, err := b.recentMaxMountTTL()
	if err != nil {
		return nil, err
	}
	scopes, rates := r.Match(required)
	resp := &logical.Response{Data: map[string]any{
		"allowed":        len(scopes) > 0,
		"matched_scopes": scopes,
		"matched_rates":  rates,
	}}
	if request.tool != "" {
		resp.AddWarning(fmt.Sprintf("Assumes that the tool's manifest uses the default scope %q. If it sets its own scope, check it with scope=.", required))
	}
	if strings.HasPrefix(required, "skill:") && len(scopes) == 0 {
		resp.AddWarning("The role does not grant this skill by name, but the proxy may still allow it through a tool that the role grants.")
	}
	for _, reason := range r.Obstacles(cfg.bounds(maxTTL)) {
		resp.AddWarning(fmt.Sprintf("No token with all that the role grants can be minted now: %v", reason))
	}
	return resp, nil
}

// requiredScope returns the scope that a token needs.
func (r *checkRequest) requiredScope() (required string, err error) {
	for _, f := range []struct{ name, value, prefix, foreign string }{
		{"scope", r.scope, "", ""},
		{"tool", r.tool, "tool:", "skill:"},
		{"skill", r.skill, "skill:", "tool:"},
	} {
		switch {
		case f.value == "":
			continue
		case required != "":
			return "", errors.New("scope, tool, and skill are mutually exclusive; set one of them")
		case f.foreign != "" && strings.HasPrefix(f.value, f.foreign):
			return "", fmt.Errorf("%s %q: use %s= instead", f.name, f.value, strings.TrimSuffix(f.foreign, ":"))
		case strings.HasSuffix(f.value, "*"):
			return "", fmt.Errorf("%s %q: must name a single %s; wildcards are not supported here", f.name, f.value, f.name)
		}
		required = f.prefix + strings.TrimPrefix(f.value, f.prefix)
		if err := role.CheckPattern(f.name, required); err != nil {
			return "", err
		}
	}
	if required == "" {
		return "", errors.New("one of scope, tool, or skill is required")
	}
	return required, nil
}

const pathCheckHelpSyn = `Check whether a role allows a tool, a skill, or a scope.`

const pathCheckHelpDesc = `
The proxy requires the scope in a tool's manifest, which is tool:<name> by default.
tool=<name> assumes the default; scope=<scope> checks any scope.

For a skill, allowed=true is certain. allowed=false means that the role does not grant
the skill by name, but a tool that it grants may include the skill.

Rates are matched against the spelling that you pass, and apply only to /call.

    $ vault read ati/check/researcher tool=web_search
`
