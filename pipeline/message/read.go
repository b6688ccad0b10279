package message

import (
	"bytes"
	"errors"
	"fmt"
	"io"

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
func (l Lines) String() string { return lineNames[l] }

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
}

// The defaults of Options.
const (
	DefaultMaxHead   = 1 << 20
	DefaultMaxFields = 10_000
)

// maxFieldName is how far a line is searched for the colon of a field name.
const maxFieldName = 998

// Read reads a message to the end of r. The caller holds the body and must
// Release it. Errors are *reply.Error where the peer may know: reply.TooBig,
// reply.HeadTooBig, reply.BadLines, reply.ReadError; those of the spool come
// as reply.NoSpace. After an error nothing is left behind.
func Read(r io.Reader, o Options) (Message, error) {
	if o.MaxHead == 0 {
		o.MaxHead = DefaultMaxHead
	}
	if o.MaxFields == 0 {
		o.MaxFields = DefaultMaxFields
	}
	d := reader{o: o, body: NewWriter(o.Spool, o.Memory)}
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

type reader struct {
	o        Options
	head     Head
	inBody   bool
	text     []byte // of the head, and of the body's start until they are told apart
	line     int    // where in text the line begins that is not yet complete
	starts   []start
	body     *Writer
	fix      lineFixer
	received int64
}

// start is where a field begins in the head's text, and its name's length.
type start struct{ at, name int }

func (d *reader) read(r io.Reader) error {
	d.fix.lines = d.o.Lines
	buf := make([]byte, 32<<10)
	for {
		n, err := r.Read(buf)
		if d.received += int64(n); d.o.MaxSize > 0 && d.received > d.o.MaxSize {
			return reply.With(reply.TooBig, fmt.Errorf("message of more than %d bytes", d.o.MaxSize))
		}
		if err2 := d.take(buf[:n]); err2 != nil {
			return err2
		}
		if errors.Is(err, io.EOF) {
			return d.finish()
		}
		if err != nil {
			return reply.With(reply.ReadError, fmt.Errorf("reading the message: %w", err))
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
		rest := d.text[d.line:]
		end := bytes.IndexByte(rest, '\n') + 1
		if end == 0 && !last && (len(rest) <= maxFieldName || d.kind(rest) != notField) {
			break
		}
		if end == 0 {
			end = len(rest)
		}
		if err := d.takeLine(rest[:end]); err != nil {
			return err
		}
	}
	if !d.inBody && len(d.text) > d.o.MaxHead {
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
	return nil
}

// endHead closes the head before the line at d.line; what follows the
// separator is body.
func (d *reader) endHead(separator string) error {
	if d.line > d.o.MaxHead {
		return reply.With(reply.HeadTooBig, fmt.Errorf("message head of %d bytes, of which %d are allowed", d.line, d.o.MaxHead))
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
	rest := d.text[d.line+len(separator):]
	d.text, d.starts = nil, nil
	return d.put(rest)
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

// What kind of line one is; zero and above is the length of a field's name.
const (
	notField     = -2
	continuation = -1
)

// kind tells whether a line of a head is a field, continues one, or ends the
// head because it is neither. It is as lenient as mail systems are: blanks
// before the colon are borne, and bytes above 127 in a name, but no other.
func (d *reader) kind(line []byte) int {
	if line[0] == ' ' || line[0] == '\t' {
		return continuation
	}
	if d.line == 0 && (bytes.HasPrefix(line, []byte("From ")) || bytes.HasPrefix(line, []byte(">From "))) {
		return continuation
	}
	if len(line) > maxFieldName {
		line = line[:maxFieldName]
	}
	colon := bytes.IndexByte(line, ':')
	if colon < 0 {
		return notField
	}
	name := bytes.TrimRight(line[:colon], " \t")
	for _, c := range name {
		if c <= ' ' || c == 0x7f {
			return notField
		}
	}
	if len(name) == 0 {
		return notField
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
	cr    bool // a CR came last and is still owed
	any   bool
	last  byte
	out   []byte
}

// fix converts p, which it may return as it is. The result is valid until the
// next call.
func (f *lineFixer) fix(p []byte) ([]byte, error) {
	if len(p) == 0 {
		return p, nil
	}
	f.any = true
	if !f.cr && bytes.IndexByte(p, '\r') < 0 && bytes.IndexByte(p, 0) < 0 || f.lines == Keep {
		f.last = p[len(p)-1]
		return p, nil
	}
	if f.lines == Refuse {
		return nil, reply.With(reply.BadLines, errors.New("message holds a CR or a NUL"))
	}
	f.out = f.out[:0]
	for _, c := range p {
		if f.cr && c != '\n' {
			f.out = append(f.out, '\n')
		}
		if f.cr = c == '\r'; !f.cr && c != 0 {
			f.out = append(f.out, c)
		}
	}
	if n := len(f.out); n > 0 {
		f.last = f.out[n-1]
	}
	return f.out, nil
}

// end is what the message still lacks at its end.
func (f *lineFixer) end() []byte {
	if f.lines == Keep || !f.any {
		return nil
	}
	if f.cr || f.last != '\n' && f.last != 0 {
		return []byte("\n")
	}
	return nil
}
