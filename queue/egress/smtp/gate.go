package smtp

import (
	"context"
	"errors"
	"net/netip"
	"time"

	wire "github.com/postern-mta/postern/pipeline/smtp"
)

// Gate admits connections and messages, and learns from what servers answer.
type Gate interface {
	// Open asks for a connection to a site from a source, by name; again where the
	// same attempt has found another of the site's servers out of reach, which is no
	// reason against this one. An error is a *NotNow.
	Open(site, source string, again bool) (Ticket, error)
}

// Ticket is leave for one connection.
type Ticket interface {
	// At says which address it goes to; it may be called again if that was not to be
	// had. An error is a *NotNow.
	At(netip.Addr) error
	// TakeOver: the connection that another ticket of the Gate is for, which this one is
	// given in place of At, is this one's from now on, and the other is over.
	TakeOver(other Ticket, at netip.Addr)
	// Greeted: the server is ready for mail. Unreachable: there was no connection, or
	// it broke before that.
	Greeted()
	Unreachable(error)
	// Message asks for a message to so many recipients. An error is a *NotNow.
	Message(recipients int) error
	// Taken: the server took a message. Said: it gave another answer, early if that
	// was before MAIL.
	Taken()
	// It reports whether this connection is one too many, so that it is not kept.
	Said(answer wire.Reply, early bool) (over bool)
	// Close: the connection is gone. Return, in its place: none was opened.
	Close()
	Return()
}

// NotNow says that a Gate does not admit something.
type NotNow struct {
	// Until is when it is worth asking again; zero if nobody knows.
	Until time.Time
	// Why names the limit.
	Why string
}

// Error is the reason.
func (n *NotNow) Error() string { return "not now: " + n.Why }

// notNow is the NotNow in an error, nil if there is none.
func notNow(err error) *NotNow {
	var n *NotNow
	if errors.As(err, &n) {
		return n
	}
	return nil
}

// maxPause is how long a connection waits for leave to send the next message;
// beyond that the message waits in the queue.
const maxPause = 2 * time.Second

// ticket is leave for a connection of the visit, from the job or from the Gate;
// nil without a Gate. Where that has no room, a connection of the site's gives way that is
// free and of no use for this message, because it is for another policy or login.
func (v *visit) ticket(ctx context.Context) (Ticket, error) {
	t, err := v.leave(ctx)
	if t == nil || v.to.hop.Socket != "" {
		return t, err
	}
	if err := t.At(v.to.address.Addr()); err != nil {
		v.a.job.Ticket = t // for another address, or to be given back
		return nil, err
	}
	return t, nil
}

// leave is a ticket that is for no address yet.
func (v *visit) leave(ctx context.Context) (Ticket, error) {
	x, job := v.a.x, v.a.job
	t := job.Ticket
	job.Ticket = nil
	if t == nil && x.o.Gate == nil {
		return nil, nil
	}
	if t == nil {
		var err error
		site, source := v.target.site.Name, v.a.source.Name
		t, err = x.o.Gate.Open(site, source, v.a.unreached)
		if n := notNow(err); n != nil && n.Until.IsZero() && x.kept.giveWay(ctx, site, source) {
			t, err = x.o.Gate.Open(site, source, v.a.unreached)
		}
		if err != nil {
			return nil, err
		}
	}
	return t, nil
}

// takeOver has a free connection that was another site's count for this one.
func (v *visit) takeOver(ctx context.Context, l *link) error {
	site := v.target.site.Name
	if l.ticket == nil || l.counts == site {
		return nil
	}
	t, err := v.leave(ctx)
	if err != nil {
		return err
	}
	t.TakeOver(l.ticket, v.to.address.Addr())
	l.ticket, l.counts = t, site
	return nil
}

// missed keeps a ticket for which there was no connection for the next address. That we
// cannot leave from here, or wait no longer, says nothing about the server.
func (a *attempt) missed(ctx context.Context, t Ticket, err error) {
	if t == nil {
		return
	}
	a.job.Ticket = t
	if sourceFault(err) == nil && ctx.Err() == nil {
		a.miss = err
	}
}

// giveBack ends a ticket for which there was no connection in the end, and returns one
// that the Exit has got itself and had no use for. mine is the job's own, which is its
// caller's.
func (a *attempt) giveBack(mine Ticket) {
	t := a.job.Ticket
	switch {
	case t == nil:
		return
	case a.miss != nil:
		t.Unreachable(a.miss)
		t.Close()
	case t != mine:
		t.Return()
	default:
		return
	}
	a.job.Ticket = nil
}

// admitted asks for leave to send a message over a link, and waits for it if that
// is not for long.
func (s *session) admitted(ctx context.Context, recipients int) error {
	if s.l.ticket == nil {
		return nil
	}
	for {
		err := s.l.ticket.Message(recipients)
		n := notNow(err)
		if n == nil {
			return err
		}
		pause := n.Until.Sub(s.a.x.o.Now())
		if n.Until.IsZero() || pause > maxPause {
			return err
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return err
		}
	}
}

// waits ends a session in which no further message is admitted. A connection that
// is used up makes room for a new one.
func (s *session) waits(err error) {
	n := notNow(err)
	if n != nil && n.Until.IsZero() {
		s.l.spent = true
		if s.l.sent == s.began && s.l.reused {
			s.a.again = true
			return
		}
	}
	s.settle(Result{Reply: notAdmitted, NotNow: n, Phase: wire.Hello, Err: err})
}

// tell has the Gate learn from a transaction.
func (s *session) tell(out *wire.Outcome, err error) {
	t := s.l.ticket
	if t == nil {
		return
	}
	if err == nil {
		t.Taken()
	}
	var e *wire.Error
	if errors.As(err, &e) && e.Reply.Code >= 400 {
		s.l.spent = t.Said(e.Reply, false) || s.l.spent
		return
	}
	for _, answers := range [][]wire.Reply{out.Recipients, out.Finals} {
		for _, answer := range answers {
			if answer.Code >= 400 {
				s.l.spent = t.Said(answer, false) || s.l.spent
				return
			}
		}
	}
}

// tellFailed has the Gate learn from a connection that came to nothing. Where TLS is
// what failed, only a goodbye counts: other mail may do without, and one message
// that may not must not keep it waiting.
func tellFailed(ctx context.Context, t Ticket, err error, byTLS bool) {
	if t == nil {
		return
	}
	var e *wire.Error
	switch {
	case errors.As(err, &e) && e.Reply.Code >= 400:
		if !byTLS || e.Reply.Code == 421 {
			t.Said(e.Reply, true)
		}
	case !byTLS && ctx.Err() == nil:
		t.Unreachable(err)
	}
}
