package limit

import (
	"fmt"
	"slices"
	"sync"
	"time"
)

// Path is all that a connection counts for. Names that are empty do not count.
type Path struct {
	// Source is the local address or its name, "" the system's choice.
	Source   string
	Provider string
	Groups   []string
	Site     string
	// Routed is set where a route leads there and not the DNS: whose mail is asked
	// for knows us, and no plan of a new source counts.
	Routed bool
	// Again is set where a connection of the same attempt has just found one of the
	// site's servers out of reach: that it may be asleep for that is no reason not to
	// try another of them.
	Again bool
}

// keys are the path's, from the outermost.
func (p Path) keys() []Key {
	all := make([]Key, 0, 3+len(p.Groups))
	if p.Source != "" {
		all = append(all, Key{Source, p.Source})
	}
	if p.Provider != "" {
		all = append(all, Key{Provider, p.Provider})
	}
	for _, g := range p.Groups {
		all = append(all, Key{Group, g})
	}
	return append(all, Key{Site, p.Site})
}

// Refusal says why something is not admitted now.
type Refusal struct {
	Key Key
	// What is "connections", "new connections", "messages" or "suspended", and
	// Limit the bound as people write it.
	What, Limit string
	// Until is when to ask again; zero means when something of the key has ended,
	// of which Options.Wake tells.
	Until time.Time
	// Since is when a suspension began, and Why the answer or the operator's word
	// behind it.
	Since time.Time
	Why   string
}

// String is the refusal in words.
func (r *Refusal) String() string {
	s := r.Key.String() + ": " + r.What
	if r.Limit != "" {
		s += " " + r.Limit
	}
	if r.Why != "" {
		s += " (" + r.Why + ")"
	}
	return s
}

// Options of New. The zero value works.
type Options struct {
	// Bounds are the configured limits of a key; nil, or a field that is not set,
	// means the defaults of sites and addresses, and none for the other levels.
	Bounds func(Key) Bounds
	// Warmup is the plan of a source; nil: none has one.
	Warmup func(source string) Warmup
	// Classes tell what answers mean; nil: only what Answer's code says.
	Classes *Classes
	// Wake is told of a site that was refused without a time, when it is worth
	// asking again. It is called without the Gate's lock.
	Wake func(site string)
}

// Gate admits connections and messages.
type Gate struct {
	o  Options
	mu sync.Mutex

	counters map[Key]*counter
	controls map[pair]*Control
	holds    map[Key]hold
	blocks   map[pair]block // by provider and source
	quotas   map[quotaKey]*quota
	shares   map[pair]*share // with anything open
	woken    []string        // to be told when the lock is free
}

type pair struct{ site, source string }

// hold is an operator's word about a key.
type hold struct {
	since   time.Time
	until   time.Time // zero: for ever
	why     string
	suspend bool
	bounds  Bounds
}

// counter is what a key has open, and how fast.
type counter struct {
	open, greeted int
	conns, msgs   int64 // when the next would be due at the full rate, Unix nanoseconds
	waiting       []string
	last          int64
	connsN, msgsN uint64 // so far
}

// New makes a Gate.
func New(o Options) *Gate {
	if o.Classes == nil {
		o.Classes = &Classes{}
	}
	return &Gate{o: o, counters: map[Key]*counter{}, controls: map[pair]*Control{}, holds: map[Key]hold{}, blocks: map[pair]block{}, quotas: map[quotaKey]*quota{}, shares: map[pair]*share{}}
}

// unlock frees the Gate and tells who may ask again.
func (g *Gate) unlock() {
	woken := g.woken
	g.woken = nil
	g.mu.Unlock()
	if g.o.Wake == nil {
		return
	}
	for _, site := range woken {
		g.o.Wake(site)
	}
}

// bounds are a key's limits now. The Gate is locked.
func (g *Gate) bounds(now time.Time, k Key) Bounds {
	var b Bounds
	if g.o.Bounds != nil {
		b = g.o.Bounds(k)
	}
	switch k.Level {
	case Site:
		b = b.Over(DefaultSite())
	case Address:
		b = b.Over(DefaultAddress())
	}
	if h, ok := g.holds[k]; ok && !h.suspend && h.holds(now) {
		b = h.bounds.Over(b)
	}
	return b
}

// refusal is what a suspension says.
func (h hold) refusal(k Key) *Refusal {
	return &Refusal{Key: k, What: suspendedWhat, Until: h.until, Since: h.since, Why: h.why}
}

func (h hold) holds(now time.Time) bool { return h.until.IsZero() || now.Before(h.until) }

func (g *Gate) counter(k Key) *counter {
	c := g.counters[k]
	if c == nil {
		c = &counter{}
		g.counters[k] = c
	}
	return c
}

