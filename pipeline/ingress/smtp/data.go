package smtp

import (
	"bytes"
	"errors"
	"strconv"
	"time"

	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
	wire "github.com/postern-mta/postern/pipeline/smtp"
)

// maxSkip is how many bytes are passed over of what was refused. Beyond it the
// connection is closed.
const maxSkip = 256 << 20

// chunk is what a BDAT within a message said.
type chunk struct {
	size  int64
	last  bool
	given bool
}

// errAborted: another command than BDAT came between two chunks, or the session
// has ended.
var errAborted = errors.New("the message was given up between two chunks")

// data answers DATA.
func (n *session) data([]byte) {
	n.say(saidData)
	n.grow()
	n.reading = true
	d := wire.NewDotReader(n.in, n.repairs())
	m, err := message.Read(d, n.readOptions())
	for skipped := 0; err != nil && n.broken == nil && n.ended == "" && !d.Ended(); {
		var b [4 << 10]byte
		k, _ := d.Read(b[:])
		if skipped += k; skipped > maxSkip {
			n.hangUp("too much after an error", reply.Of(err))
		}
	}
	n.reading = false
	n.deliver(m, err)
}

func (n *session) repairs() bool { return *n.srv.o.Lines == message.Repair }

// readOptions are for a message whose line ends were dealt with.
func (n *session) readOptions() message.Options {
	l := &n.srv.o.Limits
	return message.Options{Spool: n.srv.o.Spool, MaxSize: n.limit, MaxHead: l.Head, MaxFields: l.Fields, BlankIsBody: true}
}

// bdat answers BDAT (RFC 3030 §2).
func (n *session) bdat(args []byte) {
	size, last, err := wire.ParseBDAT(string(args))
	if err != nil {
		n.hangUp("bad chunk", badChunk)
		return
	}
	switch n.state {
	case chunks:
		n.chunk = chunk{size, last, true}
	case rcpts:
		n.chunked(size, last)
	case sender:
		if n.skipChunk(size) {
			n.empty()
		}
	default:
		switch {
		case !n.skipChunk(size):
		case n.dropping:
			n.answer(noTransaction)
		default:
			n.bad(noTransaction)
		}
	}
}

// skipChunk passes over a chunk that nobody wants.
func (n *session) skipChunk(size int64) bool {
	if size > maxSkip {
		n.hangUp("too much after an error", reply.TooBig)
		return false
	}
	// All of it must come within the time of a command.
	n.until = time.Now().Add(n.srv.o.Timeouts.Command)
	if err := wire.NewChunkReader(n.in, size, true, true, nil).Skip(); err != nil {
		n.lost(err)
		return false
	}
	n.transcribe("C: ", []byte("("+strconv.FormatInt(size, 10)+" bytes, dropped)"))
	return true
}

// chunked reads a message whose first chunk is announced.
func (n *session) chunked(size int64, last bool) {
	n.grow()
	n.chunk = chunk{size: size, last: last}
	n.reading = true
	c := wire.NewChunkReader(n.in, size, last, n.repairs(), n.nextChunk)
	m, err := message.Read(c, n.readOptions())
	n.reading = false
	switch {
	case errors.Is(err, errAborted):
		n.abortChunks()
		return
	case err != nil && n.broken == nil:
		if n.chunk.size > maxSkip {
			n.hangUp("too much after an error", reply.Of(err))
		} else {
			n.reading = true
			c.Skip() //nolint:errcheck // then the connection is broken, which deliver asks
			n.reading = false
		}
		if !n.chunk.last && n.broken == nil && n.ended == "" {
			// LMTP answers each recipient only behind the last chunk (RFC 2033 §4.2).
			n.dropping = true
			n.tx.rec.answer, n.tx.rec.err = reply.Of(err), err
			n.answer(reply.Of(err))
			n.finish()
			return
		}
	}
	n.deliver(m, err)
}

// abortChunks ends a message that a command or the connection's end cut short.
func (n *session) abortChunks() {
	n.state = rcpts
	by := "client"
	if n.ended != "" {
		by = "connection"
	}
	n.abort(by)
}

// nextChunk answers a chunk that was not the last, and carries out what comes
// until the next one.
func (n *session) nextChunk() (int64, bool, error) {
	n.say("250 2.0.0 " + strconv.FormatInt(n.chunk.size, 10) + " octets received\r\n")
	n.reading, n.state, n.chunk = false, chunks, chunk{}
	for !n.chunk.given {
		// The large buffer stays: the next chunk is near.
		line, ok := n.readCommand(n.srv.o.Limits.Command)
		if ok {
			n.dispatch(line)
		}
		if n.ended != "" || len(n.pending) > 0 {
			return 0, false, errAborted
		}
	}
	n.reading = true
	return n.chunk.size, n.chunk.last, nil
}

// isBDAT reports whether a line that cannot be read may have been a BDAT.
func isBDAT(line []byte) bool {
	return len(line) >= 4 && bytes.EqualFold(line[:4], []byte("BDAT"))
}
