package atisecrets_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	mathrand "math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/helper/consts"
	"github.com/hashicorp/vault/sdk/logical"

	"vault-plugin-secrets-ati/ati"
)

// weakKey returns a private key that is not random.
func weakKey(t testing.TB) string {
	t.Helper()
	key, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), append(make([]byte, 31), 7))
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}

// TestRotate_ReplacesKeyImmediately checks that an immediate rotation invalidates
// every issued token, and that one write replaces both the key and proxy_url.
func TestRotate_ReplacesKeyImmediately(t *testing.T) {
	t.Parallel()
	m := configured(t, nil, nil)
	before, _ := m.tokenFor("")
	m.now = m.now.Add(time.Minute)
	puts := len(m.storage.order)
	status := m.step("", data{"secret": greenSecret, "proxy_url": greenProxy + "/"}, fmt.Sprintf(rotatedWarning, 2, "2027-01-15T09:02:01Z"), pinnedWarning)
	m.equal("status", data{
		"current_version": 2, "current_proxy_url": greenProxy, "current_algorithm": "HS256", "current_fingerprint": status["current_fingerprint"], "current_generated": false,
		"current_created_at": "2027-01-15T08:01:00Z", "current_activated_at": "2027-01-15T08:01:00Z", "last_rotated_at": "2027-01-15T08:01:00Z",
	}, status)
	m.equal("writes", []string{"config"}, m.storage.order[puts:])
	token, version := m.tokenFor("")
	m.equal("version", 2, version)
	for range 2 { // from the cache, and from storage
		m.equal("the new token", 2, m.verdict(token))
		m.equal("the old token", fmt.Sprintf(rotatedSinceText, "2027-01-15T08:01:00Z"), m.verdict(before))
		m.equal("proxy-env", data{"ATI_JWT_SECRET": greenSecret, "ATI_JWT_AUDIENCE": "ati-proxy", "ATI_JWT_ACCEPTED_AUDIENCES": "ati-proxy", "ATI_JWT_ISSUER": "ati-orchestrator"},
			m.ok(logical.ReadOperation, "proxy-env", nil).Data)
		m.b = m.newBackend()
	}
	m.refused(logical.ReadOperation, "proxy-env/1", nil, "key version 1 does not exist; available versions: 2")
	m.refused(logical.ReadOperation, "creds/r", data{"proxy_url": testProxy}, `no active key for proxy_url "https://ati.example.com"; the current proxy_url is "https://green.example.com"`)
	if strings.Contains(m.storage.dump(t)["config"], testSecret) {
		t.Error("storage still has the old secret")
	}

	// Without parameters, proxy and algorithm stay, and Vault generates a secret.
	status = m.step("", nil, fmt.Sprintf(rotatedWarning, 3, "2027-01-15T09:02:01Z"), pinnedWarning)
	m.equal("version and proxy", []any{3, greenProxy, "HS256"}, []any{status["current_version"], status["current_proxy_url"], status["current_algorithm"]})
	m.equal("a token of version 2", fmt.Sprintf(rotatedSinceText, "2027-01-15T08:01:00Z"), m.verdict(token))
	secret := m.ok(logical.ReadOperation, "proxy-env", nil).Data["ATI_JWT_SECRET"]
	if secret == greenSecret || len(secret.(string)) != 64 {
		t.Error("no new secret was generated")
	}
}

// TestRotate_StageToRetire checks the status, the tokens, and the keys at each step of
// a zero-downtime rotation.
func TestRotate_StageToRetire(t *testing.T) {
	t.Parallel()
	m := configured(t, nil, data{"ttl": "30m", "max_ttl": "2h"})
	blue := data{
		"version": 1, "proxy_url": testProxy, "algorithm": "HS256", "fingerprint": testFingerprint, "generated": false,
		"created_at": "2027-01-15T08:00:00Z", "activated_at": "2027-01-15T08:00:00Z",
	}
	green := data{
		"version": 2, "proxy_url": greenProxy, "algorithm": "HS256", "fingerprint": "", "generated": false, "created_at": "2027-01-15T08:01:00Z",
	}
	status := func(versions map[string]data) data {
		all := data{}
		for name, fields := range versions {
			for field, value := range fields {
				all[name+"_"+field] = value
			}
		}
		return all
	}
	secrets := func(want map[string]string) {
		t.Helper()
		for version, secret := range want {
			path := "proxy-env" + version
			if secret == "" {
				m.refused(logical.ReadOperation, path, nil, fmt.Sprintf("key version %s does not exist; available versions: 2", version[1:]))
			} else if got := m.ok(logical.ReadOperation, path, nil).Data["ATI_JWT_SECRET"]; got != secret {
				t.Errorf("%s has another secret", path)
			}
		}
	}
	first, _ := m.tokenFor("")
	m.equal("before", status(map[string]data{"current": blue}), m.ok(logical.ReadOperation, "config/rotate", nil).Data)

	m.now = m.now.Add(time.Minute)
	got := m.step("/stage", data{"proxy_url": greenProxy, "secret": greenSecret}, stageWarning)
	green["fingerprint"] = got["pending_fingerprint"]
	m.equal("staged", status(map[string]data{"current": blue, "pending": green}), got)
	secrets(map[string]string{"": testSecret, "/1": testSecret, "/2": greenSecret})
	m.refused(logical.UpdateOperation, "creds/r", data{"proxy_url": greenProxy}, `no active key for proxy_url "https://green.example.com": key version 2 is not active yet; the current proxy_url is "https://ati.example.com"`)
	m.equal("config", 1, m.ok(logical.ReadOperation, "config", nil).Data["key_version"])

	m.now = m.now.Add(time.Minute)
	green["activated_at"] = "2027-01-15T08:02:00Z"
	puts := len(m.storage.order)
	m.equal("activated", status(map[string]data{"current": green, "previous": blue}), m.step("/activate", nil))
	m.equal("writes", []string{"config"}, m.storage.order[puts:])
	secrets(map[string]string{"": greenSecret, "/1": testSecret, "/2": greenSecret})
	for proxy, want := range map[string]int{"": 2, greenProxy: 2, testProxy: 1} {
		token, version := m.tokenFor(proxy)
		m.equal("version for "+proxy, want, version)
		m.equal("verdict on a token for "+proxy, want, m.verdict(token))
	}
	m.equal("a token from before", 1, m.verdict(first))
	config := m.ok(logical.ReadOperation, "config", nil).Data
	m.equal("config", []any{greenProxy, 2, "2027-01-15T08:01:00Z", green["fingerprint"]}, []any{config["proxy_url"], config["key_version"], config["key_created_at"], config["key_fingerprint"]})

	m.now = m.now.Add(time.Hour)
	last := m.ok(logical.UpdateOperation, "creds/r", data{"proxy_url": testProxy, "ttl": "2h"}).Data["token"].(string)
	blue["retired_at"], blue["tokens_expire_by"] = "2027-01-15T09:02:00Z", "2027-01-15T11:03:01Z" // 2h, a minute, and a second later
	m.equal("retired", status(map[string]data{"current": green, "previous": blue}), m.step("/retire", nil, importedWarning))
	m.refused(logical.UpdateOperation, "creds/r", data{"proxy_url": testProxy}, `no active key for proxy_url "https://ati.example.com": key version 1 is retired; the current proxy_url is "https://green.example.com"`)
	secrets(map[string]string{"": greenSecret, "/1": testSecret, "/2": greenSecret}) // a blue proxy may restart
	// A longer TTL of a role that is written now does not matter.
	m.ok(logical.UpdateOperation, "roles/r", data{"max_ttl": "100h"})

	// validate rejects an expired token a second before the proxy does.
	m.now = time.Date(2027, 1, 15, 11, 2, 59, 999_000_000, time.UTC)
	m.equal("the last token, two seconds before", 1, m.verdict(last))
	m.now = time.Date(2027, 1, 15, 11, 3, 0, 999_000_000, time.UTC)
	m.equal("the last token, a second before", "token has expired: exp is 2027-01-15T11:02:00Z", m.verdict(last))
	m.now = time.Date(2027, 1, 15, 11, 3, 1, 0, time.UTC)
	m.equal("the last token", "not signed by any key of this mount", m.verdict(last))
	m.equal("gone", status(map[string]data{"current": green}), m.ok(logical.ReadOperation, "config/rotate", nil).Data)
	secrets(map[string]string{"": greenSecret, "/1": "", "/2": greenSecret})
	m.refused(logical.UpdateOperation, "config/rotate/rollback", nil, "there is no previous version to roll back to (current version: 2)")
}

