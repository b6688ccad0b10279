package schedule

import (
	"container/heap"
	"fmt"
	"iter"
	"math/rand/v2"
	"runtime"
	"runtime/debug"
	"slices"
	"testing"
	"time"
)

const (
	benchRecipients = 1_000_000
	benchSites      = 100_000
)

// The naive schedule, for comparison: a pointer for each recipient, strings and
// times as they come, a container/heap for each site and one of the sites, a
// position in it. It has one limit for all sites and no fairness.
type naive struct {
	sites map[string]*naiveSite
	order naiveSites
	limit int
}

type naiveSite struct {
	name     string
	queue    naiveQueue
	inflight int
	key      time.Time
	pos      int
}

type naiveRcpt struct {
	id       string
	rcpt     int
	domain   string
	due      time.Time
	attempts int
	site     *naiveSite
}

type naiveQueue []*naiveRcpt

func (q naiveQueue) Len() int           { return len(q) }
func (q naiveQueue) Less(i, j int) bool { return q[i].due.Before(q[j].due) }
func (q naiveQueue) Swap(i, j int)      { q[i], q[j] = q[j], q[i] }
func (q *naiveQueue) Push(x any)        { *q = append(*q, x.(*naiveRcpt)) }
func (q *naiveQueue) Pop() any {
	n := len(*q) - 1
	x := (*q)[n]
	(*q)[n] = nil
	*q = (*q)[:n]
	return x
}

type naiveSites []*naiveSite

func (q naiveSites) Len() int           { return len(q) }
func (q naiveSites) Less(i, j int) bool { return q[i].key.Before(q[j].key) }
func (q naiveSites) Swap(i, j int)      { q[i], q[j] = q[j], q[i]; q[i].pos, q[j].pos = i, j }
func (q *naiveSites) Push(x any)        { x.(*naiveSite).pos = len(*q); *q = append(*q, x.(*naiveSite)) }
func (q *naiveSites) Pop() any          { x := (*q)[len(*q)-1]; *q = (*q)[:len(*q)-1]; return x }

var never = time.Unix(1<<40, 0)

func (n *naive) fix(st *naiveSite) {
	st.key = never
	if len(st.queue) > 0 && st.inflight < n.limit {
		st.key = st.queue[0].due
	}
	heap.Fix(&n.order, st.pos)
}

func (n *naive) add(domain string, id uint64, rcpt int, due time.Time) {
	st := n.sites[domain]
	if st == nil {
		st = &naiveSite{name: domain, key: never}
		n.sites[domain] = st
		heap.Push(&n.order, st)
	}
	heap.Push(&st.queue, &naiveRcpt{id: fmt.Sprintf("%016x", id), rcpt: rcpt, domain: domain, due: due, site: st})
	n.fix(st)
}

func (n *naive) take(now time.Time) *naiveRcpt {
	st := n.order[0]
	if st.key.After(now) {
		return nil
	}
	r := heap.Pop(&st.queue).(*naiveRcpt)
	st.inflight++
	n.fix(st)
	return r
}

func (n *naive) done(r *naiveRcpt, due time.Time) {
	r.site.inflight--
	r.due, r.attempts = due, r.attempts+1
	heap.Push(&r.site.queue, r)
	n.fix(r.site)
}

// A load is the same mail for both: recipients over sites by Zipf's law, half of
// them due, the rest spread over four hours to come. Message ids have their real
// form, and every third recipient belongs to the message before.
type load struct {
	domains []string
	which   []uint32
	ids     []uint64
	due     []int32
}

func newLoad() *load {
	r := rand.New(rand.NewPCG(1, 2))
	z := rand.NewZipf(r, 1.1, 8, benchSites-1)
	l := &load{}
	for i := range benchSites {
		l.domains = append(l.domains, fmt.Sprintf("mail%d.example-%d.org", i, i%977))
	}
	id := uint64(epoch.UnixMilli()) << 22
	for i := range benchRecipients {
		if i%3 != 2 {
			id += 1 << 22
		}
		k := uint32(i) // every site has one at least
		if i >= benchSites {
			k = uint32(z.Uint64())
		}
		l.which = append(l.which, k)
		l.ids = append(l.ids, id)
		l.due = append(l.due, int32(max(0, r.IntN(8*3600)-4*3600)))
	}
	return l
}

