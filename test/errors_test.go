package test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const errorsPage = "../docs/errors.md"

// notOnThePage are texts of the source that no user of the engine looks up.
var notOnThePage = func() map[string]string {
	texts := map[string]string{}
	for reason, list := range map[string][]string{
		"it joins two texts that are on the page": {
			"… of …: …", "role …: …", "item … of …", "allowed_scopes …", "and …",
		},
		"it is a value in a text that is on the page": {
			"a …", "something else", "another algorithm", "entity id", "display name",
		},
		"the engine says signedByNone in its place": {"signature does not match"},
		"it is no text for people": {
			"ati key fingerprint", "PRIVATE KEY", "PUBLIC KEY", "unknown member", "ati",
		},
		"it names an operation of package ati before the message, and the engine cuts it off where a caller could meet it": {
			"parse key", "issue token", "validate token", "inspect token",
		},
		"it is only in the log": {"current …", ", pending …", ", previous …"},
		"it can't happen: Vault gives a configuration, and the sizes and the types are fixed": {
			"configuration passed into backend is nil", "make the role cache: …", "encode the JWK Set: …", "encode the public key of version …: …",
		},
		"parseSecret refuses such a secret before": {
			"an HS256 secret must be hex digits, two for each byte", "an HS256 secret must not be empty",
		},
		"for callers in Go: the engine has checked it, or doesn't use the function": {
			"must be one P-256 public key in PEM; …", "must be one P-256 public key in PEM; it is …",
			"must be one P-256 public key in PEM; it can't be read", "must be one P-256 public key in PEM; it is not written as openssl writes it. To write it anew: openssl pkey -pubin -in <file>", "must be one P-256 public key in PEM; it is a key of …",
			"the claims are not JSON that can be read", "the key is empty", "a public key can't sign", "the TTL … is not a whole number of seconds",
			"WithAudience needs an audience", "an accepted audience must not be empty",
			"the required issuer must not be empty; leave WithIssuer out to check none",
			"the leeway … must be from 0s to …: the proxy refuses what is older",
			"the orchestrator has no ProxyURL", "provision sandbox: …",
		},
	} {
		for _, text := range list {
			texts[text] = reason
		}
	}
	return texts
}()

// docs/errors.md has a row for each text that the engine can give its
// user, and no row for another.
func TestErrorsPage_ListsEveryMessage(t *testing.T) {
	t.Parallel()
	page, source := messagesOfPage(t), messagesOfSource(t)
	for _, text := range slices.Sorted(maps.Keys(source)) {
		at := source[text]
		switch reason, left := notOnThePage[text]; {
		case left && page[text] != 0:
			t.Errorf("%s: left out by this test (%s), but in line %d of the page: %s", at, reason, page[text], text)
		case !left && page[text] == 0:
			t.Errorf("%s: no row of %s has the message: %s", at, errorsPage, text)
		case strings.ContainsAny(text, "|`\n"):
			t.Errorf("%s: can't stand in a table: %s", at, text)
		}
	}
	for _, text := range slices.Sorted(maps.Keys(page)) {
		if source[text] == "" {
			t.Errorf("%s:%d: the source has no such message: %s", errorsPage, page[text], text)
		}
	}
	for text := range notOnThePage {
		if source[text] == "" {
			t.Errorf("this test leaves out what the source doesn't have: %s", text)
		}
	}
}

