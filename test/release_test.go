package test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"debug/buildinfo"
	"debug/elf"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// releaseDate is the date of releases in these tests, 2026-03-04 05:06:07 UTC.
const releaseDate = 1772600767

// releaseTree copies the source to a directory outside any Git repository.
func releaseTree(t testing.TB) string {
	t.Helper()
	root, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	tree := filepath.Join(t.TempDir(), "tree")
	copyTree(t, root, tree)
	return tree
}

// cleanEnv returns the environment without the variables of a Git hook, which name another
// repository, and those of an enclosing make.
func cleanEnv() []string {
	return slices.DeleteFunc(os.Environ(), func(v string) bool {
		return strings.HasPrefix(v, "GIT_") || strings.HasPrefix(v, "MAKE") || strings.HasPrefix(v, "MFLAGS=")
	})
}

// makeRelease makes a release for this platform, without the Python package, which needs
// Python. Variables in env override the defaults.
func makeRelease(t testing.TB, tree, dist string, env ...string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "/bin/sh", "-c", `umask "${UMASK:-022}" && exec make --no-print-directory release`)
	cmd.Dir = tree
	cmd.Env = append(cleanEnv(), "PLATFORMS=host", "WHEEL=no", "VERSION=", "SOURCE_DATE_EPOCH=", "RELEASE_SIGN=", "DIST="+dist)
	cmd.Env = append(cmd.Env, env...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

var releases sync.Map // version → *sync.Once

// released makes a release of a version, once, and returns its directory.
func released(t testing.TB, version string) (dist string) {
	t.Helper()
	dist = filepath.Join(pluginDirs, "release-"+version)
	once, _ := releases.LoadOrStore(version, new(sync.Once))
	once.(*sync.Once).Do(func() {
		out, err := makeRelease(t, releaseTree(t), dist, "VERSION="+version, fmt.Sprint("SOURCE_DATE_EPOCH=", releaseDate))
		if err != nil {
			t.Errorf("release %s: %v\n%s", version, err, out)
		}
		if !strings.Contains(out, "NOT SIGNED") {
			t.Errorf("make release does not print that the release is not signed:\n%s", out)
		}
	})
	if t.Failed() {
		t.FailNow()
	}
	return dist
}

const guardName = "ati-guard"

// programs are the programs of a release, in the order of its checksums.
var programs = []string{guardName, pluginName}

// archiveTop returns the name of the top directory in a program's archive for this
// platform.
func archiveTop(program, version string) string {
	return fmt.Sprintf("%s_%s_%s_%s", program, version, runtime.GOOS, runtime.GOARCH)
}

// unpack extracts an archive to a directory and returns its headers and file contents by
// name.
func unpack(t testing.TB, archive, to string) (map[string]*tar.Header, map[string][]byte) {
	t.Helper()
	f, err := os.Open(archive)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	headers, texts := map[string]*tar.Header{}, map[string][]byte{}
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return headers, texts
		}
		if err != nil {
			t.Fatal(err)
		}
		if !filepath.IsLocal(h.Name) || headers[h.Name] != nil {
			t.Fatalf("%s contains an invalid or duplicate name %q", archive, h.Name)
		}
		headers[h.Name] = h
		if texts[h.Name], err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(to, h.Name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, texts[h.Name], fs.FileMode(h.Mode)); err != nil {
			t.Fatal(err)
		}
	}
}

func filesIn(t testing.TB, dir string) map[string][]byte {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	texts := map[string][]byte{}
	for _, entry := range entries {
		if texts[entry.Name()], err = os.ReadFile(filepath.Join(dir, entry.Name())); err != nil {
			t.Fatal(err)
		}
	}
	return texts
}

func sumOf(b []byte) string { return fmt.Sprintf("%x", sha256.Sum256(b)) }

func commitAll(t testing.TB, tree string) {
	t.Helper()
	for _, args := range [][]string{{"init", "-q"}, {"add", "."}, {"commit", "-q", "-m", "all"}} {
		cmd := exec.Command("git", append([]string{"-c", "user.name=t", "-c", "user.email=t@example.com", "-c", "commit.gpgsign=false"}, args...)...)
		cmd.Dir = tree
		cmd.Env = append(cleanEnv(), fmt.Sprintf("GIT_COMMITTER_DATE=@%d +0900", releaseDate))
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("git %s: %v\n%s", args[0], err, out)
		}
	}
}

