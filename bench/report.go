package main

import (
	"bytes"
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

// The names of scenarios that targets are about.
const (
	singleName = "single"
	echoLabel  = "echo plugin"
	batchName  = "batch of 1,000"
)

// report is what is known after the last round.
type report struct {
	options   options
	scenarios []*scenario
	results   map[string]map[bool][]sample
	memory    int64
	machine   string
	generator float64 // its share of the processor time
}

func newReport(o options, s *server, scenarios []*scenario, results map[string]map[bool][]sample, memory int64) (*report, error) {
	machine, err := machine(o, s.dir)
	if err != nil {
		return nil, err
	}
	var own syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &own); err != nil {
		return nil, err
	}
	u, err := s.cpu(engineName)
	if err != nil {
		return nil, err
	}
	generator := time.Duration(own.Utime.Nano() + own.Stime.Nano())
	return &report{o, scenarios, results, memory, machine, float64(generator) / float64(generator+u.vault+u.plugin)}, nil
}

func machine(o options, dir string) (string, error) {
	version, err := exec.Command(o.vault, "version").Output()
	if err != nil {
		return "", fmt.Errorf("ask Vault for its version: %w", err)
	}
	vault, _, _ := strings.Cut(strings.TrimSpace(string(version)), ",")
	vault, _, _ = strings.Cut(vault, " (")
	cpu, memory := "an unknown processor", ""
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(b)) {
			if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
				cpu = strings.TrimSpace(value)
				break
			}
		}
	}
	if b, err := os.ReadFile("/proc/meminfo"); err == nil {
		var kb int64
		if _, err := fmt.Sscanf(string(b), "MemTotal: %d kB", &kb); err == nil {
			memory = fmt.Sprintf(", %.0f GB", float64(kb)/(1<<20))
		}
	}
	disk := "an unknown file system"
	var fs syscall.Statfs_t
	if err := syscall.Statfs(dir, &fs); err == nil {
		disk = fmt.Sprintf("file system %#x", fs.Type)
		for name, magic := range map[string]int64{"ext4": 0xef53, "tmpfs": 0x01021994, "xfs": 0x58465342, "btrfs": 0x9123683e, "overlayfs": 0x794c7630} { // statfs(2)
			if int64(fs.Type) == magic {
				disk = name
			}
		}
	}
	return fmt.Sprintf("%s, %d cores%s, %s/%s, %s on raft on %s, %s, %s", cpu, runtime.NumCPU(), memory, runtime.GOOS, runtime.GOARCH, vault, disk, runtime.Version(), time.Now().UTC().Format("2006-01-02")), nil
}

// spread is the least, the median and the most of some figures.
type spread struct{ least, median, most float64 }

func spreadOf(values []float64) spread {
	v := slices.Sorted(slices.Values(values))
	n := len(v)
	return spread{v[0], (v[(n-1)/2] + v[n/2]) / 2, v[n-1]}
}

// of is the spread of a figure over the rounds.
func (r *report) of(name string, audit bool, figure func(sample) float64) spread {
	var values []float64
	for _, s := range r.results[name][audit] {
		values = append(values, figure(s))
	}
	return spreadOf(values)
}

// ratio is the spread of one scenario's figure over another's in the same round.
func (r *report) ratio(name, to string, audit bool, figure func(sample) float64) spread {
	var values []float64
	for i, s := range r.results[name][audit] {
		values = append(values, figure(s)/figure(r.results[to][audit][i]))
	}
	return spreadOf(values)
}

func requests(s sample) float64 { return s.requests }
func tokens(s sample) float64   { return s.tokens }

func (r *report) markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s. %d connections, %d rounds of %v for each line. The load generator ran on the same cores, and took %.0f %% of the processor time.\n\n", r.machine, r.options.connections, r.options.rounds, r.options.duration, 100*r.generator)
	for _, audit := range []bool{false, true} {
		fmt.Fprintln(&b, map[bool]string{false: "Without audit:\n", true: "With an audit file:\n"}[audit])
		fmt.Fprintln(&b, "| | requests/s | of the echo plugin's | tokens/s | of single reads' | half within | 99 of 100 within | plugin's CPU | Vault's CPU |")
		fmt.Fprintln(&b, "| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
		for _, sc := range r.scenarios {
			fmt.Fprintln(&b, r.row(sc, audit))
		}
		fmt.Fprintln(&b)
	}
	fmt.Fprintf(&b, "Figures are medians, with the least and the most of the rounds in parentheses. CPU is for a token. The plugin's process, with all of these mounts, had at most %d MB resident.\n\n", r.memory>>20)
	for _, line := range r.targets() {
		fmt.Fprintln(&b, line)
	}
	return strings.TrimSuffix(b.String(), "\n")
}

