package schedule

import (
	"container/heap"
	"fmt"
	"slices"
	"testing"
	"time"
)

// A sim runs a schedule on simulated time: a site takes its time for a batch,
// and then all its recipients have the same fate.
type sim struct {
	t       *testing.T
	s       *Schedule
	now     time.Time
	events  events
	seq     int
	deliver func(b Batch) (took time.Duration, h Health, o Outcome)
	waits   map[string][]time.Duration // from being added to the end of the first success, by kind of domain
	born    map[uint64]time.Time
	kind    map[uint64]string
	tries   map[string]int
	nextID  uint64
	flying  int
	peak    int
}

type event struct {
	at  time.Time
	seq int
	do  func()
}

type events []event

func (e events) Len() int { return len(e) }
func (e events) Less(i, j int) bool {
	return e[i].at.Before(e[j].at) || e[i].at.Equal(e[j].at) && e[i].seq < e[j].seq
}
func (e events) Swap(i, j int) { e[i], e[j] = e[j], e[i] }
func (e *events) Push(x any)   { *e = append(*e, x.(event)) }
func (e *events) Pop() any {
	old := *e
	x := old[len(old)-1]
	*e = old[:len(old)-1]
	return x
}

func newSim(t *testing.T, o Options, deliver func(Batch) (time.Duration, Health, Outcome)) *sim {
	return &sim{
		t: t, s: New(o), now: epoch, deliver: deliver, waits: map[string][]time.Duration{},
		born: map[uint64]time.Time{}, kind: map[uint64]string{}, tries: map[string]int{},
	}
}

func (x *sim) at(t time.Time, do func()) {
	x.seq++
	heap.Push(&x.events, event{t, x.seq, do})
}

// add queues a new message now.
func (x *sim) add(kind, domain string) {
	x.nextID++
	x.born[x.nextID], x.kind[x.nextID] = x.now, kind
	x.s.Add(Entry{Domain: domain, ID: x.nextID, Due: x.now})
}

// run goes on until a time, or until nothing happens any more.
func (x *sim) run(until time.Time) {
	for {
		for {
			b, ok := x.s.Take(x.now)
			if !ok {
				break
			}
			x.start(b)
		}
		wake, ok := x.s.NextWake()
		if len(x.events) > 0 && (!ok || !x.events[0].at.After(wake)) {
			wake, ok = x.events[0].at, true
		}
		if !ok || wake.After(until) {
			x.now = until
			return
		}
		x.now = wake
		for len(x.events) > 0 && !x.events[0].at.After(x.now) {
			heap.Pop(&x.events).(event).do()
		}
	}
}

func (x *sim) start(b Batch) {
	x.flying++
	x.peak = max(x.peak, x.flying)
	kind := x.kind[b.ID]
	x.tries[kind]++
	took, h, o := x.deliver(b)
	x.at(x.now.Add(took), func() {
		x.flying--
		outs := make([]Outcome, len(b.Recipients))
		for i := range outs {
			outs[i] = o
		}
		if o.Deferred {
			outs[0].Due = x.now.Add(o.Due.Sub(epoch)) // relative
		} else {
			x.waits[kind] = append(x.waits[kind], x.now.Sub(x.born[b.ID]))
			delete(x.born, b.ID)
		}
		if err := x.s.Done(x.now, b, h, outs); err != nil {
			x.t.Fatal(err)
		}
	})
}

// quantile of the waits of a kind.
func (x *sim) quantile(kind string, q float64) time.Duration {
	all := slices.Sorted(slices.Values(x.waits[kind]))
	if len(all) == 0 {
		x.t.Fatalf("nothing of kind %q was delivered", kind)
	}
	return all[int(q*float64(len(all)-1))]
}

func (x *sim) want(kind string, n int, p50, worst time.Duration) {
	x.t.Helper()
	x.t.Logf("%s: %d delivered, wait p50 %v, p99 %v, worst %v; tries %v", kind, len(x.waits[kind]),
		x.quantile(kind, 0.5), x.quantile(kind, 0.99), x.quantile(kind, 1), x.tries)
	if got := len(x.waits[kind]); got != n {
		x.t.Errorf("%s: %d of %d delivered", kind, got, n)
	}
	if got := x.quantile(kind, 0.5); got > p50 {
		x.t.Errorf("%s: half waited longer than %v, bound %v", kind, got, p50)
	}
	if got := x.quantile(kind, 1); got > worst {
		x.t.Errorf("%s: one waited %v, bound %v", kind, got, worst)
	}
	if err := x.s.Check(); err != nil {
		x.t.Error(err)
	}
}

var (
	hundred   = Options{Channels: []Channel{{Name: "", Limit: 100}}}
	delivered = Outcome{}
	inAnHour  = Outcome{Deferred: true, Due: epoch.Add(time.Hour)}
)

// good is a site that works.
func good() (time.Duration, Health, Outcome) { return 200 * time.Millisecond, Succeeded, delivered }

// dead is a site that takes no connection and does not say so.
func dead() (time.Duration, Health, Outcome) { return time.Minute, Failed, inAnHour }

func isDead(domain string) bool { return domain[0] == 'x' }

func TestRefusingSiteDoesNotDelayOthers(t *testing.T) {
	for _, h := range []Health{Unchanged, Succeeded, Failed} {
		x := newSim(t, hundred, func(b Batch) (time.Duration, Health, Outcome) {
			if isDead(b.Domain) {
				return 100 * time.Millisecond, h, inAnHour
			}
			return good()
		})
		for range 20_000 {
			x.add("refused", "x.example")
		}
		for i := range 1500 {
			x.at(epoch.Add(time.Duration(i)*40*time.Millisecond), func() { x.add("fresh", fmt.Sprintf("d%d.example", i%30)) })
		}
		x.run(epoch.Add(10 * time.Minute))
		x.want("fresh", 1500, 250*time.Millisecond, time.Second)
	}
}

