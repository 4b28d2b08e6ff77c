package test

import (
	"crypto/elliptic"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"vault-plugin-secrets-ati/ati"
)

// What the harness would miss, no other test would tell.
func TestLeaks_SearchFindsKeysAndTokens(t *testing.T) {
	t.Parallel()
	s, secret := startEngine(t)
	s.write(s.root, "ati/roles/r", data{"tools": "x", "allowed_agent_ids": "*"})
	token := s.read(s.root, "ati/creds/r").Data["token"].(string)
	printed := strings.TrimSpace(s.vault(s.root, "read", "-field=token", "ati/creds/r"))
	batch := s.write(s.root, "ati/batch/r", data{"agent_ids": "a,b"}).Data["tokens"].(map[string]any)["b"].(string)
	key, private, _ := ecKey(t, elliptic.P256())
	scalar, err := key.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	s.write(s.root, "ati/config/rotate", data{"algorithm": ati.ES256, "private_key": private})
	signed := s.read(s.root, "ati/creds/r").Data["token"].(string)
	s.write(s.root, "ati/config/rotate", data{"algorithm": ati.HS256})
	generated := s.read(s.root, "ati/proxy-env").Data["ATI_JWT_SECRET"].(string)

	line, err := json.Marshal(private)
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"the secret that the test brought": secret, "a generated secret": generated, "half of it": secret[:40], "a token": token, "a token that the CLI printed": printed,
		"a batch's token": batch, "a token's signature": token[strings.LastIndexByte(token, '.'):], "a token of the other algorithm": signed, "a private key": private, "a private key in JSON": string(line),
	} {
		dir := t.TempDir()
		for path, text := range map[string]string{"a.log": "begin " + text + " end", "b.log": "nothing"} {
			if err := os.WriteFile(filepath.Join(dir, path), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := s.leaks.filesWithSecrets(dir); err != nil || !slices.Equal(got, []string{filepath.Join(dir, "a.log")}) {
			t.Errorf("%s was found in %v (%v)", name, got, err)
		}
	}
	if text := fmt.Sprintf("%x", scalar); s.leaks.contains([]byte(text)) || s.leaks.contains([]byte(s.root)) {
		t.Error("what the test never sent was found")
	}
}

// A key or a token in any parameter of any path: what Vault and the plugin write
// of it, at trace and into the audit log, has no part of it in clear. (The search
// is the harness's, when the test is over.) Whether Vault lets the caller ask makes
// no difference: it asks first whether what is written exists.
func TestLeaks_MisplacedKeyNotLogged(t *testing.T) {
	t.Parallel()
	s, _ := startEngine(t)
	s.write(s.root, "ati/roles/r", data{"tools": "x", "allowed_agent_ids": "sandbox:*"})
	token := s.read(s.root, "ati/creds/r").Data["token"].(string)
	_, private, _ := ecKey(t, elliptic.P256())
	hex := strings.Repeat("0f1e2d3c4b5a6978", 4)
	s.leaks.remember([]byte(`secret=` + hex))
	s.leaks.remember([]byte(private))
	nobody := s.policy("nobody", `path "ati/nothing" { capabilities = ["read"] }`)
	mint := []string{"ttl", "tools", "skills", "scopes", "rate", "proxy_url"}
	requests := 0
	for path, fields := range map[string][]string{
		"config":              {"proxy_url", "algorithm", "secret", "private_key", "audience", "accepted_audiences", "issuer", "allowed_scopes", "max_ttl", "unknown"},
		"config/rotate":       {"proxy_url", "algorithm", "secret", "private_key"},
		"config/rotate/stage": {"proxy_url", "algorithm", "secret", "private_key"},
		"roles/other":         {"tools", "skills", "scopes", "rate", "ttl", "max_ttl", "audience", "subject", "allowed_agent_ids", "job_id", "generate_lease", "disabled", "description", "name"},
		"roles/new":           {"rate", "ttl", "disabled"},
		"creds/r":             append([]string{"agent_id", "job_id", "sandbox_id", "format"}, mint...),
		"batch/r":             append([]string{"agent_ids"}, mint...),
		"check/r":             {"scope", "tool", "skill"},
		"validate":            {"token", "audience", "issuer", "leeway", "scope"},
		"inspect":             {"token"},
	} {
		for _, field := range fields {
			for name, key := range map[string]string{"hex": hex, "PEM": private, "token": token} {
				for _, value := range []any{key, []any{key, 5}, data{"x": key}, "http://" + key, "tool:" + key + "__x*", "a=" + key} {
					if path == "config/rotate" && value == any(hex) && field == "secret" {
						continue // that is where it belongs
					}
					for _, caller := range []string{s.root, nobody} {
						requests++
						if got := s.request(caller, "PUT", "ati/"+path, data{field: value}); got >= 500 {
							t.Errorf("%s, %s in %s: %d", path, name, field, got)
						}
					}
				}
			}
		}
	}
	t.Logf("%d requests", requests)
	// That it is found where it is, in the clear, another test tells.
}
