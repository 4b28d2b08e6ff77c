package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/hashicorp/vault/api"
	vegeta "github.com/tsenart/vegeta/v12/lib"
	"golang.org/x/sync/errgroup"
)

type data = map[string]any

// scenario is a kind of request.
type scenario struct {
	name             string
	token            string // Vault token
	method           string
	path             func() string
	body             data
	tokens           int // number of tokens in a response
	singleConnection bool
	plugin           string // plugin whose process handles the request, or ""
	to               string // scenario whose figure this one's is compared with, or ""
	response         data   // data of one response
}

// sample is the result of a scenario in one round.
type sample struct {
	requests float64 // per second
	tokens   float64 // per second
	p50, p99 time.Duration
	cpu      cpuTime // per token, or per request if there are no tokens
}

func fixed(path string) func() string { return func() string { return path } }

// randomRole returns a function that returns the creds path of a random role.
func randomRole(mount string, n int) func() string {
	return func() string { return fmt.Sprintf("%s/creds/r%06d", mount, rand.IntN(n)) }
}

// setUp writes everything that the scenarios need, and returns the scenarios.
func (s *server) setUp(ctx context.Context, o options) ([]*scenario, error) {
	for name, binary := range map[string]string{engineName: o.plugin, echoName: o.echo} {
		if err := s.register(ctx, name, binary); err != nil {
			return nil, err
		}
	}
	w := &writer{ctx: ctx, c: s.Client}
	w.writeEngines(o)
	w.writeOthers()
	if w.err != nil {
		return nil, w.err
	}
	// All scenarios use one caller with an entity, so that the cost of an identity
	// template is only the cost of evaluating it.
	login, err := s.Logical().WriteWithContext(ctx, "auth/userpass/login/alice", data{"password": "x"})
	if err != nil {
		return nil, err
	}
	w.write("identity/entity/id/"+login.Auth.EntityID, data{"name": "alice"})
	if w.err != nil {
		return nil, w.err
	}
	all := scenarios(o)
	for _, sc := range all {
		sc.token = login.Auth.ClientToken
		if sc.response, err = s.request(ctx, sc); err != nil {
			return nil, fmt.Errorf("%s: %w", sc.name, err)
		}
	}
	if err := s.warmRoles(ctx, all, o.roles); err != nil {
		return nil, err
	}
	echo, single := all[0].response, all[1].response
	if e, s := len(echo["token"].(string)), len(single["token"].(string)); e != s || len(echo) != len(single) {
		return nil, fmt.Errorf("the response of the echo plugin has %d fields and a token of %d bytes, that of the engine %d fields and %d bytes; update bench/echo", len(echo), e, len(single), s)
	}
	return all, nil
}

// fewRoles is the number of roles of the second largest mount.
func (o options) fewRoles() int { return o.roles / 100 }

func benchRole() data {
	return data{
		"tools": "web_search,github:*", "skills": "summarize", "scopes": "help", "rate": data{"tool:github:*": "10/hour"},
		"allowed_agent_ids": "sandbox:*", "subject": "sandbox:abc123",
	}
}

// writeEngines mounts the engine and writes its roles.
func (w *writer) writeEngines(o options) {
	with := func(field string, value any) data {
		role := benchRole()
		role[field] = value
		return role
	}
	for mount, algorithm := range map[string]string{"ati": "HS256", "ati-es256": "ES256", "ati-few": "HS256", "ati-many": "HS256"} {
		w.write("sys/mounts/"+mount, data{"type": engineName})
		w.write(mount+"/config", data{"proxy_url": "https://ati.example.com", "algorithm": algorithm})
		w.write(mount+"/roles/one", benchRole())
	}
	w.write("ati/roles/leased", with("generate_lease", true))
	w.write("ati/roles/identity", with("subject", "sandbox:{{identity.entity.name}}"))
	w.copyRole("ati-few", o.fewRoles())
	w.copyRole("ati-many", o.roles)
}

// writeOthers writes what the engine is compared with, and a user.
func (w *writer) writeOthers() {
	w.write("sys/mounts/echo", data{"type": echoName})
	w.write("sys/mounts/kv", data{"type": "kv"})
	w.write("kv/one", data{"token": "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9"})
	w.write("sys/auth/userpass", data{"type": "userpass"})
	w.write("sys/policies/acl/bench", data{"policy": `path "*" { capabilities = ["create", "read", "update", "delete", "list", "sudo"] }`})
	w.write("auth/userpass/users/alice", data{"password": "x", "token_policies": "bench"})
	w.write("identity/oidc/key/bench", data{"algorithm": "ES256", "allowed_client_ids": "*"})
	w.write("identity/oidc/role/bench", data{"key": "bench", "ttl": "1h"})
}

