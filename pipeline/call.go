package pipeline

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"time"

	"github.com/postern-mta/postern/pipeline/reply"
)

const (
	// grace is how long a filter may take to notice that its time is over.
	grace = 50 * time.Millisecond
	// tidyTime is how long the instances of a session may take to close or reset.
	tidyTime = 5 * time.Second
	// maxOverrun is how many calls of a filter that overran their time may still
	// go on before it is asked no more: each holds a goroutine and a body.
	maxOverrun = 64
)

var (
	errStuck    = errors.New("an earlier call of this filter has not ended")
	errOverrun  = fmt.Errorf("%d calls of this filter have not ended", maxOverrun)
	errNothing  = errors.New("filter opened nothing")
	errNoStage  = errors.New("the filter has no such stage, though it says so")
	errNoReturn = errors.New("the filter ended its goroutine")
	errShadow   = errors.New("filters in shadow have used up their part of the chain's deadline")
)

// opened is a step's instance.
type opened struct {
	instance Instance
	err      error // of Open, for the rest of the transaction
	// stuck is set after a call that overran its time: the instance is that
	// call's, for good.
	stuck bool
}

// call is one call of a filter. It may go on when the chain has given it up; so
// it shares nothing that changes.
type call struct {
	question
	ctx      context.Context // of the call, bounded by its time
	mine     Transaction     // what question.tx points to
	exit     Delivery        // what question.delivery points to
	chain    *Chain
	step     *step
	instance Instance // nil: to be opened
	verdict  Verdict
	openErr  error
	err      error
}

// own gives the call a transaction and a delivery of its own, with the findings
// so far.
func (c *call) own(j *Judge) {
	if c.tx != nil {
		c.mine = *c.tx
		c.mine.Chain = j.chain.name
		c.mine.Results = j.results[:len(j.results):len(j.results)]
		c.mine.Symbols = j.symbols[:len(j.symbols):len(j.symbols)]
		c.tx = &c.mine
	}
	if c.delivery != nil {
		c.exit = *c.delivery
		c.delivery = &c.exit
	}
}

// ask calls the filter within its time, and opens the instance first if need
// be. A call that does not end is abandoned: it keeps its hold on the body, and
// when it ends, what it brought is dropped and its instance closed.
func (j *Judge) ask(ctx context.Context, i int, c *call, shadow bool) (Verdict, error) {
	o, timeout := &j.opened[i], c.step.Timeout
	switch {
	case o.stuck:
		return Verdict{}, errStuck
	case o.err != nil:
		return Verdict{}, o.err
	case ctx.Err() != nil:
		return Verdict{}, abandoned(ctx)
	case c.step.overrun.Load() >= maxOverrun:
		return Verdict{}, errOverrun
	}
	if shadow {
		// What only watches must not use up the time of those that protect.
		left := j.chain.o.Deadline/2 - j.idle
		if left <= 0 {
			return Verdict{}, errShadow
		}
		timeout = min(timeout, left)
		start := time.Now()
		defer func() { j.idle += time.Since(start) }()
	}
	c.instance = o.instance
	limited, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	c.ctx = limited
	c.message.Body().Retain()
	if !j.chain.crew.within(c, limited.Done(), nil) {
		o.stuck = true
		c.step.overrun.Add(1)
		c.log(slog.LevelWarn, "filter overran its time", slog.Duration("timeout", timeout))
		return Verdict{}, c.tooLate(ctx, timeout, nil)
	}
	o.instance, o.err = c.instance, c.openErr
	if limited.Err() != nil { // an answer that came too late never counts
		c.verdict.release()
		return Verdict{}, c.tooLate(ctx, timeout, c.err)
	}
	return c.verdict, c.err
}

func abandoned(ctx context.Context) error { return fmt.Errorf("given up: %w", context.Cause(ctx)) }

func (c *call) tooLate(ctx context.Context, timeout time.Duration, err error) error {
	switch {
	case ctx.Err() != nil:
		return abandoned(ctx)
	case err != nil:
		return fmt.Errorf("no answer within %v: %w", timeout, err)
	}
	return fmt.Errorf("no answer within %v", timeout)
}

