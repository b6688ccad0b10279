package smtp_test

import (
	"errors"
	"testing"

	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/smtp"
	"github.com/postern-mta/postern/pipeline/smtp/smtptest"
)

// TestLMTP: each recipient that was accepted has an answer of his own (RFC 2033
// §4.2).
func TestLMTP(t *testing.T) {
	for _, o := range []smtp.ClientOptions{{LMTP: true}, {LMTP: true, LockStep: true}, {LMTP: true, Chunking: true}} {
		s := smtptest.New(t,
			smtptest.Step{At: smtptest.Rcpt, Match: "no@y.test", Reply: "550 5.1.1 no such user"},
			smtptest.Step{At: smtptest.Dot, Match: "full@y.test", Reply: "452 4.2.2 full"},
			smtptest.Step{At: smtptest.Dot, Match: "never@y.test", Reply: "552 5.2.2 full for good"})
		c := ready(t, s, o)
		out, err := c.Transaction(t.Context(), envelope.To("a@x.test", "full@y.test", "no@y.test", "yes@y.test", "never@y.test"), content(sample))
		if err != nil || out.Recipients[1].Code != 550 {
			t.Fatalf("%+v: %+v %v", o, out, err)
		}
		for i, want := range []int{452, 0, 250, 552} {
			if out.Finals[i].Code != want {
				t.Errorf("%+v: recipient %d was answered %v", o, i, out.Finals[i])
			}
		}
		out, err = c.Transaction(t.Context(), envelope.To("a@x.test", "full@y.test", "never@y.test"), content(sample))
		var failed *smtp.Error
		if !errors.As(err, &failed) || failed.Phase != smtp.Dot || failed.Perhaps || out.Finals[0].Code != 452 || !c.Usable() {
			t.Errorf("%+v: %+v %v", o, out, err)
		}
		if _, err = c.Transaction(t.Context(), envelope.To("", "yes@y.test"), content("x\n")); err != nil {
			t.Error(err)
		}
		if m := s.Messages(); len(m) != 3 || len(m[0].Recipients) != 1 || m[0].Recipients[0].Address != "yes@y.test" || len(m[1].Recipients) != 0 {
			t.Errorf("%+v", m)
		}
	}
}

// TestLMTPAnswersMissing: what was answered stands, and the rest is in doubt.
func TestLMTPAnswersMissing(t *testing.T) {
	for name, step := range map[string]smtptest.Step{
		"closed":   {End: smtptest.Close},
		"reset":    {End: smtptest.Abort, Reply: "250 ok"},
		"hole":     {End: smtptest.Hole},
		"nonsense": {Raw: "354 go ahead\r\n"},
		"garbage":  {Raw: "K\r\n"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			step.At, step.Match = smtptest.Dot, "b@y.test"
			s := smtptest.New(t, step)
			c := ready(t, s, smtp.ClientOptions{LMTP: true, Timeouts: quick()})
			out, err := c.Transaction(t.Context(), envelope.To("a@x.test", "a@y.test", "b@y.test", "c@y.test"), content(sample))
			var failed *smtp.Error
			if !errors.As(err, &failed) || !failed.Perhaps || failed.Phase != smtp.Dot || c.Usable() {
				t.Fatalf("%+v %v", out, err)
			}
			// A reset may take an answer along that was on its way.
			if name != "reset" && out.Finals[0].Code != 250 || out.Finals[2].Code != 0 {
				t.Errorf("%+v", out.Finals)
			}
		})
	}
}

// TestLMTPIsNotSMTP: a server that does not know LHLO is not spoken to otherwise.
func TestLMTPIsNotSMTP(t *testing.T) {
	s := smtptest.New(t, smtptest.Step{At: smtptest.Hello, Match: "LHLO", Reply: "500 5.5.1 what?"})
	c := dial(t, s, smtp.ClientOptions{LMTP: true})
	if _, err := c.Greet(t.Context()); err != nil {
		t.Fatal(err)
	}
	if rep, err := c.Hello(t.Context()); err == nil || rep.Code != 500 || c.Usable() {
		t.Errorf("%v %v", rep, err)
	}
}
