package archive

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/richardlehane/mscfb"
)

// Compound files ([MS-CFB]): old Office documents, Outlook messages, Windows
// Installer packages, and what is embedded in them.

const (
	olePage = 64 << 10
	// oleNative is the stream that holds an embedded package ([MS-OLEDS]), without
	// the control byte before it.
	oleNative    = "Ole10Native"
	oleEncrypted = "EncryptedPackage"
	oleMaxNames  = 1024
)

// pages reads a file in large pieces for a library that reads four bytes at a
// time.
type pages struct {
	n    node
	page int64
	b    []byte
}

func (p *pages) ReadAt(b []byte, off int64) (n int, err error) {
	for n < len(b) {
		if off < 0 || off >= p.n.size {
			return n, io.EOF
		}
		if page := off / olePage; p.b == nil || page != p.page {
			p.b = readAt(p.n, page*olePage, min(olePage, p.n.size-page*olePage))
			if p.b == nil {
				return n, io.ErrUnexpectedEOF
			}
			p.page = page
		}
		k := copy(b[n:], p.b[off-p.page*olePage:])
		n += k
		off += int64(k)
	}
	return n, nil
}

func walkOLE(k *walk, n node) error {
	r, err := mscfb.New(&pages{n: n})
	if err != nil {
		return err
	}
	names := messageNames(r)
	for _, f := range r.File {
		if f.Size == 0 || f.FileInfo().IsDir() {
			continue
		}
		if err := k.oleStream(n, f, names); err != nil {
			return err
		}
	}
	return nil
}

// messageNames is the names of the attachments of an Outlook message ([MS-OXMSG]
// §2.2.2), by the storage that holds them.
func messageNames(r *mscfb.Reader) map[string][]string {
	names := map[string][]string{}
	for _, f := range r.File {
		id, ok := strings.CutPrefix(f.Name, "__substg1.0_")
		if !ok || len(id) != 8 || f.Size > oleMaxNames || len(f.Path) == 0 {
			continue
		}
		switch id[:4] {
		case "3001", "3703", "3704", "3707":
		default:
			continue
		}
		b := make([]byte, f.Size)
		got, _ := io.ReadFull(f, b)
		name := string(b[:got])
		if id[4:] == "001F" {
			name = utf16le(b[:got])
		}
		storage := strings.Join(f.Path, "/")
		names[storage] = append(names[storage], strings.TrimRight(name, "\x00"))
	}
	return names
}

// oleStream visits a stream, or what it is the wrapping of.
func (k *walk) oleStream(n node, f *mscfb.File, attachments map[string][]string) error {
	storage := strings.Join(f.Path, "/")
	name := msiName(f.Name)
	if storage != "" {
		name = storage + "/" + name
	}
	e := entry{names: []string{name}, packed: n.size}
	if strings.HasPrefix(f.Name, "__substg1.0_3701") {
		e.names = append(slices.Clone(attachments[storage]), name)
	}
	switch {
	case f.Name == oleEncrypted:
		e.err = &Error{Encrypted, "ole", "the document needs a password"}
	case f.Size > n.size:
		e.err = &Error{Damaged, "ole", "a stream larger than its file"}
		return k.member(n, "ole", e)
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	var head []byte
	if f.Name == oleNative {
		head = make([]byte, min(f.Size, 8<<10))
		got, _ := io.ReadFull(f, head)
		head = head[:got]
		if names, at, size, ok := nativePackage(head); ok {
			e.names = append(names, name)
			e.extract = func(w io.Writer) error { return k.native(w, io.MultiReader(bytes.NewReader(head), f), at, size) }
			return k.member(n, "ole", e)
		}
	}
	e.extract = func(w io.Writer) error { return k.copyAll(w, io.MultiReader(bytes.NewReader(head), f)) }
	return k.member(n, "ole", e)
}

// native unpacks an embedded package.
func (k *walk) native(w io.Writer, r io.Reader, at, size int64) error {
	err := k.copyAll(&part{w: w, skip: at, left: size}, r)
	switch {
	case errors.Is(err, errExtracted):
		return nil
	case err == nil && size > 0:
		return &Error{Damaged, "ole", "an embedded package is cut off"}
	}
	return err
}

// nativePackage reads the head of an embedded package: its label, the file's
// name, the name it was copied to, and where the content is.
func nativePackage(b []byte) (names []string, at, size int64, ok bool) {
	rest := b
	if len(rest) < 6 || binary.LittleEndian.Uint16(rest[4:]) != 2 {
		return nil, 0, 0, false
	}
	rest = rest[6:]
	text := func() string {
		i := bytes.IndexByte(rest, 0)
		if i < 0 || i > oleMaxNames {
			rest = nil
			return ""
		}
		s := string(rest[:i])
		rest = rest[i+1:]
		return s
	}
	names = []string{text(), text()}
	if len(rest) < 8 {
		return nil, 0, 0, false
	}
	rest = rest[4:]
	length := int64(binary.LittleEndian.Uint32(rest))
	rest = rest[4:]
	if length > int64(len(rest)) || length > oleMaxNames {
		return nil, 0, 0, false
	}
	names = append(names, strings.TrimRight(string(rest[:length]), "\x00"))
	rest = rest[length:]
	if len(rest) < 4 {
		return nil, 0, 0, false
	}
	size = int64(binary.LittleEndian.Uint32(rest))
	return names, int64(len(b) - len(rest) + 4), size, true
}

// msiName decodes the name of a stream of an installer package, which has two
// letters in each character; other names are left as they are.
func msiName(name string) string {
	const letters = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz._"
	var s strings.Builder
	for _, c := range name {
		switch {
		case c >= 0x3800 && c < 0x4800:
			s.WriteByte(letters[(c-0x3800)&0x3f])
			s.WriteByte(letters[(c-0x3800)>>6&0x3f])
		case c >= 0x4800 && c < 0x4840:
			s.WriteByte(letters[c-0x4800])
		case c == 0x4840:
			s.WriteByte('!')
		case c < ' ':
			fmt.Fprintf(&s, "\\x%02x", c)
		default:
			s.WriteRune(c)
		}
	}
	return s.String()
}
