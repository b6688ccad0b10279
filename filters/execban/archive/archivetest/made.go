package archivetest

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"unicode/utf16"
)

// oneNoteObject is the identifier before an embedded file of OneNote.
const oneNoteObject = "\xe7\x16\xe3\xbd\x65\x26\x11\x45\xa4\xc4\x8d\x4d\x0b\x7a\x9e\xac"

// RAR4 is a RAR of version 4 with stored members.
func RAR4(flags uint16, members ...[2]string) []byte {
	le := binary.LittleEndian
	block := func(kind byte, flags uint16, body []byte) []byte {
		h := append([]byte{0, 0, kind}, le.AppendUint16(nil, flags)...)
		h = append(le.AppendUint16(h, uint16(7+len(body))), body...)
		le.PutUint16(h, uint16(crc32.ChecksumIEEE(h[2:])))
		return h
	}
	b := []byte("Rar!\x1a\x07\x00")
	b = append(b, block(0x73, 0, make([]byte, 6))...)
	for _, m := range members {
		f := le.AppendUint32(nil, uint32(len(m[1])))
		f = le.AppendUint32(f, uint32(len(m[1])))
		f = append(f, 2) // Windows
		f = le.AppendUint32(f, crc32.ChecksumIEEE([]byte(m[1])))
		f = append(f, 0, 0, 0, 0, 29, 0x30)
		f = le.AppendUint16(f, uint16(len(m[0])))
		f = append(le.AppendUint32(f, 0x20), m[0]...)
		b = append(append(b, block(0x74, 0x8000|flags, f)...), m[1]...)
	}
	return append(b, block(0x7b, 0x4000, nil)...)
}

// RAR5 is a RAR of version 5 with stored members.
func RAR5(members ...[2]string) []byte {
	block := func(body []byte) []byte {
		b := append(binary.AppendUvarint(nil, uint64(len(body))), body...)
		return append(binary.LittleEndian.AppendUint32(nil, crc32.ChecksumIEEE(b)), b...)
	}
	numbers := func(values ...uint64) (b []byte) {
		for _, v := range values {
			b = binary.AppendUvarint(b, v)
		}
		return b
	}
	b := append([]byte("Rar!\x1a\x07\x01\x00"), block(numbers(1, 0, 0))...)
	for _, m := range members {
		n := uint64(len(m[1]))
		f := numbers(2, 2, n, 4, n, 0x20) // file, with data; sizes; a checksum; attributes
		f = binary.LittleEndian.AppendUint32(f, crc32.ChecksumIEEE([]byte(m[1])))
		f = append(f, numbers(0, 0, uint64(len(m[0])))...)
		b = append(append(b, block(append(f, m[0]...))...), m[1]...)
	}
	return append(b, block(numbers(5, 0, 0))...)
}

// TNEF is a winmail.dat with one attachment; long goes into its properties.
func TNEF(title, long string, content, object []byte) []byte {
	le := binary.LittleEndian
	b := append([]byte("\x78\x9f\x3e\x22"), 1, 0)
	attribute := func(level byte, id uint32, value []byte) {
		b = le.AppendUint32(append(b, level), id)
		b = append(le.AppendUint32(b, uint32(len(value))), value...)
		sum := uint16(0)
		for _, c := range value {
			sum += uint16(c)
		}
		b = le.AppendUint16(b, sum)
	}
	attribute(1, 0x00089006, []byte{0, 0, 1, 0})
	attribute(2, 0x00069002, make([]byte, 14))
	attribute(2, 0x00018010, append([]byte(title), 0))
	if content != nil {
		attribute(2, 0x0006800f, content)
	}
	var units []byte
	for _, u := range utf16.Encode([]rune(long + "\x00")) {
		units = le.AppendUint16(units, u)
	}
	padded := func(v []byte) []byte { return append(v, make([]byte, -len(v)&3)...) }
	p := le.AppendUint32(nil, 3)
	p = le.AppendUint16(le.AppendUint16(p, 3), 0x0e21)
	p = le.AppendUint32(p, 7)
	p = le.AppendUint16(le.AppendUint16(p, 0x1f), 0x3707)
	p = le.AppendUint32(le.AppendUint32(p, 1), uint32(len(units)))
	p = append(p, padded(units)...)
	p = le.AppendUint16(le.AppendUint16(p, 0xd), 0x3701)
	p = le.AppendUint32(le.AppendUint32(p, 1), uint32(len(object)+16))
	p = append(p, make([]byte, 16)...)
	p = append(p, padded(object)...)
	attribute(2, 0x00069005, p)
	return b
}

// OLE is a compound file of version 3 whose streams are all in its root, or
// one storage below it as "storage/stream". Short ones get zeros at their end,
// up to the size from which streams have sectors of their own.
func OLE(streams ...[2]string) []byte { return OLEOf([16]byte{}, streams...) }

