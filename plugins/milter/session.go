package milter

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"time"

	gomilter "github.com/emersion/go-milter"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/reply"
	"github.com/postern-mta/postern/pipeline/servers"
)

// instance is a milter at work on one of our sessions, on a connection of its
// own. What it was told is told again where the connection is lost.
type instance struct {
	f    *Filter
	s    *pipeline.Session
	talk *talk
	// over is the end of the session's judging, nil while it goes on.
	over *ending
	mail *mail
}

// mail is a transaction as the milter is told of it.
type mail struct {
	tx   *pipeline.Transaction
	over *ending
	// rcpts are the recipients in the order in which it is told them, by address
	// as well.
	rcpts []*recipient
	known map[string]*recipient
}

// recipient is one of them, and why the milter will not have it.
type recipient struct {
	envelope.Recipient
	refused *ending
}

// ending is what a milter has decided.
type ending struct {
	action pipeline.Action // Continue: it has nothing more to say
	reply  reply.Reply
	reason string
	hangUp bool
}

func (e *ending) verdict(stage pipeline.Stage) pipeline.Verdict {
	if !pipeline.Legal(stage, e.action) { // there is nothing yet to discard
		return pipeline.Verdict{Reason: e.reason}
	}
	v := pipeline.Verdict{Action: e.action, Reply: e.reply, Reason: e.reason}
	if e.hangUp && stage != pipeline.AtDelivery {
		v.HangUp = pipeline.HangUpAfter
	}
	return v
}

// endings is the table from an answer to what it means for us.
var endings = map[gomilter.ActionCode]ending{
	gomilter.ActAccept:    {action: pipeline.Continue, reason: "accepted"},
	gomilter.ActDiscard:   {action: pipeline.Discard, reason: "discarded"},
	gomilter.ActReject:    {action: pipeline.Reject, reason: "refused"},
	gomilter.ActTempFail:  {action: pipeline.Defer, reason: "put off"},
	answerShutdown:        {action: pipeline.Defer, reply: closing, reason: "put off, and the connection closed", hangUp: true},
	answerConnFail:        {action: pipeline.Defer, reply: closing, reason: "put off, and the connection closed", hangUp: true},
	gomilter.ActReplyCode: {},
}

// endingOf is what an answer decides at a command.
func endingOf(a answer, at string) *ending {
	e := endings[a.code]
	if a.code == gomilter.ActReplyCode {
		e = ending{action: pipeline.Reject, reply: a.reply, reason: "refused", hangUp: a.reply.Code == hangUpCode}
		if a.reply.Class == reply.Temporary {
			e.action, e.reason = pipeline.Defer, "put off"
		}
		e.reason += ": " + a.reply.SMTP()
	}
	e.reason = "at " + at + ": " + e.reason
	return &e
}

// closing is what the peer hears where a milter has the connection closed without
// words of its own.
var closing = reply.Reply{Class: reply.Temporary, Code: hangUpCode, Enhanced: reply.Enhanced{Subject: 7, Detail: 0}, Text: "service not available, closing the connection"}

// hangUpCode is the reply by which a milter has the connection closed
// (smfi_setreply).
const hangUpCode = 421

// Connect tells of the connection.
func (i *instance) Connect(ctx context.Context, s *pipeline.Session) (pipeline.Verdict, error) {
	i.s = s
	return i.early(ctx, pipeline.AtConnect)
}

// Helo tells the client's name, again if it gives one again.
func (i *instance) Helo(ctx context.Context, s *pipeline.Session) (pipeline.Verdict, error) {
	i.s, i.mail = s, nil
	if t := i.talk; t != nil {
		t.greeted = false
		if err := t.abort(); err != nil {
			i.lose()
		}
	}
	return i.early(ctx, pipeline.AtHelo)
}

// Sender begins a transaction.
func (i *instance) Sender(ctx context.Context, tx *pipeline.Transaction) (pipeline.Verdict, error) {
	i.begin(tx)
	return i.early(ctx, pipeline.AtSender)
}

// Recipient tells a recipient.
func (i *instance) Recipient(ctx context.Context, tx *pipeline.Transaction, r envelope.Recipient) (pipeline.Verdict, error) {
	if i.mail == nil {
		i.begin(tx)
	}
	i.s = tx.Session
	one := i.mail.add(r)
	v, err := i.early(ctx, pipeline.AtRecipient)
	if err == nil && i.over == nil && i.mail.over == nil && one.refused != nil {
		return one.refused.verdict(pipeline.AtRecipient), nil
	}
	return v, err
}

