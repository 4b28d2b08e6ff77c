package role

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"vault-plugin-secrets-ati/ati"
)

const (
	// agentRefresh is Vault Agent's default static_secret_render_interval: how often it
	// reads a secret that has no lease.
	agentRefresh = 5 * time.Minute

	highRate = 10_000
)

// Warnings returns warnings about what is valid but useless, or wider than it looks.
// size is the size of a token in bytes.
func (r *Role) Warnings(l *Limits, size int) (warnings []string) {
	for _, scope := range r.granted {
		warnings = append(warnings, scopeWarnings(scope)...)
	}
	warnings = append(warnings, r.rateWarnings()...)
	if r.TTL <= agentRefresh && !r.GenerateLease {
		warnings = append(warnings, fmt.Sprintf("ttl %v is not longer than %v, the default interval at which Vault Agent reads a new token. Set Agent's static_secret_render_interval to about 0.7 of the ttl.", r.TTL, agentRefresh))
	}
	if r.GenerateLease && !l.Guarded {
		warnings = append(warnings, "Revoking a lease does not invalidate the token, which remains valid until it expires.")
	}
	if size > WarnTokenBytes {
		warnings = append(warnings, fmt.Sprintf("A token of this role has %d bytes. Some HTTP servers reject requests with a token over %d bytes.", size, WarnTokenBytes))
	}
	return warnings
}

func scopeWarnings(scope string) (warnings []string) {
	warn := func(format string, args ...any) { warnings = append(warnings, fmt.Sprintf(format, args...)) }
	name, isTool := strings.CutPrefix(scope, "tool:")
	if strings.HasPrefix(scope, "skill:") && strings.HasSuffix(scope, "*") {
		warn("Scope %q matches no skill: the proxy matches skills by exact name.", scope)
	}
	if !isTool || strings.Contains(name, ":") {
		return warnings
	}
	// ati-client 0.1.0 named a provider's tools github__x. Since ati 0.2.0 they are github:x.
	provider, tool, old := strings.Cut(name, "__")
	prefix, wildcard := strings.CutSuffix(name, "*")
	underscore := strings.LastIndexByte(prefix, '_')
	switch {
	case old && provider != "":
		warn("Scope %q matches no provider's tool on ati 0.2.0 or later, where the name is %q.", scope, "tool:"+provider+":"+tool)
	case wildcard && underscore > 0:
		warn(`Scope %q also matches what %q matches, because the proxy also tries a tool name with "_" instead of its first ":".`, scope, "tool:"+prefix[:underscore]+":"+prefix[underscore+1:]+"*")
	}
	return warnings
}

func (r *Role) rateWarnings() (warnings []string) {
	warn := func(format string, args ...any) { warnings = append(warnings, fmt.Sprintf(format, args...)) }
	for _, key := range slices.Sorted(maps.Keys(r.rates)) {
		if !rateApplies(key, r.granted) {
			warn("Rate %q matches no scope of this role. It applies only to a tool whose manifest sets a scope that differs from its name.", key)
		}
		if alias := ati.LegacyAlias(key); alias != "" && !r.limitsAsMuch(alias, r.rates[key]) {
			warn("Rate %q does not limit calls that spell the tool with an underscore. Add the same rate for %q.", key, alias)
		}
		if r.rates[key].Count > highRate {
			warn("Rate %q allows %d calls. The proxy stores a timestamp for every call in the window.", key, r.rates[key].Count)
		}
	}
	return warnings
}

// limitsAsMuch reports whether one of the role's rates limits the calls that the key
// matches at least as much as the rate does.
func (r *Role) limitsAsMuch(key string, rate ati.Rate) bool {
	for k, have := range r.rates {
		if ati.Covers(k, key) && have.Window == rate.Window && have.Count <= rate.Count {
			return true
		}
	}
	return false
}

// rateApplies reports whether a rate's key can match a call that one of the scopes
// allows, in either spelling. A scope that is neither a tool's nor a skill's may be
// in the manifest of any tool.
func rateApplies(key string, granted []string) bool {
	for _, scope := range granted {
		switch {
		case strings.HasPrefix(scope, "skill:") || scope == "help":
			continue
		case !strings.HasPrefix(scope, "tool:"):
			return true
		}
		for _, k := range spellings(key) {
			for _, s := range spellings(scope) {
				if overlaps(k, s) {
					return true
				}
			}
		}
	}
	return false
}

// spellings returns a pattern and its legacy alias, if it has one.
func spellings(pattern string) []string {
	if alias := ati.LegacyAlias(pattern); alias != "" {
		return []string{pattern, alias}
	}
	return []string{pattern}
}

func overlaps(a, b string) bool {
	return ati.MatchesWildcard(strings.TrimSuffix(a, "*"), b) || ati.MatchesWildcard(strings.TrimSuffix(b, "*"), a)
}
