//go:build interop

package test

import (
	"crypto/elliptic"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/google/go-cmp/cmp"

	"vault-plugin-secrets-ati/ati"
)

// After an immediate rotation, the proxy that a real Agent restarts rejects all earlier
// tokens and accepts new ones. So does one that is restarted with another algorithm, which
// Agent does not do.
func TestInteropRotateImmediately(t *testing.T) {
	t.Parallel()
	s, _ := startEngine(t)
	s.enableProxyHosts()
	s.write(s.root, "ati/roles/r", data{"tools": "web_search"})
	config, p, env := s.newProxyHost(t, "proxy-host", nil)
	a := s.startAgent(config, env...)
	waitProtected(t, p, a, p.isReady)
	agents := []*agent{a}
	client := startClient(t, "ATI_CLIENT_0_1_0")

	var earlier []string
	secrets := []string{}
	stopES256 := func() {}
	for i, algorithm := range []string{"", "", "ES256", "", "HS256"} {
		if i > 0 {
			d := data{}
			if algorithm != "" {
				d["algorithm"] = algorithm
			}
			s.rotate("", d)
		}
		token := s.mint("r", nil)
		current := s.proxyEnv()
		if secret := current["ATI_JWT_SECRET"]; secret != "" {
			secrets = append(secrets, secret)
		} else {
			if algorithm == "ES256" { // Agent keeps the proxy with the deleted key
				waitProtected(t, p, a, func() bool {
					return strings.Contains(a.out.String(), "<.Data.ATI_JWT_SECRET>: map has no entry for key")
				})
				if got := p.call(earlier[i-1], "web_search"); got != 200 {
					t.Errorf("under Agent, a token of the deleted key returns %d", got)
				}
			}
			a.stop(syscall.SIGTERM)
			stopES256()
			stopES256 = p.start(current)
		}
		if algorithm == "HS256" {
			stopES256()
			a = s.startAgent(config, env...)
			agents = append(agents, a)
		}
		waitProtected(t, p, a, func() bool { return p.call(token, "web_search") == 200 })
		for j, old := range earlier {
			if got := p.call(old, "web_search"); got != 401 {
				t.Errorf("rotation %d: token %d returns %d", i, j, got)
			}
			if got := s.write(s.root, "ati/validate", data{"token": old}).Data; got["valid"] != false || !strings.HasPrefix(got["error"].(string), "not signed by any key of this mount (key last rotated at ") {
				t.Errorf("rotation %d: validate of token %d returns %v", i, j, got)
			}
		}
		if got := s.write(s.root, "ati/validate", data{"token": token}).Data; got["valid"] != true || got["key_version"] != json.Number(strconv.Itoa(i+1)) {
			t.Errorf("rotation %d: validate of the new token returns %v", i, got)
		}
		earlier = append(earlier, token)
	}
	// ati-client accepts only the token of the current key and algorithm.
	for i, token := range earlier {
		_, problem := client.call(data{"do": "validate", "token": token, "secret": s.proxyEnv()["ATI_JWT_SECRET"], "issuer": ""})
		if valid := problem == ""; valid != (i == len(earlier)-1) {
			t.Errorf("ati-client returns %q for token %d", problem, i)
		}
	}
	for _, a := range agents {
		for _, secret := range secrets {
			if strings.Contains(a.out.String(), secret) {
				t.Error("Agent's log contains a secret")
			}
		}
	}
}

// Guarantee: with a public key file that ParsePublicKey accepts, the proxy rejects
// unauthenticated requests. With a file that it cannot read, it would accept them.
func TestInteropPublicKeyFiles(t *testing.T) {
	t.Parallel()
	_, _, public := ecKey(t, elliptic.P256())
	body := strings.Split(strings.TrimSpace(public), "\n")
	block, _ := pem.Decode([]byte(public))
	longer := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: append([]byte{0x30, block.Bytes[1] + 1}, append(block.Bytes[2:], 0xff)...)})
	lines := func(separator string) string { return strings.Join(body, separator) + separator }
	accepted := 0
	for name, text := range map[string]string{
		"as it is":              public,
		"no trailing newline":   strings.TrimSpace(public),
		"CRLF":                  lines("\r\n"),
		"CR":                    lines("\r"),
		"blank lines around":    "\n\n" + public + "\n\n",
		"blank lines within":    lines("\n\n"),
		"trailing spaces":       lines(" \n"),
		"leading tabs":          "\t" + lines("\n\t"),
		"a leading form feed":   "\f" + public,
		"one line":              body[0] + "\n" + strings.Join(body[1:len(body)-1], "") + "\n" + body[len(body)-1],
		"spaces in the base64":  strings.Replace(public, "M", "M ", 1),
		"EC PARAMETERS before":  "-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n" + public,
		"a header":              body[0] + "\nKey: value\n\n" + strings.Join(body[1:], "\n"),
		"a known header":        body[0] + "\nDEK-Info: value\n\n" + strings.Join(body[1:], "\n"),
		"text before":           "key:\n" + public,
		"text after":            public + "key",
		"a byte order mark":     "\ufeff" + public,
		"a broken block before": body[0] + "\n" + public,
		"twice":                 public + public,
		"a byte in the DER":     string(longer),
	} {
		if _, err := ati.ParsePublicKey(text); err != nil {
			continue
		}
		accepted++
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			startProxy(t, map[string]string{"public_key": text}) // and waits for a 401
		})
	}
	if accepted < 4 {
		t.Errorf("ParsePublicKey accepts only %d of these", accepted)
	}
}

