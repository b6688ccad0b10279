package smtptest_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/smtp"
	"net/textproto"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/postern-mta/postern/pipeline/smtp/smtptest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// exchange sends all of it at once and returns what came until the server closed.
func exchange(t *testing.T, s *smtptest.Server, sent string) string {
	t.Helper()
	conn, err := net.Dial("tcp", s.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, sent); err != nil {
		t.Fatal(err)
	}
	got, _ := io.ReadAll(conn)
	return strings.ReplaceAll(string(got), "\r\n", "\n")
}

const mail = "EHLO c\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nDATA\r\n"

// TestStandardClient: a client that others wrote understands the server.
func TestStandardClient(t *testing.T) {
	s := smtptest.New(t)
	if err := smtp.SendMail(s.Addr().String(), nil, "a@b", []string{"c@d", "e@f"}, []byte("message-id: <1@x>\r\n\r\n.dot\r\n")); err != nil {
		t.Fatal(err)
	}
	m := s.Messages()[0]
	if string(m.Content) != "message-id: <1@x>\n\n.dot\n" || m.ID() != "<1@x>" || m.Mail.Sender != "a@b" || !reflect.DeepEqual(m.Addresses(), []string{"c@d", "e@f"}) ||
		m.Hello != "localhost" || m.Connection != 1 || m.Answer != 250 || m.Bare || m.Size != 24 || !m.Peer.Addr().IsLoopback() {
		t.Errorf("%+v", m)
	}
	st := s.Stats()
	if st.Messages != 1 || st.Recipients != 2 || st.Connections != 1 || st.MostOpen != 1 || st.Bytes != 24 || st.Commands != 6 {
		t.Errorf("%+v", st)
	}
	s.Forget()
	if len(s.Messages()) != 0 {
		t.Error("not forgotten")
	}
}

func TestDialogue(t *testing.T) {
	hello := "250-sink.test\n250-PIPELINING\n250-8BITMIME\n250-SIZE 52428800\n250-DSN\n250-SMTPUTF8\n250-ENHANCEDSTATUSCODES\n250 CHUNKING\n"
	for _, c := range []struct {
		name, sent, want string
		o                smtptest.Options
		messages         int
	}{
		{name: "pipelined", sent: mail + "x\r\n.\r\nQUIT\r\n", messages: 1, want: hello + "250 2.1.0 ok\n250 2.1.5 ok\n354 go ahead\n250 2.0.0 ok 1.1\n221 2.0.0 bye\n"},
		{name: "HELO", sent: "HELO c\r\nQUIT\r\n", want: "250 sink.test\n221 2.0.0 bye\n"},
		{
			name: "out of order", sent: "MAIL FROM:<a@b>\r\nRCPT TO:<a@b>\r\nDATA\r\nEHLO c\r\nMAIL FROM:<a@b>\r\nMAIL FROM:<a@b>\r\nRSET\r\nRCPT TO:<c@d>\r\nWHAT\r\nNOOP\r\nQUIT\r\n",
			want: "503 5.5.1 bad sequence of commands\n503 5.5.1 MAIL first\n503 5.5.1 RCPT first\n" + hello +
				"250 2.1.0 ok\n503 5.5.1 bad sequence of commands\n250 2.0.0 ok\n503 5.5.1 MAIL first\n500 5.5.1 what?\n250 2.0.0 ok\n221 2.0.0 bye\n",
		},
		{
			name: "bad arguments", sent: "EHLO c\r\nMAIL <a@b>\r\nMAIL FROM:a@b\r\nMAIL FROM:<>\r\nRCPT <a@b>\r\nRCPT TO:<>\r\nNO\nOP\r\nBDAT x\r\n",
			want: hello + "501 5.5.4 MAIL FROM:<address>\n501 5.1.7 bad sender address syntax\n250 2.1.0 ok\n501 5.5.4 RCPT TO:<address>\n501 5.1.3 bad recipient address syntax\n500 5.5.2 bare CR, LF or NUL\n501 5.5.4 BDAT size [LAST]\n",
		},
		{
			name: "chunks", sent: "EHLO c\r\nMAIL FROM:<>\r\nRCPT TO:<c@d>\r\nBDAT 3\r\nx\r\nBDAT 3 LAST\r\n.\r\nBDAT 1 LAST\r\nxQUIT\r\n", messages: 1,
			want: hello + "250 2.1.0 ok\n250 2.1.5 ok\n250 2.0.0 more\n250 2.0.0 ok 1.1\n503 5.5.1 RCPT first\n221 2.0.0 bye\n",
		},
		{name: "line too long", sent: strings.Repeat("x", 5000), want: "500 5.5.2 line too long\n"},
		{
			name: "limits", sent: mail[:len(mail)-6] + "RCPT TO:<e@f>\r\nDATA\r\n.\r\nMAIL FROM:<a@b>\r\n", o: smtptest.Options{Messages: 1, Recipients: 1, Extensions: []string{}}, messages: 1,
			want: "250 sink.test\n250 2.1.0 ok\n250 2.1.5 ok\n452 4.5.3 too many recipients\n354 go ahead\n250 2.0.0 ok 1.1\n421 4.7.0 that is enough for one connection\n",
		},
		{
			name: "no extensions, no parameters", sent: "EHLO c\r\nMAIL FROM:<a@b> SIZE=1\r\nQUIT\r\n", o: smtptest.Options{Extensions: []string{}},
			want: "250 sink.test\n555 5.5.4 parameter not recognized\n221 2.0.0 bye\n",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := smtptest.Start(t, c.o)
			if got := exchange(t, s, c.sent); got != "220 sink.test ESMTP\n"+c.want {
				t.Errorf("got\n%s\nwant\n%s", got, c.want)
			}
			if n := len(s.Messages()); n != c.messages {
				t.Errorf("%d messages", n)
			}
		})
	}
}

