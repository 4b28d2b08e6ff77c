package atisecrets

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"
	"vault-plugin-secrets-ati/ati"
	"vault-plugin-secrets-ati/internal/keyring"
	"vault-plugin-secrets-ati/internal/param"
	"vault-plugin-secrets-ati/internal/refuse"
	"vault-plugin-secrets-ati/internal/role"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"
)

const (
	secretTokenType = "ati_token"
	maxBatchBytes   = 4 << 20
)

func pathCreds(b *backend) []*framework.Path {
	response := framework.Response{Description: "A token; with format=env, the sandbox's environment", Fields: merged(tokenFacts.Response(), envFacts.Response())}
	for _, field := range response.Fields {
		field.Required = false // an answer has the ones or the others
	}
	return []*framework.Path{{
		Pattern:      "creds/" + namePattern,
		Fields:       merged(map[string]*framework.FieldSchema{nameField: roleName("Name of the role.")}, role.CredsParams.Fields()),
		DisplayAttrs: &framework.DisplayAttributes{OperationPrefix: operationPrefix},
		Operations: map[logical.Operation]framework.OperationHandler{
			logical.ReadOperation:   operation(b.pathCredsRead, "Mint a token for a role.", "generate", "credentials", response),
			logical.UpdateOperation: operation(b.pathCredsRead, "Mint a token for a role, narrowed by parameters.", "generate", "credentials-with-parameters", response),
		},
		HelpSynopsis:    pathCredsHelpSyn,
		HelpDescription: pathCredsHelpDesc,
	}}
}

func pathBatch(b *backend) []*framework.Path {
	return []*framework.Path{{
		Pattern:      "batch/" + namePattern,
		Fields:       merged(map[string]*framework.FieldSchema{nameField: roleName("Name of the role.")}, role.BatchParams.Fields()),
		DisplayAttrs: &framework.DisplayAttributes{OperationPrefix: operationPrefix},
		Operations: map[logical.Operation]framework.OperationHandler{
			logical.UpdateOperation: operation(b.pathBatchWrite, "Mint a token for each of many agents.", "generate", "credentials-batch",
				framework.Response{Description: "A token for each agent", Fields: merged(batchFacts.Response(), sharedFacts.Response())}),
		},
		HelpSynopsis:    pathBatchHelpSyn,
		HelpDescription: pathBatchHelpDesc,
	}}
}

// minted is a token, and the version of the key that signed it.
type minted struct {
	claims *ati.Claims
	token  string
	key    *keyring.Key
}

// sharedFacts are those that all tokens of a request have in common.
var sharedFacts = param.Set[minted]{
	param.Fact("scope", framework.TypeString, "What the token opens (claim scope).", func(m *minted) any { return m.claims.Scope }),
	param.Fact("aud", framework.TypeString, "Audience (claim aud).", func(m *minted) any { return m.claims.Audience }),
	param.Fact("proxy_url", framework.TypeString, "Address of the proxy that takes the token.", func(m *minted) any { return m.key.ProxyURL }),
	param.Fact("token_ttl", framework.TypeInt64, "Seconds from iat to exp.", func(m *minted) any { return m.claims.ExpiresAt - m.claims.IssuedAt }),
	param.Fact("expires_at", framework.TypeInt64, "Claim exp, in seconds since 1970.", func(m *minted) any { return m.claims.ExpiresAt }),
	param.Fact("key_version", framework.TypeInt, "Version of the key that signed.", func(m *minted) any { return m.key.Version }),
}

var tokenFacts = slices.Concat(param.Set[minted]{
	param.Fact("token", framework.TypeString, "The session token, a JWT.", func(m *minted) any { return m.token }).Sensitive(),
	param.Fact("jti", framework.TypeString, "Id of the token (claim jti), and of this request in Vault's audit log.", func(m *minted) any { return m.claims.ID }),
	param.Fact("sub", framework.TypeString, "Subject (claim sub).", func(m *minted) any { return m.claims.Subject }),
}, sharedFacts)

var envFacts = param.Set[minted]{
	param.Fact(ati.EnvProxyURL, framework.TypeString, "With format=env: the proxy's address.", func(m *minted) any { return m.key.ProxyURL }),
	param.Fact(ati.EnvSessionToken, framework.TypeString, "With format=env: the session token.", func(m *minted) any { return m.token }).Sensitive(),
}

