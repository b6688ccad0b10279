package content

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
)

// The identifiers of OneNote ([MS-ONESTORE] §2.3.1, §2.6.13).
const (
	oneNoteFile   = "\xe4\x52\x5c\x7b\x8c\xd8\xa7\x4d\xae\xb1\x53\x78\xd0\x29\x96\xd3"
	oneNoteObject = "\xe7\x16\xe3\xbd\x65\x26\x11\x45\xa4\xc4\x8d\x4d\x0b\x7a\x9e\xac"
	oneNoteHead   = 36
)

// oneNote looks for embedded files that are no pictures, which OneNote keeps in
// the same way.
func oneNote(f *file) []Match {
	if !bytes.HasPrefix(f.head, []byte(oneNoteFile)) {
		return nil
	}
	for at := int64(0); at < f.size; {
		b := f.piece(at, textLength)
		i := bytes.Index(b, []byte(oneNoteObject))
		if i < 0 {
			at += max(1, int64(len(b)-len(oneNoteObject)+1))
			continue
		}
		at += int64(i)
		h := f.piece(at, oneNoteHead+16)
		if len(h) > oneNoteHead && binary.LittleEndian.Uint64(h[16:]) > 0 && !isPicture(h[oneNoteHead:]) {
			return []Match{{Class: OneNoteEmbedded, What: "a section of OneNote with a file inside"}}
		}
		at += int64(len(oneNoteObject))
	}
	return nil
}

// isPicture is by the first bytes whether something is a picture or a sound that
// OneNote itself puts into a section.
func isPicture(b []byte) bool {
	if bytes.HasPrefix(b, []byte("BM")) {
		return len(b) >= 10 && binary.LittleEndian.Uint32(b[6:]) == 0
	}
	for _, magic := range []string{
		"\x89PNG", "\xff\xd8\xff", "GIF8", "II*\x00", "MM\x00*", "RIFF", "\x01\x00\x00\x00", "\xd7\xcd\xc6\x9a", "<svg", "ID3", "\x00\x00\x00\x18ftyp", "\x00\x00\x00\x20ftyp",
		"\x30\x26\xb2\x75",
	} {
		if bytes.HasPrefix(b, []byte(magic)) {
			return true
		}
	}
	return false
}

// richText looks for objects, and for a template from elsewhere. Word takes for
// RTF what begins with five characters, whatever follows.
func richText(f *file) (all []Match) {
	if !bytes.HasPrefix(bytes.TrimLeft(f.head, "\xef\xbb\xbf \t\r\n\x00"), []byte(`{\rt`)) {
		return nil
	}
	found := f.contains(f.size, bytes.ToLower, `\objdata`, `\objupdate`, `\objocx`, `\objautlink`, `\objlink`, `\*\template http`, `\*\template \\\\`, `ddeauto`)
	for i, m := range []Match{
		{Class: RTFObjects, What: "a document with an embedded object"},
		{Class: RTFObjects, What: "a document with an embedded object"},
		{Class: RTFObjects, What: "a document with an embedded object"},
		{Class: OfficeTemplates, What: "a document with a linked object"},
		{Class: OfficeTemplates, What: "a document with a linked object"},
		{Class: OfficeTemplates, What: "a document with a template from elsewhere"},
		{Class: OfficeTemplates, What: "a document with a template from elsewhere"},
		{Class: OfficeMacros, What: "a document that starts a program (DDE)"},
	} {
		if found[i] {
			all = add(all, m)
		}
	}
	return all
}

// portable looks for actions in a PDF, as far as they are not in packed streams.
func portable(f *file) []Match {
	if !bytes.Contains(f.head[:min(len(f.head), 1024)], []byte("%PDF-")) {
		return nil
	}
	found := f.contains(f.size, pdfNames, "/Launch", "/JavaScript", "/JS ", "/JS(", "/JS<")
	for i, is := range found {
		switch {
		case is && i == 0:
			return []Match{{Class: PDFActive, What: "a PDF that starts a program"}}
		case is:
			return []Match{{Class: PDFActive, What: "a PDF with a script"}}
		}
	}
	return nil
}

// pdfNames decodes the escapes of names (ISO 32000-1 §7.3.5). It may write into
// what it is given.
func pdfNames(b []byte) []byte {
	var c [1]byte
	out := b[:0]
	for {
		i := bytes.IndexByte(b, '#')
		if i < 0 || i+2 >= len(b) {
			return append(out, b...)
		}
		out = append(out, b[:i]...)
		if _, err := hex.Decode(c[:], b[i+1:i+3]); err == nil && c[0] > ' ' && c[0] < 0x7f {
			out = append(out, c[0])
			b = b[i+3:]
			continue
		}
		out = append(out, '#')
		b = b[i+1:]
	}
}
