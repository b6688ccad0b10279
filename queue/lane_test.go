package queue

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/quick"
	"time"

	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/queue/store"
)

func TestPlaceKey(t *testing.T) {
	for _, c := range []struct {
		name, lane, key string
	}{
		{"", "", ""},
		{"a.example", "", "a.example"},
		{"mx1.a.example,mx2.a.example", "", "mx1.a.example,mx2.a.example"},
		{"a.example", "pool-1", "a.example@pool-1"},
		{"", "pool-1", "@pool-1"},
		{"/run/lmtp@1/socket", "", "/run/lmtp@1/socket@"},
		{"/run/lmtp@1", "x", "/run/lmtp@1@x"},
	} {
		p := place{c.name, c.lane}
		if got := p.key(); got != c.key {
			t.Errorf("%+v: %q, want %q", p, got, c.key)
		}
		if got := placeOf(c.key); got != p {
			t.Errorf("%q: %+v, want %+v", c.key, got, p)
		}
	}
	if at := siteOf("a.example@pool-1", unlocated); at != (place{unlocated, "pool-1"}) {
		t.Errorf("who is not located yet is at %+v", at)
	}
	// Whatever a name holds, keys stay apart.
	back := func(name []byte, lane uint8) bool {
		for i := range name {
			name[i] = "ab.@/"[int(name[i])%5]
		}
		p := place{string(name), strings.Repeat("a", int(lane)%3)}
		return placeOf(p.key()) == p
	}
	if err := quick.Check(back, &quick.Config{MaxCount: 10_000}); err != nil {
		t.Error(err)
	}
}

// gate keeps lanes of sites out, and notes who asked.
type gate struct {
	mu    sync.Mutex
	shut  map[place]bool
	asked map[place]int
}

func (g *gate) admit(_ time.Time, site, lane string) (Leave, *Wait) {
	g.mu.Lock()
	defer g.mu.Unlock()
	at := place{site, lane}
	if g.asked == nil {
		g.asked = map[place]int{}
	}
	g.asked[at]++
	if g.shut[at] {
		return nil, &Wait{}
	}
	return nil, nil
}

func (g *gate) open(all ...place) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, at := range all {
		delete(g.shut, at)
	}
}

// bySender is the lane that a test's sender names in his domain, with that of a
// report in its origin: s@pool.lane.example leaves by pool.
func bySender(sender string, origin []byte) string {
	if len(origin) > 0 {
		return string(origin)
	}
	lane, _ := strings.CutSuffix(envelope.Domain(sender), ".lane.example")
	if lane == envelope.Domain(sender) {
		return ""
	}
	return lane
}

// inLanes has a queue with lanes, whose domains are all on one site.
func inLanes(g *gate) func(*Options) {
	return func(o *Options) {
		o.Lane = bySender
		o.Channels[0].Locate = func(context.Context, string) (string, error) { return "mx.example", nil }
		o.Channels[0].Admit = g.admit
	}
}

// TestLanesDoNotHoldEachOther keeps two of four lanes from a site.
func TestLanesDoNotHoldEachOther(t *testing.T) {
	g := &gate{shut: map[place]bool{{"mx.example", "b"}: true, {"mx.example", "c"}: true}}
	lanes := []string{"a", "b", "c", ""}
	bubble(t, inLanes(g), func(t *testing.T, r *rig) {
		by := map[string][]string{}
		r.exit.before = func(_ context.Context, j *Job) {
			r.exit.mu.Lock()
			defer r.exit.mu.Unlock()
			by[j.Lane] = append(by[j.Lane], j.Domain)
		}
		for _, lane := range lanes {
			sender := "s@" + lane + ".lane.example"
			if lane == "" {
				sender = "s@here.example"
			}
			for range 3 {
				r.submit(sender, "r@one.example", "r@two.example")
			}
		}
		pass(20 * time.Second)
		want := map[string][]string{}
		each := []string{"one.example", "one.example", "one.example", "two.example", "two.example", "two.example"}
		want["a"], want[""] = each, each
		sorted := func() map[string][]string {
			r.exit.mu.Lock()
			defer r.exit.mu.Unlock()
			for _, all := range by {
				slices.Sort(all)
			}
			return maps.Clone(by)
		}
		if got := sorted(); !maps.EqualFunc(got, want, slices.Equal) {
			t.Fatalf("delivered: %v", got)
		}
		for _, s := range r.Sites() {
			waits := s.Lane == "b" || s.Lane == "c"
			if s.Name != "mx.example" && s.Name != unlocated || s.Paced.IsZero() == waits || waits && (s.Queued != 6 || s.Domains != 2) {
				t.Errorf("%+v", s)
			}
		}
		if n := r.SiteOf("remote", "one.example"); n != "mx.example" {
			t.Errorf("one.example is at %q", n)
		}
		for _, v := range r.left() {
			if to := v.Recipients[1]; to.Site != "mx.example" || to.Lane != bySender(v.Envelope.Sender, nil) || to.Domain != "two.example" {
				t.Errorf("%s: %+v", v.Envelope.Sender, to)
			}
		}
		g.mu.Lock()
		asked := maps.Clone(g.asked)
		g.mu.Unlock()
		// One call wakes all lanes of the site, of which one is shut still.
		g.open(place{"mx.example", "b"})
		r.Admissible("mx.example")
		pass(0)
		want["b"] = each
		if got := sorted(); !maps.EqualFunc(got, want, slices.Equal) {
			t.Fatalf("delivered after the call: %v", got)
		}
		if n := g.asked[place{"mx.example", "c"}]; n != asked[place{"mx.example", "c"}]+1 {
			t.Errorf("the lane that is shut was asked for %d times, after %d", n, asked[place{"mx.example", "c"}])
		}
		g.open(place{"mx.example", "c"})
		r.Admissible("mx.example")
		pass(0)
		r.empty()
	})
}

