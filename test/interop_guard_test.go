//go:build interop

package test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"vault-plugin-secrets-ati/ati"
)

// Guarantee: a revoked token is rejected at a guard within two polls, calls in flight are
// ended, and other tokens keep working.
func TestInteropGuard_Revocation(t *testing.T) {
	t.Parallel()
	s := startGuarded(t, false, time.Hour)
	s.write(s.root, "ati/roles/leased", data{"tools": "web_search,slow", "ttl": "1h", "allowed_agent_ids": "*", "generate_lease": true})
	s.write(s.root, "ati/roles/prefix", data{"tools": "web_search,slow", "ttl": "1h", "allowed_agent_ids": "*", "generate_lease": true})
	orchestrator := s.policy("orchestrator", `path "ati/creds/*" { capabilities = ["update"] } path "ati/revoke/r" { capabilities = ["update"] }`)
	g := s.startGuard(t, nil)
	mint := func(role, agent string) string { return s.mint(role, data{"agent_id": agent}) }
	watch := g.watchRejected()
	other := mint("r", "sandbox:other")
	others := g.startLoad(2, func() string { return other })
	otherSlow := g.callSlow(other)

	var revoked []string
	for _, c := range []struct {
		by     string
		tokens func() (tokens []string, revoke func())
	}{
		{"token", func() ([]string, func()) {
			token := mint("r", "sandbox:1")
			return []string{token}, func() { s.write(s.root, "ati/revoke", data{"token": token}) }
		}},
		{"jti", func() ([]string, func()) {
			creds := s.write(s.root, "ati/creds/r", data{"agent_id": "sandbox:1"})
			return []string{creds.Data["token"].(string)}, func() { s.write(s.root, "ati/revoke", data{"jti": creds.Data["jti"]}) }
		}},
		{"agent", func() ([]string, func()) {
			return []string{mint("r", "sandbox:2"), mint("leased", "sandbox:2"), mint("r", "sandbox:2")}, func() { s.write(s.root, "ati/revoke", data{"agent_id": "sandbox:2"}) }
		}},
		{"agent of a role", func() ([]string, func()) {
			return []string{mint("r", "sandbox:3"), mint("leased", "sandbox:3")}, func() { s.write(orchestrator, "ati/revoke/r", data{"agent_id": "sandbox:3"}) }
		}},
		{"batch", func() ([]string, func()) {
			batch := s.write(s.root, "ati/batch/r", data{"agent_ids": "a,b,c"})
			var tokens []string
			for _, token := range batch.Data["tokens"].(data) {
				tokens = append(tokens, token.(string))
			}
			return tokens, func() { s.write(s.root, "ati/revoke", data{"jti": batch.RequestID}) }
		}},
		{"lease", func() ([]string, func()) {
			creds := s.write(s.root, "ati/creds/leased", data{"agent_id": "sandbox:4"})
			return []string{creds.Data["token"].(string)}, func() { s.vault(s.root, "lease", "revoke", creds.LeaseID) }
		}},
		{"lease prefix", func() ([]string, func()) {
			return []string{mint("prefix", "sandbox:5"), mint("prefix", "sandbox:6")}, func() { s.vault(s.root, "lease", "revoke", "-prefix", "ati/creds/prefix") }
		}},
		{"end of the login", func() ([]string, func()) {
			creds, err := s.client(orchestrator).Logical().Write("ati/creds/leased", data{"agent_id": "sandbox:7"})
			if err != nil {
				t.Fatal(err)
			}
			return []string{creds.Data["token"].(string)}, func() { s.vault(s.root, "token", "revoke", orchestrator) }
		}},
	} {
		tokens, revoke := c.tokens()
		var inFlight []<-chan result
		for _, token := range tokens {
			g.expect(c.by+", before", token, http.StatusOK)
			inFlight = append(inFlight, g.callSlow(token))
		}
		ended := g.slow.ended.Load()
		revoke()
		began := time.Now()
		longest := g.untilRejected(c.by, http.StatusUnauthorized, tokens...)
		watch.add(tokens...)
		var longestInFlight time.Duration
		for i := range tokens {
			r := receive(t, c.by+": the call in flight has ended", inFlight[i])
			longestInFlight = max(longestInFlight, r.at.Sub(began).Round(10*time.Millisecond))
			if r.status != http.StatusUnauthorized || r.body != "the token was revoked" {
				t.Errorf("%s: a call in flight returns %d %q", c.by, r.status, r.body)
			}
		}
		poll(t, "the upstream calls have ended", func() error {
			if got := g.slow.ended.Load() - ended; got != int64(len(tokens)) {
				return fmt.Errorf("%d of %d", got, len(tokens))
			}
			return nil
		})
		t.Logf("%s: %d tokens rejected after %v, calls in flight ended after %v", c.by, len(tokens), longest, longestInFlight)
		revoked = append(revoked, tokens...)
	}
	for _, token := range revoked {
		g.expect("a revoked token, later", token, http.StatusUnauthorized)
		if status, body := g.do(token, http.MethodPost, "/mcp", `{"jsonrpc":"2.0","id":1,"method":"tools/list"}`); status != http.StatusUnauthorized || body != "the token was revoked" {
			t.Errorf("/mcp returns %d %s for a revoked token", status, body)
		}
	}
	later := mint("r", "sandbox:2")
	g.expect("a new token of a revoked agent", later, http.StatusOK)
	others.expectNoFailure("other tokens")
	close(g.slow.release)
	if r := receive(t, "another token's call has ended", otherSlow); r.status != http.StatusOK {
		t.Errorf("another token's call in flight returns %d %s", r.status, r.body)
	}
	watch.stop()
	if got := g.stop(syscall.SIGTERM); got != 0 {
		t.Errorf("the guard exits with %d", got)
	}

	// The access log has a line for each rejected call, also of /mcp, and leads to Vault's.
	paths := map[string]map[string]int{} // by jti
	for _, line := range g.accessLines() {
		if line["status"] != 401.0 || line["jti"] == nil {
			continue
		}
		if line["reason"] != "the token was revoked" || line["sub"] == nil || line["key_version"] != 1.0 {
			t.Errorf("line of the access log: %v", line)
		}
		jti, _ := line["jti"].(string)
		if paths[jti] == nil {
			paths[jti] = map[string]int{}
		}
		paths[jti][line["path"].(string)]++
	}
	for _, token := range revoked {
		decoded, err := ati.DecodeToken(token)
		if err != nil {
			t.Fatal(err)
		}
		jti := decoded["jti"].(string)
		if got := paths[jti]; got["/call"] < 3 || got["/mcp"] < 1 {
			t.Errorf("%s: lines of the access log by path: %v", jti, got)
		}
		request, _, _ := strings.Cut(jti, ".")
		if got := s.auditLine(request).Request.Path; !strings.HasPrefix(got, "ati/creds/") && got != "ati/batch/r" {
			t.Errorf("%s: Vault's audit line has path %s", jti, got)
		}
	}
	if len(paths) != len(revoked) {
		t.Errorf("the access log has %d tokens, want %d: %v", len(paths), len(revoked), slices.Sorted(maps.Keys(paths)))
	}
	t.Logf("%d tokens were revoked; of other tokens' calls none failed", len(revoked))
}

