package atisecrets_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/vault/sdk/logical"

	"vault-plugin-secrets-ati/ati"
)

func TestCreds_WholeRole(t *testing.T) {
	t.Parallel()
	role := data{
		"tools": "web_search,tool:github:*", "skills": "summarize", "scopes": "help", "rate": data{"tool:github:*": "10/hour", "*": "5/s"},
		"ttl": "30m", "job_id": "{{jti}}", "sandbox_id": "box-1",
	}
	for name, op := range map[string]logical.Operation{"read": logical.ReadOperation, "update": logical.UpdateOperation} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := configured(t, nil, role)
			resp := m.ok(op, "creds/r", nil)
			m.warnings(resp)
			scope := "tool:web_search tool:github:* skill:summarize help"
			wantClaims := &ati.Claims{
				Subject: "token", Audience: "ati-proxy", IssuedAt: 1_800_000_000, ExpiresAt: 1_800_001_800, Scope: scope, Issuer: "ati-orchestrator", ID: testID,
				ATI:   &ati.Namespace{Version: 1, Rate: map[string]string{"tool:github:*": "10/hour", "*": "5/s"}},
				JobID: testID, SandboxID: "box-1",
			}
			if diff := cmp.Diff(wantClaims, m.claims(resp)); diff != "" {
				t.Errorf("claims (-want +got):\n%s", diff)
			}
			want := data{
				"token": resp.Data["token"], "jti": testID, "sub": "token", "scope": scope, "aud": "ati-proxy", "proxy_url": testProxy,
				"token_ttl": int64(1800), "expires_at": int64(1_800_001_800), "key_version": 1,
			}
			if diff := cmp.Diff(want, resp.Data); diff != "" {
				t.Errorf("response (-want +got):\n%s", diff)
			}
			if resp.Secret != nil {
				t.Errorf("there is a lease: %v", resp.Secret)
			}
		})
	}
}

// TestCreds_MatchesAtiClient checks that a token has the claims that ati-client
// issues, byte for byte.
func TestCreds_MatchesAtiClient(t *testing.T) {
	t.Parallel()
	m := configured(t, nil, data{"allowed_agent_ids": "*", "rate": data{"tool:web_search": "10/hour"}, "ttl": "2h"})
	m.useEntity(nil)
	got := m.ok(logical.ReadOperation, "creds/r", data{"agent_id": "sandbox:abc123"}).Data["token"]
	key, err := ati.ParseSecret(testSecret)
	if err != nil {
		t.Fatal(err)
	}
	want, err := ati.IssueToken(key, ati.IssueRequest{
		Subject: "sandbox:abc123", Scope: "tool:web_search", TTL: 2 * time.Hour, ID: testID, Rate: map[string]string{"tool:web_search": "10/hour"}, IssuedAt: m.now,
	})
	if err != nil {
		t.Fatal(err)
	}
	if got != want {
		t.Errorf("token\n got %s\nwant %s", got, want)
	}
}

func TestCreds_FormatEnv(t *testing.T) {
	t.Parallel()
	m := configured(t, nil, nil)
	resp := m.ok(logical.ReadOperation, "creds/r", data{"format": "env"})
	want := data{"ATI_PROXY_URL": testProxy, "ATI_SESSION_TOKEN": resp.Data["ATI_SESSION_TOKEN"]}
	m.equal("response", want, resp.Data)
	if got := m.claimsOf(resp.Data["ATI_SESSION_TOKEN"].(string), "ati-proxy").ID; got != testID {
		t.Errorf("jti %q", got)
	}
}

func TestCreds_AudienceAndIssuer(t *testing.T) {
	t.Parallel()
	m := configured(t, data{"accepted_audiences": "mcp"}, data{"audience": "mcp"})
	c := m.claims(m.ok(logical.ReadOperation, "creds/r", nil))
	if c.Audience != "mcp" || c.Issuer != "ati-orchestrator" {
		t.Errorf("aud %q, iss %q", c.Audience, c.Issuer)
	}
	m.ok(logical.UpdateOperation, "config", data{"issuer": "", "audience": "new"})
	m.ok(logical.UpdateOperation, "roles/r", data{"audience": ""})
	c = m.claims(m.ok(logical.ReadOperation, "creds/r", nil))
	if c.Audience != "new" || c.Issuer != "" {
		t.Errorf("aud %q, iss %q", c.Audience, c.Issuer)
	}
}

