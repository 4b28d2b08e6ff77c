package keyring

import (
	"errors"
	"fmt"
	"time"

	"vault-plugin-secrets-ati/internal/param"
)

const (
	defaultOverlap = 5 * time.Minute
	minOverlap     = time.Minute
)

// Schedule is when the key rotates without a request, behind guards. A pending version is
// created Overlap before it becomes current, so that every guard has it by then. It
// becomes current Period after the version that it replaces, which is retired in the same
// step.
type Schedule struct {
	Period  time.Duration `json:"rotation_period,omitempty"` // 0: no automatic rotation
	Overlap time.Duration `json:"rotation_overlap,omitempty"`
}

// ScheduleParams are the parameters of config that set a Schedule.
var ScheduleParams = param.Set[Schedule]{
	param.Duration("rotation_period", param.Display("Rotation period", "Rotation"),
		"How long a version of the key is current before the next one replaces it automatically: 0, for no automatic rotation, or at least 1h. Requires guarded=true, and must be longer than the TTL of every enabled role by rotation_overlap and 2m.",
		func(s *Schedule) *time.Duration { return &s.Period }),
	param.Duration("rotation_overlap", param.Display("Rotation overlap", "Rotation"),
		"How long the next version is pending before it becomes current: at least 1m. A guard that cannot read Vault for that long rejects new tokens until it can.",
		func(s *Schedule) *time.Duration { return &s.Overlap }).Default(int(defaultOverlap / time.Second)),
}

// NewSchedule returns the schedule of a new config.
func NewSchedule() Schedule { return Schedule{Overlap: defaultOverlap} }

// TTLLimit returns the longest TTL of a token with which each rotation is on time: the tokens
// of the previous version have expired when the next one is created.
func (s Schedule) TTLLimit() time.Duration { return s.Period - s.Overlap - periodMargin }

// Check reports why the key cannot rotate by the schedule. longestTTL is that of the
// enabled roles.
func (s Schedule) Check(guarded bool, longestTTL time.Duration) error {
	switch {
	case s.Overlap < minOverlap:
		return fmt.Errorf("rotation_overlap %v: must be at least %v", s.Overlap, minOverlap)
	case s.Period == 0:
		return nil
	case s.Period < minPeriod:
		return fmt.Errorf("rotation_period %v: must be 0 or at least %v", s.Period, minPeriod)
	case !guarded:
		return errors.New("rotation_period requires guarded=true, because a proxy without a guard rejects tokens of a new key until it restarts; run every proxy behind ati-guard and set guarded=true, or set rotation_period=0")
	case longestTTL > s.TTLLimit():
		return fmt.Errorf("rotation_period %v is too short: roles allow a TTL of up to %v, so it must be at least %v (with rotation_overlap %v and a margin of %v)", s.Period, longestTTL, longestTTL+s.Overlap+periodMargin, s.Overlap, periodMargin)
	}
	return nil
}

// TTLWarnings returns a warning if tokens with this TTL delay rotations.
func (s Schedule) TTLWarnings(ttl time.Duration) []string {
	if s.Period == 0 || ttl <= s.TTLLimit() {
		return nil
	}
	return []string{fmt.Sprintf("Tokens of this role live up to %v. With a TTL over %v, the automatic rotation waits until the tokens of the previous key have expired.", ttl, s.TTLLimit())}
}

// Due is a step in the life of the key that is due without a request.
type Due struct {
	Name    string
	NewKey  bool   // the step's Request needs a key
	Retires bool   // the step takes a RoleTTL
	Deletes *Entry // what the step deletes
	Apply   func(Step, *Ring) (warnings []string, err error)
}

// Due returns the next step if it is due, or nil.
func (r *Ring) Due(now time.Time) *Due {
	live := *r
	expired := live.DropExpired(now)
	if due := live.dueRotation(now); due != nil || !expired {
		return due
	}
	return &Due{Name: "expired", Deletes: r.Previous, Apply: func(s Step, r *Ring) ([]string, error) { r.DropExpired(s.Now); return nil, nil }}
}

