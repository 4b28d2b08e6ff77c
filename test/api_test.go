//go:build docs

package test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const (
	apiFile  = "../docs/api.md"  // written by make api, and compared with the engine by make docs-test
	apiIntro = "testdata/api.md" // its introduction
)

// apiOperation is a section of the page: one or more requests, and the beginnings of the
// paragraphs of their help that it includes.
type apiOperation struct {
	title, requests string
	help            []string
}

// apiFamilies has all requests of the engine, in the order of the page. apiSession has a
// sample of each.
var apiFamilies = []struct {
	title      string
	operations []apiOperation
}{
	{"Configuration", []apiOperation{
		{"Write configuration", "POST config", []string{"To replace the key", "What a read", "guarded states"}},
		{"Patch configuration", "PATCH config", nil},
		{"Read configuration", "GET config", nil},
		{"Delete configuration", "DELETE config", nil},
	}},
	{"Key rotation", []apiOperation{
		{"Read key versions", "GET config/rotate", nil},
		{"Stage a key version", "POST config/rotate/stage", []string{"Guards\naccept"}},
		{"Delete the pending key version", "DELETE config/rotate/stage", nil},
		{"Activate the pending key version", "POST config/rotate/activate", []string{"The current version"}},
		{"Roll back to the previous key version", "POST config/rotate/rollback", []string{"The current version"}},
		{"Retire the previous key version", "POST config/rotate/retire", []string{"Issued tokens"}},
		{"Rotate the key immediately", "POST config/rotate", []string{"With guarded=true", "For rotations"}},
	}},
	{"Keys for proxies", []apiOperation{
		{"Read keys and revocations for a guard", "GET guard", []string{"For ati-guard", "With since"}},
		{"Read the environment of a proxy", "GET proxy-env, GET proxy-env/{version}", []string{"The proxy accepts", "proxy-env has"}},
		{"Read the JWK Set", "GET jwks", []string{"For MCP servers"}},
	}},
	{"Roles", []apiOperation{
		{"Write a role", "POST roles/{name}", []string{"A role lists", "The subject is", "An update changes"}},
		{"Patch a role", "PATCH roles/{name}", nil},
		{"Read a role", "GET roles/{name}", nil},
		{"List roles", "LIST roles", nil},
		{"Delete a role", "DELETE roles/{name}", nil},
	}},
	{"Tokens", []apiOperation{
		{"Generate a token", "POST creds/{name}, GET creds/{name}", []string{"Without parameters", "The claim"}},
		{"Generate tokens for many agents", "POST batch/{name}", []string{"agent_ids lists", "The agent IDs"}},
	}},
	{"Checks", []apiOperation{
		{"Check a role", "POST check/{name}, GET check/{name}", []string{"The proxy requires", "For a skill", "Rates are"}},
		{"Validate a token", "POST validate", []string{"A token that", "The result"}},
		{"Inspect a token", "POST inspect", []string{"Shows all"}},
	}},
	{"Revocation", []apiOperation{
		{"Revoke a token or an agent", "POST revoke", []string{"Takes one", "agent_id revokes", "Proxies behind"}},
		{"Revoke an agent of a role", "POST revoke/{name}", []string{"The role's"}},
		{"List revocations", "LIST revoked", []string{"A revocation is"}},
		{"Read revocations", "GET revoked", nil},
	}},
}

// apiCall is a request of apiSession, which the samples on the page come from.
type apiCall struct {
	request, path, body string
	status              int
	shown               string // the sentence above the sample, or one of the constants below
}

const (
	hidden   = "hidden"                                                   // not on the page
	envelope = "The response to this request is shown with its envelope:" // in the introduction
)

const (
	tokenPlaceholder = "TOKEN_PLACEHOLDER" // for the latest token
	newSecret        = "1e2d3c4b5a69788796a5b4c3d2e1f00f1e2d3c4b5a69788796a5b4c3d2e1f00f"

	// rfcPrivateKey is the key in appendix A.3 of RFC 7515, in JSON.
	rfcPrivateKey = `-----BEGIN PRIVATE KEY-----\nMIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgjpsQnnGQmL+YBIff\nH1136cspYG6+0iY7X1fCE9+E9LKhRANCAAR/zc4ncPbEXUGDy+5v20t7WAczNXvp\n7xO6z248e9FURcfxRM0bvZt+hyzf7bnuufSzaV1uqQskrYpGIyiFiOWt\n-----END PRIVATE KEY-----\n`
)

