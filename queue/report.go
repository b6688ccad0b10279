package queue

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/reply"
	"github.com/postern-mta/postern/queue/dsn"
	"github.com/postern-mta/postern/queue/store"
)

// Bounce is how senders hear of what could not be delivered.
type Bounce struct {
	// From is the address in a report's From field; default
	// MAILER-DAEMON@Options.Host.
	From string
	// Postmaster gets the reports that could not be delivered themselves;
	// default postmaster@Options.Host.
	Postmaster  string
	Format      dsn.Format
	MaxOriginal int64
	// Warn is after how long a sender is warned of a delay, once; 0 means four
	// hours, a negative one never.
	Warn time.Duration
	// May reports whether a message's origin allows a report to its sender. Nil
	// allows all. What it forbids is held, and the postmaster told.
	May func(origin []byte, sender string) bool
	// Origin is the origin of our own reports.
	Origin func() []byte
}

func (b Bounce) withDefaults(host string) Bounce {
	if b.From == "" {
		b.From = "MAILER-DAEMON@" + host
	}
	if b.Postmaster == "" {
		b.Postmaster = "postmaster@" + host
	}
	if b.Warn == 0 {
		b.Warn = 4 * time.Hour
	}
	if b.May == nil {
		b.May = func([]byte, string) bool { return true }
	}
	if b.Origin == nil {
		b.Origin = func() []byte { return nil }
	}
	return b
}

// report adds to b what the sender is to hear of recipients given up, by this
// delivery or earlier ones. keep is set if the message stays in the queue
// although nobody is left to deliver to.
func (c *conclusion) report(b *store.Batch) (keep bool, err error) {
	failed, err := c.owed()
	if err != nil || len(failed) == 0 {
		return false, err
	}
	if keep, err = c.reportFailures(b, failed); err != nil {
		return false, err
	}
	for _, f := range failed {
		s := f.State
		s.Reported = true
		b.States = append(b.States, store.SetState{ID: f.ID, Recipient: f.Recipient, State: s})
	}
	return keep, nil
}

// owed are the failures that the sender was not told of: this delivery's, and
// those of deliveries that ended while others went on.
func (c *conclusion) owed() ([]store.SetState, error) {
	var owed []store.SetState
	for _, n := range c.failed {
		owed = append(owed, store.SetState{ID: c.l.message.ID, Recipient: n, State: *c.state(n)})
	}
	if len(c.l.message.Envelope.Recipients) == len(c.batch.States) {
		return owed, nil
	}
	stored, err := c.q.entry(c.l.message.ID)
	if err != nil {
		return nil, err
	}
	for _, s := range stored.States {
		_, mine := c.states[s.Recipient]
		if !mine && s.State.Status == store.Failed && !s.State.Reported {
			owed = append(owed, s)
		}
	}
	return owed, nil
}

// entry reads one message with all its states.
func (q *Queue) entry(id store.ID) (*store.Entry, error) {
	r, err := q.o.Store.Reader()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	var found *store.Entry
	stop := fmt.Errorf("found")
	err = r.Scan(id, func(e *store.Entry) error {
		if e.Message.ID == id {
			m := *e.Message
			found = &store.Entry{Message: &m, States: append([]store.SetState(nil), e.States...), Hold: e.Hold}
		}
		return stop
	})
	switch {
	case found != nil:
		return found, nil
	case err != nil && err != stop: //nolint:errorlint // stop is never wrapped
		return nil, err
	}
	return nil, store.ErrNotFound
}

// reportFailures chooses who hears of failures, if anybody does.
func (c *conclusion) reportFailures(b *store.Batch, failed []store.SetState) (keep bool, err error) {
	m, q := c.l.message, c.q
	sender := envelope.BounceAddress(m.Envelope.Sender)
	switch {
	case m.Envelope.Sender == envelope.DoubleBounce:
		q.o.Log.Error("triple bounce: discarding a report that could not be delivered to the postmaster", "id", m.ID.String())
		return false, nil
	case sender == "":
		return false, c.send(b, dsn.Double, q.o.Bounce.Postmaster, failed, "")
	case !q.o.Bounce.May(m.Origin, sender):
		reason := "undeliverable, and its sender is not verified: no report was sent"
		b.Holds = append(b.Holds, store.SetHold{ID: m.ID, Hold: &store.Hold{Reason: reason, Since: c.now}})
		note, due := q.notices.next(c.now)
		if !due {
			return true, nil
		}
		return true, c.send(b, dsn.Held, q.o.Bounce.Postmaster, failed, note)
	}
	var told []store.SetState
	for _, f := range failed {
		if d := m.Envelope.Recipients[f.Recipient].DSN; d == nil || d.Notify == 0 || d.Notify&envelope.NotifyFailure != 0 {
			told = append(told, f)
		}
	}
	if len(told) == 0 {
		return false, nil
	}
	return false, c.send(b, dsn.Failure, sender, told, "")
}

