package pipeline

import (
	"net/netip"
	"time"

	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/message"
)

// Standing is what a session's client is to us. It decides which filters
// judge it, and whether we may bounce to it or sign for it.
type Standing uint8

// The standings. The zero Standing trusts nobody.
const (
	Stranger      Standing = iota // anybody on the Internet
	Relayed                       // a network that may relay (RELAYCLIENT)
	Authenticated                 // a user who logged in
	Local                         // a local process
)

var standingNames = [...]string{"external", "relay", "auth", "local"}

// String is the standing's word in logs, rules and Origin.
func (s Standing) String() string {
	if int(s) < len(standingNames) {
		return standingNames[s]
	}
	return "external"
}

// ParseStanding is the inverse of String; an unknown word is a Stranger.
func ParseStanding(word string) Standing {
	for i, name := range standingNames {
		if word == name {
			return Standing(i)
		}
	}
	return Stranger
}

// Session is one connection to an entrance, or one call of a shim. Once given
// to a chain it does not change: an entrance that learns something new (HELO,
// TLS, a login) makes a copy and passes that from then on.
type Session struct {
	// ID names the session in logs.
	ID string
	// Entrance is the listener's name, Protocol what it speaks: "qmail-queue",
	// "smtp", "lmtp".
	Entrance, Protocol string
	Start              time.Time
	Standing           Standing
	// Peer is the client's address and port; the zero AddrPort for a local one.
	Peer netip.AddrPort
	// PeerName is the client's host name as far as the entrance knows it: our SMTP
	// server takes the name that the reverse DNS gives and the forward DNS
	// confirms, a shim what its caller was told.
	PeerName string
	// PeerClaim is a name that the reverse DNS gives the client, confirmed or not;
	// "" if there is none, or if nobody asked.
	PeerClaim string
	// PeerTrouble is set if the DNS could not tell what the client is called: an
	// empty PeerName then says nothing about it.
	PeerTrouble bool
	// Helo is the name the client gave itself.
	Helo string
	// User is who logged in, "" if nobody did.
	User string
	// UID and PID belong to the process that called; UID is -1 for a network client.
	UID, PID int
	// TLS describes the connection's encryption, "" if there is none.
	TLS string
	// Env is the caller's environment as far as it is believed; nil otherwise.
	Env map[string]string
	// Ours reports whether a domain is one that we take mail for; nil means
	// none is.
	Ours func(domain string) bool
	// AnswersEach is set where the protocol answers for each recipient (LMTP,
	// QMTP), so that a message may be stored for some and refused for others.
	AnswersEach bool
}

// IsOurs reports whether an address lies in a domain that we take mail for.
func (s *Session) IsOurs(address string) bool {
	return s.Ours != nil && s.Ours(envelope.Domain(address))
}

// Transaction is one message on its way in. A filter gets a copy of its own,
// whose slices it must not change.
type Transaction struct {
	// ID names the transaction in logs and in the queue's Origin.
	ID      string
	Session *Session
	// Envelope is the envelope as it came. Verdicts count its recipients from 0.
	Envelope envelope.Envelope
	// Active are the recipients that the filter is asked about.
	Active []int
	// Results and Symbols are what the filters before have found.
	Results []AuthResult
	Symbols []Symbol
	// Chain is the chain's name.
	Chain string
}

// Score is the sum of all symbols' scores.
func (t *Transaction) Score() float64 {
	var sum float64
	for _, s := range t.Symbols {
		sum += s.Score
	}
	return sum
}

// ActiveAddresses are the addresses of the recipients in Active.
func (t *Transaction) ActiveAddresses() []string {
	all := make([]string, len(t.Active))
	for i, n := range t.Active {
		all[i] = t.Envelope.Recipients[n].Address
	}
	return all
}

// Delivery is one message on its way out, to recipients of one domain.
type Delivery struct {
	// ID is the queue's name of the message.
	ID       string
	Envelope envelope.Envelope
	Origin   Origin
	// Host is the name of the server that takes it, "" for a local exit.
	Host string
	// Form is the most that the server can carry.
	Form message.Form
}
