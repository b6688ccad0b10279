package tap

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash"
	"io"
	"strings"

	"github.com/postern-mta/postern/pipeline/message"
)

// covered are the fields that a mark is bound to: those that say what message
// it is and how its body is to be read, and that no mail system rewrites.
var covered = [...]string{"Message-ID", "Date", "From", "Subject", "Content-Type", "Content-Transfer-Encoding"}

// marked is a message whose digest is taken once, and only if it is asked for.
type marked struct {
	message message.Message
	taken   bool
	sum     [sha256.Size]byte
}

// digest is SHA-256 over the covered fields and the body in a form that
// survives transport.
func (s *marked) digest(ctx context.Context) ([sha256.Size]byte, error) {
	if s.taken {
		return s.sum, nil
	}
	body, err := digestBody(ctx, s.message.Body())
	if err != nil {
		return s.sum, fmt.Errorf("reading the body for a mark: %w", err)
	}
	head := s.message.Head()
	var all []byte
	for _, name := range covered {
		values := head.Values(name)
		all = binary.BigEndian.AppendUint64(all, uint64(len(values)))
		for _, v := range values {
			// Folding and blanks are what mail systems change.
			all = appendString(all, strings.Join(strings.Fields(v), " "))
		}
	}
	s.sum, s.taken = sha256.Sum256(append(all, body...)), true
	return s.sum, nil
}

// chunk is how much of a body is read at once, in bytes.
const chunk = 32 << 10

func digestBody(ctx context.Context, b *message.Body) ([]byte, error) {
	h := sha256.New()
	c := canonical{to: h}
	if content, ok := b.Memory(); ok {
		c.write(content)
		return h.Sum(nil), nil
	}
	buf := make([]byte, chunk)
	for off := int64(0); off < b.Size(); {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		n, err := b.ReadAt(buf, off)
		c.write(buf[:n])
		off += int64(n)
		if err != nil && (err != io.EOF || off < b.Size()) {
			return nil, err
		}
	}
	return h.Sum(nil), nil
}

// canonical passes a body on as a Postern that repairs would store it (CR LF
// and CR become LF, NUL goes), and without the LFs at its end.
type canonical struct {
	to    hash.Hash
	cr    bool  // a CR came last, and an LF was held back for it
	lfs   int64 // held back
	fixed []byte
}

func (c *canonical) write(p []byte) {
	if len(p) == 0 {
		return
	}
	if !c.cr && bytes.IndexByte(p, '\r') < 0 && bytes.IndexByte(p, 0) < 0 {
		c.pass(p)
		return
	}
	c.fixed = c.fixed[:0]
	for _, b := range p {
		switch {
		case b == 0:
		case b == '\r':
			c.fixed = append(c.fixed, '\n')
		case b == '\n' && c.cr:
		default:
			c.fixed = append(c.fixed, b)
		}
		c.cr = b == '\r'
	}
	c.pass(c.fixed)
}

// newlines is what held back LFs are written from.
var newlines = strings.Repeat("\n", 512)

func (c *canonical) pass(p []byte) {
	text := bytes.TrimRight(p, "\n")
	if len(text) == 0 {
		c.lfs += int64(len(p))
		return
	}
	for c.lfs > 0 {
		n := min(c.lfs, int64(len(newlines)))
		io.WriteString(c.to, newlines[:n])
		c.lfs -= n
	}
	c.to.Write(text)
	c.lfs = int64(len(p) - len(text))
}
