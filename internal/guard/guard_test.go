//go:build unix

package guard_test

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"encoding/json"
	"flag"
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
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"vault-plugin-secrets-ati/ati"
	"vault-plugin-secrets-ati/internal/guard"
)

const testSecret = "efca767f4799094360a8673bdab2a37e6c6f89662ae447b51e47d2593facc112"

type object = map[string]any

func response(changes object) object {
	r := object{
		"epoch": "e", "generation": 5, "audiences": []string{"ati-proxy"}, "issuer": "ati-orchestrator", "revoked": []object{},
		"keys": []object{{"version": 1, "state": "current", "algorithm": "HS256", "generated": true, "secret": testSecret}},
	}
	for name, value := range changes {
		r[name] = value
	}
	return r
}

func mint(t testing.TB, req ati.IssueRequest) string {
	t.Helper()
	key, err := ati.ParseSecret(testSecret)
	if err != nil {
		t.Fatal(err)
	}
	token, err := ati.IssueToken(key, req)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// upstream records what reaches the proxy.
type upstream struct {
	mu    sync.Mutex
	seen  []http.Header
	close func()
	hold  chan struct{} // if set, requests wait until it is closed

	access bytes.Buffer // the guard's access log
}

func (u *upstream) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if u.hold != nil {
		<-u.hold
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.seen = append(u.seen, r.Header.Clone())
}

func (u *upstream) take() []http.Header {
	u.mu.Lock()
	defer u.mu.Unlock()
	seen := u.seen
	u.seen = nil
	return seen
}

// start returns the address of a guard, with an upstream behind it.
func start(t testing.TB, clock func() time.Time) (g *guard.Guard, address string, behind *upstream) {
	t.Helper()
	behind = new(upstream)
	proxy := httptest.NewServer(behind)
	behind.close = proxy.Close // waits for requests
	t.Cleanup(proxy.Close)
	g, err := guard.NewForTest(response(nil), strings.TrimPrefix(proxy.URL, "http://"), clock, &behind.access)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := g.Server()
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(func() { _ = server.Close() })
	return g, listener.Addr().String(), behind
}

func call(t testing.TB, address, token string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+address+"/call", strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	return statusAndBody(t, resp)
}

func statusAndBody(t testing.TB, resp *http.Response) (int, string) {
	t.Helper()
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

// TestGuard_Verdicts checks who passes, and what who does not is told.
func TestGuard_Verdicts(t *testing.T) {
	t.Parallel()
	now := time.Unix(1_800_000_000, 0)
	g, address, behind := start(t, func() time.Time { return now })
	at := func(req ati.IssueRequest) string {
		req.IssuedAt, req.Scope = now, "tool:web_search"
		return mint(t, req)
	}
	agent, other, batch := at(ati.IssueRequest{Subject: "a", ID: "j1"}), at(ati.IssueRequest{Subject: "b", ID: "j2"}), at(ati.IssueRequest{Subject: "c", ID: "r.7"})
	expect := func(what, token string, want int, body string) {
		t.Helper()
		behind.take()
		got, text := call(t, address, token)
		if got != want || text != body || (len(behind.take()) == 1) != (want == http.StatusOK) {
			t.Errorf("%s: %d %q, want %d %q", what, got, text, want, body)
		}
	}
	expect("no token", "", 401, "")
	expect("not a token", "x", 401, "")
	expect("a token", agent, 200, "")
	expect("a token, again", agent, 200, "")
	expect("another audience", at(ati.IssueRequest{Subject: "a", ID: "ja", Audience: "mcp"}), 401, "the token is for another audience")
	expect("another issuer", at(ati.IssueRequest{Subject: "a", ID: "ji", Issuer: "x"}), 401, "the token is of another issuer")
	expect("expired", at(ati.IssueRequest{Subject: "a", ID: "je", TTL: -61 * time.Second}), 401, "the token has expired")
	unknown := strings.TrimSuffix(agent, agent[len(agent)-4:]) + "AAAA"
	expect("another key", unknown, 401, "")
	g.FlushAccessLog()
	type line struct {
		Status      int
		JTI, Reason string
		KeyVersion  int `json:"key_version"`
	}
	var logged []line
	for dec := json.NewDecoder(&behind.access); dec.More(); {
		var l line
		if err := dec.Decode(&l); err != nil {
			t.Fatal(err)
		}
		logged = append(logged, l)
	}
	if diff := cmp.Diff([]line{
		{401, "", "no token", 0},
		{401, "", "the token is malformed", 0},
		{200, "j1", "", 1},
		{200, "j1", "", 1},
		{401, "ja", "the token is for another audience", 1},
		{401, "ji", "the token is of another issuer", 1},
		{401, "je", "the token has expired", 1},
		{401, "", "the token was signed with an unknown key", 0},
	}, logged); diff != "" {
		t.Errorf("access log (-want +got):\n%s", diff)
	}

	apply := func(changes object) {
		t.Helper()
		if err := g.Apply(response(changes)); err != nil {
			t.Fatal(err)
		}
	}
	apply(object{"generation": 6, "revoked": []object{
		{"jti": "j1", "expires_at": now.Unix() + 100, "key_version": 1}, {"jti": "r", "expires_at": now.Unix() + 100, "key_version": 1},
		{"sub": "d", "revoked_at": now.Unix(), "expires_at": now.Unix() + 100, "key_version": 1},
	}})
	expect("a revoked token", agent, 401, "the token was revoked")
	expect("a token of a revoked batch", batch, 401, "the token was revoked")
	expect("another token", other, 200, "")
	expect("a revoked agent", at(ati.IssueRequest{Subject: "d"}), 401, "the token was revoked")
	now = now.Add(time.Second)
	expect("a later token of the agent", at(ati.IssueRequest{Subject: "d"}), 200, "")
	apply(object{"generation": 7})
	expect("a revoked token, whatever a later bundle says", agent, 401, "the token was revoked")

	apply(object{"generation": 8, "keys": []object{{"version": 1, "state": "previous", "algorithm": "HS256", "generated": true, "tokens_expire_by": now.Add(time.Minute).UTC().Format(time.RFC3339)}}})
	expect("the previous version, whose key the response omits", other, 200, "")
	now = now.Add(time.Minute)
	expect("the previous version at its end", other, 503, `{"error":"ati-guard: no live key","result":null}`+"\n")
	apply(object{"generation": 9, "keys": []object{{"version": 2, "state": "current", "algorithm": "HS256", "secret": testSecret + "\n"}, {"version": 3, "state": "pending", "algorithm": "HS256", "secret": testSecret}}})
	expect("a malformed key closes that key only", at(ati.IssueRequest{Subject: "e"}), 200, "")
	now = now.Add(time.Hour + time.Second)
	expect("a bundle that is too old", at(ati.IssueRequest{Subject: "e"}), 503, `{"error":"ati-guard: Vault was not read successfully for too long","result":null}`+"\n")
}

// FuzzRequest checks that no bytes make a request reach the proxy without a valid token,
// and that the proxy never gets that token, but one of its own. In the text, TOKEN stands
// for a valid token.
func FuzzRequest(f *testing.F) {
	const head = "POST /call HTTP/1.1\r\nHost: x\r\n"
	for _, request := range []string{
		head + "Authorization: Bearer TOKEN\r\nContent-Length: 2\r\n\r\n{}", head + "\r\n", head + "Authorization: Bearer TOKEN\r\nAuthorization: Bearer x\r\n\r\n",
		head + "authorization: bearer TOKEN\r\n\r\n", "GET /health HTTP/1.1\r\nHost: x\r\n\r\n", "GET //health HTTP/1.1\r\nHost: x\r\n\r\n", "GET /health/../tools HTTP/1.1\r\nHost: x\r\n\r\n",
		"GET http://x/health HTTP/1.1\r\nHost: x\r\n\r\n", "GET /%68ealth HTTP/1.1\r\nHost: x\r\n\r\n", head + "Connection: Authorization\r\nAuthorization: Bearer TOKEN\r\n\r\n",
		head + "Authorization: Bearer TOKEN\r\nTransfer-Encoding: chunked\r\nContent-Length: 9\r\n\r\n0\r\n\r\nGET /tools HTTP/1.1\r\n\r\n", "CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n",
		head + "Authorization: Bearer TOKEN\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n", head + "Authorization : Bearer TOKEN\r\n\r\n", head + "Authorization: Bearer TOKEN, x\r\n\r\n",
	} {
		f.Add(request)
	}
	token := mint(f, ati.IssueRequest{Subject: "a", Scope: "*"})
	f.Fuzz(func(t *testing.T, text string) {
		_, address, behind := start(t, time.Now)
		conn, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(time.Second))
		if _, err := io.WriteString(conn, strings.ReplaceAll(text, "TOKEN", token)); err != nil {
			return
		}
		_ = conn.(*net.TCPConn).CloseWrite()
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err == nil {
			resp.Body.Close()
		}
		conn.Close()
		behind.close()
		for _, header := range behind.take() {
			authorization := header["Authorization"]
			if !strings.Contains(text, "TOKEN") || len(authorization) != 1 || authorization[0] == "Bearer "+token || strings.Count(authorization[0], ".") != 2 {
				t.Errorf("%q reached the proxy with %q", text, authorization)
			}
		}
	})
}

// FuzzResponse checks that no response of Vault makes the guard accept a token that was
// signed with none of the keys in it, or panic.
func FuzzResponse(f *testing.F) {
	for _, changes := range []object{nil, {"keys": []object{}}, {"keys": nil}, {"audiences": []string{""}}, {"generation": -1}, {"keys": "x"}, {"revoked": []object{{"jti": "a", "sub": "b"}}},
		{"keys": []object{{"version": 1, "algorithm": "ES256", "secret": testSecret}, {"version": 2, "state": "current", "algorithm": "HS256", "secret": ""}}}} {
		b, err := json.Marshal(response(changes))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	token := mint(f, ati.IssueRequest{Subject: "a", Scope: "*"})
	f.Fuzz(func(t *testing.T, body []byte) {
		var data object
		if json.Unmarshal(body, &data) != nil {
			return
		}
		g, err := guard.NewForTest(data, "127.0.0.1:1", time.Now, nil)
		if err != nil {
			return
		}
		w := httptest.NewRecorder()
		r := httptest.NewRequest(http.MethodPost, "/call", nil)
		r.Header.Set("Authorization", "Bearer "+token)
		g.ServeHTTP(w, r)
		if raw, err := hex.DecodeString(testSecret); err != nil || !strings.Contains(strings.ToLower(string(body)), hex.EncodeToString(raw)) && w.Code == http.StatusBadGateway {
			t.Errorf("a token passes with %s", body)
		}
	})
}

func TestParseConfig(t *testing.T) {
	t.Parallel()
	file := func(text string) string {
		path := filepath.Join(t.TempDir(), "guard.json")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	parse := func(args ...string) (*guard.Config, error) {
		flags := flag.NewFlagSet("ati-guard", flag.ContinueOnError)
		flags.SetOutput(io.Discard)
		return guard.ParseConfig(flags, args)
	}
	got, err := parse("-config", file(`{"listen":"127.0.0.1:1","poll":2,"ati_args":["-v"],"env":{"A":"b"},"vault":{"mount":"m","auth":{"kubernetes":{"role":"r"}}}}`),
		"-poll", "3s", "-vault.namespace", "ns", "-env", `{"C":"d"}`, "-ati_args", "-x -y")
	if err != nil {
		t.Fatal(err)
	}
	want := &guard.Config{
		Listen: "127.0.0.1:1", Admin: "127.0.0.1:8091", ATI: "ati", ATIDir: "/var/lib/ati", ATIArgs: []string{"-x", "-y"}, Env: map[string]string{"A": "b", "C": "d"},
		Vault: guard.VaultConfig{Mount: "m", Namespace: "ns", Auth: guard.AuthConfig{AppRole: guard.AppRoleConfig{Mount: "approle"}, Kubernetes: guard.KubernetesConfig{Role: "r", Mount: "kubernetes"}}},
		Poll:  guard.Duration(3 * time.Second), MaxStale: guard.Duration(time.Hour), Drain: guard.Duration(2 * time.Minute), Hold: guard.Duration(5 * time.Second), Forward: "local",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("configuration (-want +got):\n%s", diff)
	}
	login := []string{"-vault.auth.token_file", "/t"}
	for name, c := range map[string]struct {
		args []string
		want string
	}{
		"no login":         {nil, "vault.auth has 0 ways to log in: set one of approle, kubernetes, and token_file"},
		"two logins":       {append(login, "-vault.auth.kubernetes.role", "r"), "vault.auth has 2 ways to log in: set one of approle, kubernetes, and token_file"},
		"half a login":     {[]string{"-vault.auth.approle.role_id_file", "/r"}, "vault.auth.approle needs both role_id_file and secret_id_file"},
		"a duration":       {append(login, "-poll", "soon"), `-poll: "soon" is not a duration, such as "5s"`},
		"a short poll":     {append(login, "-poll", "500ms"), "poll 500ms: must be at least 1s"},
		"a public admin":   {append(login, "-admin", "0.0.0.0:1"), `admin "0.0.0.0:1": must be a loopback address with a port, such as 127.0.0.1:8091`},
		"a key of its own": {append(login, "-env", `{"ATI_JWT_SECRET":"x"}`), "env: ATI_JWT_SECRET is set by the guard"},
		"half of TLS":      {append(login, "-tls_cert", "/c"), "tls_cert and tls_key belong together"},
		"an argument":      {append(login, "x"), `unexpected argument "x"`},
		"forward":          {append(login, "-forward", "both"), `forward "both": must be local or original`},
	} {
		if _, err := parse(c.args...); err == nil || err.Error() != c.want {
			t.Errorf("%s: %v, want %s", name, err, c.want)
		}
	}
	path := file(`{"listen":"x","pol":"2s"}`)
	if _, err := parse("-config", path); err == nil || err.Error() != fmt.Sprintf("%s: json: unknown field \"pol\"", path) {
		t.Errorf("an unknown key: %v", err)
	}
}

// send sends the beginning of a request on a connection of its own.
func send(t *testing.T, address, text string) *net.TCPConn {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, text); err != nil {
		t.Fatal(err)
	}
	return conn.(*net.TCPConn)
}

// waitForFlight waits for a request that has passed.
func waitForFlight(t *testing.T, g *guard.Guard) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); g.InFlight() == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the request does not reach the proxy")
		}
	}
}

