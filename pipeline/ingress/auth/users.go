package auth

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/postern-mta/postern/pipeline/reply"
)

// bounds are what a password file may hold.
type bounds struct {
	size  int64 // bytes
	users int
	cost  Cost
}

func usualBounds() bounds { return bounds{size: 16 << 20, users: 100_000, cost: mostCost()} }

// maxLine bounds a line of a password file, and maxComplaints how many of its
// lines are complained about at once.
const (
	maxLine       = MaxUser + 1 + maxPHC
	maxComplaints = 10
)

// users are what a password file says.
type users struct {
	all map[string]hash
	// costs are those of all users, sorted, for users that do not exist.
	costs []Cost
}

// parseUsers reads a password file: lines "name:hash", empty lines, and comments
// that begin with "#". Every line ends in LF, the last one too, so that a file
// that was cut short does not pass for a whole one. Errors name file and line.
func parseUsers(file string, text []byte, within bounds) (*users, error) {
	if int64(len(text)) > within.size {
		return nil, fmt.Errorf("%s has more than %d bytes", file, within.size)
	}
	u := &users{all: map[string]hash{}}
	lines := map[string]int{}
	var errs []error
	for n := 1; len(text) > 0 && len(errs) < maxComplaints; n++ {
		line, rest, whole := bytes.Cut(text, []byte("\n"))
		text = rest
		name, h, err := parseLine(line, within.cost)
		switch first, twice := lines[name]; {
		case !whole:
			err = errors.New("the last line does not end: is the file cut short?")
		case err == nil && name == "":
			continue
		case err == nil && twice:
			err = fmt.Errorf("%s stands on line %d already", quoted(name), first)
		case err == nil && len(u.all) >= within.users:
			return nil, fmt.Errorf("%s:%d: more than %d users", file, n, within.users)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s:%d: %w", file, n, err))
			continue
		}
		u.all[name], lines[name] = h, n
		u.costs = append(u.costs, h.cost)
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	slices.SortFunc(u.costs, func(a, b Cost) int {
		return cmp.Or(cmp.Compare(a.Memory, b.Memory), cmp.Compare(a.Passes, b.Passes), cmp.Compare(a.Lanes, b.Lanes))
	})
	return u, nil
}

// parseLine reads a line without its end. The name of a comment is "".
func parseLine(line []byte, most Cost) (name string, h hash, err error) {
	if len(line) == 0 || line[0] == '#' {
		return "", hash{}, nil
	}
	if len(line) > maxLine {
		return "", hash{}, fmt.Errorf("the line has more than %d bytes", maxLine)
	}
	name, phc, ok := strings.Cut(string(line), ":")
	if !ok {
		return "", hash{}, errors.New("a line must look like name:hash; \"postern password --file FILE --user NAME\" writes one")
	}
	if err := checkName(name); err != nil {
		return "", hash{}, err
	}
	h, err = parseHash(phc, most)
	return Normal(name), h, err
}

// checkName reports a name that cannot stand in a password file.
func checkName(name string) error {
	if plausible(name, "x") != nil || strings.ContainsAny(name, ": ") || strings.HasPrefix(name, "#") {
		return fmt.Errorf("%s is no name for a user: 1 to %d bytes of UTF-8 without blanks, colons and control characters, not beginning with #", quoted(name), MaxUser)
	}
	return nil
}

// quoted is a name for an administrator to read.
func quoted(name string) string { return `"` + reply.Clean(name, 80) + `"` }

// identity tells one state of a file from another.
type identity struct {
	device, inode uint64
	size          int64
	changed       time.Time // the later of mtime and ctime
}

func identify(info fs.FileInfo) identity {
	id := identity{size: info.Size(), changed: info.ModTime()}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		id.device, id.inode = uint64(st.Dev), st.Ino
		if c := time.Unix(st.Ctim.Unix()); c.After(id.changed) {
			id.changed = c
		}
	}
	return id
}

// readUsers reads a password file; id and mode are those of what was read, and
// also given with most errors.
func readUsers(path string, within bounds) (u *users, id identity, mode fs.FileMode, err error) {
	// Without O_NONBLOCK a fifo would hold us up for ever.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, identity{}, 0, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, identity{}, 0, err
	}
	id, mode = identify(info), info.Mode()
	switch {
	case !mode.IsRegular():
		return nil, id, mode, fmt.Errorf("%s is not a regular file", path)
	case info.Size() > within.size:
		return nil, id, mode, fmt.Errorf("%s has more than %d bytes", path, within.size)
	}
	text, err := io.ReadAll(io.LimitReader(f, within.size+1))
	if err != nil {
		return nil, id, mode, err
	}
	u, err = parseUsers(path, text, within)
	return u, id, mode, err
}
