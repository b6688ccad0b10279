package handoff

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/ingress/handoff/wire"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
)

// Remote is what becomes of messages that a qmail-remote shim is to send.
// Its functions are called concurrently.
type Remote struct {
	// Indimail takes the arguments as indimail has them: after the sender stand
	// the value of QQEH and the size.
	Indimail bool
	// Prepare gives the message as Options.Next is to send it, with its body
	// retained. An error is the report, by its reply.
	Prepare func(context.Context, *Leaving) (message.Message, error)
	// Deliver sends the message and gives the whole report, as qmail-remote.c
	// writes it, of at most wire.MaxReport bytes.
	Deliver func(context.Context, *Leaving) ([]byte, error)
	// Observe hears of every call and its result: delivered, deferred or failed as
	// qmail-rspawn takes the report; handed_on to the next program, which reports;
	// or none, if nobody heard of it because the caller went away or we stopped. It
	// is called by many sessions at once and must be quick. It may be nil.
	Observe func(entrance, result string)
}

// The results of a call; see Remote.Observe.
const (
	resultDelivered = "delivered"
	resultDeferred  = "deferred"
	resultFailed    = "failed"
	resultHandedOn  = "handed_on"
	resultNone      = "none"
)

// Leaving is one call of a qmail-remote.
type Leaving struct {
	// Call names the call in the log, Content what was read: calls that were given
	// the same bytes have the same Content.
	Call, Content string
	// UID and PID are the caller's; Trusted is set if it is one of
	// Options.Trusted.
	UID, PID int
	Trusted  bool
	// Host is the first argument: the domain, or the host to send to.
	Host     string
	Envelope envelope.Envelope
	// Message is valid during the call.
	Message message.Message
	// Notes are for whoever is called to add to the call's log line.
	Notes []slog.Attr
}

// program is whose calls the server takes.
func (s *Server) program() wire.Program {
	if s.o.Remote != nil {
		return wire.ProgramRemote
	}
	return wire.ProgramQueue
}

// remoteSlack is how much longer than we ourselves a shim waits, so that it
// hears of a delivery that took too long.
const remoteSlack = 30 * time.Second

// stages of a qmail-remote's call, for the log.
const (
	stageDelivery = "delivery"
	stageOrder    = "order"
)

// What is answered to arguments that cannot be: improper is what qmail-remote.c
// says to too few; otherLayout is for those that the other sort of qmail-rspawn
// would give. That is a mistake of the configuration's, which must not bounce
// mail.
var (
	improper    = reply.Make(554, reply.Enhanced{Subject: 3, Detail: 5}, "I (qmail-remote) was invoked improperly.")
	otherLayout = reply.Make(451, reply.Enhanced{Subject: 3, Detail: 5}, "The arguments are laid out otherwise than Postern is configured for.")
)

// headTooBig: what is in a queue has been taken already, and goes out once the
// limit is raised, so it is not bounced for it.
var headTooBig = reply.Make(451, reply.Enhanced{Subject: 3, Detail: 4}, "The message's header is larger than the limit here.")

// serveRemote does the work of a qmail-remote, and reports.
func (n *session) serveRemote() {
	defer func() { <-n.srv.slots }()
	report, err := n.remote()
	n.rec.err = err
	switch {
	case n.asked: // the next program reports
	case n.ctx.Err() != nil:
		n.rec.err = context.Cause(n.ctx)
	case len(report) > 0:
		n.tell(report)
	default:
		answer := reply.Of(err)
		if err == nil || answer.Class == reply.Success {
			answer = reply.Trouble // neither sent nor refused
		}
		n.answer(answer)
	}
}

