package role

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
	"vault-plugin-secrets-ati/ati"
	"vault-plugin-secrets-ati/internal/param"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"
)

// tokenSize is the size of a token as the role grants it, with ids of 36 bytes
// where they are not known yet.
func (r *Role) TokenSize(l *Limits, key ati.Key, now time.Time) (int, error) {
	subject := r.subject.sample()
	if subject == "" {
		subject = sampleUUID
	}
	t := Draft{
		scope: r.scope, rate: r.Rate, ttl: r.TTL, subject: subject, jobID: r.jobID.sample(), sandboxID: r.sandboxID.sample(), jti: sampleUUID,
		now: now,
	}
	token, err := key.Sign(t.Claims(l, r))
	return len(token), err
}

const (
	FormatEnv = "env"
	maxBatch  = 1000
)

// mintParams are what a request for tokens asks for. What was not given is empty.
type Request struct {
	AgentID, jobID, sandboxID string
	AgentIDs                  []string // of a batch, which has no agentID
	ttl                       time.Duration
	tools, skills, scopes     []string
	rate                      map[string]string
	ProxyURL                  string
	Format                    string

	granted []string // of tools, skills and scopes; empty: all that the role grants
	rates   map[string]ati.Rate
}

// narrowParams are those of creds and batch.
var narrowParams = param.Set[Request]{
	param.Duration("ttl", param.Display("TTL", "Narrow"),
		"TTL of the token. Longer than the role, config or mount allow is cut to that, with a warning.",
		func(p *Request) *time.Duration { return &p.ttl }).
		Checked(func(p *Request) error {
			if p.ttl == 0 {
				return errors.New("ttl must be at least 1s")
			}
			return nil
		}),
	param.List("tools", param.Display("Tools", "Narrow"),
		"Fewer tools than the role grants. With tools, skills or scopes given, the token has just what is given.",
		func(p *Request) *[]string { return &p.tools }),
	param.List("skills", param.Display("Skills", "Narrow"), "Fewer skills than the role grants.",
		func(p *Request) *[]string { return &p.skills }),
	param.List("scopes", param.Display("Scopes", "Narrow"), "Fewer scopes than the role grants.",
		func(p *Request) *[]string { return &p.scopes }),
	param.Rates("rate", param.Display("Rates", "Narrow"), "Lower counts for rates that the role has, over the same window.",
		func(p *Request) *map[string]string { return &p.rate }),
	param.Text("proxy_url", param.Display("Proxy URL", "Proxy"),
		"Mint for the proxy at this address, with the current or the previous version of the key, and fail if neither is for it.",
		func(p *Request) *string { return &p.ProxyURL }).
		Checked(func(p *Request) (err error) { p.ProxyURL, err = param.ParseProxyURL(p.ProxyURL); return err }),
}.Filled()

var CredsParams = slices.Concat(narrowParams, param.Set[Request]{
	param.Text("agent_id", param.Display("Agent id", "Identity"), "Subject of the token, where the role's allowed_agent_ids have it.",
		func(p *Request) *string { return &p.AgentID }, checkID),
	param.Text("job_id", param.Display("Job id", "Identity"), "Claim job_id, where the role's allowed_job_ids have it.",
		func(p *Request) *string { return &p.jobID }, checkID),
	param.Text("sandbox_id", param.Display("Sandbox id", "Identity"), "Claim sandbox_id, where the role's allowed_sandbox_ids have it.",
		func(p *Request) *string { return &p.sandboxID }, checkID),
	param.Text("format", param.Display("Format", "Answer"), "env answers with ATI_PROXY_URL and ATI_SESSION_TOKEN only.",
		func(p *Request) *string { return &p.Format }, checkFormat).OneOf(FormatEnv),
}.Filled())

var BatchParams = slices.Concat(narrowParams, param.Set[Request]{
	param.Ids("agent_ids", param.Display("Agent ids", "Identity"),
		"Subjects of the tokens, each one that the role's allowed_agent_ids have. At most 1000.",
		func(p *Request) *[]string { return &p.AgentIDs }, maxBatch, checkID).Required(": the subjects of the tokens, as in agent_ids=sandbox:1,sandbox:2"),
}.Filled())

func checkFormat(field, value string) error {
	if value != FormatEnv {
		return fmt.Errorf("%s %q: must be %q, or left out (-format=json, before the path, is the CLI's own)", field, value, FormatEnv)
	}
	return nil
}

