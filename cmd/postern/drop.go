package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"

	"github.com/postern-mta/postern/cmd/postern/config"
)

// credentials are the user that the daemon becomes.
type credentials struct{ uid, gid int }

// heir is the user that the daemon becomes, nil if it stays who it is: without
// a configured user, or without root.
func heir(c *config.Config) (*credentials, error) {
	if c.User == "" || os.Getuid() != 0 {
		return nil, nil
	}
	u, err := user.Lookup(c.User)
	if err != nil {
		return nil, fmt.Errorf("user: %w", err)
	}
	uid, err1 := strconv.Atoi(u.Uid)
	gid, err2 := strconv.Atoi(u.Gid)
	if err := errors.Join(err1, err2); err != nil {
		return nil, fmt.Errorf("user %s: %w", c.User, err)
	}
	return &credentials{uid, gid}, nil
}

// makeDirs makes the directories that the daemon needs and gives those it made
// to the user that it will be.
func (h *credentials) makeDirs(c *config.Config) error {
	if h == nil {
		return nil
	}
	dirs := []string{c.State, filepath.Dir(c.Admin.Socket)}
	for _, name := range sortedKeys(c.Listen) {
		if l := c.Listen[name]; !l.IsSMTP() {
			dirs = append(dirs, filepath.Dir(l.Socket))
		}
	}
	for _, dir := range dirs {
		if err := h.giveDir(dir); err != nil {
			return err
		}
	}
	return nil
}

// become gives the user what was made below the state directory while the
// daemon was root, and becomes that user.
func (h *credentials) become(c *config.Config) error {
	if h == nil {
		return nil
	}
	err := filepath.WalkDir(tlsDir(c), func(path string, _ fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return errors.Join(err, os.Lchown(path, h.uid, h.gid))
	})
	if err != nil {
		return fmt.Errorf("user %s: %w", c.User, err)
	}
	if err := syscall.Setgroups([]int{h.gid}); err != nil {
		return fmt.Errorf("user %s: setgroups: %w", c.User, err)
	}
	if err := syscall.Setgid(h.gid); err != nil {
		return fmt.Errorf("user %s: setgid: %w", c.User, err)
	}
	if err := syscall.Setuid(h.uid); err != nil {
		return fmt.Errorf("user %s: setuid: %w", c.User, err)
	}
	return nil
}

// giveDir makes a directory, and those above it, for a user. One that is there
// already is left as it is: it may be shared, and whether it will do shows when
// it is used.
func (h *credentials) giveDir(dir string) error {
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if above := filepath.Dir(dir); above != dir {
		if err := h.giveDir(above); err != nil {
			return err
		}
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	return os.Chown(dir, h.uid, h.gid)
}

// dropRoot is for commands that need nothing of root: it makes the directories
// and becomes the configured user.
func dropRoot(c *config.Config) error {
	return dropRootFor(c, func(*credentials) error { return nil })
}

// dropRootFor is dropRoot for a command that needs root for a moment before.
func dropRootFor(c *config.Config, first func(*credentials) error) error {
	h, err := heir(c)
	if err == nil {
		err = h.makeDirs(c)
	}
	if err == nil {
		err = first(h)
	}
	if err == nil {
		err = h.become(c)
	}
	return err
}
