package refuse

import (
	"fmt"

	"github.com/hashicorp/vault/sdk/helper/errutil"
)

// refuse marks an error as one that the caller can mend: Vault answers with it
// and the status 400. Every other error is trouble of the engine's own, and a 500.
func Error(err error) error {
	if err == nil {
		return nil
	}
	return errutil.UserError{Err: err.Error()}
}

func Errorf(format string, args ...any) error {
	return errutil.UserError{Err: fmt.Sprintf(format, args...)}
}
