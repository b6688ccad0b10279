package smtp

import (
	"strings"
)

// received is the value of the trace field (RFC 5321 §4.4), with the cipher suite of
// TLS by its registered name (RFC 8314 §4.3) and the version, for which there is no
// clause, in a comment. What the client said of itself is believed nowhere in it.
func (n *session) received() string {
	s, t := n.facts, n.tx
	var b strings.Builder
	b.Grow(300)
	b.WriteString("from ")
	b.WriteString(safe(s.Helo))
	b.WriteString(" (")
	if s.PeerName != "" {
		b.WriteString(safe(s.PeerName))
		b.WriteByte(' ')
	} else if s.Peer.IsValid() {
		b.WriteString("unknown ")
	}
	switch a := s.Peer.Addr(); {
	case a.Is6():
		b.WriteString("[IPv6:" + a.WithZone("").String() + "]")
	case a.IsValid():
		b.WriteString("[" + a.String() + "]")
	default:
		b.WriteString("local")
	}
	b.WriteByte(')')
	version, cipher, _ := strings.Cut(s.TLS, " ")
	if version != "" {
		b.WriteString("\n\t(using " + version + ")")
	}
	b.WriteString("\n\tby " + n.srv.o.Hostname + " with " + n.protocol() + " id " + t.ID)
	if all := t.Envelope.Recipients; len(all) == 1 && plain(all[0].Address) {
		b.WriteString("\n\tfor <" + all[0].Address + ">")
	}
	if cipher != "" {
		b.WriteString("\n\ttls " + cipher)
	}
	b.WriteString("; ")
	b.WriteString(n.srv.o.Now().Format("Mon, 02 Jan 2006 15:04:05 -0700"))
	return b.String()
}

// protocol is the keyword of what was spoken (RFC 3848, RFC 6531 §4.3).
func (n *session) protocol() string {
	s := n.facts
	suffix := ""
	if s.TLS != "" {
		suffix = "S"
	}
	if s.User != "" {
		suffix += "A"
	}
	lmtp, utf8 := n.srv.o.Service == LMTP, n.tx.Envelope.UTF8
	switch {
	case lmtp && utf8:
		return "UTF8LMTP" + suffix
	case lmtp:
		return "LMTP" + suffix
	case utf8:
		return "UTF8SMTP" + suffix
	case n.esmtp:
		return "ESMTP" + suffix
	}
	return "SMTP"
}

// safe is a name as a trace field may have it: what stands in no domain and no
// address literal is a question mark (received.c of qmail).
func safe(name string) string {
	if name == "" {
		return "unknown"
	}
	return strings.Map(func(c rune) rune {
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.ContainsRune(".-_:[]", c) {
			return c
		}
		return '?'
	}, name)
}

// plain takes an address that may stand in a trace field as it is.
func plain(address string) bool {
	for i := 0; i < len(address); i++ {
		if c := address[i]; c <= ' ' || c > '~' || c == '<' || c == '>' || c == '(' || c == ')' || c == '"' || c == '\\' {
			return false
		}
	}
	return len(address) > 0 && len(address) < 500
}
