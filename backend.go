// Package atisecrets is a Vault secrets engine that mints ATI session tokens.
package atisecrets

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"time"
	"vault-plugin-secrets-ati/internal/param"
	"vault-plugin-secrets-ati/internal/refuse"
	"vault-plugin-secrets-ati/internal/role"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/helper/errutil"
	"github.com/hashicorp/vault/sdk/logical"
)

const (
	// All parameters together; the largest role has some 700 KB. It is judged before
	// anything splits them: a form of 10 MB, on which Vault has no other limit, can be
	// 10,000,000 items.
	maxRequestBytes = 1 << 20
	maxErrorBytes   = 4096 // of an answer, which may quote a value

	// mountTuneTTL is how long a mint may go by the mount's former maximum TTL
	// after it was tuned: asking for it is a round trip to Vault.
	mountTuneTTL = 5 * time.Second

	operationPrefix = "ati"
)

type backend struct {
	*framework.Backend

	now func() time.Time
	store

	mountMax atomic.Pointer[mountMax]
}

type mountMax struct {
	ttl    time.Duration
	readAt time.Time
}

// HandleRequest checks all parameters before the framework does. That takes a
// number for an id, after it went through a float on its way from Vault, so that
// two ids become one; and its errors quote values, which puts a secret that is
// given as a list, or inside another field, into the audit log.
func (b *backend) HandleRequest(ctx context.Context, req *logical.Request) (*logical.Response, error) {
	if err := b.checkParameters(req); err != nil {
		return logical.ErrorResponse(param.Cut(err.Error(), maxErrorBytes)), nil
	}
	resp, err := b.Backend.HandleRequest(ctx, req)
	if resp.IsError() {
		resp.Data["error"] = param.Cut(resp.Error().Error(), maxErrorBytes)
	}
	return resp, err
}

// HandleExistenceCheck goes by the path alone. Vault writes an error of it into
// the audit log as it stands, and asks before it knows whether the caller may do
// anything here: so what is wrong with a request is HandleRequest's to say.
func (b *backend) HandleExistenceCheck(ctx context.Context, req *logical.Request) (checkFound, exists bool, err error) {
	bare := *req
	bare.Data = nil
	return b.Backend.HandleExistenceCheck(ctx, &bare)
}

func (b *backend) checkParameters(req *logical.Request) error {
	switch req.Operation {
	case logical.CreateOperation, logical.ReadOperation, logical.UpdateOperation, logical.DeleteOperation, logical.ListOperation:
	default:
		return nil // the data of a revocation is the answer that began the lease
	}
	if len(req.Data) == 0 {
		return nil
	}
	if n := param.SizeOf(req.Data); n > maxRequestBytes {
		return fmt.Errorf("the parameters have %d bytes together; at most %d are allowed", n, maxRequestBytes)
	}
	path := b.Route(req.Path)
	if path == nil {
		return nil
	}
	for _, name := range slices.Sorted(maps.Keys(req.Data)) {
		field := path.Fields[name]
		if field == nil || req.Data[name] == nil {
			continue // onlyKnownParameters refuses it
		}
		if sensitive := field.DisplayAttrs != nil && field.DisplayAttrs.Sensitive; !sensitive && param.HoldsKey(req.Data[name], !param.HexFields[name]) {
			return fmt.Errorf("%s holds what looks like a key or a token, and is for neither", name)
		}
		if err := param.ReadAny(name, req.Data[name], field.Type); err != nil {
			return err
		}
		if field.Type == framework.TypeKVPairs && isBlank(req.Data[name]) {
			req.Data[name] = map[string]any{} // the framework takes no empty string for a map
		}
	}
	return nil
}

func isBlank(value any) bool {
	text, ok := value.(string)
	return ok && strings.Trim(text, param.AsciiBlanks) == ""
}

// recentMountMaxTTL is the mount's maximum TTL, up to mountTuneTTL old.
func (b *backend) recentMountMaxTTL() (time.Duration, error) {
	now := b.now()
	if m := b.mountMax.Load(); m != nil && now.Sub(m.readAt) < mountTuneTTL && !now.Before(m.readAt) {
		return m.ttl, nil
	}
	ttl, err := b.mountMaxTTL()
	if err == nil {
		b.mountMax.Store(&mountMax{ttl: ttl, readAt: now})
	}
	return ttl, err
}

// mountMaxTTL asks Vault for the mount's maximum TTL. For a plugin that is a
// round trip, and 0 is all that the SDK says of one that failed.
func (b *backend) mountMaxTTL() (time.Duration, error) {
	ttl := b.System().MaxLeaseTTL()
	if ttl <= 0 {
		return 0, errors.New("the mount's maximum TTL is not known: Vault did not answer")
	}
	return ttl.Truncate(time.Second), nil // a token's TTL is in whole seconds
}

