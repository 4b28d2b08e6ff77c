package role

import (
	"fmt"
	"strings"

	"github.com/hashicorp/go-secure-stdlib/strutil"
	"github.com/hashicorp/vault/sdk/logical"
)

// The claims that identify whom or what a token is for.
const (
	subject = iota
	jobID
	sandboxID
	idCount
)

// ids holds a value for each of the claims.
type ids [idCount]string

// Caller is who requests a token.
type Caller struct {
	EntityID    string
	DisplayName string
	Entity      *logical.Entity // nil unless a template refers to it
	Groups      []*logical.Group
}

// subject returns the subject for a caller that may not choose one, of a role that
// sets none.
func (c Caller) subject() (string, error) {
	if c.EntityID != "" {
		return c.EntityID, CheckID("entity ID", c.EntityID)
	}
	if CheckID("", c.DisplayName) != nil {
		return "", fmt.Errorf("no subject for the token: the caller has no identity entity and its display name %q is not a valid ID; set subject on the role, or pass agent_id", c.DisplayName)
	}
	return c.DisplayName, nil
}

// IdentityNeed is what templates need from Vault's identity system. Each lookup is a
// round trip to Vault.
type IdentityNeed int

// The lookups, each of which includes the ones before it.
const (
	NeedsNothing IdentityNeed = iota
	NeedsEntity
	NeedsGroups
)

// idClaim is one of the claims of a role: its template sets the claim, and a caller
// may set it to a value that the globs match.
type idClaim struct {
	param    string // that a caller sets
	template *idTemplate
	allowed  []string
}

// CheckAgentID reports a subject that a caller may not choose.
func (r *Role) CheckAgentID(id string) error {
	_, err := r.ids[subject].value(r.Name, id, Caller{}, "")
	return err
}

// idClaims returns the parsed claims of a role.
func (e *Entry) idClaims() (claims [idCount]idClaim, err error) {
	for i, c := range [idCount]struct {
		param, field, template string
		allowed                []string
	}{
		subject:   {"agent_id", "subject", e.Subject, e.AllowedAgentIDs},
		jobID:     {"job_id", "job_id", e.JobID, e.AllowedJobIDs},
		sandboxID: {"sandbox_id", "sandbox_id", e.SandboxID, e.AllowedSandboxIDs},
	} {
		claims[i] = idClaim{param: c.param, allowed: c.allowed}
		if c.template == "" {
			continue
		}
		if claims[i].template, err = parseTemplate(c.field, c.template, i != subject); err != nil {
			return claims, err
		}
	}
	return claims, nil
}

func (c idClaim) needs(chosen string) IdentityNeed {
	switch {
	case chosen != "" || !c.template.references("identity."):
		return NeedsNothing
	case c.template.references("identity.groups."):
		return NeedsGroups
	}
	return NeedsEntity
}

// sample returns a value of about the usual length.
func (c idClaim) sample() string {
	switch {
	case c.template == nil:
		return ""
	case c.template.references(""):
		return sampleUUID
	}
	return c.template.sample()
}

// value returns the claim of a token, or "" if neither the caller nor the role sets it.
func (c idClaim) value(role, chosen string, who Caller, jti string) (string, error) {
	switch {
	case chosen != "" && strutil.StrListContainsGlob(c.allowed, chosen):
		return chosen, nil
	case chosen != "" && len(c.allowed) == 0:
		return "", fmt.Errorf("%s %q is not allowed by role %q: allowed_%ss is empty", c.param, chosen, role, c.param)
	case chosen != "":
		return "", fmt.Errorf("%s %q is not allowed by role %q: allowed_%ss is [%s]", c.param, chosen, role, c.param, strings.Join(c.allowed, ", "))
	case c.template != nil:
		return c.template.render(jti, who)
	}
	return "", nil
}
