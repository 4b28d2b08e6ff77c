package atisecrets

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"vault-plugin-secrets-ati/ati"
)

const (
	rolePrefix = "role/"

	// namePattern is framework.GenericNameRegex without "..", which Vault's
	// storage doesn't take.
	namePattern = `(?P<` + nameField + `>\w((\.?[\w-])*\.?\w)?)`

	// agentRefresh is how often Vault Agent reads a secret without a lease anew
	// (static_secret_render_interval), unless it is told otherwise.
	agentRefresh = 5 * time.Minute

	highRate = 10_000
)

// roleEntry is a role as it is stored: lists and rates as they were written.
type roleEntry struct {
	StorageVersion    int               `json:"storage_version"`
	Tools             []string          `json:"tools"`
	Skills            []string          `json:"skills"`
	Scopes            []string          `json:"scopes"`
	Rate              map[string]string `json:"rate"`
	TTL               time.Duration     `json:"ttl"`
	MaxTTL            time.Duration     `json:"max_ttl"` // 0 follows TTL
	Audience          string            `json:"audience"`
	Subject           string            `json:"subject"`
	JobID             string            `json:"job_id"`
	SandboxID         string            `json:"sandbox_id"`
	AllowedAgentIDs   []string          `json:"allowed_agent_ids"`
	AllowedJobIDs     []string          `json:"allowed_job_ids"`
	AllowedSandboxIDs []string          `json:"allowed_sandbox_ids"`
	GenerateLease     bool              `json:"generate_lease"`
	Disabled          bool              `json:"disabled"`
	Description       string            `json:"description"`
}

// role is a roleEntry, parsed once. It is never changed.
type role struct {
	roleEntry
	name      string
	granted   []string // the token's scopes
	scope     string   // the same, joined
	rates     map[string]ati.Rate
	subject   *idTemplate // nil: the caller's entity or display name
	jobID     *idTemplate // nil: none
	sandboxID *idTemplate // nil: none
}

func pathRoles(b *backend) []*framework.Path {
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
			Fields:         roleFields(),
			ExistenceCheck: b.roleExists,
			DisplayAttrs:   &framework.DisplayAttributes{OperationPrefix: operationPrefix, ItemType: "Role"},
			Operations: map[logical.Operation]framework.OperationHandler{
				logical.CreateOperation: storing(operation(b.pathRolesWrite,
					"Create or update a role.", "write", "role", framework.Response{Description: "Stored"})),
				logical.UpdateOperation: storing(operation(b.pathRolesWrite,
					"Create or update a role.", "write", "role", framework.Response{Description: "Stored"})),
				logical.ReadOperation: operation(b.pathRolesRead,
					"Read a role.", "read", "role", framework.Response{Description: "The role", Fields: roleResponse()}),
				logical.DeleteOperation: storing(operation(b.pathRolesDelete,
					"Delete a role.", "delete", "role", framework.Response{Description: "Deleted"})),
			},
			HelpSynopsis:    pathRolesHelpSyn,
			HelpDescription: pathRolesHelpDesc,
		},
	}
}

// roleName is the part of a path that names a role which is there.
func roleName() *framework.FieldSchema {
	return &framework.FieldSchema{
		Type:         framework.TypeString,
		Description:  "Name of the role.",
		DisplayAttrs: &framework.DisplayAttributes{Name: "Role", Identifier: true},
	}
}

