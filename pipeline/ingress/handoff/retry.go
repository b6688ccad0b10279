package handoff

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"time"

	"github.com/postern-mta/postern/pipeline/ingress/handoff/wire"
	"github.com/postern-mta/postern/pipeline/reply"
)

// try runs the next program once with a kept message.
func (k *Kept) try(ctx context.Context, h *Held) {
	h.tries++
	err := k.runNext(ctx, h)
	switch {
	case err == nil:
		k.o.Log.Info("a kept copy got through", "copy", h.name, "tries", h.tries)
		h.Drop()
	case ctx.Err() != nil: // stopped: after the start it is tried again
	case k.o.Now().Sub(h.birth) >= k.o.Lifetime:
		k.setAside(h, err)
	default:
		wait := k.o.Most
		if n := h.tries - 1; n < 32 && k.o.First<<n > 0 {
			wait = min(k.o.Most, k.o.First<<n)
		}
		k.mu.Lock()
		h.due = k.o.Now().Add(wait)
		k.mu.Unlock()
		k.o.Log.Warn("a copy was not taken by the next program and will be tried again", "copy", h.name, "tries", h.tries, "next", k.o.Next, "again_in", wait, "error", err)
	}
}

// setAside gives a message up, and leaves it where the administrator finds it.
func (k *Kept) setAside(h *Held, why error) {
	path := k.path(h.name, envelopeSuffix)
	err := os.Rename(path, path+failedSuffix)
	if err == nil {
		message := k.path(h.name, messageSuffix)
		err = errors.Join(os.Rename(message, message+failedSuffix), syncDir(k.o.Dir))
	}
	k.o.Log.Error("a copy was not taken by the next program for too long and is set aside; feed it to the program by hand, or remove it",
		"message", k.path(h.name, messageSuffix+failedSuffix), "envelope", path+failedSuffix, "next", k.o.Next, "tries", h.tries, "error", errors.Join(why, err))
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.all, h.name)
	k.bytes -= h.size
}

// runNext is nil if the program took the message.
func (k *Kept) runNext(ctx context.Context, h *Held) error {
	p, err := h.open()
	if err != nil {
		return err
	}
	defer p.close()
	ctx, cancel := context.WithTimeout(ctx, k.o.Timeout)
	defer cancel()
	// One hop more than a shim may have made: a program that comes back to a
	// shim, and by it to us, ends there.
	c := exec.CommandContext(ctx, k.o.Next)
	c.Env = append(os.Environ(), wire.HopsVariable+"="+strconv.Itoa(wire.MaxHops-1))
	c.Stdin, c.Stdout = p.message, p.envelope
	c.WaitDelay = time.Second
	err = c.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
			return fmt.Errorf("signal %v", status.Signal())
		}
		return fmt.Errorf("exit %d (%s)", exit.ExitCode(), reply.FromExit(exit.ExitCode(), "").Words())
	}
	return err
}
