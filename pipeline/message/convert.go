package message

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"mime"
	"strings"

	"github.com/postern-mta/postern/pipeline/reply"
)

// ToSevenBit is the message for a server that takes 7 bits only (RFC 6152 §3):
// every part with bytes above 127 is encoded as quoted-printable or base64, and
// decodes to what it was. The structure stays as it is, and so does every part
// without such bytes. A message that is not MIME becomes a MIME text of its charset
// if that is UTF-8, else of "unknown-8bit" (RFC 1428 §3).
//
// Some things cannot be encoded, and are left as they are, so Form may tell that 8
// bits are still needed: header fields, signed parts (multipart/signed), where
// every byte counts, what stands before the first part and behind the last, and
// parts that cannot be understood in one way only, such as those with two fields
// Content-Transfer-Encoding, with bytes above 127 in a field's name, or with such
// bytes although they say that they are encoded. A message with a bare CR, or
// without a blank line behind its header, is left alone.
//
// The caller holds the body of what he gets, which may be that of m. Memory does not
// grow with the body. Errors are *reply.Error: those of reading and of the spool.
func (m Message) ToSevenBit(spool Spooler) (Message, error) {
	if text := m.headBytes(); !m.body.EightBit() || !bytes.HasSuffix(text, []byte("\n\n")) && string(text) != "\n" {
		m.body.Retain()
		return m, nil
	}
	first := converter{plan: map[int]planned{}}
	if _, err := first.run(m); err != nil {
		return Message{}, reply.With(reply.ReadError, fmt.Errorf("reading the message: %w", err))
	}
	if first.cr || len(first.plan) == 0 {
		m.body.Retain()
		return m, nil
	}
	w := NewWriter(spool, 0)
	second := converter{plan: first.plan, leftover: first.leftover, out: bufio.NewWriterSize(w, 32<<10)}
	head, err := second.run(m)
	if err != nil {
		w.Abort()
		return Message{}, reply.With(reply.ReadError, fmt.Errorf("reading the message: %w", err))
	}
	if err := second.out.Flush(); err != nil {
		w.Abort()
		return Message{}, spoolError(err)
	}
	body, err := w.Body()
	if err != nil {
		return Message{}, spoolError(err)
	}
	return m.WithHead(head).WithBody(body), nil
}

// coding is how a leaf is encoded.
type coding uint8

const (
	asIs coding = iota
	quoted
	base64Lines
)

// planned is how a leaf is to be encoded, and whether it is UTF-8.
type planned struct {
	coding coding
	utf8   bool
}

var codingNames = [...]string{quoted: "quoted-printable", base64Lines: "base64"}

// place is what stands where a converter reads.
type place uint8

const (
	inText   place = iota // before the first part, or behind the last
	inHead                // the header of a part, or of a message within a message
	inLeaf                // a part without parts
	inOpaque              // what is left as it is
)

// The bounds of what is understood.
const (
	maxParts     = 20       // parts within parts
	maxPartHead  = 64 << 10 // bytes
	maxBoundary  = 200
	maxConverted = 100_000 // leaves
)

// frame is a multipart that is open.
type frame struct {
	boundary string
	digest   bool
}

// converter reads a body twice: first to find out which leaves must be encoded,
// then to do it. It sees the same both times.
type converter struct {
	out      *bufio.Writer // nil the first time
	plan     map[int]planned
	leftover bool // bytes above 127 stay
	cr       bool

	frames []frame
	place  place
	head   []byte
	whole  bool // head is that of a message
	depth  int  // messages within messages
	held   bool // a line end that belongs to the content unless a boundary follows
	leaf   int
	leaves int
	coding coding
	tally  tally
	qp     quotedWriter
	b64    base64Writer
}

// run reads the body once and gives the head that the message is to have.
func (c *converter) run(m Message) (Head, error) {
	c.qp.w, c.b64.w = c.out, c.out
	c.whole = true
	head := c.enter(m.head, false, true)
	in := bufio.NewReaderSize(io.NewSectionReader(m.body, 0, m.body.Size()), 16<<10)
	for start := true; ; {
		piece, err := in.ReadSlice('\n')
		if err == bufio.ErrBufferFull {
			err = nil
		}
		if err != nil && err != io.EOF {
			return head, err
		}
		if len(piece) > 0 {
			c.line(piece, start)
			start = piece[len(piece)-1] == '\n'
		}
		if err == io.EOF {
			break
		}
	}
	if c.held {
		c.newline()
	}
	c.leave(true)
	return head, nil
}

