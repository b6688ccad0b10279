package mime

import "encoding/binary"

// binHexLetters is the alphabet of BinHex 4.0 (RFC 1741).
const binHexLetters = `!"#$%&'()*+,-012345689@ABCDEFGHIJKLMNPQRSTUVXYZ[` + "`" + `abcdefhijklmpqr`

var binHexValue = makeBinHex()

func makeBinHex() *[256]int8 {
	t := &[256]int8{}
	for i := range t {
		t[i] = -1
	}
	for v := range len(binHexLetters) {
		t[binHexLetters[v]] = int8(v)
	}
	return t
}

// The forks of a file in BinHex.
const (
	wholeFile = iota // header and forks as they stand
	dataFork
	resourceFork
)

// binHexDecoder decodes what stands between two colons (RFC 1741 §A): letters to
// bytes, repeated bytes to runs, and of those the fork that is wanted. A byte
// that repeats takes two more, so four letters give up to 2*255 bytes.
type binHexDecoder struct {
	fork int

	started, finished bool
	acc               uint32
	have              int
	last              byte // the byte that a run repeats
	run               bool // a run mark came
	head              []byte
	skip, want        int64 // of the forks, once the head is whole
}

func (d *binHexDecoder) over() bool { return d.finished }

func (d *binHexDecoder) end(dst []byte) []byte { return dst }

func (d *binHexDecoder) decode(dst, src []byte) []byte {
	for _, c := range src {
		if d.finished {
			break
		}
		v := binHexValue[c]
		switch {
		case c == ':':
			d.finished, d.started = d.started, true
		case d.started && v >= 0:
			d.acc = d.acc<<6 | uint32(v)
			if d.have += 6; d.have >= 8 {
				d.have -= 8
				dst = d.expand(dst, byte(d.acc>>d.have))
			}
		}
	}
	return dst
}

const runMark = 0x90

func (d *binHexDecoder) expand(dst []byte, c byte) []byte {
	switch {
	case d.run && c == 0:
		d.run, d.last = false, runMark
		return d.put(dst, runMark)
	case d.run:
		d.run = false
		for range int(c) - 1 {
			dst = d.put(dst, d.last)
		}
		return dst
	case c == runMark:
		d.run = true
		return dst
	}
	d.last = c
	return d.put(dst, c)
}

// put takes one byte of the file: of its head, or of a fork.
func (d *binHexDecoder) put(dst []byte, c byte) []byte {
	if d.fork == wholeFile {
		return append(dst, c)
	}
	if n := binHexHead(d.head); n == 0 || len(d.head) < n {
		d.head = append(d.head, c)
		if n = binHexHead(d.head); n > 0 && len(d.head) == n {
			data := int64(binary.BigEndian.Uint32(d.head[n-10:]))
			d.want = data
			if d.fork == resourceFork {
				d.skip, d.want = data+2, int64(binary.BigEndian.Uint32(d.head[n-6:]))
			}
		}
		return dst
	}
	switch {
	case d.skip > 0:
		d.skip--
	case d.want > 0:
		d.want--
		dst = append(dst, c)
	default:
		d.finished = true
	}
	return dst
}

// binHexHead is the length of the head of a file that begins with b: its name,
// a version, type, creator, flags, two lengths and a check sum. 0: not known yet.
func binHexHead(b []byte) int {
	if len(b) == 0 {
		return 0
	}
	return 1 + int(b[0]) + 1 + 4 + 4 + 2 + 4 + 4 + 2
}
