package local

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/postern-mta/postern/pipeline/message"
)

// names makes the names of files as the revised Maildir specification has them
// (https://cr.yp.to/proto/maildir.html): time, microsecond, process, delivery
// and random number, host.
type names struct {
	host string
	pid  int
	seq  atomic.Uint64
}

func (n *names) next(now time.Time) string {
	var random [8]byte
	rand.Read(random[:]) //nolint:errcheck // it never fails
	return fmt.Sprintf("%d.M%06dP%dQ%dR%s.%s", now.Unix(), now.Nanosecond()/1000, n.pid, n.seq.Add(1), hex.EncodeToString(random[:]), n.host)
}

// hostPart makes a host name fit for a file name.
func hostPart(host string) string {
	host = strings.Map(func(c rune) rune {
		if c <= ' ' || c >= 0x7f {
			return '?'
		}
		return c
	}, host)
	host = strings.NewReplacer("/", `\057`, ":", `\072`).Replace(host)
	if host == "" {
		return "localhost"
	}
	return host[:min(len(host), 120)]
}

// deliver writes a message into tmp/, flushes it, links it into new/ and
// flushes that directory. Before the link nothing is delivered; after it, what
// fails makes at most a duplicate.
func (x *Exit) deliver(ctx context.Context, dir, sender, to string, m message.Message) error {
	root, err := os.OpenRoot(x.o.Dir)
	if err != nil {
		return err
	}
	defer root.Close()
	box, err := root.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer box.Close()
	x.sweep(box, dir)
	name := x.names.next(x.o.Now())
	tmp, final := "tmp/"+name, "new/"+name
	if err := x.write(ctx, box, tmp, sender, to, m); err != nil {
		return err
	}
	renamed, err := x.publish(box, tmp, final)
	if err == nil {
		err = x.flush(box, "new")
	}
	if !renamed {
		box.Remove(tmp) //nolint:errcheck // the sweep takes it
	}
	return err
}

func (x *Exit) write(ctx context.Context, box *os.Root, tmp, sender, to string, m message.Message) (err error) {
	if err := x.o.Before("open", tmp); err != nil {
		return err
	}
	f, err := box.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			f.Close()       //nolint:errcheck // the error that counts came before
			box.Remove(tmp) //nolint:errcheck // the sweep takes it
		}
	}()
	if err := x.o.Before("write", tmp); err != nil {
		return err
	}
	w := bufio.NewWriterSize(f, 64<<10)
	fmt.Fprintf(w, "Return-Path: <%s>\nDelivered-To: %s\n", sender, to)
	n, err := io.Copy(w, &until{ctx, m.Reader()})
	if err == nil && n != m.Size() {
		err = io.ErrUnexpectedEOF
	}
	if err == nil {
		err = w.Flush()
	}
	if err == nil {
		err = x.o.Before("fsync", tmp)
	}
	if err == nil {
		err = f.Sync() // once: after a failure a second one would lie
	}
	if err == nil {
		err = x.o.Before("close", tmp)
	}
	if err == nil {
		err = f.Close()
	}
	return err
}

// publish gives a file its name in new/. A link fails if the name is taken,
// which a rename would not; some file systems have no links.
func (x *Exit) publish(box *os.Root, tmp, final string) (renamed bool, err error) {
	if err = x.o.Before("link", final); err == nil {
		err = box.Link(tmp, final)
	}
	noLinks := false
	for _, e := range [...]error{syscall.EPERM, syscall.EOPNOTSUPP, syscall.ENOSYS, syscall.EXDEV, syscall.EMLINK} {
		noLinks = noLinks || errors.Is(err, e)
	}
	if !noLinks {
		return false, err
	}
	if _, err := box.Lstat(final); !errors.Is(err, fs.ErrNotExist) {
		return false, fmt.Errorf("%s is taken: %w", final, fs.ErrExist)
	}
	if err = x.o.Before("rename", final); err == nil {
		err = box.Rename(tmp, final)
	}
	return err == nil, err
}

func (x *Exit) flush(box *os.Root, dir string) error {
	if err := x.o.Before("fsync", dir); err != nil {
		return err
	}
	d, err := box.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// until reads until a context ends.
type until struct {
	ctx context.Context
	r   io.Reader
}

func (u *until) Read(p []byte) (int, error) {
	if u.ctx.Err() != nil {
		return 0, context.Cause(u.ctx)
	}
	return u.r.Read(p)
}

const (
	// tooOld is the age from which a file in tmp/ belongs to nobody (maildir(5)).
	tooOld     = 36 * time.Hour
	sweepEvery = 6 * time.Hour
	maxSwept   = 10_000 // Maildirs whose last sweep is remembered
)

// sweep removes what deliveries left in tmp/ that did not end.
func (x *Exit) sweep(box *os.Root, dir string) {
	now := x.o.Now()
	x.mu.Lock()
	last, known := x.swept[dir]
	due := !known || now.Sub(last) >= sweepEvery || now.Before(last)
	if due {
		if len(x.swept) >= maxSwept {
			clear(x.swept)
		}
		x.swept[dir] = now
	}
	x.mu.Unlock()
	if !due {
		return
	}
	d, err := box.Open("tmp")
	if err != nil {
		return // the delivery will say so
	}
	defer d.Close()
	for {
		entries, err := d.ReadDir(1000)
		for _, e := range entries {
			info, err := e.Info()
			if err != nil || !info.Mode().IsRegular() || now.Sub(info.ModTime()) < tooOld {
				continue
			}
			if err := box.Remove("tmp/" + e.Name()); err == nil {
				x.o.Log.Info("removed what a delivery left behind", "maildir", dir, "file", e.Name())
			}
		}
		if err != nil || len(entries) == 0 {
			return
		}
	}
}
