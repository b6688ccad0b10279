package smtp_test

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/postern-mta/postern/pipeline/reply"
	wire "github.com/postern-mta/postern/pipeline/smtp"
	"github.com/postern-mta/postern/pipeline/smtp/smtptest"
	"github.com/postern-mta/postern/queue/egress/smtp"
)

func TestLogins(t *testing.T) {
	ca := smtptest.NewAuthority(t)
	password := smtp.Credentials{User: "joe", Password: "secret"}
	clear := smtp.Credentials{User: "joe", Password: "secret", Clear: true}
	for _, c := range []struct {
		name    string
		login   smtp.Credentials
		offered []string
		noTLS   bool
		step    smtptest.Step
		want    string
	}{
		{name: "PLAIN", login: password, offered: []string{"PLAIN"}, want: "250"},
		{name: "LOGIN", login: password, offered: []string{"LOGIN"}, want: "250"},
		{name: "CRAM-MD5", login: password, offered: []string{"CRAM-MD5"}, want: "250"},
		{name: "OAUTHBEARER", login: smtp.Credentials{User: "joe", Token: "secret"}, offered: []string{"PLAIN", "OAUTHBEARER"}, want: "250"},
		{name: "XOAUTH2", login: smtp.Credentials{User: "joe", Token: "secret"}, offered: []string{"PLAIN", "XOAUTH2"}, want: "250"},
		{name: "chosen", login: smtp.Credentials{User: "joe", Password: "secret", Mechanisms: []string{"LOGIN"}}, offered: []string{"PLAIN", "LOGIN"}, want: "250"},
		{name: "none that fits", login: password, offered: []string{"NTLM", "GSSAPI"}, want: "451 4.7.8"},
		{name: "none at all", login: password, want: "451 4.7.8"},
		{name: "none for a token", login: smtp.Credentials{User: "joe", Token: "secret"}, offered: []string{"PLAIN"}, want: "451 4.7.8"},
		{name: "wrong password", login: smtp.Credentials{User: "joe", Password: "Wrong"}, offered: []string{"PLAIN"}, want: "451 4.7.8"},
		{name: "wrong token", login: smtp.Credentials{User: "joe", Token: "Wrong"}, offered: []string{"XOAUTH2"}, want: "451 4.7.8"},
		{name: "temporary trouble", login: password, offered: []string{"PLAIN"}, step: smtptest.Step{At: smtptest.Auth, Reply: "454 4.7.0 later"}, want: "454 4.7.0"},
		{name: "lost", login: password, offered: []string{"PLAIN"}, step: smtptest.Step{At: smtptest.Auth, End: smtptest.Close}, want: "451 4.7.8"},
		{name: "not in clear", login: password, offered: []string{"PLAIN"}, noTLS: true, want: "451 4.7.4"},
		{name: "in clear if allowed", login: clear, offered: []string{"PLAIN"}, noTLS: true, want: "250"},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := newInternet(t)
			o := smtptest.Options{Users: map[string]string{"joe": "secret"}, Logins: c.offered}
			if !c.noTLS {
				o.TLS = smtptest.TLS(ca.Issue(t, time.Time{}, "d.test"))
			}
			if c.step.At == smtptest.Auth {
				o.Steps = []smtptest.Step{c.step}
			}
			s := n.put("d.test", "192.0.2.1", o)
			n.put("d.test", "192.0.2.2", o) // knows the same users
			var log bytes.Buffer
			x := n.exit(smtp.Options{
				Login: func(string, string) *smtp.Credentials { return &c.login }, Log: slog.New(slog.NewTextHandler(&log, nil)),
			})
			r := one(t, x, job("d.test", "r@d.test"))
			if !strings.HasPrefix(r.Reply.SMTP(), c.want) {
				t.Fatalf("%s %+v", r.Reply.SMTP(), r)
			}
			if c.want == "250" {
				if s.Messages()[0].User != "joe" {
					t.Error("not logged in")
				}
				return
			}
			if r.Reply.Class != reply.Temporary || len(s.Messages()) > 0 {
				t.Errorf("%+v", r)
			}
			if c.noTLS {
				return
			}
			if r.Phase != wire.Login || len(n.dials()) != 1 || strings.Count(log.String(), "level=ERROR") != 1 || !strings.Contains(log.String(), "user=joe") ||
				strings.Contains(log.String(), "secret") || strings.Contains(log.String(), "Wrong") {
				t.Errorf("%v, %d dials: %s", r.Phase, len(n.dials()), log.String())
			}
		})
	}
}

// TestNothingInClear: where TLS stops working, no login follows in clear.
func TestNothingInClear(t *testing.T) {
	ca := smtptest.NewAuthority(t)
	n := newInternet(t)
	s := n.put("d.test", "192.0.2.1", smtptest.Options{
		TLS: smtptest.TLS(ca.Issue(t, time.Time{}, "d.test")), Logins: []string{"PLAIN", "CRAM-MD5"}, Users: map[string]string{"joe": "secret"},
		Steps: []smtptest.Step{{At: smtptest.Handshake, End: smtptest.Close}},
	})
	for _, level := range []smtp.TLSLevel{smtp.Opportunistic, smtp.NoTLS} {
		x := n.exit(smtp.Options{
			TLS: fixed(smtp.TLSPolicy{Level: level}), Login: func(string, string) *smtp.Credentials { return &smtp.Credentials{User: "joe", Password: "secret"} },
		})
		if r := one(t, x, job("d.test", "r@d.test")); r.Reply.Class != reply.Temporary || len(s.Messages()) > 0 {
			t.Errorf("%v: %+v", level, r)
		}
	}
}
