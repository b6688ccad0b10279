package archive

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"slices"
	"strings"
)

// A zip can be read by its directory at the end, by the headers before each
// member, or by both; and programs find different directories in one file. So
// every directory is read, and every header, whether a directory lists it or
// not (APPNOTE.TXT 4.3).

// The signatures of a zip's records.
const (
	zipLocal     = "PK\x03\x04"
	zipCentral   = "PK\x01\x02"
	zipEnd       = "PK\x05\x06"
	zipEnd64     = "PK\x06\x06"
	zipLocator64 = "PK\x06\x07"
)

// The lengths of a zip's records without what varies.
const (
	zipLocalLength     = 30
	zipCentralLength   = 46
	zipEndLength       = 22
	zipLocatorLength   = 20
	zipEnd64Length     = 56
	zipEndSearch       = 1 << 20 // how far from the end of a file its last record may be
	zipMaxDirectories  = 16
	zipDescriptorFlag  = 1 << 3
	zipEncryptedFlag   = 1 << 0
	zipMaskedFlag      = 1 << 13
	zipExtra64         = 0x0001
	zipExtraUnicode    = 0x7075
	zipExtraAES        = 0x9901
	zipMaxNameToReport = 4096
)

// zipHeader is a member as one record describes it.
type zipHeader struct {
	names         []string
	flags, method uint16
	crc           uint32
	packed, size  int64
	offset        int64 // of the local header
	data          int64 // of the content; -1 as long as it is not known
}

// zipFile is a zip that is being read.
type zipFile struct {
	*walk
	n       node
	covered []span // what members and directories occupy
	listed  map[int64]bool
	odd     string // how readings differ
}

// span is a part of a file: from, and the first byte after it.
type span struct{ from, to int64 }

// looksLikeZip reports whether a program might take a file for a zip.
func looksLikeZip(n node) bool {
	head := make([]byte, 4)
	if _, err := n.r.ReadAt(head, 0); err == nil && string(head) == zipLocal {
		return true
	}
	return len(findDirectories(n)) > 0
}

func walkZip(k *walk, n node) error {
	head := make([]byte, 4)
	got, _ := n.r.ReadAt(head, 0)
	directories := findDirectories(n)
	begins := string(head[:got]) == zipLocal
	if !begins && len(directories) == 0 {
		return nil
	}
	z := &zipFile{walk: k, n: n, listed: map[int64]bool{}}
	for i, d := range directories {
		if err := z.directory(d, i, len(directories)); err != nil {
			return err
		}
	}
	if err := z.unlisted(len(directories) > 0); err != nil {
		return err
	}
	if z.odd != "" {
		return &Error{Contradictory, "zip", z.odd}
	}
	if len(directories) == 0 {
		return &Error{Damaged, "zip", "no directory"}
	}
	return nil
}

// differ notes how readings differ; the first one is told.
func (z *zipFile) differ(text string, args ...any) {
	if z.odd == "" {
		z.odd = fmt.Sprintf(text, args...)
	}
}

// zipDirectory is where a directory begins, ends, and by how much its offsets
// are wrong because of bytes before the archive.
type zipDirectory struct{ from, to, shift int64 }

// findDirectories finds every directory that some last record points to.
func findDirectories(n node) (found []zipDirectory) {
	start := max(0, n.size-zipEndSearch)
	tail := make([]byte, n.size-start)
	if got, err := n.r.ReadAt(tail, start); got < len(tail) && err != io.EOF {
		return nil
	}
	if !bytes.Contains(tail, []byte(zipEnd)) { // which is told faster than where the last one is
		return nil
	}
	for end := len(tail); len(found) < zipMaxDirectories; {
		i := bytes.LastIndex(tail[:end], []byte(zipEnd))
		if i < 0 {
			break
		}
		end = i + len(zipEnd) - 1
		if len(tail)-i < zipEndLength {
			continue
		}
		for _, d := range endRecord(n, start+int64(i), tail[i:i+zipEndLength]) {
			same := slices.ContainsFunc(found, func(other zipDirectory) bool { return other.from == d.from })
			if !same && signatureAt(n, d.from, zipCentral) {
				found = append(found, d)
			}
		}
	}
	return found
}

