package main

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/go-analyze/charts"
)

// Names of the scenarios that the targets refer to.
const (
	singleScenario = "single"
	echoScenario   = "echo plugin"
	bareScenario   = "echo plugin, bare callback"
	batchScenario  = "batch of 1,000"
)

// report holds the results of all rounds.
type report struct {
	options   options
	scenarios []*scenario
	results   map[string]map[bool][]sample // by scenario and audit
	memory    int64                        // peak of the plugin process, in bytes
	machine   string
	generator float64 // share of the CPU time that the load generator used, 0 to 1
	proxies   *proxyResults
}

func newReport(o options, s *server, scenarios []*scenario, results map[string]map[bool][]sample) (*report, error) {
	machine, err1 := describeMachine(o, s.dir)
	own, err2 := cpuOf(os.Getpid())
	u, err3 := s.cpu(engineName)
	plugin, err4 := s.pluginProcess(engineName)
	memory, err5 := peakMemory(plugin)
	if err := errors.Join(err1, err2, err3, err4, err5); err != nil {
		return nil, err
	}
	generator := float64(own) / float64(own+u.vault+u.plugin)
	return &report{options: o, scenarios: scenarios, results: results, memory: memory, machine: machine, generator: generator}, nil
}

// describeMachine returns the hardware, the software, and the date.
func describeMachine(o options, dir string) (string, error) {
	version, err := exec.Command(o.vault, "version").Output()
	if err != nil {
		return "", fmt.Errorf("get the version of Vault: %w", err)
	}
	vault, _, _ := strings.Cut(strings.TrimSpace(string(version)), ",")
	vault, _, _ = strings.Cut(vault, " (")
	return fmt.Sprintf("%s, %d cores%s, %s/%s, %s with raft storage on %s, %s, %s", cpuModel(), runtime.NumCPU(), memorySize(), runtime.GOOS, runtime.GOARCH, vault, fileSystem(dir), runtime.Version(), time.Now().UTC().Format("2006-01-02")), nil
}

func cpuModel() string {
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(b)) {
			if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
				return strings.TrimSpace(value)
			}
		}
	}
	return "unknown processor"
}

// memorySize returns the size of the memory after a comma, or "" if it is unknown.
func memorySize() string {
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return ""
	}
	var kb int64
	if _, err := fmt.Sscanf(string(b), "MemTotal: %d kB", &kb); err != nil {
		return ""
	}
	return fmt.Sprintf(", %.0f GiB", float64(kb)/(1<<20))
}

func fileSystem(dir string) string {
	var fs syscall.Statfs_t
	if err := syscall.Statfs(dir, &fs); err != nil {
		return "an unknown file system"
	}
	for name, magic := range map[string]int64{"ext4": 0xef53, "tmpfs": 0x01021994, "xfs": 0x58465342, "btrfs": 0x9123683e, "overlayfs": 0x794c7630} { // statfs(2)
		if int64(fs.Type) == magic {
			return name
		}
	}
	return fmt.Sprintf("file system %#x", fs.Type)
}

// spread is the minimum, the median, and the maximum of a figure.
type spread struct{ min, median, max float64 }

func spreadOf(values []float64) spread {
	v := slices.Sorted(slices.Values(values))
	n := len(v)
	return spread{v[0], (v[(n-1)/2] + v[n/2]) / 2, v[n-1]}
}

// spread returns the spread of a figure over the rounds.
func (r *report) spread(name string, audit bool, figure func(sample) float64) spread {
	var values []float64
	for _, s := range r.results[name][audit] {
		values = append(values, figure(s))
	}
	return spreadOf(values)
}

// ratio returns the spread of a figure divided by the figure of another scenario in
// the same round.
func (r *report) ratio(name, to string, audit bool, figure func(sample) float64) spread {
	var values []float64
	for i, s := range r.results[name][audit] {
		values = append(values, figure(s)/figure(r.results[to][audit][i]))
	}
	return spreadOf(values)
}

func requests(s sample) float64 { return s.requests }
func tokens(s sample) float64   { return s.tokens }

// markdown returns the part of performance.md that this program writes.
func (r *report) markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s. %d connections, %d rounds of %v per scenario. The load generator ran on the same cores and used %.0f%% of the CPU time.\n\n", r.machine, r.options.connections, r.options.rounds, r.options.duration, 100*r.generator)
	for _, audit := range []bool{false, true} {
		fmt.Fprintln(&b, map[bool]string{false: "Without an audit device:\n", true: "With a file audit device:\n"}[audit])
		fmt.Fprintln(&b, "| Scenario | Requests/s | Relative to echo plugin | Tokens/s | Relative to single | p50 | p99 | Plugin CPU | Vault CPU |")
		fmt.Fprintln(&b, "| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
		for _, sc := range r.scenarios {
			fmt.Fprintln(&b, r.row(sc, audit))
		}
		fmt.Fprintln(&b)
	}
	fmt.Fprintf(&b, "Figures are medians, with the minimum and maximum of the rounds in parentheses. CPU time is per token, and per request for the kv read. The plugin process, which served all of these mounts, used at most %d MiB of resident memory.\n\n", r.memory>>20)
	for _, line := range r.targets() {
		fmt.Fprintln(&b, line)
	}
	fmt.Fprint(&b, "\n## Requests through the guard\n\n", r.proxies.markdown(r.options))
	return strings.TrimSuffix(b.String(), "\n")
}

