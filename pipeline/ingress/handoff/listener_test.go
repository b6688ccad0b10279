package handoff

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

func TestListen(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "s")
	l, err := Listen(path)
	check(t, err)
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o666 {
		t.Error(st.Mode(), err)
	}
	if _, err = Listen(path); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("process %d", os.Getpid())) {
		t.Error(err)
	}
	l.Close()
	if l, err = Listen(path); err != nil { // stale
		t.Fatal(err)
	}
	l.Close()
	other, err := net.Listen("unix", filepath.Join(dir, "stream"))
	check(t, err)
	defer other.Close()
	if _, err = Listen(filepath.Join(dir, "stream")); err == nil || !strings.Contains(err.Error(), "another kind") {
		t.Error(err)
	}
	check(t, os.WriteFile(filepath.Join(dir, "file"), []byte("precious"), 0o600))
	if _, err = Listen(filepath.Join(dir, "file")); err == nil || !strings.Contains(err.Error(), "no socket") {
		t.Error(err)
	}
	if b, _ := os.ReadFile(filepath.Join(dir, "file")); string(b) != "precious" {
		t.Error("the file was touched")
	}
	if _, err = Listen(filepath.Join(dir, strings.Repeat("x", 100))); err == nil || !regexp.MustCompile(`\d+ bytes too long`).MatchString(err.Error()) {
		t.Error(err)
	}
	if _, err = Listen(filepath.Join(dir, "absent", "s")); err == nil {
		t.Error("no error for a directory that is not there")
	}
	entries, err := os.ReadDir(dir)
	check(t, err)
	if len(entries) != 3 {
		t.Errorf("left behind: %v", entries)
	}
}

func TestListenerOfSystemd(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := Listen(path)
	check(t, err)
	f, err := l.File()
	check(t, err)
	l.Close()
	handed, err := net.FileListener(f)
	check(t, err)
	f.Close()
	d := newDaemon(t, func(o *Options) { o.Listener, o.Path = handed.(*net.UnixListener), "" })
	d.path = path
	d.exits(0, mail, list)
	check(t, d.srv.Shutdown(context.Background()))
	if _, err := os.Lstat(path); err != nil {
		t.Error("a socket that was handed to us was removed:", err)
	}
}