// endRecord is where the directory of a last record may be: just before the
// record, or where the record says.
func endRecord(n node, at int64, b []byte) []zipDirectory {
	le := binary.LittleEndian
	size, offset, end := int64(le.Uint32(b[12:])), int64(le.Uint32(b[16:])), at
	if b64 := readAt(n, at-zipLocatorLength, zipLocatorLength); b64 != nil && string(b64[:4]) == zipLocator64 {
		for _, p := range []int64{int64(le.Uint64(b64[8:])), at - zipLocatorLength - zipEnd64Length} {
			if r := readAt(n, p, zipEnd64Length); r != nil && string(r[:4]) == zipEnd64 {
				size, offset, end = int64(le.Uint64(r[40:])), int64(le.Uint64(r[48:])), p
				break
			}
		}
	}
	var all []zipDirectory
	if from := end - size; size >= 0 && from >= 0 {
		all = append(all, zipDirectory{from, end, from - offset})
	}
	if offset >= 0 && offset <= end && offset != end-size {
		all = append(all, zipDirectory{offset, end, 0})
	}
	return all
}

// readAt is a piece of a file, nil if it is not all there.
func readAt(n node, at, length int64) []byte {
	if at < 0 || length < 0 || at > n.size-length {
		return nil
	}
	b := make([]byte, length)
	if got, _ := n.r.ReadAt(b, at); int64(got) < length {
		return nil
	}
	return b
}

func signatureAt(n node, at int64, signature string) bool {
	return string(readAt(n, at, 4)) == signature
}

// directory visits what a directory lists.
func (z *zipFile) directory(d zipDirectory, i, all int) error {
	reading := ""
	if i > 0 {
		reading = fmt.Sprintf("directory %d", i+1)
	}
	fresh, at := 0, d.from
	for signatureAt(z.n, at, zipCentral) && at < d.to {
		h, length := centralHeader(z.n, at)
		if length == 0 {
			return &Error{Damaged, "zip", "the directory is cut off"}
		}
		at += length
		h.offset += d.shift
		if !signatureAt(z.n, h.offset, zipLocal) && signatureAt(z.n, h.offset-d.shift, zipLocal) {
			h.offset -= d.shift
		}
		if i > 0 && z.listed[h.offset] {
			continue
		}
		fresh++
		z.listed[h.offset] = true
		if err := z.listedMember(h, reading); err != nil {
			return err
		}
	}
	z.covered = append(z.covered, span{d.from, max(at, d.to)})
	if all > 1 && i > 0 && fresh > 0 {
		z.differ("%d directories", all)
	}
	return nil
}

// centralHeader reads a record of a directory; its length is 0 if it is not all
// there.
func centralHeader(n node, at int64) (h zipHeader, length int64) {
	b := readAt(n, at, zipCentralLength)
	if b == nil {
		return h, 0
	}
	le := binary.LittleEndian
	name, extra, comment := int64(le.Uint16(b[28:])), int64(le.Uint16(b[30:])), int64(le.Uint16(b[32:]))
	length = zipCentralLength + name + extra + comment
	rest := readAt(n, at+zipCentralLength, name+extra)
	if rest == nil {
		return h, 0
	}
	h = zipHeader{
		names: []string{string(rest[:name])}, flags: le.Uint16(b[8:]), method: le.Uint16(b[10:]), crc: le.Uint32(b[16:]),
		packed: int64(le.Uint32(b[20:])), size: int64(le.Uint32(b[24:])), offset: int64(le.Uint32(b[42:])), data: -1,
	}
	h.extras(rest[name:], true)
	return h, length
}

// localHeader reads the header before a member; false if it is not all there.
func localHeader(n node, at int64) (h zipHeader, ok bool) {
	b := readAt(n, at, zipLocalLength)
	if b == nil || string(b[:4]) != zipLocal {
		return h, false
	}
	le := binary.LittleEndian
	name, extra := int64(le.Uint16(b[26:])), int64(le.Uint16(b[28:]))
	rest := readAt(n, at+zipLocalLength, name+extra)
	if rest == nil {
		return h, false
	}
	h = zipHeader{
		names: []string{string(rest[:name])}, flags: le.Uint16(b[6:]), method: le.Uint16(b[8:]), crc: le.Uint32(b[14:]),
		packed: int64(le.Uint32(b[18:])), size: int64(le.Uint32(b[22:])), offset: at, data: at + zipLocalLength + name + extra,
	}
	h.extras(rest[name:], false)
	return h, true
}

