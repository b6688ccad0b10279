package pipeline

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/message"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// asked is what a fake was asked.
type asked struct {
	ctx      context.Context
	stage    Stage
	session  *Session
	tx       *Transaction
	rcpt     envelope.Recipient
	message  message.Message
	delivery *Delivery
}

// fake is a filter that does what a test says, stage by stage.
type fake struct {
	traits Traits
	on     map[Stage]func(asked) (Verdict, error)
	// open, close and reset may be nil.
	open         func(context.Context) (Instance, error)
	close, reset func() error

	mu                     sync.Mutex
	opened, closed, resets int
	calls                  []Stage
}

// at is a fake for one stage.
func at(s Stage, f func(asked) (Verdict, error)) *fake {
	return &fake{on: map[Stage]func(asked) (Verdict, error){s: f}}
}

// says is a fake that always answers v at one stage.
func says(s Stage, v Verdict) *fake {
	return at(s, func(asked) (Verdict, error) { return v, nil })
}

func (f *fake) Traits() Traits {
	t := f.traits
	t.Stages = nil
	for s := range f.on {
		t.Stages = append(t.Stages, s)
	}
	return t
}

func (f *fake) Open(ctx context.Context, _ *Session) (Instance, error) {
	f.count(&f.opened)
	if f.open != nil {
		return f.open(ctx)
	}
	return &fakeInstance{f}, nil
}

func (f *fake) count(n *int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	*n++
}

// counts are how often it was opened, closed and reset.
func (f *fake) counts() [3]int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return [3]int{f.opened, f.closed, f.resets}
}

func (f *fake) called() []Stage {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.calls)
}

type fakeInstance struct{ f *fake }

func (i *fakeInstance) Close() error {
	i.f.count(&i.f.closed)
	if i.f.close != nil {
		return i.f.close()
	}
	return nil
}

func (i *fakeInstance) Reset() {
	i.f.count(&i.f.resets)
	if i.f.reset != nil {
		i.f.reset() //nolint:errcheck // Reset has no error
	}
}

func (i *fakeInstance) ask(a asked) (Verdict, error) {
	i.f.mu.Lock()
	i.f.calls = append(i.f.calls, a.stage)
	i.f.mu.Unlock()
	return i.f.on[a.stage](a)
}

func (i *fakeInstance) Connect(ctx context.Context, s *Session) (Verdict, error) {
	return i.ask(asked{ctx: ctx, stage: AtConnect, session: s})
}

func (i *fakeInstance) Helo(ctx context.Context, s *Session) (Verdict, error) {
	return i.ask(asked{ctx: ctx, stage: AtHelo, session: s})
}

func (i *fakeInstance) Sender(ctx context.Context, tx *Transaction) (Verdict, error) {
	return i.ask(asked{ctx: ctx, stage: AtSender, session: tx.Session, tx: tx})
}

func (i *fakeInstance) Recipient(ctx context.Context, tx *Transaction, r envelope.Recipient) (Verdict, error) {
	return i.ask(asked{ctx: ctx, stage: AtRecipient, session: tx.Session, tx: tx, rcpt: r})
}

func (i *fakeInstance) Message(ctx context.Context, tx *Transaction, m message.Message) (Verdict, error) {
	return i.ask(asked{ctx: ctx, stage: AtMessage, session: tx.Session, tx: tx, message: m})
}

func (i *fakeInstance) Deliver(ctx context.Context, d *Delivery, m message.Message) (Verdict, error) {
	return i.ask(asked{ctx: ctx, stage: AtDelivery, delivery: d, message: m})
}

// memorySpool is a spool that knows what it holds.
type memorySpool struct {
	mu    sync.Mutex
	seq   int
	files map[string]*memoryFile
}

type memoryFile struct {
	mu     sync.Mutex
	b      []byte
	closed bool
}

func (s *memorySpool) Create() (string, message.File, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.files == nil {
		s.files = map[string]*memoryFile{}
	}
	s.seq++
	name := fmt.Sprint(s.seq)
	s.files[name] = &memoryFile{}
	return name, s.files[name], nil
}

func (s *memorySpool) Open(string) (message.File, error) { return nil, errors.ErrUnsupported }

func (s *memorySpool) Remove(name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.files, name)
	return nil
}

func (s *memorySpool) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.files)
}

func (f *memoryFile) Write(p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.b = append(f.b, p...)
	return len(p), nil
}

