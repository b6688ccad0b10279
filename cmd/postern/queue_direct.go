package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/postern-mta/postern/cmd/postern/admin"
	"github.com/postern-mta/postern/cmd/postern/config"
	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/ingress/handoff"
	"github.com/postern-mta/postern/pipeline/ingress/handoff/wire"
	"github.com/postern-mta/postern/pipeline/reply"
)

// exitCode ends the program with a code of its own. Its words, if any, have
// been written already.
type exitCode uint8

func (exitCode) Error() string { return "" }

func queueDirectCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "queue-direct",
		Short: "Take a message as qmail-queue does, without a daemon",
		Long: `Take a message as qmail-queue does, without a daemon: read the message from descriptor 0
and the envelope from descriptor 1, run the chain of an entrance whose next is "queue",
and store what it lets through. It is delivered when the daemon runs again.

It must run as root or as the daemon's user. While a daemon runs the answer is exit 71,
"try again later": qmail-queue is for that. Otherwise exit codes and error texts are
qmail-queue's. The log goes to descriptor 2, unless that takes the error text.`,
		Args: cobra.NoArgs,
	}
	file := configFlag(c)
	name := c.Flags().String("listen", "", "the entrance (default: the only one whose next is \"queue\")")
	c.RunE = func(c *cobra.Command, _ []string) error {
		// Before anything is opened that could be taken for the caller's.
		s := newDirectShim()
		if code := s.take(c.Context(), *file, *name, c.ErrOrStderr()); code != 0 {
			return exitCode(code)
		}
		return nil
	}
	return c
}

// take has a message taken and returns the exit code.
func (s *directShim) take(ctx context.Context, file, name string, stderr io.Writer) uint8 {
	if !s.complete() {
		return reply.ReadError.QueueExit()
	}
	x, err := s.work(ctx, file, name, stderr)
	if err != nil {
		fmt.Fprintf(stderr, "postern: %v\n", err)
		s.drain()
		return reply.Of(err).QueueExit()
	}
	return s.answer(x)
}

// work opens what a daemon holds, as far as one message needs it, and gives it
// back afterwards. Nothing is delivered meanwhile.
func (s *directShim) work(ctx context.Context, file, name string, stderr io.Writer) (x directAnswer, err error) {
	first, err := config.Load(file, loadOptions(quietEnv()))
	if err != nil {
		return x, reply.With(reply.BadConfig, fmt.Errorf("the configuration is wrong, see postern check:\n%w", err))
	}
	l, err := directEntrance(first, name)
	if err != nil {
		return x, reply.With(reply.BadConfig, err)
	}
	if errorFD(-1) == 2 || l.Dialect == wire.DialectIndimail {
		stderr = io.Discard // it takes the error text, and nothing else
	}
	// The kernel keeps who connects: this must be the caller, not the daemon's user.
	listener, err := s.connect()
	if err != nil {
		return x, err
	}
	defer listener.Close()
	d := &daemon{file: file, started: time.Now(), modes: pipeline.NewModes(time.Now), meter: admin.NewMeter()}
	d.giveUp, d.cancel = context.WithCancel(context.Background())
	defer d.cancel()
	d.log = newLogger(first.Log, &d.level, stderr)
	d.programs = newPrograms(d.log)
	defer d.programs.close()
	if err := d.programs.startOthers(first); err != nil {
		return x, reply.With(reply.BadConfig, err)
	}
	if err := dropRootFor(first, func(h *credentials) error { return preparePlugins(first, h) }); err != nil {
		return x, err
	}
	if d.state, err = openState(first.State, d.log); err != nil {
		return x, err
	}
	defer d.state.Close()
	d.workers = &workers{directory: d.state.path, log: d.log}
	defer d.workers.close()
	d.memory = newMemory(first, d.log)
	defer d.memory.close() //nolint:errcheck // the message has been answered for
	if d.resolver, err = newResolver(first); err != nil {
		return x, err
	}
	if d.outward, err = newOutward(first, d.resolver, d.log); err != nil {
		return x, err
	}
	if d.engine, err = openEngine(first, d.outward, &d.chains, d.log); err != nil {
		return x, err
	}
	// The message has been answered for by then: what goes wrong is for the log.
	defer func() {
		if err := d.engine.close(context.WithoutCancel(ctx)); err != nil {
			d.log.Error("closing the queue", "error", err)
		}
	}()
	d.spool = d.engine.store
	if err := d.openPlugins(); err != nil {
		return x, err
	}
	defer d.closePlugins()
	server, err := d.directServer(l.Name, listener)
	if err != nil {
		return x, err
	}
	defer d.chains.Swap(nil) //nolint:errcheck // nothing depends on it
	served := make(chan error, 1)
	go func() { served <- server.Serve(context.WithoutCancel(ctx)) }()
	x, err = s.converse(ctx)
	s.conn.Close()
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), directGrace)
	defer cancel()
	if err := errors.Join(server.Shutdown(end), <-served); err != nil {
		d.log.Error("ending the entrance", "error", err)
	}
	return x, err
}

// directGrace is how long the session may take to end after its answer.
const directGrace = 10 * time.Second

// directServer makes the server of one entrance, with its chains, on a listener.
func (d *daemon) directServer(name string, listener *net.UnixListener) (server, error) {
	c, err := config.Load(d.file, d.options())
	if err != nil {
		return nil, reply.With(reply.BadConfig, fmt.Errorf("the configuration is wrong, see postern check:\n%w", err))
	}
	chains, err := c.Chains(d.modes, 1)
	if err != nil {
		return nil, reply.With(reply.BadConfig, err)
	}
	if err := d.chains.Swap(pipeline.NewGeneration(1, chains...)); err != nil {
		return nil, err
	}
	more, err := openLists(c, d.log)
	if err != nil {
		return nil, reply.With(reply.BadConfig, err)
	}
	d.config = c
	d.current.Store(c)
	d.lists.Store(more)
	l := c.Listen[name]
	if l == nil || l.Next != config.NextQueue || l.IsSMTP() {
		return nil, reply.With(reply.BadConfig, fmt.Errorf("entrance %q is gone from the configuration", name))
	}
	ch := change{path: l.Socket, to: d.settingsOf(c, l), add: &entrance{path: l.Socket, listener: listener}}
	err = d.equip(c, l, &ch)
	return ch.server, err
}

// directEntrance is the entrance of a name, or the only one that queues.
func directEntrance(c *config.Config, name string) (*config.Listen, error) {
	var found []*config.Listen
	for _, n := range sortedKeys(c.Listen) {
		if l := c.Listen[n]; l.Next == config.NextQueue && !l.IsSMTP() && (name == "" || name == n) {
			found = append(found, l)
		}
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case name != "":
		return nil, fmt.Errorf("the configuration has no entrance listen.%s with next = \"queue\"", clean(name))
	case len(found) == 0:
		return nil, errors.New("the configuration has no entrance with next = \"queue\"")
	}
	return nil, fmt.Errorf("several entrances have next = \"queue\": name one, such as --listen %s", found[0].Name)
}

// privateSocket is a listener that nobody else can reach, under a name that is
// gone once the caller has connected and removed dir.
func privateSocket() (l *net.UnixListener, path, dir string, err error) {
	if dir, err = os.MkdirTemp("", "postern"); err != nil {
		return nil, "", "", err
	}
	path = filepath.Join(dir, "socket")
	if l, err = handoff.Listen(path); err != nil {
		os.RemoveAll(dir) //nolint:errcheck // the first error is what counts
		return nil, "", "", err
	}
	return l, path, dir, nil
}
