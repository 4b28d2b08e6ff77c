//go:build interop

package test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The proxy downloads from loopback addresses, with headers that the caller chooses. So a
// TCP listener of Agent with api_proxy at the proxy's host gives the signing secret to every
// sandbox whose token grants file_manager:download. A Unix socket does not. The proxy's
// settings don't prevent it: ATI_SSRF_PROTECTION=1 blocks neither an IPv4 address that is
// mapped to IPv6 nor a redirect, and ATI_DOWNLOAD_ALLOWLIST does not block a redirect by a
// host in the list.
func TestInteropAgentAPIProxy(t *testing.T) {
	t.Parallel()
	s, secret := startEngine(t)
	s.enableProxyHosts()
	s.write(s.root, "ati/roles/r", data{"tools": "file_manager:download,web_search"})
	token, without := s.mint("r", nil), s.mint("r", data{"tools": "web_search"})

	login := s.appRole("host", "proxy-host")
	dir, err := os.MkdirTemp("", "ati") // not t.TempDir, because the path of a Unix socket is limited to 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket, port, guarded := filepath.Join(dir, "agent.sock"), freePort(t), freePort(t)
	a := s.startAgent(writeFile(t, fmt.Sprintf(`
auto_auth {
  method "approle" {
    config = {
      role_id_file_path   = "%[1]s/role_id"
      secret_id_file_path = "%[1]s/secret_id"
    }
  }
}
api_proxy {
  use_auto_auth_token = true
}
listener "tcp" {
  address     = "127.0.0.1:%[2]s"
  tls_disable = true
}
listener "tcp" {
  address                = "127.0.0.1:%[3]s"
  tls_disable            = true
  require_request_header = true
}
listener "unix" {
  address     = %[4]q
  tls_disable = true
}
`, login, port, guarded, socket)))
	host := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}}
	poll(t, "the host reads the secret at the socket", func() error {
		resp, err := host.Get("http://agent/v1/ati/proxy-env")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if b, err := io.ReadAll(resp.Body); err != nil || !strings.Contains(string(b), secret) {
			return fmt.Errorf("%v: %s %s\n%s", err, resp.Status, b, a.out)
		}
		return nil
	})

	// A server at a public address that redirects to Agent. The proxies reach it as their HTTP
	// proxy.
	internet := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Host != "192.0.2.1" {
			http.Error(w, "only for 192.0.2.1", http.StatusNotFound)
			return
		}
		http.Redirect(w, r, "http://127.0.0.1:"+guarded+"/v1/ati/proxy-env", http.StatusFound)
	}))
	t.Cleanup(internet.Close)
	start := func(name, value string) *proxy {
		env := s.proxyEnv()
		env["HTTP_PROXY"], env["NO_PROXY"] = internet.URL, "127.0.0.1,localhost,::ffff:127.0.0.1"
		env[name] = value
		return startProxy(t, env)
	}
	plain, protected, listed := start("ATI_SSRF_PROTECTION", ""), start("ATI_SSRF_PROTECTION", "1"), start("ATI_DOWNLOAD_ALLOWLIST", "192.0.2.1")

	const env = "/v1/ati/proxy-env"
	header := map[string]string{"X-Vault-Request": "true"}
	direct, checked, mapped, redirect := "http://127.0.0.1:"+port+env, "http://127.0.0.1:"+guarded+env, "http://[::ffff:127.0.0.1]:"+guarded+env, "http://192.0.2.1/"
	for name, c := range map[string]struct {
		proxy  *proxy
		token  string
		url    string
		header map[string]string
		want   int // 200 with the secret, or an error without it
	}{
		"TCP":                        {plain, token, direct, nil, 200},
		"TCP, without the tool":      {plain, without, direct, nil, 403},
		"header required":            {plain, token, checked, header, 200},
		"header required, not sent":  {plain, token, checked, nil, 412},
		"socket as unix:":            {plain, token, "unix://" + socket + env, header, 502},
		"socket as http+unix:":       {plain, token, "http+unix://" + strings.ReplaceAll(socket, "/", "%2F") + env, header, 502},
		"socket as file:":            {plain, token, "file://" + socket, header, 502},
		"protection, 127.0.0.1":      {protected, token, checked, header, 403},
		"protection, localhost":      {protected, token, "http://localhost:" + guarded + env, header, 403},
		"protection, mapped address": {protected, token, mapped, header, 200},
		"protection, redirect":       {protected, token, redirect, header, 200},
		"allowlist, 127.0.0.1":       {listed, token, checked, header, 403},
		"allowlist, mapped address":  {listed, token, mapped, header, 403},
		"allowlist, redirect":        {listed, token, redirect, header, 200},
	} {
		body, err := json.Marshal(data{"tool_name": "file_manager:download", "args": data{"url": c.url, "headers": c.header}})
		if err != nil {
			t.Fatal(err)
		}
		status, text := c.proxy.do(c.token, http.MethodPost, "/call", string(body))
		var response struct {
			Result struct {
				Content []byte `json:"content_base64"`
			}
		}
		if err := json.Unmarshal([]byte(text), &response); err != nil {
			t.Errorf("%s: %v: %s", name, err, text)
		}
		if leaked := strings.Contains(string(response.Result.Content), secret); status != c.want || leaked != (c.want == 200) {
			t.Errorf("%s: the proxy returns %d, want %d; with the secret: %v\n%s", name, status, c.want, leaked, text)
		}
	}
}