// row returns the row of a scenario. A cell that does not apply is empty.
func (r *report) row(sc *scenario, audit bool) string {
	rate := r.spread(sc.name, audit, requests)
	toEcho, perSecond, toSingle, plugin := "", "", "", ""
	if sc.name != echoScenario && sc.tokens <= 1 {
		ratio := r.ratio(sc.name, echoScenario, audit, requests)
		toEcho = fmt.Sprintf("%.2f (%.2f–%.2f)", ratio.median, ratio.min, ratio.max)
	}
	if sc.tokens > 0 {
		perSecond = figure(r.spread(sc.name, audit, tokens).median)
	}
	if sc.tokens > 1 {
		ratio := r.ratio(sc.name, singleScenario, audit, tokens)
		toSingle = fmt.Sprintf("%.1f (%.1f–%.1f)", ratio.median, ratio.min, ratio.max)
	}
	cpu := func(f func(cpuTime) time.Duration) string {
		return fmt.Sprintf("%.0f µs", r.spread(sc.name, audit, func(s sample) float64 { return float64(f(s.cpu)) / 1e3 }).median)
	}
	if sc.plugin != "" {
		plugin = cpu(func(u cpuTime) time.Duration { return u.plugin })
	}
	latency := func(figure func(sample) time.Duration) string {
		return fmt.Sprintf("%.1f ms", r.spread(sc.name, audit, func(s sample) float64 { return float64(figure(s)) / 1e6 }).median)
	}
	return fmt.Sprintf("| %s | %s (%s–%s) | %s | %s | %s | %s | %s | %s | %s |", sc.name, figure(rate.median), figure(rate.min), figure(rate.max), toEcho, perSecond, toSingle,
		latency(func(s sample) time.Duration { return s.p50 }), latency(func(s sample) time.Duration { return s.p99 }), plugin, cpu(func(u cpuTime) time.Duration { return u.vault }))
}

// targets returns a line for each target, with its result on this machine.
func (r *report) targets() []string {
	var lines []string
	add := func(what string, got spread, want float64) {
		lines = append(lines, target(r.options, what, got, "at least", want))
	}
	for _, audit := range []bool{false, true} {
		name := map[bool]string{false: "without audit", true: "with audit"}[audit]
		add("Requests per second of single reads relative to the echo plugin, "+name, r.ratio(singleScenario, echoScenario, audit, requests), 1.25)
		add("Requests per second of single reads relative to its bare callback, "+name, r.ratio(singleScenario, bareScenario, audit, requests), 0.93)
	}
	add("Tokens per second of batches of 1,000 relative to single reads, with audit", r.ratio(batchScenario, singleScenario, true, tokens), 22)
	return lines
}

// target returns the line of a target, which is "at least" or "at most" a value.
func target(o options, what string, got spread, bound string, want float64) string {
	result := "met"
	switch {
	case o.rounds < 5:
		result = "needs at least 5 rounds"
	case bound == "at least" && got.median < want, bound == "at most" && got.median > want:
		result = "**not met**"
	}
	return fmt.Sprintf("- %s: %.2f (%.2f–%.2f). Target of %s %.2f: %s.", what, got.median, got.min, got.max, bound, want, result)
}

// figure formats a rate with three significant digits, or with one decimal below
// 100.
func figure(v float64) string {
	if v <= 0 {
		return "0"
	}
	unit := math.Pow(10, max(0, math.Floor(math.Log10(v))-2))
	if v < 100 {
		return fmt.Sprintf("%.1f", v)
	}
	return thousands(int(math.Round(v/unit) * unit))
}

func thousands(n int) string {
	text := fmt.Sprint(n)
	for i := len(text) - 3; i > 0; i -= 3 {
		text = text[:i] + "," + text[i:]
	}
	return text
}

const (
	begin = "<!-- make bench writes from here -->\n"
	end   = "<!-- to here -->\n"
)

// splitPage returns the parts of a page before and after the markers.
func splitPage(path string) (before, after []byte, err error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, nil, err
	}
	before, rest, ok := bytes.Cut(b, []byte(begin))
	_, after, ok2 := bytes.Cut(rest, []byte(end))
	if !ok || !ok2 {
		return nil, nil, fmt.Errorf("%s: markers %q and %q not found", path, begin, end)
	}
	return before, after, nil
}

// writeInto replaces the text between the markers of a page.
func (r *report) writeInto(path string) error {
	before, after, err := splitPage(path)
	if err != nil {
		return err
	}
	return os.WriteFile(path, slices.Concat(before, []byte(begin), []byte("\n"+r.markdown()+"\n\n"), []byte(end), after), 0o644)
}

// writeChart writes a chart of the tokens per second of each scenario that issues
// tokens.
func (r *report) writeChart(path string) error {
	var names []string
	values := make([][]float64, 2)
	for _, sc := range slices.Backward(r.scenarios) { // the chart starts at the bottom
		if sc.tokens == 0 {
			continue
		}
		names = append(names, sc.name)
		for i, audit := range []bool{true, false} {
			values[i] = append(values[i], r.spread(sc.name, audit, tokens).median)
		}
	}
	o := charts.NewBarChartOptionWithData(values)
	o.Horizontal = true
	o.Title.Text = "Tokens per second"
	o.Title.FontStyle.FontSize = 14
	o.Legend.SeriesNames = []string{"with audit", "without audit"}
	o.Legend.Offset = charts.OffsetRight
	o.CategoryAxis.Labels = names
	o.Padding = charts.NewBoxEqual(16)
	for i := range o.SeriesList {
		o.SeriesList[i].Label.Show = charts.Ptr(true)
		o.SeriesList[i].Label.ValueFormatter = figure
	}
	o.ValueFormatter = figure
	p := charts.NewPainter(charts.PainterOptions{OutputFormat: charts.ChartOutputSVG, Width: 860, Height: 700})
	if err := p.BarChart(o); err != nil {
		return fmt.Errorf("draw the chart: %w", err)
	}
	svg, err := p.Bytes()
	if err != nil {
		return fmt.Errorf("draw the chart: %w", err)
	}
	return os.WriteFile(path, svg, 0o644)
}
