package pipeline

import (
	"context"
	"time"

	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/reply"
)

// Judge takes one session through a chain. It is for one goroutine. Close must
// end it.
type Judge struct {
	chain   *Chain
	opened  []opened
	session Fate // decided at connect or helo
	sender  Fate // decided for the transaction
	rcpts   []Fate
	results []AuthResult
	symbols []Symbol
	trace   Trace
	// kept is how much of the trace, results and symbols belongs to the session.
	kept struct{ trace, results, symbols int }
	// idle is the time that filters in shadow took of the transaction's.
	idle time.Duration
}

// Fate is what was decided, by whom and why. The zero Fate is undecided, and
// in the end that means accepted.
type Fate struct {
	Action Action
	Reply  reply.Reply
	Filter string
	Reason string
	// HangUp is how the connection goes on behind the Reply.
	HangUp HangUp
	// Remarks come in front of it. They are told once, whatever the Action.
	Remarks []string
	// accepted is set where the message is held after a filter has accepted it.
	accepted bool
}

// open reports whether judging goes on, for a filter that always runs or not.
func (f *Fate) open(always bool) bool {
	return f.Action == Continue || f.Action == Accept && always
}

// stores reports whether a message with this action is stored.
func stores(a Action) bool { return a == Continue || a == Accept || a == Quarantine }

// Begin starts a session.
func (c *Chain) Begin() *Judge {
	return &Judge{chain: c, opened: make([]opened, len(c.steps))}
}

// Close ends the session. Calls that overran their time are left to end by
// themselves, and their instances are closed then.
func (j *Judge) Close() {
	j.closeAll()
	j.opened = nil
}

// Reset forgets the transaction, as RSET does, and keeps the session.
func (j *Judge) Reset() {
	j.forget()
	j.resetAll()
}

// forget cuts the session's findings off with their capacity: what was handed
// out must not be written over.
func (j *Judge) forget() {
	j.sender, j.rcpts, j.idle = Fate{}, nil, 0
	k := j.kept
	j.trace = append(Trace(nil), j.trace[:k.trace]...)
	j.results, j.symbols = j.results[:k.results:k.results], j.symbols[:k.symbols:k.symbols]
}

// Trace is what has happened so far.
func (j *Judge) Trace() Trace { return append(Trace(nil), j.trace...) }

// Connect judges the connection. The fate holds for the session.
func (j *Judge) Connect(ctx context.Context, s *Session) Fate {
	f := j.early(ctx, question{subject: subject{session: s, stage: AtConnect}}, j.session)
	j.session = f.told()
	j.keep()
	return f
}

// Helo judges the client's name. The fate holds for the session. It must not be
// called within a transaction: Reset first.
func (j *Judge) Helo(ctx context.Context, s *Session) Fate {
	f := j.early(ctx, question{subject: subject{session: s, stage: AtHelo}}, j.session)
	j.session = f.told()
	j.keep()
	return f
}

func (j *Judge) keep() {
	j.kept.trace, j.kept.results, j.kept.symbols = len(j.trace), len(j.results), len(j.symbols)
}

// Sender begins a transaction, and judges the envelope sender; the fate holds
// for the transaction.
func (j *Judge) Sender(ctx context.Context, tx *Transaction) Fate {
	j.forget()
	f := j.early(ctx, question{subject: subject{session: tx.Session, tx: tx, stage: AtSender}}, j.session)
	j.sender = f.told()
	return f
}

// Recipient judges one recipient, which the caller puts into the transaction's
// envelope if, and only if, the fate is not Reject or Defer: the Nth recipient
// so judged is the Nth of the envelope.
func (j *Judge) Recipient(ctx context.Context, tx *Transaction, r envelope.Recipient) Fate {
	f := j.judgeRecipient(ctx, tx, r)
	if f.Action != Reject && f.Action != Defer {
		j.rcpts = append(j.rcpts, f.told())
	}
	return f
}

func (j *Judge) judgeRecipient(ctx context.Context, tx *Transaction, r envelope.Recipient) Fate {
	q := question{subject: subject{session: tx.Session, tx: tx, rcpt: r.Address, stage: AtRecipient}, recipient: r}
	return j.early(ctx, q, j.before())
}

// before is what the stages before the recipients decided.
func (j *Judge) before() Fate {
	if j.sender.Action != Continue {
		return j.sender
	}
	return j.session
}

// question is what a filter is asked.
type question struct {
	subject
	recipient envelope.Recipient
	delivery  *Delivery
}

// early runs the steps of a stage that has one subject.
func (j *Judge) early(ctx context.Context, q question, fate Fate) Fate {
	var remarks []string
	enough := false // for this stage
	for _, i := range j.chain.at[q.stage] {
		step := &j.chain.steps[i]
		if !fate.open(step.Always) || enough && !step.Always {
			continue
		}
		j.consult(ctx, i, q, 1, func(v *Verdict, enforce bool) error {
			if enforce {
				if v.StageOnly {
					enough = true
				} else {
					fate = fate.after(step.Name, v)
				}
				remarks = append(remarks, v.Remarks...)
			}
			return nil
		})
	}
	fate.Remarks = remarks
	return fate
}

// told is the fate as it is remembered: what was said in front of one answer is
// not said in front of the next.
func (f Fate) told() Fate {
	f.Remarks = nil
	return f
}

// after is the fate once a verdict has come.
func (f Fate) after(filter string, v *Verdict) Fate {
	if v.Action == Continue || v.Action == Accept && f.Action == Accept {
		return f
	}
	return Fate{
		Action: v.Action, Reply: reply.For(v.Action, v.Reply), Filter: filter, Reason: v.Reason,
		HangUp: v.HangUp, accepted: v.Action == Quarantine && f.Action == Accept,
	}
}

// maxFindings bounds what the filters of a transaction may find, results and
// symbols each.
const maxFindings = 1000
