// Package param declares the parameters of requests and the fields of responses,
// each in one place: its schema, how it is read and checked, and how a response
// shows it.
package param

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
)

const maxItems = 500 // of a list, and of rates

// Param is one parameter of a request, one field of a response, or both. T is the
// struct that a request is read into and a response is made from.
type Param[T any] struct {
	name     string
	request  framework.FieldSchema
	response framework.FieldSchema

	requiredHint string // ends the error for a missing parameter
	required     bool
	filled       bool
	mayHoldHex   bool
	precondition bool

	set   func(to *T, value any) error // with a value that Read returned; nil if the parameter cannot be set
	reset func(to, from *T)            // copies the value; nil if the parameter cannot be null
	get   func(of *T) any              // nil if no response has it; a nil result is left out
}

// Set is the parameters of a path, or the fields of a response.
type Set[T any] []Param[T]

// Fields returns the schema of a path that takes these parameters.
func (ps Set[T]) Fields() map[string]*framework.FieldSchema {
	fields := map[string]*framework.FieldSchema{}
	for _, p := range ps {
		if p.set != nil || p.precondition {
			fields[p.name] = &p.request
		}
	}
	return fields
}

// Response returns the schema of a response with these fields.
func (ps Set[T]) Response() map[string]*framework.FieldSchema {
	fields := map[string]*framework.FieldSchema{}
	for _, p := range ps {
		if p.get != nil {
			fields[p.name] = &p.response
		}
	}
	return fields
}

// HexFields returns the names of the parameters declared with MayHoldHex.
func (ps Set[T]) HexFields() map[string]bool {
	names := map[string]bool{}
	for _, p := range ps {
		if p.mayHoldHex {
			names[p.name] = true
		}
	}
	return names
}

// Apply sets and checks the parameters that a request has, and leaves the rest of to
// unchanged. What is the same in to already is not checked: builds before this one
// accepted more.
func (ps Set[T]) Apply(raw map[string]any, to *T) error {
	for _, p := range ps {
		value, ok := raw[p.name]
		switch {
		case !ok && p.required:
			return fmt.Errorf("%s is required%s", p.name, p.requiredHint)
		case !ok || p.set == nil:
			continue
		case value == nil && p.reset == nil:
			return fmt.Errorf("%s cannot be null", p.name)
		case value == nil:
			continue // see Reset
		case p.filled && isEmpty(value):
			return fmt.Errorf("parameter %q is empty; omit it or set a value", p.name)
		}
		if err := p.set(to, value); err != nil {
			return err
		}
	}
	return nil
}

// Reset gives each parameter that is null in a patch the value that a new entry has.
func (ps Set[T]) Reset(raw map[string]any, to, fresh *T) {
	for _, p := range ps {
		if value, ok := raw[p.name]; ok && value == nil && p.reset != nil {
			p.reset(to, fresh)
		}
	}
}

// CheckFacts reports a precondition of a request that is not met. of is nil if there is
// no entry yet.
func (ps Set[T]) CheckFacts(raw map[string]any, of *T) error {
	for _, p := range ps {
		value, ok := raw[p.name]
		if !ok || !p.precondition {
			continue
		}
		switch {
		case of == nil:
			return fmt.Errorf("%s cannot be set, but only repeated in a write to an existing entry; remove %s from the request", p.name, p.name)
		case value == nil:
			return fmt.Errorf("%s cannot be null", p.name)
		}
		if present := p.get(of); fmt.Sprint(value) != fmt.Sprint(present) {
			return fmt.Errorf("%s is %v, not %v; read the current values and try again, or remove %s from the request", p.name, present, value, p.name)
		}
	}
	return nil
}

