package pipeline

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"time"

	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/message"
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
}

// opened is a step's instance.
type opened struct {
	instance Instance
	err      error
	// stuck is set while a call that overran its time is still going on.
	stuck bool
}

// Fate is what was decided, by whom and why. The zero Fate is undecided, and
// in the end that means accepted.
type Fate struct {
	Action Action
	Reply  reply.Reply
	Filter string
	Reason string
}

// open reports whether judging goes on, for a filter that always runs or not.
func (f Fate) open(always bool) bool {
	return f.Action == Continue || f.Action == Accept && always
}

// Begin starts a session.
func (c *Chain) Begin() *Judge {
	return &Judge{chain: c, opened: make([]opened, len(c.steps))}
}

// Close ends the session. Calls that overran their time are left to end by
// themselves, and their instances are closed then.
func (j *Judge) Close() {
	for i := range j.opened {
		if o := &j.opened[i]; o.instance != nil && !o.stuck {
			o.instance.Close() //nolint:errcheck // nothing depends on it
		}
	}
	j.opened = nil
}

// Reset forgets the transaction, as RSET does, and keeps the session.
func (j *Judge) Reset() {
	j.sender, j.rcpts = Fate{}, nil
	j.trace, j.results, j.symbols = j.trace[:j.kept.trace], j.results[:j.kept.results], j.symbols[:j.kept.symbols]
	for i := range j.opened {
		if r, ok := j.opened[i].instance.(Resetter); ok && !j.opened[i].stuck {
			r.Reset()
		}
	}
}

// Trace is what has happened so far.
func (j *Judge) Trace() Trace { return append(Trace(nil), j.trace...) }

// Connect judges the connection. The fate holds for the session.
func (j *Judge) Connect(ctx context.Context, s *Session) Fate {
	j.session = j.early(ctx, &question{subject: subject{session: s, stage: AtConnect}}, j.session)
	j.keep()
	return j.session
}

// Helo judges the client's name. The fate holds for the session.
func (j *Judge) Helo(ctx context.Context, s *Session) Fate {
	j.session = j.early(ctx, &question{subject: subject{session: s, stage: AtHelo}}, j.session)
	j.keep()
	return j.session
}

func (j *Judge) keep() {
	j.kept.trace, j.kept.results, j.kept.symbols = len(j.trace), len(j.results), len(j.symbols)
}

// Sender judges the envelope sender; the fate holds for the transaction.
func (j *Judge) Sender(ctx context.Context, tx *Transaction) Fate {
	j.sender = j.early(ctx, &question{subject: subject{session: tx.Session, tx: tx, stage: AtSender}}, j.session)
	return j.sender
}

// Recipient judges one recipient, which the caller puts into the transaction's
// envelope if, and only if, the fate is not Reject or Defer: the Nth recipient
// so judged is the Nth of the envelope.
func (j *Judge) Recipient(ctx context.Context, tx *Transaction, r envelope.Recipient) Fate {
	f := j.judgeRecipient(ctx, tx, r)
	if f.Action != Reject && f.Action != Defer {
		j.rcpts = append(j.rcpts, f)
	}
	return f
}

func (j *Judge) judgeRecipient(ctx context.Context, tx *Transaction, r envelope.Recipient) Fate {
	q := &question{subject: subject{session: tx.Session, tx: tx, rcpt: r.Address, stage: AtRecipient}, recipient: r}
	return j.early(ctx, q, j.sender)
}

// question is what a filter is asked.
type question struct {
	subject
	recipient envelope.Recipient
	delivery  *Delivery
}

// early runs the steps of a stage that has one subject.
func (j *Judge) early(ctx context.Context, q *question, fate Fate) Fate {
	for _, i := range j.chain.at[q.stage] {
		step := &j.chain.steps[i]
		if !fate.open(step.Always) {
			continue
		}
		j.consult(ctx, i, q, 1, func(v *Verdict) error {
			fate = fate.after(step.Name, v)
			return nil
		})
	}
	return fate
}

// after is the fate once a verdict has come.
func (f Fate) after(filter string, v *Verdict) Fate {
	if v.Action == Continue || v.Action == Accept && f.Action == Accept {
		return f
	}
	return Fate{Action: v.Action, Reply: reply.For(v.Action, v.Reply), Filter: filter, Reason: v.Reason}
}

