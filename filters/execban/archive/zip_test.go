package archive

import (
	"bytes"
	"compress/flate"
	"encoding/binary"
	"hash/crc32"
	"strings"
	"testing"
)

// zipMember is a member that a test writes, its records lying as they please.
type zipMember struct {
	name, local           string // in the directory, and in the header if it is another
	content               []byte
	method, localMethod   uint16
	flags                 uint16
	descriptor            bool  // sizes follow the content
	noCentral             bool  // in no directory
	centralSize           int64 // what the directory says of the size, if not 0
	localPacked           int64 // what the header says of the packed size, if not 0
	localExtra, centExtra []byte
}

// zipOf writes a zip: prefix, members, directory, last record.
func zipOf(prefix string, members ...zipMember) []byte {
	b, directory, count := zipBody(prefix, 0, members...)
	return append(append(b, directory...), zipLast(count, len(directory), len(b)-len(prefix), "")...)
}

// zipBody writes members and makes their directory, whose offsets are shifted.
func zipBody(prefix string, shift int, members ...zipMember) (b, directory []byte, count int) {
	le := binary.LittleEndian
	b = []byte(prefix)
	for _, m := range members {
		packed := m.content
		if m.method == zipDeflate {
			var out bytes.Buffer
			w, _ := flate.NewWriter(&out, 9)
			w.Write(m.content)
			w.Close()
			packed = out.Bytes()
		}
		flags, local, localMethod := m.flags, m.local, m.localMethod
		if m.descriptor {
			flags |= zipDescriptorFlag
		}
		if local == "" {
			local = m.name
		}
		if localMethod == 0 {
			localMethod = m.method
		}
		sum, at := crc32.ChecksumIEEE(m.content), len(b)
		h := append([]byte(zipLocal), make([]byte, zipLocalLength-4)...)
		le.PutUint16(h[4:], 20)
		le.PutUint16(h[6:], flags)
		le.PutUint16(h[8:], localMethod)
		if !m.descriptor {
			le.PutUint32(h[14:], sum)
			le.PutUint32(h[18:], uint32(len(packed)))
			if m.localPacked != 0 {
				le.PutUint32(h[18:], uint32(m.localPacked))
			}
			le.PutUint32(h[22:], uint32(len(m.content)))
		}
		le.PutUint16(h[26:], uint16(len(local)))
		le.PutUint16(h[28:], uint16(len(m.localExtra)))
		b = append(append(append(append(b, h...), local...), m.localExtra...), packed...)
		if m.descriptor {
			d := append([]byte("PK\x07\x08"), make([]byte, 12)...)
			le.PutUint32(d[4:], sum)
			le.PutUint32(d[8:], uint32(len(packed)))
			le.PutUint32(d[12:], uint32(len(m.content)))
			b = append(b, d...)
		}
		if m.noCentral {
			continue
		}
		count++
		c := append([]byte(zipCentral), make([]byte, zipCentralLength-4)...)
		le.PutUint16(c[8:], flags)
		le.PutUint16(c[10:], m.method)
		le.PutUint32(c[16:], sum)
		le.PutUint32(c[20:], uint32(len(packed)))
		le.PutUint32(c[24:], uint32(len(m.content)))
		if m.centralSize != 0 {
			le.PutUint32(c[20:], uint32(m.centralSize))
			le.PutUint32(c[24:], uint32(m.centralSize))
		}
		le.PutUint16(c[28:], uint16(len(m.name)))
		le.PutUint16(c[30:], uint16(len(m.centExtra)))
		le.PutUint32(c[42:], uint32(at-len(prefix)+shift))
		directory = append(append(append(directory, c...), m.name...), m.centExtra...)
	}
	return b, directory, count
}

func zipLast(count, size, offset int, comment string) []byte {
	le := binary.LittleEndian
	e := append([]byte(zipEnd), make([]byte, zipEndLength-4)...)
	le.PutUint16(e[8:], uint16(count))
	le.PutUint16(e[10:], uint16(count))
	le.PutUint32(e[12:], uint32(size))
	le.PutUint32(e[16:], uint32(offset))
	le.PutUint16(e[20:], uint16(len(comment)))
	return append(e, comment...)
}

// zip64 is a zip whose sizes are all in the fields of version 4.5.
func zip64(m zipMember) []byte {
	le := binary.LittleEndian
	wide := func(values ...int) []byte {
		b := le.AppendUint16(nil, zipExtra64)
		b = le.AppendUint16(b, uint16(8*len(values)))
		for _, v := range values {
			b = le.AppendUint64(b, uint64(v))
		}
		return b
	}
	n := len(m.content)
	m.localExtra, m.centExtra = wide(n, n), wide(n, n, 0)
	b, directory, _ := zipBody("", 0, m)
	for _, at := range []int{18, 22} {
		le.PutUint32(b[at:], 0xffffffff)
	}
	for _, at := range []int{20, 24, 42} {
		le.PutUint32(directory[at:], 0xffffffff)
	}
	start := len(b)
	b = append(b, directory...)
	end := append([]byte(zipEnd64), make([]byte, zipEnd64Length-4)...)
	le.PutUint64(end[4:], zipEnd64Length-12)
	le.PutUint64(end[40:], uint64(len(directory)))
	le.PutUint64(end[48:], uint64(start))
	locator := append([]byte(zipLocator64), make([]byte, zipLocatorLength-4)...)
	le.PutUint64(locator[8:], uint64(len(b)))
	b = append(append(b, end...), locator...)
	return append(b, zipLast(0xffff, 0xffffffff, 0xffffffff, "")...)
}

