package handoff

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/ingress/handoff/wire"
	"github.com/postern-mta/postern/pipeline/reply"
)

// session is one shim's connection.
type session struct {
	srv    *Server
	conn   *net.UnixConn
	raw    syscall.RawConn
	peer   peer
	ctx    context.Context // ends when the shim is gone, breaks the protocol, or we stop
	cancel context.CancelCauseFunc

	in   []byte // the packet that came last
	oob  []byte
	fds  []int // 0 and 1 of the shim; -1 for one that was taken
	call call
	rec  record
	// prior is the origin of a message that was here before, by its mark.
	prior *pipeline.Origin

	mu    sync.Mutex // for writing
	quiet bool       // nothing more may be sent
	asked bool       // results may come

	results chan wire.Result // closed at the end of file
	fell    chan wire.FellBack
	silent  chan struct{} // closed when nothing more comes from the shim
	done    chan struct{}
	helpers sync.WaitGroup
}

// Bounds of what a shim may send, beside those of package wire.
const (
	maxArgs        = 128 << 10 // bytes of a qmail-queue's arguments; none is used
	maxDescriptors = 253       // as many as a packet can carry (unix(7), SCM_MAX_FD)
)

func newSession(s *Server, c *net.UnixConn, p peer) *session {
	n := &session{
		srv: s, conn: c, peer: p, results: make(chan wire.Result, wire.MaxPairs), fell: make(chan wire.FellBack, 1),
		silent: make(chan struct{}), done: make(chan struct{}),
	}
	n.ctx, n.cancel = context.WithCancelCause(s.ctx)
	n.rec = record{start: s.o.Now(), peer: p, stage: stageHello}
	return n
}

// run takes the session from its beginning to its end, and logs it.
func (n *session) run() {
	defer n.close()
	defer context.AfterFunc(n.ctx, func() { n.conn.Close() })()
	defer func() {
		if p := recover(); p != nil {
			n.rec.err = fmt.Errorf("panic: %v", p)
			n.srv.o.Log.Error("a message made the entrance fail; please report this", "id", n.rec.id, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
			n.log()
		}
	}()
	n.rec.id = n.srv.o.Ident()
	if err := n.hello(); err != nil {
		if n.rec.err = err; n.ctx.Err() != nil {
			n.rec.err = context.Cause(n.ctx)
		} else if errors.Is(err, io.EOF) {
			n.rec.err = errGone
		}
		n.log()
		return
	}
	switch {
	case !n.srv.slot(n.ctx):
		n.rec.err = errors.New("too many messages at a time; raise the limit of sessions")
		n.answer(reply.Trouble)
		close(n.silent)
	case n.srv.o.Remote != nil:
		n.serveRemote()
	default:
		n.serve()
	}
	n.log()
	n.linger()
}

// serve does the work, and answers.
func (n *session) serve() {
	defer func() { <-n.srv.slots }()
	answer, err := n.work()
	n.rec.err = err
	switch {
	case n.rec.taken:
		n.answer(answer)
	case n.asked: // the shim has its answer from the next program
	case n.ctx.Err() != nil:
		n.rec.err = context.Cause(n.ctx)
	default:
		n.answer(answer)
	}
}

// linger waits for the shim to hang up: closing a socket with unread packets in
// it would take the answer back.
func (n *session) linger() {
	late := time.NewTimer(n.srv.o.waits.linger)
	defer late.Stop()
	select {
	case <-n.silent:
	case <-n.ctx.Done():
	case <-late.C:
	}
}

// close gives up all that is still held.
func (n *session) close() {
	close(n.done)
	n.cancel(nil)
	n.conn.Close()
	n.helpers.Wait()
	n.closeFDs()
}

func (n *session) closeFDs() {
	for i, fd := range n.fds {
		if fd >= 0 {
			unix.Close(fd)
			n.fds[i] = -1
		}
	}
}

// takeFD is the shim's descriptor i, which is now the caller's to close.
func (n *session) takeFD(i int) int {
	fd := n.fds[i]
	n.fds[i] = -1
	return fd
}

// hello reads the whole hello.
func (n *session) hello() error {
	var err error
	if n.raw, err = n.conn.SyscallConn(); err != nil {
		return err
	}
	n.in, n.oob = make([]byte, wire.MaxPacket+1), make([]byte, unix.CmsgSpace(4*maxDescriptors))
	if err = n.conn.SetReadDeadline(time.Now().Add(n.srv.o.waits.hello)); err != nil {
		return err
	}
	packet, fds, err := n.receive()
	n.fds = fds
	if err != nil {
		return err
	}
	h, err := wire.ParseHello(packet)
	switch {
	case err != nil:
		return err
	case h.Program != n.srv.program():
		return fmt.Errorf("this socket is for program %q, but program %q is calling; give each shim a socket of its own", byte(n.srv.program()), byte(h.Program))
	case len(fds) != h.Program.Descriptors():
		return fmt.Errorf("%d descriptors came, not %d", len(fds), h.Program.Descriptors())
	case h.ArgsLen > maxArgs && h.Program == wire.ProgramQueue:
		return fmt.Errorf("arguments of %d bytes", h.ArgsLen)
	}
	if err = n.lists(h); err != nil {
		return err
	}
	if n.call, err = n.caller(h.Flags); err != nil {
		return err
	}
	return n.conn.SetReadDeadline(time.Time{})
}

// lists gathers arguments and environment.
func (n *session) lists(h wire.Hello) error {
	var l wire.Lists
	done, err := l.Start(h)
	for err == nil && !done {
		var packet []byte
		var stray []int
		packet, stray, err = n.receive()
		if len(stray) > 0 {
			closeAll(stray)
			err = errMalformed
		}
		if err != nil {
			break
		}
		var d wire.Data
		if d, err = wire.ParseData(packet); err == nil {
			done, err = l.Add(d.Chunk)
		} else if wire.KindOf(packet).Ignorable() {
			err = nil
		}
	}
	if err != nil {
		return err
	}
	n.call.args, n.call.env, err = l.Split()
	return err
}

// caller finds out on whose behalf the shim runs.
func (n *session) caller(flags wire.Flags) (call, error) {
	c := call{uid: n.peer.uid, pid: n.peer.pid, args: n.call.args, env: n.call.env, cut: flags&wire.FlagEnvironmentCut != 0}
	if flags&wire.FlagPrivileged != 0 {
		process, err := peerProcess(n.conn, n.peer.pid)
		if err == nil {
			c.uid, err = realUID(process, n.peer.pid)
			process.Close()
		}
		if err != nil {
			return c, fmt.Errorf("the shim runs set-uid and its caller cannot be told; take the set-uid bit away from it: %w", err)
		}
	}
	c.trusted = n.srv.trusted[c.uid]
	n.rec.uid = c.uid
	return c, nil
}

// receive reads one packet. Descriptors that came are the caller's to close,
// also with an error. The packet is valid until the next call.
func (n *session) receive() ([]byte, []int, error) {
	k, oobn, flags, _, err := n.conn.ReadMsgUnix(n.in, n.oob)
	if err != nil {
		return nil, nil, err
	}
	fds, err := descriptors(n.oob[:oobn])
	switch {
	case err != nil:
	case flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 || k > wire.MaxPacket:
		err = errMalformed
	case k == 0:
		err = errGone
	}
	return n.in[:k], fds, err
}

// descriptors are those that came with a packet.
func descriptors(oob []byte) ([]int, error) {
	if len(oob) == 0 {
		return nil, nil
	}
	controls, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	var all []int
	for i := range controls {
		if controls[i].Header.Level != unix.SOL_SOCKET || controls[i].Header.Type != unix.SCM_RIGHTS {
			err = errMalformed
			continue
		}
		fds, failed := unix.ParseUnixRights(&controls[i])
		all = append(all, fds...)
		err = errors.Join(err, failed)
	}
	return all, err
}

func closeAll(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}

// listen watches the socket until it closes: whatever the shim does before it
// was asked to run a program ends the session.
func (n *session) listen() {
	defer n.helpers.Done()
	defer close(n.silent)
	defer close(n.results)
	for {
		packet, stray, err := n.receive()
		if len(stray) > 0 {
			closeAll(stray)
			err = errMalformed
		}
		if err == nil {
			err = n.hear(packet)
		}
		if err == nil {
			continue
		}
		if !errors.Is(err, errMalformed) {
			err = errGone
		}
		if !n.isAsked() {
			n.cancel(err)
		}
		return
	}
}

// hear takes what the shim says of the next program.
func (n *session) hear(packet []byte) error {
	kind := wire.KindOf(packet)
	if kind.Ignorable() {
		return nil
	}
	if !n.isAsked() {
		return errMalformed
	}
	switch kind {
	case wire.KindResult:
		r, err := wire.ParseResult(packet)
		if err != nil {
			return errMalformed
		}
		select {
		case n.results <- r:
			return nil
		default:
			return errMalformed
		}
	case wire.KindFellBack:
		f, err := wire.ParseFellBack(packet)
		if err != nil {
			return errMalformed
		}
		select {
		case n.fell <- f:
			return nil
		default:
			return errMalformed
		}
	}
	return errMalformed
}

func (n *session) isAsked() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.asked
}

