package smtp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"

	"github.com/postern-mta/postern/pipeline/envelope"
)

// Content is a message to be sent.
type Content struct {
	// From gives the message once, with lines that end in LF or CR LF. If it is
	// an io.WriterTo it is asked to write itself.
	From io.Reader
	// Length is how many bytes From must give; a message that turns out shorter or
	// longer is not finished. 0 means that it is not known.
	Length int64
	// Size is the length in bytes with CR LF, told to servers that know SIZE; 0
	// means that it is not known.
	Size int64
	// EightBit says that bytes above 127 occur (BODY=8BITMIME).
	EightBit bool
}

// Outcome is what the server answered in a transaction. A zero Reply was not
// asked for, or did not come.
type Outcome struct {
	Mail Reply
	// Recipients are the answers to RCPT, in the envelope's order. If Mail was
	// refused, what the server said to them means nothing and is not kept.
	Recipients []Reply
	Data       Reply
	// Final is the answer to the final dot. Where it is 2xx, the server has the
	// message for every recipient that it accepted.
	Final Reply
	// Finals are, in LMTP alone, the answers after the final dot to the recipients
	// that were accepted, in the envelope's order; Final is then the last of them.
	Finals []Reply
	// Repaired is how many bare CRs and NULs of the message were not sent.
	Repaired int64
}

// Accepted reports whether the server took recipient i.
func (o *Outcome) Accepted(i int) bool { return o.Recipients[i].Code/100 == 2 }

// window is how many recipients are named before their answers are read. More
// could fill both directions of a connection, and each end would wait for the
// other (RFC 2920 §3.1).
const window = 100

// ErrChunking is in the chain of an Error if the server offered CHUNKING and does
// not know what a chunk is, or a message could not be told in chunks. The server
// has nothing of the message, and the connection is of no use; another may do
// without chunks.
var ErrChunking = errors.New("the message cannot be sent in chunks")

// Transaction sends one message: MAIL, a RCPT for each recipient, and the message
// by DATA, or as one chunk if that is wanted, offered, and Content.Size is known;
// pipelined if the server offers it, but for the chunk, which goes when a
// recipient was accepted. It returns nil if the server took
// the message for at least one recipient; Outcome tells for which. Otherwise it
// returns an *Error, whose Phase is rcpt if every recipient was refused; what
// Outcome holds by then stands.
//
// Addresses that cannot be written, or need an extension that the server does
// not offer, make it fail before anything is sent, with ErrAddress or ErrUTF8
// in the chain; so check them first with FormatPath. Of the envelope's other
// fields those are sent that the server can take: SMTPUTF8, RET, ENVID, NOTIFY
// and ORCPT. REQUIRETLS is sent if offered; whether the connection may be used
// for such a message is for the caller to say.
func (c *Client) Transaction(ctx context.Context, e envelope.Envelope, content Content) (Outcome, error) {
	x := Exchange{Envelope: e, Content: content}
	err := c.Exchange(ctx, &x)
	return x.Outcome, err
}

// Exchange is a Transaction with all that belongs to it in one place, for those who
// wait in thousands of them at a time.
type Exchange struct {
	Envelope envelope.Envelope
	Content  Content
	Outcome
}

// Exchange makes a Transaction and puts what came of it into x.
func (c *Client) Exchange(ctx context.Context, x *Exchange) error {
	x.Outcome = Outcome{Recipients: make([]Reply, len(x.Envelope.Recipients))}
	defer c.watch(ctx)()
	if !c.Usable() {
		return &Error{Phase: After, Err: errors.New("the connection cannot carry a message")}
	}
	t := c.newTransaction(x)
	if err := t.format(); err != nil {
		return &Error{Phase: MailFrom, Err: err}
	}
	return t.run()
}

func (c *Client) newTransaction(x *Exchange) *transaction {
	return &transaction{
		c: c, e: &x.Envelope, content: &x.Content, out: &x.Outcome, pipeline: c.caps.Extensions.Has(Pipelining) && !c.o.LockStep,
		chunk: c.o.Chunking && c.caps.Extensions.Has(Chunking) && x.Content.Size > 0,
	}
}

type transaction struct {
	c        *Client
	e        *envelope.Envelope
	content  *Content
	out      *Outcome
	pipeline bool
	chunk    bool // by BDAT
	mail     string
	rcpt     []string
	accepted int
}

