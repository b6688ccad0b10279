package handoff

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
)

// KeptOptions of a Kept. Needed are Dir and Next.
type KeptOptions struct {
	// Dir holds the messages; nobody else writes to it.
	Dir string
	// Next is the program that is to take them, by its absolute path.
	Next string
	Log  *slog.Logger
	Now  func() time.Time
	// First and Most are the pauses before the second try and the longest one
	// (0: a minute, an hour); each is twice the one before.
	First, Most time.Duration
	// Lifetime is how long a message is tried (0: a week). Then it is set
	// aside under the suffix .failed, and the log says so.
	Lifetime time.Duration
	// Messages and Bytes bound what is kept (0: 10,000 and 4 GiB).
	Messages int
	Bytes    int64
	// Timeout bounds one run of Next (0: an hour).
	Timeout time.Duration
}

// Kept keeps messages on disk for the next program: what is to follow a
// message that has been handed on, until it is known to have got through. What
// a crash leaves is tried again, so that a copy may come twice, never not at
// all. Its methods may be called concurrently. Only one process may use a
// directory at a time.
//
// A message is two files, NAME.msg and NAME.env, the latter in qmail-queue's
// format; it exists once NAME.env does. NAME begins with the time at which the
// message came, in milliseconds.
type Kept struct {
	o    KeptOptions
	wake chan struct{}

	mu    sync.Mutex
	seq   uint64
	all   map[string]*Held
	bytes int64
}

// Held is one message that is kept.
type Held struct {
	kept  *Kept
	name  string // without a suffix
	birth time.Time
	size  int64
	due   time.Time // zero while somebody else sees to it
	tries int
}

// Suffixes of the files.
const (
	messageSuffix  = ".msg"
	envelopeSuffix = ".env"
	newSuffix      = ".new"
	failedSuffix   = ".failed"
)

// OpenKept makes the directory if need be, and takes up what is there.
func OpenKept(o KeptOptions) (*Kept, error) {
	if err := checkNext(o.Next); err != nil {
		return nil, err
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	orTime(&o.First, time.Minute)
	orTime(&o.Most, time.Hour)
	orTime(&o.Lifetime, 7*24*time.Hour)
	orTime(&o.Timeout, time.Hour)
	if o.Messages <= 0 {
		o.Messages = 10_000
	}
	if o.Bytes <= 0 {
		o.Bytes = 4 << 30
	}
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("directory of kept copies: %w", err)
	}
	k := &Kept{o: o, wake: make(chan struct{}, 1), all: map[string]*Held{}}
	if err := k.load(); err != nil {
		return nil, fmt.Errorf("directory of kept copies: %w", err)
	}
	return k, nil
}

