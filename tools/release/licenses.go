package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/google/licensecheck"
)

// std is the module path that SBOM tools give to Go's standard library.
const std = "std"

// module is a module that a program is linked from.
type module struct {
	path, version string
	licenses      []string // SPDX identifiers
	texts         []file   // by their paths within the module
}

var (
	licenseFile = regexp.MustCompile(`(?i)^(un)?licen[cs]e([._-].*)?$|^copying([._-].*)?$`)
	// The Apache License requires that notices are passed on with it.
	noticeFile = regexp.MustCompile(`(?i)^notice([._-].*)?$`)
	// Licenses of documents, which are in no binary; and source files.
	otherFile = regexp.MustCompile(`(?i)\.(docs|go)$`)
)

// classify returns the SPDX identifiers of the licenses in a text, or nil if most
// of the text is no license that licensecheck knows.
func classify(text []byte) (ids []string) {
	coverage := licensecheck.Scan(text)
	if coverage.Percent < 75 {
		return nil
	}
	for _, match := range coverage.Match {
		if !match.IsURL {
			ids = append(ids, match.ID)
		}
	}
	return ids
}

// linked returns the modules that programs are linked from on a platform, sorted by
// path, and the standard library last. It fails on an unknown license.
func linked(root, goos, goarch string, programs ...string) ([]module, error) {
	list := exec.Command("go", "list", "-deps", "-f", "{{with .Module}}{{if not .Main}}"+
		"{{.Path}}\t{{.Version}}{{with .Replace}} => {{.Path}}{{end}}\t{{.Dir}}\t{{$.Dir}}{{end}}{{end}}")
	for _, program := range programs {
		list.Args = append(list.Args, "./cmd/"+program)
	}
	list.Dir, list.Stderr = root, os.Stderr
	list.Env = append(os.Environ(), "GOOS="+goos, "GOARCH="+goarch, "CGO_ENABLED=0", "GOFLAGS=-mod=readonly")
	packages, err := list.Output()
	if err != nil {
		return nil, fmt.Errorf("list the packages that %s is linked from: %w", strings.Join(programs, " and "), err)
	}
	toolchain, err := exec.Command("go", "env", "GOVERSION", "GOROOT").Output()
	if err != nil {
		return nil, err
	}
	version, goRoot, _ := strings.Cut(strings.TrimSpace(string(toolchain)), "\n")
	lines := slices.Sorted(strings.Lines(string(packages)))
	lines = append(lines, strings.Join([]string{std, version, goRoot, goRoot}, "\t"))

	var modules []module
	var unknown []error
	for len(lines) > 0 {
		fields := strings.Split(strings.TrimSpace(lines[0]), "\t")
		of := strings.Join(fields[:3], "\t") + "\t"
		var dirs []string // of the linked packages, and those above them in the module
		for ; len(lines) > 0 && strings.HasPrefix(lines[0], of); lines = lines[1:] {
			dir := strings.TrimSpace(lines[0][len(of):])
			for ; len(dir) >= len(fields[2]); dir = filepath.Dir(dir) {
				dirs = append(dirs, dir)
			}
		}
		slices.Sort(dirs)
		m, err := read(fields[0], fields[1], fields[2], slices.Compact(dirs))
		unknown = append(unknown, err)
		modules = append(modules, m)
	}
	return modules, errors.Join(unknown...)
}

// read finds the licenses and notices of a module in some of its directories.
func read(path, version, root string, dirs []string) (module, error) {
	m := module{path: path, version: version}
	for _, dir := range dirs {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return m, err
		}
		for _, entry := range entries {
			isLicense := licenseFile.MatchString(entry.Name())
			if !entry.Type().IsRegular() || otherFile.MatchString(entry.Name()) || !isLicense && !noticeFile.MatchString(entry.Name()) {
				continue
			}
			text, err := os.ReadFile(filepath.Join(dir, entry.Name()))
			if err != nil {
				return m, err
			}
			within, err := filepath.Rel(root, filepath.Join(dir, entry.Name()))
			if err != nil {
				return m, err
			}
			m.texts = append(m.texts, file{filepath.ToSlash(within), 0o644, text})
			if !isLicense {
				continue
			}
			ids := classify(text)
			if len(ids) == 0 {
				return m, fmt.Errorf("%s %s: unknown license in %s", path, version, filepath.ToSlash(within))
			}
			m.licenses = append(m.licenses, ids...)
		}
	}
	if len(m.licenses) == 0 {
		return m, fmt.Errorf("%s %s: no license found", path, version)
	}
	slices.Sort(m.licenses)
	m.licenses = slices.Compact(m.licenses)
	return m, nil
}

// page returns the text of THIRD_PARTY_LICENSES.md.
func page(modules []module, programs ...string) string {
	var b strings.Builder
	b.WriteString(`# Third-party licenses

Modules linked into ` + "`" + strings.Join(programs, "` and `") + "`. `make licenses`" + ` writes this file and
` + "`make test`" + ` checks it. Where a module has several licenses, all of them are listed: a
module may offer a choice, or have parts under different licenses.

| Module | Version | License (SPDX) |
| --- | --- | --- |
`)
	for _, m := range modules {
		path, version := m.path, m.version
		if path == std {
			path, version = "Go standard library", "the toolchain's"
		}
		fmt.Fprintf(&b, "| %s | %s | %s |\n", path, version, strings.Join(m.licenses, ", "))
	}
	return b.String()
}
