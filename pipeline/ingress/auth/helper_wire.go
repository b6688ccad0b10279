package auth

import (
	"encoding/binary"
	"errors"
	"net/netip"

	"github.com/postern-mta/postern/pipeline/reply"
)

// The packets between daemon and helper, over a SOCK_SEQPACKET pair; numbers are
// big-endian:
//
//	question: version 1 | id 4 | port 2 | address length 1 (0, 4, 16) | address
//	          | user length 2 | user | password length 2 | password
//	answer:   version 1 | id 4 | code 1 | detail
//
// The helper begins with an answer of id 0, its greeting. Questions have other
// ids.
const (
	helperVersion = 1
	maxQuestion   = 1 + 4 + 2 + 1 + 16 + 2 + 2 + maxRequest
	maxDetail     = maxPrinted + 200
	maxAnswer     = 1 + 4 + 1 + maxDetail
)

var errPacket = errors.New("malformed packet")

// append writes a question; it must have passed check.
func (q question) append(b []byte, id uint32) []byte {
	address := q.peer.Addr().Unmap().WithZone("").AsSlice()
	b = append(b, helperVersion)
	b = binary.BigEndian.AppendUint32(b, id)
	b = binary.BigEndian.AppendUint16(b, q.peer.Port())
	b = append(append(b, byte(len(address))), address...)
	b = append(binary.BigEndian.AppendUint16(b, uint16(len(q.user))), q.user...)
	return append(binary.BigEndian.AppendUint16(b, uint16(len(q.password))), q.password...)
}

// parseQuestion reads a question. One that check refuses is an error too: the
// daemon does not send it.
func parseQuestion(b []byte) (id uint32, q question, err error) {
	r := packet(b)
	version, id, port := r.next(1), r.uint(4), r.uint(2)
	address := r.next(int(r.uint(1)))
	user := r.next(int(r.uint(2)))
	password := r.next(int(r.uint(2)))
	if r == nil || len(r) != 0 || version[0] != helperVersion || id == 0 {
		return 0, question{}, errPacket
	}
	q = question{user: string(user), password: string(password)}
	if a, ok := netip.AddrFromSlice(address); ok && !a.Is4In6() {
		q.peer = netip.AddrPortFrom(a, uint16(port))
	} else if len(address) != 0 || port != 0 {
		return 0, question{}, errPacket
	}
	if err := q.check(); err != nil {
		return 0, question{}, errPacket
	}
	return id, q, nil
}

// append writes an answer.
func (a answer) append(b []byte, id uint32) []byte {
	b = append(binary.BigEndian.AppendUint32(append(b, helperVersion), id), byte(a.code))
	if a.detail == "" {
		return b
	}
	return append(b, reply.Clean(a.detail, maxDetail)...)
}

// parseAnswer reads an answer; what its detail says is cleaned.
func parseAnswer(b []byte) (id uint32, a answer, err error) {
	r := packet(b)
	version, id, code := r.next(1), r.uint(4), r.uint(1)
	if r == nil || len(b) > maxAnswer || version[0] != helperVersion || code > uint32(answerNo) {
		return 0, answer{}, errPacket
	}
	a.code = answerCode(code)
	if len(r) > 0 {
		a.detail = reply.Clean(string(r), maxDetail)
	}
	return id, a, nil
}

// packet is what is left of a packet; nil after a read beyond its end.
type packet []byte

// next takes n bytes, nil if there are fewer.
func (p *packet) next(n int) []byte {
	if *p == nil || n > len(*p) {
		*p = nil
		return nil
	}
	b := (*p)[:n]
	*p = (*p)[n:]
	return b
}

// uint takes a number of n bytes.
func (p *packet) uint(n int) (v uint32) {
	for _, b := range p.next(n) {
		v = v<<8 | uint32(b)
	}
	return v
}
