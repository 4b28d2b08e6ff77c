package atisecrets_test

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/logical"

	"vault-plugin-secrets-ati/ati"
	"vault-plugin-secrets-ati/internal/revocation"
)

const (
	unguardedWarning = "This mount has guarded=false: proxies without a guard accept revoked tokens until they expire."
	newTokensWarning = "The agent can get new tokens. If it should not, first remove its login or disable its role, and then revoke it."
	uncheckedWarning = "The engine keeps no list of tokens, so it cannot check that a token with this jti exists."

	jtiFormText = "must be the jti of a token, such as 5b1a9a1e-6f3f-7e4e-2a55-0c8f7f3f9d10, in a batch followed by a dot and a number"
)

// fullText returns the error of a full list.
func fullText(limit int) string {
	return fmt.Sprintf("this mount has %d revocations, the maximum for this path; to revoke all tokens, rotate the key with: vault write -f ati/config/rotate", limit)
}

// requestID returns the ID of the n-th request.
func requestID(n int) string { return fmt.Sprintf("5b1a9a1e-6f3f-7e4e-2a55-%012x", n) }

// withID makes a request with this ID, which must succeed.
func (m *mount) withID(id, path string, d data) *logical.Response {
	m.t.Helper()
	resp, err := m.b.HandleRequest(m.t.Context(), &logical.Request{
		ID: id, Operation: logical.UpdateOperation, Path: path, Data: d, Storage: m.storage, MountPoint: "ati/", DisplayName: m.displayName,
	})
	if err != nil || resp.IsError() {
		m.t.Fatalf("%s %v: %v %v", path, d, err, resp.Error())
	}
	return resp
}

// creds mints a token with this jti.
func (m *mount) creds(role, id string, d data) string {
	m.t.Helper()
	return m.withID(id, "creds/"+role, d).Data["token"].(string)
}

// generated returns a mount whose key Vault generated, with a role "r".
func generated(t testing.TB, config, role data) *mount {
	t.Helper()
	m := newMount(t)
	m.ok(logical.CreateOperation, "config", merge(data{"proxy_url": testProxy}, config))
	m.ok(logical.CreateOperation, "roles/r", merge(data{"tools": "web_search"}, role))
	return m
}

// revokedNames returns the names of the revocations.
func (m *mount) revokedNames() []string {
	m.t.Helper()
	keys, _ := m.ok(logical.ListOperation, "revoked/", nil).Data["keys"].([]string)
	return keys
}

// storedBuckets returns the number of storage entries with revocations.
func (m *mount) storedBuckets() int {
	m.t.Helper()
	keys, err := m.storage.Storage.List(m.t.Context(), "revoked/")
	if err != nil {
		m.t.Fatal(err)
	}
	return len(keys)
}

// checkRevoked checks what validate and a guard say about a token. revokedAt is empty for
// a token that is not revoked.
func (m *mount) checkRevoked(what, token, revokedAt string) {
	m.t.Helper()
	want := data{"valid": true}
	if revokedAt != "" {
		want = data{"valid": false, "error": "revoked at " + revokedAt}
		if m.ok(logical.ReadOperation, "config", nil).Data["guarded"] == false {
			want["error"] = "revoked at " + revokedAt + "; proxies without a guard still accept it"
		}
	}
	got := m.write("validate", data{"token": token, "scope": "tool:web_search"}).Data
	for field, value := range want {
		if got[field] != value {
			m.t.Errorf("%s: validate returns %s=%v, want %v", what, field, got[field], value)
		}
	}
	if got["allowed"] != want["valid"] {
		m.t.Errorf("%s: validate returns allowed=%v", what, got["allowed"])
	}
	p := new(poller)
	p.mustPoll(m)
	if p.accepts(m, token) != (revokedAt == "") {
		m.t.Errorf("%s: a guard accepts the token: %v", what, revokedAt != "")
	}
}

