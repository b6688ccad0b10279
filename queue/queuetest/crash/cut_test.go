package crash

import (
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const imageSize = 512 << 20

// TestPowerCuts cuts the power again and again, at any moment under load, and
// looks each time that everything acknowledged arrives, whole.
func TestPowerCuts(t *testing.T) {
	p := needPrograms(t)
	if p == nil {
		return
	}
	cuts := number(t, "POSTERN_CUTS", 20, 200)
	for i, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, p, setup{kind: k, size: imageSize, low: "1 MB", steps: late()})
			n := (cuts + i) / len(kinds)
			powerCuts(t, w, n)
			t.Logf("%s: %d power cuts: %v", k.name, n, w)
		})
	}
}

func powerCuts(t *testing.T, w *world, cuts int) {
	g := chance(t)
	starting := true // the disk is as it was made
	for i := range cuts {
		if starting {
			w.start()
			time.Sleep(time.Duration(g.IntN(150)) * time.Millisecond)
		} else {
			w.overload(g)
		}
		// With the power goes the processor: nothing is acknowledged any more.
		w.freeze()
		w.v.cut()
		w.kill()
		w.stopLoad()
		w.v.remount(false)
		if starting = g.IntN(5) == 0; starting {
			continue
		}
		if i%2 == 1 { // else the daemon finds it as it is
			w.examine()
		}
		w.up()
		w.drain(mostDrain)
		if t.Failed() {
			t.Fatalf("power cut %d of %d", i+1, cuts)
		}
	}
	if starting {
		w.up()
		w.drain(mostDrain)
	}
	w.finish()
}

// overload injects for a while, and leaves the injectors at work or has them
// stop, so that what follows meets deliveries only.
func (w *world) overload(g *rand.Rand) {
	a := inject(w.daemon, w.ledger, everything, g, 4+g.IntN(8), 0)
	time.Sleep(time.Duration(50+g.IntN(700)) * time.Millisecond)
	if g.IntN(4) > 0 {
		w.stopLoad = a.stop
		return
	}
	a.stop()
	time.Sleep(time.Duration(g.IntN(50)) * time.Millisecond)
	w.stopLoad = func() {}
}

// TestKills kills the daemon again and again under load.
func TestKills(t *testing.T) {
	p := needPrograms(t)
	if p == nil {
		return
	}
	t.Parallel()
	kills := number(t, "POSTERN_KILLS", 5, 30)
	g := chance(t)
	w := newWorld(t, p, setup{low: "1 MB", steps: late()})
	for i := range kills {
		w.start()
		if g.IntN(5) > 0 {
			w.wait()
			w.overload(g)
		} else {
			time.Sleep(time.Duration(g.IntN(150)) * time.Millisecond)
		}
		w.kill()
		w.stopLoad()
		if i%2 == 1 {
			w.examine()
		}
		w.up()
		w.drain(mostDrain)
		if t.Failed() {
			t.Fatalf("kill %d of %d", i+1, kills)
		}
		w.kill()
	}
	w.up()
	w.finish()
	t.Logf("%d kills: %v", kills, w)
}

// TestCutsAreReal shows that the power cuts here are: a file that was not
// flushed is lost, one that was is not, nor is the name of one in a flushed
// directory.
func TestCutsAreReal(t *testing.T) {
	onKinds(t, func(t *testing.T, p *programs, k kind) {
		v := newVolume(t, k, p.folder(t), imageSize, false)
		const content = "a message that somebody waits for\n"
		err := writeFile(filepath.Join(v.dir, "flushed"), content, func(f *os.File) error {
			d, err := os.Open(v.dir)
			if err != nil {
				return err
			}
			return errors.Join(f.Sync(), d.Sync(), d.Close())
		})
		if err == nil {
			err = writeFile(filepath.Join(v.dir, "unflushed"), content, func(*os.File) error { return nil })
		}
		if err != nil {
			t.Fatal(err)
		}
		v.cut()
		if err := os.WriteFile(filepath.Join(v.dir, "after"), nil, 0o600); err == nil {
			t.Error("a file can be made after the power is gone")
		}
		v.remount(false)
		if b, err := os.ReadFile(filepath.Join(v.dir, "flushed")); err != nil || string(b) != content {
			t.Errorf("what was flushed is lost: %q, %v", b, err)
		}
		if b, err := os.ReadFile(filepath.Join(v.dir, "unflushed")); err == nil && strings.TrimRight(string(b), "\x00") != "" {
			t.Errorf("what was not flushed is there: %q: this is no power cut", b)
		}
	})
}

func writeFile(path, content string, flush func(*os.File) error) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	_, err = f.WriteString(content)
	return errors.Join(err, flush(f), f.Close())
}
