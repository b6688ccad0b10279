package pebble

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
	"github.com/postern-mta/postern/queue/queuetest"
	"github.com/postern-mta/postern/queue/store"
)

func TestBallast(t *testing.T) {
	dir := t.TempDir()
	o := testOptions(dir, nil)
	o.Ballast = 3 << 20
	s := mustOpen(t, o)
	defer func() { s.Close() }()
	var st syscall.Stat_t
	if err := syscall.Stat(filepath.Join(dir, ballastFile), &st); err != nil || st.Size != 3<<20 || st.Blocks*512 < 3<<20 {
		t.Errorf("%d bytes, %d blocks: %v", st.Size, st.Blocks, err)
	}
	s.dropBallast()
	if _, err := os.Stat(filepath.Join(dir, ballastFile)); err == nil || s.Stats().Ballast {
		t.Error("the ballast is still there")
	}
	if err := s.makeBallast(); err != nil || !s.Stats().Ballast {
		t.Error(err)
	}
	s.Close()
	o.Ballast = 1 << 20 // another size is made anew
	s = mustOpen(t, o)
	if err := syscall.Stat(filepath.Join(dir, ballastFile), &st); err != nil || st.Size != 1<<20 {
		t.Errorf("%d bytes: %v", st.Size, err)
	}
	// None is made where it would make the disk full.
	s.dropBallast()
	s.o.LowBytes = 1 << 60
	if err := s.makeBallast(); err != nil || s.Stats().Ballast {
		t.Errorf("%v %+v", err, s.Stats())
	}
}

// TestDiskFull lets the disk be full for the database, whose writes then
// succeed in the room that the ballast left.
func TestDiskFull(t *testing.T) {
	mem := vfs.NewMem()
	fs := queuetest.NewFaultFS(mem)
	o := testOptions("q", fs)
	o.Ballast = 1 << 20
	s := mustOpen(t, o)
	defer s.Close()
	var full atomic.Int32
	fs.Hook(func(c queuetest.Call) error {
		_, err := mem.Stat("q/" + ballastFile)
		if err == nil && c.Op == "write" && strings.HasPrefix(c.Path, "q/db/") {
			full.Add(1)
			return syscall.ENOSPC
		}
		return nil
	})
	for range 20 {
		m := testMessage(s, "a@example.com")
		mustApply(t, s, &store.Batch{Puts: []store.Put{{Message: m, Body: message.BytesBody(make([]byte, 9000))}}})
	}
	if full.Load() == 0 || s.Stats().Ballast {
		t.Errorf("%d writes failed, %+v", full.Load(), s.Stats())
	}
	fs.Hook(nil)
	if err := s.makeBallast(); err != nil || !s.Stats().Ballast {
		t.Error("the ballast is not made again", err)
	}
	mustVerify(t, s)
}

// TestSpoolDoesNotTakeTheBallast lets the disk be full for bodies: the ballast
// is not for them.
func TestSpoolDoesNotTakeTheBallast(t *testing.T) {
	fs := queuetest.NewFaultFS(vfs.NewMem())
	o := testOptions("q", fs)
	o.Ballast = 1 << 20
	s := mustOpen(t, o)
	defer s.Close()
	fs.Hook(func(c queuetest.Call) error {
		if c.Op == "write" && strings.HasPrefix(c.Path, "q/spool/") {
			return syscall.ENOSPC
		}
		return nil
	})
	_, err := message.Read(strings.NewReader("\n"+strings.Repeat("x", 100_000)), message.Options{Spool: s})
	if reply.Of(err) != reply.NoSpace || !s.Stats().Ballast {
		t.Errorf("%v %+v", err, s.Stats())
	}
	m := testMessage(s, "a@example.com")
	err = s.Apply(context.Background(), &store.Batch{Puts: []store.Put{{Message: m, Body: message.BytesBody(make([]byte, 100_000))}}}, false)
	if reply.Of(err) != reply.NoSpace || !s.Stats().Ballast {
		t.Errorf("%v %+v", err, s.Stats())
	}
	fs.Hook(nil)
	mustVerify(t, s)
	if names, _ := fs.List("q/spool"); len(names) != 0 {
		t.Error(names)
	}
}

