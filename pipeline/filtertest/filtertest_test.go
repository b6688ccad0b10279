package filtertest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// recorder is a testing.TB that remembers what a check complains of.
type recorder struct {
	testing.TB // for what is not recorded
	mu         sync.Mutex
	complaints []string
	cleanups   []func()
}

func (r *recorder) Helper() {}

func (r *recorder) Errorf(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.complaints = append(r.complaints, fmt.Sprintf(format, args...))
}

func (r *recorder) Error(args ...any) { r.Errorf("%s", fmt.Sprint(args...)) }

func (r *recorder) Fatalf(format string, args ...any) {
	r.Errorf(format, args...)
	runtime.Goexit()
}

func (r *recorder) Fatal(args ...any) { r.Fatalf("%s", fmt.Sprint(args...)) }

func (r *recorder) Cleanup(f func()) { r.cleanups = append(r.cleanups, f) }

// record runs one check of the suite and tells what it complained of.
func record(t *testing.T, check func(testing.TB, Suite), s Suite) string {
	t.Helper()
	r := &recorder{TB: t}
	done := make(chan struct{})
	go func() {
		defer close(done)
		check(r, s)
	}()
	<-done
	for _, f := range r.cleanups {
		f()
	}
	return strings.Join(r.complaints, "\n")
}

// config is that of the filters below.
type config struct {
	Reject string `toml:"reject"`
}

// sample is a filter whose parts a test can spoil. Whole, it refuses a sender,
// and else adds a field.
type sample struct {
	env    pipeline.Env
	config config
	traits pipeline.Traits
	answer func(context.Context, *sample, *pipeline.Transaction, message.Message) (pipeline.Verdict, error)
	close  func() error
	reset  func()
	asked  atomic.Int32
}

func (s *sample) Traits() pipeline.Traits { return s.traits }

func (s *sample) Open(context.Context, *pipeline.Session) (pipeline.Instance, error) {
	return &sampleInstance{s}, nil
}

type sampleInstance struct{ *sample }

func (i *sampleInstance) Close() error {
	if i.close != nil {
		return i.close()
	}
	return nil
}

func (i *sampleInstance) Reset() {
	if i.reset != nil {
		i.reset()
	}
}

func (i *sampleInstance) Message(ctx context.Context, tx *pipeline.Transaction, m message.Message) (pipeline.Verdict, error) {
	i.asked.Add(1)
	if i.answer != nil {
		return i.answer(ctx, i.sample, tx, m)
	}
	return i.good(tx), nil
}

func (s *sample) good(tx *pipeline.Transaction) pipeline.Verdict {
	if s.config.Reject != "" && tx.Envelope.Sender == s.config.Reject {
		return pipeline.Verdict{Action: pipeline.Reject, Reply: reply.Make(553, reply.Enhanced{Subject: 1, Detail: 8}, "not from you"), Reason: "sender"}
	}
	if strings.HasPrefix(tx.Envelope.Sender, "copy@") {
		return pipeline.Verdict{Edits: []pipeline.Edit{{Kind: pipeline.EditCopy, Copy: &pipeline.Copy{Envelope: tx.Envelope}}}}
	}
	return pipeline.Verdict{Edits: []pipeline.Edit{pipeline.Field(message.FieldEdit{Name: "X-Sample", Value: "1"})}}
}

func (i *sampleInstance) Deliver(context.Context, *pipeline.Delivery, message.Message) (pipeline.Verdict, error) {
	return pipeline.Verdict{}, nil
}

// kind makes samples, which spoil then spoils.
func kind(spoil func(*sample)) pipeline.Kind {
	return pipeline.Kind{Name: "sample", New: func(e pipeline.Env, decode pipeline.Decode) (pipeline.Filter, error) {
		s := &sample{env: e, traits: pipeline.Traits{Stages: []pipeline.Stage{pipeline.AtMessage, pipeline.AtDelivery}}}
		if err := decode(&s.config); err != nil {
			return nil, fmt.Errorf("sample: %w", err)
		}
		if spoil != nil {
			spoil(s)
		}
		return s, nil
	}}
}