// do is the call itself.
func (c *call) do() {
	returned := false
	defer func() {
		if p := recover(); p != nil {
			c.err = c.chain.panicked(c.step.Name, c.stage.String(), p)
		} else if !returned {
			c.err = errNoReturn
		}
		if c.instance == nil {
			c.openErr = c.err
		}
		c.message.Body().Release() //nolint:errcheck // the spool sweeps what is left behind
	}()
	if c.instance == nil {
		if c.instance, c.err = c.step.Filter.Open(c.ctx, c.session); c.err == nil && c.instance == nil {
			c.err = errNothing
		}
		if c.err != nil {
			c.instance, c.err, returned = nil, fmt.Errorf("opening: %w", c.err), true
			return
		}
	}
	c.verdict, c.err = calls[c.stage](c.ctx, c.instance, &c.question)
	returned = true
}

// late is the end of a call that was given up.
func (c *call) late() {
	c.verdict.release()
	if c.instance != nil {
		c.chain.closeInstance(c.step.Name, c.instance)
	}
	c.step.overrun.Add(-1)
	c.log(slog.LevelInfo, "a call that overran its time has ended")
}

func (c *call) log(level slog.Level, message string, more ...slog.Attr) {
	attrs := append([]slog.Attr{slog.String("filter", c.step.Name), slog.String("stage", c.stage.String())}, more...)
	if c.tx != nil {
		attrs = append(attrs, slog.String("id", c.tx.ID))
	}
	c.chain.o.Log.LogAttrs(context.Background(), level, message, attrs...)
}

// calls is the table from stage to the call.
var calls = [Stages]func(context.Context, Instance, *question) (Verdict, error){
	AtConnect: func(ctx context.Context, i Instance, q *question) (Verdict, error) {
		if f, ok := i.(Connecter); ok {
			return f.Connect(ctx, q.session)
		}
		return Verdict{}, errNoStage
	},
	AtHelo: func(ctx context.Context, i Instance, q *question) (Verdict, error) {
		if f, ok := i.(Heloer); ok {
			return f.Helo(ctx, q.session)
		}
		return Verdict{}, errNoStage
	},
	AtSender: func(ctx context.Context, i Instance, q *question) (Verdict, error) {
		if f, ok := i.(Senderer); ok {
			return f.Sender(ctx, q.tx)
		}
		return Verdict{}, errNoStage
	},
	AtRecipient: func(ctx context.Context, i Instance, q *question) (Verdict, error) {
		if f, ok := i.(Recipienter); ok {
			return f.Recipient(ctx, q.tx, q.recipient)
		}
		return Verdict{}, errNoStage
	},
	AtMessage: func(ctx context.Context, i Instance, q *question) (Verdict, error) {
		if f, ok := i.(Messager); ok {
			return f.Message(ctx, q.tx, q.message)
		}
		return Verdict{}, errNoStage
	},
	AtDelivery: func(ctx context.Context, i Instance, q *question) (Verdict, error) {
		if f, ok := i.(Deliverer); ok {
			return f.Deliver(ctx, q.delivery, q.message)
		}
		return Verdict{}, errNoStage
	},
}

// panicked makes an error of a panic: one line for the trace, the stack for the
// log.
func (c *Chain) panicked(filter, doing string, p any) error {
	what := reply.Clean(fmt.Sprint(p), maxReason)
	c.o.Log.Error("filter panicked", "filter", filter, "stage", doing, "panic", what, "stack", string(debug.Stack()))
	return fmt.Errorf("panic: %s", what)
}

// closeInstance closes an instance, from which nobody wants to hear any more.
func (c *Chain) closeInstance(filter string, i Instance) {
	c.tidy(filter, "close", i.Close)
}

func (c *Chain) tidy(filter, doing string, f func() error) {
	defer func() {
		if p := recover(); p != nil {
			c.panicked(filter, doing, p) //nolint:errcheck // it is in the log now
		}
	}()
	if err := f(); err != nil {
		c.o.Log.Warn("filter failed to "+doing, "filter", filter, "err", err)
	}
}
