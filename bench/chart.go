package main

import (
	"fmt"
	"html"
	"os"
	"path/filepath"
	"strings"
)

// chart is a bar chart of the tokens per second of some scenarios, with audit.
type chart struct {
	file, title, about string
	scenarios          []string
}

var charts = []chart{
	{"performance-reads.svg", "Tokens per second, one for each request", "Bars for single reads, narrowed ones, those with a lease, and the echo plugin, on each server.",
		[]string{singleScenario, queryScenario, leaseScenario, echoScenario, bareScenario, leasedScenario}},
	{"performance-batches.svg", "Tokens per second in batches", "Bars for a request for each token and for batches of 10, 100, and 1,000, on each server.",
		[]string{singleScenario, "batch of 10", "batch of 100", batchScenario, batchScenario + oneConnection}},
}

const (
	chartWidth = 820
	chartLeft  = 240 // of the bars
	chartTop   = 92  // of the first bar
	barHeight  = 18
	groupGap   = 14
)

// chartStyle has the colors of a light and of a dark page.
const chartStyle = `
    text { font: 14px system-ui, sans-serif; fill: #1f2328 }
    .title { font-size: 18px; font-weight: 600 }
    .note { font-size: 12px; fill: #59636e }
    .bar0 { fill: #0969da }
    .bar1 { fill: #bf8700 }
    .axis { stroke: #818b98 }
    @media (prefers-color-scheme: dark) {
      text { fill: #f0f6fc }
      .note { fill: #9198a1 }
      .bar0 { fill: #4493f8 }
      .bar1 { fill: #d29922 }
    }
`

// svg draws a chart, with one bar for each scenario and server.
func (c chart) svg(r *report) string {
	var b strings.Builder
	text := func(class string, x float64, y int, anchor, text string) {
		fmt.Fprintf(&b, "  <text class=%q x=\"%.0f\" y=\"%d\" text-anchor=%q>%s</text>\n", class, x, y, anchor, html.EscapeString(text))
	}
	value := func(s *serverResults, name string) float64 { return s.spread(name, true, tokens).median }
	largest := 0.0
	for _, name := range c.scenarios {
		for _, s := range r.servers {
			largest = max(largest, value(s, name))
		}
	}
	group := len(r.servers)*barHeight + groupGap
	height := chartTop + len(c.scenarios)*group + 12
	fmt.Fprintf(&b, "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" role=\"img\" aria-labelledby=\"t d\">\n", chartWidth, height)
	fmt.Fprintf(&b, "  <title id=\"t\">%s</title>\n  <desc id=\"d\">%s</desc>\n  <style>%s  </style>\n", html.EscapeString(c.title), html.EscapeString(c.about), chartStyle)
	text("title", 16, 28, "start", c.title)
	text("note", 16, 48, "start", r.machine+", with a file audit device")
	for i, s := range r.servers {
		x := 16 + 150*float64(i)
		fmt.Fprintf(&b, "  <rect class=\"bar%d\" x=\"%.0f\" y=\"62\" width=\"12\" height=\"12\"/>\n", i, x)
		text("", x+18, 73, "start", s.String())
	}
	for i, name := range c.scenarios {
		top := chartTop + i*group
		text("", chartLeft-10, top+(group-groupGap)/2+5, "end", name)
		for j, s := range r.servers {
			y, tokens := top+j*barHeight, value(s, name)
			width := tokens / largest * (chartWidth - chartLeft - 80)
			fmt.Fprintf(&b, "  <rect class=\"bar%d\" x=\"%d\" y=\"%d\" width=\"%.1f\" height=\"%d\"/>\n", j, chartLeft, y+1, width, barHeight-2)
			text("", chartLeft+width+6, y+14, "start", figure(tokens))
		}
	}
	fmt.Fprintf(&b, "  <line class=\"axis\" x1=\"%d\" x2=\"%d\" y1=\"%d\" y2=\"%d\"/>\n</svg>\n", chartLeft, chartLeft, chartTop-4, height-16)
	return b.String()
}

// writeCharts writes the charts to a directory.
func (r *report) writeCharts(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for _, c := range charts {
		if err := os.WriteFile(filepath.Join(dir, c.file), []byte(c.svg(r)), 0o644); err != nil {
			return err
		}
	}
	return nil
}
