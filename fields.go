package atisecrets

import (
	"encoding/json"
	"fmt"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/hashicorp/go-secure-stdlib/parseutil"
	"github.com/hashicorp/vault/sdk/framework"

	"vault-plugin-secrets-ati/ati"
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
	// All parameters together; the largest role has some 700 KB. It is judged before
	// anything splits them: a form of 10 MB, on which Vault has no other limit, can be
	// 10,000,000 items.
	maxRequestBytes = 1 << 20
	maxErrorBytes   = 4096 // of an answer, which may quote a value

	maxNameBytes = 128 // of a role
	maxItems     = 500
	maxDuration  = math.MaxInt64 * time.Nanosecond // 292 years
	maxText      = 1024                            // of a description or template, in bytes
	// The HTTP servers between a sandbox and the proxy usually take headers of
	// 8 KB in all.
	warnTokenBytes = 4 << 10
	maxTokenBytes  = 8 << 10
)

// tokenForm is what a token looks like: header and payload begin with {".
var tokenForm = regexp.MustCompile(`eyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.`)

// hexFields are those whose values may have 64 hex digits in them: the id of a
// container does, and a text may have any sum.
var hexFields = map[string]bool{
	"agent_id": true, agentIDsField: true, "job_id": true, "sandbox_id": true, "subject": true,
	"allowed_agent_ids": true, "allowed_job_ids": true, "allowed_sandbox_ids": true, "description": true,
}

// sizeOf is the length of a parameter's texts, and a byte for whatever else it has.
func sizeOf(value any) int {
	n := 1
	switch v := value.(type) {
	case string:
		n += len(v)
	case []any:
		for _, item := range v {
			n += sizeOf(item)
		}
	case map[string]any:
		for key, item := range v {
			n += len(key) + sizeOf(item)
		}
	}
	return n
}

// holdsKey reports whether a parameter has a token, a private key in PEM or, where
// that is asked for, a secret in it. Errors and warnings quote values, for the
// user's eyes and, some of them, into the audit log: what doesn't belong into any
// of them is refused before.
func holdsKey(value any, orSecret bool) bool {
	switch v := value.(type) {
	case string:
		return strings.Contains(v, ".eyJ") && tokenForm.MatchString(v) || strings.Contains(v, "PRIVATE KEY-----") || orSecret && holdsSecret(v)
	case []any:
		return slices.ContainsFunc(v, func(item any) bool { return holdsKey(item, orSecret) })
	case map[string]any:
		for key, item := range v {
			if holdsKey(key, orSecret) || holdsKey(item, orSecret) {
				return true
			}
		}
	case []string:
		return slices.ContainsFunc(v, func(item string) bool { return holdsKey(item, orSecret) })
	}
	return false
}

// holdsSecret reports whether a text has a word of hex digits in it that is about
// as long as a secret, a digit more or less having been lost or added. A sum, with
// its algorithm before it, is none.
func holdsSecret(text string) bool {
	begin, hex := 0, true
	for i := 0; i <= len(text); i++ {
		if i < len(text) {
			c := text[i] | 0x20 // in lower case, where it is a letter
			if digit := c >= '0' && c <= '9'; digit || c >= 'a' && c <= 'z' {
				hex = hex && (digit || c <= 'f')
				continue
			}
		}
		if n := i - begin; hex && n >= 2*secretBytes-4 && n <= 2*secretBytes+4 && !strings.HasSuffix(text[:begin], "sha256:") {
			return true
		}
		begin, hex = i+1, true
	}
	return false
}

// shown is a role's name for the log, where it is no key.
func shown(name string) string {
	if holdsKey(name, true) {
		return "(hidden)"
	}
	return cut(name, maxNameBytes)
}

// cut bounds a text that quotes what a request has.
func cut(text string, bytes int) string {
	if len(text) <= bytes {
		return text
	}
	return strings.ToValidUTF8(text[:bytes], "") + "…"
}

const idRule = `an id is 1 to 128 letters, digits and ._:@/+=- beginning with a letter or digit, without ".."`

func checkID(field, id string) error {
	if !idForm.MatchString(id) || strings.Contains(id, "..") {
		return fmt.Errorf("%s %q: %s", field, id, idRule)
	}
	return nil
}

