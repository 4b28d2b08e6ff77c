//go:build interop

package test

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// syncBuffer is a buffer that a process can write to while the test reads it.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// modifiedExample writes a copy of a file in examples/ with replacements, and returns its
// path. Each text to replace must occur in the file.
func modifiedExample(t testing.TB, path string, replace map[string]string) string {
	t.Helper()
	b := readFile(t, filepath.Join("..", "examples", path))
	text := string(b)
	for old, replacement := range replace {
		if !strings.Contains(text, old) {
			t.Fatalf("%s does not contain %q", path, old)
		}
		text = strings.ReplaceAll(text, old, replacement)
	}
	out := filepath.Join(t.TempDir(), filepath.Base(path))
	if err := os.WriteFile(out, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	return out
}

// runExample runs a script in examples/ with vault in PATH.
func (s *server) runExample(token, script string, args ...string) {
	s.t.Helper()
	if out, err := s.tryExample(token, script, args...); err != nil {
		s.t.Fatalf("%s: %v\n%s", script, err, out)
	}
}

func (s *server) tryExample(token, script string, args ...string) (string, error) {
	s.t.Helper()
	if !filepath.IsAbs(script) { // otherwise it is a modifiedExample
		script = filepath.Join("..", "examples", script)
	}
	cmd := exec.CommandContext(s.t.Context(), script, args...)
	cmd.Env = append(os.Environ(), "PATH="+pathWithVault(s.t), "VAULT_ADDR="+s.addr, "VAULT_TOKEN="+token, "HOME="+s.t.TempDir())
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// agent is a running Vault Agent.
type agent struct {
	cmd    *exec.Cmd
	exited chan struct{}
	out    *syncBuffer
}

func (s *server) startAgent(config string, env ...string) *agent {
	s.t.Helper()
	a := &agent{exited: make(chan struct{}), out: new(syncBuffer)}
	a.cmd = exec.Command(vaultBin, "agent", "-config="+config)
	a.cmd.Env = append(os.Environ(), append([]string{"VAULT_ADDR=" + s.addr, "HOME=" + s.dir}, env...)...)
	a.cmd.Stdout, a.cmd.Stderr = a.out, a.out
	a.cmd.WaitDelay = time.Second // an orphaned child of Agent keeps the pipe open
	if err := a.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	go func() { _ = a.cmd.Wait(); close(a.exited) }()
	s.t.Cleanup(func() { a.stop(syscall.SIGTERM) })
	return a
}

func (a *agent) stop(signal syscall.Signal) {
	_ = a.cmd.Process.Signal(signal)
	select {
	case <-a.exited:
	case <-time.After(20 * time.Second):
		_ = a.cmd.Process.Kill()
		<-a.exited
	}
}

// appRole creates an AppRole with a policy and returns a directory with its role_id and
// secret_id.
func (s *server) appRole(name, policy string) (dir string) {
	s.t.Helper()
	dir = s.t.TempDir()
	s.write(s.root, "auth/approle/role/"+name, data{"token_policies": policy, "token_no_default_policy": true})
	files := map[string]string{
		"role_id":   s.read(s.root, "auth/approle/role/"+name+"/role-id").Data["role_id"].(string),
		"secret_id": s.write(s.root, "auth/approle/role/"+name+"/secret-id", nil).Data["secret_id"].(string),
	}
	for file, text := range files {
		if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o600); err != nil {
			s.t.Fatal(err)
		}
	}
	return dir
}

// enableProxyHosts enables AppRole logins for proxy hosts and writes their policy.
func (s *server) enableProxyHosts() {
	s.t.Helper()
	s.vault(s.root, "auth", "enable", "approle")
	policy := readFile(s.t, filepath.Join("..", "examples", "policies", "proxy-host.hcl"))
	if err := s.client(s.root).Sys().PutPolicy("proxy-host", string(policy)); err != nil {
		s.t.Fatal(err)
	}
}

// newProxyHost returns a configuration of Agent for a proxy host, from examples/, with its
// environment, and the proxy that this Agent starts.
func (s *server) newProxyHost(t testing.TB, policy string, changes map[string]string) (config string, p *proxy, env []string) {
	t.Helper()
	p = newProxy(t)
	t.Cleanup(func() { // processes that Agent did not stop
		for _, pid := range processesWith(t, p.dir) {
			_ = syscall.Kill(pid, syscall.SIGTERM)
		}
	})
	port := strings.TrimPrefix(p.addr, "http://127.0.0.1:")
	replace := map[string]string{
		"/etc/vault-agent": s.appRole("host-"+port, policy), "/usr/local/bin/ati": requireEnv(t, "ATI_BIN"), `"8090"`: `"` + port + `"`, "/var/lib/ati": p.dir, `"1m"`: `"2s"`,
	}
	maps.Copy(replace, changes)
	return modifiedExample(t, "proxy-agent/agent.hcl", replace), p, []string{"ATI_DIR=" + p.dir}
}

// isReady reports whether the proxy runs and rejects a call without a token.
func (p *proxy) isReady() bool { return p.call("", "web_search") == http.StatusUnauthorized }

// waitProtected waits until a condition holds, and fails the test if the proxy accepts a
// request without a token in the meantime.
func waitProtected(t *testing.T, p *proxy, a *agent, until func() bool) {
	t.Helper()
	deadline := time.Now().Add(40 * time.Second)
	for !until() {
		if time.Now().After(deadline) {
			t.Fatalf("the condition did not hold within 40 seconds:\n%s", a.out)
		}
		if got := p.call("", "web_search"); got != 0 && got != 401 {
			t.Fatalf("a call without a token returns %d", got)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func (a *agent) hasExited() bool {
	select {
	case <-a.exited:
		return true
	default:
		return false
	}
}

// processesWith returns the IDs of other processes with a text in their command line.
func processesWith(t testing.TB, text string) []int {
	t.Helper()
	return slices.DeleteFunc(processes(t, func(args string) bool { return strings.Contains(args, text) }), func(pid int) bool { return pid == os.Getpid() })
}

// requireEnv returns an environment variable that make interop or make kubernetes sets.
func requireEnv(t testing.TB, name string) string {
	t.Helper()
	path := os.Getenv(name)
	if path == "" {
		t.Fatalf("%s is not set; run this test with make interop, make rotation, or make kubernetes", name)
	}
	return path
}

// atiTools are the names of the proxies' tools, as a caller uses them, and the scopes in
// their manifests.
var atiTools = []struct{ name, scope string }{
	{"web_search", "tool:web_search"},
	{"web_search_2", "tool:web_search_2"},
	{"github:search", "tool:github:search"},
	{"github:issue:open", "tool:github:issue:open"},
	{"linear:list", "tool:linear:list"},
	{"hn_top", "tool:hackernews"}, // the scope differs from the name
	{"quote", "finance:read"},     // the scope has no tool: prefix
	{"shell", "tool:shell"},
	{"unscoped", "tool:unscoped"}, // the default, because its manifest has no scope
}

// proxy is a real ATI proxy with its own upstream.
type proxy struct {
	t     testing.TB
	addr  string
	dir   string
	calls *atomic.Int64 // calls that reached the upstream
}

// newProxy returns a proxy that is not started, with its files, an upstream, and a port.
func newProxy(t testing.TB) *proxy {
	t.Helper()
	p := &proxy{t: t, dir: t.TempDir(), calls: new(atomic.Int64), addr: "http://127.0.0.1:" + freePort(t)}
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		p.calls.Add(1)
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"ok":true}`)
	}))
	t.Cleanup(upstream.Close)
	p.writeFiles(upstream.URL)
	return p
}

// startProxy starts a proxy with the given environment, which configures how it verifies
// tokens, and waits until it rejects a call without a token.
func startProxy(t testing.TB, env map[string]string) *proxy {
	t.Helper()
	p := newProxy(t)
	p.start(env)
	return p
}

// start starts the proxy as startProxy does.
func (p *proxy) start(env map[string]string) (stop func()) {
	t := p.t
	t.Helper()
	port := strings.TrimPrefix(p.addr, "http://127.0.0.1:")
	log, err := os.Create(filepath.Join(p.dir, "proxy.log"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { log.Close() })
	cmd := exec.Command(requireEnv(t, "ATI_BIN"), "proxy", "--port", port, "--bind", "127.0.0.1", "--ati-dir", p.dir, "--env-keys")
	cmd.Env = []string{"HOME=" + p.dir, "ATI_DIR=" + p.dir, "ATI_AUDIT_FILE=" + filepath.Join(p.dir, "audit.jsonl"), "PATH=" + os.Getenv("PATH")}
	for k, v := range env {
		if k == "public_key" {
			file := filepath.Join(p.dir, "public.pem")
			if err := os.WriteFile(file, []byte(v), 0o600); err != nil {
				t.Fatal(err)
			}
			k, v = "ATI_JWT_PUBLIC_KEY", file
		}
		cmd.Env = append(cmd.Env, k+"="+v)
	}
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stop = sync.OnceFunc(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	t.Cleanup(stop)
	poll(t, "the proxy refuses a call without a token", func() error {
		if got := p.call("", "web_search"); got != http.StatusUnauthorized {
			return fmt.Errorf("it answers %d", got)
		}
		return nil
	})
	return stop
}

func (p *proxy) writeFiles(upstream string) {
	p.t.Helper()
	manifest := fmt.Sprintf("[provider]\nname = \"test\"\ndescription = \"x\"\nbase_url = %q\nauth_type = \"none\"\n", upstream)
	for _, tool := range atiTools {
		manifest += fmt.Sprintf("\n[[tools]]\nname = %q\ndescription = \"x\"\nendpoint = \"/x\"\nmethod = \"GET\"\n", tool.name)
		if tool.name != "unscoped" {
			manifest += fmt.Sprintf("scope = %q\n", tool.scope)
		}
	}
	files := map[string]string{"manifests/test.toml": manifest}
	for _, skill := range []string{"summarize", "research-deep", "cite"} {
		files["skills/"+skill+"/SKILL.md"] = fmt.Sprintf("---\nname: %s\ndescription: x\n---\nDo it.\n", skill)
	}
	for name, text := range files {
		path := filepath.Join(p.dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			p.t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			p.t.Fatal(err)
		}
	}
}

// do sends a request and returns the status and body, or 0 if there is no response.
func (p *proxy) do(token, method, path, body string) (int, string) {
	p.t.Helper()
	req, err := http.NewRequestWithContext(p.t.Context(), method, p.addr+path, strings.NewReader(body))
	if err != nil {
		p.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	if token != "" {
		req.Header["Authorization"] = []string{"Bearer " + token}
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		p.t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

// call calls a tool and returns the status.
func (p *proxy) call(token, tool string) int {
	p.t.Helper()
	status, _ := p.do(token, http.MethodPost, "/call", fmt.Sprintf(`{"tool_name":%q,"args":{}}`, tool))
	return status
}

func (p *proxy) skills(token string) []string {
	p.t.Helper()
	status, body := p.do(token, http.MethodGet, "/skills", "")
	if status != http.StatusOK {
		p.t.Fatalf("GET /skills: %d %s", status, body)
	}
	var list []struct{ Name string }
	if err := json.Unmarshal([]byte(body), &list); err != nil {
		p.t.Fatalf("%v: %s", err, body)
	}
	names := []string{}
	for _, s := range list {
		names = append(names, s.Name)
	}
	slices.Sort(names)
	return names
}

// proxyEnv returns the environment that proxy-env has for the proxy host, with the current
// key.
func (s *server) proxyEnv() map[string]string {
	s.t.Helper()
	return s.proxyEnvAt("ati/proxy-env")
}

// proxyEnvAt returns the environment at a path, which may be of one version of the key.
func (s *server) proxyEnvAt(path string) map[string]string {
	s.t.Helper()
	env := map[string]string{}
	for k, v := range s.read(s.root, path).Data {
		env[k] = v.(string)
	}
	return env
}

func (s *server) mint(role string, d data) string {
	s.t.Helper()
	return s.write(s.root, "ati/creds/"+role, d).Data["token"].(string)
}

// pythonClient is a process that runs a real ati-client. It reads one request per line and
// writes one result per line.
type pythonClient struct {
	t   testing.TB
	in  io.Writer
	out *bufio.Scanner
}

const clientProgram = `
import ati, json, sys, warnings
warnings.simplefilter("ignore")
for line in sys.stdin:
    q = json.loads(line)
    try:
        if q["do"] == "validate":
            r = ati.validate_token(q["token"], secret=q["secret"], issuer=q["issuer"] or None).to_dict()
        elif q["do"] == "provision":
            o = ati.AtiOrchestrator(proxy_url="https://ati.example.com", secret=q["secret"])
            r = o.provision_sandbox(agent_id="sandbox:abc", tools=["web_search", "github:*"], skills=["summarize"], ttl_seconds=600, rate={"tool:web_search": "5/hour"})
        print(json.dumps({"ok": r}), flush=True)
    except Exception as e:
        print(json.dumps({"error": str(e)}), flush=True)
`

func startClient(t testing.TB, name string) *pythonClient {
	t.Helper()
	cmd := exec.Command("python3", "-c", clientProgram)
	cmd.Env = append(os.Environ(), "PYTHONPATH="+requireEnv(t, name))
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		_ = cmd.Wait()
	})
	scanner := bufio.NewScanner(out)
	scanner.Buffer(nil, 1<<20)
	return &pythonClient{t, in, scanner}
}

// call returns the result, or nil and the error's text.
func (c *pythonClient) call(request data) (data, string) {
	c.t.Helper()
	b, err := json.Marshal(request)
	if err != nil {
		c.t.Fatal(err)
	}
	if _, err := c.in.Write(append(b, '\n')); err != nil {
		c.t.Fatal(err)
	}
	if !c.out.Scan() {
		c.t.Fatalf("ati-client exited: %v", c.out.Err())
	}
	var result struct {
		OK    data
		Error string
	}
	if err := json.Unmarshal(c.out.Bytes(), &result); err != nil {
		c.t.Fatal(err)
	}
	return result.OK, result.Error
}

// mutatedToken returns a token with up to three changes in its JSON or text. Its signature
// is valid unless the text was changed after signing.
func mutatedToken(random *rand.Rand, algorithm string, sign func(header, payload string) string) string {
	pick := func(from []string) string { return from[random.IntN(len(from))] }
	members := func(base [][2]string, values []string) string {
		base = slices.Clone(base)
		for range random.IntN(3) {
			i := random.IntN(len(base))
			switch random.IntN(5) {
			case 0:
				base[i][1] = pick(values)
			case 1:
				base = append(base, [2]string{base[i][0], pick(append(values, base[i][1]))})
			case 2:
				base = append(base, [2]string{pick([]string{`"nbf"`, `"job_id"`, `"sandbox_id"`, `"x"`, `"SUB"`, `"\u0073cope"`, `"\ud800"`, `"kid"`, `"crit"`, `"b64"`, `"x5c"`, `"jwk"`, `"typ"`, `"zip"`}), pick(values)})
			case 3:
				if len(base) > 1 {
					base = slices.Delete(base, i, i+1)
				}
			case 4:
				j := random.IntN(len(base))
				base[i], base[j] = base[j], base[i]
			}
		}
		parts := make([]string, len(base))
		for i, m := range base {
			parts[i] = m[0] + pick([]string{":", " : "}) + m[1]
		}
		return pick([]string{"{", " {"}) + strings.Join(parts, pick([]string{",", ", "})) + pick([]string{"}", "}", "}", "}\n", ",}"})
	}
	now := time.Now().Unix()
	values := []string{
		"null", "true", "0", "1", "-1", "1.5", "1e3", "1e999", `""`, `"a"`, `"ati-proxy"`, `["ati-proxy"]`, "[]", "{}", `[null]`, `["\ud800"]`, `"\ud83d\ude00"`, `"\ud800"`, `"\u0000"`, `"é"`, "\"\xff\"",
		fmt.Sprint(now), fmt.Sprint(now + 30), fmt.Sprint(now + 90), fmt.Sprint(now - 30), fmt.Sprint(now - 90), fmt.Sprint(now) + ".0", "4000000000", "9223372036854775807", "18446744073709551615",
		`{"v":1}`, `{"v":1,"rate":{"tool:x":"1/s"}}`, `{"v":256}`, `{"v":1,"v":1}`, `{"v":1,"rate":null}`, `{"v":1,"rate":{"a":1}}`, `{"v":1,"x":[[[]]]}`, `{"rate":{}}`, strings.Repeat("[", 130) + strings.Repeat("]", 130),
	}
	header := members([][2]string{{`"alg"`, `"` + algorithm + `"`}, {`"typ"`, `"JWT"`}}, append(values, `"HS512"`, `"none"`, `"HS256"`, `"ES256"`))
	payload := members([][2]string{
		{`"sub"`, `"agent"`}, {`"aud"`, `"ati-proxy"`}, {`"iat"`, fmt.Sprint(now)}, {`"exp"`, fmt.Sprint(now + 3600)}, {`"scope"`, `"tool:web_search"`},
		{`"iss"`, `"ati-orchestrator"`}, {`"jti"`, `"j"`}, {`"ati"`, `{"v":1}`},
	}, values)
	token := sign(header, payload)
	if random.IntN(8) == 0 { // change the text
		i := random.IntN(len(token))
		switch random.IntN(3) {
		case 0:
			token = token[:i] + string("ABab09-_.=+/"[random.IntN(12)]) + token[i+1:]
		case 1:
			token = token[:i] + token[i+1:]
		case 2:
			token = token[:i] + "=" + token[i:]
		}
	}
	return token
}

// signRaw signs a header and payload, which may be invalid.
func signRaw(t testing.TB, secret, header, payload string) string {
	t.Helper()
	key, err := hex.DecodeString(secret)
	if err != nil {
		t.Fatal(err)
	}
	text := base64.RawURLEncoding.EncodeToString([]byte(header)) + "." + base64.RawURLEncoding.EncodeToString([]byte(payload))
	sig, err := jwt.SigningMethodHS256.Sign(text, key)
	if err != nil {
		t.Fatal(err)
	}
	return text + "." + base64.RawURLEncoding.EncodeToString(sig)
}

// rotate performs a step of a rotation and returns the response.
func (s *server) rotate(step string, d data) data {
	s.t.Helper()
	return s.write(s.root, "ati/config/rotate"+step, d).Data
}

// sandbox is a sandbox with an Agent. It calls a tool continuously.
type sandbox struct {
	name   string
	proxy  *proxy
	agent  *agent
	file   string // contains the token
	calls  atomic.Int64
	failed atomic.Int64
	stop   chan struct{}
	done   chan struct{}
}

func (b *sandbox) token(t testing.TB) string {
	t.Helper()
	text := readFile(t, b.file)
	return string(text)
}

// startSandbox starts a sandbox for the mount's current proxy.
func (s *server) startSandbox(t *testing.T, name string, proxies ...*proxy) *sandbox {
	t.Helper()
	dir, run := t.TempDir(), t.TempDir()
	s.runExample(s.root, "approle/add-sandbox.sh", name, dir)
	b := &sandbox{name: name, file: filepath.Join(run, "session_token"), stop: make(chan struct{}), done: make(chan struct{})}
	address := s.read(s.root, "ati/config").Data["proxy_url"].(string)
	for _, p := range proxies {
		if p.addr == address {
			b.proxy = p
		}
	}
	config := modifiedExample(t, "sandbox-agent/agent.hcl", map[string]string{"/etc/vault-agent": dir, "/run/ati": run, `"40m"`: `"3s"`})
	b.agent = s.startAgent(config, "ATI_PROXY_URL="+address)
	poll(t, "the sandbox has a token", func() error { _, err := os.Stat(b.file); return err })
	go func() {
		defer close(b.done)
		for {
			select {
			case <-b.stop:
				return
			case <-time.After(50 * time.Millisecond): // the servers need the processors too
			}
			cmd := exec.Command(requireEnv(t, "ATI_BIN"), "run", "web_search")
			cmd.Env = []string{"HOME=" + run, "PATH=" + os.Getenv("PATH"), "ATI_PROXY_URL=" + address, "ATI_SESSION_TOKEN_FILE=" + b.file}
			out, err := cmd.CombinedOutput()
			b.calls.Add(1)
			if err != nil {
				b.failed.Add(1)
				t.Errorf("sandbox %s at %s: %v\n%s", b.name, address, err, out)
			}
		}
	}()
	t.Cleanup(b.end)
	return b
}

func (b *sandbox) end() {
	select {
	case <-b.done:
	default:
		close(b.stop)
		<-b.done
	}
	b.agent.stop(syscall.SIGTERM)
}

// mintAt returns a token of role sandbox for a proxy.
func (s *server) mintAt(proxy string) string {
	s.t.Helper()
	s.write(s.root, "ati/roles/plain", data{"tools": "web_search", "ttl": "10s"})
	return s.mint("plain", data{"proxy_url": proxy})
}
