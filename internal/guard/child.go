//go:build unix

package guard

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"vault-plugin-secrets-ati/ati"
)

const (
	startTimeout = 60 * time.Second // a child with a hung MCP provider takes 30 s
	silence      = 30 * time.Second // after which a child is killed
	probeEvery   = 2 * time.Second
)

// spec is what a child is started with, apart from the configuration.
type spec struct {
	audiences []string
	issuer    string
	apiKeys   map[string]string
	publicKey string // PEM, instead of the local key
}

func (s *spec) equal(other *spec) bool {
	return slices.Equal(s.audiences, other.audiences) && s.issuer == other.issuer && s.publicKey == other.publicKey && maps.Equal(s.apiKeys, other.apiKeys)
}

// child is a running ATI proxy.
type child struct {
	spec     *spec
	cmd      *exec.Cmd
	address  string
	forward  *httputil.ReverseProxy
	done     chan struct{} // closed when it has ended
	ended    chan string   // why it must be replaced
	inFlight atomic.Int64
}

// newLocalKey returns a random key.
func newLocalKey() localKey {
	secret := make([]byte, 32)
	_, _ = rand.Read(secret) // never fails
	return localKey{secret}
}

// startChild starts an ATI proxy and waits until it serves: until it rejects a call
// without a token and, if it has the local key, does not reject one with a token of that.
func startChild(ctx context.Context, cfg *Config, local localKey, s *spec) (*child, error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	publicKey, err := writePublicKey(s.publicKey)
	defer os.Remove(publicKey) // the proxy reads it once
	if err != nil {
		return nil, err
	}
	for range 3 { // another program, or user, may take the port first
		var c *child
		if c, err = launchChild(cfg, local, s, publicKey); err != nil {
			return nil, err
		}
		if err = c.waitUntilServing(ctx, local); err == nil {
			return c, nil
		}
		if failed := c.kill(); failed != nil {
			return nil, errors.Join(err, failed)
		}
		if ctx.Err() != nil {
			break
		}
	}
	return nil, err
}

func launchChild(cfg *Config, local localKey, s *spec, publicKey string) (*child, error) {
	credential, home, err := lookUpUser(cfg.User)
	if err != nil {
		return nil, err
	}
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	c := &child{spec: s, address: net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), done: make(chan struct{}), ended: make(chan string, 1)}
	args := append([]string{"proxy", "--bind", "127.0.0.1", "--port", strconv.Itoa(port), "--ati-dir", cfg.ATIDir, "--env-keys"}, cfg.ATIArgs...)
	c.cmd = exec.Command(cfg.ATI, args...)
	c.cmd.Env = childEnv(cfg, s, home)
	if publicKey != "" {
		c.cmd.Env = append(c.cmd.Env, "ATI_JWT_PUBLIC_KEY="+publicKey)
	} else {
		c.cmd.Env = append(c.cmd.Env, "ATI_JWT_SECRET="+hex.EncodeToString(local.secret))
	}
	c.cmd.Dir = cfg.ATIDir
	c.cmd.Stdout, c.cmd.Stderr = os.Stderr, os.Stderr
	c.cmd.SysProcAttr = childAttributes(credential)
	started := make(chan error)
	go func() {
		// Linux kills the child when the thread that started it ends.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := c.cmd.Start()
		started <- err
		if err == nil {
			_ = c.cmd.Wait()
			close(c.done)
		}
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	c.forward = newForward(c.address)
	return c, nil
}

// writePublicKey writes a key to a file that every user can read.
func writePublicKey(text string) (path string, err error) {
	if text == "" {
		return "", nil
	}
	file, err := os.CreateTemp("", "ati-public-key-*.pem")
	if err != nil {
		return "", err
	}
	_, err = io.WriteString(file, text)
	return file.Name(), errors.Join(err, file.Chmod(0o644), file.Close())
}

