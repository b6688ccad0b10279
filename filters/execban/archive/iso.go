package archive

import (
	"encoding/binary"
	"strings"
	"unicode/utf16"
)

// ISO 9660 (ECMA-119) with Joliet: both trees are read, and the names that Rock
// Ridge gives. A UDF file system beside them is told as one that cannot be read.

const (
	isoSector      = 2048
	isoDescriptors = 16 // the first sector
	isoMaxVolumes  = 64
	isoMaxDepth    = 32
	isoDirectory   = 1 << 1
	isoMultiExtent = 1 << 7
	isoPrimary     = 1
	isoJoliet      = 2
	isoLast        = 255
)

// image is an ISO image that is being read.
type image struct {
	*walk
	n    node
	seen map[isoExtent]bool // files, told once under their names of the first tree
	dirs map[int64]bool
}

type isoExtent struct{ at, size int64 }

func isoDamaged(what string) error { return &Error{Damaged, "iso", what} }

func walkISO(k *walk, n node) error {
	i := &image{walk: k, n: n, seen: map[isoExtent]bool{}}
	found := 0
	udf := false
	for sector := int64(isoDescriptors); sector < isoDescriptors+isoMaxVolumes; sector++ {
		b := readAt(n, sector*isoSector, isoSector)
		if b == nil {
			break
		}
		switch string(b[1:6]) {
		case "NSR02", "NSR03":
			udf = true
			continue
		case "BEA01", "TEA01", "BOOT2":
			continue
		case "CD001":
		default:
			sector = isoDescriptors + isoMaxVolumes
			continue
		}
		if b[0] != isoPrimary && b[0] != isoJoliet {
			continue
		}
		joliet := b[0] == isoJoliet && b[88] == '%' && b[89] == '/'
		if b[0] == isoJoliet && !joliet {
			continue
		}
		found++
		i.dirs = map[int64]bool{}
		at, size := i.extent(b[156:190])
		if err := i.directory(at, size, "", joliet, 0); err != nil {
			return err
		}
	}
	if udf {
		return &Error{Unsupported, "udf", "a file system of this kind cannot be read here"}
	}
	if found == 0 {
		return isoDamaged("no volume")
	}
	return nil
}

// extent is where a record's content is. Both byte orders are there; a program
// may take either, and images in which they differ are none.
func (i *image) extent(record []byte) (at, size int64) {
	at = (int64(binary.LittleEndian.Uint32(record[2:])) + int64(record[1])) * isoSector
	return at, int64(binary.LittleEndian.Uint32(record[10:]))
}

// directory visits the files of a directory and of those below it.
func (i *image) directory(at, size int64, path string, joliet bool, depth int) error {
	if i.dirs[at] || depth > isoMaxDepth {
		return isoDamaged("directories go round")
	}
	i.dirs[at] = true
	if size > 16<<20 {
		return isoDamaged("a directory's size")
	}
	for end := at + size; at < end; at += isoSector {
		b := readAt(i.n, at, min(isoSector, i.n.size-at))
		if len(b) == 0 {
			return isoDamaged("a directory is cut off")
		}
		for len(b) > 0 && b[0] != 0 {
			length := int(b[0])
			if length < 34 || length > len(b) || 33+int(b[32]) > length {
				return isoDamaged("a record")
			}
			if err := i.record(b[:length], path, joliet, depth); err != nil {
				return err
			}
			b = b[length:]
		}
	}
	return nil
}

func (i *image) record(r []byte, path string, joliet bool, depth int) error {
	raw := r[33 : 33+int(r[32])]
	if len(raw) == 1 && raw[0] <= 1 { // the directory itself, and its parent
		return nil
	}
	names := isoNames(raw, r[33+len(raw):], joliet)
	for j := range names {
		names[j] = path + names[j]
	}
	at, size := i.extent(r)
	if r[25]&isoDirectory != 0 {
		return i.directory(at, size, names[0]+"/", joliet, depth+1)
	}
	if joliet && i.seen[isoExtent{at, size}] {
		// Its content has been told; the name may be another.
		return i.member(i.n, "iso", entry{names: names, reading: "joliet"})
	}
	i.seen[isoExtent{at, size}] = true
	e := entry{names: names, section: i.n.section(at, size)}
	if joliet {
		e.reading = "joliet"
	}
	switch {
	case e.section.Size() < size:
		e.err = &Error{Damaged, "iso", "a file is cut off"}
	case r[25]&isoMultiExtent != 0 || r[26] != 0:
		e.err = &Error{Unsupported, "iso", "a file in pieces"}
	case binary.BigEndian.Uint32(r[6:]) != binary.LittleEndian.Uint32(r[2:]) || binary.BigEndian.Uint32(r[14:]) != binary.LittleEndian.Uint32(r[10:]):
		e.err = &Error{Contradictory, "iso", "a file in two places"}
	}
	return i.member(i.n, "iso", e)
}

// isoNames is the names of a record without version numbers, that of Rock Ridge
// (IEEE P1282 §4.1.4) included.
func isoNames(raw, system []byte, joliet bool) []string {
	name := string(raw)
	if joliet {
		units := make([]uint16, len(raw)/2)
		for i := range units {
			units[i] = binary.BigEndian.Uint16(raw[2*i:])
		}
		name = string(utf16.Decode(units))
	}
	if i := strings.LastIndexByte(name, ';'); i > 0 {
		name = name[:i]
	}
	names := []string{strings.TrimSuffix(name, ".")}
	if len(raw)%2 == 0 && len(system) > 0 {
		system = system[1:]
	}
	rock := ""
	for len(system) >= 5 && int(system[2]) >= 5 && int(system[2]) <= len(system) {
		if string(system[:2]) == "NM" {
			rock += string(system[5:system[2]])
		}
		system = system[system[2]:]
	}
	if rock != "" {
		names = append(names, rock)
	}
	return names
}