// Guarantee: no request without a valid token reaches the proxy, however it is spelled, and
// what a token gets from the proxy's port or the admin port is no secret.
func TestInteropGuard_Attacks(t *testing.T) {
	t.Parallel()
	s := startGuarded(t, false, time.Hour)
	secret := s.proxyEnv()["ATI_JWT_SECRET"]
	token, revoked := s.mint("r", nil), s.mint("r", nil)
	s.write(s.root, "ati/revoke", data{"token": revoked})
	g := s.newGuard(t, nil)
	g.env = []string{"VAULT_TOKEN=" + s.root, "VAULT_ADDR=" + s.addr, "BAO_ADDR=" + s.addr, "ATI_JWT_SECRET=" + secret, "ATI_JWT_PUBLIC_KEY=/dev/null", "NOTIFY_SOCKET=/none", "CREDENTIALS_DIRECTORY=/none", "KEPT=1"}
	var received atomic.Int64
	upload := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n, _ := io.Copy(io.Discard, r.Body)
		received.Add(n)
		_, _ = io.WriteString(w, `{"ok":true}`)
	}))
	t.Cleanup(upload.Close)
	g.addTool("upload", http.MethodPost, upload.URL, `auth_type = "none"`)
	g.start()
	g.waitUntilReady()
	g.watchRejected(revoked)
	child := g.child()
	before := g.proxy.calls.Load()

	// The proxy's environment and port.
	args := strings.Split(string(readFile(t, fmt.Sprintf("/proc/%d/cmdline", child))), "\x00")
	port := args[slices.Index(args, "--port")+1]
	direct := *g.proxy
	direct.addr = "http://127.0.0.1:" + port
	for _, tok := range []string{"", token} {
		if got := direct.call(tok, "web_search"); got != http.StatusUnauthorized {
			t.Errorf("the proxy's port returns %d", got)
		}
	}
	auth := g.config["vault"].(data)["auth"].(data)["approle"].(data)
	secretID := strings.TrimSpace(string(readFile(t, auth["secret_id_file"].(string))))
	env := string(readFile(t, fmt.Sprintf("/proc/%d/environ", child)))
	for _, not := range []string{secret, s.root, secretID, "VAULT_", "BAO_", "ATI_JWT_PUBLIC_KEY", "NOTIFY_SOCKET", "CREDENTIALS_DIRECTORY"} {
		if strings.Contains(env, not) {
			t.Errorf("the proxy's environment has %s", not)
		}
	}
	local := regexp.MustCompile(`ATI_JWT_SECRET=([0-9a-f]{64})\x00`).FindStringSubmatch(env)
	if len(local) == 0 || !strings.Contains(env, "KEPT=1\x00") {
		t.Fatal("the proxy's environment has no secret, or not what the guard's has")
	}
	expectNotInMemory(t, child, local[1], secret, s.root, secretID)
	// The guard accepts no token of the key that the proxy holds.
	forged := signRaw(t, local[1], `{"alg":"HS256","typ":"JWT"}`, `{"sub":"x","aud":"ati-proxy","iat":1,"exp":4000000000,"scope":"*"}`)
	g.expect("a token of the local key", forged, http.StatusUnauthorized)
	if got := direct.call(forged, "web_search"); got != http.StatusOK {
		t.Errorf("at the proxy's port, a token of the local key returns %d", got)
	}
	before++

	// Requests without a valid token, on a raw connection.
	const body = `{"tool_name":"web_search","args":{}}`
	bearer := "Authorization: Bearer " + token + "\r\n"
	rest := fmt.Sprintf("Host: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", len(body), body)
	get := func(target string) string {
		return "GET " + target + " HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
	}
	for _, c := range []struct {
		name, request string
		want          []int
	}{
		{"no token", "POST /call HTTP/1.1\r\n" + rest, []int{401}},
		{"a revoked token", "POST /call HTTP/1.1\r\nAuthorization: Bearer " + revoked + "\r\n" + rest, []int{401}},
		{"a revoked token and a valid one", "POST /call HTTP/1.1\r\nAuthorization: Bearer " + revoked + "\r\n" + bearer + rest, []int{401}},
		{"two tokens", "POST /call HTTP/1.1\r\n" + bearer + bearer + rest, []int{401}},
		{"junk and a token", "POST /call HTTP/1.1\r\nAuthorization: Bearer x\r\n" + bearer + rest, []int{401}},
		{"a token and an empty header", "POST /call HTTP/1.1\r\n" + bearer + "authorization:\r\n" + rest, []int{401}},
		{"bearer", "POST /call HTTP/1.1\r\nAuthorization: bearer " + token + "\r\n" + rest, []int{401}},
		{"Basic", "POST /call HTTP/1.1\r\nAuthorization: Basic " + token + "\r\n" + rest, []int{401}},
		{"two spaces", "POST /call HTTP/1.1\r\nAuthorization: Bearer  " + token + "\r\n" + rest, []int{401}},
		{"a list", "POST /call HTTP/1.1\r\nAuthorization: Bearer " + token + ", Bearer " + token + "\r\n" + rest, []int{401}},
		{"space before the colon", "POST /call HTTP/1.1\r\nAuthorization : Bearer " + token + "\r\n" + rest, []int{400}},
		{"underscore", "POST /call HTTP/1.1\r\nX_Authorization: Bearer " + token + "\r\nProxy-Authorization: Bearer " + token + "\r\n" + rest, []int{401}},
		{"a null byte", "POST /call HTTP/1.1\r\nAuthorization: Bearer " + token + "\x00\r\n" + rest, []int{400}},
		{"token in the query", "POST /call?access_token=" + token + "&Authorization=Bearer%20" + token + " HTTP/1.1\r\n" + rest, []int{401}},
		{"Connection: Authorization, no token", "POST /call HTTP/1.1\r\nConnection: Authorization\r\n" + rest, []int{401}},
		{"other path in a header", "POST /call HTTP/1.1\r\nX-Original-URL: /health\r\nX-Rewrite-URL: /health\r\nX-HTTP-Method-Override: GET\r\n" + rest, []int{401}},
		{"HTTP/1.0", "POST /call HTTP/1.0\r\n" + rest, []int{401}},
		{"HTTP/2 preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", []int{401}},
		{"upgrade to HTTP/2", "POST /call HTTP/1.1\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n" + rest, []int{401}},
		{"no version", "GET /health\r\n\r\n", []int{400}},
		{"a header of 64 KB", "POST /call HTTP/1.1\r\nX-Big: " + strings.Repeat("x", 64<<10) + "\r\n" + rest, []int{401}},
		{"a token of 64 KB", "POST /call HTTP/1.1\r\nAuthorization: Bearer " + strings.Repeat("x", 64<<10) + "\r\n" + rest, []int{401}},
		{"headers of 1 MB", "POST /call HTTP/1.1\r\nX-Big: " + strings.Repeat("x", 1<<20) + "\r\n" + rest, []int{431}},

		{"health", get("/health"), []int{200}},
		{"health, query", get("/health?x=1"), []int{200}},
		{"JWKS", get("/.well-known/jwks.json"), []int{200}},
		{"HEAD", strings.Replace(get("/health"), "GET", "HEAD", 1), []int{200}},
		{"lower case", strings.Replace(get("/health"), "GET", "get", 1), []int{401}},
		{"POST", strings.Replace(get("/health"), "GET", "POST", 1), []int{401}},
		{"OPTIONS", strings.Replace(get("/health"), "GET", "OPTIONS", 1), []int{401}},
		{"OPTIONS *", strings.Replace(get("*"), "GET", "OPTIONS", 1), []int{401}},
		{"TRACE", strings.Replace(get("/health"), "GET", "TRACE", 1), []int{401}},
		{"CONNECT", strings.Replace(get("127.0.0.1:"+port), "GET", "CONNECT", 1), []int{401}},
		{"CONNECT with a path", strings.Replace(get("/health"), "GET", "CONNECT", 1), []int{401}},
		{"slash at the end", get("/health/"), []int{401}},
		{"two slashes", get("//health"), []int{401}},
		{"capitals", get("/HEALTH"), []int{401}},
		{"percent", get("/%68ealth"), []int{401}},
		{"percent at the end", get("/health%20"), []int{401}},
		{"null byte", get("/health%00"), []int{401}},
		{"question mark", get("/health%3f/call"), []int{401}},
		{"semicolon", get("/health;x"), []int{401}},
		{"fragment", get("/health#x"), []int{401}},
		{"dot", get("/./health"), []int{401}},
		{"dots", get("/x/../health"), []int{401}},
		{"dots after it", get("/health/../tools"), []int{401}},
		{"percent dots", get("/health/%2e%2e/tools"), []int{401}},
		{"backslash", get("\\health"), []int{400}},
		{"absolute form", get("http://x/health"), []int{401}},
		{"absolute form of the proxy", get("http://127.0.0.1:" + port + "/tools"), []int{401}},
		{"JWKS, dots", get("/.well-known/jwks.json/../../tools"), []int{401}},
	} {
		if got := g.raw(c.request); !slices.Equal(got, c.want) {
			t.Errorf("%s: the statuses are %v, want %v", c.name, got, c.want)
		}
	}
	// A second request hidden in the first one's body. The first has a token, and calls no tool.
	hidden := "POST /call HTTP/1.1\r\n" + rest
	for name, c := range map[string]struct{ headers, body string }{
		"both":              {fmt.Sprintf("Content-Length: %d\r\nTransfer-Encoding: chunked\r\n", 5+len(hidden)), "0\r\n\r\n" + hidden},
		"both, other order": {fmt.Sprintf("Transfer-Encoding: chunked\r\nContent-Length: %d\r\n", 5+len(hidden)), "0\r\n\r\n" + hidden},
		"length 0":          {"Content-Length: 0\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n" + hidden},
		"two lengths":       {fmt.Sprintf("Content-Length: 0\r\nContent-Length: %d\r\n", len(hidden)), hidden},
		"a list of lengths": {fmt.Sprintf("Content-Length: 0, %d\r\n", len(hidden)), hidden},
		"+":                 {fmt.Sprintf("Content-Length: +%d\r\n", len(hidden)), hidden},
		"two encodings":     {"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n", "0\r\n\r\n" + hidden},
		"a list":            {"Transfer-Encoding: identity, chunked\r\n", "0\r\n\r\n" + hidden},
		"xchunked":          {fmt.Sprintf("Content-Length: %d\r\nTransfer-Encoding: xchunked\r\n", 5+len(hidden)), "0\r\n\r\n" + hidden},
		"tab":               {fmt.Sprintf("Content-Length: %d\r\nTransfer-Encoding:\tchunked\r\n", 5+len(hidden)), "0\r\n\r\n" + hidden},
		"space":             {fmt.Sprintf("Content-Length: %d\r\nTransfer-Encoding : chunked\r\n", 5+len(hidden)), "0\r\n\r\n" + hidden},
		"LF in a chunk":     {"Transfer-Encoding: chunked\r\n", "0\n\n" + hidden},
		"chunk extension":   {"Transfer-Encoding: chunked\r\n", "0;\n\r\n\r\n" + hidden},
		"GET with a body":   {fmt.Sprintf("Content-Length: %d\r\n", len(hidden)), hidden},
		"trailer":           {"Trailer: Authorization\r\nTransfer-Encoding: chunked\r\n", "0\r\n" + bearer + "\r\n" + hidden},
	} {
		got := g.raw("POST /help HTTP/1.1\r\nHost: x\r\n" + bearer + c.headers + "\r\n" + c.body)
		if len(got) == 0 || slices.Contains(got[1:], 200) {
			t.Errorf("%s: the statuses are %v", name, got)
		}
	}
	if got := g.proxy.calls.Load(); got != before {
		t.Errorf("%d requests without a valid token reached the upstream", got-before)
	}
	// With a token, the header that Connection names is not lost on the way to the proxy.
	if got := g.raw("POST /call HTTP/1.1\r\nConnection: Authorization\r\n" + bearer + rest); !slices.Equal(got, []int{200}) {
		t.Errorf("Connection: Authorization with a token: %v", got)
	}
	if got := g.raw("POST /call HTTP/1.1\r\nX-Big: " + strings.Repeat("x", 64<<10) + "\r\n" + bearer + rest); !slices.Equal(got, []int{200}) {
		t.Errorf("a header of 64 KB with a token: %v", got)
	}

	large := `{"tool_name":"upload","args":{"x":"` + strings.Repeat("x", 80<<20) + `"}}`
	began := time.Now()
	status, _ := g.do("", http.MethodPost, "/call", large)
	t.Logf("a body of 80 MB without a token: %d after %v", status, time.Since(began).Round(time.Millisecond))
	if status != http.StatusUnauthorized && status != 0 { // the connection may be closed while the body is sent
		t.Errorf("a body of 80 MB without a token returns %d", status)
	}
	began = time.Now()
	status, response := g.do(token, http.MethodPost, "/call", large)
	t.Logf("a body of 80 MB with a token: %d after %v", status, time.Since(began).Round(time.Millisecond))
	if status != http.StatusOK || received.Load() < 80<<20 {
		t.Errorf("a body of 80 MB returns %d %.100q, and the upstream has %d bytes", status, response, received.Load())
	}
	if got := g.child(); got != child {
		t.Error("the proxy was restarted")
	}

	// The admin port, and the guard itself, as a tool sees them.
	for _, path := range []string{"/ready", "/metrics", "/", "/health", "/config", "/debug/pprof/", "/debug/vars", "/v1/ati/guard", "/tools"} {
		for _, address := range []string{g.admin, g.config["listen"].(string)} {
			call, err := json.Marshal(data{"tool_name": "file_manager:download", "args": data{"url": "http://" + address + path}})
			if err != nil {
				t.Fatal(err)
			}
			status, text := g.do(token, http.MethodPost, "/call", string(call))
			var response struct {
				Result struct {
					Content []byte `json:"content_base64"`
				}
			}
			if err := json.Unmarshal([]byte(text), &response); err != nil {
				t.Errorf("%s%s: %d %s", address, path, status, text)
			}
			content := string(response.Result.Content)
			served := address == g.admin && (path == "/ready" || path == "/metrics") || address != g.admin && path == "/health"
			if served != (status == http.StatusOK) {
				t.Errorf("a download of %s%s returns %d %s", address, path, status, text)
			}
			for _, not := range []string{secret, local[1], s.root, secretID, token, "sandbox:"} {
				if strings.Contains(content, not) {
					t.Errorf("a download of %s%s has %s", address, path, not)
				}
			}
			if path == "/metrics" && served && !strings.Contains(content, "ati_guard_requests_total") {
				t.Errorf("the metrics are %s", content)
			}
		}
	}
	for _, method := range []string{http.MethodPost, http.MethodDelete} {
		req, err := http.NewRequest(method, "http://"+g.admin+"/ready", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusMethodNotAllowed {
			t.Errorf("%s /ready at the admin port returns %s", method, resp.Status)
		}
	}
}

