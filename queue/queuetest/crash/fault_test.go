package crash

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-mta/postern/pipeline/smtp/smtptest"
)

const (
	// beat is longer than the store's pause between looks at the disk.
	beat = 1500 * time.Millisecond
	// mostRecovery bounds how long the service may stay away after the trouble.
	mostRecovery = 30 * time.Second
)

// sendAll sends n messages one after the other and fails unless each is
// answered so.
func (w *world) sendAll(m mix, g *rand.Rand, n, want int) {
	w.t.Helper()
	for range n {
		if code := send(w.daemon, w.ledger, m, g); code != want {
			w.t.Fatalf("the shim exited with %d, want %d", code, want)
		}
	}
}

// recover waits until a message is taken again.
func (w *world) recover(m mix, g *rand.Rand) time.Duration {
	w.t.Helper()
	begun := time.Now()
	for send(w.daemon, w.ledger, m, g) != 0 {
		if time.Since(begun) > mostRecovery {
			w.t.Fatalf("no message is taken %v after the trouble has ended", mostRecovery)
		}
		time.Sleep(50 * time.Millisecond)
	}
	return time.Since(begun)
}

// away has the SMTP server put off the first n recipients.
func away(n int) []smtptest.Step {
	return []smtptest.Step{{At: smtptest.Rcpt, Times: n, Reply: "451 4.2.1 later"}}
}

// out is small and large messages for the SMTP server.
var out = mix{sizes: []int{200, 4 * kib, 100 * kib}, to: [][]string{{"ann@out.example"}}}

// TestLowWater passes the low-water mark of bytes: new mail is put off, old
// mail is delivered, and the service comes back by itself.
func TestLowWater(t *testing.T) {
	onKinds(t, func(t *testing.T, p *programs, k kind) {
		g := chance(t)
		w := newWorld(t, p, setup{kind: k, size: 320 << 20, low: "24 MB", steps: away(60)})
		w.up()
		w.sendAll(out, g, 30, 0)
		if !w.v.fill("filler", 12<<20) {
			t.Fatal("the disk could not be filled")
		}
		time.Sleep(beat)
		w.sendAll(out, g, 10, 53)
		w.drain(mostDrain) // while there is no room for more
		w.sendAll(out, g, 5, 53)
		w.v.clear("filler")
		time.Sleep(beat)
		w.sendAll(out, g, 10, 0)
		w.drain(mostDrain)
		w.finish()
		t.Logf("%s: low-water mark: %v", k.name, w)
	})
}

// TestDiskFull takes every byte of the disk faster than the low-water mark can
// tell, under load, several times.
func TestDiskFull(t *testing.T) {
	onKinds(t, func(t *testing.T, p *programs, k kind) {
		g := chance(t)
		w := newWorld(t, p, setup{kind: k, size: 320 << 20, low: "1 MB", steps: late()})
		w.up()
		stop := w.supervise()
		for round := range number(t, "POSTERN_ROUNDS", 1, 5) {
			a := inject(w.daemon, w.ledger, elsewhere, g, 4, 5*time.Millisecond)
			for i := range 40 {
				time.Sleep(50 * time.Millisecond)
				w.v.fill(fmt.Sprintf("filler.%d.%d", round, i), 0)
			}
			a.stop()
			w.clearAll("filler.*")
			took := w.recover(elsewhere, g)
			w.drain(mostDrain)
			t.Logf("%s, round %d: mail is taken again after %v", k.name, round, took.Round(time.Millisecond))
		}
		stop()
		if w.count(53) == 0 {
			t.Error("no shim heard that the disk is full")
		}
		w.finish()
		t.Logf("%s: full disk: %v; ballast given up %d times", k.name, w, w.said("the ballast file was given up"))
	})
}

// TestStartOnFullDisk starts the daemon where not a byte is free but the
// ballast: it must serve, deliver what it holds, and take nothing.
func TestStartOnFullDisk(t *testing.T) {
	onKinds(t, func(t *testing.T, p *programs, k kind) {
		g := chance(t)
		w := newWorld(t, p, setup{kind: k, size: imageSize, low: "120 MB", steps: away(60)})
		w.up()
		w.sendAll(out, g, 30, 0)
		w.kill()
		w.v.fill("filler", 0)
		w.up()
		w.sendAll(out, g, 5, 53)
		w.drain(mostDrain)
		w.v.clear("filler")
		time.Sleep(beat)
		w.sendAll(out, g, 5, 0)
		w.drain(mostDrain)
		w.finish()
		t.Logf("%s: started on a full disk: %v", k.name, w)
	})
}

func (w *world) clearAll(pattern string) {
	w.t.Helper()
	names, err := filepath.Glob(filepath.Join(w.v.dir, pattern))
	if err != nil {
		w.t.Fatal(err)
	}
	for _, name := range names {
		w.v.clear(filepath.Base(name))
	}
}

// takeInodes makes empty files until so many inodes are free.
func (w *world) takeInodes(name string, leave int64) {
	w.t.Helper()
	dir := filepath.Join(w.v.dir, name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return // there are none left
	}
	for i := 0; ; i++ {
		if _, inodes := w.v.free(); inodes <= leave {
			return
		}
		f, err := os.Create(filepath.Join(dir, fmt.Sprint(time.Now().UnixNano(), ".", i)))
		if err != nil {
			return
		}
		f.Close()
	}
}

