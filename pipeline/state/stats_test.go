package state

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// TestStats: what each space takes, what its time took, and what made room. What
// is put again, deleted by hand or asked for is neither.
func TestStats(t *testing.T) {
	h := newHand()
	o, _ := options(vfs.NewMem(), h)
	o.Entries = 100
	s := open(t, o)
	a, b := s.Space("a"), s.Space("b")
	for i := range 150 {
		put(t, a, fmt.Sprintf("k%03d", i), "value", time.Hour+time.Duration(i)*time.Second)
	}
	put(t, b, "short", "v", time.Second)
	put(t, b, "long", "v", time.Hour)
	put(t, b, "again", "v", time.Second)
	put(t, b, "again", "v", time.Hour)
	put(t, b, "gone", "v", time.Hour)
	if err := b.Delete(t.Context(), "gone"); err != nil {
		t.Fatal(err)
	}
	flush(t, s)
	evicted := Stats{Space: "a", Entries: 100, Bytes: 100 * int64(len("k000value")), Evicted: 50}
	if got := s.Stats(); !slices.Equal(got, []Stats{evicted, {Space: "b", Entries: 3, Bytes: int64(len("shortvlongvagainv"))}}) {
		t.Errorf("%+v", got)
	}
	h.forward(time.Minute)
	sweep(t, s)
	want := []Stats{evicted, {Space: "b", Entries: 2, Bytes: int64(len("longvagainv")), Expired: 1}}
	if got := s.Stats(); !slices.Equal(got, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
	closeStore(t, s)
	want[0].Evicted, want[1].Expired = 0, 0 // they are counted since the start
	if got := open(t, o).Stats(); !slices.Equal(got, want) {
		t.Errorf("%+v, want %+v after a restart", got, want)
	}
}
