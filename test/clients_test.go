package test

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// shell returns a function that runs commands in a directory with files, with vault in PATH.
func (s *server) shell(files map[string]string) func(command string) (string, error) {
	s.t.Helper()
	dir, path := s.t.TempDir(), pathWithVault(s.t)
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			s.t.Fatal(err)
		}
	}
	return func(command string) (string, error) {
		cmd := exec.CommandContext(s.t.Context(), "bash", "-o", "pipefail", "-c", command)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "PATH="+path, "VAULT_ADDR="+s.addr, "VAULT_TOKEN="+s.root, "HOME="+s.dir)
		out, err := cmd.CombinedOutput()
		s.leaks.remember(out)
		return string(out), err
	}
}

// object sends a request and returns the status and the response without what differs
// between two equal requests.
func (s *server) object(token, method, path string) (int, data) {
	s.t.Helper()
	status, body := s.send(token, method, path, nil, nil)
	var object data
	if body != "" {
		if err := json.Unmarshal([]byte(body), &object); err != nil {
			s.t.Fatalf("%s %s: %v: %s", method, path, err, body)
		}
	}
	delete(object, "request_id")
	return status, object
}

// Lists have the pages that OpenBao's CLI and policies ask for, on both servers.
func TestClients_Pages(t *testing.T) {
	t.Parallel()
	s, _ := startEngine(t)
	for _, name := range strings.Fields("d a c e b") {
		s.write(s.root, "ati/roles/"+name, data{"tools": "web_search"})
	}
	page := func(token, method, query string) string {
		t.Helper()
		status, object := s.object(token, method, "ati/roles?"+query)
		if status != http.StatusOK && status != http.StatusNotFound || object["warnings"] != nil {
			t.Errorf("%s %s returns %d, %v", method, query, status, object)
		}
		d, _ := object["data"].(map[string]any)
		return strings.Trim(fmt.Sprint(d["keys"]), "[]")
	}
	for query, want := range map[string]string{
		"limit=2&after=b": "c d", "limit=2": "a b", "limit=9&after=d": "e", "after=bb": "c d e", "after=e": "<nil>", "limit=0": "a b c d e", "limit=-1&t=1": "a b c d e",
	} {
		for method, q := range map[string]string{"GET": "list=true&" + query, "LIST": query} {
			if got := page(s.root, method, q); got != want {
				t.Errorf("%s %s returns %s, want %s", method, q, got, want)
			}
		}
	}
	if tested.name == openBao.name {
		if out := s.vault(s.root, "list", "-limit=2", "-after=b", "ati/roles"); strings.Join(strings.Fields(out), " ") != "Keys ---- c d" {
			t.Errorf("bao list returns\n%s", out)
		}
		limited := s.policy("limited", `path "ati/roles" { capabilities = ["list"] pagination_limit = 3 }`)
		for query, want := range map[string]string{"": "a b c", "limit=2&after=b": "c d", "after=c": "d e"} {
			if got := page(limited, "LIST", query); got != want {
				t.Errorf("with pagination_limit, LIST %s returns %s, want %s", query, got, want)
			}
		}
	}
}

