package smtp_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/emersion/go-sasl"

	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/smtp"
	"github.com/postern-mta/postern/pipeline/smtp/smtptest"
)

// late is PLAIN without an initial response.
type late struct{ sasl.Client }

func (l late) Start() (string, []byte, error) { return "PLAIN", nil, nil }
func (l late) Next([]byte) ([]byte, error)    { return []byte("\x00joe\x00secret"), nil }

// silent says an empty initial response.
type silent struct{ late }

func (silent) Start() (string, []byte, error) { return "PLAIN", []byte{}, nil }

// choosy does not like what it hears.
type choosy struct{ late }

func (choosy) Next([]byte) ([]byte, error) { return nil, errors.New("no") }

func TestLogin(t *testing.T) {
	long := strings.Repeat("s", 700)
	plain := sasl.NewPlainClient("", "joe", "secret")
	for _, c := range []struct {
		name      string
		mechanism sasl.Client
		step      smtptest.Step
		want      string // the error
		usable    bool
	}{
		{name: "PLAIN", mechanism: plain, usable: true},
		{name: "PLAIN, asked", mechanism: late{}, usable: true},
		{name: "PLAIN, empty first", mechanism: silent{}, usable: true},
		{name: "PLAIN, too long for a command", mechanism: sasl.NewPlainClient("", "long", long), usable: true},
		{name: "OAUTHBEARER", mechanism: sasl.NewOAuthBearerClient(&sasl.OAuthBearerOptions{Username: "joe", Token: "secret"}), usable: true},
		{name: "wrong", mechanism: sasl.NewPlainClient("", "joe", "wrong"), want: "auth: 535 5.7.8 who are you?", usable: true},
		{name: "wrong bearer", mechanism: sasl.NewOAuthBearerClient(&sasl.OAuthBearerOptions{Username: "joe", Token: "wrong"}), want: "auth: 535 5.7.8", usable: true},
		{name: "unknown mechanism", mechanism: sasl.NewExternalClient("joe"), want: "auth: 504", usable: true},
		{name: "temporary", mechanism: plain, step: smtptest.Step{At: smtptest.Auth, Reply: "454 4.7.0 later"}, want: "auth: 454", usable: true},
		{name: "421", mechanism: plain, step: smtptest.Step{At: smtptest.Auth, Reply: "421 4.7.0 too many"}, want: "auth: 421"},
		{name: "closed", mechanism: plain, step: smtptest.Step{At: smtptest.Auth, End: smtptest.Close}, want: "auth: unexpected EOF"},
		{name: "out of place", mechanism: plain, step: smtptest.Step{At: smtptest.Auth, Reply: "250 fine"}, want: "auth: AUTH was answered with 250"},
		{name: "not base64", mechanism: late{}, step: smtptest.Step{At: smtptest.Auth, Reply: "334 ???"}, want: "not base64", usable: true},
		{name: "the mechanism gives up", mechanism: choosy{}, want: "SASL: no", usable: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := smtptest.Options{Users: map[string]string{"joe": "secret", "long": long}, Logins: []string{"PLAIN", "OAUTHBEARER"}}
			if c.step.At == smtptest.Auth {
				o.Steps = []smtptest.Step{c.step}
			}
			s := smtptest.Start(t, o)
			client := ready(t, s, smtp.ClientOptions{})
			err := client.Login(t.Context(), c.mechanism)
			if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) || client.Usable() != c.usable {
				t.Fatalf("%v, usable %v", err, client.Usable())
			}
			if e := new(smtp.Error); err != nil && (!errors.As(err, &e) || e.Phase != smtp.Login || strings.Contains(err.Error(), "secret")) {
				t.Errorf("%+v", e)
			}
			if !c.usable {
				return
			}
			if _, err := client.Transaction(t.Context(), envelope.To("a@x.test", "b@y.test"), content(sample)); err != nil || (s.Messages()[0].User != "") != (c.want == "") {
				t.Errorf("%v, user %q", err, s.Messages()[0].User)
			}
		})
	}
}

// TestEndlessLogin: a server that asks for ever is left.
func TestEndlessLogin(t *testing.T) {
	s := smtptest.Start(t, smtptest.Options{Steps: []smtptest.Step{{At: smtptest.Auth, Raw: strings.Repeat("334 \r\n", 50)}}})
	c := ready(t, s, smtp.ClientOptions{})
	if err := c.Login(t.Context(), late{}); err == nil || c.Usable() {
		t.Error(err, c.Usable())
	}
}
