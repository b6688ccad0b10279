package handoff

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"time"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/ingress/handoff/wire"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
)

// Chains gives the configuration in force. *pipeline.Generations is one.
type Chains interface {
	// Acquire is the current generation, to be released; nil if there is none.
	Acquire() *pipeline.Generation
}

// Limits bound one message. Zero fields mean the defaults of packages envelope
// and message; there is none for Size.
type Limits struct {
	Recipients int
	Size       int64 // bytes of the message
	Head       int   // bytes of its head
	Fields     int   // header fields
	// Total is the longest time for reading message and envelope, after which
	// the answer is exit 52. 0 means a day, as in qmail-queue.c.
	Total time.Duration
}

// Invokers are the uids that qmail's Received line calls by name
// (qmail-queue.c:receivedfmt); -1, or a nil *Invokers, for one that does not
// exist.
type Invokers struct{ Alias, Network, Bounce int }

// Options of a Server. Needed are Path or Listener, Chains, and Sink or Next.
type Options struct {
	// Log gets one line a message, and what the administrator should know.
	// Nil means slog.Default.
	Log *slog.Logger
	// Now is the clock; nil means time.Now.
	Now func() time.Time
	// Listener is a SOCK_SEQPACKET listener that was handed to us; nil means
	// that New makes one at Path, and that Shutdown removes it.
	Listener *net.UnixListener
	Path     string
	// Trusted are the uids whose environment is believed.
	Trusted []uint32
	// RemoteInfo takes TCPREMOTEINFO as the user who logged in; see the package.
	RemoteInfo bool
	// Entrance is Session.Entrance; "" means "qmail-queue".
	Entrance string
	Chains   Chains
	// Inbound and Local are the chains' names; "" means "inbound" and "local".
	Inbound, Local string
	// Sink takes the messages if Next is "".
	Sink pipeline.Sink
	// Next is the absolute path of the qmail-queue that takes them.
	Next     string
	NextMode NextMode
	// Remote makes the server one for the qmail-remote shim. Then Next, if there is
	// one, is the qmail-remote that sends the messages, and of the other options
	// those about chains, sinks and reports mean nothing.
	Remote *Remote
	// Marks put the origin of what goes to Next into the message, so that it is
	// known again when it leaves; nil puts none.
	Marks Marks
	// Kept holds what else Next is to take of a message; without it a message
	// that needs more than one run of Next is deferred.
	Kept *Kept
	// Quarantine stores what filters hold of a message whose rest goes to Next: all
	// of it, durably, or nothing. Undo removes it again, for when Next refuses that
	// rest and the caller will try again. Nil: such a message is deferred.
	Quarantine func(ctx context.Context, held []pipeline.Outgoing) (undo func(), err error)
	// Lines is what becomes of line ends and NULs; nil means message.Repair for
	// a Sink and message.Keep for Next.
	Lines  *message.Lines
	Limits Limits
	// Spool takes what is too large for memory; nil means that nothing is.
	Spool message.Spooler
	// Dialect is how callers are told why a message was not taken.
	Dialect wire.Dialect
	// Beat is how often a shim gets a sign of life (0: 10 s); after four of
	// them without one it gives up. Slow is the longest time between the
	// envelope's end and the answer (0: 5 min).
	Beat, Slow time.Duration
	// MaxSessions bounds the messages that are worked on at a time (0: 200).
	// As many more wait for a few seconds, and are then told to try later.
	MaxSessions int
	// MaxPerUser bounds the connections of one uid that is not trusted
	// (0: a quarter of MaxSessions), so that no user can keep others out.
	MaxPerUser int
	// Ours is Session.Ours.
	Ours func(domain string) bool
	// Ident makes the transactions' names, unique and without blanks; nil means
	// names of time and sequence.
	Ident func() string
	// Received puts qmail-queue's line on top of what goes to Sink.
	Received bool
	Invokers *Invokers
	// Observe hears of every message that was judged: what its caller was
	// answered, the zero Reply if nothing, and what the filters did. It is called
	// by many sessions at once and must be quick. It may be nil.
	Observe func(entrance string, answer reply.Reply, trace pipeline.Trace)
	// Report makes the reports about recipients who were refused while the
	// message is stored for others; they are stored with it, and their bodies
	// are released then. Nil, or an error, defers such a message.
	Report func(ctx context.Context, tx *pipeline.Transaction, refused []pipeline.Refusal, m message.Message) ([]pipeline.Outgoing, error)

	waits waits // for tests
}

