package smtp

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
)

var (
	errGone = errors.New("the client went away before the commit")
	errSlow = errors.New("chain and commit took too long")
)

// deliver answers a message that was read to its end, err being what came of
// that, and ends the transaction.
func (n *session) deliver(m message.Message, err error) {
	t := n.tx
	if n.state == chunks {
		n.state = rcpts
	}
	switch {
	case err == nil:
		defer m.Body().Release() //nolint:errcheck // the spool sweeps what is left behind
		t.rec.size, t.rec.messageID = m.Size(), m.Head().Get("Message-ID")
		n.transcribe("C: ", []byte("(message, "+strconv.FormatInt(m.Size(), 10)+" bytes)"))
	case n.broken != nil || n.ended != "":
		t.rec.err = err
		n.cutOff()
		return
	default:
		n.transcribe("C: ", []byte("(message, refused)"))
	}
	var each []reply.Reply
	r, end := reply.Of(err), pipeline.StayOn
	if err == nil {
		t.rec.received = n.srv.o.Now().Sub(t.start)
		r, each, end, err = n.decide(m)
	}
	t.rec.answer, t.rec.err = r, err
	if errors.Is(err, errGone) {
		t.rec.aborted = "connection"
		n.end("gone")
	}
	n.rec.messages++
	if r.Class == reply.Success {
		n.rec.taken++
		n.idle = 0
	}
	n.hangingUp(end, func() { n.tell(r, each) })
	n.finish()
}

// cutOff ends a transaction whose message did not come to its end.
func (n *session) cutOff() {
	if n.broken != nil {
		n.lost(n.broken)
	}
	n.abort("connection")
}

// tell answers the message: once, or in LMTP once for each recipient.
func (n *session) tell(r reply.Reply, each []reply.Reply) {
	if n.srv.o.Service != LMTP {
		n.answer(r)
		return
	}
	for i := range n.tx.Envelope.Recipients {
		if each != nil {
			r = each[i]
		}
		n.answer(r)
	}
}

// decide has the message judged and stored. Each are the recipients' own
// answers, nil if there is one for all.
func (n *session) decide(m message.Message) (r reply.Reply, each []reply.Reply, end pipeline.HangUp, err error) {
	o := &n.srv.o
	ctx, cancel := context.WithTimeoutCause(n.tx.ctx, o.Timeouts.Judge, errSlow)
	defer cancel()
	if m, err = n.prepare(ctx, m); err != nil {
		return reply.Of(err), nil, end, err
	}
	if n.chain.JudgesAt(pipeline.AtMessage) {
		n.flush() //nolint:errcheck // the session ends by itself then
	}
	t := n.tx
	out := n.begun().Message(ctx, &t.Transaction, m)
	defer out.Release()
	t.rec.trace = out.Trace
	if n.srv.o.Service != LMTP { // there the answers are the recipients' own
		n.remarks = out.Remarks
	}
	if ctx.Err() != nil {
		return tooSlow, nil, end, context.Cause(ctx)
	}
	if out.Reply.Class != reply.Success {
		return out.Reply, n.each(out, reply.OK), out.HangUp, nil
	}
	all := out.Outgoing
	if len(out.Refused) > 0 {
		reports, err := n.report(ctx, out.Refused, m)
		defer release(reports)
		if err != nil {
			o.Log.Error("a message is deferred because no report about its refused recipients could be made", "id", t.ID, "error", err)
			return reply.Trouble, nil, end, err
		}
		all = append(all[:len(all):len(all)], reports...)
	}
	if len(all) == 0 {
		return out.Reply, n.each(out, out.Reply), end, nil
	}
	if n.hungUp() {
		return reply.Trouble, nil, end, errGone
	}
	r, err = o.Sink.Submit(ctx, all)
	if err != nil {
		if n.srv.ctx.Err() == nil {
			o.Log.Error("a message could not be stored and is deferred", "id", t.ID, "error", err)
		}
		r = reply.Of(err)
	} else {
		t.rec.stored = len(all)
	}
	return r, n.each(out, r), end, err
}

// each are the answers of the recipients where the protocol gives them, stored
// being that of those for whom the message was to be stored.
func (n *session) each(out *pipeline.Outcome, stored reply.Reply) []reply.Reply {
	if n.srv.o.Service != LMTP {
		return nil
	}
	each := make([]reply.Reply, len(out.Fates))
	for i := range out.Fates {
		if each[i] = out.Fates[i].Reply; each[i].Class == reply.Success {
			each[i] = stored
		}
	}
	return each
}

// prepare does to a message what a server does before anybody looks at it.
func (n *session) prepare(ctx context.Context, m message.Message) (message.Message, error) {
	o, t := &n.srv.o, n.tx
	if hops := m.Head().Hops(); hops >= MaxHops {
		return m, reply.With(reply.Loop, fmt.Errorf("%d hops", hops))
	}
	if o.Mend != nil {
		mended, err := o.Mend(ctx, n.show(), &t.Envelope, m)
		if err != nil {
			return m, err
		}
		m = mended
	}
	h, err := m.Head().Edit(message.FieldEdit{Op: message.Add, Name: "Received", Value: n.received()})
	if err != nil {
		return m, reply.With(reply.Internal, err)
	}
	return m.WithHead(h), nil
}

// report makes the reports that are due.
func (n *session) report(ctx context.Context, refused []pipeline.Refusal, m message.Message) ([]pipeline.Outgoing, error) {
	if n.srv.o.Report == nil {
		return nil, fmt.Errorf("%d recipients were refused, and this entrance makes no reports; set mixed = \"reject\" for its chain", len(refused))
	}
	all, err := n.srv.o.Report(ctx, &n.tx.Transaction, refused, m)
	if err == nil && len(all) == 0 {
		err = errors.New("no report came")
	}
	return all, err
}

func release(all []pipeline.Outgoing) {
	for _, o := range all {
		o.Message.Body().Release() //nolint:errcheck // the spool sweeps what is left behind
	}
}
