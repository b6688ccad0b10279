package schedule

import (
	"errors"
	"math"
	"strings"
	"time"
)

// Defaults of Options and Channel.
const (
	DefaultSiteLimit    = 10
	DefaultChannelLimit = 200
	DefaultReserve      = 0.5
	DefaultProbe        = 2
	DefaultBatch        = 100
	DefaultWindow       = 10 * time.Minute
	DefaultPatience     = time.Minute

	DefaultUnlocatedLimit = 50
)

// Options shape a Schedule. The zero value works.
type Options struct {
	// Route says which site a domain belongs to when it is first seen in a
	// channel, or again after its last recipient has gone. It must not call the
	// schedule. nil, and an empty answer, mean a site of the domain's own name.
	Route func(channel, domain string) (site string)
	// Unlocated is the site of domains whose real one nobody knows yet: batches
	// taken there are for looking it up, Assign and Return. It is always living,
	// and UnlocatedLimit (0 means DefaultUnlocatedLimit) are in flight there. ""
	// means that there is none.
	Unlocated      string
	UnlocatedLimit int
	// Channels that are known from the start. A channel that is used without
	// having been declared gets the defaults: mail is never refused for it.
	Channels []Channel
	// SiteLimit is the number of batches in flight at a site without a limit of
	// its own. 0 means DefaultSiteLimit.
	SiteLimit int
	// Probe bounds the batches in flight at a site that is not living, below
	// its limit. 0 means DefaultProbe.
	Probe int
	// Batch is the greatest number of recipients in a batch. 0 means
	// DefaultBatch (RFC 5321 §4.5.3.1.8: a server must take 100).
	Batch int
	// Window is how long a success makes a site living, and how long a site
	// without mail is remembered. 0 means DefaultWindow.
	Window time.Duration
	// Patience is how long a site may wait as a newcomer, and about how long a
	// dead one is expected to hold its slot. 0 means DefaultPatience.
	Patience time.Duration
}

// A Channel is a set of mail with a concurrency of its own.
type Channel struct {
	// Name is what Add and Batch call it. "" is a name like any other.
	Name string
	// Limit is the number of batches in flight. 0 means DefaultChannelLimit; a
	// negative one stops the channel.
	Limit int
	// Reserve is the share of Limit that only living sites may use (see the
	// package's comment). 0 means DefaultReserve, a negative one none; at least
	// one slot stays open to everyone.
	Reserve float64
}

// An Entry is a recipient as Add takes it.
type Entry struct {
	Channel   string
	Domain    string
	ID        uint64    // the message
	Recipient uint32    // its number in the envelope
	Due       time.Time // kept to the second, rounded down; zero means at once
	Attempts  int       // made so far; more than 65,535 count as that
	Held      bool
}

// ErrStale is returned by Done and Return for a batch that is not in flight (any more).
var ErrStale = errors.New("schedule: the batch is not in flight")

// ErrOutcomes is returned when there are not as many outcomes as recipients.
var ErrOutcomes = errors.New("schedule: the outcomes are not as many as the recipients")

// skew is how far back a time may lie and still count as the latest, in
// milliseconds.
const skew = 60_000

// A Schedule knows every recipient that is not finished. Its methods must not
// be called concurrently, nor from functions that it calls.
type Schedule struct {
	opt      Options
	window   int64 // Options.Window, in milliseconds; likewise patience
	patience int64
	now      int64 // in Unix milliseconds, see tick

	slots   pool[slot]
	index   index // of the slots, by message
	lanes   pool[lane]
	nodes   pool[node]
	sites   pool[site]
	flights pool[flight]

	laneNames []string // by number
	siteNames []string
	siteByKey map[string]uint32
	channels  []*channel
	chanByKey map[string]int
	turn      int // the channel that Take looks at first
	timers    []timer
	idle      list // sites without mail, the longest idle first
	nidle     int
	serial    uint32 // of the last flight
	picked    []uint32
}

// A slot is one recipient. Slots of a domain with the same message, due time
// and number of attempts form a chain, which is one entry of a heap.
type slot struct {
	idHi, idLo uint32
	due        uint32 // Unix seconds
	lane       uint32
	rcpt       uint32
	next       uint32 // in the chain
	kin, akin  uint32 // in the index, after it and before it
	attempts   uint16
	flags      uint16
}

// A slot without flags is queued.
const (
	slotHeld   = 1 << iota
	slotFlying // in flight
	slotHold   // in flight, to be held if it comes back
	slotGone   // in flight, to be dropped whatever comes
	slotPicked // by the edit that is going on
)

