package ati_test

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/json"
	"testing"
	"time"

	"vault-plugin-secrets-ati/ati"
)

// baselineClaims are the claims of the baseline: json.Marshal and an HMAC, the
// minimum for a token with the standard library.
type baselineClaims struct {
	Subject   string      `json:"sub"`
	Audience  string      `json:"aud"`
	IssuedAt  int64       `json:"iat"`
	ExpiresAt int64       `json:"exp"`
	Scope     string      `json:"scope"`
	Issuer    string      `json:"iss"`
	ID        string      `json:"jti"`
	ATI       baselineATI `json:"ati"`
}

type baselineATI struct {
	Version int               `json:"v"`
	Rate    map[string]string `json:"rate,omitempty"`
}

var benchRequest = ati.IssueRequest{
	Subject: "sandbox:abc123", Scope: "tool:web_search tool:github:* skill:summarize help", ID: "5b1a9a1e-6f3f-7e4e-2a55-0c8f7f3f9d10",
	Rate: map[string]string{"tool:github:*": "10/hour"}, IssuedAt: time.Unix(now, 0),
}

var sink any

func issue(tb testing.TB) func() {
	key := mustKey(tb, secret)
	return func() {
		token, err := ati.IssueToken(key, benchRequest)
		if err != nil {
			tb.Fatal(err)
		}
		sink = token
	}
}

func baseline(tb testing.TB) func() {
	key, err := hexBytes(secret)
	if err != nil {
		tb.Fatal(err)
	}
	return func() {
		b, err := json.Marshal(baselineClaims{
			benchRequest.Subject, ati.DefaultAudience, now, now + 3600, benchRequest.Scope, ati.DefaultIssuer, benchRequest.ID, baselineATI{1, benchRequest.Rate},
		})
		if err != nil {
			tb.Fatal(err)
		}
		mac := hmac.New(sha256.New, key)
		mac.Write(b)
		sink = mac.Sum(nil)
	}
}

func BenchmarkIssueToken(b *testing.B) {
	run := func(f func()) func(*testing.B) {
		return func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				f()
			}
		}
	}
	b.Run("baseline", run(baseline(b)))
	b.Run("ati", run(issue(b)))
	// Alternate between both, so that a busy machine slows both.
	b.Run("ratio", func(b *testing.B) {
		var spent [2]time.Duration
		pair := []func(){baseline(b), issue(b)}
		for b.Loop() {
			for i, f := range pair {
				start := time.Now()
				for range 100 {
					f()
				}
				spent[i] += time.Since(start)
			}
		}
		b.ReportMetric(float64(spent[1])/float64(spent[0]), "times-baseline")
	})
}

// IssueToken makes at most 1.5 times the allocations of the baseline. Its time is
// benchmarked, not asserted.
func TestIssueToken_Allocations(t *testing.T) {
	got, limit := testing.AllocsPerRun(1000, issue(t)), testing.AllocsPerRun(1000, baseline(t))
	if got > 1.5*limit {
		t.Errorf("IssueToken makes %.0f allocations, the baseline %.0f", got, limit)
	}
}

func BenchmarkValidateToken(b *testing.B) {
	key := mustKey(b, secret)
	token, err := ati.IssueToken(key, benchRequest)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ati.ValidateToken(token, key, ati.WithTime(clock)); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkAllows(b *testing.B) {
	scopes := ati.ParseScopes(benchRequest.Scope)
	b.ReportAllocs()
	for b.Loop() {
		sink = ati.Allows(scopes, "tool:github:search")
	}
}
