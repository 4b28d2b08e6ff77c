package ati

import (
	"regexp"
	"strconv"
	"time"
)

// Rate is a limit of the claim ati.rate: Count calls in each sliding Window.
type Rate struct {
	Count  int           // 0 to 999,999,999
	Window time.Duration // a second, minute, hour or day
	Unit   string        // the window as it was spelt, such as "min"
}

// String writes the rate as it was parsed.
func (r Rate) String() string { return strconv.Itoa(r.Count) + "/" + r.Unit }

var rateForm = regexp.MustCompile(`^(0|[1-9][0-9]{0,8})/(s|sec|second|m|min|minute|h|hr|hour|d|day)\z`)

// ParseRate reads a rate such as "10/hour": a count from 0 to 999,999,999
// without sign or leading zeros, a slash, and a unit out of s, sec, second, m,
// min, minute, h, hr, hour, d and day. Anything else is a *[ScopeError]. That
// is a strict subset of what the proxy takes, which drops all limits of a
// token for one rate that it can't parse.
func ParseRate(rate string) (Rate, error) {
	m := rateForm.FindStringSubmatch(rate)
	if m == nil {
		return Rate{}, &ScopeError{rate, `a rate is a count from 0 to 999999999, "/", and one of s, sec, second, m, min, minute, h, hr, hour, d, day, as in "10/hour"`}
	}
	count, _ := strconv.Atoi(m[1]) // at most 9 digits
	return Rate{Count: count, Window: window(m[2]), Unit: m[2]}, nil
}

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
