package smtp

import (
	"context"
	"errors"
	"fmt"
	"io"

	"golang.org/x/net/idna"

	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
	wire "github.com/postern-mta/postern/pipeline/smtp"
)

// attempt is one Deliver.
type attempt struct {
	x       *Exit
	job     *Job
	source  Source
	results []Result
	// pending are the recipients without a result, in order.
	pending []int
	// fallback is their result if no other address helps; how many sessions there
	// were.
	fallback Result
	sessions int
	// unsuited are the sessions with servers that lack what REQUIRETLS asks for; all
	// the others are to be asked (RFC 8689 §4.2.1).
	unsuited int
	// unreached is set if an address might have given another answer at another time.
	unreached bool
	// miss is why there was no connection so far, of which the Gate is told unless
	// another address has one.
	miss error
	// again is set if a session came to nothing for which the message and the server
	// are not to blame, so that the same address is tried once more.
	again bool
}

func (x *Exit) newAttempt(job *Job) *attempt {
	n := len(job.Envelope.Recipients)
	a := &attempt{x: x, job: job, source: job.source(x), results: make([]Result, n), pending: make([]int, n)}
	for i := range a.pending {
		a.pending[i] = i
	}
	return a
}

// lost is the end of an attempt at a domain of which nobody knows where it is.
func (a *attempt) lost(ctx context.Context, err error) {
	r := Result{Reply: reply.Of(err), Err: err}
	if ctx.Err() != nil {
		r.Reply = stopped
	}
	a.settle(r)
}

// settle gives all pending recipients the same result.
func (a *attempt) settle(r Result) {
	for _, i := range a.pending {
		a.results[i] = r
	}
	a.pending = nil
}

// run tries one address after the other. What is rare, or over before a server is
// waited for, has functions of its own, here and below: a delivery may wait for an
// hour, thousands of them at a time, and each has all their frames on its stack.
func (a *attempt) run(ctx context.Context, w *walk) {
	a.fallback.Reply = noConn
	for v := a.next(ctx, w); v != nil; v = a.next(ctx, w) {
		if v.to.hop.Transport >= QMTP {
			v.carry(ctx, w)
		} else {
			v.run(ctx, w)
		}
	}
	a.end(ctx, w)
}

// next is the visit to the next address, nil if there is nothing left to do or none to
// do it at.
func (a *attempt) next(ctx context.Context, w *walk) *visit {
	for len(a.pending) > 0 && a.sessions-a.unsuited < w.most(a.x.o.MaxSessions) {
		to, ok := w.next(ctx)
		if !ok {
			break
		}
		v, err := a.newVisit(ctx, w.to, to)
		if err == nil {
			return v
		}
		a.fallback, a.unreached = v.notAssured(err), true
	}
	return nil
}

// end gives those their result who have none.
func (a *attempt) end(ctx context.Context, w *walk) {
	switch {
	case a.sessions > 0:
	case ctx.Err() != nil:
		a.fallback = Result{Reply: stopped, Err: context.Cause(ctx)}
	case !w.given:
		a.fallback = w.nothing()
	}
	if a.fallback.Reply.Class == reply.Permanent && a.sessions > 0 && (a.unreached || w.passed || w.more()) {
		// Nobody has said no for all hosts.
		a.fallback.Reply.Class, a.fallback.Reply.Code = reply.Temporary, 451
	}
	a.settle(a.fallback)
}

// session is a connection that is ready for the message.
type session struct {
	*visit
	l       *link
	c       *wire.Client
	content message.Message
	sender  string
	began   int // messages that the connection had carried before
}

// session holds one conversation from MAIL on and gives the connection back.
func (v *visit) session(ctx context.Context, l *link) {
	whole := false
	defer func() {
		if !whole { // the job's Prepare panics; whoever recovers must not have lost a connection
			l.c.Close()
			v.a.x.kept.close(ctx, l)
		}
	}()
	v.newSession(l).run(ctx)
	whole = true
	v.a.x.kept.give(ctx, l)
}

func (v *visit) newSession(l *link) *session {
	v.a.again = false
	// For those whose turn does not come.
	v.a.fallback = Result{
		Reply: died(v.to.name(), false), Where: v.to.String(), Address: v.to.address.Addr(), TLS: l.tls, Phase: wire.After,
	}
	return &session{visit: v, l: l, c: l.c, began: l.sent}
}

func (s *session) run(ctx context.Context) {
	if !s.prepare(ctx) || !s.suits() {
		return
	}
	recipients, limit := s.recipients(), s.mostRecipients()
	for len(recipients) > 0 && s.c.Usable() && !s.a.again {
		n := min(len(recipients), limit)
		if err := s.admitted(ctx, n); err != nil {
			s.waits(err)
			break
		}
		again := s.send(ctx, recipients[:n])
		recipients = append(again, recipients[n:]...)
	}
	// What is left is pending, and fallback says why.
}

