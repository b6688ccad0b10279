package smtp

import (
	"context"
	"crypto/tls"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/message"
)

func TestOptionsAreChecked(t *testing.T) {
	good := func() Options {
		return Options{Listener: newPipeListener(), Hostname: "mx.example.org", Chains: new(pipeline.Generations), Sink: new(fakeSink)}
	}
	keep := message.Keep
	for want, spoil := range map[string]func(*Options){
		"":                        func(*Options) {},
		"Listener is missing":     func(o *Options) { o.Listener = nil },
		"Chains is missing":       func(o *Options) { o.Chains = nil },
		"Sink is missing":         func(o *Options) { o.Sink = nil },
		"no host name":            func(o *Options) { o.Hostname = "mx\r\n220 x" },
		"unknown service":         func(o *Options) { o.Service = 9 },
		"needs a certificate":     func(o *Options) { o.TLSMode = TLSOffer },
		"choose refuse or repair": func(o *Options) { o.Lines = &keep },
	} {
		o := good()
		spoil(&o)
		s, err := New(o)
		if want == "" && err == nil {
			if err := s.Shutdown(context.Background()); err != nil {
				t.Error(err)
			}
			continue
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", want, err)
		}
	}
}

func TestWords(t *testing.T) {
	for v := MX; v <= LMTP; v++ {
		if got, ok := ParseService(v.String()); !ok || got != v {
			t.Error(v)
		}
	}
	for m := TLSOff; m <= TLSImplicit; m++ {
		if got, ok := ParseTLSMode(m.String()); !ok || got != m {
			t.Error(m)
		}
	}
	_, service := ParseService("pop")
	_, mode := ParseTLSMode("maybe")
	if service || mode || Service(9).String() != "invalid" || TLSMode(9).String() != "invalid" {
		t.Error("unknown words")
	}
}

// running is a server in a bubble of time.
func running(t *testing.T, st *stage) (server *Server, end func()) {
	t.Helper()
	server, err := New(st.o)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(context.Background()) }()
	return server, func() { (&dialogue{}).end(t, st, server, served) }
}

func readAll(t *testing.T, c net.Conn) <-chan string {
	t.Helper()
	all := make(chan string, 1)
	go func() {
		b, _ := io.ReadAll(c) //nolint:errcheck // what came counts
		all <- string(b)
	}()
	return all
}

func TestTooManySessions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := newStage(t, nil)
		st.o.Limits.Sessions = 2
		server, end := running(t, st)
		var conns []net.Conn
		for range 2 {
			c := st.listener.dial(t, st.peer)
			readAll(t, c)
			conns = append(conns, c)
		}
		synctest.Wait()
		third := st.listener.dial(t, st.peer)
		if got := <-readAll(t, third); got != "421 4.3.2 too many connections here, please try again later\r\n" || server.Sessions() != 2 {
			t.Errorf("%q, %d sessions", got, server.Sessions())
		}
		conns[0].Close()
		synctest.Wait()
		fourth := st.listener.dial(t, st.peer)
		b := make([]byte, 100)
		if k, err := fourth.Read(b); err != nil || !strings.HasPrefix(string(b[:k]), "220 ") {
			t.Errorf("%q, %v", b[:k], err)
		}
		fourth.Close()
		conns[1].Close()
		end()
		if !strings.Contains(st.log.String(), `why="too many sessions"`) {
			t.Error(st.log.String())
		}
	})
}

// Shutdown gives up what does not end in its time: it hears 421, and nothing is
// stored.
func TestShutdownGivesUp(t *testing.T) {
	for _, where := range []string{"in a message", "in the chain", "in the commit"} {
		t.Run(where, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var options []setting
				switch where {
				case "in the chain":
					options = []setting{{"filter", "message continue after 1h"}}
				case "in the commit":
					options = []setting{{"slowsink", "1h"}}
				}
				st := newStage(t, options)
				server, end := running(t, st)
				c := st.listener.dial(t, st.peer)
				all := readAll(t, c)
				text := "EHLO c\r\nMAIL FROM:<a@client.example>\r\nRCPT TO:<b@example.org>\r\nDATA\r\nA: b\r\n"
				if where != "in a message" {
					text += ".\r\n"
				}
				if _, err := c.Write([]byte(text)); err != nil {
					t.Fatal(err)
				}
				synctest.Wait()
				ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
				defer cancel()
				if err := server.Shutdown(ctx); err != nil {
					t.Error(err)
				}
				said := <-all
				if len(st.sink.taken()) != 0 || strings.Contains(said[strings.Index(said, "354"):], "\r\n250") {
					t.Errorf("%d messages were taken: %q", len(st.sink.taken()), said)
				}
				c.Close()
				end()
			})
		})
	}
}

func TestServeEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := newStage(t, nil)
		server, err := New(st.o)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		served := make(chan error, 1)
		go func() { served <- server.Serve(ctx) }()
		c := st.listener.dial(t, st.peer)
		all := readAll(t, c)
		synctest.Wait()
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
		<-all
		if server.Sessions() != 0 {
			t.Error("a session is left")
		}
	})
}

type panicking struct{ fakeRelay }

func (*panicking) Recipient(context.Context, *pipeline.Session, string, envelope.Recipient) (envelope.Recipient, string, error) {
	panic("a mistake")
}

// A mistake of ours ends one session with "later", and nothing else.
func TestPanicEndsOneSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := newStage(t, nil)
		st.o.Relay = &panicking{}
		_, end := running(t, st)
		c := st.listener.dial(t, st.peer)
		all := readAll(t, c)
		c.Write([]byte("EHLO c\r\nMAIL FROM:<a@client.example>\r\nRCPT TO:<b@example.org>\r\n")) //nolint:errcheck // what is answered counts
		if said := <-all; !strings.HasSuffix(said, "250 2.1.0 ok\r\n421 4.3.0 temporary trouble here, please try again later\r\n") {
			t.Errorf("%q", said)
		}
		end()
		if log := st.log.String(); !strings.Contains(log, `panic="a mistake"`) || !strings.Contains(log, "ended=panic") {
			t.Error(log)
		}
	})
}

// Without a configuration nobody is greeted.
func TestNoConfiguration(t *testing.T) {
	for name, o := range map[string]func(*Options){
		"no generation": func(o *Options) { o.Chains = new(pipeline.Generations) },
		"no chain":      func(o *Options) { o.Chain = "missing" },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				st := newStage(t, nil)
				o(&st.o)
				_, end := running(t, st)
				c := st.listener.dial(t, st.peer)
				if said := <-readAll(t, c); said != "421 4.3.5 temporary trouble here, please try again later\r\n" {
					t.Errorf("%q", said)
				}
				end()
			})
		})
	}
}

func TestStrikes(t *testing.T) {
	for words, points := range map[string]int{"GET / HTTP/1.1\r\n": 10, "BDAT\r\n": 5, "QUIT\r\n": 0, strings.Repeat("FOO\r\n", 11): 5} {
		for _, standing := range []pipeline.Standing{pipeline.Stranger, pipeline.Relayed} {
			synctest.Test(t, func(t *testing.T) {
				st := newStage(t, nil)
				st.relay.standing = standing
				got := 0
				st.o.Strike = func(a netip.Addr, p int) {
					if got += p; a != st.peer.Addr() {
						t.Error(a)
					}
				}
				_, end := running(t, st)
				c := st.listener.dial(t, st.peer)
				all := readAll(t, c)
				c.Write([]byte(words)) //nolint:errcheck // the server may close within it
				<-all
				end()
				if want := points; standing == pipeline.Stranger && got != want || standing != pipeline.Stranger && got != 0 {
					t.Errorf("%q as %v: %d points", words, standing, got)
				}
			})
		}
	}
}

// The chain sees what was known at its time, and what it has never changes.
func TestSessionsAreCopied(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := newStage(t, []setting{{"authplain", ""}})
		spy := &spy{}
		c, err := pipeline.NewChain("inbound", []pipeline.Step{{Name: "spy", Filter: spy}}, pipeline.ChainOptions{})
		if err != nil {
			t.Fatal(err)
		}
		gs := new(pipeline.Generations)
		if err := gs.Swap(pipeline.NewGeneration(1, c)); err != nil {
			t.Fatal(err)
		}
		st.o.Chains = gs
		_, end := running(t, st)
		conn := st.listener.dial(t, st.peer)
		all := readAll(t, conn)
		conn.Write([]byte("EHLO one\r\nEHLO two\r\nAUTH PLAIN AGpvZQBzZWNyZXQ=\r\nMAIL FROM:<a@client.example>\r\nQUIT\r\n")) //nolint:errcheck // what is seen counts
		<-all
		end()
		want := []string{"connect  ", "helo one ", "helo two ", "connect two joe", "helo two joe"}
		for i, s := range spy.seen {
			got := spy.stage[i] + " " + s.Helo + " " + s.User
			if i >= len(want) || got != want[i] {
				t.Errorf("%d: %q", i, got)
			}
		}
		if len(spy.seen) != len(want) {
			t.Errorf("%d stages", len(spy.seen))
		}
	})
}

