package message

import "bytes"

// CRLF puts a CR before every LF that has none. The zero value stands at the
// beginning of a text.
type CRLF struct{ cr bool } // a CR was given out last

// Next fills dst with what src becomes, and says how much of both it used. It
// stops when one of them is used up, and then goes on with more of it.
func (c *CRLF) Next(dst, src []byte) (put, used int) {
	for put < len(dst) && used < len(src) {
		if src[used] == '\n' && !c.cr {
			dst[put], c.cr = '\r', true
			put++
			continue
		}
		end := bytes.IndexByte(src[used+1:], '\n') + used + 1
		if end == used {
			end = len(src)
		}
		k := copy(dst[put:], src[used:end])
		put, used = put+k, used+k
		c.cr = src[used-1] == '\r'
	}
	return put, used
}