// Marks puts the origin of messages into them; *mark.Marker is one. Its methods
// are called concurrently; neither retains the body.
type Marks interface {
	// Put is the message with its origin in it.
	Put(m message.Message, o pipeline.Origin) (message.Message, error)
	// Take is the message without such, and the origin that it had if that can be
	// believed; why says why not.
	Take(m message.Message) (out message.Message, o *pipeline.Origin, why, err error)
}

// waits are how long things may take that a living shim does at once.
type waits struct {
	hello  time.Duration // for the whole hello
	write  time.Duration // for one packet to be written
	slot   time.Duration // for one of MaxSessions to be free
	linger time.Duration // for the shim to hang up after its answer
}

// NextMode is how the shim runs Options.Next.
type NextMode uint8

// The zero NextMode, NextAuto, lets the shim become Next where the kernel tells
// us how a process that is not our child ended (Linux 6.15), and wait for it
// elsewhere, so that the log knows either way. With NextExec the log may have
// to say that it does not know. A message with copies is always waited for.
const (
	NextAuto NextMode = iota
	NextExec
	NextWait
)

var nextModes = [...]string{"auto", "exec", "wait"}

// String is the mode's word in the configuration.
func (m NextMode) String() string {
	if int(m) < len(nextModes) {
		return nextModes[m]
	}
	return "invalid"
}

// ParseNextMode is the inverse of String.
func ParseNextMode(s string) (NextMode, bool) {
	for i, name := range nextModes {
		if s == name {
			return NextMode(i), true
		}
	}
	return NextAuto, false
}

// withDefaults fills in what was left out.
func (o Options) withDefaults() Options {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Remote != nil {
		orText(&o.Entrance, "qmail-remote")
		if o.Limits.Total <= 0 {
			o.Limits.Total = wire.RemoteWait * time.Millisecond
		}
	}
	orText(&o.Entrance, "qmail-queue")
	orText(&o.Inbound, "inbound")
	orText(&o.Local, "local")
	orTime(&o.Beat, 10*time.Second)
	orTime(&o.Slow, 5*time.Minute)
	orTime(&o.waits.hello, 10*time.Second)
	orTime(&o.waits.write, 10*time.Second)
	orTime(&o.waits.slot, 5*time.Second)
	orTime(&o.waits.linger, time.Second)
	orTime(&o.Limits.Total, wire.TotalWait*time.Millisecond)
	if o.MaxSessions <= 0 {
		o.MaxSessions = 200
	}
	if o.MaxPerUser <= 0 {
		o.MaxPerUser = max(1, o.MaxSessions/4)
	}
	if o.Lines == nil {
		lines := message.Repair
		if o.Next != "" {
			lines = message.Keep
		}
		o.Lines = &lines
	}
	if o.Ident == nil {
		o.Ident = identifier(o.Now)
	}
	return o
}

func orText(s *string, otherwise string) {
	if *s == "" {
		*s = otherwise
	}
}

func orTime(d *time.Duration, otherwise time.Duration) {
	if *d <= 0 {
		*d = otherwise
	}
}

func (o *Options) check() error {
	switch {
	case o.Remote != nil && (o.Next == "") == (o.Remote.Deliver == nil), o.Remote != nil && o.Next != "" && o.Remote.Prepare == nil:
		return errors.New("handoff: Options.Remote needs either Next and Prepare, or Deliver")
	case o.Listener == nil && o.Path == "":
		return errors.New("handoff: neither Options.Listener nor Options.Path says where to listen")
	case o.Remote != nil:
	case o.Chains == nil:
		return errors.New("handoff: Options.Chains is missing")
	case o.Sink == nil && o.Next == "":
		return errors.New("handoff: neither Options.Sink nor Options.Next says who takes the messages")
	case !o.Dialect.Valid():
		return fmt.Errorf("handoff: unknown dialect %d", o.Dialect)
	}
	if o.Next != "" {
		return checkNext(o.Next)
	}
	return nil
}

func checkNext(path string) error {
	if !filepath.IsAbs(path) || len(path) >= wire.MaxPath || strings.ContainsRune(path, 0) {
		return fmt.Errorf("next = %q: the program must be named by its absolute path, of less than %d bytes", path, wire.MaxPath)
	}
	return nil
}
