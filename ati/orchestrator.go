package ati

import (
	"errors"
	"strings"
	"time"
)

// Environment variables that the ATI client reads in a sandbox.
const (
	EnvProxyURL     = "ATI_PROXY_URL"
	EnvSessionToken = "ATI_SESSION_TOKEN"
)

// Orchestrator provisions sandboxes for one proxy with one key. With a public
// key it can only validate tokens.
type Orchestrator struct {
	ProxyURL string // required by ProvisionSandbox
	Key      Key
	Audience string // audience of issued and validated tokens; defaults to DefaultAudience
	Issuer   string // issuer of issued tokens; defaults to DefaultIssuer
}

// ProvisionRequest lists what a sandbox may access.
type ProvisionRequest struct {
	AgentID     string            // claim sub
	Tools       []string          // tool names, with or without "tool:"
	Skills      []string          // skill names, with or without "skill:"
	ExtraScopes []string          // additional scopes, used verbatim
	TTL         time.Duration     // a whole number of seconds; 0 means DefaultTTL
	Rate        map[string]string // claim ati.rate; see ParseRate
}

// ProvisionSandbox issues a token and returns the environment of the sandbox:
// ATI_PROXY_URL, without trailing slashes, and ATI_SESSION_TOKEN. It returns a
// *[ProvisionError] if ProxyURL is empty or [IssueToken] fails.
func (o Orchestrator) ProvisionSandbox(req ProvisionRequest) (map[string]string, error) {
	if o.ProxyURL == "" {
		return nil, &ProvisionError{errors.New("ProxyURL is required")}
	}
	token, err := IssueToken(o.Key, IssueRequest{
		Subject:  req.AgentID,
		Scope:    BuildScope(req.Tools, req.Skills, req.ExtraScopes),
		TTL:      req.TTL,
		Audience: o.Audience,
		Issuer:   o.Issuer,
		Rate:     req.Rate,
	})
	if err != nil {
		return nil, &ProvisionError{err}
	}
	return map[string]string{
		EnvProxyURL:     strings.TrimRight(o.ProxyURL, "/"),
		EnvSessionToken: token,
	}, nil
}

// ValidateToken calls [ValidateToken] with the key and the audience of the
// orchestrator. The given options are applied last. As in ati-client, the
// issuer is checked only with [WithIssuer].
func (o Orchestrator) ValidateToken(token string, opts ...ValidateOption) (*Claims, error) {
	audience := o.Audience
	if audience == "" {
		audience = DefaultAudience
	}
	return ValidateToken(token, o.Key, append([]ValidateOption{WithAudience(audience)}, opts...)...)
}
