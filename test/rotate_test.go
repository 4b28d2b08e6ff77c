package test

import (
	"crypto/elliptic"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// Guarantee: after a crash of Vault or the plugin at any time, with raft storage, a step
// of a rotation is either done or not done.
func TestRotate_CrashBetweenStepsIsAtomic(t *testing.T) {
	t.Parallel()
	s := startRaftVault(t)
	s.mountEngine()
	s.write(s.root, "ati/roles/r", data{"tools": "web_search"})
	address := func(version int) string { return fmt.Sprintf("https://p%d.example.com", version) }
	s.write(s.root, "ati/config", data{"proxy_url": address(1)})
	c := s.client(s.root)

	state, last := versions{Current: 1}, 1
	addresses := map[int]string{1: address(1)} // by version
	done, inFlight := 0, 0
	fingerprints := map[int]any{}
	random := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 1))
	crashes := rounds(t, "SOAK_CRASHES", 10, 100)
	for round := range crashes {
		crash := func() {
			for _, pid := range s.pluginProcesses() {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		}
		if round%2 == 1 {
			crash = func() { _ = s.process.Kill() }
		}
		crashed := make(chan struct{})
		time.AfterFunc(time.Duration(20+random.IntN(200))*time.Millisecond, func() { crash(); close(crashed) })
		var next versions // after the step in flight
		nextLast := last
	steps:
		for {
			select {
			case <-crashed: // no request failed: Vault repeats one that the plugin did not answer
				break steps
			default:
			}
			all := []string{"", "/stage", "/activate", "/rollback", "/retire"}
			step := all[random.IntN(len(all))]
			var ok bool
			if next, ok = state.after(step, last); !ok {
				continue
			}
			d := data{}
			nextLast = last
			if step == "" || step == "/stage" {
				nextLast = last + 1
				addresses[nextLast], addresses[nextLast+1] = address(nextLast), address(nextLast)
				d = data{"proxy_url": address(nextLast), "algorithm": []string{"HS256", "ES256"}[random.IntN(2)]}
			}
			secret, err := c.Logical().Write("ati/config/rotate"+step, d)
			if err != nil {
				inFlight++
				<-crashed
				break steps
			}
			got := versionsOf(t, secret.Data)
			if step == "" && got.Current == next.Current+1 {
				// If the plugin exits before it responds, Vault sends the request again, so an
				// immediate rotation may be done twice.
				next.Current, nextLast = got.Current, nextLast+1
			}
			if got != next.visible() {
				t.Fatalf("%q changed %+v to %+v, want %+v", step, state, got, next)
			}
			state, last = next, nextLast
			done++
		}
		if round%2 == 1 {
			s.crash()
		}
		var status data
		poll(t, "Vault responds again", func() error {
			secret, err := c.Logical().Read("ati/config/rotate")
			if err == nil {
				status = secret.Data
			}
			return err
		})
		switch got := versionsOf(t, status); got {
		case state.visible():
		case next.visible():
			state, last = next, nextLast
		default:
			t.Fatalf("round %d: after the crash the versions are %+v, want %+v or %+v", round, got, state, next)
		}
		// Each version keeps its key and proxy, and tokens are signed with the current one.
		for name, version := range map[string]int{"current": state.Current, "pending": state.Pending, "previous": state.Previous} {
			if version == 0 {
				continue
			}
			if got := status[name+"_proxy_url"]; got != addresses[version] {
				t.Errorf("round %d: version %d has proxy_url %v", round, version, got)
			}
			if known, ok := fingerprints[version]; ok && known != status[name+"_fingerprint"] {
				t.Errorf("round %d: version %d has a different key", round, version)
			}
			fingerprints[version] = status[name+"_fingerprint"]
		}
		creds := s.read(s.root, "ati/creds/r")
		verdict := s.write(s.root, "ati/validate", data{"token": creds.Data["token"]}).Data
		if creds.Data["proxy_url"] != addresses[state.Current] || verdict["valid"] != true || verdict["key_version"] != creds.Data["key_version"] {
			t.Errorf("round %d: version %d, token for %v, %v", round, state.Current, creds.Data["proxy_url"], verdict)
		}
	}
	t.Logf("%d steps, %d of %d crashes with a step in flight that failed", done, inFlight, crashes)
	if done < 2*crashes || inFlight < crashes/3 {
		t.Error("not enough steps and crashes")
	}
}

