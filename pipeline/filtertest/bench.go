package filtertest

import (
	"context"
	"fmt"
	"io"
	"maps"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
)

// bench is a filter in a chain of its own, being watched.
type bench struct {
	suite  Suite
	filter pipeline.Filter
	spy    *spy
	chain  *pipeline.Chain
	spool  spool // of the messages and, unless the suite has its own, of the filter
	once   sync.Once
}

func newEnv(t testing.TB, s Suite, sp spool) pipeline.Env {
	t.Helper()
	own := s.Env
	if own == nil {
		own = Env
	}
	e, base := own(t), Env(t)
	if e.Log == nil {
		e.Log = base.Log
	}
	if e.Now == nil {
		e.Now = base.Now
	}
	if e.State == nil {
		e.State = base.State
	}
	if e.Resolver == nil {
		e.Resolver = base.Resolver
	}
	if e.Secret == nil {
		e.Secret = base.Secret
	}
	if s.Env == nil || e.Spool == nil {
		e.Spool = sp
	}
	return e
}

// newBench makes the filter. At the end of the test it is closed.
func newBench(t testing.TB, s Suite, mode pipeline.Mode) *bench {
	t.Helper()
	b := &bench{suite: s, spool: newSpool(t)}
	var err error
	if b.filter, err = s.Kind.New(newEnv(t, s, b.spool), Decode(s.Config)); err != nil {
		t.Fatalf("New: %v", err)
	}
	t.Cleanup(func() { b.close(t) })
	b.spy = &spy{Filter: b.filter}
	traits := pipeline.TraitsOf(b.filter)
	step := pipeline.Step{Name: s.Kind.Name, Filter: b.spy, OnError: traits.OnError, Always: traits.Always, Mode: mode}
	if b.chain, err = pipeline.NewChain("filtertest", []pipeline.Step{step}, pipeline.ChainOptions{}); err != nil {
		t.Fatal(err)
	}
	return b
}

// close closes the filter, once.
func (b *bench) close(t testing.TB) {
	t.Helper()
	b.once.Do(func() {
		if closer, ok := b.filter.(io.Closer); ok {
			if err := closer.Close(); err != nil {
				t.Errorf("closing the filter: %v", err)
			}
		}
	})
}

func (s Suite) session() *pipeline.Session {
	if s.Session == nil {
		return Stranger()
	}
	return s.Session()
}

// read spools a message as it stands, whatever it holds.
func (b *bench) read(t testing.TB, text string) message.Message {
	t.Helper()
	o := message.Options{Lines: message.Keep, Spool: b.spool, Memory: 1, MaxHead: len(text) + 1, MaxFields: len(text) + 1}
	m, err := message.Read(strings.NewReader(text), o)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// result is what became of a message.
type result struct {
	reply   reply.Reply
	fates   []pipeline.Fate
	stored  []storedMessage
	trace   pipeline.Trace
	answers []answer
}

type storedMessage struct {
	pipeline.Outgoing
	text string
}

// String is what a result must have in common with that of the same question.
func (r *result) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%v\n", r.reply)
	for _, f := range r.fates {
		fmt.Fprintf(&b, "%v %v %s\n", f.Action, f.Reply, f.Reason)
	}
	for _, m := range r.stored {
		fmt.Fprintf(&b, "%s -> %q hold=%q copy=%v\n%s\n", m.Envelope.Sender, m.Envelope.Addresses(), m.Hold, m.Copy, m.text)
	}
	return b.String()
}

// run takes a message through all stages, as a shim's is.
func (b *bench) run(t testing.TB, session *pipeline.Session, h Hostile) *result {
	t.Helper()
	return b.judge(t, session, h, func(tx *pipeline.Transaction, m message.Message) *pipeline.Outcome {
		return b.chain.Run(context.Background(), tx, m)
	})
}

