package atisecrets_test

import (
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"
)

// A sample is a value of a field that a path's schema declares.
type sample struct {
	value any
	reads any  // how a response shows it; nil: like value
	with  data // other fields that the request needs, or has instead of the usual ones
}

// TestSchema_FieldsAreStoredAndReturned writes each field that a path's schema
// declares, and reads it back after a restart. It fails on a field that is
// declared but not parsed, not stored, or not returned.
func TestSchema_FieldsAreStoredAndReturned(t *testing.T) {
	t.Parallel()
	pair := newPair(t)
	key := map[string]sample{
		"algorithm": {value: "ES256"},
		"proxy_url": {value: "https://new.example.com"},
		// Keys are never returned. Their fingerprints are.
		"secret":      {value: greenSecret, reads: greenFingerprint},
		"private_key": {value: pair.pkcs8, reads: pair.fingerprint, with: data{"algorithm": "ES256"}},
	}
	config := merge(key, map[string]sample{
		"audience":           {value: "a"},
		"accepted_audiences": {value: "b,c", reads: []string{"b", "c"}},
		"issuer":             {value: "i"},
		"allowed_scopes":     {value: "tool:*", reads: []string{"tool:*"}},
		"max_ttl":            {value: "2h", reads: int64(7200)},

		"allow_standby_minting": {value: true},
		"guarded":               {value: true},
		"rotation_period":       {value: "48h", reads: int64(48 * 3600), with: data{"guarded": true}},
		"rotation_overlap":      {value: "10m", reads: int64(600)},
	})
	role := map[string]sample{
		"tools":               {value: "a,b", reads: []string{"a", "b"}},
		"skills":              {value: "a,b", reads: []string{"a", "b"}},
		"scopes":              {value: "help", reads: []string{"help"}},
		"rate":                {value: "*=1/s", reads: map[string]string{"*": "1/s"}},
		"ttl":                 {value: "30m", reads: int64(1800)},
		"max_ttl":             {value: "2h", reads: int64(7200)},
		"audience":            {value: "mcp"},
		"subject":             {value: "{{identity.entity.name}}"},
		"job_id":              {value: "{{jti}}"},
		"sandbox_id":          {value: "box"},
		"allowed_agent_ids":   {value: "a-*", reads: []string{"a-*"}},
		"allowed_job_ids":     {value: "j-*", reads: []string{"j-*"}},
		"allowed_sandbox_ids": {value: "s-*", reads: []string{"s-*"}},
		"generate_lease":      {value: true},
		"disabled":            {value: true},
		"description":         {value: "d"},
	}
	for path, c := range map[string]struct {
		op       logical.Operation
		required data
		samples  map[string]sample
		readPath string
		prefix   string // of the names in the response
		keyName  string // the fingerprint's name in the response, without the prefix
	}{
		"config":              {logical.CreateOperation, data{"proxy_url": testProxy}, config, "config", "", "key_fingerprint"},
		"roles/new":           {logical.CreateOperation, data{"tools": "x"}, role, "roles/new", "", ""},
		"config/rotate":       {logical.UpdateOperation, nil, key, "config/rotate", "current_", "fingerprint"},
		"config/rotate/stage": {logical.UpdateOperation, nil, key, "config/rotate", "pending_", "fingerprint"},
	} {
		written := func(t *testing.T, d data) data {
			m := newMount(t)
			if path != "config" {
				m = configured(t, data{"accepted_audiences": "mcp"}, nil)
			}
			m.ok(c.op, path, d)
			m.b = m.newBackend()
			return m.ok(logical.ReadOperation, c.readPath, nil).Data
		}
		fields := newMount(t).b.Route(path).Fields
		returned := newMount(t).responseFields(logical.ReadOperation, c.readPath)
		for _, name := range sampled(t, path, c.samples) {
			t.Run(path+" "+name, func(t *testing.T) {
				t.Parallel()
				s := c.samples[name]
				sensitive := attributes(fields[name]).Sensitive
				shown := c.prefix + name
				if sensitive {
					shown = c.prefix + c.keyName
				}
				if returned[shown] == nil {
					t.Fatalf("the response schema of %s does not declare %s, which shows what %s was set to", c.readPath, shown, name)
				}
				with := merge(c.required, s.with)
				want, got := written(t, with), written(t, merge(with, data{name: s.value}))
				for field := range want { // the key of a mount is random unless the request sets it
					if strings.HasSuffix(field, "fingerprint") || strings.HasSuffix(field, "generated") {
						want[field] = got[field]
					}
				}
				reads := s.reads
				if reads == nil {
					reads = s.value
				}
				if cmp.Equal(want[shown], reads) && !sensitive {
					t.Errorf("%s is %v also when a request does not set it: its sample must be another value", name, reads)
				}
				want[shown] = reads
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("%s after a write of %s=%v (-want +got):\n%s", c.readPath, name, s.value, diff)
				}
			})
		}
	}
}