// load takes up the messages that are there, and removes what was never
// finished.
func (k *Kept) load() error {
	entries, err := os.ReadDir(k.o.Dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		name, whole := strings.CutSuffix(e.Name(), envelopeSuffix)
		if !whole {
			continue
		}
		ms, _, _ := strings.Cut(name, "-")
		birth, err := strconv.ParseInt(ms, 10, 64)
		st, err2 := os.Stat(k.path(name, messageSuffix))
		if err = errors.Join(err, err2); err != nil {
			k.o.Log.Error("a kept copy cannot be used and is left alone", "file", k.path(name, envelopeSuffix), "error", err)
			continue
		}
		k.all[name] = &Held{kept: k, name: name, birth: time.UnixMilli(birth), size: st.Size(), due: k.o.Now()}
		k.bytes += st.Size()
	}
	for _, e := range entries {
		name, isMessage := strings.CutSuffix(e.Name(), messageSuffix)
		_, known := k.all[name]
		if isMessage && !known && !exists(k.path(name, envelopeSuffix)) || strings.HasSuffix(e.Name(), newSuffix) {
			if err := os.Remove(filepath.Join(k.o.Dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return !errors.Is(err, fs.ErrNotExist)
}

func (k *Kept) path(name, suffix string) string { return filepath.Join(k.o.Dir, name+suffix) }

// Len is the number of messages that are kept, and Bytes their size.
func (k *Kept) Len() (messages int, bytes int64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.all), k.bytes
}

// Hold puts a message on stable storage. Whoever calls it then calls Drop or
// Retry. The id goes into the name, for whoever looks at the directory. Errors
// are *reply.Error; with one, nothing is kept.
func (k *Kept) Hold(id string, e envelope.Envelope, m message.Message) (*Held, error) {
	list, err := envelope.Append(nil, e)
	if err != nil {
		return nil, err
	}
	h, err := k.reserve(id, m.Size())
	if err != nil {
		return nil, err
	}
	if err = h.store(m, list); err != nil {
		h.Drop()
		return nil, reply.With(reply.NoSpace, fmt.Errorf("keeping a copy in %s: %w", k.o.Dir, err))
	}
	return h, nil
}

func (k *Kept) reserve(id string, size int64) (*Held, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.all) >= k.o.Messages || k.bytes+size > k.o.Bytes {
		return nil, reply.With(reply.NoSpace, fmt.Errorf("%s holds %d copies of %d bytes that %s did not take, and may hold no more", k.o.Dir, len(k.all), k.bytes, k.o.Next))
	}
	birth := k.o.Now()
	k.seq++
	name := strconv.FormatInt(birth.UnixMilli(), 10) + "-" + strconv.FormatUint(k.seq, 36) + "-" + fileName(id)
	if _, taken := k.all[name]; taken {
		return nil, reply.With(reply.NoQueueFile, fmt.Errorf("%s: the name %s is taken", k.o.Dir, name))
	}
	h := &Held{kept: k, name: name, birth: birth, size: size}
	k.all[name] = h
	k.bytes += size
	return h, nil
}

// fileName is what of an id is fit for a file's name.
func fileName(id string) string {
	return strings.Map(func(c rune) rune {
		if c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c == '-' {
			return c
		}
		return '_'
	}, id[:min(len(id), 64)])
}

// store writes the files: the message whole and synced before the envelope has
// its name, and the directory last.
func (h *Held) store(m message.Message, list []byte) error {
	k := h.kept
	err := writeSynced(k.path(h.name, messageSuffix), func(f *os.File) error {
		_, err := m.WriteTo(f)
		return err
	})
	if err != nil {
		return err
	}
	unfinished := k.path(h.name, envelopeSuffix+newSuffix)
	err = writeSynced(unfinished, func(f *os.File) error {
		_, err := f.Write(list)
		return err
	})
	if err != nil {
		return err
	}
	if err = os.Rename(unfinished, k.path(h.name, envelopeSuffix)); err != nil {
		return err
	}
	return syncDir(k.o.Dir)
}

func writeSynced(path string, write func(*os.File) error) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if err = write(f); err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Drop forgets the message.
func (h *Held) Drop() {
	k := h.kept
	// The envelope first: a message without one does not exist.
	for _, suffix := range [...]string{envelopeSuffix, envelopeSuffix + newSuffix, messageSuffix} {
		if err := os.Remove(k.path(h.name, suffix)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			k.o.Log.Error("a kept copy cannot be removed, and would be sent again after a restart", "file", k.path(h.name, suffix), "error", err)
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.all[h.name] == h {
		delete(k.all, h.name)
		k.bytes -= h.size
	}
}

// Retry has the message tried until the next program takes it.
func (h *Held) Retry() {
	k := h.kept
	k.mu.Lock()
	h.due = k.o.Now()
	k.mu.Unlock()
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// open opens the files for one run of the next program, which can only read
// them.
func (h *Held) open() (p pair, err error) {
	if p.message, err = os.Open(h.kept.path(h.name, messageSuffix)); err != nil {
		return p, err
	}
	if p.envelope, err = os.Open(h.kept.path(h.name, envelopeSuffix)); err != nil {
		p.close()
		return pair{}, err
	}
	return p, nil
}

// next is the message that is due first.
func (k *Kept) next() *Held {
	k.mu.Lock()
	defer k.mu.Unlock()
	var first *Held
	for _, h := range k.all {
		if !h.due.IsZero() && (first == nil || h.due.Before(first.due)) {
			first = h
		}
	}
	return first
}

// run tries what is due, one message after the other, until stop closes; the
// end of ctx kills the program that is running.
func (k *Kept) run(ctx context.Context, stop <-chan struct{}) {
	for {
		h := k.next()
		wait := k.o.Most
		if h != nil {
			wait = h.due.Sub(k.o.Now())
		}
		if !pause(wait, stop, k.wake) {
			return
		}
		// A wake-up may have come from a message that is due sooner.
		if h = k.next(); h != nil && !h.due.After(k.o.Now()) {
			k.try(ctx, h)
		}
	}
}

// pause waits; false: stop has closed.
func pause(wait time.Duration, stop <-chan struct{}, wake <-chan struct{}) bool {
	select {
	case <-stop:
		return false
	default:
	}
	timer := time.NewTimer(max(wait, 0))
	defer timer.Stop()
	select {
	case <-stop:
		return false
	case <-timer.C:
	case <-wake:
	}
	return true
}
