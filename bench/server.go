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

// server is a temporary Vault server with raft storage.
type server struct {
	*api.Client
	dir         string
	cmd         *exec.Cmd
	http        *http.Client
	connections int
	audited     bool
}

func startServer(ctx context.Context, o options) (s *server, err error) {
	dir, err := os.MkdirTemp("", "ati-bench")
	if err != nil {
		return nil, err
	}
	if dir, err = filepath.EvalSymlinks(dir); err != nil { // Vault rejects a symbolic link in plugin_directory
		return nil, err
	}
	// All measurements share one client with the maximum number of connections.
	s = &server{dir: dir, http: &http.Client{Timeout: time.Minute, Transport: &http.Transport{MaxConnsPerHost: o.connections, MaxIdleConnsPerHost: o.connections}}, connections: o.connections}
	if err := s.start(ctx, o.vault); err != nil {
		return nil, errors.Join(err, s.stop())
	}
	return s, nil
}

func (s *server) start(ctx context.Context, vault string) error {
	address, err := s.writeConfig()
	if err != nil {
		return err
	}
	if s.cmd, err = startProcess(s.log(), nil, vault, "server", "-config="+s.config()); err != nil {
		return err
	}
	c := api.DefaultConfig()
	c.Address, c.AgentAddress = "http://"+address, ""
	c.MaxRetries = 0
	if s.Client, err = api.NewClient(c); err != nil {
		return err
	}
	s.ClearNamespace()
	return s.initialize(ctx)
}

// writeConfig writes the configuration of the server and returns its address.
func (s *server) writeConfig() (address string, err error) {
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
	text := fmt.Sprintf(`
storage "raft" {
  path    = %q
  node_id = "bench"
}
listener "tcp" {
  address         = %q
  cluster_address = %q
  tls_disable     = true
}
api_addr         = "http://%s"
cluster_addr     = "http://%s"
plugin_directory = %q
disable_mlock    = true
log_level        = "warn"
`, filepath.Join(s.dir, "raft"), address, cluster, address, cluster, filepath.Join(s.dir, "plugins"))
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
		return fmt.Errorf("start Vault: %w\n%s", err, text)
	}
	s.SetToken(keys.RootToken)
	if _, err := s.Sys().UnsealWithContext(ctx, keys.Keys[0]); err != nil {
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

// register copies a plugin to the plugin directory and registers it.
func (s *server) register(ctx context.Context, name, binary string) error {
	b, err := os.ReadFile(binary)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(s.dir, "plugins", name), b, 0o700); err != nil {
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
type cpuTime struct{ plugin, vault time.Duration }

// cpu returns the CPU time that Vault and, unless its name is empty, a plugin have
// used.
func (s *server) cpu(plugin string) (u cpuTime, err error) {
	if u.vault, err = cpuOf(s.cmd.Process.Pid); err != nil || plugin == "" {
		return u, err
	}
	pid, err := s.pluginProcess(plugin)
	if err != nil {
		return u, err
	}
	u.plugin, err = cpuOf(pid)
	return u, err
}
