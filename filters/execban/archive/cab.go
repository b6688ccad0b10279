package archive

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/flate"
)

// Cabinets, after [MS-CAB]. Methods other than stored and MSZIP are not read.

const (
	cabHeader     = 36
	cabFolder     = 8
	cabFile       = 16
	cabData       = 8
	cabMaxName    = 256
	cabBlock      = 32 << 10 // what a block unpacks to, at most
	cabPrevious   = 0x0001
	cabNext       = 0x0002
	cabReserve    = 0x0004
	cabContinued  = 0xfffd // folder numbers from here on are of other cabinets' files
	cabStored     = 0
	cabMSZIP      = 1
	cabMethodMask = 0xf
)

// cabinet is a cabinet that is being read.
type cabinet struct {
	*walk
	n       node
	reserve int64 // bytes before each block's data that are not its own
	folders []cabinetFolder
}

type cabinetFolder struct {
	offset int64
	blocks int
	method uint16
}

func cabDamaged(what string) error { return &Error{Damaged, "cab", what} }

func walkCabinet(k *walk, n node) error {
	b := readAt(n, 0, cabHeader)
	if b == nil || b[25] != 1 || b[24] > 3 {
		return cabDamaged("the header")
	}
	le := binary.LittleEndian
	files, folders, count, flags := int64(le.Uint32(b[16:])), int(le.Uint16(b[26:])), int(le.Uint16(b[28:])), le.Uint16(b[30:])
	c := &cabinet{walk: k, n: n}
	at, folderReserve := int64(cabHeader), int64(0)
	if flags&cabReserve != 0 {
		r := readAt(n, at, 4)
		if r == nil {
			return cabDamaged("the header")
		}
		at += 4 + int64(le.Uint16(r))
		folderReserve, c.reserve = int64(r[2]), int64(r[3])
	}
	for _, flag := range []uint16{cabPrevious, cabNext} {
		for range 2 { // cabinet and disk
			if flags&flag != 0 {
				_, length := c.text(at)
				at += length
			}
		}
	}
	for range folders {
		f := readAt(n, at, cabFolder)
		if f == nil {
			return cabDamaged("the folders")
		}
		c.folders = append(c.folders, cabinetFolder{int64(le.Uint32(f)), int(le.Uint16(f[4:])), le.Uint16(f[6:]) & cabMethodMask})
		at += cabFolder + folderReserve
	}
	return c.files(files, count)
}

// text reads a string with its NUL; the length is 0 if there is none.
func (c *cabinet) text(at int64) (string, int64) {
	b := make([]byte, cabMaxName+1)
	got, _ := c.n.r.ReadAt(b, at)
	i := bytes.IndexByte(b[:max(got, 0)], 0)
	if i < 0 {
		return "", 0
	}
	return string(b[:i]), int64(i) + 1
}

// files visits the files; a folder's content is unpacked for each of them again,
// up to where the file ends.
func (c *cabinet) files(at int64, count int) error {
	le := binary.LittleEndian
	for range count {
		b := readAt(c.n, at, cabFile)
		if b == nil {
			return cabDamaged("the list of files")
		}
		name, length := c.text(at + cabFile)
		if length == 0 {
			return cabDamaged("a file's name")
		}
		at += cabFile + length
		size, offset, folder := int64(le.Uint32(b)), int64(le.Uint32(b[4:])), le.Uint16(b[8:])
		e := entry{names: []string{name}, packed: c.n.size}
		switch {
		case folder >= cabContinued:
			e.err = &Error{Unsupported, "cab", "a file goes on in another cabinet"}
		case int(folder) >= len(c.folders):
			e.err = &Error{Damaged, "cab", "a file is in no folder"}
		case offset+size > c.limits.Bytes:
			e.err = &Error{OverLimit, "cab", "a file beyond the limit"}
		default:
			e.extract = func(w io.Writer) error { return c.extract(w, c.folders[folder], offset, size) }
		}
		if err := c.member(c.n, "cab", e); err != nil {
			return err
		}
	}
	return nil
}

// errExtracted ends the unpacking of a folder behind the last byte wanted.
var errExtracted = errors.New("extracted")

// extract unpacks a part of a folder.
func (c *cabinet) extract(w io.Writer, f cabinetFolder, offset, size int64) error {
	part := &part{w: w, skip: offset, left: size}
	if size == 0 {
		return nil
	}
	at, window := f.offset, []byte(nil)
	for range f.blocks {
		if err := c.ctx.Err(); err != nil {
			return err
		}
		h := readAt(c.n, at, cabData)
		if h == nil {
			return cabDamaged("a block is cut off")
		}
		packed, unpacked := int64(binary.LittleEndian.Uint16(h[4:])), int(binary.LittleEndian.Uint16(h[6:]))
		at += cabData + c.reserve
		block := readAt(c.n, at, packed)
		if block == nil {
			return cabDamaged("a block is cut off")
		}
		at += packed
		if unpacked > cabBlock {
			return cabDamaged("a block is too long")
		}
		switch f.method {
		case cabStored:
		case cabMSZIP:
			var err error
			if block, err = inflate(block, window, unpacked); err != nil {
				return err
			}
			window = block
		default:
			return &Error{Unsupported, "cab", fmt.Sprintf("method %d", f.method)}
		}
		if _, err := part.Write(block); errors.Is(err, errExtracted) {
			return nil
		} else if err != nil {
			return err
		}
	}
	return cabDamaged("a file is cut off")
}

// inflate unpacks a block of MSZIP, whose window is the block before it.
func inflate(block, window []byte, size int) ([]byte, error) {
	if len(block) < 2 || string(block[:2]) != "CK" {
		return nil, cabDamaged("a block of MSZIP")
	}
	r := flate.NewReaderDict(bytes.NewReader(block[2:]), window)
	defer r.Close()
	b := make([]byte, size)
	if _, err := io.ReadFull(r, b); err != nil {
		return nil, cabDamaged("a block of MSZIP")
	}
	return b, nil
}

// part passes on a part of what is written.
type part struct {
	w          io.Writer
	skip, left int64
}

func (p *part) Write(b []byte) (int, error) {
	n := len(b)
	cut := min(p.skip, int64(n))
	p.skip -= cut
	b = b[cut:]
	b = b[:min(int64(len(b)), p.left)]
	p.left -= int64(len(b))
	if len(b) > 0 {
		if _, err := p.w.Write(b); err != nil {
			return 0, err
		}
	}
	if p.left == 0 {
		return n, errExtracted
	}
	return n, nil
}
