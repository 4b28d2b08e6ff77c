// Package atisecrets is a Vault secrets engine that mints ATI session tokens.
package atisecrets

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/hashicorp/go-kms-wrapping/entropy/v2"
	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/helper/errutil"
	"github.com/hashicorp/vault/sdk/logical"

	"vault-plugin-secrets-ati/internal/param"
	"vault-plugin-secrets-ati/internal/refuse"
	"vault-plugin-secrets-ati/internal/role"
)

const (
	// maxRequestBytes limits all parameters of a request together; those of the largest
	// role have about 700 KB. It is checked before anything splits a parameter: a form of
	// 10 MB, which Vault accepts, can have 10 million items.
	maxRequestBytes = 1 << 20

	maxErrorBytes = 4096 // limits the error of a response, which may quote a value

	operationPrefix = "ati"

	nameField    = "name"    // of a role, in the path
	versionField = "version" // of the key, in the path

	// namePattern is framework.GenericNameRegex without "..", which Vault's storage
	// rejects.
	namePattern = `(?P<` + nameField + `>\w((\.?[\w-])*\.?\w)?)`

	needsSudo = `This path requires the sudo capability in addition to the capability for the
operation.`
)

type backend struct {
	*framework.Backend
	*store
	node

	hexFields map[string]bool // parameters in which 64 hexadecimal digits are not taken for a secret
}

// Setup hides the system view from the framework, which would look up the replication
// state for every request, which is a second round trip to Vault. checkNode looks it up
// when it matters.
func (b *backend) Setup(ctx context.Context, conf *logical.BackendConfig) error {
	b.system = conf.System
	bare := *conf
	bare.System = nil
	return b.Backend.Setup(ctx, &bare)
}

// System returns the system view.
func (b *backend) System() logical.SystemView { return b.system }

// GetRandomReader returns the source of keys: that of Vault's seal if it has one.
func (b *backend) GetRandomReader() io.Reader {
	if sourcer, ok := b.system.(entropy.Sourcer); ok {
		return entropy.NewReader(sourcer)
	}
	return rand.Reader
}

// HandleRequest checks all parameters before the framework does. The framework accepts
// a number as an ID after it was converted to a float, so that two IDs become one; and
// its errors quote values, which would write a misplaced secret to the audit log.
func (b *backend) HandleRequest(ctx context.Context, req *logical.Request) (*logical.Response, error) {
	if err := b.checkParameters(req); err != nil {
		return logical.ErrorResponse(param.Truncate(err.Error(), maxErrorBytes)), nil
	}
	resp, err := b.Backend.HandleRequest(ctx, req)
	if resp.IsError() {
		resp.Data["error"] = param.Truncate(resp.Error().Error(), maxErrorBytes)
	}
	return resp, err
}

// HandleExistenceCheck ignores parameters. Vault checks existence before it knows what
// the caller may do, and writes an error of it to the audit log: so HandleRequest
// reports what is wrong with a request.
func (b *backend) HandleExistenceCheck(ctx context.Context, req *logical.Request) (checkFound, exists bool, err error) {
	bare := *req
	bare.Data = nil
	return b.Backend.HandleExistenceCheck(ctx, &bare)
}

// checkParameters reports a parameter of the wrong type, and one that contains a
// misplaced key or token.
func (b *backend) checkParameters(req *logical.Request) error {
	switch req.Operation {
	case logical.CreateOperation, logical.ReadOperation, logical.UpdateOperation, logical.DeleteOperation, logical.ListOperation:
	default:
		return nil // the data of a revocation is the response that created the lease
	}
	if len(req.Data) == 0 {
		return nil
	}
	if n := param.Size(req.Data); n > maxRequestBytes {
		return fmt.Errorf("parameters have %d bytes in total; at most %d are allowed", n, maxRequestBytes)
	}
	path := b.Route(req.Path)
	if path == nil {
		return nil
	}
	for _, name := range slices.Sorted(maps.Keys(req.Data)) {
		field, value := path.Fields[name], req.Data[name]
		if field == nil || value == nil {
			continue // checkNames reports it
		}
		if !isSensitive(field) && param.HoldsKey(value, b.hexFields[name]) {
			return fmt.Errorf("%s appears to contain a key or token, which is not allowed in this parameter", name)
		}
		if err := param.CheckType(name, value, field.Type); err != nil {
			return err
		}
		if text, ok := value.(string); ok && field.Type == framework.TypeKVPairs && param.IsBlank(text) {
			req.Data[name] = map[string]any{} // the framework rejects an empty string
		}
	}
	return nil
}

func isSensitive(field *framework.FieldSchema) bool {
	return field.DisplayAttrs != nil && field.DisplayAttrs.Sensitive
}

// nodes says which nodes of a cluster answer an operation. On Vault Enterprise's
// performance standbys, and on OpenBao's standbys by default, a plugin gets requests
// too, while what it knows may be out of date. See checkNode.
type nodes int

const (
	anyNode     nodes = iota // not affected by keys and disabled roles
	activeNode               // shows the state of keys
	mintingNode              // the active node, or any node with allow_standby_minting
	writingNode              // writes to storage
)

