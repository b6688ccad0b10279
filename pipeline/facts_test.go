package pipeline

import (
	"context"
	"net/netip"
	"testing"

	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/message"
)

// TestFacts asks every fact of one message, and every fact before its time.
func TestFacts(t *testing.T) {
	s := &Session{
		Peer: netip.MustParseAddrPort("192.0.2.1:25"), PeerName: "mail.example.net", Entrance: "mx", Protocol: "smtp", Standing: Authenticated,
		User: "joe", UID: -1, TLS: "TLS1.3", Env: map[string]string{"A": "b"}, Helo: "helo.example.net",
		Ours: func(domain string) bool { return domain == "example.org" },
	}
	tx := &Transaction{
		Session: s, Envelope: envelope.To("a@example.net", "r@example.org", "x@example.com"), Active: []int{0},
		Symbols: []Symbol{{Name: "BAD", Score: 2}, {Name: "WORSE", Score: 1.5}},
	}
	m := message.FromString("Received: 1\nDelivered-To: 2\nSubject: h\xe4\nX: 1\nX: 2\n\nbody\n")
	want := map[string]string{
		"ip": `ip == "192.0.2.1"`, "rdns": `rdns == "mail.example.net"`, "entrance": `entrance == "mx"`, "protocol": `protocol == "smtp"`,
		"standing": `standing == "auth"`, "external": "not external", "relay": "not relay", "auth": "auth", "user": `user == "joe"`, "uid": "uid == -1",
		"tls": `tls == "TLS1.3"`, "env": `env("A") == "b" and env("B") == ""`, "helo": `helo == "helo.example.net"`, "sender": `sender == "a@example.net"`,
		"recipients": `all(recipients, # == "r@example.org") and any(recipients, true)`, "ours": "ours", "size": "size == 56", "eightbit": "eightbit", "hops": "hops == 2",
		"header": `header("x") == "1"`, "headers": `"1" in headers("X") and "2" in headers("X")`, "score": "score == 3.5", "symbols": `"BAD" in symbols and "WORSE" in symbols`,
	}
	for i := range mailFacts {
		f := &mailFacts[i]
		src, ok := want[f.name]
		if !ok {
			t.Errorf("fact %s has no test", f.name)
			continue
		}
		r := rule(t, src)
		if match, err := r.Match(FactsAt(tx, m)); err != nil || !match {
			t.Errorf("%s: %v, %v", src, match, err)
		}
		if Stage(r.Since()) != f.since {
			t.Errorf("%s is known since %v, want %v", f.name, Stage(r.Since()), f.since)
		}
		for stage := AtConnect; stage < f.since; stage++ {
			early := &subject{session: s, stage: stage}
			if v := early.fact(f.name); v != nil {
				t.Errorf("%s is %v at the %v stage", f.name, v, stage)
			}
		}
	}
	if FactsAt(tx, m)("nonsense") != nil {
		t.Error("a fact that there is not")
	}
	tx.Active = []int{1}
	if match, err := rule(t, "ours").Match(FactsAt(tx, m)); err != nil || match {
		t.Errorf("ours: %v, %v", match, err)
	}
	if (&Session{}).IsOurs("r@example.org") {
		t.Error("without a list a domain is ours")
	}
}

// TestFactsAtRecipient: a rule at the recipient stage sees that one recipient.
func TestFactsAtRecipient(t *testing.T) {
	tx := txTo("r@example.org", "x@example.com")
	tx.Session.Ours = func(domain string) bool { return domain == "example.org" }
	tx.Session.Peer = netip.MustParseAddrPort("192.0.2.1:25")
	tx.Session.AnswersEach = true
	f := says(AtRecipient, Verdict{Action: Reject})
	c := newChain(t, ChainOptions{}, Step{Filter: f, When: rule(t, `not ours and all(recipients, # == "x@example.com")`)})
	runIn(t, context.Background(), c, tx, func(o *Outcome) {
		if got := outgoing(o); got != "a@example.org -> r@example.org\n" || o.Outgoing[0].Origin.Peer != "192.0.2.1" {
			t.Errorf("%s from %q", got, o.Outgoing[0].Origin.Peer)
		}
	})
}
