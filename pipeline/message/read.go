package message

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/postern-mta/postern/pipeline/reply"
)

// Lines is what an entrance does with line ends and NULs.
type Lines uint8

// Repair is the default: a message that goes into our queue is made canonical.
const (
	Repair Lines = iota // CR LF and bare CR become LF, NUL goes, a last line gets its LF
	Refuse              // bare CR, CR LF and NUL are reply.BadLines; a last line gets its LF
	Keep                // nothing changes: for what goes on to another qmail-queue
)

var lineNames = [...]string{"repair", "refuse", "keep"}

// String is the word of the option "lines".
func (l Lines) String() string {
	if int(l) < len(lineNames) {
		return lineNames[l]
	}
	return "invalid"
}

// ParseLines is the inverse of String.
func ParseLines(s string) (Lines, bool) {
	for i, name := range lineNames {
		if s == name {
			return Lines(i), true
		}
	}
	return 0, false
}

// Options of Read. The zero value repairs, and keeps everything in memory.
type Options struct {
	Lines Lines
	// Spool takes bodies above Memory bytes (0: InMemory). Nil: all in memory.
	Spool  Spooler
	Memory int
	// MaxSize bounds the message in bytes as they come; 0 means no bound.
	MaxSize int64
	// MaxHead bounds the head in bytes; 0 means DefaultMaxHead.
	MaxHead int
	// MaxFields bounds the fields; 0 means DefaultMaxFields.
	MaxFields int
	// BlankIsBody makes a first line that begins with a blank the start of the
	// body, for an entrance that puts a field of its own on top: such a line would
	// continue it. The bytes stay; an edit puts a blank line between.
	BlankIsBody bool
}

// The defaults of Options.
const (
	DefaultMaxHead   = 1 << 20
	DefaultMaxFields = 10_000
)

// maxFieldName is how far a line is searched for the colon of a field name.
const maxFieldName = 998

// Read reads a message to the end of r, which is io.EOF itself: any other error
// means that the message was cut off. The caller holds the body and must
// Release it. Errors are *reply.Error: reply.TooBig, reply.HeadTooBig,
// reply.BadLines; reply.NoSpace for those of the spool; and for those of r the
// answer that they carry, else reply.TimedOut for a deadline, else
// reply.ReadError. After an error nothing is left behind.
func Read(r io.Reader, o Options) (Message, error) {
	if o.MaxHead == 0 {
		o.MaxHead = DefaultMaxHead
	}
	if o.MaxFields == 0 {
		o.MaxFields = DefaultMaxFields
	}
	s := scratches.Get().(*scratch)
	defer s.done()
	d := reader{scratch: s, o: o, body: NewWriter(o.Spool, o.Memory)}
	if err := d.read(r); err != nil {
		d.body.Abort()
		return Message{}, err
	}
	body, err := d.body.Body()
	if err != nil {
		return Message{}, spoolError(err)
	}
	return Message{d.head, body}, nil
}

func spoolError(err error) error {
	return reply.With(reply.NoSpace, fmt.Errorf("spooling the message: %w", err))
}

func readError(err error) error {
	detail := fmt.Errorf("reading the message: %w", err)
	var known *reply.Error
	switch {
	case errors.As(err, &known):
		return reply.With(reply.Of(err), detail)
	case errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded):
		return reply.With(reply.TimedOut, detail)
	}
	return reply.With(reply.ReadError, detail)
}

// scratch is the memory that one Read needs and the next can use again.
type scratch struct {
	in     [32 << 10]byte
	text   []byte // of the head, and of the body's start until they are told apart
	starts []start
	fixed  []byte
}

// start is where a field begins in the head's text, and its name's length.
type start struct{ at, name int }

var scratches = sync.Pool{New: func() any { return new(scratch) }}

func (s *scratch) done() {
	s.text, s.starts = s.text[:0], s.starts[:0]
	if cap(s.text) > 2*len(s.in) {
		s.text = nil
	}
	if cap(s.starts) > 1024 {
		s.starts = nil
	}
	scratches.Put(s)
}