func TestRevoke(t *testing.T) {
	t.Parallel()
	const now = "2027-01-15T08:00:00Z"
	for _, guarded := range []bool{false, true} {
		warnings := func(specific ...string) []string {
			if guarded {
				return specific
			}
			return append(specific, unguardedWarning)
		}
		setup := func(t *testing.T) (m *mount, token string) {
			m = generated(t, data{"guarded": guarded}, data{"allowed_agent_ids": "sandbox:*"})
			return m, m.creds("r", requestID(1), data{"agent_id": "sandbox:1"})
		}
		t.Run(fmt.Sprintf("token, guarded=%v", guarded), func(t *testing.T) {
			m, token := setup(t)
			same := m.creds("r", requestID(2), data{"agent_id": "sandbox:1"})
			m.checkRevoked("before", token, "")
			resp := m.write("revoke", data{"token": "\n" + token + "\n"})
			m.equal("response", data{"jti": requestID(1), "revoked_at": now, "kept_until": "2027-01-15T09:01:01Z", "lease": false}, resp.Data)
			m.warnings(resp, warnings()...)
			m.checkRevoked("the token", token, now)
			m.checkRevoked("another token of the agent", same, "")
			if !strings.Contains(m.log.String(), "[WARN]  revoked: name=jti:"+requestID(1)+"\n") {
				t.Errorf("the log does not name the token:\n%s", m.log)
			}
		})
		t.Run(fmt.Sprintf("jti, guarded=%v", guarded), func(t *testing.T) {
			m, token := setup(t)
			same := m.creds("r", requestID(2), data{"agent_id": "sandbox:1"})
			resp := m.write("revoke", data{"jti": requestID(1)})
			m.equal("response", data{"jti": requestID(1), "revoked_at": now, "kept_until": "2027-01-15T09:01:01Z", "lease": false}, resp.Data)
			m.warnings(resp, warnings(uncheckedWarning)...)
			m.checkRevoked("the token", token, now)
			m.checkRevoked("another token of the agent", same, "")
		})
		t.Run(fmt.Sprintf("batch, guarded=%v", guarded), func(t *testing.T) {
			m, token := setup(t)
			ids := make([]string, 12)
			for i := range ids {
				ids[i] = fmt.Sprintf("sandbox:%d", i+1)
			}
			batch := m.withID(requestID(7), "batch/r", data{"agent_ids": ids}).Data["tokens"].(map[string]string)
			m.write("revoke", data{"jti": requestID(7) + ".1"})
			for i, id := range ids {
				m.checkRevoked(fmt.Sprintf("token %d of the batch", i+1), batch[id], map[bool]string{true: now}[i == 0])
			}
			m.write("revoke", data{"jti": requestID(7)})
			for id, token := range batch {
				m.checkRevoked(id+" of the batch", token, now)
			}
			m.checkRevoked("a token of another request", token, "")
			m.equal("revoked", []string{"jti:" + requestID(7), "jti:" + requestID(7) + ".1"}, m.revokedNames())
		})
		t.Run(fmt.Sprintf("agent_id, guarded=%v", guarded), func(t *testing.T) {
			m, token := setup(t)
			other := m.creds("r", requestID(2), data{"agent_id": "sandbox:2"})
			resp := m.write("revoke", data{"agent_id": "sandbox:1"})
			m.equal("response", data{"agent_id": "sandbox:1", "revoked_at": now, "kept_until": "2027-01-15T09:01:01Z", "lease": false}, resp.Data)
			m.warnings(resp, warnings(newTokensWarning)...)
			m.checkRevoked("the token", token, now)
			m.checkRevoked("a token of another agent", other, "")
			m.checkRevoked("a later token", m.creds("r", requestID(3), data{"agent_id": "sandbox:1"}), "")
		})
	}
}

// TestRevoke_LaterTokens checks that a token that is requested after the response is never
// covered, also if the request comes within the same second.
func TestRevoke_LaterTokens(t *testing.T) {
	t.Parallel()
	for _, path := range []string{"revoke", "revoke/r"} {
		for _, fraction := range []time.Duration{0, time.Nanosecond, 300 * time.Millisecond, time.Second - 1} {
			m := configured(t, nil, data{"allowed_agent_ids": "sandbox:*"})
			m.now = m.now.Add(fraction)
			m.b.SetSleep(func(d time.Duration) { m.now = m.now.Add(max(d-time.Millisecond, min(d, time.Millisecond))) }) // returns early
			before := m.creds("r", requestID(1), data{"agent_id": "sandbox:1"})
			m.write(path, data{"agent_id": "sandbox:1"})
			if got, want := m.now, time.Unix(1_800_000_001, 0); !got.Equal(want) {
				t.Errorf("%s at %v: the response comes at %v, want %v", path, fraction, got, want)
			}
			after := m.creds("r", requestID(2), data{"agent_id": "sandbox:1"})
			m.checkRevoked("a token of the same second, requested before", before, "2027-01-15T08:00:00Z")
			m.checkRevoked("a token requested after the response", after, "")
		}
	}
	// What concerns one token need not wait.
	m := configured(t, nil, nil)
	m.write("revoke", data{"jti": testID})
	m.write("revoke", data{"token": m.creds("r", requestID(1), nil)})
	m.equal("time", time.Unix(1_800_000_000, 0), m.now)
}

func TestRevokeRole(t *testing.T) {
	t.Parallel()
	const now = "2027-01-15T08:00:00Z"
	m := configured(t, data{"guarded": true}, data{"allowed_agent_ids": "sandbox:*"})
	m.ok(logical.CreateOperation, "roles/other", data{"tools": "web_search", "subject": "sandbox:1"})
	m.ok(logical.CreateOperation, "roles/fixed", data{"tools": "web_search", "subject": "sandbox:9"})
	tokens := []string{m.creds("r", requestID(1), data{"agent_id": "sandbox:1"}), m.creds("other", requestID(2), nil)}
	spared := m.creds("fixed", requestID(3), nil)
	m.refused(logical.UpdateOperation, "revoke/fixed", data{"agent_id": "sandbox:9"}, `agent_id "sandbox:9" is not allowed by role "fixed": allowed_agent_ids is empty`)
	m.refused(logical.UpdateOperation, "revoke/r", data{"agent_id": "root"}, `agent_id "root" is not allowed by role "r": allowed_agent_ids is [sandbox:*]`)
	m.refused(logical.UpdateOperation, "revoke/none", data{"agent_id": "sandbox:1"}, roleNotFound("none"))
	m.refused(logical.UpdateOperation, "revoke/r", nil, "agent_id is required: the subject whose tokens to revoke, such as agent_id=sandbox:1")
	m.refused(logical.UpdateOperation, "revoke/r", data{"agent_id": ""}, `parameter "agent_id" is empty; omit it or set a value`)
	m.refused(logical.UpdateOperation, "revoke/r", data{"agent_id": "a b"}, `agent_id "a b": `+idFormText)
	m.refused(logical.UpdateOperation, "revoke/r", data{"agent_id": "sandbox:1", "jti": testID}, `unknown parameter "jti"; supported parameters: agent_id`)
	m.refused(logical.UpdateOperation, "revoke/r", data{"agent_id": tokens[0]}, "agent_id appears to contain a key or token, which is not allowed in this parameter")

	m.write("roles/r", data{"disabled": true})
	resp := m.write("revoke/r", data{"agent_id": "sandbox:1"})
	m.equal("response", data{"agent_id": "sandbox:1", "revoked_at": now, "lease": false}, resp.Data)
	m.warnings(resp, newTokensWarning)
	m.checkRevoked("a token of the role, which is disabled", tokens[0], now)
	m.checkRevoked("a token of another role", tokens[1], now)
	m.checkRevoked("a token of another agent", spared, "")

	empty := newMount(t)
	empty.refused(logical.UpdateOperation, "revoke/r", data{"agent_id": "sandbox:1"}, "this mount has no config; create it with: vault write ati/config proxy_url=https://ati.example.com")
}

