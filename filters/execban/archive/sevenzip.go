package archive

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"strings"

	"github.com/bodgit/sevenzip"
	"github.com/ulikunitz/xz/lzma"
)

// The library takes every number of a 7z's header for true and makes room for
// it. So the header is read here first (7zFormat.txt), as far as it says how
// many of something there are and what memory a coder wants.

// The properties of a 7z's header.
const (
	szEnd           = 0x00
	szHeader        = 0x01
	szArchive       = 0x02
	szAdditional    = 0x03
	szMainStreams   = 0x04
	szFiles         = 0x05
	szPack          = 0x06
	szUnpack        = 0x07
	szSubstreams    = 0x08
	szSize          = 0x09
	szCRC           = 0x0a
	szFolder        = 0x0b
	szUnpackSizes   = 0x0c
	szNumUnpack     = 0x0d
	szEncodedHeader = 0x17
	szStart         = 32
	szMaxHeader     = 16 << 20
)

// The coders whose memory is known, by identifier.
const (
	szLZMA  = "\x03\x01\x01"
	szLZMA2 = "\x21"
	szPPMd  = "\x03\x04\x01"
	szAES   = "\x06\xf1\x07\x01"
	szCopy  = "\x00"
)

func szDamaged(what string) error { return &Error{Damaged, "7z", what} }

func walkSevenZip(k *walk, n node) error {
	if err := k.checkSevenZip(n); err != nil {
		return err
	}
	r, err := sevenzip.NewReader(n.section(0, n.size), n.size)
	if err != nil {
		return szError(err)
	}
	for _, f := range r.File {
		e := entry{names: []string{f.Name}, packed: n.size}
		if !strings.HasSuffix(f.Name, "/") && f.UncompressedSize > 0 {
			e.extract = func(w io.Writer) error {
				c, err := f.Open()
				if err != nil {
					return szError(err)
				}
				defer c.Close()
				return szError(k.copyAll(w, c))
			}
		}
		if err := k.member(n, "7z", e); err != nil {
			return err
		}
	}
	return nil
}

// szError classifies what the library says.
func szError(err error) error {
	var read *sevenzip.ReadError
	if errors.As(err, &read) && read.Encrypted {
		return &Error{Encrypted, "7z", "a password is needed"}
	}
	if err != nil && strings.Contains(err.Error(), "unsupported") {
		return &Error{Unsupported, "7z", "method"}
	}
	return err
}

// checkSevenZip reads the header, through the one that packs it if there is one.
func (k *walk) checkSevenZip(n node) error {
	b := readAt(n, 0, szStart)
	if b == nil {
		return szDamaged("cut off")
	}
	if crc32.ChecksumIEEE(b[12:]) != binary.LittleEndian.Uint32(b[8:]) {
		return szDamaged("the start")
	}
	offset, size := binary.LittleEndian.Uint64(b[12:]), binary.LittleEndian.Uint64(b[20:])
	if size == 0 {
		return szDamaged("empty")
	}
	if size > szMaxHeader {
		return &Error{OverLimit, "7z", fmt.Sprintf("a header of %d bytes", size)}
	}
	if offset > uint64(n.size) {
		return szDamaged("cut off")
	}
	header := readAt(n, szStart+int64(offset), int64(size))
	if header == nil {
		return szDamaged("cut off")
	}
	for range 4 {
		p := &szParser{walk: k, b: header}
		kind, err := p.header()
		if err != nil {
			return err
		}
		if kind == szHeader {
			return nil
		}
		if header, err = k.unpackHeader(n, p); err != nil {
			return err
		}
	}
	return szDamaged("headers in headers")
}

