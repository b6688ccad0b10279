package auth

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"math"
	"math/rand/v2"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/reply"
)

// GuardOptions of a Guard. The zero value works.
type GuardOptions struct {
	// Log gets a line for each login that failed; nil means slog.Default.
	Log *slog.Logger
	// Now is the clock; nil means time.Now.
	Now func() time.Time
	// UserFailures and NetworkFailures are how many failures a user and a client
	// network may have (0: 20 and 50), KnownFailures how many a user may have in a
	// network where he is known (0: 30).
	UserFailures, NetworkFailures, KnownFailures int
	// Window is the time in which as many failures as are allowed are forgotten,
	// evenly (0: an hour).
	Window time.Duration
	// Known is how long after his last login a user is known in a network
	// (0: 30 days), and KnownNetworks in how many (0: 16; the one that he used
	// longest ago is forgotten).
	Known         time.Duration
	KnownNetworks int
	// Delay is how long a first failure is held back (0: 1 s). It doubles with
	// each further one, up to MostDelay (0: 10 s), and is up to a quarter shorter
	// or longer.
	Delay, MostDelay time.Duration
	// Entries bounds the users, the networks and the known users that are
	// remembered, each (0: 65,536). An entry takes some 150 bytes, and a known
	// user as much for each of his networks.
	Entries int
}

// Guard stands before a Backend and makes guessing slow. It counts what failed,
// by user and by client network (a /32 of IPv4, a /64 of IPv6), and forgets it
// evenly in time. Who is over a limit is told to try later, without the backend
// being asked. Answers that follow failures are delayed.
//
// Nobody can lock a user out of a network that is known to be his: where he has
// logged in before, only what he himself failed there counts, neither what was
// guessed for him elsewhere nor what others of that network guess. What others
// can do is keep him from logging in from a network that is new, for as long as
// they go on guessing, and from any network just after a start of the daemon,
// because nothing of this is kept over a restart.
//
// Guesses made at the same time are counted before they are judged, so many
// connections give no more guesses than one; a login that would exceed a limit
// only because of others under way waits for them. A success does not wash off
// what was counted: somebody who has a valid account could guess at others.
// Trouble of the backend does not count, unless one backend of a Chain has said
// no.
//
// A table that is full forgets the least guilty of a few at random, so that a
// flood of fresh names or networks does not drive out those with many failures.
type Guard struct {
	backend Backend
	o       GuardOptions
	seed    maphash.Seed

	mu       sync.Mutex // guards what follows
	users    tallies[uint64]
	networks tallies[netip.Addr]
	known    map[uint64]*acquaintance
}

// acquaintance is where a user has logged in.
type acquaintance struct {
	networks []acquainted
}

type acquainted struct {
	network netip.Addr
	last    time.Time
	tally   *tally
}

// NewGuard guards a backend.
func NewGuard(b Backend, o GuardOptions) *Guard {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	orNumber(&o.UserFailures, 20)
	orNumber(&o.NetworkFailures, 50)
	orNumber(&o.KnownFailures, 30)
	orNumber(&o.KnownNetworks, 16)
	orNumber(&o.Entries, 1<<16)
	orTime(&o.Window, time.Hour)
	orTime(&o.Known, 30*24*time.Hour)
	orTime(&o.Delay, time.Second)
	orTime(&o.MostDelay, 10*time.Second)
	return &Guard{
		backend: b, o: o, seed: maphash.MakeSeed(), known: map[uint64]*acquaintance{},
		users:    tallies[uint64]{limit: o.UserFailures, window: o.Window, most: o.Entries, all: map[uint64]*tally{}},
		networks: tallies[netip.Addr]{limit: o.NetworkFailures, window: o.Window, most: o.Entries, all: map[netip.Addr]*tally{}},
	}
}

// Authenticate asks the backend, unless too much has failed before.
func (g *Guard) Authenticate(ctx context.Context, s *pipeline.Session, user, password string) (string, error) {
	network := networkOf(s.Peer.Addr())
	key := g.keyOf(user)
	marks, over, err := g.enter(ctx, key, network)
	if err != nil {
		return "", trouble(err)
	}
	if over != "" {
		err := fmt.Errorf("too many failures of this %s", over)
		g.log(ctx, s, user, network, "login not tried", err)
		g.wait(ctx, g.o.MostDelay/2)
		return "", trouble(err)
	}
	failed := false
	defer func() { g.leave(marks, failed) }() // also of a backend that panics
	name, err := g.backend.Authenticate(ctx, s, user, password)
	failed = errors.Is(err, ErrCredentials)
	switch {
	case err == nil:
		g.meet(key, network)
		return name, nil
	case !failed:
		g.log(ctx, s, user, network, "login could not be checked", err)
		return "", err
	}
	g.log(ctx, s, user, network, "login failed", err)
	level := g.leave(marks, true)
	marks = nil
	g.wait(ctx, g.delay(level))
	return "", err
}

// keyOf is what is remembered of a user's name: its hash, which is short, and
// which nobody can choose.
func (g *Guard) keyOf(user string) uint64 { return maphash.String(g.seed, strings.ToLower(user)) }

