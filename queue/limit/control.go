package limit

import (
	"cmp"
	"fmt"
	"time"
)

// How a Control moves.
const (
	firstConnections = 4
	// firstProbe is the time from a refusal to the first connection above the
	// ceiling, lastProbe the longest time to the next.
	firstProbe = 10 * time.Minute
	lastProbe  = 30 * time.Minute
	// failuresToSleep are the failures running that make a site unreachable,
	// firstSleep its first pause and lastSleep the longest.
	failuresToSleep = 3
	firstSleep      = time.Minute
	lastSleep       = 30 * time.Minute
	keptMoves       = 16
)

// Move is one change of a Control, for people.
type Move struct {
	Time time.Time `json:"time"`
	// What was changed, and from what to what.
	What string `json:"what"`
	From string `json:"from,omitempty"`
	To   string `json:"to"`
	// Why is the answer or the event behind it.
	Why string `json:"why"`
}

// Control finds out how much a site wants of a source. The Gate has one for each
// such pair, and its lock.
type Control struct {
	// limit is how many connections there may be; epoch counts its changes.
	limit int
	epoch uint32
	// cut is the epoch that the last cut began; connections that were opened before
	// it and come through after all take back a part of it, below before.
	cut    uint32
	before int
	// ceiling is the number that worked when there was a refusal, 0 if there was
	// none; step is by how much it is passed, probing that it is.
	ceiling, step int
	probing       bool
	probeAt       time.Time
	wait          time.Duration

	open, accepted int // connections
	peak           int // most accepted at once in this epoch
	worked         int // messages taken in this epoch
	// base is how many are known to work while there is no ceiling; proofs are messages
	// that were taken in this epoch over connections beyond that, one each.
	base, proofs int

	pace pace

	failures int
	slept    time.Duration
	// since and until are of a suspension, why the reason. asleep is set while that is
	// only that the site could not be reached.
	since, until time.Time
	why          string
	asleep       bool
	said         Said

	// shut is a connection that came to nothing while others to the same address
	// worked; nil for none. greetings counts those that worked.
	shut      *shut
	greetings uint64

	moves []Move
	last  time.Time
	// provider is that of the site, as it was last asked for.
	provider string
}

// conn is a connection as its Control knows it.
type conn struct {
	epoch    uint32
	accepted bool
	// message is the pace's epoch in which the message under way was begun, or the
	// connection before it had any.
	message uint32
	// greeting is its number among those that were accepted, 0 before.
	greeting uint64
	// beyond is one more than the epoch in which it was accepted as one more than are
	// known to work; 0 if it was not, or a message has proved that it does.
	beyond uint32
}

// shut is a connection that was closed without a word. That it was one too many is
// known when one that was there before takes a message after it.
type shut struct {
	conn    conn
	address string
	before  uint64 // greetings up to then
	why     string
}

func newControl() *Control {
	return &Control{limit: firstConnections, wait: firstProbe}
}

func (c *Control) moved(now time.Time, what, from, to, why string) {
	if len(c.moves) == keptMoves {
		c.moves = append(c.moves[:0], c.moves[1:]...)
	}
	c.moves = append(c.moves, Move{now, what, from, to, clipped(why, maxWhy)})
}

// change sets the limit and begins an epoch.
func (c *Control) change(now time.Time, to int, why string) {
	if to != c.limit {
		c.moved(now, "connections", fmt.Sprint(c.limit), fmt.Sprint(to), why)
	}
	c.base = min(c.limit, to)
	c.limit = to
	c.epoch++
	c.peak, c.worked, c.proofs = c.accepted, 0, 0
}

// connections is how many there may be now, at most most.
func (c *Control) connections(now time.Time, most int) int {
	if c.ceiling > 0 && !c.probing && c.limit < most && !now.Before(c.probeAt) && c.limit == c.ceiling {
		c.probing, c.step = true, 1
		c.change(now, c.ceiling+1, "a probe above what worked")
	}
	return min(c.limit, most)
}