// TestRotate_PurgesExpiredKey checks that a retired key is removed from storage when
// its last token has expired.
func TestRotate_PurgesExpiredKey(t *testing.T) {
	t.Parallel()
	retired := func() *mount {
		m := configured(t, nil, nil)
		m.activateGreen()
		m.step("/retire", nil, importedWarning)
		return m
	}
	stored := func(m *mount) bool { return strings.Contains(m.storage.dump(t)["config"], testSecret) }
	m := retired()
	m.periodic()
	m.now = m.now.Add(time.Hour + time.Minute)
	m.periodic()
	if !stored(m) {
		t.Error("the key was removed a second too early")
	}
	m.now = m.now.Add(time.Second)
	m.storage.fail = "put config"
	if _, err := m.request(logical.RollbackOperation, "", nil); err == nil || !strings.Contains(err.Error(), "write config: disk on fire") {
		t.Errorf("a failed write: %v", err)
	}
	m.storage.fail = ""
	m.periodic()
	if stored(m) {
		t.Error("the key was not removed")
	}
	puts := len(m.storage.order)
	m.periodic()
	m.equal("writes when there is nothing to forget", 0, len(m.storage.order)-puts)
	m.tokenFor(greenProxy)

	// Any other change of the config removes it too.
	for path, d := range map[string]data{"config": {"issuer": "x"}, "config/rotate/stage": nil} {
		m := retired()
		m.now = m.now.Add(time.Hour + 61*time.Second)
		m.write(path, d)
		if stored(m) {
			t.Errorf("a write of %s did not remove the key", path)
		}
	}
}

// TestRotate_Rollback checks that rollback and activate swap the two versions, both of
// which keep minting, and undo a retirement. A repeated step is refused, since a
// client may repeat a request whose response was lost.
func TestRotate_Rollback(t *testing.T) {
	t.Parallel()
	m := configured(t, nil, nil)
	m.activateGreen()
	versions := func(status data) []any {
		return []any{status["current_version"], status["previous_version"], status["current_activated_at"], status["previous_tokens_expire_by"]}
	}
	mints := func(wantCurrent int) {
		t.Helper()
		for proxy, want := range map[string]int{"": wantCurrent, testProxy: 1, greenProxy: 2} {
			_, version := m.tokenFor(proxy)
			m.equal("version for "+proxy, want, version)
		}
	}
	again := func() {
		t.Helper()
		m.refused(logical.UpdateOperation, "config/rotate/rollback", nil, "version 1 is already current after a rollback; to return to version 2, run: vault write -f ati/config/rotate/activate")
	}
	m.now = m.now.Add(time.Minute)
	m.equal("rolled back", []any{1, 2, "2027-01-15T08:01:00Z", nil}, versions(m.step("/rollback", nil)))
	mints(1)
	m.equal("proxy_url", testProxy, m.ok(logical.ReadOperation, "config", nil).Data["proxy_url"])
	again()
	m.b = m.newBackend()
	again()
	m.now = m.now.Add(time.Minute)
	m.equal("rolled forward", []any{2, 1, "2027-01-15T08:02:00Z", nil}, versions(m.step("/activate", nil)))
	mints(2)
	m.refused(logical.UpdateOperation, "config/rotate/activate", nil, "no version is pending (current version: 2); stage one with ati/config/rotate/stage")
	m.step("/retire", nil, importedWarning)
	m.now = m.now.Add(time.Hour)
	const unretired = "Version %d is no longer retired, so its tokens may outlive %s. Keep its proxies running."
	m.equal("rolled back after retire", []any{1, 2, "2027-01-15T09:02:00Z", nil}, versions(m.step("/rollback", nil, fmt.Sprintf(unretired, 1, "2027-01-15T09:03:01Z"))))
	mints(1)
	m.equal("retired", []any{1, 2, "2027-01-15T09:02:00Z", "2027-01-15T10:03:01Z"}, versions(m.step("/retire", nil)))
	again()
	m.equal("forward after retire", []any{2, 1, "2027-01-15T09:02:00Z", nil}, versions(m.step("/activate", nil, fmt.Sprintf(unretired, 2, "2027-01-15T10:03:01Z"))))
	mints(2)

	// If a third version is staged, activate is for that one.
	m.step("/rollback", nil)
	m.write("config/rotate/stage", data{"proxy_url": "https://third.example.com"})
	m.refused(logical.UpdateOperation, "config/rotate/activate", nil, "previous version 2 is not retired; retire it first with: vault write -f ati/config/rotate/retire")
	m.ok(logical.DeleteOperation, "config/rotate/stage", nil)
	m.equal("forward, when it is dropped", []any{2, 1, "2027-01-15T09:02:00Z", nil}, versions(m.step("/activate", nil)))

	// A version that was rolled back, retired, and purged does not come back.
	m.step("/rollback", nil)
	m.step("/retire", nil)
	m.now = m.now.Add(2 * time.Hour)
	m.refused(logical.UpdateOperation, "config/rotate/activate", nil, "no version is pending (current version: 1); stage one with ati/config/rotate/stage")
	m.refused(logical.UpdateOperation, "config/rotate/rollback", nil, "there is no previous version to roll back to (current version: 1)")
	m.write("config/rotate/stage", data{"proxy_url": "https://fourth.example.com"})
	m.equal("the next", 4, m.step("/activate", nil)["current_version"])
	m.equal("and back", 1, m.step("/rollback", nil)["current_version"])
}

// TestRotate_RejectsStepsOutOfOrder checks that a step that is out of order is refused
// with what to do instead.
func TestRotate_RejectsStepsOutOfOrder(t *testing.T) {
	t.Parallel()
	m := configured(t, nil, nil)
	refused := func(step string, d data, want string) {
		t.Helper()
		m.refused(logical.UpdateOperation, "config/rotate"+step, d, want)
	}
	refused("/activate", nil, "no version is pending (current version: 1); stage one with ati/config/rotate/stage")
	refused("/rollback", nil, "there is no previous version to roll back to (current version: 1)")
	refused("/retire", nil, "there is no previous version to retire (current version: 1)")
	if resp := m.ok(logical.DeleteOperation, "config/rotate/stage", nil); resp != nil {
		t.Errorf("deleting a stage that does not exist returned %v", resp)
	}
	m.step("/stage", data{"proxy_url": greenProxy}, stageWarning)
	refused("/stage", nil, "version 2 is already pending; activate it with: vault write -f ati/config/rotate/activate, or drop it with: vault delete ati/config/rotate/stage")
	refused("/retire", nil, "there is no previous version to retire (current version: 1)")
	m.step("/activate", nil)
	refused("/activate", nil, "no version is pending (current version: 2); stage one with ati/config/rotate/stage")
	m.write("config/rotate/stage", data{"proxy_url": "https://third.example.com"})
	refused("/activate", nil, "previous version 1 is not retired; retire it first with: vault write -f ati/config/rotate/retire")
	m.step("/retire", nil, importedWarning)
	refused("/retire", nil, "version 1 was already retired at 2027-01-15T08:00:00Z")
	m.step("/activate", nil, "Key version 1 was deleted from this mount, but its proxy accepts its tokens until 2027-01-15T09:01:01Z.")
	m.equal("versions", []any{3, 2}, func() []any {
		s := m.ok(logical.ReadOperation, "config/rotate", nil).Data
		return []any{s["current_version"], s["previous_version"]}
	}())
}

