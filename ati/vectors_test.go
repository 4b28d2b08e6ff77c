package ati_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"vault-plugin-secrets-ati/ati"
)

// readVectors reads a file of testdata, which records the behavior of ati-client
// 0.1.0 and of the proxy.
func readVectors(t *testing.T, name string, out any) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("..", "testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, out); err != nil {
		t.Fatal(err)
	}
}

func mustKey(t testing.TB, secret string) ati.Key {
	t.Helper()
	key, err := ati.ParseSecret(secret)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func TestVectors_Issue(t *testing.T) {
	t.Parallel()
	var vectors struct {
		Secret string
		Cases  []struct {
			Now        int64
			Sub, Scope string
			TTLSeconds int64 `json:"ttl_seconds"`
			Aud        string
			Iss        *string
			Jti        string
			Rate       map[string]string
			Token      string
			Claims     json.RawMessage
		}
	}
	readVectors(t, "issue.json", &vectors)
	if len(vectors.Cases) == 0 {
		t.Fatal("no cases")
	}
	key := mustKey(t, vectors.Secret)
	for _, c := range vectors.Cases {
		req := ati.IssueRequest{
			Subject: c.Sub, Scope: c.Scope, TTL: time.Duration(c.TTLSeconds) * time.Second,
			Audience: c.Aud, OmitIssuer: c.Iss == nil, ID: c.Jti, Rate: c.Rate, IssuedAt: time.Unix(c.Now, 0),
		}
		if c.Iss != nil {
			req.Issuer = *c.Iss
		}
		got, err := ati.IssueToken(key, req)
		if err != nil {
			t.Fatal(err)
		}
		if got != c.Token {
			t.Errorf("%s: token differs\n got %s\nwant %s", c.Jti, got, c.Token)
		}

		claims, err := ati.ValidateToken(c.Token, key, ati.WithAudience(c.Aud),
			ati.WithTime(func() time.Time { return time.Unix(c.Now, 0) }))
		if err != nil {
			t.Errorf("%s: %v", c.Jti, err)
			continue
		}
		var want, have any
		if err := json.Unmarshal(c.Claims, &want); err != nil {
			t.Fatal(err)
		}
		b, err := json.Marshal(claims)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(b, &have); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, have); diff != "" {
			t.Errorf("%s: claims (-want +got):\n%s", c.Jti, diff)
		}
	}
}

func TestVectors_Scopes(t *testing.T) {
	t.Parallel()
	var vectors struct {
		Build []struct {
			Tools, Skills, Extra []string
			Scope                string
		}
		Parse []struct {
			Scope  string
			Scopes []string
		}
		Wildcard []struct {
			Name, Pattern string
			Match         bool
		}
		Check []struct {
			Required string
			Granted  []string
			Allowed  bool
		}
	}
	readVectors(t, "scopes.json", &vectors)
	if len(vectors.Build)*len(vectors.Parse)*len(vectors.Wildcard)*len(vectors.Check) == 0 {
		t.Fatal("no cases")
	}
	for _, c := range vectors.Build {
		if got := ati.BuildScope(c.Tools, c.Skills, c.Extra); got != c.Scope {
			t.Errorf("BuildScope(%q, %q, %q) = %q, want %q", c.Tools, c.Skills, c.Extra, got, c.Scope)
		}
	}
	for _, c := range vectors.Parse {
		if diff := cmp.Diff(c.Scopes, ati.ParseScopes(c.Scope)); diff != "" {
			t.Errorf("ParseScopes(%q) (-want +got):\n%s", c.Scope, diff)
		}
	}
	for _, c := range vectors.Wildcard {
		if got := ati.MatchesWildcard(c.Name, c.Pattern); got != c.Match {
			t.Errorf("MatchesWildcard(%q, %q) = %v", c.Name, c.Pattern, got)
		}
	}
	for _, c := range vectors.Check {
		if got := ati.CheckScope(c.Required, c.Granted); got != c.Allowed {
			t.Errorf("CheckScope(%q, %q) = %v", c.Required, c.Granted, got)
		}
	}
}

// validateVectors is the form of validate.json.
type validateVectors struct {
	Secret, Audience string
	Cases            []struct {
		Name, Token string
		Validate    struct{ Valid bool }
		WithIssuer  struct{ Valid bool } `json:"validate_issuer"`
		Inspect     struct {
			Decoded bool
			Claims  any
		}
		Proxy       int // HTTP status
		ProxyIssuer int `json:"proxy_issuer"` // HTTP status if the proxy requires an issuer
	}
}

func readValidateVectors(t *testing.T) (vectors validateVectors) {
	t.Helper()
	readVectors(t, "validate.json", &vectors)
	if len(vectors.Cases) == 0 {
		t.Fatal("no cases")
	}
	return vectors
}

// ValidateToken accepts a token if both the proxy and ati-client do.
func TestVectors_Validate(t *testing.T) {
	t.Parallel()
	vectors := readValidateVectors(t)
	key := mustKey(t, vectors.Secret)
	for _, c := range vectors.Cases {
		t.Run(c.Name, func(t *testing.T) {
			t.Parallel()
			_, err := ati.ValidateToken(c.Token, key, ati.WithAudience(vectors.Audience))
			if want := c.Validate.Valid && c.Proxy == 200; (err == nil) != want {
				t.Errorf("without an issuer: accepted is %v, want %v (%v)", err == nil, want, err)
			}
			_, err = ati.ValidateToken(c.Token, key, ati.WithAudience(vectors.Audience), ati.WithIssuer(ati.DefaultIssuer))
			if want := c.WithIssuer.Valid && c.ProxyIssuer == 200; (err == nil) != want {
				t.Errorf("with an issuer: accepted is %v, want %v (%v)", err == nil, want, err)
			}
		})
	}
}

func TestVectors_Inspect(t *testing.T) {
	t.Parallel()
	for _, c := range readValidateVectors(t).Cases {
		t.Run(c.Name, func(t *testing.T) {
			t.Parallel()
			claims, err := ati.InspectToken(c.Token)
			if (err == nil) != c.Inspect.Decoded {
				t.Fatalf("decoded is %v, want %v (%v)", err == nil, c.Inspect.Decoded, err)
			}
			if err != nil {
				return
			}
			var got any
			b, err := json.Marshal(claims)
			if err != nil {
				t.Fatal(err)
			}
			if err := json.Unmarshal(b, &got); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.Inspect.Claims, got); diff != "" {
				t.Errorf("claims (-want +got):\n%s", diff)
			}
		})
	}
}