var batchFacts = param.Set[map[string]string]{
	param.Fact("tokens", framework.TypeKVPairs, "The session tokens, by agent id. Their claim jti is the id of this request in Vault's audit log, a dot, and the agent's position in agent_ids, from 1.",
		func(tokens *map[string]string) any { return *tokens }).Sensitive(),
}

// secretToken is the lease that a role with generate_lease gives its tokens.
// It can't be renewed: a token's expiry is signed into it.
func secretToken(b *backend) *framework.Secret {
	return &framework.Secret{
		Type:   secretTokenType,
		Fields: map[string]*framework.FieldSchema{"token": {Type: framework.TypeString, Description: "The session token."}},
		Revoke: b.secretTokenRevoke,
	}
}

func (b *backend) secretTokenRevoke(_ context.Context, req *logical.Request, _ *framework.FieldData) (*logical.Response, error) {
	if s := req.Secret; s != nil {
		// Vault revokes a lease that has run out in the same way, a second or two before
		// its token has. (ExpirationTime would count the TTL from now.)
		if b.now().Before(s.IssueTime.Add(s.TTL)) {
			b.Logger().Warn("a lease was revoked, but its token lives until it expires", "path", req.Path, "jti", s.InternalData["jti"], "expires", s.InternalData["expires"])
		}
	}
	return nil, nil
}

