package smtp

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/reply"
)

// The forms that some server, somewhere, takes for the end of a message.
var falseEnds = []string{
	"\n.\n", "\r.\r", "\r.\n", "\n.\r", "\n.\r\n", "\r\n.\n", "\r.\r\n", "\r\n.\r", "\r\n\x00.\r\n", "\r\n.\x00\r\n",
	"\r\n.\r\r\n", "\r\r\n.\r\r\n",
}

// smuggled is a second message, to be hidden in the first.
const smuggled = "MAIL FROM:<evil@client.example>\r\nRCPT TO:<victim@example.org>\r\nDATA\r\nSubject: evil\r\n\r\nevil\r\n.\r\nQUIT\r\n"

// converse plays a whole session: the client says one thing after the other,
// each when a line has come from the server that has the code of its turn.
func converse(t *testing.T, options []setting, pieces bool, turns ...[2]string) *stage {
	t.Helper()
	st := newStage(t, options)
	server, err := New(st.o)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(context.Background()) }()
	conn := st.listener.dial(t, netip.MustParseAddrPort("192.0.2.1:4321"))
	c := &client{t: t, conn: conn, raw: conn, bytewise: pieces, lines: make(chan string, 10000)}
	stop, done := make(chan struct{}), make(chan struct{})
	go c.read(conn, stop, done)
	for _, turn := range turns {
		for {
			line, ok := c.line()
			if !ok || strings.HasPrefix(line, turn[0]) {
				break
			}
		}
		c.send(turn[1])
	}
	time.Sleep(time.Hour)
	synctest.Wait()
	conn.Close()
	(&dialogue{}).end(t, st, server, served)
	<-done
	return st
}

func TestNoFalseEndSplitsAMessage(t *testing.T) {
	hello := [][2]string{
		{"220", "EHLO client.example\r\n"},
		{"250 ", "MAIL FROM:<a@client.example>\r\n"},
		{"250 ", "RCPT TO:<b@example.org>\r\n"},
	}
	for _, end := range falseEnds {
		for _, repair := range []bool{false, true} {
			for _, pieces := range []bool{false, true} {
				for _, chunked := range []bool{false, true} {
					name := fmt.Sprintf("%q repair=%v bytewise=%v bdat=%v", end, repair, pieces, chunked)
					t.Run(name, func(t *testing.T) {
						synctest.Test(t, func(t *testing.T) {
							var options []setting
							if repair {
								options = append(options, setting{"repair", ""})
							}
							body := "Subject: x\r\n\r\nfirst" + end + smuggled
							turns := append([][2]string(nil), hello...)
							if chunked {
								turns = append(turns, [2]string{"250 ", fmt.Sprintf("BDAT %d LAST\r\n%sQUIT\r\n", len(body), body)})
							} else {
								turns = append(turns, [2]string{"250 ", "DATA\r\n"}, [2]string{"354", body})
							}
							st := converse(t, options, pieces, turns...)
							wantOne(t, st, repair)
						})
					})
				}
			}
		}
	}
}

// wantOne wants one transaction, taken whole if line ends are repaired, and
// refused otherwise.
func wantOne(t *testing.T, st *stage, repair bool) {
	t.Helper()
	all := st.sink.taken()
	if strings.Count(st.log.String(), "msg=message") != 1 {
		t.Errorf("not one transaction:\n%s", st.log.String())
	}
	if !repair {
		if len(all) != 0 {
			t.Errorf("%d messages were taken", len(all))
		}
		return
	}
	if len(all) != 1 {
		t.Fatalf("%d messages were taken", len(all))
	}
	if all[0].envelope.Sender != "a@client.example" || !strings.Contains(all[0].text, "MAIL FROM:<evil@client.example>") {
		t.Errorf("another message was taken: %+v", all)
	}
	if strings.ContainsAny(all[0].text, "\r\x00") {
		t.Errorf("not repaired: %q", all[0].text)
	}
}

// A chunk may hold what ends a DATA.
func TestNoEndWithinAChunk(t *testing.T) {
	for _, pieces := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			body := "A: b\r\n\r\nx\r\n.\r\nMAIL FROM:<evil@client.example>\r\n"
			st := converse(
				t, nil, pieces, [2]string{"220", "EHLO c\r\n"}, [2]string{"250 ", "MAIL FROM:<a@client.example>\r\n"},
				[2]string{"250 ", "RCPT TO:<b@example.org>\r\n"},
				[2]string{"250 ", fmt.Sprintf("BDAT %d LAST\r\n%sQUIT\r\n", len(body), body)},
			)
			if all := st.sink.taken(); len(all) != 1 || !strings.HasSuffix(all[0].text, "\n\nx\n.\nMAIL FROM:<evil@client.example>\n") {
				t.Errorf("%+v", all)
			}
		})
	}
}

