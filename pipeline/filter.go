// Package pipeline is the vocabulary of Postern (session, transaction, verdict,
// filter, origin) and the chain that runs filters over a message.
//
// It promises that the first verdict that is not "continue" decides for its
// recipients; that an error, a panic or a time-out of a filter never refuses
// mail but does what the filter's OnError says; that a filter which fails
// leaves the message as it was; that a message is stored for all its
// recipients or for none of them, unless its refused recipients get a report;
// and that everything a filter did is in the trace.
package pipeline

import (
	"context"
	"log/slog"
	"time"

	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/program"
	"github.com/postern-mta/postern/pipeline/reply"
	process "github.com/postern-mta/postern/pipeline/worker"
)

// Kind is a sort of filter that a configuration can name.
type Kind struct {
	// Name is the word in the configuration, the folder and the metric label.
	Name string
	// New makes a filter from its configuration. It reads what it needs but
	// starts nothing and changes nothing: a configuration that is refused must
	// leave no trace.
	New func(Env, Decode) (Filter, error)
}

// Decode reads a filter's part of the configuration into a struct. It is
// strict: unknown keys are errors. Its errors carry file and line.
type Decode func(into any) error

// Env is what a filter may use of the daemon.
type Env struct {
	Log *slog.Logger
	// Name is the filter's name in the configuration; empty only in a test.
	Name string
	// Host is the name of this host, as the configuration has it.
	Host     string
	Now      func() time.Time
	Resolver Resolver
	State    State
	Spool    message.Spooler
	// Secret derives a key of this installation for a purpose, for marks that
	// nobody else can make. It is the same after a restart.
	Secret func(purpose string) []byte
	// Workers do what parses hostile input; nil if there are none, as where a
	// configuration is only looked at.
	Workers Workers
	// Programs starts programs that are not ours; nil if nothing may be started,
	// as where a configuration is only looked at.
	Programs Programs
	// Callouts asks other servers about recipients; nil if nobody may be asked, as
	// where a configuration is only looked at, or a message explained.
	Callouts Callouts
}

// Callouts asks the server that mail for a domain goes to, by route or MX, whether
// it would take mail from nobody for some recipients, whom it tells nothing else. The
// answers are in their order; any error means that they are not known. It is safe
// for concurrent use.
type Callouts interface {
	Ask(ctx context.Context, domain string, recipients ...string) ([]reply.Reply, error)
}

// Workers does a job in a process of its own, as worker.Pool does, and returns
// its answer.
type Workers interface {
	Do(ctx context.Context, r process.Request) (answer []byte, err error)
}

// Programs starts programs, as program.Starter does.
type Programs interface {
	Start(spec program.Spec) (*program.Process, error)
}

// Resolver asks the DNS. Errors are of type *net.DNSError.
type Resolver interface {
	LookupTXT(ctx context.Context, name string) ([]string, error)
	LookupHost(ctx context.Context, name string) ([]string, error)
	LookupAddr(ctx context.Context, address string) ([]string, error)
}

// State is what a filter remembers between messages: bounded, expiring, in a
// name space of its own. It may lose its last seconds in a crash.
type State interface {
	Get(ctx context.Context, key string) (value []byte, found bool, err error)
	Put(ctx context.Context, key string, value []byte, ttl time.Duration) error
	Delete(ctx context.Context, key string) error
}

// Filter is one filter as configured. Open is called concurrently, within the
// time of the first call that needs the instance, and its context ends with that
// call; a filter without state of its own returns itself, and its Close does
// nothing. A Filter that is an io.Closer is
// closed with its generation.
type Filter interface {
	Open(context.Context, *Session) (Instance, error)
}

// Instance is a filter at work on one session. Its methods are called one
// after the other, Close last and once. After a call that overran its time
// there is none but Close, when that call has ended. What it can do, it says by
// implementing Connecter, Heloer, Senderer, Recipienter, Messager, Deliverer,
// Resetter.
type Instance interface {
	Close() error
}

// Connecter judges a connection.
type Connecter interface {
	Connect(context.Context, *Session) (Verdict, error)
}

// Heloer judges a client's name.
type Heloer interface {
	Helo(context.Context, *Session) (Verdict, error)
}

// Senderer judges an envelope sender.
type Senderer interface {
	Sender(context.Context, *Transaction) (Verdict, error)
}

// Recipienter judges one recipient.
type Recipienter interface {
	Recipient(context.Context, *Transaction, envelope.Recipient) (Verdict, error)
}

// Messager judges a message. The message is valid during the call.
type Messager interface {
	Message(context.Context, *Transaction, message.Message) (Verdict, error)
}

// Deliverer works on a message as it leaves.
type Deliverer interface {
	Deliver(context.Context, *Delivery, message.Message) (Verdict, error)
}

// Resetter forgets the transaction that was going on (RSET, a lost client).
type Resetter interface {
	Reset()
}

// Traits are what a filter is by nature; the configuration may overrule the
// first two. A filter tells them by implementing Traited; else it has the zero
// Traits.
type Traits struct {
	// OnError is what the chain does when the filter fails.
	OnError OnError
	// Always has the filter run where an earlier one has accepted.
	Always bool
	// Strangers has the filter run for mail from outside only.
	Strangers bool
	// Stages are those at which its instances judge. It must name them all.
	Stages []Stage
}

// Traited is a Filter that tells its traits.
type Traited interface {
	Traits() Traits
}

// OnError is what becomes of a message when a filter fails.
type OnError uint8

// The zero OnError defers: what protects must not be walked around by making
// it fail.
const (
	ErrorDefers OnError = iota
	ErrorContinues
)

var onErrorNames = [...]string{"defer", "continue"}

// String is the word of the option "on_error".
func (o OnError) String() string {
	if int(o) < len(onErrorNames) {
		return onErrorNames[o]
	}
	return "invalid"
}

// ParseOnError is the inverse of String.
func ParseOnError(s string) (OnError, bool) {
	for i, name := range onErrorNames {
		if s == name {
			return OnError(i), true
		}
	}
	return ErrorDefers, false
}

// Outgoing is one message that a chain lets through, for a Sink to take.
type Outgoing struct {
	Envelope envelope.Envelope
	// Message is held by the Outcome it came with; a Sink that keeps it retains it.
	Message message.Message
	Origin  Origin
	// Hold is why the message is to be held instead of delivered, "" if it is not.
	Hold string
	// Copy is set for a message that a filter added: its failure is not the
	// sender's business.
	Copy bool
}

// Sink takes messages: all of them, durably, or none. Success is answered only
// when they are safe.
type Sink interface {
	Submit(context.Context, []Outgoing) (reply.Reply, error)
}