func (l *load) dueAt(i int) time.Time { return epoch.Add(time.Duration(l.due[i]) * time.Second) }

// heapNow is what is in use after a collection, and how long one takes.
func heapNow() (bytes uint64, gc time.Duration) {
	runtime.GC()
	debug.FreeOSMemory()
	var m runtime.MemStats
	var took []time.Duration
	for range 3 {
		start := time.Now()
		runtime.GC()
		took = append(took, time.Since(start))
	}
	runtime.ReadMemStats(&m)
	return m.HeapAlloc, slices.Min(took)
}

// built is what building one of the two has cost.
type built struct {
	each  float64 // bytes a recipient
	gc    time.Duration
	build time.Duration
	pause time.Duration // the longest stop of the world while building
}

func measure(build func() any) (any, built) {
	before, idle := heapNow()
	var m0, m1 runtime.MemStats
	runtime.ReadMemStats(&m0)
	start := time.Now()
	x := build()
	took := time.Since(start)
	runtime.ReadMemStats(&m1)
	after, gc := heapNow()
	runtime.KeepAlive(x)
	var pause uint64
	for k := m0.NumGC; k < m1.NumGC; k++ {
		pause = max(pause, m1.PauseNs[k%256])
	}
	return x, built{
		each: (float64(after) - float64(before)) / benchRecipients, gc: max(0, gc-idle), build: took, pause: time.Duration(pause),
	}
}

func (l *load) ours() any {
	s := New(Options{Channels: []Channel{{Limit: 1000}}})
	for i, k := range l.which {
		s.Add(Entry{Domain: l.domains[k], ID: l.ids[i], Recipient: uint32(i), Due: l.dueAt(i)})
	}
	return s
}

func (l *load) naive() any {
	n := &naive{sites: map[string]*naiveSite{}, limit: DefaultSiteLimit}
	for i, k := range l.which {
		n.add(l.domains[k], l.ids[i], i, l.dueAt(i))
	}
	return n
}

// BenchmarkMillion holds a million recipients over a hundred thousand sites. One
// operation builds both schedules and makes 200,000 deliveries, all deferred
// by an hour, a hundred in flight. What is printed are ours, and how many times
// the naive one needs. Bytes are all there is: slots, heaps, names, maps.
func BenchmarkMillion(b *testing.B) {
	l := newLoad()
	for b.Loop() {
		x, ours := measure(l.ours)
		s := x.(*Schedule)
		first := time.Now()
		early, _ := s.Take(epoch)
		b.ReportMetric(float64(time.Since(first).Microseconds())/1000, "first-take-ms")
		if err := s.Return(epoch, early); err != nil {
			b.Fatal(err)
		}
		each, worst := oursCycle(b, s)
		if err := s.Check(); err != nil {
			b.Fatal(err)
		}
		x, s = nil, nil
		_ = x
		y, theirs := measure(l.naive)
		naiveEach := naiveCycle(b, y.(*naive))
		y = nil
		_ = y

		b.ReportMetric(ours.each, "B/rcpt")
		b.ReportMetric(theirs.each/ours.each, "x-B")
		b.ReportMetric(ours.gc.Seconds()*1000, "gc-ms")
		b.ReportMetric(theirs.gc.Seconds()/max(1e-6, ours.gc.Seconds()), "x-gc")
		b.ReportMetric(ours.build.Seconds(), "build-s")
		b.ReportMetric(theirs.build.Seconds()/ours.build.Seconds(), "x-build")
		b.ReportMetric(float64(ours.pause.Microseconds()), "pause-us")
		b.ReportMetric(each, "ns/take+done")
		b.ReportMetric(naiveEach/each, "x-take+done")
		b.ReportMetric(worst.Seconds()*1e6, "p99.9-us")
	}
}

const cycle = 200_000

