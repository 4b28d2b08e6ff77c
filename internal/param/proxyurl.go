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
	hostForm = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*\z`)
	urlForm  = regexp.MustCompile(`^[A-Za-z0-9._~:/%+=,;!()\[\]-]*\z`)

	// needlessEscape matches what RFC 3986, section 6.2.2, normalizes: an encoded
	// letter, digit, or one of "._~-", and hexadecimal digits in lower case.
	needlessEscape = regexp.MustCompile(`%(2[DE]|3[0-9]|4[1-9A-F]|5[0-9AF]|6[1-9A-F]|7[0-9AE])|%([0-9A-F][a-f]|[a-f][0-9A-Fa-f])`)
)

// ParseProxyURL returns the proxy's URL with scheme and host in lower case and
// without trailing slashes.
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
	// One URL has one spelling: requests for tokens select a key version by it.
	at := strings.TrimRight(u.Path, "/")
	if at != "" && path.Clean(at) != at || needlessEscape.MatchString(raw) {
		return "", fmt.Errorf(`proxy_url %q: path must be in normal form, without "//", ".", "..", or unnecessary percent-encoding`, raw)
	}
	return u.Scheme + "://" + normalHost(u) + strings.TrimRight(u.EscapedPath(), "/"), nil
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
