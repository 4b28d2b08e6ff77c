package atisecrets

import (
	"context"
	"path"
	"slices"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"vault-plugin-secrets-ati/internal/keyring"
	"vault-plugin-secrets-ati/internal/param"
	"vault-plugin-secrets-ati/internal/refuse"
)

func pathRotate(b *backend) []*framework.Path {
	status := framework.Response{Description: "Versions of the key", Fields: versionFacts.Response()}
	step := func(pattern string, handler framework.OperationFunc, summary, verb, suffix, help string) *framework.Path {
		return &framework.Path{
			Pattern:      pattern,
			DisplayAttrs: &framework.DisplayAttributes{OperationPrefix: operationPrefix},
			Operations: map[logical.Operation]framework.OperationHandler{
				logical.UpdateOperation: b.operation(writingNode, handler, summary, verb, suffix, status),
			},
			HelpSynopsis:    summary,
			HelpDescription: help,
		}
	}
	rotate := step("config/rotate", b.pathRotateKeyWrite(keyring.Step.Rotate), "Replace the key immediately, and delete the current and the previous version.", "rotate", "key", pathRotateHelpDesc)
	rotate.Fields = keyring.RequestParams.Fields()
	rotate.Operations[logical.ReadOperation] = b.operation(activeNode, b.pathRotateRead, "Read the versions of the key.", "read", "key-versions", status)
	rotate.HelpSynopsis = "Read the versions of the key, or replace the key immediately."

	stage := step("config/rotate/stage", b.pathRotateKeyWrite(keyring.Step.Stage), "Create the pending version of the key, which does not sign tokens yet.", "stage", "key", pathRotateStageHelpDesc)
	stage.Fields = keyring.RequestParams.Fields()
	stage.Operations[logical.DeleteOperation] = b.operation(writingNode, b.pathRotateStageDelete, "Delete the pending version of the key.", "drop", "staged-key", framework.Response{Description: "Deleted"})
	stage.HelpSynopsis = "Create or delete the pending version of the key."

	return []*framework.Path{
		rotate,
		stage,
		step("config/rotate/activate", b.pathRotateWrite(keyring.Step.Activate), "Make the pending version of the key current.", "activate", "staged-key", pathRotateActivateHelpDesc),
		step("config/rotate/rollback", b.pathRotateWrite(keyring.Step.Rollback), "Make the previous version of the key current again.", "roll-back", "key", pathRotateRollbackHelpDesc),
		step("config/rotate/retire", b.pathRotateWrite(keyring.Step.Retire), "Stop minting tokens with the previous version of the key.", "retire", "previous-key", pathRotateRetireHelpDesc),
	}
}

// versionFacts are the fields of a response that describe the versions of the key,
// without the keys.
var versionFacts = slices.Concat(
	versionFactsOf("current", func(ks *keyring.Keys) *keyring.Key { return ks.Current }),
	versionFactsOf("pending", func(ks *keyring.Keys) *keyring.Key { return ks.Pending }),
	versionFactsOf("previous", func(ks *keyring.Keys) *keyring.Key { return ks.Previous }),
	param.Set[keyring.Keys]{
		param.TimeFact("next_rotation_at", "Time at which the next version becomes current automatically. Omitted without rotation_period in the config, and while the rotation is suspended.", func(ks *keyring.Keys) time.Time { return ks.Stored.NextRotationAt() }),
		param.Fact("rotation_status", framework.TypeString, "What the automatic rotation does: scheduled, in progress, delayed, or suspended, with the reason. Omitted without rotation_period in the config.", func(ks *keyring.Keys) any { return omitEmpty(ks.Stored.RotationStatus()) }).Optional(),
		param.TimeFact("last_rotated_at", "Time of the last immediate rotation. Omitted if there was none.", func(ks *keyring.Keys) time.Time { return ks.Stored.LastRotatedAt }),
	},
)

