package rcptcheck

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/reply"
	"github.com/postern-mta/postern/rules"
)

const (
	maxControl = 1 << 20 // bytes of a control/recipients
	// addressFD is where a program of control/recipients finds the address.
	addressFD = 3
	maxWords  = 7 // of a program's line
)

// control is a file like s/qmail's control/recipients.
type control struct {
	textFile[[]controlLine]
	runner *runner
	wait   time.Duration
	user   string
	folder string // what paths are relative to

	mu        sync.Mutex
	databases map[string]*database // by path; they stay until the end, for who still asks
}

// scope is whom a line of control/recipients is about.
type scope uint8

const (
	everybody scope = iota
	oneDomain
	domainAndBelow
)

// controlLine is a line of control/recipients.
type controlLine struct {
	scope   scope
	domain  string // in lower case
	passes  bool   // whoever is in scope is known
	cdb     string
	program []string
}

func newControl(path string, c *Check, log *slog.Logger, now func() time.Time, r *runner) *control {
	return &control{
		textFile: textFile[[]controlLine]{path: path, parse: parseControl, log: log, now: now},
		runner:   r, user: c.User, wait: orElse(c.Wait, defaultWait), folder: filepath.Dir(filepath.Dir(path)), databases: map[string]*database{},
	}
}

// parseControl reads a file; a line that is none makes all of it worthless.
func parseControl(r io.Reader, path string) (all []controlLine, err error) {
	lines, err := rules.ControlLines(r, maxControl)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	for _, l := range lines {
		c, err := parseControlLine(l.Text)
		if err != nil {
			return nil, fmt.Errorf("%s:%d: %w", path, l.No, err)
		}
		all = append(all, c)
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("%s: %w", path, errEmpty)
	}
	return all, nil
}

// parseControlLine reads a line: whom it is about, then : and a database, or |
// and a program, whichever comes first.
func parseControlLine(text string) (c controlLine, err error) {
	if who, ok := strings.CutPrefix(text, "!"); ok {
		c.passes = true
		if who != "*" {
			c.scope, c.domain = oneDomain, lower(who)
		}
		return c, checkScope(c)
	}
	n := strings.IndexAny(text, ":|")
	if n < 0 {
		c.cdb = text
		return c, nil
	}
	switch who := lower(text[:n]); {
	case who == "*":
	case strings.HasPrefix(who, "@"):
		c.scope, c.domain = oneDomain, who[1:]
	default:
		c.scope, c.domain = domainAndBelow, strings.TrimPrefix(who, ".")
	}
	if what := text[n+1:]; text[n] == ':' {
		c.cdb = what
	} else {
		c.program = strings.Fields(what)
	}
	switch {
	case c.cdb == "" && len(c.program) == 0:
		return c, fmt.Errorf("%q names no database and no program: write one after the %c", reply.Clean(text, 80), text[n])
	case len(c.program) > maxWords:
		return c, fmt.Errorf("%q has more than %d words", reply.Clean(text, 80), maxWords)
	}
	return c, checkScope(c)
}

func checkScope(c controlLine) error {
	if c.scope != everybody && (c.domain == "" || strings.ContainsAny(c.domain, "@* \t!|:")) {
		return fmt.Errorf("%q is no domain: write example.org, @example.org or *", reply.Clean(c.domain, 80))
	}
	return nil
}

// covers reports whether the line is about a domain.
func (c *controlLine) covers(domain string) bool {
	switch c.scope {
	case oneDomain:
		return domain == c.domain
	case domainAndBelow:
		return domain == c.domain || strings.HasSuffix(domain, "."+c.domain)
	}
	return true
}

func (c *control) ask(ctx context.Context, address string, tx *pipeline.Transaction) (finding, error) {
	lines, err := c.current()
	if err != nil {
		return finding{}, err
	}
	domain := envelope.Domain(address)
	for i := range lines {
		l := &lines[i]
		if !l.covers(domain) {
			continue
		}
		f := finding{answer: valid}
		switch {
		case l.passes:
		case l.cdb != "":
			f, err = c.database(l.cdb).ask(ctx, address, tx)
		default:
			f, err = c.program(ctx, l.program, address, tx)
		}
		if err != nil || f.answer != unknown {
			return f, err
		}
	}
	return finding{}, nil
}

func (c *control) path(name string) string {
	if filepath.IsAbs(name) {
		return name
	}
	return filepath.Join(c.folder, name)
}

// database is the database of a name, opened when it is asked.
func (c *control) database(name string) *database {
	path := c.path(name)
	c.mu.Lock()
	defer c.mu.Unlock()
	d := c.databases[path]
	if d == nil {
		d = &database{path: path, log: c.log, now: c.now}
		c.databases[path] = d
	}
	return d
}

// program asks a program, for the address and then for its first part.
func (c *control) program(ctx context.Context, words []string, address string, tx *pipeline.Transaction) (finding, error) {
	if strings.Contains(address, "\x00") {
		return finding{}, nil
	}
	names := []string{address}
	local := envelope.Local(address)
	if n := strings.IndexByte(local, '-'); n >= 0 {
		names = append(names, local[:n+1]+address[len(local):])
	}
	path := c.path(words[0])
	for _, name := range names {
		code, _, err := c.runner.run(ctx, c.wait, job{path: path, args: words[1:], user: c.user, env: environment(address, tx), extra: addressFD, input: name + "\x00\x00\x00"})
		switch {
		case err != nil:
			return finding{}, fmt.Errorf("%s: %w", reply.Clean(path, 200), err)
		case code == exitOK:
			return finding{answer: valid}, nil
		case code == exitTemporary:
			return finding{}, fmt.Errorf("%s: exit %d: it cannot tell now", reply.Clean(path, 200), code)
		}
	}
	return finding{}, nil
}

func (c *control) close() (err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, d := range c.databases {
		if e := d.close(); e != nil {
			err = e
		}
	}
	return err
}
