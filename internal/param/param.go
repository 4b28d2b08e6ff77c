package param

import (
	"encoding/json"
	"fmt"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/go-secure-stdlib/parseutil"
	"github.com/hashicorp/vault/sdk/framework"
)

// A param is declared once: what the API reference says of it, how a request's
// value is read into a T and checked, and how a T answers with it.
type Param[T any] struct {
	name    string
	schema  framework.FieldSchema // of the request
	Answers framework.FieldSchema // of the response

	missing string // what to say where a request doesn't give it; empty: it needs not

	set   func(to *T, raw any) error // nil: not a parameter, only answered
	check func(of *T) error          // nil: any value of its type will do
	empty func(of *T) bool
	get   func(of *T) any // nil: never answered; a nil value is left out
}

const (
	maxItems    = 500                             // of a list
	maxDuration = math.MaxInt64 * time.Nanosecond // 292 years
)

type Set[T any] []Param[T]

// fields is the schema of a path that takes these parameters.
func (ps Set[T]) Fields() map[string]*framework.FieldSchema {
	fields := map[string]*framework.FieldSchema{}
	for _, p := range ps {
		if p.set != nil {
			fields[p.name] = &p.schema
		}
	}
	return fields
}

// response is the schema of an answer with these fields.
func (ps Set[T]) Response() map[string]*framework.FieldSchema {
	fields := map[string]*framework.FieldSchema{}
	for _, p := range ps {
		if p.get != nil {
			fields[p.name] = &p.Answers
		}
	}
	return fields
}

// apply reads and checks what a request gives, and leaves the rest alone.
func (ps Set[T]) Apply(raw map[string]any, to *T) error {
	for _, p := range ps {
		value, given := raw[p.name]
		if p.set == nil || !given && p.missing == "" {
			continue
		}
		if !given {
			return fmt.Errorf("%s is required%s", p.name, p.missing)
		}
		if err := p.set(to, value); err != nil {
			return err
		}
		if p.check != nil {
			if err := p.check(to); err != nil {
				return err
			}
		}
	}
	return nil
}

// valid checks all of a T, as one that comes from storage.
func (ps Set[T]) Valid(of *T) error {
	for _, p := range ps {
		if p.check != nil {
			if err := p.check(of); err != nil {
				return err
			}
		}
	}
	return nil
}

// data is a T as an answer has it.
func (ps Set[T]) Data(of *T) map[string]any {
	data := map[string]any{}
	for _, p := range ps {
		if p.get == nil {
			continue
		}
		if value := p.get(of); value != nil {
			data[p.name] = value
		}
	}
	return data
}

// filled are the same parameters, which refuse an empty value: it is usually an
// unset variable, and would otherwise mint the whole role.
func (ps Set[T]) Filled() Set[T] {
	ps = slices.Clone(ps)
	for i, p := range ps {
		set := p.set
		ps[i].set = func(to *T, raw any) error {
			if err := set(to, raw); err != nil {
				return err
			}
			if p.empty(to) {
				return fmt.Errorf("parameter %q is empty; leave it out, or give it a value", p.name)
			}
			return nil
		}
	}
	return ps
}

// form checks a text, or an item of a list.
type form func(field, value string) error

// orEmpty is a form that takes nothing, too.
func OrEmpty(f form) form {
	return func(field, value string) error {
		if value == "" {
			return nil
		}
		return f(field, value)
	}
}

func Text[T any](name string, d *framework.DisplayAttributes, description string, at func(*T) *string, forms ...form) Param[T] {
	p := declare[T](name, framework.TypeString, framework.TypeString, d, description)
	p.set = func(to *T, raw any) (err error) { *at(to), err = readText(name, raw); return err }
	p.empty = func(of *T) bool { return *at(of) == "" }
	p.get = func(of *T) any { return *at(of) }
	p.check = func(of *T) error {
		for _, f := range forms {
			if err := f(name, *at(of)); err != nil {
				return err
			}
		}
		return nil
	}
	return p
}