// A parameter that the engine does not have, such as a cache buster, is an error only
// where the engine mints, decides, or writes.
func TestClients_UnknownParameters(t *testing.T) {
	t.Parallel()
	s, _ := startEngine(t)
	s.write(s.root, "ati/roles/r", data{"tools": "web_search", "allowed_agent_ids": "*"})
	for _, request := range []string{
		"GET ati/config", "GET ati/config/rotate", "GET ati/roles/r", "GET ati/roles/nobody", "LIST ati/roles", "GET ati/jwks", "GET ati/proxy-env", "GET ati/proxy-env/1", "DELETE ati/roles/nobody",
	} {
		method, path, _ := strings.Cut(request, " ")
		token := s.root
		if path == "ati/jwks" {
			token = ""
		}
		wantStatus, want := s.object(token, method, path)
		status, got := s.object(token, method, path+"?_=1&limit=3&name=x&version=2")
		if diff := cmp.Diff(want, got); diff != "" || status != wantStatus {
			t.Errorf("%s with parameters returns %d, want %d (-without +with):\n%s", request, status, wantStatus, diff)
		}
	}
	token := s.read(s.root, "ati/creds/r").Data["token"]
	for request, d := range map[string]data{
		"GET ati/creds/r?t=1": nil, "GET ati/check/r?tool=web_search&t=1": nil,
		"PUT ati/creds/r": {}, "PUT ati/batch/r": {"agent_ids": "a"}, "PUT ati/check/r": {"tool": "web_search"}, "PUT ati/validate": {"token": token}, "PUT ati/inspect": {"token": token},
		"PUT ati/config": {}, "PUT ati/roles/r": {}, "PUT ati/roles/new": {"tools": "a"}, "PATCH ati/config": {}, "PATCH ati/roles/r": {},
		"PUT ati/config/rotate": {}, "PUT ati/config/rotate/stage": {}, "PUT ati/config/rotate/activate": {}, "PUT ati/config/rotate/rollback": {}, "PUT ati/config/rotate/retire": {},
	} {
		if d != nil {
			d["t"] = "1"
		}
		method, path, _ := strings.Cut(request, " ")
		if status, body := s.send(s.root, method, path, nil, d); status != http.StatusBadRequest || !strings.Contains(body, `unknown parameter \"t\"`) {
			t.Errorf("%s with t returns %d, %s", request, status, body)
		}
	}
	for _, path := range []string{"ati/roles/r", "ati/config"} {
		if status, _ := s.object(s.root, "DELETE", path+"?t=1&name=x"); status >= 300 || s.request(s.root, "GET", path, nil) != http.StatusNotFound {
			t.Errorf("DELETE %s with parameters returns %d", path, status)
		}
	}
}