func (g *Gate) control(p Path) *Control {
	key := pair{p.Site, p.Source}
	c := g.controls[key]
	if c == nil {
		c = newControl()
		g.controls[key] = c
	}
	c.provider = p.Provider
	return c
}

// waitFor is how long a rate asks to wait, whose next is due at the full rate.
func (r Rate) waitFor(now, due int64) time.Duration {
	slack := int64(r.burst()-1) * int64(r.every())
	return time.Duration(max(0, due-slack-now))
}

// spend is when the next is due at the full rate after one now.
func (r Rate) spend(now, due int64) int64 { return max(due, now) + int64(r.every()) }

// believed is when the next is due as far as this rate can have brought that about: a
// slower one that held before, or a clock that was ahead, counts no longer.
func (r Rate) believed(now, due int64) int64 {
	return min(due, now+int64(r.burst())*int64(r.every()))
}

// most is a bound on connections as a number to compare with.
func most(n int) int {
	if n <= 0 {
		return 1 << 30
	}
	return n
}

// admits looks whether a key would admit a connection. The Gate is locked.
func (g *Gate) admits(now time.Time, k Key, b Bounds) *Refusal {
	if h, ok := g.holds[k]; ok && h.suspend && h.holds(now) {
		return h.refusal(k)
	}
	c := g.counter(k)
	if b.Connections > 0 && c.open >= b.Connections {
		return &Refusal{Key: k, What: "connections", Limit: fmt.Sprint(b.Connections)}
	}
	if r := b.NewConnections; r.IsSet() {
		c.conns = r.believed(now.UnixNano(), c.conns)
		if wait := r.waitFor(now.UnixNano(), c.conns); wait > 0 {
			return &Refusal{Key: k, What: "new connections", Limit: r.String(), Until: now.Add(wait)}
		}
	}
	return nil
}

// tighter is the refusal that lasts longer; one without an end stands before
// those with one.
func tighter(a, b *Refusal) *Refusal {
	switch {
	case a == nil:
		return b
	case b == nil:
		return a
	case a.Until.IsZero():
		return a
	case b.Until.IsZero() || b.Until.After(a.Until):
		return b
	}
	return a
}

// Ticket is leave to have one connection. Its methods may be called from
// any goroutine, one at a time. Close must end it, when the peer has closed.
type Ticket struct {
	g       *Gate
	path    Path
	at      []Key // the address, and the groups that it is in
	keys    []Key
	control *Control
	conn    conn
	sent    int // messages
	rcpts   int
	closed  bool
	greeted bool // at the address
	joined  []joined
}

// Open asks for a connection. Either it is admitted, and counts at all levels, or
// it counts at none.
func (g *Gate) Open(now time.Time, p Path) (*Ticket, *Refusal) {
	g.mu.Lock()
	defer g.unlock()
	t, no := g.open(now, p)
	if no != nil {
		g.refuse(no, p.Site)
		g.passOn(now, p)
	}
	return t, no
}

// open is Open; the Gate is locked, and notes nobody as waiting.
func (g *Gate) open(now time.Time, p Path) (*Ticket, *Refusal) {
	keys := p.keys()
	var no *Refusal
	for _, k := range keys {
		no = tighter(no, g.admits(now, k, g.bounds(now, k)))
	}
	c := g.control(p)
	no = tighter(tighter(no, g.controlAdmits(now, p, c)), g.exhausted(now, p, false))
	no = tighter(no, g.providerAdmits(now, p))
	if no != nil {
		return nil, no
	}
	for _, k := range keys {
		g.enter(now, k)
	}
	t := &Ticket{g: g, path: p, keys: keys, control: c, conn: c.opened(now)}
	if p.Provider != "" {
		t.join(now, Key{Provider, p.Provider})
	}
	return t, nil
}

// controlAdmits looks whether a Control would admit a connection.
func (g *Gate) controlAdmits(now time.Time, p Path, c *Control) *Refusal {
	key := Key{Adapted, p.adapted()}
	if now.Before(c.until) && !(p.Again && c.asleep) {
		return c.refusal(key)
	}
	if no := g.blocksPath(now, p); no != nil {
		return no
	}
	if no := c.pace.rests(now); !no.IsZero() {
		return &Refusal{Key: key, What: "messages", Limit: c.pace.String() + "/s", Until: no}
	}
	allowed := c.connections(now, most(g.bounds(now, Key{Site, p.Site}).Connections))
	if c.failures >= failuresToSleep && !p.Again {
		allowed = 1 // one tries whether it is back
	}
	if c.open >= allowed {
		return &Refusal{Key: key, What: "connections", Limit: fmt.Sprint(allowed)}
	}
	return nil
}

func (p Path) adapted() string {
	if p.Source == "" {
		return p.Site
	}
	return p.Site + " from " + p.Source
}

