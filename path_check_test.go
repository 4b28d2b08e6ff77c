package atisecrets_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/vault/sdk/logical"
)

func TestCheck(t *testing.T) {
	t.Parallel()
	m := configured(t, nil, data{
		"tools": "web_search,github:*,linear_*,git*", "skills": "summarize,research-*", "scopes": "help,finance:*",
		"rate": data{"tool:github:*": "10/min", "*": "100/hour", "tool:web_search": "1/s"},
	})
	assumes := func(scope string) string {
		return `Assumes that the tool's manifest uses the default scope "` + scope + `". If it sets its own scope, check it with scope=.`
	}
	const byName = "The role does not grant this skill by name, but the proxy may still allow it through a tool that the role grants."
	all := map[string]string{"*": "100/hour"}
	for name, c := range map[string]struct {
		data     data
		scopes   []string
		rates    map[string]string
		warnings []string
	}{
		"a tool":                      {data{"tool": "web_search"}, []string{"tool:web_search"}, map[string]string{"*": "100/hour", "tool:web_search": "1/s"}, []string{assumes("tool:web_search")}},
		"a tool with its prefix":      {data{"tool": "tool:web_search"}, []string{"tool:web_search"}, map[string]string{"*": "100/hour", "tool:web_search": "1/s"}, []string{assumes("tool:web_search")}},
		"a tool by two patterns":      {data{"tool": "github:x"}, []string{"tool:github:*", "tool:git*"}, map[string]string{"*": "100/hour", "tool:github:*": "10/min"}, []string{assumes("tool:github:x")}},
		"a tool by the legacy alias":  {data{"tool": "linear:x"}, []string{"tool:linear_*"}, all, []string{assumes("tool:linear:x")}},
		"a tool that is not granted":  {data{"tool": "shell"}, []string{}, all, []string{assumes("tool:shell")}},
		"a tool of another case":      {data{"tool": "Web_Search"}, []string{}, all, []string{assumes("tool:Web_Search")}},
		"a scope":                     {data{"scope": "finance:read"}, []string{"finance:*"}, all, nil},
		"a scope that is not granted": {data{"scope": "files:read"}, []string{}, all, nil},
		"a tool's scope":              {data{"scope": "tool:web_search"}, []string{"tool:web_search"}, map[string]string{"*": "100/hour", "tool:web_search": "1/s"}, nil},
		"a skill":                     {data{"skill": "summarize"}, []string{"skill:summarize"}, map[string]string{}, nil},
		"a skill of a wildcard":       {data{"skill": "research-a"}, []string{}, map[string]string{}, []string{byName}},
		"a skill that is not granted": {data{"scope": "skill:other"}, []string{}, map[string]string{}, []string{byName}},
	} {
		t.Run(name, func(t *testing.T) {
			for _, op := range []logical.Operation{logical.ReadOperation, logical.UpdateOperation} {
				resp := m.ok(op, "check/r", c.data)
				want := data{"allowed": len(c.scopes) > 0, "matched_scopes": c.scopes, "matched_rates": c.rates}
				if diff := cmp.Diff(want, resp.Data); diff != "" {
					t.Errorf("response (-want +got):\n%s", diff)
				}
				m.warnings(resp, c.warnings...)
			}
		})
	}
	for name, c := range map[string]struct {
		data data
		want string
	}{
		"nothing":             {nil, "one of scope, tool, or skill is required"},
		"two":                 {data{"tool": "a", "skill": "b"}, "scope, tool, and skill are mutually exclusive; set one of them"},
		"an empty tool":       {data{"tool": ""}, `parameter "tool" is empty; omit it or set a value`},
		"a pattern":           {data{"tool": "github:*"}, `tool "github:*": must name a single tool; wildcards are not supported here`},
		"everything":          {data{"scope": "*"}, `scope "*": must name a single scope; wildcards are not supported here`},
		"a name with a blank": {data{"tool": "a b"}, `tool "tool:a b": ` + patternForm},
		"a skill as a tool":   {data{"tool": "skill:x"}, `tool "skill:x": use skill= instead`},
		"a tool as a skill":   {data{"skill": "tool:x"}, `skill "tool:x": use tool= instead`},
		"only a prefix":       {data{"skill": "skill:"}, `skill "skill:": skill name is missing`},
	} {
		t.Run(name, func(t *testing.T) { m.refused(logical.ReadOperation, "check/r", c.data, c.want) })
	}
	m.refused(logical.ReadOperation, "check/nobody", data{"tool": "x"}, roleNotFound("nobody"))
	m.refused(logical.UpdateOperation, "check/nobody", data{"tool": "x"}, roleNotFound("nobody"))
	m.refused(logical.UpdateOperation, "creds/nobody", nil, roleNotFound("nobody"))
}

func TestCheck_WarnsWhenNoTokenCanBeMinted(t *testing.T) {
	t.Parallel()
	m := configured(t, data{"accepted_audiences": "mcp"}, data{"scopes": "help", "disabled": true, "audience": "mcp"})
	m.ok(logical.UpdateOperation, "config", data{"allowed_scopes": "help", "accepted_audiences": ""})
	m.warnings(m.ok(logical.ReadOperation, "check/r", data{"scope": "help"}),
		`No token with all that the role grants can be minted now: role "r" is disabled`,
		`No token with all that the role grants can be minted now: audience "mcp" of role "r" is not allowed on this mount (allowed: ati-proxy); add it to accepted_audiences in the config`,
		`No token with all that the role grants can be minted now: scope "tool:web_search" is not covered by allowed_scopes in the config (help)`)

	m = configured(t, nil, data{"generate_lease": true, "ttl": "10s"})
	m.warnings(m.ok(logical.ReadOperation, "check/r", data{"scope": "help"}))
	m.ok(logical.UpdateOperation, "config", data{"max_ttl": "2s"})
	m.warnings(m.ok(logical.ReadOperation, "check/r", data{"scope": "help"}),
		"No token with all that the role grants can be minted now: ttl 2s is too short for a lease; with generate_lease=true it must be at least 3s")
}
