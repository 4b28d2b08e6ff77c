package atisecrets

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/vault/sdk/helper/jsonutil"
	"github.com/hashicorp/vault/sdk/logical"

	"vault-plugin-secrets-ati/internal/keyring"
	"vault-plugin-secrets-ati/internal/revocation"
	"vault-plugin-secrets-ati/internal/role"
)

const (
	// storageVersion is written to each storage entry. An entry with a higher version is
	// an error: this build could misread it.
	storageVersion = 1

	configStoragePath = "config"
	rolePrefix        = "role/"
	revokedPrefix     = "revoked/"

	// writeTimeout is longer than the 90 s that Vault allows for a request.
	writeTimeout = 2 * time.Minute
)

// store reads and writes the entries of a mount, and caches them.
type store struct {
	// lock is held for a storage write and the change of the cache that belongs to it,
	// and for reading while a cache is filled from storage: so no cache is filled with
	// what a write has replaced.
	lock   sync.RWMutex
	config atomic.Pointer[cachedConfig]
	roles  *roleCache

	rotating   sync.Mutex    // held during an automatic step, which also takes lock
	writtenTTL time.Duration // longest TTL of the roles that were written during the step

	revoked *revocation.List // nil until it is read
	clock   func() time.Time
}

// cachedConfig holds nil if there is no config. That is cached too, since anyone can
// read jwks.
type cachedConfig struct{ *config }

func newStore(clock func() time.Time) *store {
	return &store{roles: newRoleCache(parseRole), clock: clock}
}

// getConfig returns the config, or nil if there is none.
func (st *store) getConfig(ctx context.Context, s logical.Storage) (*config, error) {
	if cached := st.config.Load(); cached != nil {
		return cached.config, nil
	}
	st.lock.RLock()
	defer st.lock.RUnlock()
	return st.loadConfig(ctx, s)
}

// loadConfig reads the config from storage into the cache. The caller holds the lock.
func (st *store) loadConfig(ctx context.Context, s logical.Storage) (*config, error) {
	entry, err := readConfigEntry(ctx, s)
	if err != nil {
		return nil, err
	}
	cfg, err := entry.parse()
	if err != nil {
		return nil, err
	}
	st.config.Store(&cachedConfig{cfg})
	return cfg, nil
}

// readConfigEntry returns the stored entry, or an empty one.
func readConfigEntry(ctx context.Context, s logical.Storage) (configEntry, error) {
	entry := configEntry{Ring: keyring.Ring{Schedule: keyring.NewSchedule()}} // older builds store none
	if err := readEntry(ctx, s, configStoragePath, &entry, func() int { return entry.StorageVersion }); err != nil {
		return configEntry{}, fmt.Errorf("read config: %w", err)
	}
	return entry, nil
}

// putConfig stores the entry and updates the cache. The caller holds the lock.
func (st *store) putConfig(ctx context.Context, s logical.Storage, entry configEntry) error {
	var damage damagedError
	revoked, err := st.loadRevoked(ctx, s)
	if err != nil && !errors.As(err, &damage) { // a damaged revocation must not prevent a rotation
		return err
	}
	entry.StorageVersion = storageVersion
	entry.Generation = st.nextGeneration(entry.Generation, revoked)
	entry.Ring = entry.WithGeneration(entry.Generation)
	cfg, err := entry.parse()
	if err != nil {
		return err
	}
	stored, err := logical.StorageEntryJSON(configStoragePath, entry)
	if err != nil {
		return fmt.Errorf("write config: %w", err)
	}
	// A write that failed may have been carried out: the next request reads storage.
	st.config.Store(nil)
	if err := put(ctx, s, stored); err != nil {
		return fmt.Errorf("write config: %w", err)
	}
	st.config.Store(&cachedConfig{cfg})
	return nil
}

// getRole returns a role, or nil if it does not exist.
func (st *store) getRole(ctx context.Context, s logical.Storage, name string) (*role.Role, error) {
	if r, err := st.roles.get(name); r != nil || err != nil {
		return r, err
	}
	st.lock.RLock()
	defer st.lock.RUnlock()
	stored, err := readRole(ctx, s, name)
	if stored == nil || err != nil {
		return nil, err
	}
	r, err := parseRole(name, stored)
	if r != nil {
		st.roles.put(r, stored)
	}
	return r, err
}

// readRole returns a role as it is stored, or nil if it does not exist.
func readRole(ctx context.Context, s logical.Storage, name string) ([]byte, error) {
	entry, err := s.Get(ctx, rolePrefix+name)
	if err != nil {
		return nil, fmt.Errorf("read role %q: %w", name, err)
	}
	if entry == nil {
		return nil, nil
	}
	return entry.Value, nil
}

