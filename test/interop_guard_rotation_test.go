//go:build interop

package test

import (
	"crypto/elliptic"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// rotationClients is the number of clients that call a tool continuously.
const rotationClients = 8

// renewer requests a new token from time to time, as a sandbox does.
type renewer struct {
	s       *server
	every   time.Duration
	mu      sync.Mutex
	token   string
	version int
	renewed time.Time
}

func (r *renewer) current() (token string, version int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if time.Since(r.renewed) > r.every {
		r.renewed = time.Now()
		creds, err := r.s.client(r.s.root).Logical().Read("ati/creds/r")
		if err != nil {
			r.s.t.Errorf("mint: %v", err)
			return r.token, r.version
		}
		n, _ := creds.Data["key_version"].(json.Number).Int64()
		r.token, r.version = creds.Data["token"].(string), int(n)
	}
	return r.token, r.version
}

// renew makes the next call use a new token.
func (r *renewer) renew() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.renewed = time.Time{}
}

// tokenSource is a client that renews its token.
type tokenSource interface {
	current() (token string, version int)
}

// rotationLoad is clients, each with tokens of its own, that know nothing of a rotation.
type rotationLoad struct {
	t       testing.TB
	clients []tokenSource
	loads   []*guardLoad
}

func (s *server) startRotationLoad(t testing.TB, g *guard, renew time.Duration) *rotationLoad {
	l := &rotationLoad{t: t}
	for range rotationClients {
		client := &renewer{s: s, every: renew}
		l.clients = append(l.clients, client)
		l.loads = append(l.loads, g.startLoad(1, func() string { token, _ := client.current(); return token }))
	}
	return l
}

// phase waits until each client uses a token of this version and has made more calls, and
// fails the test if one failed.
func (l *rotationLoad) phase(what string, version int) {
	l.t.Helper()
	l.waitForVersion(what, version)
	l.waitForCalls(50)
	calls, failed := l.total()
	l.t.Logf("%s: %d calls so far, %d failed", what, calls, failed)
	if failed > 0 {
		l.end()
		l.t.FailNow()
	}
}

// waitForVersion waits until each client uses a token of this version.
func (l *rotationLoad) waitForVersion(what string, version int) {
	l.t.Helper()
	pollFor(l.t, 2*time.Minute, what, func() error {
		for i, client := range l.clients {
			if _, got := client.current(); got != version {
				return fmt.Errorf("client %d has a token of version %d, want %d", i, got, version)
			}
		}
		return nil
	})
}

// waitForCalls waits until each client has made this many more calls.
func (l *rotationLoad) waitForCalls(n int) {
	l.t.Helper()
	var wants []int
	for _, load := range l.loads {
		wants = append(wants, load.succeeded()+n)
	}
	for i, load := range l.loads {
		load.waitForCalls(wants[i] - load.succeeded())
	}
}

func (l *rotationLoad) total() (calls, failed int) {
	for _, load := range l.loads {
		calls, failed = calls+load.succeeded()+load.failed(), failed+load.failed()
	}
	return calls, failed
}

// expectNoFailure ends the clients when they have made enough calls, and fails the test if a
// call failed.
func (l *rotationLoad) expectNoFailure(what string, want int) {
	l.t.Helper()
	for _, load := range l.loads {
		load.waitForCalls(max(0, want/len(l.loads)+1-load.succeeded()))
	}
	l.end()
	calls, failed := l.total()
	l.t.Logf("%s: %d calls of %d clients, %d failed", what, calls, len(l.loads), failed)
	if failed > 0 || calls < want {
		l.t.Errorf("%d calls, of which %d failed; want at least %d and 0", calls, failed, want)
	}
}

func (l *rotationLoad) end() {
	for _, load := range l.loads {
		if load.end(); load.failed() > 0 {
			l.t.Errorf("calls by status %v, such as %q", load.statuses, load.failures)
		}
	}
}

