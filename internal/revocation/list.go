package revocation

import (
	"cmp"
	"maps"
	"slices"
	"sort"
)

// List is all revocations of a mount.
type List struct {
	buckets [Buckets]map[string]*Entry // by name
	size    int
	leases  int // of size

	// log has the entries in the order of their generations, among them some that were
	// replaced or dropped. generation is the highest ever.
	log        []*Entry
	generation int64
}

// NewList returns a list with the entries of storage.
func NewList(stored []Entry) *List {
	l := new(List)
	slices.SortFunc(stored, func(a, b Entry) int { return cmp.Compare(a.Generation, b.Generation) })
	for i := range stored {
		l.Add(&stored[i])
	}
	return l
}

// Add adds an entry with a generation that is higher than that of all others. It
// replaces one of the same name.
func (l *List) Add(e *Entry) {
	b := e.Bucket()
	if l.buckets[b] == nil {
		l.buckets[b] = map[string]*Entry{}
	}
	l.count(l.buckets[b][e.Name()], -1)
	l.buckets[b][e.Name()] = e
	l.count(e, 1)
	l.log = append(l.log, e)
	l.generation = max(l.generation, e.Generation)
	l.compact()
}

// Find returns the revocation of a token, or nil.
func (l *List) Find(jti, subject string, iat int64) *Entry {
	if e := l.Get(subjectName(subject)); e != nil && iat <= e.RevokedAt {
		return e
	}
	if e := l.Get(jtiName(jti)); e != nil {
		return e
	}
	if id, ok := batchID(jti); ok {
		return l.Get(jtiName(id))
	}
	return nil
}

// Get returns the entry with this name, or nil.
func (l *List) Get(name string) *Entry { return l.buckets[bucket(name)][name] }

// Names returns the names of all entries.
func (l *List) Names() []string {
	names := make([]string, 0, l.size)
	for _, entries := range l.buckets {
		names = slices.AppendSeq(names, maps.Keys(entries))
	}
	return names
}

// IsFull reports whether there are that many entries that concern a live key, not
// counting those of leases.
func (l *List) IsFull(limit int, live []Key, now int64) bool {
	if l.size-l.leases < limit {
		return false
	}
	n := 0
	for _, entries := range l.buckets {
		for _, e := range entries {
			if !e.Lease && e.Concerns(live, now) {
				n++
			}
		}
	}
	return n >= limit
}

// Generation returns the highest generation.
func (l *List) Generation() int64 { return l.generation }

// Since returns the entries with a higher generation, in the order of generations.
func (l *List) Since(generation int64) (entries []*Entry) {
	i := sort.Search(len(l.log), func(i int) bool { return l.log[i].Generation > generation })
	for _, e := range l.log[i:] {
		if l.Get(e.Name()) == e {
			entries = append(entries, e)
		}
	}
	return entries
}

// With returns the entries of e's bucket, with e, as they are stored.
func (l *List) With(e *Entry) []Entry {
	entries := []Entry{*e}
	for _, name := range slices.Sorted(maps.Keys(l.buckets[e.Bucket()])) {
		if name != e.Name() {
			entries = append(entries, *l.buckets[e.Bucket()][name])
		}
	}
	return entries
}

// Stale returns the buckets, at most limit, that have an entry which concerns no live key.
func (l *List) Stale(live []Key, now int64, limit int) (stale []int) {
	for i, entries := range l.buckets {
		for _, e := range entries {
			if len(stale) < limit && !e.Concerns(live, now) {
				stale = append(stale, i)
				break
			}
		}
	}
	return stale
}

// Kept returns the entries of a bucket that concern a live key.
func (l *List) Kept(bucket int, live []Key, now int64) (kept []Entry) {
	for _, name := range slices.Sorted(maps.Keys(l.buckets[bucket])) {
		if e := l.buckets[bucket][name]; e.Concerns(live, now) {
			kept = append(kept, *e)
		}
	}
	return kept
}

// Drop drops the entries of a bucket that concern no live key.
func (l *List) Drop(bucket int, live []Key, now int64) {
	for name, e := range l.buckets[bucket] {
		if !e.Concerns(live, now) {
			delete(l.buckets[bucket], name)
			l.count(e, -1)
		}
	}
	l.compact()
}

// compact removes from the log what was replaced or dropped, so rarely that it costs
// little for each entry.
func (l *List) compact() {
	if len(l.log) > 2*l.size+Buckets {
		l.log = slices.DeleteFunc(l.log, func(e *Entry) bool { return l.Get(e.Name()) != e })
	}
}

func (l *List) count(e *Entry, by int) {
	if e == nil {
		return
	}
	l.size += by
	if e.Lease {
		l.leases += by
	}
}
