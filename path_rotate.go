package atisecrets

import (
	"context"
	"fmt"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/helper/consts"
	"github.com/hashicorp/vault/sdk/logical"

	"vault-plugin-secrets-ati/ati"
)

func pathRotate(b *backend) []*framework.Path {
	status := framework.Response{Description: "The versions of the key", Fields: rotateResponse()}
	step := func(name, summary, verb, suffix, syn, desc string, callback framework.OperationFunc) *framework.Path {
		return &framework.Path{
			Pattern:      "config/rotate/" + name,
			DisplayAttrs: &framework.DisplayAttributes{OperationPrefix: operationPrefix},
			Operations: map[logical.Operation]framework.OperationHandler{
				logical.UpdateOperation: storing(operation(callback, summary, verb, suffix, status)),
			},
			HelpSynopsis:    syn,
			HelpDescription: desc,
		}
	}
	rotate := step("", "Replace the key at once. The former one, and a previous one, are forgotten.", "rotate", "key", pathRotateHelpSyn, pathRotateHelpDesc, b.pathRotateWrite)
	rotate.Pattern = "config/rotate"
	rotate.Fields = keyFields()
	rotate.Operations[logical.ReadOperation] = operation(b.pathRotateRead, "Read the versions of the key.", "read", "key-versions", status)

	stage := step("stage", "Make the next version of the key, which does not sign yet.", "stage", "key", pathRotateStageHelpSyn, pathRotateStageHelpDesc, b.pathRotateStageWrite)
	stage.Fields = keyFields()
	stage.Operations[logical.DeleteOperation] = storing(operation(b.pathRotateStageDelete, "Drop the staged version.", "drop", "staged-key", framework.Response{Description: "Dropped"}))

	return []*framework.Path{
		rotate,
		stage,
		step("activate", "Make the staged version the current one.", "activate", "staged-key", pathRotateActivateHelpSyn, pathRotateActivateHelpDesc, b.pathRotateActivateWrite),
		step("rollback", "Make the previous version the current one again.", "roll-back", "key", pathRotateRollbackHelpSyn, pathRotateRollbackHelpDesc, b.pathRotateRollbackWrite),
		step("retire", "End minting under the previous version.", "retire", "previous-key", pathRotateRetireHelpSyn, pathRotateRetireHelpDesc, b.pathRotateRetireWrite),
	}
}

func rotateResponse() map[string]*framework.FieldSchema {
	fields := map[string]*framework.FieldSchema{
		"last_rotated_at":           {Type: framework.TypeTime, Description: "When a key was last replaced at once. Left out where none was."},
		"previous_retired_at":       {Type: framework.TypeTime, Description: "When minting under the previous version ended. Left out while it goes on."},
		"previous_tokens_expire_by": {Type: framework.TypeTime, Description: "A time after which no token of the previous version that this mount minted passes anywhere. Left out until it is retired."},
	}
	for _, name := range []string{"current", "pending", "previous"} {
		there := name == "current"
		fields[name+"_version"] = &framework.FieldSchema{Type: framework.TypeInt, Required: there, Description: "The " + name + " version of the key."}
		fields[name+"_proxy_url"] = &framework.FieldSchema{Type: framework.TypeString, Required: there, Description: "Address of the proxy that holds it."}
		fields[name+"_algorithm"] = &framework.FieldSchema{Type: framework.TypeString, Required: there, Description: "Its signing algorithm."}
		fields[name+"_fingerprint"] = &framework.FieldSchema{Type: framework.TypeString, Required: there, Description: fingerprintDescription}
		fields[name+"_generated"] = &framework.FieldSchema{Type: framework.TypeBool, Required: there, Description: "Whether Vault generated it; else it was brought, and there may be copies."}
		fields[name+"_created_at"] = &framework.FieldSchema{Type: framework.TypeTime, Required: there, Description: "When it came into this mount."}
		if name != "pending" {
			fields[name+"_activated_at"] = &framework.FieldSchema{Type: framework.TypeTime, Description: "When it last became the current one."}
		}
	}
	return fields
}

