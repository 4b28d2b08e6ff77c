//go:build interop

package test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
)

// apiKeysBlock returns the text block of docs/api-keys.md that begins so, with replacements.
func apiKeysBlock(t testing.TB, start string, replace ...string) string {
	t.Helper()
	m := regexp.MustCompile("(?ms)^```text\n(" + regexp.QuoteMeta(start) + ".*?)^```$").FindSubmatch(readFile(t, "../docs/api-keys.md"))
	if m == nil {
		t.Fatalf("the page has no block that starts with %s", start)
	}
	block := string(m[1])
	for i := 0; i < len(replace); i += 2 {
		if !strings.Contains(block, replace[i]) {
			t.Fatalf("the block does not contain %s", replace[i])
		}
		block = strings.ReplaceAll(block, replace[i], replace[i+1])
	}
	return block
}

// startKeyUpstream starts an upstream that responds with the API key of the call.
func startKeyUpstream(t testing.TB) (url string) {
	t.Helper()
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = fmt.Fprintf(w, `{"used":%q}`, r.Header.Get("Authorization"))
	}))
	t.Cleanup(upstream.Close)
	return upstream.URL
}

// Guarantee: with the manifest, the policy, and Agent's configuration in docs/api-keys.md,
// each caller's calls have the key of that caller, and no other's.
func TestInteropGuard_KeyPerCaller(t *testing.T) {
	t.Parallel()
	s := startGuarded(t, false, time.Hour)
	s.vault(s.root, "secrets", "enable", "-path=secret", "-version=2", "kv")
	put := func(path, key string) { s.write(s.root, "secret/data/"+path, data{"data": data{"search": key}}) }
	put("ati-callers/sandbox:1", "key-of-1")
	put("ati-callers/sandbox:2", "key-of-2")
	put("ati-keys", "key-of-all")
	g := s.newGuard(t, data{"api_keys": "secret/data/ati-keys"})
	g.env = []string{"PATH=" + pathWithVault(t)}
	page := []string{"https://search.example.com", startKeyUpstream(t), "https://vault.example.com", s.addr, "timeout_secs = 5", "timeout_secs = 60"}
	g.manifest("search", apiKeysBlock(t, "[provider]", append(page, "cache_ttl_secs = 60", "cache_ttl_secs = 3")...))
	program, _, _ := strings.Cut(apiKeysBlock(t, "[provider]", append(page, `name = "search"`, `name = "program"`, `auth_type = "bearer"`, "handler = \"cli\"\ncli_command = \"printenv\"\ncli_default_args = [\"ATI_AUTH_TOKEN\"]")...), "[[tools]]")
	g.manifest("program", program)
	login := s.startCallerKeysAgent(t, g.proxy.dir)
	g.start()
	g.waitUntilReady()

	// The login of the command reads these keys, and nothing else.
	for path, want := range map[string]int{"secret/data/ati-callers/sandbox:1": 200, "secret/metadata/ati-callers?list=true": 403, "secret/data/ati-keys": 403, "ati/guard": 403} {
		if got := s.request(login, "GET", path, nil); got != want {
			t.Errorf("with the login of the command, GET %s returns %d, want %d", path, got, want)
		}
	}

	// Two callers with two tokens each, at the same time, while their keys are cached and read again.
	var callers sync.WaitGroup
	for i := range 4 {
		name := fmt.Sprint(i%2 + 1)
		token := s.mint("r", data{"agent_id": "sandbox:" + name})
		callers.Go(func() {
			for call := range 20 {
				if got := g.usedKey("search", token); got != "key-of-"+name {
					t.Errorf("call %d of sandbox:%s uses %s", call, name, got)
				}
				time.Sleep(200 * time.Millisecond)
			}
		})
	}
	callers.Wait()

	// So have the programs that the proxy starts.
	for _, name := range []string{"1", "2", "1"} {
		if got := g.usedKey("program", s.mint("r", data{"agent_id": "sandbox:" + name})); got != "key-of-"+name {
			t.Errorf("the program of sandbox:%s gets %s", name, got)
		}
	}

	// A caller without a key gets an error.
	if status, body := g.call(s.mint("r", data{"agent_id": "sandbox:3"}), "search"); status != http.StatusBadGateway || !strings.Contains(body, "no key for the caller") {
		t.Errorf("a caller without a key gets %d %s", status, body)
	}

	// A replaced key and a deleted one are noticed when the cached one ends.
	tokens := []string{s.mint("r", data{"agent_id": "sandbox:1"}), s.mint("r", data{"agent_id": "sandbox:2"})}
	for i, token := range tokens {
		began := time.Now()
		first := g.usedKey("search", token)
		read := time.Since(began)
		again := g.usedKey("search", token)
		t.Logf("a call took %v, and %v with the cached key", read.Round(time.Millisecond), (time.Since(began) - read).Round(time.Millisecond))
		if want := fmt.Sprint("key-of-", i+1); first != want || again != want {
			t.Errorf("before the change, sandbox:%d uses %s and %s", i+1, first, again)
		}
	}
	put("ati-callers/sandbox:1", "key-of-1-later")
	if _, err := s.client(s.root).Logical().Delete("secret/metadata/ati-callers/sandbox:2"); err != nil {
		t.Fatal(err)
	}
	changed := time.Now()
	pollFor(t, time.Minute, "the changed keys", func() error {
		if got := []string{g.usedKey("search", tokens[0]), g.usedKey("search", tokens[1])}; got[0] != "key-of-1-later" || got[1] != "none" {
			return fmt.Errorf("the calls use %v", got)
		}
		return nil
	})
	t.Logf("the changed keys are used after %v", time.Since(changed).Round(100*time.Millisecond))
}

