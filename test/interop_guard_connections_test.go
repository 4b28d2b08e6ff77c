//go:build interop

package test

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// Guarantee: calls are served while other clients keep connections open, send slowly, or do
// not read the responses.
func TestInteropGuard_Connections(t *testing.T) {
	t.Parallel()
	s := startGuarded(t, false, time.Hour)
	token, revoked := s.mint("r", nil), s.mint("r", nil)
	s.write(s.root, "ati/revoke", data{"token": revoked})
	g := s.newGuard(t, nil)
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"x":"`+strings.Repeat("x", 8<<20)+`"}`)
	}))
	t.Cleanup(upstream.Close)
	g.addTool("large", http.MethodGet, upstream.URL, `auth_type = "none"`)
	g.start()
	g.waitUntilReady()
	g.watchRejected(revoked)
	child, before := g.child(), g.memory()
	load := g.startLoad(2, func() string { return token })
	load.waitForCalls(100)

	bearer := "Host: x\r\nAuthorization: Bearer " + token + "\r\n"
	const call = "Content-Type: application/json\r\nContent-Length: 33\r\n\r\n" + `{"tool_name":"large","args":{  }}`
	slow := map[string][]net.Conn{
		"headers":   g.open(100, "POST /call HTTP/1.1\r\nHost: x\r\nAuthori"),
		"bodies":    g.open(100, "POST /call HTTP/1.1\r\n"+bearer+"Content-Length: 1000\r\n\r\n{"),
		"responses": g.open(20, "POST /call HTTP/1.1\r\n"+bearer+call),
		"nothing":   g.open(1000, ""),
	}
	began := time.Now()
	const health = "GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
	idle := g.open(idleConnections(t), health)
	opened := time.Now()
	if got := respond(idle, ""); got != len(idle) {
		t.Errorf("of %d idle connections, %d respond", len(idle), got)
	}
	used := g.memory()
	t.Logf("%d idle connections were opened in %v; with them, the guard has %d MB instead of %d, or %d KB for each", len(idle), opened.Sub(began).Round(time.Millisecond), used>>20, before>>20, (used-before)>>10/int64(len(idle)))
	if perConnection := (used - before) / int64(len(idle)+1220); perConnection > 128<<10 {
		t.Errorf("the guard uses %d bytes for each connection", perConnection)
	}
	load.waitForCalls(1000)

	// Who sends no headers is cut off, after 10 seconds. Who has sent a request may wait longer.
	for _, what := range []string{"headers", "nothing"} {
		for i, conn := range slow[what] {
			_ = conn.SetReadDeadline(time.Now().Add(time.Minute))
			if _, err := io.ReadAll(conn); err != nil {
				t.Fatalf("connection %d with incomplete headers (%s): %v", i, what, err)
			}
		}
	}
	t.Logf("connections with incomplete headers were closed within %v", time.Since(began).Round(100*time.Millisecond))
	if age := time.Since(began); age < 90*time.Second {
		if got := respond(idle, health); got != len(idle) {
			t.Errorf("of %d connections that were idle for %v, %d respond", len(idle), age, got)
		}
	} else {
		t.Logf("idle connections may be closed after two minutes; this took %v", age)
	}
	load.expectNoFailure(fmt.Sprintf("%d idle connections, and 1,220 slow clients", len(idle)))
	if got := g.child(); got != child {
		t.Error("the proxy was restarted")
	}
	for _, conn := range append(append(idle, slow["bodies"]...), slow["responses"]...) {
		conn.Close()
	}
	poll(t, "the requests of the slow clients have ended", func() error {
		if got := g.metric("ati_guard_requests_in_flight"); got != 0 {
			return fmt.Errorf("%v are in flight", got)
		}
		return nil
	})
}

// idleConnections returns 10,000, or how many the limit of open files allows.
func idleConnections(t testing.TB) int {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	const n, others = 10_000, 4000 // of this process, which runs other tests
	if limit.Max < n+others {
		t.Logf("only %d idle connections: the limit of open files is %d", max(0, int(limit.Max)-others), limit.Max)
		return max(100, int(limit.Max)-others)
	}
	return n
}

// open opens connections to the guard, and sends the same on each. They come from another
// address, so that they do not use up the ports of other clients.
func (g *guard) open(n int, request string) (conns []net.Conn) {
	g.t.Helper()
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}
	for range n {
		conn, err := dialer.Dial("tcp", g.config["listen"].(string))
		if err != nil {
			g.t.Fatalf("after %d connections: %v", len(conns), err)
		}
		g.t.Cleanup(func() { conn.Close() })
		if _, err := io.WriteString(conn, request); err != nil {
			g.t.Fatal(err)
		}
		conns = append(conns, conn)
	}
	return conns
}

// respond sends a request on each connection, unless it is empty, and returns how many
// responses are right.
func respond(conns []net.Conn, request string) int {
	var right atomic.Int64
	var running sync.WaitGroup
	next := make(chan net.Conn)
	for range 16 {
		running.Go(func() {
			for conn := range next {
				_ = conn.SetDeadline(time.Now().Add(time.Minute))
				if _, err := io.WriteString(conn, request); err != nil {
					continue
				}
				resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
				if err != nil {
					continue
				}
				if _, err := io.Copy(io.Discard, resp.Body); err == nil && resp.StatusCode == http.StatusOK {
					right.Add(1)
				}
			}
		})
	}
	for _, conn := range conns {
		next <- conn
	}
	close(next)
	running.Wait()
	return int(right.Load())
}

// expectNotInMemory fails the test if a process has one of these secrets in its memory. It
// has the first one, which proves that the memory can be read.
func expectNotInMemory(t testing.TB, pid int, has string, not ...string) {
	t.Helper()
	found := map[string]bool{}
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		t.Logf("not run: cannot read the proxy's memory: %v", err)
		return
	}
	defer mem.Close()
	size := 0
	for line := range strings.Lines(string(readFile(t, fmt.Sprintf("/proc/%d/maps", pid)))) {
		var from, to int64
		var mode string
		if _, err := fmt.Sscanf(line, "%x-%x %s", &from, &to, &mode); err != nil || mode[0] != 'r' {
			continue
		}
		region := make([]byte, to-from)
		n, _ := mem.ReadAt(region, from) // some, such as vvar, cannot be read
		size += n
		for _, secret := range append(not, has) {
			raw, err := hex.DecodeString(secret)
			if bytes.Contains(region[:n], []byte(secret)) || err == nil && bytes.Contains(region[:n], raw) {
				found[secret] = true
			}
		}
	}
	t.Logf("the proxy has %d MB of memory", size>>20)
	if !found[has] {
		t.Error("the proxy's memory does not have its own secret: the test proves nothing")
	}
	for i, secret := range not {
		if found[secret] {
			t.Errorf("the proxy's memory has secret %d of the guard", i)
		}
	}
}
