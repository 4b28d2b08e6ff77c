package role

import (
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/hashicorp/vault/sdk/helper/identitytpl"
	"github.com/hashicorp/vault/sdk/logical"
)

// idTemplate is a role's subject, job_id, or sandbox_id: text with "{{identity.…}}"
// and "{{jti}}" directives.
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
	sampleJTI    = sampleUUID + ".1000" // the jti of the last token of a batch, which is the longest
)

var (
	// literalForm has the characters of an ID, joinedForm those of a value that is
	// combined with other text: none of ":/=", which separate values.
	literalForm = regexp.MustCompile(`^[A-Za-z0-9._:@/+=-]*\z`)
	joinedForm  = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._@+-]*\z`)
)

const separators = ":/="

// parseTemplate parses a template. One that could never be rendered is an error: each
// directive is tried on a sample entity that has what it refers to.
func parseTemplate(field, text string, jtiAllowed bool) (*idTemplate, error) {
	t := &idTemplate{field: field}
	fail := func(format string, args ...any) (*idTemplate, error) {
		return nil, fmt.Errorf("%s %q: %s", field, text, fmt.Sprintf(format, args...))
	}
	for rest := text; rest != ""; {
		literal, after, found := strings.Cut(rest, "{{")
		if !literalForm.MatchString(literal) {
			return fail("text outside {{…}} may contain only letters, digits, and ._:@/+=-")
		}
		if literal != "" {
			t.pieces = append(t.pieces, templatePiece{text: literal})
		}
		if !found {
			break
		}
		directive, after, found := strings.Cut(after, "}}")
		if !found {
			return fail("{{ has no matching }}")
		}
		directive = strings.TrimSpace(directive)
		if err := checkDirective(directive, jtiAllowed); err != nil {
			return fail("{{%s}}: %v", directive, err)
		}
		t.pieces = append(t.pieces, templatePiece{text: directive, directive: true})
		rest = after
	}
	if err := t.checkSeparators(); err != nil {
		return fail("%v", err)
	}
	if sample := t.sample(); CheckID(field, sample) != nil {
		return fail("renders to IDs such as %q, which are not valid: an ID %s", sample, idRule)
	}
	return t, nil
}

func checkDirective(directive string, jtiAllowed bool) error {
	switch {
	case directive == jtiDirective && jtiAllowed:
		return nil
	case directive == jtiDirective:
		return errors.New("allowed only in job_id and sandbox_id")
	case !strings.HasPrefix(directive, "identity."):
		return errors.New("must be identity.entity.… or identity.groups.…")
	}
	entity, groups := sampleIdentity(directive)
	if value, err := renderDirective(directive, entity, groups); err != nil || value == "" {
		return errors.New(`not a supported identity value; see "Templated policies" in the Vault documentation`)
	}
	return nil
}

// sampleIdentity returns an entity and groups with the metadata key, alias, or group
// that the directive refers to.
func sampleIdentity(directive string) (*logical.Entity, []*logical.Group) {
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

// checkSeparators reports a template that could render to the same ID for two
// entities, such as "{{a}}-{{b}}": a value may contain "-".
func (t *idTemplate) checkSeparators() error {
	between, seen := "", false
	for _, p := range t.pieces {
		switch {
		case !p.directive:
			between += p.text
		case p.text == jtiDirective:
			between += separators // of fixed length, and unique
		default:
			if seen && !strings.ContainsAny(between, separators) {
				return errors.New(`directives must be separated by ":", "/", or "="`)
			}
			between, seen = "", true
		}
	}
	return nil
}

// sample returns the shortest ID that the template renders to with the longest jti.
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

// references reports whether a directive begins with the prefix. A nil template has none.
func (t *idTemplate) references(prefix string) bool {
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

// render replaces the directives with the caller's values. The result must be an ID.
func (t *idTemplate) render(jti string, who Caller) (string, error) {
	var b strings.Builder
	for _, p := range t.pieces {
		switch {
		case !p.directive:
			b.WriteString(p.text)
		case p.text == jtiDirective:
			b.WriteString(jti)
		case who.EntityID != "" && who.Entity == nil:
			return "", fmt.Errorf("%s: cannot render {{%s}}: entity %s of the caller's token does not exist in this mount's namespace; it was merged, or belongs to a different namespace: log in again, in this namespace", t.field, p.text, who.EntityID)
		case who.Entity == nil:
			return "", fmt.Errorf("%s: cannot render {{%s}}: the caller's token has no identity entity (root tokens and tokens created from them have none); log in with an auth method", t.field, p.text)
		default:
			value, err := renderDirective(p.text, who.Entity, who.Groups)
			if err != nil || value == "" {
				return "", fmt.Errorf("%s: {{%s}} has no value for entity %s; to see its values, run: vault read identity/entity/id/%s", t.field, p.text, who.EntityID, who.EntityID)
			}
			if len(t.pieces) > 1 && !joinedForm.MatchString(value) {
				return "", fmt.Errorf("%s: {{%s}} resolves to %q for entity %s; combined with other text, a value must start with a letter or digit and contain only letters, digits, and ._@+-", t.field, p.text, value, who.EntityID)
			}
			b.WriteString(value)
		}
	}
	id := b.String()
	if err := CheckID(t.field, id); err != nil {
		return "", err
	}
	return id, nil
}