// Guarantee: no response except those of proxy-env and guard, no error, and no log contains a secret or
// private key.
func TestRotate_DoesNotExposeKeys(t *testing.T) {
	t.Parallel()
	s, first := startEngine(t)
	key, private, _ := ecKey(t, elliptic.P256())
	scalar, err := key.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(private, "\n")
	line := lines[1]
	second := strings.Repeat("0f1e2d3c4b5a6978", 4)
	var responses strings.Builder
	do := func(path string, d data) {
		secret, err := s.client(s.root).Logical().Write(path, d)
		fmt.Fprintf(&responses, "%s %+v %v\n", path, secret, err)
	}
	secrets := map[string]bool{}
	for _, d := range []data{
		{"secret": second},
		{"secret": second},                       // the current secret
		{"secret": second[1:]},                   // too short
		{"secret": []string{second}},             // wrong type
		{"proxy_url": data{"secret": second}},    // wrong parameter
		{"algorithm": "ES256", "secret": second}, // wrong algorithm
		{"private_key": private},
		{"algorithm": "ES256", "private_key": line},                                    // not PEM
		{"algorithm": "ES256", "private_key": second},                                  // a secret instead of a key
		{"algorithm": "ES256", "private_key": strings.Join(lines[:2], "\n")},           // truncated
		{"algorithm": "ES256", "private_key": private + private},                       // twice
		{"algorithm": "ES256", "private_key": map[string]any{"private_key": private}},  // wrong type
		{"algorithm": "ES256", "private_key": private, "proxy_url": "https://h"},       // accepted
		{"algorithm": "ES256", "private_key": private, "proxy_url": "https://h/again"}, // the current key
		{"algorithm": "HS256"},
		{},
	} {
		do("ati/config/rotate", d)
		do("ati/config/rotate/stage", d)
		do("ati/config/rotate/activate", nil)
		do("ati/config/rotate/rollback", nil)
		do("ati/config/rotate/retire", nil)
		s.read(s.root, "ati/guard")
		if secret := s.read(s.root, "ati/proxy-env").Data["ATI_JWT_SECRET"]; secret != nil {
			secrets[secret.(string)] = true
		}
	}
	fmt.Fprintln(&responses, s.read(s.root, "ati/config/rotate").Data, s.read(s.root, "ati/config").Data)
	audit := readFile(t, s.audit)
	for _, secret := range []string{first, second, line, fmt.Sprintf("%x", scalar)} {
		secrets[secret] = true
	}
	for name, text := range map[string]string{"a response or an error": responses.String(), "the audit log": string(audit), "the server log": s.log()} {
		for secret := range secrets {
			if strings.Contains(text, secret[:40]) {
				t.Errorf("%s contains a key", name)
			}
		}
	}
	if !strings.Contains(responses.String(), "current_algorithm:ES256") {
		t.Error("the private key was never accepted")
	}
	if len(secrets) < 4 {
		t.Errorf("the test searched for only %d keys", len(secrets))
	}
}

// Of two concurrent requests for the same step, one succeeds and the other returns 400.
func TestRotate_ConcurrentRequests(t *testing.T) {
	t.Parallel()
	s, _ := startEngine(t)
	for _, step := range []string{"/stage", "/activate", "/retire"} {
		results := make(chan error, 2)
		for range 2 {
			go func() {
				_, err := s.client(s.root).Logical().Write("ati/config/rotate"+step, nil)
				results <- err
			}()
		}
		var got []int
		for range 2 {
			got = append(got, httpStatus(t, <-results))
		}
		if diff := cmp.Diff(600, got[0]+got[1]); diff != "" {
			t.Errorf("%s: %v, want a 200 and a 400", step, got)
		}
	}
	if got := versionsOf(t, s.read(s.root, "ati/config/rotate").Data); got != (versions{Current: 2, Previous: 1, Retired: true}) {
		t.Errorf("the versions are %+v", got)
	}
}

// Every path of the key requires sudo, except jwks, which requires no token.
func TestRotate_Policies(t *testing.T) {
	t.Parallel()
	s, _ := startEngine(t)
	broad := s.policy("broad", `path "ati/*" { capabilities = ["create", "read", "update", "delete", "list"] }`)
	team := s.policy("team", `path "ati/config/*" { capabilities = ["create", "read", "update", "delete", "sudo"] }`)
	for _, c := range []struct {
		request string
		team    int
	}{
		{"GET ati/config/rotate", 200},
		{"PUT ati/config/rotate/stage", 200},
		{"PUT ati/config/rotate/activate", 200},
		{"PUT ati/config/rotate/rollback", 200},
		{"PUT ati/config/rotate/retire", 200},
		{"PUT ati/config/rotate", 200},
		{"DELETE ati/config/rotate/stage", 204},
		{"PUT ati/config/rotate/activate", 400},
		{"PUT ati/config/rotate/nothing", 404},
		{"GET ati/config/rotate/stage", 405},
	} {
		method, path, _ := strings.Cut(c.request, " ")
		if got := s.request(broad, method, path, nil); got != http.StatusForbidden && c.team < 400 {
			t.Errorf("broad: %s returns %d", c.request, got)
		}
		if got := s.request(team, method, path, nil); got != c.team {
			t.Errorf("team: %s returns %d, want %d", c.request, got, c.team)
		}
	}
	if got := s.request("", "GET", "ati/jwks", nil); got != 200 {
		t.Errorf("jwks without a Vault token returns %d", got)
	}
	for _, request := range []string{"GET ati/config", "GET ati/config/rotate", "GET ati/proxy-env", "GET ati/guard", "PUT ati/jwks", "GET ati/jwks/x", "GET ati/jwksx"} {
		method, path, _ := strings.Cut(request, " ")
		if got := s.request("", method, path, nil); got != http.StatusForbidden && got != http.StatusMethodNotAllowed && got != http.StatusNotFound {
			t.Errorf("without a Vault token, %s returns %d", request, got)
		}
	}
}
