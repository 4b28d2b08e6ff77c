package atisecrets_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"maps"
	"math/big"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/vault/sdk/helper/errutil"
	"github.com/hashicorp/vault/sdk/helper/identitytpl"
	"github.com/hashicorp/vault/sdk/logical"

	"vault-plugin-secrets-ati/ati"
)

// parseParameters parses the fuzzed text of a request's parameters. It is a JSON
// object, with "#" before it if its numbers are json.Number, as in Vault itself, and
// not float64, as in a plugin; or lines of key=value, as in the CLI, which a fuzzer
// breaks less often.
func parseParameters(text string) (data, bool) {
	d := data{}
	if strings.HasPrefix(text, "{") {
		return d, json.Unmarshal([]byte(text), &d) == nil
	}
	if strings.HasPrefix(text, "#{") {
		dec := json.NewDecoder(strings.NewReader(text[1:]))
		dec.UseNumber()
		return d, dec.Decode(&d) == nil
	}
	for line := range strings.Lines(text) {
		key, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
		switch had := d[key].(type) {
		case nil:
			d[key] = value
		case string:
			d[key] = []any{had, value}
		case []any:
			d[key] = append(had, value)
		}
	}
	return d, true
}

// isValidID implements the form of IDs independently of the engine.
func isValidID(id string) bool {
	ok := len(id) >= 1 && len(id) <= 128 && !strings.Contains(id, "..") && !strings.ContainsAny(id[:1], "._:@/+=-")
	for _, r := range id {
		ok = ok && (r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("._:@/+=-", r))
	}
	return ok
}

var directiveForm = regexp.MustCompile(`\{\{(.*?)\}\}`)

// FuzzTemplates checks that a template that a role accepts renders to a valid ID or is
// rejected, and never renders to the same ID for callers with different values. In the
// fuzzed texts, single characters stand for directives, which a fuzzer would hardly
// produce.
func FuzzTemplates(f *testing.F) {
	directives := strings.NewReplacer(
		"!", "{{identity.entity.name}}", `"`, "{{identity.entity.id}}", "#", "{{identity.entity.metadata.k}}",
		"$", "{{identity.entity.aliases.acc.name}}", "%", "{{identity.groups.names.g.id}}", "&", "{{identity.groups.ids.gid.metadata.k}}",
		"'", "{{jti}}", "(", "{{identity.entity.aliases.acc.custom_metadata.k}}", ")", "{{", "*", "}}",
	)
	f.Add("!", "'", "job/!", "alice", "bob", "x")
	f.Add("team/!:#", "!:'", "$", "a", "b", "v")
	f.Add(`"`, "'", "", "a", "a", "")
	f.Add("a{{identity.entity.name}}/{{ identity.entity.metadata.k }}", "'!'", "%", "x", "y", "${JWT_SUB}")
	f.Add("!-#", "", "", "a", "a-a", "a")
	f.Add("!", "#", "#", "a..b", "", "${JWT_SUB}")
	f.Add("!'#", "!'#", "(", "a", "b", "a/b")
	f.Add("{{identity.entity.name", "}}", "{{jti}}{{jti}}", "..", "\u00a0", "{{jti}}")
	f.Add(" !\n", "\t'", " ", "a", "b", "x")
	f.Add(")identity.groups.names.g.name*", "plain", "a..b", "a", "..", ".")
	f.Fuzz(func(t *testing.T, subject, jobID, sandboxID, one, two, value string) {
		m := newMount(t)
		m.ok(logical.CreateOperation, "config", data{"proxy_url": testProxy, "secret": testSecret})
		texts := map[string]string{"subject": subject, "job_id": jobID, "sandbox_id": sandboxID}
		role := data{"tools": "x"}
		for field, text := range texts {
			role[field] = directives.Replace(text)
			texts[field] = strings.Trim(directives.Replace(text), " \t\r\n")
		}
		if m.try(logical.CreateOperation, "roles/r", role) == nil {
			return
		}
		groups := []*logical.Group{{ID: "gid", Name: "g", Metadata: map[string]string{"k": value}}}
		entity := func(id, name, value string) *logical.Entity {
			return &logical.Entity{ID: id, Name: name, Metadata: map[string]string{"k": value}, Aliases: []*logical.Alias{
				{MountAccessor: "acc", ID: name, Name: value, CustomMetadata: map[string]string{"k": name}},
			}}
		}
		m.system.GroupsVal = groups
		type minted struct {
			entity *logical.Entity
			ids    map[string]string
		}
		var all []minted
		for _, e := range []*logical.Entity{
			nil, entity(one, one, value), entity(two, two, value), entity("e1", one, two), entity("e2", two, one), entity("e3", one+value, two), entity("e4", one, value+two),
			entity("e5", one+":"+value, two), entity("e6", one, value+":"+two),
		} {
			m.system.EntityVal, m.entityID, m.displayName = e, "", one
			if e != nil {
				m.entityID = e.ID
			}
			resp := m.try(logical.ReadOperation, "creds/r", nil)
			if resp == nil {
				continue
			}
			c := m.claims(resp)
			ids := map[string]string{"subject": c.Subject, "job_id": c.JobID, "sandbox_id": c.SandboxID}
			for field, id := range ids {
				if !isValidID(id) && (field == "subject" || id != "" || texts[field] != "") {
					t.Errorf("%s %q renders to %q", field, texts[field], id)
				}
			}
			if e != nil && m.entityID != "" {
				all = append(all, minted{e, ids})
			}
		}
		for i, a := range all {
			for _, b := range all[:i] {
				for field, text := range texts {
					va, vb := directiveValues(text, a.entity, groups), directiveValues(text, b.entity, groups)
					if text == "" && field == "subject" {
						va, vb = []string{a.entity.ID}, []string{b.entity.ID}
					}
					if slices.Equal(va, vb) != (a.ids[field] == b.ids[field]) {
						t.Errorf("%s %q: the values %q render to %q, and %q to %q", field, text, va, a.ids[field], vb, b.ids[field])
					}
				}
			}
		}
	})
}

