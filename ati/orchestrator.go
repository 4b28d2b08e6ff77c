package ati

import (
	"errors"
	"strings"
	"time"
)

// The environment variables of a sandbox.
const (
	EnvProxyURL     = "ATI_PROXY_URL"
	EnvSessionToken = "ATI_SESSION_TOKEN"
)

// Orchestrator provisions sandboxes for one proxy, with one key. With a public
// key it validates tokens only.
type Orchestrator struct {
	ProxyURL string
	Key      Key
	Audience string // of issued and of validated tokens; "" is DefaultAudience
	Issuer   string // of issued tokens; "" is DefaultIssuer
}

// ProvisionRequest says what a sandbox may do.
type ProvisionRequest struct {
	AgentID     string            // claim sub
	Tools       []string          // tool names, with or without "tool:"
	Skills      []string          // skill names, with or without "skill:"
	ExtraScopes []string          // further scopes, as they are
	TTL         time.Duration     // whole seconds; 0 is DefaultTTL
	Rate        map[string]string // claim ati.rate; see ParseRate
}

// ProvisionSandbox issues a token and returns the sandbox's environment:
// ATI_PROXY_URL, without trailing slashes, and ATI_SESSION_TOKEN. Its errors
// are *[ProvisionError].
func (o Orchestrator) ProvisionSandbox(req ProvisionRequest) (map[string]string, error) {
	if o.ProxyURL == "" {
		return nil, &ProvisionError{errors.New("the orchestrator has no ProxyURL")}
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

// ValidateToken is [ValidateToken] with the orchestrator's key and audience.
// Options are applied after these. As in ati-client, the issuer is checked
// only with [WithIssuer].
func (o Orchestrator) ValidateToken(token string, opts ...ValidateOption) (*Claims, error) {
	audience := o.Audience
	if audience == "" {
		audience = DefaultAudience
	}
	return ValidateToken(token, o.Key, append([]ValidateOption{WithAudience(audience)}, opts...)...)
}
