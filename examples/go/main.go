// Command go is an orchestrator that requests a sandbox's environment variables from
// Vault. It replaces AtiOrchestrator.provision_sandbox of ati-client. Set VAULT_ADDR
// and VAULT_TOKEN.
//
//	go run ./examples/go researcher sandbox:abc123 web_search
//
// Run by TestInteropOrchestrators.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log"
	"os"

	"github.com/hashicorp/vault/api"
)

// provisionSandbox returns ATI_PROXY_URL and ATI_SESSION_TOKEN for a sandbox. The
// token grants the given tools, which the role must grant. If tools is empty, the token
// grants everything that the role does.
func provisionSandbox(ctx context.Context, vault *api.Client, role, agentID string, tools []string) (map[string]any, error) {
	request := map[string]any{"agent_id": agentID, "format": "env"}
	if len(tools) > 0 {
		request["tools"] = tools
	}
	secret, err := vault.Logical().WriteWithContext(ctx, "ati/creds/"+role, request)
	if err != nil {
		return nil, fmt.Errorf("provision sandbox %s: %w", agentID, err)
	}
	if secret == nil { // a standby may return this while its active node shuts down
		return nil, fmt.Errorf("provision sandbox %s: empty response from Vault; retry", agentID)
	}
	for _, warning := range secret.Warnings {
		log.Printf("warning from Vault: %s", warning)
	}
	return secret.Data, nil
}

func main() {
	if len(os.Args) < 3 {
		log.Fatal("usage: go run ./examples/go ROLE AGENT_ID [TOOL...]")
	}
	vault, err := api.NewClient(api.DefaultConfig())
	if err != nil {
		log.Fatal(err)
	}
	env, err := provisionSandbox(context.Background(), vault, os.Args[1], os.Args[2], os.Args[3:])
	if err != nil {
		log.Fatal(err)
	}
	// A real orchestrator would start the sandbox with env here.
	if err := json.NewEncoder(os.Stdout).Encode(env); err != nil {
		log.Fatal(err)
	}
}
