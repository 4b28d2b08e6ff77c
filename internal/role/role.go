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
)

const (
	// agentRefresh is how often Vault Agent reads a secret without a lease anew
	// (static_secret_render_interval), unless it is told otherwise.
	agentRefresh = 5 * time.Minute

	highRate     = 10_000
	minLeasedTTL = 3 * time.Second
)

// roleEntry is a role as it is stored: lists and rates as they were written.
type Entry struct {
	StorageVersion    int               `json:"storage_version"`
	Tools             []string          `json:"tools"`
	Skills            []string          `json:"skills"`
	Scopes            []string          `json:"scopes"`
	Rate              map[string]string `json:"rate"`
	TTL               time.Duration     `json:"ttl"`
	MaxTTL            time.Duration     `json:"max_ttl"` // 0 follows TTL
	Audience          string            `json:"audience"`
	Subject           string            `json:"subject"`
	JobID             string            `json:"job_id"`
	SandboxID         string            `json:"sandbox_id"`
	AllowedAgentIDs   []string          `json:"allowed_agent_ids"`
	AllowedJobIDs     []string          `json:"allowed_job_ids"`
	AllowedSandboxIDs []string          `json:"allowed_sandbox_ids"`
	GenerateLease     bool              `json:"generate_lease"`
	Disabled          bool              `json:"disabled"`
	Description       string            `json:"description"`
}

// role is a roleEntry, parsed once. It is never changed.
type Role struct {
	Entry
	Name      string
	Granted   []string // the token's scopes
	scope     string   // the same, joined
	rates     map[string]ati.Rate
	subject   idClaim // without a template: the caller's entity or display name
	jobID     idClaim
	sandboxID idClaim
}

var Params = param.Set[Entry]{
	param.List("tools", param.Display("Tools", "Grant"),
		"Tools that the token opens, by name or by a pattern such as github:*. tool: is put before names that lack it.",
		func(e *Entry) *[]string { return &e.Tools }),
	param.List("skills", param.Display("Skills", "Grant"),
		"Skills that the token opens, by their exact names. skill: is put before names that lack it.",
		func(e *Entry) *[]string { return &e.Skills }),
	param.List("scopes", param.Display("Scopes", "Grant"),
		"Further scopes, as they stand: * for everything, or a scope that a tool's manifest names.",
		func(e *Entry) *[]string { return &e.Scopes }),
	param.Rates("rate", param.Display("Rates", "Grant"),
		"Rate limits, as pattern=count/unit: tool:github:*=10/hour. Units: s, sec, second, m, min, minute, h, hr, hour, d, day.",
		func(e *Entry) *map[string]string { return &e.Rate }),
	param.Duration("ttl", param.Display("TTL", "Life"),
		"TTL of a token when the request asks for none. Default: 1h, or config's or the mount's maximum where that is lower.",
		func(e *Entry) *time.Duration { return &e.TTL }),
	param.Duration("max_ttl", param.Display("Maximum TTL", "Life"),
		"Longest TTL that a request may ask for. 0 or unset follows ttl.",
		func(e *Entry) *time.Duration { return &e.MaxTTL }),
	param.Text("audience", param.Display("Audience", "Identity"),
		"Audience of the token (claim aud), one that config knows. Unset follows config's audience.",
		func(e *Entry) *string { return &e.Audience }, param.OrEmpty(checkAudience)),
	param.Text("subject", param.Display("Subject", "Identity"),
		"Subject of the token (claim sub): plain, or an identity template such as {{identity.entity.name}}. Default: the caller's entity id, or its display name where it has none.",
		func(e *Entry) *string { return &e.Subject }),
	param.List("allowed_agent_ids", param.Display("Allowed agent ids", "Identity"),
		"Globs of the agent_id that a caller may choose as the subject. Default: none.",
		func(e *Entry) *[]string { return &e.AllowedAgentIDs }, checkGlob),
	param.Text("job_id", param.Display("Job id", "Identity"),
		"Claim job_id, which the proxy's audit file shows: plain, an identity template, or {{jti}} for the id of the Vault request.",
		func(e *Entry) *string { return &e.JobID }),
	param.List("allowed_job_ids", param.Display("Allowed job ids", "Identity"),
		"Globs of the job_id that a caller may set. Default: none.",
		func(e *Entry) *[]string { return &e.AllowedJobIDs }, checkGlob),
	param.Text("sandbox_id", param.Display("Sandbox id", "Identity"),
		"Claim sandbox_id, which the proxy's audit file shows: plain, an identity template, or {{jti}} for the id of the Vault request.",
		func(e *Entry) *string { return &e.SandboxID }),
	param.List("allowed_sandbox_ids", param.Display("Allowed sandbox ids", "Identity"),
		"Globs of the sandbox_id that a caller may set. Default: none.",
		func(e *Entry) *[]string { return &e.AllowedSandboxIDs }, checkGlob),
	param.Flag("generate_lease", param.Display("Generate lease", "Life"),
		"Give each token a Vault lease. Revoking it does nothing to the token. Default: false.",
		func(e *Entry) *bool { return &e.GenerateLease }),
	param.Flag("disabled", param.Display("Disabled", "Role"),
		"Refuse to mint, and keep the role. Default: false.",
		func(e *Entry) *bool { return &e.Disabled }),
	param.Text("description", param.Display("Description", "Role"),
		"What the role is for, for people. At most 1024 bytes.",
		func(e *Entry) *string { return &e.Description }, checkText),
}

