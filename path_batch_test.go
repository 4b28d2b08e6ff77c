package atisecrets_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/vault/sdk/logical"

	"vault-plugin-secrets-ati/ati"
)

func TestBatch_TokenForEachAgent(t *testing.T) {
	t.Parallel()
	m := configured(t, nil, data{
		"tools": "web_search,github:*", "rate": data{"*": "5/s"}, "ttl": "30m", "allowed_agent_ids": "sandbox:*", "subject": "never/{{identity.entity.name}}",
		"job_id": "{{jti}}", "sandbox_id": "box",
	})
	resp := m.ok(logical.UpdateOperation, "batch/r", data{"agent_ids": []any{"sandbox:b", "sandbox:a"}})
	m.warnings(resp)
	tokens := resp.Data["tokens"].(map[string]string)
	for id, position := range map[string]string{"sandbox:b": ".1", "sandbox:a": ".2"} {
		want := &ati.Claims{
			Subject: id, Audience: "ati-proxy", IssuedAt: 1_800_000_000, ExpiresAt: 1_800_001_800, Scope: "tool:web_search tool:github:*", Issuer: "ati-orchestrator", ID: testID + position,
			ATI: &ati.Namespace{Version: 1, Rate: map[string]string{"*": "5/s"}}, JobID: testID + position, SandboxID: "box",
		}
		if diff := cmp.Diff(want, m.claimsOf(tokens[id], "ati-proxy")); diff != "" {
			t.Errorf("claims of %s (-want +got):\n%s", id, diff)
		}
	}
	want := data{
		"tokens": map[string]string{"sandbox:a": tokens["sandbox:a"], "sandbox:b": tokens["sandbox:b"]}, "scope": "tool:web_search tool:github:*", "aud": "ati-proxy",
		"proxy_url": testProxy, "token_ttl": int64(1800), "expires_at": int64(1_800_001_800), "key_version": 1,
	}
	m.equal("response", want, resp.Data)

	// The parameters of creds apply to all tokens. A list may be given as one string.
	resp = m.ok(logical.UpdateOperation, "batch/r", data{"agent_ids": "sandbox:1, sandbox:2", "tools": "github:search", "ttl": "2h", "rate": "*=1/s", "proxy_url": testProxy})
	m.warnings(resp, `TTL of "2h" exceeded the effective max_ttl of "30m"; TTL value is capped accordingly`)
	for _, token := range resp.Data["tokens"].(map[string]string) {
		if c := m.claimsOf(token, "ati-proxy"); c.Scope != "tool:github:search" || c.ExpiresAt-c.IssuedAt != 1800 || c.ATI.Rate["*"] != "1/s" {
			t.Errorf("narrowed: %+v %+v", c, c.ATI)
		}
	}
	// During a rotation, a batch is for one of the two proxies.
	m.activateGreen()
	resp = m.ok(logical.UpdateOperation, "batch/r", data{"agent_ids": "sandbox:1", "proxy_url": testProxy})
	if resp.Data["key_version"] != 1 || resp.Data["proxy_url"] != testProxy {
		t.Errorf("for the previous proxy: %v", resp.Data)
	}
}

// TestBatch_LooksUpIdentityOnce checks that a batch looks up the caller's entity once,
// and not at all if only the subject's template would need it.
func TestBatch_LooksUpIdentityOnce(t *testing.T) {
	t.Parallel()
	m := configured(t, nil, data{"allowed_agent_ids": "*", "subject": "{{identity.groups.names.x.id}}"})
	m.useEntity(&logical.Entity{Name: "alice"})
	ids := agentIDs(1000)
	m.ok(logical.UpdateOperation, "batch/r", data{"agent_ids": ids})
	if got := m.system.entityCalls.Load(); got != 0 {
		t.Errorf("a batch with agent_ids looked up the entity %d times", got)
	}
	m.ok(logical.UpdateOperation, "roles/r", data{"job_id": "{{identity.entity.name}}:{{jti}}"})
	resp := m.ok(logical.UpdateOperation, "batch/r", data{"agent_ids": ids})
	if got := m.system.entityCalls.Load(); got != 1 {
		t.Errorf("a batch looked up the entity %d times, want 1", got)
	}
	for i, id := range ids {
		want := fmt.Sprintf("alice:%s.%d", testID, i+1)
		if c := m.claimsOf(resp.Data["tokens"].(map[string]string)[id.(string)], "ati-proxy"); c.JobID != want {
			t.Fatalf("job_id %q, want %q", c.JobID, want)
		}
	}
}

