package store

import (
	"fmt"
	"time"
)

// ID names a message: the millisecond in which it came, shifted by 22 bits, and
// a sequence number. IDs ascend and are never used again.
type ID uint64

const (
	idShift  = 22
	idDigits = 13
	alphabet = "0123456789abcdefghjkmnpqrstvwxyz" // Crockford's: none is mistaken for another
)

// FirstID is the smallest ID of a millisecond.
func FirstID(t time.Time) ID { return ID(max(t.UnixMilli(), 0)) << idShift }

// Time is when the message came, to the millisecond, or later where ids were
// ahead of the clock.
func (id ID) Time() time.Time { return time.UnixMilli(int64(id >> idShift)) }

// String is the ID as people see it: 13 letters and digits that sort like the
// number.
func (id ID) String() string {
	var b [idDigits]byte
	for i := idDigits - 1; i >= 0; i-- {
		b[i] = alphabet[id&31]
		id >>= 5
	}
	return string(b[:])
}

// ParseID is the inverse of String; upper case is taken as well.
func ParseID(s string) (ID, error) {
	if len(s) != idDigits {
		return 0, fmt.Errorf("message id of %d characters, not %d", len(s), idDigits)
	}
	var id ID
	for i := 0; i < len(s); i++ {
		c := s[i]
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		digit := -1
		for k := 0; k < len(alphabet); k++ {
			if alphabet[k] == c {
				digit = k
			}
		}
		if digit < 0 || i == 0 && digit > 15 {
			return 0, fmt.Errorf("message id with character %q", s[i])
		}
		id = id<<5 | ID(digit)
	}
	return id, nil
}
