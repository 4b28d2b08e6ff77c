package atisecrets

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"vault-plugin-secrets-ati/internal/role"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/hashicorp/vault/sdk/logical"
)

const (
	// storageVersion is written into each storage entry. An entry with a higher
	// one is refused, not misread.
	storageVersion = 1

	configStoragePath = "config"
	rolePrefix        = "role/"

	// roleCacheSize bounds the parsed roles kept in memory. A usual role takes
	// some 2 KB there.
	roleCacheSize = 10_000
)

// store reads and writes a mount's entries, and keeps them parsed.
type store struct {
	// lock makes a storage write and the caches' change one step. Filling a
	// cache from storage takes it for reading, so that what a writer has
	// replaced can't come back.
	lock   sync.RWMutex
	config atomic.Pointer[config]
	roles  *lru.Cache[string, *role.Role]
}

// getConfig returns the config, or nil where there is none.
func (st *store) getConfig(ctx context.Context, s logical.Storage) (*config, error) {
	if cfg := st.config.Load(); cfg != nil {
		return cfg.orNil(), nil
	}
	st.lock.RLock()
	defer st.lock.RUnlock()
	return st.loadConfig(ctx, s)
}

// orNil is nil for what the cache holds where there is no config: jwks, which
// anybody may ask, must not go to storage each time.
func (c *config) orNil() *config {
	if c.Current == nil {
		return nil
	}
	return c
}

// loadConfig fills the cache from storage. The caller holds the lock.
func (st *store) loadConfig(ctx context.Context, s logical.Storage) (*config, error) {
	entry, err := readConfigEntry(ctx, s)
	if err != nil {
		return nil, err
	}
	cfg, err := entry.parse()
	if err != nil {
		return nil, err
	}
	st.config.Store(cfg)
	return cfg.orNil(), nil
}

// readConfigEntry returns the stored entry, or an empty one.
func readConfigEntry(ctx context.Context, s logical.Storage) (configEntry, error) {
	var entry configEntry
	if err := readEntry(ctx, s, configStoragePath, &entry, func() int { return entry.StorageVersion }); err != nil {
		return configEntry{}, fmt.Errorf("read config: %w", err)
	}
	return entry, nil
}

// putConfig stores the entry and renews the cache. The caller holds the lock.
func (st *store) putConfig(ctx context.Context, s logical.Storage, entry configEntry) error {
	entry.StorageVersion = storageVersion
	cfg, err := entry.parse()
	if err != nil {
		return err
	}
	stored, err := logical.StorageEntryJSON(configStoragePath, entry)
	if err != nil {
		return fmt.Errorf("write config: %w", err)
	}
	// Whether a failed write was carried out is not known: read it anew.
	st.config.Store(nil)
	if err := put(ctx, s, stored); err != nil {
		return fmt.Errorf("write config: %w", err)
	}
	st.config.Store(cfg)
	return nil
}

// getRole returns a role, or nil where there is none of that name.
func (st *store) getRole(ctx context.Context, s logical.Storage, name string) (*role.Role, error) {
	if r, ok := st.roles.Get(name); ok {
		return r, nil
	}
	st.lock.RLock()
	defer st.lock.RUnlock()
	entry, err := readRoleEntry(ctx, s, name)
	if entry == nil || err != nil {
		return nil, err
	}
	r, err := entry.Parse(name)
	if err != nil {
		return nil, fmt.Errorf("read role %q: %w", name, err)
	}
	st.roles.Add(name, r)
	return r, nil
}

func readRoleEntry(ctx context.Context, s logical.Storage, name string) (*role.Entry, error) {
	entry := new(role.Entry)
	if err := readEntry(ctx, s, rolePrefix+name, entry, func() int { return entry.StorageVersion }); err != nil {
		return nil, fmt.Errorf("read role %q: %w", name, err)
	}
	if entry.StorageVersion == 0 {
		return nil, nil
	}
	return entry, nil
}

// raiseLongestTTL sees to it that config's bound on the life of tokens holds for
// a role that is about to be stored: a crash between the two leaves a bound that is
// too long, never too short. A disabled role needs none: enabling it is a write, too.
// The caller holds the lock.
func (st *store) raiseLongestTTL(ctx context.Context, s logical.Storage, cfg *config, r *role.Role) error {
	if r.Disabled || r.LongestTTL() <= cfg.Stored.LongestTTL {
		return nil
	}
	raised := cfg.entry()
	raised.LongestTTL = r.LongestTTL()
	return st.putConfig(ctx, s, raised)
}

// putRole stores a role and renews the cache. The caller holds the lock.
func (st *store) putRole(ctx context.Context, s logical.Storage, r *role.Role) error {
	r.StorageVersion = storageVersion
	entry, err := logical.StorageEntryJSON(rolePrefix+r.Name, r.Entry)
	if err != nil {
		return fmt.Errorf("write role %q: %w", r.Name, err)
	}
	// Whether a failed write was carried out is not known: read it anew.
	st.roles.Remove(r.Name)
	if err := put(ctx, s, entry); err != nil {
		return fmt.Errorf("write role %q: %w", r.Name, err)
	}
	st.roles.Add(r.Name, r)
	return nil
}

// invalidate drops what another node of the cluster has changed in storage.
func (st *store) invalidate(_ context.Context, key string) {
	st.lock.Lock()
	defer st.lock.Unlock()
	if key == configStoragePath {
		st.config.Store(nil)
	} else if name, ok := strings.CutPrefix(key, rolePrefix); ok {
		st.roles.Remove(name)
	}
}

// readEntry decodes a storage entry, if there is one, and refuses one that a
// newer version of the plugin wrote.
func readEntry(ctx context.Context, s logical.Storage, path string, out any, version func() int) error {
	entry, err := s.Get(ctx, path)
	if err != nil || entry == nil {
		return err
	}
	if err := entry.DecodeJSON(out); err != nil {
		return fmt.Errorf("decode the storage entry: %w", err)
	}
	if v := version(); v > storageVersion {
		return fmt.Errorf("the storage entry has version %d, and this plugin knows up to %d: a newer version of the plugin wrote it", v, storageVersion)
	}
	return nil
}

// forWrite is the context of a write to storage. That is waited for once it has begun,
// also when its request is given up meanwhile: it may be carried out all the same, and
// a cache that is filled in between would keep what was there before. It is bounded,
// beyond the 90 s that Vault gives a request.
func forWrite(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), 2*time.Minute)
}

func put(ctx context.Context, s logical.Storage, entry *logical.StorageEntry) error {
	ctx, cancel := forWrite(ctx)
	defer cancel()
	return s.Put(ctx, entry)
}

func remove(ctx context.Context, s logical.Storage, path string) error {
	ctx, cancel := forWrite(ctx)
	defer cancel()
	return s.Delete(ctx, path)
}
