package limit

import (
	"cmp"
	"math"
	"slices"
	"strings"
	"time"
)

// Learned is what was found out about a site from a source, as it outlives a
// restart: what a Control has when no connection is open. It is a value for
// Gate.Export, Gate.Import and the records; nobody else needs its fields, which
// are those of a Control. Times are in nanoseconds of Unix, 0 for none.
type Learned struct {
	Site   string `json:"site"`
	Source string `json:"source,omitempty"`
	// Provider is that of the site.
	Provider string `json:"provider,omitempty"`
	// Last is when it was last used.
	Last int64 `json:"last"`

	Limit   int           `json:"limit"`
	Ceiling int           `json:"ceiling,omitempty"`
	Step    int           `json:"step,omitempty"`
	Probing bool          `json:"probing,omitempty"`
	ProbeAt int64         `json:"probe_at,omitempty"`
	Wait    time.Duration `json:"wait,omitempty"`
	Peak    int           `json:"peak,omitempty"`
	Worked  int           `json:"worked,omitempty"`

	Pace *LearnedPace `json:"pace,omitempty"`

	Failures int           `json:"failures,omitempty"`
	Slept    time.Duration `json:"slept,omitempty"`
	Since    int64         `json:"since,omitempty"`
	Until    int64         `json:"until,omitempty"`
	Asleep   bool          `json:"asleep,omitempty"`
	Why      string        `json:"why,omitempty"`

	// Moves are the last few.
	Moves []Move `json:"moves,omitempty"`
	Said  *Said  `json:"said,omitempty"`
}

// LearnedPace is what was found out about a rate; see Learned.
type LearnedPace struct {
	Rate    float64       `json:"rate,omitempty"`
	Target  float64       `json:"target,omitempty"`
	Good    float64       `json:"good,omitempty"`
	Bad     float64       `json:"bad,omitempty"`
	Probing bool          `json:"probing,omitempty"`
	Base    float64       `json:"base,omitempty"`
	Grown   int           `json:"grown,omitempty"`
	Lost    int           `json:"lost,omitempty"`
	Changed int64         `json:"changed,omitempty"`
	ProbeAt int64         `json:"probe_at,omitempty"`
	Wait    time.Duration `json:"wait,omitempty"`
	Next    int64         `json:"next,omitempty"`
	Rest    time.Duration `json:"rest,omitempty"`
	Resting bool          `json:"resting,omitempty"`
	CutAt   int64         `json:"cut_at,omitempty"`
	// What was accepted lately, in buckets of time, the last of which is number At.
	Buckets []uint32 `json:"buckets,omitempty"`
	At      int64    `json:"at,omitempty"`
	Since   int64    `json:"since,omitempty"`
}

// learnedMoves are as many as are kept over a restart.
const learnedMoves = 4

// weight says how much would be lost with what a Control knows: 0 nothing, since a
// new one knows as much.
func (c *Control) weight(now time.Time) int {
	switch {
	case now.Before(c.until):
		return 3
	case c.ceiling > 0 || c.pace.rate > 0:
		return 2
	case c.limit != firstConnections || c.failures > 0:
		return 1
	}
	return 0
}

// Export is what was found out, for Import after a restart: of sites of which
// anything was, at most so many; suspensions come first, then what servers have
// refused, then the rest, the one that was used last first. How much of a rate is
// used up is not part of it.
func (g *Gate) Export(now time.Time, most int) []Learned {
	type known struct {
		pair
		weight int
		last   time.Time
	}
	var all []known
	g.mu.Lock()
	for p, c := range g.controls {
		if w := c.weight(now); w > 0 && !c.idle(now) {
			all = append(all, known{p, w, c.last})
		}
	}
	g.unlock()
	slices.SortFunc(all, func(a, b known) int {
		return cmp.Or(cmp.Compare(b.weight, a.weight), b.last.Compare(a.last), strings.Compare(a.site, b.site), strings.Compare(a.source, b.source))
	})
	all = all[:min(len(all), max(0, most))]
	learned := make([]Learned, 0, len(all))
	for some := range slices.Chunk(all, exportedAtOnce) {
		g.mu.Lock()
		for _, k := range some {
			if c := g.controls[k.pair]; c != nil {
				learned = append(learned, c.learned(now, k.site, k.source))
			}
		}
		g.unlock()
	}
	return learned
}

