package main

import (
	"fmt"
	"math"
	"os"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"
)

// Names of the scenarios that the text, the charts, and the targets refer to.
const (
	echoScenario   = "echo plugin"
	singleScenario = "single"
	bareScenario   = "echo plugin, bare callback"
	queryScenario  = "narrowed, GET"
	bodyScenario   = "echo plugin, POST"
	leaseScenario  = "with lease"
	leasedScenario = "echo plugin, with lease"
	randomScenario = "random role, large mount"
	sameScenario   = "same role, large mount"
	batchScenario  = "batch of 1,000"

	oneConnection = ", one connection"
)

// report holds all results.
type report struct {
	options options
	machine string
	servers []*serverResults
	cluster *clusterResults
	proxies *proxyResults
}

// serverResults holds the results of all rounds on a server.
type serverResults struct {
	product
	fileSystem string
	scenarios  []*scenario
	samples    map[string]map[bool][]sample // by scenario and audit
	memory     int64                        // peak of the plugin process, in bytes
	generator  float64                      // share of the CPU time that the load generator used, 0 to 1
}

// describeMachine returns the hardware.
func describeMachine() string {
	return fmt.Sprintf("%s, %d cores%s, %s/%s", cpuModel(), runtime.NumCPU(), memorySize(), runtime.GOOS, runtime.GOARCH)
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

func (s spread) String() string { return fmt.Sprintf("%.2f (%.2f–%.2f)", s.median, s.min, s.max) }

func spreadOf(values []float64) spread {
	v := slices.Sorted(slices.Values(values))
	n := len(v)
	return spread{v[0], (v[(n-1)/2] + v[n/2]) / 2, v[n-1]}
}

// spread returns the spread of a figure over the rounds.
func (r *serverResults) spread(name string, audit bool, figure func(sample) float64) spread {
	var values []float64
	for _, s := range r.samples[name][audit] {
		values = append(values, figure(s))
	}
	return spreadOf(values)
}

// ratio returns the spread of a figure divided by a figure of another scenario in the same
// round.
func (r *serverResults) ratio(name string, figure func(sample) float64, to string, toFigure func(sample) float64, audit bool) spread {
	var values []float64
	for i, s := range r.samples[name][audit] {
		values = append(values, figure(s)/toFigure(r.samples[to][audit][i]))
	}
	return spreadOf(values)
}

func requests(s sample) float64  { return s.requests }
func tokens(s sample) float64    { return s.tokens }
func cpu(s sample) float64       { return float64(s.cpu.plugin + s.cpu.server) }
func serverCPU(s sample) float64 { return float64(s.cpu.server) }

// summary returns the first part of performance.md that this program writes.
func (r *report) summary() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n\n", r.answer())
	for _, c := range charts {
		fmt.Fprintf(&b, "![%s](images/%s)\n\n", c.title, c.file)
	}
	fmt.Fprintf(&b, "%s, %s, %s. %d connections, %d rounds of %v per row. The load generator runs on the same cores. All figures are medians, with the minimum and maximum of the rounds in parentheses.\n",
		r.machine, runtime.Version(), time.Now().UTC().Format("2006-01-02"), r.options.connections, r.options.rounds, r.options.duration)
	return b.String()
}

// tables returns the second part.
func (r *report) tables() string {
	var b strings.Builder
	for _, s := range r.servers {
		fmt.Fprintf(&b, "## %s\n\n%s\n", s, s.markdown(r.options))
	}
	fmt.Fprint(&b, "## Three nodes of OpenBao\n\n", r.cluster.markdown())
	fmt.Fprint(&b, "\n## Requests through the guard\n\n", r.proxies.markdown(r.options))
	return b.String()
}

// answer returns what most readers want to know.
func (r *report) answer() string {
	var parts []string
	for _, s := range r.servers {
		of := func(name string) string { return figure(s.spread(name, true, tokens).median) }
		parts = append(parts, fmt.Sprintf("one node of %s minted %s tokens per second with a request for each, %s with a lease for each, and %s in batches of 1,000", s, of(singleScenario), of(leaseScenario), of(batchScenario)))
	}
	vault := r.servers[0]
	share := vault.ratio(singleScenario, serverCPU, singleScenario, cpu, true).median
	return fmt.Sprintf("On %d cores and with an audit device, %s. The server's own request handling takes %.0f%% of the CPU time of a request, so faster cores and more of them help, and a faster plugin would not. To measure your machine, run `make bench`, which writes the figures on this page.",
		runtime.NumCPU(), strings.Join(parts, "; "), 100*share)
}

// markdown returns the section of a server.
func (r *serverResults) markdown(o options) string {
	var b strings.Builder
	fmt.Fprintf(&b, "Raft storage on %s. The large mount has %s roles, the small one %s. The load generator used %.0f%% of the CPU time. The plugin process, which served all mounts, used at most %d MiB of resident memory.\n\n",
		r.fileSystem, thousands(o.roles), thousands(o.fewRoles()), 100*r.generator, r.memory>>20)
	for _, audit := range []bool{false, true} {
		fmt.Fprintln(&b, map[bool]string{false: "Without an audit device:\n", true: "With a file audit device:\n"}[audit])
		fmt.Fprintf(&b, "| Request | Requests/s | Tokens/s | Compared with | p50 | p99 | Plugin CPU | %s CPU |\n", r.name)
		fmt.Fprintln(&b, "| --- | --- | --- | --- | --- | --- | --- | --- |")
		for _, sc := range r.scenarios {
			fmt.Fprintln(&b, r.row(sc, audit))
		}
		fmt.Fprintln(&b)
	}
	for _, line := range r.targets(o) {
		fmt.Fprintln(&b, line)
	}
	return b.String()
}

