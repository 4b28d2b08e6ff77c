package ati

import (
	"strconv"
	"strings"
	"time"
)

// Rate is one limit of the claim ati.rate: Count calls in a sliding Window.
type Rate struct {
	Count  int           // 0 to 999,999,999
	Window time.Duration // one second, minute, hour, or day
	Unit   string        // the window as written in the rate, such as "min"
}

// String returns the rate in the form that [ParseRate] reads, such as "10/min".
func (r Rate) String() string { return strconv.Itoa(r.Count) + "/" + r.Unit }

// windows are the windows by unit.
var windows = map[string]time.Duration{
	"s": time.Second, "sec": time.Second, "second": time.Second,
	"m": time.Minute, "min": time.Minute, "minute": time.Minute,
	"h": time.Hour, "hr": time.Hour, "hour": time.Hour,
	"d": 24 * time.Hour, "day": 24 * time.Hour,
}

// ParseRate parses a rate such as "10/hour": a count from 0 to 999,999,999
// without sign or leading zeros, a slash, and one of the units s, sec, second,
// m, min, minute, h, hr, hour, d, and day. It returns a *[ScopeError] for
// anything else.
//
// This is a strict subset of the rates that the proxy accepts. The proxy drops
// all limits of a token if it cannot parse one of them.
func ParseRate(rate string) (Rate, error) {
	digits, unit, _ := strings.Cut(rate, "/")
	count, err := strconv.ParseUint(digits, 10, 32)
	window, ok := windows[unit]
	if err != nil || !ok || len(digits) > 9 || len(digits) > 1 && digits[0] == '0' {
		return Rate{}, &ScopeError{rate, `must be a count from 0 to 999999999, "/", and a unit (s, sec, second, m, min, minute, h, hr, hour, d, or day), as in "10/hour"`}
	}
	return Rate{Count: int(count), Window: window, Unit: unit}, nil
}