// line takes a line or, if it is long, a piece of one.
func (c *converter) line(piece []byte, start bool) {
	if start {
		if i, end := c.delimiter(piece); i >= 0 {
			c.leave(false)
			c.frames = c.frames[:i+1]
			c.place, c.whole = inHead, false
			if end {
				c.frames, c.place = c.frames[:i], inText
			}
			c.raw(piece)
			return
		}
		if c.held {
			c.held = false
			c.newline()
		}
	}
	if c.place == inHead {
		c.headLine(piece, start)
		return
	}
	content, ended := bytes.CutSuffix(piece, []byte{'\n'})
	c.content(content)
	c.held = ended
}

// delimiter tells of which open multipart a line is a delimiter, -1 for none, and
// whether it is the last. An outer one ends those within it (RFC 2046 §5.1.2).
func (c *converter) delimiter(line []byte) (i int, end bool) {
	if len(line) < 3 || line[0] != '-' || line[1] != '-' || len(line) > maxBoundary+100 {
		return -1, false
	}
	text := bytes.TrimRight(line[2:], " \t\n")
	for i := range c.frames {
		rest, ok := bytes.CutPrefix(text, []byte(c.frames[i].boundary))
		if ok && (len(rest) == 0 || string(rest) == "--") {
			return i, len(rest) > 0
		}
	}
	return -1, false
}

// headLine collects the header of a part.
func (c *converter) headLine(piece []byte, start bool) {
	c.head = append(c.head, piece...)
	switch {
	case start && len(piece) == 1 && piece[0] == '\n':
		text := string(c.head)
		c.head = c.head[:0]
		h, rest := ParseHead(text)
		if rest != "" {
			c.opaque([]byte(text))
			return
		}
		digest := len(c.frames) > 0 && c.frames[len(c.frames)-1].digest && !c.whole
		c.raw([]byte(c.enter(h, digest, c.whole).String()))
	case len(c.head) > maxPartHead:
		c.opaque(c.head)
		c.head = c.head[:0]
	}
}

// opaque writes what cannot be understood, and leaves the rest of the part alone.
func (c *converter) opaque(text []byte) {
	c.place = inOpaque
	c.raw(text)
	c.see(text)
}

// see notes bytes above 127 that stay.
func (c *converter) see(p []byte) {
	if c.out == nil && !c.leftover && !isASCII(p) {
		c.leftover = true
	}
}

func (c *converter) raw(p []byte) {
	if c.held {
		c.held = false
		if c.out != nil {
			c.out.WriteByte('\n') //nolint:errcheck // the error stays with the writer
		}
	}
	if c.out != nil {
		c.out.Write(p) //nolint:errcheck // likewise
	}
}

// enter begins the part that has this header, and gives the header that it is to
// have.
func (c *converter) enter(h Head, digest, whole bool) Head {
	if text := h.String(); len(c.frames) > 0 || !whole || c.place == inHead {
		c.see([]byte(text))
	}
	c.place = inOpaque
	types, codings := h.Values("Content-Type"), h.Values("Content-Transfer-Encoding")
	if len(types) > 1 || len(codings) > 1 || hasOddName(h) {
		return h
	}
	kind, boundary := "text/plain", ""
	if digest {
		kind = "message/rfc822"
	}
	if len(types) == 1 {
		var ok bool
		if kind, boundary, ok = mediaType(types[0]); !ok {
			return h
		}
	}
	was := "7bit"
	if len(codings) == 1 {
		was = strings.ToLower(codings[0])
	}
	identity := was == "7bit" || was == "8bit" || was == "binary"
	switch {
	case strings.HasPrefix(kind, "multipart/") && identity:
		if kind == "multipart/signed" || boundary == "" || len(boundary) > maxBoundary || len(c.frames) == maxParts {
			return h
		}
		c.frames = append(c.frames, frame{boundary, kind == "multipart/digest"})
		c.place = inText
		return c.lowered(h, was)
	case (kind == "message/rfc822" || kind == "message/global") && identity:
		if c.depth++; c.depth > maxParts {
			return h
		}
		c.place, c.whole = inHead, true
		return c.lowered(h, was)
	case strings.HasPrefix(kind, "multipart/"), strings.HasPrefix(kind, "message/"):
		return h
	case identity:
		return c.enterLeaf(h, whole, len(types) == 1)
	}
	return h
}

