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
	// Channel and Domain are what Options.Route said of the recipients.
	Channel, Domain string
	// Envelope has these recipients only, and the sender as it is to be used.
	Envelope envelope.Envelope
	// Message is valid during Deliver.
	Message message.Message
	Origin  []byte
	// Attempts were made before this one.
	Attempts int
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
	// SiteLimit is how many deliveries go to one domain at a time; 0 means the
	// schedule's default.
	SiteLimit int
	// Lifetime is for how long a message is tried; 0 means a week.
	Lifetime time.Duration
	// JobTimeout bounds one delivery; 0 means an hour.
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

	mu       sync.Mutex // guards what follows; not held during I/O
	schedule *schedule.Schedule
	// left counts the recipients that are not done with of a message that has
	// more than one; any other has one left.
	left map[store.ID]uint32
	// tracks are the messages with a delivery going on.
	tracks map[store.ID]*track
	closed bool

	kick    chan struct{}
	jobs    sync.WaitGroup
	loop    sync.WaitGroup
	ctx     context.Context
	cancel  context.CancelFunc
	notices notices
}

// Open makes a queue of what the store holds. Nothing is delivered before Start.
func Open(o Options) (*Queue, error) {
	if err := o.withDefaults(); err != nil {
		return nil, err
	}
	q := &Queue{
		o: o, channels: map[string]Channel{}, left: map[store.ID]uint32{}, tracks: map[store.ID]*track{}, kick: make(chan struct{}, 1),
	}
	so := schedule.Options{SiteLimit: o.SiteLimit}
	for _, c := range o.Channels {
		if c.Exit == nil {
			return nil, fmt.Errorf("queue: channel %q has no exit", c.Name)
		}
		q.channels[c.Name] = c
		so.Channels = append(so.Channels, schedule.Channel{Name: c.Name, Limit: c.Limit})
	}
	q.schedule = schedule.New(so)
	q.ctx, q.cancel = context.WithCancel(context.Background())
	if err := q.load(); err != nil {
		return nil, fmt.Errorf("queue: %w", err)
	}
	return q, nil
}

// load fills the schedule from the store, and finishes what a crash left
// undone: messages whose recipients are all done with, and failures that were
// not yet reported.
func (q *Queue) load() error {
	r, err := q.o.Store.Reader()
	if err != nil {
		return err
	}
	defer r.Close()
	var undone []store.ID
	err = r.Scan(0, func(e *store.Entry) error {
		q.counters.loaded.Add(1)
		left, owed := q.add(e)
		if left == 0 || owed {
			undone = append(undone, e.Message.ID)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, id := range undone {
		if err := q.settle(q.ctx, id); err != nil {
			return fmt.Errorf("message %v: %w", id, err)
		}
	}
	return nil
}

// add puts a message's recipients into the schedule: how many are left, and
// whether the sender is owed a report.
func (q *Queue) add(e *store.Entry) (left uint32, owed bool) {
	id := e.Message.ID
	next := 0
	for n, r := range e.Message.Envelope.Recipients {
		var s store.State
		if next < len(e.States) && e.States[next].Recipient == uint32(n) {
			s = e.States[next].State
			next++
		}
		if s.Status.Done() {
			owed = owed || s.Status == store.Failed && !s.Reported
			continue
		}
		left++
		channel, domain := q.o.Route(r.Address)
		q.schedule.Add(schedule.Entry{
			Channel: channel, Domain: domain, ID: uint64(id), Recipient: uint32(n), Due: s.Due, Attempts: int(s.Attempts), Held: e.Hold != nil,
		})
	}
	if len(e.Message.Envelope.Recipients) > 1 {
		q.left[id] = left
	}
	return left, owed
}

// Start begins to deliver.
func (q *Queue) Start() {
	q.loop.Add(1)
	go q.dispatch()
}

// Close stops delivering: nothing new is begun, what is going on may end until
// ctx does and is then cut off. The store stays open.
func (q *Queue) Close(ctx context.Context) error {
	q.mu.Lock()
	q.closed = true
	q.mu.Unlock()
	q.wake()
	q.loop.Wait()
	done := make(chan struct{})
	go func() {
		q.jobs.Wait()
		close(done)
	}()
	defer q.cancel()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
	}
	q.cancel()
	<-done
	return ctx.Err()
}

// wake has the dispatcher look again.
func (q *Queue) wake() {
	select {
	case q.kick <- struct{}{}:
	default:
	}
}

// dispatch hands out what is due, for as long as the queue is open.
func (q *Queue) dispatch() {
	defer q.loop.Done()
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		wait, open := q.takeDue()
		if !open {
			return
		}
		timer.Reset(wait)
		select {
		case <-q.kick:
		case <-timer.C:
		}
	}
}

// maxSleep bounds the dispatcher's sleep, so that a clock that was set does not
// keep it asleep.
const maxSleep = time.Minute

// takeDue starts a job for each batch that may go now, and says for how long
// there will be nothing to do.
func (q *Queue) takeDue() (wait time.Duration, open bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return 0, false
	}
	now := q.o.Now()
	for {
		b, ok := q.schedule.Take(now)
		if !ok {
			break
		}
		t := q.track(store.ID(b.ID))
		t.inFlight++
		q.jobs.Add(1)
		go q.job(b, t)
	}
	wait = maxSleep
	if at, ok := q.schedule.NextWake(); ok {
		wait = min(wait, max(at.Sub(now), time.Millisecond))
	}
	return wait, true
}

// track is a message with a delivery going on.
type track struct {
	// mu serialises the conclusions about the message; it is taken before the
	// queue's own.
	mu sync.Mutex
	// What follows is guarded by the queue's mutex.
	inFlight int
	users    int
	removed  bool
	loaded   *loaded
}

// track finds or makes the track of a message; the queue is locked.
func (q *Queue) track(id store.ID) *track {
	t := q.tracks[id]
	if t == nil {
		t = &track{}
		q.tracks[id] = t
	}
	t.users++
	return t
}

// untrack gives a track up; the queue is locked. The loaded message is returned
// to be released if nobody uses it any more.
func (q *Queue) untrack(id store.ID, t *track) *loaded {
	if t.users--; t.users > 0 {
		return nil
	}
	delete(q.tracks, id)
	l := t.loaded
	t.loaded = nil
	return l
}
