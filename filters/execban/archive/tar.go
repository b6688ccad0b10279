package archive

import (
	"archive/tar"
	"io"
)

// walkTar visits the files of a tar. Old, POSIX and GNU ones differ in what
// their headers mean by names; the standard library's reading is taken, and a
// name that a header has beside it.
func walkTar(k *walk, n node) error {
	section := n.section(0, n.size)
	r := tar.NewReader(section)
	for {
		h, err := r.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		e := entry{names: []string{h.Name}, packed: 0}
		if h.Linkname != "" {
			e.names = append(e.names, h.Linkname)
		}
		switch h.Typeflag {
		case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse:
			at, err := section.Seek(0, io.SeekCurrent)
			_, sparse := h.PAXRecords["GNU.sparse.major"]
			if err == nil && h.Typeflag != tar.TypeGNUSparse && !sparse && h.PAXRecords["GNU.sparse.map"] == "" {
				e.section = n.section(at, h.Size)
				if e.section.Size() < h.Size {
					e.err = &Error{Damaged, "tar", "a member is cut off"}
				}
				break
			}
			e.packed = n.size
			e.extract = func(w io.Writer) error { return k.copyAll(w, r) }
		}
		if err := k.member(n, "tar", e); err != nil {
			return err
		}
	}
}
