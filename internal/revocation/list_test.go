package revocation

import (
	"fmt"
	"testing"
)

// TestList_LogIsCompacted checks that revoking the same again, and dropping, leave a log
// that is not much longer than the list, and has the same entries.
func TestList_LogIsCompacted(t *testing.T) {
	t.Parallel()
	l := NewList(nil)
	live := Live{Oldest: 1}
	check := func(since int64, want int) {
		t.Helper()
		if len(l.log) > 2*len(l.entries)+Buckets {
			t.Errorf("with %d entries, the log has %d", len(l.entries), len(l.log))
		}
		if got := len(l.Since(since)); got != want {
			t.Errorf("%d entries since %d, want %d", got, since, want)
		}
	}
	for i := range 50_000 {
		e := &Entry{Subject: fmt.Sprint(i % 1000), ExpiresAt: int64(i % 1000), KeyVersion: 1, Generation: int64(i)}
		l.Add(e, l.Place(e))
	}
	check(-1, 1000)
	check(49_989, 10)
	for bucket := range Buckets {
		l.Drop(bucket, live, 500)
	}
	check(-1, 499) // those that expire at 501 or later
	for bucket := range Buckets {
		l.Drop(bucket, live, 1000)
	}
	check(-1, 0)
	if len(l.entries) != 0 || l.Generation() != 49_999 {
		t.Errorf("size %d, generation %d", len(l.entries), l.Generation())
	}
}
