package worker

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// server is the worker's side of the socket.
type server struct {
	jobs     map[string]Job
	settings settings
	scratch  *Scratch
	packet   []byte
	control  []byte
	out      [answerHead + piece]byte
}

func newServer(jobs map[string]Job, s settings) *server {
	return &server{
		jobs: jobs, settings: s,
		scratch: NewScratch(os.NewFile(scratchFD, "scratch"), s.scratch),
		packet:  make([]byte, maxRequest),
		control: make([]byte, unix.CmsgSpace(2*4)),
	}
}

// run does jobs until the pool hangs up.
func (w *server) run() error {
	var hello [8]byte
	binary.LittleEndian.PutUint32(hello[0:], uint32(w.settings.layers))
	binary.LittleEndian.PutUint32(hello[4:], uint32(w.settings.landlock))
	if err := w.send(kindHello, 0, hello[:]); err != nil {
		return err
	}
	for {
		n, fds, err := w.receive()
		if err != nil || n == 0 {
			return err
		}
		err = w.serve(w.packet[:n], fds)
		for _, fd := range fds {
			unix.Close(fd)
		}
		if err != nil {
			return err
		}
	}
}

// receive reads a request with its descriptors.
func (w *server) receive() (int, []int, error) {
	for {
		n, oobn, _, _, err := unix.Recvmsg(socketFD, w.packet, w.control, unix.MSG_CMSG_CLOEXEC)
		if err == unix.EINTR {
			continue
		}
		if err == unix.ECONNRESET {
			return 0, nil, nil
		}
		if err != nil || oobn == 0 {
			return n, nil, err
		}
		messages, err := unix.ParseSocketControlMessage(w.control[:oobn])
		if err != nil || len(messages) != 1 {
			return 0, nil, errBadRequest
		}
		fds, err := unix.ParseUnixRights(&messages[0])
		return n, fds, err
	}
}

// serve does one job and answers it. Its error ends the worker.
func (w *server) serve(packet []byte, fds []int) error {
	h, rest, err := decodeRequest(packet)
	if err != nil || len(rest) < int(h.name) {
		return errBadRequest
	}
	name, rest := string(rest[:h.name]), rest[h.name:]
	args, rest, err := takeArgs(h, rest, &fds)
	if err != nil {
		return err
	}
	var body io.ReaderAt
	switch {
	case h.flags&bodyApart == 0 && uint64(len(rest)) == h.body:
		body = bytes.NewReader(rest)
	case h.flags&bodyApart != 0 && len(fds) > 0 && len(rest) == 0:
		body = &descriptor{fds[0], int64(h.body)}
	default:
		return errBadRequest
	}
	job, ok := w.jobs[name]
	if !ok {
		return w.send(kindError, h.sequence, fmt.Appendf(nil, "no job is called %q", name))
	}
	ctx, cancel := context.WithTimeout(context.Background(), h.deadline*9/10)
	answer, err := job(ctx, args, body, int64(h.body), w.scratch)
	cancel()
	if err == nil && len(answer) > int(h.limit) {
		err = fmt.Errorf("an answer of %d bytes, more than %d", len(answer), h.limit)
	}
	if failed := w.scratch.Reset(); failed != nil {
		return failed
	}
	if err != nil {
		text := err.Error()
		return w.send(kindError, h.sequence, []byte(text[:min(len(text), maxLine)]))
	}
	return w.send(kindAnswer, h.sequence, answer)
}

// takeArgs takes the arguments from the packet or from the first descriptor.
func takeArgs(h requestHeader, rest []byte, fds *[]int) (args, after []byte, err error) {
	if h.flags&argsApart == 0 {
		if uint32(len(rest)) < h.args {
			return nil, nil, errBadRequest
		}
		return rest[:h.args:h.args], rest[h.args:], nil
	}
	if len(*fds) == 0 {
		return nil, nil, errBadRequest
	}
	args = make([]byte, h.args)
	d := &descriptor{(*fds)[0], int64(h.args)}
	*fds = (*fds)[1:]
	if _, err := d.ReadAt(args, 0); err != nil && err != io.EOF {
		return nil, nil, err
	}
	return args, rest, nil
}

// send sends an answer.
func (w *server) send(kind byte, sequence uint64, b []byte) error {
	answerHeader{kind: kind, sequence: sequence, length: uint32(len(b))}.encode(w.out[:])
	n := copy(w.out[answerHead:], b)
	if err := write(w.out[:answerHead+n]); err != nil {
		return err
	}
	for b = b[n:]; len(b) > 0; {
		n := min(len(b), piece)
		if err := write(b[:n]); err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

func write(packet []byte) error {
	for {
		_, err := unix.Write(socketFD, packet)
		if err != unix.EINTR {
			return os.NewSyscallError("write", err)
		}
	}
}

// descriptor reads a file that the pool passed. One that has become shorter is
// io.ErrUnexpectedEOF.
type descriptor struct {
	fd   int
	size int64
}

func (d *descriptor) ReadAt(p []byte, off int64) (n int, err error) {
	if off < 0 {
		return 0, unix.EINVAL
	}
	if off >= d.size {
		return 0, io.EOF
	}
	if rest := d.size - off; int64(len(p)) > rest {
		p, err = p[:rest], io.EOF
	}
	for n < len(p) {
		k, failed := unix.Pread(d.fd, p[n:], off+int64(n))
		switch {
		case failed == unix.EINTR:
		case failed != nil:
			return n, os.NewSyscallError("pread", failed)
		case k == 0:
			return n, io.ErrUnexpectedEOF
		}
		n += max(k, 0)
	}
	return n, err
}
