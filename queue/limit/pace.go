package limit

import (
	"strconv"
	"time"
)

// How a pace moves.
const (
	meterBuckets = 30
	bucketTime   = 2 * time.Second
	meterTime    = meterBuckets * bucketTime
	// stepTime is from one step of climbing back to the next, proofTime how long a
	// rate must have gone well to be known as good.
	stepTime  = 15 * time.Second
	proofTime = time.Minute
	// stepPart is a step's part of the rate that is climbed to, closeEnough how
	// close above the good rate the refused one may be for the search to end, and
	// probePart how far above the good one a probe goes.
	stepPart    = 0.1
	closeEnough = 1.1
	probePart   = 1.05
	growPart    = 1.25
	lowestRate  = 1.0 / 600
	// firstRest and lastRest bound the rest after a refusal; lostTime is how soon a
	// rate that was good must be refused again to be lost by more.
	firstRest = time.Second
	lastRest  = 10 * time.Minute
	lostTime  = 10 * time.Minute
)

// meter counts what was accepted lately.
type meter struct {
	buckets [meterBuckets]uint32
	at      int64 // the bucket that is being filled, counted from the epoch of Unix
	since   int64 // the first one
}

// bucket is the number of a time's bucket.
func bucket(t time.Time) int64 { return t.UnixNano() / int64(bucketTime) }

func (m *meter) roll(now time.Time) {
	b := bucket(now)
	if m.since == 0 || b-m.at >= meterBuckets || m.at-b > 1 { // or the clock was ahead
		*m = meter{at: b, since: b}
		return
	}
	for ; m.at < b; m.at++ {
		m.buckets[(m.at+1)%meterBuckets] = 0
	}
}

func (m *meter) add(now time.Time) {
	m.roll(now)
	m.buckets[m.at%meterBuckets]++
}

// rate is what was accepted in a second, on average over the last minute, or
// since there is anything.
func (m *meter) rate(now time.Time) float64 {
	m.roll(now)
	var sum uint32
	for _, n := range m.buckets {
		sum += n
	}
	span := time.Duration(min(m.at-m.since+1, meterBuckets)) * bucketTime
	return float64(sum) / span.Seconds()
}

// pace is a rate of messages that is found out: between one that is known to be
// good and one that was refused.
type pace struct {
	meter meter
	rate  float64 // now; 0: no limit
	// target is climbed to; good went well for a while, bad was refused.
	target, good, bad float64
	// base was good before a probe; grown is how many steps above it went well.
	probing bool
	base    float64
	grown   int
	// lost is how often, running, what was good was not any more.
	lost    int
	epoch   uint32
	changed time.Time
	probeAt time.Time
	wait    time.Duration
	// next is when the next message may be begun. After a refusal nothing is sent
	// for rest, which grows until something is accepted again.
	next    time.Time
	rest    time.Duration
	resting bool // nothing was accepted since the last refusal
	cutAt   time.Time
}

// String is the rate, "none" without a limit.
func (p *pace) String() string {
	if p.rate == 0 {
		return "none"
	}
	return RateText(p.rate)
}

// RateText is a rate of so many a second in the unit in which it is best read: 2.5/s,
// 12/min, 6/h.
func RateText(rate float64) string {
	for _, u := range rateUnits[:3] {
		if n := rate * u.per.Seconds(); n >= 0.9995 || u.per == time.Hour {
			return strconv.FormatFloat(n, 'g', 3, 64) + "/" + u.name
		}
	}
	return ""
}

// accepted takes in a message that was begun in an epoch. Only one that was begun
// after a refusal says that it is over.
func (p *pace) accepted(now time.Time, epoch uint32) {
	p.meter.add(now)
	if p.resting && epoch == p.epoch {
		p.resting, p.rest, p.next, p.changed = false, 0, now, now
	}
}

func (p *pace) measure(now time.Time) float64 { return p.meter.rate(now) }

func (p *pace) set(now time.Time, rate float64) {
	p.rate, p.changed = max(rate, lowestRate), now
	p.epoch++
}

// losses are the parts of a good rate that are tried when it is refused again and
// again.
var losses = [...]float64{0.95, 0.85, 0.7, 0.5}

