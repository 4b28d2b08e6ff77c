package atisecrets

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"vault-plugin-secrets-ati/ati"
	"vault-plugin-secrets-ati/internal/param"
	"vault-plugin-secrets-ati/internal/refuse"
	"vault-plugin-secrets-ati/internal/revocation"
	"vault-plugin-secrets-ati/internal/role"
)

func pathRevoke(b *backend) []*framework.Path {
	response := framework.Response{Description: "What was revoked", Fields: revocationFacts.Response()}
	return []*framework.Path{
		{
			Pattern:      "revoke",
			Fields:       revokeParams.Fields(),
			DisplayAttrs: &framework.DisplayAttributes{OperationPrefix: operationPrefix},
			Operations: map[logical.Operation]framework.OperationHandler{
				logical.UpdateOperation: b.operation(writingNode, b.pathRevokeWrite, "Revoke a token, or all tokens of an agent.", "revoke", "token", response),
			},
			HelpSynopsis:    "Revoke a token, or all tokens of an agent.",
			HelpDescription: pathRevokeHelpDesc,
		},
		{
			Pattern:      "revoke/" + namePattern,
			Fields:       merged(roleName("Name of a role whose allowed_agent_ids match the agent."), revokeRoleParams.Fields()),
			DisplayAttrs: &framework.DisplayAttributes{OperationPrefix: operationPrefix},
			Operations: map[logical.Operation]framework.OperationHandler{
				logical.UpdateOperation: b.operation(writingNode, b.pathRevokeRoleWrite, "Revoke all tokens of an agent that a role allows.", "revoke", "agent", response),
			},
			HelpSynopsis:    "Revoke all tokens of an agent that a role allows.",
			HelpDescription: pathRevokeRoleHelpDesc,
		},
		{
			Pattern:      "revoked/?",
			Fields:       pageFields,
			DisplayAttrs: &framework.DisplayAttributes{OperationPrefix: operationPrefix},
			Operations: map[logical.Operation]framework.OperationHandler{
				logical.ListOperation: b.operation(activeNode, b.pathRevokedList, "List the names of the revocations.", "list", "revocations",
					framework.Response{Description: "Names of the revocations, in alphabetical order", Fields: map[string]*framework.FieldSchema{
						"keys": {Type: framework.TypeStringSlice, Description: "Names, such as `jti:5b1a9a1e-6f3f-7e4e-2a55-0c8f7f3f9d10` or `agent_id:sandbox:1`."},
					}}),
				logical.ReadOperation: b.operation(activeNode, b.pathRevokedRead, "Read the revocations.", "read", "revocations",
					framework.Response{Description: "Revocations, in the order of their names", Fields: map[string]*framework.FieldSchema{
						"revoked": {Type: framework.TypeSlice, Required: true, Description: "Revocations, with the fields of a response of `revoke`."},
					}}),
			},
			HelpSynopsis:    "List or read the revocations.",
			HelpDescription: pathRevokedHelpDesc,
		},
	}
}

// revokeRequest is what to revoke. One of the fields is set.
type revokeRequest struct{ token, jti, agentID string }

var agentIDParam = param.Text("agent_id", param.Display("Agent ID", "Revoke"), "Subject (claim `sub`) whose tokens to revoke: all that were issued until now, by any role.",
	func(r *revokeRequest) *string { return &r.agentID }, role.CheckID).MayHoldHex()

var revokeParams = param.Set[revokeRequest]{
	param.Text("token", param.SecretDisplay("Token", "Revoke", "textarea"), "Token to revoke. It must be signed by a live version of the key, and not be expired.",
		func(r *revokeRequest) *string { return &r.token }),
	param.Text("jti", param.Display("Token ID", "Revoke"), "ID (claim `jti`) of the token to revoke, or the ID of the request for a batch to revoke all of its tokens.",
		func(r *revokeRequest) *string { return &r.jti }, revocation.CheckJTI),
	agentIDParam,
}.Filled()

var revokeRoleParams = param.Set[revokeRequest]{agentIDParam.Required(": the subject whose tokens to revoke, such as agent_id=sandbox:1")}.Filled()

// revocationFacts are the fields of a response about a revocation.
var revocationFacts = param.Set[revocation.Entry]{
	param.Fact("jti", framework.TypeString, "ID of the token, or of the request for a batch. Omitted for an agent.", func(e *revocation.Entry) any { return omitEmpty(e.JTI) }).Optional(),
	param.Fact("agent_id", framework.TypeString, "Subject. Omitted for a token.", func(e *revocation.Entry) any { return omitEmpty(e.Subject) }).Optional(),
	param.TimeFact("revoked_at", "Time of the revocation. For an agent, tokens that were issued until then are revoked.", func(e *revocation.Entry) time.Time { return time.Unix(e.RevokedAt, 0).UTC() }),
	param.TimeFact("kept_until", "Time at which the tokens have expired, and the revocation is forgotten. Omitted while an imported version of the key is live, with which others can sign tokens of any TTL.",
		func(e *revocation.Entry) (t time.Time) {
			if !e.Imported {
				t = time.Unix(e.ExpiresAt, 0).UTC()
			}
			return t
		}),
	param.Fact("lease", framework.TypeBool, "Whether the token was revoked with its lease.", func(e *revocation.Entry) any { return e.Lease }),
}

