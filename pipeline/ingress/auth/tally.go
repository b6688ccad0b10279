package auth

import "time"

// sample is how many entries of a full table are looked at for one to forget.
const sample = 8

// tally counts failures, and forgets them evenly in time.
type tally struct {
	level   float64
	at      time.Time // when level was right
	pending int       // attempts under way
	freed   chan struct{}
}

// drain forgets what the time since the last look allows.
func (t *tally) drain(now time.Time, limit int, window time.Duration) {
	if since := now.Sub(t.at); since > 0 {
		t.level = max(0, t.level-float64(limit)*float64(since)/float64(window))
	}
	t.at = now
}

// room reports whether there is room for one more failure, and whether the limit
// is reached even if all attempts under way succeed.
func (t *tally) room(now time.Time, limit int, window time.Duration) (free, over bool) {
	t.drain(now, limit, window)
	return t.level+float64(t.pending)+1 <= float64(limit), t.level+1 > float64(limit)
}

// wait is closed when an attempt ends.
func (t *tally) wait() <-chan struct{} {
	if t.freed == nil {
		t.freed = make(chan struct{})
	}
	return t.freed
}

// leave ends an attempt.
func (t *tally) leave() {
	t.pending--
	if t.freed != nil {
		close(t.freed)
		t.freed = nil
	}
}

// tallies is a table of tallies that has a bound.
type tallies[K comparable] struct {
	limit  int
	window time.Duration
	most   int
	all    map[K]*tally
}

// get finds a tally or makes one.
func (a *tallies[K]) get(key K, now time.Time) *tally {
	t := a.all[key]
	if t == nil {
		if len(a.all) >= a.most {
			a.forget(now)
		}
		t = &tally{at: now}
		a.all[key] = t
	}
	return t
}

// forget makes room: of a few entries at random (a map's order is), those
// without failures go, or the one with the fewest. One with attempts under way
// stays, so the table may for a while have as many more entries as there are
// attempts.
func (a *tallies[K]) forget(now time.Time) {
	var least K
	level, seen, found, gone := 0.0, 0, false, false
	for key, t := range a.all {
		if seen++; seen > sample {
			break
		}
		if t.pending > 0 || t.freed != nil {
			continue
		}
		t.drain(now, a.limit, a.window)
		switch {
		case t.level == 0:
			delete(a.all, key)
			gone = true
		case !found || t.level < level:
			least, level, found = key, t.level, true
		}
	}
	if !gone && found {
		delete(a.all, least)
	}
}