// early takes the conversation up to a stage before the message.
func (i *instance) early(ctx context.Context, stage pipeline.Stage) (pipeline.Verdict, error) {
	if i.ended() == nil {
		if err := i.run(ctx, func(t *talk) error { return i.upTo(t, stage) }); err != nil {
			return pipeline.Verdict{}, err
		}
	}
	if e := i.ended(); e != nil {
		return e.verdict(stage), nil
	}
	return pipeline.Verdict{}, nil
}

// ended is what was decided for the session or the transaction.
func (i *instance) ended() *ending {
	if i.over == nil && i.mail != nil {
		return i.mail.over
	}
	return i.over
}

// begin begins a transaction; one that was open is aborted.
func (i *instance) begin(tx *pipeline.Transaction) {
	i.Reset()
	i.s = tx.Session
	i.mail = &mail{tx: tx, known: map[string]*recipient{}}
}

// add is the recipient of that address; one that is new is to be told.
func (m *mail) add(r envelope.Recipient) *recipient {
	one := m.known[r.Address]
	if one == nil {
		one = &recipient{Recipient: r}
		m.known[r.Address] = one
		m.rcpts = append(m.rcpts, one)
	}
	return one
}

// Reset aborts a transaction.
func (i *instance) Reset() {
	i.mail = nil
	if t := i.talk; t != nil && t.open && t.parting(t.abort) != nil {
		i.lose()
	}
}

// Close ends the session.
func (i *instance) Close() error {
	if i.talk != nil {
		i.f.pool.put(i.talk.server, i.talk)
		i.talk = nil
	}
	return nil
}

// lose gives up a connection that is of no use any more.
func (i *instance) lose() {
	if i.talk != nil {
		i.talk.conn.Close()
		i.talk = nil
	}
}

// run does a part of the conversation on the connection there is, else, and if
// that fails, on a new one, where what came before is said again: with another
// milter of the list, if need be.
func (i *instance) run(ctx context.Context, part func(*talk) error) error {
	var first error
	if i.talk != nil {
		share, cancel := i.share(ctx)
		first = i.try(share, part)
		cancel()
		if first == nil || servers.IsOurs(first) || ctx.Err() != nil {
			return first
		}
	}
	err := i.f.set.Do(ctx, func(ctx context.Context, s *servers.Server) error {
		if i.talk = i.f.pool.take(s.Name); i.talk != nil {
			old := i.talk
			share, cancel := half(ctx)
			err := i.try(share, part)
			cancel()
			if err == nil || servers.IsOurs(err) || !old.reused {
				return err
			}
			i.f.pool.dead(s.Name) // it did not outlive its rest
		}
		var err error
		if i.talk, err = dial(ctx, s); err != nil {
			return err
		}
		return i.try(ctx, part)
	})
	if err != nil && first != nil {
		return fmt.Errorf("%w; before: %w", err, first)
	}
	return err
}

// margin is how much before a deadline a part ends by itself, at most, to be
// able to say why.
const margin = time.Second

// share bounds a part on a connection that there is: with other milters to ask,
// by half the time.
func (i *instance) share(ctx context.Context) (context.Context, context.CancelFunc) {
	if len(i.f.o.Address) > 1 {
		return half(ctx)
	}
	return sooner(ctx, func(left time.Duration) time.Duration { return left - min(margin, left/10) })
}

func half(ctx context.Context) (context.Context, context.CancelFunc) {
	return sooner(ctx, func(left time.Duration) time.Duration { return left / 2 })
}

func sooner(ctx context.Context, of func(time.Duration) time.Duration) (context.Context, context.CancelFunc) {
	at, ok := ctx.Deadline()
	if !ok {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, of(time.Until(at)))
}

// try does a part on the connection there is, which is lost if that fails.
func (i *instance) try(ctx context.Context, part func(*talk) error) error {
	t := i.talk
	err := t.within(ctx, func() error { return part(t) })
	if err != nil {
		i.lose()
	}
	return err
}

