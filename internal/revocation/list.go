package revocation

import (
	"cmp"
	"maps"
	"math/rand/v2"
	"slices"
	"sort"
)

// List is all revocations of a mount.
type List struct {
	entries map[string]*Entry // by name
	places  map[string]int    // the bucket of each
	buckets [Buckets]map[string]*Entry
	leases  int

	// log has the entries in the order of their generations, among them some that were
	// replaced or dropped. generation is the highest ever.
	log        []*Entry
	generation int64
}

// NewList returns a list with the entries of storage, by bucket.
func NewList(stored map[int][]Entry) *List {
	l := &List{entries: map[string]*Entry{}, places: map[string]int{}}
	type placed struct {
		*Entry
		bucket int
	}
	var all []placed
	for bucket, entries := range stored {
		for i := range entries {
			all = append(all, placed{&entries[i], bucket})
		}
	}
	slices.SortFunc(all, func(a, b placed) int { return cmp.Compare(a.Generation, b.Generation) })
	for _, p := range all {
		l.Add(p.Entry, p.bucket)
	}
	return l
}

// Place returns the bucket for an entry: that of the entry which it replaces, or the
// smaller of two at random, so that no one can choose names that fill one.
func (l *List) Place(e *Entry) int {
	if bucket, ok := l.places[e.Name()]; ok {
		return bucket
	}
	bucket, other := rand.IntN(Buckets), rand.IntN(Buckets)
	if len(l.buckets[other]) < len(l.buckets[bucket]) {
		return other
	}
	return bucket
}

// Add adds an entry with a generation that is higher than that of all others. It
// replaces one of the same name.
func (l *List) Add(e *Entry, bucket int) {
	name := e.Name()
	l.remove(name)
	if l.buckets[bucket] == nil {
		l.buckets[bucket] = map[string]*Entry{}
	}
	l.entries[name], l.places[name], l.buckets[bucket][name] = e, bucket, e
	if e.Lease {
		l.leases++
	}
	l.log = append(l.log, e)
	l.generation = max(l.generation, e.Generation)
	l.compact()
}

func (l *List) remove(name string) {
	e := l.entries[name]
	if e == nil {
		return
	}
	delete(l.buckets[l.places[name]], name)
	delete(l.entries, name)
	delete(l.places, name)
	if e.Lease {
		l.leases--
	}
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
func (l *List) Get(name string) *Entry { return l.entries[name] }

// Names returns the names of all entries.
func (l *List) Names() []string { return slices.Collect(maps.Keys(l.entries)) }

// IsFull reports whether that many entries count.
func (l *List) IsFull(limit int, live Live, now int64) bool {
	if len(l.entries)-l.leases < limit {
		return false
	}
	n := 0
	for _, e := range l.entries {
		if e.counts(live, now) {
			n++
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

// With returns the entries of a bucket, with e, as they are stored.
func (l *List) With(e *Entry, bucket int) []Entry {
	entries := []Entry{*e}
	for _, name := range slices.Sorted(maps.Keys(l.buckets[bucket])) {
		if name != e.Name() {
			entries = append(entries, *l.buckets[bucket][name])
		}
	}
	return entries
}

// Stale returns the buckets, at most limit, that have an entry which is not to be kept.
func (l *List) Stale(live Live, now int64, limit int) (stale []int) {
	for i, entries := range l.buckets {
		for _, e := range entries {
			if len(stale) < limit && !e.Keep(live, now) {
				stale = append(stale, i)
				break
			}
		}
	}
	return stale
}

// Kept returns the entries of a bucket that are to be kept.
func (l *List) Kept(bucket int, live Live, now int64) (kept []Entry) {
	for _, name := range slices.Sorted(maps.Keys(l.buckets[bucket])) {
		if e := l.buckets[bucket][name]; e.Keep(live, now) {
			kept = append(kept, *e)
		}
	}
	return kept
}

// Drop drops the entries of a bucket that are not to be kept.
func (l *List) Drop(bucket int, live Live, now int64) {
	for name, e := range l.buckets[bucket] {
		if !e.Keep(live, now) {
			l.remove(name)
		}
	}
	l.compact()
}

// compact removes from the log what was replaced or dropped, so rarely that it costs
// little for each entry.
func (l *List) compact() {
	if len(l.log) > 2*len(l.entries)+Buckets {
		l.log = slices.DeleteFunc(l.log, func(e *Entry) bool { return l.entries[e.Name()] != e })
	}
}