// TestRotate_NeverReusesVersions checks that a version number always refers to the
// same key.
func TestRotate_NeverReusesVersions(t *testing.T) {
	t.Parallel()
	m := configured(t, nil, nil)
	m.step("/stage", data{"proxy_url": greenProxy}, stageWarning)
	m.ok(logical.DeleteOperation, "config/rotate/stage", nil)
	m.refused(logical.ReadOperation, "proxy-env/2", nil, "key version 2 does not exist; available versions: 1")
	m.refused(logical.UpdateOperation, "config/rotate/stage", data{"secret": "x"}, fmt.Sprintf(secretLengthText, 1))
	m.equal("after a dropped one", 3, m.write("config/rotate/stage", data{"proxy_url": greenProxy}).Data["pending_version"])
	// A pending version survives an immediate rotation, with a lower number than the
	// new current one.
	got := m.write("config/rotate", nil).Data
	m.equal("rotated with a pending one", []any{4, 3, nil}, []any{got["current_version"], got["pending_version"], got["previous_version"]})
	m.refused(logical.ReadOperation, "proxy-env/1", nil, "key version 1 does not exist; available versions: 3, 4")
	m.ok(logical.DeleteOperation, "config", nil)
	m.ok(logical.CreateOperation, "config", data{"proxy_url": testProxy})
	m.equal("after deletion", data{"current_version": 5}, func() data {
		s := m.ok(logical.ReadOperation, "config/rotate", nil).Data
		return data{"current_version": s["current_version"]}
	}())
}

// TestRotate_ProxyURLs checks the warnings and errors where two versions would have
// the same proxy_url, or where tokens would be sent to a proxy that holds another key.
func TestRotate_ProxyURLs(t *testing.T) {
	t.Parallel()
	m := configured(t, nil, nil)
	sameURL := "Version 2 has the proxy_url of current version 1. After activation, the proxy rejects new tokens until it restarts with version 2. To avoid rejected requests, stage the new version with a different proxy_url."
	m.step("/stage", nil, sameURL, stageWarning)
	m.step("/activate", nil, "Restart the proxy at https://ati.example.com with version 2. Until then it rejects new tokens.")
	// Both versions have this address, and the current one mints.
	_, version := m.tokenFor(testProxy)
	m.equal("version", 2, version)
	m.step("/rollback", nil)
	_, version = m.tokenFor(testProxy)
	m.equal("version after rollback", 1, version)

	m = configured(t, nil, nil)
	m.step("/stage", data{"proxy_url": greenProxy}, stageWarning)
	m.refused(logical.UpdateOperation, "config", data{"proxy_url": greenProxy}, `proxy_url "https://green.example.com" belongs to key version 2, and its proxy holds that key; choose a different URL (current version: 1)`)
	m.refused(logical.UpdateOperation, "config/rotate", data{"proxy_url": greenProxy}, `proxy_url "https://green.example.com" belongs to pending version 2, and its proxy holds that key; choose a different URL`)
	m.step("/activate", nil)
	// Terraform may write the address from before the activation.
	m.refused(logical.UpdateOperation, "config", data{"proxy_url": testProxy, "audience": "x"}, `proxy_url "https://ati.example.com" belongs to key version 1, and its proxy holds that key; choose a different URL (current version: 2)`)
	m.ok(logical.UpdateOperation, "config", data{"proxy_url": greenProxy})
	m.step("/retire", nil, importedWarning)
	m.now = m.now.Add(time.Hour + 61*time.Second)
	m.ok(logical.UpdateOperation, "config", data{"proxy_url": testProxy})

	// The proxy moves to another address: a version that is staged for the same proxy
	// moves with it.
	m = configured(t, nil, nil)
	m.step("/stage", nil, sameURL, stageWarning)
	m.warnings(m.ok(logical.UpdateOperation, "config", data{"proxy_url": "https://moved.example.com"}),
		"New tokens are for the proxy at https://moved.example.com, which must use key version 1. Requests with proxy_url=https://ati.example.com are now rejected.")
	m.equal("moved along", "https://moved.example.com", m.ok(logical.ReadOperation, "config/rotate", nil).Data["pending_proxy_url"])

	// The address of the previous version.
	m = configured(t, nil, nil)
	m.activateGreen()
	m.warnings(m.write("config/rotate/stage", data{"proxy_url": testProxy}),
		"Version 3 has the proxy_url of previous version 1. When the proxy at that URL restarts with version 3, it rejects tokens signed with version 1.",
		"Proxies that start with ati/proxy-env use version 3 after it is activated. To keep a proxy on version 2, pin it to ati/proxy-env/2 before you activate.")
	m.warnings(m.write("config/rotate", nil), fmt.Sprintf(rotatedWarning, 4, "2027-01-15T09:01:01Z"), pinnedWarning,
		"Key version 1 was also deleted. Stop its proxy at https://ati.example.com.",
		"Pending version 3 was kept. If its key may be compromised, run: vault delete ati/config/rotate/stage")

	m = configured(t, nil, nil)
	m.warnings(m.write("config/rotate/stage", data{"proxy_url": "http://ati.example.com"}),
		`Tokens are sent to "http://ati.example.com" in plaintext. Use https.`,
		stageWarning)
}

