package archivetest

import (
	"bytes"
	"compress/flate"
	"encoding/binary"
	"hash/crc32"
)

// Deflated is the method of a member that Zip packs; others it stores under the
// number they give.
const Deflated = 8

// The records of a zip.
const (
	zipLocal    = "PK\x03\x04"
	zipCentral  = "PK\x01\x02"
	zipEnd      = "PK\x05\x06"
	zipEnd64    = "PK\x06\x06"
	zipLocate64 = "PK\x06\x07"
)

// Member is a member of a zip, whose records lie as they are told to.
type Member struct {
	Name, Local         string // in the directory, and in the header if it is another
	Content             []byte
	Method, LocalMethod uint16
	Flags               uint16
	Descriptor          bool  // sizes follow the content
	Unlisted            bool  // it is in no directory
	ListedSize          int64 // what the directory says of the sizes, if not 0
	LocalPacked         int64 // what the header says of the packed size, if not 0
	// Extra fields of the header and of the directory.
	LocalExtra, ListedExtra []byte
}

// Zip writes a zip: prefix, members, directory, last record.
func Zip(prefix string, members ...Member) []byte {
	b, directory, count := ZipParts(prefix, 0, members...)
	return append(append(b, directory...), ZipEnd(count, len(directory), len(b)-len(prefix), "")...)
}

// ZipParts writes members and makes their directory, whose offsets are shifted.
func ZipParts(prefix string, shift int, members ...Member) (b, directory []byte, count int) {
	le := binary.LittleEndian
	b = []byte(prefix)
	for _, m := range members {
		packed := m.Content
		if m.Method == Deflated {
			var out bytes.Buffer
			w, _ := flate.NewWriter(&out, 9)
			w.Write(m.Content)
			w.Close()
			packed = out.Bytes()
		}
		flags, local, localMethod := m.Flags, m.Local, m.LocalMethod
		if m.Descriptor {
			flags |= 1 << 3
		}
		if local == "" {
			local = m.Name
		}
		if localMethod == 0 {
			localMethod = m.Method
		}
		sum, at := crc32.ChecksumIEEE(m.Content), len(b)
		h := append([]byte(zipLocal), make([]byte, 30-4)...)
		le.PutUint16(h[4:], 20)
		le.PutUint16(h[6:], flags)
		le.PutUint16(h[8:], localMethod)
		if !m.Descriptor {
			le.PutUint32(h[14:], sum)
			le.PutUint32(h[18:], uint32(len(packed)))
			if m.LocalPacked != 0 {
				le.PutUint32(h[18:], uint32(m.LocalPacked))
			}
			le.PutUint32(h[22:], uint32(len(m.Content)))
		}
		le.PutUint16(h[26:], uint16(len(local)))
		le.PutUint16(h[28:], uint16(len(m.LocalExtra)))
		b = append(append(append(append(b, h...), local...), m.LocalExtra...), packed...)
		if m.Descriptor {
			d := append([]byte("PK\x07\x08"), make([]byte, 12)...)
			le.PutUint32(d[4:], sum)
			le.PutUint32(d[8:], uint32(len(packed)))
			le.PutUint32(d[12:], uint32(len(m.Content)))
			b = append(b, d...)
		}
		if m.Unlisted {
			continue
		}
		count++
		c := append([]byte(zipCentral), make([]byte, 46-4)...)
		le.PutUint16(c[8:], flags)
		le.PutUint16(c[10:], m.Method)
		le.PutUint32(c[16:], sum)
		le.PutUint32(c[20:], uint32(len(packed)))
		le.PutUint32(c[24:], uint32(len(m.Content)))
		if m.ListedSize != 0 {
			le.PutUint32(c[20:], uint32(m.ListedSize))
			le.PutUint32(c[24:], uint32(m.ListedSize))
		}
		le.PutUint16(c[28:], uint16(len(m.Name)))
		le.PutUint16(c[30:], uint16(len(m.ListedExtra)))
		le.PutUint32(c[42:], uint32(at-len(prefix)+shift))
		directory = append(append(append(directory, c...), m.Name...), m.ListedExtra...)
	}
	return b, directory, count
}

// ZipEnd is the last record of a zip: how many members its directory lists, how
// long that is in bytes and where it is.
func ZipEnd(count, size, offset int, comment string) []byte {
	le := binary.LittleEndian
	e := append([]byte(zipEnd), make([]byte, 22-4)...)
	le.PutUint16(e[8:], uint16(count))
	le.PutUint16(e[10:], uint16(count))
	le.PutUint32(e[12:], uint32(size))
	le.PutUint32(e[16:], uint32(offset))
	le.PutUint16(e[20:], uint16(len(comment)))
	return append(e, comment...)
}

// Zip64 is a zip whose sizes are all in the fields of version 4.5.
func Zip64(m Member) []byte {
	le := binary.LittleEndian
	wide := func(values ...int) []byte {
		b := le.AppendUint16(nil, 1)
		b = le.AppendUint16(b, uint16(8*len(values)))
		for _, v := range values {
			b = le.AppendUint64(b, uint64(v))
		}
		return b
	}
	n := len(m.Content)
	m.LocalExtra, m.ListedExtra = wide(n, n), wide(n, n, 0)
	b, directory, _ := ZipParts("", 0, m)
	for _, at := range []int{18, 22} {
		le.PutUint32(b[at:], 0xffffffff)
	}
	for _, at := range []int{20, 24, 42} {
		le.PutUint32(directory[at:], 0xffffffff)
	}
	start := len(b)
	b = append(b, directory...)
	end := append([]byte(zipEnd64), make([]byte, 56-4)...)
	le.PutUint64(end[4:], 56-12)
	le.PutUint64(end[40:], uint64(len(directory)))
	le.PutUint64(end[48:], uint64(start))
	locator := append([]byte(zipLocate64), make([]byte, 20-4)...)
	le.PutUint64(locator[8:], uint64(len(b)))
	b = append(append(b, end...), locator...)
	return append(b, ZipEnd(0xffff, 0xffffffff, 0xffffffff, "")...)
}

// UnicodePath is a further name of a member.
func UnicodePath(name string) []byte {
	b := binary.LittleEndian.AppendUint16(nil, 0x7075)
	b = binary.LittleEndian.AppendUint16(b, uint16(len(name)+5))
	return append(append(b, 1, 0, 0, 0, 0), name...)
}
