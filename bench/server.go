package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/vault/api"
)

const (
	engineName = "vault-plugin-secrets-ati"
	echoName   = "echo"
)

// product is Vault or OpenBao.
type product struct {
	name, version string
	binary        string

	// Settings of the configuration and of the listener; see docs/compatibility.md.
	settings, listener string
}

// detectProduct returns the product of a binary.
func detectProduct(binary string) (product, error) {
	out, err := exec.Command(binary, "version").Output() // such as "Vault v1.21.0 (…), built …"
	if err != nil {
		return product{}, fmt.Errorf("%s version: %w", binary, err)
	}
	name, rest, _ := strings.Cut(string(out), " v")
	version, _, _ := strings.Cut(strings.TrimSpace(rest), " ")
	p := product{name: name, version: strings.TrimSuffix(version, ","), binary: binary, settings: "disable_mlock = true"}
	if name == "OpenBao" {
		p.settings, p.listener = "unsafe_allow_api_audit_creation = true", "max_request_json_strings = 1100"
	}
	return p, nil
}

func (p product) String() string { return p.name + " " + p.version }

// server is a node of a temporary server with raft storage.
type server struct {
	*api.Client
	product
	dir         string
	cmd         *exec.Cmd
	http        *http.Client
	connections int
	audited     bool
	unsealKey   string
}

// startServer starts a new server, or one that joins the cluster of another.
func startServer(ctx context.Context, o options, p product, leader *server) (s *server, err error) {
	dir, err := os.MkdirTemp("", "ati-bench")
	if err != nil {
		return nil, err
	}
	if dir, err = filepath.EvalSymlinks(dir); err != nil { // Vault rejects a symbolic link in plugin_directory
		return nil, err
	}
	// All measurements share one client with the maximum number of connections.
	s = &server{product: p, dir: dir, http: &http.Client{Timeout: time.Minute, Transport: &http.Transport{MaxConnsPerHost: o.connections, MaxIdleConnsPerHost: o.connections}}, connections: o.connections}
	if err := s.start(ctx, leader); err != nil {
		return nil, errors.Join(err, s.stop())
	}
	return s, nil
}

func (s *server) start(ctx context.Context, leader *server) error {
	address, err := s.writeConfig(leader)
	if err != nil {
		return err
	}
	if s.cmd, err = startProcess(s.log(), nil, s.binary, "server", "-config="+s.config()); err != nil {
		return err
	}
	c := api.DefaultConfig()
	c.Address, c.AgentAddress = "http://"+address, ""
	c.MaxRetries = 0
	if s.Client, err = api.NewClient(c); err != nil {
		return err
	}
	s.ClearNamespace()
	if leader != nil {
		return s.join(ctx, leader)
	}
	return s.initialize(ctx)
}

// writeConfig writes the configuration of the server and returns its address.
func (s *server) writeConfig(leader *server) (address string, err error) {
	for _, sub := range []string{"raft", "plugins"} {
		if err := os.Mkdir(filepath.Join(s.dir, sub), 0o700); err != nil {
			return "", err
		}
	}
	address, err1 := freeAddress()
	cluster, err2 := freeAddress()
	if err := errors.Join(err1, err2); err != nil {
		return "", err
	}
	join := ""
	if leader != nil {
		join = fmt.Sprintf("retry_join {\n    leader_api_addr = %q\n  }", leader.Address())
	}
	text := fmt.Sprintf(`
storage "raft" {
  path    = %q
  node_id = %q
  %s
}
listener "tcp" {
  address         = %q
  cluster_address = %q
  tls_disable     = true
  %s
}
api_addr             = "http://%s"
cluster_addr         = "http://%s"
plugin_directory     = %q
raw_storage_endpoint = true
log_level            = "warn"
%s
`, filepath.Join(s.dir, "raft"), filepath.Base(s.dir), join, address, cluster, s.listener, address, cluster, filepath.Join(s.dir, "plugins"), s.settings)
	return address, os.WriteFile(s.config(), []byte(text), 0o600)
}

func (s *server) config() string { return filepath.Join(s.dir, "vault.hcl") }

