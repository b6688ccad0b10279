package smtp

import (
	"crypto/tls"
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/reply"
	wire "github.com/postern-mta/postern/pipeline/smtp"
)

// Sizes of buffers in bytes: what an idle session reads through, what it reads
// a message through, and how much is answered before it is written.
const (
	smallBuffer = 512
	largeBuffer = 16 << 10
	maxAnswers  = 4 << 10
)

var (
	largeBuffers = sync.Pool{New: func() any { return new([largeBuffer]byte) }}
	outBuffers   = sync.Pool{New: func() any { b := make([]byte, 0, 1024); return &b }}
)

// errWoken: the server stops, and the session waits between transactions.
var errWoken = errors.New("closing down")

// source is where the session's Reader reads from. What was answered is
// written before anything is waited for: so the answers to commands that came
// together go together, and none is held back while the client waits for it.
type source struct{ n *session }

// Read reads from the connection, until the deadline of what is being read.
func (c source) Read(p []byte) (int, error) {
	n := c.n
	if err := n.flush(); err != nil {
		return 0, err
	}
	idle := !n.reading && n.tx == nil
	for {
		until := n.deadline()
		n.waiting.Store(idle)
		if err := n.conn.SetReadDeadline(until); err != nil {
			return 0, n.broke(err)
		}
		if n.srv.ctx.Err() != nil || idle && n.srv.stopping.Load() {
			n.waiting.Store(false)
			return 0, n.broke(errWoken)
		}
		k, err := n.conn.Read(p)
		n.waiting.Store(false)
		if n.rec.in += int64(k); err == nil || k > 0 {
			return k, nil // the error comes again
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) || !time.Now().Before(until) {
			return 0, n.broke(err)
		}
		// Woken before its time: see whether the server stops.
	}
}

// deadline is until when the next bytes must have come.
func (n *session) deadline() time.Time {
	until := n.until
	if n.reading {
		until = time.Now().Add(n.srv.o.Timeouts.Data)
	}
	if n.tx != nil && n.tx.until.Before(until) {
		until = n.tx.until
	}
	return until
}

// wake ends the wait for a command between transactions.
func (n *session) wake() {
	if n.waiting.Load() {
		n.raw.SetReadDeadline(time.Unix(1, 0)) //nolint:errcheck // the connection may be closed by now
	}
}

// broke notes why nothing more can be read.
func (n *session) broke(err error) error {
	if n.broken == nil {
		n.broken = err
	}
	return err
}

// say answers with a whole line.
func (n *session) say(line string) {
	b := n.begin()
	was := len(*b)
	if n.remarks != nil {
		code, rest, _ := strings.Cut(line, " ")
		enhanced, _, _ := strings.Cut(rest, " ")
		if strings.Count(enhanced, ".") != 2 || !strings.HasPrefix(enhanced, code[:1]+".") {
			enhanced = "" // as in the greeting
		}
		*b = n.remark(*b, code, enhanced)
	}
	*b = append(*b, line...)
	n.said(len(*b) - was)
}

// remark appends what is to be heard in front of an answer, as lines of it
// (RFC 5321 §4.2.1, RFC 2034 §4).
func (n *session) remark(b []byte, code, enhanced string) []byte {
	for _, r := range n.remarks {
		b = append(b, code...)
		b = append(b, '-')
		if enhanced != "" {
			b = append(b, enhanced...)
			b = append(b, ' ')
		}
		b = append(b, reply.Clean(r, reply.MaxText)...)
		b = append(b, '\r', '\n')
	}
	n.remarks = nil
	return b
}

// hangingUp answers, and closes the connection behind the answer or in its
// place.
func (n *session) hangingUp(h pipeline.HangUp, answer func()) {
	const why = "closed by a filter"
	if h == pipeline.HangUpAtOnce {
		n.end(why) // and nothing is answered
	}
	answer()
	if h == pipeline.HangUpAfter {
		n.end(why)
		n.linger = true
	}
}

