package main

import (
	"fmt"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// terminal makes a pseudo-terminal: what is written to the first is typed at the
// second.
func terminal(t *testing.T) (keys, tty *os.File) {
	t.Helper()
	keys, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { keys.Close() })
	if err := unix.IoctlSetPointerInt(int(keys.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(keys.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	tty, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tty.Close() })
	return keys, tty
}

// typist answers each prompt with a line when the prompt is there, and tells
// whether the terminal echoed at that time.
type typist struct {
	keys   *os.File
	tty    *os.File
	lines  []string
	echoed []bool
}

func (y *typist) Write(prompt []byte) (int, error) {
	mode, err := unix.IoctlGetTermios(int(y.tty.Fd()), unix.TCGETS)
	if err != nil {
		return 0, err
	}
	y.echoed = append(y.echoed, mode.Lflag&unix.ECHO != 0)
	if _, err := y.keys.WriteString(y.lines[0] + "\n"); err != nil {
		return 0, err
	}
	y.lines = y.lines[1:]
	return len(prompt), nil
}

// TestPasswordEcho types passwords at a terminal, which does not echo them, and
// does so again afterwards.
func TestPasswordEcho(t *testing.T) {
	for _, c := range []struct {
		lines []string
		twice bool
		want  string
		err   string
	}{
		{[]string{"hunter 2"}, false, "hunter 2", ""},
		{[]string{"hunter 2", "hunter 2"}, true, "hunter 2", ""},
		{[]string{"hunter 2", "hunter 3"}, true, "", "the passwords differ; nothing was changed"},
		{[]string{""}, true, "", "the password is empty; nothing was changed"},
	} {
		keys, tty := terminal(t)
		y := &typist{keys: keys, tty: tty, lines: c.lines}
		type result struct {
			password string
			err      error
		}
		done := make(chan result, 1)
		go func() {
			password, err := readPassword(tty, y, c.twice)
			done <- result{password, err}
		}()
		select {
		case r := <-done:
			if r.password != c.want || (r.err == nil) != (c.err == "") || r.err != nil && r.err.Error() != c.err {
				t.Errorf("%q: %q, %v", c.lines, r.password, r.err)
			}
		case <-time.After(time.Minute):
			t.Fatalf("%q: nothing was read", c.lines)
		}
		for _, echoed := range y.echoed {
			if echoed {
				t.Errorf("%q: the terminal echoes", c.lines)
			}
		}
		if len(y.lines) != 0 && c.lines[0] != "" {
			t.Errorf("%q: %q was not asked for", c.lines, y.lines)
		}
		mode, err := unix.IoctlGetTermios(int(tty.Fd()), unix.TCGETS)
		if err != nil || mode.Lflag&unix.ECHO == 0 {
			t.Errorf("%q: the echo is gone: %v", c.lines, err)
		}
	}
}
