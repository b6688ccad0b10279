package milter

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	gomilter "github.com/emersion/go-milter"

	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/servers"
)

const (
	// dialTime bounds how long a connection may take to be made.
	dialTime = 3 * time.Second
	// partingTime bounds what is said without a context: an abort, a farewell.
	partingTime = time.Second
	writeBuffer = 8 << 10
	readBuffer  = 4 << 10
)

// talk is a connection to a milter, and how far the conversation on it has come.
// It is for one goroutine.
type talk struct {
	terms
	server string // its name
	conn   net.Conn
	r      *bufio.Reader
	w      *bufio.Writer
	// reused is set while the connection is an old one and nothing has been heard
	// on it in this session.
	reused bool
	// connected, greeted, mailed are what it was told, told how many recipients;
	// open is set where a transaction has to be aborted.
	connected, greeted, mailed, open bool
	told                             int
}

// dial connects to a milter and negotiates.
func dial(ctx context.Context, s *servers.Server) (*talk, error) {
	d := net.Dialer{Timeout: dialTime}
	c, err := d.DialContext(ctx, s.Network, s.Address)
	if err != nil {
		return nil, err
	}
	t := &talk{server: s.Name, conn: c, r: bufio.NewReaderSize(c, readBuffer), w: bufio.NewWriterSize(c, writeBuffer)}
	err = t.within(ctx, t.negotiate)
	if err != nil {
		c.Close()
		return nil, fmt.Errorf("negotiating: %w", told(err))
	}
	return t, nil
}

// within bounds all waits on the connection by a context.
func (t *talk) within(ctx context.Context, do func() error) error {
	at, ok := ctx.Deadline()
	if !ok {
		at = time.Now().Add(time.Minute)
	}
	if err := t.conn.SetDeadline(at); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { t.conn.SetDeadline(time.Unix(1, 0)) }) //nolint:errcheck // it is closed then
	defer stop()
	err := do()
	if err == nil {
		err = t.w.Flush()
	}
	if err == nil {
		err = ctx.Err()
	}
	return err
}

// told is an error as it is told.
func told(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("it closed the connection: %w", err)
	}
	return err
}

func (t *talk) negotiate() error {
	if err := t.send(gomilter.CodeOptNeg, offer()); err != nil {
		return err
	}
	if err := t.w.Flush(); err != nil {
		return err
	}
	code, n, err := t.head()
	if err != nil {
		return err
	}
	if code != byte(gomilter.CodeOptNeg) {
		return fmt.Errorf("it answers %q", string(rune(code)))
	}
	data, err := t.data(n)
	if err != nil {
		return err
	}
	t.terms, err = parseTerms(data)
	return err
}

// send writes a packet of several pieces; it may stay in the buffer.
func (t *talk) send(code gomilter.Code, pieces ...[]byte) error {
	n := 1
	for _, p := range pieces {
		n += len(p)
	}
	head := [packetHead]byte{packetHead - 1: byte(code)}
	binary.BigEndian.PutUint32(head[:], uint32(n))
	if _, err := t.w.Write(head[:]); err != nil {
		return err
	}
	for _, p := range pieces {
		if _, err := t.w.Write(p); err != nil {
			return err
		}
	}
	return nil
}

// ask tells the milter something, unless it does not want to hear it, and waits
// for its answer, unless it gives none. Macros it hears in any case: it may ask for
// them later.
func (t *talk) ask(c *command, macros []byte, pieces ...[]byte) (answer, error) {
	if err := t.tellMacros(c, macros); err != nil {
		return answer{}, err
	}
	if t.has(c.not) {
		return goOn, nil
	}
	if err := t.tell(c, pieces...); err != nil {
		return answer{}, err
	}
	return t.hear(c)
}

// hear is the answer to a command, if there is to be one.
func (t *talk) hear(c *command) (answer, error) {
	if t.has(c.mute) {
		return goOn, nil
	}
	if err := t.w.Flush(); err != nil {
		return answer{}, fmt.Errorf("%s: %w", c.name, told(err))
	}
	code, n, err := t.heard()
	if err != nil {
		return answer{}, fmt.Errorf("%s: %w", c.name, told(err))
	}
	return t.answer(c, code, n)
}

// packetHead is how long the head of a packet is in bytes.
const packetHead = 5

