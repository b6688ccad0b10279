package smtp

import (
	"bufio"
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/message"
)

// vanishing is a point at which a client goes away: what it says until then, a
// line at a time, each when the answer before it has come.
type vanishing struct {
	name   string
	words  []string // the last may be said without an answer
	tls    bool     // it needs TLS
	silent bool     // the last words are not answered yet
	within string   // "chain" or "commit": it goes when the server is there
	stored int
}

// vanishings is the table of points.
func vanishings() []vanishing {
	const ehlo, mail, rcpt = "EHLO c\r\n", "MAIL FROM:<a@client.example>\r\n", "RCPT TO:<b@example.org>\r\n"
	large := strings.Repeat(strings.Repeat("x", 70)+"\r\n", 5000) // 360,000 bytes
	return []vanishing{
		{name: "at once"},
		{name: "in a command", words: []string{ehlo, "MAIL FR"}},
		{name: "after a bad command", words: []string{"FOO\r\n"}},
		{name: "after EHLO", words: []string{ehlo}},
		{name: "asked for a response", words: []string{ehlo, "AUTH LOGIN\r\n"}, tls: true},
		{name: "in a response", words: []string{ehlo, "AUTH LOGIN\r\n", "am9"}, tls: true},
		{name: "after a login", words: []string{ehlo, "AUTH PLAIN AGpvZQBzZWNyZXQ=\r\n"}, tls: true},
		{name: "after MAIL", words: []string{ehlo, mail}},
		{name: "after RCPT", words: []string{ehlo, mail, rcpt}},
		{name: "after a refused RCPT", words: []string{ehlo, mail, "RCPT TO:<x@elsewhere.example>\r\n"}},
		{name: "after RSET", words: []string{ehlo, mail, rcpt, "RSET\r\n"}},
		{name: "after DATA", words: []string{ehlo, mail, rcpt, "DATA\r\n"}},
		{name: "in the head", words: []string{ehlo, mail, rcpt, "DATA\r\n", "Subject: x"}},
		{name: "in the body", words: []string{ehlo, mail, rcpt, "DATA\r\n", "A: b\r\n\r\nx\r\n"}, silent: true},
		{name: "in a large body", words: []string{ehlo, mail, rcpt, "DATA\r\n", "A: b\r\n\r\n" + large}},
		{name: "in a body that was refused", words: []string{ehlo, mail, rcpt, "DATA\r\n", "A: b\r\n\r\nx\n" + large}},
		{name: "before the end's last byte", words: []string{ehlo, mail, rcpt, "DATA\r\n", "A: b\r\n\r\n" + large + ".\r"}},
		{name: "in BDAT's line", words: []string{ehlo, mail, rcpt, "BDAT 10 LAST"}},
		{name: "in a chunk", words: []string{ehlo, mail, rcpt, "BDAT 10 LAST\r\n12345"}},
		{name: "in a large chunk", words: []string{ehlo, mail, rcpt, "BDAT 100000000 LAST\r\n\r\n" + large}},
		{name: "between chunks", words: []string{ehlo, mail, rcpt, "BDAT 4\r\nA: b"}},
		{name: "between large chunks", words: []string{ehlo, mail, rcpt, "BDAT 360002\r\n\r\n" + large, "NOOP\r\n"}},
		{name: "in a chunk that nobody asked for", words: []string{ehlo, "BDAT 10 LAST\r\n12345"}},
		{name: "while the chain judges", words: []string{ehlo, mail, rcpt, "DATA\r\n", "A: b\r\n\r\n" + large + ".\r\n"}, within: "chain"},
		{name: "while the chain judges chunks", words: []string{ehlo, mail, rcpt, "BDAT 360002 LAST\r\n\r\n" + large}, within: "chain"},
		{name: "while the commit goes on", words: []string{ehlo, mail, rcpt, "DATA\r\n", "A: b\r\n\r\n" + large + ".\r\n"}, within: "commit", stored: 1},
		{name: "while the commit of chunks goes on", words: []string{ehlo, mail, rcpt, "BDAT 360002 LAST\r\n\r\n" + large}, within: "commit", stored: 1},
		{name: "after a message", words: []string{ehlo, mail, rcpt, "DATA\r\n", "A: b\r\n\r\n" + large + ".\r\n", "NOOP\r\n"}, stored: 1},
		{name: "after QUIT", words: []string{ehlo, "QUIT\r\n"}},
	}
}

// TestVanishing has clients go away at every point, by closing and by a reset,
// with and without TLS: a message is stored only if its commit had begun, and no
// session, goroutine, descriptor or spool file is left.
func TestVanishing(t *testing.T) {
	for _, v := range vanishings() {
		for _, secure := range []bool{false, true} {
			for _, reset := range []bool{false, true} {
				if v.tls && !secure {
					continue
				}
				name := v.name
				if secure {
					name += " under TLS"
				}
				if reset {
					name += " with a reset"
				}
				t.Run(name, func(t *testing.T) { v.run(t, secure, reset) })
			}
		}
	}
}