func (b *backend) pathCredsRead(ctx context.Context, req *logical.Request, d *framework.FieldData) (*logical.Response, error) {
	m, err := b.newMint(ctx, req, d, role.CredsParams)
	if err != nil {
		return nil, err
	}
	one, err := m.mint(m.asked.AgentID, req.ID)
	if err != nil {
		return nil, err
	}
	data := tokenFacts.Data(one)
	if m.asked.Format == role.FormatEnv {
		data = envFacts.Data(one)
	}
	resp := &logical.Response{Data: data}
	if m.role.GenerateLease {
		if resp, err = b.leased(data, one.claims); err != nil {
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
		return nil, refuse.Errorf("role %q gives its tokens leases, which a batch can't; mint them one by one, or set generate_lease=false", m.role.Name)
	}
	tokens := make(map[string]string, len(m.asked.AgentIDs))
	size := 0
	for i, id := range m.asked.AgentIDs {
		one, err := m.mint(id, req.ID+"."+strconv.Itoa(i+1))
		if err != nil {
			return nil, err
		}
		if size += len(one.token); size > maxBatchBytes {
			return nil, refuse.Errorf("the tokens of this batch have more than %d bytes; mint for fewer agents at once", maxBatchBytes)
		}
		tokens[id] = one.token
	}
	shared := &minted{claims: m.draft.Claims(&m.cfg.Limits, m.role), key: m.key}
	return &logical.Response{Warnings: m.warnings, Data: merged(batchFacts.Data(&tokens), sharedFacts.Data(shared))}, nil
}

// minting is what all tokens of a request have in common.
type minting struct {
	cfg    *config
	role   *role.Role
	asked  role.Request
	caller role.Caller
	key    *keyring.Key
	draft  role.Draft

	warnings   []string
	sizeWarned bool
}

// newMint decides whether the caller gets tokens of the role, and what is in
// them beside the ids.
func (b *backend) newMint(ctx context.Context, req *logical.Request, d *framework.FieldData, ps param.Set[role.Request]) (*minting, error) {
	// Before the config is read: whoever ends minting under a version drops the
	// cached config first, and takes the time then. So no token under it has a
	// later iat.
	now := b.now()
	m := new(minting)
	var err error
	if m.cfg, m.role, err = b.configAndRole(ctx, req, d); err != nil {
		return nil, err
	}
	if req.ID == "" {
		return nil, errors.New("the request has no id to name the token by")
	}
	if err := m.asked.Parse(ps, d.Raw); err != nil {
		return nil, refuse.Error(err)
	}
	if m.key, err = m.cfg.KeyFor(m.asked.ProxyURL); err != nil {
		return nil, refuse.Error(err)
	}
	if m.cfg.Stored.LongestTTL <= 0 && !m.role.Disabled {
		return nil, errors.New("storage has no bound on the life of tokens, which every role's write sets: write the roles again")
	}
	if m.caller, err = b.lookUpCaller(req, m.role.IdentityNeeded(&m.asked)); err != nil {
		return nil, err
	}
	mountMax, err := b.recentMountMaxTTL()
	if err != nil {
		return nil, err
	}
	m.draft, m.warnings, err = m.role.Narrow(&m.cfg.Limits, &m.asked, now, m.cfg.Stored.LongestTTL, mountMax)
	return m, refuse.Error(err)
}

// mint makes one token.
func (m *minting) mint(agentID, jti string) (*minted, error) {
	t := m.draft
	if err := m.role.Identify(&t, &m.asked, m.caller, agentID, jti); err != nil {
		return nil, refuse.Error(err)
	}
	claims := t.Claims(&m.cfg.Limits, m.role)
	token, err := m.key.Key.Sign(claims)
	if err != nil {
		return nil, err
	}
	if len(token) > role.MaxTokenBytes {
		return nil, refuse.Errorf("the token of %q has %d bytes; at most %d are allowed: ask for less with tools, skills or scopes", claims.Subject, len(token), role.MaxTokenBytes)
	}
	if len(token) > role.WarnTokenBytes && !m.sizeWarned {
		m.sizeWarned = true
		m.warnings = append(m.warnings, fmt.Sprintf("the token of %q has %d bytes; over %d some HTTP servers refuse the request", claims.Subject, len(token), role.WarnTokenBytes))
	}
	return &minted{claims, token, m.key}, nil
}

// lookUpCaller asks Vault's identity system for what the templates need.
func (b *backend) lookUpCaller(req *logical.Request, needed role.IdentityNeed) (who role.Caller, err error) {
	who = role.Caller{EntityID: req.EntityID, DisplayName: req.DisplayName}
	if needed == role.NeedsNothing || req.EntityID == "" {
		return who, nil
	}
	if who.Entity, err = b.System().EntityInfo(req.EntityID); err != nil {
		return who, fmt.Errorf("look up entity %s: %w", req.EntityID, err)
	}
	if needed == role.NeedsGroups {
		if who.Groups, err = b.System().GroupsForEntity(req.EntityID); err != nil {
			return who, fmt.Errorf("look up the groups of entity %s: %w", req.EntityID, err)
		}
	}
	return who, nil
}

// leased is an answer as a lease, which does not outlive the token.
func (b *backend) leased(data map[string]any, claims *ati.Claims) (*logical.Response, error) {
	// Vault starts the lease when it has the answer: so that it doesn't outlive
	// the token, a second less than that has left now, in whole seconds.
	expires := time.Unix(claims.ExpiresAt, 0)
	lease := (expires.Sub(b.now()) - time.Second).Truncate(time.Second)
	if lease <= 0 { // which Vault would take for its default
		return nil, fmt.Errorf("minting took so long that a token of %v has no time left for a lease", time.Duration(claims.ExpiresAt-claims.IssuedAt)*time.Second)
	}
	resp := b.Secret(secretTokenType).Response(data, map[string]any{
		"jti": claims.ID, "expires": expires.UTC().Format(time.RFC3339),
	})
	resp.Secret.TTL, resp.Secret.MaxTTL = lease, lease
	return resp, nil
}

const pathCredsHelpSyn = `Mint a token for a role.`

const pathCredsHelpDesc = `
Without parameters, the token has all that the role grants. Parameters only
narrow it: what the role doesn't grant is refused, never cut down in silence.

The claim jti is the id of this request in Vault's audit log.

    $ vault read ati/creds/researcher
    $ vault read ati/creds/researcher tools=web_search ttl=10m agent_id=sandbox:1
`

const pathBatchHelpSyn = `Mint a token for each of many agents.`

const pathBatchHelpDesc = `
Give agent_ids, up to 1000 of those that the role's allowed_agent_ids have. The
other parameters narrow the role for all of them, as those of creds/<name> do.
The answer has tokens, a map from agent id to token. One id that is not allowed,
malformed or given twice refuses the whole, and is named. Vault's audit log has the
agent ids of the answer in clear: they are the keys of a map.

This path is one of its own, so that a policy can allow it or not: one that
forbids agent_id at creds/<name> forbids nothing here. It mints nothing for roles
with generate_lease.

    $ vault write -format=json ati/batch/researcher agent_ids=sandbox:1,sandbox:2
`