// scenarios returns the scenarios in the order of the report. The first two are
// those of the echo plugin and of single reads.
func scenarios(o options) []*scenario {
	one := func(name, path, plugin, to string) *scenario {
		return &scenario{name: name, method: http.MethodGet, path: fixed(path), tokens: 1, plugin: plugin, to: to}
	}
	narrowed := func(name, path, plugin, to string) *scenario {
		sc := one(name, path, plugin, to)
		sc.method, sc.body = http.MethodPut, data{"agent_id": "sandbox:000001", "tools": []string{"github:search"}, "ttl": "10m", "rate": data{"tool:github:*": "5/hour"}}
		return sc
	}
	batch := func(name string, n int, to string) *scenario {
		ids := make([]string, n)
		for i := range ids {
			ids[i] = fmt.Sprintf("sandbox:%06d", i)
		}
		return &scenario{name: name, method: http.MethodPut, path: fixed("ati/batch/one"), body: data{"agent_ids": ids}, tokens: n, plugin: engineName, to: to}
	}
	random := func(name, mount string, n int) *scenario {
		sc := one(name, "", engineName, sameScenario)
		sc.path = randomRole(mount, n)
		return sc
	}
	onConnection := func(sc *scenario) *scenario { sc.singleConnection = true; return sc }
	query := "?" + url.Values{"agent_id": {"sandbox:000001"}, "tools": {"github:search"}, "ttl": {"10m"}, "rate": {"tool:github:*=5/hour"}}.Encode()
	kv := one("kv read", "kv/one", "", "")
	kv.tokens = 0
	return []*scenario{
		one(echoScenario, "echo/creds/one", echoName, ""),
		one(singleScenario, "ati/creds/one", engineName, echoScenario),
		one(bareScenario, "echo/bare/one", echoName, echoScenario),
		one(queryScenario, "ati/creds/one"+query, engineName, singleScenario),
		narrowed("narrowed, POST", "ati/creds/one", engineName, bodyScenario),
		narrowed(bodyScenario, "echo/bare/one", echoName, echoScenario),
		one("identity template", "ati/creds/identity", engineName, singleScenario),
		one("ES256", "ati-es256/creds/one", engineName, singleScenario),
		one(leaseScenario, "ati/creds/leased", engineName, leasedScenario),
		one(leasedScenario, "echo/leased/one", echoName, echoScenario),
		random("random role, small mount", "ati-few", o.fewRoles()),
		random(randomScenario, "ati-many", o.roles),
		one(sameScenario, "ati-many/creds/one", engineName, singleScenario),
		batch("batch of 10", 10, singleScenario),
		batch("batch of 100", 100, singleScenario),
		batch(batchScenario, 1000, singleScenario),
		onConnection(batch(batchScenario+oneConnection, 1000, singleScenario+oneConnection)),
		onConnection(one(singleScenario+oneConnection, "ati/creds/one", engineName, "")),
		kv,
		one("identity token (ES256)", "identity/oidc/token/bench", "", echoScenario),
	}
}

// request sends one request and checks the number of tokens in the response.
func (s *server) request(ctx context.Context, sc *scenario) (data, error) {
	c, err := s.Clone()
	if err != nil {
		return nil, err
	}
	c.SetToken(sc.token)
	var secret *api.Secret
	if path, query, _ := strings.Cut(sc.path(), "?"); sc.method == http.MethodGet {
		var values url.Values
		if values, err = url.ParseQuery(query); err == nil {
			secret, err = c.Logical().ReadWithDataWithContext(ctx, path, values)
		}
	} else {
		secret, err = c.Logical().WriteWithContext(ctx, path, sc.body)
	}
	switch {
	case err != nil:
		return nil, err
	case secret == nil:
		return nil, errors.New("empty response")
	}
	got := 0
	if _, ok := secret.Data["token"].(string); ok && sc.tokens > 0 {
		got = 1
	}
	if tokens, ok := secret.Data["tokens"].(map[string]any); ok {
		got = len(tokens)
	}
	if got != sc.tokens {
		return nil, fmt.Errorf("the response has %d tokens, want %d", got, sc.tokens)
	}
	return secret.Data, nil
}

