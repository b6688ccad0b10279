package qmtp_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
	"github.com/postern-mta/postern/queue/egress/qmtp"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// step is what a server does: it reads so many bytes, says something, and perhaps
// reads on in silence, or neither reads nor closes, until the client goes.
type step struct {
	read        int
	says        string
	hold, stall bool
}

// server is one connection, closed after the last step. got closes it and tells what
// was read.
func server(t *testing.T, steps []step) (client net.Conn, got func() string) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	client, err = net.Dial("tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	conn, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	var all bytes.Buffer
	gone, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		defer conn.Close()
		for _, s := range steps {
			io.CopyN(&all, conn, int64(s.read)) //nolint:errcheck // the test looks at it
			io.WriteString(conn, s.says)        //nolint:errcheck // as above
			if s.hold {
				io.Copy(&all, conn) //nolint:errcheck // until the client goes
			}
			if s.stall {
				<-gone
			}
		}
	}()
	end := sync.OnceFunc(func() { client.Close(); close(gone); <-done })
	t.Cleanup(end)
	return client, func() string { end(); return all.String() }
}

const sample = "Subject: x\n\nbody\n"

func mail(recipients ...string) (envelope.Envelope, message.Message) {
	return envelope.To("a@b.org", recipients...), message.FromString(sample)
}

// big is more than a connection holds that nobody reads from.
func big() message.Message {
	return message.FromString("Subject: big\n\n" + strings.Repeat("0123456789abcdef\n", 2<<20))
}

func quick() qmtp.Client {
	return qmtp.Client{Write: 300 * time.Millisecond, Answer: 300 * time.Millisecond}
}

func TestWire(t *testing.T) {
	e, m := mail("r1@d.org", "r2@d.org")
	inner := "17:" + sample + ",7:a@b.org,8:r1@d.org,8:r2@d.org,"
	for name, c := range map[string]struct {
		client qmtp.Client
		want   string
	}{
		"qmtp": {quick(), "18:\n" + sample + ",7:a@b.org,11:8:r1@d.org,,18:\n" + sample + ",7:a@b.org,11:8:r2@d.org,,"},
		"qmqp": {qmtp.Client{QMQP: true}, fmt.Sprintf("%d:%s,", len(inner), inner)},
	} {
		t.Run(name, func(t *testing.T) {
			half := len(c.want)
			if !c.client.QMQP {
				half /= 2
			}
			conn, got := server(t, []step{{read: half, says: "16:Kok 1 qp 2 (#0) ,"}, {read: len(c.want) - half, says: "16:Dno way (#5.1.1),", hold: true}})
			answers, perhaps, err := c.client.Carry(t.Context(), conn, e, m)
			if err != nil || perhaps != 0 || len(answers) != 2 || answers[0].Class != reply.Success {
				t.Fatalf("%+v %d %v", answers, perhaps, err)
			}
			if second := answers[1].SMTP(); second != "554 5.1.1 no way" && !c.client.QMQP || c.client.QMQP && answers[1] != answers[0] {
				t.Errorf("%q", second)
			}
			if text := got(); text != c.want {
				t.Errorf("%q\n%q", text, c.want)
			}
		})
	}
}

