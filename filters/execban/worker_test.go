package execban

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/worker"
)

// crimes are jobs that end badly, by name.
func crimes() map[string]worker.Job {
	job := func(do func() []byte) worker.Job {
		return func(context.Context, []byte, io.ReaderAt, int64, *worker.Scratch) ([]byte, error) { return do(), nil }
	}
	return map[string]worker.Job{
		"garbage": job(func() []byte { return []byte("all is well") }),
		"no answer": job(func() []byte {
			return (&answer{findings: []finding{{part: "1", class: "no such class", basis: byName}}}).encode()
		}),
		"dies":   job(func() []byte { os.Exit(3); return nil }),
		"panics": job(func() []byte { panic("on a bad attachment") }),
		"hangs":  job(func() []byte { time.Sleep(time.Hour); return nil }),
		"greedy": job(func() []byte {
			all := []byte{1}
			for {
				all = append(all, all...)
			}
		}),
	}
}

// bad has another job done in place of the filter's.
type bad struct {
	pipeline.Workers
	job string
}

func (b bad) Do(ctx context.Context, r worker.Request) ([]byte, error) {
	r.Job = b.job
	return b.Workers.Do(ctx, r)
}

// The filter with real workers.
func TestWorkers(t *testing.T) {
	f := newFilterOn(t, newPool(t, worker.Options{}), "")
	if v := judge(t, f, attached("x.exe", tinyPE())); v.Action != pipeline.Reject {
		t.Errorf("%+v", v)
	}
	if v := judge(t, f, "Subject: x\n\nhello\n"); v.Action != pipeline.Continue {
		t.Errorf("%+v", v)
	}
	if _, err := newFilterOn(t, nil, "").Message(context.Background(), transaction(), message.FromString("A: b\n\nc\n")); err == nil {
		t.Error("without workers the filter must fail")
	}
}

// Whatever a worker does, a message does not pass: that of which two died goes
// into quarantine, and else the filter has failed.
func TestBadWorkers(t *testing.T) {
	for _, c := range []struct {
		job  string
		want error // nil: quarantine
	}{
		{"garbage", nil},
		{"no answer", nil},
		{"dies", nil},
		{"panics", nil},
		{"greedy", nil},
		{"hangs", worker.ErrSlow},
	} {
		t.Run(c.job, func(t *testing.T) {
			pool := newPool(t, worker.Options{Memory: 96 << 20})
			f := newFilterOn(t, bad{pool, c.job}, `unscannable = "pass"`)
			if c.want != nil {
				f.deadline = time.Second / 2
			} else {
				f.deadline = time.Minute
			}
			v, err := f.Message(context.Background(), transaction(), message.FromString("Subject: x\n\nhello\n"))
			switch {
			case c.want != nil:
				if !errors.Is(err, c.want) {
					t.Errorf("%+v, %v; want %v", v, err, c.want)
				}
			case err != nil || v.Action != pipeline.Quarantine || found(v) != Unscannable:
				t.Errorf("%+v, %v; want quarantine", v, err)
			}
			// The next message is judged as if nothing had been.
			if v := judge(t, newFilterOn(t, pool, ""), attached("x.exe", tinyPE())); v.Action != pipeline.Reject {
				t.Errorf("afterwards: %+v", v)
			}
		})
	}
}

// Workers are killed and stopped while mail flows: what is bad never passes,
// and the filter fails rather than wait.
func TestWorkersUnderFire(t *testing.T) {
	var mu sync.Mutex
	pids := map[int]bool{}
	pool := newPool(t, worker.Options{Size: 3, Backoff: time.Millisecond, Report: func(e worker.Event) {
		mu.Lock()
		defer mu.Unlock()
		if e.Err == nil && !e.Replaced {
			pids[e.PID] = true
		} else {
			delete(pids, e.PID)
		}
	}})
	f := newFilterOn(t, pool, "")
	f.deadline = 200 * time.Millisecond
	stop := make(chan struct{})
	var shots sync.WaitGroup
	shots.Add(1)
	go func() {
		defer shots.Done()
		for n := 0; ; n++ {
			select {
			case <-stop:
				return
			case <-time.After(4 * time.Millisecond):
			}
			mu.Lock()
			for pid := range pids {
				sig := syscall.SIGKILL
				if n%12 == 11 {
					sig = syscall.SIGSTOP
				}
				syscall.Kill(pid, sig) //nolint:errcheck // it may have ended
				delete(pids, pid)
				break
			}
			mu.Unlock()
		}
	}()
	var flow sync.WaitGroup
	var judged, held, failed atomic.Int32
	for i := range 4 {
		flow.Add(1)
		go func() {
			defer flow.Done()
			for n := 0; n < 30 || !hurt(pool); n++ {
				wicked := (n+i)%2 == 0
				text := "Subject: x\n\nhello\n"
				if wicked {
					text = attached("x.exe", tinyPE())
				}
				v, err := f.Message(context.Background(), transaction(), message.FromString(text))
				switch {
				case err != nil:
					failed.Add(1)
				case v.Action == pipeline.Quarantine:
					held.Add(1)
				case wicked != (v.Action == pipeline.Reject):
					t.Errorf("wicked is %v: %+v", wicked, v)
				default:
					judged.Add(1)
				}
			}
		}()
	}
	flow.Wait()
	close(stop)
	shots.Wait()
	t.Logf("%d judged, %d into quarantine, %d failed; %+v", judged.Load(), held.Load(), failed.Load(), pool.Stats())
	if judged.Load() == 0 {
		t.Error("nothing was judged")
	}
}

