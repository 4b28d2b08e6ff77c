package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestFigure(t *testing.T) {
	for v, want := range map[float64]string{0: "0", 45.67: "45.7", 99.94: "99.9", 123.4: "123", 1234: "1,230", 98765: "98,800", 1234567: "1,230,000"} {
		if got := figure(v); got != want {
			t.Errorf("figure(%v) is %s, want %s", v, got, want)
		}
	}
}

func TestSpreadOf(t *testing.T) {
	for _, c := range []struct {
		values []float64
		want   spread
	}{{[]float64{3}, spread{3, 3, 3}}, {[]float64{5, 1, 3}, spread{1, 3, 5}}, {[]float64{4, 1, 2, 3}, spread{1, 2.5, 4}}} {
		if got := spreadOf(c.values); got != c.want {
			t.Errorf("spreadOf(%v) is %v, want %v", c.values, got, c.want)
		}
	}
}

func testReport() *report {
	at := func(rates ...float64) []sample {
		var all []sample
		for _, rate := range rates {
			all = append(all, sample{requests: rate, tokens: rate, p50: time.Millisecond, p99: 2 * time.Millisecond})
		}
		return all
	}
	return &report{options: options{connections: 8, rounds: 5, duration: time.Second}, machine: "a machine", memory: 64 << 20, generator: 0.25,
		scenarios: []*scenario{{name: echoScenario, tokens: 1}, {name: bareScenario, tokens: 1}, {name: singleScenario, tokens: 1, plugin: engineName}, {name: batchScenario, tokens: 1000, plugin: engineName}},
		results: map[string]map[bool][]sample{
			echoScenario:   {false: at(750, 750, 75, 750, 750), true: at(750, 750, 75, 750, 750)},
			bareScenario:   {false: at(1000, 1000, 100, 1000, 1000), true: at(1000, 1000, 100, 1000, 1000)},
			singleScenario: {false: at(960, 970, 98, 960, 990), true: at(900, 910, 92, 930, 940)},
			batchScenario:  {false: at(30000, 30000, 3000, 30000, 30000), true: at(30000, 30000, 3000, 30000, 30000)},
		},
		proxies: testProxies(bareRoute, guardRoute, nginxRoute),
	}
}

// testProxies returns results of these routes. Each route has half the rate and twice the
// CPU time of the one before.
func testProxies(routes ...string) *proxyResults {
	r := &proxyResults{programs: "ATI 1.0, nginx 2.0", routes: routes, generator: 0.5, idle: []float64{0.5, 2, 0.5}, polled: []float64{0.7, 2.1, 0.8}, samples: map[string]map[string][]proxySample{}}
	for _, request := range proxyRequests {
		r.samples[request.name] = map[string][]proxySample{}
		for i, route := range routes {
			for _, rate := range []float64{8000, 800, 8800} {
				r.samples[request.name][route] = append(r.samples[request.name][route], proxySample{rate / float64(int(1)<<i), time.Millisecond << i, 3 * time.Millisecond << i, 10 * time.Microsecond << i, 50 * time.Microsecond})
			}
		}
	}
	for i := range routes {
		r.memory = append(r.memory, int64(10+i)<<20)
	}
	return r
}

func expectText(t *testing.T, text string, parts ...string) {
	t.Helper()
	for _, want := range parts {
		if !strings.Contains(text, want) {
			t.Errorf("the report does not contain %q:\n%s", want, text)
		}
	}
}

// Ratios compare figures of the same round, so the third round, in which everything
// was slow, does not change them.
func TestReport_Markdown(t *testing.T) {
	expectText(t, testReport().markdown(),
		"a machine. 8 connections, 5 rounds of 1s per scenario. The load generator ran on the same cores and used 25% of the CPU time.",
		"| single | 960 (98.0–990) | 1.29 (1.28–1.32) | 960 |  | 1.0 ms | 2.0 ms | 0 µs | 0 µs |",
		"relative to the echo plugin, without audit: 1.29 (1.28–1.32). Target of at least 1.25: met.",
		"relative to the echo plugin, with audit: 1.23 (1.20–1.25). Target of at least 1.25: **not met**.",
		"relative to its bare callback, without audit: 0.97 (0.96–0.99). Target of at least 0.93: met.",
		"relative to single reads, with audit: 32.61 (31.91–33.33). Target of at least 22.00: met.",
		"used at most 64 MiB of resident memory.",
		"ATI 1.0, nginx 2.0. 8 connections, 5 rounds of 1s per row. The load generator and the upstream ran on the same cores and used 50% of the CPU time.",
		"| GET /tools | the bare proxy | 8,000 (800–8,800) |  |  | 1.00 ms | 3.00 ms |  | 50 µs |",
		"| GET /tools | ati-guard | 4,000 (400–4,400) | 0.50 (0.50–0.50) | 2.00 (2.00–2.00) | 2.00 ms | 6.00 ms | 20 µs | 50 µs |",
		"| POST /call | nginx | 2,000 (200–2,200) | 0.25 (0.25–0.25) |  | 4.00 ms | 12.00 ms | 40 µs | 50 µs |",
		"Peak of the resident memory: the bare proxy 10 MiB, ati-guard 11 MiB, nginx 12 MiB.",
		"used 0.50% of a core without guards, and 0.80% while 3 guards polled every 5s.",
		"POST /call through ati-guard relative to the bare proxy: 0.50 (0.50–0.50). Target of at least 0.85: **not met**.",
		"GET /tools through ati-guard relative to nginx: 2.00 (2.00–2.00). Target of at least 0.50: met.",
		"for 3 guards, as a percentage of a core: 0.20 (0.10–0.30). Target of at most 1.00: met.",
	)
}

func TestReport_WithoutNginxAndWithExpensivePolls(t *testing.T) {
	r := testReport()
	r.proxies = testProxies(bareRoute, guardRoute)
	r.proxies.polled = []float64{2.5, 2.5, 2.5}
	expectText(t, r.markdown(),
		"| GET /tools | ati-guard | 4,000 (400–4,400) | 0.50 (0.50–0.50) |  | 2.00 ms | 6.00 ms | 20 µs | 50 µs |",
		"GET /tools through ati-guard relative to nginx: not measured, because nginx is not on the PATH.",
		"for 3 guards, as a percentage of a core: 2.00 (0.50–2.00). Target of at most 1.00: **not met**.",
	)
}

func TestReport_WriteInto(t *testing.T) {
	r := testReport()
	page := filepath.Join(t.TempDir(), "performance.md")
	if err := os.WriteFile(page, []byte("before\n"+begin+"OLD\n"+end+"after\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := r.writeInto(page); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(page)
	if got := string(b); err != nil || !strings.HasPrefix(got, "before\n"+begin) || !strings.HasSuffix(got, end+"after\n") || strings.Contains(got, "OLD") || !strings.Contains(got, r.markdown()) {
		t.Errorf("the page is %v\n%s", err, got)
	}
	if err := os.WriteFile(page, []byte("no markers"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := r.writeInto(page); err == nil {
		t.Error("a page without markers was written")
	}
}

func TestReport_WriteChart(t *testing.T) {
	chart := filepath.Join(t.TempDir(), "chart.svg")
	if err := testReport().writeChart(chart); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(chart); err != nil || !strings.HasPrefix(string(b), "<svg") || !strings.Contains(string(b), batchScenario) {
		t.Errorf("the chart is %v\n%.200s", err, b)
	}
}