func roleFields() map[string]*framework.FieldSchema {
	return map[string]*framework.FieldSchema{
		nameField: {
			Type:         framework.TypeString,
			Description:  "Name of the role. Case-sensitive.",
			DisplayAttrs: &framework.DisplayAttributes{Name: "Role", Identifier: true},
		},
		"tools": {
			Type:         framework.TypeCommaStringSlice,
			Description:  "Tools that the token opens, by name or by a pattern such as github:*. tool: is put before names that lack it.",
			DisplayAttrs: display("Tools", "Grant"),
		},
		"skills": {
			Type:         framework.TypeCommaStringSlice,
			Description:  "Skills that the token opens, by their exact names. skill: is put before names that lack it.",
			DisplayAttrs: display("Skills", "Grant"),
		},
		"scopes": {
			Type:         framework.TypeCommaStringSlice,
			Description:  "Further scopes, as they stand: * for everything, or a scope that a tool's manifest names.",
			DisplayAttrs: display("Scopes", "Grant"),
		},
		"rate": {
			Type:         framework.TypeKVPairs,
			Description:  "Rate limits, as pattern=count/unit: tool:github:*=10/hour. Units: s, sec, second, m, min, minute, h, hr, hour, d, day.",
			DisplayAttrs: display("Rates", "Grant"),
		},
		"ttl": {
			Type:         framework.TypeDurationSecond,
			Description:  "TTL of a token when the request asks for none. Default: 1h, or config's or the mount's maximum where that is lower.",
			DisplayAttrs: display("TTL", "Life"),
		},
		"max_ttl": {
			Type:         framework.TypeDurationSecond,
			Description:  "Longest TTL that a request may ask for. 0 or unset follows ttl.",
			DisplayAttrs: display("Maximum TTL", "Life"),
		},
		"audience": {
			Type:         framework.TypeString,
			Description:  "Audience of the token (claim aud), one that config knows. Unset follows config's audience.",
			DisplayAttrs: display("Audience", "Identity"),
		},
		"subject": {
			Type:         framework.TypeString,
			Description:  "Subject of the token (claim sub): plain, or an identity template such as {{identity.entity.name}}. Default: the caller's entity id, or its display name where it has none.",
			DisplayAttrs: display("Subject", "Identity"),
		},
		"allowed_agent_ids": {
			Type:         framework.TypeCommaStringSlice,
			Description:  "Globs of the agent_id that a caller may choose as the subject. Default: none.",
			DisplayAttrs: display("Allowed agent ids", "Identity"),
		},
		"job_id": {
			Type:         framework.TypeString,
			Description:  "Claim job_id, which the proxy's audit file shows: plain, an identity template, or {{jti}} for the id of the Vault request.",
			DisplayAttrs: display("Job id", "Identity"),
		},
		"allowed_job_ids": {
			Type:         framework.TypeCommaStringSlice,
			Description:  "Globs of the job_id that a caller may set. Default: none.",
			DisplayAttrs: display("Allowed job ids", "Identity"),
		},
		"sandbox_id": {
			Type:         framework.TypeString,
			Description:  "Claim sandbox_id, which the proxy's audit file shows: plain, an identity template, or {{jti}} for the id of the Vault request.",
			DisplayAttrs: display("Sandbox id", "Identity"),
		},
		"allowed_sandbox_ids": {
			Type:         framework.TypeCommaStringSlice,
			Description:  "Globs of the sandbox_id that a caller may set. Default: none.",
			DisplayAttrs: display("Allowed sandbox ids", "Identity"),
		},
		"generate_lease": {
			Type:         framework.TypeBool,
			Description:  "Give each token a Vault lease. Revoking it does nothing to the token. Default: false.",
			DisplayAttrs: display("Generate lease", "Life"),
		},
		"disabled": {
			Type:         framework.TypeBool,
			Description:  "Refuse to mint, and keep the role. Default: false.",
			DisplayAttrs: display("Disabled", "Role"),
		},
		"description": {
			Type:         framework.TypeString,
			Description:  "What the role is for, for people. At most 1024 bytes.",
			DisplayAttrs: display("Description", "Role"),
		},
	}
}

