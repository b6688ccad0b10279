package main

import (
	"encoding/json"
	"path/filepath"
	"testing"
)

const shadowConfig = `
[listen.mx]
address = "$AT_MX"
next = "queue"
tarpit = "1ms"
chain = "inbound"
[chain]
inbound = ["greylist", "rcptcheck", "policy"]
[filter.greylist]
mode = "shadow"
[filter.rcptcheck]
[[filter.rcptcheck.check]]
file = "$RUN/validrcptto"
[filter.policy]
kind = "rule"
mode = "shadow"
rule = [{when = 'header("Subject") == "lottery"', action = "reject", reason = "no lotteries"}]
[mailbox]
"bob@example.org" = "$RUN/mail/bob"
`

// TestSMTPShadow: the report tells of the SMTP server's transactions, also of
// those in which nobody was taken.
func TestSMTPShadow(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	g.write(t, "validrcptto", "bob@example.org\n")
	g.start(t, shadowConfig)
	c := g.hello(t, "mx", "")
	c.mail("a@spam.example", "bob@example.org", "Message-ID: <lottery@x>\r\nSubject: lottery\r\n\r\nhello\r\n", "250 ")
	c.want("MAIL FROM:<a@probe.example>", "250 ")
	c.want("RCPT TO:<nobody@example.org>", "550 ")
	c.want("RSET", "250 ")
	c.want("MAIL FROM:<a@gone.example>", "250 ")
	c.want("RCPT TO:<bob@example.org>", "250 ")
	c.want("QUIT", "221 ")
	g.logged(t, 3, "msg", "message")
	g.stop(t)
	var r struct {
		Messages int
		Filters  []struct {
			Filter   string
			Differs  int
			Verdicts map[string]struct {
				InFact map[string]int `json:"in_fact"`
			}
			Examples []struct {
				MessageID string `json:"message_id"`
				Reason    string
			}
		}
	}
	out := g.postern(t, "explain", "--json", "--shadow-report", filepath.Join(g.dir, "log"))
	if err := json.Unmarshal([]byte(out), &r); err != nil || r.Messages != 3 || len(r.Filters) != 2 {
		t.Fatalf("%v\n%s", err, out)
	}
	grey, policy := r.Filters[0], r.Filters[1]
	if facts := grey.Verdicts["defer"].InFact; grey.Filter != "greylist" || grey.Differs != 2 || facts["accepted"] != 1 || facts["refused"] != 1 || facts["given up"] != 1 {
		t.Errorf("%+v", grey)
	}
	if policy.Filter != "policy" || policy.Differs != 1 || len(policy.Examples) != 1 || policy.Examples[0].MessageID != "<lottery@x>" || policy.Examples[0].Reason != "no lotteries" {
		t.Errorf("%+v", policy)
	}
}
