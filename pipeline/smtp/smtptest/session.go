package smtptest

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/reply"
	"github.com/postern-mta/postern/pipeline/smtp"
)

// errOver ends a session.
var errOver = errors.New("the conversation is over")

type session struct {
	s        *Server
	conn     net.Conn
	peer     netip.AddrPort
	id       uint64
	r        *smtp.Reader
	w        *bufio.Writer
	hello    string
	extended bool
	lmtp     bool // it said LHLO
	mail     *smtp.Mail
	rcpt     []envelope.Recipient
	messages int
	secure   *tls.ConnectionState
	user     string
}

func newSession(s *Server, conn net.Conn, peer netip.AddrPort, id uint64) *session {
	if tcp, ok := conn.(*net.TCPConn); ok && s.o.ReadBuffer > 0 {
		tcp.SetReadBuffer(s.o.ReadBuffer) //nolint:errcheck // as good as it gets
	}
	return &session{s: s, conn: conn, peer: peer, id: id, r: smtp.NewReader(conn, 4<<10), w: bufio.NewWriterSize(conn, 1<<10)}
}

// serve holds the conversation until one side ends it.
func (c *session) serve() {
	var err error
	if c.s.o.TLS != nil && c.s.o.Implicit {
		err = c.handshake()
	}
	if err == nil {
		_, err = c.answer(Connect, "", c.s.greeting)
	}
	for err == nil {
		err = c.command()
	}
	c.flush() //nolint:errcheck // the conversation is over
}

// flush sends the answers collected so far.
func (c *session) flush() error {
	c.conn.SetDeadline(time.Now().Add(c.s.o.Idle)) //nolint:errcheck // a closed connection fails below
	return c.w.Flush()
}

// command reads and answers one command. Answers wait while more commands have
// come already.
func (c *session) command() error {
	if c.r.Buffered() == 0 {
		if err := c.flush(); err != nil {
			return err
		}
	}
	line, err := c.r.Line(smtp.MaxCommand)
	switch {
	case errors.Is(err, smtp.ErrBare):
		return c.say("500 5.5.2 bare CR, LF or NUL")
	case errors.Is(err, smtp.ErrLineTooLong):
		c.say("500 5.5.2 line too long") //nolint:errcheck // the conversation is over
		return errOver
	case err != nil:
		return err
	}
	c.s.commands.Add(1)
	verb, args, _ := strings.Cut(string(line), " ")
	for _, v := range verbs {
		if strings.EqualFold(verb, v.name) {
			return v.do(c, verb, args)
		}
	}
	return c.say("500 5.5.1 what?")
}

var verbs = [...]struct {
	name string
	do   func(c *session, verb, args string) error
}{
	{"MAIL", (*session).doMail},
	{"RCPT", (*session).doRcpt},
	{"DATA", (*session).doData},
	{"BDAT", (*session).doBDAT},
	{"EHLO", (*session).doHello},
	{"STARTTLS", (*session).doStartTLS},
	{"AUTH", (*session).doAuth},
	{"HELO", (*session).doHello},
	{"LHLO", (*session).doHello},
	{"RSET", func(c *session, _, _ string) error { c.forget(); return c.plain(Reset, "250 2.0.0 ok") }},
	{"NOOP", func(c *session, _, _ string) error { return c.say("250 2.0.0 ok") }},
	{"QUIT", func(c *session, _, _ string) error { c.plain(Quit, "221 2.0.0 bye"); return errOver }}, //nolint:errcheck // it is over
}

func (c *session) forget() { c.mail, c.rcpt = nil, nil }

// say says a reply.
func (c *session) say(text string) error {
	wire, _ := lines(text)
	return c.put(wire)
}

func (c *session) put(wire string) error {
	if c.s.o.Latency > 0 {
		if err := c.flush(); err != nil {
			return err
		}
		c.s.sleep(c.s.o.Latency)
	}
	if !c.s.o.OneByte {
		_, err := c.w.WriteString(wire)
		return err
	}
	return c.drip(wire, 0)
}

// drip writes a byte at a time, each after a pause.
func (c *session) drip(wire string, pause time.Duration) error {
	for i := range len(wire) {
		c.s.sleep(pause)
		if err := c.w.WriteByte(wire[i]); err != nil {
			return err
		}
		if err := c.flush(); err != nil {
			return err
		}
	}
	return nil
}

// putFor is put at the pace of a step.
func (c *session) putFor(st *Step, wire string) error {
	if st.Drip > 0 {
		return c.drip(wire, st.Drip)
	}
	return c.put(wire)
}

// answer says the usual, or what a step has in its place. The code is that of
// what was said; an error ends the conversation.
func (c *session) answer(at At, what, usual string) (code int, err error) {
	st := c.step(at, what)
	text := choose(st, usual)
	return st.code(text), c.act(st, text)
}

