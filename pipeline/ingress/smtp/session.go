package smtp

import (
	"net"
	"net/netip"
	"time"

	"github.com/postern-mta/postern/pipeline/reply"
)

const maxName = 255

type say reply.Reply

func (r say) line() string { return reply.Reply(r).SMTP() + "\r\n" }

var (
	tooBusy = say(reply.Make(421, reply.Enhanced{Subject: 3, Detail: 2}, "too many connections here, please try again later"))
	noRelay = reply.Make(550, reply.Enhanced{Subject: 7, Detail: 1}, "we do not relay mail for you")
)

type command struct{}

func commandTable() map[string]*command { return nil }

type session struct {
	srv  *Server
	raw  net.Conn
	peer netip.AddrPort
}

func newSession(s *Server, c net.Conn) *session { return &session{srv: s, raw: c} }

func (n *session) wake() { n.raw.SetReadDeadline(time.Unix(1, 0)) } //nolint:errcheck // the connection may be closed by now

func (n *session) run() {
	defer n.raw.Close()
	n.raw.Write([]byte(tooBusy.line())) //nolint:errcheck // a courtesy
}

func isPostmaster(string) bool { return false }

func (o *Options) greeting() string { return o.Hostname + " " + o.Greeting }