// Data returns a T as the data of a response.
func (ps Set[T]) Data(of *T) map[string]any {
	data := make(map[string]any, len(ps))
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

// Filled returns the same parameters, with an empty value as an error: it is
// usually an unset variable, and would otherwise mint the whole role.
func (ps Set[T]) Filled() Set[T] {
	ps = slices.Clone(ps)
	for i := range ps {
		ps[i].filled = true
	}
	return ps
}

func isEmpty(value any) bool {
	switch v := value.(type) {
	case string:
		return v == ""
	case []string:
		return len(v) == 0
	case map[string]string:
		return len(v) == 0
	}
	return false
}

// A Form checks a text, or an item of a list.
type Form func(field, value string) error

// OrEmpty returns a form that also accepts an empty text.
func OrEmpty(f Form) Form {
	return func(field, value string) error {
		if value == "" {
			return nil
		}
		return f(field, value)
	}
}

// Text declares a string.
func Text[T any](name string, d *framework.DisplayAttributes, description string, at func(*T) *string, forms ...Form) Param[T] {
	return value(name, framework.TypeString, framework.TypeString, d, description, at, func(to *T, text string) error {
		if text == strings.Trim(*at(to), ASCIISpace) {
			return nil
		}
		*at(to) = text
		return checkForms(name, text, forms)
	})
}

// List declares a list of at most 500 strings. Repeated items count once.
func List[T any](name string, d *framework.DisplayAttributes, description string, at func(*T) *[]string, forms ...Form) Param[T] {
	p := value(name, framework.TypeCommaStringSlice, framework.TypeStringSlice, d, description, at, func(to *T, items []string) error {
		if err := checkCount(name, len(items), maxItems); err != nil {
			return err
		}
		before := *at(to)
		*at(to) = Unique(items)
		for _, item := range items {
			if slices.Contains(before, item) {
				continue
			}
			if err := cmp.Or(checkOne(name, item), checkForms(name, item, forms)); err != nil {
				return err
			}
		}
		return nil
	})
	p.get = func(of *T) any { return append([]string{}, *at(of)...) }
	return p
}

func checkForms(field, value string, forms []Form) error {
	for _, f := range forms {
		if err := f(field, value); err != nil {
			return err
		}
	}
	return nil
}

func checkCount(name string, items, limit int) error {
	if items > limit {
		return fmt.Errorf("%s has %d items; at most %d are allowed", name, items, limit)
	}
	return nil
}

// IDs declares a list of at most limit IDs, in which a repeated one is an error.
func IDs[T any](name string, d *framework.DisplayAttributes, description string, at func(*T) *[]string, limit int, f Form) Param[T] {
	return value(name, framework.TypeCommaStringSlice, framework.TypeStringSlice, d, description, at, func(to *T, ids []string) error {
		*at(to) = ids
		if err := checkCount(name, len(ids), limit); err != nil {
			return err
		}
		seen := map[string]bool{}
		for i, id := range ids {
			if err := cmp.Or(checkOne(name, id), f(name, id)); err != nil {
				return fmt.Errorf("item %d of %w", i+1, err)
			}
			if seen[id] {
				return fmt.Errorf("%s %q: listed more than once", name, id)
			}
			seen[id] = true
		}
		return nil
	})
}

// Duration declares a duration of whole seconds, 0 or more.
func Duration[T any](name string, d *framework.DisplayAttributes, description string, at func(*T) *time.Duration) Param[T] {
	p := value(name, framework.TypeDurationSecond, framework.TypeInt64, d, description, at, assign(at))
	p.response.Description += " In seconds."
	p.get = func(of *T) any { return Seconds(*at(of)) }
	return p
}

// Bool declares a boolean.
func Bool[T any](name string, d *framework.DisplayAttributes, description string, at func(*T) *bool) Param[T] {
	return value(name, framework.TypeBool, framework.TypeBool, d, description, at, assign(at))
}

// Rates declares a map from a pattern to a rate, such as tool:github:* to 10/hour.
func Rates[T any](name string, d *framework.DisplayAttributes, description string, at func(*T) *map[string]string, forms ...Form) Param[T] {
	p := value(name, framework.TypeKVPairs, framework.TypeKVPairs, d, description, at, func(*T, map[string]string) error { return nil })
	p.set = func(to *T, value any) error {
		before := *at(to)
		rates, replaced := value.(map[string]string)
		if !replaced {
			rates = value.(Merge).of(before)
		}
		*at(to) = rates
		for _, pattern := range slices.Sorted(maps.Keys(rates)) {
			if _, unchanged := before[pattern]; unchanged {
				continue
			}
			if err := checkForms(name, pattern, forms); err != nil {
				return err
			}
		}
		return checkCount(name, len(rates), maxItems)
	}
	p.get = func(of *T) any { return Merge{}.of(*at(of)) }
	return p
}

// Parsed declares a string that is kept in its parsed form, and is in no response.
func Parsed[T, V any](name string, d *framework.DisplayAttributes, description string, at func(*T) *V, parse func(text string) (V, error)) Param[T] {
	p := declare[T](name, framework.TypeString, framework.TypeString, d, description)
	p.set = func(to *T, value any) (err error) { *at(to), err = parse(value.(string)); return err }
	return p
}

// Fact declares a field of a response that is not a parameter.
func Fact[T any](name string, kind framework.FieldType, description string, get func(of *T) any) Param[T] {
	p := declare[T](name, kind, kind, nil, description)
	p.get = get
	return p
}

// TimeFact declares a time in RFC 3339, which a response omits while it is zero.
func TimeFact[T any](name, description string, get func(*T) time.Time) Param[T] {
	return Fact(name, framework.TypeTime, description, func(of *T) any {
		if t := get(of); !t.IsZero() {
			return t.Format(time.RFC3339)
		}
		return nil
	}).Optional()
}

// Precondition declares a fact that a write accepts too, if it has the present value:
// so a response can be written back, and a write be bound to what was read.
func Precondition[T any](name string, kind framework.FieldType, d *framework.DisplayAttributes, description string, get func(of *T) any) Param[T] {
	p := declare[T](name, kind, kind, d, description)
	if kind == framework.TypeTime {
		p.request.Type = framework.TypeString // compared as text
	}
	p.request.Description += " A write with another value is rejected."
	p.get, p.precondition = get, true
	return p
}

func assign[T, V any](at func(*T) *V) func(*T, V) error {
	return func(to *T, value V) error { *at(to) = value; return nil }
}

// value declares a parameter that is also a field of responses.
func value[T, V any](name string, requestType, responseType framework.FieldType, d *framework.DisplayAttributes, description string, at func(*T) *V, set func(*T, V) error) Param[T] {
	p := declare[T](name, requestType, responseType, d, description)
	p.set = func(to *T, value any) error { return set(to, value.(V)) }
	p.reset = func(to, from *T) { *at(to) = *at(from) }
	p.get = func(of *T) any { return *at(of) }
	return p
}

func declare[T any](name string, requestType, responseType framework.FieldType, d *framework.DisplayAttributes, description string) Param[T] {
	return Param[T]{
		name:     name,
		request:  framework.FieldSchema{Type: requestType, Description: description, DisplayAttrs: d},
		response: framework.FieldSchema{Type: responseType, Required: true, Description: description},
	}
}

// Default states the value of a new entry. It is for the schema only: the entry's
// constructor sets it.
func (p Param[T]) Default(value any) Param[T] { p.request.Default = value; return p }

// AllowedValues states the accepted values in the schema.
func (p Param[T]) AllowedValues(values ...any) Param[T] { p.request.AllowedValues = values; return p }

// Required makes the parameter mandatory. The error for a missing one ends in hint.
func (p Param[T]) Required(hint string) Param[T] {
	p.request.Required, p.required, p.requiredHint = true, true, hint
	return p
}

// Optional states that a response may omit the field.
func (p Param[T]) Optional() Param[T] { p.response.Required = false; return p }

// Checked adds a check of the value.
func (p Param[T]) Checked(check func(*T) error) Param[T] {
	set := p.set
	p.set = func(to *T, value any) error { return cmp.Or(set(to, value), check(to)) }
	return p
}

// MayHoldHex accepts 64 hexadecimal digits in the value, which elsewhere are taken
// for a misplaced secret: a container's ID has them, and a text may quote a checksum.
func (p Param[T]) MayHoldHex() Param[T] { p.mayHoldHex = true; return p }

// Sensitive marks the field of the response as secret.
func (p Param[T]) Sensitive() Param[T] {
	p.response.DisplayAttrs = &framework.DisplayAttributes{Sensitive: true}
	return p
}

// Display returns a parameter's label and its heading in forms that are made from
// the OpenAPI document.
func Display(name, group string) *framework.DisplayAttributes {
	return &framework.DisplayAttributes{Name: name, Group: group}
}

// SecretDisplay is Display for a value that a form must not show.
func SecretDisplay(name, group, editType string) *framework.DisplayAttributes {
	return &framework.DisplayAttributes{Name: name, Group: group, Sensitive: true, EditType: editType}
}

// Seconds returns a duration as Vault's API represents it.
func Seconds(d time.Duration) int64 { return int64(d / time.Second) }
