package smtp

import (
	"net/netip"
	"strconv"
	"strings"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/reply"
	wire "github.com/postern-mta/postern/pipeline/smtp"
)

// told is what XCLIENT says of a client (Postfix's XCLIENT_README).
type told struct {
	addr       netip.Addr
	port       uint16
	name, helo string
	login      string
}

// attributes is the table of XCLIENT's attributes. One that is known to be
// unavailable has no value.
var attributes = map[string]func(t *told, value string) bool{
	"ADDR": func(t *told, v string) (ok bool) {
		if len(v) > 5 && strings.EqualFold(v[:5], "IPV6:") {
			v = v[5:]
		}
		a, err := netip.ParseAddr(v)
		if v == "" {
			return true
		}
		t.addr = a.Unmap()
		return err == nil && a.Zone() == ""
	},
	"PORT": func(t *told, v string) bool {
		if v == "" {
			return true
		}
		p, err := strconv.ParseUint(v, 10, 16)
		t.port = uint16(p)
		return err == nil
	},
	"NAME": func(t *told, v string) bool { t.name = v; return v == "" || isHelo([]byte(v)) },
	"HELO": func(t *told, v string) bool { t.helo = v; return v == "" || isHelo([]byte(v)) },
	"LOGIN": func(t *told, v string) bool {
		t.login = v
		return v == "" || isCredential(v) && reply.Clean(v, maxCredential) == v
	},
	"PROTO": func(_ *told, v string) bool {
		return v == "" || strings.EqualFold(v, "ESMTP") || strings.EqualFold(v, "SMTP")
	},
	"DESTADDR": func(*told, string) bool { return true },
	"DESTPORT": func(*told, string) bool { return true },
}

// xclient takes what a trusted client says of the client behind it. The session
// begins anew with the greeting.
func (n *session) xclient(args []byte) {
	if !within(n.srv.o.XClient, n.via) {
		n.bad(xclientDenied)
		return
	}
	var t told
	for field := range strings.FieldsSeq(string(args)) {
		key, value, ok := strings.Cut(field, "=")
		set := attributes[strings.ToUpper(key)]
		value, err := wire.DecodeXtext(value)
		if value == "[UNAVAILABLE]" || value == "[TEMPUNAVAIL]" {
			value = ""
		}
		if !ok || set == nil || err != nil || !set(&t, value) {
			n.bad(xclientSyntax)
			return
		}
	}
	if t.addr.IsValid() {
		n.peer = netip.AddrPortFrom(t.addr, t.port)
		if !n.admitted() {
			return
		}
	}
	tls := n.facts.TLS
	n.introduce()
	if t.name != "" {
		n.learnName(name{t.name, t.name, false})
	} else {
		n.learnName(n.findName(n.srv.ctx))
	}
	n.learn(func(s *pipeline.Session) { s.TLS, s.Helo = tls, t.helo })
	n.greet()
	if n.state == fresh && t.login != "" {
		n.learn(func(s *pipeline.Session) { s.User, s.Standing = t.login, pipeline.Authenticated })
		n.rejudge()
	}
}