// TestRevoke_BadInput checks that each request with a mistake is a 400 with its reason,
// and changes nothing.
func TestRevoke_BadInput(t *testing.T) {
	t.Parallel()
	stranger := configured(t, data{"secret": greenSecret}, nil)
	foreign := stranger.creds("r", requestID(1), nil)
	m := configured(t, data{"accepted_audiences": "mcp"}, nil)
	token := m.creds("r", requestID(1), nil)
	key, err := ati.ParseSecret(testSecret)
	if err != nil {
		t.Fatal(err)
	}
	signed := func(jti string) string {
		token, err := key.Sign(&ati.Claims{Subject: "a", Audience: "ati-proxy", IssuedAt: m.now.Unix(), ExpiresAt: m.now.Unix() + 60, ID: jti})
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	const none, one = "revoke takes one of token, jti, and agent_id, not 0", "; revoke all tokens of its agent instead"
	for name, c := range map[string]struct {
		data data
		want string
	}{
		"none":                  {nil, none},
		"two":                   {data{"token": token, "jti": testID}, strings.Replace(none, "0", "2", 1)},
		"two of a token":        {data{"jti": testID, "agent_id": "a"}, strings.Replace(none, "0", "2", 1)},
		"three":                 {data{"token": token, "jti": testID, "agent_id": "a"}, strings.Replace(none, "0", "3", 1)},
		"unknown":               {data{"jti": testID, "reason": "x"}, `unknown parameter "reason"; supported parameters: agent_id, jti, token`},
		"null":                  {data{"jti": nil}, `parameter "jti" is null; omit it or set a value`},
		"empty token":           {data{"token": " \n"}, `parameter "token" is empty; omit it or set a value`},
		"empty jti":             {data{"jti": ""}, `parameter "jti" is empty; omit it or set a value`},
		"empty agent":           {data{"agent_id": ""}, `parameter "agent_id" is empty; omit it or set a value`},
		"list":                  {data{"jti": []any{testID}}, "jti must be a string, not a list; if the parameter was given more than once, give it once"},
		"number":                {data{"agent_id": 7}, "agent_id must be a string"},
		"not a token":           {data{"token": "hello"}, "malformed token: must have 3 segments separated by dots; found 1"},
		"token of another key":  {data{"token": foreign}, "not signed by any key of this mount"},
		"truncated token":       {data{"token": token[:len(token)-3]}, "not signed by any key of this mount"},
		"token without jti":     {data{"token": signed("")}, "the token has no jti, or one of another form" + one},
		"token with a long jti": {data{"token": signed(strings.Repeat("j", 129))}, "the token has no jti, or one of another form" + one},
		"token as jti":          {data{"jti": token}, "jti appears to contain a key or token, which is not allowed in this parameter"},
		"token as agent_id":     {data{"agent_id": token}, "agent_id appears to contain a key or token, which is not allowed in this parameter"},
		"agent with a space":    {data{"agent_id": "a b"}, `agent_id "a b": ` + idFormText},
		"agent with a star":     {data{"agent_id": "sandbox:*"}, `agent_id "sandbox:*": ` + idFormText},
		"long agent":            {data{"agent_id": strings.Repeat("a", 129)}, `agent_id "` + strings.Repeat("a", 129) + `": ` + idFormText},
	} {
		t.Run(name, func(t *testing.T) { m.refused(logical.UpdateOperation, "revoke", c.data, c.want) })
	}
	for _, jti := range []string{"x", strings.ToUpper(testID), testID[1:], testID + "0", testID + ".", testID + ".0", testID + ".01", testID + ".10000", testID + ".1.1", testID + "x", "jti:" + testID, "{" + testID + "}", strings.ReplaceAll(testID, "-", "")} {
		m.refused(logical.UpdateOperation, "revoke", data{"jti": jti}, fmt.Sprintf("jti %q: %s", jti, jtiFormText))
	}
	newMount(t).refused(logical.UpdateOperation, "revoke", data{"jti": testID}, "this mount has no config; create it with: vault write ati/config proxy_url=https://ati.example.com")
	m.equal("revoked", 0, len(m.revokedNames()))

	// What the mount no longer accepts can still be revoked.
	m.write("roles/r", data{"audience": "mcp"})
	other := m.creds("r", requestID(2), nil)
	m.write("roles/r", data{"audience": "ati-proxy"})
	m.write("config", data{"accepted_audiences": "", "issuer": "new"})
	m.write("revoke", data{"token": other})
	m.write("revoke", data{"token": signed("of-another/signer")})
	m.equal("revoked", []string{"jti:" + requestID(2), "jti:of-another/signer"}, m.revokedNames())

	// The proxy accepts a token through the 60th second after exp.
	m.now = m.now.Add(time.Hour + 60*time.Second - 1)
	m.write("revoke", data{"token": token})
	m.now = m.now.Add(1)
	m.refused(logical.UpdateOperation, "revoke", data{"token": token}, "token has expired: exp is 2027-01-15T09:00:00Z; there is nothing to revoke")
}

// TestRevoke_AllLiveVersions checks that a token of each live version can be revoked, and
// not one of a version that is gone.
func TestRevoke_AllLiveVersions(t *testing.T) {
	t.Parallel()
	m := generated(t, nil, nil)
	old := m.creds("r", requestID(1), nil)
	m.write("config/rotate/stage", data{"proxy_url": greenProxy, "algorithm": "ES256"})
	m.write("config/rotate/activate", nil)
	m.write("config/rotate/retire", nil)
	current := m.creds("r", requestID(2), nil)
	for _, token := range []string{old, current} {
		m.write("revoke", data{"token": token})
		m.checkRevoked("a token", token, "2027-01-15T08:00:00Z")
	}
	m.write("config/rotate", nil)
	m.refused(logical.UpdateOperation, "revoke", data{"token": old}, fmt.Sprintf(rotatedSinceText, "2027-01-15T08:00:00Z"))
}

// TestRevoke_Again checks that revoking again never revokes less.
func TestRevoke_Again(t *testing.T) {
	t.Parallel()
	t.Run("jti, then token", func(t *testing.T) {
		m := configured(t, nil, data{"ttl": "1m"})
		token := m.creds("r", requestID(1), nil)
		m.write("revoke", data{"jti": requestID(1)})
		if got, ok := m.write("revoke", data{"token": token}).Data["kept_until"]; ok {
			t.Errorf("kept until %v, although an imported key can sign another token with this jti", got)
		}
		m.now = m.now.Add(24 * time.Hour)
		m.periodic()
		m.equal("revoked", []string{"jti:" + requestID(1)}, m.revokedNames())
	})
	t.Run("jti, then lease", func(t *testing.T) {
		m := configured(t, data{"guarded": true}, data{"generate_lease": true})
		resp := m.withID(requestID(1), "creds/r", nil)
		m.write("revoke", data{"jti": requestID(1)})
		resp.Secret.IssueTime = m.now
		if err := m.revokeLease(resp.Secret); err != nil {
			t.Fatal(err)
		}
		m.equal("revoked", data{"revoked": []any{data{"jti": requestID(1), "revoked_at": "2027-01-15T08:00:00Z", "lease": false}}}, m.ok(logical.ReadOperation, "revoked/", nil).Data)
	})
	t.Run("agent after the clock was set back", func(t *testing.T) {
		m := generated(t, nil, data{"allowed_agent_ids": "*"})
		m.now = m.now.Add(30 * time.Second)
		token := m.creds("r", requestID(1), data{"agent_id": "a"})
		m.write("revoke", data{"agent_id": "a"})
		m.now = m.now.Add(-30 * time.Second)
		before := m.now
		m.write("revoke", data{"agent_id": "a"})
		m.checkRevoked("the token", token, "2027-01-15T08:00:30Z")
		if waited := m.now.Sub(before); waited > time.Second {
			t.Errorf("the second request took %v", waited)
		}
	})
	t.Run("later", func(t *testing.T) {
		m := generated(t, nil, data{"allowed_agent_ids": "*"})
		m.write("revoke", data{"agent_id": "a"})
		token := m.creds("r", requestID(1), data{"agent_id": "a"})
		m.write("revoke", data{"agent_id": "a"})
		m.checkRevoked("a token between the two", token, "2027-01-15T08:00:01Z")
		m.equal("revoked", []string{"agent_id:a"}, m.revokedNames())
	})
}

func TestRevoked_ListAndRead(t *testing.T) {
	t.Parallel()
	m := generated(t, nil, data{"allowed_agent_ids": "*"})
	m.equal("an empty list", data{"revoked": []any{}}, m.ok(logical.ReadOperation, "revoked/", nil).Data)
	m.write("revoke", data{"jti": requestID(2)})
	m.write("revoke", data{"jti": requestID(1)})
	m.write("revoke", data{"agent_id": "sandbox:1"})
	const now = "2027-01-15T08:00:00Z"
	all := []any{
		data{"agent_id": "sandbox:1", "revoked_at": now, "kept_until": "2027-01-15T09:01:01Z", "lease": false},
		data{"jti": requestID(1), "revoked_at": now, "kept_until": "2027-01-15T09:01:01Z", "lease": false},
		data{"jti": requestID(2), "revoked_at": now, "kept_until": "2027-01-15T09:01:01Z", "lease": false},
	}
	names := []string{"agent_id:sandbox:1", "jti:" + requestID(1), "jti:" + requestID(2)}
	for range 2 {
		m.equal("revoked", data{"revoked": all}, m.ok(logical.ReadOperation, "revoked/", nil).Data)
		m.equal("names", names, m.revokedNames())
		page := data{"after": "agent_id:sandbox:1", "limit": "1"}
		m.equal("a page of names", names[1:2], m.ok(logical.ListOperation, "revoked/", page).Data["keys"])
		m.equal("a page", data{"revoked": all[1:2]}, m.ok(logical.ReadOperation, "revoked/", page).Data)
		m.b = m.newBackend()
	}
}

// TestRevoke_Retention checks when a revocation is forgotten: never before the last token
// that it concerns has expired, and by the next purge after that.
func TestRevoke_Retention(t *testing.T) {
	t.Parallel()
	const ever = 50 * 365 * 24 * time.Hour
	at := func(d time.Duration) func(*mount) {
		return func(m *mount) { m.now = time.Unix(1_800_000_000, 0).Add(d) }
	}
	rotate := func(step string, d data) func(*mount) {
		return func(m *mount) { m.write("config/rotate"+step, d) }
	}
	stage, activate, retire := rotate("/stage", data{"proxy_url": greenProxy}), rotate("/activate", nil), rotate("/retire", nil)
	drop := func(m *mount) { m.ok(logical.DeleteOperation, "config/rotate/stage", nil) }
	recreate := func(secret string) func(*mount) {
		return func(m *mount) {
			m.ok(logical.DeleteOperation, "config", nil)
			m.periodic()
			d := data{"proxy_url": testProxy}
			if secret != "" {
				d["secret"] = secret
			}
			m.ok(logical.CreateOperation, "config", d)
		}
	}
	// Role r allows up to 2 hours. Tokens are minted for 1 hour.
	for name, c := range map[string]struct {
		secret string // imported, or empty
		before []func(*mount)
		by     string // token, jti or agent_id
		kept   []func(*mount)
		gone   func(*mount)
	}{
		"token":                               {"", nil, "token", []func(*mount){at(time.Hour + 61*time.Second - 1)}, at(time.Hour + 61*time.Second)},
		"token of an imported key":            {testSecret, nil, "token", []func(*mount){at(time.Hour + 61*time.Second - 1)}, at(time.Hour + 61*time.Second)},
		"jti":                                 {"", nil, "jti", []func(*mount){at(2*time.Hour + 61*time.Second - 1)}, at(2*time.Hour + 61*time.Second)},
		"agent_id":                            {"", nil, "agent_id", []func(*mount){at(2*time.Hour + 61*time.Second - 1)}, at(2*time.Hour + 61*time.Second)},
		"after the role was shortened":        {"", []func(*mount){func(m *mount) { m.write("roles/r", data{"max_ttl": "1h"}) }}, "jti", []func(*mount){at(2*time.Hour + 61*time.Second - 1)}, at(2*time.Hour + 61*time.Second)},
		"imported, until rotation":            {testSecret, nil, "jti", []func(*mount){at(ever)}, rotate("", nil)},
		"imported, an agent":                  {testSecret, nil, "agent_id", []func(*mount){at(ever)}, rotate("", nil)},
		"imported, until replaced":            {testSecret, nil, "jti", []func(*mount){at(ever), rotate("", data{"secret": greenSecret})}, rotate("", nil)},
		"imported, until it has expired":      {testSecret, nil, "jti", []func(*mount){stage, activate, at(ever), retire, at(ever + 2*time.Hour + 61*time.Second - 1)}, at(ever + 2*time.Hour + 61*time.Second)},
		"imported, rolled back":               {testSecret, nil, "jti", []func(*mount){stage, activate, retire, at(time.Hour), rotate("/rollback", nil), at(ever)}, rotate("", nil)},
		"imported, pending":                   {"", []func(*mount){rotate("/stage", data{"secret": greenSecret, "proxy_url": greenProxy})}, "jti", []func(*mount){at(ever)}, drop},
		"imported, pending, early":            {"", []func(*mount){rotate("/stage", data{"secret": greenSecret, "proxy_url": greenProxy})}, "jti", []func(*mount){drop, at(2*time.Hour + 61*time.Second - 1)}, at(2*time.Hour + 61*time.Second)},
		"imported later":                      {"", nil, "jti", []func(*mount){rotate("/stage", data{"secret": greenSecret, "proxy_url": greenProxy}), activate, at(2*time.Hour + 61*time.Second - 1)}, at(2*time.Hour + 61*time.Second)},
		"rotated":                             {"", nil, "jti", []func(*mount){rotate("", nil), at(2*time.Hour + 61*time.Second - 1)}, at(2*time.Hour + 61*time.Second)},
		"rotated, a token":                    {"", nil, "token", []func(*mount){rotate("", nil), at(time.Hour + 61*time.Second - 1)}, at(time.Hour + 61*time.Second)},
		"rotated, an agent":                   {"", nil, "agent_id", []func(*mount){rotate("", nil), at(2*time.Hour + 61*time.Second - 1)}, at(2*time.Hour + 61*time.Second)},
		"rotated, with a pending version":     {"", []func(*mount){stage}, "jti", []func(*mount){rotate("", nil)}, at(2*time.Hour + 61*time.Second)},
		"rotated to an imported key":          {"", nil, "jti", []func(*mount){rotate("", data{"secret": testSecret}), at(2*time.Hour + 61*time.Second - 1)}, at(2*time.Hour + 61*time.Second)},
		"activated":                           {"", nil, "jti", []func(*mount){stage, activate, retire, at(2*time.Hour + 61*time.Second - 1)}, at(2*time.Hour + 61*time.Second)},
		"config deleted and imported again":   {testSecret, nil, "jti", []func(*mount){recreate(testSecret), at(ever)}, rotate("", nil)},
		"config deleted, a token":             {testSecret, nil, "token", []func(*mount){recreate(testSecret), at(time.Hour + 61*time.Second - 1)}, at(time.Hour + 61*time.Second)},
		"config deleted, and a key generated": {testSecret, nil, "jti", []func(*mount){recreate(""), at(2*time.Hour + 61*time.Second - 1)}, at(2*time.Hour + 61*time.Second)},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMount(t)
			config := data{"proxy_url": testProxy}
			if c.secret != "" {
				config["secret"] = c.secret
			}
			m.ok(logical.CreateOperation, "config", config)
			m.ok(logical.CreateOperation, "roles/r", data{"tools": "web_search", "allowed_agent_ids": "*", "max_ttl": "2h"})
			token := m.creds("r", requestID(1), data{"agent_id": "a"})
			for _, step := range c.before {
				step(m)
			}
			d := data{c.by: map[string]any{"token": token, "jti": requestID(1), "agent_id": "a"}[c.by]}
			imported := c.by != "token" && (c.secret != "" || strings.HasPrefix(name, "imported, pending"))
			if until, ok := m.write("revoke", d).Data["kept_until"]; ok == imported {
				t.Errorf("kept_until is %v", until)
			}
			for i, step := range c.kept {
				step(m)
				m.periodic()
				if len(m.revokedNames()) != 1 {
					t.Fatalf("forgotten after step %d", i)
				}
				m.b = m.newBackend()
			}
			c.gone(m)
			m.periodic()
			m.equal("names", 0, len(m.revokedNames()))
			m.equal("storage entries", 0, m.storedBuckets())
			m.b = m.newBackend()
			m.equal("names after a restart", 0, len(m.revokedNames()))
		})
	}
}

