//go:build unix

package guard

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/hashicorp/go-hclog"
)

// lastRequests is how long a guard that stops waits for requests on connections that it has
// accepted.
const lastRequests = 500 * time.Millisecond

// Serve runs a guard until the context ends, and lets requests in flight finish.
func Serve(ctx context.Context, cfg *Config, log hclog.Logger) error {
	// First the port: if it is taken, nothing has been started yet.
	listener, err := listen(cfg)
	if err != nil {
		return err
	}
	access, err := openLog(cfg.AccessLog)
	if err != nil {
		return err
	}
	g, err := New(cfg, log, access)
	if err != nil {
		return err
	}
	certificate, err := loadCertificate(cfg)
	if err != nil {
		return err
	}
	server := newServer(g, log)
	if certificate != nil {
		listener = tls.NewListener(listener, &tls.Config{GetCertificate: certificate.get, MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}})
	}
	admin, err := listenAdmin(cfg)
	if err != nil {
		return err
	}
	failed := make(chan error, 2)
	go func() { failed <- server.Serve(listener) }()
	if admin != nil {
		adminServer := newServer(g.Admin(), log)
		defer adminServer.Close()
		go func() { failed <- adminServer.Serve(admin) }()
	}
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP)
	defer signal.Stop(hangups)

	running, end := context.WithCancel(context.Background())
	var work sync.WaitGroup
	work.Go(func() { g.Run(running) })
	log.Info("listening", "address", listener.Addr().String())
	_, _ = daemon.SdNotify(false, daemon.SdNotifyReady)
	for err == nil && ctx.Err() == nil {
		select {
		case err = <-failed:
		case <-ctx.Done():
		case <-hangups:
			log.Info("reloading", "certificate", certificate.reload(cfg), "access_log", access.reopen())
		}
	}
	_, _ = daemon.SdNotify(false, daemon.SdNotifyStopping)
	g.shutDown(server, listener)
	end()
	work.Wait()
	return errors.Join(err, access.Close())
}

// shutDown stops accepting connections, and lets requests in flight finish.
func (g *Guard) shutDown(server *http.Server, listener net.Listener) {
	g.stopping.Store(true)
	drain := time.Duration(g.cfg.Drain)
	ctx, cancel := context.WithTimeout(context.Background(), drain)
	defer cancel()
	// Shutdown closes connections whose request it has not read yet, so wait for these. Until
	// then, each response ends its connection. SetKeepAlivesEnabled would close those between
	// two requests, the next of which may be on its way.
	_ = listener.Close()
	time.Sleep(min(lastRequests, drain))
	if err := server.Shutdown(ctx); err != nil {
		g.log.Warn("requests in flight were cut off", "number", g.door.flights.count())
		_ = server.Close()
	}
}

func newServer(handler http.Handler, log hclog.Logger) *http.Server {
	return &http.Server{
		Handler: handler, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 128 << 10,
		DisableGeneralOptionsHandler: true, // OPTIONS * needs a token as well
		ErrorLog:                     log.StandardLogger(&hclog.StandardLoggerOptions{ForceLevel: hclog.Debug}),
	}
}

// listen returns the socket that systemd passes, or opens one.
func listen(cfg *Config) (net.Listener, error) {
	passed, err := activation.Listeners()
	if err != nil {
		return nil, err
	}
	switch len(passed) {
	case 0:
		return net.Listen("tcp", cfg.Listen)
	case 1:
		return passed[0], nil
	}
	return nil, fmt.Errorf("systemd passes %d sockets; ati-guard takes one", len(passed))
}

func listenAdmin(cfg *Config) (net.Listener, error) {
	if cfg.Admin == "" {
		return nil, nil
	}
	return net.Listen("tcp", cfg.Admin)
}

// certificates holds the TLS certificate, which can be replaced.
type certificates struct {
	current atomic.Pointer[tls.Certificate]
}

func loadCertificate(cfg *Config) (*certificates, error) {
	if cfg.TLSCert == "" {
		return nil, nil
	}
	c := new(certificates)
	return c, c.load(cfg)
}

func (c *certificates) load(cfg *Config) error {
	pair, err := tls.LoadX509KeyPair(cfg.TLSCert, cfg.TLSKey)
	if err != nil {
		return fmt.Errorf("tls_cert: %w", err)
	}
	c.current.Store(&pair)
	return nil
}

func (c *certificates) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	return c.current.Load(), nil
}

// reload reads the certificate again, and keeps the old one if that fails.
func (c *certificates) reload(cfg *Config) string {
	if c == nil {
		return "none"
	}
	if err := c.load(cfg); err != nil {
		return err.Error()
	}
	return "reloaded"
}

// logFile is a file that can be reopened after it was moved.
type logFile struct {
	path string
	mu   sync.Mutex
	file io.WriteCloser
}

func openLog(path string) (*logFile, error) {
	l := &logFile{path: path}
	return l, l.open()
}

func (l *logFile) open() error {
	switch l.path {
	case "":
		return nil
	case "-":
		l.file = os.Stdout
		return nil
	}
	file, err := os.OpenFile(l.path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o640)
	if err != nil {
		return fmt.Errorf("access_log: %w", err)
	}
	l.file = file
	return nil
}

func (l *logFile) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil {
		return len(b), nil
	}
	return l.file.Write(b)
}

func (l *logFile) reopen() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.path == "" || l.path == "-" {
		return "kept"
	}
	old := l.file
	if err := l.open(); err != nil {
		return err.Error()
	}
	_ = old.Close()
	return "reopened"
}

func (l *logFile) Close() error {
	if l.file == nil || l.path == "-" {
		return nil
	}
	return l.file.Close()
}

// Check loads the certificate, reads Vault, starts a proxy, and reports what it found.
func Check(ctx context.Context, cfg *Config, out io.Writer) error {
	if _, err := loadCertificate(cfg); err != nil {
		return err
	}
	g, err := New(cfg, hclog.New(&hclog.LoggerOptions{Name: "ati-guard", Output: os.Stderr, Level: hclog.Error}), nil)
	if err != nil {
		return err
	}
	if err := g.readVault(ctx); err != nil {
		return err
	}
	if err := g.readAPIKeys(ctx); err != nil {
		return err
	}
	b, rejected := g.door.open()
	if rejected != nil {
		return rejected
	}
	fmt.Fprintf(out, "Vault: generation %d, audiences %v, issuer %q\n", b.generation, b.audiences, b.issuer)
	for _, k := range b.keys {
		fmt.Fprintf(out, "key version %d: %s, %s\n", k.version, k.state, k.key.Algorithm())
	}
	fmt.Fprintf(out, "revocations: %d\n", len(g.door.revoked.Names()))
	if cfg.APIKeys != "" {
		fmt.Fprintf(out, "API keys: %d\n", len(g.apiKeys))
	}
	for _, s := range g.specs(b) {
		c, err := startChild(ctx, cfg, g.local, s)
		if err != nil {
			return err
		}
		if err := c.kill(); err != nil {
			return err
		}
		found := "it rejects calls without a token"
		if s.publicKey == "" {
			found += ", and accepts the guard's"
		}
		fmt.Fprintln(out, "ATI proxy:", found)
	}
	return nil
}
