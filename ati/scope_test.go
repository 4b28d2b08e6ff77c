package ati_test

import (
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/google/go-cmp/cmp"

	"vault-plugin-secrets-ati/ati"
)

func TestAllows(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		granted, required string
		want              bool
	}{
		{"tool:web_search", "tool:web_search", true},
		{"tool:web_search", "tool:web_search_2", false},
		{"tool:web_search", "TOOL:web_search", false},
		{"tool:github:*", "tool:github:x", true},
		{"tool:github:*", "tool:github_x", false},
		{"tool:github_*", "tool:github:x", true},
		{"tool:github_x", "tool:github:x", true},
		{"tool:github_x:y", "tool:github:x:y", true}, // the first colon only
		{"tool:github_x_y", "tool:github:x:y", false},
		{"tool:github__*", "tool:github:x", false},
		{"tool:github__x", "tool:github__x", true},
		{"tool:*", "tool:github:x", true},
		{"tool:*", "help", false},
		{"t*", "tool:x", true},
		{"tool:*:x", "tool:a:x", false},
		{"tool:a*b", "tool:a*b", true},
		{"*", "anything", true},
		{"", "", true},
		{"", "tool:x", false},
		{"tool:x", "", true},
		{"skill:a", "skill:a", true},
		{"skill:*", "skill:a", false},
		{"skill:a*", "skill:ab", false},
		{"s*", "skill:a", false},
		{"*", "skill:a", true},
		{"help", "help", true},
		{"finance:*", "finance:read", true},
		{"a b\u00a0tool:x", "tool:x", true}, // split at any Unicode white space
	} {
		if got := ati.Allows(ati.ParseScopes(c.granted), c.required); got != c.want {
			t.Errorf("Allows(%q, %q) is %v", c.granted, c.required, got)
		}
	}
}

func TestMatches(t *testing.T) {
	t.Parallel()
	got := ati.Matches([]string{"tool:*", "tool:b", "tool:a_*", "*"}, "tool:a:x")
	if diff := cmp.Diff([]string{"tool:*", "tool:a_*", "*"}, got); diff != "" {
		t.Errorf("Matches (-want +got):\n%s", diff)
	}
}

func TestCovers(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		granted, requested string
		want               bool
	}{
		{"tool:a", "tool:a", true}, {"tool:a", "tool:b", false}, {"tool:a", "tool:a*", false}, {"tool:a*", "tool:a*", true},
		{"tool:a*", "tool:ab", true}, {"tool:a*", "tool:ab*", true}, {"tool:ab*", "tool:a*", false}, {"tool:a*", "tool:a", true},
		{"*", "tool:a", true}, {"*", "*", true}, {"tool:*", "*", false}, {"*", "skill:a", true},
		{"skill:a", "skill:a", true}, {"skill:a*", "skill:ab", false}, {"skill:a*", "skill:a*", true},
		{"tool:p:*", "tool:p_x", false}, {"tool:p_*", "tool:p:x", false}, // no alias
	} {
		if got := ati.Covers(c.granted, c.requested); got != c.want {
			t.Errorf("Covers(%q, %q) is %v", c.granted, c.requested, got)
		}
	}
}

// proxyAllows is an independent implementation of the rule of the proxy, as tests
// of the proxy showed it. It does not use package ati.
func proxyAllows(pattern, required string) bool {
	matches := func(name string) bool {
		if strings.HasSuffix(pattern, "*") {
			n := len(pattern) - 1
			return pattern == name || len(name) >= n && name[:n] == pattern[:n]
		}
		return pattern == name
	}
	if strings.HasPrefix(required, "skill:") {
		return pattern == "*" || pattern == required
	}
	if matches(required) {
		return true
	}
	if strings.HasPrefix(required, "tool:") {
		if i := strings.Index(required[5:], ":"); i >= 0 {
			return matches(required[:5+i] + "_" + required[5+i+1:])
		}
	}
	return false
}