// parse reads what a request gives.
func (p *Request) Parse(ps param.Set[Request], given map[string]any) (err error) {
	if err = ps.Apply(given, p); err != nil {
		return err
	}
	if p.granted, err = scopesOf(p.tools, p.skills, p.scopes); err != nil {
		return err
	}
	p.rates, err = parseRates("rate", p.rate)
	return err
}

// identityNeeded is what the templates need that this mint renders.
func (r *Role) IdentityNeeded(p *Request) IdentityNeed {
	agentID := p.AgentID
	if len(p.AgentIDs) > 0 {
		agentID = p.AgentIDs[0]
	}
	return max(r.subject.needs(agentID), r.jobID.needs(p.jobID), r.sandboxID.needs(p.sandboxID))
}

// draft is a token before it is signed, beside what config says.
type Draft struct {
	scope                          string
	rate                           map[string]string
	ttl                            time.Duration
	subject, jobID, sandboxID, jti string
	now                            time.Time
}

func (t Draft) Claims(l *Limits, r *Role) *ati.Claims {
	audience := r.Audience
	if audience == "" {
		audience = l.Audience
	}
	iat := t.now.Unix()
	return &ati.Claims{
		Subject: t.subject, Audience: audience, IssuedAt: iat, ExpiresAt: iat + param.Seconds(t.ttl), Scope: t.scope,
		Issuer: l.Issuer, ID: t.jti, ATI: &ati.Namespace{Version: 1, Rate: t.rate}, JobID: t.jobID, SandboxID: t.sandboxID,
	}
}

// narrow is what a token has beside its ids. Its errors are the caller's to
// mend.
func (r *Role) Narrow(l *Limits, p *Request, now time.Time, longestEver, mountMax time.Duration) (t Draft, warnings []string, err error) {
	if err := r.CheckEnabled(); err != nil {
		return t, nil, err
	}
	if err := r.CheckAudience(l); err != nil {
		return t, nil, fmt.Errorf("role %q: %w", r.Name, err)
	}
	t = Draft{scope: r.scope, rate: r.Rate, now: now}
	granted := r.Granted
	if len(p.granted) > 0 {
		if err := r.checkGranted(p.granted); err != nil {
			return t, nil, err
		}
		granted, t.scope = p.granted, strings.Join(p.granted, " ")
	}
	if err := l.CheckCeiling(granted); err != nil {
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
	longest := min(r.LongestTTL(), longestEver)
	t.ttl, warnings, err = framework.CalculateTTL(view, p.ttl, r.TTL, 0, longest, l.MaxTTL, time.Time{})
	if err == nil {
		err = r.checkLease(t.ttl)
	}
	return t, warnings, err
}

// identify says who and what a token is for.
func (r *Role) Identify(t *Draft, p *Request, who Caller, agentID, jti string) (err error) {
	t.jti = jti
	if t.subject, err = r.subject.value(r.Name, agentID, who, jti); err != nil {
		return err
	}
	if t.subject == "" {
		if t.subject, err = who.subject(); err != nil {
			return err
		}
	}
	if t.jobID, err = r.jobID.value(r.Name, p.jobID, who, jti); err != nil {
		return err
	}
	t.sandboxID, err = r.sandboxID.value(r.Name, p.sandboxID, who, jti)
	return err
}

// checkGranted refuses what the role doesn't grant.
func (r *Role) checkGranted(requested []string) error {
	for _, scope := range requested {
		if !coveredBy(r.Granted, scope) {
			return fmt.Errorf("scope %q is not covered by what role %q grants", scope, r.Name)
		}
	}
	return nil
}

// narrowRates lowers the role's rates. A key or a window that the role doesn't
// have is refused: the proxy counts all tokens with the same key in one
// bucket, so that it would change the limits of others.
func (r *Role) narrowRates(requested map[string]ati.Rate) (map[string]string, error) {
	rates := maps.Clone(r.Rate)
	for _, key := range slices.Sorted(maps.Keys(requested)) {
		want := requested[key]
		have, ok := r.rates[key]
		switch {
		case !ok:
			return nil, fmt.Errorf("rate %q: role %q has no such rate, and a request can't add one", key, r.Name)
		case want.Window != have.Window:
			return nil, fmt.Errorf("rate %q: %s is over another window than the role's %s", key, want, have)
		case want.Count > have.Count:
			return nil, fmt.Errorf("rate %q: %s is more than the role's %s", key, want, have)
		}
		rates[key] = ati.Rate{Count: want.Count, Unit: have.Unit}.String()
	}
	return rates, nil
}
