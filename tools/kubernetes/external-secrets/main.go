// Command external-secrets is the External Secrets Operator with its provider and generator
// for Vault only, built from the Go module proxy for this project's tests. It is never part
// of a release.
package main

import (
	"github.com/external-secrets/external-secrets/cmd/controller"
	_ "github.com/external-secrets/external-secrets/pkg/generator/vault"
	_ "github.com/external-secrets/external-secrets/pkg/provider/vault"
)

func main() {
	controller.Execute()
}
