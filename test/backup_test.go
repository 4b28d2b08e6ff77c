package test

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// The promise: a snapshot of one cluster, restored on another with keys of its
// own, is the mount as it was.
func TestCluster_SnapshotRestore(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 1, nil)
	lost := c.first
	c.activateNext(nil)
	c.rotate("/retire")
	// The third version is dropped: the fourth is not to be called so again.
	c.rotate("/stage")
	if _, err := lost.client(lost.root).Logical().Delete("ati/config/rotate/stage"); err != nil {
		t.Fatal(err)
	}
	c.recordState()
	l := startLoad(t, time.Minute, 0, lost)
	l.current.Store(2)
	l.waitForMints()
	written := l.writtenRoles()
	var snapshot bytes.Buffer
	if err := lost.client(lost.root).Sys().RaftSnapshot(&snapshot); err != nil {
		t.Fatal(err)
	}
	l.waitForMints()
	l.check(c.keys, lost.audit)
	lost.kill()

	other := startCluster(t, 1, nil).first
	stranger := other.read(other.root, "ati/creds/r").Data["token"]
	root := other.root
	if err := other.client(root).Sys().RaftSnapshotRestore(&snapshot, true); err != nil {
		t.Fatal(err)
	}
	poll(t, "Vault seals itself", func() error {
		health, err := other.client("").Sys().Health()
		if err == nil && !health.Sealed {
			err = errors.New("it is not sealed")
		}
		return err
	})
	other.root, other.unsealKey, other.audit = lost.root, lost.unsealKey, lost.audit
	other.unseal()
	c.first, c.nodes = other, []*server{other}
	c.checkState(written)
	if got := other.request(root, "GET", "ati/creds/r", nil); got != http.StatusForbidden {
		t.Errorf("with the other cluster's root token a mint is a %d", got)
	}
	validate := func(token any) data { return other.write(other.root, "ati/validate", data{"token": token}).Data }
	for _, a := range l.results {
		if got := validate(a.token); got["valid"] != true || got["jti"] != a.jti || got["key_version"] != json.Number(strconv.Itoa(a.version)) {
			t.Fatalf("of a token from before, of version %d, validate says %v", a.version, got)
		}
	}
	if diff := cmp.Diff(data{"valid": false, "error": "signed by no key of this mount"}, validate(stranger)); diff != "" {
		t.Errorf("of a token that the other cluster had minted (-want +got):\n%s", diff)
	}

	before := len(l.results)
	l = startLoad(t, time.Minute, 0, other)
	l.current.Store(2)
	l.waitForMints()
	c.activateNext(l)
	l.waitForMints()
	l.check(c.keys, other.audit)
	if got, want := versionsOf(t, c.rotation), (versions{Current: 4, Previous: 2}); got != want {
		t.Errorf("after the next rotation there are %+v, want %+v", got, want)
	}
	t.Logf("%d tokens from before the restore are valid after it", before)
}
