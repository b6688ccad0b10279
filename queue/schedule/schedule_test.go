package schedule

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

func mustTake(t *testing.T, s *Schedule, now time.Time) Batch {
	t.Helper()
	b, ok := s.Take(now)
	if !ok {
		t.Fatal("nothing to take")
	}
	return b
}

func wantNothing(t *testing.T, s *Schedule, now time.Time) {
	t.Helper()
	if b, ok := s.Take(now); ok {
		t.Fatalf("took %+v", b)
	}
	if err := s.Check(); err != nil {
		t.Fatal(err)
	}
}

// A thousand recipients of one message in one domain are one entry, taken a
// hundred at a time; those that are deferred together stay together.
func TestGrouping(t *testing.T) {
	s := New(Options{SiteLimit: 20, Probe: 20})
	for r := range uint32(1000) {
		s.Add(Entry{Domain: "a.example", ID: 7, Recipient: r, Due: epoch})
		s.Add(Entry{Domain: "b.example", ID: 7, Recipient: 1000 + r, Due: epoch})
	}
	if st := s.lanes.at(s.channels[0].lanes["a.example"]).strands[fresh]; len(st.heap) != 1 {
		t.Fatalf("%d entries for one message", len(st.heap))
	}
	seen := map[uint32]bool{}
	var all []Batch
	for range 20 {
		b := mustTake(t, s, epoch)
		if len(b.Recipients) != 100 || b.ID != 7 || !slices.IsSorted(b.Recipients) {
			t.Fatalf("batch %+v", b)
		}
		for _, r := range b.Recipients {
			if seen[r] || (r < 1000) != (b.Domain == "a.example") {
				t.Fatalf("recipient %d in %q, again %v", r, b.Domain, seen[r])
			}
			seen[r] = true
		}
		all = append(all, b)
	}
	wantNothing(t, s, epoch)
	later := epoch.Add(400 * time.Second)
	for _, b := range all {
		outs := slices.Repeat([]Outcome{{Deferred: true, Due: later}}, 100)
		if err := s.Done(epoch, b, Succeeded, outs); err != nil {
			t.Fatal(err)
		}
	}
	if st := s.lanes.at(s.channels[0].lanes["a.example"]).strands[deferred]; len(st.heap) != 1 {
		t.Fatalf("%d entries after the same deferral", len(st.heap))
	}
	wantNothing(t, s, later.Add(-time.Second))
	if at, ok := s.NextWake(); !ok || !at.Equal(later) {
		t.Fatalf("next wake %v %v", at, ok)
	}
	if b := mustTake(t, s, later); b.Attempts != 1 || len(b.Recipients) != 100 {
		t.Fatalf("batch %+v", b)
	}
}

// Mail whose site is not known waits in a channel of its own; what is found out
// moves it, and the batch is taken again where it belongs.
func TestLookupStage(t *testing.T) {
	s := New(Options{
		Channels: []Channel{{Name: "remote", Limit: 10}},
		Route:    func(_, domain string) string { return "?" + domain },
	})
	s.Add(Entry{Channel: "remote", Domain: "a.example", ID: 1, Due: epoch})
	s.Add(Entry{Channel: "remote", Domain: "a.example", ID: 2, Due: epoch})
	b := mustTake(t, s, epoch)
	if b.Site != "?a.example" {
		t.Fatalf("site %q", b.Site)
	}
	s.Assign("a.example", "mx.example")
	if in, _ := s.Site(epoch, "?a.example"); in.Batches != 1 || in.Queued != 0 {
		t.Errorf("the old site lost its batch: %+v", in)
	}
	if in, _ := s.Site(epoch, "mx.example"); in.Batches != 0 || in.Queued != 1 || in.InFlight != 1 {
		t.Errorf("the new site: %+v", in)
	}
	if err := s.Return(epoch, b); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if b := mustTake(t, s, epoch); b.Site != "mx.example" || b.Attempts != 0 {
			t.Errorf("batch %+v", b)
		}
	}
	if got, ok := s.SiteOf("remote", "a.example"); !ok || got != "mx.example" {
		t.Errorf("the domain is at %q", got)
	}
}

