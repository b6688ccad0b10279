package serverstest

import (
	"context"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

// Long is a message that is longer than what a Unix socket holds.
func Long() string {
	return "Subject: large\n\n" + strings.Repeat(strings.Repeat("x", 70)+"\n", 7000)
}

// Saying answers every request with a text; see Faults.
func Saying(request func(*Conn) bool, text string) func(*Conn) {
	return func(c *Conn) {
		if request(c) {
			c.Say(text)
		}
	}
}

// Asker makes what asks some servers: a function that sends Long and gives what is
// wrong.
type Asker func(t testing.TB, addresses ...string) func(context.Context) error

// Suffer plays each fault, alone and with a server beside it that is honest. Alone
// it must fail the asker, in time and with a clean error that names the server;
// beside the honest one it must not, whichever of the two comes first.
func Suffer(t *testing.T, faults []Fault, honest func(*Conn), asker Asker) {
	for _, fault := range faults {
		t.Run(fault.Name, func(t *testing.T) {
			t.Parallel()
			bad := Start(t, "unix", fault.Play)
			within := 20 * time.Second
			if fault.Slow {
				within = time.Second
			}
			err := atMost(within, asker(t, bad.Address))
			if err == nil || !strings.Contains(err.Error(), bad.Address) {
				t.Fatal(err)
			}
			if strings.ContainsFunc(err.Error(), func(c rune) bool { return c < ' ' || c > '~' }) {
				t.Errorf("%q", err)
			}
			if fault.Slow {
				within = 4 * time.Second // of which each has a half
			}
			ask := asker(t, bad.Address, Start(t, "unix", honest).Address)
			for range 2 { // so that both come first once
				if err := atMost(within, ask); err != nil {
					t.Errorf("beside one that works: %v", err)
				}
			}
		})
	}
}

func atMost(wait time.Duration, ask func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), wait)
	defer cancel()
	return ask(ctx)
}

// Absent asks servers that are not there: the errors must begin with what, and name
// both.
func Absent(t *testing.T, what string, asker Asker) {
	t.Helper()
	gone := Start(t, "tcp", func(*Conn) {})
	gone.Stop()
	ask := asker(t, gone.Address, "unix:/nonexistent/server")
	for range 4 {
		err := atMost(10*time.Second, ask)
		if err == nil || !strings.HasPrefix(err.Error(), what) || !strings.Contains(err.Error(), gone.Address) || !strings.Contains(err.Error(), "/nonexistent") {
			t.Fatal(err)
		}
	}
}

// Cancel ends the context of a call while its server says nothing: it must fail.
func Cancel(t *testing.T, asker Asker) {
	t.Helper()
	began := make(chan struct{}, 1)
	s := Start(t, "tcp", func(c *Conn) {
		began <- struct{}{}
		c.Hang()
	})
	ask := asker(t, s.Address)
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		<-began
		cancel()
	}()
	if ask(ctx) == nil {
		t.Error("a call that was given up did not fail")
	}
}

// Bench measures how long a message of 4 KiB takes with ask, beside the least that a
// client can do with the same stub: a connection to send question on, close its half,
// and read to the end. The two take turns.
func Bench(b *testing.B, s *Stub, ask func(text string), question func(text string) string) {
	text := "Subject: x\n\n" + strings.Repeat(strings.Repeat("x", 70)+"\n", 57)
	var own, raw time.Duration
	for b.Loop() {
		start := time.Now()
		ask(text)
		middle := time.Now()
		if err := bare(strings.TrimPrefix(s.Address, "unix:"), question(text)); err != nil {
			b.Fatal(err)
		}
		own, raw = own+middle.Sub(start), raw+time.Since(middle)
	}
	b.ReportMetric(float64(own)/float64(raw), "filter/raw")
}

// bare is the least that a question takes.
func bare(path, question string) error {
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := io.WriteString(c, question); err != nil {
		return err
	}
	if err := c.CloseWrite(); err != nil {
		return err
	}
	_, err = io.ReadAll(c)
	return err
}
