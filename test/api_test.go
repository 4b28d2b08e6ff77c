//go:build docs

package test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// apiPage is written by make api and compared with the engine by make docs-test.
const apiPage = "../docs/api.md"

const apiIntro = `# API

The paths of the engine, mounted at ` + "`ati/`" + `. ` + "`make api`" + ` generates this page from the path schemas and the
responses of a real server, and ` + "`make docs-test`" + ` fails if it is out of date.

Requests require the header ` + "`X-Vault-Token`" + `, except for ` + "`jwks`" + `. Send the parameters of a ` + "`POST`" + ` or ` + "`PUT`" + `
in the body, as a JSON object, and those of a ` + "`GET`" + ` in the query: Vault ignores parameters in other places.
A list is a JSON array, or a string of items separated by commas or line breaks. Rates are a JSON object, or items such as
` + "`pattern=count/unit`" + `. A duration is a number of seconds, or a string such as ` + "`90s`" + ` or ` + "`1h`" + `.

Invalid requests return ` + "`400`" + ` with a message and change nothing. These include parameters that are
null or unknown, which only reads that do not mint, lists, and deletes ignore, and empty parameters of ` + "`creds`" + ` and ` + "`batch`" + `. ` + "`403`" + ` means that no policy allows the request, ` + "`404`" + `
that the config or role to read does not exist, and ` + "`500`" + ` an error of Vault or its storage. [Errors](errors.md)
lists every message.

The examples omit the response envelope (` + "`request_id`" + `, ` + "`lease_id`" + `, ` + "`auth`" + `), except for the lease of a role that
creates leases. Tokens and keys are shortened.
`

// apiPaths has an example of each path, in the order of the page. apiSession has at least
// one request for each of their operations.
var apiPaths = []string{
	"config", "config/rotate", "config/rotate/stage", "config/rotate/activate", "config/rotate/rollback", "config/rotate/retire",
	"proxy-env", "proxy-env/1", "guard", "jwks", "roles", "roles/researcher", "creds/researcher", "batch/researcher", "check/researcher", "validate", "inspect", "revoke", "revoke/researcher", "revoked",
}

// apiRequest is a request of apiSession, which the samples on the page come from.
type apiRequest struct {
	section, method, path, body string // without a section, not on the page
	status                      int
}

// Placeholders for the latest token and for a private key.
const (
	tokenPlaceholder      = "TOKEN_PLACEHOLDER"
	privateKeyPlaceholder = "PRIVATE_KEY_PLACEHOLDER"
)