// mostRecipients is how many one transaction names.
func (s *session) mostRecipients() int {
	if n := s.c.Capabilities().RcptMax; n > 0 {
		return min(s.a.x.o.MaxRecipients, n)
	}
	return s.a.x.o.MaxRecipients
}

// prepare makes the message ready for this server, or settles.
func (s *session) prepare(ctx context.Context) (ok bool) {
	s.content = s.a.job.Content
	if s.a.job.Prepare != nil {
		var err error
		if s.content, err = s.a.job.Prepare(ctx, s.c.Capabilities()); err != nil {
			s.settle(Result{Reply: reply.Of(err), Phase: wire.Hello, Err: err})
			return false
		}
	}
	s.content = s.stamped()
	return true
}

// suits finds out whether this server can be given the message.
func (s *session) suits() bool {
	a := s.a
	if a.job.Envelope.RequireTLS && s.to.hop.Socket == "" && !(s.l.tls.Verified && s.c.Capabilities().Extensions.Has(wire.RequireTLS)) {
		// Another host may do, if there is one (RFC 8689 §4.2.1).
		r := needsTLS
		if !s.l.tls.Verified {
			r = needsEncryption
		}
		a.fallback.Reply, a.fallback.Phase = r, wire.Hello
		a.unsuited++
		return false
	}
	if r, ok := s.carries(); !ok {
		s.settle(Result{Reply: r, Phase: wire.Hello})
		return false
	}
	return true
}

func (s *session) settle(r Result) {
	r.Where, r.Address, r.TLS = s.to.String(), s.to.address.Addr(), s.l.tls
	s.a.settle(r)
}

// done gives one recipient its result.
func (s *session) done(i int, r Result) {
	r.Where, r.Address, r.TLS = s.to.String(), s.to.address.Addr(), s.l.tls
	s.a.results[i] = r
	for k, p := range s.a.pending {
		if p == i {
			s.a.pending = append(s.a.pending[:k], s.a.pending[k+1:]...)
			return
		}
	}
}

// carries checks that the server can take this message from this sender.
func (s *session) carries() (reply.Reply, bool) {
	caps := s.c.Capabilities()
	if size := s.content.WireSize(); caps.Size > 0 && size > caps.Size {
		return tooBig(size, caps.Size), false
	}
	if s.a.x.manner.Load().refuseEightBit {
		switch form := s.content.Form(); {
		case form == message.UTF8 && !caps.Extensions.Has(wire.UTF8):
			return needsUTF8, false
		case form == message.EightBit && !caps.Extensions.Has(wire.EightBit):
			return needs8Bit, false
		}
	}
	sender := s.a.job.Envelope.Sender
	if sender == envelope.DoubleBounce {
		sender = ""
	}
	var err error
	if s.sender, err = s.writable(sender); err != nil {
		return answerFor(err, badSender), false
	}
	return reply.Reply{}, true
}

func answerFor(err error, r reply.Reply) reply.Reply {
	if errors.Is(err, wire.ErrUTF8) {
		return needsUTF8
	}
	return r
}

// writable is the address as this server can take it: without SMTPUTF8, a domain
// may still be written in ASCII (RFC 5891 §4).
func (s *session) writable(address string) (string, error) {
	utf8 := s.c.Capabilities().Extensions.Has(wire.UTF8)
	_, err := wire.FormatPath(address, utf8)
	if err == nil || !errors.Is(err, wire.ErrUTF8) {
		return address, err
	}
	domain, convErr := idna.Lookup.ToASCII(envelope.Domain(address))
	if convErr != nil {
		return "", err
	}
	address = envelope.Local(address) + "@" + domain
	_, err = wire.FormatPath(address, utf8)
	return address, err
}

// named is a recipient as it is named to this server.
type named struct {
	i int
	r envelope.Recipient
}

// recipients are those pending that can be named to this server; the others get
// their result.
func (s *session) recipients() []named {
	var all []named
	for _, i := range append([]int(nil), s.a.pending...) {
		r := s.a.job.Envelope.Recipients[i]
		var err error
		if r.Address, err = s.writable(r.Address); err == nil && r.Address == "" {
			err = wire.ErrAddress
		}
		if err != nil {
			s.done(i, Result{Reply: answerFor(err, badAddress), Phase: wire.RcptTo, Err: err})
			continue
		}
		all = append(all, named{i, r})
	}
	return all
}

// source is a message as a client reads it.
type source struct {
	message.Message
	r *io.SectionReader
}

// Read is for completeness: the message writes itself.
func (s *source) Read(p []byte) (int, error) {
	if s.r == nil {
		s.r = s.Reader()
	}
	return s.r.Read(p)
}

