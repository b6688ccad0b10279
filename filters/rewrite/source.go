package rewrite

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/postern-mta/postern/pipeline/reply"
	"github.com/postern-mta/postern/rules"
)

// source is a map. It is safe for concurrent use.
type source interface {
	// find finds an entry by its key, which is in lower case.
	find(key string) (entry, bool, error)
	// patterns are the entries that have none, in their order.
	patterns() []entry
	close() error
}

// table is a map in memory.
type table struct {
	senders bool
	entries map[string]entry
	ordered []entry // those with patterns
}

func newTable(senders bool) *table { return &table{senders: senders, entries: map[string]entry{}} }

// add adds an entry.
func (t *table) add(line, where string) error {
	key, e, err := parse(strings.TrimRight(line, " \t"), t.senders)
	if err != nil {
		return err
	}
	e.where = where
	if e.pattern != nil {
		if len(t.ordered) >= maxPatterns {
			return fmt.Errorf("more than %d patterns", maxPatterns)
		}
		t.ordered = append(t.ordered, e)
		return nil
	}
	if before, ok := t.entries[key]; ok {
		return fmt.Errorf("%q has an entry before: %s", reply.Clean(key, 80), before.where)
	}
	t.entries[key] = e
	return nil
}

func (t *table) find(key string) (entry, bool, error) {
	e, ok := t.entries[key]
	return e, ok, nil
}

func (t *table) patterns() []entry { return t.ordered }

func (*table) close() error { return nil }

const (
	// maxFile bounds a file of entries, in bytes.
	maxFile = 64 << 20
	// lookEvery is how often a file is looked at.
	lookEvery = time.Second
)

// textFile is a file of entries, read again when it changes.
type textFile struct {
	path    string
	senders bool
	log     *slog.Logger
	now     func() time.Time

	mu     sync.Mutex
	table  *table
	info   fs.FileInfo // nil if it could not be read
	looked time.Time
	err    error
}

func openFile(path string, senders bool, log *slog.Logger, now func() time.Time) (*textFile, error) {
	f := &textFile{path: path, senders: senders, log: log, now: now, looked: now()}
	var err error
	f.table, f.info, err = readTable(path, senders)
	return f, err
}

// current is the table in force.
func (f *textFile) current() *table {
	f.mu.Lock()
	defer f.mu.Unlock()
	if since := f.now().Sub(f.looked); since < 0 || since >= lookEvery {
		f.looked = f.now()
		f.look()
	}
	return f.table
}

// look reads the file if it has changed.
func (f *textFile) look() {
	info, err := os.Stat(f.path)
	if err == nil && f.info != nil && os.SameFile(info, f.info) && info.Size() == f.info.Size() && info.ModTime().Equal(f.info.ModTime()) {
		return
	}
	var t *table
	if err == nil {
		t, info, err = readTable(f.path, f.senders)
	}
	if err != nil {
		if f.err == nil || f.err.Error() != err.Error() {
			f.log.Error("a map cannot be read; what was read before is in force", "file", f.path, "error", err)
		}
		f.err, f.info = err, nil
		return
	}
	f.log.Info("a map was read", "file", f.path, "entries", len(t.entries)+len(t.ordered))
	f.table, f.info, f.err = t, info, nil
}

func (f *textFile) find(key string) (entry, bool, error) { return f.current().find(key) }

func (f *textFile) patterns() []entry { return f.current().patterns() }

func (*textFile) close() error { return nil }

func readTable(path string, senders bool) (*table, fs.FileInfo, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, nil, err
	}
	if !info.Mode().IsRegular() { // a named pipe would never answer
		return nil, nil, fmt.Errorf("%s is no file", path)
	}
	file, err := os.Open(path)
	if err != nil {
		return nil, nil, err
	}
	defer file.Close()
	if info, err = file.Stat(); err != nil {
		return nil, nil, err
	}
	t, err := parseTable(file, path, senders)
	return t, info, err
}

// parseTable reads a file's entries; a line that is none makes all of it
// worthless, since mail would go astray.
func parseTable(r io.Reader, path string, senders bool) (*table, error) {
	lines, err := rules.ControlLines(r, maxFile)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	t := newTable(senders)
	for len(lines) > 0 {
		first := lines[0]
		var entry strings.Builder
		entry.WriteString(first.Text)
		for lines = lines[1:]; len(lines) > 0 && strings.ContainsAny(lines[0].Text[:1], " \t"); lines = lines[1:] {
			entry.WriteString(lines[0].Text)
		}
		where := fmt.Sprintf("%s:%d", reply.Clean(path, 200), first.No)
		if strings.ContainsAny(first.Text[:1], " \t") {
			return nil, fmt.Errorf("%s: the first line cannot go on with an entry: remove the blanks at its beginning", where)
		}
		if err := t.add(entry.String(), where); err != nil {
			return nil, fmt.Errorf("%s: %w", where, err)
		}
	}
	return t, nil
}

// database is a map in a constant database.
type database struct {
	path    string
	senders bool
	file    *rules.CDBFile
}

func openDatabase(path string, senders bool, log *slog.Logger, now func() time.Time) (*database, error) {
	file, err := rules.OpenCDBFile(path, rules.FileOptions{Now: now, Changed: func(err error) {
		if err != nil {
			log.Error("a map cannot be read; what was read before is in force", "file", path, "error", err)
		}
	}})
	if err != nil {
		return nil, err
	}
	return &database{path: path, senders: senders, file: file}, nil
}

func (d *database) find(key string) (entry, bool, error) {
	value, ok, err := d.file.Find([]byte(key), nil)
	if err != nil || !ok {
		return entry{}, false, err
	}
	where := fmt.Sprintf("%s: %s", reply.Clean(d.path, 200), reply.Clean(key, 100))
	if len(value) > maxLine {
		return entry{}, false, errors.New(where + ": the right side is too long")
	}
	targets, err := parseTargets(string(value), nil, d.senders)
	if err != nil {
		return entry{}, false, fmt.Errorf("%s: %w", where, err)
	}
	return entry{targets: targets, where: where}, true, nil
}

func (*database) patterns() []entry { return nil }

func (d *database) close() error { return d.file.Close() }
