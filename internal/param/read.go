package param

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
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

// Read returns a value of a request as a string, []string, map[string]string,
// time.Duration, bool, or int64, by the kind of its field. It trims white space from
// the ends of scalars, because values come from files.
func Read(name string, raw any, kind framework.FieldType) (any, error) {
	if text, ok := raw.(string); ok {
		raw = strings.Trim(text, ASCIISpace)
	}
	switch kind {
	case framework.TypeCommaStringSlice:
		return readList(name, raw)
	case framework.TypeKVPairs:
		return readRates(name, raw)
	case framework.TypeDurationSecond:
		return readDuration(name, raw)
	case framework.TypeBool:
		return readBool(name, raw)
	case framework.TypeInt:
		return readInt(name, raw)
	}
	if text, ok := raw.(string); ok {
		return text, nil
	}
	return nil, fmt.Errorf("%s must be a string%s", name, givenTwice(raw))
}

// ReadPatch is Read for a JSON merge patch, in which null resets a field, or removes a
// key of a map.
func ReadPatch(name string, raw any, kind framework.FieldType) (any, error) {
	object, ok := raw.(map[string]any)
	switch {
	case raw == nil:
		return nil, nil
	case !ok || kind != framework.TypeKVPairs:
		return Read(name, raw, kind)
	}
	merge := Merge{}
	for key, value := range object {
		if value == nil {
			merge[key] = nil
			continue
		}
		rate, err := readRate(name, key, value)
		if err != nil {
			return nil, err
		}
		merge[key] = &rate
	}
	return merge, nil
}

// Merge is a JSON merge patch (RFC 7396) of rates.
type Merge map[string]*string

func (m Merge) of(rates map[string]string) map[string]string {
	merged := map[string]string{}
	maps.Copy(merged, rates)
	for key, rate := range m {
		if rate == nil {
			delete(merged, key)
		} else {
			merged[key] = *rate
		}
	}
	return merged
}

// givenTwice ends the error for a list that should be something else: the CLI, and Vault
// for a query, make a list of a parameter that is given twice.
func givenTwice(raw any) string {
	switch raw.(type) {
	case []any, []string:
		return ", not a list; if the parameter was given more than once, give it once"
	}
	return ""
}

// readList reads a JSON array of strings, also one in a string, or a string with items
// separated by commas, line breaks, or both. Unlike the framework it does not trim the
// items of an array: a trailing no-break space is an error that the caller must see.
func readList(name string, raw any) ([]string, error) {
	switch v := raw.(type) {
	case string:
		if strings.HasPrefix(v, "[") {
			var items []any
			if err := json.Unmarshal([]byte(v), &items); err != nil {
				return nil, fmt.Errorf("%s begins with \"[\" and is not a valid JSON array of strings", name)
			}
			return readList(name, items)
		}
		return splitItems(name, v)
	case []string:
		return v, nil
	case []any:
		items := make([]string, len(v))
		for i, item := range v {
			text, ok := item.(string)
			if !ok {
				return nil, fmt.Errorf("%s: item %d is not a string", name, i+1)
			}
			items[i] = text
		}
		return items, nil
	}
	return nil, fmt.Errorf("%s must be a list of strings", name)
}

// splitItems splits a text without white space at its ends.
func splitItems(name, text string) ([]string, error) {
	items := []string{}
	if text == "" {
		return items, nil
	}
	for part := range strings.SplitSeq(text, ",") {
		before := len(items)
		for line := range strings.SplitSeq(part, "\n") {
			if line = strings.Trim(line, ASCIISpace); line != "" {
				items = append(items, line)
			}
		}
		if len(items) == before {
			return nil, fmt.Errorf("%s contains an empty item; remove the extra comma", name)
		}
	}
	return items, nil
}

