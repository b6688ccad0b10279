package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/postern-mta/postern/cmd/postern/admin"
	"github.com/postern-mta/postern/cmd/postern/admin/api"
	"github.com/postern-mta/postern/cmd/postern/config"
	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/ingress/throttle"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/resolve"
	"github.com/postern-mta/postern/plugins/host"
)

// daemon is postern serve.
type daemon struct {
	file     string
	started  time.Time
	log      *slog.Logger
	level    slog.LevelVar
	state    *stateDir
	memory   *memory         // of the filters
	spool    message.Spooler // the queue's, if there is one
	resolver *resolve.Resolver
	workers  *workers
	programs *programs
	plugins  *host.Host // nil before the state directory is there
	outward  *outward
	engine   *engine // nil if nothing comes into our own queue
	// quarantine is nil if there is no engine.
	quarantine *quarantine
	copies     sync.Map // *handoff.Kept by the names of entrances
	modes      *pipeline.Modes
	meter      *admin.Meter
	chains     pipeline.Generations
	admin      *admin.Server
	// inherited are the sockets that the supervisor handed over, and early those
	// that were opened while the daemon was root, by place.
	inherited, early map[string]socket
	failed           chan error // what ends the daemon
	headroom         []byte     // kept for the collector
	idents           atomic.Uint64
	serving          sync.WaitGroup
	// current is the configuration in force, for what outlives the reading of
	// the next one.
	current  atomic.Pointer[config.Config]
	lists    atomic.Pointer[lists]
	logins   *logins
	penalty  *throttle.Penalty
	vault    *vault // changed by whoever holds mu
	replaced replaced
	// retired are the servers that a reload has replaced and that end what they
	// have begun, until giveUp is cancelled.
	retired sync.WaitGroup
	giveUp  context.Context
	cancel  context.CancelFunc

	mu         sync.Mutex // guards what follows, and serialises reloads
	config     *config.Config
	first      *config.Config // that of the start
	generation uint64
	entrances  map[string]*entrance // by place
}

