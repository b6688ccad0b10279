package mime

import "io"

// decoder turns the encoded form of a content into its bytes, piece by piece.
type decoder interface {
	// decode appends to dst what src, the next bytes of the encoded form, gives.
	decode(dst, src []byte) []byte
	// end appends what is left when nothing more comes.
	end(dst []byte) []byte
	// over reports that whatever comes does not matter any more.
	over() bool
}

// decodeStep is how many bytes are decoded at once; those of a decoder that can
// make much of little are fewer.
const (
	decodeStep   = 32 << 10
	decodeExpand = 1 << 10
)

// decodeReader reads what a decoder makes of src.
type decodeReader struct {
	src  io.Reader
	dec  decoder
	in   []byte
	out  []byte // decoded and not yet read
	buf  []byte // what out is cut from
	err  error
	step int
}

func newDecodeReader(src io.Reader, dec decoder, size int64) *decodeReader {
	d := &decodeReader{src: src, dec: dec, step: decodeStep}
	if u, ok := dec.(*unquoteDecoder); ok {
		if _, expands := u.inner.(*binHexDecoder); expands {
			d.step = decodeExpand
		}
	}
	d.step = int(min(int64(d.step), max(size, 64)))
	return d
}

// Read reads decoded bytes.
func (d *decodeReader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for len(d.out) == 0 {
		if d.err != nil {
			return 0, d.err
		}
		d.fill()
	}
	n := copy(p, d.out)
	d.out = d.out[n:]
	return n, nil
}

// WriteTo writes all that is left, without a copy between.
func (d *decodeReader) WriteTo(w io.Writer) (n int64, err error) {
	for {
		if len(d.out) > 0 {
			k, err := w.Write(d.out)
			n += int64(k)
			if err != nil {
				return n, err
			}
			d.out = nil
		}
		if d.err == io.EOF {
			return n, nil
		}
		if d.err != nil {
			return n, d.err
		}
		d.fill()
	}
}

func (d *decodeReader) fill() {
	if d.in == nil {
		d.in = make([]byte, d.step)
		d.buf = make([]byte, 0, d.step+64)
	}
	n, err := d.src.Read(d.in)
	d.buf = d.dec.decode(d.buf[:0], d.in[:n])
	if d.dec.over() {
		err = io.EOF
	}
	if err == io.EOF {
		d.buf = d.dec.end(d.buf)
	}
	d.out, d.err = d.buf, err
}

// lineDecoder is a decoder that works line by line. Lines above maxCodedLine are
// cut into pieces.
type lineDecoder struct {
	held []byte
	// line appends what a line without its end gives.
	line func(dst, line []byte) []byte
	// finished is set by line when nothing more matters.
	finished bool
}

const maxCodedLine = 64 << 10

func (l *lineDecoder) decode(dst, src []byte) []byte {
	for len(src) > 0 && !l.finished {
		i := indexLF(src)
		if i < 0 {
			l.held = append(l.held, src...)
			if len(l.held) > maxCodedLine {
				dst = l.flush(dst)
			}
			return dst
		}
		line := src[:i]
		if len(l.held) > 0 {
			l.held = append(l.held, line...)
			dst = l.flush(dst)
		} else {
			dst = l.line(dst, trimCR(line))
		}
		src = src[i+1:]
	}
	return dst
}

func (l *lineDecoder) flush(dst []byte) []byte {
	dst = l.line(dst, trimCR(l.held))
	l.held = l.held[:0]
	return dst
}

func (l *lineDecoder) end(dst []byte) []byte {
	if len(l.held) > 0 && !l.finished {
		dst = l.flush(dst)
	}
	return dst
}

func (l *lineDecoder) over() bool { return l.finished }

func trimCR(line []byte) []byte {
	for len(line) > 0 && line[len(line)-1] == '\r' {
		line = line[:len(line)-1]
	}
	return line
}
