package message

import (
	"errors"
	"io"
	"slices"
	"sync/atomic"
)

// InMemory is up to which size in bytes a body is kept in memory by default;
// a larger one goes to a spool file.
const InMemory = 64 << 10

// Spooler makes the files that hold large bodies. They live beside the queue,
// on its file system, so that the queue can take one by renaming it.
// Implementations are safe for concurrent use.
type Spooler interface {
	// Create makes a new, empty file under a name that is unique.
	Create() (name string, f File, err error)
	// Open opens a file of this spool for reading, with an offset of its own.
	Open(name string) (File, error)
	// Remove removes a file; one that is no longer there is no error.
	Remove(name string) error
}

// File is a spool file. Close does not remove it.
type File interface {
	io.Writer
	io.ReaderAt
	io.Closer
}

// Body is the bytes of a message from the first one after its head. It never
// changes. It is reference-counted: who makes one holds it, Retain adds a
// holder, Release gives it up; after the last Release its file is closed and
// removed. All methods are safe for concurrent use, and all accept a nil Body,
// which is empty.
type Body struct {
	refs     atomic.Int32
	memory   []byte
	at       io.ReaderAt // nil: in memory
	size     int64
	lfs      int64
	eightBit bool
	name     string
	free     func() error
}

// Size is the length in bytes.
func (b *Body) Size() int64 {
	if b == nil {
		return 0
	}
	return b.size
}

// LFs is the number of LFs that no CR precedes: what the CRLF view adds.
func (b *Body) LFs() int64 {
	if b == nil {
		return 0
	}
	return b.lfs
}

// EightBit reports whether a byte above 127 occurs.
func (b *Body) EightBit() bool { return b != nil && b.eightBit }

// Memory is the content if it is held in memory, which the caller must not
// change; ok is false if it is in a file.
func (b *Body) Memory() (content []byte, ok bool) {
	if b == nil {
		return nil, true
	}
	return b.memory, b.at == nil
}

// SpoolName is the name of the spool file that holds the body, "" if none does.
func (b *Body) SpoolName() string {
	if b == nil {
		return ""
	}
	return b.name
}

// ReadAt reads as io.ReaderAt does. A file that has become shorter than the
// body is io.ErrUnexpectedEOF, so that half a body never passes for all of it.
func (b *Body) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, errors.New("message: negative offset")
	}
	if len(p) == 0 {
		return 0, nil
	}
	left := b.Size() - off
	if left <= 0 {
		return 0, io.EOF
	}
	want := p[:min(int64(len(p)), left)]
	var n int
	var err error
	if b.at == nil {
		n = copy(want, b.memory[off:])
	} else {
		n, err = b.at.ReadAt(want, off)
	}
	switch {
	case n == len(p):
		return n, nil
	case n == len(want):
		return n, io.EOF
	case err == nil || err == io.EOF:
		return n, io.ErrUnexpectedEOF
	}
	return n, err
}

// Retain adds a holder and returns the body itself.
func (b *Body) Retain() *Body {
	if b != nil && b.refs.Add(1) <= 1 {
		panic("message: Retain of a body that nobody holds")
	}
	return b
}

// Release gives the body up. The error is that of closing or removing its
// file, which nothing depends on.
func (b *Body) Release() error {
	if b == nil {
		return nil
	}
	switch n := b.refs.Add(-1); {
	case n < 0:
		panic("message: Release of a body that nobody holds")
	case n > 0 || b.free == nil:
		return nil
	}
	return b.free()
}

// BytesBody is a body in memory. It keeps content, which must not change.
func BytesBody(content []byte) *Body {
	b := &Body{memory: content, size: int64(len(content)), lfs: bareLFs(content), eightBit: !isASCII(content)}
	b.refs.Store(1)
	return b
}

// StoredBody describes a body that a store keeps.
type StoredBody struct {
	// At holds the body from its offset 0; what it has beyond Size is not read.
	At        io.ReaderAt
	Size, LFs int64
	EightBit  bool
	// Free is called once, after the last Release; it may be nil.
	Free func() error
}

// Open is the body itself, held by the caller.
func (s StoredBody) Open() *Body {
	b := &Body{at: s.At, size: s.Size, lfs: s.LFs, eightBit: s.EightBit, free: s.Free}
	b.refs.Store(1)
	return b
}

// Writer collects a body: in memory up to a limit, then in a spool file. It is
// for one goroutine. Either Body or Abort must end it. A spool file is written
// without a buffer: give it large pieces.
type Writer struct {
	spool    Spooler
	limit    int
	memory   []byte
	file     File
	name     string
	size     int64
	lfs      int64
	eightBit bool
	last     byte
	err      error
}

// NewWriter returns a Writer that keeps up to limit bytes in memory (0 means
// InMemory). A nil spool keeps everything in memory.
func NewWriter(spool Spooler, limit int) *Writer {
	if limit == 0 {
		limit = InMemory
	}
	return &Writer{spool: spool, limit: limit}
}

// Write adds to the body. The first error is final: it comes again from every
// later call and from Body.
func (w *Writer) Write(p []byte) (int, error) {
	if w.err != nil || len(p) == 0 {
		return 0, w.err
	}
	w.count(p)
	if w.file == nil && w.spool != nil && len(w.memory)+len(p) > w.limit {
		w.spill()
	}
	if w.err == nil && w.file != nil {
		_, w.err = writeAll(w.file, p)
	} else if w.err == nil {
		if len(p) > cap(w.memory)-len(w.memory) && len(w.memory) > 0 {
			w.memory = slices.Grow(w.memory, max(len(p), len(w.memory)))
		}
		w.memory = append(w.memory, p...)
	}
	if w.err != nil {
		return 0, w.err
	}
	return len(p), nil
}

// writeAll does not trust a writer that writes less than it should in silence.
func writeAll(w io.Writer, p []byte) (int, error) {
	n, err := w.Write(p)
	if err == nil && n != len(p) {
		err = io.ErrShortWrite
	}
	return n, err
}

func (w *Writer) count(p []byte) {
	w.size += int64(len(p))
	w.lfs += bareLFs(p)
	if p[0] == '\n' && w.last == '\r' {
		w.lfs--
	}
	w.last = p[len(p)-1]
	w.eightBit = w.eightBit || !isASCII(p)
}

func (w *Writer) spill() {
	if w.name, w.file, w.err = w.spool.Create(); w.err != nil {
		w.file = nil
		return
	}
	if len(w.memory) > 0 {
		_, w.err = writeAll(w.file, w.memory)
	}
	w.memory = nil
}

// Body ends the writing and returns the body, held by the caller. After an
// error it returns that error and nothing is left behind.
func (w *Writer) Body() (*Body, error) {
	if w.err != nil {
		err := w.err
		w.Abort()
		return nil, err
	}
	b := &Body{memory: slices.Clip(w.memory), size: w.size, lfs: w.lfs, eightBit: w.eightBit}
	b.refs.Store(1)
	if w.file != nil {
		file, name, spool := w.file, w.name, w.spool
		b.at, b.name = file, name
		b.free = func() error { return errors.Join(file.Close(), spool.Remove(name)) }
	}
	w.file, w.memory = nil, nil
	w.err = errFinished
	return b, nil
}

var errFinished = errors.New("message: writer is finished")

// Abort gives up what was written. After Body it does nothing.
func (w *Writer) Abort() {
	if w.file != nil {
		w.file.Close()
		w.spool.Remove(w.name) //nolint:errcheck // the spool sweeps what is left behind
		w.file = nil
	}
	w.memory = nil
	if w.err == nil {
		w.err = errFinished
	}
}
