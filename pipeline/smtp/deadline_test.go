package smtp_test

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/postern-mta/postern/pipeline/smtp"
)

// converseWith runs a client against a server made of a function, on a clock
// that costs no time, and returns the client's error and how long it took.
func converseWith(t *testing.T, in smtp.Content, server func(net.Conn)) (failed *smtp.Error, took time.Duration) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := net.Pipe()
		done := make(chan struct{})
		go func() {
			defer close(done)
			defer theirs.Close()
			server(theirs)
		}()
		start := time.Now()
		c := smtp.NewClient(ours, smtp.ClientOptions{})
		err := converse(t.Context(), c, in)
		took = time.Since(start)
		if err != nil && !errors.As(err, &failed) {
			t.Errorf("%v is no *smtp.Error", err)
		}
		c.Close()
		<-done
	})
	return failed, took
}

// talk answers line by line: each answer follows a line that begins with the
// word before it. An empty word waits for nothing.
func talk(conn net.Conn, script ...string) {
	r := smtp.NewReader(conn, 0)
	for i := 0; i+1 < len(script); i += 2 {
		for word := script[i]; word != ""; {
			line, err := r.Line(1 << 20)
			if err != nil {
				return
			}
			if strings.HasPrefix(string(line), word) {
				break
			}
		}
		if _, err := io.WriteString(conn, script[i+1]); err != nil {
			return
		}
	}
}

func TestEveryWaitEnds(t *testing.T) {
	quiet := func(conn net.Conn) { io.Copy(io.Discard, conn) } //nolint:errcheck // until the client has gone
	upTo := func(script ...string) func(net.Conn) {
		return func(conn net.Conn) { talk(conn, script...); quiet(conn) }
	}
	for _, c := range []struct {
		name    string
		server  func(net.Conn)
		big     bool
		phase   smtp.Phase
		took    time.Duration
		perhaps bool
	}{
		{name: "greeting", server: quiet, phase: smtp.Greeting, took: 5 * time.Minute},
		{name: "EHLO", server: upTo("", "220 x\r\n"), phase: smtp.Hello, took: 5 * time.Minute},
		{name: "MAIL", server: upTo("", "220 x\r\n", "EHLO", "250 x\r\n"), phase: smtp.MailFrom, took: 5 * time.Minute},
		{name: "RCPT", server: upTo("", "220 x\r\n", "EHLO", "250 x\r\n", "MAIL", "250 x\r\n"), phase: smtp.RcptTo, took: 5 * time.Minute},
		{name: "DATA", server: upTo("", "220 x\r\n", "EHLO", "250 x\r\n", "MAIL", "250 x\r\n", "RCPT", "250 x\r\n"), phase: smtp.Data, took: 2 * time.Minute},
		{
			name: "dot", server: upTo("", "220 x\r\n", "EHLO", "250 x\r\n", "MAIL", "250 x\r\n", "RCPT", "250 x\r\n", "DATA", "354 x\r\n"),
			phase: smtp.Dot, took: 10 * time.Minute, perhaps: true,
		},
		{name: "a byte a minute", server: func(conn net.Conn) {
			for {
				if _, err := conn.Write([]byte("2")); err != nil {
					return
				}
				time.Sleep(time.Minute)
			}
		}, phase: smtp.Greeting, took: 5 * time.Minute},
		{name: "a line a minute", server: func(conn net.Conn) {
			talk(conn, "", "220 x\r\n")
			go quiet(conn)
			for {
				if _, err := conn.Write([]byte("250-x\r\n")); err != nil {
					return
				}
				time.Sleep(time.Minute)
			}
		}, phase: smtp.Hello, took: 5 * time.Minute},
		{name: "a closed window", server: func(conn net.Conn) {
			talk(conn, "", "220 x\r\n", "EHLO", "250 x\r\n", "MAIL", "250 x\r\n", "RCPT", "250 x\r\n", "DATA", "354 x\r\n")
			time.Sleep(time.Hour)
		}, phase: smtp.Body, took: 3*time.Minute + time.Second, big: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			in := content(sample)
			if c.big {
				in = content(strings.Repeat("0123456789abcdef\n", 10_000))
			}
			failed, took := converseWith(t, in, c.server)
			if failed == nil || failed.Phase != c.phase || took != c.took || failed.Perhaps != c.perhaps || !errors.Is(failed, os.ErrDeadlineExceeded) {
				t.Errorf("%v after %v", failed, took)
			}
		})
	}
}

// TestPatience: what comes just in time counts.
func TestPatience(t *testing.T) {
	failed, took := converseWith(t, content(sample), func(conn net.Conn) {
		late := func(d time.Duration, script ...string) {
			talk(conn, script[0], "")
			time.Sleep(d - time.Second)
			talk(conn, "", script[1])
		}
		late(5*time.Minute, "", "220 x\r\n")
		late(5*time.Minute, "EHLO", "250 x\r\n")
		late(5*time.Minute, "MAIL", "250 x\r\n")
		late(5*time.Minute, "RCPT", "250 x\r\n")
		late(2*time.Minute, "DATA", "354 x\r\n")
		late(10*time.Minute, ".", "250 x\r\n")
	})
	if failed != nil || took != 32*time.Minute-6*time.Second {
		t.Error(failed, took)
	}
}

// TestWriteIsBrokenOff: the end of a context ends a write that is stuck.
func TestWriteIsBrokenOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := net.Pipe()
		defer theirs.Close()
		go talk(theirs, "", "220 x\r\n", "EHLO", "250 x\r\n", "MAIL", "250 x\r\n", "RCPT", "250 x\r\n", "DATA", "354 x\r\n")
		c := smtp.NewClient(ours, smtp.ClientOptions{})
		defer c.Close()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		err := converse(ctx, c, content(strings.Repeat("0123456789abcdef\n", 10_000)))
		var failed *smtp.Error
		if !errors.As(err, &failed) || failed.Phase != smtp.Body || failed.Perhaps || c.Usable() {
			t.Error(err)
		}
	})
}

// TestTwoClientsShareBuffers: what one leaves behind never reaches the other.
func TestTwoClientsShareBuffers(t *testing.T) {
	var shared smtp.Buffers
	for _, end := range []string{"554 no\r\n", "250 ok\r\n"} {
		synctest.Test(t, func(t *testing.T) {
			ours, theirs := net.Pipe()
			defer theirs.Close()
			got := make(chan string, 1)
			go func() {
				talk(theirs, "", "220 x\r\n", "EHLO", "250 x\r\n", "MAIL", "250 x\r\n", "RCPT", "250 x\r\n", "DATA", "354 x\r\n")
				r := smtp.NewDotReader(smtp.NewReader(theirs, 0), false)
				text, _ := io.ReadAll(r)
				got <- string(text)
				talk(theirs, "", end)
			}()
			c := smtp.NewClient(ours, smtp.ClientOptions{Buffers: &shared})
			defer c.Close()
			converse(t.Context(), c, content(sample)) //nolint:errcheck // one of them is refused
			if text := <-got; text != sample {
				t.Errorf("%q", text)
			}
		})
	}
}
