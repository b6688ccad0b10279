package schedule

import (
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// A machine does the same to a schedule and to the model.
type machine struct {
	s    *Schedule
	m    *model
	next uint64
	told time.Time // what the schedule is told for now
}

func newMachine(t *rapid.T) *machine {
	x := &machine{told: epoch, m: &model{
		items: map[mkey]*mitem{}, sites: map[string]*msite{}, where: map[[2]string]string{}, chans: map[string]Channel{},
		byDef: 3, now: epoch,
	}}
	reserve := rapid.SampledFrom([]float64{-1, 0.5, 0.9}).Draw(t, "reserve")
	o := Options{Route: route, SiteLimit: 3, Batch: 4, Window: modelWindow}
	for _, name := range []string{"remote", "bulk"} {
		c := Channel{Name: name, Limit: rapid.IntRange(1, 8).Draw(t, "limit"), Reserve: reserve}
		o.Channels = append(o.Channels, c)
		c.Reserve = max(0, c.Reserve)
		x.m.chans[name] = c
	}
	x.s = New(o)
	return x
}

var (
	genDomain  = rapid.SampledFrom([]string{"d1", "d2", "d3", "d4", "d5", "d6", "d7"})
	genSite    = rapid.SampledFrom([]string{"d1", "d2", "d3", "shared", "other"})
	genChannel = rapid.SampledFrom([]string{"remote", "bulk"})
)

func (x *machine) due(t *rapid.T) time.Time {
	return x.m.now.Add(time.Duration(rapid.IntRange(-5, 40).Draw(t, "due")) * 10 * time.Second).Truncate(time.Second)
}

func (x *machine) Add(t *rapid.T) {
	x.next++
	channel, domain, due := genChannel.Draw(t, "channel"), genDomain.Draw(t, "domain"), x.due(t)
	held := rapid.IntRange(0, 9).Draw(t, "held") == 0
	for r := range uint32(rapid.IntRange(1, 10).Draw(t, "recipients")) {
		it := &mitem{mkey: mkey{x.next, r}, channel: channel, domain: domain, due: due, attempts: int(x.next % 2)}
		if held {
			it.state = Held
		}
		x.m.items[it.mkey] = it
		x.m.home(channel, domain)
		x.s.Add(Entry{Channel: channel, Domain: domain, ID: it.id, Recipient: r, Due: due, Attempts: it.attempts, Held: held})
	}
}

// Tick passes time. What the schedule is told may then be a little earlier than
// what it has heard already.
func (x *machine) Tick(t *rapid.T) {
	x.s.advance(x.m.now)
	x.told = x.m.now.Add(time.Duration(rapid.IntRange(-2_000, 90_000).Draw(t, "ms")) * time.Millisecond)
	if x.told.After(x.m.now) {
		x.m.now = x.told
	}
}

func (x *machine) Drain(t *rapid.T) {
	for range rapid.IntRange(1, 30).Draw(t, "takes") {
		b, ok := x.s.Take(x.told)
		if !ok {
			x.refused(t)
			return
		}
		x.took(t, b)
	}
}

func (x *machine) TakeFrom(t *rapid.T) {
	site := genSite.Draw(t, "site")
	b, ok := x.s.TakeFrom(x.told, site)
	if ok {
		if b.Site != site {
			t.Fatalf("took from %q, not %q", b.Site, site)
		}
		x.took(t, b)
		return
	}
	for _, it := range x.m.mayTake(x.s, x.m.now) {
		if x.m.where[[2]string{it.channel, it.domain}] == site {
			t.Fatalf("nothing taken from %q, but %+v is there", site, it)
		}
	}
}

// refused checks that Take was right to say false, and NextWake's promise.
func (x *machine) refused(t *rapid.T) {
	if left := x.m.mayTake(x.s, x.m.now); len(left) > 0 {
		t.Fatalf("Take refuses, but %+v is due", left[0])
	}
	wake, ok := x.s.NextWake()
	if ok && !wake.After(x.m.now) {
		t.Fatalf("the next wake %v is not after %v", wake, x.m.now)
	}
	if !ok {
		wake = x.m.now.Add(time.Hour)
	}
	now := x.m.now
	x.m.now = wake.Add(-time.Millisecond)
	if left := x.m.mayTake(x.s, x.m.now); len(left) > 0 {
		t.Fatalf("asleep until %v (%v), but %+v may be taken before", wake, ok, left[0])
	}
	x.m.now = now
}

func (x *machine) took(t *rapid.T, b Batch) {
	m := x.m
	mb := &mbatch{Batch: b}
	site := m.where[[2]string{b.Channel, b.Domain}]
	if site != b.Site || !m.open(site) {
		t.Fatalf("batch for %q, domain is at %q, open %v", b.Site, site, m.open(site))
	}
	c := m.chans[b.Channel]
	if n := m.inflight(func(o *mbatch) bool { return o.Channel == b.Channel }); n >= c.Limit {
		t.Fatalf("channel %q has %d in flight, limit %d", b.Channel, n, c.Limit)
	}
	most := max(1, c.Limit-int(float64(c.Limit)*c.Reserve))
	if n := m.unproven(x.s, b.Channel); n > most {
		t.Fatalf("%d of %d slots are with unproven sites, %d at most", n, c.Limit, most)
	}
	if len(b.Recipients) == 0 || len(b.Recipients) > 4 || !slices.IsSorted(b.Recipients) {
		t.Fatalf("recipients %v", b.Recipients)
	}
	for _, r := range b.Recipients {
		it := m.items[mkey{b.ID, r}]
		if it == nil || it.state != Queued || it.due.After(m.now) || it.attempts != b.Attempts ||
			it.channel != b.Channel || it.domain != b.Domain {
			t.Fatalf("batch %+v at %v has %+v", b, m.now, it)
		}
		it.state = InFlight
		mb.items = append(mb.items, it)
	}
	m.out = append(m.out, mb)
}

// land picks a batch in flight, or nil.
func (x *machine) land(t *rapid.T) *mbatch {
	if len(x.m.out) == 0 {
		return nil
	}
	i := rapid.IntRange(0, len(x.m.out)-1).Draw(t, "batch")
	b := x.m.out[i]
	x.m.out = slices.Delete(x.m.out, i, i+1)
	return b
}

func (x *machine) Done(t *rapid.T) {
	b := x.land(t)
	if b == nil {
		return
	}
	h := Health(rapid.IntRange(0, 2).Draw(t, "health"))
	var outs []Outcome
	if rapid.Bool().Draw(t, "some deferred") {
		due := x.due(t)
		for range b.items {
			outs = append(outs, Outcome{
				Deferred: rapid.Bool().Draw(t, "deferred"), Due: due, Hold: rapid.IntRange(0, 9).Draw(t, "hold") == 0,
			})
		}
	}
	if err := x.s.Done(x.told, b.Batch, h, outs); err != nil {
		t.Fatal(err)
	}
	st := x.m.site(b.Site)
	switch h {
	case Succeeded:
		st.succeeded, st.strikes = x.m.now, 0
	case Failed:
		st.strikes++
	}
	for i, it := range b.items {
		if outs == nil || !outs[i].Deferred || it.gone {
			delete(x.m.items, it.mkey)
			continue
		}
		it.due, it.attempts = outs[i].Due, it.attempts+1
		x.back(it, outs[i].Hold)
	}
	if err := x.s.Done(x.told, b.Batch, h, outs); err != ErrStale {
		t.Fatalf("a second Done says %v", err)
	}
}

func (x *machine) back(it *mitem, hold bool) {
	it.state = Queued
	if hold || it.hold {
		it.state = Held
	}
	it.hold = false
}

func (x *machine) Return(t *rapid.T) {
	b := x.land(t)
	if b == nil {
		return
	}
	if err := x.s.Return(x.told, b.Batch); err != nil {
		t.Fatal(err)
	}
	for _, it := range b.items {
		if it.gone {
			delete(x.m.items, it.mkey)
			continue
		}
		x.back(it, false)
	}
}

func (x *machine) Limits(t *rapid.T) {
	site, n := genSite.Draw(t, "site"), rapid.IntRange(0, 5).Draw(t, "limit")
	if rapid.Bool().Draw(t, "default") {
		x.m.byDef = n + 1
		x.s.SetSiteLimit(n + 1)
		return
	}
	x.m.site(site).limit = n
	x.s.SetLimit(site, n)
}

func (x *machine) Gates(t *rapid.T) {
	name := genSite.Draw(t, "site")
	st := x.m.site(name)
	at := x.m.now.Add(time.Duration(rapid.IntRange(1, 60_000).Draw(t, "ms")) * time.Millisecond)
	switch rapid.IntRange(0, 4).Draw(t, "gate") {
	case 0:
		st.suspended, st.forever = at, false
		x.s.Suspend(name, at)
	case 1:
		st.forever = true
		x.s.Suspend(name, time.Time{})
	case 2:
		if at.After(st.paced) {
			st.paced = at
		}
		x.s.Pace(name, at)
	default:
		st.suspended, st.paced, st.forever = time.Time{}, time.Time{}, false
		x.s.Resume(name)
	}
}

func (x *machine) Reroute(t *rapid.T) {
	to := genSite.Draw(t, "to")
	if rapid.Bool().Draw(t, "whole site") {
		from, n := genSite.Draw(t, "from"), 0
		for k, at := range x.m.where {
			if at == from && from != to {
				x.m.where[k] = to
				n++
			}
		}
		if got := x.s.Move(from, to); got != n {
			t.Fatalf("moved %d domains, not %d", got, n)
		}
		return
	}
	domain := genDomain.Draw(t, "domain")
	for k := range x.m.where {
		if k[1] == domain {
			x.m.where[k] = to
		}
	}
	x.s.Assign(domain, to)
}

func (x *machine) Edit(t *rapid.T) {
	sel := Select{}
	switch rapid.IntRange(0, 5).Draw(t, "select") {
	case 0:
		sel = One(uint64(rapid.IntRange(1, int(x.next)+1).Draw(t, "id")), uint32(rapid.IntRange(0, 5).Draw(t, "rcpt")))
	case 1:
		sel.Domain = genDomain.Draw(t, "domain")
	case 2:
		sel.Site, sel.Channel = genSite.Draw(t, "site"), genChannel.Draw(t, "channel")
	case 3:
		k := uint32(rapid.IntRange(2, 3).Draw(t, "every"))
		sel.Match = func(i Item) bool { return i.Recipient%k == 0 }
	case 4:
		sel.ID = uint64(rapid.IntRange(1, int(x.next)+1).Draw(t, "id"))
	case 5:
		sel.IDs = rapid.SliceOfNDistinct(rapid.Uint64Range(1, x.next+1), 0, int(min(x.next, 3)), rapid.ID).Draw(t, "ids")
	}
	var chosen []*mitem
	for _, it := range x.m.items {
		if x.m.match(sel)(it) {
			chosen = append(chosen, it)
		}
	}
	got, want := x.edit(t, sel, chosen)
	if got != want {
		t.Fatalf("changed %d, not %d", got, want)
	}
}

func (x *machine) edit(t *rapid.T, sel Select, chosen []*mitem) (got, want int) {
	op := rapid.SampledFrom([]string{"remove", "hold", "release", "retry", "refile"}).Draw(t, "op")
	channel, domain := "", ""
	switch op {
	case "remove":
		got = x.s.Remove(sel)
	case "hold":
		got = x.s.Hold(sel)
	case "release":
		got = x.s.Release(sel)
	case "retry":
		got = x.s.Retry(x.told, sel)
	case "refile":
		channel, domain = genChannel.Draw(t, "to"), genDomain.Draw(t, "to")
		got = x.s.Refile(sel, channel, domain)
	}
	now := x.told.Truncate(time.Second)
	for _, it := range chosen {
		flying := it.state == InFlight
		before := *it
		switch {
		case op == "remove" && flying:
			it.gone = true
		case op == "remove":
			delete(x.m.items, it.mkey)
			it.gone = true
		case op == "hold" && flying:
			it.hold = true
		case op == "hold":
			it.state = Held
		case op == "release" && flying:
			it.hold = false
		case op == "release":
			it.state = Queued
		case op == "retry" && it.state == Queued && it.due.After(now):
			it.due = now
		case op == "refile" && !flying:
			it.channel, it.domain = channel, domain
			x.m.home(channel, domain)
		}
		if *it != before {
			want++
		}
	}
	return got, want
}

// check compares the whole of both after every step.
func (x *machine) check(t *rapid.T) {
	x.m.tidy()
	if err := x.s.Check(); err != nil {
		t.Fatal(err)
	}
	n := 0
	byID := 0
	for id := range x.next + 2 {
		for it := range x.s.Items(Select{ID: id + 1}) {
			byID++
			if it.ID != id+1 {
				t.Fatalf("message %d has %+v", id+1, it)
			}
		}
	}
	for it := range x.s.Items(Select{}) {
		n++
		byID--
		w := x.m.items[mkey{it.ID, it.Recipient}]
		if w == nil || w.gone {
			t.Fatalf("the schedule has %+v", it)
		}
		want := Item{
			Channel: w.channel, Site: x.m.where[[2]string{w.channel, w.domain}], Domain: w.domain,
			ID: w.id, Recipient: w.rcpt, Due: w.due, Attempts: w.attempts, State: w.state,
		}
		if it != want {
			t.Fatalf("the schedule has\n%+v, the model\n%+v", it, want)
		}
	}
	sites := map[string]*SiteInfo{}
	for _, w := range x.m.items {
		if w.gone {
			continue
		}
		n--
		x.count(sites, w)
	}
	if n != 0 || byID != 0 {
		t.Fatalf("the schedule has %d recipients more than the model, and %d more by message", n, byID)
	}
	x.compare(t, sites)
}

func (x *machine) count(sites map[string]*SiteInfo, w *mitem) {
	name := x.m.where[[2]string{w.channel, w.domain}]
	in := sites[name]
	if in == nil {
		in = &SiteInfo{}
		sites[name] = in
	}
	switch w.state {
	case Queued:
		in.Queued++
		if !w.due.After(x.m.now) {
			in.Due++
		}
		if in.NextDue.IsZero() || w.due.Before(in.NextDue) {
			in.NextDue = w.due
		}
	case Held:
		in.Held++
	}
}

func (x *machine) compare(t *rapid.T, sites map[string]*SiteInfo) {
	for in := range x.s.Sites(x.m.now) {
		w := sites[in.Name]
		if w == nil {
			w = &SiteInfo{}
		}
		delete(sites, in.Name)
		batches := x.m.inflight(func(b *mbatch) bool { return b.Site == in.Name })
		if in.Queued != w.Queued || in.Due != w.Due || in.Held != w.Held || !in.NextDue.Equal(w.NextDue) || in.Batches != batches {
			t.Fatalf("site %+v\nmodel %+v, %d batches", in, w, batches)
		}
		if in.Living != x.m.alive(in.Name) {
			t.Fatalf("site %q: living is %v", in.Name, in.Living)
		}
	}
	for name, w := range sites {
		if *w != (SiteInfo{}) {
			t.Fatalf("site %q is not known: %+v", name, w)
		}
	}
}

func TestAgainstModel(t *testing.T) {
	for range 5 { // of a hundred courses each, unless told otherwise
		rapid.Check(t, func(t *rapid.T) {
			x := newMachine(t)
			t.Repeat(map[string]func(*rapid.T){
				"add": x.Add, "tick": x.Tick, "take": x.Drain, "take from": x.TakeFrom, "done": x.Done, "return": x.Return,
				"limits": x.Limits, "gates": x.Gates, "reroute": x.Reroute, "edit": x.Edit, "": x.check,
			})
			x.drainAll(t)
		})
	}
}

// drainAll checks that nothing is stuck: with gates open, time and success,
// everything that is not held goes out, and then nothing is left behind.
func (x *machine) drainAll(t *rapid.T) {
	x.s.Release(Select{})
	for _, name := range slices.Sorted(maps.Keys(x.s.siteByKey)) {
		x.s.Resume(name)
		x.s.SetLimit(name, 0)
	}
	for len(x.m.out) > 0 {
		b := x.m.out[0]
		x.m.out = x.m.out[1:]
		if err := x.s.Done(x.m.now, b.Batch, Succeeded, nil); err != nil {
			t.Fatal(err)
		}
	}
	for guard := 0; x.s.Len() > 0; guard++ {
		if guard > 10_000 {
			t.Fatalf("stuck with %+v", x.s.Counts())
		}
		b, ok := x.s.Take(x.m.now)
		if !ok {
			wake, ok := x.s.NextWake()
			if !ok {
				t.Fatalf("asleep for ever with %+v", x.s.Counts())
			}
			x.m.now = wake
			continue
		}
		if err := x.s.Done(x.m.now, b, Succeeded, nil); err != nil {
			t.Fatal(err)
		}
	}
	x.m.now = x.m.now.Add(time.Hour)
	x.s.Take(x.m.now)
	if n := fmt.Sprint(x.s.lanes.n, x.s.nodes.n, x.s.sites.n, x.s.flights.n, len(x.s.timers)); n != "0 0 0 0 0" {
		t.Fatalf("left behind: %s", n)
	}
}
