package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"strconv"
	"syscall"
	"time"

	"github.com/postern-mta/postern/cmd/postern/config"
	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/ingress/handoff"
	"github.com/postern-mta/postern/pipeline/ingress/handoff/wire"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
	"github.com/postern-mta/postern/queue"
	"github.com/postern-mta/postern/queue/store"
)

// nextTime is how long the next program may take for one message.
const nextTime = 10 * time.Minute

// handOn gives what passes to the next program, and removes the held message
// when it has exited with 0. Further messages that the filters made are kept on
// disk until the program has taken them, as those of the shim are.
func (p *passage) handOn(ctx context.Context) (err error) {
	var copies []*handoff.Held
	defer func() {
		for _, h := range copies {
			if err != nil {
				h.Drop()
			} else {
				h.Retry()
			}
		}
	}()
	for i := range p.pass {
		o := &p.pass[i]
		if o.Message, err = p.q.marked(p.q.config(), p.to, o.Message, o.Origin); err != nil {
			return err
		}
	}
	if len(p.pass) > 1 {
		kept := p.q.kept(p.to.entrance)
		if kept == nil {
			return errors.New("filters made several messages of it, and its entrance, which would keep them, is gone: --deliver hands it on without filters")
		}
		for _, o := range p.pass[1:] {
			h, err := kept.Hold(p.origin.Transaction, o.Envelope, o.Message)
			if err != nil {
				return err
			}
			copies = append(copies, h)
		}
	}
	// The filters took their time. What somebody has deleted meanwhile stays so.
	if err := p.q.queue.Exchangeable(ctx, p.view); err != nil {
		return err
	}
	if err := p.q.hand(ctx, p.to.next, p.pass[0].Envelope, p.pass[0].Message); err != nil {
		return fmt.Errorf("%s did not take it: %w", p.to.next, err)
	}
	// The program is responsible now, so this is done even if the daemon cannot wait.
	if err := p.remove(context.WithoutCancel(ctx)); err != nil {
		// It is there and here: once too often is better than never.
		p.q.log.Error("the next program has taken a message that stays in quarantine; released again it will come twice", "id", p.view.ID.String(), "next", p.to.next, "error", err)
		p.result.Held, p.result.Warning = nil, "it was taken by "+p.to.next+" and could not be removed from quarantine ("+reply.Clean(err.Error(), maxErrorLine)+
			"): released again it comes twice; delete it when all its recipients have it"
		p.why = "taken by " + p.to.next + ", but it could not be removed from quarantine: " + err.Error()
	}
	return nil
}

// remove removes the held message but for what of it is held still.
func (p *passage) remove(ctx context.Context) error {
	if len(p.held) > 0 || len(p.stay.Recipients) > 0 {
		return p.replace(ctx, p.held)
	}
	_, err := p.q.queue.Delete(ctx, queue.Selection{IDs: []store.ID{p.view.ID}}, p.order.By)
	return err
}

// marked is a message as the next program of an entrance is to have it: with its
// origin in it, if the entrance's other mail has that.
func (q *quarantine) marked(c *config.Config, to destination, m message.Message, o pipeline.Origin) (message.Message, error) {
	if q.marks == nil {
		return m, nil
	}
	marks, err := q.marks(c.Listen[to.entrance])
	if err != nil || marks == nil {
		return m, err
	}
	if m, err = marks.Put(m, o); err != nil {
		return m, fmt.Errorf("marking: %w", err)
	}
	return m, nil
}

// hand runs a program as qmail-queue is run, as the configured user, in a group
// of its own and with a clean environment. Nil: it exited with 0, which says
// that it is responsible for the message now.
func (q *quarantine) hand(ctx context.Context, program string, e envelope.Envelope, m message.Message) error {
	list, err := envelope.Append(nil, e)
	if err != nil {
		return err
	}
	content, err := m.Descriptor(q.spool)
	if err != nil {
		return err
	}
	defer content.Close()
	to, err := message.MemoryFile("envelope", list)
	if err != nil {
		return err
	}
	defer to.Close()
	ctx, cancel := context.WithTimeout(ctx, q.nextTime)
	defer cancel()
	c := exec.CommandContext(ctx, program)
	c.Dir, c.Stdin, c.Stdout = "/", content, to
	c.Env = []string{"PATH=/usr/local/bin:/usr/bin:/bin", wire.HopsVariable + "=" + strconv.Itoa(wire.MaxHops-1)}
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	c.Cancel = func() error { return syscall.Kill(-c.Process.Pid, syscall.SIGKILL) }
	c.WaitDelay = time.Second
	if c.SysProcAttr.Credential, err = runner(q.config()); err != nil {
		return err
	}
	err = c.Run()
	var exit *exec.ExitError
	switch {
	case c.ProcessState != nil && c.ProcessState.Success(): // in the last moment, too
		return nil
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return fmt.Errorf("no answer within %v", q.nextTime)
	case ctx.Err() != nil:
		return errStopping
	case !errors.As(err, &exit):
		return err
	}
	if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return fmt.Errorf("signal %v", status.Signal())
	}
	return fmt.Errorf("exit %d (%s)", exit.ExitCode(), reply.FromExit(exit.ExitCode(), "").Words())
}

// runner is who runs the next program; nil is the daemon's own user.
func runner(c *config.Config) (*syscall.Credential, error) {
	uid, ok := c.Quarantine.RunsAs()
	if !ok || int(uid) == os.Geteuid() {
		return nil, nil
	}
	gid := uid
	if u, err := user.LookupId(strconv.FormatUint(uint64(uid), 10)); err == nil {
		n, err := strconv.ParseUint(u.Gid, 10, 32)
		if err != nil {
			return nil, fmt.Errorf("quarantine.user: group %q is no number", u.Gid)
		}
		gid = uint32(n)
	}
	return &syscall.Credential{Uid: uid, Gid: gid, Groups: []uint32{gid}}, nil
}