// fakeSigner returns a command that writes a "signature" next to a file.
func fakeSigner(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "a signer")
	script := "#!/bin/sh\n[ \"$#\" = 2 ] && [ \"$1\" = --key=mine ] && sed 's/^/signed: /' \"$2\" >\"$2.sig\"\n"
	if err := os.WriteFile(path, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	return shellQuote(path) + " --key=mine"
}

// A release depends only on the source: it is the same when made from a clone, in another
// directory, with other settings, and signed.
func TestRelease_Reproducible(t *testing.T) {
	t.Parallel()
	one := filesIn(t, released(t, "v0.1.0"))

	tree, dist := releaseTree(t), t.TempDir()
	commitAll(t, tree)
	for _, program := range programs {
		previous := filepath.Join(dist, archiveTop(program, "v0.0.1")+".tar.gz")
		if err := os.WriteFile(previous, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// VERSION comes from main.go and the date from the commit.
	out, err := makeRelease(t, tree, dist, "UMASK=077", "TZ=Asia/Tokyo", "GOOS=windows", "GOARCH=386", "GOAMD64=v3",
		"GOFLAGS=-buildvcs=true -tags=mine", "RELEASE_SIGN="+fakeSigner(t))
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	another := filesIn(t, dist)

	if want := "signed: " + strings.ReplaceAll(strings.TrimSpace(string(another["SHA256SUMS"])), "\n", "\nsigned: ") + "\n"; string(another["SHA256SUMS.sig"]) != want {
		t.Errorf("the signature is\n%s\nwant\n%s", another["SHA256SUMS.sig"], want)
	}
	if !strings.Contains(out, "SHA256SUMS is signed") {
		t.Errorf("make release does not print that the release is signed:\n%s", out)
	}
	delete(another, "SHA256SUMS.sig")
	sums := func(files map[string][]byte) map[string]string {
		sums := map[string]string{}
		for name, text := range files {
			sums[name] = sumOf(text)
		}
		return sums
	}
	if diff := cmp.Diff(sums(one), sums(another)); diff != "" {
		t.Errorf("two releases (-one +another):\n%s", diff)
	}
	for _, program := range programs {
		_, texts := unpack(t, filepath.Join(dist, archiveTop(program, "v0.1.0")+".tar.gz"), t.TempDir())
		for name, text := range texts {
			if bytes.Contains(text, []byte(tree)) {
				t.Errorf("%s contains the path %s", name, tree)
			}
		}
	}
}

// The binaries have the version of the release, and need no library of the host.
func TestRelease_Binaries(t *testing.T) {
	t.Parallel()
	for _, program := range programs {
		top, dir := archiveTop(program, "v0.0.9"), t.TempDir()
		unpack(t, filepath.Join(released(t, "v0.0.9"), top+".tar.gz"), dir)
		binary := filepath.Join(dir, top, program)
		out, err := exec.Command(binary, "-version").CombinedOutput()
		if err != nil || string(out) != program+" v0.0.9\n" {
			t.Errorf("%s -version prints %q (%v)", program, out, err)
		}
		if runtime.GOOS != "linux" {
			continue
		}
		f, err := elf.Open(binary)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if slices.ContainsFunc(f.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP || p.Type == elf.PT_DYNAMIC }) {
			t.Errorf("%s is linked dynamically", program)
		}
	}
}

// By default, a release is for eight platforms, but has no guard for Windows, where it does
// not run. The test builds nothing.
func TestRelease_Platforms(t *testing.T) {
	t.Parallel()
	real, err := exec.LookPath("go")
	if err != nil {
		t.Fatal(err)
	}
	bin, dist := t.TempDir(), t.TempDir()
	fake := `#!/bin/sh
case "$1" in
build) ;;
-C)
  while [ "$1" != -out ]; do shift; done
  for binary in "$@"; do echo "$binary"; done | sed -n 's#.*/\([^/]*/[^/]*/[^/]*\)$#\1#; 3,$p' >"$2/SHA256SUMS" ;;
*) exec ` + shellQuote(real) + ` "$@" ;;
esac
`
	if err := os.WriteFile(filepath.Join(bin, "go"), []byte(fake), 0o755); err != nil {
		t.Fatal(err)
	}
	out, err := makeRelease(t, releaseTree(t), dist, "PLATFORMS=", "VERSION=v0.1.0", fmt.Sprint("SOURCE_DATE_EPOCH=", releaseDate), "PATH="+bin+":"+os.Getenv("PATH"))
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	want := ""
	for _, goos := range []string{"darwin", "freebsd", "linux", "windows"} {
		for _, goarch := range []string{"amd64", "arm64"} {
			want += goos + "/" + goarch + "/" + pluginName + "\n"
			if goos != "windows" {
				want += goos + "/" + goarch + "/" + guardName + "\n"
			}
		}
	}
	if diff := cmp.Diff(want, string(filesIn(t, dist)["SHA256SUMS"])); diff != "" {
		t.Errorf("it packs (-want +got):\n%s", diff)
	}
}

// dependency is a module as a binary, an SBOM or a page of licenses has it.
type dependency struct{ Path, Version string }

// archive is a program's archive of v0.1.0. The names are those below its top directory.
type archive struct {
	program, top string
	headers      map[string]*tar.Header
	texts        map[string][]byte
	linked       []dependency // as the binary says
}

func releasedArchive(t testing.TB, program string) archive {
	t.Helper()
	a := archive{program, archiveTop(program, "v0.1.0"), map[string]*tar.Header{}, map[string][]byte{}, nil}
	headers, texts := unpack(t, filepath.Join(released(t, "v0.1.0"), a.top+".tar.gz"), t.TempDir())
	for name := range headers {
		within, found := strings.CutPrefix(name, a.top+"/")
		if !found {
			t.Errorf("%s is not in the one directory at the top", name)
		}
		a.headers[within], a.texts[within] = headers[name], texts[name]
	}
	info, err := buildinfo.Read(bytes.NewReader(a.texts[program]))
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range info.Deps {
		a.linked = append(a.linked, dependency{d.Path, d.Version})
	}
	a.linked = append(a.linked, dependency{"std", info.GoVersion})
	if len(a.linked) < 20 {
		t.Fatalf("the binary is linked from %v", a.linked)
	}
	return a
}

func TestRelease_ArchiveContents(t *testing.T) {
	t.Parallel()
	for program, test := range map[string]struct {
		own, examples []string
		least         int // number of files, without those in licenses
	}{
		pluginName: {own: []string{pluginName, "register.sh"}, examples: []string{"examples"}, least: 50},
		guardName:  {own: []string{guardName}, examples: []string{"examples/guard", "examples/policies/proxy-guard.hcl"}, least: 30},
	} {
		t.Run(program, func(t *testing.T) {
			t.Parallel()
			a := releasedArchive(t, program)
			a.checkFiles(t, test.own, test.examples, test.least)
			a.checkLicenses(t)
		})
	}
}

// checkFiles checks that an archive has the documents, these examples, and these files of
// its own, and no others outside licenses.
func (a archive) checkFiles(t *testing.T, own, examples []string, least int) {
	t.Helper()
	modes := map[string]fs.FileMode{}
	for name, h := range a.headers {
		if h.Typeflag != tar.TypeReg || h.Uid != 0 || h.Gid != 0 || h.Uname != "" || h.Gname != "" || h.ModTime.Unix() != releaseDate {
			t.Errorf("%s has the header %+v", name, h)
		}
		if !strings.HasPrefix(name, "licenses/") {
			modes[name] = fs.FileMode(h.Mode)
		} else if h.Mode != 0o644 {
			t.Errorf("%s has the mode %o", name, h.Mode)
		}
	}
	wanted := map[string]fs.FileMode{"THIRD_PARTY_LICENSES.md": 0o644}
	for _, name := range own {
		wanted[name] = 0o755
	}
	list := exec.Command("git", "ls-files", "--cached", "--others", "--exclude-standard", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "docs")
	list.Args = append(list.Args, examples...)
	list.Dir, list.Env = "..", cleanEnv()
	names, err := list.Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range strings.Fields(string(names)) {
		want, err := os.ReadFile(filepath.Join("..", name))
		if err != nil {
			t.Fatal(err)
		}
		if wanted[name] = 0o644; bytes.HasPrefix(want, []byte("#!")) {
			wanted[name] = 0o755
		}
		if !bytes.Equal(a.texts[name], want) {
			t.Errorf("%s is another", name)
		}
	}
	if diff := cmp.Diff(wanted, modes); diff != "" || len(wanted) < least {
		t.Errorf("%d files and modes (-want +got):\n%s", len(wanted), diff)
	}
}

// checkLicenses checks that the licenses are those of the modules, as they are in the
// modules.
func (a archive) checkLicenses(t *testing.T) {
	t.Helper()
	dirs := moduleDirs(t, a.linked)
	of := map[string]map[string][]byte{} // directory in licenses/ → file → text
	for name, text := range a.texts {
		within, found := strings.CutPrefix(name, "licenses/")
		if !found {
			continue
		}
		// The longest: one module's path may begin with that of another.
		dir := ""
		for d := range dirs {
			if strings.HasPrefix(within, d+"/") && len(d) > len(dir) {
				dir = d
			}
		}
		if dir == "" {
			t.Errorf("%s is of no module that the binary is linked from", name)
			continue
		}
		if of[dir] == nil {
			of[dir] = map[string][]byte{}
		}
		of[dir][strings.TrimPrefix(within, dir+"/")] = text
	}
	for dir, source := range dirs {
		if len(of[dir]) == 0 {
			t.Errorf("there is no license of %s", dir)
		}
		for name, text := range of[dir] {
			want, err := os.ReadFile(filepath.Join(source, name))
			if err != nil || !bytes.Equal(text, want) || len(text) == 0 {
				t.Errorf("the text of %s of %s is another (%v)", name, dir, err)
			}
		}
		// Each license and notice at the module's top is there.
		entries, err := os.ReadDir(source)
		if err != nil {
			t.Fatal(err)
		}
		for _, entry := range entries {
			name := strings.ToLower(entry.Name())
			is := strings.HasPrefix(name, "licen") || strings.HasPrefix(name, "notice") || strings.HasPrefix(name, "copying")
			if is && entry.Type().IsRegular() && !strings.HasSuffix(name, ".docs") && of[dir][entry.Name()] == nil {
				t.Errorf("%s of %s is missing", entry.Name(), dir)
			}
		}
	}
	// Of packages with a license of their own.
	for dir, name := range map[string]string{"github.com/go-jose/go-jose/v4@": "json/LICENSE", "github.com/hashicorp/golang-lru/v2@": "simplelru/LICENSE_list"} {
		found := false
		for d, texts := range of {
			found = found || strings.HasPrefix(d, dir) && texts[name] != nil
		}
		if !found {
			t.Errorf("%s of %s is missing", name, dir)
		}
	}
}

// moduleDirs are the directories of modules, by their names in licenses/.
func moduleDirs(t testing.TB, modules []dependency) map[string]string {
	t.Helper()
	dirs := map[string]string{}
	args := []string{"list", "-mod=readonly", "-m", "-f", "{{.Path}}@{{.Version}} {{.Dir}}"}
	for _, m := range modules {
		if m.Path == "std" {
			out, err := exec.Command("go", "env", "GOROOT").Output()
			if err != nil {
				t.Fatal(err)
			}
			dirs["std@"+m.Version] = strings.TrimSpace(string(out))
			continue
		}
		args = append(args, m.Path)
	}
	list := exec.Command("go", args...)
	list.Dir = ".."
	out, err := list.Output()
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(out)) {
		name, dir, _ := strings.Cut(strings.TrimSpace(line), " ")
		dirs[name] = dir
	}
	for _, m := range modules {
		if dirs[m.Path+"@"+m.Version] == "" {
			t.Fatalf("%s %s is not in the module cache", m.Path, m.Version)
		}
	}
	return dirs
}

