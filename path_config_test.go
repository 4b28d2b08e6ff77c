package atisecrets_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/logical"
)

func TestConfig_DefaultsAndPartialUpdate(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.warnings(m.ok(logical.CreateOperation, "config", data{"proxy_url": "https://ati.example.com/base//", "secret": testSecret}))
	want := data{
		"proxy_url": "https://ati.example.com/base", "algorithm": "HS256", "audience": "ati-proxy", "accepted_audiences": []string{},
		"issuer": "ati-orchestrator", "allowed_scopes": []string{}, "max_ttl": int64(0), "allow_standby_minting": false, "guarded": false,
		"rotation_period": int64(0), "rotation_overlap": int64(300),
		"key_version": 1, "key_created_at": "2027-01-15T08:00:00Z", "key_fingerprint": testFingerprint,
	}
	m.equal("after creation", want, m.ok(logical.ReadOperation, "config", nil).Data)

	changes := data{
		"audience": "a", "accepted_audiences": "b,c, b", "issuer": "", "allowed_scopes": []any{"tool:github:*", "help"}, "max_ttl": "2h", "allow_standby_minting": true, "guarded": true,
	}
	m.now = m.now.Add(time.Hour)
	m.warnings(m.ok(logical.UpdateOperation, "config", changes), standbyMintingWarning)
	for k, v := range (data{
		"audience": "a", "accepted_audiences": []string{"b", "c"}, "issuer": "", "allowed_scopes": []string{"tool:github:*", "help"}, "max_ttl": int64(7200), "allow_standby_minting": true, "guarded": true,
	}) {
		want[k] = v
	}
	m.equal("after an update", want, m.ok(logical.ReadOperation, "config", nil).Data)

	// An update without fields changes nothing. An empty value clears its field.
	m.ok(logical.UpdateOperation, "config", nil)
	m.b = m.newBackend()
	m.equal("after an empty update and a restart", want, m.ok(logical.ReadOperation, "config", nil).Data)
	m.ok(logical.UpdateOperation, "config", data{"accepted_audiences": "", "allowed_scopes": []any{}, "max_ttl": 0})
	want["accepted_audiences"], want["allowed_scopes"], want["max_ttl"] = []string{}, []string{}, int64(0)
	m.equal("after clearing", want, m.ok(logical.ReadOperation, "config", nil).Data)
}

func TestConfig_GeneratesSecret(t *testing.T) {
	t.Parallel()
	fingerprints := map[any]bool{}
	for range 3 {
		m := newMount(t)
		m.warnings(m.ok(logical.CreateOperation, "config", data{"proxy_url": testProxy}), generatedWarning)
		fingerprints[m.ok(logical.ReadOperation, "config", nil).Data["key_fingerprint"]] = true
		m.warnings(m.ok(logical.UpdateOperation, "config", data{"issuer": "x"}))
	}
	if len(fingerprints) != 3 {
		t.Errorf("three generated secrets have the fingerprints %v", fingerprints)
	}
}

func TestConfig_AcceptsCurrentSecret(t *testing.T) {
	t.Parallel()
	m := configured(t, nil, nil)
	m.ok(logical.UpdateOperation, "config", data{"secret": strings.ToUpper(testSecret) + "\n", "algorithm": "HS256"})
	if got := m.ok(logical.ReadOperation, "config", nil).Data; got["key_fingerprint"] != testFingerprint || got["key_version"] != 1 {
		t.Errorf("the key changed: %v", got)
	}
	m.claims(m.ok(logical.ReadOperation, "creds/r", nil))
}

func TestConfig_WarnsOfPlaintextHTTP(t *testing.T) {
	t.Parallel()
	for url, warned := range map[string]bool{
		"http://ati.example.com": true, "http://10.0.0.1:8090": true, "http://localhost.example.com": true,
		"https://ati.example.com": false, "http://localhost:8090": false, "http://127.0.0.2:8090": false, "http://[::1]:8090": false,
	} {
		m := newMount(t)
		var want []string
		if warned {
			want = []string{fmt.Sprintf("Tokens are sent to %q in plaintext. Use https.", url)}
		}
		m.warnings(m.ok(logical.CreateOperation, "config", data{"proxy_url": url, "secret": testSecret}), want...)
		m.ok(logical.UpdateOperation, "config", data{"proxy_url": testProxy})
		moved := "New tokens are for the proxy at " + url + ", which must use key version 1. Requests with proxy_url=https://ati.example.com are now rejected."
		if url != testProxy {
			want = append([]string{moved}, want...)
		}
		m.warnings(m.ok(logical.UpdateOperation, "config", data{"proxy_url": url}), want...)
	}
}