// newRoleEntry has the defaults of a role that is created.
func NewEntry(l *Limits, mountMax time.Duration) *Entry {
	e := &Entry{
		Tools: []string{}, Skills: []string{}, Scopes: []string{}, Rate: map[string]string{},
		AllowedAgentIDs: []string{}, AllowedJobIDs: []string{}, AllowedSandboxIDs: []string{},
		TTL: min(ati.DefaultTTL, mountMax),
	}
	if l.MaxTTL > 0 {
		e.TTL = min(e.TTL, l.MaxTTL)
	}
	return e
}

// update sets the given fields, and checks the whole that this makes.
func (e *Entry) Update(name string, given map[string]any, created bool) (*Role, error) {
	if err := Params.Apply(given, e); err != nil {
		return nil, err
	}
	if created && given["max_ttl"] != nil && given["ttl"] == nil && e.MaxTTL > 0 {
		e.TTL = min(e.TTL, e.MaxTTL)
	}
	return e.Parse(name)
}

// parse checks the form of everything in a role.
func (e *Entry) Parse(name string) (r *Role, err error) {
	if err := Params.Valid(e); err != nil {
		return nil, err
	}
	r = &Role{Entry: *e, Name: name}
	if r.Granted, err = scopesOf(e.Tools, e.Skills, e.Scopes); err != nil {
		return nil, err
	}
	if len(r.Granted) == 0 {
		return nil, errors.New("a role grants something: give at least one of tools, skills and scopes")
	}
	r.scope = strings.Join(r.Granted, " ")
	if r.rates, err = parseRates("rate", e.Rate); err != nil {
		return nil, err
	}
	if r.subject, err = newIDClaim("agent_id", "subject", e.Subject, false, e.AllowedAgentIDs); err != nil {
		return nil, err
	}
	if r.jobID, err = newIDClaim("job_id", "job_id", e.JobID, true, e.AllowedJobIDs); err != nil {
		return nil, err
	}
	if r.sandboxID, err = newIDClaim("sandbox_id", "sandbox_id", e.SandboxID, true, e.AllowedSandboxIDs); err != nil {
		return nil, err
	}
	switch {
	case e.TTL <= 0:
		return nil, errors.New("ttl must be at least 1s")
	case e.MaxTTL > 0 && e.TTL > e.MaxTTL:
		return nil, fmt.Errorf("ttl %v is longer than the role's max_ttl %v", e.TTL, e.MaxTTL)
	}
	return r, nil
}

// checkName refuses the name of a new role that is too long for storage, or a key.
func CheckName(name string) error {
	switch {
	case param.HoldsKey(name, true):
		return errors.New("the role's name looks like a key or a token, and is for neither")
	case len(name) > MaxNameBytes:
		return fmt.Errorf("the role's name has %d bytes; at most %d are allowed", len(name), MaxNameBytes)
	}
	return nil
}

// fits refuses a role that goes beyond config or mount.
func (r *Role) Fits(l *Limits, mountMax time.Duration) error {
	longest, field := r.LongestTTL(), "max_ttl"
	if r.MaxTTL == 0 {
		field = "ttl"
	}
	switch {
	case l.MaxTTL > 0 && longest > l.MaxTTL:
		return fmt.Errorf("%s %v is longer than config's max_ttl %v", field, longest, l.MaxTTL)
	case longest > mountMax:
		return fmt.Errorf("%s %v is longer than the mount's maximum %v; to raise that: vault secrets tune -max-lease-ttl=… <mount>", field, longest, mountMax)
	}
	if err := r.checkLease(r.TTL); err != nil {
		return err
	}
	if err := l.CheckCeiling(r.Granted); err != nil {
		return err
	}
	return r.CheckAudience(l)
}

func (r *Role) CheckAudience(l *Limits) error {
	if r.Audience == "" || l.knowsAudience(r.Audience) {
		return nil
	}
	return fmt.Errorf("audience %q is none of config's (%s); accepted_audiences of config takes further ones", r.Audience, strings.Join(l.Audiences(), ", "))
}

