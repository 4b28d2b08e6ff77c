package guard

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/vault/api"
	"github.com/hashicorp/vault/api/auth/approle"
	"github.com/hashicorp/vault/api/auth/kubernetes"
)

const (
	vaultTimeout = 10 * time.Second // of one request
	loginRetry   = 5 * time.Second
	deniedRetry  = 30 * time.Second // between two logins because of status 403

	// A secret ID that Vault has rejected so often, which may not have reached this node
	// at first, is tried less often. After five rejected logins, each within 15 minutes of
	// the one before, Vault would lock the AppRole for all hosts.
	maxRejections = 3
	rejectedRetry = 16 * time.Minute
)

// vaultClient reads from Vault, and logs in when it must.
type vaultClient struct {
	client *api.Client
	cfg    *VaultConfig
	login  time.Time // when the token should be replaced
	ends   time.Time // when it ends

	denied     bool      // a read was: log in again
	deniedNext time.Time // when that may next lead to a login

	failed        error  // of the last login
	rejected      string // the secret ID
	rejections    int    // of it
	rejectedUntil time.Time
}

func newVaultClient(cfg *VaultConfig) (*vaultClient, error) {
	c := api.DefaultConfig() // reads VAULT_ADDR and the rest
	if c.Error != nil {
		return nil, c.Error
	}
	if cfg.Address != "" {
		c.Address = cfg.Address
	}
	c.Timeout, c.MaxRetries = vaultTimeout, 0
	client, err := api.NewClient(c)
	if err != nil {
		return nil, err
	}
	if cfg.Namespace != "" {
		client.SetNamespace(cfg.Namespace)
	}
	client.ClearToken() // not the VAULT_TOKEN of a shell
	return &vaultClient{client: client, cfg: cfg}, nil
}

// ensureLogin logs in if there is no token, or if two thirds of its life are over.
func (v *vaultClient) ensureLogin(ctx context.Context) error {
	auth := v.cfg.Auth
	if auth.TokenFile != "" { // another program may have replaced it
		token, err := os.ReadFile(auth.TokenFile)
		if err != nil {
			return err
		}
		v.client.SetToken(strings.TrimSpace(string(token)))
		return nil
	}
	held := v.client.Token() != ""
	if held && time.Now().Before(v.login) || held && !v.denied && v.renew(ctx) {
		return nil
	}
	v.denied = false
	v.failed = v.logIn(ctx)
	if held && time.Now().Before(v.ends) { // the token may do
		return nil
	}
	return v.failed
}

func (v *vaultClient) logIn(ctx context.Context) error {
	method, secretID, err := v.cfg.Auth.method()
	if err != nil {
		return err
	}
	if secretID != v.rejected {
		v.rejected, v.rejections = secretID, 0
	}
	if secretID != "" && v.rejections >= maxRejections && time.Now().Before(v.rejectedUntil) {
		return fmt.Errorf("log in: Vault has rejected this secret ID, which is tried again at %s, or another one immediately", v.rejectedUntil.UTC().Format(time.RFC3339))
	}
	v.login = time.Now().Add(loginRetry) // until then, the old token may do
	// Without the old token: Vault rejects every request with a token whose entity was deleted.
	client, err := v.client.CloneWithHeaders()
	if err != nil {
		return err
	}
	client.ClearToken() // not the VAULT_TOKEN of a shell
	secret, err := client.Auth().Login(ctx, method)
	if err != nil {
		if status := statusOf(err); status == http.StatusBadRequest || status == http.StatusForbidden {
			v.rejections++
			v.rejectedUntil = time.Now().Add(rejectedRetry)
		}
		return fmt.Errorf("log in: %w", brief(err))
	}
	v.rejections = 0
	v.client.SetToken(secret.Auth.ClientToken)
	v.setLogin(secret)
	return nil
}

func (v *vaultClient) renew(ctx context.Context) bool {
	secret, err := v.client.Auth().Token().RenewSelfWithContext(ctx, 0)
	if err != nil || secret.Auth == nil || secret.Auth.LeaseDuration < 10 {
		return false
	}
	v.setLogin(secret)
	return true
}

func (v *vaultClient) setLogin(secret *api.Secret) {
	life := time.Duration(secret.Auth.LeaseDuration) * time.Second
	if life == 0 { // a token without an end
		life = 24 * time.Hour
	}
	v.login, v.ends, v.failed = time.Now().Add(life*2/3), time.Now().Add(life), nil
}

