package limit

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func planned(plan ...int) func(string) Warmup {
	return func(source string) Warmup {
		if source != "new" {
			return Warmup{}
		}
		return Warmup{Since: Date(begin), Plan: plan}
	}
}

func TestWarmupDays(t *testing.T) {
	w := Warmup{Since: Date(begin), Plan: []int{5, 10}}
	for _, test := range []struct {
		w     Warmup
		after time.Duration
		want  string
	}{
		{Warmup{}, 0, "0 false 0 false"},
		{Warmup{Since: begin}, 0, "0 false 0 false"},
		{w, -9 * time.Hour, "0 true 0 true"}, // the evening before
		{w, -40 * time.Hour, "-1 true 0 true"},
		{w, -8 * time.Hour, "1 true 5 true"}, // midnight
		{w, 0, "1 true 5 true"},
		{w, 16*time.Hour - 1, "1 true 5 true"},
		{w, 16 * time.Hour, "2 true 10 true"},
		{w, 40 * time.Hour, "0 false 0 false"},
		{w, 4000 * time.Hour, "0 false 0 false"},
	} {
		day, going := test.w.Day(begin.Add(test.after))
		most, bound := test.w.Budget(begin.Add(test.after))
		if got := fmt.Sprint(day, going, most, bound); got != test.want {
			t.Errorf("after %v: %s, want %s", test.after, got, test.want)
		}
	}
	plan, err := ShippedPlan()
	if err != nil || len(plan) != 28 {
		t.Fatal(plan, err)
	}
	for i := range plan[1:] {
		if plan[i+1] < plan[i] || plan[i+1] > 2*plan[i] {
			t.Errorf("day %d: %d after %d", i+2, plan[i+1], plan[i])
		}
	}
}

// TestBudgetIsForEachProvider sends as much as there is on two days.
func TestBudgetIsForEachProvider(t *testing.T) {
	g := New(Options{Warmup: planned(3, 6)})
	sent := func(now time.Time, p Path) (n int, no *Refusal) {
		ticket, no := g.Open(now, p)
		if no != nil {
			return 0, no
		}
		defer ticket.Close(now)
		for ; n < 50; n++ {
			if no = ticket.Message(now, 1); no != nil {
				return n, no
			}
			now = now.Add(100 * time.Millisecond)
		}
		return n, nil
	}
	one, two := Path{Source: "new", Provider: "google", Site: "one"}, Path{Source: "new", Provider: "google", Site: "two"}
	early := begin.Add(-24 * time.Hour)
	if n, no := sent(early, one); n != 0 || !no.Until.Equal(Date(begin)) {
		t.Errorf("before the first day: %d, %+v", n, no)
	}
	for _, test := range []struct {
		now  time.Time
		p    Path
		want int
	}{
		{begin, one, 3},
		{begin.Add(time.Minute), two, 0}, // the same provider
		{begin, Path{Source: "new", Site: "alone"}, 3},
		{begin, Path{Source: "new", Site: "routed", Routed: true}, 50},
		{begin, Path{Source: "old", Provider: "google", Site: "one"}, 50},
		{begin.Add(24 * time.Hour), two, 6},
		{begin.Add(48 * time.Hour), two, 50},
	} {
		n, no := sent(test.now, test.p)
		if n != test.want || (no == nil) != (test.want == 50) {
			t.Errorf("%v %+v: %d, %v, want %d", test.now, test.p, n, no, test.want)
		}
		if no != nil && (no.Key != Key{Source, "new"} || !no.Until.Equal(Date(test.now).Add(24*time.Hour))) {
			t.Errorf("%+v", no)
		}
	}
	g.Sweep(begin.Add(100 * time.Hour))
	if len(g.quotas) != 0 {
		t.Errorf("%d counts are left", len(g.quotas))
	}
}

// TestBudgetIsNeverExceeded has many ask at once for leave, of whom some do nothing
// with it.
func TestBudgetIsNeverExceeded(t *testing.T) {
	g := New(Options{Warmup: planned(100), Bounds: func(k Key) Bounds {
		if k.Level == Site {
			return Bounds{Connections: None, NewConnections: Rate{Count: None}, Messages: Rate{Count: None}, MessagesEach: None}
		}
		return Bounds{}
	}})
	p := Path{Source: "new", Provider: "google", Site: "one"}
	ticket, no := g.Open(begin, p)
	if no != nil {
		t.Fatal(no)
	}
	var mu sync.Mutex // a ticket's methods are for one at a time
	var sent, refused atomic.Int32
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			for range 40 {
				if no := g.Keep(begin, p); no != nil {
					refused.Add(1)
					continue
				}
				if i%4 != 0 {
					mu.Lock()
					no := ticket.Message(begin, 1)
					mu.Unlock()
					if no == nil {
						sent.Add(1)
					} else {
						t.Error("leave that was kept is not good:", no)
					}
				}
				g.Give(p)
			}
		})
	}
	wg.Wait()
	for sent.Load() < 100 && ticket.Message(begin, 1) == nil {
		sent.Add(1)
	}
	if s, ok := g.WarmupOf(begin, p); sent.Load() != 100 || !ok || s.Used != 100 || s.Most != 100 || s.Day != 1 || s.To != "provider google" {
		t.Errorf("%d sent, %+v", sent.Load(), s)
	}
	if no := g.Keep(begin, p); no == nil {
		t.Error("there is more than the budget")
	}
	if e := g.Explain(begin, p); e.Binding == nil || e.Binding.What != warmupWhat {
		t.Errorf("%+v", e.Binding)
	}
}

// TestUsedOutlivesARestart carries counts over.
func TestUsedOutlivesARestart(t *testing.T) {
	g := New(Options{Warmup: planned(10)})
	p, q := Path{Source: "new", Provider: "google", Site: "one"}, Path{Source: "new", Site: "two"}
	for _, path := range []Path{p, p, p, q} {
		ticket, _ := g.Open(begin, path)
		if no := ticket.Message(begin, 1); no != nil {
			t.Fatal(no)
		}
		ticket.Close(begin)
	}
	all := g.ExportUsed(begin)
	next := New(Options{Warmup: planned(10)})
	bad := []Used{{"new", "planet mars", Date(begin), 1}, {"new", "site ", Date(begin), 1}, {"new", "site x", Date(begin).Add(24 * time.Hour), 1}, {"new", "site y", Date(begin), -1}}
	if n := next.ImportUsed(begin, append(all, bad...)); n != 2 {
		t.Errorf("%d taken in, want 2", n)
	}
	for path, want := range map[string]int{"one": 3, "two": 1} {
		at := q
		if path == "one" {
			at = p
		}
		if s, _ := next.WarmupOf(begin, at); s.Used != want {
			t.Errorf("%s: %+v", path, s)
		}
	}
	if n := next.ImportUsed(begin.Add(24*time.Hour), all); n != 0 {
		t.Errorf("%d of yesterday", n)
	}
}