// spy keeps the sessions that it is shown.
type spy struct {
	stage []string
	seen  []*pipeline.Session
}

func (s *spy) Open(context.Context, *pipeline.Session) (pipeline.Instance, error) { return s, nil }
func (s *spy) Close() error                                                       { return nil }
func (s *spy) Connect(_ context.Context, n *pipeline.Session) (pipeline.Verdict, error) {
	s.stage, s.seen = append(s.stage, "connect"), append(s.seen, n)
	return pipeline.Verdict{}, nil
}

func (s *spy) Helo(_ context.Context, n *pipeline.Session) (pipeline.Verdict, error) {
	s.stage, s.seen = append(s.stage, "helo"), append(s.seen, n)
	return pipeline.Verdict{}, nil
}

// socket is a server on a real socket.
func socket(t testing.TB, change func(*Options)) (addr string, sink *fakeSink, end func()) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gs := generations(t, pipeline.ChainOptions{})
	o := Options{
		Listener: l, Hostname: "mx.example.org", Chains: gs, Sink: new(fakeSink), Ours: func(string) bool { return true },
		Log: slog.New(slog.DiscardHandler), TLS: &tls.Config{Certificates: []tls.Certificate{makeCertificate()}},
	}
	if change != nil {
		change(&o)
	}
	server, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(context.Background()) }()
	return l.Addr().String(), o.Sink.(*fakeSink), func() {
		t.Helper()
		if err := server.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
		if err := <-served; err != nil {
			t.Error(err)
		}
		gs.Swap(nil) //nolint:errcheck // there is no filter
	}
}

// A client that says all it has to say and then closes its half of the
// connection is no client that went away.
func TestHalfClosedClient(t *testing.T) {
	addr, sink, end := socket(t, nil)
	defer end()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	text := "EHLO c\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<a@b.example>\r\nDATA\r\nA: b\r\n\r\n" + strings.Repeat("body\r\n", 10000) + ".\r\nQUIT\r\n"
	if _, err := c.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	said, err := io.ReadAll(c)
	if err != nil || !strings.HasSuffix(string(said), "250 2.0.0 ok q1\r\n221 2.0.0 bye\r\n") || len(sink.taken()) != 1 {
		t.Errorf("%q, %v, %d messages", said, err, len(sink.taken()))
	}
}

// The last answer reaches a client that goes on sending.
func TestLastAnswerArrives(t *testing.T) {
	addr, _, end := socket(t, func(o *Options) { o.Limits.BadCommands = 1 })
	defer end()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write([]byte(strings.Repeat("FOO\r\n", 20000))); err != nil {
		t.Fatal(err)
	}
	said, err := io.ReadAll(c)
	if err != nil || !regexp.MustCompile(`^220 [^\n]*\n500 [^\n]*\n421 4\.7\.0 [^\n]*\n$`).Match(said) {
		t.Errorf("%q, %v", said, err)
	}
}

// Large messages go through the spool and come out as they went in.
func TestLargeMessage(t *testing.T) {
	spool, err := message.OpenDirectory(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	addr, sink, end := socket(t, func(o *Options) { o.Spool = spool; o.TLSMode = TLSImplicit })
	defer end()
	c, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true}) //nolint:gosec // it is our own
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	body := strings.Repeat(strings.Repeat("x", 70)+"\r\n..\r\n", 50_000)
	go c.Write([]byte("EHLO c\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<a@b.example>\r\nDATA\r\nA: b\r\n\r\n" + body + ".\r\nQUIT\r\n")) //nolint:errcheck // what arrives counts
	said, err := io.ReadAll(c)
	if err != nil || !strings.HasSuffix(string(said), "250 2.0.0 ok q1\r\n221 2.0.0 bye\r\n") {
		t.Fatalf("%q, %v", said, err)
	}
	want := strings.ReplaceAll(strings.ReplaceAll(body, "\r\n", "\n"), "\n..\n", "\n.\n")
	if got := sink.taken()[0].text; !strings.HasSuffix(got, "\nA: b\n\n"+want) {
		t.Errorf("%d bytes came, not %d", len(got), len(want))
	}
}