var apiSession = []apiCall{
	{"POST config", "config", `{"proxy_url": "https://ati.example.com", "secret": "` + oldSecret + `", "max_ttl": "24h"}`, 204, ""},
	{"PATCH config", "config", `{"issuer": "ati-orchestrator", "max_ttl": null}`, 204, ""},
	{"GET config", "config", "", 200, ""},
	{"POST roles/{name}", "roles/researcher", `{"tools": ["web_search", "arxiv:*"], "skills": ["summarize"], "rate": {"tool:web_search": "100/day", "tool:arxiv:*": "30/hour", "tool:arxiv_*": "30/hour"}, "ttl": "1h", "max_ttl": "4h", "allowed_agent_ids": ["sandbox:*"], "job_id": "{{jti}}"}`, 204, ""},
	{"PATCH roles/{name}", "roles/researcher", `{"rate": {"tool:arxiv:*": "60/hour", "tool:arxiv_*": null}}`, 200, ""},
	{"GET roles/{name}", "roles/researcher", "", 200, ""},
	{"LIST roles", "roles?limit=2&after=abc", "", 200, ""},
	{"GET roles", "roles?list=true", "", 200, hidden},
	{"GET creds/{name}", "creds/researcher", "", 200, envelope},
	{"POST creds/{name}", "creds/researcher", `{"agent_id": "sandbox:1", "tools": ["web_search"], "ttl": "10m"}`, 200, ""},
	{"POST validate", "validate", `{"token": "` + tokenPlaceholder + `", "scope": "tool:web_search"}`, 200, ""},
	{"POST inspect", "inspect", `{"token": "` + tokenPlaceholder + `"}`, 200, ""},
	{"GET creds/{name}", "creds/researcher?tools=web_search,arxiv:*&rate=tool:web_search=10/day,tool:arxiv:*=5/hour&format=env", "", 200, "Two tools with lower rates, as environment variables:"},
	{"GET creds/{name}", "creds/researcher?tools=web_search&tools=arxiv:*&rate=tool:web_search=10/day&rate=tool:arxiv:*=5/hour", "", 200, hidden},
	{"GET creds/{name}", "creds/researcher?tools=github:delete_repo", "", 400, "A tool that the role does not grant:"},
	{"POST roles/{name}", "roles/leased", `{"tools": ["web_search"], "generate_lease": true}`, 200, hidden},
	{"GET creds/{name}", "creds/leased", "", 200, "A role that creates leases:"},
	{"POST batch/{name}", "batch/researcher", `{"agent_ids": ["sandbox:1", "sandbox:2"], "ttl": "30m"}`, 200, ""},
	{"POST revoke", "revoke", `{"token": "` + tokenPlaceholder + `"}`, 200, ""},
	{"POST revoke/{name}", "revoke/researcher", `{"agent_id": "sandbox:2"}`, 200, ""},
	{"LIST revoked", "revoked", "", 200, ""},
	{"GET revoked", "revoked?limit=1", "", 200, ""},
	{"GET guard", "guard", "", 200, ""},
	{"GET check/{name}", "check/researcher?tool=arxiv:search", "", 200, ""},
	{"POST check/{name}", "check/researcher", `{"scope": "tool:github:delete_repo"}`, 200, ""},
	{"GET proxy-env", "proxy-env", "", 200, ""},
	{"POST config/rotate/stage", "config/rotate/stage", `{"proxy_url": "https://ati-green.example.com", "algorithm": "ES256", "private_key": "` + rfcPrivateKey + `"}`, 200, ""},
	{"GET proxy-env/{version}", "proxy-env/2", "", 200, ""},
	{"GET proxy-env/{version}", "proxy-env/3", "", 400, "A version that does not exist:"},
	{"GET jwks", "jwks", "", 200, ""},
	{"POST config/rotate/activate", "config/rotate/activate", "", 200, ""},
	{"GET config/rotate", "config/rotate", "", 200, ""},
	{"POST config/rotate/rollback", "config/rotate/rollback", "", 200, ""},
	{"POST config/rotate/activate", "config/rotate/activate", "", 200, hidden},
	{"POST config/rotate/retire", "config/rotate/retire", "", 200, ""},
	{"POST config/rotate/stage", "config/rotate/stage", `{"algorithm": "HS256", "secret": "` + newSecret + `", "proxy_url": "https://ati-blue.example.com"}`, 200, hidden},
	{"DELETE config/rotate/stage", "config/rotate/stage", "", 204, ""},
	{"POST config/rotate", "config/rotate", `{"algorithm": "HS256", "secret": "` + newSecret + `"}`, 200, ""},
	{"POST validate", "validate", `{"token": "` + tokenPlaceholder + `"}`, 200, "A token of a key that was replaced:"},
	{"DELETE roles/{name}", "roles/researcher", "", 204, ""},
	{"DELETE config", "config", "", 200, ""},
}

