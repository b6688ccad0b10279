package host

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/postern-mta/postern/plugins/wire"
)

const (
	// healthEvery is how often a process is asked whether it is well.
	healthEvery = 10 * time.Second
	// The waits between starts, each twice the one before; a process that has
	// answered a call, or lived for a while, makes them begin anew.
	firstWait = 100 * time.Millisecond
	longest   = time.Minute
	lived     = time.Minute
	// patience is the longest wait for a start that calls sit out.
	patience = 2 * time.Second
	// forgetTime is how long a plugin is given to hear that a filter has gone.
	forgetTime = 2 * time.Second
)

// version is one program of a plugin with one set of settings: its processes and
// who uses them. It lives as long as the configuration in force, or a filter,
// holds it.
type version struct {
	host        *Host
	settings    Settings
	fingerprint string
	place       *place
	shelf       *shelf
	log         *slog.Logger
	declared    *declaration
	pool        pool
	stopping    chan struct{}
	supervisors sync.WaitGroup

	*tally

	mu      sync.Mutex
	holds   int
	grown   bool
	stopped bool
	last    error // why the last start failed, or process ended
	// stale is set once a further process was not what the first one was: files
	// have changed that the fingerprint does not know of.
	stale bool
	// awake is closed, and made anew, when those that wait to start a process are
	// to try at once.
	awake chan struct{}
	// taken are the options that the plugin has found right for filters that are
	// not closed.
	taken map[string]int
}

// newVersion starts the first process of a plugin, and asks what it is. The
// caller holds the version.
func newVersion(ctx context.Context, h *Host, s Settings, fingerprint string) (*version, error) {
	owner := Owner{os.Geteuid(), os.Getegid()}
	at, err := prepare(h.o.Dir, s, owner)
	if err != nil {
		return nil, err
	}
	v := &version{
		host: h, settings: s, fingerprint: fingerprint, place: at, shelf: &shelf{place: at, seq: &h.bodies, shown: &h.shown, masked: h.masked},
		tally: h.tallyOf(s.Name), log: h.o.Log.With("plugin", s.Name), pool: pool{limit: s.Concurrency}, stopping: make(chan struct{}), holds: 1,
		awake: make(chan struct{}), taken: map[string]int{},
	}
	p, err := v.launch(ctx)
	if err != nil {
		return nil, err
	}
	w, err := p.rpc.Declare(ctx, &wire.DeclareRequest{Postern: text(h.o.Version)})
	if err != nil {
		err = fmt.Errorf("it does not say what it is: %w", p.failed(ctx, err))
	} else if v.declared, err = readDeclaration(w); err != nil {
		err = fmt.Errorf("what it says of itself is wrong: %w", err)
	}
	if err != nil {
		p.kill()
		return nil, err
	}
	v.pool.add(p)
	v.supervisors.Add(1)
	go v.supervise(p)
	return v, nil
}

// launch starts a process and checks that it is well.
func (v *version) launch(ctx context.Context) (*process, error) {
	r := newRunner(&v.settings, v.place, v.host.sockets.Add(1), v.host.o.Programs, v.log, v.host.o.Now)
	p, err := launch(ctx, r, v.host.o.Dir)
	if err != nil {
		return nil, err
	}
	v.log.Debug("plugin started", "pid", p.pid)
	return p, nil
}

// relaunch starts a further process, which must be what the first one was.
func (v *version) relaunch() (*process, error) {
	ctx, cancel := context.WithTimeout(context.Background(), v.settings.Timeout)
	defer cancel()
	stop := context.AfterFunc(v.host.ctx, cancel)
	defer stop()
	p, err := v.launch(ctx)
	if err != nil {
		return nil, err
	}
	w, err := p.rpc.Declare(ctx, &wire.DeclareRequest{Postern: text(v.host.o.Version)})
	var d *declaration
	if err == nil {
		d, err = readDeclaration(w)
	}
	if err == nil && !d.same(v.declared) {
		v.mu.Lock()
		v.stale = true
		v.mu.Unlock()
		err = errors.New("it says something else of itself than before: reload the configuration")
	}
	if err != nil {
		p.kill()
		return nil, err
	}
	return p, nil
}