// readRates reads a JSON object, also one in a string, or items "pattern=count/unit"
// in the forms of readList.
func readRates(name string, raw any) (map[string]string, error) {
	switch v := raw.(type) {
	case map[string]string:
		return v, nil
	case map[string]any:
		rates := map[string]string{}
		for key, value := range v {
			rate, err := readRate(name, key, value)
			if err != nil {
				return nil, err
			}
			rates[key] = rate
		}
		return rates, nil
	case string:
		if strings.HasPrefix(v, "{") {
			return decodeRates(name, v)
		}
		if strings.HasPrefix(v, "[") {
			raw = nil // a list of rates is not a string
		}
	}
	items, err := readList(name, raw)
	if err != nil {
		return nil, fmt.Errorf(`%s must be a map, or items such as "tool:github:*=10/hour"`, name)
	}
	rates := map[string]string{}
	for _, item := range items {
		pattern, rate, ok := strings.Cut(item, "=")
		if err := checkOne(name, item); err != nil {
			return nil, err
		}
		if !ok {
			return nil, fmt.Errorf(`%s %q: must be pattern=count/unit, such as "tool:github:*=10/hour"`, name, item)
		}
		if err := addRate(rates, name, pattern, rate); err != nil {
			return nil, err
		}
	}
	return rates, nil
}

// checkOne reports an item that is several: only a string is split.
func checkOne(name, item string) error {
	if strings.Contains(item, ",") {
		return fmt.Errorf("%s %q: contains a comma, but each value of a JSON array, or of a parameter that is given more than once, is one item", name, item)
	}
	return nil
}

func readRate(name, key string, value any) (string, error) {
	rate, ok := value.(string)
	if !ok {
		return "", fmt.Errorf(`%s %q: the rate must be a string such as "10/hour"`, name, key)
	}
	return rate, nil
}

// decodeRates decodes a JSON object. A repeated key, of which encoding/json would keep
// the last, is an error.
func decodeRates(name, text string) (map[string]string, error) {
	if !json.Valid([]byte(text)) {
		return nil, fmt.Errorf("%s begins with \"{\" and is not a valid JSON object", name)
	}
	rates := map[string]string{}
	dec := json.NewDecoder(strings.NewReader(text))
	_, err := dec.Token() // the brace
	for err == nil && dec.More() {
		key, _ := dec.Token()
		value, _ := dec.Token()
		var rate string
		if rate, err = readRate(name, key.(string), value); err == nil {
			err = addRate(rates, name, key.(string), rate)
		}
	}
	return rates, err
}

func addRate(rates map[string]string, name, pattern, rate string) error {
	if _, repeated := rates[pattern]; repeated {
		return fmt.Errorf("%s %q: listed more than once", name, pattern)
	}
	rates[pattern] = rate
	return nil
}

// readDuration reads a duration of whole seconds, 0 or more.
func readDuration(name string, raw any) (time.Duration, error) {
	const want = `must be a non-negative duration in whole seconds, such as "90s", "1h", or 3600, and less than 292 years`
	switch v := raw.(type) {
	case time.Duration:
		return v, nil
	case string, json.Number, int, int64:
	case float64: // a JSON number, after it went from Vault to the plugin
		if v != math.Trunc(v) || math.Abs(v) >= maxDuration.Seconds() {
			return 0, fmt.Errorf("%s %v: %s", name, v, want)
		}
	default:
		return 0, fmt.Errorf("%s %s%s", name, want, givenTwice(raw))
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
		return false, fmt.Errorf("%s must be true or false%s", name, givenTwice(raw))
	}
}

// readInt reads an integer.
func readInt(name string, raw any) (int64, error) {
	switch v := raw.(type) {
	case int64:
		return v, nil
	case float64: // a JSON number, after it went from Vault to the plugin
		if v == math.Trunc(v) && math.Abs(v) < 1<<53 {
			return int64(v), nil
		}
	case string, json.Number, int:
		if i, err := strconv.ParseInt(fmt.Sprint(v), 10, 64); err == nil {
			return i, nil
		}
	}
	return 0, fmt.Errorf("%s must be an integer%s", name, givenTwice(raw))
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