// TestRevoke_ConfigCreatedAgain checks that a token stays revoked when the config is
// deleted and its secret is imported again.
func TestRevoke_ConfigCreatedAgain(t *testing.T) {
	t.Parallel()
	for _, by := range []string{"token", "jti", "agent_id"} {
		m := configured(t, nil, nil)
		token := m.creds("r", requestID(1), nil)
		m.write("revoke", data{by: map[string]any{"token": token, "jti": requestID(1), "agent_id": "token"}[by]})
		m.ok(logical.DeleteOperation, "config", nil)
		m.periodic()
		m.ok(logical.CreateOperation, "config", data{"proxy_url": testProxy, "secret": testSecret})
		m.periodic()
		m.checkRevoked("by "+by, token, "2027-01-15T08:00:00Z")
	}
}

// TestRevoke_PurgeIsLimited checks that one purge writes at most 256 buckets, and that
// repeated purges leave nothing.
func TestRevoke_PurgeIsLimited(t *testing.T) {
	t.Parallel()
	m := generated(t, nil, nil)
	m.fillRevoked(3000, revocation.Entry{ExpiresAt: m.now.Unix() + 60})
	want := m.storedBuckets()
	m.periodic()
	m.equal("storage entries before the end", want, m.storedBuckets())
	for m.now = m.now.Add(time.Minute); want > 0; {
		m.periodic()
		want = max(want-256, 0)
		m.equal("storage entries", want, m.storedBuckets())
	}
	m.equal("names", 0, len(m.revokedNames()))
}

