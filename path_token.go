package atisecrets

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/go-secure-stdlib/strutil"
	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"vault-plugin-secrets-ati/ati"
)

const (
	secretTokenType = "ati_token"
	formatEnv       = "env"
	minLeasedTTL    = 3 * time.Second

	agentIDsField = "agent_ids"
	maxBatch      = 1000
	maxBatchBytes = 4 << 20
)

func pathCreds(b *backend) []*framework.Path {
	response := framework.Response{Description: "A token; with format=env, the sandbox's environment", Fields: credsFields()}
	return []*framework.Path{{
		Pattern: "creds/" + namePattern,
		Fields: withMintFields(map[string]*framework.FieldSchema{
			"agent_id": {
				Type:         framework.TypeString,
				Description:  "Subject of the token, where the role's allowed_agent_ids have it.",
				DisplayAttrs: display("Agent id", "Identity"),
			},
			"job_id": {
				Type:         framework.TypeString,
				Description:  "Claim job_id, where the role's allowed_job_ids have it.",
				DisplayAttrs: display("Job id", "Identity"),
			},
			"sandbox_id": {
				Type:         framework.TypeString,
				Description:  "Claim sandbox_id, where the role's allowed_sandbox_ids have it.",
				DisplayAttrs: display("Sandbox id", "Identity"),
			},
			"format": {
				Type:          framework.TypeString,
				Description:   "env answers with ATI_PROXY_URL and ATI_SESSION_TOKEN only.",
				AllowedValues: []any{formatEnv},
				DisplayAttrs:  display("Format", "Answer"),
			},
		}),
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
		Pattern: "batch/" + namePattern,
		Fields: withMintFields(map[string]*framework.FieldSchema{
			agentIDsField: {
				Type:         framework.TypeCommaStringSlice,
				Required:     true,
				Description:  "Subjects of the tokens, each one that the role's allowed_agent_ids have. At most 1000.",
				DisplayAttrs: display("Agent ids", "Identity"),
			},
		}),
		DisplayAttrs: &framework.DisplayAttributes{OperationPrefix: operationPrefix},
		Operations: map[logical.Operation]framework.OperationHandler{
			logical.UpdateOperation: operation(b.pathBatchWrite, "Mint a token for each of many agents.", "generate", "credentials-batch",
				framework.Response{Description: "A token for each agent", Fields: batchFields()}),
		},
		HelpSynopsis:    pathBatchHelpSyn,
		HelpDescription: pathBatchHelpDesc,
	}}
}

// withMintFields adds the parameters that creds and batch have in common.
func withMintFields(fields map[string]*framework.FieldSchema) map[string]*framework.FieldSchema {
	maps.Copy(fields, map[string]*framework.FieldSchema{
		nameField: roleName(),
		"ttl": {
			Type:         framework.TypeDurationSecond,
			Description:  "TTL of the token. Longer than the role, config or mount allow is cut to that, with a warning.",
			DisplayAttrs: display("TTL", "Narrow"),
		},
		"tools": {
			Type:         framework.TypeCommaStringSlice,
			Description:  "Fewer tools than the role grants. With tools, skills or scopes given, the token has just what is given.",
			DisplayAttrs: display("Tools", "Narrow"),
		},
		"skills": {
			Type:         framework.TypeCommaStringSlice,
			Description:  "Fewer skills than the role grants.",
			DisplayAttrs: display("Skills", "Narrow"),
		},
		"scopes": {
			Type:         framework.TypeCommaStringSlice,
			Description:  "Fewer scopes than the role grants.",
			DisplayAttrs: display("Scopes", "Narrow"),
		},
		"rate": {
			Type:         framework.TypeKVPairs,
			Description:  "Lower counts for rates that the role has, over the same window.",
			DisplayAttrs: display("Rates", "Narrow"),
		},
		"proxy_url": {
			Type:         framework.TypeString,
			Description:  "Mint for the proxy at this address, with the current or the previous version of the key, and fail if neither is for it.",
			DisplayAttrs: display("Proxy URL", "Proxy"),
		},
	})
	return fields
}

