package greylist

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/postern-mta/postern/pipeline"
)

// The keys: of a triplet t, 8 bytes of its client's hash, 12 of its own; of a
// client c and its name.
const (
	tripletKey = 't'
	clientKey  = 'c'
)

// version is the first byte of a record.
const version = 1

const (
	flagPassed = 1 << iota
	flagHand
)

const (
	// maxPart bounds each text of a record.
	maxPart = 255
	maxGood = 1_000_000
)

var errRecord = errors.New("greylist: a record is damaged")

// triplet is who wrote to whom, and when.
type triplet struct {
	client, sender, recipient string
	first, last               time.Time
	passed                    bool
}

// key is the triplet's name in the state.
func (t triplet) key() string {
	b := clientPrefix(t.client)
	sum := sha256.Sum256(part(part(part(nil, t.client, false), t.sender, false), t.recipient, false))
	return string(append(b, sum[:12]...))
}

// clientPrefix begins the keys of a client's triplets.
func clientPrefix(client string) []byte {
	sum := sha256.Sum256([]byte(client))
	return append([]byte{tripletKey}, sum[:8]...)
}

// part appends a text and its length, cut if asked for.
func part(b []byte, s string, cut bool) []byte {
	if cut && len(s) > maxPart {
		s = s[:maxPart]
	}
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

func (t triplet) encode() []byte {
	flags := byte(0)
	if t.passed {
		flags |= flagPassed
	}
	b := times([]byte{version, flags}, t.first, t.last)
	return part(part(part(b, t.client, true), t.sender, true), t.recipient, true)
}

// times appends two times, to the second.
func times(b []byte, first, last time.Time) []byte {
	b = binary.AppendUvarint(b, uint64(max(first.Unix(), 0)))
	return binary.AppendVarint(b, last.Unix()-first.Unix())
}

// reader reads the parts of a record. What is asked for after an error is zero.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) fail() {
	r.b, r.bad = nil, true
}

func (r *reader) byte() byte {
	if len(r.b) == 0 {
		r.fail()
		return 0
	}
	c := r.b[0]
	r.b = r.b[1:]
	return c
}

func (r *reader) number(most uint64) uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 || v > most {
		r.fail()
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) times() (first, last time.Time) {
	const most = 1 << 40
	seconds := int64(r.number(most))
	more, n := binary.Varint(r.b)
	if n <= 0 || more < -most || more > most {
		r.fail()
		return first, last
	}
	r.b = r.b[n:]
	return time.Unix(seconds, 0), time.Unix(seconds+more, 0)
}

func (r *reader) part() string {
	n := int(r.number(maxPart))
	if n > len(r.b) {
		r.fail()
		return ""
	}
	s := string(r.b[:n])
	r.b = r.b[n:]
	return s
}

// head reads version and flags.
func (r *reader) head(known byte) (flags byte) {
	if r.byte() != version {
		r.fail()
	}
	if flags = r.byte(); flags&^known != 0 {
		r.fail()
	}
	return flags
}

// decodeTriplet is the inverse of encode; texts may have been cut.
func decodeTriplet(b []byte) (t triplet, err error) {
	r := reader{b: b}
	flags := r.head(flagPassed)
	t.first, t.last = r.times()
	t.client, t.sender, t.recipient = r.part(), r.part(), r.part()
	t.passed = flags&flagPassed != 0
	if r.bad || len(r.b) > 0 {
		return triplet{}, errRecord
	}
	return t, nil
}

// known is what is recorded of a client.
type known struct {
	good int
	// hand is set where an operator has allowed it.
	hand        bool
	first, last time.Time
}

// why says what a client passes for.
func (c known) why() string {
	if c.hand {
		return "was allowed by hand"
	}
	return fmt.Sprintf("is known: %d came back", c.good)
}

func (c known) encode() []byte {
	flags := byte(0)
	if c.hand {
		flags |= flagHand
	}
	return binary.AppendUvarint(times([]byte{version, flags}, c.first, c.last), uint64(c.good))
}

// decodeKnown is the inverse of encode.
func decodeKnown(b []byte) (c known, err error) {
	r := reader{b: b}
	flags := r.head(flagHand)
	c.first, c.last = r.times()
	c.good, c.hand = int(r.number(maxGood)), flags&flagHand != 0
	if r.bad || len(r.b) > 0 {
		return known{}, errRecord
	}
	return c, nil
}

// book is the state, as records. A record that cannot be read is as good as
// none: it is written again.
type book struct{ state pipeline.State }

var errNoState = errors.New("there is nowhere to record it")

func (b book) get(ctx context.Context, key string) ([]byte, bool, error) {
	if b.state == nil {
		return nil, false, nil
	}
	return b.state.Get(ctx, key)
}

func (b book) put(ctx context.Context, key string, value []byte, ttl time.Duration) error {
	if b.state == nil {
		return errNoState
	}
	return b.state.Put(ctx, key, value, ttl)
}

// triplet is a triplet as it is recorded.
func (b book) triplet(ctx context.Context, t triplet) (triplet, bool, error) {
	v, ok, err := b.get(ctx, t.key())
	if err != nil || !ok {
		return t, false, err
	}
	found, err := decodeTriplet(v)
	if err != nil {
		return t, false, nil
	}
	t.first, t.last, t.passed = found.first, found.last, found.passed
	return t, true, nil
}

func (b book) putTriplet(ctx context.Context, t triplet, ttl time.Duration) error {
	return b.put(ctx, t.key(), t.encode(), ttl)
}

func (b book) client(ctx context.Context, name string) (known, bool, error) {
	v, ok, err := b.get(ctx, string(clientKey)+name)
	if err != nil || !ok {
		return known{}, false, err
	}
	c, err := decodeKnown(v)
	return c, err == nil, nil
}

func (b book) putClient(ctx context.Context, name string, c known, ttl time.Duration) error {
	return b.put(ctx, string(clientKey)+name, c.encode(), ttl)
}
