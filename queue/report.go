package queue

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/message"
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

// account is what is told about one message at a time, and what is written down
// with it: the reports and the states that say so are one batch.
type account struct {
	q       *Queue
	message *store.Message
	content message.Message
	now     time.Time
	// over is set if no recipient is left to deliver to: the message is then
	// removed, or held where an operator sees it.
	over   bool
	failed []store.SetState // given up, and nobody was told
	late   []store.SetState // deferred, and the sender is to be warned

	batch   store.Batch
	reports []message.Message
	log     []func()
	noticed bool // the batch has a notice to the postmaster
	marked  bool // the batch marks the failures as reported
}

func (a *account) release() {
	for _, m := range a.reports {
		m.Body().Release() //nolint:errcheck // nothing depends on it
	}
}

// settle makes the reports and applies everything at once. It says whether the
// message is gone.
func (a *account) settle(ctx context.Context) (removed bool, err error) {
	q, id := a.q, a.message.ID
	keep, err := a.fail()
	if err == nil && len(a.late) > 0 {
		err = a.warn()
	}
	if err == nil {
		if removed = a.over && !keep; removed {
			a.batch.States, a.batch.Removes = nil, []store.ID{id}
		}
		// A report must be as safe as the message that it stands for.
		err = q.apply(context.WithoutCancel(ctx), &a.batch, len(a.batch.Puts) == 0)
	}
	if err != nil {
		if a.noticed {
			q.notices.giveBack()
		}
		return false, err
	}
	for _, log := range a.log {
		log()
	}
	if removed {
		q.gone(id)
	}
	return removed, nil
}

// fail chooses who hears of failures, if anybody does. keep is set if the
// message stays although nobody is left to deliver to.
func (a *account) fail() (keep bool, err error) {
	if len(a.failed) == 0 {
		return false, nil
	}
	m, q := a.message, a.q
	sender := envelope.BounceAddress(m.Envelope.Sender)
	told := a.failed
	if sender != "" {
		told = a.notified(a.failed, envelope.NotifyFailure)
	}
	switch {
	case m.Envelope.Sender == envelope.DoubleBounce:
		a.log = append(a.log, func() {
			q.counters.discarded.Add(1)
			q.o.Log.Error("triple bounce: discarding a report that could not be delivered to the postmaster", "id", m.ID.String())
		})
	case len(told) == 0: // NOTIFY=NEVER
	case sender == "":
		err = a.report(dsn.Double, q.o.Bounce.Postmaster, told, "")
	case q.o.Bounce.May(m.Origin, sender):
		err = a.report(dsn.Failure, sender, told, "")
	case !a.over:
		return false, nil // it is held as a whole when it is over
	default:
		keep, err = true, a.hold(told)
	}
	for _, f := range a.failed {
		f.State.Reported = true
		a.batch.States = append(a.batch.States, f)
	}
	a.marked = true
	return keep, err
}

// hold keeps a message in the queue whose sender must not be told, and tells
// the postmaster, now and then.
func (a *account) hold(failed []store.SetState) error {
	reason := "undeliverable, and its sender is not verified: no report was sent"
	a.batch.Holds = append(a.batch.Holds, store.SetHold{ID: a.message.ID, Hold: &store.Hold{Reason: reason, Since: a.now}})
	a.log = append(a.log, func() {
		a.q.counters.held.Add(1)
		a.q.o.Log.Warn("held", "id", a.message.ID.String(), "reason", reason)
	})
	note, due := a.q.notices.next(a.now)
	if !due {
		return nil
	}
	a.noticed = true
	return a.report(dsn.Held, a.q.o.Bounce.Postmaster, failed, note)
}

// notified are those whose sender wants to hear of something: without NOTIFY,
// of failures and delays (RFC 3461 §4.1).
func (a *account) notified(all []store.SetState, of envelope.Notify) []store.SetState {
	var told []store.SetState
	for _, s := range all {
		if d := a.message.Envelope.Recipients[s.Recipient].DSN; d == nil || d.Notify == 0 || d.Notify&of != 0 {
			told = append(told, s)
		}
	}
	return told
}

// mayWarn reports whether the sender of a message is to be warned of its delay.
func (q *Queue) mayWarn(m *store.Message, now time.Time) bool {
	sender := envelope.BounceAddress(m.Envelope.Sender)
	w := q.o.Bounce.Warn
	return w > 0 && now.Sub(m.Arrival()) >= w && sender != "" && m.Envelope.Sender != envelope.DoubleBounce && q.o.Bounce.May(m.Origin, sender)
}

// warn tells the sender of a delay. All that are late are marked, also those of
// whom he does not want to hear, so that nobody looks again.
func (a *account) warn() error {
	for _, s := range a.late {
		s.State.Warned = true
		a.batch.States = append(a.batch.States, s)
	}
	told := a.notified(a.late, envelope.NotifyDelay)
	if len(told) == 0 {
		return nil
	}
	return a.report(dsn.Delay, envelope.BounceAddress(a.message.Envelope.Sender), told, "")
}

// report adds a report to the batch.
func (a *account) report(kind dsn.Kind, to string, about []store.SetState, note string) error {
	q, m := a.q, a.message
	r := dsn.Report{
		Kind: kind, Host: q.o.Host, From: q.o.Bounce.From, To: to, Sender: m.Envelope.Sender, EnvID: m.Envelope.EnvID,
		Arrival: m.Arrival(), Now: a.now, GiveUp: m.Arrival().Add(q.o.Lifetime), Original: a.content, HeadersOnly: m.Envelope.Ret == "HDRS",
		MaxOriginal: q.o.Bounce.MaxOriginal, Format: q.o.Bounce.Format, ID: q.o.Store.NewID().String(), Spool: q.o.Spool, Note: note,
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
	a.reports = append(a.reports, content)
	ids, err := q.puts(&a.batch, []Submission{{Envelope: r.Envelope(), Message: content, Origin: q.o.Bounce.Origin(), bounce: min(m.Bounce, 254) + 1}})
	if err != nil {
		return err
	}
	a.log = append(a.log, func() {
		q.counters.reports[kind].Add(1)
		q.o.Log.Info("report", "id", m.ID.String(), "kind", kind.String(), "as", ids[0].String(), "to", reply.Clean(to, envelope.MaxAddress), "about", len(about))
	})
	return nil
}

// notices keeps a flood of undeliverable mail from becoming a flood of notices.
type notices struct {
	mu         sync.Mutex
	last       time.Time
	before     time.Time // the one before, in case that the last one fails
	suppressed int
	noted      int // in the last one
}

// noticeEvery is how often the postmaster is told of held mail.
const noticeEvery = 10 * time.Minute

// next says whether a notice may go now, and what it has to add. A clock that
// was set back does not silence it.
func (n *notices) next(now time.Time) (note string, due bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if age := now.Sub(n.last); !n.last.IsZero() && age >= 0 && age < noticeEvery {
		n.suppressed++
		return "", false
	}
	if n.suppressed > 0 {
		note = fmt.Sprintf("%d other messages were held since the last notice.\n", n.suppressed)
	}
	n.before, n.noted = n.last, n.suppressed
	n.last, n.suppressed = now, 0
	return note, true
}

// giveBack takes the last notice back: it could not be written.
func (n *notices) giveBack() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.last = n.before
	n.suppressed += n.noted
	n.noted = 0
}
