//go:build !unix

package main

// exitWithParent does nothing: the parent process ID does not change when the
// parent exits.
func exitWithParent() {}
