package param

import (
	"fmt"
	"regexp"
	"strings"
)

// SecretBytes is the length of an HS256 secret: ati-client and the proxy expect 64
// hexadecimal characters.
const SecretBytes = 32

// tokenForm matches the beginning of a JWT: header and payload begin with {".
var tokenForm = regexp.MustCompile(`eyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.`)

// Misplaced is the error for a value that HoldsKey.
func Misplaced(name string) error {
	return fmt.Errorf("%s appears to contain a key or token, which is not allowed in this parameter", name)
}

// HoldsKey reports whether a value contains a token, a private key in PEM or, unless
// hex is allowed, an HS256 secret. Errors and warnings quote values, and Vault writes
// some of them to its audit log: so such a value is rejected before anything quotes it.
func HoldsKey(value any, allowHex bool) bool {
	for _, text := range texts(value) {
		// A line break in a token, or in a secret, may come from an email.
		if textHoldsKey(text, allowHex) || strings.ContainsAny(text, ASCIISpace) && textHoldsKey(strings.Join(strings.Fields(text), ""), allowHex) {
			return true
		}
	}
	return false
}

// texts returns all strings of a value, of a request or as Read returns it.
func texts(value any) (all []string) {
	switch v := value.(type) {
	case string:
		return []string{v}
	case []string:
		return v
	case []any:
		for _, item := range v {
			all = append(all, texts(item)...)
		}
	case map[string]any:
		for key, item := range v {
			all = append(append(all, key), texts(item)...)
		}
	case map[string]string:
		for key, item := range v {
			all = append(all, key, item)
		}
	case Merge:
		for key, item := range v {
			all = append(all, key)
			if item != nil {
				all = append(all, *item)
			}
		}
	}
	return all
}

func textHoldsKey(text string, allowHex bool) bool {
	return strings.Contains(text, ".eyJ") && tokenForm.MatchString(text) ||
		strings.Contains(text, "PRIVATE KEY-----") || strings.Contains(text, "PRIVATEKEY-----") ||
		!allowHex && holdsSecret(text)
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