// askPacket is ask for a packet without macros that stands in a buffer already,
// but for its head.
func (t *talk) askPacket(c *command, packet []byte) (answer, error) {
	if t.r.Buffered() > 0 {
		return answer{}, fmt.Errorf("%s: %w", c.name, errUnasked)
	}
	binary.BigEndian.PutUint32(packet, uint32(len(packet)-4))
	packet[packetHead-1] = byte(c.code)
	err := t.w.Flush()
	if err == nil {
		_, err = t.conn.Write(packet)
	}
	if err != nil {
		return answer{}, fmt.Errorf("%s: %w", c.name, told(err))
	}
	return t.hear(c)
}

// errUnasked means that a milter said more than it was asked for.
var errUnasked = errors.New("it says more than it was asked")

// early reports whether the milter has said what nobody asked for. It is looked
// for before each command that begins something, and before the answer that
// counts most: what came late for the message before must not be taken for the
// next one's.
func (t *talk) early(c *command) bool {
	begins := c == &cmdConnect || c == &cmdHelo || c == &cmdMail || c == &cmdData || c == &cmdEOM
	return t.r.Buffered() > 0 || begins && (&servers.Conn{Conn: t.conn}).Early()
}

// tell sends a command.
func (t *talk) tell(c *command, pieces ...[]byte) error {
	if t.early(c) {
		return fmt.Errorf("%s: %w", c.name, errUnasked)
	}
	if err := t.send(c.code, pieces...); err != nil {
		return fmt.Errorf("%s: %w", c.name, told(err))
	}
	return nil
}

// tellMacros sends the macros of a command.
func (t *talk) tellMacros(c *command, macros []byte) error {
	if len(macros) == 0 {
		return nil
	}
	if err := t.send(gomilter.CodeMacro, []byte{byte(c.code)}, macros); err != nil {
		return fmt.Errorf("%s: %w", c.name, told(err))
	}
	return nil
}

// answer reads the answer to a command whose head has been read.
func (t *talk) answer(c *command, code byte, n int) (answer, error) {
	data, err := t.data(n)
	if err != nil {
		return answer{}, fmt.Errorf("%s: %w", c.name, told(err))
	}
	a, err := parseAnswer(code, data)
	if err == nil && a.code == gomilter.ActSkip && (c != &cmdBody || !t.has(gomilter.OptSkip)) {
		err = errors.New("it skips what it may not")
	}
	if err != nil {
		return answer{}, fmt.Errorf("%s: %w", c.name, err)
	}
	return a, nil
}

// heard reads the head of the next packet that is more than a sign of life.
func (t *talk) heard() (code byte, n int, err error) {
	for range maxProgress {
		if code, n, err = t.head(); err != nil {
			return 0, 0, err
		}
		t.reused = false
		if code != answerProgress {
			return code, n, nil
		}
		if _, err := t.data(n); err != nil {
			return 0, 0, err
		}
	}
	return 0, 0, errors.New("it is at work for ever")
}

// head reads the head of a packet: its code, and how many bytes follow.
func (t *talk) head() (code byte, n int, err error) {
	var b [packetHead]byte
	if _, err := io.ReadFull(t.r, b[:]); err != nil {
		return 0, 0, err
	}
	size := binary.BigEndian.Uint32(b[:])
	limit := uint32(maxData)
	if b[packetHead-1] == byte(gomilter.ActReplBody) {
		limit = maxChunk
	}
	if size == 0 || size-1 > limit {
		return 0, 0, fmt.Errorf("it sends a packet of %d bytes", size)
	}
	return b[packetHead-1], int(size) - 1, nil
}

