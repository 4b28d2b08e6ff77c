package guard

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"vault-plugin-secrets-ati/ati"
)

// maxLogged limits the path and the method in the access log, in bytes.
const maxLogged = 200

// record is a line of the access log. It never has a token.
type record struct {
	Time       string  `json:"time"`
	Method     string  `json:"method"`
	Path       string  `json:"path"`
	Status     int     `json:"status"`
	DurationMS float64 `json:"duration_ms"`
	JTI        string  `json:"jti,omitempty"`
	Subject    string  `json:"sub,omitempty"`
	JobID      string  `json:"job_id,omitempty"`
	SandboxID  string  `json:"sandbox_id,omitempty"`
	KeyVersion int     `json:"key_version,omitempty"`
	Reason     string  `json:"reason,omitempty"` // of a rejection

	started time.Time
}

// loggable returns the beginning of a text of the client, up to what may be a token.
func loggable(text string) string {
	before, _, found := strings.Cut(text, "eyJ")
	if found || len(before) > maxLogged {
		return before[:min(len(before), maxLogged)] + "…"
	}
	return text
}

func (r *record) identify(c *ati.Claims, k *key) {
	if c != nil {
		r.JTI, r.Subject, r.JobID, r.SandboxID = c.ID, c.Subject, c.JobID, c.SandboxID
	}
	if k != nil {
		r.KeyVersion = k.version
	}
}

// accessLog writes a line per request. Lines are buffered for up to a second.
type accessLog struct {
	mu   sync.Mutex
	out  *bufio.Writer
	file io.Writer // below out
}

func newAccessLog(out io.Writer) *accessLog {
	if out == nil {
		out = io.Discard
	}
	return &accessLog{out: bufio.NewWriterSize(out, 64<<10), file: out}
}

func (l *accessLog) write(r *record) {
	r.Time = r.started.UTC().Format("2006-01-02T15:04:05.000Z")
	r.DurationMS = float64(time.Since(r.started).Microseconds()) / 1000
	line, err := json.Marshal(r)
	if err != nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(line) >= l.out.Available() { // never a part of a line, whose rest would be in another file after SIGHUP
		l.flushLocked()
	}
	_, _ = l.out.Write(append(line, '\n'))
}

func (l *accessLog) flush() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.flushLocked()
}

func (l *accessLog) flushLocked() {
	if l.out.Flush() != nil { // such as a full disk: only what was buffered is lost
		l.out.Reset(l.file)
	}
}

func (l *accessLog) flushUntil(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	defer l.flush()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			l.flush()
		}
	}
}

// recorder records the status of a response.
type recorder struct {
	http.ResponseWriter
	status int
}

func (w *recorder) WriteHeader(status int) {
	if status >= 200 {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *recorder) Write(b []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	return w.ResponseWriter.Write(b)
}

// Unwrap is for http.ResponseController, which flushes.
func (w *recorder) Unwrap() http.ResponseWriter { return w.ResponseWriter }