// send writes a packet; a shim that does not read makes it fail after a while.
func (n *session) send(packet []byte, fds ...int) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.write(packet, fds...)
}

func (n *session) write(packet []byte, fds ...int) error {
	if err := n.conn.SetWriteDeadline(time.Now().Add(n.srv.o.waits.write)); err != nil {
		return err
	}
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	_, _, err := n.conn.WriteMsgUnix(packet, oob, nil)
	return err
}

// beat gives the shim signs of life.
func (n *session) beat() {
	defer n.helpers.Done()
	tick := time.NewTicker(n.srv.o.Beat)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-n.done:
			return
		case <-n.ctx.Done():
			return
		}
		if quiet, err := n.sendBeat(); err != nil {
			n.cancel(errGone)
			return
		} else if quiet {
			return
		}
	}
}

func (n *session) sendBeat() (quiet bool, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.quiet {
		return true, nil
	}
	return false, n.write(wire.Beat{}.Append(nil))
}

// answer sends the exit code and the text.
func (n *session) answer(r reply.Reply) {
	x := wire.Exit{Code: r.QueueExit(), Dialect: n.srv.o.Dialect}
	most := 0
	for _, c := range x.Dialect.Channels() {
		most = max(most, c.Max)
	}
	if most > 0 {
		x.Text = r.QueueText(min(most, wire.MaxText))
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.quiet = true
	n.rec.reply, n.rec.exit = r, int(x.Code)
	if err := n.write(x.Append(nil)); err != nil {
		n.rec.untold = true
	}
}

// milliseconds is d for the wire, never 0.
func milliseconds(d time.Duration) uint32 {
	return uint32(min(max(d.Milliseconds(), 1), 1<<32-1))
}
