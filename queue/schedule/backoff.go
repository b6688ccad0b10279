package schedule

import (
	"math"
	"time"
)

// DefaultLifetime is qmail's queuelifetime.
const DefaultLifetime = 604800 * time.Second

// qmail's constants (qmail-send.c): how fast the intervals grow for deliveries
// over the network and for local ones.
const (
	QmailRemote = 20
	QmailLocal  = 10
)

// DefaultJitter is the greatest part by which an interval is made longer.
const DefaultJitter = 0.1

// A Backoff says when to try again after a temporary failure. The zero value is
// Qmail(QmailRemote). A Backoff never changes and may be used concurrently.
type Backoff struct {
	kind   backoffKind
	c      int             // qmail
	base   time.Duration   // exponential; likewise factor and most
	factor float64         // 1 to 100
	most   time.Duration   // the longest interval
	list   []time.Duration // list
	jitter float64         // plus one, so that zero is the default
}

type backoffKind uint8

const (
	kindQmail backoffKind = iota
	kindExponential
	kindList
)

// Qmail is nextretry of qmail-send.c: the age at the next attempt is the square
// of (c + the root of the age now), in seconds. With c = QmailRemote: after
// 0:00, 6:40, 26:40, 1:00:00, 1:46:40 … since the message's birth.
func Qmail(c int) Backoff { return Backoff{kind: kindQmail, c: min(max(1, c), maxQmail)} }

// Exponential waits for base, base times factor, and so on, at most for most.
func Exponential(base time.Duration, factor float64, most time.Duration) Backoff {
	base = max(time.Second, base)
	return Backoff{kind: kindExponential, base: base, factor: max(1, factor), most: max(base, most)}
}

// List waits for its intervals one after the other, and for the last one from
// then on. Without any it is the zero Backoff.
func List(intervals ...time.Duration) Backoff {
	if len(intervals) == 0 {
		return Backoff{}
	}
	return Backoff{kind: kindList, list: append([]time.Duration(nil), intervals...)}
}

// WithJitter is b with intervals made longer by a random part, from none up to
// most (0.2 for twenty per cent). 0 takes all randomness away.
func (b Backoff) WithJitter(most float64) Backoff {
	b.jitter = 1 + min(max(0, most), 1)
	return b
}

// Next is the time of the next attempt for a message born at birth, when
// attempts have been made (one at least: fewer count as one) and the last has
// just ended at now. It is at least a second after now. random yields numbers
// from 0 up to 1, as rand.Float64 does; nil means no jitter.
func (b Backoff) Next(birth, now time.Time, attempts int, random func() float64) time.Time {
	d := max(time.Second, b.interval(now.Sub(birth), max(1, attempts)))
	jitter := DefaultJitter
	if b.jitter != 0 {
		jitter = b.jitter - 1
	}
	if random != nil && jitter > 0 {
		d += time.Duration(float64(d) * jitter * random())
	}
	return now.Add(d)
}

func (b Backoff) interval(age time.Duration, attempts int) time.Duration {
	switch b.kind {
	case kindExponential:
		f := float64(b.base) * math.Pow(b.factor, float64(attempts-1))
		return time.Duration(min(f, float64(b.most)))
	case kindList:
		return b.list[min(attempts, len(b.list))-1]
	}
	c := int64(b.c)
	if c == 0 {
		c = QmailRemote
	}
	was := int64(max(0, age) / time.Second) // a birth in the future is one now, as in qmail
	root := int64(math.Sqrt(float64(was))) + c
	return time.Duration(root*root-was) * time.Second
}

// Expired tells whether an attempt that began at started was the last: the
// first one to begin after the lifetime is made, and if it fails temporarily
// the failure is permanent (qmail-send.c, flagdying).
func Expired(birth, started time.Time, lifetime time.Duration) bool {
	return started.Sub(birth) > lifetime
}
