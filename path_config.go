package atisecrets

import (
	"context"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"vault-plugin-secrets-ati/ati"
	"vault-plugin-secrets-ati/internal/keyring"
	"vault-plugin-secrets-ati/internal/param"
	"vault-plugin-secrets-ati/internal/refuse"
	"vault-plugin-secrets-ati/internal/role"
)

// keyFacts are what an answer says of the current version of the key.
var keyFacts = param.Set[keyring.Keys]{
	param.Fact("proxy_url", framework.TypeString, "Address of the ATI proxy that holds the current key.", func(c *keyring.Keys) any { return c.Current.ProxyURL }),
	param.Fact("algorithm", framework.TypeString, "Signing algorithm.", func(c *keyring.Keys) any { return c.Current.Algorithm }),
	param.Fact("key_version", framework.TypeInt, "Version of the key that signs: the current one.", func(c *keyring.Keys) any { return c.Current.Version }),
	param.Fact("key_created_at", framework.TypeTime, "When the key came into this mount.", func(c *keyring.Keys) any { return c.Current.CreatedAt.Format(time.RFC3339) }),
	param.Fact("key_fingerprint", framework.TypeString, keyring.FingerprintDescription, func(c *keyring.Keys) any { return c.Current.Fingerprint }),
}

func pathConfig(b *backend) []*framework.Path {
	fields := merged(keyring.RequestParams.Fields(), role.LimitParams.Fields())
	fields["proxy_url"].Description += " Required when the config is created."
	fields["algorithm"].Default = ati.HS256
	write := onActiveNode(operation(b.pathConfigWrite,
		"Configure the proxy, the signing key and the ceiling over all roles.", "configure", "", framework.Response{Description: "Stored"}))
	return []*framework.Path{{
		Pattern:        "config",
		Fields:         fields,
		ExistenceCheck: b.configExists,
		DisplayAttrs:   &framework.DisplayAttributes{OperationPrefix: operationPrefix},
		Operations: map[logical.Operation]framework.OperationHandler{
			logical.CreateOperation: write,
			logical.UpdateOperation: write,
			logical.ReadOperation: operation(b.pathConfigRead,
				"Read the configuration, without the key.", "read", "configuration", framework.Response{Description: "The configuration", Fields: merged(role.LimitParams.Response(), keyFacts.Response())}),
			logical.DeleteOperation: onActiveNode(operation(b.pathConfigDelete,
				"Delete the configuration and forget the key.", "delete", "configuration", framework.Response{Description: "Deleted"})),
		},
		HelpSynopsis:    pathConfigHelpSyn,
		HelpDescription: pathConfigHelpDesc,
	}}
}

func (b *backend) configExists(ctx context.Context, req *logical.Request, _ *framework.FieldData) (bool, error) {
	cfg, err := b.getConfig(ctx, req.Storage)
	return cfg != nil, err
}

func (b *backend) pathConfigRead(ctx context.Context, req *logical.Request, _ *framework.FieldData) (*logical.Response, error) {
	cfg, err := b.getConfig(ctx, req.Storage)
	if cfg == nil || err != nil {
		return nil, err
	}
	return &logical.Response{Data: merged(role.LimitParams.Data(&cfg.Limits), keyFacts.Data(&cfg.Keys))}, nil
}

func (b *backend) pathConfigWrite(ctx context.Context, req *logical.Request, d *framework.FieldData) (*logical.Response, error) {
	b.lock.Lock()
	defer b.lock.Unlock()

	entry, err := readConfigEntry(ctx, req.Storage)
	if err != nil {
		return nil, err
	}
	var p keyring.Request
	if err := keyring.RequestParams.Apply(d.Raw, &p); err != nil {
		return nil, refuse.Error(err)
	}
	created := entry.Current == nil
	var warnings []string
	if created {
		entry, err = newConfigEntry(entry, p, b.now())
		err = refuse.Error(err)
	} else {
		entry.ForgetGone(b.now())
		warnings, err = entry.ApplyKey(p)
	}
	if err != nil {
		return nil, err
	}
	if err := role.LimitParams.Apply(d.Raw, &entry.Limits); err != nil {
		return nil, refuse.Error(err)
	}
	generated, err := entry.Current.Generate(b.GetRandomReader())
	if err != nil {
		return nil, err
	}
	if generated {
		warnings = append(warnings, "Vault generated the signing key; the proxy refuses this mount's tokens until it has what proxy-env says")
	}
	warnings = append(warnings, param.ClearTextWarning(entry.Current.ProxyURL)...)
	warnings = append(warnings, entry.CeilingWarnings()...)
	if err := b.putConfig(ctx, req.Storage, entry); err != nil {
		return nil, err
	}
	b.Logger().Info("config written", "created", created, "parameters", parameterList(req), "key_version", entry.Current.Version)
	return orNoContent(warnings), nil
}

func (b *backend) pathConfigDelete(ctx context.Context, req *logical.Request, _ *framework.FieldData) (*logical.Response, error) {
	b.lock.Lock()
	defer b.lock.Unlock()

	entry, err := readConfigEntry(ctx, req.Storage)
	if err != nil || entry.Current == nil {
		return nil, err
	}
	remains := configEntry{Ring: keyring.Ring{LastKeyVersion: entry.LastKeyVersion, LongestTTL: entry.LongestTTL}}
	if err := b.putConfig(ctx, req.Storage, remains); err != nil {
		return nil, err
	}
	b.Logger().Warn("config deleted and keys forgotten", "key_version", entry.Current.Version)
	return orNoContent([]string{"the key is forgotten here, but tokens signed with it pass the proxy until they expire or the proxy gets another key"}), nil
}

const needsSudo = `This path needs the sudo capability beside the operation's.`

const pathConfigHelpSyn = `The proxy, the signing key, and the ceiling over all roles.`

const pathConfigHelpDesc = `
Write proxy_url, and either bring the key that the proxy holds or let Vault
generate one. The key is never returned: key_fingerprint tells whether two
places hold the same one. It is, for HS256, the first 16 hex digits of
HMAC-SHA256(secret, "ati key fingerprint"), and for ES256 those of the SHA-256
of the public key in DER. To change the key, write config/rotate.

audience, accepted_audiences and issuer go into the tokens, and must be what
the proxy is set to accept. allowed_scopes and max_ttl are a ceiling over all
roles, for teams that let others write roles.

` + needsSudo + `

    $ vault write ati/config proxy_url=https://ati.example.com
`
