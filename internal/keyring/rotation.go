package keyring

import (
	"fmt"
	"time"

	"vault-plugin-secrets-ati/ati"
	"vault-plugin-secrets-ati/internal/refuse"
)

// A step in the life of the key changes the entry that it is given, and says what
// the caller should know. It is refused out of turn, with what to do first.
type Step struct {
	Now   time.Time
	Mount string // for the commands in messages
}

// rotate replaces the current version at once, and forgets a previous one.
func (s Step) Rotate(e *Ring, key *Entry) (warnings []string, err error) {
	warn := func(format string, args ...any) { warnings = append(warnings, fmt.Sprintf(format, args...)) }
	if p := e.Pending; p != nil && p.ProxyURL == key.ProxyURL && key.ProxyURL != e.Current.ProxyURL {
		return nil, refuse.Errorf("proxy_url %q is that of version %d, which is staged: its proxy holds another key", key.ProxyURL, p.Version)
	}
	warn("the proxy refuses tokens under version %d, and takes those from before, until it has started again with what proxy-env says now; tokens from before that this mount minted expire by %s at the latest",
		key.Version, e.lastExpiry(s.Now).Format(time.RFC3339))
	warn("a proxy that reads %sproxy-env/<version> does not start again by itself; start it with %sproxy-env", s.Mount, s.Mount)
	if p := e.Previous; p != nil {
		warn("version %d is forgotten too: stop its proxy at %s", p.Version, p.ProxyURL)
	}
	if p := e.Pending; p != nil {
		warn("version %d, which is staged, stays: whoever has read its key can mint for its proxies; drop it with: vault delete %sconfig/rotate/stage", p.Version, s.Mount)
	}
	key.ActivatedAt = key.CreatedAt
	e.Current, e.Previous, e.RolledBack, e.LastRotatedAt = key, nil, false, key.CreatedAt
	return warnings, nil
}

// stage makes the pending version.
func (s Step) Stage(e *Ring, key *Entry) (warnings []string, err error) {
	warn := func(format string, args ...any) { warnings = append(warnings, fmt.Sprintf(format, args...)) }
	if p := e.Previous; p != nil && key.ProxyURL == p.ProxyURL {
		warn("version %d has the proxy_url of version %d: its tokens are refused when the proxy there has started again with version %d", key.Version, p.Version, key.Version)
	}
	if key.ProxyURL == e.Current.ProxyURL {
		warn("version %d has the proxy_url of version %d: from its activation until the proxy there has started again with it, tokens are refused; for none refused, stage it with a proxy_url of its own", key.Version, e.Current.Version)
	}
	warn("a proxy that is started from %sproxy-env gets version %d when that is activated; one that is to stay with version %d has to read %sproxy-env/%d", s.Mount, key.Version, e.Current.Version, s.Mount, e.Current.Version)
	e.Pending = key
	return warnings, nil
}

// mayStage refuses a stage over a stage.
func (s Step) MayStage(e *Ring) error {
	if e.Pending == nil {
		return nil
	}
	return refuse.Errorf("version %d is staged already; make it the current one with: vault write -f %sconfig/rotate/activate, or drop it with: vault delete %sconfig/rotate/stage", e.Pending.Version, s.Mount, s.Mount)
}

// activate makes the pending version the current one, or, after a rollback, the
// one that was rolled back.
func (s Step) Activate(e *Ring) (warnings []string, err error) {
	p := e.Previous
	switch {
	case e.RolledBack && e.Pending == nil:
		warnings = p.unretire()
		e.makeCurrent(p, s.Now)
		e.RolledBack = false
		return warnings, nil
	case e.Pending == nil:
		return nil, refuse.Errorf("no version is staged, and the current one is %d; stage one with: vault write %sconfig/rotate/stage proxy_url=https://…", e.Current.Version, s.Mount)
	case p != nil && p.RetiredAt.IsZero():
		return nil, refuse.Errorf("version %d is not retired yet; end minting under it with: vault write -f %sconfig/rotate/retire", p.Version, s.Mount)
	case p != nil:
		warnings = append(warnings, fmt.Sprintf("version %d is forgotten here, but its tokens pass its proxy until %s", p.Version, p.TokensExpireBy.Format(time.RFC3339)))
	}
	e.makeCurrent(e.Pending, s.Now)
	e.Pending, e.RolledBack = nil, false
	if e.Current.ProxyURL == e.Previous.ProxyURL {
		warnings = append(warnings, fmt.Sprintf("the proxy refuses tokens until it has started again with version %d, whose proxy_url is that of version %d", e.Current.Version, e.Previous.Version))
	}
	return warnings, nil
}

// rollback swaps the current and the previous version. A second one is refused,
// since clients, and Vault itself when a plugin's process ends, repeat a request
// whose answer was lost: to go forward again is activate's.
func (s Step) Rollback(e *Ring) (warnings []string, err error) {
	p := e.Previous
	switch {
	case p == nil:
		return nil, refuse.Errorf("there is no previous version to go back to; the current one is %d", e.Current.Version)
	case e.RolledBack:
		return nil, refuse.Errorf("version %d is the current one by a rollback already; to go forward to version %d again: vault write -f %sconfig/rotate/activate", e.Current.Version, p.Version, s.Mount)
	}
	warnings = p.unretire()
	e.makeCurrent(p, s.Now)
	e.RolledBack = true
	return warnings, nil
}

// retire ends minting under the previous version.
func (s Step) Retire(e *Ring) (warnings []string, err error) {
	p := e.Previous
	switch {
	case p == nil:
		return nil, refuse.Errorf("there is no previous version to retire; the current one is %d", e.Current.Version)
	case !p.RetiredAt.IsZero():
		return nil, refuse.Errorf("version %d was retired at %s already", p.Version, p.RetiredAt.Format(time.RFC3339))
	}
	p.RetiredAt, p.TokensExpireBy = toSecond(s.Now), e.lastExpiry(s.Now)
	if !p.Generated {
		warnings = append(warnings, fmt.Sprintf("the key of version %d was brought from elsewhere: whoever has a copy mints tokens that pass its proxy until that is stopped", p.Version))
	}
	return warnings, nil
}

// makeCurrent activates a version. The one that was current becomes the
// previous one.
func (e *Ring) makeCurrent(k *Entry, now time.Time) {
	e.Current, e.Previous = k, e.Current
	k.ActivatedAt = toSecond(now)
}

// forgetGone drops a previous version that counts no longer.
func (e *Ring) ForgetGone(now time.Time) {
	if e.Previous != nil && e.Previous.Gone(now) {
		e.Previous, e.RolledBack = nil, false
	}
}

// unretire lets a retired version mint again.
func (k *Entry) unretire() (warnings []string) {
	if !k.RetiredAt.IsZero() {
		warnings = []string{fmt.Sprintf("version %d was retired, and is no longer: its tokens don't expire by %s; keep its proxies running", k.Version, k.TokensExpireBy.Format(time.RFC3339))}
		k.RetiredAt, k.TokensExpireBy = time.Time{}, time.Time{}
	}
	return warnings
}

// lastExpiry is when the last token that is minted by now has expired at every
// proxy. The proxy cuts its time to the second, as iat is, and takes a token in
// the 60th second after exp still. (The longest TTL by itself may be the longest
// duration that there is.)
func (e *Ring) lastExpiry(now time.Time) time.Time {
	return toSecond(now).Add(e.LongestTTL).Add(ati.MaxLeeway + time.Second)
}
