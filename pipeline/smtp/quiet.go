package smtp

import (
	"errors"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Quiet reports whether the server has neither said anything nor hung up since the
// last reply, as far as can be told without waiting. It is for a connection that
// nobody has used for a while.
func (c *Client) Quiet() bool {
	if !c.Usable() || c.r.Buffered() > 0 {
		return false
	}
	conn, ok := c.raw.(syscall.Conn)
	if !ok {
		return true
	}
	raw, err := conn.SyscallConn()
	if err != nil || c.raw.SetReadDeadline(time.Time{}) != nil {
		return false
	}
	var one [1]byte
	var peeked error
	err = raw.Read(func(fd uintptr) bool {
		_, _, peeked = unix.Recvfrom(int(fd), one[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		return true
	})
	return err == nil && errors.Is(peeked, unix.EAGAIN)
}