// readResponse returns the status and body of the response on a connection.
func readResponse(t *testing.T, conn net.Conn) (int, string) {
	t.Helper()
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	return statusAndBody(t, resp)
}

// revoke revokes the tokens with these IDs.
func revoke(t *testing.T, g *guard.Guard, ids ...string) {
	t.Helper()
	var revoked []object
	for _, id := range ids {
		revoked = append(revoked, object{"jti": id, "expires_at": time.Now().Unix() + 100, "key_version": 1})
	}
	if err := g.Apply(response(object{"generation": 6, "revoked": revoked})); err != nil {
		t.Fatal(err)
	}
}

// TestGuard_RevokedWithoutBody checks that a revocation ends a call whose body the client
// does not send.
func TestGuard_RevokedWithoutBody(t *testing.T) {
	t.Parallel()
	for name, size := range map[string]string{"small body": "Content-Length: 9", "large body": "Content-Length: 999999", "chunked body": "Transfer-Encoding: chunked"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g, address, behind := start(t, time.Now)
			behind.hold = make(chan struct{})
			t.Cleanup(func() { close(behind.hold) })
			conn := send(t, address, "POST /call HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer "+mint(t, ati.IssueRequest{Subject: "a", ID: "j1"})+"\r\n"+size+"\r\n\r\n")
			waitForFlight(t, g)
			revoke(t, g, "j1")
			if status, body := readResponse(t, conn); status != http.StatusUnauthorized || body != "the token was revoked" {
				t.Errorf("%d %q", status, body)
			}
		})
	}
}

