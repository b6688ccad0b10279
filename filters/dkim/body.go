package dkim

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"

	"github.com/postern-mta/postern/pipeline/message"
)

// errBlank is a body whose blank lines nobody should have to keep.
var errBlank = errors.New("too many blank lines within the body")

const (
	// chunk is how much of a body is read at once, in bytes.
	chunk = 64 << 10
	// maxBlank bounds a run of blank lines within a body, in bytes. Under
	// "simple" the library passes over it for each 4 KiB that follow.
	maxBlank       = 1 << 20
	maxBlankSimple = 16 << 10
)

// feed gives go-msgauth a head and the body that belongs to it, so that it can
// do it no harm. As of v0.7.0 the library keeps every run of blank lines in
// memory, and passes over it anew for each piece of a body under "simple": 10
// MiB of line ends take it seconds and twice the memory. So blank lines at the
// end, of which canonicalisation leaves one line end (RFC 6376 §3.4.3, §3.4.4),
// come as one, and a run of more than room within is errBlank. A feed is
// read once.
type feed struct {
	ctx  context.Context
	head *strings.Reader
	body *message.Body
	// void are the bytes of lines that count as blank.
	void string
	held []byte
	room int  // of held
	full bool // held could not hold all
	err  error
}

func newFeed(ctx context.Context, head string, body *message.Body, canonicalization string) *feed {
	f := &feed{ctx: ctx, head: strings.NewReader(head), body: body, void: "\r\n", room: maxBlankSimple}
	if canonicalization == relaxed {
		f.void, f.room = " \t\r\n", maxBlank
	}
	return f
}

// Read gives out the head, which is all that the library reads by Read.
func (f *feed) Read(p []byte) (int, error) {
	if f.head.Len() == 0 {
		return 0, io.EOF
	}
	return f.head.Read(p)
}

// WriteTo writes what is left of the head, and the body.
func (f *feed) WriteTo(w io.Writer) (int64, error) {
	c := &counter{to: w}
	if content, ok := f.body.Memory(); ok && len(content) <= chunk {
		f.err = f.writeAtOnce(c, content)
		return c.n, f.err
	}
	if _, err := f.head.WriteTo(c); err != nil {
		return c.n, err
	}
	f.err = f.writeBody(c)
	return c.n, f.err
}

// writeAtOnce writes what is left of the head and a small body: to sign, the
// library takes each piece in another goroutine.
func (f *feed) writeAtOnce(w io.Writer, content []byte) error {
	if err := f.ctx.Err(); err != nil {
		return err
	}
	text := bytes.TrimRight(content, f.void)
	f.hold(content[len(text):])
	ending, err := f.ending()
	if err != nil {
		return err
	}
	if f.head.Len() == 0 && bytes.HasPrefix(content[len(text):], ending) {
		_, err = w.Write(content[:len(text)+len(ending)])
		return err
	}
	whole := bytes.NewBuffer(make([]byte, 0, f.head.Len()+len(text)+len(ending)))
	f.head.WriteTo(whole) //nolint:errcheck // it is memory
	whole.Write(text)
	whole.Write(ending)
	_, err = whole.WriteTo(w)
	return err
}

// counter counts what is written.
type counter struct {
	to io.Writer
	n  int64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.to.Write(p)
	c.n += int64(n)
	return n, err
}

func (f *feed) writeBody(w io.Writer) error {
	if content, ok := f.body.Memory(); ok {
		for len(content) > 0 {
			n := min(len(content), chunk)
			if err := f.pass(w, content[:n]); err != nil {
				return err
			}
			content = content[n:]
		}
		return f.end(w)
	}
	buf := make([]byte, chunk)
	for off := int64(0); off < f.body.Size(); {
		n, err := f.body.ReadAt(buf, off)
		off += int64(n)
		if err != nil && (!errors.Is(err, io.EOF) || off < f.body.Size()) {
			return err
		}
		if err := f.pass(w, buf[:n]); err != nil {
			return err
		}
	}
	return f.end(w)
}

// pass writes a piece of the body but for blank lines at its end.
func (f *feed) pass(w io.Writer, p []byte) error {
	if err := f.ctx.Err(); err != nil {
		return err
	}
	text := bytes.TrimRight(p, f.void)
	if len(text) > 0 {
		if f.full {
			return errBlank
		}
		if len(f.held) > 0 {
			if _, err := w.Write(f.held); err != nil {
				return err
			}
			f.held = f.held[:0]
		}
		if _, err := w.Write(text); err != nil {
			return err
		}
	}
	f.hold(p[len(text):])
	return nil
}

// hold keeps blank lines that may be the last.
func (f *feed) hold(blank []byte) {
	if room := f.room - len(f.held); len(blank) > room {
		f.full, blank = true, blank[:room]
	}
	f.held = append(f.held, blank...)
}

// end writes what stands for the blank lines at the end.
func (f *feed) end(w io.Writer) error {
	ending, err := f.ending()
	if err == nil {
		_, err = w.Write(ending)
	}
	return err
}

// ending is what stands for the blank lines at the end. What has CRs that are no
// line ends is left to the library.
func (f *feed) ending() ([]byte, error) {
	held := f.held
	if bytes.Count(held, []byte("\r")) != bytes.Count(held, []byte("\r\n")) {
		if f.full {
			return nil, errBlank
		}
	} else if bytes.IndexByte(held, '\n') >= 0 {
		held = []byte("\n")
	}
	return held, nil
}
