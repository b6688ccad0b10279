package milter

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	gomilter "github.com/emersion/go-milter"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/servers"
)

// Message has the milter judge the message, for the recipients that it is asked
// about.
func (i *instance) Message(ctx context.Context, tx *pipeline.Transaction, m message.Message) (pipeline.Verdict, error) {
	i.gather(tx)
	r, err := i.content(ctx, m)
	if err != nil {
		i.finish()
		return pipeline.Verdict{}, err
	}
	v, err := i.verdict(tx, m, r)
	if err != nil && r.body != nil {
		r.body.Release() //nolint:errcheck // the spool sweeps what is left behind
	}
	i.finish()
	return v, err
}

// gather has the transaction be one for the active recipients. Where an earlier
// filter has split the message, that is another than the milter knows.
func (i *instance) gather(tx *pipeline.Transaction) {
	if i.mail == nil || i.over == nil && i.mail.over == nil &&
		(len(tx.Active) < len(tx.Envelope.Recipients) || i.mail.tx.Envelope.Sender != tx.Envelope.Sender) {
		i.begin(tx)
	}
	i.s, i.mail.tx = tx.Session, tx
	for _, n := range tx.Active {
		if n < len(tx.Envelope.Recipients) {
			i.mail.add(tx.Envelope.Recipients[n])
		}
	}
}

// finish ends the transaction.
func (i *instance) finish() {
	i.Reset()
}

// content tells the milter what it has not been told yet, and the message. The
// result is empty if something was decided before its end, see ended.
func (i *instance) content(ctx context.Context, m message.Message) (r result, err error) {
	if i.ended() != nil || len(i.mail.rcpts) == 0 {
		return result{}, nil
	}
	err = i.run(ctx, func(t *talk) error {
		if r.body != nil { // of an attempt whose time was over
			r.body.Release() //nolint:errcheck // the spool sweeps what is left behind
		}
		r = result{}
		if err := i.upTo(t, pipeline.AtMessage); err != nil || i.ended() != nil || i.mail.nobody() {
			return err
		}
		s := &subject{f: i.f, s: i.s, tx: i.mail.tx, messageID: m.Head().Get("Message-ID")}
		for _, tell := range [...]func(*talk, *subject, message.Message) (answer, string, error){tellData, tellHead, tellBody} {
			a, at, err := tell(t, s, m)
			if err != nil {
				return err
			}
			if !a.goesOn() {
				i.mail.over = endingOf(a, at)
				return nil
			}
		}
		r, err = t.end(s.macros(t, gomilter.StageEOM), limits{spool: i.f.spool, body: i.f.o.Body})
		if err == nil {
			t.open = false
			t.mailed, t.told = false, 0
		}
		return err
	})
	if err != nil && r.body != nil {
		r.body.Release() //nolint:errcheck // the spool sweeps what is left behind
	}
	return r, err
}

// nobody reports whether the milter will have none of the recipients.
func (m *mail) nobody() bool {
	return !slices.ContainsFunc(m.rcpts, func(r *recipient) bool { return r.refused == nil })
}

func tellData(t *talk, s *subject, _ message.Message) (answer, string, error) {
	a, err := t.ask(&cmdData, s.macros(t, gomilter.StageData))
	return a, cmdData.name, err
}

// tellHead tells the fields of the head, as they stand, and its end. Lines that
// are no fields are nothing that a milter could be told.
func tellHead(t *talk, s *subject, m message.Message) (answer, string, error) {
	if !t.has(cmdHeader.not) {
		head := m.Head()
		for n := range head.Len() {
			name, value := split(head.Field(n), t.has(gomilter.OptHeaderLeadingSpace))
			if name == nil {
				continue
			}
			if a, err := t.ask(&cmdHeader, nil, name, nul, value, nul); err != nil || !a.goesOn() {
				return a, cmdHeader.name, err
			}
		}
	}
	a, err := t.ask(&cmdEOH, s.macros(t, gomilter.StageEOH))
	return a, cmdEOH.name, err
}

var nul = []byte{0}

// maxField is how much of a field's value a milter is told, in bytes: libmilter
// takes 64 KiB in all.
const maxField = 60_000

// split is name and value of a field; the blank behind the colon belongs to the
// value if leading is set. Lines are separated by LF (xxfi_header).
func split(f message.Field, leading bool) (name, value []byte) {
	if f.Name() == "" {
		return nil, nil
	}
	text := f.Text()[len(f.Name()):]
	text = strings.TrimSuffix(text[strings.IndexByte(text, ':')+1:], "\n")
	if !leading {
		text = strings.TrimPrefix(text, " ")
	}
	text = strings.TrimSuffix(text, "\r")
	if strings.IndexByte(text, 0) >= 0 {
		text = strings.ReplaceAll(text, "\x00", "")
	}
	if strings.Contains(text, "\r\n") {
		text = strings.ReplaceAll(text, "\r\n", "\n")
	}
	if len(text) > maxField {
		text = text[:maxField]
	}
	return []byte(f.Name()), []byte(text)
}

