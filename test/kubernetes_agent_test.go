//go:build interop && kubernetes

package test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Agent, with the configuration in the example's ConfigMap, logs in with the pod's service
// account, and renews the token that ati run reads for each call. The proxy is behind a guard.
func testKubernetesAgent(t *testing.T, c *kube) {
	s := startGuarded(t, false, time.Hour)
	c.connect(s)
	c.allowAgents(s)
	c.allowGuards(s)
	g := c.startGuard(s)
	s.write(s.root, "ati/config", data{"proxy_url": g.addr})
	// Agent renews the token every 2.4 to 2.8 seconds, and its own every few.
	s.write(s.root, "ati/roles/sandbox", data{"ttl": "8s"})
	s.write(s.root, "auth/kubernetes/role/ati-sandbox", data{"token_ttl": "6s", "token_max_ttl": "10s"})

	field := func(path string) string {
		return c.kubectl("create", "--dry-run=client", "-f", "../examples/kubernetes/vault-agent.yaml", "--output=jsonpath="+path)
	}
	if got := field("{.spec.automountServiceAccountToken} {.spec.containers[*].volumeMounts[*].name}"); strings.TrimSpace(got) != "false ati" {
		t.Errorf("the agent's container must have only the volume ati: %s", got)
	}
	audience := field("{.spec.volumes[*].projected.sources[*].serviceAccountToken.audience}")
	account, run := serviceAccountDir(t, c.token("agents", "agent", "--audience="+audience)), t.TempDir()
	config := field(`{.data.agent\.hcl}`)
	for old, replacement := range map[string]string{
		`role = "ati-sandbox"`: fmt.Sprintf("role = \"ati-sandbox\"\n token_path = %q", filepath.Join(account, "token")), "/run/ati": run, `"40m"`: `"3s"`,
	} {
		if !strings.Contains(config, old) {
			t.Fatalf("the ConfigMap does not contain %s", old)
		}
		config = strings.ReplaceAll(config, old, replacement)
	}
	hcl := filepath.Join(t.TempDir(), "agent.hcl")
	if err := os.WriteFile(hcl, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	a := s.startAgent(hcl, "ATI_PROXY_URL="+g.addr)
	file := filepath.Join(run, "session_token")
	pollFor(t, time.Minute, "Agent has written the token", func() error {
		if _, err := os.Stat(file); err != nil {
			return fmt.Errorf("%w\n%s", err, a.out)
		}
		return nil
	})
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o644 {
		t.Errorf("the token has mode %v (%v)", info.Mode(), err)
	}
	seen, calls := map[string]bool{}, 0
	pollFor(t, 2*time.Minute, "calls with ten tokens", func() error {
		cmd := exec.Command(requireEnv(t, "ATI_BIN"), "run", "web_search")
		cmd.Env = []string{"HOME=" + t.TempDir(), "PATH=" + os.Getenv("PATH"), "ATI_PROXY_URL=" + g.addr, "ATI_SESSION_TOKEN_FILE=" + file}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("call %d, after %d tokens: %v\n%s\n%s", calls, len(seen), err, out, a.out)
		}
		calls++
		if seen[string(readFile(t, file))] = true; len(seen) < 10 {
			return fmt.Errorf("%d tokens", len(seen))
		}
		return nil
	})
	logins := strings.Count(a.out.String(), "authentication successful")
	t.Logf("%d calls with %d tokens of %d logins, none failed", calls, len(seen), logins)
	if logins < 2 {
		t.Errorf("Agent logged in %d times:\n%s", logins, a.out)
	}
}
