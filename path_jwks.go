package atisecrets

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"vault-plugin-secrets-ati/ati"
	"vault-plugin-secrets-ati/internal/keyring"
)

// jwk is the public key of an ES256 key (RFC 7517, and RFC 7518, section 6.2).
type jwk struct {
	KeyType   string `json:"kty"`
	Use       string `json:"use"`
	Algorithm string `json:"alg"`
	ID        string `json:"kid"`
	Curve     string `json:"crv"`
	X         string `json:"x"`
	Y         string `json:"y"`
}

func pathJWKS(b *backend) []*framework.Path {
	return []*framework.Path{{
		Pattern:      "jwks",
		DisplayAttrs: &framework.DisplayAttributes{OperationPrefix: operationPrefix},
		Operations: map[logical.Operation]framework.OperationHandler{
			logical.ReadOperation: operation(b.pathJWKSRead, "Read the public keys as a JWK Set.", "read", "jwks",
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
	keys := []jwk{}
	if cfg != nil {
		for _, k := range cfg.Live(b.now()) {
			if k.Algorithm != ati.ES256 {
				continue
			}
			key, err := publicJWK(k)
			if err != nil {
				return nil, err
			}
			keys = append(keys, key)
		}
	}
	body, err := json.Marshal(map[string][]jwk{"keys": keys})
	if err != nil {
		return nil, fmt.Errorf("encode JWK Set: %w", err)
	}
	return &logical.Response{Data: map[string]any{
		logical.HTTPContentType: "application/json",
		logical.HTTPRawBody:     body,
		logical.HTTPStatusCode:  http.StatusOK,
	}}, nil
}

func publicJWK(k *keyring.Key) (jwk, error) {
	point, err := k.Key.Public().Bytes() // 4, X, and Y (SEC 1, section 2.3.3)
	if err != nil {
		return jwk{}, fmt.Errorf("encode public key of version %d: %w", k.Version, err)
	}
	half := len(point) / 2
	return jwk{
		KeyType: "EC", Use: "sig", Algorithm: ati.ES256, ID: k.Fingerprint, Curve: "P-256",
		X: base64.RawURLEncoding.EncodeToString(point[1 : 1+half]),
		Y: base64.RawURLEncoding.EncodeToString(point[1+half:]),
	}, nil
}

const pathJWKSHelpSyn = `Read the public keys as a JWK Set.`

const pathJWKSHelpDesc = `
For MCP servers that receive tokens from the proxy and verify them. The set has the
current, the pending, and the previous version of the key, if they are for ES256.
The kid is the key's fingerprint, and is in the header of the tokens. With HS256
the set is empty. No Vault token is required.

    $ curl -sS "$VAULT_ADDR/v1/ati/jwks"
`