// hurt is whether enough workers were killed, and one stopped.
func hurt(p *worker.Pool) bool {
	s := p.Stats()
	return s.Died >= 5 && s.Slow > 0
}

// bombs are messages that are small and hold much.
func bombs(t testing.TB, zeros int64) map[string]string {
	t.Helper()
	var z bytes.Buffer
	w, _ := gzip.NewWriterLevel(&z, 9)
	if _, err := io.CopyN(w, endless{}, zeros); err != nil {
		t.Fatal(err)
	}
	w.Close()
	layer := zipped(hidden{"0", z.Bytes()})
	for range 4 { // as 42.zip has it: 16 times the same, five deep
		var same [][2]string
		for i := range 16 {
			same = append(same, [2]string{fmt.Sprint(i) + ".zip", string(layer)})
		}
		layer = zipFiles(t, same...)
	}
	nest := zipped(hidden{"a.txt", []byte("x")})
	for range 60 {
		nest = zipped(hidden{"a.zip", nest})
	}
	messages := head + greeting
	for range 80 {
		messages = head + plainMixed("Content-Type: message/rfc822\nContent-Transfer-Encoding: base64\n\n"+lines([]byte("Subject: x\n\n"+cut(messages))))
	}
	return map[string]string{
		"zeros": attached("zeros.gz", z.Bytes()), "42.zip": attached("42.zip", layer), "nest": attached("nest.zip", nest), "parts": head + mixed("Content-Type: multipart/mixed; boundary=a\n", "a", strings.Split(strings.Repeat("\n|", 30_000), "|")...),
	}
}

// endless is zeros without end.
type endless struct{}

func (endless) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// zerosVariable makes TestMemoryIsFlat larger: how many bytes of zeros.
const zerosVariable = "POSTERN_ZEROS"

// What is scanned costs the daemon no memory: sixteen bombs at once, each of
// them unscannable.
func TestMemoryIsFlat(t *testing.T) {
	zeros := int64(40 << 20)
	if s := os.Getenv(zerosVariable); s != "" {
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		zeros = n
	}
	all := bombs(t, zeros)
	f := newFilterOn(t, newPool(t, worker.Options{Size: 4, Directory: t.TempDir()}), "bytes = 67108864\nmember = 33554432\nmembers = 2000\ntime = 300_000_000_000")
	judge(t, f, "Subject: warm\n\nup\n")
	before := resident(t)
	peak := atomic.Int64{}
	stop, watched := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(watched)
		for {
			if n := resident(t); n > peak.Load() {
				peak.Store(n)
			}
			select {
			case <-stop:
				return
			case <-time.After(5 * time.Millisecond):
			}
		}
	}()
	var flow sync.WaitGroup
	rounds := 4
	if underRace {
		rounds = 1
	}
	for range rounds {
		for name, text := range all {
			flow.Add(1)
			go func() {
				defer flow.Done()
				v, err := f.Message(context.Background(), transaction(), message.FromString(text))
				if err != nil || v.Action != pipeline.Reject || !strings.Contains(found(v), Unscannable) && !strings.Contains(found(v), ArchivesNested) {
					t.Errorf("%s: %v %v %s", name, err, v.Action, v.Reason)
				}
			}()
		}
	}
	flow.Wait()
	close(stop)
	<-watched
	grown := peak.Load() - before
	t.Logf("%d messages that unpack to %d MiB and more: this process grew by %d KiB at most", rounds*len(all), zeros>>20, grown>>10)
	if grown > 32<<20 {
		t.Errorf("this process grew from %d by %d bytes", before, grown)
	}
}

// resident is this process's memory in bytes.
func resident(t testing.TB) int64 {
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		t.Error(err)
		return 0
	}
	pages, err := strconv.ParseInt(strings.Fields(string(b))[1], 10, 64)
	if err != nil {
		t.Error(err)
	}
	return pages * int64(os.Getpagesize())
}

// slow is a message that takes long to read, and little work.
type slow struct{ *strings.Reader }

func (s slow) ReadAt(p []byte, off int64) (int, error) {
	time.Sleep(400 * time.Millisecond) // many times the limit, because a busy host is late with timers, too
	return s.Reader.ReadAt(p, off)
}

// A message that takes all the time there is is unscannable, but not because the
// host is busy.
func TestTimeIsOver(t *testing.T) {
	f := newFilter(t, "")
	scan := func(r io.ReaderAt, size int64, limit time.Duration) (*answer, error) {
		o, err := parseRequest(f.request)
		if err != nil {
			t.Fatal(err)
		}
		o.Time = limit
		scratch := worker.NewScratch(nil, 256<<20)
		defer scratch.Reset() //nolint:errcheck // it is in memory
		return o.scan(context.Background(), r, size, scratch)
	}
	text := strings.Repeat("--x\nContent-Type: text/plain\n\nsome words\n", 200_000)
	var a *answer
	err := errTime
	for n := 0; n < 100 && errors.Is(err, errTime); n++ { // this host may be busy
		a, err = scan(strings.NewReader(text), int64(len(text)), 20*time.Millisecond)
	}
	if err != nil || len(a.findings) == 0 || a.findings[len(a.findings)-1].what != "it takes longer than 20ms" {
		t.Errorf("%+v, %v", a, err)
	}
	if a, err := scan(slow{strings.NewReader(attached("a.txt", []byte("x")))}, int64(len(attached("a.txt", []byte("x")))), 30*time.Millisecond); !errors.Is(err, errTime) {
		t.Errorf("%+v, %v", a, err)
	}
}
