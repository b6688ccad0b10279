package handoff

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/ingress/handoff/wire"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
)

// pair is what one run of the next program reads.
type pair struct{ message, envelope *os.File }

func (p pair) close() {
	for _, f := range [...]*os.File{p.message, p.envelope} {
		if f != nil {
			f.Close()
		}
	}
}

// handOn gives the messages to the next program, the first one under the
// shim's eyes; the others are kept on disk until it is known that they got
// through. From the moment that the shim has the last pair it, and not we,
// answers its caller.
func (n *session) handOn(ctx context.Context, all []pipeline.Outgoing) (reply.Reply, error) {
	all, quarantined := divide(all)
	if err := n.fits(all, quarantined); err != nil {
		n.srv.fail(n.rec.id, "a message is deferred because it cannot go to the next program", err)
		return reply.Trouble, err
	}
	undo, err := n.quarantine(ctx, quarantined)
	if err != nil {
		return reply.Of(err), err
	}
	if len(all) == 0 {
		n.rec.taken, n.rec.stored = true, len(quarantined)
		return reply.OK, nil
	}
	defer func() {
		if !n.asked || n.rec.next != nil && n.rec.next.known && n.rec.next.exit != 0 {
			undo() // the caller tries again, with all of it
		}
	}()
	held, err := n.holdCopies(all[1:])
	if err != nil {
		n.srv.fail(n.rec.id, "a message is deferred because its copies cannot be kept", err)
		return reply.Of(err), err
	}
	pairs, err := n.pairs(all[0], held)
	defer func() {
		for _, p := range pairs {
			p.close()
		}
	}()
	if err != nil {
		dropAll(held)
		n.srv.fail(n.rec.id, "a message is deferred because it cannot go to the next program", err)
		return reply.With(reply.NoSpace, err).Reply, err
	}
	mode := n.mode(len(pairs))
	var process *os.File
	if n.srv.tellsEnd {
		if process, err = peerProcess(n.conn, n.peer.pid); err == nil {
			defer process.Close()
		}
	}
	if ctx.Err() != nil || hungUp(n.raw) {
		dropAll(held)
		n.cancel(errGone)
		return reply.Trouble, context.Cause(ctx)
	}
	if err := n.order(mode, pairs); err != nil {
		dropAll(held)
		n.cancel(errGone)
		return reply.Trouble, err
	}
	n.rec.stage = stageNext
	n.rec.next = &nextRecord{mode: modeNames[mode], copies: len(held)}
	n.follow(mode, process, held)
	return reply.Reply{}, nil
}

var modeNames = [...]string{wire.ModeExec: "exec", wire.ModeWait: "wait"}

// Fits is why a next program cannot take what a chain made of a message, which
// is deferred then; nil if it can.
func Fits(all []pipeline.Outgoing) error {
	if all, _ = divide(all); len(all) > wire.MaxPairs {
		return fmt.Errorf("filters made %d messages of it; at most %d can be handed on", len(all), wire.MaxPairs)
	}
	return nil
}

func (n *session) fits(all, quarantined []pipeline.Outgoing) error {
	switch {
	case len(quarantined) > 0 && n.srv.o.Quarantine == nil:
		return fmt.Errorf("a filter (%s) wants it quarantined, and this daemon was started without a queue to hold it in: restart it", pipeline.LogText(quarantined[0].Hold, maxLogged))
	case len(all) > 1 && n.srv.o.Kept == nil:
		return errors.New("filters made several messages of it, and no directory is set to keep copies in")
	}
	return Fits(all)
}

// divide tells what goes to the next program from what is held.
func divide(all []pipeline.Outgoing) (pass, held []pipeline.Outgoing) {
	for _, o := range all {
		if o.Hold != "" {
			held = append(held, o)
		} else {
			pass = append(pass, o)
		}
	}
	return pass, held
}

// quarantine stores what filters hold, unless the shim has gone away.
func (n *session) quarantine(ctx context.Context, held []pipeline.Outgoing) (undo func(), err error) {
	if len(held) == 0 {
		return func() {}, nil
	}
	if hungUp(n.raw) {
		n.cancel(errGone)
		return nil, errGone
	}
	undo, err = n.srv.o.Quarantine(ctx, held)
	if err != nil && ctx.Err() == nil {
		n.srv.fail(n.rec.id, "a message is deferred because it cannot be quarantined", err)
	}
	return undo, err
}

