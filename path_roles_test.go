package atisecrets_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/vault/sdk/logical"
)

func defaultRole() data {
	return data{
		"tools": []string{}, "skills": []string{}, "scopes": []string{}, "rate": map[string]string{},
		"ttl": int64(3600), "max_ttl": int64(0), "audience": "", "subject": "", "job_id": "", "sandbox_id": "",
		"allowed_agent_ids": []string{}, "allowed_job_ids": []string{}, "allowed_sandbox_ids": []string{},
		"generate_lease": false, "disabled": false, "description": "",
	}
}

func TestRoles_DefaultsAndPartialUpdate(t *testing.T) {
	t.Parallel()
	m := configured(t, data{"accepted_audiences": "mcp"}, nil)
	read := func() data { return m.ok(logical.ReadOperation, "roles/x", nil).Data }

	m.warnings(m.ok(logical.CreateOperation, "roles/x", data{"tools": "web_search, arxiv:search,web_search"}))
	want := defaultRole()
	want["tools"] = []string{"web_search", "arxiv:search"}
	m.equal("after creation", want, read())

	all := data{
		"skills": []any{"summarize", "skill:cite"}, "scopes": "help", "rate": data{"tool:web_search": "30/hour", "*": "5/s"},
		"ttl": "30m", "max_ttl": "7200", "audience": "mcp", "subject": "team/{{ identity.entity.name }}", "job_id": "{{jti}}", "sandbox_id": "box:{{identity.entity.id}}",
		"allowed_agent_ids": "sandbox:*", "allowed_job_ids": "job-*,*", "allowed_sandbox_ids": []any{"box:*"},
		"generate_lease": true, "disabled": "true", "description": " für\n\tLeser\n",
	}
	m.ok(logical.UpdateOperation, "roles/x", all)
	want = merge(want, data{
		"skills": []string{"summarize", "skill:cite"}, "scopes": []string{"help"}, "rate": map[string]string{"tool:web_search": "30/hour", "*": "5/s"},
		"ttl": int64(1800), "max_ttl": int64(7200), "audience": "mcp", "subject": "team/{{ identity.entity.name }}", "job_id": "{{jti}}", "sandbox_id": "box:{{identity.entity.id}}",
		"allowed_agent_ids": []string{"sandbox:*"}, "allowed_job_ids": []string{"job-*", "*"}, "allowed_sandbox_ids": []string{"box:*"},
		"generate_lease": true, "disabled": true, "description": "für\n\tLeser",
	})
	m.equal("after an update of all fields", want, read())

	m.ok(logical.UpdateOperation, "roles/x", nil)
	m.b = m.newBackend()
	m.equal("after an empty update and a restart", want, read())

	m.ok(logical.UpdateOperation, "roles/x", data{
		"skills": "", "scopes": []any{}, "rate": data{}, "max_ttl": 0, "audience": "", "subject": "", "job_id": "", "sandbox_id": "",
		"allowed_agent_ids": "", "allowed_job_ids": []any{}, "allowed_sandbox_ids": " ", "generate_lease": false, "disabled": "false", "description": "",
	})
	m.ok(logical.UpdateOperation, "roles/x", data{"rate": "*=1/s"})
	m.ok(logical.UpdateOperation, "roles/x", data{"rate": ""}) // as the CLI sends it
	cleared := defaultRole()
	cleared["tools"], cleared["ttl"] = want["tools"], want["ttl"]
	m.equal("after clearing", cleared, read())
}

// TestRoles_DisableUnderLoweredCeiling checks that a role can always be disabled,
// which an incident may require, and is checked again when it is enabled.
func TestRoles_DisableUnderLoweredCeiling(t *testing.T) {
	t.Parallel()
	m := configured(t, nil, data{"ttl": "2h"})
	m.ok(logical.UpdateOperation, "config", data{"max_ttl": "1h"})
	m.refused(logical.UpdateOperation, "roles/r", data{"description": "x"}, "ttl 2h0m0s is longer than max_ttl 1h0m0s of the config")
	m.ok(logical.UpdateOperation, "roles/r", data{"disabled": true})
	m.refused(logical.UpdateOperation, "roles/r", data{"disabled": false}, "ttl 2h0m0s is longer than max_ttl 1h0m0s of the config")
	m.ok(logical.UpdateOperation, "roles/r", data{"disabled": false, "ttl": "1h"})
}

func TestRoles_ListAndDelete(t *testing.T) {
	t.Parallel()
	m := configured(t, nil, nil)
	m.ok(logical.CreateOperation, "roles/R", data{"tools": "arxiv"})
	m.ok(logical.CreateOperation, "roles/a.b-c_d", data{"tools": "x"})
	list := func() any { return m.ok(logical.ListOperation, "roles/", nil).Data["keys"] }
	if got, want := list(), []string{"R", "a.b-c_d", "r"}; !cmp.Equal(got, want) {
		t.Errorf("list is %v, want %v", got, want)
	}
	m.ok(logical.DeleteOperation, "roles/R", nil)
	m.ok(logical.DeleteOperation, "roles/R", nil)
	if got, want := list(), []string{"a.b-c_d", "r"}; !cmp.Equal(got, want) {
		t.Errorf("after the deletion: %v, want %v", got, want)
	}
	m.refused(logical.ReadOperation, "creds/R", nil, roleNotFound("R"))
	if got := m.ok(logical.ReadOperation, "creds/r", nil).Data["scope"]; got != "tool:web_search" {
		t.Errorf("role r was changed: %v", got)
	}
}