// versionFactsOf returns the fields for one of the versions, all of which are omitted
// without that version.
func versionFactsOf(name string, version func(*keyring.Keys) *keyring.Key) param.Set[keyring.Keys] {
	fact := func(field string, kind framework.FieldType, description string, get func(k *keyring.Key) any) param.Param[keyring.Keys] {
		p := param.Fact(name+"_"+field, kind, description, func(ks *keyring.Keys) any {
			if k := version(ks); k != nil {
				return get(k)
			}
			return nil
		})
		if name != "current" {
			return p.Optional()
		}
		return p
	}
	at := func(field, description string, get func(k *keyring.Key) time.Time) param.Param[keyring.Keys] {
		return param.TimeFact(name+"_"+field, description, func(ks *keyring.Keys) (t time.Time) {
			if k := version(ks); k != nil {
				t = get(k)
			}
			return t
		})
	}
	facts := param.Set[keyring.Keys]{
		fact("version", framework.TypeInt, "Number of the version.", func(k *keyring.Key) any { return k.Version }),
		fact("proxy_url", framework.TypeString, "URL of the proxy that holds the version.", func(k *keyring.Key) any { return k.ProxyURL }),
		fact("algorithm", framework.TypeString, "Signing algorithm of the version.", func(k *keyring.Key) any { return k.Algorithm }),
		fact("fingerprint", framework.TypeString, keyring.FingerprintDescription, func(k *keyring.Key) any { return k.Key.Fingerprint() }),
		fact("generated", framework.TypeBool, "Whether Vault generated the key. If false, it was imported, and copies may exist outside Vault.", func(k *keyring.Key) any { return k.Generated }),
		fact("created_at", framework.TypeTime, "Time at which the key was generated or imported.", func(k *keyring.Key) any { return k.CreatedAt.Format(time.RFC3339) }),
	}
	if name != "pending" {
		facts = append(facts, at("activated_at", "Time at which the version last became current.", func(k *keyring.Key) time.Time { return k.ActivatedAt }))
	}
	if name == "previous" {
		facts = append(facts,
			at("retired_at", "Time at which minting with the previous version stopped. Omitted until it is retired.", func(k *keyring.Key) time.Time { return k.RetiredAt }),
			at("tokens_expire_by", "Time by which all tokens that this mount signed with the previous version have expired. Omitted until it is retired.", func(k *keyring.Key) time.Time { return k.TokensExpireBy }))
	}
	return facts
}

func (b *backend) pathRotateRead(ctx context.Context, req *logical.Request, _ *framework.FieldData) (*logical.Response, error) {
	cfg, err := b.getConfig(ctx, req.Storage)
	if cfg == nil || err != nil {
		return nil, err
	}
	return &logical.Response{Data: versionFacts.Data(cfg.WithoutExpired(b.now()))}, nil
}

// stepFunc is a method of keyring.Step.
type stepFunc = func(keyring.Step, *keyring.Ring) (warnings []string, err error)

// pathRotateKeyWrite returns the handler of a step that creates a version of the key.
func (b *backend) pathRotateKeyWrite(apply stepFunc) framework.OperationFunc {
	return func(ctx context.Context, req *logical.Request, d *framework.FieldData) (*logical.Response, error) {
		request, err := keyring.ParseRequest(d.Raw)
		if err != nil {
			return nil, refuse.Error(err)
		}
		return b.rotate(ctx, req, &request, apply)
	}
}

// pathRotateWrite returns the handler of a step without a new key.
func (b *backend) pathRotateWrite(apply stepFunc) framework.OperationFunc {
	return func(ctx context.Context, req *logical.Request, _ *framework.FieldData) (*logical.Response, error) {
		return b.rotate(ctx, req, nil, apply)
	}
}

// rotate carries out a step that was requested, and returns the versions after it. request
// is nil for a step without a new key.
func (b *backend) rotate(ctx context.Context, req *logical.Request, request *keyring.Request, apply stepFunc) (*logical.Response, error) {
	b.lock.Lock()
	defer b.lock.Unlock()

	entry, err := readConfigEntry(ctx, req.Storage)
	if err != nil {
		return nil, err
	}
	if entry.Current == nil {
		return nil, noConfig(req)
	}
	cfg, warnings, err := b.carryOut(ctx, req, entry, keyring.Step{}, request, apply)
	if err != nil {
		return nil, err
	}
	b.Logger().Info("rotated signing key", append([]any{"operation", path.Base(req.Path), "parameters", parameterList(req)}, cfg.LogFields()...)...)
	return &logical.Response{Data: versionFacts.Data(cfg.WithoutExpired(b.now())), Warnings: append(warnings, cfg.Stored.SuspendedWarnings()...)}, nil
}

// carryOut carries out one step in the life of the key, and stores the result in one write.
// The caller holds the lock.
func (b *backend) carryOut(ctx context.Context, req *logical.Request, entry configEntry, step keyring.Step, request *keyring.Request, apply stepFunc) (*config, []string, error) {
	// First the cache, then the time: every mint that uses the cached config has taken
	// its time before. See newMint.
	b.config.Store(nil)
	step.Now, step.Mount, step.Guarded = b.now(), req.MountPoint, entry.Guarded
	entry.DropExpired(step.Now)
	if _, err := entry.Ring.Parse(); err != nil {
		return nil, nil, err
	}
	if request != nil {
		var err error
		if step.Request, err = request.WithKey(entry.Current.Algorithm, b.GetRandomReader()); err != nil {
			return nil, nil, err
		}
	}
	warnings, err := apply(step, &entry.Ring)
	if err != nil {
		return nil, nil, refuse.Error(err)
	}
	if err := b.putConfig(ctx, req.Storage, entry); err != nil {
		return nil, nil, err
	}
	return b.config.Load().config, warnings, nil
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
	b.Logger().Info("deleted pending key version", "key_version", version)
	return nil, nil
}

