// Command go is an orchestrator that gets a sandbox's environment from Vault, in
// place of AtiOrchestrator.provision_sandbox of ati-client. VAULT_ADDR and
// VAULT_TOKEN say where Vault is and who asks.
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

// provisionSandbox returns ATI_PROXY_URL and ATI_SESSION_TOKEN for a sandbox.
// It may use fewer tools than the role grants; without tools, all of them.
func provisionSandbox(ctx context.Context, vault *api.Client, role, agentID string, tools []string) (map[string]any, error) {
	request := map[string]any{"agent_id": agentID, "format": "env"}
	if len(tools) > 0 {
		request["tools"] = tools
	}
	answer, err := vault.Logical().WriteWithContext(ctx, "ati/creds/"+role, request)
	if err != nil {
		return nil, fmt.Errorf("provision sandbox %s: %w", agentID, err)
	}
	if answer == nil { // from a standby whose active node is just going
		return nil, fmt.Errorf("provision sandbox %s: Vault answered with nothing; ask again", agentID)
	}
	for _, warning := range answer.Warnings {
		log.Printf("Vault warns: %s", warning)
	}
	return answer.Data, nil
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
	// Here the sandbox would be started with env.
	if err := json.NewEncoder(os.Stdout).Encode(env); err != nil {
		log.Fatal(err)
	}
}