// open takes everything that a daemon holds, in the order in which another
// daemon would be noticed.
func (d *daemon) open(first *config.Config) (err error) {
	if d.state, err = openState(first.State, d.log); err != nil {
		return err
	}
	d.memory = newMemory(first, d.log)
	if _, err := d.memory.store(); err != nil {
		return err
	}
	d.workers = &workers{directory: d.state.path, log: d.log}
	if d.resolver, err = newResolver(first); err != nil {
		return err
	}
	if d.outward, err = newOutward(first, d.resolver, d.log); err != nil {
		return err
	}
	d.outward.limits.remember(d.state.path, d.log)
	if wantsQueue(first) {
		if d.engine, err = openEngine(first, d.outward, &d.chains, d.log); err != nil {
			return err
		}
		d.quarantine = d.newQuarantine(first)
	}
	if queues(first) {
		d.spool = d.engine.store
	} else if d.spool, err = message.OpenDirectory(filepath.Join(first.State, "spool")); err != nil {
		return err
	}
	if err := d.openPlugins(); err != nil {
		return err
	}
	c, err := config.Load(d.file, d.options())
	if err != nil {
		return fmt.Errorf("the configuration is wrong, see postern check:\n%w", err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.use(c); err != nil {
		return err
	}
	if d.admin, err = admin.Listen(c.Admin.Socket, d.door()); err != nil {
		return err
	}
	d.outward.start()
	if d.engine != nil {
		d.engine.queue.Start()
		d.quarantine.start()
	}
	d.serving.Add(1)
	go func() {
		defer d.serving.Done()
		if err := d.admin.Serve(); err != nil {
			d.failed <- fmt.Errorf("admin socket: %w", err)
		}
	}()
	d.log.Info("serving", "version", version, "pid", os.Getpid(), "config", d.file, "generation", d.generation)
	return nil
}

// env is what filters may use.
func (d *daemon) env() pipeline.Env {
	return pipeline.Env{Log: d.log, Now: time.Now, Resolver: d.resolver, Spool: d.spool, Secret: derive(d.state.secret), Workers: d.workers, Programs: d.programs, Callouts: &callouts{d: d}}
}

// use puts a configuration into force: chains first, then entrances. If it
// fails, the one before stays. The daemon is locked.
func (d *daemon) use(c *config.Config) error {
	for _, w := range c.Warnings {
		d.log.Warn("configuration", "warning", w.Error())
	}
	if d.config != nil && c.State != d.config.State {
		return fmt.Errorf("state cannot change from %s to %s while the daemon runs: restart it", d.config.State, c.State)
	}
	if d.config != nil && c.Admin.Socket != d.config.Admin.Socket {
		return errors.New("admin.socket cannot change while the daemon runs: restart it")
	}
	if queues(c) && d.engine == nil {
		return errors.New("next = \"queue\" cannot be added while the daemon runs: restart it")
	}
	if err := checkRunner(c); err != nil {
		return err
	}
	if err := d.programs.check(c); err != nil {
		return err
	}
	if wantsQueue(c) && d.engine == nil {
		d.log.Warn("there are filters now, and this daemon was started without any: what one of them wants quarantined is put off until the daemon is restarted")
	}
	undo, err := d.furnish(c)
	if err != nil {
		return err
	}
	chains, err := c.Chains(d.modes, d.generation+1)
	if err != nil {
		undo()
		return err
	}
	changes, err := d.plan(c)
	if err != nil {
		undo()
		for _, chain := range chains {
			chain.Close() //nolint:errcheck // the first error is what counts
		}
		return err
	}
	d.generation++
	if err := d.chains.Swap(pipeline.NewGeneration(d.generation, chains...)); err != nil {
		d.log.Warn("closing the filters of the last configuration", "error", err)
	}
	d.settlePlugins(true)
	if d.first == nil {
		d.first = c
	} else if later := laterSettings(d.first, c); len(later) > 0 {
		d.log.Warn("the configuration is in force, but for settings that count when the daemon is started again", "settings", later)
	}
	d.config = c
	d.current.Store(c)
	d.outward.use(c)
	d.level.Set(c.Log.SlogLevel())
	d.make(changes)
	d.closeEarly()
	d.settle()
	warnStranded(c, d.log)
	warnDescriptors(c, d.log)
	d.warnUnused()
	return nil
}

// reload reads the configuration again. On any error the old one stays.
func (d *daemon) reload(why string) (api.Reload, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.tell(stateReloading())
	defer d.tell(stateReady)
	c, err := config.Load(d.file, d.options())
	if err == nil {
		err = d.use(c)
	}
	if err != nil {
		d.settlePlugins(false)
		d.log.Error("the configuration is wrong; the one before stays in force", "by", why, "error", err)
		return api.Reload{}, err
	}
	d.log.Info("configuration read again", "by", why, "generation", d.generation)
	r := api.Reload{Generation: d.generation}
	for _, w := range c.Warnings {
		r.Warnings = append(r.Warnings, w.Error())
	}
	return r, nil
}

// tell tells the supervisor a state.
func (d *daemon) tell(state string) {
	if err := notify(state); err != nil {
		d.log.Warn("the supervisor cannot be told", "error", err)
	}
}

// warnUnused tells of sockets that the supervisor opened for nobody: callers
// would wait there for ever.
func (d *daemon) warnUnused() {
	for path := range d.inherited {
		if d.entrances[path] == nil {
			d.log.Error("the supervisor listens on a socket that no entrance names", "socket", clean(path))
		}
	}
}

// stop ends the daemon: nothing new is taken, what has begun may end until ctx
// does.
func (d *daemon) stop(ctx context.Context) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	defer context.AfterFunc(ctx, d.cancel)()
	var errs []error
	var all sync.WaitGroup
	var errsMu sync.Mutex
	for _, e := range d.entrances {
		all.Add(1)
		go func() {
			defer all.Done()
			err := e.stop(ctx)
			errsMu.Lock()
			defer errsMu.Unlock()
			errs = append(errs, err)
		}()
	}
	all.Wait()
	d.retired.Wait()
	d.quarantine.stop(ctx)
	if d.engine != nil {
		errs = append(errs, d.engine.close(ctx))
		d.engine = nil
	}
	d.outward.close(ctx)
	errs = append(errs, d.closeAll())
	return errors.Join(errs...)
}

// closeAll gives up what is held, whatever of it there is.
func (d *daemon) closeAll() error {
	var errs []error
	if d.admin != nil {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		errs = append(errs, d.admin.Shutdown(ctx))
		cancel()
	}
	gone, cancel := context.WithCancel(context.Background())
	cancel()
	for _, e := range d.entrances {
		errs = append(errs, e.stop(gone)) // of a daemon that never came to serve
		e.close()
	}
	d.closeEarly()
	d.cancel()
	d.retired.Wait()
	d.serving.Wait()
	d.quarantine.stop(gone)
	if d.engine != nil { // the daemon never came to serve
		errs = append(errs, d.engine.close(context.Background()))
	}
	d.outward.close(gone)
	errs = append(errs, d.chains.Swap(nil), d.memory.close())
	d.workers.close()
	d.closePlugins()
	d.programs.close()
	d.vault.close()
	d.logins.close()
	d.lists.Load().close()
	if d.state != nil {
		errs = append(errs, d.state.Close())
	}
	return errors.Join(errs...)
}

// door is what the admin socket opens on.
func (d *daemon) door() admin.Daemon {
	door := admin.Daemon{
		Log: d.log, Status: d.status, Filters: d.filters, SetFilter: d.setFilter, Meter: d.meter, State: d.remembered, StateStats: d.memory.stats, Plugins: d.plugins.Status,
		Reload: func(context.Context) (api.Reload, error) { return d.reload("admin socket") },
	}
	door.Limits = d.outward.limits
	if d.engine != nil {
		door.Queue, door.Store = d.engine.queue, d.engine.store
		door.Release, door.Elsewhere = d.quarantine.release, d.quarantine.elsewhere
	}
	return door
}

func (d *daemon) status() api.Status {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := api.Status{Version: version, PID: os.Getpid(), Config: d.file, Generation: d.generation, Started: d.started.UTC().Format(time.RFC3339)}
	for _, e := range d.entrances {
		s.Entrances = append(s.Entrances, api.Entrance{Name: e.settings.listen.Name, Address: e.address(), Sessions: e.sessions()})
	}
	slices.SortFunc(s.Entrances, func(a, b api.Entrance) int { return compare(a.Name, b.Name) })
	return s
}

func compare(a, b string) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// filters lists the filters that stand in a chain.
func (d *daemon) filters() []api.Filter {
	d.mu.Lock()
	defer d.mu.Unlock()
	byName := map[string]*api.Filter{}
	for chain, names := range d.config.Chain {
		for _, name := range names {
			f := byName[name]
			if f == nil {
				f = d.filter(name)
				byName[name] = f
			}
			f.Chains = append(f.Chains, chain)
		}
	}
	all := make([]api.Filter, 0, len(byName))
	for _, f := range byName {
		slices.Sort(f.Chains)
		all = append(all, *f)
	}
	slices.SortFunc(all, func(a, b api.Filter) int { return compare(a.Name, b.Name) })
	return all
}

// filter is one filter with its mode; the daemon is locked.
func (d *daemon) filter(name string) *api.Filter {
	f := &api.Filter{Name: name, Configured: d.config.Filter[name].Mode.String()}
	f.Mode = f.Configured
	if o, ok := d.modes.Get(name); ok {
		f.Mode = o.Mode.String()
		if !o.Until.IsZero() {
			f.Until = o.Until.UTC().Format(time.RFC3339)
		}
	}
	return f
}

// setFilter sets an operator's mode.
func (d *daemon) setFilter(name string, s api.SetFilter) (api.Filter, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.config.Filter[name] == nil {
		return api.Filter{}, fmt.Errorf("filter %q: %w: see postern filter list", name, admin.ErrNotFound)
	}
	mode, ok := pipeline.ParseMode(s.Mode)
	switch {
	case s.Mode == configMode:
		d.modes.Clear(name)
	case !ok:
		return api.Filter{}, fmt.Errorf("mode %q: use enforce, shadow, off or %s", s.Mode, configMode)
	case s.TTL < 0 || s.TTL > maxTTL:
		return api.Filter{}, errors.New("ttl must be between 0 (until the daemon restarts) and a year")
	default:
		d.modes.Set(name, mode, time.Duration(s.TTL)*time.Second)
	}
	f := *d.filter(name)
	d.log.Warn("filter mode set by hand", "filter", name, "mode", f.Mode, "configured", f.Configured, "until", f.Until, "by", clean(s.By))
	return f, nil
}

// configMode is the word that takes an operator's mode back.
const configMode = "config"

// maxTTL is the longest an operator's mode may last, in seconds.
const maxTTL = 366 * 24 * 3600
