// Package queue is the durable queue: it takes messages, delivers them to its
// exits, tries again, and reports to the sender what could not be delivered.
//
// It promises that a message which Submit has taken is on stable storage; that
// it is delivered to each recipient once or more, never in part, or reported,
// or held where an operator sees it; that after a crash everything goes on from
// what is on disk; and that intake and delivery never wait for each other.
package queue

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
	"github.com/postern-mta/postern/queue/schedule"
	"github.com/postern-mta/postern/queue/store"
)

// Job is one message for recipients of one domain, to be delivered now.
type Job struct {
	ID store.ID
	// Channel and Domain are what Options.Route said of the recipients, and Lane is
	// what Options.Lane said of the message; always "" in a channel without lanes.
	Channel, Domain, Lane string
	// Envelope has these recipients only, and the sender as it is to be used.
	Envelope envelope.Envelope
	// Message is valid during Deliver.
	Message message.Message
	Origin  []byte
	// Attempts were made before this one.
	Attempts int
	// Leave is what Channel.Admit gave; nil without one, or where a domain could
	// not be located.
	Leave Leave
	// Prepare makes the message fit for a server that can carry a form, and
	// signs it; an exit calls it once it knows the server. Nil: as it is. The
	// result's body must be released.
	Prepare func(ctx context.Context, host string, form message.Form) (message.Message, error)
}

// Result is what became of one recipient.
type Result struct {
	Reply reply.Reply
	// Where names the server or mailbox that answered.
	Where string
	// Perhaps is set if the connection was lost after the final dot.
	Perhaps bool
	// TLS is how the connection was protected, for the log; "" for not at all.
	TLS string
	// Source names the address of ours that it was sent from, for the log; "" for what
	// has no name.
	Source string
	// NotNow is set if nothing was tried because that was not admitted. Where that
	// holds for all recipients of a job, it was no attempt, and they wait for leave.
	NotNow *Wait
}

// Exit delivers. Deliver gives a result for each recipient of the job, in
// order, by ctx's end at the latest; it is called concurrently.
type Exit interface {
	Deliver(ctx context.Context, j *Job) ([]Result, schedule.Health)
}

// Channel is a way out: mail that one exit delivers, with a limit and a
// schedule of retries of its own.
type Channel struct {
	Name    string
	Exit    Exit
	Backoff schedule.Backoff
	// Limit is the number of deliveries at a time; 0 means the schedule's default.
	Limit int
	// Locate says which site takes a domain's mail; it is asked before every
	// delivery, so that mail moves when the site does, and should remember. Nil:
	// every domain is a site of its own.
	Locate func(ctx context.Context, domain string) (site string, err error)
	// Admit asks leave to deliver to a site by a lane; it must be quick and must not
	// call the queue, which is locked, but for Admissible. Nil: always.
	Admit func(now time.Time, site, lane string) (Leave, *Wait)
}

// Options of Open. Store, Route and Channels are needed.
type Options struct {
	Store store.Store
	// Spool takes the bodies of large reports; nil keeps them in memory.
	Spool message.Spooler
	Log   *slog.Logger
	Now   func() time.Time
	// Rand yields numbers from 0 up to 1 for the jitter of retries.
	Rand func() float64
	// Host is our name in reports.
	Host     string
	Channels []Channel
	// Route says which channel takes an address, and under which domain.
	Route func(address string) (channel, domain string)
	// Lane says by which lane the recipients of a message leave that take a channel
	// with Locate or Admit: the name of a pool of source addresses, without an @, ""
	// for the ordinary lane. It is asked once when a message is queued, reports and
	// replacements included, and again at the start; until then the message keeps its
	// lane. It must be quick, and is called concurrently. Nil: there is one lane.
	Lane func(sender string, origin []byte) string
	// SiteLimit is how many deliveries go to one domain at a time; 0 means the
	// schedule's default.
	SiteLimit int
	// Lifetime is for how long a message is tried; 0 means a week.
	Lifetime time.Duration
	// JobTimeout bounds one delivery, with a second more for each 4 KiB of the message;
	// 0 means an hour.
	JobTimeout time.Duration
	Bounce     Bounce
	// Prepare is Job.Prepare's work.
	Prepare func(ctx context.Context, j *Job, host string, form message.Form) (message.Message, error)
}

