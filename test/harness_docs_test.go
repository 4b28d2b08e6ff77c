package test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// An example is a code block of a page, with the output that the page shows for it: the text
// or json block directly below a block of commands.
type example struct {
	page     string
	line     int
	language string
	text     string
	output   string
	reason   string // the comment above: why the page's test does not run it, or which test does

	indent     string // of the blocks, which may be in a list
	start, end int    // of the output in the page
}

var (
	fence  = regexp.MustCompile("(?m)^( *)(?:<!-- ((?:not run here: |run by )\\S.*) -->\n *)?```(\\S*)\n((?:.*\n)*?) *```\n")
	runsBy = regexp.MustCompile(`^run by (Test\w+)$`)
)

// examples returns the code blocks of a page, after replacements in its text. Blocks in a
// programming language or YAML need a reason, because no page's test runs them.
func examples(t testing.TB, page string, replace ...string) (found []example) {
	t.Helper()
	text := strings.NewReplacer(replace...).Replace(string(readFile(t, page)))
	for _, m := range fence.FindAllStringSubmatchIndex(text, -1) {
		group := func(i int) string { return text[max(m[2*i], 0):max(m[2*i+1], 0)] }
		e := example{page: page, line: 1 + strings.Count(text[:m[8]], "\n"), language: group(3), text: unindent(group(4), group(1)), reason: group(2), indent: group(1), start: m[1], end: m[1]}
		if n := len(found); n > 0 && e.reason == "" && (e.language == "text" || e.language == "json") {
			before := &found[n-1]
			if before.language == "sh" && before.start == before.end && strings.TrimSpace(text[before.end:m[0]]) == "" {
				before.output, before.end = e.text, m[1]
				continue
			}
		}
		switch e.language {
		case "sh", "text", "json", "hcl", "toml":
		case "go", "python", "yaml":
			if e.reason == "" {
				t.Errorf("%s:%d: a block of %s needs a comment: run by TestX, or not run here: reason", page, e.line, e.language)
			}
		default:
			t.Errorf("%s:%d: code block with language %q", page, e.line, e.language)
		}
		if by := runsBy.FindStringSubmatch(e.reason); by != nil && !strings.Contains(testSources(t), "\nfunc "+by[1]+"(") {
			t.Errorf("%s:%d names %s, which does not exist", page, e.line, by[1])
		}
		found = append(found, e)
	}
	return found
}

func unindent(text, indent string) string {
	return strings.TrimPrefix(strings.ReplaceAll("\n"+text, "\n"+indent, "\n"), "\n")
}

// anchors returns the anchors of a page's headings.
func anchors(page string) map[string]bool {
	found := map[string]bool{}
	for _, m := range regexp.MustCompile("(?m)^#+ (.*)$").FindAllStringSubmatch(fence.ReplaceAllString(page, ""), -1) {
		found[anchor(m[1])] = true
	}
	return found
}

// anchor returns the anchor of a heading, as GitHub generates it.
func anchor(heading string) string {
	return strings.ReplaceAll(regexp.MustCompile("[^a-z0-9 _-]").ReplaceAllString(strings.ToLower(heading), ""), " ", "-")
}

// commandsFor returns the blocks of commands that a test runs: those with the reason "run by
// TestX" for one of the names, or with "", those that have no reason.
func commandsFor(all []example, names ...string) (run []example) {
	for _, e := range all {
		if e.language == "sh" && slices.Contains(names, strings.TrimPrefix(e.reason, "run by ")) {
			run = append(run, e)
		}
	}
	return run
}

// mustFail reports whether the page shows that the commands fail, as Vault's CLI or ATI
// prints it.
func (e example) mustFail() bool {
	return strings.HasPrefix(e.output, "Error ") || strings.HasPrefix(e.output, "No value found ") || strings.HasPrefix(e.output, `{"error":`)
}

// script returns a script that runs the commands. It prints a mark before those of each
// example.
func script(run []example) string {
	var b strings.Builder
	b.WriteString("set -euo pipefail\nmust_fail() { if (eval \"$1\"); then echo 'this must fail'; exit 1; fi; }\n")
	for i, e := range run {
		commands := e.text
		if e.mustFail() {
			commands = "must_fail " + shellQuote(commands) + "\n"
		}
		fmt.Fprintf(&b, "printf '%%s\\n' '@@ %d'\n%s", i, commands)
	}
	fmt.Fprintf(&b, "printf '%%s\\n' '@@ %d'\n", len(run))
	return b.String()
}

// oldSecret is the value of $ATI_JWT_SECRET in the documents. Its fingerprint is compared,
// unlike others.
const (
	oldSecret      = "0f1e2d3c4b5a69788796a5b4c3d2e1f00f1e2d3c4b5a69788796a5b4c3d2e1f0"
	oldFingerprint = "be930db828cd35cc"
)

// runExamples runs the commands of pages with vault in PATH, after replacements, and compares
// what they print with the pages.
func (s *server) runExamples(dir string, run []example, replace ...string) {
	s.t.Helper()
	env := []string{"PATH=" + pathWithVault(s.t), "VAULT_ADDR=" + s.addr, "VAULT_TOKEN=" + s.root, "ATI_JWT_SECRET=" + oldSecret}
	runCommands(s.t.Context(), s.t, dir, env, run, replace...)
}

// runCommands runs the commands of pages in a directory, with additional variables and after
// replacements, and compares what they print with the pages.
func runCommands(ctx context.Context, t testing.TB, dir string, env []string, run []example, replace ...string) {
	t.Helper()
	var back []string
	for i := 0; i < len(replace); i += 2 {
		if replace[i+1] != "" {
			back = append(back, replace[i+1], replace[i])
		}
	}
	there := strings.NewReplacer(replace...)
	for i := range run {
		run[i].output = there.Replace(run[i].output)
	}
	cmd := exec.CommandContext(ctx, "bash", "-c", "trap 'kill $(jobs -p) 2>/dev/null || true; wait' EXIT\n"+there.Replace(script(run)))
	cmd.Dir, cmd.Env = dir, append(os.Environ(), env...)
	out, err := cmd.CombinedOutput()
	checkOutput(t, run, string(out), err, strings.NewReplacer(back...).Replace)
}

