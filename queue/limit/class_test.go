package limit

import (
	"strings"
	"testing"
	"time"
)

// answersOfServers are answers as servers give them, and what they mean.
var answersOfServers = []struct {
	code     int
	enhanced string
	text     string
	early    bool
	want     Class
}{
	{421, "4.7.0", "mx.example Error: too many connections from 192.0.2.1", true, Count},
	{421, "", "Too many concurrent SMTP connections; please try again later.", true, Count},
	{421, "4.4.2", "Maximum number of simultaneous connections exceeded", true, Count},
	{421, "", "service not available", true, Count},
	{421, "4.3.2", "Connection rate limit exceeded.", true, Speed},
	{450, "4.7.1", "Error: too much mail from 192.0.2.1", false, Speed},
	{421, "4.7.28", "Gmail has detected an unusual rate of unsolicited mail originating from your IP address.", false, Speed},
	{450, "4.2.1", "The user you are trying to contact is receiving mail at a rate that prevents additional messages from being delivered.", false, Nothing},
	{452, "4.2.2", "The email account that you tried to reach is over quota.", false, Nothing},
	{451, "4.7.500", "Server busy. Please try again later from [192.0.2.1]. (S77719)", false, Speed},
	{421, "", "RP-001 Unfortunately, some messages from 192.0.2.1 weren't sent. The mail server IP connecting has exceeded the rate limit allowed.", true, Speed},
	{421, "4.7.0", "[TSS04] Messages from 192.0.2.1 temporarily deferred due to unexpected volume or user complaints", true, Blocked},
	{421, "4.7.1", "[TS03] All messages from 192.0.2.1 will be permanently deferred", true, Blocked},
	{550, "5.7.1", "Unfortunately, messages from [192.0.2.1] weren't sent. Please contact your Internet service provider since part of their network is on our block list (S3150).", false, Blocked},
	{451, "4.7.1", "Greylisting in action, please come back later", false, Greylisted},
	{450, "4.2.0", "Recipient address rejected: Greylisted, see http://postgrey.example/", false, Greylisted},
	{550, "5.1.1", "User unknown", false, Nothing},
	{250, "2.0.0", "rate limit of the ok", false, Nothing},
	{421, "4.4.2", "mx.example Error: timeout exceeded", false, Down},
	{421, "", "closing transmission channel, shutting down", false, Down},
	{451, "4.3.0", "local error in processing", false, Nothing},
	{552, "5.2.2", "Mailbox full", false, Nothing},
	{452, "4.5.3", "Too many recipients", false, Speed},
	{450, "4.7.1", "Throttled: sending too fast, slow down", false, Speed},
	{421, "", "Max message per connection reached, closing transmission channel", false, Nothing},
	{421, "4.7.0", "mx.example too many messages in this connection", false, Nothing},
	{421, "4.3.2", "The maximum number of concurrent connections per resource forest has exceeded a limit, closing transmission channel", true, Count},
	{421, "", "Connection refused, too many sessions from 192.0.2.1. Please lower the number of concurrent sessions. IB007", true, Count},
	{421, "4.4.5", "Service unavailable, concurrency limit reached", true, Count},
	{451, "", "Too many connections received this hour from 192.0.2.1", true, Speed},
	{451, "4.7.650", "The mail server [192.0.2.1] has been temporarily rate limited due to IP reputation.", false, Speed},
	{554, "5.7.1", "Your address is listed on a blacklist", true, Blocked},
	{554, "5.7.1", "Message listed on a blacklist of links", false, Nothing},
}

func TestClassesOfRealAnswers(t *testing.T) {
	c, err := ShippedClasses()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range answersOfServers {
		m := c.Meaning(Answer{Code: a.code, Enhanced: a.enhanced, Text: a.text, Early: a.early})
		if m.Class != a.want {
			t.Errorf("%d %s %s: %v by %q, want %v", a.code, a.enhanced, a.text, m.Class, m.Rule, a.want)
		}
		if (m.Class == Blocked) != (m.Pause > 0) {
			t.Errorf("%s: pause %v", a.text, m.Pause)
		}
	}
}

func TestTablesAreRefusedWithReason(t *testing.T) {
	for text, want := range map[string]string{
		"[[answer]]\nname='x'\nclass='count'\n":                               "neither",
		"[[answer]]\nname='x'\nclass='cuont'\ncodes=[421]\n":                  "none of",
		"[[answer]]\nclass='count'\ncodes=[421]\n":                            "no name",
		"[[answer]]\nname='x'\nclass='blocked'\ncodes=[421]\n":                "pause",
		"[[answer]]\nname='x'\nclass='count'\ncodes=[421]\npause='1h'\n":      "pause",
		"[[answer]]\nname='x'\nclass='blocked'\ncodes=[421]\npause='often'\n": "no time",
		"[[answer]]\nname='x'\nclass='count'\npattern='('\n":                  "missing",
		"[[answer]]\nname='x'\nclass='count'\ncode=421\n":                     "strict",
	} {
		if _, err := ParseClasses(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q in it", text, err, want)
		}
	}
}

// TestLongTexts bounds what an answer costs.
func TestLongTexts(t *testing.T) {
	c, err := ShippedClasses()
	if err != nil {
		t.Fatal(err)
	}
	long := strings.Repeat("limit exceed connection rate ", 100_000)
	began := time.Now()
	for range 10 {
		c.Meaning(Answer{Code: 451, Text: long})
	}
	t.Logf("%v for each", time.Since(began)/10)
	if m := c.Meaning(Answer{Code: 451, Text: strings.Repeat("x", maxLooked) + " too many connections"}); m.Class != Nothing {
		t.Errorf("%v by words beyond what is looked at", m)
	}
}
