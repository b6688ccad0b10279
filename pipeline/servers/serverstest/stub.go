// Package serverstest plays servers, and what they may do wrong, for tests of
// those who ask them.
package serverstest

import (
	"bufio"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Stub is a server that does as Play says.
type Stub struct {
	// Address is where it listens, as servers.New takes it.
	Address string
	// Answers counts the answers that were given in full.
	Answers atomic.Int64

	play     atomic.Pointer[func(*Conn)]
	listener net.Listener
	stopped  chan struct{}
	once     sync.Once
	running  sync.WaitGroup
	mu       sync.Mutex
	conns    map[net.Conn]bool
}

// Conn is a connection to a Stub.
type Conn struct {
	net.Conn
	// R reads what comes on the connection.
	R    *bufio.Reader
	Stub *Stub
}

// Start starts a stub that listens on a Unix socket, or with network "tcp" on a
// port of this host. It ends with the test.
func Start(t testing.TB, network string, play func(*Conn)) *Stub {
	t.Helper()
	address := "127.0.0.1:0"
	if network == "unix" {
		dir, err := os.MkdirTemp("", "stub") // the test's own may be too long
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.RemoveAll(dir) })
		address = filepath.Join(dir, "s")
	}
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	s := &Stub{Address: network + ":" + l.Addr().String(), listener: l, stopped: make(chan struct{}), conns: map[net.Conn]bool{}}
	s.Play(play)
	s.running.Go(s.accept)
	t.Cleanup(s.Stop)
	return s
}

// Play changes what the stub does with connections from now on.
func (s *Stub) Play(play func(*Conn)) { s.play.Store(&play) }

// Stop ends the stub and all its connections.
func (s *Stub) Stop() {
	s.once.Do(func() { close(s.stopped) })
	s.listener.Close()
	s.mu.Lock()
	for c := range s.conns {
		c.Close()
	}
	s.mu.Unlock()
	s.running.Wait()
}

func (s *Stub) accept() {
	for {
		c, err := s.listener.Accept()
		if err != nil {
			return
		}
		s.mu.Lock()
		s.conns[c] = true
		s.mu.Unlock()
		s.running.Go(func() {
			(*s.play.Load())(&Conn{c, bufio.NewReader(c), s})
			c.Close()
			s.mu.Lock()
			delete(s.conns, c)
			s.mu.Unlock()
		})
	}
}

// Say sends a text.
func (c *Conn) Say(text string) {
	if _, err := io.WriteString(c, text); err == nil {
		c.Stub.Answers.Add(1)
	}
}

// Hang reads what comes and says nothing, for longer than anybody waits.
func (c *Conn) Hang() {
	io.Copy(io.Discard, c.R) //nolint:errcheck // it ends in any case
	select {
	case <-c.Stub.stopped:
	case <-time.After(5 * time.Second):
	}
}

// Fault is something that a server does wrong.
type Fault struct {
	Name string
	// Slow is set where the asker waits until its time is over.
	Slow bool
	Play func(*Conn)
}

// Faults are what every server may do wrong that is sent a long message with
// request and gives one answer: request reads a question to its end, and reports
// whether it was one that is answered as a message is. The messages must be longer
// than what a Unix socket holds.
func Faults(request func(*Conn) bool, answer string) []Fault {
	saying := func(text string) func(*Conn) { return Saying(request, text) }
	half := answer[:len(answer)/2]
	return []Fault{
		{"closes at once", false, func(*Conn) {}},
		{"accepts and never reads", true, func(c *Conn) { time.Sleep(1500 * time.Millisecond) }},
		{"reads and never answers", true, func(c *Conn) { c.Hang() }},
		{"closes in mid-message", false, func(c *Conn) { io.CopyN(io.Discard, c.R, 100_000) }}, //nolint:errcheck // see Hang
		{"closes without an answer", false, saying("")},
		{"answers before the message came", false, func(c *Conn) {
			c.Say(answer)
			request(c)
		}},
		{"answers in mid-message and closes", false, func(c *Conn) {
			io.CopyN(io.Discard, c.R, 100_000) //nolint:errcheck // see Hang
			c.Say(answer)
		}},
		{"half an answer", false, saying(half)},
		{"half an answer, and hangs", true, func(c *Conn) {
			if request(c) {
				c.Say(half)
				c.Hang()
			}
		}},
		{"all but a byte", false, saying(answer[:len(answer)-1])},
		{"a byte more", false, saying(answer + "x")},
		{"two answers", false, saying(answer + answer)},
		{"garbage", false, saying("\x00\xff garbage\n\r\n\r\n")},
		{"an empty line", false, saying("\r\n\r\n")},
		{"another protocol", false, saying("220 mail.example.org ESMTP\r\n")},
		{"a NUL first", false, saying("\x00" + answer)},
		{"a line without end", false, func(c *Conn) {
			if request(c) {
				for line := strings.Repeat("x", 60_000); ; {
					if _, err := io.WriteString(c, line); err != nil {
						return
					}
				}
			}
		}},
		{"a header without end", false, func(c *Conn) {
			if request(c) {
				first, _, _ := strings.Cut(answer, "\r\n")
				io.WriteString(c, first+"\r\n") //nolint:errcheck // see Hang
				for line := strings.Repeat("X-Y: z\r\n", 6_000); ; {
					if _, err := io.WriteString(c, line); err != nil {
						return
					}
				}
			}
		}},
		{"a byte a time", true, func(c *Conn) {
			if request(c) {
				for _, b := range []byte(answer) {
					if _, err := c.Write([]byte{b}); err != nil {
						return
					}
					time.Sleep(100 * time.Millisecond)
				}
			}
		}},
	}
}

// Descriptors counts the descriptors that this process has open.
func Descriptors(t testing.TB) int {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}
