package smtp_test

import (
	"context"
	"errors"
	"io"
	"net"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/smtp"
	"github.com/postern-mta/postern/pipeline/smtp/smtptest"
)

const sample = "Subject: test\n\n.a line with a dot\nand one without\n"

func content(s string) smtp.Content {
	return smtp.Content{
		From: strings.NewReader(s), Length: int64(len(s)), Size: int64(len(s) + strings.Count(s, "\n")),
	}
}

func dial(t testing.TB, s *smtptest.Server, o smtp.ClientOptions) *smtp.Client {
	t.Helper()
	conn, err := net.Dial("tcp", s.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	c := smtp.NewClient(conn, o)
	t.Cleanup(func() { c.Close() })
	return c
}

// ready is a client that has said EHLO.
func ready(t testing.TB, s *smtptest.Server, o smtp.ClientOptions) *smtp.Client {
	t.Helper()
	c := dial(t, s, o)
	if _, err := c.Greet(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Hello(t.Context()); err != nil {
		t.Fatal(err)
	}
	return c
}

func TestManyMessagesOverOneConnection(t *testing.T) {
	for _, lockStep := range []bool{false, true} {
		for _, oneByte := range []bool{false, true} {
			s := smtptest.Start(t, smtptest.Options{OneByte: oneByte})
			c := ready(t, s, smtp.ClientOptions{Hello: "client.test", LockStep: lockStep})
			for range 3 {
				out, err := c.Transaction(t.Context(), envelope.To("a@x.test", "b@y.test", `"q q"@y.test`), content(sample))
				if err != nil || out.Final.Code != 250 || !out.Accepted(0) || !out.Accepted(1) {
					t.Fatal(out, err)
				}
			}
			if err := c.Quit(t.Context()); err != nil {
				t.Fatal(err)
			}
			all := s.Messages()
			if len(all) != 3 || s.Stats().Connections != 1 {
				t.Fatal(len(all), s.Stats())
			}
			for _, m := range all {
				if string(m.Content) != sample || m.Bare || m.Mail.Sender != "a@x.test" || m.Mail.Size != content(sample).Size ||
					m.Hello != "client.test" || !m.Extended || !reflect.DeepEqual(m.Addresses(), []string{"b@y.test", `"q q"@y.test`}) {
					t.Errorf("%+v", m)
				}
			}
		}
	}
}

func TestHELO(t *testing.T) {
	s := smtptest.New(t, smtptest.Step{At: smtptest.Hello, Match: "EHLO", Reply: "502 5.5.1 no such thing"})
	c := ready(t, s, smtp.ClientOptions{})
	if c.Capabilities().Extensions != 0 {
		t.Error(c.Capabilities())
	}
	e := envelope.To("a@x.test", "b@y.test")
	e.Ret, e.EnvID, e.UTF8 = "HDRS", "id", true
	e.Recipients[0].DSN = &envelope.DSN{Notify: envelope.NotifyNever}
	if _, err := c.Transaction(t.Context(), e, content(sample)); err != nil {
		t.Fatal(err)
	}
	if m := s.Messages()[0]; m.Extended || !reflect.DeepEqual(m.Mail, smtp.Mail{Sender: "a@x.test"}) || m.Recipients[0].DSN != nil {
		t.Errorf("%+v", m)
	}
}

func TestParametersArrive(t *testing.T) {
	s := smtptest.New(t)
	c := ready(t, s, smtp.ClientOptions{})
	e := envelope.To("a@x.test", "b@y.test", "jörg@y.test")
	e.Ret, e.EnvID = "FULL", "id+2B1"
	e.Recipients[0].DSN = &envelope.DSN{Notify: envelope.NotifySuccess | envelope.NotifyDelay, ORcpt: "rfc822;c@d"}
	in := content(sample)
	in.EightBit = true
	if _, err := c.Transaction(t.Context(), e, in); err != nil {
		t.Fatal(err)
	}
	m := s.Messages()[0]
	want := smtp.Mail{Sender: "a@x.test", Size: in.Size, EightBit: true, UTF8: true, Ret: "FULL", EnvID: "id+2B1"}
	if !reflect.DeepEqual(m.Mail, want) || !reflect.DeepEqual(m.Recipients, e.Recipients) {
		t.Errorf("%+v", m)
	}
}

// TestHostileAddresses: nothing that could end the path or the line is written.
func TestHostileAddresses(t *testing.T) {
	s := smtptest.New(t)
	c := ready(t, s, smtp.ClientOptions{})
	before := s.Stats().Commands
	for _, a := range []string{
		"a@b\r\nRCPT TO:<evil@x>", "a\nb@c", "a\x00@b", "a>@b", "a<b@c", "a@b>", "a@b> SIZE=1", "a@b c", "@b", "a@", "a@b..c", "a@b\x7f",
		"#@[]", strings.Repeat("a", 1003), "\xff@b",
	} {
		for _, e := range []envelope.Envelope{envelope.To(a, "b@c"), envelope.To("b@c", a)} {
			var failed *smtp.Error
			if _, err := c.Transaction(t.Context(), e, content(sample)); !errors.As(err, &failed) || !errors.Is(err, smtp.ErrAddress) {
				t.Errorf("%q: %v", a, err)
			}
		}
	}
	if _, err := c.Transaction(t.Context(), envelope.To("a@b", "c@d"), content(sample)); err != nil {
		t.Fatal(err)
	}
	if n := s.Stats().Commands - before; n != 3 {
		t.Errorf("the server read %d commands, want 3", n)
	}
}

func TestMixedRecipients(t *testing.T) {
	for _, lockStep := range []bool{false, true} {
		s := smtptest.New(t,
			smtptest.Step{At: smtptest.Rcpt, Match: "no@y.test", Reply: "550 5.1.1 no such user"},
			smtptest.Step{At: smtptest.Rcpt, Match: "later@y.test", Reply: "450 4.2.1 busy"})
		c := ready(t, s, smtp.ClientOptions{LockStep: lockStep})
		out, err := c.Transaction(t.Context(), envelope.To("a@x.test", "no@y.test", "yes@y.test", "later@y.test"), content(sample))
		if err != nil {
			t.Fatal(err)
		}
		if out.Accepted(0) || !out.Accepted(1) || out.Recipients[0].String() != "550 5.1.1 no such user" || out.Recipients[2].Code != 450 {
			t.Errorf("%+v", out)
		}
		// All refused: the server that said 354 gets a lone dot, and the connection
		// goes on.
		out, err = c.Transaction(t.Context(), envelope.To("a@x.test", "no@y.test", "later@y.test"), content(sample))
		var failed *smtp.Error
		if !errors.As(err, &failed) || failed.Phase != smtp.RcptTo || failed.Perhaps || !c.Usable() || out.Recipients[0].Code != 550 {
			t.Errorf("%+v %v", out, err)
		}
		if _, err = c.Transaction(t.Context(), envelope.To("", "yes@y.test"), content("x\n")); err != nil {
			t.Error(err)
		}
		if n := len(s.Messages()); n != 2 {
			t.Errorf("%d messages", n)
		}
	}
}

type script struct {
	name    string
	steps   []smtptest.Step
	phase   smtp.Phase
	code    int // of the Error's Reply
	perhaps bool
	usable  bool
}

func at(a smtptest.At, s smtptest.Step) []smtptest.Step {
	s.At = a
	return []smtptest.Step{s}
}

func scripts() []script {
	var all []script
	ends := map[string]smtptest.Step{
		"closed": {End: smtptest.Close}, "reset": {End: smtptest.Abort}, "half-closed": {End: smtptest.HalfClose},
		"black hole": {End: smtptest.Hole}, "endless": {End: smtptest.Endless, Raw: "250-more\r\n"},
		"1 MiB":     {Raw: "250 " + strings.Repeat("x", 1<<20) + "\r\n", End: smtptest.Hole},
		"no LF":     {Raw: "250 and now", End: smtptest.Hole},
		"two codes": {Raw: "250-one\r\n550 two\r\n", End: smtptest.Hole},
		"no reply":  {Raw: "what is SMTP?\r\n", End: smtptest.Hole},
	}
	phases := map[smtptest.At]smtp.Phase{
		smtptest.Connect: smtp.Greeting, smtptest.Hello: smtp.Hello, smtptest.Mail: smtp.MailFrom, smtptest.Rcpt: smtp.RcptTo,
		smtptest.Data: smtp.Data, smtptest.Dot: smtp.Dot,
	}
	for where, phase := range phases {
		for name, end := range ends {
			all = append(all, script{name: where.String() + " " + name, steps: at(where, end), phase: phase, perhaps: phase == smtp.Dot})
		}
		all = append(all, script{name: where.String() + " 421", steps: at(where, smtptest.Step{Reply: "421 4.3.2 going down"}), phase: phase, code: 421})
		if phase < smtp.MailFrom {
			all = append(all, script{name: where.String() + " 554", steps: at(where, smtptest.Step{Reply: "554 5.7.1 no"}), phase: phase, code: 554})
			continue
		}
		if phase != smtp.Data && phase != smtp.Dot {
			all = append(all, script{name: where.String() + " 354", steps: at(where, smtptest.Step{Reply: "354 go"}), phase: phase, code: 354})
		} else if phase == smtp.Data {
			all = append(all, script{name: where.String() + " 250", steps: at(where, smtptest.Step{Reply: "250 ok"}), phase: phase, code: 250})
		}
		for _, text := range []string{"450 4.2.0 later", "550-5.7.1 no\n550 5.7.1 never"} {
			code := int(text[0]-'0')*100 + 50
			all = append(all, script{name: where.String() + " " + text[:3], steps: at(where, smtptest.Step{Reply: text}), phase: phase, code: code, usable: true})
		}
	}
	return all
}

// TestFaults breaks the conversation at every point in every way.
func TestFaults(t *testing.T) {
	for _, f := range scripts() {
		for _, lockStep := range []bool{false, true} {
			t.Run(f.name, func(t *testing.T) {
				t.Parallel()
				s := smtptest.New(t, f.steps...)
				conn, err := net.Dial("tcp", s.Addr().String())
				if err != nil && f.phase == smtp.Greeting {
					return // it was reset that early
				}
				if err != nil {
					t.Fatal(err)
				}
				c := smtp.NewClient(conn, smtp.ClientOptions{LockStep: lockStep, Timeouts: quick()})
				defer c.Close()
				err = converse(t.Context(), c, content(sample))
				var failed *smtp.Error
				if !errors.As(err, &failed) {
					t.Fatalf("no error: %v", err)
				}
				if failed.Phase != f.phase || failed.Perhaps != f.perhaps || failed.Reply.Code != f.code || c.Usable() != f.usable {
					t.Fatalf("%v: phase %v, perhaps %v, code %d, usable %v", err, failed.Phase, failed.Perhaps, failed.Reply.Code, c.Usable())
				}
				if len(failed.Reply.Text) > 64<<10 || strings.ContainsAny(failed.Error(), "\r\n") {
					t.Error("the reply is not bounded and clean")
				}
			})
		}
	}
}

// quick are timeouts for servers that never answer.
func quick() smtp.Timeouts {
	d := 300 * time.Millisecond
	return smtp.Timeouts{Greeting: d, Hello: d, Mail: d, Rcpt: d, Data: d, Write: d, Dot: d, Quit: d}
}

func converse(ctx context.Context, c *smtp.Client, in smtp.Content) error {
	if _, err := c.Greet(ctx); err != nil {
		return err
	}
	if _, err := c.Hello(ctx); err != nil {
		return err
	}
	_, err := c.Transaction(ctx, envelope.To("a@x.test", "b@y.test"), in)
	return err
}

// big is more than the buffers of a connection hold.
func big() string { return strings.Repeat("0123456789abcdef 0123456789abcdef\n", 1<<20) }

func TestFaultsInTheBody(t *testing.T) {
	text := big()
	for _, f := range []script{
		{name: "closed", steps: at(smtptest.Body, smtptest.Step{Bytes: 1000, End: smtptest.Close})},
		{name: "reset", steps: at(smtptest.Body, smtptest.Step{Bytes: 1000, End: smtptest.Abort})},
		{name: "never reads", steps: at(smtptest.Body, smtptest.Step{Bytes: 1000, End: smtptest.Stall})},
	} {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			s := smtptest.New(t, f.steps...)
			err := converse(t.Context(), dial(t, s, smtp.ClientOptions{Timeouts: quick()}), content(text))
			var failed *smtp.Error
			if !errors.As(err, &failed) || failed.Phase != smtp.Body || failed.Perhaps || len(s.Messages()) != 0 {
				t.Fatal(err, len(s.Messages()))
			}
		})
	}
}

