// Package store says what the queue keeps on disk and what a store must
// promise; store/pebble keeps it.
//
// A message is written once, with its envelope, head, origin and body, and
// never changes. What happens to its recipients is written beside it, one state
// for each that was tried; a recipient without a state was never tried. A
// message is held by a hold of its own. Everything that belongs together is one
// Batch, and a batch is applied as a whole or not at all, also by a power cut.
package store

import (
	"context"
	"errors"
	"time"

	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
)

// Message is one queued message.
type Message struct {
	ID ID
	// Envelope is whom it is from and for; recipients are numbered from 0.
	Envelope envelope.Envelope
	// Head is the head's text with its separator; it is kept with the envelope.
	Head string
	Body BodyInfo
	Form message.Form
	// Origin is opaque to the queue.
	Origin []byte
	// Bounce is how many reports deep the message is: 0 for mail, 1 for a report
	// about mail, 2 for one about a report (a double bounce).
	Bounce uint8
	// Arrived is when it came, in UTC and to the millisecond, if its ID does not
	// say so: ids ascend also when the clock goes back. See Arrival.
	Arrived time.Time
}

// Arrival is when the message came by the clock of that time, to the
// millisecond. Its age counts from there.
func (m *Message) Arrival() time.Time {
	if m.Arrived.IsZero() {
		return m.ID.Time()
	}
	return m.Arrived
}

// BodyInfo describes a stored body.
type BodyInfo struct {
	// Of is the message whose body this is: its own ID, or that of the message
	// of the same batch which it shares a body with.
	Of ID
	// File is set if the body is a file of its own, and not in the store.
	File      bool
	Size, LFs int64
	EightBit  bool
}

// Status is what has become of a recipient.
type Status uint8

// The statuses. A recipient without a stored State is Fresh.
const (
	Fresh     Status = iota // never tried
	Deferred                // tried, to be tried again when due
	Delivered               // the next server or mailbox has it
	Failed                  // given up
)

var statusNames = [...]string{"fresh", "deferred", "delivered", "failed"}

// String is the status's word in listings.
func (s Status) String() string {
	if int(s) < len(statusNames) {
		return statusNames[s]
	}
	return "invalid"
}

// Done reports whether nothing more is to be tried.
func (s Status) Done() bool { return s == Delivered || s == Failed }

// State is what has become of one recipient.
type State struct {
	Status   Status
	Attempts uint16
	// Due is when a Deferred recipient may be tried again, to the second.
	Due time.Time
	// Last is when it was tried last, to the second.
	Last time.Time
	// Reply is what was answered last; its text is clean and at most MaxReply bytes.
	Reply reply.Reply
	// Where names the server or mailbox that answered, at most MaxWhere bytes.
	Where string
	// Perhaps is set if a connection was lost after the final dot: the message
	// may have been delivered although it was not acknowledged.
	Perhaps bool
	// Warned is set once the sender was told of a delay.
	Warned bool
	// Reported is set once the sender was told of the end, or must not be.
	Reported bool
}

// Bounds of a State's texts in bytes.
const (
	MaxReply = 1000
	MaxWhere = 300
)

// Hold keeps a message from being delivered until it is released.
type Hold struct {
	// Reason is why, for people; Filter is set if a filter did it.
	Reason string
	Filter string
	Since  time.Time
	// By is who did it, "" for a filter.
	By string
}

// Put is a message to be stored, with its body unless another Put of the same
// batch brings it (Message.Body.Of; 0 means its own). Its ID comes from NewID
// and is used once; it has a recipient. Apply fills in the rest of
// Message.Body.
type Put struct {
	Message Message
	// Body is read while the batch is applied. A body that lies in a file of the
	// store's spool is taken by renaming the file; it can go on being read.
	Body *message.Body
	Hold *Hold
}

// SetState is a recipient's new state.
type SetState struct {
	ID        ID
	Recipient uint32
	State     State
}

// SetHold is a message's new hold; nil releases it.
type SetHold struct {
	ID   ID
	Hold *Hold
}

// Batch is changes that are made together. States, Removes and Holds of
// messages that are gone are passed over: a delivery may end after an operator
// has deleted its message.
type Batch struct {
	Puts   []Put
	States []SetState
	// Removes are messages that are done with: everything about them goes. A
	// body goes with the last message that shares it.
	Removes []ID
	Holds   []SetHold
	// Policies sets named opaque values; an empty value removes one.
	Policies []Policy
}

// Policy is a named value that the queue keeps: a standing order of an operator.
type Policy struct {
	Name  string
	Value []byte
}

// Store keeps messages. It is safe for concurrent use.
//
// Apply looks at its context last just before it commits; from then on only the
// disk can make it fail, and when it returns nil the batch is on stable
// storage, directory entries included, and so is every batch before it, also if
// this one changes nothing. With later set it returns as soon as the
// batch is in order behind those before it, and the disk's answer is awaited by
// nobody: for what may be done again after a crash. Errors of Apply are
// reply.NoSpace below the low-water mark, ErrClosed, or leave the batch undone.
// A failed write of the store's log ends the process: see Options.Fatal of the
// implementation.
type Store interface {
	Apply(ctx context.Context, b *Batch, later bool) error
	// Reader gives a consistent view, which the caller closes soon.
	Reader() (Reader, error)
	// NewID is an id greater than every one before, also after a restart and
	// when the clock goes back. It is 0 once the store is closed.
	NewID() ID
}

// Reader reads a store.
type Reader interface {
	// Message is a message with all its recipients; ErrNotFound if it is gone.
	Message(id ID) (*Message, error)
	// Body opens a message's body, held by the caller, who may read it after the
	// Reader is closed, and after the message is removed.
	Body(m *Message) (*message.Body, error)
	// Scan calls f for every message with id >= from in ascending order, until f
	// fails. What f is given is valid during the call.
	Scan(from ID, f func(*Entry) error) error
	// Policies are all values set by Batch.Policies, by name.
	Policies() ([]Policy, error)
	Close() error
}

// Entry is a message as a Scan gives it.
type Entry struct {
	Message *Message
	// States are those of the recipients that have one, in ascending order.
	States []SetState
	Hold   *Hold
}

// State is that of recipient n, the zero State if it has none.
func (e *Entry) State(n uint32) State {
	lo, hi := 0, len(e.States)
	for lo < hi {
		mid := (lo + hi) / 2
		if e.States[mid].Recipient < n {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	if lo < len(e.States) && e.States[lo].Recipient == n {
		return e.States[lo].State
	}
	return State{}
}

// The errors that callers tell apart.
var (
	ErrNotFound = errors.New("no such message in the queue")
	ErrClosed   = errors.New("the queue's store is closed")
)
