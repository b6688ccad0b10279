package handoff

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
)

// The pipe's flags are the caller's again afterwards, and those of other files
// were never changed.
func TestFlagsAreLeftAlone(t *testing.T) {
	d := newDaemon(t, nil)
	flags := func(f *os.File) int {
		raw, err := f.SyscallConn()
		check(t, err)
		n := 0
		raw.Control(func(fd uintptr) { n, err = unix.FcntlInt(fd, unix.F_GETFL, 0) })
		check(t, err)
		return n
	}
	mr, mw := d.pipe()
	er, ew := d.pipe()
	io.WriteString(mw, mail)
	mw.Close()
	io.WriteString(ew, list)
	c := d.connect()
	check(t, c.hello(nil, 0, int(mr.Fd()), int(er.Fd())))
	if r, err := c.converse(); err != nil || r.exit.Code != 0 {
		t.Fatal(r.exit, err)
	}
	d.log.line(t)
	for _, f := range []*os.File{mr, er} {
		if flags(f)&unix.O_NONBLOCK != 0 {
			t.Error("a pipe was left non-blocking")
		}
	}
	_, write := d.pipe()
	c = d.connect()
	check(t, c.hello(nil, 0, int(write.Fd()), int(er.Fd())))
	if r, err := c.converse(); err != nil || r.exit.Code != 54 {
		t.Fatal(r.exit, err)
	}
	if flags(write)&unix.O_NONBLOCK != 0 {
		t.Error("a writing end was touched")
	}
}

// file is a file with the content, at an offset, without a name.
func (d *daemon) file(content string, offset int64) *os.File {
	d.t.Helper()
	f, err := os.CreateTemp(d.dir, "in")
	check(d.t, err)
	check(d.t, os.Remove(f.Name()))
	d.t.Cleanup(func() { f.Close() })
	_, err = f.WriteString(content)
	check(d.t, err)
	_, err = f.Seek(offset, io.SeekStart)
	check(d.t, err)
	return f
}

func (d *daemon) memory(content string) *os.File {
	d.t.Helper()
	f, err := message.MemoryFile("in", []byte(content))
	check(d.t, err)
	d.t.Cleanup(func() { f.Close() })
	return f
}

// socket is one end of a stream socket pair; the other has sent the content
// and is closed for writing.
func (d *daemon) socket(content string) *os.File {
	d.t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	check(d.t, err)
	a, b := os.NewFile(uintptr(fds[0]), "a"), os.NewFile(uintptr(fds[1]), "b")
	d.t.Cleanup(func() { a.Close(); b.Close() })
	_, err = b.WriteString(content)
	check(d.t, err)
	check(d.t, unix.Shutdown(fds[1], unix.SHUT_WR))
	return a
}

func (d *daemon) device(path string) *os.File {
	d.t.Helper()
	f, err := os.Open(path)
	check(d.t, err)
	d.t.Cleanup(func() { f.Close() })
	return f
}

func TestSources(t *testing.T) {
	d := newDaemon(t, nil)
	for _, c := range []struct {
		name          string
		content, list *os.File
		want          string
	}{
		{"pipes", d.fed(mail), d.fed(list), mail},
		{"files", d.file(mail, 0), d.file(list, 0), mail},
		{"files at an offset", d.file("skipped\n"+mail, 8), d.file("skipped"+list, 7), mail},
		{"file at its end", d.file(mail, int64(len(mail))), d.fed(list), ""},
		{"file beyond its end", d.file(mail, 1<<40), d.fed(list), ""},
		{"memory files", d.memory(mail), d.memory(list), mail},
		{"sockets", d.socket(mail), d.socket(list), mail},
		{"null", d.device("/dev/null"), d.fed(list), ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			d.t = t
			before := len(d.sink.all())
			conn := d.connect()
			check(t, conn.hello(nil, 0, int(c.content.Fd()), int(c.list.Fd())))
			r, err := conn.converse()
			check(t, err)
			if r.exit.Code != 0 {
				t.Fatal(d.log.line(t))
			}
			if all := d.sink.all(); len(all) != before+1 || all[before].text != c.want {
				t.Errorf("%+v", all[before:])
			}
		})
	}
	d.t = t
}

