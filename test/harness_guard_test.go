//go:build interop

package test

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"maps"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

var buildGuardOnce sync.Once

// buildGuard builds ati-guard, once, and returns its path.
func buildGuard(t testing.TB) string {
	t.Helper()
	path := filepath.Join(pluginDirs, "ati-guard")
	buildGuardOnce.Do(func() {
		cmd := exec.Command("go", "build", "-o", path, "../cmd/ati-guard")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("build ati-guard: %v\n%s", err, out)
		}
	})
	if t.Failed() {
		t.FailNow()
	}
	return path
}

// guardPoll is the time between two reads of Vault in these tests.
const guardPoll = time.Second

// guard is an ati-guard, whose address is that of the embedded proxy, and the proxy that it
// runs. Its output and its access log are in the directory of the server, which is searched
// for tokens and keys.
type guard struct {
	*proxy
	server *server
	admin  string // address
	config data
	file   string // with the configuration
	dir    string // of the guard, with guard.log and access.jsonl
	env    []string
	client *http.Client
	slow   *slowUpstream // of the tool slow
	cmd    *exec.Cmd
	exited chan struct{}

	socket     *os.File // passed as systemd does
	binary     string   // if not buildGuard's
	credential *syscall.Credential
}

// slowUpstream responds when it is released.
type slowUpstream struct {
	calls, ended atomic.Int64 // ended by the client
	release      chan struct{}
}

func startSlowUpstream(t testing.TB) (u *slowUpstream, url string) {
	u = &slowUpstream{release: make(chan struct{})}
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		u.calls.Add(1)
		select {
		case <-u.release:
			w.Header().Set("Content-Type", "application/json")
			_, _ = io.WriteString(w, `{"ok":true}`)
		case <-r.Context().Done():
			u.ended.Add(1)
		}
	}))
	t.Cleanup(func() { upstream.CloseClientConnections(); upstream.Close() })
	return u, upstream.URL
}

// enableGuards enables AppRole logins for guards and writes their policy.
func (s *server) enableGuards() {
	s.t.Helper()
	s.vault(s.root, "auth", "enable", "approle")
	s.allowGuards()
}

func (s *server) allowGuards() {
	s.t.Helper()
	policy := readFile(s.t, filepath.Join("..", "examples", "policies", "proxy-guard.hcl"))
	if err := s.client(s.root).Sys().PutPolicy("proxy-guard", string(policy)); err != nil {
		s.t.Fatal(err)
	}
}

