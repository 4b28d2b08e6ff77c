package ati_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"vault-plugin-secrets-ati/ati"
)

// whiteSpace has what the proxy splits the scope claim at: Unicode's property
// White_Space.
const whiteSpace = "\t\n\v\f\r \u0085\u00a0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000"

// The promise: scopes are read as the proxy reads them, and a pattern that
// another one covers opens nothing that the other doesn't.
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
		scopes := ati.ParseScopes(claim)
		want := strings.FieldsFunc(claim, func(r rune) bool { return strings.ContainsRune(whiteSpace, r) })
		if !slices.Equal(scopes, want) {
			t.Fatalf("%q has the scopes %q, want %q", claim, scopes, want)
		}
		if alias := ati.LegacyAlias(required); alias != "" && (len(alias) != len(required) || !proxyOpens(alias, required)) {
			t.Errorf("%q has the alias %q", required, alias)
		}
		patterns := ati.CheckPattern(granted) == nil && ati.CheckPattern(requested) == nil
		covers := ati.Covers(granted, requested)
		if covers && patterns && !ati.Covers(granted, granted) {
			t.Errorf("%q doesn't cover itself", granted)
		}
		for _, call := range calls(granted, requested, required) {
			open := slices.DeleteFunc(slices.Clone(want), func(pattern string) bool { return !proxyOpens(pattern, call) })
			if diff := cmp.Diff(open, append([]string{}, ati.Matches(scopes, call)...)); call != "" && diff != "" {
				t.Errorf("what matches %q in %q (-proxy +got):\n%s", call, claim, diff)
			}
			if got := ati.Allows(scopes, call); got != (call == "" || len(open) > 0) {
				t.Errorf("Allows(%q, %q) is %v", scopes, call, got)
			}
			if covers && patterns && proxyOpens(requested, call) && !proxyOpens(granted, call) {
				t.Errorf("%q covers %q, but only the latter opens %q", granted, requested, call)
			}
		}
	})
}

// calls are scopes of tools and skills that lie on the borders of what the
// patterns open.
func calls(patterns ...string) []string {
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
