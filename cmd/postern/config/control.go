package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/postern-mta/postern/rules"
)

// maxControl is the longest control file that is read, in bytes.
const maxControl = 16 << 20

// Control is what the files of qmail's control directory say. The zero Control
// is that of a host without one.
type Control struct {
	// Dir is the directory, "" if there is none.
	Dir   string
	files map[string][]rules.Line
}

// controlFiles are the files that are read. Those that a setting of this
// version depends on are needed: that one cannot be read is an error. The rest
// is kept for whoever asks.
var controlFiles = []struct {
	name   string
	needed bool
}{
	{"me", true},
	{"rcpthosts", true},
	{"morercpthosts", true},
	{"locals", true},
	{"virtualdomains", true},
	{"databytes", true},
	{"taps", true},
	{"badmailfrom", false},
	{"badrcptto", false},
	{"badhelo", false},
	{"bouncefrom", false},
	{"bouncehost", false},
	{"concurrencylocal", false},
	{"concurrencyremote", false},
	{"defaultdomain", false},
	{"defaulthost", false},
	{"domainbindings", false},
	{"doublebouncehost", false},
	{"doublebounceto", false},
	{"envnoathost", false},
	{"helohost", false},
	{"idhost", false},
	{"localiphost", false},
	{"outgoingip", false},
	{"percenthack", false},
	{"plusdomain", false},
	{"qmqpservers", false},
	{"queuelifetime", false},
	{"signatures", false},
	{"smtpgreeting", false},
	{"smtproutes", false},
	{"timeoutconnect", false},
	{"timeoutremote", false},
	{"timeoutsmtpd", false},
}

// Lines are the lines of a file that are neither blank nor comments
// (control_readfile in qmail's control.c); there is false if it is missing.
func (c *Control) Lines(file string) (lines []rules.Line, there bool) {
	lines, there = c.files[file]
	return lines, there
}

// First is the first line of a file of one value (control_readline): the very
// first, even if another follows that is no comment. ok is false for a file
// that is missing, or whose first line is blank or a comment.
func (c *Control) First(file string) (line rules.Line, ok bool) {
	if lines := c.files[file]; len(lines) > 0 && lines[0].No == 1 {
		return lines[0], true
	}
	return rules.Line{}, false
}

// at is a place in a file of the directory; line 0 means the file.
func (c *Control) at(file string, line int) place {
	return place{file: filepath.Join(c.Dir, file), line: line, col: min(line, 1)}
}

// readControl reads the directory.
func readControl(dir string, p *problems) Control {
	c := Control{Dir: dir, files: map[string][]rules.Line{}}
	for _, f := range controlFiles {
		lines, err := readControlFile(filepath.Join(dir, f.name))
		switch {
		case err == nil:
			c.files[f.name] = lines
		case errors.Is(err, fs.ErrNotExist):
		case f.needed:
			p.add(c.at(f.name, lineOf(err)), "cannot be read as a default: %v", err)
		default:
			p.warn(c.at(f.name, lineOf(err)), "is left out: %v", err)
		}
	}
	return c
}

// lineOf is the line that an error of rules.ControlLines names, 0 for none.
func lineOf(err error) (line int) {
	fmt.Sscanf(err.Error(), "line %d:", &line) //nolint:errcheck // then it is 0
	return line
}

func readControlFile(path string) ([]rules.Line, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, cause(err)
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("it is no regular file but %s", fileKind(info.Mode()))
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, cause(err)
	}
	defer f.Close()
	lines, err := rules.ControlLines(f, maxControl)
	return lines, cause(err)
}

// cause is an error without the path that is told anyway.
func cause(err error) error {
	var at *fs.PathError
	if errors.As(err, &at) {
		return at.Err
	}
	return err
}

func fileKind(m fs.FileMode) string {
	switch {
	case m.IsDir():
		return "a directory"
	case m&fs.ModeSocket != 0:
		return "a socket"
	case m&fs.ModeNamedPipe != 0:
		return "a named pipe"
	}
	return "a device"
}