func TestRotate_RejectsInvalidKeys(t *testing.T) {
	t.Parallel()
	const (
		want = "private_key must be one unencrypted P-256 private key in PEM (SEC1 or PKCS#8); "
		made = `; for example, use "openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256"`

		secretForES256     = "secret is for HS256, but the algorithm is ES256; set private_key instead, or algorithm=HS256"
		privateKeyForHS256 = "private_key is for ES256, but the algorithm is HS256; set secret instead, or algorithm=ES256"
	)
	pair := newPair(t)
	der, err := x509.MarshalECPrivateKey(pair.key)
	if err != nil {
		t.Fatal(err)
	}
	parameters := string(pem.EncodeToMemory(&pem.Block{Type: "EC PARAMETERS", Bytes: []byte{6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7}}))
	block := func(kind string, headers map[string]string, der []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: kind, Headers: headers, Bytes: der}))
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	other, err := x509.MarshalECPrivateKey(p384)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		data data
		want string
	}{
		"the present secret":              {data{"secret": testSecret}, "secret is already the key of version 1; use a different key, or omit it to have Vault generate one"},
		"a short secret":                  {data{"secret": testSecret[:62]}, fmt.Sprintf(secretLengthText, 62)},
		"an empty secret":                 {data{"secret": ""}, emptySecretText},
		"an unknown algorithm":            {data{"algorithm": "RS256"}, `algorithm "RS256": must be "HS256" or "ES256"`},
		"a proxy_url of a user":           {data{"proxy_url": "https://u:p@h"}, "proxy_url must not contain credentials or \"@\""},
		"an empty proxy_url":              {data{"proxy_url": ""}, `proxy_url "": must begin with http:// or https://`},
		"a secret for ES256":              {data{"algorithm": "ES256", "secret": greenSecret}, secretForES256},
		"a private key for HS256":         {data{"algorithm": "HS256", "private_key": pair.sec1}, privateKeyForHS256},
		"a private key alone":             {data{"private_key": pair.sec1}, privateKeyForHS256},
		"both":                            {data{"secret": greenSecret, "private_key": pair.sec1}, privateKeyForHS256},
		"both for ES256":                  {data{"algorithm": "ES256", "secret": greenSecret, "private_key": pair.sec1}, secretForES256},
		"an empty private key":            {data{"algorithm": "ES256", "private_key": ""}, "private_key is empty; check that the variable or file is set, or omit private_key to have Vault generate one"},
		"a secret as a private key":       {data{"algorithm": "ES256", "private_key": greenSecret}, want + "the text does not begin with -----BEGIN" + made},
		"a public key":                    {data{"algorithm": "ES256", "private_key": pair.public}, want + `the PEM block type is "PUBLIC KEY"` + made},
		"an encrypted key, PKCS#8":        {data{"algorithm": "ES256", "private_key": block("ENCRYPTED PRIVATE KEY", nil, []byte("x"))}, want + `the key is encrypted (use "openssl pkey" to decrypt it)` + made},
		"an encrypted key, SEC1":          {data{"algorithm": "ES256", "private_key": block("EC PRIVATE KEY", map[string]string{"Proc-Type": "4,ENCRYPTED", "DEK-Info": "AES-256-CBC,00"}, []byte("x"))}, want + `the key is encrypted (use "openssl pkey" to decrypt it)` + made},
		"a key on another curve":          {data{"algorithm": "ES256", "private_key": block("EC PRIVATE KEY", nil, other)}, want + "the key is for P-384" + made},
		"a key that can be guessed":       {data{"algorithm": "ES256", "private_key": weakKey(t)}, want + "key is not random (too few distinct bytes)" + made},
		"a key that is junk":              {data{"algorithm": "ES256", "private_key": block("PRIVATE KEY", nil, []byte("junk"))}, want + "cannot parse key, or unsupported curve encoding" + made},
		"a truncated key":                 {data{"algorithm": "ES256", "private_key": pair.sec1[:100]}, want + "cannot decode PEM" + made},
		"two keys":                        {data{"algorithm": "ES256", "private_key": pair.sec1 + pair.pkcs8}, want + "unexpected data after the key" + made},
		"a broken key before one":         {data{"algorithm": "ES256", "private_key": strings.Replace(pair.pkcs8, "M", "\xff", 1) + pair.pkcs8}, want + "cannot decode PEM" + made},
		"a certificate":                   {data{"algorithm": "ES256", "private_key": block("CERTIFICATE", nil, []byte("x"))}, want + `the PEM block type is "CERTIFICATE"` + made},
		"a key in place of its label":     {data{"algorithm": "ES256", "private_key": block(strings.Repeat("MIGHAgEA", 8), nil, []byte("x"))}, want + "the PEM block type is unknown" + made},
		"a key with text before it":       {data{"algorithm": "ES256", "private_key": "key:\n" + pair.sec1}, want + "the text does not begin with -----BEGIN" + made},
		"a key with text after it":        {data{"algorithm": "ES256", "private_key": pair.sec1 + "x"}, want + "unexpected data after the key" + made},
		"only the curve's parameter":      {data{"algorithm": "ES256", "private_key": parameters}, want + "the EC PARAMETERS are not followed by a key" + made},
		"the parameters of another curve": {data{"algorithm": "ES256", "private_key": block("EC PARAMETERS", nil, []byte("x")) + pair.sec1}, want + "the EC PARAMETERS do not name P-256" + made},
		"two keys in one block":           {data{"algorithm": "ES256", "private_key": block("EC PRIVATE KEY", nil, append(der, der...))}, want + "unexpected data after the key" + made},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := configured(t, nil, nil)
			for _, path := range []string{"config/rotate", "config/rotate/stage"} {
				m.refused(logical.UpdateOperation, path, c.data, c.want)
			}
		})
	}
	t.Run("the key of another version", func(t *testing.T) {
		t.Parallel()
		m := configured(t, nil, nil)
		m.step("/stage", data{"proxy_url": greenProxy, "algorithm": "ES256", "private_key": pair.sec1}, stageWarning)
		const staged = "private_key is already the key of version 2; use a different key, or omit it to have Vault generate one"
		m.refused(logical.UpdateOperation, "config/rotate", data{"algorithm": "ES256", "private_key": pair.pkcs8}, staged)
		m.step("/activate", nil)
		m.refused(logical.UpdateOperation, "config/rotate/stage", data{"private_key": pair.pkcs8}, staged)
		m.refused(logical.UpdateOperation, "config/rotate/stage", data{"algorithm": "HS256", "secret": testSecret}, "secret is already the key of version 1; use a different key, or omit it to have Vault generate one")
		m.refused(logical.UpdateOperation, "config/rotate", data{"secret": greenSecret}, secretForES256)
	})
	t.Run("in config", func(t *testing.T) {
		t.Parallel()
		m := newMount(t)
		m.refused(logical.CreateOperation, "config", data{"proxy_url": testProxy, "private_key": pair.sec1}, privateKeyForHS256)
		m.refused(logical.CreateOperation, "config", data{"proxy_url": testProxy, "algorithm": "ES256", "secret": testSecret}, secretForES256)
		m.ok(logical.CreateOperation, "config", data{"proxy_url": testProxy, "algorithm": "ES256", "private_key": pair.sec1})
		m.ok(logical.UpdateOperation, "config", data{"private_key": pair.pkcs8, "algorithm": "ES256"}) // the same key
		m.refused(logical.UpdateOperation, "config", data{"private_key": newPair(t).sec1}, "private_key does not match the current key and "+rotateHint)
		m.refused(logical.UpdateOperation, "config", data{"algorithm": "HS256"}, `algorithm "HS256" does not match the current key (ES256) and `+rotateHint)
		m.refused(logical.UpdateOperation, "config", data{"secret": testSecret}, secretForES256)
	})
}

// TestES256 checks the tokens and the public key of each form of a private key. The
// kid of an ES256 token is the key's fingerprint.
func TestES256(t *testing.T) {
	t.Parallel()
	given := newPair(t)
	// The output of openssl ecparam -genkey.
	parameters := string(pem.EncodeToMemory(&pem.Block{Type: "EC PARAMETERS", Bytes: []byte{6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7}}))
	for name, key := range map[string]string{"generated": "", "SEC1": given.sec1, "PKCS#8": given.pkcs8, "with parameters": "\n" + parameters + given.sec1 + "\n"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newMount(t)
			config := data{"proxy_url": testProxy, "algorithm": "ES256"}
			var warnings []string
			if key == "" {
				warnings = []string{generatedWarning}
			} else {
				config["private_key"] = key
			}
			m.warnings(m.ok(logical.CreateOperation, "config", config), warnings...)
			m.ok(logical.CreateOperation, "roles/r", data{"tools": "web_search", "rate": data{"*": "5/s"}})
			env := m.ok(logical.ReadOperation, "proxy-env", nil).Data
			public, _ := env["public_key"].(string)
			m.equal("proxy-env", data{"public_key": public, "ATI_JWT_AUDIENCE": "ati-proxy", "ATI_JWT_ACCEPTED_AUDIENCES": "ati-proxy", "ATI_JWT_ISSUER": "ati-orchestrator"}, env)
			if key != "" {
				m.equal("public key", given.public, public)
			}
			block, _ := pem.Decode([]byte(public))
			sum := sha256.Sum256(block.Bytes)
			fingerprint := hex.EncodeToString(sum[:8])
			read := m.ok(logical.ReadOperation, "config", nil).Data
			m.equal("config", []any{"ES256", fingerprint, 1}, []any{read["algorithm"], read["key_fingerprint"], read["key_version"]})

			m.b = m.newBackend()
			token, version := m.tokenFor("")
			m.equal("version", 1, version)
			m.equal("verdict", 1, m.verdict(token))
			verifier, err := ati.ParsePublicKey(public)
			if err != nil {
				t.Fatal(err)
			}
			claims, err := ati.ValidateToken(token, verifier, ati.WithTime(func() time.Time { return m.now }))
			if err != nil {
				t.Fatal(err)
			}
			m.equal("claims", &ati.Claims{
				Subject: "token", Audience: "ati-proxy", IssuedAt: 1_800_000_000, ExpiresAt: 1_800_003_600, Scope: "tool:web_search", Issuer: "ati-orchestrator", ID: testID,
				ATI: &ati.Namespace{Version: 1, Rate: map[string]string{"*": "5/s"}},
			}, claims)
			m.equal("header", `{"alg":"ES256","typ":"JWT","kid":"`+fingerprint+`"}`, decodedSegment(t, token, 0))
		})
	}
}

