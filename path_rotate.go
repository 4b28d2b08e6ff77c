package atisecrets

import (
	"context"
	"slices"
	"time"
	"vault-plugin-secrets-ati/internal/keyring"
	"vault-plugin-secrets-ati/internal/param"
	"vault-plugin-secrets-ati/internal/refuse"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/helper/consts"
	"github.com/hashicorp/vault/sdk/logical"
)

func pathRotate(b *backend) []*framework.Path {
	status := framework.Response{Description: "The versions of the key", Fields: versionFacts.Response()}
	step := func(name, summary, verb, suffix, syn, desc string, callback framework.OperationFunc) *framework.Path {
		return &framework.Path{
			Pattern:      "config/rotate/" + name,
			DisplayAttrs: &framework.DisplayAttributes{OperationPrefix: operationPrefix},
			Operations: map[logical.Operation]framework.OperationHandler{
				logical.UpdateOperation: onActiveNode(operation(callback, summary, verb, suffix, status)),
			},
			HelpSynopsis:    syn,
			HelpDescription: desc,
		}
	}
	rotate := step("", "Replace the key at once. The former one, and a previous one, are forgotten.", "rotate", "key", pathRotateHelpSyn, pathRotateHelpDesc, b.pathRotateWrite)
	rotate.Pattern = "config/rotate"
	rotate.Fields = keyring.RequestParams.Fields()
	rotate.Operations[logical.ReadOperation] = operation(b.pathRotateRead, "Read the versions of the key.", "read", "key-versions", status)

	stage := step("stage", "Make the next version of the key, which does not sign yet.", "stage", "key", pathRotateStageHelpSyn, pathRotateStageHelpDesc, b.pathRotateStageWrite)
	stage.Fields = keyring.RequestParams.Fields()
	stage.Operations[logical.DeleteOperation] = onActiveNode(operation(b.pathRotateStageDelete, "Drop the staged version.", "drop", "staged-key", framework.Response{Description: "Dropped"}))

	return []*framework.Path{
		rotate,
		stage,
		step("activate", "Make the staged version the current one.", "activate", "staged-key", pathRotateActivateHelpSyn, pathRotateActivateHelpDesc, b.pathRotateActivateWrite),
		step("rollback", "Make the previous version the current one again.", "roll-back", "key", pathRotateRollbackHelpSyn, pathRotateRollbackHelpDesc, b.pathRotateRollbackWrite),
		step("retire", "End minting under the previous version.", "retire", "previous-key", pathRotateRetireHelpSyn, pathRotateRetireHelpDesc, b.pathRotateRetireWrite),
	}
}

// versionFacts are what an answer says of the versions of the key: all but the
// keys.
var versionFacts = slices.Concat(
	factsOf("current", func(c *keyring.Keys) *keyring.Key { return c.Current }),
	factsOf("pending", func(c *keyring.Keys) *keyring.Key { return c.Pending }),
	factsOf("previous", func(c *keyring.Keys) *keyring.Key { return c.Previous }),
	param.Set[keyring.Keys]{
		timeFact("last_rotated_at", "When a key was last replaced at once.", func(c *keyring.Keys) time.Time { return c.Stored.LastRotatedAt }),
	},
)

func factsOf(name string, which func(*keyring.Keys) *keyring.Key) param.Set[keyring.Keys] {
	of := func(field string, kind framework.FieldType, description string, get func(k *keyring.Key) any) param.Param[keyring.Keys] {
		p := param.Fact(name+"_"+field, kind, description, func(c *keyring.Keys) any {
			if k := which(c); k != nil {
				return get(k)
			}
			return nil
		})
		p.Answers.Required = name == "current"
		return p
	}
	at := func(field, description string, get func(k *keyring.Key) time.Time) param.Param[keyring.Keys] {
		return timeFact(name+"_"+field, description, func(c *keyring.Keys) (t time.Time) {
			if k := which(c); k != nil {
				t = get(k)
			}
			return t
		})
	}
	facts := param.Set[keyring.Keys]{
		of("version", framework.TypeInt, "The "+name+" version of the key.", func(k *keyring.Key) any { return k.Version }),
		of("proxy_url", framework.TypeString, "Address of the proxy that holds it.", func(k *keyring.Key) any { return k.ProxyURL }),
		of("algorithm", framework.TypeString, "Its signing algorithm.", func(k *keyring.Key) any { return k.Algorithm }),
		of("fingerprint", framework.TypeString, keyring.FingerprintDescription, func(k *keyring.Key) any { return k.Fingerprint }),
		of("generated", framework.TypeBool, "Whether Vault generated it; else it was brought, and there may be copies.", func(k *keyring.Key) any { return k.Generated }),
		of("created_at", framework.TypeTime, "When it came into this mount.", func(k *keyring.Key) any { return k.CreatedAt.Format(time.RFC3339) }),
	}
	if name != "pending" {
		facts = append(facts, at("activated_at", "When it last became the current one.", func(k *keyring.Key) time.Time { return k.ActivatedAt }))
	}
	if name == "previous" {
		facts = append(facts,
			at("retired_at", "When minting under it ended. Left out while it goes on.", func(k *keyring.Key) time.Time { return k.RetiredAt }),
			at("tokens_expire_by", "A time after which no token of it that this mount minted passes anywhere. Left out until it is retired.", func(k *keyring.Key) time.Time { return k.TokensExpireBy }))
	}
	return facts
}

