//go:build interop

package test

import (
	"encoding/json"
	"testing"

	"vault-plugin-secrets-ati/ati"
)

// The Python example takes its namespace from VAULT_NAMESPACE. Vault's community edition
// ignores the namespace of a request.
func TestInteropOrchestrators_Namespace(t *testing.T) {
	t.Parallel()
	s := startVault(t)
	s.register("v0.1.0")
	prefix := ""
	if tested.name == openBao.name {
		prefix = "ns1/"
		s.write(s.root, "sys/namespaces/ns1", nil)
	}
	s.write(s.root, prefix+"sys/mounts/ati", data{"type": pluginName})
	s.write(s.root, prefix+"ati/config", data{"proxy_url": "https://ati.example.com"})
	s.write(s.root, prefix+"ati/roles/researcher", data{"tools": "web_search", "allowed_agent_ids": "sandbox:*"})
	key := parseSecret(t, s.read(s.root, prefix+"ati/proxy-env").Data["ATI_JWT_SECRET"].(string))

	out := s.runIn("VAULT_NAMESPACE", "ns1", s.root, "env", "PYTHONPATH="+requireEnv(t, "HVAC"), "python3", "../examples/python/orchestrator.py", "researcher", "sandbox:abc")
	var env map[string]string
	if err := json.Unmarshal([]byte(out), &env); err != nil {
		t.Fatal(err)
	}
	if c, err := ati.ValidateToken(env["ATI_SESSION_TOKEN"], key); err != nil || c.Subject != "sandbox:abc" {
		t.Errorf("%+v (%v)", c, err)
	}
}
