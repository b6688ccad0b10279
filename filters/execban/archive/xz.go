package archive

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"io"

	"github.com/ulikunitz/xz/lzma"
)

// The container of xz is read here (The .xz File Format 1.2.1), because it is
// where the size of the dictionaries stands.

// xzChecks is how long a block's check is, by its identifier.
var xzChecks = [16]int{0, 4, 4, 4, 8, 8, 8, 16, 16, 16, 32, 32, 32, 64, 64, 64}

const (
	xzMagic    = "\xfd7zXZ\x00"
	xzLZMA2    = 0x21
	xzMaxIndex = 1 << 20
)

func xzDamaged(what string) error { return &Error{Damaged, "xz", what} }

// xz unpacks all streams of an xz file. Checks of content are not made: what is
// unpacked is judged, right or wrong.
func (k *walk) xz(w io.Writer, r io.Reader) error {
	c := newCounter(r)
	for streams := 0; ; streams++ {
		head := make([]byte, 12)
		switch _, err := io.ReadFull(c, head[:4]); {
		case err == io.EOF && streams > 0:
			return nil
		case err != nil:
			return err
		case streams > 0 && bytes.Equal(head[:4], make([]byte, 4)): // padding
			continue
		}
		if _, err := io.ReadFull(c, head[4:]); err != nil {
			return err
		}
		if string(head[:6]) != xzMagic {
			if streams > 0 {
				return nil // what follows an archive is not its own
			}
			return xzDamaged("no header")
		}
		if err := k.xzStream(w, c, xzChecks[head[7]&0xf]); err != nil {
			return err
		}
	}
}

// xzStream unpacks the blocks of a stream and passes over its index and footer.
func (k *walk) xzStream(w io.Writer, c *counter, check int) error {
	for {
		size, err := c.ReadByte()
		if err != nil {
			return io.ErrUnexpectedEOF
		}
		if size == 0 {
			return xzIndex(c)
		}
		header := make([]byte, (int(size)+1)*4)
		header[0] = size
		if _, err := io.ReadFull(c, header[1:]); err != nil {
			return err
		}
		dictionary, err := xzBlock(header)
		if err != nil {
			return err
		}
		if err := k.dictionary("xz", dictionary); err != nil {
			return err
		}
		begin := c.used()
		d, err := lzma.Reader2Config{DictCap: int(max(dictionary, lzma.MinDictCap))}.NewReader2(c)
		if err != nil {
			return err
		}
		if err := k.copyAll(w, d); err != nil {
			return err
		}
		padding := int(-(c.used() - begin) & 3)
		if _, err := io.CopyN(io.Discard, c, int64(padding+check)); err != nil {
			return io.ErrUnexpectedEOF
		}
	}
}

// xzBlock is the size of the dictionary that a block's header asks for. The only
// filter must be LZMA2: others change programs, and are for programs.
func xzBlock(h []byte) (dictionary int64, err error) {
	body, sum := h[:len(h)-4], binary.LittleEndian.Uint32(h[len(h)-4:])
	if crc32.ChecksumIEEE(body) != sum {
		return 0, xzDamaged("a block's header")
	}
	flags, rest := body[1], body[2:]
	for _, bit := range []byte{0x40, 0x80} { // the sizes
		if flags&bit != 0 {
			_, n := binary.Uvarint(rest)
			if n <= 0 {
				return 0, xzDamaged("a block's size")
			}
			rest = rest[n:]
		}
	}
	id, n := binary.Uvarint(rest)
	if flags&3 != 0 || n <= 0 || id != xzLZMA2 {
		return 0, &Error{Unsupported, "xz", "filters"}
	}
	rest = rest[n:]
	if len(rest) < 2 || rest[0] != 1 || rest[1] > 40 {
		return 0, xzDamaged("properties of LZMA2")
	}
	return lzma2Dictionary(rest[1]), nil
}

// lzma2Dictionary is the size of a dictionary in bytes by its code.
func lzma2Dictionary(code byte) int64 {
	if code >= 40 {
		return 1<<32 - 1
	}
	return (2 | int64(code&1)) << (code/2 + 11)
}

// xzIndex passes over the index, whose first byte has been read, and the footer.
func xzIndex(c *counter) error {
	begin := c.used() - 1
	records, err := binary.ReadUvarint(c)
	if err != nil || records > xzMaxIndex {
		return xzDamaged("the index")
	}
	for range 2 * records {
		if _, err := binary.ReadUvarint(c); err != nil {
			return xzDamaged("the index")
		}
	}
	padding := -(c.used() - begin) & 3
	if _, err := io.CopyN(io.Discard, c, padding+4+12); err != nil {
		return xzDamaged("the end")
	}
	return nil
}
