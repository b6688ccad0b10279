package pipeline

import (
	"context"
	"net/netip"
	"strings"
	"testing"

	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/message"
)

// TestFacts asks every fact of one message, and every fact before its time.
func TestFacts(t *testing.T) {
	s := &Session{
		Peer: netip.MustParseAddrPort("192.0.2.1:25"), PeerName: "mail.example.net", PeerClaim: "claim.example.net", PeerTrouble: true, Entrance: "mx", Protocol: "smtp", Standing: Authenticated,
		User: "joe", UID: -1, TLS: "TLS1.3", Env: map[string]string{"A": "b"}, Helo: "helo.example.net",
		Ours: func(domain string) bool { return domain == "example.org" },
	}
	tx := &Transaction{
		Session: s, Envelope: envelope.To("a@example.net", "r@example.org", "x@example.com"), Active: []int{0},
		Symbols: []Symbol{{Name: "BAD", Score: 2}, {Name: "WORSE", Score: 1.5}},
		Results: []AuthResult{{Method: "dkim", Result: "fail"}, {Method: "dkim", Result: "pass"}},
	}
	m := message.FromString("Received: 1\nDelivered-To: 2\nSubject: h\xe4\nX: 1\nX: 2\n\nbody\n")
	want := map[string]string{
		"ip": `ip == "192.0.2.1"`, "rdns": `rdns == "mail.example.net"`, "entrance": `entrance == "mx"`, "protocol": `protocol == "smtp"`,
		"standing": `standing == "auth"`, "external": "not external", "relay": "not relay", "auth": "auth", "user": `user == "joe"`, "uid": "uid == -1",
		"rdns_claim": `rdns_claim == "claim.example.net"`, "rdns_trouble": "rdns_trouble",
		"helo_fqdn": "helo_fqdn", "helo_literal": "not helo_literal", "helo_matches": "not helo_matches",
		"tls": `tls == "TLS1.3"`, "env": `env("A") == "b" and env("B") == ""`, "helo": `helo == "helo.example.net"`, "sender": `sender == "a@example.net"`,
		"recipients": `all(recipients, # == "r@example.org") and any(recipients, true)`, "ours": "ours", "size": "size == 56", "eightbit": "eightbit", "hops": "hops == 2",
		"header": `header("x") == "1"`, "headers": `"1" in headers("X") and "2" in headers("X")`, "score": "score == 3.5", "symbols": `"BAD" in symbols and "WORSE" in symbols`,
		"results": `"dkim=fail" in results and "dkim=pass" in results and not any(results, # startsWith "spf=")`,
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

// TestHelo: what a client's name for itself is worth.
func TestHelo(t *testing.T) {
	const fqdn, literal, matches = 1, 2, 4
	long := strings.Repeat("a", 63)
	for helo, want := range map[string]int{
		"": 0, "localhost": 0, "friend": 0, ".": 0, "..": 0, "a..b": 0, ".a.b": 0, "-a.b": 0, "a.b-": 0, "192.0.2.1": 0, "a.1": 0, "a b.c": 0, "a.b\r": 0, "a.(b)": 0, "a\u2028b.org": 0, "a\u0085b.org": 0, "a\u00a0.org": 0, "\xff.org": 0,
		"mail.example.net": fqdn | matches, "MAIL.Example.NET.": fqdn | matches, "other.example.net": fqdn, "1.a": fqdn, "my_host.example.net": fqdn, "b\u00fccher.example": fqdn,
		long + ".example": fqdn, long + "a.example": 0, strings.Repeat("a.", 126) + "b": fqdn, strings.Repeat("a.", 127) + "b": 0,
		"[192.0.2.1]": literal | matches, "[192.0.2.2]": literal, "[IPv6:2001:db8::1]": literal, "[ipv6:::ffff:192.0.2.1]": literal | matches, "[2001:db8::1]": literal,
		"[]": 0, "[": 0, "[192.0.2.1": 0, "192.0.2.1]": 0, "[IPv6:192.0.2.1]": 0, "[fe80::1%eth0]": 0, "[mail.example.net]": 0, "[192.0.2.01]": 0,
	} {
		s := &Session{Helo: helo, PeerName: "mail.example.net", Peer: netip.MustParseAddrPort("[::ffff:192.0.2.1]:25")}
		got := 0
		if s.HeloFQDN() {
			got |= fqdn
		}
		if _, ok := s.HeloLiteral(); ok {
			got |= literal
		}
		if s.HeloMatches() {
			got |= matches
		}
		if got != want {
			t.Errorf("%q: %03b, want %03b", helo, got, want)
		}
	}
	for _, s := range []*Session{{}, {Helo: "."}, {PeerName: "mail.example.net"}, {PeerClaim: "a.example", Helo: "a.example"}} {
		if s.HeloMatches() {
			t.Errorf("%+v matches", s)
		}
	}
}

// TestDeliveryFacts: what was known of the client is known at the exit.
func TestDeliveryFacts(t *testing.T) {
	s := &Session{
		Peer: netip.MustParseAddrPort("192.0.2.1:25"), PeerName: "mail.example.net", PeerClaim: "claim.example.net", PeerTrouble: true,
		Helo: "[192.0.2.1]", TLS: "TLS1.3", User: "joe", Standing: Authenticated, UID: -1, Entrance: "mx", Protocol: "smtp",
	}
	encoded, err := OriginOf(s, &Transaction{ID: "t1"}).Encode()
	if err != nil {
		t.Fatal(err)
	}
	origin, err := DecodeOrigin(encoded)
	if err != nil {
		t.Fatal(err)
	}
	subject := deliverySubject(&Delivery{Envelope: envelope.To("a@example.net", "r@example.org"), Origin: origin})
	for _, src := range []string{
		`ip == "192.0.2.1"`, `rdns == "mail.example.net"`, `rdns_claim == "claim.example.net"`, "rdns_trouble", "helo_matches", "helo_literal",
		`tls == "TLS1.3"`, `user == "joe"`, "auth", `entrance == "mx"`, `protocol == "smtp"`, "uid == -1",
	} {
		if match, err := rule(t, src).Match(subject.fact); err != nil || !match {
			t.Errorf("%s: %v, %v", src, match, err)
		}
	}
}
