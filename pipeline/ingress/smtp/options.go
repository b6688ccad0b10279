package smtp

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
	wire "github.com/postern-mta/postern/pipeline/smtp"
)

// MaxHops is how many passing systems a message may name before it is a loop
// (qmail-smtpd.c).
const MaxHops = 100

// Chains gives the configuration in force. *pipeline.Generations is one.
type Chains interface {
	// Acquire is the current generation, to be released; nil if there is none.
	Acquire() *pipeline.Generation
}

// Authenticator says who logs in. It is called by many sessions at once. It
// delays the answers to failures itself.
type Authenticator interface {
	// Authenticate checks a password and returns the user's name, which becomes
	// Session.User. An error is a *reply.Error, 535 5.7.8 for a wrong password
	// and 454 4.7.0 for trouble here; any other error counts as trouble.
	Authenticate(ctx context.Context, s *pipeline.Session, user, password string) (name string, err error)
}

// Relay says what a client is to us and who may send what where. It is called
// by many sessions at once. Errors are told to the client as reply.Of has them;
// one that is no *reply.Error is temporary.
type Relay interface {
	// Admit is asked once a connection, before the chain, and again when XCLIENT
	// names another client. The environment becomes Session.Env; a DATABYTES in it
	// is the limit of a message in bytes, 0 for none. An error is told in place of
	// the greeting. A stranger is asked about again after STARTTLS, of which a rule
	// may make something; an error ends the connection then.
	Admit(ctx context.Context, s *pipeline.Session) (pipeline.Standing, map[string]string, error)
	// Sender is asked at each MAIL.
	Sender(ctx context.Context, s *pipeline.Session, mail wire.Mail) error
	// Recipient is asked at each RCPT and may replace the recipient. The lot names
	// its settings: a recipient of another lot than the transaction's first is
	// put off with 452 4.5.3, so that the sender splits the message. An address
	// without a domain reaches it as it stands, "postmaster" among others.
	Recipient(ctx context.Context, s *pipeline.Session, sender string, r envelope.Recipient) (out envelope.Recipient, lot string, err error)
}

// Gate bounds connections by address. It is called by many sessions at once.
type Gate interface {
	// Admit counts a connection in, and release counts it out, once. An error is
	// a *reply.Error that is told in place of the greeting (421 or 554).
	Admit(addr netip.Addr) (release func(), err error)
}

// Names finds the client's host name. It is called by many sessions at once.
type Names interface {
	// Names are the forward-confirmed host name of an address and the name that
	// its reverse record claims, each "" if there is none. An error means that
	// they could not be found out; the names are then taken as far as they go.
	Names(ctx context.Context, addr netip.Addr) (confirmed, claimed string, err error)
}

// Service is what a listener is for.
type Service uint8

// MX takes mail from anybody, Submission from our own users, LMTP from a mail
// system that keeps a queue itself (RFC 2033).
const (
	MX Service = iota
	Submission
	LMTP
)

var services = [...]string{"mx", "submission", "lmtp"}

// String is the service's word in the configuration.
func (v Service) String() string { return word(services[:], int(v)) }

// ParseService is the inverse of String.
func ParseService(s string) (Service, bool) {
	i, ok := index(services[:], s)
	return Service(i), ok
}

// TLSMode is when a listener speaks TLS.
type TLSMode uint8

// The zero TLSMode never does. TLSRequire wants STARTTLS before MAIL and AUTH;
// TLSImplicit speaks TLS from the first byte (RFC 8314).
const (
	TLSOff TLSMode = iota
	TLSOffer
	TLSRequire
	TLSImplicit
)

var tlsModes = [...]string{"off", "offer", "require", "implicit"}

// String is the mode's word in the configuration.
func (m TLSMode) String() string { return word(tlsModes[:], int(m)) }

// ParseTLSMode is the inverse of String.
func ParseTLSMode(s string) (TLSMode, bool) {
	i, ok := index(tlsModes[:], s)
	return TLSMode(i), ok
}

func word(words []string, i int) string {
	if i < len(words) {
		return words[i]
	}
	return "invalid"
}

func index(words []string, s string) (int, bool) {
	for i, w := range words {
		if s == w {
			return i, true
		}
	}
	return 0, false
}

