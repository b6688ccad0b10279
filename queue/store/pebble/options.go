package pebble

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// Options of Open. Only Dir must be set.
type Options struct {
	// Dir holds everything: see Layout.
	Dir string
	// FS is the file system; nil means the operating system's.
	FS vfs.FS
	// Log gets what an administrator should know; Pebble's own chatter goes to
	// it at Debug. Nil discards.
	Log *slog.Logger
	Now func() time.Time
	// LowBytes and LowInodes are what must be free on the file system for new
	// mail to be taken. Zero means DefaultLowBytes and DefaultLowInodes, a
	// negative value no such limit.
	LowBytes, LowInodes int64
	// Ballast is the size in bytes of a file that is given up when the disk is
	// full after all, so that the store can write on. Zero means
	// DefaultBallast, a negative value none.
	Ballast int64
	// Fatal is called when the store cannot write its log any more: what is on
	// disk is sound, but this process must not go on. It must not return. Nil
	// means os.Exit(ExitFatal), for a supervisor to start the program again.
	Fatal func(error)
	// MemTableSize, CacheSize and OpenFiles bound memory (bytes) and open table
	// files. Zero means DefaultMemTableSize, DefaultCacheSize and
	// DefaultOpenFiles. Up to four tables of MemTableSize may exist at a time.
	MemTableSize, CacheSize int64
	OpenFiles               int
	// ValueSeparation keeps bodies in files of their own that are not rewritten
	// when tables are merged. Experimental in Pebble; a store that was once
	// opened with it cannot be opened by an older Pebble.
	ValueSeparation bool
}

// The defaults of Options.
const (
	DefaultLowBytes     = 256 << 20
	DefaultLowInodes    = 1000
	DefaultBallast      = 64 << 20
	DefaultMemTableSize = 16 << 20
	DefaultCacheSize    = 32 << 20
	DefaultOpenFiles    = 256
)

// ExitFatal is the exit code after a fatal error of the store.
const ExitFatal = 111

func (o Options) withDefaults() (Options, error) {
	if o.Dir == "" {
		return o, errors.New("queue: no directory is configured")
	}
	if o.FS == nil {
		o.FS = vfs.Default
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Fatal == nil {
		o.Fatal = func(error) { os.Exit(ExitFatal) }
	}
	for _, d := range []struct {
		field *int64
		value int64
	}{
		{&o.LowBytes, DefaultLowBytes},
		{&o.LowInodes, DefaultLowInodes},
		{&o.Ballast, DefaultBallast},
		{&o.MemTableSize, DefaultMemTableSize},
		{&o.CacheSize, DefaultCacheSize},
	} {
		if *d.field == 0 {
			*d.field = d.value
		}
	}
	if o.OpenFiles == 0 {
		o.OpenFiles = DefaultOpenFiles
	}
	return o, nil
}

// engine is Pebble's configuration.
func (s *Store) engine(fs vfs.FS, lock *pebble.Lock) *pebble.Options {
	o := &pebble.Options{
		FS:            fs,
		Lock:          lock,
		Logger:        engineLog{s},
		EventListener: s.listener(),
		CacheSize:     s.o.CacheSize,
		MaxOpenFiles:  s.o.OpenFiles,
		MemTableSize:  uint64(s.o.MemTableSize),
		// Mail that leaves soon is never merged if merging waits: the tables that a
		// reader has to look into are few, and most have a filter that says no.
		L0CompactionThreshold: 8,
		L0StopWritesThreshold: 24,
		// A table must be flushed and merged a few times a minute at full rate:
		// one compaction at a time keeps a core free for mail.
		CompactionConcurrencyRange: func() (int, int) { return 1, 2 },
		// Log records that say up to where the log was synced: replay can tell a
		// torn end from damage in the middle. And table footers with checksums.
		FormatMajorVersion: pebble.FormatTableFormatV6,
	}
	if s.o.ValueSeparation {
		o.FormatMajorVersion = pebble.FormatValueSeparation
		o.Experimental.ValueSeparationPolicy = func() pebble.ValueSeparationPolicy {
			return pebble.ValueSeparationPolicy{
				Enabled: true, MinimumSize: 1 << 10, MaxBlobReferenceDepth: 10,
				RewriteMinimumAge: time.Minute, TargetGarbageRatio: 0.3,
			}
		}
	}
	for i := range o.Levels {
		o.Levels[i].FilterPolicy = bloom.FilterPolicy(10)
	}
	return o
}

// engineLog sends Pebble's log to ours. Its Fatalf must not return: Pebble has
// left its own state undefined by then.
type engineLog struct{ s *Store }

func (l engineLog) Infof(format string, args ...any) {
	if l.s.o.Log.Enabled(context.Background(), slog.LevelDebug) {
		l.s.o.Log.Debug("pebble: " + fmt.Sprintf(format, args...))
	}
}

func (l engineLog) Errorf(format string, args ...any) {
	l.s.o.Log.Error("pebble: " + fmt.Sprintf(format, args...))
}

func (l engineLog) Fatalf(format string, args ...any) {
	l.s.die(fmt.Errorf(format, args...))
}

// maxFailures is after how many failures in a row to write or merge tables the
// process gives up. Pebble tries again at once and for ever, while writers
// wait.
const maxFailures = 100

func (s *Store) listener() *pebble.EventListener {
	var failures atomic.Int32
	ended := func(what string, err error, d time.Duration) {
		if err == nil {
			failures.Store(0)
			s.o.Log.Debug("pebble: "+what, "took", d)
		}
	}
	return &pebble.EventListener{
		BackgroundError: func(err error) {
			// Pebble goes round damaged tables by itself.
			if s.dead.Load() || pebble.IsCorruptionError(err) {
				return
			}
			n := failures.Add(1)
			if n == 1 || n == maxFailures {
				s.o.Log.Error("the queue's store cannot write its tables", "dir", s.o.Dir, "error", err)
			}
			if n >= maxFailures {
				s.die(fmt.Errorf("cannot write tables: %w", err))
			}
		},
		// By default Pebble ends the process here. One damaged block must not
		// stop the mail that is not in it.
		DataCorruption: func(i pebble.DataCorruptionInfo) {
			s.o.Log.Error("the queue's store is damaged", "dir", s.o.Dir, "file", i.Path, "error", i.Details)
		},
		FlushEnd:        func(i pebble.FlushInfo) { ended("flush", i.Err, i.Duration) },
		CompactionEnd:   func(i pebble.CompactionInfo) { ended("compaction", i.Err, i.Duration) },
		WriteStallBegin: func(i pebble.WriteStallBeginInfo) { s.o.Log.Warn("pebble: writers wait", "reason", i.Reason) },
		WriteStallEnd:   func() { s.o.Log.Warn("pebble: writers go on") },
	}
}
