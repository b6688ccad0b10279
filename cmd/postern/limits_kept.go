package main

import (
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/postern-mta/postern/queue/limit"
)

// limitsKept are the files by which limits outlive a restart: what operators have
// said, and what was found out. Its nil pointer keeps nothing.
type limitsKept struct {
	dir string
	log *slog.Logger

	mu     sync.Mutex // held while something is said or written
	failed bool       // what was found out could not be written
	owed   bool       // what operators have said is not written as it holds
}

const (
	limitsDir  = "limits"
	ordersFile = "orders"
	learnFile  = "learned"
	// damagedSuffix is that of a file that could not be understood, until the next
	// such one.
	damagedSuffix = ".damaged"

	// keptSites is of how many sites is kept what was found out, and keepEvery how
	// often it is written.
	keptSites = 20_000
	keepEvery = time.Minute
	// maxKept is the most that is read of a file, in bytes.
	maxKept = 256 << 20
)

// remember takes in what was kept in the state directory, and keeps it there from
// now on. What cannot be read is logged, and never an error. It is called before
// anything is asked.
func (l *limits) remember(state string, log *slog.Logger) {
	k := &limitsKept{dir: filepath.Join(state, limitsDir), log: log}
	if err := k.makeDir(state); err != nil {
		log.Error("limits cannot be kept: a restart will forget what operators say and what was found out", "error", err)
	}
	now := l.now()
	orders, learned := k.read(ordersFile), k.read(learnFile)
	held, sites := l.gate.Restore(now, orders.Held), l.gate.Import(now, learned.Time, learned.Learned)
	if held+sites+l.gate.ImportBlocks(now, learned.Time, learned.Blocks)+l.gate.ImportUsed(now, learned.Used) > 0 {
		log.Info("limits go on from before", "orders", held, "sites", sites, "since", isoTime(learned.Time))
	}
	l.kept = k
	if k.owed { // what is left of a damaged file must not need another word to be kept
		k.orders(now, l.gate.Held(now)) //nolint:errcheck // it is written later
	}
}

// makeDir makes the directory, and has it on disk.
func (k *limitsKept) makeDir(state string) error {
	switch err := os.Mkdir(k.dir, 0o700); {
	case errors.Is(err, fs.ErrExist):
		return nil
	case err != nil:
		return err
	}
	return syncDir(state)
}

// read reads a file. One that is damaged is set aside; what can be understood of it
// counts if operators have said it: too many suspensions are better than none.
func (k *limitsKept) read(name string) limit.Record {
	path := filepath.Join(k.dir, name)
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return limit.Record{}
	}
	var r limit.Record
	if err == nil {
		r, err = limit.ReadRecord(io.LimitReader(f, maxKept))
		f.Close()
	}
	switch {
	case err == nil:
		return r
	case name == learnFile:
		k.log.Warn("what was found out about other servers' limits cannot be read, and is found out anew", "file", path, "error", err)
		r = limit.Record{}
	default:
		k.log.Error("what operators have said of limits cannot be read as a whole: see postern site list for what is left of it, and say the rest again", "file", path, "set_aside", path+damagedSuffix, "left", len(r.Held), "error", err)
	}
	k.owed = k.owed || name == ordersFile
	if err := os.Rename(path, path+damagedSuffix); err != nil {
		k.log.Warn("a damaged file cannot be set aside", "file", path, "error", err)
	}
	return r
}

// write replaces a file; sync has it on the disk before it returns.
func (k *limitsKept) write(name string, r *limit.Record, sync bool) error {
	path := filepath.Join(k.dir, name)
	f, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	err = r.Write(f)
	if sync && err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(path+".new", path)
	}
	if sync && err == nil {
		err = syncDir(k.dir)
	}
	if err != nil {
		os.Remove(path + ".new") //nolint:errcheck // the next one takes its place
	}
	return err
}

// say has an operator's word take effect, and keeps it; learned has what was found
// out kept with it. kept is why it could not be, and then it holds all the same, as
// long as the daemon runs.
func (l *limits) say(do func(), learned bool) (kept error) {
	k := l.kept
	if k == nil {
		do()
		return nil
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	do()
	now := l.now()
	if err := k.orders(now, l.gate.Held(now)); err != nil {
		return err
	}
	if !learned {
		return nil
	}
	return k.write(learnFile, l.learned(now), true)
}

// orders writes what operators have said; k is locked.
func (k *limitsKept) orders(now time.Time, held []limit.Held) error {
	err := k.write(ordersFile, &limit.Record{Time: now, Held: held}, true)
	k.owed = err != nil
	return err
}

// learned is what was found out.
func (l *limits) learned(now time.Time) *limit.Record {
	return &limit.Record{Time: now, Learned: l.gate.Export(now, keptSites), Blocks: l.gate.Blocks(now), Used: l.gate.ExportUsed(now)}
}

// keepLearned keeps what was found out, and what operators have said if that could not be
// kept before. That it cannot is logged once.
func (l *limits) keepLearned() {
	k := l.kept
	if k == nil {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	now := l.now()
	err := k.write(learnFile, l.learned(now), false)
	if k.owed {
		err = errors.Join(err, k.orders(now, l.gate.Held(now)))
	}
	if err != nil && !k.failed {
		k.log.Warn("what was found out about other servers' limits cannot be written, and a restart would forget it", "error", err)
	}
	k.failed = err != nil
}