// consult asks one filter about count recipients: mode, standing and rule
// first, then the filter, then act, which applies what it said. An error, also
// one of act's, becomes what the step does on errors. Everything is traced.
func (j *Judge) consult(ctx context.Context, i int, q *question, count int, act func(*Verdict) error) {
	step := &j.chain.steps[i]
	e := Entry{Filter: step.Name, Stage: q.stage.String(), Recipients: count}
	mode := step.Mode
	if o, ok := j.chain.o.Modes.Get(step.Name); ok {
		mode = o.Mode
	}
	e.Shadow = mode == Shadow
	if q.tx != nil {
		q.tx = j.own(q.tx)
	}
	skipped, err := skip(step, q, mode)
	if skipped != "" {
		e.Skipped = skipped
		j.trace = j.trace.add(e)
		return
	}
	var v Verdict
	start := j.chain.o.Now()
	if err == nil {
		v, err = j.ask(ctx, i, q)
	}
	e.Took = j.chain.o.Now().Sub(start)
	if err == nil {
		err = v.check(q.stage)
	}
	e.say(&v)
	if err == nil && mode == Enforce {
		err = act(&v)
	}
	if err != nil {
		v.release()
		v = Verdict{}
		if step.OnError == ErrorDefers {
			v = Verdict{Action: Defer, Reply: reply.Trouble, Reason: "filter failed"}
		}
		if mode == Enforce {
			act(&v) //nolint:errcheck // a bare verdict has nothing that could fail
		}
		e.Edits, e.Err = nil, err.Error()
		e.say(&v)
	}
	j.trace = j.trace.add(e)
	if mode == Enforce {
		j.results = append(j.results, v.Results...)
		j.symbols = append(j.symbols, v.Symbols...)
	} else {
		v.release()
	}
}

// skip is why a filter does not run, "" if it does. A rule that fails is the
// filter's failure.
func skip(step *Step, q *question, mode Mode) (string, error) {
	if mode == Off {
		return "off", nil
	}
	if TraitsOf(step.Filter).Strangers && q.session.Standing != Stranger {
		return "not for our own", nil
	}
	match, err := step.When.Match(q.fact)
	if err != nil {
		return "", fmt.Errorf("rule %q: %w", step.When, err)
	}
	if !match {
		return "when", nil
	}
	return "", nil
}

// say fills in what the verdict was.
func (e *Entry) say(v *Verdict) {
	e.Action, e.Reason, e.Reply = v.Action.String(), v.Reason, ""
	if v.Action != Continue && v.Action != Accept {
		e.Reply = reply.For(v.Action, v.Reply).SMTP()
	}
	for _, edit := range v.Edits {
		if len(e.Edits) == 20 {
			e.Edits = append(e.Edits, fmt.Sprintf("and %d more", len(v.Edits)-20))
			break
		}
		e.Edits = append(e.Edits, edit.String())
	}
	if v.Body != nil {
		e.Edits = append(e.Edits, "new body")
	}
	for i := range v.Others {
		e.Reason += fmt.Sprintf("; %v for %d others: %s", v.Others[i].Action, len(v.Others[i].Only), v.Others[i].Reason)
		if len(e.Reason) > maxReason {
			break
		}
	}
}

var (
	errStuck   = errors.New("an earlier call of this filter has not ended")
	errTimeout = errors.New("filter did not answer in time")
)

// ask opens the instance if need be and calls it.
func (j *Judge) ask(ctx context.Context, i int, q *question) (Verdict, error) {
	step, o := &j.chain.steps[i], &j.opened[i]
	if o.stuck {
		return Verdict{}, errStuck
	}
	if o.instance == nil && o.err == nil {
		o.instance, o.err = open(ctx, step, q.session)
	}
	if o.err != nil {
		return Verdict{}, fmt.Errorf("opening: %w", o.err)
	}
	asked := *q // the next consultation changes q, and this call may still be going on
	call := calls[q.stage](o.instance, &asked)
	if call == nil {
		return Verdict{}, fmt.Errorf("the filter has no %v stage, though it says so", q.stage)
	}
	return run(ctx, step.Timeout, o, q.message.Body(), call)
}