func credsFields() map[string]*framework.FieldSchema {
	return map[string]*framework.FieldSchema{
		"token":             {Type: framework.TypeString, Description: "The session token, a JWT.", DisplayAttrs: &framework.DisplayAttributes{Sensitive: true}},
		"jti":               {Type: framework.TypeString, Description: "Id of the token (claim jti), and of this request in Vault's audit log."},
		"sub":               {Type: framework.TypeString, Description: "Subject (claim sub)."},
		"scope":             {Type: framework.TypeString, Description: "What the token opens (claim scope)."},
		"aud":               {Type: framework.TypeString, Description: "Audience (claim aud)."},
		"proxy_url":         {Type: framework.TypeString, Description: "Address of the proxy that takes the token."},
		"token_ttl":         {Type: framework.TypeInt64, Description: "Seconds from iat to exp."},
		"expires_at":        {Type: framework.TypeInt64, Description: "Claim exp, in seconds since 1970."},
		"key_version":       {Type: framework.TypeInt, Description: "Version of the key that signed."},
		ati.EnvProxyURL:     {Type: framework.TypeString, Description: "With format=env: the proxy's address."},
		ati.EnvSessionToken: {Type: framework.TypeString, Description: "With format=env: the session token.", DisplayAttrs: &framework.DisplayAttributes{Sensitive: true}},
	}
}