// format makes the commands, all before the first is written.
func (t *transaction) format() error {
	if len(t.e.Recipients) == 0 {
		return errors.New("no recipients")
	}
	has := t.c.caps.Extensions.Has
	path, err := FormatPath(t.e.Sender, has(UTF8))
	if err != nil {
		return fmt.Errorf("sender: %w", err)
	}
	utf8 := t.e.UTF8 || !isASCII(path)
	mail := append(make([]byte, 0, 128), "MAIL FROM:"...)
	mail = append(mail, path...)
	t.rcpt = make([]string, len(t.e.Recipients))
	for i, r := range t.e.Recipients {
		if path, err = FormatPath(r.Address, has(UTF8)); err != nil {
			return fmt.Errorf("recipient %d: %w", i+1, err)
		}
		utf8 = utf8 || !isASCII(path)
		t.rcpt[i] = t.formatRcpt(path, r.DSN)
	}
	if t.content.Size > 0 && has(SizeLimit) {
		mail = append(mail, " SIZE="...)
		mail = strconv.AppendInt(mail, t.content.Size, 10)
	}
	for _, p := range []struct {
		want bool
		text string
	}{
		{t.content.EightBit && has(EightBit), " BODY=8BITMIME"},
		{utf8 && has(UTF8), " SMTPUTF8"},
		{t.e.RequireTLS && has(RequireTLS), " REQUIRETLS"},
		{has(DSN) && (t.e.Ret == "FULL" || t.e.Ret == "HDRS"), " RET=" + t.e.Ret},
		{has(DSN) && validXtext(t.e.EnvID, maxEnvID), " ENVID=" + t.e.EnvID},
	} {
		if p.want {
			mail = append(mail, p.text...)
		}
	}
	t.mail = string(mail)
	return nil
}

func (t *transaction) formatRcpt(path string, d *envelope.DSN) string {
	s := "RCPT TO:" + path
	if d == nil || !t.c.caps.Extensions.Has(DSN) {
		return s
	}
	if d.Notify != 0 {
		s += " NOTIFY=" + formatNotify(d.Notify)
	}
	if validORcpt(d.ORcpt) {
		s += " ORCPT=" + d.ORcpt
	}
	return s
}

func (t *transaction) run() error {
	c := t.c
	// A server may have said goodbye meanwhile; nothing was sent, so nothing is
	// lost.
	if c.r.Buffered() > 0 {
		rep, err := c.reply(After, c.o.Timeouts.Mail)
		if err == nil {
			err = c.fail(After, rep, errors.New("the server talks out of turn"))
		}
		return err
	}
	if c.dirty {
		if err := c.reset(); err != nil {
			return err
		}
	}
	c.dirty = true
	commands := t.lockStep
	if t.pipeline {
		commands = t.pipelined
	}
	data, err := commands()
	if err != nil && t.out.Mail.Code >= 400 { // that was its last word
		c.broken = true
		return &Error{Phase: MailFrom, Reply: t.out.Mail, Err: err}
	}
	if err == nil && data.Code != 354 {
		err = t.inTurn()
	}
	if err != nil {
		return err
	}
	if t.out.Mail.Code/100 != 2 {
		return t.abandon(MailFrom, t.out.Mail, data)
	}
	if t.accepted == 0 {
		return t.abandon(RcptTo, t.out.Recipients[len(t.rcpt)-1], data)
	}
	if t.chunk {
		return t.send()
	}
	if t.out.Data = data; data.Code != 354 {
		return t.abandon(Data, data, Reply{})
	}
	return t.send()
}

// inTurn makes sure that no answer is left over: if one is, nobody knows which
// recipients the others were for. A goodbye is none.
func (t *transaction) inTurn() error {
	c := t.c
	if c.broken || c.r.Buffered() == 0 {
		return nil
	}
	rep, failed := c.reply(Data, c.o.Timeouts.Data)
	if failed == nil && rep.Code == 421 {
		return nil
	}
	clear(t.out.Recipients)
	if failed == nil {
		failed = c.fail(Data, Reply{}, errors.New("the server talks out of turn: it gave more answers than there were commands"))
	}
	return failed
}

