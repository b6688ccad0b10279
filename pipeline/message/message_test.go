package message

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"testing/iotest"

	"golang.org/x/sys/unix"
)

func TestZeroMessage(t *testing.T) {
	var m Message
	if m.Size() != 0 || m.WireSize() != 0 || len(m.Bytes()) != 0 || m.Form() != SevenBit || m.Head().Len() != 0 {
		t.Error("not empty")
	}
	checkViews(t, m)
	m = m.WithBody(BytesBody([]byte("A: b\n")))
	if got := string(m.Bytes()); got != "\nA: b\n" {
		t.Errorf("%q", got)
	}
}

func TestForm(t *testing.T) {
	for _, c := range []struct {
		in   string
		want Form
	}{
		{"A: b\n\nbody", SevenBit},
		{"A: b\n\nb\xf6dy", EightBit},
		{"A: \u20ac\n\nbody", UTF8},
		{"A: \u20ac\n\nb\xf6dy", UTF8},
		{"A: \xff\n\nbody", EightBit},
		{"A: \u20ac\nB: \xe2\x82\n\nbody", EightBit},
		{"12345678\x80", EightBit},
		{"", SevenBit},
	} {
		if got := FromString(c.in).Form(); got != c.want {
			t.Errorf("%q is %v", c.in, got)
		}
	}
}

func TestWithBodyKeepsHeadAndBodyApart(t *testing.T) {
	for _, c := range []struct{ in, body, want string }{
		{"A: b\n\nold", "new", "A: b\n\nnew"},
		{"A: b\r\n\r\nold", "new", "A: b\r\n\r\nnew"},
		{"A: b\n", "Bcc: x\n", "A: b\n\nBcc: x\n"},
		{"A: b", " folded", "A: b\n\n folded"},
		{"A: b\r", "\nBcc: x", "A: b\r\n\n\nBcc: x"},
		{"A: b\nhello", "new", "A: b\n\nnew"},
		{"hello", "Bcc: x\n", "\nBcc: x\n"},
		{"", "From x\n", "\nFrom x\n"},
		{"A: b\n\nold", "", "A: b\n\n"},
		{"A: b\nold", "", "A: b\n"},
		{"A: b", "", "A: b"},
	} {
		m := FromString(c.in)
		other := m.WithBody(BytesBody([]byte(c.body)))
		if got := string(other.Bytes()); got != c.want {
			t.Errorf("%q with %q is %q", c.in, c.body, got)
		}
		if got := content(t, FromString(string(other.Bytes())).Body()); got != c.body {
			t.Errorf("%q with %q has body %q when read again", c.in, c.body, got)
		}
		if string(m.Bytes()) != c.in || string(m.WithBody(m.Body()).Bytes()) != c.in {
			t.Errorf("%q became %q", c.in, m.Bytes())
		}
		checkViews(t, other)
		checkStored(t, other)
	}
	// An edit that ends no line, then a body.
	h, err := FromString("A: b").Head().Edit(FieldEdit{Op: Add, Name: "X", Value: "y"})
	if err != nil {
		t.Fatal(err)
	}
	if got := string(New(h, BytesBody([]byte("body"))).Bytes()); got != "X: y\nA: b\n\nbody" {
		t.Errorf("%q", got)
	}
}

func TestViewsOfLargeMessages(t *testing.T) {
	bodies := map[string]string{
		"LF":                     strings.Repeat("0123456789\n", 7_000),
		"CR LF":                  strings.Repeat("0123456789\r\n", 6_000),
		"LF alone":               strings.Repeat("\n", 70_000),
		"CR alone":               strings.Repeat("\r", 70_000),
		"CR CR LF":               strings.Repeat("\r\r\n", 25_000),
		"CR LF over each border": strings.Repeat(strings.Repeat("x", 8191)+"\r\n"+strings.Repeat("x", 8190), 5),
		"one line":               strings.Repeat("x", 70_000),
	}
	for name, body := range bodies {
		in := "A: b\n\n" + body
		for _, p := range pieces {
			m := mustRead(t, p.of(strings.NewReader(in)), Options{Lines: Keep, Spool: newTestSpool(t)})
			if m.Body().SpoolName() == "" {
				t.Fatal("not spooled")
			}
			checkViews(t, m)
			small, err := io.ReadAll(iotest.OneByteReader(m.CRLF()))
			if err != nil || string(small) != toCRLF(in) {
				t.Errorf("%s %s: CRLF view byte by byte: %v", name, p.name, err)
			}
		}
		if err := iotest.TestReader(FromString(in[:9_000]).CRLF(), []byte(toCRLF(in[:9_000]))); err != nil {
			t.Error(name, err)
		}
	}
}

