package main

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"cmp"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
	"time"
)

// date is odd: a ZIP's own dates have only even seconds.
var date = time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)

// archiveReader reads an archive: name, mode and date of each file, in its order, and its text.
type archiveReader func(archive []byte) ([]string, error)

func inTarGz(archive []byte) (got []string, err error) {
	z, err := gzip.NewReader(bytes.NewReader(archive))
	if err != nil {
		return nil, err
	}
	if !z.ModTime.IsZero() || z.Name != "" {
		return nil, fmt.Errorf("the gzip header has the name %q and the date %v", z.Name, z.ModTime)
	}
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return got, nil
		}
		if err != nil {
			return nil, err
		}
		if h.Uid != 0 || h.Gid != 0 || h.Uname != "" || h.Gname != "" {
			return nil, fmt.Errorf("%s has the owner %d/%d %q/%q", h.Name, h.Uid, h.Gid, h.Uname, h.Gname)
		}
		text, err := io.ReadAll(r)
		if err != nil {
			return nil, err
		}
		got = append(got, fmt.Sprint(h.Name, " ", h.FileInfo().Mode(), " ", h.ModTime.UTC().Format(time.RFC3339), " ", string(text)))
	}
}

func inZip(archive []byte) (got []string, err error) {
	r, err := zip.NewReader(bytes.NewReader(archive), int64(len(archive)))
	if err != nil {
		return nil, err
	}
	for _, f := range r.File {
		part, err := f.Open()
		if err != nil {
			return nil, err
		}
		text, err := io.ReadAll(part)
		if err != nil {
			return nil, err
		}
		got = append(got, fmt.Sprint(f.Name, " ", f.Mode(), " ", f.Modified.UTC().Format(time.RFC3339), " ", string(text)))
	}
	return got, nil
}

