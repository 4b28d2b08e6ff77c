package atisecrets

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"vault-plugin-secrets-ati/ati"
)

const (
	configStoragePath = "config"
	maxProxyURLBytes  = 2048
)

// configEntry is all that a mount stores beside its roles, in one entry, so
// that a change of key and proxy is one atomic write.
type configEntry struct {
	StorageVersion    int           `json:"storage_version"`
	Audience          string        `json:"audience"`
	AcceptedAudiences []string      `json:"accepted_audiences"`
	Issuer            string        `json:"issuer"`
	AllowedScopes     []string      `json:"allowed_scopes"`
	MaxTTL            time.Duration `json:"max_ttl"` // 0: no ceiling

	// Current is the key that signs, with the proxy that holds it. Nil after
	// the config was deleted: what stays then is below.
	Current *keyEntry `json:"current,omitempty"`

	// Pending is staged to become the current version. Previous was it: tokens
	// for its proxy are minted until it is retired, and pass there until they
	// have expired.
	Pending  *keyEntry `json:"pending,omitempty"`
	Previous *keyEntry `json:"previous,omitempty"`

	// RolledBack tells that the previous version was the current one, and is to
	// become it again by activate.
	RolledBack bool `json:"rolled_back,omitempty"`

	// LastRotatedAt is when a key was last replaced at once, and forgotten.
	LastRotatedAt time.Time `json:"last_rotated_at,omitzero"`

	// LastKeyVersion is never used again, even after the config was deleted: a
	// version names one key.
	LastKeyVersion int `json:"last_key_version"`

	// LongestTTL is the longest TTL that any enabled role of this mount ever allowed. It
	// is raised before the role is stored, so that "no token lives longer than
	// this from now" is true at any time.
	LongestTTL time.Duration `json:"longest_ttl"`
}

// config is a configEntry with its parsed keys. It is never changed. Where there
// is no config, current is nil.
type config struct {
	configEntry
	current, pending, previous *signingKey
}

func pathConfig(b *backend) []*framework.Path {
	fields := keyFields()
	fields["proxy_url"].Description += " Required when the config is created."
	fields["algorithm"].Default = ati.HS256
	maps.Copy(fields, map[string]*framework.FieldSchema{
		"audience": {
			Type:         framework.TypeString,
			Description:  "Audience of the tokens (claim aud), unless a role sets another one.",
			Default:      ati.DefaultAudience,
			DisplayAttrs: display("Audience", "Claims"),
		},
		"accepted_audiences": {
			Type:         framework.TypeCommaStringSlice,
			Description:  "Further audiences that a role may set.",
			DisplayAttrs: display("Accepted audiences", "Claims"),
		},
		"issuer": {
			Type:         framework.TypeString,
			Description:  "Issuer of the tokens (claim iss). Empty leaves the claim out.",
			Default:      ati.DefaultIssuer,
			DisplayAttrs: display("Issuer", "Claims"),
		},
		"allowed_scopes": {
			Type:         framework.TypeCommaStringSlice,
			Description:  "Scope patterns beyond which no role may grant, such as tool:github:*. Empty sets no such ceiling.",
			DisplayAttrs: display("Allowed scopes", "Ceiling"),
		},
		"max_ttl": {
			Type:         framework.TypeDurationSecond,
			Description:  "Longest TTL of a token, whatever its role says. 0 sets no such ceiling.",
			DisplayAttrs: display("Maximum TTL", "Ceiling"),
		},
	})
	return []*framework.Path{{
		Pattern:        "config",
		Fields:         fields,
		ExistenceCheck: b.configExists,
		DisplayAttrs:   &framework.DisplayAttributes{OperationPrefix: operationPrefix},
		Operations: map[logical.Operation]framework.OperationHandler{
			logical.CreateOperation: storing(operation(b.pathConfigWrite,
				"Configure the proxy, the signing key and the ceiling over all roles.", "configure", "", framework.Response{Description: "Stored"})),
			logical.UpdateOperation: storing(operation(b.pathConfigWrite,
				"Configure the proxy, the signing key and the ceiling over all roles.", "configure", "", framework.Response{Description: "Stored"})),
			logical.ReadOperation: operation(b.pathConfigRead,
				"Read the configuration, without the key.", "read", "configuration", framework.Response{Description: "The configuration", Fields: configResponse()}),
			logical.DeleteOperation: storing(operation(b.pathConfigDelete,
				"Delete the configuration and forget the key.", "delete", "configuration", framework.Response{Description: "Deleted"})),
		},
		HelpSynopsis:    pathConfigHelpSyn,
		HelpDescription: pathConfigHelpDesc,
	}}
}

