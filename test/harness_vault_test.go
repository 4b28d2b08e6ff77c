// Package test tests the engine on a real Vault server, which runs the built plugin
// registered with its SHA-256.
package test

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"flag"
	"fmt"
	"net"
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

	"github.com/hashicorp/vault/api"
)

const pluginName = "vault-plugin-secrets-ati"

var (
	vaultBin   string
	pluginDirs string // one plugin binary per version that was built
)

func TestMain(m *testing.M) {
	flag.Parse()
	if testing.Short() {
		fmt.Println("not run because of -short: these tests need a Vault server")
		os.Exit(0)
	}
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(code)
}

func run(m *testing.M) (int, error) {
	find := exec.Command("../scripts/vault-bin.sh")
	find.Stderr = os.Stderr
	out, err := find.Output()
	if err != nil {
		return 1, fmt.Errorf("find or build Vault: %w", err)
	}
	vaultBin = strings.TrimSpace(string(out))
	if tested, err = detectProduct(vaultBin); err != nil {
		return 1, err
	}
	fmt.Printf("testing with %s %s\n", tested.name, tested.version)
	// Unset variables that are meant for another Vault server, such as VAULT_NAMESPACE.
	for _, v := range os.Environ() {
		if name, _, _ := strings.Cut(v, "="); strings.HasPrefix(name, "VAULT_") || strings.HasPrefix(name, "BAO_") {
			if err := os.Unsetenv(name); err != nil {
				return 1, err
			}
		}
	}
	dir, err := os.MkdirTemp("", "ati-plugins")
	if err != nil {
		return 1, err
	}
	defer os.RemoveAll(dir)
	if pluginDirs, err = filepath.EvalSymlinks(dir); err != nil {
		return 1, err
	}
	return m.Run(), nil
}

var builds sync.Map // path → *sync.Once

// buildPlugin builds a version of the plugin, once for each set of build tags, and returns
// its path.
func buildPlugin(t testing.TB, version string, tags ...string) string {
	t.Helper()
	path := filepath.Join(pluginDirs, strings.Join(append([]string{pluginName, version}, tags...), "-"))
	once, _ := builds.LoadOrStore(path, new(sync.Once))
	once.(*sync.Once).Do(func() {
		build := exec.Command("../scripts/build.sh", path, version)
		if len(tags) > 0 {
			build.Env = append(os.Environ(), "GOFLAGS="+os.Getenv("GOFLAGS")+" -tags="+strings.Join(tags, ","))
		}
		if out, err := build.CombinedOutput(); err != nil {
			t.Errorf("build the plugin: %v\n%s", err, out)
		}
	})
	if t.Failed() {
		t.FailNow()
	}
	return path
}

// server is a Vault server for one test, unsealed, with an audit file.
type server struct {
	t         testing.TB
	addr      string // for clients
	apiAddr   string // for other nodes of its cluster; usually the same
	netns     *namespace
	root      string
	unsealKey string
	dir       string // with plugins, server.log and audit.log
	audit     string
	logLevel  string
	storage   string   // storage stanza of the configuration
	settings  string   // further settings, which depend on the product
	tags      []string // with which its plugin is built
	process   *os.Process
	exited    chan struct{}
	leaks     leaks
}

// option changes a server before it starts.
type option func(*server)

// standbyReads lets a standby respond to reads. Those of Vault's community edition forward
// them nonetheless.
func standbyReads(s *server) { s.settings = tested.settings }

// shortRotation gives a server a plugin that allows a rotation_period of 3m.
func shortRotation(s *server) { s.tags = []string{"short_rotation"} }

// startVault starts a server with log level trace, so that tests can search the log for
// secrets.
func startVault(t testing.TB) *server { return startVaultLogging(t, "trace") }

func startVaultLogging(t testing.TB, logLevel string) *server {
	t.Helper()
	return newServer(t, logLevel, `storage "inmem" {}`)
}

// startRaftVault starts a server whose storage survives a restart.
func startRaftVault(t testing.TB) *server {
	t.Helper()
	path := filepath.Join(t.TempDir(), "raft")
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	return newServer(t, "trace", fmt.Sprintf("storage \"raft\" {\n  path = %q\n  node_id = \"one\"\n}", path))
}

func newServer(t testing.TB, logLevel, storage string) *server {
	t.Helper()
	s := launch(t, logLevel, storage, nil)
	s.initialize()
	return s
}