type reader struct {
	*scratch
	o        Options
	head     Head
	inBody   bool
	line     int // where in text the line begins that is not yet complete
	searched int // how many bytes of that line are known to hold no LF
	body     *Writer
	fix      lineFixer
	received int64
}

// maxEmptyReads is how often in a row a reader may give neither bytes nor an
// error.
const maxEmptyReads = 100

func (d *reader) read(r io.Reader) error {
	d.fix = lineFixer{lines: d.o.Lines, out: d.fixed}
	defer func() { d.fixed = d.fix.out }()
	for empty := 0; ; {
		n, err := r.Read(d.in[:])
		if d.received += int64(n); d.o.MaxSize > 0 && d.received > d.o.MaxSize {
			return reply.With(reply.TooBig, fmt.Errorf("message of more than %d bytes", d.o.MaxSize))
		}
		if err2 := d.take(d.in[:n]); err2 != nil {
			return err2
		}
		if empty++; n > 0 {
			empty = 0
		}
		switch {
		case err == io.EOF: // a wrapped EOF is a broken connection, not the message's end
			return d.finish()
		case err != nil:
			return readError(err)
		case empty == maxEmptyReads:
			return readError(io.ErrNoProgress)
		}
	}
}

func (d *reader) take(p []byte) error {
	p, err := d.fix.fix(p)
	if err != nil {
		return err
	}
	return d.put(p)
}

func (d *reader) put(p []byte) error {
	if d.inBody {
		if _, err := d.body.Write(p); err != nil {
			return spoolError(err)
		}
		return nil
	}
	d.text = append(d.text, p...)
	return d.scan(false)
}

// scan looks at the lines of text that are complete, or at all if last is set.
func (d *reader) scan(last bool) error {
	for !d.inBody && d.line < len(d.text) {
		end := d.lineEnd(last)
		if end == 0 {
			break
		}
		if err := d.takeLine(d.text[d.line : d.line+end]); err != nil {
			return err
		}
	}
	if d.inBody {
		return nil
	}
	return d.checkSize()
}

// lineEnd is the length of the next line, 0 if too little of it is there. Each
// byte is searched once, in however small pieces a long line comes.
func (d *reader) lineEnd(last bool) int {
	rest := d.text[d.line:]
	if i := bytes.IndexByte(rest[d.searched:], '\n'); i >= 0 {
		return d.searched + i + 1
	}
	decided := d.searched > maxFieldName
	d.searched = len(rest)
	if last || !decided && len(rest) > maxFieldName && d.kind(rest) == notField {
		return len(rest)
	}
	return 0
}

// checkSize compares what certainly belongs to the head with its bound, so
// that the answer does not depend on the pieces in which a message comes.
func (d *reader) checkSize() error {
	size := d.line
	if len(d.text) > d.o.MaxHead && len(d.text) > d.line && d.kind(d.text[d.line:]) != notField {
		size = len(d.text)
	}
	if size > d.o.MaxHead {
		return reply.With(reply.HeadTooBig, fmt.Errorf("message head of more than %d bytes", d.o.MaxHead))
	}
	return nil
}

func (d *reader) takeLine(line []byte) error {
	kind := d.kind(line)
	switch {
	case string(line) == "\n" || string(line) == "\r\n":
		return d.endHead(string(line))
	case kind == notField:
		return d.endHead("")
	case kind == continuation && len(d.starts) > 0:
	default:
		if len(d.starts) == d.o.MaxFields {
			return reply.With(reply.HeadTooBig, fmt.Errorf("more than %d header fields", d.o.MaxFields))
		}
		d.starts = append(d.starts, start{d.line, max(kind, 0)})
	}
	d.line += len(line)
	d.searched = 0
	return nil
}

