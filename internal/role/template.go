package role

import (
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/hashicorp/vault/sdk/helper/identitytpl"
	"github.com/hashicorp/vault/sdk/logical"
)

// idTemplate is a role's subject, job_id or sandbox_id: text with
// "{{identity.…}}" and "{{jti}}" in it.
type idTemplate struct {
	field  string
	pieces []templatePiece
}

type templatePiece struct {
	text      string // literal text, or the directive between the braces
	directive bool
}

const (
	jtiDirective = "jti"
	sampleUUID   = "00000000-0000-0000-0000-000000000000"
	sampleJTI    = sampleUUID + ".1000" // the longest, which the last of a batch has
)

var (
	// literalForm has the characters of an id, joinedForm those of a value that
	// stands beside other text: none of ":/=", with which values are joined.
	literalForm = regexp.MustCompile(`^[A-Za-z0-9._:@/+=-]*\z`)
	joinedForm  = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._@+-]*\z`)
)

const joiners = ":/="

// parseTemplate reads a template and refuses one that could never be rendered:
// each directive is tried on a made-up entity that has what it asks for.
func parseTemplate(field, text string, jtiAllowed bool) (*idTemplate, error) {
	if err := checkText(field, text); err != nil {
		return nil, err
	}
	t := &idTemplate{field: field}
	fail := func(format string, args ...any) (*idTemplate, error) {
		return nil, fmt.Errorf("%s %q: %s", field, text, fmt.Sprintf(format, args...))
	}
	for rest := text; rest != ""; {
		literal, after, found := strings.Cut(rest, "{{")
		if !literalForm.MatchString(literal) {
			return fail("outside of {{…}} only letters, digits and ._:@/+=- are allowed")
		}
		if literal != "" {
			t.pieces = append(t.pieces, templatePiece{text: literal})
		}
		if !found {
			break
		}
		directive, after, found := strings.Cut(after, "}}")
		if !found {
			return fail("a {{ has no }}")
		}
		directive = strings.TrimSpace(directive)
		if err := tryDirective(directive, jtiAllowed); err != nil {
			return fail("{{%s}}: %v", directive, err)
		}
		t.pieces = append(t.pieces, templatePiece{text: directive, directive: true})
		rest = after
	}
	if err := t.checkJoints(); err != nil {
		return fail("%v", err)
	}
	if sample := t.sample(); checkID(field, sample) != nil {
		return fail("renders to ids such as %q; %s", sample, idRule)
	}
	return t, nil
}

func tryDirective(directive string, jtiAllowed bool) error {
	switch {
	case directive == jtiDirective && jtiAllowed:
		return nil
	case directive == jtiDirective:
		return errors.New("is allowed in job_id and sandbox_id only")
	case !strings.HasPrefix(directive, "identity."):
		return errors.New("is neither identity.entity.… nor identity.groups.…")
	}
	entity, groups := madeUpIdentity(directive)
	if value, err := renderDirective(directive, entity, groups); err != nil || value == "" {
		return errors.New("an entity has no such value; see the identity templates in Vault's documentation of policies")
	}
	return nil
}

// madeUpIdentity returns an entity and groups with the metadata key, alias or
// group that the directive asks for.
func madeUpIdentity(directive string) (*logical.Entity, []*logical.Group) {
	const value = "x"
	key := directive[strings.LastIndexByte(directive, '.')+1:]
	if i := strings.Index(directive, "metadata."); i >= 0 {
		key = directive[i+len("metadata."):]
	}
	metadata := map[string]string{}
	if key != "" {
		metadata[key] = value
	}
	selector := ""
	if parts := strings.SplitN(directive, ".", 5); len(parts) > 3 {
		selector = parts[3]
	}
	entity := &logical.Entity{
		ID: value, Name: value, Metadata: metadata,
		Aliases: []*logical.Alias{{MountAccessor: selector, ID: value, Name: value, Metadata: metadata, CustomMetadata: metadata}},
	}
	return entity, []*logical.Group{{ID: selector, Name: selector, Metadata: metadata}}
}

func renderDirective(directive string, entity *logical.Entity, groups []*logical.Group) (string, error) {
	_, value, err := identitytpl.PopulateString(identitytpl.PopulateStringInput{
		Mode:        identitytpl.ACLTemplating,
		String:      "{{" + directive + "}}",
		Entity:      entity,
		Groups:      groups,
		NamespaceID: entity.NamespaceID,
	})
	return value, err
}

// checkJoints refuses a template in which two entities' values could run
// together into the same id, as in "{{a}}-{{b}}": a value may have "-" in it.
func (t *idTemplate) checkJoints() error {
	between, seen := "", false
	for _, p := range t.pieces {
		switch {
		case !p.directive:
			between += p.text
		case p.text == jtiDirective:
			// Of fixed length, and unique: it joins without harm.
			between += joiners
		default:
			if seen && !strings.ContainsAny(between, joiners) {
				return fmt.Errorf("between two directives must be one of %q, which no value has in it", joiners)
			}
			between, seen = "", true
		}
	}
	return nil
}

// sample is the shortest id that the template can render to.
func (t *idTemplate) sample() string {
	var b strings.Builder
	for _, p := range t.pieces {
		switch {
		case !p.directive:
			b.WriteString(p.text)
		case p.text == jtiDirective:
			b.WriteString(sampleJTI)
		case p.text == "identity.entity.id":
			b.WriteString(sampleUUID)
		default:
			b.WriteString("x")
		}
	}
	return b.String()
}

// asks reports whether a directive begins with the prefix.
func (t *idTemplate) asks(prefix string) bool {
	if t == nil {
		return false
	}
	for _, p := range t.pieces {
		if p.directive && strings.HasPrefix(p.text, prefix) {
			return true
		}
	}
	return false
}

// render replaces the directives with the caller's values. Each must have one,
// and all together must be an id.
func (t *idTemplate) render(jti string, entity *logical.Entity, groups []*logical.Group) (string, error) {
	var b strings.Builder
	for _, p := range t.pieces {
		switch {
		case !p.directive:
			b.WriteString(p.text)
		case p.text == jtiDirective:
			b.WriteString(jti)
		case entity == nil:
			return "", fmt.Errorf("%s: {{%s}} has no value, since the caller's Vault token has no identity entity; log in by an auth method, such as AppRole", t.field, p.text)
		default:
			value, err := renderDirective(p.text, entity, groups)
			if err != nil || value == "" {
				return "", fmt.Errorf("%s: {{%s}} has no value for entity %s; vault read identity/entity/id/%s shows what it has", t.field, p.text, entity.ID, entity.ID)
			}
			if len(t.pieces) > 1 && !joinedForm.MatchString(value) {
				return "", fmt.Errorf("%s: {{%s}} is %q for entity %s; beside other text a value is letters, digits and ._@+- beginning with a letter or digit", t.field, p.text, value, entity.ID)
			}
			b.WriteString(value)
		}
	}
	id := b.String()
	if err := checkID(t.field, id); err != nil {
		return "", err
	}
	return id, nil
}