// tellBody sends the body in pieces, in the form in which it travels, until the
// milter has heard enough.
func tellBody(t *talk, _ *subject, m message.Message) (answer, string, error) {
	if t.has(cmdBody.not) {
		return goOn, cmdBody.name, nil
	}
	r := pieces{body: m.Body()}
	packet, raw := chunks.Get().(*[]byte), chunks.Get().(*[]byte)
	defer chunks.Put(packet)
	defer chunks.Put(raw)
	for {
		n, err := r.next((*packet)[packetHead:], *raw)
		if err != nil {
			return answer{}, "", servers.Ours(fmt.Errorf("reading the message: %w", err))
		}
		if n == 0 {
			return goOn, cmdBody.name, nil
		}
		a, err := t.askPacket(&cmdBody, (*packet)[:packetHead+n])
		if err != nil || a.code != gomilter.ActContinue {
			return a, cmdBody.name, err
		}
	}
}

// pieces reads a body in the form in which it travels: every LF that no CR
// precedes becomes CR LF.
type pieces struct {
	body *message.Body
	at   int64
	rest []byte // read, and not given out
	crlf message.CRLF
}

// next fills p, or gives what is left; 0 is the end. It reads into raw.
func (r *pieces) next(p, raw []byte) (n int, err error) {
	for n < len(p) {
		if len(r.rest) == 0 {
			if r.rest, err = r.read(raw); err != nil || len(r.rest) == 0 {
				return n, err
			}
		}
		put, used := r.crlf.Next(p[n:], r.rest)
		n, r.rest = n+put, r.rest[used:]
	}
	return n, nil
}

// read reads on. Half a body must not pass for all of it.
func (r *pieces) read(raw []byte) ([]byte, error) {
	left := r.body.Size() - r.at
	if content, ok := r.body.Memory(); ok {
		r.at += left
		return content[len(content)-int(left):], nil
	}
	raw = raw[:min(int64(len(raw)), left)]
	n, err := r.body.ReadAt(raw, r.at)
	r.at += int64(n)
	if n == len(raw) {
		err = nil // a reader may tell io.EOF with its last bytes
	} else if err == nil {
		err = io.ErrUnexpectedEOF
	}
	return raw[:n], err
}

// verdict is what the milter's result makes of the message. It takes over the
// result's body if there is no error.
func (i *instance) verdict(tx *pipeline.Transaction, m message.Message, r result) (v pipeline.Verdict, err error) {
	var asked []int // whom the milter would have
	for _, n := range tx.Active {
		if n >= len(tx.Envelope.Recipients) {
			continue
		}
		if e := i.mail.known[tx.Envelope.Recipients[n].Address].refused; e != nil {
			other := e.verdict(pipeline.AtMessage)
			other.Only = []int{n}
			v.Others = append(v.Others, other)
			continue
		}
		asked = append(asked, n)
	}
	e := i.ended()
	if e == nil && r.code != 0 && !r.goesOn() {
		e = endingOf(r.answer, cmdEOM.name)
	}
	switch {
	case e != nil && (e.action != pipeline.Continue || r.code == 0):
		main := e.verdict(pipeline.AtMessage)
		main.Others = v.Others
		if r.body != nil {
			r.body.Release() //nolint:errcheck // the spool sweeps what is left behind
		}
		return main, nil
	case len(asked) == 0:
		v.Reason = "no recipient is left to it"
		return v, nil
	}
	if v.Reason = "goes on"; e != nil {
		v.Reason = e.reason
	}
	if err := i.changes(&v, tx, m, r, asked); err != nil {
		return pipeline.Verdict{}, err
	}
	if v.Body = r.body; r.held {
		v.Action, v.Reason = pipeline.Quarantine, "held: "+orElse(r.hold, "no reason given")
	}
	return v, nil
}