// TestLanesMoveWithTheirSite changes where mail goes that waits in two lanes.
func TestLanesMoveWithTheirSite(t *testing.T) {
	var site atomic.Value
	site.Store("old.example")
	g := &gate{shut: map[place]bool{}}
	for _, s := range []string{"old.example", "new.example"} {
		for _, lane := range []string{"a", "b"} {
			g.shut[place{s, lane}] = true
		}
	}
	bubble(t, func(o *Options) {
		inLanes(g)(o)
		o.Channels[0].Locate = func(context.Context, string) (string, error) { return site.Load().(string), nil }
	}, func(t *testing.T, r *rig) {
		for range 4 {
			r.submit("s@a.lane.example", "r@moves.example")
			r.submit("s@b.lane.example", "r@moves.example", "q@moves.example")
		}
		pass(time.Second)
		count := func() map[place]int {
			all := map[place]int{}
			for _, s := range r.Sites() {
				if n := s.Queued + s.InFlight; n > 0 {
					all[place{s.Name, s.Lane}] = n
				}
			}
			return all
		}
		if got := count(); !maps.Equal(got, map[place]int{{"old.example", "a"}: 4, {"old.example", "b"}: 8}) {
			t.Fatalf("before: %v", got)
		}
		site.Store("new.example")
		pass(relocateAgain)
		// A domain is looked for when it is its turn: one lane's is, the other's not.
		g.open(place{"old.example", "a"})
		r.Admissible("old.example")
		pass(time.Second)
		if got := count(); !maps.Equal(got, map[place]int{{"new.example", "a"}: 4, {"old.example", "b"}: 8}) {
			t.Fatalf("one has moved: %v", got)
		}
		g.open(place{"old.example", "b"})
		r.Admissible("old.example")
		pass(time.Second)
		if got := count(); !maps.Equal(got, map[place]int{{"new.example", "a"}: 4, {"new.example", "b"}: 8}) {
			t.Fatalf("both have moved: %v", got)
		}
		if n := r.exit.deliveries(); n != 0 {
			t.Fatalf("%d were delivered by lanes that are shut", n)
		}
		g.open(place{"new.example", "a"}, place{"new.example", "b"})
		r.Admissible("new.example")
		pass(10 * time.Second)
		if n := r.exit.deliveries(); n != 12 {
			t.Errorf("%d of 12 delivered", n)
		}
		r.empty()
	})
}

// TestLanesWaitToBeLocatedTogether has all lanes share the stage for what is not
// located yet, and keep their lanes where that fails.
func TestLanesWaitToBeLocatedTogether(t *testing.T) {
	var looking, most atomic.Int32
	g := &gate{}
	bubble(t, func(o *Options) {
		inLanes(g)(o)
		o.Channels[0].Locate = func(_ context.Context, domain string) (string, error) {
			most.Store(max(most.Load(), looking.Add(1)))
			time.Sleep(time.Second)
			looking.Add(-1)
			if strings.Contains(domain, "@") {
				t.Errorf("asked where %s is", domain)
			}
			return "", errors.New("no name server")
		}
	}, func(t *testing.T, r *rig) {
		r.exit.before = func(_ context.Context, j *Job) {
			if j.Lane != bySender(j.Envelope.Sender, nil) {
				t.Errorf("mail from %s leaves by %q", j.Envelope.Sender, j.Lane)
			}
		}
		for i := range 150 {
			r.submit(fmt.Sprintf("s@l%d.lane.example", i%3), fmt.Sprintf("r@d%d.example", i))
		}
		pass(time.Minute)
		if n := most.Load(); n != 50 {
			t.Errorf("%d were looked for at a time", n)
		}
		if r.exit.deliveries() != 150 || len(g.asked) > 0 {
			t.Errorf("%d delivered, leave was asked for %v", r.exit.deliveries(), g.asked)
		}
		r.empty()
	})
}

