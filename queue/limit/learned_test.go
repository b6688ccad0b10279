package limit

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"reflect"
	"testing"
	"time"
)

// restarted is a gate that goes on with what another one had learned, by way of
// a record.
func restarted(t *testing.T, now time.Time, g *Gate) *Gate {
	t.Helper()
	var b bytes.Buffer
	r := Record{Time: now, Learned: g.Export(now, 1000), Blocks: g.Blocks(now), Used: g.ExportUsed(now), Held: g.Held(now)}
	if err := r.Write(&b); err != nil {
		t.Fatal(err)
	}
	got, err := ReadRecord(&b)
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Learned) != len(r.Learned) || len(got.Held) != len(r.Held) || !got.Time.Equal(now) {
		t.Fatalf("%d and %d became %d and %d", len(r.Learned), len(r.Held), len(got.Learned), len(got.Held))
	}
	next := New(g.o)
	if n := next.Import(now, got.Time, got.Learned); n != len(r.Learned) {
		t.Fatalf("of %d sites %d were taken in: %+v", len(r.Learned), n, r.Learned)
	}
	if n := next.ImportBlocks(now, got.Time, got.Blocks); n != len(r.Blocks) {
		t.Fatalf("of %d blocks %d were taken in", len(r.Blocks), n)
	}
	if n := next.ImportUsed(now, got.Used); n != len(r.Used) {
		t.Fatalf("of %d budgets %d were taken in", len(r.Used), n)
	}
	if n := next.Restore(now, got.Held); n != len(r.Held) {
		t.Fatalf("of %d words %d were taken in", len(r.Held), n)
	}
	return next
}

// player does the same at random to gates, one of them or several, and says what
// came of it.
type player struct {
	rng  *rand.Rand
	now  time.Time
	open []*played
}

type played struct {
	tickets   []*Ticket
	site      string
	accepted  bool
	messaging bool
}

// playedProviders has two sites of one provider.
var playedProviders = map[string]string{"s0": "big", "s1": "big"}

var playedAnswers = []Answer{
	{Code: 421, Enhanced: "4.7.0", Text: "Too many concurrent connections from your address", Early: true},
	{Code: 421, Enhanced: "4.7.0", Text: "Too many concurrent connections from your address"},
	{Code: 451, Enhanced: "4.7.1", Text: "Message rate limit exceeded, try later"},
	{Code: 450, Enhanced: "4.2.0", Text: "greylisted, come back in five minutes"},
	{Code: 421, Text: "service shutting down"},
	{Code: 421, Enhanced: "4.7.0", Text: "[TSS04] Messages temporarily deferred due to user complaints"},
}

// step does one thing to all gates; what differs is an error.
func (p *player) step(gates []*Gate) error {
	switch k := p.any(); {
	case p.rng.IntN(4) == 0 || k == nil:
		return p.opens(gates)
	case !k.accepted && p.rng.IntN(8) > 0:
		k.accepted = true
		k.each(func(t *Ticket) { t.Greeted(p.now) })
	case !k.accepted:
		k.each(func(t *Ticket) { t.Unreachable(p.now, "no route") })
		p.close(k)
	case !k.messaging:
		var said []string
		k.each(func(t *Ticket) { said = append(said, text(t.Message(p.now, 1))) })
		if err := same(said); err != nil {
			return fmt.Errorf("a message: %w", err)
		}
		k.messaging = said[0] == ""
		if !k.messaging {
			p.close(k)
		}
	case p.rng.IntN(12) > 0:
		k.messaging = false
		k.each(func(t *Ticket) { t.Taken(p.now) })
	default:
		a := playedAnswers[p.rng.IntN(len(playedAnswers))]
		k.messaging = false
		k.each(func(t *Ticket) { t.Said(p.now, a) })
		p.close(k)
	}
	return nil
}

func (p *player) opens(gates []*Gate) error {
	k := &played{site: fmt.Sprint("s", p.rng.IntN(3))}
	var said []string
	for _, g := range gates {
		t, no := g.Open(p.now, Path{Site: k.site, Source: "us", Provider: playedProviders[k.site]})
		said = append(said, text(no))
		k.tickets = append(k.tickets, t)
	}
	if said[0] == "" {
		p.open = append(p.open, k)
	}
	return same(said)
}

func (p *player) any() *played {
	if len(p.open) == 0 {
		return nil
	}
	return p.open[p.rng.IntN(len(p.open))]
}

