package milter

import (
	"net/netip"
	"strconv"
	"strings"

	gomilter "github.com/emersion/go-milter"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/envelope"
)

// subject is what macros are about.
type subject struct {
	f    *Filter
	s    *pipeline.Session
	tx   *pipeline.Transaction // nil before there is one
	rcpt string
	// messageID is the value of the field Message-ID.
	messageID string
}

// usual are the macros that a milter is given at a stage if it did not say which
// it wants: those of Sendmail's and Postfix's default configurations.
var usual = [macroStages][]string{
	gomilter.StageConnect: {
		"j", "_", "v", "{daemon_name}", "{daemon_addr}", "{if_name}", "{if_addr}",
		"{client_addr}", "{client_name}", "{client_port}", "{client_ptr}", "{client_resolve}",
	},
	gomilter.StageHelo:     {"{tls_version}", "{cipher}", "{cipher_bits}"},
	gomilter.StageMailFrom: {"i", "{auth_type}", "{auth_authen}", "{auth_author}", "{mail_mailer}", "{mail_host}", "{mail_addr}"},
	gomilter.StageRcptTo:   {"i", "{rcpt_mailer}", "{rcpt_host}", "{rcpt_addr}"},
	gomilter.StageData:     {"i"},
	gomilter.StageEOH:      {"i"},
	gomilter.StageEOM:      {"i", "{msg_id}"},
}

// values is the table of the macros: Sendmail's operations guide §5.2, Postfix's
// MILTER_README. What is "" is not sent.
var values = map[string]func(*subject) string{
	"j":                func(m *subject) string { return m.f.host },
	"_":                func(m *subject) string { return m.validated() },
	"v":                func(*subject) string { return "Postern" },
	"i":                func(m *subject) string { return m.id() },
	"{daemon_name}":    func(m *subject) string { return m.s.Entrance },
	"{daemon_addr}":    func(m *subject) string { return m.s.Env["TCPLOCALIP"] },
	"{daemon_port}":    func(m *subject) string { return m.s.Env["TCPLOCALPORT"] },
	"{if_name}":        func(m *subject) string { return m.s.Env["TCPLOCALHOST"] },
	"{if_addr}":        func(m *subject) string { return m.s.Env["TCPLOCALIP"] },
	"{client_addr}":    func(m *subject) string { return clientAddr(m.s) },
	"{client_name}":    func(m *subject) string { return clientName(m.s) },
	"{client_port}":    func(m *subject) string { return strconv.Itoa(int(m.s.Peer.Port())) },
	"{client_ptr}":     func(m *subject) string { return clientPTR(m.s) },
	"{client_resolve}": func(m *subject) string { return resolved(m.s) },
	"{tls_version}":    func(m *subject) string { return word(m.s.TLS, 0) },
	"{cipher}":         func(m *subject) string { return word(m.s.TLS, 1) },
	"{cipher_bits}":    func(m *subject) string { return cipherBits(word(m.s.TLS, 1)) },
	"{auth_type}":      func(m *subject) string { return m.ifUser(authType) },
	"{auth_authen}":    func(m *subject) string { return m.s.User },
	"{auth_author}":    func(m *subject) string { return m.s.User },
	"{mail_mailer}":    func(m *subject) string { return m.mailer(m.sender()) },
	"{mail_host}":      func(m *subject) string { return envelope.Domain(m.sender()) },
	"{mail_addr}":      func(m *subject) string { return m.sender() },
	"{rcpt_mailer}":    func(m *subject) string { return m.mailer(m.rcpt) },
	"{rcpt_host}":      func(m *subject) string { return envelope.Domain(m.rcpt) },
	"{rcpt_addr}":      func(m *subject) string { return m.rcpt },
	"{msg_id}":         func(m *subject) string { return m.messageID },
}

// authType is the macro {auth_type} of whoever has logged in: a session does not
// know by which mechanism, and milters ask only whether there was one.
const authType = "PLAIN"

// macros are the names and values that go before a command, as they are sent.
func (m *subject) macros(t *talk, stage gomilter.Stage) (b []byte) {
	names := t.macros[stage]
	if names == nil {
		names = usual[stage]
		if stage == gomilter.StageConnect {
			names = append(names[:len(names):len(names)], m.f.ownMacros...)
		}
	}
	for _, name := range names {
		if v := m.value(name); v != "" {
			b = append(append(append(append(b, clean(name)...), 0), clean(v)...), 0)
		}
	}
	return b
}