func (o *Options) withDefaults() error {
	switch {
	case o.Store == nil:
		return errors.New("queue: Options.Store is missing")
	case o.Route == nil:
		return errors.New("queue: Options.Route is missing")
	case len(o.Channels) == 0:
		return errors.New("queue: Options.Channels is empty")
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Rand == nil {
		o.Rand = rand.Float64
	}
	if o.Lifetime == 0 {
		o.Lifetime = schedule.DefaultLifetime
	}
	if o.JobTimeout == 0 {
		o.JobTimeout = time.Hour
	}
	o.Bounce = o.Bounce.withDefaults(o.Host)
	return nil
}

// Queue is a queue at work. Its methods are safe for concurrent use.
type Queue struct {
	o        Options
	channels map[string]Channel
	counters counters
	notices  notices

	mu       sync.Mutex // guards what follows; not held during I/O
	schedule *schedule.Schedule
	// many are the messages with more than one recipient. One that is in the
	// schedule and not here has one left and owes no report.
	many   map[store.ID]tally
	tracks map[store.ID]*track
	idle   []*track // those kept without users, the longest idle first
	fresh  fresh
	owing  owing
	// attempts counts since the queue was opened, by channel.
	attempts map[string]Attempts
	// relocated is when domains, by their keys, were last moved to another site.
	relocated map[string]time.Time
	// lanes are those that mail was put into since the queue was opened.
	lanes []string
	// state is whether the queue has been started, and closed.
	state state

	// called are the sites that Admissible was told of since the dispatcher looked.
	calls  sync.Mutex
	called map[string]struct{}

	kick    chan struct{} // wakes the dispatcher
	remind  chan struct{} // wakes the settler
	settles chan struct{} // slots of settle
	jobs    sync.WaitGroup
	loops   sync.WaitGroup
	ctx     context.Context
	cancel  context.CancelFunc
}

type state uint8

const (
	opened state = iota
	started
	closed
)

// tally is what memory knows of a message with more than one recipient.
type tally struct {
	left   uint32 // recipients that are not done with
	owes   bool   // failures are written down that nobody was told of
	warned bool   // the sender was told of a delay
}

// Open makes a queue of what the store holds. Nothing is delivered before Start.
func Open(o Options) (*Queue, error) {
	if err := o.withDefaults(); err != nil {
		return nil, err
	}
	q := &Queue{
		o: o, channels: map[string]Channel{}, many: map[store.ID]tally{}, tracks: map[store.ID]*track{},
		owing: owing{pending: map[store.ID]struct{}{}}, attempts: map[string]Attempts{}, relocated: map[string]time.Time{}, called: map[string]struct{}{},
		kick: make(chan struct{}, 1), remind: make(chan struct{}, 1), settles: make(chan struct{}, settleSlots),
	}
	so := schedule.Options{SiteLimit: o.SiteLimit, Unlocated: unlocated, Route: func(channel, _ string) string {
		if q.channels[channel].Locate != nil {
			return unlocated
		}
		return ""
	}}
	for _, c := range o.Channels {
		if c.Exit == nil {
			return nil, fmt.Errorf("queue: channel %q has no exit", c.Name)
		}
		q.channels[c.Name] = c
		q.attempts[c.Name] = Attempts{}
		so.Channels = append(so.Channels, schedule.Channel{Name: c.Name, Limit: c.Limit})
	}
	q.schedule = schedule.New(so)
	if err := q.load(); err != nil {
		return nil, fmt.Errorf("queue: %w", err)
	}
	q.ctx, q.cancel = context.WithCancel(context.Background())
	return q, nil
}

// load fills the schedule from the store, and notes what a crash left undone:
// messages whose recipients are all done with, and failures that nobody was
// told of. The settler finishes these, so that nothing about one message keeps
// the queue from starting.
func (q *Queue) load() error {
	r, err := q.o.Store.Reader()
	if err != nil {
		return err
	}
	defer r.Close()
	now := q.o.Now()
	return r.Scan(0, func(e *store.Entry) error {
		q.counters.messages.Add(1)
		t := q.add(e, q.laneOf(e.Message))
		if e.Hold == nil && (t.left == 0 || t.owes) {
			q.owing.add(e.Message.ID, now, now)
		}
		return nil
	})
}

// add puts a stored message's recipients into the schedule.
func (q *Queue) add(e *store.Entry, lane string) (t tally) {
	id, next := e.Message.ID, 0
	q.sawLane(lane)
	for n, r := range e.Message.Envelope.Recipients {
		var s store.State
		if next < len(e.States) && e.States[next].Recipient == uint32(n) {
			s = e.States[next].State
			next++
		}
		t.note(s)
		if s.Status.Done() {
			continue
		}
		to := q.entry(id, r.Address, n, lane)
		to.Due, to.Attempts, to.Held = s.Due, int(s.Attempts), e.Hold != nil
		q.schedule.Add(to)
	}
	if len(e.Message.Envelope.Recipients) > 1 && t.left > 0 {
		q.many[id] = t
	}
	return t
}

// note counts one recipient's state.
func (t *tally) note(s store.State) {
	if !s.Status.Done() {
		t.left++
	}
	t.owes = t.owes || s.Status == store.Failed && !s.Reported
	t.warned = t.warned || s.Warned
}

// Start begins to deliver. It may be called once; after Close it does nothing.
func (q *Queue) Start() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.state != opened {
		return
	}
	q.state = started
	q.loops.Add(2)
	go q.dispatch()
	go q.remember()
}

