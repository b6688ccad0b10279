// Package message holds a mail message as a Head, whose fields can be edited,
// and a Body, whose bytes never change.
//
// It promises one canonical form, in which lines end in LF and there is
// neither a bare CR nor a NUL (an entrance may choose to keep what came
// instead, see Lines); that an edit leaves every byte it was not asked to
// change; that memory does not grow with the size of a body; and that a body
// lives exactly as long as somebody holds it.
package message

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// Message is a head and a body. It is a value: copying it copies no bytes. The
// body is shared; whoever keeps a Message beyond the call that gave it must
// Retain its body and Release it in the end.
type Message struct {
	head Head
	body *Body
}

// New joins a head and a body that belong together, as a store keeps them; a
// nil body is an empty one. For a body that is new to the head see WithBody.
func New(head Head, body *Body) Message { return Message{head, body} }

// Head is the message's head.
func (m Message) Head() Head { return m.head }

// Body is the message's body; nil means empty, and a nil *Body can be used.
func (m Message) Body() *Body { return m.body }

// WithHead is the message under another head, with the same body.
func (m Message) WithHead(h Head) Message { return Message{h, m.body} }

// WithBody is the message with another body, which it does not retain. A head
// that came without a blank line after it gets one.
func (m Message) WithBody(b *Body) Message {
	if b != m.body {
		m.head.apart = true
	}
	return Message{m.head, b}
}

// HeadText is the head as it stands before the body, with the blank line
// between them: what a store keeps beside the body. ParseHead makes a head of
// it that gives the same message with the same body.
func (m Message) HeadText() string { return string(m.headBytes()) }

// Size is the message's length in bytes as it stands.
func (m Message) Size() int64 { return int64(m.head.size(m.body)) + m.body.Size() }

// WireSize is the length in bytes of the CRLF view, the SIZE of RFC 1870 §5.
func (m Message) WireSize() int64 {
	h := m.headBytes()
	return int64(len(h)) + bareLFs(h) + m.body.Size() + m.body.LFs()
}

// Form says what a message asks of the next server.
type Form uint8

// The forms of a message.
const (
	SevenBit Form = iota
	EightBit      // needs 8BITMIME (RFC 6152 §2)
	UTF8          // has UTF-8 in its head and needs SMTPUTF8 (RFC 6531 §3)
)

// String is the form's word in the queue's record.
func (f Form) String() string {
	if int(f) < len(formNames) {
		return formNames[f]
	}
	return "invalid"
}

var formNames = [...]string{"7bit", "8bit", "utf8"}

// Form looks at head and body. A head with bytes that are not UTF-8 is 8bit.
func (m Message) Form() Form {
	h := m.headBytes()
	if isASCII(h) {
		if m.body.EightBit() {
			return EightBit
		}
		return SevenBit
	}
	if utf8.Valid(h) {
		return UTF8
	}
	return EightBit
}

func (m Message) headBytes() []byte {
	return m.head.append(make([]byte, 0, m.head.size(m.body)), m.body)
}

// Reader reads the message as it stands, from its start; it can seek and read
// at offsets. It is valid as long as the body is held.
func (m Message) Reader() *io.SectionReader {
	return io.NewSectionReader(joined{m.headBytes(), m.body}, 0, m.Size())
}

// joined is a head and a body as one io.ReaderAt.
type joined struct {
	head []byte
	body *Body
}

func (j joined) ReadAt(p []byte, off int64) (n int, err error) {
	if off < int64(len(j.head)) {
		n = copy(p, j.head[off:])
		if n == len(p) {
			return n, nil
		}
		off += int64(n)
	}
	m, err := j.body.ReadAt(p[n:], off-int64(len(j.head)))
	return n + m, err
}

// CRLF reads the message in the form in which it travels and is signed: every
// LF that no CR precedes becomes CR LF.
func (m Message) CRLF() io.Reader { return &crlfReader{in: m.Reader()} }

type crlfReader struct {
	in   io.Reader
	raw  [8192]byte
	rest []byte // of raw, not yet given out
	crlf CRLF
}

