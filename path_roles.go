package atisecrets

import (
	"context"
	"fmt"
	"vault-plugin-secrets-ati/internal/param"
	"vault-plugin-secrets-ati/internal/refuse"
	"vault-plugin-secrets-ati/internal/role"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"
)

func pathRoles(b *backend) []*framework.Path {
	write := onActiveNode(operation(b.pathRolesWrite, "Create or update a role.", "write", "role", framework.Response{Description: "Stored"}))
	return []*framework.Path{
		{
			Pattern:      "roles/?",
			DisplayAttrs: &framework.DisplayAttributes{OperationPrefix: operationPrefix},
			Operations: map[logical.Operation]framework.OperationHandler{
				logical.ListOperation: operation(b.pathRolesList,
					"List the roles.", "list", "roles", framework.Response{Description: "The names of the roles", Fields: map[string]*framework.FieldSchema{
						"keys": {Type: framework.TypeStringSlice, Description: "Names of the roles."},
					}}),
			},
			HelpSynopsis:    "The names of the roles.",
			HelpDescription: "Lists the names of the roles, without what they grant.\n\n    $ vault list ati/roles",
		},
		{
			Pattern:        "roles/" + namePattern,
			Fields:         merged(map[string]*framework.FieldSchema{nameField: roleName("Name of the role. Case-sensitive.")}, role.Params.Fields()),
			ExistenceCheck: b.roleExists,
			DisplayAttrs:   &framework.DisplayAttributes{OperationPrefix: operationPrefix, ItemType: "Role"},
			Operations: map[logical.Operation]framework.OperationHandler{
				logical.CreateOperation: write,
				logical.UpdateOperation: write,
				logical.ReadOperation: operation(b.pathRolesRead,
					"Read a role.", "read", "role", framework.Response{Description: "The role", Fields: role.Params.Response()}),
				logical.DeleteOperation: onActiveNode(operation(b.pathRolesDelete,
					"Delete a role.", "delete", "role", framework.Response{Description: "Deleted"})),
			},
			HelpSynopsis:    pathRolesHelpSyn,
			HelpDescription: pathRolesHelpDesc,
		},
	}
}

func (b *backend) roleExists(ctx context.Context, req *logical.Request, d *framework.FieldData) (bool, error) {
	r, err := b.getRole(ctx, req.Storage, d.Get(nameField).(string))
	return r != nil, err
}

func (b *backend) pathRolesList(ctx context.Context, req *logical.Request, _ *framework.FieldData) (*logical.Response, error) {
	names, err := req.Storage.List(ctx, rolePrefix)
	if err != nil {
		return nil, fmt.Errorf("list the roles: %w", err)
	}
	return logical.ListResponse(names), nil
}

func (b *backend) pathRolesRead(ctx context.Context, req *logical.Request, d *framework.FieldData) (*logical.Response, error) {
	r, err := b.getRole(ctx, req.Storage, d.Get(nameField).(string))
	if r == nil || err != nil {
		return nil, err
	}
	return &logical.Response{Data: role.Params.Data(&r.Entry)}, nil
}

func (b *backend) pathRolesWrite(ctx context.Context, req *logical.Request, d *framework.FieldData) (*logical.Response, error) {
	name := d.Get(nameField).(string)
	b.lock.Lock()
	defer b.lock.Unlock()

	cfg, err := b.loadConfig(ctx, req.Storage)
	if err != nil {
		return nil, err
	}
	if cfg == nil {
		return nil, noConfig(req)
	}
	mountMax, err := b.mountMaxTTL()
	if err != nil {
		return nil, err
	}
	entry, err := readRoleEntry(ctx, req.Storage, name)
	if err != nil {
		return nil, err
	}
	created := entry == nil
	if created {
		if err := role.CheckName(name); err != nil {
			return nil, refuse.Error(err)
		}
		entry = role.NewEntry(&cfg.Limits, mountMax)
	}
	r, err := entry.Update(name, d.Raw, created)
	if err != nil {
		return nil, refuse.Error(err)
	}
	// A disabled role mints nothing: it can be kept, and disabled, even where a
	// ceiling was lowered under it.
	if !r.Disabled {
		if err := r.Fits(&cfg.Limits, mountMax); err != nil {
			return nil, refuse.Error(err)
		}
	}
	size, err := r.TokenSize(&cfg.Limits, cfg.Current.Key, cfg.Current.CreatedAt)
	if err != nil {
		return nil, err
	}
	if size > role.MaxTokenBytes {
		return nil, refuse.Errorf("a token of this role has %d bytes; at most %d are allowed: grant less, or use patterns", size, role.MaxTokenBytes)
	}
	if err := b.raiseLongestTTL(ctx, req.Storage, cfg, r); err != nil {
		return nil, err
	}
	if err := b.putRole(ctx, req.Storage, r); err != nil {
		return nil, err
	}
	b.Logger().Info("role written", "role", shown(name), "created", created, "parameters", parameterList(req))
	return orNoContent(r.Warnings(size)), nil
}

func (b *backend) pathRolesDelete(ctx context.Context, req *logical.Request, d *framework.FieldData) (*logical.Response, error) {
	name := d.Get(nameField).(string)
	b.lock.Lock()
	defer b.lock.Unlock()
	b.roles.Remove(name)
	if err := remove(ctx, req.Storage, rolePrefix+name); err != nil {
		return nil, fmt.Errorf("delete role %q: %w", name, err)
	}
	b.Logger().Info("role deleted", "role", shown(name))
	return nil, nil
}

// shown is a role's name for the log, where it is no key.
func shown(name string) string {
	if param.HoldsKey(name, true) {
		return "(hidden)"
	}
	return param.Cut(name, role.MaxNameBytes)
}

const pathRolesHelpSyn = `What a token of this role grants, to whom, and for how long.`

const pathRolesHelpDesc = `
A role lists what its tokens open at the proxy: tools, skills and scopes, each
an exact name or a pattern that ends in "*". Rates are pattern=count/unit; the
proxy counts calls of the tool as the caller spells it, so rates are good
manners rather than a wall.

The subject is the caller's identity unless the role sets one or allows the
caller to choose an agent_id.

An update changes only the given fields. A list or map given empty is cleared.

    $ vault write ati/roles/researcher tools=web_search,'github:*' \
        rate='tool:github:*=10/hour' allowed_agent_ids='sandbox:*' ttl=1h
`