// TestRoles_DefaultTTL checks that ttl defaults to 1h, or to the maximum if that is
// lower.
func TestRoles_DefaultTTL(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		mount  time.Duration
		config any
		want   int64
	}{
		"neither is lower": {2 * time.Hour, 0, 3600},
		"config's":         {2 * time.Hour, "30m", 1800},
		"the mount's":      {20 * time.Minute, "30m", 1200},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newMount(t)
			m.system.MaxLeaseTTLVal = c.mount
			m.ok(logical.CreateOperation, "config", data{"proxy_url": testProxy, "secret": testSecret, "max_ttl": c.config})
			m.ok(logical.CreateOperation, "roles/r", data{"tools": "x"})
			m.ok(logical.CreateOperation, "roles/short", data{"tools": "x", "max_ttl": "10m"})
			for role, want := range map[string]int64{"r": c.want, "short": 600} {
				if got := m.ok(logical.ReadOperation, "roles/"+role, nil).Data["ttl"]; got != want {
					t.Errorf("ttl of role %s is %v, want %v", role, got, want)
				}
			}
		})
	}
}

// TestRoles_StoresLongestTTLFirst checks that the config's longest TTL is raised
// before the role that needs it is stored, and is never lowered. A retirement counts
// on it.
func TestRoles_StoresLongestTTLFirst(t *testing.T) {
	t.Parallel()
	m := configured(t, nil, nil)
	longest := func() string {
		_, after, _ := strings.Cut(m.storage.dump(t)["config"], `"longest_ttl":`)
		return after[:strings.IndexAny(after, ",}")]
	}
	seconds := func(s int64) string { return fmt.Sprint(s * int64(time.Second)) }
	for _, step := range []struct {
		data data
		want string
		puts []string
	}{
		{data{"ttl": "30m"}, seconds(3600), []string{"role/r"}}, // the role had the default of 1h
		{data{"max_ttl": "5h"}, seconds(18000), []string{"config", "role/r"}},
		{data{"max_ttl": "2h"}, seconds(18000), []string{"role/r"}},
		{data{"max_ttl": 0, "ttl": "6h"}, seconds(21600), []string{"config", "role/r"}},
	} {
		m.storage.order = nil
		m.ok(logical.UpdateOperation, "roles/r", step.data)
		if got := longest(); got != step.want {
			t.Errorf("%v: longest_ttl is %s, want %s", step.data, got, step.want)
		}
		if diff := cmp.Diff(step.puts, m.storage.order); diff != "" {
			t.Errorf("%v: writes (-want +got):\n%s", step.data, diff)
		}
	}
	m.ok(logical.DeleteOperation, "roles/r", nil)
	if got := longest(); got != seconds(21600) {
		t.Errorf("after the deletion: %s", got)
	}
}