// exportedAtOnce is how many sites are exported with the Gate locked, for which
// deliveries wait.
const exportedAtOnce = 100

func (c *Control) learned(now time.Time, site, source string) Learned {
	l := Learned{
		Site: site, Source: source, Provider: c.provider, Last: nanos(c.last),
		Limit: c.limit, Ceiling: c.ceiling, Step: c.step, Probing: c.probing, ProbeAt: nanos(c.probeAt), Wait: c.wait,
		Peak: c.peak, Worked: c.worked, Pace: c.pace.learned(now), Failures: c.failures, Slept: c.slept,
		Moves: slices.Clone(c.moves[max(0, len(c.moves)-learnedMoves):]),
	}
	if now.Before(c.until) {
		l.Since, l.Until, l.Why, l.Asleep = nanos(c.since), nanos(c.until), c.why, c.asleep
	}
	if said := c.said; !said.Time.IsZero() {
		l.Said = &said
	}
	return l
}

func (p *pace) learned(now time.Time) *LearnedPace {
	l := LearnedPace{
		Rate: p.rate, Target: p.target, Good: p.good, Bad: p.bad, Probing: p.probing, Base: p.base, Grown: p.grown, Lost: p.lost,
		Changed: nanos(p.changed), ProbeAt: nanos(p.probeAt), Wait: p.wait, Next: nanos(p.next), Rest: p.rest, Resting: p.resting, CutAt: nanos(p.cutAt),
	}
	if m := &p.meter; m.since != 0 && bucket(now)-m.at < meterBuckets {
		l.At, l.Since = m.at, m.since
		for b := max(m.since, m.at-meterBuckets+1); b <= m.at; b++ {
			l.Buckets = append(l.Buckets, m.buckets[b%meterBuckets])
		}
	}
	if p.rate == 0 && p.bad == 0 && l.Since == 0 {
		return nil
	}
	return &l
}

// Import takes in what Export gave at a time, and returns of how many sites. A site
// that is known already keeps what is known; what is too old to be remembered, or
// cannot be, is dropped. With that the Gate goes on as the other would have. If the
// clock is behind the time of the export, no time has passed since.
func (g *Gate) Import(now, exported time.Time, all []Learned) (n int) {
	g.mu.Lock()
	defer g.unlock()
	shift := min(0, now.Sub(exported))
	for i := range all {
		l := &all[i]
		key := pair{l.Site, l.Source}
		if l.Site == "" || g.controls[key] != nil {
			continue
		}
		c := l.control(now, shift)
		if c.idle(now) || c.weight(now) == 0 {
			continue
		}
		g.controls[key] = c
		n++
	}
	return n
}

// The bounds of what is believed of a record.
const (
	maxConnections = 100_000
	maxRate        = 1e6
	// maxSuspended is the longest that a suspension holds on after a restart: longer
	// than any rule's pause.
	maxSuspended = 7 * 24 * time.Hour
)

