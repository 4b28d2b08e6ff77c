package main

import (
	"encoding/xml"
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
	at := func(tokens float64, rates ...float64) []sample {
		var all []sample
		for _, rate := range rates {
			all = append(all, sample{rate, rate * tokens, time.Millisecond, 2 * time.Millisecond, cpuTime{100 * time.Microsecond, 900 * time.Microsecond}})
		}
		return all
	}
	r := &report{options: options{connections: 8, rounds: 5, duration: time.Second, roles: 100_000}, machine: "a machine", proxies: testProxies(bareRoute, guardRoute, nginxRoute),
		cluster: &clusterResults{product{name: "OpenBao", version: "2.0.0"}, map[string][]clusterSample{}}}
	for i, row := range clusterRows {
		r.cluster.samples[row.name] = []clusterSample{{1000 / float64(i+1), time.Millisecond, time.Millisecond, 500 * time.Microsecond}, {10 / float64(i+1), time.Millisecond, time.Millisecond, 500 * time.Microsecond}}
	}
	for _, p := range []product{{name: "Vault", version: "1.0.0"}, {name: "OpenBao", version: "2.0.0"}} {
		s := &serverResults{product: p, fileSystem: "ext4", scenarios: scenarios(r.options), samples: map[string]map[bool][]sample{}, memory: 64 << 20, generator: 0.25}
		for _, sc := range s.scenarios {
			rates := at(float64(sc.tokens), 1000, 1000, 100, 1000, 1000)
			if sc.tokens == 1000 {
				rates = at(1000, 46, 46, 4, 46, 46)
			}
			s.samples[sc.name] = map[bool][]sample{false: rates, true: rates}
		}
		s.samples[singleScenario] = map[bool][]sample{false: at(1, 1290, 1280, 132, 1290, 1300), true: at(1, 900, 910, 92, 930, 940)}
		r.servers = append(r.servers, s)
	}
	return r
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
	expectText(t, testReport().summary()+testReport().tables(),
		"with an audit device, one node of Vault 1.0.0 minted 910 tokens per second with a request for each, 1,000 with a lease for each, and 46,000 in batches of 1,000; one node of OpenBao 2.0.0 minted",
		"takes 90% of the CPU time of a request",
		"](images/performance-reads.svg)",
		"a machine, go",
		"8 connections, 5 rounds of 1s per row.",
		"## OpenBao 2.0.0\n\nRaft storage on ext4. The large mount has 100,000 roles, the small one 1,000. The load generator used 25% of the CPU time. The plugin process, which served all mounts, used at most 64 MiB",
		"| single | 1,290 (132–1,300) | 1,290 | 1.29 (1.28–1.32) × echo plugin | 1.0 ms | 2.0 ms | 100 µs | 900 µs |",
		"| batch of 1,000 | 46.0 (4.0–46.0) | 46,000 |",
		"| kv read | 1,000 (100–1,000) |  |  | 1.0 ms | 2.0 ms |  | 900 µs |",
		"- single relative to echo plugin, without audit: 1.29 (1.28–1.32). Target of at least 1.25: met. A plugin that used no CPU time would reach 1.11 (1.11–1.11).",
		"- single relative to echo plugin, with audit: 0.92 (0.90–0.94). Target of at least 1.25: **not met**.",
		"- batch of 1,000, one connection relative to single, one connection, with audit: 46.00 (40.00–46.00). Target of at least 45.00: met.",
		"- MB of the plugin process with 100,000 roles: 67.11 (67.11–67.11). Target of at most 200.00: met.",
		"| a standby | 253 (5.0–500) | 0.50 (0.50–0.50) × the active node | 1.0 ms | 1000 µs | 500 µs |",
		"ATI 1.0, nginx 2.0, with Vault. 8 connections, 5 rounds of 1s per row. The load generator and the upstream ran on the same cores and used 50% of the CPU time.",
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
	expectText(t, r.tables(),
		"| GET /tools | ati-guard | 4,000 (400–4,400) | 0.50 (0.50–0.50) |  | 2.00 ms | 6.00 ms | 20 µs | 50 µs |",
		"GET /tools through ati-guard relative to nginx: not measured, because nginx is not on the PATH.",
		"for 3 guards, as a percentage of a core: 2.00 (0.50–2.00). Target of at most 1.00: **not met**.",
	)
}

func TestReport_WriteInto(t *testing.T) {
	r := testReport()
	page := filepath.Join(t.TempDir(), "performance.md")
	if err := os.WriteFile(page, []byte("before\n"+begin+"OLD\n"+end+"between\n"+begin+"OLD\n"+end+"after\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := r.writeInto(page); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(page)
	want := "before\n" + begin + "\n" + r.summary() + "\n" + end + "between\n" + begin + "\n" + r.tables() + "\n" + end + "after\n"
	if got := string(b); err != nil || got != want {
		t.Errorf("the page is %v\n%s", err, got)
	}
	if err := os.WriteFile(page, []byte(begin+end+"one pair of markers"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := r.writeInto(page); err == nil {
		t.Error("a page with one pair of markers was written")
	}
}

func TestReport_WriteCharts(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "images")
	if err := testReport().writeCharts(dir); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"performance-reads.svg": ">910</text>", "performance-batches.svg": ">46,000</text>"} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if err := xml.Unmarshal(b, new(struct {
			XMLName xml.Name `xml:"svg"`
		})); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		expectText(t, string(b), want, "<title", "<desc", "a machine", ">OpenBao 2.0.0</text>", "prefers-color-scheme: dark")
	}
}
