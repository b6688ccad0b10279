package recipients

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/filtertest"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/rules"
)

// stranger is one who knows which domain is ours.
func stranger() *pipeline.Session {
	s := filtertest.Stranger()
	s.Ours = func(domain string) bool { return domain == "example.org" }
	return s
}

// The suite that every filter passes, and who is named.
func TestSuite(t *testing.T) {
	auth := stranger()
	auth.Standing, auth.User = pipeline.Authenticated, "joe"
	three := []string{"r@example.org", "s@example.org", "t@example.net"}
	const refuse = "bcc = \"reject\"\n"
	named := func(head string) string { return head + "Subject: x\n\nr@example.org\n" }
	filtertest.Run(t, filtertest.Suite{
		Kind: Kind(), Config: "most = 1000000\nbcc = \"symbol\"\n", Session: stranger,
		Cases: []filtertest.Case{
			{
				Name: "too many by a shim", Config: "most = 2\nmost_own = 3\n", From: "a@example.net", To: three, WantAction: pipeline.Reject,
				WantReply: "554 5.5.3 too many recipients", WantReason: "3 recipients, at most 2", WantEnvelopes: []string{},
			},
			{Name: "our own may more", Config: "most = 2\nmost_own = 3\n", Session: auth, From: "a@example.net", To: three},
			{Name: "any number", Config: "most_own = 1\n", From: "a@example.net", To: three},
			{Name: "in To", Config: refuse, From: "a@example.net", Message: named("To: Someone <R@Example.ORG>\n")},
			{Name: "in Cc, folded, in a group", Config: refuse, From: "a@example.net", Message: named("cc: friends: x@y,\n r@example.org;\n")},
			{Name: "in a group without blanks", Config: refuse, From: "a@example.net", Message: named("To: friends:r@example.org;\n")},
			{Name: "a dot at the end", Config: refuse, From: "a@example.net", To: []string{"r@example.org."}, Message: named("To: r@example.org\n")},
			{Name: "in quotes", Config: refuse, From: "a@example.net", Message: named("To: \"r@example.org\" <x@y>\n")},
			{Name: "a link", Config: refuse, From: "a@example.net", Message: named("To: <mailto:r@example.org>\n")},
			{Name: "in a comment", Config: refuse, From: "a@example.net", Message: named("To: undisclosed (r@example.org)\n")},
			{Name: "resent", Config: refuse, From: "a@example.net", Message: named("To: x@y\nResent-To: r@example.org\n")},
			{
				Name: "not named", Config: refuse, From: "a@example.net", Message: named("To: xr@example.org, r@example.org.evil\nBcc: r@example.org\n"), WantAction: pipeline.Reject,
				WantReply: "550 5.7.1 the recipient must be named in To or Cc", WantReason: "1 of 1 recipients are not named in To or Cc, as r@example.org", WantEnvelopes: []string{},
			},
			{
				Name: "held for one of three", Config: "bcc = \"quarantine\"\n", From: "a@example.net", To: three, Message: named("To: r@example.org\n"), WantReason: "1 of 3",
				WantActions: []pipeline.Action{pipeline.Continue, pipeline.Quarantine, pipeline.Continue}, WantEnvelopes: []string{"a@example.net -> r@example.org t@example.net", "a@example.net -> s@example.org"},
			},
			{Name: "a symbol", From: "a@example.net", Message: named(""), WantReason: "1 of 1 recipients are not named"},
			{Name: "a list", Config: refuse, From: "a@example.net", Message: named("List-Id: <x.example.net>\n"), WantReason: "of a mailing list"},
			{Name: "not even a list", Config: refuse + "lists = false\n", From: "a@example.net", Message: named("List-Id: <x.example.net>\n"), WantReason: "not named", WantAction: pipeline.Reject, WantReply: "550 5.7.1", WantEnvelopes: []string{}},
			{Name: "from nobody", Config: refuse, Message: named(""), WantReason: "from <>"},
			{Name: "postmaster", Config: refuse, From: "a@example.net", To: []string{"Postmaster@example.org"}, Message: named("")},
			{Name: "by rule", Config: refuse + "except = '\"r@example.org\" in recipients'\n", From: "a@example.net", Message: named("")},
			{Name: "our own", Config: refuse, Session: auth, From: "a@example.org", To: []string{"x@example.net"}, Message: named("")},
			{Name: "our own, too", Config: refuse + "own = true\n", Session: auth, From: "a@example.org", To: []string{"x@example.net"}, Message: named(""), WantReason: "not named", WantAction: pipeline.Reject, WantReply: "550 5.7.1", WantEnvelopes: []string{}},
			{Name: "a rule that fails", Config: refuse + "except = '1 % (size - size) > 0'\n", From: "a@example.net", Message: named(""), WantAction: pipeline.Defer, WantErr: "except: ", WantEnvelopes: []string{}},
		},
	})
}