// TestRotate_ChangesAlgorithm rotates from HS256 to ES256 and back. Tokens of both are
// valid as long as their versions exist, and proxy-env has the secret or the public
// key.
func TestRotate_ChangesAlgorithm(t *testing.T) {
	t.Parallel()
	m := configured(t, nil, nil)
	hs, _ := m.tokenFor("")
	m.step("/stage", data{"proxy_url": greenProxy, "algorithm": "ES256"}, stageWarning)
	status := m.step("/activate", nil)
	m.equal("algorithms", []any{"ES256", "HS256"}, []any{status["current_algorithm"], status["previous_algorithm"]})
	es, _ := m.tokenFor("")
	m.equal("verdicts", []any{1, 2}, []any{m.verdict(hs), m.verdict(es)})
	m.equal("header of an HS256 token", `{"alg":"HS256","typ":"JWT"}`, decodedSegment(t, hs, 0))
	for path, want := range map[string]string{"proxy-env": "public_key", "proxy-env/2": "public_key", "proxy-env/1": "ATI_JWT_SECRET"} {
		env := m.ok(logical.ReadOperation, path, nil).Data
		if env[want] == nil || len(env) != 4 {
			t.Errorf("%s has %d values, and %s is missing", path, len(env), want)
		}
	}
	// An immediate rotation keeps the current algorithm, or changes it.
	status = m.write("config/rotate", nil).Data
	m.equal("the algorithm stays", "ES256", status["current_algorithm"])
	none := fmt.Sprintf(rotatedSinceText, "2027-01-15T08:00:00Z")
	m.equal("verdicts", []any{none, none}, []any{m.verdict(hs), m.verdict(es)})
	status = m.write("config/rotate", data{"algorithm": "HS256", "secret": greenSecret}).Data
	m.equal("the algorithm changes", []any{"HS256", 4}, []any{status["current_algorithm"], status["current_version"]})
	back, _ := m.tokenFor("")
	m.equal("verdict", 4, m.verdict(back))
}

// TestCreds_StaleConfigBoundsTTL checks that a node that has not seen that the longest
// TTL was raised keeps to the old one, on which a retirement may count.
func TestCreds_StaleConfigBoundsTTL(t *testing.T) {
	t.Parallel()
	m := configured(t, nil, data{"ttl": "1h"})
	m.tokenFor("")
	other := m.otherNode()
	other.ok(logical.UpdateOperation, "roles/r", data{"ttl": "5h"})
	m.b.InvalidateKey(t.Context(), "role/r")
	resp := m.ok(logical.ReadOperation, "creds/r", nil)
	m.equal("TTL", int64(3600), resp.Data["token_ttl"])
	m.b.InvalidateKey(t.Context(), "config")
	m.equal("TTL afterwards", int64(5*3600), m.ok(logical.ReadOperation, "creds/r", nil).Data["token_ttl"])
}

// TestRotate_RandomSequences makes random sequences of steps, role writes, mints,
// restarts, and tunings. The status, validate, and proxy-env must agree, a version
// must never name two keys, and no token may outlive its version's tokens_expire_by.
func TestRotate_RandomSequences(t *testing.T) {
	t.Parallel()
	seeds := rounds(40, 2000)
	var allSteps, allTokens atomic.Int64
	t.Cleanup(func() {
		t.Logf("%d sequences with %d steps and %d tokens", seeds, allSteps.Load(), allTokens.Load())
		if allSteps.Load() < int64(30*seeds) || allTokens.Load() < int64(10*seeds) {
			t.Error("too few to be meaningful")
		}
	})
	for seed := range uint64(seeds) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			random := mathrand.New(mathrand.NewPCG(seed, 1))
			m := configured(t, nil, nil)
			type minted struct {
				token   string
				version int
				exp     int64
			}
			var tokens []minted
			keys := map[int]any{}      // version → fingerprint
			bounds := map[int]string{} // version → tokens_expire_by
			steps := 0
			try := func(op logical.Operation, path string, d data) *logical.Response {
				resp, err := m.request(op, path, d)
				if err != nil {
					t.Fatalf("%s %s: %v", op, path, err)
				}
				if !resp.IsError() {
					steps++
				}
				return resp
			}
			for step := range 150 {
				switch random.IntN(22) {
				case 0, 1:
					algorithm := []string{"HS256", "ES256"}[random.IntN(2)]
					try(logical.UpdateOperation, "config/rotate/stage", data{"algorithm": algorithm, "proxy_url": fmt.Sprintf("https://p%d.example.com", random.IntN(4))})
				case 2, 3:
					try(logical.UpdateOperation, "config/rotate/activate", nil)
				case 4:
					try(logical.UpdateOperation, "config/rotate/rollback", nil)
				case 5, 6:
					try(logical.UpdateOperation, "config/rotate/retire", nil)
				case 7:
					if random.IntN(4) == 0 {
						try(logical.UpdateOperation, "config/rotate", nil)
					}
				case 8:
					try(logical.DeleteOperation, "config/rotate/stage", nil)
				case 9:
					if random.IntN(2) == 0 {
						try(logical.DeleteOperation, "roles/r", nil)
						break
					}
					ttl := 1 + random.IntN(3600)
					try(logical.UpdateOperation, "roles/r", data{"tools": "x", "ttl": ttl, "max_ttl": ttl + random.IntN(3600)})
				case 10:
					m.b = m.newBackend()
				case 11:
					m.system.MaxLeaseTTLVal = time.Duration(4000+random.IntN(6000)) * time.Second
				case 12:
					m.now = m.now.Add(time.Duration(random.IntN(3000_000)) * time.Millisecond)
				case 13:
					try(logical.RollbackOperation, "", nil)
				case 14:
					if random.IntN(8) == 0 {
						try(logical.DeleteOperation, "config", nil)
						try(logical.CreateOperation, "config", data{"proxy_url": testProxy})
						clear(bounds)
					}
				default:
					status := m.ok(logical.ReadOperation, "config/rotate", nil).Data
					d := data{"ttl": "10000s"}
					if previous, ok := status["previous_proxy_url"]; ok && random.IntN(2) == 0 {
						d["proxy_url"] = previous
					}
					if resp := try(logical.UpdateOperation, "creds/r", d); !resp.IsError() {
						tokens = append(tokens, minted{resp.Data["token"].(string), resp.Data["key_version"].(int), resp.Data["expires_at"].(int64)})
					}
				}
				status := m.ok(logical.ReadOperation, "config/rotate", nil).Data
				live := map[int]bool{}
				for _, name := range []string{"current", "pending", "previous"} {
					version, ok := status[name+"_version"].(int)
					if !ok {
						continue
					}
					live[version] = true
					if fingerprint, seen := keys[version]; seen && fingerprint != status[name+"_fingerprint"] {
						t.Fatalf("version %d names two keys", version)
					}
					keys[version] = status[name+"_fingerprint"]
					m.ok(logical.ReadOperation, fmt.Sprintf("proxy-env/%d", version), nil)
					delete(bounds, version)
				}
				if bound, ok := status["previous_tokens_expire_by"].(string); ok {
					bounds[status["previous_version"].(int)] = bound
				}
				for _, token := range tokens {
					if bound, ok := bounds[token.version]; ok {
						if by, err := time.Parse(time.RFC3339, bound); err != nil || token.exp+61 > by.Unix() {
							t.Fatalf("a token of version %d expires at %d, and tokens_expire_by is %s (%v)", token.version, token.exp, bound, err)
						}
					}
					if step%10 != 9 {
						continue // verifying costs most of this test
					}
					valid := m.now.Unix() < token.exp+60 && live[token.version]
					if got := m.write("validate", data{"token": token.token}).Data; got["valid"] != valid || valid && got["key_version"] != token.version {
						t.Fatalf("a token of version %d, with the live versions %v, that expires at %d, is %v at %d", token.version, live, token.exp, got, m.now.Unix())
					}
				}
			}
			allSteps.Add(int64(steps))
			allTokens.Add(int64(len(tokens)))
		})
	}
}

