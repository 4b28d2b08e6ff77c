package param

import (
	"regexp"
	"slices"
	"strings"
)

// SecretBytes is the length of an HS256 secret: ati-client and the proxy expect 64
// hexadecimal characters.
const SecretBytes = 32

// tokenForm matches the beginning of a JWT: header and payload begin with {".
var tokenForm = regexp.MustCompile(`eyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.`)

// HoldsKey reports whether a value contains a token, a private key in PEM or, unless
// hex is allowed, an HS256 secret. Errors and warnings quote values, and Vault writes
// some of them to its audit log: so such a value is rejected before anything quotes it.
func HoldsKey(value any, allowHex bool) bool {
	holdsKey := func(item any) bool { return HoldsKey(item, allowHex) }
	switch v := value.(type) {
	case string:
		return strings.Contains(v, ".eyJ") && tokenForm.MatchString(v) ||
			strings.Contains(v, "PRIVATE KEY-----") ||
			!allowHex && holdsSecret(v)
	case []any:
		return slices.ContainsFunc(v, holdsKey)
	case map[string]any:
		for key, item := range v {
			if holdsKey(key) || holdsKey(item) {
				return true
			}
		}
	case []string:
		return slices.ContainsFunc(v, func(item string) bool { return holdsKey(item) })
	}
	return false
}

// holdsSecret reports whether a text contains a word of hexadecimal digits about as
// long as a secret: a copy may have lost or gained a few. A checksum that begins
// with "sha256:" is not one.
func holdsSecret(text string) bool {
	begin, hex := 0, true
	for i := 0; i <= len(text); i++ {
		if i < len(text) {
			c := text[i] | 0x20 // the lower case of a letter
			if digit := c >= '0' && c <= '9'; digit || c >= 'a' && c <= 'z' {
				hex = hex && (digit || c <= 'f')
				continue
			}
		}
		if n := i - begin; hex && n >= 2*SecretBytes-4 && n <= 2*SecretBytes+4 && !strings.HasSuffix(text[:begin], "sha256:") {
			return true
		}
		begin, hex = i+1, true
	}
	return false
}