// TestGuard_StaleInFlight checks that a call in flight ends when Vault was not read for too
// long.
func TestGuard_StaleInFlight(t *testing.T) {
	t.Parallel()
	var passed atomic.Int64
	g, address, behind := start(t, func() time.Time { return time.Now().Add(time.Duration(passed.Load())) })
	behind.hold = make(chan struct{})
	t.Cleanup(func() { close(behind.hold) })
	conn := send(t, address, "GET /tools HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer "+mint(t, ati.IssueRequest{Subject: "a", TTL: 3 * time.Hour})+"\r\n\r\n")
	waitForFlight(t, g)
	g.PollOnce()
	if g.InFlight() != 1 {
		t.Error("a call in flight has ended, although Vault was read a moment ago")
	}
	passed.Store(int64(time.Hour))
	g.PollOnce()
	const want = `{"error":"ati-guard: Vault was not read successfully for too long","result":null}` + "\n"
	if status, body := readResponse(t, conn); status != http.StatusServiceUnavailable || body != want {
		t.Errorf("%d %q", status, body)
	}
	g.FlushAccessLog()
	if got := behind.access.String(); !strings.Contains(got, `"reason":"Vault was not read successfully for too long"`) {
		t.Errorf("access log: %s", got)
	}
}

// TestGuard_RevokedUnderLoad checks that revocations end no call of another token, and no
// connection on which a client sends a call.
func TestGuard_RevokedUnderLoad(t *testing.T) {
	t.Parallel()
	g, address, _ := start(t, time.Now)
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64}}
	t.Cleanup(client.CloseIdleConnections)
	valid := mint(t, ati.IssueRequest{Subject: "a"})
	var running sync.WaitGroup
	for i := range 8 {
		running.Go(func() {
			for j := range 50 {
				id := fmt.Sprintf("%d-%d", i, j)
				doomed := mint(t, ati.IssueRequest{Subject: "a", ID: id})
				running.Go(func() { revoke(t, g, id) })
				for _, token := range []string{doomed, valid} {
					req, err := http.NewRequest(http.MethodPost, "http://"+address+"/call", strings.NewReader(strings.Repeat("x", 1+j*200)))
					if err != nil {
						t.Error(err)
						return
					}
					req.Header.Set("Authorization", "Bearer "+token)
					resp, err := client.Do(req)
					if err != nil {
						t.Error(err)
						continue
					}
					if _, err := io.Copy(io.Discard, resp.Body); err != nil {
						t.Error(err)
					}
					resp.Body.Close()
					if resp.StatusCode != http.StatusOK && (resp.StatusCode != http.StatusUnauthorized || token == valid) {
						t.Errorf("a call returns %s", resp.Status)
					}
				}
			}
		})
	}
	running.Wait()
}

