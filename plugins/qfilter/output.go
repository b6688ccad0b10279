package qfilter

import (
	"bytes"
	"io"
	"strings"
	"sync"

	"github.com/postern-mta/postern/pipeline/message"
)

// splitter takes a message that a program wrote apart.
type splitter struct {
	out   io.ReaderAt
	size  int64
	old   message.Message
	spool message.Spooler
	lines message.Lines
}

// spare is how many bytes and fields a program may add to a head that is as
// large as the entrance lets one be.
const (
	spareHead   = 64 << 10
	spareFields = 100
)

func (s *splitter) options() message.Options {
	o := message.Options{Lines: s.lines, Spool: s.spool, MaxHead: message.DefaultMaxHead, MaxFields: message.DefaultMaxFields}
	o.MaxHead = max(o.MaxHead, len(s.old.HeadText())+spareHead)
	o.MaxFields = max(o.MaxFields, s.old.Head().Len()+spareFields)
	return o
}

// split is the new head and the new body. Most programs change the head, so
// that is tried first: then the body is compared and not copied.
func (s *splitter) split() (*message.Head, *message.Body, error) {
	same, err := s.unchanged()
	if same || err != nil {
		return nil, nil, err
	}
	o := s.options()
	canonical, err := isCanonical(s.old)
	if err != nil {
		return nil, nil, err
	}
	if !canonical {
		o.Lines = message.Keep
	}
	if head, err := s.newHead(o); head != nil || err != nil {
		return head, nil, err
	}
	m, err := message.Read(&exactly{in: s.out, size: s.size}, o)
	if err != nil {
		return nil, nil, err
	}
	head, body := m.Head(), m.Body()
	if body.Size() == s.old.Body().Size() { // other line ends, perhaps
		same, err := sameBytes(body, 0, s.old.Body(), 0, body.Size())
		if err != nil || same {
			body.Release() //nolint:errcheck // the spool sweeps what is left behind
			body = nil
		}
		if err != nil {
			return nil, nil, err
		}
		if same && m.HeadText() == s.old.HeadText() {
			return nil, nil, nil
		}
	}
	return &head, body, nil
}

// unchanged is whether the program wrote what it was given.
func (s *splitter) unchanged() (bool, error) {
	if s.size != s.old.Size() {
		return false, nil
	}
	return sameBytes(s.out, 0, s.old.Reader(), 0, s.size)
}

// newHead is the head before a body that is the old one, nil if it is not, or if
// it cannot be told where the head ends.
func (s *splitter) newHead(o message.Options) (*message.Head, error) {
	body := s.old.Body()
	length := s.size - body.Size()
	if body.Size() == 0 || length <= 0 || length > int64(o.MaxHead) {
		return nil, nil
	}
	text := make([]byte, length)
	if err := readExactly(s.out, text, 0); err != nil {
		return nil, err
	}
	if !bytes.HasSuffix(text, []byte("\n\n")) && !bytes.HasSuffix(text, []byte("\n\r\n")) && string(text) != "\n" {
		return nil, nil
	}
	same, err := sameBytes(s.out, length, body, 0, body.Size())
	if !same || err != nil {
		return nil, err
	}
	m, err := message.Read(bytes.NewReader(text), o)
	if err != nil {
		return nil, err
	}
	defer m.Body().Release() //nolint:errcheck // it is in memory, or swept
	if m.Body().Size() > 0 {
		return nil, nil // the head ends earlier
	}
	h := m.Head()
	if !endsBlank(h) {
		return nil, nil
	}
	return &h, nil
}

// endsBlank is whether a blank line has ended a head.
func endsBlank(h message.Head) bool {
	n := 0
	for i := range h.Len() {
		n += len(h.Field(i).Text())
	}
	return n < len(h.String())
}

// isCanonical reports whether a message is in the canonical form: lines end in
// LF, without a CR or a NUL. One that is not came by an entrance that keeps what
// it gets.
func isCanonical(m message.Message) (bool, error) {
	head := m.HeadText()
	if strings.ContainsAny(head, "\r\x00") {
		return false, nil
	}
	body := m.Body()
	last := byte('\n')
	if head != "" {
		last = head[len(head)-1]
	}
	s := scratches.Get().(*scratch)
	defer scratches.Put(s)
	for at := int64(0); at < body.Size(); {
		piece, err := s.piece(0, body, at, body.Size()-at)
		if err != nil {
			return false, err
		}
		if bytes.IndexByte(piece, '\r') >= 0 || bytes.IndexByte(piece, 0) >= 0 {
			return false, nil
		}
		last, at = piece[len(piece)-1], at+int64(len(piece))
	}
	return last == '\n', nil
}

// scratch is the memory that one comparison needs and the next can use again.
type scratch [2][64 << 10]byte

var scratches = sync.Pool{New: func() any { return new(scratch) }}

// piece is up to n bytes of a file, or of what is in memory.
func (s *scratch) piece(of int, r io.ReaderAt, at, n int64) ([]byte, error) {
	n = min(n, int64(len(s[of])))
	if body, ok := r.(*message.Body); ok {
		if content, ok := body.Memory(); ok && at+n <= int64(len(content)) {
			return content[at : at+n], nil
		}
	}
	p := s[of][:n]
	return p, readExactly(r, p, at)
}

// sameBytes compares n bytes of two files.
func sameBytes(a io.ReaderAt, atA int64, b io.ReaderAt, atB, n int64) (bool, error) {
	s := scratches.Get().(*scratch)
	defer scratches.Put(s)
	for n > 0 {
		one, err := s.piece(0, a, atA, n)
		if err != nil {
			return false, err
		}
		two, err := s.piece(1, b, atB, n)
		if err != nil {
			return false, err
		}
		if !bytes.Equal(one, two) {
			return false, nil
		}
		k := int64(len(one))
		atA, atB, n = atA+k, atB+k, n-k
	}
	return true, nil
}

// readExactly fills p, or fails.
func readExactly(r io.ReaderAt, p []byte, at int64) error {
	n, err := r.ReadAt(p, at)
	switch {
	case n == len(p):
		return nil
	case err == nil || err == io.EOF:
		return io.ErrUnexpectedEOF
	}
	return err
}

// exactly reads a file's first bytes, as many as it had: one that has become
// shorter is no message.
type exactly struct {
	in       io.ReaderAt
	at, size int64
}

// Read is io.Reader.
func (e *exactly) Read(p []byte) (int, error) {
	p = p[:min(int64(len(p)), e.size-e.at)]
	if len(p) == 0 {
		return 0, io.EOF
	}
	if err := readExactly(e.in, p, e.at); err != nil {
		return 0, err
	}
	e.at += int64(len(p))
	return len(p), nil
}
