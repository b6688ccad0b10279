package host

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/program"
)

// Programs starts programs, as program.Starter does.
type Programs interface {
	Start(program.Spec) (*program.Process, error)
}

// Options are what a Host has.
type Options struct {
	// Programs starts the plugins' programs.
	Programs Programs
	// Dir is the directory of the plugins, on the file system of the spool, so
	// that a body can be linked into it. It belongs to one Host.
	Dir string
	// Log hears of processes, and what they write; nil means nobody does.
	Log *slog.Logger
	// Now is the clock; nil means time.Now.
	Now func() time.Time
	// Version is Postern's, for plugins.
	Version string
}

// Host keeps the plugins of a daemon running, over all its configurations. It is
// safe for concurrent use.
type Host struct {
	o       Options
	ctx     context.Context // ends with the host
	cancel  context.CancelFunc
	handles atomic.Uint64
	bodies  atomic.Uint64
	sockets atomic.Uint64
	shown   shown
	masked  bool

	mu sync.Mutex
	// current are the versions of the configuration in force, coming those that a
	// configuration has asked for that is being read, by name.
	current, coming map[string]*version
	running         map[*version]bool
	tallies         map[string]*tally
	closed          bool
	// ending are the versions that nobody holds any more, and that end.
	ending sync.WaitGroup
}

var errClosed = errors.New("plugins are not run any more")

// New makes a host, and removes what one that was killed has left in its
// directory.
func New(o Options) (*Host, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	stuck, err := sweep(o.Dir, os.RemoveAll)
	if err != nil {
		return nil, err
	}
	if stuck != nil {
		o.Log.Warn("files that plugins left cannot be removed; remove them by hand", "error", stuck)
	}
	h := &Host{o: o, current: map[string]*version{}, coming: map[string]*version{}, running: map[*version]bool{}, tallies: map[string]*tally{}}
	h.masked = umask()&0o044 != 0
	h.ctx, h.cancel = context.WithCancel(context.Background())
	return h, nil
}

// umask is the process's, which cannot be asked for without being changed, but
// for this file. Unknown, it is the strictest.
func umask() int {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0o777
	}
	_, rest, _ := strings.Cut(string(b), "\nUmask:")
	line, _, _ := strings.Cut(rest, "\n")
	mask, err := strconv.ParseInt(strings.TrimSpace(line), 8, 32)
	if err != nil {
		return 0o777
	}
	return int(mask)
}

// Kind is a plugin as a kind of filter: it starts the program, unless it runs
// already with these settings and this content, and asks what it is. The plugin
// is kept running until Settle says what has become of the configuration that
// asked for it.
func (h *Host) Kind(s Settings) (pipeline.Kind, error) {
	v, err := h.version(s)
	if err != nil {
		return pipeline.Kind{}, err
	}
	return pipeline.Kind{Name: s.Name, New: func(e pipeline.Env, decode pipeline.Decode) (pipeline.Filter, error) {
		return newFilter(v, e, decode)
	}}, nil
}

// version is the version of some settings, held as coming.
func (h *Host) version(s Settings) (*version, error) {
	s, err := s.withDefaults()
	if err != nil {
		return nil, err
	}
	fingerprint, err := s.fingerprint()
	if err != nil {
		return nil, cause(err)
	}
	if v := h.known(s.Name, fingerprint); v != nil {
		return v, nil
	}
	ctx, cancel := context.WithTimeout(h.ctx, s.Timeout)
	defer cancel()
	v, err := newVersion(ctx, h, s, fingerprint)
	if err != nil {
		return nil, err
	}
	h.mu.Lock()
	old := h.coming[s.Name]
	closed := h.closed
	if !closed {
		h.coming[s.Name], h.running[v] = v, true
	}
	h.mu.Unlock()
	if closed {
		v.release()
		return nil, errClosed
	}
	if old != nil {
		old.release()
	}
	return v, nil
}

// known is a version that runs already, held as coming.
func (h *Host) known(name, fingerprint string) *version {
	h.mu.Lock()
	defer h.mu.Unlock()
	if v := h.coming[name]; v != nil && v.fingerprint == fingerprint {
		return v
	}
	if v := h.current[name]; v != nil && v.fingerprint == fingerprint && h.coming[name] == nil && !v.isStale() && v.hold() {
		v.retry()
		h.coming[name] = v
		return v
	}
	return nil
}

// Settle says whether the configuration that asked for plugins by Kind has come
// into force. If so, its plugins take the place of those before, which end when
// the last of their filters is closed; else what was started for it ends.
func (h *Host) Settle(inForce bool) {
	h.mu.Lock()
	given := h.coming
	h.coming = map[string]*version{}
	if inForce {
		given, h.current = h.current, given
	}
	now := h.current
	h.mu.Unlock()
	if inForce {
		for _, v := range now {
			v.grow()
		}
	}
	for _, v := range given {
		v.release()
	}
}

// gone takes a version out of those that run.
func (h *Host) gone(v *version) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.running, v)
}

// Close ends all processes, whoever may still have filters of them, and waits
// for that.
func (h *Host) Close() error {
	h.mu.Lock()
	h.closed = true
	h.mu.Unlock()
	h.Settle(false)
	h.Settle(true)
	h.cancel()
	h.mu.Lock()
	running := slices.Collect(maps.Keys(h.running))
	h.mu.Unlock()
	var all sync.WaitGroup
	for _, v := range running {
		all.Go(v.end)
	}
	all.Wait()
	h.ending.Wait()
	return nil
}

// tally counts what happens to a plugin, over all its versions.
type tally struct{ restarts, failures, answers atomic.Uint64 }

func (h *Host) tallyOf(name string) *tally {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.tallies[name] == nil {
		h.tallies[name] = &tally{}
	}
	return h.tallies[name]
}

// Status is what there is to tell of a plugin.
type Status struct {
	// Name is that of the configuration, Plugin and Version what the plugin calls
	// itself.
	Name, Plugin, Version string
	// PIDs are its processes.
	PIDs []int
	// Calls is how many it has now, Answered how many it, and those of its name
	// before it, have answered.
	Calls    int
	Answered uint64
	// Restarts counts the processes that ended and were started again, Failures
	// the starts that failed.
	Restarts, Failures uint64
	// Trouble is why a process ended or could not be started last; "" if none has.
	Trouble string
	// Old is set for one that a reload has replaced, and that ends what it has.
	Old bool
}

// Status tells of all plugins that run, by name.
func (h *Host) Status() []Status {
	h.mu.Lock()
	var all []Status
	for v := range h.running {
		all = append(all, v.status(h.current[v.settings.Name] != v))
	}
	h.mu.Unlock()
	slices.SortFunc(all, func(a, b Status) int { return strings.Compare(a.Name, b.Name) })
	return all
}

func (v *version) status(old bool) Status {
	s := Status{
		Name: v.settings.Name, Plugin: v.declared.name, Version: v.declared.version, Old: old,
		Answered: v.answers.Load(), Restarts: v.restarts.Load(), Failures: v.failures.Load(),
	}
	v.pool.mu.Lock()
	for _, p := range v.pool.live {
		s.PIDs = append(s.PIDs, p.pid)
		s.Calls += p.calls
	}
	v.pool.mu.Unlock()
	v.mu.Lock()
	if v.last != nil {
		s.Trouble = v.last.Error()
	}
	v.mu.Unlock()
	return s
}