func TestCreds_Subject(t *testing.T) {
	t.Parallel()
	alice := func() *logical.Entity {
		return &logical.Entity{
			Name: "alice", Metadata: map[string]string{"team": "blue", "url": "a:b/c"},
			Aliases: []*logical.Alias{{MountAccessor: "auth_approle_1", Name: "role-id-1", Metadata: map[string]string{"role_name": "ci"}, CustomMetadata: map[string]string{"x": "y"}}},
		}
	}
	group := &logical.Group{ID: "g1", Name: "ops", Metadata: map[string]string{"cost": "42"}}
	for name, c := range map[string]struct {
		template string
		entity   *logical.Entity
		want     string
		lookups  [2]int64 // lookups of the entity and of its groups
	}{
		"the display name without an entity": {"", nil, "token", [2]int64{}},
		"the entity id":                      {"", alice(), testEntity, [2]int64{}},
		"plain":                              {"agent/7", alice(), "agent/7", [2]int64{}},
		"plain without an entity":            {"agent/7", nil, "agent/7", [2]int64{}},
		"the entity's name":                  {"{{identity.entity.name}}", alice(), "alice", [2]int64{1, 0}},
		"a value with separators, alone":     {"{{identity.entity.metadata.url}}", alice(), "a:b/c", [2]int64{1, 0}},
		"several values":                     {"{{ identity.entity.metadata.team }}/{{identity.entity.id}}:x", alice(), "blue/" + testEntity + ":x", [2]int64{1, 0}},
		"an alias' values":                   {"{{identity.entity.aliases.auth_approle_1.metadata.role_name}}:{{identity.entity.aliases.auth_approle_1.custom_metadata.x}}", alice(), "ci:y", [2]int64{1, 0}},
		"a group's values":                   {"{{identity.groups.names.ops.metadata.cost}}/{{identity.groups.ids.g1.name}}", alice(), "42/ops", [2]int64{1, 1}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := configured(t, nil, data{"subject": c.template})
			if c.entity != nil {
				m.useEntity(c.entity, group)
			}
			resp := m.ok(logical.ReadOperation, "creds/r", nil)
			if got := m.claims(resp).Subject; got != c.want || resp.Data["sub"] != c.want {
				t.Errorf("sub is %q and %q, want %q", got, resp.Data["sub"], c.want)
			}
			if got := [2]int64{m.system.entityCalls.Load(), m.system.groupCalls.Load()}; got != c.lookups {
				t.Errorf("%v lookups of entity and groups, want %v", got, c.lookups)
			}
		})
	}
}

// TestCreds_RejectsIdentityValues checks that a template without a usable value is an
// error: sub is never empty, and the values of two entities never render to the same
// one.
func TestCreds_RejectsIdentityValues(t *testing.T) {
	t.Parallel()
	const joined = "; combined with other text, a value must start with a letter or digit and contain only letters, digits, and ._@+-"
	meta := func(v string) *logical.Entity { return &logical.Entity{Metadata: map[string]string{"k": v}} }
	for name, c := range map[string]struct {
		template string
		entity   *logical.Entity
		want     string
	}{
		"no entity":                      {"{{identity.entity.name}}", nil, "subject: cannot render {{identity.entity.name}}: the caller's token has no identity entity (root tokens and tokens created from them have none); log in with an auth method"},
		"no metadata":                    {"x:{{identity.entity.metadata.k}}", new(logical.Entity), "subject: {{identity.entity.metadata.k}} has no value for entity " + testEntity + "; to see its values, run: vault read identity/entity/id/" + testEntity},
		"empty metadata":                 {"x:{{identity.entity.metadata.k}}", meta(""), "subject: {{identity.entity.metadata.k}} has no value for entity " + testEntity + "; to see its values, run: vault read identity/entity/id/" + testEntity},
		"a colon in a value":             {"x:{{identity.entity.metadata.k}}", meta("a:b"), `subject: {{identity.entity.metadata.k}} resolves to "a:b" for entity ` + testEntity + joined},
		"a slash in a value":             {"x:{{identity.entity.metadata.k}}", meta("a/b"), `subject: {{identity.entity.metadata.k}} resolves to "a/b" for entity ` + testEntity + joined},
		"an equals sign in a value":      {"x:{{identity.entity.metadata.k}}", meta("a=b"), `subject: {{identity.entity.metadata.k}} resolves to "a=b" for entity ` + testEntity + joined},
		"a star in a value":              {"x:{{identity.entity.metadata.k}}", meta("*"), `subject: {{identity.entity.metadata.k}} resolves to "*" for entity ` + testEntity + joined},
		"a blank in a value":             {"x:{{identity.entity.metadata.k}}", meta("a b"), `subject: {{identity.entity.metadata.k}} resolves to "a b" for entity ` + testEntity + joined},
		"a blank in the only value":      {"{{identity.entity.metadata.k}}", meta("a b"), `subject "a b": ` + idFormText},
		"a variable as the only value":   {"{{identity.entity.metadata.k}}", meta("${JWT_SUB}"), `subject "${JWT_SUB}": ` + idFormText},
		"a directive as a value":         {"{{identity.entity.metadata.k}}", meta("{{identity.entity.id}}"), `subject "{{identity.entity.id}}": ` + idFormText},
		"a value that is too long":       {"{{identity.entity.metadata.k}}", meta(strings.Repeat("a", 129)), fmt.Sprintf("subject %q: %s", strings.Repeat("a", 129), idFormText)},
		"two dots across value and text": {"a.{{identity.entity.metadata.k}}", meta("x.."), `subject "a.x..": ` + idFormText},
		"another group":                  {"{{identity.groups.names.ops.id}}", new(logical.Entity), "subject: {{identity.groups.names.ops.id}} has no value for entity " + testEntity + "; to see its values, run: vault read identity/entity/id/" + testEntity},
		"another alias":                  {"{{identity.entity.aliases.acc.id}}", new(logical.Entity), "subject: {{identity.entity.aliases.acc.id}} has no value for entity " + testEntity + "; to see its values, run: vault read identity/entity/id/" + testEntity},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := configured(t, nil, data{"subject": c.template})
			if c.entity != nil {
				m.useEntity(c.entity, &logical.Group{ID: "g", Name: "dev"})
			}
			m.refused(logical.ReadOperation, "creds/r", nil, c.want)
		})
	}
	t.Run("an entity that no longer exists", func(t *testing.T) {
		t.Parallel()
		m := configured(t, nil, data{"subject": "{{identity.entity.name}}"})
		m.entityID = testEntity
		m.refused(logical.ReadOperation, "creds/r", nil, "subject: cannot render {{identity.entity.name}}: entity "+testEntity+" of the caller's token does not exist in this mount's namespace; it was merged, or belongs to a different namespace: log in again, in this namespace")
	})
	t.Run("a display name that is not a valid ID", func(t *testing.T) {
		t.Parallel()
		for _, name := range []string{"ldap-Jane Doe", "", "github-é"} {
			m := configured(t, nil, nil)
			m.displayName = name
			m.refused(logical.ReadOperation, "creds/r", nil, fmt.Sprintf("no subject for the token: the caller has no identity entity and its display name %q is not a valid ID; set subject on the role, or pass agent_id", name))
		}
	})
	t.Run("a failing lookup of the entity", func(t *testing.T) {
		t.Parallel()
		m := configured(t, nil, data{"subject": "{{identity.entity.name}}"})
		m.useEntity(nil)
		m.system.entityErr = errors.New("no leader")
		m.failed(logical.ReadOperation, "creds/r", nil, "look up entity "+testEntity+": no leader")
	})
	t.Run("a failing lookup of groups", func(t *testing.T) {
		t.Parallel()
		m := configured(t, nil, data{"subject": "{{identity.groups.names.ops.id}}"})
		m.useEntity(nil)
		m.system.groupErr = errors.New("no leader")
		m.failed(logical.ReadOperation, "creds/r", nil, "look up groups of entity "+testEntity+": no leader")
	})
	t.Run("an entity ID that is not a valid ID", func(t *testing.T) {
		t.Parallel()
		m := configured(t, nil, nil)
		m.entityID = "a b"
		m.refused(logical.ReadOperation, "creds/r", nil, `entity ID "a b": `+idFormText)
	})
	t.Run("a request without an id", func(t *testing.T) {
		t.Parallel()
		m := configured(t, nil, nil)
		_, err := m.b.HandleRequest(t.Context(), &logical.Request{Operation: logical.ReadOperation, Path: "creds/r", Storage: m.storage, DisplayName: "token"})
		if err == nil || err.Error() != "request has no ID" {
			t.Errorf("got %v", err)
		}
	})
}

