// Command bench measures the cost of a token on a Vault server. It compares this
// engine with an echo plugin, a kv store, and the identity tokens of Vault, in
// several rounds, each with and without an audit device. It then measures the cost of
// ati-guard in front of an ATI proxy, compared with nginx, and for Vault.
//
// It prints tables of the results. With -out, it also writes them between the
// markers of performance.md in that directory, and writes the chart
// performance.svg. Use it through make bench.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"
	"time"
)

type options struct {
	vault, plugin, echo string
	ati, guard, nginx   string
	rounds              int
	duration            time.Duration
	connections         int
	roles               int
	out                 string
}

func main() {
	var o options
	flag.StringVar(&o.vault, "vault", "", "path of the Vault binary")
	flag.StringVar(&o.plugin, "plugin", "", "path of the plugin binary")
	flag.StringVar(&o.echo, "echo", "", "path of the echo plugin binary")
	flag.StringVar(&o.ati, "ati", "", "path of the ATI binary")
	flag.StringVar(&o.guard, "guard", "", "path of the ati-guard binary")
	flag.StringVar(&o.nginx, "nginx", "", "path of the nginx binary; if empty, nginx is not measured")
	flag.IntVar(&o.rounds, "rounds", 7, "number of rounds; each runs every scenario once with and once without an audit device")
	flag.DurationVar(&o.duration, "duration", 1500*time.Millisecond, "duration of one run of a scenario")
	flag.IntVar(&o.connections, "connections", 8, "number of connections, each with one request at a time")
	flag.IntVar(&o.roles, "roles", 100_000, "number of roles of the largest mount; the second largest has 1% of them")
	flag.StringVar(&o.out, "out", "", "directory of performance.md and performance.svg; if empty, no file is written")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) error {
	if slices.Contains([]string{o.vault, o.plugin, o.echo, o.ati, o.guard}, "") || o.rounds < 1 || o.roles < 100 || o.connections < 1 || o.duration <= 0 {
		return errors.New("-vault, -plugin, -echo, -ati, and -guard are required; -rounds and -connections must be at least 1, -roles at least 100, and -duration positive")
	}
	page := filepath.Join(o.out, "performance.md")
	if o.out != "" { // fail before the measurement, not after it
		if _, _, err := splitPage(page); err != nil {
			return err
		}
	}
	r, err := measureAll(ctx, o)
	if ctx.Err() != nil {
		return errors.New("interrupted")
	}
	if err != nil {
		return err
	}
	fmt.Println(r.markdown())
	if o.out == "" {
		return nil
	}
	if err := r.writeInto(page); err != nil {
		return err
	}
	return r.writeChart(filepath.Join(o.out, "performance.svg"))
}

// measureAll runs all rounds on a temporary server.
func measureAll(ctx context.Context, o options) (r *report, err error) {
	s, err := startServer(ctx, o)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.stop()) }()
	fmt.Fprintf(os.Stderr, "setting up %d roles\n", o.roles)
	scenarios, err := s.setUp(ctx, o)
	if err != nil {
		return nil, err
	}
	if err := s.warmUp(ctx, scenarios, o.duration); err != nil {
		return nil, err
	}
	results := map[string]map[bool][]sample{} // by name and audit
	for _, sc := range scenarios {
		results[sc.name] = map[bool][]sample{}
	}
	order := slices.Clone(scenarios)
	for round := range o.rounds {
		for _, audit := range []bool{round%2 == 0, round%2 == 1} {
			if err := s.audit(ctx, audit); err != nil {
				return nil, err
			}
			// The first requests after the change are slow.
			if _, err := s.measure(ctx, order[0], min(o.duration, 500*time.Millisecond)); err != nil {
				return nil, err
			}
			for _, sc := range order {
				got, err := s.measure(ctx, sc, o.duration)
				if err != nil {
					return nil, err
				}
				results[sc.name][audit] = append(results[sc.name][audit], got)
			}
			slices.Reverse(order)
		}
		fmt.Fprintf(os.Stderr, "round %d of %d\n", round+1, o.rounds)
	}
	if r, err = newReport(o, s, scenarios, results); err != nil {
		return nil, err
	}
	r.proxies, err = s.measureProxies(ctx, o)
	return r, err
}

// warmUp runs each scenario briefly, so that no round includes the cost of
// starting.
func (s *server) warmUp(ctx context.Context, scenarios []*scenario, duration time.Duration) error {
	for _, audit := range []bool{true, false} {
		if err := s.audit(ctx, audit); err != nil {
			return err
		}
		for _, sc := range scenarios {
			if _, err := s.measure(ctx, sc, min(duration, 300*time.Millisecond)); err != nil {
				return err
			}
		}
	}
	return nil
}
