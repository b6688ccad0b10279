package smtp

import (
	"context"
	"errors"
	"fmt"
	"net"

	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
	wire "github.com/postern-mta/postern/pipeline/smtp"
)

// Courier hands messages over by another protocol than SMTP, one a connection. It is
// safe for concurrent use.
type Courier interface {
	// Carry sends a message over a connection, which the caller closes, and returns
	// the answers to the first recipients, in order; to all of them if err is nil.
	// perhaps is how many of those after them may have the message all the same. A
	// deadline is on every wait.
	Carry(ctx context.Context, conn net.Conn, e envelope.Envelope, m message.Message) (answers []reply.Reply, perhaps int, err error)
}

var (
	discarded   = reply.Make(250, reply.Enhanced{}, "The message was discarded, as the route to this domain says.")
	noTransport = reply.Make(451, reply.Enhanced{Subject: 3, Detail: 5}, "The route to this domain cannot be used here.")
)

// discard is the end of a message whose route leads nowhere.
func (a *attempt) discard() {
	a.x.o.Log.Info("a message is discarded, as its route says", "domain", a.job.Domain, "sender", a.job.Envelope.Sender, "recipients", len(a.pending))
	a.settle(Result{Reply: discarded, Where: "discard:"})
}

// carry delivers by a Courier. Recipients that it leaves pending are for the next
// hop, with fallback saying why.
func (v *visit) carry(ctx context.Context, w *walk) {
	a := v.a
	c := a.x.o.Couriers[v.to.hop.Transport]
	if c == nil {
		a.settle(Result{Reply: noTransport, Where: v.to.String(), Err: fmt.Errorf("nobody here speaks %s", v.to.hop.Transport)})
		return
	}
	if a.job.Envelope.RequireTLS {
		a.settle(Result{Reply: needsTLS, Where: v.to.String()})
		return
	}
	conn, l, err := v.plain(ctx)
	if err != nil {
		v.failed(err, w)
		return
	}
	defer a.x.kept.ended(l.site)
	if l.ticket != nil {
		defer l.ticket.Close()
	}
	defer conn.Close()
	a.sessions++
	s := session{visit: v, l: l, content: a.job.Content}
	if a.job.Prepare != nil {
		// Both protocols carry whatever there is.
		can := wire.Capabilities{Extensions: wire.EightBit | wire.UTF8}
		if s.content, err = a.job.Prepare(ctx, can); err != nil {
			s.settle(Result{Reply: reply.Of(err), Phase: wire.Hello, Err: err})
			return
		}
	}
	if err := s.admitted(ctx, len(a.pending)); err != nil {
		s.waits(err)
		return
	}
	s.carried(ctx, c, conn)
}

// plain connects for a Courier.
func (v *visit) plain(ctx context.Context) (net.Conn, *link, error) {
	x := v.a.x
	x.kept.makeRoom(ctx, v.target.site.Name)
	ticket, err := v.ticket(ctx)
	if err != nil {
		return nil, nil, err
	}
	conn, err := v.dial(ctx)
	if err != nil {
		x.dead.noConnection(ctx, v.to, err)
		v.a.missed(ctx, ticket, err)
		return nil, nil, err
	}
	x.dead.answers(v.to)
	if ticket != nil {
		ticket.Greeted()
	}
	l := &link{key: v.key, site: v.target.site.Name, ticket: ticket, opened: x.o.Now()}
	x.kept.opened(l)
	return conn, l, nil
}

// carried sends the message to all pending recipients.
func (s *session) carried(ctx context.Context, c Courier, conn net.Conn) {
	a := s.a
	e := a.job.Envelope
	e.Recipients = make([]envelope.Recipient, len(a.pending))
	to := append([]int(nil), a.pending...)
	for k, i := range to {
		e.Recipients[k] = a.job.Envelope.Recipients[i]
	}
	answers, perhaps, err := c.Carry(ctx, conn, e, s.content)
	if err == nil && len(answers) != len(to) {
		err, perhaps = errors.New("the answers are not as many as the recipients"), len(to)
	}
	answers = answers[:min(len(answers), len(to))]
	s.learn(answers)
	for k, r := range answers {
		s.done(to[k], Result{Reply: r, Remote: true, Said: heard(r), Phase: wire.Dot})
	}
	if err == nil {
		return
	}
	a.x.o.Log.Debug("session failed", "to", s.to.String(), "transport", s.to.hop.Transport.String(), "error", err)
	rest := to[len(answers):]
	for _, i := range rest[:min(perhaps, len(rest))] {
		s.done(i, Result{Reply: died(s.to.name(), true), Phase: wire.Dot, Perhaps: true, Err: err})
	}
	r := Result{Reply: died(s.to.name(), false), Where: s.to.String(), Address: s.to.address.Addr(), Phase: wire.Body, Err: err}
	if known := new(reply.Error); errors.As(err, &known) { // the message is to blame
		r.Reply = known.Reply
	}
	if r.Reply.Class == reply.Permanent || ctx.Err() != nil {
		a.settle(r)
		return
	}
	// The server has nothing of the message, so another may have it.
	a.fallback, a.unreached = r, true
}

// learn has the Gate learn from answers.
func (s *session) learn(answers []reply.Reply) {
	if s.l.ticket == nil {
		return
	}
	for _, r := range answers {
		if r.Class != reply.Success {
			s.l.spent = s.l.ticket.Said(heard(r), false) || s.l.spent
			return
		}
	}
	if len(answers) > 0 {
		s.l.ticket.Taken()
	}
}

// heard is an answer as an SMTP server would have given it.
func heard(r reply.Reply) wire.Reply {
	return wire.Reply{Code: int(r.Code), Enhanced: r.Enhanced, Coded: true, Text: r.Text}
}
