package smtp

import "errors"

// Phase is where in a conversation something happened.
type Phase uint8

// The phases of a conversation, in their order.
const (
	Connect  Phase = iota // making the connection
	Greeting              // waiting for the greeting
	Hello                 // EHLO or HELO
	Secure                // STARTTLS and the handshake
	Login                 // AUTH
	MailFrom              // MAIL
	RcptTo                // RCPT
	Data                  // DATA, waiting for its 354
	Body                  // sending the message
	Dot                   // the final dot was sent, its answer has not come
	After                 // RSET and QUIT, or between two messages
)

var phaseNames = [...]string{"connect", "greeting", "ehlo", "starttls", "auth", "mail", "rcpt", "data", "body", "dot", "after"}

// String is the phase's word in logs.
func (p Phase) String() string {
	if int(p) < len(phaseNames) {
		return phaseNames[p]
	}
	return "invalid"
}

// ErrContent is in the chain of an Error if the message itself could not be
// read: the trouble is ours, and the server knows nothing of it.
var ErrContent = errors.New("the message could not be read")

// Error is how a conversation failed. Either the server refused, and Reply is
// its answer, or there was none, and Err says why.
type Error struct {
	Phase Phase
	// Reply is the server's answer; its Code is 0 if there was none.
	Reply Reply
	// Err is the detail, nil if Reply says it all.
	Err error
	// Perhaps is set if the message may have been delivered all the same: the
	// final dot was sent and no answer to it was understood.
	Perhaps bool
}

// Error describes the failure for a log.
func (e *Error) Error() string {
	s := e.Phase.String() + ": "
	switch {
	case e.Reply.Code != 0 && e.Err != nil:
		s += e.Reply.String() + ": " + e.Err.Error()
	case e.Err != nil:
		s += e.Err.Error()
	default:
		s += e.Reply.String()
	}
	if e.Perhaps {
		s += " (the message may have been delivered)"
	}
	return s
}

// Unwrap gives the detail.
func (e *Error) Unwrap() error { return e.Err }
