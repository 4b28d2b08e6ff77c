package main

import (
	"bytes"
	"crypto/sha256"
	"debug/buildinfo"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"time"
)

const (
	plugin = "vault-plugin-secrets-ati"
	guard  = "ati-guard"

	licensesPage = "THIRD_PARTY_LICENSES.md"
)

// documents are the files and directories of the source that each archive contains, and
// examples those that the archive of a program contains.
var (
	documents = []string{"README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "docs"}
	examples  = map[string][]string{
		plugin: {"examples"},
		guard:  {"examples/guard", "examples/policies/proxy-guard.hcl"},
	}
)

// pack writes an archive and an SBOM for each binary, a Python wheel if there is one,
// BINARY_SHA256SUMS of the binaries by their names in the archives, and SHA256SUMS of all
// these files.
func pack(root, version string, date time.Time, wheel, out string, binaries []string) error {
	if len(binaries) == 0 {
		return errors.New("no binary to pack")
	}
	written := map[string][]byte{}
	var sums []string
	for _, path := range binaries {
		binary, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		info, err := buildinfo.Read(bytes.NewReader(binary))
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		if setting(info, "CGO_ENABLED") != "0" || setting(info, "-trimpath") != "true" {
			return fmt.Errorf("%s was not built by scripts/build.sh", path)
		}
		_, program, _ := strings.Cut(info.Path, "/cmd/")
		source, err := sourceFiles(root, program, version)
		if err != nil {
			return err
		}
		goos, goarch := setting(info, "GOOS"), setting(info, "GOARCH")
		modules, err := linked(root, goos, goarch, program)
		if err != nil {
			return err
		}
		if err := sameModules(info, modules); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}

		top := fmt.Sprintf("%s_%s_%s_%s", program, version, goos, goarch)
		name, archive, write := program, top+".tar.gz", tarGz
		if goos == "windows" {
			name, archive, write = program+".exe", top+".zip", zipped
		}
		files := slices.Concat(source, licenseFiles(modules), []file{
			{name, 0o755, binary},
			{licensesPage, 0o644, []byte(page(modules, program))},
		})
		for i := range files {
			files[i].name = top + "/" + files[i].name
		}
		if written[archive], err = write(files, date); err != nil {
			return err
		}
		sum := fmt.Sprintf("%x", sha256.Sum256(binary))
		if written[top+".cdx.json"], err = sbom(program, path, sum, version, date, modules); err != nil {
			return err
		}
		sums = append(sums, fmt.Sprintf("%s  %s/%s\n", sum, top, name))
		fmt.Printf("%s: %.1f MB, the binary %.1f MB, %d modules\n", archive, float64(len(written[archive]))/1e6, float64(len(binary))/1e6, len(modules))
	}
	// Sort by name, which starts in the same column of each line.
	slices.SortFunc(sums, func(a, b string) int { return strings.Compare(a[2*sha256.Size:], b[2*sha256.Size:]) })
	written["BINARY_SHA256SUMS"] = []byte(strings.Join(sums, ""))

	if wheel != "" {
		text, err := repack(wheel, date)
		if err != nil {
			return fmt.Errorf("%s: %w", wheel, err)
		}
		written[filepath.Base(wheel)] = text
	}

	var all bytes.Buffer
	for _, name := range slices.Sorted(maps.Keys(written)) {
		fmt.Fprintf(&all, "%x  %s\n", sha256.Sum256(written[name]), name)
	}
	written["SHA256SUMS"] = all.Bytes()
	for name, text := range written {
		if err := os.WriteFile(filepath.Join(out, name), text, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// sourceFiles returns the files of the source that the archive of a program contains.
func sourceFiles(root, program, version string) (files []file, err error) {
	if examples[program] == nil {
		return nil, fmt.Errorf("%q is not a program of a release", program)
	}
	for _, top := range slices.Concat(documents, examples[program]) {
		err := filepath.WalkDir(filepath.Join(root, top), func(path string, entry fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			if entry.IsDir() {
				if strings.HasPrefix(entry.Name(), ".") && path != root {
					return fs.SkipDir
				}
				return nil
			}
			name, err := filepath.Rel(root, path)
			if err != nil {
				return err
			}
			name = filepath.ToSlash(name)
			if strings.HasPrefix(entry.Name(), ".") {
				return nil
			}
			text, err := os.ReadFile(path)
			mode := fs.FileMode(0o644)
			if bytes.HasPrefix(text, []byte("#!")) {
				mode = 0o755
			}
			files = append(files, file{name, mode, text})
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	if program == plugin {
		register, err := registerScript(root, version)
		return append(files, register), err
	}
	return files, nil
}

// registerScript returns register.sh for a version.
func registerScript(root, version string) (file, error) {
	text, err := os.ReadFile(filepath.Join(root, "scripts", "register.sh"))
	if err != nil {
		return file{}, err
	}
	before, after, found := strings.Cut(string(text), "\nversion=\n")
	if !found {
		return file{}, errors.New("scripts/register.sh has no line \"version=\" to write the version into")
	}
	return file{"register.sh", 0o755, []byte(before + "\nversion=" + version + "\n" + after)}, nil
}

// licenseFiles returns the license texts of modules, as files below licenses/.
func licenseFiles(modules []module) (files []file) {
	for _, m := range modules {
		for _, f := range m.texts {
			files = append(files, file{"licenses/" + m.path + "@" + m.version + "/" + f.name, 0o644, f.text})
		}
	}
	return files
}

// setting returns a build setting of a binary, or an empty string.
func setting(info *debug.BuildInfo, key string) string {
	for _, s := range info.Settings {
		if s.Key == key {
			return s.Value
		}
	}
	return ""
}

// sameModules checks that the modules whose licenses were collected are those that
// the binary lists, in the same order.
func sameModules(info *debug.BuildInfo, modules []module) error {
	var in, have []string
	for _, d := range append(info.Deps, &debug.Module{Path: std, Version: info.GoVersion}) {
		in = append(in, d.Path+" "+d.Version)
	}
	for _, m := range modules {
		have = append(have, m.path+" "+m.version)
	}
	if !slices.Equal(in, have) {
		return fmt.Errorf("the binary is linked from %q, but licenses were collected from %q", in, have)
	}
	return nil
}
