package filtertest

import (
	"context"
	"errors"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/message"
)

var errDecode = errors.New("no such configuration")

// checkNew: New is strict about its configuration, and has no side effect.
func checkNew(t testing.TB, s Suite) {
	t.Helper()
	if _, err := s.Kind.New(newEnv(t, s, newSpool(t)), func(any) error { return errDecode }); !errors.Is(err, errDecode) {
		t.Errorf("New: %v, want Decode's error wrapped", err)
	}
	if _, err := s.Kind.New(newEnv(t, s, newSpool(t)), Decode("surely_no_such_key = true\n"+s.Config)); err == nil {
		t.Error("New takes a key that it does not know: the configuration does not go through Decode")
	}
	before := goleak.IgnoreCurrent()
	var n atomic.Int32
	e := touch(newEnv(t, s, newSpool(t)), &n)
	for range 2 {
		f, err := s.Kind.New(e, Decode(s.Config))
		if err != nil {
			t.Fatalf("New: %v", err)
		}
		if n.Load() > 0 {
			t.Error("New uses State, Resolver, Spool or Programs: it must start nothing and change nothing")
		}
		if err := goleak.Find(before); err != nil {
			t.Errorf("New starts goroutines: %v", err)
		}
		if closer, ok := f.(io.Closer); ok {
			if err := closer.Close(); err != nil {
				t.Errorf("closing a filter that was never opened: %v", err)
			}
		}
	}
}

// checkTraits: what a filter tells of itself.
func checkTraits(t testing.TB, s Suite) {
	t.Helper()
	if s.Kind.Name == "" || strings.Trim(s.Kind.Name, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
		t.Errorf("kind %q is no word of lower-case letters, digits and -", s.Kind.Name)
	}
	b := newBench(t, s, pipeline.Enforce)
	stages := pipeline.StagesOf(b.filter)
	if len(stages) == 0 {
		t.Error("the filter judges at no stage")
	}
	i, err := b.filter.Open(context.Background(), s.session())
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	defer closeInstance(t, i)
	for _, stage := range stages {
		if !hasStage(i, stage) {
			t.Errorf("its traits say that it judges at the %v stage, but its instance does not", stage)
		}
	}
}

func closeInstance(t testing.TB, i pipeline.Instance) {
	t.Helper()
	if err := i.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
}

// hasStage reports whether an instance has a stage's interface.
func hasStage(i pipeline.Instance, s pipeline.Stage) (ok bool) {
	switch s {
	case pipeline.AtConnect:
		_, ok = i.(pipeline.Connecter)
	case pipeline.AtHelo:
		_, ok = i.(pipeline.Heloer)
	case pipeline.AtSender:
		_, ok = i.(pipeline.Senderer)
	case pipeline.AtRecipient:
		_, ok = i.(pipeline.Recipienter)
	case pipeline.AtMessage:
		_, ok = i.(pipeline.Messager)
	case pipeline.AtDelivery:
		_, ok = i.(pipeline.Deliverer)
	}
	return ok
}

// few are the hostile messages that the dearer checks run.
func few() []Hostile {
	var all []Hostile
	for _, h := range HostileMessages() {
		switch h.Name {
		case "empty", "no header", "NUL", "8-bit", "CRLF", "null sender", "no recipients", "the same recipient twice":
			all = append(all, h)
		}
	}
	return all
}

// checkTwice: the same question has the same answer.
func checkTwice(t testing.TB, s Suite) {
	t.Helper()
	b := newBench(t, s, pipeline.Enforce)
	for _, h := range few() {
		first, second := b.run(t, s.session(), h), b.run(t, s.session(), h)
		if !s.Stateful && first.String() != second.String() {
			t.Errorf("%s: first\n%s\nthen\n%s", h.Name, first, second)
		}
	}
}

