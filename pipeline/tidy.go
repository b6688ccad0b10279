package pipeline

import (
	"sync/atomic"
	"time"
)

// farewell closes the instances of a session, one after the other. It is begun
// again behind one that does not end; each instance is closed once all the same.
type farewell struct {
	chain  *Chain
	opened []opened
	next   atomic.Int32
}

func (f *farewell) do() {
	for {
		i := int(f.next.Add(1)) - 1
		if i >= len(f.opened) {
			return
		}
		if o := &f.opened[i]; o.instance != nil && !o.stuck {
			f.chain.closeInstance(f.chain.steps[i].Name, o.instance)
		}
	}
}

func (f *farewell) late() {}

// closeAll closes the instances of a session. One that does not end is left to
// itself.
func (j *Judge) closeAll() {
	open := false
	for i := range j.opened {
		open = open || j.opened[i].instance != nil && !j.opened[i].stuck
	}
	if !open {
		return
	}
	t := time.NewTimer(tidyTime)
	defer t.Stop()
	f := &farewell{chain: j.chain, opened: j.opened}
	for int(f.next.Load()) < len(f.opened) {
		if !j.chain.crew.within(f, nil, t.C) {
			at := min(int(f.next.Load()), len(f.opened)) - 1
			j.chain.o.Log.Warn("filter does not close", "filter", j.chain.steps[at].Name)
			t.Reset(grace) // those after it get a moment
		}
	}
}

// resetting is the end of a transaction for one instance. An instance whose
// Reset came too late is not used any more.
type resetting struct {
	chain    *Chain
	name     string
	instance Instance
	resetter Resetter
}

func (r *resetting) do() {
	r.chain.tidy(r.name, "reset", func() error { r.resetter.Reset(); return nil })
}

func (r *resetting) late() { r.chain.closeInstance(r.name, r.instance) }

// resetAll resets the instances that want it. What could not be opened may be
// tried again.
func (j *Judge) resetAll() {
	var t *time.Timer
	for i := range j.opened {
		o, name := &j.opened[i], j.chain.steps[i].Name
		o.err = nil
		resetter, ok := o.instance.(Resetter)
		if !ok || o.stuck {
			continue
		}
		if t == nil {
			t = time.NewTimer(tidyTime)
			defer t.Stop()
		}
		if !j.chain.crew.within(&resetting{j.chain, name, o.instance, resetter}, nil, t.C) {
			o.stuck = true
			j.chain.o.Log.Warn("filter does not reset", "filter", name)
			t.Reset(grace)
		}
	}
}