func (r *Role) CheckEnabled() error {
	if r.Disabled {
		return fmt.Errorf("role %q is disabled; disabled=false enables it", r.Name)
	}
	return nil
}

// longestTTL is what a token of this role can have, as far as the role goes.
func (r *Role) LongestTTL() time.Duration { return max(r.TTL, r.MaxTTL) }

// warnings tells what is legal, and useless or wider than it looks.
func (r *Role) Warnings(size int) []string {
	var w []string
	warn := func(format string, args ...any) { w = append(w, fmt.Sprintf(format, args...)) }
	for _, scope := range r.Granted {
		if strings.Contains(scope, ",") {
			warn("scope %q is one name with a comma in it; to give several in a list, give each as an item of its own", scope)
		}
		name, isTool := strings.CutPrefix(scope, "tool:")
		provider, tool, old := strings.Cut(name, "__")
		prefix, wildcard := strings.CutSuffix(name, "*")
		underscore := strings.LastIndexByte(prefix, '_')
		switch {
		case isTool && old && provider != "" && !strings.Contains(name, ":"):
			warn("scope %q opens no tool of a provider on a proxy since ati 0.2.0, which calls them %q", scope, "tool:"+provider+":"+tool)
		case isTool && wildcard && underscore > 0 && !strings.Contains(prefix, ":"):
			warn("scope %q opens also what %q would: the proxy tries a provider's tools with an underscore for the colon too", scope, "tool:"+prefix[:underscore]+":"+prefix[underscore+1:]+"*")
		case strings.HasPrefix(scope, "skill:") && strings.HasSuffix(scope, "*"):
			warn("scope %q opens no skill: the proxy matches skills by their exact names", scope)
		}
	}
	for _, key := range slices.Sorted(maps.Keys(r.rates)) {
		if !touches(key, r.Granted) {
			warn("rate %q is for no scope of this role; it limits only a tool whose scope in the manifest is not its name", key)
		}
		if alias := ati.LegacyAlias(key); alias != "" && !r.limitsAsMuch(alias, r.rates[key]) {
			warn("rate %q doesn't limit calls that spell the tool with an underscore; add the same rate for %q", key, alias)
		}
		if r.rates[key].Count > highRate {
			warn("rate %q allows %d calls; the proxy keeps the time of each", key, r.rates[key].Count)
		}
	}
	if r.TTL <= agentRefresh && !r.GenerateLease {
		warn("ttl %v is not longer than the %v after which Vault Agent reads a new token by default; set its static_secret_render_interval to about 0.7 of the ttl", r.TTL, agentRefresh)
	}
	if r.GenerateLease {
		warn("revoking a lease does not revoke its token: that lives until it expires")
	}
	if size > WarnTokenBytes {
		warn("a token of this role has %d bytes; over %d some HTTP servers refuse the request", size, WarnTokenBytes)
	}
	return w
}

// limitsAsMuch reports whether one of the role's rates limits the calls that
// the key matches at least as much as the rate does.
func (r *Role) limitsAsMuch(key string, rate ati.Rate) bool {
	for k, have := range r.rates {
		if ati.Covers(k, key) && have.Window == rate.Window && have.Count <= rate.Count {
			return true
		}
	}
	return false
}

// touches reports whether a rate key can match a call that one of the scopes
// opens, in either spelling. A scope that is neither a tool's nor a skill's
// may stand in the manifest of any tool.
func touches(key string, granted []string) bool {
	spellings := func(pattern string) []string {
		if alias := ati.LegacyAlias(pattern); alias != "" {
			return []string{pattern, alias}
		}
		return []string{pattern}
	}
	overlap := func(a, b string) bool {
		return ati.MatchesWildcard(strings.TrimSuffix(a, "*"), b) || ati.MatchesWildcard(strings.TrimSuffix(b, "*"), a)
	}
	for _, scope := range granted {
		switch {
		case strings.HasPrefix(scope, "skill:") || scope == "help":
			continue
		case !strings.HasPrefix(scope, "tool:"):
			return true
		}
		for _, k := range spellings(key) {
			for _, s := range spellings(scope) {
				if overlap(k, s) {
					return true
				}
			}
		}
	}
	return false
}

// checkLease refuses a TTL that leaves no time for a lease, which is up to two
// seconds shorter.
func (r *Role) checkLease(ttl time.Duration) error {
	if r.GenerateLease && ttl < minLeasedTTL {
		return fmt.Errorf("ttl %v is too short for a lease; with generate_lease it must be at least %v", ttl, minLeasedTTL)
	}
	return nil
}
