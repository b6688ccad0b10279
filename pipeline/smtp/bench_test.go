package smtp_test

import (
	"bufio"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/smtp"
	"github.com/postern-mta/postern/pipeline/smtp/smtptest"
)

const sessions = 16

// spread does b.N pieces of work on sixteen connections and returns how many a
// second were done.
func spread(b *testing.B, connect func() (work func() error, end func())) float64 {
	var left atomic.Int64
	left.Store(int64(b.N))
	var wg sync.WaitGroup
	start := time.Now()
	for range sessions {
		wg.Go(func() {
			work, end := connect()
			defer end()
			for left.Add(-1) >= 0 {
				if err := work(); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	return float64(b.N) / time.Since(start).Seconds()
}

// BenchmarkTransaction sends 4 KiB messages to the sink over sixteen kept
// connections, and for comparison the same bytes in the same three turns to a
// server that understands nothing.
func BenchmarkTransaction(b *testing.B) {
	text := "Subject: benchmark\n\n" + strings.Repeat("A line of a message is about as long as this one is, not longer.\n", 62)
	for _, way := range []struct {
		name     string
		lockStep bool
	}{{"pipelined", false}, {"lock-step", true}} {
		b.Run(way.name, func(b *testing.B) {
			b.ReportAllocs()
			floor := spread(b, rawConnections(b, text))
			s := smtptest.Start(b, smtptest.Options{Keep: smtptest.KeepNothing})
			var buffers smtp.Buffers
			e := envelope.To("sender@example.org", "recipient@example.com")
			b.ResetTimer()
			rate := spread(b, func() (func() error, func()) {
				c := ready(b, s, smtp.ClientOptions{LockStep: way.lockStep, Buffers: &buffers})
				return func() error { _, err := c.Transaction(b.Context(), e, content(text)); return err }, func() { c.Close() }
			})
			if n := s.Stats().Messages; n != int64(b.N) {
				b.Fatalf("%d messages of %d", n, b.N)
			}
			b.ReportMetric(rate, "msgs/s")
			b.ReportMetric(rate/floor, "of-raw-bytes")
		})
	}
}

// rawConnections are connections over which the bytes of a message go in three
// turns, commands, message and answers, and nothing is parsed.
func rawConnections(b *testing.B, text string) func() (func() error, func()) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { l.Close() })
	commands := []byte("MAIL FROM:<sender@example.org> SIZE=4122\r\nRCPT TO:<recipient@example.com>\r\nDATA\r\n")
	answers := []byte("250 2.1.0 ok\r\n250 2.1.5 ok\r\n354 go ahead\r\n")
	message := []byte(dotted(b, text))
	final := []byte("250 2.0.0 ok 1.1\r\n")
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				r := bufio.NewReaderSize(conn, 4<<10)
				for {
					for _, turn := range []struct {
						n    int
						then []byte
					}{{len(commands), answers}, {len(message), final}} {
						if _, err := r.Discard(turn.n); err != nil {
							return
						}
						if _, err := conn.Write(turn.then); err != nil {
							return
						}
					}
				}
			}()
		}
	}()
	return func() (func() error, func()) {
		conn, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			b.Fatal(err)
		}
		back := make([]byte, len(answers))
		return func() error {
			if _, err := conn.Write(commands); err != nil {
				return err
			}
			if _, err := io.ReadFull(conn, back); err != nil {
				return err
			}
			if _, err := conn.Write(message); err != nil {
				return err
			}
			_, err := io.ReadFull(conn, back[:len(final)])
			return err
		}, func() { conn.Close() }
	}
}