// One byte every four minutes does not hold a session for ever: a message has
// two hours, and what was read of it is no command.
func TestSlowMessageEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := newStage(t, nil)
		server, err := New(st.o)
		if err != nil {
			t.Fatal(err)
		}
		served := make(chan error, 1)
		go func() { served <- server.Serve(context.Background()) }()
		conn := st.listener.dial(t, st.peer)
		c := &client{t: t, conn: conn, raw: conn, lines: make(chan string, 10000)}
		stop, done := make(chan struct{}), make(chan struct{})
		go c.read(conn, stop, done)
		c.send("EHLO c\r\nMAIL FROM:<a@client.example>\r\nRCPT TO:<b@example.org>\r\nDATA\r\n")
		start := time.Now()
		for time.Since(start) < 3*time.Hour {
			if _, err := conn.Write([]byte("x")); err != nil {
				break
			}
			time.Sleep(4 * time.Minute)
		}
		if took := time.Since(start); took > 2*time.Hour+5*time.Minute {
			t.Errorf("it took %v", took)
		}
		last := ""
		for line := range c.lines {
			last = line
		}
		if !strings.HasPrefix(last, "421 4.4.2") || len(st.sink.taken()) != 0 {
			t.Errorf("the last answer is %q", last)
		}
		conn.Close()
		(&dialogue{}).end(t, st, server, served)
		<-done
	})
}

// Over sockets: a client that vanishes when its message is complete but not
// committed leaves nothing.
func TestVanishedClientLeavesNothing(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	sink, judged := &fakeSink{}, make(chan struct{})
	gs := generations(t, pipeline.ChainOptions{}, &fakeFilter{stage: pipeline.AtMessage, delay: 300 * time.Millisecond, resets: new(counter)})
	server, err := New(Options{
		Listener: l, Hostname: "mx.example.org", Chains: gs, Sink: sink,
		Log: slog.New(slog.DiscardHandler), Ours: func(string) bool { return true },
		Observe: func(string, reply.Reply, pipeline.Trace) {
			close(judged)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(context.Background()) }()
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	say := func(s, want string) {
		t.Helper()
		if s != "" {
			if _, err := conn.Write([]byte(s)); err != nil {
				t.Fatal(err)
			}
		}
		b := make([]byte, 4096)
		if k, err := conn.Read(b); err != nil || !strings.HasPrefix(string(b[:k]), want) {
			t.Fatalf("%q, %v", b[:k], err)
		}
	}
	say("", "220")
	say("EHLO c\r\n", "250")
	say("MAIL FROM:<a@b.example>\r\n", "250")
	say("RCPT TO:<a@b.example>\r\n", "250")
	say("DATA\r\n", "354")
	if _, err := conn.Write([]byte("A: b\r\n\r\nc\r\n.\r\n")); err != nil {
		t.Fatal(err)
	}
	conn.Close()
	for server.Sessions() > 0 {
		time.Sleep(5 * time.Millisecond)
	}
	if got := sink.taken(); len(got) != 0 {
		t.Errorf("%d messages were taken", len(got))
	}
	select {
	case <-judged:
		t.Error("it was answered")
	default:
	}
	if err := server.Shutdown(context.Background()); err != nil {
		t.Error(err)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
	gs.Swap(nil) //nolint:errcheck // fake filters close well
}

// What a proxy hands on together with its header belongs to TLS.
func TestProxyHeaderAndTLSInOneSegment(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := newStage(t, []setting{{"tls", "implicit"}, {"proxies", "192.0.2.0/24"}})
		server, err := New(st.o)
		if err != nil {
			t.Fatal(err)
		}
		served := make(chan error, 1)
		go func() { served <- server.Serve(context.Background()) }()
		conn := st.listener.dial(t, st.peer)
		c := tls.Client(&together{Conn: conn, first: "PROXY TCP4 198.51.100.7 192.0.2.10 1234 465\r\n"}, &tls.Config{InsecureSkipVerify: true}) //nolint:gosec // it is our own
		b := make([]byte, 100)
		if k, err := c.Read(b); err != nil || !strings.HasPrefix(string(b[:k]), "220 ") {
			t.Errorf("%q, %v", b[:k], err)
		}
		conn.Close()
		(&dialogue{}).end(t, st, server, served)
		if !strings.Contains(st.log.String(), "peer=198.51.100.7") {
			t.Error(st.log.String())
		}
	})
}

// together writes its first words in the segment of the next write.
type together struct {
	net.Conn
	first string
}

func (w *together) Write(p []byte) (int, error) {
	if w.first != "" {
		_, err := w.Conn.Write(append([]byte(w.first), p...))
		w.first = ""
		return len(p), err
	}
	return w.Conn.Write(p)
}