// readRoleEntry returns the stored role, or nil if it does not exist.
func readRoleEntry(ctx context.Context, s logical.Storage, name string) (*role.Entry, error) {
	stored, err := readRole(ctx, s, name)
	if stored == nil || err != nil {
		return nil, err
	}
	return decodeRole(name, stored)
}

// decodeRole returns nil for an entry without a version, which this engine never wrote.
func decodeRole(name string, stored []byte) (*role.Entry, error) {
	entry := new(role.Entry)
	if err := decodeEntry(stored, entry, func() int { return entry.StorageVersion }); err != nil {
		return nil, fmt.Errorf("read role %q: %w", name, err)
	}
	if entry.StorageVersion == 0 {
		return nil, nil
	}
	return entry, nil
}

func parseRole(name string, stored []byte) (*role.Role, error) {
	entry, err := decodeRole(name, stored)
	if entry == nil || err != nil {
		return nil, err
	}
	r, err := entry.Parse(name)
	if err != nil {
		return nil, fmt.Errorf("read role %q: %w", name, err)
	}
	return r, nil
}

// raiseLongestTTL stores the longest TTL of a role that is about to be stored, if it
// is longer than that of all others: a crash between the two writes leaves a bound
// that is too long, never too short. A disabled role needs none, because enabling it
// is a write too. The caller holds the lock.
func (st *store) raiseLongestTTL(ctx context.Context, s logical.Storage, cfg *config, r *role.Role) error {
	if r.Disabled || r.LongestTTL() <= cfg.Stored.LongestTTL {
		return nil
	}
	raised := cfg.entry()
	raised.LongestTTL = r.LongestTTL()
	return st.putConfig(ctx, s, raised)
}

// longestRoleTTL returns the longest TTL of the enabled roles. Without the lock, which it
// would hold for seconds if there are many, it may miss roles that are being written.
func (st *store) longestRoleTTL(ctx context.Context, s logical.Storage) (longest time.Duration, err error) {
	names, err := s.List(ctx, rolePrefix)
	if err != nil {
		return 0, fmt.Errorf("list roles: %w", err)
	}
	for _, name := range names {
		entry, err := readRoleEntry(ctx, s, name)
		if err != nil {
			return 0, err
		}
		if entry != nil && !entry.Disabled {
			longest = max(longest, entry.LongestTTL())
		}
	}
	return longest, nil
}

// putRole stores a role and updates the cache. The caller holds the lock.
func (st *store) putRole(ctx context.Context, s logical.Storage, r *role.Role) error {
	r.StorageVersion = storageVersion
	entry, err := logical.StorageEntryJSON(rolePrefix+r.Name, r.Entry)
	if err != nil {
		return fmt.Errorf("write role %q: %w", r.Name, err)
	}
	if !r.Disabled {
		st.writtenTTL = max(st.writtenTTL, r.LongestTTL())
	}
	// A write that failed may have been carried out: the next request reads storage.
	st.roles.remove(r.Name)
	if err := put(ctx, s, entry); err != nil {
		return fmt.Errorf("write role %q: %w", r.Name, err)
	}
	st.roles.put(r, entry.Value)
	return nil
}

// deleteRole deletes a role. The caller holds the lock.
func (st *store) deleteRole(ctx context.Context, s logical.Storage, name string) error {
	st.roles.remove(name)
	ctx, cancel := writeContext(ctx)
	defer cancel()
	if err := s.Delete(ctx, rolePrefix+name); err != nil {
		return fmt.Errorf("delete role %q: %w", name, err)
	}
	return nil
}

// revokedBucket is a part of the revocations as it is stored.
type revokedBucket struct {
	StorageVersion int                `json:"storage_version"`
	Entries        []revocation.Entry `json:"entries"`
}

// loadRevoked returns the revocations. The caller holds the lock for writing.
func (st *store) loadRevoked(ctx context.Context, s logical.Storage) (*revocation.List, error) {
	if st.revoked != nil {
		return st.revoked, nil
	}
	names, err := s.List(ctx, revokedPrefix)
	if err != nil {
		return nil, fmt.Errorf("list revocations: %w", err)
	}
	entries := map[int][]revocation.Entry{}
	for _, name := range names {
		number, err := strconv.ParseInt(name, 16, 32)
		if err != nil || number < 0 || number >= revocation.Buckets {
			continue // not of this engine
		}
		var bucket revokedBucket
		if err := readEntry(ctx, s, revokedPrefix+name, &bucket, func() int { return bucket.StorageVersion }); err != nil {
			return nil, fmt.Errorf("read revocations: %w", err)
		}
		entries[int(number)] = bucket.Entries
	}
	st.revoked = revocation.NewList(entries)
	return st.revoked, nil
}