func TestConfig_NormalizesProxyURL(t *testing.T) {
	t.Parallel()
	m := configured(t, nil, nil)
	for given, want := range map[string]string{
		"HTTPS://ATI.Example.COM:8443/Base/": "https://ati.example.com:8443/Base", "http://[::1]:80//": "http://[::1]", "https://h/%20": "https://h/%20",
		"https://h:443/": "https://h", "https://h:0443": "https://h", "http://h:00080": "http://h", "http://h:443": "http://h:443", "https://h:080": "https://h:80", "https://[0:0::1]:8443": "https://[::1]:8443", "http://127.0.0.1:80/x": "http://127.0.0.1/x",
		"https://h/..": "https://h", "https://h/a/./b/../c": "https://h/a/c", "https://h//a///b//": "https://h/a/b", "https://h/%41%7e%2D%2f": "https://h/A~-%2F", "https://h/%2E%2e/a": "https://h/a", "https://h/%2541": "https://h/%2541",
		" HTTPS://My_Proxy.svc/a\r\n": "https://my_proxy.svc/a", "http://_h_": "http://_h_",
	} {
		m.ok(logical.UpdateOperation, "config", data{"proxy_url": given})
		if got := m.ok(logical.ReadOperation, "creds/r", data{"proxy_url": given}).Data["proxy_url"]; got != want {
			t.Errorf("%s is stored as %v, want %s", given, got, want)
		}
		// A caller may pass the address that it received with a token.
		if got := m.ok(logical.ReadOperation, "creds/r", data{"proxy_url": want}).Data["proxy_url"]; got != want {
			t.Errorf("the token for %s has proxy_url %v", want, got)
		}
	}
}

func TestConfig_WarnsOfSkillWildcard(t *testing.T) {
	t.Parallel()
	m := configured(t, nil, nil)
	m.warnings(m.ok(logical.UpdateOperation, "config", data{"allowed_scopes": "tool:*,skill:x-*,skill:y"}),
		`allowed_scopes "skill:x-*" allows no skill: the proxy matches skills by exact name.`)
}

func TestConfig_AcceptsLongestValues(t *testing.T) {
	t.Parallel()
	m := configured(t, nil, nil)
	long := "9" + strings.Repeat("a", 127)
	url := "https://ati.example.com/" + strings.Repeat("a", 2048-len("https://ati.example.com/"))
	m.ok(logical.UpdateOperation, "config", data{"audience": long, "issuer": "a._:/@-9", "accepted_audiences": long, "proxy_url": url})
	for _, u := range []string{"https://[::1]:8443/a~b/%20c+d=e,f;g!(h)", "http://localhost", "HTTPS://h:65535"} {
		m.ok(logical.UpdateOperation, "config", data{"proxy_url": u})
	}
	const text = `: ` + urlFormText
	m.refused(logical.UpdateOperation, "config", data{"proxy_url": url + "a"}, fmt.Sprintf("proxy_url %q%s", url+"a", text))
	for _, c := range "$&'\"`<>|\\^{}*" {
		u := "https://h/a" + string(c)
		m.refused(logical.UpdateOperation, "config", data{"proxy_url": u}, fmt.Sprintf("proxy_url %q%s", u, text))
	}
}

