package param

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/go-secure-stdlib/parseutil"
	"github.com/hashicorp/vault/sdk/framework"
)

const maxDuration = math.MaxInt64 * time.Nanosecond // 292 years

// ASCIISpace is the white space that is trimmed from the ends of values.
const ASCIISpace = " \t\r\n"

// Size returns the bytes in all strings of a value, plus one for each of its items.
func Size(value any) int {
	n := 1
	switch v := value.(type) {
	case string:
		n += len(v)
	case []any:
		for _, item := range v {
			n += Size(item)
		}
	case map[string]any:
		for key, item := range v {
			n += len(key) + Size(item)
		}
	}
	return n
}

// CheckType reports a value that the reader of its type rejects.
func CheckType(name string, raw any, kind framework.FieldType) (err error) {
	switch kind {
	case framework.TypeCommaStringSlice:
		_, err = readList(name, raw, math.MaxInt)
	case framework.TypeKVPairs:
		_, err = readRates(name, raw)
	case framework.TypeDurationSecond:
		_, err = readDuration(name, raw)
	case framework.TypeBool:
		_, err = readBool(name, raw)
	default:
		_, err = readText(name, raw)
	}
	return err
}

func readText(name string, raw any) (string, error) {
	text, ok := raw.(string)
	if !ok {
		return "", fmt.Errorf("%s must be a string", name)
	}
	return text, nil
}

// readList reads a JSON array of strings, or a string with items separated by
// commas. Unlike the framework it does not trim the items of an array: a trailing
// no-break space is an error that the caller must see.
func readList(name string, raw any, limit int) ([]string, error) {
	items := []string{}
	switch v := raw.(type) {
	case string:
		if IsBlank(v) {
			return items, nil
		}
		for _, item := range strings.Split(v, ",") {
			items = append(items, strings.Trim(item, ASCIISpace))
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
	if len(items) > limit {
		return nil, fmt.Errorf("%s has %d items; at most %d are allowed", name, len(items), limit)
	}
	return items, nil
}

// IsBlank reports whether a string has nothing but ASCII white space.
func IsBlank(text string) bool { return strings.Trim(text, ASCIISpace) == "" }

// readRates reads a JSON object, or one or more strings "pattern=count/unit".
func readRates(name string, raw any) (map[string]string, error) {
	rates := map[string]string{}
	switch v := raw.(type) {
	case map[string]any:
		for key, value := range v {
			s, ok := value.(string)
			if !ok {
				return nil, fmt.Errorf(`%s %q: the rate must be a string such as "10/hour"`, name, key)
			}
			rates[key] = s
		}
	case map[string]string:
		maps.Copy(rates, v)
	default:
		if one, ok := raw.(string); ok && !IsBlank(one) {
			raw = []string{strings.Trim(one, ASCIISpace)} // not split: a pattern may contain a comma
		}
		items, err := readList(name, raw, math.MaxInt)
		if err != nil {
			return nil, fmt.Errorf(`%s must be a map, or items such as "tool:github:*=10/hour"`, name)
		}
		for _, item := range items {
			if err := addRate(rates, name, item); err != nil {
				return nil, err
			}
		}
	}
	if len(rates) > maxItems {
		return nil, fmt.Errorf("%s has %d items; at most %d are allowed", name, len(rates), maxItems)
	}
	return rates, nil
}

// joinedRates matches rates that were joined with commas. A pattern may contain "="
// and ",", so they would pass as one key that limits nothing.
var joinedRates = regexp.MustCompile(`=[0-9]+/[a-z]+\s*,`)

func addRate(rates map[string]string, name, item string) error {
	if joinedRates.MatchString(item) {
		return fmt.Errorf("%s %q: contains several rates; repeat the parameter, as in rate=tool:a=1/s rate=tool:b=2/s, or pass a JSON object", name, item)
	}
	i := strings.LastIndexByte(item, '=') // the last one: a pattern may contain "=", a rate does not
	if i < 0 {
		return fmt.Errorf(`%s %q: must be pattern=count/unit, such as "tool:github:*=10/hour"`, name, item)
	}
	if _, repeated := rates[item[:i]]; repeated {
		return fmt.Errorf("%s %q: listed more than once", name, item[:i])
	}
	rates[item[:i]] = item[i+1:]
	return nil
}

// readDuration reads a duration of whole seconds, 0 or more.
func readDuration(name string, raw any) (time.Duration, error) {
	const want = `must be a non-negative duration in whole seconds, such as "90s", "1h", or 3600, and less than 292 years`
	switch v := raw.(type) {
	case string, json.Number, int, int64:
	case float64: // a JSON number, after it went from Vault to the plugin
		if v != math.Trunc(v) || math.Abs(v) >= maxDuration.Seconds() {
			return 0, fmt.Errorf("%s %v: %s", name, v, want)
		}
	default:
		return 0, fmt.Errorf("%s %s", name, want)
	}
	d, err := parseutil.ParseDurationSecond(raw)
	if err != nil || raw == "" || d < 0 || d%time.Second != 0 {
		return 0, fmt.Errorf("%s %q: %s", name, fmt.Sprint(raw), want)
	}
	return d, nil
}

// readBool reads a boolean. The framework would read an empty string, such as an
// unset variable in a script, as false, and any number as true.
func readBool(name string, raw any) (bool, error) {
	switch v := raw.(type) {
	case bool:
		return v, nil
	case string:
		if value, err := strconv.ParseBool(v); err == nil {
			return value, nil
		}
		return false, fmt.Errorf("%s %q: must be true or false", name, v)
	default:
		return false, fmt.Errorf("%s must be true or false", name)
	}
}

// Unique returns the items in their order, each once. Unlike
// strutil.RemoveDuplicatesStable, it does not trim items or drop empty ones.
func Unique(items []string) []string {
	out := make([]string, 0, len(items))
	for _, item := range items {
		if !slices.Contains(out, item) {
			out = append(out, item)
		}
	}
	return out
}