// newGuard returns a guard that is not started. The changes are to its configuration.
func (s *server) newGuard(t testing.TB, changes data) *guard {
	t.Helper()
	g := &guard{proxy: newProxy(t), server: s, admin: "127.0.0.1:" + freePort(t), client: &http.Client{Timeout: 5 * time.Minute, Transport: &http.Transport{MaxIdleConnsPerHost: 64}}}
	var url string
	g.slow, url = startSlowUpstream(t)
	g.addTool("slow", http.MethodGet, url, `auth_type = "none"`)
	listen := strings.TrimPrefix(g.addr, "http://")
	name := "guard-" + strings.TrimPrefix(listen, "127.0.0.1:")
	login := s.appRole(name, "proxy-guard")
	g.dir = filepath.Join(s.dir, name)
	if err := os.Mkdir(g.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	g.config = data{
		"listen": listen, "admin": g.admin, "ati": requireEnv(t, "ATI_BIN"), "ati_dir": g.proxy.dir,
		"vault": data{"address": s.addr, "mount": "ati", "auth": data{"approle": data{
			"role_id_file": filepath.Join(login, "role_id"), "secret_id_file": filepath.Join(login, "secret_id")}}},
		"poll": guardPoll.String(), "access_log": filepath.Join(g.dir, "access.jsonl"),
	}
	maps.Copy(g.config, changes)
	g.writeConfig()
	return g
}

// startGuarded starts a server with the engine, the policy and the login of guards, and a
// role with this TTL.
func startGuarded(t testing.TB, raft bool, ttl time.Duration) *server {
	t.Helper()
	storage := `storage "inmem" {}`
	if raft {
		storage = raftStorage(t, 1, "")
	}
	s := newServer(t, "info", storage)
	s.mountEngine()
	s.enableGuards()
	s.write(s.root, "ati/config", data{"guarded": true})
	s.write(s.root, "ati/roles/r", data{"tools": "*", "ttl": ttl.String(), "allowed_agent_ids": "*"})
	return s
}

func (g *guard) writeConfig() {
	g.t.Helper()
	text, err := json.Marshal(g.config)
	if err != nil {
		g.t.Fatal(err)
	}
	g.file = writeFile(g.t, string(text))
}

// startGuard starts a guard and waits until it is ready.
func (s *server) startGuard(t testing.TB, changes data) *guard {
	t.Helper()
	g := s.newGuard(t, changes)
	g.start()
	g.waitUntilReady()
	return g
}

func (g *guard) manifest(name, text string) {
	g.t.Helper()
	if err := os.WriteFile(filepath.Join(g.proxy.dir, "manifests", name+".toml"), []byte(text), 0o644); err != nil {
		g.t.Fatal(err)
	}
}

// addTool writes a manifest of a provider with one tool.
func (g *guard) addTool(name, method, url, auth string) {
	g.t.Helper()
	g.manifest(name, fmt.Sprintf("[provider]\nname = %[1]q\ndescription = \"x\"\nbase_url = %[3]q\n%[4]s\n\n[[tools]]\nname = %[1]q\ndescription = \"x\"\nendpoint = \"/x\"\nmethod = %[2]q\nscope = \"tool:%[1]s\"\n", name, method, url, auth))
}

func (g *guard) start() {
	g.t.Helper()
	log, err := os.OpenFile(filepath.Join(g.dir, "guard.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		g.t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(cmp.Or(g.binary, buildGuard(g.t)), "-config", g.file)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: g.credential}
	if g.socket != nil {
		cmd.Path, cmd.Args = "/bin/sh", append([]string{"sh", "-c", `LISTEN_FDS=1 LISTEN_PID=$$ exec "$@"`, "sh"}, cmd.Args...)
		cmd.ExtraFiles = []*os.File{g.socket}
	}
	cmd.Env = append([]string{"HOME=" + g.proxy.dir, "PATH=" + os.Getenv("PATH"), "ATI_AUDIT_FILE=" + filepath.Join(g.proxy.dir, "audit.jsonl")}, g.env...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		g.t.Fatal(err)
	}
	exited := make(chan struct{})
	g.cmd, g.exited = cmd, exited
	go func() { _ = cmd.Wait(); close(exited) }()
	g.t.Cleanup(func() {
		if g.t.Failed() {
			log := g.log()
			g.t.Logf("the end of the guard's output:\n%s", log[max(0, len(log)-5000):])
		}
		_ = cmd.Process.Kill()
		<-exited
	})
}

// stop sends a signal, waits until the guard has ended, and returns its exit status.
func (g *guard) stop(signal syscall.Signal) int {
	g.t.Helper()
	_ = g.cmd.Process.Signal(signal)
	select {
	case <-g.exited:
	case <-time.After(20 * time.Second):
		g.t.Fatalf("the guard has not ended 20 seconds after %v", signal)
	}
	return g.cmd.ProcessState.ExitCode()
}

// log returns the guard's and the proxy's output, except for a line per call.
func (g *guard) log() string {
	b, err := os.ReadFile(filepath.Join(g.dir, "guard.log"))
	if err != nil {
		return err.Error()
	}
	var kept strings.Builder
	for line := range strings.Lines(string(b)) {
		if !strings.Contains(line, `"message":"tool call"`) {
			kept.WriteString(line)
		}
	}
	return kept.String()
}

func (g *guard) waitUntilReady() {
	g.t.Helper()
	poll(g.t, "the guard is ready", g.ready)
}

// ready returns an error unless the admin port reports that the guard is ready.
func (g *guard) ready() error {
	resp, err := http.Get("http://" + g.admin + "/ready")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if b, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%v: %s: %s", err, resp.Status, b)
	}
	return nil
}

// metric returns the value of a metric, such as ati_guard_vault_reads_total{result="ok"}. The
// guard may just have been started.
func (g *guard) metric(name string) (value float64) {
	g.t.Helper()
	poll(g.t, "the guard's metrics", func() error {
		resp, err := http.Get("http://" + g.admin + "/metrics")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		value = 0 // if it does not exist yet
		for in := bufio.NewScanner(resp.Body); in.Scan(); {
			if text, ok := strings.CutPrefix(in.Text(), name+" "); ok {
				value, err = strconv.ParseFloat(text, 64)
				return err
			}
		}
		return nil
	})
	return value
}

const successfulReads = `ati_guard_vault_reads_total{result="ok"}`

// reads returns the number of successful reads of Vault, whose results are in force.
func (g *guard) reads() float64 {
	g.t.Helper()
	return g.metric(successfulReads)
}

// waitForReads waits until Vault was read so often.
func (g *guard) waitForReads(n float64) {
	g.t.Helper()
	g.waitForMetric(successfulReads, n)
}

// waitForFailedReads waits until reads of Vault have failed so often.
func (g *guard) waitForFailedReads(n float64) {
	g.t.Helper()
	g.waitForMetric(`ati_guard_vault_reads_total{result="error"}`, n)
}

// waitForMetric waits until a metric has risen by n.
func (g *guard) waitForMetric(name string, n float64) {
	g.t.Helper()
	want := g.metric(name) + n
	pollFor(g.t, time.Minute, name, func() error {
		if got := g.metric(name); got < want {
			return fmt.Errorf("%v, want %v", got, want)
		}
		return nil
	})
}

// memory returns the guard's resident memory in bytes.
func (g *guard) memory() (n int64) {
	g.t.Helper()
	for line := range strings.Lines(string(readFile(g.t, fmt.Sprintf("/proc/%d/status", g.cmd.Process.Pid)))) {
		if _, err := fmt.Sscanf(line, "VmRSS: %d kB", &n); err == nil {
			return n << 10
		}
	}
	g.t.Fatal("the guard has no VmRSS")
	return 0
}

// waitForRestart waits until the guard has noticed once more than before that its proxy ended.
func (g *guard) waitForRestart(before float64) {
	g.t.Helper()
	poll(g.t, "the guard restarts the proxy", func() error {
		if got := g.metric("ati_guard_proxy_restarts_total"); got <= before {
			return fmt.Errorf("%v restarts", got)
		}
		return nil
	})
}

// children returns the IDs of the proxy's processes.
func (g *guard) children() []int { return processesWith(g.t, g.proxy.dir) }

// child returns the ID of the only process of the proxy.
func (g *guard) child() (pid int) {
	g.t.Helper()
	poll(g.t, "the guard has one proxy", func() error {
		pids := g.children()
		if len(pids) != 1 {
			return fmt.Errorf("processes: %v", pids)
		}
		pid = pids[0]
		return nil
	})
	return pid
}

// expectEnded reports a process that runs.
func expectEnded(pid int) error {
	// An ended process that no process has waited for has no command line.
	if args, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); err == nil && len(args) > 0 {
		return fmt.Errorf("process %d runs", pid)
	}
	return nil
}

// gatedATI returns an ati program that waits until a file exists, and the file, which does.
func gatedATI(t testing.TB) (program, gate string) {
	t.Helper()
	gate, program = writeFile(t, ""), filepath.Join(t.TempDir(), "ati")
	script := fmt.Sprintf("#!/bin/sh\nwhile [ ! -e %s ]; do sleep 0.05; done\nexec %s \"$@\"\n", shellQuote(gate), shellQuote(requireEnv(t, "ATI_BIN")))
	if err := os.WriteFile(program, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	return program, gate
}

func (g *guard) kill(pid int, signal syscall.Signal) {
	g.t.Helper()
	if err := syscall.Kill(pid, signal); err != nil {
		g.t.Fatal(err)
	}
}

// do sends a request and returns the status and body, or 0 if there is no response.
func (g *guard) do(token, method, path, body string) (int, string) {
	req, err := http.NewRequest(method, g.addr+path, strings.NewReader(body))
	if err != nil {
		return 0, err.Error()
	}
	req.Header.Set("Content-Type", "application/json")
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := g.client.Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err.Error()
	}
	return resp.StatusCode, string(b)
}

// call calls a tool.
func (g *guard) call(token, tool string) (int, string) {
	return g.do(token, http.MethodPost, "/call", fmt.Sprintf(`{"tool_name":%q,"args":{}}`, tool))
}

// expect calls a tool, and fails the test unless the status is as wanted.
func (g *guard) expect(what, token string, want int) {
	g.t.Helper()
	if got, body := g.call(token, "web_search"); got != want {
		g.t.Errorf("%s: %d %s, want %d", what, got, body, want)
	}
}

// until calls a tool until the status is as wanted, and returns how long that took.
func (g *guard) until(what, token string, want int) time.Duration {
	g.t.Helper()
	began := time.Now()
	for deadline := began.Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		got, body := g.call(token, "web_search")
		if got == want {
			return time.Since(began).Round(10 * time.Millisecond)
		}
		if time.Now().After(deadline) {
			g.t.Fatalf("%s: after a minute, a call returns %d %s, want %d", what, got, body, want)
		}
	}
}