// One string carries a list or rates, because Agent, the operators, and files have only
// strings. A string from a file ends in a line break.
func TestClients_ValuesFromFiles(t *testing.T) {
	t.Parallel()
	s, secret := startEngine(t)
	files := map[string]string{
		"list.json": `["web_search", "a.b"]` + "\n", "rates.json": `{"tool:web_search": "5/hour", "*": "9/hour"}` + "\n",
		"list.lines": "web_search\na.b\n", "rates.lines": "tool:web_search=5/hour\n*=9/hour\n",
		"list.crlf": "web_search\r\na.b\r\n", "rates.crlf": "tool:web_search=5/hour\r\n*=9/hour\r\n",
		"list.commas": "web_search, a.b\n", "rates.commas": "tool:web_search=5/hour,*=9/hour\n",
		"list.both": "web_search,\na.b\n", "rates.both": "tool:web_search=5/hour,\n*=9/hour\n",
		"url": "https://ati.example.com\n", "audience": "ati-proxy\r\n", "issuer": "me\n", "ttl": "30m\n", "true": "true\n", "subject": "s:1\n", "id": "web_search\n", "env": "env\n", "secret": secret + "\n",
	}
	sh := s.shell(files)
	run := func(t *testing.T, command string) string {
		t.Helper()
		out, err := sh(command)
		if err != nil {
			t.Fatalf("%s: %v\n%s", command, err, out)
		}
		return out
	}
	list, rates := []any{"web_search", "a.b"}, data{"tool:web_search": "5/hour", "*": "9/hour"}
	for _, form := range []string{"json", "lines", "crlf", "commas", "both"} {
		t.Run(form, func(t *testing.T) {
			from := func(command string) string { return strings.ReplaceAll(command, "FORM", form) }
			run(t, from("vault delete ati/roles/r; vault write ati/roles/r tools=@list.FORM skills=@list.FORM scopes=@list.FORM allowed_agent_ids=@list.FORM allowed_job_ids=@list.FORM allowed_sandbox_ids=@list.FORM rate=@rates.FORM"))
			got := s.read(s.root, "ati/roles/r").Data
			for _, field := range []string{"tools", "skills", "scopes", "allowed_agent_ids", "allowed_job_ids", "allowed_sandbox_ids"} {
				if diff := cmp.Diff(any(list), got[field]); diff != "" {
					t.Errorf("%s (-want +got):\n%s", field, diff)
				}
			}
			if diff := cmp.Diff(any(rates), got["rate"]); diff != "" {
				t.Errorf("rate (-want +got):\n%s", diff)
			}
			var tokens map[string]string
			if out := run(t, from("vault write -format=json -field=tokens ati/batch/r agent_ids=@list.FORM rate=@rates.FORM")); json.Unmarshal([]byte(out), &tokens) != nil || !slices.Equal(slices.Sorted(maps.Keys(tokens)), []string{"a.b", "web_search"}) {
				t.Errorf("batch returns %s", out)
			}
			for _, verb := range []string{"read", "write"} {
				if out := run(t, from("vault "+verb+" -field=scope ati/creds/r tools=@list.FORM rate=@rates.FORM")); strings.TrimSpace(out) != "tool:web_search tool:a.b" {
					t.Errorf("%s of creds has the scope %s", verb, out)
				}
			}
			run(t, from("vault write ati/config accepted_audiences=@list.FORM allowed_scopes=@list.FORM"))
			got = s.read(s.root, "ati/config").Data
			if diff := cmp.Diff([]any{list, list}, []any{got["accepted_audiences"], got["allowed_scopes"]}); diff != "" {
				t.Errorf("config (-want +got):\n%s", diff)
			}
			run(t, "vault write ati/config accepted_audiences= allowed_scopes=")
		})
	}

	run(t, "vault delete ati/config; vault write ati/config proxy_url=@url secret=@secret audience=@audience issuer=@issuer max_ttl=@ttl allow_standby_minting=@true")
	run(t, "vault write ati/roles/r audience=@audience ttl=@ttl max_ttl=@ttl subject=@subject job_id=@subject sandbox_id=@subject generate_lease=@true disabled=@true")
	config, role := s.read(s.root, "ati/config").Data, s.read(s.root, "ati/roles/r").Data
	for field, want := range map[string]any{
		"proxy_url": "https://ati.example.com", "audience": "ati-proxy", "issuer": "me", "max_ttl": json.Number("1800"), "allow_standby_minting": true,
	} {
		if config[field] != want {
			t.Errorf("%s of config is %#v", field, config[field])
		}
	}
	for field, want := range map[string]any{
		"audience": "ati-proxy", "ttl": json.Number("1800"), "max_ttl": json.Number("1800"), "subject": "s:1", "job_id": "s:1", "sandbox_id": "s:1", "generate_lease": true, "disabled": true,
	} {
		if role[field] != want {
			t.Errorf("%s of the role is %#v", field, role[field])
		}
	}
	run(t, "vault write ati/roles/r disabled=false generate_lease=false")
	run(t, "vault read -field=token ati/creds/r >token; VAULT_FORMAT=json vault read -field=token ati/creds/r >quoted; printf 'Bearer %s\\n' \"$(cat token)\" >bearer; fold -w 64 token >folded")
	role = s.read(s.root, "ati/roles/r").Data
	for command, want := range map[string]string{
		"vault write -field=sub ati/creds/r agent_id=@id ttl=@ttl job_id=@id sandbox_id=@id proxy_url=@url": "web_search",
		"vault read -field=ATI_PROXY_URL ati/creds/r format=@env":                                           "https://ati.example.com",
		"vault write -field=allowed ati/check/r tool=@id":                                                   "true",
		"vault write -field=valid ati/validate token=@token scope=@id":                                      "true",
		"vault write -field=error ati/validate token=@quoted":                                               "enclosed in quotes",
		"vault write -field=error ati/validate token=@bearer":                                               `begins with "Bearer "`,
		"vault write -field=error ati/inspect token=@folded":                                                "contains a line break",
		// Rejected.
		"vault write ati/creds/r agent_id=a agent_id=b || true":                            "agent_id must be a string, not a list; if the parameter was given more than once",
		"vault read ati/creds/r agent_id=a agent_id=b || true":                             "agent_id must be a string, not a list; if the parameter was given more than once",
		"vault write ati/roles/r ttl=1h ttl=2h || true":                                    "if the parameter was given more than once",
		"vault write ati/roles/r disabled=true disabled=false || true":                     "if the parameter was given more than once",
		`vault write ati/roles/r subject="{{identity.entity.aliases.\$ACC.name}}" || true`: `contains "$"`,
		`vault write ati/roles/r description=$'a\x1b[2J' || true`:                          "contains the control character",
	} {
		if got := run(t, command); !strings.Contains(got, want) {
			t.Errorf("%s returns %s", command, got)
		}
	}
	if diff := cmp.Diff([]data{config, role}, []data{s.read(s.root, "ati/config").Data, s.read(s.root, "ati/roles/r").Data}); diff != "" {
		t.Errorf("after rejected writes (-before +after):\n%s", diff)
	}
}