// warn tells the sender of a delay, once for each recipient.
func (c *conclusion) warn(b *store.Batch) error {
	m := c.l.message
	sender := envelope.BounceAddress(m.Envelope.Sender)
	if sender == "" || m.Envelope.Sender == envelope.DoubleBounce || !c.q.o.Bounce.May(m.Origin, sender) {
		return nil
	}
	stored, err := c.q.entry(m.ID)
	if err != nil {
		return err
	}
	var late []store.SetState
	for _, n := range c.late {
		d := m.Envelope.Recipients[n].DSN
		if d != nil && d.Notify != 0 && d.Notify&envelope.NotifyDelay == 0 {
			continue
		}
		s := *c.state(n)
		s.Warned = true
		if !stored.State(n).Warned {
			late = append(late, store.SetState{ID: m.ID, Recipient: n, State: s})
		}
		// The new state takes the place of the one before in the same batch.
		b.States = append(b.States, store.SetState{ID: m.ID, Recipient: n, State: s})
	}
	if len(late) == 0 {
		return nil
	}
	c.q.counters.warnings.Add(1)
	return c.send(b, dsn.Delay, sender, late, "")
}

// send adds a report to the batch.
func (c *conclusion) send(b *store.Batch, kind dsn.Kind, to string, about []store.SetState, note string) error {
	q, m := c.q, c.l.message
	id := q.o.Store.NewID()
	r := dsn.Report{
		Kind: kind, Host: q.o.Host, From: q.o.Bounce.From, To: to, Sender: m.Envelope.Sender, EnvID: m.Envelope.EnvID,
		Arrival: m.ID.Time(), Now: c.now, GiveUp: m.ID.Time().Add(q.o.Lifetime), Original: c.l.content, HeadersOnly: m.Envelope.Ret == "HDRS",
		MaxOriginal: q.o.Bounce.MaxOriginal, Format: q.o.Bounce.Format, ID: id.String(), Spool: q.o.Spool, Note: note,
	}
	for _, s := range about {
		to := m.Envelope.Recipients[s.Recipient]
		d := dsn.Recipient{Address: to.Address, Reply: s.State.Reply, Where: s.State.Where, Last: s.State.Last, Perhaps: s.State.Perhaps}
		if to.DSN != nil {
			d.ORcpt = to.DSN.ORcpt
		}
		r.Recipients = append(r.Recipients, d)
	}
	content, err := r.Build()
	if err != nil {
		return err
	}
	c.held = append(c.held, &loaded{content: content})
	q.counters.reports.Add(1)
	_, err = q.puts(b, []Submission{{Envelope: r.Envelope(), Message: content, Origin: q.o.Bounce.Origin(), bounce: m.Bounce + 1}})
	return err
}

// settle finishes what a crash left of a message: reports that are owed, and
// the removal of one that is done with.
func (q *Queue) settle(ctx context.Context, id store.ID) error {
	e, err := q.entry(id)
	if err != nil {
		return err
	}
	l, err := q.read(id)
	if err != nil {
		q.o.Log.Error("cannot read a queued message; it stays in the queue, see postern queue verify", "id", id.String(), "error", reply.Clean(err.Error(), 500))
		return nil
	}
	c := &conclusion{q: q, l: l, now: q.o.Now(), states: map[uint32]int{}, held: []*loaded{l}}
	defer c.release()
	left := len(e.Message.Envelope.Recipients)
	for _, s := range e.States {
		if s.State.Status.Done() {
			left--
		}
	}
	b := c.batch
	keep, err := c.report(&b)
	if err != nil {
		return err
	}
	if left == 0 && !keep && e.Hold == nil {
		b.States, b.Removes = nil, []store.ID{id}
	}
	if err := q.o.Store.Apply(ctx, &b, false); err != nil {
		return err
	}
	q.enter(b.Puts)
	return nil
}

// notices keeps a flood of undeliverable mail from becoming a flood of notices.
type notices struct {
	mu         sync.Mutex
	last       time.Time
	suppressed int
}

// noticeEvery is how often the postmaster is told of held mail.
const noticeEvery = 10 * time.Minute

// next says whether a notice may go now, and what it has to add.
func (n *notices) next(now time.Time) (note string, due bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.last.IsZero() && now.Sub(n.last) < noticeEvery {
		n.suppressed++
		return "", false
	}
	if n.suppressed > 0 {
		note = fmt.Sprintf("%d other messages were held since the last notice.\n", n.suppressed)
	}
	n.last, n.suppressed = now, 0
	return note, true
}