// checkConcurrent: sessions do not disturb each other.
func checkConcurrent(t testing.TB, s Suite) {
	t.Helper()
	b := newBench(t, s, pipeline.Enforce)
	all := few()
	want := make([]string, len(all))
	for i, h := range all {
		want[i] = b.run(t, s.session(), h).String()
	}
	got := make([][]string, 8)
	var wg sync.WaitGroup
	for k := range got {
		got[k] = make([]string, len(all))
		wg.Go(func() {
			for i := range all {
				i = (i + k) % len(all)
				m := b.read(t, all[i].Text)
				tx := &pipeline.Transaction{ID: "t1", Session: s.session(), Envelope: all[i].Envelope.Clone()}
				o := b.chain.Run(context.Background(), tx, m)
				r := &result{reply: o.Reply, fates: o.Fates}
				for _, out := range o.Outgoing {
					r.stored = append(r.stored, storedMessage{out, string(out.Message.Bytes())})
				}
				got[k][i] = r.String()
				o.Release()
				m.Body().Release() //nolint:errcheck // counted below
			}
		})
	}
	wg.Wait()
	if _, problems := b.spy.take(); len(problems) > 0 {
		t.Errorf("%s", strings.Join(problems, "\n"))
	}
	for k := range got {
		for i := range all {
			if !s.Stateful && got[k][i] != want[i] {
				t.Errorf("%s: with others\n%s\nalone\n%s", all[i].Name, got[k][i], want[i])
			}
		}
	}
	if n := b.spool.count(t); n > 0 {
		t.Errorf("%d bodies are left over", n)
	}
}

// checkReset: a session of several transactions, with resets at each point, is
// as good as several sessions; in the end all instances are closed and nothing
// goes on.
func checkReset(t testing.TB, s Suite) {
	t.Helper()
	before := goleak.IgnoreCurrent()
	b := newBench(t, s, pipeline.Enforce)
	ctx, session := context.Background(), s.session()
	j := b.chain.Begin()
	j.Reset()
	j.Connect(ctx, session)
	j.Reset()
	j.Helo(ctx, session)
	h := Hostile{"plain", few()[0].Envelope, plainText}
	transaction := func() string {
		return b.judge(t, s.session(), h, func(tx *pipeline.Transaction, m message.Message) *pipeline.Outcome {
			all := tx.Envelope
			j.Sender(ctx, tx)
			j.Reset() // RSET after MAIL
			j.Sender(ctx, tx)
			tx.Envelope.Recipients = nil
			for _, r := range all.Recipients {
				if f := j.Recipient(ctx, tx, r); f.Action != pipeline.Reject && f.Action != pipeline.Defer {
					tx.Envelope.Recipients = append(tx.Envelope.Recipients, r)
				}
			}
			o := j.Message(ctx, tx, m)
			tx.Envelope = all
			return o
		}).String()
	}
	first := transaction()
	j.Reset()
	j.Reset()
	if second := transaction(); !s.Stateful && second != first {
		t.Errorf("after Reset\n%s\nbefore\n%s", second, first)
	}
	j.Close()
	if _, problems := b.spy.take(); len(problems) > 0 {
		t.Errorf("%s", strings.Join(problems, "\n"))
	}
	b.close(t)
	if err := goleak.Find(before); err != nil {
		t.Errorf("goroutines go on after Close: %v", err)
	}
}

// prompt is how long a filter may go on after its context is done before the
// suite calls it deaf: far more than it needs.
const prompt = 10 * time.Second

// checkCancelled: a filter whose context is done, before or during the call,
// comes back.
func checkCancelled(t testing.TB, s Suite) {
	t.Helper()
	checkReturns(t, s, prompt)
}

func checkReturns(t testing.TB, s Suite, within time.Duration) {
	t.Helper()
	b := newBench(t, s, pipeline.Enforce)
	for _, after := range []time.Duration{0, 10 * time.Millisecond} {
		for stage, call := range directCalls(s, b.read(t, plainText)) {
			ctx, cancel := context.WithTimeout(context.Background(), after)
			returned := make(chan string, 1)
			go func() {
				defer func() {
					if p := recover(); p != nil {
						t.Errorf("panics at the %v stage when its context is done: %v", stage, p)
					}
					returned <- ""
				}()
				i, err := b.filter.Open(ctx, s.session())
				if err != nil {
					return
				}
				defer closeInstance(t, i)
				if hasStage(i, stage) {
					v, _ := call(ctx, i)
					giveUp(v)
				}
			}()
			select {
			case <-returned:
			case <-time.After(within):
				t.Errorf("does not come back from the %v stage when its context is done", stage)
			}
			cancel()
		}
	}
}

func giveUp(v pipeline.Verdict) {
	v.Body.Release() //nolint:errcheck // nil or ours
	for _, o := range v.Others {
		o.Body.Release() //nolint:errcheck // likewise
	}
}