// A config or role that was read can be written back, and its facts are preconditions.
func TestClients_WriteBack(t *testing.T) {
	t.Parallel()
	s, _ := startEngine(t)
	s.write(s.root, "ati/config", data{"audience": "a", "accepted_audiences": "b,c", "issuer": "", "allowed_scopes": "tool:*,skill:x", "max_ttl": "12h"})
	s.write(s.root, "ati/roles/r", data{
		"tools": "web_search,github:*", "skills": "x", "rate": data{"*": "5/hour", "tool:github:*": "1/s"}, "ttl": "10m", "max_ttl": "2h", "audience": "b", "subject": "s:{{identity.entity.name}}",
		"job_id": "{{jti}}", "allowed_agent_ids": "sandbox:*", "generate_lease": true, "description": "line 1\n\tline 2",
	})
	sh := s.shell(nil)
	for _, path := range []string{"ati/config", "ati/roles/r"} {
		before := s.read(s.root, path).Data
		if out, err := sh("vault read -format=json -field=data " + path + " | tee old | vault write " + path + " -"); err != nil {
			t.Errorf("%s is not written back: %v\n%s", path, err, out)
		}
		if diff := cmp.Diff(before, s.read(s.root, path).Data); diff != "" {
			t.Errorf("%s written back (-before +after):\n%s", path, diff)
		}
		if path == "ati/config" {
			s.write(s.root, "ati/config/rotate", nil)
			before = s.read(s.root, path).Data
			if out, err := sh("vault write " + path + " - <old"); err == nil || !strings.Contains(out, "key_version") || !cmp.Equal(before, s.read(s.root, path).Data) {
				t.Errorf("a config of the previous key is written back: %v\n%s", err, out)
			}
		}
	}
	// With a change, and as another role.
	config, role := s.read(s.root, "ati/config").Data, s.read(s.root, "ati/roles/r").Data
	config["max_ttl"] = json.Number("36000")
	s.write(s.root, "ati/config", config)
	s.write(s.root, "ati/roles/other", role)
	if diff := cmp.Diff([]data{config, role}, []data{s.read(s.root, "ati/config").Data, s.read(s.root, "ati/roles/other").Data}); diff != "" {
		t.Errorf("(-written +read):\n%s", diff)
	}
}

