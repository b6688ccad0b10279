package schedule

import (
	"fmt"
	"testing"
	"time"
)

// TestUnlocatedHasConcurrencyOfItsOwn takes mail of many unknown domains: more
// batches than a site that has never succeeded may have, and no more than asked.
func TestUnlocatedHasConcurrencyOfItsOwn(t *testing.T) {
	now := time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
	s := New(Options{
		Unlocated: "?", UnlocatedLimit: 30, SiteLimit: 2,
		Route: func(string, string) string { return "?" }, Channels: []Channel{{Name: "r", Limit: 100}},
	})
	for i := range 60 {
		s.Add(Entry{Channel: "r", Domain: fmt.Sprintf("d%d", i), ID: uint64(i + 1), Recipient: 0})
	}
	var all []Batch
	for b, ok := s.Take(now); ok; b, ok = s.Take(now) {
		all = append(all, b)
	}
	if len(all) != 30 {
		t.Fatalf("%d at once, want 30", len(all))
	}
	for _, b := range all {
		s.Assign(b.Domain, "mx.shared")
		if err := s.Return(now, b); err != nil {
			t.Fatal(err)
		}
	}
	shared, unknown := 0, 0
	for b, ok := s.Take(now); ok; b, ok = s.Take(now) {
		switch b.Site {
		case "mx.shared":
			shared++
		case "?":
			unknown++
		}
	}
	if shared != 2 || unknown != 30 {
		t.Errorf("%d for a site with 2, %d unknown of 30", shared, unknown)
	}
	if err := s.Check(); err != nil {
		t.Error(err)
	}
}

func TestUnpace(t *testing.T) {
	now := time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
	s := New(Options{})
	s.Add(Entry{Domain: "d", ID: 1})
	s.Pace("d", now.Add(time.Hour))
	if _, ok := s.Take(now); ok {
		t.Fatal("taken in spite of its pace")
	}
	s.Unpace("d")
	s.Unpace("elsewhere")
	s.Suspend("d", now.Add(time.Minute))
	s.Unpace("d")
	if _, ok := s.Take(now); ok {
		t.Fatal("unpacing ended a suspension")
	}
	if _, ok := s.Take(now.Add(time.Minute)); !ok {
		t.Fatal("not taken after the suspension")
	}
}
