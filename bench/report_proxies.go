package main

import (
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"time"
)

// describePrograms returns the names and versions of ATI and nginx.
func describePrograms(o options) (string, error) {
	ati, err := exec.Command(o.ati, "--version").Output()
	if err != nil {
		return "", fmt.Errorf("get the version of ATI: %w", err)
	}
	text := "ATI " + strings.TrimPrefix(strings.TrimSpace(string(ati)), "ati ")
	if o.nginx != "" {
		nginx, err := exec.Command(o.nginx, "-v").CombinedOutput()
		if err != nil {
			return "", fmt.Errorf("get the version of nginx: %w", err)
		}
		_, version, _ := strings.Cut(strings.TrimSpace(string(nginx)), "nginx/")
		text += ", nginx " + version
	}
	return text, nil
}

// markdown returns the section on the routes to the proxy.
func (r *proxyResults) markdown(o options) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s, with Vault. %d connections, %d rounds of %v per row. The load generator and the upstream ran on the same cores and used %.0f%% of the CPU time.\n\n", r.programs, o.connections, o.rounds, min(o.duration, maxDuration), 100*r.generator)
	fmt.Fprintln(&b, "| Request | Through | Requests/s | Relative to the bare proxy | Relative to nginx | p50 | p99 | Guard or nginx CPU | ATI CPU |")
	fmt.Fprintln(&b, "| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
	for _, request := range proxyRequests {
		for _, route := range r.routes {
			fmt.Fprintln(&b, r.row(request.name, route))
		}
	}
	var memory []string
	for i, route := range r.routes {
		memory = append(memory, fmt.Sprintf("%s %d MiB", route, r.memory[i]>>20))
	}
	idle, polled := spreadOf(r.idle), spreadOf(r.polled)
	fmt.Fprintf(&b, "\nCPU time is per request. Peak of the resident memory: %s. Vault and the plugin used %.2f%% of a core without guards, and %.2f%% while %d guards polled every %v.\n\n",
		strings.Join(memory, ", "), idle.median, polled.median, guards, guardPoll)
	for _, line := range r.targets(o) {
		fmt.Fprintln(&b, line)
	}
	return b.String()
}

// row returns the row of a request through a route. A cell that does not apply is empty.
func (r *proxyResults) row(request, route string) string {
	of := func(figure func(proxySample) float64) spread { return r.spread(request, route, figure) }
	rate := of(perSecond)
	relative := func(to string) string {
		if route == bareRoute || route == to || !slices.Contains(r.routes, to) {
			return ""
		}
		return r.ratio(request, route, to).String()
	}
	duration := func(unit time.Duration, format string, figure func(proxySample) time.Duration) string {
		return fmt.Sprintf(format, of(func(s proxySample) float64 { return float64(figure(s)) / float64(unit) }).median)
	}
	front := ""
	if route != bareRoute {
		front = duration(time.Microsecond, "%.0f µs", func(s proxySample) time.Duration { return s.front })
	}
	return fmt.Sprintf("| %s | %s | %s (%s–%s) | %s | %s | %s | %s | %s | %s |", request, route, figure(rate.median), figure(rate.min), figure(rate.max), relative(bareRoute), relative(nginxRoute),
		duration(time.Millisecond, "%.2f ms", func(s proxySample) time.Duration { return s.p50 }), duration(time.Millisecond, "%.2f ms", func(s proxySample) time.Duration { return s.p99 }),
		front, duration(time.Microsecond, "%.0f µs", func(s proxySample) time.Duration { return s.proxy }))
}

func perSecond(s proxySample) float64 { return s.requests }

func (r *proxyResults) spread(request, route string, figure func(proxySample) float64) spread {
	var values []float64
	for _, s := range r.samples[request][route] {
		values = append(values, figure(s))
	}
	return spreadOf(values)
}

// ratio returns the spread of the requests per second divided by those through another
// route in the same round.
func (r *proxyResults) ratio(request, route, to string) spread {
	var values []float64
	for i, s := range r.samples[request][route] {
		values = append(values, s.requests/r.samples[request][to][i].requests)
	}
	return spreadOf(values)
}

// targets returns a line for each target, with its result on this machine.
func (r *proxyResults) targets(o options) []string {
	lines := []string{target(o, "POST /call through ati-guard relative to the bare proxy", r.ratio(callRequest, guardRoute, bareRoute), "at least", 0.85)}
	if slices.Contains(r.routes, nginxRoute) {
		lines = append(lines, target(o, "GET /tools through ati-guard relative to nginx", r.ratio(listRequest, guardRoute, nginxRoute), "at least", 0.5))
	} else {
		lines = append(lines, "- GET /tools through ati-guard relative to nginx: not measured, because nginx is not on the PATH.")
	}
	var added []float64
	for i := range r.idle {
		added = append(added, r.polled[i]-r.idle[i])
	}
	return append(lines, target(o, fmt.Sprintf("CPU time of Vault and the plugin for %d guards, as a percentage of a core", guards), spreadOf(added), "at most", 1))
}
