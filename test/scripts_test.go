package test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"vault-plugin-secrets-ati/ati"
)

// runScript runs a script in scripts/ and returns its output.
func runScript(t testing.TB, env []string, script string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), filepath.Join("..", "scripts", script), args...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) } // lets its trap run
	cmd.WaitDelay = 30 * time.Second
	cmd.Env = append(append(os.Environ(), "VAULT_BIN="+vaultBin, "HOME="+t.TempDir()), env...)
	cmd.Env = append(cmd.Env, goEnv(t)...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s: %v\n%s", script, err, out.String())
	}
	return out.String()
}

// goEnv returns the variables that keep Go's caches in place when HOME is changed.
func goEnv(t testing.TB) []string {
	t.Helper()
	out, err := exec.Command("go", "env", "GOCACHE", "GOMODCACHE", "GOPATH").Output()
	if err != nil {
		t.Fatal(err)
	}
	dirs := strings.Split(strings.TrimSpace(string(out)), "\n")
	return []string{"GOCACHE=" + dirs[0], "GOMODCACHE=" + dirs[1], "GOPATH=" + dirs[2]}
}

func TestDemo(t *testing.T) {
	t.Parallel()
	out := runScript(t, nil, "demo.sh")
	for _, want := range []string{
		"$ vault plugin register \\\n    -sha256=",
		"$ vault secrets enable -path=ati vault-plugin-secrets-ati\nSuccess!",
		"$ vault write ati/config proxy_url=https://ati.example.com\n",
		"Vault generated a new signing key",
		"$ vault write ati/roles/researcher tools=web_search,arxiv:search \\\n    skills=summarize rate=tool:web_search=30/hour ttl=1h max_ttl=4h \\\n    description='reads the web and arXiv'\nSuccess!",
		"$ vault read ati/creds/researcher\nKey",
		"scope          tool:web_search tool:arxiv:search skill:summarize\nsub            token-orchestrator\n",
		"scope          tool:web_search\nsub            token-orchestrator\n",
		"token_ttl      10m\n",
		"$ vault read ati/creds/researcher tools=web_search ttl=10m format=env\nKey                  Value\n---                  -----\nATI_PROXY_URL        https://ati.example.com\nATI_SESSION_TOKEN    eyJ",
		"* scope \"tool:github:delete_repo\" is not granted by role \"researcher\"\n",
		"* unknown parameter \"tool\" (did you mean \"tools\"?); supported parameters: ",
		"$ vault read ati/creds/admin\nError reading ati/creds/admin: Error making API request.\n",
		"$ vault read ati/config\nError reading ati/config: Error making API request.\n",
		"rate           map[tool:web_search:30/hour]\nscope          tool:web_search tool:arxiv:search skill:summarize\nsub            token-orchestrator\nvalid          true\n",
		"matched_scopes    [tool:arxiv:search]\n",
		"allowed           false\nmatched_rates     map[]\nmatched_scopes    []\n",
		"# Done. This server is stopped now; to keep one running, use make dev.\n",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("make demo does not print %q", want)
		}
	}
	if got := strings.Count(out, "permission denied"); got != 2 {
		t.Errorf("%d requests were denied, want 2", got)
	}
	addr := regexp.MustCompile(`VAULT_ADDR=(http://\S+)`).FindStringSubmatch(out)
	if addr == nil {
		t.Fatal("make demo does not print VAULT_ADDR")
	}
	if resp, err := http.Get(addr[1] + "/v1/sys/health"); err == nil {
		resp.Body.Close()
		t.Error("the demo's server is still running")
	}
	if t.Failed() {
		t.Log(out)
	}
}

// make dev starts a server, or rebuilds and reloads the plugin if it is running. make
// dev-stop stops the server.
func TestDev(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "dev")
	env := []string{"DEV_DIR=" + dir}
	t.Cleanup(func() {
		// If the test ends before it has stopped the server.
		stop := exec.Command(filepath.Join("..", "scripts", "dev.sh"), "stop")
		stop.Env = append(os.Environ(), env...)
		_ = stop.Run()
	})
	out := runScript(t, append(env, "ATI_JWT_SECRET="), "dev.sh")
	export := func(name string) string {
		m := regexp.MustCompile(`(?m)^export .*\b` + name + `=(\S+)`).FindStringSubmatch(out)
		if m == nil {
			t.Fatalf("dev.sh does not export %s:\n%s", name, out)
		}
		return m[1]
	}
	s := &server{t: t, addr: export("VAULT_ADDR"), root: export("VAULT_TOKEN"), dir: t.TempDir()}
	secret := s.read(s.root, "ati/proxy-env").Data["ATI_JWT_SECRET"].(string)
	if strings.Contains(out, secret) {
		t.Error("make dev prints the secret")
	}
	c := claims(t, secret, s.read(s.root, "ati/creds/researcher"))
	if c.Scope != "tool:web_search tool:arxiv:search skill:summarize" {
		t.Errorf("scope %q", c.Scope)
	}
	sum := func() string { return s.read(s.root, "sys/mounts/ati").Data["running_sha256"].(string) }
	first := sum()

	// A build tag gives the rebuilt plugin a different SHA-256.
	again := runScript(t, append(env, "GOFLAGS=-buildvcs=false -tags=rebuilt"), "dev.sh")
	if !strings.Contains(again, "export VAULT_ADDR="+s.addr+" ") || !strings.Contains(again, "Success! Reloaded plugin") {
		t.Errorf("the second make dev prints:\n%s", again)
	}
	b := readFile(t, filepath.Join(dir, "plugins", pluginName))
	if want := fmt.Sprintf("%x", sha256.Sum256(b)); sum() != want || first == want {
		t.Errorf("the server runs the plugin %s, the rebuilt one is %s, the first one was %s", sum(), want, first)
	}
	claims(t, secret, s.read(s.root, "ati/creds/researcher"))
	for _, file := range []string{"env", "vault.log"} {
		b := readFile(t, filepath.Join(dir, file))
		if strings.Contains(string(b), secret) {
			t.Errorf("%s contains the secret", file)
		}
	}

	runScript(t, env, "dev.sh", "stop")
	if resp, err := http.Get(s.addr + "/v1/sys/health"); err == nil {
		resp.Body.Close()
		t.Error("after make dev-stop, the server is still running")
	}
}

