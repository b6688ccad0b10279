package main

import "testing"

const simplePolicyConfig = `
[listen.mx]
address = "$AT_MX"
next = "discard"
[chain]
inbound = ["badaddress", "recipients", "sender", "ratelimit"]
[filter.badaddress]
senders = ["*@spam.example.net"]
recipients = ["former@example.org"]
[filter.recipients]
most = 2
bcc = "reject"
[filter.sender]
exists = false
[[filter.ratelimit.limit]]
by = "client"
messages = 2
attempts = 8
per = "1h"
`

// By SMTP each command is answered for itself, and what was not accepted does
// not count.
func TestSimplePolicy(t *testing.T) {
	g := newGateway(t)
	g.start(t, simplePolicyConfig)
	c := g.hello(t, "mx", "")
	c.want("MAIL FROM:<x@spam.example.net>", "553 5.7.1 mail from this sender is not accepted here")
	c.want("MAIL FROM:<x@nowhere>", "550 5.5.4 the sender's domain is no full host name")
	c.want("MAIL FROM:<a@example.net>", "250 ")
	c.want("RCPT TO:<former@example.org>", "553 5.7.1 mail to this recipient is not accepted here")
	c.want("RCPT TO:<joe@example.org>", "250 ")
	c.want("RCPT TO:<sue@example.org>", "250 ")
	c.want("RCPT TO:<ann@example.org>", "452 4.5.3 too many recipients, please send the rest in another message")
	c.want("RSET", "250 ")
	c.want("MAIL FROM:<a@example.net>", "250 ")
	c.want("RCPT TO:<joe@example.org>", "250 ")
	c.data("Subject: x\r\nTo: sue@example.org\r\n\r\nx\r\n", "550 5.7.1 ")
	for range 2 {
		c.want("MAIL FROM:<a@example.net>", "250 ")
		c.want("RCPT TO:<joe@example.org>", "250 ")
		c.data("Subject: x\r\nTo: Joe <JOE@example.org>\r\n\r\nx\r\n", "250 ")
	}
	c.want("MAIL FROM:<a@example.net>", "451 4.7.1 too many messages, please try again in 61 minutes")
	c.want("QUIT", "221 ")
	g.stop(t)
	g.start(t, simplePolicyConfig)
	c = g.hello(t, "mx", "")
	c.want("MAIL FROM:<a@example.net>", "451 4.7.1 too many messages, ")
	c.want("QUIT", "221 ")
}