// grow starts the processes beside the first one, once the version has come into
// force.
func (v *version) grow() {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.grown || v.stopped {
		return
	}
	v.grown = true
	for range v.settings.Instances - 1 {
		v.supervisors.Add(1)
		go v.supervise(nil)
	}
}

// supervise keeps one process running until the version is stopped.
func (v *version) supervise(p *process) {
	defer v.supervisors.Done()
	wait := firstWait
	for {
		if p == nil {
			var err error
			if p, err = v.relaunch(); err != nil {
				if !v.broke(err, wait) {
					return
				}
				wait = min(2*wait, longest)
				continue
			}
			v.pool.add(p)
		}
		began := time.Now()
		goesOn, answered := v.watch(p), p.answered.Load()
		p = nil
		if !goesOn {
			return
		}
		v.restarts.Add(1)
		if answered || time.Since(began) >= lived {
			wait = firstWait // a message that kills it must not keep others waiting
		}
		if !v.rest(wait) {
			return
		}
		wait = min(2*wait, longest)
	}
}

// broke tells of a start that failed, and waits. It reports whether to try again.
func (v *version) broke(err error, wait time.Duration) bool {
	v.failures.Add(1)
	v.remember(err)
	select {
	case <-v.stopping:
		return false
	default:
	}
	v.log.Error("plugin cannot be started", "error", err, "again_in", wait)
	if wait > patience {
		v.pool.fail(fmt.Errorf("the plugin is not running: %w", err))
	}
	return v.rest(wait)
}

// rest waits; false means that the version is stopped.
func (v *version) rest(wait time.Duration) bool {
	v.mu.Lock()
	last, awake := v.last, v.awake
	v.mu.Unlock()
	if wait > patience {
		v.pool.fail(fmt.Errorf("the plugin is not running: %w", last))
	}
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-awake:
		return true
	case <-v.stopping:
		return false
	}
}

// retry has processes that are waited with be started at once, and calls wait for
// them: whoever reloads may have mended what kept them from starting.
func (v *version) retry() {
	v.mu.Lock()
	close(v.awake)
	v.awake = make(chan struct{})
	v.mu.Unlock()
	v.pool.mend()
}

func (v *version) isStale() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.stale
}

func (v *version) remember(err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.last = err
}

// watch looks after a process until it has ended, and reports whether there is to
// be another one in its place.
func (v *version) watch(p *process) bool {
	tick := time.NewTicker(healthEvery)
	defer tick.Stop()
	for {
		var why error
		select {
		case <-p.gone():
			v.pool.remove(p)
			if why = p.ended(); why == nil {
				why = errStopped
			}
			p.kill()
		case <-v.stopping:
			v.pool.remove(p)
			p.stop()
			return false
		case <-tick.C:
			why = v.look(p)
		case <-p.suspect:
			why = v.look(p)
		}
		if why == nil {
			continue
		}
		v.remember(why)
		v.log.Warn("plugin process ended", "pid", p.pid, "error", why)
		return true
	}
}

var errUsedUp = errors.New("it has used most of its processor time (cpu), another process takes its place")

// look asks a process whether it is well, and ends one that is not.
func (v *version) look(p *process) error {
	err := p.check(v.host.ctx)
	switch {
	case v.host.ctx.Err() != nil:
		return nil
	case err == nil && int(p.late.Load()) >= v.settings.Concurrency:
		err = fmt.Errorf("it has not answered %d calls in a row", p.late.Load())
	case err == nil && p.used > 0 && processorTime(p.pid) > p.used:
		v.pool.remove(p)
		v.supervisors.Go(func() { // the calls that it still has must not keep others waiting
			v.drain(p)
			p.stop()
		})
		return errUsedUp
	case err == nil:
		return nil
	}
	v.pool.remove(p)
	if ended := p.ended(); ended != nil {
		err = ended
	}
	p.kill()
	return err
}

// drain waits until a process that gets no further calls has answered those that
// it has, or has ended.
func (v *version) drain(p *process) {
	over := time.NewTimer(longest)
	defer over.Stop()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for v.pool.callsOf(p) > 0 {
		select {
		case <-tick.C:
		case <-over.C:
			return
		case <-p.gone():
			return
		case <-v.stopping:
			return
		}
	}
}