func (r *crlfReader) Read(p []byte) (n int, err error) {
	for n < len(p) {
		if len(r.rest) == 0 {
			if n > 0 {
				break
			}
			k, err := r.in.Read(r.raw[:])
			if k == 0 && err != nil {
				return 0, err
			}
			r.rest = r.raw[:k]
			continue
		}
		put, used := r.crlf.Next(p[n:], r.rest)
		n, r.rest = n+put, r.rest[used:]
	}
	return n, nil
}

// WriteTo writes the message as it stands, all of it or with an error.
func (m Message) WriteTo(w io.Writer) (int64, error) {
	n, err := writeAll(w, m.headBytes())
	written := int64(n)
	if err != nil {
		return written, err
	}
	if content, ok := m.body.Memory(); ok {
		n, err = writeAll(w, content)
		return written + int64(n), err
	}
	k, err := io.Copy(w, io.NewSectionReader(m.body, 0, m.body.Size()))
	return written + k, err
}

// Bytes is the whole message in memory, for tests and small messages; nil if
// the body's file cannot be read. Where that matters, use WriteTo.
func (m Message) Bytes() []byte {
	b, err := m.content()
	if err != nil {
		return nil
	}
	return b
}

func (m Message) content() ([]byte, error) {
	b := bytes.NewBuffer(make([]byte, 0, m.Size()))
	_, err := m.WriteTo(b)
	return b.Bytes(), err
}

// Descriptor makes a file of the message for another process: seekable, at
// offset 0, without a name, and not writable. Up to InMemory bytes, or if
// there is no spool, it is a sealed memory file, else a spool file, already
// removed from its directory. The caller closes it.
func (m Message) Descriptor(spool Spooler) (*os.File, error) {
	if m.Size() <= InMemory || spool == nil {
		content, err := m.content()
		if err != nil {
			return nil, fmt.Errorf("reading the message: %w", err)
		}
		return MemoryFile("message", content)
	}
	name, w, err := spool.Create()
	if err != nil {
		return nil, err
	}
	defer spool.Remove(name) //nolint:errcheck // the spool sweeps what is left behind
	if _, err = m.WriteTo(w); err != nil {
		w.Close()
		return nil, err
	}
	if err = w.Close(); err != nil {
		return nil, err
	}
	r, err := spool.Open(name)
	if err != nil {
		return nil, err
	}
	f, ok := r.(*os.File)
	if !ok {
		r.Close()
		return nil, errors.New("spool files of this store cannot be passed to another process")
	}
	return f, nil
}

// MemoryFile is content as a sealed file without a name, at offset 0, to be
// passed to another process. The caller closes it.
func MemoryFile(name string, content []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	f := os.NewFile(uintptr(fd), name)
	if len(content) > 0 {
		if _, err = f.WriteAt(content, 0); err != nil {
			f.Close()
			return nil, err
		}
	}
	const seals = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
	if _, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals); err != nil {
		f.Close()
		return nil, os.NewSyscallError("fcntl", err)
	}
	return f, nil
}

func isASCII(b []byte) bool {
	const high = 0x8080808080808080
	for ; len(b) >= 8; b = b[8:] {
		if binary.NativeEndian.Uint64(b)&high != 0 {
			return false
		}
	}
	for _, c := range b {
		if c >= 0x80 {
			return false
		}
	}
	return true
}

// bareLFs counts the LFs that no CR precedes.
func bareLFs(b []byte) int64 {
	return int64(bytes.Count(b, []byte{'\n'}) - bytes.Count(b, []byte("\r\n")))
}

// FromString is a message in memory in the form in which s stands, for tests
// and for messages that Postern writes itself.
func FromString(s string) Message {
	m, err := Read(strings.NewReader(s), Options{Lines: Keep, MaxHead: len(s) + 1, MaxFields: len(s) + 1})
	if err != nil { // without limits, spool or a reader that fails: no way here
		return Message{body: BytesBody([]byte(s))}
	}
	return m
}
