package mime

import (
	"bytes"
	"context"
	"errors"
	"io"
	"slices"
	"strconv"

	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
)

// Read reads the size bytes of at as a message. An error is one of at, of the
// spool or of ctx, and never the message's fault: what is wrong with that is in
// Findings and Exceeded. The caller must Close the message, and keep at until
// then.
func Read(ctx context.Context, at io.ReaderAt, size int64, o Options) (*Message, error) {
	o.Limits = o.Limits.withDefaults()
	r := &reader{
		ctx: ctx, o: o, m: &Message{}, seen: map[place]bool{},
		work:    int64(o.Limits.Work)*size + minimumWork,
		decoded: min(o.Limits.Decoded, maxDecoded*size+minimumWork),
	}
	if err := r.run(at, size); err != nil {
		_ = r.m.Close() //nolint:errcheck // the first error is the one that counts
		return nil, err
	}
	return r.m, nil
}

// minimumWork is what small messages may cost in bytes looked at, and maxDecoded
// how many times its size a message may be decoded into the spool.
const (
	minimumWork = 1 << 20
	maxDecoded  = 8
)

// reader makes the tree of one message.
type reader struct {
	ctx context.Context
	o   Options
	m   *Message

	// Parts that are still to be read: those of the strict reading come first, so
	// that a limit cuts off the odd ones.
	strict, odd []*Part
	seen        map[place]bool
	parts       int
	full        bool // there may be no more parts
	sources     int
	work        int64 // bytes that may still be looked at
	decoded     int64 // bytes that may still be decoded into the spool
	buf         []byte
}

// place is where a part stands.
type place struct {
	source     int
	start, end int64
	role       Role
	kind       string
}

func (r *reader) run(at io.ReaderAt, size int64) error {
	src, err := r.newSource(at, size, 0)
	if err != nil {
		return err
	}
	r.m.Root = &Part{Path: "1", Size: size, src: src, depth: 1, kind: plainText}
	r.parts = 1
	r.strict = append(r.strict, r.m.Root)
	for {
		var p *Part
		switch {
		case len(r.strict) > 0:
			p, r.strict = r.strict[0], r.strict[1:]
		case len(r.odd) > 0:
			p, r.odd = r.odd[0], r.odd[1:]
		default:
			return nil
		}
		if err := r.ctx.Err(); err != nil {
			return err
		}
		if err := r.read(p); err != nil {
			return err
		}
		if p == r.m.Root {
			if err := r.seeBareCR(p, src); err != nil {
				return err
			}
		}
	}
}

// newSource indexes bytes.
func (r *reader) newSource(at io.ReaderAt, size int64, reading Reading) (*source, error) {
	r.sources++
	s := &source{id: r.sources, at: at, size: size, reading: reading}
	if size <= windowSize {
		s.small = make([]byte, size)
		if err := readFull(at, s.small, 0); err != nil {
			return nil, err
		}
	}
	if r.buf == nil || int64(len(r.buf)) < min(windowSize, size) {
		r.buf = make([]byte, max(delimiterText+1, min(windowSize, size)))
	}
	l := r.o.Limits
	tooMany, tooManyMarks, err := s.scan(r.ctx, r.buf, l.Delimiters, marksPerText*l.Embedded)
	if err != nil {
		return nil, err
	}
	if tooMany {
		r.exceed(DelimitersLimit, "1")
	}
	if tooManyMarks {
		r.exceed(EmbeddedLimit, "1")
	}
	return s, nil
}

// marksPerText is how many texts with as many files as one may have are taken
// into account.
const marksPerText = 10

// seeBareCR adds, as a part of p, the reading in which a CR alone ends a line.
func (r *reader) seeBareCR(p *Part, src *source) error {
	if !src.bareCR || !r.spend(src.size, p) {
		return nil
	}
	r.find(BareCR, p, "")
	view, err := r.newSource(crView{src}, src.size, src.reading|because(BareCR))
	if err != nil {
		return err
	}
	view.decoded = src.decoded
	r.add(p, view, 0, src.size, Entity, 0, plainText)
	return nil
}

// add puts a part into the tree and has it read, unless it is there already or a
// limit is reached.
func (r *reader) add(parent *Part, src *source, start, end int64, role Role, reading Reading, kind string) *Part {
	reading |= parent.Reading | src.reading
	at := place{src.id, start, end, role, kind}
	if r.seen[at] && !reading.Strict() {
		return nil
	}
	if parent.depth >= r.o.Limits.Depth {
		r.exceed(DepthLimit, parent.Path)
		return nil
	}
	if r.full = r.full || r.parts >= r.o.Limits.Parts; r.full {
		r.exceed(PartsLimit, parent.Path)
		return nil
	}
	r.seen[at] = true
	r.parts++
	p := &Part{
		Path: parent.Path + "." + strconv.Itoa(len(parent.Parts)+1), Role: role, Reading: reading,
		Offset: start, Size: end - start, Decoded: src.decoded,
		src: src, depth: parent.depth + 1, kind: kind, body: start,
	}
	parent.Parts = append(parent.Parts, p)
	if reading.Strict() {
		r.strict = append(r.strict, p)
	} else {
		r.odd = append(r.odd, p)
	}
	return p
}

