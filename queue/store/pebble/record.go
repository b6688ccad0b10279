package pebble

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
	"github.com/postern-mta/postern/queue/store"
)

// Every record begins with recordVersion and is made of single bytes, shortest
// uvarints, and texts with their length before them. There is one way only to
// write a record, and a reader accepts no other.
const recordVersion = 1

// chunkRecipients is how many recipients one envelope chunk holds.
const chunkRecipients = 1000

// Damage is a record that cannot be read. The message it belongs to is left on
// disk as it is and set aside.
type Damage struct {
	// Key is the record's key in words.
	Key string
	// Offset is the byte of the record at which it stopped making sense.
	Offset int
	Err    error
}

// Error says what, where, and what to do.
func (d *Damage) Error() string {
	return fmt.Sprintf("damaged record %s at byte %d: %v: the message is set aside, see `postern queue verify`", d.Key, d.Offset, d.Err)
}

// Unwrap gives the cause.
func (d *Damage) Unwrap() error { return d.Err }

// isDamage reports whether an error says that a record or the table it lies in
// is damaged, and not that it could not be read just now.
func isDamage(err error) bool {
	var d *Damage
	return errors.As(err, &d) || pebble.IsCorruptionError(err)
}

func damaged(key []byte, offset int, err error) error { return &Damage{keyName(key), offset, err} }

// The flags of an envelope's first chunk.
const (
	flagNoScan = 1 << iota
	flagUTF8
	flagRequireTLS
	flagFile
	flagEightBit
	flagShared
	flagArrived
	headerFlags = 1<<iota - 1
)

// header is the first chunk of an envelope: all of a message but its
// recipients and body.
type header struct {
	message    store.Message // without ID and recipients
	recipients uint32
	shared     bool // the body has sharers, see policySharer
}

func flags(set ...bool) (b byte) {
	for i, on := range set {
		if on {
			b |= 1 << i
		}
	}
	return b
}

func appendText[T string | []byte](b []byte, s T) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

func appendHeader(b []byte, h *header) []byte {
	m := &h.message
	e := &m.Envelope
	b = append(b, recordVersion, flags(e.NoScan, e.UTF8, e.RequireTLS, m.Body.File, m.Body.EightBit, h.shared, !m.Arrived.IsZero()), byte(m.Form), m.Bounce)
	b = binary.AppendUvarint(b, uint64(h.recipients))
	b = binary.AppendUvarint(b, uint64(m.Body.Of))
	b = binary.AppendUvarint(b, uint64(m.Body.Size))
	b = binary.AppendUvarint(b, uint64(m.Body.LFs))
	if !m.Arrived.IsZero() {
		b = binary.AppendUvarint(b, uint64(min(max(m.Arrived.UnixMilli(), 0), maxMillis)))
	}
	b = appendText(b, e.Sender)
	b = appendText(b, e.Ret)
	b = appendText(b, e.EnvID)
	b = appendText(b, m.Origin)
	return appendText(b, m.Head)
}

// decodeNumbers reads what precedes the texts of a header.
func decodeNumbers(d *decoder) (h header) {
	d.version()
	f := d.byte()
	if f&^byte(headerFlags) != 0 {
		d.fail("unknown flags %#02x", f)
	}
	m := &h.message
	m.Envelope.NoScan, m.Envelope.UTF8, m.Envelope.RequireTLS = f&flagNoScan != 0, f&flagUTF8 != 0, f&flagRequireTLS != 0
	m.Body.File, m.Body.EightBit, h.shared = f&flagFile != 0, f&flagEightBit != 0, f&flagShared != 0
	m.Form = message.Form(d.upTo(uint64(message.UTF8), d.byte))
	m.Bounce = d.byte()
	h.recipients = uint32(d.number(math.MaxUint32))
	m.Body.Of = store.ID(d.number(math.MaxUint64))
	m.Body.Size = int64(d.number(math.MaxInt64))
	m.Body.LFs = int64(d.number(math.MaxInt64))
	if f&flagArrived != 0 {
		m.Arrived = time.UnixMilli(int64(d.number(maxMillis))).UTC()
	}
	return h
}

func decodeHeader(key, record []byte) (header, error) {
	d := decoder{rest: record, all: record}
	h := decodeNumbers(&d)
	m := &h.message
	m.Envelope.Sender = d.text(envelope.MaxAddress)
	m.Envelope.Ret = d.text(len(record))
	m.Envelope.EnvID = d.text(len(record))
	if origin := d.text(len(record)); origin != "" {
		m.Origin = []byte(origin)
	}
	m.Head = d.text(len(record))
	return h, d.end(key)
}

