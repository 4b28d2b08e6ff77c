// Package monitor tests examples/monitor/rules.yml with the parser and the engine of Prometheus.
// It is a module of its own, because Prometheus has many dependencies.
package monitor

import (
	"fmt"
	"testing"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/promql/promqltest"
)

// expressions returns the expression of each alert, after Prometheus has checked the file and
// the templates in it.
func expressions(t *testing.T) map[string]string {
	t.Helper()
	file, errs := rulefmt.ParseFile("../../examples/monitor/rules.yml", false, model.LegacyValidation, parser.NewParser(parser.Options{}))
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	found := map[string]string{}
	for _, group := range file.Groups {
		for _, rule := range group.Rules {
			found[rule.Alert] = rule.Expr
		}
	}
	return found
}

func TestRules(t *testing.T) {
	alerts := expressions(t)
	for _, test := range []struct{ name, alert, series, at, want string }{
		{"a ready guard was cut off from Vault", "ATIGuardCannotReadVault", `
			ati_guard_ready{instance="a"} 1x20
			ati_guard_age_seconds{instance="a"} 0+60x20
			ati_guard_ready{instance="b"} 1x20
			ati_guard_age_seconds{instance="b"} 3x20`, "5m", `ati_guard_age_seconds{instance="a"} 300`},
		{"a guard that is closed has its own alert", "ATIGuardCannotReadVault", `
			ati_guard_ready 0x20
			ati_guard_age_seconds 9000x20`, "5m", ""},
		{"half of max_stale is over", "ATIGuardClosesSoon", `
			ati_guard_ready 1x60
			ati_guard_age_seconds 0+60x60`, "31m", `ati_guard_age_seconds 1860`},
		{"half of max_stale is not over", "ATIGuardClosesSoon", `
			ati_guard_ready 1x60
			ati_guard_age_seconds 0+60x60`, "30m", ""},
		{"a guard stays behind", "ATIGuardsDisagree", `
			ati_guard_generation{job="g",instance="a"} 1795823423828264 1795823423828265x9
			ati_guard_generation{job="g",instance="b"} 1795823423828264x10`, "5m", `{job="g"} 1795823423828265`},
		{"guards agree", "ATIGuardsDisagree", `
			ati_guard_generation{job="g",instance="a"} 1795823423828264 1795823423828265x9
			ati_guard_generation{job="g",instance="b"} 1795823423828264 1795823423828265x9`, "5m", ""},
		{"many tokens are rejected", "ATIGuardRejectsTokens", `
			ati_guard_requests_total{job="g",instance="a",status="401"} 0+20x20
			ati_guard_requests_total{job="g",instance="a",status="200"} 0+900x20
			ati_guard_requests_total{job="g",instance="b",status="401"} 0+1x20`, "20m", `{job="g",instance="a"} 200`},
		{"failures are added up", "ATIGuardFails", `
			ati_guard_requests_total{job="g",instance="a",status="502"} 0+2x20
			ati_guard_requests_total{job="g",instance="a",status="503"} 0+2x20
			ati_guard_requests_total{job="g",instance="a",status="500"} 0+9x20`, "20m", `{job="g",instance="a"} 20`},
		{"a Vault node is active", "ATIVaultNoActiveNode", `
			vault_core_active{instance="a"} 0x20
			vault_core_active{instance="b"} 1x20`, "5m", ""},
		{"no Vault node is active", "ATIVaultNoActiveNode", `
			vault_core_active{instance="a"} 0x20`, "5m", `{} 1`},
		{"an audit device fails", "ATIAuditFails", `
			vault_audit_log_request_failure{instance="a"} 0x5 1x20
			vault_audit_log_response_failure{instance="a"} 0x25`, "8m", `{instance="a"} 1`},
		{"writes are slow", "ATIMintingSlow", `
			vault_route_update_ati__sum 0+30000x20
			vault_route_update_ati__count 0+100x20`, "20m", `{} 300`},
		{"minting surges", "ATIMintingSurge", `
			vault_route_update_ati__count 0+12x1440 17400+6000x20`, "1460m", `{} 100`},
		{"the first day", "ATIMintingSurge", `
			vault_route_update_ati__count 0+6000x20`, "20m", ""},
		{"a low rate rises", "ATIMintingSurge", `
			vault_route_update_ati__count 0x1440 1+30x20`, "1460m", ""},
	} {
		t.Run(test.alert+"/"+test.name, func(t *testing.T) {
			expr, ok := alerts[test.alert]
			if !ok {
				t.Fatalf("the rules have no alert %s", test.alert)
			}
			script := fmt.Sprintf("load 1m%s\n\neval instant at %s %s\n  %s\n", test.series, test.at, expr, test.want)
			promqltest.RunTest(t, script, promqltest.NewTestEngine(t, false, 5*time.Minute, 100_000))
		})
	}
}
