package auth

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/reply"
)

// HelperOptions of a Helper. Program.Argv is needed.
type HelperOptions struct {
	Program ProgramOptions
	// Command starts the process that calls ServeHelper, which gets one more
	// argument; nil means this program's file and "checkpassword-helper".
	Command []string
	// Log hears of a helper that ends by itself. Nil means slog.Default.
	Log *slog.Logger
	// Stderr is where the process writes what it cannot tell us; nil means
	// os.Stderr.
	Stderr *os.File
}

// How long the helper may take for what a living process does at once.
const (
	helperStart = 10 * time.Second
	helperWrite = 5 * time.Second
	helperEnd   = 5 * time.Second
)

// Helper asks a checkpassword program that runs as another user than we are: as
// the one that we were when we started the helper, mostly root. The package says
// what it may be trusted with. A helper that has died is not started again, for
// the rights are gone: all logins are put off, and the daemon must be restarted.
type Helper struct {
	log     *slog.Logger
	process *exec.Cmd
	reaped  chan struct{}
	read    chan struct{} // closed when nothing more is read
	asking  slots

	mu      sync.Mutex // guards what follows, and writing
	conn    *net.UnixConn
	closing bool
	gone    error // why nobody can be asked any more
	last    uint32
	waiting map[uint32]chan answer
}

// StartHelper starts the process and waits until it has found its program fit to
// be run. To be called before root is given up.
func StartHelper(o HelperOptions) (*Helper, error) {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.Stderr == nil {
		o.Stderr = os.Stderr
	}
	if err := o.Program.check(); err != nil {
		return nil, err
	}
	if o.Command == nil {
		self, err := os.Executable()
		if err != nil {
			return nil, err
		}
		o.Command = []string{self, "checkpassword-helper"}
	}
	options, err := json.Marshal(o.Program)
	if err != nil {
		return nil, err
	}
	ours, theirs, err := socketPair()
	if err != nil {
		return nil, fmt.Errorf("checkpassword helper: %w", err)
	}
	cmd := exec.Command(o.Command[0], append(o.Command[1:len(o.Command):len(o.Command)], string(options))...)
	cmd.Dir, cmd.Env = "/", []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	cmd.Stderr, cmd.ExtraFiles = o.Stderr, []*os.File{theirs}
	// A session of its own: what a terminal sends is for the daemon.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	theirs.Close() // or we would never see the end of the other one
	if err != nil {
		ours.Close()
		return nil, fmt.Errorf("checkpassword helper: %w", err)
	}
	h := &Helper{
		log: o.Log, process: cmd, conn: ours, reaped: make(chan struct{}), read: make(chan struct{}),
		asking: make(slots, o.Program.withDefaults().Concurrency), waiting: map[uint32]chan answer{},
	}
	go func() {
		defer close(h.reaped)
		cmd.Wait() //nolint:errcheck // the end of the connection tells
	}()
	if err := h.greet(); err != nil {
		ours.Close()
		cmd.Process.Kill() //nolint:errcheck // it may be gone
		<-h.reaped
		return nil, fmt.Errorf("the checkpassword helper did not start, see what it wrote to standard error: %w", err)
	}
	go h.listen()
	return h, nil
}

// socketPair makes a pair of connections, one of them for another process.
func socketPair() (ours *net.UnixConn, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	theirs = os.NewFile(uintptr(fds[1]), "helper")
	ours, err = unixConn(os.NewFile(uintptr(fds[0]), "helper"))
	if err != nil {
		theirs.Close()
		return nil, nil, err
	}
	return ours, theirs, nil
}

// unixConn makes a connection of a descriptor, which it takes.
func unixConn(f *os.File) (*net.UnixConn, error) {
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		c.Close()
		return nil, errors.New("not a Unix socket")
	}
	return u, nil
}

// greet waits for the helper's greeting.
func (h *Helper) greet() error {
	h.conn.SetReadDeadline(time.Now().Add(helperStart)) //nolint:errcheck // the read would fail
	b := make([]byte, maxAnswer+1)
	n, err := h.conn.Read(b)
	if err != nil {
		return err
	}
	if id, a, err := parseAnswer(b[:n]); err != nil || id != 0 || a.code != answerYes {
		return errPacket
	}
	return h.conn.SetReadDeadline(time.Time{})
}

// Authenticate asks the helper.
func (h *Helper) Authenticate(ctx context.Context, s *pipeline.Session, user, password string) (string, error) {
	q := question{user: user, password: password, peer: s.Peer}
	if err := q.check(); err != nil {
		return "", err
	}
	if err := h.asking.take(ctx); err != nil {
		return "", trouble(err)
	}
	answered, err := h.send(q)
	if err != nil {
		return "", trouble(err)
	}
	select {
	case a := <-answered:
		return a.result(user)
	case <-ctx.Done():
		// The slot stays taken until the helper is done with it.
		return "", trouble(fmt.Errorf("waiting for the checkpassword helper: %w", ctx.Err()))
	}
}

// send sends a question. The slot that the caller took is given back when the
// answer comes, or with an error.
func (h *Helper) send(q question) (<-chan answer, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.gone != nil {
		h.asking.give()
		return nil, h.gone
	}
	for h.last++; h.last == 0 || h.waiting[h.last] != nil; {
		h.last++
	}
	answered := make(chan answer, 1)
	err := h.conn.SetWriteDeadline(time.Now().Add(helperWrite))
	if err == nil {
		_, err = h.conn.Write(q.append(nil, h.last))
	}
	if err != nil {
		h.asking.give()
		return nil, fmt.Errorf("the checkpassword helper cannot be asked: %w", err)
	}
	h.waiting[h.last] = answered
	return answered, nil
}

// listen hands out the answers until there are no more.
func (h *Helper) listen() {
	defer close(h.read)
	b := make([]byte, maxAnswer+1)
	for {
		n, err := h.conn.Read(b)
		var id uint32
		var a answer
		if err == nil {
			id, a, err = parseAnswer(b[:n])
		}
		if err != nil {
			h.lost(err)
			return
		}
		h.mu.Lock()
		answered := h.waiting[id]
		delete(h.waiting, id)
		h.mu.Unlock()
		if answered != nil {
			answered <- a
			h.asking.give()
		}
	}
}

// lost tells everybody that the helper is gone.
func (h *Helper) lost(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.gone = errors.New("the checkpassword helper is gone: restart the daemon")
	if !h.closing {
		if errors.Is(err, io.EOF) {
			err = errors.New("it has ended")
		}
		h.log.Error("the checkpassword helper is gone, nobody can log in with it: restart the daemon", "error", err)
	}
	h.conn.Close()
	for id, answered := range h.waiting {
		answered <- answer{detail: reply.Clean(h.gone.Error(), maxDetail)}
		delete(h.waiting, id)
		h.asking.give()
	}
}

// Close ends the helper and what it runs, and waits for its end for a while.
func (h *Helper) Close() error {
	h.mu.Lock()
	h.closing = true
	h.mu.Unlock()
	h.conn.CloseWrite() //nolint:errcheck // it may be gone
	late := time.NewTimer(helperEnd)
	defer late.Stop()
	select {
	case <-h.reaped:
		h.conn.Close()
		<-h.read
		return nil
	case <-late.C:
		h.conn.Close()
		<-h.read
		return fmt.Errorf("the checkpassword helper (pid %d) has not ended after %v", h.process.Process.Pid, helperEnd)
	}
}
