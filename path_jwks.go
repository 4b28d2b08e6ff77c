package atisecrets

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"

	"github.com/go-jose/go-jose/v4"
	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"vault-plugin-secrets-ati/ati"
)

func pathJWKS(b *backend) []*framework.Path {
	return []*framework.Path{{
		Pattern:      "jwks",
		DisplayAttrs: &framework.DisplayAttributes{OperationPrefix: operationPrefix},
		Operations: map[logical.Operation]framework.OperationHandler{
			logical.ReadOperation: b.operation(anyNode, b.pathJWKSRead, "Read the public keys as a JWK Set.", "read", "jwks",
				framework.Response{Description: "JWK Set (RFC 7517), without Vault's response envelope", MediaType: "application/json", Fields: map[string]*framework.FieldSchema{
					"keys": {Type: framework.TypeSlice, Required: true, Description: "Public keys, as JWKs."},
				}}),
		},
		HelpSynopsis:    pathJWKSHelpSyn,
		HelpDescription: pathJWKSHelpDesc,
	}}
}

func (b *backend) pathJWKSRead(ctx context.Context, req *logical.Request, _ *framework.FieldData) (*logical.Response, error) {
	cfg, err := b.getConfig(ctx, req.Storage)
	if err != nil {
		return nil, err
	}
	set := jose.JSONWebKeySet{Keys: []jose.JSONWebKey{}}
	if cfg != nil {
		for _, k := range cfg.Live(b.now()) {
			if k.Algorithm == ati.ES256 {
				set.Keys = append(set.Keys, jose.JSONWebKey{Key: k.Key.Public(), Use: "sig", Algorithm: ati.ES256, KeyID: k.Key.Fingerprint()})
			}
		}
	}
	body, err := json.Marshal(set)
	if err != nil {
		return nil, fmt.Errorf("encode JWK Set: %w", err)
	}
	return &logical.Response{Data: map[string]any{
		logical.HTTPContentType: "application/json",
		logical.HTTPRawBody:     body,
		logical.HTTPStatusCode:  http.StatusOK,
	}}, nil
}

const pathJWKSHelpSyn = `Read the public keys as a JWK Set.`

const pathJWKSHelpDesc = `
For MCP servers that receive tokens from the proxy and verify them. The set has the
current, the pending, and the previous version of the key, if they are for ES256.
The kid is the key's fingerprint, and is in the header of the tokens. With HS256
the set is empty. No Vault token is required.

    $ curl -sS "$VAULT_ADDR/v1/ati/jwks"
`