// TestConfig_WriteBack checks that what is read can be written back, also in the types
// of JSON, and that the facts in it are preconditions.
func TestConfig_WriteBack(t *testing.T) {
	t.Parallel()
	m := configured(t, data{"accepted_audiences": "mcp", "allowed_scopes": "tool:*,help", "max_ttl": "10h", "allow_standby_minting": true}, nil)
	read := m.ok(logical.ReadOperation, "config", nil).Data
	for name, back := range map[string]data{"as it is": read, "as JSON": asJSON(t, read)} {
		m.ok(logical.UpdateOperation, "config", merge(back))
		m.equal("written back "+name, read, m.ok(logical.ReadOperation, "config", nil).Data)
	}
	const stale = "%s is %v, not %v; read the current values and try again, or remove %s from the request"
	for _, op := range []logical.Operation{logical.UpdateOperation, logical.PatchOperation} {
		m.refused(op, "config", data{"key_version": 2, "max_ttl": "1h"}, fmt.Sprintf(stale, "key_version", 1, 2, "key_version"))
		m.refused(op, "config", data{"key_fingerprint": "x"}, fmt.Sprintf(stale, "key_fingerprint", testFingerprint, "x", "key_fingerprint"))
		m.refused(op, "config", data{"key_created_at": "2020-01-01T00:00:00Z"}, fmt.Sprintf(stale, "key_created_at", "2027-01-15T08:00:00Z", "2020-01-01T00:00:00Z", "key_created_at"))
		m.refused(op, "config", data{"key_created_at": "now"}, fmt.Sprintf(stale, "key_created_at", "2027-01-15T08:00:00Z", "now", "key_created_at"))
		m.refused(op, "config", data{"key_version": "one"}, "key_version must be an integer")
	}
	m.ok(logical.UpdateOperation, "config", data{"key_version": "1\n", "max_ttl": "9h"})
	newMount(t).refused(logical.CreateOperation, "config", asJSON(t, read), "key_version cannot be set, but only repeated in a write to an existing entry; remove key_version from the request")
}

// TestPatch checks that a patch changes what it has, that null is the value of a new
// entry, and that a patch has the checks of a write.
func TestPatch(t *testing.T) {
	t.Parallel()
	config := data{"issuer": "i", "audience": "a", "accepted_audiences": "mcp", "allowed_scopes": "tool:*,help", "max_ttl": "10h", "allow_standby_minting": true}
	role := data{"skills": "", "scopes": "help", "rate": data{"*": "5/s", "tool:web_search": "1/s"}, "ttl": "2h", "max_ttl": "3h", "audience": "mcp", "subject": "s", "description": "d", "disabled": true, "allowed_agent_ids": "a-*"}
	m := configured(t, config, role)
	read := func(path string) data { return m.ok(logical.ReadOperation, path, nil).Data }

	want := read("config")
	m.ok(logical.PatchOperation, "config", data{"max_ttl": "5h", "proxy_url": testProxy})
	want["max_ttl"] = int64(18000)
	m.equal("config", want, read("config"))
	want = read("roles/r")
	m.ok(logical.PatchOperation, "roles/r", data{"description": "new", "name": "r", "rate": data{"*": nil, "tool:x": "2/s", "tool:none": nil}})
	want["description"], want["rate"] = "new", map[string]string{"tool:web_search": "1/s", "tool:x": "2/s"}
	m.equal("role", want, read("roles/r"))
	m.ok(logical.PatchOperation, "roles/r", data{"rate": "*=3/s"})
	want["rate"] = map[string]string{"*": "3/s"}
	m.equal("role with other rates", want, read("roles/r"))

	null := func(path string, keep ...string) data {
		d := data{}
		for name, field := range m.b.Route(path).Fields {
			if a := attributes(field); !a.Identifier && a.Group != "Key" && a.Group != "Precondition" && !slices.Contains(keep, name) {
				d[name] = nil
			}
		}
		return d
	}
	m.ok(logical.PatchOperation, "roles/r", data{"ttl": nil, "max_ttl": "30m"})
	if got := read("roles/r")["ttl"]; got != int64(1800) {
		t.Errorf("with a null ttl and a max_ttl of 30m, ttl is %v", got)
	}
	fresh := configured(t, nil, nil)
	m.ok(logical.PatchOperation, "roles/r", null("roles/r", "tools"))
	m.equal("a role with all fields null", fresh.ok(logical.ReadOperation, "roles/r", nil).Data, read("roles/r"))
	m.ok(logical.PatchOperation, "config", null("config"))
	m.equal("a config with all fields null", fresh.ok(logical.ReadOperation, "config", nil).Data, read("config"))

	m.refused(logical.PatchOperation, "roles/r", data{"tools": nil}, "at least one of tools, skills, or scopes is required")
	m.refused(logical.PatchOperation, "roles/r", data{"rate": data{"*": 5}}, `rate "*": the rate must be a string such as "10/hour"`)
	m.refused(logical.PatchOperation, "roles/r", data{"rate": data{"*": "x"}}, `rate of "*": "x": `+rateFormText)
	m.refused(logical.PatchOperation, "roles/r", data{"tool": "x"}, `unknown parameter "tool" (did you mean "tools"?); supported parameters: allowed_agent_ids, allowed_job_ids, allowed_sandbox_ids, audience, description, disabled, generate_lease, job_id, max_ttl, rate, sandbox_id, scopes, skills, subject, tools, ttl`)
	m.refused(logical.PatchOperation, "roles/r", data{"tools": testSecret}, "tools appears to contain a key or token, which is not allowed in this parameter")
	m.refused(logical.PatchOperation, "roles/r", data{"rate": data{testSecret: nil}}, "rate appears to contain a key or token, which is not allowed in this parameter")
	m.refused(logical.PatchOperation, "roles/r", data{"disabled": 7}, "disabled must be true or false")
	m.refused(logical.PatchOperation, "roles/none", data{"tools": "x"}, roleNotFound("none"))
	for _, name := range []string{"proxy_url", "algorithm", "secret", "private_key", "key_version"} {
		m.refused(logical.PatchOperation, "config", data{name: nil, "issuer": "x"}, name+" cannot be null")
	}
	m.refused(logical.PatchOperation, "config", data{"secret": greenSecret}, "secret does not match the current key and "+rotateHint)
	newMount(t).refused(logical.PatchOperation, "config", data{"proxy_url": testProxy}, "this mount has no config; create it with: vault write ati/config proxy_url=https://ati.example.com")
}

