package test

import (
	"fmt"
	"io"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// Upper bounds for the plugin's peak resident memory under the requests of
// TestHostileRequests: with Vault's limits on JSON; and for requests of 10 to 30 MB, as a
// form, in strings of 1 MB, or to a listener with only the limit of 32 MB. Their transfer
// from Vault to the plugin takes about nine times their size, before the engine sees them.
const (
	maxMemory        = 128 << 20
	maxMemoryOfLarge = 512 << 20
)

// vaultJSONError matches errors of Vault's own JSON checks, which it returns with status
// 500 before the engine sees the request.
var vaultJSONError = regexp.MustCompile(`^{"errors":\["(malformed JSON|duplicate key '|JSON [a-z ]+ exceeds allowed )`)

// TestHostileRequests sends very deep and very large JSON to each path that accepts a
// body: through a listener with limits, which rejects most of it, and through one without
// them, whose requests reach the plugin. OpenBao ignores the settings of the latter. Its
// default limits reject less than those of the former.
func TestHostileRequests(t *testing.T) {
	t.Parallel()
	open := freePort(t)
	s := newServer(t, "trace", fmt.Sprintf(`storage "inmem" {}
listener "tcp" {
  address                      = "127.0.0.1:%s"
  tls_disable                  = true
  max_json_depth               = 100000
  max_json_string_value_length = 100000000
  max_json_object_entry_count  = 10000000
  max_json_array_element_count = 10000000
  max_json_token               = 10000000
}`, open))
	secret := s.mountEngine()
	s.write(s.root, "ati/roles/r", data{"tools": "x", "allowed_agent_ids": "*"})
	before := s.read(s.root, "ati/config/rotate").Data
	pids := s.pluginProcesses()

	repeat := strings.Repeat
	long := repeat("x", 1<<20)
	items := func(n int, item func(i int) string) string {
		var b strings.Builder
		for i := range n {
			if i > 0 {
				b.WriteByte(',')
			}
			b.WriteString(item(i))
		}
		return b.String()
	}
	// Bodies with one field, whose name replaces %q and %s.
	forms := map[string]string{
		"lists, 10,000 deep":    `{%q:` + repeat("[", 10_000) + repeat("]", 10_000) + `}`,
		"objects, 10,000 deep":  `{%q:` + repeat(`{"a":`, 10_000) + `1` + repeat("}", 10_000) + `}`,
		"lists, 299 deep":       `{%q:` + repeat("[", 290) + repeat("]", 290) + `}`,
		"an open list":          `{%q:` + repeat("[", 1_000_000),
		"a string of 1 MB":      `{%q:"` + long + `"}`,
		"a list of such":        `{%q:["` + long + `","` + long + `"]}`,
		"as many in a string":   `{%q:"` + repeat("a,", 100_000) + `"}`,
		"1,000,000 blanks":      `{%q:"` + repeat(" ", 500_000) + "a" + repeat(" ", 500_000) + `"}`,
		"an empty name":         `{"":1,%q:1}`,
		"a key given twice":     `{%[1]q:"r",%[1]q:"r"}`,
		"a huge number":         `{%q:` + repeat("9", 100_000) + `}`,
		"a huge exponent":       `{%q:1e999999999}`,
		"a negative zero":       `{%q:-0.0}`,
		"a duration of years":   `{%q:"9999999999999999h"}`,
		"invalid UTF-8":         "{%q:\"a\xff\xfe\xc3\x28\"}",
		"half a surrogate":      `{%q:"\ud800"}`,
		"NUL bytes":             `{%q:"a\u0000b"}`,
		"NUL bytes in its name": `{"%s\u0000":"a"}`,
		"a raw NUL byte":        "{%q:\"a\x00b\"}",
		"no object":             `[%q]`,
		"nothing":               ``,
		"no JSON":               "\x80\x81",
		"null":                  `{%q:null}`,
		"PEM without an end":    `{%q:"-----BEGIN PRIVATE KEY-----` + repeat(`\nAAAA`, 100_000) + `"}`,
		"braces":                `{%q:"` + repeat("{{", 200_000) + `"}`,
	}
	heavy := map[string]struct {
		body  string
		paths []string // that receive it on the listener without Vault's limits
	}{
		"100,000 unknown keys": {`{` + items(100_000, func(i int) string { return fmt.Sprintf(`"k%d":1`, i) }) + `}`, []string{"ati/creds/r"}},
		"100,000 rates":        {`{"rate":{` + items(100_000, func(i int) string { return fmt.Sprintf(`"tool:a%d":"1/s"`, i) }) + `}}`, []string{"ati/roles/r"}},
		"100,000 items":        {`{"agent_ids":[` + items(100_000, func(i int) string { return fmt.Sprintf(`"sandbox:%d"`, i) }) + `]}`, []string{"ati/batch/r", "ati/creds/r"}},
		"30 MB":                {`{"token":"` + repeat("eyJ", 10<<20) + `"}`, []string{"ati/validate", "ati/config"}},
	}
	// One field of each type per path, because each type is parsed by different code.
	paths := map[string][]string{
		"ati/config":                 {"accepted_audiences", "private_key", "max_ttl"},
		"ati/config/rotate":          {"proxy_url", "private_key"},
		"ati/config/rotate/stage":    {"secret"},
		"ati/config/rotate/activate": {"x"},
		"ati/config/rotate/rollback": {"x"},
		"ati/config/rotate/retire":   {"x"},
		"ati/roles/r":                {"rate", "subject", "disabled"},
		"ati/creds/r":                {"tools", "rate"},
		"ati/batch/r":                {"agent_ids"},
		"ati/check/r":                {"tool"},
		"ati/validate":               {"token", "leeway"},
		"ati/inspect":                {"token"},
		"ati/revoke":                 {"token", "jti"},
		"ati/revoke/r":               {"agent_id"},
	}
	_, all := s.operations()
	for _, path := range all {
		at := strings.Replace(path, "{name}", "r", 1)
		if status, _ := s.send(s.root, "PUT", at, nil, data{"no such": 1}); status == http.StatusBadRequest && paths[at] == nil {
			t.Errorf("%s accepts a body, but this test does not cover it: add it to paths in this test", at)
		}
	}

	requests, statuses := 0, map[int]int{}
	send := func(address, path, name, body string) {
		t.Helper()
		requests++
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, address+"/v1/"+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("X-Vault-Token", s.root)
		if name == "a form" { // Vault's limits on JSON do not apply
			req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Errorf("%s: %s: %v", path, name, err)
			return
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Errorf("%s: %s: %v", path, name, err)
		}
		statuses[resp.StatusCode]++
		switch {
		case resp.StatusCode >= 500 && !vaultJSONError.Match(text):
			t.Errorf("%s: %s returns %d: %.300s", path, name, resp.StatusCode, text)
		case len(text) > 256<<10: // Vault itself quotes numbers of 100 KB
			t.Errorf("%s: the response to %s has %d bytes", path, name, len(text))
		}
	}
	start := time.Now()
	checkMemory := func(bound int) {
		t.Helper()
		memory := peakMemory(t, pids[0])
		t.Logf("%d requests so far, in %v; statuses %v; peak memory of the plugin %d MB, of Vault %d MB",
			requests, time.Since(start).Round(100*time.Millisecond), statuses, memory>>20, peakMemory(t, s.process.Pid)>>20)
		if memory > bound {
			t.Errorf("the plugin's peak memory was %d MB, more than %d MB", memory>>20, bound>>20)
		}
	}
	for _, listener := range []struct {
		address    string
		everywhere bool // send the heavy bodies to every path
		memory     int
	}{{s.addr, true, maxMemory}, {"http://127.0.0.1:" + open, false, maxMemoryOfLarge}} {
		for path, fields := range paths {
			if listener.everywhere {
				fields = fields[:1] // Vault rejects most of the bodies
			}
			for _, field := range fields {
				for name, form := range forms {
					if !listener.everywhere && len(form) > 1_000_000 && field != fields[0] || (path == "ati/config/rotate" || path == "ati/config/rotate/stage") && form == "" {
						continue // an empty request is valid there and creates a key
					}
					if strings.Contains(form, "%") {
						form = fmt.Sprintf(strings.ReplaceAll(form, "%s", "%[1]s"), field)
					}
					send(listener.address, path, field+": "+name, form)
				}
			}
			for name, c := range heavy {
				if listener.everywhere || slices.Contains(c.paths, path) {
					send(listener.address, path, name, c.body)
				}
			}
		}
		checkMemory(listener.memory)
		for path, body := range map[string]string{
			"ati/creds/r":  "tools=" + repeat(",", 9<<20),
			"ati/batch/r":  "agent_ids=" + repeat("%01", 3<<20),
			"ati/roles/r":  "no+such" + repeat("%22", 3<<20) + "=1",
			"ati/check/r":  "tool=" + repeat("%FF", 3<<20),
			"ati/validate": "token=" + repeat("eyJ.", 2<<20),
		} {
			send(listener.address, path, "a form", body)
		}
		for path, body := range map[string]string{ // within the engine's limit
			"ati/creds/r": "agent_id=" + repeat("%01", 1<<20-100),
			"ati/roles/r": "subject={{identity." + repeat("%01", 1<<20-100) + "}}",
			"ati/batch/r": "no+such" + repeat("%01", 1<<20-100) + "=1",
		} {
			send(listener.address, path, "a form", body)
		}
		large := `{"x":["` + repeat(long+`","`, 29) + `"]}`
		for _, path := range []string{"ati/creds/r", "ati/jwks"} {
			send(listener.address, path, "30 strings of 1 MB", large)
		}
		checkMemory(maxMemoryOfLarge)
	}
	if got := s.pluginProcesses(); !slices.Equal(got, pids) {
		t.Errorf("the plugin's processes are %v, were %v", got, pids)
	}
	if diff := cmp.Diff(before, s.read(s.root, "ati/config/rotate").Data); diff != "" {
		t.Errorf("the key versions have changed (-before +after):\n%s", diff)
	}
	s.write(s.root, "ati/roles/r", data{"tools": "x", "disabled": false, "subject": "", "allowed_agent_ids": "*"})
	claims(t, secret, s.read(s.root, "ati/creds/r"))
}

// peakMemory returns the peak resident memory of a process in bytes.
func peakMemory(t testing.TB, pid int) int {
	t.Helper()
	b := readFile(t, fmt.Sprintf("/proc/%d/status", pid))
	m := regexp.MustCompile(`(?m)^VmHWM:\s+(\d+) kB$`).FindSubmatch(b)
	if m == nil {
		t.Fatalf("no VmHWM in\n%s", b)
	}
	kb, err := strconv.Atoi(string(m[1]))
	if err != nil {
		t.Fatal(err)
	}
	return kb << 10
}
