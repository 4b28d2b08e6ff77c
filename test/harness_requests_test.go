package test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"

	"vault-plugin-secrets-ati/ati"
)

type data = map[string]any

// read returns the response to a read with query parameters, each as "name=value".
func (s *server) read(token, path string, query ...string) *api.Secret {
	s.t.Helper()
	values := map[string][]string{}
	for _, q := range query {
		k, v, _ := strings.Cut(q, "=")
		values[k] = append(values[k], v)
	}
	secret, err := s.client(token).Logical().ReadWithData(path, values)
	if err != nil {
		s.t.Fatalf("read %s: %v", path, err)
	}
	return secret
}

// write returns the response to a write.
func (s *server) write(token, path string, d data) *api.Secret {
	s.t.Helper()
	secret, err := s.client(token).Logical().Write(path, d)
	if err != nil {
		s.t.Fatalf("write %s: %v", path, err)
	}
	return secret
}

// httpStatus returns the HTTP status of a request, given its error.
func httpStatus(t testing.TB, err error) int {
	t.Helper()
	var respErr *api.ResponseError
	if err == nil {
		return http.StatusOK
	}
	if !errors.As(err, &respErr) {
		t.Fatal(err)
	}
	return respErr.StatusCode
}

// claims validates the token in a response of creds and returns its claims.
func claims(t testing.TB, secret string, creds *api.Secret) *ati.Claims {
	t.Helper()
	key := parseSecret(t, secret)
	c, err := ati.ValidateToken(creds.Data["token"].(string), key, ati.WithAudience(creds.Data["aud"].(string)))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// parseSecret parses an HS256 secret.
func parseSecret(t testing.TB, secret string) ati.Key {
	t.Helper()
	key, err := ati.ParseSecret(secret)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func readFile(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func writeFile(t testing.TB, text string) string {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString(text); err != nil {
		t.Fatal(err)
	}
	return f.Name()
}

// request sends a request and returns the status of the response. Only a PUT has a body.
func (s *server) request(token, method, path string, d data) int {
	s.t.Helper()
	if method != http.MethodPut {
		d = nil
	}
	status, _ := s.send(token, method, path, nil, d)
	return status
}

type auditLine struct {
	Type    string
	Request struct{ ID, Path string }
	Auth    struct {
		DisplayName string `json:"display_name"`
	}
}

// auditLine returns the audit log's line for a request.
func (s *server) auditLine(id string) auditLine {
	s.t.Helper()
	f, err := os.Open(s.audit)
	if err != nil {
		s.t.Fatal(err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var l auditLine
		if err := json.Unmarshal(lines.Bytes(), &l); err != nil {
			s.t.Fatal(err)
		}
		if l.Type == "request" && l.Request.ID == id {
			return l
		}
	}
	s.t.Fatalf("the audit log has no request %s", id)
	return auditLine{}
}

// operations returns the engine's operations in Vault's OpenAPI document, each as
// "METHOD path", and its paths.
func (s *server) operations() (operations, paths []string) {
	s.t.Helper()
	methods := map[string]string{"get": "GET", "post": "PUT", "delete": "DELETE", "patch": "PATCH"}
	for path, item := range s.read(s.root, "sys/internal/specs/openapi").Data["paths"].(map[string]any) {
		path, ok := strings.CutPrefix(path, "/ati/")
		if !ok {
			continue
		}
		list := strings.HasSuffix(path, "/") // OpenAPI describes LIST as GET with ?list=true
		path = "ati/" + strings.TrimSuffix(path, "/")
		paths = append(paths, path)
		for key := range item.(map[string]any) {
			if method := methods[key]; list && method == "GET" {
				operations = append(operations, "LIST "+path)
			} else if method != "" {
				operations = append(operations, method+" "+path)
			}
		}
	}
	slices.Sort(operations)
	slices.Sort(paths)
	return operations, paths
}

// parameters returns the path and body parameters of each path of the engine that can be
// written, from the OpenAPI document in the path's help. (The document of the whole
// server, in Vault 1.21, omits the body parameters.)
func (s *server) parameters() map[string][]string {
	s.t.Helper()
	operations, _ := s.operations()
	parameters := map[string][]string{}
	for _, operation := range operations {
		path, ok := strings.CutPrefix(operation, "PUT ")
		if !ok {
			continue
		}
		_, text := s.send(s.root, "GET", strings.Replace(path, "{name}", "r", 1)+"?help=1", nil, nil)
		var help struct {
			OpenAPI struct {
				Paths      map[string]struct{ Parameters []struct{ Name string } }
				Components struct {
					Schemas map[string]struct{ Properties data }
				}
			}
		}
		if err := json.Unmarshal([]byte(text), &help); err != nil {
			s.t.Fatalf("help of %s: %v", path, err)
		}
		var names []string
		for _, item := range help.OpenAPI.Paths {
			for _, p := range item.Parameters {
				names = append(names, p.Name)
			}
		}
		for schema, object := range help.OpenAPI.Components.Schemas {
			if strings.HasSuffix(schema, "Request") {
				names = slices.AppendSeq(names, maps.Keys(object.Properties))
			}
		}
		parameters[path] = names
	}
	return parameters
}

// send sends a request and returns the status and body of the response.
func (s *server) send(token, method, path string, header http.Header, d data) (int, string) {
	s.t.Helper()
	var body io.Reader
	if d != nil {
		b, err := json.Marshal(d)
		if err != nil {
			s.t.Fatal(err)
		}
		body = strings.NewReader(string(b))
	}
	req, err := http.NewRequestWithContext(s.t.Context(), method, s.addr+"/v1/"+path, body)
	if err != nil {
		s.t.Fatal(err)
	}
	maps.Copy(req.Header, header)
	req.Header.Set("X-Vault-Token", token)
	if method == "PATCH" {
		req.Header.Set("Content-Type", "application/merge-patch+json")
	}
	resp, err := recordingTransport{http.DefaultTransport, &s.leaks}.RoundTrip(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return resp.StatusCode, string(text)
}

// poll retries until try succeeds, for up to 20 seconds.
func poll(t testing.TB, what string, try func() error) {
	t.Helper()
	var err error
	for range 200 {
		if err = try(); err == nil {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Fatalf("%s: %v", what, err)
}

// pollFor is poll with another limit.
func pollFor(t testing.TB, limit time.Duration, what string, try func() error) {
	t.Helper()
	deadline := time.Now().Add(limit)
	for {
		err := try()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", what, err)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

func (s *server) client(token string) *api.Client {
	s.t.Helper()
	config := api.DefaultConfig()
	config.Address = s.addr
	config.MaxRetries = 0
	c, err := api.NewClient(config)
	if err != nil {
		s.t.Fatal(err)
	}
	// After NewClient, which changes the transport for a Unix socket.
	config.HttpClient.Transport = recordingTransport{config.HttpClient.Transport, &s.leaks}
	c.SetToken(token)
	c.ClearNamespace()
	return c
}

// vault runs the CLI and returns its output.
func (s *server) vault(token string, args ...string) string {
	s.t.Helper()
	out, err := s.tryVault(token, args...)
	if err != nil {
		s.t.Fatalf("vault %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

func (s *server) tryVault(token string, args ...string) (string, error) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, vaultBin, args...)
	cmd.Env = append(os.Environ(), "VAULT_ADDR="+s.addr, "VAULT_TOKEN="+token, "HOME="+s.dir)
	cmd.Stdin = strings.NewReader("")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	s.leaks.remember([]byte(strings.Join(args, "\n")))
	s.leaks.remember(out.Bytes())
	return out.String(), err
}

// policy writes a policy and returns a token with only that policy.
func (s *server) policy(name, rules string) string {
	s.t.Helper()
	if err := s.client(s.root).Sys().PutPolicy(name, rules); err != nil {
		s.t.Fatal(err)
	}
	secret, err := s.client(s.root).Auth().Token().Create(&api.TokenCreateRequest{Policies: []string{name}, NoDefaultPolicy: true, DisplayName: name})
	if err != nil {
		s.t.Fatal(err)
	}
	return secret.Auth.ClientToken
}