// What the test above sees of a source: whatever may be a message, and what it
// passes over.
func TestErrorsPage_FindsEachFormOfMessage(t *testing.T) {
	t.Parallel()
	const source = `package p

import "a path/with blanks"

const (
	rule    = "a rule"
	one     = "ONE"
	unused  = "nobody uses it"
	synHelp = "help text"
)

var ErrX = errors.New("sentinel")

type s struct {
	F string ` + "`json:\"a tag\"`" + `
}

func f(x string, n int) (string, error) {
	const local = "of this function"
	resp.AddWarning("a warning")
	resp.AddWarning(fmt.Sprintf("a warning of %q, 100%%", x))
	warn("shorthand %d", n)
	fail("%v", err)
	_ = fmt.Errorf("%s %q: %s", x, x, rule)
	_ = fmt.Errorf("%s must be %q: %w", local, one, errors.New("nested"))
	_ = fmt.Errorf("limit of %v", other.Default)
	_ = fmt.Errorf("in %s", strings.Join([]string{"in a list", x}, " and "))
	data["error"] = rule + "; since " + x
	text := "assembled " + x
	text += " of parts"
	_ = &Error{x, "in a struct"}
	_ = other.Default
	_ = Path{Description: "a description", Operations: operation(f, "a summary"), Help: synHelp}
	d.Description += " More of it."
	b.Logger().Info("a log line", "key", x)
	_, _ = regexp.MustCompile("a form"), strings.HasPrefix(x, "a prefix")
	switch {
	case x == "a label":
	}
	switch x {
	case "another label":
		return "as it stands", nil
	}
	return logical.ErrorResponse("refused: %s", helper("inner text")), nil
}
`
	c := newCollector()
	c.constants["other.Default"] = "a default"
	file, err := parser.ParseFile(c.fset, "p.go", source, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	c.collect("p", []*ast.File{file})
	want := []string{
		"a warning", "a warning of …, 100%", "sentinel", "shorthand …", "in a list", "… …: a rule", `of this function must be "ONE": …`, "nested", "a default", "limit of a default", "in …",
		"a rule; since …", "assembled …", "of parts", "in a struct", "as it stands", "refused: …", "inner text",
	}
	slices.Sort(want)
	if diff := cmp.Diff(want, slices.Sorted(maps.Keys(c.messages))); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if got, want := c.messages["as it stands"], "p.go:42"; got != want {
		t.Errorf("a message is found at %s, want %s", got, want)
	}
}

// canonical is one spelling for the source and the page, where a quoted value may
// stand with its quotes.
func canonical(text string) string {
	return strings.TrimSpace(strings.NewReplacer(`["…"]`, "…", `"…"`, "…").Replace(text))
}

// messagesOfPage are the code spans in the first column of the tables of
// messages, each with its line.
func messagesOfPage(t *testing.T) map[string]int {
	t.Helper()
	b, err := os.ReadFile(errorsPage)
	if err != nil {
		t.Fatal(err)
	}
	messages := map[string]int{}
	inTable := false
	for i, line := range strings.Split(string(b), "\n") {
		header := strings.HasPrefix(line, "| message |")
		inTable = header || inTable && strings.HasPrefix(line, "|")
		if !inTable || header || strings.HasPrefix(line, "| ---") {
			continue
		}
		cells := strings.Split(line, " | ")
		spans := strings.Split(cells[0], "`")
		if len(cells) != 3 || len(spans) < 3 || len(spans)%2 == 0 {
			t.Errorf("%s:%d: a row has a message in backticks, what it means, and what to do: %s", errorsPage, i+1, line)
			continue
		}
		for j := 1; j < len(spans); j += 2 {
			text := canonical(spans[j])
			if messages[text] != 0 {
				t.Errorf("%s:%d: is already in line %d: %s", errorsPage, i+1, messages[text], text)
			}
			messages[text] = i + 1
		}
	}
	return messages
}

// messagesOfSource are the messages of the engine and of package ati, each with
// a place where it stands.
func messagesOfSource(t *testing.T) map[string]string {
	t.Helper()
	c := newCollector()
	for _, dir := range []string{"../ati", ".."} { // the engine uses ati's constants
		paths, err := filepath.Glob(filepath.Join(dir, "*.go"))
		if err != nil {
			t.Fatal(err)
		}
		var files []*ast.File
		for _, path := range paths {
			if strings.HasSuffix(path, "_test.go") {
				continue
			}
			file, err := parser.ParseFile(c.fset, path, nil, parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			files = append(files, file)
		}
		c.collect(filepath.Base(dir), files)
	}
	if len(c.messages) < 150 {
		t.Fatalf("the source has only %d messages", len(c.messages))
	}
	return c.messages
}

// collector finds what may be a message: the text of each call that makes an
// error or a warning, and any other text with a blank in it, unless it stands
// where no message can. So a new way of giving a text is seen too.
type collector struct {
	fset      *token.FileSet
	constants map[string]string // by name; those of another package with its name
	messages  map[string]string // a text, with … for each value → file:line
}

func newCollector() *collector {
	return &collector{fset: token.NewFileSet(), constants: map[string]string{}, messages: map[string]string{}}
}

func (c *collector) collect(pkg string, files []*ast.File) {
	outside := maps.Clone(c.constants)
	for _, f := range files {
		for _, d := range f.Decls {
			c.define(d)
		}
	}
	ofPackage := maps.Clone(c.constants)
	for _, f := range files {
		for _, d := range f.Decls {
			c.constants = maps.Clone(ofPackage)
			ast.Inspect(d, func(n ast.Node) bool { c.define(n); return true })
			ast.Inspect(d, c.visit)
		}
	}
	for name, text := range ofPackage {
		if _, old := outside[name]; !old {
			outside[pkg+"."+name] = text
		}
	}
	c.constants = outside
}

// define notes the constants of a declaration.
func (c *collector) define(n ast.Node) {
	g, ok := n.(*ast.GenDecl)
	if !ok || g.Tok != token.CONST {
		return
	}
	for _, s := range g.Specs {
		v := s.(*ast.ValueSpec)
		for i, value := range v.Values {
			if text, all, _ := c.text(value); all {
				c.constants[v.Names[i].Name] = text
			}
		}
	}
}

// makers are the calls whose text is a message, however short.
var makers = []string{"errors.New", "fmt.Errorf", "fmt.Sprintf", "logical.ErrorResponse", "AddWarning", "warn", "fail", "keyError"}

// silent are the keys and calls whose texts are documentation, patterns or log
// lines.
var (
	silentKeys  = []string{"Description", "HelpSynopsis", "HelpDescription", "Help", "Name"}
	silentCalls = []string{"operation", "step", "display", "strings", "bytes", "regexp", "Logger"}
)

func (c *collector) visit(n ast.Node) bool {
	switch n := n.(type) {
	case *ast.ImportSpec, *ast.Field:
		return false
	case *ast.GenDecl:
		return n.Tok != token.CONST // noted where it is used
	case *ast.KeyValueExpr:
		key, _ := n.Key.(*ast.Ident)
		return key == nil || !slices.Contains(silentKeys, key.Name)
	case *ast.AssignStmt:
		field, _ := n.Lhs[0].(*ast.SelectorExpr)
		return field == nil || !slices.Contains(silentKeys, field.Sel.Name)
	case *ast.CaseClause:
		for _, stmt := range n.Body {
			ast.Inspect(stmt, c.visit)
		}
		return false
	case *ast.CallExpr:
		return c.call(n)
	case ast.Expr:
		text, _, parts := c.text(n)
		if strings.Contains(text, " ") {
			c.note(n, text)
		}
		if b, ok := n.(*ast.BinaryExpr); ok && b.Op != token.ADD {
			return b.Op != token.EQL && b.Op != token.NEQ
		}
		for _, p := range parts {
			ast.Inspect(p, c.visit)
		}
		if s, ok := n.(*ast.SelectorExpr); ok {
			ast.Inspect(s.X, c.visit) // the name behind it is no constant of this package
			return false
		}
		return text == ""
	}
	return true
}

// call visits a call. Its first text is the format of the arguments behind it.
func (c *collector) call(n *ast.CallExpr) bool {
	names := strings.Split(nameOf(n.Fun), ".")
	if slices.ContainsFunc(names, func(name string) bool { return slices.Contains(silentCalls, name) }) {
		for _, arg := range n.Args {
			if _, constant, _ := c.text(arg); !constant {
				ast.Inspect(arg, c.visit)
			}
		}
		return false
	}
	maker := slices.Contains(makers, nameOf(n.Fun)) || slices.Contains(makers, names[len(names)-1])
	ast.Inspect(n.Fun, c.visit)
	args := n.Args
	for len(args) > 0 {
		format, all, _ := c.text(args[0])
		if !all || !verb.MatchString(format) {
			if all && maker {
				c.note(args[0], format)
			} else {
				ast.Inspect(args[0], c.visit)
			}
			args = args[1:]
			continue
		}
		values := args[1:]
		text := verb.ReplaceAllStringFunc(format, func(v string) string {
			if v == "%%" {
				return "%"
			}
			if len(values) == 0 {
				return "…"
			}
			value := values[0]
			values = values[1:]
			if text, all, _ := c.text(value); all && v == "%q" {
				return strconv.Quote(text)
			} else if all {
				return text
			}
			ast.Inspect(value, c.visit)
			return "…"
		})
		if maker || strings.Contains(text, " ") {
			c.note(args[0], text)
		}
		args = values
	}
	return false
}

var verb = regexp.MustCompile(`%[-+#0-9.]*[a-zA-Z%]`)

// text is the text of an expression, with … for what is not constant, and those
// parts; all tells that there are none.
func (c *collector) text(e ast.Expr) (text string, all bool, parts []ast.Expr) {
	switch e := e.(type) {
	case *ast.BasicLit:
		if e.Kind == token.STRING {
			text, err := strconv.Unquote(e.Value)
			return text, err == nil, nil
		}
	case *ast.Ident, *ast.SelectorExpr:
		if text, ok := c.constants[nameOf(e)]; ok {
			return text, true, nil
		}
	case *ast.BinaryExpr:
		x, allX, partsX := c.text(e.X)
		y, allY, partsY := c.text(e.Y)
		if e.Op != token.ADD || x == "" && y == "" {
			return "", false, nil
		}
		if x == "" {
			x, partsX = "…", []ast.Expr{e.X}
		}
		if y == "" {
			y, partsY = "…", []ast.Expr{e.Y}
		}
		return x + y, allX && allY, append(partsX, partsY...)
	}
	return "", false, nil
}

var letter = regexp.MustCompile(`\pL`)

// note keeps a text that has more than values and punctuation in it.
func (c *collector) note(n ast.Node, text string) {
	if text = canonical(text); letter.MatchString(text) && c.messages[text] == "" {
		p := c.fset.Position(n.Pos())
		c.messages[text] = p.Filename + ":" + strconv.Itoa(p.Line)
	}
}

// nameOf is a name as it is written, such as fmt.Errorf, with the call in
// b.Logger().Info left out.
func nameOf(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.Ident:
		return e.Name
	case *ast.SelectorExpr:
		return nameOf(e.X) + "." + e.Sel.Name
	case *ast.CallExpr:
		return nameOf(e.Fun)
	}
	return ""
}