// childEnv returns the guard's environment without what the child must not see, and with
// what the configuration and Vault add, except for the key.
func childEnv(cfg *Config, s *spec, home string) []string {
	env := map[string]string{}
	for _, entry := range os.Environ() {
		name, value, _ := strings.Cut(entry, "=")
		if !hidden(name) {
			env[name] = value
		}
	}
	if home != "" {
		env["HOME"] = home
	}
	maps.Copy(env, cfg.Env)
	for name, value := range s.apiKeys {
		env["ATI_KEY_"+name] = value
	}
	env["ATI_DIR"] = cfg.ATIDir
	env["ATI_JWT_AUDIENCE"] = s.audiences[0] // for ATI before 0.7.12
	env["ATI_JWT_ACCEPTED_AUDIENCES"] = strings.Join(s.audiences, ",")
	if s.issuer != "" {
		env["ATI_JWT_ISSUER"] = s.issuer
	}
	var list []string
	for _, name := range slices.Sorted(maps.Keys(env)) {
		list = append(list, name+"="+env[name])
	}
	return list
}

func hidden(name string) bool {
	return slices.ContainsFunc([]string{"VAULT_", "BAO_", "ATI_JWT_", "LISTEN_", "NOTIFY_SOCKET", "CREDENTIALS_DIRECTORY"}, func(prefix string) bool {
		return strings.HasPrefix(name, prefix)
	})
}

// lookUpUser returns the credential of a user, and its home, or nothing for the user
// that the guard runs as.
func lookUpUser(name string) (*syscall.Credential, string, error) {
	if name == "" {
		return nil, "", nil
	}
	u, err := user.Lookup(name)
	if err != nil {
		if u, _ = user.LookupId(name); u == nil {
			return nil, "", err
		}
	}
	uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
	gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
	if err := errors.Join(err1, err2); err != nil {
		return nil, "", err
	}
	if int(uid) == os.Getuid() {
		return nil, "", nil
	}
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, u.HomeDir, nil
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

var errEnded = errors.New("the ATI proxy has ended; see its output above")

func (c *child) waitUntilServing(ctx context.Context, local localKey) error {
	for {
		select {
		case <-c.done:
			return errEnded
		case <-ctx.Done():
			return errors.New("the ATI proxy did not respond in time")
		case <-time.After(10 * time.Millisecond):
		}
		if c.probe(ctx, "") == 0 {
			continue
		}
		if err := c.checkPort(); err != nil {
			return err
		}
		status := c.probe(ctx, "") // again: the first response may be of another program
		if status == 0 {
			continue
		}
		if !isShut(status) {
			return fmt.Errorf("the ATI proxy responds to a call without a token with %d instead of 401", status)
		}
		break
	}
	if c.spec.publicKey == "" {
		if err := c.tryLocalKey(ctx, local); err != nil {
			return err
		}
	}
	if c.hasEnded() {
		return errEnded
	}
	return nil
}

func (c *child) tryLocalKey(ctx context.Context, local localKey) error {
	secret, err := ati.ParseSecret(hex.EncodeToString(local.secret))
	if err != nil {
		return err
	}
	token, err := ati.IssueToken(secret, ati.IssueRequest{
		Subject: "ati-guard", TTL: time.Minute, Audience: c.spec.audiences[0], Issuer: c.spec.issuer, OmitIssuer: c.spec.issuer == "",
	})
	if err != nil {
		return err
	}
	if status := c.probe(ctx, token); status == http.StatusUnauthorized || status == 0 {
		return fmt.Errorf("the ATI proxy responds to a call with a token of the local key with %d; another program may have its port", status)
	}
	return nil
}

// isShut reports whether a call without a token was rejected. ATI 0.8 may check a
// signature first, whose response is 403.
func isShut(status int) bool {
	return status == http.StatusUnauthorized || status == http.StatusForbidden
}

var probeClient = &http.Client{Timeout: probeEvery, Transport: &http.Transport{DisableKeepAlives: true}}

// probe returns the status of a call that no tool serves, or 0 without a response.
func (c *child) probe(ctx context.Context, token string) int {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+c.address+"/call", strings.NewReader(`{"tool_name":"","args":{}}`))
	if err != nil {
		return 0
	}
	req.Header.Set("Content-Type", "application/json")
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := probeClient.Do(req)
	if err != nil {
		return 0
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode
}

// watch sends the reason when the child has ended, or must be killed.
func (c *child) watch(ctx context.Context) {
	heard := time.Now()
	for {
		select {
		case <-c.done:
			c.ended <- "it has ended"
			return
		case <-ctx.Done():
			return
		case <-time.After(probeEvery):
		}
		switch status := c.probe(ctx, ""); {
		case isShut(status):
			heard = time.Now()
		case status != 0:
			c.ended <- fmt.Sprintf("it responds to a call without a token with %d", status)
			return
		case time.Since(heard) > silence:
			c.ended <- fmt.Sprintf("it has not responded for %v", silence)
			return
		}
	}
}

// hasEnded reports whether the process has ended: any program may then have its port.
func (c *child) hasEnded() bool {
	select {
	case <-c.done:
		return true
	default:
		return false
	}
}

// end lets the requests in flight finish, and ends the child.
func (c *child) end(drain time.Duration) {
	deadline := time.Now().Add(drain)
	for c.inFlight.Load() > 0 && time.Now().Before(deadline) {
		time.Sleep(50 * time.Millisecond)
	}
	_ = c.kill()
}

// kill ends the child and what it has started.
func (c *child) kill() error {
	if err := syscall.Kill(-c.cmd.Process.Pid, syscall.SIGKILL); errors.Is(err, syscall.EPERM) {
		return fmt.Errorf("end the ATI proxy: %w; the guard needs the capability KILL", err)
	}
	<-c.done
	return nil
}

type forwardedToken struct{}

// newForward returns the handler that forwards to a child.
func newForward(address string) *httputil.ReverseProxy {
	target := &url.URL{Scheme: "http", Host: address}
	return &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(target)
			r.Out.Host = r.In.Host
			r.Out.Header.Del("Expect")             // the server has sent 100, or does so when the body is read
			r.Out.URL.RawQuery = r.In.URL.RawQuery // what Go cannot parse is not dropped
			r.SetXForwarded()
			r.Out.Header.Set("Authorization", "Bearer "+r.In.Context().Value(forwardedToken{}).(string))
		},
		Transport: smallBodies{wholeHeaders{&http.Transport{
			DialContext:         (&net.Dialer{Timeout: 5 * time.Second}).DialContext,
			MaxIdleConnsPerHost: 512, IdleConnTimeout: 30 * time.Second,
			DisableCompression: true,
		}}},
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			switch rejected := cancelled(r.Context()); {
			case rejected != nil:
				rejected.write(w, r)
			case r.Context().Err() == nil:
				(&rejection{status: http.StatusBadGateway, body: "the ATI proxy did not respond"}).write(w, r)
			default:
				panic(http.ErrAbortHandler) // a client that has only closed its half would read a 200
			}
			_ = http.NewResponseController(w).Flush() // before ReverseProxy reads the rest of the body
		},
		ErrorLog:   nil,
		BufferPool: new(buffers),
	}
}