// step is the step that acts at a point, nil if none does.
func (c *session) step(at At, what string) *Step {
	if c.s.o.Script != nil {
		m := Moment{At: at, What: what, Connection: c.id, Peer: c.peer, Recipients: len(c.rcpt), Messages: c.messages, Secure: c.secure != nil}
		if c.mail != nil {
			m.Sender = c.mail.Sender
		}
		if st := c.s.o.Script(&m); st != nil {
			return st
		}
	}
	return c.s.step(at, what)
}

// choose is what is said if st acts, or the usual if it is nil.
func choose(st *Step, usual string) string {
	switch {
	case st == nil:
		return usual
	case st.Reply == "" && st.Raw == "" && st.End == GoOn:
		return usual
	}
	return st.Reply
}

// act does what a step asks for and says text.
func (c *session) act(st *Step, text string) error {
	if st == nil {
		return c.say(text)
	}
	if st.Delay > 0 {
		if err := c.flush(); err != nil {
			return err
		}
		c.s.sleep(st.Delay)
	}
	if st.Raw != "" {
		if err := c.putFor(st, st.Raw); err != nil {
			return err
		}
	}
	code := 0
	if text != "" {
		var wire string
		wire, code = lines(text)
		if err := c.putFor(st, wire); err != nil {
			return err
		}
	}
	if st.End != GoOn || code == 421 {
		return c.end(st)
	}
	return nil
}

func (c *session) plain(at At, usual string) error {
	_, err := c.answer(at, "", usual)
	return err
}

// end breaks the conversation off.
func (c *session) end(st *Step) error {
	if err := c.flush(); err != nil {
		return err
	}
	switch st.End {
	case Abort:
		if tcp, ok := c.conn.(interface{ SetLinger(sec int) error }); ok {
			tcp.SetLinger(0) //nolint:errcheck // then it is closed instead
		}
	case HalfClose:
		if tcp, ok := c.conn.(interface{ CloseWrite() error }); ok {
			tcp.CloseWrite() //nolint:errcheck // then it is closed already
		}
		discard(c.conn)
	case Hole:
		discard(c.conn)
	case Stall:
		// Nothing is read until the server is closed or the client has gone, which
		// only a look at the connection would tell.
		c.s.sleep(c.s.o.Idle)
	case Endless:
		for c.putFor(st, st.Raw) == nil && c.flush() == nil {
		}
	}
	return errOver
}

func (c *session) doHello(verb, args string) error {
	usual := c.offers().hello
	if strings.EqualFold(verb, "HELO") {
		usual, _, _ = strings.Cut(usual, "\n")
	}
	code, err := c.answer(Hello, verb, usual)
	if code == 250 {
		c.forget()
		c.hello, c.extended = args, !strings.EqualFold(verb, "HELO")
		c.lmtp = strings.EqualFold(verb, "LHLO")
	}
	return err
}

func (c *session) doMail(_, args string) error {
	if c.mail != nil || c.hello == "" {
		return c.say("503 5.5.1 bad sequence of commands")
	}
	rest, ok := cutPrefix(args, "FROM:")
	if !ok {
		return c.say("501 5.5.4 MAIL FROM:<address>")
	}
	m, err := smtp.ParseMail(rest, c.offered())
	if err != nil {
		return c.say(reply.Of(err).SMTP())
	}
	if c.s.o.Messages > 0 && c.messages >= c.s.o.Messages {
		c.say("421 4.7.0 that is enough for one connection") //nolint:errcheck // it is over
		return errOver
	}
	code, err := c.answer(Mail, m.Sender, "250 2.1.0 ok")
	if code == 250 {
		c.mail = &m
	}
	return err
}

// offered is what the client may use: nothing after HELO.
func (c *session) offered() smtp.Extensions {
	if !c.extended {
		return 0
	}
	return c.offers().extensions
}

func (c *session) offers() offered {
	if c.secure != nil {
		return c.s.secure
	}
	return c.s.plain
}

func cutPrefix(s, prefix string) (string, bool) {
	if len(s) < len(prefix) || !strings.EqualFold(s[:len(prefix)], prefix) {
		return s, false
	}
	return s[len(prefix):], true
}

func (c *session) doRcpt(_, args string) error {
	if c.mail == nil {
		return c.say("503 5.5.1 MAIL first")
	}
	rest, ok := cutPrefix(args, "TO:")
	if !ok {
		return c.say("501 5.5.4 RCPT TO:<address>")
	}
	r, err := smtp.ParseRcpt(rest, c.offered(), c.mail.UTF8)
	if err != nil {
		return c.say(reply.Of(err).SMTP())
	}
	if c.s.o.Recipients > 0 && len(c.rcpt) >= c.s.o.Recipients {
		return c.say("452 4.5.3 too many recipients")
	}
	if c.s.greylisted(c.peer.Addr().String(), c.mail.Sender, r.Address) {
		return c.say("451 4.7.1 greylisted, please try again later")
	}
	code, err := c.answer(Rcpt, r.Address, "250 2.1.5 ok")
	if code == 250 {
		c.rcpt = append(c.rcpt, r)
	}
	return err
}

