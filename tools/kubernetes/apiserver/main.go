// Command apiserver is the Kubernetes API server, built from the Go module proxy for this
// project's tests. It is never part of a release.
package main

import (
	"os"

	"k8s.io/component-base/cli"
	"k8s.io/kubernetes/cmd/kube-apiserver/app"
)

func main() {
	os.Exit(cli.Run(app.NewAPIServerCommand()))
}