// spend takes n bytes from the work that is left; false if there is none.
func (r *reader) spend(n int64, p *Part) bool {
	if r.work < n {
		r.exceed(WorkLimit, p.Path)
		return false
	}
	r.work -= n
	return true
}

func (r *reader) exceed(l Limit, path string) {
	if !slices.ContainsFunc(r.m.Exceeded, func(x Excess) bool { return x.Limit == l }) {
		r.m.Exceeded = append(r.m.Exceeded, Excess{l, path})
	}
}

const maxFindings = 200

func (r *reader) find(reason Reason, p *Part, detail string) {
	fs := r.m.Findings
	for i := len(fs) - 1; i >= 0 && fs[i].Path == p.Path; i-- {
		if fs[i].Reason == reason {
			return
		}
	}
	f := Finding{reason, p.Reading.severity(reason), p.Path, reply.Clean(detail, maxDetail)}
	if len(fs) < maxFindings {
		r.m.Findings = append(fs, f)
		return
	}
	// The worst is not to be lost among many small ones.
	for i := range fs {
		if fs[i].Severity < f.Severity {
			fs[i] = f
			return
		}
	}
}

const maxDetail = 120

// findAll notes each reason of a reading.
func (r *reader) findAll(reading Reading, p *Part) {
	for _, x := range reading.Reasons() {
		r.find(x, p, "")
	}
}

// firstHeader is how much of a part is looked at first for the end of its header.
const firstHeader = 8 << 10

// header reads the header of a part.
func (r *reader) header(p *Part) (header, error) {
	l := r.o.Limits
	for n := int64(firstHeader); ; n *= 4 {
		n = min(n, int64(l.Header))
		take := min(n, p.Size)
		b, err := p.src.view(p.Offset, take)
		if err != nil {
			return header{}, err
		}
		h, complete := parseHeader(b, take == p.Size, l.Field, l.Fields)
		if complete || n == int64(l.Header) || len(h.starts) > 0 && h.starts[0].at == 0 {
			if !complete && (len(h.starts) == 0 || h.starts[0].at != 0) {
				r.exceed(HeaderLimit, p.Path)
				h.starts = append([]start{{int(take), 0}}, h.starts...)
			}
			r.noteHeader(p, h)
			spent := take
			if len(h.starts) > 0 && complete {
				spent = int64(h.starts[0].at)
			}
			r.spend(spent, p)
			return h, nil
		}
	}
}

func (r *reader) noteHeader(p *Part, h header) {
	if h.tooBig {
		r.exceed(FieldLimit, p.Path)
	}
	if h.tooMany {
		r.exceed(FieldsLimit, p.Path)
	}
	if h.found != 0 {
		r.findAll(h.found, p)
	}
}

// read reads a part and queues the parts inside.
func (r *reader) read(p *Part) error {
	if p.Role == Embedded {
		return nil // whoever added it knew all of it
	}
	e := entity{reader: r, p: p}
	if p.Role != Entity {
		p.Types = []Type{{plainText, p.Reading}}
		return e.leaf(p.src, start{0, p.Reading}, []encoding{{how: Identity}}, true)
	}
	h, err := r.header(p)
	if err != nil {
		return err
	}
	p.body = p.Offset + int64(h.starts[0].at)
	e.describe(h)
	for _, s := range h.starts {
		s.reading |= p.Reading
		if err := e.bodies(s); err != nil {
			return err
		}
	}
	return e.afterBlank(h)
}

// blank reports whether the bytes from start to end say nothing.
func (r *reader) blank(src *source, start, end int64) (bool, error) {
	if end-start > firstHeader {
		return false, nil
	}
	b, err := src.view(start, end-start)
	return len(bytes.Trim(b, " \t\r\n")) == 0, err
}

// errNoRoom is the sign that what was to be decoded is too much; Exceeded has it.
var errNoRoom = errors.New("no room to decode")

// spool decodes a content into a source of its own; nil if it may not.
func (r *reader) spool(p *Part, c Content) (*source, error) {
	if r.decoded <= 0 || !r.spend(c.EncodedSize(), p) {
		r.exceed(DecodedLimit, p.Path)
		return nil, nil
	}
	w := message.NewWriter(r.o.Spool, r.o.Memory)
	n, err := io.Copy(w, contextReader{r.ctx, io.LimitReader(c.Open(), r.decoded)})
	if err == nil && n == r.decoded {
		err = errNoRoom
	}
	if err != nil {
		w.Abort()
		if errors.Is(err, errNoRoom) {
			r.decoded = 0
			r.exceed(DecodedLimit, p.Path)
			return nil, nil
		}
		return nil, err
	}
	r.decoded -= n
	b, err := w.Body()
	if err != nil {
		return nil, err
	}
	r.m.bodies = append(r.m.bodies, b)
	s, err := r.newSource(b, b.Size(), 0)
	if err != nil {
		return nil, err
	}
	s.decoded = true
	return s, nil
}

// contextReader ends with its context.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

// Read reads unless the context is over.
func (c contextReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}