// closeGrace is how long Close waits for exits that were cut off. One that does
// not come back is left behind: what it did is done again after the start.
const closeGrace = 5 * time.Second

// Close stops delivering: nothing new is begun, what is going on may end until
// ctx does and is then cut off. The store stays open; it is the caller's to
// close, after this. The error is ctx's if deliveries had to be cut off.
func (q *Queue) Close(ctx context.Context) error {
	q.mu.Lock()
	q.state = closed
	q.mu.Unlock()
	q.wake()
	done := make(chan struct{})
	go func() {
		q.loops.Wait() // they start jobs
		q.jobs.Wait()
		close(done)
	}()
	defer q.dropIdle()
	defer q.cancel()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
	}
	q.cancel()
	grace := time.NewTimer(closeGrace)
	defer grace.Stop()
	select {
	case <-done:
	case <-grace.C:
		q.o.Log.Error("deliveries do not end; they are left behind and made again after the next start", "messages", q.flying())
	}
	return ctx.Err()
}

// flying are the messages with deliveries going on, ten at most.
func (q *Queue) flying() []string {
	q.mu.Lock()
	defer q.mu.Unlock()
	var all []string
	for id, t := range q.tracks {
		if t.inFlight > 0 && len(all) < 10 {
			all = append(all, id.String())
		}
	}
	return all
}

func (q *Queue) isClosed() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.state == closed
}

// wake has the dispatcher and the settler look again.
func (q *Queue) wake() {
	for _, c := range [...]chan struct{}{q.kick, q.remind} {
		select {
		case c <- struct{}{}:
		default:
		}
	}
}

// dispatch hands out what is due, for as long as the queue is open.
func (q *Queue) dispatch() {
	defer q.loops.Done()
	each(q.kick, q.takeDue)
}

// each calls work when it is woken, and when as much time has passed as work
// said, until work says that it is over.
func each(kick <-chan struct{}, work func() (wait time.Duration, open bool)) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		wait, open := work()
		if !open {
			return
		}
		timer.Reset(wait)
		select {
		case <-kick:
		case <-timer.C:
		}
	}
}

// maxSleep bounds the sleep of a loop, so that a clock that was set does not
// keep it asleep.
const maxSleep = time.Minute

// sleep is how long to sleep until at.
func sleep(now, at time.Time) time.Duration {
	return min(maxSleep, max(at.Sub(now), time.Millisecond))
}

// takeDue starts a job for each batch that may go now, and says for how long
// there will be nothing to do.
func (q *Queue) takeDue() (wait time.Duration, open bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.state == closed {
		return 0, false
	}
	q.callIn()
	now := q.o.Now()
	for {
		b, ok := q.schedule.Take(now)
		if !ok {
			break
		}
		leave, ok := q.admit(now, b)
		if !ok {
			continue
		}
		t := q.track(store.ID(b.ID))
		t.inFlight++
		q.jobs.Add(1)
		go q.job(b, t, leave)
	}
	if at, ok := q.schedule.NextWake(); ok {
		return sleep(now, at), true
	}
	return maxSleep, true
}
