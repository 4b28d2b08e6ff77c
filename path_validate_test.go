package atisecrets_test

import (
	"encoding/base64"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/vault/sdk/logical"

	"vault-plugin-secrets-ati/ati"
)

func TestValidate_ReturnsClaims(t *testing.T) {
	t.Parallel()
	m := configured(t, nil, data{"rate": data{"*": "5/s"}, "job_id": "j", "sandbox_id": "s"})
	token := m.ok(logical.ReadOperation, "creds/r", nil).Data["token"].(string)
	want := data{
		"valid": true, "key_version": 1, "sub": "token", "aud": "ati-proxy", "iat": int64(1_800_000_000), "exp": int64(1_800_003_600),
		"scope": "tool:web_search", "iss": "ati-orchestrator", "jti": testID, "job_id": "j", "sandbox_id": "s", "ati_version": 1, "rate": map[string]string{"*": "5/s"},
	}
	for _, given := range []string{token, "\n " + token + "\u00a0\n"} {
		if diff := cmp.Diff(want, m.ok(logical.UpdateOperation, "validate", data{"token": given}).Data); diff != "" {
			t.Errorf("response (-want +got):\n%s", diff)
		}
	}
	// Without the parameter audience, each of the config's audiences is accepted.
	m.ok(logical.UpdateOperation, "config", data{"accepted_audiences": "x,mcp"})
	m.ok(logical.UpdateOperation, "roles/r", data{"audience": "mcp"})
	other := m.ok(logical.ReadOperation, "creds/r", nil).Data["token"]
	if got := m.ok(logical.UpdateOperation, "validate", data{"token": other}).Data; got["valid"] != true || got["aud"] != "mcp" {
		t.Errorf("a token for an accepted audience: %v", got)
	}
	if got := m.ok(logical.UpdateOperation, "inspect", data{"token": other}).Data["exp"]; got != int64(1_800_003_600) {
		t.Errorf("inspect has exp as %T %v", got, got)
	}
	// Claims that the token lacks are left out.
	key, err := ati.ParseSecret(testSecret)
	if err != nil {
		t.Fatal(err)
	}
	bare, err := key.Sign(&ati.Claims{Subject: "a", Audience: "ati-proxy", IssuedAt: m.now.Unix(), ExpiresAt: m.now.Unix() + 1})
	if err != nil {
		t.Fatal(err)
	}
	m.ok(logical.UpdateOperation, "config", data{"issuer": ""})
	want = data{"valid": true, "key_version": 1, "sub": "a", "aud": "ati-proxy", "iat": int64(1_800_000_000), "exp": int64(1_800_000_001), "scope": ""}
	m.equal("response", want, m.ok(logical.UpdateOperation, "validate", data{"token": bare}).Data)
}

