package limit

import (
	"testing"
	"time"
)

// TestExplainSaysWhatKeepsMessages: where another connection could be had, the rate
// that keeps the next message is what binds.
func TestExplainSaysWhatKeepsMessages(t *testing.T) {
	classes, err := ShippedClasses()
	if err != nil {
		t.Fatal(err)
	}
	g := New(Options{Classes: classes, Bounds: func(k Key) Bounds {
		if k == (Key{Provider, "slow"}) {
			return Bounds{Messages: Rate{Count: 2, Per: time.Hour}}
		}
		return Bounds{}
	}})
	open := func(p Path) *Ticket {
		t.Helper()
		k, no := g.Open(start, p)
		if no != nil {
			t.Fatal(no)
		}
		k.Greeted(start)
		if no := k.Message(start, 1); no != nil {
			t.Fatal(no)
		}
		return k
	}
	fast, slow := Path{Site: "fast"}, Path{Site: "slow", Provider: "slow"}
	open(slow).Taken(start)
	no := g.Explain(start, slow).Binding
	if no == nil || no.Key != (Key{Provider, "slow"}) || no.What != "messages" || no.Limit != "2/h" || !no.Until.Equal(start.Add(30*time.Minute)) {
		t.Errorf("%+v", no)
	}
	if no := g.Explain(start.Add(30*time.Minute), slow).Binding; no != nil {
		t.Errorf("half an hour later: %v", no)
	}
	k := open(fast)
	if no := g.Explain(start, fast).Binding; no != nil {
		t.Errorf("%v", no)
	}
	k.Said(start, Answer{Code: 451, Enhanced: "4.7.1", Text: "Message rate limit exceeded, try later"})
	before := g.Sites(start)[0].Control
	if no := g.Explain(start, fast).Binding; no == nil || no.Key != (Key{Adapted, "fast"}) || no.What != "messages" || !no.Until.Equal(start.Add(firstRest)) {
		t.Errorf("%+v", no)
	}
	if after := g.Sites(start)[0].Control; after.Rate != before.Rate {
		t.Error("to explain has changed it")
	}
}

// TestLastAnswerIsRemembered: what was heard, and whether it moved anything.
func TestLastAnswerIsRemembered(t *testing.T) {
	classes, err := ShippedClasses()
	if err != nil {
		t.Fatal(err)
	}
	g := New(Options{Classes: classes})
	k, no := g.Open(start, Path{Site: "x"})
	if no != nil {
		t.Fatal(no)
	}
	state := func() ControlState { return g.Sites(start)[0].Control }
	k.Greeted(start)
	k.Said(start, Answer{Code: 550, Enhanced: "5.1.1", Text: "no such user"})
	if s := state(); !s.Said.Time.IsZero() {
		t.Errorf("about a mailbox: %+v", s.Said)
	}
	k.Said(start, Answer{Code: 450, Enhanced: "4.2.0", Text: "Greylisted, see you later"})
	if s := state(); s.Said.Class != Greylisted || s.Said.Time != start || s.Said.Text == "" || len(s.Moves) != 0 {
		t.Errorf("%+v", s)
	}
	k.Unreachable(start, "no route to host")
	if s := state(); s.Said.Class != Down || s.Said.Text != "no route to host" {
		t.Errorf("%+v", s.Said)
	}
	k.Said(start, playedAnswers[5])
	later := start.Add(time.Minute)
	k.Said(later, playedAnswers[5])
	if s := g.Sites(later)[0].Control; s.Since != start || !s.Until.Equal(later.Add(2*time.Hour)) || s.Said.Time != later {
		t.Errorf("a suspension that is extended: %+v", s)
	}
	if no := g.Suspended(later, Path{Site: "x"}); no == nil || no.Since != start {
		t.Errorf("%+v", no)
	}
	g.Suspend(later, Key{Site, "y"}, time.Time{}, "asked")
	if no := g.Suspended(later.Add(time.Hour), Path{Site: "y"}); no == nil || no.Since != later {
		t.Errorf("%+v", no)
	}
}

func TestRateText(t *testing.T) {
	for rate, want := range map[float64]string{100: "100/s", 2.5: "2.5/s", 1: "1/s", 0.9999: "1/s", 0.2: "12/min", 1.0 / 600: "6/h", 1e-5: "0.036/h"} {
		if got := RateText(rate); got != want {
			t.Errorf("%v: %s, want %s", rate, got, want)
		}
	}
}
