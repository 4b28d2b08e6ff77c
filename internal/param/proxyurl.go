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

// An address consists of characters that can stand unquoted in an environment
// file or a template.
var (
	hostForm = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*\z`)
	urlForm  = regexp.MustCompile(`^[A-Za-z0-9._~:/%+=,;!()\[\]-]*\z`)

	// needlessEscape matches what RFC 3986, section 6.2.2, writes otherwise: an
	// encoded letter, digit or ._~-, and hex digits in lower case.
	needlessEscape = regexp.MustCompile(`%(2[DE]|3[0-9]|4[1-9A-F]|5[0-9AF]|6[1-9A-F]|7[0-9AE])|%([0-9A-F][a-f]|[a-f][0-9A-Fa-f])`)
)

// parseProxyURL checks the proxy's address, and returns it with scheme and host
// in lower case and without trailing slashes.
func ParseProxyURL(raw string) (string, error) {
	u, err := url.Parse(raw)
	switch {
	case strings.Contains(raw, "@"):
		return "", errors.New("proxy_url must not have a user or password in it, and so no @")
	case err != nil: // not quoted: there may be a badly encoded password in it
		return "", errors.New("proxy_url must be an http or https URL such as https://ati.example.com")
	case strings.ContainsAny(raw, "?#"):
		return "", fmt.Errorf("proxy_url %q: must not have a query or fragment", raw)
	case u.Scheme != "http" && u.Scheme != "https":
		return "", fmt.Errorf("proxy_url %q: the scheme must be http or https", raw)
	case !validHost(u.Hostname()) || !validPort(u):
		return "", fmt.Errorf("proxy_url %q: the host must be letters, digits, dots and inner hyphens, up to 63 between two dots, or an IP address; the port 1 to 65535, or none", raw)
	case len(raw) > maxProxyURLBytes || !urlForm.MatchString(raw):
		return "", fmt.Errorf(`proxy_url %q: must be at most %d letters, digits and ._~:/%%+=,;!()[]-`, raw, maxProxyURLBytes)
	}
	// One address has one spelling, since tokens are asked for by it.
	at := strings.TrimRight(u.Path, "/")
	if at != "" && path.Clean(at) != at || needlessEscape.MatchString(raw) {
		return "", fmt.Errorf(`proxy_url %q: the path must be without "//", ".", ".." and needless %%-encoding`, raw)
	}
	return u.Scheme + "://" + hostOf(u) + strings.TrimRight(u.EscapedPath(), "/"), nil
}

// hostOf is host and port in lower case, without a port that goes without
// saying.
func hostOf(u *url.URL) string {
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

// clearTextWarning warns where tokens sent to this address can be read on the way.
func ClearTextWarning(proxyURL string) []string {
	if !clearText(proxyURL) {
		return nil
	}
	return []string{fmt.Sprintf("proxy_url %q is not https: tokens cross the network in clear text", proxyURL)}
}

// clearText reports whether tokens sent to this address can be read on the way.
func clearText(proxyURL string) bool {
	u, err := url.Parse(proxyURL)
	if err != nil || u.Scheme != "http" {
		return false
	}
	ip := net.ParseIP(u.Hostname())
	return u.Hostname() != "localhost" && (ip == nil || !ip.IsLoopback())
}