// abandon ends a transaction that comes to nothing. If the server waits for a
// message all the same, it gets the shortest one.
func (t *transaction) abandon(phase Phase, rep, data Reply) error {
	c := t.c
	if data.Code == 354 && !c.broken {
		if _, err := c.ask(After, c.o.Timeouts.Data, "."); err != nil {
			c.broken = true
		}
	}
	err := &Error{Phase: phase, Reply: rep}
	if class := rep.Code / 100; class != 4 && class != 5 {
		err.Err = errors.New("an answer that is out of place")
		c.broken = true
	}
	return err
}

func (t *transaction) sawMail(rep Reply) { t.out.Mail = rep }

func (t *transaction) sawRcpt(i int, rep Reply) {
	if t.out.Mail.Code/100 != 2 {
		return
	}
	if t.out.Recipients[i] = rep; rep.Code/100 == 2 {
		t.accepted++
	}
}

// lockStep sends a command when the one before was answered. It returns the
// answer to DATA, which is not sent without a recipient.
func (t *transaction) lockStep() (Reply, error) {
	c := t.c
	rep, err := c.ask(MailFrom, c.o.Timeouts.Mail, t.mail)
	if err != nil {
		return Reply{}, err
	}
	if t.sawMail(rep); rep.Code/100 != 2 {
		return Reply{}, nil
	}
	for i, command := range t.rcpt {
		if rep, err = c.ask(RcptTo, c.o.Timeouts.Rcpt, command); err != nil {
			return Reply{}, err
		}
		if t.sawRcpt(i, rep); c.broken {
			return Reply{}, t.goodbye(RcptTo, rep)
		}
	}
	if t.accepted == 0 || t.chunk {
		return Reply{}, nil
	}
	if rep, err = c.ask(Data, c.o.Timeouts.Data, "DATA"); err != nil {
		return Reply{}, err
	}
	return rep, nil
}

// goodbye is a 421 in the midst of the recipients: those before it were only
// promised.
func (t *transaction) goodbye(phase Phase, rep Reply) error {
	t.accepted = 0
	return &Error{Phase: phase, Reply: rep}
}

// pipelined sends all commands at once (RFC 2920), or a window at a time.
func (t *transaction) pipelined() (Reply, error) {
	c := t.c
	c.line = append(append(c.line, t.mail...), '\r', '\n')
	for first := 0; first < len(t.rcpt); first += window {
		last := min(first+window, len(t.rcpt))
		for _, command := range t.rcpt[first:last] {
			c.line = append(append(c.line, command...), '\r', '\n')
		}
		if last == len(t.rcpt) && !t.chunk {
			c.line = append(c.line, "DATA\r\n"...)
		}
		if err := c.flush(MailFrom); err != nil {
			return Reply{}, err
		}
		if err := t.answers(first, last); err != nil {
			return Reply{}, err
		}
	}
	if t.chunk {
		return Reply{}, nil
	}
	rep, err := c.reply(Data, c.o.Timeouts.Data)
	if err != nil {
		return Reply{}, err
	}
	return rep, nil
}

// answers reads the answers to a window of recipients, and to MAIL before the
// first.
func (t *transaction) answers(first, last int) error {
	c := t.c
	if first == 0 {
		rep, err := c.reply(MailFrom, c.o.Timeouts.Mail)
		if err != nil {
			return err
		}
		if t.sawMail(rep); c.broken {
			return t.goodbye(MailFrom, rep)
		}
	}
	for i := first; i < last; i++ {
		rep, err := c.reply(RcptTo, c.o.Timeouts.Rcpt)
		if err != nil {
			return err
		}
		if t.sawRcpt(i, rep); c.broken {
			return t.goodbye(RcptTo, rep)
		}
	}
	return nil
}

// write sends the message and its final dot, or the message as a chunk. Its
// buffers are free for others while the server thinks about its answer.
func (t *transaction) write() error {
	c := t.c
	b := c.o.Buffers.get(wire{c})
	defer c.o.Buffers.put(b)
	d := NewDotWriter(b.w)
	if t.chunk {
		d.chunk(t.content.Size)
	}
	err := t.copy(d, b)
	t.out.Repaired = d.Repaired()
	if err != nil {
		return err
	}
	if err := d.Close(); errors.Is(err, ErrChunking) {
		return t.cutOff(err)
	} else if err != nil {
		return c.late(Body, err)
	}
	if err := b.w.Flush(); err != nil {
		// What was not written whole has no final dot.
		failed := c.late(Body, err)
		failed.Perhaps = b.w.Buffered() == 0 && failed.Reply.Code == 0
		return failed
	}
	return nil
}