// TestFirstFlushErrorIsFinal: the second flush of a file would succeed and lie.
func TestFirstFlushErrorIsFinal(t *testing.T) {
	fs := queuetest.NewFaultFS(vfs.NewMem())
	s := mustOpen(t, testOptions("q", fs))
	defer s.Close()
	w := message.NewWriter(s, 0)
	w.Write(make([]byte, 100_000))
	body, err := w.Body()
	if err != nil {
		t.Fatal(err)
	}
	defer body.Release()
	syncs := 0
	fs.Hook(func(c queuetest.Call) error {
		if c.Op == "sync" && strings.HasPrefix(c.Path, "q/spool/") {
			syncs++
			return syscall.EIO
		}
		return nil
	})
	m := testMessage(s, "a@example.com")
	for range 3 {
		if err := s.Apply(context.Background(), &store.Batch{Puts: []store.Put{{Message: m, Body: body}}}, false); err == nil {
			t.Error("a body that was not flushed is taken")
		}
		fs.Hook(func(c queuetest.Call) error {
			if c.Op == "sync" && strings.HasPrefix(c.Path, "q/spool/") {
				syncs++
			}
			return nil
		})
	}
	if syncs != 1 {
		t.Errorf("the file was flushed %d times", syncs)
	}
}

func TestLowInodes(t *testing.T) {
	o := testOptions(t.TempDir(), nil)
	var now atomic.Int64
	o.Now = func() time.Time { return time.Unix(now.Add(2), 0) }
	s := mustOpen(t, o)
	defer s.Close()
	put := func() error {
		return s.Apply(context.Background(), &store.Batch{Puts: []store.Put{{Message: testMessage(s, "a@example.com")}}}, false)
	}
	s.o.LowInodes = 1 << 62
	err := put()
	if reply.Of(err) != reply.NoSpace || !strings.Contains(err.Error(), "inodes are free") || !s.Stats().Full {
		t.Errorf("%v", err)
	}
	s.o.LowInodes, s.o.LowBytes = -1, 1<<62
	if err := put(); reply.Of(err) != reply.NoSpace || !strings.Contains(err.Error(), "MiB are free where") {
		t.Errorf("%v", err)
	}
	s.o.LowBytes = 1
	if err := put(); err != nil || s.Stats().Full {
		t.Error(err)
	}
}

// churn is a store through which mail passes, at a hundredth of the scale: the
// bound of twice what lives and 512 MiB is one of 5 MiB here.
type churn struct {
	*testing.T
	s         *Store
	random    *rand.ChaCha8
	queue     []store.ID
	passed    int64
	most      int64 // of what the disk held above twice what lived
	compacted int
}

const (
	churnFloor = garbageFloor / 100
	churnBound = 512 << 20 / 100
)

// put puts a message and removes others.
func (c *churn) put(removes ...store.ID) store.ID {
	m := testMessage(c.s, "a@example.com")
	text := make([]byte, 2048+c.random.Uint64()%4096)
	c.random.Read(text)
	b := &store.Batch{Puts: []store.Put{{Message: m, Body: message.BytesBody(text)}}, Removes: removes}
	if err := c.s.Apply(context.Background(), b, true); err != nil {
		c.Fatal(err)
	}
	c.passed += int64(len(text))
	return m.ID
}

// look does what the keeper does, by the small floor.
func (c *churn) look() {
	did, err := c.s.compact(c.Context(), churnFloor)
	if err != nil {
		c.Fatal(err)
	}
	if did {
		c.compacted++
	}
	st := c.s.Stats()
	if c.most = max(c.most, st.DiskBytes-2*st.LiveBytes); c.most > churnBound {
		c.Fatalf("%d bytes on disk for %d that live", st.DiskBytes, st.LiveBytes)
	}
}

