package archive

import (
	"bytes"
	"strings"
	"testing"

	"github.com/postern-mta/postern/filters/execban/archive/archivetest"
)

func TestZip(t *testing.T) {
	text := archivetest.Member{Name: "readme.txt", Content: []byte("nothing here")}
	exe := archivetest.Member{Name: "a.exe", Content: program}
	packed := archivetest.Member{Name: "a.exe", Content: program, Method: zipDeflate}
	streamed := packed
	streamed.Descriptor = true
	storedStream := exe
	storedStream.Descriptor = true
	hidden := packed
	hidden.Unlisted = true
	renamed := packed
	renamed.Local, renamed.Name = "a.exe", "a.txt"
	lying := packed
	lying.ListedSize = 3
	short := packed
	short.LocalPacked = 5
	otherMethod := packed
	otherMethod.LocalMethod = 99
	unencrypted := packed
	unencrypted.Flags = zipEncryptedFlag
	further := packed
	further.Name, further.LocalExtra = "a.txt", archivetest.UnicodePath("a.exe")
	twoDirectories := func() []byte {
		b, first, n := archivetest.ZipParts("", 0, text)
		more, second, m := archivetest.ZipParts("", len(b), packed)
		b = append(b, more...)
		at := len(b)
		b = append(append(b, first...), archivetest.ZipEnd(n, len(first), at, "")...)
		at = len(b)
		return append(append(b, second...), archivetest.ZipEnd(m, len(second), at, "")...)
	}()
	inComment := func() []byte {
		inner := archivetest.Zip("", packed)
		b, directory, n := archivetest.ZipParts("", 0, text)
		at := len(b)
		return append(append(b, directory...), archivetest.ZipEnd(n, len(directory), at, string(inner))...)
	}()
	concatenated := append(archivetest.Zip("", packed), archivetest.Zip("", text)...)
	for _, c := range []struct {
		what    string
		content []byte
		name    string // of the program; "" means that it cannot be had
		err     string // "" means that there is none
	}{
		{"stored", archivetest.Zip("", text, exe), "a.exe", ""},
		{"deflated", archivetest.Zip("", text, packed), "a.exe", ""},
		{"with descriptors", archivetest.Zip("", streamed, text, streamed), "a.exe", ""},
		{"stored with a descriptor", archivetest.Zip("", storedStream, text), "a.exe", ""},
		{"64", archivetest.Zip64(exe), "a.exe", ""},
		{"behind other bytes", archivetest.Zip(strings.Repeat("junk", 50_000), packed), "a.exe", ""},
		{"behind a program", archivetest.Zip(string(program), text, packed), "a.exe", ""},
		{"before other bytes", append(archivetest.Zip("", packed), bytes.Repeat([]byte("x"), 100_000)...), "a.exe", ""},
		{"a bad name", archivetest.Zip("", archivetest.Member{Name: "../../etc/x.exe", Content: program}), "../../etc/x.exe", ""},
		{"an absolute name", archivetest.Zip("", archivetest.Member{Name: `C:\x.exe`, Content: program}), `C:\x.exe`, ""},
		{"the same name twice", archivetest.Zip("", archivetest.Member{Name: "a", Content: []byte("x")}, archivetest.Member{Name: "a", Content: program}), "a", ""},
		{"a further name", archivetest.Zip("", further), "a.exe", "contradictory"},
		{"in no directory", archivetest.Zip("", text, hidden), "a.exe", "contradictory"},
		{"in no directory, in the middle", archivetest.Zip("", text, hidden, text), "a.exe", "contradictory"},
		{"two names", archivetest.Zip("", renamed), "a.exe", "contradictory"},
		{"a directory that lies of sizes", archivetest.Zip("", lying), "a.exe", "contradictory"},
		{"a header that lies of sizes", archivetest.Zip("", short), "a.exe", "contradictory"},
		{"a header that lies of the method", archivetest.Zip("", otherMethod), "a.exe", "contradictory"},
		{"two directories", twoDirectories, "a.exe", "contradictory"},
		{"in the comment", inComment, "a.exe", "contradictory"},
		{"one after the other", concatenated, "a.exe", "contradictory"},
		{"no directory", archivetest.Zip("", text, packed)[:len(archivetest.Zip("", text, packed))-80], "a.exe", "damaged"},
		{"not encrypted", archivetest.Zip("", unencrypted), "a.exe", ""},
		{"a method that is not known", archivetest.Zip("", archivetest.Member{Name: "a.exe", Content: program, Method: 6}), "", "unsupported"},
		{"cut off", archivetest.Zip("", exe)[:100], "", "damaged"},
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
