package message

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/postern-mta/postern/pipeline/reply"
)

// testSpool is a Directory whose fail-th step (1 is the first) fails; a step is
// a call of Create, Open, Write or Close.
type testSpool struct {
	*Directory
	steps, fail int
	short       bool // a Write that fails does so in silence
}

var errSpool = errors.New("disk full")

func newTestSpool(t *testing.T) *testSpool {
	t.Helper()
	d, err := OpenDirectory(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return &testSpool{Directory: d}
}

func (s *testSpool) wantFiles(t *testing.T, n int) {
	t.Helper()
	files, err := os.ReadDir(s.Path())
	if err != nil || len(files) != n {
		t.Errorf("spool holds %v, want %d: %v", files, n, err)
	}
}

func (s *testSpool) step() error {
	if s.steps++; s.steps == s.fail {
		return errSpool
	}
	return nil
}

func (s *testSpool) Create() (string, File, error) {
	if err := s.step(); err != nil {
		return "", nil, err
	}
	name, f, err := s.Directory.Create()
	return name, &testFile{f, s}, err
}

func (s *testSpool) Open(name string) (File, error) {
	if err := s.step(); err != nil {
		return nil, err
	}
	return s.Directory.Open(name)
}

type testFile struct {
	File
	spool *testSpool
}

func (f *testFile) Write(p []byte) (int, error) {
	if err := f.spool.step(); err != nil {
		n, _ := f.File.Write(p[:len(p)/2])
		if f.spool.short {
			err = nil
		}
		return n, err
	}
	return f.File.Write(p)
}

func (f *testFile) Close() error {
	return errors.Join(f.File.Close(), f.spool.step())
}

func TestSpoolHoldsLargeBodies(t *testing.T) {
	for _, c := range []struct{ body, files int }{
		{0, 0},
		{InMemory, 0},
		{InMemory + 1, 1},
		{300 << 10, 1},
	} {
		for _, p := range pieces {
			spool := newTestSpool(t)
			in := "A: b\n\n" + strings.Repeat("y", c.body)
			m, err := Read(p.of(strings.NewReader(in)), Options{Lines: Keep, Spool: spool})
			if err != nil {
				t.Fatal(err)
			}
			spool.wantFiles(t, c.files)
			if _, memory := m.Body().Memory(); memory == (c.files > 0) || (m.Body().SpoolName() != "") == memory {
				t.Errorf("%d bytes: in memory %v, file %q", c.body, memory, m.Body().SpoolName())
			}
			if string(m.Bytes()) != in {
				t.Errorf("%d bytes %s: changed", c.body, p.name)
			}
			if m.Body().Retain() != m.Body() || m.Body().Release() != nil {
				t.Error("Retain and Release")
			}
			spool.wantFiles(t, c.files)
			if err := m.Body().Release(); err != nil {
				t.Error(err)
			}
			spool.wantFiles(t, 0)
		}
	}
}

func TestSpoolFileMayBeTakenAway(t *testing.T) {
	spool := newTestSpool(t)
	in := "A: b\n\n" + strings.Repeat("y", InMemory+1)
	m, err := Read(strings.NewReader(in), Options{Lines: Keep, Spool: spool})
	if err != nil {
		t.Fatal(err)
	}
	taken := filepath.Join(t.TempDir(), "taken")
	if err := os.Rename(filepath.Join(spool.Path(), m.Body().SpoolName()), taken); err != nil {
		t.Fatal(err)
	}
	if string(m.Bytes()) != in {
		t.Error("changed")
	}
	if err := m.Body().Release(); err != nil {
		t.Error(err)
	}
	if b, err := os.ReadFile(taken); err != nil || string(b) != in[len("A: b\n\n"):] {
		t.Errorf("%d bytes taken: %v", len(b), err)
	}
}

func TestReadWithFailingSpool(t *testing.T) {
	in := "A: b\n\n" + strings.Repeat("0123456789\n", 20_000)
	for _, short := range []bool{false, true} {
		fail := 1
		for ; ; fail++ {
			spool := newTestSpool(t)
			spool.fail, spool.short = fail, short && fail > 1
			m, err := Read(strings.NewReader(in), Options{Spool: spool})
			if err == nil {
				if spool.steps >= fail {
					t.Errorf("step %d failed and nobody saw it", fail)
				}
				m.Body().Release()
				break
			}
			if want := map[bool]error{false: errSpool, true: io.ErrShortWrite}[spool.short]; !errors.Is(err, want) || reply.Of(err) != reply.NoSpace || m.Size() != 0 {
				t.Errorf("step %d: %v", fail, err)
			}
			spool.wantFiles(t, 0)
		}
		if fail < 5 {
			t.Errorf("only %d steps were tried", fail)
		}
	}
}

func TestWriterCountsAcrossWrites(t *testing.T) {
	for _, c := range []struct {
		writes []string
		lfs    int64
		eight  bool
	}{
		{nil, 0, false},
		{[]string{"\n"}, 1, false},
		{[]string{"\r", "\n"}, 0, false},
		{[]string{"\r", "", "\n", "\n"}, 1, false},
		{[]string{"a\r", "\r\n", "\n\r", "b\n"}, 2, false},
		{[]string{"12345678\xff"}, 0, true},
		{[]string{"\x80234567812345678"}, 0, true},
		{[]string{"a", "\xff", "b"}, 0, true},
		{[]string{"\x7f\x00"}, 0, false},
	} {
		for _, limit := range []int{0, 1} {
			spool := newTestSpool(t)
			w := NewWriter(spool, limit)
			for _, s := range c.writes {
				if n, err := io.WriteString(w, s); n != len(s) || err != nil {
					t.Fatal(n, err)
				}
			}
			b, err := w.Body()
			if err != nil {
				t.Fatal(err)
			}
			all := strings.Join(c.writes, "")
			if b.LFs() != c.lfs || b.EightBit() != c.eight || b.Size() != int64(len(all)) || content(t, b) != all {
				t.Errorf("%q: %d LFs, 8-bit %v, %d bytes", c.writes, b.LFs(), b.EightBit(), b.Size())
			}
			same := BytesBody([]byte(all))
			if same.LFs() != b.LFs() || same.EightBit() != b.EightBit() || same.Size() != b.Size() {
				t.Errorf("%q in one piece: %d LFs", all, same.LFs())
			}
			if err := b.Release(); err != nil {
				t.Error(err)
			}
			spool.wantFiles(t, 0)
		}
	}
}

func TestWriterEnds(t *testing.T) {
	spool := newTestSpool(t)
	w := NewWriter(spool, 1)
	io.WriteString(w, "spooled")
	spool.wantFiles(t, 1)
	w.Abort()
	spool.wantFiles(t, 0)
	if _, err := w.Write([]byte("x")); err == nil {
		t.Error("a write after Abort")
	}
	if _, err := w.Body(); err == nil {
		t.Error("a body after Abort")
	}

	w = NewWriter(spool, 1)
	io.WriteString(w, "spooled")
	b, err := w.Body()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte("x")); err == nil {
		t.Error("a write after Body")
	}
	if again, err := w.Body(); err == nil || again != nil {
		t.Error("a second body")
	}
	w.Abort()
	spool.wantFiles(t, 1)
	if got := content(t, b); got != "spooled" {
		t.Errorf("%q", got)
	}
	b.Release()
	spool.wantFiles(t, 0)
}

