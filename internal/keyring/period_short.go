//go:build short_rotation

package keyring

import "time"

// The limits of a plugin for tests, which can wait for a rotation.
const (
	minPeriod    = 3 * time.Minute
	periodMargin = leeway
)
