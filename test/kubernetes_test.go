//go:build interop && kubernetes

package test

import (
	"io/fs"
	"path/filepath"
	"strings"
	"testing"
)

// These tests run on a real API server, etcd, External Secrets Operator, and kubernetes
// login. There are no nodes, so the programs of a pod run on the host.
func TestKubernetes(t *testing.T) {
	c := startKube(t)
	c.installCRDs(requireKubernetesEnv(t, "EXTERNAL_SECRETS_CRDS"))
	c.installCRDs(requireKubernetesEnv(t, "VSO_CRDS"))
	for name, test := range map[string]func(*testing.T, *kube){
		"logins":                    testKubernetesLogins,
		"manifests":                 testKubernetesManifests,
		"External Secrets Operator": testKubernetesExternalSecrets,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, c.in(t))
		})
	}
}

// in returns the cluster for a subtest.
func (c *kube) in(t testing.TB) *kube {
	in := *c
	in.t = t
	return &in
}

// The API server accepts every manifest in examples/, and has no warning about it.
func testKubernetesManifests(t *testing.T, c *kube) {
	var files []string
	err := filepath.WalkDir("../examples/kubernetes", func(path string, _ fs.DirEntry, err error) error {
		if strings.HasSuffix(path, ".yaml") && filepath.Base(path) != "kustomization.yaml" {
			files = append(files, path)
		}
		return err
	})
	if err != nil || len(files) < 3 {
		t.Fatalf("%v (%v)", files, err)
	}
	try := func(file string) (string, error) {
		return c.tryKubectl("", "apply", "--server-side", "--dry-run=server", "--validate=strict", "-f", file)
	}
	for _, file := range files {
		out, err := try(file)
		t.Logf("%s\n%s", file, out)
		if err != nil || strings.Contains(out, "Warning") {
			t.Errorf("%s: %v\n%s", file, err, out)
		}
	}
	// The API server detects errors.
	for file, change := range map[string][2]string{
		"kubernetes/external-secrets.yaml":       {"method: POST", "methode: POST"},
		"kubernetes/vault-agent.yaml":            {"restartPolicy: Always", "restartPolicy: Sometimes"},
		"kubernetes/vault-secrets-operator.yaml": {"excludeRaw: true", "excluderaw: true"},
	} {
		if out, err := try(modifiedExample(t, file, map[string]string{change[0]: change[1]})); err == nil {
			t.Errorf("with %s it passes:\n%s", change[1], out)
		}
	}
}