func TestSteps(t *testing.T) {
	const greeting, hello, upTo354 = "220 sink.test ESMTP\n", "250 sink.test\n", "250 2.1.0 ok\n250 2.1.5 ok\n354 go ahead\n"
	for _, c := range []struct {
		name  string
		steps []smtptest.Step
		want  string
		kept  int
	}{
		{"refused at once", []smtptest.Step{{At: smtptest.Connect, Reply: "554 5.7.1 no", End: smtptest.Close}}, "554 5.7.1 no\n", 0},
		{"421 closes", []smtptest.Step{{At: smtptest.Hello, Reply: "421 4.3.2 no"}}, greeting + "421 4.3.2 no\n", 0},
		{"more lines", []smtptest.Step{{At: smtptest.Connect, Reply: "220 one\n220 two", End: smtptest.Close}}, "220-one\n220 two\n", 0},
		{"raw", []smtptest.Step{{At: smtptest.Mail, Raw: "what?\r\n", End: smtptest.Close}}, greeting + hello + "what?\n", 0},
		{"closed in the body", []smtptest.Step{{At: smtptest.Body, Bytes: 3, End: smtptest.Close}}, greeting + hello + upTo354, 0},
		{"answered in the body", []smtptest.Step{{At: smtptest.Body, Bytes: 1, Reply: "552 5.3.4 big", End: smtptest.Close}}, greeting + hello + upTo354 + "552 5.3.4 big\n", 0},
		{"closed after the dot", []smtptest.Step{{At: smtptest.Dot, End: smtptest.Close}}, greeting + hello + upTo354, 1},
		{"421 after the 250", []smtptest.Step{{At: smtptest.After, Reply: "421 4.3.2 bye"}}, greeting + hello + upTo354 + "250 2.0.0 ok 1.1\n421 4.3.2 bye\n", 1},
		{"half-closed at QUIT", []smtptest.Step{{At: smtptest.Quit, End: smtptest.Close}}, greeting + hello + upTo354 + "250 2.0.0 ok 1.1\n", 1},
		{"one recipient", []smtptest.Step{{At: smtptest.Rcpt, Match: "@D", Reply: "450 4.2.0 later"}}, greeting + hello + "250 2.1.0 ok\n450 4.2.0 later\n503 5.5.1 RCPT first\n500 5.5.1 what?\n500 5.5.1 what?\n221 2.0.0 bye\n", 0},
		{"somebody else", []smtptest.Step{{At: smtptest.Rcpt, Match: "x@d", Reply: "450 4.2.0 later"}}, greeting + hello + upTo354 + "250 2.0.0 ok 1.1\n221 2.0.0 bye\n", 1},
		{"skipped", []smtptest.Step{{At: smtptest.Mail, Skip: 1, Reply: "450 4.2.0 later"}}, greeting + hello + upTo354 + "250 2.0.0 ok 1.1\n221 2.0.0 bye\n", 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := smtptest.Start(t, smtptest.Options{Steps: c.steps, Extensions: []string{}})
			if got := exchange(t, s, mail+"text\r\n.\r\nQUIT\r\n"); got != c.want {
				t.Errorf("got\n%s\nwant\n%s", got, c.want)
			}
			if n := len(s.Messages()); n != c.kept {
				t.Errorf("%d messages", n)
			}
		})
	}
}

func TestTimes(t *testing.T) {
	s := smtptest.New(t, smtptest.Step{At: smtptest.Connect, Skip: 1, Times: 2, Reply: "421 no"})
	var got []string
	for range 4 {
		got = append(got, exchange(t, s, "QUIT\r\n")[:3])
	}
	if want := []string{"220", "421", "421", "220"}; !reflect.DeepEqual(got, want) {
		t.Errorf("%v", got)
	}
}

