package smtp

import (
	"bufio"
	"time"

	"github.com/pires/go-proxyproto"
)

// proxyBuffer holds a PROXY header: version 1 is 107 bytes, version 2 as long as
// its addresses and whatever else the proxy tells.
const proxyBuffer = 4200

// proxyHeader reads the header with which a proxy's connections begin. It is
// not optional: a client of a proxy could else write one itself.
func (n *session) proxyHeader() bool {
	err := n.raw.SetReadDeadline(time.Now().Add(n.srv.o.Timeouts.Handshake))
	if err != nil {
		n.end("gone")
		return false
	}
	r := bufio.NewReaderSize(n.raw, proxyBuffer)
	h, err := proxyproto.Read(r)
	if err != nil {
		n.rec.err = err
		n.srv.o.Log.Warn("a proxy's connection does not begin with a PROXY header", "entrance", n.srv.o.Entrance, "peer", n.peer.Addr().String(), "error", err)
		n.end("no PROXY header")
		return false
	}
	if k := r.Buffered(); k > 0 {
		left, _ := r.Peek(k) //nolint:errcheck // it is buffered
		n.conn = &prefixed{Conn: n.conn, left: append([]byte(nil), left...)}
	}
	// LOCAL is the proxy itself, asking whether we live.
	if h.Command == proxyproto.PROXY {
		if p := addrPort(h.SourceAddr); p.IsValid() {
			n.peer = p
		}
	}
	return true
}
