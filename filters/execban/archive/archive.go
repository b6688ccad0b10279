package archive

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
)

// Limits bound a walk. Zero values mean the defaults.
type Limits struct {
	// Depth is how many archives may be inside one another, default 8.
	Depth int
	// Members is how many members there may be, of all archives together;
	// default 10,000.
	Members int
	// Bytes is how much all members may hold unpacked, default 512 MiB, and
	// Member how much one may; default 128 MiB.
	Bytes, Member int64
	// Ratio is how many times larger than its packed form a member may be once
	// it is above 16 MiB; default 200.
	Ratio int64
	// Dictionary is how much memory in bytes a decompressor may want; default
	// 64 MiB.
	Dictionary int64
}

func (l Limits) defaults() Limits {
	for _, d := range []struct {
		field *int64
		value int64
	}{{&l.Bytes, 512 << 20}, {&l.Member, 128 << 20}, {&l.Ratio, 200}, {&l.Dictionary, 64 << 20}} {
		if *d.field == 0 {
			*d.field = d.value
		}
	}
	if l.Depth == 0 {
		l.Depth = 8
	}
	if l.Members == 0 {
		l.Members = 10_000
	}
	return l
}

// Member is something in an archive, or what is wrong with the archive itself:
// then Path is the archive's and there is an Err and no Content.
type Member struct {
	// Path is the names from the outermost archive's own to the member's, as
	// they are written there, which may be "", absolute, or worse.
	Path []string
	// Names are further names that the member has in other readings.
	Names []string
	// Format is what it lies in: "zip", "rar", ...
	Format string
	// Reading says which of several readings of the archive shows the member;
	// "" is the usual one.
	Reading string
	// Content is Size bytes, all or as much as could be had; nil if nothing
	// could. It is valid until the visit ends.
	Content io.ReaderAt
	Size    int64
	// Err is nil or an *Error; beside Content it means that this is not all, or
	// not certainly right.
	Err error
}

// Class is why a member or an archive cannot be judged.
type Class uint8

// The classes of Error.
const (
	Damaged       Class = iota // not as its format demands
	Encrypted                  // needs a password
	Unsupported                // nothing here reads that format or method
	OverLimit                  // goes beyond Limits
	Contradictory              // programs will disagree about what it holds
)

// classNames are the words of the classes.
var classNames = [...]string{"damaged", "encrypted", "unsupported", "over a limit", "contradictory"}

// String is the class's word.
func (c Class) String() string { return classNames[c] }

// Error is what is wrong with a member or an archive. Its text has no bytes of
// the archive in it but numbers and what a library says of them.
type Error struct {
	Class  Class
	Format string
	Detail string
}

// Error is a line for the log.
func (e *Error) Error() string {
	return fmt.Sprintf("%s: %v: %s", e.Format, e.Class, e.Detail)
}

// Visit is told a member; an error ends the walk.
type Visit func(Member) error

// Temp is a temporary file, written once and then read.
type Temp interface {
	io.Writer
	io.ReaderAt
	io.Closer
}

// Walker walks archives. It keeps nothing between walks.
type Walker struct {
	Limits Limits
	// Temp makes a temporary file; an error of its Write is beyond a limit.
	Temp func() Temp
}

// Walk visits the members of a file, and theirs, if it is an archive in any
// reading; of what is none it visits nothing. A container is visited before what
// it contains. The error is that of visit or of ctx. After a limit on bytes or
// members is reached the walk ends with a member that says so.
func (w Walker) Walk(ctx context.Context, name string, r io.ReaderAt, size int64, visit Visit) error {
	k := &walk{limits: w.Limits.defaults(), temp: w.Temp, ctx: ctx, visit: visit}
	k.buffer, k.far = make([]byte, 64<<10), make([]byte, farLength)
	err := k.container(node{path: []string{name}, r: r, size: size})
	if errors.Is(err, errEnough) {
		return nil
	}
	return err
}

// walk is one walk.
type walk struct {
	limits  Limits
	temp    func() Temp
	ctx     context.Context
	visit   Visit
	members int
	bytes   int64
	buffer  []byte // for copying
	far     []byte // for detecting
}

// node is a file that may be an archive.
type node struct {
	path  []string
	r     io.ReaderAt
	size  int64
	depth int
}

// section is a part of the node, clipped to it.
func (n node) section(off, size int64) *io.SectionReader {
	off = min(max(off, 0), n.size)
	return io.NewSectionReader(n.r, off, min(max(size, 0), n.size-off))
}