// A file that the caller reads as well keeps its offset.
func TestFileKeepsItsOffset(t *testing.T) {
	d := newDaemon(t, nil)
	f := d.file("12345678"+mail, 8)
	c := d.connect()
	check(t, c.hello(nil, 0, int(f.Fd()), int(d.fed(list).Fd())))
	if r, err := c.converse(); err != nil || r.exit.Code != 0 {
		t.Fatal(r.exit, err)
	}
	if at, err := f.Seek(0, io.SeekCurrent); err != nil || at != 8 {
		t.Error(at, err)
	}
}

func TestUnreadable(t *testing.T) {
	d := newDaemon(t, nil)
	_, write := d.pipe()
	onlyWrite, err := os.OpenFile(filepath.Join(d.dir, "w"), os.O_WRONLY|os.O_CREATE, 0o600)
	check(t, err)
	defer onlyWrite.Close()
	pathFD, err := unix.Open(d.dir, unix.O_PATH|unix.O_CLOEXEC, 0)
	check(t, err)
	defer unix.Close(pathFD)
	event, err := unix.Eventfd(1, unix.EFD_CLOEXEC)
	check(t, err)
	defer unix.Close(event)
	for name, fd := range map[string]int{
		"writing end": int(write.Fd()), "directory": int(d.device(d.dir).Fd()), "file for writing": int(onlyWrite.Fd()),
		"path": pathFD, "eventfd": event,
	} {
		for i, what := range []string{"message", "envelope"} {
			t.Run(name+" as "+what, func(t *testing.T) {
				d.t = t
				fds := []int{int(d.fed(mail).Fd()), int(d.fed(list).Fd())}
				fds[i] = fd
				c := d.connect()
				check(t, c.hello(nil, 0, fds...))
				if r, err := c.converse(); err != nil || r.exit.Code != 54 {
					t.Error(r.exit, err)
				}
				if line := d.log.line(t); line["error"] == nil {
					t.Error(line)
				}
			})
		}
	}
	d.t = t
	if all := d.sink.all(); len(all) != 0 {
		t.Error(all)
	}
}

func TestHundredThousandRecipients(t *testing.T) {
	d := newDaemon(t, nil, says(pipeline.Verdict{}))
	d.exits(0, mail, "Fa@example.org\x00"+strings.Repeat("Tsomebody@example.net\x00", 100_000)+"\x00")
	if all := d.sink.all(); len(all) != 1 || len(all[0].Envelope.Recipients) != 100_000 {
		t.Error(len(all))
	}
	d.exits(31, mail, "Fa@example.org\x00"+strings.Repeat("Tsomebody@example.net\x00", 100_001)+"\x00")
}

// countedSink is a sink that looks at the size only.
type countedSink struct{ size atomic.Int64 }

func (s *countedSink) Submit(_ context.Context, all []pipeline.Outgoing) (reply.Reply, error) {
	s.size.Store(all[0].Message.Size())
	return reply.OK, nil
}

// A large message is never in memory.
func TestMemoryStaysFlat(t *testing.T) {
	const size = 100 << 20
	var sink countedSink
	d := newDaemon(t, func(o *Options) { o.Sink = &sink }, says(pipeline.Verdict{}))
	r, w := d.pipe()
	c := d.connect()
	check(t, c.hello(nil, 0, int(r.Fd()), int(d.fed(list).Fd())))
	line := []byte(strings.Repeat("x", 1023) + "\n")
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	var most uint64
	for sent := 0; sent < size; sent += len(line) {
		if _, err := w.Write(line); err != nil {
			t.Fatal(err)
		}
		if sent%(10<<20) == 0 {
			runtime.ReadMemStats(&after)
			most = max(most, after.HeapAlloc)
		}
	}
	w.Close()
	got, err := c.converse()
	check(t, err)
	runtime.ReadMemStats(&after)
	if got.exit.Code != 0 || sink.size.Load() != size {
		t.Fatal(got.exit, sink.size.Load())
	}
	allocated := after.TotalAlloc - before.TotalAlloc
	t.Logf("heap %d KiB before, at most %d KiB; %d KiB allocated in all", before.HeapAlloc>>10, most>>10, allocated>>10)
	if allocated > 8<<20 {
		t.Errorf("%d bytes allocated for a message of %d", allocated, size)
	}
}