// endHead closes the head before the line at d.line; what follows the
// separator is body.
func (d *reader) endHead(separator string) error {
	if err := d.checkSize(); err != nil {
		return err
	}
	d.inBody = true
	text := string(d.text[:d.line])
	d.head = Head{fields: make([]Field, len(d.starts)), separator: separator}
	for i, s := range d.starts {
		end := len(text)
		if i+1 < len(d.starts) {
			end = d.starts[i+1].at
		}
		d.head.fields[i] = Field{text: text[s.at:end], name: s.name}
	}
	return d.put(d.text[d.line+len(separator):])
}

func (d *reader) finish() error {
	if err := d.put(d.fix.end()); err != nil {
		return err
	}
	if err := d.scan(true); err != nil || d.inBody {
		return err
	}
	return d.endHead("")
}

// What kind of line one is; above zero is the length of a field's name.
const (
	notField     = -2
	continuation = -1
)

// kind tells whether a line of a head is a field, continues one, or ends the
// head because it is neither. An mbox "From " line on top counts as continuing
// what is not there.
func (d *reader) kind(line []byte) int {
	if line[0] == ' ' || line[0] == '\t' {
		if d.line == 0 && d.o.BlankIsBody {
			return notField
		}
		return continuation
	}
	if n := nameLength(line); n > 0 {
		return n
	}
	if d.line == 0 && (bytes.HasPrefix(line, []byte("From ")) || bytes.HasPrefix(line, []byte(">From "))) {
		return continuation
	}
	return notField
}

// nameLength is the length of the field name with which line begins, 0 if it
// begins with none. It is as lenient as mail systems are: blanks before the
// colon are borne, and bytes above 127 in a name, but no other.
func nameLength(line []byte) int {
	colon := bytes.IndexByte(line[:min(len(line), maxFieldName)], ':')
	if colon < 0 {
		return 0
	}
	name := bytes.TrimRight(line[:colon], " \t")
	for _, c := range name {
		if c <= ' ' || c == 0x7f {
			return 0
		}
	}
	return len(name)
}

// ParseHead reads a head from its text, as far as it goes; rest is the body.
func ParseHead(text string) (h Head, rest string) {
	m := FromString(text)
	content, _ := m.body.Memory()
	return m.head, string(content)
}

// lineFixer brings line ends into the canonical form.
type lineFixer struct {
	lines Lines
	cr    bool // a CR came last; it is an LF by now, and an LF after it is part of it
	last  byte // the last byte of what was converted, 0 if there was none
	out   []byte
}

// fix converts p, which it may return as it is. The result is valid until the
// next call.
func (f *lineFixer) fix(p []byte) ([]byte, error) {
	if len(p) == 0 || f.lines == Keep {
		return p, nil
	}
	if !f.cr && bytes.IndexByte(p, '\r') < 0 && bytes.IndexByte(p, 0) < 0 {
		f.last = p[len(p)-1]
		return p, nil
	}
	if f.lines == Refuse {
		return nil, reply.With(reply.BadLines, errors.New("message holds a CR or a NUL"))
	}
	f.out = f.out[:0]
	for len(p) > 0 {
		if f.cr && p[0] == '\n' {
			p = p[1:]
		}
		n := bytes.IndexByte(p, '\r')
		if f.cr = n >= 0; !f.cr {
			f.withoutNUL(p)
			break
		}
		f.withoutNUL(p[:n])
		f.out = append(f.out, '\n')
		p = p[n+1:]
	}
	if n := len(f.out); n > 0 {
		f.last = f.out[n-1]
	}
	return f.out, nil
}

func (f *lineFixer) withoutNUL(p []byte) {
	for {
		n := bytes.IndexByte(p, 0)
		if n < 0 {
			f.out = append(f.out, p...)
			return
		}
		f.out = append(f.out, p[:n]...)
		p = p[n+1:]
	}
}

// end is what the message still lacks at its end.
func (f *lineFixer) end() []byte {
	if f.lines == Keep || f.last == 0 || f.last == '\n' {
		return nil
	}
	return []byte{'\n'}
}
