package clamav

import (
	"context"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/postern-mta/postern/pipeline/message"
)

// clock is a clock that is set by hand.
type clock struct{ at atomic.Int64 }

func (c *clock) now() time.Time { return time.Unix(0, c.at.Load()) }

// A clamd that fails is left alone longer and longer, asked by PING before it
// gets mail again, and then works as before.
func TestRest(t *testing.T) {
	var scans, pings atomic.Int64
	broken := func(c *stubConn) {
		switch line, _ := c.r.ReadString(0); line {
		case "zPING\x00":
			pings.Add(1)
			io.WriteString(c, "PANG\x00")
		case inStream:
			scans.Add(1)
		}
	}
	s := newStub(t, broken)
	f := newFilter(t, "", s.address)
	c := &clock{}
	f.clamds.now = c.now
	call := func(want string) {
		t.Helper()
		if _, err := judge(f, "x", 5*time.Second); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	counts := func(s, p int64) {
		t.Helper()
		if scans.Load() != s || pings.Load() != p {
			t.Errorf("%d scans, %d pings, want %d, %d", scans.Load(), pings.Load(), s, p)
		}
	}
	call("")
	counts(1, 0)
	call(`answers "PANG" to PING`)
	counts(1, 1)
	rest := firstRest
	for i := range int64(8) {
		call(`left alone after it failed: clamd answers "PANG"`)
		c.at.Add(int64(rest) - 1)
		call("left alone")
		counts(1, i+1)
		c.at.Add(1)
		call("not scanned: " + s.address + `: clamd answers "PANG" to PING`)
		counts(1, i+2)
		rest = min(2*rest, longestRest)
	}
	s.play.Store(ptr(honest))
	call("left alone")
	c.at.Add(int64(longestRest))
	must(t, f, "x")
	must(t, f, "x")
	if s.scans.Load() != 2 || f.clamds.list[0].failed != 0 {
		t.Errorf("%d scans, %d failures", s.scans.Load(), f.clamds.list[0].failed)
	}
}

// No clamd has more to do than it may, and all have something to do.
func TestConnections(t *testing.T) {
	slow := func(c *stubConn) {
		time.Sleep(5 * time.Millisecond)
		honest(c)
	}
	stubs := []*stub{newStub(t, slow), newStub(t, slow)}
	f := newFilter(t, "connections = 3\nparts = \"none\"", stubs[0].address, stubs[1].address)
	var calls sync.WaitGroup
	for range 60 {
		calls.Go(func() {
			if _, err := judge(f, "x", 20*time.Second); err != nil {
				t.Error(err)
			}
		})
	}
	calls.Wait()
	for i, s := range stubs {
		// One that is closed by us may be open for the stub a moment longer.
		if s.most.Load() > 3+2 || s.scans.Load() < 10 {
			t.Errorf("stub %d: %d at a time, %d in all", i, s.most.Load(), s.scans.Load())
		}
		if f.clamds.list[i].load != 0 || len(f.clamds.list[i].slots) != 0 {
			t.Errorf("stub %d: something is left", i)
		}
	}
}

// Who waits for a free connection waits no longer than the call.
func TestBusy(t *testing.T) {
	began := make(chan struct{})
	s := newStub(t, func(c *stubConn) {
		c.command()
		close(began)
		c.hang()
	})
	f := newFilter(t, "connections = 1", s.address)
	ctx, cancel := context.WithCancel(context.Background())
	var first sync.WaitGroup
	first.Go(func() {
		if _, err := f.Message(ctx, transaction(), message.FromString("x")); err == nil {
			t.Error("no error")
		}
	})
	<-began
	if _, err := judge(f, "x", 100*time.Millisecond); err == nil || !strings.Contains(err.Error(), errBusy.Error()) {
		t.Error(err)
	}
	cancel()
	first.Wait()
	if f.clamds.list[0].failed != 0 {
		t.Error("the clamd is blamed")
	}
}

// One of two that hangs costs the first calls its share of their time, and the
// ones after that nothing.
func TestHangs(t *testing.T) {
	bad, good := newStub(t, func(c *stubConn) { c.hang() }), newStub(t, honest)
	f := newFilter(t, "", bad.address, good.address)
	c := &clock{}
	f.clamds.now = c.now
	for range 10 {
		if _, err := judge(f, "x", 2*time.Second); err != nil {
			t.Error(err)
		}
	}
	if good.scans.Load() != 10 || f.clamds.list[0].failed != 2 {
		t.Errorf("%d scans, %d failures", good.scans.Load(), f.clamds.list[0].failed)
	}
}
