package internet

import (
	"time"

	"github.com/postern-mta/postern/pipeline/smtp/smtptest"
)

// Manner is how a provider's servers behave. The zero Manner takes everything.
type Manner struct {
	// Connections are the most at a time, over all hosts of the provider; PerSource are
	// those from one address, PerAddress those to one of the provider's. 0 is no limit.
	// Full says no to one more; its zero value is Exim's way.
	Connections, PerSource, PerAddress int
	Full                               No
	// Messages are taken in each Window from one source; 0 is no limit. Fast says no
	// to one more, at MAIL unless it says otherwise; at Connect it is connections that
	// are counted.
	Messages int
	Window   time.Duration
	Fast     No
	// MessagesEach and RecipientsEach are taken over one connection; 0 is no limit.
	// Used says no to one more; its zero value is a 421.
	MessagesEach, RecipientsEach int
	Used                         No
	// Greylist puts off a new combination of source, sender and recipient for so long.
	Greylist   time.Duration
	Greylisted No
	// Mailboxes are the answers to RCPT for some local parts.
	Mailboxes map[string]string
	// Blocked, if it says anything, is said to all sources in Blocks, or to everybody if
	// that is empty.
	Blocked No
	Blocks  []string
}

// No is how something is refused: in which words, at which point, and whether
// the conversation ends with it. One without words ends it without a word.
type No struct {
	At    smtptest.At
	Reply string
	End   smtptest.End
}

func (n No) or(usual No) No {
	if n == (No{}) {
		return usual
	}
	return n
}

func (n No) step() *smtptest.Step { return &smtptest.Step{Reply: n.Reply, End: n.End} }

// Setting is what does not change about a host while it runs.
type Setting struct {
	// Tarpit is waited before every answer.
	Tarpit time.Duration
	TLS    TLS
	// Faults act where the provider's Manner has nothing to say.
	Faults []smtptest.Step
	// Extensions are offered in place of the usual ones.
	Extensions []string
}

// TLS is what a host's STARTTLS is worth.
type TLS uint8

// The kinds of TLS.
const (
	NoTLS      TLS = iota
	GoodTLS        // the certificate is the Internet's Authority's and for the host
	SelfSigned     // nobody vouches for it, and it is for another name
	Expired        // the certificate is over
	Stalls         // nothing comes of the handshake
	HangsUp        // the connection is closed in the handshake
)

// faults are the steps that make a kind of TLS what it is.
func (k TLS) faults() []smtptest.Step {
	switch k {
	case Stalls:
		return []smtptest.Step{{At: smtptest.Handshake, End: smtptest.Hole}}
	case HangsUp:
		return []smtptest.Step{{At: smtptest.Handshake, End: smtptest.Close}}
	}
	return nil
}
