package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/postern-mta/postern/pipeline/ingress/handoff/wire"
)

// recorder is the next program: it writes what it got into files beside itself and ends as the line of "ends" for its
// run says, with an exit code or with "kill".
const recorder = `#!/bin/sh
dir=${0%/*}
n=$(ls "$dir" | grep -c '^arguments')
for a in "$0" "$@"; do printf '%s\n' "$a"; done >"$dir/arguments$n"
env >"$dir/environment$n"
ls /proc/$$/fd >"$dir/descriptors$n"
cat /proc/$$/fdinfo/0 >"$dir/position$n"
cat /proc/$$/status >"$dir/status$n"
cat >"$dir/message$n"
cat <&1 >"$dir/envelope$n"
end=$(sed -n "$((n+1))p" "$dir/ends")
test "$end" = kill && kill -9 $$
exit "${end:-0}"
`

// record is where the recorder stands and writes.
type record struct {
	t   *testing.T
	dir string
}

// recorder makes a recorder whose runs end in the given ways, 0 after them.
func (c *caller) recorder(ends ...string) record {
	dir, err := os.MkdirTemp(c.dir, "next")
	check(c.t, err)
	check(c.t, os.WriteFile(filepath.Join(dir, "ends"), []byte(strings.Join(ends, "\n")+"\n"), 0o644))
	check(c.t, os.WriteFile(filepath.Join(dir, "recorder"), []byte(recorder), 0o755))
	return record{c.t, dir}
}

func (r record) path() string { return filepath.Join(r.dir, "recorder") }

// runs is how often the recorder has run.
func (r record) runs() int {
	names, err := filepath.Glob(filepath.Join(r.dir, "arguments*"))
	check(r.t, err)
	return len(names)
}

// file is what run n wrote.
func (r record) file(what string, n int) string {
	r.t.Helper()
	b, err := os.ReadFile(filepath.Join(r.dir, what+strconv.Itoa(n)))
	check(r.t, err)
	return string(b)
}

// lines is file, without the last line feed, as lines.
func (r record) lines(what string, n int) []string {
	return strings.Split(strings.TrimSuffix(r.file(what, n), "\n"), "\n")
}

// hand sends N and its pairs; message and envelope i are those words and i.
func (d *daemon) hand(mode wire.Mode, count int, path string) {
	d.c.t.Helper()
	d.send(wire.Envelope{})
	d.send(wire.Next{Mode: mode, Count: uint16(count), Path: path})
	for i := range count {
		i = count - 1 - i // the order does not matter
		d.send(wire.Pair{Index: uint16(i)}, d.c.file(fmt.Sprintf("message %d\n", i)), d.c.file(fmt.Sprintf("Fa%d\x00Tb\x00\x00", i)))
	}
}

// got checks what run n of the recorder, with pair i, was given.
func (r record) got(n, i int) {
	r.t.Helper()
	if m, e := r.file("message", n), r.file("envelope", n); m != fmt.Sprintf("message %d\n", i) || e != fmt.Sprintf("Fa%d\x00Tb\x00\x00", i) {
		r.t.Errorf("run %d got %q and %q", n, m, e)
	}
	if at := r.lines("position", n)[0]; strings.TrimSpace(strings.TrimPrefix(at, "pos:")) != "0" {
		r.t.Errorf("run %d began at %q", n, at)
	}
}

// ignored are the signals that run n has ignored, as a mask.
func (r record) ignored(n int) uint64 {
	r.t.Helper()
	for _, line := range r.lines("status", n) {
		if mask, ok := strings.CutPrefix(line, "SigIgn:"); ok {
			v, err := strconv.ParseUint(strings.TrimSpace(mask), 16, 64)
			check(r.t, err)
			return v
		}
	}
	r.t.Fatal("no SigIgn")
	return 0
}

const sigpipe = 1 << (syscall.SIGPIPE - 1)

// onlyCallers checks the descriptors of run n: 0 to 2, what the caller gave, and the shell's own script at 10 or higher.
func (r record) onlyCallers(n int, more ...string) {
	r.t.Helper()
	fds := slices.DeleteFunc(r.lines("descriptors", n), func(fd string) bool { return len(fd) > 1 })
	if want := append([]string{"0", "1", "2"}, more...); !slices.Equal(fds, want) {
		r.t.Errorf("run %d has descriptors %q, want %q", n, fds, want)
	}
}