// TestRevoke_PurgeKeepsLiveEntries checks that of a bucket only what has expired is
// dropped.
func TestRevoke_PurgeKeepsLiveEntries(t *testing.T) {
	t.Parallel()
	m := generated(t, nil, nil)
	m.fillRevoked(5_000, revocation.Entry{ExpiresAt: m.now.Unix() + 60})
	m.fillRevoked(5_000, revocation.Entry{ExpiresAt: m.now.Unix() + 120, Subject: "a"})
	m.now = m.now.Add(time.Minute)
	for range revocation.Buckets/256 + 1 {
		m.periodic()
	}
	for range 2 {
		names := m.revokedNames()
		if len(names) != 5_000 || slices.ContainsFunc(names, func(name string) bool { return !strings.HasPrefix(name, "agent_id:a") }) {
			t.Errorf("%d names are left", len(names))
		}
		m.b = m.newBackend()
	}
}

// fillRevoked stores n revocations that differ in their names, and restarts the backend.
func (m *mount) fillRevoked(n int, model revocation.Entry) {
	m.t.Helper()
	buckets := map[int][]revocation.Entry{}
	generation := m.now.UnixMicro()
	for i := range n {
		e := model
		if e.Subject != "" {
			e.Subject += fmt.Sprint(i)
		} else {
			e.JTI += requestID(i)
		}
		e.RevokedAt, e.KeyVersion, e.Generation = m.now.Unix(), 1, generation+int64(i)
		buckets[i%revocation.Buckets] = append(buckets[i%revocation.Buckets], e)
	}
	type stored struct {
		StorageVersion int                `json:"storage_version"`
		Entries        []revocation.Entry `json:"entries"`
	}
	for bucket, entries := range buckets {
		key := fmt.Sprintf("revoked/%03x", bucket)
		if old, err := m.storage.Storage.Get(m.t.Context(), key); err != nil {
			m.t.Fatal(err)
		} else if old != nil {
			var before stored
			if err := old.DecodeJSON(&before); err != nil {
				m.t.Fatal(err)
			}
			entries = append(before.Entries, entries...)
		}
		m.put(key, stored{1, entries})
	}
	m.b = m.newBackend()
}