func open(ctx context.Context, step *Step, s *Session) (i Instance, err error) {
	defer func() {
		if p := recover(); p != nil {
			i, err = nil, panicked(p)
		}
	}()
	i, err = step.Filter.Open(ctx, s)
	if err == nil && i == nil {
		err = errors.New("filter opened nothing")
	}
	return i, err
}

func panicked(p any) error { return fmt.Errorf("panic: %v\n%s", p, debug.Stack()) }

// calls is the table from stage to the call; each gives nil if the instance
// lacks the interface.
var calls = [Stages]func(Instance, *question) func(context.Context) (Verdict, error){
	AtConnect: func(i Instance, q *question) func(context.Context) (Verdict, error) {
		if f, ok := i.(Connecter); ok {
			return func(ctx context.Context) (Verdict, error) { return f.Connect(ctx, q.session) }
		}
		return nil
	},
	AtHelo: func(i Instance, q *question) func(context.Context) (Verdict, error) {
		if f, ok := i.(Heloer); ok {
			return func(ctx context.Context) (Verdict, error) { return f.Helo(ctx, q.session) }
		}
		return nil
	},
	AtSender: func(i Instance, q *question) func(context.Context) (Verdict, error) {
		if f, ok := i.(Senderer); ok {
			return func(ctx context.Context) (Verdict, error) { return f.Sender(ctx, q.tx) }
		}
		return nil
	},
	AtRecipient: func(i Instance, q *question) func(context.Context) (Verdict, error) {
		if f, ok := i.(Recipienter); ok {
			return func(ctx context.Context) (Verdict, error) { return f.Recipient(ctx, q.tx, q.recipient) }
		}
		return nil
	},
	AtMessage: func(i Instance, q *question) func(context.Context) (Verdict, error) {
		if f, ok := i.(Messager); ok {
			return func(ctx context.Context) (Verdict, error) { return f.Message(ctx, q.tx, q.message) }
		}
		return nil
	},
	AtDelivery: func(i Instance, q *question) func(context.Context) (Verdict, error) {
		if f, ok := i.(Deliverer); ok {
			return func(ctx context.Context) (Verdict, error) { return f.Deliver(ctx, q.delivery, q.message) }
		}
		return nil
	},
}

// own is a copy of tx with the findings so far. A filter gets one of its own:
// if it overruns its time, it may go on reading it.
func (j *Judge) own(tx *Transaction) *Transaction {
	own := *tx
	own.Chain = j.chain.name
	own.Results = j.results[:len(j.results):len(j.results)]
	own.Symbols = j.symbols[:len(j.symbols):len(j.symbols)]
	return &own
}

// run calls a filter within its time. A call that does not end is abandoned:
// it keeps its hold on the body, and when it ends, what it brought is dropped
// and its instance closed.
func run(ctx context.Context, timeout time.Duration, o *opened, body *message.Body, call func(context.Context) (Verdict, error)) (Verdict, error) {
	type answer struct {
		v   Verdict
		err error
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	done := make(chan answer, 1)
	body.Retain()
	go func() {
		var a answer
		defer func() {
			if p := recover(); p != nil {
				a.v.release()
				a = answer{err: panicked(p)}
			}
			body.Release() //nolint:errcheck // the spool sweeps what is left behind
			done <- a
		}()
		a.v, a.err = call(ctx)
	}()
	select {
	case a := <-done:
		return a.v, a.err
	case <-ctx.Done():
	}
	// A filter that heeds the context is given a moment, so that it need not be
	// abandoned.
	select {
	case a := <-done:
		if a.err == nil {
			a.v.release()
			a.err = errTimeout
		}
		return Verdict{}, a.err
	case <-time.After(grace):
	}
	o.stuck = true
	instance := o.instance
	go func() {
		a := <-done
		a.v.release()
		instance.Close() //nolint:errcheck // nothing depends on it
	}()
	return Verdict{}, errTimeout
}

// grace is how long a filter may take to notice that its time is over.
const grace = 50 * time.Millisecond