func TestDocsAPI(t *testing.T) {
	t.Parallel()
	s := startVault(t)
	s.mountEngine()
	s.vault(s.root, "secrets", "disable", "ati")
	s.vault(s.root, "secrets", "enable", "-path=ati", pluginName)

	var all []string
	for _, family := range apiFamilies {
		for _, o := range family.operations {
			all = append(all, strings.Split(o.requests, ", ")...)
		}
	}
	slices.Sort(all)
	operations, _ := s.operations()
	engine := strings.Split(strings.NewReplacer("PUT ati/", "POST ", "ati/", "").Replace(strings.Join(operations, ",")), ",")
	slices.Sort(engine)
	if diff := cmp.Diff(engine, all); diff != "" {
		t.Fatalf("apiFamilies does not have the requests of the engine (-engine +page):\n%s", diff)
	}
	page := s.apiPage(s.apiSamples())
	if os.Getenv("UPDATE") != "" {
		if err := os.WriteFile(apiFile, []byte(page), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff := cmp.Diff(strings.Split(string(readFile(t, apiFile)), "\n"), strings.Split(page, "\n")); diff != "" {
		t.Errorf("docs/api.md is out of date; make api writes it (-page +now):\n%s", diff)
	}
}

// apiPage returns the page, given the samples of each request.
func (s *server) apiPage(samples map[string]string) string {
	p := apiPages{map[string][]description{}, map[string]bool{}, map[string]bool{}}
	var contents, sections strings.Builder
	for _, family := range apiFamilies {
		fmt.Fprintf(&sections, "\n## %s\n", family.title)
		var links []string
		for _, o := range family.operations {
			sections.WriteString(p.section(s, o, samples))
			links = append(links, fmt.Sprintf("[%s](%s)", o.title, "#"+anchor(o.title)))
		}
		fmt.Fprintf(&contents, "- **%s**: %s\n", family.title, strings.Join(links, " · "))
	}
	replacer := strings.NewReplacer("CONTENTS\n", contents.String(), "ENVELOPE", strings.TrimSpace(samples[envelope]))
	return replacer.Replace(string(readFile(s.t, apiIntro))) + sections.String()
}

// examplePath returns the path of an example for a path of the OpenAPI document, such as
// roles/researcher for ati/roles/{name}.
func examplePath(path string) string {
	return strings.NewReplacer("ati/", "", "{name}", "researcher", "{version}", "1").Replace(path)
}

// apiSamples carries out apiSession with curl, and returns its samples by request.
func (s *server) apiSamples() map[string]string {
	samples, start, token := map[string]string{}, time.Now(), ""
	work := s.t.TempDir()
	for _, c := range apiSession {
		payload := strings.ReplaceAll(c.body, tokenPlaceholder, token)
		if err := os.WriteFile(filepath.Join(work, "payload.json"), []byte(payload), 0o600); err != nil {
			s.t.Fatal(err)
		}
		command := c.command()
		status, response := s.runCurl(work, command)
		if status != c.status {
			s.t.Fatalf("%s\nreturns %d, want %d: %s", command, status, c.status, response)
		}
		if m := jwts.FindString(response); m != "" && c.request == "POST creds/{name}" {
			token = m
		}
		section := c.request
		switch c.shown {
		case hidden:
			continue
		case envelope:
			section, response = envelope, mountType.ReplaceAllString(response, "")
		default:
			response = emptyEnvelope.ReplaceAllString(mountType.ReplaceAllString(response, ""), "")
		}
		samples[section] += normalizeSample(c.sample(s.t, payload, command, response), start)
	}
	return samples
}

// command returns the curl command of a request.
func (c apiCall) command() string {
	args, method := []string{"curl"}, strings.Fields(c.request)[0]
	if c.path != "jwks" {
		args = append(args, `--header "X-Vault-Token: $VAULT_TOKEN"`)
	}
	if method == "PATCH" {
		args = append(args, `--header "Content-Type: application/merge-patch+json"`)
	}
	if method != "GET" {
		args = append(args, "--request "+method)
	}
	if c.body != "" {
		args = append(args, "--data @payload.json")
	}
	return strings.Join(append(args, `"$VAULT_ADDR/v1/ati/`+c.path+`"`), " \\\n    ")
}

// printStatus makes curl print the status in the last line.
const printStatus = `curl() { command curl --silent --show-error --noproxy '*' --write-out '\n%{http_code}' "$@"; }`

// runCurl runs a curl command as a reader of the page does.
func (s *server) runCurl(dir, command string) (status int, response string) {
	s.t.Helper()
	cmd := exec.CommandContext(s.t.Context(), "bash", "-c", printStatus+"\n"+command)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "VAULT_ADDR="+s.addr, "VAULT_TOKEN="+s.root)
	out, err := cmd.CombinedOutput()
	s.leaks.remember(out)
	end := bytes.LastIndexByte(out, '\n') + 1
	if status, _ = strconv.Atoi(string(out[end:])); err != nil || status == 0 {
		s.t.Fatalf("%s\n%v: %s", command, err, out)
	}
	return status, string(bytes.TrimSpace(out[:end]))
}

// sample returns a request and its response for the page.
func (c apiCall) sample(t testing.TB, payload, command, response string) string {
	t.Helper()
	text := ""
	if payload != "" {
		text = "\n#### Sample payload\n\n```json\n" + indentJSON(t, payload) + "\n```\n"
	}
	text += "\n#### Sample request\n\n"
	if c.shown != "" {
		text += c.shown + "\n\n"
	}
	text += "<!-- run by TestDocsAPI -->\n```sh\n" + command + "\n```\n\n#### Sample response\n\n"
	if c.status != 200 {
		text += fmt.Sprintf("Status `%d`.\n\n", c.status)
	}
	if response != "" {
		text += "```json\n" + indentJSON(t, response) + "\n```\n\n"
	}
	return strings.TrimSuffix(text, "\n\n") + "\n"
}

var (
	mountType     = regexp.MustCompile(`,"mount_type":"[^"]*"`) // of Vault, but not of OpenBao
	emptyEnvelope = regexp.MustCompile(`"request_id":"[^"]*",(?:"lease_id":"","renewable":false,"lease_duration":0,)?(?:"data":null,"wrap_info":null,)?|,"(?:wrap_info|warnings|auth)":null`)
	listOfStrings = regexp.MustCompile(`\[\s+"[^\[{]{0,60}"\s+\]`) // short
)

// indentJSON indents JSON, with short lists of strings in one line.
func indentJSON(t testing.TB, text string) string {
	t.Helper()
	var b bytes.Buffer
	if err := json.Indent(&b, []byte(text), "", "  "); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	text = strings.NewReplacer(`\u003c`, "<", `\u003e`, ">", `\u0026`, "&").Replace(b.String())
	return listOfStrings.ReplaceAllStringFunc(text, func(list string) string {
		return "[" + strings.Join(strings.Fields(strings.Trim(list, "[]")), " ") + "]"
	})
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
