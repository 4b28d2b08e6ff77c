// Package refuse marks errors that the caller of a request can correct.
package refuse

import (
	"fmt"

	"github.com/hashicorp/vault/sdk/helper/errutil"
)

// Error marks err as the caller's, so that Vault responds with its text and
// status 400. An error that is not marked is the engine's, and a 500. Error(nil)
// is nil.
func Error(err error) error {
	if err == nil {
		return nil
	}
	return errutil.UserError{Err: err.Error()}
}

// Errorf returns an error that is marked as the caller's.
func Errorf(format string, args ...any) error {
	return errutil.UserError{Err: fmt.Sprintf(format, args...)}
}
