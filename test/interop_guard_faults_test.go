//go:build interop

package test

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// Guarantee: whatever happens to the proxy, the guard, and their files, no call without a
// valid token passes, and calls with one are served again.
func TestInteropGuard_Faults(t *testing.T) {
	t.Parallel()
	s := startGuarded(t, false, time.Hour)
	token, revoked := s.mint("r", nil), s.mint("r", nil)
	s.write(s.root, "ati/revoke", data{"token": revoked})
	valid := func() string { return token }

	// The proxy hangs. The guard kills it after 30 seconds.
	hung := s.startGuard(t, nil)
	hung.watchRejected(revoked)
	hungChild := hung.child()
	hung.kill(hungChild, syscall.SIGSTOP)
	hungAt := time.Now()
	hungCall := make(chan result, 1)
	go func() {
		status, body := hung.call(token, "web_search")
		hungCall <- result{status, body, time.Now()}
	}()

	// No API keys: closed. New ones: a new proxy, without a rejected call.
	s.vault(s.root, "secrets", "enable", "-path=secret", "-version=2", "kv")
	keyed := s.newGuard(t, data{"api_keys": "secret/data/ati-keys"})
	var seen atomic.Pointer[string]
	seen.Store(new(string))
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		authorization := r.Header.Get("Authorization")
		seen.Store(&authorization)
		_, _ = io.WriteString(w, `{"ok":true}`)
	}))
	t.Cleanup(upstream.Close)
	keyed.addTool("keyed", http.MethodGet, upstream.URL, "auth_type = \"bearer\"\nauth_key_name = \"search\"")
	keySeen := func(want string) func() error {
		return func() error {
			status, body := keyed.call(token, "keyed")
			if got := *seen.Load(); status != http.StatusOK || got != "Bearer "+want {
				return fmt.Errorf("the call returns %d %s, and the upstream has %q", status, body, got)
			}
			return nil
		}
	}
	keyed.start()
	keyed.watchRejected(revoked)
	poll(t, "the guard has tried to read the API keys", func() error {
		if !strings.Contains(keyed.log(), "secret/data/ati-keys has no API keys") {
			return errors.New("it has not")
		}
		return nil
	})
	keyed.expect("without API keys", token, http.StatusServiceUnavailable)
	if pids := keyed.children(); len(pids) != 0 {
		t.Errorf("without API keys, the processes %v run", pids)
	}
	s.write(s.root, "secret/data/ati-keys", data{"data": data{"search": "first"}})
	keyed.waitUntilReady()
	if err := keySeen("first")(); err != nil {
		t.Error(err)
	}
	keyedLoad := keyed.startLoad(4, valid)
	keyedChild, keyedSlow := keyed.child(), keyed.callSlow(token)
	s.write(s.root, "secret/data/ati-keys", data{"data": data{"search": "second"}})
	keyChangedAt := time.Now()
	var switched sync.WaitGroup // the old proxy's call ends then: ATI waits a minute for the upstream
	switched.Go(func() {
		for keySeen("second")() != nil && time.Since(keyChangedAt) < time.Minute {
			time.Sleep(100 * time.Millisecond)
		}
		close(keyed.slow.release)
	})

	t.Run("proxy killed", func(t *testing.T) {
		ati, gate := gatedATI(t)
		g := s.startGuard(t, data{"ati": ati, "hold": "1m"})
		g.watchRejected(revoked)
		slow := g.callSlow(token)
		load := g.startLoad(4, valid)
		for kill := range 3 {
			pid := g.child()
			if err := os.Remove(gate); err != nil {
				t.Fatal(err)
			}
			g.kill(pid, syscall.SIGKILL)
			g.waitForRestart(float64(kill))
			noticed := time.Now()
			poll(t, "the calls wait", func() error {
				if got := g.metric("ati_guard_requests_in_flight"); got != 4 {
					return fmt.Errorf("%v are in flight", got)
				}
				return nil
			})
			if err := os.WriteFile(gate, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			g.expect("after the restart", token, http.StatusOK)
			load.waitForCalls(20)
			if failed := load.failedAfter(noticed); failed > 0 {
				t.Errorf("%d calls failed after the guard noticed that the proxy ended", failed)
			}
		}
		if r := receive(t, "the call in flight has ended", slow); r.status != http.StatusBadGateway || !strings.Contains(r.body, `"error":"ati-guard: `) {
			t.Errorf("a call in flight returns %d %s", r.status, r.body)
		}
		load.end()
		t.Logf("the proxy was killed 3 times: calls of 4 clients by status %v, the slowest took %v", load.statuses, load.slowest.Round(time.Millisecond))
		for status := range load.statuses {
			if status != http.StatusOK && status != http.StatusBadGateway {
				t.Errorf("calls by status: %v, such as %q", load.statuses, load.failures)
			}
		}
	})
	t.Run("broken manifest", func(t *testing.T) {
		g := s.startGuard(t, data{"hold": "1s"})
		g.watchRejected(revoked)
		g.manifest("broken", "[provider\n")
		g.expect("before the restart", token, http.StatusOK)
		g.kill(g.child(), syscall.SIGKILL)
		g.until("the proxy cannot start", token, http.StatusServiceUnavailable)
		g.expect("without a token", "", http.StatusUnauthorized)
		if err := g.ready(); err == nil {
			t.Error("the guard is ready")
		}
		if err := os.Remove(filepath.Join(g.proxy.dir, "manifests", "broken.toml")); err != nil {
			t.Fatal(err)
		}
		t.Logf("served again %v after the manifest was repaired", g.until("repaired", token, http.StatusOK))
	})
	t.Run("guard killed", func(t *testing.T) {
		g := s.startGuard(t, nil)
		g.watchRejected(revoked)
		for range 3 {
			pid := g.child()
			g.stop(syscall.SIGKILL)
			poll(t, "the proxy has ended", func() error { return expectEnded(pid) })
			g.start()
			took := g.until("after a restart", token, http.StatusOK)
			g.expect("a revoked token after a restart", revoked, http.StatusUnauthorized)
			t.Logf("the guard was killed; a call succeeds %v after its start", took)
		}
		// A second guard finds the ports taken.
		for _, changes := range []data{{"listen": g.config["listen"]}, {"admin": g.admin}} {
			second := s.newGuard(t, changes)
			second.start()
			select {
			case <-second.exited:
			case <-time.After(20 * time.Second):
				t.Fatal("a guard whose port is taken runs")
			}
			if log := second.log(); second.cmd.ProcessState.ExitCode() != 1 || !strings.Contains(log, "address already in use") || strings.Contains(log, "serves") {
				t.Errorf("%v: exit %d\n%s", changes, second.cmd.ProcessState.ExitCode(), log)
			}
		}
		g.expect("after the second guard", token, http.StatusOK)
	})
	t.Run("socket activation", func(t *testing.T) {
		g := s.newGuard(t, nil)
		listener, err := net.Listen("tcp", g.config["listen"].(string))
		if err != nil {
			t.Fatal(err)
		}
		defer listener.Close()
		if g.socket, err = listener.(*net.TCPListener).File(); err != nil {
			t.Fatal(err)
		}
		defer g.socket.Close()
		g.client.Transport = &http.Transport{DisableKeepAlives: true} // as ati run, which does not send on a connection that is about to be closed
		g.start()
		g.waitUntilReady()
		g.watchRejected(revoked)
		load := g.startLoad(8, valid)
		for range 5 {
			load.waitForCalls(200)
			if got := g.stop(syscall.SIGTERM); got != 0 {
				t.Errorf("the guard exits with %d", got)
			}
			g.start()
			g.waitUntilReady()
		}
		load.waitForCalls(200)
		load.expectNoFailure("5 restarts with a socket that stays")
	})
	t.Run("SIGHUP", func(t *testing.T) {
		dir := t.TempDir()
		cert, key := writeCertificate(t, dir, 1)
		g := s.newGuard(t, data{"tls_cert": cert, "tls_key": key})
		g.addr = "https" + strings.TrimPrefix(g.addr, "http")
		g.client.Transport = &http.Transport{MaxIdleConnsPerHost: 64, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
		g.start()
		g.waitUntilReady()
		serial := func() int64 {
			conn, err := tls.Dial("tcp", g.config["listen"].(string), &tls.Config{InsecureSkipVerify: true})
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			return conn.ConnectionState().PeerCertificates[0].SerialNumber.Int64()
		}
		expectSerial := func(want int64) {
			t.Helper()
			poll(t, "the certificate", func() error {
				if got := serial(); got != want {
					return fmt.Errorf("serial number %d, want %d", got, want)
				}
				return nil
			})
		}
		expectSerial(1)
		g.watchRejected(revoked)
		load := g.startLoad(4, valid)
		access, moved := filepath.Join(g.dir, "access.jsonl"), filepath.Join(g.dir, "access.jsonl.1")
		load.waitForCalls(100)
		poll(t, "the access log is written", func() error {
			if info, err := os.Stat(access); err != nil || info.Size() == 0 {
				return fmt.Errorf("%v, or empty", err)
			}
			return nil
		})
		if err := os.Rename(access, moved); err != nil {
			t.Fatal(err)
		}
		writeCertificate(t, dir, 2)
		g.kill(g.cmd.Process.Pid, syscall.SIGHUP)
		expectSerial(2)
		poll(t, "the access log was reopened", func() error { _, err := os.Stat(access); return err })
		if err := os.WriteFile(cert, []byte("junk"), 0o600); err != nil {
			t.Fatal(err)
		}
		g.kill(g.cmd.Process.Pid, syscall.SIGHUP)
		poll(t, "the guard has reloaded", func() error {
			if !strings.Contains(g.log(), "tls_cert: ") {
				return errors.New("it has not")
			}
			return nil
		})
		expectSerial(2)
		load.waitForCalls(100)
		load.expectNoFailure("SIGHUP")
		if got := g.stop(syscall.SIGTERM); got != 0 {
			t.Errorf("the guard exits with %d", got)
		}
		lines := g.servedLines()
		if err := os.Rename(moved, access); err != nil {
			t.Fatal(err)
		}
		before := g.servedLines()
		t.Logf("%d lines in the moved access log, %d in the new one", len(before), len(lines))
		if len(before) == 0 || len(before)+len(lines) != load.succeeded() {
			t.Errorf("the access logs have %d lines for %d calls", len(before)+len(lines), load.succeeded())
		}
	})
	t.Run("SIGTERM", func(t *testing.T) {
		g := s.startGuard(t, nil)
		g.watchRejected(revoked)
		pid, slow := g.child(), g.callSlow(token)
		g.kill(g.cmd.Process.Pid, syscall.SIGTERM)
		poll(t, "the guard accepts no connection", func() error {
			conn, err := net.Dial("tcp", g.config["listen"].(string))
			if err == nil {
				conn.Close()
				return errors.New("it does")
			}
			return nil
		})
		if err := g.ready(); err == nil || !strings.Contains(err.Error(), "stopping") {
			t.Errorf("/ready: %v", err)
		}
		time.Sleep(2 * guardPoll)
		close(g.slow.release)
		if r := receive(t, "the call in flight has ended", slow); r.status != http.StatusOK {
			t.Errorf("a call in flight returns %d %s", r.status, r.body)
		}
		if got := g.stop(syscall.SIGTERM); got != 0 || expectEnded(pid) != nil {
			t.Errorf("the guard exits with %d, and its proxy: %v", got, expectEnded(pid))
		}
		g = s.startGuard(t, data{"drain": "2s"})
		pid, slow = g.child(), g.callSlow(token)
		began := time.Now()
		if got := g.stop(syscall.SIGTERM); got != 0 || expectEnded(pid) != nil {
			t.Errorf("the guard exits with %d, and its proxy: %v", got, expectEnded(pid))
		}
		took := time.Since(began)
		r := receive(t, "the call in flight has ended", slow)
		t.Logf("after SIGTERM with drain=2s, the guard ended after %v, and a call in flight returned %d", took.Round(10*time.Millisecond), r.status)
		if took < 1900*time.Millisecond || r.status == http.StatusOK {
			t.Errorf("the guard ended after %v, and a call in flight returned %d", took, r.status)
		}
	})

	switched.Wait()
	if err := keySeen("second")(); err != nil {
		t.Fatal(err)
	}
	if r := receive(t, "the call of the old proxy has ended", keyedSlow); r.status != http.StatusOK {
		t.Errorf("a call of the old proxy returns %d %s", r.status, r.body)
	}
	if pid := keyed.child(); pid == keyedChild {
		t.Error("the old proxy runs")
	}
	// With a manifest that is broken meanwhile, the old proxy stays.
	keyed.manifest("broken", "[provider\n")
	s.write(s.root, "secret/data/ati-keys", data{"data": data{"search": "third"}})

	pollFor(t, 2*time.Minute, "the hung proxy was killed", func() error { return expectEnded(hungChild) })
	if r := receive(t, "the call of the hung proxy has ended", hungCall); r.status != http.StatusBadGateway {
		t.Errorf("a call of the hung proxy returns %d %s", r.status, r.body)
	} else {
		t.Logf("the hung proxy was killed after %v", r.at.Sub(hungAt).Round(time.Second))
	}
	hung.until("after the hung proxy was killed", token, http.StatusOK)

	pollFor(t, 2*time.Minute, "the guard has tried to start a proxy with the third API key", func() error {
		if !strings.Contains(keyed.log(), "old_one_serves=true") {
			return errors.New("it has not")
		}
		return nil
	})
	if err := keySeen("second")(); err != nil {
		t.Error(err)
	}
	if err := os.Remove(filepath.Join(keyed.proxy.dir, "manifests", "broken.toml")); err != nil {
		t.Fatal(err)
	}
	pollFor(t, 2*time.Minute, "the upstream has the third API key", keySeen("third"))
	keyedLoad.expectNoFailure("API keys changed twice")
	if strings.Contains(keyed.log(), "second") {
		t.Error("the guard's log has an API key")
	}
}
