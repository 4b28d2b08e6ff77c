package test

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"
)

// BenchmarkManyRoles fills a real mount with 100,000 roles (or ATI_BENCH_ROLES),
// mints for each of them, and reports what a mint costs for a role that is in
// the cache, before and after, and the memory that the plugin's process had at
// most.
func BenchmarkManyRoles(b *testing.B) {
	const clients = 8
	roles := 100_000
	if n := os.Getenv("ATI_BENCH_ROLES"); n != "" {
		var err error
		if roles, err = strconv.Atoi(n); err != nil {
			b.Fatalf("ATI_BENCH_ROLES: %v", err)
		}
	}
	s := startVaultLogging(b, "error")
	if err := s.client(s.root).Sys().DisableAudit("file"); err != nil {
		b.Fatal(err)
	}
	s.mountEngine()
	s.write(s.root, "ati/roles/r0", role(0))

	for b.Loop() {
		before := s.hotMint()
		start := time.Now()
		s.parallel(roles, clients, func(c *api.Client, i int) error {
			_, err := c.Logical().Write(fmt.Sprintf("ati/roles/r%d", i), role(i))
			return err
		})
		b.ReportMetric(time.Since(start).Seconds()*1e6/float64(roles), "µs/role-write")
		start = time.Now()
		s.parallel(roles, clients, func(c *api.Client, i int) error { return mint(c, fmt.Sprintf("r%d", i), 1) })
		b.ReportMetric(time.Since(start).Seconds()*1e6/float64(roles), "µs/cold-mint")
		after := s.hotMint()
		b.ReportMetric(float64(roles), "roles")
		b.ReportMetric(before, "µs/hot-mint-1-role")
		b.ReportMetric(after, "µs/hot-mint-all-roles")
		peak := s.pluginPeakMB()
		b.ReportMetric(peak, "MB-plugin-peak")
		if peak > 200 {
			b.Errorf("the plugin had %.0f MB", peak)
		}
	}
}

func role(i int) data {
	return data{
		"tools": []string{"web_search", fmt.Sprintf("provider%d:*", i%100), "arxiv:search"}, "skills": "summarize",
		"rate": data{"tool:web_search": "30/hour"}, "allowed_agent_ids": fmt.Sprintf("sandbox-%d:*", i), "description": fmt.Sprintf("role number %d", i),
	}
}

func mint(c *api.Client, role string, times int) error {
	for range times {
		if _, err := c.Logical().Read("ati/creds/" + role); err != nil {
			return err
		}
	}
	return nil
}

// hotMint is the middle of three runs of 5,000 mints for a role in the cache,
// in µs a mint.
func (s *server) hotMint() float64 {
	s.t.Helper()
	const mints = 5000
	c := s.client(s.root)
	var spent []float64
	for range 3 {
		start := time.Now()
		if err := mint(c, "r0", mints); err != nil {
			s.t.Fatal(err)
		}
		spent = append(spent, time.Since(start).Seconds()*1e6/mints)
	}
	slices.Sort(spent)
	return spent[1]
}

// parallel calls f for 0 to n-1 from several clients.
func (s *server) parallel(n, clients int, f func(c *api.Client, i int) error) {
	s.t.Helper()
	var next atomic.Int64
	var wg sync.WaitGroup
	for range clients {
		wg.Go(func() {
			c := s.client(s.root)
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				if err := f(c, i); err != nil {
					s.t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	if s.t.Failed() {
		s.t.FailNow()
	}
}

// pluginPeakMB is the largest resident set that the plugin's process had, from
// Linux's /proc.
func (s *server) pluginPeakMB() float64 {
	s.t.Helper()
	pids := s.pluginProcesses()
	if len(pids) != 1 {
		s.t.Fatalf("%d processes of the plugin, want 1", len(pids))
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pids[0]))
	if err != nil {
		s.t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(status), "VmHWM:")
	kb, err := strconv.Atoi(strings.Fields(after)[0])
	if err != nil {
		s.t.Fatal(err)
	}
	return float64(kb) / 1024
}