var mark = regexp.MustCompile(`(?m)^(.*)@@ (\d+)\n`)

// checkOutput compares what the script printed with the pages. With UPDATE, it writes what
// was printed to the pages.
func checkOutput(t testing.TB, run []example, out string, scriptErr error, restore func(string) string) {
	t.Helper()
	marks := mark.FindAllStringSubmatchIndex(out, -1)
	changes := map[string]map[int]string{} // the new output, by page and index
	for i, m := range marks {
		n, err := strconv.Atoi(out[m[4]:m[5]])
		if err != nil || n != i {
			t.Fatalf("mark %d is @@ %s:\n%s", i, out[m[4]:m[5]], out)
		}
		last := i == len(marks)-1
		end := len(out)
		if !last {
			end = marks[i+1][3] // without the mark, also if the output has no final line break
		}
		printed := out[m[1]:end]
		switch {
		case n == len(run):
		case last && scriptErr != nil:
			t.Fatalf("%s:%d: %v\n%s%s", run[n].page, run[n].line, scriptErr, run[n].text, printed)
		case !run[n].matches(printed):
			if os.Getenv("UPDATE") == "" {
				t.Errorf("%s:%d: the commands print\n%s\nbut the page has\n%s", run[n].page, run[n].line, printed, run[n].output)
				continue
			}
			if changes[run[n].page] == nil {
				changes[run[n].page] = map[int]string{}
			}
			changes[run[n].page][n] = printed
		}
	}
	if scriptErr != nil {
		t.Fatalf("%v\n%s", scriptErr, out)
	}
	for page, outputs := range changes {
		updatePage(t, page, run, outputs, restore)
	}
}

// matches compares what was printed with the page. In the page, … is any part of a line, and
// a line with only … is any number of lines. Empty lines, lines of success, the widths of
// columns, the name of the server in warnings, and values that differ each time do not count.
func (e example) matches(printed string) bool {
	want := regexp.QuoteMeta(normalize(e.output))
	want = regexp.MustCompile(`(?m)^…\n`).ReplaceAllString(want, `(?:.*\n)*?`)
	return regexp.MustCompile(`^` + strings.ReplaceAll(want, "…", ".*") + `$`).MatchString(normalize(printed))
}

// different lists the values that differ each time.
var different = regexp.MustCompile(strings.Join([]string{
	`\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b`,        // UUID
	`\b20\d\d-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|\b)`, // time
	`\b1[789]\d{8}(?:\d{6})?\b`,                              // Unix time in seconds or microseconds
	`\b[0-9a-f]{64}\b`, `\b[0-9a-f]{16}\b`,                   // secret or hash, fingerprint
	`\b(?:hvs|s)\.[\w-]{20,}`, // Vault token
	`\b\w+_[0-9a-f]{8}\b`,     // accessor of a mount
	`(?:creds/\w+/)\w{24}\b`,  // lease
	`\beyJ[^\s"']+`,           // JWT, or its beginning
	`\bdev-[0-9a-f]{24}\b`,    // Vault token of make dev
	`127\.0\.0\.1:\d+`,
}, "|"))

// columns matches what separates the columns of a table. Its width depends on the values.
var columns = regexp.MustCompile(` {2,}`)

func normalize(text string) string {
	var lines []string
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, " \n")
		if line != "" && !strings.HasPrefix(line, "Success! ") {
			line = strings.Replace(line, "returned from OpenBao:", "returned from Vault:", 1)
			line = different.ReplaceAllStringFunc(line, func(value string) string {
				if value == oldFingerprint {
					return value
				}
				return "#"
			})
			lines = append(lines, columns.ReplaceAllString(line, "  "))
		}
	}
	return strings.Join(append(lines, ""), "\n")
}

// updatePage replaces the outputs that a page shows.
func updatePage(t testing.TB, page string, run []example, outputs map[int]string, restore func(string) string) {
	t.Helper()
	text := readFile(t, page)
	shorten := regexp.MustCompile(`\b(eyJ[\w-]{12})[\w-]*\.[\w-]+\.[\w-]+|\b((?:hvs|s)\.[\w-]{8})[\w-]{12,}`)
	successes := regexp.MustCompile(`(?m)^Success! .*\n`)
	request := regexp.MustCompile(`(?s)(Error making API request\.\n).*?(\n\* )`)
	current := examples(t, page) // without replacements
	for n := len(run) - 1; n >= 0; n-- {
		printed, changed := outputs[n]
		if !changed || run[n].page != page {
			continue
		}
		at := slices.IndexFunc(current, func(e example) bool { return e.line == run[n].line })
		e := current[at]
		printed = successes.ReplaceAllString(printed, "")
		printed = request.ReplaceAllString(shorten.ReplaceAllString(restore(printed), "$1$2…"), "$1…$2")
		block := "\n```text\n" + strings.Trim(printed, "\n") + "\n```\n"
		block = strings.ReplaceAll(strings.ReplaceAll(block, "\n", "\n"+e.indent), "\n"+e.indent+"\n", "\n\n")
		text = slices.Concat(text[:e.start], []byte(strings.TrimRight(block, " ")), text[e.end:])
	}
	if err := os.WriteFile(page, bytes.ReplaceAll(text, []byte("\n\n\n"), []byte("\n\n")), 0o644); err != nil {
		t.Fatal(err)
	}
}