// hasOddName reports whether a field has a name where some readers see the end of
// the header.
func hasOddName(h Head) bool {
	for i := range h.Len() {
		if !isASCII([]byte(h.Field(i).Name())) {
			return true
		}
	}
	return false
}

// mediaType is the type in lower case, and its boundary. It is not ok if it cannot
// be read and may have parts.
func mediaType(value string) (kind, boundary string, ok bool) {
	kind, params, err := mime.ParseMediaType(value)
	if err == nil {
		return kind, params["boundary"], true
	}
	loose := strings.ToLower(value)
	composite := strings.Contains(loose, "multipart") || strings.Contains(loose, "message")
	return "application/octet-stream", "", !composite
}

// lowered is the header of something with parts, which are all in 7 bits now.
func (c *converter) lowered(h Head, was string) Head {
	if c.out == nil || c.leftover || was == "7bit" {
		return h
	}
	return edited(h, FieldEdit{Op: Replace, Name: "Content-Transfer-Encoding", Value: "7bit"})
}

// enterLeaf begins a leaf whose bytes stand for themselves.
func (c *converter) enterLeaf(h Head, whole, typed bool) Head {
	c.place, c.coding, c.tally = inLeaf, asIs, tally{}
	c.leaf = c.leaves
	c.leaves++
	if c.out == nil {
		return h
	}
	plan := c.plan[c.leaf]
	if c.coding = plan.coding; c.coding == asIs {
		return h
	}
	c.qp.begin()
	c.b64.begin()
	var edits []FieldEdit
	add := func(name, value string) {
		op := Append // below the trace fields
		if len(h.Values(name)) > 0 {
			op = Replace
		}
		edits = append(edits, FieldEdit{Op: op, Name: name, Value: value})
	}
	if whole && len(h.Values("MIME-Version")) == 0 {
		add("MIME-Version", "1.0")
	}
	if whole && !typed {
		charset := "unknown-8bit"
		if plan.utf8 {
			charset = "utf-8"
		}
		add("Content-Type", "text/plain; charset="+charset)
	}
	add("Content-Transfer-Encoding", codingNames[c.coding])
	return edited(h, edits...)
}

func edited(h Head, edits ...FieldEdit) Head {
	h, err := h.Edit(edits...)
	if err != nil {
		return h // as it was; the edits are constants
	}
	return h
}

// content takes a part of a line.
func (c *converter) content(p []byte) {
	if c.out == nil {
		c.measure(p)
		return
	}
	switch {
	case c.place != inLeaf || c.coding == asIs:
		c.out.Write(p) //nolint:errcheck // the error stays with the writer
	case c.coding == quoted:
		c.qp.write(p)
	case c.coding == base64Lines:
		c.b64.write(p)
	}
}

// newline takes the end of a line that is content.
func (c *converter) newline() {
	c.held = false
	switch {
	case c.out == nil:
		if c.place == inLeaf {
			c.tally.size += 2
		}
	case c.place == inLeaf && c.coding == quoted:
		c.qp.newline()
	case c.place == inLeaf && c.coding == base64Lines:
		c.b64.write([]byte("\r\n"))
	default:
		c.out.WriteByte('\n') //nolint:errcheck // the error stays with the writer
	}
}

// leave ends a part, at a boundary or at the message's end.
func (c *converter) leave(last bool) {
	switch {
	case c.place == inHead:
		c.see(c.head)
		head := c.head
		c.head = c.head[:0]
		c.raw(head)
	case c.place != inLeaf:
	case c.out == nil:
		c.decide()
	case c.coding == quoted:
		c.qp.finish()
	case c.coding == base64Lines:
		c.b64.finish(last)
	}
}