// vault-bin.sh --any uses vault or bao in PATH before it builds one. A VAULT_BIN that cannot
// be executed is an error.
func TestVaultBin(t *testing.T) {
	t.Parallel()
	find := func(env []string, args ...string) (string, error) {
		cmd := exec.Command(filepath.Join("..", "scripts", "vault-bin.sh"), args...)
		cmd.Env = append(append(os.Environ(), "VAULT_BIN="), env...)
		out, err := cmd.Output()
		return strings.TrimSpace(string(out)), err
	}
	for _, name := range []string{"vault", "bao"} {
		dir := t.TempDir()
		if err := os.Symlink(vaultBin, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
		// Only the directories that the script itself needs.
		got, err := find([]string{"PATH=" + dir + ":/usr/bin:/bin"}, "--any")
		if want := filepath.Join(dir, name); err != nil || got != want {
			t.Errorf("with %s in PATH: %q, %v", name, got, err)
		}
	}
	if got, err := find([]string{"VAULT_BIN=/nonexistent/vault"}); err == nil {
		t.Errorf("a missing VAULT_BIN gives %q", got)
	}
}

// Before 1.27, Go may report the end of a target's time as a failure. The script ignores
// that, and prints all other failures and fails.
func TestFuzzScript(t *testing.T) {
	t.Parallel()
	const execs = "fuzz: elapsed: 6s, execs: 8910 (2884/sec), new interesting: 0 (total: 343)\n"
	dir := t.TempDir()
	fake := "#!/bin/sh\nif [ \"$2\" = -list ]; then echo FuzzIt; exit; fi\nprintf %s \"$GO_PRINTS\"\nexit \"$GO_EXITS\"\n"
	if err := os.WriteFile(filepath.Join(dir, "go"), []byte(fake), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		prints, exits string
		verdict       string
		fails         bool
	}{
		"nothing found":            {execs + "PASS\n", "0", "ok", false},
		"the end of its time":      {execs + "--- FAIL: FuzzIt (30.02s)\n    context deadline exceeded\nFAIL\nexit status 1\n", "1", "ok", false},
		"a failing input":          {execs + "--- FAIL: FuzzIt (12.57s)\n    --- FAIL: FuzzIt (0.00s)\n        fuzz_test.go:1: wrong\n    \n    Failing input written to testdata/fuzz/FuzzIt/1\nFAIL\n", "1", "FAILED", true},
		"an input past a deadline": {execs + "--- FAIL: FuzzIt (12.57s)\n    --- FAIL: FuzzIt (0.00s)\n        fuzz_test.go:1: wrong\n    context deadline exceeded\nFAIL\n", "1", "FAILED", true},
		"a process that ended":     {execs + "--- FAIL: FuzzIt (3.00s)\n    fuzzing process hung or terminated unexpectedly: exit status 2\nFAIL\n", "1", "FAILED", true},
		"a build that fails":       {execs + "# vault-plugin-secrets-ati\n./fuzz_test.go:1:1: undefined: x\nFAIL\n", "1", "FAILED", true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cmd := exec.CommandContext(t.Context(), "../scripts/fuzz.sh")
			cmd.Env = append(os.Environ(), "PATH="+dir+":"+os.Getenv("PATH"), "GO_PRINTS="+c.prints, "GO_EXITS="+c.exits, "FUZZ_TIME=6s")
			out, err := cmd.CombinedOutput()
			if (err != nil) != c.fails {
				t.Errorf("the script returns %v", err)
			}
			want := "2 fuzz targets, 3 s each\n"
			for _, pkg := range []string{".", "./ati"} {
				want += fmt.Sprintf("%-6s %-6s %-20s %12s executions\n", c.verdict, pkg, "FuzzIt", "8910")
				if c.fails {
					want += c.prints
				}
			}
			if diff := cmp.Diff(want, string(out)); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

func TestPlugin_Version(t *testing.T) {
	t.Parallel()
	for _, version := range []string{"v0.1.0", "v0.2.0"} {
		out, err := exec.Command(buildPlugin(t, version), "--version").CombinedOutput()
		if want := pluginName + " " + version + "\n"; err != nil || string(out) != want {
			t.Errorf("--version prints %q (%v), want %q", out, err, want)
		}
	}
	// Without Vault, it prints that it is a plugin.
	out, err := exec.Command(buildPlugin(t, "v0.1.0")).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "This binary is a plugin") {
		t.Errorf("without Vault: %v\n%s", err, out)
	}
}

// The Vault CLI completes the names of roles.
func TestCLI_CompletesRoleNames(t *testing.T) {
	t.Parallel()
	s, _ := startEngine(t)
	for _, name := range []string{"researcher", "ci"} {
		s.write(s.root, "ati/roles/"+name, data{"tools": "x"})
	}
	for line, want := range map[string]string{
		"vault read at":                   "ati/\n",
		"vault read ati/roles/":           "ati/roles/ci\nati/roles/researcher\n",
		"vault delete ati/roles/":         "ati/roles/ci\nati/roles/researcher\n",
		"vault read ati/roles/researcher": "ati/roles/researcher\n",
	} {
		cmd := exec.Command(vaultBin)
		cmd.Env = append(os.Environ(), "COMP_LINE="+line, "VAULT_ADDR="+s.addr, "VAULT_TOKEN="+s.root)
		out, err := cmd.Output()
		if err != nil || string(out) != want {
			t.Errorf("the completions of %q are %q (%v), want %q", line, out, err, want)
		}
	}
}

// Agent's configuration in examples/kubernetes/vault-agent.yaml works, with an auth method
// that needs no cluster.
func TestExamples_KubernetesAgent(t *testing.T) {
	t.Parallel()
	manifest := readFile(t, "../examples/kubernetes/vault-agent.yaml")
	_, text, ok := strings.Cut(string(manifest), "\n  agent.hcl: |\n")
	text, _, more := strings.Cut(text, "\n---\n")
	if !ok || !more {
		t.Fatal("the manifest has no agent.hcl")
	}
	s, secret := startEngine(t)
	s.write(s.root, "ati/roles/sandbox", data{"tools": "web_search", "subject": "pod"})
	rules := readFile(t, "../examples/policies/sandbox.hcl")
	dir := t.TempDir()
	login, rendered := filepath.Join(dir, "login"), filepath.Join(dir, "session_token")
	if err := os.WriteFile(login, []byte(s.policy("ati-sandbox", string(rules)+`
path "auth/token/lookup-self" { capabilities = ["read"] }`)), 0o600); err != nil {
		t.Fatal(err)
	}
	replaced := 0
	for old, replacement := range map[string]string{`method "kubernetes"`: `method "token_file"`, `role = "ati-sandbox"`: fmt.Sprintf("token_file_path = %q", login), "/run/ati/session_token": rendered} {
		replaced += strings.Count(text, old)
		text = strings.ReplaceAll(text, old, replacement)
	}
	if replaced != 3 {
		t.Fatalf("replaced %d of 3 texts in\n%s", replaced, text)
	}
	config := filepath.Join(dir, "agent.hcl")
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	agent := exec.CommandContext(ctx, vaultBin, "agent", "-exit-after-auth", "-config="+config)
	agent.Env = append(os.Environ(), "VAULT_ADDR="+s.addr, "ATI_PROXY_URL=https://ati.example.com", "HOME="+dir)
	if out, err := agent.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	token := readFile(t, rendered)
	s.leaks.remember(token)
	key := parseSecret(t, secret)
	if c, err := ati.ValidateToken(string(token), key); err != nil || c.Subject != "pod" {
		t.Errorf("Agent renders a token with %+v (%v)", c, err)
	}
}

// Every file in examples/ names, in its first lines, a test in this package that runs or
// checks it, or states that no test does.
func TestExamples_NameTheirTest(t *testing.T) {
	t.Parallel()
	sources := testSources(t)
	statement := regexp.MustCompile(`(?:Run|Used|Checked) by (Test\w+)(?: and (Test\w+))?|Not run by a test`)
	files := 0
	err := filepath.WalkDir(filepath.Join("..", "examples"), func(path string, entry os.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		files++
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		head := string(b[:min(len(b), 2500)])
		m := statement.FindStringSubmatch(head)
		if m == nil {
			t.Errorf("%s does not state whether a test runs it", path)
			return nil
		}
		for _, name := range m[1:] {
			if name != "" && !strings.Contains(sources, "func "+name+"(") {
				t.Errorf("%s names %s, which does not exist", path, name)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if files < 10 {
		t.Errorf("found only %d examples", files)
	}
}
