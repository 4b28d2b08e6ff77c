// Package ati issues, validates, and inspects the session tokens of ATI (Agent
// Tools Interface), and evaluates their scopes.
//
// It is the Go counterpart of the Python library ati-client 0.1.0: the same
// input produces the same bytes, and [ValidateToken] accepts a token only if
// both the ATI proxy and ati-client accept it.
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
// Where ati-client takes a secret, this package takes a [Key], which
// [ParseSecret] creates.
//
// The package adds to ati-client:
//   - [ParsePrivateKey] and [ParsePublicKey], for ES256 keys, which the proxy
//     supports as well. A public key is enough to validate tokens.
//   - [Allows] and [Matches], which evaluate scopes as the proxy does, and
//     [LegacyAlias].
//   - [Covers], which decides whether a grant can be narrowed to a pattern.
//   - [CheckPattern] and [ParseRate], which validate scope patterns and rates.
//
// A token is a JWT (RFC 7519) in compact form, signed with HS256 or ES256.
package ati