func (n *session) holdCopies(copies []pipeline.Outgoing) ([]*Held, error) {
	var held []*Held
	for _, o := range copies {
		h, err := n.srv.o.Kept.Hold(n.rec.id, o.Envelope, o.Message)
		if err != nil {
			dropAll(held)
			return nil, err
		}
		held = append(held, h)
	}
	return held, nil
}

func dropAll(held []*Held) {
	for _, h := range held {
		h.Drop()
	}
}

// pairs opens what the runs read: the main message anew, the copies from where
// they are kept.
func (n *session) pairs(first pipeline.Outgoing, held []*Held) (pairs []pair, err error) {
	p, err := n.mainPair(first)
	if err != nil {
		return nil, err
	}
	pairs = append(pairs, p)
	for _, h := range held {
		if p, err = h.open(); err != nil {
			return pairs, err
		}
		pairs = append(pairs, p)
	}
	return pairs, nil
}

func (n *session) mainPair(o pipeline.Outgoing) (p pair, err error) {
	e, err := envelope.Append(nil, o.Envelope)
	if err != nil {
		return p, err
	}
	if p.message, err = o.Message.Descriptor(n.srv.o.Spool); err != nil {
		return p, err
	}
	if p.envelope, err = message.MemoryFile("envelope", e); err != nil {
		p.close()
		return pair{}, err
	}
	return p, nil
}

// mode is how the shim is to run the next program.
func (n *session) mode(pairs int) wire.Mode {
	switch {
	case pairs > 1, n.srv.o.NextMode == NextWait, n.srv.o.NextMode == NextAuto && !n.srv.tellsEnd:
		return wire.ModeWait
	}
	return wire.ModeExec
}

// order sends N and its Ps. With an error the shim has not got them all, and
// then it starts nothing.
func (n *session) order(mode wire.Mode, pairs []pair) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.quiet = true
	next := wire.Next{Mode: mode, Count: uint16(len(pairs)), Path: n.srv.o.Next}
	if err := n.write(next.Append(nil)); err != nil {
		return err
	}
	for i, p := range pairs {
		if i == len(pairs)-1 {
			n.asked = true // the shim may answer before write returns
		}
		err := n.write(wire.Pair{Index: uint16(i)}.Append(nil), int(p.message.Fd()), int(p.envelope.Fd()))
		if err != nil {
			n.asked = false
			return err
		}
	}
	return nil
}

// follow waits for what becomes of the runs. The copies of a message that the
// next program refused are given up with it; those that were not reported as
// taken are tried again, perhaps once too often.
func (n *session) follow(mode wire.Mode, process *os.File, held []*Held) {
	r := n.rec.next
	begun := time.Now()
	taken := make([]bool, 1+len(held))
	n.hearResults(r, taken)
	if !r.known && process != nil && (mode == wire.ModeExec || len(n.fell) > 0) {
		n.seeEnd(r, process)
	}
	r.took = time.Since(begun)
	n.missing(r)
	for i, h := range held {
		switch {
		case taken[1+i]:
			h.Drop()
		case r.known && r.exit != 0:
			h.Drop()
		default:
			r.kept++
			h.Retry()
		}
	}
}

// missing tells of a next program that is not there any more: the shim can only
// say that it did not take the message.
func (n *session) missing(r *nextRecord) {
	if !r.known || r.exit != int(reply.Trouble.QueueExit()) {
		return
	}
	if _, err := os.Stat(n.srv.o.Next); errors.Is(err, fs.ErrNotExist) {
		n.srv.fail(n.rec.id, "a message is deferred because the next program is not there", err)
	}
}

// hearResults takes the shim's reports until it has told all, or hangs up.
func (n *session) hearResults(r *nextRecord, taken []bool) {
	for told := 0; told < len(taken); {
		select {
		case result, ok := <-n.results:
			if !ok {
				return
			}
			if int(result.Index) >= len(taken) {
				return
			}
			told++
			taken[result.Index] = result.Exit == 0 && result.Signal == 0
			if result.Index == 0 {
				r.known, r.exit, r.pid = true, int(result.Exit), int(result.PID)
				if result.Signal != 0 {
					r.exit, r.signal = -1, int(result.Signal)
				}
				if r.exit != 0 {
					return
				}
			}
		case <-n.srv.ctx.Done():
			return
		}
	}
}

// seeEnd asks the kernel how the shim ended after it had become the next
// program.
func (n *session) seeEnd(r *nextRecord, process *os.File) {
	status, err := awaitEnd(n.srv.ctx, process)
	if err != nil {
		return
	}
	r.known, r.pid = true, n.peer.pid
	if r.exit = status.ExitStatus(); status.Signaled() {
		r.exit, r.signal = -1, int(status.Signal())
	}
}
