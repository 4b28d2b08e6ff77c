//go:build interop

package test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"vault-plugin-secrets-ati/ati"
)

// For each kind of grant, the proxy, check, and ati.Allows agree on which tools and skills
// are allowed.
func TestInteropGrants(t *testing.T) {
	t.Parallel()
	s, _ := startEngine(t)
	p := startProxy(t, s.proxyEnv())
	all := []string{"web_search", "web_search_2", "github:search", "github:issue:open", "linear:list", "hn_top", "quote", "shell", "unscoped"}
	for _, c := range []struct {
		role   data
		tools  []string
		skills []string
	}{
		{data{"tools": "web_search"}, []string{"web_search"}, nil},
		{data{"tools": "web_search*"}, []string{"web_search", "web_search_2"}, nil},
		{data{"tools": "github:*"}, []string{"github:search", "github:issue:open"}, nil},
		{data{"tools": "github:search"}, []string{"github:search"}, nil},
		{data{"tools": "github:issue:*"}, []string{"github:issue:open"}, nil},
		{data{"tools": "github_*"}, []string{"github:search", "github:issue:open"}, nil},
		{data{"tools": "github_search"}, []string{"github:search"}, nil},
		{data{"tools": "github_issue:open"}, []string{"github:issue:open"}, nil},
		{data{"tools": "github_issue_open"}, nil, nil},
		{data{"tools": "github__*"}, nil, nil},
		{data{"tools": "GitHub:*"}, nil, nil},
		{data{"tools": "hn_top"}, nil, nil}, // its manifest has a different scope
		{data{"tools": "hackernews"}, []string{"hn_top"}, nil},
		{data{"tools": "quote"}, nil, nil},
		{data{"scopes": "finance:read"}, []string{"quote"}, nil},
		{data{"scopes": "finance:*"}, []string{"quote"}, nil},
		{data{"tools": "*"}, []string{"web_search", "web_search_2", "github:search", "github:issue:open", "linear:list", "hn_top", "shell", "unscoped"}, nil},
		{data{"tools": "unscoped"}, []string{"unscoped"}, nil},
		{data{"scopes": "*"}, all, []string{"cite", "research-deep", "summarize"}},
		{data{"scopes": "help"}, nil, nil},
		{data{"skills": "summarize"}, nil, []string{"summarize"}},
		{data{"skills": "summarize,cite"}, nil, []string{"cite", "summarize"}},
		{data{"skills": "research-*"}, nil, nil},
		{data{"scopes": "provider:github,category:x"}, nil, nil},
		{data{"tools": "web_search,linear:list", "skills": "cite", "scopes": "finance:read"}, []string{"web_search", "linear:list", "quote"}, []string{"cite"}},
	} {
		s.vault(s.root, "delete", "ati/roles/g")
		s.write(s.root, "ati/roles/g", c.role)
		creds := s.read(s.root, "ati/creds/g")
		token, scopes := creds.Data["token"].(string), ati.ParseScopes(creds.Data["scope"].(string))
		for _, tool := range atiTools {
			allowed := slices.Contains(c.tools, tool.name)
			want := map[bool]int{true: 200, false: 403}[allowed]
			if got := p.call(token, tool.name); got != want {
				t.Errorf("%v: the proxy returns %d for %s, want %d", c.role, got, tool.name, want)
			}
			if got := ati.Allows(scopes, tool.scope); got != allowed {
				t.Errorf("%v: ati.Allows returns %v for %s (%s)", c.role, got, tool.name, tool.scope)
			}
			if got := s.read(s.root, "ati/check/g", "scope="+tool.scope).Data["allowed"]; got != allowed {
				t.Errorf("%v: check returns %v for %s (%s)", c.role, got, tool.name, tool.scope)
			}
		}
		skills := append([]string{}, c.skills...)
		if diff := cmp.Diff(skills, p.skills(token)); diff != "" {
			t.Errorf("%v: skills (-want +got):\n%s", c.role, diff)
		}
		for _, skill := range []string{"summarize", "research-deep", "cite"} {
			if got, want := s.read(s.root, "ati/check/g", "skill="+skill).Data["allowed"], slices.Contains(skills, skill); got != want {
				t.Errorf("%v: check returns %v for skill %s", c.role, got, skill)
			}
		}
	}
	if p.calls.Load() == 0 {
		t.Error("no call reached the upstream")
	}
}