// directiveValues returns what Vault's own templates render for each directive.
func directiveValues(text string, e *logical.Entity, groups []*logical.Group) (values []string) {
	for _, directive := range directiveForm.FindAllString(text, -1) {
		if strings.Contains(directive, "jti") {
			continue // the same for all callers
		}
		_, value, err := identitytpl.PopulateString(identitytpl.PopulateStringInput{Mode: identitytpl.ACLTemplating, String: directive, Entity: e, Groups: groups})
		if err != nil {
			value = err.Error()
		}
		values = append(values, value)
	}
	return values
}

// proxyRate implements the proxy's parser of rates independently of the engine.
func proxyRate(t *testing.T, spec string) (count uint64, window string) {
	t.Helper()
	number, unit, _ := strings.Cut(spec, "/")
	count, err := strconv.ParseUint(number, 10, 64)
	windows := map[string]string{
		"s": "s", "sec": "s", "second": "s", "m": "m", "min": "m", "minute": "m", "h": "h", "hr": "h", "hour": "h", "d": "d", "day": "d",
	}
	if err != nil || windows[unit] == "" {
		t.Errorf("the proxy drops all rates because of %q", spec)
	}
	return count, windows[unit]
}

// checkRates checks that a token has all of its role's rates, and none is looser.
func checkRates(t *testing.T, token, role map[string]string) {
	t.Helper()
	if !cmp.Equal(slices.Sorted(maps.Keys(token)), slices.Sorted(maps.Keys(role))) {
		t.Errorf("a role with the rates %v gives a token with %v", role, token)
	}
	for key, spec := range token {
		got, window := proxyRate(t, spec)
		most, roleWindow := proxyRate(t, role[key])
		if got > most || window != roleWindow {
			t.Errorf("rate %q is %s, and %s in the role", key, spec, role[key])
		}
		if key != "*" && !strings.HasPrefix(key, "tool:") || strings.ContainsFunc(key, isSpace) {
			t.Errorf("rate %q limits no call", key)
		}
	}
}