// TestLanesAreFoundAgain after a restart, with what takes a message's place, with
// a report, and with one that was given up and let go.
func TestLanesAreFoundAgain(t *testing.T) {
	g := &gate{}
	bubble(t, func(o *Options) {
		inLanes(g)(o)
		o.Bounce.Origin = func() []byte { return []byte("reports") }
		o.Bounce.May = func(_ []byte, sender string) bool { return !strings.HasPrefix(sender, "stranger") }
	}, func(t *testing.T, r *rig) {
		var by sync.Map // lanes, by recipient
		r.exit.before = func(_ context.Context, j *Job) { by.Store(j.Envelope.Recipients[0].Address, j.Lane) }
		check := func(to, lane string) {
			t.Helper()
			if got, ok := by.LoadAndDelete(to); !ok || got != lane {
				t.Errorf("mail to %s left by %v, not %q", to, got, lane)
			}
		}
		r.exit.answer = func(_ *Job, to string) Result {
			switch {
			case strings.HasPrefix(to, "never"):
				return never
			case strings.HasPrefix(to, "later"):
				return later
			}
			return accepted
		}
		r.submit("s@a.lane.example", "later@one.example")
		r.submitAll(Submission{Envelope: envelope.To("s@a.lane.example", "later@two.example"), Origin: []byte("b")})
		pass(time.Second)
		check("later@one.example", "a")
		check("later@two.example", "b")

		r.close()
		r.open()
		r.Start()
		pass(time.Hour)
		check("later@one.example", "a")
		check("later@two.example", "b")

		held := r.quarantined("r@one.example")
		m, err := r.Content(held.ID)
		if err != nil {
			t.Fatal(err)
		}
		_, err = r.Replace(t.Context(), held, []Submission{{Envelope: envelope.To("t@c.lane.example", "r@one.example"), Message: m}}, "me")
		if err != nil {
			t.Fatal(err)
		}
		m.Body().Release() //nolint:errcheck // nothing depends on it
		pass(time.Second)
		check("r@one.example", "c")

		r.submit("s@a.lane.example", "never@one.example")
		pass(time.Second)
		check("never@one.example", "a")
		check("s@a.lane.example", "reports")

		id := r.submit("stranger@d.lane.example", "never@two.example")
		pass(time.Second)
		check("never@two.example", "d")
		check("postmaster@mx.here.example", "reports")
		if r.show(id).Hold == nil {
			t.Fatal("a message that is given up and must not be reported is not held")
		}
		if c, err := r.Release(t.Context(), Selection{IDs: []store.ID{id}}, "me"); err != nil || c.Messages != 1 {
			t.Fatal(c, err)
		}
		pass(time.Second)
		check("never@two.example", "d")

		id = r.submit("s@e.lane.example", "later@three.example")
		pass(time.Second)
		check("later@three.example", "e")
		one := Selection{IDs: []store.ID{id}}
		if _, err := r.Hold(t.Context(), one, store.Hold{Reason: "wait", By: "me"}); err != nil {
			t.Fatal(err)
		}
		if to := r.show(id).Recipients[0]; to.Lane != "e" || to.Site != "mx.example" {
			t.Errorf("held: %+v", to)
		}
		if _, err := r.Release(t.Context(), one, "me"); err != nil {
			t.Fatal(err)
		}
		if _, err := r.Retry(t.Context(), one, "me"); err != nil {
			t.Fatal(err)
		}
		pass(time.Second)
		check("later@three.example", "e")
		if err := r.Verify(t.Context(), func(p string) { t.Error(p) }); err != nil {
			t.Error(err)
		}
	})
}

// TestOnlyWayOutHasLanes: a channel that asks for no leave and knows no sites has
// none, and a lane with no possible name is none.
func TestOnlyWayOutHasLanes(t *testing.T) {
	g := &gate{}
	bubble(t, func(o *Options) {
		inLanes(g)(o)
		o.Channels = append(o.Channels, Channel{Name: "local", Exit: o.Channels[0].Exit})
		o.Route = func(address string) (string, string) {
			channel, domain := byDomain(address)
			if domain == "here.example" {
				channel = "local"
			}
			return channel, domain
		}
	}, func(t *testing.T, r *rig) {
		var by sync.Map
		r.exit.before = func(_ context.Context, j *Job) { by.Store(j.Domain, j.Lane) }
		r.submit("s@a.lane.example", "r@here.example", "r@one.example")
		r.submitAll(Submission{Envelope: envelope.To("", "r@two.example"), Origin: []byte("no@lane")})
		pass(time.Second)
		for domain, lane := range map[string]string{"here.example": "", "one.example": "a", "two.example": ""} {
			if got, ok := by.Load(domain); !ok || got != lane {
				t.Errorf("mail to %s left by %v, not %q", domain, got, lane)
			}
		}
		if !strings.Contains(r.log.String(), "fault in Postern") {
			t.Error("nobody was told of a lane that cannot be")
		}
		r.empty()
	})
}