// unpackHeader unpacks the header that the parser has found described.
func (k *walk) unpackHeader(n node, p *szParser) ([]byte, error) {
	if len(p.folders) != 1 || len(p.packed) == 0 {
		return nil, szDamaged("the packed header")
	}
	f := p.folders[0]
	for _, c := range f {
		if c.id == szAES {
			return nil, &Error{Encrypted, "7z", "the names need a password"}
		}
	}
	if len(f) != 1 || len(p.sizes) != 1 || p.sizes[0] > szMaxHeader {
		return nil, &Error{Unsupported, "7z", "how the header is packed"}
	}
	section := n.section(szStart+int64(min(p.packPos, 1<<62)), int64(min(p.packed[0], 1<<62)))
	var r io.Reader
	var err error
	switch c := f[0]; {
	case c.id == szCopy:
		r = section
	case c.id == szLZMA && len(c.properties) == 5:
		header := binary.LittleEndian.AppendUint64(bytes.Clone(c.properties), p.sizes[0])
		r, err = lzma.ReaderConfig{DictCap: int(k.limits.Dictionary)}.NewReader(io.MultiReader(bytes.NewReader(header), bufio.NewReader(section)))
	case c.id == szLZMA2 && len(c.properties) == 1:
		r, err = lzma.Reader2Config{DictCap: int(max(lzma2Dictionary(c.properties[0]), lzma.MinDictCap))}.NewReader2(bufio.NewReader(section))
	default:
		return nil, &Error{Unsupported, "7z", "how the header is packed"}
	}
	if err != nil {
		return nil, err
	}
	header := make([]byte, p.sizes[0])
	if _, err := io.ReadFull(r, header); err != nil {
		return nil, szDamaged("the packed header")
	}
	return header, nil
}

// szCoder is a step of unpacking.
type szCoder struct {
	id         string
	properties []byte
	in, out    uint64
}

// szParser reads a header. After the first error it reads zeros.
type szParser struct {
	walk    *walk
	b       []byte
	failed  error
	packPos uint64
	packed  []uint64
	folders [][]szCoder
	sizes   []uint64
	summed  []bool // folders that have a checksum
}

func (p *szParser) fail(err error) {
	if p.failed == nil {
		p.failed = err
	}
	p.b = nil
}

func (p *szParser) octet() byte {
	if len(p.b) == 0 {
		p.fail(szDamaged("the header is cut off"))
		return 0
	}
	c := p.b[0]
	p.b = p.b[1:]
	return c
}

func (p *szParser) bytes(n uint64) []byte {
	if n > uint64(len(p.b)) {
		p.fail(szDamaged("the header is cut off"))
		return nil
	}
	b := p.b[:n]
	p.b = p.b[n:]
	return b
}

// number reads a number of one to nine bytes.
func (p *szParser) number() (v uint64) {
	first := p.octet()
	mask := byte(0x80)
	for i := range 8 {
		if first&mask == 0 {
			return v | uint64(first&(mask-1))<<(8*i)
		}
		v |= uint64(p.octet()) << (8 * i)
		mask >>= 1
	}
	return v
}

// count reads how many of something follow or are described, each of which takes
// a bit of the header at least.
func (p *szParser) count() uint64 {
	n := p.number()
	if n > 8*uint64(len(p.b))+8 || n > uint64(p.walk.limits.Members)*4 {
		p.fail(&Error{OverLimit, "7z", "more in it than its header has room for, or than may be"})
		return 0
	}
	return n
}

// header reads a header, or the description of a packed one.
func (p *szParser) header() (kind byte, err error) {
	kind = p.octet()
	switch kind {
	case szEncodedHeader:
		p.streamsInfo()
		return kind, p.failed
	case szHeader:
	default:
		p.fail(szDamaged("no header"))
	}
	for p.failed == nil {
		switch id := p.octet(); id {
		case szEnd:
			return kind, p.failed
		case szArchive:
			for p.failed == nil && p.octet() != szEnd {
				p.bytes(p.number())
			}
		case szAdditional:
			p.fail(&Error{Unsupported, "7z", "additional streams"})
		case szMainStreams:
			p.streamsInfo()
		case szFiles:
			p.count()
			return kind, p.failed // the rest has room for what it has
		default:
			p.fail(szDamaged("the header"))
		}
	}
	return kind, p.failed
}

func (p *szParser) streamsInfo() {
	for p.failed == nil {
		switch p.octet() {
		case szEnd:
			return
		case szPack:
			p.packInfo()
		case szUnpack:
			p.unpackInfo()
		case szSubstreams:
			p.substreams()
		default:
			p.fail(szDamaged("the streams"))
		}
	}
}

func (p *szParser) packInfo() {
	p.packPos = p.number()
	n := p.count()
	for p.failed == nil {
		switch p.octet() {
		case szEnd:
			return
		case szSize:
			for range n {
				if p.failed == nil {
					p.packed = append(p.packed, p.number())
				}
			}
		case szCRC:
			p.digests(n)
		default:
			p.fail(szDamaged("the packed streams"))
		}
	}
}