// upTo tells what the milter has not been told yet, up to a stage.
func (i *instance) upTo(t *talk, stage pipeline.Stage) error {
	m := &subject{f: i.f, s: i.s}
	if !t.connected {
		a, err := t.ask(&cmdConnect, m.macros(t, gomilter.StageConnect), connectData(i.s))
		if err != nil {
			return err
		}
		if t.connected = true; !a.goesOn() {
			i.over = endingOf(a, cmdConnect.name)
		}
	}
	if name := helo(i.s); i.over == nil && stage >= pipeline.AtHelo && !t.greeted && name != "" {
		a, err := t.ask(&cmdHelo, m.macros(t, gomilter.StageHelo), cString(name))
		if err != nil {
			return err
		}
		if t.greeted = true; !a.goesOn() {
			i.over = endingOf(a, cmdHelo.name)
		}
	}
	if i.over != nil || stage < pipeline.AtSender {
		return nil
	}
	return i.envelope(t, m)
}

// envelope tells the sender and the recipients so far.
func (i *instance) envelope(t *talk, m *subject) error {
	m.tx = i.mail.tx
	if !t.mailed {
		t.told, t.open = 0, true
		a, err := t.ask(&cmdMail, m.macros(t, gomilter.StageMailFrom), path(m.tx.Envelope.Sender), mailParameters(m.tx.Envelope))
		if err != nil {
			return err
		}
		if t.mailed = true; !a.goesOn() {
			i.mail.over = endingOf(a, cmdMail.name)
		}
	}
	for i.mail.over == nil && t.told < len(i.mail.rcpts) {
		r := i.mail.rcpts[t.told]
		if r.refused != nil { // by one whose place this one takes
			t.told++
			continue
		}
		m.rcpt = r.Address
		a, err := t.ask(&cmdRcpt, m.macros(t, gomilter.StageRcptTo), path(r.Address), rcptParameters(r.DSN))
		if err != nil {
			return err
		}
		t.told++
		switch e := endingOf(a, cmdRcpt.name); {
		case a.goesOn():
		case e.action == pipeline.Reject || e.action == pipeline.Defer:
			r.refused = e // it alone
		default:
			i.mail.over = e
		}
	}
	return nil
}

// connectData is the data of SMFIC_CONNECT. Milters take a client without an
// address for a local one, and opendkim signs what it sends; a stranger whose
// address is not known must not pass for that.
func connectData(s *pipeline.Session) []byte {
	b := cString(clientName(s))
	addr, ok := peer(s)
	switch {
	case !ok && s.Standing == pipeline.Stranger:
		addr = netip.IPv4Unspecified()
		b = append(b, byte(gomilter.FamilyInet))
	case !ok:
		return append(b, byte(gomilter.FamilyUnknown))
	case addr.Is4():
		b = append(b, byte(gomilter.FamilyInet))
	default:
		b = append(b, byte(gomilter.FamilyInet6))
	}
	b = binary.BigEndian.AppendUint16(b, s.Peer.Port())
	return append(b, cString(addr.String())...)
}

func cString(s string) []byte { return append([]byte(clean(s)), 0) }

// path is an address as in the envelope.
func path(address string) []byte { return cString("<" + address + ">") }

// mailParameters are the parameters of MAIL, each with its NUL.
func mailParameters(e envelope.Envelope) (b []byte) {
	if e.UTF8 {
		b = append(b, cString("SMTPUTF8")...)
	}
	if e.RequireTLS {
		b = append(b, cString("REQUIRETLS")...)
	}
	if e.Ret != "" {
		b = append(b, cString("RET="+e.Ret)...)
	}
	if e.EnvID != "" {
		b = append(b, cString("ENVID="+e.EnvID)...)
	}
	return b
}

// rcptParameters are the parameters of RCPT.
func rcptParameters(d *envelope.DSN) (b []byte) {
	if d == nil {
		return nil
	}
	words := ""
	for _, n := range [...]struct {
		bit  envelope.Notify
		word string
	}{{envelope.NotifyNever, "NEVER"}, {envelope.NotifySuccess, "SUCCESS"}, {envelope.NotifyFailure, "FAILURE"}, {envelope.NotifyDelay, "DELAY"}} {
		if d.Notify&n.bit != 0 {
			words += "," + n.word
		}
	}
	if words != "" {
		b = append(b, cString("NOTIFY="+words[1:])...)
	}
	if d.ORcpt != "" {
		b = append(b, cString("ORCPT="+d.ORcpt)...)
	}
	return b
}
