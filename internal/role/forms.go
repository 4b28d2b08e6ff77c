package role

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"unicode"

	"vault-plugin-secrets-ati/ati"
	"vault-plugin-secrets-ati/internal/param"
)

// The forms of values are narrower than what the proxy accepts: it passes IDs to
// programs, expands "${…}" in them, and splits scopes at any Unicode white space.
var (
	idForm       = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._:@/+=-]{0,127}\z`)
	globForm     = regexp.MustCompile(`^[A-Za-z0-9._:@/+=*-]{1,128}\z`)
	audienceForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._:/@-]{0,127}\z`)
)

const (
	// MaxNameBytes is the longest name of a role.
	MaxNameBytes = 128

	maxTextBytes = 1024 // of a description or template

	// WarnTokenBytes is half of MaxTokenBytes. HTTP servers between a sandbox and the
	// proxy usually accept 8 KB for all headers of a request.
	WarnTokenBytes = 4 << 10
	// MaxTokenBytes is the size of the largest token that is minted.
	MaxTokenBytes = 8 << 10
)

const idRule = `must be 1 to 128 characters, start with a letter or digit, contain only letters, digits, and ._:@/+=-, and not contain ".."`

func checkID(field, id string) error {
	if !idForm.MatchString(id) || strings.Contains(id, "..") {
		return fmt.Errorf("%s %q: %s", field, id, idRule)
	}
	return nil
}

func checkGlob(field, glob string) error {
	if !globForm.MatchString(glob) {
		return fmt.Errorf("%s %q: must be 1 to 128 characters and contain only letters, digits, and ._:@/+=-*", field, glob)
	}
	return nil
}

// CheckPattern checks a scope pattern.
func CheckPattern(field, pattern string) error {
	if err := ati.CheckPattern(pattern); err != nil {
		return fmt.Errorf("%s %w", field, err)
	}
	return nil
}

func checkAudience(field, value string) error {
	if !audienceForm.MatchString(value) {
		return fmt.Errorf("%s %q: must be 1 to 128 characters, start with a letter or digit, and contain only letters, digits, and ._:/@-", field, value)
	}
	return nil
}

func checkText(field, text string) error {
	if len(text) > maxTextBytes {
		return fmt.Errorf("%s has %d bytes; at most %d are allowed", field, len(text), maxTextBytes)
	}
	return nil
}

// scopesOf returns the scope patterns of a token that grants these tools, skills, and
// scopes, each once.
func scopesOf(tools, skills, scopes []string) ([]string, error) {
	var all []string
	for _, f := range []struct {
		field, prefix, foreign string
		items                  []string
	}{
		{"tools", "tool:", "skill:", tools},
		{"skills", "skill:", "tool:", skills},
		{"scopes", "", "", scopes},
	} {
		for _, item := range f.items {
			pattern := f.prefix + strings.TrimPrefix(item, f.prefix)
			if err := checkItem(f.field, item, f.foreign); err != nil {
				return nil, err
			}
			if err := CheckPattern(f.field, pattern); err != nil {
				return nil, err
			}
			all = append(all, pattern)
		}
	}
	return param.Unique(all), nil
}

// checkItem reports mistakes that CheckPattern would report less clearly, or accept.
func checkItem(field, item, foreign string) error {
	switch {
	case item == "":
		return fmt.Errorf("%s contains an empty item; remove the extra comma", field)
	case strings.ContainsFunc(item, unicode.IsSpace):
		return fmt.Errorf("%s %q: must not contain white space; separate items with commas, as in %s=a,b", field, item, field)
	case foreign != "" && strings.HasPrefix(item, foreign):
		return fmt.Errorf("%s %q: move it to %ss", field, item, strings.TrimSuffix(foreign, ":"))
	case field == "skills" && strings.TrimPrefix(item, "skill:") == "*":
		return fmt.Errorf("%s %q: the proxy does not support wildcards for skills; list each skill, or set scopes=* to allow every tool and skill", field, item)
	}
	return nil
}

// parseRates checks rates and their keys. A key other than "*" or a tool's pattern
// matches no call at the proxy.
func parseRates(rates map[string]string) (map[string]ati.Rate, error) {
	if len(rates) == 0 {
		return nil, nil
	}
	parsed := make(map[string]ati.Rate, len(rates))
	for key, value := range rates {
		if key != "*" && !strings.HasPrefix(key, "tool:") {
			return nil, fmt.Errorf(`rate %q: key must be "*" or start with "tool:", such as "tool:github:*"`, key)
		}
		if err := CheckPattern("rate", key); err != nil {
			return nil, err
		}
		rate, err := ati.ParseRate(value)
		if err != nil {
			return nil, fmt.Errorf("rate of %q: %w", key, err)
		}
		parsed[key] = rate
	}
	return parsed, nil
}

// covers reports whether one of the patterns covers the requested one.
func covers(patterns []string, requested string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool { return ati.Covers(p, requested) })
}

// CheckName checks the name of a new role.
func CheckName(name string) error {
	switch {
	case param.HoldsKey(name, false):
		return errors.New("name of the role appears to contain a key or token; choose a different name")
	case len(name) > MaxNameBytes:
		return fmt.Errorf("name of the role has %d bytes; at most %d are allowed", len(name), MaxNameBytes)
	}
	return nil
}
