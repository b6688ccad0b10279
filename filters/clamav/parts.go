package clamav

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/mime"
	"github.com/postern-mta/postern/pipeline/reply"
	"github.com/postern-mta/postern/pipeline/worker"
)

const (
	// window is how many bytes of contents one answer holds at most; with the list
	// of them it stays below what a worker's answer may be.
	window = 512 << 10
	// maxContents bounds the list, maxDecoded the contents in bytes.
	maxContents = 1000
	maxDecoded  = 256 << 20
	maxPlace    = 120 // bytes of each text
	maxReading  = 160
)

// request is what the worker is told besides the message.
type request struct {
	// All asks for contents that everybody agrees on too.
	All bool `json:",omitempty"`
	// Bytes and Contents bound them all together.
	Bytes    int64
	Contents int
	// Skip is how many bytes of the contents have been told already.
	Skip int64
}

// piece is one content: where it stands, in which reading, and how long it is.
type piece struct {
	part, reading string
	size          int64
}

// answer is the contents of a message, laid end to end, as far as they fit.
type answer struct {
	pieces []piece
	// excess says why there may be more that is not told, "" if there is not.
	excess string
	bytes  []byte // from Skip on, at most window
}

// total is the length of all contents.
func (a *answer) total() (n int64) {
	for _, p := range a.pieces {
		n += p.size
	}
	return n
}

// Jobs are what the filter needs done in a worker, for worker.Main.
func Jobs() map[string]worker.Job {
	return map[string]worker.Job{Name: func(ctx context.Context, args []byte, body io.ReaderAt, size int64, scratch *worker.Scratch) ([]byte, error) {
		var r request
		if err := json.Unmarshal(args, &r); err != nil {
			return nil, fmt.Errorf("the filter's request: %w", err)
		}
		a, err := r.layOpen(ctx, body, size, scratch)
		if err != nil {
			return nil, err
		}
		return a.encode(), nil
	}}
}

// layOpen finds the contents of a message that are to be scanned by themselves.
func (r *request) layOpen(ctx context.Context, body io.ReaderAt, size int64, scratch *worker.Scratch) (*answer, error) {
	m, err := mime.Read(ctx, body, size, mime.Options{Spool: pipeline.ScratchSpool(scratch)})
	if errors.Is(err, worker.ErrScratch) {
		return &answer{excess: "more decoded messages inside than there is space for"}, nil
	}
	if err != nil {
		return nil, err
	}
	defer m.Close() //nolint:errcheck // the space is given back at the job's end in any case
	a := &answer{}
	if len(m.Exceeded) > 0 {
		a.excess = reply.Clean(m.Exceeded[0].Limit.About(), maxReading)
	}
	o := opener{request: r, ctx: ctx, answer: a, seen: map[[sha256.Size]byte]bool{}}
	// The agreed contents come first, so that a reading that gives the same bytes
	// is known to be scanned with the message.
	odd := false
	for p := range m.Walk() {
		for _, c := range p.Contents {
			odd = odd || differs(p, c)
		}
	}
	for _, want := range []bool{false, true} {
		if !odd && !r.All {
			break
		}
		for p := range m.Walk() {
			for _, c := range p.Contents {
				if differs(p, c) != want {
					continue
				}
				if more, err := o.content(p, c, want || r.All); err != nil || !more {
					return a, err
				}
			}
		}
	}
	return a, nil
}

// differs reports whether programs that read the message the usual way, as
// clamd does, may not come to a content.
func differs(p *mime.Part, c mime.Content) bool {
	return p.Decoded || !(p.Reading | c.Reading).Strict()
}

// opener collects contents.
type opener struct {
	*request
	ctx    context.Context
	answer *answer
	seen   map[[sha256.Size]byte]bool
	total  int64
	buffer []byte
}

// content looks at one content, and adds it if it is wanted and is not there
// yet; more is false if there is no room for another.
func (o *opener) content(p *mime.Part, c mime.Content, wanted bool) (more bool, err error) {
	hash := sha256.New()
	size, err := o.copy(hash, c.Open())
	if err != nil {
		return false, fmt.Errorf("part %s: %w", reply.Clean(p.Path, maxPlace), err)
	}
	var sum [sha256.Size]byte
	if hash.Sum(sum[:0]); size == 0 || o.seen[sum] {
		return true, nil
	}
	o.seen[sum] = true
	if !wanted {
		return true, nil
	}
	switch {
	case len(o.answer.pieces) == min(o.Contents, maxContents):
		o.answer.excess = "more contents than may be scanned"
		return false, nil
	case size > min(o.Bytes, maxDecoded)-o.total:
		o.answer.excess = "larger contents than may be scanned"
		return false, nil
	}
	o.answer.pieces = append(o.answer.pieces, piece{reply.Clean(p.Path, maxPlace), reply.Clean((p.Reading|c.Reading).String()+" "+c.How.String(), maxReading), size})
	if start := o.Skip - o.total; start < size && len(o.answer.bytes) < window {
		w := &slice{to: o.answer.bytes, skip: max(start, 0)}
		if _, err := o.copy(w, c.Open()); err != nil && err != errFull {
			return false, err
		}
		o.answer.bytes = w.to
	}
	o.total += size
	return true, nil
}