// put answers with a reply.
func (n *session) put(r reply.Reply) {
	b := n.begin()
	was := len(*b)
	if n.remarks != nil {
		*b = n.remark(*b, strconv.Itoa(r.SMTPCode()), r.EnhancedCode())
	}
	*b = strconv.AppendInt(*b, int64(r.SMTPCode()), 10)
	*b = append(*b, ' ')
	*b = append(*b, r.EnhancedCode()...)
	*b = append(*b, ' ')
	*b = append(*b, r.Words()...)
	*b = append(*b, '\r', '\n')
	n.said(len(*b) - was)
}

func (n *session) begin() *[]byte {
	if n.out == nil {
		n.out = outBuffers.Get().(*[]byte)
	}
	return n.out
}

// said shows the last bytes of the answers to the transcript.
func (n *session) said(last int) {
	b := *n.out
	n.transcribe("S: ", b[len(b)-last:])
	if len(b) > maxAnswers {
		n.flush() //nolint:errcheck // the session ends by itself then
	}
}

// flush writes what was answered.
func (n *session) flush() error {
	if n.out == nil {
		return nil
	}
	b := n.out
	n.out = nil
	err := n.conn.SetWriteDeadline(time.Now().Add(n.srv.o.Timeouts.Write))
	if err == nil {
		_, err = n.conn.Write(*b)
	}
	if *b = (*b)[:0]; cap(*b) <= 2*maxAnswers {
		outBuffers.Put(b)
	}
	if err != nil {
		n.broke(err) //nolint:errcheck // it comes back
		n.end("gone")
	}
	return err
}

// grow reads through a large buffer from now on, and shrink through the small
// one again as soon as that holds what has come.
func (n *session) grow() {
	if n.large != nil {
		return
	}
	large := largeBuffers.Get().(*[largeBuffer]byte)
	small, ok := n.in.Exchange(large[:])
	if !ok {
		largeBuffers.Put(large)
		return
	}
	n.large, n.small = large, small
}

func (n *session) shrink() {
	if n.large == nil {
		return
	}
	if _, ok := n.in.Exchange(n.small); ok {
		largeBuffers.Put(n.large)
		n.large, n.small = nil, nil
	}
}

// readLine reads one command as readCommand does, at a time when the large
// buffer is not needed any more.
func (n *session) readLine(bound int) (line []byte, ok bool) {
	n.shrink()
	return n.readCommand(bound)
}

// readCommand reads one line of at most bound bytes, valid until the next read.
// It deals with all that is none, and ok is false then.
func (n *session) readCommand(bound int) (line []byte, ok bool) {
	n.until = time.Now().Add(n.srv.o.Timeouts.Command)
	if n.tx == nil && n.until.After(n.over) {
		n.until = n.over
	}
	line, err := n.in.Line(bound)
	switch {
	case err == nil:
		return line, true
	case errors.Is(err, wire.ErrBare):
		n.transcribe("C: ", []byte("(a line with a bare CR, bare LF or NUL)"))
		if isBDAT(line) {
			n.hangUp("bad chunk", badChunk)
		} else {
			n.bad(bareInLine)
		}
	case errors.Is(err, wire.ErrLineTooLong):
		n.transcribe("C: ", []byte("(a line that is too long)"))
		if n.in.SkipLine(maxLongLine) != nil {
			n.hangUp("line too long", lineTooLong)
		} else {
			n.bad(lineTooLong)
		}
	default:
		n.lost(err)
	}
	return nil, false
}

// maxLongLine is how many bytes of a line that is too long are passed over.
const maxLongLine = 64 << 10

// lost ends the session because nothing more comes.
func (n *session) lost(err error) {
	switch {
	case errors.Is(err, errWoken):
		n.hangUp("stopping", stopping)
	case !errors.Is(err, os.ErrDeadlineExceeded):
		n.end("gone")
	case n.tx == nil && !time.Now().Before(n.over):
		n.hangUp("too long", tooLong)
	default:
		n.hangUp("timeout", timedOut)
	}
}

// hangUp answers and ends the session.
func (n *session) hangUp(why string, r reply.Reply) {
	if n.ended == "" {
		n.put(r)
		n.rec.last = r
	}
	n.end(why)
	n.linger = true
}

// end ends the session after what was answered is written.
func (n *session) end(why string) {
	if n.ended == "" {
		n.ended = why
	}
}