// Narrowing a grant relies on this property: if a pattern covers another, it
// matches every scope that the other matches. The alphabet is small, so that
// random patterns often match.
func TestCovers_NeverWidensAccess(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(1, 2))
	word := func(max int) string {
		b := make([]byte, random.IntN(max+1))
		for i := range b {
			b[i] = "ab_:"[random.IntN(4)]
		}
		return string(b)
	}
	prefixes := []string{"tool:", "tool:", "skill:", "", "tool:a:"}
	pattern := func() string {
		for {
			p := prefixes[random.IntN(len(prefixes))] + word(4)
			if random.IntN(2) == 0 {
				p += "*"
			}
			if ati.CheckPattern(p) == nil {
				return p
			}
		}
	}
	covered, matched := 0, 0
	for range 2_000_000 {
		granted, requested := pattern(), pattern()
		if !ati.Covers(granted, requested) {
			continue
		}
		covered++
		required := prefixes[random.IntN(len(prefixes))] + word(5)
		if required == "" {
			continue
		}
		if got := ati.Allows([]string{requested}, required); got != proxyAllows(requested, required) {
			t.Fatalf("Allows(%q, %q) is %v, unlike at the proxy", requested, required, got)
		}
		if proxyAllows(requested, required) {
			matched++
			if !proxyAllows(granted, required) {
				t.Fatalf("%q covers %q, but does not match %q", granted, requested, required)
			}
		}
	}
	if covered < 10_000 || matched < 1_000 {
		t.Errorf("tried only %d covered pairs and %d matched scopes", covered, matched)
	}
}

func TestCheckPattern(t *testing.T) {
	t.Parallel()
	for _, good := range []string{"*", "help", "tool:a", "tool:*", "tool:a:b*", "tool:_9.:/@+~%()#-x", "x:*", "skill:a", "skill:a*", "9", strings.Repeat("a", 255)} {
		if err := ati.CheckPattern(good); err != nil {
			t.Error(err)
		}
	}
	const form = `scope pattern must begin with a letter, digit, or _ and contain only letters, digits, and _.:/@+~%()#- (1 to 255 characters, plus an optional "*" at the end)`
	for bad, want := range map[string]string{
		"":                       "scope pattern must not be empty",
		"**":                     `a pattern that ends in "*" must contain a colon, as in "tool:github:*", or be exactly "*"`,
		"help*":                  `a pattern that ends in "*" must contain a colon, as in "tool:github:*", or be exactly "*"`,
		"*:a":                    `"*" is allowed only at the end of a pattern`,
		"tool:":                  "tool name is missing",
		"skill:":                 "skill name is missing",
		"skill:*":                `matches no skill at the proxy; use the scope "*" to grant every skill and every tool`,
		"tool:a b":               form,
		"-a":                     form,
		strings.Repeat("a", 256): form,
		"tool:a\n":               form,
	} {
		if err := ati.CheckPattern(bad); err == nil || err.Error() != fmt.Sprintf("%q: %s", bad, want) {
			t.Errorf("CheckPattern(%q):\n got %v\nwant %q: %s", bad, err, bad, want)
		}
	}
}

// The proxy splits scopes at white space and expands "${…}".
func TestCheckPattern_RejectsSpecialCharacters(t *testing.T) {
	t.Parallel()
	for r := rune(0); r < 0x3100; r++ {
		if err := ati.CheckPattern("tool:a" + string(r) + "b"); err == nil && (r > 126 || unicode.IsSpace(r) || strings.ContainsRune("${}\\\"'*", r)) {
			t.Errorf("%q is accepted", r)
		}
	}
}

// proxyRate is an independent implementation of the parser of the proxy: it splits
// at "/", parses a Rust u64 (which may have a plus sign and leading zeros), and
// trims the unit.
func proxyRate(spec string) (count uint64, window time.Duration, ok bool) {
	parts := strings.Split(spec, "/")
	if len(parts) != 2 {
		return 0, 0, false
	}
	count, err := strconv.ParseUint(strings.TrimPrefix(parts[0], "+"), 10, 64)
	if err != nil {
		return 0, 0, false
	}
	switch strings.TrimSpace(parts[1]) {
	case "s", "sec", "second":
		window = time.Second
	case "m", "min", "minute":
		window = time.Minute
	case "h", "hr", "hour":
		window = time.Hour
	case "d", "day":
		window = 24 * time.Hour
	}
	return count, window, window != 0
}

