package param

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"path"
	"regexp"
	"strconv"
	"strings"
)

const maxProxyURLBytes = 2048

// A URL consists of characters that need no quotes in an environment file or a
// template.
var (
	hostForm   = regexp.MustCompile(`^[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?(\.[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?)*\z`)
	urlForm    = regexp.MustCompile(`^[A-Za-z0-9._~:/%+=,;!()\[\]-]*\z`)
	escape     = regexp.MustCompile(`%[0-9A-Fa-f]{2}`)
	unreserved = regexp.MustCompile(`^[A-Za-z0-9._~-]\z`) // RFC 3986, section 2.3
)

// ParseProxyURL returns the proxy's URL in the normal form of RFC 3986, section 6.2.2,
// with single slashes in the path and none at its end. One URL has one spelling:
// requests for tokens select a key version by it.
func ParseProxyURL(raw string) (string, error) {
	u, err := url.Parse(raw)
	switch {
	case strings.Contains(raw, "@"):
		return "", errors.New(`proxy_url must not contain credentials or "@"`)
	case err != nil: // not quoted: it may contain a badly encoded password
		return "", errors.New("proxy_url must be an http or https URL, such as https://ati.example.com")
	case strings.ContainsAny(raw, "?#"):
		return "", fmt.Errorf("proxy_url %q: must not have a query or fragment", raw)
	case u.Scheme != "http" && u.Scheme != "https":
		return "", fmt.Errorf("proxy_url %q: must begin with http:// or https://", raw)
	case !validHost(u.Hostname()) || !validPort(u):
		return "", fmt.Errorf("proxy_url %q: invalid host or port; the host must be a DNS name or an IP address, the port 1 to 65535", raw)
	case len(raw) > maxProxyURLBytes || !urlForm.MatchString(raw):
		return "", fmt.Errorf(`proxy_url %q: must have at most %d characters, all of them letters, digits, or ._~:/%%+=,;!()[]-`, raw, maxProxyURLBytes)
	}
	normal := u.Scheme + "://" + normalHost(u) + normalPath(u.EscapedPath())
	if HoldsKey(normal, false) { // in escapes, until now
		return "", Misplaced("proxy_url")
	}
	return normal, nil
}

func normalPath(escaped string) string {
	escaped = escape.ReplaceAllStringFunc(escaped, func(hex string) string {
		if char, err := url.PathUnescape(hex); err == nil && unreserved.MatchString(char) {
			return char
		}
		return strings.ToUpper(hex)
	})
	if clean := path.Clean(escaped); clean != "/" && clean != "." {
		return clean
	}
	return ""
}

// normalHost returns the host in lower case, with the port unless it is the
// scheme's default.
func normalHost(u *url.URL) string {
	host := strings.ToLower(u.Hostname())
	if ip := net.ParseIP(host); ip != nil {
		host = ip.String()
	}
	port := strings.TrimLeft(u.Port(), "0")
	switch {
	case port != "" && port != map[string]string{"http": "80", "https": "443"}[u.Scheme]:
		return net.JoinHostPort(host, port)
	case strings.Contains(host, ":"):
		return "[" + host + "]"
	}
	return host
}

func validHost(host string) bool {
	return hostForm.MatchString(host) || strings.Contains(host, ":") && net.ParseIP(host) != nil
}

func validPort(u *url.URL) bool {
	if u.Port() == "" {
		return !strings.HasSuffix(u.Host, ":")
	}
	port, err := strconv.Atoi(u.Port())
	return err == nil && port >= 1 && port <= 65535
}

// PlaintextWarning returns a warning if tokens are sent to this URL unencrypted,
// unless they stay on the host.
func PlaintextWarning(proxyURL string) []string {
	u, err := url.Parse(proxyURL)
	if err != nil || u.Scheme != "http" || u.Hostname() == "localhost" {
		return nil
	}
	if ip := net.ParseIP(u.Hostname()); ip != nil && ip.IsLoopback() {
		return nil
	}
	return []string{fmt.Sprintf("Tokens are sent to %q in plaintext. Use https.", proxyURL)}
}
