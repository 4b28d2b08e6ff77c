//go:build interop

package test

import (
	"errors"
	"net/http"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"
)

// scheduledRenewal is when a client renews its token, so that it has time to retry.
const scheduledRenewal = 12 * time.Second

// earlyRenewer renews its token in the background, long before it expires. It keeps its token
// while no mint succeeds, and goes on to the next node.
type earlyRenewer struct {
	nodes  []*api.Client
	mu     sync.Mutex
	token  string
	latest int // version of the token's key
	minted map[int]int
	failed int
}

// startEarlyRenewer starts a client that renews its first token after a time.
func startEarlyRenewer(t testing.TB, first time.Duration, nodes ...*server) *earlyRenewer {
	t.Helper()
	r := &earlyRenewer{minted: map[int]int{}}
	for _, s := range nodes {
		client := s.client(s.root)
		client.SetClientTimeout(clusterTimeout)
		r.nodes = append(r.nodes, client)
	}
	poll(t, "the first token", r.renew)
	stop, stopped := make(chan struct{}), make(chan struct{})
	t.Cleanup(func() { close(stop); <-stopped })
	go func() {
		defer close(stopped)
		for wait := first; ; {
			select {
			case <-stop:
				return
			case <-time.After(wait):
			}
			if wait = scheduledRenewal; r.renew() != nil {
				wait = 200 * time.Millisecond
			}
		}
	}()
	return r
}

func (r *earlyRenewer) renew() error {
	token, version, err := mintVersion(r.nodes[0])
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil {
		r.failed++
		r.nodes = append(r.nodes[1:], r.nodes[0])
		return err
	}
	r.token, r.latest = token, version
	r.minted[version]++
	return nil
}

func (r *earlyRenewer) current() (token string, version int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.token, r.latest
}

// scheduledLoad is clients, spread over guards, that know nothing of a rotation.
type scheduledLoad struct {
	rotationLoad
	renewers []*earlyRenewer
}

func startScheduledLoad(t testing.TB, pause time.Duration, guards []*guard, nodes ...*server) *scheduledLoad {
	t.Helper()
	l := &scheduledLoad{rotationLoad: rotationLoad{t: t}}
	for i := range rotationClients {
		client := startEarlyRenewer(t, scheduledRenewal*time.Duration(i+1)/rotationClients, nodes...)
		l.renewers, l.clients = append(l.renewers, client), append(l.clients, client)
		l.loads = append(l.loads, guards[i%len(guards)].startPacedLoad(1, pause, func() string { token, _ := client.current(); return token }))
	}
	return l
}

// mints returns the number of minted tokens by version, and of failed mints.
func (l *scheduledLoad) mints() (minted map[int]int, failed int) {
	minted = map[int]int{}
	for _, r := range l.renewers {
		r.mu.Lock()
		failed += r.failed
		for version, n := range r.minted {
			minted[version] += n
		}
		r.mu.Unlock()
	}
	return minted, failed
}

