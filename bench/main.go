// Command bench measures the cost of a token on Vault and on OpenBao. It compares this
// engine with an echo plugin, a kv store, and the server's identity tokens, in
// several rounds, each with and without an audit device. It then measures what the nodes
// of an OpenBao cluster mint, and the cost of ati-guard in front of an ATI proxy, compared
// with nginx, and for Vault.
//
// It prints the results. With -out, it also writes them between the
// markers of performance.md in that directory, and writes the charts
// performance-reads.svg and performance-batches.svg to its directory images. Use it
// through make bench.
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
	vault, bao, plugin, echo string
	ati, guard, nginx        string
	rounds                   int
	duration                 time.Duration
	connections              int
	roles                    int
	out                      string
}

func main() {
	var o options
	flag.StringVar(&o.vault, "vault", "", "path of the Vault binary")
	flag.StringVar(&o.bao, "bao", "", "path of the OpenBao binary")
	flag.StringVar(&o.plugin, "plugin", "", "path of the plugin binary")
	flag.StringVar(&o.echo, "echo", "", "path of the echo plugin binary")
	flag.StringVar(&o.ati, "ati", "", "path of the ATI binary")
	flag.StringVar(&o.guard, "guard", "", "path of the ati-guard binary")
	flag.StringVar(&o.nginx, "nginx", "", "path of the nginx binary; if empty, nginx is not measured")
	flag.IntVar(&o.rounds, "rounds", 7, "number of rounds; each runs every scenario once with and once without an audit device")
	flag.DurationVar(&o.duration, "duration", time.Second, "duration of one run of a scenario")
	flag.IntVar(&o.connections, "connections", 8, "number of connections, each with one request at a time")
	flag.IntVar(&o.roles, "roles", 100_000, "number of roles of the largest mount; the second largest has 1% of them")
	flag.StringVar(&o.out, "out", "", "directory of performance.md; if empty, no file is written")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) error {
	if slices.Contains([]string{o.vault, o.bao, o.plugin, o.echo, o.ati, o.guard}, "") || o.rounds < 1 || o.roles < 100 || o.connections < 1 || o.duration <= 0 {
		return errors.New("-vault, -bao, -plugin, -echo, -ati, and -guard are required; -rounds and -connections must be at least 1, -roles at least 100, and -duration positive")
	}
	page := filepath.Join(o.out, "performance.md")
	if o.out != "" { // fail before the measurement, not after it
		if _, err := splitPage(page); err != nil {
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
	fmt.Print(r.summary(), "\n", r.tables())
	if o.out == "" {
		return nil
	}
	return errors.Join(r.writeInto(page), r.writeCharts(filepath.Join(o.out, "images")))
}

// measureAll measures everything, one server after the other.
func measureAll(ctx context.Context, o options) (*report, error) {
	r := &report{options: o, machine: describeMachine()}
	for _, binary := range []string{o.vault, o.bao} {
		p, err := detectProduct(binary)
		if err != nil {
			return nil, err
		}
		if err := r.measureServer(ctx, p); err != nil {
			return nil, fmt.Errorf("%s: %w", p, err)
		}
	}
	var err error
	r.cluster, err = measureCluster(ctx, o)
	return r, err
}

// measureServer runs all rounds on a server, and with the first one measures the guard too.
func (r *report) measureServer(ctx context.Context, p product) (err error) {
	s, err := startServer(ctx, r.options, p, nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.stop()) }()
	fmt.Fprintf(os.Stderr, "%s: setting up %d roles\n", p, r.options.roles)
	results, err := s.measureScenarios(ctx, r.options)
	if err != nil {
		return err
	}
	r.servers = append(r.servers, results)
	if r.proxies == nil {
		r.proxies, err = s.measureProxies(ctx, r.options)
	}
	return err
}

// measureScenarios runs all rounds of all scenarios.
func (s *server) measureScenarios(ctx context.Context, o options) (*serverResults, error) {
	scenarios, err := s.setUp(ctx, o)
	if err != nil {
		return nil, err
	}
	if err := s.warmUp(ctx, scenarios, o.duration); err != nil {
		return nil, err
	}
	own, err := cpuOf(os.Getpid())
	if err != nil {
		return nil, err
	}
	r := &serverResults{product: s.product, fileSystem: fileSystem(s.dir), scenarios: scenarios, samples: map[string]map[bool][]sample{}}
	for _, sc := range scenarios {
		r.samples[sc.name] = map[bool][]sample{}
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
				r.samples[sc.name][audit] = append(r.samples[sc.name][audit], got)
			}
			slices.Reverse(order)
		}
		fmt.Fprintf(os.Stderr, "round %d of %d\n", round+1, o.rounds)
	}
	return r, s.complete(r, own)
}

// complete adds to the results what is known at the end. own is the CPU time that this
// process had used before.
func (s *server) complete(r *serverResults, own time.Duration) error {
	ownAfter, err1 := cpuOf(os.Getpid())
	u, err2 := s.cpu(engineName)
	plugin, err3 := s.pluginProcess(engineName)
	memory, err4 := peakMemory(plugin)
	own = ownAfter - own
	r.memory, r.generator = memory, float64(own)/float64(own+u.server+u.plugin)
	return errors.Join(err1, err2, err3, err4)
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