func configResponse() map[string]*framework.FieldSchema {
	return map[string]*framework.FieldSchema{
		"proxy_url":          {Type: framework.TypeString, Required: true, Description: "Address of the ATI proxy that holds the current key."},
		"algorithm":          {Type: framework.TypeString, Required: true, Description: "Signing algorithm."},
		"audience":           {Type: framework.TypeString, Required: true, Description: "Audience of the tokens."},
		"accepted_audiences": {Type: framework.TypeStringSlice, Required: true, Description: "Further audiences that a role may set."},
		"issuer":             {Type: framework.TypeString, Required: true, Description: "Issuer of the tokens; empty for none."},
		"allowed_scopes":     {Type: framework.TypeStringSlice, Required: true, Description: "Scope patterns beyond which no role may grant; empty for no ceiling."},
		"max_ttl":            {Type: framework.TypeInt64, Required: true, Description: "Longest TTL of a token, in seconds; 0 for no ceiling."},
		"key_version":        {Type: framework.TypeInt, Required: true, Description: "Version of the key that signs: the current one."},
		"key_created_at":     {Type: framework.TypeTime, Required: true, Description: "When the key came into this mount."},
		"key_fingerprint":    {Type: framework.TypeString, Required: true, Description: fingerprintDescription},
	}
}

func (b *backend) configExists(ctx context.Context, req *logical.Request, _ *framework.FieldData) (bool, error) {
	cfg, err := b.getConfig(ctx, req.Storage)
	return cfg != nil, err
}

func (b *backend) pathConfigRead(ctx context.Context, req *logical.Request, _ *framework.FieldData) (*logical.Response, error) {
	cfg, err := b.getConfig(ctx, req.Storage)
	if cfg == nil || err != nil {
		return nil, err
	}
	return &logical.Response{Data: map[string]any{
		"proxy_url":          cfg.current.ProxyURL,
		"algorithm":          cfg.current.Algorithm,
		"audience":           cfg.Audience,
		"accepted_audiences": cfg.AcceptedAudiences,
		"issuer":             cfg.Issuer,
		"allowed_scopes":     cfg.AllowedScopes,
		"max_ttl":            whole(cfg.MaxTTL),
		"key_version":        cfg.current.Version,
		"key_created_at":     cfg.current.CreatedAt.Format(time.RFC3339),
		"key_fingerprint":    cfg.current.fingerprint,
	}}, nil
}