// The engine rejects every token that a proxy with a public key rejects.
func TestInteropES256Verdicts(t *testing.T) {
	t.Parallel()
	s := startVault(t)
	s.mountEngine()
	_, private, public := ecKey(t, elliptic.P256())
	s.rotate("", data{"algorithm": "ES256", "private_key": private})
	s.write(s.root, "ati/roles/r", data{"tools": "web_search"})
	env := s.proxyEnv()
	if diff := cmp.Diff(map[string]string{"public_key": public, "ATI_JWT_AUDIENCE": "ati-proxy", "ATI_JWT_ACCEPTED_AUDIENCES": "ati-proxy", "ATI_JWT_ISSUER": "ati-orchestrator"}, env); diff != "" {
		t.Errorf("proxy-env (-want +got):\n%s", diff)
	}
	delete(env, "ATI_JWT_ISSUER")
	p := startProxy(t, env)
	if got := p.call(s.mint("r", nil), "web_search"); got != 200 {
		t.Errorf("a token of Vault returns %d", got)
	}
	verifier, err := ati.ParsePublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := jwt.ParseECPrivateKeyFromPEM([]byte(private))
	if err != nil {
		t.Fatal(err)
	}
	signWith := func(method jwt.SigningMethod, key any) func(header, payload string) string {
		return func(header, payload string) string {
			text := base64.RawURLEncoding.EncodeToString([]byte(header)) + "." + base64.RawURLEncoding.EncodeToString([]byte(payload))
			sig, err := method.Sign(text, key)
			if err != nil {
				t.Fatal(err)
			}
			return text + "." + base64.RawURLEncoding.EncodeToString(sig)
		}
	}
	valid, rejected := 0, 0
	random := rand.New(rand.NewPCG(11, 7))
	for i := range 2000 {
		sign := signWith(jwt.SigningMethodES256, signer)
		if i%10 == 0 { // signed by someone who has only the public key
			sign = signWith(jwt.SigningMethodHS256, []byte(public))
		}
		token := mutatedToken(random, "ES256", sign)
		if _, err := ati.ValidateToken(token, verifier); err != nil {
			rejected++
			continue
		}
		valid++
		if status, _ := p.do(token, http.MethodGet, "/tools", ""); status != 200 {
			t.Errorf("valid here, but the proxy returns %d: %s", status, token)
		}
		if i%10 == 0 {
			t.Errorf("a token signed with the public key is valid: %s", token)
		}
	}
	t.Logf("%d tokens were valid here and for the proxy, %d were rejected", valid, rejected)
	if valid < 250 || rejected < 250 {
		t.Error("not enough valid and rejected tokens")
	}
}