func roleResponse() map[string]*framework.FieldSchema {
	fields := map[string]*framework.FieldSchema{}
	for name, f := range roleFields() {
		if name == nameField {
			continue
		}
		fields[name] = &framework.FieldSchema{Type: f.Type, Required: true, Description: f.Description}
	}
	for _, name := range []string{"ttl", "max_ttl"} {
		fields[name].Type = framework.TypeInt64
		fields[name].Description += " In seconds."
	}
	for name, f := range fields {
		if f.Type == framework.TypeCommaStringSlice {
			fields[name].Type = framework.TypeStringSlice
		}
	}
	return fields
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
	return &logical.Response{Data: map[string]any{
		"tools":               r.Tools,
		"skills":              r.Skills,
		"scopes":              r.Scopes,
		"rate":                r.Rate,
		"ttl":                 whole(r.TTL),
		"max_ttl":             whole(r.MaxTTL),
		"audience":            r.Audience,
		"subject":             r.Subject,
		"job_id":              r.JobID,
		"sandbox_id":          r.SandboxID,
		"allowed_agent_ids":   r.AllowedAgentIDs,
		"allowed_job_ids":     r.AllowedJobIDs,
		"allowed_sandbox_ids": r.AllowedSandboxIDs,
		"generate_lease":      r.GenerateLease,
		"disabled":            r.Disabled,
		"description":         r.Description,
	}}, nil
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
		return noConfig(req), nil
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
		if err := checkName(name); err != nil {
			return logical.ErrorResponse(err.Error()), nil
		}
		entry = newRoleEntry(cfg, mountMax)
	}
	if err := entry.apply(d); err != nil {
		return logical.ErrorResponse(err.Error()), nil
	}
	if created && given(d, "max_ttl") && !given(d, "ttl") && entry.MaxTTL > 0 {
		entry.TTL = min(entry.TTL, entry.MaxTTL)
	}
	r, err := entry.parse(name)
	// A disabled role mints nothing: it can be kept, and disabled, even where a
	// ceiling was lowered under it.
	if err == nil && !r.Disabled {
		err = r.judge(cfg, mountMax)
	}
	if err != nil {
		return logical.ErrorResponse(err.Error()), nil
	}
	size, err := r.tokenSize(cfg)
	if err != nil {
		return nil, err
	}
	if size > maxTokenBytes {
		return logical.ErrorResponse("a token of this role has %d bytes; at most %d are allowed: grant less, or use patterns", size, maxTokenBytes), nil
	}

	// The bound on the life of tokens first, the role that needs it second: a
	// crash between them leaves a bound that is too long, never too short. A
	// disabled role needs none, and was not judged; enabling it is a write, too.
	if longest := r.longestTTL(); !r.Disabled && longest > cfg.LongestTTL {
		raised := cfg.configEntry
		raised.LongestTTL = longest
		if err := b.putConfig(ctx, req.Storage, raised); err != nil {
			return nil, err
		}
	}
	if err := b.putRole(ctx, req.Storage, r); err != nil {
		return nil, err
	}
	b.Logger().Info("role written", "role", shown(name), "created", created, "parameters", parameterList(req))
	return orNoContent(&logical.Response{Warnings: r.warnings(size)}), nil
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

func noConfig(req *logical.Request) *logical.Response {
	return logical.ErrorResponse("this mount has no config yet; write one with: vault write %sconfig proxy_url=https://…", req.MountPoint)
}

// configAndRole is what a request for a token of a role needs, or the refusal
// that says which of them is not there.
func (b *backend) configAndRole(ctx context.Context, req *logical.Request, d *framework.FieldData) (*config, *role, *logical.Response, error) {
	cfg, err := b.getConfig(ctx, req.Storage)
	if err != nil {
		return nil, nil, nil, err
	}
	if cfg == nil {
		return nil, nil, noConfig(req), nil
	}
	name := d.Get(nameField).(string)
	r, err := b.getRole(ctx, req.Storage, name)
	if err != nil {
		return nil, nil, nil, err
	}
	if r == nil {
		return nil, nil, logical.ErrorResponse("role %q does not exist; vault list %sroles shows those that do", name, req.MountPoint), nil
	}
	return cfg, r, nil, nil
}

// checkName refuses the name of a new role that is too long for storage, or a key.
func checkName(name string) error {
	switch {
	case holdsKey(name, true):
		return errors.New("the role's name looks like a key or a token, and is for neither")
	case len(name) > maxNameBytes:
		return fmt.Errorf("the role's name has %d bytes; at most %d are allowed", len(name), maxNameBytes)
	}
	return nil
}

