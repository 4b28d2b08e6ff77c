package atisecrets

import (
	"context"

	"github.com/hashicorp/vault/sdk/logical"

	"vault-plugin-secrets-ati/ati"
	"vault-plugin-secrets-ati/internal/param"
	"vault-plugin-secrets-ati/internal/refuse"
	"vault-plugin-secrets-ati/internal/revocation"
)

const (
	// maxRevoked limits the revocations other than those of leases, for which there is no
	// limit: a lease that cannot be revoked would stay in Vault. maxRoleRevoked is the
	// limit for revoke/<role>, so that the security team can always revoke.
	maxRevoked     = 100_000
	maxRoleRevoked = 90_000

	// purgedBuckets limits the writes of one periodic call.
	purgedBuckets = 256
)

// addRevocation stores a revocation, unless there are that many, and returns the config.
// Without an expiry, it is kept until all tokens have expired.
func (b *backend) addRevocation(ctx context.Context, req *logical.Request, e *revocation.Entry, limit int) (*config, error) {
	b.lock.Lock()
	defer b.lock.Unlock()

	cfg, err := b.loadConfig(ctx, req.Storage)
	if err != nil {
		return nil, err
	}
	if cfg == nil {
		return nil, noConfig(req)
	}
	revoked, err := b.loadRevoked(ctx, req.Storage)
	if err != nil {
		return nil, err
	}
	now := b.now()
	live := cfg.live(now)
	old := revoked.Get(e.Name())
	if old != nil && !old.Keep(live, now.Unix()) {
		old = nil
	}
	if !e.Lease && old == nil && revoked.IsFull(limit, live, now.Unix()) {
		return nil, refuse.Errorf("this mount has %d revocations, the maximum for this path; to revoke all tokens, rotate the key with: vault write -f %sconfig/rotate", limit, param.CommandPath(req.MountPoint))
	}
	e.RevokedAt, e.KeyVersion = now.Unix(), cfg.Stored.LastKeyVersion
	if e.ExpiresAt == 0 {
		e.ExpiresAt = cfg.Stored.LastExpiry(now).Unix()
		e.Imported = live.Imported
	}
	if old != nil {
		e.Include(old)
	}
	e.Generation = b.nextGeneration(cfg.generation, revoked)
	bucket := revoked.Place(e)
	if err := b.putRevoked(ctx, req.Storage, bucket, revoked.With(e, bucket)); err != nil {
		return nil, err
	}
	revoked.Add(e, bucket)
	b.Logger().Warn("revoked", "name", redactedName(e.Name()))
	return cfg, nil
}

// findRevocation returns the revocation of a token, or nil.
func (b *backend) findRevocation(ctx context.Context, req *logical.Request, claims *ati.Claims) (e *revocation.Entry, err error) {
	err = b.withRevoked(ctx, req.Storage, func(_ *config, revoked *revocation.List) error {
		e = revoked.Find(claims.ID, claims.Subject, claims.IssuedAt)
		return nil
	})
	return e, err
}

// purgeRevoked deletes revocations whose tokens have expired. It holds the lock for
// one write at a time.
func (b *backend) purgeRevoked(ctx context.Context, req *logical.Request) error {
	var stale []int
	err := b.withRevoked(ctx, req.Storage, func(cfg *config, revoked *revocation.List) error {
		if cfg != nil { // else its key may be imported again
			stale = revoked.Stale(cfg.live(b.now()), b.now().Unix(), purgedBuckets)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, bucket := range stale {
		if err := b.purgeBucket(ctx, req, bucket); err != nil {
			return err
		}
	}
	return nil
}

func (b *backend) purgeBucket(ctx context.Context, req *logical.Request, bucket int) error {
	b.lock.Lock()
	defer b.lock.Unlock()
	revoked, err := b.loadRevoked(ctx, req.Storage)
	if err != nil {
		return err
	}
	cfg, err := b.loadConfig(ctx, req.Storage)
	if cfg == nil || err != nil {
		return err
	}
	if cfg.generation <= revoked.Generation() {
		// After a restart, the generation must not be lower because the newest revocation
		// is gone: the config keeps it.
		if err := b.putConfig(ctx, req.Storage, cfg.entry()); err != nil {
			return err
		}
	}
	live, now := cfg.live(b.now()), b.now().Unix()
	if err := b.putRevoked(ctx, req.Storage, bucket, revoked.Kept(bucket, live, now)); err != nil {
		return err
	}
	revoked.Drop(bucket, live, now)
	return nil
}