// The proxy enforces rate limits for sequential calls of the spelling that they name, with
// any token, but not for another spelling, on /mcp, or for parallel calls, as documented.
func TestInteropRates(t *testing.T) {
	t.Parallel()
	s, _ := startEngine(t)
	p := startProxy(t, s.proxyEnv())
	statuses := func(token, tool string, n int) []int {
		var got []int
		for range n {
			got = append(got, p.call(token, tool))
		}
		return got
	}
	s.write(s.root, "ati/roles/r", data{"tools": "web_search,github:*,shell", "rate": data{"tool:web_search": "3/hour", "tool:github:*": "1/hour", "tool:shell": "0/hour"}})
	token := s.mint("r", nil)
	if got := statuses(token, "web_search", 5); !slices.Equal(got, []int{200, 200, 200, 429, 429}) {
		t.Errorf("3/hour: %v", got)
	}
	// All tokens with the same rate key share one bucket, also narrowed ones.
	if got := statuses(s.mint("r", data{"tools": "web_search"}), "web_search", 1); got[0] != 429 {
		t.Errorf("another token: %v", got)
	}
	if got := statuses(token, "shell", 1); got[0] != 429 {
		t.Errorf("0/hour: %v", got)
	}
	if got := statuses(token, "github:search", 2); !slices.Equal(got, []int{200, 429}) {
		t.Errorf("1/hour: %v", got)
	}
	// Calls that rate limits do not apply to.
	if got := statuses(token, "github_search", 2); !slices.Equal(got, []int{200, 200}) {
		t.Errorf("another spelling: %v", got)
	}
	before := p.calls.Load()
	if status, body := p.do(token, http.MethodPost, "/mcp", `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"shell","arguments":{}}}`); status != 200 || p.calls.Load() != before+1 {
		t.Errorf("/mcp: %d %s", status, body)
	}
	// Parallel calls exceed the limits, because the proxy reads and writes its counters
	// without a lock. Each round uses its own rate key, and therefore its own bucket.
	over, errors := 0, 0
	for i := range len("web_search") {
		key := "tool:web_search"[:len("tool:web_search")-1-i] + "*"
		s.write(s.root, "ati/roles/p", data{"tools": "web_search", "rate": data{key: "2/hour"}})
		token := s.mint("p", nil)
		var passed, failed atomic.Int64
		var wg sync.WaitGroup
		for range 16 {
			wg.Go(func() {
				switch status, body := p.do(token, http.MethodPost, "/call", `{"tool_name":"web_search","args":{}}`); {
				case status == 200:
					passed.Add(1)
				case strings.Contains(body, "Rate state I/O error"):
					failed.Add(1)
				case status != 429:
					t.Errorf("a parallel call returns %d: %s", status, body)
				}
			})
		}
		wg.Wait()
		if passed.Load() > 2 {
			over++
		}
		errors += int(failed.Load())
	}
	t.Logf("of 10 rounds of 16 parallel calls under 2/hour, %d let more than 2 pass; %d calls failed on the counters", over, errors)
	if over+errors == 0 {
		t.Error("the proxy now enforces rate limits for parallel calls: update the documents")
	}
	// A request can lower a rate.
	s.write(s.root, "ati/roles/l", data{"tools": "linear:*", "rate": data{"tool:linear:*": "100/hour"}})
	if got := statuses(s.mint("l", data{"rate": data{"tool:linear:*": "2/h"}}), "linear:list", 3); !slices.Equal(got, []int{200, 200, 429}) {
		t.Errorf("narrowed to 2/hour: %v", got)
	}
}

