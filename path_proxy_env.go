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

// The environment variables that the ATI proxy reads when it starts, and the public
// key, which it reads from a file.
const (
	envSecret            = "ATI_JWT_SECRET"
	envAudience          = "ATI_JWT_AUDIENCE"
	envAcceptedAudiences = "ATI_JWT_ACCEPTED_AUDIENCES"
	envIssuer            = "ATI_JWT_ISSUER"
	publicKeyField       = "public_key"
)

func pathProxyEnv(b *backend) []*framework.Path {
	response := framework.Response{Description: "Environment of the proxy", Fields: map[string]*framework.FieldSchema{
		envSecret:            {Type: framework.TypeString, Description: "HS256 secret, 64 hexadecimal characters. Omitted with ES256.", DisplayAttrs: &framework.DisplayAttributes{Sensitive: true}},
		publicKeyField:       {Type: framework.TypeString, Description: "ES256 public key in PEM, for the file that ATI_JWT_PUBLIC_KEY names. Omitted with HS256."},
		envAudience:          {Type: framework.TypeString, Required: true, Description: "Audience of the config."},
		envAcceptedAudiences: {Type: framework.TypeString, Required: true, Description: "Audience and accepted_audiences of the config, separated by commas. The proxy uses it instead of ATI_JWT_AUDIENCE."},
		envIssuer:            {Type: framework.TypeString, Description: "Issuer of the config. Omitted if empty: with an empty issuer the proxy rejects every token that has an issuer."},
	}}
	path := func(pattern, summary, suffix string) *framework.Path {
		return &framework.Path{
			Pattern:      pattern,
			DisplayAttrs: &framework.DisplayAttributes{OperationPrefix: operationPrefix},
			Operations: map[logical.Operation]framework.OperationHandler{
				logical.ReadOperation: b.operation(activeNode, b.pathProxyEnvRead, summary, "read", suffix, response),
			},
			HelpSynopsis:    pathProxyEnvHelpSyn,
			HelpDescription: pathProxyEnvHelpDesc,
		}
	}
	current := path("proxy-env", "Read the proxy's environment with the current key.", "proxy-environment")
	pinned := path("proxy-env/(?P<"+versionField+">[1-9][0-9]{0,8})", "Read the proxy's environment with one version of the key.", "proxy-environment-version")
	pinned.Fields = map[string]*framework.FieldSchema{versionField: {
		Type:         framework.TypeInt,
		Description:  "Version of the key.",
		DisplayAttrs: &framework.DisplayAttributes{Name: "Version", Identifier: true},
	}}
	return []*framework.Path{current, pinned}
}

func (b *backend) pathProxyEnvRead(ctx context.Context, req *logical.Request, d *framework.FieldData) (*logical.Response, error) {
	cfg, err := b.requireConfig(ctx, req)
	if err != nil {
		return nil, err
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
		env[publicKeyField] = key.Key.PublicPEM()
	} else {
		env[envSecret] = key.Secret.Plaintext()
	}
	if cfg.Issuer != "" {
		env[envIssuer] = cfg.Issuer
	}
	// A proxy with an empty key accepts unauthenticated requests: never return an empty
	// value, whatever is in storage.
	for name, value := range env {
		if value == "" {
			return nil, fmt.Errorf("refusing to return an empty %s: the stored config is corrupt", name)
		}
	}
	b.Logger().Info("proxy environment read", "key_version", key.Version)
	resp := &logical.Response{Data: env}
	if cfg.Guarded {
		resp.AddWarning("This mount has guarded=true, but a proxy that is started with this environment accepts revoked tokens.")
	}
	return resp, nil
}

const pathProxyEnvHelpSyn = `Read the proxy's environment, which includes the key.`

const pathProxyEnvHelpDesc = `
Like guard, this path returns the HS256 secret. It is for the host of a proxy without
ati-guard. With ES256 it returns a public key instead. It requires the sudo
capability in addition to read.

The proxy accepts unauthenticated requests when its key is missing or malformed.
Consider it ready only when a call without a token gets 401.

proxy-env has the current key: after a rotation, restart the proxies that use it.
proxy-env/<version> has the key of one version, pending, current, or previous, for
two proxies that run at the same time.

    $ vault read ati/proxy-env
    $ vault read ati/proxy-env/1
`
