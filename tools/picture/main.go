// Command picture reads what make demo prints, and draws a part of it as a
// terminal, in SVG. Two runs of the demo give the same bytes.
package main

import (
	"fmt"
	"io"
	"math"
	"os"
	"regexp"
	"slices"
	"strings"
	"text/template"
	"unicode/utf8"
)

// columns fit into a README's width, at a size that is read with ease.
const columns = 84

// A scene is a command of the demo, and what the picture has of its answer. What
// it leaves out is an ….
type scene struct {
	command string   // how it begins
	answer  []string // how the lines that are shown begin; each of these must be there
	colour  string   // of the answer
}

// scenes are the picture's, in the demo's order.
var scenes = []scene{
	{"vault write ati/config ", nil, plain},
	{"vault write ati/roles/researcher ", []string{"Success!"}, plain},
	{"vault read ati/creds/researcher", []string{""}, plain},
	{"vault read ati/creds/researcher tools=github:delete_repo", []string{"Code: 400.", "* scope "}, red},
	{`printf %s "$token" | vault write ati/validate `, []string{"rate ", "scope ", "sub ", "valid "}, plain},
}

// On the picture's own dark ground, so that they are read on any page.
const (
	plain = "#c9d1d9"
	white = "#ffffff"
	blue  = "#79c0ff"
	red   = "#ff9b93"
	grey  = "#8b949e"
)

// varies has what is another in each run, and what is drawn in its place. All
// but the beginning of a token is left out.
var varies = []struct {
	value *regexp.Regexp
	drawn string
}{
	{regexp.MustCompile(`(eyJ[\w-]+\.[\w-]{20})[\w-]+\.[\w-]+`), "$1…"},
	{regexp.MustCompile(`\b[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b`), "0d4f6a1e-7c3b-4e52-9a86-2b1c5d7e9f30"},
	{regexp.MustCompile(`\b\d{10}\b`), "1767229200"},
}