func answers(f func(context.Context, *sample, *pipeline.Transaction, message.Message) (pipeline.Verdict, error)) pipeline.Kind {
	return kind(func(s *sample) { s.answer = f })
}

// TestGood: a good filter passes, with its cases.
func TestGood(t *testing.T) {
	Run(t, Suite{Kind: kind(nil), Config: `reject = "bad@example.net"`, Cases: []Case{
		{
			Name: "field", From: "a@example.net",
			WantEdits: []string{"add X-Sample: 1"}, WantMessage: "X-Sample: 1\n" + plainText,
		},
		{
			Name: "refused", From: "bad@example.net", To: []string{"a", "b"},
			WantAction: pipeline.Reject, WantReply: "553 5.1.8 not from you", WantReason: "sender",
		},
		{
			Name: "other configuration", Config: `reject = "other@example.net"`, From: "bad@example.net", Session: &pipeline.Session{},
			WantMessage: "X-Sample: 1\n" + plainText, WantActions: []pipeline.Action{pipeline.Continue},
		},
		{
			Name: "copy", From: "copy@example.net", To: []string{"a", "b"}, Message: "Subject: x\n\ny\n",
			WantCopies: []string{"copy@example.net -> a b"}, WantEnvelopes: []string{"copy@example.net -> a b"},
		},
		{Name: "no recipients", From: "copy@example.net", To: []string{}, WantErr: "copy without a recipient"},
	}, MayFail: func(name string) bool { return false }})
}

// TestPassive: a filter that does nothing passes, whatever its stage.
func TestPassive(t *testing.T) {
	Run(t, Suite{
		Kind: answers(func(context.Context, *sample, *pipeline.Transaction, message.Message) (pipeline.Verdict, error) {
			return pipeline.Verdict{}, nil
		}),
		Env:   func(testing.TB) pipeline.Env { return pipeline.Env{} },
		Cases: []Case{{Name: "nothing"}, {Name: "nobody", To: []string{}}, {Name: "two", To: []string{"a", "b"}}},
	})
}

var errBad = errors.New("bad day")

