package atisecrets

import (
	"bytes"
	"math"
	"regexp"
	"sync"
	"weak"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"vault-plugin-secrets-ati/internal/role"
)

const (
	// roleCacheBytes limits the memory for roles: more than 100,000 usual ones.
	roleCacheBytes = 48 << 20

	// roleOverhead is the memory for a role in addition to its name and its stored form.
	roleOverhead = 200
)

// emptyMember matches a member of a stored role that means the same as none.
var emptyMember = regexp.MustCompile(`,"[a-z_]+":(""|\[\]|\{\}|0|false)`)

// roleCache holds the roles that were used most recently.
type roleCache struct {
	mu    sync.Mutex
	lru   *simplelru.LRU[string, *cachedRole]
	bytes int
	parse func(name string, stored []byte) (*role.Role, error)
}

// cachedRole is a role as it is stored, which takes a fifth of the memory of a parsed one.
// The parsed one stays until the garbage collector finds that no request uses it.
type cachedRole struct {
	stored []byte
	mu     sync.Mutex
	parsed weak.Pointer[role.Role]
}

func newRoleCache(parse func(name string, stored []byte) (*role.Role, error)) *roleCache {
	c := &roleCache{parse: parse}
	c.purge()
	return c
}

// get returns a role, or nil if it is not in the cache.
func (c *roleCache) get(name string) (*role.Role, error) {
	c.mu.Lock()
	cached, ok := c.lru.Get(name)
	c.mu.Unlock()
	if !ok {
		return nil, nil
	}
	cached.mu.Lock()
	defer cached.mu.Unlock()
	if r := cached.parsed.Value(); r != nil {
		return r, nil
	}
	r, err := c.parse(name, cached.stored)
	cached.parsed = weak.Make(r)
	return r, err
}

// put adds a role, and drops those that were used least recently.
func (c *roleCache) put(r *role.Role, stored []byte) {
	added := &cachedRole{stored: bytes.Clone(emptyMember.ReplaceAll(stored, nil)), parsed: weak.Make(r)} // without unused capacity
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lru.Remove(r.Name)
	c.lru.Add(r.Name, added)
	for c.bytes += added.size(r.Name); c.bytes > roleCacheBytes; {
		c.lru.RemoveOldest()
	}
}

func (c *roleCache) remove(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lru.Remove(name)
}

// purge drops all roles. It doesn't call the LRU's Purge, which takes 40 ms if the cache is
// full, while all requests wait: a standby purges every maxAge.
func (c *roleCache) purge() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lru, _ = simplelru.NewLRU(math.MaxInt, func(name string, r *cachedRole) { c.bytes -= r.size(name) }) // fails for a size of 0
	c.bytes = 0
}

func (r *cachedRole) size(name string) int { return len(name) + len(r.stored) + roleOverhead }
