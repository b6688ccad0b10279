package servers

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// clock is a clock that is set by hand.
type clock struct{ at atomic.Int64 }

func (c *clock) now() time.Time { return time.Unix(0, c.at.Load()) }

func newSet(t testing.TB, o Options, addresses ...string) *Set {
	t.Helper()
	o.Noun = "stub"
	s, err := New(addresses, o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

var errBroken = errors.New("it is broken")

// A server that fails is left alone longer and longer, pinged before it gets
// jobs again, and then works as before.
func TestRest(t *testing.T) {
	var log strings.Builder
	jobs, pings := 0, 0
	job, pong := errBroken, errors.New("no pong")
	c := &clock{}
	s := newSet(t, Options{
		Now: c.now, Log: slog.New(slog.NewTextHandler(&log, nil)),
		Ping: func(context.Context, *Server) (string, error) { pings++; return "v1", pong },
	}, "unix:/a")
	call := func(want string) {
		t.Helper()
		err := s.Do(context.Background(), func(context.Context, *Server) error { jobs++; return job })
		if err == nil && want != "" || err != nil && (want == "" || err.Error() != want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	counts := func(j, p int) {
		t.Helper()
		if jobs != j || pings != p {
			t.Errorf("%d jobs, %d pings, want %d, %d", jobs, pings, j, p)
		}
	}
	call("unix:/a: it is broken")
	counts(1, 0)
	call("unix:/a: no pong")
	counts(1, 1)
	rest := firstRest
	for i := range 8 {
		call("unix:/a: left alone after it failed: no pong")
		c.at.Add(int64(rest) - 1)
		call("unix:/a: left alone after it failed: no pong")
		counts(1, i+1)
		c.at.Add(1)
		call("unix:/a: no pong")
		counts(1, i+2)
		rest = min(2*rest, longestRest)
	}
	if f := s.Failing(); len(f) != 1 || f[0] != "unix:/a: no pong" {
		t.Errorf("failing: %q", f)
	}
	job, pong = nil, nil
	call("unix:/a: left alone after it failed: no pong")
	c.at.Add(int64(longestRest))
	call("")
	counts(2, 10)
	call("")
	counts(3, 10)
	if s.Failing() != nil {
		t.Error("it still fails")
	}
	if l := log.String(); strings.Count(l, "stub fails") != 1 || strings.Count(l, `msg="stub is back" stub=unix:/a version=v1`) != 1 {
		t.Error(l)
	}
}

// Without a ping the next job finds out whether the server is back.
func TestNoPing(t *testing.T) {
	c := &clock{}
	s := newSet(t, Options{Now: c.now}, "unix:/a")
	job := errBroken
	do := func() error { return s.Do(context.Background(), func(context.Context, *Server) error { return job }) }
	for range 3 {
		if do() == nil {
			t.Fatal("no error")
		}
		c.at.Add(int64(longestRest))
	}
	job = nil
	if err := do(); err != nil || s.Failing() != nil {
		t.Error(err, s.Failing())
	}
}

// The kinds of errors: what is ours ends the job, what is refused goes on to the
// next one, and neither is held against a server.
func TestErrors(t *testing.T) {
	s := newSet(t, Options{}, "unix:/a", "tcp:[::1]:1")
	for _, c := range []struct {
		err   error
		calls int
		blame bool
		is    bool // the error stays what it was
	}{
		{Ours(errBroken), 1, false, true},
		{Refused(errBroken), 2, false, false},
		{errBroken, 2, true, false},
	} {
		calls := 0
		err := s.Do(context.Background(), func(context.Context, *Server) error { calls++; return c.err })
		if err == nil || calls != c.calls || (s.Failing() != nil) != c.blame || errors.Is(err, errBroken) != c.is || !strings.Contains(err.Error(), "it is broken") {
			t.Errorf("%v: %d calls, %v, failing %q", c.err, calls, err, s.Failing())
		}
	}
	if !IsOurs(Ours(errBroken)) || IsOurs(Refused(errBroken)) || !IsRefused(Refused(errBroken)) || IsRefused(errBroken) || !errors.Is(Refused(errBroken), errBroken) {
		t.Error("kinds of errors are mixed up")
	}
}

// No server has more to do than it may, and all have something to do.
func TestConnections(t *testing.T) {
	s := newSet(t, Options{Connections: 3}, "unix:/a", "unix:/b")
	var now, most, jobs [2]atomic.Int64
	var calls sync.WaitGroup
	for range 60 {
		calls.Go(func() {
			err := s.Do(context.Background(), func(_ context.Context, one *Server) error {
				i := 0
				if one.Address == "/b" {
					i = 1
				}
				n := now[i].Add(1)
				for m := most[i].Load(); n > m && !most[i].CompareAndSwap(m, n); m = most[i].Load() {
				}
				time.Sleep(2 * time.Millisecond)
				now[i].Add(-1)
				jobs[i].Add(1)
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	calls.Wait()
	for i, one := range s.list {
		if most[i].Load() > 3 || jobs[i].Load() < 10 || one.load != 0 || len(one.slots) != 0 {
			t.Errorf("server %d: %d at a time, %d in all; %d, %d are left", i, most[i].Load(), jobs[i].Load(), one.load, len(one.slots))
		}
	}
}

// Who waits for a free connection waits no longer than its context, who hangs no
// longer than its own; neither is blamed on a server that was given up.
func TestBusy(t *testing.T) {
	s := newSet(t, Options{Connections: 1}, "unix:/a")
	began := make(chan struct{})
	ctx, cancel := context.WithCancel(context.Background())
	var first sync.WaitGroup
	first.Go(func() {
		err := s.Do(ctx, func(ctx context.Context, _ *Server) error {
			close(began)
			<-ctx.Done()
			return ctx.Err()
		})
		if !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
	<-began
	short, done := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer done()
	if err := s.Do(short, func(context.Context, *Server) error { return nil }); err == nil || !strings.Contains(err.Error(), errBusy.Error()) {
		t.Error(err)
	}
	cancel()
	first.Wait()
	if s.Failing() != nil {
		t.Errorf("blamed: %q", s.Failing())
	}
}

// One of two that hangs costs the first jobs its share of their time, and the
// ones after that nothing.
func TestHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &clock{}
		s := newSet(t, Options{Now: c.now}, "unix:/bad", "unix:/good")
		good, bad := 0, 0
		for range 10 {
			ctx, cancel := context.WithTimeout(context.Background(), 400*time.Millisecond)
			err := s.Do(ctx, func(ctx context.Context, one *Server) error {
				if one.Address == "/bad" {
					bad++
					<-ctx.Done()
					return ctx.Err()
				}
				good++
				return nil
			})
			cancel()
			if err != nil {
				t.Error(err)
			}
		}
		if good != 10 || bad != 2 {
			t.Errorf("%d jobs for the good one, %d for the bad", good, bad)
		}
	})
}

// Addresses are read strictly, and an error knows which one is wrong.
func TestAddresses(t *testing.T) {
	for _, c := range []struct {
		addresses []string
		key       string
	}{
		{[]string{"/run/x"}, "address[0]"},
		{[]string{"unix:/a", "unix:relative"}, "address[1]"},
		{[]string{"unix:/a", "unix:///a"}, "address[1]"},
		{[]string{"tcp:1.2.3.4"}, "address[0]"},
		{[]string{"tcp::25"}, "address[0]"},
		{[]string{"unix:/a\nb"}, "address[0]"},
		{[]string{"unix:/" + strings.Repeat("x", 107)}, "address[0]"},
		{make([]string, MaxAddresses+1), "address[16]"},
	} {
		_, err := New(c.addresses, Options{Noun: "stub"})
		k, ok := err.(interface{ Key() string })
		if !ok || k.Key() != c.key || strings.ContainsAny(err.Error(), "\n\r") {
			t.Errorf("%q: %v", c.addresses, err)
		}
	}
	s := newSet(t, Options{}, "unix:///run/a", "tcp://[::1]:25")
	if s.list[0].Name != "unix:/run/a" || s.list[1].Name != "tcp:[::1]:25" || s.list[1].Network != "tcp" || s.list[1].Address != "[::1]:25" {
		t.Errorf("%+v %+v", s.list[0], s.list[1])
	}
	if err := newSet(t, Options{}).Do(context.Background(), nil); err == nil {
		t.Error("no servers, no error")
	}
}

// A connection is there until it is closed, ends its waits with the context, and
// sees what came too early.
func TestConn(t *testing.T) {
	dir := t.TempDir()
	one := &Server{Network: "unix", Address: dir + "/s"}
	if _, err := one.Dial(context.Background()); !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	l := listen(t, dir+"/s")
	ctx, cancel := context.WithCancel(context.Background())
	c, err := one.Dial(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	other, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if c.Early() {
		t.Error("nothing was sent")
	}
	other.Write([]byte("x"))
	for range 2 {
		if !c.Early() {
			t.Error("something was sent, and must stay")
		}
	}
	if err := c.CloseWrite(); err != nil {
		t.Error(err)
	}
	if n, err := other.Read(make([]byte, 1)); n != 0 || err == nil {
		t.Error("the other side does not hear of the end")
	}
	var b [2]byte
	if n, _ := c.Read(b[:]); n != 1 {
		t.Error("the byte is gone")
	}
	cancel()
	if _, err := c.Read(b[:]); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error(err)
	}
}

func listen(t *testing.T, path string) net.Listener {
	t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}