// Someone who can sign tokens outside Vault chooses the path of the key with the subject. The
// check in the manifest of docs/api-keys.md keeps the subject from leaving the caller's path.
func TestInteropGuard_KeyPerCallerSubjects(t *testing.T) {
	t.Parallel()
	s := startGuarded(t, false, time.Hour)
	s.vault(s.root, "secrets", "enable", "-path=secret", "-version=2", "kv")
	for path, key := range map[string]string{"ati-callers/sandbox:2": "key-of-2", "ati-keys": "key-of-all"} {
		s.write(s.root, "secret/data/"+path, data{"data": data{"search": key}})
	}
	g := s.newGuard(t, data{"api_keys": "secret/data/ati-keys"})
	g.env = []string{"PATH=" + pathWithVault(t)}
	page := []string{"https://search.example.com", startKeyUpstream(t), "https://vault.example.com", s.addr, "timeout_secs = 5", "timeout_secs = 60"}
	g.manifest("search", apiKeysBlock(t, "[provider]", page...))
	g.manifest("unchecked", apiKeysBlock(t, "[provider]", append(page, "*[!A-Za-z0-9:_-]*", "none", " 2>/dev/null", "", `name = "search"`, `name = "unchecked"`, "tool:search", "tool:unchecked")...))
	s.startCallerKeysAgent(t, g.proxy.dir)
	g.start()
	g.waitUntilReady()

	type result struct{ checked, unchecked, minted string }
	got := map[string]result{}
	want := map[string]result{
		"sandbox:2":              {"key-of-2", "key-of-2", "200"},
		"sandbox:3/../sandbox:2": {"none", "key-of-2", "400"},
		"sandbox:2/.":            {"none", "key-of-2", "200"},
		"../ati-keys":            {"none", "none", "400"}, // which the policy denies
		"${search}":              {"none", "none, and the caller sees key-of-all", "400"},
		"":                       {"none", "none", "400"},
		"-help":                  {"none", "none", "400"},
		"sandbox:2?version=1":    {"none", "none", "400"},
	}
	for sub := range want {
		token := s.signAs(t, sub)
		got[sub] = result{g.usedKey("search", token), g.usedKey("unchecked", token), fmt.Sprint(s.request(s.root, "PUT", "ati/creds/r", data{"agent_id": sub}))}
	}
	if diff := gocmp.Diff(want, got, gocmp.AllowUnexported(result{})); diff != "" {
		t.Errorf("the keys by subject (-want +got):\n%s", diff)
	}
}

// usedKey calls a tool, and returns the API key that its upstream got.
func (g *guard) usedKey(tool, token string) string {
	status, body := g.call(token, tool)
	key := regexp.MustCompile(`key-of-[a-z0-9-]+`).FindString(body)
	switch {
	case status == http.StatusOK:
		return key
	case status != http.StatusBadGateway:
		return fmt.Sprintf("%d %s", status, body)
	case key != "":
		return "none, and the caller sees " + key
	}
	return "none"
}

// signAs returns a token that was signed outside Vault with the mount's HS256 key.
func (s *server) signAs(t testing.TB, sub string) string {
	t.Helper()
	now := time.Now().Unix()
	return signRaw(t, s.proxyEnv()["ATI_JWT_SECRET"], `{"alg":"HS256","typ":"JWT"}`,
		fmt.Sprintf(`{"sub":%q,"aud":"ati-proxy","iat":%d,"exp":%d,"scope":"*","iss":"ati-orchestrator","jti":"x"}`, sub, now, now+3600))
}

// startCallerKeysAgent starts Agent with the policy and the configuration in
// docs/api-keys.md, and returns the Vault token that it has written to the home of the
// proxy's user.
func (s *server) startCallerKeysAgent(t testing.TB, home string) (token string) {
	t.Helper()
	_, policy, _ := strings.Cut(string(readFile(t, "../docs/api-keys.md")), "vault policy write ati-caller-keys - <<'HCL'\n")
	policy, _, _ = strings.Cut(policy, "HCL\n")
	if err := s.client(s.root).Sys().PutPolicy("ati-caller-keys", policy); err != nil {
		t.Fatal(err)
	}
	dir, file := s.appRole("ati-caller-keys", "ati-caller-keys"), filepath.Join(home, ".vault-token")
	config := filepath.Join(t.TempDir(), "agent.hcl")
	text := apiKeysBlock(t, "vault {", "https://vault.example.com", s.addr, "/etc/vault-agent", dir, "/var/lib/ati", home)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	a := s.startAgent(config)
	poll(t, "Agent has written its token", func() error {
		b, err := os.ReadFile(file)
		if token = string(b); err != nil {
			return fmt.Errorf("%w\n%s", err, a.out)
		}
		return nil
	})
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the Vault token has mode %v (%v)", info.Mode(), err)
	}
	return token
}
