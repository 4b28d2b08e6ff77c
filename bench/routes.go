package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	vegeta "github.com/tsenart/vegeta/v12/lib"
)

const (
	bareRoute  = "the bare proxy"
	guardRoute = "ati-guard"
	nginxRoute = "nginx"

	guards    = 3               // number of guards that poll Vault
	guardPoll = 5 * time.Second // the guard's default

	// Limits, so that the guard's part of make bench takes two minutes.
	maxDuration = time.Second // of a run of a request through a route
	maxPolls    = 5           // rounds with and without guards
)

// route is a way to an ATI proxy.
type route struct {
	name    string
	address string
	front   []int // IDs of the processes in front of the proxy
	proxy   int   // ID of the proxy's process
}

// proxyRequest is a kind of request to an ATI proxy.
type proxyRequest struct {
	name, method, path, body string
}

const (
	listRequest = "GET /tools"
	callRequest = "POST /call"
	slowRequest = "POST /call, upstream of 20 ms"

	slowUpstream = 20 * time.Millisecond
)

var proxyRequests = []proxyRequest{
	{listRequest, http.MethodGet, "/tools", ""},
	{callRequest, http.MethodPost, "/call", `{"tool_name":"tool0","args":{"query":"weather"}}`},
	{slowRequest, http.MethodPost, "/call", `{"tool_name":"slow","args":{"query":"weather"}}`},
}

// proxySample is the result of a kind of request through a route in one round.
type proxySample struct {
	requests float64 // per second
	p50, p99 time.Duration
	front    time.Duration // CPU time per request
	proxy    time.Duration // CPU time per request
}

// proxyResults holds the results of all rounds.
type proxyResults struct {
	programs  string // with their versions
	routes    []string
	memory    []int64                             // of each route: peak of what is in front, or of the bare proxy, in bytes
	samples   map[string]map[string][]proxySample // by request and route
	generator float64                             // share of the CPU time that the load generator and the upstream used, 0 to 1
	idle      []float64                           // CPU time of Vault and the plugin without guards, as a percentage of a core
	polled    []float64                           // the same with guards
}

// measureProxies compares the routes in several rounds, and measures what guards cost Vault.
func (s *server) measureProxies(ctx context.Context, o options) (*proxyResults, error) {
	p := &proxies{server: s, dir: filepath.Join(s.dir, "proxies")}
	defer p.stop()
	if err := p.start(ctx, o); err != nil {
		return nil, err
	}
	if err := p.rounds(ctx, &proxyResults{}, 1, min(o.duration, 500*time.Millisecond)); err != nil { // warm up
		return nil, err
	}
	r := new(proxyResults)
	var err error
	if r.programs, err = describePrograms(o); err != nil {
		return nil, err
	}
	if err := p.rounds(ctx, r, o.rounds, min(o.duration, maxDuration)); err != nil {
		return nil, err
	}
	if err := p.polls(ctx, r, min(o.rounds, maxPolls)); err != nil {
		return nil, err
	}
	for _, to := range p.routes {
		pids := to.front
		if len(pids) == 0 {
			pids = []int{to.proxy}
		}
		peak, err := peakMemory(pids...)
		if err != nil {
			return nil, err
		}
		r.routes = append(r.routes, to.name)
		r.memory = append(r.memory, peak)
	}
	return r, nil
}

// rounds sends each kind of request through each route, in several rounds.
func (p *proxies) rounds(ctx context.Context, r *proxyResults, rounds int, duration time.Duration) error {
	r.samples = map[string]map[string][]proxySample{}
	for _, request := range proxyRequests {
		r.samples[request.name] = map[string][]proxySample{}
	}
	own, others, err := p.cpu()
	if err != nil {
		return err
	}
	order := slices.Clone(p.routes)
	for range rounds {
		for _, request := range proxyRequests {
			for _, to := range order {
				got, err := p.measure(ctx, request, to, duration)
				if err != nil {
					return fmt.Errorf("%s through %s: %w", request.name, to.name, err)
				}
				r.samples[request.name][to.name] = append(r.samples[request.name][to.name], got)
			}
		}
		slices.Reverse(order)
	}
	ownAfter, othersAfter, err := p.cpu()
	own, others = ownAfter-own, othersAfter-others
	r.generator = float64(own) / float64(own+others)
	return err
}

// cpu returns the CPU time of this process, and of the proxies and what is in front of them.
func (p *proxies) cpu() (own, others time.Duration, err error) {
	pids := map[int]bool{}
	for _, to := range p.routes {
		pids[to.proxy] = true
		for _, pid := range to.front {
			pids[pid] = true
		}
	}
	if own, err = cpuOf(os.Getpid()); err != nil {
		return 0, 0, err
	}
	others, err = cpuOf(slices.Collect(maps.Keys(pids))...)
	return own, others, err
}

func (p *proxies) measure(ctx context.Context, request proxyRequest, to *route, duration time.Duration) (got proxySample, err error) {
	header := http.Header{"Authorization": {"Bearer " + p.token}, "Content-Type": {"application/json"}}
	front, err1 := cpuOf(to.front...)
	proxy, err2 := cpuOf(to.proxy)
	m, err3 := attack(ctx, p.http, p.connections, duration, func(t *vegeta.Target) error {
		t.Method, t.URL, t.Body, t.Header = request.method, "http://"+to.address+request.path, []byte(request.body), header
		return nil
	})
	if err := errors.Join(err1, err2, err3); err != nil {
		return got, err
	}
	frontAfter, err1 := cpuOf(to.front...)
	proxyAfter, err2 := cpuOf(to.proxy)
	n := time.Duration(m.Requests)
	return proxySample{m.Throughput, m.Latencies.P50, m.Latencies.P99, (frontAfter - front) / n, (proxyAfter - proxy) / n}, errors.Join(err1, err2)
}

// polls measures the CPU time of Vault and the plugin while the guards poll, and while they
// are stopped, in several rounds.
func (p *proxies) polls(ctx context.Context, r *proxyResults, rounds int) error {
	defer p.signalGuards(syscall.SIGCONT)
	for range rounds {
		p.signalGuards(syscall.SIGSTOP)
		idle, err1 := p.vaultLoad(ctx)
		p.signalGuards(syscall.SIGCONT)
		polled, err2 := p.vaultLoad(ctx)
		if err := errors.Join(err1, err2); err != nil {
			return err
		}
		r.idle, r.polled = append(r.idle, idle), append(r.polled, polled)
	}
	return nil
}

func (p *proxies) signalGuards(signal os.Signal) {
	for _, guard := range p.guards {
		_ = guard.Process.Signal(signal)
	}
}

// vaultLoad returns the CPU time of Vault and the plugin during one poll of each guard, as a
// percentage of a core.
func (p *proxies) vaultLoad(ctx context.Context) (float64, error) {
	sleep(ctx, time.Second) // guards that continue poll immediately, and then at their usual time
	before, err1 := p.server.cpu(engineName)
	began := time.Now()
	sleep(ctx, guardPoll)
	after, err2 := p.server.cpu(engineName)
	used := after.server + after.plugin - before.server - before.plugin
	return 100 * float64(used) / float64(time.Since(began)), errors.Join(err1, err2, ctx.Err())
}

func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
