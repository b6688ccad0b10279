package smtptest

import (
	"crypto/tls"
	"net"
)

func (c *session) doStartTLS(_, _ string) error {
	usual := "220 2.0.0 go ahead"
	if c.s.o.TLS == nil || c.secure != nil {
		usual = "503 5.5.1 no TLS now"
	}
	code, err := c.answer(StartTLS, "", usual)
	if err != nil || code != 220 {
		return err
	}
	if err := c.flush(); err != nil {
		return err
	}
	c.hello, c.extended = "", false
	c.forget()
	return c.handshake()
}

// handshake makes TLS of the connection, or what a step has in its place.
func (c *session) handshake() error {
	conn := net.Conn(c.conn)
	st := c.step(Handshake, "")
	if st != nil {
		if st.Bytes == 0 {
			// The client speaks first; what came before would be plain text.
			if _, err := c.r.Peek(); err != nil {
				return err
			}
			return c.act(st, "")
		}
		conn = &narrow{Conn: c.conn, left: st.Bytes}
	}
	secure := tls.Server(conn, c.s.o.TLS)
	if err := secure.Handshake(); err != nil {
		if st != nil {
			return c.act(st, "")
		}
		return err
	}
	state := secure.ConnectionState()
	c.secure = &state
	c.r.Reset(secure)
	c.w.Reset(secure)
	return nil
}

// narrow is a connection that can carry only so many bytes more, and says nothing
// of it.
type narrow struct {
	net.Conn
	left int64
}

func (n *narrow) Write(p []byte) (int, error) {
	part := p[:min(int64(len(p)), n.left)]
	k, err := n.Conn.Write(part)
	n.left -= int64(k)
	if err == nil && len(part) < len(p) {
		err = net.ErrClosed
	}
	return k, err
}