// As sha256sum -c would read them.
func TestRelease_Checksums(t *testing.T) {
	t.Parallel()
	dist := filesIn(t, released(t, "v0.1.0"))
	listed := func(list string, of map[string][]byte) (names []string) {
		for line := range strings.Lines(string(dist[list])) {
			m := regexp.MustCompile(`^([0-9a-f]{64})  (\S+)\n$`).FindStringSubmatch(line)
			if m == nil {
				t.Fatalf("%s has the line %q", list, line)
			}
			if text, found := of[m[2]]; !found || sumOf(text) != m[1] {
				t.Errorf("%s: the sum of %s is not %s", list, m[2], m[1])
			}
			names = append(names, m[2])
		}
		return names
	}
	files, binaries, inArchives := []string{"BINARY_SHA256SUMS"}, []string{}, map[string][]byte{}
	for _, program := range programs {
		a := releasedArchive(t, program)
		files = append(files, a.top+".cdx.json", a.top+".tar.gz")
		binaries = append(binaries, a.top+"/"+program)
		inArchives[a.top+"/"+program] = a.texts[program]
	}
	if diff := cmp.Diff(files, listed("SHA256SUMS", dist)); diff != "" {
		t.Errorf("SHA256SUMS lists (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(binaries, listed("BINARY_SHA256SUMS", inArchives)); diff != "" {
		t.Errorf("BINARY_SHA256SUMS lists (-want +got):\n%s", diff)
	}
	if len(dist) != len(files)+1 {
		t.Errorf("the release has %d files", len(dist))
	}
}

func TestRelease_SBOM(t *testing.T) {
	t.Parallel()
	for _, program := range programs {
		t.Run(program, func(t *testing.T) {
			t.Parallel()
			releasedArchive(t, program).checkSBOM(t)
		})
	}
}

func (a archive) checkSBOM(t *testing.T) {
	t.Helper()
	type component struct {
		Name, Version, PURL string
		Ref                 string `json:"bom-ref"`
		Hashes              []struct{ Alg, Content string }
		Evidence            struct {
			Licenses []struct{ License struct{ ID string } }
		}
	}
	var bom struct {
		BOMFormat, SpecVersion, SerialNumber string
		Metadata                             struct {
			Timestamp time.Time
			Component component
		}
		Components   []component
		Dependencies []struct {
			Ref       string
			DependsOn []string
		}
	}
	if err := json.Unmarshal(filesIn(t, released(t, "v0.1.0"))[a.top+".cdx.json"], &bom); err != nil {
		t.Fatal(err)
	}
	if bom.BOMFormat != "CycloneDX" || bom.SpecVersion != "1.6" || bom.SerialNumber != "" || bom.Metadata.Timestamp.Unix() != releaseDate {
		t.Errorf("the document is %s %s of %v, with the serial number %q", bom.BOMFormat, bom.SpecVersion, bom.Metadata.Timestamp, bom.SerialNumber)
	}
	self := bom.Metadata.Component
	if self.Name != a.program || self.PURL != "pkg:golang/vault-plugin-secrets-ati@v0.1.0#cmd/"+a.program || self.Version != "v0.1.0" || len(self.Hashes) != 1 || self.Hashes[0].Content != sumOf(a.texts[a.program]) {
		t.Errorf("it is of %+v", self)
	}
	var listed []dependency
	var refs []string
	licenses := map[string]string{}
	for _, c := range bom.Components {
		listed = append(listed, dependency{c.Name, c.Version})
		refs = append(refs, c.Ref)
		if want := "pkg:golang/" + c.Name + "@" + strings.ReplaceAll(c.Version, "+", "%2B"); c.PURL != want {
			t.Errorf("%s has the purl %s, want %s", c.Name, c.PURL, want)
		}
		var ids []string
		for _, l := range c.Evidence.Licenses {
			ids = append(ids, l.License.ID)
		}
		licenses[c.Name] = strings.Join(ids, ", ")
	}
	if diff := cmp.Diff(a.linked, listed); diff != "" {
		t.Errorf("modules (-binary +SBOM):\n%s", diff)
	}
	if len(bom.Dependencies) != 1 || !slices.Equal(bom.Dependencies[0].DependsOn, refs) {
		t.Errorf("dependencies: %v", bom.Dependencies)
	}

	// So does the page of licenses, and it names the same.
	listed = nil
	for _, m := range regexp.MustCompile(`(?m)^\| (\S+|Go standard library) \| (.*) \| (.*) \|$`).FindAllStringSubmatch(string(a.texts["THIRD_PARTY_LICENSES.md"]), -1)[1:] {
		d := dependency{m[1], m[2]}
		switch d.Path {
		case "---":
			continue
		case "Go standard library":
			d = a.linked[len(a.linked)-1]
		}
		listed = append(listed, d)
		if m[3] != licenses[d.Path] || m[3] == "" {
			t.Errorf("%s is under %q by the page, and under %q by the SBOM", d.Path, m[3], licenses[d.Path])
		}
	}
	if diff := cmp.Diff(a.linked, listed); diff != "" {
		t.Errorf("modules (-binary +THIRD_PARTY_LICENSES.md):\n%s", diff)
	}
}

// runRegister runs a release's register.sh and then the commands that it prints.
func (s *server) runRegister(version string, args ...string) string {
	s.t.Helper()
	// The name of the directory must be quoted.
	dir := filepath.Join(s.t.TempDir(), "it's here")
	unpack(s.t, filepath.Join(released(s.t, version), archiveTop(pluginName, version)+".tar.gz"), dir)
	script := exec.Command("./register.sh", append([]string{"-d", s.pluginDir()}, args...)...)
	script.Dir = filepath.Join(dir, archiveTop(pluginName, version))
	printed, err := script.CombinedOutput()
	if err != nil {
		s.t.Fatalf("register.sh: %v\n%s", err, printed)
	}
	before := filesIn(s.t, s.pluginDir())
	if before[pluginName+"-"+version] != nil {
		s.t.Errorf("register.sh copied the plugin instead of printing the command")
	}
	run := exec.CommandContext(s.t.Context(), "/bin/sh", "-eu", "-c", string(printed))
	run.Dir = s.t.TempDir()
	run.Env = append(os.Environ(), "PATH="+pathWithVault(s.t), "VAULT_ADDR="+s.addr, "VAULT_TOKEN="+s.root, "HOME="+s.dir)
	out, err := run.CombinedOutput()
	if err != nil {
		s.t.Fatalf("%v\n%s\nof\n%s", err, out, printed)
	}
	return string(out)
}

// The commands that register.sh prints mount the plugin. Those of the next release upgrade
// the mount and keep its data.
func TestRegister_InstallAndUpgrade(t *testing.T) {
	t.Parallel()
	s := startVault(t)
	running := func() any { return s.read(s.root, "sys/mounts/team/ati").Data["running_plugin_version"] }
	s.runRegister("v0.0.9", "-p", "team/ati")
	if running() != "v0.0.9" {
		t.Errorf("running version %v", running())
	}
	s.write(s.root, "team/ati/config", data{"proxy_url": "https://ati.example.com"})
	secret := s.read(s.root, "team/ati/proxy-env").Data["ATI_JWT_SECRET"].(string)
	s.write(s.root, "team/ati/roles/r", data{"tools": "web_search", "rate": "*=100/hour"})
	claims(t, secret, s.read(s.root, "team/ati/creds/r"))
	state := func() []data {
		return []data{s.read(s.root, "team/ati/config").Data, s.read(s.root, "team/ati/roles/r").Data, s.read(s.root, "team/ati/proxy-env").Data}
	}
	before := state()

	out := s.runRegister("v0.1.0", "-p", "team/ati", "upgrade")
	if running() != "v0.1.0" || !strings.HasSuffix(strings.TrimSpace(out), "\nv0.1.0") {
		t.Errorf("running version %v; the last command printed:\n%s", running(), out)
	}
	if diff := cmp.Diff(before, state()); diff != "" {
		t.Errorf("after the upgrade (-before +after):\n%s", diff)
	}
	claims(t, secret, s.read(s.root, "team/ati/creds/r"))
	list := s.vault(s.root, "plugin", "list", "-detailed", "secret")
	for _, version := range []string{"v0.0.9", "v0.1.0"} {
		if !regexp.MustCompile(`(?m)^` + pluginName + `\s.*\s` + regexp.QuoteMeta(version) + `\s`).MatchString(list) {
			t.Errorf("plugin list has no %s:\n%s", version, list)
		}
	}
	// Both binaries exist, so that a downgrade is possible.
	in := filesIn(t, s.pluginDir())
	if len(in) != 2 || in[pluginName+"-v0.0.9"] == nil || in[pluginName+"-v0.1.0"] == nil {
		t.Errorf("the plugin directory has %d files", len(in))
	}
}

func TestRegister_Output(t *testing.T) {
	t.Parallel()
	script := releasedArchive(t, pluginName).texts["register.sh"]
	tool := func(dir, name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+text+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	sums := map[string]func(path string){
		"sha256sum": func(path string) { tool(path, "sha256sum", `cat >/dev/null; echo "$A_SUM  -"`) },
		"shasum":    func(path string) { tool(path, "shasum", `[ "$*" = "-a 256" ] && cat >/dev/null && echo "$A_SUM  -"`) },
		"sha256":    func(path string) { tool(path, "sha256", `[ "$1" = -q ] && [ -s "$2" ] && echo "$A_SUM"`) },
		"none":      func(string) {},
	}
	const sum = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	for name, test := range map[string]struct {
		sum, binary, output string
		script              []byte
		args                []string
		want                string
		fails               bool
	}{
		"by sha256sum": {sum: "sha256sum", want: `# On each node of the cluster:
cp {dir}/vault-plugin-secrets-ati /etc/vault/plugins/vault-plugin-secrets-ati-v0.1.0
# Once per cluster:
vault plugin register -sha256=` + sum + ` -command=vault-plugin-secrets-ati-v0.1.0 -version=v0.1.0 secret vault-plugin-secrets-ati
vault secrets enable -path=ati vault-plugin-secrets-ati
# If a previous version is already mounted, use instead: {dir}/register.sh upgrade
`},
		"an upgrade, by shasum": {sum: "shasum", args: []string{"-d", "/a b/", "-p", "it's", "upgrade"}, want: `# On each node of the cluster:
cp {dir}/vault-plugin-secrets-ati '/a b/vault-plugin-secrets-ati-v0.1.0'
# Once per cluster:
vault plugin register -sha256=` + sum + ` -command=vault-plugin-secrets-ati-v0.1.0 -version=v0.1.0 secret vault-plugin-secrets-ati
vault secrets tune -plugin-version=v0.1.0 'it'\''s'
vault plugin reload -plugin=vault-plugin-secrets-ati -scope=global
# Must print v0.1.0:
vault read -field=running_plugin_version sys/mounts/'it'\''s'
`},
		"for Windows, by FreeBSD's sha256": {sum: "sha256", binary: pluginName + ".exe", want: `# On each node of the cluster:
cp {dir}/vault-plugin-secrets-ati.exe /etc/vault/plugins/vault-plugin-secrets-ati-v0.1.0.exe
# Once per cluster:
vault plugin register -sha256=` + sum + ` -command=vault-plugin-secrets-ati-v0.1.0.exe -version=v0.1.0 secret vault-plugin-secrets-ati
vault secrets enable -path=ati vault-plugin-secrets-ati
# If a previous version is already mounted, use instead: {dir}/register.sh upgrade
`},
		"with nothing that computes a sum": {sum: "none", fails: true, want: "none of sha256sum, shasum, or sha256 is installed\n"},
		"with a sum that fails":            {sum: "sha256sum", output: "none", fails: true, want: "cannot compute the SHA-256 of {dir}/vault-plugin-secrets-ati\n"},
		"without a binary":                 {sum: "sha256sum", binary: "another", fails: true, want: "vault-plugin-secrets-ati not found in {dir}; run this script from an unpacked release archive\n"},
		"with an unknown word":             {sum: "sha256sum", args: []string{"upgarde"}, fails: true, want: "usage: register.sh [-d PLUGIN_DIRECTORY] [-p MOUNT_PATH] [upgrade]\n"},
		"from no release": {sum: "sha256sum", script: bytes.Replace(script, []byte("version=v0.1.0\n"), []byte("version=\n"), 1), fails: true,
			want: "run this script from an unpacked release archive\n"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir, err := filepath.EvalSymlinks(t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			// PATH has only programs that every Unix has.
			bin := t.TempDir()
			for _, program := range []string{"cat", "cut", "dirname", "sed"} {
				path, err := exec.LookPath(program)
				if err != nil {
					t.Fatal(err)
				}
				if err := os.Symlink(path, filepath.Join(bin, program)); err != nil {
					t.Fatal(err)
				}
			}
			sums[test.sum](bin)
			if test.script == nil {
				test.script = script
			}
			if test.binary == "" {
				test.binary = pluginName
			}
			for name, text := range map[string][]byte{"register.sh": test.script, test.binary: []byte("a binary")} {
				if err := os.WriteFile(filepath.Join(dir, name), text, 0o755); err != nil {
					t.Fatal(err)
				}
			}
			output := sum
			if test.output == "none" {
				output = ""
			}
			cmd := exec.Command(filepath.Join(dir, "register.sh"), test.args...)
			cmd.Dir = t.TempDir()
			cmd.Env = []string{"PATH=" + bin, "A_SUM=" + output}
			out, err := cmd.CombinedOutput()
			if want := strings.ReplaceAll(test.want, "{dir}", dir); string(out) != want || (err != nil) != test.fails {
				t.Errorf("%v\n%s\nwant\n%s", err, out, want)
			}
		})
	}
}

// The Dockerfile copies files that the archives contain. It puts the plugin where Vault and
// OpenBao expect it, and the guard where its unit expects it. The test builds no image.
func TestDockerfile_MatchesArchive(t *testing.T) {
	t.Parallel()
	file := strings.NewReplacer("${VERSION}", "v0.1.0", "linux_${TARGETARCH}", runtime.GOOS+"_"+runtime.GOARCH).Replace(string(readFile(t, "../Dockerfile")))
	for program, test := range map[string]struct{ directory, runs string }{
		pluginName: {"/", "USER ${RUN_AS}\nENTRYPOINT [\"/" + pluginName + "\"]\n"},
		guardName:  {"/usr/local/bin/", "USER 0\nENTRYPOINT [\"/usr/local/bin/" + guardName + "\"]\nCMD [\"-config\", \"/etc/ati-guard/guard.json\"]\n"},
	} {
		a := releasedArchive(t, program)
		stage := "FROM scratch AS " + program + "-archive\nARG VERSION\nARG TARGETARCH\nADD " + a.top + ".tar.gz /\n"
		for _, want := range []string{stage, test.runs} {
			if !strings.Contains(file, want) {
				t.Errorf("the Dockerfile does not contain %q:\n%s", want, file)
			}
		}
		copied := map[string]string{}
		for _, m := range regexp.MustCompile(`(?m)^COPY --from=`+program+`-archive /(\S+) (\S+)$`).FindAllStringSubmatch(file, -1) {
			copied[m[2]] = m[1]
		}
		if diff := cmp.Diff(map[string]string{test.directory: a.top + "/" + program, "/licenses": a.top + "/licenses"}, copied); diff != "" {
			t.Errorf("what it copies, and where to (-want +got):\n%s", diff)
		}
	}
	unit := string(readFile(t, "../examples/guard/ati-guard.service"))
	if want := "\nExecStart=/usr/local/bin/ati-guard -config /etc/ati-guard/guard.json\n"; !strings.Contains(unit, want) {
		t.Errorf("the unit does not contain %q", want)
	}
}

// make release rejects a release that others could not reproduce, and invalid settings. It
// then leaves the previous release in place.
func TestRelease_Rejected(t *testing.T) {
	t.Parallel()
	date := fmt.Sprint("SOURCE_DATE_EPOCH=", releaseDate)
	for name, test := range map[string]struct {
		repository, dirty bool
		env               []string
		want              string
	}{
		"changes that are in no commit": {repository: true, dirty: true,
			want: "uncommitted changes would make this release impossible to reproduce:\n M README.md\n?? new.go\nCommit them, or build a pre-release: make release VERSION=v0.1.0-dev\n"},
		"such changes, as a version that is no pre-release": {repository: true, dirty: true, env: []string{"VERSION=v0.2.0"},
			want: "build a pre-release: make release VERSION=v0.2.0-dev\n"},
		"such changes as a pre-release, and a signer that fails": {repository: true, dirty: true, env: []string{"VERSION=v0.2.0-rc1", "RELEASE_SIGN=echo no key for >&2; false"},
			want: "RELEASE_SIGN failed; no release was written\n"},
		"a signer that writes no file": {env: []string{date, "RELEASE_SIGN=echo a signature of"},
			want: "a signature of SHA256SUMS\nRELEASE_SIGN wrote no file next to SHA256SUMS; no release was written\n"},
		"a source without a date":   {want: "SOURCE_DATE_EPOCH: is required outside a Git clone, where no commit has a date\n"},
		"a date that is none":       {env: []string{"SOURCE_DATE_EPOCH=today"}, want: "SOURCE_DATE_EPOCH=today: must be a number of seconds since 1970\n"},
		"a version without its v":   {env: []string{date, "VERSION=0.1.0"}, want: "VERSION=0.1.0: must be a semantic version with a leading v, such as v1.2.3 or v1.2.3-rc1\n"},
		"a version that is a path":  {env: []string{date, "VERSION=v0.1.0-../x"}, want: "VERSION=v0.1.0-../x: must be a semantic version"},
		"a version without a word":  {env: []string{date, "VERSION=v0.1.0-a..b"}, want: "VERSION=v0.1.0-a..b: must be a semantic version"},
		"a version of odd numbers":  {env: []string{date, "VERSION=v0.1.0-rc.01"}, want: "VERSION=v0.1.0-rc.01: must be a semantic version"},
		"a platform that isn't one": {env: []string{date, "PLATFORMS=linux/pdp11"}, want: "linux/pdp11"},
		"no platform":               {env: []string{date, "PLATFORMS= "}, want: "PLATFORMS is empty\n"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tree, dist := releaseTree(t), t.TempDir()
			if test.repository {
				commitAll(t, tree)
			}
			if test.dirty {
				for name, text := range map[string]string{"README.md": "changed", "new.go": "package atisecrets\n"} {
					if err := os.WriteFile(filepath.Join(tree, name), []byte(text), 0o755); err != nil {
						t.Fatal(err)
					}
				}
			}
			previous := archiveTop(pluginName, "v0.0.1") + ".tar.gz"
			if err := os.WriteFile(filepath.Join(dist, previous), nil, 0o600); err != nil {
				t.Fatal(err)
			}
			out, err := makeRelease(t, tree, dist, test.env...)
			if err == nil || !strings.Contains(out, test.want) {
				t.Errorf("%v\n%s\nwant an error that contains\n%s", err, out, test.want)
			}
			if left := filesIn(t, dist); len(left) != 1 || left[previous] == nil {
				t.Errorf("the directory of the previous release has %d files", len(left))
			}
		})
	}
}