// TestChurn passes many times what it keeps through a store, one message in a
// hundred staying; then it fills the store and empties it. What that takes on
// disk stays bounded.
func TestChurn(t *testing.T) {
	const depth, stuck, rounds = 100, 100, 2000
	c := churn{T: t, s: mustOpen(t, testOptions("q", vfs.NewMem())), random: rand.NewChaCha8([32]byte{})}
	defer c.s.Close()
	for n := range rounds {
		var removes []store.ID
		if len(c.queue) >= depth {
			i := int(c.random.Uint64() % depth)
			removes = []store.ID{c.queue[i]}
			c.queue = append(c.queue[:i], c.queue[i+1:]...)
		}
		if id := c.put(removes...); n%stuck != 0 {
			c.queue = append(c.queue, id)
		}
		if n%25 == 0 {
			c.look()
		}
	}
	churned := c.s.Stats()
	for range 10 * depth {
		c.queue = append(c.queue, c.put())
	}
	full := c.s.Stats()
	for len(c.queue) > 0 {
		n := 100
		if len(c.queue) <= 6*depth {
			n = len(c.queue) // before Pebble has merged anything by itself
		}
		mustApply(t, c.s, &store.Batch{Removes: c.queue[:n]})
		c.queue = c.queue[n:]
		c.look()
	}
	empty := c.s.Stats()
	t.Logf("%d MiB passed; live and on disk: after churn %d and %d KiB, full %d and %d, empty %d and %d; at most %d KiB above twice what lives; %d compactions by the bound",
		c.passed>>20, churned.LiveBytes>>10, churned.DiskBytes>>10, full.LiveBytes>>10, full.DiskBytes>>10, empty.LiveBytes>>10, empty.DiskBytes>>10, c.most>>10, c.compacted)
	if c.compacted == 0 {
		t.Error("the store was never compacted by the bound: this shows nothing")
	}
	if want := int64(len(scanned(t, c.s))); empty.Messages != want || want != rounds/stuck {
		t.Errorf("%d messages counted, %d stored", empty.Messages, want)
	}
	mustVerify(t, c.s)
}

// TestCountFindsWhatIsThere opens a store and counts.
func TestCountFindsWhatIsThere(t *testing.T) {
	mem := vfs.NewMem()
	s := mustOpen(t, testOptions("q", mem))
	for n := range 10 {
		m := testMessage(s, fmt.Sprintf("a%d@example.com", n))
		mustApply(t, s, &store.Batch{Puts: []store.Put{{Message: m, Body: message.BytesBody(make([]byte, 20_000*n))}}})
	}
	if err := s.count(t.Context()); err != nil {
		t.Fatal(err)
	}
	before := s.Stats()
	s.Close()
	s = mustOpen(t, testOptions("q", mem))
	defer s.Close()
	if err := s.count(t.Context()); err != nil {
		t.Fatal(err)
	}
	after := s.Stats()
	if after.Messages != 10 || after.Bodies != 6 || after.Bodies != before.Bodies || after.BodyBytes != before.BodyBytes {
		t.Errorf("%+v %+v", before, after)
	}
	if d := after.LiveBytes - before.LiveBytes; d < -1000 || d > 1000 {
		t.Errorf("%d live bytes before, %d after", before.LiveBytes, after.LiveBytes)
	}
}

func TestWasteful(t *testing.T) {
	for _, c := range []struct {
		live, used int64 // MiB
		want       bool
	}{
		{0, 255, false},
		{0, 257, true},
		{60, 257, true},
		{70, 257, false},
		{1000, 2250, false},
		{1000, 2260, true},
	} {
		if got := wasteful(c.live<<20, c.used<<20, garbageFloor); got != c.want {
			t.Errorf("%d MiB of %d: %v", c.live, c.used, got)
		}
	}
}

// TestFileGoesAfterItsRecord holds back the flush of the log while a message
// with a large body is removed, to be done later: its file must stay until then.
func TestFileGoesAfterItsRecord(t *testing.T) {
	fs := queuetest.NewFaultFS(vfs.NewMem())
	s := mustOpen(t, testOptions("q", fs))
	defer s.Close()
	m := testMessage(s, "a@example.com")
	mustApply(t, s, &store.Batch{Puts: []store.Put{{Message: m, Body: message.BytesBody(make([]byte, 100_000))}}})
	flushing, goOn := make(chan struct{}, 100), make(chan struct{})
	fs.Hook(func(c queuetest.Call) error {
		if c.Op == "sync" && strings.HasSuffix(c.Path, ".log") {
			flushing <- struct{}{}
			<-goOn
		}
		return nil
	})
	done := make(chan error)
	go func() { done <- s.Apply(context.Background(), &store.Batch{Removes: []store.ID{m.ID}}, true) }()
	<-flushing
	time.Sleep(20 * time.Millisecond) // for one who does not wait
	if _, err := fs.Stat(s.bodyPath(m.ID)); err != nil {
		t.Error("the file is gone before the record that names it:", err)
	}
	close(goOn)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if _, err := fs.Stat(s.bodyPath(m.ID)); err == nil {
		t.Error("the file stays")
	}
}