func (b *backend) pathRotateRead(ctx context.Context, req *logical.Request, _ *framework.FieldData) (*logical.Response, error) {
	cfg, err := b.getConfig(ctx, req.Storage)
	if cfg == nil || err != nil {
		return nil, err
	}
	return &logical.Response{Data: cfg.status(b.now())}, nil
}

// versions names them for the log.
func (c *config) versions() string {
	text := fmt.Sprintf("current %d", c.current.Version)
	if c.pending != nil {
		text += fmt.Sprintf(", pending %d", c.pending.Version)
	}
	if c.previous != nil {
		text += fmt.Sprintf(", previous %d", c.previous.Version)
	}
	return text
}

// status tells all about the versions but the keys.
func (c *config) status(now time.Time) map[string]any {
	data := map[string]any{}
	at := func(name string, t time.Time) {
		if !t.IsZero() {
			data[name] = t.Format(time.RFC3339)
		}
	}
	for name, k := range map[string]*signingKey{"current_": c.current, "pending_": c.pending, "previous_": c.previous} {
		if k == nil || k.gone(now) {
			continue
		}
		data[name+"version"] = k.Version
		data[name+"proxy_url"] = k.ProxyURL
		data[name+"algorithm"] = k.Algorithm
		data[name+"fingerprint"] = k.fingerprint
		data[name+"generated"] = k.Generated
		at(name+"created_at", k.CreatedAt)
		at(name+"activated_at", k.ActivatedAt)
		at(name+"retired_at", k.RetiredAt)
		at(name+"tokens_expire_by", k.TokensExpireBy)
	}
	at("last_rotated_at", c.LastRotatedAt)
	return data
}

// rotate carries out one step in the life of the key, stores what it made of
// the entry in one write, and answers with the versions that there are then.
func (b *backend) rotate(ctx context.Context, req *logical.Request, step func(*configEntry, time.Time) (*logical.Response, error)) (*logical.Response, error) {
	b.lock.Lock()
	defer b.lock.Unlock()

	entry, err := readConfigEntry(ctx, req.Storage)
	if err != nil {
		return nil, err
	}
	if entry.Current == nil {
		return noConfig(req), nil
	}
	// The cache first, the time second: then each mint that goes by the cached
	// config has taken its time before. See beginMint.
	b.config.Store(nil)
	now := b.now()
	entry.forgetGone(now)
	resp, err := step(&entry, now)
	if err != nil || resp.IsError() {
		return resp, err
	}
	if err := b.putConfig(ctx, req.Storage, entry); err != nil {
		return nil, err
	}
	cfg := b.config.Load()
	b.Logger().Info("key versions changed", "path", req.Path, "parameters", parameterList(req), "versions", cfg.versions())
	resp.Data = cfg.status(now)
	return resp, nil
}

func (b *backend) pathRotateWrite(ctx context.Context, req *logical.Request, d *framework.FieldData) (*logical.Response, error) {
	return b.rotate(ctx, req, func(entry *configEntry, now time.Time) (*logical.Response, error) {
		key, resp, err := b.nextKey(entry, d, now)
		if err != nil || resp.IsError() {
			return resp, err
		}
		if p := entry.Pending; p != nil && p.ProxyURL == key.ProxyURL && key.ProxyURL != entry.Current.ProxyURL {
			return logical.ErrorResponse("proxy_url %q is that of version %d, which is staged: its proxy holds another key", key.ProxyURL, p.Version), nil
		}
		resp.AddWarning(fmt.Sprintf("the proxy refuses tokens under version %d, and takes those from before, until it has started again with what proxy-env says now; tokens from before that this mount minted expire by %s at the latest",
			key.Version, entry.lastExpiry(now).Format(time.RFC3339)))
		resp.AddWarning(fmt.Sprintf("a proxy that reads %sproxy-env/<version> does not start again by itself; start it with %sproxy-env", req.MountPoint, req.MountPoint))
		if p := entry.Previous; p != nil {
			resp.AddWarning(fmt.Sprintf("version %d is forgotten too: stop its proxy at %s", p.Version, p.ProxyURL))
		}
		if p := entry.Pending; p != nil {
			resp.AddWarning(fmt.Sprintf("version %d, which is staged, stays: whoever has read its key can mint for its proxies; drop it with: vault delete %sconfig/rotate/stage", p.Version, req.MountPoint))
		}
		key.ActivatedAt = key.CreatedAt
		entry.Current, entry.Previous, entry.RolledBack, entry.LastRotatedAt = key, nil, false, key.CreatedAt
		return resp, nil
	})
}

