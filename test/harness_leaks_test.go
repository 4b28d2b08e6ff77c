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

// leaks records a part of each signing key and token that a test exchanges with its
// server. When the test is over, it searches the files that the server wrote for them.
type leaks struct {
	mu    sync.Mutex
	parts map[string]bool // of partBytes each
}

// partBytes is long enough to be unique. The part of a private key is taken after the
// characters that all keys of its kind share, the part of a token from its signature.
const partBytes = 24

var (
	jwts        = regexp.MustCompile(`eyJ[\w-]+\.[\w-]+\.([\w-]{43,})`)
	privateKeys = regexp.MustCompile(`-----BEGIN (?:EC )?PRIVATE KEY-----(?:\n|\\n)[\w+/]{32}([\w+/]{32})`)
	signingKeys = regexp.MustCompile(`(?:"(?:secret|ATI_JWT_SECRET)": ?"|\b(?:secret|ATI_JWT_SECRET)=)([0-9a-fA-F]{64})\b`)
)

// remember records the keys and tokens in a request, a response, or a command.
func (l *leaks) remember(text []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.parts == nil {
		l.parts = map[string]bool{}
	}
	for _, secrets := range []*regexp.Regexp{jwts, privateKeys, signingKeys} {
		for _, m := range secrets.FindAllSubmatch(text, -1) {
			l.parts[string(m[1][:partBytes])] = true
			l.parts[strings.ToLower(string(m[1][:partBytes]))] = true // the engine stores secrets in lower case
		}
	}
}

// contains reports whether the text contains a part of a key or token.
func (l *leaks) contains(text []byte) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	word := 0 // start of the current run of characters that occur in keys and tokens
	for i, c := range text {
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_' || c == '+' || c == '/') {
			word = i + 1
		} else if i+1-word >= partBytes && l.parts[string(text[i+1-partBytes:i+1])] {
			return true
		}
	}
	return false
}

// filesWithSecrets returns the files below a directory, except the plugins, that contain
// a part of a key or token.
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

// checkFiles fails the test if the server wrote a key or token that the test saw to any
// file, such as its log, which includes the plugin's, or the audit file.
func (l *leaks) checkFiles(t testing.TB, dir string) {
	t.Helper()
	names, err := l.filesWithSecrets(dir)
	if err != nil {
		t.Errorf("search for keys and tokens: %v", err)
	}
	for _, name := range names {
		t.Errorf("%s contains a key or token", name)
	}
}

// recordingTransport records the keys and tokens in requests and responses.
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