func TestRoles_Rejects(t *testing.T) {
	t.Parallel()
	many := make([]any, 10_000)
	for i := range many {
		many[i] = fmt.Sprintf("t%d", i)
	}
	long := strings.Repeat("a", 256)
	big := make([]any, 400)
	for i := range big {
		big[i] = fmt.Sprintf("provider:a_tool_with_a_name_%d", i)
	}
	type c struct {
		data data
		want string
	}
	cases := map[string]c{
		"nothing granted":                      {data{"tools": ""}, "at least one of tools, skills, or scopes is required"},
		"an empty name":                        {data{"tools": "a,,b"}, "tools contains an empty item; remove the extra comma"},
		"a name that is only a prefix":         {data{"tools": "tool:"}, `tools "tool:": tool name is missing`},
		"a number for a name":                  {data{"tools": []any{7}}, "tools: item 1 is not a string"},
		"a list in a list":                     {data{"tools": []any{[]any{"a"}}}, "tools: item 1 is not a string"},
		"a skill among the tools":              {data{"tools": "skill:x"}, `tools "skill:x": move it to skills`},
		"a tool among the skills":              {data{"skills": "tool:x"}, `skills "tool:x": move it to tools`},
		"a skill *":                            {data{"skills": "*"}, `skills "*": the proxy does not support wildcards for skills; list each skill, or set scopes=* to allow every tool and skill`},
		"a skill skill:*":                      {data{"skills": "skill:*"}, `skills "skill:*": the proxy does not support wildcards for skills; list each skill, or set scopes=* to allow every tool and skill`},
		"skill:* as a scope":                   {data{"scopes": "skill:*"}, `scopes "skill:*": matches no skill at the proxy; use the scope "*" to grant every skill and every tool`},
		"t* as a scope":                        {data{"scopes": "t*"}, `scopes "t*": ` + starColon},
		"** as a scope":                        {data{"scopes": "**"}, `scopes "**": ` + starColon},
		"a * in the middle":                    {data{"tools": "a*b"}, `tools "tool:a*b": ` + starMiddle},
		"two *":                                {data{"tools": "a**"}, `tools "tool:a**": ` + starMiddle},
		"a long tool":                          {data{"tools": long}, fmt.Sprintf("tools %q: %s", "tool:"+long, patternForm)},
		"a long skill":                         {data{"skills": long[:129]}, fmt.Sprintf("skills %q: %s", "skill:"+long[:129], skillForm)},
		"a skill with characters of a scope":   {data{"skills": "a=b"}, `skills "skill:a=b": ` + skillForm},
		"ten thousand names":                   {data{"tools": many}, "tools has 10000 items; at most 500 are allowed"},
		"500 rates, for their size":            {data{"rate": manyRates(500)}, "a token of this role would have 12224 bytes, more than the maximum of 8192; grant less, or use patterns"},
		"a template that can only be too long": {data{"job_id": strings.Repeat("a", 88) + "{{jti}}"}, fmt.Sprintf(`job_id "%s{{jti}}": renders to IDs such as "%s00000000-0000-0000-0000-000000000000.1000", which are not valid: an ID %s`, strings.Repeat("a", 88), strings.Repeat("a", 88), idFormText)},
		"a glob of 129 characters":             {data{"allowed_agent_ids": strings.Repeat("a", 129)}, fmt.Sprintf("allowed_agent_ids %q: %s", strings.Repeat("a", 129), globFormText)},
		"501 rates":                            {data{"rate": manyRates(501)}, "rate has 501 items; at most 500 are allowed"},
		"a token over 8 KB":                    {data{"tools": big}, "a token of this role would have 19924 bytes, more than the maximum of 8192; grant less, or use patterns"},

		"an unknown unit":             {data{"rate": data{"*": "1/week"}}, `rate of "*": "1/week": ` + rateFormText},
		"a fraction":                  {data{"rate": data{"*": "1.5/s"}}, `rate of "*": "1.5/s": ` + rateFormText},
		"a sign":                      {data{"rate": data{"*": "+5/hour"}}, `rate of "*": "+5/hour": ` + rateFormText},
		"a minus":                     {data{"rate": data{"*": "-5/hour"}}, `rate of "*": "-5/hour": ` + rateFormText},
		"leading zeros":               {data{"rate": data{"*": "007/hour"}}, `rate of "*": "007/hour": ` + rateFormText},
		"an overflow":                 {data{"rate": data{"*": "1000000000/s"}}, `rate of "*": "1000000000/s": ` + rateFormText},
		"a blank":                     {data{"rate": data{"*": "5/ hour"}}, `rate of "*": "5/ hour": ` + rateFormText},
		"two slashes":                 {data{"rate": data{"*": "5/hour/s"}}, `rate of "*": "5/hour/s": ` + rateFormText},
		"a line break":                {data{"rate": data{"*": "5/hour\n"}}, `rate of "*": "5/hour\n": ` + rateFormText},
		"a rate without a unit":       {data{"rate": data{"*": "5"}}, `rate of "*": "5": ` + rateFormText},
		"an empty rate":               {data{"rate": data{"*": ""}}, `rate of "*": "": ` + rateFormText},
		"a number for a rate":         {data{"rate": data{"*": 5}}, `rate "*": the rate must be a string such as "10/hour"`},
		"a rate without a key":        {data{"rate": "10/hour"}, `rate "10/hour": must be pattern=count/unit, such as "tool:github:*=10/hour"`},
		"rates in one item":           {data{"rate": []any{"tool:a=5/hour,tool:b=3/hour"}}, `rate "tool:a=5/hour,tool:b=3/hour": ` + oneItemText},
		"a repeated key in JSON":      {data{"rate": `{"*":"1/s","*":"2/s"}`}, `rate "*": listed more than once`},
		"half a JSON object":          {data{"rate": `{"*":"1/s"`}, `rate begins with "{" and is not a valid JSON object`},
		"a JSON object of numbers":    {data{"rate": `{"*":1}`}, `rate "*": the rate must be a string such as "10/hour"`},
		"two values for one item":     {data{"tools": []any{"a,b", "c"}}, `tools "a,b": ` + oneItemText},
		"half a JSON array":           {data{"tools": `["a"`}, `tools begins with "[" and is not a valid JSON array of strings`},
		"a JSON array of numbers":     {data{"tools": `[1]`}, "tools: item 1 is not a string"},
		"an item that is not trimmed": {data{"tools": `["a "]`}, whiteSpaceError("tools", "a ")},
		"an empty item over lines":    {data{"tools": "a,\n,b"}, "tools contains an empty item; remove the extra comma"},
		"an equals sign in a tool":    {data{"tools": "a=b"}, `tools "tool:a=b": ` + patternForm},
		"a ttl given twice":           {data{"ttl": []any{"1h", "2h"}}, "ttl must be a non-negative duration in whole seconds, such as \"90s\", \"1h\", or 3600, and less than 292 years, not a list" + repeatedText},
		"a boolean given twice":       {data{"disabled": []any{"true", "false"}}, "disabled must be true or false, not a list" + repeatedText},
		"a control character":         {data{"description": "a\x07b"}, "description contains the control character U+0007; only line breaks and tabs are allowed"},
		"a variable in a directive":   {data{"subject": "{{identity.entity.aliases.$ACC.name}}"}, `subject "{{identity.entity.aliases.$ACC.name}}": contains "$" between "{{" and "}}": a variable that was not expanded; in a shell, use double quotes`},
		"a rate that is a number":     {data{"rate": 5}, `rate must be a map, or items such as "tool:github:*=10/hour"`},
		"a subject that is a number":  {data{"subject": 5}, "subject must be a string"},
		"a ttl that is true":          {data{"ttl": true}, "ttl " + durationFormText},
		"a ttl of a fraction":         {data{"ttl": 3600.5}, `ttl 3600.5: ` + durationFormText},
		"a ttl beyond all bounds":     {data{"ttl": 1e10}, `ttl 1e+10: ` + durationFormText},
		"a boolean that is a number":  {data{"disabled": 7}, "disabled must be true or false"},
		"a rate given twice":          {data{"rate": []any{"*=1/s", "*=2/s"}}, `rate "*": listed more than once`},
		"a key that can't match":      {data{"rate": data{"web_search": "1/s"}}, `rate "web_search": key must be "*" or start with "tool:", such as "tool:github:*"`},
		"a skill's key":               {data{"rate": data{"skill:x": "1/s"}}, `rate "skill:x": key must be "*" or start with "tool:", such as "tool:github:*"`},
		"a key without a name":        {data{"rate": data{"tool:": "1/s"}}, `rate "tool:": tool name is missing`},
		"a key with a * in between":   {data{"rate": data{"tool:a*b": "1/s"}}, `rate "tool:a*b": ` + starMiddle},
		"a key with a no-break space": {data{"rate": data{"tool:a\u00a0": "1/s"}}, `rate "tool:a\u00a0": ` + patternForm},

		"a ttl of zero":              {data{"ttl": 0}, "ttl must be at least 1s"},
		"a negative ttl":             {data{"ttl": -1}, `ttl "-1": ` + durationFormText},
		"a ttl that rounds to zero":  {data{"ttl": "900ms"}, `ttl "900ms": ` + durationFormText},
		"an empty ttl":               {data{"ttl": ""}, `ttl "": ` + durationFormText},
		"a ttl over its max_ttl":     {data{"ttl": "3h", "max_ttl": "2h"}, "ttl 3h0m0s is longer than max_ttl 2h0m0s of the role"},
		"a ttl over the ceiling":     {data{"ttl": "11h"}, "ttl 11h0m0s is longer than max_ttl 10h0m0s of the config"},
		"a max_ttl over the ceiling": {data{"max_ttl": "11h"}, "max_ttl 11h0m0s is longer than max_ttl 10h0m0s of the config"},
		"a scope over the ceiling":   {data{"scopes": "tool:*"}, `scope "tool:*" is not covered by allowed_scopes in the config (tool:web_search, tool:a:*, skill:s, help)`},
		"a skill over the ceiling":   {data{"skills": "s2"}, `scope "skill:s2" is not covered by allowed_scopes in the config (tool:web_search, tool:a:*, skill:s, help)`},

		"an audience that config doesn't know": {data{"audience": "other"}, `audience "other" of role "r" is not allowed on this mount (allowed: ati-proxy, mcp); add it to accepted_audiences in the config`},
		"an empty boolean":                     {data{"disabled": ""}, `disabled "": must be true or false`},
		"a boolean that is a word":             {data{"disabled": "maybe"}, `disabled "maybe": must be true or false`},
		"a long description":                   {data{"description": strings.Repeat("x", 1025)}, "description has 1025 bytes; at most 1024 are allowed"},
		"a glob with a blank":                  {data{"allowed_agent_ids": "a b"}, `allowed_agent_ids "a b": ` + globFormText},
		"an empty glob":                        {data{"allowed_job_ids": []any{""}}, `allowed_job_ids "": ` + globFormText},
		"a template as a glob":                 {data{"allowed_sandbox_ids": "{{identity.entity.id}}"}, `allowed_sandbox_ids "{{identity.entity.id}}": ` + globFormText},

		"a plain subject with a blank":        {data{"subject": "a b"}, `subject "a b": ` + literalText},
		"a subject that is a variable":        {data{"subject": "${JWT_SUB}"}, `subject "${JWT_SUB}": ` + literalText},
		"a subject with two dots":             {data{"subject": "a..b"}, `subject "a..b": renders to IDs such as "a..b", which are not valid: an ID ` + idFormText},
		"a subject that begins with a dash":   {data{"subject": "-a"}, `subject "-a": renders to IDs such as "-a", which are not valid: an ID ` + idFormText},
		"a long subject":                      {data{"subject": long[:129]}, fmt.Sprintf("subject %q: renders to IDs such as %q, which are not valid: an ID %s", long[:129], long[:129], idFormText)},
		"an open directive":                   {data{"subject": "{{identity.entity.id"}, `subject "{{identity.entity.id": {{ has no matching }}`},
		"a closing brace alone":               {data{"subject": "a}}"}, `subject "a}}": ` + literalText},
		"a single brace":                      {data{"subject": "{identity.entity.id}"}, `subject "{identity.entity.id}": ` + literalText},
		"a misspelled directive":              {data{"subject": "{{identity.entity.nam}}"}, `subject "{{identity.entity.nam}}": {{identity.entity.nam}}: ` + noValue},
		"a directive without identity":        {data{"subject": "{{entity.name}}"}, `subject "{{entity.name}}": {{entity.name}}: must be identity.entity.… or identity.groups.…`},
		"an empty directive":                  {data{"subject": "{{}}"}, `subject "{{}}": {{}}: must be identity.entity.… or identity.groups.…`},
		"the time":                            {data{"subject": "{{time.now}}"}, `subject "{{time.now}}": {{time.now}}: must be identity.entity.… or identity.groups.…`},
		"all metadata together":               {data{"subject": "{{identity.entity.metadata}}"}, `subject "{{identity.entity.metadata}}": {{identity.entity.metadata}}: ` + noValue},
		"metadata without a key":              {data{"subject": "{{identity.entity.metadata.}}"}, `subject "{{identity.entity.metadata.}}": {{identity.entity.metadata.}}: ` + noValue},
		"all groups together":                 {data{"subject": "{{identity.entity.groups.names}}"}, `subject "{{identity.entity.groups.names}}": {{identity.entity.groups.names}}: ` + noValue},
		"an alias without a value":            {data{"subject": "{{identity.entity.aliases.acc}}"}, `subject "{{identity.entity.aliases.acc}}": {{identity.entity.aliases.acc}}: ` + noValue},
		"a group without a value":             {data{"subject": "{{identity.groups.names.g}}"}, `subject "{{identity.groups.names.g}}": {{identity.groups.names.g}}: ` + noValue},
		"a jti as subject":                    {data{"subject": "{{jti}}"}, `subject "{{jti}}": {{jti}}: allowed only in job_id and sandbox_id`},
		"a misspelled jti":                    {data{"job_id": "{{JTI}}"}, `job_id "{{JTI}}": {{JTI}}: must be identity.entity.… or identity.groups.…`},
		"values that run together":            {data{"sandbox_id": "{{identity.entity.name}}{{identity.entity.id}}"}, `sandbox_id "{{identity.entity.name}}{{identity.entity.id}}": directives must be separated by ":", "/", or "="`},
		"values joined by what they may have": {data{"job_id": "{{identity.entity.name}}-{{identity.entity.id}}"}, `job_id "{{identity.entity.name}}-{{identity.entity.id}}": directives must be separated by ":", "/", or "="`},
	}
	white := map[string]string{
		"a blank": "a b", "a tab": "a\tb", "a no-break space": "a\u00a0b", "a line separator": "a\u2028b", "an ideographic space": "a\u3000b", "a next line": "a\u0085b",
		"a no-break space at the end": "a\u00a0",
	}
	for name, bad := range white {
		cases["a subject with "+name] = c{data{"subject": bad}, fmt.Sprintf("subject %q: %s", bad, literalText)}
		for _, field := range []string{"tools", "skills", "scopes"} {
			cases["one of "+field+" with "+name] = c{data{field: []any{bad}}, whiteSpaceError(field, bad)}
		}
	}
	for name, bad := range map[string]string{
		"a zero byte": "a\x00b", "an escape": "a\x1bb", "a dollar": "${X}", "a brace": "a{b", "a closing brace": "a}b", "non-ASCII": "café", "a quote": `a"b`, "a backslash": `a\b`,
		"a bar": "a|b", "a semicolon": "a;b", "a question mark": "a?", "half a character": "a\xff", "a dash in front": "-a", "a dot in front": ".a",
	} {
		cases["a scope with "+name] = c{data{"scopes": []any{bad}}, fmt.Sprintf("scopes %q: %s", bad, patternForm)}
		cases["a subject with "+name] = c{data{"subject": bad}, fmt.Sprintf("subject %q: %s", bad, literalText)}
		if !strings.HasPrefix(name, "a dash") && !strings.HasPrefix(name, "a dot") { // fine behind "tool:"
			cases["a tool with "+name] = c{data{"tools": []any{bad}}, fmt.Sprintf("tools %q: %s", "tool:"+bad, patternForm)}
		} else {
			cases["a subject with "+name] = c{data{"subject": bad}, fmt.Sprintf("subject %q: renders to IDs such as %q, which are not valid: an ID %s", bad, bad, idFormText)}
		}
		cases["a skill with "+name] = c{data{"skills": []any{bad}}, fmt.Sprintf("skills %q: %s", "skill:"+bad, skillForm)}
	}
	for _, field := range []string{"subject", "job_id", "sandbox_id"} {
		cases["a long "+field] = c{data{field: "{{identity.entity.metadata." + strings.Repeat("k", 996) + "}}"}, field + " has 1025 bytes; at most 1024 are allowed"}
	}
	cases["an odd audience of a disabled role"] = c{data{"disabled": true, "audience": "a b"}, `audience "a b": ` + audienceFormText}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := configured(t, data{"max_ttl": "10h", "accepted_audiences": "mcp"}, nil)
			if strings.Contains(name, "over the ceiling") {
				m.ok(logical.UpdateOperation, "config", data{"allowed_scopes": "tool:web_search,tool:a:*,skill:s,help"})
			}
			m.refused(logical.UpdateOperation, "roles/r", c.data, c.want)
		})
	}
	t.Run("a ttl over the mount's maximum", func(t *testing.T) {
		t.Parallel()
		m := configured(t, nil, nil)
		m.system.MaxLeaseTTLVal = 2 * time.Hour
		m.refused(logical.UpdateOperation, "roles/r", data{"max_ttl": "3h"}, "max_ttl 3h0m0s is longer than the mount's maximum TTL 2h0m0s; lower it, or raise the maximum with vault secrets tune -max-lease-ttl")
	})
	t.Run("checks the role that a partial update results in", func(t *testing.T) {
		t.Parallel()
		m := configured(t, nil, data{"max_ttl": "2h"})
		m.refused(logical.UpdateOperation, "roles/r", data{"ttl": "3h"}, "ttl 3h0m0s is longer than max_ttl 2h0m0s of the role")
		m.refused(logical.UpdateOperation, "roles/r", data{"tools": ""}, "at least one of tools, skills, or scopes is required")
	})
	t.Run("does not store a rejected role", func(t *testing.T) {
		t.Parallel()
		m := configured(t, nil, nil)
		m.refused(logical.CreateOperation, "roles/new", data{"tools": "a b"}, whiteSpaceError("tools", "a b"))
		if resp := m.ok(logical.ReadOperation, "roles/new", nil); resp != nil {
			t.Errorf("it was stored: %v", resp.Data)
		}
	})
}