// TestAnswerInTheBody: a server that does not wait for the end is heard.
func TestAnswerInTheBody(t *testing.T) {
	for end, phase := range map[smtptest.End]smtp.Phase{smtptest.Close: smtp.Body, smtptest.Hole: smtp.Dot} {
		s := smtptest.New(t, smtptest.Step{At: smtptest.Body, Bytes: 1000, Reply: "552 5.3.4 too big", End: end})
		c := dial(t, s, smtp.ClientOptions{})
		err := converse(t.Context(), c, content(big()))
		var failed *smtp.Error
		if !errors.As(err, &failed) || failed.Phase != phase || failed.Perhaps || failed.Reply.String() != "552 5.3.4 too big" {
			t.Errorf("%v: %v", end, err)
		}
	}
}

// TestLoneDot: a server that says 354 though it took nobody gets the shortest
// message there is, and nothing of ours.
func TestLoneDot(t *testing.T) {
	for _, refused := range []smtptest.At{smtptest.Mail, smtptest.Rcpt} {
		s := smtptest.New(t, smtptest.Step{At: refused, Times: 1, Reply: "550 5.7.1 no"}, smtptest.Step{At: smtptest.Data, Times: 1, Reply: "354 go ahead"})
		c := ready(t, s, smtp.ClientOptions{})
		var failed *smtp.Error
		if _, err := c.Transaction(t.Context(), envelope.To("a@b", "c@d"), content(sample)); !errors.As(err, &failed) || failed.Reply.Code != 550 || !c.Usable() {
			t.Fatal(err)
		}
		if _, err := c.Transaction(t.Context(), envelope.To("a@b", "c@d"), content(sample)); err != nil {
			t.Fatal(err)
		}
		all := s.Messages()
		if len(all) != 2 || len(all[0].Content) != 0 || len(all[0].Recipients) != 0 || string(all[1].Content) != sample {
			t.Errorf("%d messages, the first %+v", len(all), all[0])
		}
	}
}

