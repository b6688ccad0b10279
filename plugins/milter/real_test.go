package milter

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	gomilter "github.com/emersion/go-milter"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/filtertest"
	"github.com/postern-mta/postern/pipeline/message"
)

// libmilter starts the test's milter on libmilter: its address, and a function
// that kills it.
func libmilter(t testing.TB, flags ...string) (at string, kill func()) {
	t.Helper()
	dir, err := os.MkdirTemp("", "milter") // the test's own may be too long
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket := filepath.Join(dir, "s")
	out, err := os.Create(filepath.Join(dir, "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	c := exec.Command("/usr/bin/python3", append([]string{"testdata/words.py", "unix:" + socket}, flags...)...)
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	c.Stdout, c.Stderr = out, out
	if err := c.Start(); err != nil {
		t.Fatalf("this test needs Debian's python3 and python3-milter, which make deps installs: %v", err)
	}
	killed := false
	kill = func() {
		if !killed {
			killed = true
			c.Process.Kill() //nolint:errcheck // it has ended
			c.Wait()         //nolint:errcheck // it was killed
		}
	}
	t.Cleanup(kill)
	for range 300 {
		if c, err := net.Dial("unix", socket); err == nil {
			c.Close()
			return "unix:" + socket, kill
		}
		time.Sleep(50 * time.Millisecond)
	}
	text, _ := os.ReadFile(out.Name())
	t.Fatalf("the milter does not start (make deps installs python3-milter): %s", text)
	return "", nil
}

// libmilter itself takes part in conversations of all shapes: everything it can
// answer, everything it can change, one transaction after the other, one session
// after the other on one connection.
func TestLibmilter(t *testing.T) {
	for _, flags := range [][]string{nil, {"lists"}, {"quiet"}} {
		t.Run(strings.Join(flags, "+"), func(t *testing.T) {
			at, _ := libmilter(t, flags...)
			f := newFilter(t, "", at)
			for range 2 {
				converse(t, f)
			}
			if n := len(f.pool.idle[at]); n != 1 || f.pool.until != nil {
				t.Errorf("%d connections are kept, %v", n, f.pool.until)
			}
		})
	}
}

// converse is a session with a milter of the test.
func converse(t *testing.T, f *Filter) {
	t.Helper()
	i := f.open(t)
	defer i.Close()
	s := filtertest.Transaction().Session
	if v, err := i.Connect(t.Context(), s); err != nil || v.Action != pipeline.Continue {
		t.Fatal(v, err)
	}
	if v, err := i.Helo(t.Context(), s); err != nil || v.Action != pipeline.Continue {
		t.Fatal(v, err)
	}
	for _, c := range []struct{ do, want string }{
		{"", "continue []"},
		{"reject", "reject []"},
		{"tempfail", "defer []"},
		{"discard", "discard []"},
		{"accept", "continue []"},
		{"add=X-A,b insert=1,X-C,d insert=9,X-E,f", "continue [append X-A: b add X-C: d append X-E: f]"},
		{"change=1,Subject,y_z change=2,To,w delete=1,To delete=3,To", "continue [replace Subject: y z replace To: w remove To]"},
		{"from=<b@example.net> to=<c@example.org> param=<d@example.org> not=<r@example.org>", "continue [sender <b@example.net> recipient <c@example.org> add recipient <d@example.org>]"},
		{"body=20", "continue [] body 220000"},
		{"hold=because", "quarantine []"},
	} {
		tx := filtertest.Transaction()
		ctx := t.Context()
		if v, err := i.Sender(ctx, tx); err != nil || v.Action != pipeline.Continue {
			t.Fatal(v, err)
		}
		if v, err := i.Recipient(ctx, tx, envelope.Recipient{Address: "reject@example.org"}); err != nil || v.Reply.SMTP() != "550 5.1.1 no such user" {
			t.Fatal(v, err)
		}
		if v, err := i.Recipient(ctx, tx, tx.Envelope.Recipients[0]); err != nil || v.Action != pipeline.Continue {
			t.Fatal(v, err)
		}
		v, err := i.Message(ctx, tx, message.FromString("Received: x\nSubject: x\nTo: a\nTo: b\nDo: "+c.do+"\n\n"+large))
		got := fmt.Sprint(v.Action, " ", edits(v))
		if v.Body != nil {
			got += fmt.Sprint(" body ", v.Body.Size())
			v.Body.Release()
		}
		if err != nil || got != c.want {
			t.Errorf("%s: %s, %v", c.do, got, err)
		}
		// What is reset half-way, and another HELO.
		if _, err := i.Sender(ctx, tx); err != nil {
			t.Fatal(err)
		}
		i.Reset()
		if v, err := i.Helo(ctx, s); err != nil || v.Action != pipeline.Continue {
			t.Fatal(v, err)
		}
	}
	v, err := i.Message(t.Context(), filtertest.Transaction(), message.FromString("Do: tell\n\nx\n"))
	if got := strings.Join(edits(v), "\n"); err != nil || !strings.Contains(got, "X-Told: helo mail.example.net") || !strings.Contains(got, "X-Told: body 3 fields 1") {
		t.Errorf("%s, %v", got, err)
	}
}

// libmilter is killed, and started elsewhere, while mail comes in.
func TestLibmilterKilled(t *testing.T) {
	first, kill := libmilter(t)
	second, killSecond := libmilter(t)
	f := newFilter(t, "", first, second)
	for n := range 60 {
		if n == 20 {
			kill()
		}
		if v, err := filtertest.Judge(f, "Do: add=X-A,b\n\nx\n", 10*time.Second); err != nil || len(v.Edits) != 1 {
			t.Fatalf("message %d: %v, %v", n, v, err)
		}
	}
	killSecond()
	if v, err := filtertest.Judge(f, small, 5*time.Second); err == nil {
		t.Error(v)
	}
}

// goMilter is a milter on the server of go-milter.
type goMilter struct{ gomilter.NoOpMilter }

// Body adds a field.
func (goMilter) Body(m *gomilter.Modifier) (gomilter.Response, error) {
	return gomilter.RespAccept, m.AddHeader("X-Client", m.Macros["i"])
}

// A milter that speaks version 2, by another hand.
func TestGoMilter(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &gomilter.Server{NewMilter: func() gomilter.Milter { return goMilter{} }, Actions: gomilter.OptAddHeader, Protocol: gomilter.OptNoHelo | gomilter.OptNoBody}
	done := make(chan error)
	go func() { done <- s.Serve(l) }()
	f := newFilter(t, "", "tcp:"+l.Addr().String())
	for range 3 {
		if v := filtertest.Must(t, f, large); fmt.Sprint(edits(v)) != "[append X-Client: T1]" {
			t.Error(edits(v))
		}
	}
	s.Close()
	<-done
}