// A client library, as in an MCP server, verifies tokens with the JWK Set, which it reads
// from Vault without a Vault token.
func TestInteropJWKS(t *testing.T) {
	t.Parallel()
	s, _ := startEngine(t)
	s.write(s.root, "ati/roles/r", data{"tools": "web_search"})
	program := `
import jwt, sys
keys = jwt.PyJWKClient(sys.argv[1])
key = keys.get_signing_key_from_jwt(sys.argv[2])
print(key.key_id, jwt.decode(sys.argv[2], key.key, algorithms=[key.algorithm_name], audience="ati-proxy", issuer="ati-orchestrator")["scope"])
`
	verify := func(token string) string {
		cmd := exec.Command("python3", "-c", program, s.addr+"/v1/ati/jwks", token)
		cmd.Env = append(os.Environ(), "PYTHONPATH="+requireEnv(t, "ATI_CLIENT_0_7_15"))
		out, err := cmd.CombinedOutput()
		if err != nil {
			lines := strings.Split(strings.TrimSpace(string(out)), "\n")
			return lines[len(lines)-1]
		}
		return strings.TrimSpace(string(out))
	}
	hs := s.mint("r", nil)
	if got := verify(hs); !strings.Contains(got, "Error") {
		t.Errorf("with HS256: %s", got)
	}
	first := s.rotate("", data{"algorithm": "ES256"})
	staged := s.rotate("/stage", data{"proxy_url": "https://green.example.com"})
	blue := s.mint("r", nil)
	s.rotate("/activate", nil)
	green := s.mint("r", nil)
	blueLater := s.mint("r", data{"proxy_url": first["current_proxy_url"]})
	for token, kid := range map[string]any{blue: first["current_fingerprint"], blueLater: first["current_fingerprint"], green: staged["pending_fingerprint"]} {
		if got, want := verify(token), fmt.Sprintf("%s tool:web_search", kid); got != want {
			t.Errorf("the library returns %q, want %q", got, want)
		}
	}
	s.rotate("", nil)
	if got := verify(green); !strings.Contains(got, "Unable to find a signing key") {
		t.Errorf("a token of a deleted key: %s", got)
	}
	resp, err := http.Get(s.addr + "/v1/ati/jwks")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var set struct{ Keys []map[string]string }
	if err := json.NewDecoder(resp.Body).Decode(&set); err != nil || resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "application/json" || len(set.Keys) != 1 {
		t.Fatalf("%v %v %v", resp, set, err)
	}
	key := set.Keys[0]
	if diff := cmp.Diff(map[string]string{"kty": "EC", "use": "sig", "alg": "ES256", "crv": "P-256", "kid": key["kid"], "x": key["x"], "y": key["y"]}, key); diff != "" {
		t.Errorf("JWK (-want +got):\n%s", diff)
	}
	s.rotate("", data{"algorithm": "HS256", "secret": strings.Repeat("0123456789abcdef", 4)})
	if got := s.vault("", "read", "-field=keys", "ati/jwks"); strings.TrimSpace(got) != "[]" {
		t.Errorf("with HS256 again: %s", got)
	}
}

// TestRotation rotates the key blue/green with two real proxies, each with an Agent, while
// eight sandboxes call tools continuously and renew their tokens through their Agents. No
// call fails in any step. The sandboxes make at least ATI_ROTATION_CALLS calls for each
// algorithm. Run by make rotation.
func TestRotation(t *testing.T) {
	t.Parallel()
	calls, err := strconv.Atoi(requireEnv(t, "ATI_ROTATION_CALLS"))
	if err != nil {
		t.Fatal(err)
	}
	for _, algorithm := range []string{"HS256", "ES256"} {
		t.Run("to "+algorithm, func(t *testing.T) { t.Parallel(); rotation(t, algorithm, calls) })
	}
}

