package ati

import (
	"regexp"
	"strconv"
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

var rateRegexp = regexp.MustCompile(`^(0|[1-9][0-9]{0,8})/(s|sec|second|m|min|minute|h|hr|hour|d|day)\z`)

// ParseRate parses a rate such as "10/hour": a count from 0 to 999,999,999
// without sign or leading zeros, a slash, and one of the units s, sec, second,
// m, min, minute, h, hr, hour, d, and day. It returns a *[ScopeError] for
// anything else.
//
// This is a strict subset of the rates that the proxy accepts. The proxy drops
// all limits of a token if it cannot parse one of them.
func ParseRate(rate string) (Rate, error) {
	m := rateRegexp.FindStringSubmatch(rate)
	if m == nil {
		return Rate{}, &ScopeError{rate, `must be a count from 0 to 999999999, "/", and a unit (s, sec, second, m, min, minute, h, hr, hour, d, or day), as in "10/hour"`}
	}
	count, _ := strconv.Atoi(m[1]) // cannot fail: at most 9 digits
	return Rate{Count: count, Window: window(m[2]), Unit: m[2]}, nil
}

// window returns the duration of a unit that rateRegexp matches.
func window(unit string) time.Duration {
	switch unit[0] {
	case 's':
		return time.Second
	case 'm':
		return time.Minute
	case 'h':
		return time.Hour
	default:
		return 24 * time.Hour
	}
}