// A site's limit holds over all channels.
func TestSiteLimitOverChannels(t *testing.T) {
	s := New(Options{Probe: 9})
	s.SetLimit("a.example", 3)
	for id := range uint64(8) {
		s.Add(Entry{Channel: []string{"remote", "bulk"}[id%2], Domain: "a.example", ID: id + 1, Due: epoch})
	}
	n := map[string]int{}
	for range 3 {
		n[mustTake(t, s, epoch).Channel]++
	}
	wantNothing(t, s, epoch)
	if n["remote"] == 0 || n["bulk"] == 0 {
		t.Errorf("one channel had all: %v", n)
	}
	s.SetLimit("a.example", 4)
	mustTake(t, s, epoch)
	wantNothing(t, s, epoch)
	s.SetChannel(Channel{Name: "bulk", Limit: -1})
	s.SetLimit("a.example", 9)
	for range 2 {
		if b := mustTake(t, s, epoch); b.Channel != "remote" {
			t.Errorf("took from a stopped channel: %+v", b)
		}
	}
	wantNothing(t, s, epoch)
}

// Sites take turns, and within a site what is fresh and what was deferred.
func TestTurns(t *testing.T) {
	s := New(Options{})
	for _, name := range []string{"a.example", "b.example", "c.example"} {
		s.Add(Entry{Domain: name, ID: 1 << 30, Due: epoch.Add(-time.Hour)})
		if err := s.Done(epoch, mustTake(t, s, epoch), Succeeded, nil); err != nil {
			t.Fatal(err)
		}
	}
	for id := range uint64(60) {
		name := []string{"a.example", "b.example", "c.example"}[id/20]
		s.Add(Entry{Domain: name, ID: id + 1, Due: epoch.Add(-time.Minute), Attempts: int(id % 2)})
	}
	var order, kinds []string
	for range 12 {
		b := mustTake(t, s, epoch)
		order = append(order, b.Domain[:1])
		if b.Domain == "a.example" {
			kinds = append(kinds, fmt.Sprint(b.Attempts))
		}
	}
	if got := fmt.Sprint(order); got != "[a b c a b c a b c a b c]" {
		t.Errorf("sites: %v", got)
	}
	if got := fmt.Sprint(kinds); got != "[0 1 0 1]" && got != "[1 0 1 0]" {
		t.Errorf("attempts before: %v", got)
	}
}

// Time alone moves a site from line to line.
func TestClassesAge(t *testing.T) {
	s := New(Options{Channels: []Channel{{Limit: -1}}})
	s.Add(Entry{Domain: "a.example", ID: 1, Due: epoch})
	wantNothing(t, s, epoch)
	wantNothing(t, s, epoch.Add(DefaultPatience))
	if s.channels[0].lines[newcomer].head == 0 {
		t.Error("no newcomer any more, too early")
	}
	wantNothing(t, s, epoch.Add(DefaultPatience+time.Millisecond))
	if s.channels[0].lines[newcomer].head != 0 || s.channels[0].lines[waiting].head == 0 {
		t.Error("still a newcomer after its time")
	}
	s.SetChannel(Channel{})
	now := epoch.Add(time.Hour)
	if err := s.Done(now, mustTake(t, s, now), Succeeded, nil); err != nil {
		t.Fatal(err)
	}
	for id := range uint64(2) {
		s.Add(Entry{Domain: "a.example", ID: id + 2, Due: now})
	}
	mustTake(t, s, now.Add(DefaultWindow))
	if got := s.channels[0].flying; got != [classes]int{living: 1} {
		t.Errorf("within the window: %v", got)
	}
	mustTake(t, s, now.Add(DefaultWindow+time.Millisecond))
	if got := s.channels[0].flying; got[living] != 1 || got[newcomer]+got[waiting] != 1 {
		t.Errorf("after the window: %v", got)
	}
}

