package content

import (
	"bytes"
	"encoding/binary"
	"io"
)

const (
	headLength = 64 << 10 // what most kinds are recognised by, in bytes
	tailLength = 1 << 10
	textLength = 1 << 20 // how much of a document is searched
)

// file is what is looked at.
type file struct {
	r    io.ReaderAt
	size int64
	head []byte
	tail []byte
}

// piece reads a part of the file, as much of it as there is.
func (f *file) piece(at, length int64) []byte {
	if at < 0 || at >= f.size {
		return nil
	}
	b := make([]byte, min(length, f.size-at))
	n, _ := f.r.ReadAt(b, at)
	return b[:max(n, 0)]
}

// kind is a kind of file: magic stands at the offset at, and test holds.
type kind struct {
	class, what string
	magic       string
	at          int
	test        func(*file) bool
}

// kinds is what is told by a few bytes.
func kinds() []kind {
	return []kind{
		{WindowsExecutables, "a program for Windows or DOS", "MZ", 0, isProgram},
		{WindowsExecutables, "a program for Windows or DOS", "ZM", 0, isProgram},
		{WindowsExecutables, "the test file of EICAR", eicarBegin, 0, isEICAR},
		{UnixExecutables, "a program for Unix", "\x7fELF", 0, nil},
		{MacExecutables, "a program for macOS", "\xfe\xed\xfa\xce", 0, nil},
		{MacExecutables, "a program for macOS", "\xfe\xed\xfa\xcf", 0, nil},
		{MacExecutables, "a program for macOS", "\xce\xfa\xed\xfe", 0, nil},
		{MacExecutables, "a program for macOS", "\xcf\xfa\xed\xfe", 0, nil},
		{MacExecutables, "a program for macOS", "\xca\xfe\xba\xbf", 0, nil},
		{MacExecutables, "a program for macOS", "\xca\xfe\xba\xbe", 0, func(f *file) bool { return fatArchitectures(f) < 40 }},
		{Java, "a class of Java", "\xca\xfe\xba\xbe", 0, func(f *file) bool { return fatArchitectures(f) >= 40 }},
		{Java, "packed classes of Java", "\xca\xfe\xd0\x0d", 0, nil},
		{Java, "a program in Java", "Manifest-Version:", 0, func(f *file) bool { return bytes.Contains(f.head, []byte("Main-Class:")) }},
		{Android, "a program for Android", "dex\n0", 0, nil},
		{Android, "a program for Android", "\x03\x00\x08\x00", 0, isAndroidManifest},
		{Flash, "Flash", "FWS", 0, isFlash},
		{Flash, "Flash", "CWS", 0, isFlash},
		{Flash, "Flash", "ZWS", 0, isFlash},
		{Shortcuts, "a shortcut of Windows", "\x4c\x00\x00\x00\x01\x14\x02\x00", 0, nil},
		{HelpFiles, "a help file", "ITSF\x03\x00\x00\x00", 0, nil},
		{HelpFiles, "a help file", "ITSF\x02\x00\x00\x00", 0, nil},
		{HelpFiles, "a help file", "\x3f\x5f\x03\x00", 0, nil},
		{Installers, "a package for Debian", "!<arch>\ndebian", 0, nil},
		{Installers, "a package of RPM", "\xed\xab\xee\xdb", 0, nil},
		{Installers, "a package for macOS", "xar!\x00\x1c", 0, nil},
		{Installers, "an extension of Chrome", "Cr24", 0, func(f *file) bool { return len(f.head) > 16 && f.head[4] <= 3 && f.head[5] == 0 }},
		{Installers, "an archive of InstallShield", "ISc(", 0, nil},
		{DiskImages, "an image of a CD", "CD001", 32769, nil},
		{DiskImages, "an image of a CD", "CD001", 37649, nil}, // sectors of 2352 bytes
		{DiskImages, "an image of a DVD", "BEA01", 32769, nil},
		{DiskImages, "a disk of Hyper-V", "vhdxfile", 0, nil},
		{DiskImages, "a disk of Hyper-V", "conectix", 0, nil},
		{DiskImages, "a disk of VMware", "KDMV", 0, nil},
		{DiskImages, "a disk of VMware", "COWD", 0, nil},
		{DiskImages, "a disk of VMware", "# Disk DescriptorFile", 0, nil},
		{DiskImages, "a disk of VirtualBox", "\x7f\x10\xda\xbe", 64, nil},
		{DiskImages, "a disk of QEMU", "QFI\xfb", 0, nil},
		{DiskImages, "an image of Windows", "MSWIM\x00\x00\x00", 0, nil},
		{DiskImages, "an image of a disk", "EFI PART", 512, nil},
		{DiskImages, "an image of a disk", "\x55\xaa", 510, isBootSector},
		{DiskImages, "an image of a disk", "\x53\xef", 0x438, isExt},
		{DiskImages, "an image of a disk", "hsqs", 0, func(f *file) bool { return f.size > 4096 }},
		{OfficeMacros, "the macros of a document", "ActiveMime", 0, nil},
		{Scripts, "a script", "#@~^", 0, nil}, // Script Encoder
		{Scripts, "compiled AppleScript", "FasdUAS ", 0, nil},
		{Scripts, "a script", "#!/", 0, nil}, // whatever follows: a shell reads on over a NUL
		{Scripts, "a script", "#! /", 0, nil},
	}
}

