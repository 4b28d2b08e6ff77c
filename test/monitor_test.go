package test

import (
	"context"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	atiguard "vault-plugin-secrets-ati/internal/guard"
)

const rulesFile = "../examples/monitor/rules.yml"

// telemetry lets a server export its metrics, as docs/monitor.md shows.
func telemetry(s *server) {
	s.settings += "\ntelemetry {\n  prometheus_retention_time = \"24h\"\n  disable_hostname = true\n}"
}

// A guard or the server under test exports each metric in the rules, and each of its labels,
// except for up and its labels, which are Prometheus's own.
func TestMonitor_RulesMatchTheMetrics(t *testing.T) {
	t.Parallel()
	s := launch(t, "info", `storage "inmem" {}`, nil, telemetry)
	s.initialize()
	s.mountEngine()
	s.write(s.root, "ati/roles/researcher", data{"tools": "web_search"})
	s.write(s.root, "ati/creds/researcher", nil)
	ofGuard := s.metricsOfGuard()
	// The server exports some gauges only some seconds after its start.
	pollFor(t, time.Minute, "the rules match the metrics", func() error {
		ofServer, err := s.metricsOfServer()
		if err != nil {
			return err
		}
		if missing := missingMetrics(string(readFile(t, rulesFile)), ofGuard+ofServer); len(missing) > 0 {
			return fmt.Errorf("not exported: %q", missing)
		}
		return nil
	})
	page := string(readFile(t, "../docs/monitor.md"))
	for line := range strings.Lines(ofGuard) {
		if name, ok := strings.CutPrefix(line, "# TYPE ati_guard_"); ok && !strings.Contains(page, "ati_guard_"+strings.Fields(name)[0]) {
			t.Errorf("docs/monitor.md does not name ati_guard_%s", name)
		}
	}
}

var (
	selector = regexp.MustCompile(`\b((?:ati_guard|vault)_\w+)(?:\{([^}]*)\})?`)
	matcher  = regexp.MustCompile(`(\w+)(?:=|!=|=~|!~)"`)
)

// missingMetrics returns the metrics in the rules that are not exported, and those that are
// exported without a label of the rules.
func missingMetrics(rules, exported string) (missing []string) {
	comments := regexp.MustCompile(`(?m)^ *#.*$`)
	for _, m := range selector.FindAllStringSubmatch(comments.ReplaceAllString(rules, ""), -1) {
		if name := m[1]; !regexp.MustCompile(`(?m)^` + name + `[{ ]`).MatchString(exported) {
			missing = append(missing, name)
		}
		for _, label := range matcher.FindAllStringSubmatch(m[2], -1) {
			if !regexp.MustCompile(`(?m)^` + m[1] + `\{(?:.*,)?` + label[1] + `="`).MatchString(exported) {
				missing = append(missing, m[1]+"{"+label[1]+"}")
			}
		}
	}
	return missing
}

// Each alert has a runbook, in a page and a section that exist.
func TestMonitor_RulesHaveRunbooks(t *testing.T) {
	t.Parallel()
	rules := string(readFile(t, rulesFile))
	links := regexp.MustCompile(`(?m)^ +runbook_url: docs/([\w-]+\.md)(?:#(.*))?$`).FindAllStringSubmatch(rules, -1)
	if alerts := strings.Count(rules, "- alert: "); len(links) != alerts || alerts == 0 {
		t.Errorf("%d alerts have %d runbooks", alerts, len(links))
	}
	for _, link := range links {
		if sections := anchors(string(readFile(t, filepath.Join("../docs", link[1])))); link[2] != "" && !sections[link[2]] {
			t.Errorf("docs/%s has no section %s", link[1], link[2])
		}
	}
}

// metricsOfGuard returns what a guard exports that runs, reads the server, and has rejected a
// request. Its proxy does not start.
func (s *server) metricsOfGuard() string {
	s.t.Helper()
	token := filepath.Join(s.t.TempDir(), "token")
	if err := os.WriteFile(token, []byte(s.root), 0o600); err != nil {
		s.t.Fatal(err)
	}
	cfg, err := atiguard.ParseConfig(flag.NewFlagSet("ati-guard", flag.ContinueOnError), []string{
		"-vault.address", s.addr, "-vault.auth.token_file", token, "-ati", "/bin/false", "-ati_dir", s.t.TempDir(), "-hold", "0s", "-poll", "1s"})
	if err != nil {
		s.t.Fatal(err)
	}
	g, err := atiguard.New(cfg, hclog.NewNullLogger(), nil)
	if err != nil {
		s.t.Fatal(err)
	}
	ctx, stop := context.WithCancel(s.t.Context())
	var running sync.WaitGroup
	running.Go(func() { g.Run(ctx) })
	s.t.Cleanup(func() { stop(); running.Wait() })
	call := httptest.NewRecorder()
	g.ServeHTTP(call, httptest.NewRequest(http.MethodPost, "/call", nil))
	if call.Code != http.StatusUnauthorized {
		s.t.Errorf("a call without a token returns %d", call.Code)
	}
	var metrics string
	poll(s.t, "the guard has read Vault", func() error {
		admin := httptest.NewRecorder()
		g.Admin().ServeHTTP(admin, httptest.NewRequest(http.MethodGet, "/metrics", nil))
		metrics = admin.Body.String()
		if !strings.Contains(metrics, "\nati_guard_vault_reads_total{result=\"ok\"} ") {
			return fmt.Errorf("%d\n%s", admin.Code, metrics)
		}
		return nil
	})
	return metrics
}

// metricsOfServer returns the metrics of a server with telemetry.
func (s *server) metricsOfServer() (string, error) {
	req, err := http.NewRequestWithContext(s.t.Context(), http.MethodGet, s.addr+"/v1/sys/metrics?format=prometheus", nil)
	if err != nil {
		return "", err
	}
	req.Header.Set("X-Vault-Token", s.root)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return string(b), err
}
