package ati

import (
	"regexp"
	"slices"
	"strings"
)

// BuildScope joins tools, skills and further scopes to a scope claim. It puts
// "tool:" and "skill:" before names that lack them, and changes nothing else.
func BuildScope(tools, skills, extra []string) string {
	scopes := make([]string, 0, len(tools)+len(skills)+len(extra))
	for _, t := range tools {
		scopes = append(scopes, withPrefix("tool:", t))
	}
	for _, s := range skills {
		scopes = append(scopes, withPrefix("skill:", s))
	}
	return strings.Join(append(scopes, extra...), " ")
}

func withPrefix(prefix, name string) string {
	if strings.HasPrefix(name, prefix) {
		return name
	}
	return prefix + name
}

// ParseScopes splits a scope claim at white space, that of Unicode's property
// White_Space, as the proxy does. An empty claim has no scopes.
func ParseScopes(scope string) []string { return strings.Fields(scope) }

// MatchesWildcard reports whether a name matches a pattern, which is exact, or
// ends in "*" and so matches by prefix, or is "*". A "*" elsewhere is a plain
// character.
func MatchesWildcard(name, pattern string) bool {
	prefix, wildcard := strings.CutSuffix(pattern, "*")
	return name == pattern || wildcard && strings.HasPrefix(name, prefix)
}

// CheckScope reports whether one of the granted patterns matches the required
// scope, as ati-client does: without the proxy's legacy alias, and with
// wildcards for skills. [Allows] answers as the proxy does.
func CheckScope(required string, granted []string) bool {
	return slices.ContainsFunc(granted, func(g string) bool { return MatchesWildcard(required, g) })
}

// Allows reports whether a token with these scopes opens the required scope at
// the ATI proxy.
//
// The required scope is the one in a tool's manifest, or "skill:" and a
// skill's name. A tool without a scope is open to all. Of "tool:p:x" the proxy
// tries "tool:p_x" as well. Skills match by their exact name, or by the plain
// "*"; a skill that comes along with a tool is not seen here, nor that the proxy
// would match a tool whose own scope begins with "skill:" as it does any tool.
func Allows(granted []string, required string) bool {
	return required == "" || len(Matches(granted, required)) > 0
}

// Matches returns those of the granted patterns that open the required scope
// at the ATI proxy; see [Allows].
func Matches(granted []string, required string) []string {
	alias := LegacyAlias(required)
	skill := strings.HasPrefix(required, "skill:")
	var matches []string
	for _, g := range granted {
		if skill && (g == required || g == "*") ||
			!skill && (MatchesWildcard(required, g) || alias != "" && MatchesWildcard(alias, g)) {
			matches = append(matches, g)
		}
	}
	return matches
}

// LegacyAlias returns the other name under which the proxy tries a provider's
// tool, and under which a caller may spell it: "tool:p_x" for "tool:p:x", with
// the first colon after "tool:" as one underscore. It returns "" for a scope
// without an alias.
func LegacyAlias(scope string) string {
	name, isTool := strings.CutPrefix(scope, "tool:")
	provider, tool, ok := strings.Cut(name, ":")
	if !isTool || !ok {
		return ""
	}
	return "tool:" + provider + "_" + tool
}

var patternForm = regexp.MustCompile(`^(\*|[A-Za-z0-9_][A-Za-z0-9_.:/@+~%=,()#-]{0,254}\*?)\z`)
var skillForm = regexp.MustCompile(`^skill:[A-Za-z0-9_][A-Za-z0-9_.:/@+-]{0,127}\*?\z`)

// CheckPattern returns a *[ScopeError] unless a scope pattern is of the form
// for which [Covers] holds: the plain "*", or 1 to 255 ASCII characters
// (letters, digits and _.:/@+~%=,()#-, the first one a letter, digit or _)
// with an optional "*" behind them, which needs a colon before it. After
// "tool:" and "skill:" there is a name; a skill's has up to 128 characters out
// of letters, digits and _.:/@+- and is not "*".
//
// The proxy takes any text. But it splits at white space, so that a name with
// a no-break space in it grants two scopes; it expands "${…}"; and "t*" opens
// every tool.
func CheckPattern(pattern string) error {
	kind, name, prefixed := strings.Cut(pattern, ":")
	switch {
	case pattern == "":
		return &ScopeError{pattern, "a scope pattern must not be empty"}
	case pattern == "skill:*":
		return &ScopeError{pattern, `opens nothing at the proxy; for every skill and every tool, use the scope "*"`}
	case pattern != "*" && strings.HasSuffix(pattern, "*") && !prefixed:
		return &ScopeError{pattern, `a "*" needs a colon before it, as in "tool:github:*", or stands alone`}
	case prefixed && name == "" && (kind == "tool" || kind == "skill"):
		return &ScopeError{pattern, "names no " + kind}
	case strings.Contains(strings.TrimSuffix(pattern, "*"), "*"):
		return &ScopeError{pattern, `a "*" is a wildcard only at the end of a pattern`}
	case kind == "skill" && prefixed && !skillForm.MatchString(pattern):
		return &ScopeError{pattern, `after "skill:" come 1 to 128 letters, digits and _.:/@+- beginning with a letter, digit or _, then at most one "*"`}
	case !patternForm.MatchString(pattern):
		return &ScopeError{pattern, `a scope pattern is 1 to 255 letters, digits and _.:/@+~%=,()#- beginning with a letter, digit or _, then at most one "*"`}
	}
	return nil
}

// Covers reports whether a token that may have the pattern granted may have
// the pattern requested instead: whatever the latter opens at the proxy, the
// former does. Both must pass [CheckPattern].
//
// Granted covers requested when the two are equal, when granted is "*", or
// when granted ends in "*" and requested begins with what is before it. A
// skill is covered only by itself and by "*": the proxy does not match skills
// by prefix, so a grant of "skill:r-*" opens nothing. The legacy alias plays
// no part.
func Covers(granted, requested string) bool {
	if granted == requested || granted == "*" {
		return true
	}
	if strings.HasPrefix(requested, "skill:") {
		return false
	}
	return MatchesWildcard(requested, granted)
}
