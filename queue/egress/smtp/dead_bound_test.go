package smtp

import (
	"log/slog"
	"net/netip"
	"testing"
	"time"
)

// TestDeadHostsAreBounded: the memory forgets rather than grow, and first what it
// knows least of.
func TestDeadHostsAreBounded(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	d := &deadHosts{o: &Options{Now: func() time.Time { return now }, Log: slog.New(slog.DiscardHandler), ConnectTimeout: time.Second}}
	at := func(i int) candidate {
		return candidate{address: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 25)}
	}
	d.silent(at(0))
	now = now.Add(deadApart)
	d.silent(at(0)) // is passed over now
	for i := range maxRemembered + 100 {
		d.silent(at(i + 1))
	}
	if _, over := d.passes(at(0).address); len(d.all) != maxRemembered || !over {
		t.Errorf("%d are remembered, the dead one passed over: %v", len(d.all), over)
	}
	now = now.Add(deadKept)
	d.silent(at(1 << 20))
	if len(d.all) != 1 {
		t.Errorf("%d are remembered that were silent half a day ago", len(d.all))
	}
}
