// Command release makes of the plugin's binaries what is released: for each an
// archive, with the licences of all that it is linked from, and an SBOM; and the
// sums of these. It is run by scripts/release.sh and scripts/licences.sh, and is
// itself in no release.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"time"
)

const name = "vault-plugin-secrets-ati"

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 0 {
		return errors.New("usage: release licences -root DIR, or release pack -root DIR -version V -epoch SECONDS -out DIR BINARY [BINARY …]")
	}
	flags := flag.NewFlagSet(args[0], flag.ContinueOnError)
	root := flags.String("root", "", "the project's directory")
	version := flags.String("version", "", "of the release, with a leading v")
	epoch := flags.Int64("epoch", 0, "the date of all files, in seconds since 1970")
	out := flags.String("out", "", "the directory to write to")
	if err := flags.Parse(args[1:]); err != nil {
		return err
	}
	switch args[0] {
	case "licences":
		// For one platform, so that the page is the same everywhere. The plugin is
		// linked from the most modules there.
		modules, err := linked(*root, "linux", "amd64")
		if err != nil {
			return err
		}
		fmt.Print(page(modules))
		return nil
	case "pack":
		return pack(*root, *version, time.Unix(*epoch, 0).UTC(), *out, flags.Args())
	}
	return fmt.Errorf("unknown command %q", args[0])
}
