package rules

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"sync"
)

// ErrCDB is in the chain of every error about a file that is no sound constant database.
var ErrCDB = errors.New("not a sound cdb")

// MaxCDBValue is the longest value that is read, in bytes.
const MaxCDBValue = 1 << 20

const (
	cdbTables = 256
	cdbHeader = cdbTables * 8
	// cdbSlots is how many slots of a table are read at once.
	cdbSlots = 16
	// cdbKept is the largest buffer that goes back into the pool.
	cdbKept = 8 << 10
)

// CDB reads a constant database in D. J. Bernstein's format (cr.yp.to/cdb/cdb.txt): what tcprules, qmail-newmrh and
// qmail-newu write. It keeps the 2 KiB of the header in memory and reads the rest where it looks.
//
// Nothing in the file is believed: every position is checked before it is used, a look-up reads a table at most once
// around, and what is out of bounds is [ErrCDB], never a panic. A file that changes under the reader gives an error or a
// wrong answer, as it does in every program of that family: replace it by renaming. A CDB is safe for concurrent use.
type CDB struct {
	at     io.ReaderAt
	size   int64
	tables [cdbTables]cdbTable
	pool   sync.Pool // *cdbBuffer
}

type cdbTable struct{ pos, slots uint32 }

// CDBRecord is one record of a database.
type CDBRecord struct{ Key, Value string }

// cdbBuffer is what a look-up needs; the pool saves its allocation.
type cdbBuffer struct {
	key   []byte // what is looked up
	slots [cdbSlots * 8]byte
	head  [8]byte
	found []byte // the key in the file
}

// OpenCDB reads the header of a database of size bytes.
func OpenCDB(at io.ReaderAt, size int64) (*CDB, error) {
	if size < cdbHeader {
		return nil, fmt.Errorf("%w: %d bytes are too few for its header", ErrCDB, size)
	}
	if size > 1<<32 {
		return nil, fmt.Errorf("%w: %d bytes are more than the format can hold", ErrCDB, size)
	}
	var header [cdbHeader]byte
	if err := readFull(at, header[:], 0); err != nil {
		return nil, err
	}
	c := &CDB{at: at, size: size}
	for i := range c.tables {
		t := cdbTable{pos: le32(header[i*8:]), slots: le32(header[i*8+4:])}
		if t.pos < cdbHeader || int64(t.pos)+int64(t.slots)*8 > size {
			return nil, fmt.Errorf("%w: table %d lies outside of the file", ErrCDB, i)
		}
		c.tables[i] = t
	}
	return c, nil
}

// Find looks a key up and appends its first value to dst. ok is false if there is none. A look-up that finds nothing
// allocates nothing.
func (c *CDB) Find(key, dst []byte) (value []byte, ok bool, err error) {
	b := c.buffer()
	defer c.release(b)
	b.key = append(b.key[:0], key...)
	return c.first(b, dst)
}

// Has reports whether there is a record with this key.
func (c *CDB) Has(key string) (bool, error) {
	b := c.buffer()
	defer c.release(b)
	b.key = append(b.key[:0], key...)
	s := newCDBSearch(c, b)
	_, length, err := s.next()
	return length >= 0 && err == nil, err
}

// Values are all values of a key, in the order in which they were written. After an error there is nothing more.
func (c *CDB) Values(key string) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		b := c.buffer()
		defer c.release(b)
		b.key = append(b.key[:0], key...)
		s := newCDBSearch(c, b)
		for {
			pos, length, err := s.next()
			if err == nil && length < 0 {
				return
			}
			var value []byte
			if err == nil {
				value, err = c.read(nil, pos, length)
			}
			if !yield(string(value), err) || err != nil {
				return
			}
		}
	}
}

// All are all records, in the order in which they were written. After an error there is nothing more.
func (c *CDB) All() iter.Seq2[CDBRecord, error] {
	return func(yield func(CDBRecord, error) bool) {
		end := c.size
		for _, t := range c.tables {
			end = min(end, int64(t.pos))
		}
		for pos := int64(cdbHeader); pos < end; {
			r, next, err := c.record(pos, end)
			if !yield(r, err) || err != nil {
				return
			}
			pos = next
		}
	}
}

// record reads the record at pos, which must end before end.
func (c *CDB) record(pos, end int64) (r CDBRecord, next int64, err error) {
	if end-pos < 8 {
		return r, 0, fmt.Errorf("%w: a record at %d runs into the tables", ErrCDB, pos)
	}
	var head [8]byte
	if err := readFull(c.at, head[:], pos); err != nil {
		return r, 0, err
	}
	klen, vlen := int64(le32(head[:])), int64(le32(head[4:]))
	if next = pos + 8 + klen + vlen; next > end {
		return r, 0, fmt.Errorf("%w: a record at %d runs into the tables", ErrCDB, pos)
	}
	key, err := c.read(nil, pos+8, klen)
	if err != nil {
		return r, 0, err
	}
	value, err := c.read(nil, pos+8+klen, vlen)
	return CDBRecord{Key: string(key), Value: string(value)}, next, err
}