// timeFact is left out while the time is zero.
func timeFact[T any](name, description string, get func(*T) time.Time) param.Param[T] {
	return param.Fact(name, framework.TypeTime, description, func(of *T) any {
		if t := get(of); !t.IsZero() {
			return t.Format(time.RFC3339)
		}
		return nil
	}).LeftOut("")
}

func (b *backend) pathRotateRead(ctx context.Context, req *logical.Request, _ *framework.FieldData) (*logical.Response, error) {
	cfg, err := b.getConfig(ctx, req.Storage)
	if cfg == nil || err != nil {
		return nil, err
	}
	return &logical.Response{Data: versionFacts.Data(cfg.Counting(b.now()))}, nil
}

// rotate carries out one step in the life of the key, stores what it made of
// the entry in one write, and answers with the versions that there are then.
func (b *backend) rotate(ctx context.Context, req *logical.Request, apply func(keyring.Step, *keyring.Ring) (warnings []string, err error)) (*logical.Response, error) {
	b.lock.Lock()
	defer b.lock.Unlock()

	entry, err := readConfigEntry(ctx, req.Storage)
	if err != nil {
		return nil, err
	}
	if entry.Current == nil {
		return nil, noConfig(req)
	}
	// The cache first, the time second: then each mint that goes by the cached
	// config has taken its time before. See newMint.
	b.config.Store(nil)
	now := b.now()
	entry.ForgetGone(now)
	warnings, err := apply(keyring.Step{Now: now, Mount: req.MountPoint}, &entry.Ring)
	if err != nil {
		return nil, err
	}
	if err := b.putConfig(ctx, req.Storage, entry); err != nil {
		return nil, err
	}
	cfg := b.config.Load()
	b.Logger().Info("key versions changed", "path", req.Path, "parameters", parameterList(req), "versions", cfg.Versions())
	return &logical.Response{Data: versionFacts.Data(cfg.Counting(now)), Warnings: warnings}, nil
}

func (b *backend) pathRotateWrite(ctx context.Context, req *logical.Request, d *framework.FieldData) (*logical.Response, error) {
	return b.rotate(ctx, req, func(s keyring.Step, entry *keyring.Ring) ([]string, error) {
		key, err := b.nextKey(entry, d, s.Now)
		if err != nil {
			return nil, err
		}
		warnings, err := s.Rotate(entry, key)
		return append(param.ClearTextWarning(key.ProxyURL), warnings...), err
	})
}

func (b *backend) pathRotateStageWrite(ctx context.Context, req *logical.Request, d *framework.FieldData) (*logical.Response, error) {
	return b.rotate(ctx, req, func(s keyring.Step, entry *keyring.Ring) ([]string, error) {
		if err := s.MayStage(entry); err != nil {
			return nil, err
		}
		key, err := b.nextKey(entry, d, s.Now)
		if err != nil {
			return nil, err
		}
		warnings, err := s.Stage(entry, key)
		return append(param.ClearTextWarning(key.ProxyURL), warnings...), err
	})
}

func (b *backend) pathRotateStageDelete(ctx context.Context, req *logical.Request, _ *framework.FieldData) (*logical.Response, error) {
	b.lock.Lock()
	defer b.lock.Unlock()

	entry, err := readConfigEntry(ctx, req.Storage)
	if err != nil || entry.Pending == nil {
		return nil, err
	}
	version := entry.Pending.Version
	entry.Pending = nil
	if err := b.putConfig(ctx, req.Storage, entry); err != nil {
		return nil, err
	}
	b.Logger().Info("staged key dropped", "key_version", version)
	return nil, nil
}

