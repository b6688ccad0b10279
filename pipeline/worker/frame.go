package worker

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The two sides talk over a SOCK_SEQPACKET pair, one packet a request, one or
// more an answer. All numbers are little-endian.
//
//	request: magic u32, flags u8, name length u8, 0 u16, sequence u64,
//	         args length u32, answer limit u32, body length u64, deadline u64 (ns),
//	         then name, and args and body unless they come as descriptors
//	answer:  magic u32, kind u8, 0 u8, 0 u16, sequence u64, length u32, 0 u32,
//	         then the first bytes; the others follow in packets without a head
const (
	requestMagic = 0x51574f50
	answerMagic  = 0x41574f50
	requestHead  = 40
	answerHead   = 24

	// inlineArgs and inlineBody are up to which lengths args and body travel
	// in the packet.
	inlineArgs = 16 << 10
	inlineBody = 32 << 10
	maxRequest = requestHead + maxName + inlineArgs + inlineBody
	// piece is the length of an answer's packets.
	piece = 64 << 10
)

// The flags of a request: what comes as a descriptor, in this order.
const (
	argsApart = 1 << iota
	bodyApart
)

// The kinds of answer.
const (
	kindHello  = 'H' // layers u32, Landlock's version u32
	kindAnswer = 'A'
	kindError  = 'E'
)

type requestHeader struct {
	flags, name byte
	sequence    uint64
	args, limit uint32
	body        uint64
	deadline    time.Duration
}

func (h requestHeader) encode(b *[requestHead]byte) {
	le := binary.LittleEndian
	le.PutUint32(b[0:], requestMagic)
	b[4], b[5] = h.flags, h.name
	le.PutUint64(b[8:], h.sequence)
	le.PutUint32(b[16:], h.args)
	le.PutUint32(b[20:], h.limit)
	le.PutUint64(b[24:], h.body)
	le.PutUint64(b[32:], uint64(h.deadline))
}

var errBadRequest = errors.New("bad request")

func decodeRequest(b []byte) (h requestHeader, rest []byte, err error) {
	le := binary.LittleEndian
	if len(b) < requestHead || le.Uint32(b) != requestMagic {
		return h, nil, errBadRequest
	}
	h = requestHeader{
		flags: b[4], name: b[5], sequence: le.Uint64(b[8:]), args: le.Uint32(b[16:]), limit: le.Uint32(b[20:]),
		body: le.Uint64(b[24:]), deadline: time.Duration(le.Uint64(b[32:])),
	}
	if h.args > maxArgs || h.body > 1<<62 || h.flags&^(argsApart|bodyApart) != 0 {
		return h, nil, errBadRequest
	}
	return h, b[requestHead:], nil
}

type answerHeader struct {
	kind     byte
	sequence uint64
	length   uint32
}

func (h answerHeader) encode(b []byte) {
	le := binary.LittleEndian
	le.PutUint32(b[0:], answerMagic)
	b[4] = h.kind
	le.PutUint64(b[8:], h.sequence)
	le.PutUint32(b[16:], h.length)
}

// decodeAnswer decodes the head of an answer, every byte of which must be as
// encode makes it.
func decodeAnswer(b []byte) (h answerHeader, rest []byte, err error) {
	le := binary.LittleEndian
	if len(b) < answerHead {
		return h, nil, fmt.Errorf("a packet of %d bytes", len(b))
	}
	if le.Uint32(b) != answerMagic || b[5] != 0 || le.Uint16(b[6:]) != 0 || le.Uint32(b[20:]) != 0 {
		return h, nil, errors.New("no head of an answer")
	}
	h = answerHeader{kind: b[4], sequence: le.Uint64(b[8:]), length: le.Uint32(b[16:])}
	return h, b[answerHead:], nil
}

// receive reads one packet, 0 bytes at the end of the connection. A packet that
// is longer than b is an error.
func receive(fd int, b []byte) (int, error) {
	for {
		n, _, errno := unix.Syscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), unix.MSG_TRUNC, 0, 0)
		switch {
		case errno == unix.EINTR:
			continue
		case errno != 0:
			return 0, errno
		case int(n) > len(b):
			return 0, errLong
		}
		return int(n), nil
	}
}

var errLong = errors.New("a packet that is too long")

// memoryFile is a file in memory, closed on exec.
func memoryFile(name string) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	return os.NewFile(uintptr(fd), name), nil
}
