package pebble

import (
	"encoding/binary"
	"fmt"

	"github.com/postern-mta/postern/queue/store"
)

// The key space. Numbers are big-endian, so that keys sort as they count. A
// key of b and e is set once and single-deleted; all others may be set again
// and are deleted.
const (
	prefixBody     = 'b' // id: the body, or that it is a file
	prefixEnvelope = 'e' // id, chunk: the message without its body
	prefixState    = 's' // id, recipient: its state
	prefixPolicy   = 'p' // and one of:
	policyHold     = 'h' //   id: why the message is held
	policyNamed    = 'p' //   name: a policy
	policySharer   = 'r' //   id of a body, id of a message that shares it
	prefixVersion  = 'v' // and one of:
	versionFormat  = 'f' //   the format of all this
	versionIDs     = 'i' //   the high-water mark of ids
)

const idLen = 8

func appendID(k []byte, id store.ID) []byte { return binary.BigEndian.AppendUint64(k, uint64(id)) }

func bodyKey(id store.ID) []byte {
	return appendID(append(make([]byte, 0, 1+idLen), prefixBody), id)
}

func envelopeKey(id store.ID, chunk uint32) []byte {
	k := appendID(append(make([]byte, 0, 1+idLen+4), prefixEnvelope), id)
	return binary.BigEndian.AppendUint32(k, chunk)
}

func stateKey(id store.ID, recipient uint32) []byte {
	k := appendID(append(make([]byte, 0, 1+idLen+4), prefixState), id)
	return binary.BigEndian.AppendUint32(k, recipient)
}

func holdKey(id store.ID) []byte {
	return appendID(append(make([]byte, 0, 2+idLen), prefixPolicy, policyHold), id)
}

func policyKey(name string) []byte {
	return append([]byte{prefixPolicy, policyNamed}, name...)
}

func sharerKey(of, id store.ID) []byte {
	k := appendID(append(make([]byte, 0, 2+2*idLen), prefixPolicy, policySharer), of)
	return appendID(k, id)
}

var (
	formatKey = []byte{prefixVersion, versionFormat}
	idsKey    = []byte{prefixVersion, versionIDs}
)

// successor is the first key above all that begin with prefix, which is not
// all 255s.
func successor(prefix []byte) []byte {
	k := append([]byte(nil), prefix...)
	for i := len(k) - 1; ; i-- {
		if k[i]++; k[i] != 0 {
			return k[:i+1]
		}
	}
}

// numbered takes the id, and the number after it, out of a key with n bytes
// before them.
func numbered(k []byte, n int) (id store.ID, number uint32, ok bool) {
	if len(k) != n+idLen+4 {
		return 0, 0, false
	}
	return store.ID(binary.BigEndian.Uint64(k[n:])), binary.BigEndian.Uint32(k[n+idLen:]), true
}

// identified takes the id out of a key with n bytes before it.
func identified(k []byte, n int) (store.ID, bool) {
	if len(k) != n+idLen {
		return 0, false
	}
	return store.ID(binary.BigEndian.Uint64(k[n:])), true
}

// shared takes a key of policySharer apart.
func shared(k []byte) (of, id store.ID, ok bool) {
	if len(k) != 2+2*idLen {
		return 0, 0, false
	}
	return store.ID(binary.BigEndian.Uint64(k[2:])), store.ID(binary.BigEndian.Uint64(k[2+idLen:])), true
}

// keyName is a key as people can read it in a report.
func keyName(k []byte) string {
	if len(k) == 0 {
		return "the empty key"
	}
	switch k[0] {
	case prefixEnvelope, prefixState:
		if id, n, ok := numbered(k, 1); ok {
			return fmt.Sprintf("%c %s.%d", k[0], id, n)
		}
	case prefixBody:
		if id, ok := identified(k, 1); ok {
			return fmt.Sprintf("b %s", id)
		}
	case prefixPolicy:
		if id, ok := identified(k, 2); ok && k[1] == policyHold {
			return fmt.Sprintf("ph %s", id)
		}
		if of, id, ok := shared(k); ok && k[1] == policySharer {
			return fmt.Sprintf("pr %s %s", of, id)
		}
	}
	return fmt.Sprintf("%q", k)
}