// TestCreds_SeveralTemplates checks that each template is rendered, whichever others
// the role has and whatever they need of the identity system.
func TestCreds_SeveralTemplates(t *testing.T) {
	t.Parallel()
	const group, entity = "{{identity.groups.names.ops.id}}", "{{identity.entity.name}}"
	for _, c := range []struct {
		subject, job, sandbox string
		want                  [3]string
		groups                int64
	}{
		{"plain", "", entity, [3]string{"plain", "", "alice"}, 0},
		{group, entity, "", [3]string{"g1", "alice", ""}, 1},
		{entity, group, "box", [3]string{"alice", "g1", "box"}, 1},
		{"", entity, group, [3]string{testEntity, "alice", "g1"}, 1},
	} {
		m := configured(t, nil, data{"subject": c.subject, "job_id": c.job, "sandbox_id": c.sandbox})
		m.useEntity(&logical.Entity{Name: "alice"}, &logical.Group{ID: "g1", Name: "ops"})
		got := m.claims(m.ok(logical.ReadOperation, "creds/r", nil))
		if ids := [3]string{got.Subject, got.JobID, got.SandboxID}; ids != c.want {
			t.Errorf("%+v: got %q", c, ids)
		}
		if calls := m.system.entityCalls.Load(); calls != 1 || m.system.groupCalls.Load() != c.groups {
			t.Errorf("%+v: %d and %d lookups", c, calls, m.system.groupCalls.Load())
		}
	}
}

