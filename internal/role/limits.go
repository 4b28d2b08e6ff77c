package role

import (
	"fmt"
	"strings"
	"time"

	"vault-plugin-secrets-ati/ati"
	"vault-plugin-secrets-ati/internal/param"
)

// Limits is the part of the config that applies to the tokens of all roles.
type Limits struct {
	Audience          string        `json:"audience"`
	AcceptedAudiences []string      `json:"accepted_audiences"`
	Issuer            string        `json:"issuer"`
	AllowedScopes     []string      `json:"allowed_scopes"`
	MaxTTL            time.Duration `json:"max_ttl"` // 0: no limit

	// AllowStandbyMinting lets standby nodes mint tokens.
	AllowStandbyMinting bool `json:"allow_standby_minting,omitempty"`

	// Guarded states that all proxies run behind a guard.
	Guarded bool `json:"guarded,omitempty"`
}

// LimitParams are the parameters of config that set Limits.
var LimitParams = param.Set[Limits]{
	param.Text("audience", param.Display("Audience", "Claims"),
		"Audience of the tokens (claim `aud`), unless a role sets a different one.",
		func(l *Limits) *string { return &l.Audience }, checkAudience).Default(ati.DefaultAudience),
	param.List("accepted_audiences", param.Display("Accepted audiences", "Claims"),
		"Additional audiences that a role may set.",
		func(l *Limits) *[]string { return &l.AcceptedAudiences }, checkAudience),
	param.Text("issuer", param.Display("Issuer", "Claims"),
		"Issuer of the tokens (claim `iss`). If empty, tokens have no issuer.",
		func(l *Limits) *string { return &l.Issuer }, param.OrEmpty(checkAudience)).Default(ati.DefaultIssuer),
	param.List("allowed_scopes", param.Display("Allowed scopes", "Ceiling"),
		"Scope patterns, such as tool:github:*, that limit what roles may grant. If empty, there is no limit.",
		func(l *Limits) *[]string { return &l.AllowedScopes }, CheckPattern),
	param.Duration("max_ttl", param.Display("Maximum TTL", "Ceiling"),
		"Maximum TTL of a token, whatever its role allows. 0 means no limit.",
		func(l *Limits) *time.Duration { return &l.MaxTTL }),
	param.Bool("allow_standby_minting", param.Display("Allow standby minting", "Cluster"),
		"Whether standby nodes that serve reads answer creds, batch, and check, instead of forwarding them to the active node. The state of a standby is typically at most 0.25s old, but has no bound after some faults, so previous_tokens_expire_by is not guaranteed. Defaults to false.",
		func(l *Limits) *bool { return &l.AllowStandbyMinting }),
	param.Bool("guarded", param.Display("Guarded", "Proxy"),
		"States that every proxy of this mount runs behind ati-guard, so that revocations take effect there within seconds, and that revoking a lease revokes its token. Defaults to false.",
		func(l *Limits) *bool { return &l.Guarded }),
}

// NewLimits returns the limits of a new config.
func NewLimits() Limits {
	return Limits{Audience: ati.DefaultAudience, AcceptedAudiences: []string{}, Issuer: ati.DefaultIssuer, AllowedScopes: []string{}}
}

// Warnings returns warnings about patterns that allow less than they appear to.
func (l *Limits) Warnings() (warnings []string) {
	for _, pattern := range l.AllowedScopes {
		if strings.HasPrefix(pattern, "skill:") && strings.HasSuffix(pattern, "*") {
			warnings = append(warnings, fmt.Sprintf("allowed_scopes %q allows no skill: the proxy matches skills by exact name.", pattern))
		}
	}
	if l.AllowStandbyMinting {
		warnings = append(warnings, "With allow_standby_minting, a standby that has missed a change still mints tokens by the old key, role, or limits, so previous_tokens_expire_by no longer applies to all tokens.")
	}
	return warnings
}

// checkScopes reports a scope that allowed_scopes does not cover.
func (l *Limits) checkScopes(scopes []string) error {
	if len(l.AllowedScopes) == 0 {
		return nil
	}
	for _, scope := range scopes {
		if !covers(l.AllowedScopes, scope) {
			return fmt.Errorf("scope %q is not covered by allowed_scopes in the config (%s)", scope, strings.Join(l.AllowedScopes, ", "))
		}
	}
	return nil
}

// Audiences returns the audience and the accepted audiences, each once.
func (l *Limits) Audiences() []string {
	return param.Unique(append([]string{l.Audience}, l.AcceptedAudiences...))
}

// Bounds limits a token in addition to its role.
type Bounds struct {
	*Limits
	MountTTL   time.Duration // the mount's maximum TTL
	LongestTTL time.Duration // that any enabled role ever allowed; see keyring.Ring
}