func (s *slot) id() uint64 { return uint64(s.idHi)<<32 | uint64(s.idLo) }

// New makes an empty schedule.
func New(o Options) *Schedule {
	o.SiteLimit = positive(o.SiteLimit, DefaultSiteLimit)
	o.Probe = positive(o.Probe, DefaultProbe)
	o.Batch = positive(o.Batch, DefaultBatch)
	o.Window = positive(o.Window, DefaultWindow)
	o.Patience = positive(o.Patience, DefaultPatience)
	o.UnlocatedLimit = positive(o.UnlocatedLimit, DefaultUnlocatedLimit)
	s := &Schedule{
		opt:       o,
		window:    o.Window.Milliseconds(),
		patience:  o.Patience.Milliseconds(),
		siteByKey: map[string]uint32{},
		chanByKey: map[string]int{},
	}
	for _, c := range o.Channels {
		s.SetChannel(c)
	}
	return s
}

func positive[T int | time.Duration](v, otherwise T) T {
	if v > 0 {
		return v
	}
	return otherwise
}

// Add queues one recipient. It is the bulk loader too: it takes a fraction of a
// microsecond, in any order. Recipients of one message that are added one after
// another and agree in domain, due time and attempts are delivered together.
// The caller sees to it that no recipient is added twice.
func (s *Schedule) Add(e Entry) {
	li := s.lane(s.channel(e.Channel), e.Domain)
	i := s.slots.get()
	sl := s.slots.at(i)
	*sl = slot{
		idHi: uint32(e.ID >> 32), idLo: uint32(e.ID), due: seconds(e.Due), lane: li,
		rcpt: e.Recipient, attempts: attempts(e.Attempts),
	}
	s.enter(i)
	if e.Held {
		sl.flags = slotHeld
		s.lanes.at(li).held++
		return
	}
	s.insert(i)
}

// Len is the number of recipients: queued, in flight and held.
func (s *Schedule) Len() int { return s.slots.n }

// NextWake is the next time at which something falls due or a suspended or
// paced site opens. It is to be asked after Take has returned false: what Take
// then leaves waits for that time, or for a Done, Return or change of a limit.
// It may be early, never late. false means that no time will change anything.
func (s *Schedule) NextWake() (time.Time, bool) {
	if len(s.timers) == 0 {
		return time.Time{}, false
	}
	return time.UnixMilli(s.timers[0].at).UTC(), true
}

// tick notes the time. A time that is only a little earlier than the latest (two
// callers who looked at the clock in the other order) counts as the latest. When
// the clock was really set back everything is looked at anew.
func (s *Schedule) tick(now int64) {
	if now < s.now && s.now-now < skew {
		return
	}
	back := now < s.now
	s.now = now
	if back {
		s.refreshAll()
	}
}

// advance moves what has fallen due by now to the lines.
func (s *Schedule) advance(now time.Time) {
	s.tick(milliseconds(now))
	for len(s.timers) > 0 && s.timers[0].at <= s.now {
		ref := s.timers[0].ref
		s.stopTimer(ref)
		switch {
		case ref&siteTimer != 0:
			s.refresh(ref &^ siteTimer)
			s.rest(ref &^ siteTimer)
		case ref&channelTimer == 0:
			s.settle(ref)
		}
	}
	for _, c := range s.channels {
		for n := c.lines[newcomer].head; n != 0 && s.nodes.at(n).since+s.patience < s.now; n = c.lines[newcomer].head {
			s.refresh(s.nodes.at(n).site)
		}
	}
	for s.idle.head != 0 && (s.sites.at(s.idle.head).idleAt+s.window <= s.now || s.nidle > maxIdle) {
		s.forget(s.idle.head)
	}
}

func milliseconds(t time.Time) int64 { return max(0, t.UnixMilli()) }

func seconds(t time.Time) uint32 {
	return uint32(min(max(0, t.Unix()), math.MaxUint32))
}

func fromSeconds(v uint32) time.Time { return time.Unix(int64(v), 0).UTC() }

func attempts(n int) uint16 { return uint16(min(max(0, n), math.MaxUint16)) }

// name makes a copy of a name that keeps nothing else in memory, and puts it
// where names[i] is.
func name(names []string, i uint32, text string) []string {
	for int(i) >= len(names) {
		names = append(names, "")
	}
	names[i] = strings.Clone(text)
	return names
}