func orElse(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

// changes makes edits of the milter's modifications.
func (i *instance) changes(v *pipeline.Verdict, tx *pipeline.Transaction, m message.Message, r result, asked []int) error {
	h := newHeadEdits(m.Head(), i.leading())
	people := newPeople(tx, asked)
	sender := ""
	changed := false
	for _, c := range r.changes {
		switch c.code {
		case byte(gomilter.ActAddRcpt), answerAddRcptParam, byte(gomilter.ActChangeFrom):
			if err := checkAddress(bare(c.name), c.code == byte(gomilter.ActChangeFrom)); err != nil {
				return err
			}
		}
		switch c.code {
		case byte(gomilter.ActAddRcpt), answerAddRcptParam:
			people.add(bare(c.name))
		case byte(gomilter.ActDelRcpt):
			people.remove(bare(c.name))
		case byte(gomilter.ActChangeFrom):
			sender, changed = bare(c.name), true
		default:
			h.change(c)
		}
	}
	for _, e := range h.edits {
		if err := e.Check(); err != nil {
			return fmt.Errorf("it makes a header field that cannot be: %w", err)
		}
		v.Edits = append(v.Edits, pipeline.Field(e))
	}
	if changed && sender != tx.Envelope.Sender {
		v.Edits = append(v.Edits, pipeline.Edit{Kind: pipeline.EditSender, Address: sender})
	}
	people.edit(v)
	return nil
}

// leading reports whether values of fields come with the blank behind the colon.
func (i *instance) leading() bool {
	return i.talk != nil && i.talk.has(gomilter.OptHeaderLeadingSpace)
}

// bare is an address without its brackets.
func bare(s string) string {
	s = strings.TrimSpace(s)
	if strings.HasPrefix(s, "<") && strings.HasSuffix(s, ">") {
		s = s[1 : len(s)-1]
	}
	return s
}

// checkAddress says whether an address can stand in an envelope.
func checkAddress(address string, nobody bool) error {
	switch {
	case address == "" && !nobody:
		return errors.New("it adds a recipient without an address")
	case len(address) > envelope.MaxAddress:
		return fmt.Errorf("it gives an address of %d bytes", len(address))
	case !envelope.ValidBytes(address):
		return errors.New("it gives an address that holds a control character")
	}
	return nil
}

// people are the recipients that a milter adds and removes.
type people struct {
	tx    *pipeline.Transaction
	asked []int
	by    map[string][]int // the asked, by address
	gone  map[string]bool
	added []string
}

func newPeople(tx *pipeline.Transaction, asked []int) *people {
	p := &people{tx: tx, asked: asked, by: map[string][]int{}, gone: map[string]bool{}}
	for _, n := range asked {
		key := same(tx.Envelope.Recipients[n].Address)
		p.by[key] = append(p.by[key], n)
	}
	return p
}

// same is equal for addresses that are one.
func same(address string) string {
	return envelope.Local(address) + "@" + envelope.Domain(address)
}

func (p *people) add(address string) {
	key := same(address)
	switch {
	case p.gone[key]:
		delete(p.gone, key)
	case p.by[key] == nil && !slices.ContainsFunc(p.added, func(a string) bool { return same(a) == key }):
		p.added = append(p.added, address)
	}
}

func (p *people) remove(address string) {
	key := same(address)
	p.added = slices.DeleteFunc(p.added, func(a string) bool { return same(a) == key })
	if p.by[key] != nil {
		p.gone[key] = true
	}
}

// edit puts it into the verdict. Whoever is removed gets nothing; where all are
// and others come in their place, these take it.
func (p *people) edit(v *pipeline.Verdict) {
	var gone []int
	for _, n := range p.asked {
		if p.gone[same(p.tx.Envelope.Recipients[n].Address)] {
			gone = append(gone, n)
		}
	}
	added := p.added
	if len(gone) == len(p.asked) && len(added) > 0 {
		v.Edits = append(v.Edits, pipeline.Edit{Kind: pipeline.EditRecipient, Address: added[0]})
		gone, added = nil, added[1:]
	}
	for _, a := range added {
		v.Edits = append(v.Edits, pipeline.Edit{Kind: pipeline.EditAddRecipient, Address: a})
	}
	if len(gone) > 0 {
		v.Others = append(v.Others, pipeline.Verdict{Action: pipeline.Discard, Only: gone, Reason: "recipient removed"})
	}
}

// headEdits turns modifications of the head into edits, one for one. It knows
// how many fields there are of each name after those before.
type headEdits struct {
	edits   []message.FieldEdit
	count   map[string]int
	fields  int
	hidden  int // 1 if the field that the server puts on top is still missing
	leading bool
}

func newHeadEdits(head message.Head, leading bool) *headEdits {
	h := &headEdits{count: map[string]int{}, fields: head.Len(), leading: leading, hidden: 1}
	for n := range head.Len() {
		h.count[lower(head.Field(n).Name())]++
	}
	if head.Len() > 0 && head.Field(0).Is("Received") {
		h.hidden = 0
	}
	return h
}

// change is one modification: smfi_addheader, smfi_insheader, smfi_chgheader.
func (h *headEdits) change(c change) {
	value, key := fieldValue(c.name, c.value, h.leading), lower(c.name)
	e := message.FieldEdit{Op: message.Append, Name: c.name, Value: value}
	nth := int(min(c.nth, 1<<30))
	switch {
	case c.code == byte(gomilter.ActInsertHeader):
		e.Op = message.Add
		if e.Nth = max(0, nth-h.hidden); e.Nth >= h.fields {
			e.Op, e.Nth = message.Append, 0
		}
	case c.code == byte(gomilter.ActChangeHeader) && max(nth, 1) <= h.count[key]:
		e.Op, e.Nth = message.Replace, max(nth, 1)
		if c.value == "" {
			e.Op, e.Value = message.Remove, ""
			h.count[key]--
			h.fields--
		}
		h.edits = append(h.edits, e)
		return
	case c.code == byte(gomilter.ActChangeHeader) && c.value == "":
		return // there is none to remove
	}
	h.count[key]++
	h.fields++
	h.edits = append(h.edits, e)
}

// lower is a name in lower case, ASCII alone (RFC 5322 §1.2.2).
func lower(name string) string {
	b := []byte(name)
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			b[i] += 'a' - 'A'
		}
	}
	return string(b)
}
