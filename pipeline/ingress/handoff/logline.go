package handoff

import (
	"context"
	"log/slog"
	"slices"
	"time"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/reply"
)

// How far a message came, as the log says it of one that was given up.
const (
	stageHello    = "hello"
	stageMessage  = "reading message"
	stageEnvelope = "reading envelope"
	stageChain    = "chain"
	stageCommit   = "commit"
	stageNext     = "next"
)

// record is what the log line of a message is made of.
type record struct {
	id        string
	start     time.Time
	received  time.Duration // until the envelope's end
	peer      peer
	uid       int
	session   *pipeline.Session     // nil before the hello was read
	tx        *pipeline.Transaction // likewise
	messageID string
	size      int64
	trace     pipeline.Trace
	stage     string
	reply     reply.Reply
	exit      int
	taken     bool // the sink has it
	stored    int  // how many messages the sink has
	untold    bool // the shim did not hear the answer
	next      *nextRecord
	leaving   *Leaving // of a qmail-remote's call
	reported  []byte   // what it was told to report
	err       error
}

// nextRecord is how the next program ended.
type nextRecord struct {
	mode   string
	known  bool
	exit   int // -1 for a signal
	signal int
	pid    int
	copies int // further messages
	kept   int // of those, how many did not get through yet
	took   time.Duration
}

// Bounds of what a log line holds.
const (
	maxLogged    = 200 // bytes of a text
	maxLoggedErr = 500
)

// log writes the session's line.
func (n *session) log() {
	if n.srv.o.Remote != nil {
		n.logRemote()
		return
	}
	r, o := &n.rec, &n.srv.o
	attrs := []slog.Attr{slog.String("id", r.id)}
	if r.tx != nil {
		attrs = append(attrs,
			slog.String("message_id", pipeline.LogText(r.messageID, maxLogged)),
			slog.String("from", pipeline.LogText(r.tx.Envelope.Sender, maxLogged)),
			slog.String("to", r.tx.LogRecipients()),
			slog.Int("recipients", len(r.tx.Envelope.Recipients)))
	}
	attrs = append(attrs, r.who()...)
	attrs = append(attrs, slog.Int("qp", r.peer.pid))
	if r.tx != nil {
		attrs = append(attrs, slog.String("chain", r.tx.Chain), slog.Int64("size", r.size), slog.Any("filters", r.trace.LogList()))
		attrs = r.trace.LogShadow(attrs)
	}
	answered := r.reply != (reply.Reply{})
	if answered {
		attrs = append(attrs, slog.String("answer", r.reply.SMTP()), slog.Int("exit", r.exit))
	}
	if r.stored > 1 {
		attrs = append(attrs, slog.Int("stored", r.stored))
	}
	attrs = append(attrs, r.next.attrs()...)
	if !answered && r.next == nil {
		attrs = append(attrs, slog.String("given_up", r.stage))
	}
	if answered && r.untold {
		attrs = append(attrs, slog.Bool("caller_gone", true))
	}
	if r.err != nil {
		attrs = append(attrs, slog.String("error", pipeline.LogText(r.err.Error(), maxLoggedErr)))
	}
	if r.received > 0 {
		attrs = append(attrs, slog.String("received", pipeline.LogSpan(r.received)))
	}
	attrs = append(attrs, slog.String("took", pipeline.LogSpan(o.Now().Sub(r.start))))
	o.Log.LogAttrs(context.WithoutCancel(n.ctx), slog.LevelInfo, "message", attrs...)
	if o.Observe != nil && r.tx != nil {
		o.Observe(o.Entrance, r.answered(), r.trace)
	}
}

// answered is what the caller heard: our answer, or what the next program's
// exit means.
func (r *record) answered() reply.Reply {
	if r.reply == (reply.Reply{}) && r.next != nil && r.next.known {
		return reply.FromExit(r.next.exit, "")
	}
	return r.reply
}

// who is the client, as far as it is known.
func (r *record) who() []slog.Attr {
	s := r.session
	if s == nil {
		return []slog.Attr{slog.Int("uid", r.peer.uid)}
	}
	attrs := []slog.Attr{slog.String("standing", s.Standing.String())}
	if s.Peer.IsValid() {
		attrs = append(attrs, slog.String("peer", s.Peer.Addr().String()))
	}
	if s.PeerName != "" {
		attrs = append(attrs, slog.String("peer_name", s.PeerName))
	}
	if s.Helo != "" {
		attrs = append(attrs, slog.String("helo", s.Helo))
	}
	if s.User != "" {
		attrs = append(attrs, slog.String("user", s.User))
	}
	return append(attrs, slog.Int("uid", r.uid))
}

// attrs say how the next program ended; none for a nil record.
func (r *nextRecord) attrs() []slog.Attr {
	if r == nil {
		return nil
	}
	all := []any{slog.String("mode", r.mode)}
	switch {
	case !r.known:
		all = append(all, slog.String("exit", "unknown"))
	case r.exit < 0:
		all = append(all, slog.Int("signal", r.signal))
	default:
		all = append(all, slog.Int("exit", r.exit))
	}
	if r.known {
		all = append(all, slog.String("answer", r.answer()))
	}
	if r.pid > 0 {
		all = append(all, slog.Int("pid", r.pid))
	}
	if r.copies > 0 {
		all = append(all, slog.Int("copies", r.copies), slog.Int("kept", r.kept))
	}
	return []slog.Attr{slog.Group("next", append(all, slog.String("took", pipeline.LogSpan(r.took)))...)}
}

// answer is what a caller makes of the exit code. With a code that stands for a
// text the answer is the text, which goes from the program to the caller past
// us.
func (r *nextRecord) answer() string {
	if slices.Contains(reply.CustomExits[:], r.exit) {
		return "in its own words"
	}
	return reply.FromExit(r.exit, "").SMTP()
}