// Identify tells what a file of size bytes is by what it holds. The name, which
// may be "", serves only where the content alone would not do: a script may be
// plain text. What cannot be read is not looked at.
func Identify(name string, r io.ReaderAt, size int64) (all []Match) {
	f := &file{r: r, size: size}
	f.head = f.piece(0, headLength)
	if len(f.head) == 0 {
		return nil
	}
	f.tail = f.piece(max(0, size-tailLength), tailLength)
	for _, k := range kinds() {
		if len(f.head) >= k.at && bytes.HasPrefix(f.head[k.at:], []byte(k.magic)) && (k.test == nil || k.test(f)) {
			all = add(all, Match{Class: k.class, What: k.what})
		}
	}
	if i := len(f.tail) - 512; i >= 0 {
		switch {
		case bytes.HasPrefix(f.tail[i:], []byte("koly")):
			all = add(all, Match{Class: DiskImages, What: "a disk for macOS"})
		case bytes.HasPrefix(f.tail[i:], []byte("conectix")):
			all = add(all, Match{Class: DiskImages, What: "a disk of Hyper-V"})
		}
	}
	for _, look := range []func(*file) []Match{compound, oneNote, richText, portable} {
		for _, m := range look(f) {
			all = add(all, m)
		}
	}
	for _, m := range plain(name, f) {
		all = add(all, m)
	}
	return all
}

// isProgram tells a program from a text that begins like one: its header points
// to another one, or is not text. The loader of Windows looks at nothing else of
// the first header.
func isProgram(f *file) bool {
	if len(f.head) < 4 {
		return false
	}
	if len(f.head) >= 64 {
		at := int64(binary.LittleEndian.Uint32(f.head[60:]))
		switch b := f.piece(at, 4); {
		case len(b) == 4 && string(b) == "PE\x00\x00":
			return true
		case len(b) >= 2 && (string(b[:2]) == "NE" || string(b[:2]) == "LE" || string(b[:2]) == "LX"):
			return true
		}
	}
	return !isText(f.head[:min(len(f.head), 64)])
}

// isText is whether bytes could be text of some kind of ASCII.
func isText(b []byte) bool {
	for _, c := range b {
		if c < ' ' && c != '\t' && c != '\n' && c != '\r' && c != '\f' && c != 0x1b || c == 0x7f {
			return false
		}
	}
	return true
}

// The test file of EICAR in two parts, so that this program is not one.
const (
	eicarBegin = `X5O!P%@AP[4\PZX54(P^)7CC)7}`
	eicarEnd   = `$EICAR-STANDARD-ANTIVIRUS-TEST-FILE!$H+H*`
)

// isEICAR is whether the rest of the test file follows.
func isEICAR(f *file) bool { return bytes.HasPrefix(f.head[len(eicarBegin):], []byte(eicarEnd)) }

// fatArchitectures is how many programs a fat file of macOS says it has; in a
// class of Java its version, 45 or more, stands there.
func fatArchitectures(f *file) uint32 {
	if len(f.head) < 8 {
		return 0
	}
	return binary.BigEndian.Uint32(f.head[4:]) & 0xffff
}

// isAndroidManifest is whether a binary XML file is of an application.
func isAndroidManifest(f *file) bool {
	return len(f.head) >= 8 && int64(binary.LittleEndian.Uint32(f.head[4:])) == f.size
}

func isFlash(f *file) bool {
	return len(f.head) >= 9 && f.head[3] > 0 && f.head[3] < 64 && binary.LittleEndian.Uint32(f.head[4:]) >= 8 && binary.LittleEndian.Uint32(f.head[4:]) < 1<<28 &&
		!isText(f.head[3:9])
}

// isBootSector is whether a file is a file system for DOS or Windows, or a disk
// with partitions.
func isBootSector(f *file) bool {
	h := f.head
	if f.size < 64<<10 {
		return false
	}
	jump := h[0] == 0xeb && h[2] == 0x90 || h[0] == 0xe9
	if jump && (string(h[3:11]) == "NTFS    " || string(h[3:11]) == "EXFAT   " || string(h[54:57]) == "FAT" || string(h[82:85]) == "FAT") {
		return true
	}
	partitions := 0
	for at := 446; at < 510; at += 16 {
		if h[at]&0x7f != 0 {
			return false
		}
		if h[at+4] != 0 && binary.LittleEndian.Uint32(h[at+12:]) > 0 {
			partitions++
		}
	}
	return partitions > 0 && h[0] != 'M'
}

// isExt is whether a file is a file system of Linux.
func isExt(f *file) bool {
	b := f.head[0x400:]
	return len(b) >= 1024 && binary.LittleEndian.Uint32(b) > 0 && binary.LittleEndian.Uint32(b[24:]) <= 6 && f.size >= 64<<10
}

// contains looks for words in up to length bytes of the file, a piece at a time,
// and reports which are there. fold maps each piece before.
func (f *file) contains(length int64, fold func([]byte) []byte, words ...string) []bool {
	found := make([]bool, len(words))
	overlap, left := int64(0), len(words)
	for _, w := range words {
		overlap = max(overlap, int64(len(w)))
	}
	buffer := make([]byte, min(textLength+overlap, f.size))
	for at := int64(0); at < min(length, f.size) && left > 0; at += textLength {
		b := buffer[:min(int64(len(buffer)), f.size-at)]
		n, _ := f.r.ReadAt(b, at)
		b = b[:max(n, 0)]
		if fold != nil {
			b = fold(b)
		}
		for i, w := range words {
			if !found[i] && bytes.Contains(b, []byte(w)) {
				found[i] = true
				left--
			}
		}
	}
	return found
}