// unicodePath is a further name of a member.
func unicodePath(name string) []byte {
	b := binary.LittleEndian.AppendUint16(nil, zipExtraUnicode)
	b = binary.LittleEndian.AppendUint16(b, uint16(len(name)+5))
	return append(append(b, 1, 0, 0, 0, 0), name...)
}

func TestZip(t *testing.T) {
	text := zipMember{name: "readme.txt", content: []byte("nothing here")}
	exe := zipMember{name: "a.exe", content: program}
	packed := zipMember{name: "a.exe", content: program, method: zipDeflate}
	streamed := packed
	streamed.descriptor = true
	storedStream := exe
	storedStream.descriptor = true
	hidden := packed
	hidden.noCentral = true
	renamed := packed
	renamed.local, renamed.name = "a.exe", "a.txt"
	lying := packed
	lying.centralSize = 3
	short := packed
	short.localPacked = 5
	otherMethod := packed
	otherMethod.localMethod = 99
	unencrypted := packed
	unencrypted.flags = zipEncryptedFlag
	further := packed
	further.name, further.localExtra = "a.txt", unicodePath("a.exe")
	twoDirectories := func() []byte {
		b, first, n := zipBody("", 0, text)
		more, second, m := zipBody("", len(b), packed)
		b = append(b, more...)
		at := len(b)
		b = append(append(b, first...), zipLast(n, len(first), at, "")...)
		at = len(b)
		return append(append(b, second...), zipLast(m, len(second), at, "")...)
	}()
	inComment := func() []byte {
		inner := zipOf("", packed)
		b, directory, n := zipBody("", 0, text)
		at := len(b)
		return append(append(b, directory...), zipLast(n, len(directory), at, string(inner))...)
	}()
	concatenated := append(zipOf("", packed), zipOf("", text)...)
	for _, c := range []struct {
		what    string
		content []byte
		name    string // of the program; "" means that it cannot be had
		err     string // "" means that there is none
	}{
		{"stored", zipOf("", text, exe), "a.exe", ""},
		{"deflated", zipOf("", text, packed), "a.exe", ""},
		{"with descriptors", zipOf("", streamed, text, streamed), "a.exe", ""},
		{"stored with a descriptor", zipOf("", storedStream, text), "a.exe", ""},
		{"64", zip64(exe), "a.exe", ""},
		{"behind other bytes", zipOf(strings.Repeat("junk", 50_000), packed), "a.exe", ""},
		{"behind a program", zipOf(string(program), text, packed), "a.exe", ""},
		{"before other bytes", append(zipOf("", packed), bytes.Repeat([]byte("x"), 100_000)...), "a.exe", ""},
		{"a bad name", zipOf("", zipMember{name: "../../etc/x.exe", content: program}), "../../etc/x.exe", ""},
		{"an absolute name", zipOf("", zipMember{name: `C:\x.exe`, content: program}), `C:\x.exe`, ""},
		{"the same name twice", zipOf("", zipMember{name: "a", content: []byte("x")}, zipMember{name: "a", content: program}), "a", ""},
		{"a further name", zipOf("", further), "a.exe", "contradictory"},
		{"in no directory", zipOf("", text, hidden), "a.exe", "contradictory"},
		{"in no directory, in the middle", zipOf("", text, hidden, text), "a.exe", "contradictory"},
		{"two names", zipOf("", renamed), "a.exe", "contradictory"},
		{"a directory that lies of sizes", zipOf("", lying), "a.exe", "contradictory"},
		{"a header that lies of sizes", zipOf("", short), "a.exe", "contradictory"},
		{"a header that lies of the method", zipOf("", otherMethod), "a.exe", "contradictory"},
		{"two directories", twoDirectories, "a.exe", "contradictory"},
		{"in the comment", inComment, "a.exe", "contradictory"},
		{"one after the other", concatenated, "a.exe", "contradictory"},
		{"no directory", zipOf("", text, packed)[:len(zipOf("", text, packed))-80], "a.exe", "damaged"},
		{"not encrypted", zipOf("", unencrypted), "a.exe", ""},
		{"a method that is not known", zipOf("", zipMember{name: "a.exe", content: program, method: 6}), "", "unsupported"},
		{"cut off", zipOf("", exe)[:100], "", "damaged"},
	} {
		all := tell(t, "x.zip", c.content, Limits{})
		if (c.name != "") != holds(all, c.name, program) || c.err == "" && says(all, ":") || c.err != "" && !says(all, "zip: "+c.err) {
			t.Errorf("%s: want %q, error %q", c.what, c.name, c.err)
			for _, m := range all {
				t.Logf("  %v", m)
			}
		}
	}
}

// TestZipQuiet looks at files that are none.
func TestZipQuiet(t *testing.T) {
	for _, content := range []string{
		"", "PK", "text about PK\x03\x04 and PK\x05\x06 and PK\x01\x02", strings.Repeat("PK\x05\x06", 1000), string(program),
	} {
		if all := tell(t, "x", []byte(content), Limits{}); len(all) != 0 {
			t.Errorf("%.40q: %v", content, all)
		}
	}
}