func (c *CDB) first(b *cdbBuffer, dst []byte) ([]byte, bool, error) {
	s := newCDBSearch(c, b)
	pos, length, err := s.next()
	if err != nil || length < 0 {
		return dst, false, err
	}
	value, err := c.read(dst, pos, length)
	return value, err == nil, err
}

// read appends length bytes of the file, which are known to be there, to dst.
func (c *CDB) read(dst []byte, pos, length int64) ([]byte, error) {
	if length > MaxCDBValue {
		return dst, fmt.Errorf("%w: a record of %d bytes, at most %d are read", ErrCDB, length, MaxCDBValue)
	}
	n := len(dst)
	dst = append(dst, make([]byte, length)...)
	if err := readFull(c.at, dst[n:], pos); err != nil {
		return dst[:n], err
	}
	return dst, nil
}

func (c *CDB) buffer() *cdbBuffer {
	if b, ok := c.pool.Get().(*cdbBuffer); ok {
		return b
	}
	return &cdbBuffer{}
}

func (c *CDB) release(b *cdbBuffer) {
	if cap(b.key) <= cdbKept && cap(b.found) <= cdbKept {
		c.pool.Put(b)
	}
}

// cdbSearch walks the slots in which a key may be.
type cdbSearch struct {
	c      *CDB
	b      *cdbBuffer
	hash   uint32
	table  cdbTable
	slot   uint32 // the next one
	left   uint32 // slots not looked at
	at, to uint32 // the slots in b.slots are at to to-1
}

func newCDBSearch(c *CDB, b *cdbBuffer) cdbSearch {
	s := cdbSearch{c: c, b: b, hash: cdbHash(b.key)}
	s.table = c.tables[s.hash%cdbTables]
	s.left = s.table.slots
	if s.left > 0 {
		s.slot = s.hash / cdbTables % s.table.slots
	}
	return s
}

// next is the place of the next value of the key; length is -1 if there is none.
func (s *cdbSearch) next() (pos, length int64, err error) {
	for s.left > 0 {
		hash, record, err := s.read()
		if err != nil {
			return 0, -1, err
		}
		if record == 0 {
			s.left = 0
			break
		}
		if hash != s.hash {
			continue
		}
		pos, length, err := s.compare(int64(record))
		if err != nil || length >= 0 {
			return pos, length, err
		}
	}
	return 0, -1, nil
}

// read is the next slot, in turn around the table.
func (s *cdbSearch) read() (hash, record uint32, err error) {
	if s.slot < s.at || s.slot >= s.to {
		n := min(cdbSlots, s.table.slots-s.slot)
		if err := readFull(s.c.at, s.b.slots[:n*8], int64(s.table.pos)+int64(s.slot)*8); err != nil {
			return 0, 0, err
		}
		s.at, s.to = s.slot, s.slot+n
	}
	slot := s.b.slots[(s.slot-s.at)*8:]
	s.left--
	if s.slot++; s.slot == s.table.slots {
		s.slot = 0
	}
	return le32(slot), le32(slot[4:]), nil
}

// compare says where the value of the record at pos is if its key is the one; else length is -1.
func (s *cdbSearch) compare(pos int64) (value, length int64, err error) {
	if pos < cdbHeader || s.c.size-pos < 8 {
		return 0, -1, fmt.Errorf("%w: a record at %d lies outside of the file", ErrCDB, pos)
	}
	if err := readFull(s.c.at, s.b.head[:], pos); err != nil {
		return 0, -1, err
	}
	klen, vlen := int64(le32(s.b.head[:])), int64(le32(s.b.head[4:]))
	if s.c.size-pos-8 < klen+vlen {
		return 0, -1, fmt.Errorf("%w: a record at %d lies outside of the file", ErrCDB, pos)
	}
	if klen != int64(len(s.b.key)) {
		return 0, -1, nil
	}
	if cap(s.b.found) < len(s.b.key) {
		s.b.found = make([]byte, len(s.b.key))
	}
	found := s.b.found[:klen]
	if err := readFull(s.c.at, found, pos+8); err != nil {
		return 0, -1, err
	}
	if string(found) != string(s.b.key) {
		return 0, -1, nil
	}
	return pos + 8 + klen, vlen, nil
}

// cdbHash is the hash of the format.
func cdbHash(key []byte) uint32 {
	h := uint32(5381)
	for _, c := range key {
		h = (h<<5 + h) ^ uint32(c)
	}
	return h
}

func le32(b []byte) uint32 { return binary.LittleEndian.Uint32(b) }

// readFull fills p from a place that is within the size that was told.
func readFull(at io.ReaderAt, p []byte, pos int64) error {
	if len(p) == 0 {
		return nil
	}
	n, err := at.ReadAt(p, pos)
	if n == len(p) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: it has become shorter", ErrCDB)
	}
	return err
}
