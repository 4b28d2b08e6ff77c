package atisecrets

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"vault-plugin-secrets-ati/ati"
	"vault-plugin-secrets-ati/internal/keyring"
	"vault-plugin-secrets-ati/internal/param"
	"vault-plugin-secrets-ati/internal/revocation"
)

func pathGuard(b *backend) []*framework.Path {
	return []*framework.Path{{
		Pattern: "guard",
		Fields: map[string]*framework.FieldSchema{
			"since": {Type: framework.TypeInt, Query: true, DisplayAttrs: param.Display("Since", "Guard"),
				Description: "Generation of the last response. The response then has only what has changed since."},
		},
		DisplayAttrs: &framework.DisplayAttributes{OperationPrefix: operationPrefix},
		Operations: map[logical.Operation]framework.OperationHandler{
			logical.ReadOperation: b.operation(activeNode, b.pathGuardRead, "Read the keys and the revocations.", "read", "guard",
				framework.Response{Description: "Keys and revocations of one moment", Fields: map[string]*framework.FieldSchema{
					"epoch":      {Type: framework.TypeString, Required: true, Description: "Identifies the config. It changes when the config is deleted and created again."},
					"generation": {Type: framework.TypeInt64, Required: true, Description: "Number of the last change. It never falls, except when a snapshot is restored."},
					"audiences":  {Type: framework.TypeStringSlice, Description: "Audience and accepted_audiences of the config."},
					"issuer":     {Type: framework.TypeString, Description: "Issuer of the config."},
					"keys":       {Type: framework.TypeSlice, DisplayAttrs: &framework.DisplayAttributes{Sensitive: true}, Description: "All live versions of the key: `version`, `state` (current, pending, or previous), `algorithm`, `generated`, `tokens_expire_by` once it is retired, and, unless it was there at `since`, `secret` (HS256) or `public_key` (ES256, in PEM)."},
					"revoked":    {Type: framework.TypeSlice, Description: "Revocations after `since`: `jti` or `sub`, `revoked_at`, `expires_at`, and `imported`. Times are in seconds since the Unix epoch."},
				}}),
		},
		HelpSynopsis:    "Read the keys and the revocations that ati-guard enforces.",
		HelpDescription: pathGuardHelpDesc,
	}}
}

func (b *backend) pathGuardRead(ctx context.Context, req *logical.Request, d *framework.FieldData) (resp *logical.Response, err error) {
	err = b.withRevoked(ctx, req.Storage, func(cfg *config, revoked *revocation.List) error {
		if cfg == nil {
			return nil
		}
		generation := max(cfg.generation, revoked.Generation())
		data := map[string]any{"epoch": cmp.Or(cfg.epoch, "0"), "generation": generation}
		resp = &logical.Response{Data: data}
		since := int64(-1)
		if _, ok := d.Raw["since"]; ok {
			since = int64(d.Get("since").(int))
		}
		if since == generation {
			return nil
		}
		if since > generation {
			since = -1 // of another storage: a snapshot was restored
		}
		now := b.now()
		data["audiences"], data["issuer"] = cfg.Audiences(), cfg.Issuer
		data["keys"] = guardKeys(&cfg.Keys, since, now)
		if importedSince(&cfg.Keys, since, now) {
			since = -1 // a guard may have forgotten what matters again
		}
		entries := []any{}
		for _, e := range revoked.Since(since) {
			entries = append(entries, guardEntry(e))
		}
		data["revoked"] = entries
		return nil
	})
	return resp, err
}

// importedSince reports whether a live version was imported after since.
func importedSince(ks *keyring.Keys, since int64, now time.Time) bool {
	return slices.ContainsFunc(ks.Live(now), func(k *keyring.Key) bool { return !k.Generated && k.Generation > since })
}

// guardKeys returns the live versions, with the keys that were made after since.
func guardKeys(ks *keyring.Keys, since int64, now time.Time) []any {
	keys := []any{}
	for _, k := range ks.Live(now) {
		key := map[string]any{"version": k.Version, "state": ks.State(k), "algorithm": k.Algorithm, "generated": k.Generated}
		if !k.TokensExpireBy.IsZero() {
			key["tokens_expire_by"] = k.TokensExpireBy.Format(time.RFC3339)
		}
		switch {
		case k.Generation <= since:
		case k.Algorithm == ati.ES256:
			key["public_key"] = k.Key.PublicPEM()
		default:
			key["secret"] = k.Secret.Plaintext()
		}
		keys = append(keys, key)
	}
	return keys
}

// guardEntry returns a revocation as an object: a map's keys are not hashed in Vault's
// audit log.
func guardEntry(e *revocation.Entry) map[string]any {
	entry := map[string]any{"revoked_at": e.RevokedAt, "expires_at": e.ExpiresAt, "imported": e.Imported}
	if e.JTI != "" {
		entry["jti"] = e.JTI
	} else {
		entry["sub"] = e.Subject
	}
	return entry
}

const pathGuardHelpDesc = `
For ati-guard, a gate in front of a proxy. The response has HS256 secrets, as that
of proxy-env has.

With since, a guard gets what has changed since its last response, and only epoch and
generation if nothing has. It must read without since if it does not hold a key that
the response lists, or if the epoch is another one. It forgets a version at its
tokens_expire_by, and a revocation at its expires_at, or with imported=true when no
version is live any more that has generated=false, if that is later.

` + needsSudo + `

    $ vault read ati/guard
`
