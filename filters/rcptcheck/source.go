package rcptcheck

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"log/slog"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/reply"
	"github.com/postern-mta/postern/rules"
)

// lower lowers ASCII letters, as qmail does.
func lower(s string) string {
	b := []byte(s)
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			b[i] = c + 'a' - 'A'
		}
	}
	return string(b)
}

// isEntry reports whether a text can be an entry of a list.
func isEntry(s string) bool {
	return strings.Contains(s, "@") && !strings.HasPrefix(s, colon) && !strings.HasSuffix(s, "@") && len(s) <= envelope.MaxAddress && envelope.ValidBytes(s) && !strings.ContainsAny(s, " \t")
}

// finder finds the value of a key.
type finder func(key string) (value []byte, ok bool, err error)

// maxBreaks bounds how many shorter addresses one is looked up under.
const maxBreaks = 32

// colon begins the keys of users/recipients.cdb.
const colon = ":"

// lookUp looks an address up under all names that may stand for it.
func lookUp(find finder, address string) (finding, error) {
	if strings.HasPrefix(address, colon) {
		return finding{}, nil // it would be taken for a key of the other layout
	}
	for key := range keysOf(address) {
		value, ok, err := find(key)
		switch {
		case err != nil:
			return finding{}, err
		case !ok:
		case len(value) > 0 && value[0] == '-' && !strings.HasPrefix(key, colon):
			return finding{answer: refused}, nil
		default:
			return finding{answer: valid}, nil
		}
	}
	return finding{}, nil
}

// keysOf are the keys that an address may be found under, in both layouts, the
// nearest first.
func keysOf(address string) iter.Seq[string] {
	return func(yield func(string) bool) {
		if !yield(address) || !yield(colon+address) {
			return
		}
		local := envelope.Local(address)
		domain := address[len(local):]
		if n := strings.IndexAny(local, "-=+"); n >= 0 {
			if key := local[:n+1] + domain; !yield(key) || !yield(colon+key) {
				return
			}
		}
		for rest, n := local, 0; n < maxBreaks; n++ {
			k := strings.LastIndexByte(rest, '-')
			if k < 0 {
				break
			}
			if rest = rest[:k]; !yield(rest + "-default" + domain) {
				return
			}
		}
		if domain != "" && yield(domain) {
			yield(colon + domain)
		}
	}
}

// list is a set of entries in memory.
type list struct{ entries map[string]struct{} }

func newList(entries []string) *list {
	l := &list{entries: make(map[string]struct{}, len(entries))}
	for _, e := range entries {
		l.entries[lower(e)] = struct{}{}
	}
	return l
}

func (l *list) find(key string) ([]byte, bool, error) {
	_, ok := l.entries[key]
	return nil, ok, nil
}

func (l *list) ask(_ context.Context, address string, _ *pipeline.Transaction) (finding, error) {
	return lookUp(l.find, address)
}

func (*list) name() string { return "the list" }

func (*list) close() error { return nil }

const (
	// maxFile bounds a file of recipients, in bytes.
	maxFile = 256 << 20
	// lookEvery is how often a file is looked at.
	lookEvery = time.Second
)

// textFile is a file that is read again when it changes.
type textFile[T any] struct {
	path  string
	parse func(r io.Reader, path string) (T, error)
	log   *slog.Logger
	now   func() time.Time

	mu     sync.Mutex
	held   T
	read   bool        // it could be read once
	info   fs.FileInfo // nil if it cannot be read as it is
	err    error       // why
	looked time.Time
}

func (f *textFile[T]) name() string { return reply.Clean(f.path, 200) }

// current is what is in force.
func (f *textFile[T]) current() (T, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := f.now()
	if since := now.Sub(f.looked); f.looked.IsZero() || since < 0 || since >= lookEvery {
		f.looked = now
		f.look()
	}
	if !f.read {
		return f.held, f.err
	}
	return f.held, nil
}