func (r *report) row(sc *scenario, audit bool) string {
	rate := r.of(sc.name, audit, requests)
	toEcho, perSecond, toSingle, plugin := "", "", "", ""
	if sc.name != echoLabel && sc.tokens <= 1 {
		ratio := r.ratio(sc.name, echoLabel, audit, requests)
		toEcho = fmt.Sprintf("%.2f (%.2f–%.2f)", ratio.median, ratio.least, ratio.most)
	}
	if sc.tokens > 0 {
		perSecond = figure(r.of(sc.name, audit, tokens).median)
	}
	if sc.tokens > 1 {
		ratio := r.ratio(sc.name, singleName, audit, tokens)
		toSingle = fmt.Sprintf("%.1f (%.1f–%.1f)", ratio.median, ratio.least, ratio.most)
	}
	cpu := func(f func(used) time.Duration) string {
		return fmt.Sprintf("%.0f µs", r.of(sc.name, audit, func(s sample) float64 { return float64(f(s.cpu)) / 1e3 }).median)
	}
	if sc.plugin != "" {
		plugin = cpu(func(u used) time.Duration { return u.plugin })
	}
	latency := func(figure func(sample) time.Duration) string {
		return fmt.Sprintf("%.1f ms", r.of(sc.name, audit, func(s sample) float64 { return float64(figure(s)) / 1e6 }).median)
	}
	return fmt.Sprintf("| %s | %s (%s–%s) | %s | %s | %s | %s | %s | %s | %s |", sc.name, figure(rate.median), figure(rate.least), figure(rate.most), toEcho, perSecond, toSingle,
		latency(func(s sample) time.Duration { return s.p50 }), latency(func(s sample) time.Duration { return s.p99 }), plugin, cpu(func(u used) time.Duration { return u.vault }))
}

// targets says of each target whether it holds on this machine.
func (r *report) targets() []string {
	var lines []string
	say := func(what string, got spread, want float64) {
		verdict := "holds"
		switch {
		case r.options.rounds < 5:
			verdict = "needs 5 rounds to be judged"
		case got.median < want:
			verdict = "**does not hold**"
		}
		lines = append(lines, fmt.Sprintf("- %s: %.2f (%.2f–%.2f). The target, %.2f, %s.", what, got.median, got.least, got.most, want, verdict))
	}
	for _, audit := range []bool{false, true} {
		name := map[bool]string{false: "without audit", true: "with audit"}[audit]
		say("Requests per second of single reads, of the echo plugin's, "+name, r.ratio(singleName, echoLabel, audit, requests), 0.95)
	}
	say("Tokens per second of batches of 1,000, of single reads', with audit", r.ratio(batchName, singleName, true, tokens), 22)
	return lines
}

// figure writes a rate with three significant digits.
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

// around is what a document has before the marks and behind them.
func around(path string) (before, after []byte, err error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, nil, err
	}
	before, rest, ok := bytes.Cut(b, []byte(begin))
	_, after, ok2 := bytes.Cut(rest, []byte(end))
	if !ok || !ok2 {
		return nil, nil, fmt.Errorf("%s has no place for the table, between %q and %q", path, begin, end)
	}
	return before, after, nil
}

// writeInto replaces what is between the marks of a document.
func (r *report) writeInto(path string) error {
	before, after, err := around(path)
	if err != nil {
		return err
	}
	return os.WriteFile(path, slices.Concat(before, []byte(begin), []byte("\n"+r.markdown()+"\n\n"), []byte(end), after), 0o644)
}

// writeChart draws the tokens per second of each scenario that mints.
func (r *report) writeChart(path string) error {
	var names []string
	values := make([][]float64, 2)
	for _, sc := range slices.Backward(r.scenarios) { // the first is drawn at the bottom
		if sc.tokens == 0 {
			continue
		}
		names = append(names, sc.name)
		for i, audit := range []bool{true, false} {
			values[i] = append(values[i], r.of(sc.name, audit, tokens).median)
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
