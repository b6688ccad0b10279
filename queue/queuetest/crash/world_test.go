package crash

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/postern-mta/postern/pipeline/smtp/smtptest"
)

// world is everything in one test.
type world struct {
	*daemon
	*ledger
	t *testing.T
	v *volume // nil if there is no image
	// seen are the files of Maildirs that were taken down. One that is removed
	// without a flush may be back after a power cut.
	seen    map[string]bool
	slowest time.Duration // of all starts
	// stopLoad waits for the injectors that are still at work.
	stopLoad func()
}

// setup is what differs between worlds.
type setup struct {
	kind  kind
	size  int64    // of the image; 0 for none
	mkfs  []string // more options
	low   string
	steps []smtptest.Step
	under string // the folder for the image; "" for the test's
}

// newWorld makes a disk, a server that takes mail, and the daemon's
// configuration, and starts nothing.
func newWorld(t *testing.T, p *programs, s setup) *world {
	t.Helper()
	folder := p.folder(t)
	w := &world{t: t, seen: map[string]bool{}, stopLoad: func() {}, ledger: newLedger(t, folder)}
	sink := smtptest.Start(t, smtptest.Options{Steps: s.steps, Keep: smtptest.KeepAll, OnMessage: func(m *smtptest.Message) {
		for _, to := range m.Addresses() {
			w.arrive("the SMTP server", to, m.Content)
		}
		m.Content = nil
	}})
	w.daemon = &daemon{p: p, t: t, folder: folder, low: s.low, sink: sink.Addr().String(), outside: filepath.Join(folder, "outside")}
	disk := folder
	if s.size > 0 {
		if s.under == "" {
			s.under = folder
		}
		w.v = newVolume(t, s.kind, s.under, s.size, s.under != folder, s.mkfs...)
		disk = w.v.dir
	}
	w.state, w.boxes = filepath.Join(disk, "state"), filepath.Join(disk, "mail")
	w.configure()
	return w
}

// late makes the server put off every third recipient of that name.
func late() (steps []smtptest.Step) {
	for i := range 1000 {
		steps = append(steps, smtptest.Step{At: smtptest.Rcpt, Match: "late@out.example", Skip: 3 * i, Times: 1, Reply: "451 4.2.1 later"})
	}
	return steps
}

// up starts the daemon and waits until it serves.
func (w *world) up() {
	w.t.Helper()
	w.start()
	w.slowest = max(w.slowest, w.wait())
}

// collect takes down what lies in the Maildirs, and removes it.
func (w *world) collect() {
	w.t.Helper()
	for _, box := range w.maildirs() {
		dir := filepath.Join(box, "new")
		entries, err := os.ReadDir(dir)
		if err != nil {
			w.t.Fatal(err)
		}
		for _, e := range entries {
			path := filepath.Join(dir, e.Name())
			if !w.seen[path] {
				text, err := os.ReadFile(path)
				if err != nil {
					w.t.Fatal(err)
				}
				w.seen[path] = true
				w.arrive(path, recipient(string(text)), text)
			}
			if err := os.Remove(path); err != nil {
				w.t.Fatal(err)
			}
		}
	}
}

// recipient is the address that a message in a Maildir was delivered to.
func recipient(text string) string {
	for line := range strings.SplitSeq(text, "\n") {
		if to, ok := strings.CutPrefix(line, "Delivered-To: "); ok {
			return to
		}
		if line == "" {
			break
		}
	}
	return ""
}

// drain waits until everything acknowledged has arrived, and checks all that
// did.
func (w *world) drain(most time.Duration) {
	w.t.Helper()
	begun := time.Now()
	for {
		w.collect()
		missing, _ := w.missing()
		if len(missing) == 0 {
			break
		}
		if time.Since(begun) > most {
			w.check()
			w.t.Fatalf("LOST: %d acknowledged deliveries have not come after %v: %.2000v", len(missing), most, missing)
		}
		if !w.supervised && w.hasEnded() {
			w.t.Fatal("the daemon has ended by itself")
		}
		time.Sleep(20 * time.Millisecond)
	}
	w.check()
}

// finish ends the daemon in good order, again and again until its queue is
// empty, and checks what is left on the disk.
func (w *world) finish() {
	w.t.Helper()
	deadline := time.Now().Add(mostDrain)
	for {
		w.terminate()
		n := w.examine()
		if n == 0 {
			break
		}
		if time.Now().After(deadline) {
			w.t.Fatalf("%d messages stay in the queue", n)
		}
		w.up()
		time.Sleep(1500 * time.Millisecond) // deliveries that were put off
	}
	w.collect()
	w.check()
	if left := w.leftovers(); len(left) > 0 {
		w.t.Errorf("an empty queue has left %v", left)
	}
	missing, doubtful := w.missing()
	if len(missing) > 0 {
		w.t.Errorf("LOST: %v", missing)
	}
	if len(doubtful) > 0 {
		w.t.Logf("acknowledged while the file system broke, and lost: %v", doubtful)
	}
}

// mostDrain bounds how long deliveries may take after a recovery; a mailbox that
// failed is tried again after a hundred seconds.
const mostDrain = 150 * time.Second

func (w *world) String() string {
	n := w.tally()
	starts, exits := w.history()
	return fmt.Sprintf("%d messages offered, %d acknowledged, %d deliveries, %d duplicates, %d messages delivered that were not acknowledged; "+
		"exit codes of the shim %v; %d starts, the slowest served after %v; exits of the daemon %s",
		n.offered, n.acknowledged, n.deliveries, n.duplicates, n.unasked, w.codes, starts, w.slowest.Round(time.Millisecond), exits)
}
