package atisecrets_test

import (
	"fmt"
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
		"issuer": "ati-orchestrator", "allowed_scopes": []string{}, "max_ttl": int64(0),
		"key_version": 1, "key_created_at": "2027-01-15T08:00:00Z", "key_fingerprint": testFingerprint,
	}
	m.equal("after creation", want, m.ok(logical.ReadOperation, "config", nil).Data)

	changes := data{
		"audience": "a", "accepted_audiences": "b,c, b", "issuer": "", "allowed_scopes": []any{"tool:github:*", "help"}, "max_ttl": "2h",
	}
	m.now = m.now.Add(time.Hour)
	m.ok(logical.UpdateOperation, "config", changes)
	for k, v := range (data{
		"audience": "a", "accepted_audiences": []string{"b", "c"}, "issuer": "", "allowed_scopes": []string{"tool:github:*", "help"}, "max_ttl": int64(7200),
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
			want = []string{fmt.Sprintf("proxy_url %q is not https: tokens cross the network in clear text", url)}
		}
		m.warnings(m.ok(logical.CreateOperation, "config", data{"proxy_url": url, "secret": testSecret}), want...)
		m.ok(logical.UpdateOperation, "config", data{"proxy_url": testProxy})
		moved := "tokens go to " + url + " from here on, whose proxy must hold version 1 of the key; whoever asks with proxy_url=https://ati.example.com is refused"
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
		`allowed_scopes "skill:x-*" lets no skill pass: the proxy matches skills by their exact names`)
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
	const text = `: must be at most 2048 letters, digits and ._~:/%+=,;!()[]-`
	m.refused(logical.UpdateOperation, "config", data{"proxy_url": url + "a"}, fmt.Sprintf("proxy_url %q%s", url+"a", text))
	for _, c := range "$&'\"`<>|\\^{}*" {
		u := "https://h/a" + string(c)
		m.refused(logical.UpdateOperation, "config", data{"proxy_url": u}, fmt.Sprintf("proxy_url %q%s", u, text))
	}
}

