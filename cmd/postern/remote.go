package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/user"
	"strconv"
	"strings"
	"time"

	"github.com/postern-mta/postern/cmd/postern/config"
	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/ingress/handoff"
	"github.com/postern-mta/postern/pipeline/ingress/handoff/wire"
	origins "github.com/postern-mta/postern/pipeline/ingress/mark"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
	"github.com/postern-mta/postern/queue/egress/smtp"
	"github.com/postern-mta/postern/rules"
)

// equipRemote makes a server for the qmail-remote shim.
func (d *daemon) equipRemote(c *config.Config, l *config.Listen, listener socket, ch *change) error {
	unix, ok := listener.(*net.UnixListener)
	if !ok {
		return errors.New("not a Unix socket")
	}
	marker, err := d.marker(c)
	if err != nil {
		return err
	}
	carry := func(m message.Message, form message.Form) (message.Message, error) {
		return carried(d.current.Load(), m, form, d.spool)
	}
	out := &remoteWay{
		leave: departure{chains: &d.chains, log: d.log, carry: carry}, marks: marker, ours: l.OursRule(), entrance: l.Name, most: min(c.Limits.Recipients, wire.MaxReport/4),
	}
	o := handoff.Options{
		Log: d.log, Listener: unix, Trusted: append(remoteCallers(), ch.to.trusted...), Entrance: l.Name, Lines: &l.Lines, Slow: l.Slow,
		// No bound but for the head, with room for what was put on top since: what is
		// in a queue has been taken already.
		Limits:      handoff.Limits{Head: int(c.Limits.Head) + roomOnTop, Fields: c.Limits.Fields + fieldsOnTop},
		MaxSessions: max(c.Limits.Sessions, remoteSessions), Spool: d.spool,
		Remote: &handoff.Remote{Indimail: l.Indimail(), Observe: d.meter.ObserveRemote},
	}
	if l.Next == config.NextDeliver {
		out.out = d.outward
		o.Remote.Deliver = out.deliver
	} else {
		o.Next, o.Remote.Prepare = l.Next, out.prepare
	}
	s, err := handoff.New(o)
	if err != nil {
		return err
	}
	ch.server = s
	return nil
}

// What a message of the longest head may gain on its way through a queue: the
// mark, and what a hundred hops add, in bytes and fields.
const (
	roomOnTop   = 64 << 10
	fieldsOnTop = 1000
)

// remoteSessions is the least bound of calls of qmail-remote at a time: as many
// as qmail-rspawn makes of them with the largest concurrencyremote that patches
// allow (conf-spawn).
const remoteSessions = 1000

// remoteCallers are the uids as which qmail runs its qmail-remote, and root.
func remoteCallers() []uint32 {
	all := []uint32{0}
	for _, name := range [...]string{"qmailr", "qmails"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		if n, err := strconv.ParseUint(u.Uid, 10, 32); err == nil {
			all = append(all, uint32(n))
		}
	}
	return all
}

// marker makes and knows the marks of this installation.
func (d *daemon) marker(c *config.Config) (*origins.Marker, error) {
	// A message is tried once more after its lifetime, so a day is added.
	return origins.New(derive(d.state.secret)("origin marks"), origins.Options{Life: c.Queue.Lifetime + 24*time.Hour})
}

// programRemote is the protocol of what a qmail-remote is called for.
const programRemote = "qmail-remote"

// remoteWay is the way out of what a qmail-remote is to send.
type remoteWay struct {
	leave    departure // with nobody to hold anything
	marks    *origins.Marker
	ours     *rules.Rule // nil for none
	entrance string
	out      *outward // nil where another program delivers
	most     int      // recipients of one delivery
}

// prepare is handoff.Remote.Prepare.
func (w *remoteWay) prepare(ctx context.Context, l *handoff.Leaving) (message.Message, error) {
	m, origin, err := w.origin(l)
	if err != nil {
		return message.Message{}, err
	}
	// What the next program's server can carry is not known; it sends what it is
	// given.
	return w.leave.run(ctx, w.leaving(l, m, origin), l.Host, message.UTF8)
}

// leaving is the message as the chain sees it. Calls for other recipients of the
// same message have the same name, so that it is signed once.
func (w *remoteWay) leaving(l *handoff.Leaving, m message.Message, origin pipeline.Origin) leaving {
	return leaving{id: l.Content, call: l.Call, envelope: l.Envelope, message: m, origin: func() pipeline.Origin { return origin }}
}

// deliver is handoff.Remote.Deliver.
func (w *remoteWay) deliver(ctx context.Context, l *handoff.Leaving) ([]byte, error) {
	if !l.Trusted && l.UID != os.Geteuid() {
		err := fmt.Errorf("uid %d is neither root, qmailr, qmails nor in trusted: if qmail runs as that user, add it to trusted", l.UID)
		w.leave.log.Error("a call of qmail-remote is put off: we connect to other servers for qmail alone", "id", l.Call, "entrance", w.entrance, "error", err)
		return nil, reply.With(reply.Make(451, reply.Enhanced{Subject: 7, Detail: 1}, "you may not send by this program"), err)
	}
	if n := len(l.Envelope.Recipients); n > w.most {
		return nil, reply.With(reply.Make(451, reply.Enhanced{Subject: 5, Detail: 3}, "too many recipients for one delivery"), fmt.Errorf("%d recipients, at most %d (limits.recipients)", n, w.most))
	}
	m, origin, err := w.origin(l)
	if err != nil {
		return nil, err
	}
	out := w.leaving(l, m, origin)
	prepare, release := preparing(l.Host, func(ctx context.Context, host string, form message.Form) (message.Message, error) {
		return w.leave.run(ctx, out, host, form)
	})
	defer release()
	job := &smtp.Job{Domain: l.Host, Envelope: l.Envelope, Content: m, Prepare: prepare}
	results := w.out.deliver(ctx, job, w.pool(l, m, origin), w.out.config.Load().Outbound.Wait)
	counts := map[reply.Class]int{}
	for _, r := range results {
		counts[r.Reply.Class]++
	}
	if len(results) > 0 {
		l.Notes = append(l.Notes, slog.String("where", results[0].Where), slog.String("phase", results[0].Phase.String()), slog.String("tls", results[0].TLS.String()))
	}
	l.Notes = append(l.Notes, slog.Int("delivered", counts[reply.Success]), slog.Int("deferred", counts[reply.Temporary]), slog.Int("failed", counts[reply.Permanent]))
	return remoteReport(results), nil
}