// newRoleEntry has the defaults of a role that is created.
func newRoleEntry(cfg *config, mountMax time.Duration) *roleEntry {
	e := &roleEntry{
		Tools: []string{}, Skills: []string{}, Scopes: []string{}, Rate: map[string]string{},
		AllowedAgentIDs: []string{}, AllowedJobIDs: []string{}, AllowedSandboxIDs: []string{},
		TTL: min(ati.DefaultTTL, mountMax),
	}
	if cfg.MaxTTL > 0 {
		e.TTL = min(e.TTL, cfg.MaxTTL)
	}
	return e
}

// apply sets the given fields.
func (e *roleEntry) apply(d *framework.FieldData) error {
	for name, field := range map[string]*string{
		"audience": &e.Audience, "subject": &e.Subject, "job_id": &e.JobID, "sandbox_id": &e.SandboxID, "description": &e.Description,
	} {
		if given(d, name) {
			*field = d.Get(name).(string)
		}
	}
	for _, f := range []struct {
		name  string
		field *[]string
	}{
		{"tools", &e.Tools}, {"skills", &e.Skills}, {"scopes", &e.Scopes},
		{"allowed_agent_ids", &e.AllowedAgentIDs}, {"allowed_job_ids", &e.AllowedJobIDs}, {"allowed_sandbox_ids", &e.AllowedSandboxIDs},
	} {
		items, ok, err := listField(d, f.name)
		if err != nil {
			return err
		}
		if ok {
			*f.field = unique(items)
		}
	}
	for _, f := range []struct {
		name  string
		field *time.Duration
	}{{"ttl", &e.TTL}, {"max_ttl", &e.MaxTTL}} {
		ttl, ok, err := durationField(d, f.name)
		if err != nil {
			return err
		}
		if ok {
			*f.field = ttl
		}
	}
	for _, f := range []struct {
		name  string
		field *bool
	}{{"generate_lease", &e.GenerateLease}, {"disabled", &e.Disabled}} {
		value, ok, err := boolField(d, f.name)
		if err != nil {
			return err
		}
		if ok {
			*f.field = value
		}
	}
	rate, ok, err := rateField(d, "rate")
	if ok {
		e.Rate = rate
	}
	return err
}

// parse checks the form of everything in a role.
func (e *roleEntry) parse(name string) (r *role, err error) {
	r = &role{roleEntry: *e, name: name}
	if r.granted, err = scopesOf(e.Tools, e.Skills, e.Scopes); err != nil {
		return nil, err
	}
	if len(r.granted) == 0 {
		return nil, errors.New("a role grants something: give at least one of tools, skills and scopes")
	}
	r.scope = strings.Join(r.granted, " ")
	if r.rates, err = parseRates("rate", e.Rate); err != nil {
		return nil, err
	}
	for _, t := range []struct {
		field, text string
		jtiAllowed  bool
		out         **idTemplate
	}{
		{"subject", e.Subject, false, &r.subject}, {"job_id", e.JobID, true, &r.jobID}, {"sandbox_id", e.SandboxID, true, &r.sandboxID},
	} {
		if t.text == "" {
			continue
		}
		if *t.out, err = parseTemplate(t.field, t.text, t.jtiAllowed); err != nil {
			return nil, err
		}
	}
	for _, g := range []struct {
		field string
		globs []string
	}{{"allowed_agent_ids", e.AllowedAgentIDs}, {"allowed_job_ids", e.AllowedJobIDs}, {"allowed_sandbox_ids", e.AllowedSandboxIDs}} {
		if err := checkGlobs(g.field, g.globs); err != nil {
			return nil, err
		}
	}
	if err := checkText("description", e.Description); err != nil {
		return nil, err
	}
	if e.Audience != "" {
		if err := checkAudience("audience", e.Audience); err != nil {
			return nil, err
		}
	}
	switch {
	case e.TTL <= 0:
		return nil, errors.New("ttl must be at least 1s")
	case e.MaxTTL > 0 && e.TTL > e.MaxTTL:
		return nil, fmt.Errorf("ttl %v is longer than the role's max_ttl %v", e.TTL, e.MaxTTL)
	}
	return r, nil
}