var apiSession = []apiRequest{
	{"config", "POST", "config", `{"proxy_url": "https://ati.example.com", "secret": "` + oldSecret + `", "max_ttl": "24h"}`, 204},
	{"config", "PATCH", "config", `{"max_ttl": null, "issuer": "ati-orchestrator"}`, 204},
	{"config", "GET", "config", "", 200},
	{"roles/researcher", "POST", "roles/researcher", `{"tools": ["web_search", "arxiv:*"], "skills": ["summarize"], "rate": {"tool:arxiv:*": "30/hour", "tool:arxiv_*": "30/hour"}, "ttl": "1h", "max_ttl": "4h", "allowed_agent_ids": ["sandbox:*"], "job_id": "{{jti}}"}`, 204},
	{"roles/researcher", "PATCH", "roles/researcher", `{"rate": {"tool:arxiv:*": "60/hour", "tool:arxiv_*": null}}`, 200},
	{"roles/researcher", "GET", "roles/researcher", "", 200},
	{"roles", "LIST", "roles?limit=2&after=abc", "", 200},
	{"creds/researcher", "GET", "creds/researcher", "", 200},
	{"creds/researcher", "POST", "creds/researcher", `{"agent_id": "sandbox:1", "tools": ["web_search"], "ttl": "10m"}`, 200},
	{"validate", "POST", "validate", `{"token": "` + tokenPlaceholder + `", "scope": "tool:web_search"}`, 200},
	{"inspect", "POST", "inspect", `{"token": "` + tokenPlaceholder + `"}`, 200},
	{"creds/researcher", "GET", "creds/researcher?tools=web_search&format=env", "", 200},
	{"creds/researcher", "GET", "creds/researcher?tools=github:delete_repo", "", 400},
	{"", "POST", "roles/leased", `{"tools": ["web_search"], "generate_lease": true}`, 200},
	{"creds/researcher", "GET", "creds/leased", "", 200},
	{"batch/researcher", "POST", "batch/researcher", `{"agent_ids": ["sandbox:1", "sandbox:2"], "ttl": "30m"}`, 200},
	{"revoke", "POST", "revoke", `{"token": "` + tokenPlaceholder + `"}`, 200},
	{"revoke", "POST", "revoke", `{"jti": "5b1a9a1e-6f3f-7e4e-2a55-0c8f7f3f9d10"}`, 200},
	{"revoke/researcher", "POST", "revoke/researcher", `{"agent_id": "sandbox:2"}`, 200},
	{"revoked", "LIST", "revoked", "", 200},
	{"revoked", "GET", "revoked?limit=1", "", 200},
	{"guard", "GET", "guard", "", 200},
	{"check/researcher", "GET", "check/researcher?tool=arxiv:search", "", 200},
	{"check/researcher", "POST", "check/researcher", `{"scope": "tool:github:delete_repo"}`, 200},
	{"proxy-env", "GET", "proxy-env", "", 200},
	{"config/rotate/stage", "POST", "config/rotate/stage", `{"proxy_url": "https://ati-green.example.com", "algorithm": "ES256", "private_key": "` + privateKeyPlaceholder + `"}`, 200},
	{"proxy-env/1", "GET", "proxy-env/2", "", 200},
	{"proxy-env/1", "GET", "proxy-env/3", "", 400},
	{"jwks", "GET", "jwks", "", 200},
	{"config/rotate/activate", "POST", "config/rotate/activate", "", 200},
	{"config/rotate", "GET", "config/rotate", "", 200},
	{"config/rotate/rollback", "POST", "config/rotate/rollback", "", 200},
	{"", "POST", "config/rotate/activate", "", 200},
	{"config/rotate/retire", "POST", "config/rotate/retire", "", 200},
	{"", "POST", "config/rotate/stage", `{"algorithm": "HS256", "secret": "` + newSecret + `", "proxy_url": "https://ati-blue.example.com"}`, 200},
	{"config/rotate/stage", "DELETE", "config/rotate/stage", "", 204},
	{"config/rotate", "POST", "config/rotate", `{"algorithm": "HS256", "secret": "` + newSecret + `"}`, 200},
	{"validate", "POST", "validate", `{"token": "` + tokenPlaceholder + `"}`, 200},
	{"roles/researcher", "DELETE", "roles/researcher", "", 204},
	{"config", "DELETE", "config", "", 200},
}

const newSecret = "1e2d3c4b5a69788796a5b4c3d2e1f00f1e2d3c4b5a69788796a5b4c3d2e1f00f"