func TestReset(t *testing.T) {
	s := smtptest.New(t, smtptest.Step{At: smtptest.Reset, Skip: 1, Times: 1, Reply: "500 5.5.1 what?"})
	c := ready(t, s, smtp.ClientOptions{})
	if err := c.Reset(t.Context()); err != nil || !c.Usable() {
		t.Error(err)
	}
	var failed *smtp.Error
	if err := c.Reset(t.Context()); !errors.As(err, &failed) || failed.Phase != smtp.After || failed.Error() != "after: 500 5.5.1 what?" || c.Usable() {
		t.Error(err)
	}
	if err := c.Quit(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestBadHello(t *testing.T) {
	s := smtptest.New(t)
	for _, name := range []string{"a b", "x\r\nMAIL FROM:<a@b>", strings.Repeat("x", 256), "\xff"} {
		c := dial(t, s, smtp.ClientOptions{Hello: name})
		if _, err := c.Greet(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Hello(t.Context()); err == nil || c.Usable() {
			t.Errorf("%q was said", name)
		}
	}
	if n := s.Stats().Commands; n != 0 {
		t.Errorf("%d commands", n)
	}
}

// TestContentFails: what cannot be read to its end is never finished.
func TestContentFails(t *testing.T) {
	for name, in := range map[string]smtp.Content{
		"error": {From: io.MultiReader(strings.NewReader(sample), failing{})},
		"short": {From: strings.NewReader(sample), Length: int64(len(sample)) + 1},
		"long":  {From: strings.NewReader(sample), Length: int64(len(sample)) - 1},
	} {
		s := smtptest.New(t)
		c := dial(t, s, smtp.ClientOptions{})
		err := converse(t.Context(), c, in)
		var failed *smtp.Error
		if !errors.As(err, &failed) || failed.Phase != smtp.Body || failed.Perhaps || !errors.Is(err, smtp.ErrContent) || c.Usable() {
			t.Fatal(name, err)
		}
		s.Close()
		if n := len(s.Messages()); n != 0 {
			t.Fatalf("%s: %d messages", name, n)
		}
	}
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, errors.New("EIO") }

func TestContextBreaksOff(t *testing.T) {
	s := smtptest.New(t, smtptest.Step{At: smtptest.Dot, End: smtptest.Hole})
	c := dial(t, s, smtp.ClientOptions{})
	ctx, cancel := context.WithCancelCause(t.Context())
	down := errors.New("shutting down")
	go func() {
		for len(s.Messages()) == 0 {
			time.Sleep(time.Millisecond)
		}
		cancel(down)
	}()
	err := converse(ctx, c, content(sample))
	var failed *smtp.Error
	if !errors.As(err, &failed) || failed.Phase != smtp.Dot || !failed.Perhaps || !errors.Is(err, down) || c.Usable() {
		t.Fatal(err)
	}
	if _, err = c.Transaction(t.Context(), envelope.To("a@b", "c@d"), content(sample)); err == nil {
		t.Fatal("a broken connection carries no message")
	}
}

// TestGoodbyeBetweenMessages: a 421 that came while the connection was idle is
// no answer to the next message.
func TestGoodbyeBetweenMessages(t *testing.T) {
	s := smtptest.New(t, smtptest.Step{At: smtptest.After, Reply: "421 4.4.2 idle for too long"})
	c := dial(t, s, smtp.ClientOptions{})
	if err := converse(t.Context(), c, content(sample)); err != nil {
		t.Fatal(err)
	}
	_, err := c.Transaction(t.Context(), envelope.To("a@b", "c@d"), content(sample))
	var failed *smtp.Error
	if !errors.As(err, &failed) || failed.Perhaps || c.Usable() || len(s.Messages()) != 1 {
		t.Fatal(err)
	}
}

func TestManyRecipients(t *testing.T) {
	s := smtptest.New(t)
	c := ready(t, s, smtp.ClientOptions{})
	e := envelope.To("a@x.test")
	for range 1234 {
		e.Recipients = append(e.Recipients, envelope.Recipient{Address: strings.Repeat("b", 200) + "@y.test"})
	}
	if _, err := c.Transaction(t.Context(), e, content(sample)); err != nil {
		t.Fatal(err)
	}
	if n := len(s.Messages()[0].Recipients); n != 1234 {
		t.Error(n)
	}
}
