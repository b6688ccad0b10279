package program

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// The daemon and the process that starts programs talk over a SOCK_SEQPACKET
// pair. All numbers are little-endian.
//
//	to the starter:   kind u8, id u64; with kindStart the request, and the descriptors
//	to the daemon:    kind u8, id u64, then four numbers, i64 each
//
// A request that is long comes as a file in memory, behind the other descriptors
// (kindStartApart).
const (
	kindStart      = 'S'
	kindStartApart = 'L'
	kindKill       = 'K'

	kindReady   = 'R'
	kindLost    = 'l' // the life that begins: what was asked for before is gone
	kindStarted = 's' // its number
	kindFailed  = 'f' // the step, the kernel's error
	kindEnded   = 'e' // the wait status, processor time in us, memory in bytes, processes left

	// lifeShift is where the number of a starter's life stands in an id.
	lifeShift = 48

	packetHead = 1 + 8
	answerSize = packetHead + 4*8
	// inline is up to which length a request travels in its packet.
	inline = 32 << 10
)

// request is a Spec as it travels.
type request struct {
	path, dir string
	args, env []string
	account   int // its place in the starter's list; -1: nobody else
	limits    Limits
	files     []byte // the descriptors' numbers, in the order in which they come
}

// append appends the request in its coding.
func (r *request) append(b []byte) []byte {
	le := binary.LittleEndian
	word := func(s string) { b = append(le.AppendUint32(b, uint32(len(s))), s...) }
	words := func(all []string) {
		b = le.AppendUint32(b, uint32(len(all)))
		for _, s := range all {
			word(s)
		}
	}
	word(r.path)
	word(r.dir)
	words(r.args)
	words(r.env)
	b = le.AppendUint32(b, uint32(int32(r.account)))
	for _, n := range []int64{r.limits.Memory, r.limits.FileSize, r.limits.Files, r.limits.CPU} {
		b = le.AppendUint64(b, uint64(n))
	}
	word(string(r.files))
	return b
}

var errCoding = errors.New("a request in no known coding")

// parseRequest reads what append wrote.
func parseRequest(b []byte) (r *request, err error) {
	le := binary.LittleEndian
	take := func(n int) []byte {
		if err != nil || n < 0 || n > len(b) {
			err = errCoding
			return make([]byte, 8)
		}
		t := b[:n]
		b = b[n:]
		return t
	}
	word := func() string {
		if n := le.Uint32(take(4)); err == nil {
			if int64(n) <= int64(len(b)) {
				return string(take(int(n)))
			}
			err = errCoding
		}
		return ""
	}
	words := func() (all []string) {
		n := le.Uint32(take(4))
		if err == nil && n > maxWords {
			err = fmt.Errorf("%w: %d words", errCoding, n)
		}
		for range n {
			if err != nil {
				return nil
			}
			all = append(all, word())
		}
		return all
	}
	r = &request{path: word(), dir: word(), args: words(), env: words()}
	r.account = int(int32(le.Uint32(take(4))))
	for _, n := range []*int64{&r.limits.Memory, &r.limits.FileSize, &r.limits.Files, &r.limits.CPU} {
		*n = int64(le.Uint64(take(8)))
	}
	r.files = []byte(word())
	if err == nil && len(b) > 0 {
		err = errCoding
	}
	if err != nil {
		return nil, err
	}
	return r, nil
}

// head is the beginning of a packet.
func head(kind byte, id uint64) []byte {
	return binary.LittleEndian.AppendUint64([]byte{kind}, id)
}

// answer is what a starter tells.
type answer struct {
	kind    byte
	id      uint64
	numbers [4]int64
}

func (a *answer) encode() []byte {
	b := head(a.kind, a.id)
	for _, n := range a.numbers {
		b = binary.LittleEndian.AppendUint64(b, uint64(n))
	}
	return b
}

func parseAnswer(b []byte) (a answer, ok bool) {
	if len(b) != answerSize {
		return a, false
	}
	a.kind, a.id = b[0], binary.LittleEndian.Uint64(b[1:])
	for i := range a.numbers {
		a.numbers[i] = int64(binary.LittleEndian.Uint64(b[packetHead+8*i:]))
	}
	return a, true
}

func leUint64(b []byte) uint64 { return binary.LittleEndian.Uint64(b) }
