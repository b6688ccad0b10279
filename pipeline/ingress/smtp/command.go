package smtp

import (
	"bytes"
	"strings"

	"github.com/postern-mta/postern/pipeline/reply"
	wire "github.com/postern-mta/postern/pipeline/smtp"
)

// state is how far a session has come.
type state uint8

// The states, the columns of the table of commands.
const (
	fresh   state = iota // nothing said yet, or nothing since STARTTLS
	ready                // EHLO, HELO or LHLO was said
	sender               // MAIL was taken
	rcpts                // a recipient was taken
	chunks               // between two chunks of a message
	refused              // refused in place of the greeting
	states
)

// rule is what a command may do in a state.
type rule uint8

const (
	never rule = iota // 503
	may
	ends  // it may, and a transaction ends with it
	empty // there is nobody to send to
)

// The rows of the table that several commands share.
//
//	fresh  ready  sender rcpts  chunks refused
var (
	always  = [states]rule{may, may, may, may, may, never}
	restart = [states]rule{may, may, ends, ends, ends, never}
	between = [states]rule{never, may, never, never, never, never}
	outside = [states]rule{may, may, never, never, never, never}
)

// want is how a command's arguments must be.
type want uint8

const (
	anything want = iota
	nothing
	something
	named // the client's name, before anything ends: RFC 5321 §4.1.4
)

// command is one row.
type command struct {
	in   [states]rule
	do   func(*session, []byte)
	args want
	// plain may be said before the TLS that the listener requires.
	plain bool
	// idle leads nowhere by itself; there is a limit of such.
	idle bool
	// only and not name the services that know it; none means all.
	only, not []Service
}

// commandTable is the table of commands. It is made once a server: handlers
// look into it, and a variable could not name them then.
func commandTable() map[string]*command {
	lmtp := []Service{LMTP}
	table := map[string]*command{
		"EHLO":     {in: restart, do: (*session).ehlo, args: named, plain: true, idle: true, not: lmtp},
		"HELO":     {in: restart, do: (*session).helo, args: named, plain: true, idle: true, not: lmtp},
		"LHLO":     {in: restart, do: (*session).ehlo, args: named, plain: true, idle: true, only: lmtp},
		"MAIL":     {in: between, do: (*session).mail, args: something},
		"RCPT":     {in: [states]rule{never, never, may, may, never, never}, do: (*session).rcpt, args: something},
		"DATA":     {in: [states]rule{never, never, empty, may, never, never}, do: (*session).data, args: nothing},
		"BDAT":     {in: [states]rule{may, may, may, may, may, never}, do: (*session).bdat},
		"RSET":     {in: restart, do: (*session).rset, args: nothing, idle: true},
		"NOOP":     {in: always, do: replies(saidNoop), plain: true, idle: true},
		"VRFY":     {in: always, do: replies(saidVrfy), args: something, idle: true},
		"HELP":     {in: always, do: replies(saidHelp), idle: true},
		"QUIT":     {in: [states]rule{may, may, ends, ends, ends, may}, do: (*session).quit, args: nothing, plain: true},
		"STARTTLS": {in: outside, do: (*session).startTLS, args: nothing, plain: true},
		"AUTH":     {in: between, do: (*session).auth, args: something},
		"XCLIENT":  {in: outside, do: (*session).xclient, args: something},
	}
	for _, name := range []string{"EXPN", "ETRN", "TURN", "ATRN", "SEND", "SOML", "SAML"} {
		table[name] = &command{in: always, do: refuses(notImplemented)}
	}
	for _, name := range []string{"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "PRI"} {
		table[name] = &command{in: [states]rule{may, may, may, may, may, may}, do: (*session).foreign, plain: true}
	}
	return table
}

func replies(line string) func(*session, []byte) {
	return func(n *session, _ []byte) { n.say(line) }
}

func refuses(r reply.Reply) func(*session, []byte) {
	return func(n *session, _ []byte) { n.bad(r) }
}

// maxVerb is the longest name of a command.
const maxVerb = 8

// lookup finds a line's command, nil if there is none.
func (n *session) lookup(line []byte) (c *command, args []byte) {
	verb := line
	if i := bytes.IndexByte(line, ' '); i >= 0 {
		verb, args = line[:i], bytes.Trim(line[i+1:], " \t")
	}
	if len(verb) > maxVerb {
		return nil, args
	}
	var name [maxVerb]byte
	for i, c := range verb {
		if c >= 'a' && c <= 'z' {
			c -= 'a' - 'A'
		}
		name[i] = c
	}
	c = n.srv.commands[string(name[:len(verb)])]
	if c != nil && !c.known(n.srv.o.Service) {
		c = nil
	}
	return c, args
}