// How much is read, and for how long, after the last answer: a connection that
// is closed with bytes unread takes back what was written last.
const (
	lingerBytes = 256 << 10
	lingerTime  = 2 * time.Second
)

// closeConn writes what is left to say and closes the connection.
func (n *session) closeConn() {
	n.flush() //nolint:errcheck // nobody is left to tell
	if t, ok := n.conn.(*tls.Conn); ok && n.linger {
		t.CloseWrite() //nolint:errcheck // a courtesy
	}
	if half, ok := n.raw.(interface{ CloseWrite() error }); ok && n.linger && half.CloseWrite() == nil {
		deadline := time.Now().Add(lingerTime)
		if n.raw.SetReadDeadline(deadline) == nil && n.srv.ctx.Err() == nil {
			var b [512]byte
			for left := lingerBytes; left > 0; {
				k, err := n.raw.Read(b[:])
				if left -= k; err != nil {
					break
				}
			}
		}
	}
	n.conn.Close()
	n.raw.Close()
}

// hungUp reports whether the client has closed the connection and has left
// nothing to be read. It reads nothing.
func (n *session) hungUp() bool {
	c, ok := n.raw.(syscall.Conn)
	if !ok || n.in.Buffered() > 0 {
		return false
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return false
	}
	gone := false
	err = raw.Control(func(fd uintptr) {
		var b [goodbye + 1]byte
		k, _, err := unix.Recvfrom(int(fd), b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		switch {
		case err != nil:
			gone = errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ETIMEDOUT)
		case n.facts.TLS != "":
			gone = k == 0 || saysGoodbye(b[:k])
		default:
			gone = k == 0
		}
	})
	return gone || err != nil
}

// goodbye is the size in bytes of a TLS 1.3 record that holds an alert: a
// header of five, the alert's two, its type, and the seal.
const goodbye = 5 + 2 + 1 + 16

// saysGoodbye reports whether all that is left to be read is the alert with
// which a client ends TLS (RFC 8446 §6.1). Under TLS 1.3 it looks like any
// record of its size, but no client has two bytes to say at this point.
func saysGoodbye(b []byte) bool {
	const alert, data = 21, 23
	return b[0] == alert || len(b) == goodbye && b[0] == data && b[3] == 0 && b[4] == goodbye-5
}

// prefixed is a connection of which some bytes have been read already.
type prefixed struct {
	net.Conn
	left []byte
}

// Read gives those bytes first.
func (p *prefixed) Read(b []byte) (int, error) {
	if len(p.left) > 0 {
		k := copy(b, p.left)
		p.left = p.left[k:]
		return k, nil
	}
	return p.Conn.Read(b)
}

// transcribe writes lines of the transcript, as printable ones. They must not
// hold a password.
func (n *session) transcribe(who string, lines []byte) {
	if n.transcript == nil {
		return
	}
	var b []byte
	for line := range strings.SplitSeq(strings.TrimSuffix(string(lines), "\r\n"), "\r\n") {
		b = append(b, who...)
		b = append(b, pipeline.LogText(line, maxTranscribed)...)
		b = append(b, '\n')
	}
	if _, err := n.transcript.Write(b); err != nil {
		n.srv.o.Log.Warn("transcript ends early", "session", n.id, "error", err)
		n.endTranscript()
	}
}

// maxTranscribed is how much of a line stands in a transcript.
const maxTranscribed = 2048

func (n *session) endTranscript() {
	if n.transcript != nil {
		n.transcript.Close() //nolint:errcheck // nothing depends on it
		n.transcript = nil
	}
}

// openTranscript asks for a transcript of the session.
func (n *session) openTranscript(facts *pipeline.Session) {
	if n.srv.o.Transcript != nil && n.transcript == nil {
		n.transcript = n.srv.o.Transcript(facts)
	}
}

// addrPort is a connection's other end; the zero AddrPort if it has no IP
// address.
func addrPort(a net.Addr) netip.AddrPort {
	t, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	p := t.AddrPort()
	return netip.AddrPortFrom(p.Addr().Unmap(), p.Port())
}

func within(networks []netip.Prefix, a netip.Addr) bool {
	return a.IsValid() && slices.ContainsFunc(networks, func(p netip.Prefix) bool { return p.Contains(a.WithZone("")) })
}
