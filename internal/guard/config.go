// Package guard is a gate in front of an ATI proxy. It runs the proxy as its child,
// takes the keys and revocations of a mount from Vault, and forwards only requests with
// a valid token that is not revoked.
package guard

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"reflect"
	"strings"
	"time"

	"github.com/hashicorp/go-secure-stdlib/parseutil"
)

// Config is the configuration of a guard. Each key of the file has a flag of the same
// name, in which a dot separates the levels, such as vault.mount.
type Config struct {
	Listen  string `json:"listen" help:"address for sandboxes, such as 0.0.0.0:8090, unless systemd passes a socket"`
	Admin   string `json:"admin" help:"loopback address for /ready and /metrics; empty for none"`
	TLSCert string `json:"tls_cert" help:"file with the certificate chain in PEM, for HTTPS"`
	TLSKey  string `json:"tls_key" help:"file with the private key of the certificate in PEM"`

	ATI     string            `json:"ati" help:"the ati program"`
	ATIDir  string            `json:"ati_dir" help:"directory of the proxy, with its manifests"`
	ATIArgs []string          `json:"ati_args" help:"further options of ati proxy, as a JSON array or separated by spaces"`
	Env     map[string]string `json:"env" help:"further environment variables of the proxy, as a JSON object"`
	User    string            `json:"user" help:"user that the proxy runs as; requires root"`
	APIKeys string            `json:"api_keys" help:"API path in Vault with the API keys of the tools, such as secret/data/ati-keys: a field search is ATI_KEY_search"`

	Vault VaultConfig `json:"vault"`

	Poll      Duration `json:"poll" help:"time between two reads of the keys and revocations"`
	MaxStale  Duration `json:"max_stale" help:"time without a successful read after which every request is rejected"`
	Drain     Duration `json:"drain" help:"time that requests in flight have when the guard or the proxy ends"`
	Hold      Duration `json:"hold" help:"time that requests wait for a proxy that restarts"`
	Forward   string   `json:"forward" help:"local: sign tokens again, with a key that only the guard and its proxy have; original: forward them as they are, to a proxy for each ES256 key"`
	AccessLog string   `json:"access_log" help:"file for a line of JSON per request, - for standard output, empty for none"`
}

// VaultConfig says where the keys are. The environment variables of Vault's CLI, such as
// VAULT_ADDR and VAULT_CACERT, apply where it is silent.
type VaultConfig struct {
	Address   string     `json:"address" help:"address of Vault, such as https://vault.example.com"`
	Namespace string     `json:"namespace" help:"namespace of the mount and of the login"`
	Mount     string     `json:"mount" help:"mount of the engine"`
	Auth      AuthConfig `json:"auth"`
}

// AuthConfig is one way to log in to Vault.
type AuthConfig struct {
	AppRole    AppRoleConfig    `json:"approle"`
	Kubernetes KubernetesConfig `json:"kubernetes"`
	TokenFile  string           `json:"token_file" help:"file with a Vault token, which another program renews"`
}

// AppRoleConfig is a login by AppRole.
type AppRoleConfig struct {
	RoleIDFile   string `json:"role_id_file" help:"file with the role ID"`
	SecretIDFile string `json:"secret_id_file" help:"file with the secret ID"`
	Mount        string `json:"mount" help:"mount of the AppRole method"`
}

// KubernetesConfig is a login by the pod's service account.
type KubernetesConfig struct {
	Role  string `json:"role" help:"role of the Kubernetes method"`
	Mount string `json:"mount" help:"mount of the Kubernetes method"`
}

// Duration is a duration in Vault's forms: a string such as "5s", or seconds.
type Duration time.Duration

// UnmarshalJSON implements json.Unmarshaler.
func (d *Duration) UnmarshalJSON(b []byte) error {
	var raw any
	if err := json.Unmarshal(b, &raw); err != nil {
		return err
	}
	parsed, err := parseutil.ParseDurationSecond(raw)
	if err != nil || parsed < 0 || raw == "" {
		return fmt.Errorf(`%s is not a duration, such as "5s"`, b)
	}
	*d = Duration(parsed)
	return nil
}

func (d Duration) String() string { return time.Duration(d).String() }

// Values of Config.Forward.
const (
	forwardLocal    = "local"
	forwardOriginal = "original"
)

func defaults() *Config {
	return &Config{
		Listen: "127.0.0.1:8090", Admin: "127.0.0.1:8091", ATI: "ati", ATIDir: "/var/lib/ati",
		Vault: VaultConfig{Mount: "ati", Auth: AuthConfig{AppRole: AppRoleConfig{Mount: "approle"}, Kubernetes: KubernetesConfig{Mount: "kubernetes"}}},
		Poll:  Duration(5 * time.Second), MaxStale: Duration(time.Hour), Drain: Duration(2 * time.Minute), Hold: Duration(5 * time.Second), Forward: forwardLocal,
	}
}