func TestLimitsPerHost(t *testing.T) {
	s := smtptest.Start(t, smtptest.Options{PerHost: 2})
	var conns []*textproto.Conn
	for range 2 {
		c, err := textproto.Dial("tcp", s.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, _, err := c.ReadResponse(220); err != nil {
			t.Fatal(err)
		}
		conns = append(conns, c)
	}
	if got := exchange(t, s, ""); !strings.HasPrefix(got, "421 4.7.0 ") {
		t.Errorf("%q", got)
	}
	if st := s.Stats(); st.Connections != 2 || st.MostOpen != 2 || st.MostPerHost != 2 || st.Refused != 1 {
		t.Errorf("%+v", st)
	}
	conns[0].Close()
	for s.Stats().Open > 1 {
		time.Sleep(time.Millisecond)
	}
	if got := exchange(t, s, "QUIT\r\n"); !strings.HasPrefix(got, "220 ") {
		t.Errorf("%q", got)
	}
}

func TestGreylist(t *testing.T) {
	var now atomic.Int64
	s := smtptest.Start(t, smtptest.Options{Greylist: time.Minute, Now: func() time.Time { return time.Unix(now.Load(), 0) }})
	try := func() bool { return strings.Contains(exchange(t, s, mail+"x\r\n.\r\nQUIT\r\n"), "250 2.0.0 ok") }
	for range 2 {
		if try() {
			t.Error("too early")
		}
	}
	if now.Store(60); !try() {
		t.Error("late enough")
	}
}

func TestOneByteAndLatency(t *testing.T) {
	var seen []*smtptest.Message
	s := smtptest.Start(t, smtptest.Options{
		OneByte: true, Latency: time.Millisecond, Keep: smtptest.KeepEnvelope, ReadBuffer: 4096,
		OnMessage: func(m *smtptest.Message) { seen = append(seen, m) },
	})
	if got := exchange(t, s, mail+"x\r\n.\r\nQUIT\r\n"); !strings.HasSuffix(got, "250 2.0.0 ok 1.1\n221 2.0.0 bye\n") {
		t.Error(got)
	}
	if len(seen) != 1 || seen[0].Content != nil || seen[0].Size != 2 || s.Messages()[0] != seen[0] {
		t.Errorf("%+v", seen)
	}
}

// TestSilentEnds: a hole and a stall say nothing, and end when the server does.
func TestSilentEnds(t *testing.T) {
	for _, end := range []smtptest.End{smtptest.Hole, smtptest.Stall, smtptest.HalfClose, smtptest.Endless} {
		s := smtptest.New(t, smtptest.Step{At: smtptest.Hello, Raw: "250-x\r\n", End: end})
		conn, err := net.Dial("tcp", s.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprint(conn, "EHLO c\r\nNOOP\r\n")
		r := bufio.NewReader(conn)
		for i, want := range []string{"220 sink.test ESMTP\r\n", "250-x\r\n"} {
			if line, err := r.ReadString('\n'); line != want {
				t.Errorf("%v: line %d is %q, %v", end, i, line, err)
			}
		}
		go s.Close()
		if rest, _ := io.ReadAll(r); end != smtptest.Endless && len(rest) != 0 {
			t.Errorf("%v: %q", end, rest)
		}
		conn.Close()
	}
}

func TestNames(t *testing.T) {
	for a := smtptest.Connect; a <= smtptest.Quit; a++ {
		if back, ok := smtptest.ParseAt(a.String()); !ok || back != a {
			t.Error(a)
		}
	}
	for e := smtptest.GoOn; e <= smtptest.Endless; e++ {
		if back, ok := smtptest.ParseEnd(e.String()); !ok || back != e {
			t.Error(e)
		}
	}
	if _, ok := smtptest.ParseAt("x"); ok {
		t.Error("x")
	}
}

// TestScript: a script says what happens where, with the end of each connection.
func TestScript(t *testing.T) {
	var ends atomic.Int64
	open := map[uint64]bool{}
	var mu sync.Mutex
	s := smtptest.Start(t, smtptest.Options{
		Script: func(m *smtptest.Moment) *smtptest.Step {
			mu.Lock()
			defer mu.Unlock()
			switch {
			case m.At == smtptest.Connect:
				open[m.Connection] = true
			case m.At == smtptest.Rcpt && m.Sender == "a@b" && m.Recipients == 0 && m.Messages == 0 && m.Peer.Addr().IsLoopback() && !m.Secure:
				return &smtptest.Step{Reply: "450 4.2.0 " + m.What + " later"}
			}
			return nil
		},
		Steps: []smtptest.Step{{At: smtptest.Rcpt, Match: "e@f", Reply: "550 5.1.1 no"}, {At: smtptest.Rcpt, Reply: "550 5.7.1 not asked"}},
		OnEnd: func(connection uint64) {
			mu.Lock()
			defer mu.Unlock()
			if open[connection] {
				ends.Add(1)
			}
		},
	})
	got := exchange(t, s, "HELO c\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nRSET\r\nMAIL FROM:<>\r\nRCPT TO:<e@f>\r\nQUIT\r\n")
	const want = "220 sink.test ESMTP\n250 sink.test\n250 2.1.0 ok\n450 4.2.0 c@d later\n250 2.0.0 ok\n250 2.1.0 ok\n550 5.1.1 no\n221 2.0.0 bye\n"
	if got != want || ends.Load() != 1 {
		t.Errorf("%d ended:\n%s", ends.Load(), got)
	}
}