// Limits bound a session. Zero fields mean the defaults.
type Limits struct {
	// Sessions is how many may be open (1000). Those beyond hear 421.
	Sessions int
	// Message is the size of a message in bytes as Postern keeps it; 0 is none.
	Message int64
	// Recipients is how many a message may have (1000).
	Recipients int
	// Head and Fields bound a message's head in bytes and fields; package message
	// has the defaults.
	Head, Fields int
	// Messages is how many transactions a session may begin (1000); below 0 is no
	// limit.
	Messages int
	// BadCommands is how many commands may be refused for their form, their
	// order or their name (10), Idle how many may be given between messages that
	// lead nowhere: NOOP, RSET, VRFY, HELP, EHLO, transactions without a message
	// (100).
	BadCommands, Idle int
	// Unknown is how many recipients may be refused for good (50).
	Unknown int
	// Logins is how many may fail (3).
	Logins int
	// Command is the length of a command in bytes (wire.MaxCommand).
	Command int
}

// Timeouts bound what a session waits for. Zero fields mean the defaults.
type Timeouts struct {
	// Command is for a whole command line (5 min, RFC 5321 §4.5.3.2.7), Data for
	// each piece of a message (5 min).
	Command, Data time.Duration
	// Transaction is from MAIL to the message's end (2 h), Session for the whole
	// session (12 h); a message that has begun is read to its end.
	Transaction, Session time.Duration
	// Write is for each write (1 min), Handshake for TLS (1 min), Names for the
	// client's host name (5 s).
	Write, Handshake, Names time.Duration
	// Judge is for the chain's message stage and the commit together, and for
	// Relay.Admit and the Authenticator (5 min): clients wait for 10 after the
	// final dot (RFC 5321 §4.5.3.2.6), and must hear of it.
	Judge time.Duration
}

// Options of a Server. Needed are Listener, Hostname, Chains and Sink.
type Options struct {
	// Log gets one line a session and one a transaction, and what the
	// administrator should know. Nil means slog.Default.
	Log *slog.Logger
	// Now is the clock of what is written down; nil means time.Now.
	Now func() time.Time
	// Listener is where clients connect; Shutdown closes it.
	Listener net.Listener
	// Entrance is Session.Entrance; "" means the service's word.
	Entrance string
	Service  Service
	// Hostname is our name in the greeting and in Received. Greeting is the text
	// behind it (control/smtpgreeting without the name); "" means the protocol's.
	Hostname, Greeting string

	Chains Chains
	// Chain is the chain's name; "" means "inbound".
	Chain string
	Sink  pipeline.Sink
	// Spool takes what is too large for memory; nil means that nothing is.
	Spool message.Spooler
	// Lines is what becomes of bare CRs, bare LFs and NULs in a message: Refuse,
	// which nil means, or Repair. In commands they are always refused.
	Lines *message.Lines
	// Ours is Session.Ours.
	Ours func(domain string) bool
	// Mend fills in what a user's program left out, before the chain; nil leaves
	// messages alone. It may change addresses of the envelope but not how many
	// recipients there are, and the message's head but not its body.
	Mend func(ctx context.Context, s *pipeline.Session, e *envelope.Envelope, m message.Message) (message.Message, error)

	// Gate may be nil: no bounds but Limits.Sessions.
	Gate Gate
	// Strike hears of strangers whose session ended by their fault, with points
	// for how bad it was, from 2 to 10; it may be nil.
	Strike func(addr netip.Addr, points int)
	// Names may be nil: clients have no names.
	Names Names
	// Relay may be nil: everybody is a stranger, and only Ours get mail.
	Relay Relay
	// Auth may be nil: nobody can log in.
	Auth Authenticator
	// AuthPlain offers AUTH on connections without TLS.
	AuthPlain bool
	// TLS is needed unless TLSMode is TLSOff.
	TLS     *tls.Config
	TLSMode TLSMode
	// TLSReady reports whether there is a certificate by now; nil means that there
	// is. While there is none, STARTTLS is not offered, what needs TLS is put off,
	// and a listener with TLSImplicit closes its connections. It is called by many
	// sessions at once and must be quick.
	TLSReady func() bool
	// RequireTLS offers REQUIRETLS, under TLS (RFC 8689). The queue must honour
	// it; where it is not offered, it is refused.
	RequireTLS bool
	// Late holds the refusal of a connection, a HELO name or a sender back until
	// RCPT.
	Late bool

	Limits   Limits
	Timeouts Timeouts
	// GreetPause is how long a client must keep silent before the greeting; who
	// does not is refused. 0 means no pause and no such test.
	GreetPause time.Duration
	// Tarpit is the pause before each refusal from the TarpitAfter'th on (0: 3).
	// 0 means none.
	Tarpit      time.Duration
	TarpitAfter int
	// Exempt are networks that GreetPause and Tarpit are not for.
	Exempt []netip.Prefix
	// Proxies are the networks whose connections begin with a PROXY header (v1 or
	// v2), and must; from elsewhere it is just a bad command.
	Proxies []netip.Prefix
	// XClient are the networks that may say XCLIENT.
	XClient []netip.Prefix

	// Ident makes the sessions' names, unique and without blanks; nil means names
	// of time and sequence. A transaction adds a dot and its number.
	Ident func() string
	// Observe hears of every transaction that was answered: its answer, and what
	// the filters did. It is called by many sessions at once and must be quick. It
	// may be nil.
	Observe func(entrance string, answer reply.Reply, trace pipeline.Trace)
	// Transcript gives a writer for what is said in a session, or nil. It is asked
	// when the session begins. Passwords are masked, messages are sizes.
	Transcript func(*pipeline.Session) io.WriteCloser
	// Report makes the reports about recipients who were refused while the message
	// is stored for others; they are stored with it, and their bodies are released
	// then. Nil, or an error, defers such a message.
	Report func(ctx context.Context, tx *pipeline.Transaction, refused []pipeline.Refusal, m message.Message) ([]pipeline.Outgoing, error)
}

