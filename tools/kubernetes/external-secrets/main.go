// Command external-secrets is the External Secrets Operator, built from the Go module proxy
// for this project's tests. It is never part of a release.
package main

import "github.com/external-secrets/external-secrets/cmd/controller"

func main() {
	controller.Execute()
}
