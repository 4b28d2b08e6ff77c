package ati

import (
	"errors"
	"fmt"
)

// ErrATI is what every error of this package matches with [errors.Is].
var ErrATI = errors.New("ati")

// The reasons for which a token is refused. A [TokenError] matches one of them
// with [errors.Is].
var (
	ErrMalformed   = errors.New("malformed token")
	ErrSignature   = errors.New("signature does not match")
	ErrExpired     = errors.New("token has expired")
	ErrNotYetValid = errors.New("token is not valid yet")
	ErrAudience    = errors.New("audience is not accepted")
	ErrIssuer      = errors.New("issuer is not accepted")
)

// TokenError says why a token could not be issued, validated or inspected. It
// never contains the token or a key.
type TokenError struct {
	Op     string // "issue token", "validate token", "inspect token" or "parse key"
	Reason error  // one of the reasons above, or nil
	Err    error  // the detail, or nil
}

func (e *TokenError) Error() string {
	switch {
	case e.Reason == nil:
		return fmt.Sprintf("%s: %v", e.Op, e.Err)
	case e.Err == nil:
		return fmt.Sprintf("%s: %v", e.Op, e.Reason)
	default:
		return fmt.Sprintf("%s: %v: %v", e.Op, e.Reason, e.Err)
	}
}

// Is makes every TokenError match [ErrATI].
func (e *TokenError) Is(target error) bool { return target == ErrATI }

// Unwrap returns the reason and the detail.
func (e *TokenError) Unwrap() []error { return []error{e.Reason, e.Err} }

// ScopeError says why a scope pattern or a rate is not of the form that this
// package takes.
type ScopeError struct {
	Value string // the offending pattern or rate
	Want  string // what would be right
}

func (e *ScopeError) Error() string { return fmt.Sprintf("%q: %s", e.Value, e.Want) }

// Is makes every ScopeError match [ErrATI].
func (e *ScopeError) Is(target error) bool { return target == ErrATI }

// ProvisionError says why an [Orchestrator] could not be made, or could not
// provision a sandbox.
type ProvisionError struct {
	Err error
}

func (e *ProvisionError) Error() string { return fmt.Sprintf("provision sandbox: %v", e.Err) }

// Is makes every ProvisionError match [ErrATI].
func (e *ProvisionError) Is(target error) bool { return target == ErrATI }

// Unwrap returns the cause.
func (e *ProvisionError) Unwrap() error { return e.Err }