// databytes is control/databytes, the longest message; 0 is no limit. Where
// qmail would take the digits that it finds, a value that is not a number is
// an error: "50MB" is not meant to be 50 bytes.
func (c *Control) databytes(p *problems) (limit int64, from place, ok bool) {
	line, ok := c.First("databytes")
	if !ok {
		return 0, place{}, false
	}
	from = c.at("databytes", line.No)
	limit, err := strconv.ParseInt(line.Text, 10, 64)
	if err != nil || limit < 0 {
		p.add(from, "databytes is %s: write a number of bytes, or 0 for no limit", show(line.Text))
		return 0, place{}, false
	}
	return limit, from, true
}

// domains are the domains that are ours, from the file or from the control
// directory.
type domains struct {
	// taken are those that strangers may send to.
	taken *rules.DomainList
	// local are delivered on this host, by exact name (locals).
	local map[string]bool
	// virtual maps a domain or .suffix to its prefix; an empty one is an
	// exception (virtualdomains).
	virtual map[string]string
}

// ours reports whether mail for a domain is our business.
func (d *domains) ours(domain string) bool {
	domain = strings.ToLower(domain)
	if _, ok := d.taken.Match(domain); ok || d.local[domain] {
		return true
	}
	for at := 0; ; {
		if prefix, ok := d.virtual[domain[at:]]; ok {
			return prefix != ""
		}
		next := strings.IndexByte(domain[min(at+1, len(domain)):], '.')
		if next < 0 {
			return false
		}
		at += 1 + next
	}
}

// taken are the domains that strangers may send to. A missing rcpthosts, which
// in qmail means that everybody may relay, here means that mail is taken for
// nobody.
func (c *Control) taken() []string {
	var all []string
	for _, l := range c.files["rcpthosts"] {
		all = append(all, l.Text)
	}
	return all
}

// domains reads the lists of what is delivered here. As in qmail, locals is me
// where it is missing.
func (c *Control) domains() domains {
	d := domains{local: map[string]bool{}, virtual: map[string]string{}}
	locals, there := c.files["locals"]
	if me, ok := c.First("me"); ok && !there {
		locals = []rules.Line{me}
	}
	for _, l := range locals {
		d.local[strings.ToLower(l.Text)] = true
	}
	for _, l := range c.files["virtualdomains"] {
		// Addresses (user@domain:prefix) do not make the domain ours, and the
		// catch-all (:prefix) names none.
		if domain, prefix, ok := strings.Cut(l.Text, ":"); ok && domain != "" && !strings.Contains(domain, "@") {
			if domain = strings.ToLower(domain); !hasKey(d.virtual, domain) {
				d.virtual[domain] = prefix
			}
		}
	}
	return d
}

func hasKey(m map[string]string, key string) bool {
	_, ok := m[key]
	return ok
}

// moreHosts is the path of morercpthosts.cdb, "" if there is none. qmail reads
// the compiled form only, so it is what counts.
func (c *Control) moreHosts(p *problems) string {
	if c.Dir == "" {
		return ""
	}
	compiled := filepath.Join(c.Dir, "morercpthosts.cdb")
	if info, err := os.Stat(compiled); err == nil && info.Mode().IsRegular() {
		return compiled
	}
	if _, source := c.files["morercpthosts"]; source {
		p.warn(c.at("morercpthosts", 0), "does not count without morercpthosts.cdb: run qmail-newmrh, as qmail needs it too")
	}
	return ""
}

// taps are the lines of control/taps. Those that are wrong are reported.
func (c *Control) taps(p *problems) (lines []rules.Line, ok bool) {
	lines, ok = c.files["taps"], true
	if len(lines) > rules.MaxTaps {
		p.add(c.at("taps", lines[rules.MaxTaps].No), "more than %d taps", rules.MaxTaps)
		return nil, false
	}
	for _, l := range lines {
		if _, err := rules.ParseTap(l.Text); err != nil {
			p.add(c.at("taps", l.No), "%v", err)
			ok = false
		}
	}
	return lines, ok
}