func (c *session) doData(_, _ string) error {
	usual := "354 go ahead"
	if len(c.rcpt) == 0 {
		usual = "503 5.5.1 RCPT first"
	}
	code, err := c.answer(Data, "DATA", usual)
	if err != nil || code != 354 {
		return err
	}
	if c.mail == nil {
		c.mail = new(smtp.Mail) // a step said 354 all the same
	}
	if err := c.flush(); err != nil {
		return err
	}
	d := smtp.NewDotReader(c.r, true)
	return c.receive(d, d.Bare)
}

func (c *session) doBDAT(_, args string) error {
	size, last, err := smtp.ParseBDAT(args)
	if err != nil {
		c.say("501 5.5.4 BDAT size [LAST]") //nolint:errcheck // it is over
		return errOver
	}
	chunks := smtp.NewChunkReader(c.r, size, last, true, c.nextChunk)
	if len(c.rcpt) == 0 {
		if err := chunks.Skip(); err != nil {
			return err
		}
		return c.say("503 5.5.1 RCPT first")
	}
	if st := c.step(Data, "BDAT"); st != nil {
		if err := chunks.Skip(); err != nil {
			return err
		}
		c.forget()
		return c.act(st, st.Reply)
	}
	if err := c.flush(); err != nil {
		return err
	}
	return c.receive(chunks, chunks.Bare)
}

// nextChunk answers a chunk and reads the command for the next one.
func (c *session) nextChunk() (size int64, last bool, err error) {
	if err = c.say("250 2.0.0 more"); err != nil {
		return 0, false, err
	}
	if c.r.Buffered() == 0 {
		if err = c.flush(); err != nil {
			return 0, false, err
		}
	}
	line, err := c.r.Line(smtp.MaxCommand)
	if err != nil {
		return 0, false, err
	}
	args, ok := cutPrefix(string(line), "BDAT ")
	if !ok {
		return 0, false, fmt.Errorf("%q within a message", line)
	}
	return smtp.ParseBDAT(args)
}

// receive reads a message and answers it. It is kept before it is answered, so
// that who has the answer finds it.
func (c *session) receive(from io.Reader, bare func() bool) error {
	if st := c.step(Body, ""); st != nil {
		if _, err := io.CopyN(io.Discard, from, st.Bytes); err != nil {
			return err
		}
		if err := c.act(st, st.Reply); err != nil {
			return err
		}
	}
	m := &Message{
		Connection: c.id, Peer: c.peer, Hello: c.hello, Extended: c.extended, Mail: *c.mail, Recipients: c.rcpt, At: c.s.o.Now(),
		TLS: c.secure, User: c.user,
	}
	if err := c.read(m, from); err != nil {
		return err
	}
	m.Bare = bare()
	c.messages++
	c.forget()
	if c.lmtp {
		return c.answerEach(m)
	}
	st := c.step(Dot, "")
	text := choose(st, "250 2.0.0 ok "+strconv.FormatUint(c.id, 10)+"."+strconv.Itoa(c.messages))
	if text != "" {
		_, m.Answer = lines(text)
	}
	c.s.keep(m)
	if err := c.act(st, text); err != nil {
		return err
	}
	if st := c.step(After, ""); st != nil {
		return c.act(st, st.Reply)
	}
	return nil
}

// answerEach answers a message as LMTP does, a line for each recipient. It is kept
// with those whom it was taken for.
func (c *session) answerEach(m *Message) error {
	to := m.Recipients
	m.Recipients, m.Answer = nil, 250
	steps, texts := make([]*Step, len(to)), make([]string, len(to))
	for i, r := range to {
		steps[i] = c.step(Dot, r.Address)
		texts[i] = choose(steps[i], "250 2.1.5 ok "+strconv.FormatUint(c.id, 10)+"."+strconv.Itoa(c.messages))
		if code := steps[i].code(texts[i]); code/100 == 2 {
			m.Recipients = append(m.Recipients, r)
		}
	}
	c.s.keep(m)
	for i := range to {
		if err := c.act(steps[i], texts[i]); err != nil {
			return err
		}
	}
	if st := c.step(After, ""); st != nil {
		return c.act(st, st.Reply)
	}
	return nil
}

// read reads the content, and keeps it if it is to be kept.
func (c *session) read(m *Message, from io.Reader) error {
	scratch := c.s.scratch.Get().(*[8 << 10]byte)
	defer c.s.scratch.Put(scratch)
	for {
		n, err := from.Read(scratch[:])
		m.Size += int64(n)
		if c.s.o.Keep == KeepAll {
			m.Content = append(m.Content, scratch[:n]...)
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
