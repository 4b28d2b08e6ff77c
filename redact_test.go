package atisecrets_test

import (
	"encoding/hex"
	"fmt"
	"math/big"
	"reflect"
	"strings"
	"testing"

	atisecrets "vault-plugin-secrets-ati"
)

// TestKeys_AreNotPrinted checks that no value that holds a key shows it when it is
// printed, as a log line might do by mistake.
func TestKeys_AreNotPrinted(t *testing.T) {
	t.Parallel()
	pair := newPair(t)
	private := pair.pkcs8
	d, err := pair.key.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	raw, err := hex.DecodeString(testSecret)
	if err != nil {
		t.Fatal(err)
	}
	holders, err := atisecrets.WithKeys(testSecret, private)
	if err != nil {
		t.Fatal(err)
	}
	// A part of each key, in each form in which fmt prints text and bytes.
	var leaks []string
	for _, bytes := range [][]byte{raw, d} {
		leaks = append(leaks, strings.Trim(fmt.Sprint(bytes[:6]), "[]"), strings.Trim(fmt.Sprintf("%#v", bytes[:6]), "[]byte{}"), fmt.Sprintf("%x", bytes[:6]), fmt.Sprintf("%X", bytes[:6]), new(big.Int).SetBytes(bytes).String()[:12], string(bytes))
	}
	for _, text := range []string{testSecret[:16], strings.Split(private, "\n")[1][32:48]} {
		leaks = append(leaks, text, fmt.Sprintf("%x", text), fmt.Sprintf("%X", text))
	}
	verbs := []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d"}
	type inside struct{ held any }
	for name, holder := range holders {
		pointer := reflect.New(reflect.TypeOf(holder))
		pointer.Elem().Set(reflect.ValueOf(holder))
		for form, value := range map[string]any{"": holder, "a pointer to ": pointer.Interface(), "a list of ": []any{holder}, "a struct around ": inside{holder}, "an error about ": fmt.Errorf("%v", holder)} {
			for _, verb := range verbs {
				shown := fmt.Sprintf(verb, value)
				for i, leak := range leaks {
					if strings.Contains(shown, leak) {
						t.Errorf("%s prints %s%s with a key in it, in form %d", verb, form, name, i)
					}
				}
			}
		}
	}
	if len(holders) != 30 {
		t.Errorf("%d values were printed", len(holders))
	}
}
