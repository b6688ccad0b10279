package smtp

import (
	"bytes"
	"context"
	"strconv"
	"strings"
	"time"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/reply"
	wire "github.com/postern-mta/postern/pipeline/smtp"
)

// transaction is one message on its way in, from MAIL on.
type transaction struct {
	pipeline.Transaction
	// ctx ends with the transaction's time, or the server.
	ctx   context.Context
	start time.Time
	until time.Time // for all of it
	end   context.CancelFunc
	lot   string // of the first recipient
	held  error  // the Relay's no to the sender, to be told at RCPT
	rec   txRecord
}

// mail answers MAIL.
func (n *session) mail(args []byte) {
	o := &n.srv.o
	path, ok := keyword(args, "FROM:")
	switch {
	case !ok:
		n.bad(badMailSyntax)
		return
	case o.Service == Submission && n.facts.Standing == pipeline.Stranger:
		n.bad(needsLogin)
		return
	case o.Limits.Messages >= 0 && n.count >= o.Limits.Messages:
		n.hangUp("too many messages", tooManyMails)
		return
	}
	m, err := wire.ParseMail(string(path), n.offered)
	if err != nil {
		n.bad(reply.Of(err))
		return
	}
	n.count++
	n.dropping = false
	if n.idle++; n.idle > o.Limits.Idle {
		n.hangUp("too many idle commands", tooManyIdle)
		return
	}
	n.catchUp()
	n.tx = n.newTransaction(m)
	if n.limit > 0 && m.Size > n.limit {
		n.refuseMail(reply.TooBig)
		return
	}
	if err := o.Relay.Sender(n.tx.ctx, n.show(), m); err != nil {
		if n.tx.rec.err = err; !o.Late {
			n.refuseMail(reply.Of(err))
			return
		}
		n.tx.held = err
	}
	f := n.begun().Sender(n.tx.ctx, &n.tx.Transaction)
	n.remarks = f.Remarks
	if against(f) && !o.Late {
		n.tx.rec.blame(f)
		n.hangingUp(f.HangUp, func() { n.refuseMail(f.Reply) })
		return
	}
	n.state = sender
	n.say(saidMail)
}

func (n *session) newTransaction(m wire.Mail) *transaction {
	t := &transaction{start: n.srv.o.Now(), until: time.Now().Add(n.srv.o.Timeouts.Transaction)}
	t.ctx, t.end = context.WithDeadlineCause(n.srv.ctx, t.until, errSlow)
	t.Transaction = pipeline.Transaction{
		ID: n.id + "." + strconv.Itoa(n.count), Session: n.show(), Chain: n.srv.o.Chain,
		Envelope: envelope.Envelope{Sender: m.Sender, UTF8: m.UTF8, RequireTLS: m.RequireTLS, Ret: m.Ret, EnvID: m.EnvID},
	}
	return t
}

// refuseMail answers MAIL, and there is no transaction then.
func (n *session) refuseMail(r reply.Reply) {
	n.tx.rec.answer = r
	n.answer(r)
	n.finish()
}

// rcpt answers RCPT.
func (n *session) rcpt(args []byte) {
	t, o := n.tx, &n.srv.o
	path, ok := keyword(args, "TO:")
	if !ok {
		n.bad(badRcptSyntax)
		return
	}
	r, err := wire.ParseRcpt(string(path), n.offered, t.Envelope.UTF8)
	if err != nil {
		n.bad(reply.Of(err))
		return
	}
	t.rec.asked++
	if len(t.Envelope.Recipients) >= o.Limits.Recipients {
		n.refuseRcpt(r, tooManyRcpts, nil)
		return
	}
	if t.held != nil {
		n.refuseRcpt(r, reply.Of(t.held), t.held)
		return
	}
	out, lot, err := o.Relay.Recipient(t.ctx, n.show(), t.Envelope.Sender, r)
	switch {
	case err != nil:
		n.refuseRcpt(r, reply.Of(err), err)
		return
	case len(t.Envelope.Recipients) == 0:
		t.lot = lot
	case lot != t.lot:
		n.refuseRcpt(r, splitPlease, nil)
		return
	}
	f := n.begun().Recipient(t.ctx, &t.Transaction, out)
	n.remarks = f.Remarks
	if against(f) {
		t.rec.blame(f)
		n.hangingUp(f.HangUp, func() { n.refuseRcpt(r, f.Reply, nil) })
		return
	}
	t.Envelope.Recipients = append(t.Envelope.Recipients, out)
	n.state = rcpts
	n.say(saidRcpt)
}

// refuseRcpt answers RCPT; the transaction goes on.
func (n *session) refuseRcpt(r envelope.Recipient, no reply.Reply, err error) {
	n.tx.rec.refuse(r.Address, no, err)
	n.rec.refused++
	if no.Class == reply.Permanent {
		if n.unknown++; n.unknown > n.srv.o.Limits.Unknown {
			n.hangUp("too many refused recipients", tooManyBad)
			return
		}
	}
	n.answer(no)
}

// abort gives up the transaction, if there is one.
func (n *session) abort(by string) {
	if n.tx != nil {
		n.tx.rec.aborted = by
		n.finish()
	}
}

// finish ends the transaction.
func (n *session) finish() {
	n.logTransaction()
	n.tx.end()
	n.tx = nil
	if n.judge != nil {
		n.judge.Reset()
	}
	if n.state != fresh && n.state != refused {
		n.state = ready
	}
}

// keyword cuts "FROM:" or "TO:" off.
func keyword(args []byte, word string) (rest []byte, ok bool) {
	if len(args) < len(word) || !bytes.EqualFold(args[:len(word)], []byte(word)) {
		return nil, false
	}
	return args[len(word):], true
}

func isPostmaster(address string) bool { return strings.EqualFold(address, "postmaster") }
