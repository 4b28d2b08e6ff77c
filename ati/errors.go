package ati

import (
	"errors"
	"fmt"
)

// ErrATI matches every [TokenError], [ScopeError], and [ProvisionError] with
// [errors.Is].
var ErrATI = errors.New("ati")

// Reasons why [ValidateToken] or [InspectToken] rejects a token. The
// [TokenError] that they return matches one of them with [errors.Is], unless a
// key or an option is invalid.
var (
	ErrMalformed   = errors.New("malformed token")
	ErrSignature   = errors.New("signature does not match")
	ErrExpired     = errors.New("token has expired")
	ErrNotYetValid = errors.New("token is not valid yet")
	ErrAudience    = errors.New("audience is not accepted")
	ErrIssuer      = errors.New("issuer is not accepted")
)

// TokenError reports that a token could not be issued, validated, or inspected,
// or that a key could not be parsed. It never contains the token or the key.
type TokenError struct {
	Op     string // "issue token", "validate token", "inspect token", or "parse key"
	Reason error  // one of the reasons above, or nil
	Err    error  // the detail, or nil

	// Claims is set by ValidateToken if the signature matches: the claims of a token
	// that has expired, for example.
	Claims *Claims
}

// Error returns the operation, the reason, and the detail, separated by colons.
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

// Is reports whether target is [ErrATI].
func (e *TokenError) Is(target error) bool { return target == ErrATI }

// Unwrap returns the reason and the detail.
func (e *TokenError) Unwrap() []error { return []error{e.Reason, e.Err} }

// ScopeError reports that a scope pattern or a rate does not have the form that
// this package requires.
type ScopeError struct {
	Value string // the rejected pattern or rate
	Want  string // what is required instead
}

// Error returns the quoted value and what is required instead.
func (e *ScopeError) Error() string { return fmt.Sprintf("%q: %s", e.Value, e.Want) }

// Is reports whether target is [ErrATI].
func (e *ScopeError) Is(target error) bool { return target == ErrATI }

// ProvisionError reports that an [Orchestrator] could not provision a sandbox.
type ProvisionError struct {
	Err error
}

// Error returns the cause, prefixed with the operation.
func (e *ProvisionError) Error() string { return fmt.Sprintf("provision sandbox: %v", e.Err) }

// Is reports whether target is [ErrATI].
func (e *ProvisionError) Is(target error) bool { return target == ErrATI }

// Unwrap returns the cause.
func (e *ProvisionError) Unwrap() error { return e.Err }