func List[T any](name string, d *framework.DisplayAttributes, description string, at func(*T) *[]string, forms ...form) Param[T] {
	p := declare[T](name, framework.TypeCommaStringSlice, framework.TypeStringSlice, d, description)
	p.set = func(to *T, raw any) error {
		items, err := readList(name, raw, maxItems)
		*at(to) = Unique(items)
		return err
	}
	p.empty = func(of *T) bool { return len(*at(of)) == 0 }
	p.get = func(of *T) any { return append([]string{}, *at(of)...) }
	p.check = func(of *T) error {
		for _, item := range *at(of) {
			for _, f := range forms {
				if err := f(name, item); err != nil {
					return err
				}
			}
		}
		return nil
	}
	return p
}

// ids is a list of at most so many ids, in which none is given twice.
func Ids[T any](name string, d *framework.DisplayAttributes, description string, at func(*T) *[]string, limit int, f form) Param[T] {
	p := List(name, d, description, at)
	p.set = func(to *T, raw any) (err error) { *at(to), err = readList(name, raw, limit); return err }
	p.check = func(of *T) error {
		seen := map[string]bool{}
		for i, id := range *at(of) {
			if err := f(name, id); err != nil {
				return fmt.Errorf("item %d of %w", i+1, err)
			}
			if seen[id] {
				return fmt.Errorf("%s %q: is given twice", name, id)
			}
			seen[id] = true
		}
		return nil
	}
	return p
}

func Duration[T any](name string, d *framework.DisplayAttributes, description string, at func(*T) *time.Duration) Param[T] {
	p := declare[T](name, framework.TypeDurationSecond, framework.TypeInt64, d, description)
	p.Answers.Description += " In seconds."
	p.set = func(to *T, raw any) (err error) { *at(to), err = readDuration(name, raw); return err }
	p.empty = func(*T) bool { return false }
	p.get = func(of *T) any { return Seconds(*at(of)) }
	return p
}

func Flag[T any](name string, d *framework.DisplayAttributes, description string, at func(*T) *bool) Param[T] {
	p := declare[T](name, framework.TypeBool, framework.TypeBool, d, description)
	p.set = func(to *T, raw any) (err error) { *at(to), err = readBool(name, raw); return err }
	p.empty = func(*T) bool { return false }
	p.get = func(of *T) any { return *at(of) }
	return p
}

func Rates[T any](name string, d *framework.DisplayAttributes, description string, at func(*T) *map[string]string) Param[T] {
	p := declare[T](name, framework.TypeKVPairs, framework.TypeKVPairs, d, description)
	p.set = func(to *T, raw any) (err error) { *at(to), err = readRates(name, raw); return err }
	p.empty = func(of *T) bool { return len(*at(of)) == 0 }
	p.get = func(of *T) any { return *at(of) }
	return p
}

// parsed is a text that is kept as what it is parsed to, and never answered.
func Parsed[T, V any](name string, d *framework.DisplayAttributes, description string, at func(*T) *V, parse func(text string) (V, error)) Param[T] {
	p := declare[T](name, framework.TypeString, framework.TypeString, d, description)
	p.set = func(to *T, raw any) error {
		text, err := readText(name, raw)
		if err != nil {
			return err
		}
		*at(to), err = parse(text)
		return err
	}
	return p
}

// fact is a field of an answer that no request gives.
func Fact[T any](name string, kind framework.FieldType, description string, get func(of *T) any) Param[T] {
	p := declare[T](name, kind, kind, nil, description)
	p.get = get
	return p
}

func declare[T any](name string, kind, answered framework.FieldType, d *framework.DisplayAttributes, description string) Param[T] {
	return Param[T]{
		name:    name,
		schema:  framework.FieldSchema{Type: kind, Description: description, DisplayAttrs: d},
		Answers: framework.FieldSchema{Type: answered, Required: true, Description: description},
	}
}

func (p Param[T]) ByDefault(value any) Param[T] { p.schema.Default = value; return p }

