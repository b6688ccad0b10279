package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/postern-mta/postern/cmd/postern/config"
	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
	"github.com/postern-mta/postern/pipeline/resolve"
	wire "github.com/postern-mta/postern/pipeline/smtp"
	"github.com/postern-mta/postern/queue"
	"github.com/postern-mta/postern/queue/egress/local"
	"github.com/postern-mta/postern/queue/egress/smtp"
	"github.com/postern-mta/postern/queue/schedule"
	"github.com/postern-mta/postern/queue/store/pebble"
)

// The channels of the queue.
const (
	localChannel  = "local"
	remoteChannel = "remote"
)

// engine is our own queue with its store and its exits. It belongs to the
// daemon and outlives a configuration, of which it reads what may change.
type engine struct {
	*outward
	store *pebble.Store
	queue *queue.Queue
	leave departure
}

// queueDir is where the queue lives in the state directory.
func queueDir(c *config.Config) string { return filepath.Join(c.State, "queue") }

// wantsQueue reports whether an entrance hands mail to our own queue, or has
// filters that may hold some there.
func wantsQueue(c *config.Config) bool { return queues(c) || mayHold(c) }

// queues reports whether an entrance hands mail to our own queue.
func queues(c *config.Config) bool {
	for _, l := range c.Listen {
		if l.Next == config.NextQueue || leavesRest(l) {
			return true
		}
	}
	return false
}

// newResolver is the daemon's one resolver. Without any server it is the one on
// this host, as resolv.conf(5) has it.
func newResolver(c *config.Config) (*resolve.Resolver, error) {
	servers := c.Queue.Resolver
	if _, err := os.Stat("/etc/resolv.conf"); len(servers) == 0 && errors.Is(err, fs.ErrNotExist) {
		servers = []string{"127.0.0.1:53"}
	}
	return resolve.New(resolve.Options{Servers: servers})
}

// openEngine opens the store and makes the queue; nothing is delivered before
// it is started.
func openEngine(c *config.Config, out *outward, chains *pipeline.Generations, log *slog.Logger) (*engine, error) {
	e := &engine{outward: out}
	var err error
	if e.store, err = openStore(c, log); err != nil {
		return nil, err
	}
	if e.queue, err = e.newQueue(c, chains, log); err != nil {
		e.store.Close()
		return nil, err
	}
	return e, nil
}

func openStore(c *config.Config, log *slog.Logger) (*pebble.Store, error) {
	s, err := pebble.Open(pebble.Options{
		Dir: queueDir(c), Log: log, Now: time.Now, LowBytes: c.Queue.LowSpace,
		Fatal: func(err error) {
			log.Error("the queue cannot be written any more; the daemon ends so that its supervisor starts it again", "error", err)
			os.Exit(pebble.ExitFatal)
		},
	})
	if err != nil {
		return nil, fmt.Errorf("queue: %w", err)
	}
	return s, nil
}

func (e *engine) newQueue(c *config.Config, chains *pipeline.Generations, log *slog.Logger) (*queue.Queue, error) {
	e.leave = departure{chains: chains, log: log, hold: e.holdLater(log), carry: func(m message.Message, form message.Form) (message.Message, error) {
		return carried(e.config.Load(), m, form, e.store)
	}}
	mailboxes, err := local.New(local.Options{Dir: "/", Hostname: c.Hostname, Log: log, Mailboxes: e.mailbox, Serves: e.hasMailboxes})
	if err != nil {
		return nil, err
	}
	e.limits.queue, err = queue.Open(queue.Options{
		Store: e.store, Spool: e.store, Log: log, Now: time.Now, Host: c.Hostname, Route: e.channel,
		Prepare: e.leave.prepare,
		Lane:    e.lane, SiteLimit: gated, Lifetime: c.Queue.Lifetime,
		Channels: []queue.Channel{
			{Name: remoteChannel, Exit: remoteExit{e.outward}, Backoff: c.Queue.Backoff(), Limit: slots(c.Queue.Remote), Locate: e.limits.locate, Admit: e.limits.admit},
			{Name: localChannel, Exit: localExit{mailboxes}, Backoff: schedule.Qmail(schedule.QmailLocal), Limit: slots(c.Queue.Local)},
		},
		Bounce: queue.Bounce{
			From: c.Bounce.From, Postmaster: c.Bounce.Postmaster, Format: formatOf(c), MaxOriginal: maxOriginal(c), Warn: warn(c),
			May: func(origin []byte, sender string) bool {
				return mayReport(e.config.Load().Bounce.External)(origin, sender)
			},
			Origin: func() []byte {
				b, err := ownOrigin().Encode()
				if err != nil {
					return nil
				}
				return b
			},
		},
	})
	return e.limits.queue, err
}

// gated is the most deliveries to a site that the schedule knows of: the Gate has
// the limits of sites, and those of what stays here are their channel's.
const gated = 100_000

// slots is a concurrency as the schedule takes it, where 0 is the default and
// less than that stops a channel; in qmail 0 stops it.
func slots(n int) int {
	if n == 0 {
		return -1
	}
	return n
}

