package filtertest

import (
	"context"
	"fmt"
	"runtime/debug"
	"slices"
	"sync"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/message"
)

// spy is a filter that passes everything on to another and remembers what it
// answered.
type spy struct {
	pipeline.Filter
	mu       sync.Mutex
	answers  []answer
	problems []string
}

// answer is what the filter said at one stage.
type answer struct {
	stage   pipeline.Stage
	verdict pipeline.Verdict // without its bodies
	body    bool             // it carried one
	err     error
}

// Traits are the filter's own, its stages told.
func (s *spy) Traits() pipeline.Traits {
	t := pipeline.TraitsOf(s.Filter)
	t.Stages = pipeline.StagesOf(s.Filter)
	return t
}

// Open opens the filter.
func (s *spy) Open(ctx context.Context, session *pipeline.Session) (i pipeline.Instance, err error) {
	defer s.caught("Open")
	i, err = s.Filter.Open(ctx, session)
	if err != nil || i == nil {
		return nil, err
	}
	return &spyInstance{s, i}, nil
}

// caught notes a panic and lets it pass.
func (s *spy) caught(doing string) {
	if p := recover(); p != nil {
		s.problem("%s panics: %v\n%s", doing, p, debug.Stack())
		panic(p)
	}
}

func (s *spy) problem(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.problems = append(s.problems, fmt.Sprintf(format, args...))
}

// take is what was noted since the last time.
func (s *spy) take() (answers []answer, problems []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	answers, problems = s.answers, s.problems
	s.answers, s.problems = nil, nil
	return answers, problems
}

type spyInstance struct {
	s *spy
	pipeline.Instance
}

func (i *spyInstance) note(stage pipeline.Stage, v pipeline.Verdict, err error) (pipeline.Verdict, error) {
	a := answer{stage: stage, verdict: v, body: v.Body != nil, err: err}
	a.verdict.Body = nil
	a.verdict.Others = slices.Clone(v.Others)
	for k := range a.verdict.Others {
		a.body = a.body || a.verdict.Others[k].Body != nil
		a.verdict.Others[k].Body = nil
	}
	i.s.mu.Lock()
	defer i.s.mu.Unlock()
	i.s.answers = append(i.s.answers, a)
	return v, err
}

// judge finds the stage's interface in the instance and calls it.
func judge[T any](i *spyInstance, stage pipeline.Stage, call func(T) (pipeline.Verdict, error)) (pipeline.Verdict, error) {
	f, ok := i.Instance.(T)
	if !ok {
		i.s.problem("%T says that it judges at the %v stage, and does not", i.Instance, stage)
		return pipeline.Verdict{}, nil
	}
	defer i.s.caught(stage.String())
	v, err := call(f)
	return i.note(stage, v, err)
}

// Close closes the filter's instance.
func (i *spyInstance) Close() error {
	defer i.s.caught("Close")
	err := i.Instance.Close()
	if err != nil {
		i.s.problem("Close: %v", err)
	}
	return err
}

// Reset resets the filter's instance, if it wants it.
func (i *spyInstance) Reset() {
	defer i.s.caught("Reset")
	if r, ok := i.Instance.(pipeline.Resetter); ok {
		r.Reset()
	}
}

// Connect and the methods that follow are the stages.
func (i *spyInstance) Connect(ctx context.Context, s *pipeline.Session) (pipeline.Verdict, error) {
	return judge(i, pipeline.AtConnect, func(f pipeline.Connecter) (pipeline.Verdict, error) { return f.Connect(ctx, s) })
}

// Helo is the stage helo.
func (i *spyInstance) Helo(ctx context.Context, s *pipeline.Session) (pipeline.Verdict, error) {
	return judge(i, pipeline.AtHelo, func(f pipeline.Heloer) (pipeline.Verdict, error) { return f.Helo(ctx, s) })
}

// Sender is the stage sender.
func (i *spyInstance) Sender(ctx context.Context, tx *pipeline.Transaction) (pipeline.Verdict, error) {
	return judge(i, pipeline.AtSender, func(f pipeline.Senderer) (pipeline.Verdict, error) { return f.Sender(ctx, tx) })
}

// Recipient is the stage recipient.
func (i *spyInstance) Recipient(ctx context.Context, tx *pipeline.Transaction, r envelope.Recipient) (pipeline.Verdict, error) {
	return judge(i, pipeline.AtRecipient, func(f pipeline.Recipienter) (pipeline.Verdict, error) { return f.Recipient(ctx, tx, r) })
}

// Message is the stage message. What the filter is lent, it must leave alone.
func (i *spyInstance) Message(ctx context.Context, tx *pipeline.Transaction, m message.Message) (pipeline.Verdict, error) {
	active := slices.Clone(tx.Active)
	v, err := judge(i, pipeline.AtMessage, func(f pipeline.Messager) (pipeline.Verdict, error) { return f.Message(ctx, tx, m) })
	if !slices.Equal(active, tx.Active) {
		i.s.problem("the transaction's Active has been changed")
	}
	return v, err
}

// Deliver is the stage delivery.
func (i *spyInstance) Deliver(ctx context.Context, d *pipeline.Delivery, m message.Message) (pipeline.Verdict, error) {
	return judge(i, pipeline.AtDelivery, func(f pipeline.Deliverer) (pipeline.Verdict, error) { return f.Deliver(ctx, d, m) })
}
