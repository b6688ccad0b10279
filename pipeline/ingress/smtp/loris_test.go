package smtp

import (
	"context"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// TestSlowClients: whoever sends a byte now and then, a command now and then, or reads
// nothing, holds a session for the time of what it is about, and no longer.
func TestSlowClients(t *testing.T) {
	const before = "EHLO c\r\n"
	for _, c := range []struct {
		name    string
		options []setting
		before  string
		again   string        // what is sent again and again
		every   time.Duration // after this pause
		deaf    bool          // the client reads nothing
		most    time.Duration
		last    string // what the server says in the end
	}{
		{name: "nothing at all", every: 25 * time.Hour, again: "x", most: 5 * time.Minute, last: "421 4.4.2"},
		// The first byte of a session is waited for by itself.
		{name: "a command", again: "N", every: time.Minute, most: 6 * time.Minute, last: "421 4.4.2"},
		{name: "a long command", again: "NOOP " + strings.Repeat("x", 100), every: time.Minute, most: 6 * time.Minute, last: "421 4.4.2"},
		{name: "an address", before: before + "MAIL FROM:<", again: "x", every: time.Minute, most: 5 * time.Minute, last: "421 4.4.2"},
		{name: "a login", options: []setting{{"authplain", ""}}, before: before + "AUTH LOGIN\r\n", again: "x", every: time.Minute, most: 5 * time.Minute, last: "421 4.4.2"},
		{name: "a handshake", options: []setting{{"tls", "offer"}}, before: before + "STARTTLS\r\n", again: "\x16", every: time.Second, most: time.Minute},
		{name: "a chunk's size", before: before + "MAIL FROM:<a@client.example>\r\nRCPT TO:<b@example.org>\r\nBDAT ", again: "1", every: time.Minute, most: 5 * time.Minute, last: "421 4.4.2"},
		{name: "a chunk", before: before + "MAIL FROM:<a@client.example>\r\nRCPT TO:<b@example.org>\r\nBDAT 100000 LAST\r\n", again: "x", every: time.Minute, most: 2 * time.Hour, last: "421 4.4.2"},
		{name: "recipients", before: before + "MAIL FROM:<a@client.example>\r\n", again: "RCPT TO:<b@example.org>\r\n", every: 4 * time.Minute, most: 2 * time.Hour, last: "421 4.4.2"},
		{name: "commands that lead nowhere", before: before, again: "NOOP\r\n", every: 4 * time.Minute, most: 101 * 4 * time.Minute, last: "421 4.7.0"},
		{name: "transactions that lead nowhere", before: before, again: "MAIL FROM:<a@client.example>\r\nRSET\r\n", every: 4 * time.Minute, most: 101 * 4 * time.Minute, last: "421 4.7.0"},
		{name: "and reads nothing", before: before, again: "HELP\r\n", deaf: true, most: time.Minute + time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				st := newStage(t, c.options)
				server, err := New(st.o)
				if err != nil {
					t.Fatal(err)
				}
				served := make(chan error, 1)
				go func() { served <- server.Serve(context.Background()) }()
				conn := st.listener.dial(t, st.peer)
				heard := make(chan string, 1)
				if !c.deaf {
					go func() {
						all, _ := io.ReadAll(conn) //nolint:errcheck // until it is closed
						heard <- string(all)
					}()
				}
				start := time.Now()
				ended := make(chan struct{})
				go func() {
					defer close(ended)
					drip(conn, c.before, c.again, c.every)
				}()
				for time.Sleep(time.Second); server.Sessions() > 0 && time.Since(start) < 24*time.Hour; {
					time.Sleep(time.Second)
				}
				// A server reads on for a moment behind its last answer.
				if took := time.Since(start); took > c.most+10*time.Second {
					t.Errorf("the session lasted %v", took)
				}
				conn.Close()
				<-ended
				if !c.deaf {
					all := strings.Split(strings.TrimSuffix(<-heard, "\r\n"), "\r\n")
					if last := all[len(all)-1]; !strings.HasPrefix(last, c.last) {
						t.Errorf("the last answer is %q", last)
					}
				}
				if n := len(st.sink.taken()); n > 0 {
					t.Errorf("%d messages were taken", n)
				}
				(&dialogue{}).end(t, st, server, served)
			})
		})
	}
}

func drip(conn net.Conn, before, again string, every time.Duration) {
	_, err := io.WriteString(conn, before)
	for err == nil {
		time.Sleep(every)
		_, err = conn.Write([]byte(again))
	}
}