// control is a Control that goes on with what was learned, within bounds: nothing
// that a record says makes a limit that cannot move any more.
func (l *Learned) control(now time.Time, shift time.Duration) *Control {
	at := func(n int64, most time.Duration) time.Time {
		t := instant(n)
		if t.IsZero() {
			return t
		}
		if t = t.Add(shift); t.After(now.Add(most)) {
			return now.Add(most)
		}
		return t
	}
	c := &Control{
		limit: clamp(l.Limit, 1, maxConnections), ceiling: clamp(l.Ceiling, 0, maxConnections), step: clamp(l.Step, 0, maxConnections),
		probing: l.Probing, probeAt: at(l.ProbeAt, lastProbe), wait: clamp(l.Wait, firstProbe, lastProbe), worked: clamp(l.Worked, 0, math.MaxInt32),
		failures: clamp(l.Failures, 0, math.MaxInt32), slept: clamp(l.Slept, 0, lastSleep), since: at(l.Since, 0), until: at(l.Until, maxSuspended), why: clipped(l.Why, maxWhy),
		last: at(l.Last, 0), provider: clipped(l.Provider, maxName),
	}
	c.asleep = l.Asleep && now.Before(c.until)
	switch {
	case c.ceiling == 0:
		c.probing = false
	case c.probing && c.limit > c.ceiling && c.step > 0:
	default:
		// Growth begins where the limit is the ceiling.
		c.probing, c.limit = false, c.ceiling
	}
	c.peak = clamp(l.Peak, 0, c.limit)
	if l.Pace != nil {
		c.pace = l.Pace.pace(now, shift, at)
	}
	past := func(t time.Time) time.Time {
		if t = t.Add(shift); t.After(now) {
			return now
		}
		return t
	}
	if l.Said != nil {
		c.said = Said{past(l.Said.Time), l.Said.Class, clipped(l.Said.Text, maxWhy)}
	}
	for _, m := range l.Moves[max(0, len(l.Moves)-learnedMoves):] {
		m.What, m.From, m.To, m.Why = clipped(m.What, maxWord), clipped(m.From, maxWord), clipped(m.To, maxWord), clipped(m.Why, maxWhy)
		m.Time = past(m.Time)
		c.moves = append(c.moves, m)
	}
	return c
}

func (l *LearnedPace) pace(now time.Time, shift time.Duration, at func(int64, time.Duration) time.Time) pace {
	rate := func(r float64) float64 {
		if r > 0 { // false for what is no number, too
			return clamp(r, lowestRate, maxRate)
		}
		return 0
	}
	p := pace{
		rate: rate(l.Rate), target: rate(l.Target), good: rate(l.Good), bad: rate(l.Bad), probing: l.Probing, base: rate(l.Base),
		grown: clamp(l.Grown, 0, math.MaxInt32), lost: clamp(l.Lost, 0, math.MaxInt32),
		changed: at(l.Changed, 0), probeAt: at(l.ProbeAt, lastProbe), wait: clamp(l.Wait, 0, lastProbe), next: at(l.Next, lastRest), cutAt: at(l.CutAt, 0),
		rest: clamp(l.Rest, 0, lastRest), resting: l.Resting,
		epoch: 1, // that of no message
	}
	if p.resting {
		p.rest = max(p.rest, firstRest)
	}
	if p.probing {
		p.base = max(p.base, lowestRate)
	}
	p.meter.restore(now, shift, l)
	return p
}

// restore takes buckets back, unless the clock has jumped.
func (m *meter) restore(now time.Time, shift time.Duration, l *LearnedPace) {
	here := bucket(now)
	if n := len(l.Buckets); shift != 0 || n == 0 || n > meterBuckets || l.At > here || l.At <= here-meterBuckets || l.Since <= 0 || l.Since > l.At-int64(n)+1 {
		return
	}
	m.at, m.since = l.At, l.Since
	for i, count := range l.Buckets {
		b := l.At - int64(len(l.Buckets)-1-i)
		m.buckets[b%meterBuckets] = min(count, maxRate)
	}
}

func clamp[T cmp.Ordered](v, least, most T) T { return min(max(v, least), most) }

// nanos is a time in a record, instant its inverse.
func nanos(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

func instant(n int64) time.Time {
	if n == 0 {
		return time.Time{}
	}
	return time.Unix(0, n)
}

// The bounds of texts in records, in bytes.
const (
	maxWord = 40
	maxWhy  = 400
)

func clipped(s string, most int) string {
	return strings.ToValidUTF8(s[:min(len(s), most)], "?")
}
