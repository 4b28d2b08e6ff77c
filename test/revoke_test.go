package test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/hashicorp/vault/api"
	"golang.org/x/sync/errgroup"

	"vault-plugin-secrets-ati/internal/revocation"
)

// TestRevoke_Leases checks what ends a leased token on a real server: the revocation of
// its lease, by ID, by prefix, or forcibly, and the end of the login that requested it;
// and that a lease that runs out records nothing.
func TestRevoke_Leases(t *testing.T) {
	t.Parallel()
	s, _ := startEngine(t)
	s.write(s.root, "ati/config", data{"guarded": true})
	s.write(s.root, "ati/roles/leased", data{"tools": "web_search", "generate_lease": true, "ttl": "1h", "allowed_agent_ids": "*"})
	s.write(s.root, "ati/roles/short", data{"tools": "web_search", "generate_lease": true, "ttl": "4s", "allowed_agent_ids": "*"})
	s.write(s.root, "ati/roles/forced", data{"tools": "web_search", "generate_lease": true, "ttl": "1h", "allowed_agent_ids": "*"})
	orchestrator := s.policy("orchestrator", `path "ati/creds/*" { capabilities = ["update"] }`)

	byID := s.write(s.root, "ati/creds/leased", data{"agent_id": "by-id"})
	byPrefix := s.write(s.root, "ati/creds/leased", data{"agent_id": "by-prefix"})
	byLogin := s.write(orchestrator, "ati/creds/leased", data{"agent_id": "by-login"})
	forced := s.write(s.root, "ati/creds/forced", data{"agent_id": "forced"})
	var revoked []string
	expect := func(after string, jti any) {
		t.Helper()
		revoked = append(revoked, "jti:"+jti.(string))
		poll(t, after, func() error { return s.expectRevoked(revoked) })
	}
	s.vault(s.root, "lease", "revoke", byID.LeaseID)
	expect("lease revoke", byID.Data["jti"])
	s.vault(s.root, "token", "revoke", orchestrator)
	expect("the end of the login", byLogin.Data["jti"])
	s.vault(s.root, "lease", "revoke", "-prefix", "ati/creds/leased")
	expect("lease revoke -prefix", byPrefix.Data["jti"])
	s.vault(s.root, "lease", "revoke", "-force", "-prefix", "ati/creds/forced")
	expect("lease revoke -force", forced.Data["jti"])
	if got := s.write(s.root, "ati/validate", data{"token": byID.Data["token"]}).Data; got["valid"] != false || !strings.HasPrefix(got["error"].(string), "revoked at ") {
		t.Errorf("the token of a revoked lease: %v", got)
	}

	// Leases that run out record nothing.
	const leases = 1000
	client := s.client(s.root)
	var work errgroup.Group
	work.SetLimit(16)
	for i := range leases {
		work.Go(func() error {
			_, err := client.Logical().Write("ati/creds/short", data{"agent_id": "short:" + strconv.Itoa(i)})
			return err
		})
	}
	if err := work.Wait(); err != nil {
		t.Fatal(err)
	}
	poll(t, "all leases have run out", func() error {
		left, err := client.Logical().List("sys/leases/lookup/ati/creds/short")
		if err == nil && left != nil {
			err = fmt.Errorf("%d leases are left", len(left.Data["keys"].([]any)))
		}
		return err
	})
	if err := s.expectRevoked(revoked); err != nil {
		t.Errorf("after %d leases have run out: %v", leases, err)
	}
}

// expectRevoked reports revocations other than those with these names.
func (s *server) expectRevoked(names []string) error {
	list, err := s.client(s.root).Logical().List("ati/revoked")
	if err != nil {
		return err
	}
	var got []string
	if list != nil {
		for _, name := range list.Data["keys"].([]any) {
			got = append(got, name.(string))
		}
	}
	if diff := cmp.Diff(slices.Sorted(slices.Values(names)), got); diff != "" {
		return fmt.Errorf("revocations (-want +got):\n%s", diff)
	}
	return nil
}

// TestRevoke_ManyAfterRestart measures a mount with the maximum of revocations when its
// plugin has restarted, as after a failover.
func TestRevoke_ManyAfterRestart(t *testing.T) {
	t.Parallel()
	s := launch(t, "info", `storage "inmem" {}`, nil, func(s *server) { s.settings += "\nraw_storage_endpoint = true\n" })
	s.initialize()
	s.mountEngine()
	s.write(s.root, "ati/roles/r", data{"tools": "web_search", "ttl": "1h", "allowed_agent_ids": "*"})
	token := s.write(s.root, "ati/creds/r", data{"agent_id": "sandbox:1"}).Data
	empty := timed(func() { s.write(s.root, "ati/revoke", data{"jti": uuid.NewString()}) })

	const entries = 100_000 - 2
	now := time.Now()
	buckets := map[int][]revocation.Entry{}
	for i := range entries {
		e := revocation.Entry{JTI: uuid.NewString(), RevokedAt: now.Unix(), ExpiresAt: now.Unix() + 3600, KeyVersion: 1, Generation: int64(i + 1)}
		if i == 0 {
			e.JTI = token["jti"].(string)
		}
		buckets[i%revocation.Buckets] = append(buckets[i%revocation.Buckets], e)
	}
	mount := s.read(s.root, "sys/mounts/ati").Data["uuid"].(string)
	client := s.client(s.root)
	var work errgroup.Group
	work.SetLimit(16)
	for bucket, stored := range buckets {
		work.Go(func() error {
			value, err := json.Marshal(map[string]any{"storage_version": 1, "entries": stored})
			if err != nil {
				return err
			}
			_, err = client.Logical().Write(fmt.Sprintf("sys/raw/logical/%s/revoked/%03x", mount, bucket), data{"value": string(value)})
			return err
		})
	}
	if err := work.Wait(); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(s.pluginProcess(nil), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	poll(t, "the plugin has restarted", func() error {
		_, err := client.Logical().Read("ati/config")
		return err
	})
	// validate loads the revocations, and returns none of them.
	load := timed(func() {
		if got := s.write(s.root, "ati/validate", data{"token": token["token"]}).Data["valid"]; got != false {
			t.Errorf("a revoked token is valid=%v after a restart", got)
		}
	})
	var all *api.Secret
	whole := timed(func() { all = s.read(s.root, "ati/guard") })
	if got := len(all.Data["revoked"].([]any)); got < entries {
		t.Errorf("guard has %d revocations", got)
	}
	unchanged := timed(func() { s.read(s.root, "ati/guard", "since="+all.Data["generation"].(json.Number).String()) })
	full := timed(func() { s.write(s.root, "ati/revoke", data{"jti": uuid.NewString()}) })
	t.Logf("%d revocations: read after a restart in %v; guard in %v, %v if nothing has changed; a further revocation in %v, the first in %v", entries, load, whole, unchanged, full, empty)
}

func timed(do func()) time.Duration {
	start := time.Now()
	do()
	return time.Since(start).Round(100 * time.Microsecond)
}