// asJSON returns data in the types that it has after it was sent as JSON.
func asJSON(t *testing.T, d data) (decoded data) {
	t.Helper()
	b, err := json.Marshal(d)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &decoded); err != nil {
		t.Fatal(err)
	}
	return decoded
}

func TestConfig_Rejects(t *testing.T) {
	t.Parallel()
	const (
		digits     = `secret must be 64 hexadecimal characters (32 bytes), for example the output of "openssl rand -hex 32"; found a character outside 0-9 and a-f`
		repetitive = `secret is too repetitive (%d distinct bytes, at least 8 required); use a random value, such as the output of "openssl rand -hex 32"`
	)
	long := strings.Repeat("a", 129)
	many := make([]any, 501)
	for i := range many {
		many[i] = fmt.Sprintf("a%d", i)
	}
	cases := map[string]struct {
		data data
		want string
	}{
		"an empty secret":                  {data{"secret": ""}, emptySecretText},
		"a short secret":                   {data{"secret": testSecret[:63]}, fmt.Sprintf(secretLengthText, 63)},
		"a long secret":                    {data{"secret": testSecret + "00"}, fmt.Sprintf(secretLengthText, 66)},
		"a secret that is not hexadecimal": {data{"secret": "x" + testSecret[1:]}, digits},
		"a secret in quotes":               {data{"secret": `"` + testSecret + `"`}, fmt.Sprintf(secretLengthText, 66)},
		"no value from a template":         {data{"secret": "<no value>"}, fmt.Sprintf(secretLengthText, 10)},
		"a secret with a blank inside":     {data{"secret": testSecret[:31] + " " + testSecret[32:]}, digits},
		"a secret of zeros":                {data{"secret": strings.Repeat("0", 64)}, fmt.Sprintf(repetitive, 1)},
		"a secret of 7 different bytes":    {data{"secret": strings.Repeat("01020304050607", 5)[:64]}, fmt.Sprintf(repetitive, 7)},
		"another secret":                   {data{"secret": strings.Repeat("0123456789abcdef", 4)}, "secret does not match the current key and " + rotateHint},
		"another algorithm":                {data{"algorithm": "HS512"}, `algorithm "HS512": must be "HS256" or "ES256"`},
		"an empty algorithm":               {data{"algorithm": ""}, `algorithm "": must be "HS256" or "ES256"`},

		"an empty URL":                 {data{"proxy_url": ""}, `proxy_url "": must begin with http:// or https://`},
		"a URL without a scheme":       {data{"proxy_url": "ati.example.com"}, `proxy_url "ati.example.com": must begin with http:// or https://`},
		"another scheme":               {data{"proxy_url": "ftp://ati.example.com"}, `proxy_url "ftp://ati.example.com": must begin with http:// or https://`},
		"a file":                       {data{"proxy_url": "file:///etc/passwd"}, `proxy_url "file:///etc/passwd": must begin with http:// or https://`},
		"a script":                     {data{"proxy_url": "javascript:alert(1)"}, `proxy_url "javascript:alert(1)": must begin with http:// or https://`},
		"a URL with user and password": {data{"proxy_url": "https://u:p@ati.example.com"}, "proxy_url must not contain credentials or \"@\""},
		"a URL with a query":           {data{"proxy_url": "https://ati.example.com?x=1"}, `proxy_url "https://ati.example.com?x=1": must not have a query or fragment`},
		"a URL with an empty query":    {data{"proxy_url": "https://ati.example.com?"}, `proxy_url "https://ati.example.com?": must not have a query or fragment`},
		"a URL with a fragment":        {data{"proxy_url": "https://ati.example.com#"}, `proxy_url "https://ati.example.com#": must not have a query or fragment`},
		"a URL without a host":         {data{"proxy_url": "https:///x"}, `proxy_url "https:///x": ` + hostFormText},
		"a URL with port 0":            {data{"proxy_url": "https://h:0"}, `proxy_url "https://h:0": ` + hostFormText},
		"a URL with too high a port":   {data{"proxy_url": "https://h:65536"}, `proxy_url "https://h:65536": ` + hostFormText},
		"a URL with an empty port":     {data{"proxy_url": "https://h:/x"}, `proxy_url "https://h:/x": ` + hostFormText},
		"a URL with two ports":         {data{"proxy_url": "https://h:80:80"}, `proxy_url "https://h:80:80": ` + hostFormText},
		"a URL with a dash for a host": {data{"proxy_url": "https://-"}, `proxy_url "https://-": ` + hostFormText},
		"a URL with an empty label":    {data{"proxy_url": "https://a..b"}, `proxy_url "https://a..b": ` + hostFormText},
		"a URL with a list of hosts":   {data{"proxy_url": "https://a,b"}, `proxy_url "https://a,b": ` + hostFormText},
		"a URL with a long label":      {data{"proxy_url": "https://" + strings.Repeat("h", 64)}, `proxy_url "https://` + strings.Repeat("h", 64) + `": ` + hostFormText},
		"a URL that hides a password":  {data{"proxy_url": "https://u:PASSWORD%40h"}, "proxy_url must be an http or https URL, such as https://ati.example.com"},
		"a URL in a map":               {data{"proxy_url": data{"secret": testSecret}}, "proxy_url appears to contain a key or token, which is not allowed in this parameter"},
		"a secret in a duration":       {data{"max_ttl": data{"secret": testSecret}}, "max_ttl appears to contain a key or token, which is not allowed in this parameter"},
		"a secret in a list":           {data{"accepted_audiences": data{"secret": testSecret}}, "accepted_audiences appears to contain a key or token, which is not allowed in this parameter"},
		"a URL with a blank":           {data{"proxy_url": "https://h/a b"}, `proxy_url "https://h/a b": ` + urlFormText},
		"a URL with a line break":      {data{"proxy_url": "https://h\n/a"}, "proxy_url must be an http or https URL, such as https://ati.example.com"},
		"a URL with a variable":        {data{"proxy_url": "https://h/${X}"}, `proxy_url "https://h/${X}": ` + urlFormText},
		"a URL of non-ASCII":           {data{"proxy_url": "https://hé"}, `proxy_url "https://hé": ` + hostFormText},

		"an empty audience":           {data{"audience": ""}, `audience "": ` + audienceFormText},
		"an audience with a comma":    {data{"audience": "a,b"}, `audience "a,b": ` + audienceFormText},
		"an audience with a NBSP":     {data{"audience": "a\u00a0"}, `audience "a\u00a0": ` + audienceFormText},
		"an audience with line break": {data{"audience": "a\nb"}, `audience "a\nb": ` + audienceFormText},
		"a long audience":             {data{"audience": long}, fmt.Sprintf("audience %q: "+audienceFormText, long)},
		"an issuer with a blank":      {data{"issuer": "a b"}, `issuer "a b": ` + audienceFormText},
		"an empty accepted audience":  {data{"accepted_audiences": "a,,b"}, "accepted_audiences contains an empty item; remove the extra comma"},
		"an accepted number":          {data{"accepted_audiences": []any{1}}, "accepted_audiences: item 1 is not a string"},
		"501 accepted audiences":      {data{"accepted_audiences": many}, "accepted_audiences has 501 items; at most 500 are allowed"},
		"501 allowed scopes":          {data{"allowed_scopes": many}, "allowed_scopes has 501 items; at most 500 are allowed"},
		"an allowed scope t*":         {data{"allowed_scopes": "t*"}, `allowed_scopes "t*": ` + starColon},
		"an allowed scope with NBSP":  {data{"allowed_scopes": []any{"tool:x\u00a0"}}, `allowed_scopes "tool:x\u00a0": ` + patternForm},

		"a negative max_ttl":          {data{"max_ttl": "-1s"}, `max_ttl "-1s": ` + durationFormText},
		"a max_ttl of half a second":  {data{"max_ttl": "500ms"}, `max_ttl "500ms": ` + durationFormText},
		"an empty max_ttl":            {data{"max_ttl": ""}, `max_ttl "": ` + durationFormText},
		"a max_ttl that is a word":    {data{"max_ttl": "long"}, `max_ttl "long": ` + durationFormText},
		"a max_ttl beyond all bounds": {data{"max_ttl": "99999999999999999"}, `max_ttl "99999999999999999": ` + durationFormText},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := configured(t, nil, nil)
			m.refused(logical.UpdateOperation, "config", c.data, c.want)
		})
	}
	t.Run("a new config without proxy_url", func(t *testing.T) {
		t.Parallel()
		newMount(t).refused(logical.CreateOperation, "config", data{"secret": testSecret}, "proxy_url is required: the URL of the ATI proxy, such as https://ati.example.com")
	})
	t.Run("does not store a rejected config", func(t *testing.T) {
		t.Parallel()
		m := newMount(t)
		m.refused(logical.CreateOperation, "config", data{"proxy_url": testProxy, "secret": "x"}, fmt.Sprintf(secretLengthText, 1))
		if got := m.storage.dump(t); len(got) != 0 {
			t.Errorf("storage has %v", got)
		}
	})
}