// extras reads the extra fields that matter: large sizes, another name, and the
// method behind AES.
func (h *zipHeader) extras(b []byte, central bool) {
	le := binary.LittleEndian
	for len(b) >= 4 {
		id, n := le.Uint16(b), int(le.Uint16(b[2:]))
		b = b[4:]
		if n > len(b) {
			return
		}
		field := b[:n]
		b = b[n:]
		switch {
		case id == zipExtra64:
			wide := []*int64{&h.size, &h.packed}
			if central {
				wide = append(wide, &h.offset)
			}
			for _, w := range wide {
				if *w == 0xffffffff && len(field) >= 8 {
					*w = int64(le.Uint64(field) & (1<<63 - 1))
					field = field[8:]
				}
			}
		case id == zipExtraUnicode && n > 5:
			h.names = append(h.names, string(field[5:]))
		case id == zipExtraAES:
			h.flags |= zipEncryptedFlag
		}
	}
}

// sameName compares names as programs do that know no backslash.
func sameName(a, b string) bool {
	return a == b || strings.ReplaceAll(a, "\\", "/") == strings.ReplaceAll(b, "\\", "/")
}

// listedMember visits a member that a directory lists, and once more if its own
// header tells it differently.
func (z *zipFile) listedMember(h zipHeader, reading string) error {
	local, ok := localHeader(z.n, h.offset)
	if !ok {
		return z.member(z.n, "zip", entry{names: h.names, reading: reading, err: &Error{Damaged, "zip", "a listed member is not there"}})
	}
	h.data = local.data
	if h.flags&zipMaskedFlag == 0 && !sameName(h.names[0], local.names[0]) {
		z.differ("a member has two names")
	}
	if len(local.names) > 1 && !slices.ContainsFunc(local.names[1:], func(s string) bool { return sameName(s, h.names[0]) }) {
		z.differ("a member has two names")
	}
	both := append(slices.Clone(h.names), local.names...)
	h.names = both
	if err := z.content(h, reading, false); err != nil {
		return err
	}
	described := local.flags&zipDescriptorFlag != 0
	same := local.method == h.method && local.flags&zipEncryptedFlag == h.flags&zipEncryptedFlag &&
		(described || local.packed == h.packed && local.size == h.size)
	if same {
		return nil
	}
	z.differ("a member's header and the directory tell different things")
	local.names = both
	return z.content(local, "local header", false)
}

// unlisted visits members that no directory lists: programs that read a stream
// see them.
func (z *zipFile) unlisted(directory bool) error {
	for at := int64(0); ; {
		at = z.next(at)
		if at < 0 {
			return nil
		}
		h, ok := localHeader(z.n, at)
		if !ok || !plausible(h) {
			at += 4
			continue
		}
		told := z.members
		end := len(z.covered)
		if err := z.content(h, "local header", true); err != nil {
			return err
		}
		if z.members == told { // it was no member
			z.covered = z.covered[:end]
			at += 4
			continue
		}
		if directory {
			z.differ("a member is in no directory")
		}
		at = max(at+4, z.covered[len(z.covered)-1].to)
	}
}

// plausible is whether what looks like a member's header may be one.
func plausible(h zipHeader) bool {
	return h.method <= 20 || h.method >= 93 && h.method <= 99
}

// next is where the next header begins that lies in no part that is known, -1
// if there is none.
func (z *zipFile) next(at int64) int64 {
	slices.SortFunc(z.covered, func(a, b span) int { return int(min(max(a.from-b.from, -1), 1)) })
	for at < z.n.size {
		to := z.n.size
		inside := false
		for _, s := range z.covered {
			if s.from <= at && at < s.to {
				at, inside = s.to, true
			} else if s.from > at {
				to = min(to, s.from)
			}
		}
		if inside {
			continue
		}
		// Headers that begin before a known part are looked for.
		if i := z.find(z.n, at, min(to+3, z.n.size), zipLocal); i >= 0 {
			return i
		}
		at = to
	}
	return -1
}
