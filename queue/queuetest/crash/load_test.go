package crash

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/postern-mta/postern/pipeline/envelope"
)

// offer is one message before it is sent.
type offer struct {
	id   string
	hash string // of the body
	to   []string
}

// text makes a message of about size bytes: lines that end in LF and are all
// different, so that no part of it looks like another.
func (o *offer) text(g *rand.Rand, size int) []byte {
	var body bytes.Buffer
	for body.Len() < size {
		fmt.Fprintf(&body, "%s %8d %016x%016x%016x\n", o.id, body.Len(), g.Uint64(), g.Uint64(), g.Uint64())
	}
	o.hash = hashOf(body.Bytes())
	return append([]byte("From: <"+sender+">\nSubject: crash\n"+idField+": "+o.id+"\n\n"), body.Bytes()...)
}

const idField = "X-Crash-ID"

func hashOf(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// ledger says what was offered, what was acknowledged and what arrived. What
// was acknowledged is written to a file, and read from it.
type ledger struct {
	t    *testing.T
	name string

	mu       sync.Mutex
	file     *os.File
	next     int
	offers   map[string]*offer
	answers  map[string]int            // id -> exit code
	codes    map[int]int               // exit code -> how often
	arrived  map[string]map[string]int // id -> recipient -> how often
	wrong    []string
	messages int
	doubts   []doubt
}

// doubt is a time during which a file system broke. Linux answers flushes that
// are under way when ext4 or xfs shuts down, or aborts its journal, with
// success, although what they flushed is lost: the blocks are written, and the
// extent that holds them is never marked so. Nobody above can tell. When power
// fails there is nobody left to tell.
type doubt struct{ from, to time.Time }

func newLedger(t *testing.T, folder string) *ledger {
	t.Helper()
	l := &ledger{
		t: t, name: filepath.Join(folder, "acknowledged"), offers: map[string]*offer{}, answers: map[string]int{},
		codes: map[int]int{}, arrived: map[string]map[string]int{},
	}
	var err error
	if l.file, err = os.Create(l.name); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.file.Close() })
	return l
}

func (l *ledger) offer(o *offer) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.offers[o.id] = o
}

// newID is an id that no other message has.
func (l *ledger) newID() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.next++
	return "m" + strconv.Itoa(l.next)
}

// temporary are the codes that a shim may exit with while the daemon is in
// trouble, besides 0: the disk is full, or something else is wrong.
var temporary = map[int]bool{53: true, 71: true}

// answer takes down what the shim exited with.
func (l *ledger) answer(o *offer, code int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.answers[o.id] = code
	l.codes[code]++
	switch {
	case code == 0:
		if _, err := fmt.Fprintf(l.file, "%s %s %s %d\n", o.id, o.hash, strings.Join(o.to, ","), time.Now().UnixNano()); err != nil {
			l.wrong = append(l.wrong, err.Error())
		}
	case !temporary[code]:
		l.wrong = append(l.wrong, fmt.Sprintf("%s: the shim exited with %d", o.id, code))
	}
}

// arrive takes down a delivery to one recipient, and looks whether it is whole.
func (l *ledger) arrive(where, to string, text []byte) {
	head, body, _ := bytes.Cut(text, []byte("\n\n"))
	id := ""
	for line := range strings.SplitSeq(string(head), "\n") {
		if value, ok := strings.CutPrefix(line, idField+": "); ok {
			id = value
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.messages++
	o := l.offers[id]
	switch {
	case o == nil:
		l.wrong = append(l.wrong, fmt.Sprintf("%s: a message of %d bytes that nobody sent:\n%.2000s", where, len(text), text))
		return
	case hashOf(body) != o.hash:
		l.wrong = append(l.wrong, fmt.Sprintf("%s: %s is not whole: a body of %d bytes", where, id, len(body)))
	case !contains(o.to, to):
		l.wrong = append(l.wrong, fmt.Sprintf("%s: %s came to %s, it is for %v", where, id, to, o.to))
	case l.answers[id] == 53:
		// The daemon lived and said no: then it must not have stored it.
		l.wrong = append(l.wrong, fmt.Sprintf("%s: %s was refused for lack of space and delivered", where, id))
	}
	if l.arrived[id] == nil {
		l.arrived[id] = map[string]int{}
	}
	l.arrived[id][to]++
}

func contains(all []string, s string) bool {
	for _, a := range all {
		if a == s {
			return true
		}
	}
	return false
}

// doubt says when a file system broke.
func (l *ledger) doubt(from, to time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.doubts = append(l.doubts, doubt{from, to})
}

// missing are the acknowledged (message, recipient) that have not arrived, and
// those that were acknowledged while a file system broke.
func (l *ledger) missing() (missing, doubtful []string) {
	f, err := os.Open(l.name)
	if err != nil {
		l.t.Fatal(err)
	}
	defer f.Close()
	l.mu.Lock()
	defer l.mu.Unlock()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		words := strings.Fields(lines.Text())
		if len(words) != 4 {
			l.t.Fatalf("%s is damaged: %q", l.name, lines.Text())
		}
		nanos, err := strconv.ParseInt(words[3], 10, 64)
		if err != nil {
			l.t.Fatal(err)
		}
		to := &missing
		for _, d := range l.doubts {
			if at := time.Unix(0, nanos); !at.Before(d.from) && !at.After(d.to) {
				to = &doubtful
			}
		}
		for address := range strings.SplitSeq(words[2], ",") {
			if l.arrived[words[0]][address] == 0 {
				*to = append(*to, words[0]+" for "+address)
			}
		}
	}
	return missing, doubtful
}

// tally is what a ledger adds up to.
type tally struct{ offered, acknowledged, deliveries, duplicates, unasked int }

// tally counts; unasked are deliveries of messages that were not acknowledged:
// the daemon died after it had stored them and before the shim knew.
func (l *ledger) tally() tally {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := tally{offered: len(l.offers), acknowledged: l.codes[0], deliveries: l.messages}
	for id, arrived := range l.arrived {
		for _, times := range arrived {
			n.duplicates += times - 1
		}
		if code, answered := l.answers[id]; answered && code != 0 {
			n.unasked++
		}
	}
	return n
}

func (l *ledger) count(code int) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.codes[code]
}

