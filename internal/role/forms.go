package role

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"unicode"

	"vault-plugin-secrets-ati/ati"
	"vault-plugin-secrets-ati/internal/param"
)

// The forms of values, and the limits of lists. They are narrower than what
// the proxy takes: it hands ids to programs, expands "${…}" in them, and splits
// scopes at any Unicode white space.
var (
	idForm       = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._:@/+=-]{0,127}\z`)
	globForm     = regexp.MustCompile(`^[A-Za-z0-9._:@/+=*-]{1,128}\z`)
	audienceForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._:/@-]{0,127}\z`)
)

const (
	MaxNameBytes = 128  // of a role
	maxText      = 1024 // of a description or template, in bytes
	// The HTTP servers between a sandbox and the proxy usually take headers of
	// 8 KB in all.
	WarnTokenBytes = 4 << 10
	MaxTokenBytes  = 8 << 10
)

const idRule = `an id is 1 to 128 letters, digits and ._:@/+=- beginning with a letter or digit, without ".."`

func checkID(field, id string) error {
	if !idForm.MatchString(id) || strings.Contains(id, "..") {
		return fmt.Errorf("%s %q: %s", field, id, idRule)
	}
	return nil
}

func checkGlob(field, glob string) error {
	if !globForm.MatchString(glob) {
		return fmt.Errorf("%s %q: a glob is 1 to 128 letters, digits and ._:@/+=-*", field, glob)
	}
	return nil
}

func CheckPattern(field, pattern string) error {
	if err := ati.CheckPattern(pattern); err != nil {
		return fmt.Errorf("%s %w", field, err)
	}
	return nil
}

func checkAudience(field, value string) error {
	if !audienceForm.MatchString(value) {
		return fmt.Errorf("%s %q: must be 1 to 128 letters, digits and ._:/@- beginning with a letter or digit", field, value)
	}
	return nil
}

// scopesOf checks tools, skills and scopes, and returns the patterns of a
// token that grants them, each once.
func scopesOf(tools, skills, scopes []string) ([]string, error) {
	for _, f := range []struct {
		field, other string
		items        []string
	}{{"tools", "skill:", tools}, {"skills", "tool:", skills}} {
		for _, item := range f.items {
			if strings.HasPrefix(item, f.other) {
				return nil, fmt.Errorf("%s %q: belongs in %ss", f.field, item, strings.TrimSuffix(f.other, ":"))
			}
		}
	}
	var all []string
	for _, f := range []struct {
		field, prefix string
		items         []string
	}{{"tools", "tool:", tools}, {"skills", "skill:", skills}, {"scopes", "", scopes}} {
		for _, item := range f.items {
			switch {
			case item == "":
				return nil, fmt.Errorf(`%s "": an item must not be empty; is there a comma too many?`, f.field)
			case strings.ContainsFunc(item, unicode.IsSpace):
				return nil, fmt.Errorf("%s %q: has white space in it, which separates scopes at the proxy; give several with commas, as in %s=a,b", f.field, item, f.field)
			case f.field == "skills" && strings.TrimPrefix(item, f.prefix) == "*":
				return nil, fmt.Errorf("%s %q: the proxy knows no such wildcard; scopes=* opens every skill and every tool", f.field, item)
			}
			pattern := f.prefix + strings.TrimPrefix(item, f.prefix)
			if err := ati.CheckPattern(pattern); err != nil {
				return nil, fmt.Errorf("%s %w", f.field, err)
			}
			all = append(all, pattern)
		}
	}
	return param.Unique(all), nil
}

func checkText(field, text string) error {
	if len(text) > maxText {
		return fmt.Errorf("%s has %d bytes; at most %d are allowed", field, len(text), maxText)
	}
	return nil
}

// parseRates checks rates and their keys, which are "*", or "tool:" and a
// pattern: no other key ever matches a call at the proxy.
func parseRates(field string, rates map[string]string) (map[string]ati.Rate, error) {
	parsed := make(map[string]ati.Rate, len(rates))
	for key, value := range rates {
		if key != "*" && !strings.HasPrefix(key, "tool:") {
			return nil, fmt.Errorf(`%s %q: the key must be "*", or "tool:" and a pattern; no other limits a call`, field, key)
		}
		if err := ati.CheckPattern(key); err != nil {
			return nil, fmt.Errorf("%s %w", field, err)
		}
		rate, err := ati.ParseRate(value)
		if err != nil {
			return nil, fmt.Errorf("%s of %q: %w", field, key, err)
		}
		parsed[key] = rate
	}
	return parsed, nil
}

// coveredBy reports whether one of the patterns covers the requested one.
func coveredBy(patterns []string, requested string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool { return ati.Covers(p, requested) })
}
