package host

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/postern-mta/postern/pipeline/program"
)

// place is where a plugin lives: three directories below the host's, named by
// one letter because the path of a socket is short.
//
//	r  its sockets; it writes there
//	b  the bodies that it is given, and those that it answers with
//	s  what it keeps, unless the configuration names a directory
type place struct {
	run, bodies, state string
	// plugin is the uid that it runs as.
	plugin uint32
	// own is set if that is the daemon's own.
	own bool
	// account is the plugin's, if it has one.
	account program.Account
}

// Owner is who the daemon is, or will be.
type Owner struct{ UID, GID int }

// maxSocket is the longest path of a Unix socket, in bytes (unix(7), less the
// NUL at its end); socketName is how long a name go-plugin's servers choose, in a directory
// of the process.
const (
	maxSocket  = 107
	socketName = len("/zzzz/plugin") + 10
)

// Prepare makes the directory of a plugin while that is possible: one that has a
// user of its own needs root. owner is who the daemon will be.
func Prepare(dir string, s Settings, owner Owner) error {
	_, err := prepare(dir, s, owner)
	return err
}

func prepare(dir string, s Settings, owner Owner) (*place, error) {
	p := &place{plugin: uint32(owner.UID), own: true}
	gid := owner.GID
	if s.User != "" {
		var err error
		if p.account, err = program.LookupAccount(s.User); err != nil {
			return nil, err
		}
		p.plugin, p.own, gid = p.account.UID, int(p.account.UID) == owner.UID, int(p.account.GID)
	}
	top := filepath.Join(dir, s.Name)
	p.run, p.bodies, p.state = filepath.Join(top, "r"), filepath.Join(top, "b"), filepath.Join(top, "s")
	if n := len(p.run) + socketName; n > maxSocket {
		return nil, fmt.Errorf("the sockets of the plugin, in %s, would have paths of %d bytes, at most %d: give it a shorter name, or the daemon a shorter state directory", p.run, n, maxSocket)
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o711); err != nil {
		return nil, err
	}
	dirs := []struct {
		path     string
		mode     os.FileMode
		uid, gid int
	}{
		{dir, 0o711, owner.UID, owner.GID},
		{top, 0o711, owner.UID, owner.GID},
		{p.run, 0o770 | os.ModeSetgid, int(p.plugin), owner.GID},
		{p.bodies, 0o770 | os.ModeSticky, owner.UID, gid},
		{p.state, 0o770 | os.ModeSetgid, int(p.plugin), owner.GID},
	}
	for _, d := range dirs {
		if err := ensure(d.path, d.mode, d.uid, d.gid); err != nil {
			return nil, fmt.Errorf("the directory %s of the plugin: %w", d.path, err)
		}
	}
	if s.Dir != "" {
		p.state = s.Dir
	}
	return p, p.reachable(top)
}

// ensure makes a directory as it must be. It is changed by its descriptor: what is
// done here may be done by root, in a directory that is the daemon's.
func ensure(path string, mode os.FileMode, uid, gid int) error {
	if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	info, err := os.Lstat(path)
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return errors.New("it is no directory")
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	own := ok && int(st.Uid) == uid && int(st.Gid) == gid
	if own && info.Mode()&(os.ModePerm|os.ModeSetgid|os.ModeSticky) == mode {
		return nil
	}
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	if !own {
		if err := f.Chown(uid, gid); err != nil {
			return fmt.Errorf("it must belong to %d:%d: %w (a plugin with a user of its own is prepared when root starts the daemon: restart it)", uid, gid, err)
		}
	}
	return f.Chmod(mode) // once more, since a new owner takes bits of it away
}

// reachable reports whether the plugin's user may enter all directories above
// its own.
func (p *place) reachable(top string) error {
	if p.own || p.plugin == 0 {
		return nil
	}
	for dir := top; ; dir = filepath.Dir(dir) {
		info, err := os.Stat(dir)
		if err != nil {
			return err
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		if ok && !p.enters(st) {
			return fmt.Errorf("the plugin's user %s may not enter %s: chmod o+x %s", p.account.Name, dir, dir)
		}
		if dir == filepath.Dir(dir) {
			return nil
		}
	}
}

func (p *place) enters(st *syscall.Stat_t) bool {
	switch {
	case st.Uid == p.plugin:
		return st.Mode&0o100 != 0
	case st.Gid == p.account.GID || contains(p.account.Groups, st.Gid):
		return st.Mode&0o010 != 0
	}
	return st.Mode&0o001 != 0
}

func contains(all []uint32, n uint32) bool {
	for _, a := range all {
		if a == n {
			return true
		}
	}
	return false
}

// maxStuck is of how many files that cannot be removed is told.
const maxStuck = 10

// sweep removes what a daemon that was killed has left in the directories of
// plugins: sockets and bodies, not what they keep. What cannot be removed it
// tells of, since a plugin with a user of its own can make such things, and must
// not keep the daemon from starting.
func sweep(dir string, remove func(string) error) (stuck, err error) {
	tops, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, top := range tops {
		for _, room := range []string{"r", "b"} {
			path := filepath.Join(dir, top.Name(), room)
			left, err := os.ReadDir(path)
			if err != nil {
				continue // a directory of nobody's
			}
			for _, e := range left {
				if err := remove(filepath.Join(path, e.Name())); err != nil && len(errs) < maxStuck {
					errs = append(errs, err)
				}
			}
		}
	}
	return errors.Join(errs...), nil
}
