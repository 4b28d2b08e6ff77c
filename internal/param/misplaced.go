package param

import (
	"regexp"
	"slices"
	"strings"
)

const SecretBytes = 32 // ati-client and the proxy call for 64 hex characters

// tokenForm is what a token looks like: header and payload begin with {".
var tokenForm = regexp.MustCompile(`eyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.`)

// hexFields are those whose values may have 64 hex digits in them: the id of a
// container does, and a text may have any sum.
var HexFields = map[string]bool{
	"agent_id": true, "agent_ids": true, "job_id": true, "sandbox_id": true, "subject": true,
	"allowed_agent_ids": true, "allowed_job_ids": true, "allowed_sandbox_ids": true, "description": true,
}

// sizeOf is the length of a parameter's texts, and a byte for whatever else it has.
func SizeOf(value any) int {
	n := 1
	switch v := value.(type) {
	case string:
		n += len(v)
	case []any:
		for _, item := range v {
			n += SizeOf(item)
		}
	case map[string]any:
		for key, item := range v {
			n += len(key) + SizeOf(item)
		}
	}
	return n
}

// holdsKey reports whether a parameter has a token, a private key in PEM or, where
// that is asked for, a secret in it. Errors and warnings quote values, for the
// user's eyes and, some of them, into the audit log: what doesn't belong into any
// of them is refused before.
func HoldsKey(value any, orSecret bool) bool {
	switch v := value.(type) {
	case string:
		return strings.Contains(v, ".eyJ") && tokenForm.MatchString(v) || strings.Contains(v, "PRIVATE KEY-----") || orSecret && holdsSecret(v)
	case []any:
		return slices.ContainsFunc(v, func(item any) bool { return HoldsKey(item, orSecret) })
	case map[string]any:
		for key, item := range v {
			if HoldsKey(key, orSecret) || HoldsKey(item, orSecret) {
				return true
			}
		}
	case []string:
		return slices.ContainsFunc(v, func(item string) bool { return HoldsKey(item, orSecret) })
	}
	return false
}

// holdsSecret reports whether a text has a word of hex digits in it that is about
// as long as a secret, a digit more or less having been lost or added. A sum, with
// its algorithm before it, is none.
func holdsSecret(text string) bool {
	begin, hex := 0, true
	for i := 0; i <= len(text); i++ {
		if i < len(text) {
			c := text[i] | 0x20 // in lower case, where it is a letter
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

// cut bounds a text that quotes what a request has.
func Cut(text string, bytes int) string {
	if len(text) <= bytes {
		return text
	}
	return strings.ToValidUTF8(text[:bytes], "") + "…"
}
