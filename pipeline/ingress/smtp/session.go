package smtp

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime/debug"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/reply"
	wire "github.com/postern-mta/postern/pipeline/smtp"
)

// session is one connection. It is one goroutine's, but for waiting.
type session struct {
	srv  *Server
	raw  net.Conn // as it was accepted
	conn net.Conn // raw, or what is spoken over it
	peer netip.AddrPort
	via  netip.Addr // who connected, if XCLIENT has put another into peer

	in     *wire.Reader
	out    *[]byte // answers that are not written yet
	small  []byte  // the Reader's own buffer while it has a large one
	large  *[largeBuffer]byte
	until  time.Time // for the command that is waited for
	over   time.Time // for the session
	broken error     // why nothing more can be read
	// reading is set while a message comes, and waiting while a command is waited
	// for between transactions.
	reading bool
	waiting atomic.Bool

	id      string
	state   state
	esmtp   bool
	offered wire.Extensions
	limit   int64 // of a message in bytes, 0 for none
	ended   string
	linger  bool

	// facts are what the chain knows; they are copied once it has them.
	facts *pipeline.Session
	given bool
	judging

	remarks []string // in front of the next answer

	tx      *transaction
	count   int    // of transactions
	pending []byte // the command that ended a message between two chunks
	chunk   chunk
	// dropping is set behind a chunk that was refused: the client may have sent
	// the others of its message already, which is no error of its own.
	dropping bool
	// exposed is set behind an AUTH, until a command of another name: what is no
	// command then may be a password.
	exposed bool

	// What was refused or led nowhere so far, for Limits.
	errors, badCommands, idle, unknown, logins int

	release    func() // from the Gate
	transcript interface {
		Write([]byte) (int, error)
		Close() error
	}
	rec record
}

func newSession(s *Server, c net.Conn) *session {
	n := &session{srv: s, raw: c, conn: c, peer: addrPort(c.RemoteAddr())}
	n.rec.start = s.o.Now()
	n.over = time.Now().Add(s.o.Timeouts.Session)
	return n
}

