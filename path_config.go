package atisecrets

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
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

	secretBytes          = 32 // ati-client and the proxy call for 64 hex characters
	minDifferentBytes    = 8
	maxProxyURLBytes     = 2048
	fingerprintMessage   = "ati key fingerprint"
	fingerprintHexDigits = 16
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

	// LastKeyVersion is never used again, even after the config was deleted: a
	// version names one key.
	LastKeyVersion int `json:"last_key_version"`

	// LongestTTL is the longest TTL that any role of this mount ever allowed. It
	// is raised before the role is stored, so that "no token lives longer than
	// this from now" is true at any time.
	LongestTTL time.Duration `json:"longest_ttl"`
}

// keyEntry is one version of the signing key.
type keyEntry struct {
	Version   int       `json:"version"`
	Algorithm string    `json:"algorithm"`
	Secret    hexSecret `json:"secret"`
	ProxyURL  string    `json:"proxy_url"`
	CreatedAt time.Time `json:"created_at"`
}

// hexSecret is an HS256 secret, 64 hex characters in lower case. It doesn't
// print itself.
type hexSecret string

func (hexSecret) String() string   { return "(secret)" }
func (hexSecret) GoString() string { return "(secret)" }

// config is a configEntry with its parsed key. It is never changed.
type config struct {
	configEntry
	key ati.Key
}

func pathConfig(b *backend) []*framework.Path {
	fields := map[string]*framework.FieldSchema{
		"proxy_url": {
			Type:         framework.TypeString,
			Description:  "Address of the ATI proxy, http or https. Tokens are handed out together with it. Required when the config is created.",
			DisplayAttrs: &framework.DisplayAttributes{Name: "Proxy URL"},
		},
		"algorithm": {
			Type:          framework.TypeString,
			Description:   "Signing algorithm: HS256, for which the proxy holds the same secret.",
			Default:       ati.HS256,
			AllowedValues: []any{ati.HS256},
		},
		"secret": {
			Type:         framework.TypeString,
			Description:  "HS256 secret, 64 hex characters. Vault generates one when it is left out at creation. Never returned.",
			DisplayAttrs: &framework.DisplayAttributes{Sensitive: true},
		},
		"audience": {
			Type:        framework.TypeString,
			Description: "Audience of the tokens (claim aud), unless a role sets another one.",
			Default:     ati.DefaultAudience,
		},
		"accepted_audiences": {
			Type:        framework.TypeCommaStringSlice,
			Description: "Further audiences that a role may set.",
		},
		"issuer": {
			Type:        framework.TypeString,
			Description: "Issuer of the tokens (claim iss). Empty leaves the claim out.",
			Default:     ati.DefaultIssuer,
		},
		"allowed_scopes": {
			Type:        framework.TypeCommaStringSlice,
			Description: "Scope patterns beyond which no role may grant, such as tool:github:*. Empty sets no such ceiling.",
		},
		"max_ttl": {
			Type:        framework.TypeDurationSecond,
			Description: "Longest TTL of a token, whatever its role says. 0 sets no such ceiling.",
		},
	}
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
		"proxy_url":          {Type: framework.TypeString, Required: true, Description: "Address of the ATI proxy."},
		"algorithm":          {Type: framework.TypeString, Required: true, Description: "Signing algorithm."},
		"audience":           {Type: framework.TypeString, Required: true, Description: "Audience of the tokens."},
		"accepted_audiences": {Type: framework.TypeStringSlice, Required: true, Description: "Further audiences that a role may set."},
		"issuer":             {Type: framework.TypeString, Required: true, Description: "Issuer of the tokens; empty for none."},
		"allowed_scopes":     {Type: framework.TypeStringSlice, Required: true, Description: "Scope patterns beyond which no role may grant; empty for no ceiling."},
		"max_ttl":            {Type: framework.TypeInt64, Required: true, Description: "Longest TTL of a token, in seconds; 0 for no ceiling."},
		"key_version":        {Type: framework.TypeInt, Required: true, Description: "Version of the key that signs."},
		"key_created_at":     {Type: framework.TypeTime, Required: true, Description: "When the key came into this mount."},
		"key_fingerprint":    {Type: framework.TypeString, Required: true, Description: "First 16 hex digits of HMAC-SHA256(secret, \"ati key fingerprint\")."},
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
		"proxy_url":          cfg.Current.ProxyURL,
		"algorithm":          cfg.Current.Algorithm,
		"audience":           cfg.Audience,
		"accepted_audiences": cfg.AcceptedAudiences,
		"issuer":             cfg.Issuer,
		"allowed_scopes":     cfg.AllowedScopes,
		"max_ttl":            whole(cfg.MaxTTL),
		"key_version":        cfg.Current.Version,
		"key_created_at":     cfg.Current.CreatedAt.Format(time.RFC3339),
		"key_fingerprint":    fingerprint(cfg.Current.Secret),
	}}, nil
}

