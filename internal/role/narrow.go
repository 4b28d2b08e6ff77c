package role

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"vault-plugin-secrets-ati/ati"
	"vault-plugin-secrets-ati/internal/param"
)

const (
	// FormatEnv is the format that returns a sandbox's environment variables.
	FormatEnv = "env"

	maxBatch = 1000
)

// Request is what a caller asks of a role. A field that the request does not have is
// empty.
type Request struct {
	AgentIDs []string // of a batch
	ProxyURL string
	Format   string

	ids                   ids // chosen by the caller
	ttl                   time.Duration
	tools, skills, scopes []string
	rate                  map[string]string

	granted []string // scope patterns of tools, skills, and scopes
	rates   map[string]ati.Rate
}

// narrowParams are the parameters that creds and batch share.
var narrowParams = param.Set[Request]{
	param.Duration("ttl", param.Display("TTL", "Narrow"),
		"TTL of the token. Capped at the maximum of the role, config, and mount, with a warning.",
		func(r *Request) *time.Duration { return &r.ttl }).
		Checked(func(r *Request) error {
			if r.ttl == 0 {
				return errors.New("ttl must be at least 1s")
			}
			return nil
		}),
	param.List("tools", param.Display("Tools", "Narrow"),
		"Tools that the token may call, of those that the role grants. If any of tools, skills, or scopes is set, the token contains only the values you list.",
		func(r *Request) *[]string { return &r.tools }, checkTool),
	param.List("skills", param.Display("Skills", "Narrow"), "Skills that the token may use, of those that the role grants.",
		func(r *Request) *[]string { return &r.skills }, checkSkill),
	param.List("scopes", param.Display("Scopes", "Narrow"), "Scopes of the token, of those that the role grants.",
		func(r *Request) *[]string { return &r.scopes }, checkScope),
	param.Rates("rate", param.Display("Rates", "Narrow"), "Lower counts for rates of the role, over the same window.",
		func(r *Request) *map[string]string { return &r.rate }, checkRateKey),
	param.Text("proxy_url", param.Display("Proxy URL", "Proxy"),
		"URL of the proxy that will receive the token. Selects the current or previous key version; fails if neither is configured for this URL.",
		func(r *Request) *string { return &r.ProxyURL }),
}.Filled()

// CredsParams are the parameters of creds.
var CredsParams = slices.Concat(narrowParams, param.Set[Request]{
	param.Text("agent_id", param.Display("Agent ID", "Identity"), "Subject (claim `sub`) of the token. Must match one of the role's allowed_agent_ids. Defaults to the subject of the role, or else the ID of the caller's entity.",
		func(r *Request) *string { return &r.ids[subject] }, CheckID).MayHoldHex(),
	param.Text("job_id", param.Display("Job ID", "Identity"), "Claim `job_id`. Must match one of the role's allowed_job_ids.",
		func(r *Request) *string { return &r.ids[jobID] }, CheckID).MayHoldHex(),
	param.Text("sandbox_id", param.Display("Sandbox ID", "Identity"), "Claim `sandbox_id`. Must match one of the role's allowed_sandbox_ids.",
		func(r *Request) *string { return &r.ids[sandboxID] }, CheckID).MayHoldHex(),
	param.Text("format", param.Display("Format", "Response"), "Set to env to return only ATI_PROXY_URL and ATI_SESSION_TOKEN.",
		func(r *Request) *string { return &r.Format }, checkFormat).AllowedValues(FormatEnv),
}.Filled())

// BatchParams are the parameters of batch.
var BatchParams = slices.Concat(narrowParams, param.Set[Request]{
	param.IDs("agent_ids", param.Display("Agent IDs", "Identity"),
		"Subjects of the tokens, at most 1000. Each must match one of the role's allowed_agent_ids.",
		func(r *Request) *[]string { return &r.AgentIDs }, maxBatch, CheckID).MayHoldHex().
		Required(": the subjects of the tokens, such as agent_ids=sandbox:1,sandbox:2"),
}.Filled())

func checkFormat(field, value string) error {
	if value != FormatEnv {
		return fmt.Errorf("%s %q: must be %q or omitted; to choose the output of the CLI, put -format before the path", field, value, FormatEnv)
	}
	return nil
}

// Parse reads the parameters of a request.
func (r *Request) Parse(ps param.Set[Request], raw map[string]any) (err error) {
	if err = ps.Apply(raw, r); err != nil {
		return err
	}
	if r.ProxyURL != "" {
		if r.ProxyURL, err = param.ParseProxyURL(r.ProxyURL); err != nil {
			return err
		}
	}
	r.granted = scopesOf(r.tools, r.skills, r.scopes)
	r.rates, err = parseRates(r.rate)
	return err
}

// AgentID returns the subject that the caller chose, or "".
func (r *Request) AgentID() string { return r.ids[subject] }

// IdentityNeeded returns what the templates need that this request renders.
func (r *Role) IdentityNeeded(request *Request) (need IdentityNeed) {
	chosen := request.ids
	if len(request.AgentIDs) > 0 {
		chosen[subject] = request.AgentIDs[0]
	}
	for i, c := range r.ids {
		need = max(need, c.needs(chosen[i]))
	}
	return need
}

