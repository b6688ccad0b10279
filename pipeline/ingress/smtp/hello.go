package smtp

import (
	"strconv"

	"github.com/postern-mta/postern/pipeline"
	wire "github.com/postern-mta/postern/pipeline/smtp"
)

// ehlo answers EHLO and LHLO.
func (n *session) ehlo(args []byte) {
	if !n.hello(args) {
		return
	}
	n.esmtp, n.offered = true, n.extensions()
	b := n.begin()
	was := len(*b)
	*b = n.capabilities(*b)
	n.said(len(*b) - was)
}

// helo answers HELO, which offers nothing.
func (n *session) helo(args []byte) {
	if n.hello(args) {
		n.esmtp, n.offered = false, 0
		n.say("250 " + n.srv.o.Hostname + "\r\n")
	}
}

// hello takes the client's name and has it judged.
func (n *session) hello(args []byte) bool {
	n.learn(func(s *pipeline.Session) { s.Helo = string(args) })
	f, told := n.judgeHelo()
	if told {
		n.hear()
		n.remarks = f.Remarks // behind EHLO they would be taken for extensions
		n.hangingUp(f.HangUp, func() { n.refusedEarly(f) })
		return false
	}
	n.state = ready
	return true
}

// isHelo takes what may be written down. Names that are no names are common and
// for filters to judge.
func isHelo(name []byte) bool {
	for _, c := range name {
		if c <= ' ' || c > '~' {
			return false
		}
	}
	return len(name) > 0 && len(name) <= maxName
}

// refusedEarly answers with a verdict from before MAIL.
func (n *session) refusedEarly(f pipeline.Fate) {
	n.rec.filter, n.rec.reason = f.Filter, f.Reason
	n.answer(f.Reply)
}

// extensions are what is offered now.
func (n *session) extensions() wire.Extensions {
	e := wire.Pipelining | wire.SizeLimit | wire.EightBit | wire.UTF8 | wire.Chunking | wire.DSN | wire.StatusCodes | wire.Limits
	if n.offersTLS() {
		e |= wire.StartTLS
	}
	if n.offersAuth() {
		e |= wire.Auth
	}
	if n.srv.o.RequireTLS && n.facts.TLS != "" {
		e |= wire.RequireTLS
	}
	return e
}

func (n *session) offersTLS() bool {
	m := n.srv.o.TLSMode
	return (m == TLSOffer || m == TLSRequire) && n.facts.TLS == "" && n.srv.tlsReady()
}

func (n *session) offersAuth() bool {
	return n.srv.o.Auth != nil && (n.facts.TLS != "" || n.srv.o.AuthPlain)
}

// capabilities appends the answer to EHLO.
func (n *session) capabilities(b []byte) []byte {
	o := &n.srv.o
	b = append(b, "250-"...)
	b = append(b, o.Hostname...)
	b = append(b, "\r\n250-PIPELINING\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n250-CHUNKING\r\n250-DSN\r\n"...)
	for _, c := range [...]struct {
		offer bool
		line  string
	}{
		{n.offered.Has(wire.StartTLS), "250-STARTTLS\r\n"},
		{n.offered.Has(wire.Auth), "250-AUTH PLAIN LOGIN\r\n"},
		{n.offered.Has(wire.RequireTLS), "250-REQUIRETLS\r\n"},
		{within(o.XClient, n.via), "250-XCLIENT NAME ADDR PORT PROTO HELO LOGIN\r\n"},
	} {
		if c.offer {
			b = append(b, c.line...)
		}
	}
	b = append(b, "250-SIZE "...) // 0 is no limit (RFC 1870 §4)
	b = strconv.AppendInt(b, n.limit, 10)
	b = append(b, "\r\n250-LIMITS RCPTMAX="...)
	b = strconv.AppendInt(b, int64(o.Limits.Recipients), 10)
	if o.Limits.Messages >= 0 {
		b = append(b, " MAILMAX="...)
		b = strconv.AppendInt(b, int64(o.Limits.Messages), 10)
	}
	return append(b, "\r\n250 ENHANCEDSTATUSCODES\r\n"...)
}

func (n *session) quit([]byte) {
	n.say(saidQuit)
	n.end("quit")
}

func (n *session) rset([]byte) {
	n.say(saidReset)
}
