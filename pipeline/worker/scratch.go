package worker

import (
	"errors"
	"fmt"
	"io"
	"os"
)

// chunk is the unit in which the temporary space is given out, in bytes, and up
// to which size a Temp stays in memory.
const chunk = 64 << 10

// ErrScratch means that a job wants more temporary space than it may have.
var ErrScratch = errors.New("the temporary space is used up")

// Scratch is the temporary space of a job: as many temporary files as it likes,
// bounded together. It is for one goroutine.
type Scratch struct {
	file    *os.File // nil: memory
	memory  [][]byte // the chunks, if file is nil
	limit   int64    // bytes
	used    int      // chunks ever given out since the last reset
	free    []int
	written bool
}

// NewScratch is temporary space of at most limit bytes in a file, whose content
// is lost, or in memory if file is nil. Workers have one; this is for running a
// job without one.
func NewScratch(file *os.File, limit int64) *Scratch {
	return &Scratch{file: file, limit: limit}
}

// Temp makes an empty temporary file.
func (s *Scratch) Temp() *Temp { return &Temp{space: s} }

// Used is how many bytes are held by temporary files at this moment, those kept
// in memory not counted.
func (s *Scratch) Used() int64 { return int64(s.used-len(s.free)) * chunk }

// Reset takes all space back; no Temp may be used afterwards.
func (s *Scratch) Reset() error {
	s.used, s.free, s.memory = 0, s.free[:0], nil
	if s.file == nil || !s.written {
		return nil
	}
	s.written = false
	return s.file.Truncate(0)
}

func (s *Scratch) allocate() (int, error) {
	if n := len(s.free); n > 0 {
		i := s.free[n-1]
		s.free = s.free[:n-1]
		return i, nil
	}
	if int64(s.used+1)*chunk > s.limit {
		return 0, ErrScratch
	}
	s.used++
	if s.file == nil {
		s.memory = append(s.memory, make([]byte, chunk))
	}
	return s.used - 1, nil
}

func (s *Scratch) writeAt(p []byte, i, within int) error {
	if s.file == nil {
		copy(s.memory[i][within:], p)
		return nil
	}
	s.written = true
	_, err := s.file.WriteAt(p, int64(i)*chunk+int64(within))
	if err != nil {
		return fmt.Errorf("%w: %w", ErrScratch, err)
	}
	return nil
}

func (s *Scratch) readAt(p []byte, i, within int) error {
	if s.file == nil {
		copy(p, s.memory[i][within:])
		return nil
	}
	n, err := s.file.ReadAt(p, int64(i)*chunk+int64(within))
	if n == len(p) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// Temp is a temporary file: what is written goes to its end. Up to 64 KiB are
// in memory and count nothing.
type Temp struct {
	space  *Scratch
	first  []byte // the content, as long as it fits one chunk
	chunks []int
	size   int64
}

// Size is the length in bytes.
func (t *Temp) Size() int64 { return t.size }

// Write appends; ErrScratch when the space is used up.
func (t *Temp) Write(p []byte) (int, error) {
	if t.chunks == nil {
		if len(t.first)+len(p) <= chunk {
			t.first = append(t.first, p...)
			t.size = int64(len(t.first))
			return len(p), nil
		}
		first := t.first
		t.first, t.size = nil, 0
		if _, err := t.append(first); err != nil {
			return 0, err
		}
	}
	return t.append(p)
}

func (t *Temp) append(p []byte) (written int, err error) {
	for len(p) > 0 {
		within := int(t.size % chunk)
		if within == 0 {
			i, err := t.space.allocate()
			if err != nil {
				return written, err
			}
			t.chunks = append(t.chunks, i)
		}
		n := min(len(p), chunk-within)
		if err := t.space.writeAt(p[:n], t.chunks[len(t.chunks)-1], within); err != nil {
			return written, err
		}
		t.size += int64(n)
		written += n
		p = p[n:]
	}
	return written, nil
}

// ReadAt reads as io.ReaderAt does.
func (t *Temp) ReadAt(p []byte, off int64) (n int, err error) {
	if off < 0 {
		return 0, errors.New("negative offset")
	}
	if off >= t.size {
		return 0, io.EOF
	}
	if rest := t.size - off; int64(len(p)) > rest {
		p, err = p[:rest], io.EOF
	}
	if t.chunks == nil {
		return copy(p, t.first[off:]), err
	}
	for n < len(p) {
		within := int(off % chunk)
		k := min(len(p)-n, chunk-within)
		if err := t.space.readAt(p[n:n+k], t.chunks[off/chunk], within); err != nil {
			return n, err
		}
		n += k
		off += int64(k)
	}
	return n, err
}

// Close gives the space back.
func (t *Temp) Close() error {
	t.space.free = append(t.space.free, t.chunks...)
	t.chunks, t.first, t.size = nil, nil, 0
	return nil
}