func TestParseRate_SubsetOfProxy(t *testing.T) {
	t.Parallel()
	counts := []string{"0", "1", "10", "999999999", "1000000000", "00", "007", "+5", "-5", "", " 5", "5 ", "1.5", "1e3", "0x5", "٣", "18446744073709551616"}
	units := []string{"s", "sec", "second", "m", "min", "minute", "h", "hr", "hour", "d", "day", "week", "S", "", " hour", "hour ", "hour\n", "hours", "s/s"}
	accepted := 0
	for _, count := range counts {
		for _, unit := range units {
			spec := count + "/" + unit
			got, err := ati.ParseRate(spec)
			proxyCount, proxyWindow, proxyOK := proxyRate(spec)
			if err != nil {
				if got != (ati.Rate{}) {
					t.Errorf("%q: rate %v with an error", spec, got)
				}
				continue
			}
			accepted++
			if !proxyOK || uint64(got.Count) != proxyCount || got.Window != proxyWindow || got.String() != spec {
				t.Errorf("%q is %+v here, and %d/%v (%v) at the proxy", spec, got, proxyCount, proxyWindow, proxyOK)
			}
		}
	}
	if want := 4 * 11; accepted != want {
		t.Errorf("%d rates are accepted, want %d", accepted, want)
	}
}

func TestParseRate_Rejects(t *testing.T) {
	t.Parallel()
	for _, spec := range []string{"", "/", "10", "10/hour/extra", "abc/hour"} {
		if r, err := ati.ParseRate(spec); err == nil {
			t.Errorf("%q is %+v", spec, r)
		}
	}
}

func FuzzCheckPattern(f *testing.F) {
	for _, s := range []string{"*", "tool:github:*", "skill:x", "t*", "tool:a\u00a0b", "${X}"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, pattern string) {
		if ati.CheckPattern(pattern) != nil {
			return
		}
		if got := ati.ParseScopes(pattern); len(got) != 1 || got[0] != pattern {
			t.Errorf("%q is accepted, and contains %d scopes", pattern, len(got))
		}
		if !ati.Covers(pattern, pattern) || !ati.Covers("*", pattern) {
			t.Errorf("%q is not covered by itself and *", pattern)
		}
	})
}

func FuzzParseRate(f *testing.F) {
	for _, s := range []string{"10/hour", "+5/hour", "007/s", "5/ hour", "1/s/s"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, spec string) {
		r, err := ati.ParseRate(spec)
		if err != nil {
			return
		}
		if count, window, ok := proxyRate(spec); !ok || uint64(r.Count) != count || r.Window != window {
			t.Errorf("%q is %+v here, and %d/%v (%v) at the proxy", spec, r, count, window, ok)
		}
	})
}

func FuzzTokens(f *testing.F) {
	key := mustKey(f, secret)
	f.Add(goodHeader, `{`+goodClaims+`}`)
	f.Add(`{"alg":"HS256","kid":"x"}`, `{`+goodClaims+`,"ati":{"v":1,"rate":{"*":"1/s"}},"nbf":1}`)
	f.Add(goodHeader, `{`+goodClaims+`,"ati":{"v":1,"rate":{}}}`)
	f.Fuzz(func(t *testing.T, header, payload string) {
		token := sign(t, header, payload)
		c, err := ati.ValidateToken(token, key, ati.WithTime(clock))
		if err != nil {
			return
		}
		// A valid token can be inspected, and its claims can be signed again.
		inspected, err := ati.InspectToken(token)
		if err != nil || inspected["sub"] != c.Subject || inspected["scope"] != c.Scope {
			t.Errorf("inspected as %v, %v", inspected, err)
		}
		again, err := key.Sign(c)
		if err != nil {
			t.Fatal(err)
		}
		c2, err := ati.ValidateToken(again, key, ati.WithTime(clock))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(c, c2); diff != "" {
			t.Errorf("signed again (-first +second):\n%s", diff)
		}
	})
}
