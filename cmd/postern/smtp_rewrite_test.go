package main

import (
	"strings"
	"testing"
)

const rewriteConfig = `
[listen.mx]
address = "$AT_MX"
next = "queue"
[chain]
inbound = ["rcptcheck", "rewrite"]
[filter.rcptcheck]
[[filter.rcptcheck.check]]
list = ["sales@example.org", "joe@example.org"]
[[filter.rewrite.map]]
entries = ["sales@example.org ann@far.invalid, bob@far.invalid", "joe@example.org @far.invalid"]
`

// By SMTP a recipient is judged as it came, and queued as the maps say.
func TestRewriteBySMTP(t *testing.T) {
	g := newGateway(t)
	g.start(t, rewriteConfig)
	c := g.hello(t, "mx", "")
	c.want("MAIL FROM:<a@example.net>", "250 ")
	c.want("RCPT TO:<sales@example.org>", "250 ")
	c.want("RCPT TO:<joe@example.org>", "250 ")
	c.want("RCPT TO:<ann@example.org>", "550 5.1.1 ")
	c.data("Subject: x\r\n\r\nx\r\n", "250 ")
	c.want("QUIT", "221 ")
	out := g.postern(t, "queue", "list", "--json")
	for _, address := range []string{"ann@far.invalid", "bob@far.invalid", "joe@far.invalid"} {
		if !strings.Contains(out, address) {
			t.Errorf("nothing for %s is queued:\n%s", address, out)
		}
	}
	if strings.Contains(out, "@example.org") {
		t.Errorf("it is queued for who it was sent to:\n%s", out)
	}
}
