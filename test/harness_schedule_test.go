package test

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/vault/api"
)

// The schedule of keys that rotate automatically. The plugin is built with the tag short_rotation. Vault calls
// the plugin's periodic function once a minute, so a version is current for three to five
// minutes.
const (
	scheduledPeriod  = 3 * time.Minute
	scheduledOverlap = time.Minute
	scheduledTTL     = 45 * time.Second
)

// mountScheduled mounts the engine at ati/, with a key that rotates automatically.
func (s *server) mountScheduled(algorithm string) {
	s.t.Helper()
	s.register("v0.1.0")
	s.vault(s.root, "secrets", "enable", "-path=ati", pluginName)
	s.write(s.root, "ati/config", data{
		"proxy_url": "https://ati.example.com", "algorithm": algorithm, "guarded": true,
		"rotation_period": scheduledPeriod.String(), "rotation_overlap": scheduledOverlap.String(),
	})
	s.write(s.root, "ati/roles/r", data{"tools": "*", "ttl": scheduledTTL.String(), "max_ttl": scheduledTTL.String()})
}

// scheduledKey is what config/rotate returns about a key that rotates automatically.
type scheduledKey struct {
	versions
	algorithm, status                                    string
	currentAt, pendingSince, previousUntil, nextRotation time.Time
}

func (s *server) scheduledKey() (k scheduledKey, err error) {
	client := s.client(s.root)
	client.SetClientTimeout(clusterTimeout)
	secret, err := client.Logical().Read("ati/config/rotate")
	if err != nil {
		return k, err
	}
	if secret == nil { // from a standby, while the leader shuts down
		return k, errors.New("empty response")
	}
	at := func(name string) (t time.Time) {
		if text, ok := secret.Data[name].(string); ok {
			t, err = time.Parse(time.RFC3339, text)
		}
		return t
	}
	k = scheduledKey{
		versions: versionsOf(s.t, secret.Data), algorithm: secret.Data["current_algorithm"].(string),
		currentAt: at("current_activated_at"), pendingSince: at("pending_created_at"), previousUntil: at("previous_tokens_expire_by"), nextRotation: at("next_rotation_at"),
	}
	k.status, _ = secret.Data["rotation_status"].(string)
	return k, err
}

func (k scheduledKey) String() string {
	text := fmt.Sprintf("version %d is current since %s", k.Current, clock(k.currentAt))
	if k.Pending != 0 {
		text += fmt.Sprintf(", version %d is pending since %s", k.Pending, clock(k.pendingSince))
	}
	if k.Previous != 0 {
		text += fmt.Sprintf(", tokens of version %d expire by %s", k.Previous, clock(k.previousUntil))
	}
	return fmt.Sprintf("%s; %s; next rotation at %s", text, k.status, clock(k.nextRotation))
}

func clock(t time.Time) string { return t.UTC().Format(time.TimeOnly) }

// waitForScheduled waits until a condition holds, and returns the versions then.
func (s *server) waitForScheduled(what string, holds func(scheduledKey) bool) (k scheduledKey) {
	s.t.Helper()
	pollFor(s.t, scheduledPeriod+3*time.Minute, what, func() (err error) {
		if k, err = s.scheduledKey(); err == nil && !holds(k) {
			err = errors.New(k.String())
		}
		return err
	})
	s.t.Logf("%s: %s: %v", clock(time.Now()), what, k)
	return k
}

// mintVersion returns a token and the version of its key.
func mintVersion(client *api.Client) (token string, version int, err error) {
	creds, err := client.Logical().Read("ati/creds/r")
	if err == nil && creds == nil { // from a standby, while the leader shuts down
		err = errors.New("empty response")
	}
	if err != nil {
		return "", 0, err
	}
	n, err := creds.Data["key_version"].(json.Number).Int64()
	return creds.Data["token"].(string), int(n), err
}