// judge refuses a role that goes beyond config or mount.
func (r *role) judge(cfg *config, mountMax time.Duration) error {
	longest, field := r.longestTTL(), "max_ttl"
	if r.MaxTTL == 0 {
		field = "ttl"
	}
	switch {
	case cfg.MaxTTL > 0 && longest > cfg.MaxTTL:
		return fmt.Errorf("%s %v is longer than config's max_ttl %v", field, longest, cfg.MaxTTL)
	case longest > mountMax:
		return fmt.Errorf("%s %v is longer than the mount's maximum %v; to raise that: vault secrets tune -max-lease-ttl=… <mount>", field, longest, mountMax)
	}
	if err := r.checkLease(r.TTL); err != nil {
		return err
	}
	if err := cfg.checkCeiling(r.granted); err != nil {
		return err
	}
	return r.checkAudience(cfg)
}

func (r *role) checkAudience(cfg *config) error {
	if r.Audience == "" || cfg.knowsAudience(r.Audience) {
		return nil
	}
	return fmt.Errorf("audience %q is none of config's (%s); accepted_audiences of config takes further ones", r.Audience, strings.Join(cfg.audiences(), ", "))
}

func (r *role) checkEnabled() error {
	if r.Disabled {
		return fmt.Errorf("role %q is disabled; disabled=false enables it", r.name)
	}
	return nil
}

// longestTTL is what a token of this role can have, as far as the role goes.
func (r *role) longestTTL() time.Duration { return max(r.TTL, r.MaxTTL) }

// tokenSize is the size of a token as the role grants it, with ids of 36 bytes
// where they are not known yet.
func (r *role) tokenSize(cfg *config) (int, error) {
	fixed := func(t *idTemplate) string {
		switch {
		case t == nil:
			return ""
		case t.asks(""):
			return sampleUUID
		}
		return t.sample()
	}
	subject := fixed(r.subject)
	if subject == "" {
		subject = sampleUUID
	}
	t := tokenRequest{
		scope: r.scope, rate: r.Rate, ttl: r.TTL, subject: subject, jobID: fixed(r.jobID), sandboxID: fixed(r.sandboxID), jti: sampleUUID,
		now: cfg.current.CreatedAt,
	}
	token, err := cfg.current.key.Sign(t.claims(cfg, r))
	return len(token), err
}

// warnings tells what is legal, and useless or wider than it looks.
func (r *role) warnings(size int) []string {
	var w []string
	warn := func(format string, args ...any) { w = append(w, fmt.Sprintf(format, args...)) }
	for _, scope := range r.granted {
		if strings.Contains(scope, ",") {
			warn("scope %q is one name with a comma in it; to give several in a list, give each as an item of its own", scope)
		}
		name, isTool := strings.CutPrefix(scope, "tool:")
		provider, tool, old := strings.Cut(name, "__")
		prefix, wildcard := strings.CutSuffix(name, "*")
		underscore := strings.LastIndexByte(prefix, '_')
		switch {
		case isTool && old && provider != "" && !strings.Contains(name, ":"):
			warn("scope %q opens no tool of a provider on a proxy since ati 0.2.0, which calls them %q", scope, "tool:"+provider+":"+tool)
		case isTool && wildcard && underscore > 0 && !strings.Contains(prefix, ":"):
			warn("scope %q opens also what %q would: the proxy tries a provider's tools with an underscore for the colon too", scope, "tool:"+prefix[:underscore]+":"+prefix[underscore+1:]+"*")
		case strings.HasPrefix(scope, "skill:") && strings.HasSuffix(scope, "*"):
			warn("scope %q opens no skill: the proxy matches skills by their exact names", scope)
		}
	}
	for _, key := range slices.Sorted(maps.Keys(r.rates)) {
		if !touches(key, r.granted) {
			warn("rate %q is for no scope of this role; it limits only a tool whose scope in the manifest is not its name", key)
		}
		if alias := ati.LegacyAlias(key); alias != "" && !r.limitsAsMuch(alias, r.rates[key]) {
			warn("rate %q doesn't limit calls that spell the tool with an underscore; add the same rate for %q", key, alias)
		}
		if r.rates[key].Count > highRate {
			warn("rate %q allows %d calls; the proxy keeps the time of each", key, r.rates[key].Count)
		}
	}
	if r.TTL <= agentRefresh && !r.GenerateLease {
		warn("ttl %v is not longer than the %v after which Vault Agent reads a new token by default; set its static_secret_render_interval to about 0.7 of the ttl", r.TTL, agentRefresh)
	}
	if r.GenerateLease {
		warn("revoking a lease does not revoke its token: that lives until it expires")
	}
	if size > warnTokenBytes {
		warn("a token of this role has %d bytes; over %d some HTTP servers refuse the request", size, warnTokenBytes)
	}
	return w
}

