package spp

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
)

// Bounds of what programs leave for later.
const (
	maxFields = 200
	maxLater  = 50
	// maxSplit is into how many messages a change of the head or the sender may
	// split one whose recipients are changed. The chain bears only so many for all
	// filters; what recipients beyond have in their parameters is lost.
	maxSplit = 16
)

// instance is the programs at work for one session.
type instance struct {
	filter  *Filter
	plugins plugins
	home    string
	state
	authed bool
	tx     transaction
}

// state is what programs have said for later. Its parts are replaced and never
// changed.
type state struct {
	off     bool
	vars    variables
	session left
	helo    left // goes with the next HELO
	message left // goes with the transaction
}

// left is what is left for later, of the session or of one transaction.
type left struct {
	fields []message.FieldEdit
	errors []later
}

// later is a refusal of a later command.
type later struct {
	of   byte // M, R or D
	text string
}

// transaction is what is known of the one that goes on.
type transaction struct {
	begun   bool
	sender  string            // as it is now
	changed map[string]string // recipients, as they came and as they are now
	asked   int
	passed  int
	last    string // recipient
	lastOK  string // SMTPRCPTHOSTSOK of it
	data    *pipeline.Verdict
}

// Close ends the session.
func (i *instance) Close() error { return nil }

// Reset forgets the transaction.
func (i *instance) Reset() { i.tx, i.message = transaction{}, left{} }

// Connect runs the programs of [connection].
func (i *instance) Connect(ctx context.Context, s *pipeline.Session) (pipeline.Verdict, error) {
	return i.run(ctx, s, &occasion{event: atConnection})
}

// Helo runs the programs of [helo], and those of [auth] once somebody has logged
// in.
func (i *instance) Helo(ctx context.Context, s *pipeline.Session) (pipeline.Verdict, error) {
	i.helo = left{}
	v, err := i.run(ctx, s, &occasion{event: atHelo})
	if err != nil || v.Action != pipeline.Continue || s.User == "" || i.authed {
		return v, err
	}
	i.authed = true
	after, err := i.run(ctx, s, &occasion{event: atAuth})
	after.Remarks = append(v.Remarks, after.Remarks...)
	return after, err
}

// Sender runs the programs of [mail].
func (i *instance) Sender(ctx context.Context, tx *pipeline.Transaction) (pipeline.Verdict, error) {
	i.tx = transaction{begun: true, sender: tx.Envelope.Sender}
	if v, refused := i.refuseNow('M'); refused {
		return v, nil
	}
	o := &occasion{event: atMail, address: "SMTPMAILFROM", about: map[string]string{"SMTPMAILFROM": tx.Envelope.Sender}}
	v, err := i.run(ctx, tx.Session, o)
	if err == nil {
		i.tx.sender = o.about[o.address]
	}
	return v, err
}

// Recipient runs the programs of [rcpt] and [pass].
func (i *instance) Recipient(ctx context.Context, tx *pipeline.Transaction, r envelope.Recipient) (pipeline.Verdict, error) {
	if v, refused := i.refuseNow('R'); refused {
		return v, nil
	}
	i.begin(tx)
	t := &i.tx
	t.asked++
	// The SMTP server's envelope holds who was accepted, a shim's all.
	accepted := min(t.passed, len(tx.Envelope.Recipients))
	t.lastOK = hostsOK(tx.Session, r.Address)
	o := &occasion{event: atRcpt, address: "SMTPRCPTTO", about: map[string]string{
		"SMTPMAILFROM": t.sender, "SMTPRCPTTO": r.Address, "SMTPRCPTHOSTSOK": t.lastOK,
		"SMTPRCPTCOUNT": strconv.Itoa(accepted), "SMTPRCPTCOUNTALL": strconv.Itoa(t.asked),
	}}
	v, err := i.run(ctx, tx.Session, o)
	if err == nil && (v.Action == pipeline.Continue || v.Action == pipeline.Accept) && len(i.plugins.of[atPass]) > 0 {
		o.event, o.about["SMTPRCPTCOUNT"] = atPass, strconv.Itoa(accepted+1)
		var pass pipeline.Verdict
		pass, err = i.run(ctx, tx.Session, o)
		v = both(v, pass)
	}
	if err != nil {
		return v, err
	}
	t.last = o.about[o.address]
	if v.Action == pipeline.Reject || v.Action == pipeline.Defer {
		return v, nil
	}
	t.passed++
	if t.last != r.Address {
		if t.changed == nil {
			t.changed = map[string]string{}
		}
		t.changed[r.Address] = t.last
	} else {
		delete(t.changed, r.Address) // it was given before
	}
	return v, nil
}

// both are two verdicts about one command, of which the first lets it pass.
func both(first, second pipeline.Verdict) pipeline.Verdict {
	second.Remarks = append(first.Remarks, second.Remarks...)
	if second.Action == pipeline.Continue {
		second.Action, second.StageOnly = first.Action, first.StageOnly
		second.Reason = strings.Trim(first.Reason+"; "+second.Reason, "; ")
	}
	return second
}

// begin takes up a transaction whose sender nobody has asked about.
func (i *instance) begin(tx *pipeline.Transaction) {
	if !i.tx.begun {
		i.tx = transaction{begun: true, sender: tx.Envelope.Sender}
	}
}

// hostsOK is whether we take mail for an address from this client.
func hostsOK(s *pipeline.Session, address string) string {
	if s.Standing != pipeline.Stranger || s.IsOurs(address) {
		return "1"
	}
	return "0"
}