func (b *backend) pathConfigWrite(ctx context.Context, req *logical.Request, d *framework.FieldData) (*logical.Response, error) {
	b.lock.Lock()
	defer b.lock.Unlock()

	entry, err := readConfigEntry(ctx, req.Storage)
	if err != nil {
		return nil, err
	}
	p, err := parseKeyParams(d)
	if err != nil {
		return logical.ErrorResponse(err.Error()), nil
	}
	created := entry.Current == nil
	var warnings []string
	var refusal error
	if created {
		entry, refusal = newConfigEntry(entry, p, b.now())
	} else {
		entry.forgetGone(b.now())
		warnings, refusal, err = entry.applyKey(p)
	}
	if err != nil {
		return nil, err
	}
	if refusal == nil {
		refusal = entry.applyClaims(d)
	}
	if refusal != nil {
		return logical.ErrorResponse(refusal.Error()), nil
	}
	generated, err := entry.Current.generate(b.GetRandomReader())
	if err != nil {
		return nil, err
	}
	resp := &logical.Response{Warnings: warnings}
	if generated {
		resp.AddWarning("Vault generated the signing key; the proxy refuses this mount's tokens until it has what proxy-env says")
	}
	warnOfClearText(resp, entry.Current.ProxyURL)
	for _, pattern := range entry.AllowedScopes {
		if strings.HasPrefix(pattern, "skill:") && strings.HasSuffix(pattern, "*") {
			resp.AddWarning(fmt.Sprintf("allowed_scopes %q lets no skill pass: the proxy matches skills by their exact names", pattern))
		}
	}
	if err := b.putConfig(ctx, req.Storage, entry); err != nil {
		return nil, err
	}
	b.Logger().Info("config written", "created", created, "parameters", parameterList(req), "key_version", entry.Current.Version)
	return orNoContent(resp), nil
}

func (b *backend) pathConfigDelete(ctx context.Context, req *logical.Request, _ *framework.FieldData) (*logical.Response, error) {
	b.lock.Lock()
	defer b.lock.Unlock()

	entry, err := readConfigEntry(ctx, req.Storage)
	if err != nil || entry.Current == nil {
		return nil, err
	}
	remains := configEntry{LastKeyVersion: entry.LastKeyVersion, LongestTTL: entry.LongestTTL}
	if err := b.putConfig(ctx, req.Storage, remains); err != nil {
		return nil, err
	}
	b.Logger().Warn("config deleted and keys forgotten", "key_version", entry.Current.Version)
	resp := new(logical.Response)
	resp.AddWarning("the key is forgotten here, but tokens signed with it pass the proxy until they expire or the proxy gets another key")
	return resp, nil
}

// newConfigEntry has the given key, and defaults for the rest. What it keeps is
// what a deleted config left behind.
func newConfigEntry(remains configEntry, p keyParams, now time.Time) (configEntry, error) {
	version := remains.LastKeyVersion + 1
	key, err := newKeyEntry(p, keyEntry{Algorithm: ati.HS256}, version, now)
	if err != nil {
		return configEntry{}, err
	}
	key.ActivatedAt = key.CreatedAt
	return configEntry{
		Audience:          ati.DefaultAudience,
		AcceptedAudiences: []string{},
		Issuer:            ati.DefaultIssuer,
		AllowedScopes:     []string{},
		Current:           key,
		LastKeyVersion:    version,
		LongestTTL:        remains.LongestTTL,
	}, nil
}

// applyKey changes the proxy's address, and refuses to change the key, which is
// config/rotate's. Terraform writes the same key again and again.
func (e *configEntry) applyKey(p keyParams) (warnings []string, refusal, err error) {
	const rotate = "an update doesn't change the key; config/rotate replaces it at once, config/rotate/stage without downtime"
	key := e.Current
	if p.algorithm != "" && p.algorithm != key.Algorithm {
		return nil, fmt.Errorf("algorithm %q is not the present one, %s, and %s", p.algorithm, key.Algorithm, rotate), nil
	}
	if err := p.checkAlgorithm(key.Algorithm); err != nil {
		return nil, err, nil
	}
	present, err := key.parse()
	if err != nil {
		return nil, nil, err
	}
	if name := p.keyName(); name != "" {
		brought := keyEntry{Algorithm: key.Algorithm, Secret: p.secret, PrivateKey: p.privateKey}
		other, err := brought.parse()
		if err != nil {
			return nil, nil, err
		}
		if other.fingerprint != present.fingerprint {
			return nil, fmt.Errorf("%s is not the present one, and %s", name, rotate), nil
		}
	}
	if p.proxyURL == "" || p.proxyURL == key.ProxyURL {
		return nil, nil, nil
	}
	for _, other := range []*keyEntry{e.Pending, e.Previous} {
		if other != nil && other.ProxyURL == p.proxyURL {
			return nil, fmt.Errorf("proxy_url %q is that of version %d, whose key its proxy holds; the current version is %d", p.proxyURL, other.Version, key.Version), nil
		}
	}
	warnings = []string{fmt.Sprintf("tokens go to %s from here on, whose proxy must hold version %d of the key; whoever asks with proxy_url=%s is refused", p.proxyURL, key.Version, key.ProxyURL)}
	was := key.ProxyURL
	for _, k := range []*keyEntry{e.Current, e.Pending, e.Previous} {
		if k != nil && k.ProxyURL == was { // the same proxy, which has moved
			k.ProxyURL = p.proxyURL
		}
	}
	return warnings, nil, nil
}