// checkNode returns logical.ErrReadOnly, with which Vault forwards the request to the
// active node, on a node that must not answer.
func (b *backend) checkNode(ctx context.Context, req *logical.Request, on nodes) error {
	if on != writingNode {
		standby, err := b.wasStandby()
		if on == anyNode || !standby && err == nil {
			return nil
		}
		if on == mintingNode && err == nil {
			if cfg, err := b.getConfig(ctx, req.Storage); err != nil || cfg != nil && cfg.AllowStandbyMinting {
				return err
			}
		}
	}
	standby, err := b.isStandby() // again, since the node may have become active
	if standby {
		return logical.ErrReadOnly
	}
	return err
}

// operation declares an operation of a path. Its parameters are checked before the
// handler is called, and an error that is marked as the caller's becomes a response
// with status 400.
func (b *backend) operation(on nodes, handler framework.OperationFunc, summary, verb, suffix string, response framework.Response) *framework.PathOperation {
	status := 200
	if response.Fields == nil {
		status = 204
	}
	return &framework.PathOperation{
		Callback: func(ctx context.Context, req *logical.Request, d *framework.FieldData) (*logical.Response, error) {
			if err := checkNames(req.Data, d); err != nil {
				return logical.ErrorResponse(err.Error()), nil
			}
			if err := b.checkNode(ctx, req, on); err != nil {
				return nil, err
			}
			resp, err := handler(ctx, req, d)
			var refused errutil.UserError
			if errors.As(err, &refused) {
				return logical.ErrorResponse(refused.Err), nil
			}
			return resp, err
		},
		Summary:      summary,
		DisplayAttrs: &framework.DisplayAttributes{OperationPrefix: operationPrefix, OperationVerb: verb, OperationSuffix: suffix},
		Responses:    map[int][]framework.Response{status: {response}},
	}
}

// checkNames reports what the framework ignores, or only warns of: an unknown
// parameter (a request with "tool" for "tools" would mint the whole role), and null.
func checkNames(data map[string]any, d *framework.FieldData) error {
	for _, name := range slices.Sorted(maps.Keys(data)) {
		switch {
		case d.Schema[name] == nil && param.HoldsKey(name, false):
			return fmt.Errorf("the name of a parameter appears to contain a key or token; supported parameters: %s", supportedNames(d))
		case d.Schema[name] == nil:
			return fmt.Errorf("unknown parameter %q%s; supported parameters: %s", name, suggestion(name, d), supportedNames(d))
		case isPartOfPath(name):
			return fmt.Errorf("parameter %q is part of the path and cannot also be set in the request", name)
		case data[name] == nil:
			return fmt.Errorf("parameter %q is null; omit it or set a value", name)
		}
	}
	return nil
}

func isPartOfPath(name string) bool { return name == nameField || name == versionField }

// suggestion returns a hint at the parameter that an unknown name is probably meant to
// be: one that differs in its end or its separators, such as tools for tool.
func suggestion(unknown string, d *framework.FieldData) string {
	plain := func(name string) string { return strings.NewReplacer("_", "", "-", "").Replace(strings.ToLower(name)) }
	for _, name := range parameterNames(d) {
		a, b := plain(unknown), plain(name)
		if len(a) > 2 && (strings.HasPrefix(a, b) || strings.HasPrefix(b, a)) {
			return fmt.Sprintf(" (did you mean %q?)", name)
		}
	}
	return ""
}

func supportedNames(d *framework.FieldData) string {
	return cmp.Or(strings.Join(parameterNames(d), ", "), "none")
}

func parameterNames(d *framework.FieldData) []string {
	return slices.DeleteFunc(slices.Sorted(maps.Keys(d.Schema)), isPartOfPath)
}

// noContent returns a response with only warnings, or nil without any: status 204.
func noContent(warnings []string) *logical.Response {
	if len(warnings) == 0 {
		return nil
	}
	return &logical.Response{Warnings: warnings}
}

func merged[V any](parts ...map[string]V) map[string]V {
	all := map[string]V{}
	for _, part := range parts {
		maps.Copy(all, part)
	}
	return all
}

// roleName returns the schema of a role's name in a path.
func roleName(description string) map[string]*framework.FieldSchema {
	return map[string]*framework.FieldSchema{nameField: {
		Type:         framework.TypeString,
		Description:  description,
		DisplayAttrs: &framework.DisplayAttributes{Name: "Role", Identifier: true},
	}}
}

// requireConfig returns the config. If there is no config, the error is the caller's.
func (b *backend) requireConfig(ctx context.Context, req *logical.Request) (*config, error) {
	cfg, err := b.getConfig(ctx, req.Storage)
	if cfg == nil && err == nil {
		err = noConfig(req)
	}
	return cfg, err
}

func noConfig(req *logical.Request) error {
	return refuse.Errorf("this mount has no config; create it with: vault write %sconfig proxy_url=https://ati.example.com", param.CommandPath(req.MountPoint))
}

// requireRole returns the config and the role that the path names.
func (b *backend) requireRole(ctx context.Context, req *logical.Request, d *framework.FieldData) (*config, *role.Role, error) {
	cfg, err := b.requireConfig(ctx, req)
	if err != nil {
		return nil, nil, err
	}
	name := d.Get(nameField).(string)
	r, err := b.getRole(ctx, req.Storage, name)
	if r == nil && err == nil {
		err = refuse.Errorf("role %q does not exist; to list the roles, run: vault list %sroles", name, param.CommandPath(req.MountPoint))
	}
	return cfg, r, err
}

// parameterList returns the names of the parameters of a request, for the log.
func parameterList(req *logical.Request) string {
	return strings.Join(slices.Sorted(maps.Keys(req.Data)), ",")
}
