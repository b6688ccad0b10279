package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"

	"github.com/postern-mta/postern/cmd/postern/config"
	"github.com/postern-mta/postern/pipeline/ingress/handoff"
)

// entrance is one socket and the server on it. A reload that changes its
// settings puts another server on the same socket: shims that wait to be taken
// notice nothing, and sessions that have begun end on the old one.
type entrance struct {
	path     string
	listener *net.UnixListener
	handed   bool // by the supervisor, who keeps it
	settings settings
	server   *handoff.Server
	kept     *handoff.Kept
	done     chan struct{} // closed when the server has ended
}

// settings are what a server is made of, in a form that can be compared.
type settings struct {
	listen  config.Listen
	limits  config.Limits
	trusted []uint32
}

func settingsOf(c *config.Config, l *config.Listen) settings {
	s := settings{listen: *l, limits: c.Limits}
	for _, u := range c.Trusted {
		s.trusted = append(s.trusted, u.UID)
	}
	slices.Sort(s.trusted)
	return s
}

// change is what a configuration does to one socket.
type change struct {
	path   string
	add    *entrance // a new socket, open already
	update *entrance // a new server on an old one
	server *handoff.Server
	kept   *handoff.Kept
	to     settings
	remove *entrance
}

// plan opens what a configuration needs, so that what can fail fails before
// anything is changed. The daemon is locked.
func (d *daemon) plan(c *config.Config) (changes []change, err error) {
	defer func() {
		if err != nil {
			d.abandon(changes)
			changes = nil
		}
	}()
	wanted := map[string]bool{}
	for _, name := range sortedKeys(c.Listen) {
		l := c.Listen[name]
		wanted[l.Socket] = true
		to := settingsOf(c, l)
		old := d.entrances[l.Socket]
		if old != nil && reflect.DeepEqual(old.settings, to) {
			continue
		}
		ch := change{path: l.Socket, to: to, update: old}
		if old == nil {
			if ch.add, err = d.openEntrance(l); err != nil {
				return changes, err
			}
		}
		changes = append(changes, ch)
		this := &changes[len(changes)-1]
		if this.server, this.kept, err = d.server(c, *this); err != nil {
			return changes, fmt.Errorf("listen.%s: %w", name, err)
		}
	}
	for path, e := range d.entrances {
		if !wanted[path] {
			changes = append(changes, change{path: path, remove: e})
		}
	}
	return changes, nil
}

func (d *daemon) abandon(changes []change) {
	for _, ch := range changes {
		if ch.server != nil {
			ch.server.Shutdown(context.Background()) //nolint:errcheck // it has no session
		}
		if ch.add != nil {
			ch.add.close()
		}
	}
}

func (d *daemon) openEntrance(l *config.Listen) (*entrance, error) {
	if handed := d.inherited[l.Socket]; handed != nil {
		listener, err := duplicate(handed)
		if err != nil {
			return nil, fmt.Errorf("listen.%s: %w", l.Name, err)
		}
		return &entrance{path: l.Socket, listener: listener, handed: true}, nil
	}
	if err := os.MkdirAll(filepath.Dir(l.Socket), 0o755); err != nil {
		return nil, fmt.Errorf("listen.%s: %w", l.Name, err)
	}
	listener, err := handoff.Listen(l.Socket)
	if err != nil {
		return nil, fmt.Errorf("listen.%s: %w", l.Name, err)
	}
	if err := os.Chmod(l.Socket, fs.FileMode(l.Mode())); err != nil {
		listener.Close()
		return nil, fmt.Errorf("listen.%s: %w", l.Name, err)
	}
	return &entrance{path: l.Socket, listener: listener}, nil
}

