package main

import (
	"io"
	"log"
	"testing"

	"github.com/foxcpp/go-mockdns"
)

const listedConfig = `hostname = "mx.example.org"
control = ""
domains = ["example.org"]
state = "$RUN/state"
admin.socket = "$RUN/admin.sock"
log.format = "json"
[queue]
low_space = "1 MB"
resolver = ["$DNS"]
[listen.mx]
address = "$AT_MX"
next = "queue"
tarpit = "1ms"
chain = "inbound"
[chain]
inbound = ["dnsbl"]
[filter.dnsbl]
reject = 1
[[filter.dnsbl.list]]
zone = "bl.example"
kind = "sender"
text = "ask bl.example"
[[filter.dnsbl.list]]
zone = "helo.example"
kind = "helo"
[mailbox]
"bob@example.org" = "$RUN/mail/bob"
`

// TestSMTPListed: a sender's domain that is listed is refused before there is a
// message, a client by its name too, and others are not.
func TestSMTPListed(t *testing.T) {
	t.Parallel()
	dns, err := mockdns.NewServerWithLogger(map[string]mockdns.Zone{
		"bad.example.bl.example.":       {A: []string{"127.0.0.2"}},
		"worse.example.helo.example.":   {A: []string{"127.0.0.2"}},
		"dealer.example.helo.example.":  {A: []string{"192.0.2.1"}},
		"nothing.example.helo.example.": {},
	}, log.New(io.Discard, "", 0), false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dns.Close() })
	g := newGateway(t)
	g.env["DNS"] = dns.LocalAddr().String()
	g.start(t, listedConfig)
	c := g.hello(t, "mx", "")
	c.want("MAIL FROM:<a@bad.example>", "55")
	c.want("MAIL FROM:<a@good.example>", "250 ")
	c.want("RSET", "250 ")
	c.mail("a@good.example", "bob@example.org", "Subject: hello\r\n\r\nhello\r\n", "250 ")
	c.want("EHLO dealer.example", "250")
	c.want("MAIL FROM:<a@good.example>", "250 ")
	c.want("EHLO worse.example", "554 5.7.1 worse.example is listed by helo.example")
	g.arrived(t, "bob", 1)
	g.stop(t)
}
