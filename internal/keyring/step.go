package keyring

import (
	"fmt"
	"time"

	"vault-plugin-secrets-ati/ati"
	"vault-plugin-secrets-ati/internal/param"
)

// Step is one step in the life of the key. Its methods change the ring, which must
// have been parsed without an error, and return warnings for the caller. An error
// means that the step is not possible now: it says what to do first, and the ring must
// not be stored.
type Step struct {
	Now     time.Time
	Mount   string  // mount point, such as "ati/", for messages
	Guarded bool    // all proxies run behind a guard, which takes the versions from here
	Request Request // with a key, for Rotate and Stage

	// RoleTTL is the longest TTL of the enabled roles, or 0 if it was not looked up.
	RoleTTL time.Duration
}

// Rotate replaces the current version immediately, and drops a previous one.
func (s Step) Rotate(r *Ring) (warnings []string, err error) {
	key, err := r.newVersion(s.Request, s.Now)
	if err != nil {
		return nil, err
	}
	pending := r.Pending
	if pending != nil && !s.Guarded && pending.ProxyURL == key.ProxyURL && key.ProxyURL != r.Current.ProxyURL {
		return nil, fmt.Errorf("proxy_url %q belongs to pending version %d, and its proxy holds that key; choose a different URL", key.ProxyURL, pending.Version)
	}
	warnings = append(param.PlaintextWarning(key.ProxyURL), s.rotatedWarnings(r, key)...)
	switch {
	case pending != nil && s.Guarded: // guards accept it: its holder could go on
		r.Pending = nil
		warnings = append(warnings, fmt.Sprintf("Pending version %d was deleted.", pending.Version))
	case pending != nil:
		warnings = append(warnings, fmt.Sprintf("Pending version %d was kept. If its key may be compromised, run: vault delete %sconfig/rotate/stage", pending.Version, param.CommandPath(s.Mount)))
	}
	key.ActivatedAt = key.CreatedAt
	r.Current, r.Previous, r.RolledBack, r.LastRotatedAt = key, nil, false, key.CreatedAt
	return warnings, nil
}

// rotatedWarnings returns what to do at the proxies after an immediate rotation.
func (s Step) rotatedWarnings(r *Ring, key *Entry) (warnings []string) {
	expiry := fmt.Sprintf("Tokens issued by this mount before the rotation expire by %s.", r.LastExpiry(s.Now).Format(time.RFC3339))
	if s.Guarded {
		return []string{fmt.Sprintf("From their next poll on, guards reject tokens signed before version %d. %s", key.Version, expiry)}
	}
	warnings = []string{
		fmt.Sprintf("Restart every proxy now. Until a proxy restarts with the key from %sproxy-env, it rejects tokens signed with version %d and accepts tokens signed with its old key. %s", s.Mount, key.Version, expiry),
		fmt.Sprintf("Proxies pinned to %sproxy-env/<version> do not pick up the new key. Restart them with %sproxy-env.", s.Mount, s.Mount),
	}
	if previous := r.Previous; previous != nil {
		warnings = append(warnings, fmt.Sprintf("Key version %d was also deleted. Stop its proxy at %s.", previous.Version, previous.ProxyURL))
	}
	return warnings
}

// Stage makes the pending version.
func (s Step) Stage(r *Ring) (warnings []string, err error) {
	if p := r.Pending; p != nil && p.Automatic {
		return nil, fmt.Errorf("version %d is already pending, and becomes current automatically at %s; to make it current now, run: vault write -f %sconfig/rotate/activate; to drop it, set rotation_period=0 in the config", p.Version, r.NextRotationAt().Format(time.RFC3339), param.CommandPath(s.Mount))
	} else if p != nil {
		return nil, fmt.Errorf("version %d is already pending; activate it with: vault write -f %sconfig/rotate/activate, or drop it with: vault delete %sconfig/rotate/stage", p.Version, param.CommandPath(s.Mount), param.CommandPath(s.Mount))
	}
	key, err := r.newVersion(s.Request, s.Now)
	if err != nil {
		return nil, err
	}
	warnings = param.PlaintextWarning(key.ProxyURL)
	r.Pending = key
	if s.Guarded {
		return warnings, nil // a guard holds all versions
	}
	if p := r.Previous; p != nil && key.ProxyURL == p.ProxyURL {
		warnings = append(warnings, fmt.Sprintf("Version %d has the proxy_url of previous version %d. When the proxy at that URL restarts with version %d, it rejects tokens signed with version %d.", key.Version, p.Version, key.Version, p.Version))
	}
	if key.ProxyURL == r.Current.ProxyURL {
		warnings = append(warnings, fmt.Sprintf("Version %d has the proxy_url of current version %d. After activation, the proxy rejects new tokens until it restarts with version %d. To avoid rejected requests, stage the new version with a different proxy_url.", key.Version, r.Current.Version, key.Version))
	}
	warnings = append(warnings, fmt.Sprintf("Proxies that start with %sproxy-env use version %d after it is activated. To keep a proxy on version %d, pin it to %sproxy-env/%d before you activate.", s.Mount, key.Version, r.Current.Version, s.Mount, r.Current.Version))
	return warnings, nil
}

