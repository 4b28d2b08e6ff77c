package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"sync/atomic"
	"time"

	vegeta "github.com/tsenart/vegeta/v12/lib"
)

// clusterRow is where requests to a cluster of three nodes go.
type clusterRow struct {
	name     string
	standbys bool // whether standbys mint: allow_standby_minting
	nodes    []int
}

// The first node is the active one.
var clusterRows = []clusterRow{
	{"the active node", true, []int{0}},
	{"a standby", true, []int{1}},
	{"all three nodes", true, []int{0, 1, 2}},
	{"a standby, without allow_standby_minting", false, []int{1}},
}

// clusterSample is the result of a row in one round.
type clusterSample struct {
	tokens           float64 // per second
	p50              time.Duration
	active, standbys time.Duration // CPU time per token, plugins included
}

type clusterResults struct {
	product
	samples map[string][]clusterSample // by row
}

// cluster is three nodes, of which the first is active.
type cluster []*server

// measureCluster measures single reads at the nodes of an OpenBao cluster, in several
// rounds. Standbys of Vault's community edition do not mint.
func measureCluster(ctx context.Context, o options) (r *clusterResults, err error) {
	p, err := detectProduct(o.bao)
	if err != nil {
		return nil, err
	}
	fmt.Fprintf(os.Stderr, "%s: starting three nodes\n", p)
	var c cluster
	defer func() { err = errors.Join(err, c.stop()) }()
	if err := c.start(ctx, o, p); err != nil {
		return nil, err
	}
	r = &clusterResults{product: p, samples: map[string][]clusterSample{}}
	if _, err := c.round(ctx, min(o.duration, 300*time.Millisecond)); err != nil { // warm up
		return nil, err
	}
	for range o.rounds {
		got, err := c.round(ctx, o.duration)
		if err != nil {
			return nil, err
		}
		for name, sample := range got {
			r.samples[name] = append(r.samples[name], sample)
		}
	}
	return r, nil
}

func (c *cluster) start(ctx context.Context, o options, p product) error {
	for range 3 {
		var leader *server
		if len(*c) > 0 {
			leader = (*c)[0]
		}
		s, err := startServer(ctx, o, p, leader)
		if err != nil {
			return err
		}
		*c = append(*c, s)
		if leader != nil {
			if _, err := s.install(engineName, o.plugin); err != nil {
				return err
			}
			continue
		}
		if err := s.register(ctx, engineName, o.plugin); err != nil {
			return err
		}
	}
	w := &writer{ctx: ctx, c: (*c)[0].Client}
	w.write("sys/mounts/ati", data{"type": engineName})
	w.write("ati/config", data{"proxy_url": "https://ati.example.com"})
	w.write("ati/roles/one", benchRole())
	for _, s := range *c {
		w.err = errors.Join(w.err, poll(ctx, func() error {
			_, err := s.Logical().ReadWithContext(ctx, "ati/creds/one")
			return err
		}))
	}
	return w.err
}

func (c cluster) stop() (err error) {
	for _, s := range slices.Backward(c) {
		err = errors.Join(err, s.stop())
	}
	return err
}

// round measures each row once.
func (c cluster) round(ctx context.Context, duration time.Duration) (map[string]clusterSample, error) {
	samples := map[string]clusterSample{}
	for _, row := range clusterRows {
		if err := c.allowStandbys(ctx, row.standbys); err != nil {
			return nil, err
		}
		got, err := c.measure(ctx, row, duration)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", row.name, err)
		}
		samples[row.name] = got
	}
	return samples, nil
}

// allowStandbys writes the config, and waits until the standbys have seen it.
func (c cluster) allowStandbys(ctx context.Context, allow bool) error {
	w := &writer{ctx: ctx, c: c[0].Client}
	w.write("ati/config", data{"allow_standby_minting": allow})
	sleep(ctx, time.Second)
	return errors.Join(w.err, ctx.Err())
}

// measure sends single reads to the nodes of a row in turn.
func (c cluster) measure(ctx context.Context, row clusterRow, duration time.Duration) (got clusterSample, err error) {
	before, err1 := c.cpu()
	var next atomic.Int64
	header := http.Header{"X-Vault-Token": {c[0].Token()}, "X-Vault-Request": {"true"}}
	m, err2 := attack(ctx, c[0].http, c[0].connections, duration, func(t *vegeta.Target) error {
		node := c[row.nodes[int(next.Add(1))%len(row.nodes)]]
		t.Method, t.URL, t.Header = http.MethodGet, node.Address()+"/v1/ati/creds/one", header
		return nil
	})
	after, err3 := c.cpu()
	if err := errors.Join(err1, err2, err3); err != nil {
		return got, err
	}
	n := time.Duration(m.Requests)
	return clusterSample{m.Throughput, m.Latencies.P50, (after[0] - before[0]) / n, (after[1] + after[2] - before[1] - before[2]) / n}, nil
}

// cpu returns the CPU time that each node has used.
func (c cluster) cpu() (used [3]time.Duration, err error) {
	for i, s := range c {
		u, failed := s.cpu(engineName)
		used[i], err = u.server+u.plugin, errors.Join(err, failed)
	}
	return used, err
}