// TestRoles_ListPages checks the parameters that OpenBao adds to lists.
func TestRoles_ListPages(t *testing.T) {
	t.Parallel()
	m := configured(t, nil, nil)
	for _, name := range []string{"a", "c", "B"} {
		m.write("roles/"+name, data{"tools": "x"})
	}
	for _, c := range []struct {
		given data
		want  []string
	}{
		{nil, []string{"B", "a", "c", "r"}},
		{data{"limit": 2}, []string{"B", "a"}},
		{data{"limit": "2\n", "after": "a"}, []string{"c", "r"}},
		{data{"limit": 1.0, "after": "b"}, []string{"c"}},
		{data{"limit": -1, "after": ""}, []string{"B", "a", "c", "r"}},
		{data{"limit": "", "after": "", "t": "1"}, []string{"B", "a", "c", "r"}},
		{data{"after": "r"}, nil},
	} {
		keys, _ := m.ok(logical.ListOperation, "roles/", c.given).Data["keys"].([]string)
		m.equal(fmt.Sprint(c.given), c.want, keys)
	}
	m.refused(logical.ListOperation, "roles/", data{"limit": "many"}, "limit must be an integer")
	m.refused(logical.ListOperation, "roles/", data{"after": []any{"a", "b"}}, "after must be a string, not a list"+repeatedText)
}