func TestDocsAPI(t *testing.T) {
	t.Parallel()
	s := startVault(t)
	s.mountEngine()
	s.vault(s.root, "secrets", "disable", "ati")
	s.vault(s.root, "secrets", "enable", "-path=ati", pluginName)

	_, paths := s.operations()
	for _, path := range paths {
		if name := examplePath(path); !slices.Contains(apiPaths, name) {
			t.Errorf("the page has no section for %s: add %q to apiPaths, and a request for each operation to apiSession", path, name)
		}
	}
	samples, shown := apiSamples(t, s)
	var sections, contents strings.Builder
	tables := map[string]string{} // table → heading of the first section that contains it
	for _, path := range apiPaths {
		heading, section := apiSection(t, s, path, shown[path], tables)
		fmt.Fprintf(&contents, "- [`%s`](%s)\n", heading, anchor(heading))
		fmt.Fprintf(&sections, "\n## %s\n\n%s%s", heading, section, samples[path])
	}
	page := apiIntro + "\n" + contents.String() + sections.String()
	if os.Getenv("UPDATE") != "" {
		if t.Failed() {
			t.Fatalf("%s was not written", apiPage)
		}
		if err := os.WriteFile(apiPage, []byte(page), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	old, err := os.ReadFile(apiPage)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(strings.Split(string(old), "\n"), strings.Split(page, "\n")); diff != "" {
		t.Errorf("docs/api.md is out of date; make api writes it (-page +now):\n%s", diff)
	}
}

// examplePath returns the path of an example for a path of the OpenAPI document, such as
// roles/researcher for ati/roles/{name}.
func examplePath(path string) string {
	return strings.NewReplacer("ati/", "", "{name}", "researcher", "{version}", "1").Replace(path)
}

// apiSamples returns the requests and responses of apiSession by section, and the methods
// that each section shows.
func apiSamples(t *testing.T, s *server) (samples map[string]string, shown map[string][]string) {
	samples, shown = map[string]string{}, map[string][]string{}
	start, token, private := time.Now(), "", rfcPrivateKey(t)
	for _, r := range apiSession {
		body := strings.ReplaceAll(r.body, tokenPlaceholder, token)
		body = strings.ReplaceAll(body, privateKeyPlaceholder, strings.ReplaceAll(private, "\n", `\n`))
		var d data
		if body != "" {
			if err := json.Unmarshal([]byte(body), &d); err != nil {
				t.Fatalf("%s %s: %v", r.method, r.path, err)
			}
		}
		status, response := s.send(s.root, r.method, "ati/"+r.path, nil, d)
		if status != r.status {
			t.Fatalf("%s %s returns %d, want %d: %s", r.method, r.path, status, r.status, response)
		}
		if m := jwts.FindString(response); m != "" && strings.HasPrefix(r.path, "creds/researcher") && r.method == "POST" {
			token = m
		}
		if r.section == "" {
			continue
		}
		shown[r.section] = append(shown[r.section], r.method)
		text := fmt.Sprintf("%s /v1/ati/%s\n", r.method, r.path)
		if d != nil {
			text += indentJSON(t, d) + "\n"
		}
		text += fmt.Sprintf("\n%d\n", status)
		if status != http.StatusNoContent {
			text += indentJSON(t, withoutEnvelope(t, response)) + "\n"
		}
		samples[r.section] += "\n```text\n" + normalizeSample(text, start) + "```\n"
	}
	return samples, shown
}

// rfcPrivateKey returns the key in appendix A.3 of RFC 7515.
func rfcPrivateKey(t *testing.T) string {
	t.Helper()
	d, err := base64.RawURLEncoding.DecodeString("jpsQnnGQmL-YBIffH1136cspYG6-0iY7X1fCE9-E9LI")
	if err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), d)
	if err != nil {
		t.Fatal(err)
	}
	private, _ := encodePEM(t, key)
	return private
}

// withoutEnvelope removes the fields that Vault adds to every response.
func withoutEnvelope(t *testing.T, response string) data {
	t.Helper()
	all, kept := data{}, data{}
	decoder := json.NewDecoder(strings.NewReader(response))
	decoder.UseNumber()
	if err := decoder.Decode(&all); err != nil {
		t.Fatal(err)
	}
	if _, ok := all["request_id"]; !ok {
		return all // a raw response, or errors
	}
	names := []string{"data", "warnings"}
	if all["lease_id"] != "" {
		names = append(names, "lease_id", "lease_duration", "renewable")
	}
	for _, name := range names {
		if all[name] != nil {
			kept[name] = all[name]
		}
	}
	return kept
}

func indentJSON(t *testing.T, value any) string {
	t.Helper()
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(value); err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(b.String())
}

var (
	samplePEM        = regexp.MustCompile(`(-----BEGIN PRIVATE KEY-----\\n\w{8})[^"]*`)
	sampleJWT        = regexp.MustCompile(`(eyJ[\w-]+\.eyJ[\w-]{17})[\w-]*\.[\w-]*`)
	sampleHex        = regexp.MustCompile(`\b([0-9a-f]{8})[0-9a-f]{56}\b`)
	sampleUUID       = regexp.MustCompile(`\b[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b`)
	leaseID          = regexp.MustCompile(`(creds/leased/)\w+`)
	leaseTime        = regexp.MustCompile(`("lease_duration": )359\d`)
	sampleGeneration = regexp.MustCompile(`("generation": )\d+`)
	sampleTime       = regexp.MustCompile(`\b20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ|\b1[789]\d{8}\b`)
)