func oursCycle(b *testing.B, s *Schedule) (each float64, slow time.Duration) {
	out := []Outcome{{Deferred: true}}
	var flying []Batch
	laps := make([]time.Duration, 0, cycle)
	now, start := epoch, time.Now()
	for range cycle {
		lap := time.Now()
		x, ok := s.Take(now)
		if !ok {
			b.Fatal("nothing to take")
		}
		flying = append(flying, x)
		if len(flying) == 100 {
			f := flying[0]
			flying = flying[1:]
			for len(out) < len(f.Recipients) {
				out = append(out, out[0])
			}
			for i := range f.Recipients {
				out[i].Due = now.Add(time.Hour)
			}
			if err := s.Done(now, f, Succeeded, out[:len(f.Recipients)]); err != nil {
				b.Fatal(err)
			}
		}
		laps = append(laps, time.Since(lap))
	}
	each = float64(time.Since(start).Nanoseconds()) / cycle
	slices.Sort(laps)
	for _, f := range flying {
		if err := s.Return(now, f); err != nil {
			b.Fatal(err)
		}
	}
	return each, laps[cycle*999/1000]
}

func naiveCycle(b *testing.B, n *naive) float64 {
	var flying []*naiveRcpt
	now, start := epoch, time.Now()
	for range cycle {
		r := n.take(now)
		if r == nil || r.rcpt < 0 {
			b.Fatal("nothing to take")
		}
		flying = append(flying, r)
		if len(flying) == 100 {
			n.done(flying[0], now.Add(time.Hour))
			flying = flying[1:]
		}
	}
	return float64(time.Since(start).Nanoseconds()) / cycle
}

// BenchmarkFullSite takes from other sites while a million recipients wait for
// one that is at its limit, and compares with the same without them.
func BenchmarkFullSite(b *testing.B) {
	cost := func(backlog int) time.Duration {
		s := New(Options{})
		for i := range backlog {
			s.Add(Entry{Domain: "big.example", ID: uint64(i + 1), Due: epoch})
		}
		for range DefaultProbe {
			if backlog > 0 {
				s.Take(epoch)
			}
		}
		const n = 100_000
		start := time.Now()
		for i := range n {
			s.Add(Entry{Domain: "small.example", ID: uint64(1<<40 + i), Due: epoch})
			x, ok := s.Take(epoch)
			if !ok || x.Domain != "small.example" {
				b.Fatalf("took %+v", x)
			}
			if err := s.Done(epoch, x, Succeeded, nil); err != nil {
				b.Fatal(err)
			}
		}
		return time.Since(start) / n
	}
	for b.Loop() {
		alone := cost(0)
		beside := cost(benchRecipients)
		b.ReportMetric(float64(beside.Nanoseconds()), "ns/add+take+done")
		b.ReportMetric(beside.Seconds()/alone.Seconds(), "x-empty")
	}
}

// BenchmarkLook looks at a schedule of a million recipients: at those of one
// message, at all sites, channels, and recipients, and checks everything.
func BenchmarkLook(b *testing.B) {
	l := newLoad()
	s := l.ours().(*Schedule)
	for _, c := range []struct {
		name string
		look func(i int) int
	}{
		{"message", func(i int) int { return count(s.Items(Select{ID: l.ids[i*7919%benchRecipients]})) }},
		{"sites", func(int) int { return count(s.Sites(epoch)) }},
		{"channels", func(int) int { return len(s.Channels()) }},
		{"recipients", func(int) int { return count(s.Items(Select{})) }},
		{"check", func(int) int {
			if err := s.Check(); err != nil {
				b.Error(err)
			}
			return 1
		}},
	} {
		b.Run(c.name, func(b *testing.B) {
			i := 0
			for b.Loop() {
				if i++; c.look(i) == 0 {
					b.Fatal("there is nothing")
				}
			}
		})
	}
}

func count[T any](all iter.Seq[T]) (n int) {
	for range all {
		n++
	}
	return n
}

// BenchmarkEdit holds and releases one message among a million.
func BenchmarkEdit(b *testing.B) {
	l := newLoad()
	s := l.ours().(*Schedule)
	for b.Loop() {
		if s.Hold(Select{ID: l.ids[500_000]}) == 0 || s.Release(Select{ID: l.ids[500_000]}) == 0 {
			b.Fatal("the message is not there")
		}
	}
}
