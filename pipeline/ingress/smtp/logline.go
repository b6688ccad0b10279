package smtp

import (
	"context"
	"log/slog"
	"time"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/reply"
)

// record is what the log line of a session is made of.
type record struct {
	start           time.Time
	in              int64       // bytes that came
	last            reply.Reply // the last that was no fixed line
	refusedGreeting bool
	filter, reason  string // who refused before MAIL
	err             error
	loginErr        error
	loginUser       string
	messages, taken int
	refused         int // recipients
}

// txRecord is what the log line of a transaction is made of.
type txRecord struct {
	asked          int // recipients, taken or not
	refused        []string
	refusals       int
	filter, reason string
	messageID      string
	size           int64
	received       time.Duration // until the message's end
	trace          pipeline.Trace
	answer         reply.Reply
	stored         int
	aborted        string // by whom, "" if it was answered
	err            error
}

// Bounds of what a log line holds.
const (
	maxLogged     = 200 // bytes of a text
	maxLoggedErr  = 500
	maxRecipients = 10
)

// blame notes which filter refused.
func (r *txRecord) blame(f pipeline.Fate) { r.filter, r.reason = f.Filter, f.Reason }

// refuse notes a recipient that was refused.
func (r *txRecord) refuse(address string, no reply.Reply, err error) {
	if r.refusals++; r.refusals > maxRecipients {
		return
	}
	said := pipeline.LogText(address, maxLogged) + ": " + no.SMTP()
	if err != nil && err.Error() != no.Words() {
		said += " (" + err.Error() + ")"
	}
	r.refused = append(r.refused, pipeline.LogText(said, 2*maxLogged))
}

// log writes the session's line.
func (n *session) log() {
	r, o := &n.rec, &n.srv.o
	if !o.Log.Enabled(context.Background(), slog.LevelInfo) {
		return
	}
	attrs := append(make([]slog.Attr, 0, 24), slog.String("session", n.id), slog.String("entrance", o.Entrance))
	attrs = append(attrs, n.who()...)
	attrs = append(attrs, slog.Int("transactions", n.count), slog.Int("messages", r.messages), slog.Int("taken", r.taken))
	attrs = positive(attrs, "refused_recipients", r.refused)
	attrs = positive(attrs, "bad_commands", n.badCommands)
	attrs = positive(attrs, "failed_logins", n.logins)
	if r.loginErr != nil {
		attrs = append(attrs, slog.String("failed_user", pipeline.LogText(r.loginUser, maxLogged)), slog.String("login_error", pipeline.LogText(r.loginErr.Error(), maxLoggedErr)))
	}
	ended := n.ended
	if r.refusedGreeting {
		ended = "refused"
	}
	attrs = append(attrs, slog.String("ended", ended))
	if n.errors > 0 || n.linger || r.refusedGreeting {
		attrs = append(attrs, slog.String("answer", r.last.SMTP()))
	}
	attrs = text(attrs, "filter", r.filter)
	attrs = text(attrs, "reason", r.reason)
	if r.err != nil {
		attrs = append(attrs, slog.String("error", pipeline.LogText(r.err.Error(), maxLoggedErr)))
	}
	attrs = append(attrs, slog.Int64("bytes", r.in), slog.String("took", pipeline.LogSpan(o.Now().Sub(r.start))))
	o.Log.LogAttrs(context.Background(), slog.LevelInfo, "session", attrs...)
}

// logTransaction writes the transaction's line, unless nobody was named in it
// and nothing refused, and tells Observe.
func (n *session) logTransaction() {
	t, o := n.tx, &n.srv.o
	r := &t.rec
	answered := r.aborted == "" && r.answer != (reply.Reply{})
	if answered && o.Observe != nil {
		o.Observe(o.Entrance, r.answer, r.trace)
	}
	if !answered && r.asked == 0 || !o.Log.Enabled(context.Background(), slog.LevelInfo) {
		return
	}
	if r.trace == nil && n.judge != nil {
		r.trace = n.judge.Trace() // it came to no message that could be judged
	}
	attrs := append(make([]slog.Attr, 0, 28), slog.String("id", t.ID), slog.String("entrance", o.Entrance),
		slog.String("message_id", pipeline.LogText(r.messageID, maxLogged)),
		slog.String("from", pipeline.LogText(t.Envelope.Sender, maxLogged)),
		slog.String("to", t.LogRecipients()),
		slog.Int("recipients", len(t.Envelope.Recipients)))
	if r.refusals > 0 {
		attrs = append(attrs, slog.Int("refused_recipients", r.refusals), slog.Any("refused", pipeline.LogList(r.refused)))
	}
	attrs = append(attrs, n.who()...)
	attrs = append(attrs, slog.String("chain", t.Chain), slog.Int64("size", r.size), slog.Any("filters", r.trace.LogList()))
	attrs = r.trace.LogShadow(attrs)
	if answered {
		attrs = append(attrs, slog.String("answer", r.answer.SMTP()))
	}
	if r.stored > 1 {
		attrs = append(attrs, slog.Int("stored", r.stored))
	}
	attrs = text(attrs, "given_up", r.aborted)
	attrs = text(attrs, "filter", r.filter)
	attrs = text(attrs, "reason", r.reason)
	if r.err != nil {
		attrs = append(attrs, slog.String("error", pipeline.LogText(r.err.Error(), maxLoggedErr)))
	}
	if r.received > 0 {
		attrs = append(attrs, slog.String("received", pipeline.LogSpan(r.received)))
	}
	attrs = append(attrs, slog.String("took", pipeline.LogSpan(o.Now().Sub(t.start))))
	o.Log.LogAttrs(context.Background(), slog.LevelInfo, "message", attrs...)
}

func positive(attrs []slog.Attr, key string, n int) []slog.Attr {
	if n > 0 {
		attrs = append(attrs, slog.Int(key, n))
	}
	return attrs
}

func text(attrs []slog.Attr, key, value string) []slog.Attr {
	if value != "" {
		attrs = append(attrs, slog.String(key, pipeline.LogText(value, maxLoggedErr)))
	}
	return attrs
}

// who is the client, as far as it is known.
func (n *session) who() []slog.Attr {
	var attrs []slog.Attr
	s := n.facts
	if n.peer.IsValid() {
		attrs = append(attrs, slog.String("peer", n.peer.Addr().String()))
	}
	if s == nil {
		return attrs
	}
	attrs = append(attrs, slog.String("standing", s.Standing.String()))
	attrs = text(attrs, "peer_name", s.PeerName)
	if s.PeerName == "" {
		attrs = text(attrs, "peer_claim", s.PeerClaim)
	}
	attrs = text(attrs, "helo", s.Helo)
	attrs = text(attrs, "user", s.User)
	return text(attrs, "tls", s.TLS)
}
