package clamav

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	clamd "github.com/dutchcoders/go-clamd"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/message"
)

// faults are what a scanner may do wrong, and what the filter's error says.
var faults = []struct {
	name string
	play func(*stubConn)
	says string
}{
	{"closes at once", func(*stubConn) {}, ""},
	{"accepts and never answers", func(c *stubConn) { c.hang() }, "timeout"},
	{"closes after INSTREAM", func(c *stubConn) { c.command() }, ""},
	{"closes in mid-stream", func(c *stubConn) {
		if c.command() {
			c.stream(100_000)
		}
	}, ""},
	{"resets in mid-stream", func(c *stubConn) {
		if c.command() {
			c.stream(100_000)
			if tcp, ok := c.Conn.Conn.(*net.TCPConn); ok {
				tcp.SetLinger(0)
			}
		}
	}, ""},
	{"closes without an answer", saying(""), "without an answer"},
	{"FOUND before the end", func(c *stubConn) {
		if c.command() {
			c.stream(100_000)
			io.WriteString(c, "stream: X FOUND\x00")
		}
	}, ""},
	{"OK before the end", func(c *stubConn) {
		if c.command() {
			io.WriteString(c, "stream: OK\x00")
			c.stream(1 << 30)
		}
	}, "before it has all"},
	{"OK with garbage behind", saying("stream: OK\x00garbage"), "not one answer"},
	{"OK and FOUND", saying("stream: OK\x00stream: X FOUND\x00"), "not one answer"},
	{"OK twice", saying("stream: OK\x00stream: OK\x00"), "not one answer"},
	{"OK in a line", saying("stream: OK\n"), "not one answer"},
	{"OK cut off", saying("stream: O"), "not one answer"},
	{"OK without an end", saying("stream: OK"), "not one answer"},
	{"OK of something else", saying("/etc/passwd: OK\x00"), "says nothing"},
	{"OK with more words", saying("stream: not OK\x00"), "says nothing"},
	{"FOUND without a name", saying("stream: FOUND\x00"), "says nothing"},
	{"unknown command", saying("UNKNOWN COMMAND\x00"), "UNKNOWN COMMAND"},
	{"an error", saying("stream: Can't allocate memory ERROR\x00"), "allocate memory ERROR"},
	{"size limit", func(c *stubConn) {
		if c.command() {
			c.stream(100_000)
			io.WriteString(c, "INSTREAM size limit exceeded. ERROR\x00")
		}
	}, `"max" is above its StreamMaxLength`},
	{"a byte a time", func(c *stubConn) {
		if c.command() {
			c.stream(1 << 30)
			for _, b := range []byte("stream: OK\x00") {
				if _, err := c.Write([]byte{b}); err != nil {
					return
				}
				time.Sleep(200 * time.Millisecond)
			}
		}
	}, "timeout"},
	{"OK and stays", func(c *stubConn) {
		if c.command() {
			c.stream(1 << 30)
			io.WriteString(c, "stream: OK\x00")
			c.hang()
		}
	}, "timeout"},
	{"a long answer", saying("stream: " + strings.Repeat("x", 5000) + " FOUND\x00"), "more than 4096 bytes"},
	{"an answer without end", func(c *stubConn) {
		if c.command() {
			c.stream(1 << 30)
			for line := strings.Repeat("x", 60_000); ; {
				if _, err := io.WriteString(c, line); err != nil {
					return
				}
			}
		}
	}, "more than 4096 bytes"},
	{"reads nothing", func(c *stubConn) {
		if c.command() {
			time.Sleep(1500 * time.Millisecond)
		}
	}, "timeout"},
}

// large is a clean message of some chunks.
var large = "Subject: large\n\n" + strings.Repeat(strings.Repeat("x", 70)+"\n", 8000)

// Whatever a scanner does wrong, the filter fails in time and lets nothing pass;
// with another clamd beside it, that one scans.
func TestFaults(t *testing.T) {
	for _, fault := range faults {
		for network, start := range map[string]func(testing.TB, func(*stubConn)) *stub{"unix": newStub, "tcp": newStubTCP} {
			if network == "tcp" && fault.name == "OK before the end" {
				continue // TCP takes all of the message before the stub has said a word
			}
			t.Run(fault.name+" by "+network, func(t *testing.T) {
				t.Parallel()
				bad := start(t, fault.play)
				f := newFilter(t, "", bad.Address)
				within := 20 * time.Second
				if fault.says == "timeout" {
					within = time.Second
				}
				v, err := judge(f, large, within)
				if err == nil || v.Action != pipeline.Continue || !strings.Contains(err.Error(), fault.says) || !strings.Contains(err.Error(), bad.Address) {
					t.Fatalf("%v, %v", v, err)
				}
				good := start(t, honest)
				f = newFilter(t, "", bad.Address, good.Address)
				if within == time.Second {
					within = 4 * time.Second // of which each has a half
				}
				if v, err = judge(f, large, within); err != nil || v.Action != pipeline.Continue {
					t.Errorf("beside one that works: %v, %v", v, err)
				}
				if good.scans.Load() != 1 {
					t.Errorf("%d scans", good.scans.Load())
				}
			})
		}
	}
}

