package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// std is the path that tools for SBOMs give to Go's standard library.
const std = "std"

// module is one that the plugin is linked from.
type module struct {
	path, version string
	licences      []string // SPDX identifiers
	texts         []file   // by their paths within the module
}

var (
	licenceFile = regexp.MustCompile(`(?i)^(un)?licen[cs]e([._-].*)?$|^copying([._-].*)?$`)
	// What the Apache License wants to be passed on beside itself.
	noticeFile = regexp.MustCompile(`(?i)^notice([._-].*)?$`)
	// Of documents, which are in no binary; and source files.
	otherFile = regexp.MustCompile(`(?i)\.(docs|go)$`)
)

// known are licences by the words that each of them has, in any spacing.
var known = []struct {
	id       string
	has, not *regexp.Regexp
}{
	{"MPL-2.0", regexp.MustCompile(`Mozilla Public License.*ersion 2\.0`), nil},
	{"Apache-2.0", regexp.MustCompile(`Apache License.*Version 2\.0`), nil},
	{"MIT", regexp.MustCompile(`Permission is hereby granted, free of charge`), nil},
	{"ISC", regexp.MustCompile(`Permission to use, copy, modify, and(/or)? distribute this software`), nil},
	{"BSD-3-Clause", regexp.MustCompile(`Redistribution and use in source and binary forms.*to endorse or promote products`), nil},
	{"BSD-2-Clause", regexp.MustCompile(`Redistribution and use in source and binary forms`), regexp.MustCompile(`to endorse or promote products`)},
}

func classify(text []byte) (ids []string) {
	words := strings.Join(strings.Fields(string(text)), " ")
	for _, l := range known {
		if l.has.MatchString(words) && (l.not == nil || !l.not.MatchString(words)) {
			ids = append(ids, l.id)
		}
	}
	return ids
}

// linked are the modules that the plugin is linked from on a platform, the
// standard library first, with their licences: those of the module, and those of
// the linked packages that have their own. An unknown one is an error.
func linked(root, goos, goarch string) ([]module, error) {
	out, err := exec.Command("go", "env", "GOVERSION", "GOROOT").Output()
	if err != nil {
		return nil, err
	}
	goVersion, goRoot, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	library, err := read(std, goVersion, goRoot, []string{goRoot})
	if err != nil {
		return nil, err
	}
	modules := []module{library}
	in, err := directories(root, goos, goarch)
	if err != nil {
		return nil, err
	}
	var unknown []error
	for _, m := range slices.SortedFunc(maps.Keys(in), func(a, b linkedModule) int { return strings.Compare(a.Path, b.Path) }) {
		with, err := read(m.Path, m.Version, m.Dir, slices.Sorted(maps.Keys(in[m])))
		if err != nil {
			unknown = append(unknown, err)
		}
		modules = append(modules, with)
	}
	return modules, errors.Join(unknown...)
}

type linkedModule struct{ Path, Version, Dir string }

// directories are those of the packages that the plugin is linked from, and those
// above them, up to their module's.
func directories(root, goos, goarch string) (map[linkedModule]map[string]bool, error) {
	list := exec.Command("go", "list", "-deps", "-json=Dir,Module", "./cmd/...")
	list.Dir, list.Stderr = root, os.Stderr
	list.Env = append(os.Environ(), "GOOS="+goos, "GOARCH="+goarch, "CGO_ENABLED=0", "GOFLAGS=-mod=readonly")
	out, err := list.Output()
	if err != nil {
		return nil, fmt.Errorf("list what the plugin is linked from: %w", err)
	}
	in := map[linkedModule]map[string]bool{}
	for decoder := json.NewDecoder(bytes.NewReader(out)); ; {
		var p struct {
			Dir    string
			Module *struct {
				linkedModule
				Main    bool
				Replace *struct{}
			}
		}
		if err := decoder.Decode(&p); errors.Is(err, io.EOF) {
			return in, nil
		} else if err != nil {
			return nil, err
		}
		if p.Module == nil || p.Module.Main {
			continue
		}
		m := p.Module.linkedModule
		if p.Module.Replace != nil {
			return nil, fmt.Errorf("%s is replaced by another module: that can't be released", m.Path)
		}
		if in[m] == nil {
			in[m] = map[string]bool{}
		}
		for dir := p.Dir; len(dir) >= len(m.Dir); dir = filepath.Dir(dir) {
			in[m][dir] = true
		}
	}
}

// read finds the licences and notices of a module in some of its directories.
func read(path, version, root string, dirs []string) (module, error) {
	m := module{path: path, version: version}
	for _, dir := range dirs {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return m, err
		}
		for _, entry := range entries {
			isLicence := licenceFile.MatchString(entry.Name())
			if !entry.Type().IsRegular() || otherFile.MatchString(entry.Name()) || !isLicence && !noticeFile.MatchString(entry.Name()) {
				continue
			}
			f := file{mode: 0o644}
			if f.text, err = os.ReadFile(filepath.Join(dir, entry.Name())); err != nil {
				return m, err
			}
			within, err := filepath.Rel(root, filepath.Join(dir, entry.Name()))
			if err != nil {
				return m, err
			}
			f.name = filepath.ToSlash(within)
			m.texts = append(m.texts, f)
			if !isLicence {
				continue
			}
			ids := classify(f.text)
			if len(ids) == 0 {
				return m, fmt.Errorf("%s %s: the licence in %s is not known", path, version, f.name)
			}
			m.licences = append(m.licences, ids...)
		}
	}
	if len(m.licences) == 0 {
		return m, fmt.Errorf("%s %s: no licence was found", path, version)
	}
	slices.Sort(m.licences)
	m.licences = slices.Compact(m.licences)
	return m, nil
}

// page is docs/licences.md.
func page(modules []module) string {
	var b strings.Builder
	b.WriteString(`# Licences of what the plugin is linked from

Written by ` + "`make licences`" + `, and checked by ` + "`make test`" + `. Where a module names
several licences, all are listed: it may offer a choice, or have parts.

| module | version | licence |
| --- | --- | --- |
`)
	for _, m := range modules {
		path, version := m.path, m.version
		if path == std {
			path, version = "Go's standard library", "as built with"
		}
		fmt.Fprintf(&b, "| %s | %s | %s |\n", path, version, strings.Join(m.licences, ", "))
	}
	return b.String()
}