func TestCreds_CallerChosenIDs(t *testing.T) {
	t.Parallel()
	role := data{
		"allowed_agent_ids": "sandbox:*,exact,*-end", "allowed_job_ids": "job-*", "allowed_sandbox_ids": "*",
		"subject": "{{identity.entity.name}}", "job_id": "{{jti}}/{{identity.entity.name}}", "sandbox_id": "{{identity.entity.id}}",
	}
	m := configured(t, nil, role)
	// An ID that the caller chooses replaces the template, which needs no identity
	// then.
	for _, agent := range []string{"sandbox:1", "sandbox:", "exact", "any-end", "sandbox:" + strings.Repeat("9", 120)} {
		c := m.claims(m.ok(logical.ReadOperation, "creds/r", data{"agent_id": agent, "job_id": "job-7", "sandbox_id": "a/b"}))
		if got, want := []string{c.Subject, c.JobID, c.SandboxID}, []string{agent, "job-7", "a/b"}; !cmp.Equal(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	m.useEntity(&logical.Entity{Name: "alice"})
	c := m.claims(m.ok(logical.ReadOperation, "creds/r", nil))
	if got, want := []string{c.Subject, c.JobID, c.SandboxID}, []string{"alice", testID + "/alice", testEntity}; !cmp.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}

	for name, c := range map[string]struct {
		data data
		want string
	}{
		"an agent_id that no glob matches": {data{"agent_id": "other"}, `agent_id "other" is not allowed by role "r": allowed_agent_ids is [sandbox:*, exact, *-end]`},
		"an agent_id of another case":      {data{"agent_id": "EXACT"}, `agent_id "EXACT" is not allowed by role "r": allowed_agent_ids is [sandbox:*, exact, *-end]`},
		"a job_id that no glob matches":    {data{"job_id": "other"}, `job_id "other" is not allowed by role "r": allowed_job_ids is [job-*]`},
		"an agent_id with a blank":         {data{"agent_id": "sandbox:a b"}, `agent_id "sandbox:a b": ` + idFormText},
		"an agent_id that is a variable":   {data{"agent_id": "sandbox:${JWT_SUB}"}, `agent_id "sandbox:${JWT_SUB}": ` + idFormText},
		"an agent_id that is a template":   {data{"agent_id": "sandbox:{{jti}}"}, `agent_id "sandbox:{{jti}}": ` + idFormText},
		"an agent_id with a line break":    {data{"agent_id": "sandbox:a\nb"}, `agent_id "sandbox:a\nb": ` + idFormText},
		"an agent_id with two dots":        {data{"agent_id": "sandbox:../x"}, `agent_id "sandbox:../x": ` + idFormText},
		"a sandbox_id with a star":         {data{"sandbox_id": "*"}, `sandbox_id "*": ` + idFormText},
		"a long sandbox_id":                {data{"sandbox_id": strings.Repeat("a", 129)}, fmt.Sprintf("sandbox_id %q: %s", strings.Repeat("a", 129), idFormText)},
		"an agent_id that is a list":       {data{"agent_id": []string{"sandbox:1", "sandbox:2"}}, "agent_id must be a string, not a list" + repeatedText},
		"an agent_id that is a number":     {data{"agent_id": 9007199254740993.0}, "agent_id must be a string"},
		"an agent_id that is true":         {data{"agent_id": true}, "agent_id must be a string"},
		"a job_id that is a number":        {data{"job_id": json.Number("7")}, "job_id must be a string"},
		"the proxy_url of another mount":   {data{"proxy_url": "https://evil.example.com"}, `no active key for proxy_url "https://evil.example.com"; the current proxy_url is "https://ati.example.com"`},
		"a proxy_url that is not a URL":    {data{"proxy_url": "blue"}, `proxy_url "blue": must begin with http:// or https://`},
		"another format":                   {data{"format": "json"}, `format "json": must be "env" or omitted; to choose the output of the CLI, put -format before the path`},
	} {
		t.Run(name, func(t *testing.T) { m.refused(logical.UpdateOperation, "creds/r", c.data, c.want) })
	}

	m.ok(logical.UpdateOperation, "roles/r", data{"allowed_agent_ids": "", "allowed_job_ids": "", "allowed_sandbox_ids": ""})
	for _, field := range []string{"agent_id", "job_id", "sandbox_id"} {
		m.refused(logical.ReadOperation, "creds/r", data{field: "x"}, fmt.Sprintf(`%s "x" is not allowed by role "r": allowed_%ss is empty`, field, field))
	}
	// Trailing slashes are removed, as in config.
	m.ok(logical.ReadOperation, "creds/r", data{"proxy_url": testProxy + "/"})
}

// TestCreds_Narrowing checks that a narrower request gets exactly what it asks for,
// with the role's rates, and that a wider one is refused with an error that names the
// item.
func TestCreds_Narrowing(t *testing.T) {
	t.Parallel()
	role := data{
		"tools": "web_search,github:*,linear_*", "skills": "summarize,research-*", "scopes": "help,finance:*,provider:x",
		"rate": data{"tool:github:*": "10/min", "*": "100/hour"},
	}
	roleRate := map[string]string{"tool:github:*": "10/min", "*": "100/hour"}
	m := configured(t, nil, role)
	for name, c := range map[string]struct {
		data  data
		scope string
		rate  map[string]string
	}{
		"nothing":                  {nil, "tool:web_search tool:github:* tool:linear_* skill:summarize skill:research-* help finance:* provider:x", roleRate},
		"one tool":                 {data{"tools": "web_search"}, "tool:web_search", roleRate},
		"a tool of a pattern":      {data{"tools": "tool:github:search"}, "tool:github:search", roleRate},
		"a narrower pattern":       {data{"tools": "github:search_*,linear_*"}, "tool:github:search_* tool:linear_*", roleRate},
		"the same pattern":         {data{"tools": []any{"github:*"}}, "tool:github:*", roleRate},
		"a tool twice":             {data{"tools": "web_search,tool:web_search", "scopes": "tool:web_search"}, "tool:web_search", roleRate},
		"a skill":                  {data{"skills": "summarize"}, "skill:summarize", roleRate},
		"a skill's own pattern":    {data{"skills": "research-*"}, "skill:research-*", roleRate},
		"scopes":                   {data{"scopes": "help,finance:read,tool:web_search"}, "help finance:read tool:web_search", roleRate},
		"all three":                {data{"tools": "web_search", "skills": "summarize", "scopes": "help"}, "tool:web_search skill:summarize help", roleRate},
		"a lower rate":             {data{"rate": data{"tool:github:*": "3/min"}}, "tool:web_search tool:github:* tool:linear_* skill:summarize skill:research-* help finance:* provider:x", map[string]string{"tool:github:*": "3/min", "*": "100/hour"}},
		"a rate in other spelling": {data{"tools": "web_search", "rate": []any{"tool:github:*=10/m", "*=0/hr"}}, "tool:web_search", map[string]string{"tool:github:*": "10/min", "*": "0/hour"}},
	} {
		t.Run(name, func(t *testing.T) {
			claims := m.claims(m.ok(logical.UpdateOperation, "creds/r", c.data))
			if claims.Scope != c.scope {
				t.Errorf("scope %q, want %q", claims.Scope, c.scope)
			}
			if diff := cmp.Diff(c.rate, claims.ATI.Rate); diff != "" {
				t.Errorf("rate (-want +got):\n%s", diff)
			}
		})
	}
	const beyond = ` is not granted by role "r"`
	for name, c := range map[string]struct {
		data data
		want string
	}{
		"another tool":           {data{"tools": "web_search,shell"}, `scope "tool:shell"` + beyond},
		"a wider pattern":        {data{"tools": "git*"}, `scope "tool:git*"` + beyond},
		"all tools":              {data{"tools": "*"}, `scope "tool:*"` + beyond},
		"everything":             {data{"scopes": "*"}, `scope "*"` + beyond},
		"the alias of a pattern": {data{"tools": "github_search"}, `scope "tool:github_search"` + beyond},
		"a longer name":          {data{"tools": "web_search2"}, `scope "tool:web_search2"` + beyond},
		"another case":           {data{"tools": "Web_search"}, `scope "tool:Web_search"` + beyond},
		"a pattern over a name":  {data{"tools": "web_search*"}, `scope "tool:web_search*"` + beyond},
		"another skill":          {data{"skills": "other"}, `scope "skill:other"` + beyond},
		"a skill of a wildcard that matches nothing": {data{"skills": "research-a"}, `scope "skill:research-a"` + beyond},
		"another scope":            {data{"scopes": "provider:y"}, `scope "provider:y"` + beyond},
		"a tool that adds a scope": {data{"tools": []any{"web_search shell"}}, whiteSpaceError("tools", "web_search shell")},
		"an empty tool":            {data{"tools": []any{"web_search", ""}}, "tools contains an empty item; remove the extra comma"},
		"501 tools":                {data{"tools": strings.Repeat("a,", 500) + "a"}, "tools has 501 items; at most 500 are allowed"},
		"a higher rate":            {data{"rate": data{"*": "101/hour"}}, `rate "*": 101/hour is higher than 100/hour of the role`},
		"another window":           {data{"rate": data{"*": "1/s"}}, `rate "*": 1/s has a different window than 100/hour of the role`},
		"another key":              {data{"rate": data{"tool:web_search": "1/s"}}, `rate "tool:web_search" is not defined on role "r"; a request can only lower existing rates`},
		"a key that can't match":   {data{"rate": data{"web_search": "1/s"}}, `rate "web_search": key must be "*" or start with "tool:", such as "tool:github:*"`},
		"an invalid rate":          {data{"rate": data{"*": "1/week"}}, `rate of "*": "1/week": ` + rateFormText},
	} {
		t.Run(name, func(t *testing.T) { m.refused(logical.UpdateOperation, "creds/r", c.data, c.want) })
	}
	t.Run("a role without rates", func(t *testing.T) {
		m := configured(t, nil, nil)
		m.refused(logical.ReadOperation, "creds/r", data{"rate": "*=1/s"}, `rate "*" is not defined on role "r"; a request can only lower existing rates`)
	})
}

// TestCreds_RejectsEmptyParameters checks that an empty parameter, such as an unset
// variable, never mints the whole role.
func TestCreds_RejectsEmptyParameters(t *testing.T) {
	t.Parallel()
	m := configured(t, nil, data{"rate": data{"*": "1/s"}, "allowed_agent_ids": "*", "allowed_job_ids": "*", "allowed_sandbox_ids": "*"})
	for field, values := range map[string][]any{
		"tools": {"", " ", []any{}}, "skills": {"", []any{}}, "scopes": {"", []any{}}, "rate": {"", " ", data{}, []any{}},
		"agent_id": {""}, "job_id": {""}, "sandbox_id": {""}, "proxy_url": {""}, "format": {""},
	} {
		for _, value := range values {
			m.refused(logical.UpdateOperation, "creds/r", data{field: value}, fmt.Sprintf("parameter %q is empty; omit it or set a value", field))
		}
	}
	m.refused(logical.UpdateOperation, "creds/r", data{"ttl": ""}, `ttl "": `+durationFormText)
}

func TestCreds_TTL(t *testing.T) {
	t.Parallel()
	capped := func(asked, limit string) string {
		return fmt.Sprintf("TTL of %q exceeded the effective max_ttl of %q; TTL value is capped accordingly", asked, limit)
	}
	for name, c := range map[string]struct {
		role    data
		config  any // max_ttl, lowered after the role was written
		mount   time.Duration
		ttl     any
		want    int64
		warning string
	}{
		"the role's":                           {nil, nil, 0, nil, 3600, ""},
		"a shorter one":                        {nil, nil, 0, "10m", 600, ""},
		"a second":                             {nil, nil, 0, 1, 1, ""},
		"a number of a query":                  {nil, nil, 0, "90", 90, ""},
		"a JSON number":                        {nil, nil, 0, json.Number("90"), 90, ""},
		"longer than max_ttl unset":            {nil, nil, 0, "61m", 3600, capped("1h1m", "1h")},
		"up to max_ttl":                        {data{"max_ttl": "2h"}, nil, 0, "2h", 7200, ""},
		"longer than max_ttl":                  {data{"max_ttl": "2h"}, nil, 0, "7201s", 7200, capped("2h1s", "2h")},
		"longer than the config's":             {nil, "30m", 0, "45m", 1800, capped("45m", "30m")},
		"the role's, longer than the config's": {nil, "30m", 0, nil, 1800, capped("1h", "30m")},
		"longer than the mount's":              {nil, nil, 20 * time.Minute, "45m", 1200, capped("45m", "20m")},
		"the role's, longer than the mount's":  {nil, "30m", 20 * time.Minute, nil, 1200, capped("1h", "20m")},
		"beyond all bounds":                    {nil, nil, 0, "2540400h", 3600, capped("2540400h", "1h")},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := configured(t, nil, c.role)
			if c.config != nil {
				m.ok(logical.UpdateOperation, "config", data{"max_ttl": c.config})
			}
			if c.mount != 0 {
				m.system.MaxLeaseTTLVal = c.mount
			}
			d := data{}
			if c.ttl != nil {
				d["ttl"] = c.ttl
			}
			resp := m.ok(logical.UpdateOperation, "creds/r", d)
			claims := m.claims(resp)
			if got := claims.ExpiresAt - claims.IssuedAt; got != c.want || resp.Data["token_ttl"] != c.want {
				t.Errorf("exp - iat is %d, token_ttl %v, want %d", got, resp.Data["token_ttl"], c.want)
			}
			if claims.IssuedAt != m.now.Unix() {
				t.Errorf("iat is %d, and the clock says %d", claims.IssuedAt, m.now.Unix())
			}
			if c.warning == "" {
				m.warnings(resp)
			} else {
				m.warnings(resp, c.warning)
			}
		})
	}
	m := configured(t, nil, nil)
	for ttl, want := range map[any]string{
		0:       "ttl must be at least 1s",
		"0s":    "ttl must be at least 1s",
		"500ms": `ttl "500ms": ` + durationFormText,
		"1.5s":  `ttl "1.5s": ` + durationFormText,
		"-5m":   `ttl "-5m": ` + durationFormText,
		"1 h":   `ttl "1 h": ` + durationFormText,
	} {
		m.refused(logical.UpdateOperation, "creds/r", data{"ttl": ttl}, want)
	}
}