// remote takes a message in, and hands it on or has it delivered. Without a
// report the error is one, or the next program makes one.
func (n *session) remote() ([]byte, error) {
	o := &n.srv.o
	a := wire.Accepted{Beat: milliseconds(4 * o.Beat), Slow: milliseconds(o.Slow + remoteSlack)}
	if err := n.send(a.Append(nil)); err != nil {
		n.cancel(errGone)
		return nil, err
	}
	n.helpers.Add(2)
	go n.listen()
	go n.beat()

	l := &Leaving{Call: n.rec.id, UID: n.call.uid, PID: n.call.pid, Trusted: n.call.trusted}
	n.rec.leaving = l
	if err := l.arguments(n.call.args, o.Remote.Indimail); err != nil {
		if reply.Of(err) == otherLayout {
			n.srv.fail(n.rec.id, "a message is put off because its arguments are laid out otherwise than configured", err)
		}
		return nil, err
	}
	n.rec.stage = stageMessage
	if err := n.readLeaving(l, time.Now().Add(o.Limits.Total)); err != nil {
		return nil, err
	}
	defer l.Message.Body().Release() //nolint:errcheck // the spool sweeps what is left behind
	n.rec.size, n.rec.messageID = l.Message.Size(), l.Message.Head().Get("Message-ID")
	n.rec.received = o.Now().Sub(n.rec.start)
	if err := n.send(wire.Envelope{}.Append(nil)); err != nil {
		n.cancel(errGone)
		return nil, err
	}
	if hungUp(n.raw) {
		n.cancel(errGone)
		return nil, errGone
	}
	ctx, cancel := context.WithTimeoutCause(n.ctx, o.Slow, errSlow)
	defer cancel()
	n.rec.stage = stageDelivery
	if o.Next == "" {
		return o.Remote.Deliver(ctx, l)
	}
	m, err := o.Remote.Prepare(ctx, l)
	if err != nil {
		return nil, err
	}
	defer m.Body().Release() //nolint:errcheck // the spool sweeps what is left behind
	return nil, n.become(m)
}

// arguments takes what stands in argv.
func (l *Leaving) arguments(args []string, indimail bool) error {
	first, looksIndimail := 3, len(args) > 5 && isSize(args[4]) && !strings.Contains(args[3], "@")
	if indimail {
		first = 5
	}
	switch {
	case len(args) <= 3, indimail && len(args) == 5 && isSize(args[4]):
		return reply.With(improper, errors.New("too few arguments"))
	case indimail && (len(args) <= first || !isSize(args[4])):
		return reply.With(otherLayout, errors.New(`these are not indimail's arguments: write argv = "qmail" on the entrance`))
	case !indimail && looksIndimail:
		return reply.With(otherLayout, errors.New(`these are indimail's arguments: write argv = "indimail" on the entrance`))
	}
	l.Host = args[1]
	l.Envelope = envelope.To(args[2], args[first:]...)
	return nil
}

// isSize reports whether an argument is a number of bytes, as the recipients
// that qmail-rspawn gives never are.
func isSize(s string) bool { return s != "" && strings.Trim(s, "0123456789") == "" }

// readLeaving reads fd 0 to its end.
func (n *session) readLeaving(l *Leaving, until time.Time) error {
	in, err := openSource(n.ctx, n.takeFD(0), until)
	if err != nil {
		return err
	}
	defer in.Close()
	o, sum := &n.srv.o, sha256.New()
	l.Message, err = message.Read(io.TeeReader(in, sum), message.Options{
		Lines: *o.Lines, Spool: o.Spool, MaxSize: o.Limits.Size, MaxHead: o.Limits.Head, MaxFields: o.Limits.Fields,
	})
	if err != nil {
		skip(in)
		if reply.Of(err) == reply.HeadTooBig {
			n.srv.fail(n.rec.id, "a message is put off because its header is too large; raise limits.head or limits.fields", err)
			err = reply.With(headTooBig, err)
		}
		return err
	}
	l.Content = hex.EncodeToString(sum.Sum(nil)[:16])
	return nil
}

// become has the shim become the next program, with the message as its fd 0.
func (n *session) become(m message.Message) error {
	f, err := m.Descriptor(n.srv.o.Spool)
	if err != nil {
		n.srv.fail(n.rec.id, "a message is put off because it cannot go to the next program", err)
		return reply.With(reply.NoSpace, err)
	}
	defer f.Close()
	if hungUp(n.raw) {
		n.cancel(errGone)
		return errGone
	}
	n.rec.stage = stageOrder
	if err := n.orderRemote(f); err != nil {
		n.cancel(errGone)
		return err
	}
	n.rec.next = &nextRecord{mode: modeNames[wire.ModeExec]}
	// Where the shim becomes the program its socket closes; where it cannot, it
	// says so.
	select {
	case r, failed := <-n.results:
		if failed {
			n.rec.next.known, n.rec.next.exit = true, int(r.Exit)
			err := errors.New(n.srv.o.Next + " could not be run: it is not there, is not executable, or is our own shim")
			n.srv.fail(n.rec.id, "a message is put off because the next program does not run", err)
			return err
		}
	case <-n.ctx.Done():
	}
	return nil
}