// TestRevoke_Limits checks that a mount has at most 100,000 live revocations, of which
// revoke/<role> may make 90,000, and which count.
func TestRevoke_Limits(t *testing.T) {
	t.Parallel()
	m := configured(t, data{"guarded": true}, data{"allowed_agent_ids": "*", "generate_lease": true})
	live := m.now.Unix() + 3661
	refused := func(path string, d data, limit int) { // m.refused would compare all of storage
		t.Helper()
		puts := len(m.storage.order)
		resp, err := m.request(logical.UpdateOperation, path, d)
		if err != nil || !resp.IsError() || resp.Error().Error() != fullText(limit) || len(m.storage.order) != puts {
			t.Errorf("%s %v: %v, %v", path, d, resp, err)
		}
	}
	m.fillRevoked(500, revocation.Entry{Subject: "expired", ExpiresAt: m.now.Unix()})
	m.fillRevoked(500, revocation.Entry{JTI: "lease", ExpiresAt: live, Lease: true})
	m.fillRevoked(89_999, revocation.Entry{ExpiresAt: live})
	m.write("revoke/r", data{"agent_id": "a"})
	refused("revoke/r", data{"agent_id": "b"}, 90_000)
	m.write("revoke/r", data{"agent_id": "a"}) // again
	m.write("revoke", data{"agent_id": "b"})
	m.write("revoke/r", data{"agent_id": "b"})

	m.fillRevoked(9_999, revocation.Entry{Subject: "s", ExpiresAt: live})
	lease := m.withID(requestID(1_000_000), "creds/r", nil).Secret
	token := m.creds("r", requestID(1_000_001), nil)
	for _, d := range []data{{"agent_id": "c"}, {"jti": testID}, {"token": token}, {"agent_id": "expired7"}} {
		refused("revoke", d, 100_000)
	}
	m.write("revoke", data{"agent_id": "a"})
	m.write("revoke", data{"jti": requestID(0)})
	lease.IssueTime = m.now
	if err := m.revokeLease(lease); err != nil {
		t.Errorf("with a full list, a lease is not revoked: %v", err)
	}
	m.write("revoke", data{"jti": requestID(1_000_000)}) // of the lease: it is there
	refused("revoke", data{"agent_id": "c"}, 100_000)

	other := m.otherNode()
	other.now = time.Unix(live, 0) // those of storage have expired, and no purge has run
	other.write("revoke", data{"agent_id": "c"})
	other.write("revoke/r", data{"agent_id": "d"})

	m.write("config/rotate", nil) // as the error says
	m.write("revoke", data{"agent_id": "c"})
	m.write("revoke/r", data{"agent_id": "d"})
}

