// Package param declares the parameters of requests and the fields of responses,
// each in one place: its schema, how it is read and checked, and how a response
// shows it.
package param

import (
	"fmt"
	"maps"
	"slices"
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
	mayHoldHex   bool

	set   func(to *T, raw any) error // nil if it is not a parameter
	check func(of *T) error
	empty func(of *T) bool // nil if there is no empty value
	get   func(of *T) any  // nil if no response has it; a nil result is left out
}

// Set is the parameters of a path, or the fields of a response.
type Set[T any] []Param[T]

// Fields returns the schema of a path that takes these parameters.
func (ps Set[T]) Fields() map[string]*framework.FieldSchema {
	fields := map[string]*framework.FieldSchema{}
	for _, p := range ps {
		if p.set != nil {
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

// Apply reads and checks the parameters that a request has, and leaves the rest of
// to unchanged.
func (ps Set[T]) Apply(raw map[string]any, to *T) error {
	for _, p := range ps {
		value, ok := raw[p.name]
		switch {
		case !ok && p.required:
			return fmt.Errorf("%s is required%s", p.name, p.requiredHint)
		case !ok || p.set == nil:
			continue
		}
		if err := p.set(to, value); err != nil {
			return err
		}
		if err := p.check(to); err != nil {
			return err
		}
	}
	return nil
}

// Check checks all values of a T, such as one that was read from storage.
func (ps Set[T]) Check(of *T) error {
	for _, p := range ps {
		if err := p.check(of); err != nil {
			return err
		}
	}
	return nil
}

// Data returns a T as the data of a response.
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

// Filled returns the same parameters, with an empty value as an error: it is
// usually an unset variable, and would otherwise mint the whole role.
func (ps Set[T]) Filled() Set[T] {
	ps = slices.Clone(ps)
	for i, p := range ps {
		if p.empty == nil {
			continue
		}
		ps[i].set = func(to *T, raw any) error {
			if err := p.set(to, raw); err != nil {
				return err
			}
			if p.empty(to) {
				return fmt.Errorf("parameter %q is empty; omit it or set a value", p.name)
			}
			return nil
		}
	}
	return ps
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
	p := declare[T](name, framework.TypeString, framework.TypeString, d, description)
	p.set = func(to *T, raw any) (err error) { *at(to), err = readText(name, raw); return err }
	p.empty = func(of *T) bool { return *at(of) == "" }
	p.get = func(of *T) any { return *at(of) }
	p.check = func(of *T) error { return checkForms(name, *at(of), forms) }
	return p
}

// List declares a list of at most 500 strings. Repeated items count once.
func List[T any](name string, d *framework.DisplayAttributes, description string, at func(*T) *[]string, forms ...Form) Param[T] {
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
			if err := checkForms(name, item, forms); err != nil {
				return err
			}
		}
		return nil
	}
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

// IDs declares a list of at most limit IDs, in which a repeated one is an error.
func IDs[T any](name string, d *framework.DisplayAttributes, description string, at func(*T) *[]string, limit int, f Form) Param[T] {
	p := List(name, d, description, at)
	p.set = func(to *T, raw any) (err error) { *at(to), err = readList(name, raw, limit); return err }
	p.check = func(of *T) error {
		seen := map[string]bool{}
		for i, id := range *at(of) {
			if err := f(name, id); err != nil {
				return fmt.Errorf("item %d of %w", i+1, err)
			}
			if seen[id] {
				return fmt.Errorf("%s %q: listed more than once", name, id)
			}
			seen[id] = true
		}
		return nil
	}
	return p
}

// Duration declares a duration of whole seconds, 0 or more.
func Duration[T any](name string, d *framework.DisplayAttributes, description string, at func(*T) *time.Duration) Param[T] {
	p := declare[T](name, framework.TypeDurationSecond, framework.TypeInt64, d, description)
	p.response.Description += " In seconds."
	p.set = func(to *T, raw any) (err error) { *at(to), err = readDuration(name, raw); return err }
	p.get = func(of *T) any { return Seconds(*at(of)) }
	return p
}

// Bool declares a boolean.
func Bool[T any](name string, d *framework.DisplayAttributes, description string, at func(*T) *bool) Param[T] {
	p := declare[T](name, framework.TypeBool, framework.TypeBool, d, description)
	p.set = func(to *T, raw any) (err error) { *at(to), err = readBool(name, raw); return err }
	p.get = func(of *T) any { return *at(of) }
	return p
}

// Rates declares a map from a pattern to a rate, such as tool:github:* to 10/hour.
func Rates[T any](name string, d *framework.DisplayAttributes, description string, at func(*T) *map[string]string) Param[T] {
	p := declare[T](name, framework.TypeKVPairs, framework.TypeKVPairs, d, description)
	p.set = func(to *T, raw any) (err error) { *at(to), err = readRates(name, raw); return err }
	p.empty = func(of *T) bool { return len(*at(of)) == 0 }
	p.get = func(of *T) any { return maps.Clone(*at(of)) }
	return p
}

// Parsed declares a string that is kept in its parsed form, and is in no response.
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

func declare[T any](name string, requestType, responseType framework.FieldType, d *framework.DisplayAttributes, description string) Param[T] {
	return Param[T]{
		name:     name,
		request:  framework.FieldSchema{Type: requestType, Description: description, DisplayAttrs: d},
		response: framework.FieldSchema{Type: responseType, Required: true, Description: description},
		check:    func(*T) error { return nil },
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

// Checked replaces the check of the value.
func (p Param[T]) Checked(f func(*T) error) Param[T] { p.check = f; return p }

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
