package ratelimit

import (
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

var start = time.Date(2026, 11, 2, 10, 0, 0, 0, time.UTC)

// event is something that was let pass.
type event struct {
	at time.Time
	n  uint64
}

// Whatever comes when, no window of the length sees more than the limit; what is
// put off would have been too much, within the last window and a part of it; and
// who waits as long as he is told passes.
func TestWindowIsSliding(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		per := time.Duration(rapid.Int64Range(int64(minPer), int64(90*time.Minute)).Draw(t, "per"))
		limit := rapid.Uint64Range(1, 40).Draw(t, "limit")
		now, w := start, &window{}
		var passed []event
		for range rapid.IntRange(1, 80).Draw(t, "events") {
			now = now.Add(time.Duration(rapid.Int64Range(0, int64(per)/6).Draw(t, "pause")))
			n := rapid.Uint64Range(1, limit).Draw(t, "n")
			b := w.encode(per) // as it is between two messages
			var err error
			if w, err = decode(b, per); err != nil {
				t.Fatal(err)
			}
			w.forget(per, now)
			if len(w.slots) > parts+1 {
				t.Fatalf("%d slots", len(w.slots))
			}
			if w.total()[messages]+n <= limit {
				w.add(per, now, counts{messages: n})
				passed = append(passed, event{now, n})
				if within(passed, now, per) > limit {
					t.Fatalf("%d within %v, limit %d: %v", within(passed, now, per), per, limit, passed)
				}
				continue
			}
			width := time.Duration(widthOf(per))
			if within(passed, now, per+width+parts)+n <= limit {
				t.Fatalf("%d put off, of %d there were %d", n, limit, within(passed, now, per+width))
			}
			wait := w.wait(per, now, messages, n, limit)
			if wait <= 0 || wait > per+2*width {
				t.Fatalf("wait %v of %v", wait, per)
			}
			then := &window{slots: slices.Clone(w.slots)}
			then.forget(per, now.Add(wait))
			if then.total()[messages]+n > limit {
				t.Fatalf("after %v there are still %d of %d, and %d more", wait, then.total()[messages], limit, n)
			}
			if before := (&window{slots: slices.Clone(w.slots)}); wait > 1 {
				before.forget(per, now.Add(wait-1))
				if before.total()[messages]+n <= limit {
					t.Fatalf("%v is too long to wait", wait)
				}
			}
		}
	})
}

// within is how much passed within a time before now, now included.
func within(passed []event, now time.Time, per time.Duration) (n uint64) {
	for _, e := range passed {
		if now.Sub(e.at) < per {
			n += e.n
		}
	}
	return n
}

// A clock that is set back holds nobody up for longer than the window.
func TestClockSetBack(t *testing.T) {
	w := &window{}
	w.add(time.Hour, start, counts{messages: 3})
	w.add(time.Hour, start.Add(time.Minute), counts{messages: 4})
	back := start.AddDate(-1, 0, 0)
	w.forget(time.Hour, back)
	if len(w.slots) != 1 || w.total()[messages] != 7 {
		t.Errorf("%+v", w.slots)
	}
	if wait := w.wait(time.Hour, back, messages, 1, 7); wait <= time.Hour-time.Minute || wait > time.Hour+time.Minute {
		t.Errorf("wait %v", wait)
	}
	w.forget(time.Hour, start.AddDate(1, 0, 0))
	if len(w.slots) != 0 {
		t.Errorf("%+v", w.slots)
	}
}

// A window whose length is changed keeps what it counted, as far as that still
// counts.
func TestOtherLength(t *testing.T) {
	w := &window{}
	for i := range 60 {
		w.add(time.Hour, start.Add(time.Duration(i)*time.Minute), counts{messages: 1, bytes: 100})
	}
	now := start.Add(time.Hour)
	for per, want := range map[time.Duration][2]uint64{time.Hour: {60, 60}, 24 * time.Hour: {60, 60}, 10 * time.Minute: {10, 11}} {
		other, err := decode(w.encode(time.Hour), per)
		if err != nil {
			t.Fatal(err)
		}
		other.forget(per, now)
		if n := other.total(); n[messages] < want[0] || n[messages] > want[1] || n[bytes] != 100*n[messages] {
			t.Errorf("%v: %v", per, n)
		}
	}
}

// No bytes are taken for a record that are none, and what is read is written
// again as it was.
func FuzzRecord(f *testing.F) {
	w := &window{}
	w.add(time.Hour, start, counts{messages: 1, recipients: 2, bytes: 3000, attempts: 1})
	w.add(time.Hour, start.Add(5*time.Minute), counts{messages: 1, recipients: 20, bytes: 1 << 40})
	f.Add(w.encode(time.Hour))
	f.Add((&window{}).encode(minPer))
	f.Add([]byte{version})
	f.Add([]byte{version, 1, 1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x3f, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		per, err := perOf(b)
		if err != nil {
			if _, err := decode(b, time.Hour); err == nil {
				t.Fatal("a record without a length")
			}
			return
		}
		w, err := decode(b, per)
		if err != nil {
			return
		}
		if len(w.slots) > parts+1 {
			t.Fatalf("%d slots", len(w.slots))
		}
		if again, err := decode(w.encode(per), per); err != nil || !slices.Equal(again.slots, w.slots) {
			t.Fatalf("%+v is %+v, %v", w, again, err)
		}
		for _, other := range []time.Duration{minPer, time.Hour, maxPer} {
			o, err := decode(b, other)
			if err != nil {
				t.Fatal(err)
			}
			o.forget(other, start)
			if len(o.slots) > parts+1 {
				t.Fatalf("%d slots", len(o.slots))
			}
			o.wait(other, start, messages, 1, 1)
		}
	})
}