// rotationCalls returns how many calls the clients must make.
func rotationCalls(t testing.TB) int {
	n, err := strconv.Atoi(requireEnv(t, "ATI_ROTATION_CALLS"))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// signer signs tokens as someone who has a key does.
type signer func(jti string) (token string)

func hs256Signer(t testing.TB, secret string) signer {
	return func(jti string) string { return signRaw(t, secret, `{"alg":"HS256","typ":"JWT"}`, longLived(jti)) }
}

func es256Signer(t testing.TB, private string) signer {
	key, err := jwt.ParseECPrivateKeyFromPEM([]byte(private))
	if err != nil {
		t.Fatal(err)
	}
	return func(jti string) string {
		var claims jwt.MapClaims
		if err := json.Unmarshal([]byte(longLived(jti)), &claims); err != nil {
			t.Fatal(err)
		}
		token, err := jwt.NewWithClaims(jwt.SigningMethodES256, claims).SignedString(key)
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
}

// newJTI returns a random ID in the form of a UUID.
func newJTI() string {
	id := rand.Text()
	hexadecimal := hex.EncodeToString([]byte(id[:16]))
	return strings.Join([]string{hexadecimal[:8], hexadecimal[8:12], hexadecimal[12:16], hexadecimal[16:20], hexadecimal[20:]}, "-")
}

func longLived(jti string) string {
	now := time.Now().Unix()
	return fmt.Sprintf(`{"sub":"x","aud":"ati-proxy","iat":%d,"exp":%d,"scope":"*","iss":"ati-orchestrator","jti":%q}`, now, now+3600, jti)
}

// TestGuardRotation rotates the key from HS256 to ES256 and back at one address, while eight
// clients, which know nothing of it, call a tool continuously and renew their tokens. No call
// is rejected, and revoked tokens stay so. A guard that has lost Vault rejects the previous
// key when it expires. Run by make rotation.
func TestGuardRotation(t *testing.T) {
	t.Parallel()
	s := startGuarded(t, false, 5*time.Second)
	g := s.startGuard(t, nil)
	s.write(s.root, "ati/config", data{"proxy_url": g.addr})
	vault := startRelay(t, "/v1/ati/guard", func() *server { return s })
	lonely := s.newGuard(t, nil)
	lonely.behind(vault)
	lonely.start()
	lonely.waitUntilReady()
	watches := map[*guard]*rejections{g: g.watchRejected(), lonely: lonely.watchRejected()}
	revoke := func(what string, sign signer) {
		t.Helper()
		jti := newJTI()
		token := sign(jti)
		for g := range watches {
			g.expect(what+", before it is revoked", token, http.StatusOK)
		}
		s.write(s.root, "ati/revoke", data{"jti": jti})
		for g, watch := range watches {
			g.untilRejected(what, http.StatusUnauthorized, token)
			watch.add(token)
		}
	}
	load := s.startRotationLoad(t, g, 2*time.Second)

	// The keys are imported, so that the test can sign tokens that live longer than the keys.
	_, private, _ := ecKey(t, elliptic.P256())
	byFirst, bySecond := hs256Signer(t, s.proxyEnv()["ATI_JWT_SECRET"]), es256Signer(t, private)
	revoke("a token of version 1", byFirst)
	s.rotate("/stage", data{"proxy_url": g.addr + "/2", "algorithm": "ES256", "private_key": private})
	g.waitForReads(2)
	load.phase("version 2, ES256, is staged", 1)
	revoke("a token of the pending version", bySecond)
	s.rotate("/activate", nil)
	load.phase("activated", 2)
	s.rotate("/rollback", nil)
	load.phase("rolled back", 1)
	s.rotate("/activate", nil)
	load.phase("activated again", 2)
	s.rotate("/retire", nil)
	g.waitForReads(2)
	load.phase("version 1 is retired", 2)

	s.rotate("/stage", data{"proxy_url": g.addr + "/3", "algorithm": "HS256"})
	s.rotate("/activate", nil) // guards may first see the key in a token
	load.phase("version 3, HS256, is staged and activated", 3)
	revoke("a token of version 2", bySecond)
	status := s.rotate("/retire", nil)
	g.waitForReads(2)
	lonely.waitForReads(2)
	load.phase("version 2 is retired", 3)
	expireBy, err := time.Parse(time.RFC3339, status["previous_tokens_expire_by"].(string))
	if err != nil {
		t.Fatal(err)
	}

	// Who has the key of version 2 can use it until it expires, also at a guard that has lost
	// Vault.
	vault.respond(http.StatusServiceUnavailable, "")
	token := bySecond(newJTI())
	var waiting sync.WaitGroup
	for _, c := range []struct {
		what  string
		guard *guard
		then  int
	}{{"with Vault", g, http.StatusUnauthorized}, {"without Vault", lonely, http.StatusServiceUnavailable}} {
		waiting.Go(func() {
			if err := c.guard.expireAt(token, expireBy, c.then); err != nil {
				t.Errorf("%s: %v", c.what, err)
			}
			watches[c.guard].add(token)
		})
	}
	waiting.Wait()
	lonely.expect("the current key, without Vault", s.mint("r", nil), http.StatusOK)
	load.phase("version 2 has expired", 3)
	load.expectNoFailure("HS256 to ES256 to HS256", rotationCalls(t))
}

// expireAt calls a tool until a token's key expires, and reports a call with another status
// than 200 before that, or with another one than then later.
func (g *guard) expireAt(token string, at time.Time, then int) error {
	for passed := 0; ; {
		began := time.Now()
		status, body := g.call(token, "web_search")
		ended := time.Now()
		switch {
		case status == http.StatusOK && began.Before(at):
			passed++
		case status == then && !ended.Before(at) && passed > 0:
			g.t.Logf("the key passed %d times until it expired, and was then rejected with %d", passed, status)
			return nil
		default:
			return fmt.Errorf("%v before the key expires, a call returns %d %s", at.Sub(began), status, body)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// TestGuardRotation_Immediate replaces the key while eight clients call a tool. Only tokens of
// the replaced key are rejected, and calls in flight with one are ended.
func TestGuardRotation_Immediate(t *testing.T) {
	t.Parallel()
	s := startGuarded(t, false, time.Hour)
	g := s.startGuard(t, nil)
	watch := g.watchRejected()
	version := 1
	for _, algorithm := range []string{"HS256", "ES256", "HS256"} {
		slow := g.callSlow(s.mint("r", nil))
		load := s.startRejectedLoad(t, g)
		load.waitForCalls(version, 500)
		old := s.mint("r", nil)
		s.rotate("", data{"algorithm": algorithm})
		began := time.Now()
		version++
		took := g.untilRejected("the replaced key", http.StatusUnauthorized, old)
		if status, body := g.do(old, http.MethodPost, "/mcp", `{"jsonrpc":"2.0","id":1,"method":"tools/list"}`); status != http.StatusUnauthorized {
			t.Errorf("/mcp returns %d %s for a token of the replaced key", status, body)
		}
		watch.add(old)
		r := receive(t, "the call in flight has ended", slow)
		load.waitForCalls(version, 500)
		load.end()
		t.Logf("to %s: calls by key version %v, rejected %v; the replaced key is rejected after %v, and a call in flight ended after %v", algorithm, load.calls, load.rejected, took, r.at.Sub(began).Round(10*time.Millisecond))
		if load.rejected[version] > 0 || load.rejected[version-1] > rotationClients {
			t.Errorf("to %s: calls %v, rejected %v", algorithm, load.calls, load.rejected)
		}
		if r.status != http.StatusUnauthorized {
			t.Errorf("to %s: a call in flight returns %d %s", algorithm, r.status, r.body)
		}
	}
}

// rejectedLoad is clients that renew their tokens only when they are rejected.
type rejectedLoad struct {
	t               testing.TB
	end             func()
	mu              sync.Mutex
	calls, rejected map[int]int // by key version
}

func (s *server) startRejectedLoad(t testing.TB, g *guard) *rejectedLoad {
	l := &rejectedLoad{t: t, calls: map[int]int{}, rejected: map[int]int{}}
	stop := make(chan struct{})
	var running sync.WaitGroup
	l.end = sync.OnceFunc(func() { close(stop); running.Wait() })
	t.Cleanup(l.end)
	for range rotationClients {
		client := &renewer{s: s, every: time.Hour}
		running.Go(func() {
			for {
				select {
				case <-stop:
					return
				case <-time.After(10 * time.Millisecond):
				}
				token, version := client.current()
				status, body := g.call(token, "web_search")
				l.mu.Lock()
				l.calls[version]++
				switch status {
				case http.StatusOK:
				case http.StatusUnauthorized:
					l.rejected[version]++
					client.renew()
				default:
					t.Errorf("a call returns %d %s", status, body)
				}
				l.mu.Unlock()
			}
		})
	}
	return l
}

// waitForCalls waits until the clients have made this many calls with tokens of a version.
func (l *rejectedLoad) waitForCalls(version, n int) {
	l.t.Helper()
	pollFor(l.t, 2*time.Minute, "clients call", func() error {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.calls[version] < n {
			return fmt.Errorf("calls by key version %v, rejected %v", l.calls, l.rejected)
		}
		return nil
	})
}
