//go:build !unix

package main

// disableCoreDumps has nothing to do where there is no such limit.
func disableCoreDumps() error { return nil }