// launch starts a server that is not initialized and has not joined a cluster. If netns
// is not nil, the server runs in that namespace. The options change the server before it
// starts.
func launch(t testing.TB, logLevel, storage string, netns *namespace, options ...option) *server {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	s := &server{t: t, dir: dir, audit: filepath.Join(dir, "audit.log"), logLevel: logLevel, storage: storage, settings: tested.settings + "\n" + tested.noStandbyReads, netns: netns}
	for _, change := range options {
		change(s)
	}
	t.Cleanup(func() { s.leaks.checkFiles(t, dir) }) // after the server has ended
	if err := os.Mkdir(s.pluginDir(), 0o755); err != nil {
		t.Fatal(err)
	}
	// If Vault is killed, its plugin exits about a second later.
	t.Cleanup(func() {
		for _, pid := range s.pluginProcesses() {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	})
	for attempt := 0; ; attempt++ {
		if s.start(freePort(t)) {
			return s
		}
		if attempt == 4 {
			t.Fatalf("Vault did not start:\n%s", s.log())
		}
	}
}

// initialize initializes and unseals the server as the first node of its cluster.
func (s *server) initialize() {
	s.t.Helper()
	keys, err := s.client("").Sys().Init(&api.InitRequest{SecretShares: 1, SecretThreshold: 1})
	if err != nil {
		s.t.Fatal(err)
	}
	s.root, s.unsealKey = keys.RootToken, keys.Keys[0]
	s.unseal()
	if err := s.client(s.root).Sys().EnableAuditWithOptions("file", &api.EnableAuditOptions{Type: "file", Options: map[string]string{"file_path": s.audit}}); err != nil {
		s.t.Fatal(err)
	}
}

func shellQuote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

var nextPort atomic.Int32

// freePort returns a port that was just free, and that no other test of this run gets.
// The next port, which a Vault server uses for its cluster, was free as well. Both are
// below the range from which the system assigns ports.
func freePort(t testing.TB) string {
	t.Helper()
	nextPort.CompareAndSwap(0, int32(11000+2*(os.Getpid()%2000)))
	for range 1000 {
		port := 11000 + (nextPort.Add(2)-11000)%8000
		first, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			continue
		}
		second, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port+1))
		first.Close()
		if err != nil {
			continue
		}
		second.Close()
		return strconv.Itoa(int(port))
	}
	t.Fatal("no port is free")
	return ""
}

