package smtptest

import (
	"net/netip"
	"strings"
	"time"
)

// At is a point in a conversation.
type At uint8

// The points at which a Step can act, in the order of a conversation.
const (
	Connect   At = iota // before the greeting
	Hello               // at EHLO or HELO
	StartTLS            // at STARTTLS; after an answer of 220 there is a handshake
	Handshake           // in a handshake, when Step.Bytes of ours were written
	Auth                // at AUTH
	Mail                // at MAIL
	Rcpt                // at RCPT
	Data                // at DATA, before the 354; at the first BDAT
	Body                // within the message, when Step.Bytes of it were read
	Dot                 // after the final dot, before the answer to it
	After               // after the answer to the final dot
	Reset               // at RSET
	Quit                // at QUIT
)

var atNames = [...]string{"connect", "hello", "starttls", "handshake", "auth", "mail", "rcpt", "data", "body", "dot", "after", "reset", "quit"}

// String is the point's word.
func (a At) String() string {
	if int(a) < len(atNames) {
		return atNames[a]
	}
	return "invalid"
}

// ParseAt is the inverse of String.
func ParseAt(s string) (At, bool) {
	for a, name := range atNames {
		if s == name {
			return At(a), true
		}
	}
	return 0, false
}

// End is how a conversation is broken off.
type End uint8

// The ends of a conversation.
const (
	GoOn      End = iota // it goes on
	Close                // the connection is closed
	Abort                // the connection is reset
	HalfClose            // the server stops writing and reads on
	Hole                 // the server says nothing more and reads on
	Stall                // the server neither writes nor reads: the window closes
	Endless              // the server writes Step.Raw until the client goes away
)

var endNames = [...]string{"go-on", "close", "reset", "half-close", "hole", "stall", "endless"}

// String is the end's word.
func (e End) String() string {
	if int(e) < len(endNames) {
		return endNames[e]
	}
	return "invalid"
}

// ParseEnd is the inverse of String.
func ParseEnd(s string) (End, bool) {
	for e, name := range endNames {
		if s == name {
			return End(e), true
		}
	}
	return 0, false
}

// Step is one way in which the server misbehaves, or merely says no.
type Step struct {
	At At
	// Match limits the step: to an address or "@domain" at Mail and Rcpt, and in LMTP at Dot, to a verb
	// at Hello and Data, to a mechanism at Auth. "" matches everything.
	Match string
	// Skip is how many times the point is passed before the step acts, Times how
	// often it acts, 0 being always; over all connections.
	Skip, Times int
	// Delay is waited first, and Drip before every byte of what is said.
	Delay, Drip time.Duration
	// Reply is said in place of the usual answer, its lines separated by LF:
	// "450 4.2.1 later". The last line's code is what it means.
	Reply string
	// Raw is written as it stands in place of an answer.
	Raw string
	// Bytes of the message are read before a step at Body acts, and so many of the
	// handshake written before one at Handshake does. In a handshake Raw follows them
	// as it stands, without TLS.
	Bytes int64
	// End is what follows. A conversation that ends without Reply or Raw ends
	// without an answer.
	End End
}

// Moment is where a conversation is when Options.Script is asked.
type Moment struct {
	At At
	// What is that which Step.Match is compared with.
	What string
	// Connection is the number of the connection, Peer its other end.
	Connection uint64
	Peer       netip.AddrPort
	// Sender is that of the transaction, "" before MAIL was accepted; Recipients is how
	// many recipients it has, and Messages how many messages the connection has carried.
	Sender               string
	Recipients, Messages int
	// Secure is set under TLS.
	Secure bool
}

func (s *Step) matches(at At, what string) bool {
	if s.At != at {
		return false
	}
	if s.Match == "" || strings.EqualFold(s.Match, what) {
		return true
	}
	return s.Match[0] == '@' && len(what) > len(s.Match) && strings.EqualFold(what[len(what)-len(s.Match):], s.Match)
}

// code is that of what a step says: of its Reply, else of Raw's first line.
func (s *Step) code(text string) int {
	if text == "" && s != nil {
		text, _, _ = strings.Cut(s.Raw, "\r\n")
	}
	if len(text) < 3 {
		return 0
	}
	_, code := lines(text)
	return code
}

// lines is the reply as it goes over the wire, and its code.
func lines(reply string) (wire string, code int) {
	all := strings.Split(reply, "\n")
	var b strings.Builder
	for i, line := range all {
		if i < len(all)-1 && len(line) > 3 {
			line = line[:3] + "-" + line[4:]
		}
		b.WriteString(line)
		b.WriteString("\r\n")
	}
	last := all[len(all)-1]
	for i := 0; i < 3 && i < len(last); i++ {
		code = 10*code + int(last[i]-'0')
	}
	return b.String(), code
}
