package smtp_test

import (
	"context"
	"crypto/tls"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/smtp"
	"github.com/postern-mta/postern/pipeline/smtp/smtptest"
)

// under starts a server with TLS, and gives what a client trusts it by.
func under(t testing.TB, o smtptest.Options) (*smtptest.Server, *tls.Config) {
	t.Helper()
	a := smtptest.NewAuthority(t)
	if o.TLS == nil {
		o.TLS = smtptest.TLS(a.Issue(t, time.Time{}, "sink.test"))
	}
	return smtptest.Start(t, o), &tls.Config{RootCAs: a.Pool(), ServerName: "sink.test"}
}

func TestStartTLS(t *testing.T) {
	s, config := under(t, smtptest.Options{Secure: []string{"REQUIRETLS"}})
	c := ready(t, s, smtp.ClientOptions{Hello: "us.test"})
	if has := c.Capabilities().Extensions; !has.Has(smtp.StartTLS) || has.Has(smtp.RequireTLS) || c.TLS() != nil {
		t.Fatal(has)
	}
	if err := c.StartTLS(t.Context(), config); err != nil {
		t.Fatal(err)
	}
	if c.Usable() || c.Capabilities().Extensions != 0 || c.TLS() == nil || c.TLS().Version != tls.VersionTLS13 {
		t.Fatal("what was offered in clear is still believed")
	}
	if _, err := c.Hello(t.Context()); err != nil {
		t.Fatal(err)
	}
	if has := c.Capabilities().Extensions; has.Has(smtp.StartTLS) || !has.Has(smtp.RequireTLS) {
		t.Error(has)
	}
	e := envelope.To("a@x.test", "b@y.test")
	e.RequireTLS = true
	for range 2 {
		if out, err := c.Transaction(t.Context(), e, content(sample)); err != nil || !out.Accepted(0) {
			t.Fatal(out, err)
		}
	}
	if err := c.StartTLS(t.Context(), config); err == nil {
		t.Error("TLS within TLS")
	}
	if err := c.Quit(t.Context()); err != nil {
		t.Error(err)
	}
	for _, m := range s.Messages() {
		if m.TLS == nil || string(m.Content) != sample || !m.Mail.RequireTLS {
			t.Errorf("%+v", m)
		}
	}
}

