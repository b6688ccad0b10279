package smtp

import (
	"errors"
	"strconv"
	"strings"
)

// ErrBDAT: a BDAT command that cannot be read. The bytes that may follow it
// cannot be told from commands, so the connection must be closed.
var ErrBDAT = errors.New("bad BDAT command")

// ParseBDAT reads what follows "BDAT ": the size of the chunk that comes behind
// the command's line, and whether it is the last (RFC 3030 §2).
func ParseBDAT(args string) (size int64, last bool, err error) {
	words := strings.FieldsFunc(args, func(c rune) bool { return c == ' ' })
	if len(words) == 0 || len(words) > 2 || len(words[0]) > 18 {
		return 0, false, ErrBDAT
	}
	for _, c := range []byte(words[0]) {
		if c < '0' || c > '9' {
			return 0, false, ErrBDAT
		}
		size = 10*size + int64(c-'0')
	}
	if len(words) == 2 {
		if last = strings.EqualFold(words[1], "LAST"); !last {
			return 0, false, ErrBDAT
		}
	}
	return size, last, nil
}

// AppendBDAT appends the command before a chunk of size bytes.
func AppendBDAT(b []byte, size int64, last bool) []byte {
	b = append(b, "BDAT "...)
	b = strconv.AppendInt(b, size, 10)
	if last {
		b = append(b, " LAST"...)
	}
	return append(b, '\r', '\n')
}
