package auth

import (
	"context"
	"encoding/binary"
	"fmt"
	"hash/maphash"
	"log/slog"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/postern-mta/postern/pipeline"
)

// FileOptions of a File. Only Path is needed.
type FileOptions struct {
	Path string
	// Log hears of a file that was read again, and of one that is wrong. Nil
	// means slog.Default.
	Log *slog.Logger
	// Now is the clock; nil means time.Now.
	Now func() time.Time
	// Concurrency bounds how many hashes are made at a time, each of which holds
	// the memory of its line's cost (0: as many as Go uses cores). Further logins
	// wait.
	Concurrency int
	// MostCost bounds what a line may ask for; zero fields mean 256 MiB, 10
	// passes and 16 lanes.
	MostCost Cost
	// MaxUsers and MaxSize bound the file (0: 100,000 users, 16 MiB).
	MaxUsers int
	MaxSize  int64
}

// recheck is how often the file is looked at, settle how old a change must be
// to be told from the next one by the file's times.
const (
	recheck = time.Second
	settle  = 2 * time.Second
)

// File is a password file of our own: see parseUsers for its form and
// "postern password" for a way to write it. It is read again when it changes,
// which is looked for at most once a second; a new file that is wrong is told
// in the log, once, and the old one stays in force.
//
// A user who does not exist costs as much time as one who does: his password is
// checked against a hash of the cost that the line of some other user has, the
// same one each time.
type File struct {
	o       FileOptions
	within  bounds
	hashing slots
	seed    maphash.Seed
	users   atomic.Pointer[users]

	mu      sync.Mutex // guards what follows; whoever has it looks at the file
	looked  time.Time
	id      identity // of what was read last, be it right or wrong
	settled bool     // that a later change would show in id
	wrong   string   // the last complaint
}

// OpenFile reads a password file. One that is missing or wrong is an error, with
// file and line.
func OpenFile(o FileOptions) (*File, error) {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	orNumber(&o.Concurrency, runtime.GOMAXPROCS(0))
	usual := usualBounds()
	orNumber(&o.MaxUsers, usual.users)
	orNumber(&o.MaxSize, usual.size)
	f := &File{
		o: o, within: bounds{size: o.MaxSize, users: o.MaxUsers, cost: o.MostCost.orElse(usual.cost)},
		hashing: make(slots, o.Concurrency), seed: maphash.MakeSeed(),
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.read(); err != nil {
		return nil, fmt.Errorf("the password file is wrong:\n%w", err)
	}
	return f, nil
}

// Users is how many users the file in force has.
func (f *File) Users() int { return len(f.users.Load().all) }

// Authenticate checks a password. It waits for a place among those that make
// hashes until ctx ends.
func (f *File) Authenticate(ctx context.Context, _ *pipeline.Session, user, password string) (string, error) {
	if err := plausible(user, password); err != nil {
		return "", err
	}
	f.refresh()
	if err := f.hashing.take(ctx); err != nil {
		return "", trouble(fmt.Errorf("%s: %w", f.o.Path, err))
	}
	defer f.hashing.give()
	u, name := f.users.Load(), Normal(user)
	h, known := u.all[name]
	if !known {
		h = f.stranger(u, name)
	}
	fits := h.fits(password)
	switch {
	case !known:
		return "", refused("no such user in " + f.o.Path)
	case !fits:
		return "", refused("wrong password for " + f.o.Path)
	}
	return name, nil
}

// stranger is a hash for a user who does not exist. Its cost is that of a line
// which depends on the name alone, so that among unknown names costs are as
// they are among known ones.
func (f *File) stranger(u *users, name string) hash {
	h := hash{cost: UsualCost(), salt: make([]byte, newSalt), key: make([]byte, newKey)}
	pick := maphash.String(f.seed, name)
	if len(u.costs) > 0 {
		h.cost = u.costs[pick%uint64(len(u.costs))]
	}
	binary.LittleEndian.PutUint64(h.salt, pick)
	return h
}

// refresh reads the file again if it has changed. Those who come while somebody
// does so use what there is.
func (f *File) refresh() {
	if !f.mu.TryLock() {
		return
	}
	defer f.mu.Unlock()
	now := f.o.Now()
	if since := now.Sub(f.looked); since >= 0 && since < recheck {
		return
	}
	f.looked = now
	info, err := os.Stat(f.o.Path)
	if err == nil && f.settled && identify(info) == f.id {
		return
	}
	before, id := f.users.Load(), f.id
	if err == nil {
		err = f.read()
	} else {
		f.settled = false // the same file may come back
	}
	switch {
	case err != nil && f.wrong != err.Error():
		f.wrong = err.Error()
		f.o.Log.Error("the password file is wrong; what it said before stays in force", "file", f.o.Path, "error", err)
	case err == nil && (f.id != id || f.wrong != ""):
		f.wrong = ""
		f.o.Log.Info("password file read again", "file", f.o.Path, "users", f.Users(), "before", len(before.all))
	}
}

// read takes the file into force if it is right. The file is locked.
func (f *File) read() error {
	u, id, mode, err := readUsers(f.o.Path, f.within)
	f.id, f.looked = id, f.o.Now()
	age := f.looked.Sub(id.changed)
	f.settled = age < 0 || age >= settle
	if err != nil {
		return err
	}
	if mode&0o007 != 0 {
		f.o.Log.Warn("the password file is open to every user of this host: chmod o= it", "file", f.o.Path, "mode", mode.Perm().String())
	}
	if len(u.all) == 0 {
		f.o.Log.Warn("the password file has no users", "file", f.o.Path)
	}
	f.users.Store(u)
	return nil
}