// orderRemote sends N and P.
func (n *session) orderRemote(f *os.File) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.quiet = true
	if err := n.write(wire.Next{Mode: wire.ModeExec, Count: 1, Path: n.srv.o.Next}.Append(nil)); err != nil {
		return err
	}
	n.asked = true // the shim may answer before write returns
	err := n.write(wire.Pair{}.Append(nil), int(f.Fd()))
	if err != nil {
		n.asked = false
	}
	return err
}

// tell sends a whole report.
func (n *session) tell(report []byte) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.quiet = true
	n.rec.reported = report
	for rest := report; len(rest) > 0; {
		k := min(len(rest), wire.MaxChunk)
		if err := n.write(wire.Text{Chunk: rest[:k]}.Append(nil)); err != nil {
			n.rec.untold = true
			return
		}
		rest = rest[k:]
	}
	if err := n.write(wire.Exit{}.Append(nil)); err != nil {
		n.rec.untold = true
	}
}

// logRemote writes the line of one call of a qmail-remote.
func (n *session) logRemote() {
	o, r := &n.srv.o, &n.rec
	attrs := []slog.Attr{slog.String("id", r.id), slog.String("entrance", o.Entrance), slog.Int("uid", r.uid)}
	if l := r.leaving; l != nil {
		tx := pipeline.Transaction{Envelope: l.Envelope}
		attrs = append(attrs, slog.String("host", pipeline.LogText(l.Host, maxLogged)), slog.String("from", pipeline.LogText(l.Envelope.Sender, maxLogged)),
			slog.String("to", tx.LogRecipients()), slog.Int("recipients", len(l.Envelope.Recipients)))
		if l.Content != "" {
			attrs = append(attrs, slog.Int64("size", r.size), slog.String("message_id", pipeline.LogText(r.messageID, maxLogged)), slog.String("content", l.Content))
		}
		attrs = append(attrs, l.Notes...)
	}
	switch {
	case r.next != nil && r.next.known:
		attrs = append(attrs, slog.String("answer", "Z"), slog.Bool("next_failed", true))
	case r.next != nil:
		attrs = append(attrs, slog.String("next", o.Next))
	case r.reported != nil:
		attrs = append(attrs, slog.String("answer", summary(r.reported)))
	case r.reply != (reply.Reply{}):
		attrs = append(attrs, slog.String("answer", strings.TrimSuffix(r.reply.RemoteReport(), "\n")))
	default:
		attrs = append(attrs, slog.String("given_up", r.stage))
	}
	if r.untold {
		attrs = append(attrs, slog.Bool("caller_gone", true))
	}
	if r.err != nil {
		attrs = append(attrs, slog.String("error", pipeline.LogText(r.err.Error(), maxLoggedErr)))
	}
	attrs = append(attrs, slog.String("took", pipeline.LogSpan(o.Now().Sub(r.start))))
	o.Log.LogAttrs(context.WithoutCancel(n.ctx), slog.LevelInfo, "qmail-remote", attrs...)
	if o.Remote.Observe != nil {
		o.Remote.Observe(o.Entrance, r.result())
	}
}

// result is how a call ended.
func (r *record) result() string {
	switch {
	case r.next != nil && !r.next.known:
		return resultHandedOn
	case r.next != nil:
		return resultDeferred
	case r.untold:
		return resultNone
	case r.reported != nil:
		return resultOf(r.reported)
	case r.reply == (reply.Reply{}):
		return resultNone
	case r.reply.Class == reply.Permanent:
		return resultFailed
	}
	return resultDeferred
}

// resultOf reads a report as qmail-rspawn.c does: the first recipient's letter
// goes before the message's.
func resultOf(report []byte) string {
	byLetter := map[byte]string{'s': resultDeferred, 'h': resultFailed, 'K': resultDelivered, 'Z': resultDeferred}
	if report[0] == 'h' || report[0] == 's' {
		return byLetter[report[0]]
	}
	for part := range bytes.SplitSeq(report, []byte{0}) {
		if len(part) > 0 && strings.IndexByte("KZD", part[0]) >= 0 {
			if word, ok := byLetter[part[0]]; ok {
				return word
			}
			break
		}
	}
	return resultFailed
}

// summary is the end of a report, which is about the message.
func summary(report []byte) string {
	parts := strings.Split(strings.TrimSuffix(string(report), "\x00"), "\x00")
	return pipeline.LogText(strings.TrimSuffix(parts[len(parts)-1], "\n"), maxLogged)
}
