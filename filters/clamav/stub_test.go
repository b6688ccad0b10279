package clamav

import (
	"context"
	"encoding/binary"
	"io"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/filtertest"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/servers/serverstest"
	"github.com/postern-mta/postern/pipeline/worker"
)

func TestMain(m *testing.M) {
	worker.Main(testJobs())
	goleak.VerifyTestMain(m)
}

// here does jobs in this process.
type here struct{}

// Do does a job, with temporary space in memory.
func (here) Do(ctx context.Context, r worker.Request) ([]byte, error) {
	scratch := worker.NewScratch(nil, 64<<20)
	defer scratch.Reset() //nolint:errcheck // it is in memory
	b, err := Jobs()[r.Job](ctx, r.Args, io.NewSectionReader(r.Body, 0, r.Size), r.Size, scratch)
	if err == nil && r.Decode != nil {
		err = r.Decode(b)
	}
	return b, err
}

// stub plays clamd: it answers as its play says, and finds "EICAR" in a stream's
// raw bytes when it is honest.
type stub struct {
	*serverstest.Stub
	scans atomic.Int64 // streams that came whole
	open  atomic.Int64 // connections that run, most holds the most there were
	most  atomic.Int64
}

// stubConn is a connection to a stub.
type stubConn struct {
	*serverstest.Conn
	stub *stub
}

func newStub(t testing.TB, play func(*stubConn)) *stub    { return serve(t, "unix", play) }
func newStubTCP(t testing.TB, play func(*stubConn)) *stub { return serve(t, "tcp", play) }

func serve(t testing.TB, network string, play func(*stubConn)) *stub {
	s := &stub{}
	s.Stub = serverstest.Start(t, network, s.counted(play))
	return s
}

// plays changes what the stub does with connections from now on.
func (s *stub) plays(play func(*stubConn)) { s.Play(s.counted(play)) }

// counted counts the connections that a play has at a time.
func (s *stub) counted(play func(*stubConn)) func(*serverstest.Conn) {
	return func(c *serverstest.Conn) {
		n := s.open.Add(1)
		defer s.open.Add(-1)
		for most := s.most.Load(); n > most && !s.most.CompareAndSwap(most, n); most = s.most.Load() {
		}
		play(&stubConn{c, s})
	}
}

// command reads a command; PING and VERSION it answers by itself.
func (c *stubConn) command() bool {
	line, err := c.R.ReadString(0)
	switch {
	case err != nil:
		return false
	case line == "zPING\x00":
		io.WriteString(c, "PONG\x00")
		return false
	case line == "zVERSION\x00":
		io.WriteString(c, "ClamAV stub\x00")
		return false
	}
	return line == inStream
}

// stream reads up to limit bytes of a stream; whole says whether its end came.
func (c *stubConn) stream(limit int) (content []byte, whole bool) {
	for len(content) < limit {
		var n [4]byte
		if _, err := io.ReadFull(c.R, n[:]); err != nil {
			return content, false
		}
		size := binary.BigEndian.Uint32(n[:])
		if size == 0 {
			c.stub.scans.Add(1)
			return content, true
		}
		b := make([]byte, size)
		if _, err := io.ReadFull(c.R, b); err != nil {
			return content, false
		}
		content = append(content, b...)
	}
	return content, false
}

// honest is what clamd does.
func honest(c *stubConn) {
	if !c.command() {
		return
	}
	content, whole := c.stream(1 << 30)
	switch {
	case !whole:
	case strings.Contains(string(content), "EICAR"):
		io.WriteString(c, "stream: Eicar-Test FOUND\x00")
	default:
		io.WriteString(c, "stream: OK\x00")
	}
}

// saying answers a stream with a text.
func saying(text string) func(*stubConn) {
	return func(c *stubConn) {
		if c.command() {
			if _, whole := c.stream(1 << 30); whole {
				io.WriteString(c, text)
			}
		}
	}
}

// hang waits until the other side closes.
func (c *stubConn) hang() { io.Copy(io.Discard, c.R) }

func newFilter(t testing.TB, config string, addresses ...string) *Filter {
	t.Helper()
	env := pipeline.Env{Log: slog.New(slog.DiscardHandler), Workers: here{}}
	f, err := Kind().New(env, filtertest.Decode("address = [\""+strings.Join(addresses, `", "`)+"\"]\n"+config))
	if err != nil {
		t.Fatal(err)
	}
	return f.(*Filter)
}

func transaction() *pipeline.Transaction {
	return &pipeline.Transaction{Session: filtertest.Stranger(), Envelope: envelope.To("a@example.net", "r@example.org"), Active: []int{0}}
}

// judge has a filter judge a message, in some seconds.
func judge(f *Filter, text string, within time.Duration) (pipeline.Verdict, error) {
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	return f.Message(ctx, transaction(), message.FromString(text))
}

// must is the verdict of a filter that does not fail.
func must(t testing.TB, f *Filter, text string) pipeline.Verdict {
	t.Helper()
	v, err := judge(f, text, 20*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	return v
}
