//go:build interop

package test

import (
	"bytes"
	"encoding/json"
	"testing"

	"github.com/google/go-cmp/cmp"

	"vault-plugin-secrets-ati/ati"
)

// The Python package takes its namespace from VAULT_NAMESPACE. Vault's community edition
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

	s.write(s.root, prefix+"sys/policies/acl/orchestrator", data{"policy": string(readFile(t, "../examples/policies/orchestrator.hcl")) + `
path "ati/validate" { capabilities = ["update"] }`})
	token := s.write(s.root, prefix+"auth/token/create", data{"policies": []string{"orchestrator"}}).Auth.ClientToken
	for _, client := range pythonClients {
		run := python(t, client, "-c", `
import json, ati_vault
orchestrator = ati_vault.VaultOrchestrator(role="researcher")
env = orchestrator.provision_sandbox(agent_id="sandbox:abc")
print(json.dumps([env, orchestrator.validate_token(env["ATI_SESSION_TOKEN"]).sub, orchestrator.revoke(agent_id="sandbox:abc")["agent_id"]]))`)
		run.Env = append(run.Env, "VAULT_ADDR="+s.addr, "VAULT_TOKEN="+token, "VAULT_NAMESPACE=ns1")
		var stderr bytes.Buffer
		run.Stderr = &stderr
		out, err := run.Output()
		if err != nil {
			t.Fatalf("%s: %v\n%s", client, err, stderr.String())
		}
		var env struct{ ATI_PROXY_URL, ATI_SESSION_TOKEN string }
		var sub, revoked string
		if err := json.Unmarshal(out, &[]any{&env, &sub, &revoked}); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]string{"https://ati.example.com", "sandbox:abc", "sandbox:abc"}, []string{env.ATI_PROXY_URL, sub, revoked}); diff != "" {
			t.Errorf("%s (-want +got):\n%s", client, diff)
		}
		if c, err := ati.ValidateToken(env.ATI_SESSION_TOKEN, key); err != nil || c.Subject != "sandbox:abc" {
			t.Errorf("%s: %+v (%v)", client, c, err)
		}
	}
}
