// Command vault-plugin-secrets-ati is the plugin that Vault starts. It is not
// meant to be run by hand, but for --version.
package main

import (
	"flag"
	"fmt"
	"os"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/vault/api"
	"github.com/hashicorp/vault/sdk/plugin"

	atisecrets "vault-plugin-secrets-ati"
)

// version is what the plugin reports to Vault: a semantic version with a
// leading v. The linker sets it for other builds (-X main.version=…).
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
		if err == flag.ErrHelp {
			return nil
		}
		return err
	}
	if *showVersion {
		fmt.Println("vault-plugin-secrets-ati", version)
		return nil
	}
	if err := disableCoreDumps(); err != nil {
		return fmt.Errorf("disable core dumps: %w", err)
	}
	go endWithParent()
	return plugin.ServeMultiplex(&plugin.ServeOpts{
		BackendFactoryFunc: atisecrets.Factory(version),
		// For Vaults older than 1.12, which don't set up TLS by themselves.
		TLSProviderFunc: api.VaultPluginTLSProvider(meta.GetTLSConfig()),
	})
}