func (v vanishing) run(t *testing.T, secure, reset bool) {
	e := newEphemeral(t)
	var filter, commit *holdUp
	switch v.within {
	case "chain":
		filter = newHoldUp()
	case "commit":
		commit = newHoldUp()
	}
	e.serve(t, filter, commit)
	conn := e.dial(t)
	c := net.Conn(conn)
	in := bufio.NewReader(c)
	answer(t, in)
	if secure {
		for _, words := range []string{"EHLO c\r\n", "STARTTLS\r\n"} {
			say(t, c, words)
			answer(t, in)
		}
		c = tls.Client(c, &tls.Config{InsecureSkipVerify: true}) //nolint:gosec // it is our own
		in = bufio.NewReader(c)
	}
	for i, words := range v.words {
		say(t, c, words)
		if i < len(v.words)-1 || strings.HasSuffix(words, "\r\n") && len(words) < 100 && !v.silent {
			answer(t, in)
		}
	}
	for _, h := range []*holdUp{filter, commit} {
		if h != nil {
			<-h.there
		}
	}
	e.vanish(t, conn, c, reset)
	for _, h := range []*holdUp{filter, commit} {
		if h != nil {
			close(h.goOn)
		}
	}
	e.end(t, v.stored)
}

// The same within a handshake.
func TestVanishingInAHandshake(t *testing.T) {
	for _, words := range []string{"", "\x16", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "QUIT\r\n"} {
		for _, reset := range []bool{false, true} {
			e := newEphemeral(t)
			e.serve(t, nil, nil)
			conn := e.dial(t)
			in := bufio.NewReader(conn)
			answer(t, in)
			for _, s := range []string{"EHLO c\r\n", "STARTTLS\r\n"} {
				say(t, conn, s)
				answer(t, in)
			}
			if words != "" {
				say(t, conn, words)
			}
			e.vanish(t, conn, conn, reset)
			e.end(t, 0)
		}
	}
}

func say(t *testing.T, c net.Conn, words string) {
	t.Helper()
	if _, err := c.Write([]byte(words)); err != nil {
		t.Fatal(err)
	}
}

// answer reads one reply.
func answer(t *testing.T, in *bufio.Reader) {
	t.Helper()
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		if len(line) > 3 && line[3] == ' ' {
			return
		}
	}
}

// ephemeral is a server on a socket of which nothing may be left.
type ephemeral struct {
	dir         string
	descriptors int
	before      goleak.Option
	sink        *fakeSink
	chains      *pipeline.Generations
	server      *Server
	served      chan error
	listener    net.Listener
}

func newEphemeral(t *testing.T) *ephemeral {
	t.Helper()
	return &ephemeral{dir: t.TempDir(), descriptors: descriptors(t), before: goleak.IgnoreCurrent(), served: make(chan error, 1)}
}

func descriptors(t *testing.T) int {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}

func (e *ephemeral) serve(t *testing.T, filter, commit *holdUp) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	spool, err := message.OpenDirectory(e.dir)
	if err != nil {
		t.Fatal(err)
	}
	e.listener, e.sink = l, &fakeSink{hold: commit}
	e.chains = generations(t, pipeline.ChainOptions{}, &fakeFilter{stage: pipeline.AtMessage, hold: filter})
	e.server, err = New(Options{
		Listener: l, Hostname: "mx.example.org", Chains: e.chains, Sink: e.sink, Spool: spool, Auth: fakeAuth{},
		Log: slog.New(slog.DiscardHandler), Ours: func(d string) bool { return d == "example.org" },
		TLSMode: TLSOffer, TLS: &tls.Config{Certificates: []tls.Certificate{makeCertificate()}},
	})
	if err != nil {
		t.Fatal(err)
	}
	go func() { e.served <- e.server.Serve(context.Background()) }()
}

func (e *ephemeral) dial(t *testing.T) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp", e.listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	return c.(*net.TCPConn)
}

// vanish closes the connection. With a reset nobody says goodbye.
func (e *ephemeral) vanish(t *testing.T, raw *net.TCPConn, c net.Conn, reset bool) {
	t.Helper()
	if reset {
		if err := raw.SetLinger(0); err != nil {
			t.Fatal(err)
		}
		raw.Close()
		return
	}
	c.Close()
	raw.Close()
}

// end waits for the session's end, and looks at what is left.
func (e *ephemeral) end(t *testing.T, stored int) {
	t.Helper()
	for start := time.Now(); e.server.Sessions() > 0; time.Sleep(time.Millisecond) {
		if time.Since(start) > 30*time.Second {
			t.Fatal("the session does not end")
		}
	}
	if got := len(e.sink.taken()); got != stored {
		t.Errorf("%d messages were stored, want %d", got, stored)
	}
	left, err := os.ReadDir(e.dir)
	if err != nil || len(left) > 0 {
		t.Errorf("left in the spool: %v, %v", left, err)
	}
	if err := e.server.Shutdown(context.Background()); err != nil {
		t.Error(err)
	}
	if err := <-e.served; err != nil {
		t.Error(err)
	}
	if err := e.chains.Swap(nil); err != nil {
		t.Error(err)
	}
	goleak.VerifyNone(t, e.before)
	for start := time.Now(); ; time.Sleep(time.Millisecond) {
		k := descriptors(t)
		if k <= e.descriptors {
			return
		}
		if time.Since(start) > 10*time.Second {
			t.Fatalf("%d descriptors, %d before", k, e.descriptors)
		}
	}
}