func (b *backend) pathConfigWrite(ctx context.Context, req *logical.Request, d *framework.FieldData) (*logical.Response, error) {
	b.lock.Lock()
	defer b.lock.Unlock()

	entry, err := readConfigEntry(ctx, req.Storage)
	if err != nil {
		return nil, err
	}
	created := entry.Current == nil
	if created {
		entry = newConfigEntry(entry, b.now())
	}
	if err := entry.apply(d); err != nil {
		return logical.ErrorResponse(err.Error()), nil
	}
	resp := new(logical.Response)
	if entry.Current.Secret == "" {
		if entry.Current.Secret, err = generateSecret(b.GetRandomReader()); err != nil {
			return nil, err
		}
		resp.AddWarning("Vault generated the signing secret; the proxy refuses this mount's tokens until it has that from proxy-env")
	}
	if clearText(entry.Current.ProxyURL) {
		resp.AddWarning(fmt.Sprintf("proxy_url %q is not https: tokens cross the network in clear text", entry.Current.ProxyURL))
	}
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
	version := entry.Current.Version
	remains := configEntry{LastKeyVersion: entry.LastKeyVersion, LongestTTL: entry.LongestTTL}
	if err := b.putConfig(ctx, req.Storage, remains); err != nil {
		return nil, err
	}
	b.Logger().Warn("config deleted and key forgotten", "key_version", version)
	resp := new(logical.Response)
	resp.AddWarning("the key is forgotten here, but tokens signed with it pass the proxy until they expire or the proxy gets another key")
	return resp, nil
}

// newConfigEntry has the defaults of a config that is created. What it keeps
// is what a deleted one left behind.
func newConfigEntry(remains configEntry, now time.Time) configEntry {
	version := remains.LastKeyVersion + 1
	return configEntry{
		Audience:          ati.DefaultAudience,
		AcceptedAudiences: []string{},
		Issuer:            ati.DefaultIssuer,
		AllowedScopes:     []string{},
		Current:           &keyEntry{Version: version, Algorithm: ati.HS256, CreatedAt: now.UTC().Truncate(time.Second)},
		LastKeyVersion:    version,
		LongestTTL:        remains.LongestTTL,
	}
}

// apply sets the given fields, and judges the whole that they make: here the
// key and the proxy that holds it.
func (e *configEntry) apply(d *framework.FieldData) error {
	key := e.Current
	if given(d, "proxy_url") {
		u, err := parseProxyURL(d.Get("proxy_url").(string))
		if err != nil {
			return err
		}
		key.ProxyURL = u
	}
	if key.ProxyURL == "" {
		return errors.New("proxy_url is required: the address of the ATI proxy, such as https://ati.example.com")
	}
	if algorithm := d.Get("algorithm").(string); algorithm != ati.HS256 {
		return fmt.Errorf("algorithm %q: must be %q", algorithm, ati.HS256)
	}
	if given(d, "secret") {
		secret, err := parseSecret(d.Get("secret").(string))
		if err != nil {
			return err
		}
		if key.Secret != "" && key.Secret != secret {
			return errors.New("secret is not the present one, and an update doesn't change the key: it would end every token at once; to do that, delete config and write it again")
		}
		key.Secret = secret
	}
	return e.applyClaims(d)
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
	hostForm = regexp.MustCompile(`^([A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?)(\.[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?)*\z`)
	urlForm  = regexp.MustCompile(`^[A-Za-z0-9._~:/%+=,;!()\[\]-]*\z`)
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
		return "", fmt.Errorf("proxy_url %q: must have a host, and a port from 1 to 65535 or none", raw)
	case len(raw) > maxProxyURLBytes || !urlForm.MatchString(raw) || strings.Contains(u.Path, ".."):
		return "", fmt.Errorf(`proxy_url %q: must be at most %d letters, digits and ._~:/%%+=,;!()- without ".."`, raw, maxProxyURLBytes)
	}
	return u.Scheme + "://" + strings.ToLower(u.Host) + strings.TrimRight(u.EscapedPath(), "/"), nil
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