// Nothing is there, or it cannot be reached.
func TestAbsent(t *testing.T) {
	gone := newStub(t, honest)
	gone.Stop()
	f := newFilter(t, "", gone.Address, "unix:/nonexistent/clamd.ctl")
	for range 4 {
		if _, err := judge(f, large, 10*time.Second); err == nil || !strings.Contains(err.Error(), gone.Address) || !strings.Contains(err.Error(), "/nonexistent") {
			t.Fatal(err)
		}
	}
}

// broken is a message whose body cannot be read to its end.
type broken struct{ at io.ReaderAt }

var errDisk = errors.New("the disk is broken")

func (b broken) ReadAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) > 200_000 {
		return 0, errDisk
	}
	return b.at.ReadAt(p, off)
}

// A message that cannot be read is no fault of a clamd's, and never clean.
func TestReadError(t *testing.T) {
	s := newStub(t, honest)
	f := newFilter(t, "", s.Address)
	head, rest := message.ParseHead(large)
	for name, body := range map[string]io.ReaderAt{"error": broken{strings.NewReader(rest)}, "short": strings.NewReader(rest[:200_000])} {
		b := message.StoredBody{At: body, Size: int64(len(rest))}.Open()
		_, err := f.Message(context.Background(), transaction(), message.New(head, b))
		b.Release()
		if want := map[string]error{"error": errDisk, "short": io.ErrUnexpectedEOF}[name]; !errors.Is(err, want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if s.scans.Load() != 0 || f.clamds.Failing() != nil {
		t.Errorf("%d scans, failing: %q", s.scans.Load(), f.clamds.Failing())
	}
}

// The end of the context ends a call that waits, and is nobody's fault.
func TestCancel(t *testing.T) {
	began := make(chan struct{}, 1)
	s := newStub(t, func(c *stubConn) {
		c.command()
		began <- struct{}{}
		c.hang()
	})
	f := newFilter(t, "", s.Address)
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		<-began
		cancel()
	}()
	if _, err := f.Message(ctx, transaction(), message.FromString(large)); err == nil {
		t.Error("no error")
	}
	if f.clamds.Failing() != nil {
		t.Error("the clamd is blamed")
	}
}

// After many faults there are as many descriptors as before; goroutines are
// counted at the end of all tests.
func TestLeaks(t *testing.T) {
	s := newStub(t, honest)
	f := newFilter(t, "", s.Address)
	must(t, f, large)
	before := descriptors(t)
	for range 5 {
		for _, fault := range faults {
			if fault.says != "timeout" {
				s.plays(fault.play)
				f := newFilter(t, "", s.Address) // to which it has not failed
				if _, err := judge(f, large, 20*time.Second); err == nil {
					t.Fatal(fault.name)
				}
			}
		}
	}
	for range 3000 { // the stub's own go when it has seen ours go
		if descriptors(t) <= before {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("%d descriptors, %d before", descriptors(t), before)
}

func descriptors(t *testing.T) int {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}

// Why the library's own scan is not used: a message that could not be read and an
// answer that goes on are clean to it, and no answer is no error.
func TestLibrary(t *testing.T) {
	scan := func(play func(*stubConn), r io.Reader) (statuses string) {
		s := newStub(t, play)
		abort := make(chan bool)
		defer close(abort)
		results, err := clamd.NewClamd("unix://"+strings.TrimPrefix(s.Address, "unix:")).ScanStream(r, abort)
		if err != nil {
			t.Fatal(err)
		}
		for r := range results {
			statuses += r.Status + " "
		}
		return statuses
	}
	// The library ends its lines with LF.
	lines := func(answer string) func(*stubConn) {
		return func(c *stubConn) {
			c.R.ReadString('\n')
			c.stream(1 << 30)
			io.WriteString(c, answer)
		}
	}
	cut := io.MultiReader(strings.NewReader("half"), failing{})
	if got := scan(lines("stream: OK\n"), cut); got != "OK " {
		t.Errorf("a message that cannot be read is %q", got)
	}
	if got := scan(lines("stream: OK\nstream: X FOUND"), strings.NewReader("x")); got != "OK " {
		t.Errorf("an answer that goes on is %q", got)
	}
	if got := scan(lines(""), strings.NewReader("x")); got != "" {
		t.Errorf("no answer is %q", got)
	}
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, errDisk }