// coveredBy reports whether one of the patterns covers the requested one.
func coveredBy(patterns []string, requested string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool { return ati.Covers(p, requested) })
}

// limitsAsMuch reports whether one of the role's rates limits the calls that
// the key matches at least as much as the rate does.
func (r *role) limitsAsMuch(key string, rate ati.Rate) bool {
	for k, have := range r.rates {
		if ati.Covers(k, key) && have.Window == rate.Window && have.Count <= rate.Count {
			return true
		}
	}
	return false
}

// touches reports whether a rate key can match a call that one of the scopes
// opens, in either spelling. A scope that is neither a tool's nor a skill's
// may stand in the manifest of any tool.
func touches(key string, granted []string) bool {
	spellings := func(pattern string) []string {
		if alias := ati.LegacyAlias(pattern); alias != "" {
			return []string{pattern, alias}
		}
		return []string{pattern}
	}
	overlap := func(a, b string) bool {
		return ati.MatchesWildcard(strings.TrimSuffix(a, "*"), b) || ati.MatchesWildcard(strings.TrimSuffix(b, "*"), a)
	}
	for _, scope := range granted {
		switch {
		case strings.HasPrefix(scope, "skill:") || scope == "help":
			continue
		case !strings.HasPrefix(scope, "tool:"):
			return true
		}
		for _, k := range spellings(key) {
			for _, s := range spellings(scope) {
				if overlap(k, s) {
					return true
				}
			}
		}
	}
	return false
}

// getRole returns a role, or nil where there is none of that name.
func (b *backend) getRole(ctx context.Context, s logical.Storage, name string) (*role, error) {
	if r, ok := b.roles.Get(name); ok {
		return r, nil
	}
	b.lock.RLock()
	defer b.lock.RUnlock()
	entry, err := readRoleEntry(ctx, s, name)
	if entry == nil || err != nil {
		return nil, err
	}
	r, err := entry.parse(name)
	if err != nil {
		return nil, fmt.Errorf("read role %q: %w", name, err)
	}
	b.roles.Add(name, r)
	return r, nil
}

func readRoleEntry(ctx context.Context, s logical.Storage, name string) (*roleEntry, error) {
	entry := new(roleEntry)
	if err := readEntry(ctx, s, rolePrefix+name, entry, func() int { return entry.StorageVersion }); err != nil {
		return nil, fmt.Errorf("read role %q: %w", name, err)
	}
	if entry.StorageVersion == 0 {
		return nil, nil
	}
	return entry, nil
}

// putRole stores a role and renews the cache. The caller holds the lock.
func (b *backend) putRole(ctx context.Context, s logical.Storage, r *role) error {
	r.StorageVersion = storageVersion
	entry, err := logical.StorageEntryJSON(rolePrefix+r.name, r.roleEntry)
	if err != nil {
		return fmt.Errorf("write role %q: %w", r.name, err)
	}
	// Whether a failed write was carried out is not known: read it anew.
	b.roles.Remove(r.name)
	if err := put(ctx, s, entry); err != nil {
		return fmt.Errorf("write role %q: %w", r.name, err)
	}
	b.roles.Add(r.name, r)
	return nil
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