// TestRotate_ConcurrentSteps checks that of several concurrent requests for a step one
// succeeds and the others are refused.
func TestRotate_ConcurrentSteps(t *testing.T) {
	t.Parallel()
	m := configured(t, nil, nil)
	for _, step := range []string{"/stage", "/activate", "/retire"} {
		var done atomic.Int64
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				resp, err := m.request(logical.UpdateOperation, "config/rotate"+step, nil)
				if err != nil {
					t.Error(err)
				} else if !resp.IsError() {
					done.Add(1)
				}
			})
		}
		wg.Wait()
		if done.Load() != 1 {
			t.Errorf("%s was done %d times", step, done.Load())
		}
	}
	status := m.ok(logical.ReadOperation, "config/rotate", nil).Data
	m.equal("versions", []any{2, 1, nil}, []any{status["current_version"], status["previous_version"], status["pending_version"]})
}

// TestRotate_FailedWriteIsAtomic checks that a step whose write fails is done or not,
// as storage has it.
func TestRotate_FailedWriteIsAtomic(t *testing.T) {
	t.Parallel()
	for _, late := range []bool{false, true} {
		m := configured(t, nil, nil)
		for _, c := range []struct {
			op   logical.Operation
			step string
			want []any // current, pending, previous, retired
		}{
			{logical.UpdateOperation, "/stage", []any{1, 2, nil, nil}},
			{logical.UpdateOperation, "/activate", []any{2, nil, 1, nil}},
			{logical.UpdateOperation, "/rollback", []any{1, nil, 2, nil}},
			{logical.UpdateOperation, "/retire", []any{1, nil, 2, "2027-01-15T08:00:00Z"}},
			{logical.UpdateOperation, "/stage", []any{1, 3, 2, "2027-01-15T08:00:00Z"}},
			{logical.DeleteOperation, "/stage", []any{1, nil, 2, "2027-01-15T08:00:00Z"}},
			{logical.UpdateOperation, "", []any{4, nil, nil, nil}},
		} {
			state := func() []any {
				s := m.ok(logical.ReadOperation, "config/rotate", nil).Data
				return []any{s["current_version"], s["pending_version"], s["previous_version"], s["previous_retired_at"]}
			}
			before := state()
			m.storage.fail, m.storage.late = "put config", late
			m.failed(c.op, "config/rotate"+c.step, nil, "write config: disk on fire")
			m.storage.fail = ""
			want := before
			if late {
				want = c.want
			}
			m.equal(fmt.Sprintf("carried out %v: after a failed %s %q", late, c.op, c.step), want, state())
			if !late {
				m.ok(c.op, "config/rotate"+c.step, nil)
				m.equal("after "+c.step, c.want, state())
			}
			m.tokenFor("")
		}
	}
}

// TestRotate_DoesNotExposeKeys checks that no response, except that of proxy-env, no
// error, and no log line has a key in it.
func TestRotate_DoesNotExposeKeys(t *testing.T) {
	t.Parallel()
	m := configured(t, nil, nil)
	pair := newPair(t)
	var output strings.Builder
	do := func(op logical.Operation, path string, d data) {
		resp, err := m.request(op, path, d)
		fmt.Fprintln(&output, path, resp, err)
		if resp != nil {
			fmt.Fprintf(&output, "%+v %q\n", resp.Data, resp.Warnings)
		}
	}
	for range 2 { // in the second round, most are refused
		do(logical.UpdateOperation, "config", data{"secret": testSecret})
		do(logical.UpdateOperation, "config/rotate/stage", data{"algorithm": "ES256", "private_key": pair.sec1, "proxy_url": greenProxy})
		do(logical.UpdateOperation, "config/rotate/activate", nil)
		do(logical.ReadOperation, "config/rotate", nil)
		do(logical.ReadOperation, "config", nil)
		do(logical.ReadOperation, "jwks", nil)
		do(logical.ReadOperation, "proxy-env/2", nil) // only a public key
		do(logical.UpdateOperation, "config/rotate", data{"algorithm": "HS256", "secret": greenSecret})
		do(logical.UpdateOperation, "config/rotate/stage", data{"algorithm": "HS256", "private_key": pair.pkcs8})
		do(logical.UpdateOperation, "config/rotate/rollback", data{"secret": testSecret})
	}
	body := strings.Split(pair.sec1, "\n")[1]
	for _, where := range []string{output.String(), m.log.String()} {
		for _, secret := range []string{testSecret, greenSecret, body, strings.Split(pair.pkcs8, "\n")[2]} {
			if strings.Contains(where, secret) {
				t.Errorf("a key was exposed: %s", where)
			}
		}
	}
	if !strings.Contains(m.log.String(), `rotated signing key: operation=activate parameters="" current_version=2 previous_version=1`) {
		t.Errorf("the log does not name the step:\n%s", m.log)
	}
}

// TestRotate_ExpiryIgnoresDisabledRoles checks that a disabled role, which is not
// checked against the maximums, does not delay tokens_expire_by.
func TestRotate_ExpiryIgnoresDisabledRoles(t *testing.T) {
	t.Parallel()
	for name, ttl := range map[string]string{"below the ceiling": "2h", "beyond the ceiling": "2000000000", "the longest duration that there is": "9223372036"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := configured(t, data{"max_ttl": "4h"}, nil)
			m.ok(logical.CreateOperation, "roles/idle", data{"tools": "x", "ttl": ttl, "disabled": true})
			m.checkTokensExpireBy("2027-01-15T09:01:01Z")
		})
	}
}

// TestRotate_ExpiryOfLongestTTL checks that tokens_expire_by does not overflow.
func TestRotate_ExpiryOfLongestTTL(t *testing.T) {
	t.Parallel()
	m := configured(t, nil, nil)
	m.system.MaxLeaseTTLVal = 9223372036 * time.Second
	m.ok(logical.CreateOperation, "roles/long", data{"tools": "x", "ttl": "9223372036"})
	m.checkTokensExpireBy("2319-04-27T07:48:17Z")
}

// TestRotate_ExpiryCountsEnabledRoles checks that a role that was written while it was
// disabled counts once it is enabled.
func TestRotate_ExpiryCountsEnabledRoles(t *testing.T) {
	t.Parallel()
	m := configured(t, data{"max_ttl": "2h"}, nil)
	m.ok(logical.CreateOperation, "roles/idle", data{"tools": "x", "ttl": "4h", "disabled": true})
	m.refused(logical.UpdateOperation, "roles/idle", data{"disabled": false}, "ttl 4h0m0s is longer than max_ttl 2h0m0s of the config")
	m.ok(logical.UpdateOperation, "config", data{"max_ttl": "5h"})
	m.ok(logical.UpdateOperation, "roles/idle", data{"disabled": false})
	if got, want := m.ok(logical.ReadOperation, "creds/idle", nil).Data["expires_at"], int64(1_800_014_400); got != want {
		t.Errorf("the token expires at %v, want %v", got, want)
	}
	m.checkTokensExpireBy("2027-01-15T12:01:01Z")
}

// TestCreds_OnlyDisabledRole checks that a mount whose only role is disabled, and
// which has no longest TTL yet, refuses to mint because of the role.
func TestCreds_OnlyDisabledRole(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.ok(logical.CreateOperation, "config", data{"proxy_url": testProxy})
	m.ok(logical.CreateOperation, "roles/idle", data{"tools": "x", "disabled": true})
	m.refused(logical.ReadOperation, "creds/idle", nil, `role "idle" is disabled`)
	m.ok(logical.UpdateOperation, "roles/idle", data{"disabled": false})
	m.ok(logical.ReadOperation, "creds/idle", nil)
}

