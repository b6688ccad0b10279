package execban

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kdomanski/iso9660"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"

	"github.com/postern-mta/postern/filters/execban/archive/archivetest"
)

// container is something that a file can lie in.
type container struct {
	name string
	ext  string
	make func(t testing.TB, r *rand.Rand, h hidden) []byte
}

func packWith(t testing.TB, content []byte, open func(io.Writer) (io.WriteCloser, error)) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := open(&b)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(content); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func zipped(h hidden) []byte {
	return archivetest.Zip("", archivetest.Member{Name: "readme.txt", Content: []byte("hello\n")}, archivetest.Member{Name: h.name, Content: h.content, Method: archivetest.Deflated})
}

// zipOf is a zip with one member, set up by do.
func zipOf(prefix string, do func(m *archivetest.Member)) func(testing.TB, *rand.Rand, hidden) []byte {
	return func(_ testing.TB, _ *rand.Rand, h hidden) []byte {
		m := archivetest.Member{Name: h.name, Content: h.content, Method: archivetest.Deflated}
		if do != nil {
			do(&m)
		}
		return archivetest.Zip(prefix, archivetest.Member{Name: "readme.txt", Content: []byte("hello\n")}, m)
	}
}

func tarOf(t testing.TB, h hidden) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.WriteHeader(&tar.Header{Name: h.name, Size: int64(len(h.content)), Mode: 0o644}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(h.content); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func isoOf(t testing.TB, _ *rand.Rand, h hidden) []byte {
	t.Helper()
	w, err := iso9660.NewWriter()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Cleanup() //nolint:errcheck // its directory is temporary
	if err := w.AddFile(bytes.NewReader(h.content), h.name); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := w.WriteTo(&b, "disk"); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// fixture is an archive with a tiny program, made by another program.
func fixture(name string) func(testing.TB, *rand.Rand, hidden) []byte {
	return func(t testing.TB, _ *rand.Rand, _ hidden) []byte {
		t.Helper()
		b, err := os.ReadFile(filepath.Join("archive", "testdata", name))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
}

// containers are what a file can lie in; the first is nothing.
func containers() []container {
	all := []container{
		{"nothing", "", nil},
		{"zip", "zip", zipOf("", nil)},
		{"zip, stored", "zip", zipOf("", func(m *archivetest.Member) { m.Method = 0 })},
		{"zip, sizes behind", "zip", zipOf("", func(m *archivetest.Member) { m.Descriptor = true })},
		{"zip, two names", "zip", zipOf("", func(m *archivetest.Member) { m.Local = "harmless.txt" })},
		{"zip, two names the other way", "zip", zipOf("", func(m *archivetest.Member) { m.Local, m.Name = m.Name, "harmless.txt" })},
		{"zip, not listed", "zip", zipOf("", func(m *archivetest.Member) { m.Unlisted = true })},
		{"zip, lying size", "zip", zipOf("", func(m *archivetest.Member) { m.ListedSize = 10 })},
		{"zip, another way out", "zip", zipOf("", func(m *archivetest.Member) { m.Name = "../../../" + m.Name })},
		{"zip, encrypted", "zip", zipOf("", func(m *archivetest.Member) { m.Flags = 1 })},
		{"zip behind other bytes", "jpg", zipOf("\xff\xd8\xff\xe0 a picture ", nil)},
		{"zip64", "zip", func(_ testing.TB, _ *rand.Rand, h hidden) []byte {
			return archivetest.Zip64(archivetest.Member{Name: h.name, Content: h.content})
		}},
		{"two zips, first", "zip", func(_ testing.TB, _ *rand.Rand, h hidden) []byte {
			return append(zipped(h), zipped(hidden{"a.txt", []byte("text")})...)
		}},
		{"two zips, last", "zip", func(_ testing.TB, _ *rand.Rand, h hidden) []byte {
			return append(zipped(hidden{"a.txt", []byte("text")}), zipped(h)...)
		}},
		{"zip, cut off", "zip", func(_ testing.TB, r *rand.Rand, h hidden) []byte {
			b := zipped(h)
			return b[:len(b)-1-r.IntN(30)]
		}},
		{"zip in zip", "zip", func(_ testing.TB, r *rand.Rand, h hidden) []byte {
			b := zipped(h)
			for range 1 + r.IntN(4) {
				b = zipped(hidden{"inner.zip", b})
			}
			return b
		}},
		{"zip in too many zips", "zip", func(_ testing.TB, _ *rand.Rand, h hidden) []byte {
			b := zipped(h)
			for range 12 {
				b = zipped(hidden{"inner.zip", b})
			}
			return b
		}},
		{"tar", "tar", func(t testing.TB, _ *rand.Rand, h hidden) []byte { return tarOf(t, h) }},
		{"tar in gzip", "tgz", func(t testing.TB, _ *rand.Rand, h hidden) []byte {
			return packWith(t, tarOf(t, h), func(w io.Writer) (io.WriteCloser, error) { return gzip.NewWriterLevel(w, 9) })
		}},
		{"tar in xz", "txz", func(t testing.TB, _ *rand.Rand, h hidden) []byte {
			return packWith(t, tarOf(t, h), func(w io.Writer) (io.WriteCloser, error) { return xz.NewWriter(w) })
		}},
		{"tar in zstd", "zst", func(t testing.TB, _ *rand.Rand, h hidden) []byte {
			return packWith(t, tarOf(t, h), func(w io.Writer) (io.WriteCloser, error) { return zstd.NewWriter(w) })
		}},
		{"rar 4", "rar", func(_ testing.TB, _ *rand.Rand, h hidden) []byte {
			return archivetest.RAR4(0, [2]string{h.name, string(h.content)})
		}},
		{"rar 5", "rar", func(_ testing.TB, _ *rand.Rand, h hidden) []byte {
			return archivetest.RAR5([2]string{"readme", "text"}, [2]string{h.name, string(h.content)})
		}},
		{"rar, encrypted", "rar", func(_ testing.TB, _ *rand.Rand, h hidden) []byte {
			return archivetest.RAR4(4, [2]string{h.name, string(h.content)})
		}},
		{"winmail.dat", "dat", func(_ testing.TB, _ *rand.Rand, h hidden) []byte {
			return archivetest.TNEF(h.name, "document.txt", h.content, nil)
		}},
		{"OneNote", "one", func(_ testing.TB, _ *rand.Rand, h hidden) []byte { return archivetest.OneNote(h.content) }},
		{"package in a document", "doc", func(_ testing.TB, _ *rand.Rand, h hidden) []byte {
			return archivetest.OLE([2]string{"ObjectPool/\x01Ole10Native", archivetest.Package(h.name, h.content)})
		}},
		{"ISO image", "iso", isoOf},
		{"message in a zip", "zip", func(_ testing.TB, _ *rand.Rand, h hidden) []byte {
			return zipped(hidden{"fwd.eml", []byte(head + plainMixed("Content-Type: application/octet-stream; name=\""+h.name+"\"\nContent-Transfer-Encoding: base64\n\n"+lines(h.content)))})
		}},
		{"zip in a winmail.dat", "dat", func(_ testing.TB, _ *rand.Rand, h hidden) []byte {
			return archivetest.TNEF("a.zip", "a.zip", zipped(h), nil)
		}},
	}
	for _, name := range []string{
		"lzma.7z", "lzma2.7z", "bzip2.7z", "ppmd.7z", "copy.7z", "deflate.7z", "bcj2.7z", "encrypted.7z", "encrypted-names.7z", "mszip.cab", "stored.cab", "tiny.exe.bz2", "tiny.exe.xz",
		"tiny.exe.lzma", "tiny.arj", "BZip2.zip", "Deflate64.zip", "LZMA.zip", "PPMd.zip", "aes.zip", "encrypted.zip",
	} {
		all = append(all, container{"made elsewhere: " + name, strings.TrimPrefix(filepath.Ext(name), "."), fixture(name)})
	}
	return all
}

// foreign is set where a container has a program of its own inside.
func (c container) foreign() bool { return strings.HasPrefix(c.name, "made elsewhere") }

// The payloads whose content tells what they are.
func payloads(t testing.TB) []hidden {
	t.Helper()
	project := archivetest.OLE([2]string{"VBA/_VBA_PROJECT", "\xcc\x61\x88\x00\x00\x01\x00"}, [2]string{"VBA/dir", "\x01\x20\x00"}, [2]string{"VBA/ThisDocument", "\x01\x20\x00\x00Attribut\x00e VB_Name"})
	return []hidden{
		{"notes", []byte("X5O!P%@AP[4\\PZX54(P^)7CC)7}$EICAR-" + "STANDARD-ANTIVIRUS-TEST-FILE!$H+H*")},
		{"notes", tinyPE()},
		{"notes", []byte("#!/bin/sh\nrm -rf \"$HOME\"\n")},
		{"notes", archivetest.OLE([2]string{"Macros/VBA/_VBA_PROJECT", "\xcc\x61\x88\x00\x00\x01\x00"}, [2]string{"Macros/VBA/dir", "\x01\x20\x00"}, [2]string{"WordDocument", strings.Repeat("\x00", 600)})},
		{"notes", archivetest.Zip("", archivetest.Member{Name: "[Content_Types].xml", Content: []byte(`<?xml version="1.0"?><Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types"><Override PartName="/word/vbaProject.bin" ContentType="application/vnd.ms-office.vbaProject"/></Types>`), Method: archivetest.Deflated},
			archivetest.Member{Name: "word/document.xml", Content: []byte(`<?xml version="1.0"?><w:document/>`)}, archivetest.Member{Name: "word/vbaProject.bin", Content: project, Method: archivetest.Deflated})},
	}
}

var payloadNames = []string{"EICAR", "program", "script", "macro document", "OOXML with macros"}

// badNames are those that tell by themselves; the content is harmless.
func badNames() []hidden {
	var all []hidden
	for _, ext := range []string{"exe", "scr", "js", "vbs", "lnk", "hta", "jar", "docm", "iso", "chm", "msi", "ps1"} {
		all = append(all, hidden{"invoice." + ext, []byte("There is nothing to see here.\n")})
	}
	return all
}

func (h hidden) String() string { return fmt.Sprintf("%s (%d bytes)", h.name, len(h.content)) }