// refused takes in a refusal of a message that was begun in an epoch, and reports
// whether it cuts the rate, and what the rate was. What was begun before the last
// change says nothing about what came of it.
func (p *pace) refused(now time.Time, epoch uint32) (from string, ok bool) {
	if p.resting {
		if epoch == p.epoch { // the one that went ahead
			p.rest = min(2*p.rest, lastRest)
			p.next = now.Add(p.rest)
			p.epoch++
		}
		return "", false
	}
	if epoch != p.epoch {
		return "", false
	}
	p.resting, p.rest = true, firstRest
	p.next = now.Add(p.rest)
	from = p.String()
	at := p.rate
	if at == 0 {
		at = max(p.meter.rate(now), lowestRate)
	}
	p.aim(now, at)
	p.probing, p.grown, p.cutAt = false, 0, now
	p.target = max(p.target, lowestRate)
	p.set(now, min(at/2, p.target))
	p.probeAt = now.Add(p.wait)
	return from, true
}

// aim says what to climb to after a refusal at a rate.
func (p *pace) aim(now time.Time, at float64) {
	wait := p.wait
	p.wait = firstProbe
	switch {
	case p.probing:
		p.good, p.target = p.base, p.base
		if p.grown < 2 {
			p.wait = min(wait*3/2, lastProbe)
		} else {
			p.good = at / growPart / growPart
			p.target = at / growPart
		}
	case p.good > 0 && at > p.good*1.001:
		p.target = p.good
		if at > p.good*closeEnough {
			p.target = (p.good + at) / 2
		}
	case p.good > 0 || now.Sub(p.cutAt) < lostTime && p.lost > 0:
		// What was good is not any more.
		if now.Sub(p.cutAt) >= lostTime {
			p.lost = 0
		}
		p.good, p.target = 0, at*losses[min(p.lost, len(losses)-1)]
		p.lost++
	default:
		p.target = at * 0.85
	}
	p.bad = at
}

// climb moves the rate on, if it is time. A rate is only proved by being used.
func (p *pace) climb(now time.Time) {
	if p.rate == 0 || p.resting {
		return
	}
	gone := now.Sub(p.changed)
	switch {
	case p.rate < p.target:
		if gone >= stepTime {
			p.set(now, min(p.target, p.rate+p.target*stepPart))
		}
	case p.probing:
		if gone < proofTime && (p.grown == 0 || gone < proofTime/2) || !p.used(now) {
			return
		}
		p.good, p.grown = p.rate, p.grown+1
		p.target = p.rate * growPart
		p.set(now, p.target)
	case p.rate > p.good && gone >= proofTime && p.used(now):
		p.good = p.rate
		if p.bad > p.good*closeEnough {
			p.target = (p.good + p.bad) / 2
			p.set(now, p.target)
		}
	case p.rate <= p.good && !now.Before(p.probeAt) && p.used(now):
		p.probing, p.base, p.grown = true, p.good, 0
		p.target = p.good * probePart
		p.set(now, p.target)
	}
}

// used reports whether what was accepted lately is near the rate.
func (p *pace) used(now time.Time) bool { return p.meter.rate(now) >= 0.7*p.rate }

// rests is until when nothing is begun after a refusal, so that no connection is worth
// opening; zero if there is no rest.
func (p *pace) rests(now time.Time) time.Time {
	if p.resting && now.Before(p.next) {
		return p.next
	}
	return time.Time{}
}

// begin admits a message, or says when to come again.
func (p *pace) begin(now time.Time) (epoch uint32, until time.Time, ok bool) {
	p.climb(now)
	if now.Before(p.next) {
		return 0, p.next, false
	}
	if p.resting {
		p.next = now.Add(p.rest) // one goes ahead, and the others wait for what it hears
		return p.epoch, time.Time{}, true
	}
	if p.rate == 0 {
		return p.epoch, time.Time{}, true
	}
	every := time.Duration(float64(time.Second) / p.rate)
	// A little that was missed may be made up for, so that the rate is reached.
	late := min(now.Sub(p.next), every)
	p.next = now.Add(every - late)
	return p.epoch, time.Time{}, true
}
