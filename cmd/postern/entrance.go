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
	"time"

	"github.com/postern-mta/postern/cmd/postern/config"
	"github.com/postern-mta/postern/pipeline/ingress/handoff"
	"github.com/postern-mta/postern/pipeline/ingress/throttle"
)

// server is what answers at an entrance.
type server interface {
	Serve(context.Context) error
	// Shutdown takes nothing new, and waits for what has begun until ctx ends.
	Shutdown(context.Context) error
	Sessions() int
}

// socket is a listener of which there can be several for one socket.
type socket interface {
	net.Listener
	File() (*os.File, error)
}

// entrance is one socket and the server on it. A reload that changes its
// settings puts another server on the same socket: clients that wait to be taken
// notice nothing, and sessions that have begun end on the old one.
type entrance struct {
	path     string // see place
	listener socket
	handed   bool // by the supervisor, who keeps it
	settings settings
	server   server
	kept     *handoff.Kept
	gate     *throttle.Gate
	done     chan struct{} // closed when the server has ended
}

// place names the socket of an entrance: its path, or its address as the system
// writes it.
func place(l *config.Listen) string {
	if !l.IsSMTP() {
		return l.Socket
	}
	a, err := net.ResolveTCPAddr("tcp", l.Address)
	switch {
	case err != nil || a.Port == 0: // listening will say why; 0 is a port of the system's choice
		return l.Address
	case a.IP == nil:
		a.IP = net.IPv6unspecified
	}
	return a.String()
}

// settings are what a server is made of, in a form that can be compared.
type settings struct {
	listen  config.Listen
	limits  config.Limits
	trusted []uint32
	// lifetime is how long marks count, where there are any.
	lifetime time.Duration
	// smtp is what SMTP servers depend on besides.
	smtp smtpSettings
}

