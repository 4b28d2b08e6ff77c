// Package ati reads and writes the session tokens of ATI (Agent Tools
// Interface), and decides what they open.
//
// It is the Go twin of the Python library ati-client 0.1.0: the same input
// gives the same bytes, and [ValidateToken] accepts a token only when both the
// ATI proxy and ati-client do.
//
//	ati-client                         this package
//	issue_token                        IssueToken
//	validate_token                     ValidateToken
//	inspect_token                      InspectToken
//	TokenClaims, AtiNamespace          Claims, Namespace
//	build_scope_string                 BuildScope
//	parse_scopes                       ParseScopes
//	check_scope                        CheckScope
//	matches_wildcard                   MatchesWildcard
//	AtiOrchestrator                    Orchestrator
//	TokenError, ScopeError,            TokenError, ScopeError,
//	ProvisionError, AtiError           ProvisionError, ErrATI
//
// Where ati-client takes a secret, this package takes a [Key], made once by
// [ParseSecret]. Beyond ati-client, [ParsePrivateKey] and [ParsePublicKey] make
// keys for ES256, which the proxy takes as well; who only validates needs no
// more than the public one.
//
// Beyond it there are [Allows] and [Matches], which answer as the proxy does,
// [LegacyAlias], [Covers], on which narrowing a grant rests, [CheckPattern] and
// [ParseRate].
//
// A token is a JWT (RFC 7519) in compact form, signed with HS256 or ES256.
package ati