// row returns the row of a scenario. A cell that does not apply is empty.
func (r *serverResults) row(sc *scenario, audit bool) string {
	rate := r.spread(sc.name, audit, requests)
	perSecond, relative, plugin := "", "", ""
	if sc.tokens > 0 {
		perSecond = figure(r.spread(sc.name, audit, tokens).median)
	}
	if sc.to != "" {
		relative = fmt.Sprintf("%s × %s", r.ratio(sc.name, tokens, sc.to, tokens, audit), sc.to)
	}
	duration := func(unit time.Duration, format string, figure func(sample) time.Duration) string {
		return fmt.Sprintf(format, r.spread(sc.name, audit, func(s sample) float64 { return float64(figure(s)) / float64(unit) }).median)
	}
	if sc.plugin != "" {
		plugin = duration(time.Microsecond, "%.0f µs", func(s sample) time.Duration { return s.cpu.plugin })
	}
	return fmt.Sprintf("| %s | %s (%s–%s) | %s | %s | %s | %s | %s | %s |", sc.name, figure(rate.median), figure(rate.min), figure(rate.max), perSecond, relative,
		duration(time.Millisecond, "%.1f ms", func(s sample) time.Duration { return s.p50 }), duration(time.Millisecond, "%.1f ms", func(s sample) time.Duration { return s.p99 }),
		plugin, duration(time.Microsecond, "%.0f µs", func(s sample) time.Duration { return s.cpu.server }))
}

// targets returns a line for each target, with its result on this machine.
func (r *serverResults) targets(o options) []string {
	var lines []string
	add := func(name, to string, audit bool, want float64) {
		what := fmt.Sprintf("%s relative to %s, %s audit", name, to, map[bool]string{false: "without", true: "with"}[audit])
		lines = append(lines, target(o, what, r.ratio(name, tokens, to, tokens, audit), "at least", want))
	}
	for _, audit := range []bool{false, true} {
		add(singleScenario, echoScenario, audit, 1.25)
		lines[len(lines)-1] += fmt.Sprintf(" A plugin that used no CPU time would reach %s.", r.ratio(echoScenario, cpu, singleScenario, serverCPU, audit))
		add(singleScenario, bareScenario, audit, 0.93)
	}
	add(queryScenario, singleScenario, false, 0.95)
	add(randomScenario, sameScenario, false, 0.95)
	add(batchScenario+oneConnection, singleScenario+oneConnection, true, 45)
	memory := float64(r.memory) / 1e6
	return append(lines, target(o, fmt.Sprintf("MB of the plugin process with %s roles", thousands(o.roles)), spread{memory, memory, memory}, "at most", 200))
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
	return fmt.Sprintf("- %s: %s. Target of %s %.2f: %s.", what, got, bound, want, result)
}

// markdown returns the section of the cluster.
func (r *clusterResults) markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s, single reads without audit. Each node has one mount with one role. All nodes share the cores here, so their rates do not add up. The CPU time of the active node shows what a standby saves it.\n\n", r)
	fmt.Fprintln(&b, "| Requests to | Tokens/s | Compared with | p50 | CPU of the active node | CPU of the standbys |")
	fmt.Fprintln(&b, "| --- | --- | --- | --- | --- | --- |")
	for _, row := range clusterRows {
		first := clusterRows[0].name
		var rates, ratios, p50s, active, standbys []float64
		for i, s := range r.samples[row.name] {
			rates = append(rates, s.tokens)
			ratios = append(ratios, s.tokens/r.samples[first][i].tokens) // of the same round
			p50s = append(p50s, float64(s.p50)/1e6)
			active = append(active, float64(s.active)/1e3)
			standbys = append(standbys, float64(s.standbys)/1e3)
		}
		relative := ""
		if row.name != first {
			relative = fmt.Sprintf("%s × %s", spreadOf(ratios), first)
		}
		rate := spreadOf(rates)
		fmt.Fprintf(&b, "| %s | %s (%s–%s) | %s | %.1f ms | %.0f µs | %.0f µs |\n", row.name, figure(rate.median), figure(rate.min), figure(rate.max), relative,
			spreadOf(p50s).median, spreadOf(active).median, spreadOf(standbys).median)
	}
	return b.String()
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

// splitPage returns the parts of a page around its two pairs of markers.
func splitPage(path string) (parts [3]string, err error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return parts, err
	}
	rest := string(b)
	for i := range 2 {
		before, written, ok := strings.Cut(rest, begin)
		_, after, ok2 := strings.Cut(written, end)
		if !ok || !ok2 {
			return parts, fmt.Errorf("%s: must have markers %q and %q twice", path, begin, end)
		}
		parts[i], rest = before, after
	}
	parts[2] = rest
	return parts, nil
}

// writeInto replaces the texts between the markers of a page.
func (r *report) writeInto(path string) error {
	parts, err := splitPage(path)
	if err != nil {
		return err
	}
	page := parts[0]
	for i, text := range []string{r.summary(), r.tables()} {
		page += begin + "\n" + text + "\n" + end + parts[i+1]
	}
	return os.WriteFile(path, []byte(page), 0o644)
}
