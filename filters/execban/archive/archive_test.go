package archive

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// program is what the archives under testdata hold as tiny.exe.
var program = []byte("MZ\x90\x00\x03\x00\x00\x00" + strings.Repeat("\x00", 52) + "\x40\x00\x00\x00PE\x00\x00\x64\x86" + string(upTo(200)))

func upTo(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i)
	}
	return b
}

// memory is a temporary file in memory.
type memory struct {
	b    []byte
	left *int
}

func (m *memory) Write(p []byte) (int, error) {
	if m.left != nil {
		if *m.left -= len(p); *m.left < 0 {
			return 0, errors.New("the temporary space is used up")
		}
	}
	m.b = append(m.b, p...)
	return len(p), nil
}

func (m *memory) ReadAt(p []byte, off int64) (int, error) {
	return bytes.NewReader(m.b).ReadAt(p, off)
}

func (m *memory) Close() error {
	if m.left != nil {
		*m.left += len(m.b)
	}
	m.b = nil
	return nil
}

// told is a member as a test sees it.
type told struct {
	path    string
	names   []string
	format  string
	reading string
	content string
	size    int64
	err     string
}

func (m told) String() string {
	return fmt.Sprintf("%s%q [%s %s] %d %s", m.path, m.names, m.format, m.reading, m.size, m.err)
}

// tell walks a file and collects what is visited.
func tell(t testing.TB, name string, content []byte, l Limits) (all []told) {
	t.Helper()
	w := Walker{Limits: l, Temp: func() Temp { return &memory{} }}
	err := w.Walk(context.Background(), name, bytes.NewReader(content), int64(len(content)), func(m Member) error {
		x := told{path: strings.Join(m.Path, " > "), names: m.Names, format: m.Format, reading: m.Reading, size: m.Size}
		if m.Content != nil {
			b, err := io.ReadAll(io.NewSectionReader(m.Content, 0, min(m.Size, 1<<20)))
			if err != nil {
				t.Errorf("%s: %v", x.path, err)
			}
			x.content = string(b)
		}
		if m.Err != nil {
			var e *Error
			if !errors.As(m.Err, &e) {
				t.Errorf("%s: %T", x.path, m.Err)
			}
			x.err = m.Err.Error()
		}
		all = append(all, x)
		return nil
	})
	if err != nil {
		t.Errorf("%s: %v", name, err)
	}
	return all
}

// holds reports whether a member of that name has that content, without an
// error; "" is any name.
func holds(all []told, name string, content []byte) bool {
	for _, m := range all {
		named := name == "" || strings.HasSuffix(m.path, name)
		for _, n := range m.names {
			named = named || strings.HasSuffix(n, name)
		}
		if named && m.content == string(content) && m.err == "" {
			return true
		}
	}
	return false
}

// says reports whether some member has an error with that text.
func says(all []told, text string) bool {
	for _, m := range all {
		if strings.Contains(m.err, text) {
			return true
		}
	}
	return false
}

func fixture(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	if strings.HasSuffix(name, ".iso.gz") {
		r, err := gzip.NewReader(bytes.NewReader(b))
		if err != nil {
			t.Fatal(err)
		}
		if b, err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
	}
	return b
}

// TestMade walks archives that other programs have made: 7-Zip, gcab,
// genisoimage, bzip2, xz, arj.
func TestMade(t *testing.T) {
	const exe = "tiny.exe"
	for _, c := range []struct {
		file, name string // the program's name in it
		err        string // instead of the program, or beside it
		both       bool
	}{
		{file: "lzma2.7z", name: exe},
		{file: "lzma.7z", name: exe},
		{file: "ppmd.7z", name: exe},
		{file: "bzip2.7z", name: exe},
		{file: "deflate.7z", name: exe},
		{file: "copy.7z", name: exe},
		{file: "bcj2.7z", name: exe},
		{file: "encrypted.7z", name: exe, err: "7z: encrypted"},
		{file: "encrypted-names.7z", err: "7z: encrypted"},
		{file: "encrypted.zip", name: exe, err: "zip: encrypted"},
		{file: "aes.zip", name: exe, err: "zip: encrypted"},
		{file: "Copy.zip", name: exe},
		{file: "Deflate.zip", name: exe},
		{file: "Deflate64.zip", name: exe, err: "zip: unsupported: method 9"},
		{file: "BZip2.zip", name: exe},
		{file: "LZMA.zip", name: exe},
		{file: "xz.zip", name: exe},
		{file: "PPMd.zip", name: exe, err: "zip: unsupported: method 98"},
		{file: "stored.cab", name: exe},
		{file: "mszip.cab", name: exe},
		{file: "plain.iso.gz", name: "A_LONG_N.EXE"},
		{file: "joliet.iso.gz", name: "A long name of a program.exe"},
		{file: "udf.iso.gz", name: "A_LONG_N.EXE", err: "udf: unsupported", both: true},
		{file: "tiny.exe.bz2", name: exe},
		{file: "tiny.exe.xz", name: exe},
		{file: "tiny.exe.lzma", name: exe},
		{file: "tiny.tar", name: exe},
		{file: "tiny.arj", err: "arj: unsupported"},
	} {
		all := tell(t, c.file, fixture(t, c.file), Limits{})
		if (c.err == "" || c.both) && !holds(all, c.name, program) || c.err != "" && !says(all, c.err) || c.err == "" && says(all, ":") {
			t.Errorf("%s: want %s %s", c.file, c.name, c.err)
			for _, m := range all {
				t.Logf("  %v", m)
			}
		}
	}
}