// look reads the file if it has changed.
func (f *textFile[T]) look() {
	info, err := os.Stat(f.path)
	if err == nil && f.info != nil && os.SameFile(info, f.info) && info.Size() == f.info.Size() && info.ModTime().Equal(f.info.ModTime()) {
		return
	}
	var held T
	if err == nil {
		held, err = f.load()
	}
	if err != nil {
		if f.err == nil || f.err.Error() != err.Error() {
			f.log.Error("a file of recipients cannot be read", "file", f.path, "error", err, "before", f.read)
		}
		f.err, f.info = err, nil
		return
	}
	if f.info != nil || f.err != nil {
		f.log.Info("a file of recipients was read", "file", f.path)
	}
	f.held, f.read, f.info, f.err = held, true, info, nil
}

func (f *textFile[T]) load() (held T, err error) {
	file, err := os.OpenFile(f.path, os.O_RDONLY|syscall.O_NONBLOCK, 0) // a named pipe would never answer
	if err != nil {
		return held, err
	}
	defer file.Close()
	if info, err := file.Stat(); err != nil {
		return held, err
	} else if !info.Mode().IsRegular() {
		return held, fmt.Errorf("%s is no file", f.path)
	}
	return f.parse(file, f.path)
}

// listFile is a file of entries.
type listFile struct{ textFile[*list] }

func (*listFile) close() error { return nil }

func (f *listFile) ask(_ context.Context, address string, _ *pipeline.Transaction) (finding, error) {
	l, err := f.current()
	if err != nil {
		return finding{}, err
	}
	return lookUp(l.find, address)
}

// parseList reads a file's entries; a line that is none makes all of it
// worthless, since a recipient may be missing.
func parseList(r io.Reader, path string) (*list, error) {
	lines, err := rules.ControlLines(r, maxFile)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	l := &list{entries: make(map[string]struct{}, len(lines))}
	for _, line := range lines {
		if !isEntry(line.Text) {
			return nil, fmt.Errorf("%s:%d: %q is no address: write user@example.org, or @example.org", path, line.No, reply.Clean(line.Text, 80))
		}
		l.entries[lower(line.Text)] = struct{}{}
	}
	if len(l.entries) == 0 {
		return nil, fmt.Errorf("%s: %w", path, errEmpty)
	}
	return l, nil
}

// errEmpty is what is wrong with a file that knows nobody: it is more likely to be
// on its way, or lost, than to mean that all of a domain's recipients be refused.
var errEmpty = errors.New("there is nobody in it, and all recipients would be refused: write @example.org for all of a domain, or remove the check")

// database is a constant database of recipients.
type database struct {
	path string
	log  *slog.Logger
	now  func() time.Time

	mu     sync.Mutex
	file   *rules.CDBFile // nil if it could never be opened
	err    error
	looked time.Time
	closed bool
}

func (d *database) name() string { return reply.Clean(d.path, 200) }

func (d *database) close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed = true
	if d.file == nil {
		return nil
	}
	return d.file.Close()
}

func (d *database) ask(_ context.Context, address string, _ *pipeline.Transaction) (finding, error) {
	file, err := d.open()
	if err != nil {
		return finding{}, err
	}
	var buffer [64]byte
	return lookUp(func(key string) ([]byte, bool, error) { return file.Find([]byte(key), buffer[:0]) }, address)
}

// open opens the database, if it is not open.
func (d *database) open() (*rules.CDBFile, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch now := d.now(); {
	case d.closed:
		return nil, errors.New("it is closed")
	case d.file != nil:
		return d.file, nil
	case d.err != nil && now.Sub(d.looked) >= 0 && now.Sub(d.looked) < lookEvery:
		return nil, d.err
	default:
		d.looked = now
	}
	d.file, d.err = rules.OpenCDBFile(d.path, rules.FileOptions{Now: d.now, Changed: func(err error) {
		if err != nil {
			d.log.Error("a database of recipients cannot be read; what was read before is in force", "file", d.path, "error", err)
		}
	}})
	return d.file, d.err
}