func TestConfiguration(t *testing.T) {
	for name, c := range map[string]struct {
		o         Options
		key, want string
	}{
		"nothing":  {Options{}, "", "it does nothing"},
		"most":     {Options{Most: -1}, "most", "write 0 to"},
		"most_own": {Options{MostOwn: maxMost + 1}, "most_own", "write 0 to"},
		"over":     {Options{Most: 1, Over: "drop"}, "over", "defer or reject"},
		"bcc":      {Options{Bcc: "discard"}, "bcc", "write off, symbol"},
		"except":   {Options{Bcc: "reject", Except: "1 +"}, "except", "column"},
		"text":     {Options{Bcc: "reject", Text: "\n"}, "text", "one line"},
	} {
		f, err := New(c.o)
		var at interface{ Key() string }
		if f != nil || err == nil || !strings.Contains(err.Error(), c.want) || errors.As(err, &at) != (c.key != "") || c.key != "" && at.Key() != c.key {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// By SMTP the rest is for another message, or refused, one by one; a transaction
// that is broken off leaves nothing behind.
func TestBySMTP(t *testing.T) {
	for over, want := range map[string]string{"defer": "452 4.5.3 too many recipients, please send the rest in another message", "reject": "550 5.5.3 too many recipients"} {
		f, err := New(Options{Most: 2, Over: over})
		if err != nil {
			t.Fatal(err)
		}
		for _, when := range []string{"true", `not ("x@example.org" in recipients)`} { // about the latter the sender is not asked
			sendThree(t, f, when, want)
		}
	}
}

// sendThree sends three messages to four recipients each; two may come, and the
// others hear want.
func sendThree(t *testing.T, f *Filter, when, want string) {
	t.Helper()
	rule, err := rules.Compile(pipeline.Facts(), when)
	if err != nil {
		t.Fatal(err)
	}
	chain, err := pipeline.NewChain("inbound", []pipeline.Step{{Name: Name, Filter: f, When: rule}}, pipeline.ChainOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer chain.Close()
	j := chain.Begin()
	defer j.Close()
	ctx := context.Background()
	for range 3 {
		tx := &pipeline.Transaction{ID: "1", Session: stranger(), Envelope: envelope.Envelope{Sender: "a@example.net"}}
		j.Sender(ctx, tx)
		for n, to := range []string{"r@example.org", "s@example.org", "t@example.org", "u@example.org"} {
			fate := j.Recipient(ctx, tx, envelope.Recipient{Address: to})
			if (fate.Action == pipeline.Continue) != (n < 2) || n >= 2 && fate.Reply.SMTP() != want {
				t.Errorf("%s: recipient %d: %v %s", when, n, fate.Action, fate.Reply.SMTP())
			}
			if fate.Action == pipeline.Continue {
				tx.Envelope.Recipients = append(tx.Envelope.Recipients, envelope.Recipient{Address: to})
			}
		}
		m := message.FromString("Subject: x\n\nx\n")
		o := j.Message(ctx, tx, m)
		if o.Reply.SMTP()[:3] != "250" || len(o.Outgoing) != 1 || len(o.Outgoing[0].Envelope.Recipients) != 2 {
			t.Errorf("%s: %v", when, o.Reply)
		}
		o.Release()
		j.Reset()
	}
}

// Who stands in a field by himself is named, and who does not is not.
func FuzzNamed(f *testing.F) {
	f.Add("To", "Someone <r@example.org>, x@y", "r@example.org")
	f.Add("Cc", "group: a@b;", "c@d")
	f.Add("Subject", "r@example.org", "r@example.org")
	f.Fuzz(func(t *testing.T, name, value, address string) {
		h, _ := message.ParseHead(name + ": " + value + "\n\n")
		named := namedIn(h)
		for a := range named {
			if !strings.Contains(strings.ToLower(h.String()), a) || !strings.Contains(a, "@") {
				t.Errorf("%q is not in %q", a, h.String())
			}
		}
		plain := strings.Map(func(c rune) rune {
			if c < 'a' || c > 'z' {
				return -1
			}
			return c
		}, address) + "@example.org"
		h, _ = message.ParseHead("To: <" + strings.ToUpper(plain) + ">\n\n")
		if !namedIn(h)[plain] {
			t.Errorf("%q is not found", plain)
		}
	})
}
