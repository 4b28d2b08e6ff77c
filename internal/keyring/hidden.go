package keyring

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// hiddenText is a key that doesn't print itself. It holds a pointer: where fmt
// can't call Format, in unexported fields and after a verb that doesn't fit, it
// then shows an address.
type HiddenText struct{ text *string }

func Hide(text string) HiddenText {
	if text == "" {
		return HiddenText{}
	}
	return HiddenText{&text}
}

// reveal is the key, for parsing, and for proxy-env.
func (h HiddenText) Reveal() string {
	if h.text == nil {
		return ""
	}
	return *h.text
}

// IsZero reports whether there is no key.
func (h HiddenText) IsZero() bool { return h.text == nil }

// Format hides the key, whatever the verb.
func (HiddenText) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "(hidden)") }

// MarshalJSON and UnmarshalJSON are for storage, where the key is a string.
func (h HiddenText) MarshalJSON() ([]byte, error) { return json.Marshal(h.Reveal()) }

func (h *HiddenText) UnmarshalJSON(b []byte) error {
	var text string
	if err := json.Unmarshal(b, &text); err != nil {
		return errors.New("a stored key is not a string") // json's own error may quote it
	}
	*h = Hide(text)
	return nil
}
