package auth

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// ErrNoUser is returned for a user who does not stand in a password file.
var ErrNoUser = errors.New("there is no such user")

// Change is what became of a password file.
type Change uint8

// The changes.
const (
	Added Change = iota + 1
	Replaced
	Deleted
)

var changes = [...]string{"nothing", "added", "replaced", "deleted"}

// String is the change in a word.
func (c Change) String() string { return changes[min(int(c), len(changes)-1)] }

// SetUser writes a user's line into a password file: phc is a hash that Hash
// made. The user's old line is replaced where it stands, all other lines stay as
// they are. A file that is not there is made, with mode 0600; otherwise mode and
// owner are kept. Readers see the old file or the new one, which is on stable
// storage when SetUser returns, and of several who write at a time one waits for
// the other until ctx ends. A file that is wrong is not changed.
func SetUser(ctx context.Context, path, user, phc string) (Change, error) {
	if err := checkName(user); err != nil {
		return 0, err
	}
	if _, err := parseHash(phc, mostCost()); err != nil {
		return 0, err
	}
	return edit(ctx, path, user, []byte(Normal(user)+":"+phc+"\n"))
}

// DeleteUser takes a user's line out of a password file, as SetUser does. It is
// ErrNoUser if there is none.
func DeleteUser(ctx context.Context, path, user string) error {
	_, err := edit(ctx, path, user, nil)
	return err
}

// CheckFile reads a password file and tells how many users it has.
func CheckFile(path string) (int, error) {
	u, _, _, err := readUsers(path, usualBounds())
	if err != nil {
		return 0, err
	}
	return len(u.all), nil
}

// CheckUser reports whether a password is the one that a password file has for
// a user; ErrNoUser if it has none.
func CheckUser(path, user, password string) (bool, error) {
	u, _, _, err := readUsers(path, usualBounds())
	if err != nil {
		return false, err
	}
	h, ok := u.all[Normal(user)]
	if !ok {
		return false, fmt.Errorf("%s: %s: %w", path, quoted(user), ErrNoUser)
	}
	return plausible(user, password) == nil && h.fits(password), nil
}

// edit replaces a user's line, nil for none.
func edit(ctx context.Context, path, user string, line []byte) (Change, error) {
	// The file behind a symbolic link is changed, not the link.
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
	}
	dir, err := lockDir(ctx, filepath.Dir(path))
	if err != nil {
		return 0, err
	}
	defer dir.Close() // the lock ends with it
	text, err := os.ReadFile(path)
	var owner *syscall.Stat_t
	mode := fs.FileMode(0o600)
	switch {
	case errors.Is(err, fs.ErrNotExist) && line != nil:
	case err != nil:
		return 0, err
	default:
		info, err := os.Stat(path)
		if err != nil {
			return 0, err
		}
		mode = info.Mode().Perm()
		owner, _ = info.Sys().(*syscall.Stat_t)
		if !info.Mode().IsRegular() {
			return 0, fmt.Errorf("%s is not a regular file", path)
		}
	}
	if _, err := parseUsers(path, text, usualBounds()); err != nil {
		return 0, fmt.Errorf("the password file is wrong, and stays as it is:\n%w", err)
	}
	text, change := replace(text, Normal(user), line)
	if change == 0 {
		return 0, fmt.Errorf("%s: %s: %w", path, quoted(user), ErrNoUser)
	}
	if _, err := parseUsers(path, text, usualBounds()); err != nil {
		return 0, err
	}
	return change, write(dir, path, text, mode, owner)
}

// replace puts line, nil for none, in the place of a user's line in a file that
// is right, or at its end.
func replace(text []byte, name string, line []byte) ([]byte, Change) {
	out := make([]byte, 0, len(text)+len(line))
	change := Change(0)
	for old := range bytes.Lines(text) {
		if at, _, ok := bytes.Cut(old, []byte(":")); ok && old[0] != '#' && Normal(string(at)) == name {
			out = append(out, line...)
			change = Replaced
			if line == nil {
				change = Deleted
			}
			continue
		}
		out = append(out, old...)
	}
	if change == 0 && line != nil {
		return append(out, line...), Added
	}
	return out, change
}

// lockDir takes the lock of a directory, in which the file may be replaced.
func lockDir(ctx context.Context, path string) (*os.File, error) {
	dir, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	for {
		err := syscall.Flock(int(dir.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		switch {
		case err == nil:
			return dir, nil
		case !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR):
			dir.Close()
			return nil, fmt.Errorf("%s: flock: %w", path, err)
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			dir.Close()
			return nil, fmt.Errorf("%s is locked, somebody else seems to change a password: %w", path, ctx.Err())
		}
	}
}

// write replaces a file as a whole. The directory is locked, so a file of that
// name which is left over is nobody's.
func write(dir *os.File, path string, text []byte, mode fs.FileMode, owner *syscall.Stat_t) (err error) {
	name := filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".new")
	if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(name) //nolint:errcheck // the first error is what counts
		}
	}()
	if owner != nil {
		self, ok := statOf(f)
		if ok && (self.Uid != owner.Uid || self.Gid != owner.Gid) {
			if err := f.Chown(int(owner.Uid), int(owner.Gid)); err != nil {
				return fmt.Errorf("the new file cannot be given to the old one's owner: %w", err)
			}
		}
	}
	if err := f.Chmod(mode); err != nil {
		return err
	}
	if _, err := f.Write(text); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := os.Rename(name, path); err != nil {
		return err
	}
	return dir.Sync()
}

func statOf(f *os.File) (*syscall.Stat_t, bool) {
	info, err := f.Stat()
	if err != nil {
		return nil, false
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	return st, ok
}