func (p *player) close(k *played) {
	k.each(func(t *Ticket) { t.Close(p.now) })
	for i := range p.open {
		if p.open[i] == k {
			p.open = append(p.open[:i], p.open[i+1:]...)
			return
		}
	}
}

func (k *played) each(f func(*Ticket)) {
	for _, t := range k.tickets {
		f(t)
	}
}

func text(no *Refusal) string {
	if no == nil {
		return ""
	}
	return fmt.Sprintf("%v until %d", no, nanos(no.Until))
}

func same(said []string) error {
	for _, s := range said {
		if s != said[0] {
			return fmt.Errorf("one says %q and one %q", said[0], s)
		}
	}
	return nil
}

// TestLearnedGoesOnAsBefore: a gate with what another one had learned does what that
// one does, whatever comes.
func TestLearnedGoesOnAsBefore(t *testing.T) {
	classes, err := ShippedClasses()
	if err != nil {
		t.Fatal(err)
	}
	bounds := func(k Key) Bounds {
		if k.Level == Site {
			return Bounds{Connections: 30, NewConnections: Rate{Count: None}, Messages: Rate{Count: None}}
		}
		return Bounds{}
	}
	learned, seeds := 0, 500
	if raceDetector {
		seeds = 50
	}
	for seed := range uint64(seeds) {
		p := &player{rng: rand.New(rand.NewPCG(seed, 1)), now: start}
		g := New(Options{Classes: classes, Bounds: bounds})
		pass := func() {
			switch p.rng.IntN(40) {
			case 0:
				p.now = p.now.Add(time.Duration(p.rng.IntN(int(10 * time.Minute))))
			default:
				p.now = p.now.Add(time.Duration(p.rng.IntN(int(3 * time.Second))))
			}
		}
		for range p.rng.IntN(1500) {
			if err := p.step([]*Gate{g}); err != nil {
				t.Fatal(err)
			}
			pass()
		}
		for len(p.open) > 0 {
			p.close(p.open[0])
		}
		pass()
		other := restarted(t, p.now, g)
		learned += len(other.controls)
		for k, c := range g.controls { // of which there is nothing to know
			if other.controls[k] == nil {
				if c.weight(p.now) != 0 {
					t.Fatalf("seed %d: %v is not exported", seed, k)
				}
				delete(g.controls, k)
			}
		}
		for i := range 600 {
			if err := p.step([]*Gate{g, other}); err != nil {
				t.Fatalf("seed %d, step %d after the restart: %v", seed, i, err)
			}
			pass()
			g.Sweep(p.now)
			other.Sweep(p.now)
		}
		if a, b := plain(g.Sites(p.now)), plain(other.Sites(p.now)); !reflect.DeepEqual(a, b) {
			t.Fatalf("seed %d:\n%+v\n%+v", seed, a, b)
		}
	}
	if learned < seeds {
		t.Errorf("only %d sites were learned: this tests nothing", learned)
	}
}

// plain is what sites are, without their moves, of which only a few are kept, and
// with times in UTC.
func plain(all []SiteState) []SiteState {
	for i := range all {
		c := &all[i].Control
		c.Moves, c.ProbeAt, c.Since, c.Until, c.Said.Time = nil, utc(c.ProbeAt), utc(c.Since), utc(c.Until), utc(c.Said.Time)
	}
	return all
}

// restart ends all connections, and goes on with another gate.
func (w *world) restart(down time.Duration) {
	parallel := w.parallel
	w.parallel = 0
	for w.opened > 0 {
		w.run(time.Second)
	}
	was := w.gate
	w.gate = restarted(w.t, w.now, was)
	w.now = w.now.Add(down)
	w.parallel, w.blocked, w.again = parallel, false, time.Time{}
}