// copy copies until the end or the job's.
func (o *opener) copy(to io.Writer, from io.Reader) (n int64, err error) {
	if o.buffer == nil {
		o.buffer = make([]byte, 64<<10)
	}
	for {
		if err := o.ctx.Err(); err != nil {
			return n, err
		}
		got, err := from.Read(o.buffer)
		n += int64(got)
		if _, wrong := to.Write(o.buffer[:got]); wrong != nil {
			return n, wrong
		}
		if err == io.EOF {
			return n, nil
		}
		if err != nil {
			return n, err
		}
	}
}

var errFull = errors.New("the answer is full")

// slice appends what is written to it behind skip bytes, as far as a window goes.
type slice struct {
	to   []byte
	skip int64
}

func (s *slice) Write(p []byte) (int, error) {
	n := len(p)
	cut := min(int64(n), s.skip)
	s.skip -= cut
	p = p[cut:]
	if room := window - len(s.to); len(p) > room {
		s.to = append(s.to, p[:room]...)
		return 0, errFull
	}
	s.to = append(s.to, p...)
	return n, nil
}

// encode writes an answer for decode.
func (a *answer) encode() []byte {
	b := make([]byte, 0, 64+len(a.pieces)*64+len(a.bytes))
	b = appendText(b, a.excess)
	b = binary.AppendUvarint(b, uint64(len(a.pieces)))
	for _, p := range a.pieces {
		b = appendText(appendText(b, p.part), p.reading)
		b = binary.AppendUvarint(b, uint64(p.size))
	}
	return append(b, a.bytes...)
}

func appendText(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

var errCut = errors.New("the answer is cut off")

// decode reads an answer as one reads what a stranger sent: the worker that
// wrote it may not be itself any more. Its bytes are the answer's.
func (r *request) decode(b []byte) (*answer, error) {
	a := &answer{}
	var n, size uint64
	var err error
	if a.excess, b, err = text(b, maxReading); err != nil {
		return nil, err
	}
	if n, b, err = number(b); err != nil {
		return nil, err
	}
	if n > uint64(min(r.Contents, maxContents)) {
		return nil, fmt.Errorf("%d contents; at most %d", n, min(r.Contents, maxContents))
	}
	left := uint64(min(r.Bytes, maxDecoded))
	for range n {
		var p piece
		if p.part, b, err = text(b, maxPlace); err != nil {
			return nil, err
		}
		if p.reading, b, err = text(b, maxReading); err != nil {
			return nil, err
		}
		if size, b, err = number(b); err != nil {
			return nil, err
		}
		if size == 0 || size > left {
			return nil, fmt.Errorf("a content of %d bytes, where there may be %d", size, left)
		}
		left -= size
		p.size = int64(size)
		a.pieces = append(a.pieces, p)
	}
	if want := min(max(a.total()-r.Skip, 0), window); int64(len(b)) != want {
		return nil, fmt.Errorf("%d bytes of contents instead of %d", len(b), want)
	}
	a.bytes = b
	return a, nil
}

// text reads a clean text of at most limit bytes.
func text(b []byte, limit int) (string, []byte, error) {
	n, rest, err := number(b)
	switch {
	case err != nil:
		return "", nil, err
	case n > uint64(limit):
		return "", nil, fmt.Errorf("a text of %d bytes; at most %d", n, limit)
	case n > uint64(len(rest)):
		return "", nil, errCut
	}
	s := string(rest[:n])
	if reply.Clean(s, limit) != s {
		return "", nil, errors.New("a text that is not clean")
	}
	return s, rest[n:], nil
}

// number reads a number in its shortest form.
func number(b []byte) (uint64, []byte, error) {
	n, size := binary.Uvarint(b)
	if size <= 0 {
		return 0, nil, errCut
	}
	if size > 1 && b[size-1] == 0 {
		return 0, nil, errors.New("a number that is longer than it need be")
	}
	return n, b[size:], nil
}