// Big heaps keep their order whatever is taken out of their middle.
func TestOrderSurvivesEdits(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	s := New(Options{SiteLimit: 1 << 20, Probe: 1 << 20, Channels: []Channel{{Limit: 1 << 20, Reserve: -1}}})
	for id := range uint64(5000) {
		domain := "big.example"
		if id%2 == 0 {
			domain = fmt.Sprintf("d%d.example", id)
		}
		s.Add(Entry{Domain: domain, ID: id + 1, Due: epoch.Add(time.Duration(r.IntN(100_000)) * time.Second)})
	}
	for range 10 {
		odd := func(Item) bool { return r.IntN(20) == 0 }
		for _, n := range []int{
			s.Remove(Select{Match: odd}), s.Hold(Select{Match: odd}), s.Retry(epoch.Add(50_000*time.Second), Select{Match: odd}),
			s.Refile(Select{Domain: "big.example", Match: odd}, "", "other.example"), s.Release(Select{Match: odd}),
		} {
			if n == 0 {
				t.Fatal("an edit has changed nothing")
			}
		}
		if err := s.Check(); err != nil {
			t.Fatal(err)
		}
	}
	s.Release(Select{})
	n, last, due := s.Len(), map[string]time.Time{}, map[uint64]time.Time{}
	for it := range s.Items(Select{}) {
		due[it.ID] = it.Due
	}
	for range n {
		b := mustTake(t, s, epoch.Add(48*time.Hour))
		if due[b.ID].Before(last[b.Domain]) {
			t.Fatalf("%s: due %v after %v", b.Domain, due[b.ID], last[b.Domain])
		}
		last[b.Domain] = due[b.ID]
	}
	wantNothing(t, s, epoch.Add(48*time.Hour))
}

// What is remembered of a site outlives its mail for the window, and no longer;
// a limit of its own and a suspension keep it.
func TestForgetting(t *testing.T) {
	s := New(Options{})
	for i, name := range []string{"a.example", "b.example", "c.example", "d.example"} {
		s.Add(Entry{Domain: name, ID: uint64(i + 1)})
	}
	for range 4 {
		if err := s.Done(epoch, mustTake(t, s, epoch), Succeeded, nil); err != nil {
			t.Fatal(err)
		}
	}
	s.SetLimit("b.example", 1)
	s.Suspend("c.example", time.Time{})
	s.Suspend("d.example", epoch.Add(time.Hour))
	known := func() []string {
		var all []string
		for in := range s.Sites(s.stamp()) {
			all = append(all, in.Name)
		}
		slices.Sort(all)
		return all
	}
	wantNothing(t, s, epoch.Add(DefaultWindow-time.Millisecond))
	if in, ok := s.Site(s.stamp(), "a.example"); !ok || !in.Living || s.lanes.n != 0 {
		t.Errorf("too early: %+v %v, %d domains", in, ok, s.lanes.n)
	}
	wantNothing(t, s, epoch.Add(DefaultWindow))
	if got := known(); !slices.Equal(got, []string{"b.example", "c.example", "d.example"}) {
		t.Errorf("known: %v", got)
	}
	s.SetLimit("b.example", 0)
	wantNothing(t, s, epoch.Add(time.Hour))
	wantNothing(t, s, epoch.Add(time.Hour+DefaultWindow))
	if got := known(); !slices.Equal(got, []string{"c.example"}) {
		t.Errorf("known: %v", got)
	}
	s.Resume("c.example")
	wantNothing(t, s, epoch.Add(3*time.Hour))
	if got := known(); len(got) != 0 {
		t.Errorf("known: %v", got)
	}
}

func (s *Schedule) stamp() time.Time { return time.UnixMilli(s.now) }

// A clock that goes back makes mail wait, but loses and repeats nothing.
func TestClockGoesBack(t *testing.T) {
	s := New(Options{})
	for id := range uint64(500) {
		s.Add(Entry{Domain: string(rune('a'+id%20)) + ".example", ID: id + 1, Due: epoch})
	}
	b := mustTake(t, s, epoch)
	wantNothing(t, s, epoch.Add(-time.Hour))
	if at, ok := s.NextWake(); !ok || !at.Equal(epoch) {
		t.Errorf("next wake %v", at)
	}
	if err := s.Done(epoch.Add(-time.Hour), b, Succeeded, nil); err != nil {
		t.Fatal(err)
	}
	n := 1
	for at := epoch; ; n++ {
		b, ok := s.Take(at)
		if !ok {
			break
		}
		if err := s.Done(at, b, Succeeded, nil); err != nil {
			t.Fatal(err)
		}
	}
	if n != 500 || s.Len() != 0 {
		t.Errorf("%d taken, %d left", n, s.Len())
	}
}

