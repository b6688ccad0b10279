package smtp

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"

	wire "github.com/postern-mta/postern/pipeline/smtp"
)

// Transport is the protocol by which a Hop takes mail.
type Transport uint8

// The transports. Those from QMTP on need a Courier.
const (
	SMTP  Transport = iota
	SMTPS           // SMTP that begins with TLS (RFC 8314)
	LMTP            // RFC 2033
	// Discard is none: messages are taken, and are gone.
	Discard
	QMTP
	QMQP
)

// transports are their names, and their ports, 0 for the Exit's.
var transports = [...]struct {
	name string
	port uint16
}{SMTP: {"smtp", 0}, SMTPS: {"smtps", 465}, LMTP: {"lmtp", 24}, Discard: {"discard", 0}, QMTP: {"qmtp", 209}, QMQP: {"qmqp", 628}}

// String is the transport's name in routes.
func (t Transport) String() string {
	if int(t) < len(transports) {
		return transports[t].name
	}
	return "invalid"
}

// Hop is where mail for a domain goes in place of its MX. It is a value and
// compared with ==.
type Hop struct {
	Transport Transport
	// Host is a name, whose addresses are used, or an address, with or without
	// brackets. "" stands for the domain's MX, if there is no Socket either.
	Host string
	// Port is 0 for the transport's, which is Options.Port for SMTP.
	Port uint16
	// Socket is the path of a Unix socket, in place of Host and Port.
	Socket string
}

// IsMX reports whether a hop stands for the domain's MX.
func (h Hop) IsMX() bool { return h.Host == "" && h.Socket == "" && h.Transport != Discard }

// String is the hop as ParseHop reads it.
func (h Hop) String() string {
	where := h.Host
	if strings.Contains(where, ":") && !strings.HasPrefix(where, "[") {
		where = "[" + where + "]"
	}
	if h.Port != 0 {
		where += ":" + strconv.Itoa(int(h.Port))
	}
	switch {
	case h.Transport == Discard:
		return "discard:"
	case h.Socket != "":
		return h.Transport.String() + ":unix:" + h.Socket
	case h.Transport == SMTP:
		return where
	}
	return h.Transport.String() + "://" + where
}

// maxHop is the longest text of a hop in bytes.
const maxHop = 500

// ParseHop reads a hop: host, host:port, [address]:port, transport://host:port or
// transport:host, transport:unix:/path, or discard:. An IPv6 address may stand
// without brackets where there is no port. A text without a host is the MX, with a
// port or without.
func ParseHop(text string) (Hop, error) {
	var h Hop
	if len(text) > maxHop {
		return h, fmt.Errorf("it is longer than %d bytes", maxHop)
	}
	name, rest, found := strings.Cut(text, ":")
	known := -1
	for i := range transports {
		if found && strings.EqualFold(transports[i].name, name) {
			known = i
		}
	}
	switch {
	case known >= 0 && (rest == "" || !isNumber(rest)):
		h.Transport = Transport(known)
	case strings.Contains(text, "://"):
		return h, errors.New("there is no transport of that name: write smtp, smtps, lmtp, qmtp or qmqp")
	default:
		rest = text
	}
	if h.Transport == Discard {
		if rest != "" {
			return h, errors.New("discard goes nowhere, so nothing may stand behind its colon")
		}
		return h, nil
	}
	if path, ok := strings.CutPrefix(rest, "unix:"); ok && known >= 0 {
		if !filepath.IsAbs(path) || filepath.Clean(path) != path || len(path) > 100 || strings.ContainsFunc(path, func(r rune) bool { return r < ' ' || r == 0x7f }) {
			return h, errors.New("what stands behind unix: must be the absolute path of a Unix socket, of at most 100 bytes")
		}
		h.Socket = path
		return h, nil
	}
	if err := h.parseHost(strings.TrimPrefix(rest, "//")); err != nil {
		return Hop{}, err
	}
	if h.Host == "" && (h.Transport != SMTP || known >= 0) {
		return Hop{}, fmt.Errorf("%s needs a host", h.Transport)
	}
	return h, nil
}

// isNumber is true for the port in "smtp:25", where smtp is a host.
func isNumber(s string) bool {
	_, err := strconv.ParseUint(s, 10, 16)
	return err == nil
}

var errHop = errors.New("write host or host:port; an IPv6 address in brackets")

func (h *Hop) parseHost(text string) error {
	h.Host = text
	if host, port, err := net.SplitHostPort(text); err == nil {
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil || n == 0 {
			return errors.New("the port must be a number from 1 to 65535")
		}
		h.Host, h.Port = host, uint16(n)
	}
	if inner, ok := strings.CutPrefix(h.Host, "["); ok {
		if h.Host, ok = strings.CutSuffix(inner, "]"); !ok {
			return errHop
		}
	}
	if a, ok := wire.Literal("[" + h.Host + "]"); ok {
		h.Host = a.String()
		return nil
	}
	if a, err := netip.ParseAddr(h.Host); err == nil && a.Zone() == "" {
		return nil
	}
	if h.Host != "" && !isHostName(h.Host) {
		return errHop
	}
	return nil
}

// isHostName is true for what can be asked for in the DNS.
func isHostName(s string) bool {
	s = strings.TrimSuffix(s, ".")
	if s == "" || len(s) > 253 {
		return false
	}
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for i := range len(label) {
			if c := label[i]; c != '-' && c != '_' && (c < '0' || c > '9') && (c|0x20 < 'a' || c|0x20 > 'z') {
				return false
			}
		}
	}
	return true
}
