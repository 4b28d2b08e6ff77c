package test

import (
	"bytes"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
)

// leaks remembers a part of each signing key and of each token that passes
// between a test and its server, so that what the server wrote can be searched
// for them when the test is over.
type leaks struct {
	mu    sync.Mutex
	parts map[string]bool // of partBytes each
}

// partBytes are enough to be nothing else. (A private key's first line has 48
// characters that all of its kind have in common, and a token's signature 86 or
// 43 of its own.)
const partBytes = 24

var (
	jwts        = regexp.MustCompile(`eyJ[\w-]+\.[\w-]+\.([\w-]{43,})`)
	privateKeys = regexp.MustCompile(`-----BEGIN (?:EC )?PRIVATE KEY-----(?:\n|\\n)[\w+/]{32}([\w+/]{32})`)
	signingKeys = regexp.MustCompile(`(?:"(?:secret|ATI_JWT_SECRET)": ?"|\b(?:secret|ATI_JWT_SECRET)=)([0-9a-fA-F]{64})\b`)
)

// remember takes the text of a request, of an answer, or of a command.
func (l *leaks) remember(text []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.parts == nil {
		l.parts = map[string]bool{}
	}
	for _, secrets := range []*regexp.Regexp{jwts, privateKeys, signingKeys} {
		for _, m := range secrets.FindAllSubmatch(text, -1) {
			l.parts[string(m[1][:partBytes])] = true
			l.parts[strings.ToLower(string(m[1][:partBytes]))] = true // as a secret is kept
		}
	}
}

// in reports whether a part of a key or token is in the text.
func (l *leaks) contains(text []byte) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	word := 0 // where the run of characters began that keys and tokens are made of
	for i, c := range text {
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_' || c == '+' || c == '/') {
			word = i + 1
		} else if i+1-word >= partBytes && l.parts[string(text[i+1-partBytes:i+1])] {
			return true
		}
	}
	return false
}

// files are those below a directory, but for the plugins', that have one in them.
func (l *leaks) filesWithSecrets(dir string) (names []string, err error) {
	err = filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && path == filepath.Join(dir, "plugins"):
			return fs.SkipDir
		case !entry.Type().IsRegular():
			return nil
		}
		text, err := os.ReadFile(path)
		if err == nil && l.contains(text) {
			names = append(names, path)
		}
		return err
	})
	return names, err
}

// look fails the test when the server has written a key or a token that the test
// saw into a file: its log, with the plugin's, at the test's level; the audit
// file; or any other.
func (l *leaks) checkFiles(t testing.TB, dir string) {
	t.Helper()
	names, err := l.filesWithSecrets(dir)
	if err != nil {
		t.Errorf("look for keys and tokens: %v", err)
	}
	for _, name := range names {
		t.Errorf("%s has a key or a token in it", name)
	}
}

// recordingTransport is a transport that remembers what passes.
type recordingTransport struct {
	http.RoundTripper
	leaks *leaks
}

func (w recordingTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	w.leaks.remember([]byte(req.URL.RawQuery))
	if req.Body != nil {
		body, err := io.ReadAll(req.Body)
		if err != nil {
			return nil, err
		}
		req.Body.Close()
		w.leaks.remember(body)
		req = req.Clone(req.Context())
		req.Body = io.NopCloser(bytes.NewReader(body))
	}
	resp, err := w.RoundTripper.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	body, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	w.leaks.remember(body)
	resp.Body = io.NopCloser(bytes.NewReader(body))
	return resp, err
}
