package smtp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"

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
	results []Result
	// pending are the recipients without a result, in order.
	pending []int
	// fallback is their result if no other address helps; how many sessions there
	// were.
	fallback Result
	sessions int
}

// settle gives all pending recipients the same result.
func (a *attempt) settle(r Result) {
	for _, i := range a.pending {
		a.results[i] = r
	}
	a.pending = nil
}

// run tries one address after the other.
func (a *attempt) run(ctx context.Context, w *walk) {
	a.fallback = Result{Reply: noConn}
	for len(a.pending) > 0 && a.sessions < a.x.o.MaxSessions {
		to, ok := w.next(ctx)
		if !ok {
			break
		}
		conn, err := a.connect(ctx, to)
		if err == nil {
			a.sessions++
			a.session(ctx, conn, to)
			continue
		}
		a.x.o.Log.Debug("cannot connect", "to", to.String(), "error", err)
		if isHopeless(err) {
			w.hopeless()
		}
		if a.sessions == 0 {
			a.fallback = Result{Reply: noConn, Where: to.String(), Err: err}
		}
	}
	switch {
	case a.sessions > 0:
	case ctx.Err() != nil:
		a.fallback = Result{Reply: stopped, Err: context.Cause(ctx)}
	case !w.given:
		a.fallback = w.nothing()
	}
	a.settle(a.fallback)
}

func (a *attempt) connect(ctx context.Context, to candidate) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, a.x.o.ConnectTimeout)
	defer cancel()
	return a.x.o.Dialer.DialContext(ctx, "tcp", to.address.String())
}

// isHopeless is true for networks that this machine is not on.
func isHopeless(err error) bool {
	return errors.Is(err, syscall.ENETUNREACH) || errors.Is(err, syscall.EAFNOSUPPORT) || errors.Is(err, syscall.EADDRNOTAVAIL)
}

// session holds one conversation. Recipients that it leaves pending are for the
// next address, with fallback saying why.
func (a *attempt) session(ctx context.Context, conn net.Conn, to candidate) {
	c := wire.NewClient(conn, wire.ClientOptions{Hello: a.x.o.Hello, Timeouts: a.x.o.Timeouts, Buffers: &a.x.buffers})
	defer c.Quit(ctx) //nolint:errcheck // nothing depends on it
	address := to.address.Addr().String()
	if _, err := c.Greet(ctx); err != nil {
		a.unheard(to, err, greetingFailed(address, said(err)))
		return
	}
	if _, err := c.Hello(ctx); err != nil {
		a.unheard(to, err, nameRejected(address, said(err)))
		return
	}
	// For those whose turn does not come.
	a.fallback = Result{Reply: died(address, false), Where: to.String(), Address: to.address.Addr(), Phase: wire.After}
	s := session{a: a, c: c, to: to}
	s.run(ctx)
}

func said(err error) string {
	var e *wire.Error
	if errors.As(err, &e) {
		return e.Reply.String()
	}
	return ""
}

// unheard notes a session that failed before MAIL.
func (a *attempt) unheard(to candidate, err error, r reply.Reply) {
	var e *wire.Error
	if !errors.As(err, &e) {
		e = &wire.Error{Err: err}
	}
	if e.Reply.Class() == reply.Temporary && e.Reply.Code != 0 {
		r.Code, r.Enhanced = e.Reply.Code, e.Reply.Enhanced
	}
	a.x.o.Log.Debug("session failed", "to", to.String(), "error", err)
	a.fallback = Result{Reply: r, Said: e.Reply, Where: to.String(), Address: to.address.Addr(), Phase: e.Phase, Err: err}
}

// session is a connection that is ready for the message.
type session struct {
	a       *attempt
	c       *wire.Client
	to      candidate
	content message.Message
	sender  string
}

func (s *session) run(ctx context.Context) {
	a := s.a
	s.content = a.job.Content
	if a.job.Prepare != nil {
		var err error
		if s.content, err = a.job.Prepare(ctx, s.c.Capabilities()); err != nil {
			s.settle(Result{Reply: reply.Of(err), Phase: wire.Hello, Err: err})
			return
		}
	}
	if r, ok := s.carries(); !ok {
		s.settle(Result{Reply: r, Phase: wire.Hello})
		return
	}
	recipients := s.recipients()
	limit := a.x.o.MaxRecipients
	if n := s.c.Capabilities().RcptMax; n > 0 {
		limit = min(limit, n)
	}
	for len(recipients) > 0 && s.c.Usable() {
		n := min(len(recipients), limit)
		again := s.send(ctx, recipients[:n])
		recipients = append(again, recipients[n:]...)
	}
	// What is left is pending, and fallback says why.
}

func (s *session) settle(r Result) {
	r.Where, r.Address = s.to.String(), s.to.address.Addr()
	s.a.settle(r)
}

// done gives one recipient its result.
func (s *session) done(i int, r Result) {
	r.Where, r.Address = s.to.String(), s.to.address.Addr()
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
	if s.a.x.o.RefuseEightBit {
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
	job := s.a.job
	e := job.Envelope
	e.Sender, e.Recipients = s.sender, make([]envelope.Recipient, len(to))
	for k, n := range to {
		e.Recipients[k] = n.r
	}
	form := s.content.Form()
	e.UTF8 = e.UTF8 || form == message.UTF8
	out, err := s.c.Transaction(ctx, e, wire.Content{
		From: &source{Message: s.content}, Length: s.content.Size(), Size: s.content.WireSize(), EightBit: form != message.SevenBit,
	})
	accepted := false
	for k := range to {
		accepted = accepted || out.Accepted(k)
	}
	for k, n := range to {
		answer := out.Recipients[k]
		switch {
		case answer.Code == 452 && accepted && err == nil:
			again = append(again, n)
		case answer.Code != 0 && !out.Accepted(k):
			s.done(n.i, Result{Reply: answer.Reply(), Remote: true, Said: answer, Phase: wire.RcptTo})
		case err == nil:
			s.done(n.i, Result{Reply: out.Final.Reply(), Remote: true, Said: out.Final, Phase: wire.Dot})
		default:
			s.failed(ctx, n.i, err)
		}
	}
	return again
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
		r.Reply = died(s.to.address.Addr().String(), e.Perhaps)
		if e.Phase != wire.Body && e.Phase != wire.Dot && ctx.Err() == nil {
			// The server has seen nothing of the message, so another may have it.
			r.Where, r.Address = s.to.String(), s.to.address.Addr()
			s.a.fallback = r
			s.a.x.o.Log.Debug("session failed", "to", r.Where, "error", fmt.Sprint(err))
			return
		}
	}
	s.done(i, r)
}