// FuzzRates checks that a request never loosens, adds, or drops a rate. The rates are
// a JSON object, or lines of key=count/unit.
func FuzzRates(f *testing.F) {
	f.Add("rate=tool:a=10/hour", "rate=tool:a=5/h")
	f.Add("rate=tool:a=10/hour\nrate=*=1/s", "rate=*=0/sec")
	f.Add("rate=tool:a=10/hour", "rate=tool:a=10/day")
	f.Add("rate=tool:a=10/hour", "rate=tool:a=11/hour")
	f.Add("rate=tool:a=10/hour", "rate=tool:b=1/hour")
	f.Add("rate=tool:p:*=10/min", "rate=tool:p:*=10/m")
	f.Add("rate=tool:a=1/s,tool:b=2/s", "rate=tool:a=+1/s")
	f.Add(`{"rate":"tool:a=1/s,\r\n tool:b=2/s\n"}`, `{"rate":"{\"tool:a\":\"1/m\"}"}`)
	f.Add(`{"rate":" {\"tool:a\":\"1/s\",\"tool:a\":\"2/s\"}"}`, `{"rate":"tool:a=1/s,,"}`)
	f.Add(`{"rate":{"tool:a":"10/hour","tool:b=c":"007/h"}}`, `{"rate":{"tool:a":"11/hour"}}`)
	f.Add(`{"rate":["tool:a=10/hour","*=5/d"]}`, `{"rate":{"tool:a":null}}`)
	f.Add(`{"rate":{}}`, `{"rate":{"tool:a":1}}`)
	f.Add(`{"rate":{"tool:A":"10/hour","tool:a":"1/hour"}}`, `{"rate":{"tool:a ":"1/hour"}}`)
	f.Fuzz(func(t *testing.T, roleText, requestText string) {
		role, ok1 := parseParameters(roleText)
		request, ok2 := parseParameters(requestText)
		if !ok1 || !ok2 {
			return
		}
		m := newMount(t)
		m.ok(logical.CreateOperation, "config", data{"proxy_url": testProxy, "secret": testSecret})
		if m.try(logical.CreateOperation, "roles/r", data{"tools": "x", "rate": role["rate"]}) == nil {
			return
		}
		have := m.ok(logical.ReadOperation, "roles/r", nil).Data["rate"].(map[string]string)
		if given := requestedRates(role["rate"]); len(given) != len(have) {
			t.Errorf("of the rates %v the role has %v", given, have)
		}
		checkRates(t, m.claims(m.ok(logical.ReadOperation, "creds/r", nil)).ATI.Rate, have)
		resp := m.try(logical.UpdateOperation, "creds/r", data{"rate": request["rate"]})
		if resp == nil {
			return
		}
		got := m.claims(resp).ATI.Rate
		checkRates(t, got, have)
		for key, spec := range requestedRates(request["rate"]) {
			want, wantWindow := proxyRate(t, spec)
			if count, window := proxyRate(t, got[key]); count != want || window != wantWindow {
				t.Errorf("rate %q of %s was requested, and the token has %s", key, spec, got[key])
			}
		}
	})
}

// requestedRates parses rates that the engine has accepted: an object, a list of items,
// or either in a string.
func requestedRates(value any) map[string]string {
	rates := map[string]string{}
	item := func(text string) {
		text = strings.TrimSpace(text)
		i := strings.LastIndexByte(text, '=')
		rates[text[:i]] = text[i+1:]
	}
	switch v := value.(type) {
	case string:
		var object map[string]any
		if json.Unmarshal([]byte(v), &object) == nil {
			return requestedRates(object)
		}
		for text := range strings.FieldsFuncSeq(v, func(r rune) bool { return r == ',' || r == '\n' }) {
			if strings.Trim(text, " \t\r") != "" {
				item(text)
			}
		}
	case []any:
		for _, text := range v {
			item(text.(string))
		}
	case map[string]any:
		for key, spec := range v {
			rates[key] = spec.(string)
		}
	}
	return rates
}

// testKeyPEM returns the P-256 key whose number is the test's secret, in PEM.
func testKeyPEM(f *testing.F) (sec1, pkcs8 string) {
	f.Helper()
	raw, err := hex.DecodeString(testSecret)
	if err != nil {
		f.Fatal(err)
	}
	key, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), raw)
	if err != nil {
		f.Fatal(err)
	}
	a, err1 := x509.MarshalECPrivateKey(key)
	b, err2 := x509.MarshalPKCS8PrivateKey(key)
	if err := errors.Join(err1, err2); err != nil {
		f.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: a})), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: b}))
}

var (
	proxySecret = regexp.MustCompile(`^[0-9a-f]{64}\z`)
	acceptedPEM = regexp.MustCompile(`^[\s\v]*(-----BEGIN EC PARAMETERS-----[A-Za-z0-9+/=\s]*-----END EC PARAMETERS-----\s+)?` +
		`(-----BEGIN PRIVATE KEY-----[A-Za-z0-9+/=\s]+-----END PRIVATE KEY-----|-----BEGIN EC PRIVATE KEY-----[A-Za-z0-9+/=\s]+-----END EC PRIVATE KEY-----)[\s\v]*\z`)
	proxyPEM = regexp.MustCompile(`^-----BEGIN PUBLIC KEY-----\n([A-Za-z0-9+/=]{1,64}\n)+-----END PUBLIC KEY-----\n\z`)
)

