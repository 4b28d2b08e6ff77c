// Package words_test checks the language of the project's texts.
package words_test

import (
	"bytes"
	"go/scanner"
	"go/token"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// never lists words and phrases that are never right here, and what to write
// instead. It applies to documents, to scripts and examples, and to the comments and
// string literals of Go files.
var never = map[string]string{
	"anew":      "again",
	"at once":   "immediately, or at the same time",
	"but for":   "except for",
	"in clear":  "in plaintext",
	"licence":   "license",
	"licences":  "licenses",
	"mend":      "fix",
	"mended":    "fixed",
	"mends":     "fixes",
	"out there": "issued, or in use",
	"spelt":     "spelled",
	"stands in": "is in, or replaces",
	"whoever":   "anyone who",
}

// pattern matches the listed phrases, also where one is wrapped in a comment.
var pattern = func() *regexp.Regexp {
	var phrases []string
	for phrase := range never {
		phrases = append(phrases, strings.ReplaceAll(phrase, " ", `(?:\s|//|#|>)+`))
	}
	return regexp.MustCompile(`(?i)\b(?:` + strings.Join(phrases, "|") + `)\b`)
}()

// prose returns a Go file's comments and string literals, with its other tokens
// blotted out, so that offsets stay as they are.
func prose(source []byte) []byte {
	text := bytes.Clone(source)
	files := token.NewFileSet()
	file := files.AddFile("", files.Base(), len(source))
	var s scanner.Scanner
	s.Init(file, source, nil, scanner.ScanComments)
	for {
		pos, tok, literal := s.Scan()
		if tok == token.EOF {
			return text
		}
		if tok == token.COMMENT || tok == token.STRING || literal == "\n" { // the last: an inserted semicolon
			continue
		}
		if literal == "" {
			literal = tok.String()
		}
		start := file.Offset(pos)
		copy(text[start:], strings.Repeat("_", len(literal)))
	}
}

// find returns the offset and text of each listed phrase.
func find(text []byte) (found []string, offsets []int) {
	for _, at := range pattern.FindAllIndex(text, -1) {
		words := strings.FieldsFunc(string(text[at[0]:at[1]]), func(r rune) bool { return strings.ContainsRune(" \t\r\n/#>", r) })
		found, offsets = append(found, strings.ToLower(strings.Join(words, " "))), append(offsets, at[0])
	}
	return found, offsets
}

func TestFind(t *testing.T) {
	source := `package p

// Retry at
// once, "anew".
const anew = "Whoever " + "out there" // licences
var amend, at, once = at, once, ` + "`\nspelt\n`"
	got, offsets := find(prose([]byte(source)))
	if want := []string{"at once", "anew", "whoever", "out there", "licences", "spelt"}; !slices.Equal(got, want) {
		t.Errorf("found %q, want %q", got, want)
	}
	if line := 1 + strings.Count(source[:offsets[1]], "\n"); line != 4 {
		t.Errorf("the second phrase was found in line %d, want 4", line)
	}
}

func TestWords(t *testing.T) {
	list := exec.Command("git", "-C", "../..", "ls-files", "*.go", "*.md", "*.py", "*.sh", "*.svg", "*.yml", "*Makefile", "*Dockerfile", ".ci", "examples", "scripts", ":!tools/words")
	names, err := list.Output()
	if err != nil {
		t.Fatal(err)
	}
	files := strings.Fields(string(names))
	for _, name := range files {
		text, err := os.ReadFile("../../" + name)
		if os.IsNotExist(err) {
			continue // deleted, but not committed yet
		}
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(name, ".go") {
			text = prose(text)
		}
		found, offsets := find(text)
		for i, phrase := range found {
			t.Errorf("%s:%d: %q: write %s", name, 1+bytes.Count(text[:offsets[i]], []byte("\n")), phrase, never[phrase])
		}
	}
	if len(files) < 100 {
		t.Errorf("Git lists only %d files", len(files))
	}
}
