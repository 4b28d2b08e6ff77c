// Command echo is a Vault plugin that returns a constant response. Its requests
// cost only what the plugin protocol of Vault costs.
package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/hashicorp/vault/api"
	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"
	"github.com/hashicorp/vault/sdk/plugin"
)

func main() {
	meta := &api.PluginAPIClientMeta{}
	if err := meta.FlagSet().Parse(os.Args[1:]); err != nil {
		fail(err)
	}
	if err := plugin.ServeMultiplex(&plugin.ServeOpts{BackendFactoryFunc: factory, TLSProviderFunc: api.VaultPluginTLSProvider(meta.GetTLSConfig())}); err != nil {
		fail(err)
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

func factory(ctx context.Context, conf *logical.BackendConfig) (logical.Backend, error) {
	read := func(_ context.Context, req *logical.Request, _ *framework.FieldData) (*logical.Response, error) {
		return &logical.Response{Data: response(req.ID)}, nil
	}
	lease := &framework.Secret{Type: "echo", Revoke: func(context.Context, *logical.Request, *framework.FieldData) (*logical.Response, error) {
		return nil, nil
	}}
	leased := func(_ context.Context, req *logical.Request, _ *framework.FieldData) (*logical.Response, error) {
		resp := lease.Response(response(req.ID), map[string]any{"jti": req.ID, "expires": "2027-01-15T09:00:00Z"})
		resp.Secret.TTL, resp.Secret.MaxTTL = time.Hour, time.Hour
		return resp, nil
	}
	// For operations that are declared as Callbacks, the SDK does not look up the replication
	// state, which is a second round trip.
	bare := func(path string, f framework.OperationFunc) *framework.Path {
		p := framework.Path{
			Pattern: path + framework.GenericNameRegex("name"),
			Fields: map[string]*framework.FieldSchema{
				"name": {Type: framework.TypeString}, "agent_id": {Type: framework.TypeString}, "tools": {Type: framework.TypeCommaStringSlice},
				"ttl": {Type: framework.TypeDurationSecond}, "rate": {Type: framework.TypeKVPairs},
			},
		}
		p.Callbacks = map[logical.Operation]framework.OperationFunc{logical.ReadOperation: f, logical.UpdateOperation: f} //lint:ignore SA1019 see above
		return &p
	}
	b := &framework.Backend{
		BackendType: logical.TypeLogical,
		Paths: []*framework.Path{{
			Pattern:    "creds/" + framework.GenericNameRegex("name"),
			Fields:     map[string]*framework.FieldSchema{"name": {Type: framework.TypeString}},
			Operations: map[logical.Operation]framework.OperationHandler{logical.ReadOperation: &framework.PathOperation{Callback: read}},
		}, bare("bare/", read), bare("leased/", leased)},
		Secrets: []*framework.Secret{lease},
	}
	return b, b.Setup(ctx, conf)
}

// response returns the fields that the engine returns for a single read.
func response(id string) map[string]any {
	return map[string]any{
		"token":       token,
		"jti":         id,
		"sub":         "sandbox:abc123",
		"scope":       scope,
		"aud":         "ati-proxy",
		"proxy_url":   "https://ati.example.com",
		"token_ttl":   3600,
		"expires_at":  1_800_003_600,
		"key_version": 1,
	}
}

const scope = "tool:web_search tool:github:* skill:summarize help"

// token has the length of the token that the engine issues for a single read. The
// benchmark checks this before it starts.
var token = strings.Repeat("e", 423)