// Guarantee: another user on the host, such as the one that the proxy and its tools run as,
// reads neither the guard's login nor its memory, also if the guard runs as that user.
func TestInteropGuard_User(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Log("not run: only root can start a proxy as another user")
		return
	}
	nobody, err := user.Lookup("nobody")
	if err != nil {
		t.Logf("not run: %v", err)
		return
	}
	uid, err := strconv.Atoi(nobody.Uid)
	if err != nil {
		t.Fatal(err)
	}
	credential := &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}
	s := startGuarded(t, false, time.Hour)
	token, revoked := s.mint("r", nil), s.mint("r", nil)
	s.write(s.root, "ati/revoke", data{"token": revoked})
	public, err := os.MkdirTemp("", "ati-guard-user") // which other users can read, unlike t.TempDir
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(public) })
	if err := os.Chmod(public, 0o755); err != nil {
		t.Fatal(err)
	}
	copyFile := func(from, name string, mode os.FileMode) string {
		to := filepath.Join(public, name)
		if err := os.WriteFile(to, readFile(t, from), mode); err != nil {
			t.Fatal(err)
		}
		return to
	}
	g := s.newGuard(t, data{"ati": copyFile(requireEnv(t, "ATI_BIN"), "ati", 0o755), "user": "nobody"})
	auth := g.config["vault"].(data)["auth"].(data)["approle"].(data)
	for name := range auth {
		auth[name] = copyFile(auth[name].(string), name, 0o600)
	}
	ati := filepath.Join(public, "dir")
	if err := os.CopyFS(ati, os.DirFS(g.proxy.dir)); err != nil {
		t.Fatal(err)
	}
	g.proxy.dir, g.config["ati_dir"] = ati, ati
	g.writeConfig()
	config := copyFile(g.file, "config.json", 0o600)
	g.file = config
	readable := func(path string) bool {
		cmd := exec.Command("head", "-c", "1", path)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: credential}
		out, err := cmd.Output()
		return err == nil && len(out) > 0
	}
	expectHidden := func(who string, paths ...string) {
		t.Helper()
		for _, path := range append(paths, fmt.Sprintf("/proc/%d/environ", g.cmd.Process.Pid), fmt.Sprintf("/proc/%d/mem", g.cmd.Process.Pid), fmt.Sprintf("/proc/%d/maps", g.cmd.Process.Pid)) {
			if readable(path) {
				t.Errorf("%s: the proxy's user can read %s", who, path)
			}
		}
	}
	chown := func() {
		t.Helper()
		if err := filepath.WalkDir(public, func(path string, _ fs.DirEntry, err error) error { return errors.Join(err, os.Chown(path, uid, uid)) }); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chown(ati, uid, uid); err != nil {
		t.Fatal(err)
	}
	g.start()
	g.waitUntilReady()
	g.watchRejected(revoked)
	g.expect("a proxy that runs as nobody", token, http.StatusOK)
	child := g.child()
	info, err := os.Stat(fmt.Sprintf("/proc/%d", child))
	if err != nil {
		t.Fatal(err)
	}
	if got := info.Sys().(*syscall.Stat_t).Uid; int(got) != uid {
		t.Errorf("the proxy runs as user %d, want %d", got, uid)
	}
	if !readable(filepath.Join(public, "ati")) || !readable(fmt.Sprintf("/proc/%d/environ", child)) {
		t.Error("the proxy's user cannot read its own files: the test proves nothing")
	}
	expectHidden("guard of root", config, auth["role_id_file"].(string), auth["secret_id_file"].(string))
	g.stop(syscall.SIGTERM)

	// The guard itself runs as nobody, and the proxy as the same user.
	delete(g.config, "user")
	delete(g.config, "access_log") // in a directory that nobody cannot enter
	g.writeConfig()
	g.file = copyFile(g.file, "config.json", 0o600)
	g.binary, g.credential = copyFile(buildGuard(t), "ati-guard", 0o755), credential
	chown()
	g.start()
	g.waitUntilReady()
	g.expect("a guard that runs as nobody", token, http.StatusOK)
	expectHidden("guard of nobody")
}
