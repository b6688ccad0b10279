package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The benchmarks compare the shims, with a real daemon behind them, with the
// least that a program called as qmail-queue can do: start, read both
// descriptors to their ends, exit. The targets for one call, from the start to
// the exit code, at the median: the C shim takes at most 0.3 ms more than such
// a program in C, the Go twin 0.5 ms more than one in Go.

// called is a program that is called as qmail-queue.
type called struct {
	name  string // as metrics have it
	path  string
	env   []string
	floor int // the one to compare with; itself for a floor
}

const benchConfig = `hostname = "mx.example.org"
control = ""
trusted = ["$UID"]
state = "$DIR/state"
admin.socket = "$DIR/admin.sock"
[listen.discard]
socket = "$DIR/discard.sock"
next = "discard"
[listen.next]
socket = "$DIR/next.sock"
next = "$DIR/floor.c"
[chain]
inbound = ["header", "tap"]
[filter.header]
rule = [{op = "add", name = "X-Checked", value = "yes"}]
[filter.tap]
rules = ["T:^boss@example\\.org$:archive@example.org", "F:@sales\\.example\\.org$:archive@example.org"]
`

// bench is a daemon and what is measured with it.
type bench struct {
	dir               string
	daemon            *os.Process
	programs          []called // through the daemon that discards
	next              []called // through the daemon to the floor in C
	message, envelope []byte
}