// TestNoInodes uses up the inodes, to below the low-water mark and to the last
// one, and kills the daemon meanwhile.
func TestNoInodes(t *testing.T) {
	p := needPrograms(t)
	if p == nil {
		return
	}
	t.Parallel()
	g := chance(t)
	w := newWorld(t, p, setup{kind: kinds[0], size: 320 << 20, mkfs: []string{"-N", "3000"}, low: "1 MB", steps: away(60)})
	w.up()
	stop := w.supervise()
	w.sendAll(out, g, 30, 0)
	w.takeInodes("few", 900)
	time.Sleep(beat)
	w.sendAll(out, g, 10, 53)
	w.takeInodes("none", 0)
	w.sendAll(out, g, 5, 53)
	w.drain(mostDrain)

	// Now under load, with a restart while there are no inodes.
	w.v.clear("none")
	w.v.clear("few")
	w.recover(elsewhere, g)
	a := inject(w.daemon, w.ledger, elsewhere, g, 4, 5*time.Millisecond)
	for i := range 10 {
		time.Sleep(100 * time.Millisecond)
		w.takeInodes("none", 0)
		if i == 5 {
			proc, _ := w.running()
			proc.Process.Kill() //nolint:errcheck // it may have ended by itself
		}
	}
	a.stop()
	w.v.clear("none")
	took := w.recover(elsewhere, g)
	w.drain(mostDrain)
	stop()
	w.finish()
	t.Logf("inodes: mail is taken again after %v; %v", took.Round(time.Millisecond), w)
}

// TestFewInodes starts the daemon on a file system that never has enough of
// them: it serves, and takes nothing.
func TestFewInodes(t *testing.T) {
	p := needPrograms(t)
	if p == nil {
		return
	}
	t.Parallel()
	g := chance(t)
	w := newWorld(t, p, setup{kind: kinds[0], size: 64 << 20, mkfs: []string{"-N", "96"}, low: "1 MB"})
	w.up()
	w.sendAll(out, g, 5, 53)
	w.terminate()
	w.check()
}

// breakage is how a file system stops being written to.
type breakage struct {
	name string
	kind kind
	do   func(v *volume) error
}

// TestReadOnly has the file system go read-only under load, by what the kernel
// does when it finds an error, and fail as a whole.
func TestReadOnly(t *testing.T) {
	p := needPrograms(t)
	if p == nil {
		return
	}
	for _, b := range []breakage{
		{"ext4 finds an error", kinds[0], (*volume).findError},
		{"ext4 is remounted with abort", kinds[0], (*volume).abort},
		{"ext4 is gone", kinds[0], func(v *volume) error { v.cut(); return nil }},
		{"xfs is gone", kinds[1], func(v *volume) error { v.cut(); return nil }},
	} {
		t.Run(b.name, func(t *testing.T) {
			t.Parallel()
			g := chance(t)
			w := newWorld(t, p, setup{kind: b.kind, size: 320 << 20, low: "1 MB", steps: late()})
			w.up()
			stop := w.supervise()
			a := inject(w.daemon, w.ledger, everything, g, 4, 5*time.Millisecond)
			time.Sleep(500 * time.Millisecond)
			begun := time.Now()
			if err := b.do(w.v); err != nil {
				t.Fatal(err)
			}
			time.Sleep(2 * time.Second)
			taken := w.count(0)
			time.Sleep(500 * time.Millisecond)
			if n := w.count(0); n != taken {
				t.Errorf("%d messages were taken by a disk that cannot be written", n-taken)
			}
			stop()
			w.kill()
			a.stop()
			w.doubt(begun, time.Now())
			w.v.remount(true)
			w.up()
			w.drain(mostDrain)
			w.sendAll(everything, g, 5, 0)
			w.finish()
			t.Logf("%s: %v", b.name, w)
		})
	}
}

// findError has the kernel believe that it found the file system damaged.
func (v *volume) findError() error {
	return os.WriteFile("/sys/fs/ext4/"+filepath.Base(v.device)+"/trigger_fs_error", []byte("a test"), 0o200)
}

// abort remounts the file system as if it had found an error.
func (v *volume) abort() error {
	return unix.Mount(v.device, v.dir, v.name, unix.MS_REMOUNT, "abort")
}

// TestInputOutputErrors has real errors of the device: the image lies in a
// memory file system that is too small for it.
func TestInputOutputErrors(t *testing.T) {
	p := needPrograms(t)
	if p == nil {
		return
	}
	t.Parallel()
	g := chance(t)
	small := p.folder(t)
	if err := unix.Mount("small", small, "tmpfs", 0, "size=24m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(small, unix.MNT_DETACH) }) //nolint:errcheck // it goes with the name space at the latest
	w := newWorld(t, p, setup{kind: kinds[0], size: 320 << 20, mkfs: []string{"-b", "4096"}, low: "1 MB", steps: late(), under: small})
	w.up()
	stop := w.supervise()
	a := inject(w.daemon, w.ledger, elsewhere, g, 4, 5*time.Millisecond)
	begun := time.Now()
	for starts, _ := w.history(); starts < 3 && time.Since(begun) < mostRecovery; starts, _ = w.history() {
		time.Sleep(100 * time.Millisecond)
	}
	a.stop()
	stop()
	if starts, exits := w.history(); starts < 2 {
		t.Errorf("the disk never failed: %d starts, exits %s", starts, exits)
	}
	w.kill()
	for _, at := range w.deaths {
		w.doubt(at.Add(-200*time.Millisecond), at.Add(20*time.Millisecond))
	}
	if err := unix.Mount("small", small, "tmpfs", unix.MS_REMOUNT, "size=1g"); err != nil {
		t.Fatal(err)
	}
	w.v.remount(true)
	w.up()
	w.drain(30 * time.Second)
	w.sendAll(elsewhere, g, 5, 0)
	w.finish()
	t.Logf("EIO: %v", w)
}
