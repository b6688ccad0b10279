package limit

import (
	"slices"
	"time"
)

// TakeOver makes the connection of another ticket this one's, which was got for a
// site whose hosts include the same address, from the same source: the connection
// counts for this ticket's path from now on, at the address without a gap, and the
// other ticket is over. It was opened once, so this one was no new connection. groups
// are those that the address is in.
func (t *Ticket) TakeOver(now time.Time, other *Ticket, groups ...string) {
	g := t.g
	g.mu.Lock()
	defer g.unlock()
	if t.closed || other.closed || t == other {
		return
	}
	t.refund(now)
	t.leaveAddress(now)
	t.takeAddress(now, other, groups)
	t.sent, t.rcpts = other.sent, other.rcpts
	other.close(now)
	slept := t.control.asleep
	t.control.greeted(now, &t.conn)
	t.shareGreeted(now)
	t.awake(slept)
}

// takeAddress moves what counts by the address. What both tickets count for stays
// counted once for each until the other is closed.
func (t *Ticket) takeAddress(now time.Time, other *Ticket, groups []string) {
	if len(other.at) == 0 {
		return
	}
	keep := []Key{other.at[0]}
	for _, k := range other.at[1:] {
		if slices.Contains(t.keys, k) {
			t.g.leave(now, k)
		} else {
			keep = append(keep, k)
		}
	}
	for _, name := range groups {
		if k := (Key{Group, name}); !slices.Contains(t.keys, k) && !slices.Contains(keep, k) {
			t.g.counter(k).open++
			keep = append(keep, k)
		}
	}
	t.at, other.at = keep, nil
	t.greeted, other.greeted = other.greeted, false
	rest := other.joined[:0]
	for _, j := range other.joined {
		if j.key.Level != Address {
			rest = append(rest, j)
			continue
		}
		if s := t.g.shares[j.pair]; j.conn.greeting > 0 {
			s.left(other.path.Site)
			s.sites[t.path.Site]++
		}
		t.joined = append(t.joined, j)
	}
	other.joined = rest
}