// TestRestartKeepsHiddenLimits restarts a sender that has found out how much a server
// takes: it is refused no more often than if it had gone on.
func TestRestartKeepsHiddenLimits(t *testing.T) {
	for _, c := range few(
		hidden{connections: 12},
		hidden{connections: 1},
		hidden{perSecond: 3, burst: 6},
	) {
		w := newWorld(t, 100, &c)
		w.run(20 * time.Minute)
		found := w.control()
		for range 6 {
			w.restart(20 * time.Second)
			w.run(5 * time.Minute)
		}
		from := w.now.Add(-30 * time.Minute)
		n, most := w.refusedSince(from)
		s := w.control()
		t.Logf("%+v: limit %d, rate %.2f; after six restarts %d and %.2f, with %d refusals", c, found.Limit, found.Rate, s.Limit, s.Rate, n)
		if c.connections > 0 && (most > 1 || !near(s.Limit, c.connections)) {
			t.Errorf("limit %d, and %d refusals within ten minutes", s.Limit, most)
		}
		if c.perSecond > 0 && (s.Rate == 0 || most > 1) {
			t.Errorf("rate %v, and %d refusals within ten minutes", s.Rate, most)
		}
	}
}

// TestRestartKeepsSuspensions: who has blocked us hears nothing of a restart.
func TestRestartKeepsSuspensions(t *testing.T) {
	classes, err := ShippedClasses()
	if err != nil {
		t.Fatal(err)
	}
	g := New(Options{Classes: classes})
	p := Path{Site: "x", Source: "us"}
	k, no := g.Open(start, p)
	if no != nil {
		t.Fatal(no)
	}
	k.Said(start, playedAnswers[5])
	k.Close(start)
	g.Suspend(start, Key{Provider, "big"}, time.Time{}, "they asked us to")
	g.Set(start, Key{Group, "slow"}, Bounds{Connections: 1, Messages: Rate{Count: None}, NewConnections: Rate{Count: 3, Per: time.Minute}}, start.Add(3*time.Hour), "for a while")
	g.Suspend(start, Key{Site, "y"}, start.Add(time.Minute), "soon over")
	now := start.Add(30 * time.Minute)
	held := g.Held(now)
	g = restarted(t, now, g)
	if got := g.Held(now); len(got) != 2 || !reflect.DeepEqual(got, held) {
		t.Errorf("%+v, want %+v", got, held)
	}
	if s := g.Sites(now); len(s) != 1 || len(s[0].Control.Moves) != 1 || s[0].Control.Moves[0].What != "suspended" {
		t.Errorf("%+v", s)
	}
	if no := g.Suspended(start.Add(2*time.Hour-1), p); no == nil || !no.Until.Equal(start.Add(2*time.Hour)) || no.Why == "" {
		t.Errorf("%+v", no)
	}
	if no := g.Suspended(start.Add(2*time.Hour), p); no != nil {
		t.Errorf("after the pause: %v", no)
	}
	if no := g.Suspended(start.Add(1000*time.Hour), Path{Site: "z", Provider: "big"}); no == nil {
		t.Error("the provider is not suspended any more")
	}
	if _, no := g.Open(now, Path{Site: "y"}); no != nil {
		t.Errorf("%v", no)
	}
	if !g.Resume(now, Key{Provider, "big"}) || g.Suspended(now, Path{Site: "z", Provider: "big"}) != nil {
		t.Error("what was taken over cannot be resumed")
	}
}

// TestRestartKeepsBlocksAndBudgets: a provider that has blocked a source, and what a
// source in warm-up has used of its day.
func TestRestartKeepsBlocksAndBudgets(t *testing.T) {
	classes, err := ShippedClasses()
	if err != nil {
		t.Fatal(err)
	}
	g := New(Options{Classes: classes, Warmup: func(source string) Warmup {
		if source == "new" {
			return Warmup{Since: Date(start), Plan: []int{3, 1000}}
		}
		return Warmup{}
	}})
	send := func(now time.Time, p Path) *Refusal {
		k, no := g.Open(now, p)
		if no != nil {
			return no
		}
		defer k.Close(now)
		return k.Message(now, 1)
	}
	k, no := g.Open(start, Path{Site: "x", Source: "us", Provider: "big"})
	if no != nil {
		t.Fatal(no)
	}
	k.Said(start, playedAnswers[5])
	k.Close(start)
	now := start.Add(time.Minute)
	for range 2 {
		if no := send(now, Path{Site: "y", Source: "new"}); no != nil {
			t.Fatal(no)
		}
	}
	for i := range 2 {
		g = restarted(t, now, g)
		if no := send(now, Path{Site: "z", Source: "us", Provider: "big"}); no == nil || no.What != suspendedWhat || !no.Until.Equal(start.Add(2*time.Hour)) {
			t.Fatalf("another site of the provider: %v", no)
		}
		if no := send(now, Path{Site: "y", Source: "new"}); (no == nil) != (i == 0) {
			t.Fatalf("message %d of three: %v", i+3, no)
		}
	}
	if no := send(start.Add(24*time.Hour), Path{Site: "y", Source: "new"}); no != nil {
		t.Errorf("the next day: %v", no)
	}
	g.Resume(now, Key{Provider, "big"})
	for _, site := range []string{"x", "z"} {
		if no := send(now, Path{Site: site, Source: "us", Provider: "big"}); no != nil {
			t.Errorf("%s after it was resumed: %v", site, no)
		}
	}
	if g.ImportBlocks(start.Add(-1000*time.Hour), start, []BlockState{{"big", "us", start, start.Add(time.Hour), ""}, {"big", "us2", start, start.Add(-time.Hour), ""}, {Until: start.Add(time.Hour)}}) != 1 {
		t.Error("not the one block that holds")
	}
	if b := g.Blocks(start.Add(-1000 * time.Hour)); len(b) != 1 || !b[0].Until.Equal(start.Add(-999*time.Hour)) {
		t.Errorf("%+v: no time has passed by a clock that has gone back", b)
	}
}

