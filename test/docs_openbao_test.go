//go:build docs

package test

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"
)

// TestDocsOpenBao runs the commands in the section OpenBao of docs/install-production.md,
// which set up a server with examples/openbao/openbao.hcl. Whatever the server under test
// is, it uses OpenBao. Then it restarts the server, which must unseal itself and return
// tokens without the files that the page deletes, and upgrades the plugin.
func TestDocsOpenBao(t *testing.T) {
	t.Parallel()
	binary := openBaoBinary(t)
	work, err := filepath.EvalSymlinks(t.TempDir()) // OpenBao rejects a plugin directory with symbolic links
	if err != nil {
		t.Fatal(err)
	}
	release, bin := filepath.Join(work, "release"), filepath.Join(work, "bin")
	for _, dir := range []string{release, bin} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, target := range map[string]string{
		filepath.Join(bin, "bao"):          binary,
		filepath.Join(release, pluginName): buildPlugin(t, "v0.1.0"),
	} {
		if err := os.Symlink(target, name); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.CopyFS(filepath.Join(release, "examples"), os.DirFS("../examples")); err != nil {
		t.Fatal(err)
	}
	port := freePort(t)
	next, err := strconv.Atoi(port)
	if err != nil {
		t.Fatal(err)
	}
	etc := filepath.Join(work, "etc")
	place := []string{
		"/etc/openbao", etc, "/opt/openbao", filepath.Join(work, "opt"), "/var/log/openbao", filepath.Join(work, "log"),
		"127.0.0.1:8200", "127.0.0.1:" + port, "127.0.0.1:8201", fmt.Sprintf("127.0.0.1:%d", next+1),
		// Keep the secrets that the page deletes.
		"rm -r /etc/openbao/secrets\n", "mv " + filepath.Join(etc, "secrets") + " " + work + "\n",
	}
	config := filepath.Join(release, "examples/openbao/openbao.hcl")
	if err := os.WriteFile(config, []byte(strings.NewReplacer(place...).Replace(string(readFile(t, config)))), 0o644); err != nil {
		t.Fatal(err)
	}
	environment := []string{"PATH=" + bin + ":" + os.Getenv("PATH"), "HOME=" + work}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	runCommands(ctx, t, release, environment, commandsFor(examples(t, "../docs/install-production.md"), "TestDocsOpenBao"), place...)
	environment = append(os.Environ(), environment...)
	log := filepath.Join(work, "log", "server.log")

	bao := func(token string, args ...string) (string, error) {
		cmd := exec.CommandContext(ctx, binary, args...)
		cmd.Env = append(environment, "BAO_ADDR=https://127.0.0.1:"+port, "BAO_CACERT="+filepath.Join(etc, "tls/cert.pem"), "BAO_TOKEN="+token)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	server := exec.Command(binary, "server", "-config="+filepath.Join(etc, "openbao.hcl"))
	server.Env = environment
	output, err := os.OpenFile(log, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer output.Close()
	server.Stdout, server.Stderr = output, output
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	stop := func() {
		_ = server.Process.Signal(os.Interrupt)
		_ = server.Wait()
	}
	defer stop()
	secret := func(name string) string { return string(readFile(t, filepath.Join(work, "secrets", name))) }
	var login string
	poll(t, "the orchestrator logs in after the restart", func() (err error) {
		login, err = bao("", "write", "-field=token", "auth/approle/login", "role_id=orchestrator", "secret_id="+secret("orchestrator-secret-id"))
		if err != nil {
			err = fmt.Errorf("%w: %s", err, login)
		}
		return err
	})
	response, err := bao(login, "write", "-format=json", "ati/creds/researcher", "agent_id=sandbox:1")
	if err != nil {
		t.Fatalf("%v\n%s", err, response)
	}
	var creds api.Secret
	if err := json.Unmarshal([]byte(response), &creds); err != nil {
		t.Fatal(err)
	}
	if c := claims(t, secret("ati-secret"), &creds); c.Subject != "sandbox:1" {
		t.Errorf("the token is for %q", c.Subject)
	}
	for _, args := range [][]string{{"read", "ati/proxy-env"}, {"read", "ati/config"}, {"list", "ati/roles"}, {"policy", "list"}} {
		if out, err := bao(login, args...); err == nil || !strings.Contains(out, "Code: 403") {
			t.Errorf("as the orchestrator, bao %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}

	// The administrator upgrades the plugin with a second plugin block.
	upgrade := buildPlugin(t, "v0.2.0")
	if err := os.WriteFile(filepath.Join(etc, "plugins", filepath.Base(upgrade)), readFile(t, upgrade), 0o755); err != nil {
		t.Fatal(err)
	}
	config = filepath.Join(etc, "openbao.hcl")
	text := string(readFile(t, config)) + fmt.Sprintf(`
plugin "secret" %q {
  command   = %q
  version   = "v0.2.0"
  sha256sum = "%x"
}`, pluginName, filepath.Base(upgrade), sha256.Sum256(readFile(t, upgrade)))
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := server.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	admin, err := bao("", "write", "-field=token", "auth/userpass/login/admin", "password="+secret("admin-password"))
	if err != nil {
		t.Fatalf("%v\n%s", err, admin)
	}
	poll(t, "v0.2.0 is registered", func() error {
		out, err := bao(admin, "secrets", "tune", "-plugin-version=v0.2.0", "ati")
		if err != nil {
			err = fmt.Errorf("%w: %s", err, out)
		}
		return err
	})
	if out, err := bao(admin, "plugin", "reload", "-scope=global", "-plugin="+pluginName); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	poll(t, "v0.2.0 runs", func() error {
		out, err := bao(admin, "read", "-field=running_plugin_version", "sys/mounts/ati")
		if err == nil && out != "v0.2.0" {
			err = errors.New(out)
		}
		return err
	})

	stop()
	for _, file := range []string{"audit.log", "server.log"} {
		text := string(readFile(t, filepath.Join(work, "log", file)))
		if file == "audit.log" && (!strings.Contains(text, `"path":"ati/config"`) || !strings.Contains(text, `"path":"ati/creds/researcher"`)) {
			t.Errorf("the audit log lacks the first start's or the orchestrator's requests")
		}
		for name, value := range map[string]string{
			"secret": secret("ati-secret"), "secret ID": secret("orchestrator-secret-id"), "password": secret("admin-password"),
			"Vault token": login, "admin's Vault token": admin, "token": creds.Data["token"].(string),
		} {
			if strings.Contains(text, value) {
				t.Errorf("%s contains the %s", file, name)
			}
		}
	}
}

// openBaoBinary returns the server under test if it is OpenBao, or else OpenBao from its
// Python package.
func openBaoBinary(t *testing.T) string {
	t.Helper()
	if tested.name == openBao.name {
		return vaultBin
	}
	find := exec.Command("../scripts/vault-bin.sh", "openbao")
	find.Stderr = os.Stderr
	out, err := find.Output()
	if err != nil {
		t.Fatalf("this test needs OpenBao: %v; set VAULT_BIN to a bao binary, or install pip", err)
	}
	return strings.TrimSpace(string(out))
}