// newBench starts a daemon with a configuration, in which $DIR stands for the
// directory and $UID for ourselves.
func newBench(b *testing.B, config string) *bench {
	b.Helper()
	must := func(err error) {
		b.Helper()
		if err != nil {
			b.Fatal(err)
		}
	}
	dir := b.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	must(command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", at("floor.go"), "./testdata/floor"))
	must(command("cc", "-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-static", "-o", at("floor.c"), "testdata/floor/c/floor.c"))
	must(command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", at("postern"), "../postern"))
	shim := map[string]string{}
	for _, p := range built.programs {
		shim[p.name] = p.path
	}
	through := func(name string) []string { return []string{"POSTERN_SOCKET=" + at(name)} }
	m := &bench{
		dir: dir,
		programs: []called{
			{"c-floor", at("floor.c"), nil, 0},
			{"c", shim["C"], through("discard.sock"), 0},
			{"go-floor", at("floor.go"), nil, 2},
			{"go", shim["Go"], through("discard.sock"), 2},
		},
		next: []called{
			{"c-floor", at("floor.c"), nil, 0}, {"c", shim["C"], through("next.sock"), 0}, {"go", shim["Go"], through("next.sock"), 0},
		},
		envelope: []byte("Fsender@example.com\x00Tuser@example.org\x00\x00"),
	}
	m.message = []byte("Received: from client.example ([192.0.2.1])\n  by mx.example.org; 1 Jan 2026 00:00:00 -0000\n" +
		"From: sender@example.com\nTo: user@example.org\nSubject: hello\nMessage-ID: <1@example.com>\nDate: Thu, 1 Jan 2026 00:00:00 +0000\n\n")
	for len(m.message) < 4096 {
		m.message = append(m.message, "A line of the body, as long as such lines are, and then a little more.\n"...)
	}
	m.message = append(m.message[:4095], '\n')

	config = os.Expand(config, func(name string) string {
		return map[string]string{"DIR": dir, "UID": strconv.Itoa(os.Getuid())}[name]
	})
	must(os.WriteFile(at("postern.toml"), []byte(config), 0o666))
	log, err := os.Create(at("log"))
	must(err)
	b.Cleanup(func() { log.Close() })
	daemon := exec.Command(at("postern"), "serve", "--config", at("postern.toml"))
	daemon.Stderr = log
	must(daemon.Start())
	m.daemon = daemon.Process
	b.Cleanup(func() {
		daemon.Process.Signal(syscall.SIGTERM) //nolint:errcheck // it may have ended
		if err := daemon.Wait(); err != nil {
			b.Errorf("the daemon: %v", err)
		}
	})
	for tries := 0; ; tries++ {
		if text, err := os.ReadFile(at("log")); err == nil && bytes.Contains(text, []byte("msg=serving")) {
			return m
		} else if tries == 400 {
			b.Fatalf("the daemon does not start:\n%s", text)
		}
		time.Sleep(25 * time.Millisecond)
	}
}

// call runs a program as qmail-smtpd does, with two pipes, and returns how long
// that took and the processor time of the child.
func (m *bench) call(p *called) (took, cpu time.Duration, err error) {
	var fd0, fd1 [2]int
	begun := time.Now()
	if err = syscall.Pipe2(fd0[:], syscall.O_CLOEXEC); err != nil {
		return 0, 0, err
	}
	if err = syscall.Pipe2(fd1[:], syscall.O_CLOEXEC); err != nil {
		return 0, 0, err
	}
	pid, err := syscall.ForkExec(p.path, []string{"qmail-queue"}, &syscall.ProcAttr{Env: p.env, Files: []uintptr{uintptr(fd0[0]), uintptr(fd1[0]), 2}})
	syscall.Close(fd0[0])
	syscall.Close(fd1[0])
	if err == nil {
		// They fit into the pipes.
		syscall.Write(fd0[1], m.message) //nolint:errcheck // the exit code tells
	}
	syscall.Close(fd0[1])
	if err == nil {
		syscall.Write(fd1[1], m.envelope) //nolint:errcheck // the exit code tells
	}
	syscall.Close(fd1[1])
	if err != nil {
		return 0, 0, err
	}
	var status syscall.WaitStatus
	var used syscall.Rusage
	for {
		if _, err = syscall.Wait4(pid, &status, 0, &used); err != syscall.EINTR {
			break
		}
	}
	took = time.Since(begun)
	if err == nil && status != 0 {
		err = fmt.Errorf("%s: exit %d, signal %d", p.name, status.ExitStatus(), status.Signal())
	}
	return took, time.Duration(used.Utime.Nano() + used.Stime.Nano()), err
}

// daemonTime is the processor time that the daemon has used, all of its threads
// together.
func (m *bench) daemonTime(b *testing.B) time.Duration {
	b.Helper()
	// As clock_getcpuclockid(3) makes it of a process; /proc has it in hundredths
	// of a second only.
	const sched = 2
	var t unix.Timespec
	if err := unix.ClockGettime(int32(^m.daemon.Pid<<3|sched), &t); err != nil {
		b.Fatal(err)
	}
	return time.Duration(t.Nano())
}

// BenchmarkCall measures calls of the shims.
func BenchmarkCall(b *testing.B) {
	if len(built.programs) < 2 {
		b.Fatal("no C compiler: install cc")
	}
	m := newBench(b, benchConfig)
	b.Run("discard", func(b *testing.B) { m.roundTrips(b, m.programs) })
	b.Run("next", func(b *testing.B) { m.roundTrips(b, m.next) })
	for _, injectors := range []int{1, 16} {
		b.Run(fmt.Sprintf("discard/injectors=%d", injectors), func(b *testing.B) { m.throughput(b, m.programs, injectors) })
		b.Run(fmt.Sprintf("next/injectors=%d", injectors), func(b *testing.B) { m.throughput(b, m.next, injectors) })
	}
}

// leastRounds makes for a median that can be believed.
const leastRounds = 500

// roundTrips calls the programs in turn, and compares the medians.
func (m *bench) roundTrips(b *testing.B, programs []called) {
	took := make([][]time.Duration, len(programs))
	for going, n := true, 0; going || n < leastRounds; n++ {
		if going {
			going = b.Loop()
		}
		for i := range programs {
			t, _, err := m.call(&programs[i])
			if err != nil {
				b.Fatal(err)
			}
			took[i] = append(took[i], t)
		}
	}
	median := func(i int) float64 {
		slices.Sort(took[i])
		return took[i][len(took[i])/2].Seconds() * 1e3
	}
	report := "p50 of one call, in ms:"
	for i, p := range programs {
		own, floor := median(i), median(p.floor)
		report += fmt.Sprintf("\n  %-8s %6.3f", p.name, own)
		b.ReportMetric(own, p.name+"-ms")
		if i != p.floor {
			report += fmt.Sprintf("  %+.3f  %.2f times %s", own-floor, own/floor, programs[p.floor].name)
			b.ReportMetric(own-floor, p.name+"-more-ms")
			b.ReportMetric(own/floor, p.name+"-ratio")
		}
	}
	b.ReportMetric(0, "ns/op") // of all programs together: says nothing
	b.Log(report)
}

// batch is how many messages each program takes in turn.
const batch = 64

// throughput has several injectors call the programs in turn as fast as they
// can, and compares messages a second and processor time a message.
func (m *bench) throughput(b *testing.B, programs []called, injectors int) {
	took, children, daemon := make([]time.Duration, len(programs)), make([]time.Duration, len(programs)), make([]time.Duration, len(programs))
	batches := 0
	for b.Loop() {
		for i := range programs {
			before, begun := m.daemonTime(b), time.Now()
			cpu, _, err := m.inject(&programs[i], injectors)
			if err != nil {
				b.Fatal(err)
			}
			took[i] += time.Since(begun)
			children[i] += cpu
			daemon[i] += m.daemonTime(b) - before
		}
		batches++
	}
	messages := float64(batches * batch)
	rate := func(i int) float64 { return messages / took[i].Seconds() }
	report := fmt.Sprintf("%d injectors: messages a second, and processor time a message in ms (process and daemon):", injectors)
	for i, p := range programs {
		own, served := children[i].Seconds()*1e3/messages, daemon[i].Seconds()*1e3/messages
		report += fmt.Sprintf("\n  %-8s %6.0f/s  %.2f + %.2f", p.name, rate(i), own, served)
		b.ReportMetric(rate(i), p.name+"-msg/s")
		if i != p.floor {
			report += fmt.Sprintf("  %.2f of %s's messages a second", rate(i)/rate(p.floor), programs[p.floor].name)
			b.ReportMetric(rate(i)/rate(p.floor), p.name+"-rate-ratio")
			b.ReportMetric(own+served, p.name+"-cpu-ms/msg")
		}
	}
	b.ReportMetric(0, "ns/op") // of all programs together: says nothing
	b.Log(report)
}

// inject has a batch of messages taken, and returns the children's processor
// time and how long each call took.
func (m *bench) inject(p *called, injectors int) (cpu time.Duration, each []time.Duration, err error) {
	var all sync.WaitGroup
	var mu sync.Mutex
	left := batch
	for range injectors {
		all.Go(func() {
			for {
				mu.Lock()
				left--
				done := left < 0 || err != nil
				mu.Unlock()
				if done {
					return
				}
				took, used, failed := m.call(p)
				mu.Lock()
				cpu += used
				each = append(each, took)
				if failed != nil {
					err = failed
				}
				mu.Unlock()
			}
		})
	}
	all.Wait()
	return cpu, each, err
}