// method returns the way to log in, with the secret ID for AppRole.
func (a AuthConfig) method() (method api.AuthMethod, secretID string, err error) {
	if a.Kubernetes.Role != "" {
		method, err = kubernetes.NewKubernetesAuth(a.Kubernetes.Role, kubernetes.WithMountPath(a.Kubernetes.Mount))
		return method, "", err
	}
	roleID, err1 := os.ReadFile(a.AppRole.RoleIDFile)
	secret, err2 := os.ReadFile(a.AppRole.SecretIDFile)
	if err := errors.Join(err1, err2); err != nil {
		return nil, "", err
	}
	secretID = strings.TrimSpace(string(secret))
	method, err = approle.NewAppRoleAuth(strings.TrimSpace(string(roleID)), &approle.SecretID{FromString: secretID}, approle.WithMountPath(a.AppRole.Mount))
	return method, secretID, err
}

func statusOf(err error) int {
	var failed *api.ResponseError
	if errors.As(err, &failed) {
		return failed.StatusCode
	}
	return 0
}

// brief returns an error in one line, without the request, whose query is long. A body
// that is not one of Vault's errors may have a key, or the login.
func brief(err error) error {
	var failed *api.ResponseError
	if !errors.As(err, &failed) {
		return err
	}
	if failed.RawError {
		return fmt.Errorf("status %d, with a body that is not Vault's", failed.StatusCode)
	}
	return fmt.Errorf("status %d: %s", failed.StatusCode, strings.Join(strings.Fields(strings.Join(failed.Errors, "; ")), " "))
}

// readGuard returns the response of the path guard, with all or with what has changed
// since a generation, or nil if the mount has no config.
func (v *vaultClient) readGuard(ctx context.Context, since int64) (*response, error) {
	query := map[string][]string{}
	if since >= 0 {
		query["since"] = []string{strconv.FormatInt(since, 10)}
	}
	secret, err := v.read(ctx, v.cfg.Mount+"/guard", query)
	if secret == nil || err != nil {
		return nil, err
	}
	return parseResponse(secret.Data)
}

// readAPIKeys returns the fields at a path of the KV secrets engine, version 1 or 2.
func (v *vaultClient) readAPIKeys(ctx context.Context, path string) (map[string]string, error) {
	secret, err := v.read(ctx, path, nil)
	if err != nil {
		return nil, err
	}
	if secret == nil || len(secret.Data) == 0 {
		return nil, fmt.Errorf("%s has no API keys; the path of KV version 2 has data/ after the mount", path)
	}
	data := secret.Data
	if inner, ok := data["data"].(map[string]any); ok && data["metadata"] != nil {
		data = inner
	}
	keys := map[string]string{}
	for name, value := range data {
		text, ok := value.(string)
		if !ok || strings.ContainsAny(name, "=\x00") || strings.Contains(text, "\x00") {
			return nil, fmt.Errorf("%s: field %q cannot be an environment variable", path, name)
		}
		keys[strings.TrimPrefix(name, "ATI_KEY_")] = text
	}
	return keys, nil
}

func (v *vaultClient) read(ctx context.Context, path string, query map[string][]string) (*api.Secret, error) {
	ctx, cancel := context.WithTimeout(ctx, vaultTimeout)
	defer cancel()
	if err := v.ensureLogin(ctx); err != nil {
		return nil, err
	}
	resp, err := v.client.Logical().ReadRawWithDataWithContext(ctx, path, query)
	var failed *api.ResponseError
	missing := errors.As(err, &failed) && failed.StatusCode == http.StatusNotFound && !failed.RawError
	secret, err := v.client.Logical().ParseRawResponseAndCloseBody(resp, err)
	if secret == nil && err == nil && !missing {
		return nil, fmt.Errorf("read %s: the response is not one of Vault", path)
	}
	if statusOf(err) == http.StatusForbidden && time.Now().After(v.deniedNext) {
		// The token may have ended. If not, only a new login has policies that its role was given later.
		v.login, v.denied, v.deniedNext = time.Time{}, true, time.Now().Add(deniedRetry)
	}
	if err != nil {
		err = errors.Join(fmt.Errorf("read %s: %w", path, brief(err)), v.failed)
	}
	return secret, err
}
