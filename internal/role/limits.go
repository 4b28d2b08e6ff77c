package role

import (
	"fmt"
	"slices"
	"strings"
	"time"
	"vault-plugin-secrets-ati/ati"
	"vault-plugin-secrets-ati/internal/param"
)

// limits are what config says of all tokens, whatever their roles grant.
type Limits struct {
	Audience          string        `json:"audience"`
	AcceptedAudiences []string      `json:"accepted_audiences"`
	Issuer            string        `json:"issuer"`
	AllowedScopes     []string      `json:"allowed_scopes"`
	MaxTTL            time.Duration `json:"max_ttl"` // 0: no ceiling
}

var LimitParams = param.Set[Limits]{
	param.Text("audience", param.Display("Audience", "Claims"),
		"Audience of the tokens (claim aud), unless a role sets another one.",
		func(l *Limits) *string { return &l.Audience }, checkAudience).ByDefault(ati.DefaultAudience),
	param.List("accepted_audiences", param.Display("Accepted audiences", "Claims"),
		"Further audiences that a role may set.",
		func(l *Limits) *[]string { return &l.AcceptedAudiences }, checkAudience),
	param.Text("issuer", param.Display("Issuer", "Claims"),
		"Issuer of the tokens (claim iss). Empty leaves the claim out.",
		func(l *Limits) *string { return &l.Issuer }, param.OrEmpty(checkAudience)).ByDefault(ati.DefaultIssuer),
	param.List("allowed_scopes", param.Display("Allowed scopes", "Ceiling"),
		"Scope patterns beyond which no role may grant, such as tool:github:*. Empty sets no such ceiling.",
		func(l *Limits) *[]string { return &l.AllowedScopes }, CheckPattern),
	param.Duration("max_ttl", param.Display("Maximum TTL", "Ceiling"),
		"Longest TTL of a token, whatever its role says. 0 sets no such ceiling.",
		func(l *Limits) *time.Duration { return &l.MaxTTL }),
}

// ceilingWarnings tell of patterns that look as if they let something pass.
func (l *Limits) CeilingWarnings() (warnings []string) {
	for _, pattern := range l.AllowedScopes {
		if strings.HasPrefix(pattern, "skill:") && strings.HasSuffix(pattern, "*") {
			warnings = append(warnings, fmt.Sprintf("allowed_scopes %q lets no skill pass: the proxy matches skills by their exact names", pattern))
		}
	}
	return warnings
}

// checkCeiling refuses a scope that allowed_scopes doesn't cover.
func (l *Limits) CheckCeiling(scopes []string) error {
	if len(l.AllowedScopes) == 0 {
		return nil
	}
	for _, scope := range scopes {
		if !coveredBy(l.AllowedScopes, scope) {
			return fmt.Errorf("scope %q is beyond config's allowed_scopes (%s)", scope, strings.Join(l.AllowedScopes, ", "))
		}
	}
	return nil
}

func (l *Limits) knowsAudience(audience string) bool {
	return audience == l.Audience || slices.Contains(l.AcceptedAudiences, audience)
}

func (l *Limits) Audiences() []string {
	return param.Unique(append([]string{l.Audience}, l.AcceptedAudiences...))
}