// TestFaults: what is known of each recipient when a connection fails.
func TestFaults(t *testing.T) {
	one := len("18:\n" + sample + ",7:a@b.org,11:8:r1@d.org,,")
	for _, c := range []struct {
		name    string
		steps   []step
		qmqp    bool
		big     bool
		answers int
		perhaps int
	}{
		{name: "closed at once", steps: nil, big: true},
		{name: "closed within the message", steps: []step{{read: 1000}}, big: true},
		{name: "nobody reads", steps: []step{{read: 1000, stall: true}}, big: true},
		{name: "no answer", steps: []step{{read: one}}, perhaps: 1},
		{name: "no answer, QMQP", steps: []step{{read: 10, hold: true}}, qmqp: true, perhaps: 3},
		{name: "silence", steps: []step{{read: one, hold: true}}, perhaps: 1},
		{name: "half an answer", steps: []step{{read: one, says: "16:Kok 1"}}, perhaps: 1},
		{name: "an answer that is none", steps: []step{{read: one, says: "250 ok\r\n", hold: true}}, perhaps: 1},
		{name: "endless digits", steps: []step{{read: one, says: strings.Repeat("1", 1<<16), hold: true}}, perhaps: 1},
		{name: "closed after the first", steps: []step{{read: one, says: "3:Kok,"}, {read: one}}, answers: 1, perhaps: 1},
		{name: "more answers than messages", steps: []step{{read: one, says: "3:Kok,3:Kok,", hold: true}}, answers: 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			conn, _ := server(t, c.steps)
			e, m := mail("r1@d.org", "r2@d.org", "r3@d.org")
			if c.big {
				m = big()
			}
			client := quick()
			client.QMQP = c.qmqp
			answers, perhaps, err := client.Carry(t.Context(), conn, e, m)
			if err == nil || len(answers) != c.answers || perhaps != c.perhaps {
				t.Errorf("%+v, perhaps %d: %v", answers, perhaps, err)
			}
		})
	}
}

func TestContextBreaksOff(t *testing.T) {
	conn, _ := server(t, []step{{read: 10, hold: true}})
	e, m := mail("r1@d.org")
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("shutting down")
	time.AfterFunc(50*time.Millisecond, func() { cancel(why) })
	if _, perhaps, err := (qmtp.Client{}).Carry(ctx, conn, e, m); !errors.Is(err, why) || perhaps != 1 {
		t.Errorf("%d %v", perhaps, err)
	}
	if _, perhaps, err := (qmtp.Client{}).Carry(ctx, conn, e, m); !errors.Is(err, why) || perhaps != 0 {
		t.Errorf("%d %v", perhaps, err)
	}
}

type shorter struct{}

func (shorter) ReadAt([]byte, int64) (int, error) { return 0, errors.New("EIO") }

// TestUnreadable: what cannot be read whole is not finished.
func TestUnreadable(t *testing.T) {
	body := message.StoredBody{At: shorter{}, Size: 1000, LFs: 1}.Open()
	defer body.Release()
	e, m := mail("r1@d.org")
	conn, got := server(t, []step{{read: 1 << 20}})
	_, perhaps, err := quick().Carry(t.Context(), conn, e, m.WithBody(body))
	if r := reply.Of(err); perhaps != 0 || r.Class != reply.Temporary || r.Text != "Unable to read message." {
		t.Errorf("%d %v", perhaps, err)
	}
	if text := got(); strings.Contains(text, "b.org") {
		t.Errorf("%q", text)
	}
	if _, _, err := quick().Carry(t.Context(), conn, envelope.To("a@b.org"), m); err == nil {
		t.Error("a message for nobody was sent")
	}
}