// operation declares an operation whose parameters are checked before the
// handler sees them.
func operation(callback framework.OperationFunc, summary, verb, suffix string, response framework.Response) *framework.PathOperation {
	status := 200
	if response.Fields == nil {
		status = 204
	}
	return &framework.PathOperation{
		Callback:     answer(callback),
		Summary:      summary,
		DisplayAttrs: &framework.DisplayAttributes{OperationPrefix: operationPrefix, OperationVerb: verb, OperationSuffix: suffix},
		Responses:    map[int][]framework.Response{status: {response}},
	}
}

// onActiveNode makes an operation run on the active node only.
func onActiveNode(op *framework.PathOperation) *framework.PathOperation {
	op.ForwardPerformanceStandby = true
	op.ForwardPerformanceSecondary = true
	return op
}

// answer is how each operation is called: with parameters that the path knows,
// and with what is the caller's to mend as an answer.
func answer(callback framework.OperationFunc) framework.OperationFunc {
	return func(ctx context.Context, req *logical.Request, d *framework.FieldData) (*logical.Response, error) {
		if err := onlyKnownParameters(req.Data, d); err != nil {
			return logical.ErrorResponse(err.Error()), nil
		}
		resp, err := callback(ctx, req, d)
		var refused errutil.UserError
		if errors.As(err, &refused) {
			return logical.ErrorResponse(refused.Err), nil
		}
		return resp, err
	}
}

// onlyKnownParameters refuses what the framework only warns of or silently
// takes: a misspelt parameter (a mint with "tool" for "tools" would grant the
// whole role), and null.
func onlyKnownParameters(given map[string]any, d *framework.FieldData) error {
	for _, name := range slices.Sorted(maps.Keys(given)) { // of several mistakes the same one is told
		switch {
		case d.Schema[name] == nil && param.HoldsKey(name, true):
			return fmt.Errorf("a parameter's name looks like a key or a token; this path takes %s", parameterNames(d))
		case d.Schema[name] == nil:
			return fmt.Errorf("unknown parameter %q; this path takes %s", name, parameterNames(d))
		case name == nameField || name == versionField:
			return fmt.Errorf("parameter %q stands in the path and can't be given again", name)
		case given[name] == nil:
			return fmt.Errorf("parameter %q is null; leave it out, or give it a value", name)
		}
	}
	return nil
}

func parameterNames(d *framework.FieldData) string {
	names := slices.DeleteFunc(slices.Sorted(maps.Keys(d.Schema)), func(name string) bool { return name == nameField || name == versionField })
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, ", ")
}

// orNoContent answers with warnings, or with nothing: Vault's 204.
func orNoContent(warnings []string) *logical.Response {
	if len(warnings) == 0 {
		return nil
	}
	return &logical.Response{Warnings: warnings}
}

func merged[V any](maps_ ...map[string]V) map[string]V {
	all := map[string]V{}
	for _, m := range maps_ {
		maps.Copy(all, m)
	}
	return all
}

// noConfig refuses what needs a config.
func noConfig(req *logical.Request) error {
	return refuse.Errorf("this mount has no config yet; write one with: vault write %sconfig proxy_url=https://…", req.MountPoint)
}

const (
	// nameField is the role's name, a part of the path.
	nameField = "name"

	// versionField is a version of the key, a part of the path.
	versionField = "version"

	// namePattern is framework.GenericNameRegex without "..", which Vault's
	// storage doesn't take.
	namePattern = `(?P<` + nameField + `>\w((\.?[\w-])*\.?\w)?)`
)

// roleName is the part of a path that names a role.
func roleName(description string) *framework.FieldSchema {
	return &framework.FieldSchema{
		Type:         framework.TypeString,
		Description:  description,
		DisplayAttrs: &framework.DisplayAttributes{Name: "Role", Identifier: true},
	}
}

// configAndRole is what a request for a token of a role needs.
func (b *backend) configAndRole(ctx context.Context, req *logical.Request, d *framework.FieldData) (*config, *role.Role, error) {
	cfg, err := b.getConfig(ctx, req.Storage)
	if err != nil {
		return nil, nil, err
	}
	if cfg == nil {
		return nil, nil, noConfig(req)
	}
	name := d.Get(nameField).(string)
	r, err := b.getRole(ctx, req.Storage, name)
	if err != nil {
		return nil, nil, err
	}
	if r == nil {
		return nil, nil, refuse.Errorf("role %q does not exist; vault list %sroles shows those that do", name, req.MountPoint)
	}
	return cfg, r, nil
}

// parameterList names what a write was given, for the log.
func parameterList(req *logical.Request) string {
	return strings.Join(slices.Sorted(maps.Keys(req.Data)), ",")
}