// opened notes a new connection.
func (c *Control) opened(now time.Time) conn {
	c.open++
	c.last = now
	return conn{epoch: c.epoch, message: c.pace.epoch}
}

// greeted notes that the server has taken a connection.
func (c *Control) greeted(now time.Time, k *conn) {
	if k.accepted {
		return
	}
	k.accepted = true
	c.accepted++
	c.greetings++
	k.greeting = c.greetings
	if c.accepted > c.known() {
		k.beyond = c.epoch + 1
	}
	c.reached(now)
	c.peak = max(c.peak, c.accepted)
	if k.epoch < c.cut && c.accepted > c.limit && c.accepted < c.before {
		// It was under way when the limit was cut: what worked was more.
		c.ceiling = c.accepted
		c.moved(now, "connections", fmt.Sprint(c.limit), fmt.Sprint(c.accepted), "more than it seemed had come through")
		c.limit = c.accepted
	}
}

// known is how many connections are known to work.
func (c *Control) known() int { return cmp.Or(c.ceiling, c.base) }

// closed notes that a connection is gone.
func (c *Control) closed(now time.Time, k *conn) {
	c.open--
	c.last = now
	if k.accepted {
		c.accepted--
		k.accepted = false
	}
	if c.accepted == 0 {
		c.shut, c.proofs, c.base = nil, 0, 0 // nobody is left who knows
	}
}

// succeeded notes a message that was taken, and raises the limit if there is
// reason to. most is the configured limit.
func (c *Control) succeeded(now time.Time, k *conn, most int) {
	c.last = now
	c.pace.accepted(now, k.message)
	c.worked++
	if k.beyond == c.epoch+1 {
		k.beyond = 0
		c.proofs++
	}
	if c.peak < c.limit || c.limit >= most || c.proofs < c.limit-c.known() {
		return
	}
	switch {
	case c.ceiling == 0 && c.worked >= c.limit:
		c.change(now, min(most, 2*c.limit), "all of them worked")
	case c.probing:
		c.ceiling = c.limit
		c.step *= 2
		c.wait = firstProbe
		c.change(now, min(most, c.ceiling+c.step), "more than the ceiling worked")
	}
}

// tooMany notes a refusal for the number of connections, and reports whether it
// moved the limit: refusals of connections that are older than its last change
// do not.
func (c *Control) tooMany(now time.Time, k *conn, why string) bool {
	c.last = now
	useless := k.accepted
	if useless { // it is open, and takes nothing
		k.accepted = false
		c.accepted--
	}
	if k.epoch != c.epoch {
		if to := max(1, c.accepted, c.before/2); useless && k.epoch < c.cut && to < c.limit {
			// It had seemed to work when the limit was cut.
			c.moved(now, "connections", fmt.Sprint(c.limit), fmt.Sprint(to), why)
			c.ceiling, c.limit, c.probing = to, to, false
			c.probeAt = now.Add(c.wait)
		}
		return false
	}
	works := max(1, min(c.accepted, c.limit-1))
	if c.probing && c.step == 1 {
		c.wait = min(c.wait*3/2, lastProbe)
	} else {
		c.wait = firstProbe
	}
	if c.probing {
		works = max(works, min(c.ceiling, c.accepted))
	}
	c.before, c.ceiling, c.probing = c.limit, works, false
	c.probeAt = now.Add(c.wait)
	c.change(now, works, why)
	c.cut = c.epoch
	return true
}

// tooFast notes a refusal for the rate.
func (c *Control) tooFast(now time.Time, k *conn, why string) bool {
	c.last = now
	from, ok := c.pace.refused(now, k.message)
	if ok {
		c.moved(now, "messages", from, c.pace.String(), why)
	}
	return ok
}

