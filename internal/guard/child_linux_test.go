package guard_test

import (
	"net"
	"net/http"
	"os"
	"os/user"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"
)

// TestCheck_PortOfAnotherUser checks that a program of another user that takes the proxy's
// port, and responds as the proxy does, is not taken for it.
func TestCheck_PortOfAnotherUser(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Skip("only root can start a proxy as another user")
	}
	if _, err := user.Lookup("nobody"); err != nil {
		t.Skip(err)
	}
	dir, err := os.MkdirTemp("", "ati-guard-port") // which other users can use, unlike t.TempDir
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	// A proxy that never listens, and creates a file with the name of its port.
	ati := filepath.Join(dir, "ati")
	if err := os.WriteFile(ati, []byte("#!/bin/sh\n>\"$5\"\nexec sleep 600\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	var taken atomic.Int64
	go func() {
		proxy := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Authorization") == "" {
				w.WriteHeader(http.StatusUnauthorized)
			}
		})
		for ; t.Context().Err() == nil; time.Sleep(10 * time.Millisecond) {
			ports, _ := filepath.Glob(filepath.Join(dir, "[0-9]*"))
			for _, port := range ports {
				if listener, err := net.Listen("tcp", "127.0.0.1:"+filepath.Base(port)); err == nil {
					taken.Add(1)
					t.Cleanup(func() { listener.Close() })
					go func() { _ = http.Serve(listener, proxy) }()
				}
			}
		}
	}()
	const want = "the user with ID 0 has taken the port of the ATI proxy"
	err = check(t, response(nil), "-ati", ati, "-ati_dir", dir, "-user", "nobody")
	if err == nil || err.Error() != want || taken.Load() != 3 {
		t.Errorf("%v after %d ports were taken, want %s after 3", err, taken.Load(), want)
	}
}