// directCalls are calls of each stage, past the chain, which would refuse to
// make them for a context that is done.
func directCalls(s Suite, m message.Message) map[pipeline.Stage]func(context.Context, pipeline.Instance) (pipeline.Verdict, error) {
	session := s.session()
	h := few()[0]
	tx := &pipeline.Transaction{ID: "t1", Session: session, Envelope: h.Envelope, Active: []int{0}, Chain: "filtertest"}
	d := &pipeline.Delivery{ID: "q1", Envelope: h.Envelope, Origin: pipeline.OriginOf(session, tx), Host: "mx.example.net"}
	type verdict = pipeline.Verdict
	return map[pipeline.Stage]func(context.Context, pipeline.Instance) (verdict, error){
		pipeline.AtConnect: func(ctx context.Context, i pipeline.Instance) (verdict, error) {
			return i.(pipeline.Connecter).Connect(ctx, session)
		},
		pipeline.AtHelo: func(ctx context.Context, i pipeline.Instance) (verdict, error) {
			return i.(pipeline.Heloer).Helo(ctx, session)
		},
		pipeline.AtSender: func(ctx context.Context, i pipeline.Instance) (verdict, error) {
			return i.(pipeline.Senderer).Sender(ctx, tx)
		},
		pipeline.AtRecipient: func(ctx context.Context, i pipeline.Instance) (verdict, error) {
			return i.(pipeline.Recipienter).Recipient(ctx, tx, h.Recipients[0])
		},
		pipeline.AtMessage: func(ctx context.Context, i pipeline.Instance) (verdict, error) {
			return i.(pipeline.Messager).Message(ctx, tx, m)
		},
		pipeline.AtDelivery: func(ctx context.Context, i pipeline.Instance) (verdict, error) {
			return i.(pipeline.Deliverer).Deliver(ctx, d, m)
		},
	}
}

func (s Suite) mayFail(name string) bool { return s.MayFail != nil && s.MayFail(name) }

// checkHostile: no message makes a filter panic, or fail without a reason, or
// answer what cannot be used; and what it did not ask to change stays.
func checkHostile(t testing.TB, s Suite) {
	t.Helper()
	b := newBench(t, s, pipeline.Enforce)
	for _, h := range HostileMessages() {
		r := b.run(t, s.session(), h)
		if r == nil {
			continue
		}
		r.checkAnswers(t, h.Name, s.mayFail(h.Name))
		if !r.asksForChange() {
			r.checkUnchanged(t, h)
		}
	}
}

// checkShadow: in shadow a filter changes nothing.
func checkShadow(t testing.TB, s Suite) {
	t.Helper()
	b := newBench(t, s, pipeline.Shadow)
	for _, h := range HostileMessages() {
		r := b.run(t, s.session(), h)
		if r == nil {
			continue
		}
		r.checkUnchanged(t, h)
		if len(r.stored) != 1 || !sameEnvelope(r.stored[0].Envelope, h.Envelope) || r.stored[0].Hold != "" {
			t.Errorf("%s: in shadow %d messages are stored", h.Name, len(r.stored))
		}
		for _, e := range r.trace {
			if e.Skipped == "" && !e.Shadow {
				t.Errorf("%s: the trace does not tell the shadow: %+v", h.Name, e)
			}
		}
	}
}

// checkDelivery: at the exit, too, no message makes a filter panic or fail
// without a reason, and what it did not ask to change stays.
func checkDelivery(t testing.TB, s Suite) {
	t.Helper()
	b := newBench(t, s, pipeline.Enforce)
	if !b.chain.JudgesAt(pipeline.AtDelivery) {
		return
	}
	for _, h := range HostileMessages() {
		b.deliver(t, s, h)
	}
}

func (b *bench) deliver(t testing.TB, s Suite, h Hostile) {
	t.Helper()
	session := s.session()
	m := b.read(t, h.Text)
	tx := &pipeline.Transaction{ID: "t1", Session: session}
	d := &pipeline.Delivery{ID: "q1", Envelope: h.Envelope.Clone(), Origin: pipeline.OriginOf(session, tx), Host: "mx.example.net", Form: message.UTF8}
	out, fate, trace := b.chain.Deliver(context.Background(), d, m)
	text := string(out.Bytes())
	out.Body().Release() //nolint:errcheck // counted below
	r := &result{reply: fate.Reply, fates: []pipeline.Fate{fate}, trace: trace}
	var problems []string
	if r.answers, problems = b.spy.take(); len(problems) > 0 {
		t.Errorf("%s: %s", h.Name, strings.Join(problems, "\n"))
	}
	r.checkAnswers(t, h.Name, s.mayFail(h.Name))
	if !r.asksForChange() && text != h.Text {
		t.Errorf("%s: the message is changed though no edit was asked for: %s", h.Name, difference(text, h.Text))
	}
	if !sameEnvelope(d.Envelope, h.Envelope) {
		t.Errorf("%s: the delivery's envelope has been changed", h.Name)
	}
	b.checkBodies(t, h.Name, m)
}
