//go:build unix

package guard

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus"
)

const maxBackoff = 10 * time.Second

// runner keeps one ATI proxy running: one child, and during a change a second one.
type runner struct {
	cfg      *Config
	log      hclog.Logger
	local    localKey
	restarts prometheus.Counter
	stop     context.CancelFunc

	current atomic.Pointer[child] // nil while none serves
	specs   chan *spec
}

// want sets what the proxy must be started with.
func (r *runner) want(s *spec) {
	select {
	case <-r.specs:
	default:
	}
	r.specs <- s
}

// run runs the proxy until the context ends.
func (r *runner) run(ctx context.Context) {
	var serving *child
	var wanted *spec
	var failures int
	retry := time.NewTimer(0)
	<-retry.C
	defer func() {
		if serving != nil {
			r.current.Store(nil)
			serving.end(time.Duration(r.cfg.Drain))
		}
	}()
	for {
		var ended <-chan string
		if serving != nil {
			ended = serving.ended
		}
		select {
		case <-ctx.Done():
			return
		case s := <-r.specs:
			if wanted != nil && s.equal(wanted) {
				continue
			}
			wanted, failures = s, 0
		case reason := <-ended:
			r.current.Store(nil)
			_ = serving.kill()
			serving = nil
			r.restarts.Inc()
			r.log.Error("the ATI proxy is restarted", "reason", reason)
		case <-retry.C:
		}
		if serving != nil && serving.spec.equal(wanted) {
			continue
		}
		begun := time.Now()
		next, err := startChild(ctx, r.cfg, r.local, wanted)
		if err != nil {
			failures++
			backoff := min(maxBackoff, 100*time.Millisecond<<min(failures, 10))
			r.log.Error("failed to start the ATI proxy", "error", err, "retry", backoff, "old_one_serves", serving != nil)
			retry.Reset(backoff)
			continue
		}
		failures = 0
		r.log.Info("the ATI proxy serves", "pid", next.cmd.Process.Pid, "after", time.Since(begun).Round(time.Millisecond))
		go next.watch(ctx)
		r.current.Store(next)
		if serving != nil {
			go serving.end(time.Duration(r.cfg.Drain))
		}
		serving = next
	}
}
