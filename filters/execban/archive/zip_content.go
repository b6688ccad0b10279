package archive

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/klauspost/compress/flate"
	"github.com/ulikunitz/xz/lzma"
)

// The methods of a zip (APPNOTE.TXT 4.4.5).
const (
	zipStored  = 0
	zipDeflate = 8
	zipBzip2   = 12
	zipLZMA    = 14
	zipZstdOld = 20
	zipZstd    = 93
	zipXZ      = 95
	zipAES     = 99
)

// counter tells how much has been read of a member, to the byte where a
// decompressor reads byte by byte: so it is known where the packed content ends.
// It is a *bufio.Reader, for which decompressors have a fast way.
type counter struct {
	*bufio.Reader
	raw counted
}

// counted counts what the buffer has taken.
type counted struct {
	r io.Reader
	n int64
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

func newCounter(r io.Reader) *counter {
	c := &counter{raw: counted{r: r}}
	c.Reader = bufio.NewReader(&c.raw)
	return c
}

// used is how many bytes have been read.
func (c *counter) used() int64 { return c.raw.n - int64(c.Buffered()) }

// content visits a member's content. With doubt, what cannot be unpacked is no
// member and is not visited.
func (z *zipFile) content(h zipHeader, reading string, doubt bool) error {
	for i, name := range h.names {
		h.names[i] = name[:min(len(name), zipMaxNameToReport)]
	}
	length := z.length(h)
	e := entry{names: h.names, reading: reading}
	room := z.n.section(h.data, length)
	cover := func(used int64) { z.covered = append(z.covered, span{h.offset, h.data + used}) }
	encrypted := h.flags&zipEncryptedFlag != 0 || h.method == zipAES
	switch {
	case encrypted:
		cover(room.Size())
		// Some programs do not look at the flag of what is not encrypted.
		if h.method == zipAES || !z.reads(h, room) {
			e.err = &Error{Encrypted, "zip", "a member needs a password"}
			return z.member(z.n, "zip", e)
		}
		fallthrough
	case h.method == zipStored:
		if h.method == zipStored {
			cover(room.Size())
			e.section = room
			if doubt && h.crc != 0 && !z.reads(h, room) {
				return nil
			}
			if room.Size() < max(h.packed, min(h.size, length)) {
				e.err = &Error{Damaged, "zip", "a member is cut off"}
			}
			return z.member(z.n, "zip", e)
		}
	}
	var c *counter
	e.packed = length
	e.extract = func(w io.Writer) error {
		room.Seek(0, io.SeekStart) //nolint:errcheck // cannot fail
		c = newCounter(room)
		return z.unpack(h, w, c)
	}
	if doubt && !z.reads(h, room) {
		return nil
	}
	err := z.member(z.n, "zip", e)
	if c != nil {
		cover(c.used())
	}
	return err
}

// length is how long the packed content may be: as the header says or, if it
// does not, up to the next record for what is stored and up to the end of the
// file for what shows its own end.
func (z *zipFile) length(h zipHeader) int64 {
	rest := z.n.size - h.data
	switch {
	case h.method == zipStored && h.packed == 0 && h.size == 0 && h.flags&zipDescriptorFlag != 0:
		for _, signature := range []string{"PK\x07\x08", zipLocal, zipCentral} {
			if i := z.find(z.n, h.data, z.n.size, signature); i >= 0 {
				rest = min(rest, i-h.data)
			}
		}
		return rest
	case h.method == zipStored:
		return min(max(h.packed, h.size), rest)
	case h.packed == 0 || h.flags&zipDescriptorFlag != 0 && h.method == zipDeflate:
		return rest
	}
	return min(h.packed, rest)
}

// reads tries whether a member of which there is doubt can be read: to its
// checksum, or if that is not known for a start.
func (z *zipFile) reads(h zipHeader, room *io.SectionReader) bool {
	room.Seek(0, io.SeekStart)       //nolint:errcheck // cannot fail
	defer room.Seek(0, io.SeekStart) //nolint:errcheck // cannot fail
	sum := crc32.NewIEEE()
	t := &trial{left: trialLength}
	err := safely(func() error {
		return z.decompress(h, io.MultiWriter(sum, t), newCounter(room))
	})
	switch {
	case err == errTrial:
		return true
	case err != nil:
		return false
	case h.crc != 0:
		return sum.Sum32() == h.crc
	}
	return h.flags&zipEncryptedFlag == 0
}

// trialLength is after how many bytes a trial is taken for a success.
const trialLength = 1 << 20

var errTrial = fmt.Errorf("the trial is over")

// trial ends a trial.
type trial struct{ left int }

func (t *trial) Write(p []byte) (int, error) {
	if t.left -= len(p); t.left < 0 {
		return 0, errTrial
	}
	return len(p), nil
}

// unpack writes the content and checks its sum.
func (z *zipFile) unpack(h zipHeader, w io.Writer, c *counter) error {
	sum := crc32.NewIEEE()
	if err := z.decompress(h, io.MultiWriter(w, sum), c); err != nil {
		return err
	}
	if h.crc != 0 && h.crc != sum.Sum32() {
		return &Error{Damaged, "zip", "a member's checksum is wrong"}
	}
	return nil
}

func (z *zipFile) decompress(h zipHeader, w io.Writer, c *counter) error {
	switch h.method {
	case zipStored:
		return z.copyAll(w, c)
	case zipDeflate:
		d := flate.NewReader(c.Reader)
		defer d.Close()
		return z.copyAll(w, d)
	case zipBzip2:
		return z.copyAll(w, bzip2.NewReader(c.Reader))
	case zipLZMA:
		return z.zipLZMA(h, w, c)
	case zipZstd, zipZstdOld:
		return z.zstd(w, c)
	case zipXZ:
		return z.xz(w, c)
	}
	return &Error{Unsupported, "zip", fmt.Sprintf("method %d", h.method)}
}

// zipLZMA makes the header of a .lzma file of what a zip has before the data
// (APPNOTE.TXT 5.8.8).
func (z *zipFile) zipLZMA(h zipHeader, w io.Writer, c *counter) error {
	var b [9]byte
	if _, err := io.ReadFull(c, b[:]); err != nil {
		return err
	}
	if binary.LittleEndian.Uint16(b[2:]) != 5 {
		return &Error{Unsupported, "zip", "properties of LZMA"}
	}
	size := uint64(h.size)
	if h.flags&2 != 0 { // there is a mark at the end
		size = 1<<64 - 1
	}
	header := binary.LittleEndian.AppendUint64(b[4:9:9], size)
	return z.lzma(w, header, c)
}

// lzma unpacks a stream with the header of a .lzma file.
func (k *walk) lzma(w io.Writer, header []byte, r io.Reader) error {
	dictionary := int64(binary.LittleEndian.Uint32(header[1:]))
	if err := k.dictionary("lzma", dictionary); err != nil {
		return err
	}
	d, err := lzma.ReaderConfig{DictCap: int(max(dictionary, lzma.MinDictCap))}.NewReader(io.MultiReader(bytes.NewReader(header), r))
	if err != nil {
		return err
	}
	return k.copyAll(w, d)
}

// dictionary is an error if a decompressor wants more memory than it may have.
func (k *walk) dictionary(format string, bytes int64) error {
	if bytes > k.limits.Dictionary {
		return &Error{OverLimit, format, fmt.Sprintf("a dictionary of %d bytes, more than %d", bytes, k.limits.Dictionary)}
	}
	return nil
}