// normalizeSample makes a sample independent of the time: it shortens tokens and keys, and
// shifts times so that start is in the first minute of 2027.
func normalizeSample(text string, start time.Time) string {
	text = samplePEM.ReplaceAllString(text, "$1…")
	text = sampleJWT.ReplaceAllString(text, "$1…")
	text = sampleHex.ReplaceAllString(text, "$1…")
	text = sampleUUID.ReplaceAllString(text, "9c8db6f7-8149-308d-a4f2-df7361e9e336")
	text = leaseID.ReplaceAllString(text, "${1}wVrzH4QJHVCBDLjRRh1hOJqY")
	text = leaseTime.ReplaceAllString(text, "${1}3598") // a second less where the clock was just before the next
	text = sampleGeneration.ReplaceAllString(text, "${1}1798761600000000")
	newYear := time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC)
	return sampleTime.ReplaceAllStringFunc(text, func(text string) string {
		if unix, err := strconv.ParseInt(text, 10, 64); err == nil {
			since := time.Unix(unix, 0).Sub(start.Truncate(time.Second)).Truncate(time.Minute)
			return strconv.FormatInt(newYear.Add(since).Unix(), 10)
		}
		at, err := time.Parse(time.RFC3339, text)
		if err != nil {
			return text
		}
		return newYear.Add(at.Sub(start.Truncate(time.Second)).Truncate(time.Minute)).Format(time.RFC3339)
	})
}

// apiSchema has the parts of an OpenAPI schema that the page uses.
type apiSchema struct {
	Ref         string `json:"$ref"`
	Type        string
	Format      string
	Description string
	Default     any
	Enum        []any
	Items       *apiSchema
	Properties  map[string]apiSchema
	Required    []string
	Attrs       struct{ Sensitive bool } `json:"x-vault-displayAttrs"`
}

type apiContent struct {
	Content map[string]struct{ Schema apiSchema }
}

type apiParameter struct {
	Name, In, Description string
	Schema                apiSchema
}

type apiOperation struct {
	Summary     string
	Parameters  []apiParameter
	RequestBody apiContent
	Responses   map[string]apiContent
}

// apiItem is a path in OpenAPI.
type apiItem struct {
	Get, Post, Patch, Delete *apiOperation
	Sudo                     bool `json:"x-vault-sudo"`
	Unauthenticated          bool `json:"x-vault-unauthenticated"`
	Create                   bool `json:"x-vault-createSupported"`
	Parameters               []apiParameter

	list *apiOperation // OpenAPI has a path of its own, which ends in a slash
}

// apiSection returns a path's section of the page.
func apiSection(t *testing.T, s *server, path string, shown []string, tables map[string]string) (heading, section string) {
	t.Helper()
	status, text := s.send(s.root, "GET", "ati/"+path+"?help=1", nil, nil)
	if status != http.StatusOK {
		t.Fatalf("the help of %s returns %d: %s", path, status, text)
	}
	var help struct {
		Help    string
		OpenAPI struct {
			Paths      map[string]apiItem
			Components struct{ Schemas map[string]apiSchema }
		}
	}
	if err := json.Unmarshal([]byte(text), &help); err != nil {
		t.Fatalf("the help of %s: %v\n%s", path, err, text)
	}
	var item apiItem
	for pattern, described := range help.OpenAPI.Paths {
		heading = "ati/" + strings.NewReplacer("{", ":", "}", "").Replace(strings.Trim(pattern, "/"))
		if strings.HasSuffix(pattern, "/") {
			item.list = described.Get
		} else {
			described.list = item.list
			item = described
		}
	}

	_, rest, _ := strings.Cut(help.Help, "\n\n")
	synopsis, _, _ := strings.Cut(rest, "\n")
	_, description, ok := strings.Cut(help.Help, "## DESCRIPTION\n\n")
	description, commands, example := strings.Cut(description, "\n\n    $ ")
	if !ok || !example {
		t.Fatalf("HelpDescription of %s must have a description, an empty line, and a command that begins with \"    $ \":\n%s", path, help.Help)
	}
	section = fmt.Sprintf("%s\n\n%s\n\n<!-- run by TestDocsPathHelp -->\n```sh\n%s\n```\n\n", escapeMarkdown(synopsis), escapeMarkdown(strings.TrimSpace(description)), strings.ReplaceAll(commands, "\n    $ ", "\n"))

	section += "| request | capabilities | |\n| --- | --- | --- |\n"
	query := ""
	var requests apiSchema
	responses := map[string]apiSchema{}
	for _, o := range []struct {
		method, needs string
		op            *apiOperation
	}{{"POST", "update", item.Post}, {"PATCH", "patch", item.Patch}, {"LIST", "list", item.list}, {"GET", "read", item.Get}, {"DELETE", "delete", item.Delete}} {
		if o.op == nil {
			continue
		}
		if o.method == "POST" && item.Create {
			o.needs = "create, update"
		}
		for _, p := range o.op.Parameters {
			if p.In == "query" && p.Name != "list" && !strings.Contains(query, "`"+p.Name+"`") {
				query += apiRow(p.Name, p.Schema, p.Description)
			}
		}
		if item.Sudo {
			o.needs += ", sudo"
		}
		if item.Unauthenticated {
			o.needs = "none"
		}
		if !slices.Contains(shown, o.method) {
			t.Errorf("apiSession has no request for %s %s: add one with the section %q", o.method, heading, path)
		}
		section += fmt.Sprintf("| `%s /v1/%s` | %s | %s |\n", o.method, heading, o.needs, escapeMarkdown(o.op.Summary))
		resolve := func(c apiContent) (schema apiSchema) {
			for _, content := range c.Content {
				schema = content.Schema
				if name, ok := strings.CutPrefix(schema.Ref, "#/components/schemas/"); ok {
					schema = help.OpenAPI.Components.Schemas[name]
				}
			}
			return schema
		}
		if o.method == "POST" {
			requests = resolve(o.op.RequestBody)
		}
		for code, c := range o.op.Responses {
			if schema := resolve(c); code == "200" && schema.Properties != nil {
				responses[o.method] = schema
			}
		}
	}

	parameters := ""
	for _, p := range item.Parameters {
		if p.In == "path" {
			parameters += apiRow(p.Name, p.Schema, p.Description+" Part of the path.")
		}
	}
	all := []string{"| parameter | type | |\n| --- | --- | --- |\n" + parameters + query + apiRows(requests)}
	for _, method := range slices.Sorted(maps.Keys(responses)) {
		if table := "| response | type | |\n| --- | --- | --- |\n" + apiRows(responses[method]); !slices.Contains(all, table) {
			all = append(all, table)
		}
	}
	for _, table := range all {
		if strings.HasSuffix(table, "--- |\n") {
			continue // no rows
		}
		if first, ok := tables[table]; ok {
			table = fmt.Sprintf("%s: see [`%s`](%s).\n", map[byte]string{'p': "Parameters", 'r': "Response"}[table[2]], first, anchor(first))
		} else {
			tables[table] = heading
		}
		section += "\n" + table
	}
	return heading, section
}

