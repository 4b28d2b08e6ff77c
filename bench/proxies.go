package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/hashicorp/vault/api"
)

// proxies is an ATI proxy, and programs in front of ATI proxies.
type proxies struct {
	*server
	dir       string
	token     string // ATI token
	upstream  *httptest.Server
	processes []*exec.Cmd
	guards    []*exec.Cmd // of the processes
	routes    []*route
}

// start starts everything, and waits until each route serves.
func (p *proxies) start(ctx context.Context, o options) error {
	w := &writer{ctx: ctx, c: p.Client}
	w.write("ati/roles/proxy", data{"tools": "tool*,slow", "subject": "sandbox:abc123"}) // no rates: the proxy would write a file for each call
	w.write("sys/policies/acl/guard", data{"policy": `path "ati/guard" { capabilities = ["read", "sudo"] }`})
	if w.err != nil {
		return w.err
	}
	creds, err := p.Logical().ReadWithContext(ctx, "ati/creds/proxy")
	if err != nil {
		return err
	}
	p.token = creds.Data["token"].(string)
	if err := p.writeATIDir(); err != nil {
		return err
	}
	if err := p.startBare(ctx, o); err != nil {
		return err
	}
	if err := p.startGuards(ctx, o); err != nil {
		return err
	}
	if o.nginx != "" {
		return p.startNginx(ctx, o)
	}
	return nil
}

func (p *proxies) stop() {
	for _, process := range p.processes {
		stopProcess(process)
	}
	if p.upstream != nil {
		p.upstream.Close()
	}
}

// writeATIDir starts the upstream and writes the directory of the proxies, with a manifest
// of ten tools.
func (p *proxies) writeATIDir() error {
	p.upstream = httptest.NewServer(http.HandlerFunc(serveUpstream))
	manifest := fmt.Sprintf("[provider]\nname = \"bench\"\ndescription = \"x\"\nbase_url = %q\nauth_type = \"none\"\n", p.upstream.URL)
	for _, tool := range []string{"tool0", "tool1", "tool2", "tool3", "tool4", "tool5", "tool6", "tool7", "tool8", "slow"} {
		manifest += fmt.Sprintf("\n[[tools]]\nname = %[1]q\ndescription = \"x\"\nendpoint = \"/%[1]s\"\nmethod = \"GET\"\nscope = \"tool:%[1]s\"\n", tool)
	}
	if err := os.MkdirAll(filepath.Join(p.dir, "manifests"), 0o700); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(p.dir, "manifests", "bench.toml"), []byte(manifest), 0o600)
}

func serveUpstream(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/slow" {
		time.Sleep(slowUpstream)
	}
	// ATI opens a connection for each call. If ATI closed it first, its port would be unusable
	// for a minute, and there would soon be no free ports.
	w.Header().Set("Connection", "close")
	w.Header().Set("Content-Type", "application/json")
	_, _ = io.WriteString(w, `{"ok":true}`)
}

// launch starts a program whose output is in a file of the given name.
func (p *proxies) launch(name string, env []string, program string, args ...string) (*exec.Cmd, error) {
	cmd, err := startProcess(filepath.Join(p.dir, name+".log"), env, program, args...)
	if err != nil {
		return nil, err
	}
	p.processes = append(p.processes, cmd)
	return cmd, nil
}

// waitUntilServing waits until a request with a token is served, and checks that one without
// is rejected.
func (p *proxies) waitUntilServing(ctx context.Context, name, address string) error {
	err := poll(ctx, func() error { return p.expect(ctx, address, "Bearer "+p.token, http.StatusOK) })
	if err == nil {
		err = p.expect(ctx, address, "", http.StatusUnauthorized)
	}
	if err != nil {
		log, _ := os.ReadFile(filepath.Join(p.dir, name+".log"))
		err = fmt.Errorf("%s: %w\n%s", name, err, log)
	}
	return err
}

func (p *proxies) expect(ctx context.Context, address, authorization string, want int) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/tools", nil)
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", authorization)
	resp, err := p.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != want {
		return fmt.Errorf("status %d, want %d", resp.StatusCode, want)
	}
	return nil
}

