package archive

import (
	"encoding/binary"
	"io"
	"strings"
	"unicode/utf16"
)

// TNEF, the winmail.dat of Outlook, after [MS-OXTNEF] and [MS-OXCMSG].

const (
	tnefAttachment = 2 // the level of an attribute
	tnefRenderData = 0x00069002
	tnefTitle      = 0x00018010
	tnefData       = 0x0006800f
	tnefProperties = 0x00069005
	tnefMaxTitle   = 4096
)

// The properties that name an attachment or hold it.
const (
	mapiData      = 0x3701
	mapiExtension = 0x3703
	mapiFilename  = 0x3704
	mapiLongName  = 0x3707
	mapiDisplay   = 0x3001
)

// tnefPart is an attachment as far as it has been read.
type tnefPart struct {
	names    []string
	contents []*io.SectionReader
}

func walkTNEF(k *walk, n node) error {
	var part *tnefPart
	var bad error
	at := int64(6) // signature and key
	for at < n.size {
		h := readAt(n, at, 9)
		if h == nil {
			bad = &Error{Damaged, "tnef", "cut off"}
			break
		}
		id, length := binary.LittleEndian.Uint32(h[1:]), int64(binary.LittleEndian.Uint32(h[5:]))
		at += 9
		value := n.section(at, length)
		if h[0] != 1 && h[0] != tnefAttachment || value.Size() < length {
			bad = &Error{Damaged, "tnef", "an attribute"}
		}
		at += length + 2
		if h[0] == tnefAttachment {
			if id == tnefRenderData || part == nil {
				if err := k.tnefMember(n, part); err != nil {
					return err
				}
				part = &tnefPart{}
			}
			part.attribute(id, value)
		}
		if bad != nil {
			break
		}
	}
	if err := k.tnefMember(n, part); err != nil {
		return err
	}
	return bad
}

func (p *tnefPart) attribute(id uint32, value *io.SectionReader) {
	switch id {
	case tnefTitle:
		b := make([]byte, min(value.Size(), tnefMaxTitle))
		got, _ := value.ReadAt(b, 0)
		p.named(string(b[:got]))
	case tnefData:
		p.contents = append(p.contents, value)
	case tnefProperties:
		p.properties(value)
	}
}

func (p *tnefPart) named(name string) {
	if name = strings.TrimRight(name, "\x00"); name != "" {
		p.names = append(p.names, name)
	}
}

// tnefMember visits an attachment, with each of its contents.
func (k *walk) tnefMember(n node, p *tnefPart) error {
	if p == nil {
		return nil
	}
	if len(p.contents) == 0 {
		return k.member(n, "tnef", entry{names: p.names})
	}
	for _, c := range p.contents {
		if err := k.member(n, "tnef", entry{names: p.names, section: c}); err != nil {
			return err
		}
	}
	return nil
}

// mapiSizes is the lengths of properties of a fixed size, by type, padded.
var mapiSizes = map[uint16]int64{
	2: 4, 3: 4, 4: 4, 5: 8, 6: 8, 7: 8, 0xa: 4, 0xb: 4, 0x14: 8, 0x40: 8, 0x48: 16,
}

// properties reads an attachment's MAPI properties, as far as they can be read.
func (p *tnefPart) properties(value *io.SectionReader) {
	r := &mapiReader{n: node{r: value, size: value.Size()}}
	for range min(r.u32(), 4096) {
		kind, id := r.u16(), r.u16()
		if id >= 0x8000 { // a named property: GUID, then a number or a name
			r.at += 16
			if r.u32() == 0 {
				r.at += 4
			} else {
				r.skip(int64(r.u32()))
			}
		}
		count := uint32(1)
		multiple := kind&0x1000 != 0
		kind &^= 0x1000
		size, fixed := mapiSizes[kind]
		if multiple || !fixed {
			count = r.u32()
		}
		for range min(count, 4096) {
			if fixed {
				r.at += size
				continue
			}
			length := int64(r.u32())
			p.property(id, kind, value, r.at, length)
			r.skip(length)
		}
		if r.failed {
			return
		}
	}
}

func (p *tnefPart) property(id, kind uint16, value *io.SectionReader, at, length int64) {
	n := node{r: value, size: value.Size()}
	switch id {
	case mapiData:
		if kind == 0xd { // an object: the class comes first
			at, length = at+16, length-16
		}
		if length > 0 {
			p.contents = append(p.contents, n.section(at, length))
		}
	case mapiFilename, mapiLongName, mapiDisplay, mapiExtension:
		b := readAt(n, at, min(length, tnefMaxTitle))
		if kind == 0x1f {
			b = []byte(utf16le(b))
		}
		p.named(string(b))
	}
}

// utf16le decodes text.
func utf16le(b []byte) string {
	units := make([]uint16, len(b)/2)
	for i := range units {
		units[i] = binary.LittleEndian.Uint16(b[2*i:])
	}
	return string(utf16.Decode(units))
}

// mapiReader reads numbers; after the end it reads zeros.
type mapiReader struct {
	n      node
	at     int64
	failed bool
}

func (r *mapiReader) u32() uint32 {
	b := readAt(r.n, r.at, 4)
	r.at += 4
	if b == nil {
		r.failed = true
		return 0
	}
	return binary.LittleEndian.Uint32(b)
}

func (r *mapiReader) u16() uint16 {
	b := readAt(r.n, r.at, 2)
	r.at += 2
	if b == nil {
		r.failed = true
		return 0
	}
	return binary.LittleEndian.Uint16(b)
}

// skip passes over a value and its padding.
func (r *mapiReader) skip(length int64) { r.at += (length + 3) &^ 3 }