// decodeWhole is decodeNumbers for a header that is whole.
func decodeWhole(record []byte) (h header, ok bool) {
	d := decoder{rest: record, all: record}
	h = decodeNumbers(&d)
	for _, most := range [...]int{envelope.MaxAddress, len(record), len(record), len(record), len(record)} {
		d.bytes(most)
	}
	return h, d.err == nil && len(d.rest) == 0
}

func appendRecipients(b []byte, recipients []envelope.Recipient) []byte {
	b = append(b, recordVersion)
	b = binary.AppendUvarint(b, uint64(len(recipients)))
	for _, r := range recipients {
		b = appendText(b, r.Address)
		if r.DSN == nil {
			b = append(b, 0)
			continue
		}
		b = append(b, 1, byte(r.DSN.Notify))
		b = appendText(b, r.DSN.ORcpt)
	}
	return b
}

// decodeRecipients appends those of one chunk to list. Their number is told by
// the header, so that a damaged count cannot ask for memory.
func decodeRecipients(key, record []byte, want int, list []envelope.Recipient) ([]envelope.Recipient, error) {
	d := decoder{rest: record, all: record}
	d.version()
	if n := d.number(chunkRecipients); d.err == nil && n != uint64(want) {
		d.fail("%d recipients where %d are wanted", n, want)
	}
	for range want {
		if d.err != nil {
			break
		}
		r := envelope.Recipient{Address: d.text(envelope.MaxAddress)}
		if d.upTo(1, d.byte) == 1 {
			r.DSN = &envelope.DSN{Notify: envelope.Notify(d.byte()), ORcpt: d.text(len(record))}
		}
		list = append(list, r)
	}
	return list, d.end(key)
}

// The flags of a state.
const (
	flagPerhaps = 1 << iota
	flagWarned
	flagReported
	flagDue
	flagLast
	stateFlags = 1<<iota - 1
)

func appendState(b []byte, s *store.State) []byte {
	b = append(b, recordVersion, flags(s.Perhaps, s.Warned, s.Reported, !s.Due.IsZero(), !s.Last.IsZero()), byte(s.Status))
	b = binary.AppendUvarint(b, uint64(s.Attempts))
	b = appendTime(appendTime(b, s.Due), s.Last)
	b = append(b, byte(min(s.Reply.Class, reply.Permanent)), s.Reply.Exit)
	b = binary.AppendUvarint(b, uint64(min(max(s.Reply.Code, 0), maxCode)))
	b = binary.AppendUvarint(b, uint64(s.Reply.Enhanced.Subject))
	b = binary.AppendUvarint(b, uint64(s.Reply.Enhanced.Detail))
	b = appendText(b, cleanText(s.Reply.Text, store.MaxReply))
	return appendText(b, cleanText(s.Where, store.MaxWhere))
}

// cleanText is the form in which a text is stored: a text cut after a blank
// loses the blank too, so that cleaning it again changes nothing.
func cleanText(s string, most int) string { return strings.TrimRight(reply.Clean(s, most), " ") }

// appendTime writes seconds since 1970; a time before is written as 0.
func appendTime(b []byte, t time.Time) []byte {
	if t.IsZero() {
		return b
	}
	return binary.AppendUvarint(b, uint64(min(max(t.Unix(), 0), maxTime)))
}

func decodeState(key, record []byte) (s store.State, err error) {
	d := decoder{rest: record, all: record}
	d.version()
	f := d.byte()
	if f&^byte(stateFlags) != 0 {
		d.fail("unknown flags %#02x", f)
	}
	s.Perhaps, s.Warned, s.Reported = f&flagPerhaps != 0, f&flagWarned != 0, f&flagReported != 0
	s.Status = store.Status(d.upTo(uint64(store.Failed), d.byte))
	s.Attempts = uint16(d.number(math.MaxUint16))
	if f&flagDue != 0 {
		s.Due = d.time()
	}
	if f&flagLast != 0 {
		s.Last = d.time()
	}
	s.Reply.Class = reply.Class(d.upTo(uint64(reply.Permanent), d.byte))
	s.Reply.Exit = d.byte()
	s.Reply.Code = int(d.number(maxCode))
	s.Reply.Enhanced.Subject = uint16(d.number(math.MaxUint16))
	s.Reply.Enhanced.Detail = uint16(d.number(math.MaxUint16))
	s.Reply.Text = d.clean(store.MaxReply)
	s.Where = d.clean(store.MaxWhere)
	return s, d.end(key)
}

// maxCode bounds the SMTP codes that are stored.
const maxCode = 999

// Bounds of a hold's texts and of policies in bytes.
const (
	maxHoldText    = 1000
	maxPolicyName  = 255
	maxPolicyValue = 1 << 20
)

