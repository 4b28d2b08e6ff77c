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
	"github.com/hashicorp/vault/api"
)

// Guarantee: a snapshot of one cluster, restored on another one that has its own keys,
// restores the mount completely.
func TestCluster_SnapshotRestore(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 1, nil)
	lost := c.first
	c.activateNext(nil)
	c.rotate("/retire")
	// Delete pending version 3. Its number must not be used again.
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
	otherToken := other.read(other.root, "ati/creds/r").Data["token"]
	root := other.root
	if err := other.client(root).Sys().RaftSnapshotRestore(&snapshot, true); err != nil {
		t.Fatal(err)
	}
	poll(t, "Vault is sealed", func() error {
		health, err := other.client("").Sys().Health()
		if err == nil && !health.Sealed {
			err = errors.New("not sealed")
		}
		return err
	})
	other.root, other.unsealKey, other.audit = lost.root, lost.unsealKey, lost.audit
	other.unseal()
	c.first, c.nodes = other, []*server{other}
	c.checkState(written)
	if got := other.request(root, "GET", "ati/creds/r", nil); got != http.StatusForbidden {
		t.Errorf("a request with the other cluster's root token returns %d", got)
	}
	validate := func(token any) data { return other.write(other.root, "ati/validate", data{"token": token}).Data }
	for _, r := range l.results {
		if got := validate(r.token); got["valid"] != true || got["jti"] != r.jti || got["key_version"] != json.Number(strconv.Itoa(r.version)) {
			t.Fatalf("validate of an earlier token of version %d returns %v", r.version, got)
		}
	}
	if diff := cmp.Diff(data{"valid": false, "error": "not signed by any key of this mount"}, validate(otherToken)); diff != "" {
		t.Errorf("validate of the other cluster's token (-want +got):\n%s", diff)
	}

	before := len(l.results)
	l = startLoad(t, time.Minute, 0, other)
	l.current.Store(2)
	l.waitForMints()
	c.activateNext(l)
	l.waitForMints()
	l.check(c.keys, other.audit)
	if got, want := versionsOf(t, c.rotation), (versions{Current: 4, Previous: 2}); got != want {
		t.Errorf("after the next rotation the versions are %+v, want %+v", got, want)
	}
	t.Logf("%d earlier tokens are valid after the restore", before)
}

func (s *server) snapshot() *bytes.Buffer {
	s.t.Helper()
	snapshot := new(bytes.Buffer)
	if err := s.client(s.root).Sys().RaftSnapshot(snapshot); err != nil {
		s.t.Fatal(err)
	}
	return snapshot
}

// restore restores a snapshot, and waits until it is in force.
func (s *server) restore(snapshot *bytes.Buffer, restored func(*api.Client) error) {
	s.t.Helper()
	if err := s.client(s.root).Sys().RaftSnapshotRestore(snapshot, true); err != nil {
		s.t.Fatal(err)
	}
	poll(s.t, "the snapshot was restored", func() error { return restored(s.client(s.root)) })
}

// Guarantee: after a snapshot from before an automatic rotation is restored, the key rotates
// once, to a new key, and then not before the period is over. Only in make soak.
func TestRotate_AutomaticAfterRestore(t *testing.T) {
	t.Parallel()
	if !soaking {
		t.Log("not run: it takes 9 minutes, and is part of make soak")
		return
	}
	s := launch(t, "info", raftStorage(t, 1, ""), nil, shortRotation)
	s.initialize()
	s.mountScheduled("HS256")
	before := s.waitForScheduled("before", func(scheduledKey) bool { return true })
	snapshot := s.snapshot()
	lost := s.waitForScheduled("version 2 is current", func(k scheduledKey) bool { return k.Current == 2 })
	token := s.read(s.root, "ati/creds/r").Data["token"]
	s.restore(snapshot, func(client *api.Client) error {
		k, err := s.scheduledKey()
		if err == nil && k.Current != 1 {
			err = errors.New(k.String())
		}
		return err
	})
	s.waitForScheduled("restored", func(k scheduledKey) bool { return k.Current == 1 && k.currentAt.Equal(before.currentAt) })
	after := s.waitForScheduled("version 2 is current again", func(k scheduledKey) bool { return k.Current == 2 })
	if after.versions != (versions{Current: 2, Previous: 1, Retired: true}) || !after.nextRotation.Equal(after.currentAt.Add(scheduledPeriod)) || !after.currentAt.After(lost.currentAt) {
		t.Errorf("after the restore: %+v", after)
	}
	if got := s.write(s.root, "ati/validate", data{"token": token}).Data; got["valid"] != false {
		t.Errorf("validate of a token of the version 2 that was lost returns %v", got)
	}
	time.Sleep(75 * time.Second) // in which the periodic function is called
	if now, err := s.scheduledKey(); err != nil || now != after {
		t.Errorf("%v later: %v, want %v", err, now, after)
	}
}