// TestGuard_UnreadBody checks that a client cannot keep a connection by not sending the body
// of a request that is not forwarded.
func TestGuard_UnreadBody(t *testing.T) {
	t.Parallel()
	for request, want := range map[string]int{"POST /call": http.StatusUnauthorized, "GET /health": http.StatusOK, "GET /.well-known/jwks.json": http.StatusOK} {
		t.Run(request, func(t *testing.T) {
			t.Parallel()
			_, address, _ := start(t, time.Now)
			conn := send(t, address, request+" HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n")
			if status, _ := readResponse(t, conn); status != want {
				t.Errorf("%d, want %d", status, want)
			}
			if _, err := io.ReadAll(conn); err != nil {
				t.Errorf("the guard has not closed the connection: %v", err)
			}
		})
	}
}

// TestGuard_HalfClosed checks that a client that ends its call before the proxy has
// responded gets no response.
func TestGuard_HalfClosed(t *testing.T) {
	t.Parallel()
	_, address, behind := start(t, time.Now)
	behind.hold = make(chan struct{})
	t.Cleanup(func() { close(behind.hold) })
	conn := send(t, address, "GET /tools HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer "+mint(t, ati.IssueRequest{Subject: "a"})+"\r\n\r\n")
	if err := conn.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(conn); len(got) > 0 || err != nil {
		t.Errorf("the client got %q (%v)", got, err)
	}
}

