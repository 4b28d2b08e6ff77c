package test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// product is the server under test, Vault or OpenBao. What the tests must know about
// their differences is here.
type product struct {
	name    string // Vault or OpenBao
	version string // such as 1.21.0

	// Settings for the configuration. Only Vault has disable_mlock. OpenBao needs another one
	// for tests that enable audit devices with a request.
	settings string

	// Whether audit devices are declared in the configuration, unless a setting allows
	// requests to enable them.
	declaresAudit bool

	// The setting that makes standbys forward reads, as those of Vault's community edition
	// always do.
	noStandbyReads string

	// Strings in a JSON request that a listener without settings accepts, or at least accepts.
	jsonStrings int

	// Settings for each listener, which docs/compatibility.md recommends.
	listener string
}

var (
	vault   = product{name: "Vault", jsonStrings: 10_000, settings: "disable_mlock = true"}
	openBao = product{
		name:           "OpenBao",
		declaresAudit:  true,
		jsonStrings:    1000,
		settings:       "unsafe_allow_api_audit_creation = true",
		noStandbyReads: "disable_standby_reads = true",
		listener:       "max_request_json_strings = 1100\n  max_request_json_memory = 2097152",
	}
)

// tested is the product of the binary vaultBin.
var tested product

// hasStandbyReads reports whether standbys run the plugin and respond to reads.
func (p product) hasStandbyReads() bool { return p.noStandbyReads != "" }

// detectProduct returns the product of a binary.
func detectProduct(binary string) (product, error) {
	out, err := exec.Command(binary, "version").Output()
	if err != nil {
		return product{}, fmt.Errorf("%s version: %w", binary, err)
	}
	for _, p := range []product{vault, openBao} {
		if version, ok := strings.CutPrefix(string(out), p.name+" v"); ok {
			p.version = strings.TrimRight(strings.Fields(version)[0], ",")
			return p, nil
		}
	}
	return product{}, fmt.Errorf("%s is neither Vault nor OpenBao: %s", binary, out)
}

// pathWithVault returns a PATH in which vault, as the documents call it, is the server
// under test.
func pathWithVault(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Symlink(vaultBin, filepath.Join(dir, "vault")); err != nil {
		t.Fatal(err)
	}
	return dir + ":" + os.Getenv("PATH")
}
