//go:build unix

package guard

import (
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

type metrics struct {
	registry *prometheus.Registry
	requests *prometheus.CounterVec
	duration prometheus.Histogram
	reads    *prometheus.CounterVec
	restarts prometheus.Counter
}

func newMetrics(g *Guard) *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "ati_guard_requests_total", Help: "Requests by status."}, []string{"status"}),
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "ati_guard_request_seconds", Help: "Duration of requests.", Buckets: prometheus.ExponentialBuckets(0.001, 2, 17)}),
		reads:    prometheus.NewCounterVec(prometheus.CounterOpts{Name: "ati_guard_vault_reads_total", Help: "Reads of Vault by result, ok or error."}, []string{"result"}),
		restarts: prometheus.NewCounter(prometheus.CounterOpts{Name: "ati_guard_proxy_restarts_total", Help: "Restarts of the ATI proxy after it has ended or hung."}),
	}
	gauge := func(name, help string, value func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, value)
	}
	m.registry.MustRegister(m.requests, m.duration, m.reads, m.restarts,
		gauge("ati_guard_ready", "1 if requests with a valid token are served.", func() float64 {
			if g.Ready() != nil {
				return 0
			}
			return 1
		}),
		gauge("ati_guard_requests_in_flight", "Requests that have passed and are not finished.", func() float64 { return float64(g.door.flights.count()) }),
		gauge("ati_guard_age_seconds", "Time since the last successful read of Vault.", func() float64 {
			g.door.mu.RLock()
			defer g.door.mu.RUnlock()
			return time.Since(g.door.freshAt).Seconds()
		}),
		gauge("ati_guard_generation", "Generation of the keys and revocations that are applied.", func() float64 {
			if b := g.door.held(); b != nil {
				return float64(b.generation)
			}
			return 0
		}),
	)
	return m
}

func (m *metrics) served(r *record) {
	m.requests.WithLabelValues(strconv.Itoa(r.Status)).Inc()
	m.duration.Observe(time.Since(r.started).Seconds())
}

func (m *metrics) read(err error) {
	result := "ok"
	if err != nil {
		result = "error"
	}
	m.reads.WithLabelValues(result).Inc()
}

// Admin returns the handler of the loopback port: /ready and /metrics.
func (g *Guard) Admin() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /ready", func(w http.ResponseWriter, _ *http.Request) {
		if err := g.Ready(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
		}
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(g.metrics.registry, promhttp.HandlerOpts{}))
	return mux
}