// TestValidate_ReturnsReason checks that an invalid token is a result, and not a
// failed request.
func TestValidate_ReturnsReason(t *testing.T) {
	t.Parallel()
	stranger := configured(t, data{"secret": strings.Repeat("0123456789abcdef", 4)}, nil)
	other := stranger.ok(logical.ReadOperation, "creds/r", nil).Data["token"]
	m := configured(t, data{"accepted_audiences": "mcp"}, nil)
	token := m.ok(logical.ReadOperation, "creds/r", nil).Data["token"].(string)
	for name, c := range map[string]struct {
		after time.Duration
		data  data
		want  string
	}{
		"not a token":            {0, data{"token": "hello"}, "malformed token: must have 3 segments separated by dots; found 1"},
		"of another key":         {0, data{"token": other}, "not signed by any key of this mount"},
		"truncated":              {0, data{"token": token[:len(token)-3]}, "not signed by any key of this mount"},
		"with a line break":      {0, data{"token": token[:9] + "\n" + token[9:]}, "malformed token: segment 1 contains a line break"},
		"with quotes":            {0, data{"token": `"` + token + `"`}, "malformed token: is enclosed in quotes; remove them (Vault's CLI adds them with VAULT_FORMAT=json)"},
		"with Bearer":            {0, data{"token": "bearer " + token}, `malformed token: begins with "Bearer "; remove it`},
		"with a BOM":             {0, data{"token": "\ufeff" + token}, "malformed token: begins with a byte order mark (BOM); remove it"},
		"expired":                {time.Hour + 60*time.Second, data{}, "token has expired: exp is 2027-01-15T09:00:00Z"},
		"expired without leeway": {time.Hour, data{"leeway": 0}, "token has expired: exp is 2027-01-15T09:00:00Z"},
		"from the future":        {-61 * time.Second, data{}, "token is not valid yet: iat is 2027-01-15T08:00:00Z"},
		"for another audience":   {0, data{"audience": "mcp"}, `audience is not accepted: aud is "ati-proxy", not one of ["mcp"]`},
		"of another issuer":      {0, data{"issuer": "x"}, `issuer is not accepted: iss is "ati-orchestrator", not "x"`},
	} {
		t.Run(name, func(t *testing.T) {
			m := m.otherNode()
			m.now = m.now.Add(c.after)
			d := data{"token": token, "scope": "tool:web_search"}
			for k, v := range c.data {
				d[k] = v
			}
			want := data{"valid": false, "error": c.want, "allowed": false}
			if name != "not a token" && name != "of another key" && name != "truncated" && !strings.HasPrefix(name, "with ") {
				want["key_version"] = 1 // one of this mount's keys has signed it
			}
			if diff := cmp.Diff(want, m.ok(logical.UpdateOperation, "validate", d).Data); diff != "" {
				t.Errorf("response (-want +got):\n%s", diff)
			}
		})
	}
	for name, c := range map[string]struct {
		data data
		want string
	}{
		"no token":          {nil, "token is required in the request body"},
		"an empty token":    {data{"token": " \n"}, emptyTokenText},
		"too much leeway":   {data{"token": token, "leeway": "61s"}, "leeway 1m1s: must be at most 1m0s, the leeway of the proxy"},
		"an empty audience": {data{"token": token, "audience": ""}, `parameter "audience" is empty; omit it or set a value`},
		"an empty issuer":   {data{"token": token, "issuer": ""}, `parameter "issuer" is empty; omit it or set a value`},
		"an empty scope":    {data{"token": token, "scope": ""}, `parameter "scope" is empty; omit it or set a value`},
	} {
		t.Run(name, func(t *testing.T) { m.refused(logical.UpdateOperation, "validate", c.data, c.want) })
	}
}

// TestValidate_Scope checks that allowed is false once exp has passed, as at the
// proxy, which checks scopes without leeway, although the token is valid for 60 more
// seconds.
func TestValidate_Scope(t *testing.T) {
	t.Parallel()
	m := configured(t, nil, data{"tools": "github_*"})
	token := m.ok(logical.ReadOperation, "creds/r", nil).Data["token"]
	ask := func(scope string) [2]any {
		d := m.ok(logical.UpdateOperation, "validate", data{"token": token, "scope": scope}).Data
		return [2]any{d["valid"], d["allowed"]}
	}
	for scope, want := range map[string]bool{"tool:github:x": true, "tool:github_x": true, "tool:shell": false, "skill:x": false, "help": false} {
		if got := ask(scope); got != [2]any{true, want} {
			t.Errorf("%s: %v, want %v", scope, got, want)
		}
	}
	m.now = m.now.Add(time.Hour)
	if got := ask("tool:github:x"); got != [2]any{true, true} {
		t.Errorf("at exp: %v", got)
	}
	m.now = m.now.Add(time.Second)
	if got := ask("tool:github:x"); got != [2]any{true, false} {
		t.Errorf("a second after exp: %v", got)
	}
}

// TestInspect_KeepsNumbersExact checks that a number that a float64 would change is
// returned as text: Vault converts each number on the way from the plugin.
func TestInspect_KeepsNumbersExact(t *testing.T) {
	t.Parallel()
	m := configured(t, nil, nil)
	encode := base64.RawURLEncoding.EncodeToString
	payload := `{"sub":9007199254740993,"aud":["x",1e400],"iat":-1.5,"exp":1e400,"scope":12345678901234567890,"iss":1700000000,"jti":1.0,
		"ati":{"v":1e400,"rate":{"a":[1e999,7]}},"x":1e3}`
	// m.ok would require the types that the claims should have.
	resp, err := m.request(logical.UpdateOperation, "inspect", data{"token": encode([]byte(`{"alg":"HS256"}`)) + "." + encode([]byte(payload)) + ".AAAA"})
	if err != nil || resp.IsError() {
		t.Fatal(resp, err)
	}
	b, err := json.Marshal(resp.Data)
	if err != nil {
		t.Fatal(err)
	}
	var got data
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatal(err)
	}
	want := data{
		"decoded": true, "sub": "9007199254740993", "aud": []any{"x", "1e400"}, "iat": -1.5, "exp": "1e400", "scope": "12345678901234567890", "iss": 1.7e9, "jti": "1.0",
		"ati": map[string]any{"v": "1e400", "rate": map[string]any{"a": []any{"1e999", 7.0}}}, "other_claims": map[string]any{"x": "1e3"},
	}
	m.equal("inspect", want, got)
}