func TestConfig_Rejects(t *testing.T) {
	t.Parallel()
	const hint = ". One is made by: openssl rand -hex 32"
	const form = "a scope pattern is 1 to 255 letters, digits and _.:/@+~%=,()#- beginning with a letter, digit or _, then at most one \"*\""
	long := strings.Repeat("a", 129)
	many := make([]any, 501)
	for i := range many {
		many[i] = fmt.Sprintf("a%d", i)
	}
	cases := map[string]struct {
		data data
		want string
	}{
		"an empty secret":                  {data{"secret": ""}, "secret must be 64 hex characters; it has 0 characters" + hint},
		"a short secret":                   {data{"secret": testSecret[:63]}, "secret must be 64 hex characters; it has 63 characters" + hint},
		"a long secret":                    {data{"secret": testSecret + "00"}, "secret must be 64 hex characters; it has 66 characters" + hint},
		"a secret that is not hexadecimal": {data{"secret": "x" + testSecret[1:]}, "secret must be 64 hex characters; it has others than 0-9 and a-f" + hint},
		"a secret in quotes":               {data{"secret": `"` + testSecret + `"`}, "secret must be 64 hex characters; it has 66 characters" + hint},
		"no value from a template":         {data{"secret": "<no value>"}, "secret must be 64 hex characters; it has 10 characters" + hint},
		"a secret with a blank inside":     {data{"secret": testSecret[:31] + " " + testSecret[32:]}, "secret must be 64 hex characters; it has others than 0-9 and a-f" + hint},
		"a secret of zeros":                {data{"secret": strings.Repeat("0", 64)}, "secret has 1 different bytes; a random one has at least 8" + hint},
		"a secret of 7 different bytes":    {data{"secret": strings.Repeat("01020304050607", 5)[:64]}, "secret has 7 different bytes; a random one has at least 8" + hint},
		"another secret":                   {data{"secret": strings.Repeat("0123456789abcdef", 4)}, "secret is not the present one, and " + rotateHint},
		"another algorithm":                {data{"algorithm": "HS512"}, `algorithm "HS512": must be "HS256" or "ES256"`},
		"an empty algorithm":               {data{"algorithm": ""}, `algorithm "": must be "HS256" or "ES256"`},

		"an empty URL":                 {data{"proxy_url": ""}, `proxy_url "": the scheme must be http or https`},
		"a URL without a scheme":       {data{"proxy_url": "ati.example.com"}, `proxy_url "ati.example.com": the scheme must be http or https`},
		"another scheme":               {data{"proxy_url": "ftp://ati.example.com"}, `proxy_url "ftp://ati.example.com": the scheme must be http or https`},
		"a file":                       {data{"proxy_url": "file:///etc/passwd"}, `proxy_url "file:///etc/passwd": the scheme must be http or https`},
		"a script":                     {data{"proxy_url": "javascript:alert(1)"}, `proxy_url "javascript:alert(1)": the scheme must be http or https`},
		"a URL with user and password": {data{"proxy_url": "https://u:p@ati.example.com"}, "proxy_url must not have a user or password in it, and so no @"},
		"a URL with a query":           {data{"proxy_url": "https://ati.example.com?x=1"}, `proxy_url "https://ati.example.com?x=1": must not have a query or fragment`},
		"a URL with an empty query":    {data{"proxy_url": "https://ati.example.com?"}, `proxy_url "https://ati.example.com?": must not have a query or fragment`},
		"a URL with a fragment":        {data{"proxy_url": "https://ati.example.com#"}, `proxy_url "https://ati.example.com#": must not have a query or fragment`},
		"a URL without a host":         {data{"proxy_url": "https:///x"}, `proxy_url "https:///x": the host must be letters, digits, dots and inner hyphens, up to 63 between two dots, or an IP address; the port 1 to 65535, or none`},
		"a URL with port 0":            {data{"proxy_url": "https://h:0"}, `proxy_url "https://h:0": the host must be letters, digits, dots and inner hyphens, up to 63 between two dots, or an IP address; the port 1 to 65535, or none`},
		"a URL with too high a port":   {data{"proxy_url": "https://h:65536"}, `proxy_url "https://h:65536": the host must be letters, digits, dots and inner hyphens, up to 63 between two dots, or an IP address; the port 1 to 65535, or none`},
		"a URL with an empty port":     {data{"proxy_url": "https://h:/x"}, `proxy_url "https://h:/x": the host must be letters, digits, dots and inner hyphens, up to 63 between two dots, or an IP address; the port 1 to 65535, or none`},
		"a URL with two ports":         {data{"proxy_url": "https://h:80:80"}, `proxy_url "https://h:80:80": the host must be letters, digits, dots and inner hyphens, up to 63 between two dots, or an IP address; the port 1 to 65535, or none`},
		"a URL with a dash for a host": {data{"proxy_url": "https://-"}, `proxy_url "https://-": the host must be letters, digits, dots and inner hyphens, up to 63 between two dots, or an IP address; the port 1 to 65535, or none`},
		"a URL with an empty label":    {data{"proxy_url": "https://a..b"}, `proxy_url "https://a..b": the host must be letters, digits, dots and inner hyphens, up to 63 between two dots, or an IP address; the port 1 to 65535, or none`},
		"a URL with a list of hosts":   {data{"proxy_url": "https://a,b"}, `proxy_url "https://a,b": the host must be letters, digits, dots and inner hyphens, up to 63 between two dots, or an IP address; the port 1 to 65535, or none`},
		"a URL with two dots":          {data{"proxy_url": "https://h/.."}, `proxy_url "https://h/..": the path must be without "//", ".", ".." and needless %-encoding`},
		"a URL with a dot":             {data{"proxy_url": "https://h/a/./b"}, `proxy_url "https://h/a/./b": the path must be without "//", ".", ".." and needless %-encoding`},
		"a URL with two slashes":       {data{"proxy_url": "https://h//a"}, `proxy_url "https://h//a": the path must be without "//", ".", ".." and needless %-encoding`},
		"a URL with an encoded letter": {data{"proxy_url": "https://h/%41"}, `proxy_url "https://h/%41": the path must be without "//", ".", ".." and needless %-encoding`},
		"a URL with a long label":      {data{"proxy_url": "https://" + strings.Repeat("h", 64)}, `proxy_url "https://` + strings.Repeat("h", 64) + `": the host must be letters, digits, dots and inner hyphens, up to 63 between two dots, or an IP address; the port 1 to 65535, or none`},
		"a URL with small hex digits":  {data{"proxy_url": "https://h/%2f"}, `proxy_url "https://h/%2f": the path must be without "//", ".", ".." and needless %-encoding`},
		"a URL that hides a password":  {data{"proxy_url": "https://u:PASSWORD%40h"}, "proxy_url must be an http or https URL such as https://ati.example.com"},
		"a URL in a map":               {data{"proxy_url": data{"secret": testSecret}}, "proxy_url holds what looks like a key or a token, and is for neither"},
		"a secret in a duration":       {data{"max_ttl": data{"secret": testSecret}}, "max_ttl holds what looks like a key or a token, and is for neither"},
		"a secret in a list":           {data{"accepted_audiences": data{"secret": testSecret}}, "accepted_audiences holds what looks like a key or a token, and is for neither"},
		"a URL with a blank":           {data{"proxy_url": "https://h/a b"}, `proxy_url "https://h/a b": must be at most 2048 letters, digits and ._~:/%+=,;!()[]-`},
		"a URL with a line break":      {data{"proxy_url": "https://h\n"}, "proxy_url must be an http or https URL such as https://ati.example.com"},
		"a URL with a variable":        {data{"proxy_url": "https://h/${X}"}, `proxy_url "https://h/${X}": must be at most 2048 letters, digits and ._~:/%+=,;!()[]-`},
		"a URL of non-ASCII":           {data{"proxy_url": "https://hé"}, `proxy_url "https://hé": the host must be letters, digits, dots and inner hyphens, up to 63 between two dots, or an IP address; the port 1 to 65535, or none`},

		"an empty audience":           {data{"audience": ""}, `audience "": must be 1 to 128 letters, digits and ._:/@- beginning with a letter or digit`},
		"an audience with a comma":    {data{"audience": "a,b"}, `audience "a,b": must be 1 to 128 letters, digits and ._:/@- beginning with a letter or digit`},
		"an audience with a NBSP":     {data{"audience": "a\u00a0"}, `audience "a\u00a0": must be 1 to 128 letters, digits and ._:/@- beginning with a letter or digit`},
		"an audience with line break": {data{"audience": "a\n"}, `audience "a\n": must be 1 to 128 letters, digits and ._:/@- beginning with a letter or digit`},
		"a long audience":             {data{"audience": long}, fmt.Sprintf("audience %q: must be 1 to 128 letters, digits and ._:/@- beginning with a letter or digit", long)},
		"an issuer with a blank":      {data{"issuer": "a b"}, `issuer "a b": must be 1 to 128 letters, digits and ._:/@- beginning with a letter or digit`},
		"an empty accepted audience":  {data{"accepted_audiences": "a,,b"}, `accepted_audiences "": must be 1 to 128 letters, digits and ._:/@- beginning with a letter or digit`},
		"an accepted number":          {data{"accepted_audiences": []any{1}}, "accepted_audiences: item 1 is not a string"},
		"501 accepted audiences":      {data{"accepted_audiences": many}, "accepted_audiences has 501 items; at most 500 are allowed"},
		"501 allowed scopes":          {data{"allowed_scopes": many}, "allowed_scopes has 501 items; at most 500 are allowed"},
		"an allowed scope t*":         {data{"allowed_scopes": "t*"}, `allowed_scopes "t*": a "*" needs a colon before it, as in "tool:github:*", or stands alone`},
		"an allowed scope with NBSP":  {data{"allowed_scopes": []any{"tool:x\u00a0"}}, `allowed_scopes "tool:x\u00a0": ` + form},

		"a negative max_ttl":          {data{"max_ttl": "-1s"}, `max_ttl "-1s": must be whole seconds, as in "90s", "1h" or 3600, not negative, and less than 292 years`},
		"a max_ttl of half a second":  {data{"max_ttl": "500ms"}, `max_ttl "500ms": must be whole seconds, as in "90s", "1h" or 3600, not negative, and less than 292 years`},
		"an empty max_ttl":            {data{"max_ttl": ""}, `max_ttl "": must be whole seconds, as in "90s", "1h" or 3600, not negative, and less than 292 years`},
		"a max_ttl that is a word":    {data{"max_ttl": "long"}, `max_ttl "long": must be whole seconds, as in "90s", "1h" or 3600, not negative, and less than 292 years`},
		"a max_ttl beyond all bounds": {data{"max_ttl": "99999999999999999"}, `max_ttl "99999999999999999": must be whole seconds, as in "90s", "1h" or 3600, not negative, and less than 292 years`},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := configured(t, nil, nil)
			m.refused(logical.UpdateOperation, "config", c.data, c.want)
			if secret, ok := c.data["secret"].(string); ok && len(secret) > 10 && strings.Contains(c.want, secret) {
				t.Errorf("the error quotes the secret")
			}
		})
	}
	t.Run("a new config without proxy_url", func(t *testing.T) {
		t.Parallel()
		newMount(t).refused(logical.CreateOperation, "config", data{"secret": testSecret}, "proxy_url is required: the address of the ATI proxy, such as https://ati.example.com")
	})
	t.Run("does not store a rejected config", func(t *testing.T) {
		t.Parallel()
		m := newMount(t)
		m.refused(logical.CreateOperation, "config", data{"proxy_url": testProxy, "secret": "x"}, "secret must be 64 hex characters; it has 1 characters"+hint)
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
		"the key is forgotten here, but tokens signed with it pass the proxy until they expire or the proxy gets another key")
	if resp := m.ok(logical.ReadOperation, "config", nil); resp != nil {
		t.Errorf("a deleted config reads as %v", resp.Data)
	}
	if got := m.storage.dump(t)["config"]; strings.Contains(got, testSecret) {
		t.Errorf("storage still has the secret: %s", got)
	}
	m.refused(logical.ReadOperation, "creds/r", nil, "this mount has no config yet; write one with: vault write ati/config proxy_url=https://…")
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
	want := data{"valid": false, "error": "signed by no key of this mount"}
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
	if err == nil || err.Error() != "generate a signing secret: unable to fill provided buffer with entropy: unexpected EOF" {
		t.Errorf("got %v", err)
	}
	if got := m.storage.dump(t); len(got) != 0 {
		t.Errorf("storage has %v", got)
	}
}
