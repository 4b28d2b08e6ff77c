// Command bench measures what a token costs on a real Vault: this engine beside
// an echo plugin, a kv store and Vault's own identity tokens, in turn, over
// several rounds, with audit and without.
//
// It prints a table, and with -out writes it into that directory's
// performance.md, between the marks there, with a chart. Run by make bench.
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
	rounds              int
	duration            time.Duration
	connections         int
	roles               int
	out                 string
}

func main() {
	var o options
	flag.StringVar(&o.vault, "vault", "", "the Vault binary")
	flag.StringVar(&o.plugin, "plugin", "", "the plugin's binary")
	flag.StringVar(&o.echo, "echo", "", "the echo plugin's binary")
	flag.IntVar(&o.rounds, "rounds", 7, "rounds; each runs every scenario once with audit and once without")
	flag.DurationVar(&o.duration, "duration", 1500*time.Millisecond, "time for a scenario in a round")
	flag.IntVar(&o.connections, "connections", 8, "connections, each with one request at a time")
	flag.IntVar(&o.roles, "roles", 100_000, "roles of the largest mount; the next has a hundredth of them")
	flag.StringVar(&o.out, "out", "", "directory with performance.md; without it, nothing is written")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) error {
	if o.vault == "" || o.plugin == "" || o.echo == "" || o.rounds < 1 || o.roles < 100 || o.connections < 1 || o.duration <= 0 {
		return errors.New("-vault, -plugin and -echo are required, with at least one round, one connection, 100 roles and some duration")
	}
	page := filepath.Join(o.out, "performance.md")
	if o.out != "" { // before all the rounds, not after them
		if _, _, err := around(page); err != nil {
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

// measureAll runs all rounds on a server that is gone when it returns.
func measureAll(ctx context.Context, o options) (r *report, err error) {
	s, err := startServer(ctx, o)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.stop()) }()
	fmt.Fprintf(os.Stderr, "setting up, with %d roles\n", o.roles)
	scenarios, err := s.setUp(ctx, o)
	if err != nil {
		return nil, err
	}
	results := map[string]map[bool][]sample{} // by name, and by audit
	// Once before, so that no round pays for starting.
	for _, audit := range []bool{true, false} {
		if err := s.audit(ctx, audit); err != nil {
			return nil, err
		}
		for _, sc := range scenarios {
			results[sc.name] = map[bool][]sample{}
			if _, err := s.measure(ctx, sc, min(o.duration, 300*time.Millisecond)); err != nil {
				return nil, err
			}
		}
	}
	order := slices.Clone(scenarios)
	for round := range o.rounds {
		for _, audit := range []bool{round%2 == 0, round%2 == 1} {
			if err := s.audit(ctx, audit); err != nil {
				return nil, err
			}
			// The first requests after that are slow.
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
	memory, err := s.peakMemory()
	if err != nil {
		return nil, err
	}
	return newReport(o, s, scenarios, results, memory)
}
