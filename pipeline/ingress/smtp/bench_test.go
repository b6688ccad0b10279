package smtp

import (
	"bufio"
	"bytes"
	"net"
	"strings"
	"testing"
	"time"
)

// BenchmarkMessage sends messages of 4 KiB over one connection, pipelined, to the
// server and, in the same run, to a floor: a goroutine that only looks for the
// end of what the client says and answers with the same lines. "floor" is how
// many times the floor's time the server takes.
func BenchmarkMessage(b *testing.B) {
	addr, sink, end := socket(b, func(o *Options) { o.Limits.Messages = 1 << 30 })
	defer end()
	sink.forget = true
	floor, stop := floorServer(b)
	defer stop()
	ours, theirs := dialBench(b, addr), dialBench(b, floor)
	defer ours.conn.Close()
	defer theirs.conn.Close()
	b.ReportAllocs()
	var taken, least time.Duration
	for b.Loop() {
		start := time.Now()
		ours.message(b)
		half := time.Now()
		theirs.message(b)
		taken, least = taken+half.Sub(start), least+time.Since(half)
	}
	b.ReportMetric(float64(taken)/float64(least), "floor")
	b.ReportMetric(float64(b.N)/taken.Seconds(), "msg/s")
}

var (
	benchEnvelope = []byte("MAIL FROM:<a@client.example>\r\nRCPT TO:<b@example.org>\r\nDATA\r\n")
	benchBody     = []byte("Subject: x\r\n\r\n" + strings.Repeat(strings.Repeat("x", 70)+"\r\n", 57) + ".\r\n")
)

// benchClient is a client that counts lines.
type benchClient struct {
	conn net.Conn
	in   *bufio.Reader
}

func dialBench(b *testing.B, addr string) *benchClient {
	b.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		b.Fatal(err)
	}
	c := &benchClient{conn, bufio.NewReader(conn)}
	c.answers(b, 1)
	c.say(b, []byte("HELO c\r\n"), 1)
	return c
}

func (c *benchClient) message(b *testing.B) {
	c.say(b, benchEnvelope, 3)
	c.say(b, benchBody, 1)
}

func (c *benchClient) say(b *testing.B, what []byte, answers int) {
	if _, err := c.conn.Write(what); err != nil {
		b.Fatal(err)
	}
	c.answers(b, answers)
}

func (c *benchClient) answers(b *testing.B, n int) {
	for range n {
		line, err := c.in.ReadSlice('\n')
		if err != nil || line[0] != '2' && line[0] != '3' {
			b.Fatalf("%q, %v", line, err)
		}
	}
}

// floorServer serves one connection.
func floorServer(b *testing.B) (addr string, stop func()) {
	b.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		turns := []struct{ end, answer string }{{"DATA\r\n", saidMail + saidRcpt + saidData}, {"\r\n.\r\n", "250 2.0.0 ok q1\r\n"}}
		buf := make([]byte, 16<<10)
		c.Write([]byte("220 floor\r\n")) //nolint:errcheck // the client would notice
		c.Read(buf)                      //nolint:errcheck // likewise
		c.Write([]byte("250 floor\r\n")) //nolint:errcheck // likewise
		for i, n := 0, 0; ; {
			k, err := c.Read(buf[n:])
			if n += k; err != nil {
				return
			}
			if bytes.HasSuffix(buf[:n], []byte(turns[i].end)) {
				c.Write([]byte(turns[i].answer)) //nolint:errcheck // likewise
				i, n = 1-i, 0
			}
		}
	}()
	return l.Addr().String(), func() { l.Close(); <-done }
}