// clearText reports whether tokens sent to this address can be read on the way.
func clearText(proxyURL string) bool {
	u, err := url.Parse(proxyURL)
	if err != nil || u.Scheme != "http" {
		return false
	}
	ip := net.ParseIP(u.Hostname())
	return u.Hostname() != "localhost" && (ip == nil || !ip.IsLoopback())
}

// parseSecret checks an HS256 secret. White space around it, such as the line
// break of secret=@file, is cut: the proxy would open itself to everybody if
// that were handed on.
func parseSecret(raw string) (hexSecret, error) {
	secret := strings.ToLower(strings.Trim(raw, asciiBlanks))
	b, err := hex.DecodeString(secret)
	if len(secret) != 2*secretBytes || err != nil {
		return "", fmt.Errorf("secret must be %d hex characters; it has %d characters. One is made by: openssl rand -hex %d", 2*secretBytes, len(secret), secretBytes)
	}
	different := map[byte]bool{}
	for _, c := range b {
		different[c] = true
	}
	if len(different) < minDifferentBytes {
		return "", fmt.Errorf("secret has %d different bytes; a random one has at least %d. One is made by: openssl rand -hex %d", len(different), minDifferentBytes, secretBytes)
	}
	return hexSecret(secret), nil
}

func generateSecret(random io.Reader) (hexSecret, error) {
	b := make([]byte, secretBytes)
	if _, err := io.ReadFull(random, b); err != nil {
		return "", fmt.Errorf("generate a signing secret: %w", err)
	}
	return parseSecret(hex.EncodeToString(b))
}

// fingerprint names a secret without telling it.
func fingerprint(secret hexSecret) string {
	key, _ := hex.DecodeString(string(secret)) // parseSecret has checked it
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(fingerprintMessage))
	return hex.EncodeToString(mac.Sum(nil))[:fingerprintHexDigits]
}

// getConfig returns the config, or nil where there is none.
func (b *backend) getConfig(ctx context.Context, s logical.Storage) (*config, error) {
	if cfg := b.config.Load(); cfg != nil {
		return cfg, nil
	}
	b.lock.RLock()
	defer b.lock.RUnlock()
	return b.loadConfig(ctx, s)
}

// loadConfig fills the cache from storage. The caller holds the lock.
func (b *backend) loadConfig(ctx context.Context, s logical.Storage) (*config, error) {
	entry, err := readConfigEntry(ctx, s)
	if err != nil || entry.Current == nil {
		return nil, err
	}
	cfg, err := entry.parse()
	if err != nil {
		return nil, err
	}
	b.config.Store(cfg)
	return cfg, nil
}

func (e configEntry) parse() (*config, error) {
	key, err := ati.ParseSecret(string(e.Current.Secret))
	if err != nil {
		return nil, fmt.Errorf("read the stored key: %w", err)
	}
	return &config{configEntry: e, key: key}, nil
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
	var cfg *config
	if entry.Current != nil {
		var err error
		if cfg, err = entry.parse(); err != nil {
			return err
		}
	}
	stored, err := logical.StorageEntryJSON(configStoragePath, entry)
	if err != nil {
		return fmt.Errorf("write config: %w", err)
	}
	// Whether a failed write was carried out is not known: read it anew.
	b.config.Store(nil)
	if err := s.Put(ctx, stored); err != nil {
		return fmt.Errorf("write config: %w", err)
	}
	b.config.Store(cfg)
	return nil
}

const pathConfigHelpSyn = `The proxy, the signing key, and the ceiling over all roles.`

const pathConfigHelpDesc = `
Write proxy_url, and either bring the HS256 secret that the proxy holds or let
Vault generate one. The secret is never returned: key_fingerprint tells whether
two places hold the same one.

audience, accepted_audiences and issuer go into the tokens, and must be what
the proxy is set to accept. allowed_scopes and max_ttl are a ceiling over all
roles, for teams that let others write roles.

This path needs the sudo capability beside the operation's.
`