// Activate makes the pending version current or, after a rollback, the version that
// was rolled back.
func (s Step) Activate(r *Ring) (warnings []string, err error) {
	previous := r.Previous
	switch {
	case r.RolledBack && r.Pending == nil:
		warnings = s.unretire(r)
		r.makeCurrent(previous, s.Now)
		r.RolledBack = false
		s.retireBehindGuards(r)
		return warnings, nil
	case r.Pending == nil:
		return nil, fmt.Errorf("no version is pending (current version: %d); stage one with %sconfig/rotate/stage", r.Current.Version, s.Mount)
	case previous != nil && previous.RetiredAt.IsZero():
		return nil, fmt.Errorf("previous version %d is not retired; retire it first with: vault write -f %sconfig/rotate/retire", previous.Version, param.CommandPath(s.Mount))
	case previous != nil && s.Guarded:
		warnings = append(warnings, fmt.Sprintf("Key version %d was deleted. Guards reject its tokens, some of which would have expired by %s.", previous.Version, previous.TokensExpireBy.Format(time.RFC3339)))
	case previous != nil:
		warnings = append(warnings, fmt.Sprintf("Key version %d was deleted from this mount, but its proxy accepts its tokens until %s.", previous.Version, previous.TokensExpireBy.Format(time.RFC3339)))
	}
	r.makeCurrent(r.Pending, s.Now)
	r.Pending, r.RolledBack = nil, false
	s.retireBehindGuards(r)
	if r.Current.ProxyURL == r.Previous.ProxyURL && !s.Guarded {
		warnings = append(warnings, fmt.Sprintf("Restart the proxy at %s with version %d. Until then it rejects new tokens.", r.Current.ProxyURL, r.Current.Version))
	}
	return warnings, nil
}

// Rollback makes the previous version current again. A second rollback is an error
// rather than a step forward: clients, and Vault itself when the plugin's process
// ends, repeat a request whose response was lost.
func (s Step) Rollback(r *Ring) (warnings []string, err error) {
	previous := r.Previous
	switch {
	case previous == nil:
		return nil, fmt.Errorf("there is no previous version to roll back to (current version: %d)", r.Current.Version)
	case r.RolledBack:
		return nil, fmt.Errorf("version %d is already current after a rollback; to return to version %d, run: vault write -f %sconfig/rotate/activate", r.Current.Version, previous.Version, param.CommandPath(s.Mount))
	}
	warnings = s.unretire(r)
	r.makeCurrent(previous, s.Now)
	r.RolledBack = true
	if r.Pending != nil && r.Pending.Automatic {
		r.Pending = nil
	}
	return warnings, nil
}

// Retire stops minting with the previous version.
func (s Step) Retire(r *Ring) (warnings []string, err error) {
	previous := r.Previous
	switch {
	case previous == nil:
		return nil, fmt.Errorf("there is no previous version to retire (current version: %d)", r.Current.Version)
	case !previous.RetiredAt.IsZero():
		return nil, fmt.Errorf("version %d was already retired at %s", previous.Version, previous.RetiredAt.Format(time.RFC3339))
	}
	r.retire(s.Now)
	if !previous.Generated && !s.Guarded {
		warnings = append(warnings, fmt.Sprintf("Key version %d was imported, so copies may exist outside Vault. Anyone with a copy can mint tokens for its proxy until you stop that proxy.", previous.Version))
	}
	return warnings, nil
}

// makeCurrent activates a version. The current version becomes the previous one.
func (r *Ring) makeCurrent(e *Entry, now time.Time) {
	r.Current, r.Previous = e, r.Current
	e.ActivatedAt = toSecond(now)
}

// retireBehindGuards retires the previous version if no request can get a token of it: one
// for its proxy_url gets a token of the current version. Guards accept those that it has.
func (s Step) retireBehindGuards(r *Ring) {
	if !s.Guarded || r.Previous.ProxyURL != r.Current.ProxyURL {
		return
	}
	r.retire(s.Now)
	if s.RoleTTL > 0 { // the current version is the only one that signs, and has not yet
		r.LongestTTL = s.RoleTTL
	}
}

func (r *Ring) retire(now time.Time) {
	r.Previous.RetiredAt, r.Previous.TokensExpireBy = toSecond(now), r.LastExpiry(now)
}

// unretire allows minting with a retired version again. Its tokens may live longer than
// those of the current roles.
func (s Step) unretire(r *Ring) (warnings []string) {
	e := r.Previous
	if e.RetiredAt.IsZero() {
		return nil
	}
	r.LongestTTL = max(r.LongestTTL, e.TokensExpireBy.Add(-leeway).Sub(toSecond(s.Now)))
	if !s.Guarded {
		warnings = []string{fmt.Sprintf("Version %d is no longer retired, so its tokens may outlive %s. Keep its proxies running.", e.Version, e.TokensExpireBy.Format(time.RFC3339))}
	}
	e.RetiredAt, e.TokensExpireBy = time.Time{}, time.Time{}
	return warnings
}

// leeway is how long a proxy accepts an expired token: it truncates its time to the second,
// and accepts a token through the 60th second after exp.
const leeway = ati.MaxLeeway + time.Second

// LastExpiry returns the time at which every token that was minted until now has expired
// at every proxy. LongestTTL is added first: it may be the longest time.Duration.
func (r *Ring) LastExpiry(now time.Time) time.Time {
	last := toSecond(now).Add(r.LongestTTL).Add(leeway)
	if r.Previous != nil && r.Previous.TokensExpireBy.After(last) {
		return r.Previous.TokensExpireBy // of roles that allowed more
	}
	return last
}