// forgetGone drops a previous version that counts no longer.
func (e *configEntry) forgetGone(now time.Time) {
	if e.Previous != nil && e.Previous.gone(now) {
		e.Previous, e.RolledBack = nil, false
	}
}

// applyClaims sets what goes into the tokens, and the ceiling over them.
func (e *configEntry) applyClaims(d *framework.FieldData) error {
	if given(d, "audience") {
		e.Audience = d.Get("audience").(string)
	}
	if err := checkAudience("audience", e.Audience); err != nil {
		return err
	}
	if given(d, "issuer") {
		e.Issuer = d.Get("issuer").(string)
	}
	if e.Issuer != "" {
		if err := checkAudience("issuer", e.Issuer); err != nil {
			return err
		}
	}
	accepted, ok, err := listField(d, "accepted_audiences")
	if err != nil {
		return err
	}
	if ok {
		for _, a := range accepted {
			if err := checkAudience("accepted_audiences", a); err != nil {
				return err
			}
		}
		e.AcceptedAudiences = unique(accepted)
	}
	allowed, ok, err := listField(d, "allowed_scopes")
	if err != nil {
		return err
	}
	if ok {
		for _, pattern := range allowed {
			if err := ati.CheckPattern(pattern); err != nil {
				return fmt.Errorf("allowed_scopes %w", err)
			}
		}
		e.AllowedScopes = unique(allowed)
	}
	maxTTL, ok, err := durationField(d, "max_ttl")
	if err != nil {
		return err
	}
	if ok {
		e.MaxTTL = maxTTL
	}
	return nil
}

// checkCeiling refuses a scope that allowed_scopes doesn't cover.
func (e *configEntry) checkCeiling(scopes []string) error {
	if len(e.AllowedScopes) == 0 {
		return nil
	}
	for _, scope := range scopes {
		if !coveredBy(e.AllowedScopes, scope) {
			return fmt.Errorf("scope %q is beyond config's allowed_scopes (%s)", scope, strings.Join(e.AllowedScopes, ", "))
		}
	}
	return nil
}

func (e *configEntry) knowsAudience(audience string) bool {
	return audience == e.Audience || slices.Contains(e.AcceptedAudiences, audience)
}

func (e *configEntry) audiences() []string {
	return unique(append([]string{e.Audience}, e.AcceptedAudiences...))
}