// TestMailfront speaks to the servers of Debian's mailfront.
func TestMailfront(t *testing.T) {
	rules := filepath.Join(t.TempDir(), "rules")
	text := ":sender\nk*:*:ok\n:recipient\nd*:no@d.org:No such user\nz*:later@d.org:Later\nk*:*:ok\n"
	if err := os.WriteFile(rules, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		program string
		client  qmtp.Client
		to      []string
		want    []string
	}{
		{"qmtpfront-echo", qmtp.Client{}, []string{"yes@d.org", "no@d.org", "later@d.org", "r2@d.org"}, []string{"250 2.0.0 Received 17 bytes.", "554 5.0.0 No such user", "451 4.0.0 Later", "250 2.0.0 Received 17 bytes."}},
		{"qmqpfront-echo", qmtp.Client{QMQP: true}, []string{"r1@d.org", "r2@d.org"}, []string{"250 2.0.0 Received 17 bytes.", "250 2.0.0 Received 17 bytes."}},
		{"qmqpfront-echo", qmtp.Client{QMQP: true}, []string{"r1@d.org", "no@d.org"}, []string{"554 5.0.0 No such user", "554 5.0.0 No such user"}},
	} {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		conn, err := net.Dial("tcp", listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		far, err := listener.Accept()
		if err != nil {
			t.Fatal(err)
		}
		listener.Close()
		file, err := far.(*net.TCPConn).File()
		if err != nil {
			t.Fatal(err)
		}
		far.Close()
		server := exec.Command("/usr/sbin/" + c.program)
		server.Env = append(os.Environ(), "PROTO=TCP", "TCPLOCALIP=127.0.0.1", "TCPREMOTEIP=127.0.0.1", "PLUGINS=mailrules", "MAILRULES="+rules)
		server.Stdin, server.Stdout = file, file
		if err := server.Start(); err != nil {
			t.Fatalf("%v; install mailfront", err)
		}
		file.Close()
		c.client.Answer = 20 * time.Second
		e, m := mail(c.to...)
		answers, _, err := c.client.Carry(t.Context(), conn, e, m)
		conn.Close()
		server.Wait() //nolint:errcheck // it ends when we have gone
		if err != nil || len(answers) != len(c.want) {
			t.Errorf("%s: %v %v", c.program, answers, err)
			continue
		}
		for i, a := range answers {
			if a.SMTP() != c.want[i] {
				t.Errorf("%s %s: %q", c.program, c.to[i], a.SMTP())
			}
		}
	}
}

func TestAnswers(t *testing.T) {
	for _, c := range []struct {
		wire string
		want string // the reply, or the error
		rest string
	}{
		{"3:Kok,x", "250 2.0.0 ok", "x"},
		{"16:Dno way (#5.1.1),", "554 5.1.1 no way", ""},
		{"14:Zbusy (#4.3.2),", "451 4.3.2 busy", ""},
		{"14:Zbusy (#5.3.2),", "451 4.0.0 busy (#5.3.2)", ""},
		{"17:D(#5.1.1) no user,", "554 5.0.0 (#5.1.1) no user", ""},
		{"7:Da\r\nb\x00c,", "554 5.0.0 a b?c", ""},
		{"26:D5.1.0 not that sender: no,", "554 5.1.0 not that sender: no", ""},
		{"1:K,", "250 2.0.0 the server gave no reason", ""},
		{"0003:Kok,", "250 2.0.0 ok", ""},
		{"0:,", "begins with none", ""},
		{"3:kok,", "begins with none", ""},
		{"3:Kok.", "no netstring", ""},
		{":Kok,", "no netstring", ""},
		{"-3:Kok,", "no netstring", ""},
		{"+3:Kok,", "no netstring", ""},
		{"3 :Kok,", "no netstring", ""},
		{"Kok", "no netstring", ""},
		{"8193:K", "longer than", ""},
		{"99999999999999999999:K", "longer than", ""},
		{"00000000000000003:Kok,", "longer than", ""},
		{"3:Ko", "unexpected EOF", ""},
		{"3", "EOF", ""},
		{"", "EOF", ""},
	} {
		r := bufio.NewReader(strings.NewReader(c.wire))
		a, err := qmtp.ReadAnswer(r)
		if got := a.SMTP(); err == nil && got != c.want || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: %q %v", c.wire, got, err)
		}
		if rest, _ := io.ReadAll(r); err == nil && string(rest) != c.rest {
			t.Errorf("%q: %q is left", c.wire, rest)
		}
	}
}

func FuzzReadAnswer(f *testing.F) {
	for _, s := range []string{"3:Kok,", "16:Dno way (#5.1.1),", "0:,", "8193:K", "99999999999999999999:", "5:Z\r\n\x00\xff,"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		a, err := qmtp.ReadAnswer(bufio.NewReader(r))
		if err != nil {
			return
		}
		i := bytes.IndexByte(b, ':')
		if want := map[byte]reply.Class{'K': reply.Success, 'Z': reply.Temporary, 'D': reply.Permanent}[b[i+1]]; a.Class != want {
			t.Errorf("%q is %v", b, a)
		}
		if text := a.SMTP(); strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r > '~' }) || len(text) > 512 {
			t.Errorf("%q gives %q", b, text)
		}
	})
}