// manyTools returns tools with names of 37 bytes, which are scopes of 43 bytes.
func manyTools(n int) []string {
	var tools []string
	for i := range n {
		tools = append(tools, fmt.Sprintf("tool%02d_%s", i, strings.Repeat("x", 30)))
	}
	return tools
}

func TestBatch_Rejects(t *testing.T) {
	t.Parallel()
	role := data{"tools": "web_search", "allowed_agent_ids": "sandbox:*,*-ci"}
	last := func(ids []any, id string) []any { return append(ids[:len(ids)-1], id) }
	for name, c := range map[string]struct {
		role, data data
		want       string
	}{
		"no ids":                      {nil, data{}, "agent_ids is required: the subjects of the tokens, such as agent_ids=sandbox:1,sandbox:2"},
		"an empty list":               {nil, data{"agent_ids": []any{}}, `parameter "agent_ids" is empty; omit it or set a value`},
		"an empty string":             {nil, data{"agent_ids": ""}, `parameter "agent_ids" is empty; omit it or set a value`},
		"a number":                    {nil, data{"agent_ids": 5}, "agent_ids must be a list of strings"},
		"a number in the list":        {nil, data{"agent_ids": []any{"sandbox:1", 5}}, "agent_ids: item 2 is not a string"},
		"an empty id":                 {nil, data{"agent_ids": "sandbox:1,"}, "agent_ids contains an empty item; remove the extra comma"},
		"an empty id in JSON":         {nil, data{"agent_ids": []any{"sandbox:1", ""}}, `item 2 of agent_ids "": ` + idFormText},
		"two values for one item":     {nil, data{"agent_ids": []any{"sandbox:1,sandbox:2"}}, `item 1 of agent_ids "sandbox:1,sandbox:2": ` + oneItemText},
		"a malformed id":              {nil, data{"agent_ids": []any{"sandbox:1", "sandbox:2", "sandbox:${X}"}}, `item 3 of agent_ids "sandbox:${X}": ` + idFormText},
		"the last id of many":         {data{"allowed_agent_ids": "*"}, data{"agent_ids": last(agentIDs(1000), "a..b")}, `item 1000 of agent_ids "a..b": ` + idFormText},
		"the last id not allowed":     {nil, data{"agent_ids": last(agentIDs(1000), "other")}, `agent_id "other" is not allowed by role "r": allowed_agent_ids is [sandbox:*, *-ci]`},
		"an id twice":                 {nil, data{"agent_ids": "sandbox:1,sandbox:2,sandbox:1"}, `agent_ids "sandbox:1": listed more than once`},
		"an id that is not allowed":   {nil, data{"agent_ids": "sandbox:1,other"}, `agent_id "other" is not allowed by role "r": allowed_agent_ids is [sandbox:*, *-ci]`},
		"1001 ids":                    {nil, data{"agent_ids": agentIDs(1001)}, "agent_ids has 1001 items; at most 1000 are allowed"},
		"a role without ids":          {data{"allowed_agent_ids": ""}, data{"agent_ids": "sandbox:1"}, `agent_id "sandbox:1" is not allowed by role "r": allowed_agent_ids is empty`},
		"a scope that is not granted": {nil, data{"agent_ids": "sandbox:1", "tools": "shell"}, `scope "tool:shell" is not granted by role "r"`},
		"another proxy":               {nil, data{"agent_ids": "sandbox:1", "proxy_url": "https://x.example.com"}, `no active key for proxy_url "https://x.example.com"; the current proxy_url is "https://ati.example.com"`},
		"a role with leases":          {data{"generate_lease": true}, data{"agent_ids": "sandbox:1"}, `role "r" has generate_lease=true, which batch does not support; read creds/r for each agent, or set generate_lease=false`},
		"a disabled role":             {data{"disabled": true}, data{"agent_ids": "sandbox:1"}, `role "r" is disabled`},
		"agent_id":                    {nil, data{"agent_ids": "sandbox:1", "agent_id": "sandbox:1"}, `unknown parameter "agent_id" (did you mean "agent_ids"?); supported parameters: agent_ids, proxy_url, rate, scopes, skills, tools, ttl`},
		"job_id":                      {nil, data{"agent_ids": "sandbox:1", "job_id": "x"}, `unknown parameter "job_id"; supported parameters: agent_ids, proxy_url, rate, scopes, skills, tools, ttl`},
		"an identity without value":   {data{"job_id": "{{identity.entity.name}}"}, data{"agent_ids": "sandbox:1"}, "job_id: cannot render {{identity.entity.name}}: the caller's token has no identity entity (root tokens and tokens created from them have none); log in with an auth method"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			configured(t, nil, merge(role, c.role)).refused(logical.UpdateOperation, "batch/r", c.data, c.want)
		})
	}
	t.Run("a role that does not exist", func(t *testing.T) {
		t.Parallel()
		configured(t, nil, nil).refused(logical.UpdateOperation, "batch/x", data{"agent_ids": "a"}, roleNotFound("x"))
	})
}

