package atisecrets

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"vault-plugin-secrets-ati/ati"
	"vault-plugin-secrets-ati/internal/keyring"
	"vault-plugin-secrets-ati/internal/param"
	"vault-plugin-secrets-ati/internal/refuse"
	"vault-plugin-secrets-ati/internal/revocation"
	"vault-plugin-secrets-ati/internal/role"
)

const (
	secretTokenType = "ati_token"
	maxBatchBytes   = 4 << 20
)

func pathCreds(b *backend) []*framework.Path {
	response := framework.Response{Description: "Token or, with format=env, the sandbox's environment", Fields: merged(tokenFacts.Response(), envFacts.Response())}
	for _, field := range response.Fields {
		field.Required = false // a response has one group or the other
	}
	return []*framework.Path{{
		Pattern:      "creds/" + namePattern,
		Fields:       merged(roleName("Name of the role."), role.CredsParams.Fields()),
		DisplayAttrs: &framework.DisplayAttributes{OperationPrefix: operationPrefix},
		Operations: map[logical.Operation]framework.OperationHandler{
			logical.ReadOperation:   b.operation(mintingNode, b.pathCredsRead, "Mint a token.", "generate", "credentials", response),
			logical.UpdateOperation: b.operation(mintingNode, b.pathCredsRead, "Mint a token, narrowed by parameters.", "generate", "credentials-with-parameters", response),
		},
		HelpSynopsis:    pathCredsHelpSyn,
		HelpDescription: pathCredsHelpDesc,
	}}
}

func pathBatch(b *backend) []*framework.Path {
	return []*framework.Path{{
		Pattern:      "batch/" + namePattern,
		Fields:       merged(roleName("Name of the role."), role.BatchParams.Fields()),
		DisplayAttrs: &framework.DisplayAttributes{OperationPrefix: operationPrefix},
		Operations: map[logical.Operation]framework.OperationHandler{
			logical.UpdateOperation: b.operation(mintingNode, b.pathBatchWrite, "Mint a token for each of many agents.", "generate", "credentials-batch",
				framework.Response{Description: "Token for each agent", Fields: merged(batchFacts.Response(), sharedFacts.Response())}),
		},
		HelpSynopsis:    pathBatchHelpSyn,
		HelpDescription: pathBatchHelpDesc,
	}}
}

// minted is a token and the version of the key that signed it.
type minted struct {
	claims *ati.Claims
	token  string
	key    *keyring.Key
}

// sharedFacts are the fields that are the same for all tokens of a request.
var sharedFacts = param.Set[minted]{
	param.Fact("scope", framework.TypeString, "Scope of the token (claim `scope`).", func(m *minted) any { return m.claims.Scope }),
	param.Fact("aud", framework.TypeString, "Audience (claim `aud`).", func(m *minted) any { return m.claims.Audience }),
	param.Fact("proxy_url", framework.TypeString, "URL of the proxy that the token is for.", func(m *minted) any { return m.key.ProxyURL }),
	param.Fact("token_ttl", framework.TypeInt64, "TTL of the token in seconds, from `iat` to `exp`.", func(m *minted) any { return m.claims.ExpiresAt - m.claims.IssuedAt }),
	param.Fact("expires_at", framework.TypeInt64, "Expiry (claim `exp`), in seconds since the Unix epoch.", func(m *minted) any { return m.claims.ExpiresAt }),
	param.Fact("key_version", framework.TypeInt, "Version of the key that signed the token.", func(m *minted) any { return m.key.Version }),
}

var tokenFacts = slices.Concat(param.Set[minted]{
	param.Fact("token", framework.TypeString, "Session token, a JWT.", func(m *minted) any { return m.token }).Sensitive(),
	param.Fact("jti", framework.TypeString, "ID of the token (claim `jti`), and of the request in Vault's audit log.", func(m *minted) any { return m.claims.ID }),
	param.Fact("sub", framework.TypeString, "Subject (claim `sub`).", func(m *minted) any { return m.claims.Subject }),
}, sharedFacts)

var envFacts = param.Set[minted]{
	param.Fact(ati.EnvProxyURL, framework.TypeString, "URL of the proxy. Only with format=env.", func(m *minted) any { return m.key.ProxyURL }),
	param.Fact(ati.EnvSessionToken, framework.TypeString, "Session token. Only with format=env.", func(m *minted) any { return m.token }).Sensitive(),
}

var batchFacts = param.Set[map[string]string]{
	param.Fact("tokens", framework.TypeKVPairs, "Session tokens by agent ID. Their claim `jti` is the ID of the request in Vault's audit log, a dot, and the position of the agent in agent_ids, from 1.",
		func(tokens *map[string]string) any { return *tokens }).Sensitive(),
}

