package auth

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
)

func text(t *testing.T, path string) string {
	t.Helper()
	return string(must(os.ReadFile(path))(t))
}

func TestSetUser(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "users")
	a, b := hashed(t, "a", cheap), hashed(t, "b", cheap)
	for _, step := range []struct {
		user, hash string
		want       Change
		text       string
	}{
		{"alice@EXAMPLE.org", a, Added, "alice@example.org:" + a + "\n"},
		{"bob", a, Added, "alice@example.org:" + a + "\nbob:" + a + "\n"},
		{"alice@example.ORG", b, Replaced, "alice@example.org:" + b + "\nbob:" + a + "\n"},
		{"Bob", b, Added, "alice@example.org:" + b + "\nbob:" + a + "\nBob:" + b + "\n"},
	} {
		got, err := SetUser(bg, path, step.user, step.hash)
		if err != nil || got != step.want || text(t, path) != step.text {
			t.Errorf("%s: %v %v\n%s", step.user, got, err, text(t, path))
		}
		if info := must(os.Stat(path))(t); info.Mode().Perm() != 0o600 {
			t.Error(info.Mode())
		}
	}
	check(t, DeleteUser(bg, path, "bob"))
	if text(t, path) != "alice@example.org:"+b+"\nBob:"+b+"\n" {
		t.Error(text(t, path))
	}
	for _, err := range []error{DeleteUser(bg, path, "bob"), DeleteUser(bg, path, "#"), DeleteUser(bg, path, "")} {
		if !errors.Is(err, ErrNoUser) {
			t.Error(err)
		}
	}
	if err := DeleteUser(bg, filepath.Join(dir, "none"), "bob"); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	for _, user := range []string{"", "a b", "a:b", "#a", "a\n", "a\x00", strings.Repeat("x", MaxUser+1)} {
		if _, err := SetUser(bg, path, user, a); err == nil || !strings.Contains(err.Error(), "is no name for a user") {
			t.Errorf("%q: %v", user, err)
		}
	}
	if _, err := SetUser(bg, path, "x", "secret"); err == nil {
		t.Error("a password that is no hash was written")
	}
	if names := must(filepath.Glob(filepath.Join(dir, ".*")))(t); len(names) != 0 {
		t.Errorf("left over: %v", names)
	}
	if n, err := CheckFile(path); n != 2 || err != nil {
		t.Error(n, err)
	}
	for _, c := range []struct {
		user, password string
		want           bool
		err            error
	}{{"Bob", "b", true, nil}, {"Bob", "a", false, nil}, {"bob", "b", false, ErrNoUser}, {"alice@example.ORG", "b", true, nil}} {
		if got, err := CheckUser(path, c.user, c.password); got != c.want || !errors.Is(err, c.err) {
			t.Error(c, got, err)
		}
	}
}

// Comments, mode, owner and the file behind a link stay as they are.
func TestSetUserKeeps(t *testing.T) {
	if os.Getuid() != 0 {
		t.Fatal("run the tests as root: they make files of other users")
	}
	dir := t.TempDir()
	path, link := filepath.Join(dir, "users"), filepath.Join(dir, "link")
	a, b := hashed(t, "a", cheap), hashed(t, "b", cheap)
	save(t, path, "# bob:"+a+"\n\n#:\nbob:"+a+"\n# end\n")
	check(t, os.Chmod(path, 0o640))
	check(t, os.Chown(path, 0, 12345))
	check(t, os.Symlink("users", link))
	save(t, filepath.Join(dir, ".users.new"), "left over")
	if _, err := SetUser(bg, link, "bob", b); err != nil {
		t.Fatal(err)
	}
	info := must(os.Lstat(path))(t)
	st := info.Sys().(*syscall.Stat_t)
	if info.Mode() != 0o640 || st.Gid != 12345 || st.Uid != 0 || text(t, path) != "# bob:"+a+"\n\n#:\nbob:"+b+"\n# end\n" {
		t.Errorf("%v %+v\n%s", info.Mode(), st, text(t, path))
	}
	if must(os.Readlink(link))(t) != "users" {
		t.Error("the link is gone")
	}
}

func TestSetUserLeavesAWrongFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "users")
	save(t, path, "bob\n")
	if _, err := SetUser(bg, path, "alice", hashed(t, "a", cheap)); err == nil || !strings.Contains(err.Error(), path+":1: ") || text(t, path) != "bob\n" {
		t.Errorf("%v\n%s", err, text(t, path))
	}
	full := filepath.Join(t.TempDir(), "none", "users")
	if _, err := SetUser(bg, full, "alice", hashed(t, "a", cheap)); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

// Those who write at a time lose nothing, and who reads sees whole files only.
func TestSetUserTogether(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "users")
	h := hashed(t, "a", cheap)
	save(t, path, "")
	stop := make(chan struct{})
	var reader, writers sync.WaitGroup
	reader.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			if _, err := CheckFile(path); err != nil {
				t.Error(err)
			}
		}
	})
	for w := range 4 {
		writers.Go(func() {
			for i := range 5 {
				if _, err := SetUser(bg, path, fmt.Sprint("user", w, "-", i), h); err != nil {
					t.Error(err)
				}
			}
		})
	}
	writers.Wait()
	close(stop)
	reader.Wait()
	if n := must(CheckFile(path))(t); n != 20 {
		t.Errorf("%d users", n)
	}
	lock := must(lockDir(bg, dir))(t)
	defer lock.Close()
	ctx, cancel := context.WithCancel(bg)
	cancel()
	if _, err := SetUser(ctx, path, "x", h); err == nil || !strings.Contains(err.Error(), "is locked") {
		t.Error(err)
	}
}