// TestRoles_WriteBack checks that a role that was read can be written back.
func TestRoles_WriteBack(t *testing.T) {
	t.Parallel()
	m := configured(t, nil, data{
		"skills": "s", "scopes": "help", "rate": "*=1/s", "ttl": "30m", "max_ttl": "2h", "subject": "{{identity.entity.name}}", "job_id": "{{jti}}",
		"allowed_agent_ids": "a-*", "generate_lease": true, "description": "two\nlines",
	})
	read := m.ok(logical.ReadOperation, "roles/r", nil).Data
	for name, back := range map[string]data{"as it is": merge(read), "as JSON": asJSON(t, read), "with its name": merge(read, data{"name": "r"})} {
		m.ok(logical.UpdateOperation, "roles/r", back)
		m.equal("written back "+name, read, m.ok(logical.ReadOperation, "roles/r", nil).Data)
	}
}

// TestRoles_KeepsOlderForms checks that a config and a role of version 0.1.0, which
// accepted more, are read, minted, disabled, and written back, while a request cannot
// add such a value.
func TestRoles_KeepsOlderForms(t *testing.T) {
	t.Parallel()
	m := configured(t, nil, nil)
	old := data{
		"storage_version": 1, "tools": []string{"a,b=c", "x"}, "skills": []string{}, "scopes": []string{"u=v:*"}, "rate": data{"tool:a,b=c": "5/s"}, "ttl": time.Hour, "max_ttl": 0,
		"subject": "{{identity.entity.aliases.$ACC.name}}", "allowed_agent_ids": []string{"sandbox:*"}, "description": "a\x07b",
	}
	m.put("role/r", old)
	entry := m.storage.dump(t)["config"]
	var config data
	if err := json.Unmarshal([]byte(entry), &config); err != nil {
		t.Fatal(err)
	}
	config["allowed_scopes"] = []string{"tool:*", "u=v:*"}
	m.put("config", config)
	m.b = m.newBackend()

	read := m.ok(logical.ReadOperation, "roles/r", nil).Data
	m.equal("scope", "tool:a,b=c tool:x u=v:*", m.ok(logical.ReadOperation, "creds/r", data{"agent_id": "sandbox:1"}).Data["scope"])
	m.equal("narrowed scope", "tool:x", m.ok(logical.ReadOperation, "creds/r", data{"agent_id": "sandbox:1", "tools": "x"}).Data["scope"])
	m.ok(logical.UpdateOperation, "roles/r", data{"disabled": true})
	m.ok(logical.UpdateOperation, "roles/r", asJSON(t, read))
	m.equal("written back", read, m.ok(logical.ReadOperation, "roles/r", nil).Data)
	m.ok(logical.UpdateOperation, "config", asJSON(t, m.ok(logical.ReadOperation, "config", nil).Data))

	for _, c := range []struct {
		data data
		want string
	}{
		{data{"tools": []any{"a,b=c", "d=e"}}, `tools "tool:d=e": ` + patternForm},
		{data{"rate": data{"tool:a,b=c": "6/s", "tool:d=e": "1/s"}}, `rate "tool:d=e": ` + patternForm},
		{data{"subject": "{{identity.entity.aliases.$B.name}}"}, `subject "{{identity.entity.aliases.$B.name}}": contains "$" between "{{" and "}}": a variable that was not expanded; in a shell, use double quotes`},
		{data{"description": "b\x07b"}, "description contains the control character U+0007; only line breaks and tabs are allowed"},
	} {
		m.refused(logical.UpdateOperation, "roles/r", c.data, c.want)
	}
	m.refused(logical.UpdateOperation, "config", data{"allowed_scopes": []any{"u=v:*", "w=x"}}, `allowed_scopes "w=x": `+patternForm)
}