// start starts the server on a port and reports whether it responds. It returns false
// if the port was taken in the meantime.
func (s *server) start(port string) bool {
	s.t.Helper()
	host, socket, command := "127.0.0.1", "", []string{vaultBin}
	if s.netns != nil {
		host, command = s.netns.address, append(s.netns.enter(), vaultBin)
		socket = fmt.Sprintf("listener \"unix\" {\n  address = %q\n}", s.netns.socket)
	}
	address := net.JoinHostPort(host, port)
	s.apiAddr = "http://" + address
	if s.addr = s.apiAddr; s.netns != nil {
		s.addr = "unix://" + s.netns.socket
	}
	next, err := strconv.Atoi(port)
	if err != nil {
		s.t.Fatal(err)
	}
	config := filepath.Join(s.dir, "vault.hcl")
	hcl := fmt.Sprintf(`
%s
listener "tcp" {
  address     = %q
  tls_disable = true
  %s
}
%s
%s
api_addr         = %q
cluster_addr     = %q
plugin_directory = %q
log_level        = %q
`, s.storage, address, tested.listener, socket, s.settings, s.apiAddr, fmt.Sprintf("http://%s:%d", host, next+1), s.pluginDir(), s.logLevel)
	if err := os.WriteFile(config, []byte(hcl), 0o600); err != nil {
		s.t.Fatal(err)
	}
	log, err := os.OpenFile(filepath.Join(s.dir, "server.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		s.t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(command[0], append(command[1:], "server", "-config="+config)...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	exited := make(chan struct{})
	s.process, s.exited = cmd.Process, exited
	go func() { _ = cmd.Wait(); close(exited) }()
	s.t.Cleanup(func() {
		_ = cmd.Process.Signal(os.Interrupt)
		select {
		case <-exited:
		case <-time.After(20 * time.Second):
			_ = cmd.Process.Kill()
			<-exited
		}
	})
	for range 300 {
		select {
		case <-exited:
			return false
		case <-time.After(100 * time.Millisecond):
		}
		probe := s.client("")
		probe.SetClientTimeout(5 * time.Second)
		if _, err := probe.Sys().SealStatus(); err != nil {
			continue
		}
		// If another server responded on this port, ours exits.
		select {
		case <-exited:
			return false
		case <-time.After(200 * time.Millisecond):
			return true
		}
	}
	return false
}

// crash kills the server, restarts it, and unseals it.
func (s *server) crash() {
	s.t.Helper()
	s.kill()
	s.restart()
	s.unseal()
}

func (s *server) kill() {
	_ = s.process.Kill()
	<-s.exited
}

func (s *server) restart() {
	s.t.Helper()
	if !s.start(s.apiAddr[strings.LastIndexByte(s.apiAddr, ':')+1:]) {
		s.t.Fatalf("Vault did not restart:\n%s", s.log())
	}
}

func (s *server) pluginDir() string { return filepath.Join(s.dir, "plugins") }

func (s *server) log() string {
	b := readFile(s.t, filepath.Join(s.dir, "server.log"))
	return string(b)
}

func (s *server) unseal() {
	s.t.Helper()
	if _, err := s.client("").Sys().Unseal(s.unsealKey); err != nil {
		s.t.Fatal(err)
	}
	poll(s.t, "Vault is active", func() error {
		health, err := s.client("").Sys().Health()
		if err == nil && (health.Sealed || health.Standby) {
			err = fmt.Errorf("sealed is %v, standby is %v", health.Sealed, health.Standby)
		}
		return err
	})
}

// register installs a version of the plugin and registers its SHA-256.
func (s *server) register(version string) {
	s.t.Helper()
	command, sum := s.install(version)
	s.vault(s.root, "plugin", "register", "-sha256="+sum, "-command="+command, "-version="+version, "secret", pluginName)
}

// install writes a version of the plugin to the plugin directory.
func (s *server) install(version string) (command, sha256sum string) {
	s.t.Helper()
	b := readFile(s.t, buildPlugin(s.t, version, s.tags...))
	command = pluginName + "-" + version
	if err := os.WriteFile(filepath.Join(s.pluginDir(), command), b, 0o755); err != nil {
		s.t.Fatal(err)
	}
	sum := sha256.Sum256(b)
	return command, hex.EncodeToString(sum[:])
}

// startEngine starts a server with the engine mounted at ati/ and configured.
func startEngine(t testing.TB) (s *server, secret string) {
	t.Helper()
	s = startVault(t)
	return s, s.mountEngine()
}

func (s *server) mountEngine() (secret string) {
	s.t.Helper()
	s.register("v0.1.0")
	s.vault(s.root, "secrets", "enable", "-path=ati", pluginName)
	raw := make([]byte, 32)
	if _, err := rand.Read(raw); err != nil {
		s.t.Fatal(err)
	}
	secret = hex.EncodeToString(raw)
	s.vault(s.root, "write", "ati/config", "proxy_url=https://ati.example.com", "secret="+secret)
	return secret
}

// pluginProcesses returns the IDs of this server's plugin processes.
func (s *server) pluginProcesses() []int {
	s.t.Helper()
	return processes(s.t, func(args string) bool { return strings.HasPrefix(args, s.pluginDir()) })
}

// processes returns the IDs of all processes whose command line matches. A zero byte
// follows each argument.
func processes(t testing.TB, match func(args string) bool) []int {
	t.Helper()
	commands, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil || len(commands) == 0 {
		t.Fatal("cannot list processes: this test requires Linux, with /proc")
	}
	var pids []int
	for _, command := range commands {
		args, err := os.ReadFile(command)
		if err != nil || !match(string(args)) {
			continue // exited, or not readable
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(command)))
		if err != nil {
			t.Fatal(err)
		}
		pids = append(pids, pid)
	}
	return pids
}

// pluginProcess waits until the plugin has exactly one process besides those that have
// exited or are about to, and returns its ID.
func (s *server) pluginProcess(exited map[int]bool) (pid int) {
	s.t.Helper()
	poll(s.t, "the plugin has one process", func() error {
		pids := slices.DeleteFunc(s.pluginProcesses(), func(pid int) bool { return exited[pid] })
		if len(pids) != 1 {
			return fmt.Errorf("processes: %v", pids)
		}
		pid = pids[0]
		return nil
	})
	return pid
}

// list returns the keys of a LIST.
func (s *server) list(path string) []any {
	s.t.Helper()
	secret, err := s.client(s.root).Logical().List(path)
	if err != nil {
		s.t.Fatal(err)
	}
	return secret.Data["keys"].([]any)
}
