//go:build unix && !linux

package harden

// protectMemory does nothing: outside Linux, the limit on core files is sufficient.
func protectMemory() error { return nil }