// Draft is a token before it is signed, except for the claims that the config sets.
type Draft struct {
	scope string
	rate  map[string]string
	ttl   time.Duration
	ids   ids
	jti   string
	now   time.Time
}

// Claims returns the claims of the token.
func (t Draft) Claims(l *Limits, r *Role) *ati.Claims {
	iat := t.now.Unix()
	return &ati.Claims{
		Subject: t.ids[subject], Audience: cmp.Or(r.Audience, l.Audience), IssuedAt: iat, ExpiresAt: iat + param.Seconds(t.ttl), Scope: t.scope,
		Issuer: l.Issuer, ID: t.jti, ATI: &ati.Namespace{Version: 1, Rate: t.rate}, JobID: t.ids[jobID], SandboxID: t.ids[sandboxID],
	}
}

// Narrow applies a request to the role. The draft has everything but its IDs. An error
// says what the role, the config, or the mount does not allow.
func (r *Role) Narrow(b Bounds, request *Request, now time.Time) (t Draft, warnings []string, err error) {
	t = Draft{scope: r.scope, rate: r.Rate, now: now}
	scopes := r.granted
	if len(request.granted) > 0 {
		scopes, t.scope = request.granted, strings.Join(request.granted, " ")
	}
	for _, scope := range request.granted {
		if !covers(r.granted, scope) {
			return t, nil, fmt.Errorf("scope %q is not granted by role %q", scope, r.Name)
		}
	}
	if t.ttl, warnings, err = r.cappedTTL(b, request.ttl); err != nil {
		return t, nil, err
	}
	if err = cmp.Or(r.obstacles(b.Limits, scopes, t.ttl)...); err != nil {
		return t, nil, err
	}
	if len(request.rates) > 0 {
		t.rate, err = r.narrowRates(request.rates)
	}
	return t, warnings, err
}

// Obstacles returns each reason why no token can be minted with all that the role
// grants.
func (r *Role) Obstacles(b Bounds) []error {
	ttl, _, err := r.cappedTTL(b, 0)
	if err != nil {
		return []error{err}
	}
	return r.obstacles(b.Limits, r.granted, ttl)
}

// Match returns the scope patterns of the role that allow a scope and, if it is not a
// skill's, the rates that limit calls of the tool with this scope as its name.
func (r *Role) Match(required string) (scopes []string, rates map[string]string) {
	rates = map[string]string{}
	for key, rate := range r.Rate {
		if !strings.HasPrefix(required, "skill:") && ati.MatchesWildcard(required, key) {
			rates[key] = rate
		}
	}
	return append([]string{}, ati.Matches(r.granted, required)...), rates
}

// cappedTTL returns the TTL of a token. It does not exceed b.LongestTTL, which may be
// older than the role: tokens_expire_by is computed from it.
func (r *Role) cappedTTL(b Bounds, requested time.Duration) (time.Duration, []string, error) {
	view := logical.StaticSystemView{MaxLeaseTTLVal: b.MountTTL, DefaultLeaseTTLVal: b.MountTTL}
	return framework.CalculateTTL(view, requested, r.TTL, 0, min(r.LongestTTL(), b.LongestTTL), b.MaxTTL, time.Time{})
}

// Identify sets the IDs of a token. agentID is the subject that the caller chose, or "".
func (r *Role) Identify(t *Draft, request *Request, who Caller, agentID, jti string) (err error) {
	t.jti = jti
	chosen := request.ids
	chosen[subject] = agentID
	for i := range r.ids {
		if t.ids[i], err = r.ids[i].value(r.Name, chosen[i], who, jti); err != nil {
			return err
		}
	}
	if t.ids[subject] == "" {
		t.ids[subject], err = who.subject()
	}
	return err
}

// narrowRates lowers rates of the role. A key or a window that the role does not have
// is an error: the proxy counts the calls of all tokens with the same key together, so
// it would change the limits of other tokens.
func (r *Role) narrowRates(requested map[string]ati.Rate) (map[string]string, error) {
	rates := maps.Clone(r.Rate)
	for _, key := range slices.Sorted(maps.Keys(requested)) {
		want := requested[key]
		have, ok := r.rates[key]
		switch {
		case !ok:
			return nil, fmt.Errorf("rate %q is not defined on role %q; a request can only lower existing rates", key, r.Name)
		case want.Window != have.Window:
			return nil, fmt.Errorf("rate %q: %s has a different window than %s of the role", key, want, have)
		case want.Count > have.Count:
			return nil, fmt.Errorf("rate %q: %s is higher than %s of the role", key, want, have)
		}
		rates[key] = ati.Rate{Count: want.Count, Unit: have.Unit}.String()
	}
	return rates, nil
}

// TokenSize returns the size in bytes of a token with all that the role grants. IDs
// that are not known yet count as 36 bytes.
func (r *Role) TokenSize(l *Limits, key ati.Key, now time.Time) (int, error) {
	t := Draft{scope: r.scope, rate: r.Rate, ttl: r.TTL, jti: sampleUUID, now: now}
	for i, c := range r.ids {
		t.ids[i] = c.sample()
	}
	t.ids[subject] = cmp.Or(t.ids[subject], sampleUUID)
	token, err := key.Sign(t.Claims(l, r))
	return len(token), err
}