// send makes one transaction and returns those recipients for whom there was no
// room in it (RFC 5321 §4.5.3.1.10).
func (s *session) send(ctx context.Context, to []named) (again []named) {
	x := s.exchange(to)
	err := s.c.Exchange(ctx, x)
	return s.heard(ctx, to, &x.Outcome, err)
}

func (s *session) exchange(to []named) *wire.Exchange {
	form := s.content.Form()
	x := &wire.Exchange{Envelope: s.a.job.Envelope, Content: wire.Content{
		From: &source{Message: s.content}, Length: s.content.Size(), Size: s.content.WireSize(), EightBit: form != message.SevenBit,
	}}
	e := &x.Envelope
	e.Sender, e.Recipients = s.sender, make([]envelope.Recipient, len(to))
	for k, n := range to {
		e.Recipients[k] = n.r
	}
	e.UTF8 = e.UTF8 || form == message.UTF8
	return x
}

// heard gives recipients the results that a transaction gave them.
func (s *session) heard(ctx context.Context, to []named, out *wire.Outcome, err error) (again []named) {
	s.l.sent++
	if s.a.again = s.worthAgain(ctx, out, err); s.a.again {
		return nil
	}
	s.tell(out, err)
	accepted := false
	for k := range to {
		accepted = accepted || out.Accepted(k)
	}
	for k, n := range to {
		answer := out.Recipients[k]
		switch {
		case isFull(answer) && accepted && err == nil:
			again = append(again, n)
		case answer.Code != 0 && !out.Accepted(k):
			s.done(n.i, Result{Reply: answer.Reply(), Remote: true, Said: answer, Phase: wire.RcptTo})
		case out.Finals != nil && out.Finals[k].Code != 0:
			s.done(n.i, Result{Reply: out.Finals[k].Reply(), Remote: true, Said: out.Finals[k], Phase: wire.Dot})
		case err == nil:
			s.done(n.i, Result{Reply: out.Final.Reply(), Remote: true, Said: out.Final, Phase: wire.Dot})
		default:
			s.failed(ctx, n.i, err)
		}
	}
	return again
}

// isFull is true of the answer to one recipient too many for a transaction: 452, or
// whatever says X.5.3 (RFC 5321 §4.5.3.1.10, RFC 3463 §3.6).
func isFull(answer wire.Reply) bool {
	return answer.Code == 452 || answer.Code >= 400 && answer.Coded && answer.Enhanced == reply.Enhanced{Subject: 5, Detail: 3}
}

// worthAgain reports whether a transaction came to nothing in a way that costs
// nothing: on a kept connection where the server was gone, or said goodbye, before
// it had answered MAIL, or where it did not know chunks.
func (s *session) worthAgain(ctx context.Context, out *wire.Outcome, err error) bool {
	var e *wire.Error
	if !errors.As(err, &e) || ctx.Err() != nil {
		return false
	}
	x, now := s.a.x, s.a.x.o.Now()
	if errors.Is(err, wire.ErrChunking) || x.manner.Load().chunking && e.Perhaps {
		// Whatever it was, the next message goes there by DATA.
		x.unchunked.hold(s.to.address, now, now.Add(x.o.ClearFor))
	}
	if errors.Is(err, wire.ErrChunking) {
		x.o.Log.Debug("the message is sent once more without chunks", "to", s.to.String(), "error", err)
		return true
	}
	gone := e.Reply.Code == 0 || e.Reply.Code == 421
	first := out.Mail.Code == 0 || out.Mail.Code == 421
	return s.l.reused && s.l.sent == s.began+1 && gone && first && e.Phase != wire.Body && e.Phase != wire.Dot
}

// failed says what a failed transaction means for a recipient that got no answer
// of its own, or leaves it for the next address.
func (s *session) failed(ctx context.Context, i int, err error) {
	var e *wire.Error
	if !errors.As(err, &e) {
		e = &wire.Error{Phase: wire.MailFrom, Err: err}
	}
	r := Result{Said: e.Reply, Phase: e.Phase, Perhaps: e.Perhaps, Err: err}
	switch {
	case errors.Is(err, wire.ErrContent):
		r.Reply = unreadable
	case e.Reply.Code >= 400 && e.Phase != wire.After:
		r.Reply, r.Remote = e.Reply.Reply(), true
	default:
		r.Reply = died(s.to.name(), e.Perhaps)
		if e.Phase != wire.Body && e.Phase != wire.Dot && ctx.Err() == nil {
			// The server has seen nothing of the message, so another may have it.
			r.Where, r.Address, r.TLS = s.to.String(), s.to.address.Addr(), s.l.tls
			s.a.fallback = r
			s.a.x.o.Log.Debug("session failed", "to", r.Where, "error", fmt.Sprint(err))
			return
		}
	}
	s.done(i, r)
}
