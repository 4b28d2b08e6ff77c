// Package role decides what a role grants, and how a request narrows it: values in,
// values out.
package role

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"vault-plugin-secrets-ati/ati"
	"vault-plugin-secrets-ati/internal/param"
)

const minLeasedTTL = 3 * time.Second // a lease is up to two seconds shorter than its token

// Entry is a role as it is stored: lists and rates as they were written.
type Entry struct {
	StorageVersion    int               `json:"storage_version"`
	Tools             []string          `json:"tools"`
	Skills            []string          `json:"skills"`
	Scopes            []string          `json:"scopes"`
	Rate              map[string]string `json:"rate"`
	TTL               time.Duration     `json:"ttl"`
	MaxTTL            time.Duration     `json:"max_ttl"` // 0: the same as TTL
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

// Role is a parsed Entry. It is never changed.
type Role struct {
	Entry
	Name    string
	granted []string // scope patterns of a token that is not narrowed
	scope   string   // granted, joined with spaces
	rates   map[string]ati.Rate
	ids     [idCount]idClaim
}

// Params are the fields of a role: parameters of a write, and fields of a read.
var Params = param.Set[Entry]{
	param.List("tools", param.Display("Tools", "Grant"),
		"Tools that the token may call, by name or pattern, such as github:*. The `tool:` prefix is added if missing.",
		func(e *Entry) *[]string { return &e.Tools }, checkTool),
	param.List("skills", param.Display("Skills", "Grant"),
		"Skills that the token may use, by exact name. The `skill:` prefix is added if missing.",
		func(e *Entry) *[]string { return &e.Skills }, checkSkill),
	param.List("scopes", param.Display("Scopes", "Grant"),
		"Additional scopes, used verbatim: * for every tool and skill, or a scope from a tool's manifest.",
		func(e *Entry) *[]string { return &e.Scopes }, checkScope),
	param.Rates("rate", param.Display("Rates", "Grant"),
		"Rate limits, as pattern=count/unit, such as tool:github:*=10/hour. Units: s, sec, second, m, min, minute, h, hr, hour, d, day.",
		func(e *Entry) *map[string]string { return &e.Rate }, checkRateKey),
	param.Duration("ttl", param.Display("TTL", "Life"),
		"Default TTL of a token. Defaults to 1h, or to the maximum of the config or mount if lower.",
		func(e *Entry) *time.Duration { return &e.TTL }),
	param.Duration("max_ttl", param.Display("Maximum TTL", "Life"),
		"Maximum TTL that a request can set. 0 means the same as ttl.",
		func(e *Entry) *time.Duration { return &e.MaxTTL }),
	param.Text("audience", param.Display("Audience", "Identity"),
		"Audience of the token (claim `aud`): the audience or one of the accepted_audiences of the config. If empty, the audience of the config is used.",
		func(e *Entry) *string { return &e.Audience }, param.OrEmpty(checkAudience)),
	param.Text("subject", param.Display("Subject", "Identity"),
		"Subject of the token (claim `sub`): an ID, or an identity template such as {{identity.entity.name}}. If empty, the subject is the caller's entity ID, or its display name if it has no entity.",
		func(e *Entry) *string { return &e.Subject }, checkText, checkVariable).MayHoldHex(),
	param.List("allowed_agent_ids", param.Display("Allowed agent IDs", "Identity"),
		"Globs of the agent_id that a caller may choose as the subject. If empty, a caller cannot choose one.",
		func(e *Entry) *[]string { return &e.AllowedAgentIDs }, checkGlob).MayHoldHex(),
	param.Text("job_id", param.Display("Job ID", "Identity"),
		"Claim `job_id`, which appears in the proxy's audit file: an ID, an identity template, or {{jti}} for the ID of the Vault request.",
		func(e *Entry) *string { return &e.JobID }, checkText, checkVariable).MayHoldHex(),
	param.List("allowed_job_ids", param.Display("Allowed job IDs", "Identity"),
		"Globs of the job_id that a caller may set. If empty, a caller cannot set one.",
		func(e *Entry) *[]string { return &e.AllowedJobIDs }, checkGlob).MayHoldHex(),
	param.Text("sandbox_id", param.Display("Sandbox ID", "Identity"),
		"Claim `sandbox_id`, which appears in the proxy's audit file: an ID, an identity template, or {{jti}} for the ID of the Vault request.",
		func(e *Entry) *string { return &e.SandboxID }, checkText, checkVariable).MayHoldHex(),
	param.List("allowed_sandbox_ids", param.Display("Allowed sandbox IDs", "Identity"),
		"Globs of the sandbox_id that a caller may set. If empty, a caller cannot set one.",
		func(e *Entry) *[]string { return &e.AllowedSandboxIDs }, checkGlob).MayHoldHex(),
	param.Bool("generate_lease", param.Display("Generate lease", "Life"),
		"Whether to create a lease for each token. With guarded=true in the config, revoking the lease revokes the token, and so does the end of the Vault token that requested it. Otherwise the token remains valid until it expires. Defaults to false.",
		func(e *Entry) *bool { return &e.GenerateLease }),
	param.Bool("disabled", param.Display("Disabled", "Role"),
		"Whether to reject requests for tokens while keeping the role. Defaults to false.",
		func(e *Entry) *bool { return &e.Disabled }),
	param.Text("description", param.Display("Description", "Role"),
		"Description of the role, at most 1024 bytes.",
		func(e *Entry) *string { return &e.Description }, checkText, checkControl).MayHoldHex(),
}

// NewEntry returns a new role with its default TTL. It grants nothing.
func NewEntry(b Bounds) *Entry {
	e := &Entry{
		Tools: []string{}, Skills: []string{}, Scopes: []string{}, Rate: map[string]string{},
		AllowedAgentIDs: []string{}, AllowedJobIDs: []string{}, AllowedSandboxIDs: []string{},
		TTL: min(ati.DefaultTTL, b.MountTTL),
	}
	if b.MaxTTL > 0 {
		e.TTL = min(e.TTL, b.MaxTTL)
	}
	return e
}

// Update sets the fields that a request has, and parses the result. A field that is
// null in a patch gets its value in fresh, a new role.
func (e *Entry) Update(name string, raw map[string]any, fresh *Entry) (*Role, error) {
	Params.Reset(raw, e, fresh)
	if err := Params.Apply(raw, e); err != nil {
		return nil, err
	}
	if _, written := raw["ttl"]; e.MaxTTL > 0 && (e == fresh && !written || written && raw["ttl"] == nil) {
		e.TTL = min(e.TTL, e.MaxTTL)
	}
	return e.Parse(name)
}

// Parse returns the parsed role. Whether it is within the config and the mount is for
// CheckLimits.
func (e *Entry) Parse(name string) (r *Role, err error) {
	r = &Role{Entry: *e, Name: name, granted: scopesOf(e.Tools, e.Skills, e.Scopes)}
	for _, scope := range r.granted {
		if err := checkStored(scope); err != nil {
			return nil, err
		}
	}
	if r.rates, err = parseRates(e.Rate); err != nil {
		return nil, err
	}
	if r.ids, err = e.idClaims(); err != nil {
		return nil, err
	}
	switch {
	case len(r.granted) == 0:
		return nil, errors.New("at least one of tools, skills, or scopes is required")
	case e.TTL <= 0:
		return nil, errors.New("ttl must be at least 1s")
	case e.MaxTTL > 0 && e.TTL > e.MaxTTL:
		return nil, fmt.Errorf("ttl %v is longer than max_ttl %v of the role", e.TTL, e.MaxTTL)
	}
	r.scope = strings.Join(r.granted, " ")
	return r, nil
}

// CheckLimits reports why an enabled role cannot be stored: a TTL beyond the config or
// the mount, or an obstacle to minting all that it grants.
func (r *Role) CheckLimits(b Bounds) error {
	longest, field := r.LongestTTL(), "max_ttl"
	if r.MaxTTL == 0 {
		field = "ttl"
	}
	switch {
	case b.MaxTTL > 0 && longest > b.MaxTTL:
		return fmt.Errorf("%s %v is longer than max_ttl %v of the config", field, longest, b.MaxTTL)
	case longest > b.MountTTL:
		return fmt.Errorf("%s %v is longer than the mount's maximum TTL %v; lower it, or raise the maximum with vault secrets tune -max-lease-ttl", field, longest, b.MountTTL)
	}
	return cmp.Or(r.obstacles(b.Limits, r.granted, r.TTL)...)
}

// LongestTTL returns the longest TTL that a token of this role can have.
func (e *Entry) LongestTTL() time.Duration { return max(e.TTL, e.MaxTTL) }

// obstacles returns each reason why no token with these scopes and this TTL can be
// minted. They are checked when a role is written, when a token is minted, and by
// check.
func (r *Role) obstacles(l *Limits, scopes []string, ttl time.Duration) (reasons []error) {
	if r.Disabled {
		reasons = append(reasons, fmt.Errorf("role %q is disabled", r.Name))
	}
	if r.Audience != "" && r.Audience != l.Audience && !slices.Contains(l.AcceptedAudiences, r.Audience) {
		reasons = append(reasons, fmt.Errorf("audience %q of role %q is not allowed on this mount (allowed: %s); add it to accepted_audiences in the config", r.Audience, r.Name, strings.Join(l.Audiences(), ", ")))
	}
	if err := l.checkScopes(scopes); err != nil {
		reasons = append(reasons, err)
	}
	if r.GenerateLease && ttl < minLeasedTTL {
		reasons = append(reasons, fmt.Errorf("ttl %v is too short for a lease; with generate_lease=true it must be at least %v", ttl, minLeasedTTL))
	}
	return reasons
}
