// Command vault-plugin-secrets-ati is the plugin binary that Vault starts. The only
// use without Vault is --version.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/vault/api"
	"github.com/hashicorp/vault/sdk/plugin"

	atisecrets "vault-plugin-secrets-ati"
	"vault-plugin-secrets-ati/internal/harden"
)

// version is the version that the plugin reports to Vault: a semantic version with
// a leading v. Builds override it with -ldflags "-X main.version=…".
var version = "v0.1.0"

func main() {
	if err := run(os.Args[1:]); err != nil {
		hclog.New(&hclog.LoggerOptions{}).Error("plugin shutting down", "error", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	meta := &api.PluginAPIClientMeta{}
	flags := meta.FlagSet()
	showVersion := flags.Bool("version", false, "print the version and exit")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil
		}
		return err
	}
	if *showVersion {
		fmt.Println("vault-plugin-secrets-ati", version)
		return nil
	}
	if err := harden.DisableCoreDumps(); err != nil {
		return fmt.Errorf("disable core dumps: %w", err)
	}
	go exitWithParent()
	return plugin.ServeMultiplex(&plugin.ServeOpts{
		BackendFactoryFunc: atisecrets.Factory(version),
		// Vault before 1.12 does not set up TLS automatically.
		TLSProviderFunc: api.VaultPluginTLSProvider(meta.GetTLSConfig()),
	})
}
