package state

import (
	"encoding/binary"
	"errors"
	"math"
)

// The database's keys begin with a letter and the length and name of the space:
//
//	d SPACE KEY           version, indexed, expiry - indexed, value
//	m SPACE               how many entries and bytes the space has
//	t                     the store's time, and the clock's then
//	v                     the format
//	x SPACE SECONDS KEY   an entry that may expire then
//
// Each entry has one index key that counts, at the time that it calls indexed.
// An entry that is put again with a later expiry keeps it, so that the entries
// that are put often are not indexed often; the sweeper moves it when it comes
// there.
const (
	dataKey   = 'd'
	usageKey  = 'm'
	clockKey  = 't'
	formatKey = 'v'
	indexKey  = 'x'
)

// format is the version of all keys and records.
const format = 1

var errRecord = errors.New("a record is damaged")

// prefix begins the keys of a space.
func prefix(kind byte, space string) []byte {
	b := make([]byte, 0, 2+len(space)+4+64)
	b = append(b, kind, byte(len(space)))
	return append(b, space...)
}

func dataOf(space, key string) []byte { return append(prefix(dataKey, space), key...) }

// indexOf is the index key of a time.
func indexOf(space string, seconds int64, key string) []byte {
	b := binary.BigEndian.AppendUint32(prefix(indexKey, space), clampSeconds(seconds))
	return append(b, key...)
}

// clampSeconds is a time as the index can write it: to the year 2106.
func clampSeconds(s int64) uint32 { return uint32(min(max(s, 0), math.MaxUint32)) }

// splitIndex is the inverse of indexOf, for the key after the prefix.
func splitIndex(b []byte) (seconds int64, key []byte, ok bool) {
	if len(b) < 4 {
		return 0, nil, false
	}
	return int64(binary.BigEndian.Uint32(b)), b[4:], true
}

// splitData cuts the space and the key out of a data key.
func splitData(b []byte) (space, key string, ok bool) {
	if len(b) < 2 || b[0] != dataKey || len(b) < 2+int(b[1]) {
		return "", "", false
	}
	n := 2 + int(b[1])
	return string(b[2:n]), string(b[n:]), true
}

// after is the first key that does not have the prefix.
func after(prefix []byte) []byte {
	b := append([]byte(nil), prefix...)
	for i := len(b) - 1; i >= 0; i-- {
		if b[i]++; b[i] != 0 {
			return b[:i+1]
		}
	}
	return nil
}

// record is an entry as the database has it; times are in the store's seconds.
type record struct {
	indexed, expiry int64
	value           []byte
}

func (r record) encode() []byte {
	b := make([]byte, 0, 10+len(r.value))
	b = append(b, format)
	b = binary.BigEndian.AppendUint32(b, clampSeconds(r.indexed))
	b = binary.AppendUvarint(b, uint64(r.expiry-r.indexed))
	return append(b, r.value...)
}

// decodeRecord is the inverse of encode. The value is a part of b.
func decodeRecord(b []byte) (r record, err error) {
	if len(b) < 6 || b[0] != format {
		return r, errRecord
	}
	r.indexed = int64(binary.BigEndian.Uint32(b[1:]))
	more, n := binary.Uvarint(b[5:])
	if n <= 0 || more > math.MaxUint32 {
		return r, errRecord
	}
	r.expiry, r.value = r.indexed+int64(more), b[5+n:]
	if r.expiry > math.MaxUint32 {
		return r, errRecord
	}
	return r, nil
}

// usage is what a space takes.
type usage struct {
	entries, bytes int64
	// low is an index key before which there is none that counts.
	low []byte
	// told is when the log heard that the space is full.
	told int64
	// expired and evicted count what was removed since the store was opened.
	expired, evicted int64
}

func encodePair(a, b int64) []byte {
	return binary.AppendVarint(binary.AppendVarint(nil, a), b)
}

func decodePair(p []byte) (a, b int64, err error) {
	a, n := binary.Varint(p)
	if n <= 0 {
		return 0, 0, errRecord
	}
	b, m := binary.Varint(p[n:])
	if m <= 0 || n+m != len(p) {
		return 0, 0, errRecord
	}
	return a, b, nil
}