// Message runs the programs of [data], once for each transaction, and changes
// the message as programs have said.
func (i *instance) Message(ctx context.Context, tx *pipeline.Transaction, m message.Message) (pipeline.Verdict, error) {
	i.begin(tx)
	if i.tx.data == nil {
		v, err := i.data(ctx, tx)
		if err != nil {
			return v, err
		}
		i.tx.data = &v
	}
	v := *i.tx.data
	i.tx.data.Remarks = nil // they are said once
	if v.Action != pipeline.Continue {
		return v, nil
	}
	return v, i.edit(&v, tx, m)
}

func (i *instance) data(ctx context.Context, tx *pipeline.Transaction) (pipeline.Verdict, error) {
	if v, refused := i.refuseNow('D'); refused {
		return v, nil
	}
	t, all := &i.tx, tx.Envelope.Recipients
	if t.last == "" && len(all) > 0 { // nobody has asked about recipients
		t.last = all[len(all)-1].Address
		t.lastOK = hostsOK(tx.Session, t.last)
	}
	return i.run(ctx, tx.Session, &occasion{event: atData, about: map[string]string{
		"SMTPMAILFROM": t.sender, "SMTPRCPTTO": t.last, "SMTPRCPTHOSTSOK": t.lastOK,
		"SMTPRCPTCOUNT": strconv.Itoa(len(all)), "SMTPRCPTCOUNTALL": strconv.Itoa(max(t.asked, len(all))),
	}})
}

// edit puts into a verdict what programs have changed.
func (i *instance) edit(v *pipeline.Verdict, tx *pipeline.Transaction, m message.Message) error {
	var edits []pipeline.Edit
	if i.tx.sender != tx.Envelope.Sender {
		edits = append(edits, pipeline.Edit{Kind: pipeline.EditSender, Address: i.tx.sender})
	}
	below := 0
	if h := m.Head(); h.Len() > 0 && strings.EqualFold(h.Field(0).Name(), "Received") {
		below = 1
	}
	for _, field := range slices.Concat(i.session.fields, i.helo.fields, i.message.fields) {
		field.Nth = below
		below++
		edits = append(edits, pipeline.Field(field))
	}
	v.Edits = edits
	if len(i.tx.changed) == 0 {
		return nil
	}
	part := map[string]int{} // which of the others an address is
	for _, n := range tx.Active {
		address, ok := i.tx.changed[tx.Envelope.Recipients[n].Address]
		if !ok {
			continue
		}
		at, ok := part[address]
		switch {
		case ok:
		case len(edits) > 0 && len(v.Others) == maxSplit: // one more recipient of the last part
			at = maxSplit - 1
			v.Others[at].Edits = append(v.Others[at].Edits, pipeline.Edit{Kind: pipeline.EditAddRecipient, Address: address})
		default:
			at = len(v.Others)
			v.Others = append(v.Others, pipeline.Verdict{Edits: append(slices.Clone(edits), pipeline.Edit{Kind: pipeline.EditRecipient, Address: address})})
		}
		part[address] = at
		v.Others[at].Only = append(v.Others[at].Only, n)
	}
	return nil
}

// refuseNow is the refusal that a program has left for a command.
func (i *instance) refuseNow(of byte) (v pipeline.Verdict, refused bool) {
	for _, l := range slices.Concat(i.session.errors, i.helo.errors, i.message.errors) {
		if l.of != of {
			continue
		}
		if refused {
			v.Remarks = append(v.Remarks, v.Reply.Words())
		}
		refused = true
		r := parseReply(l.text)
		switch r.Class {
		case reply.Permanent:
			v.Action = pipeline.Reject
		case reply.Temporary:
			v.Action = pipeline.Defer
		case reply.Success: // and yet the command is not carried out
			v.Action, r = pipeline.Defer, reply.Make(451, reply.Enhanced{Subject: 7}, r.Text)
		}
		v.Reply = r
	}
	v.Remarks = v.Remarks[:min(len(v.Remarks), pipeline.MaxRemarks)]
	v.Reason = "as a program said before"
	return v, refused
}

// occasion is what programs are run for.
type occasion struct {
	event   event
	address string // the variable that holds the address in question, "" if there is none
	about   map[string]string
}

// run runs the programs of an event, until one decides.
func (i *instance) run(ctx context.Context, s *pipeline.Session, o *occasion) (pipeline.Verdict, error) {
	var v pipeline.Verdict
	list := i.plugins.of[o.event]
	if i.off || len(list) == 0 {
		return v, nil
	}
	for _, line := range list {
		name := nameOf(line)
		commands, err := i.filter.runner.run(ctx, line, i.home, environment(s, i.vars, o.about))
		if err != nil {
			return pipeline.Verdict{}, fmt.Errorf("%s: %w", name, err)
		}
		next := turn{state: i.state, occasion: *o, verdict: v}
		last, err := next.carryOut(commands)
		if err != nil {
			return pipeline.Verdict{}, fmt.Errorf("%s: %w", name, err)
		}
		i.state, v = next.state, next.verdict
		if o.address != "" {
			o.about[o.address] = next.current
		}
		if last != "" {
			v.Reason = name + ": " + last
			return v, nil
		}
	}
	v.Reason = fmt.Sprintf("[%s] let pass", o.event)
	return v, nil
}

// nameOf is what logs and traces call a program.
func nameOf(line string) string { return reply.Clean(line, 100) }
