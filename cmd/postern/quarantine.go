package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/postern-mta/postern/cmd/postern/admin"
	"github.com/postern-mta/postern/cmd/postern/config"
	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/ingress/handoff"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/queue"
	"github.com/postern-mta/postern/queue/store"
)

// quarantine is what filters hold in our queue: it lets messages go on, deletes
// what is too old, and writes the daily summary. It belongs to the daemon and
// outlives a configuration.
type quarantine struct {
	queue  *queue.Queue
	spool  message.Spooler
	config func() *config.Config // the one in force
	chains *pipeline.Generations
	ours   func(domain string) bool
	// kept holds the copies that an entrance's next program is to take; nil if
	// there is none.
	kept func(entrance string) *handoff.Kept
	// marks put the origin into what an entrance's next program is to have, as into
	// the entrance's other mail; nil if that has none.
	marks func(*config.Listen) (handoff.Marks, error)
	now   func() time.Time
	log   *slog.Logger
	// memory is the file that says which summaries were written.
	memory string
	// nextTime is how long a next program may take for one message.
	nextTime time.Duration

	mu       sync.Mutex
	busy     map[store.ID]context.CancelFunc // those that are being released
	stopping bool
	running  sync.WaitGroup // one for each of busy
	cancel   context.CancelFunc
	done     chan struct{}
}

func (d *daemon) newQuarantine(c *config.Config) *quarantine {
	return &quarantine{
		queue: d.engine.queue, spool: d.engine.store, config: d.current.Load, chains: &d.chains, ours: d.ours, kept: d.keptOf, marks: d.marksOf, now: time.Now,
		log: d.log, memory: filepath.Join(c.State, "quarantine-summary"), busy: map[store.ID]context.CancelFunc{},
		nextTime: nextTime,
	}
}

// keptOf are the kept copies of an entrance. It does not wait for the daemon's
// lock, which is held while the daemon stops.
func (d *daemon) keptOf(name string) *handoff.Kept {
	k, _ := d.copies.Load(name)
	kept, _ := k.(*handoff.Kept)
	return kept
}

func (d *daemon) marksOf(l *config.Listen) (handoff.Marks, error) {
	if l == nil || !l.Marks() {
		return nil, nil
	}
	return d.marker(d.current.Load())
}

// hasNext reports whether an entrance hands mail to another program.
func hasNext(c *config.Config) bool {
	return slices.ContainsFunc(sortedKeys(c.Listen), func(name string) bool { return isProgram(c.Listen[name]) })
}

func isProgram(l *config.Listen) bool {
	return !l.IsRemote() && l.Next != config.NextQueue && l.Next != config.NextDiscard && l.Straight() == nil
}

// mayHold reports whether a filter may hold mail of an entrance that hands it to
// another program, or server: every filter may.
func mayHold(c *config.Config) bool {
	for _, l := range c.Listen {
		if (isProgram(l) || l.Straight() != nil) && len(c.Chain[l.Chain])+len(c.Chain[l.Local]) > 0 {
			return true
		}
	}
	return false
}

// checkRunner refuses a user that the daemon could not run a program as.
func checkRunner(c *config.Config) error {
	uid, ok := c.Quarantine.RunsAs()
	if me := os.Geteuid(); ok && me != 0 && me != int(uid) && hasNext(c) {
		return fmt.Errorf("quarantine.user = %q: this daemon runs as uid %d and may not run a program as another user: start it as root without user =, or leave quarantine.user out", c.Quarantine.User, me)
	}
	return nil
}

// hold is handoff.Options.Quarantine: what it has stored it can delete again.
func (q *quarantine) hold(ctx context.Context, held []pipeline.Outgoing) (undo func(), err error) {
	subs, err := submissions(held, q.now())
	if err != nil {
		return nil, err
	}
	ids, err := q.queue.Submit(ctx, subs)
	if err != nil {
		return nil, err
	}
	return func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if _, err := q.queue.Delete(ctx, queue.Selection{IDs: ids}, "the caller will try again"); err != nil {
			q.log.Error("a message stays in quarantine although the next program refused the rest of it; it will come again", "id", ids[0].String(), "error", err)
		}
	}, nil
}

// destination is where a message goes on today that a filter holds.
type destination struct {
	listen *config.Listen // nil if its entrance is gone
	chain  string
	// next is the program that takes it; "" is our own queue.
	next string
	// entrance is the name of the entrance whose program that is.
	entrance string
}

// to is the destination's name.
func (d destination) to() string {
	if d.next == "" {
		return config.NextQueue
	}
	return d.next
}

// destinationOf finds the entrance by which a message came. The mail of one that
// is gone goes where all others go.
func destinationOf(c *config.Config, o pipeline.Origin) destination {
	l := c.Listen[o.Entrance]
	d := destination{listen: l, chain: o.Chain}
	if l != nil {
		d.chain = l.Chain
		if !l.IsSMTP() && pipeline.ParseStanding(o.Standing) == pipeline.Local {
			d.chain = l.Local
		}
		if isProgram(l) {
			d.next, d.entrance = l.Next, l.Name
		}
		return d
	}
	for _, name := range sortedKeys(c.Listen) {
		switch l := c.Listen[name]; {
		case l.Next == config.NextQueue:
			return destination{chain: d.chain}
		case isProgram(l) && d.next == "":
			d.next, d.entrance = l.Next, name
		}
	}
	return d
}

// elsewhere is admin.Daemon.Elsewhere. A message that owes its sender a report is
// at home here: only our queue can make it.
func (q *quarantine) elsewhere(v *queue.View) bool {
	o, err := pipeline.DecodeOrigin(v.Origin)
	return err == nil && admin.InQuarantine(v) && !v.Bouncing() && destinationOf(q.config(), o).next != ""
}

// sessionOf is the session by which a message came, as far as its origin tells.
func (q *quarantine) sessionOf(o pipeline.Origin) *pipeline.Session {
	s := &pipeline.Session{
		ID: o.Transaction, Entrance: o.Entrance, Protocol: o.Protocol, Start: o.Received, Standing: pipeline.ParseStanding(o.Standing),
		PeerName: o.PeerName, PeerClaim: o.PeerClaim, PeerTrouble: o.PeerTrouble, Helo: o.Helo, User: o.User, UID: o.UID, TLS: o.TLS, Ours: q.ours,
	}
	if a, err := netip.ParseAddr(o.Peer); err == nil {
		s.Peer = netip.AddrPortFrom(a, 0)
	}
	return s
}

// begin notes that a message is being released, until end. The context is over
// when the daemon cannot wait any longer.
func (q *quarantine) begin(ctx context.Context, id store.ID) (context.Context, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	switch {
	case q.stopping:
		return nil, errStopping
	case q.busy[id] != nil:
		return nil, errBusy
	}
	ctx, q.busy[id] = context.WithCancel(ctx)
	q.running.Add(1)
	return ctx, nil
}

func (q *quarantine) end(id store.ID) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.busy[id]()
	delete(q.busy, id)
	q.running.Done()
}

var (
	errBusy     = errors.New("it is being released already")
	errStopping = errors.New("the daemon is stopping: try again when it is there again")
)