// failingOnce is a file on a disk that is full once.
type failingOnce struct {
	failed bool
	bytes.Buffer
}

func (w *failingOnce) Write(b []byte) (int, error) {
	if !w.failed {
		w.failed = true
		return 0, io.ErrShortWrite
	}
	return w.Buffer.Write(b)
}

// TestGuard_AccessLogGoesOn checks that the access log goes on after a write has failed, and
// that it never has a token.
func TestGuard_AccessLogGoesOn(t *testing.T) {
	t.Parallel()
	file := new(failingOnce)
	g, err := guard.NewForTest(response(nil), "127.0.0.1:1", time.Now, file)
	if err != nil {
		t.Fatal(err)
	}
	token := mint(t, ati.IssueRequest{Subject: "a"})
	for _, path := range []string{"/lost", "/tools/" + token, "/" + strings.Repeat("x", 300)} {
		g.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, path, nil))
		g.FlushAccessLog()
	}
	var paths []string
	for dec := json.NewDecoder(&file.Buffer); dec.More(); {
		var line struct{ Path string }
		if err := dec.Decode(&line); err != nil {
			t.Fatal(err)
		}
		paths = append(paths, line.Path)
	}
	if diff := cmp.Diff([]string{"/tools/…", "/" + strings.Repeat("x", 199) + "…"}, paths); diff != "" {
		t.Errorf("paths (-want +got):\n%s", diff)
	}
}

// check runs ati-guard check with a Vault that returns a response.
func check(t *testing.T, data object, args ...string) error {
	t.Helper()
	vault := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(object{"data": data})
	}))
	t.Cleanup(vault.Close)
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	flags := flag.NewFlagSet("ati-guard", flag.ContinueOnError)
	cfg, err := guard.ParseConfig(flags, append(args, "-vault.address", vault.URL, "-vault.auth.token_file", token))
	if err != nil {
		t.Fatal(err)
	}
	return guard.Check(t.Context(), cfg, io.Discard)
}

func TestCheck_Errors(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "cert.pem")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		keys []object
		args []string
		want string
	}{
		"a key without material": {[]object{{"version": 1, "state": "current", "algorithm": "HS256"}}, nil, "the response lists a key that this guard does not hold"},
		"an empty certificate":   {nil, []string{"-tls_cert", file, "-tls_key", file}, "tls_cert: tls: failed to find any PEM data in certificate input"},
	} {
		if err := check(t, response(object{"keys": c.keys}), c.args...); err == nil || err.Error() != c.want {
			t.Errorf("%s: %v, want %s", name, err, c.want)
		}
	}
}
