package test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"vault-plugin-secrets-ati/ati"
)

// A batch as a JSON list may exceed a limit of the server, for which docs/compatibility.md
// has a setting. A string with commas does not.
func TestBatch_JSONList(t *testing.T) {
	t.Parallel()
	plain := freePort(t)
	s := newServer(t, "info", fmt.Sprintf("storage \"inmem\" {}\nlistener \"tcp\" {\n  address = \"127.0.0.1:%s\"\n  tls_disable = true\n}", plain))
	s.mountEngine()
	s.write(s.root, "ati/roles/r", data{"tools": "web_search", "allowed_agent_ids": "sandbox:*"})
	withSettings := s.addr
	for _, n := range []int{999, 1000} {
		ids := make([]string, n)
		for i := range ids {
			ids[i] = fmt.Sprintf("sandbox:%d", i)
		}
		for _, c := range []struct {
			name, address string
			ids           any
			accepted      bool
		}{
			{"a list", withSettings, ids, true},
			{"a string", withSettings, strings.Join(ids, ","), true},
			{"a list without settings", "http://127.0.0.1:" + plain, ids, n+1 <= tested.jsonStrings}, // with the parameter's name
			{"a string without settings", "http://127.0.0.1:" + plain, strings.Join(ids, ","), true},
		} {
			s.addr = c.address
			status, body := s.send(s.root, "PUT", "ati/batch/r", nil, data{"agent_ids": c.ids})
			if (status == http.StatusOK) != c.accepted || status != http.StatusOK && status != http.StatusBadRequest {
				t.Errorf("%d IDs in %s: status %d, %.300s", n, c.name, status, body)
			}
		}
	}
}

// Each token of a batch identifies the one audit log line of its request, which contains
// no token, and policies treat batch as a separate path.
func TestBatch_AuditAndPolicies(t *testing.T) {
	t.Parallel()
	s, secret := startEngine(t)
	s.write(s.root, "ati/roles/r", data{"tools": "web_search", "allowed_agent_ids": "sandbox:*", "job_id": "{{jti}}"})
	orchestrator := s.policy("orchestrator", `path "ati/batch/r" { capabilities = ["update"] }`)
	ids := make([]string, 1000)
	for i := range ids {
		ids[i] = fmt.Sprintf("sandbox:%d", i)
	}
	batch := s.write(orchestrator, "ati/batch/r", data{"agent_ids": ids})
	tokens := batch.Data["tokens"].(map[string]any)
	key := parseSecret(t, secret)
	for i, id := range ids {
		c, err := ati.ValidateToken(tokens[id].(string), key)
		if err != nil {
			t.Fatalf("%s: %v", id, err)
		}
		if want := fmt.Sprintf("%s.%d", batch.RequestID, i+1); c.Subject != id || c.ID != want || c.JobID != want {
			t.Errorf("the token of %s has sub %q, jti %q and job_id %q, want %q", id, c.Subject, c.ID, c.JobID, want)
		}
	}
	if len(tokens) != len(ids) {
		t.Errorf("%d tokens for %d IDs", len(tokens), len(ids))
	}
	if line := s.auditLine(batch.RequestID); line.Auth.DisplayName != "token-orchestrator" || line.Request.Path != "ati/batch/r" {
		t.Errorf("the audit log line is %+v", line)
	}
	audit := readFile(t, s.audit)
	for _, id := range []string{"sandbox:0", "sandbox:999"} {
		signature := tokens[id].(string)[strings.LastIndexByte(tokens[id].(string), '.'):]
		if strings.Contains(string(audit), signature) || strings.Contains(s.log(), signature) {
			t.Errorf("the token of %s is in a log", id)
		}
	}

	// Access to creds does not include batch, and the other way around.
	narrow := s.policy("narrow", `path "ati/creds/r" { capabilities = ["read", "update"], denied_parameters = { "agent_id" = [] } }`)
	for _, c := range []struct {
		token, method, path string
		data                data
		want                int
	}{
		{narrow, "GET", "ati/creds/r", nil, 200},
		{narrow, "PUT", "ati/creds/r", data{"agent_id": "sandbox:1"}, 403},
		{narrow, "PUT", "ati/creds/r", data{"agent_ids": "sandbox:1"}, 400},
		{narrow, "PUT", "ati/batch/r", data{"agent_ids": "sandbox:1"}, 403},
		{orchestrator, "PUT", "ati/creds/r", data{"agent_id": "sandbox:1"}, 403},
		{orchestrator, "PUT", "ati/batch/other", data{"agent_ids": "sandbox:1"}, 403},
		{orchestrator, "PUT", "ati/batch/r", data{"agent_ids": []string{"sandbox:1", "other"}}, 400},
		{orchestrator, "PUT", "ati/batch/r", nil, 400},
		{s.root, "GET", "ati/batch/r", nil, http.StatusMethodNotAllowed},
	} {
		if got := s.request(c.token, c.method, c.path, c.data); got != c.want {
			t.Errorf("%s %s %v returns %d, want %d", c.method, c.path, c.data, got, c.want)
		}
	}
}