// TestBatch_Limits checks the limits of 1,000 IDs, 8 KB per token, and 4 MiB in total.
func TestBatch_Limits(t *testing.T) {
	t.Parallel()
	m := configured(t, nil, data{"allowed_agent_ids": "*"})
	resp := m.ok(logical.UpdateOperation, "batch/r", data{"agent_ids": agentIDs(1000)})
	m.warnings(resp)
	tokens := resp.Data["tokens"].(map[string]string)
	ids := map[string]bool{}
	for id, token := range tokens {
		c := m.claimsOf(token, "ati-proxy")
		if c.Subject != id {
			t.Errorf("the token of %s is for %s", id, c.Subject)
		}
		ids[c.ID] = true
	}
	if len(tokens) != 1000 || len(ids) != 1000 {
		t.Errorf("%d tokens with %d IDs", len(tokens), len(ids))
	}

	// IDs that differ only in case are two.
	if got := m.ok(logical.UpdateOperation, "batch/r", data{"agent_ids": "Sand,sand"}).Data["tokens"].(map[string]string); len(got) != 2 {
		t.Errorf("two IDs have %d tokens", len(got))
	}
	// One ID makes its token too large, between two that do not.
	m.ok(logical.UpdateOperation, "roles/big", data{"tools": manyTools(136), "allowed_agent_ids": "*"})
	long := strings.Repeat("b", 128)
	m.refused(logical.UpdateOperation, "batch/big", data{"agent_ids": []any{"a", long, "c"}}, fmt.Sprintf("the token for %q would have 8308 bytes, more than the maximum of 8192; request fewer tools, skills, or scopes", long))

	// Let the tokens grow until they exceed 4 MiB in total.
	tools := manyTools(62)
	m.ok(logical.UpdateOperation, "roles/r", data{"tools": slices.Concat(tools, []string{"y*"})})
	token := m.ok(logical.UpdateOperation, "creds/r", data{"agent_id": "sandbox:999", "tools": tools}).Data["token"].(string)
	sum := 0
	for pad := (4<<20/1000-len(token))*3/4 - 20; ; pad++ {
		d := data{"agent_ids": agentIDs(1000), "tools": slices.Concat(tools, []string{"y" + strings.Repeat("x", pad)})}
		resp, err := m.request(logical.UpdateOperation, "batch/r", d)
		if err != nil {
			t.Fatal(err)
		}
		if !resp.IsError() {
			sum = 0
			for _, token := range resp.Data["tokens"].(map[string]string) {
				sum += len(token)
			}
			if len(resp.Warnings) != 1 || !strings.HasSuffix(resp.Warnings[0], " bytes. Some HTTP servers reject requests with a token over 4096 bytes.") {
				t.Errorf("warnings %q", resp.Warnings)
			}
			continue
		}
		if got, want := resp.Error().Error(), "the tokens of this batch have more than 4194304 bytes; request fewer agents"; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
		break
	}
	if sum > 4<<20 || sum < 4<<20-2000 {
		t.Errorf("the last batch that was minted has %d bytes", sum)
	}
}