func (m *mount) revokeLease(s *logical.Secret) error {
	_, err := m.b.HandleRequest(m.t.Context(), &logical.Request{Operation: logical.RevokeOperation, Path: "creds/r", Secret: s, Storage: m.storage, MountPoint: "ati/"})
	return err
}

func TestLease_RevokesToken(t *testing.T) {
	t.Parallel()
	for _, format := range []string{"json", "env"} {
		m := generated(t, data{"guarded": true}, data{"generate_lease": true, "max_ttl": "2h"})
		d := data{}
		if format == "env" {
			d["format"] = format
		}
		leased := func(n int) (string, *logical.Secret) {
			resp := m.withID(requestID(n), "creds/r", d)
			resp.Secret.IssueTime = m.now
			token, _ := resp.Data["token"].(string)
			if format == "env" {
				token, _ = resp.Data[ati.EnvSessionToken].(string)
			}
			return token, resp.Secret
		}
		token, lease := leased(1)
		spared, _ := leased(2)
		m.now = m.now.Add(lease.TTL - 1)
		if err := m.revokeLease(lease); err != nil {
			t.Fatal(err)
		}
		m.checkRevoked("the token", token, "2027-01-15T08:59:58Z")
		m.checkRevoked("another token", spared, "")
		m.equal("revoked", data{"revoked": []any{data{"jti": requestID(1), "revoked_at": "2027-01-15T08:59:58Z", "kept_until": "2027-01-15T09:01:01Z", "lease": true}}}, m.ok(logical.ReadOperation, "revoked/", nil).Data)
		if strings.Contains(m.log.String(), "remains valid") {
			t.Errorf("log: %s", m.log)
		}
	}
}

// TestLease_EndRecordsNothing checks that leases that run out add no revocation.
func TestLease_EndRecordsNothing(t *testing.T) {
	t.Parallel()
	m := configured(t, data{"guarded": true}, data{"generate_lease": true})
	var leases []*logical.Secret
	for i := range 1000 {
		s := m.withID(requestID(i), "creds/r", nil).Secret
		s.IssueTime = m.now.Add(time.Duration(i) * time.Millisecond) // when Vault has the response
		leases = append(leases, s)
	}
	m.log.Reset()
	before := m.storage.dump(t)
	for i, s := range leases {
		m.now = s.IssueTime.Add(s.TTL + time.Duration(i%3)*time.Second)
		if err := m.revokeLease(s); err != nil {
			t.Fatal(err)
		}
	}
	m.equal("storage", before, m.storage.dump(t))
	m.equal("log", "", m.log.String())
}

func TestLease_UnguardedRecordsNothing(t *testing.T) {
	t.Parallel()
	m := configured(t, nil, data{"generate_lease": true})
	resp := m.withID(requestID(1), "creds/r", nil)
	resp.Secret.IssueTime = m.now
	before := m.storage.dump(t)
	if err := m.revokeLease(resp.Secret); err != nil {
		t.Fatal(err)
	}
	m.equal("storage", before, m.storage.dump(t))
	m.checkRevoked("the token", resp.Data["token"].(string), "")
	if want := "[WARN]  lease revoked, but its token remains valid until it expires: path=creds/r jti=" + requestID(1) + " expires=2027-01-15T09:00:00Z\n"; !strings.Contains(m.log.String(), want) {
		t.Errorf("log: %s", m.log)
	}
	// Without a config, there is no guard that could enforce it.
	m.write("config", data{"guarded": true})
	m.ok(logical.DeleteOperation, "config", nil)
	before = m.storage.dump(t)
	if err := m.revokeLease(resp.Secret); err != nil {
		t.Fatal(err)
	}
	m.equal("storage", before, m.storage.dump(t))
}