// ParseConfig returns the configuration of a command line: a file, with -config, and
// flags, which win.
func ParseConfig(flags *flag.FlagSet, args []string) (*Config, error) {
	cfg, fromFlags := defaults(), map[string]string{}
	file := flags.String("config", "", "configuration `file`, in JSON")
	register(flags, reflect.ValueOf(cfg).Elem(), "", fromFlags)
	if err := flags.Parse(args); err != nil {
		return nil, err
	}
	if flags.NArg() > 0 {
		return nil, fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	if *file != "" {
		text, err := os.ReadFile(*file)
		if err != nil {
			return nil, err
		}
		if err := decodeStrictly(text, cfg); err != nil {
			return nil, fmt.Errorf("%s: %w", *file, err)
		}
	}
	for name, value := range fromFlags {
		if err := set(reflect.ValueOf(cfg).Elem(), name, value); err != nil {
			return nil, fmt.Errorf("-%s: %w", name, err)
		}
	}
	return cfg, cfg.check()
}

func decodeStrictly(text []byte, cfg *Config) error {
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.DisallowUnknownFields()
	if err := dec.Decode(cfg); err != nil {
		return err
	}
	if dec.More() {
		return errors.New("must be one JSON object")
	}
	return nil
}

// register declares a flag for each key.
func register(flags *flag.FlagSet, cfg reflect.Value, prefix string, values map[string]string) {
	for i := range cfg.NumField() {
		field := cfg.Type().Field(i)
		name := prefix + field.Tag.Get("json")
		if field.Type.Kind() == reflect.Struct {
			register(flags, cfg.Field(i), name+".", values)
			continue
		}
		usage := field.Tag.Get("help")
		if value := fmt.Sprint(cfg.Field(i).Interface()); value != "" && value != "[]" && value != "map[]" {
			usage += " (default " + value + ")"
		}
		flags.Func(name, usage, func(value string) error { values[name] = value; return nil })
	}
}

// set sets a key to the value of its flag.
func set(cfg reflect.Value, name, value string) error {
	first, rest, nested := strings.Cut(name, ".")
	for i := range cfg.NumField() {
		if cfg.Type().Field(i).Tag.Get("json") != first {
			continue
		}
		field := cfg.Field(i)
		if nested {
			return set(field, rest, value)
		}
		switch to := field.Addr().Interface().(type) {
		case *string:
			*to = value
			return nil
		case *Duration:
			quoted, _ := json.Marshal(value)
			return to.UnmarshalJSON(quoted)
		case *[]string:
			if !strings.HasPrefix(value, "[") {
				*to = strings.Fields(value)
				return nil
			}
		}
		return json.Unmarshal([]byte(value), field.Addr().Interface())
	}
	return fmt.Errorf("no such key")
}

func (c *Config) check() error {
	switch {
	case (c.TLSCert == "") != (c.TLSKey == ""):
		return errors.New("tls_cert and tls_key belong together")
	case c.Poll < Duration(time.Second):
		return fmt.Errorf("poll %v: must be at least 1s", c.Poll)
	case c.MaxStale < c.Poll:
		return fmt.Errorf("max_stale %v: must not be shorter than poll", c.MaxStale)
	case c.Forward != forwardLocal && c.Forward != forwardOriginal:
		return fmt.Errorf("forward %q: must be local or original", c.Forward)
	case c.Vault.Mount == "":
		return errors.New("vault.mount is empty")
	}
	for name := range c.Env {
		if strings.HasPrefix(name, "ATI_JWT_") {
			return fmt.Errorf("env: %s is set by the guard", name)
		}
	}
	if !isLoopback(c.Admin) {
		return fmt.Errorf("admin %q: must be a loopback address with a port, such as 127.0.0.1:8091", c.Admin)
	}
	return c.Vault.Auth.check()
}

// isLoopback reports whether an address is empty or one of this host only.
func isLoopback(address string) bool {
	host, _, err := net.SplitHostPort(address)
	ip := net.ParseIP(host)
	return address == "" || err == nil && ip != nil && ip.IsLoopback()
}

func (a AuthConfig) check() error {
	roleID, secretID := a.AppRole.RoleIDFile != "", a.AppRole.SecretIDFile != ""
	ways := 0
	for _, used := range []bool{roleID || secretID, a.Kubernetes.Role != "", a.TokenFile != ""} {
		if used {
			ways++
		}
	}
	switch {
	case ways != 1:
		return fmt.Errorf("vault.auth has %d ways to log in: set one of approle, kubernetes, and token_file", ways)
	case roleID != secretID:
		return errors.New("vault.auth.approle needs both role_id_file and secret_id_file")
	}
	return nil
}