// TestMountMaxTTL_BelowOneSecond checks that the maximum is rounded down to whole
// seconds, and nothing is minted for 0.
func TestMountMaxTTL_BelowOneSecond(t *testing.T) {
	t.Parallel()
	m := configured(t, nil, nil)
	m.b = m.newBackend()
	m.system.MaxLeaseTTLVal = 1500 * time.Millisecond
	if got := m.ok(logical.ReadOperation, "creds/r", nil).Data["token_ttl"]; got != int64(1) {
		t.Errorf("at 1.5 s: %v", got)
	}
	m.b = m.newBackend()
	m.system.MaxLeaseTTLVal = 500 * time.Millisecond
	m.refused(logical.ReadOperation, "creds/r", nil, "max TTL must be greater than zero")
}

// TestMountMaxTTL_TuneAppliesWithinFiveSeconds checks that a cached maximum is used
// for less than 5 seconds.
func TestMountMaxTTL_TuneAppliesWithinFiveSeconds(t *testing.T) {
	t.Parallel()
	m := configured(t, nil, nil)
	ttl := func() any { return m.ok(logical.ReadOperation, "creds/r", nil).Data["token_ttl"] }
	before := ttl()
	m.system.MaxLeaseTTLVal = 10 * time.Minute
	m.now = m.now.Add(5*time.Second - time.Nanosecond)
	early := ttl()
	m.now = m.now.Add(time.Nanosecond)
	if got, want := []any{before, early, ttl()}, []any{int64(3600), int64(3600), int64(600)}; !cmp.Equal(got, want) {
		t.Errorf("ttls %v, want %v", got, want)
	}
	m.system.MaxLeaseTTLVal = 20 * time.Minute
	m.now = m.now.Add(-time.Hour) // setting the clock back must not freeze the cache
	if got := ttl(); got != int64(1200) {
		t.Errorf("after the clock was set back: %v", got)
	}
}