func rotation(t *testing.T, algorithm string, calls int) {
	s := startVaultLogging(t, "info")
	secret := s.mountEngine()
	s.enableProxyHosts()
	// Tokens are valid for 10 seconds, and Agent renews them after about 2.6 seconds.
	policies, err := filepath.Abs("../examples/policies")
	if err != nil {
		t.Fatal(err)
	}
	s.runExample(s.root, modifiedExample(t, "approle/setup.sh", map[string]string{"ttl=1h": "ttl=10s", `$(dirname "$0")/../policies`: policies}))

	startAgent := func(config string, p *proxy, env []string, version int) *agent {
		a := s.startAgent(config, append(env, fmt.Sprintf("ATI_PROXY_ENV=ati/proxy-env/%d", version))...)
		waitProtected(t, p, a, p.isReady)
		return a
	}
	blueConfig, blue, blueEnv := s.newProxyHost(t, "proxy-host", nil)
	greenConfig, green, greenEnv := s.newProxyHost(t, "proxy-host", nil)
	s.write(s.root, "ati/config", data{"proxy_url": blue.addr})
	blueAgent := startAgent(blueConfig, blue, blueEnv, 1)
	keyVersion := map[*proxy]int{blue: 1, green: 2}
	sandboxes := []*sandbox{}
	start := func(n int) {
		for range n {
			sandboxes = append(sandboxes, s.startSandbox(t, fmt.Sprintf("%s%d", strings.ToLower(algorithm), len(sandboxes)+1), blue, green))
		}
	}
	total := func() (calls, failed int64) {
		for _, b := range sandboxes {
			calls += b.calls.Load()
			failed += b.failed.Load()
		}
		return calls, failed
	}
	running := func() []*sandbox {
		var all []*sandbox
		for _, b := range sandboxes {
			select {
			case <-b.done:
			default:
				all = append(all, b)
			}
		}
		return all
	}
	const phases = 7
	phase := 0
	// runPhase waits until each sandbox has a new token, which must have the key version of
	// its proxy, and the sandboxes have made this phase's share of the calls.
	runPhase := func(what string) {
		t.Helper()
		phase++
		before := map[*sandbox]string{}
		for _, b := range running() {
			before[b] = b.token(t)
		}
		if len(before) != 8 {
			t.Errorf("%s: %d sandboxes are running", what, len(before))
		}
		deadline := time.Now().Add(10 * time.Minute)
		enough := func() bool {
			for b, token := range before {
				if b.token(t) == token {
					return false
				}
			}
			n, _ := total()
			return n >= int64(calls*phase/phases)
		}
		for !enough() {
			if time.Now().After(deadline) || t.Failed() {
				n, failed := total()
				t.Fatalf("%s: timeout after %d calls, of which %d failed", what, n, failed)
			}
			time.Sleep(50 * time.Millisecond)
		}
		for b := range before {
			if got := s.write(s.root, "ati/validate", data{"token": b.token(t)}).Data["key_version"]; got != json.Number(strconv.Itoa(keyVersion[b.proxy])) {
				t.Errorf("%s: the token of %s has key version %v, and its proxy %d", what, b.name, got, keyVersion[b.proxy])
			}
		}
		n, failed := total()
		t.Logf("%s: %d calls so far, %d failed", what, n, failed)
	}

	start(5)
	s.rotate("/stage", data{"proxy_url": green.addr, "algorithm": algorithm})
	agents := []*agent{blueAgent}
	if algorithm == "HS256" {
		agents = append(agents, startAgent(greenConfig, green, greenEnv, 2))
	} else {
		green.start(s.proxyEnvAt("ati/proxy-env/2"))
	}
	start(3)
	runPhase("staged")
	s.rotate("/activate", nil)
	// Replace two of the earlier sandboxes.
	sandboxes[0].end()
	sandboxes[1].end()
	start(2)
	runPhase("activated")
	s.rotate("/rollback", nil)
	runPhase("rolled back")
	s.rotate("/activate", nil)
	runPhase("rolled forward")
	// Replace all sandboxes of the blue proxy before it is retired.
	var last []string
	ended := 0
	for _, b := range running() {
		if b.proxy == blue {
			b.end()
			last = append(last, b.token(t))
			ended++
		}
	}
	start(ended)
	runPhase("blue is empty")
	last = append(last, s.mintAt(blue.addr))
	status := s.rotate("/retire", nil)
	expireBy, err := time.Parse(time.RFC3339, status["previous_tokens_expire_by"].(string))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.client(s.root).Logical().Write("ati/creds/sandbox", data{"proxy_url": blue.addr}); err == nil {
		t.Error("the retired version still mints")
	}
	runPhase("retired")
	// Until shortly before tokens_expire_by, some endpoints accept the last token, because of
	// the leeway after exp.
	time.Sleep(time.Until(expireBy.Add(-5 * time.Second)))
	if got, _ := blue.do(last[len(last)-1], http.MethodGet, "/tools", ""); got != 200 {
		t.Errorf("5 seconds before tokens_expire_by, the last token at blue returns %d", got)
	}
	time.Sleep(time.Until(expireBy))
	for _, token := range last {
		if got, _ := blue.do(token, http.MethodGet, "/tools", ""); got != 401 {
			t.Errorf("after tokens_expire_by, a token at blue returns %d", got)
		}
	}
	if _, err := s.client(s.root).Logical().Read("ati/proxy-env/1"); err == nil {
		t.Error("proxy-env/1 still exists")
	}
	blueAgent.stop(syscall.SIGTERM)
	runPhase("blue is stopped")

	n, failed := total()
	t.Logf("from HS256 to %s: %d calls of %d sandboxes, %d failed", algorithm, n, len(sandboxes), failed)
	if n < int64(calls) {
		t.Errorf("%d calls, want at least %d", n, calls)
	}
	for _, a := range agents {
		if strings.Contains(a.out.String(), secret) {
			t.Error("Agent's log contains the secret")
		}
	}
	if strings.Contains(s.log(), secret) {
		t.Error("Vault's log contains the secret")
	}
	var wg sync.WaitGroup
	for _, b := range running() {
		wg.Go(b.end)
	}
	wg.Wait()
}
