package main

import (
	"encoding/xml"
	"io"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// demo is what the demo may print, with the values of one run.
const demo = `
# A server.
$ export VAULT_TOKEN=x

# The team writes.
$ vault write ati/config proxy_url=https://ati.example.com
WARNING!

  * a warning

$ vault write ati/roles/researcher tools=web_search \
    ttl=1h
Success! Data written to: ati/roles/researcher

# Somebody reads.
$ vault read ati/creds/researcher
Key            Value
expires_at     1795444363
jti            e2d85bfb-be88-5386-7a51-2e9c402f3830
token          eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJ0b2tlbi1vcmNoZXN0.XV9DKi3b-_

# Somebody is refused.
$ vault read ati/creds/researcher tools=web_search
Key            Value
$ vault read ati/creds/researcher tools=github:delete_repo
URL: GET http://127.0.0.1:22811/v1/ati/creds/researcher
Code: 400. Errors:
* scope "x" < "y" & more

# The claims.
$ printf %s "$token" | vault write ati/validate token=- scope=tool:web_search
allowed        true
rate           map[]
scope          x
sub            y
valid          true
`

// The lines that the demo has for all of the scenes.
var drawn = []line{
	{"# The team writes.", blue},
	{"$ vault write ati/config proxy_url=https://ati.example.com", white},
	{"…", grey},
	{`$ vault write ati/roles/researcher tools=web_search \`, white},
	{"    ttl=1h", white},
	{"Success! Data written to: ati/roles/researcher", plain},
	{},
	{"# Somebody reads.", blue},
	{"$ vault read ati/creds/researcher", white},
	{"Key            Value", plain},
	{"expires_at     1767229200", plain},
	{"jti            0d4f6a1e-7c3b-4e52-9a86-2b1c5d7e9f30", plain},
	{"token          eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJ0b2tlbi1v…", plain},
	{"$ vault read ati/creds/researcher tools=github:delete_repo", white},
	{"…", grey},
	{"Code: 400. Errors:", red},
	{`* scope "x" < "y" & more`, red},
	{},
	{"# The claims.", blue},
	{`$ printf %s "$token" | vault write ati/validate token=- scope=tool:web_search`, white},
	{"…", grey},
	{"rate           map[]", plain},
	{"scope          x", plain},
	{"sub            y", plain},
	{"valid          true", plain},
}

func TestTheScenesArePlayed(t *testing.T) {
	t.Parallel()
	got, err := play(parse(demo), scenes)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(drawn, got); diff != "" {
		t.Error(diff)
	}
}

func TestTwoRunsAreDrawnTheSame(t *testing.T) {
	t.Parallel()
	another := strings.NewReplacer(
		"1795444363", "1895444300",
		"e2d85bfb-be88-5386-7a51-2e9c402f3830", "2c810dab-ad91-23fa-79d4-23d3305ff640",
		"cmNoZXN0.XV9DKi3b-_", "cmNoZXN0AAAA.bbbb",
		"22811", "20001",
	).Replace(demo)
	if picture(t, demo) != picture(t, another) {
		t.Error("they aren't")
	}
}

// What a line has of XML's own characters is its text, and each piece stands in
// its column.
func TestThePictureIsXML(t *testing.T) {
	t.Parallel()
	var got struct {
		Title string `xml:"title"`
		Desc  string `xml:"desc"`
		Text  []struct {
			X    string `xml:"x,attr"`
			Text string `xml:",chardata"`
		} `xml:"g>text"`
	}
	if err := xml.Unmarshal([]byte(picture(t, demo)), &got); err != nil {
		t.Fatal(err)
	}
	if want := `* scope "x" < "y" & more`; !strings.Contains(got.Desc, "\n"+want+"\n") {
		t.Errorf("the description is %s", got.Desc)
	}
	x := map[string]string{}
	for _, text := range got.Text {
		x[text.Text] = text.X
	}
	for text, want := range map[string]string{"ttl=1h": "53.6", "expires_at": "20.0", "1767229200": "146.0", `* scope "x" < "y" & more`: "20.0"} {
		if x[text] != want {
			t.Errorf("%q stands at %q, want %q", text, x[text], want)
		}
	}
}

func TestADemoWithoutTheScenesIsAnError(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct{ old, new, want string }{
		"a command that isn't run": {
			"vault write ati/roles/researcher", "vault write ati/roles/writer",
			`the demo doesn't run "vault write ati/roles/researcher ", or earlier than the scenes of tools/picture say`,
		},
		"a line that isn't printed": {
			"\nscope ", "\nscopes ",
			`no line of the answer to "printf %s \"$token\" | vault write ati/validate " begins with "scope ", as the scenes of tools/picture say`,
		},
		"a line that is too long": {
			"# The claims.", "# " + strings.Repeat("…", 83),
			"a line has 85 columns, and the picture 84: # " + strings.Repeat("…", 83),
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			err := run(strings.NewReader(strings.Replace(demo, tc.old, tc.new, 1)), io.Discard)
			if err == nil || err.Error() != tc.want {
				t.Errorf("got the error %v, want %s", err, tc.want)
			}
		})
	}
}

func picture(t *testing.T, demo string) string {
	t.Helper()
	var out strings.Builder
	if err := run(strings.NewReader(demo), &out); err != nil {
		t.Fatal(err)
	}
	return out.String()
}