func TestCreds_ChecksCurrentCeiling(t *testing.T) {
	t.Parallel()
	m := configured(t, data{"accepted_audiences": "mcp"}, data{"tools": "web_search,github:*", "audience": "mcp"})
	m.ok(logical.UpdateOperation, "config", data{"allowed_scopes": "tool:web_search,tool:github:read_*"})
	m.refused(logical.ReadOperation, "creds/r", nil, `scope "tool:github:*" is not covered by allowed_scopes in the config (tool:web_search, tool:github:read_*)`)
	m.refused(logical.ReadOperation, "creds/r", data{"tools": "shell"}, `scope "tool:shell" is not granted by role "r"`)
	m.ok(logical.ReadOperation, "creds/r", data{"tools": "web_search,github:read_file"})
	m.ok(logical.UpdateOperation, "config", data{"allowed_scopes": "", "accepted_audiences": ""})
	m.refused(logical.ReadOperation, "creds/r", nil, `audience "mcp" of role "r" is not allowed on this mount (allowed: ati-proxy); add it to accepted_audiences in the config`)
}

// TestTokenSize_Boundaries checks, to the byte, where the warning and the error begin.
// A tool that is a character longer adds one or two characters of base64.
func TestTokenSize_Boundaries(t *testing.T) {
	t.Parallel()
	tools := func(n int) data { // a list with n characters in its names
		items := []any{}
		for ; n > 200; n -= 200 {
			items = append(items, fmt.Sprintf("p:%0198d", len(items)))
		}
		return data{"tools": append(items, "p:"+strings.Repeat("x", n))}
	}
	size := func(text string) int {
		before, _, _ := strings.Cut(text, " bytes")
		n, _ := strconv.Atoi(before[strings.LastIndexByte(before, ' ')+1:])
		return n
	}
	for path, m := range map[string]*mount{"creds/r": configured(t, nil, data{"tools": "p:*"}), "roles/r": configured(t, nil, nil)} {
		warned, lastWarned, refusedAt := 0, 0, 0
		for n := 2600; refusedAt == 0 && n < 6500; n++ {
			resp, err := m.request(logical.UpdateOperation, path, tools(n))
			switch {
			case err != nil:
				t.Fatal(err)
			case resp.IsError():
				refusedAt = size(resp.Error().Error())
			case resp != nil && len(resp.Warnings) > 0:
				lastWarned = size(resp.Warnings[0])
				if warned == 0 {
					warned = lastWarned
				}
			}
		}
		for what, got := range map[string][3]int{"first warned": {warned, 4097, 4098}, "last allowed": {lastWarned, 8191, 8192}, "first refused": {refusedAt, 8193, 8194}} {
			if got[0] < got[1] || got[0] > got[2] {
				t.Errorf("%s: %s at %d bytes, want %d or %d", path, what, got[0], got[1], got[2])
			}
		}
	}
	// A role's rates and IDs count too.
	m := configured(t, nil, nil)
	bare := size(m.roleSizeWarning(nil))
	for field, value := range map[string]any{"rate": data{"tool:web_search": "1/s"}, "job_id": "{{jti}}", "sandbox_id": "box", "subject": strings.Repeat("s", 100)} {
		if got := size(m.roleSizeWarning(data{field: value})); got <= bare {
			t.Errorf("with %s a token has %d bytes, and %d without", field, got, bare)
		}
	}
}