func TestNextRuns(t *testing.T) {
	each(t, func(t *testing.T, p program) {
		for _, mode := range []wire.Mode{wire.ModeExec, wire.ModeWait} {
			c := newCaller(t, p)
			c.args = []string{"one", "", "two words"}
			c.env = append(c.env, "RELAYCLIENT=", "POSTERN_HOPS=3")
			_, w := c.pipe()
			c.fd(4, w)
			r := c.recorder("31")
			d := c.accepted()
			d.hand(mode, 1, r.path())
			if mode == wire.ModeWait {
				if got := d.result(); got.Index != 0 || got.Exit != 31 || got.Signal != 0 || got.PID == 0 {
					t.Errorf("%+v", got)
				}
			}
			d.seesEOF()
			c.exits(31)
			r.got(0, 0)
			r.onlyCallers(0, "4")
			if want := append([]string{r.path()}, c.args...); !slices.Equal(r.lines("arguments", 0), want) {
				t.Errorf("arguments %q", r.lines("arguments", 0))
			}
			env := r.lines("environment", 0)
			for _, want := range []string{"RELAYCLIENT=", "POSTERN_HOPS=4", "POSTERN_SOCKET=" + c.socket()} {
				if !slices.Contains(env, want) {
					t.Errorf("%s is missing in %q", want, env)
				}
			}
			if r.ignored(0)&sigpipe != 0 {
				t.Error("SIGPIPE is ignored")
			}
			if r.runs() != 1 {
				t.Errorf("%d runs", r.runs())
			}
		}
	})
}

// TestCopies: the main program's end is the shim's; copies run only after its success, and theirs is only reported.
// They do not hold the error pipes open, but the main one may use them.
func TestCopies(t *testing.T) {
	for _, row := range []struct {
		name string
		ends []string
		want []wire.Result // without PID
		exit int
	}{
		{"all well", nil, []wire.Result{{}, {Index: 1}, {Index: 2}}, 0},
		{"copies fail", []string{"0", "53", "kill"}, []wire.Result{{}, {Index: 1, Exit: 53}, {Index: 2, Exit: 81, Signal: 9}}, 0},
		{"main fails", []string{"31"}, []wire.Result{{Exit: 31}}, 31},
		{"main is killed", []string{"kill"}, []wire.Result{{Exit: 81, Signal: 9}}, 81},
	} {
		t.Run(row.name, func(t *testing.T) {
			each(t, func(t *testing.T, p program) {
				c := newCaller(t, p)
				for _, fd := range []int{4, 6, 9} {
					_, w := c.pipe()
					c.fd(fd, w)
				}
				c.fd(5, c.file("not a pipe"))
				c.env = append(c.env, "ERROR_FD=9")
				r := c.recorder(row.ends...)
				d := c.accepted()
				d.hand(wire.ModeWait, 3, r.path())
				for _, want := range row.want {
					got := d.result()
					if got.PID == 0 {
						t.Error("no pid")
					}
					if got.PID = 0; got != want {
						t.Errorf("%+v, want %+v", got, want)
					}
				}
				d.seesEOF()
				c.exits(row.exit)
				if r.runs() != len(row.want) {
					t.Errorf("%d runs, want %d", r.runs(), len(row.want))
				}
				for n := range r.runs() {
					r.got(n, n)
					if n == 0 {
						r.onlyCallers(0, "4", "5", "6", "9")
					} else {
						r.onlyCallers(n, "5")
					}
				}
			})
		})
	}
}

// TestMostPairs: as many as the format allows.
func TestMostPairs(t *testing.T) {
	each(t, func(t *testing.T, p program) {
		c := newCaller(t, p)
		d := c.accepted()
		d.send(wire.Envelope{})
		d.send(wire.Next{Mode: wire.ModeWait, Count: wire.MaxPairs, Path: "/bin/true"})
		f := c.file("")
		for i := range uint16(wire.MaxPairs) {
			d.send(wire.Pair{Index: i}, f, f)
		}
		for i := range uint16(wire.MaxPairs) {
			if got := d.result(); got.Index != i || got.Exit != 0 {
				t.Fatalf("%+v for %d", got, i)
			}
		}
		c.exits(0)
	})
}

