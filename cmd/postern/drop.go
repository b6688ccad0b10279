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

// dropRoot makes the directories that the daemon needs, gives those it made to
// the configured user, and becomes that user. Without a user, or without root,
// it does nothing.
func dropRoot(c *config.Config) error {
	if c.User == "" || os.Getuid() != 0 {
		return nil
	}
	u, err := user.Lookup(c.User)
	if err != nil {
		return fmt.Errorf("user: %w", err)
	}
	uid, err1 := strconv.Atoi(u.Uid)
	gid, err2 := strconv.Atoi(u.Gid)
	if err := errors.Join(err1, err2); err != nil {
		return fmt.Errorf("user %s: %w", c.User, err)
	}
	dirs := []string{c.State, filepath.Dir(c.Admin.Socket)}
	for _, name := range sortedKeys(c.Listen) {
		if l := c.Listen[name]; !l.IsSMTP() {
			dirs = append(dirs, filepath.Dir(l.Socket))
		}
	}
	for _, dir := range dirs {
		if err := giveDir(dir, uid, gid); err != nil {
			return err
		}
	}
	if err := syscall.Setgroups([]int{gid}); err != nil {
		return fmt.Errorf("user %s: setgroups: %w", c.User, err)
	}
	if err := syscall.Setgid(gid); err != nil {
		return fmt.Errorf("user %s: setgid: %w", c.User, err)
	}
	if err := syscall.Setuid(uid); err != nil {
		return fmt.Errorf("user %s: setuid: %w", c.User, err)
	}
	return nil
}

// giveDir makes a directory for a user. One that is there already is left as it
// is: it may be shared, and whether it will do shows when it is used.
func giveDir(dir string, uid, gid int) error {
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return os.Chown(dir, uid, gid)
}