// rotateIfDue carries out the step in the life of the key that is due, at most one.
func (b *backend) rotateIfDue(ctx context.Context, req *logical.Request) error {
	b.rotating.Lock()
	defer b.rotating.Unlock()
	cfg, err := b.getConfig(ctx, req.Storage)
	if err != nil || cfg == nil {
		return err
	}
	due := cfg.Stored.Due(b.now())
	if due == nil {
		return nil
	}
	roleTTL := time.Duration(0)
	if due.Retires && cfg.Stored.LongestTTL > cfg.Stored.TTLLimit() { // only then does it delay the next rotation
		roleTTL = b.lookUpRoleTTL(ctx, req.Storage)
	}
	b.lock.Lock()
	defer b.lock.Unlock()
	entry, err := readConfigEntry(ctx, req.Storage)
	if err != nil {
		return err
	}
	if due = entry.Due(b.now()); due == nil { // a request, or another node, may have carried it out
		return nil
	}
	var request *keyring.Request
	if due.NewKey {
		request = new(keyring.Request)
	}
	step := keyring.Step{}
	if roleTTL > 0 {
		step.RoleTTL = max(roleTTL, b.writtenTTL)
	}
	cfg, _, err = b.carryOut(ctx, req, entry, step, request, due.Apply)
	if err != nil {
		return err
	}
	if due.Deletes != nil {
		b.Logger().Info("deleted "+due.Name+" key version", "key_version", due.Deletes.Version)
	} else {
		b.Logger().Info("rotated signing key", append([]any{"operation", due.Name, "automatic", true}, cfg.LogFields()...)...)
	}
	return nil
}

// lookUpRoleTTL returns the longest TTL of the enabled roles, and from then on notes those
// of roles that are written. If it fails, it returns 0.
func (b *backend) lookUpRoleTTL(ctx context.Context, s logical.Storage) time.Duration {
	b.lock.Lock()
	b.writtenTTL = 0
	b.lock.Unlock()
	ttl, err := b.longestRoleTTL(ctx, s)
	if err != nil {
		b.Logger().Error("failed to look up the longest TTL; keeping the one that is known", "error", err)
		return 0
	}
	return max(ttl, time.Second) // LongestTTL is more than 0, also without a role
}

const pathRotateHelpDesc = `
Reading shows the current, the pending, and the previous version.

Writing replaces the key immediately, and deletes the current and the previous version.
With guarded=true, it also deletes the pending version. New tokens are signed with the
new key. Issued tokens stop working when each guard polls Vault or, without a guard, when
the proxy restarts with the new key from proxy-env. Use this to invalidate every token.

For rotations without rejected requests, set rotation_period in the config, or use
config/rotate/stage.

` + needsSudo + `

    $ vault read ati/config/rotate
    $ vault write -f ati/config/rotate
`

const pathRotateStageHelpDesc = `
Writing creates a pending version of the key, which does not sign tokens yet. Guards
accept it from their next poll on. Without guards, set proxy_url to the URL of new proxies
that start with proxy-env/<version> and run at the same time as those of the current
version. config/rotate/activate makes the pending version current. Deleting removes the
pending version. An automatic rotation waits until it is activated or deleted.

` + needsSudo + `

    $ vault write ati/config/rotate/stage proxy_url=https://ati-green.example.com
`

const pathRotateActivateHelpDesc = `
The current version becomes the previous version. With guarded=true, it is retired if
both have the same proxy_url. Otherwise, requests with its proxy_url get tokens for its
proxy until you retire it. After a rollback, this makes the version that was rolled back
current again.

` + needsSudo + `

    $ vault write -f ati/config/rotate/activate
`

const pathRotateRollbackHelpDesc = `
The current version becomes the previous one, and requests with its proxy_url still get
tokens for its proxy. To return to it, use config/rotate/activate. A rollback is
possible until all tokens of the previous version have expired.

` + needsSudo + `

    $ vault write -f ati/config/rotate/rollback
`

const pathRotateRetireHelpDesc = `
Issued tokens of the previous version remain valid at its proxy until they expire. All
that this mount minted have expired by previous_tokens_expire_by, when the key is
deleted here. Stop its proxy at that time: anyone with a copy of an imported key can
mint tokens that live longer.

` + needsSudo + `

    $ vault write -f ati/config/rotate/retire
`
