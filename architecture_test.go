package atisecrets_test

import (
	"encoding/json"
	"errors"
	"go/ast"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "vault-plugin-secrets-ati"

// fileOrder lists the package's files from the top down. A file refers only to
// files further down: the paths do not know each other, and only the factory
// knows the paths.
var fileOrder = []string{"factory.go", "path_*.go", "revocations.go", "backend.go", "node.go", "store.go", "role_cache.go", "config.go"}

func TestArchitecture_FilesReferDownward(t *testing.T) {
	t.Parallel()
	level := func(file string) int {
		i := slices.IndexFunc(fileOrder, func(pattern string) bool {
			matched, err := path.Match(pattern, file)
			return err == nil && matched
		})
		if i < 0 {
			t.Fatalf("%s is not in fileOrder: add it where it belongs", file)
		}
		return i
	}
	references := fileReferences(t)
	for r := range references {
		if level(r.from) >= level(r.to) {
			t.Errorf("%s refers to %s, which %s declares: references go down only, in the order %s", r.from, r.name, r.to, strings.Join(fileOrder, ", "))
		}
	}
	if len(references) < 50 {
		t.Errorf("only %d references were found", len(references))
	}
}

// A reference is a name that one file declares and another one uses.
type reference struct{ from, to, name string }

// fileReferences returns the references between the files of this package,
// without its tests.
func fileReferences(t *testing.T) map[reference]bool {
	t.Helper()
	files := token.NewFileSet()
	sources, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	var parsed []*ast.File
	for _, source := range sources {
		if strings.HasSuffix(source, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(files, source, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		parsed = append(parsed, file)
	}
	dependencies := goList(t, "-export", ".")
	config := types.Config{Importer: importer.ForCompiler(files, "gc", func(path string) (io.ReadCloser, error) {
		return os.Open(dependencies[path].Export)
	})}
	uses := map[*ast.Ident]types.Object{}
	pkg, err := config.Check(module, files, parsed, &types.Info{Uses: uses})
	if err != nil {
		t.Fatal(err)
	}
	references := map[reference]bool{}
	for ident, object := range uses {
		from, to := files.Position(ident.Pos()).Filename, files.Position(object.Pos()).Filename
		if object.Pkg() == pkg && from != to {
			references[reference{from, to, object.Name()}] = true
		}
	}
	return references
}

// TestArchitecture_ImportsGoOneWay checks the arrows of docs/architecture.md.
func TestArchitecture_ImportsGoOneWay(t *testing.T) {
	t.Parallel()
	const (
		command = module + "/cmd/vault-plugin-secrets-ati"
		role    = module + "/internal/role"
		keyring = module + "/internal/keyring"
		revoked = module + "/internal/revocation"
		param   = module + "/internal/param"
		refuse  = module + "/internal/refuse"
	)
	tools := []string{module + "/test/...", module + "/tools/...", module + "/bench/..."}
	packages := goList(t, "./...")
	for pkg, forbidden := range map[string][]string{
		module + "/ati": {module + "/...", "github.com/hashicorp/..."},
		param:           {module, role, keyring},
		refuse:          {module, role, keyring},
		// Without a context, a decision cannot reach storage or Vault.
		role:    {module, "context"},
		keyring: {module, "context"},
		revoked: {module + "/...", "context"},
		module:  append(tools, module+"/cmd/..."),
		command: tools,
	} {
		if len(packages[pkg].Imports) == 0 {
			t.Errorf("go list does not list %s with its imports", pkg)
		}
		seen := map[string]bool{pkg: true}
		for queue := []string{pkg}; len(queue) > 0; queue = queue[1:] {
			importing := queue[0]
			for _, imported := range packages[importing].Imports {
				if slices.ContainsFunc(forbidden, func(pattern string) bool {
					tree, isTree := strings.CutSuffix(pattern, "/...")
					return imported == tree || isTree && strings.HasPrefix(imported, tree+"/")
				}) {
					t.Errorf("%s imports %s, and %s must not depend on it", importing, imported, pkg)
					continue
				}
				// Vault's SDK imports context, so that only ati is followed out of the module.
				if !seen[imported] && (pkg == module+"/ati" || strings.HasPrefix(imported, module+"/")) {
					seen[imported] = true
					queue = append(queue, imported)
				}
			}
		}
	}
}

// A listedPackage is what go list reports about a package.
type listedPackage struct {
	ImportPath string
	Imports    []string
	Export     string // the file with its types
}

// goList returns the packages that the arguments name, and all that they import.
func goList(t *testing.T, args ...string) map[string]listedPackage {
	t.Helper()
	list := exec.Command("go", append([]string{"list", "-deps", "-json=ImportPath,Imports,Export"}, args...)...)
	list.Stderr = os.Stderr
	out, err := list.Output()
	if err != nil {
		t.Fatal(err)
	}
	packages := map[string]listedPackage{}
	for decoder := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p listedPackage
		if err := decoder.Decode(&p); errors.Is(err, io.EOF) {
			return packages
		} else if err != nil {
			t.Fatal(err)
		}
		packages[p.ImportPath] = p
	}
}
