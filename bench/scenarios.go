package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
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
	name   string
	token  string
	method string
	path   func() string
	body   data
	tokens int    // in an answer
	alone  bool   // over one connection
	plugin string // whose process answers, if any
	answer data   // one of them
}

// sample is what a scenario did in a round.
type sample struct {
	requests float64 // per second
	tokens   float64 // per second
	p50, p99 time.Duration
	cpu      used // for each token, or each request where there is none
}

func fixed(path string) func() string { return func() string { return path } }

// setUp mounts everything, writes the roles, and returns the scenarios.
func (s *server) setUp(ctx context.Context, o options) ([]*scenario, error) {
	w := &writer{ctx: ctx, c: s.Client}
	for name, binary := range map[string]string{engineName: o.plugin, echoName: o.echo} {
		if err := s.register(ctx, name, binary); err != nil {
			return nil, err
		}
	}
	role := data{
		"tools": "web_search,github:*", "skills": "summarize", "scopes": "help", "rate": data{"tool:github:*": "10/hour"},
		"allowed_agent_ids": "sandbox:*", "subject": "sandbox:abc123",
	}
	with := func(more data) data {
		d := data{}
		for _, m := range []data{role, more} {
			for k, v := range m {
				d[k] = v
			}
		}
		return d
	}
	few := o.roles / 100
	for mount, algorithm := range map[string]string{"ati": "HS256", "ati-es256": "ES256", "ati-few": "HS256", "ati-many": "HS256"} {
		w.write("sys/mounts/"+mount, data{"type": engineName})
		w.write(mount+"/config", data{"proxy_url": "https://ati.example.com", "algorithm": algorithm})
		w.write(mount+"/roles/one", with(data{"max_ttl": "24h"})) // the longest, so that no other raises the bound
	}
	w.write("ati/roles/leased", with(data{"generate_lease": true}))
	w.write("ati/roles/identity", with(data{"subject": "sandbox:{{identity.entity.name}}"}))
	w.writeRoles("ati-few", few, with(nil))
	w.writeRoles("ati-many", o.roles, with(nil))
	w.write("sys/mounts/echo", data{"type": echoName})
	w.write("sys/mounts/kv", data{"type": "kv"})
	w.write("kv/one", data{"token": "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9"})
	w.write("sys/auth/userpass", data{"type": "userpass"})
	w.write("sys/policies/acl/bench", data{"policy": `path "*" { capabilities = ["create", "read", "update", "delete", "list", "sudo"] }`})
	w.write("auth/userpass/users/alice", data{"password": "x", "token_policies": "bench"})
	w.write("identity/oidc/key/bench", data{"algorithm": "ES256", "allowed_client_ids": "*"})
	w.write("identity/oidc/role/bench", data{"key": "bench", "ttl": "1h"})
	if w.err != nil {
		return nil, w.err
	}
	// One caller with an entity for all: what an identity costs is only what a
	// scenario makes of it.
	login, err := s.Logical().WriteWithContext(ctx, "auth/userpass/login/alice", data{"password": "x"})
	if err != nil {
		return nil, err
	}
	w.write("identity/entity/id/"+login.Auth.EntityID, data{"name": "alice"})
	if w.err != nil {
		return nil, w.err
	}

	batch := func(n int) data {
		ids := make([]string, n)
		for i := range ids {
			ids[i] = fmt.Sprintf("sandbox:%06d", i)
		}
		return data{"agent_ids": ids}
	}
	anyOf := func(mount string, n int) func() string {
		return func() string { return fmt.Sprintf("%s/creds/r%06d", mount, rand.IntN(n)) }
	}
	scenarios := []*scenario{
		{name: echoLabel, path: fixed("echo/creds/one"), tokens: 1, plugin: echoName},
		{name: singleName, path: fixed("ati/creds/one"), tokens: 1, plugin: engineName},
		{name: "narrowed", method: http.MethodPut, path: fixed("ati/creds/one"), body: data{"agent_id": "sandbox:000001", "tools": []string{"github:search"}, "ttl": "10m", "rate": data{"tool:github:*": "5/hour"}}, tokens: 1, plugin: engineName},
		{name: "with the entity's name", path: fixed("ati/creds/identity"), tokens: 1, plugin: engineName},
		{name: "leased", path: fixed("ati/creds/leased"), tokens: 1, plugin: engineName},
		{name: "ES256", path: fixed("ati-es256/creds/one"), tokens: 1, plugin: engineName},
		{name: fmt.Sprintf("any of %s roles", thousands(few)), path: anyOf("ati-few", few), tokens: 1, plugin: engineName},
		{name: fmt.Sprintf("any of %s roles", thousands(o.roles)), path: anyOf("ati-many", o.roles), tokens: 1, plugin: engineName},
		{name: "one beside " + thousands(o.roles) + " roles", path: fixed("ati-many/creds/one"), tokens: 1, plugin: engineName},
		{name: "batch of 10", method: http.MethodPut, path: fixed("ati/batch/one"), body: batch(10), tokens: 10, plugin: engineName},
		{name: "batch of 100", method: http.MethodPut, path: fixed("ati/batch/one"), body: batch(100), tokens: 100, plugin: engineName},
		{name: batchName, method: http.MethodPut, path: fixed("ati/batch/one"), body: batch(1000), tokens: 1000, plugin: engineName},
		{name: "batch of 1,000, over one connection", method: http.MethodPut, path: fixed("ati/batch/one"), body: batch(1000), tokens: 1000, plugin: engineName, alone: true},
		{name: "kv read", path: fixed("kv/one")},
		{name: "Vault's identity token (ES256)", path: fixed("identity/oidc/token/bench"), tokens: 1},
	}
	for _, sc := range scenarios {
		sc.token = login.Auth.ClientToken
		if sc.method == "" {
			sc.method = http.MethodGet
		}
		if sc.answer, err = s.try(ctx, sc); err != nil {
			return nil, fmt.Errorf("%s: %w", sc.name, err)
		}
	}
	echo, single := scenarios[0].answer, scenarios[1].answer
	if e, s := len(echo["token"].(string)), len(single["token"].(string)); e != s || len(echo) != len(single) {
		return nil, fmt.Errorf("the echo plugin's answer has %d fields and a token of %d bytes, and the engine's %d and %d: change bench/echo", len(echo), e, len(single), s)
	}
	return scenarios, nil
}

