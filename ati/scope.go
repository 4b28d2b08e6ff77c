package ati

import (
	"regexp"
	"slices"
	"strings"
)

// BuildScope joins tools, skills, and extra scopes into a scope claim. It adds
// the prefix "tool:" or "skill:" to names that lack it, and changes nothing
// else.
func BuildScope(tools, skills, extra []string) string {
	scopes := make([]string, 0, len(tools)+len(skills)+len(extra))
	for _, t := range tools {
		scopes = append(scopes, ensurePrefix("tool:", t))
	}
	for _, s := range skills {
		scopes = append(scopes, ensurePrefix("skill:", s))
	}
	return strings.Join(append(scopes, extra...), " ")
}

func ensurePrefix(prefix, name string) string {
	if strings.HasPrefix(name, prefix) {
		return name
	}
	return prefix + name
}

// ParseScopes splits a scope claim at white space (the Unicode property
// White_Space), as the proxy does. An empty claim has no scopes.
func ParseScopes(scope string) []string { return strings.Fields(scope) }

// MatchesWildcard reports whether a name matches a pattern. A pattern that ends
// in "*" matches by prefix; any other pattern matches only itself. A "*"
// elsewhere is an ordinary character.
func MatchesWildcard(name, pattern string) bool {
	prefix, wildcard := strings.CutSuffix(pattern, "*")
	return name == pattern || wildcard && strings.HasPrefix(name, prefix)
}

// CheckScope reports whether a granted pattern matches the required scope, as
// ati-client decides it: without the legacy alias of the proxy, and with
// wildcards for skills. Use [Allows] for the decision of the proxy.
func CheckScope(required string, granted []string) bool {
	return slices.ContainsFunc(granted, func(g string) bool { return MatchesWildcard(required, g) })
}

// Allows reports whether the ATI proxy grants the required scope to a token
// with the granted scopes.
//
// The required scope is the scope in the manifest of a tool, or "skill:" and
// the name of a skill. An empty required scope is always allowed. For
// "tool:p:x" the proxy also tries "tool:p_x"; see [LegacyAlias]. A skill is
// allowed only by its exact name or by "*".
//
// Allows does not know manifests. It therefore cannot tell that the proxy
// allows a skill that a granted tool depends on, or that the proxy applies the
// rules for tools to a tool whose own scope begins with "skill:".
func Allows(granted []string, required string) bool {
	return required == "" || len(Matches(granted, required)) > 0
}

// Matches returns the granted patterns that grant the required scope at the ATI
// proxy, in their order; see [Allows].
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

// LegacyAlias returns the second name under which the proxy looks up the tool
// of a provider: the scope with the first colon after "tool:" replaced by an
// underscore, so "tool:p_x" for "tool:p:x". Callers may use this name as well.
// LegacyAlias returns "" for a scope without an alias.
func LegacyAlias(scope string) string {
	name, isTool := strings.CutPrefix(scope, "tool:")
	provider, tool, ok := strings.Cut(name, ":")
	if !isTool || !ok {
		return ""
	}
	return "tool:" + provider + "_" + tool
}

var (
	patternRegexp = regexp.MustCompile(`^(\*|[A-Za-z0-9_][A-Za-z0-9_.:/@+~%()#-]{0,254}\*?)\z`)
	skillRegexp   = regexp.MustCompile(`^skill:[A-Za-z0-9_][A-Za-z0-9_.:/@+-]{0,127}\*?\z`)
)

// CheckPattern validates the form of a scope pattern. It returns nil or a
// *[ScopeError].
//
// A pattern is "*", or 1 to 255 ASCII letters, digits, and _.:/@+~%()#- that
// begin with a letter, digit, or underscore, with an optional "*" at the end. A
// pattern that ends in "*" must contain a colon. A name must follow "tool:" and
// "skill:". The name of a skill has 1 to 128 letters, digits, and _.:/@+- and
// is not "*".
//
// The proxy accepts any text, with three hazards that this form excludes: it
// splits scopes at Unicode white space, so a name with a no-break space grants
// two scopes; it expands "${…}"; and "t*" matches every tool.
func CheckPattern(pattern string) error {
	kind, name, prefixed := strings.Cut(pattern, ":")
	switch {
	case pattern == "":
		return &ScopeError{pattern, "scope pattern must not be empty"}
	case pattern == "skill:*":
		return &ScopeError{pattern, `matches no skill at the proxy; use the scope "*" to grant every skill and every tool`}
	case pattern != "*" && strings.HasSuffix(pattern, "*") && !prefixed:
		return &ScopeError{pattern, `a pattern that ends in "*" must contain a colon, as in "tool:github:*", or be exactly "*"`}
	case prefixed && name == "" && (kind == "tool" || kind == "skill"):
		return &ScopeError{pattern, kind + " name is missing"}
	case strings.Contains(strings.TrimSuffix(pattern, "*"), "*"):
		return &ScopeError{pattern, `"*" is allowed only at the end of a pattern`}
	case kind == "skill" && prefixed && !skillRegexp.MatchString(pattern):
		return &ScopeError{pattern, `skill name must begin with a letter, digit, or _ and contain only letters, digits, and _.:/@+- (1 to 128 characters, plus an optional "*" at the end)`}
	case !patternRegexp.MatchString(pattern):
		return &ScopeError{pattern, `scope pattern must begin with a letter, digit, or _ and contain only letters, digits, and _.:/@+~%()#- (1 to 255 characters, plus an optional "*" at the end)`}
	}
	return nil
}

// Covers reports whether everything that the requested pattern matches at the
// proxy is also matched by the granted pattern, so that a token may have the
// requested pattern instead of the granted one. Both must pass [CheckPattern].
//
// Granted covers requested if they are equal, if granted is "*", or if granted
// ends in "*" and requested begins with the text before it. A skill is covered
// only by itself and by "*": the proxy does not match skills by prefix, so
// "skill:r-*" grants nothing. The legacy alias is not taken into account.
func Covers(granted, requested string) bool {
	if granted == requested || granted == "*" {
		return true
	}
	if strings.HasPrefix(requested, "skill:") {
		return false
	}
	return MatchesWildcard(requested, granted)
}