func (b *backend) pathRotateStageWrite(ctx context.Context, req *logical.Request, d *framework.FieldData) (*logical.Response, error) {
	return b.rotate(ctx, req, func(entry *configEntry, now time.Time) (*logical.Response, error) {
		if entry.Pending != nil {
			return logical.ErrorResponse("version %d is staged already; make it the current one with: vault write -f %sconfig/rotate/activate, or drop it with: vault delete %sconfig/rotate/stage", entry.Pending.Version, req.MountPoint, req.MountPoint), nil
		}
		key, resp, err := b.nextKey(entry, d, now)
		if err != nil || resp.IsError() {
			return resp, err
		}
		if p := entry.Previous; p != nil && key.ProxyURL == p.ProxyURL {
			resp.AddWarning(fmt.Sprintf("version %d has the proxy_url of version %d: its tokens are refused when the proxy there has started again with version %d", key.Version, p.Version, key.Version))
		}
		if key.ProxyURL == entry.Current.ProxyURL {
			resp.AddWarning(fmt.Sprintf("version %d has the proxy_url of version %d: from its activation until the proxy there has started again with it, tokens are refused; for none refused, stage it with a proxy_url of its own", key.Version, entry.Current.Version))
		}
		resp.AddWarning(fmt.Sprintf("a proxy that is started from %sproxy-env gets version %d when that is activated; one that is to stay with version %d has to read %sproxy-env/%d", req.MountPoint, key.Version, entry.Current.Version, req.MountPoint, entry.Current.Version))
		entry.Pending = key
		return resp, nil
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
	return b.rotate(ctx, req, func(entry *configEntry, now time.Time) (*logical.Response, error) {
		resp := new(logical.Response)
		p := entry.Previous
		switch {
		case entry.RolledBack && entry.Pending == nil:
			resp.Warnings = unretire(p)
			entry.makeCurrent(p, now)
			entry.RolledBack = false
			return resp, nil
		case entry.Pending == nil:
			return logical.ErrorResponse("no version is staged, and the current one is %d; stage one with: vault write %sconfig/rotate/stage proxy_url=https://…", entry.Current.Version, req.MountPoint), nil
		case p != nil && p.RetiredAt.IsZero():
			return logical.ErrorResponse("version %d is not retired yet; end minting under it with: vault write -f %sconfig/rotate/retire", p.Version, req.MountPoint), nil
		case p != nil:
			resp.AddWarning(fmt.Sprintf("version %d is forgotten here, but its tokens pass its proxy until %s", p.Version, p.TokensExpireBy.Format(time.RFC3339)))
		}
		entry.makeCurrent(entry.Pending, now)
		entry.Pending, entry.RolledBack = nil, false
		if entry.Current.ProxyURL == entry.Previous.ProxyURL {
			resp.AddWarning(fmt.Sprintf("the proxy refuses tokens until it has started again with version %d, whose proxy_url is that of version %d", entry.Current.Version, entry.Previous.Version))
		}
		return resp, nil
	})
}

// pathRotateRollbackWrite swaps the two versions. A second rollback is refused,
// since clients, and Vault itself when a plugin's process ends, repeat a request
// whose answer was lost: to go forward again is activate's.
func (b *backend) pathRotateRollbackWrite(ctx context.Context, req *logical.Request, _ *framework.FieldData) (*logical.Response, error) {
	return b.rotate(ctx, req, func(entry *configEntry, now time.Time) (*logical.Response, error) {
		p := entry.Previous
		switch {
		case p == nil:
			return logical.ErrorResponse("there is no previous version to go back to; the current one is %d", entry.Current.Version), nil
		case entry.RolledBack:
			return logical.ErrorResponse("version %d is the current one by a rollback already; to go forward to version %d again: vault write -f %sconfig/rotate/activate", entry.Current.Version, p.Version, req.MountPoint), nil
		}
		resp := &logical.Response{Warnings: unretire(p)}
		entry.makeCurrent(p, now)
		entry.RolledBack = true
		return resp, nil
	})
}

// makeCurrent activates a version. The one that was current becomes the
// previous one.
func (e *configEntry) makeCurrent(k *keyEntry, now time.Time) {
	e.Current, e.Previous = k, e.Current
	k.ActivatedAt = toSecond(now)
}

// unretire lets a retired version mint again.
func unretire(k *keyEntry) (warnings []string) {
	if !k.RetiredAt.IsZero() {
		warnings = []string{fmt.Sprintf("version %d was retired, and is no longer: its tokens don't expire by %s; keep its proxies running", k.Version, k.TokensExpireBy.Format(time.RFC3339))}
		k.RetiredAt, k.TokensExpireBy = time.Time{}, time.Time{}
	}
	return warnings
}

func (b *backend) pathRotateRetireWrite(ctx context.Context, req *logical.Request, _ *framework.FieldData) (*logical.Response, error) {
	return b.rotate(ctx, req, func(entry *configEntry, now time.Time) (*logical.Response, error) {
		p := entry.Previous
		switch {
		case p == nil:
			return logical.ErrorResponse("there is no previous version to retire; the current one is %d", entry.Current.Version), nil
		case !p.RetiredAt.IsZero():
			return logical.ErrorResponse("version %d was retired at %s already", p.Version, p.RetiredAt.Format(time.RFC3339)), nil
		}
		p.RetiredAt, p.TokensExpireBy = toSecond(now), entry.lastExpiry(now)
		resp := new(logical.Response)
		if !p.Generated {
			resp.AddWarning(fmt.Sprintf("the key of version %d was brought from elsewhere: whoever has a copy mints tokens that pass its proxy until that is stopped", p.Version))
		}
		return resp, nil
	})
}

// lastExpiry is when the last token that is minted by now has expired at every
// proxy. The proxy cuts its time to the second, as iat is, and takes a token in
// the 60th second after exp still. (The longest TTL by itself may be the longest
// duration that there is.)
func (e *configEntry) lastExpiry(now time.Time) time.Time {
	return toSecond(now).Add(e.LongestTTL).Add(ati.MaxLeeway + time.Second)
}

// nextKey makes the next version of the key from a request's parameters.
func (b *backend) nextKey(entry *configEntry, d *framework.FieldData, now time.Time) (*keyEntry, *logical.Response, error) {
	p, err := parseKeyParams(d)
	if err != nil {
		return nil, logical.ErrorResponse(err.Error()), nil
	}
	key, err := newKeyEntry(p, *entry.Current, entry.LastKeyVersion+1, now)
	if err != nil {
		return nil, logical.ErrorResponse(err.Error()), nil
	}
	if _, err := key.generate(b.GetRandomReader()); err != nil {
		return nil, nil, err
	}
	parsed, err := key.parse()
	if err != nil {
		return nil, nil, err
	}
	cfg, err := entry.parse()
	if err != nil {
		return nil, nil, err
	}
	for _, k := range cfg.known(now) {
		if k.fingerprint == parsed.fingerprint {
			return nil, logical.ErrorResponse("this is the key of version %d; a new version needs another one: leave it out, and Vault generates one", k.Version), nil
		}
	}
	resp := new(logical.Response)
	warnOfClearText(resp, key.ProxyURL)
	entry.LastKeyVersion = key.Version
	return key, resp, nil
}

// forgetGoneKeys drops, within about a minute, the key of a version of which no
// token passes any more.
func (b *backend) forgetGoneKeys(ctx context.Context, req *logical.Request) error {
	if cfg, err := b.getConfig(ctx, req.Storage); err != nil || cfg == nil || cfg.previous == nil || !cfg.previous.gone(b.now()) {
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
	if entry.forgetGone(b.now()); entry.Previous == before {
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
