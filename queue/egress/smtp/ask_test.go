package smtp_test

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/postern-mta/postern/pipeline/resolve"
	"github.com/postern-mta/postern/pipeline/smtp/smtptest"
	"github.com/postern-mta/postern/queue/egress/smtp"
)

// TestAsk: the server answers, and gets no message.
func TestAsk(t *testing.T) {
	n := newInternet(t)
	n.mx["d.test"] = exchangers(resolve.Host{Name: "a.test", Preference: 1}, resolve.Host{Name: "b.test", Preference: 2})
	n.refuse("a.test", "192.0.2.1")
	s := n.serve("b.test", "192.0.2.2", smtptest.Step{At: smtptest.Rcpt, Match: "no@d.test", Reply: "550 5.1.1 no"})
	n.serve("e.test", "192.0.2.3", says(smtptest.Mail, "550 5.7.1 no reports")...)
	n.serve("f.test", "192.0.2.4", at(smtptest.Rcpt, smtptest.Close)...)
	x := n.exit(smtp.Options{})
	got, err := x.Ask(t.Context(), "d.test", "no@d.test", "yes@d.test")
	if err != nil || len(got) != 2 || got[0].Code != 550 || got[1].Code != 250 {
		t.Errorf("%v %v", got, err)
	}
	for domain, want := range map[string]string{"e.test": "550 5.7.1 no reports", "f.test": "EOF", "gone.test": ""} {
		if got, err := x.Ask(t.Context(), domain, "r@"+domain); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v %v", domain, got, err)
		}
	}
	if _, err := x.Ask(t.Context(), "d.test", "a\nb@d.test"); err == nil {
		t.Error("a line end in an address was sent")
	}
	if _, err := x.AskFrom(t.Context(), smtp.Source{Name: "out", IPv6: netip.MustParseAddr("2001:db8::1")}, "d.test", "yes@d.test"); !errors.As(err, new(*smtp.SourceError)) {
		t.Errorf("from a source of another family: %v", err)
	}
	if st := s.Stats(); st.Messages != 0 {
		t.Errorf("%+v", st)
	}
	for _, h := range []smtp.Hop{{Transport: smtp.QMTP, Host: "192.0.2.2"}, {Transport: smtp.Discard}} {
		if _, err := n.exit(smtp.Options{Routes: to(h)}).Ask(t.Context(), "d.test", "a@d.test"); !errors.Is(err, smtp.ErrCannotAsk) {
			t.Errorf("%v: %v", h, err)
		}
	}
}
