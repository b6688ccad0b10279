package archive

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/postern-mta/postern/filters/execban/archive/archivetest"
)

// fuzz walks what comes with narrow limits and checks that they are kept, that
// everything visited can be read, and that nothing of ours panics; ours is what
// is not the work of a library.
func fuzz(f *testing.F, ours bool, seeds ...[]byte) {
	for _, s := range seeds {
		f.Add(s)
	}
	limits := Limits{Depth: 3, Members: 50, Bytes: 4 << 20, Member: 1 << 20, Dictionary: 1 << 20, Ratio: 100}
	f.Fuzz(func(t *testing.T, content []byte) {
		if len(content) > 256<<10 {
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		members, total := 0, int64(0)
		w := Walker{Limits: limits, Temp: func() Temp { return &memory{} }}
		err := w.Walk(ctx, "x", bytes.NewReader(content), int64(len(content)), func(m Member) error {
			members++
			var e *Error
			if m.Err != nil && !errors.As(m.Err, &e) {
				t.Errorf("an error of type %T", m.Err)
			}
			if ours && e != nil && strings.Contains(e.Detail, "panic") {
				t.Errorf("%v", e)
			}
			if m.Content == nil {
				return nil
			}
			if m.Size > limits.Member && m.Size > int64(len(content)) {
				t.Errorf("a member of %d bytes", m.Size)
			}
			total += m.Size
			if n, err := io.Copy(io.Discard, io.NewSectionReader(m.Content, 0, m.Size)); err != nil || n != m.Size {
				t.Errorf("%d bytes of %d: %v", n, m.Size, err)
			}
			return nil
		})
		if err != nil {
			t.Errorf("%v", err)
		}
		// Archives that are found to be wrong are told beside the members.
		if members > 4*limits.Members+50 || total > limits.Bytes+int64(len(content)) {
			t.Errorf("%d members, %d bytes", members, total)
		}
	})
}

func FuzzZip(f *testing.F) {
	text := archivetest.Member{Name: "readme.txt", Content: []byte("nothing here")}
	exe := archivetest.Member{Name: "a.exe", Content: program, Method: zipDeflate}
	streamed, hidden := exe, exe
	streamed.Descriptor, hidden.Unlisted = true, true
	fuzz(f, true, archivetest.Zip("", text, exe), archivetest.Zip("junk", streamed, text), archivetest.Zip("", text, hidden), archivetest.Zip64(text), overlapping(3), nest(program, 3),
		fixture(f, "LZMA.zip"), fixture(f, "BZip2.zip"), fixture(f, "xz.zip"), fixture(f, "aes.zip"), fixture(f, "encrypted.zip"))
}

func FuzzSevenZip(f *testing.F) {
	fuzz(f, false, fixture(f, "lzma2.7z"), fixture(f, "lzma.7z"), fixture(f, "ppmd.7z"), fixture(f, "bzip2.7z"), fixture(f, "copy.7z"),
		fixture(f, "bcj2.7z"), fixture(f, "encrypted.7z"), fixture(f, "encrypted-names.7z"), sevenZipWithFiles(f))
}

// FuzzSevenZipHeader reads headers without the checksums that stand before the
// library; no panic is caught here.
func FuzzSevenZipHeader(f *testing.F) {
	for _, name := range []string{"copy.7z", "lzma.7z", "lzma2.7z"} {
		b := fixture(f, name)
		f.Add(b[32+int(b[12])+int(b[13])<<8:])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		p := &szParser{walk: &walk{limits: Limits{}.defaults()}, b: b}
		kind, err := p.header()
		if err == nil && kind != szHeader && kind != szEncodedHeader {
			t.Errorf("kind %d", kind)
		}
	})
}

func FuzzRAR(f *testing.F) {
	fuzz(f, false, archivetest.RAR4(0, [2]string{"a.exe", string(program)}), archivetest.RAR4(4, [2]string{"a.exe", "x"}), archivetest.RAR5([2]string{"a.exe", string(program)}))
}

func FuzzCabinet(f *testing.F) {
	fuzz(f, true, fixture(f, "stored.cab"), fixture(f, "mszip.cab"))
}

func FuzzStream(f *testing.F) {
	fuzz(f, true, gzipped(f, program), xzed(f, program, 1<<16), fixture(f, "tiny.exe.bz2"), fixture(f, "tiny.exe.lzma"), fixture(f, "tiny.exe.xz"),
		append([]byte("\x50\x2a\x4d\x18\x04\x00\x00\x00skip"), "\x28\xb5\x2f\xfd"...), []byte("LZIP\x01\x0c"))
}

func FuzzTar(f *testing.F) {
	fuzz(f, true, tarred(f, &tar.Header{Name: "a.exe"}), tarred(f, &tar.Header{Name: strings.Repeat("long/", 60) + "a.exe"}), fixture(f, "tiny.tar"))
}

func FuzzISO(f *testing.F) {
	for _, name := range []string{"plain.iso.gz", "joliet.iso.gz", "udf.iso.gz"} {
		image := fixture(f, name)
		f.Add(image[isoDescriptors*isoSector : min(len(image), 100<<10)])
	}
	limits := Limits{Members: 100}.defaults()
	f.Fuzz(func(t *testing.T, b []byte) {
		n := node{path: []string{"x"}, size: int64(len(b)) + isoDescriptors*isoSector}
		n.r = bytes.NewReader(append(make([]byte, isoDescriptors*isoSector), b...))
		k := &walk{limits: limits, ctx: context.Background(), buffer: make([]byte, 64<<10), far: make([]byte, farLength), visit: func(Member) error { return nil }, temp: func() Temp { return &memory{} }}
		_ = walkISO(k, n)
		if k.members > limits.Members+1 {
			t.Errorf("%d members", k.members)
		}
	})
}

func FuzzTNEF(f *testing.F) {
	fuzz(f, true, archivetest.TNEF("a.exe", "long.exe", program, nil), archivetest.TNEF("a.exe", "long.exe", nil, program))
}

func FuzzOLE(f *testing.F) {
	fuzz(f, false, archivetest.OLE([2]string{"ObjectPool/\x01Ole10Native", archivetest.Package("a.exe", program)}), archivetest.OLE([2]string{"WordDocument", "x"}, [2]string{"EncryptedPackage", "x"}))
}

func FuzzOneNote(f *testing.F) {
	fuzz(f, true, archivetest.OneNote([]byte("text"), program), archivetest.OneNote(gzipped(f, program)))
}