func main() {
	if err := run(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(in io.Reader, out io.Writer) error {
	demo, err := io.ReadAll(in)
	if err != nil {
		return err
	}
	lines, err := play(parse(string(demo)), scenes)
	if err != nil {
		return err
	}
	return draw(out, lines)
}

// A step is a command of the demo.
type step struct {
	heading string   // the comment above it, if it is the first below one
	command []string // the first line has the prompt
	answer  []string
}

func parse(demo string) []step {
	var steps []step
	heading := ""
	for line := range strings.Lines(demo) {
		line = strings.TrimSuffix(line, "\n")
		last := len(steps) - 1
		switch {
		case strings.HasPrefix(line, "# "):
			heading = line
		case strings.HasPrefix(line, "$ "):
			steps = append(steps, step{heading: heading, command: []string{line}})
			heading = ""
		case last < 0 || line == "":
		case len(steps[last].answer) == 0 && strings.HasSuffix(steps[last].command[len(steps[last].command)-1], ` \`):
			steps[last].command = append(steps[last].command, line)
		default:
			steps[last].answer = append(steps[last].answer, line)
		}
	}
	return steps
}

// A line of the picture.
type line struct{ Text, Colour string }

// play looks for each scene among the steps, and says what is drawn of it.
func play(steps []step, scenes []scene) ([]line, error) {
	var lines []line
	for _, sc := range scenes {
		i := slices.IndexFunc(steps, func(s step) bool { return strings.HasPrefix(s.command[0], "$ "+sc.command) })
		if i < 0 {
			return nil, fmt.Errorf("the demo doesn't run %q, or earlier than the scenes of tools/picture say", sc.command)
		}
		s := steps[i]
		steps = steps[i+1:]
		if s.heading != "" {
			if len(lines) > 0 {
				lines = append(lines, line{})
			}
			lines = append(lines, line{s.heading, blue})
		}
		for _, text := range s.command {
			lines = append(lines, line{text, white})
		}
		for _, begins := range sc.answer {
			if !slices.ContainsFunc(s.answer, func(text string) bool { return strings.HasPrefix(text, begins) }) {
				return nil, fmt.Errorf("no line of the answer to %q begins with %q, as the scenes of tools/picture say", sc.command, begins)
			}
		}
		for _, text := range s.answer {
			shown := slices.ContainsFunc(sc.answer, func(begins string) bool { return strings.HasPrefix(text, begins) })
			if shown {
				lines = append(lines, line{text, sc.colour})
			} else if lines[len(lines)-1].Text != "…" {
				lines = append(lines, line{"…", grey})
			}
		}
	}
	for i := range lines {
		for _, v := range varies {
			lines[i].Text = v.value.ReplaceAllString(lines[i].Text, v.drawn)
		}
		if n := utf8.RuneCountInString(lines[i].Text); n > columns {
			return nil, fmt.Errorf("a line has %d columns, and the picture %d: %s", n, columns, lines[i].Text)
		}
	}
	return lines, nil
}

// Pixels.
const (
	letter = 8.4 // of a monospaced font of 14
	height = 18  // of a line
	margin = 20
	bar    = 34 // the title's
)

// A piece of a line has no two spaces in it, which would be drawn as one.
type piece struct {
	Text, Colour, Width, X string
	Y                      int
}

var words = regexp.MustCompile(`\S+(?: \S+)*`)

func pieces(lines []line) []piece {
	var all []piece
	pixels := func(text string, from int) string {
		return fmt.Sprintf("%.1f", float64(from)+letter*float64(utf8.RuneCountInString(text)))
	}
	for i, l := range lines {
		for _, at := range words.FindAllStringIndex(l.Text, -1) {
			text := l.Text[at[0]:at[1]]
			all = append(all, piece{text, l.Colour, pixels(text, 0), pixels(l.Text[:at[0]], margin), bar + margin + 10 + i*height})
		}
	}
	return all
}

// Without style, script or font, which a page or a viewer may leave out. With
// textLength the columns stand where they should in whatever font there is.
var terminal = template.Must(template.New("").Parse(`<svg xmlns="http://www.w3.org/2000/svg" width="{{.Width}}" height="{{.Height}}" viewBox="0 0 {{.Width}} {{.Height}}" role="img" aria-labelledby="title desc">
<title id="title">What make demo shows, in part</title>
<desc id="desc">
{{- range .Lines}}
{{html .Text}}
{{- end}}
</desc>
<rect x="0.5" y="0.5" width="{{.InnerWidth}}" height="{{.InnerHeight}}" rx="8" fill="#161b22" stroke="#6e7681"/>
<path d="M0.5 {{.Bar}}.5h{{.InnerWidth}}" stroke="#6e7681"/>
<g fill="#6e7681"><circle cx="20" cy="17" r="6"/><circle cx="40" cy="17" r="6"/><circle cx="60" cy="17" r="6"/></g>
<g font-family="ui-monospace,SFMono-Regular,SF Mono,Menlo,Consolas,Liberation Mono,DejaVu Sans Mono,monospace" font-size="14">
<text x="{{.Middle}}" y="22" fill="{{.Grey}}" text-anchor="middle">make demo</text>
{{- range .Pieces}}
<text x="{{.X}}" y="{{.Y}}" textLength="{{.Width}}" fill="{{.Colour}}">{{html .Text}}</text>
{{- end}}
</g>
</svg>
`))

func draw(out io.Writer, lines []line) error {
	width, tall := int(math.Ceil(2*margin+letter*columns)), bar+2*margin+len(lines)*height
	return terminal.Execute(out, map[string]any{
		"Lines": lines, "Pieces": pieces(lines), "Width": width, "Height": tall, "InnerWidth": width - 1, "InnerHeight": tall - 1,
		"Middle": width / 2, "Bar": bar, "Grey": grey,
	})
}
