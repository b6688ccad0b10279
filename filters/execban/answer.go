package execban

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/postern-mta/postern/pipeline/reply"
)

// Bounds of an answer.
const (
	maxFindings = 1024
	perClass    = 4   // findings of one class that are told; more are counted
	maxPart     = 120 // bytes of each text of a finding
	maxReading  = 160
	maxClass    = 64
	maxFile     = 200
	maxWhat     = 160
)

// basis is what a finding rests on.
type basis uint8

const (
	byName basis = 1 << iota
	byContent
	bySignature
	byScan // it could not be looked at
)

// basisNames are the words of the combinations that there are.
var basisNames = map[basis]string{
	byName: "by name", byContent: "by content", byName | byContent: "by name and content", bySignature: "by signature", byScan: "unscannable",
}

func (b basis) valid() bool { return basisNames[b] != "" }

// finding is something that a class was found for, or that could not be looked
// at. Its texts are printable ASCII.
type finding struct {
	part     string // its place in the message, "1.2"
	reading  string // how a program comes to it: "strict", or how it departs from that
	class    string
	file     string // its name, those of the archives that it lies in before it, "/" between; may be ""
	what     string // what it is, or why it could not be looked at
	disguise string
	basis    basis
	depth    uint8 // how many archives it lies in
}

// answer is what a scan has come to.
type answer struct {
	parts, members uint64
	bytes          uint64 // that were looked at
	omitted        uint64 // findings that are not told
	findings       []finding
}

// texts are a finding's texts with their bounds, in the order in which they go
// over the wire.
func (f *finding) texts() [6]struct {
	at  *string
	max int
} {
	return [6]struct {
		at  *string
		max int
	}{{&f.part, maxPart}, {&f.reading, maxReading}, {&f.class, maxClass}, {&f.file, maxFile}, {&f.what, maxWhat}, {&f.disguise, maxWhat}}
}

// encode writes an answer for decode.
func (a *answer) encode() []byte {
	b := make([]byte, 0, 64+len(a.findings)*128)
	for _, n := range [...]uint64{a.parts, a.members, a.bytes, a.omitted, uint64(len(a.findings))} {
		b = binary.AppendUvarint(b, n)
	}
	for i := range a.findings {
		f := &a.findings[i]
		for _, t := range f.texts() {
			b = binary.AppendUvarint(b, uint64(len(*t.at)))
			b = append(b, *t.at...)
		}
		b = append(b, byte(f.basis), f.depth)
	}
	return b
}

var errCut = errors.New("the answer is cut off")

// decode reads an answer as one reads what a stranger sent: the worker that
// wrote it may not be itself any more. known says which classes there are.
func decode(b []byte, known func(class string) bool) (*answer, error) {
	a := &answer{}
	var n uint64
	var err error
	for _, into := range [...]*uint64{&a.parts, &a.members, &a.bytes, &a.omitted, &n} {
		if *into, b, err = number(b); err != nil {
			return nil, err
		}
	}
	if n > maxFindings {
		return nil, fmt.Errorf("%d findings; at most %d", n, maxFindings)
	}
	a.findings = make([]finding, n)
	for i := range a.findings {
		f := &a.findings[i]
		if b, err = f.decode(b); err != nil {
			return nil, fmt.Errorf("finding %d: %w", i+1, err)
		}
		if !known(f.class) {
			return nil, fmt.Errorf("finding %d: a class that there is not", i+1)
		}
	}
	if len(b) > 0 {
		return nil, fmt.Errorf("%d bytes behind the answer", len(b))
	}
	return a, nil
}

func (f *finding) decode(b []byte) ([]byte, error) {
	for _, t := range f.texts() {
		n, rest, err := number(b)
		switch {
		case err != nil:
			return nil, err
		case n > uint64(t.max):
			return nil, fmt.Errorf("a text of %d bytes; at most %d", n, t.max)
		case n > uint64(len(rest)):
			return nil, errCut
		}
		*t.at, b = string(rest[:n]), rest[n:]
		if reply.Clean(*t.at, t.max) != *t.at {
			return nil, errors.New("a text that is not clean")
		}
	}
	if len(b) < 2 {
		return nil, errCut
	}
	f.basis, f.depth = basis(b[0]), b[1]
	if !f.basis.valid() {
		return nil, errors.New("a finding that rests on nothing")
	}
	return b[2:], nil
}

// number reads a number in its shortest form.
func number(b []byte) (uint64, []byte, error) {
	n, size := binary.Uvarint(b)
	if size <= 0 {
		return 0, nil, errCut
	}
	if size > 1 && b[size-1] == 0 {
		return 0, nil, errors.New("a number that is longer than it need be")
	}
	return n, b[size:], nil
}