func TestTokenSize_CheckedWhenMinting(t *testing.T) {
	t.Parallel()
	m := configured(t, nil, data{"tools": "p:*"})
	tools := func(n int) data {
		items := make([]any, n)
		for i := range items {
			items[i] = fmt.Sprintf("p:a_tool_with_a_rather_long_name_%03d", i)
		}
		return data{"tools": items}
	}
	resp := m.ok(logical.UpdateOperation, "creds/r", tools(70))
	m.warnings(resp, fmt.Sprintf("The token for \"token\" has %d bytes. Some HTTP servers reject requests with a token over 4096 bytes.", len(resp.Data["token"].(string))))
	m.refused(logical.UpdateOperation, "creds/r", tools(150), `the token for "token" would have 8696 bytes, more than the maximum of 8192; request fewer tools, skills, or scopes`)
}

// TestParameters_SizeLimit checks that a request's parameters are bounded before
// anything splits or quotes them.
func TestParameters_SizeLimit(t *testing.T) {
	t.Parallel()
	m := configured(t, nil, nil)
	long := strings.Repeat("*", 1<<20)
	var items []any
	for range 1 << 19 {
		items = append(items, "a")
	}
	for path, c := range map[string]struct {
		data  data
		bytes int // names and values, and 1 per value
	}{
		"creds/r":  {data{"tools": long}, 1<<20 + 7},
		"batch/r":  {data{"agent_ids": items}, 1<<20 + 11},
		"roles/r":  {data{"rate": data{long: "1/s"}}, 1<<20 + 10},
		"config":   {data{"no such " + long: 1}, 1<<20 + 10},
		"validate": {data{"token": long}, 1<<20 + 7},
		"inspect":  {data{"x": []any{long}}, 1<<20 + 4},
	} {
		m.refused(logical.UpdateOperation, path, c.data, fmt.Sprintf("parameters have %d bytes in total; at most 1048576 are allowed", c.bytes))
	}
	// An error is bounded too.
	resp, err := m.request(logical.UpdateOperation, "creds/r", data{"agent_id": strings.Repeat("é", 1<<18)})
	if err != nil || !resp.IsError() || resp.Error().Error() != "agent_id \""+strings.Repeat("é", 2043)+"…" {
		t.Errorf("%.200v, %v", resp, err)
	}
	// The largest request that is rejected for its content, and the largest role.
	m.refused(logical.UpdateOperation, "creds/r", data{"tools": strings.Repeat("a,", 1<<19-5) + "a"}, "tools has 524284 items; at most 500 are allowed")
	pattern := func(i int) string { return fmt.Sprintf("%0248d:*", i) }
	list := func(n int, item func(i int) string) []any {
		var items []any
		for i := range n {
			items = append(items, item(i))
		}
		return items
	}
	glob := func(i int) string { return fmt.Sprintf("%0128d", i) }
	m.refused(logical.UpdateOperation, "roles/r", data{
		"tools": list(500, pattern), "scopes": list(500, pattern), "skills": list(500, glob), "allowed_agent_ids": list(500, glob), "allowed_job_ids": list(500, glob), "allowed_sandbox_ids": list(500, glob),
	}, "a token of this role would have 428337 bytes, more than the maximum of 8192; grant less, or use patterns")
}

