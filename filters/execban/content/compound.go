package content

import (
	"bytes"
	"encoding/binary"
	"io"
	"strings"

	"github.com/richardlehane/mscfb"
)

// Compound files ([MS-CFB]): Office documents of the older kind, installer
// packages, and the macros inside newer documents.

const (
	compoundMagic = "\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
	maxStreams    = 10_000
)

// installerIDs are the class identifiers of packages, patches and transforms of
// Windows Installer.
var installerIDs = []string{"000C1084", "000C1086", "000C1082"}

// The records of a workbook ([MS-XLS] §2.4).
const (
	biffSheet    = 0x85
	biffPassword = 0x2f
	biffEnd      = 0x0a
	biffMaxRead  = 256 << 10
	wordFlags    = 0x0a // the offset of the flags in a document ([MS-DOC] §2.5.2)
)

func compound(f *file) (all []Match) {
	if !bytes.HasPrefix(f.head, []byte(compoundMagic)) {
		return nil
	}
	// Macros are looked for in the bytes too: the directory may be damaged, and
	// the compressed source always has this in it ([MS-OVBA] §2.3.4.3).
	if f.contains(f.size, nil, "\x00Attribut\x00e ")[0] {
		all = append(all, Match{Class: OfficeMacros, What: "a document with macros"})
	}
	defer func() {
		_ = recover() // what the library cannot read, its bytes have been looked at
	}()
	r, err := mscfb.New(&pages{f: f})
	if err != nil {
		return all
	}
	for _, id := range installerIDs {
		if strings.HasPrefix(strings.TrimPrefix(r.ID(), "{"), id) {
			all = add(all, Match{Class: Installers, What: "a package for Windows"})
		}
	}
	for _, s := range r.File[:min(len(r.File), maxStreams)] {
		for _, m := range stream(s) {
			all = add(all, m)
		}
	}
	return all
}

// streamNames is what a stream's or a storage's name tells, in lower case.
func streamNames() map[string]Match {
	macros := Match{Class: OfficeMacros, What: "a document with macros"}
	embedded := Match{Class: OfficeEmbedded, What: "a document with an embedded object"}
	encrypted := Match{Class: ArchivesEncrypted, What: "a document that needs a password"}
	return map[string]Match{
		"_vba_project": macros, "_vba_project_cur": macros, "macros": macros, "vba": macros, "vbaproject.otm": macros,
		"ole10native": embedded, "equation native": embedded, "package": embedded, "ocxname": embedded,
		"encryptedpackage": encrypted, "encryptedsummary": encrypted,
	}
}

func stream(s *mscfb.File) (all []Match) {
	name := strings.ToLower(s.Name)
	if m, ok := streamNames()[name]; ok {
		all = append(all, m)
	}
	switch name {
	case "workbook", "book":
		b := make([]byte, min(s.Size, biffMaxRead))
		n, _ := io.ReadFull(s, b)
		all = append(all, workbook(b[:n])...)
	case "worddocument":
		b := make([]byte, 32)
		if n, _ := io.ReadFull(s, b); n == len(b) && binary.LittleEndian.Uint16(b[wordFlags:])&0x100 != 0 {
			all = append(all, Match{Class: ArchivesEncrypted, What: "a document that needs a password"})
		}
	}
	return all
}

// workbook looks for sheets of macros of Excel 4, and for a password that is not
// the one that Excel tries by itself.
func workbook(b []byte) (all []Match) {
	for len(b) >= 4 {
		id, n := binary.LittleEndian.Uint16(b), int(binary.LittleEndian.Uint16(b[2:]))
		b = b[4:]
		if n > len(b) {
			return all
		}
		switch {
		case id == biffSheet && n >= 6 && b[5] == 1:
			all = append(all, Match{Class: OfficeMacros, What: "a workbook with macros of Excel 4"})
		case id == biffPassword:
			return append(all, Match{Class: ArchivesEncrypted, What: "a workbook that needs a password"})
		case id == biffEnd:
			return all
		}
		b = b[n:]
	}
	return all
}

// pages reads a file in large pieces for a library that reads four bytes at a
// time.
type pages struct {
	f  *file
	at int64
	b  []byte
}

func (p *pages) ReadAt(b []byte, off int64) (n int, err error) {
	for n < len(b) {
		if off < 0 || off >= p.f.size {
			return n, io.EOF
		}
		if off < p.at || off >= p.at+int64(len(p.b)) {
			p.at = off / headLength * headLength
			if p.b = p.f.piece(p.at, headLength); off >= p.at+int64(len(p.b)) {
				return n, io.ErrUnexpectedEOF
			}
		}
		k := copy(b[n:], p.b[off-p.at:])
		n += k
		off += int64(k)
	}
	return n, nil
}
