package pebble

import "sync/atomic"

// Stats is a snapshot of what the store holds and does. Numbers of messages and
// live bytes are estimates; they are known from soon after Open on.
type Stats struct {
	Messages int64
	// LiveBytes are those of messages in the database, DiskBytes what the
	// database takes on disk for them.
	LiveBytes, DiskBytes int64
	// Bodies and BodyBytes are those of bodies in files of their own.
	Bodies, BodyBytes int64
	// Syncs counts flushes that waited for the disk since Open.
	Syncs int64
	// Damaged counts messages that were set aside since Open because they
	// cannot be read.
	Damaged int64
	// Full is set while new mail is put off for want of space; Ballast while the
	// file that is to prevent worse is there.
	Full, Ballast bool
	// Flushes and Compactions count Pebble's work since Open; Memory is that of
	// its tables and caches in bytes.
	Flushes, Compactions, Memory int64
}

// Stats looks at the store; it is cheap enough for every scrape of metrics.
func (s *Store) Stats() Stats {
	t := s.counts.tally()
	st := Stats{
		Messages: t.messages, LiveBytes: t.bytes, Bodies: t.files, BodyBytes: t.fileBytes,
		Syncs: s.fs.syncs.Load(), Damaged: s.counts.damaged.Load(),
		Full: s.space.refusal.Load() != nil, Ballast: s.space.ballast.Load(),
	}
	if s.enter() != nil {
		return st
	}
	defer s.leave()
	m := s.db.Metrics()
	st.DiskBytes = int64(m.DiskSpaceUsage())
	st.Flushes, st.Compactions = m.Flush.Count, m.Compact.Count
	st.Memory = int64(m.MemTable.Size) + m.BlockCache.Size + m.FileCache.Size
	return st
}

// tally is what a change adds.
type tally struct{ messages, bytes, files, fileBytes int64 }

// counts is the sum of all tallies.
type counts struct {
	messages, live, files, fileBytes atomic.Int64
	damaged                          atomic.Int64
}

func (c *counts) add(t *tally) {
	c.messages.Add(t.messages)
	c.live.Add(t.bytes)
	c.files.Add(t.files)
	c.fileBytes.Add(t.fileBytes)
}

func (c *counts) tally() tally {
	return tally{c.messages.Load(), c.live.Load(), c.files.Load(), c.fileBytes.Load()}
}