// anchor returns the link to a heading, as GitHub generates it.
func anchor(heading string) string {
	return "#" + strings.NewReplacer("/", "", ":", "").Replace(heading)
}

func apiRows(schema apiSchema) (rows string) {
	for _, name := range slices.Sorted(maps.Keys(schema.Properties)) {
		p := schema.Properties[name]
		text := p.Description
		if slices.Contains(schema.Required, name) && schema.Required != nil {
			text += " Required."
		}
		rows += apiRow(name, p, text)
	}
	return rows
}

func apiRow(name string, schema apiSchema, text string) string {
	kind := schema.Type
	switch {
	case kind == "array" && schema.Items != nil && schema.Items.Type == "string":
		kind = "list of strings"
	case kind == "array":
		kind = "list"
	case kind == "object":
		kind = "map"
	case schema.Format == "duration":
		kind = "duration"
	case schema.Format == "date-time":
		kind = "time"
	}
	text = escapeMarkdown(text)
	if schema.Default != nil {
		text += fmt.Sprintf(" Default: `%v`.", schema.Default)
	}
	if len(schema.Enum) > 0 {
		var values []string
		for _, v := range schema.Enum {
			values = append(values, fmt.Sprintf("`%v`", v))
		}
		text += " One of: " + strings.Join(values, ", ") + "."
	}
	if schema.Attrs.Sensitive {
		text += " Sensitive."
	}
	return fmt.Sprintf("| `%s` | %s | %s |\n", name, kind, text)
}

var markup = regexp.MustCompile("`[^`]*`|[^\\s\"(]*[<*][^\\s\",;)]*")

// escapeMarkdown makes code spans of words with characters that have a meaning in Markdown,
// such as <name> and tool:*.
func escapeMarkdown(text string) string {
	text = markup.ReplaceAllStringFunc(text, func(word string) string {
		if strings.HasPrefix(word, "`") {
			return word
		}
		code := strings.TrimRight(word, ".:")
		return "`" + code + "`" + word[len(code):]
	})
	return strings.ReplaceAll(text, "|", `\|`)
}