func checkGlobs(field string, globs []string) error {
	for _, g := range globs {
		if !globForm.MatchString(g) {
			return fmt.Errorf("%s %q: a glob is 1 to 128 letters, digits and ._:@/+=-*", field, g)
		}
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
	return unique(all), nil
}

func checkText(field, text string) error {
	if len(text) > maxText {
		return fmt.Errorf("%s has %d bytes; at most %d are allowed", field, len(text), maxText)
	}
	return nil
}

// unique drops repeated items. (strutil's would drop empty ones too.)
func unique(items []string) []string {
	out := make([]string, 0, len(items))
	for _, item := range items {
		if !slices.Contains(out, item) {
			out = append(out, item)
		}
	}
	return out
}

// listField reads a list: a JSON array of strings, or one string with commas
// between the items and blanks around them. It doesn't trim the items of an
// array, as the framework does: a name with a no-break space at its end is a
// mistake to be told, not mended.
func listField(d *framework.FieldData, name string) ([]string, bool, error) {
	raw, ok := d.Raw[name]
	if !ok {
		return nil, false, nil
	}
	items, err := stringItems(name, raw)
	if err != nil {
		return nil, false, err
	}
	if limit := itemLimit(name); len(items) > limit {
		return nil, false, fmt.Errorf("%s has %d items; at most %d are allowed", name, len(items), limit)
	}
	return items, true, nil
}

func itemLimit(name string) int {
	if name == agentIDsField {
		return maxBatch
	}
	return maxItems
}

// stringItems reads a list as Vault's HTTP API, its CLI and its query strings
// give it.
func stringItems(name string, raw any) ([]string, error) {
	items := []string{}
	switch v := raw.(type) {
	case string:
		if strings.Trim(v, asciiBlanks) == "" {
			return items, nil
		}
		for _, item := range strings.Split(v, ",") {
			items = append(items, strings.Trim(item, asciiBlanks))
		}
	case []string:
		items = append(items, v...)
	case []any:
		for i, item := range v {
			s, ok := item.(string)
			if !ok {
				return nil, fmt.Errorf("%s: item %d is not a string", name, i+1)
			}
			items = append(items, s)
		}
	default:
		return nil, fmt.Errorf("%s must be a list of strings", name)
	}
	return items, nil
}

const asciiBlanks = " \t\r\n"

// rateField reads the rates: a JSON object, or one or more "key=count/unit".
func rateField(d *framework.FieldData, name string) (map[string]string, bool, error) {
	raw, ok := d.Raw[name]
	if !ok {
		return nil, false, nil
	}
	rates := map[string]string{}
	switch v := raw.(type) {
	case map[string]any:
		for key, value := range v {
			s, ok := value.(string)
			if !ok {
				return nil, false, fmt.Errorf(`%s %q: the rate must be a string such as "10/hour"`, name, key)
			}
			rates[key] = s
		}
	case map[string]string:
		for key, value := range v {
			rates[key] = value
		}
	default:
		if one, ok := raw.(string); ok && strings.Trim(one, asciiBlanks) != "" {
			raw = []string{strings.Trim(one, asciiBlanks)} // no list: a pattern may have a comma in it
		}
		items, err := stringItems(name, raw)
		if err != nil {
			return nil, false, fmt.Errorf(`%s must be a map, or items such as "tool:github:*=10/hour"`, name)
		}
		for _, item := range items {
			if severalRates.MatchString(item) {
				return nil, false, fmt.Errorf("%s %q: holds several rates; give each by itself, as in rate=tool:a=1/s rate=tool:b=2/s, or all as a JSON object", name, item)
			}
			// The last "=": a pattern may have one in it, a rate has none.
			i := strings.LastIndexByte(item, '=')
			if i < 0 {
				return nil, false, fmt.Errorf(`%s %q: must be a pattern, "=" and a rate, as in "tool:github:*=10/hour"`, name, item)
			}
			if _, twice := rates[item[:i]]; twice {
				return nil, false, fmt.Errorf("%s %q: is given twice", name, item[:i])
			}
			rates[item[:i]] = item[i+1:]
		}
	}
	if len(rates) > maxItems {
		return nil, false, fmt.Errorf("%s has %d items; at most %d are allowed", name, len(rates), maxItems)
	}
	return rates, true, nil
}

// severalRates matches rates that were joined by commas. (A pattern may have
// "=" and "," in it, so that they would pass as one key that limits nothing.)
var severalRates = regexp.MustCompile(`=[0-9]+/[a-z]+\s*,`)

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

// durationField reads a duration of whole seconds, 0 or more.
func durationField(d *framework.FieldData, name string) (time.Duration, bool, error) {
	raw, ok := d.Raw[name]
	if !ok {
		return 0, false, nil
	}
	const want = `must be whole seconds, as in "90s", "1h" or 3600, not negative, and less than 292 years`
	switch v := raw.(type) {
	case string, json.Number, int, int64:
	case float64: // what a JSON number is once it came from Vault to the plugin
		if v != math.Trunc(v) || math.Abs(v) >= maxDuration.Seconds() {
			return 0, false, fmt.Errorf("%s %v: %s", name, v, want)
		}
	default:
		return 0, false, fmt.Errorf("%s %s", name, want)
	}
	ttl, err := parseutil.ParseDurationSecond(raw)
	if err != nil || raw == "" || ttl < 0 || ttl%time.Second != 0 {
		return 0, false, fmt.Errorf("%s %q: %s", name, fmt.Sprint(raw), want)
	}
	return ttl, true, nil
}

// boolField reads a boolean. The framework reads an empty string, an unset
// variable in a script, as false, and any number as true.
func boolField(d *framework.FieldData, name string) (value, given bool, err error) {
	raw, ok := d.Raw[name]
	if !ok {
		return false, false, nil
	}
	switch v := raw.(type) {
	case bool:
		return v, true, nil
	case string:
		if value, err := strconv.ParseBool(v); err == nil {
			return value, true, nil
		}
		return false, false, fmt.Errorf("%s %q: must be true or false", name, v)
	default:
		return false, false, fmt.Errorf("%s must be true or false", name)
	}
}

func given(d *framework.FieldData, name string) bool {
	_, ok := d.Raw[name]
	return ok
}

// whole turns a duration of whole seconds into the seconds that Vault's API
// answers with.
func whole(d time.Duration) int64 { return int64(d / time.Second) }