// TestConfig_DeleteForgetsKey checks that a deletion forgets the key, warns of what it
// does not do, and keeps the version numbers, so that none is used twice.
func TestConfig_DeleteForgetsKey(t *testing.T) {
	t.Parallel()
	m := configured(t, data{"audience": "a", "max_ttl": "24h"}, data{"ttl": "20h"})
	token := m.ok(logical.ReadOperation, "creds/r", nil).Data["token"]
	m.warnings(m.ok(logical.DeleteOperation, "config", nil),
		"The key was deleted from Vault, but proxies that hold it still accept its tokens until they expire. To invalidate them now, restart the proxies with a different key.")
	if resp := m.ok(logical.ReadOperation, "config", nil); resp != nil {
		t.Errorf("a deleted config reads as %v", resp.Data)
	}
	if got := m.storage.dump(t)["config"]; strings.Contains(got, testSecret) {
		t.Errorf("storage still has the secret: %s", got)
	}
	m.refused(logical.ReadOperation, "creds/r", nil, "this mount has no config; create it with: vault write ati/config proxy_url=https://ati.example.com")
	if resp := m.ok(logical.DeleteOperation, "config", nil); resp != nil {
		t.Errorf("a second deletion returned %v", resp)
	}

	m.ok(logical.CreateOperation, "config", data{"proxy_url": testProxy})
	got := m.ok(logical.ReadOperation, "config", nil).Data
	if got["key_version"] != 2 || got["audience"] != "ati-proxy" || got["max_ttl"] != int64(0) {
		t.Errorf("the new config is %v, want version 2 and defaults", got)
	}
	creds := m.ok(logical.ReadOperation, "creds/r", nil)
	if creds.Data["key_version"] != 2 || m.ok(logical.UpdateOperation, "validate", data{"token": creds.Data["token"]}).Data["key_version"] != 2 {
		t.Errorf("a new token has key_version %v, want 2", creds.Data["key_version"])
	}
	want := data{"valid": false, "error": "not signed by any key of this mount"}
	m.equal("the old key's token", want, m.ok(logical.UpdateOperation, "validate", data{"token": token, "audience": "a"}).Data)
	// The longest TTL of issued tokens survives.
	if got := m.storage.dump(t)["config"]; !strings.Contains(got, fmt.Sprintf(`"longest_ttl":%d`, 20*time.Hour)) {
		t.Errorf("storage has %s", got)
	}
}

func TestConfig_NoRandomness(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.breakRandom()
	_, err := m.request(logical.CreateOperation, "config", data{"proxy_url": testProxy})
	if err == nil || err.Error() != "generate secret: unable to fill provided buffer with entropy: unexpected EOF" {
		t.Errorf("got %v", err)
	}
	if got := m.storage.dump(t); len(got) != 0 {
		t.Errorf("storage has %v", got)
	}
}
