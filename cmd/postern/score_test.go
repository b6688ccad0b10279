package main

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/postern-mta/postern/pipeline/servers/serverstest"
)

// TestSMTPScore has the SMTP server score mail by spamd, rspamd and rules: what
// arrives is marked, what is worst is refused, and scorers that are away stop
// nothing.
func TestSMTPScore(t *testing.T) {
	spamd := serverstest.Start(t, "unix", func(c *serverstest.Conn) {
		if line, _ := c.R.ReadString('\n'); strings.HasPrefix(line, "PING") {
			c.Say("SPAMD/1.5 0 PONG\r\n")
			return
		}
		body, _ := io.ReadAll(c.R)
		if strings.Contains(string(body), "pills") {
			c.Say("SPAMD/1.1 0 EX_OK\r\nContent-length: 5\r\nSpam: True ; 6.0 / 5.0\r\n\r\nPILLS")
			return
		}
		c.Say("SPAMD/1.1 0 EX_OK\r\nContent-length: 0\r\nSpam: False ; 0.0 / 5.0\r\n\r\n")
	})
	rspamd := serverstest.Start(t, "unix", func(c *serverstest.Conn) {
		r, err := http.ReadRequest(bufio.NewReader(c.R))
		if err != nil {
			return
		}
		text := "pong"
		if r.URL.Path == "/checkv2" {
			body, _ := io.ReadAll(r.Body)
			text = `{"score":0,"required_score":15,"action":"no action","symbols":{}}`
			if strings.Contains(string(body), "watches") {
				text = `{"score":8,"required_score":15,"action":"add header","symbols":{"WATCHES":{"score":8}}}`
			}
		}
		c.Say(fmt.Sprintf("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s", len(text), text))
	})
	g := newGateway(t)
	g.start(t, `
[listen.mx]
address = "$AT_MX"
next = "queue"
tarpit = "1ms"
chain = "inbound"
[chain]
inbound = ["spamassassin", "rspamd", "score"]
[filter.spamassassin]
address = ["`+spamd.Address+`"]
fields = "none"
[filter.rspamd]
address = ["`+rspamd.Address+`"]
fields = "none"
[filter.score]
refuse = 10
text = "too much of it"
[filter.score.factor]
RSPAMD = 0.5
[filter.score.weight]
SA_PILLS = 0.25
[mailbox]
"bob@example.org" = "$RUN/mail/bob"
`)
	c := g.hello(t, "mx", "")
	c.mail("a@example.net", "bob@example.org", "X-Spam-Flag: NO\r\nSubject: hello\r\n\r\nhow are you", "250 ")
	if got := g.arrived(t, "bob", 1); strings.Contains(got[0], "X-Spam") {
		t.Errorf("%q", got[0])
	}
	c.mail("a@example.net", "bob@example.org", "X-Spam-Flag: NO\r\nSubject: hello\r\n\r\npills", "250 ")
	marked := 0
	for _, m := range g.arrived(t, "bob", 2) {
		if strings.Contains(m, "X-Spam-Flag: YES\nX-Spam-Score: 6.25\nX-Spam-Status: Yes, score=6.25 required=5 by=score\n\ttests=SPAMASSASSIN=6,SA_PILLS=0.25\n") && !strings.Contains(m, "X-Spam-Flag: NO") {
			marked++
		}
	}
	if marked != 1 {
		t.Errorf("%d messages are marked, want 1", marked)
	}
	c.mail("a@example.net", "bob@example.org", "Subject: hello\r\n\r\npills and watches", "554 5.7.1 too much of it")
	spamd.Stop()
	rspamd.Stop()
	c.mail("a@example.net", "bob@example.org", "Subject: hello\r\n\r\npills and watches", "250 ")
}