func manyRates(n int) data {
	rates := data{}
	for i := range n {
		rates[fmt.Sprintf("tool:t%d", i)] = "1/s"
	}
	return rates
}

func TestRoles_AcceptsAllForms(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ given, want data }{
		"everything":              {data{"tools": "", "scopes": "*"}, data{"tools": []string{}, "scopes": []string{"*"}}},
		"all tools":               {data{"tools": "*"}, data{"tools": []string{"*"}}},
		"a name of 250 letters":   {data{"tools": strings.Repeat("a", 250)}, data{"tools": []string{strings.Repeat("a", 250)}}},
		"every character":         {data{"tools": []any{"_A9.:/@+~%()#-x:*"}}, data{"tools": []string{"_A9.:/@+~%()#-x:*"}}},
		"a list as one string":    {data{"tools": "a, b ,c\n"}, data{"tools": []string{"a", "b", "c"}}},
		"a list of a query":       {data{"tools": []string{"a", "b"}}, data{"tools": []string{"a", "b"}}},
		"rates of the CLI":        {data{"rate": []any{"tool:a=1/s", "*=2/m"}}, data{"rate": map[string]string{"tool:a": "1/s", "*": "2/m"}}},
		"rates as one string":     {data{"rate": "tool:a=1/s, *=2/m,\r\ntool:b=3/h\n"}, data{"rate": map[string]string{"tool:a": "1/s", "*": "2/m", "tool:b": "3/h"}}},
		"rates in JSON":           {data{"rate": ` {"tool:a": "1/s", "*": "2/m"}` + "\n"}, data{"rate": map[string]string{"tool:a": "1/s", "*": "2/m"}}},
		"no rates in JSON":        {data{"rate": "{}"}, data{"rate": map[string]string{}}},
		"a list in JSON":          {data{"tools": `["a", "b"]` + "\n"}, data{"tools": []string{"a", "b"}}},
		"an empty list in JSON":   {data{"tools": "[]", "scopes": "*"}, data{"tools": []string{}, "scopes": []string{"*"}}},
		"a list in lines":         {data{"tools": "a\r\nb,c,\n\n d\n\n"}, data{"tools": []string{"a", "b", "c", "d"}}},
		"globs in lines":          {data{"allowed_agent_ids": "a-*\nb-*\n"}, data{"allowed_agent_ids": []string{"a-*", "b-*"}}},
		"scalars from files":      {data{"ttl": "30m\n", "max_ttl": " 7200\r\n", "subject": "a\n", "job_id": "\tb", "sandbox_id": "c ", "audience": " ati-proxy\n", "disabled": "true\n", "description": "d\n"}, data{"ttl": int64(1800), "max_ttl": int64(7200), "subject": "a", "job_id": "b", "sandbox_id": "c", "audience": "ati-proxy", "disabled": true, "description": "d"}},
		"its own name":            {data{"name": "r", "disabled": true}, data{"disabled": true}},
		"one rate of the CLI":     {data{"rate": "tool:web_search=0/day"}, data{"rate": map[string]string{"tool:web_search": "0/day"}}},
		"the largest rate":        {data{"rate": data{"*": "999999999/second"}}, data{"rate": map[string]string{"*": "999999999/second"}}},
		"a ttl of a second":       {data{"ttl": "1s"}, data{"ttl": int64(1)}},
		"a ttl of max_ttl":        {data{"ttl": "2h", "max_ttl": "2h"}, data{"ttl": int64(7200), "max_ttl": int64(7200)}},
		"ids of 128 characters":   {data{"subject": "9" + strings.Repeat("a", 127), "job_id": strings.Repeat("a", 87) + "{{jti}}"}, data{"subject": "9" + strings.Repeat("a", 127), "job_id": strings.Repeat("a", 87) + "{{jti}}"}},
		"a glob of 128":           {data{"allowed_job_ids": strings.Repeat("*", 128)}, data{"allowed_job_ids": []string{strings.Repeat("*", 128)}}},
		"values joined by a jti":  {data{"job_id": "{{identity.entity.name}}{{jti}}{{identity.entity.id}}"}, data{"job_id": "{{identity.entity.name}}{{jti}}{{identity.entity.id}}"}},
		"a ttl in days":           {data{"ttl": "1d"}, data{"ttl": int64(86400)}},
		"a plain subject":         {data{"subject": "9:a/b@c+d=e-f_g.h"}, data{"subject": "9:a/b@c+d=e-f_g.h"}},
		"an alias' metadata":      {data{"subject": "{{identity.entity.aliases.auth_approle_1.metadata.role_name}}"}, data{"subject": "{{identity.entity.aliases.auth_approle_1.metadata.role_name}}"}},
		"an alias' custom data":   {data{"subject": "{{identity.entity.aliases.acc.custom_metadata.x}}"}, data{"subject": "{{identity.entity.aliases.acc.custom_metadata.x}}"}},
		"a group's name":          {data{"subject": "{{identity.groups.ids.1234.name}}"}, data{"subject": "{{identity.groups.ids.1234.name}}"}},
		"a group's metadata":      {data{"subject": "{{identity.groups.names.g.metadata.cost.center}}"}, data{"subject": "{{identity.groups.names.g.metadata.cost.center}}"}},
		"directives well apart":   {data{"job_id": "{{identity.entity.name}}/{{identity.entity.metadata.team}}:{{jti}}"}, data{"job_id": "{{identity.entity.name}}/{{identity.entity.metadata.team}}:{{jti}}"}},
		"a jti next to a value":   {data{"job_id": "{{identity.entity.name}}{{jti}}"}, data{"job_id": "{{identity.entity.name}}{{jti}}"}},
		"a glob with stars":       {data{"allowed_agent_ids": "*:a*b"}, data{"allowed_agent_ids": []string{"*:a*b"}}},
		"500 globs":               {data{"allowed_agent_ids": strings.TrimSuffix(strings.Repeat("a,", 500), ",")}, data{"allowed_agent_ids": []string{"a"}}},
		"a description in French": {data{"description": "réservé à l'équipe"}, data{"description": "réservé à l'équipe"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := configured(t, nil, nil)
			before := m.ok(logical.ReadOperation, "roles/r", nil).Data
			m.ok(logical.UpdateOperation, "roles/r", c.given)
			m.equal("role", merge(before, c.want), m.ok(logical.ReadOperation, "roles/r", nil).Data)
			m.b = m.newBackend() // read from storage
			m.ok(logical.ReadOperation, "roles/r", nil)
		})
	}
}

