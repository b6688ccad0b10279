package pipeline

import (
	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/rules"
)

// Facts is the schema of what a rule about mail may name. Since is the Stage
// from which a fact is known.
func Facts() *rules.Schema {
	declared := make([]rules.Fact, len(mailFacts))
	for i, f := range mailFacts {
		declared[i] = rules.Fact{Name: f.name, Type: f.kind, Doc: f.doc, Since: int(f.since)}
	}
	return rules.NewSchema(declared...)
}

// subject is what a rule is matched against.
type subject struct {
	session *Session
	tx      *Transaction    // from AtSender on
	rcpt    string          // AtRecipient
	message message.Message // AtMessage and AtDelivery
	stage   Stage
}

// mailFacts is the one table of facts.
var mailFacts = [...]struct {
	name  string
	kind  rules.Type
	since Stage
	doc   string
	value func(*subject) any
}{
	{"ip", rules.IP, AtConnect, "the client's address, \"\" for a local one", func(s *subject) any { return s.session.Peer.Addr() }},
	{"rdns", rules.String, AtConnect, "the client's host name as the reverse DNS gives and the forward DNS confirms it; by a shim, what its caller was told", func(s *subject) any { return s.session.PeerName }},
	{"rdns_claim", rules.String, AtConnect, "a name that the reverse DNS gives the client, confirmed or not", func(s *subject) any { return s.session.PeerClaim }},
	{"rdns_trouble", rules.Bool, AtConnect, "whether the DNS could not tell the client's name: an empty rdns says nothing then", func(s *subject) any { return s.session.PeerTrouble }},
	{"entrance", rules.String, AtConnect, "the name of the listener", func(s *subject) any { return s.session.Entrance }},
	{"protocol", rules.String, AtConnect, "what the listener speaks: qmail-queue, smtp, lmtp", func(s *subject) any { return s.session.Protocol }},
	{"standing", rules.String, AtConnect, "external, relay, auth or local", func(s *subject) any { return s.session.Standing.String() }},
	{"external", rules.Bool, AtConnect, "whether the client is a stranger", func(s *subject) any { return s.session.Standing == Stranger }},
	{"relay", rules.Bool, AtConnect, "whether the client's network may relay", func(s *subject) any { return s.session.Standing == Relayed }},
	{"auth", rules.Bool, AtConnect, "whether a user logged in", func(s *subject) any { return s.session.User != "" }},
	{"user", rules.String, AtConnect, "who logged in", func(s *subject) any { return s.session.User }},
	{"uid", rules.Int, AtConnect, "the uid of a local caller, -1 for the network", func(s *subject) any { return s.session.UID }},
	{"tls", rules.String, AtConnect, "the connection's encryption, \"\" for none", func(s *subject) any { return s.session.TLS }},
	{"env", rules.StringFunc, AtConnect, "a variable of the caller's environment, if the caller is trusted", func(s *subject) any {
		return func(name string) string { return s.session.Env[name] }
	}},
	{"helo", rules.String, AtHelo, "the name the client gave itself", func(s *subject) any { return s.session.Helo }},
	{"helo_fqdn", rules.Bool, AtHelo, "whether that name has the form of a full host name, mail.example.org", func(s *subject) any { return s.session.HeloFQDN() }},
	{"helo_literal", rules.Bool, AtHelo, "whether that name is an address literal, [192.0.2.1]", func(s *subject) any {
		_, ok := s.session.HeloLiteral()
		return ok
	}},
	{"helo_matches", rules.Bool, AtHelo, "whether that name is rdns, or the literal of the client's address", func(s *subject) any { return s.session.HeloMatches() }},
	{"sender", rules.String, AtSender, "the envelope sender, \"\" for bounces", func(s *subject) any { return s.tx.Envelope.Sender }},
	{"recipients", rules.Strings, AtRecipient, "the envelope recipients that the filter is asked about", func(s *subject) any {
		if s.stage == AtRecipient {
			return []string{s.rcpt}
		}
		return s.tx.ActiveAddresses()
	}},
	{"ours", rules.Bool, AtRecipient, "whether one of these recipients is in a domain of ours", func(s *subject) any { return s.ours() }},
	{"size", rules.Int, AtMessage, "the message's size in bytes", func(s *subject) any { return s.message.Size() }},
	{"eightbit", rules.Bool, AtMessage, "whether the message holds bytes above 127", func(s *subject) any { return s.message.Form() != message.SevenBit }},
	{"hops", rules.Int, AtMessage, "how many Received and Delivered-To fields it has", func(s *subject) any { return s.message.Head().Hops() }},
	{"header", rules.StringFunc, AtMessage, "the value of the first field of a name", func(s *subject) any { return s.message.Head().Get }},
	{"headers", rules.StringsFunc, AtMessage, "the values of all fields of a name", func(s *subject) any { return s.message.Head().Values }},
	{"score", rules.Float, AtMessage, "the sum of the scores that filters gave so far", func(s *subject) any { return s.tx.Score() }},
	{"results", rules.Strings, AtMessage, "the authentication results so far, as dkim=fail or spf=softfail", func(s *subject) any { return s.results() }},
	{"symbols", rules.Strings, AtMessage, "the names of what filters found so far", func(s *subject) any { return s.symbols() }},
}

func (s *subject) ours() bool {
	if s.stage == AtRecipient {
		return s.session.IsOurs(s.rcpt)
	}
	for _, n := range s.tx.Active {
		if s.session.IsOurs(s.tx.Envelope.Recipients[n].Address) {
			return true
		}
	}
	return false
}

func (s *subject) symbols() []string {
	names := make([]string, len(s.tx.Symbols))
	for i, symbol := range s.tx.Symbols {
		names[i] = symbol.Name
	}
	return names
}

func (s *subject) results() []string {
	all := make([]string, len(s.tx.Results))
	for i, r := range s.tx.Results {
		all[i] = r.Method + "=" + r.Result
	}
	return all
}

// fact gives the value that a rule asks for.
func (s *subject) fact(name string) any {
	for i := range mailFacts {
		if f := &mailFacts[i]; f.name == name {
			if f.since > s.stage {
				return nil
			}
			return f.value(s)
		}
	}
	return nil
}

// FactsAt gives a rule the facts of a transaction and its message, for filters
// that have rules of their own.
func FactsAt(tx *Transaction, m message.Message) rules.Facts {
	s := &subject{session: tx.Session, tx: tx, message: m, stage: AtMessage}
	return s.fact
}

// deliverySubject shows rules at the exit what is known of a message there.
func deliverySubject(d *Delivery) subject {
	session := &Session{
		Entrance: d.Origin.Entrance, Protocol: d.Origin.Protocol, Standing: ParseStanding(d.Origin.Standing),
		PeerName: d.Origin.PeerName, PeerClaim: d.Origin.PeerClaim, PeerTrouble: d.Origin.PeerTrouble, TLS: d.Origin.TLS, Helo: d.Origin.Helo, User: d.Origin.User, UID: d.Origin.UID,
	}
	if a, err := parseAddr(d.Origin.Peer); err == nil {
		session.Peer = a
	}
	tx := &Transaction{ID: d.ID, Session: session, Envelope: d.Envelope, Active: indexes(d.Envelope), Results: d.Origin.Results}
	return subject{session: session, tx: tx, stage: AtDelivery}
}

func indexes(e envelope.Envelope) []int {
	all := make([]int, len(e.Recipients))
	for i := range all {
		all[i] = i
	}
	return all
}