// secretToken is the lease of a token of a role with generate_lease=true. It cannot be
// renewed: the expiry of a token is signed.
func secretToken(b *backend) *framework.Secret {
	return &framework.Secret{
		Type:   secretTokenType,
		Fields: map[string]*framework.FieldSchema{"token": {Type: framework.TypeString, Description: "Session token."}},
		Revoke: b.secretTokenRevoke,
	}
}

// secretTokenRevoke revokes the token of a lease that is revoked before its end.
func (b *backend) secretTokenRevoke(ctx context.Context, req *logical.Request, _ *framework.FieldData) (*logical.Response, error) {
	// Vault also revokes a lease that has expired, a second or two before its token
	// expires. (ExpirationTime would count the TTL from now.)
	s := req.Secret
	if s == nil || !s.IssueTime.IsZero() && !b.now().Before(s.IssueTime.Add(s.TTL)) {
		return nil, nil
	}
	if err := b.checkNode(ctx, req, writingNode); err != nil {
		return nil, err
	}
	jti, _ := s.InternalData["jti"].(string)
	expires, _ := s.InternalData["expires"].(string)
	cfg, err := b.getConfig(ctx, req.Storage)
	if err != nil {
		return nil, err
	}
	if cfg == nil || !cfg.Guarded || jti == "" {
		b.Logger().Warn("lease revoked, but its token remains valid until it expires", "path", redactedName(req.Path), "jti", jti, "expires", expires)
		return nil, nil
	}
	exp, err := time.Parse(time.RFC3339, expires)
	if err != nil {
		return nil, fmt.Errorf("expiry of the lease's token: %w", err)
	}
	_, err = b.addRevocation(ctx, req, revocation.ForToken(jti, exp.Unix(), true), 0)
	return nil, err
}

func (b *backend) pathCredsRead(ctx context.Context, req *logical.Request, d *framework.FieldData) (*logical.Response, error) {
	m, err := b.newMint(ctx, req, d, role.CredsParams)
	if err != nil {
		return nil, err
	}
	token, err := m.mint(m.request.AgentID(), req.ID)
	if err != nil {
		return nil, err
	}
	data := tokenFacts.Data(token)
	if m.request.Format == role.FormatEnv {
		data = envFacts.Data(token)
	}
	resp := &logical.Response{Data: data}
	if m.role.GenerateLease {
		if err := b.checkNode(ctx, req, activeNode); err != nil {
			return nil, err // a standby cannot create a lease
		}
		if resp, err = b.leased(data, token.claims); err != nil {
			return nil, err
		}
	}
	resp.Warnings = m.warnings
	return resp, nil
}

func (b *backend) pathBatchWrite(ctx context.Context, req *logical.Request, d *framework.FieldData) (*logical.Response, error) {
	m, err := b.newMint(ctx, req, d, role.BatchParams)
	if err != nil {
		return nil, err
	}
	if m.role.GenerateLease {
		return nil, refuse.Errorf("role %q has generate_lease=true, which batch does not support; read creds/%s for each agent, or set generate_lease=false", m.role.Name, m.role.Name)
	}
	tokens := make(map[string]string, len(m.request.AgentIDs))
	size := 0
	for i, id := range m.request.AgentIDs {
		token, err := m.mint(id, req.ID+"."+strconv.Itoa(i+1))
		if err != nil {
			return nil, err
		}
		if size += len(token.token); size > maxBatchBytes {
			return nil, refuse.Errorf("the tokens of this batch have more than %d bytes; request fewer agents", maxBatchBytes)
		}
		tokens[id] = token.token
	}
	shared := &minted{claims: m.draft.Claims(&m.cfg.Limits, m.role), key: m.key}
	return &logical.Response{Warnings: m.warnings, Data: merged(batchFacts.Data(&tokens), sharedFacts.Data(shared))}, nil
}

// mint mints the tokens of one request.
type mint struct {
	cfg     *config
	role    *role.Role
	request role.Request
	caller  role.Caller
	key     *keyring.Key
	draft   role.Draft

	warnings   []string
	sizeWarned bool
}