func TestWriterErrorIsFinal(t *testing.T) {
	spool := newTestSpool(t)
	spool.fail = 3 // Create, Write of the memory, Write
	w := NewWriter(spool, 10)
	io.WriteString(w, "0123456789")
	for range 3 {
		if n, err := io.WriteString(w, "more"); n != 0 || !errors.Is(err, errSpool) {
			t.Error(n, err)
		}
	}
	if b, err := w.Body(); b != nil || !errors.Is(err, errSpool) {
		t.Error(b, err)
	}
	spool.wantFiles(t, 0)
}

func TestBodyReferences(t *testing.T) {
	panics := func(name string, f func()) {
		t.Helper()
		defer func() {
			if recover() == nil {
				t.Error(name + " did not panic")
			}
		}()
		f()
	}
	freed := 0
	b := StoredBody{At: strings.NewReader("body"), Size: 4, Free: func() error { freed++; return errSpool }}.Open()
	if b.Retain().Release() != nil || freed != 0 {
		t.Error("freed too early")
	}
	if err := b.Release(); !errors.Is(err, errSpool) || freed != 1 {
		t.Error("not freed", err)
	}
	panics("Retain", func() { b.Retain() })
	b = BytesBody(nil)
	b.Release()
	panics("Release", func() { b.Release() })
	if freed != 1 {
		t.Error("freed twice")
	}
	var none *Body
	if none.Retain() != nil || none.Release() != nil {
		t.Error("a nil body")
	}
}

