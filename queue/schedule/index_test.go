package schedule

import (
	"fmt"
	"math/rand/v2"
	"testing"
)

// TestIndex finds messages of one and of many recipients while the index grows
// and shrinks by several chunks.
func TestIndex(t *testing.T) {
	s := New(Options{})
	g := rand.New(rand.NewPCG(1, 1))
	want := map[uint64]int{}
	check := func() {
		t.Helper()
		if err := s.Check(); err != nil {
			t.Fatal(err)
		}
		for id, n := range want {
			if got := count(s.Items(Select{ID: id})); got != n {
				t.Fatalf("%d recipients of message %d, not %d", got, id, n)
			}
		}
	}
	if n := count(s.Items(Select{ID: 1})); n != 0 {
		t.Errorf("%d recipients in an empty schedule", n)
	}
	for i := range 6000 {
		id, n := uint64(i+1)<<22, 1
		switch i % 1000 {
		case 10:
			n = 3000
		case 20, 30:
			n = 2
		}
		want[id] = n
		for r := range n {
			s.Add(Entry{Domain: fmt.Sprintf("d%d.example", g.IntN(100)), ID: id, Recipient: uint32(r), Due: epoch})
		}
	}
	check()
	full := len(s.index.chunks)
	for len(want) > 0 {
		var ids []uint64
		for id := range want {
			if ids = append(ids, id); len(ids) == 2000 {
				break
			}
		}
		gone := 0
		for _, id := range ids {
			gone += want[id]
			delete(want, id)
		}
		if n := s.Remove(Select{IDs: ids}); n != gone {
			t.Fatalf("%d recipients removed, not %d", n, gone)
		}
		check()
	}
	if left := len(s.index.chunks); s.Len() != 0 || full < 10 || left > 3 {
		t.Errorf("%d recipients, %d chunks of %d are left", s.Len(), left, full)
	}
}
