package archive

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"encoding/binary"
	"errors"
	"io"
	"path"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// stripped is the name that a program gives to what it unpacks from a file of
// this name.
func stripped(name string) string {
	ext := path.Ext(name)
	base := strings.TrimSuffix(name, ext)
	switch ext = strings.ToLower(ext); ext {
	case ".tgz", ".tbz", ".tbz2", ".tb2", ".txz", ".tlz", ".tzst", ".taz":
		return base + ".tar"
	case ".svgz", ".emz", ".wmz":
		return base + map[string]string{".svgz": ".svg", ".emz": ".emf", ".wmz": ".wmf"}[ext]
	case "":
		return name
	}
	return base
}

// single visits the one member of a compressed file.
func (k *walk) single(n node, format string, extract func(io.Writer, io.Reader) error) error {
	return k.member(n, format, entry{
		names: []string{stripped(n.name())}, packed: n.size,
		extract: func(w io.Writer) error { return extract(w, bufio.NewReader(n.section(0, n.size))) },
	})
}

// walkGzip visits what all members of a gzip file are together (RFC 1952 §2.2).
// What follows the last one is ignored, as gzip does.
func walkGzip(k *walk, n node) error {
	r := bufio.NewReader(n.section(0, n.size))
	first, err := gzip.NewReader(r)
	if err != nil {
		return err
	}
	names := []string{stripped(n.name())}
	if first.Name != "" {
		names = append(names, first.Name)
	}
	return k.member(n, "gzip", entry{names: names, packed: n.size, extract: func(w io.Writer) error {
		for members := 0; ; members++ {
			first.Multistream(false)
			if err := k.copyAll(w, first); err != nil {
				return err
			}
			if first.Reset(r) != nil || members > k.limits.Members {
				return nil
			}
		}
	}})
}

func walkBzip2(k *walk, n node) error {
	return k.single(n, "bzip2", func(w io.Writer, r io.Reader) error { return k.copyAll(w, bzip2.NewReader(r)) })
}

func walkZstd(k *walk, n node) error { return k.single(n, "zstd", k.zstd) }
func walkXZ(k *walk, n node) error   { return k.single(n, "xz", k.xz) }

func (k *walk) zstd(w io.Writer, r io.Reader) error {
	d, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxWindow(uint64(max(k.limits.Dictionary, 1<<10))), zstd.WithDecoderMaxMemory(uint64(k.limits.Bytes)))
	if err != nil {
		return err
	}
	defer d.Close()
	err = k.copyAll(w, d)
	if errors.Is(err, zstd.ErrWindowSizeExceeded) {
		return &Error{OverLimit, "zstd", err.Error()}
	}
	return err
}

func walkLZMA(k *walk, n node) error {
	return k.single(n, "lzma", func(w io.Writer, r io.Reader) error {
		header := make([]byte, 13)
		if _, err := io.ReadFull(r, header); err != nil {
			return err
		}
		return k.lzma(w, header, r)
	})
}

// walkLzip reads the first member of an lzip file; its trailer, which lzma does
// not know, is left.
func walkLzip(k *walk, n node) error {
	return k.single(n, "lzip", func(w io.Writer, r io.Reader) error {
		b := make([]byte, 6)
		if _, err := io.ReadFull(r, b); err != nil {
			return err
		}
		base := uint32(1) << (b[5] & 0x1f)
		dictionary := base - base/16*uint32(b[5]>>5)
		header := binary.LittleEndian.AppendUint32([]byte{0x5d}, dictionary)
		header = append(header, bytes.Repeat([]byte{0xff}, 8)...)
		return k.lzma(w, header, r)
	})
}