// TestInspect_HidesNamesFromVault checks that a claim is not taken for a part of Vault's
// response, as http_raw_body would be, or for a field of inspect.
func TestInspect_HidesNamesFromVault(t *testing.T) {
	t.Parallel()
	m := configured(t, nil, nil)
	encode := base64.RawURLEncoding.EncodeToString
	claims := data{"http_raw_body": "x", "http_status_code": 200.0, "http_content_type": "text/html", "decoded": false, "error": "e", "other_claims": "o"}
	payload, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	resp := m.ok(logical.UpdateOperation, "inspect", data{"token": encode([]byte(`{"alg":"HS256"}`)) + "." + encode(payload) + ".AAAA"})
	m.equal("inspect", data{"decoded": true, "other_claims": map[string]any{"http_raw_body": "x", "http_status_code": int64(200), "http_content_type": "text/html", "decoded": false, "error": "e", "other_claims": "o"}}, resp.Data)
}

// TestValidateAndInspect_Vectors checks that validate accepts what both the proxy and
// the client accept, and that inspect decodes what the client decodes.
func TestValidateAndInspect_Vectors(t *testing.T) {
	t.Parallel()
	b, err := os.ReadFile(filepath.Join("testdata", "validate.json"))
	if err != nil {
		t.Fatal(err)
	}
	var vectors struct {
		Secret string
		Cases  []struct {
			Name, Token string
			Issuer      struct{ Valid bool } `json:"validate_issuer"`
			ProxyIssuer int                  `json:"proxy_issuer"`
			Inspect     struct {
				Decoded bool
				Claims  data
			}
		}
	}
	if err := json.Unmarshal(b, &vectors); err != nil {
		t.Fatal(err)
	}
	m := configured(t, data{"secret": vectors.Secret}, nil)
	for _, c := range vectors.Cases {
		if strings.TrimSpace(c.Token) == "" {
			m.refused(logical.UpdateOperation, "validate", data{"token": c.Token}, emptyTokenText)
			m.refused(logical.UpdateOperation, "inspect", data{"token": c.Token}, emptyTokenText)
			continue
		}
		// White space around a token is trimmed here, and by the proxy's HTTP server.
		trimmed := c.Token != strings.TrimSpace(c.Token)
		if got, want := m.ok(logical.UpdateOperation, "validate", data{"token": c.Token}).Data["valid"], (c.Issuer.Valid || trimmed) && c.ProxyIssuer == 200; got != want {
			t.Errorf("%s: valid is %v, want %v", c.Name, got, want)
		}
		// m.ok would require the types that the claims should have.
		resp, err := m.request(logical.UpdateOperation, "inspect", data{"token": c.Token})
		if err != nil || resp.IsError() {
			t.Fatal(resp, err)
		}
		if trimmed {
			continue
		}
		// inspect decodes what the client does, and shows the payload as it is.
		want := data{"decoded": true}
		if !c.Inspect.Decoded {
			continue
		}
		payload, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(strings.Split(c.Token, ".")[1], "="))
		if err != nil {
			t.Fatal(err)
		}
		claims, known, other := data{}, []string{"sub", "aud", "iat", "exp", "scope", "iss", "jti", "ati", "job_id", "sandbox_id"}, data{}
		if err := json.Unmarshal(payload, &claims); err != nil {
			t.Fatal(err)
		}
		for name, value := range claims {
			if slices.Contains(known, name) {
				want[name] = value
			} else {
				other[name] = value
			}
		}
		if len(other) > 0 {
			want["other_claims"] = other
		}
		got := data{}
		b, err := json.Marshal(resp.Data)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(b, &got); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: inspect (-want +got):\n%s", c.Name, diff)
		}
		m.warnings(resp, "The token was decoded but not verified. Use validate to verify it.")
	}
}