// name is the node's own name.
func (n node) name() string { return n.path[len(n.path)-1] }

// errEnough ends a walk that has reached a limit, after it has been told.
var errEnough = errors.New("enough")

// container walks a file in every format that it may be in.
func (k *walk) container(n node) error {
	for _, hit := range detect(n, k.far) {
		if n.depth >= k.limits.Depth {
			return k.report(n, &Error{OverLimit, hit.format.name, fmt.Sprintf("more than %d archives inside one another", k.limits.Depth)})
		}
		if err := k.open(n, hit); err != nil {
			return err
		}
	}
	return nil
}

// open walks a file in one format.
func (k *walk) open(n node, hit hit) error {
	told := k.members
	err := safely(func() error { return hit.format.walk(k, hit.node(n)) })
	var stop *stopError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &stop):
		return stop.err
	}
	e := classify(err, hit.format.name, Damaged)
	if hit.guess && k.members == told && e.Class == Damaged {
		return nil // what looked like an archive somewhere in a file is none
	}
	return k.report(n, e)
}

// report tells what is wrong with an archive.
func (k *walk) report(n node, err *Error) error {
	if e := k.ctx.Err(); e != nil {
		return e
	}
	return k.visit(Member{Path: n.path, Format: err.Format, Err: err})
}

// stopError wraps what ends the whole walk on its way through a format.
type stopError struct{ err error }

func (s *stopError) Error() string { return s.err.Error() }

func stop(err error) error {
	if err == nil {
		return nil
	}
	return &stopError{err}
}

// classify makes an *Error of what a format or a library said.
func classify(err error, format string, class Class) *Error {
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	text := err.Error()
	return &Error{class, format, text[:min(len(text), 200)]}
}

// safely turns a panic of a library into an error.
func safely(f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v", p)
		}
	}()
	return f()
}

// entry is a member as a format finds it: its content is a part of the archive,
// or comes out of extract, or cannot be had at all (err).
type entry struct {
	names   []string
	reading string
	section *io.SectionReader
	extract func(io.Writer) error
	packed  int64 // how many bytes extract reads, at most
	err     *Error
}

// member visits an entry of n and what is inside. It returns what ends the
// walk, wrapped.
func (k *walk) member(n node, format string, e entry) error {
	if err := k.ctx.Err(); err != nil {
		return stop(err)
	}
	if len(e.names) == 0 {
		e.names = []string{""}
	}
	m := Member{
		Path: append(slices.Clone(n.path), e.names[0]), Names: distinct(e.names), Format: format, Reading: e.reading,
	}
	if e.err != nil {
		m.Err = e.err
	}
	if k.members++; k.members > k.limits.Members {
		m.Err = &Error{OverLimit, format, fmt.Sprintf("more than %d members", k.limits.Members)}
		return k.last(m)
	}
	over := false
	switch {
	case e.section != nil:
		m.Content, m.Size = e.section, e.section.Size()
		if k.bytes += m.Size; k.bytes > k.limits.Bytes {
			m.Err, over = k.tooMuch(format), true
		}
	case e.extract != nil:
		t := k.temp()
		defer t.Close()
		s := &sink{walk: k, temp: t, packed: e.packed}
		err := safely(func() error { return e.extract(s) })
		if err := k.ctx.Err(); err != nil {
			return stop(err)
		}
		if s.failed != nil { // whatever a library made of it
			err = s.failed
		}
		if err != nil {
			m.Err = classify(err, format, Damaged)
		}
		over = errors.Is(err, errTotal)
		if over {
			m.Err = k.tooMuch(format)
		}
		m.Content, m.Size = t, s.n
	}
	if over {
		return k.last(m)
	}
	if err := k.visit(m); err != nil {
		return stop(err)
	}
	if m.Content == nil || m.Size == 0 {
		return nil
	}
	return stop(k.container(node{path: m.Path, r: m.Content, size: m.Size, depth: n.depth + 1}))
}

func (k *walk) tooMuch(format string) *Error {
	return &Error{OverLimit, format, fmt.Sprintf("more than %d bytes unpacked", k.limits.Bytes)}
}

// last visits the member with which the walk ends.
func (k *walk) last(m Member) error {
	if err := k.visit(m); err != nil {
		return stop(err)
	}
	return stop(errEnough)
}

// distinct is the names beside the first one that differ from it.
func distinct(names []string) (others []string) {
	for _, name := range names[1:] {
		if name != names[0] && !slices.Contains(others, name) {
			others = append(others, name)
		}
	}
	return others
}
