package pipeline

import (
	"sync"
	"time"
)

// Mode is whether a filter's verdicts count.
type Mode uint8

// The zero Mode enforces.
const (
	Enforce Mode = iota
	Shadow       // it runs and keeps its own state; what it says is only recorded
	Off          // it does not run
)

var modeNames = [...]string{"enforce", "shadow", "off"}

// String is the mode's word in configuration and commands.
func (m Mode) String() string {
	if int(m) < len(modeNames) {
		return modeNames[m]
	}
	return "invalid"
}

// ParseMode is the inverse of String.
func ParseMode(s string) (Mode, bool) {
	for i, name := range modeNames {
		if s == name {
			return Mode(i), true
		}
	}
	return Enforce, false
}

// Modes are the modes that an operator set while the daemon runs, over those
// of the configuration. They belong to the daemon and outlive a generation; a
// restart forgets them. Safe for concurrent use; a nil Modes is empty.
type Modes struct {
	mu  sync.RWMutex
	set map[string]Override
	now func() time.Time
}

// Override is a mode that an operator set.
type Override struct {
	Mode Mode
	// Until is when it ends; the zero time means at the next restart.
	Until time.Time
}

// NewModes returns an empty Modes with its clock; nil means time.Now.
func NewModes(now func() time.Time) *Modes {
	if now == nil {
		now = time.Now
	}
	return &Modes{set: map[string]Override{}, now: now}
}

// Set overrides the mode of the filter name, for ttl (0 or less: until a
// restart).
func (m *Modes) Set(name string, mode Mode, ttl time.Duration) Override {
	o := Override{Mode: mode}
	if ttl > 0 {
		o.Until = m.now().Add(ttl)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.set[name] = o
	return o
}

// Clear returns the filter name to its configured mode.
func (m *Modes) Clear(name string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.set, name)
}

// Get is the override of the filter name, if one is in force.
func (m *Modes) Get(name string) (Override, bool) {
	if m == nil {
		return Override{}, false
	}
	m.mu.RLock()
	o, ok := m.set[name]
	m.mu.RUnlock()
	if ok && !o.Until.IsZero() && !m.now().Before(o.Until) {
		return Override{}, false
	}
	return o, ok
}