// A token is valid until exp, loses its scopes then, and is rejected 60 seconds later.
func TestInteropExpiry(t *testing.T) {
	t.Parallel()
	s, _ := startEngine(t)
	p := startProxy(t, s.proxyEnv())
	s.write(s.root, "ati/roles/r", data{"tools": "web_search"})
	creds := s.write(s.root, "ati/creds/r", data{"ttl": "3s"})
	token := creds.Data["token"].(string)
	n, err := creds.Data["expires_at"].(json.Number).Int64()
	if err != nil {
		t.Fatal(err)
	}
	exp := time.Unix(n, 0)
	verdict := func() [3]any {
		v := s.write(s.root, "ati/validate", data{"token": token, "scope": "tool:web_search"}).Data
		return [3]any{p.call(token, "web_search"), v["valid"], v["allowed"]}
	}
	if got := verdict(); got != [3]any{200, true, true} {
		t.Errorf("before exp: %v", got)
	}
	time.Sleep(time.Until(exp.Add(1500 * time.Millisecond)))
	if got := verdict(); got != [3]any{403, true, false} {
		t.Errorf("after exp: %v", got)
	}
	time.Sleep(time.Until(exp.Add(61500 * time.Millisecond)))
	if got := verdict(); got != [3]any{401, false, false} {
		t.Errorf("61 seconds after exp: %v", got)
	}
}