// cut ends the connections of requests for the relay's path.
func (r *relay) cut() {
	r.faultWith(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
}

func (r *relay) restore() { r.fault.Store(nil) }

// startGuardBehind starts a guard that reads Vault through a relay.
func (s *server) startGuardBehind(t testing.TB, next func() *server) (*guard, *relay) {
	t.Helper()
	r := startRelay(t, "/v1/ati/guard", next)
	g := s.newGuard(t, nil)
	g.behind(r)
	g.start()
	g.waitUntilReady()
	return g, r
}

// TestGuardRotation_Automatic lets a key rotate automatically behind three guards, while eight
// clients, which know nothing of it, call a tool continuously and renew their tokens. One of
// the guards does not reach Vault for half of the overlap. No call is rejected. A fourth guard
// does not reach Vault until the rotation is over: it rejects new tokens until then, with a
// status that makes a load balancer try the next guard. Run by make rotation.
func TestGuardRotation_Automatic(t *testing.T) {
	t.Parallel()
	for _, algorithm := range []string{"HS256", "ES256"} {
		t.Run(algorithm, func(t *testing.T) { t.Parallel(); testAutomaticRotation(t, algorithm) })
	}
}

func testAutomaticRotation(t *testing.T, algorithm string) {
	s := launch(t, "info", `storage "inmem" {}`, nil, shortRotation)
	s.initialize()
	s.mountScheduled(algorithm)
	s.enableGuards()
	self := func() *server { return s }
	late, lateVault := s.startGuardBehind(t, self)
	lost, lostVault := s.startGuardBehind(t, self)
	guards := []*guard{s.startGuard(t, nil), s.startGuard(t, nil), late}
	load := startScheduledLoad(t, 1500*time.Millisecond, guards, s)
	before := s.waitForScheduled("before", func(scheduledKey) bool { return true })
	if want := before.currentAt.Add(scheduledPeriod); !before.nextRotation.Equal(want) || before.status != "scheduled" || before.algorithm != algorithm {
		t.Errorf("algorithm %s; want %s, scheduled, with the next rotation at %v", before.algorithm, algorithm, want)
	}

	lostVault.cut()
	pending := s.waitForScheduled("version 2 is pending", func(k scheduledKey) bool { return k.Pending == 2 })
	lateVault.cut()
	late.waitForFailedReads(1)
	time.Sleep(scheduledOverlap / 2)
	lateVault.restore()
	late.waitForReads(1)
	if now, err := s.scheduledKey(); err != nil || now != pending {
		t.Errorf("%v after half of the overlap: %v, want %v", err, now, pending)
	}

	// The last token before the activation, and the first one after it.
	var oldToken, newToken string
	client := s.client(s.root)
	pollFor(t, 4*time.Minute, "version 2 signs tokens", func() error {
		token, version, err := mintVersion(client)
		if err != nil {
			t.Fatal(err)
		}
		if version == 1 {
			oldToken = token
			return errors.New("version 1 does")
		}
		newToken = token
		return nil
	})
	for _, g := range guards {
		g.expect("the new key", newToken, http.StatusOK)
	}
	after := s.waitForScheduled("version 2 is current", func(k scheduledKey) bool { return k.Current == 2 })
	status, body := lost.call(newToken, "web_search")
	t.Logf("the guard that has not reached Vault since before version 2 was pending returns %d %q for a new token", status, body)
	if status != http.StatusServiceUnavailable {
		t.Errorf("it must return %d", http.StatusServiceUnavailable)
	}
	lost.expect("without Vault, an old token", oldToken, http.StatusOK)
	lostVault.restore()
	t.Logf("that guard accepts a new token %v after it reaches Vault again", lost.until("Vault again, a new token", newToken, http.StatusOK))
	lost.expect("Vault again, an old token", oldToken, http.StatusOK)

	if after.versions != (versions{Current: 2, Previous: 1, Retired: true}) || after.algorithm != algorithm || after.status != "scheduled" || !after.nextRotation.Equal(after.currentAt.Add(scheduledPeriod)) {
		t.Errorf("after the rotation: %+v", after)
	}
	if after.currentAt.Before(before.nextRotation) || after.currentAt.Before(pending.pendingSince.Add(scheduledOverlap)) || pending.pendingSince.Before(before.nextRotation.Add(-scheduledOverlap)) {
		t.Errorf("version 2 was pending or current too early: before %v; then %v; after %v", before, pending, after)
	}
	load.waitForVersion("version 2", 2)
	load.waitForCalls(5)
	minted, failed := load.mints()
	t.Logf("tokens by version of the key: %v; %d mints failed", minted, failed)
	load.expectNoFailure(algorithm+", rotated automatically", 500)
}

// TestRotationSoak_Automatic leaves a key alone on a cluster of three nodes, behind two guards
// and under load, while leaders are killed, plugin processes are killed, and a leader is
// paused. The key rotates on time, and no call is rejected. Run by make soak.
func TestRotationSoak_Automatic(t *testing.T) {
	if !soaking {
		t.Log("not run: it takes 40 minutes, and is part of make soak")
		return
	}
	minutes := rounds(t, "SOAK_MINUTES", 40, 40)
	c := startFirstNode(t, nil, shortRotation)
	c.first.mountScheduled("HS256")
	c.first.enableGuards()
	c.join(nil)
	c.join(nil)

	var front atomic.Pointer[server] // what guards reach
	front.Store(c.leader())
	var guards []*guard
	for range 2 {
		g, _ := c.first.startGuardBehind(t, front.Load)
		guards = append(guards, g)
	}
	load := startScheduledLoad(t, time.Second, guards, c.nodes...)
	watch := c.watchSchedule()

	kills, pluginKills, began := 0, 0, time.Now()
	for minute := 1; minute < minutes; minute++ {
		time.Sleep(time.Until(began.Add(time.Duration(minute) * time.Minute)))
		calls, failed := load.total()
		t.Logf("%s: minute %d: %d calls, %d failed; %v", clock(time.Now()), minute, calls, failed, watch.last())
		switch leader := c.leader(); {
		case minute == minutes/2+1:
			watch.ignore(leader)
			leader.signal(syscall.SIGSTOP)
			resume := time.Now().Add(20 * time.Second)
			front.Store(c.leader(leader))
			time.Sleep(time.Until(resume))
			leader.signal(syscall.SIGCONT)
			t.Logf("%s: the leader was paused for 20s", clock(time.Now()))
			time.Sleep(2 * clusterTimeout) // until it has noticed that it is no longer the leader
			watch.ignore(nil)
		case minute%5 == 3:
			kills++
			leader.kill()
			killed := time.Now()
			front.Store(c.leader(leader))
			t.Logf("%s: the leader was killed; the next one was elected after %v", clock(killed), time.Since(killed).Round(100*time.Millisecond))
			leader.restart()
			leader.unsealInCluster()
		case minute%5 == 1:
			pluginKills++
			for _, pid := range leader.pluginProcesses() {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
			t.Logf("%s: the plugin of the leader was killed", clock(time.Now()))
		}
	}
	time.Sleep(time.Until(began.Add(time.Duration(minutes) * time.Minute)))

	rotations := watch.end()
	minted, failed := load.mints()
	t.Logf("in %v: %d rotations; %d leaders and %d plugins killed; tokens by version of the key: %v; %d mints failed", time.Since(began).Round(time.Second), len(rotations), kills, pluginKills, minted, failed)
	for _, k := range rotations {
		t.Log(k)
	}
	if len(rotations) < minutes/5 {
		t.Errorf("%d rotations, want at least %d", len(rotations), minutes/5)
	}
	load.expectNoFailure("rotated automatically, with faults", 250*minutes)
}

// scheduleWatch reads the versions of the key continuously.
type scheduleWatch struct {
	c       *cluster
	stop    chan struct{}
	stopped chan struct{}
	mu      sync.Mutex
	now     scheduledKey
	ignored *server
	changes []scheduledKey // after each rotation
}

// watchSchedule fails the test if the versions change in another way than by an automatic
// rotation.
func (c *cluster) watchSchedule() *scheduleWatch {
	c.t.Helper()
	w := &scheduleWatch{c: c, stop: make(chan struct{}), stopped: make(chan struct{})}
	poll(c.t, "the first versions", func() (err error) { w.now, err = c.leader().scheduledKey(); return err })
	go func() {
		defer close(w.stopped)
		for i := 0; ; i++ {
			select {
			case <-w.stop:
				return
			case <-time.After(500 * time.Millisecond):
			}
			w.read(c.nodes[i%len(c.nodes)])
		}
	}()
	c.t.Cleanup(func() { w.end() })
	return w
}

// ignore makes the watch leave out a node, which may not know that it is no longer the leader.
func (w *scheduleWatch) ignore(s *server) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ignored = s
}

func (w *scheduleWatch) read(s *server) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if s == w.ignored {
		return
	}
	k, err := s.scheduledKey()
	if err != nil || k == w.now {
		return // an error during an election
	}
	before := w.now.versions
	w.now = k
	if k.Current == before.Current+1 {
		w.changes = append(w.changes, k)
		w.c.t.Logf("%s: %v", clock(time.Now()), k)
	}
	// A read in the minute in which a version is pending may be missed.
	if k.Current < before.Current || k.Current > before.Current+1 || k.Pending != 0 && k.Pending != k.Current+1 || k.Previous != 0 && (k.Previous != k.Current-1 || !k.Retired) {
		w.c.t.Errorf("%s: %+v after %+v", clock(time.Now()), k, before)
	}
}

func (w *scheduleWatch) last() scheduledKey {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.now
}

// end ends the watch, and returns the versions after each rotation.
func (w *scheduleWatch) end() []scheduledKey {
	select {
	case <-w.stop:
	default:
		close(w.stop)
	}
	<-w.stopped
	return w.changes
}
