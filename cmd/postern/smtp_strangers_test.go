package main

import (
	"strings"
	"testing"
	"time"
)

const strangersConfig = `
[listen.mx]
address = "$AT_MX"
next = "discard"
tarpit = "10ms"
refused = 9
[chain]
inbound = ["rcptcheck", "greylist"]
[filter.rcptcheck]
[[filter.rcptcheck.check]]
list = ["joe@example.org", "sue-@example.org"]
[filter.greylist]
delay = "1s"
`

// Strangers are told at RCPT who does not exist and who is to be tried again;
// what they were told is remembered by a daemon that starts again.
func TestStrangers(t *testing.T) {
	g := newGateway(t)
	g.start(t, strangersConfig)
	c := g.hello(t, "mx", "")
	c.want("MAIL FROM:<a@example.net>", "250 ")
	c.want("RCPT TO:<nobody@example.org>", "550 5.1.1 no mailbox here by that name")
	c.want("RCPT TO:<joe@example.org>", "451 4.7.1 greylisted, please try again in a minute")
	c.want("RCPT TO:<Sue-lists@example.org>", "451 4.7.1 ")
	c.want("DATA", "554 5.5.1 ")
	c.want("QUIT", "221 ")
	g.stop(t)
	g.start(t, strangersConfig)
	time.Sleep(time.Second) // the delay is in seconds of the clock
	c = g.hello(t, "mx", "")
	c.want("MAIL FROM:<a@example.net>", "250 ")
	c.want("RCPT TO:<nobody@example.org>", "550 5.1.1 ")
	c.want("RCPT TO:<joe@example.org>", "250 ")
	c.want("RCPT TO:<sue-lists@example.org>", "250 ")
	c.want("RCPT TO:<sue@example.org>", "550 5.1.1 ")
	c.data("Subject: x\r\n\r\nx\r\n", "250 ")
	if out := g.postern(t, "greylist", "list"); strings.Count(out, "\npassed ") != 2 || !strings.Contains(out, "client ") {
		t.Errorf("remembered:\n%s", out)
	}
	// A harvester is sent away in the end.
	c.want("MAIL FROM:<b@example.net>", "250 ")
	refused := 2
	for answer := ""; !strings.HasPrefix(answer, "421 "); refused++ {
		if answer = c.say("RCPT TO:<no@example.org>"); !strings.HasPrefix(answer, "550 5.1.1 ") && !strings.HasPrefix(answer, "421 ") || refused > 20 {
			t.Fatalf("%d: %s", refused, answer)
		}
	}
	c.closed()
	if refused != 10 {
		t.Errorf("sent away after %d", refused)
	}
}
