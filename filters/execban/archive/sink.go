package archive

import (
	"bytes"
	"errors"
	"fmt"
	"io"
)

// slack is from which size on the ratio of a member counts, in bytes.
const slack = 16 << 20

// errTotal means that all members together are over the limit.
var errTotal = errors.New("over the limit of all members")

// sink takes what is extracted, within the limits.
type sink struct {
	walk   *walk
	temp   Temp
	packed int64
	n      int64
	failed error
}

// Write fails for good when a limit is reached; what fits is written.
func (s *sink) Write(p []byte) (int, error) {
	if s.failed != nil {
		return 0, s.failed
	}
	if s.failed = s.walk.ctx.Err(); s.failed != nil {
		return 0, s.failed
	}
	l := &s.walk.limits
	room := min(l.Member-s.n, l.Bytes-s.walk.bytes)
	if s.packed > 0 {
		room = min(room, max(slack, s.packed*l.Ratio)-s.n)
	}
	fits := p[:min(int64(len(p)), max(room, 0))]
	n, err := s.temp.Write(fits)
	s.n += int64(n)
	s.walk.bytes += int64(n)
	switch {
	case err != nil:
		s.failed = &Error{OverLimit, "unpacking", err.Error()}
	case len(fits) == len(p):
		return n, nil
	case s.walk.bytes >= l.Bytes:
		s.failed = errTotal
	case s.n >= l.Member:
		s.failed = &Error{OverLimit, "unpacking", fmt.Sprintf("a member of more than %d bytes", l.Member)}
	default:
		s.failed = &Error{OverLimit, "unpacking", fmt.Sprintf("a member more than %d times larger than its packed form", l.Ratio)}
	}
	return n, s.failed
}

// copyAll copies with the walk's buffer, which no two copies use at a time.
func (k *walk) copyAll(w io.Writer, r io.Reader) error {
	for {
		n, err := r.Read(k.buffer)
		if n > 0 {
			if _, err := w.Write(k.buffer[:n]); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if err := k.ctx.Err(); err != nil {
			return err
		}
	}
}

// find looks for a signature from at to to, -1 if it is not there.
func (k *walk) find(n node, at, to int64, signature string) int64 {
	for at < to {
		b := readAt(n, at, min(int64(len(k.buffer)), to-at))
		if b == nil || len(b) < len(signature) {
			return -1
		}
		if i := bytes.Index(b, []byte(signature)); i >= 0 {
			return at + int64(i)
		}
		at += int64(len(b)) - int64(len(signature)) + 1
		if int64(len(b)) < int64(len(k.buffer)) {
			return -1
		}
	}
	return -1
}
