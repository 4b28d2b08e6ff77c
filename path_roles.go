package atisecrets

import (
	"context"
	"fmt"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"vault-plugin-secrets-ati/internal/refuse"
	"vault-plugin-secrets-ati/internal/role"
)

func pathRoles(b *backend) []*framework.Path {
	write := b.operation(writingNode, b.pathRolesWrite, "Create or update a role.", "write", "role", framework.Response{Description: "Stored"})
	return []*framework.Path{
		{
			Pattern:      "roles/?",
			Fields:       pageFields,
			DisplayAttrs: &framework.DisplayAttributes{OperationPrefix: operationPrefix},
			Operations: map[logical.Operation]framework.OperationHandler{
				logical.ListOperation: b.operation(anyNode, b.pathRolesList,
					"List the roles.", "list", "roles", framework.Response{Description: "Names of the roles, in alphabetical order", Fields: map[string]*framework.FieldSchema{
						"keys": {Type: framework.TypeStringSlice, Description: "Names of the roles."},
					}}),
			},
			HelpSynopsis:    "List the roles.",
			HelpDescription: "Lists the names of the roles.\n\n    $ vault list ati/roles",
		},
		{
			Pattern:        "roles/" + namePattern,
			Fields:         merged(roleName("Name of the role. Case-sensitive."), role.Params.Fields()),
			ExistenceCheck: b.roleExists,
			DisplayAttrs:   &framework.DisplayAttributes{OperationPrefix: operationPrefix, ItemType: "Role"},
			Operations: map[logical.Operation]framework.OperationHandler{
				logical.CreateOperation: write,
				logical.UpdateOperation: write,
				logical.PatchOperation: b.operation(writingNode, b.pathRolesWrite,
					"Update parts of a role.", "patch", "role", framework.Response{Description: "Stored"}),
				logical.ReadOperation: b.operation(anyNode, b.pathRolesRead,
					"Read a role.", "read", "role", framework.Response{Description: "Role", Fields: role.Params.Response()}),
				logical.DeleteOperation: b.operation(writingNode, b.pathRolesDelete,
					"Delete a role.", "delete", "role", framework.Response{Description: "Deleted"}),
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

func (b *backend) pathRolesList(ctx context.Context, req *logical.Request, d *framework.FieldData) (*logical.Response, error) {
	names, err := req.Storage.List(ctx, rolePrefix)
	if err != nil {
		return nil, fmt.Errorf("list roles: %w", err)
	}
	return logical.ListResponse(page(names, d)), nil
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
	maxTTL, err := b.maxMountTTL()
	if err != nil {
		return nil, err
	}
	bounds := cfg.bounds(maxTTL)
	entry, err := readRoleEntry(ctx, req.Storage, name)
	if err != nil {
		return nil, err
	}
	created, fresh := entry == nil, role.NewEntry(bounds)
	switch {
	case created && req.Operation == logical.PatchOperation:
		return nil, noRole(req, name)
	case created:
		if err := role.CheckName(name); err != nil {
			return nil, refuse.Error(err)
		}
		entry = fresh
	}
	r, err := entry.Update(name, d.Raw, fresh)
	if err != nil {
		return nil, refuse.Error(err)
	}
	warnings, err := checkRole(r, bounds, cfg)
	if err != nil {
		return nil, err
	}
	if err := b.raiseLongestTTL(ctx, req.Storage, cfg, r); err != nil {
		return nil, err
	}
	if err := b.putRole(ctx, req.Storage, r); err != nil {
		return nil, err
	}
	b.Logger().Info("role written", "role", redactedName(name), "created", created, "parameters", parameterList(req))
	return noContent(warnings), nil
}

// checkRole reports why a role cannot be stored, or returns warnings about it. A
// disabled role may exceed limits that were lowered after it was written, so that it
// can be disabled and kept.
func checkRole(r *role.Role, bounds role.Bounds, cfg *config) (warnings []string, err error) {
	if !r.Disabled {
		if err := r.CheckLimits(bounds); err != nil {
			return nil, refuse.Error(err)
		}
		warnings = cfg.Stored.TTLWarnings(r.LongestTTL())
	}
	size, err := r.TokenSize(bounds.Limits, cfg.Current.Key, cfg.Current.CreatedAt)
	if err != nil {
		return nil, err
	}
	if size > role.MaxTokenBytes {
		return nil, refuse.Errorf("a token of this role would have %d bytes, more than the maximum of %d; grant less, or use patterns", size, role.MaxTokenBytes)
	}
	return append(r.Warnings(bounds.Limits, size), warnings...), nil
}

func (b *backend) pathRolesDelete(ctx context.Context, req *logical.Request, d *framework.FieldData) (*logical.Response, error) {
	name := d.Get(nameField).(string)
	b.lock.Lock()
	defer b.lock.Unlock()
	if err := b.deleteRole(ctx, req.Storage, name); err != nil {
		return nil, err
	}
	b.Logger().Info("role deleted", "role", redactedName(name))
	return nil, nil
}

const pathRolesHelpSyn = `Manage a role, which defines what its tokens may access, for whom, and for how long.`

const pathRolesHelpDesc = `
A role lists what its tokens may access at the proxy: tools, skills, and scopes, each an
exact name or a pattern that ends in "*". Rate limits, as pattern=count/unit, are best
effort and not a security boundary: the proxy matches them against the tool's name as
the caller spells it.

The subject is the caller's identity, unless the role sets one or allows the caller to
choose an agent_id.

An update changes only the fields that you set. An empty list or map clears the field.
A list or a map can be one string: JSON, or items separated by commas or line breaks.
A patch is an update in which null resets a field.

    $ vault write ati/roles/researcher tools=web_search,'github:*' \
        rate='tool:github:*=10/hour' allowed_agent_ids='sandbox:*' ttl=1h
`
