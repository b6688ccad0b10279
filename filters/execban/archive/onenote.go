package archive

import (
	"encoding/binary"
	"fmt"
)

// oneNoteObject is the identifier before a file that is embedded in a section of
// OneNote (FileDataStoreObject, [MS-ONESTORE] §2.6.13), and oneNoteHead the
// length of what comes before its content.
const (
	oneNoteObject = "\xe7\x16\xe3\xbd\x65\x26\x11\x45\xa4\xc4\x8d\x4d\x0b\x7a\x9e\xac"
	oneNoteHead   = 36
)

// walkOneNote visits embedded files. They are looked for by their identifier and
// not by way of the file's structures, which programs repair; the names stand
// elsewhere and are not read.
func walkOneNote(k *walk, n node) error {
	for at, i := int64(0), 1; ; i++ {
		if at = k.find(n, at, n.size, oneNoteObject); at < 0 {
			return nil
		}
		h := readAt(n, at, oneNoteHead)
		if h == nil {
			return nil
		}
		length := binary.LittleEndian.Uint64(h[16:])
		e := entry{names: []string{fmt.Sprintf("embedded file %d", i)}}
		e.section = n.section(at+oneNoteHead, int64(min(length, 1<<62)))
		if uint64(e.section.Size()) < length {
			e.err = &Error{Damaged, "onenote", "an embedded file is cut off"}
		}
		if err := k.member(n, "onenote", e); err != nil {
			return err
		}
		at += int64(len(oneNoteObject))
	}
}