// unreachable notes a connection that was not to be had, or a server with
// troubles of its own.
func (c *Control) unreachable(now time.Time, why string) {
	c.last = now
	if c.failures++; c.failures < failuresToSleep || now.Before(c.until) {
		return // those that were under way when it fell asleep say nothing new
	}
	c.slept = min(lastSleep, max(firstSleep, 2*c.slept))
	c.sleep(now, c.slept, "cannot be reached: "+why)
	c.asleep = true
}

// reached notes that the site can be reached.
func (c *Control) reached(now time.Time) {
	c.failures, c.slept = 0, 0
	if c.asleep && now.Before(c.until) {
		c.moved(now, "suspended", c.until.Sub(now).Round(time.Second).String(), "", "it can be reached")
		c.resume()
	}
	c.asleep = false
}

// closedUnheard notes a connection that came to nothing at an address where others
// work.
func (c *Control) closedUnheard(k *conn, address, why string) {
	if c.shut == nil && c.accepted > 0 {
		c.shut = &shut{*k, address, c.greetings, why}
	}
}

// heard notes a message that was taken at an address: a connection that came to
// nothing before, when this one was there, was one too many.
func (c *Control) heard(now time.Time, k *conn, address string) {
	s := c.shut
	if s == nil || s.address != address {
		return
	}
	c.shut = nil
	if k.greeting == 0 || k.greeting > s.before {
		return
	}
	c.reached(now)
	c.tooMany(now, &s.conn, "closed without a word, while others worked: "+s.why)
}

// sleep suspends the site for this source.
func (c *Control) sleep(now time.Time, d time.Duration, why string) {
	until := now.Add(d)
	if until.After(c.until) {
		c.moved(now, "suspended", "", d.String(), why)
		if !now.Before(c.until) {
			c.since = now
		}
		c.until, c.why, c.asleep = until, clipped(why, maxWhy), false
	}
}

// resume ends a suspension.
func (c *Control) resume() {
	c.since, c.until, c.why, c.failures, c.slept, c.asleep = time.Time{}, time.Time{}, "", 0, 0, false
}

// refusal is what a suspension says.
func (c *Control) refusal(k Key) *Refusal {
	return &Refusal{Key: k, What: suspendedWhat, Until: c.until, Since: c.since, Why: c.why}
}

// note remembers an answer, for people.
func (c *Control) note(now time.Time, class Class, why string) {
	c.said = Said{now, class, clipped(why, maxWhy)}
}

// idle reports whether nothing is worth remembering any more.
func (c *Control) idle(now time.Time) bool {
	return c.open == 0 && !now.Before(c.until) && now.Sub(c.last) > forgetAfter
}

// forgetAfter is how long a Control without connections is remembered: longer
// than the longest interval between probes, so that a ceiling is not found anew
// by every message of a site that gets little.
const forgetAfter = 4 * time.Hour

// ControlState is a Control at an instant, for people.
type ControlState struct {
	Limit, Open, Accepted, Ceiling int
	Probing                        bool
	ProbeAt                        time.Time
	// Rate is in messages a second, 0 for no limit.
	Rate     float64
	Measured float64
	Failures int
	// Since, Until and Why tell of a suspension.
	Since, Until time.Time
	Why          string
	Moves        []Move
	// Said is the last answer that says anything about our limits, or why the last
	// connection came to nothing; zero if there was none.
	Said Said
}

// Said is what was heard from a site, for people.
type Said struct {
	Time  time.Time `json:"time"`
	Class Class     `json:"class"`
	Text  string    `json:"text"`
}

func (c *Control) state(now time.Time) ControlState {
	s := ControlState{
		Limit: c.limit, Open: c.open, Accepted: c.accepted, Ceiling: c.ceiling, Probing: c.probing,
		Rate: c.pace.rate, Measured: c.pace.measure(now), Failures: c.failures, Moves: append([]Move(nil), c.moves...), Said: c.said,
	}
	if c.ceiling > 0 && !c.probing {
		s.ProbeAt = c.probeAt
	}
	if now.Before(c.until) {
		s.Since, s.Until, s.Why = c.since, c.until, cmp.Or(c.why, "suspended")
	}
	return s
}