func (b *backend) pathRevokeWrite(ctx context.Context, req *logical.Request, d *framework.FieldData) (*logical.Response, error) {
	cfg, err := b.requireConfig(ctx, req)
	if err != nil {
		return nil, err
	}
	var request revokeRequest
	if err := revokeParams.Apply(d.Raw, &request); err != nil {
		return nil, refuse.Error(err)
	}
	if given := len(d.Raw); given != 1 {
		return nil, refuse.Errorf("revoke takes one of token, jti, and agent_id, not %d", given)
	}
	e := &revocation.Entry{JTI: request.jti, Subject: request.agentID}
	var warnings []string
	switch {
	case request.token != "":
		if e, err = b.revocationOf(request.token, cfg); err != nil {
			return nil, refuse.Error(err)
		}
	case request.jti != "":
		warnings = append(warnings, "The engine keeps no list of tokens, so it cannot check that a token with this jti exists.")
	}
	return b.revoke(ctx, req, e, maxRevoked, warnings)
}

// revocationOf returns the revocation of a token that a live version of the key signed.
func (b *backend) revocationOf(token string, cfg *config) (*revocation.Entry, error) {
	rotatedAt := cfg.Stored.LastRotatedAt
	decoded, err := ati.DecodeToken(token)
	if err != nil {
		return nil, errors.New(reason(err, rotatedAt))
	}
	// Whether the mount still accepts the audience does not matter.
	audience, _ := decoded["aud"].(string)
	var options []ati.ValidateOption
	if audience != "" {
		options = append(options, ati.WithAudience(audience))
	}
	claims, _, err := cfg.Validate(token, b.now(), append(options, ati.WithTime(b.now))...)
	if exp, ok := decoded["exp"].(json.Number); ok && errors.Is(err, ati.ErrNotYetValid) {
		if end, numErr := exp.Int64(); numErr == nil { // it will be valid
			claims, _, err = cfg.Validate(token, b.now(), append(options, ati.WithTime(func() time.Time { return time.Unix(end, 0) }))...)
		}
	}
	switch {
	case errors.Is(err, ati.ErrExpired):
		return nil, fmt.Errorf("%s; there is nothing to revoke", reason(err, rotatedAt))
	case err != nil:
		return nil, errors.New(reason(err, rotatedAt))
	case role.CheckID("jti", claims.ID) != nil:
		return nil, errors.New("the token has no jti, or one of another form; revoke all tokens of its agent instead")
	}
	return revocation.ForToken(claims.ID, claims.ExpiresAt, false), nil
}

func (b *backend) pathRevokeRoleWrite(ctx context.Context, req *logical.Request, d *framework.FieldData) (*logical.Response, error) {
	_, r, err := b.requireRole(ctx, req, d)
	if err != nil {
		return nil, err
	}
	var request revokeRequest
	if err := revokeRoleParams.Apply(d.Raw, &request); err != nil {
		return nil, refuse.Error(err)
	}
	if err := r.CheckAgentID(request.agentID); err != nil {
		return nil, refuse.Error(err)
	}
	return b.revoke(ctx, req, &revocation.Entry{Subject: request.agentID}, maxRoleRevoked, nil)
}

// revoke stores a revocation unless there are that many, and returns it.
func (b *backend) revoke(ctx context.Context, req *logical.Request, e *revocation.Entry, limit int, warnings []string) (*logical.Response, error) {
	cfg, err := b.addRevocation(ctx, req, e, limit)
	if err != nil {
		return nil, err
	}
	if e.Subject != "" {
		warnings = append(warnings, "The agent can get new tokens. If it should not, first remove its login or disable its role, and then revoke it.")
		// A token that is requested after the response is not revoked: it has a later iat.
		// (If the clock was set back, RevokedAt may be far ahead.)
		b.waitUntil(time.Unix(min(e.RevokedAt, b.now().Unix())+1, 0))
	}
	if !cfg.Guarded {
		warnings = append(warnings, "This mount has guarded=false: proxies without a guard accept revoked tokens until they expire.")
	}
	return &logical.Response{Data: revocationFacts.Data(e), Warnings: warnings}, nil
}

func (b *backend) pathRevokedList(ctx context.Context, req *logical.Request, d *framework.FieldData) (resp *logical.Response, err error) {
	err = b.withRevoked(ctx, req.Storage, func(_ *config, revoked *revocation.List) error {
		resp = logical.ListResponse(page(revoked.Names(), d))
		return nil
	})
	return resp, err
}

func (b *backend) pathRevokedRead(ctx context.Context, req *logical.Request, d *framework.FieldData) (*logical.Response, error) {
	entries := []any{}
	err := b.withRevoked(ctx, req.Storage, func(_ *config, revoked *revocation.List) error {
		for _, name := range page(revoked.Names(), d) {
			entries = append(entries, revocationFacts.Data(revoked.Get(name)))
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return &logical.Response{Data: map[string]any{"revoked": entries}}, nil
}

const pathRevokeHelpDesc = `
Takes one of token, jti, and agent_id. A token must be valid for this mount, except for
its audience. The ID of the request for a batch revokes all of its tokens.

agent_id revokes all tokens of a subject that were issued until now, whichever role they
are of. Tokens that are requested after the response are valid: to stop an agent, first
remove its login or disable its role.

Proxies behind a guard reject a revoked token within seconds. Proxies without one accept
it until it expires; to end all tokens there, use config/rotate.

` + needsSudo + `

    $ vault write ati/revoke agent_id=sandbox:1
`

const pathRevokeRoleHelpDesc = `
Revokes all tokens of a subject that were issued until now, whichever role they are of.
The role's allowed_agent_ids must match the subject, also if the role is disabled. It is
for orchestrators that end a sandbox.

    $ vault write ati/revoke/researcher agent_id=sandbox:1
`

const pathRevokedHelpDesc = `
Lists the names of the revocations, or reads them with their times. A revocation is kept
until the tokens that it concerns have expired.

    $ vault list ati/revoked
    $ vault read -format=json ati/revoked
`
