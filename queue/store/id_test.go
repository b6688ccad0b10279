package store

import (
	"math"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestIDRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := ID(rapid.Uint64().Draw(t, "a")), ID(rapid.Uint64().Draw(t, "b"))
		back, err := ParseID(a.String())
		if err != nil || back != a {
			t.Fatalf("%v came back as %v: %v", a, back, err)
		}
		if (a < b) != (a.String() < b.String()) {
			t.Fatalf("%s and %s sort unlike %d and %d", a, b, a, b)
		}
	})
	for _, s := range []string{"", "0", "00000000000000", "000000000000u", "g000000000000", "zzzzzzzzzzzzz", "000000000000\x00"} {
		if id, err := ParseID(s); err == nil {
			t.Errorf("%q is %d", s, id)
		}
	}
	if ID(math.MaxUint64).String() != "fzzzzzzzzzzzz" {
		t.Error(ID(math.MaxUint64).String())
	}
	now := time.UnixMilli(1_790_000_000_123)
	if got := FirstID(now).Time(); !got.Equal(now) {
		t.Error(got)
	}
}

func TestEntryState(t *testing.T) {
	e := Entry{States: []SetState{{Recipient: 1, State: State{Attempts: 1}}, {Recipient: 5, State: State{Attempts: 5}}, {Recipient: 9, State: State{Attempts: 9}}}}
	for n := uint32(0); n < 12; n++ {
		want := uint16(0)
		if n == 1 || n == 5 || n == 9 {
			want = uint16(n)
		}
		if got := e.State(n).Attempts; got != want {
			t.Errorf("recipient %d has state %d", n, got)
		}
	}
}