// TestLease_EndsBeforeTokenAndCannotBeRenewed checks that a lease ends before its
// token, cannot be renewed, and when revoked logs that the token stays valid.
func TestLease_EndsBeforeTokenAndCannotBeRenewed(t *testing.T) {
	t.Parallel()
	for _, format := range []data{nil, {"format": "env"}} {
		m := configured(t, nil, data{"generate_lease": true, "max_ttl": "2h"})
		resp := m.ok(logical.UpdateOperation, "creds/r", merge(data{"ttl": "90m"}, format))
		want := &logical.Secret{
			LeaseOptions: logical.LeaseOptions{TTL: 90*time.Minute - time.Second, MaxTTL: 90*time.Minute - time.Second},
			InternalData: map[string]any{"secret_type": "ati_token", "jti": testID, "expires": "2027-01-15T09:30:00Z"},
		}
		if diff := cmp.Diff(want, resp.Secret); diff != "" {
			t.Errorf("lease (-want +got):\n%s", diff)
		}
		resp.Secret.IssueTime = m.now
		if _, err := m.b.HandleRequest(t.Context(), &logical.Request{Operation: logical.RenewOperation, Secret: resp.Secret, Storage: m.storage}); !errors.Is(err, logical.ErrUnsupportedOperation) {
			t.Errorf("renewal: %v", err)
		}
		if _, err := m.b.HandleRequest(t.Context(), &logical.Request{Operation: logical.RevokeOperation, Path: "creds/r", Secret: resp.Secret, Storage: m.storage}); err != nil {
			t.Errorf("revocation: %v", err)
		}
		if !strings.Contains(m.log.String(), "[WARN]  lease revoked, but its token remains valid until it expires: path=creds/r jti="+testID+" expires=2027-01-15T09:30:00Z\n") {
			t.Errorf("the log does not name the lease:\n%s", m.log)
		}
		m.log.Reset()
		m.now = m.now.Add(90 * time.Minute)
		if _, err := m.b.HandleRequest(t.Context(), &logical.Request{Operation: logical.RevokeOperation, Path: "creds/r", Secret: resp.Secret, Storage: m.storage}); err != nil || m.log.Len() > 0 {
			t.Errorf("the end of a lease: %v, log %s", err, m.log)
		}
	}
}

// TestLease_ShortOrDelayedToken checks that a lease does not outlive a token that is
// short, or whose minting took long. If no time is left, the request fails.
func TestLease_ShortOrDelayedToken(t *testing.T) {
	t.Parallel()
	m := configured(t, nil, data{"generate_lease": true, "ttl": "3s", "max_ttl": "1m"})
	m.now = m.now.Add(999 * time.Millisecond)
	if got := m.ok(logical.ReadOperation, "creds/r", nil).Secret.TTL; got != time.Second {
		t.Errorf("a lease of %v for a token of 3s", got)
	}
	m.refused(logical.UpdateOperation, "creds/r", data{"ttl": "2s"}, "ttl 2s is too short for a lease; with generate_lease=true it must be at least 3s")
	m.refused(logical.UpdateOperation, "roles/r", data{"ttl": "2s"}, "ttl 2s is too short for a lease; with generate_lease=true it must be at least 3s")

	m.ok(logical.UpdateOperation, "roles/r", data{"subject": "{{identity.entity.name}}"})
	m.useEntity(&logical.Entity{ID: testEntity, Name: "box"})
	for _, c := range []struct{ took, lease time.Duration }{{900 * time.Millisecond, time.Second}, {1001 * time.Millisecond, 0}, {time.Minute, 0}} {
		m.now = m.now.Truncate(time.Second)
		m.system.onEntity = func() { m.now = m.now.Add(c.took) }
		resp, err := m.request(logical.ReadOperation, "creds/r", nil)
		switch {
		case c.lease > 0 && (err != nil || resp.IsError() || resp.Secret.TTL != c.lease):
			t.Errorf("a mint of %v gives %+v (%v)", c.took, resp, err)
		case c.lease == 0 && (resp != nil || err == nil || err.Error() != "minting took too long: a token with TTL 3s has no time left for a lease"):
			t.Errorf("a mint of %v gives %+v (%v)", c.took, resp, err)
		}
	}
}

// TestCreds_AvoidsAgentReservedFields checks that no field has a name that Vault Agent
// or consul-template interprets.
func TestCreds_AvoidsAgentReservedFields(t *testing.T) {
	t.Parallel()
	m := configured(t, nil, nil)
	fields := m.responseFields(logical.ReadOperation, "creds/r")
	for _, key := range []string{"rotation_period", "certificate", "secret_id", "metadata", "data", "_raw", "ttl", "lease_duration"} {
		if _, ok := fields[key]; ok {
			t.Errorf("creds returns %q", key)
		}
	}
}