// TestSchema_ParametersChangeTheResponse makes each request with and without each
// parameter that its path's schema declares. It fails on a parameter that is
// declared but has no effect.
func TestSchema_ParametersChangeTheResponse(t *testing.T) {
	t.Parallel()
	narrow := map[string]sample{
		"ttl":       {value: "10m"},
		"tools":     {value: "web_search"},
		"skills":    {value: "summarize"},
		"scopes":    {value: "help"},
		"rate":      {value: "*=1/s"},
		"proxy_url": {value: testProxy}, // the previous version's
	}
	m := configured(t, data{"accepted_audiences": "mcp"}, data{
		"tools": "web_search,github:*", "skills": "summarize", "scopes": "help", "rate": "*=5/s",
		"allowed_agent_ids": "*", "allowed_job_ids": "*", "allowed_sandbox_ids": "*",
	})
	token := m.ok(logical.ReadOperation, "creds/r", nil).Data["token"]
	m.write("roles/q", data{"tools": "x"})
	m.write("config/rotate/stage", data{"proxy_url": greenProxy, "secret": greenSecret})
	m.write("config/rotate/activate", nil)
	m.now = m.now.Add(time.Hour + 30*time.Second) // the token is valid only with leeway
	requests := map[string]struct {
		required data
		samples  map[string]sample
	}{
		"creds/r": {nil, merge(narrow, map[string]sample{
			"agent_id":   {value: "a"},
			"job_id":     {value: "j"},
			"sandbox_id": {value: "s"},
			"format":     {value: "env"},
		})},
		"batch/r": {data{"agent_ids": "a"}, merge(narrow, map[string]sample{"agent_ids": {value: "b"}})},
		"check/r": {data{"tool": "github:x"}, map[string]sample{
			"tool":  {value: "web_search"},
			"scope": {value: "help", with: data{}},
			"skill": {value: "summarize", with: data{}},
		}},
		"validate": {data{"token": token}, map[string]sample{
			"token":    {value: token},
			"audience": {value: "mcp"},
			"issuer":   {value: "x"},
			"leeway":   {value: 0},
			"scope":    {value: "tool:web_search"},
		}},
		"inspect": {data{"token": token}, map[string]sample{"token": {value: token}}},
		"roles/":  {nil, map[string]sample{"limit": {value: 1}, "after": {value: "r"}}},
	}
	for path := range paths {
		_, ok := requests[path]
		stored := slices.Contains([]string{"config", "config/rotate", "config/rotate/stage", "roles/r"}, path) // by TestSchema_FieldsAreStoredAndReturned
		stored = stored || strings.Contains(path, "revoke") || path == "guard"                                 // by TestRevoke and TestGuard
		for name, field := range m.b.Route(path).Fields {
			if !ok && !stored && !attributes(field).Identifier {
				t.Errorf("%s declares %q, but no test sets it: add the path with a sample to requests in this test", path, name)
			}
		}
	}
	for path, c := range requests {
		for _, name := range sampled(t, path, c.samples) {
			t.Run(path+" "+name, func(t *testing.T) {
				t.Parallel()
				s := c.samples[name]
				with := s.with
				if with == nil {
					with = c.required
				}
				without := merge(with)
				delete(without, name)
				m := *m
				m.t = t
				op := paths[path][len(paths[path])-1]
				got := m.ok(op, path, merge(with, data{name: s.value}))
				// The key, the clock, and the request's ID are the same, so that two
				// tokens differ only where their claims do.
				before, err := m.request(op, path, without)
				if err != nil {
					t.Fatal(err)
				}
				if cmp.Equal(before, got) {
					t.Errorf("%s=%v has no effect on %s: the response is the same without it", name, s.value, path)
				}
			})
		}
	}
}

// sampled returns the fields that the path's schema declares, except those that
// are part of the path, and reports each one that has no sample.
func sampled(t *testing.T, path string, samples map[string]sample) (names []string) {
	t.Helper()
	fields := newMount(t).b.Route(path).Fields
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		if _, ok := samples[name]; ok {
			names = append(names, name)
		} else if attributes(fields[name]).Group != "Precondition" && !attributes(fields[name]).Identifier { // TestConfig_WriteBack has preconditions
			t.Errorf("%s declares %q, which has no sample: add a valid value that differs from the default to the samples of %s in %s", path, name, path, t.Name())
		}
	}
	if len(names) < len(samples) {
		t.Errorf("%s has samples for %v, and declares only %v", path, slices.Sorted(maps.Keys(samples)), names)
	}
	return names
}

// attributes returns a field's display attributes, which may be missing.
func attributes(field *framework.FieldSchema) framework.DisplayAttributes {
	if field.DisplayAttrs == nil {
		return framework.DisplayAttributes{}
	}
	return *field.DisplayAttrs
}