// TestRoles_Warns checks the warnings about valid roles that grant nothing or more
// than it seems.
func TestRoles_Warns(t *testing.T) {
	t.Parallel()
	big := make([]any, 120)
	for i := range big {
		big[i] = fmt.Sprintf("provider:a_tool_with_name_%d", i)
	}
	for name, c := range map[string]struct {
		data data
		want []string
	}{
		"nothing about a plain role":                    {data{"tools": "web_search,github:*,*", "skills": "x", "scopes": "help", "rate": data{"tool:web_search": "10000/hour", "tool:*": "1/s"}}, nil},
		"of names before 0.2.0":                         {data{"tools": "github__*"}, []string{`Scope "tool:github__*" matches no provider's tool on ati 0.2.0 or later, where the name is "tool:github:*".`}},
		"of a tool before 0.2.0":                        {data{"tools": "github__search"}, []string{`Scope "tool:github__search" matches no provider's tool on ati 0.2.0 or later, where the name is "tool:github:search".`}},
		"of a provider's alias":                         {data{"tools": "git_hub_*"}, []string{`Scope "tool:git_hub_*" also matches what "tool:git_hub:*" matches, because the proxy also tries a tool name with "_" instead of its first ":".`}},
		"of part of a provider":                         {data{"tools": "git_sea*"}, []string{`Scope "tool:git_sea*" also matches what "tool:git:sea*" matches, because the proxy also tries a tool name with "_" instead of its first ":".`}},
		"nothing about names with a colon":              {data{"tools": "a:b__c,a:b_*,__x,_*"}, nil},
		"of a rate whose alias is looser":               {data{"tools": "p:*", "rate": data{"tool:p:*": "10/hour", "*": "11/hour", "tool:p_*": "1/min"}}, []string{`Rate "tool:p:*" does not limit calls that spell the tool with an underscore. Add the same rate for "tool:p_*".`}},
		"nothing where another rate is as tight":        {data{"tools": "p:*", "rate": data{"tool:p:*": "10/hour", "tool:*": "10/h"}}, nil},
		"of a rate with only skills and help":           {data{"tools": "", "skills": "x", "scopes": "help", "rate": data{"tool:x": "1/s"}}, []string{`Rate "tool:x" matches no scope of this role. It applies only to a tool whose manifest sets a scope that differs from its name.`}},
		"of a skill's wildcard":                         {data{"skills": "research-*"}, []string{`Scope "skill:research-*" matches no skill: the proxy matches skills by exact name.`}},
		"of an idle rate":                               {data{"rate": data{"tool:other": "1/s"}}, []string{`Rate "tool:other" matches no scope of this role. It applies only to a tool whose manifest sets a scope that differs from its name.`}},
		"of an idle rate's pattern":                     {data{"rate": data{"tool:webs*": "1/s"}}, []string{`Rate "tool:webs*" matches no scope of this role. It applies only to a tool whose manifest sets a scope that differs from its name.`}},
		"not of a rate that applies":                    {data{"tools": "git_*,a:b", "rate": data{"tool:git:*": "1/s", "tool:git_*": "1/s", "tool:a_b": "1/s"}}, []string{`Scope "tool:git_*" also matches what "tool:git:*" matches, because the proxy also tries a tool name with "_" instead of its first ":".`}},
		"not of a rate with a scope from a manifest":    {data{"scopes": "finance:read", "rate": data{"tool:other": "1/s"}}, nil},
		"of a rate without its alias":                   {data{"tools": "p:*", "rate": data{"tool:p:*": "1/s", "tool:p:x": "1/s", "tool:p_x": "1/s"}}, []string{`Rate "tool:p:*" does not limit calls that spell the tool with an underscore. Add the same rate for "tool:p_*".`}},
		"of a high rate":                                {data{"rate": data{"*": "10001/day"}}, []string{`Rate "*" allows 10001 calls. The proxy stores a timestamp for every call in the window.`}},
		"of a short ttl":                                {data{"ttl": "5m"}, []string{"ttl 5m0s is not longer than 5m0s, the default interval at which Vault Agent reads a new token. Set Agent's static_secret_render_interval to about 0.7 of the ttl."}},
		"nothing about a provider with two underscores": {data{"tools": "a__b:c"}, nil},
		"of a lease, not its ttl":                       {data{"ttl": "60s", "generate_lease": true}, []string{"Revoking a lease does not invalidate the token, which remains valid until it expires."}},
		"of a big token":                                {data{"tools": big}, []string{"A token of this role has 5791 bytes. Some HTTP servers reject requests with a token over 4096 bytes."}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := configured(t, nil, nil)
			m.warnings(m.ok(logical.UpdateOperation, "roles/r", c.data), c.want...)
		})
	}
}
