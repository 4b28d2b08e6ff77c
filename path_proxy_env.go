package atisecrets

import (
	"context"
	"fmt"
	"strings"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"vault-plugin-secrets-ati/ati"
	"vault-plugin-secrets-ati/internal/refuse"
)

// The environment variables that the ATI proxy reads when it starts.
const (
	envSecret            = "ATI_JWT_SECRET"
	envAudience          = "ATI_JWT_AUDIENCE"
	envAcceptedAudiences = "ATI_JWT_ACCEPTED_AUDIENCES"
	envIssuer            = "ATI_JWT_ISSUER"
)

const (
	publicKeyField = "public_key"
)

func pathProxyEnv(b *backend) []*framework.Path {
	response := framework.Response{Description: "The proxy's environment", Fields: map[string]*framework.FieldSchema{
		envSecret:            {Type: framework.TypeString, Description: "HS256 secret, 64 hex characters. Left out with ES256.", DisplayAttrs: &framework.DisplayAttributes{Sensitive: true}},
		publicKeyField:       {Type: framework.TypeString, Description: "ES256: the public key in PEM, for the file that ATI_JWT_PUBLIC_KEY names. Left out with HS256."},
		envAudience:          {Type: framework.TypeString, Required: true, Description: "config's audience."},
		envAcceptedAudiences: {Type: framework.TypeString, Required: true, Description: "config's audience and accepted_audiences, joined by commas. The proxy takes it in place of ATI_JWT_AUDIENCE."},
		envIssuer:            {Type: framework.TypeString, Description: "config's issuer. Left out when that is empty: an empty one makes the proxy refuse every token that has an issuer."},
	}}
	return []*framework.Path{
		{
			Pattern:      "proxy-env",
			DisplayAttrs: &framework.DisplayAttributes{OperationPrefix: operationPrefix},
			Operations: map[logical.Operation]framework.OperationHandler{
				logical.ReadOperation: operation(b.pathProxyEnvRead, "Read the environment of the proxy, with the current version of the key.", "read", "proxy-environment", response),
			},
			HelpSynopsis:    pathProxyEnvHelpSyn,
			HelpDescription: pathProxyEnvHelpDesc,
		},
		{
			Pattern: "proxy-env/(?P<version>[1-9][0-9]{0,8})",
			Fields: map[string]*framework.FieldSchema{
				versionField: {
					Type:         framework.TypeInt,
					Description:  "Version of the key.",
					DisplayAttrs: &framework.DisplayAttributes{Name: "Version", Identifier: true},
				},
			},
			DisplayAttrs: &framework.DisplayAttributes{OperationPrefix: operationPrefix},
			Operations: map[logical.Operation]framework.OperationHandler{
				logical.ReadOperation: operation(b.pathProxyEnvRead, "Read the environment of the proxy, with one version of the key.", "read", "proxy-environment-version", response),
			},
			HelpSynopsis:    pathProxyEnvHelpSyn,
			HelpDescription: pathProxyEnvHelpDesc,
		},
	}
}

func (b *backend) pathProxyEnvRead(ctx context.Context, req *logical.Request, d *framework.FieldData) (*logical.Response, error) {
	cfg, err := b.getConfig(ctx, req.Storage)
	if err != nil {
		return nil, err
	}
	if cfg == nil {
		return nil, noConfig(req)
	}
	key := cfg.Current
	if d.Raw[versionField] != nil {
		if key, err = cfg.Version(d.Get(versionField).(int), b.now()); err != nil {
			return nil, refuse.Error(err)
		}
	}
	env := map[string]any{
		envAudience:          cfg.Audience,
		envAcceptedAudiences: strings.Join(cfg.Audiences(), ","),
	}
	if key.Algorithm == ati.ES256 {
		env[publicKeyField] = key.PublicPEM()
	} else {
		env[envSecret] = key.Secret.Reveal()
	}
	if cfg.Issuer != "" {
		env[envIssuer] = cfg.Issuer
	}
	// The proxy serves everybody when its key is missing: never hand out an
	// empty value, whatever storage holds.
	for name, value := range env {
		if value == "" {
			return nil, fmt.Errorf("%s would be empty: storage is damaged", name)
		}
	}
	b.Logger().Info("the proxy's environment was read", "key_version", key.Version)
	return &logical.Response{Data: env}, nil
}

const pathProxyEnvHelpSyn = `The environment of the proxy, with the key.`

const pathProxyEnvHelpDesc = `
The one path on which the HS256 secret leaves Vault, for the host on which the
proxy runs. With ES256 there is a public key in its place. It needs the sudo
capability beside read.

The proxy serves everybody, without any token, when its key is missing or
malformed. Start it through a guard that checks the key, and take it as ready
only when a call without a token gets 401.

proxy-env has the current key: a proxy that is started from it has to start again
when that is rotated. proxy-env/<version> always has the key of that version,
pending, current or previous, for two proxies side by side.

    $ vault read ati/proxy-env
    $ vault read ati/proxy-env/1
`
