package servers

import (
	"context"
	"errors"
	"net"
	"strings"
	"syscall"
	"time"
)

// dialTime bounds how long a connection may take to come about.
const dialTime = 3 * time.Second

// Conn is a connection to a server for one job. Every wait on it ends with the
// context that it was opened under. Close must end it.
type Conn struct {
	net.Conn
	stop func() bool
}

// Dial opens a connection to the server.
func (s *Server) Dial(ctx context.Context) (*Conn, error) {
	d := net.Dialer{Timeout: dialTime}
	c, err := d.DialContext(ctx, s.Network, s.Address)
	if err != nil {
		return nil, err
	}
	if at, ok := ctx.Deadline(); ok {
		if err := c.SetDeadline(at); err != nil {
			c.Close()
			return nil, err
		}
	}
	return &Conn{c, context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })}, nil //nolint:errcheck // it is closed then
}

// Close ends the connection.
func (c *Conn) Close() error {
	c.stop()
	return c.Conn.Close()
}

// CloseWrite tells the server that nothing more comes.
func (c *Conn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}

// Early reports whether the server has sent something already. It sees what is
// there at this moment: an answer that comes while the last bytes are on their
// way is the same as one behind them.
func (c *Conn) Early() bool {
	sc, ok := c.Conn.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return false
	}
	n := 0
	err = raw.Read(func(fd uintptr) bool {
		var b [1]byte
		n, _, _ = syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		return true
	})
	return err == nil && n > 0
}

// parse reads "unix:PATH" or "tcp:HOST:PORT", with or without "//" behind the
// first colon.
func parse(s string) (network, address string, err error) {
	network, address, _ = strings.Cut(s, ":")
	address = strings.TrimPrefix(address, "//")
	plain := func(c rune) bool { return c <= ' ' || c == 0x7f }
	switch {
	case strings.ContainsFunc(address, plain):
	case network == "unix" && strings.HasPrefix(address, "/") && len(address) < 108:
		return network, address, nil
	case network == "tcp":
		host, port, err := net.SplitHostPort(address)
		if err == nil && host != "" && port != "" && len(address) < 300 {
			return network, address, nil
		}
	}
	return "", "", errors.New("write unix:/path/of/socket or tcp:host:port")
}
