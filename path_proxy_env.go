package atisecrets

import (
	"context"
	"fmt"
	"strings"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"
)

// The environment variables that the ATI proxy reads when it starts.
const (
	envSecret            = "ATI_JWT_SECRET"
	envAudience          = "ATI_JWT_AUDIENCE"
	envAcceptedAudiences = "ATI_JWT_ACCEPTED_AUDIENCES"
	envIssuer            = "ATI_JWT_ISSUER"
)

const versionField = "version"

func pathProxyEnv(b *backend) []*framework.Path {
	response := framework.Response{Description: "The proxy's environment", Fields: map[string]*framework.FieldSchema{
		envSecret:            {Type: framework.TypeString, Required: true, Description: "HS256 secret, 64 hex characters.", DisplayAttrs: &framework.DisplayAttributes{Sensitive: true}},
		envAudience:          {Type: framework.TypeString, Required: true, Description: "config's audience."},
		envAcceptedAudiences: {Type: framework.TypeString, Required: true, Description: "config's audience and accepted_audiences, joined by commas. The proxy takes it in place of ATI_JWT_AUDIENCE."},
		envIssuer:            {Type: framework.TypeString, Description: "config's issuer. Left out when that is empty: an empty one makes the proxy refuse every token that has an issuer."},
	}}
	return []*framework.Path{
		{
			Pattern:      "proxy-env",
			DisplayAttrs: &framework.DisplayAttributes{OperationPrefix: operationPrefix},
			Operations: map[logical.Operation]framework.OperationHandler{
				logical.ReadOperation: operation(b.pathProxyEnvRead, "Read the environment of the proxy, with the current key.", "read", "proxy-environment", response),
			},
			HelpSynopsis:    pathProxyEnvHelpSyn,
			HelpDescription: pathProxyEnvHelpDesc,
		},
		{
			Pattern: "proxy-env/(?P<version>[1-9][0-9]*)",
			Fields: map[string]*framework.FieldSchema{
				versionField: {
					Type:        framework.TypeInt,
					Description: "Version of the key.",
				},
			},
			DisplayAttrs: &framework.DisplayAttributes{OperationPrefix: operationPrefix},
			Operations: map[logical.Operation]framework.OperationHandler{
				logical.ReadOperation: operation(b.pathProxyEnvRead, "Read the environment of the proxy, with the key of a version.", "read", "proxy-environment-version", response),
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
		return noConfig(req), nil
	}
	key := cfg.Current
	if given(d, versionField) {
		if version := d.Get(versionField).(int); version != key.Version {
			return logical.ErrorResponse("this mount has no key of version %d; it has version %d", version, key.Version), nil
		}
	}
	env := map[string]any{
		envSecret:            string(key.Secret),
		envAudience:          cfg.Audience,
		envAcceptedAudiences: strings.Join(cfg.audiences(), ","),
	}
	if cfg.Issuer != "" {
		env[envIssuer] = cfg.Issuer
	}
	// The proxy serves everybody when its key is missing: never hand out an
	// empty value, whatever storage holds.
	for name, value := range env {
		if value == "" {
			return nil, fmt.Errorf("%s would be empty", name)
		}
	}
	b.Logger().Info("the proxy's environment was read", "key_version", key.Version)
	return &logical.Response{Data: env}, nil
}

const pathProxyEnvHelpSyn = `The environment of the proxy, with the signing secret.`

const pathProxyEnvHelpDesc = `
The one path on which the secret leaves Vault, for the host on which the proxy
runs. It needs the sudo capability beside read.

The proxy serves everybody, without any token, when its key is missing or
malformed. Start it through a guard that checks the key, and take it as ready
only when a call without a token gets 401.

proxy-env has the current key, proxy-env/<version> always the key of that
version.
`