func TestArchives(t *testing.T) {
	long := "top/" + strings.Repeat("a-long-name/", 12) + "LICENSE"
	files := []file{{"top/z", 0o755, []byte("program")}, {long, 0o644, []byte("text")}, {"top/a", 0o644, nil}}
	want := []string{
		"top/a -rw-r--r-- 2026-03-04T05:06:07Z ",
		long + " -rw-r--r-- 2026-03-04T05:06:07Z text",
		"top/z -rwxr-xr-x 2026-03-04T05:06:07Z program",
	}
	tokyo := time.FixedZone("", 9*60*60)
	for name, archive := range map[string]struct {
		write func([]file, time.Time) ([]byte, error)
		read  archiveReader
	}{
		"tar.gz": {tarGz, inTarGz},
		"zip":    {zipped, inZip},
	} {
		t.Run(name, func(t *testing.T) {
			one, err := archive.write(files, date)
			if err != nil {
				t.Fatal(err)
			}
			got, err := archive.read(one)
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(got, want) {
				t.Errorf("it has\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
			slices.Reverse(files)
			if another, err := archive.write(files, date.In(tokyo)); err != nil || !bytes.Equal(one, another) {
				t.Errorf("of the same files in another order, and elsewhere, it is another (%v)", err)
			}
		})
	}
}

func TestRepack(t *testing.T) {
	var archives [][]byte
	for method, modified := range map[uint16]time.Time{zip.Store: date, zip.Deflate: date.AddDate(1, 0, 0)} {
		var b bytes.Buffer
		w := zip.NewWriter(&b)
		for _, name := range []string{"b", "a"} {
			part, err := w.CreateHeader(&zip.FileHeader{Name: name, Method: method, Modified: modified})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.WriteString(part, "text of "+name); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), "a.whl")
		if err := os.WriteFile(path, b.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
		archive, err := repack(path, date)
		if err != nil {
			t.Fatal(err)
		}
		archives = append(archives, archive)
	}
	got, err := inZip(archives[0])
	if want := []string{"a -rw-r--r-- 2026-03-04T05:06:07Z text of a", "b -rw-r--r-- 2026-03-04T05:06:07Z text of b"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("it has %q, want %q (%v)", got, want, err)
	}
	if !bytes.Equal(archives[0], archives[1]) {
		t.Error("of the same files, packed in another way, it is another")
	}
}

// Texts of the licenses 0BSD (grant and disclaimer) and ISC (with the condition).
const (
	grant      = "Permission to use, copy, modify, and/or distribute this software for any purpose with or without fee is hereby granted"
	condition  = ", provided that the above copyright notice and this permission notice appear in all copies"
	disclaimer = `.

THE SOFTWARE IS PROVIDED "AS IS" AND THE AUTHOR DISCLAIMS ALL WARRANTIES WITH REGARD TO THIS SOFTWARE INCLUDING ALL
IMPLIED WARRANTIES OF MERCHANTABILITY AND FITNESS. IN NO EVENT SHALL THE AUTHOR BE LIABLE FOR ANY SPECIAL, DIRECT,
INDIRECT, OR CONSEQUENTIAL DAMAGES OR ANY DAMAGES WHATSOEVER RESULTING FROM LOSS OF USE, DATA OR PROFITS, WHETHER IN AN
ACTION OF CONTRACT, NEGLIGENCE OR OTHER TORTIOUS ACTION, ARISING OUT OF OR IN CONNECTION WITH THE USE OR PERFORMANCE OF
THIS SOFTWARE.
`
	bsd = grant + disclaimer
	isc = grant + condition + disclaimer
)

func TestClassify(t *testing.T) {
	for text, want := range map[string]string{
		bsd:                           "0BSD",
		"Copyright 2026 A.\n\n" + isc: "ISC",
		isc + bsd:                     "ISC 0BSD",
		"All rights reserved.":        "",
		grant:                         "",
		isc + strings.Repeat("The words of another document. ", 20): "",
		"See https://opensource.org/license/isc":                    "",
	} {
		if got := strings.Join(classify([]byte(text)), " "); got != want {
			t.Errorf("%q is classified as %q, want %q", text, got, want)
		}
	}
}

func TestRead(t *testing.T) {
	british := "licen" + "ce.md" // in two parts for TestWords
	for name, test := range map[string]struct {
		files    map[string]string
		licenses []string
		texts    []string
		err      string
	}{
		"a license, a notice, and a package of its own": {
			files:    map[string]string{"LICENSE": isc, "NOTICE.txt": "Thanks.", "README": bsd, "licenses.go": bsd, "p/LICENSE-lib": bsd, "q/LICENSE": "of a package that is not linked"},
			licenses: []string{"0BSD", "ISC"},
			texts:    []string{"LICENSE", "NOTICE.txt", "p/LICENSE-lib"},
		},
		"the same license twice":  {files: map[string]string{british: isc, "COPYING": isc, "p/x": ""}, licenses: []string{"ISC"}, texts: []string{"COPYING", british}},
		"one of two is not known": {files: map[string]string{"LICENSE": isc, "p/LICENSE": "All rights reserved."}, err: "example.com/m v1.0.0: unknown license in p/LICENSE"},
		"none":                    {files: map[string]string{"README": isc, "NOTICE": isc, "p/x": ""}, err: "example.com/m v1.0.0: no license found"},
		"one of documents":        {files: map[string]string{"LICENSE.docs": isc, "p/x": ""}, err: "example.com/m v1.0.0: no license found"},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			for file, text := range test.files {
				path := filepath.Join(root, file)
				if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			m, err := read("example.com/m", "v1.0.0", root, []string{root, filepath.Join(root, "p")})
			if fmt.Sprint(err) != cmp.Or(test.err, "<nil>") {
				t.Fatalf("%v, want %q", err, test.err)
			}
			if err != nil {
				return
			}
			var texts []string
			for _, f := range m.texts {
				texts = append(texts, f.name)
				if string(f.text) != test.files[f.name] {
					t.Errorf("the text of %s is %q", f.name, f.text)
				}
			}
			if !slices.Equal(m.licenses, test.licenses) || !slices.Equal(texts, test.texts) {
				t.Errorf("licenses %q in %q, want %q in %q", m.licenses, texts, test.licenses, test.texts)
			}
		})
	}
}

func TestSameModules(t *testing.T) {
	info := &debug.BuildInfo{GoVersion: "go1.26.8", Deps: []*debug.Module{{Path: "example.com/a", Version: "v1.0.0"}}}
	all := []module{{path: "example.com/a", version: "v1.0.0"}, {path: std, version: "go1.26.8"}}
	if err := sameModules(info, all); err != nil {
		t.Error(err)
	}
	for name, modules := range map[string][]module{
		"one less":            all[1:],
		"one more":            append(slices.Clone(all), module{path: "example.com/b", version: "v1.0.0"}),
		"another order":       {all[1], all[0]},
		"another version":     {{path: "example.com/a", version: "v1.0.1"}, all[1]},
		"another toolchain":   {all[0], {path: std, version: "go1.26.9"}},
		"a replaced module":   {{path: "example.com/a", version: "v1.0.0 => ../a"}, all[1]},
		"no standard library": all[:1],
	} {
		if sameModules(info, modules) == nil {
			t.Errorf("with %s, the modules are taken for the binary's", name)
		}
	}
}

func TestPage(t *testing.T) {
	modules := []module{{path: "example.com/a", version: "v1.0.0", licenses: []string{"ISC", "MIT"}}, {path: std, version: "go1.26.8", licenses: []string{"BSD-3-Clause"}}}
	for text, programs := range map[string][]string{
		"Modules linked into `ati-guard`. `make licenses` writes":                                {guard},
		"Modules linked into `vault-plugin-secrets-ati` and `ati-guard`. `make licenses` writes": {plugin, guard},
	} {
		got := page(modules, programs...)
		if !strings.Contains(got, "\n"+text+" ") {
			t.Errorf("%s\ndoes not contain %q", got, text)
		}
		if rows := "\n| example.com/a | v1.0.0 | ISC, MIT |\n| Go standard library | the toolchain's | BSD-3-Clause |\n"; !strings.HasSuffix(got, rows) {
			t.Errorf("%s\ndoes not end with %q", got, rows)
		}
	}
}

// The archive of a program has the documents, and the examples that are about it.
func TestSourceFiles(t *testing.T) {
	root := t.TempDir()
	for name, text := range map[string]string{
		"README.md": "", "CHANGELOG.md": "", "CONTRIBUTING.md": "", "SECURITY.md": "", "docs/a.md": "", "go.mod": "",
		"examples/guard/guard.json": "", "examples/guard/.hidden": "", "examples/policies/proxy-guard.hcl": "", "examples/policies/sandbox.hcl": "",
		"examples/approle/setup.sh": "#!/bin/sh\n", "scripts/register.sh": "#!/bin/sh\nversion=\n",
	} {
		path := filepath.Join(root, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	shared := []string{"CHANGELOG.md 644", "CONTRIBUTING.md 644", "README.md 644", "SECURITY.md 644", "docs/a.md 644"}
	for program, want := range map[string][]string{
		guard: append(slices.Clone(shared), "examples/guard/guard.json 644", "examples/policies/proxy-guard.hcl 644"),
		plugin: append(slices.Clone(shared), "examples/approle/setup.sh 755", "examples/guard/guard.json 644", "examples/policies/proxy-guard.hcl 644",
			"examples/policies/sandbox.hcl 644", "register.sh 755"),
	} {
		files, err := sourceFiles(root, program, "v1.2.3")
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, f := range byName(files) {
			got = append(got, fmt.Sprintf("%s %o", f.name, f.mode))
			if f.name == "register.sh" && string(f.text) != "#!/bin/sh\nversion=v1.2.3\n" {
				t.Errorf("register.sh is %q", f.text)
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s has\n%s\nwant\n%s", program, strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	}
	if files, err := sourceFiles(root, "another", "v1.2.3"); err == nil {
		t.Errorf("a program that is not released has %d files", len(files))
	}
}