// newMint decides whether the caller gets tokens of the role, and what they contain
// apart from their IDs.
func (b *backend) newMint(ctx context.Context, req *logical.Request, d *framework.FieldData, ps param.Set[role.Request]) (*mint, error) {
	// First the time, then the config: a step that stops minting with a version drops the
	// cached config before it takes its time, so no token of that version has a later
	// iat. See rotate.
	now := b.now()
	m := new(mint)
	var err error
	if m.cfg, m.role, err = b.requireRole(ctx, req, d); err != nil {
		return nil, err
	}
	if req.ID == "" {
		return nil, errors.New("request has no ID")
	}
	if err := m.request.Parse(ps, d.Raw); err != nil {
		return nil, refuse.Error(err)
	}
	if m.key, err = m.cfg.ForProxy(m.request.ProxyURL); err != nil {
		return nil, refuse.Error(err)
	}
	if m.cfg.Stored.LongestTTL <= 0 && !m.role.Disabled {
		return nil, errors.New("stored config has no maximum token TTL; rewrite each role to restore it")
	}
	if m.caller, err = b.lookUpCaller(req, m.role.IdentityNeeded(&m.request)); err != nil {
		return nil, err
	}
	maxTTL, err := b.recentMaxMountTTL()
	if err != nil {
		return nil, err
	}
	m.draft, m.warnings, err = m.role.Narrow(m.cfg.bounds(maxTTL), &m.request, now)
	return m, refuse.Error(err)
}

// mint returns a token. agentID is the subject that the caller chose, or "".
func (m *mint) mint(agentID, jti string) (*minted, error) {
	draft := m.draft
	if err := m.role.Identify(&draft, &m.request, m.caller, agentID, jti); err != nil {
		return nil, refuse.Error(err)
	}
	claims := draft.Claims(&m.cfg.Limits, m.role)
	token, err := m.key.Key.Sign(claims)
	if err != nil {
		return nil, err
	}
	if len(token) > role.MaxTokenBytes {
		return nil, refuse.Errorf("the token for %q would have %d bytes, more than the maximum of %d; request fewer tools, skills, or scopes", claims.Subject, len(token), role.MaxTokenBytes)
	}
	if len(token) > role.WarnTokenBytes && !m.sizeWarned {
		m.sizeWarned = true
		m.warnings = append(m.warnings, fmt.Sprintf("The token for %q has %d bytes. Some HTTP servers reject requests with a token over %d bytes.", claims.Subject, len(token), role.WarnTokenBytes))
	}
	return &minted{claims, token, m.key}, nil
}

// lookUpCaller looks up in Vault's identity system what the templates need.
func (b *backend) lookUpCaller(req *logical.Request, need role.IdentityNeed) (caller role.Caller, err error) {
	caller = role.Caller{EntityID: req.EntityID, DisplayName: req.DisplayName}
	if need == role.NeedsNothing || req.EntityID == "" {
		return caller, nil
	}
	if caller.Entity, err = b.System().EntityInfo(req.EntityID); err != nil {
		return caller, fmt.Errorf("look up entity %s: %w", req.EntityID, err)
	}
	if need == role.NeedsGroups {
		if caller.Groups, err = b.System().GroupsForEntity(req.EntityID); err != nil {
			return caller, fmt.Errorf("look up groups of entity %s: %w", req.EntityID, err)
		}
	}
	return caller, nil
}

// leased returns a response with a lease that does not outlive the token. Vault starts
// the lease when it has the response, so the lease is a second shorter than what
// remains of the token now, in whole seconds.
func (b *backend) leased(data map[string]any, claims *ati.Claims) (*logical.Response, error) {
	expires := time.Unix(claims.ExpiresAt, 0)
	ttl := (expires.Sub(b.now()) - time.Second).Truncate(time.Second)
	if ttl <= 0 { // for Vault, 0 is its default TTL
		return nil, fmt.Errorf("minting took too long: a token with TTL %v has no time left for a lease", time.Duration(claims.ExpiresAt-claims.IssuedAt)*time.Second)
	}
	resp := b.Secret(secretTokenType).Response(data, map[string]any{
		"jti": claims.ID, "expires": expires.UTC().Format(time.RFC3339),
	})
	resp.Secret.TTL, resp.Secret.MaxTTL = ttl, ttl
	return resp, nil
}

const pathCredsHelpSyn = `Mint a token.`

const pathCredsHelpDesc = `
Without parameters, the token has all that the role grants. Parameters narrow it. A
request for more than the role grants is an error, except for a ttl, which is capped.

The claim jti is the ID of the request in Vault's audit log.

    $ vault read ati/creds/researcher
    $ vault read ati/creds/researcher tools=web_search ttl=10m agent_id=sandbox:1
`

const pathBatchHelpSyn = `Mint a token for each of many agents.`

const pathBatchHelpDesc = `
agent_ids lists up to 1000 subjects that the role's allowed_agent_ids match. The other
parameters narrow the role for all of them, as those of creds/<name> do. The response
has tokens, a map from agent ID to token. If any ID is invalid, not allowed, or
duplicated, the whole request fails and the error names the ID.

The agent IDs are the keys of a map in the response, so Vault's audit log has them in
plaintext. A policy for creds/<name> does not apply to batch/<name>. Roles with
generate_lease=true are not supported.

    $ vault write -format=json ati/batch/researcher agent_ids=sandbox:1,sandbox:2
`