func appendHold(b []byte, h *store.Hold) []byte {
	b = append(b, recordVersion, flags(!h.Since.IsZero()))
	b = appendTime(b, h.Since)
	for _, s := range [...]string{h.Reason, h.Filter, h.By} {
		b = appendText(b, s[:min(len(s), maxHoldText)])
	}
	return b
}

func decodeHold(key, record []byte) (h store.Hold, err error) {
	d := decoder{rest: record, all: record}
	d.version()
	if d.upTo(1, d.byte) == 1 {
		h.Since = d.time()
	}
	for _, s := range [...]*string{&h.Reason, &h.Filter, &h.By} {
		*s = d.text(maxHoldText)
	}
	return h, d.end(key)
}

// A body's record is one byte and the content, or the byte and the size of its
// file.
const (
	bodyInline = 0
	bodyFile   = 1
)

func appendBodyFile(b []byte, size int64) []byte {
	return binary.AppendUvarint(append(b, bodyFile), uint64(size))
}

// decodeBody gives the content, or that there is a file of that size.
func decodeBody(key, record []byte) (content []byte, file bool, size int64, err error) {
	d := decoder{rest: record, all: record}
	switch kind := d.upTo(bodyFile, d.byte); {
	case d.err != nil:
	case kind == bodyInline:
		return record[1:], false, int64(len(record) - 1), nil
	default:
		size = int64(d.number(math.MaxInt64))
	}
	return nil, true, size, d.end(key)
}

func appendNumber(b []byte, n uint64) []byte {
	return binary.AppendUvarint(append(b, recordVersion), n)
}

func decodeNumber(key, record []byte) (uint64, error) {
	d := decoder{rest: record, all: record}
	d.version()
	n := d.number(math.MaxUint64)
	return n, d.end(key)
}

// decoder reads a record. After its first failure it gives zeros.
type decoder struct {
	rest, all []byte
	err       error
	offset    int // where err is
}

var errShort = errors.New("the record ends early")

func (d *decoder) fail(format string, args ...any) {
	if d.err == nil {
		d.err = fmt.Errorf(format, args...)
		d.offset = len(d.all) - len(d.rest)
		d.rest = nil
	}
}

func (d *decoder) byte() byte {
	if d.err != nil || len(d.rest) == 0 {
		d.fail("%w", errShort)
		return 0
	}
	c := d.rest[0]
	d.rest = d.rest[1:]
	return c
}

func (d *decoder) version() {
	if v := d.byte(); d.err == nil && v != recordVersion {
		d.fail("record of version %d, not %d", v, recordVersion)
	}
}

func (d *decoder) upTo(most uint64, read func() byte) byte {
	c := read()
	if uint64(c) > most {
		d.fail("byte %#02x where at most %#02x is wanted", c, most)
		return 0
	}
	return c
}

// number reads a uvarint in its shortest form.
func (d *decoder) number(most uint64) uint64 {
	if d.err != nil {
		return 0
	}
	n, size := binary.Uvarint(d.rest)
	switch {
	case size == 0:
		d.fail("%w", errShort)
	case size < 0 || size > 1 && d.rest[size-1] == 0:
		d.fail("malformed number")
	case n > most:
		d.fail("number %d where at most %d is wanted", n, most)
	default:
		d.rest = d.rest[size:]
		return n
	}
	return 0
}

func (d *decoder) text(most int) string { return string(d.bytes(most)) }

// bytes is a text that is valid as long as the record.
func (d *decoder) bytes(most int) []byte {
	n := d.number(uint64(max(most, 0)))
	if d.err == nil && n > uint64(len(d.rest)) {
		d.fail("text of %d bytes: %w", n, errShort)
	}
	if d.err != nil {
		return nil
	}
	b := d.rest[:n]
	d.rest = d.rest[n:]
	return b
}

// clean reads a text that was cleaned when it was written.
func (d *decoder) clean(most int) string {
	s := d.text(most)
	if cleanText(s, most) != s {
		d.fail("text %q is not clean", s)
		return ""
	}
	return s
}

// maxTime keeps times within what can be printed and computed with: seconds.
// maxMillis is likewise, for milliseconds: the times that ids have.
const (
	maxTime   = 1 << 40
	maxMillis = 1<<42 - 1
)

func (d *decoder) time() time.Time { return time.Unix(int64(d.number(maxTime)), 0).UTC() }

func (d *decoder) end(key []byte) error {
	if d.err == nil && len(d.rest) > 0 {
		d.fail("%d bytes after the record's end", len(d.rest))
	}
	if d.err != nil {
		return damaged(key, d.offset, d.err)
	}
	return nil
}