func (t *talk) data(n int) ([]byte, error) {
	if n == 0 {
		return nil, nil
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(t.r, b); err != nil {
		return nil, io.ErrUnexpectedEOF
	}
	return b, nil
}

// result is what a milter made of a message.
type result struct {
	answer
	changes []change
	body    *message.Body // nil: the one it has
	// hold is why it is to be held, where held is set.
	held bool
	hold string
}

// limits bound what a milter may change.
type limits struct {
	spool message.Spooler
	body  int64 // bytes of a new body
}

const (
	// maxChanges bounds the modifications of a message, and maxChangeBytes their
	// bytes.
	maxChanges     = 10_000
	maxChangeBytes = 4 << 20
)

// end tells the milter that the message has ended, and reads what it changes.
// The caller holds the result's body.
func (t *talk) end(macros []byte, l limits) (r result, err error) {
	if err := t.tellMacros(&cmdEOM, macros); err != nil {
		return result{}, err
	}
	if err := t.tell(&cmdEOM); err != nil {
		return result{}, err
	}
	if err := t.w.Flush(); err != nil {
		return result{}, fmt.Errorf("%s: %w", cmdEOM.name, told(err))
	}
	body := &replacement{limits: l}
	defer body.abort()
	for size := 0; ; {
		code, n, err := t.heard()
		if err != nil {
			return result{}, fmt.Errorf("%s: %w", cmdEOM.name, told(err))
		}
		need, isChange := needs[code]
		if !isChange {
			if r.answer, err = t.answer(&cmdEOM, code, n); err != nil {
				return result{}, err
			}
			if t.r.Buffered() > 0 {
				return result{}, fmt.Errorf("%s: %w", cmdEOM.name, errUnasked)
			}
			r.body, err = body.finish()
			return r, err
		}
		if t.actions&need == 0 {
			return result{}, fmt.Errorf("%s: it makes a change (%q) that it has not asked for", cmdEOM.name, string(rune(code)))
		}
		if code == byte(gomilter.ActReplBody) {
			if err := body.read(t.r, n); err != nil {
				return result{}, fmt.Errorf("%s: its new body: %w", cmdEOM.name, told(err))
			}
			continue
		}
		data, err := t.data(n)
		if err != nil {
			return result{}, fmt.Errorf("%s: %w", cmdEOM.name, told(err))
		}
		c, err := parseChange(code, data)
		if err != nil {
			return result{}, fmt.Errorf("%s: %w", cmdEOM.name, err)
		}
		if code == byte(gomilter.ActQuarantine) {
			r.held, r.hold = true, c.name
			continue
		}
		if size += n; len(r.changes) >= maxChanges || size > maxChangeBytes {
			return result{}, fmt.Errorf("%s: it makes more than %d changes, or of more than %d bytes", cmdEOM.name, maxChanges, maxChangeBytes)
		}
		r.changes = append(r.changes, c)
	}
}

// abort ends a transaction, if one is open. Nothing is answered.
func (t *talk) abort() error {
	open := t.open
	t.mailed, t.open, t.told = false, false, 0
	if !open {
		return nil
	}
	return t.send(gomilter.CodeAbort)
}

// parting says something without waiting for an answer, and within little time.
func (t *talk) parting(say func() error) error {
	ctx, cancel := context.WithTimeout(context.Background(), partingTime)
	defer cancel()
	return t.within(ctx, say)
}

// quit ends the conversation.
func (t *talk) quit() {
	t.parting(func() error { //nolint:errcheck // it is over
		if err := t.abort(); err != nil {
			return err
		}
		return t.send(gomilter.CodeQuit)
	})
	t.conn.Close()
}

// replacement collects a new body. Milters send line ends of either kind.
type replacement struct {
	limits
	w    *message.Writer
	size int64
	last byte // what was written last
	cr   bool // it stands for a CR, whose LF may come
}

// chunks are buffers for pieces of bodies.
var chunks = sync.Pool{New: func() any { b := make([]byte, packetHead+gomilter.MaxBodyChunk); return &b }}

// read reads n bytes of it.
func (b *replacement) read(r io.Reader, n int) error {
	if b.w == nil {
		b.w = message.NewWriter(b.spool, 0)
	}
	if b.size += int64(n); b.size > b.body {
		return fmt.Errorf("it has more than %d bytes: see the option \"body\"", b.body)
	}
	buffer := chunks.Get().(*[]byte)
	defer chunks.Put(buffer)
	for n > 0 {
		piece := (*buffer)[:min(n, len(*buffer))]
		if _, err := io.ReadFull(r, piece); err != nil {
			return io.ErrUnexpectedEOF
		}
		n -= len(piece)
		if piece = b.lines(piece); len(piece) == 0 {
			continue
		}
		b.last = piece[len(piece)-1]
		if _, err := b.w.Write(piece); err != nil {
			return servers.Ours(err)
		}
	}
	return nil
}

// lines brings a piece into the canonical form, in place: CR LF and CR become
// LF, NUL goes.
func (b *replacement) lines(p []byte) []byte {
	out := p[:0]
	for _, c := range p {
		switch {
		case c == '\r':
			out = append(out, '\n')
		case c == 0, c == '\n' && b.cr:
		default:
			out = append(out, c)
		}
		if c != 0 {
			b.cr = c == '\r'
		}
	}
	return out
}

// finish is the body, nil if there is no new one.
func (b *replacement) finish() (*message.Body, error) {
	if b.w == nil {
		return nil, nil
	}
	w := b.w
	b.w = nil
	if b.last != '\n' && b.last != 0 {
		w.Write([]byte{'\n'}) //nolint:errcheck // Body tells
	}
	body, err := w.Body()
	if err != nil {
		return nil, servers.Ours(err)
	}
	return body, nil
}

func (b *replacement) abort() {
	if b.w != nil {
		b.w.Abort()
	}
}