func (c *command) known(v Service) bool {
	for _, not := range c.not {
		if not == v {
			return false
		}
	}
	for _, only := range c.only {
		if only != v {
			return false
		}
	}
	return true
}

// dispatch does what a line says.
func (n *session) dispatch(line []byte) {
	c, args := n.lookup(line)
	if n.transcript != nil {
		n.transcribe("C: ", n.masked(c, line))
	}
	switch {
	case c == nil && bytes.HasPrefix(line, []byte("SSH-")):
		n.foreign(nil)
	case c == nil && n.state == refused:
		n.bad(badSequence)
	case c == nil:
		n.bad(unknownCommand)
	case !c.plain && n.srv.o.TLSMode == TLSRequire && n.facts.TLS == "":
		n.drop(line)
		n.needTLS()
	case c.in[n.state] == never:
		n.drop(line)
		n.bad(n.sequence())
	case c.in[n.state] == empty:
		n.empty()
	case c.args == nothing && len(args) > 0:
		n.bad(noArguments)
	case c.args >= something && len(args) == 0:
		n.bad(needsArgument)
	case c.args == named && !isHelo(args):
		n.bad(badHelo)
	case c.in[n.state] == ends && n.state == chunks:
		// The message that is being read must end first.
		n.pending = append(n.pending[:0], line...)
	default:
		n.perform(c, args)
	}
}

func (n *session) perform(c *command, args []byte) {
	if c.idle {
		if n.idle++; n.idle > n.srv.o.Limits.Idle {
			n.hangUp("too many idle commands", tooManyIdle)
			return
		}
	}
	if c.in[n.state] == ends {
		n.abort("client")
	}
	c.do(n, args)
}

// sequence is the answer to a command out of its order.
func (n *session) sequence() reply.Reply {
	switch {
	case n.state != fresh:
		return badSequence
	case n.srv.o.Service == LMTP:
		return lhloFirst
	}
	return helloFirst
}

// empty answers DATA where no recipient was taken (RFC 5321 §3.3, RFC 2033
// §4.2).
func (n *session) empty() {
	if n.srv.o.Service == LMTP {
		n.bad(badSequence)
		return
	}
	n.answer(noRecipients)
}

// drop passes over the chunk behind a BDAT that is refused for its time.
func (n *session) drop(line []byte) {
	c, args := n.lookup(line)
	if c == nil || c != n.srv.commands["BDAT"] {
		return
	}
	if size, _, err := wire.ParseBDAT(string(args)); err != nil || !n.skipChunk(size) {
		n.hangUp("bad chunk", badChunk)
	}
}

// mechanisms are the names that a transcript shows; what else follows AUTH may
// be a password.
var mechanisms = map[string]bool{
	"PLAIN": true, "LOGIN": true, "CRAM-MD5": true, "DIGEST-MD5": true, "NTLM": true, "GSSAPI": true, "XOAUTH2": true,
	"OAUTHBEARER": true, "EXTERNAL": true, "ANONYMOUS": true, "SCRAM-SHA-1": true, "SCRAM-SHA-256": true,
}

// masked is a line as it may stand in a transcript. Of whatever looks like an
// AUTH, well-formed or not, the mechanism is shown; and a line behind one that
// was refused may be a response of a client that did not wait.
func (n *session) masked(c *command, line []byte) []byte {
	const verb = "AUTH"
	if len(line) < len(verb) || !bytes.EqualFold(line[:len(verb)], []byte(verb)) {
		if c == nil && n.exposed {
			return []byte("(secret, perhaps)")
		}
		n.exposed = false
		return line
	}
	n.exposed = true
	rest := bytes.TrimLeft(line[len(verb):], " \t")
	mechanism, response := rest, []byte(nil)
	if i := bytes.IndexAny(rest, " \t"); i >= 0 {
		mechanism, response = rest[:i], rest[i:]
	}
	shown := append([]byte(nil), line[:len(verb)]...)
	switch {
	case len(rest) == 0:
		return shown
	case !mechanisms[strings.ToUpper(string(mechanism))]:
		return append(shown, " (secret)"...)
	}
	shown = append(append(shown, ' '), mechanism...)
	if len(response) > 0 {
		shown = append(shown, " (secret)"...)
	}
	return shown
}

// foreign ends a connection on which somebody speaks another protocol.
func (n *session) foreign([]byte) { n.hangUp("not SMTP", notSMTP) }
