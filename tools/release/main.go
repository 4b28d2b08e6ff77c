// Command release packs the binaries of the plugin and of ati-guard for release: an
// archive and an SBOM for each binary, with the licenses of the modules that it is linked
// from, the Python package, and the checksums. scripts/release.sh and make licenses run it; no release
// contains it.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"time"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 0 {
		return errors.New("usage: release licenses -root DIR, or release pack -root DIR -version V -epoch SECONDS [-wheel FILE] -out DIR BINARY [BINARY …]")
	}
	flags := flag.NewFlagSet(args[0], flag.ContinueOnError)
	root := flags.String("root", "", "the project's directory")
	version := flags.String("version", "", "of the release, with a leading v")
	epoch := flags.Int64("epoch", 0, "the date of all files, in seconds since 1970")
	wheel := flags.String("wheel", "", "the Python package")
	out := flags.String("out", "", "the directory to write to")
	if err := flags.Parse(args[1:]); err != nil {
		return err
	}
	switch args[0] {
	case "licenses":
		// For one platform, so that the page is the same everywhere. The programs are
		// linked from the most modules there.
		modules, err := linked(*root, "linux", "amd64", plugin, guard)
		if err != nil {
			return err
		}
		fmt.Print(page(modules, plugin, guard))
		return nil
	case "pack":
		return pack(*root, *version, time.Unix(*epoch, 0).UTC(), *wheel, *out, flags.Args())
	}
	return fmt.Errorf("unknown command %q", args[0])
}
