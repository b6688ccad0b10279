package program

import (
	"fmt"
	"io"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"
)

// count is how many names a folder has.
func count(t testing.TB, folder string) int {
	t.Helper()
	files, err := os.ReadDir(folder)
	if err != nil {
		t.Fatal(err)
	}
	return len(files)
}

// holdings are what a starter and its daemon have: descriptors, goroutines,
// threads and children.
func holdings(t testing.TB, s *Starter) map[string]int {
	t.Helper()
	proc := fmt.Sprintf("/proc/%d", s.child.process.Pid)
	s.child.mu.Lock()
	programs := len(s.child.programs)
	s.child.mu.Unlock()
	return map[string]int{
		"our descriptors": count(t, "/proc/self/fd"), "goroutines": runtime.NumGoroutine(), "programs": programs,
		"its descriptors": count(t, proc+"/fd"), "its threads": count(t, proc+"/task"), "processes": len(childrenByParent(s.child.process.Pid)),
	}
}

// Ten thousand starts leave nothing: no descriptor, goroutine, thread, process or
// zombie, on either side; neither those that end well nor those that cannot be
// started, leave children or are killed.
func TestNothingLeaks(t *testing.T) {
	starts := 10_000
	if raceDetector {
		starts = 500
	}
	s := newStarter(t, Options{})
	one := func(n int) error {
		ours, theirs, err := os.Pipe()
		if err != nil {
			return err
		}
		defer ours.Close()
		spec := Spec{Path: "/bin/true", Files: map[int]*os.File{1: theirs, 5: theirs}}
		if n%50 == 1 {
			spec.Path, spec.Args = "/bin/sh", []string{"sh", "-c", "(/usr/bin/setsid /bin/sleep 600 &) ; kill -KILL $$"}
		}
		if n%50 == 2 {
			spec.Path = "/bin/none"
		}
		p, err := s.Start(spec)
		theirs.Close()
		if n%50 == 2 {
			if err == nil {
				return fmt.Errorf("%s is started", spec.Path)
			}
			return nil
		}
		if err != nil {
			return err
		}
		if n%50 == 3 {
			p.Kill()
		}
		if _, err := io.Copy(io.Discard, ours); err != nil {
			return err
		}
		_, err = p.Wait(within(t))
		return err
	}
	many := func(starts int) {
		var all sync.WaitGroup
		for worker := range 8 {
			all.Go(func() {
				for n := worker; n < starts; n += 8 {
					if err := one(n); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		all.Wait()
	}
	many(200)
	before := holdings(t, s)
	many(starts)
	var after map[string]int
	for ctx := within(t); ; time.Sleep(10 * time.Millisecond) {
		after = holdings(t, s)
		more := 0
		for what, n := range after {
			if what == "its threads" {
				n -= 8 // the scheduler's own affair, but not one for each program
			}
			if n > before[what] {
				more++
			}
		}
		if more == 0 {
			break
		}
		if ctx.Err() != nil {
			t.Fatalf("%v\nbefore %v", after, before)
		}
	}
	if after["processes"] != 0 || after["programs"] != 0 {
		t.Errorf("%v", after)
	}
}