// origin says whose a message is, and gives it without its mark.
//
//	who calls                       mark           what qmail-queue wrote   origin
//	neither root, qmail, trusted    -              -                        a stranger's
//	one of them                     one that       -                        the mark's
//	                                counts
//	one of them                     none           "invoked for bounce",    local: our own bounce
//	                                               and nobody is sender
//	one of them                     none           anything                 local where the rule "ours" matches,
//	                                                                        else a stranger's
//
// The lines of Received are those on top: qmail-queue puts its own there, so
// whoever wrote what is below has not made it.
func (w *remoteWay) origin(l *handoff.Leaving) (message.Message, pipeline.Origin, error) {
	m, marked, why, err := w.marks.Take(l.Message)
	if err != nil {
		return m, pipeline.Origin{}, reply.With(reply.ReadError, err)
	}
	o := pipeline.Origin{
		Transaction: l.Call, Entrance: w.entrance, Protocol: programRemote, Standing: pipeline.Stranger.String(), UID: -1, Received: time.Now(),
	}
	how := "unknown"
	switch queued := queuedBy(l.Message.Head()); {
	case !l.Trusted:
		how = "caller not trusted"
	case marked != nil:
		o, how = *marked, "mark"
	case why != nil:
		how = "mark does not count: " + why.Error()
	case queued.bounce && isNobody(l.Envelope.Sender):
		o.Standing, how = pipeline.Local.String(), "bounce"
	case w.ours != nil:
		ours, err := w.isOurs(l, m, queued.uid)
		if err != nil {
			return m, o, reply.With(reply.BadConfig, fmt.Errorf("listen.%s.ours: %w", w.entrance, err))
		}
		if ours {
			o.Standing, o.UID, how = pipeline.Local.String(), queued.uid, "rule"
		}
	}
	l.Notes = append(l.Notes, slog.String("standing", o.Standing), slog.String("by", how))
	if o.User != "" {
		l.Notes = append(l.Notes, slog.String("user", pipeline.LogText(o.User, 200)))
	}
	return m, o, nil
}

// isOurs asks the rule.
func (w *remoteWay) isOurs(l *handoff.Leaving, m message.Message, uid int) (bool, error) {
	return w.ours.Match(w.facts(l, m, uid))
}

// pool is the lane of a message. Where it was accepted by others than us the rules of
// pools are asked now.
func (w *remoteWay) pool(l *handoff.Leaving, m message.Message, o pipeline.Origin) string {
	chosen := o.Pool
	if chosen == "" && o.Protocol == programRemote {
		var err error
		if chosen, err = w.out.config.Load().PoolByRule(w.facts(l, m, o.UID)); err != nil {
			w.leave.log.Warn("a rule of a pool has no answer for a message, which is as if it did not match", "id", l.Call, "error", err)
		}
	}
	return w.out.limits.pool(l.Envelope.Sender, chosen)
}

// facts are what rules are told of a call.
func (w *remoteWay) facts(l *handoff.Leaving, m message.Message, uid int) rules.Facts {
	s := &pipeline.Session{ID: l.Call, Entrance: w.entrance, Protocol: programRemote, Start: time.Now(), Standing: pipeline.Stranger, UID: uid}
	tx := &pipeline.Transaction{ID: l.Call, Session: s, Envelope: l.Envelope}
	for i := range l.Envelope.Recipients {
		tx.Active = append(tx.Active, i)
	}
	return pipeline.FactsAt(tx, m)
}

// isNobody reports whether a sender is that of a bounce, or of a double bounce.
func isNobody(sender string) bool { return sender == "" || sender == envelope.DoubleBounce }

// injector is what a qmail-queue wrote of who called it.
type injector struct {
	bounce bool
	uid    int // -1 if it is not told
}

// queuedBy reads the line that qmail-queue puts on top (qmail-queue.c:
// receivedfmt): "(qmail 123 invoked for bounce); 5 Mar 2026 ...". Forks have
// another word in place of qmail.
func queuedBy(h message.Head) injector {
	q := injector{uid: -1}
	if h.Len() == 0 || !h.Field(0).Is("Received") {
		return q
	}
	value, ok := strings.CutPrefix(h.Field(0).Value(), "(")
	inner, _, closed := strings.Cut(value, ");")
	words := strings.Fields(inner)
	if !ok || !closed || len(words) < 5 || words[2] != "invoked" {
		return q
	}
	if _, err := strconv.ParseUint(words[1], 10, 32); err != nil {
		return q
	}
	switch rest := words[3:]; {
	case len(rest) == 2 && rest[0] == "for" && rest[1] == "bounce":
		q.bounce = true
	case len(rest) == 3 && rest[0] == "by" && rest[1] == "uid":
		if n, err := strconv.ParseUint(rest[2], 10, 31); err == nil {
			q.uid = int(n)
		}
	case len(rest) == 2 && rest[0] == "by" && rest[1] == "alias":
		q.uid = invokers().Alias
	}
	return q
}
