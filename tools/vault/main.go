// Command vault is HashiCorp Vault, built from the Go module proxy for this
// project's tests and demo. It is never part of a release: Vault's license is
// the BUSL.
package main

import (
	"os"

	"github.com/hashicorp/vault/command"
)

func main() {
	os.Exit(command.Run(os.Args[1:]))
}
