package reply

// Action is a verdict's kind: what is to become of a message for a recipient.
type Action uint8

// The actions. Continue, the zero Action, leaves the judging to the filters
// that follow; every other one decides.
const (
	Continue Action = iota
	Accept
	Reject
	Defer
	Discard
	Quarantine
	actions
)

// Actions is how many actions there are, for tables indexed by Action.
const Actions = int(actions)

var actionNames = [Actions]string{"continue", "accept", "reject", "defer", "discard", "quarantine"}

// String is the action's word in logs, traces and configuration.
func (a Action) String() string {
	if int(a) < Actions {
		return actionNames[a]
	}
	return "invalid"
}

// ParseAction is the inverse of String.
func ParseAction(s string) (Action, bool) {
	for a, name := range actionNames {
		if s == name {
			return Action(a), true
		}
	}
	return Continue, false
}

// The rows of the table: the answers that Postern gives by itself. Every other
// answer is a row with another text.
var (
	// OK: the message is ours now.
	OK = Reply{Success, 250, Enhanced{0, 0}, "ok", 0}
	// Refused is a filter's no without words of its own.
	Refused = Reply{Permanent, 554, Enhanced{7, 1}, "message refused", 31}
	// Deferred is a filter's "later" without words of its own.
	Deferred = Reply{Temporary, 451, Enhanced{7, 1}, "message deferred, please try again later", 71}
	// Trouble is our own failure, of which the peer hears nothing more.
	Trouble = Reply{Temporary, 451, Enhanced{3, 0}, "temporary trouble here, please try again later", 71}

	// AddressTooLong: an envelope address above envelope.MaxAddress.
	AddressTooLong = Reply{Permanent, 554, Enhanced{1, 3}, "envelope address too long", 11}
	// BadAddress: an envelope address that no mail system could use.
	BadAddress = Reply{Permanent, 553, Enhanced{1, 3}, "envelope address holds a control character", 31}
	// TooManyRecipients: more than the configured maximum in one envelope.
	TooManyRecipients = Reply{Permanent, 554, Enhanced{5, 3}, "too many recipients", 31}
	// TooBig: more than databytes (RFC 1870 §6.1).
	TooBig = Reply{Permanent, 552, Enhanced{3, 4}, "message is larger than my limit", 31}
	// HeadTooBig: a message head above its limit of bytes or fields.
	HeadTooBig = Reply{Permanent, 552, Enhanced{3, 4}, "message header is larger than my limit", 31}
	// BadLines: a bare CR, a bare LF or a NUL where they are refused.
	BadLines = Reply{Permanent, 550, Enhanced{5, 2}, "message holds bare CR, bare LF or NUL", 31}
	// Loop: too many hops (RFC 5321 §6.3).
	Loop = Reply{Permanent, 554, Enhanced{4, 6}, "too many hops, this message is looping", 31}

	// RelayDenied: a stranger sends to a domain that is not ours, or through us.
	RelayDenied = Reply{Permanent, 550, Enhanced{7, 1}, "relaying denied", 31}
	// ClientDenied: the rules have no service for this client's address.
	ClientDenied = Reply{Permanent, 554, Enhanced{7, 1}, "no mail service here for your address", 31}
	// SenderDenied: the envelope sender is on badmailfrom.
	SenderDenied = Reply{Permanent, 553, Enhanced{7, 1}, "mail from this sender is not accepted here", 31}

	// ReadError: message or envelope ended early or could not be read.
	ReadError = Reply{Temporary, 451, Enhanced{3, 0}, "could not read the whole message", 54}
	// BadEnvelope: the envelope breaks the format of qmail-queue.8.
	BadEnvelope = Reply{Temporary, 451, Enhanced{3, 0}, "envelope format error", 91}
	// TimedOut: the caller took longer than it may.
	TimedOut = Reply{Temporary, 451, Enhanced{3, 0}, "timed out", 52}
	// NoSpace: the disk is full or a write failed.
	NoSpace = Reply{Temporary, 452, Enhanced{3, 1}, "no space here, please try again later", 53}
	// NoMemory: not enough memory.
	NoMemory = Reply{Temporary, 451, Enhanced{3, 0}, "out of memory here, please try again later", 51}
	// BadConfig: our configuration cannot be used.
	BadConfig = Reply{Temporary, 451, Enhanced{3, 5}, "temporary trouble here, please try again later", 55}
	// NoQueueFile: a file could not be made where the queue lives.
	NoQueueFile = Reply{Temporary, 451, Enhanced{3, 0}, "could not make a file in the queue", 63}
	// Internal: a state that should not be.
	Internal = Reply{Temporary, 451, Enhanced{3, 0}, "temporary trouble here, please try again later", 81}
	// Crashed: the next program died of a signal.
	Crashed = Reply{Temporary, 451, Enhanced{3, 0}, "next program crashed", 81}
	// CannotExec: the next program could not be run.
	CannotExec = Reply{Temporary, 451, Enhanced{3, 0}, "unable to run the next program", 71}
)

var byClass = [...]Reply{Temporary: Trouble, Success: OK, Permanent: Refused}

// byAction is the verdict column: what a verdict without words of its own
// answers. Discard and Quarantine look like success from outside.
var byAction = [Actions]Reply{
	Continue: OK, Accept: OK, Reject: Refused, Defer: Deferred, Discard: OK, Quarantine: OK,
}

// For is the answer of an action: given, if given has the class that the
// action needs, else the action's own row. Filters may thus leave Reply empty,
// and one that says "554" while it defers is not believed.
func For(a Action, given Reply) Reply {
	if int(a) >= Actions {
		return Trouble
	}
	row := byAction[a]
	if given == (Reply{}) || given.Class != row.Class {
		return row
	}
	if given.Code == 0 {
		given.Code = row.Code
	}
	if given.Enhanced == (Enhanced{}) {
		given.Enhanced = row.Enhanced
	}
	if given.Text == "" {
		given.Text = row.Text
	}
	return given
}