// TestRunNeedsNoDaemon: after the last pair the shim has all it needs.
func TestRunNeedsNoDaemon(t *testing.T) {
	each(t, func(t *testing.T, p program) {
		c := newCaller(t, p)
		r := c.recorder("0", "5")
		d := c.accepted()
		d.hand(wire.ModeWait, 3, r.path())
		d.hangUp()
		c.exits(0)
		if r.runs() != 3 {
			t.Errorf("%d runs", r.runs())
		}
	})
}

func TestNextThatCannotRun(t *testing.T) {
	each(t, func(t *testing.T, p program) {
		for _, path := range []string{"/nonexistent/qmail-queue", "/dev/null", "/"} {
			for _, mode := range []wire.Mode{wire.ModeExec, wire.ModeWait} {
				c := newCaller(t, p)
				d := c.accepted()
				d.hand(mode, 1, path)
				if got := d.result(); got.Exit != 71 || got.Signal != 0 || got.Index != 0 {
					t.Errorf("%s: %+v", path, got)
				}
				c.exits(71)
			}
		}
	})
}

func TestLoops(t *testing.T) {
	each(t, func(t *testing.T, p program) {
		for _, row := range []struct {
			hops string
			exit int
			next string // POSTERN_HOPS of the next program
		}{
			{"", 0, "1"},
			{"0", 0, "1"},
			{"4", 0, "5"},
			{"nonsense", 0, "1"},
			{"5", 71, ""},
			{"6", 71, ""},
			{"99999999999999999999999999999", 71, ""},
		} {
			for _, mode := range []wire.Mode{wire.ModeExec, wire.ModeWait} {
				c := newCaller(t, p)
				c.env = append(c.env, "POSTERN_HOPS="+row.hops)
				r := c.recorder()
				d := c.accepted()
				d.hand(mode, 1, r.path())
				if row.exit != 0 || mode == wire.ModeWait {
					if got := d.result(); int(got.Exit) != row.exit {
						t.Errorf("hops %q: %+v", row.hops, got)
					}
				}
				c.exits(row.exit)
				if row.next != "" && !slices.Contains(r.lines("environment", 0), "POSTERN_HOPS="+row.next) {
					t.Errorf("hops %q: %q", row.hops, r.lines("environment", 0))
				}
				if row.next == "" && r.runs() != 0 {
					t.Errorf("hops %q: it ran", row.hops)
				}
			}
		}
		for _, link := range []string{"", "symlink", "link"} {
			c := newCaller(t, p)
			path := p.path
			if link != "" {
				path = filepath.Join(c.dir, link)
				make := map[string]func(string, string) error{"symlink": os.Symlink, "link": os.Link}[link]
				check(t, make(p.path, path))
			}
			d := c.accepted()
			d.hand(wire.ModeExec, 1, path)
			d.sees(wire.Result{Exit: 71})
			c.exits(71)
		}
	})
}

// TestSignalsOfTheCaller: a caller that ignores SIGCHLD does not keep the exit codes from us, and one that ignores
// SIGPIPE has its way in the next program too (only in C; see the Go twin's doc).
func TestSignalsOfTheCaller(t *testing.T) {
	each(t, func(t *testing.T, p program) {
		c := newCaller(t, p)
		r := c.recorder("31")
		d := c.confined(fmt.Sprintf("ignore=%d ignore=%d", syscall.SIGCHLD, syscall.SIGPIPE))
		d.send(wire.Accepted{Beat: 600_000, Slow: 600_000})
		d.hand(wire.ModeWait, 1, r.path())
		if got := d.result(); got.Exit != 31 {
			t.Errorf("%+v", got)
		}
		c.exits(31)
		if inC := p.name != "Go"; (r.ignored(0)&sigpipe != 0) != inC {
			t.Errorf("signals ignored: %x", r.ignored(0))
		}
	})
}
