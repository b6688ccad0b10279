package state

import (
	"sync"
	"time"
)

// clock is the store's own time. It goes on with the clock of the system but is
// not moved by its jumps. Where times have a monotonic reading, as time.Now's
// have, a jump is not seen at all.
type clock struct {
	mu   sync.Mutex
	now  func() time.Time
	step time.Duration
	last time.Time
	time int64 // nanoseconds since 1970, if no clock ever jumped
}

// read is the time, in seconds.
func (c *clock) read() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.now()
	c.time += int64(min(max(now.Sub(c.last), 0), c.step))
	c.last = now
	return c.time / int64(time.Second)
}

// resume goes on from the time that was saved, with the clock that it was saved
// at (both in seconds).
func (c *clock) resume(saved, wall int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last = c.now()
	away := min(max(c.last.Unix()-wall, 0), int64(maxAway/time.Second))
	c.time = (saved + away) * int64(time.Second)
}

// save is what resume wants.
func (c *clock) save() (saved, wall int64) {
	t := c.read()
	c.mu.Lock()
	defer c.mu.Unlock()
	return t, c.last.Unix()
}
