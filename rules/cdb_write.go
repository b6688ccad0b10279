package rules

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"math"
)

// WriteCDB writes a database of these records, in their order, byte for byte as cdbmake does (cdb_make.c). It holds the
// whole list in memory. A file that others read must be replaced whole: write another one, sync it, and rename it.
func WriteCDB(w io.Writer, records []CDBRecord) error {
	type slot struct{ hash, pos uint32 }
	var lists [cdbTables][]slot
	pos := int64(cdbHeader)
	for _, r := range records {
		if len(r.Key) > MaxCDBValue || len(r.Value) > MaxCDBValue {
			return fmt.Errorf("a record of more than %d bytes, with key %s", MaxCDBValue, quote(r.Key))
		}
		h := cdbHash([]byte(r.Key))
		lists[h%cdbTables] = append(lists[h%cdbTables], slot{h, uint32(pos)})
		// A record has two slots of 8 bytes beside its own bytes.
		if pos += 8 + int64(len(r.Key)+len(r.Value)); pos+int64(len(records))*16 > math.MaxUint32 {
			return fmt.Errorf("more than %d bytes, which is all the format can hold", uint32(math.MaxUint32))
		}
	}
	out := bufio.NewWriterSize(w, 64<<10)
	var pair [8]byte
	put := func(a, b uint32) {
		binary.LittleEndian.PutUint32(pair[:], a)
		binary.LittleEndian.PutUint32(pair[4:], b)
		out.Write(pair[:]) //nolint:errcheck // Flush says it
	}
	for _, l := range lists {
		put(uint32(pos), uint32(2*len(l)))
		pos += int64(len(l)) * 16
	}
	for _, r := range records {
		put(uint32(len(r.Key)), uint32(len(r.Value)))
		out.WriteString(r.Key)   //nolint:errcheck // Flush says it
		out.WriteString(r.Value) //nolint:errcheck // Flush says it
	}
	for _, l := range lists {
		table := make([]slot, 2*len(l))
		for _, s := range l {
			at := s.hash / cdbTables % uint32(len(table))
			for table[at].pos != 0 {
				at = (at + 1) % uint32(len(table))
			}
			table[at] = s
		}
		for _, s := range table {
			put(s.hash, s.pos)
		}
	}
	return out.Flush()
}
