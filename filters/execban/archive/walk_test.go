package archive

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"runtime"
	"strings"
	"testing"
	"unicode/utf16"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"

	"github.com/postern-mta/postern/filters/execban/archive/archivetest"
)

func packed(t testing.TB, content []byte, open func(io.Writer) (io.WriteCloser, error)) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := open(&b)
	if err == nil {
		_, err = w.Write(content)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func gzipped(t testing.TB, content []byte) []byte {
	return packed(t, content, func(w io.Writer) (io.WriteCloser, error) { return gzip.NewWriterLevel(w, 9) })
}

func xzed(t testing.TB, content []byte, dictionary int) []byte {
	return packed(t, content, func(w io.Writer) (io.WriteCloser, error) { return xz.WriterConfig{DictCap: dictionary}.NewWriter(w) })
}

func tarred(t testing.TB, headers ...*tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		if h.Typeflag == 0 {
			h.Typeflag, h.Size = tar.TypeReg, int64(len(program))
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if h.Size > 0 {
			w.Write(program)
		}
	}
	w.Close()
	return b.Bytes()
}

// TestFormats walks archives that the test has made.
func TestFormats(t *testing.T) {
	prog := string(program)
	zstded := packed(t, program, func(w io.Writer) (io.WriteCloser, error) { return zstd.NewWriter(w) })
	unicodeName := func(s string) (b string) {
		for _, u := range utf16.Encode([]rune(s)) {
			b += string([]byte{byte(u), byte(u >> 8)})
		}
		return b
	}
	large := prog + strings.Repeat("\x00", 4096)
	for _, c := range []struct {
		what    string
		content []byte
		name    string
		want    string
		err     string
	}{
		{"gzip", gzipped(t, program), "x", prog, ""},
		{"two gzips in one", append(gzipped(t, program[:100]), gzipped(t, program[100:])...), "x", prog, ""},
		{"gzip before other bytes", append(gzipped(t, program), "trailing"...), "x", prog, ""},
		{"xz", xzed(t, program, 1<<20), "x", prog, ""},
		{"two xz in one", append(append(xzed(t, program[:100], 1<<20), 0, 0, 0, 0), xzed(t, program[100:], 1<<20)...), "x", prog, ""},
		{"zstd", zstded, "x", prog, ""},
		{"zstd behind a frame that is skipped", append([]byte("\x50\x2a\x4d\x18\x04\x00\x00\x00skip"), zstded...), "x", prog, ""},
		{"tar", tarred(t, &tar.Header{Name: "../a.exe"}), "../a.exe", prog, ""},
		{"tar of PAX", tarred(t, &tar.Header{Name: strings.Repeat("long/", 60) + "a.exe"}), "a.exe", prog, ""},
		{"tar in gzip", gzipped(t, tarred(t, &tar.Header{Name: "a.exe"})), "x > a.exe", prog, ""},
		{"rar 4", archivetest.RAR4(0, [2]string{"a.exe", prog}), "a.exe", prog, ""},
		{"rar 4, encrypted", archivetest.RAR4(4, [2]string{"a.exe", prog}), "", "", "rar: encrypted"},
		{"rar 5", archivetest.RAR5([2]string{"readme", "text"}, [2]string{"a.exe", prog}), "a.exe", prog, ""},
		{"rar behind a program", append(bytes.Clone(program), archivetest.RAR5([2]string{"a.exe", prog})...), "a.exe", prog, ""},
		{"cabinet behind other bytes", append([]byte("junk"), fixture(t, "mszip.cab")...), "tiny.exe", prog, ""},
		{"7z behind other bytes", append(bytes.Repeat([]byte("junk"), 1000), fixture(t, "lzma2.7z")...), "tiny.exe", prog, ""},
		{"7z behind others' beginnings", append([]byte("Rar!\x1a\x07\x007z\xbc\xaf\x27\x1c7z\xbc\xaf\x27\x1cMSCF\x00\x00\x00\x00"), fixture(t, "lzma2.7z")...), "tiny.exe", prog, "rar: "},
		{"7z behind a program, encrypted", append(bytes.Clone(program), fixture(t, "encrypted-names.7z")...), "", "", "7z: encrypted"},
		{"tnef", archivetest.TNEF("a.exe", "document.txt", program, nil), "a.exe", prog, ""},
		{"tnef, in the properties", archivetest.TNEF("A.TXT", "a long name.exe", nil, program), "a long name.exe", prog, ""},
		{"tnef, cut off", archivetest.TNEF("a.exe", "", program, nil)[:360], "a.exe", prog, "tnef: damaged"},
		{"ole", archivetest.OLE([2]string{"WordDocument", large}), "WordDocument", large, ""},
		{"embedded package", archivetest.OLE([2]string{"ObjectPool/\x01Ole10Native", archivetest.Package("a.exe", program)}), "a.exe", prog, ""},
		{"encrypted document", archivetest.OLE([2]string{"EncryptedPackage", large}), "", "", "ole: encrypted"},
		{"Outlook message", archivetest.OLE(
			[2]string{"__attach_version1.0_#00000000/__substg1.0_3707001F", unicodeName("a.exe")},
			[2]string{"__attach_version1.0_#00000000/__substg1.0_37010102", large}), "", large, ""},
		{"installer package", archivetest.OLE([2]string{"\u4840\u3fff\u4777\u44e4", large}), "", large, ""},
		{"onenote", archivetest.OneNote([]byte("text"), program), "embedded file 2", prog, ""},
		{"lzip", []byte("LZIP\x01\x0c"), "", "", "lzip: damaged"},
		{"lzh", []byte("\x20\x00-lh5-" + strings.Repeat("\x00", 40)), "", "", "lzh: unsupported"},
		{"ace", []byte("1234567**ACE**" + strings.Repeat("\x00", 40)), "", "", "ace: unsupported"},
		{"zip in zip in tar in gzip", gzipped(t, archivetest.Zip("", archivetest.Member{Name: "b.zip", Method: zipDeflate, Content: archivetest.Zip("", archivetest.Member{Name: "a.exe", Content: program})})), "x > b.zip > a.exe", prog, ""},
		{"in a cabinet in onenote", archivetest.OneNote(fixture(t, "mszip.cab")), "embedded file 1 > tiny.exe", prog, ""},
	} {
		all := tell(t, "x", c.content, Limits{})
		if c.want != "" && !holds(all, c.name, []byte(c.want)) || c.err == "" && says(all, ":") || c.err != "" && !says(all, c.err) {
			t.Errorf("%s: want %q, error %q", c.what, c.name, c.err)
			for _, m := range all {
				t.Logf("  %v", m)
			}
		}
	}
}

// nest puts a file into zips.
func nest(content []byte, depth int) []byte {
	for range depth {
		content = archivetest.Zip("", archivetest.Member{Name: "n.zip", Content: content, Method: zipDeflate})
	}
	return content
}

func TestLimits(t *testing.T) {
	zeros := make([]byte, 1<<20)
	many := make([]archivetest.Member, 50)
	for i := range many {
		many[i] = archivetest.Member{Name: fmt.Sprint(i), Content: []byte("x")}
	}
	wide := archivetest.Member{Name: "zeros", Content: zeros, Method: zipDeflate}
	for _, c := range []struct {
		what    string
		content []byte
		limits  Limits
		err     string
		members int // at most
	}{
		{"depth", nest([]byte("x"), 9), Limits{}, "inside one another", 10},
		{"depth that is allowed", nest([]byte("x"), 8), Limits{}, "", 8},
		{"members", archivetest.Zip("", many...), Limits{Members: 20}, "more than 20 members", 21},
		{"member", archivetest.Zip("", wide), Limits{Member: 1000}, "more than 1000 bytes", 1},
		{"bytes", archivetest.Zip("", wide, wide, wide), Limits{Bytes: 3 << 19}, "bytes unpacked", 2},
		{"dictionary of xz", xzed(t, program, 32<<20), Limits{Dictionary: 1 << 20}, "xz: over a limit: a dictionary", 1},
		{"dictionary of 7z", fixture(t, "lzma2.7z"), Limits{Dictionary: 16}, "7z: over a limit: a dictionary", 1},
		{"dictionary of lzma", lzmaHeader(0xfffffff0), Limits{}, "lzma: over a limit: a dictionary", 1},
		{"7z that says it has many files", sevenZipWithFiles(t), Limits{}, "7z: over a limit", 1},
	} {
		all := tell(t, "x", c.content, c.limits)
		if c.err == "" && says(all, ":") || c.err != "" && !says(all, c.err) || len(all) > c.members {
			t.Errorf("%s: want error %q, at most %d members", c.what, c.err, c.members)
			for _, m := range all {
				t.Logf("  %v", m)
			}
		}
	}
}

func lzmaHeader(dictionary uint32) []byte {
	b := []byte{0x5d, byte(dictionary), byte(dictionary >> 8), byte(dictionary >> 16), byte(dictionary >> 24)}
	b[1], b[2] = 0, 0
	return append(append(b, bytes.Repeat([]byte{0xff}, 8)...), make([]byte, 20)...)
}

// sevenZipWithFiles is a 7z whose header says that four thousand million files
// follow.
func sevenZipWithFiles(t testing.TB) []byte {
	b := append(bytes.Clone(fixture(t, "copy.7z")[:32]), 1, 5, 0xf0, 0xff, 0xff, 0xff, 0xff, 0)
	copy(b[12:], make([]byte, 20))
	b[20] = 8
	binary.LittleEndian.PutUint32(b[8:], crc32.ChecksumIEEE(b[12:32]))
	return b
}

// TestBombs unpacks what grows without end, and looks at the memory.
func TestBombs(t *testing.T) {
	layer := archivetest.Zip("", archivetest.Member{Name: "zeros", Content: make([]byte, 17<<20), Method: zipDeflate})
	for range 4 { // 16 of each inside one another, as in 42.zip
		var members []archivetest.Member
		for i := range 16 {
			members = append(members, archivetest.Member{Name: fmt.Sprintf("%d.zip", i), Content: layer, Method: zipDeflate})
		}
		layer = archivetest.Zip("", members...)
	}
	for _, c := range []struct {
		what    string
		content []byte
	}{
		{"zips in zips", layer},
		{"500 MB of zeros", zeros(t, 50)},
		{"overlapping members", overlapping(1000)},
	} {
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		limited, most := false, int64(0)
		space := 128 << 20
		w := Walker{Temp: func() Temp { return &firstBytes{memory{left: &space}} }, Limits: Limits{Members: 2000, Bytes: 24 << 20}}
		err := w.Walk(context.Background(), "x", bytes.NewReader(c.content), int64(len(c.content)), func(m Member) error {
			var e *Error
			limited = limited || errors.As(m.Err, &e) && e.Class == OverLimit
			most = max(most, m.Size)
			return nil
		})
		runtime.ReadMemStats(&after)
		if err != nil || !limited {
			t.Errorf("%s: limited %v, %v", c.what, limited, err)
		}
		t.Logf("%s, %d bytes: largest member %d, %d MiB allocated in all", c.what, len(c.content), most, (after.TotalAlloc-before.TotalAlloc)>>20)
	}
}

// firstBytes keeps the first bytes of what is written only.
type firstBytes struct{ memory }

func (c *firstBytes) Write(p []byte) (int, error) {
	if len(c.b) > 1<<20 {
		return len(p), nil
	}
	return c.memory.Write(p)
}

func (c *firstBytes) ReadAt(p []byte, off int64) (int, error) {
	n, err := c.memory.ReadAt(p, off)
	if err == io.EOF {
		return n, err
	}
	return n, err
}

// zeros is a gzip file of n times 10 MiB.
func zeros(t testing.TB, n int) []byte {
	t.Helper()
	return bytes.Repeat(gzipped(t, make([]byte, 10<<20)), n)
}

// overlapping is a zip whose directory lists one member many times.
func overlapping(times int) []byte {
	b, directory, _ := archivetest.ZipParts("", 0, archivetest.Member{Name: "x", Content: bytes.Repeat(program, 1000)})
	at := len(b)
	b = append(b, bytes.Repeat(directory, times)...)
	return append(b, archivetest.ZipEnd(times, times*len(directory), at, "")...)
}

func TestWalkEnds(t *testing.T) {
	content := archivetest.Zip("", archivetest.Member{Name: "a", Content: program}, archivetest.Member{Name: "b", Content: program})
	w := Walker{Temp: func() Temp { return &memory{} }}
	mine, visits := errors.New("enough for me"), 0
	err := w.Walk(context.Background(), "x", bytes.NewReader(content), int64(len(content)), func(Member) error { visits++; return mine })
	if !errors.Is(err, mine) || visits != 1 {
		t.Errorf("a visit's error: %v after %d visits", err, visits)
	}
	ctx, cancel := context.WithCancel(context.Background())
	err = w.Walk(ctx, "x", bytes.NewReader(content), int64(len(content)), func(Member) error { cancel(); return nil })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("a context that ended: %v", err)
	}
	space := 10
	w.Temp = func() Temp { return &memory{left: &space} }
	content = gzipped(t, program)
	err = w.Walk(context.Background(), "x", bytes.NewReader(content), int64(len(content)), func(m Member) error {
		var e *Error
		if !errors.As(m.Err, &e) || e.Class != OverLimit {
			t.Errorf("no temporary space: %v", m.Err)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

func TestIsArchive(t *testing.T) {
	for _, c := range []struct {
		content []byte
		want    string
	}{
		{program, "[]"},
		{archivetest.Zip("", archivetest.Member{Name: "a"}), "[zip]"},
		{append(gzipped(t, program), archivetest.Zip("", archivetest.Member{Name: "a"})...), "[gzip zip]"},
		{fixture(t, "joliet.iso.gz"), "[iso]"},
		{bytes.Repeat([]byte("text "), 1000), "[]"},
	} {
		if got := fmt.Sprint(IsArchive(bytes.NewReader(c.content), int64(len(c.content)))); got != c.want {
			t.Errorf("%.20q: %s, want %s", c.content, got, c.want)
		}
	}
}

func TestStripped(t *testing.T) {
	for name, want := range map[string]string{
		"a.tgz": "a.tar", "a.txt.gz": "a.txt", "a": "a", "a.TXZ": "a.tar", "a.svgz": "a.svg", "": "", "dir.d/a": "dir.d/a",
	} {
		if got := stripped(name); got != want {
			t.Errorf("%q: %q, want %q", name, got, want)
		}
	}
}