// TestBad: the suite catches filters that break the contract.
func TestBad(t *testing.T) {
	newKind := func(f func(pipeline.Env, pipeline.Decode) error) pipeline.Kind {
		return pipeline.Kind{Name: "sample", New: func(e pipeline.Env, d pipeline.Decode) (pipeline.Filter, error) {
			return &sample{traits: pipeline.Traits{Stages: []pipeline.Stage{pipeline.AtMessage}}}, f(e, d)
		}}
	}
	decoded := func(f func(pipeline.Env)) pipeline.Kind {
		return newKind(func(e pipeline.Env, d pipeline.Decode) error {
			f(e)
			return d(&config{})
		})
	}
	stop := make(chan struct{})
	defer close(stop)
	var held []*message.Body
	tests := []struct {
		name  string
		check func(testing.TB, Suite)
		kind  pipeline.Kind
		want  string
	}{
		{"ignores its configuration", checkNew, newKind(func(pipeline.Env, pipeline.Decode) error { return nil }), "does not know"},
		{"swallows Decode's error", checkNew, newKind(func(_ pipeline.Env, d pipeline.Decode) error { d(&config{}); return nil }), "want Decode's error"}, //nolint:errcheck // that is the point
		{"asks the DNS in New", checkNew, decoded(func(e pipeline.Env) { e.Resolver.LookupTXT(context.Background(), "x") }), "must start nothing"},        //nolint:errcheck // likewise
		{"writes its state in New", checkNew, decoded(func(e pipeline.Env) { e.State.Put(context.Background(), "k", nil, time.Hour) }), "must start nothing"},
		{"starts in New", checkNew, decoded(func(pipeline.Env) { go func() { <-stop }() }), "New starts goroutines"},
		{"name", checkTraits, pipeline.Kind{Name: "No Name", New: kind(nil).New}, "is no word"},
		{"lacks a stage", checkTraits, kind(func(s *sample) { s.traits.Stages = []pipeline.Stage{pipeline.AtHelo} }), "at the helo stage"},
		{"counts", checkTwice, answers(func(_ context.Context, s *sample, tx *pipeline.Transaction, _ message.Message) (pipeline.Verdict, error) {
			return pipeline.Verdict{Edits: []pipeline.Edit{pipeline.Field(message.FieldEdit{Name: "X-N", Value: fmt.Sprint(s.asked.Load())})}}, nil
		}), "then"},
		{"reset breaks", checkReset, kind(func(s *sample) { s.reset = func() { s.config.Reject = "a@example.net" } }), "after Reset"},
		{"reset panics", checkReset, kind(func(s *sample) { s.reset = func() { panic("reset") } }), "Reset panics"},
		{"close fails", checkReset, kind(func(s *sample) { s.close = func() error { return errBad } }), "Close: bad day"},
		{"goes on after close", checkReset, kind(func(s *sample) { s.close = func() error { go func() { <-stop }(); return nil } }), "goroutines go on"},
		{"fails", checkHostile, answers(func(context.Context, *sample, *pipeline.Transaction, message.Message) (pipeline.Verdict, error) {
			return pipeline.Verdict{}, errBad
		}), "fails at the message stage: bad day"},
		{"panics at no recipient", checkHostile, answers(func(_ context.Context, _ *sample, tx *pipeline.Transaction, _ message.Message) (pipeline.Verdict, error) {
			_ = tx.Envelope.Recipients[0]
			return pipeline.Verdict{}, nil
		}), "no recipients: message panics: runtime error: index out of range"},
		{"illegal action", checkHostile, answers(func(context.Context, *sample, *pipeline.Transaction, message.Message) (pipeline.Verdict, error) {
			return pipeline.Verdict{Action: 99}, nil
		}), "cannot be used: verdict invalid"},
		{"header injection", checkHostile, answers(func(_ context.Context, _ *sample, _ *pipeline.Transaction, m message.Message) (pipeline.Verdict, error) {
			return pipeline.Verdict{Edits: []pipeline.Edit{pipeline.Field(message.FieldEdit{Name: "X-S", Value: m.Head().Get("Subject")})}}, nil
		}), "NUL: its verdict at the message stage cannot be used"},
		{"wrong reply", checkHostile, answers(func(context.Context, *sample, *pipeline.Transaction, message.Message) (pipeline.Verdict, error) {
			return pipeline.Verdict{Only: []int{}, Others: []pipeline.Verdict{{Only: []int{}, Action: pipeline.Defer, Reply: reply.Refused}}}, nil
		}), "which is not believed"},
		{"keeps the body", checkHostile, answers(func(_ context.Context, _ *sample, _ *pipeline.Transaction, m message.Message) (pipeline.Verdict, error) {
			held = append(held, m.Body().Retain())
			return pipeline.Verdict{}, nil
		}), "1 bodies are left over"},
		{"leaks a body of its own", checkHostile, answers(func(_ context.Context, s *sample, _ *pipeline.Transaction, _ message.Message) (pipeline.Verdict, error) {
			held = append(held, newBody(t, s.env))
			return pipeline.Verdict{}, nil
		}), "bodies are left over"},
		{"gives up the body", checkHostile, answers(func(_ context.Context, _ *sample, _ *pipeline.Transaction, m message.Message) (pipeline.Verdict, error) {
			m.Body().Release() //nolint:errcheck // that is the point
			return pipeline.Verdict{}, nil
		}), "not its own"},
		{"hands back the body it was lent", checkHostile, answers(func(_ context.Context, _ *sample, _ *pipeline.Transaction, m message.Message) (pipeline.Verdict, error) {
			return pipeline.Verdict{Body: m.Body()}, nil
		}), "not its own"},
		{"writes into the envelope", checkHostile, answers(func(_ context.Context, _ *sample, tx *pipeline.Transaction, _ message.Message) (pipeline.Verdict, error) {
			for i := range tx.Envelope.Recipients {
				tx.Envelope.Recipients[i].Address = "me"
			}
			return pipeline.Verdict{}, nil
		}), "envelope has been changed"},
		{"writes into Active", checkHostile, answers(func(_ context.Context, _ *sample, tx *pipeline.Transaction, _ message.Message) (pipeline.Verdict, error) {
			if len(tx.Active) > 1 {
				tx.Active[0], tx.Active[1] = tx.Active[1], tx.Active[0]
			}
			return pipeline.Verdict{}, nil
		}), "Active has been changed"},
		{"writes into the session", checkHostile, answers(func(_ context.Context, _ *sample, tx *pipeline.Transaction, _ message.Message) (pipeline.Verdict, error) {
			tx.Session.Env["RELAYCLIENT"] = ""
			return pipeline.Verdict{}, nil
		}), "session has been changed"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if got := record(t, test.check, Suite{Kind: test.kind}); !strings.Contains(got, test.want) {
				t.Errorf("the suite says %q, want %q", got, test.want)
			}
		})
	}
	for _, b := range held {
		b.Release() //nolint:errcheck // the test's directory goes anyway
	}
}

