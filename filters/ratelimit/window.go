package ratelimit

import (
	"encoding/binary"
	"errors"
	"time"
)

// parts is into how many slots a window is cut: what is counted is counted for
// the window's length at least, and for one part of it longer at most.
const parts = 60

// what is counted.
const (
	messages = iota
	recipients
	bytes
	attempts
	quantities
)

// counts are numbers of each quantity.
type counts [quantities]uint64

// most bounds every number.
const most = 1 << 50

func (c *counts) add(d counts) {
	for i := range c {
		c[i] = min(c[i]+min(d[i], most), most)
	}
}

// slot is what was counted within one part of a window.
type slot struct {
	at int64 // the slot's number, since 1970
	n  counts
}

// window is what was counted lately, the oldest first; at most parts+1 slots.
type window struct{ slots []slot }

// widthOf is the length of a slot: a part of the window, or a little more.
func widthOf(per time.Duration) int64 { return (int64(per) + parts - 1) / parts }

// forget takes out what is older than the window at a time. What was counted in
// the future, before a clock was set back, counts as of now.
func (w *window) forget(per time.Duration, now time.Time) {
	current := now.UnixNano() / widthOf(per)
	kept := w.slots[:0]
	for _, s := range w.slots {
		s.at = min(s.at, current)
		switch n := len(kept); {
		case s.at < current-parts: // all of it is a window ago, or more
		case n > 0 && kept[n-1].at == s.at:
			kept[n-1].n.add(s.n)
		default:
			kept = append(kept, s)
		}
	}
	w.slots = kept
}

// total is what was counted, of one that has forgotten.
func (w *window) total() (c counts) {
	for _, s := range w.slots {
		c.add(s.n)
	}
	return c
}

// add counts now; the window has forgotten.
func (w *window) add(per time.Duration, now time.Time, n counts) {
	current := now.UnixNano() / widthOf(per)
	if last := len(w.slots) - 1; last >= 0 && w.slots[last].at == current {
		w.slots[last].n.add(n)
		return
	}
	w.slots = append(w.slots, slot{current, n})
}

// wait is how long it takes until there is room for so much more of a quantity
// under a limit, if nothing else is counted meanwhile; the window has forgotten.
func (w *window) wait(per time.Duration, now time.Time, quantity int, more, limit uint64) time.Duration {
	used := w.total()[quantity]
	width := widthOf(per)
	var free int64
	for _, s := range w.slots {
		if used+more <= limit {
			break
		}
		used -= min(s.n[quantity], used)
		free = (s.at + parts + 1) * width
	}
	return max(time.Duration(free-now.UnixNano()), 0)
}

// version is the first byte of a record.
const version = 1

var errRecord = errors.New("ratelimit: a record is damaged")

// encode writes a window for decode.
func (w *window) encode(per time.Duration) []byte {
	b := append(make([]byte, 0, 16+8*len(w.slots)), version)
	b = binary.AppendUvarint(b, uint64(widthOf(per)))
	b = binary.AppendUvarint(b, uint64(len(w.slots)))
	before := int64(0)
	for _, s := range w.slots {
		b = binary.AppendUvarint(b, uint64(s.at-before))
		before = s.at
		for _, n := range s.n {
			b = binary.AppendUvarint(b, n)
		}
	}
	return b
}

// decode reads what encode wrote, perhaps for a window of another length. What
// was counted then counts as of the end of its slot.
func decode(b []byte, per time.Duration) (*window, error) {
	if len(b) == 0 || b[0] != version {
		return nil, errRecord
	}
	r := reader{b: b[1:]}
	width := int64(r.number(uint64(maxPer / parts)))
	n := r.number(parts + 1)
	if r.bad || width == 0 {
		return nil, errRecord
	}
	w := &window{slots: make([]slot, 0, n)}
	at := int64(0)
	for i := range n {
		step := int64(r.number(1 << 62))
		var c counts
		for k := range c {
			c[k] = r.number(most)
		}
		if at += step; r.bad || i > 0 && step == 0 || at < 0 || at > (1<<62)/width {
			return nil, errRecord
		}
		s := slot{at, c}
		if own := widthOf(per); own != width {
			s.at = ((at+1)*width - 1) / own
		}
		if last := len(w.slots) - 1; last >= 0 && w.slots[last].at == s.at {
			w.slots[last].n.add(c)
		} else {
			w.slots = append(w.slots, s)
		}
	}
	if len(r.b) > 0 {
		return nil, errRecord
	}
	return w, nil
}

// reader reads numbers. What is asked for after an error is zero.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) number(most uint64) uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 || v > most {
		r.b, r.bad = nil, true
		return 0
	}
	r.b = r.b[n:]
	return v
}