// TestLearnedAges: what was learned is dropped after as long as it would have been,
// and a clock that was wrong suspends nobody for years.
func TestLearnedAges(t *testing.T) {
	learned := []Learned{
		{Site: "ceiling", Last: nanos(start), Limit: 3, Ceiling: 3, ProbeAt: nanos(start.Add(time.Minute)), Wait: firstProbe},
		{Site: "suspended", Last: nanos(start), Limit: 4, Since: nanos(start), Until: nanos(start.Add(5 * time.Hour)), Why: "spam"},
		{Site: "nothing", Last: nanos(start), Limit: firstConnections},
		{Last: nanos(start), Limit: 3, Ceiling: 3},
	}
	for _, c := range []struct {
		now  time.Time
		want string
	}{
		{start.Add(time.Minute), "[ceiling suspended]"},
		{start.Add(forgetAfter + time.Minute), "[suspended]"},
		{start.Add(6 * time.Hour), "[]"},
		{start.Add(-1000 * time.Hour), "[ceiling suspended]"},
	} {
		g := New(Options{})
		g.Import(c.now, start, learned)
		var names []string
		for _, s := range g.Sites(c.now) {
			names = append(names, s.Site)
			if u := s.Control.Until; !u.IsZero() && (u.Before(c.now) || u.Sub(c.now) > 5*time.Hour) {
				t.Errorf("at %v: suspended until %v", c.now, u)
			}
			if s.Control.Since.After(c.now) {
				t.Errorf("at %v: since %v", c.now, s.Control.Since)
			}
			if p := s.Control.ProbeAt; p.Sub(c.now) > lastProbe {
				t.Errorf("at %v: a probe at %v", c.now, p)
			}
		}
		if got := fmt.Sprint(names); got != c.want {
			t.Errorf("at %v: %s, want %s", c.now, got, c.want)
		}
	}
	g := New(Options{})
	k, _ := g.Open(start, Path{Site: "ceiling"})
	if g.Import(start, start, learned) != 1 || g.Sites(start)[0].Control.Ceiling != 0 {
		t.Error("what is known now was replaced")
	}
	k.Close(start)
}

// TestExportIsBounded keeps what would be missed most.
func TestExportIsBounded(t *testing.T) {
	g := New(Options{})
	for i := range 40 {
		now := start.Add(time.Duration(i) * time.Second)
		k, no := g.Open(now, Path{Site: fmt.Sprintf("s%02d", i)})
		if no != nil {
			t.Fatal(no)
		}
		switch {
		case i%10 == 0:
			k.control.sleep(now, 4*time.Hour, "blocked")
		case i%10 == 1:
			k.control.tooMany(now, &k.conn, "too many")
		case i%2 == 0:
			k.control.failures++
		}
		k.Close(now)
	}
	now := start.Add(time.Minute)
	if n := len(g.Export(now, 1000)); n != 4+4+16 {
		t.Errorf("%d", n)
	}
	var names []string
	for _, l := range g.Export(now, 9) {
		names = append(names, l.Site)
	}
	if want := "[s30 s20 s10 s00 s31 s21 s11 s01 s38]"; fmt.Sprint(names) != want {
		t.Errorf("%v, want %s", names, want)
	}
	if n := len(g.Export(now, -1)); n != 0 {
		t.Errorf("%d", n)
	}
}