func (f *memoryFile) ReadAt(p []byte, off int64) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return 0, errors.New("read of a file that is closed")
	}
	return bytes.NewReader(f.b).ReadAt(p, off)
}

func (f *memoryFile) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	return nil
}

// body makes a body in the spool, held by the caller.
func (s *memorySpool) body(t testing.TB, content string) *message.Body {
	t.Helper()
	w := message.NewWriter(s, 1)
	if _, err := io.WriteString(w, content); err != nil {
		t.Fatal(err)
	}
	b, err := w.Body()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// message makes a message whose body is in the spool.
func (s *memorySpool) message(t testing.TB, text string) message.Message {
	t.Helper()
	m, err := message.Read(strings.NewReader(text), message.Options{Spool: s, Memory: 1})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

const plain = "Subject: hello\nFrom: a@example.org\n\nThe body of the message.\n"

func newChain(t testing.TB, o ChainOptions, steps ...Step) *Chain {
	t.Helper()
	for i := range steps {
		if steps[i].Name == "" {
			steps[i].Name = fmt.Sprintf("f%d", i)
		}
	}
	c, err := NewChain("test", steps, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.crew.dismiss) // within a bubble of time nobody else ends its workers
	return c
}

// rcpts are n recipients r0@example.org, r1@example.org, ….
func rcpts(n int) []string {
	all := make([]string, n)
	for i := range all {
		all[i] = fmt.Sprintf("r%d@example.org", i)
	}
	return all
}

func txTo(recipients ...string) *Transaction {
	return &Transaction{ID: "t1", Session: &Session{ID: "s1", UID: -1}, Envelope: envelope.To("a@example.org", recipients...)}
}

// runIn runs a chain on a spooled message and checks that the bodies are gone
// once all have given theirs up, and the caller's not before.
func runIn(t testing.TB, ctx context.Context, c *Chain, tx *Transaction, check func(*Outcome)) {
	t.Helper()
	var spool memorySpool
	runWith(t, ctx, &spool, c, tx, check)
}

func runWith(t testing.TB, ctx context.Context, spool *memorySpool, c *Chain, tx *Transaction, check func(*Outcome)) {
	t.Helper()
	m := spool.message(t, plain)
	o := c.Run(ctx, tx, m)
	for _, out := range o.Outgoing {
		if out.Message.Bytes() == nil {
			t.Errorf("outgoing message to %v cannot be read", out.Envelope.Addresses())
		}
	}
	check(o)
	o.Release()
	o.Release()
	checkOnlyMine(t, spool, m)
}

// checkOnlyMine checks that m's body is the only one left, held once.
func checkOnlyMine(t testing.TB, spool *memorySpool, m message.Message) {
	t.Helper()
	if string(m.Bytes()) != plain {
		t.Errorf("caller's message is now %q", m.Bytes())
	}
	if n := spool.count(); n != 1 {
		t.Errorf("%d bodies are held, want the caller's alone", n)
	}
	m.Body().Release() //nolint:errcheck // in memory
	if n := spool.count(); n != 0 {
		t.Errorf("%d bodies are held after the caller's release", n)
	}
}

// outgoing describes what is stored, a line each.
func outgoing(o *Outcome) string {
	var b strings.Builder
	for _, out := range o.Outgoing {
		fmt.Fprintf(&b, "%s -> %s", out.Envelope.Sender, strings.Join(out.Envelope.Addresses(), " "))
		if out.Hold != "" {
			fmt.Fprintf(&b, " hold(%s)", out.Hold)
		}
		if out.Copy {
			b.WriteString(" copy")
		}
		h := out.Message.Head()
		for i := range h.Len() {
			if f := h.Field(i); strings.HasPrefix(f.Name(), "X-") {
				fmt.Fprintf(&b, " %s=%s", f.Name(), f.Value())
			}
		}
		b.WriteString("\n")
	}
	return b.String()
}

// line finds the entries of a filter at a stage.
func entries(tr Trace, filter string, s Stage) []Entry {
	var all []Entry
	for _, e := range tr {
		if e.Filter == filter && e.Stage == s.String() {
			all = append(all, e)
		}
	}
	return all
}

func addField(name, value string) Edit { return Field(message.FieldEdit{Name: name, Value: value}) }

func copyTo(address string, fields ...message.FieldEdit) Edit {
	return Edit{Kind: EditCopy, Copy: &Copy{Envelope: envelope.To("", address), Fields: fields}}
}