// processorTime is what a process has used of it; 0 if that is not known.
func processorTime(pid int) time.Duration {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	fields := strings.Fields(rest)
	if len(fields) < 13 {
		return 0
	}
	user, err1 := strconv.ParseInt(fields[11], 10, 64)
	system, err2 := strconv.ParseInt(fields[12], 10, 64)
	if err1 != nil || err2 != nil {
		return 0
	}
	return time.Duration(user+system) * (time.Second / 100) // USER_HZ is 100 everywhere
}

// hold takes part in the version; false if it has ended.
func (v *version) hold() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.holds == 0 {
		return false
	}
	v.holds++
	return true
}

// release gives it up. When nobody holds it any more, its processes end, in the
// background: Host.Close waits for that.
func (v *version) release() {
	v.mu.Lock()
	v.holds--
	last := v.holds == 0
	v.mu.Unlock()
	if !last {
		return
	}
	v.host.ending.Add(1)
	go func() {
		defer v.host.ending.Done()
		v.end()
		v.host.gone(v)
	}()
}

// end ends the processes, and waits for that. It may be called more than once.
func (v *version) end() {
	v.mu.Lock()
	if !v.stopped {
		v.stopped = true
		close(v.stopping)
	}
	v.mu.Unlock()
	v.supervisors.Wait()
	v.pool.fail(errStopped)
}

var errStopped = errors.New("the plugin has been stopped")

// accept hears whether a filter's options are right, and remembers those that
// are, until drop is called. A plugin that cannot be asked has said so before if
// a filter of that name has the same options: one that is down must not keep the
// administrator from changing something else.
func (v *version) accept(c *wire.ConfigureRequest) error {
	key := taking(c)
	v.mu.Lock()
	before := v.taken[key] > 0
	v.mu.Unlock()
	wait := v.settings.Timeout
	if before {
		wait = min(wait, patience)
	}
	ctx, cancel := context.WithTimeout(v.host.ctx, wait)
	defer cancel()
	asked, err := v.configure(ctx, c)
	if err != nil && !asked && before && v.host.ctx.Err() == nil {
		v.log.Warn("plugin cannot be asked about a filter; its options are those that it has taken before", "filter", c.GetFilter(), "error", err)
		err = nil
	}
	if err == nil {
		v.mu.Lock()
		v.taken[key]++
		v.mu.Unlock()
	}
	return err
}

// drop is the end of a filter whose options were accepted.
func (v *version) drop(c *wire.ConfigureRequest) {
	key := taking(c)
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.taken[key]--; v.taken[key] == 0 {
		delete(v.taken, key)
	}
}

// taking is equal for filters that a plugin need not tell apart.
func taking(c *wire.ConfigureRequest) string {
	return c.GetFilter() + "\x00" + c.GetHost() + "\x00" + string(c.GetOptionsJson())
}

// configure tells one process of a filter, to hear whether it is right. asked
// reports whether the error, if any, is the plugin's answer.
func (v *version) configure(ctx context.Context, c *wire.ConfigureRequest) (asked bool, err error) {
	p, err := v.pool.take(ctx)
	if err != nil {
		return false, err
	}
	defer v.pool.give(p)
	r, err := p.configure(ctx, c)
	if err != nil {
		return false, err
	}
	return true, v.declared.problems(r.GetProblems())
}

// forget tells all processes that a filter has gone.
func (v *version) forget(handle uint64) {
	ctx, cancel := context.WithTimeout(context.Background(), forgetTime)
	defer cancel()
	for _, p := range v.pool.all() {
		p.forget(ctx, handle)
	}
}

// judge makes one call.
func (v *version) judge(ctx context.Context, c *wire.ConfigureRequest, q *wire.JudgeRequest) (*wire.JudgeReply, error) {
	p, err := v.pool.take(ctx)
	if err != nil {
		return nil, err
	}
	defer v.pool.give(p)
	if r, err := p.configure(ctx, c); err != nil {
		return nil, err
	} else if err := v.declared.problems(r.GetProblems()); err != nil {
		return nil, fmt.Errorf("the plugin does not take its options any more: %w", err)
	}
	r, err := p.rpc.Judge(ctx, q)
	if err != nil {
		return nil, p.failed(ctx, err)
	}
	p.late.Store(0)
	p.answered.Store(true)
	v.answers.Add(1)
	return r, nil
}