func (d *daemon) settingsOf(c *config.Config, l *config.Listen) settings {
	s := settings{listen: l.Plain(), limits: c.Limits}
	if l.IsSMTP() {
		s.smtp = d.smtpSettingsOf(c, l)
	}
	if l.IsRemote() || l.Marks() {
		s.lifetime = c.Queue.Lifetime
	}
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
	server server
	kept   *handoff.Kept
	gate   *throttle.Gate
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
		wanted[place(l)] = true
		to := d.settingsOf(c, l)
		old := d.entrances[place(l)]
		if old != nil && reflect.DeepEqual(old.settings, to) {
			continue
		}
		ch := change{path: place(l), to: to, update: old}
		if old == nil {
			if ch.add, err = d.openEntrance(l); err != nil {
				return changes, err
			}
		}
		changes = append(changes, ch)
		this := &changes[len(changes)-1]
		if err = d.equip(c, l, this); err != nil {
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
	path := place(l)
	if handed := d.inherited[path]; handed != nil {
		listener, err := duplicate(handed)
		if err != nil {
			return nil, fmt.Errorf("listen.%s: %w", l.Name, err)
		}
		return &entrance{path: path, listener: listener, handed: true}, nil
	}
	if early := d.early[path]; early != nil {
		delete(d.early, path)
		return &entrance{path: path, listener: early}, nil
	}
	if l.IsSMTP() {
		listener, err := listenTCP(l)
		if err != nil {
			return nil, err
		}
		return &entrance{path: path, listener: listener}, nil
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
	return &entrance{path: path, listener: listener}, nil
}

func listenTCP(l *config.Listen) (socket, error) {
	listener, err := net.Listen("tcp", l.Address)
	switch {
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("listen.%s: %w: ports below 1024 are opened while the daemon is still root: start it as root with user = NAME, or let the supervisor hand over the socket", l.Name, err)
	case err != nil:
		return nil, fmt.Errorf("listen.%s: %w", l.Name, err)
	}
	return listener.(*net.TCPListener), nil
}

// openEarly opens what needs root, before the daemon gives it up.
func (d *daemon) openEarly(c *config.Config) error {
	d.early = map[string]socket{}
	for _, name := range sortedKeys(c.Listen) {
		l := c.Listen[name]
		if path := place(l); l.IsSMTP() && d.inherited[path] == nil {
			listener, err := listenTCP(l)
			if err != nil {
				return err
			}
			d.early[path] = listener
		}
	}
	return nil
}

// closeEarly closes what was opened and never became an entrance.
func (d *daemon) closeEarly() {
	for path, l := range d.early {
		l.Close()
		delete(d.early, path)
	}
}

// equip makes the server of a change, on a listener of its own for the same
// socket.
func (d *daemon) equip(c *config.Config, l *config.Listen, ch *change) error {
	e := ch.add
	if e == nil {
		e = ch.update
	}
	listener, err := duplicate(e.listener)
	if err != nil {
		return err
	}
	switch {
	case l.IsSMTP():
		ch.gate = e.gate
		err = d.equipSMTP(c, l, listener, ch)
	case l.IsRemote():
		err = d.equipRemote(c, l, listener, ch)
	default:
		ch.kept = e.kept
		err = d.equipShim(c, l, listener, ch, e.settings.listen.Next)
	}
	if err != nil {
		listener.Close()
	}
	return err
}

// equipShim makes a server for the qmail-queue shim.
func (d *daemon) equipShim(c *config.Config, l *config.Listen, listener socket, ch *change, lastNext string) (err error) {
	unix, ok := listener.(*net.UnixListener)
	if !ok {
		return errors.New("not a Unix socket")
	}
	o := handoff.Options{
		Log: d.log, Listener: unix, Trusted: ch.to.trusted, Entrance: l.Name, Chains: &d.chains,
		Inbound: l.Chain, Local: l.Local, NextMode: l.NextMode, Lines: &l.Lines, Dialect: l.Dialect, Slow: l.Slow,
		Limits:      handoff.Limits{Recipients: c.Limits.Recipients, Size: c.Limits.Message, Head: int(c.Limits.Head), Fields: c.Limits.Fields},
		MaxSessions: c.Limits.Sessions, Spool: d.spool, Ours: d.ours, Observe: d.meter.Observe, Report: reporter{d.current.Load, d.spool}.refused,
	}
	switch {
	case l.Next == config.NextDiscard:
		o.Sink = discard{}
	case l.Straight() != nil:
		if o.Sink, err = d.newStraight(l); err != nil {
			return err
		}
	case l.Next == config.NextQueue:
		o.Sink, o.Received, o.Invokers = queueSink{d.engine.queue}, true, invokers()
	default:
		o.Next = l.Next
		if ch.kept == nil || l.Next != lastNext {
			dir := keptDir(c, l.Name)
			if ch.kept, err = handoff.OpenKept(handoff.KeptOptions{Dir: dir, Next: l.Next, Log: d.log}); err != nil {
				return err
			}
		}
		o.Kept = ch.kept
		if l.Marks() {
			if o.Marks, err = d.marker(c); err != nil {
				return err
			}
		}
		if d.quarantine != nil {
			o.Quarantine = d.quarantine.hold
		}
	}
	s, err := handoff.New(o)
	if err != nil {
		return err
	}
	ch.server = s
	return nil
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
func duplicate(l socket) (socket, error) {
	f, err := l.File()
	if err != nil {
		return nil, err
	}
	defer f.Close()
	dup, err := net.FileListener(f)
	if err != nil {
		return nil, err
	}
	switch dup := dup.(type) {
	case *net.UnixListener:
		dup.SetUnlinkOnClose(false)
		return dup, nil
	case *net.TCPListener:
		return dup, nil
	}
	dup.Close()
	return nil, errors.New("neither a Unix socket nor TCP")
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
		e.server, e.kept, e.gate, e.settings, e.done = ch.server, ch.kept, ch.gate, ch.to, make(chan struct{})
		d.entrances[ch.path] = e
		d.copies.Store(ch.to.listen.Name, ch.kept)
		d.serve(e.server, e.done)
		d.log.Info("entrance open", "entrance", ch.to.listen.Name, "socket", e.address(), "chain", ch.to.listen.Chain, "local", ch.to.listen.Local, "next", ch.to.listen.Next)
	}
}

func (d *daemon) serve(s server, done chan struct{}) {
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
func (d *daemon) retire(s server, done chan struct{}) {
	d.retired.Add(1)
	go func() {
		defer d.retired.Done()
		if s.Shutdown(d.giveUp) == nil {
			<-done
		}
	}()
}

// ours is Session.Ours by the configuration in force: a server outlives it.
func (d *daemon) ours(domain string) bool { return d.lists.Load().ours(domain) }

// address is where the entrance listens.
func (e *entrance) address() string { return e.listener.Addr().String() }

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
	if _, unix := e.listener.(*net.UnixListener); unix && !e.handed {
		os.Remove(e.path) //nolint:errcheck // the next start replaces it
	}
	e.listener.Close()
	e.listener = nil
}
