package pipeline

import (
	"context"
	"fmt"

	"github.com/postern-mta/postern/pipeline/reply"
)

// act does what a verdict says, all of it or on an error none, or without
// enforce only finds out whether it could. A verdict that is bare, for all, and
// legal at every stage cannot fail. It takes over the verdict's bodies only if
// it sets them to nil.
type act func(v *Verdict, enforce bool) error

// consult asks one filter about count recipients: mode, standing and rule
// first, then the filter, then act. An error, also one of act's, becomes what
// the step does on errors. Everything is traced.
func (j *Judge) consult(ctx context.Context, i int, q question, count int, act act) {
	s := &j.chain.steps[i]
	mode := s.Mode
	if o, ok := j.chain.o.Modes.Get(s.Name); ok {
		mode = o.Mode
	}
	e := Entry{Filter: s.Name, Stage: q.stage.String(), Recipients: count, Shadow: mode == Shadow}
	c := &call{chain: j.chain, step: s, question: q}
	c.own(j)
	skipped, err := skip(s, &c.question, mode)
	if skipped != "" {
		e.Skipped = skipped
		j.trace = j.trace.add(e)
		return
	}
	var v Verdict
	if err == nil {
		start := j.chain.o.Now()
		v, err = j.ask(ctx, i, c, mode == Shadow)
		e.Took = j.chain.o.Now().Sub(start)
	}
	if err == nil {
		err = v.check(q.stage)
	}
	if err == nil {
		e.say(&v)
		err = act(&v, mode != Shadow)
	}
	if err != nil {
		v.release()
		v = s.failed()
		if mode != Shadow {
			act(&v, true) //nolint:errcheck // see act
		}
		e.say(&v)
		e.Err = err.Error()
	}
	if mode != Shadow {
		j.find(&v)
	}
	v.release()
	j.trace = j.trace.add(e)
}

// failed is the verdict of a filter that gave none.
func (s *step) failed() Verdict {
	if s.OnError == ErrorContinues {
		return Verdict{}
	}
	return Verdict{Action: Defer, Reply: reply.Trouble, Reason: "filter failed"}
}

// find keeps what a filter found.
func (j *Judge) find(v *Verdict) {
	j.results = append(j.results, v.Results[:min(len(v.Results), maxFindings-len(j.results))]...)
	j.symbols = append(j.symbols, v.Symbols[:min(len(v.Symbols), maxFindings-len(j.symbols))]...)
	for i := range v.Others {
		j.find(&v.Others[i])
	}
}

// skip is why a filter does not run, "" if it does. A rule that fails is the
// filter's failure.
func skip(s *step, q *question, mode Mode) (string, error) {
	if mode == Off {
		return "off", nil
	}
	if s.strangers && q.session.Standing != Stranger {
		return "not for our own", nil
	}
	if s.unconditional {
		return "", nil
	}
	match, err := s.When.Match(q.fact)
	if err != nil {
		return "", fmt.Errorf("option \"when\": %w", err)
	}
	if !match {
		return "when", nil
	}
	return "", nil
}
