package smtp

import (
	"crypto/tls"
	"errors"
	"time"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/reply"
)

// startTLS answers STARTTLS (RFC 3207).
func (n *session) startTLS([]byte) {
	switch {
	case n.facts.TLS != "":
		n.bad(hasTLS)
	case n.srv.o.TLSMode == TLSOff || n.srv.o.TLSMode == TLSImplicit:
		n.bad(notImplemented)
	case !n.srv.tlsReady():
		n.answer(noTLSYet)
	case n.facts.User != "":
		n.bad(loggedIn)
	case n.in.Buffered() > 0:
		n.hangUp("spoke after STARTTLS", afterStartTLS)
	default:
		n.say(saidTLS)
		if n.flush() == nil && n.handshake() {
			n.in.Reset(source{n})
			n.hear()
			n.readmit()
		}
	}
}

// needTLS answers a command that must not be said in plain text.
func (n *session) needTLS() {
	if !n.srv.tlsReady() {
		n.answer(noTLSYet) // it is no fault of the client
		return
	}
	n.bad(needsTLS)
}

// tlsReady reports whether a handshake could succeed.
func (s *Server) tlsReady() bool { return s.o.TLSReady == nil || s.o.TLSReady() }

// errNoCertificate: TLS cannot be spoken yet.
var errNoCertificate = errors.New("there is no certificate yet")

// readmit asks what a stranger is to us now that there is TLS. Its standing may
// only rise; if it does, nothing counts that was held against the stranger.
func (n *session) readmit() {
	if n.facts.Standing != pipeline.Stranger {
		return
	}
	standing, env, err := n.askRelay()
	switch {
	case err != nil:
		n.rec.err = err
		r := reply.Of(err)
		if r.Class != reply.Permanent {
			r.Code = 421
		}
		n.hangUp("refused", r)
	case standing > pipeline.Stranger:
		n.become(standing, env)
		n.rejudge()
	}
}

// handshake makes TLS of the connection.
func (n *session) handshake() bool {
	c := tls.Server(n.conn, n.srv.o.TLS)
	err := n.conn.SetDeadline(time.Now().Add(n.srv.o.Timeouts.Handshake))
	if err == nil && n.srv.ctx.Err() != nil {
		err = errStopped
	}
	if err == nil && !n.srv.tlsReady() {
		err = errNoCertificate
	}
	if err == nil {
		err = c.Handshake()
	}
	if err != nil {
		n.rec.err = err
		n.end("TLS failed")
		return false
	}
	state := c.ConnectionState()
	n.conn = c
	n.learn(func(s *pipeline.Session) {
		s.TLS = tlsVersion(state.Version) + " " + tls.CipherSuiteName(state.CipherSuite)
		s.Helo = ""
	})
	n.transcribe("", []byte("("+n.facts.TLS+")"))
	return true
}

// tlsVersion is the version as it stands in a Received field, without a blank.
func tlsVersion(v uint16) string {
	switch v {
	case tls.VersionTLS13:
		return "TLSv1.3"
	case tls.VersionTLS12:
		return "TLSv1.2"
	case tls.VersionTLS11:
		return "TLSv1.1"
	case tls.VersionTLS10:
		return "TLSv1.0"
	}
	return "TLS"
}