// withDefaults fills in what was left out.
func (o Options) withDefaults() Options {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	orText(&o.Entrance, o.Service.String())
	orText(&o.Chain, "inbound")
	if o.Lines == nil {
		lines := message.Refuse
		o.Lines = &lines
	}
	if o.Ident == nil {
		o.Ident = identifier(o.Now)
	}
	if o.Ours == nil {
		o.Ours = func(string) bool { return false }
	}
	if o.Relay == nil {
		o.Relay = oursOnly{o.Ours}
	}
	l, t := &o.Limits, &o.Timeouts
	orNumber(&l.Sessions, 1000)
	orNumber(&l.Recipients, 1000)
	if l.Messages == 0 {
		l.Messages = 1000
	}
	orNumber(&l.BadCommands, 10)
	orNumber(&l.Idle, 100)
	orNumber(&l.Unknown, 50)
	orNumber(&l.Logins, 3)
	orNumber(&l.Command, wire.MaxCommand)
	orNumber(&o.TarpitAfter, 3)
	orTime(&t.Command, 5*time.Minute)
	orTime(&t.Data, 5*time.Minute)
	orTime(&t.Transaction, 2*time.Hour)
	orTime(&t.Session, 12*time.Hour)
	orTime(&t.Write, time.Minute)
	orTime(&t.Handshake, time.Minute)
	orTime(&t.Names, 5*time.Second)
	orTime(&t.Judge, 5*time.Minute)
	return o
}

func orText(s *string, otherwise string) {
	if *s == "" {
		*s = otherwise
	}
}

func orNumber(n *int, otherwise int) {
	if *n <= 0 {
		*n = otherwise
	}
}

func orTime(d *time.Duration, otherwise time.Duration) {
	if *d <= 0 {
		*d = otherwise
	}
}

func (o *Options) check() error {
	switch {
	case o.Listener == nil:
		return errors.New("smtp: Options.Listener is missing")
	case o.Chains == nil:
		return errors.New("smtp: Options.Chains is missing")
	case o.Sink == nil:
		return errors.New("smtp: Options.Sink is missing")
	case o.Hostname == "" || reply.Clean(o.Hostname, maxName) != o.Hostname:
		return fmt.Errorf("smtp: %q is no host name to greet with", o.Hostname)
	case int(o.Service) >= len(services) || int(o.TLSMode) >= len(tlsModes):
		return fmt.Errorf("smtp: unknown service %d or TLS mode %d", o.Service, o.TLSMode)
	case o.TLSMode != TLSOff && o.TLS == nil:
		return fmt.Errorf("smtp: tls = %q needs a certificate", o.TLSMode)
	case o.Lines != nil && *o.Lines != message.Refuse && *o.Lines != message.Repair:
		return fmt.Errorf("smtp: lines = %q cannot be had from the network; choose refuse or repair", *o.Lines)
	}
	return nil
}

// oursOnly is the Relay of a server that was given none.
type oursOnly struct{ ours func(string) bool }

func (oursOnly) Admit(context.Context, *pipeline.Session) (pipeline.Standing, map[string]string, error) {
	return pipeline.Stranger, nil, nil
}

func (oursOnly) Sender(context.Context, *pipeline.Session, wire.Mail) error { return nil }

func (o oursOnly) Recipient(_ context.Context, _ *pipeline.Session, _ string, r envelope.Recipient) (envelope.Recipient, string, error) {
	if isPostmaster(r.Address) || o.ours(envelope.Domain(r.Address)) {
		return r, "", nil
	}
	return r, "", reply.With(noRelay, nil)
}

// identifier makes names of the time and a sequence number.
func identifier(now func() time.Time) func() string {
	var seq atomic.Uint64
	return func() string {
		return strconv.FormatInt(now().UnixMilli(), 36) + "-" + strconv.FormatUint(seq.Add(1), 36)
	}
}