func (s *server) log() string { return filepath.Join(s.dir, "vault.log") }

func (s *server) initialize(ctx context.Context) error {
	var keys *api.InitResponse
	err := poll(ctx, func() (err error) {
		keys, err = s.Sys().InitWithContext(ctx, &api.InitRequest{SecretShares: 1, SecretThreshold: 1})
		return err
	})
	if err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		text, _ := os.ReadFile(s.log())
		return fmt.Errorf("start %s: %w\n%s", s.name, err, text)
	}
	s.SetToken(keys.RootToken)
	s.unsealKey = keys.Keys[0]
	if _, err := s.Sys().UnsealWithContext(ctx, s.unsealKey); err != nil {
		return err
	}
	return poll(ctx, func() error {
		health, err := s.Sys().HealthWithContext(ctx)
		if err == nil && health.Standby {
			err = errors.New("node is not active")
		}
		return err
	})
}

// join unseals a standby of a leader, and waits until it has the leader's mounts.
func (s *server) join(ctx context.Context, leader *server) error {
	s.SetToken(leader.Token())
	for _, try := range []func() error{
		func() error { _, err := s.Sys().UnsealWithContext(ctx, leader.unsealKey); return err },
		func() error { _, err := s.Sys().ListMountsWithContext(ctx); return err },
	} {
		if err := poll(ctx, try); err != nil {
			return fmt.Errorf("join the cluster: %w", err)
		}
	}
	return nil
}

// poll calls try until it succeeds, for up to 30 seconds.
func poll(ctx context.Context, try func() error) (err error) {
	for range 300 {
		if err = try(); err == nil || ctx.Err() != nil {
			return err
		}
		time.Sleep(100 * time.Millisecond)
	}
	return err
}

func (s *server) stop() error {
	stopProcess(s.cmd)
	return os.RemoveAll(s.dir)
}

// install copies a plugin to the plugin directory.
func (s *server) install(name, binary string) ([]byte, error) {
	b, err := os.ReadFile(binary)
	if err != nil {
		return nil, err
	}
	return b, os.WriteFile(filepath.Join(s.dir, "plugins", name), b, 0o700)
}

// register installs a plugin and registers it.
func (s *server) register(ctx context.Context, name, binary string) error {
	b, err := s.install(name, binary)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(b)
	return s.Sys().RegisterPluginWithContext(ctx, &api.RegisterPluginInput{Name: name, Type: api.PluginTypeSecrets, Command: name, SHA256: hex.EncodeToString(sum[:])})
}

// audit enables or disables a file audit device.
func (s *server) audit(ctx context.Context, on bool) error {
	if on == s.audited {
		return nil
	}
	s.audited = on
	if !on {
		return s.Sys().DisableAuditWithContext(ctx, "file")
	}
	return s.Sys().EnableAuditWithOptionsWithContext(ctx, "file", &api.EnableAuditOptions{Type: "file", Options: map[string]string{"file_path": filepath.Join(s.dir, "audit.log")}})
}

// pluginProcess returns the ID of the process that serves all mounts of a plugin.
func (s *server) pluginProcess(name string) (int, error) {
	commands, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return 0, err
	}
	for _, command := range commands {
		args, err := os.ReadFile(command)
		if err == nil && strings.HasPrefix(string(args), filepath.Join(s.dir, "plugins", name)) {
			return strconv.Atoi(filepath.Base(filepath.Dir(command)))
		}
	}
	return 0, fmt.Errorf("no process of plugin %s in /proc", name)
}

// cpuTime is the CPU time of two processes.
type cpuTime struct{ plugin, server time.Duration }

// cpu returns the CPU time that the server and, unless its name is empty, a plugin have
// used.
func (s *server) cpu(plugin string) (u cpuTime, err error) {
	if u.server, err = cpuOf(s.cmd.Process.Pid); err != nil || plugin == "" {
		return u, err
	}
	pid, err := s.pluginProcess(plugin)
	if err != nil {
		return u, err
	}
	u.plugin, err = cpuOf(pid)
	return u, err
}