// measure measures a scenario for some time.
func (s *server) measure(ctx context.Context, sc *scenario, duration time.Duration) (sample, error) {
	var body []byte
	if sc.body != nil {
		var err error
		if body, err = json.Marshal(sc.body); err != nil {
			return sample{}, err
		}
	}
	header := http.Header{"X-Vault-Token": {sc.token}, "X-Vault-Request": {"true"}}
	connections := s.connections
	if sc.singleConnection {
		connections = 1
	}
	before, err := s.cpu(sc.plugin)
	if err != nil {
		return sample{}, err
	}
	m, err := attack(ctx, s.http, connections, duration, func(t *vegeta.Target) error {
		t.Method, t.URL, t.Body, t.Header = sc.method, s.Address()+"/v1/"+sc.path(), body, header
		return nil
	})
	if err != nil {
		return sample{}, fmt.Errorf("%s: %w", sc.name, err)
	}
	after, err := s.cpu(sc.plugin)
	if err != nil {
		return sample{}, err
	}
	// Throughput includes the time until the last response, which matters for
	// batches.
	got := sample{requests: m.Throughput, tokens: m.Throughput * float64(sc.tokens), p50: m.Latencies.P50, p99: m.Latencies.P99}
	n := time.Duration(m.Requests) * time.Duration(max(sc.tokens, 1))
	got.cpu = cpuTime{(after.plugin - before.plugin) / n, (after.server - before.server) / n}
	return got, nil
}

// attack sends requests over a number of connections, one at a time on each.
func attack(ctx context.Context, client *http.Client, connections int, duration time.Duration, targeter vegeta.Targeter) (*vegeta.Metrics, error) {
	workers := uint64(connections)
	attacker := vegeta.NewAttacker(vegeta.Client(client), vegeta.Workers(workers), vegeta.MaxWorkers(workers), vegeta.MaxBody(1024)) // enough for the text of an error
	m := new(vegeta.Metrics)
	var err error
	for res := range attacker.Attack(targeter, vegeta.ConstantPacer{}, duration, "") {
		m.Add(res)
		if res.Code != http.StatusOK {
			attacker.Stop()
			err = fmt.Errorf("status %d %s %s", res.Code, res.Error, res.Body)
		}
		if ctx.Err() != nil {
			attacker.Stop()
			err = ctx.Err()
		}
	}
	m.Close()
	return m, err
}

// writer writes to Vault. After an error it does nothing.
type writer struct {
	ctx context.Context
	c   *api.Client
	err error
}

func (w *writer) write(path string, d data) {
	if w.err != nil {
		return
	}
	if _, err := w.c.Logical().WriteWithContext(w.ctx, path, d); err != nil {
		w.err = fmt.Errorf("write %s: %w", path, err)
	}
}

// copyRole stores copies of the role "one" of a mount. A request to the engine for each
// would take several minutes.
func (w *writer) copyRole(mount string, n int) {
	if w.err != nil {
		return
	}
	mounts, err1 := w.c.Sys().ListMountsWithContext(w.ctx)
	if err1 != nil {
		w.err = err1
		return
	}
	path := "sys/raw/logical/" + mounts[mount+"/"].UUID + "/role/"
	stored, err := w.c.Logical().ReadWithContext(w.ctx, path+"one")
	if err != nil || stored == nil {
		w.err = fmt.Errorf("read the stored role of %s: %v, %w", mount, stored, err)
		return
	}
	w.err = each(n, 32, func(i int) error {
		_, err := w.c.Logical().WriteWithContext(w.ctx, fmt.Sprintf("%sr%06d", path, i), data{"value": stored.Data["value"]})
		return err
	})
}

// warmRoles mints a token of each role of the largest mount, so that its roles are in memory.
func (s *server) warmRoles(ctx context.Context, all []*scenario, n int) error {
	same := all[slices.IndexFunc(all, func(sc *scenario) bool { return sc.name == sameScenario })]
	return each(n, s.connections, func(i int) error {
		sc := *same
		sc.path = fixed(fmt.Sprintf("ati-many/creds/r%06d", i))
		_, err := s.request(ctx, &sc)
		return err
	})
}

// each calls f with 0 to n-1, some at a time, until a call fails.
func each(n, parallel int, f func(i int) error) error {
	var group errgroup.Group
	group.SetLimit(parallel)
	var failed atomic.Bool
	for i := 0; i < n && !failed.Load(); i++ {
		group.Go(func() error {
			err := f(i)
			if err != nil {
				failed.Store(true)
			}
			return err
		})
	}
	return group.Wait()
}
