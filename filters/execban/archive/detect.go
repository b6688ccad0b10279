package archive

import (
	"bytes"
	"encoding/binary"
	"io"
	"slices"
)

// format is a kind of archive.
type format struct {
	name string
	// magic is where it shows at the offset at.
	magic string
	at    int
	// test, if there is one, must hold for the first bytes as well.
	test func(head []byte, n node) bool
	// far means that programs find the archive behind other bytes too.
	far  bool
	walk func(*walk, node) error
}

// hit is a format that a file may be in, and from where on.
type hit struct {
	format *format
	offset int64
	guess  bool // found behind other bytes
}

// node is the archive itself.
func (h hit) node(n node) node {
	if h.offset > 0 {
		n.r, n.size = n.section(h.offset, n.size), n.size-h.offset
	}
	return n
}

const (
	// headLength is how much of a file formats are recognised by, in bytes:
	// the volume descriptor of an ISO image is the farthest.
	headLength = 34 << 10
	// farLength is how far in a file programs look for an archive behind other
	// bytes, such as a self-extractor's program.
	farLength = 1 << 20
	// farTries is how many such places are tried for each format.
	farTries = 8
)

// formats is all kinds of archive, those that cannot be read included. A zip is
// looked for in every file, because its directory is at the end.
func formats() []format {
	return []format{
		{name: "7z", magic: "7z\xbc\xaf\x27\x1c", far: true, walk: walkSevenZip},
		{name: "rar", magic: "Rar!\x1a\x07", far: true, walk: walkRAR},
		{name: "cab", magic: "MSCF\x00\x00\x00\x00", far: true, walk: walkCabinet},
		{name: "gzip", magic: "\x1f\x8b\x08", walk: walkGzip},
		{name: "bzip2", magic: "BZh", test: isBzip2, walk: walkBzip2},
		{name: "xz", magic: "\xfd7zXZ\x00", walk: walkXZ},
		{name: "zstd", magic: "\x28\xb5\x2f\xfd", walk: walkZstd},
		{name: "zstd", test: isSkippable, walk: walkZstd},
		{name: "lzma", magic: "\x5d\x00\x00", test: isLZMA, walk: walkLZMA},
		{name: "lzip", magic: "LZIP", test: below(4, 2), walk: walkLzip},
		{name: "tar", test: isTar, walk: walkTar},
		{name: "ole", magic: "\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", walk: walkOLE},
		{name: "tnef", magic: "\x78\x9f\x3e\x22", walk: walkTNEF},
		{name: "onenote", magic: "\xe4\x52\x5c\x7b\x8c\xd8\xa7\x4d\xae\xb1\x53\x78\xd0\x29\x96\xd3", walk: walkOneNote},
		{name: "onenote", magic: "\xa1\x2f\xff\x43\xd9\xef\x76\x4c\x9e\xe2\x10\xea\x57\x22\x76\x5f", walk: walkOneNote},
		{name: "iso", magic: "CD001", at: 16*2048 + 1, walk: walkISO},
		{name: "udf", magic: "BEA01", at: 16*2048 + 1, walk: unreadable("udf")},
		{name: "arj", magic: "\x60\xea", test: isARJ, walk: unreadable("arj")},
		{name: "lzh", magic: "-l", at: 2, test: isLZH, walk: unreadable("lzh")},
		{name: "ace", magic: "**ACE**", at: 7, walk: unreadable("ace")},
		{name: "compress", magic: "\x1f\x9d", test: isCompress, walk: unreadable("compress")},
		{name: "pack", magic: "\x1f\x1e", test: longerThan(16), walk: unreadable("pack")},
		{name: "lz4", magic: "\x04\x22\x4d\x18", walk: unreadable("lz4")},
		{name: "zoo", magic: "ZOO ", test: isZoo, walk: unreadable("zoo")},
		{name: "stuffit", magic: "rLau", at: 10, walk: unreadable("stuffit")},
		{name: "stuffit", magic: "StuffIt (c)1997", walk: unreadable("stuffit")},
		{name: "wim", magic: "MSWIM\x00\x00\x00", walk: unreadable("wim")},
		{name: "alz", magic: "ALZ\x01", walk: unreadable("alz")},
		{name: "egg", magic: "EGGA\x00\x01", walk: unreadable("egg")},
		{name: "xar", magic: "xar!", walk: unreadable("xar")},
		{name: "cpio", magic: "070701", test: isCpio, walk: unreadable("cpio")},
		{name: "cpio", magic: "070707", test: isCpio, walk: unreadable("cpio")},
		{name: "squashfs", magic: "hsqs", test: below(29, 1), walk: unreadable("squashfs")},
		{name: "vhdx", magic: "vhdxfile", walk: unreadable("vhdx")},
		{name: "vhd", magic: "conectix", walk: unreadable("vhd")},
		{name: "zip", test: func(_ []byte, n node) bool { return looksLikeZip(n) }, walk: walkZip},
	}
}