// try makes one request, and checks that its answer has what is counted.
func (s *server) try(ctx context.Context, sc *scenario) (data, error) {
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
		return nil, errors.New("there is no answer")
	}
	got := 0
	if _, ok := secret.Data["token"].(string); ok && sc.tokens > 0 {
		got = 1
	}
	if tokens, ok := secret.Data["tokens"].(map[string]any); ok {
		got = len(tokens)
	}
	if got != sc.tokens {
		return nil, fmt.Errorf("the answer has %d tokens, and not %d", got, sc.tokens)
	}
	return secret.Data, nil
}

// measure sends requests over all connections, one at a time on each, and
// counts the answers.
func (s *server) measure(ctx context.Context, sc *scenario, duration time.Duration) (sample, error) {
	var body []byte
	if sc.body != nil {
		var err error
		if body, err = json.Marshal(sc.body); err != nil {
			return sample{}, err
		}
	}
	header := http.Header{"X-Vault-Token": {sc.token}, "X-Vault-Request": {"true"}}
	workers := uint64(s.http.Transport.(*http.Transport).MaxConnsPerHost)
	if sc.alone {
		workers = 1
	}
	attacker := vegeta.NewAttacker(vegeta.Client(s.http), vegeta.Workers(workers), vegeta.MaxWorkers(workers), vegeta.MaxBody(1024)) // for an error's text
	targeter := func(t *vegeta.Target) error {
		t.Method, t.URL, t.Body, t.Header = sc.method, s.Address()+"/v1/"+sc.path(), body, header
		return nil
	}
	before, err := s.cpu(sc.plugin)
	if err != nil {
		return sample{}, err
	}
	var m vegeta.Metrics
	for res := range attacker.Attack(targeter, vegeta.ConstantPacer{}, duration, sc.name) {
		m.Add(res)
		if res.Code != http.StatusOK {
			attacker.Stop()
			err = fmt.Errorf("%s: status %d %s %s", sc.name, res.Code, res.Error, res.Body)
		}
		if ctx.Err() != nil {
			attacker.Stop()
			err = ctx.Err()
		}
	}
	if err != nil {
		return sample{}, err
	}
	m.Close()
	after, err := s.cpu(sc.plugin)
	if err != nil {
		return sample{}, err
	}
	// Throughput goes by the time until the last answer, which a batch takes a
	// while for.
	got := sample{requests: m.Throughput, tokens: m.Throughput * float64(sc.tokens), p50: m.Latencies.P50, p99: m.Latencies.P99}
	n := time.Duration(m.Requests) * time.Duration(max(sc.tokens, 1))
	got.cpu = used{(after.plugin - before.plugin) / n, (after.vault - before.vault) / n}
	return got, nil
}

// writer makes writes until one fails.
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

// writeRoles writes n roles, several at once.
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