// FuzzSecretAndPEM checks that a rejected key is not quoted, and that proxy-env
// returns an accepted one in the form that the proxy expects and with which it
// verifies the tokens.
func FuzzSecretAndPEM(f *testing.F) {
	sec1, pkcs8 := testKeyPEM(f)
	for _, secret := range []string{testSecret, strings.ToUpper(testSecret) + "\n", " " + testSecret, "\u00a0" + testSecret, testSecret[:62], strings.Repeat("ab", 32), "0x" + testSecret[2:], ""} {
		f.Add(secret, "")
	}
	body := strings.Split(strings.TrimSpace(pkcs8), "\n")
	for _, text := range []string{
		sec1, pkcs8, "\n\v" + sec1 + " \v", pkcs8 + pkcs8, strings.ReplaceAll(pkcs8, "\n", "\r\n"), strings.ReplaceAll(pkcs8, "\n", " "), strings.ReplaceAll(pkcs8, "\n", `\n`),
		strings.Replace(sec1, "EC ", "RSA ", 2), body[0] + "\nKey: value\n\n" + strings.Join(body[1:], "\n"),
		// Found by this target: a broken block before the key was accepted, and its
		// invalid UTF-8 was stored as a longer text that could not be read back.
		"-----BEGIN PRIVATE KEY-----\n" + strings.Repeat("\xff", 2000) + "\n-----END PRIVATE KEY-----\n" + pkcs8,
		// The key in place of the block's type.
		"-----BEGIN " + body[1] + "-----\n" + body[2] + "\n-----END " + body[1] + "-----\n",
		"", "-----BEGIN PRIVATE KEY-----\n-----END PRIVATE KEY-----", testSecret,
	} {
		f.Add("", text)
	}
	f.Fuzz(func(t *testing.T, secret, private string) {
		m := newMount(t)
		d := data{"proxy_url": testProxy}
		if secret != "" {
			d["secret"] = secret
		}
		if private != "" {
			d["private_key"], d["algorithm"] = private, "ES256"
		}
		resp, err := m.request(logical.CreateOperation, "config", d)
		if err != nil {
			t.Fatal(err)
		}
		output := m.log.String()
		if resp.IsError() {
			output += resp.Error().Error()
			if len(m.storage.dump(t)) != 0 {
				t.Error("a rejected key was stored")
			}
		} else if resp != nil {
			output += strings.Join(resp.Warnings, " ")
		}
		for _, key := range []string{secret, private} {
			for i := 0; i+20 <= len(key); i++ {
				if strings.Contains(output, key[i:i+20]) {
					t.Fatalf("part %[2]q of the key %[1]q is exposed: %[3]s", key, key[i:i+20], output)
				}
			}
		}
		if resp.IsError() {
			return
		}
		if private != "" && !acceptedPEM.MatchString(private) {
			t.Errorf("%q was accepted as a key", private)
		}
		m.write("config", d) // as Terraform does
		m.ok(logical.CreateOperation, "roles/r", data{"tools": "x"})
		token := m.ok(logical.ReadOperation, "creds/r", nil).Data["token"].(string)
		dot := strings.LastIndexByte(token, '.')
		signed, encoded := token[:dot], token[dot+1:]
		signature, err := base64.RawURLEncoding.DecodeString(encoded)
		if err != nil {
			t.Fatal(err)
		}
		env := m.ok(logical.ReadOperation, "proxy-env", nil).Data
		if private == "" {
			text, _ := env["ATI_JWT_SECRET"].(string)
			if !proxySecret.MatchString(text) || secret != "" && text != strings.ToLower(strings.TrimSpace(secret)) || env["public_key"] != nil {
				t.Fatalf("proxy-env returns the secret %q as %v", secret, env)
			}
			key, err := hex.DecodeString(text)
			if err != nil {
				t.Fatal(err)
			}
			mac := hmac.New(sha256.New, key)
			mac.Write([]byte(signed))
			if !hmac.Equal(mac.Sum(nil), signature) {
				t.Errorf("the secret of proxy-env does not verify a token")
			}
			return
		}
		text, _ := env["public_key"].(string)
		block, rest := pem.Decode([]byte(text))
		if !proxyPEM.MatchString(text) || block == nil || len(rest) > 0 || env["ATI_JWT_SECRET"] != nil {
			t.Fatalf("proxy-env returns the public key as %v", env)
		}
		parsed, err := x509.ParsePKIXPublicKey(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		sum := sha256.Sum256([]byte(signed))
		if public, ok := parsed.(*ecdsa.PublicKey); !ok || public.Curve != elliptic.P256() || len(signature) != 64 ||
			!ecdsa.Verify(public, sum[:], new(big.Int).SetBytes(signature[:32]), new(big.Int).SetBytes(signature[32:])) {
			t.Error("the public key of proxy-env does not verify a token")
		}
	})
}

// allRequests returns the backend's paths and operations in a fixed order.
func allRequests() (all []struct {
	path string
	op   logical.Operation
}) {
	for _, path := range slices.Sorted(maps.Keys(paths)) {
		for _, op := range slices.Sorted(slices.Values(paths[path])) {
			all = append(all, struct {
				path string
				op   logical.Operation
			}{path, op})
		}
	}
	return all
}

// The states that FuzzRequest prepares a mount in, as bits.
const (
	emptyMount = 1 << iota
	noRole
	es256
	stagedKey
	activatedKey
	retiredKey
	coldCaches
	leases
)

func mountInState(t *testing.T, state uint8) *mount {
	m := newMount(t)
	if state&emptyMount != 0 {
		return m
	}
	config := data{"proxy_url": testProxy, "accepted_audiences": "b", "secret": testSecret}
	if state&es256 != 0 {
		delete(config, "secret")
		config["algorithm"] = "ES256"
	}
	m.ok(logical.CreateOperation, "config", config)
	if state&noRole == 0 {
		m.ok(logical.CreateOperation, "roles/r", data{
			"tools": "web_search,github:*", "skills": "summarize", "rate": "tool:github:*=10/hour", "max_ttl": "2h", "generate_lease": state&leases != 0,
			"allowed_agent_ids": "*", "allowed_job_ids": "job:*", "allowed_sandbox_ids": "*", "job_id": "{{jti}}",
		})
	}
	if state&(stagedKey|activatedKey|retiredKey) != 0 {
		m.write("config/rotate/stage", data{"proxy_url": greenProxy, "secret": greenSecret, "algorithm": "HS256"})
	}
	if state&(activatedKey|retiredKey) != 0 {
		m.write("config/rotate/activate", nil)
	}
	if state&retiredKey != 0 {
		m.write("config/rotate/retire", nil)
	}
	if state&coldCaches != 0 {
		m.b = m.newBackend()
	}
	return m
}

// FuzzRequest checks that any request gets a response of the declared form, or is
// refused and changes nothing; that it fails only where storage fails; and that no
// response but those of proxy-env and guard, and no log line, has a key in it. In the text, TOKEN
// stands for a token of the mount.
func FuzzRequest(f *testing.F) {
	requests := allRequests()
	texts := []string{
		"", "{}", `{"tool":"web_search"}`, `{"token":"TOKEN","scope":"tool:web_search","leeway":5}`, `{"token":"TOKEN"}`,
		"proxy_url=https://new.example.com\nissuer=x\nallowed_scopes=tool:*\nmax_ttl=5h", `{"proxy_url":"https://green.example.com","algorithm":"ES256"}`,
		"tools=a,b\nskills=s\nscopes=help\nrate=tool:a=5/m\nttl=600\nsubject={{identity.entity.name}}\naudience=b\ngenerate_lease=true",
		"agent_id=sandbox:1\njob_id=job:1\ntools=github:search\nttl=5m\nrate=tool:github:*=5/h\nproxy_url=https://ati.example.com",
		`{"agent_ids":["a","b"],"ttl":60.0,"tools":["web_search"]}`, `#{"ttl":1e3,"agent_ids":"a,b"}`, "format=env",
		`{"tools":"[\"web_search\", \"a\"]\n","rate":"{\"*\":\"1/s\",\"*\":\"2/s\"}","ttl":" 5m\n"}`, `{"agent_ids":"a\r\nb,\n\nc\n","limit":"2","after":"a","t":1}`,
		`{"rate":{"*":null,"tool:x":"1/s"},"max_ttl":null,"key_version":1,"name":"r"}`, `{"proxy_url":" HTTPS://a_b/%7e//c/..\n","description":"a\tb"}`,
		`{"jti":"` + testID + `.7"}`, "agent_id=sandbox:1", `{"since":1800000000000000,"limit":1}`,
		`{"name":"x"}`, `{"x":null,"tools":[[]],"rate":{"a":{}}}`, `{"tools":{"a":1},"token":["TOKEN"],"secret":["x"],"disabled":"t"}`,
	}
	for i := range requests {
		for j, text := range texts {
			state, fault := uint8(0), uint8(0)
			if (i+j)%2 == 1 {
				state, fault = 1<<(j%8), uint8(i%3)
			}
			f.Add(uint8(i), state, fault, text)
		}
	}
	f.Fuzz(func(t *testing.T, which, state, fault uint8, text string) {
		m := mountInState(t, state)
		if strings.Contains(text, "TOKEN") && state&(emptyMount|noRole) == 0 {
			text = strings.ReplaceAll(text, "TOKEN", m.ok(logical.ReadOperation, "creds/r", nil).Data["token"].(string))
		}
		d, ok := parseParameters(text)
		if !ok {
			return
		}
		r := requests[int(which)%len(requests)]
		before := m.storage.dump(t)
		m.storage.failNth(int64(fault), false)
		req := &logical.Request{ID: testID, Operation: r.op, Path: r.path, Data: d, Storage: m.storage, MountPoint: "ati/", DisplayName: "token"}
		failed := func(resp *logical.Response, err error) bool {
			if err != nil && (!errors.Is(err, errStorage) || m.storage.failed == "" || resp != nil) {
				t.Fatalf("%s %s %v fails with %v and %v, after %q", req.Operation, r.path, d, err, resp, m.storage.failed)
			}
			return err != nil
		}
		if path := m.b.Route(r.path); path.ExistenceCheck != nil && (r.op == logical.CreateOperation || r.op == logical.UpdateOperation) {
			// Vault makes this check before a write.
			_, exists, err := m.b.HandleExistenceCheck(t.Context(), req)
			var mistake errutil.UserError
			if errors.As(err, &mistake) || failed(nil, err) {
				if diff := cmp.Diff(before, m.storage.dump(t)); diff != "" {
					t.Errorf("an existence check changed storage:\n%s", diff)
				}
				return
			}
			req.Operation = map[bool]logical.Operation{true: logical.UpdateOperation, false: logical.CreateOperation}[exists]
		}
		resp, err := m.b.HandleRequest(t.Context(), req)
		reads := slices.Contains([]string{"creds/r", "batch/r", "check/r", "validate", "inspect"}, r.path) || r.op == logical.ReadOperation || r.op == logical.ListOperation
		if diff := cmp.Diff(before, m.storage.dump(t)); diff != "" && (reads || resp.IsError()) {
			t.Errorf("%s %s %v changed storage, and returned %v:\n%s", req.Operation, r.path, d, resp, diff)
		}
		output := m.log.String()
		if !failed(resp, err) && resp != nil {
			answer, err := json.Marshal(resp)
			if err != nil {
				t.Fatal(err)
			}
			if !strings.HasPrefix(r.path, "proxy-env") && r.path != "guard" {
				output += string(answer)
			}
			if !resp.IsError() {
				m.checkDeclared(t, req, resp)
			}
		}
		for _, secret := range []string{testSecret, greenSecret} {
			if strings.Contains(output, secret) && !strings.Contains(text, secret) {
				t.Errorf("%s %s %v exposes a secret: %s", req.Operation, r.path, d, output)
			}
		}
	})
}

func isSpace(r rune) bool {
	return strings.ContainsRune("\t\n\v\f\r \u0085\u00a0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000", r)
}

// proxyAllows implements the proxy's rule independently of the engine: whether a token
// with this scope claim may use what requires a scope. The claim is split at white
// space. A pattern is exact, or ends in "*", which matches any rest. A skill is
// matched by its exact name or by "*". A provider's tool is also matched by its name
// with "_" for the first colon.
func proxyAllows(claim, required string) bool {
	names := []string{required}
	if name, isTool := strings.CutPrefix(required, "tool:"); isTool {
		names = append(names, "tool:"+strings.Replace(name, ":", "_", 1))
	}
	for _, pattern := range strings.FieldsFunc(claim, isSpace) {
		for _, name := range names {
			n := len(pattern) - 1
			switch {
			case pattern == name, pattern == "*":
				return true
			case !strings.HasPrefix(required, "skill:") && pattern[n] == '*' && len(name) >= n && name[:n] == pattern[:n]:
				return true
			}
		}
	}
	return false
}

// boundaryScopes returns scopes that the patterns barely match or barely miss.
func boundaryScopes(patterns ...string) (all []string) {
	for _, p := range patterns {
		base := strings.TrimSuffix(p, "*")
		name := base[strings.IndexByte(base, ':')+1:]
		for _, b := range []string{base, "tool:" + name, "skill:" + name} {
			all = append(all, b, b+"x", b+":x", b+"_x", strings.Replace(b, "_", ":", 1), b[:max(0, len(b)-1)])
		}
	}
	return append(all, "help", "tool:x", "tool:a:b", "skill:x", "x:y")
}

// matchesGlob reports whether a glob matches a text.
func matchesGlob(glob, text string) bool {
	head, tail, star := strings.Cut(glob, "*")
	rest, ok := strings.CutPrefix(text, head)
	if !star || !ok {
		return glob == text
	}
	for i := range len(rest) + 1 {
		if matchesGlob(tail, rest[i:]) {
			return true
		}
	}
	return false
}

// scopeClaim returns the scope claim that tools, skills, and scopes amount to.
func scopeClaim(d data) string {
	var all []string
	for field, prefix := range map[string]string{"tools": "tool:", "skills": "skill:", "scopes": ""} {
		var items []string
		switch v := d[field].(type) {
		case string:
			items = strings.Split(v, ",")
		case []string:
			items = v
		case []any:
			for _, item := range v {
				items = append(items, item.(string))
			}
		}
		for _, item := range items {
			if item = strings.TrimSpace(item); item != "" {
				all = append(all, prefix+strings.TrimPrefix(item, prefix))
			}
		}
	}
	return strings.Join(all, " ")
}

// FuzzMint checks that a token is valid and has nothing that its role, the mount, and
// the config's ceiling do not allow, or that the request did not ask for. The second
// text changes the config after the role is written.
func FuzzMint(f *testing.F) {
	f.Add("", "", "tools=web_search", "", uint32(0))
	f.Add("allowed_scopes=tool:*,skill:s\nmax_ttl=1h", "allowed_scopes=tool:github:*", "tools=github:*\nttl=10m\nmax_ttl=1h", "tools=github:search\nttl=50m", uint32(3000))
	f.Add("accepted_audiences=b", "audience=c\naccepted_audiences=b", "scopes=*\naudience=b\nallowed_agent_ids=sandbox:*\nallowed_job_ids=*\nallowed_sandbox_ids=a*b*c", "agent_id=sandbox:1\njob_id=j\nsandbox_id=a/b/c", uint32(0))
	f.Add("issuer=", "max_ttl=7", "tools=a_*,p:x\nskills=r-*,s\nrate=tool:a_*=5/m\nrate=*=10/h\nttl=60", "scopes=tool:a_b:c,skill:s\nrate=*=5/hour\nttl=9h", uint32(5))
	f.Add("", "", `{"tools":["github:*"],"skills":["a"],"ttl":3600,"subject":"{{identity.entity.name}}","job_id":"{{jti}}"}`, `{"tools":["github:x"],"ttl":"5m"}`, uint32(0))
	f.Add("", "", "tools=x,y\nallowed_agent_ids=a*,*b", `{"agent_ids":["a1","ab","b"],"tools":"y"}`, uint32(0))
	f.Add("", "", "tools=a\ndisabled=true", "skills=a", uint32(90))
	f.Add("", "", "tools=a", "tools=b", uint32(0))
	f.Add("", "", "tools=a\ndisabled=true", "tools=a", uint32(0))
	f.Add("", "allowed_scopes=tool:b", "tools=a,b", "tools=a", uint32(0))
	f.Add("", "max_ttl=7", "tools=a\nttl=60", "ttl=9h", uint32(0))
	f.Add("", "", "tools=a\nttl=60\nmax_ttl=90", "ttl=9h", uint32(0))
	f.Add("accepted_audiences=b", "accepted_audiences=", "tools=a\naudience=b", "", uint32(0))
	f.Add("", "", "tools=a\nallowed_agent_ids=a*", "agent_id=b", uint32(0))
	f.Add("allowed_scopes=skill:a*,x:*", "", "skills=a*\nscopes=x:y", `#{"skills":["a*"],"ttl":1}`, uint32(1))
	f.Fuzz(func(t *testing.T, configText, laterText, roleText, requestText string, mountMax uint32) {
		var texts [4]data
		for i, text := range []string{configText, laterText, roleText, requestText} {
			d, ok := parseParameters(text)
			if !ok {
				return
			}
			if delete(d, ""); i < 2 { // FuzzSecretAndPEM covers the key
				for _, name := range []string{"secret", "private_key", "algorithm", "proxy_url"} {
					delete(d, name)
				}
			}
			texts[i] = d
		}
		config, later, role, request := texts[0], texts[1], texts[2], texts[3]
		m := newMount(t)
		m.system.EntityVal = &logical.Entity{ID: "e-1", Name: "alice"}
		m.entityID = "e-1"
		if mountMax > 0 {
			m.system.MaxLeaseTTLVal = time.Duration(mountMax) * time.Second
		}
		m.ok(logical.CreateOperation, "config", data{"proxy_url": testProxy, "secret": testSecret})
		if m.try(logical.UpdateOperation, "config", config) == nil || m.try(logical.CreateOperation, "roles/r", role) == nil {
			return
		}
		m.try(logical.UpdateOperation, "config", later)
		have := m.ok(logical.ReadOperation, "roles/r", nil).Data
		ceiling := m.ok(logical.ReadOperation, "config", nil).Data
		check := func(token string, request data, agentID string) {
			payload, err := base64.RawURLEncoding.DecodeString(strings.Split(token, ".")[1])
			if err != nil {
				t.Fatal(err)
			}
			var c struct {
				Sub, Aud, Scope, Iss string
				Iat, Exp             int64
				Ati                  struct{ Rate map[string]string }
				JobID                string `json:"job_id"`
				SandboxID            string `json:"sandbox_id"`
			}
			if err := json.Unmarshal(payload, &c); err != nil {
				t.Fatal(err)
			}
			m.claimsOf(token, c.Aud)
			if verdict := m.ok(logical.UpdateOperation, "validate", data{"token": token}).Data; verdict["valid"] != true {
				t.Errorf("an invalid token was minted: %v", verdict)
			}
			if have["disabled"] == true {
				t.Error("a token was minted for a disabled role")
			}
			roleScope, allowed, requested := scopeClaim(have), strings.Join(ceiling["allowed_scopes"].([]string), " "), scopeClaim(request)
			for _, call := range boundaryScopes(strings.FieldsFunc(strings.Join([]string{c.Scope, roleScope, allowed, requested}, " "), isSpace)...) {
				switch {
				case !proxyAllows(c.Scope, call):
				case !proxyAllows(roleScope, call):
					t.Errorf("a token with %q allows %q, and its role with %q does not", c.Scope, call, roleScope)
				case allowed != "" && !proxyAllows(allowed, call):
					t.Errorf("a token with %q allows %q, and the config's allowed_scopes %q do not", c.Scope, call, allowed)
				case requested != "" && !proxyAllows(requested, call):
					t.Errorf("a token with %q allows %q, and only %q was requested", c.Scope, call, requested)
				}
			}
			life, longest := c.Exp-c.Iat, max(have["ttl"].(int64), have["max_ttl"].(int64))
			for _, bound := range []int64{longest, ceiling["max_ttl"].(int64), int64(mountMax)} {
				if life < 1 || bound > 0 && life > bound {
					t.Errorf("a token has a TTL of %d s, and the maximum is %d", life, bound)
				}
			}
			if c.Iat != m.now.Unix() {
				t.Errorf("iat is %d", c.Iat)
			}
			chosenAgent := request["agent_id"]
			if agentID != "" {
				chosenAgent = agentID
			}
			for name, id := range map[string]struct {
				chosen any
				got    string
				globs  any
			}{
				"agent_id":   {chosenAgent, c.Sub, have["allowed_agent_ids"]},
				"job_id":     {request["job_id"], c.JobID, have["allowed_job_ids"]},
				"sandbox_id": {request["sandbox_id"], c.SandboxID, have["allowed_sandbox_ids"]},
			} {
				if !isValidID(id.got) && (name == "agent_id" || id.got != "") {
					t.Errorf("%s is %q", name, id.got)
				}
				if id.chosen == nil || id.chosen == "" {
					continue
				}
				if id.chosen != id.got || !slices.ContainsFunc(id.globs.([]string), func(glob string) bool { return matchesGlob(glob, id.got) }) {
					t.Errorf("%s %q was requested, and the token has %q; the role allows %q", name, id.chosen, id.got, id.globs)
				}
			}
			if c.Aud != ceiling["audience"] && !slices.Contains(ceiling["accepted_audiences"].([]string), c.Aud) || c.Iss != ceiling["issuer"] {
				t.Errorf("aud is %q and iss %q, and the config is %v", c.Aud, c.Iss, ceiling)
			}
			checkRates(t, c.Ati.Rate, have["rate"].(map[string]string))
			if len(token) > 8<<10 {
				t.Errorf("a token has %d bytes", len(token))
			}
		}
		one, many := data{}, data{}
		for name, value := range request {
			if name != "agent_ids" {
				one[name] = value
			}
			if !slices.Contains([]string{"agent_id", "job_id", "sandbox_id", "format"}, name) {
				many[name] = value
			}
		}
		if resp := m.try(logical.UpdateOperation, "creds/r", one); resp != nil {
			token, ok := resp.Data["token"].(string)
			if !ok {
				token = resp.Data[ati.EnvSessionToken].(string)
			}
			check(token, one, "")
		}
		if resp := m.try(logical.UpdateOperation, "batch/r", many); resp != nil {
			for id, token := range resp.Data["tokens"].(map[string]string) {
				check(token, many, id)
			}
		}
	})
}
