package main

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/postern-mta/postern/queue/limit"
)

// waitersRig is a way out to a site with room for one connection.
type waitersRig struct {
	*limits
	t  *testing.T
	at lane
}

func newWaitersRig(t *testing.T) *waitersRig {
	t.Helper()
	out := testOutward(t, "[route]\n\"d.test\" = \"192.0.2.1\"\n[site.default]\nconnections = 1\nconnection_rate = \"none\"\n")
	place, err := out.exit.Locate(t.Context(), "d.test")
	if err != nil {
		t.Fatal(err)
	}
	out.limits.learn(place)
	return &waitersRig{limits: out.limits, t: t, at: lane{site: place.Site.Name}}
}

// line waits until so many stand in line.
func (r *waitersRig) line(n int) {
	r.t.Helper()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		r.waiters.mu.Lock()
		got := len(r.waiters.lines[r.at.site][r.at.pool])
		r.waiters.mu.Unlock()
		if got == n {
			return
		}
		if time.Now().After(end) {
			r.t.Fatalf("%d wait, and not %d", got, n)
		}
	}
}

// take gets the only room there is.
func (r *waitersRig) take() *permit {
	r.t.Helper()
	leave, no := r.turn(context.Background(), r.at, r.now(), nil)
	if leave == nil {
		r.t.Fatalf("no leave: %v", no)
	}
	return leave
}

// TestWaitersInLine: whoever came first goes first, but one that was sent back goes
// before all, and who gives up lets the next one ask.
func TestWaitersInLine(t *testing.T) {
	t.Parallel()
	r := newWaitersRig(t)
	leave := r.take()
	if _, no := r.turn(t.Context(), r.at, r.now(), nil); no == nil || no.What != "connections" || no.Limit != "1" {
		t.Fatalf("without patience: %v", no)
	}
	order := make(chan string, 10)
	done := make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	wait := func(name string, ctx context.Context, after *limit.Refusal) {
		leave, _ := r.turn(ctx, r.at, r.now().Add(time.Minute), after)
		if leave == nil {
			order <- name + " gave up"
		} else {
			order <- name
			leave.Release()
		}
		done <- struct{}{}
	}
	go wait("first", ctx, nil)
	r.line(1)
	for i, name := range []string{"second", "third"} {
		go wait(name, t.Context(), nil)
		r.line(i + 2)
	}
	go wait("again", t.Context(), &limit.Refusal{Until: time.Now().Add(-time.Second)})
	r.line(4)
	cancel()
	<-done
	leave.Release()
	for range 3 {
		<-done
	}
	close(order)
	var got []string
	for name := range order {
		got = append(got, name)
	}
	if !slices.Equal(got, []string{"first gave up", "again", "second", "third"}) {
		t.Errorf("%q", got)
	}
	if r.waiters.lines[r.at.site] != nil {
		t.Error("there is a line still")
	}
	r.take().Release()
}

// TestWaitersGiveUp: nobody waits for what cannot come in time, and those behind do
// not wait for him.
func TestWaitersGiveUp(t *testing.T) {
	t.Parallel()
	r := newWaitersRig(t)
	key := limit.Key{Level: limit.Site, Name: r.at.site}
	for name, until := range map[string]time.Time{"for an hour": time.Now().Add(time.Hour), "until somebody says so": {}} {
		r.gate.Suspend(r.now(), key, until, "testing")
		began := time.Now()
		_, no := r.turn(t.Context(), r.at, r.now().Add(10*time.Minute), nil)
		if no == nil || no.What != "suspended" || time.Since(began) > time.Minute {
			t.Errorf("%s: %v", name, no)
		}
		r.gate.Resume(r.now(), key)
	}
	leave := r.take()
	defer leave.Release()
	if _, no := r.turn(t.Context(), r.at, r.now().Add(50*time.Millisecond), nil); no == nil || no.What != "connections" {
		t.Errorf("after a while: %v", no)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if leave, _ := r.turn(ctx, r.at, r.now().Add(10*time.Minute), nil); leave != nil {
		t.Error("leave for one who is gone")
	}
}
