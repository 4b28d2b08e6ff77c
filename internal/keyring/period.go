//go:build !short_rotation

package keyring

import "time"

const (
	minPeriod = time.Hour

	// periodMargin is for the leeway of the proxies, and for the minute between two calls of
	// the periodic function.
	periodMargin = 2 * time.Minute
)