// Mail for sites that are known to work does not notice twenty thousand black
// holes, nor does mail for sites that were never tried, once the black holes
// are no newcomers any more. New sites whose mail comes together with them wait
// for one slot in which to show that they work.
func TestDeadSitesDoNotStarveTheLiving(t *testing.T) {
	for _, tc := range []struct {
		name       string
		sites      int
		known      bool
		after      time.Duration // the dead come first by that
		p50, worst time.Duration
	}{
		{"30 known sites, at once", 30, true, 0, 200 * time.Millisecond, time.Second},
		{"1500 known sites, at once", 1500, true, 0, 200 * time.Millisecond, time.Second},
		{"30 new sites, at once", 30, false, time.Second, 200 * time.Millisecond, 10 * time.Second},
		{"30 new sites, later", 30, false, 10 * time.Minute, 200 * time.Millisecond, time.Second},
		{"1500 new sites, later", 1500, false, 10 * time.Minute, 200 * time.Millisecond, time.Second},
	} {
		t.Run(tc.name, func(t *testing.T) {
			x := newSim(t, hundred, func(b Batch) (time.Duration, Health, Outcome) {
				if isDead(b.Domain) {
					return dead()
				}
				return good()
			})
			name := func(i int) string { return fmt.Sprintf("d%d.example", i%tc.sites) }
			if tc.known {
				for i := range tc.sites {
					x.add("first", name(i))
				}
				x.run(x.now.Add(time.Minute))
			}
			for i := range 20_000 {
				x.add("dead", fmt.Sprintf("x%d.example", i))
			}
			start := x.now.Add(tc.after)
			for i := range 1500 {
				x.at(start.Add(time.Duration(i)*40*time.Millisecond), func() { x.add("fresh", name(i)) })
			}
			x.run(start.Add(10 * time.Minute))
			x.want("fresh", 1500, tc.p50, tc.worst)
			if x.tries["dead"] < 250 {
				t.Errorf("the dead were tried only %d times: their share is idle", x.tries["dead"])
			}
			if x.peak > 100 {
				t.Errorf("%d in flight, the limit is 100", x.peak)
			}
		})
	}
}

// A site that dies takes its share of the slots only until that is known.
func TestLivingSitesThatDie(t *testing.T) {
	died := false
	x := newSim(t, hundred, func(b Batch) (time.Duration, Health, Outcome) {
		if died && isDead(b.Domain) {
			return dead()
		}
		return good()
	})
	for i := range 20 {
		x.add("first", fmt.Sprintf("x%d.example", i))
		x.add("first", fmt.Sprintf("d%d.example", i))
	}
	x.run(x.now.Add(time.Minute))
	died = true
	for i := range 20_000 {
		x.add("dead", fmt.Sprintf("x%d.example", i%20))
	}
	start := x.now.Add(2 * time.Minute)
	for i := range 1500 {
		x.at(start.Add(time.Duration(i)*40*time.Millisecond), func() { x.add("fresh", fmt.Sprintf("d%d.example", i%20)) })
	}
	x.run(start.Add(10 * time.Minute))
	x.want("fresh", 1500, 200*time.Millisecond, time.Second)
}

// A flood of mail for living sites does not keep new sites from being tried.
func TestLivingSitesDoNotStarveNewOnes(t *testing.T) {
	x := newSim(t, hundred, func(Batch) (time.Duration, Health, Outcome) { return good() })
	for i := range 50 {
		x.add("first", fmt.Sprintf("d%d.example", i))
	}
	x.run(x.now.Add(time.Minute))
	for i := range 100_000 {
		x.add("flood", fmt.Sprintf("d%d.example", i%50))
	}
	for i := range 300 {
		x.at(x.now.Add(time.Duration(i)*100*time.Millisecond), func() { x.add("fresh", fmt.Sprintf("n%d.example", i)) })
	}
	x.run(x.now.Add(4 * time.Minute))
	x.want("fresh", 300, 400*time.Millisecond, time.Second)
	x.want("flood", 100_000, 3*time.Minute+30*time.Second, 4*time.Minute)
}

// Fresh mail overtakes a deep backlog of retries at the same site, a domain
// overtakes its neighbour's, and the backlog still goes on.
func TestBacklogInsideASite(t *testing.T) {
	o := hundred
	o.Route = func(_, domain string) string { return "shared" }
	x := newSim(t, o, func(Batch) (time.Duration, Health, Outcome) { return good() })
	for i := range 20_000 {
		x.nextID++
		x.kind[x.nextID] = "backlog"
		x.s.Add(Entry{Domain: "big.example", ID: x.nextID, Due: epoch.Add(-time.Hour + time.Duration(i)), Attempts: 5})
	}
	for range 5_000 {
		x.add("big", "big.example")
	}
	for i := range 300 {
		x.at(x.now.Add(time.Duration(i)*time.Second), func() {
			x.add("small", "small.example")
			x.add("big late", "big.example")
		})
	}
	x.run(x.now.Add(5*time.Minute + time.Second))
	x.want("small", 300, 300*time.Millisecond, 600*time.Millisecond)
	if n := x.tries["backlog"]; n < 5000 {
		t.Errorf("the backlog went on only %d times", n)
	}
}
