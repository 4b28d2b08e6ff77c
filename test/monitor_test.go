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
	"slices"
	"strings"
	"sync"
	"testing"

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
	exported := s.metricsOfGuard() + s.metricsOfServer()
	selector := regexp.MustCompile(`\b((?:ati_guard|vault)_\w+)(?:\{([^}]*)\})?`)
	label := regexp.MustCompile(`(\w+)[=!]~?`)
	seen := map[string]bool{}
	for line := range strings.Lines(string(readFile(t, rulesFile))) {
		if strings.HasPrefix(strings.TrimSpace(line), "#") {
			continue
		}
		for _, m := range selector.FindAllStringSubmatch(line, -1) {
			name := m[1]
			seen[name] = true
			if !regexp.MustCompile(`(?m)^` + name + `[{ ]`).MatchString(exported) {
				t.Errorf("%s is not exported", name)
			}
			for _, l := range label.FindAllStringSubmatch(m[2], -1) {
				if !regexp.MustCompile(`(?m)^` + name + `\{(?:.*,)?` + l[1] + `="`).MatchString(exported) {
					t.Errorf("%s is exported without the label %s", name, l[1])
				}
			}
		}
	}
	if len(seen) < 10 {
		t.Errorf("the rules have only the metrics %v", seen)
	}
	page := string(readFile(t, "../docs/monitor.md"))
	for line := range strings.Lines(exported) {
		if name, ok := strings.CutPrefix(line, "# TYPE ati_guard_"); ok && !strings.Contains(page, "ati_guard_"+strings.Fields(name)[0]) {
			t.Errorf("docs/monitor.md does not name ati_guard_%s", name)
		}
	}
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
		var sections []string
		for _, m := range regexp.MustCompile("(?m)^#+ (.*)$").FindAllStringSubmatch(string(readFile(t, filepath.Join("../docs", link[1]))), -1) {
			sections = append(sections, strings.ReplaceAll(regexp.MustCompile("[^a-z0-9 -]").ReplaceAllString(strings.ToLower(m[1]), ""), " ", "-"))
		}
		if link[2] != "" && !slices.Contains(sections, link[2]) {
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

// metricsOfServer returns the metrics of a server with telemetry. A gauge may be exported only
// some seconds after the start.
func (s *server) metricsOfServer() string {
	s.t.Helper()
	var metrics string
	poll(s.t, "the server exports metrics", func() error {
		req, err := http.NewRequestWithContext(s.t.Context(), http.MethodGet, s.addr+"/v1/sys/metrics?format=prometheus", nil)
		if err != nil {
			return err
		}
		req.Header.Set("X-Vault-Token", s.root)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if metrics = string(b); err == nil && !strings.Contains(metrics, "\nvault_core_locked_users") {
			err = fmt.Errorf("%s\n%s", resp.Status, metrics)
		}
		return err
	})
	return metrics
}