func TestInteropKeysAudiencesAndIssuers(t *testing.T) {
	t.Parallel()
	s, secret := startEngine(t)
	s.write(s.root, "ati/config", data{"accepted_audiences": "mcp"})
	s.write(s.root, "ati/roles/r", data{"tools": "web_search"})
	s.write(s.root, "ati/roles/mcp", data{"tools": "web_search", "audience": "mcp"})
	plain, mcp := s.mint("r", nil), s.mint("mcp", nil)
	s.write(s.root, "ati/config", data{"issuer": ""})
	noIssuer := s.mint("r", nil)
	s.write(s.root, "ati/config", data{"issuer": "other"})
	other := s.mint("r", nil)
	s.write(s.root, "ati/config", data{"issuer": "ati-orchestrator"})
	env := s.proxyEnv()
	if diff := cmp.Diff(map[string]string{"ATI_JWT_SECRET": secret, "ATI_JWT_AUDIENCE": "ati-proxy", "ATI_JWT_ACCEPTED_AUDIENCES": "ati-proxy,mcp", "ATI_JWT_ISSUER": "ati-orchestrator"}, env); diff != "" {
		t.Errorf("proxy-env (-want +got):\n%s", diff)
	}
	with := func(changes map[string]string) map[string]string {
		out := map[string]string{}
		for k, v := range env {
			out[k] = v
		}
		for k, v := range changes {
			if v == "" {
				delete(out, k)
			} else {
				out[k] = v
			}
		}
		return out
	}
	for name, c := range map[string]struct {
		env  map[string]string
		want [4]int // plain, mcp, noIssuer, other
	}{
		"as Vault has it":  {env, [4]int{200, 200, 200, 401}},
		"one audience":     {with(map[string]string{"ATI_JWT_ACCEPTED_AUDIENCES": ""}), [4]int{200, 401, 200, 401}},
		"another audience": {with(map[string]string{"ATI_JWT_ACCEPTED_AUDIENCES": "mcp"}), [4]int{401, 200, 401, 401}},
		"no issuer":        {with(map[string]string{"ATI_JWT_ISSUER": ""}), [4]int{200, 200, 200, 200}},
		"another key":      {with(map[string]string{"ATI_JWT_SECRET": strings.Repeat("0123456789abcdef", 4)}), [4]int{401, 401, 401, 401}},
	} {
		p := startProxy(t, c.env)
		got := [4]int{p.call(plain, "web_search"), p.call(mcp, "web_search"), p.call(noIssuer, "web_search"), p.call(other, "web_search")}
		if got != c.want {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

// With job_id={{jti}} in the role, a line in the proxy's audit file identifies the line in
// Vault's audit log of the request for its token.
func TestInteropAuditTrail(t *testing.T) {
	t.Parallel()
	s, _ := startEngine(t)
	p := startProxy(t, s.proxyEnv())
	s.write(s.root, "ati/roles/r", data{"tools": "web_search", "job_id": "{{jti}}", "sandbox_id": "box-7"})
	orchestrator := s.policy("orchestrator", `path "ati/creds/r" { capabilities = ["read"] }`)
	if got := p.call(s.read(orchestrator, "ati/creds/r").Data["token"].(string), "web_search"); got != 200 {
		t.Fatalf("the call returns %d", got)
	}
	b := readFile(t, filepath.Join(p.dir, "audit.jsonl"))
	var line struct {
		Tool      string
		AgentSub  string `json:"agent_sub"`
		JobID     string `json:"job_id"`
		SandboxID string `json:"sandbox_id"`
	}
	if err := json.Unmarshal(bytes.TrimSpace(b), &line); err != nil {
		t.Fatalf("%v: %s", err, b)
	}
	if line.Tool != "web_search" || line.AgentSub != "token-orchestrator" || line.SandboxID != "box-7" {
		t.Errorf("the proxy's line is %+v", line)
	}
	// job_id distinguishes the engine's tokens from others, as docs/migrate-from-ati-client.md says.
	key := parseSecret(t, s.proxyEnv()["ATI_JWT_SECRET"])
	copied, err := ati.IssueToken(key, ati.IssueRequest{Subject: "x", Scope: "tool:web_search"})
	if err != nil {
		t.Fatal(err)
	}
	if got := p.call(copied, "web_search"); got != 200 {
		t.Fatalf("the call returns %d", got)
	}
	if both, err := os.ReadFile(filepath.Join(p.dir, "audit.jsonl")); err != nil || bytes.Count(both, []byte("\n")) != 2 || bytes.Count(both, []byte(`"job_id"`)) != 1 {
		t.Errorf("%v: the proxy's audit file has\n%s", err, both)
	}
	if got := s.auditLine(line.JobID); got.Auth.DisplayName != "token-orchestrator" || got.Request.Path != "ati/creds/r" {
		t.Errorf("Vault's line is %+v", got)
	}
}

// The engine and the proxy accept tokens of ati-client and of the ati command, and both
// clients accept the engine's tokens.
func TestInteropClients(t *testing.T) {
	t.Parallel()
	s, secret := startEngine(t)
	p := startProxy(t, s.proxyEnv())
	s.write(s.root, "ati/roles/r", data{"tools": "web_search,github:*", "skills": "summarize", "rate": data{"tool:web_search": "5/hour"}, "job_id": "{{jti}}", "allowed_agent_ids": "*"})
	ours := s.write(s.root, "ati/creds/r", data{"agent_id": "sandbox:abc", "ttl": 600})
	token := ours.Data["token"].(string)
	validate := func(token string) data {
		return s.write(s.root, "ati/validate", data{"token": token, "scope": "tool:github:search"}).Data
	}
	for _, name := range []string{"ATI_CLIENT_0_1_0", "ATI_CLIENT_0_7_15"} {
		client := startClient(t, name)
		got, problem := client.call(data{"do": "validate", "token": token, "secret": secret, "issuer": "ati-orchestrator"})
		want := data{
			"sub": "sandbox:abc", "aud": "ati-proxy", "iat": got["iat"], "exp": got["exp"], "scope": "tool:web_search tool:github:* skill:summarize",
			"iss": "ati-orchestrator", "jti": ours.RequestID, "ati": data{"v": 1.0, "rate": data{"tool:web_search": "5/hour"}},
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s reads our token (-want +got):\n%s\n%s", name, diff, problem)
		}
		env, problem := client.call(data{"do": "provision", "secret": secret})
		if problem != "" {
			t.Fatal(problem)
		}
		theirs := env["ATI_SESSION_TOKEN"].(string)
		if v := validate(theirs); v["valid"] != true || v["allowed"] != true || v["sub"] != "sandbox:abc" || v["scope"] != want["scope"] {
			t.Errorf("a token of %s: %v", name, v)
		}
		if got := p.call(theirs, "github:search"); got != 200 {
			t.Errorf("the proxy returns %d for a token of %s", got, name)
		}
	}
	out, err := exec.Command(requireEnv(t, "ATI_BIN"), "token", "issue", "--secret", secret, "--sub", "cli", "--scope", "tool:github:*", "--ttl", "600", "--iss", "ati-orchestrator", "--output", "text").Output()
	if err != nil {
		t.Fatal(err)
	}
	if v := validate(string(out)); v["valid"] != true || v["allowed"] != true || v["sub"] != "cli" {
		t.Errorf("a token of ati token issue: %v", v)
	}
	validated, err := exec.Command(requireEnv(t, "ATI_BIN"), "token", "validate", token, "--secret", secret).CombinedOutput()
	if err != nil {
		t.Errorf("ati token validate: %v\n%s", err, validated)
	}
}

// The engine rejects every token that the proxy or a client rejects. The test uses the
// tokens in testdata and 4,000 mutated ones, which are signed with the right key.
func TestInteropVerdicts(t *testing.T) {
	t.Parallel()
	b := readFile(t, filepath.Join("..", "testdata", "validate.json"))
	var vectors struct {
		Secret string
		Cases  []struct{ Name, Token string }
	}
	if err := json.Unmarshal(b, &vectors); err != nil {
		t.Fatal(err)
	}
	s := startVault(t)
	s.mountEngine()
	s.vault(s.root, "delete", "ati/config")
	s.write(s.root, "ati/config", data{"proxy_url": "https://ati.example.com", "secret": vectors.Secret, "issuer": ""})
	p := startProxy(t, s.proxyEnv())
	clients := []*pythonClient{startClient(t, "ATI_CLIENT_0_1_0"), startClient(t, "ATI_CLIENT_0_7_15")}
	key := parseSecret(t, vectors.Secret)
	valid, rejected := 0, 0
	compare := func(name, token string) {
		_, err := ati.ValidateToken(token, key)
		here := err == nil
		engine := false
		if strings.TrimSpace(token) != "" {
			engine = s.write(s.root, "ati/validate", data{"token": token}).Data["valid"].(bool)
		}
		if token == strings.TrimSpace(token) && engine != here {
			t.Errorf("%s: validate returns %v, ValidateToken %v (%v)", name, engine, here, err)
		}
		if !here {
			rejected++
			return
		}
		valid++
		if status, _ := p.do(token, http.MethodGet, "/tools", ""); status != 200 {
			t.Errorf("%s: valid here, but the proxy returns %d: %s", name, status, token)
		}
		for _, c := range clients {
			if _, problem := c.call(data{"do": "validate", "token": token, "secret": vectors.Secret, "issuer": ""}); problem != "" {
				t.Errorf("%s: valid here, but ati-client returns %s: %s", name, problem, token)
			}
		}
	}
	for _, c := range vectors.Cases {
		compare(c.Name, c.Token)
	}
	random := rand.New(rand.NewPCG(7, 7))
	for i := range 4000 {
		compare(fmt.Sprintf("mutation %d", i), mutatedToken(random, "HS256", func(header, payload string) string { return signRaw(t, vectors.Secret, header, payload) }))
	}
	t.Logf("%d tokens were valid here and for the proxy and clients, %d were rejected", valid, rejected)
	if valid < 500 || rejected < 500 {
		t.Errorf("only %d valid and %d rejected tokens", valid, rejected)
	}
}

// Changing the audience as docs/configure.md describes invalidates no token early.
func TestInteropChangeOfAudience(t *testing.T) {
	t.Parallel()
	s, _ := startEngine(t)
	s.write(s.root, "ati/roles/r", data{"tools": "web_search"})
	tokens := []string{s.mint("r", nil)}
	expect := func(p *proxy, want ...int) {
		t.Helper()
		for i, token := range tokens {
			if got := p.call(token, "web_search"); got != want[i] {
				t.Errorf("token %d returns %d, want %d", i+1, got, want[i])
			}
		}
	}
	s.write(s.root, "ati/config", data{"accepted_audiences": "ati-next"})
	first := startProxy(t, s.proxyEnv())
	expect(first, 200)
	s.write(s.root, "ati/config", data{"audience": "ati-next", "accepted_audiences": "ati-proxy"})
	tokens = append(tokens, s.mint("r", nil))
	expect(first, 200, 200) // before the proxy is restarted
	expect(startProxy(t, s.proxyEnv()), 200, 200)
	s.write(s.root, "ati/config", data{"accepted_audiences": ""})
	expect(startProxy(t, s.proxyEnv()), 401, 200)
}
