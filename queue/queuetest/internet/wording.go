package internet

import "github.com/postern-mta/postern/pipeline/smtp/smtptest"

// Wording is in which words and at which point a provider or a program says no.
type Wording struct {
	Name string
	// Full: too many connections at a time. Fast: too many messages in a time. Blocked:
	// nothing from here for a while. Used: the connection has carried enough. Those that
	// are not known are zero.
	Full, Fast, Blocked, Used No
}

// Wordings are those of providers and programs that many letters go to. Addresses
// in them are from the documentation networks.
func Wordings() []Wording {
	const from = "192.0.2.1"
	at := func(at smtptest.At, text string) No { return No{At: at, Reply: text} }
	return []Wording{
		{
			Name: "google",
			Fast: at(smtptest.Dot, "421 4.7.28 ["+from+"      15] Our system has detected an unusual rate of\n421 4.7.28 unsolicited mail originating from your IP address. To protect our\n421 4.7.28 users from spam, mail sent from your IP address has been temporarily\n421 4.7.28 rate limited. gsmtp"),
		},
		{
			Name: "office365",
			Full: at(smtptest.Connect, "421 4.3.2 The maximum number of concurrent connections per resource forest has exceeded a limit, closing transmission channel"),
			Fast: at(smtptest.Rcpt, "451 4.7.500 Server busy. Please try again later from ["+from+"]. (S77714)"),
		},
		{
			Name: "outlook.com",
			Fast: at(smtptest.Mail, "421 RP-001 (SNT004-OMC1F23) Unfortunately, some messages from "+from+" weren't sent. Please try again. We have limits for how many messages can be sent per hour and per day."),
		},
		{
			Name:    "yahoo",
			Blocked: at(smtptest.Mail, "421 4.7.0 [TSS04] Messages from "+from+" temporarily deferred due to unexpected volume or user complaints - 4.16.55.1"),
			Used:    at(smtptest.Mail, "421 Max message per connection reached, closing transmission channel"),
		},
		{
			Name: "godaddy",
			Full: at(smtptest.Connect, "421 Connection refused, too many sessions from "+from+". Please lower the number of concurrent sessions. IB007"),
		},
		{
			Name: "exim",
			Full: at(smtptest.Connect, "421 mx.example.net: Too many concurrent SMTP connections; please try again later"),
		},
		{
			Name: "postfix",
			Full: at(smtptest.Connect, "421 4.7.0 mx.example.net Error: too many connections from "+from),
			Fast: at(smtptest.Mail, "450 4.7.1 Error: too much mail from "+from),
		},
		{
			Name: "sendmail",
			Full: at(smtptest.Connect, "421 4.7.0 mx.example.net Too many open connections from "+from),
			Fast: at(smtptest.Connect, "421 4.7.0 mx.example.net Connection rate limit exceeded."),
		},
		{
			Name: "at RCPT",
			Full: at(smtptest.Rcpt, "451 4.7.1 Too many simultaneous connections from your host, try later"),
		},
		{
			Name: "without a word",
			Full: No{At: smtptest.Connect, End: smtptest.Close},
		},
	}
}

// WordingOf is the one of that name; it panics if there is none.
func WordingOf(name string) Wording {
	for _, w := range Wordings() {
		if w.Name == name {
			return w
		}
	}
	panic("internet: no wording is called " + name)
}