func TestImplicitTLS(t *testing.T) {
	s, config := under(t, smtptest.Options{Implicit: true})
	c := dial(t, s, smtp.ClientOptions{})
	if err := c.Handshake(t.Context(), config); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Greet(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Hello(t.Context()); err != nil {
		t.Fatal(err)
	}
	if c.Capabilities().Extensions.Has(smtp.StartTLS) {
		t.Error("STARTTLS within TLS")
	}
	if _, err := c.Transaction(t.Context(), envelope.To("a@x.test", "b@y.test"), content(sample)); err != nil || s.Messages()[0].TLS == nil {
		t.Error(err)
	}
}

// TestTLSFaults is what may go wrong between STARTTLS and the end of the
// handshake: an error of phase starttls each time, in good time, and the
// connection of use only after a refusal in words.
func TestTLSFaults(t *testing.T) {
	alert := "\x15\x03\x03\x00\x02\x02\x28"
	a := smtptest.NewAuthority(t)
	for _, c := range []struct {
		name   string
		step   smtptest.Step
		server tls.Certificate
		want   string
		usable bool
	}{
		{name: "454", step: smtptest.Step{At: smtptest.StartTLS, Reply: "454 4.7.0 not now"}, want: "454 4.7.0 not now", usable: true},
		{name: "502", step: smtptest.Step{At: smtptest.StartTLS, Reply: "502 5.5.1 what?"}, want: "502 5.5.1 what?", usable: true},
		{name: "421", step: smtptest.Step{At: smtptest.StartTLS, Reply: "421 4.3.2 down"}, want: "421 4.3.2 down"},
		{name: "closed", step: smtptest.Step{At: smtptest.StartTLS, End: smtptest.Close}, want: "unexpected EOF"},
		{name: "reset", step: smtptest.Step{At: smtptest.StartTLS, End: smtptest.Abort}, want: "reset by peer"},
		{name: "no answer", step: smtptest.Step{At: smtptest.StartTLS, End: smtptest.Hole}, want: "i/o timeout"},
		{name: "injected", step: smtptest.Step{At: smtptest.StartTLS, Raw: "220 go\r\n250 AUTH PLAIN\r\n"}, want: smtp.ErrInjected.Error()},
		{name: "banner again", step: smtptest.Step{At: smtptest.StartTLS, Raw: "220 go\r\n220 sink.test ESMTP\r\n"}, want: smtp.ErrInjected.Error()},
		{name: "garbage", step: smtptest.Step{At: smtptest.Handshake, Raw: "what is TLS?\r\n", End: smtptest.Hole}, want: "first record does not look like a TLS handshake"},
		{name: "alert", step: smtptest.Step{At: smtptest.Handshake, Raw: alert, End: smtptest.Close}, want: "handshake failure"},
		{name: "closed in the handshake", step: smtptest.Step{At: smtptest.Handshake, End: smtptest.Close}, want: "EOF"},
		{name: "reset in the handshake", step: smtptest.Step{At: smtptest.Handshake, End: smtptest.Abort}, want: "reset by peer"},
		{name: "hangs in the handshake", step: smtptest.Step{At: smtptest.Handshake, End: smtptest.Hole}, want: "i/o timeout"},
		{name: "cut off", step: smtptest.Step{At: smtptest.Handshake, Bytes: 100, End: smtptest.Close}, want: "EOF"},
		{name: "stops half-way", step: smtptest.Step{At: smtptest.Handshake, Bytes: 100, End: smtptest.Hole}, want: "i/o timeout"},
		{name: "garbage half-way", step: smtptest.Step{At: smtptest.Handshake, Bytes: 100, Raw: strings.Repeat("\x00", 1<<17), End: smtptest.Close}, want: "tls:"},
		{name: "expired", server: a.Issue(t, time.Now().Add(-time.Minute), "sink.test"), want: "expired"},
		{name: "self-signed", server: (*smtptest.Authority)(nil).Issue(t, time.Time{}, "sink.test"), want: "unknown authority"},
		{name: "another's name", server: a.Issue(t, time.Time{}, "other.test"), want: "other.test"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			o := smtptest.Options{TLS: smtptest.TLS(a.Issue(t, time.Time{}, "sink.test")), Steps: []smtptest.Step{c.step}}
			if c.server.PrivateKey != nil {
				o.TLS, o.Steps = smtptest.TLS(c.server), nil
			}
			s := smtptest.Start(t, o)
			client := ready(t, s, smtp.ClientOptions{Timeouts: smtp.Timeouts{Secure: 300 * time.Millisecond}})
			err := client.StartTLS(t.Context(), &tls.Config{RootCAs: a.Pool(), ServerName: "sink.test"})
			var e *smtp.Error
			if !errors.As(err, &e) || e.Phase != smtp.Secure || !strings.Contains(err.Error(), c.want) || client.Usable() != c.usable || client.TLS() != nil {
				t.Errorf("%v, usable %v", err, client.Usable())
			}
			if c.usable {
				if _, err := client.Transaction(t.Context(), envelope.To("a@x.test", "b@y.test"), content(sample)); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

func TestHandshakeEndsWithContext(t *testing.T) {
	s, config := under(t, smtptest.Options{Steps: []smtptest.Step{{At: smtptest.Handshake, End: smtptest.Hole}}})
	c := ready(t, s, smtp.ClientOptions{})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := c.StartTLS(ctx, config); !errors.Is(err, context.DeadlineExceeded) || c.Usable() {
		t.Error(err)
	}
}

// TestEndOfTLS: an end of the connection without close_notify counts for what the
// server had said by then, and for no more.
func TestEndOfTLS(t *testing.T) {
	for _, c := range []struct {
		at      smtptest.At
		perhaps bool
		want    int
	}{{smtptest.Dot, true, 0}, {smtptest.After, false, 250}} {
		s, config := under(t, smtptest.Options{Steps: []smtptest.Step{{At: c.at, End: smtptest.Close}}})
		client := ready(t, s, smtp.ClientOptions{})
		if err := client.StartTLS(t.Context(), config); err != nil {
			t.Fatal(err)
		}
		if _, err := client.Hello(t.Context()); err != nil {
			t.Fatal(err)
		}
		out, err := client.Transaction(t.Context(), envelope.To("a@x.test", "b@y.test"), content(sample))
		var e *smtp.Error
		errors.As(err, &e)
		if out.Final.Code != c.want || (e != nil) != c.perhaps || e != nil && !e.Perhaps {
			t.Errorf("%v: %+v %v", c.at, out, err)
		}
	}
}

func TestTransactionByChunk(t *testing.T) {
	for _, c := range []struct {
		name     string
		text     string
		size     int64 // 0: what is right
		steps    []smtptest.Step
		lockStep bool
		want     string // the error
		chunking bool   // the error is ErrChunking
	}{
		{name: "one message"},
		{name: "in lock step", lockStep: true},
		{name: "dots stay", text: "A: b\n\n.\n..\n.x\n"},
		{name: "large", text: "A: b\n\n" + strings.Repeat("0123456789abcdef\n", 1<<15)},
		{name: "no last line end", text: "A: b\n\nc", size: 11},
		{name: "a bare CR does not fit", text: "A: b\n\nc\rd\n", size: 13, want: "chunks", chunking: true},
		{name: "a NUL leaves a gap", text: "A: b\n\nc\x00d\n", size: 13, want: "chunks", chunking: true},
		{name: "longer than told", size: 20, want: "chunks", chunking: true},
		{name: "shorter than told", size: 2000, want: "chunks", chunking: true},
		{name: "unknown", steps: []smtptest.Step{{At: smtptest.Data, Match: "BDAT", Reply: "500 5.5.1 what?"}}, want: "500", chunking: true},
		{name: "refused", steps: []smtptest.Step{{At: smtptest.Dot, Reply: "554 5.6.0 spam"}}, want: "dot: 554"},
		{name: "deferred", steps: []smtptest.Step{{At: smtptest.Data, Reply: "451 4.3.0 later"}}, want: "dot: 451"},
		{name: "lost", steps: []smtptest.Step{{At: smtptest.Dot, End: smtptest.Close}}, want: "may have been delivered"},
		{name: "nobody accepted", steps: []smtptest.Step{{At: smtptest.Rcpt, Reply: "550 5.1.1 who?"}}, want: "rcpt: 550"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.text == "" {
				c.text = sample
			}
			message := content(c.text)
			if message.Length, message.Size = 0, c.size; c.size == 0 {
				message.Size = content(c.text).Size
			}
			s := smtptest.New(t, c.steps...)
			client := ready(t, s, smtp.ClientOptions{Chunking: true, LockStep: c.lockStep})
			out, err := client.Transaction(t.Context(), envelope.To("a@x.test", "b@y.test"), message)
			if c.want == "" {
				if err != nil || out.Data.Code != 0 || out.Final.Code != 250 || strings.TrimSuffix(string(s.Messages()[0].Content), "\n") != strings.TrimSuffix(c.text, "\n") {
					t.Fatal(out, err)
				}
				if _, err := client.Transaction(t.Context(), envelope.To("a@x.test", "b@y.test"), content(sample)); err != nil {
					t.Error(err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), c.want) || errors.Is(err, smtp.ErrChunking) != c.chunking || c.chunking && client.Usable() {
				t.Errorf("%v, usable %v", err, client.Usable())
			}
			s.Close()
			if c.chunking && len(s.Messages()) > 0 {
				t.Errorf("%+v", s.Messages()[0])
			}
		})
	}
}

// TestWithoutChunks: who does not ask for chunks, or does not know how long the
// message is, sends DATA.
func TestWithoutChunks(t *testing.T) {
	for _, chunking := range []bool{false, true} {
		s := smtptest.New(t)
		c := ready(t, s, smtp.ClientOptions{Chunking: chunking})
		message := content(sample)
		if chunking {
			message.Size = 0
		}
		if out, err := c.Transaction(t.Context(), envelope.To("a@x.test", "b@y.test"), message); err != nil || out.Data.Code != 354 {
			t.Error(out, err)
		}
	}
}

func TestCapabilitiesOfLogins(t *testing.T) {
	s := smtptest.Start(t, smtptest.Options{Logins: []string{"PLAIN", "LOGIN"}})
	if got := ready(t, s, smtp.ClientOptions{}).Capabilities().Auth; !slices.Equal(got, []string{"PLAIN", "LOGIN"}) {
		t.Error(got)
	}
}
