package role

import (
	"fmt"

	"github.com/hashicorp/go-secure-stdlib/strutil"
	"github.com/hashicorp/vault/sdk/logical"
)

// caller is who asked for a token.
type Caller struct {
	EntityID    string
	DisplayName string
	Entity      *logical.Entity // nil where no template asks for it
	Groups      []*logical.Group
}

// subject names a caller that chose no subject, for a role that sets none.
func (who Caller) subject() (string, error) {
	if who.EntityID != "" {
		return who.EntityID, checkID("entity id", who.EntityID)
	}
	if err := checkID("display name", who.DisplayName); err != nil {
		return "", fmt.Errorf("the caller has no identity entity, and its %w; set the role's subject or allowed_agent_ids", err)
	}
	return who.DisplayName, nil
}

// identityNeed is what templates need of Vault's identity system: each is a
// round trip.
type IdentityNeed int

const (
	NeedsNothing IdentityNeed = iota
	needsEntity
	NeedsGroups // and the entity
)

// idClaim is a claim that names somebody: the role's template sets it, or the
// caller chooses it where the role's globs allow that.
type idClaim struct {
	Param    string // by which a caller chooses it
	template *idTemplate
	allowed  []string
}

func newIDClaim(param, field, text string, jtiAllowed bool, allowed []string) (c idClaim, err error) {
	c = idClaim{Param: param, allowed: allowed}
	if text != "" {
		c.template, err = parseTemplate(field, text, jtiAllowed)
	}
	return c, err
}

func (c idClaim) needs(chosen string) IdentityNeed {
	switch {
	case chosen != "" || !c.template.asks("identity."):
		return NeedsNothing
	case c.template.asks("identity.groups."):
		return NeedsGroups
	}
	return needsEntity
}

// sample has about the length of the claim's values.
func (c idClaim) sample() string {
	switch {
	case c.template == nil:
		return ""
	case c.template.asks(""):
		return sampleUUID
	}
	return c.template.sample()
}

// value is the claim's, or empty where neither caller nor role say any.
func (c idClaim) value(role, chosen string, who Caller, jti string) (string, error) {
	switch {
	case chosen != "" && strutil.StrListContainsGlob(c.allowed, chosen):
		return chosen, nil
	case chosen != "":
		return "", fmt.Errorf("%s %q is not one that role %q allows; its allowed_%ss say which", c.Param, chosen, role, c.Param)
	case c.template != nil:
		return c.template.render(jti, who.Entity, who.Groups)
	}
	return "", nil
}
