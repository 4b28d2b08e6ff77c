package test

import (
	"go/ast"
	"go/constant"
	"go/parser"
	"go/token"
	"go/types"
	"maps"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const (
	errorsPage = "../docs/errors.md"
	module     = "vault-plugin-secrets-ati"
)

// notOnThePage lists messages of the source that no user of the engine sees as they are.
var notOnThePage = func() map[string]string {
	texts := map[string]string{}
	for reason, list := range map[string][]string{
		"it joins two texts that are on the page":      {"item … of …", "rate of …: …"},
		"it is not for people":                         {"ati", "unknown member"},
		"reason says that no key of the mount matches": {"signature does not match"},
		"it cannot happen: Vault passes a configuration, and sizes and types are fixed": {
			"backend configuration is nil", "encode JWK Set: …",
		},
		"parseSecret rejects such a secret first": {"HS256 secret must be pairs of hexadecimal digits", "HS256 secret must not be empty"},
		"it is for callers in Go: the engine has checked the value, or does not use the function": {
			"must be one P-256 public key in PEM; …", "must be one P-256 public key in PEM; the PEM block type is …", "must be one P-256 public key in PEM; cannot parse key",
			"must be one P-256 public key in PEM; the key is for …", `must be one P-256 public key in PEM; the encoding is not canonical (use "openssl pkey -pubin" to rewrite it)`,
			"key is empty", "cannot sign with a public key", "TTL …: must be a whole number of seconds",
			"WithAudience requires at least one audience", "accepted audience must not be empty",
			"required issuer must not be empty; omit WithIssuer to skip the check", "leeway …: must be between 0s and …, the leeway of the proxy",
			"ProxyURL is required", "provision sandbox: …",
		},
	} {
		for _, text := range list {
			texts[text] = reason
		}
	}
	return texts
}()

// docs/errors.md has a row for each message of the engine, and no others.
func TestErrorsPage_ListsEveryMessage(t *testing.T) {
	t.Parallel()
	page, source := messagesOfPage(t), messagesOfSource(t)
	for _, text := range slices.Sorted(maps.Keys(source)) {
		at := source[text]
		switch reason, left := notOnThePage[text]; {
		case left && page[text] != 0:
			t.Errorf("%s: left out by this test (%s), but in line %d of the page: %s", at, reason, page[text], text)
		case !left && page[text] == 0:
			t.Errorf("%s: no row of %s has this message; add a row, with the message in backticks, what it means, and what to do: %s", at, errorsPage, text)
		case strings.ContainsAny(text, "|`\n"):
			t.Errorf("%s: not possible in a table: %s", at, text)
		}
	}
	for _, text := range slices.Sorted(maps.Keys(page)) {
		if source[text] == "" {
			t.Errorf("%s:%d: the source has no such message: %s", errorsPage, page[text], text)
		}
	}
	for text := range notOnThePage {
		if source[text] == "" {
			t.Errorf("this test leaves out a message that the source does not have: %s", text)
		}
	}
}

func TestErrorsPage_FindsEachFormOfMessage(t *testing.T) {
	t.Parallel()
	const other = `package other

const Default = "a default"
`
	const source = `package p

import (
	"fmt"

	"other"
)

const (
	rule  = "a rule"
	limit = 2 * 16
)

var ErrX = errors.New("sentinel")

func f(x string, n int) (warnings []string, err error) {
	const local = "of this function"
	resp.AddWarning("a warning")
	resp.AddWarning(fmt.Sprintf("a warning of %q, 100%%", x))
	warn := func(format string, args ...any) { warnings = append(warnings, fmt.Sprintf(format, args...)) }
	warn("shorthand %d", n)
	fail("%v", err)
	_ = fmt.Errorf("%s %q: %s", x, x, rule)
	_ = fmt.Errorf("%s must be %q: %w", local, rule, errors.New("nested"))
	_ = refuse.Errorf("limit of %v is %d, not %d", other.Default, limit, n)
	_ = parseKeyError("key; " + rule)
	_ = &TokenError{Op: "an operation", Err: errors.New("in a struct")}
	warnings = append(warnings, "assembled "+x+" of parts", fmt.Sprintf("in a list: %v", x))
	fields = append(fields, "not a warning")
	b.Logger().Info("a log line", "key", x)
	_ = Path{Description: "a description", Operations: operation(f, "a summary")}
	if x == "a value" {
		return noContent([]string{"without content"}), nil
	}
	return nil, &ScopeError{x, "of a scope"}
}

func g() error {
	const local = "of another function"
	return errors.New(local)
}
`
	c := newCollector()
	for _, text := range []string{other, source} {
		file, err := parser.ParseFile(c.fset, "p.go", text, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		c.collect(file.Name.Name, []*ast.File{file})
	}
	want := []string{
		"sentinel", "a warning", "a warning of …, 100%", "shorthand …", "… …: a rule", `of this function must be "a rule": …`, "nested",
		"limit of a default is 32, not …", "key; a rule", "in a struct", "assembled … of parts", "in a list: …", "without content", "of a scope", "of another function",
	}
	slices.Sort(want)
	if diff := cmp.Diff(want, slices.Sorted(maps.Keys(c.messages))); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if got, want := c.messages["a warning"], "p.go:18"; got != want {
		t.Errorf("the message is at %s, want %s", got, want)
	}
}

// canonical returns a message in the spelling by which the source and the page are
// compared: a value may be quoted.
func canonical(text string) string {
	return strings.TrimSpace(strings.ReplaceAll(text, `"…"`, "…"))
}

// messagesOfPage returns the code spans in the first column of the tables of messages,
// each with its line.
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
			t.Errorf("%s:%d: want a message in backticks, what it means, and what to do: %s", errorsPage, i+1, line)
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

// messagesOfSource returns the messages of the engine and of the packages that it
// imports from this module, each with its place.
func messagesOfSource(t *testing.T) map[string]string {
	t.Helper()
	c := newCollector()
	if _, err := c.Import(module); err != nil {
		t.Fatal(err)
	}
	if len(c.messages) < 150 || len(c.packages) < 6 {
		t.Fatalf("%d packages with only %d messages", len(c.packages), len(c.messages))
	}
	return c.messages
}

// collector finds messages: the texts that the constructors of errors and warnings are
// called with.
type collector struct {
	fset     *token.FileSet
	packages map[string]*types.Package // of this module, by path
	info     types.Info
	messages map[string]string // a text, with … for each value → file:line
}

func newCollector() *collector {
	return &collector{
		fset: token.NewFileSet(), packages: map[string]*types.Package{},
		info: types.Info{Types: map[ast.Expr]types.TypeAndValue{}}, messages: map[string]string{},
	}
}

// Import collects the messages of a package of this module, after those of the packages
// that it imports. Any other package is treated as empty.
func (c *collector) Import(pkg string) (*types.Package, error) {
	if known := c.packages[pkg]; known != nil {
		return known, nil
	}
	dir, ours := strings.CutPrefix(pkg, module)
	if !ours {
		empty := types.NewPackage(pkg, path.Base(pkg))
		empty.MarkComplete()
		return empty, nil
	}
	names, err := filepath.Glob(filepath.Join("..", dir, "*.go"))
	if err != nil {
		return nil, err
	}
	var files []*ast.File
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(c.fset, name, nil, parser.SkipObjectResolution)
		if err != nil {
			return nil, err
		}
		files = append(files, file)
	}
	return c.collect(pkg, files), nil
}

// collect evaluates the constants of a package, and adds its messages.
func (c *collector) collect(pkg string, files []*ast.File) *types.Package {
	config := types.Config{Importer: c, Error: func(error) {}} // packages that are treated as empty cause errors
	c.packages[pkg], _ = config.Check(pkg, c.fset, files, &c.info)
	for _, file := range files {
		ast.Inspect(file, func(n ast.Node) bool { c.visit(n); return true })
	}
	return c.packages[pkg]
}

func (c *collector) visit(n ast.Node) {
	switch n := n.(type) {
	case *ast.CompositeLit:
		if nameOf(n.Type) == "ScopeError" {
			c.note(n.Elts)
		}
	case *ast.CallExpr:
		switch name := nameOf(n.Fun); name {
		case "New", "Errorf", "Sprintf", "parseKeyError", "warn", "fail":
			if len(n.Args) > 0 {
				c.add(n.Args[0], c.format(n.Args[0], n.Args[1:]))
			}
		case "AddWarning", "noContent":
			c.note(n.Args)
		case "append":
			if strings.EqualFold(nameOf(n.Args[0]), "warnings") {
				c.note(n.Args[1:])
			}
		}
	}
}

// note adds the texts among the expressions, also those in a list.
func (c *collector) note(expressions []ast.Expr) {
	for _, e := range expressions {
		if list, ok := e.(*ast.CompositeLit); ok {
			c.note(list.Elts)
		} else {
			c.add(e, c.text(e))
		}
	}
}

var verb = regexp.MustCompile(`%[-+#0-9.]*[a-zA-Z%]`)

// format returns the text of a format and its arguments.
func (c *collector) format(format ast.Expr, args []ast.Expr) string {
	return verb.ReplaceAllStringFunc(c.text(format), func(v string) string {
		if v == "%%" {
			return "%"
		}
		if len(args) == 0 {
			return "…"
		}
		text := c.text(args[0])
		args = args[1:]
		if v == "%q" && text != "…" {
			return strconv.Quote(text)
		}
		return text
	})
}

// text returns an expression's text, with … for each part that is not constant.
func (c *collector) text(e ast.Expr) string {
	if value := c.info.Types[e].Value; value != nil && value.Kind() == constant.String {
		return constant.StringVal(value)
	} else if value != nil && value.Kind() == constant.Int {
		return value.ExactString()
	}
	if sum, ok := e.(*ast.BinaryExpr); ok && sum.Op == token.ADD {
		if text := c.text(sum.X) + c.text(sum.Y); letter.MatchString(text) { // not a number
			return text
		}
	}
	return "…"
}

var letter = regexp.MustCompile(`\pL`)

// add keeps a text that has more than values and punctuation in it.
func (c *collector) add(e ast.Expr, text string) {
	if text = canonical(text); letter.MatchString(text) && c.messages[text] == "" {
		p := c.fset.Position(e.Pos())
		c.messages[text] = p.Filename + ":" + strconv.Itoa(p.Line)
	}
}

// nameOf returns a name without what it is selected from: Errorf of fmt.Errorf.
func nameOf(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.Ident:
		return e.Name
	case *ast.SelectorExpr:
		return e.Sel.Name
	}
	return ""
}