// refuse notes a refusal, and who waits for what.
func (g *Gate) refuse(no *Refusal, site string) {
	c := g.counter(no.Key)
	if no.Until.IsZero() && !slices.Contains(c.waiting, site) {
		c.waiting = append(c.waiting, site)
	}
}

// passOn wakes one who waits for what a path counts for and has room: the path was woken
// for that, perhaps, and is refused for something else. The Gate is locked.
func (g *Gate) passOn(now time.Time, p Path) {
	for _, k := range p.keys() {
		if c := g.counters[k]; k.Level == Site || c == nil || len(c.waiting) == 0 {
			continue
		}
		if tighter(g.admits(now, k, g.bounds(now, k)), g.shareAdmits(now, k, p.Source)) == nil {
			g.free(k, 1)
		}
	}
}

// Wanted reports whether others wait for something that a connection of this path
// counts for: its source, provider or groups.
func (g *Gate) Wanted(p Path) bool {
	g.mu.Lock()
	defer g.unlock()
	for _, k := range p.keys() {
		if c := g.counters[k]; c != nil && k.Level != Site && slices.ContainsFunc(c.waiting, func(site string) bool { return site != p.Site }) {
			return true
		}
	}
	return false
}

// enter counts a connection.
func (g *Gate) enter(now time.Time, k Key) {
	c := g.counter(k)
	c.open++
	c.connsN++
	c.last = now.UnixNano()
	if r := g.bounds(now, k).NewConnections; r.IsSet() {
		c.conns = r.spend(c.last, c.conns)
	}
}

// free wakes sites that wait for a key that has room again.
func (g *Gate) free(k Key, n int) {
	c := g.counters[k]
	if c == nil {
		return
	}
	n = min(n, len(c.waiting))
	g.woken = append(g.woken, c.waiting[:n]...)
	c.waiting = slices.Delete(c.waiting, 0, n)
}

// At says which address the connection goes to, and which groups that address is
// in; it counts there, too, or not at all. It may be called again, when that
// address was not to be had.
func (t *Ticket) At(now time.Time, address string, groups ...string) *Refusal {
	g := t.g
	g.mu.Lock()
	defer g.unlock()
	t.leaveAddress(now)
	keys := []Key{{Address, address}}
	for _, name := range groups {
		if k := (Key{Group, name}); !slices.Contains(t.keys, k) {
			keys = append(keys, k)
		}
	}
	var no *Refusal
	for _, k := range keys {
		no = tighter(no, g.admits(now, k, g.bounds(now, k)))
	}
	no = tighter(no, g.shareAdmits(now, keys[0], t.path.Source))
	if no != nil {
		g.refuse(no, t.path.Site)
		return no
	}
	for _, k := range keys {
		g.enter(now, k)
	}
	t.at = keys
	t.join(now, keys[0])
	return nil
}

func (t *Ticket) leaveAddress(now time.Time) {
	if t.greeted {
		t.g.counter(t.at[0]).greeted--
		t.greeted = false
	}
	t.part(now, Address)
	for _, k := range t.at {
		t.g.leave(now, k)
	}
	t.at = nil
}

// Return gives up a ticket for which nothing was opened, as if it had not been
// asked for. Like Close, it counts once, and only the first of both.
func (t *Ticket) Return(now time.Time) {
	g := t.g
	g.mu.Lock()
	defer g.unlock()
	if t.closed {
		return
	}
	t.refund(now)
	t.close(now)
}

// refund takes it back that a ticket counted as a new connection. The Gate is locked.
func (t *Ticket) refund(now time.Time) {
	for _, k := range t.keys {
		if r := t.g.bounds(now, k).NewConnections; r.IsSet() {
			t.g.counter(k).conns -= int64(r.every())
		}
		t.g.counter(k).connsN--
	}
}

func (g *Gate) leave(now time.Time, k Key) {
	c := g.counter(k)
	c.open--
	c.last = now.UnixNano()
	g.free(k, 1)
}

// Close ends a connection. Only the first call counts.
func (t *Ticket) Close(now time.Time) {
	g := t.g
	g.mu.Lock()
	defer g.unlock()
	if !t.closed {
		t.close(now)
	}
}

// close is Close; the Gate is locked.
func (t *Ticket) close(now time.Time) {
	t.closed = true
	t.leaveAddress(now)
	t.part(now, levels)
	for _, k := range t.keys {
		t.g.leave(now, k)
	}
	t.control.closed(now, &t.conn)
	t.g.free(Key{Adapted, t.path.adapted()}, 1)
}