func TestDoneRefusesNonsense(t *testing.T) {
	s := New(Options{})
	s.Add(Entry{Domain: "a.example", ID: 1})
	b := mustTake(t, s, epoch)
	if err := s.Done(epoch, b, Succeeded, make([]Outcome, 2)); !errors.Is(err, ErrOutcomes) {
		t.Errorf("two outcomes for one recipient: %v", err)
	}
	if n := s.Counts(); n.InFlight != 1 {
		t.Errorf("an error has changed something: %+v", n)
	}
	if err := s.Return(epoch, b); err != nil {
		t.Fatal(err)
	}
	again := mustTake(t, s, epoch)
	for _, err := range []error{s.Done(epoch, b, Succeeded, nil), s.Return(epoch, b), s.Return(epoch, Batch{})} {
		if !errors.Is(err, ErrStale) {
			t.Errorf("a batch that has ended: %v", err)
		}
	}
	if err := s.Done(epoch, again, Succeeded, nil); err != nil || s.Len() != 0 {
		t.Errorf("%v, %d left", err, s.Len())
	}
}

// Check finds what is wrong, or the tests that rely on it prove nothing.
func TestCheckFindsFaults(t *testing.T) {
	for name, spoil := range map[string]func(*Schedule){
		"due":      func(s *Schedule) { s.slots.at(2).due += 10 },
		"count":    func(s *Schedule) { s.lanes.at(1).queued++ },
		"held":     func(s *Schedule) { s.lanes.at(1).held++ },
		"flying":   func(s *Schedule) { s.sites.at(1).inflight++ },
		"class":    func(s *Schedule) { s.channels[0].flying[living]++ },
		"chain":    func(s *Schedule) { s.lanes.at(1).strands[deferred].heap[0] = 1 },
		"lost":     func(s *Schedule) { st := &s.lanes.at(1).strands[deferred]; st.heap = st.heap[:1] },
		"line":     func(s *Schedule) { s.unline(2) },
		"name":     func(s *Schedule) { delete(s.siteByKey, "b.example") },
		"timer":    func(s *Schedule) { s.timers[0].at++ },
		"twice":    func(s *Schedule) { s.slots.at(3).idLo = s.slots.at(2).idLo },
		"flag":     func(s *Schedule) { s.slots.at(3).flags = slotHeld },
		"last":     func(s *Schedule) { s.lanes.at(1).strands[fresh].last = 3 },
		"stranded": func(s *Schedule) { s.stopTimer(1<<1 | deferred) },
	} {
		s := New(Options{Probe: 1})
		for id := range uint64(5) {
			s.Add(Entry{Domain: "a.example", ID: id + 1, Due: epoch.Add(time.Duration(id) * time.Hour), Attempts: int(min(id, 1))})
		}
		s.Add(Entry{Domain: "b.example", ID: 9, Due: epoch})
		s.Add(Entry{Domain: "b.example", ID: 10, Due: epoch})
		b := mustTake(t, s, epoch)
		if b.Domain == "b.example" {
			mustTake(t, s, epoch)
			if err := s.Return(epoch, b); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.Check(); err != nil {
			t.Fatal(err)
		}
		spoil(s)
		if s.Check() == nil {
			t.Errorf("%s: not found", name)
		}
	}
}

// The memory of a burst is given back, and numbers are used again.
func TestPoolShrinks(t *testing.T) {
	var p pool[slot]
	var all []uint32
	for range 10 * chunkSize {
		all = append(all, p.get())
	}
	seen := map[uint32]bool{}
	for _, i := range all {
		if i == 0 || seen[i] || !p.live(i) {
			t.Fatalf("number %d", i)
		}
		seen[i] = true
	}
	for _, i := range all {
		p.put(i)
	}
	chunks := 0
	for _, c := range p.chunks {
		if c.items != nil {
			chunks++
		}
	}
	if chunks > 3 || p.n != 0 || p.live(all[0]) {
		t.Errorf("%d chunks kept, %d in use", chunks, p.n)
	}
	for range 10 * chunkSize {
		if i := p.get(); int(i) >= 11*chunkSize {
			t.Fatalf("number %d: the old ones are not used again", i)
		}
	}
	n := 0
	p.each(func(i uint32, _ *slot) bool {
		p.put(i)
		n++
		return true
	})
	if n != 10*chunkSize || p.n != 0 {
		t.Errorf("walked over %d, %d left", n, p.n)
	}
}
