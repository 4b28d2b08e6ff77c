//go:build !unix

package harden

// DisableCoreDumps does nothing: there is no limit on core files.
func DisableCoreDumps() error { return nil }
