package atisecrets_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/vault/sdk/logical"
)

func TestProxyEnv(t *testing.T) {
	t.Parallel()
	m := configured(t, nil, nil)
	read := func(path string) data { return m.ok(logical.ReadOperation, path, nil).Data }
	want := data{"ATI_JWT_SECRET": testSecret, "ATI_JWT_AUDIENCE": "ati-proxy", "ATI_JWT_ACCEPTED_AUDIENCES": "ati-proxy", "ATI_JWT_ISSUER": "ati-orchestrator"}
	for _, path := range []string{"proxy-env", "proxy-env/1"} {
		if diff := cmp.Diff(want, read(path)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", path, diff)
		}
	}
	// An empty issuer would make the proxy reject every token that has one.
	m.ok(logical.UpdateOperation, "config", data{"audience": "a", "accepted_audiences": "b,a,c", "issuer": ""})
	want = data{"ATI_JWT_SECRET": testSecret, "ATI_JWT_AUDIENCE": "a", "ATI_JWT_ACCEPTED_AUDIENCES": "a,b,c"}
	m.equal("proxy-env", want, read("proxy-env"))
	for _, version := range []string{"2", "1234"} {
		m.refused(logical.ReadOperation, "proxy-env/"+version, nil, "key version "+version+" does not exist; available versions: 1")
	}
	for _, version := range []string{"x", "0", "01", "-1", ""} {
		if _, err := m.request(logical.ReadOperation, "proxy-env/"+version, nil); err != logical.ErrUnsupportedPath {
			t.Errorf("proxy-env/%s: %v", version, err)
		}
	}
	if log := m.log.String(); !strings.Contains(log, "proxy environment read: key_version=1") || strings.Contains(log, testSecret) {
		t.Errorf("the log is:\n%s", log)
	}
}

// TestProxyEnv_NeverHasEmptyValue checks that damaged storage is an error. With an
// empty value the proxy would accept unauthenticated requests.
func TestProxyEnv_NeverHasEmptyValue(t *testing.T) {
	t.Parallel()
	for _, damage := range []string{`"secret":"` + testSecret + `"`, `"audience":"ati-proxy"`} {
		m := configured(t, nil, nil)
		field, _, _ := strings.Cut(damage, ":")
		m.damage(damage, field+`:""`)
		if resp, err := m.request(logical.ReadOperation, "proxy-env", nil); err == nil {
			t.Errorf("with an empty %s: %v", field, resp.Data)
		}
	}
}