// TestDeaf: a filter that does not heed its context is told of.
func TestDeaf(t *testing.T) {
	stop := make(chan struct{})
	deaf := answers(func(context.Context, *sample, *pipeline.Transaction, message.Message) (pipeline.Verdict, error) {
		<-stop
		return pipeline.Verdict{}, nil
	})
	check := func(tb testing.TB, s Suite) { checkReturns(tb, s, 50*time.Millisecond) }
	if got := record(t, check, Suite{Kind: deaf}); !strings.Contains(got, "does not come back from the message stage") {
		t.Errorf("the suite says %q", got)
	}
	close(stop)
	panics := answers(func(ctx context.Context, _ *sample, _ *pipeline.Transaction, _ message.Message) (pipeline.Verdict, error) {
		<-ctx.Done()
		panic("no time")
	})
	if got := record(t, checkCancelled, Suite{Kind: panics}); !strings.Contains(got, "panics at the message stage when its context is done: no time") {
		t.Errorf("the suite says %q", got)
	}
}

// TestConcurrent: a filter that mixes up its sessions is told of.
func TestConcurrent(t *testing.T) {
	mixes := answers(func(_ context.Context, s *sample, _ *pipeline.Transaction, m message.Message) (pipeline.Verdict, error) {
		if n := s.asked.Load(); int(n) > len(few()) {
			return pipeline.Verdict{Action: pipeline.Discard}, nil
		}
		return pipeline.Verdict{}, nil
	})
	if got := record(t, checkConcurrent, Suite{Kind: mixes}); !strings.Contains(got, "with others") {
		t.Errorf("the suite says %q", got)
	}
}

// TestDeliveryBad: what a filter may not do at the exit.
func TestDeliveryBad(t *testing.T) {
	bad := pipeline.Kind{Name: "sample", New: func(pipeline.Env, pipeline.Decode) (pipeline.Filter, error) { return exit{}, nil }}
	if got := record(t, checkDelivery, Suite{Kind: bad}); !strings.Contains(got, "discard is not allowed at the delivery stage") {
		t.Errorf("the suite says %q", got)
	}
}

type exit struct{}

func (e exit) Open(context.Context, *pipeline.Session) (pipeline.Instance, error) { return e, nil }
func (exit) Close() error                                                         { return nil }
func (exit) Deliver(context.Context, *pipeline.Delivery, message.Message) (pipeline.Verdict, error) {
	return pipeline.Verdict{Action: pipeline.Discard}, nil
}