// TestRotate_NoTokenAfterRetirement checks that tokens_expire_by is never too early:
// whether a mint or a retirement reads the clock first, no token of the retired
// version has a later iat.
func TestRotate_NoTokenAfterRetirement(t *testing.T) {
	t.Parallel()
	for _, overtaken := range []string{"the mint", "the retirement"} {
		t.Run(overtaken, func(t *testing.T) {
			t.Parallel()
			m := configured(t, nil, nil)
			m.activateGreen()
			var mu sync.Mutex
			now, hook := m.now, func() {}
			m.useClock(func() time.Time {
				mu.Lock()
				read, f := now, hook
				hook = func() {}
				mu.Unlock()
				f()
				if overtaken == "the mint" {
					mu.Lock()
					defer mu.Unlock()
					read = now
				}
				return read
			})
			tick := func() { mu.Lock(); defer mu.Unlock(); now = now.Add(10 * time.Second) }
			arm := func(f func()) { mu.Lock(); defer mu.Unlock(); hook = f }
			m.tokenFor(testProxy) // warm
			var resp *logical.Response
			mint := func() {
				var err error
				if resp, err = m.request(logical.UpdateOperation, "creds/r", data{"proxy_url": testProxy}); err != nil {
					t.Error(err)
				}
			}
			var expireBy string
			retire := func() { expireBy = m.write("config/rotate/retire", nil).Data["previous_tokens_expire_by"].(string) }
			if overtaken == "the mint" {
				arm(func() { tick(); retire(); tick() })
				mint()
			} else {
				done := make(chan struct{})
				arm(func() {
					go func() { defer close(done); tick(); mint() }()
					select {
					case <-done: // it has used the cached config
					case <-time.After(100 * time.Millisecond):
					}
				})
				retire()
				<-done
			}
			if resp.IsError() {
				return
			}
			if by, err := time.Parse(time.RFC3339, expireBy); err != nil || resp.Data["expires_at"].(int64)+61 > by.Unix() {
				t.Errorf("a token expires at %v, and tokens_expire_by is %s (%v)", resp.Data["expires_at"], expireBy, err)
			}
		})
	}
}

// TestRotate_ConcurrentConfigWrite checks that of two concurrent changes neither is
// lost, as TestCache_ConcurrentReadWrite does.
func TestRotate_ConcurrentConfigWrite(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		op   logical.Operation
		path string
		want []any // current, pending, previous
	}{
		"a stage":                    {logical.UpdateOperation, "config/rotate/stage", []any{2, 4, 1}},
		"a dropped stage":            {logical.DeleteOperation, "config/rotate/stage", []any{2, nil, 1}},
		"a rollback":                 {logical.UpdateOperation, "config/rotate/rollback", []any{1, 3, 2}},
		"the purge of a retired key": {logical.RollbackOperation, "", []any{2, 3, nil}},
		"an immediate rotation":      {logical.UpdateOperation, "config/rotate", []any{4, 3, nil}},
		"a deletion of config":       {logical.DeleteOperation, "config", nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := configured(t, nil, nil)
			m.activateGreen()
			m.write("config/rotate/stage", data{"proxy_url": "https://third.example.com"})
			switch name {
			case "a stage":
				m.ok(logical.DeleteOperation, "config/rotate/stage", nil)
			case "the purge of a retired key":
				m.write("config/rotate/retire", nil)
				m.now = m.now.Add(2 * time.Hour)
			}
			m.tokenFor("") // warm
			var second *logical.Response
			m.duringRead("config", func() {
				if resp, err := m.request(c.op, c.path, nil); err != nil || resp.IsError() {
					t.Errorf("%v %v", err, resp.Error())
				}
			}, func() {
				var err error
				if second, err = m.request(logical.UpdateOperation, "config", data{"audience": "new", "proxy_url": "https://fourth.example.com"}); err != nil {
					t.Error(err)
				}
			})
			m.b = m.newBackend()
			config := m.ok(logical.ReadOperation, "config", nil).Data
			if config["audience"] != "new" || second.IsError() {
				t.Errorf("config is %v after %v", config, second)
			}
			s := m.ok(logical.ReadOperation, "config/rotate", nil).Data
			if c.want == nil { // the second write created a new config
				c.want = []any{4, nil, nil}
			}
			m.equal("versions", c.want, []any{s["current_version"], s["pending_version"], s["previous_version"]})
		})
	}
}

// TestRotate_TimesAreUTCSeconds checks that times are stored and returned in UTC and
// whole seconds, wherever Vault runs.
func TestRotate_TimesAreUTCSeconds(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.now = m.now.Add(900 * time.Millisecond).In(time.FixedZone("", 3600))
	m.ok(logical.CreateOperation, "config", data{"proxy_url": testProxy, "secret": testSecret})
	m.ok(logical.CreateOperation, "roles/r", data{"tools": "x"})
	m.activateGreen()
	status := m.step("/retire", nil, importedWarning)
	for name, want := range map[string]string{
		"current_created_at": "2027-01-15T08:00:00Z", "current_activated_at": "2027-01-15T08:00:00Z", "previous_created_at": "2027-01-15T08:00:00Z",
		"previous_retired_at": "2027-01-15T08:00:00Z", "previous_tokens_expire_by": "2027-01-15T09:01:01Z",
	} {
		m.equal(name, want, status[name])
	}
	if stored := m.storage.dump(t)["config"]; strings.Contains(stored, ".9") || strings.Contains(stored, "+01:00") {
		t.Errorf("storage has %s", stored)
	}
	m.now = time.Date(2027, 1, 15, 9, 1, 1, 0, time.UTC)
	m.refused(logical.ReadOperation, "proxy-env/1", nil, "key version 1 does not exist; available versions: 2")
}

// TestRotate_StoresSecretInLowerCase checks that an imported secret is stored in lower
// case.
func TestRotate_StoresSecretInLowerCase(t *testing.T) {
	t.Parallel()
	m := configured(t, data{"secret": strings.ToUpper(testSecret)}, nil)
	m.equal("proxy-env", testSecret, m.ok(logical.ReadOperation, "proxy-env", nil).Data["ATI_JWT_SECRET"])
	m.write("config/rotate", data{"secret": strings.ToUpper(greenSecret)})
	m.equal("proxy-env", greenSecret, m.ok(logical.ReadOperation, "proxy-env", nil).Data["ATI_JWT_SECRET"])
}

// TestRotate_GeneratesRandomSecrets checks that each byte of a generated secret is
// random.
func TestRotate_GeneratesRandomSecrets(t *testing.T) {
	t.Parallel()
	m := configured(t, nil, nil)
	seen := [32]map[string]bool{}
	for range 20 {
		m.write("config/rotate", nil)
		secret := m.ok(logical.ReadOperation, "proxy-env", nil).Data["ATI_JWT_SECRET"].(string)
		for i := range seen {
			if seen[i] == nil {
				seen[i] = map[string]bool{}
			}
			seen[i][secret[2*i:2*i+2]] = true
		}
	}
	for i, values := range seen {
		if len(values) < 10 {
			t.Errorf("byte %d of 20 secrets has %d values", i, len(values))
		}
	}
}

// TestRotate_NoRandomness checks that a failure to generate a key is an internal
// error, and changes nothing.
func TestRotate_NoRandomness(t *testing.T) {
	t.Parallel()
	m := configured(t, nil, nil)
	before := m.storage.dump(t)["config"]
	m.breakRandom()
	for _, path := range []string{"config/rotate", "config/rotate/stage"} {
		m.failed(logical.UpdateOperation, path, nil, "generate secret: unable to fill provided buffer with entropy: unexpected EOF")
	}
	resp, err := m.request(logical.UpdateOperation, "config/rotate", data{"algorithm": "ES256"})
	if err == nil || !strings.HasPrefix(err.Error(), "generate private key: ") {
		t.Errorf("%v %v", resp, err)
	}
	m.equal("storage", before, m.storage.dump(t)["config"])
}

