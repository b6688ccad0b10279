package smtp_test

import (
	"errors"
	"testing"

	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/smtp"
	"github.com/postern-mta/postern/pipeline/smtp/smtptest"
)

// TestAsk: questions send no message, and a message may follow them.
func TestAsk(t *testing.T) {
	s := smtptest.New(t, smtptest.Step{At: smtptest.Rcpt, Match: "no@y.test", Reply: "550 5.1.1 no"}, smtptest.Step{At: smtptest.Rcpt, Match: "bye@y.test", Reply: "421 4.3.2 bye"})
	c := ready(t, s, smtp.ClientOptions{})
	for range 2 {
		if got, err := c.Ask(t.Context(), "no@y.test", "yes@y.test"); err != nil || got[0].Code != 550 || got[1].Code != 250 {
			t.Fatalf("%v %v", got, err)
		}
	}
	if _, err := c.Ask(t.Context(), "a>\r\nDATA@y.test"); !errors.Is(err, smtp.ErrAddress) || !c.Usable() {
		t.Errorf("%v", err)
	}
	if _, err := c.Transaction(t.Context(), envelope.To("a@x.test", "yes@y.test"), content(sample)); err != nil {
		t.Error(err)
	}
	if m := s.Messages(); len(m) != 1 || len(m[0].Recipients) != 1 {
		t.Errorf("%+v", m)
	}
	var failed *smtp.Error
	if got, err := c.Ask(t.Context(), "yes@y.test", "bye@y.test"); !errors.As(err, &failed) || failed.Reply.Code != 421 || len(got) != 2 || c.Usable() {
		t.Errorf("%v %v", got, err)
	}
	if _, err := c.Ask(t.Context(), "yes@y.test"); err == nil {
		t.Error("a connection that is of no use was asked over")
	}
}
