package archive

import (
	"errors"
	"io"

	"github.com/nwaples/rardecode/v2"
)

// walkRAR visits the files of a RAR of version 1.5 to 7.
func walkRAR(k *walk, n node) error {
	r, err := rardecode.NewReader(n.section(0, n.size), rardecode.MaxDictionarySize(k.limits.Dictionary))
	if err != nil {
		return rarError(err)
	}
	for {
		h, err := r.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return rarError(err)
		}
		e := entry{names: []string{h.Name}, packed: max(h.PackedSize, 1)}
		if h.LinkTarget != "" {
			e.names = append(e.names, h.LinkTarget)
		}
		switch {
		case h.Encrypted || h.HeaderEncrypted:
			e.err = &Error{Encrypted, "rar", "a member needs a password"}
		case !h.IsDir && h.LinkType == rardecode.LinkTypeNone:
			e.extract = func(w io.Writer) error { return rarError(k.copyAll(w, r)) }
		}
		if err := k.member(n, "rar", e); err != nil {
			return err
		}
		if e.err != nil && h.Solid {
			return e.err
		}
	}
}

// rarError classifies what the library says.
func rarError(err error) error {
	for _, c := range []struct {
		is    error
		class Class
	}{
		{rardecode.ErrArchiveEncrypted, Encrypted},
		{rardecode.ErrArchivedFileEncrypted, Encrypted},
		{rardecode.ErrBadPassword, Encrypted},
		{rardecode.ErrUnknownEncryptMethod, Encrypted},
		{rardecode.ErrDictionaryTooLarge, OverLimit},
		{rardecode.ErrMultiVolume, Unsupported},
		{rardecode.ErrUnsupportedDecoder, Unsupported},
		{rardecode.ErrUnknownDecoder, Unsupported},
		{rardecode.ErrUnknownVersion, Unsupported},
		{rardecode.ErrTooManyFilters, Unsupported},
		{rardecode.ErrUnknownFilter, Unsupported},
	} {
		if errors.Is(err, c.is) {
			return &Error{c.class, "rar", c.is.Error()}
		}
	}
	return err
}
