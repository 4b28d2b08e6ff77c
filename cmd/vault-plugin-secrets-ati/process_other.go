//go:build !unix

package main

// disableCoreDumps does nothing: there is no limit on core files.
func disableCoreDumps() error { return nil }

// exitWithParent does nothing: the parent process ID does not change when the
// parent exits.
func exitWithParent() {}
