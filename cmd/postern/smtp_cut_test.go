package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/postern-mta/postern/pipeline/smtp/smtptest"
)

const cutConfig = `[listen.mx]
address = "$AT_MX"
[listen.lmtp]
address = "$AT_LMTP"
service = "lmtp"
[chain]
inbound = ["tap", "mark"]
[filter.tap]
rules = ["T:^tapped@:archive@example.org"]
[filter.mark]
kind = "header"
rule = [{op = "add", name = "X-Passed", value = "by us"}]
[mailbox]
"archive@example.org" = "$RUN/mail/archive"
"joe@example.org" = "$RUN/mail/joe"
[route]
`

// cuts are messages to the inner server, and what the client hears of it.
var cuts = []struct {
	to, answer  string
	step        smtptest.Step
	taken, down bool // by the inner server; which does not listen
}{
	{to: "joe@good.example", answer: "250 2.0.0 ok", taken: true},
	{to: "joe@unknown.example", answer: "550 5.1.1 nobody of that name", step: smtptest.Step{At: smtptest.Rcpt, Reply: "550 5.1.1 nobody of that name"}},
	{to: "joe@virus.example", answer: "554 5.7.1 not this one", step: smtptest.Step{At: smtptest.Dot, Reply: "554 5.7.1 not this one"}},
	{to: "joe@full.example", answer: "451 ", step: smtptest.Step{At: smtptest.Rcpt, Reply: "452 4.2.2 the mailbox is full"}},
	{to: "joe@later.example", answer: "451 ", step: smtptest.Step{At: smtptest.Dot, Reply: "451 4.3.0 not now"}},
	{to: "joe@lost.example", answer: "451 ", step: smtptest.Step{At: smtptest.Dot, End: smtptest.Close}},
	{to: "joe@down.example", answer: "451 ", down: true},
}

// TestSMTPCutThrough: the inner server's answer is ours, and nothing of it is
// queued.
func TestSMTPCutThrough(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	domains, routes := []string{`"example.org"`}, ""
	inner := make([]*smtptest.Server, len(cuts))
	for i, cut := range cuts {
		var steps []smtptest.Step
		if cut.step != (smtptest.Step{}) {
			steps = append(steps, cut.step)
		}
		inner[i] = smtptest.New(t, steps...)
		to := inner[i].Addr().String()
		if cut.down {
			to = freeAddress(t)
		}
		_, domain, _ := strings.Cut(cut.to, "@")
		domains = append(domains, strconv.Quote(domain))
		routes += fmt.Sprintf("%q = {to = %q, cut_through = true}\n", domain, to)
	}
	g.start(t, "control = \"\"\ndomains = ["+strings.Join(domains, ", ")+"]\n"+gatewayConfig+cutConfig+routes)
	for i, cut := range cuts {
		from := fmt.Sprintf("s%d@client.example", i)
		c := g.hello(t, "mx", "")
		c.mail(from, cut.to, "Subject: through\n\nbody\n", cut.answer)
		c.want("QUIT", "221 ")
		whole := slices.DeleteFunc(inner[i].Messages(), func(m *smtptest.Message) bool { return m.Answer/100 != 2 })
		if len(whole) > 1 || (len(whole) == 1) != cut.taken {
			t.Errorf("%s: the inner server took %d messages", cut.to, len(whole))
		}
		for _, m := range whole {
			if m.Mail.Sender != from || !strings.HasPrefix(string(m.Content), "X-Passed: by us\nReceived: from client.example ") || !strings.HasSuffix(string(m.Content), "\nSubject: through\n\nbody\n") {
				t.Errorf("the inner server has %q from %q", m.Content, m.Mail.Sender)
			}
		}
		g.logged(t, 1, "msg", "straight through", "to", cut.to)
	}
	if queued := g.lines(t, "msg", "queued"); len(queued) > 0 || g.postern(t, "queue", "list") != "" {
		t.Errorf("something was queued: %v", queued)
	}
	t.Run("split", func(t *testing.T) { testCutSplit(t, g) })
	t.Run("limits", func(t *testing.T) { testCutLimits(t, g, inner[0]) })
	t.Run("lmtp", func(t *testing.T) { testCutLMTP(t, g) })
	t.Run("copy", func(t *testing.T) {
		g.hello(t, "mx", "").mail("a@client.example", "tapped@good.example", "Subject: tapped\n\nbody\n", "250 ")
		if m := g.arrived(t, "archive", 1)[0]; !strings.Contains(m, "\nSubject: tapped\n\nbody\n") {
			t.Errorf("the copy is %q", m)
		}
	})
	g.postern(t, "queue", "verify")
}

// testCutSplit: a recipient whose host answers for it has a message of its own;
// of other recipients there may be many.
func testCutSplit(t *testing.T, g *gateway) {
	for _, first := range []string{"one@good.example", "joe@example.org"} {
		c := g.hello(t, "mx", "")
		c.want("MAIL FROM:<a@client.example>", "250 ")
		c.want("RCPT TO:<"+first+">", "250 ")
		c.want("RCPT TO:<two@good.example>", "452 4.5.3 ")
		c.want("RCPT TO:<joe@down.example>", "452 4.5.3 ")
		if first == "joe@example.org" {
			c.want("RCPT TO:<archive@example.org>", "250 ")
		}
		c.want("RSET", "250 ")
		c.want("QUIT", "221 ")
	}
}

// testCutLimits: what keeps our queue from sending keeps a client waiting, for a while.
func testCutLimits(t *testing.T, g *gateway, inner *smtptest.Server) {
	before := len(inner.Messages())
	send := func(t *testing.T, answer string) {
		t.Helper()
		g.hello(t, "mx", "").mail("a@client.example", "joe@good.example", "Subject: waits\n\nbody\n", answer)
	}
	g.postern(t, "site", "suspend", "good.example", "--for", "1h", "--reason", "maintenance")
	send(t, "451 4.3.0 ")
	g.logged(t, 1, "msg", "straight through", "to", "joe@good.example", "phase", "connect")
	if n := len(inner.Messages()) - before; n > 0 {
		t.Errorf("%d messages for a site that is suspended", n)
	}
	g.postern(t, "site", "suspend", "good.example", "--for", "1s")
	send(t, "250 2.0.0 ok")
	g.postern(t, "site", "limit", "good.example", "--connections", "1", "--connection-rate", "none")
	t.Run("all", func(t *testing.T) {
		for range 8 {
			t.Run("client", func(t *testing.T) {
				t.Parallel()
				send(t, "250 2.0.0 ok")
			})
		}
	})
	if n := len(inner.Messages()) - before; n != 9 {
		t.Errorf("%d messages arrived, and not 9", n)
	}
	g.postern(t, "site", "resume", "good.example")
}

// testCutLMTP: in LMTP too there is one answer for such a recipient.
func testCutLMTP(t *testing.T, g *gateway) {
	c, _ := g.dial(t, "lmtp", "")
	c.want("LHLO client.example", "250 ")
	c.mail("a@client.example", "joe@virus.example", "Subject: x\n\nbody\n", "554 5.7.1 not this one")
	c.mail("a@client.example", "joe@good.example", "Subject: x\n\nbody\n", "250 2.0.0 ok")
	c.want("QUIT", "221 ")
}
