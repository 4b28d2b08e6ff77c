package keyring

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// Secret is a key that does not print itself. It holds a pointer: where fmt cannot
// call Format, such as for an unexported field, an address is printed.
type Secret struct{ text *string }

// NewSecret returns a secret with this text. Empty means that there is no key.
func NewSecret(text string) Secret {
	if text == "" {
		return Secret{}
	}
	return Secret{&text}
}

// Plaintext returns the key, for parsing and for proxy-env.
func (s Secret) Plaintext() string {
	if s.text == nil {
		return ""
	}
	return *s.text
}

// IsZero reports whether there is no key.
func (s Secret) IsZero() bool { return s.text == nil }

// Format prints a placeholder, whatever the verb.
func (Secret) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "(hidden)") }

// MarshalJSON returns the key as a JSON string, for storage.
func (s Secret) MarshalJSON() ([]byte, error) { return json.Marshal(s.Plaintext()) }

// UnmarshalJSON reads the key from storage.
func (s *Secret) UnmarshalJSON(b []byte) error {
	var text string
	if err := json.Unmarshal(b, &text); err != nil {
		return errors.New("a stored key is not a string") // the error of encoding/json may quote it
	}
	*s = NewSecret(text)
	return nil
}
