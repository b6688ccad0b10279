package handoff

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/ingress/handoff/wire"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
)

// MaxHops is how many passing systems a message may name before it is a loop
// (qmail-smtpd.c).
const MaxHops = 100

// work takes the message in, has it judged and hands it on. The answer is for
// the shim, the error for the log.
func (n *session) work() (reply.Reply, error) {
	o := &n.srv.o
	a := wire.Accepted{Beat: milliseconds(4 * o.Beat), Slow: milliseconds(o.Slow)}
	if err := n.send(a.Append(nil)); err != nil {
		n.cancel(errGone)
		return reply.Trouble, err
	}
	n.helpers.Add(2)
	go n.listen()
	go n.beat()

	session, network := o.sessionOf(n.rec.id, n.rec.start, n.call)
	n.rec.session = session
	tx := &pipeline.Transaction{ID: n.rec.id, Session: session, Chain: o.Local}
	if network {
		tx.Chain = o.Inbound
	}
	n.rec.tx = tx
	until := time.Now().Add(o.Limits.Total)
	n.rec.stage = stageMessage
	m, err := n.readMessage(until)
	if err != nil {
		return reply.Of(err), err
	}
	defer m.Body().Release() //nolint:errcheck // the spool sweeps what is left behind
	n.rec.size, n.rec.messageID = m.Size(), m.Head().Get("Message-ID")
	n.rec.stage = stageEnvelope
	if tx.Envelope, err = n.readEnvelope(until); err != nil {
		return reply.Of(err), err
	}
	n.rec.received = o.Now().Sub(n.rec.start)
	if err = n.send(wire.Envelope{}.Append(nil)); err != nil {
		n.cancel(errGone)
		return reply.Trouble, err
	}
	// A shim that gave us up has hung up before it emptied the caller's pipes:
	// what was read may then have a hole.
	if hungUp(n.raw) {
		n.cancel(errGone)
		return reply.Trouble, errGone
	}
	ctx, cancel := context.WithTimeoutCause(n.ctx, o.Slow, errSlow)
	defer cancel()
	n.rec.stage = stageChain
	return n.judge(ctx, tx, m)
}

// judge runs the chain and does what it says.
func (n *session) judge(ctx context.Context, tx *pipeline.Transaction, m message.Message) (reply.Reply, error) {
	m, err := n.takeMark(m)
	if err == nil && n.srv.o.Next == "" {
		m, err = n.own(m)
	}
	if err != nil {
		return reply.Of(err), err
	}
	generation := n.srv.o.Chains.Acquire()
	if generation == nil {
		return n.misconfigured(errors.New("no configuration is in force"))
	}
	defer generation.Release() //nolint:errcheck // what is closed late is no business of this message
	chain := generation.Chain(tx.Chain)
	if chain == nil {
		return n.misconfigured(fmt.Errorf("the configuration has no chain %q", tx.Chain))
	}
	out := chain.Run(ctx, tx, m)
	defer out.Release()
	n.rec.trace = out.Trace
	if ctx.Err() != nil {
		return reply.Trouble, context.Cause(ctx)
	}
	if out.Reply.Class != reply.Success {
		return out.Reply, nil
	}
	all := out.Outgoing
	if len(out.Refused) > 0 {
		reports, err := n.report(ctx, tx, out.Refused, m)
		defer release(reports)
		if err != nil {
			n.srv.fail(tx.ID, "a message is deferred because no report about its refused recipients could be made", err)
			return reply.Trouble, err
		}
		all = append(all[:len(all):len(all)], reports...)
	}
	if len(all) == 0 {
		return out.Reply, nil
	}
	n.rec.stage = stageCommit
	if n.srv.o.Next == "" {
		return n.submit(ctx, all)
	}
	if all, err = n.marked(all); err != nil {
		n.srv.fail(n.rec.id, "a message is deferred because it cannot be marked", err)
		return reply.Of(err), err
	}
	return n.handOn(ctx, all)
}

func (n *session) misconfigured(err error) (reply.Reply, error) {
	n.srv.fail(n.rec.id, "a message is deferred", err)
	return reply.BadConfig, err
}

// own does to a message what qmail-queue does to one that it queues.
func (n *session) own(m message.Message) (message.Message, error) {
	if hops := m.Head().Hops(); hops >= MaxHops {
		return m, reply.With(reply.Loop, fmt.Errorf("%d hops", hops))
	}
	if !n.srv.o.Received {
		return m, nil
	}
	h, err := m.Head().Edit(message.FieldEdit{Op: message.Add, Name: "Received", Value: n.srv.o.received(n.call.pid, n.call.uid)})
	if err != nil {
		return m, reply.With(reply.Internal, err)
	}
	return m.WithHead(h), nil
}

// received is the value of qmail-queue's Received line (qmail-queue.c:
// receivedfmt, date822fmt.c).
func (o *Options) received(pid, uid int) string {
	by := fmt.Sprintf("by uid %d", uid)
	if i := o.Invokers; i != nil {
		switch uid {
		case i.Alias:
			by = "by alias"
		case i.Network:
			by = "from network"
		case i.Bounce:
			by = "for bounce"
		}
	}
	return fmt.Sprintf("(qmail %d invoked %s); %s", pid, by, o.Now().UTC().Format("2 Jan 2006 15:04:05 -0000"))
}

// report makes the reports that are due.
func (n *session) report(ctx context.Context, tx *pipeline.Transaction, refused []pipeline.Refusal, m message.Message) ([]pipeline.Outgoing, error) {
	if n.srv.o.Report == nil {
		return nil, fmt.Errorf("%d recipients were refused, and this entrance makes no reports; set mixed = \"reject\" for its chain", len(refused))
	}
	all, err := n.srv.o.Report(ctx, tx, refused, m)
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

// submit gives the messages to the sink. Until it commits, the shim's going
// away ends ctx.
func (n *session) submit(ctx context.Context, all []pipeline.Outgoing) (reply.Reply, error) {
	if hungUp(n.raw) {
		n.cancel(errGone)
		return reply.Trouble, errGone
	}
	r, err := n.srv.o.Sink.Submit(ctx, all)
	if err != nil {
		if ctx.Err() == nil {
			n.srv.fail(n.rec.id, "a message could not be stored and is deferred", err)
		}
		return reply.Of(err), err
	}
	if n.rec.taken = r.Class == reply.Success; n.rec.taken {
		n.rec.stored = len(all)
	}
	return r, nil
}