// An address consists of characters that can stand unquoted in an environment
// file or a template.
var (
	hostForm = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*\z`)
	urlForm  = regexp.MustCompile(`^[A-Za-z0-9._~:/%+=,;!()\[\]-]*\z`)

	// needlessEscape matches what RFC 3986, section 6.2.2, writes otherwise: an
	// encoded letter, digit or ._~-, and hex digits in lower case.
	needlessEscape = regexp.MustCompile(`%(2[DE]|3[0-9]|4[1-9A-F]|5[0-9AF]|6[1-9A-F]|7[0-9AE])|%([0-9A-F][a-f]|[a-f][0-9A-Fa-f])`)
)

// parseProxyURL checks the proxy's address, and returns it with scheme and host
// in lower case and without trailing slashes.
func parseProxyURL(raw string) (string, error) {
	u, err := url.Parse(raw)
	switch {
	case strings.Contains(raw, "@"):
		return "", errors.New("proxy_url must not have a user or password in it, and so no @")
	case err != nil: // not quoted: there may be a badly encoded password in it
		return "", errors.New("proxy_url must be an http or https URL such as https://ati.example.com")
	case strings.ContainsAny(raw, "?#"):
		return "", fmt.Errorf("proxy_url %q: must not have a query or fragment", raw)
	case u.Scheme != "http" && u.Scheme != "https":
		return "", fmt.Errorf("proxy_url %q: the scheme must be http or https", raw)
	case !validHost(u.Hostname()) || !validPort(u):
		return "", fmt.Errorf("proxy_url %q: the host must be letters, digits, dots and inner hyphens, up to 63 between two dots, or an IP address; the port 1 to 65535, or none", raw)
	case len(raw) > maxProxyURLBytes || !urlForm.MatchString(raw):
		return "", fmt.Errorf(`proxy_url %q: must be at most %d letters, digits and ._~:/%%+=,;!()[]-`, raw, maxProxyURLBytes)
	}
	// One address has one spelling, since tokens are asked for by it.
	at := strings.TrimRight(u.Path, "/")
	if at != "" && path.Clean(at) != at || needlessEscape.MatchString(raw) {
		return "", fmt.Errorf(`proxy_url %q: the path must be without "//", ".", ".." and needless %%-encoding`, raw)
	}
	return u.Scheme + "://" + hostOf(u) + strings.TrimRight(u.EscapedPath(), "/"), nil
}

// hostOf is host and port in lower case, without a port that goes without
// saying.
func hostOf(u *url.URL) string {
	host := strings.ToLower(u.Hostname())
	if ip := net.ParseIP(host); ip != nil {
		host = ip.String()
	}
	port := strings.TrimLeft(u.Port(), "0")
	switch {
	case port != "" && port != map[string]string{"http": "80", "https": "443"}[u.Scheme]:
		return net.JoinHostPort(host, port)
	case strings.Contains(host, ":"):
		return "[" + host + "]"
	}
	return host
}

func validHost(host string) bool {
	return hostForm.MatchString(host) || strings.Contains(host, ":") && net.ParseIP(host) != nil
}

func validPort(u *url.URL) bool {
	if u.Port() == "" {
		return !strings.HasSuffix(u.Host, ":")
	}
	port, err := strconv.Atoi(u.Port())
	return err == nil && port >= 1 && port <= 65535
}

func warnOfClearText(resp *logical.Response, proxyURL string) {
	if clearText(proxyURL) {
		resp.AddWarning(fmt.Sprintf("proxy_url %q is not https: tokens cross the network in clear text", proxyURL))
	}
}

// clearText reports whether tokens sent to this address can be read on the way.
func clearText(proxyURL string) bool {
	u, err := url.Parse(proxyURL)
	if err != nil || u.Scheme != "http" {
		return false
	}
	ip := net.ParseIP(u.Hostname())
	return u.Hostname() != "localhost" && (ip == nil || !ip.IsLoopback())
}

// getConfig returns the config, or nil where there is none.
func (b *backend) getConfig(ctx context.Context, s logical.Storage) (*config, error) {
	if cfg := b.config.Load(); cfg != nil {
		return cfg.orNil(), nil
	}
	b.lock.RLock()
	defer b.lock.RUnlock()
	return b.loadConfig(ctx, s)
}

// orNil is nil for what the cache holds where there is no config: jwks, which
// anybody may ask, must not go to storage each time.
func (c *config) orNil() *config {
	if c.current == nil {
		return nil
	}
	return c
}

// loadConfig fills the cache from storage. The caller holds the lock.
func (b *backend) loadConfig(ctx context.Context, s logical.Storage) (*config, error) {
	entry, err := readConfigEntry(ctx, s)
	if err != nil {
		return nil, err
	}
	cfg, err := entry.parse()
	if err != nil {
		return nil, err
	}
	b.config.Store(cfg)
	return cfg.orNil(), nil
}

func (e configEntry) parse() (*config, error) {
	cfg := &config{configEntry: e}
	for _, v := range []struct {
		entry *keyEntry
		key   **signingKey
	}{{e.Current, &cfg.current}, {e.Pending, &cfg.pending}, {e.Previous, &cfg.previous}} {
		var err error
		if *v.key, err = v.entry.parse(); err != nil {
			return nil, err
		}
	}
	return cfg, nil
}

// known are the versions of the key that count: the current one, the pending
// one, and the previous one until the last of its tokens has expired.
func (c *config) known(now time.Time) []*signingKey {
	keys := []*signingKey{c.current}
	if c.pending != nil {
		keys = append(keys, c.pending)
	}
	if c.previous != nil && !c.previous.gone(now) {
		keys = append(keys, c.previous)
	}
	return keys
}

// keyFor is the version that mints for the proxy at this address, or for the
// current one where none is given.
func (c *config) keyFor(proxyURL string) (*signingKey, error) {
	hint := ""
	switch {
	case proxyURL == "" || proxyURL == c.current.ProxyURL:
		return c.current, nil
	case c.previous != nil && c.previous.ProxyURL == proxyURL:
		if c.previous.RetiredAt.IsZero() {
			return c.previous, nil
		}
		hint = fmt.Sprintf(" (version %d, whose it was, is retired)", c.previous.Version)
	case c.pending != nil && c.pending.ProxyURL == proxyURL:
		hint = fmt.Sprintf(" (version %d, whose it is, is not active yet)", c.pending.Version)
	}
	return nil, fmt.Errorf("proxy_url %q: this mount has no key for it%s; the current proxy is at %q", proxyURL, hint, c.current.ProxyURL)
}

// readConfigEntry returns the stored entry, or an empty one.
func readConfigEntry(ctx context.Context, s logical.Storage) (configEntry, error) {
	var entry configEntry
	if err := readEntry(ctx, s, configStoragePath, &entry, func() int { return entry.StorageVersion }); err != nil {
		return configEntry{}, fmt.Errorf("read config: %w", err)
	}
	return entry, nil
}

// putConfig stores the entry and renews the cache. The caller holds the lock.
func (b *backend) putConfig(ctx context.Context, s logical.Storage, entry configEntry) error {
	entry.StorageVersion = storageVersion
	cfg, err := entry.parse()
	if err != nil {
		return err
	}
	stored, err := logical.StorageEntryJSON(configStoragePath, entry)
	if err != nil {
		return fmt.Errorf("write config: %w", err)
	}
	// Whether a failed write was carried out is not known: read it anew.
	b.config.Store(nil)
	if err := put(ctx, s, stored); err != nil {
		return fmt.Errorf("write config: %w", err)
	}
	b.config.Store(cfg)
	return nil
}

const needsSudo = `This path needs the sudo capability beside the operation's.`

const pathConfigHelpSyn = `The proxy, the signing key, and the ceiling over all roles.`

const pathConfigHelpDesc = `
Write proxy_url, and either bring the key that the proxy holds or let Vault
generate one. The key is never returned: key_fingerprint tells whether two
places hold the same one. It is, for HS256, the first 16 hex digits of
HMAC-SHA256(secret, "ati key fingerprint"), and for ES256 those of the SHA-256
of the public key in DER. To change the key, write config/rotate.

audience, accepted_audiences and issuer go into the tokens, and must be what
the proxy is set to accept. allowed_scopes and max_ttl are a ceiling over all
roles, for teams that let others write roles.

` + needsSudo + `

    $ vault write ati/config proxy_url=https://ati.example.com
`