// TestBadCases: a case that is not met is told of.
func TestBadCases(t *testing.T) {
	s := Suite{Kind: kind(nil), Config: `reject = "bad@example.net"`}
	good := Case{From: "a", WantEdits: []string{"add X-Sample: 1"}, WantMessage: "X-Sample: 1\n" + plainText}
	if got := record(t, good.check, s); got != "" {
		t.Errorf("a good case: %s", got)
	}
	for want, spoil := range map[string]func(*Case){
		"continue (), want reject":                      func(c *Case) { c.WantAction = pipeline.Reject },
		"WantActions lacks recipient 0":                 func(c *Case) { c.WantActions = []pipeline.Action{} },
		`reply "250 2.0.0 ok", want "554"`:              func(c *Case) { c.WantReply = "554" },
		`reason "", want "why"`:                         func(c *Case) { c.WantReason = "why" },
		`error "", want "bad"`:                          func(c *Case) { c.WantErr = "bad" },
		`edits ["add X-Sample: 1"], want []`:            func(c *Case) { c.WantEdits = []string{} },
		"message at byte 0":                             func(c *Case) { c.WantMessage, c.WantEdits = "", nil },
		"message at byte 11":                            func(c *Case) { c.WantMessage = "X-Sample: 1" },
		`copies [], want ["x"]`:                         func(c *Case) { c.WantCopies = []string{"x"} },
		`stored ["a -> r@example.org"], want ["a -> "]`: func(c *Case) { c.WantEnvelopes = []string{"a -> "} },
		"no message is stored":                          func(c *Case) { c.From = "bad@example.net" },
		"New: sample: test.toml:1: ":                    func(c *Case) { c.Config = "reject = 1" },
	} {
		c := good
		spoil(&c)
		if got := record(t, c.check, s); !strings.Contains(got, want) {
			t.Errorf("the case says %q, want %q", got, want)
		}
	}
}

// TestDecode: strict, and with the line.
func TestDecode(t *testing.T) {
	var c config
	if err := DecodeMap(map[string]any{"reject": "x"})(&c); err != nil || c.Reject != "x" {
		t.Errorf("%+v, %v", c, err)
	}
	for text, want := range map[string]string{
		"\nrejekt = \"x\"":             `test.toml:2: unknown key "rejekt"`,
		"reject = \"x\"\n\nreject = 1": "test.toml:3: ",
		"reject = 1":                   "test.toml:1: ",
		"[reject":                      "test.toml:1: ",
	} {
		if err := Decode(text)(&c); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
	if err := DecodeMap(map[string]any{"rejekt": 1})(&c); err == nil {
		t.Error("an unknown key is taken")
	}
	if err := DecodeMap(map[string]any{"reject": make(chan int)})(&c); err == nil {
		t.Error("a channel is taken")
	}
}

// TestEnv: the daemon that knows nothing.
func TestEnv(t *testing.T) {
	ctx, e := context.Background(), Env(t)
	if _, err := e.Resolver.LookupTXT(ctx, "x"); err == nil {
		t.Error("TXT")
	}
	if _, err := e.Resolver.LookupHost(ctx, "x"); err == nil {
		t.Error("host")
	}
	if _, err := e.Resolver.LookupAddr(ctx, "x"); err == nil {
		t.Error("address")
	}
	if again := Env(t); string(e.Secret("a")) == string(e.Secret("b")) || string(e.Secret("a")) != string(again.Secret("a")) {
		t.Error("secret")
	}
	get := func() string {
		v, ok, err := e.State.Get(ctx, "k")
		return fmt.Sprintf("%s %v %v", v, ok, err)
	}
	put := func(ttl time.Duration) {
		if err := e.State.Put(ctx, "k", []byte("v"), ttl); err != nil {
			t.Error(err)
		}
	}
	if got := get(); got != " false <nil>" {
		t.Errorf("empty: %s", got)
	}
	if put(time.Hour); get() != "v true <nil>" {
		t.Errorf("put: %s", get())
	}
	if put(0); get() != " false <nil>" {
		t.Errorf("expired: %s", get())
	}
	put(time.Hour)
	if err := e.State.Delete(ctx, "k"); err != nil || get() != " false <nil>" {
		t.Errorf("deleted: %s %v", get(), err)
	}
}

func newBody(t *testing.T, e pipeline.Env) *message.Body {
	t.Helper()
	w := message.NewWriter(e.Spool, 1)
	if _, err := io.WriteString(w, "of my own"); err != nil {
		t.Fatal(err)
	}
	b, err := w.Body()
	if err != nil {
		t.Fatal(err)
	}
	return b
}
