package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"sync"
	"time"

	"github.com/hashicorp/vault/api"
	vegeta "github.com/tsenart/vegeta/v12/lib"
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
		if sc.method == "" {
			sc.method = http.MethodGet
		}
		if sc.response, err = s.request(ctx, sc); err != nil {
			return nil, fmt.Errorf("%s: %w", sc.name, err)
		}
	}
	echo, single := all[0].response, all[1].response
	if e, s := len(echo["token"].(string)), len(single["token"].(string)); e != s || len(echo) != len(single) {
		return nil, fmt.Errorf("the response of the echo plugin has %d fields and a token of %d bytes, that of the engine %d fields and %d bytes; update bench/echo", len(echo), e, len(single), s)
	}
	return all, nil
}

// fewRoles is the number of roles of the second largest mount.
func (o options) fewRoles() int { return o.roles / 100 }

// writeEngines mounts the engine and writes its roles.
func (w *writer) writeEngines(o options) {
	role := data{
		"tools": "web_search,github:*", "skills": "summarize", "scopes": "help", "rate": data{"tool:github:*": "10/hour"},
		"allowed_agent_ids": "sandbox:*", "subject": "sandbox:abc123",
	}
	with := func(field string, value any) data {
		d := maps.Clone(role)
		d[field] = value
		return d
	}
	for mount, algorithm := range map[string]string{"ati": "HS256", "ati-es256": "ES256", "ati-few": "HS256", "ati-many": "HS256"} {
		w.write("sys/mounts/"+mount, data{"type": engineName})
		w.write(mount+"/config", data{"proxy_url": "https://ati.example.com", "algorithm": algorithm})
		// The first role has the longest TTL, so that no later one raises the
		// maximum TTL that the engine stores.
		w.write(mount+"/roles/one", with("max_ttl", "24h"))
	}
	w.write("ati/roles/leased", with("generate_lease", true))
	w.write("ati/roles/identity", with("subject", "sandbox:{{identity.entity.name}}"))
	w.writeRoles("ati-few", o.fewRoles(), role)
	w.writeRoles("ati-many", o.roles, role)
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
	batch := func(name string, n int) *scenario {
		ids := make([]string, n)
		for i := range ids {
			ids[i] = fmt.Sprintf("sandbox:%06d", i)
		}
		return &scenario{name: name, method: http.MethodPut, path: fixed("ati/batch/one"), body: data{"agent_ids": ids}, tokens: n, plugin: engineName}
	}
	oneConnection := batch(batchScenario+", one connection", 1000)
	oneConnection.singleConnection = true
	return []*scenario{
		{name: echoScenario, path: fixed("echo/creds/one"), tokens: 1, plugin: echoName},
		{name: singleScenario, path: fixed("ati/creds/one"), tokens: 1, plugin: engineName},
		{name: bareScenario, path: fixed("echo/bare/one"), tokens: 1, plugin: echoName},
		{name: "narrowed", method: http.MethodPut, path: fixed("ati/creds/one"), body: data{"agent_id": "sandbox:000001", "tools": []string{"github:search"}, "ttl": "10m", "rate": data{"tool:github:*": "5/hour"}}, tokens: 1, plugin: engineName},
		{name: "identity template", path: fixed("ati/creds/identity"), tokens: 1, plugin: engineName},
		{name: "with lease", path: fixed("ati/creds/leased"), tokens: 1, plugin: engineName},
		{name: "ES256", path: fixed("ati-es256/creds/one"), tokens: 1, plugin: engineName},
		{name: "random role of " + thousands(o.fewRoles()), path: randomRole("ati-few", o.fewRoles()), tokens: 1, plugin: engineName},
		{name: "random role of " + thousands(o.roles), path: randomRole("ati-many", o.roles), tokens: 1, plugin: engineName},
		{name: "same role of " + thousands(o.roles), path: fixed("ati-many/creds/one"), tokens: 1, plugin: engineName},
		batch("batch of 10", 10),
		batch("batch of 100", 100),
		batch(batchScenario, 1000),
		oneConnection,
		{name: "kv read", path: fixed("kv/one")},
		{name: "Vault identity token (ES256)", path: fixed("identity/oidc/token/bench"), tokens: 1},
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
	if sc.method == http.MethodGet {
		secret, err = c.Logical().ReadWithContext(ctx, sc.path())
	} else {
		secret, err = c.Logical().WriteWithContext(ctx, sc.path(), sc.body)
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
	got.cpu = cpuTime{(after.plugin - before.plugin) / n, (after.vault - before.vault) / n}
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

// writeRoles writes n roles in parallel.
func (w *writer) writeRoles(mount string, n int, role data) {
	var wg sync.WaitGroup
	var mu sync.Mutex
	next := make(chan int)
	for range 16 {
		wg.Go(func() {
			one := &writer{ctx: w.ctx, c: w.c}
			for i := range next {
				one.write(fmt.Sprintf("%s/roles/r%06d", mount, i), role)
			}
			mu.Lock()
			defer mu.Unlock()
			w.err = errors.Join(w.err, one.err)
		})
	}
	for i := range n {
		next <- i
	}
	close(next)
	wg.Wait()
}
