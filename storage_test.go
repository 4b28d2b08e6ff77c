package atisecrets_test

import (
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/logical"

	"vault-plugin-secrets-ati/ati"
)

// The promise: the newest build reads the storage of each schema version that a
// release has written. testdata/storage has such a storage for each, as key and
// value, and is never changed once it is released: in v1, the current version is
// for ES256, the previous one, which is retired, and the pending one for HS256.
func TestTheStorageOfEachSchemaVersionIsRead(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.load("v1")
	m.same("config", data{
		"proxy_url": greenProxy, "algorithm": "ES256", "audience": "a", "accepted_audiences": []string{"b"}, "issuer": "i", "allowed_scopes": []string{"tool:*", "skill:summarize"},
		"max_ttl": int64(7200), "key_version": 2, "key_created_at": "2027-01-15T08:00:00Z", "key_fingerprint": "00ba44da43c736c6",
	}, m.ok(logical.ReadOperation, "config", nil).Data)
	m.same("versions", data{
		"current_version": 2, "current_proxy_url": greenProxy, "current_algorithm": "ES256", "current_fingerprint": "00ba44da43c736c6", "current_generated": true,
		"current_created_at": "2027-01-15T08:00:00Z", "current_activated_at": "2027-01-15T08:01:00Z",
		"pending_version": 3, "pending_proxy_url": "https://third.example.com", "pending_algorithm": "HS256", "pending_fingerprint": greenFingerprint, "pending_generated": false,
		"pending_created_at": "2027-01-15T08:03:00Z",
		"previous_version":   1, "previous_proxy_url": testProxy, "previous_algorithm": "HS256", "previous_fingerprint": testFingerprint, "previous_generated": false,
		"previous_created_at": "2027-01-15T08:00:00Z", "previous_activated_at": "2027-01-15T08:00:00Z", "previous_retired_at": "2027-01-15T08:02:00Z", "previous_tokens_expire_by": "2027-01-15T10:03:01Z",
	}, m.ok(logical.ReadOperation, "config/rotate", nil).Data)
	m.same("role", data{
		"tools": []string{"web_search", "github:*"}, "skills": []string{"summarize"}, "scopes": []string{}, "rate": map[string]string{"tool:github:*": "10/hour"},
		"ttl": int64(1800), "max_ttl": int64(7200), "audience": "b", "subject": "x/{{identity.entity.name}}", "job_id": "{{jti}}", "sandbox_id": "box",
		"allowed_agent_ids": []string{"sandbox:*"}, "allowed_job_ids": []string{"*"}, "allowed_sandbox_ids": []string{"s-*"},
		"generate_lease": true, "disabled": false, "description": "d",
	}, m.ok(logical.ReadOperation, "roles/r", nil).Data)
	m.same("the pending secret", any(greenSecret), m.ok(logical.ReadOperation, "proxy-env/3", nil).Data["ATI_JWT_SECRET"])
	m.same("the previous secret", any(testSecret), m.ok(logical.ReadOperation, "proxy-env/1", nil).Data["ATI_JWT_SECRET"])
	public, err := ati.ParsePublicKey(m.ok(logical.ReadOperation, "proxy-env", nil).Data["public_key"].(string))
	if err != nil {
		t.Fatal(err)
	}
	creds := m.ok(logical.UpdateOperation, "creds/r", data{"agent_id": "sandbox:1"})
	if _, err := ati.ValidateToken(creds.Data["token"].(string), public, ati.WithAudience("b"), ati.WithTime(func() time.Time { return m.now })); err != nil {
		t.Error(err)
	}
}