// detect is the formats that a file may be in; the buffer has farLength bytes.
func detect(n node, buffer []byte) (hits []hit) {
	far := buffer[:min(n.size, farLength)]
	got, err := n.r.ReadAt(far, 0)
	if err != nil && err != io.EOF && got == 0 {
		return nil
	}
	far = far[:got]
	head := far[:min(len(far), headLength)]
	all := formats()
	for i := range all {
		f := &all[i]
		if len(head) >= f.at && bytes.HasPrefix(head[f.at:], []byte(f.magic)) && (f.test == nil || f.test(head, n)) {
			hits = append(hits, hit{f, 0, false})
			continue
		}
		if !f.far {
			continue
		}
		for at, tries := 0, 0; tries < farTries; tries++ {
			i := bytes.Index(far[at:], []byte(f.magic))
			if i < 0 {
				break
			}
			at += i
			hits = append(hits, hit{f, int64(at), true})
			at++
		}
	}
	return hits
}

// unreadable is for formats that are only recognised.
func unreadable(name string) func(*walk, node) error {
	return func(*walk, node) error {
		return &Error{Unsupported, name, "archives of this kind cannot be read here"}
	}
}

func longerThan(size int64) func([]byte, node) bool {
	return func(_ []byte, n node) bool { return n.size > size }
}

// below is whether the byte at an offset is less than something.
func below(at int, limit byte) func([]byte, node) bool {
	return func(head []byte, _ node) bool { return len(head) > at && head[at] < limit }
}

// isCompress checks the length of codes in bits.
func isCompress(head []byte, _ node) bool {
	return len(head) > 3 && head[2]&0x60 == 0 && head[2]&0x1f >= 9 && head[2]&0x1f <= 16
}

// isCpio is whether nothing but digits follows, as long as the header is.
func isCpio(head []byte, _ node) bool {
	return len(head) > 76 && len(bytes.Trim(head[:76], "0123456789abcdefABCDEF")) == 0
}

func isBzip2(head []byte, _ node) bool {
	return len(head) >= 10 && head[3] >= '1' && head[3] <= '9' &&
		(string(head[4:10]) == "\x31\x41\x59\x26\x53\x59" || string(head[4:10]) == "\x17\x72\x45\x38\x50\x90")
}

// isSkippable is a zstd file that begins with a skippable frame.
func isSkippable(head []byte, _ node) bool {
	if len(head) < 8 || binary.LittleEndian.Uint32(head)&^0xf != 0x184d2a50 {
		return false
	}
	return true
}

// isLZMA is a .lzma file, which has no magic: the properties that everybody
// uses, a dictionary of a usual size, and a length that is unknown or sane.
func isLZMA(head []byte, _ node) bool {
	if len(head) < 14 {
		return false
	}
	dictionary, size := binary.LittleEndian.Uint32(head[1:]), binary.LittleEndian.Uint64(head[5:])
	usual := dictionary&(dictionary-1) == 0 || dictionary%(3<<12) == 0
	return usual && (size == 1<<64-1 || size < 1<<38) && head[13] == 0
}

// isARJ checks the main header's size and type.
func isARJ(head []byte, _ node) bool {
	return len(head) >= 12 && binary.LittleEndian.Uint16(head[2:]) <= 2600 && head[4] >= 30 && head[4] <= 64 && head[10] == 2
}

// isLZH looks for the method's name, "-lh5-" or "-lzs-".
func isLZH(head []byte, _ node) bool {
	return len(head) >= 21 && (head[4] == 'h' || head[4] == 'z') && head[6] == '-' && head[20] <= 3
}

func isZoo(head []byte, _ node) bool {
	return len(head) >= 24 && binary.LittleEndian.Uint32(head[20:]) == 0xfdc4a7dc
}

// isTar checks the sum of the first header, which old archives have too.
func isTar(head []byte, _ node) bool {
	if len(head) < 512 || head[0] == 0 {
		return false
	}
	want, digits := int64(0), 0
	for _, c := range bytes.Trim(head[148:156], " \x00") {
		if c < '0' || c > '7' {
			return false
		}
		want, digits = want<<3|int64(c-'0'), digits+1
	}
	var unsigned, signed int64
	for i, c := range head[:512] {
		if i >= 148 && i < 156 {
			c = ' '
		}
		unsigned += int64(c)
		signed += int64(int8(c))
	}
	return digits > 0 && (want == unsigned || want == signed)
}

// IsArchive reports whether Walk would look into a file, and as what.
func IsArchive(r io.ReaderAt, size int64) (formats []string) {
	n := node{path: []string{""}, r: r, size: size}
	for _, h := range detect(n, make([]byte, min(size, farLength))) {
		if !slices.Contains(formats, h.format.name) {
			formats = append(formats, h.format.name)
		}
	}
	return formats
}
