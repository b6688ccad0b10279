// Package local delivers to Maildirs.
//
// It promises that a message it has accepted is on stable storage, directory
// entry included, and whole; that nothing in an address leads out of the
// configured directory, by name or by symbolic link; that it never bounces mail
// because of its own trouble, whether a disk is full, a Maildir is missing or
// a domain of ours has no mailbox at all; and that it ends loops.
package local

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
)

// Options of New. Dir and Mailboxes are needed.
type Options struct {
	// Dir holds all Maildirs.
	Dir string
	// Mailboxes gives an address's Maildir, a path below Dir. It is called
	// concurrently.
	Mailboxes func(address string) (dir string, ok bool)
	// Serves reports whether there are mailboxes in a domain, so that an address
	// without one does not exist. Nil, and a domain that has none, mean that
	// the mailboxes are missing, and mail waits.
	Serves func(domain string) bool
	// Hostname is ours, in file names.
	Hostname string
	Log      *slog.Logger
	Now      func() time.Time
	// Before is asked before each call that changes the file system, named like
	// the system call; an error takes the call's place. For tests.
	Before func(call, path string) error
}

// Exit delivers. It is safe for concurrent use, also by several processes.
type Exit struct {
	o     Options
	names names

	mu    sync.Mutex
	swept map[string]time.Time
}

// New makes an exit. The directory need not be there yet.
func New(o Options) (*Exit, error) {
	if o.Dir == "" || o.Mailboxes == nil {
		return nil, errors.New("local delivery: no directory or no mailboxes are configured")
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Serves == nil {
		o.Serves = func(string) bool { return false }
	}
	if o.Before == nil {
		o.Before = func(string, string) error { return nil }
	}
	return &Exit{o: o, names: names{host: hostPart(o.Hostname), pid: os.Getpid()}, swept: map[string]time.Time{}}, nil
}

// The answers, beside those of package reply.
var (
	delivered = reply.Make(250, reply.Enhanced{Subject: 2}, "delivered")
	unknown   = reply.Make(550, reply.Enhanced{Subject: 1, Detail: 1}, "there is no mailbox here by that name")
	looping   = reply.Make(554, reply.Enhanced{Subject: 4, Detail: 6}, "this message is looping: it already has my Delivered-To line")
	missing   = reply.Make(451, reply.Enhanced{Subject: 3, Detail: 5}, "mailbox is not set up, please try again later")
	broken    = reply.Make(451, reply.Enhanced{Subject: 2}, "mailbox cannot be written to, please try again later")
	full      = reply.Make(452, reply.Enhanced{Subject: 2, Detail: 2}, "mailbox is full, please try again later")
)

// Deliver delivers a message and gives an answer for each of the envelope's
// recipients, in order. A message that is cut off by ctx's end is not delivered.
func (x *Exit) Deliver(ctx context.Context, e envelope.Envelope, m message.Message) []reply.Reply {
	all := make([]reply.Reply, len(e.Recipients))
	for i, to := range e.Recipients {
		all[i] = x.one(ctx, e.Sender, to.Address, m)
	}
	return all
}

func (x *Exit) one(ctx context.Context, sender, to string, m message.Message) reply.Reply {
	if !envelope.ValidBytes(to) || !envelope.ValidBytes(sender) {
		return reply.BadAddress
	}
	dir, ok := x.o.Mailboxes(to)
	if !ok {
		if x.o.Serves(envelope.Domain(to)) {
			return unknown
		}
		x.o.Log.Error("a domain of ours has no mailbox behind it; its mail waits: configure a mailbox, or take it off our domains", "to", to, "domain", envelope.Domain(to))
		return missing
	}
	if !filepath.IsLocal(dir) {
		x.o.Log.Error("a mailbox lies outside the directory of mailboxes; its mail waits", "to", to, "mailbox", dir, "dir", x.o.Dir)
		return missing
	}
	for _, line := range m.Head().Values("Delivered-To") {
		if line == to {
			return looping
		}
	}
	err := x.deliver(ctx, dir, sender, to, m)
	if err == nil {
		return delivered
	}
	x.o.Log.Error("cannot deliver to a Maildir; the message waits", "to", to, "maildir", filepath.Join(x.o.Dir, dir), "error", err)
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return full
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR):
		return missing
	}
	return broken
}

// Expand makes a mailbox's path of a layout: %l is the address's local part and
// %d its domain, both in lower case. ok is false for an address with which the
// path would be another than the layout means: an empty part, one that begins
// with a dot, or one with a slash, a backslash or a control byte.
func Expand(layout, address string) (dir string, ok bool) {
	local, domain := strings.ToLower(envelope.Local(address)), envelope.Domain(address)
	for _, part := range [...]string{local, domain} {
		if part == "" || part[0] == '.' || strings.ContainsAny(part, "/\\") || !envelope.ValidBytes(part) || len(part) > 255 {
			return "", false
		}
	}
	dir = strings.NewReplacer("%l", local, "%d", domain, "%%", "%").Replace(layout)
	return dir, filepath.IsLocal(dir)
}