// value is a macro's value; the configuration's goes before our own.
func (m *subject) value(name string) string {
	key := canonical(name)
	if v, ok := m.f.o.Macros[strings.Trim(key, "{}")]; ok {
		return v
	}
	if get := values[key]; get != nil {
		return get(m)
	}
	return ""
}

// canonical is a macro's name as the table has it: with braces if it is longer
// than a letter.
func canonical(name string) string {
	bare := strings.Trim(name, "{}")
	if len(bare) == 1 {
		return bare
	}
	return "{" + bare + "}"
}

// maxValue bounds a value in bytes that we send in a command or a macro.
const maxValue = 2000

// clean makes a text fit between NULs.
func clean(s string) string {
	if len(s) > maxValue {
		s = s[:maxValue]
	}
	for i := range len(s) {
		if isControl(s[i]) {
			b := []byte(s)
			for j := i; j < len(b); j++ {
				if isControl(b[j]) {
					b[j] = '?'
				}
			}
			return string(b)
		}
	}
	return s
}

func isControl(c byte) bool { return c < ' ' || c == 0x7f }

func (m *subject) id() string {
	if m.tx == nil {
		return ""
	}
	return m.tx.ID
}

func (m *subject) sender() string {
	if m.tx == nil {
		return ""
	}
	return m.tx.Envelope.Sender
}

func (m *subject) ifUser(v string) string {
	if m.s.User == "" {
		return ""
	}
	return v
}

// mailer is how mail to an address leaves.
func (m *subject) mailer(address string) string {
	switch {
	case address == "":
		return ""
	case m.s.IsOurs(address):
		return "local"
	}
	return "esmtp"
}

// validated is who the client is, as far as we know: Sendmail's $_.
func (m *subject) validated() string {
	name, addr := clientName(m.s), clientAddr(m.s)
	if addr == "" || strings.HasPrefix(name, "[") {
		return name
	}
	return name + " [" + addr + "]"
}

// peer is the client's address. A local process has that of this host, as
// milters expect (Postfix's non_smtpd_milters).
func peer(s *pipeline.Session) (addr netip.Addr, ok bool) {
	addr = s.Peer.Addr().Unmap().WithZone("")
	if !addr.IsValid() && s.Standing == pipeline.Local {
		addr = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	return addr, addr.IsValid()
}

func clientAddr(s *pipeline.Session) string {
	if addr, ok := peer(s); ok {
		return addr.String()
	}
	return ""
}

// clientName is the client's confirmed name, else its address in brackets
// (xxfi_connect).
func clientName(s *pipeline.Session) string {
	addr, known := peer(s)
	switch {
	case s.PeerName != "":
		return s.PeerName
	case !s.Peer.IsValid() && s.Standing == pipeline.Local:
		return "localhost"
	case known:
		return "[" + addr.String() + "]"
	}
	return "unknown"
}

func clientPTR(s *pipeline.Session) string {
	if s.PeerClaim != "" {
		return s.PeerClaim
	}
	return s.PeerName
}

// resolved is whether the client's name is true.
func resolved(s *pipeline.Session) string {
	switch {
	case s.PeerName != "" || !s.Peer.IsValid() && s.Standing == pipeline.Local:
		return "OK"
	case s.PeerTrouble:
		return "TEMP"
	case s.PeerClaim != "":
		return "FORGED"
	}
	return "FAIL"
}

// helo is the client's name for itself; a local process that gave none is
// localhost.
func helo(s *pipeline.Session) string {
	if s.Helo == "" && s.Standing == pipeline.Local {
		return "localhost"
	}
	return s.Helo
}

// word is the nth word of a text.
func word(text string, n int) string {
	if words := strings.Fields(text); n < len(words) {
		return words[n]
	}
	return ""
}

// cipherBits is the strength of a cipher, which its name tells.
func cipherBits(cipher string) string {
	switch {
	case strings.Contains(cipher, "256"), strings.Contains(cipher, "CHACHA20"):
		return "256"
	case strings.Contains(cipher, "128"):
		return "128"
	case strings.Contains(cipher, "3DES"):
		return "168"
	}
	return ""
}