// smallBodies sends the header and a small body together. A http.Transport sends them one
// after the other unless the body is in memory.
type smallBodies struct{ http.RoundTripper }

func (t smallBodies) RoundTrip(r *http.Request) (*http.Response, error) {
	if 0 < r.ContentLength && r.ContentLength <= 2<<10 { // together less than the buffer of 4 KB
		body := make([]byte, r.ContentLength)
		if _, err := io.ReadFull(r.Body, body); err != nil {
			return nil, err
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
	}
	return t.RoundTripper.RoundTrip(r)
}

// wholeHeaders does not cancel a request while the header of its response arrives. A
// http.Transport closes the connection of a cancelled request, to which it may already have
// given another request if the response has no body.
type wholeHeaders struct{ http.RoundTripper }

func (t wholeHeaders) RoundTrip(r *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(r.Context()))
	end := func() { cancel(context.Cause(r.Context())) }
	stop := sync.OnceValue(context.AfterFunc(r.Context(), end))
	returned := make(chan struct{})
	defer close(returned)
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotFirstResponseByte: func() {
		if !stop() {
			<-returned // with the connection closed
		}
	}})
	resp, err := t.RoundTripper.RoundTrip(r.WithContext(ctx))
	context.AfterFunc(r.Context(), end)
	return resp, err
}

// buffers is a pool of the buffers through which responses are copied.
type buffers struct{ pool sync.Pool }

func (b *buffers) Get() []byte {
	if buffer, ok := b.pool.Get().(*[32 << 10]byte); ok {
		return buffer[:]
	}
	return make([]byte, 32<<10)
}

func (b *buffers) Put(buffer []byte) { b.pool.Put((*[32 << 10]byte)(buffer)) }