// Message asks leave to begin a message with so many recipients. A Refusal of
// MessagesEach or RecipientsEach, or of Connections that were lowered meanwhile, has no
// time: the connection is used up. What is
// suspended gets no further messages over connections that are open.
func (t *Ticket) Message(now time.Time, recipients int) *Refusal {
	g := t.g
	g.mu.Lock()
	defer g.unlock()
	keys := slices.Concat(t.keys, t.at)
	no := g.suspended(now, keys, t.path, t.control)
	for _, k := range keys {
		b := g.bounds(now, k)
		switch {
		case b.Connections > 0 && g.counter(k).open > b.Connections: // it was lowered
			return &Refusal{Key: k, What: "connections", Limit: fmt.Sprint(b.Connections)}
		case b.MessagesEach > 0 && t.sent >= b.MessagesEach:
			return &Refusal{Key: k, What: "messages a connection", Limit: fmt.Sprint(b.MessagesEach)}
		case b.RecipientsEach > 0 && t.sent > 0 && t.rcpts+recipients > b.RecipientsEach:
			return &Refusal{Key: k, What: "recipients a connection", Limit: fmt.Sprint(b.RecipientsEach)}
		}
		if r := b.Messages; r.IsSet() {
			c := g.counter(k)
			c.msgs = r.believed(now.UnixNano(), c.msgs)
			if wait := r.waitFor(now.UnixNano(), c.msgs); wait > 0 {
				no = tighter(no, &Refusal{Key: k, What: "messages", Limit: r.String(), Until: now.Add(wait)})
			}
		}
	}
	no = tighter(no, g.exhausted(now, t.path, false))
	if no != nil {
		g.refuse(no, t.path.Site)
		return no
	}
	epoch, until, ok := t.control.pace.begin(now)
	if !ok {
		no = &Refusal{Key: Key{Adapted, t.path.adapted()}, What: "messages", Limit: t.control.pace.String(), Until: until}
		g.refuse(no, t.path.Site)
		return no
	}
	for _, k := range keys {
		c := g.counter(k)
		c.msgsN++
		if r := g.bounds(now, k).Messages; r.IsSet() {
			c.msgs = r.spend(now.UnixNano(), c.msgs)
		}
	}
	g.begun(now, t.path)
	t.sent++
	t.rcpts += recipients
	t.conn.message = epoch
	return nil
}

// Greeted says that the server has taken the connection: its answer to EHLO was
// good.
func (t *Ticket) Greeted(now time.Time) {
	t.g.mu.Lock()
	defer t.g.unlock()
	if !t.greeted && len(t.at) > 0 {
		t.greeted = true
		t.g.counter(t.at[0]).greeted++
	}
	slept := t.control.asleep
	t.control.greeted(now, &t.conn)
	t.shareGreeted(now)
	t.awake(slept)
}

// Unreachable says that no connection was to be had, or that it broke before the
// server had said anything.
func (t *Ticket) Unreachable(now time.Time, why string) {
	t.g.mu.Lock()
	defer t.g.unlock()
	if len(t.at) > 0 && t.g.counter(t.at[0]).greeted > 0 {
		t.control.closedUnheard(&t.conn, t.at[0].Name, why)
	}
	t.control.unreachable(now, why)
	t.control.note(now, Down, why)
}

// Taken says that the server has taken a message.
func (t *Ticket) Taken(now time.Time) {
	t.g.mu.Lock()
	defer t.g.unlock()
	c := t.control
	if len(t.at) > 0 {
		slept := c.asleep
		c.heard(now, &t.conn, t.at[0].Name)
		t.awake(slept)
	}
	was := c.limit
	c.succeeded(now, &t.conn, most(t.g.bounds(now, Key{Site, t.path.Site}).Connections))
	t.g.free(Key{Adapted, t.path.adapted()}, c.limit-was)
	t.shareTaken(now)
}

// awake has a site ask again that slept until now. The Gate is locked.
func (t *Ticket) awake(slept bool) {
	if slept && !t.control.asleep {
		t.g.woken = append(t.g.woken, t.path.Site)
	}
}

// Said takes in an answer that was no success, and says what it means.
func (t *Ticket) Said(now time.Time, a Answer) Meaning {
	t.g.mu.Lock()
	defer t.g.unlock()
	m := t.g.o.Classes.Meaning(a)
	why := fmt.Sprintf("%d %s", a.Code, a.Text[:min(len(a.Text), 200)])
	if m.Rule != "" {
		why += " [" + m.Rule + "]"
	}
	if m.Class != Nothing {
		t.control.note(now, m.Class, why)
	}
	switch c := t.control; m.Class {
	case Count:
		c.tooMany(now, &t.conn, why)
		t.shareRefused(now, why)
	case Speed:
		c.tooFast(now, &t.conn, why)
	case Blocked:
		t.g.blocked(now, t.path, c, m.Pause, why)
	case Down:
		c.unreachable(now, why)
	}
	return m
}