// untilRejected calls a tool until tokens are rejected with this status, and returns how long
// that took. It fails the test if a call passes although Vault was read twice since.
func (g *guard) untilRejected(what string, status int, tokens ...string) time.Duration {
	g.t.Helper()
	began, reads := time.Now(), g.reads()
	for _, token := range tokens {
		for {
			late := g.reads() >= reads+2 || time.Since(began) > time.Minute
			got, body := g.call(token, "web_search")
			if got == status {
				break
			}
			if got != http.StatusOK || late {
				g.t.Fatalf("%s: after %v and %v reads of Vault, a call returns %d %s", what, time.Since(began), g.reads()-reads, got, body)
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	return time.Since(began).Round(10 * time.Millisecond)
}

// atiRun returns a command that calls a tool with the real client.
func (g *guard) atiRun(token, tool string) *exec.Cmd {
	g.t.Helper()
	cmd := exec.Command(requireEnv(g.t, "ATI_BIN"), "run", tool)
	cmd.Env = []string{"HOME=" + g.t.TempDir(), "PATH=" + os.Getenv("PATH"), "ATI_PROXY_URL=" + g.addr, "ATI_SESSION_TOKEN_FILE=" + writeFile(g.t, token)}
	return cmd
}

// raw sends a request as it is, and returns the statuses of all responses.
func (g *guard) raw(request string) (statuses []int) {
	g.t.Helper()
	conn, err := net.Dial("tcp", g.config["listen"].(string))
	if err != nil {
		g.t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
	go func() { _, _ = io.WriteString(conn, request) }() // the guard may respond first
	method, _, _ := strings.Cut(request, " ")
	for in := bufio.NewReader(conn); ; {
		resp, err := http.ReadResponse(in, &http.Request{Method: method})
		if err != nil {
			return statuses
		}
		statuses = append(statuses, resp.StatusCode)
		if _, err := io.Copy(io.Discard, resp.Body); err != nil {
			return statuses
		}
	}
}

// result is a response to a call, and when it came.
type result struct {
	status int
	body   string
	at     time.Time
}

// receive waits for what a goroutine sends.
func receive[T any](t testing.TB, what string, from <-chan T) (value T) {
	t.Helper()
	select {
	case value = <-from:
	case <-time.After(2 * time.Minute):
		t.Fatalf("not within two minutes: %s", what)
	}
	return value
}

// callSlow calls the tool slow, and returns when its upstream has the call.
func (g *guard) callSlow(token string) <-chan result {
	g.t.Helper()
	before := g.slow.calls.Load()
	done := make(chan result, 1)
	go func() {
		status, body := g.call(token, "slow")
		done <- result{status, body, time.Now()}
	}()
	poll(g.t, "the slow call has reached its upstream", func() error {
		select {
		case r := <-done:
			g.t.Fatalf("the slow call returns %d %s", r.status, r.body)
		default:
		}
		if g.slow.calls.Load() == before {
			return errors.New("it has not")
		}
		return nil
	})
	return done
}

// servedLines returns the lines of the access log with the status 200.
func (g *guard) servedLines() []data {
	g.t.Helper()
	return slices.DeleteFunc(g.accessLines(), func(line data) bool { return line["status"] != 200.0 })
}

// accessLines returns the lines of the access log.
func (g *guard) accessLines() (lines []data) {
	g.t.Helper()
	in := bufio.NewScanner(bytes.NewReader(readFile(g.t, filepath.Join(g.dir, "access.jsonl"))))
	in.Buffer(nil, 1<<20)
	for in.Scan() {
		var line data
		if err := json.Unmarshal(in.Bytes(), &line); err != nil {
			g.t.Fatalf("%v: %s", err, in.Bytes())
		}
		lines = append(lines, line)
	}
	return lines
}

// relay forwards to one of some servers, or responds as a test wants to requests for a path.
type relay struct {
	addr  string
	path  string
	fault atomic.Pointer[http.HandlerFunc]
	next  func() *server
}

func startRelay(t testing.TB, path string, next func() *server) *relay {
	t.Helper()
	r := &relay{path: path, next: next}
	listener := httptest.NewServer(r)
	t.Cleanup(func() { listener.CloseClientConnections(); listener.Close() })
	r.addr = listener.URL
	return r
}

func (r *relay) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	if fault := r.fault.Load(); fault != nil && req.URL.Path == r.path {
		(*fault)(w, req)
		return
	}
	to := r.next()
	forward := &httputil.ReverseProxy{
		Director: func(req *http.Request) {
			req.URL.Scheme, req.URL.Host = "http", strings.TrimPrefix(to.apiAddr, "http://")
		},
		Transport: &http.Transport{DialContext: to.dial, DisableKeepAlives: true, ResponseHeaderTimeout: 5 * time.Second},
		ErrorLog:  log.New(io.Discard, "", 0),
		ModifyResponse: func(resp *http.Response) error { // a standby may redirect to an address in a namespace
			if resp.StatusCode == http.StatusTemporaryRedirect {
				return errors.New("redirected")
			}
			return nil
		},
	}
	forward.ServeHTTP(w, req)
}

// dial connects to a server, which may be in a network namespace.
func (s *server) dial(ctx context.Context, network, address string) (net.Conn, error) {
	if s.netns != nil {
		network, address = "unix", s.netns.socket
	}
	return new(net.Dialer).DialContext(ctx, network, address)
}

// respond makes the relay respond to requests for its path.
func (r *relay) respond(status int, body string) {
	r.faultWith(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	})
}

func (r *relay) faultWith(fault http.HandlerFunc) { r.fault.Store(&fault) }

// behind makes a guard, which has not been started, read Vault through a relay.
func (g *guard) behind(r *relay) {
	g.t.Helper()
	g.config["vault"].(data)["address"] = r.addr
	g.writeConfig()
}

// writeCertificate writes a certificate for 127.0.0.1 and its key.
func writeCertificate(t testing.TB, dir string, serial int64) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(serial), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	cert, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	for path, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "PRIVATE KEY", Bytes: keyDER}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return cert, key
}