func TestReaderKeepsItsContract(t *testing.T) {
	for _, c := range oddMessages {
		if len(c.in) > 2000 {
			continue
		}
		if err := iotest.TestReader(FromString(c.in).Reader(), []byte(c.in)); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	in := "A: b\n\n" + strings.Repeat("0123456789\n", 300)
	m := mustRead(t, strings.NewReader(in), Options{Spool: newTestSpool(t), Memory: 1})
	if err := iotest.TestReader(m.Reader(), []byte(in)); err != nil {
		t.Error("spooled:", err)
	}
}

// failWriter takes n bytes, then fails, or goes short in silence if err is nil.
type failWriter struct {
	n   int
	err error
}

func (w *failWriter) Write(p []byte) (int, error) {
	if len(p) <= w.n {
		w.n -= len(p)
		return len(p), nil
	}
	n := w.n
	w.n = 0
	return n, w.err
}

func TestWriteToTellsEveryFailure(t *testing.T) {
	in := "A: b\n\n" + strings.Repeat("0123456789\n", 10)
	for _, memory := range []int{0, 1} {
		m := mustRead(t, strings.NewReader(in), Options{Spool: newTestSpool(t), Memory: memory})
		for _, fails := range []error{errSpool, nil} {
			for n := range len(in) {
				got, err := m.WriteTo(&failWriter{n, fails})
				if err == nil || fails != nil && !errors.Is(err, fails) || got != int64(n) {
					t.Fatalf("after %d bytes: %d %v", n, got, err)
				}
			}
		}
		if n, err := m.WriteTo(&failWriter{len(in), errSpool}); n != int64(len(in)) || err != nil {
			t.Error(n, err)
		}
	}
}

func TestDescriptor(t *testing.T) {
	spool := newTestSpool(t)
	for _, c := range []struct {
		name   string
		size   int
		spool  Spooler
		sealed bool
	}{
		{"empty", 0, spool, true},
		{"small", 100, spool, true},
		{"largest in memory", InMemory, spool, true},
		{"large", InMemory + 1, spool, false},
		{"large without a spool", InMemory + 1, nil, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			in := (strings.Repeat("A: b\n", 3) + "\n" + strings.Repeat("x", InMemory))[:c.size]
			if c.size > 100 {
				in = "A: b\n\n" + strings.Repeat("x", c.size-6)
			}
			f, err := FromString(in).Descriptor(c.spool)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			spool.wantFiles(t, 0)
			checkDescriptor(t, f, in, c.sealed)
		})
	}
}

func checkDescriptor(t *testing.T, f *os.File, want string, sealed bool) {
	t.Helper()
	if off, err := f.Seek(0, io.SeekCurrent); off != 0 || err != nil {
		t.Errorf("offset %d: %v", off, err)
	}
	for range 2 {
		if got, err := io.ReadAll(f); err != nil || string(got) != want {
			t.Errorf("%d bytes of %d: %v", len(got), len(want), err)
		}
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			t.Error(err)
		}
	}
	if n, err := f.WriteAt([]byte("x"), 0); err == nil {
		t.Errorf("%d bytes could be written", n)
	}
	if f.Truncate(int64(len(want))+1) == nil || len(want) > 0 && f.Truncate(0) == nil {
		t.Error("the length could be changed")
	}
	seals, err := unix.FcntlInt(f.Fd(), unix.F_GET_SEALS, 0)
	if all := unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE; sealed && (err != nil || seals != all) {
		t.Errorf("seals %#x: %v", seals, err)
	}
	if flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
		t.Errorf("descriptor flags %#x: %v", flags, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil || st.Nlink != 0 {
		t.Errorf("%d names: %v", st.Nlink, err)
	}
}

func TestDescriptorWithFailingSpool(t *testing.T) {
	m := FromString("A: b\n\n" + strings.Repeat("x", InMemory))
	for fail := 1; ; fail++ {
		spool := newTestSpool(t)
		spool.fail = fail
		f, err := m.Descriptor(spool)
		spool.wantFiles(t, 0)
		if err == nil {
			f.Close()
			if fail != 6 || spool.steps != 5 { // Create, Write of head and body, Close, Open
				t.Errorf("%d steps, the %dth failed unseen", spool.steps, fail)
			}
			break
		}
		if !errors.Is(err, errSpool) || f != nil {
			t.Errorf("step %d: %v", fail, err)
		}
	}
	if f, err := m.Descriptor(otherSpool{newTestSpool(t)}); err == nil || f != nil {
		t.Error("a file that is none of the operating system's")
	}
}

// otherSpool is a spool whose files are not *os.File.
type otherSpool struct{ *testSpool }

func (s otherSpool) Open(name string) (File, error) {
	f, err := s.testSpool.Open(name)
	return &testFile{f, s.testSpool}, err
}

func TestMessageSharesItsBody(t *testing.T) {
	spool := newTestSpool(t)
	m, err := Read(strings.NewReader("A: b\n\n"+strings.Repeat("x\n", 50_000)), Options{Spool: spool})
	if err != nil {
		t.Fatal(err)
	}
	want := string(m.Bytes())
	done := make(chan error)
	for i := range 8 {
		held := m.Body().Retain()
		go func() {
			h, err := m.Head().Edit(FieldEdit{Op: Add, Name: "X", Value: fmt.Sprint(i)})
			if err == nil && string(m.WithHead(h).Bytes()) != fmt.Sprintf("X: %d\n", i)+want {
				err = errors.New("changed")
			}
			done <- errors.Join(err, held.Release())
		}()
	}
	if err := m.Body().Release(); err != nil {
		t.Error(err)
	}
	for range 8 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	spool.wantFiles(t, 0)
}
