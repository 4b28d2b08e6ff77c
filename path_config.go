package atisecrets

import (
	"context"
	"reflect"
	"time"

	"github.com/google/uuid"
	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"vault-plugin-secrets-ati/ati"
	"vault-plugin-secrets-ati/internal/keyring"
	"vault-plugin-secrets-ati/internal/param"
	"vault-plugin-secrets-ati/internal/refuse"
	"vault-plugin-secrets-ati/internal/role"
)

// keyFacts are the fields of a response that describe the current version of the key.
var keyFacts = param.Set[keyring.Keys]{
	param.Fact("proxy_url", framework.TypeString, "URL of the ATI proxy that holds the current key.", func(ks *keyring.Keys) any { return ks.Current.ProxyURL }),
	param.Fact("algorithm", framework.TypeString, "Signing algorithm.", func(ks *keyring.Keys) any { return ks.Current.Algorithm }),
	param.Precondition("key_version", framework.TypeInt, param.Display("Key version", "Precondition"), "Current version of the key.", func(ks *keyring.Keys) any { return ks.Current.Version }),
	param.Precondition("key_created_at", framework.TypeTime, param.Display("Key created at", "Precondition"), "Time at which the key was generated or imported.", func(ks *keyring.Keys) any { return ks.Current.CreatedAt.Format(time.RFC3339) }),
	param.Precondition("key_fingerprint", framework.TypeString, param.Display("Key fingerprint", "Precondition"), keyring.FingerprintDescription, func(ks *keyring.Keys) any { return ks.Current.Key.Fingerprint() }),
}