func TestBodyReadAt(t *testing.T) {
	spool := newTestSpool(t)
	w := NewWriter(spool, 1)
	io.WriteString(w, "0123456789")
	spooled, err := w.Body()
	if err != nil {
		t.Fatal(err)
	}
	defer spooled.Release()
	for name, b := range map[string]*Body{
		"memory": BytesBody([]byte("0123456789")),
		"file":   spooled,
		"stored": StoredBody{At: strings.NewReader("0123456789 and what is not the body's"), Size: 10}.Open(),
	} {
		for _, c := range []struct {
			len int
			off int64
			n   int
			err error
		}{
			{10, 0, 10, nil},
			{11, 0, 10, io.EOF},
			{3, 7, 3, nil},
			{4, 7, 3, io.EOF},
			{1, 10, 0, io.EOF},
			{1, 11, 0, io.EOF},
			{0, 3, 0, nil},
			{0, 10, 0, nil},
		} {
			p := make([]byte, c.len)
			n, err := b.ReadAt(p, c.off)
			if n != c.n || err != c.err || string(p[:n]) != "0123456789"[min(10, c.off):][:n] {
				t.Errorf("%s: ReadAt(%d, %d) = %d %v %q", name, c.len, c.off, n, err, p)
			}
		}
		if _, err := b.ReadAt(make([]byte, 1), -1); err == nil || err == io.EOF {
			t.Errorf("%s: negative offset: %v", name, err)
		}
		if err := iotest.TestReader(io.NewSectionReader(b, 0, b.Size()), []byte("0123456789")); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	var none *Body
	if n, err := none.ReadAt(make([]byte, 1), 0); n != 0 || err != io.EOF {
		t.Error(n, err)
	}
}

// A spool file that lost its end must never pass for a whole message.
func TestTruncatedFileIsAnError(t *testing.T) {
	b := StoredBody{At: strings.NewReader("half"), Size: 8}.Open()
	m := New(Head{}, b)
	if n, err := m.WriteTo(io.Discard); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("WriteTo: %d %v", n, err)
	}
	if _, err := io.ReadAll(m.Reader()); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Error("Reader:", err)
	}
	if _, err := io.ReadAll(m.CRLF()); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Error("CRLF:", err)
	}
	if m.Bytes() != nil {
		t.Error("Bytes")
	}
	if f, err := m.Descriptor(nil); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Error("Descriptor:", f, err)
	}
	if n, err := b.ReadAt(make([]byte, 100), 0); n != 4 || err != io.ErrUnexpectedEOF {
		t.Error("ReadAt:", n, err)
	}
}

func TestOpenDirectorySweeps(t *testing.T) {
	path := filepath.Join(t.TempDir(), "new", "spool")
	d, err := OpenDirectory(path)
	if err != nil {
		t.Fatal(err)
	}
	name, f, err := d.Create()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if info, err := os.Stat(filepath.Join(path, name)); err != nil || info.Mode().Perm() != 0o600 {
		t.Error(info, err)
	}
	if err := os.WriteFile(filepath.Join(path, "README"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if d, err = OpenDirectory(path); err != nil {
		t.Fatal(err)
	}
	files, err := os.ReadDir(path)
	if err != nil || len(files) != 1 || files[0].Name() != "README" {
		t.Error(files, err)
	}
	if err := d.Remove(name); err != nil {
		t.Error("removing what is not there:", err)
	}
	if f, err := d.Open(name); err == nil || f != nil {
		t.Error("opened what is not there")
	}
	if err := os.WriteFile(filepath.Join(path, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenDirectory(filepath.Join(path, "file")); err == nil || !strings.Contains(err.Error(), "spool directory") {
		t.Error(err)
	}
}

func TestDirectoryNamesAreUnique(t *testing.T) {
	spool := newTestSpool(t)
	seen := map[string]bool{}
	for i := range 100 {
		name, f, err := spool.Directory.Create()
		if err != nil || seen[name] {
			t.Fatal(name, err)
		}
		seen[name] = true
		fmt.Fprint(f, i)
		f.Close()
	}
	spool.wantFiles(t, 100)
}