// send sends the message and hears what the server says to it.
func (t *transaction) send() error {
	c := t.c
	if err := t.listen(); err != nil {
		return err
	}
	if err := t.write(); err != nil {
		return err
	}
	if c.o.LMTP {
		return t.finals()
	}
	rep, failed := c.reply(Dot, c.o.Timeouts.Dot)
	if failed != nil {
		failed.Perhaps = true
		return failed
	}
	t.out.Final = rep
	if t.chunk && rep.Code >= 500 && rep.Code <= 504 {
		c.broken = true // what the server took for commands is not known
		return &Error{Phase: Data, Reply: rep, Err: ErrChunking}
	}
	switch rep.Code / 100 {
	case 2:
		c.dirty = false
		return nil
	case 4, 5:
		c.dirty = false
		return c.fail(Dot, rep, nil)
	}
	failed = c.fail(Dot, Reply{}, fmt.Errorf("the message was answered with %d", rep.Code))
	failed.Perhaps = true
	return failed
}

// listen hears what the server has to say before it has anything of the message. An
// answer that came too early must not be taken for the one to the message.
func (t *transaction) listen() error {
	c := t.c
	if c.r.Buffered() == 0 && (c.secure != nil || c.Quiet()) {
		return nil
	}
	rep, failed := c.reply(Data, c.o.Timeouts.Data)
	if failed != nil {
		return failed
	}
	c.broken = true
	if class := rep.Code / 100; class == 4 || class == 5 {
		return &Error{Phase: Data, Reply: rep}
	}
	return &Error{Phase: Data, Err: fmt.Errorf("the server talks out of turn: it answered %d to a message that it did not have", rep.Code)}
}

// finals reads LMTP's answers. Those that do not come leave it open whether their
// recipients have the message.
func (t *transaction) finals() error {
	c := t.c
	t.out.Finals = make([]Reply, len(t.rcpt))
	taken := false
	for i := range t.rcpt {
		if !t.out.Accepted(i) {
			continue
		}
		if c.broken { // it said 421 to the one before
			return &Error{Phase: Dot, Perhaps: true, Err: errors.New("the server said goodbye before it had answered for all recipients")}
		}
		rep, failed := c.reply(Dot, c.o.Timeouts.Dot)
		if failed == nil && (rep.Code < 200 || rep.Code/100 == 3) {
			failed = c.fail(Dot, Reply{}, fmt.Errorf("the message was answered with %d", rep.Code))
		}
		if failed != nil {
			failed.Perhaps = true
			return failed
		}
		t.out.Finals[i], t.out.Final = rep, rep
		taken = taken || rep.Code/100 == 2
	}
	c.dirty = false
	if !taken {
		return c.fail(Dot, t.out.Final, nil)
	}
	return nil
}

// copy sends the message. If it cannot be read to its end, the connection is
// closed, so that what was sent never counts as a message.
func (t *transaction) copy(d *DotWriter, b *buffers) error {
	c := t.c
	out := writeError{w: d}
	var err error
	if from, ok := t.content.From.(io.WriterTo); ok {
		_, err = from.WriteTo(&out)
	} else {
		if b.b == nil {
			b.b = make([]byte, writeBuffer)
		}
		_, err = io.CopyBuffer(&out, struct{ io.Reader }{t.content.From}, b.b)
	}
	if errors.Is(out.err, ErrChunking) {
		return t.cutOff(out.err)
	}
	if out.err != nil {
		return c.late(Body, out.err)
	}
	if n := d.Written(); err == nil && t.content.Length > 0 && n != t.content.Length {
		err = fmt.Errorf("it has %d bytes, not %d", n, t.content.Length)
	}
	if err != nil {
		return t.cutOff(fmt.Errorf("%w: %w", ErrContent, err))
	}
	return nil
}

// cutOff ends the connection in the middle of a message, so that what was sent
// never counts as one.
func (t *transaction) cutOff(err error) error {
	t.c.broken = true
	t.c.raw.Close()
	return &Error{Phase: Body, Err: err}
}

// writeError tells errors of the connection from those of the message.
type writeError struct {
	w   io.Writer
	err error
}

func (w *writeError) Write(p []byte) (int, error) {
	n, err := w.w.Write(p)
	if err != nil {
		w.err = err
	}
	return n, err
}