func pathConfig(b *backend) []*framework.Path {
	fields := merged(keyring.RequestParams.Fields(), role.LimitParams.Fields(), keyring.ScheduleParams.Fields(), keyFacts.Fields())
	fields["proxy_url"].Description += " Required for a new config."
	fields["algorithm"].Default = ati.HS256
	write := b.operation(writingNode, b.pathConfigWrite,
		"Configure the proxy, the signing key, and the limits for all roles.", "configure", "", framework.Response{Description: "Stored"})
	return []*framework.Path{{
		Pattern:        "config",
		Fields:         fields,
		ExistenceCheck: b.configExists,
		DisplayAttrs:   &framework.DisplayAttributes{OperationPrefix: operationPrefix},
		Operations: map[logical.Operation]framework.OperationHandler{
			logical.CreateOperation: write,
			logical.UpdateOperation: write,
			logical.PatchOperation: b.operation(writingNode, b.pathConfigWrite,
				"Update parts of the configuration.", "patch", "configuration", framework.Response{Description: "Stored"}),
			logical.ReadOperation: b.operation(activeNode, b.pathConfigRead,
				"Read the configuration, without the key.", "read", "configuration", framework.Response{Description: "Configuration", Fields: merged(role.LimitParams.Response(), keyring.ScheduleParams.Response(), keyFacts.Response())}),
			logical.DeleteOperation: b.operation(writingNode, b.pathConfigDelete,
				"Delete the configuration and all keys.", "delete", "configuration", framework.Response{Description: "Deleted"}),
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
	return &logical.Response{Data: merged(role.LimitParams.Data(&cfg.Limits), keyring.ScheduleParams.Data(&cfg.Stored.Schedule), keyFacts.Data(&cfg.Keys))}, nil
}

func (b *backend) pathConfigWrite(ctx context.Context, req *logical.Request, d *framework.FieldData) (*logical.Response, error) {
	b.lock.Lock()
	defer b.lock.Unlock()

	entry, err := readConfigEntry(ctx, req.Storage)
	if err != nil {
		return nil, err
	}
	request, err := keyring.ParseRequest(d.Raw)
	if err != nil {
		return nil, refuse.Error(err)
	}
	before, created := entry, entry.Current == nil
	var warnings []string
	switch {
	case created && req.Operation == logical.PatchOperation:
		err = noConfig(req)
	case created:
		entry, err = b.newConfig(entry, request, d.Raw)
	default:
		warnings, err = b.updateKeys(&entry, request, d.Raw)
	}
	if err != nil {
		return nil, err
	}
	fresh := role.NewLimits()
	role.LimitParams.Reset(d.Raw, &entry.Limits, &fresh)
	if err := role.LimitParams.Apply(d.Raw, &entry.Limits); err != nil {
		return nil, refuse.Error(err)
	}
	if err := b.applySchedule(ctx, req, &entry, request, d.Raw); err != nil {
		return nil, err
	}
	if !reflect.DeepEqual(before, entry) { // Terraform may write the same values repeatedly
		if err := b.putConfig(ctx, req.Storage, entry); err != nil {
			return nil, err
		}
	}
	if created && entry.Current.Generated && !entry.Guarded {
		warnings = append(warnings, "Vault generated a new signing key. Configure the proxy with the values from "+req.MountPoint+"proxy-env and restart it; until then it rejects tokens from this mount.")
	}
	warnings = append(warnings, param.PlaintextWarning(entry.Current.ProxyURL)...)
	warnings = append(warnings, entry.Limits.Warnings()...)
	warnings = append(warnings, entry.SuspendedWarnings()...)
	b.Logger().Info("config written", "created", created, "parameters", parameterList(req), "key_version", entry.Current.Version)
	return noContent(warnings), nil
}

// newConfig returns a new config with the first version of its key. It continues the
// version numbers of a config that was deleted.
func (b *backend) newConfig(deleted configEntry, request keyring.Request, raw map[string]any) (configEntry, error) {
	if err := keyFacts.CheckFacts(raw, nil); err != nil {
		return configEntry{}, refuse.Error(err)
	}
	request, err := request.WithKey(ati.HS256, b.GetRandomReader())
	if err != nil {
		return configEntry{}, err
	}
	ring, err := keyring.New(request, deleted.Ring, b.now())
	return configEntry{Limits: role.NewLimits(), Ring: ring, Epoch: uuid.NewString(), Generation: deleted.Generation}, refuse.Error(err)
}

func (b *backend) updateKeys(entry *configEntry, request keyring.Request, raw map[string]any) (warnings []string, err error) {
	entry.DropExpired(b.now())
	keys, err := entry.Ring.Parse()
	if err != nil {
		return nil, err
	}
	if err := keyFacts.CheckFacts(raw, keys); err != nil {
		return nil, refuse.Error(err)
	}
	entry.Ring, warnings, err = keys.Update(request)
	return warnings, refuse.Error(err)
}

// applySchedule sets when the key rotates automatically.
func (b *backend) applySchedule(ctx context.Context, req *logical.Request, entry *configEntry, key keyring.Request, raw map[string]any) error {
	was, fresh := entry.Schedule, keyring.NewSchedule()
	keyring.ScheduleParams.Reset(raw, &entry.Schedule, &fresh)
	if err := keyring.ScheduleParams.Apply(raw, &entry.Schedule); err != nil {
		return refuse.Error(err)
	}
	if _, written := raw["rotation_period"]; written && entry.Period > 0 && key.Imported() != "" {
		return refuse.Errorf("%s and rotation_period cannot be set in one request, which would fail when it is repeated after a rotation; remove %s to have Vault generate the key, or import the key first", key.Imported(), key.Imported())
	}
	var longestTTL time.Duration
	if entry.Schedule != was { // else a role that got a longer TTL since then delays the rotation
		longestTTL = entry.LongestTTL
	}
	if entry.Period > 0 && longestTTL > entry.TTLLimit() { // perhaps of a role that is gone
		var err error
		if longestTTL, err = b.longestRoleTTL(ctx, req.Storage); err != nil {
			return err
		}
	}
	if err := entry.Schedule.Check(entry.Guarded, longestTTL); err != nil {
		return refuse.Error(err)
	}
	entry.Reschedule(b.now())
	return nil
}

func (b *backend) pathConfigDelete(ctx context.Context, req *logical.Request, _ *framework.FieldData) (*logical.Response, error) {
	b.lock.Lock()
	defer b.lock.Unlock()

	entry, err := readConfigEntry(ctx, req.Storage)
	if err != nil || entry.Current == nil {
		return nil, err
	}
	if err := b.putConfig(ctx, req.Storage, configEntry{Ring: entry.Remains(), Generation: entry.Generation}); err != nil {
		return nil, err
	}
	b.Logger().Warn("deleted config and keys", "key_version", entry.Current.Version)
	if entry.Guarded {
		return noContent([]string{"The key was deleted. Guards reject every request until the mount has a config again."}), nil
	}
	return noContent([]string{"The key was deleted from Vault, but proxies that hold it still accept its tokens until they expire. To invalidate them now, restart the proxies with a different key."}), nil
}

const pathConfigHelpSyn = `Configure the proxy, the signing key, and the limits for all roles.`

const pathConfigHelpDesc = `
A new config requires proxy_url. Import the key that the proxy already holds, or omit
it to have Vault generate one. The key is never returned: compare key_fingerprint to
find out whether two places hold the same key. For HS256 it is the first 16
hexadecimal digits of HMAC-SHA256(secret, "ati key fingerprint"), for ES256 those of
the SHA-256 of the DER-encoded public key. To replace the key, use config/rotate.

audience, accepted_audiences, and issuer are for the claims of the tokens, and must
match the settings of the proxy. allowed_scopes and max_ttl limit what all roles may
grant, so that you can let other teams write roles.

What a read returns can be written back. key_version, key_created_at, and
key_fingerprint cannot be changed: a write with another value is rejected, so it
replaces only what you read. A patch changes the fields that it has; null resets one.

guarded states that every proxy runs behind ati-guard. Then rotation_period lets the key
rotate without a request: the next version is pending for rotation_overlap, and then
becomes current. config/rotate shows when. An imported key is replaced by a generated one.

allow_standby_minting spreads the load over the nodes of a cluster whose standbys serve
reads, at the cost that its description states.

` + needsSudo + `

    $ vault write ati/config proxy_url=https://ati.example.com
`
