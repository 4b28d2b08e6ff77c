//go:build unix

// Command ati-guard runs an ATI proxy and is the gate in front of it: it takes the keys
// and revocations from the secrets engine, and forwards only requests with a valid token
// that is not revoked.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/hashicorp/go-hclog"

	"vault-plugin-secrets-ati/internal/guard"
	"vault-plugin-secrets-ati/internal/harden"
)

// version is overridden with -ldflags "-X main.version=…".
var version = "v0.1.0"

const usage = `Usage: ati-guard [check] -config FILE [options]

Runs an ATI proxy behind a gate that takes its keys and revocations from the Vault
secrets engine for ATI. Requests without a valid token are rejected, also while Vault or
the proxy is away.

  check    load the TLS certificate, read Vault, start a proxy, report what was found,
           and exit

SIGTERM lets requests in flight finish. SIGHUP reads the TLS certificate again and
reopens the access log. VAULT_ADDR, VAULT_CACERT, and the other variables of Vault's CLI
apply where the configuration is silent.

Options, each also a key of the configuration:

`

func main() {
	if err := run(os.Args[1:]); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "ati-guard:", err)
		os.Exit(1)
	}
}

// raiseFileLimit lets the proxy have as many connections as the guard. Go raises the limit
// for the guard, and starts programs with the one that it found, which is often 1,024.
func raiseFileLimit() {
	var limit syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit) == nil {
		limit.Cur = limit.Max
		_ = syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit)
	}
}

func run(args []string) error {
	if err := harden.DisableCoreDumps(); err != nil {
		return fmt.Errorf("disable core dumps: %w", err)
	}
	raiseFileLimit()
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(200) // the heap is so small that it would be collected many times a second
	}
	check := len(args) > 0 && args[0] == "check"
	if check {
		args = args[1:]
	}
	flags := flag.NewFlagSet("ati-guard", flag.ContinueOnError)
	flags.Usage = func() { fmt.Fprint(flags.Output(), usage); flags.PrintDefaults() }
	flags.SetOutput(io.Discard) // the error is printed by main
	showVersion := flags.Bool("version", false, "print the version and exit")
	cfg, err := guard.ParseConfig(flags, args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		flags.SetOutput(os.Stdout)
		flags.Usage()
		return nil
	case *showVersion:
		fmt.Println("ati-guard", version)
		return nil
	case err != nil:
		return fmt.Errorf("%w (ati-guard -help lists the options)", err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if check {
		return guard.Check(ctx, cfg, os.Stdout)
	}
	return guard.Serve(ctx, cfg, hclog.New(&hclog.LoggerOptions{Name: "ati-guard", Output: os.Stderr}))
}