// A patch changes only what it has, and is checked as a write is. null is the default.
func TestClients_Patch(t *testing.T) {
	t.Parallel()
	s, secret := startEngine(t)
	s.write(s.root, "ati/roles/r", data{"tools": "web_search", "ttl": "2h", "rate": data{"*": "5/hour"}, "allowed_agent_ids": "*"})
	admin := s.policy("patcher", `path "ati/roles/*" { capabilities = ["patch"] }
path "ati/config" { capabilities = ["patch", "sudo"] }`)
	// patch returns the fields that a request changed.
	patch := func(path string, request func()) data {
		t.Helper()
		before := s.read(s.root, path).Data
		request()
		return maps.Collect(func(yield func(string, any) bool) {
			for field, value := range s.read(s.root, path).Data {
				if !cmp.Equal(before[field], value) && !yield(field, value) {
					return
				}
			}
		})
	}
	for _, c := range []struct {
		path, args string
		want       data
	}{
		{"ati/config", "max_ttl=2h", data{"max_ttl": json.Number("7200")}},
		{"ati/config", "issuer=me accepted_audiences=x", data{"issuer": "me", "accepted_audiences": []any{"x"}}},
		{"ati/roles/r", "description=x", data{"description": "x"}},
		{"ati/roles/r", "rate={\"tool:shell\":\"1/s\"}", data{"rate": data{"tool:shell": "1/s"}}},
		{"ati/roles/r", "tools=web_search,shell max_ttl=2h", data{"tools": []any{"web_search", "shell"}, "max_ttl": json.Number("7200")}},
	} {
		got := patch(c.path, func() { s.vault(admin, append([]string{"patch", c.path}, strings.Fields(c.args)...)...) })
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("vault patch %s %s (-want +got):\n%s", c.path, c.args, diff)
		}
	}
	for _, c := range []struct {
		path string
		body data
		want data // nil: status 400, and nothing changes
	}{
		{"ati/config", data{"max_ttl": nil, "issuer": nil, "accepted_audiences": nil}, data{"max_ttl": json.Number("0"), "issuer": "ati-orchestrator", "accepted_audiences": []any{}}},
		{"ati/config", data{"max_ttl": "3h", "key_version": 1}, data{"max_ttl": json.Number("10800")}},
		{"ati/config", data{"max_ttl": nil}, data{"max_ttl": json.Number("0")}},
		{"ati/roles/r", data{"rate": data{"tool:shell": nil, "*": "2/s"}}, data{"rate": data{"*": "2/s"}}},
		{"ati/roles/r", data{"ttl": nil, "max_ttl": nil, "rate": nil, "description": nil, "allowed_agent_ids": nil}, data{"ttl": json.Number("3600"), "max_ttl": json.Number("0"), "rate": data{}, "description": "", "allowed_agent_ids": []any{}}},
		{"ati/config", data{"max_ttl": "3h", "no_such": "x"}, nil},
		{"ati/config", data{"max_ttl": "3h", "no_such": nil}, nil},
		{"ati/config", data{"max_ttl": "3h", "issuer": 7}, nil},
		{"ati/config", data{"max_ttl": "3h", "issuer": secret}, nil},
		{"ati/config", data{"max_ttl": "3h", "proxy_url": nil}, nil},
		{"ati/config", data{"max_ttl": "3h", "secret": nil}, nil},
		{"ati/config", data{"max_ttl": "3h", "key_version": 7}, nil},
		{"ati/roles/r", data{"ttl": "1m", "no_such": "x"}, nil},
		{"ati/roles/r", data{"ttl": "1m", "tools": data{"a": "b"}}, nil},
		{"ati/roles/r", data{"ttl": "1m", "disabled": []any{}}, nil},
		{"ati/roles/r", data{"ttl": "1m", "subject": "x", "audience": secret}, nil},
		{"ati/roles/r", data{"ttl": "1m", "tools": nil}, nil},
		{"ati/roles/r", data{"ttl": "1m", "name": "other"}, nil},
	} {
		want := map[bool]int{true: http.StatusBadRequest, false: http.StatusNoContent}[c.want == nil]
		got := patch(c.path, func() {
			if status, body := s.send(admin, "PATCH", c.path, nil, c.body); status != want && !(c.want != nil && status == http.StatusOK) || strings.Contains(body, secret) {
				t.Errorf("PATCH %s %v returns %d, want %d: %s", c.path, c.body, status, want, body)
			}
		})
		if diff := cmp.Diff(c.want, got); diff != "" && len(c.want)+len(got) > 0 {
			t.Errorf("PATCH %s %v (-want +got):\n%s", c.path, c.body, diff)
		}
	}
	without := s.policy("without", `path "ati/config" { capabilities = ["create", "read", "update", "patch", "delete"] }
path "ati/roles/*" { capabilities = ["create", "read", "update", "delete"] }`)
	for _, c := range []struct {
		token, request string
		want           int
	}{
		{without, "PATCH ati/config", 403}, {without, "PATCH ati/roles/r", 403}, {s.root, "PATCH ati/roles/nobody", 400}, {s.root, "PATCH ati/proxy-env", 405}, {s.root, "PUT ati/roles/r", 400},
	} {
		method, path, _ := strings.Cut(c.request, " ")
		if status, body := s.send(c.token, method, path, nil, data{"description": nil}); status != c.want {
			t.Errorf("%s with null returns %d, want %d: %s", c.request, status, c.want, body)
		}
	}
}