// startBare starts an ATI proxy with the key of the mount.
func (p *proxies) startBare(ctx context.Context, o options) error {
	settings, err := p.Logical().ReadWithContext(ctx, "ati/proxy-env")
	if err != nil {
		return err
	}
	env := []string{"ATI_DIR=" + p.dir}
	for name, value := range settings.Data {
		env = append(env, fmt.Sprintf("%s=%s", name, value))
	}
	address, err := freeAddress()
	if err != nil {
		return err
	}
	_, port, _ := net.SplitHostPort(address)
	cmd, err := p.launch(bareRoute, env, o.ati, "proxy", "--bind", "127.0.0.1", "--port", port, "--ati-dir", p.dir, "--env-keys")
	if err != nil {
		return err
	}
	p.routes = append(p.routes, &route{name: bareRoute, address: address, proxy: cmd.Process.Pid})
	return p.waitUntilServing(ctx, bareRoute, address)
}

// startGuards starts all guards. The first one is a route.
func (p *proxies) startGuards(ctx context.Context, o options) error {
	login, err := p.Auth().Token().CreateWithContext(ctx, &api.TokenCreateRequest{Policies: []string{"guard"}})
	if err != nil {
		return err
	}
	tokenFile := filepath.Join(p.dir, "vault-token")
	if err := os.WriteFile(tokenFile, []byte(login.Auth.ClientToken), 0o600); err != nil {
		return err
	}
	for i := range guards {
		address, err := freeAddress()
		if err != nil {
			return err
		}
		name := fmt.Sprintf("%s-%d", guardRoute, i)
		cmd, err := p.launch(name, nil, o.guard, "-listen", address, "-admin", "", "-ati", o.ati, "-ati_dir", p.dir, "-access_log", filepath.Join(p.dir, name+".jsonl"),
			"-vault.address", p.Address(), "-vault.auth.token_file", tokenFile, "-poll", guardPoll.String())
		if err != nil {
			return err
		}
		p.guards = append(p.guards, cmd)
		if err := p.waitUntilServing(ctx, name, address); err != nil {
			return err
		}
		if i > 0 {
			continue
		}
		pid := cmd.Process.Pid
		children, err := children(pid)
		if err != nil || len(children) != 1 {
			return fmt.Errorf("the guard has %d child processes, want 1: %v", len(children), err)
		}
		p.routes = append(p.routes, &route{name: guardRoute, address: address, front: []int{pid}, proxy: children[0]})
	}
	return nil
}

// nginxConfig is that of a plain reverse proxy: its address, the log, the proxy's address.
const nginxConfig = `
daemon off;
pid nginx.pid;
worker_processes auto;
events {}
http {
  client_body_temp_path body;
  proxy_temp_path       proxy;
  fastcgi_temp_path     fastcgi;
  uwsgi_temp_path       uwsgi;
  scgi_temp_path        scgi;
  access_log access.log combined;
  upstream ati {
    server %s;
    keepalive 64;
  }
  server {
    listen %s;
    location / {
      proxy_pass http://ati;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_set_header Host $host;
      proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
    }
  }
}
`

// startNginx starts nginx in front of the bare proxy.
func (p *proxies) startNginx(ctx context.Context, o options) error {
	address, err := freeAddress()
	if err != nil {
		return err
	}
	bare := p.routes[0]
	config := filepath.Join(p.dir, "nginx.conf")
	if err := os.WriteFile(config, fmt.Appendf(nil, nginxConfig, bare.address, address), 0o600); err != nil {
		return err
	}
	cmd, err := p.launch(nginxRoute, nil, o.nginx, "-p", p.dir, "-c", config, "-e", "stderr")
	if err != nil {
		return err
	}
	if err := p.waitUntilServing(ctx, nginxRoute, address); err != nil {
		return err
	}
	pid := cmd.Process.Pid
	workers, err := children(pid)
	p.routes = append(p.routes, &route{name: nginxRoute, address: address, front: append(workers, pid), proxy: bare.proxy})
	return err
}
