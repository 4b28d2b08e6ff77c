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
	"path"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/go-kms-wrapping/entropy/v2"
	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/helper/errutil"
	"github.com/hashicorp/vault/sdk/logical"

	"vault-plugin-secrets-ati/ati"
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

// parameters is the key of a context for the parameters of a request.
type parameters struct{}

// HandleRequest reads and checks all parameters, and passes them to the handler in the
// context. The framework would check them again, which takes longer than the rest of a
// mint. It also accepts a number as an ID after it was converted to a float, so that two
// IDs become one; its errors quote values, and its warnings names, which would write a
// misplaced secret to the audit log.
func (b *backend) HandleRequest(ctx context.Context, req *logical.Request) (*logical.Response, error) {
	data, err := b.readParameters(req)
	if err != nil {
		return logical.ErrorResponse(param.Truncate(err.Error(), maxErrorBytes)), nil
	}
	read := *req
	if req.Data != nil {
		read.Data, ctx = nil, context.WithValue(ctx, parameters{}, data)
	}
	resp, err := b.Backend.HandleRequest(ctx, &read)
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

// readParameters returns the parameters of a request that its operation takes.
func (b *backend) readParameters(req *logical.Request) (map[string]any, error) {
	if len(req.Data) == 0 {
		return nil, nil // as in most requests for a token; finding the route would be most of the work here
	}
	route := b.Route(req.Path)
	if route == nil {
		return req.Data, nil
	}
	op, ok := route.Operations[req.Operation].(*operation)
	if !ok {
		return req.Data, nil // the data of a revocation is the response that created the lease
	}
	if n := param.Size(req.Data); n > maxRequestBytes {
		return nil, fmt.Errorf("parameters have %d bytes in total; at most %d are allowed", n, maxRequestBytes)
	}
	data := make(map[string]any, len(req.Data))
	for _, name := range slices.Sorted(maps.Keys(req.Data)) {
		field, value := route.Fields[name], req.Data[name]
		switch {
		case op.ignores(req.Operation, field, value):
			// Servers and clients add parameters, such as a limit or a cache buster.
			if param.HoldsKey(name, false) || param.HoldsKey(value, false) {
				return nil, errors.New("a parameter that is not supported here appears to contain a key or token")
			}
			continue
		case name == nameField && value == path.Base(req.Path) && field != nil && route.ExistenceCheck != nil:
			continue // a role is written back with its name
		}
		read, err := b.readParameter(name, value, route.Fields, req.Operation == logical.PatchOperation)
		if err != nil {
			return nil, err
		}
		data[name] = read
	}
	return data, nil
}

// readParameter returns a parameter as param.Read does. What it holds is checked before,
// since errors quote it, and after that, since it may have been encoded.
func (b *backend) readParameter(name string, value any, fields map[string]*framework.FieldSchema, patch bool) (read any, err error) {
	switch err = b.checkParameter(name, value, fields); {
	case err != nil:
		return nil, err
	case patch:
		read, err = param.ReadPatch(name, value, fields[name].Type)
	case value == nil:
		err = fmt.Errorf("parameter %q is null; omit it or set a value", name)
	default:
		read, err = param.Read(name, value, fields[name].Type)
	}
	return read, cmp.Or(err, b.checkParameter(name, read, fields))
}

// checkParameter reports an unknown parameter (a request with "tool" for "tools" would
// mint the whole role), and one that contains a misplaced key or token.
func (b *backend) checkParameter(name string, value any, fields map[string]*framework.FieldSchema) error {
	field := fields[name]
	switch {
	case field == nil && param.HoldsKey(name, false):
		return fmt.Errorf("the name of a parameter appears to contain a key or token; supported parameters: %s", supportedNames(fields))
	case field == nil:
		return fmt.Errorf("unknown parameter %q%s; supported parameters: %s", name, suggestion(name, fields), supportedNames(fields))
	case isPartOfPath(name):
		return fmt.Errorf("parameter %q is part of the path and cannot also be set in the request", name)
	case !isSensitive(field) && param.HoldsKey(value, b.hexFields[name]):
		return param.Misplaced(name)
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

// operation is an operation of a path.
type operation struct {
	framework.PathOperation
	on nodes
}

// ignores reports whether the operation ignores a parameter, instead of rejecting it:
// a read, list, or delete that does not mint, unless the field is declared for it.
func (o *operation) ignores(op logical.Operation, field *framework.FieldSchema, value any) bool {
	switch op {
	case logical.ReadOperation, logical.ListOperation, logical.DeleteOperation:
		return o.on != mintingNode && (field == nil || !field.Query || value == "")
	}
	return false
}

// operation declares an operation of a path. An error of the handler that is marked as
// the caller's becomes a response with status 400.
func (b *backend) operation(on nodes, handler framework.OperationFunc, summary, verb, suffix string, response framework.Response) *operation {
	status := 200
	if response.Fields == nil {
		status = 204
	}
	return &operation{on: on, PathOperation: framework.PathOperation{
		Callback: func(ctx context.Context, req *logical.Request, d *framework.FieldData) (*logical.Response, error) {
			req.Data, _ = ctx.Value(parameters{}).(map[string]any)
			maps.Copy(d.Raw, req.Data)
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
	}}
}

func isPartOfPath(name string) bool { return name == nameField || name == versionField }

// suggestion returns a hint at the parameter that an unknown name is probably meant to
// be: one that differs in its end or its separators, such as tools for tool.
func suggestion(unknown string, fields map[string]*framework.FieldSchema) string {
	plain := func(name string) string { return strings.NewReplacer("_", "", "-", "").Replace(strings.ToLower(name)) }
	for _, name := range parameterNames(fields) {
		a, b := plain(unknown), plain(name)
		if len(a) > 2 && (strings.HasPrefix(a, b) || strings.HasPrefix(b, a)) {
			return fmt.Sprintf(" (did you mean %q?)", name)
		}
	}
	return ""
}

func supportedNames(fields map[string]*framework.FieldSchema) string {
	return cmp.Or(strings.Join(parameterNames(fields), ", "), "none")
}

func parameterNames(fields map[string]*framework.FieldSchema) []string {
	return slices.DeleteFunc(slices.Sorted(maps.Keys(fields)), isPartOfPath)
}

// noContent returns a response with only warnings, or nil without any: status 204.
func noContent(warnings []string) *logical.Response {
	if len(warnings) == 0 {
		return nil
	}
	return &logical.Response{Warnings: warnings}
}

// omitEmpty returns nil for an empty text, which a response leaves out.
func omitEmpty(text string) any {
	if text == "" {
		return nil
	}
	return text
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

// pageFields are the parameters that OpenBao adds to lists.
var pageFields = map[string]*framework.FieldSchema{
	"after": {Type: framework.TypeString, Query: true, DisplayAttrs: param.Display("After", "Page"), Description: "Omit the names up to this one, which need not exist."},
	"limit": {Type: framework.TypeInt, Query: true, DisplayAttrs: param.Display("Limit", "Page"), Description: "Maximum number of names. 0, the default, means no limit."},
}

// page returns the sorted names that a request asks for.
func page(names []string, d *framework.FieldData) []string {
	slices.Sort(names)
	i, found := slices.BinarySearch(names, d.Get("after").(string))
	if found {
		i++
	}
	names = names[i:]
	if limit := d.Get("limit").(int); limit > 0 {
		names = names[:min(limit, len(names))]
	}
	return names
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

func noRole(req *logical.Request, name string) error {
	return refuse.Errorf("role %q does not exist; to list the roles, run: vault list %sroles", name, param.CommandPath(req.MountPoint))
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
		err = noRole(req, name)
	}
	return cfg, r, err
}

// reason returns why a token is not valid, or could not be decoded. rotatedAt is the
// time of the last immediate rotation, or zero.
func reason(err error, rotatedAt time.Time) string {
	if errors.Is(err, ati.ErrSignature) {
		const signedByNone = "not signed by any key of this mount"
		if rotatedAt.IsZero() {
			return signedByNone
		}
		return fmt.Sprintf("%s (key last rotated at %s; a proxy that has not restarted since may still accept it)", signedByNone, rotatedAt.Format(time.RFC3339))
	}
	var tokenErr *ati.TokenError
	if errors.As(err, &tokenErr) {
		return strings.TrimPrefix(tokenErr.Error(), tokenErr.Op+": ")
	}
	return err.Error()
}

// redactedName returns the name of a role or a revocation for the log, unless it looks
// like a key.
func redactedName(name string) string {
	if param.HoldsKey(name, false) {
		return "(hidden)"
	}
	return param.Truncate(name, role.MaxNameBytes)
}

// parameterList returns the names of the parameters of a request, for the log.
func parameterList(req *logical.Request) string {
	return strings.Join(slices.Sorted(maps.Keys(req.Data)), ",")
}
