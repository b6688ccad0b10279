package smtp_test

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
	wire "github.com/postern-mta/postern/pipeline/smtp"
	"github.com/postern-mta/postern/pipeline/smtp/smtptest"
	"github.com/postern-mta/postern/queue/egress/smtp"
)

// thinker is a server that takes one message a connection, one after the other, and
// answers none of them until it is told to. It has no goroutine and no buffer for a
// connection while it thinks, so that what that takes is the client's.
type thinker struct {
	net.Listener
	secret  *tls.Config
	waiting []net.Conn
}

// take takes a message up to its final dot.
func (s *thinker) take(in *bufio.Reader) error {
	conn, err := s.Accept()
	if err != nil {
		return err
	}
	say := func(text string) { io.WriteString(conn, text) } //nolint:errcheck // the client notices
	in.Reset(conn)
	say("220 mx.d.test\r\n")
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			return err
		}
		switch verb := strings.ToUpper(line[:min(4, len(line))]); {
		case verb == "EHLO" && s.secret != nil:
			say("250-mx.d.test\r\n250-PIPELINING\r\n250 STARTTLS\r\n")
		case verb == "STAR":
			say("220 go on\r\n")
			conn = tls.Server(conn, s.secret)
			in.Reset(conn)
		case verb == "EHLO":
			say("250-mx.d.test\r\n250 PIPELINING\r\n")
		case verb == "DATA":
			say("354 go on\r\n")
		case line == ".\r\n":
			s.waiting = append(s.waiting, conn)
			return nil
		case verb == "MAIL", verb == "RCPT":
			say("250 ok\r\n")
		}
	}
}

// TestMemoryOfWaiting bounds what a delivery takes while its server thinks: there may
// be 10,000 of them. Its message of 4 KiB is not counted, but all else is: stacks, and
// under TLS the server's half, which cannot be told apart.
func TestMemoryOfWaiting(t *testing.T) {
	const count = 500
	ca := smtptest.NewAuthority(t)
	for _, c := range []struct {
		name   string
		secret *tls.Config
		most   int // KiB for each
	}{{"plain", nil, 18}, {"tls", smtptest.TLS(ca.Issue(t, time.Time{}, "d.test")), 44}} {
		t.Run(c.name, func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			s := &thinker{Listener: l, secret: c.secret}
			defer l.Close()
			n := newInternet(t)
			n.straight = true
			n.hosts["d.test"] = []string{"127.0.0.1"}
			x := n.exit(smtp.Options{
				Port: netip.MustParseAddrPort(l.Addr().String()).Port(), ConnectTimeout: time.Minute,
				Timeouts: wire.Timeouts{Greeting: time.Minute, Quit: time.Second},
			})
			text := message.FromString("Subject: sample\n\n" + strings.Repeat("0123456789abcde\n", 256))
			in := bufio.NewReader(nil)
			results, errs := make([]smtp.Result, 2*count), make([]error, 0)
			var done sync.WaitGroup
			hold := func(from, to int) uint64 {
				for i := from; i < to; i++ {
					done.Go(func() {
						j := &smtp.Job{Domain: "d.test", Envelope: envelope.To("a@us.test", fmt.Sprintf("r%d@d.test", i)), Content: text}
						results[i] = x.Deliver(t.Context(), j)[0]
					})
					errs = append(errs, s.take(in))
				}
				for range 3 { // each halves stacks that are much larger than need be
					runtime.GC()
				}
				var m runtime.MemStats
				runtime.ReadMemStats(&m)
				return m.StackInuse + m.HeapInuse
			}
			before := hold(0, count) // what is shared is there then, and stacks have found their size
			each := (int64(hold(count, 2*count)) - int64(before)) / count
			t.Logf("%d bytes for each delivery", each)
			if raceEnabled {
				c.most *= 2 // frames are larger
			}
			if each > int64(c.most)<<10 {
				t.Errorf("each delivery takes %d bytes while its server thinks; %d KiB are allowed", each, c.most)
			}
			for _, conn := range s.waiting {
				_, err := io.WriteString(conn, "250 ok\r\n")
				errs = append(errs, err, conn.Close())
			}
			done.Wait()
			if err := errors.Join(errs...); err != nil {
				t.Error(err)
			}
			for i, r := range results {
				if r.Reply.Class != reply.Success {
					t.Fatalf("message %d: %+v", i, r)
				}
			}
		})
	}
}