// OLEOf is OLE with a class identifier, which tells what program the file is of.
func OLEOf(class [16]byte, streams ...[2]string) []byte {
	const sector, free, end, fat = 512, 0xffffffff, 0xfffffffe, 0xfffffffd
	le := binary.LittleEndian
	var content []byte
	type item struct {
		name               string
		kind               byte
		start, size, child uint32
		right              uint32
	}
	items := []item{{name: "Root Entry", kind: 5, start: end, child: free, right: free}}
	var chain []uint32
	last := map[int]int{}
	link := func(parent int) {
		i := len(items) - 1
		if before, ok := last[parent]; ok {
			items[before].right = uint32(i)
		} else {
			items[parent].child = uint32(i)
		}
		last[parent] = i
	}
	storages := map[string]int{}
	for _, s := range streams {
		parent, name := 0, s[0]
		if i := bytes.IndexByte([]byte(name), '/'); i >= 0 {
			folder := name[:i]
			name = name[i+1:]
			if _, ok := storages[folder]; !ok {
				items = append(items, item{name: folder, kind: 1, child: free, right: free})
				link(0)
				storages[folder] = len(items) - 1
			}
			parent = storages[folder]
		}
		b := []byte(s[1])
		if len(b) < 4096 {
			b = append(b, make([]byte, 4096-len(b))...)
		}
		items = append(items, item{name: name, kind: 2, start: uint32(len(content) / sector), size: uint32(len(b)), child: free, right: free})
		link(parent)
		content = append(content, append(b, make([]byte, -len(b)&(sector-1))...)...)
		for n := uint32(len(content) / sector); uint32(len(chain)) < n-1; {
			chain = append(chain, uint32(len(chain)+1))
		}
		chain = append(chain, end)
	}
	var directory []byte
	for _, i := range items {
		d := make([]byte, 128)
		for j, u := range utf16.Encode([]rune(i.name)) {
			le.PutUint16(d[2*j:], u)
		}
		le.PutUint16(d[64:], uint16(2*len(utf16.Encode([]rune(i.name)))+2))
		d[66], d[67] = i.kind, 1
		le.PutUint32(d[68:], free)
		le.PutUint32(d[72:], i.right)
		le.PutUint32(d[76:], i.child)
		if i.kind == 5 {
			copy(d[80:], class[:])
		}
		le.PutUint32(d[116:], i.start)
		le.PutUint32(d[120:], i.size)
		directory = append(directory, d...)
	}
	for len(directory)%sector != 0 {
		d := make([]byte, 128)
		for _, at := range []int{68, 72, 76} {
			le.PutUint32(d[at:], free)
		}
		directory = append(directory, d...)
	}
	first := uint32(len(chain))
	for range len(directory)/sector - 1 {
		chain = append(chain, uint32(len(chain)+1))
	}
	chain = append(chain, end)
	fats := uint32(0)
	for uint32(len(chain))+fats > fats*sector/4 {
		fats++
	}
	at := uint32(len(chain))
	for range fats {
		chain = append(chain, fat)
	}
	for len(chain)%(sector/4) != 0 {
		chain = append(chain, free)
	}
	h := make([]byte, sector)
	copy(h, "\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1")
	le.PutUint16(h[24:], 0x3e)
	le.PutUint16(h[26:], 3)
	le.PutUint16(h[28:], 0xfffe)
	le.PutUint16(h[30:], 9)
	le.PutUint16(h[32:], 6)
	le.PutUint32(h[44:], fats)
	le.PutUint32(h[48:], first)
	le.PutUint32(h[56:], 4096)
	le.PutUint32(h[60:], end)
	le.PutUint32(h[68:], end)
	for i := range 109 {
		le.PutUint32(h[76+4*i:], free)
	}
	for i := range fats {
		le.PutUint32(h[76+4*i:], at+i)
	}
	b := append(append(h, content...), directory...)
	for _, c := range chain {
		b = le.AppendUint32(b, c)
	}
	return b
}

// Package is a stream with an embedded package.
func Package(name string, content []byte) string {
	le := binary.LittleEndian
	b := le.AppendUint16(make([]byte, 4), 2)
	b = append(append(b, name...), 0)
	b = append(append(b, `C:\`+name...), 0)
	b = append(b, 0, 0, 3, 0)
	temp := `C:\Temp\` + name + "\x00"
	b = append(le.AppendUint32(b, uint32(len(temp))), temp...)
	b = append(le.AppendUint32(b, uint32(len(content))), content...)
	le.PutUint32(b, uint32(len(b)-4))
	return string(b)
}

// OneNote is a section of OneNote as far as it concerns embedded files.
func OneNote(files ...[]byte) []byte {
	b := []byte("\xe4\x52\x5c\x7b\x8c\xd8\xa7\x4d\xae\xb1\x53\x78\xd0\x29\x96\xd3" + "structures of OneNote")
	for _, f := range files {
		b = append(b, oneNoteObject...)
		b = binary.LittleEndian.AppendUint64(b, uint64(len(f)))
		b = append(append(b, make([]byte, 12)...), f...)
	}
	return b
}
