//go:build interop

package test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// pythonClients are the variables that locate the versions of ati-client.
var pythonClients = []string{"ATI_CLIENT_0_1_0", "ATI_CLIENT_0_7_15"}

// python returns a command that runs Python with the package ati_vault of this source and a
// version of ati-client.
func python(t testing.TB, client string, args ...string) *exec.Cmd {
	t.Helper()
	source, err := filepath.Abs("../python")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "python3", args...)
	path := []string{source, requireEnv(t, client), requireEnv(t, "HVAC"), requireEnv(t, "MYPY")}
	cmd.Env = append(os.Environ(), "PYTHONPATH="+strings.Join(path, ":"), "PYTHONDONTWRITEBYTECODE=1", "VAULT_NAMESPACE=")
	return cmd
}

// testPython runs the tests and the type check of the package with each version of ati-client.
func testPython(t *testing.T) {
	for _, client := range pythonClients {
		t.Run(client, func(t *testing.T) {
			t.Parallel()
			s, secret := startEngine(t)
			token := s.policy("orchestrator", string(readFile(t, "../examples/policies/orchestrator.hcl"))+`
path "ati/validate" { capabilities = ["update"] }`)
			run := python(t, client, "-W", "error", "-m", "unittest", "discover", "-s", "../python/tests")
			run.Env = append(run.Env, "VAULT_ADDR="+s.addr, "VAULT_TOKEN="+token, "PATH="+pathWithVault(t), "ROOT_TOKEN="+s.root, "ATI_JWT_SECRET="+secret)
			if out, err := run.CombinedOutput(); err != nil || strings.Contains(string(out), "Ran 0 tests") {
				t.Errorf("%v\n%s", err, out)
			}

			s.vault(s.root, "operator", "seal")
			sealed := python(t, client, "-c", "import ati_vault; ati_vault.VaultOrchestrator(role='researcher').provision_sandbox(agent_id='sandbox:1')")
			sealed.Env = append(sealed.Env, "VAULT_ADDR="+s.addr, "VAULT_TOKEN="+token)
			if out, err := sealed.CombinedOutput(); err == nil || !strings.HasSuffix(string(out), "\nati_vault.VaultUnavailable: ati/creds/researcher: Vault is sealed; retry\n") {
				t.Errorf("a sealed Vault: %v\n%s", err, out)
			}

			check := python(t, client, "-m", "mypy", "--cache-dir", t.TempDir())
			check.Dir = "../python"
			if out, err := check.CombinedOutput(); err != nil {
				t.Errorf("mypy: %v\n%s", err, out)
			}
		})
	}
}

// The Python package in a release is the one of the source, depends only on the source, and
// has the version of the release.
func TestInteropWheel(t *testing.T) {
	t.Parallel()
	const name = "ati_vault-0.2.0rc1-py3-none-any.whl"
	env := []string{"VERSION=v0.2.0-rc1", "WHEEL="}
	release := func(tree string, env ...string) (dist string) {
		dist = t.TempDir()
		previous := filepath.Join(dist, "ati_vault-0.0.1-py3-none-any.whl")
		if err := os.WriteFile(previous, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if out, err := makeRelease(t, tree, dist, env...); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return dist
	}
	another := releaseTree(t)
	commitAll(t, another)
	one := release(releaseTree(t), append(env, fmt.Sprint("SOURCE_DATE_EPOCH=", releaseDate))...)
	two := filesIn(t, release(another, append(env, "UMASK=077", "TZ=Asia/Tokyo", "PYTHONPATH=/nonexistent")...))
	if diff := cmp.Diff(sumOf(filesIn(t, one)[name]), sumOf(two[name])); diff != "" || len(two[name]) == 0 {
		t.Errorf("the packages of two releases (-one +another):\n%s", diff)
	}
	if want := sumOf(two[name]) + "  " + name + "\n"; strings.Count(string(two["SHA256SUMS"]), want) != 1 || strings.Count(string(two["SHA256SUMS"]), ".whl") != 1 {
		t.Errorf("SHA256SUMS has\n%s\nwant one package, %s", two["SHA256SUMS"], want)
	}

	installed := t.TempDir()
	pip := exec.CommandContext(t.Context(), "python3", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-index", "--no-compile", "--target", installed, filepath.Join(one, name))
	pip.Env = append(os.Environ(), "PIP_USER=0")
	if out, err := pip.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	sums := func(files map[string][]byte) map[string]string {
		sums := map[string]string{}
		for name, text := range files {
			sums[name] = sumOf(text)
		}
		return sums
	}
	source := sums(map[string][]byte{"__init__.py": readFile(t, "../python/ati_vault/__init__.py"), "py.typed": readFile(t, "../python/ati_vault/py.typed")})
	if diff := cmp.Diff(source, sums(filesIn(t, filepath.Join(installed, "ati_vault")))); diff != "" {
		t.Errorf("files (-source +package):\n%s", diff)
	}
	show := python(t, pythonClients[0], "-c", "import importlib.metadata as m; d = m.distribution('ati-vault'); print(d.version, d.requires, d.metadata.get_payload() == open('../python/README.md').read())")
	show.Env = append(show.Env, "PYTHONPATH="+installed)
	out, err := show.CombinedOutput()
	if want := "0.2.0-rc1 ['ati-client>=0.1.0', 'hvac>=2.0', 'requests>=2.27.1'] True\n"; err != nil || string(out) != want {
		t.Errorf("the metadata are %s, want %s (%v)", out, want, err)
	}
}

// Without pip, or with a version that Python does not have, make release says what to do.
func TestInteropWheel_Rejected(t *testing.T) {
	t.Parallel()
	bin, date := t.TempDir(), fmt.Sprint("SOURCE_DATE_EPOCH=", releaseDate)
	if err := os.WriteFile(filepath.Join(bin, "python3"), []byte("#!/bin/sh\n[ \"$1\" != -m ]\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		env  []string
		want string
	}{
		"no pip":         {[]string{"PATH=" + bin + ":" + os.Getenv("PATH")}, "the Python package needs Python 3.10 or later with pip: install python3 and python3-pip, or set WHEEL=no to release without the package\n"},
		"no such number": {[]string{"VERSION=v0.2.0-next"}, "cannot build the Python package for v0.2.0-next; use a version such as v1.2.3, v1.2.3-rc1, or v1.2.3-dev, or set WHEEL=no\n"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dist := t.TempDir()
			out, err := makeRelease(t, releaseTree(t), dist, append(test.env, "WHEEL=", date)...)
			if err == nil || !strings.Contains(out, test.want) || len(filesIn(t, dist)) > 0 {
				t.Errorf("%v\n%s\nwant an error that contains\n%s", err, out, test.want)
			}
		})
	}
}