func (p Param[T]) OneOf(values ...any) Param[T] { p.schema.AllowedValues = values; return p }

func (p Param[T]) Required(missing string) Param[T] {
	p.schema.Required, p.missing = true, missing
	return p
}

func (p Param[T]) LeftOut(reason string) Param[T] {
	p.Answers.Required = false
	p.Answers.Description += reason
	return p
}

func (p Param[T]) Checked(f func(*T) error) Param[T] { p.check = f; return p }

func (p Param[T]) hidden() Param[T] {
	p.get = nil
	return p
}

func (p Param[T]) Sensitive() Param[T] {
	p.Answers.DisplayAttrs = &framework.DisplayAttributes{Sensitive: true}
	return p
}

// display is a parameter's label in forms made from the OpenAPI document, and the
// heading under which it stands there.
func Display(name, group string) *framework.DisplayAttributes {
	return &framework.DisplayAttributes{Name: name, Group: group}
}

func SecretDisplay(name, group, editType string) *framework.DisplayAttributes {
	return &framework.DisplayAttributes{Name: name, Group: group, Sensitive: true, EditType: editType}
}

// read checks a value's type, as each reader below does.
func ReadAny(name string, raw any, kind framework.FieldType) (err error) {
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

// readList reads a list: a JSON array of strings, or one string with commas
// between the items and blanks around them. It doesn't trim the items of an
// array, as the framework does: a name with a no-break space at its end is a
// mistake to be told, not mended.
func readList(name string, raw any, limit int) ([]string, error) {
	items := []string{}
	switch v := raw.(type) {
	case string:
		if strings.Trim(v, AsciiBlanks) == "" {
			return items, nil
		}
		for _, item := range strings.Split(v, ",") {
			items = append(items, strings.Trim(item, AsciiBlanks))
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

const AsciiBlanks = " \t\r\n"

// readRates reads the rates: a JSON object, or one or more "key=count/unit".
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
		for key, value := range v {
			rates[key] = value
		}
	default:
		if one, ok := raw.(string); ok && strings.Trim(one, AsciiBlanks) != "" {
			raw = []string{strings.Trim(one, AsciiBlanks)} // no list: a pattern may have a comma in it
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

// severalRates matches rates that were joined by commas. (A pattern may have
// "=" and "," in it, so that they would pass as one key that limits nothing.)
var severalRates = regexp.MustCompile(`=[0-9]+/[a-z]+\s*,`)

func addRate(rates map[string]string, name, item string) error {
	if severalRates.MatchString(item) {
		return fmt.Errorf("%s %q: holds several rates; give each by itself, as in rate=tool:a=1/s rate=tool:b=2/s, or all as a JSON object", name, item)
	}
	// The last "=": a pattern may have one in it, a rate has none.
	i := strings.LastIndexByte(item, '=')
	if i < 0 {
		return fmt.Errorf(`%s %q: must be a pattern, "=" and a rate, as in "tool:github:*=10/hour"`, name, item)
	}
	if _, twice := rates[item[:i]]; twice {
		return fmt.Errorf("%s %q: is given twice", name, item[:i])
	}
	rates[item[:i]] = item[i+1:]
	return nil
}

// readDuration reads a duration of whole seconds, 0 or more.
func readDuration(name string, raw any) (time.Duration, error) {
	const want = `must be whole seconds, as in "90s", "1h" or 3600, not negative, and less than 292 years`
	switch v := raw.(type) {
	case string, json.Number, int, int64:
	case float64: // what a JSON number is once it came from Vault to the plugin
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

// readBool reads a boolean. The framework reads an empty string, an unset
// variable in a script, as false, and any number as true.
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

// unique drops repeated items. (strutil's would drop empty ones too.)
func Unique(items []string) []string {
	out := make([]string, 0, len(items))
	for _, item := range items {
		if !slices.Contains(out, item) {
			out = append(out, item)
		}
	}
	return out
}

// seconds is a duration as Vault's API answers with it.
func Seconds(d time.Duration) int64 { return int64(d / time.Second) }