// enter counts an attempt before it is made. over says what has had too many
// failures, "" if nothing has.
func (g *Guard) enter(ctx context.Context, key uint64, network netip.Addr) (marks []*tally, over string, err error) {
	for {
		g.mu.Lock()
		now := g.o.Now()
		full, over := g.marks(&marks, key, network, now)
		if over != "" || full == nil {
			if over == "" {
				for _, t := range marks {
					t.pending++
				}
			}
			g.mu.Unlock()
			return marks, over, nil
		}
		freed := full.wait()
		g.mu.Unlock()
		select {
		case <-freed:
		case <-ctx.Done():
			return nil, "", fmt.Errorf("waiting for other logins: %w", ctx.Err())
		}
	}
}

// marks finds what an attempt counts for, what is over its limit, and what is
// full because of other attempts. The guard is locked.
func (g *Guard) marks(into *[]*tally, key uint64, network netip.Addr, now time.Time) (full *tally, over string) {
	if at := g.acquainted(key, network, now); at != nil {
		*into = append((*into)[:0], at.tally)
		free, over := at.tally.room(now, g.o.KnownFailures, g.o.Window)
		switch {
		case over:
			return nil, "user in this network"
		case !free:
			return at.tally, ""
		}
		return nil, ""
	}
	u, n := g.users.get(key, now), g.networks.get(network, now)
	*into = append((*into)[:0], u, n)
	userFree, userOver := u.room(now, g.users.limit, g.o.Window)
	networkFree, networkOver := n.room(now, g.networks.limit, g.o.Window)
	switch {
	case networkOver:
		return nil, "network"
	case userOver:
		return nil, "user"
	case !networkFree:
		return n, ""
	case !userFree:
		return u, ""
	}
	return nil, ""
}

// leave ends an attempt, and gives the most failures of those it counts for.
func (g *Guard) leave(marks []*tally, failed bool) (level float64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, t := range marks {
		t.leave()
		if failed {
			t.level++
		}
		level = max(level, t.level)
	}
	return level
}

// acquainted finds a user in a network. The guard is locked.
func (g *Guard) acquainted(key uint64, network netip.Addr, now time.Time) *acquainted {
	a := g.known[key]
	if a == nil {
		return nil
	}
	for i := range a.networks {
		if at := &a.networks[i]; at.network == network && now.Sub(at.last) < g.o.Known {
			return at
		}
	}
	return nil
}

// meet remembers that a user has logged in from a network.
func (g *Guard) meet(key uint64, network netip.Addr) {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := g.o.Now()
	if at := g.acquainted(key, network, now); at != nil {
		at.last = now
		return
	}
	a := g.known[key]
	if a == nil {
		a = &acquaintance{}
		if len(g.known) >= g.o.Entries {
			g.forgetSomebody()
		}
		g.known[key] = a
	}
	oldest, fresh := 0, acquainted{network: network, last: now, tally: &tally{at: now}}
	for i := range a.networks {
		if a.networks[i].network == network { // known too long ago
			a.networks[i] = fresh
			return
		}
		if a.networks[i].last.Before(a.networks[oldest].last) {
			oldest = i
		}
	}
	if len(a.networks) < g.o.KnownNetworks {
		a.networks = append(a.networks, fresh)
	} else {
		a.networks[oldest] = fresh
	}
}

// forgetSomebody makes room among the known users: of a few at random, the one
// whose last login is oldest goes. The guard is locked.
func (g *Guard) forgetSomebody() {
	var oldest uint64
	var when time.Time
	seen := 0
	for key, a := range g.known {
		var last time.Time
		for _, at := range a.networks {
			if at.last.After(last) {
				last = at.last
			}
		}
		if seen == 0 || last.Before(when) {
			oldest, when = key, last
		}
		if seen++; seen == sample {
			break
		}
	}
	delete(g.known, oldest)
}

// delay is how long the answer to a failure is held back.
func (g *Guard) delay(level float64) time.Duration {
	d := g.o.Delay
	// A moment's forgetting does not make two failures one.
	for level = math.Round(level); level >= 2 && d < g.o.MostDelay; level-- {
		d *= 2
	}
	return min(d, g.o.MostDelay)
}

// wait waits for about d, or until ctx ends.
func (g *Guard) wait(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d*3/4 + rand.N(d/2+1))
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

func (g *Guard) log(ctx context.Context, s *pipeline.Session, user string, network netip.Addr, what string, err error) {
	g.o.Log.WarnContext(ctx, what, "session", s.ID, "entrance", s.Entrance, "user", reply.Clean(user, 100),
		"peer", s.Peer.Addr().String(), "network", prefixOf(network).String(), "tls", s.TLS != "", "error", reply.Clean(err.Error(), 1000))
}

// The sizes of a client's network, in bits.
const (
	bits4 = 32
	bits6 = 64
)

// networkOf is the first address of a client's network; the zero Addr for a
// local client.
func networkOf(a netip.Addr) netip.Addr {
	a = a.Unmap().WithZone("")
	if !a.IsValid() {
		return a
	}
	return prefixOf(a).Masked().Addr()
}

func prefixOf(a netip.Addr) netip.Prefix {
	if a.Is4() {
		return netip.PrefixFrom(a, bits4)
	}
	return netip.PrefixFrom(a, bits6)
}
