package spp

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/postern-mta/postern/pipeline/reply"
	"github.com/postern-mta/postern/rules"
)

// event is what programs are started for, a section of control/smtpplugins.
type event uint8

const (
	atConnection event = iota
	atHelo
	atAuth
	atMail
	atRcpt
	atPass
	atData
	events
)

var eventNames = [events]string{"connection", "helo", "auth", "mail", "rcpt", "pass", "data"}

// String is the section's name.
func (e event) String() string { return eventNames[e] }

// eventOf is the event of a section's line, of which only the first letter
// counts.
func eventOf(line string) (event, bool) {
	if len(line) < 2 {
		return 0, false
	}
	for e, name := range eventNames {
		if name[0] == line[1] {
			return event(e), true
		}
	}
	return 0, false
}

// Bounds of the file and of what it lists.
const (
	maxFile     = 64 << 10 // bytes
	maxPrograms = 100      // for an event
)

// plugins are the programs of each event, as they are written.
type plugins struct {
	of [events][]string
	// ignored are lines that no event has: in front of the first section, or in a
	// section that there is not.
	ignored int
}

// parsePlugins reads control/smtpplugins (qmail-spp.c:spp_init).
func parsePlugins(lines []rules.Line, v variant) (plugins, error) {
	var p plugins
	e, known := event(0), false
	for _, l := range lines {
		if l.Text[0] == '[' {
			e, known = eventOf(l.Text)
			known = known && (e != atPass || v.pass)
			continue
		}
		switch {
		case !known:
			p.ignored++
		case len(p.of[e]) == maxPrograms:
			return p, fmt.Errorf("line %d: more than %d programs in [%s]", l.No, maxPrograms, e)
		default:
			if err := checkProgram(l.Text); err != nil {
				return p, fmt.Errorf("line %d: %w", l.No, err)
			}
			p.of[e] = append(p.of[e], l.Text)
		}
	}
	return p, nil
}

func checkProgram(s string) error {
	switch {
	case strings.TrimPrefix(s, ":") == "":
		return errors.New("there is no program")
	case strings.IndexByte(s, 0) >= 0:
		return errors.New("a program's name holds a NUL")
	case len(s) > maxCommand:
		return fmt.Errorf("a program's name of %d bytes", len(s))
	}
	return nil
}

// readPlugins reads a file that a session names, anew for each.
func readPlugins(path string, v variant) (plugins, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) && v.optional {
		return plugins{}, nil
	}
	if err != nil {
		return plugins{}, err
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return plugins{}, fmt.Errorf("%s: not a file", reply.Clean(path, 200))
	}
	lines, err := rules.ControlLines(f, maxFile)
	if err != nil {
		return plugins{}, fmt.Errorf("%s: %w", reply.Clean(path, 200), err)
	}
	p, err := parsePlugins(lines, v)
	if err != nil {
		return p, fmt.Errorf("%s: %w", reply.Clean(path, 200), err)
	}
	return p, nil
}

// guarded is a file's own path, without symbolic links, if nobody but root and this
// process's user can change it or put another one into its place: whoever names it
// has programs run as our user.
func guarded(path string) (string, error) {
	own, err := filepath.EvalSymlinks(path)
	if err != nil {
		return path, err
	}
	for at := own; ; at = filepath.Dir(at) {
		var st unix.Stat_t
		if err := unix.Lstat(at, &st); err != nil {
			return own, &fs.PathError{Op: "lstat", Path: at, Err: err}
		}
		open := st.Mode&0o022 != 0 && (st.Mode&unix.S_IFMT != unix.S_IFDIR || st.Mode&unix.S_ISVTX == 0)
		if open || st.Uid != 0 && st.Uid != uint32(os.Geteuid()) {
			return own, fmt.Errorf("%s: others than root can change %s: chown it to root, and chmod go-w", reply.Clean(path, 200), reply.Clean(at, 200))
		}
		if at == filepath.Dir(at) {
			return own, nil
		}
	}
}

// resolve is the absolute path and the arguments of a program: a line that
// begins with a colon is for the shell, any other is a path as a whole.
func resolve(line, dir string) (path string, args []string) {
	if script, ok := strings.CutPrefix(line, ":"); ok {
		return "/bin/sh", []string{"/bin/sh", "-c", script}
	}
	path = line
	if !filepath.IsAbs(path) {
		path = filepath.Join(dir, path)
	}
	return path, []string{line}
}

// homeOf is the directory above that of a file, from which qmail-smtpd works:
// /var/qmail for /var/qmail/control/smtpplugins.
func homeOf(file string) string { return filepath.Dir(filepath.Dir(file)) }