// check fails the test for everything that was wrong.
func (l *ledger) check() {
	l.t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, w := range l.wrong {
		l.t.Error(w)
	}
	l.wrong = nil
}

// mix is what a load is made of.
type mix struct {
	// sizes are chosen from at random, so that a size that is there twice comes
	// twice as often.
	sizes []int
	// to is chosen from likewise.
	to [][]string
}

const (
	kib = 1 << 10
	mib = 1 << 20
)

// everything has small bodies, which are in the database, large ones, which are
// files, messages for several recipients, on the image and outside, and ones
// that a tap splits in two.
var everything = mix{
	sizes: []int{200, 2 * kib, 2 * kib, 2 * kib, 4 * kib, 4 * kib, 8 * kib, 8 * kib, 16 * kib, 40 * kib, 63 * kib, 100 * kib, 100 * kib, 300 * kib, 1 * mib},
	to: [][]string{
		{"joe@box.example"},
		{"joe@box.example"},
		{"ann@out.example"},
		{"ann@away.example"},
		{"joe@box.example", "ann@box.example", "joe@out.example", "late@out.example"},
		{"split@box.example", copyAddress},
		{"split@out.example", copyAddress},
	},
}

// elsewhere is all delivered to places that no fault reaches.
var elsewhere = mix{
	sizes: []int{200, 2 * kib, 4 * kib, 8 * kib, 40 * kib, 100 * kib, 300 * kib},
	to:    [][]string{{"joe@away.example"}, {"ann@out.example"}, {"ann@away.example", "joe@out.example"}},
}

// load is injectors at work.
type load struct {
	quit chan struct{}
	once sync.Once
	wg   sync.WaitGroup
}

// inject starts n injectors that send one message after the other through the
// shim, until the load is stopped.
func inject(d *daemon, l *ledger, m mix, g *rand.Rand, n int, pause time.Duration) *load {
	a := &load{quit: make(chan struct{})}
	d.t.Cleanup(a.stop)
	for range n {
		own := rand.New(rand.NewPCG(g.Uint64(), 1))
		a.wg.Add(1)
		go func() {
			defer a.wg.Done()
			for {
				select {
				case <-a.quit:
					return
				case <-time.After(pause):
				}
				send(d, l, m, own)
			}
		}()
	}
	return a
}

// stop waits until each injector has its last answer.
func (a *load) stop() {
	a.once.Do(func() { close(a.quit) })
	a.wg.Wait()
}

// send sends one message of a mix, and takes down the answer.
func send(d *daemon, l *ledger, m mix, g *rand.Rand) (code int) {
	o := &offer{id: l.newID(), to: m.to[g.IntN(len(m.to))]}
	text := o.text(g, m.sizes[g.IntN(len(m.sizes))])
	l.offer(o)
	code, err := call(d, o, text, g.IntN(3) == 0)
	if err != nil {
		d.t.Errorf("the shim: %v", err)
		return -1
	}
	l.answer(o, code)
	return code
}

// mostShim bounds a call of the shim.
const mostShim = 120 * time.Second

// call runs the shim as a qmail program would, with the message on a pipe or as
// a file. Copies that a tap makes are not among the recipients that it is told.
func call(d *daemon, o *offer, text []byte, asFile bool) (code int, err error) {
	told := o.to
	if strings.HasPrefix(told[0], "split@") {
		told = told[:1]
	}
	env, err := envelope.Append(nil, envelope.To(sender, told...))
	if err != nil {
		return 0, err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	defer r.Close()
	c := exec.Command(d.p.shim)
	c.Env = append(os.Environ(), "POSTERN_SOCKET="+d.path("queue.sock"), "POSTERN_WAIT=100")
	c.Stdout = r // descriptor 1 is where qmail-queue reads the envelope
	c.Stdin = bytes.NewReader(text)
	if asFile {
		name := d.path(o.id)
		if err := os.WriteFile(name, text, 0o600); err != nil {
			return 0, err
		}
		defer os.Remove(name)
		f, err := os.Open(name)
		if err != nil {
			return 0, err
		}
		defer f.Close()
		c.Stdin = f
	}
	if err := c.Start(); err != nil {
		w.Close()
		return 0, err
	}
	dead := time.AfterFunc(mostShim, func() { c.Process.Kill() }) //nolint:errcheck // it may have ended
	defer dead.Stop()
	go func() {
		w.Write(env) //nolint:errcheck // a shim that refuses early does not read it
		w.Close()
	}()
	var failed *exec.ExitError
	if err := c.Wait(); err != nil && !errors.As(err, &failed) && !errors.Is(err, syscall.EPIPE) && !errors.Is(err, io.ErrClosedPipe) {
		return 0, err
	}
	if ws, ok := c.ProcessState.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return -int(ws.Signal()), nil
	}
	return c.ProcessState.ExitCode(), nil
}
