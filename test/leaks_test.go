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

// If the harness missed a key or token in a file, no other test would fail.
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
		"an imported secret": secret, "a generated secret": generated, "half of it": secret[:40], "a token": token, "a token that the CLI printed": printed,
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
		t.Error("the search found a text that the test never sent")
	}
}

// TestLeaks_MisplacedKeyNotLogged sends keys and tokens in every parameter of every path.
// When the test is over, the harness searches the server log, at level trace, and the
// audit log for them in plaintext. Requests that no policy allows are included, because
// Vault runs the existence check before it checks the policy.
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
	parameters, requests := s.parameters(), 0
	for path, names := range parameters {
		name := "r"
		if path == "ati/roles/{name}" {
			name = "new" // a role that does not exist
		}
		at := strings.Replace(path, "{name}", name, 1)
		for _, field := range append(names, "unknown") {
			for name, key := range map[string]string{"hex": hex, "PEM": private, "token": token} {
				for _, value := range []any{key, []any{key, 5}, data{"x": key}, "http://" + key, "tool:" + key + "__x*", "a=" + key} {
					if path == "ati/config/rotate" && value == any(hex) && field == "secret" {
						continue // a valid request
					}
					for _, caller := range []string{s.root, nobody} {
						requests++
						if got := s.request(caller, "PUT", at, data{field: value}); got >= 500 {
							t.Errorf("%s, %s in %s: %d", path, name, field, got)
						}
					}
				}
			}
		}
	}
	t.Logf("%d requests to %d paths", requests, len(parameters))
	if !slices.Contains(parameters["ati/roles/{name}"], "allowed_sandbox_ids") || len(parameters) < 12 {
		t.Errorf("the OpenAPI document has the parameters %v", parameters)
	}
	// TestLeaks_SearchFindsKeysAndTokens checks that the search would find them.
}
