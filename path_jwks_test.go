package atisecrets_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/vault/sdk/logical"
)

// TestJWKS checks the JWK Set, byte for byte, through the steps of a rotation.
func TestJWKS(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	set := func(want ...string) {
		t.Helper()
		resp := m.ok(logical.ReadOperation, "jwks", nil)
		if resp.Data[logical.HTTPContentType] != "application/json" || resp.Data[logical.HTTPStatusCode] != 200 || len(resp.Data) != 3 {
			t.Errorf("the response is %v", resp.Data)
		}
		if diff := cmp.Diff(`{"keys":[`+strings.Join(want, ",")+`]}`, string(resp.Data[logical.HTTPRawBody].([]byte))); diff != "" {
			t.Errorf("JWK Set (-want +got):\n%s", diff)
		}
	}
	set() // without a config
	m.ok(logical.CreateOperation, "config", data{"proxy_url": testProxy, "secret": testSecret})
	set() // with HS256, whose secret must not be in it
	blue, green := newPair(t), newPair(t)
	m.ok(logical.UpdateOperation, "config/rotate", data{"algorithm": "ES256", "private_key": blue.sec1})
	set(blue.jwk(t))
	m.ok(logical.UpdateOperation, "config/rotate/stage", data{"private_key": green.sec1, "proxy_url": greenProxy})
	set(blue.jwk(t), green.jwk(t)) // before it signs tokens, so that caches have it
	m.ok(logical.UpdateOperation, "config/rotate/activate", nil)
	set(green.jwk(t), blue.jwk(t))
	m.ok(logical.UpdateOperation, "config/rotate/retire", nil)
	set(green.jwk(t), blue.jwk(t))
	m.now = m.now.Add(60 * time.Second) // without a role there is no token: only the leeway counts
	set(green.jwk(t), blue.jwk(t))
	m.now = m.now.Add(time.Second)
	set(green.jwk(t))
	m.ok(logical.UpdateOperation, "config/rotate/stage", data{"algorithm": "HS256"})
	set(green.jwk(t))
	m.ok(logical.UpdateOperation, "config/rotate", nil)
	var got struct{ Keys []struct{ Kid string } }
	if err := json.Unmarshal(m.ok(logical.ReadOperation, "jwks", nil).Data[logical.HTTPRawBody].([]byte), &got); err != nil || len(got.Keys) != 1 || got.Keys[0].Kid == green.fingerprint {
		t.Errorf("after an immediate rotation: %v %v", got, err)
	}
	m.ok(logical.DeleteOperation, "config", nil)
	set()
}
