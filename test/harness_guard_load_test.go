//go:build interop

package test

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// guardLoad is a number of clients that call a tool continuously.
type guardLoad struct {
	g        *guard
	pause    time.Duration // of each client, after a call
	stop     chan struct{}
	running  sync.WaitGroup
	mu       sync.Mutex
	statuses map[int]int
	failures []string    // the first ones of each status
	failedAt []time.Time // when the failed calls began
	slowest  time.Duration
}

// startLoad starts clients that call web_search with what token returns.
func (g *guard) startLoad(clients int, token func() string) *guardLoad {
	return g.startPacedLoad(clients, 10*time.Millisecond, token) // the other tests need the processors too
}

func (g *guard) startPacedLoad(clients int, pause time.Duration, token func() string) *guardLoad {
	l := &guardLoad{g: g, pause: pause, stop: make(chan struct{}), statuses: map[int]int{}}
	for range clients {
		l.running.Go(func() {
			for {
				select {
				case <-l.stop:
					return
				case <-time.After(l.pause):
				}
				l.call(token())
			}
		})
	}
	g.t.Cleanup(func() { l.end() })
	return l
}

func (l *guardLoad) call(token string) {
	began := time.Now()
	status, body := l.g.call(token, "web_search")
	l.mu.Lock()
	defer l.mu.Unlock()
	l.slowest = max(l.slowest, time.Since(began))
	l.statuses[status]++
	if status == http.StatusOK {
		return
	}
	l.failedAt = append(l.failedAt, began)
	if l.statuses[status] <= 2 {
		l.failures = append(l.failures, fmt.Sprintf("%s: %d %s", began.Format("05.000"), status, strings.TrimSpace(body)))
	}
}

// end stops the clients and returns the number of calls by status.
func (l *guardLoad) end() map[int]int {
	select {
	case <-l.stop:
	default:
		close(l.stop)
	}
	l.running.Wait()
	return l.statuses
}

// failed returns the number of calls with another status than 200.
func (l *guardLoad) failed() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.failedAt)
}

// failedAfter returns the number of failed calls that began after a time.
func (l *guardLoad) failedAfter(t time.Time) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, at := range l.failedAt {
		if at.After(t) {
			n++
		}
	}
	return n
}

func (l *guardLoad) succeeded() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.statuses[http.StatusOK]
}

// waitForCalls waits until this many more calls have succeeded.
func (l *guardLoad) waitForCalls(n int) {
	l.g.t.Helper()
	want := l.succeeded() + n
	pollFor(l.g.t, time.Minute, "calls succeed", func() error {
		l.mu.Lock()
		defer l.mu.Unlock()
		if got := l.statuses[http.StatusOK]; got < want {
			return fmt.Errorf("%d of %d; the first failures are %q", got, want, l.failures)
		}
		return nil
	})
}

// expectNoFailure ends the load, and fails the test if a call failed.
func (l *guardLoad) expectNoFailure(what string) {
	l.g.t.Helper()
	l.end()
	l.g.t.Logf("%s: %d calls, %d failed, the slowest took %v", what, l.succeeded()+l.failed(), l.failed(), l.slowest.Round(time.Millisecond))
	if l.failed() > 0 || l.succeeded() == 0 {
		l.g.t.Errorf("%s: calls by status %v, such as %q", what, l.statuses, l.failures)
	}
}

// rejections sends requests that must never pass: without a token, with a forged one, and
// with tokens that were rejected before, in turn to /call and /mcp.
type rejections struct {
	g        *guard
	end      chan struct{}
	running  sync.WaitGroup
	mu       sync.Mutex
	tokens   []string
	statuses map[int]int
}

// watchRejected fails the test if one of these tokens, or a request without one, passes
// before the test ends.
func (g *guard) watchRejected(tokens ...string) *rejections {
	g.t.Helper()
	w := &rejections{g: g, end: make(chan struct{}), tokens: append([]string{""}, tokens...), statuses: map[int]int{}}
	forged := forgedToken(g.t)
	w.running.Go(func() {
		w.each(10*time.Millisecond, func(i int) string {
			w.mu.Lock()
			defer w.mu.Unlock()
			return w.tokens[i%len(w.tokens)]
		})
	})
	w.running.Go(func() { w.each(50*time.Millisecond, func(int) string { return forged }) }) // each causes a read of Vault
	g.t.Cleanup(w.stop)
	return w
}

// forgedToken returns a token that was signed with a key of no mount.
func forgedToken(t testing.TB) string {
	now := time.Now().Unix()
	return signRaw(t, strings.Repeat("ab", 32), `{"alg":"HS256","typ":"JWT"}`, fmt.Sprintf(`{"sub":"x","aud":"ati-proxy","iat":%d,"exp":%d,"scope":"*","iss":"ati-orchestrator"}`, now, now+3600))
}

func (w *rejections) each(pause time.Duration, token func(i int) string) {
	for i := 0; ; i++ {
		select {
		case <-w.end:
			return
		case <-time.After(pause):
		}
		w.try(token(i/2), i%2 == 0)
	}
}

func (w *rejections) try(token string, call bool) {
	path, request := "/mcp", `{"jsonrpc":"2.0","id":1,"method":"tools/list"}`
	if call {
		path, request = "/call", `{"tool_name":"web_search","args":{}}`
	}
	status, body := w.g.do(token, http.MethodPost, path, request)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.statuses[status]++
	if !slices.Contains([]int{0, http.StatusUnauthorized, http.StatusServiceUnavailable}, status) && w.statuses[status] == 1 {
		w.g.t.Errorf("a request to %s that must not pass (token %d of %d) returns %d %s", path, slices.Index(w.tokens, token), len(w.tokens), status, body)
	}
}

// add adds tokens that were rejected.
func (w *rejections) add(tokens ...string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.tokens = append(w.tokens, tokens...)
}

// stop prints the number of requests. It is called when the test ends, or before.
func (w *rejections) stop() {
	select {
	case <-w.end:
		return
	default:
	}
	close(w.end)
	w.running.Wait()
	w.g.t.Logf("requests that must not pass, of %d tokens and without one, by status: %v", len(w.tokens)-1, w.statuses)
}