// withRevoked calls f with the config, which is nil if there is none, and the
// revocations of the same moment.
func (st *store) withRevoked(ctx context.Context, s logical.Storage, f func(*config, *revocation.List) error) error {
	for {
		st.lock.RLock()
		cached, revoked := st.config.Load(), st.revoked
		if cached != nil && revoked != nil {
			defer st.lock.RUnlock()
			return f(cached.config, revoked)
		}
		st.lock.RUnlock()
		if err := st.fill(ctx, s); err != nil {
			return err
		}
	}
}

// fill reads what is not in the caches.
func (st *store) fill(ctx context.Context, s logical.Storage) error {
	st.lock.Lock()
	defer st.lock.Unlock()
	if _, err := st.loadRevoked(ctx, s); err != nil {
		return err
	}
	_, err := st.loadConfig(ctx, s)
	return err
}

// putRevoked stores the entries of a bucket. The caller holds the lock, and then changes
// the list.
func (st *store) putRevoked(ctx context.Context, s logical.Storage, bucket int, entries []revocation.Entry) error {
	path := revokedPrefix + fmt.Sprintf("%03x", bucket)
	revoked := st.revoked
	// A write that failed may have been carried out: the next request reads storage.
	st.revoked = nil
	ctx, cancel := writeContext(ctx)
	defer cancel()
	if len(entries) == 0 {
		if err := s.Delete(ctx, path); err != nil {
			return fmt.Errorf("delete revocations: %w", err)
		}
	} else {
		stored, err := logical.StorageEntryJSON(path, revokedBucket{storageVersion, entries})
		if err != nil {
			return fmt.Errorf("write revocations: %w", err)
		}
		if err := s.Put(ctx, stored); err != nil {
			return fmt.Errorf("write revocations: %w", err)
		}
	}
	st.revoked = revoked
	return nil
}

// nextGeneration returns the number of a change, which is higher than that of each
// earlier one, also of those that a restored snapshot does not have.
func (st *store) nextGeneration(config int64, revoked *revocation.List) int64 {
	generation := max(config+1, st.clock().UnixMicro())
	if revoked != nil {
		generation = max(generation, revoked.Generation()+1)
	}
	return generation
}

// dropCaches makes the next requests read from storage.
func (st *store) dropCaches() {
	st.lock.Lock()
	defer st.lock.Unlock()
	st.config.Store(nil)
	st.roles.purge()
	st.revoked = nil
}

// invalidate drops from the caches what another node of the cluster has changed.
func (st *store) invalidate(_ context.Context, key string) {
	st.lock.Lock()
	defer st.lock.Unlock()
	if key == configStoragePath {
		st.config.Store(nil)
	} else if name, ok := strings.CutPrefix(key, rolePrefix); ok {
		st.roles.remove(name)
	} else if strings.HasPrefix(key, revokedPrefix) {
		st.revoked = nil
	}
}

// damagedError is an entry that this build cannot read.
type damagedError struct{ error }

// readEntry decodes a storage entry into out, if there is one. version returns the
// storage version of out.
func readEntry(ctx context.Context, s logical.Storage, path string, out any, version func() int) error {
	entry, err := s.Get(ctx, path)
	if err != nil || entry == nil {
		return err
	}
	return decodeEntry(entry.Value, out, version)
}

func decodeEntry(stored []byte, out any, version func() int) error {
	if err := jsonutil.DecodeJSON(stored, out); err != nil {
		return damagedError{fmt.Errorf("decode storage entry: %w", err)}
	}
	if v := version(); v > storageVersion {
		return damagedError{fmt.Errorf("storage entry has version %d, but this plugin supports versions up to %d; use the plugin version that wrote it, or a newer one", v, storageVersion)}
	}
	return nil
}

func put(ctx context.Context, s logical.Storage, entry *logical.StorageEntry) error {
	ctx, cancel := writeContext(ctx)
	defer cancel()
	return s.Put(ctx, entry)
}

// writeContext returns a context for a storage write that is not canceled with the
// request: a write that has started may be carried out in any case, and a cache that
// is filled before it completes would keep the old value.
func writeContext(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), writeTimeout)
}
