package host

import (
	"context"
	"fmt"
	"sync"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/plugins/wire"
)

// filter is one filter of a plugin. It has the version of the plugin that was in
// force when it was made, for as long as it is not closed.
type filter struct {
	v         *version
	spool     message.Spooler
	configure *wire.ConfigureRequest
	accepted  bool
	closed    sync.Once
}

// newFilter makes a filter from its table of the configuration, if the plugin
// finds nothing wrong with it.
func newFilter(v *version, e pipeline.Env, decode pipeline.Decode) (pipeline.Filter, error) {
	table := v.declared.table()
	if err := decode(table.Interface()); err != nil {
		return nil, err
	}
	options, err := v.declared.encode(table)
	if err != nil {
		return nil, err
	}
	if !v.hold() {
		return nil, errStopped
	}
	name := e.Name
	if name == "" {
		name = v.settings.Name
	}
	f := &filter{v: v, spool: e.Spool, configure: &wire.ConfigureRequest{
		Filter: text(name), Handle: v.host.handles.Add(1), OptionsJson: options, Host: text(e.Host), StateDir: v.place.state,
	}}
	if err := v.accept(f.configure); err != nil {
		f.Close() //nolint:errcheck // it has nothing to say
		return nil, err
	}
	f.accepted = true
	return f, nil
}

// Traits implements pipeline.Traited.
func (f *filter) Traits() pipeline.Traits { return f.v.declared.traits() }

// Open implements pipeline.Filter.
func (f *filter) Open(context.Context, *pipeline.Session) (pipeline.Instance, error) {
	return &instance{filter: f}, nil
}

// Close has the plugin forget the filter, in the background, and gives the
// plugin up.
func (f *filter) Close() error {
	f.closed.Do(func() {
		if f.accepted {
			f.v.drop(f.configure)
		}
		f.v.host.ending.Add(1)
		go func() {
			defer f.v.host.ending.Done()
			f.v.forget(f.configure.GetHandle())
			f.v.release()
		}()
	})
	return nil
}

// instance is a filter in one session.
type instance struct {
	filter  *filter
	session *wire.Session
	of      *pipeline.Session
}

// Close implements pipeline.Instance.
func (i *instance) Close() error { return nil }

// about is the session as the plugin is told of it, made anew when it has
// changed.
func (i *instance) about(s *pipeline.Session) *wire.Session {
	if i.of != s {
		i.session, i.of = sessionOf(s), s
	}
	return i.session
}

// Connect implements pipeline.Connecter.
func (i *instance) Connect(ctx context.Context, s *pipeline.Session) (pipeline.Verdict, error) {
	return i.early(ctx, pipeline.AtConnect, &wire.JudgeRequest{Session: i.about(s)})
}

// Helo implements pipeline.Heloer.
func (i *instance) Helo(ctx context.Context, s *pipeline.Session) (pipeline.Verdict, error) {
	return i.early(ctx, pipeline.AtHelo, &wire.JudgeRequest{Session: i.about(s)})
}

// Sender implements pipeline.Senderer.
func (i *instance) Sender(ctx context.Context, tx *pipeline.Transaction) (pipeline.Verdict, error) {
	q := &wire.JudgeRequest{Session: i.about(tx.Session), Transaction: transactionOf(tx, false)}
	q.Transaction.Sender = []byte(tx.Envelope.Sender)
	return i.early(ctx, pipeline.AtSender, q)
}

// maxBefore is how many of the recipients that there are already a plugin is told
// of when it is asked about one more.
const maxBefore = 1000

// Recipient implements pipeline.Recipienter.
func (i *instance) Recipient(ctx context.Context, tx *pipeline.Transaction, r envelope.Recipient) (pipeline.Verdict, error) {
	q := &wire.JudgeRequest{Session: i.about(tx.Session), Transaction: transactionOf(tx, false), Recipient: []byte(r.Address)}
	before := tx.Envelope
	before.Recipients = before.Recipients[:min(len(before.Recipients), maxBefore)]
	setEnvelope(q.Transaction, &before)
	return i.early(ctx, pipeline.AtRecipient, q)
}

// early asks at a stage that has no message.
func (i *instance) early(ctx context.Context, stage pipeline.Stage, q *wire.JudgeRequest) (pipeline.Verdict, error) {
	return i.filter.ask(ctx, q, &question{stage: stage, may: i.filter.v.declared})
}

// Message implements pipeline.Messager.
func (i *instance) Message(ctx context.Context, tx *pipeline.Transaction, m message.Message) (pipeline.Verdict, error) {
	needs := i.filter.v.declared.needs
	q := &wire.JudgeRequest{Session: i.about(tx.Session), Transaction: transactionOf(tx, needs >= wire.Needs_NEEDS_ENVELOPE)}
	return i.filter.withMessage(ctx, q, &question{stage: pipeline.AtMessage, active: tx.Active}, m)
}

// Deliver implements pipeline.Deliverer.
func (i *instance) Deliver(ctx context.Context, d *pipeline.Delivery, m message.Message) (pipeline.Verdict, error) {
	t := &wire.Transaction{Id: text(d.ID), Chain: text(d.Origin.Chain), Results: resultsOf(d.Origin.Results), Symbols: symbolsOf(d.Origin.Symbols)}
	if i.filter.v.declared.needs >= wire.Needs_NEEDS_ENVELOPE {
		setEnvelope(t, &d.Envelope)
	}
	q := &wire.JudgeRequest{Session: departing(&d.Origin), Transaction: t}
	return i.filter.withMessage(ctx, q, &question{stage: pipeline.AtDelivery}, m)
}

// withMessage asks about a message, and gives the plugin as much of it as it
// needs.
func (f *filter) withMessage(ctx context.Context, q *wire.JudgeRequest, about *question, m message.Message) (pipeline.Verdict, error) {
	about.may = f.v.declared
	q.Message = messageOf(m, f.v.declared.needs)
	if f.v.declared.needs < wire.Needs_NEEDS_BODY {
		return f.ask(ctx, q, about)
	}
	b := m.Body()
	if b.Size() <= wire.InlineBody {
		content, err := inline(b)
		if err != nil {
			return pipeline.Verdict{}, fmt.Errorf("the message's body: %w", err)
		}
		q.Message.Body = &wire.Message_Inline{Inline: content}
		return f.ask(ctx, q, about)
	}
	file, remove, err := f.v.shelf.put(ctx, b, f.spool)
	if err != nil {
		return pipeline.Verdict{}, err
	}
	defer remove()
	q.Message.Body = &wire.Message_File{File: file}
	return f.ask(ctx, q, about)
}

// ask makes the call, and a verdict of the answer.
func (f *filter) ask(ctx context.Context, q *wire.JudgeRequest, about *question) (pipeline.Verdict, error) {
	q.Handle, q.Stage = f.configure.GetHandle(), wireStages[about.stage]
	r, err := f.v.judge(ctx, f.configure, q)
	if err != nil {
		return pipeline.Verdict{}, err
	}
	parts, err := readAnswer(r, about)
	var v pipeline.Verdict
	if err == nil {
		v, err = f.verdict(ctx, parts)
	}
	if err != nil {
		f.discard(r)
		return pipeline.Verdict{}, fmt.Errorf("the plugin's answer is wrong: %w", err)
	}
	return v, nil
}