// run takes the session from its beginning to its end, and logs it.
func (n *session) run() {
	n.id = n.srv.o.Ident()
	n.in = wire.NewReader(source{n}, smallBuffer)
	defer n.close()
	defer func() {
		if p := recover(); p != nil {
			n.reading = false
			n.hangUp("panic", no(421, 3, 0, "temporary trouble here, please try again later"))
			n.srv.o.Log.Error("a client made the entrance fail; please report this", "session", n.id, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
		}
	}()
	if n.connect() {
		n.serve()
	}
}

// serve answers commands until the session ends.
func (n *session) serve() {
	if !n.first() {
		return
	}
	for n.ended == "" {
		if line, ok := n.readLine(n.srv.o.Limits.Command); ok {
			n.dispatch(line)
		}
		for len(n.pending) > 0 && n.ended == "" {
			line := append([]byte(nil), n.pending...)
			n.pending = n.pending[:0]
			n.dispatch(line)
		}
	}
}

// first looks at the first byte of a client: a line that begins with no
// printable character belongs to another protocol, and need not have an end.
func (n *session) first() bool {
	n.until = time.Now().Add(n.srv.o.Timeouts.Command)
	b, err := n.in.Peek()
	switch {
	case err != nil:
		n.lost(err)
	case b[0] < ' ' && b[0] != '\r' && b[0] != '\n' && b[0] != '\t' || b[0] > '~':
		n.transcribe("C: ", []byte("(not SMTP)"))
		n.foreign(nil)
	}
	return n.ended == ""
}

// close gives up all that is still held.
func (n *session) close() {
	n.strike()
	n.abort("connection")
	n.closeConn()
	n.stopJudging()
	n.endTranscript()
	if n.release != nil {
		n.release()
	}
	if n.large != nil {
		largeBuffers.Put(n.large)
		n.large = nil
	}
	n.log()
}

// strikes are the points against a stranger for what ended its session.
var strikes = map[string]int{
	"early talker": 5, "not SMTP": 10, "too many errors": 5, "too many refused recipients": 5, "too many idle commands": 2,
	"too many failed logins": 5, "line too long": 5, "bad chunk": 5, "spoke after STARTTLS": 10,
}

func (n *session) strike() {
	points := strikes[n.ended]
	if points > 0 && n.srv.o.Strike != nil && n.peer.IsValid() && n.facts.Standing == pipeline.Stranger {
		n.srv.o.Strike(n.peer.Addr(), points)
	}
}

// connect does what comes before the first command, and reports whether there
// may be one.
func (n *session) connect() bool {
	o := &n.srv.o
	if within(o.Proxies, n.peer.Addr()) && !n.proxyHeader() {
		return false
	}
	n.via = n.peer.Addr()
	if !n.admitted() {
		return false
	}
	n.introduce()
	n.openTranscript(n.facts)
	if o.TLSMode == TLSImplicit && !n.handshake() {
		return false
	}
	if !n.greetPause() {
		return false
	}
	n.greet()
	return n.ended == ""
}

// introduce makes the facts of a session that has said nothing.
func (n *session) introduce() {
	o := &n.srv.o
	n.facts = &pipeline.Session{
		ID: n.id, Entrance: o.Entrance, Protocol: "smtp", Start: n.rec.start, Peer: n.peer, UID: -1, Ours: o.Ours,
		AnswersEach: o.Service == LMTP,
	}
	if o.Service == LMTP {
		n.facts.Protocol = "lmtp"
	}
	n.given = false
	n.hear()
}

// hear is when the client is to be heard from the beginning.
func (n *session) hear() { n.state, n.esmtp, n.offered = fresh, false, 0 }

// learn changes the facts. Who has them keeps what it has.
func (n *session) learn(change func(*pipeline.Session)) {
	if n.given {
		next := *n.facts
		n.facts, n.given = &next, false
	}
	change(n.facts)
}

// show is the facts for somebody who may keep them.
func (n *session) show() *pipeline.Session {
	n.given = true
	return n.facts
}

// admitted asks the Gate, and says its no.
func (n *session) admitted() bool {
	if n.srv.o.Gate == nil || !n.peer.IsValid() {
		return true
	}
	release, err := n.srv.o.Gate.Admit(n.peer.Addr())
	if err == nil {
		if n.release != nil {
			n.release()
		}
		n.release = release
		return true
	}
	n.rec.err = err
	if n.srv.o.TLSMode == TLSImplicit && n.conn == n.raw {
		n.end("refused") // who speaks TLS cannot be told in plain text
		return false
	}
	n.hangUp("refused", reply.Of(err))
	return false
}

// greetPause waits for a client that cannot wait, and finds its name meanwhile.
func (n *session) greetPause() bool {
	pause := n.srv.o.GreetPause
	if pause <= 0 || within(n.srv.o.Exempt, n.peer.Addr()) {
		n.learnName(n.findName(n.srv.ctx))
		return true
	}
	found := make(chan name, 1)
	go func() { found <- n.findName(n.srv.ctx) }()
	var b [1]byte
	err := n.conn.SetReadDeadline(time.Now().Add(pause))
	k := 0
	if err == nil {
		k, err = n.conn.Read(b[:])
	}
	n.learnName(<-found)
	switch {
	case k > 0:
		n.hangUp("early talker", earlyTalker)
	case n.srv.stopping.Load():
		n.hangUp("stopping", stopping)
	case !isTimeout(err):
		n.end("gone")
	}
	return n.ended == ""
}

// name is what the DNS calls a client.
type name struct {
	confirmed, claimed string
	trouble            bool
}

// findName asks for the client's name, within its time.
func (n *session) findName(ctx context.Context) name {
	if n.srv.o.Names == nil || !n.peer.IsValid() {
		return name{}
	}
	ctx, cancel := context.WithTimeout(ctx, n.srv.o.Timeouts.Names)
	defer cancel()
	confirmed, claimed, err := n.srv.o.Names.Names(ctx, n.peer.Addr())
	return name{confirmed, claimed, err != nil}
}

func (n *session) learnName(f name) {
	n.learn(func(s *pipeline.Session) { s.PeerName, s.PeerClaim, s.PeerTrouble = f.confirmed, f.claimed, f.trouble })
}

// greet finds out what the client is to us, has it judged, and greets it or
// says why not.
func (n *session) greet() {
	o := &n.srv.o
	standing, env, err := n.askRelay()
	if err != nil {
		n.rec.err = err
		n.refuse(reply.Of(err))
		return
	}
	n.become(standing, env)
	if err := n.startJudging(); err != nil {
		n.rec.err = err
		o.Log.Error("a connection is refused", "session", n.id, "entrance", o.Entrance, "error", err)
		n.hangUp("refused", noConfigToGive)
		return
	}
	f, told := n.judgeConnect()
	n.remarks = f.Remarks
	if told {
		n.hangingUp(f.HangUp, func() { n.refuse(f.Reply) })
		return
	}
	n.say(n.srv.greeting)
}

// askRelay asks what the client is to us.
func (n *session) askRelay() (pipeline.Standing, map[string]string, error) {
	ctx, cancel := context.WithTimeoutCause(n.srv.ctx, n.srv.o.Timeouts.Judge, errSlow)
	defer cancel()
	return n.srv.o.Relay.Admit(ctx, n.show())
}

// become is what the Relay's answer makes of the session.
func (n *session) become(standing pipeline.Standing, env map[string]string) {
	n.learn(func(s *pipeline.Session) { s.Standing, s.Env = standing, env })
	n.limit = n.srv.o.Limits.Message
	if size, err := strconv.ParseInt(env["DATABYTES"], 10, 64); err == nil && size >= 0 {
		n.limit = size
	}
}

// refuse says no in place of the greeting. A client that is refused for good
// may say QUIT (RFC 5321 §3.1); the codes of that answer are 554 and 421.
func (n *session) refuse(r reply.Reply) {
	if r.Class != reply.Permanent {
		r.Code = 421
		n.hangUp("refused", r)
		return
	}
	if n.ended != "" {
		return
	}
	r.Code = 554
	n.put(r)
	n.rec.last, n.state = r, refused
	n.rec.refusedGreeting = true
}

// greeting is the line of the greeting.
func (o *Options) greeting() string {
	text := reply.Clean(o.Greeting, maxName)
	if text == "" {
		text = "ESMTP"
		if o.Service == LMTP {
			text = "LMTP"
		}
	}
	return "220 " + o.Hostname + " " + text + "\r\n"
}

// maxName is the longest host name in bytes (RFC 5321 §4.5.3.1.2).
const maxName = 255

// answer answers a command with a reply, after a pause if the client has been
// refused often.
func (n *session) answer(r reply.Reply) {
	if n.ended != "" {
		return
	}
	if r.Class != reply.Success {
		n.errors++
		o := &n.srv.o
		if o.Tarpit > 0 && n.errors >= o.TarpitAfter && n.facts.Standing == pipeline.Stranger && !within(o.Exempt, n.peer.Addr()) {
			n.flush() //nolint:errcheck // the session ends by itself then
			n.sleep(o.Tarpit)
		}
	}
	n.put(r)
	n.rec.last = r
}

func (n *session) sleep(d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-n.srv.stop:
	}
}

// bad answers a command that is none, and ends the session after too many.
func (n *session) bad(r reply.Reply) {
	if n.badCommands++; n.badCommands > n.srv.o.Limits.BadCommands {
		n.hangUp("too many errors", tooManyBad)
		return
	}
	n.answer(r)
}

// isTimeout reports whether a deadline has passed.
func isTimeout(err error) bool {
	var t net.Error
	return errors.As(err, &t) && t.Timeout()
}
