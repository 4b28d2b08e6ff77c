package ati_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"vault-plugin-secrets-ati/ati"
)

// whiteSpace contains the characters at which the proxy splits the scope claim:
// those with the Unicode property White_Space.
const whiteSpace = "\t\n\v\f\r \u0085\u00a0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000"

// FuzzScopes checks that ParseScopes, Matches, and Allows agree with the proxy, and
// that a pattern matches every scope that a pattern it covers matches.
func FuzzScopes(f *testing.F) {
	f.Add("tool:github:*", "tool:github:search", "tool:github:search")
	f.Add("tool:github_*", "tool:github_search", "tool:github:search")
	f.Add("tool:a*", "tool:a_b:c", "tool:a:b:c")
	f.Add("*", "skill:summarize", "skill:summarize")
	f.Add("skill:r-*", "skill:r-a", "skill:r-a")
	f.Add("finance:*", "finance:read", "")
	f.Add("tool:x\u00a0tool:y help", "t*", "tool:y")
	f.Add("tool::*", "tool::", "tool::x")
	f.Add("tool:p:*", "tool:p_x", "tool:p_x")
	f.Fuzz(func(t *testing.T, granted, requested, required string) {
		claim := granted + " " + requested
		scopes := strings.FieldsFunc(claim, func(r rune) bool { return strings.ContainsRune(whiteSpace, r) })
		if got := ati.ParseScopes(claim); !slices.Equal(got, scopes) {
			t.Fatalf("%q has the scopes %q, want %q", claim, got, scopes)
		}
		if alias := ati.LegacyAlias(required); alias != "" && (len(alias) != len(required) || !proxyAllows(alias, required)) {
			t.Errorf("%q has the alias %q", required, alias)
		}
		for _, call := range borderScopes(granted, requested, required) {
			checkMatches(t, scopes, call)
		}
		if ati.CheckPattern(granted) == nil && ati.CheckPattern(requested) == nil && ati.Covers(granted, requested) {
			checkCovers(t, granted, requested, required)
		}
	})
}

// checkMatches compares Matches and Allows with the proxy.
func checkMatches(t *testing.T, scopes []string, required string) {
	t.Helper()
	want := slices.DeleteFunc(slices.Clone(scopes), func(pattern string) bool { return !proxyAllows(pattern, required) })
	if diff := cmp.Diff(want, append([]string{}, ati.Matches(scopes, required)...)); required != "" && diff != "" {
		t.Errorf("Matches(%q, %q) (-proxy +got):\n%s", scopes, required, diff)
	}
	if got := ati.Allows(scopes, required); got != (required == "" || len(want) > 0) {
		t.Errorf("Allows(%q, %q) is %v", scopes, required, got)
	}
}

// checkCovers checks that granted, which covers requested, does not match less.
func checkCovers(t *testing.T, granted, requested, required string) {
	t.Helper()
	if !ati.Covers(granted, granted) {
		t.Errorf("%q does not cover itself", granted)
	}
	for _, call := range borderScopes(granted, requested, required) {
		if proxyAllows(requested, call) && !proxyAllows(granted, call) {
			t.Errorf("%q covers %q, but does not match %q", granted, requested, call)
		}
	}
}

// borderScopes returns scopes of tools and skills that the patterns just match or
// just do not match.
func borderScopes(patterns ...string) []string {
	var all []string
	for _, p := range patterns {
		base := strings.TrimSuffix(p, "*")
		name := base[strings.IndexByte(base, ':')+1:]
		for _, b := range []string{p, base, "tool:" + name, "skill:" + name} {
			all = append(all, b, b+"x", b+":x", b+"_x", strings.Replace(b, "_", ":", 1), b[:max(0, len(b)-1)])
		}
	}
	return all
}