func (b *backend) pathRotateActivateWrite(ctx context.Context, req *logical.Request, _ *framework.FieldData) (*logical.Response, error) {
	return b.rotate(ctx, req, keyring.Step.Activate)
}

func (b *backend) pathRotateRollbackWrite(ctx context.Context, req *logical.Request, _ *framework.FieldData) (*logical.Response, error) {
	return b.rotate(ctx, req, keyring.Step.Rollback)
}

func (b *backend) pathRotateRetireWrite(ctx context.Context, req *logical.Request, _ *framework.FieldData) (*logical.Response, error) {
	return b.rotate(ctx, req, keyring.Step.Retire)
}

// nextKey makes the next version of the key from a request's parameters.
func (b *backend) nextKey(entry *keyring.Ring, d *framework.FieldData, now time.Time) (*keyring.Entry, error) {
	var p keyring.Request
	if err := keyring.RequestParams.Apply(d.Raw, &p); err != nil {
		return nil, refuse.Error(err)
	}
	key, err := keyring.NewEntry(p, *entry.Current, entry.LastKeyVersion+1, now)
	if err != nil {
		return nil, refuse.Error(err)
	}
	if _, err := key.Generate(b.GetRandomReader()); err != nil {
		return nil, err
	}
	if err := entry.CheckNew(key, now); err != nil {
		return nil, err
	}
	entry.LastKeyVersion = key.Version
	return key, nil
}

// forgetGoneKeys drops, within about a minute, the key of a version of which no
// token passes any more.
func (b *backend) forgetGoneKeys(ctx context.Context, req *logical.Request) error {
	if cfg, err := b.getConfig(ctx, req.Storage); err != nil || cfg == nil || cfg.Previous == nil || !cfg.Previous.Gone(b.now()) {
		return err
	}
	// A standby writes no storage, and a secondary its local mounts' only.
	state := b.System().ReplicationState()
	if state.HasState(consts.ReplicationPerformanceStandby) || state.HasState(consts.ReplicationPerformanceSecondary) && !b.System().LocalMount() {
		return nil
	}
	b.lock.Lock()
	defer b.lock.Unlock()
	entry, err := readConfigEntry(ctx, req.Storage)
	if err != nil {
		return err
	}
	before := entry.Previous
	if entry.ForgetGone(b.now()); entry.Previous == before {
		return nil
	}
	if err := b.putConfig(ctx, req.Storage, entry); err != nil {
		return err
	}
	b.Logger().Info("retired key forgotten: its last token has expired", "key_version", before.Version)
	return nil
}

const pathRotateHelpSyn = `The versions of the key; or replace the key at once.`

const pathRotateHelpDesc = `
Reading tells the current, the pending and the previous version. Writing
replaces the key at once, and forgets the former one, with a previous version: from here on
tokens carry the new one, and those out there die when the proxy has started
again with what proxy-env says. This is how to revoke every token.

For a rotation without one refused call, write config/rotate/stage.

` + needsSudo + `

    $ vault read ati/config/rotate
    $ vault write -f ati/config/rotate
`

const pathRotateStageHelpSyn = `The next version of the key, which does not sign yet.`

const pathRotateStageHelpDesc = `
Makes a pending version, with the proxy_url of proxies that are started with
proxy-env/<version>, beside those of the current version. activate makes it the
current one. Deleting drops it.

` + needsSudo + `

    $ vault write ati/config/rotate/stage proxy_url=https://ati-green.example.com
`

const pathRotateActivateHelpSyn = `Makes the staged version the current one.`

const pathRotateActivateHelpDesc = `
The current version becomes the previous one. Tokens for its proxy are minted
still, for whoever asks with proxy_url=<its proxy_url>, until it is retired. After a
rollback, it is the version that was rolled back that becomes current again.

` + needsSudo + `

    $ vault write -f ati/config/rotate/activate
`

const pathRotateRollbackHelpSyn = `Makes the previous version the current one again.`

const pathRotateRollbackHelpDesc = `
The current version becomes the previous one, and tokens for its proxy are minted
still. To go forward to it again, write config/rotate/activate. A rollback is
possible until the previous version's last token has expired.

` + needsSudo + `

    $ vault write -f ati/config/rotate/rollback
`

const pathRotateRetireHelpSyn = `Ends minting under the previous version.`

const pathRotateRetireHelpDesc = `
Its tokens pass its proxy until they have expired: previous_tokens_expire_by
says when that is so for all that this mount minted. Stop its proxy then: whoever has
a copy of a key that was brought can mint tokens that live longer. Its key is
forgotten here at that time.

` + needsSudo + `

    $ vault write -f ati/config/rotate/retire
`