func batchFields() map[string]*framework.FieldSchema {
	fields := map[string]*framework.FieldSchema{
		"tokens": {Type: framework.TypeKVPairs, Required: true, Description: "The session tokens, by agent id. Their claim jti is the id of this request in Vault's audit log, a dot, and the agent's position in agent_ids, from 1.", DisplayAttrs: &framework.DisplayAttributes{Sensitive: true}},
	}
	common := credsFields()
	for _, name := range []string{"scope", "aud", "proxy_url", "token_ttl", "expires_at", "key_version"} {
		common[name].Required = true
		fields[name] = common[name]
	}
	return fields
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

// credsParams are the parameters of a mint, checked for their form.
type credsParams struct {
	agentIDs                  []string // of a batch, which has no agentID
	agentID, jobID, sandboxID string
	ttl                       time.Duration
	narrowed                  bool // tools, skills or scopes were given
	granted                   []string
	rates                     map[string]ati.Rate
	proxyURL                  string
	format                    string
}

func (b *backend) pathCredsRead(ctx context.Context, req *logical.Request, d *framework.FieldData) (*logical.Response, error) {
	m, refusal, err := b.beginMint(ctx, req, d)
	if refusal != nil || err != nil {
		return refusal, err
	}
	claims, token, refusal, err := m.mint(m.params.agentID, req.ID)
	if refusal != nil || err != nil {
		return refusal, err
	}
	resp, err := b.credsResponse(m.key, m.role, m.params, claims, token)
	if err != nil {
		return nil, err
	}
	resp.Warnings = m.warnings
	return resp, nil
}

func (b *backend) pathBatchWrite(ctx context.Context, req *logical.Request, d *framework.FieldData) (*logical.Response, error) {
	m, refusal, err := b.beginMint(ctx, req, d)
	if refusal != nil || err != nil {
		return refusal, err
	}
	if m.role.GenerateLease {
		return logical.ErrorResponse("role %q gives its tokens leases, which a batch can't; mint them one by one, or set generate_lease=false", m.role.name), nil
	}
	tokens := make(map[string]string, len(m.params.agentIDs))
	size := 0
	for i, id := range m.params.agentIDs {
		_, token, refusal, err := m.mint(id, req.ID+"."+strconv.Itoa(i+1))
		if refusal != nil || err != nil {
			return refusal, err
		}
		if size += len(token); size > maxBatchBytes {
			return logical.ErrorResponse("the tokens of this batch have more than %d bytes; mint for fewer agents at once", maxBatchBytes), nil
		}
		tokens[id] = token
	}
	claims := m.request.claims(m.cfg, m.role) // what they share
	return &logical.Response{Warnings: m.warnings, Data: map[string]any{
		"tokens":      tokens,
		"scope":       claims.Scope,
		"aud":         claims.Audience,
		"proxy_url":   m.key.ProxyURL,
		"token_ttl":   claims.ExpiresAt - claims.IssuedAt,
		"expires_at":  claims.ExpiresAt,
		"key_version": m.key.Version,
	}}, nil
}

// minting is what all tokens of a request have in common.
type minting struct {
	cfg     *config
	role    *role
	params  *credsParams
	caller  caller
	key     *signingKey
	request tokenRequest

	warnings   []string
	sizeWarned bool
}

// beginMint decides whether the caller gets tokens of the role, and what is in
// them beside the ids. A refusal is the caller's to mend.
func (b *backend) beginMint(ctx context.Context, req *logical.Request, d *framework.FieldData) (m *minting, refusal *logical.Response, err error) {
	// Before the config is read: whoever ends minting under a version drops the
	// cached config first, and takes the time then. So no token under it has a
	// later iat.
	now := b.now()
	m = new(minting)
	if m.cfg, m.role, refusal, err = b.configAndRole(ctx, req, d); refusal != nil || err != nil {
		return nil, refusal, err
	}
	if req.ID == "" {
		return nil, nil, errors.New("the request has no id to name the token by")
	}
	if m.params, err = parseCredsParams(d); err != nil {
		return nil, logical.ErrorResponse(err.Error()), nil
	}
	if m.key, err = m.cfg.keyFor(m.params.proxyURL); err != nil {
		return nil, logical.ErrorResponse(err.Error()), nil
	}
	if m.cfg.LongestTTL <= 0 && !m.role.Disabled {
		return nil, nil, errors.New("storage has no bound on the life of tokens, which every role's write sets: write the roles again")
	}
	if m.caller, err = b.lookUpCaller(req, m.role.identityAsked(m.params)); err != nil {
		return nil, nil, err
	}
	mountMax, err := b.recentMountMaxTTL()
	if err != nil {
		return nil, nil, err
	}
	if m.request, m.warnings, err = m.role.decide(m.cfg, m.params, now, mountMax); err != nil {
		return nil, logical.ErrorResponse(err.Error()), nil
	}
	return m, nil, nil
}

// mint makes one token.
func (m *minting) mint(agentID, jti string) (claims *ati.Claims, token string, refusal *logical.Response, err error) {
	t := m.request
	if err := m.role.identify(&t, m.params, m.caller, agentID, jti); err != nil {
		return nil, "", logical.ErrorResponse(err.Error()), nil
	}
	claims = t.claims(m.cfg, m.role)
	if token, err = m.key.key.Sign(claims); err != nil {
		return nil, "", nil, err
	}
	if len(token) > maxTokenBytes {
		return nil, "", logical.ErrorResponse("the token of %q has %d bytes; at most %d are allowed: ask for less with tools, skills or scopes", claims.Subject, len(token), maxTokenBytes), nil
	}
	if len(token) > warnTokenBytes && !m.sizeWarned {
		m.sizeWarned = true
		m.warnings = append(m.warnings, fmt.Sprintf("the token of %q has %d bytes; over %d some HTTP servers refuse the request", claims.Subject, len(token), warnTokenBytes))
	}
	return claims, token, nil, nil
}

// lookUpCaller asks Vault's identity system for what the templates need.
func (b *backend) lookUpCaller(req *logical.Request, asked string) (who caller, err error) {
	who = caller{entityID: req.EntityID, displayName: req.DisplayName}
	if asked == "" || req.EntityID == "" {
		return who, nil
	}
	if who.entity, err = b.System().EntityInfo(req.EntityID); err != nil {
		return who, fmt.Errorf("look up entity %s: %w", req.EntityID, err)
	}
	if asked == identityGroups {
		if who.groups, err = b.System().GroupsForEntity(req.EntityID); err != nil {
			return who, fmt.Errorf("look up the groups of entity %s: %w", req.EntityID, err)
		}
	}
	return who, nil
}

// credsResponse is the answer with a token, as a lease where the role has it so.
func (b *backend) credsResponse(key *signingKey, r *role, p *credsParams, claims *ati.Claims, token string) (*logical.Response, error) {
	ttl := time.Duration(claims.ExpiresAt-claims.IssuedAt) * time.Second
	data := map[string]any{
		"token":       token,
		"jti":         claims.ID,
		"sub":         claims.Subject,
		"scope":       claims.Scope,
		"aud":         claims.Audience,
		"proxy_url":   key.ProxyURL,
		"token_ttl":   whole(ttl),
		"expires_at":  claims.ExpiresAt,
		"key_version": key.Version,
	}
	if p.format == formatEnv {
		data = map[string]any{ati.EnvProxyURL: key.ProxyURL, ati.EnvSessionToken: token}
	}
	if !r.GenerateLease {
		return &logical.Response{Data: data}, nil
	}
	// Vault starts the lease when it has the answer: so that it doesn't outlive
	// the token, a second less than that has left now, in whole seconds.
	lease := (time.Unix(claims.ExpiresAt, 0).Sub(b.now()) - time.Second).Truncate(time.Second)
	if lease <= 0 { // which Vault would take for its default
		return nil, fmt.Errorf("minting took so long that a token of %v has no time left for a lease", ttl)
	}
	resp := b.Secret(secretTokenType).Response(data, map[string]any{
		"jti": claims.ID, "expires": time.Unix(claims.ExpiresAt, 0).UTC().Format(time.RFC3339),
	})
	resp.Secret.TTL, resp.Secret.MaxTTL = lease, lease
	return resp, nil
}

func parseCredsParams(d *framework.FieldData) (*credsParams, error) {
	p := new(credsParams)
	for _, f := range []struct {
		name  string
		field *string
		check func(field, value string) error
	}{
		{"agent_id", &p.agentID, checkID}, {"job_id", &p.jobID, checkID}, {"sandbox_id", &p.sandboxID, checkID},
		{"proxy_url", &p.proxyURL, func(_, value string) (err error) { p.proxyURL, err = parseProxyURL(value); return err }},
		{"format", &p.format, func(field, value string) error {
			if value != formatEnv {
				return fmt.Errorf("%s %q: must be %q, or left out (-format=json, before the path, is the CLI's own)", field, value, formatEnv)
			}
			return nil
		}},
	} {
		if !given(d, f.name) {
			continue
		}
		*f.field = d.Get(f.name).(string)
		if *f.field == "" {
			return nil, emptyParameter(f.name)
		}
		if err := f.check(f.name, *f.field); err != nil {
			return nil, err
		}
	}
	if _, batch := d.Schema[agentIDsField]; batch {
		var err error
		if p.agentIDs, err = parseAgentIDs(d); err != nil {
			return nil, err
		}
	}
	ttl, ok, err := durationField(d, "ttl")
	if err != nil {
		return nil, err
	}
	if ok && ttl == 0 {
		return nil, errors.New("ttl must be at least 1s")
	}
	p.ttl = ttl

	lists := map[string][]string{}
	for _, name := range []string{"tools", "skills", "scopes"} {
		items, ok, err := listField(d, name)
		if err != nil {
			return nil, err
		}
		if ok && len(items) == 0 {
			return nil, emptyParameter(name)
		}
		lists[name] = items
		p.narrowed = p.narrowed || ok
	}
	if p.granted, err = scopesOf(lists["tools"], lists["skills"], lists["scopes"]); err != nil {
		return nil, err
	}
	rate, ok, err := rateField(d, "rate")
	if err != nil {
		return nil, err
	}
	if ok && len(rate) == 0 {
		return nil, emptyParameter("rate")
	}
	p.rates, err = parseRates("rate", rate)
	return p, err
}

func parseAgentIDs(d *framework.FieldData) ([]string, error) {
	ids, ok, err := listField(d, agentIDsField)
	switch {
	case err != nil:
		return nil, err
	case !ok:
		return nil, errors.New("agent_ids is required: the subjects of the tokens, as in agent_ids=sandbox:1,sandbox:2")
	case len(ids) == 0:
		return nil, emptyParameter(agentIDsField)
	}
	seen := make(map[string]bool, len(ids))
	for i, id := range ids {
		if err := checkID(agentIDsField, id); err != nil {
			return nil, fmt.Errorf("item %d of %w", i+1, err)
		}
		if seen[id] {
			return nil, fmt.Errorf("agent_ids %q: is given twice", id)
		}
		seen[id] = true
	}
	return ids, nil
}

// emptyParameter refuses what is usually an unset variable, and would
// otherwise mint the whole role.
func emptyParameter(name string) error {
	return fmt.Errorf("parameter %q is empty; leave it out, or give it a value", name)
}

// caller is who asked for a token.
type caller struct {
	entityID    string
	displayName string
	entity      *logical.Entity // nil where no template asks for it
	groups      []*logical.Group
}

const (
	identityEntity = "entity"
	identityGroups = "groups"
)

// identityAsked says what the templates that this mint renders need of Vault's
// identity system: each is a round trip.
func (r *role) identityAsked(p *credsParams) string {
	asked, agentID := "", p.agentID
	if len(p.agentIDs) > 0 {
		agentID = p.agentIDs[0]
	}
	for _, t := range []struct {
		template *idTemplate
		chosen   string
	}{{r.subject, agentID}, {r.jobID, p.jobID}, {r.sandboxID, p.sandboxID}} {
		switch {
		case t.chosen != "" || !t.template.asks("identity."):
		case t.template.asks("identity.groups."):
			return identityGroups
		default:
			asked = identityEntity
		}
	}
	return asked
}

// tokenRequest is what a token has beside what config says.
type tokenRequest struct {
	scope                          string
	rate                           map[string]string
	ttl                            time.Duration
	subject, jobID, sandboxID, jti string
	now                            time.Time
}

func (t tokenRequest) claims(cfg *config, r *role) *ati.Claims {
	audience := r.Audience
	if audience == "" {
		audience = cfg.Audience
	}
	iat := t.now.Unix()
	return &ati.Claims{
		Subject: t.subject, Audience: audience, IssuedAt: iat, ExpiresAt: iat + whole(t.ttl), Scope: t.scope,
		Issuer: cfg.Issuer, ID: t.jti, ATI: &ati.Namespace{Version: 1, Rate: t.rate}, JobID: t.jobID, SandboxID: t.sandboxID,
	}
}

// decide is what a token has beside its ids. Its errors are the caller's to
// mend.
func (r *role) decide(cfg *config, p *credsParams, now time.Time, mountMax time.Duration) (t tokenRequest, warnings []string, err error) {
	if err := r.checkEnabled(); err != nil {
		return t, nil, err
	}
	if err := r.checkAudience(cfg); err != nil {
		return t, nil, fmt.Errorf("role %q: %w", r.name, err)
	}
	t = tokenRequest{scope: r.scope, rate: r.Rate, now: now}
	granted := r.granted
	if p.narrowed {
		if err := r.checkGranted(p.granted); err != nil {
			return t, nil, err
		}
		granted, t.scope = p.granted, strings.Join(p.granted, " ")
	}
	if err := cfg.checkCeiling(granted); err != nil {
		return t, nil, err
	}
	if len(p.rates) > 0 {
		if t.rate, err = r.narrowRates(p.rates); err != nil {
			return t, nil, err
		}
	}
	view := logical.StaticSystemView{MaxLeaseTTLVal: mountMax, DefaultLeaseTTLVal: mountMax}
	// The config may have been read before the role was written with a longer
	// TTL: tokens_expire_by goes by this config's.
	longest := min(r.longestTTL(), cfg.LongestTTL)
	t.ttl, warnings, err = framework.CalculateTTL(view, p.ttl, r.TTL, 0, longest, cfg.MaxTTL, time.Time{})
	if err == nil {
		err = r.checkLease(t.ttl)
	}
	return t, warnings, err
}

// checkLease refuses a TTL that leaves no time for a lease, which is up to two
// seconds shorter.
func (r *role) checkLease(ttl time.Duration) error {
	if r.GenerateLease && ttl < minLeasedTTL {
		return fmt.Errorf("ttl %v is too short for a lease; with generate_lease it must be at least %v", ttl, minLeasedTTL)
	}
	return nil
}

// identify says who and what a token is for.
func (r *role) identify(t *tokenRequest, p *credsParams, who caller, agentID, jti string) (err error) {
	t.jti = jti
	for _, id := range []struct {
		name, chosen string
		allowed      []string
		fallback     func() (string, error)
		out          *string
	}{
		{"agent_id", agentID, r.AllowedAgentIDs, func() (string, error) { return r.subjectOf(who, jti) }, &t.subject},
		{"job_id", p.jobID, r.AllowedJobIDs, func() (string, error) { return renderOptional(r.jobID, who, jti) }, &t.jobID},
		{"sandbox_id", p.sandboxID, r.AllowedSandboxIDs, func() (string, error) { return renderOptional(r.sandboxID, who, jti) }, &t.sandboxID},
	} {
		switch {
		case id.chosen == "":
			if *id.out, err = id.fallback(); err != nil {
				return err
			}
		case !strutil.StrListContainsGlob(id.allowed, id.chosen):
			return fmt.Errorf("%s %q is not one that role %q allows; its allowed_%ss say which", id.name, id.chosen, r.name, id.name)
		default:
			*id.out = id.chosen
		}
	}
	return nil
}

// subjectOf is the subject of a caller that chose none.
func (r *role) subjectOf(who caller, jti string) (string, error) {
	if r.subject != nil {
		return r.subject.render(jti, who.entity, who.groups)
	}
	if who.entityID != "" {
		return who.entityID, checkID("entity id", who.entityID)
	}
	if err := checkID("display name", who.displayName); err != nil {
		return "", fmt.Errorf("the caller has no identity entity, and its %w; set the role's subject or allowed_agent_ids", err)
	}
	return who.displayName, nil
}

func renderOptional(t *idTemplate, who caller, jti string) (string, error) {
	if t == nil {
		return "", nil
	}
	return t.render(jti, who.entity, who.groups)
}

// checkGranted refuses what the role doesn't grant.
func (r *role) checkGranted(requested []string) error {
	for _, scope := range requested {
		if !coveredBy(r.granted, scope) {
			return fmt.Errorf("scope %q is not covered by what role %q grants", scope, r.name)
		}
	}
	return nil
}

// narrowRates lowers the role's rates. A key or a window that the role doesn't
// have is refused: the proxy counts all tokens with the same key in one
// bucket, so that it would change the limits of others.
func (r *role) narrowRates(requested map[string]ati.Rate) (map[string]string, error) {
	rates := maps.Clone(r.Rate)
	for _, key := range slices.Sorted(maps.Keys(requested)) {
		want := requested[key]
		have, ok := r.rates[key]
		switch {
		case !ok:
			return nil, fmt.Errorf("rate %q: role %q has no such rate, and a request can't add one", key, r.name)
		case want.Window != have.Window:
			return nil, fmt.Errorf("rate %q: %s is over another window than the role's %s", key, want, have)
		case want.Count > have.Count:
			return nil, fmt.Errorf("rate %q: %s is more than the role's %s", key, want, have)
		}
		rates[key] = ati.Rate{Count: want.Count, Unit: have.Unit}.String()
	}
	return rates, nil
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