// server makes the server of a change, on a listener of its own for the same
// socket.
func (d *daemon) server(c *config.Config, ch change) (*handoff.Server, *handoff.Kept, error) {
	e := ch.add
	if e == nil {
		e = ch.update
	}
	listener, err := duplicate(e.listener)
	if err != nil {
		return nil, nil, err
	}
	l := ch.to.listen
	o := handoff.Options{
		Log: d.log, Listener: listener, Trusted: ch.to.trusted, Entrance: l.Name, Chains: &d.chains,
		Inbound: l.Chain, Local: l.Local, NextMode: l.NextMode, Lines: &l.Lines, Dialect: l.Dialect, Slow: l.Slow,
		Limits:      handoff.Limits{Recipients: c.Limits.Recipients, Size: c.Limits.Message, Head: int(c.Limits.Head), Fields: c.Limits.Fields},
		MaxSessions: c.Limits.Sessions, Spool: d.spool, Ours: d.ours, Observe: d.meter.Observe, Report: reporter{d.current.Load, d.spool}.refused,
	}
	kept := e.kept
	switch l.Next {
	case config.NextDiscard:
		o.Sink = discard{}
	case config.NextQueue:
		o.Sink, o.Received, o.Invokers = queueSink{d.engine.queue}, true, invokers()
	default:
		o.Next = l.Next
		if kept == nil || l.Next != e.settings.listen.Next {
			dir := keptDir(c, l.Name)
			if kept, err = handoff.OpenKept(handoff.KeptOptions{Dir: dir, Next: l.Next, Log: d.log}); err != nil {
				listener.Close()
				return nil, nil, err
			}
		}
		o.Kept = kept
	}
	s, err := handoff.New(o)
	if err != nil {
		listener.Close()
		return nil, nil, err
	}
	return s, kept, nil
}

// invokers are the uids that qmail's Received line calls by name.
func invokers() *handoff.Invokers {
	uid := func(name string) int {
		u, err := user.Lookup(name)
		if err != nil {
			return -1
		}
		n, err := strconv.Atoi(u.Uid)
		if err != nil {
			return -1
		}
		return n
	}
	return &handoff.Invokers{Alias: uid("alias"), Network: uid("qmaild"), Bounce: uid("qmails")}
}

// duplicate is another listener for the same socket, so that one server may
// stop listening without the socket going away.
func duplicate(l *net.UnixListener) (*net.UnixListener, error) {
	f, err := l.File()
	if err != nil {
		return nil, err
	}
	defer f.Close()
	dup, err := net.FileListener(f)
	if err != nil {
		return nil, err
	}
	u, ok := dup.(*net.UnixListener)
	if !ok {
		dup.Close()
		return nil, errors.New("not a Unix socket")
	}
	u.SetUnlinkOnClose(false)
	return u, nil
}

// make does what was planned. The daemon is locked.
func (d *daemon) make(changes []change) {
	for _, ch := range changes {
		if ch.remove != nil {
			delete(d.entrances, ch.path)
			d.retire(ch.remove.server, ch.remove.done)
			ch.remove.close()
			d.log.Info("entrance closed", "entrance", ch.remove.settings.listen.Name, "socket", ch.path)
			continue
		}
		e := ch.add
		if e == nil {
			e = ch.update
			d.retire(e.server, e.done)
		}
		e.server, e.kept, e.settings, e.done = ch.server, ch.kept, ch.to, make(chan struct{})
		d.entrances[ch.path] = e
		d.serve(e.server, e.done)
		d.log.Info("entrance open", "entrance", ch.to.listen.Name, "socket", ch.path, "chain", ch.to.listen.Chain, "local", ch.to.listen.Local, "next", ch.to.listen.Next)
	}
}

func (d *daemon) serve(s *handoff.Server, done chan struct{}) {
	d.serving.Add(1)
	go func() {
		defer d.serving.Done()
		defer close(done)
		if err := s.Serve(context.Background()); err != nil {
			d.failed <- err
		}
	}()
}

// retire lets a server end what it has begun, for as long as that takes while
// the daemon serves on.
func (d *daemon) retire(s *handoff.Server, done chan struct{}) {
	d.retired.Add(1)
	go func() {
		defer d.retired.Done()
		if s.Shutdown(d.giveUp) == nil {
			<-done
		}
	}()
}

// ours is Session.Ours by the configuration in force: a server outlives it.
func (d *daemon) ours(domain string) bool { return d.current.Load().Ours(domain) }

// sessions is how many sessions the server has.
func (e *entrance) sessions() int {
	if e.server == nil {
		return 0
	}
	return e.server.Sessions()
}

// stop ends the server.
func (e *entrance) stop(ctx context.Context) error {
	if e.server == nil {
		return nil
	}
	if err := e.server.Shutdown(ctx); err != nil {
		return err
	}
	<-e.done
	return nil
}

// close removes the socket.
func (e *entrance) close() {
	if e.listener == nil {
		return
	}
	if !e.handed {
		os.Remove(e.path) //nolint:errcheck // the next start replaces it
	}
	e.listener.Close()
	e.listener = nil
}