// TestCreds_RequiresLongestTTL checks that nothing is minted if storage has no longest
// TTL, without which tokens_expire_by would be unknown.
func TestCreds_RequiresLongestTTL(t *testing.T) {
	t.Parallel()
	m := configured(t, nil, nil)
	m.damage(fmt.Sprintf(`"longest_ttl":%d`, time.Hour), `"longest_ttl":0`)
	m.failed(logical.ReadOperation, "creds/r", nil, "stored config has no maximum token TTL; rewrite each role to restore it")
}

// TestCreds_RoleMaximum checks that a role's maximum applies when another role's is
// longer.
func TestCreds_RoleMaximum(t *testing.T) {
	t.Parallel()
	m := configured(t, nil, data{"ttl": "10m", "max_ttl": "30m"})
	m.ok(logical.CreateOperation, "roles/long", data{"tools": "x", "ttl": "5h"})
	m.equal("TTL", int64(1800), m.ok(logical.UpdateOperation, "creds/r", data{"ttl": "2h"}).Data["token_ttl"])
}

// TestRotate_PendingVersionSurvivesWrites checks that a rollback and the writes of a
// role and of the config keep the pending version.
func TestRotate_PendingVersionSurvivesWrites(t *testing.T) {
	t.Parallel()
	m := configured(t, nil, nil)
	m.activateGreen()
	m.write("config/rotate/stage", data{"proxy_url": "https://third.example.com"})
	pending := func() any { return m.ok(logical.ReadOperation, "config/rotate", nil).Data["pending_version"] }
	m.step("/rollback", nil)
	m.equal("after a rollback", 3, pending())
	m.ok(logical.UpdateOperation, "roles/r", data{"ttl": "9h"})
	m.equal("after a role's write", 3, pending())
	m.ok(logical.UpdateOperation, "config", data{"issuer": "x"})
	m.equal("after config's write", 3, pending())
}

// TestRoles_WriteReadsStorage checks that a role's write does not undo what another
// node has stored, even before Invalidate is called.
func TestRoles_WriteReadsStorage(t *testing.T) {
	t.Parallel()
	m := configured(t, nil, nil)
	m.tokenFor("") // warm
	other := m.otherNode()
	other.write("config/rotate", nil)
	m.ok(logical.UpdateOperation, "roles/r", data{"ttl": "9h"})
	m.equal("version", 2, m.ok(logical.ReadOperation, "config", nil).Data["key_version"])
}

// TestConfig_WriteKeepsVersions checks that a write of the config does not change the
// versions. Terraform may write the same values again, also while two versions share
// an address.
func TestConfig_WriteKeepsVersions(t *testing.T) {
	t.Parallel()
	m := configured(t, nil, nil)
	m.write("config/rotate/stage", nil) // at the same address
	before := m.ok(logical.ReadOperation, "config/rotate", nil).Data
	m.now = m.now.Add(time.Hour)
	m.ok(logical.UpdateOperation, "config", data{"proxy_url": testProxy, "secret": testSecret, "algorithm": "HS256", "issuer": "x"})
	m.equal("status", before, m.ok(logical.ReadOperation, "config/rotate", nil).Data)
}

// TestConfig_DeleteForgetsAllVersions checks that a deletion removes the keys of all
// versions from storage.
func TestConfig_DeleteForgetsAllVersions(t *testing.T) {
	t.Parallel()
	m := configured(t, nil, nil)
	third := strings.Repeat("fedcba9876543210", 4)
	m.step("/stage", data{"proxy_url": greenProxy, "secret": greenSecret}, stageWarning)
	m.step("/activate", nil)
	m.write("config/rotate/stage", data{"proxy_url": "https://third.example.com", "secret": third})
	m.ok(logical.DeleteOperation, "config", nil)
	for _, secret := range []string{testSecret, greenSecret, third} {
		if strings.Contains(m.storage.dump(t)["config"], secret) {
			t.Errorf("storage still has %.4s…", secret)
		}
	}
}

// TestValidate_MalformedTokenAfterRotation checks that a malformed token is reported
// as malformed, and not as signed by a former key.
func TestValidate_MalformedTokenAfterRotation(t *testing.T) {
	t.Parallel()
	m := configured(t, nil, nil)
	m.write("config/rotate", nil)
	m.equal("verdict", "malformed token: must have 3 segments separated by dots; found 1", m.verdict("hello"))
}

// TestRotate_PurgeRunsOnWritableNodes checks that a performance standby does not
// write, and a secondary only for a local mount.
func TestRotate_PurgeRunsOnWritableNodes(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		state consts.ReplicationState
		local bool
		want  bool
	}{
		{consts.ReplicationPerformancePrimary, false, true},
		{consts.ReplicationPerformanceSecondary, false, false},
		{consts.ReplicationPerformanceSecondary, true, true},
		{consts.ReplicationPerformanceStandby, false, false},
		{consts.ReplicationPerformanceStandby, true, false},
	} {
		m := configured(t, nil, nil)
		m.activateGreen()
		m.write("config/rotate/retire", nil)
		m.now = m.now.Add(2 * time.Hour)
		m.setState(c.state, c.local)
		puts := len(m.storage.order)
		m.periodic()
		if got := len(m.storage.order) > puts; got != c.want {
			t.Errorf("replication %s, local %v: wrote %v", c.state.GetPerformanceString(), c.local, got)
		}
	}
}

// TestRotate_PurgeWritesOnce checks that the purge does not read storage without need,
// and does not write if another node has removed the key.
func TestRotate_PurgeWritesOnce(t *testing.T) {
	t.Parallel()
	m := configured(t, nil, nil)
	m.activateGreen()
	m.write("config/rotate/retire", nil)
	calls := m.storage.calls.Load()
	m.periodic()
	m.equal("storage calls before the time", calls, m.storage.calls.Load())
	m.now = m.now.Add(2 * time.Hour)
	other := m.otherNode()
	other.write("config", data{"issuer": "x"})
	puts := len(m.storage.order)
	m.periodic()
	m.equal("writes", puts, len(m.storage.order))
}

// TestLog_RecordsKeyVersions checks that the log names each change of the keys.
func TestLog_RecordsKeyVersions(t *testing.T) {
	t.Parallel()
	m := configured(t, nil, nil)
	m.write("config/rotate/stage", data{"proxy_url": greenProxy})
	m.ok(logical.ReadOperation, "proxy-env/2", nil)
	m.ok(logical.DeleteOperation, "config/rotate/stage", nil)
	m.write("config/rotate/stage", data{"proxy_url": greenProxy})
	m.write("config/rotate/activate", nil)
	m.write("config/rotate/retire", nil)
	m.now = m.now.Add(2 * time.Hour)
	m.periodic()
	for _, want := range []string{
		`rotated signing key: operation=stage parameters=proxy_url current_version=1 pending_version=2`,
		"proxy environment read: key_version=2",
		"deleted pending key version: key_version=2",
		"deleted expired key version: key_version=1",
	} {
		if !strings.Contains(m.log.String(), want) {
			t.Errorf("the log has no line %s:\n%s", want, m.log)
		}
	}
}

// TestValidate_PendingVersion checks that validate accepts tokens of the pending
// version, which Vault does not mint, but an owner of an imported key may.
func TestValidate_PendingVersion(t *testing.T) {
	t.Parallel()
	m := configured(t, nil, nil)
	m.step("/stage", data{"proxy_url": greenProxy, "secret": greenSecret}, stageWarning)
	key, err := ati.ParseSecret(greenSecret)
	if err != nil {
		t.Fatal(err)
	}
	claims := &ati.Claims{Subject: "a", Audience: "ati-proxy", Issuer: "ati-orchestrator", IssuedAt: m.now.Unix(), ExpiresAt: m.now.Unix() + 60}
	token, err := key.Sign(claims)
	if err != nil {
		t.Fatal(err)
	}
	m.equal("verdict", 2, m.verdict(token))
	m.ok(logical.DeleteOperation, "config/rotate/stage", nil)
	m.equal("verdict", "not signed by any key of this mount", m.verdict(token))
}