// judge has take judge a message, and checks what holds for every one: nothing
// lent is changed, no body is left over, none given up too early.
func (b *bench) judge(t testing.TB, session *pipeline.Session, h Hostile, take func(*pipeline.Transaction, message.Message) *pipeline.Outcome) *result {
	t.Helper()
	defer func() {
		if p := recover(); p != nil {
			t.Errorf("%s: the chain panics: %v (a body that was given up too often?)", h.Name, p)
		}
	}()
	m := b.read(t, h.Text)
	tx := &pipeline.Transaction{ID: "t1", Session: session, Envelope: h.Envelope.Clone()}
	was := *session
	was.Env = maps.Clone(session.Env)
	o := take(tx, m)
	r := &result{reply: o.Reply, fates: o.Fates, trace: o.Trace}
	for _, out := range o.Outgoing {
		out.Envelope = out.Envelope.Clone()
		r.stored = append(r.stored, storedMessage{out, string(out.Message.Bytes())})
	}
	o.Release()
	if string(m.Bytes()) != h.Text {
		t.Errorf("%s: the message's bytes have changed", h.Name)
	}
	if !sameEnvelope(tx.Envelope, h.Envelope) {
		t.Errorf("%s: the transaction's envelope has been changed", h.Name)
	}
	session.Ours, was.Ours = nil, nil // functions do not compare
	if !reflect.DeepEqual(*session, was) {
		t.Errorf("%s: the session has been changed", h.Name)
	}
	b.checkBodies(t, h.Name, m)
	var problems []string
	if r.answers, problems = b.spy.take(); len(problems) > 0 {
		t.Errorf("%s: %s", h.Name, strings.Join(problems, "\n"))
	}
	return r
}

func sameEnvelope(a, b envelope.Envelope) bool {
	return a.Sender == b.Sender && slices.Equal(a.Addresses(), b.Addresses())
}

// checkBodies checks that the caller's body is the only one left, and gives it
// up.
func (b *bench) checkBodies(t testing.TB, name string, m message.Message) {
	t.Helper()
	want := 0
	if m.Body().SpoolName() != "" {
		want = 1
	}
	switch n := b.spool.count(t); {
	case n < want:
		t.Errorf("%s: the filter has given up a body that is not its own", name)
		return
	case n > want:
		t.Errorf("%s: %d bodies are left over", name, n-want)
	}
	m.Body().Release() //nolint:errcheck // counted next
	if n := b.spool.count(t); n > 0 && want > 0 {
		t.Errorf("%s: %d bodies are left over after the caller's release", name, n)
	}
}

// checkAnswers checks what the filter answered against what the chain made of
// it.
func (r *result) checkAnswers(t testing.TB, name string, mayFail bool) {
	t.Helper()
	failed := false
	for _, a := range r.answers {
		if failed = failed || a.err != nil; a.err != nil && !mayFail {
			t.Errorf("%s: fails at the %v stage: %v", name, a.stage, a.err)
		}
		checkReply(t, name, a.stage, &a.verdict)
	}
	for _, e := range r.trace {
		switch {
		case e.Err == "" || failed:
		case len(r.answers) == 0 && !mayFail:
			t.Errorf("%s: fails at the %s stage: %s", name, e.Stage, e.Err)
		case len(r.answers) > 0:
			t.Errorf("%s: its verdict at the %s stage cannot be used: %s", name, e.Stage, e.Err)
		}
	}
}

func checkReply(t testing.TB, name string, stage pipeline.Stage, v *pipeline.Verdict) {
	t.Helper()
	if (v.Action == pipeline.Reject || v.Action == pipeline.Defer) && v.Reply != (reply.Reply{}) && v.Reply.Class != reply.For(v.Action, reply.Reply{}).Class {
		t.Errorf("%s: verdict %v at the %v stage says %q, which is not believed", name, v.Action, stage, v.Reply)
	}
	for i := range v.Others {
		checkReply(t, name, stage, &v.Others[i])
	}
}

// asksForChange reports whether an answer changes message or envelope.
func (r *result) asksForChange() bool {
	for _, a := range r.answers {
		if a.body || len(a.verdict.Edits) > 0 {
			return true
		}
		for i := range a.verdict.Others {
			if len(a.verdict.Others[i].Edits) > 0 {
				return true
			}
		}
	}
	return false
}

// checkUnchanged checks that what is stored is the message as it came.
func (r *result) checkUnchanged(t testing.TB, h Hostile) {
	t.Helper()
	for _, m := range r.stored {
		if m.text != h.Text {
			t.Errorf("%s: the message is changed though no edit was asked for: %s", h.Name, difference(m.text, h.Text))
		}
		if m.Copy || m.Envelope.Sender != h.Sender {
			t.Errorf("%s: %q is stored from %q", h.Name, m.Envelope.Addresses(), m.Envelope.Sender)
		}
	}
}

// difference shows where two texts part.
func difference(got, want string) string {
	i := 0
	for i < len(got) && i < len(want) && got[i] == want[i] {
		i++
	}
	from := max(0, i-40)
	return fmt.Sprintf("at byte %d: %.120q, want %.120q", i, got[from:], want[from:])
}
