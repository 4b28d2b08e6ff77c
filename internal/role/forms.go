package role

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"vault-plugin-secrets-ati/ati"
	"vault-plugin-secrets-ati/internal/param"
)

// The forms of values are narrower than what the proxy accepts: it passes IDs to
// programs, expands "${…}" in them, and splits scopes at any Unicode white space.
var (
	idForm       = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._:@/+=-]{0,127}\z`)
	globForm     = regexp.MustCompile(`^[A-Za-z0-9._:@/+=*-]{1,128}\z`)
	variable     = regexp.MustCompile(`\{\{[^}]*\$`)
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

// CheckID checks an ID: a subject, job ID, or sandbox ID.
func CheckID(field, id string) error {
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

func checkControl(field, text string) error {
	control := func(r rune) bool { return unicode.IsControl(r) && !strings.ContainsRune("\t\r\n", r) }
	if i := strings.IndexFunc(text, control); i >= 0 {
		r, _ := utf8.DecodeRuneInString(text[i:])
		return fmt.Errorf("%s contains the control character %U; only line breaks and tabs are allowed", field, r)
	}
	return nil
}

// checkVariable reports a variable in a directive, such as a shell does not expand in
// single quotes.
func checkVariable(field, text string) error {
	if variable.MatchString(text) {
		return fmt.Errorf(`%s %q: contains "$" between "{{" and "}}": a variable that was not expanded; in a shell, use double quotes`, field, text)
	}
	return nil
}

// The lists that grant scopes, and the prefix that their items may omit.
const (
	toolPrefix  = "tool:"
	skillPrefix = "skill:"
)

func checkTool(field, item string) error  { return checkGrant(field, item, toolPrefix, skillPrefix) }
func checkSkill(field, item string) error { return checkGrant(field, item, skillPrefix, toolPrefix) }
func checkScope(field, item string) error { return checkGrant(field, item, "", "") }

// checkGrant reports mistakes that CheckPattern would report less clearly, or accept.
func checkGrant(field, item, prefix, foreign string) error {
	switch {
	case item == "":
		return fmt.Errorf("%s contains an empty item; remove the extra comma", field)
	case strings.ContainsFunc(item, unicode.IsSpace):
		return fmt.Errorf("%s %q: must not contain white space; separate items with commas, as in %s=a,b", field, item, field)
	case foreign != "" && strings.HasPrefix(item, foreign):
		return fmt.Errorf("%s %q: move it to %ss", field, item, strings.TrimSuffix(foreign, ":"))
	case prefix == skillPrefix && strings.TrimPrefix(item, prefix) == "*":
		return fmt.Errorf("%s %q: the proxy does not support wildcards for skills; list each skill, or set scopes=* to allow every tool and skill", field, item)
	}
	return CheckPattern(field, prefix+strings.TrimPrefix(item, prefix))
}

// scopesOf returns the scope patterns of a token that grants these tools, skills, and
// scopes, each once.
func scopesOf(tools, skills, scopes []string) []string {
	var all []string
	for _, item := range tools {
		all = append(all, toolPrefix+strings.TrimPrefix(item, toolPrefix))
	}
	for _, item := range skills {
		all = append(all, skillPrefix+strings.TrimPrefix(item, skillPrefix))
	}
	return param.Unique(append(all, scopes...))
}

// checkStored reports a pattern in storage that would grant something else at the
// proxy, which splits scopes at white space. Stored patterns may have characters that
// requests may not: before version 0.2.0 of the plugin, "," and "=" were accepted.
func checkStored(pattern string) error { return ati.CheckPattern(oldCharacters.Replace(pattern)) }

var oldCharacters = strings.NewReplacer(",", "_", "=", "_")

// checkRateKey reports a key that matches no call at the proxy.
func checkRateKey(field, key string) error {
	if key != "*" && !strings.HasPrefix(key, toolPrefix) {
		return fmt.Errorf(`%s %q: key must be "*" or start with "tool:", such as "tool:github:*"`, field, key)
	}
	return CheckPattern(field, key)
}

// parseRates parses rates by key.
func parseRates(rates map[string]string) (map[string]ati.Rate, error) {
	if len(rates) == 0 {
		return nil, nil
	}
	parsed := make(map[string]ati.Rate, len(rates))
	for key, value := range rates {
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