// warn is bounce.warn as the queue takes it, where 0 is the default.
func warn(c *config.Config) time.Duration {
	if c.Bounce.Warn == 0 {
		return -1
	}
	return c.Bounce.Warn
}

// channel says how an address leaves: to a mailbox, if its domain has any here,
// else over the network.
func (e *engine) channel(address string) (channel, domain string) {
	domain = envelope.Domain(address)
	if e.isLocal(domain) {
		return localChannel, domain
	}
	return remoteChannel, domain
}

// lane is the pool of sources that a message leaves from. An origin that cannot be
// read says nothing about it.
func (e *engine) lane(sender string, origin []byte) string {
	if !e.config.Load().HasPools() {
		return "" // and nobody need read what a rule once chose
	}
	o, err := pipeline.DecodeOrigin(origin)
	if err != nil {
		o.Pool = ""
	}
	return e.limits.pool(sender, o.Pool)
}

// mailbox is the Maildir of an address, below the root directory.
func (e *engine) mailbox(address string) (dir string, ok bool) {
	layout, ok := e.config.Load().MailboxOf(address)
	if !ok {
		return "", false
	}
	return local.Expand(strings.TrimPrefix(layout, "/"), address)
}

func (e *engine) hasMailboxes(domain string) bool { return e.config.Load().HasMailboxes(domain) }

func (e *engine) isLocal(domain string) bool { return e.config.Load().IsLocal(domain) }

// close stops delivering and closes the store. Where others have used up the time
// for stopping there is still a moment for what is being delivered.
func (e *engine) close(ctx context.Context) error {
	if ctx.Err() != nil {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
	}
	err := e.queue.Close(ctx)
	if err2 := e.store.Close(); err == nil {
		err = err2
	}
	return err
}

// remoteExit is the way to other servers as an exit of the queue.
type remoteExit struct{ *outward }

// Deliver makes one attempt.
func (x remoteExit) Deliver(ctx context.Context, j *queue.Job) ([]queue.Result, schedule.Health) {
	job := &smtp.Job{Domain: j.Domain, Envelope: j.Envelope, Content: j.Message}
	if j.Prepare != nil {
		var release func()
		job.Prepare, release = preparing(j.Domain, j.Prepare)
		defer release()
	}
	leave, _ := j.Leave.(*permit)
	return concluded(job, x.send(ctx, job, j.Lane, leave))
}

// concluded are an exit's results as the queue knows them.
func concluded(job *smtp.Job, got []smtp.Result) ([]queue.Result, schedule.Health) {
	all := make([]queue.Result, len(got))
	health := schedule.Failed
	for i, r := range got {
		all[i] = queue.Result{Reply: r.Reply, Where: r.Where, Perhaps: r.Perhaps, TLS: r.TLS.String(), Source: job.Source.Name}
		if r.NotNow != nil {
			all[i].NotNow = &queue.Wait{Until: r.NotNow.Until}
			health = schedule.Unchanged
		}
		if errors.As(r.Err, new(*smtp.SourceError)) {
			health = schedule.Unchanged // it is about us
		}
		if r.Remote && r.Phase >= wire.MailFrom {
			health = schedule.Succeeded
		}
	}
	return all, health
}

// preparing is a queue's Prepare as the SMTP exit calls it, and gives up what
// it made.
func preparing(domain string, prepare func(ctx context.Context, host string, form message.Form) (message.Message, error)) (f func(context.Context, wire.Capabilities) (message.Message, error), release func()) {
	var made []message.Message
	f = func(ctx context.Context, can wire.Capabilities) (message.Message, error) {
		m, err := prepare(ctx, domain, formFor(can))
		if err == nil {
			made = append(made, m)
		}
		return m, err
	}
	return f, func() {
		for _, m := range made {
			m.Body().Release() //nolint:errcheck // the spool sweeps what is left behind
		}
	}
}

// formFor is the most that a server with these capabilities can carry.
func formFor(can wire.Capabilities) message.Form {
	switch {
	case can.Extensions.Has(wire.UTF8):
		return message.UTF8
	case can.Extensions.Has(wire.EightBit):
		return message.EightBit
	}
	return message.SevenBit
}

// localExit is egress/local as an exit of the queue. A mailbox is always there
// to be tried, whatever it answers.
type localExit struct{ exit *local.Exit }

// Deliver delivers to each recipient's Maildir.
func (x localExit) Deliver(ctx context.Context, j *queue.Job) ([]queue.Result, schedule.Health) {
	all := make([]queue.Result, len(j.Envelope.Recipients))
	m := j.Message
	if j.Prepare != nil {
		var err error
		if m, err = j.Prepare(ctx, "", message.UTF8); err != nil {
			for i := range all {
				all[i] = queue.Result{Reply: reply.Of(err), Where: "local"}
			}
			return all, schedule.Unchanged
		}
		defer m.Body().Release() //nolint:errcheck // the spool sweeps what is left behind
	}
	for i, r := range x.exit.Deliver(ctx, j.Envelope, m) {
		all[i] = queue.Result{Reply: r, Where: "local"}
	}
	return all, schedule.Succeeded
}