// digests passes over optional checksums; it returns which there are.
func (p *szParser) digests(n uint64) []bool {
	all := p.octet() != 0
	var bits []byte
	if !all {
		bits = p.bytes((n + 7) / 8)
	}
	if p.failed != nil {
		return nil
	}
	defined, sums := make([]bool, n), uint64(0)
	for i := range defined {
		if defined[i] = all || bits[i/8]>>(7-i%8)&1 != 0; defined[i] {
			sums++
		}
	}
	p.bytes(4 * sums)
	return defined
}

func (p *szParser) unpackInfo() {
	if p.octet() != szFolder {
		p.fail(szDamaged("the folders"))
	}
	n := p.count()
	if p.octet() != 0 {
		p.fail(&Error{Unsupported, "7z", "folders elsewhere"})
	}
	outs := uint64(0)
	for range n {
		if p.failed == nil {
			outs += p.folder()
		}
	}
	for p.failed == nil {
		switch p.octet() {
		case szEnd:
			return
		case szUnpackSizes:
			for range outs {
				if p.failed == nil {
					p.sizes = append(p.sizes, p.number())
				}
			}
		case szCRC:
			p.summed = p.digests(n)
		default:
			p.fail(szDamaged("the folders"))
		}
	}
}

// folder reads the coders of a folder; it returns the number of their outputs.
func (p *szParser) folder() (outs uint64) {
	n := p.number()
	if n == 0 || n > 32 {
		p.fail(szDamaged("a folder"))
		return 0
	}
	var coders []szCoder
	ins := uint64(0)
	for range n {
		flags := p.octet()
		c := szCoder{id: string(p.bytes(uint64(flags & 0xf))), in: 1, out: 1}
		if flags&0x10 != 0 {
			c.in, c.out = p.number(), p.number()
		}
		if flags&0x20 != 0 {
			c.properties = p.bytes(p.number())
		}
		if flags&0x80 != 0 || c.in > 32 || c.out > 32 {
			p.fail(szDamaged("a coder"))
			return 0
		}
		ins, outs = ins+c.in, outs+c.out
		p.memory(c)
		coders = append(coders, c)
	}
	if outs == 0 || ins+1 < outs {
		p.fail(szDamaged("a folder"))
		return 0
	}
	for range outs - 1 {
		p.number()
		p.number()
	}
	if packed := ins - (outs - 1); packed > 1 {
		for range packed {
			p.number()
		}
	}
	p.folders = append(p.folders, coders)
	return outs
}

// memory fails if a coder wants more memory than it may have.
func (p *szParser) memory(c szCoder) {
	var wants int64
	switch {
	case c.id == szLZMA && len(c.properties) >= 5, c.id == szPPMd && len(c.properties) >= 5:
		wants = int64(binary.LittleEndian.Uint32(c.properties[1:]))
	case c.id == szLZMA2 && len(c.properties) >= 1:
		wants = lzma2Dictionary(c.properties[0])
	}
	if err := p.walk.dictionary("7z", wants); err != nil {
		p.fail(err)
	}
}

// substreams reads how many files the folders hold and passes over their sizes
// and checksums.
func (p *szParser) substreams() {
	streams := make([]uint64, len(p.folders))
	id := p.octet()
	for i := range streams {
		streams[i] = 1
		if id == szNumUnpack {
			streams[i] = p.count()
		}
	}
	if id == szNumUnpack {
		id = p.octet()
	}
	sizes, sums := uint64(0), uint64(0)
	for i, n := range streams {
		if n > 0 {
			sizes += n - 1
		}
		if n != 1 || i >= len(p.summed) || !p.summed[i] {
			sums += n
		}
	}
	if sums > uint64(p.walk.limits.Members)*4 {
		p.fail(&Error{OverLimit, "7z", "more files than may be"})
	}
	for p.failed == nil && id != szEnd {
		switch id {
		case szSize:
			for range sizes {
				p.number()
			}
		case szCRC:
			p.digests(sums)
		default:
			p.fail(szDamaged("the files' sizes"))
		}
		id = p.octet()
	}
}