// TestLease_RevocationFails checks that a storage fault is an error, after which Vault
// repeats the request, and that the token is then revoked.
func TestLease_RevocationFails(t *testing.T) {
	t.Parallel()
	for _, late := range []bool{false, true} {
		for call := int64(1); ; call++ {
			m := configured(t, data{"guarded": true}, data{"generate_lease": true})
			resp := m.withID(requestID(1), "creds/r", nil)
			resp.Secret.IssueTime = m.now
			m.b = m.newBackend()
			m.storage.failNth(call, late)
			err := m.revokeLease(resp.Secret)
			m.storage.failNth(0, false)
			if m.storage.failed == "" {
				if call < 4 {
					t.Errorf("a revocation makes %d storage calls", call-1)
				}
				break
			}
			if !errors.Is(err, errStorage) {
				t.Errorf("with a fault in %s: %v", m.storage.failed, err)
			}
			if err := m.revokeLease(resp.Secret); err != nil {
				t.Error(err)
			}
			m.checkRevoked("the token", resp.Data["token"].(string), "2027-01-15T08:00:00Z")
			m.b = m.newBackend()
			m.checkRevoked("the token after a restart", resp.Data["token"].(string), "2027-01-15T08:00:00Z")
		}
	}
}

// TestRevoke_Invalidation checks that a node that becomes active knows what another node
// revoked, from the invalidation or because it has become active.
func TestRevoke_Invalidation(t *testing.T) {
	t.Parallel()
	m := configured(t, nil, nil)
	token := m.creds("r", requestID(1), nil)
	other, active := m.otherNode(), m.otherNode()
	for _, node := range []*mount{other, active} {
		node.checkRevoked("before", token, "")
	}
	m.write("revoke", data{"jti": requestID(1)})
	for key := range m.storage.dump(t) {
		if strings.HasPrefix(key, "revoked/") {
			other.b.InvalidateKey(t.Context(), key)
		}
	}
	other.checkRevoked("after the invalidation", token, "2027-01-15T08:00:00Z")
	active.setState(standby, false)
	if _, err := active.request(logical.ReadOperation, "guard", nil); !errors.Is(err, logical.ErrReadOnly) {
		t.Errorf("a standby answers guard: %v", err)
	}
	active.setState(primary, false)
	active.checkRevoked("after the failover", token, "2027-01-15T08:00:00Z")
}

// TestRevoke_StorageFormat checks that a newer storage version is an error, and not taken
// for an empty list.
func TestRevoke_StorageFormat(t *testing.T) {
	t.Parallel()
	m := configured(t, nil, nil)
	token := m.creds("r", requestID(1), nil)
	m.put("revoked/000", data{"storage_version": 2, "entries": []any{}})
	m.b = m.newBackend()
	const want = "read revocations: storage entry has version 2, but this plugin supports versions up to 1; use the plugin version that wrote it, or a newer one"
	m.failed(logical.ReadOperation, "guard", nil, want)
	m.failed(logical.UpdateOperation, "validate", data{"token": token}, want)
	m.failed(logical.UpdateOperation, "revoke", data{"jti": testID}, want)
	m.ok(logical.UpdateOperation, "config/rotate", nil) // which ends all tokens
	m.ok(logical.ReadOperation, "creds/r", nil)
}

// TestRevoked_Memory checks that 100,000 revocations take less than 50 MB, logs how long
// it takes to load them, and checks that a revocation then costs as many storage calls as
// with none.
func TestRevoked_Memory(t *testing.T) { // not in parallel: it measures the heap
	revoke := func(m *mount, n int) int64 {
		m.ok(logical.ReadOperation, "revoked/", data{"limit": 1})
		before := m.storage.calls.Load()
		m.write("revoke", data{"jti": requestID(n)})
		return m.storage.calls.Load() - before
	}
	few := revoke(generated(t, nil, nil), 7)
	m := generated(t, nil, nil)
	m.fillRevoked(99_999, revocation.Entry{ExpiresAt: m.now.Unix() + 3661})
	heap := func() int64 {
		var stats runtime.MemStats
		runtime.GC()
		runtime.GC()
		runtime.ReadMemStats(&stats)
		return int64(stats.HeapAlloc)
	}
	before := heap()
	begin := time.Now()
	m.ok(logical.ReadOperation, "guard", data{"since": m.now.UnixMicro() + 99_998})
	took, used := time.Since(begin), heap()-before
	t.Logf("100,000 revocations: loaded in %v, %.1f MB", took, float64(used)/1e6)
	if used > 50e6 {
		t.Errorf("100,000 revocations take %d bytes", used)
	}
	m.equal("storage calls of a revocation", few, revoke(m, 1_000_000))
	if got := len(m.revokedNames()); got != 100_000 {
		t.Errorf("%d revocations", got)
	}
}

// TestRevoke_Buckets checks that revocations are spread evenly over storage entries, and
// that a repeated one stays in its entry.
func TestRevoke_Buckets(t *testing.T) {
	t.Parallel()
	m := generated(t, nil, nil)
	for i := range 4_000 {
		m.do(t, logical.UpdateOperation, "revoke", data{"jti": requestID(i % 2_000)})
	}
	most, all := 0, 0
	for key, entry := range m.storage.dump(t) {
		if strings.HasPrefix(key, "revoked/") {
			n := strings.Count(entry, `"jti"`)
			most, all = max(most, n), all+n
		}
	}
	if most > 6 || all != 2_000 {
		t.Errorf("%d revocations, of which one entry has %d", all, most)
	}
}