func (r *Ring) dueRotation(now time.Time) *Due {
	switch pending := r.Pending; {
	case r.isPremature(now):
		return &Due{Name: "pending", Deletes: r.Pending, Apply: func(s Step, r *Ring) ([]string, error) { r.Reschedule(s.Now); return nil, nil }}
	case r.Period == 0 || r.suspended() != "":
		return nil
	case pending == nil && !now.Before(r.rotateAt().Add(-r.Overlap)):
		return &Due{Name: "stage", NewKey: true, Apply: Step.stageAutomatically}
	case pending != nil && !now.Before(r.NextRotationAt()):
		return &Due{Name: "activate", Retires: true, Apply: Step.Activate}
	}
	return nil
}

// isPremature reports whether the automatic rotation would not have created the pending
// version by now: the schedule has changed, or the clock was set back.
func (r *Ring) isPremature(now time.Time) bool {
	if r.Pending == nil || !r.Pending.Automatic {
		return false
	}
	return r.Period == 0 || now.Add(r.Overlap).Before(later(r.rotateAt().Add(-r.Overlap), r.Pending.CreatedAt))
}

// Reschedule applies a changed schedule to a rotation in progress.
func (r *Ring) Reschedule(now time.Time) {
	if r.isPremature(now) {
		r.Pending = nil
	}
}

// rotateAt returns when the current version is to be replaced: at the end of its period,
// but not before the tokens of the previous version have expired.
func (r *Ring) rotateAt() time.Time {
	at := r.Current.ActivatedAt.Add(r.Period)
	if r.Previous != nil {
		at = later(at, r.Previous.TokensExpireBy)
	}
	return at
}

// NextRotationAt returns when the next version becomes current automatically, or zero.
func (r *Ring) NextRotationAt() time.Time {
	switch {
	case r.Period == 0 || r.suspended() != "":
		return time.Time{}
	case r.Pending != nil:
		return later(r.rotateAt(), r.Pending.CreatedAt.Add(r.Overlap))
	}
	return r.rotateAt()
}

// suspended returns why the automatic rotation waits for a request, or "".
func (r *Ring) suspended() string {
	switch {
	case r.RolledBack && !r.Previous.RetiredAt.IsZero():
		return fmt.Sprintf("version %d was rolled back; its tokens expire by %s", r.Previous.Version, r.Previous.TokensExpireBy.Format(time.RFC3339))
	case r.RolledBack && r.Pending != nil:
		return fmt.Sprintf("version %d was rolled back; retire it", r.Previous.Version)
	case r.RolledBack:
		return fmt.Sprintf("version %d was rolled back; activate it again, or retire it", r.Previous.Version)
	case r.Pending != nil && !r.Pending.Automatic:
		return fmt.Sprintf("version %d was staged by a request; activate or delete it", r.Pending.Version)
	case r.Previous != nil && r.Previous.RetiredAt.IsZero():
		return fmt.Sprintf("previous version %d is not retired", r.Previous.Version)
	}
	return ""
}

// SuspendedWarnings returns a warning if the automatic rotation waits for a request.
func (r *Ring) SuspendedWarnings() []string {
	if reason := r.suspended(); r.Period > 0 && reason != "" {
		return []string{"The automatic rotation is suspended: " + reason + "."}
	}
	return nil
}

// RotationStatus returns what the automatic rotation does, or "" without one.
func (r *Ring) RotationStatus() string {
	reason := r.suspended()
	switch {
	case r.Period == 0:
		return ""
	case reason != "":
		return "suspended: " + reason
	case r.Pending != nil:
		return fmt.Sprintf("in progress: version %d is pending", r.Pending.Version)
	case r.rotateAt().After(r.Current.ActivatedAt.Add(r.Period)):
		return fmt.Sprintf("delayed: tokens of version %d expire by %s", r.Previous.Version, r.Previous.TokensExpireBy.Format(time.RFC3339))
	}
	return "scheduled"
}

// stageAutomatically creates the pending version at the address of the current one.
func (s Step) stageAutomatically(r *Ring) ([]string, error) {
	if _, err := s.Stage(r); err != nil {
		return nil, err
	}
	r.Pending.Automatic = true
	return nil, nil
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
